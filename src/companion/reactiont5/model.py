"""ReactionT5's network: T5 v1.1 with an untied head, and the yield regressor on top of it.

Letters in shapes: B batch, K beams, L encoder tokens, T decoder tokens, d model width, h heads, v vocabulary.

The modules carry the names of the transformers library (`encoder.block.0.layer.0.SelfAttention.q.weight`, ...),
so a released checkpoint is a plain `load_state_dict`. The arithmetic is T5's: RMS norm before every sub-layer,
attention logits without 1/sqrt(d_kv) but with a learned bias per relative distance, a gated feed-forward layer,
and logits from an output matrix of its own. Recent versions of transformers tie that matrix to the embedding
without saying so; this class never does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

PAD, EOS, UNK = 0, 1, 2
NEVER = -1e9  # an attention logit that softmax turns into zero


@dataclass(frozen=True)
class T5Config:
    """Sizes of the network; the defaults are the paper's (T5 v1.1-base, vocabulary of the forward model)."""

    vocab: int = 268  # v: 121 pieces + 100 sentinels + 45 added tokens + 2 roles
    d_model: int = 768  # d
    d_ff: int = 2048
    d_kv: int = 64  # width of one head
    heads: int = 12  # h
    encoder_layers: int = 12
    decoder_layers: int = 12
    buckets: int = 32  # relative-position buckets
    max_distance: int = 128  # distances from here on share a bucket
    dropout: float = 0.1
    epsilon: float = 1e-6
    head_std: float = 1.0  # T5's initial spread of the output matrix; small runs need d_model**-0.5

    def __post_init__(self) -> None:
        for name in ("vocab", "d_model", "d_ff", "d_kv", "heads", "encoder_layers", "decoder_layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it starts at 1")


def bucket(distance: torch.Tensor, both: bool, buckets: int, most: int) -> torch.Tensor:
    """Number of the relative-position bucket of `distance` (key minus query), any shape.

    With `both` (encoder) half of the buckets are for keys to the right; without it (decoder) keys to the right
    share bucket 0. Half of each side counts exact distances, the rest grows logarithmically up to `most`.
    """
    start = torch.zeros_like(distance)
    if both:
        buckets //= 2
        start = (distance > 0) * buckets
        distance = distance.abs()
    else:
        distance = -distance.clamp(max=0)
    exact = buckets // 2
    far = (
        exact
        + (
            torch.log(distance.clamp(min=1).float() / exact) / math.log(most / exact) * (buckets - exact)
        ).long()
    )
    return start + torch.where(distance < exact, distance, far.clamp(max=buckets - 1))


class Norm(nn.Module):
    """x / sqrt(mean(x²) + ε) · w, without mean and bias; the mean is taken in float32."""

    def __init__(self, d: int, epsilon: float) -> None:
        super().__init__()
        self.weight, self.epsilon = nn.Parameter(torch.ones(d)), epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.epsilon)
        return self.weight * (x * scale.to(x.dtype))


