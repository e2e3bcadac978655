"""The DG-SCT unit and the pairing of two frozen encoders. Steps are numbered as in the walk-through.

Letters in shapes: N frames (videos x segments), L tokens of the modality being adjusted, M latent tokens,
C its width, K and D tokens and width of the guide (the other modality).

One unit, `CrossModalPrompt`, adjusts features `x [N, L, C]` by a guide `g [N, K, D]` and returns a residual to be
added to the encoder's features. With its gate at 0 (as at the start) the residual is exactly 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class PromptConfig:
    """One unit. Defaults are the published AVE setting; `PRESETS` holds every published one."""

    alpha: float = 0.3  # α, weight of the channel map
    beta: float = 0.05  # β, weight of the spatial (visual) or frequency-time (audio) map
    gamma: float = 0.0  # γ of the unit's own temporal map (few- and zero-shot); 0 leaves the map out
    reduction: int = 8  # r, the bottleneck is C / r wide
    tokens: int = 32  # M, latent tokens
    groups: int = 2  # G, groups of the two 1x1 convolutions
    remap: str = "conv"  # "conv": learned map of the token axis; "bicubic": resize of a square grid (S4)
    batch_norm: bool = True
    norm_before: bool = True  # LayerNorm in front of the bottleneck
    gate_last: bool = (
        True  # False: gate, then LayerNorm, as published for segmentation (the gate loses its meaning)
    )
    gate_visual: bool = True  # whether the units that adjust vision (audio) have a gate at all
    gate_audio: bool = True
    token_init: str = "uniform"  # "uniform" on [0, 1) or "zeros"
    init: str = "torch"  # as published; "he": He weights and an averaging W_tok, so that short trainings start to move
    latent: bool = True  # LAVISH's latent-token fusion
    channel: bool = True  # False leaves the channel attention out
    spatial: bool = True  # False leaves the spatial attention out; there is then no pooling map

    def __post_init__(self) -> None:
        if self.remap not in ("conv", "bicubic"):
            raise ValueError(f"remap is {self.remap!r}; choose conv or bicubic")
        if self.token_init not in ("uniform", "zeros"):
            raise ValueError(f"token_init is {self.token_init!r}; choose uniform or zeros")
        if self.init not in ("torch", "he"):
            raise ValueError(f"init is {self.init!r}; choose torch or he")
        if min(self.reduction, self.tokens, self.groups) < 1:
            raise ValueError(
                f"reduction is {self.reduction}, tokens {self.tokens}, groups {self.groups}; all start at 1"
            )


_SEGMENT = PromptConfig(
    batch_norm=False, norm_before=False, gate_last=False, gate_audio=False, token_init="zeros"
)
PRESETS: Mapping[str, PromptConfig] = {
    "ave": PromptConfig(),
    "avvp": PromptConfig(),
    "avs-s4": replace(_SEGMENT, remap="bicubic"),
    "avs-ms3": replace(_SEGMENT, alpha=0.2, beta=0.1, reduction=2),
    "avqa": PromptConfig(tokens=2, groups=4, batch_norm=False, gate_audio=False, token_init="zeros"),
    "few-shot-ave": PromptConfig(alpha=0.2, gamma=0.01, tokens=2),
    "few-shot": PromptConfig(alpha=0.2, gamma=0.05, tokens=2),
    "zero-shot": PromptConfig(beta=0.01, gamma=0.05, tokens=2),
}


class Maps(NamedTuple):
    """What a unit computed on the way; None where its config leaves the part out."""

    pool: Tensor  # [N, 1, L] attention-pooling weights, sum 1 (uniform without spatial attention)
    channel: Tensor | None  # m_c [N, 1, C]
    spatial: Tensor | None  # m_s [N, L, 1]
    temporal: Tensor | None  # m_t [N, 1, 1]


class GroupedLinear(nn.Module):
    """A 1x1 convolution with G groups and no bias, on channels-last features: [R, C] -> [R, C']."""

    def __init__(self, width: int, out: int, groups: int) -> None:
        super().__init__()
        if width % groups or out % groups:
            raise ValueError(f"groups is {groups}, which does not divide widths {width} and {out}")
        self.groups = groups
        self.weight = nn.Parameter(torch.empty(out, width // groups))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        if self.groups == 1:
            return F.linear(x, self.weight)
        parts = x.view(len(x), self.groups, -1).transpose(0, 1)
        weight = self.weight.view(self.groups, -1, self.weight.shape[1])
        return torch.bmm(parts, weight.transpose(1, 2)).transpose(0, 1).reshape(len(x), -1)


class CrossModalPrompt(nn.Module):
    """One DG-SCT unit: `residual, maps = unit(x, g)`.

    Steps (symbols as in the walk-through): 1 re-map the guide to x's tokens and width, 2 latent-token fusion,
    3 guide vector, 4-5 channel attention, 6-7 spatial attention and the pooling map, 8 combine
    (α m_c + β m_s + γ m_t + 1 - α), 9 bottleneck, 10 LayerNorm and gate.

    Args:
        length, width: L and C of the features to adjust.
        guide_length, guide_width: K and D of the guide.
        config: see `PromptConfig`.
        gated: whether the unit has a gate; without one it changes the features from the first step on.

    `unit.published = True` makes it compute operation by operation as the published unit (`companion.dgsct.plain`), in twice
    the time: the same function up to rounding, and the same to the last digits as the published one. `load_official`
    sets it.
    """

    def __init__(self, length: int, width: int, guide_length: int, guide_width: int,
                 config: PromptConfig = PRESETS["ave"], gated: bool = True) -> None:  # fmt: skip
        super().__init__()
        if width % config.reduction:
            raise ValueError(f"reduction is {config.reduction}, which does not divide the width {width}")
        self.config, self.length, self.guide_length = config, length, guide_length
        self.published = False  # whether it computes as `companion.dgsct.plain`, operation by operation
        hidden, narrow = width // 2, width // config.reduction
        if config.remap == "conv":
            self.remap_tokens = nn.Linear(guide_length, length)  # W_tok
        elif int(length**0.5) ** 2 != length or int(guide_length**0.5) ** 2 != guide_length:
            raise ValueError(f"bicubic re-mapping needs square grids, not {guide_length} and {length} tokens")
        self.remap_width = nn.Linear(guide_width, width)  # W_ch
        if config.latent:
            start = torch.rand if config.token_init == "uniform" else torch.zeros
            self.latents = nn.Parameter(start(config.tokens, width))  # P
            self.latent_gate = nn.Parameter(torch.zeros(1))  # γ_av
        if config.channel:
            self.channel_guide = nn.Linear(width, width)  # W_g1
            self.channel_input = nn.Linear(width, width)  # W_x1
            self.channel_down = nn.Linear(width, hidden)  # W_c1
            self.channel_up = nn.Linear(hidden, width)  # W_c2
        if config.spatial:
            self.spatial_input = nn.Linear(width, hidden)  # W_x2
            self.spatial_guide = nn.Linear(width, hidden)  # W_g2
            self.spatial_score = nn.Linear(hidden, 1)  # W_s
        if config.gamma:
            self.temporal = nn.Linear(width, 1)
        self.norm_before = nn.LayerNorm(width) if config.norm_before else None
        self.down = GroupedLinear(width, narrow, config.groups)  # D
        self.up = GroupedLinear(narrow, width, config.groups)  # U
        self.norm_down = nn.BatchNorm1d(narrow) if config.batch_norm else None
        self.norm_up = nn.BatchNorm1d(width) if config.batch_norm else None
        self.norm_after = nn.LayerNorm(width)
        self.gate = nn.Parameter(torch.zeros(1)) if gated else None
        if config.init == "he":
            self._he()

    def _he(self) -> None:
        """PyTorch's default leaves the guide vector and the scores so small that nothing moves for hundreds of steps."""
        for name, layer in self.named_modules():
            if name == "remap_tokens":
                nn.init.constant_(layer.weight, 1 / self.guide_length)
                layer.weight.data += 0.1 / self.guide_length * torch.randn_like(layer.weight)
            elif isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(
                    layer.weight, nonlinearity="linear" if name == "remap_width" else "relu"
                )
                nn.init.zeros_(layer.bias)
        if self.config.spatial:
            nn.init.normal_(self.spatial_score.weight, std=1 / self.spatial_score.in_features)

    def check(self, x: Tensor, g: Tensor) -> None:
        """ValueError where features and guide are not what this unit was made for."""
        C, D = self.remap_width.out_features, self.remap_width.in_features
        if x.ndim != 3 or g.ndim != 3:
            raise ValueError(
                f"features and guide are [frames, tokens, width]; they have {x.ndim} and {g.ndim} axes"
            )
        if x.shape[1] != self.length or g.shape[1] != self.guide_length:
            raise ValueError(f"this unit maps {self.guide_length} guide tokens to {self.length}; "
                             f"it was given {g.shape[1]} and {x.shape[1]}")  # fmt: skip
        if x.shape[2] != C or g.shape[2] != D:
            raise ValueError(
                f"this unit takes features {C} and a guide {D} wide, not {x.shape[2]} and {g.shape[2]}"
            )
        if len(x) != len(g) or not len(x):
            raise ValueError(
                f"{len(x)} frames of features and {len(g)} of the guide; equally many, at least one, are needed"
            )

    def remapped(self, g: Tensor) -> Tensor:
        """Step 1: `g [N, K, D]` -> `[N, L, C]`; the published order of the two linear maps, or the other where it saves
        at least a quarter of the work (in the audio units half of it)."""
        c, wide = self.config, self.remap_width
        if c.remap == "bicubic":
            side, new = int(self.guide_length**0.5), int(self.length**0.5)
            grid = wide(g).transpose(1, 2).reshape(len(g), -1, side, side)
            return F.interpolate(grid, size=(new, new), mode="bicubic").flatten(2).transpose(1, 2)
        tokens = self.remap_tokens
        L, K, C, D = self.length, self.guide_length, wide.out_features, wide.in_features
        if 0.75 * (L * K * D + L * D * C) < K * D * C + L * K * C:
            return wide(tokens(g.transpose(1, 2)).transpose(1, 2))
        # W_ch (W_tok g + b 1ᵀ) = W_tok (g W_chᵀ) + b (W_ch 1)ᵀ
        once = torch.outer(tokens.bias, wide.weight.sum(1)) + wide.bias
        return F.linear(F.linear(g, wide.weight).transpose(1, 2), tokens.weight).transpose(1, 2) + once

    def forward(self, x: Tensor, g: Tensor) -> tuple[Tensor, Maps]:
        """`x [N, L, C]`, `g [N, K, D]` -> residual `[N, L, C]` and `Maps`."""
        c = self.config
        self.check(x, g)
        if self.published:
            from companion.dgsct.plain import plain

            y, maps = plain(self, x.transpose(1, 2)[..., None], g.transpose(1, 2)[..., None])
            return y.squeeze(-1).transpose(1, 2), maps
        g = self.remapped(g)
        if c.latent:
            tokens = self.latents + torch.softmax(self.latents @ g.transpose(1, 2), -1) @ g  # R [N, M, C]
            x = x + self.latent_gate * (torch.softmax(x @ tokens.transpose(1, 2), -1) @ tokens)
        guide = g.mean(1)  # [N, C]
        weight, channel, spatial, temporal, seen = None, None, None, None, x
        pool = x.new_full((len(x), 1, self.length), 1 / self.length)
        if c.channel:
            # the guide's factor does not depend on the token, so it leaves the mean
            joint = F.relu(self.channel_guide(guide)) * F.relu(self.channel_input(x)).mean(1)
            channel = torch.sigmoid(self.channel_up(F.relu(self.channel_down(joint))))[:, None]
            seen = x * (1 + channel)
            weight = c.alpha * channel
        if c.spatial:
            # W_s (a ⊙ b) = a (W_s ⊙ b): one product instead of an [N, L, C/2] copy
            key = F.relu(self.spatial_guide(guide)) * self.spatial_score.weight
            score = F.relu(self.spatial_input(seen)) @ key[:, :, None] + self.spatial_score.bias
            spatial = torch.sigmoid(score)
            pool = torch.softmax(torch.tanh(score).transpose(1, 2), -1)
            weight = c.beta * spatial if weight is None else weight + c.beta * spatial
        if c.gamma:
            temporal = torch.sigmoid(self.temporal(guide))[:, None]
            weight = c.gamma * temporal if weight is None else weight + c.gamma * temporal
        if weight is not None:
            # added last and one by one, as published: where a token leaves the bottleneck silent, the LayerNorm after
            # it magnifies rounding errors 300 times, and any other order of these sums would show
            x = x * weight.add_(1).sub_(c.alpha if c.channel else 0.0)
        return self._bottleneck(x), Maps(pool, channel, spatial, temporal)

    def _bottleneck(self, x: Tensor) -> Tensor:
        """Steps 9 and 10; BatchNorm is over frames and tokens together."""
        shape = x.shape
        if self.norm_before is not None:
            x = self.norm_before(x)
        z = self.down(x.reshape(-1, shape[-1]))
        z = F.relu(z if self.norm_down is None else self.norm_down(z))
        o = self.up(z)
        o = (o if self.norm_up is None else self.norm_up(o)).view(shape)
        if self.gate is None:
            return self.norm_after(o)
        return self.gate * self.norm_after(o) if self.config.gate_last else self.norm_after(self.gate * o)


# --- the authors' weights ----------------------------------------------------------------------------

# our name -> name in the published checkpoints, for every unit
OFFICIAL_NAMES: Mapping[str, str] = {
    "remap_tokens": "conv_adapter", "remap_width": "fc", "latents": "my_tokens", "latent_gate": "gate_av",
    "channel_guide": "fc_affine_audio_1", "channel_input": "fc_affine_video_1",
    "channel_down": "fc_affine_bottleneck", "channel_up": "fc_affine_v_c_att",
    "spatial_input": "fc_affine_video_2", "spatial_guide": "fc_affine_audio_2",
    "spatial_score": "fc_affine_v_s_att", "temporal": "temporal_gated.0", "norm_before": "ln_before",
    "down": "down_sampler", "up": "up_sampler", "norm_down": "bn1", "norm_up": "bn2", "norm_after": "ln_post",
    "gate": "gate",
}  # fmt: skip
# in published checkpoints, but no output depends on them (temporal_gated only where the unit's γ is 0)
OFFICIAL_UNUSED = ("gate_tk", "fc_caption", "temporal_gated")


def load_official(unit: CrossModalPrompt, state: Mapping[str, Tensor]) -> CrossModalPrompt:
    """Fill `unit` from one published unit's state dict (names without the block's prefix).

    From then on it computes operation by operation as published (`unit.published`), so that outputs are those of the
    published unit to the last digits, in training mode too; `companion.dgsct.fast.fuse` makes it fast again.

    Raises ValueError naming what is missing, left over or of another shape.
    """
    own, used = unit.state_dict(), set()
    new = {}
    for name, value in own.items():
        part, _, leaf = name.partition(".")
        theirs = OFFICIAL_NAMES[part] + (f".{leaf}" if leaf else "")
        if theirs not in state:
            raise ValueError(f"the published unit has no {theirs!r}, which this config needs for {name!r}")
        if state[theirs].numel() != value.numel():
            raise ValueError(
                f"{theirs!r} is {tuple(state[theirs].shape)}; this unit needs {tuple(value.shape)}"
            )
        new[name] = state[theirs].reshape(value.shape)
        used.add(theirs)
    # segmentation's published units own a LayerNorm that they skip, S4's also a token map
    unused = OFFICIAL_UNUSED + (("conv_adapter",) if unit.config.remap == "bicubic" else ())
    unused += () if unit.config.norm_before else ("ln_before",)
    if left := [k for k in state if k not in used and not k.startswith(unused)]:
        raise ValueError(f"the published unit holds {left[0]!r}, which this config does not use")
    unit.load_state_dict(new)
    unit.published = True
    return unit


# --- two encoders ------------------------------------------------------------------------------------


class Encoded(NamedTuple):
    """Last features of both towers and the last pair's pooling maps."""

    visual: Tensor  # [N, L_v, C_v]
    audio: Tensor  # [N, L_a, C_a]
    pool_visual: Tensor  # [N, 1, L_v]
    pool_audio: Tensor  # [N, 1, L_a]
    maps: list[dict[str, Maps]]  # per pair: visual_1, audio_1, visual_2, audio_2 (only when asked for)
    # vision at the end of each stage, before patch merging, [N, L_s, C_s] (only when asked for)
    stages: tuple[Tensor, ...] = ()

    def pooled(self, by: str = "map") -> tuple[Tensor, Tensor]:
        """One vector per frame and modality: `[N, C_v]`, `[N, C_a]`; by the guided "map" or the "mean"."""
        if by not in ("map", "mean"):
            raise ValueError(f"pooling is {by!r}; choose map or mean")
        if by == "mean":
            return self.visual.mean(1), self.audio.mean(1)
        return (self.pool_visual @ self.visual).squeeze(1), (self.pool_audio @ self.audio).squeeze(1)


def pair_layers(visual: tuple[int, ...], audio: tuple[int, ...]) -> list[tuple[int, int]]:
    """Which visual layer meets which audio layer, as numbers over all layers of each tower.

    Towers with equally many stages are paired stage by stage; else both count as one stage. Within a stage the
    deeper tower meets the other at the end of each of its equal runs of layers: 18 against 6 gives 2, 5, ..., 17.

    >>> pair_layers((2, 6), (2, 2))
    [(0, 0), (1, 1), (4, 2), (7, 3)]
    """
    if len(visual) != len(audio):
        visual, audio = (sum(visual),), (sum(audio),)
    pairs, at_v, at_a = [], 0, 0
    for v, a in zip(visual, audio, strict=True):
        n = min(v, a)
        pairs += [(at_v + -(-(m + 1) * v // n) - 1, at_a + -(-(m + 1) * a // n) - 1) for m in range(n)]
        at_v, at_a = at_v + v, at_a + a
    return pairs


ORDERS = ("published", "paper", "after")


class DualGuidedEncoder(nn.Module):
    """Two frozen towers whose paired layers prompt each other.

    Args:
        visual, audio: towers (`companion.dgsct.towers`): any two encoders, hierarchical or flat.
        config: the units' config; each unit has weights of its own.
        order: "published" (as the main tasks' code runs: the audio MLP before the second unit), "paper" (both
            towers alike, as the text says) or "after" (units after attention, as the few-shot code runs).
        to_visual, to_audio: whether audio guides vision, and vision audio.
        freeze: keep the towers' weights, drop-path and running statistics fixed. False fine-tunes everything.
        towers_in_training_mode: run the frozen towers in training mode, as the published code does by accident.
    """

    def __init__(self, visual: nn.Module, audio: nn.Module, config: PromptConfig = PRESETS["ave"], *,
                 order: str = "published", to_visual: bool = True, to_audio: bool = True, freeze: bool = True,
                 towers_in_training_mode: bool = False) -> None:  # fmt: skip
        super().__init__()
        if order not in ORDERS:
            raise ValueError(f"order is {order!r}; choose {', '.join(ORDERS)}")
        self.visual, self.audio, self.config, self.order = visual, audio, config, order
        self.freeze, self.towers_in_training_mode = freeze, towers_in_training_mode
        self.pairs = pair_layers(visual.depths, audio.depths)
        for tower in (visual, audio):
            tower.requires_grad_(not freeze)

        def units(x: nn.Module, g: nn.Module, side: int, gated: bool, on: bool) -> nn.ModuleList | None:
            shapes = [(*x.shapes[p[side]], *g.shapes[p[1 - side]]) for p in self.pairs]
            return nn.ModuleList(CrossModalPrompt(*s, config, gated) for s in shapes) if on else None

        self.visual_1 = units(visual, audio, 0, config.gate_visual, to_visual)
        self.visual_2 = units(visual, audio, 0, config.gate_visual, to_visual)
        self.audio_1 = units(audio, visual, 1, config.gate_audio, to_audio)
        self.audio_2 = units(audio, visual, 1, config.gate_audio, to_audio)

    def train(self, mode: bool = True) -> DualGuidedEncoder:
        super().train(mode)
        if self.freeze and not self.towers_in_training_mode:
            self.visual.eval()
            self.audio.eval()
        return self

    def unit_parameters(self) -> list[nn.Parameter]:
        """Parameters of all units (not of the towers)."""
        groups = (self.visual_1, self.visual_2, self.audio_1, self.audio_2)
        return [p for group in groups if group is not None for p in group.parameters()]

    def forward(self, images: Any, sounds: Any, *, guide: str | Callable[[Tensor], Tensor] = "other",
                keep_maps: bool = False, keep_stages: bool = False) -> Encoded:  # fmt: skip
        """Encode frames and their sounds together.

        Args:
            images, sounds: what the towers' `embed` takes; N frames and N sounds.
            guide: "other" (the method), "none" (guides are zeros: the same units unguided), or a function that
                maps a guide `[N, K, D]` to another, e.g. one that shuffles frames.
            keep_maps: also return every unit's maps.
            keep_stages: also return vision at the end of each stage (what masks are decoded from); the last one
                carries the tower's final norm.
        """
        change = {"other": lambda g: g, "none": torch.zeros_like}.get(guide, guide)
        if not callable(change):
            raise ValueError(f"guide is {guide!r}; choose other, none or a function")
        v, a = self.visual.embed(images), self.audio.embed(sounds)
        ends = {sum(self.visual.depths[: s + 1]) for s in range(len(self.visual.depths))}
        if len(v) != len(a):
            raise ValueError(f"{len(v)} frames but {len(a)} sounds; each frame needs one second of sound")
        at_v = at_a = 0
        kept: list[dict[str, Maps]] = []
        stages: list[Tensor] = []
        found: dict[str, Maps] = {}

        def prompts(k: int, place: int, v: Tensor, a: Tensor) -> tuple[Tensor | float, Tensor | float]:
            deltas: list[Tensor | float] = []
            for side, x, g in (("visual", v, a), ("audio", a, v)):
                units = getattr(self, f"{side}_{place}")
                if units is None:
                    deltas.append(0.0)
                    continue
                delta, found[f"{side}_{place}"] = units[k](x, change(g))
                deltas.append(delta)
            return deltas[0], deltas[1]

        for k, (i, j) in enumerate(self.pairs):
            v, a = self.visual.run(v, at_v, i), self.audio.run(a, at_a, j)
            found = {}
            if self.order == "published":
                dv, da = prompts(k, 1, v, a)
                v = self.visual.attend(i, v) + dv
                a = self.audio.mix(j, self.audio.attend(j, a)) + da
                dv, da = prompts(k, 2, v, a)
                v, a = self.visual.mix(i, v) + dv, a + da
            elif self.order == "paper":
                dv, da = prompts(k, 1, v, a)
                v, a = self.visual.attend(i, v) + dv, self.audio.attend(j, a) + da
                dv, da = prompts(k, 2, v, a)
                v, a = self.visual.mix(i, v) + dv, self.audio.mix(j, a) + da
            else:
                v, a = self.visual.attend(i, v), self.audio.mix(j, self.audio.attend(j, a))
                dv, da = prompts(k, 1, v, a)
                v, a = v + dv, a + da
                dv, da = prompts(k, 2, v, a)
                v, a = self.visual.mix(i, v) + dv, a + da
            if keep_stages and i + 1 in ends:
                stages.append(v)
            v, a = self.visual.reduce(i, v), self.audio.reduce(j, a)
            at_v, at_a = i + 1, j + 1
            if keep_maps:
                kept.append(dict(found))
        v = self.visual.finish(self.visual.run(v, at_v, len(self.visual.shapes)))
        if keep_stages:
            stages[-1:] = [v]
        a = self.audio.finish(self.audio.run(a, at_a, len(self.audio.shapes)))
        pools = [self._pool(found.get(f"{side}_2"), x) for side, x in (("visual", v), ("audio", a))]
        return Encoded(v, a, *pools, kept, tuple(stages))

    @staticmethod
    def _pool(maps: Maps | None, x: Tensor) -> Tensor:
        """The last unit's pooling map, or the mean where there is none for these tokens."""
        if maps is not None and maps.pool.shape[-1] == x.shape[1]:
            return maps.pool
        return x.new_full((len(x), 1, x.shape[1]), 1 / x.shape[1])
