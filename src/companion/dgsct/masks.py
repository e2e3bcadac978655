"""Segmentation of sounding objects (AVSBench S4 and MS3): temporal gates per scale, TPAVI, coarse-to-fine decoding.

The decoder is AVSBench's (Zhou et al., ECCV 2022) on Swin's four stages, as DG-SCT uses it. Letters: N = B x T frames
(T = 5 seconds), H_s x W_s the grid of stage s.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.dgsct.tasks import TemporalGate


class TPAVI(nn.Module):
    """Temporal pixel-wise audio-visual interaction: a non-local block in which every pixel of every second meets the
    sounds of all seconds; `x [B, C, T, H, W]`, `sound [B, T, audio]` -> the same shape, and the sound `[B, T, C]`.

    The published block forms the `THW x THW` matrix of all pairs ("dot": no softmax) and multiplies it with the
    values. Without a softmax the product may be bracketed the other way, `theta (phi^T g) / THW`, which is `C/2 x C/2`:
    the same numbers at a small part of the memory (246 million pairs per clip at 56 x 56).
    """

    def __init__(self, width: int = 256, audio: int = 128) -> None:
        super().__init__()
        half = width // 2
        self.align = nn.Linear(audio, width)
        self.theta, self.phi, self.value = (nn.Conv3d(width, half, 1) for _ in range(3))
        self.out = nn.Sequential(nn.Conv3d(half, width, 1), nn.BatchNorm3d(width))
        nn.init.zeros_(self.out[1].weight)  # the block starts as the identity
        nn.init.zeros_(self.out[1].bias)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, sound: Tensor) -> tuple[Tensor, Tensor]:
        b, _, t, high, wide = x.shape
        sound = self.align(sound)  # [B, T, C]
        heard = sound.transpose(1, 2)[..., None, None]
        theta, value = self.theta(x).flatten(2), self.value(x).flatten(2)  # [B, C/2, THW]
        phi = self.phi(heard).expand(-1, -1, -1, high, wide).flatten(2)
        mixed = (value @ phi.transpose(1, 2) / phi.shape[-1]) @ theta  # [B, C/2, THW]
        y = self.out(mixed.view(b, -1, t, high, wide)) + x
        return self.norm(y.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3), sound


class _Residual(nn.Module):
    """ReLU, 3x3, ReLU, 3x3, plus the input; the input's own ReLU is in place in the published code, so the sum
    takes the rectified input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return self.second(F.relu(self.first(x))) + x