class Attention(nn.Module):
    """Multi-head attention with T5's unscaled logits; `bias` [1 or B, h, T, L] is added before the softmax."""

    def __init__(self, c: T5Config, relative: bool = False) -> None:
        super().__init__()
        inner = c.heads * c.d_kv
        self.q, self.k, self.v = (nn.Linear(c.d_model, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, c.d_model, bias=False)
        if relative:
            self.relative_attention_bias = nn.Embedding(c.buckets, c.heads)
        self.c = c
        self.seen: torch.Tensor | None = None  # last attention weights, kept only when `keep` is set
        self.keep = False

    def split(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, h·d_kv] -> [B, h, T, d_kv]."""
        return x.unflatten(-1, (self.c.heads, self.c.d_kv)).transpose(1, 2)

    def distance_bias(self, queries: torch.Tensor, keys: torch.Tensor, both: bool) -> torch.Tensor:
        """[1, h, T, L] learned bias for positions `queries` [T] and `keys` [L]."""
        where = bucket(keys[None, :] - queries[:, None], both, self.c.buckets, self.c.max_distance)
        return self.relative_attention_bias(where).permute(2, 0, 1)[None]

    def forward(self, x: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor,
                drop: float = 0.0) -> torch.Tensor:  # fmt: skip
        """x: [B, T, d]; keys, values: [B, h, L, d_kv] (already projected) -> [B, T, d]."""
        logits = self.split(self.q(x)) @ keys.transpose(-1, -2) + bias
        weights = torch.softmax(logits.float(), -1).to(values.dtype)
        if self.keep:
            self.seen = weights.detach()
        weights = F.dropout(weights, drop, self.training) if drop else weights
        return self.o((weights @ values).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """wo(gelu(wi_0 x) · wi_1 x), with the tanh form of GELU."""

    def __init__(self, c: T5Config) -> None:
        super().__init__()
        self.wi_0, self.wi_1 = (nn.Linear(c.d_model, c.d_ff, bias=False) for _ in range(2))
        self.wo = nn.Linear(c.d_ff, c.d_model, bias=False)
        self.dropout = c.dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gated = F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x)
        return self.wo(F.dropout(gated, self.dropout, self.training))


class Sublayer(nn.Module):
    """A residual branch: x + f(norm(x)). Holds `layer_norm` and one named part."""

    def __init__(self, c: T5Config, name: str, part: nn.Module) -> None:
        super().__init__()
        self.add_module(name, part)
        self.layer_norm = Norm(c.d_model, c.epsilon)


class Block(nn.Module):
    """Self-attention, cross-attention (decoder only), feed-forward."""

    def __init__(self, c: T5Config, decoder: bool, first: bool) -> None:
        super().__init__()
        parts = [Sublayer(c, "SelfAttention", Attention(c, relative=first))]
        if decoder:
            parts.append(Sublayer(c, "EncDecAttention", Attention(c)))
        parts.append(Sublayer(c, "DenseReluDense", FeedForward(c)))
        self.layer, self.drop = nn.ModuleList(parts), c.dropout

    def forward(self, x: torch.Tensor, bias: torch.Tensor, memory: tuple | None = None,
                memory_bias: torch.Tensor | None = None, past: tuple | None = None) -> tuple:  # fmt: skip
        """x: [B, T, d] -> (x, (keys, values) of self-attention). `past` are keys and values of earlier tokens."""
        first, last = self.layer[0], self.layer[-1]
        inside, attend = first.layer_norm(x), first.SelfAttention
        keys, values = attend.split(attend.k(inside)), attend.split(attend.v(inside))
        if past is not None:
            keys, values = torch.cat((past[0], keys), 2), torch.cat((past[1], values), 2)
        x = x + self._dropped(attend(inside, keys, values, bias, self.drop))
        if memory is not None:
            cross = self.layer[1]
            x = x + self._dropped(cross.EncDecAttention(cross.layer_norm(x), *memory, memory_bias, self.drop))
        x = x + self._dropped(last.DenseReluDense(last.layer_norm(x)))
        return x, (keys, values)

    def _dropped(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(x, self.drop, self.training)


class Stack(nn.Module):
    """Encoder or decoder: blocks that share the first block's relative bias, and a final norm."""

    def __init__(self, c: T5Config, decoder: bool) -> None:
        super().__init__()
        depth = c.decoder_layers if decoder else c.encoder_layers
        self.block = nn.ModuleList(Block(c, decoder, first=k == 0) for k in range(depth))
        self.final_layer_norm = Norm(c.d_model, c.epsilon)
        self.drop = c.dropout

    @property
    def relative(self) -> Attention:
        return self.block[0].layer[0].SelfAttention

    def finish(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.final_layer_norm(x), self.drop, self.training)


class T5(nn.Module):
    """T5 v1.1 encoder-decoder with an untied output matrix (`lm_head`)."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = c = config
        self.shared = nn.Embedding(c.vocab, c.d_model)
        self.encoder, self.decoder = Stack(c, decoder=False), Stack(c, decoder=True)
        self.lm_head = nn.Linear(c.d_model, c.vocab, bias=False)
        self.reset()

    def reset(self) -> None:
        """T5's initialisation: every matrix has the spread that keeps its output at unit variance."""
        c, inner = self.config, self.config.heads * self.config.d_kv
        nn.init.normal_(self.shared.weight, std=1.0)
        nn.init.normal_(self.lm_head.weight, std=c.head_std)
        for name, w in self.named_parameters():
            part = name.rsplit(".", 2)[-2]
            if part == "q":
                nn.init.normal_(w, std=(c.d_model * c.d_kv) ** -0.5)
            elif part in ("k", "v", "wi_0", "wi_1", "relative_attention_bias"):
                nn.init.normal_(w, std=c.d_model**-0.5)
            elif part == "o":
                nn.init.normal_(w, std=inner**-0.5)
            elif part == "wo":
                nn.init.normal_(w, std=c.d_ff**-0.5)

    def resize(self, vocab: int) -> None:
        """Grow the embedding and the output matrix to `vocab` rows; old rows of both survive.

        New rows as in transformers 4.40, the version of the paper: N(0, 1) in the embedding and U(±1/√d) in the
        output matrix. Raises ValueError for fewer rows than there are.
        """
        old, d = self.config.vocab, self.config.d_model
        if vocab < old:
            raise ValueError(
                f"vocabulary cannot shrink from {old} to {vocab}; ids of stored tokens would be lost"
            )
        shared, head = nn.Embedding(vocab, d), nn.Linear(d, vocab, bias=False)
        nn.init.normal_(shared.weight, std=1.0)
        nn.init.uniform_(head.weight, -(d**-0.5), d**-0.5)
        with torch.no_grad():
            shared.weight[:old] = self.shared.weight
            head.weight[:old] = self.lm_head.weight
        self.shared, self.lm_head = shared.to(self.shared.weight), head.to(self.lm_head.weight)
        self.config = type(self.config)(**{**self.config.__dict__, "vocab": vocab})

    def encode(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """ids, mask: [B, L] (mask 1 where a token counts; default: everything but padding) -> H [B, L, d]."""
        mask = ids.ne(PAD) if mask is None else mask
        at = torch.arange(ids.shape[1], device=ids.device)
        bias = self.encoder.relative.distance_bias(at, at, both=True) + blocked(mask)
        x = F.dropout(self.shared(ids), self.config.dropout, self.training)
        for block in self.encoder.block:
            x, _ = block(x, bias)
        return self.encoder.finish(x)

    def memory(self, states: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """H [B, L, d] -> per decoder block the projected keys and values [B, h, L, d_kv]."""
        parts = [block.layer[1].EncDecAttention for block in self.decoder.block]
        return [(a.split(a.k(states)), a.split(a.v(states))) for a in parts]

    def decode(self, ids: torch.Tensor, states: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """ids: [B, T] decoder input; states: H [B, L, d]; mask: [B, L], or None to let padding be seen -> [B, T, d]."""
        at = torch.arange(ids.shape[1], device=ids.device)
        bias = self.decoder.relative.distance_bias(at, at, both=False)
        bias = bias + torch.full_like(bias[0, 0], NEVER).triu(1)
        seen = states.new_zeros(1, 1, 1, 1) if mask is None else blocked(mask)
        x = F.dropout(self.shared(ids), self.config.dropout, self.training)
        for block, memory in zip(self.decoder.block, self.memory(states), strict=True):
            x, _ = block(x, bias, memory, seen)
        return self.decoder.finish(x)

    def forward(
        self, ids: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """ids: [B, L]; targets: [B, T] (ends with </s>, padded) -> logits [B, T, v] for each target token."""
        mask = ids.ne(PAD) if mask is None else mask
        return self.lm_head(self.decode(shift(targets), self.encode(ids, mask), mask))


def shift(targets: torch.Tensor) -> torch.Tensor:
    """Decoder input for `targets` [B, T]: the start token (padding's id) in front, the last token dropped."""
    return torch.cat((targets.new_zeros(len(targets), 1), targets[:, :-1]), 1)


def blocked(mask: torch.Tensor) -> torch.Tensor:
    """mask [B, L] -> additive bias [B, 1, 1, L]."""
    return (~mask.bool())[:, None, None].float() * NEVER


def seq2seq_loss(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Mean cross-entropy over the target tokens that are not padding."""
    logits = model(batch["ids"], batch["targets"])
    return F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), ignore_index=PAD)


class ReactionYield(nn.Module):
    """Yield in [0, 1] from a reaction string, as in the paper's `ReactionT5Yield`.

        H = Encoder(ids),  s = Decoder([start], H)[0]                      s: B×d, H: B×L×d
        y = fc5(fc4(fc3([fc1(s); fc2(H₀)])))                               no non-linearity between them

    Args:
        config: sizes of the backbone.
        mask_padding: hide padding from the decoder's cross-attention. The published model does not, so that its
            answer depends on how far the batch was padded.
        pooling: "first" (published: the encoder's state of the first token) or "mean" over the real tokens.
    """

    def __init__(self, config: T5Config, mask_padding: bool = True, pooling: str = "first") -> None:
        super().__init__()
        if pooling not in ("first", "mean"):
            raise ValueError(f"pooling is {pooling!r}; choose first or mean")
        d, half = config.d_model, config.d_model // 2
        self.model = T5(config)
        del self.model.lm_head  # T5Model, as trained for v2: no output matrix
        self.fc1, self.fc2 = nn.Linear(d, half), nn.Linear(d, half)
        self.fc3, self.fc4, self.fc5 = nn.Linear(2 * half, d), nn.Linear(d, d), nn.Linear(d, 1)
        for fc in (self.fc1, self.fc2, self.fc3, self.fc4, self.fc5):
            nn.init.normal_(fc.weight, std=0.01)
            nn.init.zeros_(fc.bias)
        self.mask_padding, self.pooling = mask_padding, pooling

    @classmethod
    def as_published(cls, config: T5Config) -> ReactionYield:
        """The released model's behaviour: padding is seen by the decoder, first token is pooled."""
        return cls(config, mask_padding=False, pooling="first")

    @classmethod
    def from_pretrained(cls, name: str | Path = "sagawa/ReactionT5v2-yield") -> ReactionYield:
        """The released yield model by hub name or folder, with the released behaviour (`mask_padding` is False).

        `hub.ReactionT5.from_pretrained` gives its tokenizer with it.
        """
        from companion.reactiont5.hub import ReactionT5

        return ReactionT5.from_pretrained(name, "yield").model

    def states(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """ids [B, L] -> (decoder state s [B, d], pooled encoder state [B, d])."""
        mask = ids.ne(PAD)
        hidden = self.model.encode(ids, mask)
        start = ids.new_zeros(len(ids), 1)
        s = self.model.decode(start, hidden, mask if self.mask_padding else None)[:, 0]
        if self.pooling == "first":
            return s, hidden[:, 0]
        weight = mask[..., None].to(hidden.dtype)
        return s, (hidden * weight).sum(1) / weight.sum(1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """ids: [B, L], padded at the end with 0 -> predicted yield [B] as a share (times 100 for percent)."""
        s, pooled = self.states(ids)
        return self.fc5(self.fc4(self.fc3(torch.cat((self.fc1(s), self.fc2(pooled)), -1))))[:, 0]

    def collapsed(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(w_s [d], w_h [d], c): the head as the one linear map that it is, y = w_s·s + w_h·H₀ + c."""
        last = self.fc5.weight @ self.fc4.weight
        both, half = last @ self.fc3.weight, self.fc1.out_features
        c = self.fc5.bias + self.fc5.weight @ self.fc4.bias + last @ self.fc3.bias
        c = c + both[:, :half] @ self.fc1.bias + both[:, half:] @ self.fc2.bias
        return (both[:, :half] @ self.fc1.weight)[0], (both[:, half:] @ self.fc2.weight)[0], c[0]


def yield_loss(model: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Mean squared error between predicted and true yield, both as shares."""
    return F.mse_loss(model(batch["ids"]), batch["yields"])
