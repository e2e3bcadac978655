"""Y-Tuning: task and label embeddings, a label decoder over frozen token features, a label pointer.

Letters: B texts in a batch, M tokens, P width of the frozen features, D width of the decoder, C labels,
K embeddings per label, N = 1 + C K queries (the task first), A attention heads. The paper's symbols: phi is the frozen model that
makes `H`, psi is everything in this file. Sections name the parts of the paper's description; the body of the
paper could not be read, so each open choice is a field of `YTuningConfig`, with its default's reason beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

SCORES = ("scaled_dot", "dot", "cosine", "linear")
LOSSES = ("triplet", "cross_entropy")


@dataclass(frozen=True)
class YTuningConfig:
    """Everything that decides psi. `tasks` maps a task's name to its labels; their order is the scores' order."""

    tasks: Mapping[str, Sequence[str]]
    width_in: int  # P, the frozen model's width
    width: int = 0  # D; 0 takes P: one layer at P gives the paper's 2 % of DeBERTa-XXL
    heads: int = 0  # 0 takes D / 64, at least 1, as in most encoders
    feed_forward: int = 0  # F; 0 takes 4 D
    layers: int = 1  # n; two layers at full width would exceed the published share
    score: str = "scaled_dot"  # the label pointer; raw dot products of normed states spread like sqrt(D)
    loss: str = "triplet"  # the paper's; cross_entropy is the natural ablation
    margin: float = 1.0  # alpha, unknown in the paper
    per_label: int = 1  # K
    self_attention: bool = True  # labels exchange information before they read the text
    task_embedding: bool = True  # e_T; without it a learned vector scores the labels
    dropout: float = 0.1
    init_std: float = 0.02
    label_init: str = (
        "random"  # or "names": the frozen features of the labels' names, the paper's future work
    )
    segments: int = 0  # learned marks for "first text", "second text" when pairs are encoded apart
    mix: int = 1  # layers of the frozen model in H, mixed by learned weights

    def __post_init__(self) -> None:
        set_ = object.__setattr__
        set_(self, "tasks", {str(t): tuple(map(str, labels)) for t, labels in self.tasks.items()})
        set_(self, "width", self.width or self.width_in)
        set_(self, "heads", self.heads or max(1, self.width // 64))
        set_(self, "feed_forward", self.feed_forward or 4 * self.width)
        for task, labels in self.tasks.items():
            check_labels(labels, task)
        if not self.tasks:
            raise ValueError("tasks is empty; give at least one task with its labels")
        if self.score not in SCORES:
            raise ValueError(f"score is {self.score!r}; choose {', '.join(SCORES)}")
        if self.loss not in LOSSES:
            raise ValueError(f"loss is {self.loss!r}; choose {', '.join(LOSSES)}")
        if self.label_init not in ("random", "names"):
            raise ValueError(f"label_init is {self.label_init!r}; choose random or names")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} cannot be split into {self.heads} heads; choose a divisor")
        if not self.task_embedding and self.score != "linear":
            raise ValueError(
                f"score {self.score!r} compares labels with the task embedding; without it use 'linear'"
            )
        if self.margin < 0 or (self.loss == "triplet" and self.margin == 0):
            raise ValueError(f"margin is {self.margin}; a triplet loss needs a margin above 0")
        for name, least in (("layers", 1), ("per_label", 1), ("mix", 1), ("width_in", 1), ("segments", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it starts at {least}")


def check_labels(labels: Sequence[str], task: str = "task") -> None:
    """Raises ValueError unless `labels` are at least two different names: Y-Tuning enumerates them."""
    if len(labels) < 2:
        raise ValueError(f"{task} has {len(labels)} label{'s' if len(labels) != 1 else ''}; Y-Tuning scores a list of "
                         "two or more labels and cannot do regression or generation")  # fmt: skip
    if twice := [x for k, x in enumerate(labels) if x in labels[:k]]:
        raise ValueError(f"{task} has label {twice[0]!r} twice; each label is listed once")


class Attention(nn.Module):
    """Multi-head attention. q: [B, N, D], memory: [B, M, D], pad: [B, M] true where there is no token."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        for part in (self.query, self.key, self.value, self.out):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)

    def _split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, q: torch.Tensor, memory: torch.Tensor, pad: torch.Tensor | None = None) -> torch.Tensor:
        """[B, N, D]. Two ways give the same numbers; the one with fewer operations is taken."""
        q, (_, M, D) = self._split(self.query(q)), memory.shape
        few = q.size(2) * (D + self.heads * M) < M * D
        read = self._few(q, memory, pad) if few else self._many(q, memory, pad)
        return self.out(read.transpose(1, 2).flatten(2))

    def _many(self, q: torch.Tensor, memory: torch.Tensor, pad: torch.Tensor | None) -> torch.Tensor:
        """The usual way: keys and values of all tokens first. q: [B or 1, A, N, D / A] -> [B, A, N, D / A]"""
        k, v = self._split(self.key(memory)), self._split(self.value(memory))
        seen = None if pad is None else ~pad[:, None, None, :]
        # one set of queries for all texts has batch 1; attention needs it expanded
        q = q.expand(k.size(0), -1, -1, -1)
        return F.scaled_dot_product_attention(q, k, v, seen, self.dropout if self.training else 0.0)

    def _few(self, q: torch.Tensor, memory: torch.Tensor, pad: torch.Tensor | None) -> torch.Tensor:
        """Few queries, many tokens: W_K moves to the queries and W_V behind the weighted sum of the tokens.

            q . (W_K h_m + b_K) = (W_K^T q) . h_m + q . b_K
            sum_m w_m (W_V h_m + b_V) = W_V (sum_m w_m h_m) + b_V sum_m w_m

        No token is projected, so the work for M tokens falls from 2 M D^2 to 2 A N M D, and neither keys nor
        values are kept for the backward pass. q: [B or 1, A, N, D / A] -> [B, A, N, D / A]
        """
        A, N, d = q.shape[1:]
        q = q / math.sqrt(d)
        reading = torch.einsum("band,adp->banp", q, self.key.weight.unflatten(0, (A, d))).flatten(1, 2)
        offset = torch.einsum("band,ad->ban", q, self.key.bias.view(A, d)).flatten(1)
        if len(reading) == 1:  # one product for the whole batch
            logits = F.linear(memory, reading[0], offset[0]).transpose(1, 2)
        else:
            logits = reading @ memory.transpose(1, 2) + offset[..., None]
        if pad is not None:
            logits = logits.masked_fill(pad[:, None, :], -torch.inf)
        w = F.dropout(logits.softmax(-1), self.dropout, self.training)  # [B, A N, M]
        seen, mass = (w @ memory).unflatten(1, (A, N)), w.sum(-1).unflatten(1, (A, N))
        values = torch.einsum("banp,adp->band", seen, self.value.weight.unflatten(0, (A, d)))
        return values + mass[..., None] * self.value.bias.view(A, 1, d)

    def weights(self, q: torch.Tensor, memory: torch.Tensor, pad: torch.Tensor | None = None) -> torch.Tensor:
        """What `q` looks at, averaged over heads: [B, N, M]; each line sums to 1."""
        q, k = self._split(self.query(q)), self._split(self.key(memory))
        logits = q @ k.transpose(-1, -2) / math.sqrt(q.size(-1))
        if pad is not None:
            logits = logits.masked_fill(pad[:, None, None, :], -torch.inf)
        return logits.softmax(-1).mean(1)


