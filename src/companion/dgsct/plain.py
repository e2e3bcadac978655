"""The unit's operations in the published order and layout: what `CrossModalPrompt` is compared with, and what it runs with
the authors' weights (`CrossModalPrompt.published`).

`plain` holds nothing back for speed: features as `[N, C, L, 1]`, the token map as a 1x1 convolution over tokens, every
product formed in full, 1x1 convolutions for the bottleneck. It uses the weights of one of our units, so outputs and
gradients can be compared number by number. Written from the description of the operations; nothing is copied.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion.dgsct.fast import FastPrompt, fits
from companion.dgsct.model import PRESETS, CrossModalPrompt, Maps

# stage -> (visual tokens, width), (audio tokens, width), pairs of layers: Swin-V2-L at 192 pixels with HTS-AT
STAGES = {1: ((2304, 192), (4096, 96), 2), 2: ((576, 384), (1024, 192), 2),
          3: ((144, 768), (256, 384), 6), 4: ((36, 1536), (64, 768), 2)}  # fmt: skip
CLIP_B32 = (50, 768)  # what meets HTS-AT's four stages in few- and zero-shot


def plain(u: CrossModalPrompt, x: Tensor, g: Tensor) -> tuple[Tensor, Maps]:
    """`x [N, C, L, 1]`, `g [N, D, K, 1]` -> residual `[N, C, L, 1]` and `Maps`."""
    c = u.config

    def linear(name: str, y: Tensor) -> Tensor:
        layer = getattr(u, name)
        return F.linear(y, layer.weight, layer.bias)

    if c.remap == "conv":
        tokens = u.remap_tokens
        g = F.conv2d(g.transpose(1, 2), tokens.weight[:, :, None, None], tokens.bias)  # [N, L, D, 1]
        g = linear("remap_width", g.squeeze(-1)).permute(0, 2, 1)[..., None]  # [N, C, L, 1]
    else:
        g = linear("remap_width", g.squeeze(-1).transpose(1, 2)).transpose(1, 2)
        side, new = int(g.shape[-1] ** 0.5), int(x.shape[2] ** 0.5)
        g = F.interpolate(g.reshape(*g.shape[:2], side, side), size=(new, new), mode="bicubic")
        g = g.flatten(2)[..., None]
    flat = g.squeeze(-1)  # [N, C, L]
    latents = u.latents[None].repeat(len(x), 1, 1)  # [N, M, C]
    latents = latents + torch.bmm(F.softmax(torch.bmm(latents, flat), -1), flat.permute(0, 2, 1))
    back = F.softmax(torch.bmm(x.squeeze(-1).permute(0, 2, 1), latents.permute(0, 2, 1)), -1)
    x = x + u.latent_gate * torch.bmm(back, latents).permute(0, 2, 1)[..., None].contiguous()
    guide = flat.mean(-1)[:, None]  # [N, 1, C]
    rows = x.squeeze(-1).permute(0, 2, 1)  # [N, L, C]
    joint = (F.relu(linear("channel_guide", guide)) * F.relu(linear("channel_input", rows))).mean(
        1, keepdim=True
    )
    channel = torch.sigmoid(linear("channel_up", F.relu(linear("channel_down", joint))))
    seen = rows * (channel + 1)
    score = linear(
        "spatial_score", F.relu(linear("spatial_input", seen)) * F.relu(linear("spatial_guide", guide))
    )
    pool = F.softmax(torch.tanh(score).transpose(1, 2), -1)
    torch.bmm(pool, seen)  # computed there and thrown away
    spatial, temporal = torch.sigmoid(score), None
    weight = c.alpha * channel + c.beta * spatial
    if c.gamma:
        temporal = torch.sigmoid(linear("temporal", guide))
        weight = weight + c.gamma * temporal
    weight = weight + 1 - c.alpha
    x = (rows * weight).permute(0, 2, 1)[..., None]
    if c.norm_before:
        x = u.norm_before(x.squeeze(-1).permute(0, 2, 1)).permute(0, 2, 1)[..., None]
    z = F.relu(_batch_norm(u.norm_down, F.conv2d(x, u.down.weight[:, :, None, None], groups=c.groups)))
    o = _batch_norm(u.norm_up, F.conv2d(z, u.up.weight[:, :, None, None], groups=c.groups))
    gate = 1.0 if u.gate is None else u.gate
    if not c.gate_last:
        o = gate * o
    o = u.norm_after(o.squeeze(-1).permute(0, 2, 1)).permute(0, 2, 1)[..., None]
    return (gate * o if c.gate_last else o), Maps(pool, channel, spatial, temporal)


def _batch_norm(norm: nn.BatchNorm1d | None, x: Tensor) -> Tensor:
    if norm is None:
        return x
    # on [N, C, L]: torch 2.11's CPU kernel gives wrong gradients for [N, C, L, 1] when a LayerNorm on a permuted view
    # follows, which is the published layout
    return F.batch_norm(x.squeeze(-1), norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training,
                        norm.momentum, norm.eps)[..., None]  # fmt: skip


def open_gates(u: CrossModalPrompt, value: float = 0.7) -> CrossModalPrompt:
    """`u` with its gates away from 0, so that no step is silent."""
    with torch.no_grad():
        for name, p in u.named_parameters():
            if name.endswith("gate"):
                p.fill_(value)
    return u


def _step(forward: Callable[[], tuple[Tensor, Tensor]], u: nn.Module, inputs: tuple[Tensor, Tensor],
          noise: Tensor) -> tuple[Tensor, list[Tensor]]:  # fmt: skip
    """Forward, a scalar of both outputs, backward: the residual and all gradients."""
    leaves = (*u.parameters(), *inputs)
    for t in leaves:
        t.grad = None
    y, pool = forward()
    ((y * noise).sum() + pool.square().sum()).backward()
    return y.detach(), [t.grad for t in leaves if t.grad is not None]


def compare(
    task: str, stage: int, side: str, frames: int, repeats: int, device: str = "cpu"
) -> dict[str, float]:
    """One unit of `stage` on `side` ("visual" or "audio"): medians of one training step each, and how far apart.

    Ours is the fused unit (`companion.dgsct.fast`) where fusing pays. On the CPU time is that of the process, so set one
    thread.

    Returns:
        `plain_ms`, `ours_ms`, `ratio`, `output` (largest difference of residuals), `gradient` (largest difference of
        gradients over the largest gradient).
    """
    visual, audio, _ = STAGES[stage]
    if task.startswith(("few", "zero")):
        visual = CLIP_B32
    mine, guide = (visual, audio) if side == "visual" else (audio, visual)
    config = PRESETS[task]
    torch.manual_seed(stage)
    kind = FastPrompt if fits(config, mine[0], guide[1]) else CrossModalPrompt
    u = open_gates(kind(*mine, *guide, config, getattr(config, f"gate_{side}"))).to(device)
    x, g = (torch.randn(frames, *s, device=device, requires_grad=True) for s in (mine, guide))
    noise = torch.randn(frames, *mine, device=device)

    def ours() -> tuple[Tensor, Tensor]:
        y, maps = u(x, g)
        return y, maps.pool

    def theirs() -> tuple[Tensor, Tensor]:
        y, maps = plain(u, x.transpose(1, 2)[..., None], g.transpose(1, 2)[..., None])
        return y.squeeze(-1).transpose(1, 2), maps.pool

    (y0, g0), (y1, g1) = (_step(f, u, (x, g), noise) for f in (theirs, ours))
    largest = max(float(a.abs().max()) for a in g0)
    times: dict[str, list[float]] = {"plain": [], "ours": []}
    # on the CPU the process's own time, which other processes do not lengthen; in turn, for what they still do
    clock = time.process_time if device == "cpu" else time.perf_counter
    for _ in range(repeats):
        for name, f in (("plain", theirs), ("ours", ours)):
            began = clock()
            _step(f, u, (x, g), noise)
            if device != "cpu":
                torch.cuda.synchronize()
            times[name].append(1e3 * (clock() - began))
    found = {f"{name}_ms": statistics.median(t) for name, t in times.items()}
    return found | {
        "ratio": found["plain_ms"] / found["ours_ms"],
        "output": float((y0 - y1).abs().max()),
        "gradient": max(float((a - b).abs().max()) for a, b in zip(g0, g1, strict=True)) / largest,
    }


def summary(found: Mapping[tuple[int, str], dict[str, float]]) -> dict[str, float]:
    """One row of several results of `compare`, (stage, side) -> what it found.

    Times are added up, and where there is more than one stage each counts as often as the model has such units (two
    places per pair of layers).

    Returns:
        Of both sides `visual-plain_ms`, `visual-ours_ms`, `visual-ratio` and so on, `ratio` of both together, `apart` and
        `gradient`, the largest differences.
    """
    stages = {stage for stage, _ in found}
    total: dict[str, float] = {}
    for (stage, side), one in found.items():
        times = 2 * STAGES[stage][2] if len(stages) > 1 else 1
        for name in ("plain_ms", "ours_ms"):
            total[f"{side}-{name}"] = total.get(f"{side}-{name}", 0.0) + times * one[name]
    out = dict(total)
    for side in {side for _, side in found}:
        out[f"{side}-ratio"] = total[f"{side}-plain_ms"] / total[f"{side}-ours_ms"]
    plain_ms, ours_ms = (sum(v for k, v in total.items() if k.endswith(n)) for n in ("plain_ms", "ours_ms"))
    return out | {"ratio": plain_ms / ours_ms, "apart": max(one["output"] for one in found.values()),
                  "gradient": max(one["gradient"] for one in found.values())}  # fmt: skip
