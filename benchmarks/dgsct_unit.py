"""Time per training step of one DG-SCT unit against a plain transcription of its operations.

`plain` does the ten steps in the order and with the tensors of the published unit (features as `[N, C, L, 1]`, the
token map as a 1x1 convolution over tokens, 1x1 convolutions for the bottleneck, BatchNorm2d, every product formed in
full), written here from the description of the operations. Both units hold the same weights, and their outputs and
gradients are compared before anything is timed.

    python benchmarks/dgsct_unit.py [--task ave] [--frames 10] [--repeats 3] [--threads 1] [--stages 3 4]
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from companion.dgsct.model import PRESETS, CrossModalPrompt

# (visual tokens, width), (audio tokens, width) of the four stages of Swin-V2-L at 192 pixels and HTS-AT
STAGES = {
    1: ((2304, 192), (4096, 96)),
    2: ((576, 384), (1024, 192)),
    3: ((144, 768), (256, 384)),
    4: ((36, 1536), (64, 768)),
}


def plain(u: CrossModalPrompt, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """`x [N, C, L, 1]`, `g [N, D, K, 1]` -> residual `[N, C, L, 1]` and pooling map `[N, 1, L]`."""
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
        g = F.interpolate(g.reshape(*g.shape[:2], side, side), size=(new, new), mode="bicubic").flatten(2)[
            ..., None
        ]
    flat = g.squeeze(-1)  # [N, C, L]
    rep = u.latents[None].repeat(len(x), 1, 1)  # [N, M, C]
    rep = rep + torch.bmm(F.softmax(torch.bmm(rep, flat), -1), flat.permute(0, 2, 1))
    back = F.softmax(torch.bmm(x.squeeze(-1).permute(0, 2, 1), rep.permute(0, 2, 1)), -1)
    x = x + u.latent_gate * torch.bmm(back, rep).permute(0, 2, 1)[..., None].contiguous()
    guide = flat.mean(-1)[:, None]  # [N, 1, C]
    tokens_first = x.squeeze(-1).permute(0, 2, 1)  # [N, L, C]
    joint = F.relu(linear("channel_guide", guide)) * F.relu(linear("channel_input", tokens_first))
    joint = joint.mean(1, keepdim=True)
    channel = torch.sigmoid(linear("channel_up", F.relu(linear("channel_down", joint))))
    seen = tokens_first * (channel + 1)
    score = linear(
        "spatial_score", F.relu(linear("spatial_input", seen)) * F.relu(linear("spatial_guide", guide))
    )
    pool = F.softmax(torch.tanh(score), 1).transpose(1, 2)
    torch.bmm(pool, seen)  # computed there, used nowhere
    weight = c.alpha * channel + c.beta * torch.sigmoid(score) + 1 - c.alpha
    if c.gamma:
        weight = weight + c.gamma * torch.sigmoid(linear("temporal", guide))
    x = (tokens_first * weight).permute(0, 2, 1)[..., None]
    if c.norm_before:
        x = u.norm_before(x.squeeze(-1).permute(0, 2, 1)).permute(0, 2, 1)[..., None]
    z = F.conv2d(x, u.down.weight[:, :, None, None], groups=c.groups)
    z = F.relu(_batch_norm(u.norm_down, z))
    o = _batch_norm(u.norm_up, F.conv2d(z, u.up.weight[:, :, None, None], groups=c.groups))
    gate = 1.0 if u.gate is None else u.gate
    if not c.gate_last:
        o = gate * o
    o = u.norm_after(o.squeeze(-1).permute(0, 2, 1)).permute(0, 2, 1)[..., None]
    return (gate * o if c.gate_last else o), pool


def _batch_norm(norm: torch.nn.BatchNorm1d | None, x: Tensor) -> Tensor:
    if norm is None:
        return x
    # [N, C, L]: torch 2.11's CPU kernel gives wrong gradients for [N, C, L, 1] when a permuted LayerNorm follows
    return F.batch_norm(x.squeeze(-1), norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training,
                        norm.momentum, norm.eps)[..., None]  # fmt: skip


def unit(task: str, x: tuple[int, int], g: tuple[int, int], gated: bool) -> CrossModalPrompt:
    """A unit with open gates."""
    u = CrossModalPrompt(*x, *g, PRESETS[task], gated)
    with torch.no_grad():
        for name, p in u.named_parameters():
            if name.endswith("gate"):
                p.fill_(0.7)
    return u


def steps(u: CrossModalPrompt, x: Tensor, g: Tensor) -> dict:
    """The two training steps as functions: forward, a scalar, backward. Inputs need gradients, as inside a model."""
    x, g = x.requires_grad_(), g.requires_grad_()

    def ours() -> tuple[Tensor, Tensor]:
        y, maps = u(x, g)
        return y, maps.pool

    def theirs() -> tuple[Tensor, Tensor]:
        y, pool = plain(u, x.transpose(1, 2)[..., None], g.transpose(1, 2)[..., None])
        return y.squeeze(-1).transpose(1, 2), pool

    return {"ours": ours, "plain": theirs}


def step(make, u, x, g, noise) -> tuple[Tensor, list[Tensor]]:
    """One forward and backward pass; the residual and all gradients."""
    for t in (*u.parameters(), x, g):
        t.grad = None
    y, pool = make()
    ((y * noise).sum() + pool.square().sum()).backward()
    return y.detach(), [t.grad for t in (*u.parameters(), x, g) if t.grad is not None]


def main() -> None:
    """Print a table: milliseconds per training step, ratio, largest difference of outputs, and of gradients over the
    largest gradient."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="ave")
    parser.add_argument("--frames", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--stages", type=int, nargs="*", default=[1, 2, 3, 4])
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    total = {"ours": 0.0, "plain": 0.0}
    depth = {1: 2, 2: 2, 3: 6, 4: 2}
    print(f"{args.task}, {args.frames} frames, {device}, {args.threads} thread(s), torch {torch.__version__}")
    for stage in args.stages:
        visual, audio = STAGES[stage]
        for title, mine, guide in (("visual", visual, audio), ("audio", audio, visual)):
            torch.manual_seed(stage)
            config = PRESETS[args.task]
            u = unit(
                args.task, mine, guide, config.gate_visual if title == "visual" else config.gate_audio
            ).to(device)
            x, g = (torch.randn(args.frames, *s, device=device) for s in (mine, guide))
            noise = torch.randn(args.frames, *mine, device=device)
            make = steps(u, x, g)
            (y0, g0), (y1, g1) = (step(make[k], u, x, g, noise) for k in ("plain", "ours"))
            largest = max(float(a.abs().max()) for a in g0)
            apart = max(float((a - b).abs().max()) for a, b in zip(g0, g1, strict=True)) / largest
            times: dict[str, list[float]] = {"ours": [], "plain": []}
            for _ in range(args.repeats):  # in turn, so that a busy machine slows both alike
                for name, found in times.items():
                    began = time.perf_counter()
                    step(make[name], u, x, g, noise)
                    if device == "cuda":
                        torch.cuda.synchronize()
                    found.append(1e3 * (time.perf_counter() - began))
            best = {k: statistics.median(v) for k, v in times.items()}
            for k in total:
                total[k] += 2 * depth[stage] * best[k]
            print(f"stage {stage} {title:6}  plain {best['plain']:8.1f} ms  ours {best['ours']:8.1f} ms  "
                  f"ratio {best['plain'] / best['ours']:.2f}  outputs differ by {(y0 - y1).abs().max():.1e}, "
                  f"gradients by {apart:.1e}", flush=True)  # fmt: skip
    print(f"all units of these stages: plain {total['plain'] / 1e3:.2f} s, ours {total['ours'] / 1e3:.2f} s per step, "
          f"ratio {total['plain'] / total['ours']:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