class LabelDecoderLayer(nn.Module):
    """One post-norm decoder layer without a causal mask (the labels are a set).

        A  = LN1(E + SelfAttention(E))           labels and task exchange information
        B  = LN2(A + CrossAttention(A, H))       labels read the frozen tokens
        E' = LN3(B + W2 gelu(W1 B))
    """  # fmt: skip

    def __init__(
        self, width: int, heads: int, feed_forward: int, dropout: float, self_attention: bool
    ) -> None:
        super().__init__()
        self.self_attention = Attention(width, heads, dropout) if self_attention else None
        self.cross_attention = Attention(width, heads, dropout)
        self.up, self.down = nn.Linear(width, feed_forward), nn.Linear(feed_forward, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.drop = nn.Dropout(dropout)

    def among_labels(self, e: torch.Tensor) -> torch.Tensor:
        """A = LN1(E + SelfAttention(E)). e: [B or 1, N, D]"""
        return self.norm1(e + self.drop(self.self_attention(e, e)) if self.self_attention else e)

    def forward(self, e: torch.Tensor, memory: torch.Tensor, pad: torch.Tensor | None) -> torch.Tensor:
        """e: [B or 1, N, D], memory: [B, M, D] -> [B, N, D]"""
        a = self.among_labels(e)
        b = self.norm2(a + self.drop(self.cross_attention(a, memory, pad)))
        return self.norm3(b + self.drop(self.down(self.drop(F.gelu(self.up(b))))))


class YTuning(nn.Module):
    """psi: all that is trained. `forward` scores the labels of one task on frozen features.

    Several tasks share the decoder and keep a table of embeddings each; tasks never see each other's labels.
    In the first layer the labels' self-attention does not depend on the text, so it is computed once per batch
    (its dropout mask is then shared by the batch).
    """

    def __init__(self, config: YTuningConfig) -> None:
        super().__init__()
        c = self.config = config
        # E_Y = [e_T ; e_1 ; ... ; e_C], one table per task
        self.task = nn.ParameterDict({t: self._new(1) for t in c.tasks} if c.task_embedding else {})
        self.labels = nn.ParameterDict({t: self._new(len(x) * c.per_label) for t, x in c.tasks.items()})
        self.pointer = nn.Linear(c.width, 1, bias=False) if c.score == "linear" else None
        self.project = nn.Linear(c.width_in, c.width) if c.width != c.width_in else nn.Identity()
        self.segment = nn.Embedding(c.segments, c.width) if c.segments else None
        if self.segment:
            nn.init.normal_(self.segment.weight, std=c.init_std)
        self.mix = nn.Parameter(torch.zeros(c.mix)) if c.mix > 1 else None
        self.layers = nn.ModuleList(
            LabelDecoderLayer(c.width, c.heads, c.feed_forward, c.dropout, c.self_attention)
            for _ in range(c.layers)
        )

    def _new(self, count: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(count, self.config.width) * self.config.init_std)

    def pick(self, task: str | None) -> str:
        """`task`, or the only one. Raises ValueError for an unknown task, or for none among several."""
        known = self.config.tasks
        if task is None and len(known) == 1:
            return next(iter(known))
        if task not in known:
            raise ValueError(f"task is {task!r}; this model knows {', '.join(known)}")
        return task

    def queries(self, task: str) -> torch.Tensor:
        """E_Y: [1, N, D], the task's mark first."""
        first = [self.task[task]] if self.config.task_embedding else []
        return torch.cat([*first, self.labels[task]])[None]

    def memory(self, H: torch.Tensor, segments: torch.Tensor | None = None) -> torch.Tensor:
        """What the labels read: H, mixed over layers, projected to D, with segment marks. [B, M, D]"""
        if H.size(-1) != self.config.mix * self.config.width_in:
            raise ValueError(f"features are {H.size(-1)} wide; this model reads "
                             f"{self.config.mix} x {self.config.width_in}")  # fmt: skip
        if self.mix is not None:
            H = torch.einsum("bmlp,l->bmp", H.unflatten(-1, (self.config.mix, -1)), self.mix.softmax(0))
        H = self.project(H.to(self.labels[next(iter(self.labels))].dtype))
        if self.segment is not None:
            if segments is None:
                raise ValueError(
                    f"this model marks {self.config.segments} segments; pass segments [batch, tokens]"
                )
            H = H + self.segment(segments.long())
        return H

    def states(self, H: torch.Tensor, pad: torch.Tensor | None = None, segments: torch.Tensor | None = None,
               task: str | None = None) -> torch.Tensor:  # fmt: skip
        """The decoder's outputs [h_T ; h_1 ; ... ; h_C]: [B, N, D]. H: [B, M, P], pad: [B, M]"""
        e, memory = self.queries(self.pick(task)), self.memory(H, segments)
        for layer in self.layers:
            e = layer(e, memory, pad)
        return e

    def point(self, h: torch.Tensor) -> torch.Tensor:
        """The label pointer. h: [B, N, D] -> s: [B, C], with s_c = h_T . h_c / sqrt(D) by default."""
        c, mark = self.config, int(self.config.task_embedding)
        labels = h[:, mark:]
        if c.score == "linear":
            s = self.pointer(labels).squeeze(-1)
        elif c.score == "cosine":
            s = F.cosine_similarity(h[:, :1], labels, dim=-1)
        else:
            s = torch.einsum("bd,bcd->bc", h[:, 0], labels) / (
                math.sqrt(c.width) if c.score == "scaled_dot" else 1
            )
        return s.unflatten(-1, (-1, c.per_label)).amax(-1) if c.per_label > 1 else s

    def forward(self, H: torch.Tensor, pad: torch.Tensor | None = None, segments: torch.Tensor | None = None,
                task: str | None = None) -> torch.Tensor:  # fmt: skip
        """Scores [B, C] of the task's labels on frozen features H [B, M, P]; pad [B, M] is true on padding."""
        return self.point(self.states(H, pad, segments, task))

    def loss(self, scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The configured loss of scores [B, C] for label numbers target [B]."""
        if self.config.loss == "cross_entropy":
            return F.cross_entropy(scores, target)
        return triplet_loss(scores, target, self.config.margin)

    @torch.no_grad()
    def attention(self, H: torch.Tensor, pad: torch.Tensor | None = None, segments: torch.Tensor | None = None,
                  task: str | None = None, layer: int = 0) -> torch.Tensor:  # fmt: skip
        """What task mark and labels look at in `layer`, averaged over heads: [B, N, M]."""
        e, memory = self.queries(self.pick(task)), self.memory(H, segments)
        for before in self.layers[:layer]:
            e = before(e, memory, pad)
        a = self.layers[layer].among_labels(e)
        return self.layers[layer].cross_attention.weights(a, memory, pad)

    @torch.no_grad()
    def name_labels(self, task: str, vectors: torch.Tensor) -> None:
        """Start the labels of `task` from prior vectors [C, P], e.g. the frozen features of their names.

        They are rescaled to the spread of the random start, so that only their directions are prior knowledge.
        """
        table = self.labels[self.pick(task)]
        start = self.project(vectors.to(table)).repeat_interleave(self.config.per_label, 0)
        start = start - start.mean(0)
        if start.shape != table.shape:
            raise ValueError(
                f"{task} has {len(self.config.tasks[task])} labels; got vectors {tuple(vectors.shape)}"
            )
        table.copy_(start / start.std().clamp_min(1e-6) * self.config.init_std)

    @torch.no_grad()
    def add_label(self, task: str, label: str, vector: torch.Tensor | None = None) -> None:
        """Append a label to `task`; it starts at the mean of the others (or at `vector` [D]) plus noise.

        The frozen features stay valid: only psi has to go on training.
        """
        task = self.pick(task)
        labels = (*self.config.tasks[task], str(label))
        check_labels(labels, task)
        self.config = replace(self.config, tasks={**self.config.tasks, task: labels})
        old = self.labels[task]
        start = old.mean(0, keepdim=True) if vector is None else vector[None].to(old)
        new = start.expand(self.config.per_label, -1) + self._new(self.config.per_label).to(old)
        self.labels[task] = nn.Parameter(torch.cat([old, new]))


def triplet_loss(scores: torch.Tensor, target: torch.Tensor, margin: float = 1.0) -> torch.Tensor:
    """Mean over texts of sum over c != y of [s_c - s_y + alpha]_+ .

    The anchor is h_T, the positive h_y, every other label a negative. scores: [B, C], target: [B].
    """
    positive = scores.gather(1, target[:, None])
    # the term c = y is the margin itself, whatever the scores are
    return (F.relu(scores - positive + margin).sum(1) - margin).mean()


def parameter_count(config: YTuningConfig) -> int:
    """Trained parameters by formula: n (8 D^2 + 2 D F + 15 D + F) + (T + C K) D, plus projection and options."""
    c = config
    d, f = c.width, c.feed_forward
    layer = (8 if c.self_attention else 4) * (d * d + d) + 2 * d * f + f + d + 6 * d
    tables = sum(int(c.task_embedding) + len(labels) * c.per_label for labels in c.tasks.values()) * d
    extra = (c.width_in + 1) * d if c.width != c.width_in else 0
    extra += d if c.score == "linear" else 0
    return c.layers * layer + tables + extra + c.segments * d + (c.mix if c.mix > 1 else 0)
