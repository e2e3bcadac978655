"""The DN-CL model: a set encoder shared by two views, a skeleton decoder, and the two losses.

The paper's abstract names two parameter-sharing encoders and a contrastive loss between clean and noisy views; the kind
of encoder is not known to us, and a Set Transformer (Lee et al. 2019) is the guess.

Shape letters: B data sets, n points, D variables, k seeds, d width, L tokens, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.dncl import expressions as ex
from companion.dncl.data import Views


@dataclass(frozen=True)
class ModelConfig:
    """Sizes, none of them known from the paper. The defaults are those of the walk-through: minutes on two CPU cores."""

    variables: int = 1  # D
    d: int = 64  # width
    heads: int = 4
    isab: int = 1  # encoder layers, L_e
    inducing: int = 16  # m, inducing points of an ISAB
    seeds: int = 8  # k, rows of the encoding
    decoder: int = 2  # decoder layers
    length: int = 16  # longest skeleton, in tokens
    projection: int = 64  # width of z; 0 uses the mean of the encoding itself


@dataclass(frozen=True)
class LossConfig:
    """L = mean CE of the decoded views + lambda · L_co; the views to decode, lambda and Gamma are our choice."""

    views: str = "both"  # clean, noisy or both: which views are encoded and decoded
    contrast: float = 0.1  # lambda
    temperature: float = 0.1  # Gamma
    mask_same: bool = True  # rows with the same skeleton are not negatives of each other

    def __post_init__(self) -> None:
        if self.views not in ("clean", "noisy", "both"):
            raise ValueError(f"views is {self.views!r}; choose clean, noisy or both")
        if self.contrast and self.views != "both":
            raise ValueError(
                f"a contrastive loss needs both views, not views={self.views!r}; set contrast to 0"
            )


class Attention(nn.Module):
    """Multi-head attention; queries `[B, q, d]` look at `[B, m, d]` where `mask` `[B, m]` is true."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        if d % heads:
            raise ValueError(f"width {d} is not a multiple of {heads} heads")
        self.heads = heads
        self.q, self.kv, self.out = nn.Linear(d, d), nn.Linear(d, 2 * d), nn.Linear(d, d)

    def forward(self, q: Tensor, kv: Tensor, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        return self.look(q, *self.keys(kv), mask, causal)

    def keys(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `[B, heads, m, d / heads]` of `[B, m, d]`."""
        k, v = self.kv(kv).chunk(2, -1)
        return self._split(k), self._split(v)

    def look(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Queries `[B, q, d]` at what `keys` made."""
        keep = mask[:, None, None, :] if mask is not None else None
        y = F.scaled_dot_product_attention(self._split(self.q(q)), k, v, attn_mask=keep, is_causal=causal)
        return self.out(y.transpose(1, 2).reshape(q.shape))

    def _split(self, t: Tensor) -> Tensor:
        return t.view(*t.shape[:2], self.heads, -1).transpose(1, 2)


class Block(nn.Module):
    """Pre-norm attention block, MAB(x, y) of the Set Transformer: x + Att(x, y), then x + FF(x) of width 2d."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.norm_q, self.norm_kv, self.norm_ff = nn.LayerNorm(d), nn.LayerNorm(d), nn.LayerNorm(d)
        self.attention = Attention(d, heads)
        self.ff = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.look(x, self.keys(y), mask)

    def keys(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of `y`, for several calls of `look`."""
        return self.attention.keys(self.norm_kv(y))

    def look(self, x: Tensor, keys: tuple[Tensor, Tensor], mask: Tensor | None = None) -> Tensor:
        """The block with keys and values that are there already."""
        x = x + self.attention.look(self.norm_q(x), *keys, mask)
        return x + self.ff(self.norm_ff(x))


def point_features(points: Tensor, mask: Tensor) -> Tensor:
    """Continuous features of each point, `[B, n, D + 1]` -> `[B, n, F]`; F is `feature_width(D)`.

    x, standardised y (clipped to +-6), signed log of 1 + the magnitude of y, sines and cosines of x and of standardised y at
    frequencies 1, 2, 4, and the data set's log mean magnitude and log standard deviation of y. No float bits:
    under noise their low digits mean nothing (Biggio et al. 2021 feed them to the network).
    """
    x, y = points[..., :-1], points[..., -1:]
    m = mask[..., None]
    count = m.sum(1, keepdim=True)
    mean = (y * m).sum(1, keepdim=True) / count
    std = (((y - mean) * m).square().sum(1, keepdim=True) / count).sqrt().clamp(min=1e-6)
    level = (y.abs() * m).sum(1, keepdim=True) / count
    z = ((y - mean) / std).clamp(-6, 6)
    waves = [f(w * t) for t in (x, z) for w in (1, 2, 4) for f in (torch.sin, torch.cos)]
    whole = torch.cat([(level + 1e-6).log(), std.log(), mean / (level + 1e-6)], -1).expand(-1, y.shape[1], -1)
    return torch.cat([x, z, y.sign() * y.abs().log1p(), *waves, whole], -1)


def feature_width(variables: int) -> int:
    """Number of features that `point_features` makes."""
    return variables + 2 + 6 * (variables + 1) + 3


class SetEncoder(nn.Module):
    """f_enc: points -> k rows, the same for any order of the points (ISAB layers, then PMA)."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(feature_width(c.variables), c.d), nn.GELU(), nn.Linear(c.d, c.d))
        self.inducing = nn.Parameter(torch.randn(c.isab, c.inducing, c.d) * 0.1)
        self.gather = nn.ModuleList(Block(c.d, c.heads) for _ in range(c.isab))
        self.spread = nn.ModuleList(Block(c.d, c.heads) for _ in range(c.isab))
        self.seeds = nn.Parameter(torch.randn(c.seeds, c.d) * 0.1)
        self.pool = Block(c.d, c.heads)
        self.norm = nn.LayerNorm(c.d)

    def forward(self, points: Tensor, mask: Tensor) -> Tensor:
        """`[B, n, D + 1]` and mask `[B, n]` -> `[B, k, d]`."""
        h = self.embed(point_features(points, mask))
        for induce, gather, spread in zip(self.inducing, self.gather, self.spread, strict=True):
            summary = gather(induce.expand(len(h), -1, -1), h, mask)
            h = spread(h, summary)
        return self.norm(self.pool(self.seeds.expand(len(h), -1, -1), h, mask))


class SkeletonDecoder(nn.Module):
    """Causal transformer over prefix tokens with cross-attention to the encoding."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.token = nn.Embedding(len(ex.TOKENS), c.d)
        self.position = nn.Parameter(torch.randn(c.length + 2, c.d) * 0.02)
        self.selfs = nn.ModuleList(Attention(c.d, c.heads) for _ in range(c.decoder))
        self.norms = nn.ModuleList(nn.LayerNorm(c.d) for _ in range(c.decoder))
        self.cross = nn.ModuleList(Block(c.d, c.heads) for _ in range(c.decoder))
        self.norm = nn.LayerNorm(c.d)
        nn.init.normal_(self.token.weight, std=0.05)

    def forward(self, tokens: Tensor, memory: Tensor) -> Tensor:
        """Tokens `[B, L]` and encoding `[B, k, d]` -> logits `[B, L, V]` for the next token."""
        h = self.token(tokens) * math.sqrt(self.token.embedding_dim) + self.position[: tokens.shape[1]]
        for attend, norm, cross in zip(self.selfs, self.norms, self.cross, strict=True):
            t = norm(h)
            h = h + attend(t, t, causal=True)
            h = cross(h, memory)
        return self.norm(h) @ self.token.weight.T

    def start(self, memory: Tensor) -> DecoderCache:
        """The cache before the first `step`, for encodings `[E, k, d]`."""
        return DecoderCache([cross.keys(memory) for cross in self.cross], [])

    def step(self, token: Tensor, cache: DecoderCache) -> Tensor:
        """Last tokens `[E, W]` of W hypotheses for each of E encodings -> logits `[E, W, V]` for the next.

        The same numbers as `forward` on the whole prefixes, without computing the earlier places again; `cache` grows
        by one place.
        """
        h = self.token(token) * math.sqrt(self.token.embedding_dim) + self.position[cache.places]
        grown = []
        for layer, (attend, norm, cross) in enumerate(zip(self.selfs, self.norms, self.cross, strict=True)):
            t = norm(h).flatten(0, 1)[:, None]
            new = attend.keys(t)
            if cache.past:
                new = tuple(torch.cat(pair, 2) for pair in zip(cache.past[layer], new, strict=True))
            grown.append(new)
            h = h + attend.look(t, *new).view(h.shape)
            h = cross.look(h, cache.memory[layer])
        cache.past = grown
        return self.norm(h) @ self.token.weight.T


@dataclass
class DecoderCache:
    """Keys and values of a decoding under way, per layer."""

    memory: list[tuple[Tensor, Tensor]]  # of the encodings, `[E, heads, k, d / heads]`
    past: list[tuple[Tensor, Tensor]]  # of the tokens so far, `[E W, heads, places, d / heads]`

    @property
    def places(self) -> int:
        """Tokens so far."""
        return self.past[0][0].shape[2] if self.past else 0

    def follow(self, parent: Tensor) -> None:
        """Go on with the hypotheses `parent` `[W']` (numbers below W, each as often as it has children)."""
        E = len(self.memory[0][0])
        pick = lambda t: t.view(E, -1, *t.shape[1:])[:, parent].flatten(0, 1)  # noqa: E731
        self.past = [(pick(k), pick(v)) for k, v in self.past]


class DNCL(nn.Module):
    """Encoder, decoder and projection head.

    Args:
        config: sizes; all dimensions follow from it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = SetEncoder(config)
        self.decoder = SkeletonDecoder(config)
        p = config.projection
        self.project = (
            nn.Sequential(nn.Linear(config.d, config.d), nn.GELU(), nn.Linear(config.d, p)) if p else None
        )

    def encode(self, points: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Points `[B, n, D + 1]` -> rows `[B, k, d]` for the decoder and unit feature z `[B, p]` for the contrast."""
        h = self.encoder(points, mask)
        z = h.mean(1)
        return h, F.normalize(self.project(z) if self.project else z, dim=-1)

    def forward(self, points: Tensor, mask: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher forcing: logits `[B, L, V]` for the tokens after each of `tokens` `[B, L]`, and z `[B, p]`."""
        h, z = self.encode(points, mask)
        return self.decoder(tokens, h), z


def info_nce(q: Tensor, k: Tensor, skeleton: Tensor, temperature: float, mask_same: bool = True) -> Tensor:
    """InfoNCE between the two views, averaged over both directions.

    -log exp(q·k+ / Gamma) / (exp(q·k+ / Gamma) + sum over k- of exp(q·k- / Gamma)): the positive is the other
    view of the same data set, negatives are the batch's other rows, except, with `mask_same`, those of the same
    skeleton.

    Args:
        q, k: unit features `[B, p]` of the two views.
        skeleton: `[B]` skeleton numbers.
    """
    logits = q @ k.T / temperature
    if mask_same:
        same = skeleton[:, None] == skeleton[None, :]
        itself = torch.eye(len(q), dtype=torch.bool, device=q.device)
        logits = logits.masked_fill(same & ~itself, float("-inf"))
    target = torch.arange(len(q), device=q.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def dncl_loss(model: nn.Module, batch: Views, config: LossConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Total loss of a batch and its parts by name; with one view the CE counts once."""
    tokens, target = batch.tokens[:, :-1], batch.tokens[:, 1:]
    if config.views == "both":
        points = torch.cat([batch.clean, batch.noisy])
        mask = torch.cat([batch.clean_mask, batch.noisy_mask])
        tokens, target = tokens.repeat(2, 1), target.repeat(2, 1)
    elif config.views == "clean":
        points, mask = batch.clean, batch.clean_mask
    else:
        points, mask = batch.noisy, batch.noisy_mask
    logits, z = model(points, mask, tokens)
    ce = F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=ex.PAD)
    if config.views != "both":
        return ce, {"cross_entropy": ce.detach()}
    contrast = info_nce(*z.chunk(2), batch.skeleton, config.temperature, config.mask_same)
    # the two views' cross-entropies are averaged, so that one view and two are on the same scale
    return ce + config.contrast * contrast, {"cross_entropy": ce.detach(), "contrast": contrast.detach()}