class _Fusion(nn.Module):
    """Coarse features plus a residual unit of the finer ones, another residual unit, then twice the size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.side, self.both = _Residual(width), _Residual(width)

    def forward(self, coarse: Tensor, fine: Tensor | None = None) -> Tensor:
        x = coarse if fine is None else coarse + self.side(fine)
        return F.interpolate(self.both(x), scale_factor=2, mode="bilinear", align_corners=True)


class Masks(NamedTuple):
    """Mask logits `[N, size, size]`; per stage the fused features `[N, C, H_s, W_s]` and the aligned sound `[N, C]`."""

    logits: Tensor
    features: list[Tensor]
    sounds: list[Tensor]


class AVSHead(nn.Module):
    """Masks from the four stages of vision and the pooled sound.

    Args:
        widths: channels of the stages, fine to coarse.
        audio: width of the pooled sound.
        gamma: weight of the temporal gates; 0 leaves them out.
        hidden: width of the decoder (256 as published); `sound` the width of the sound in it (128).
        grids: side of each stage's grid inside the decoder; each is half of the one before.
        segments: seconds per clip.
    """

    def __init__(self, widths: tuple[int, ...] = (192, 384, 768, 1536), audio: int = 768, gamma: float = 0.05,
                 hidden: int = 256, sound: int = 128, grids: tuple[int, ...] = (56, 28, 14, 7),
                 segments: int = 5) -> None:  # fmt: skip
        super().__init__()
        if len(widths) != len(grids) or any(a != 2 * b for a, b in pairwise(grids)):
            raise ValueError(
                f"grids are {grids} for {len(widths)} stages; each must be half of the one before"
            )
        self.gamma, self.grids, self.segments = gamma, grids, segments
        self.inputs = nn.ModuleList(nn.Linear(w, hidden) for w in widths)
        self.sound = nn.Linear(audio, sound)
        n = range(len(widths))
        self.embed = nn.ModuleList(nn.Linear(hidden, hidden) for _ in n)
        self.gate_visual = nn.ModuleList(TemporalGate(hidden, hidden, hidden) for _ in n)
        self.gate_audio = nn.ModuleList(TemporalGate(sound, hidden // 2, hidden) for _ in n)
        self.dropout = nn.Dropout(0.2)
        self.meet = nn.ModuleList(TPAVI(hidden, sound) for _ in n)
        self.paths = nn.ModuleList(_Fusion(hidden) for _ in n)
        # no activation between the first two convolutions, as in AVSBench
        self.first = nn.Conv2d(hidden, hidden // 2, 3, padding=1)
        self.second, self.last = nn.Conv2d(hidden // 2, 32, 3, padding=1), nn.Conv2d(32, 1, 1)

    def temporal(self, maps: list[Tensor], sound: Tensor) -> tuple[list[Tensor], Tensor]:
        """Each map times `1 + γ gate` of the sound, the sound times `1 + γ mean gate` of the maps."""
        t = self.segments
        heard = sound.view(-1, t, sound.shape[-1])
        gated, gates = [], []
        for k, x in enumerate(maps):
            seen = self.dropout(F.relu(self.embed[k](x.mean((2, 3))))).view(-1, t, x.shape[1])
            gates.append(self.gate_visual[k](seen)[0].reshape(-1, 1))
            gated.append(x * (1 + self.gamma * self.gate_audio[k](heard)[0].reshape(-1, 1, 1, 1)))
        return gated, sound * (1 + self.gamma * torch.stack(gates).mean(0))

    def forward(self, stages: tuple[Tensor, ...], audio: Tensor) -> Masks:
        """`stages`: per stage `[N, L_s, C_s]` (`Encoded.stages`), `audio [N, audio]` pooled by the map."""
        t = self.segments
        if len(audio) % t:
            raise ValueError(f"{len(audio)} frames are not a multiple of {t}, the seconds of a clip")
        maps = []
        for x, project, side in zip(stages, self.inputs, self.grids, strict=True):
            grid = int(x.shape[1] ** 0.5)
            x = project(x).transpose(1, 2).reshape(len(x), -1, grid, grid)
            maps.append(F.interpolate(x, size=(side, side), mode="bicubic"))
        sound = self.sound(audio)
        if self.gamma:
            maps, sound = self.temporal(maps, sound)
        features, sounds = [], []
        for x, meet in zip(maps, self.meet, strict=True):
            clip = x.unflatten(0, (-1, t)).transpose(1, 2)  # [B, C, T, H, W]
            y, heard = meet(clip, sound.view(-1, t, sound.shape[-1]))
            features.append(y.transpose(1, 2).flatten(0, 1))
            sounds.append(heard.flatten(0, 1))
        x = None
        for y, path in zip(reversed(features), reversed(self.paths), strict=True):
            x = path(y) if x is None else path(x, y)
        x = F.interpolate(self.first(x), scale_factor=2, mode="bilinear")
        return Masks(self.last(F.relu(self.second(x))).squeeze(1), features, sounds)

    def loss(self, out: Masks, truth: Tensor, first_only: bool = False, match: float = 0.0) -> Tensor:
        """BCE on masks `[N, H, W]`, plus `match` times the audio-visual matching term.

        Args:
            truth: one mask per frame, or, with `first_only` (S4), one per clip: of its first frame.
            match: weight of KL(softmax(sound) ‖ softmax(vision averaged inside the predicted mask)), summed over
                frames and averaged over stages (MS3: 0.5).
        """
        logits = out.logits[:: self.segments] if first_only else out.logits
        if logits.shape != truth.shape:
            raise ValueError(f"masks are {tuple(truth.shape)}, the decoder makes {tuple(logits.shape)}")
        loss = F.binary_cross_entropy_with_logits(logits, truth.float())
        if match:
            soft = torch.sigmoid(out.logits)[:, None]
            terms = []
            for x, sound in zip(out.features, out.sounds, strict=True):
                inside = F.adaptive_avg_pool2d(soft, x.shape[-2:])
                # rectified, because the decoder's first ReLU works in place in the published code
                seen = (F.relu(x) * inside).mean((2, 3))
                terms.append(F.kl_div(seen.log_softmax(-1), sound.softmax(-1), reduction="sum"))
            loss = loss + match * torch.stack(terms).mean()
        return loss
