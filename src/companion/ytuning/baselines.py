"""What Y-Tuning is compared with: heads on the same frozen features, and tuning through the model.

Heads read a `features.Batch` (H [B, M, P], pad [B, M], segments [B, M]) like `YTuning` does and give scores
[B, C]. `Tuned` reads token ids and trains (part of) the encoder by back-propagation.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from companion.ytuning.frozen import FrozenEncoder, hidden_states
from companion.ytuning.model import Attention

HEADS = ("linear-cls", "linear-mean", "attention-pool", "label-tuning", "ladder")
TUNED = ("fine-tuning", "bitfit", "lora", "prompt-tuning")


def mean_pool(H: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Mean of the tokens where keep [B, M] is true: [B, P]."""
    weight = keep[..., None].to(H.dtype)
    return (H * weight).sum(1) / weight.sum(1).clamp_min(1)


class LinearProbe(nn.Module):
    """A linear classifier on the first token ("cls") or on the mean; pairs encoded apart give
    ``[u, v, |u - v|, u v]`` of the two means (or first tokens)."""

    def __init__(self, width: int, labels: int, pool: str = "mean", pairs: bool = False) -> None:
        super().__init__()
        if pool not in ("cls", "mean"):
            raise ValueError(f"pool is {pool!r}; choose cls or mean")
        self.pool, self.pairs = pool, pairs
        self.out = nn.Linear(width * (4 if pairs else 1), labels)

    def _one(self, H: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        if self.pool == "mean":
            return mean_pool(H, keep)
        first = keep.float().argmax(1)
        return H[torch.arange(len(H), device=H.device), first]

    def forward(
        self, H: torch.Tensor, pad: torch.Tensor, segments: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[B, C]"""
        if not self.pairs:
            return self.out(self._one(H, ~pad))
        u, v = self._one(H, ~pad & (segments == 0)), self._one(H, ~pad & (segments == 1))
        return self.out(torch.cat([u, v, (u - v).abs(), u * v], -1))


class AttentionPool(nn.Module):
    """Y-Tuning without a label side: one learned query reads the tokens, the rest of the layer and a linear
    classifier follow. The same depth and almost the same size, cross-entropy instead of matching labels."""

    def __init__(self, width_in: int, labels: int, width: int, heads: int, feed_forward: int, dropout: float = 0.1,
                 segments: int = 0) -> None:  # fmt: skip
        super().__init__()
        self.query = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.project = nn.Linear(width_in, width) if width != width_in else nn.Identity()
        self.segment = nn.Embedding(segments, width) if segments else None
        if self.segment:
            nn.init.normal_(self.segment.weight, std=0.02)
        self.read = Attention(width, heads, dropout)
        self.up, self.down = nn.Linear(width, feed_forward), nn.Linear(feed_forward, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.drop, self.out = nn.Dropout(dropout), nn.Linear(width, labels)

    def forward(
        self, H: torch.Tensor, pad: torch.Tensor, segments: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[B, C]"""
        memory = self.project(H)
        if self.segment:
            memory = memory + self.segment(segments.long())
        b = self.norm1(self.query + self.drop(self.read(self.query, memory, pad)))
        return self.out(self.norm2(b + self.drop(self.down(self.drop(F.gelu(self.up(b))))))[:, 0])


class LabelTuning(nn.Module):
    """Label Tuning (Mueller et al. 2022): only label embeddings are learned, matched with the frozen mean by
    cosine. The closest relative of Y-Tuning; it has no decoder."""

    def __init__(self, width: int, labels: int) -> None:
        super().__init__()
        self.labels = nn.Parameter(torch.randn(labels, width) / width**0.5)
        self.scale = nn.Parameter(torch.tensor(3.0))

    def forward(
        self, H: torch.Tensor, pad: torch.Tensor, segments: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[B, C]"""
        mean = F.normalize(mean_pool(H, ~pad), dim=-1)
        return self.scale.exp() * mean @ F.normalize(self.labels, dim=-1).T


class Ladder(nn.Module):
    """A small ladder side network (after Sung et al. 2022): narrow layers beside the frozen ones, fed by gates.

    g = sigmoid(a_i / T); side = g side + (1 - g) Linear_i(h_i); side = layer_i(side), T = 0.1 as in their code. H
    holds all L + 1 hidden states side by side, so features can be cached here too, at L + 1 times the size. Unlike
    theirs, the narrow layers start at random instead of from a pruned copy of the frozen model.
    """

    def __init__(self, width: int, states: int, labels: int, reduction: int = 8, heads: int = 4,
                 segments: int = 0, temperature: float = 0.1) -> None:  # fmt: skip
        super().__init__()
        d = max(1, width // reduction)
        heads = next(h for h in (heads, 2, 1) if d % h == 0)
        self.states, self.temperature = states, temperature
        self.segment = nn.Embedding(segments, d) if segments else None
        if self.segment:
            nn.init.normal_(self.segment.weight, std=0.02)
        self.down = nn.ModuleList(nn.Linear(width, d) for _ in range(states))
        self.gate = nn.Parameter(torch.zeros(states))
        self.side = nn.ModuleList(
            nn.TransformerEncoderLayer(d, heads, 4 * d, 0.1, "gelu", batch_first=True)
            for _ in range(states - 1)
        )
        self.up, self.out = nn.Linear(d, width), nn.Linear(width, labels)

    def forward(
        self, H: torch.Tensor, pad: torch.Tensor, segments: torch.Tensor | None = None
    ) -> torch.Tensor:
        """H: [B, M, (L + 1) P] -> [B, C]"""
        h = H.unflatten(-1, (self.states, -1)).unbind(2)
        side = self.down[0](h[0])
        if self.segment:
            side = side + self.segment(segments.long())
        for i, layer in enumerate(self.side, 1):
            g = (self.gate[i] / self.temperature).sigmoid()
            side = layer(g * side + (1 - g) * self.down[i](h[i]), src_key_padding_mask=pad)
        return self.out(mean_pool(self.up(side), ~pad))


class Tuned(nn.Module):
    """The encoder with a linear classifier on the mean of its last states, tuned by back-propagation.

    method: "fine-tuning" (all parameters), "bitfit" (biases), "lora" (rank-r updates of query and value),
    "prompt-tuning" (learned vectors before the words); the classifier always learns.
    """

    def __init__(
        self, encoder: FrozenEncoder, labels: int, method: str, rank: int = 8, prompt: int = 20
    ) -> None:
        super().__init__()
        import copy

        if method not in TUNED:
            raise ValueError(f"method is {method!r}; choose {', '.join(TUNED)}")
        # a copy: the frozen original may serve others
        self.model = copy.deepcopy(encoder.model).float().requires_grad_(method == "fine-tuning")
        self.method = method
        self.out = nn.Linear(encoder.base_width, labels)
        self.prompt = None
        if method == "bitfit":
            for name, p in self.model.named_parameters():
                p.requires_grad_(name.endswith("bias"))
        elif method == "lora":
            self.model = lora(self.model, rank)
        elif method == "prompt-tuning":
            # starts at words of the vocabulary, as Lester et al. found best
            table = self._words().weight
            picked = torch.randint(len(table) // 2, (prompt,), generator=torch.Generator().manual_seed(0))
            self.prompt = nn.Parameter(table[picked].detach().clone())

    def _words(self) -> nn.Embedding:
        if hasattr(self.model, "get_input_embeddings"):
            return self.model.get_input_embeddings()
        return self.model.embeddings["word_embeddings"]

    def states(
        self, ids: torch.Tensor, pad: torch.Tensor, types: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Last states of the words [B, M, P], and which of them are words [B, M]. ids, pad, types: [B, M]"""
        if self.prompt is None:
            H = hidden_states(self.model, ids, pad, types)[-1]
        elif hasattr(self.model, "get_input_embeddings"):
            x = torch.cat([self.prompt.expand(len(ids), -1, -1), self._words()(ids)], 1)
            seen = F.pad((~pad).long(), (len(self.prompt), 0), value=1)
            H = self.model(inputs_embeds=x, attention_mask=seen).last_hidden_state[:, len(self.prompt) :]
        else:
            H = self.model(ids, pad, types, self.prompt)[-1][:, len(self.prompt) :]
        return H, ~pad

    def forward(self, ids: torch.Tensor, pad: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
        """ids, pad, types: [B, M] -> [B, C]"""
        return self.out(mean_pool(*self.states(ids, pad, types)))


class MeanHead(nn.Module):
    """The classifier of a `Tuned` model by itself: a linear layer on the mean of given states."""

    def __init__(self, out: nn.Linear) -> None:
        super().__init__()
        self.out = out

    def forward(
        self, H: torch.Tensor, pad: torch.Tensor, segments: torch.Tensor | None = None
    ) -> torch.Tensor:
        """H: [B, M, P] -> [B, C]"""
        return self.out(mean_pool(H, ~pad))


def lora(model: nn.Module, rank: int) -> nn.Module:
    """`model` with LoRA on its query and value projections (peft's, alpha = rank)."""
    from peft import LoraConfig, inject_adapter_in_model

    names = {name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    pairs = (
        ("query", "value"),
        ("q_proj", "v_proj"),
        ("query_proj", "value_proj"),
        ("q_lin", "v_lin"),
        ("q", "v"),
    )
    wanted = next((list(pair) for pair in pairs if set(pair) <= names), None)
    if wanted is None:
        raise ValueError(f"no query and value projections found for LoRA among {', '.join(sorted(names))}")
    return inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=wanted), model)
