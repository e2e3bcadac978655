"""What the published models train, counted and run at full size with random weights.

`count` builds the model on the meta device (no memory, exact counts) and adds, item by item, the parameters that
the published classes own but never use, so that the sums can be compared with the published code's.
`dry_run` builds it for real and takes one training step.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from companion import records
from companion.dgsct.model import PRESETS, DualGuidedEncoder
from companion.dgsct.tasks import AVEHead, AVQAHead, AVSHead, AVVPHead
from companion.dgsct.towers import clip_tower, htsat_tower, swinv2_tower

HEADS = {"ave": AVEHead, "avvp": AVVPHead, "avqa": AVQAHead, "avs-s4": AVSHead, "avs-ms3": AVSHead}
VARIANTS = ("dg-sct", "lavish", "late-fusion", "no-spatial", "no-channel", "no-temporal")


def build(task: str, variant: str = "dg-sct") -> tuple[nn.Module, nn.Module | None]:
    """The encoder and the head of a task (None for the CLIP tasks, whose text towers are not built).

    Raises ValueError for an unknown task or variant.
    """
    if task not in PRESETS:
        raise ValueError(f"task is {task!r}; choose {', '.join(PRESETS)}")
    if variant not in VARIANTS:
        raise ValueError(f"variant is {variant!r}; choose {', '.join(VARIANTS)}")
    off = {"lavish": {"channel": False, "spatial": False}, "no-spatial": {"spatial": False},
           "no-channel": {"channel": False}}.get(variant, {})  # fmt: skip
    config = replace(PRESETS[task], **off)
    clip = task not in HEADS
    visual = clip_tower(patch_size=32) if clip else swinv2_tower()
    units = variant != "late-fusion"
    encoder = DualGuidedEncoder(visual, htsat_tower(), config, order="after" if clip else "published",
                                to_visual=units, to_audio=units)  # fmt: skip
    if clip:
        return encoder, None
    settings: dict[str, Any] = {"gamma": 0.0} if variant == "no-temporal" and task != "avqa" else {}
    return encoder, HEADS[task](**settings)


def _size(module: nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters()) if module is not None else 0


def unused(task: str) -> dict[str, tuple[int, bool]]:
    """Parameters of the published classes that no output depends on: name -> (count, counted as trained there)."""
    d, ff, heads = 256, 1024, 48
    attention = 4 * d * d + 4 * d
    feed = 2 * d * ff + ff + d + 4 * d
    dead = {
        "Swin's 21 841-way classifier": (1536 * 21_841 + 21_841, False),
        "HTS-AT's classifier": (768 * 527 * 2 * 3 + 527 + 527 * 527 + 527, False),
        "STFT and mel matrices stored as parameters": (2 * 513 * 1024 + 513 * 64, False),
        "gate_tk": (heads, True),
    }
    if task == "ave":
        dead["template layers that were only copied from"] = (
            2 * (attention + feed) + 2 * (2 * attention + feed),
            True,
        )
        dead["self-attention of the cross-decoders"] = (2 * attention, True)
        dead["CMBS's two interaction modules and norms"] = (2 * (attention + 2 * d) + 4 * d, True)
    if task == "avvp":
        small = 4 * 64 * 64 + 4 * 64 + 2 * 64 * ff + ff + 64 + 4 * 64
        dead["template layers that were only copied from"] = (2 * small, True)
        dead["fc_caption"] = (heads * (512 * 192 + 192), True)
        dead["adapter_token_downsampler"] = (sum(w // 16 * (w // 8) for w in (384, 768, 1536)), True)
        widths = [192] * 2 + [384] * 2 + [768] * 6 + [1536] * 2 + [96] * 2 + [192] * 2 + [384] * 6 + [768] * 2
        dead["temporal_gated inside the units"] = (2 * sum(w + 1 for w in widths), True)
    if task == "avqa":
        wide = 1536
        dead["fc_a1_pure, fc_a2_pure and norm3"] = (768 * wide + wide * wide + 2 * wide + 2 * wide, True)
    return dead


def count(task: str, variant: str = "dg-sct") -> dict[str, float]:
    """Parameters in millions: `total`, `trainable`, `share` in percent as the published code counts them (dead ones
    included), and `used_total`, `used_trainable` without the dead ones."""
    with torch.device("meta"):
        encoder, head = build(task, variant)
    frozen = _size(encoder.visual) + _size(encoder.audio)
    trained = sum(p.numel() for p in encoder.unit_parameters()) + _size(head)
    dead = unused(task)
    dead_trained = sum(n for n, on in dead.values() if on)
    dead_frozen = sum(n for n, on in dead.values() if not on)
    total, trainable = frozen + trained + dead_trained + dead_frozen, trained + dead_trained
    return {"total": total / 1e6, "trainable": trainable / 1e6, "share": 100 * trainable / total,
            "used_total": (frozen + trained) / 1e6, "used_trainable": trained / 1e6,
            "used_share": 100 * trained / (frozen + trained)}  # fmt: skip


def parts(task: str = "ave") -> dict[str, float]:
    """Where the trained millions of DG-SCT are: re-mapping, channel and spatial attention, the rest, the head."""
    with torch.device("meta"):
        encoder, head = build(task)
    out = {"re-mapping": 0, "channel and spatial attention": 0, "latent tokens, bottleneck, norms, gates": 0}
    for side in ("visual_1", "visual_2", "audio_1", "audio_2"):
        for name, p in getattr(encoder, side).named_parameters():
            part = name.split(".")[1]
            kind = ("re-mapping" if part.startswith("remap") else
                    "channel and spatial attention" if part.startswith(("channel", "spatial")) else
                    "latent tokens, bottleneck, norms, gates")  # fmt: skip
            out[kind] += p.numel()
    return {k: v / 1e6 for k, v in (out | {"head": _size(head)}).items()}


def dry_run(parameters: dict[str, Any]) -> dict[str, Any]:
    """Build the full-size model with random weights and take one training step on random inputs.

    Args:
        parameters: `task`, and optionally `variant`, `segments` and `batch` (default 1 video).
    """
    task, variant = parameters["task"], parameters.get("variant", "dg-sct")
    segments, batch = int(parameters.get("segments", 10)), int(parameters.get("batch", 1))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    encoder, head = build(task, variant)
    model = nn.ModuleList([encoder] + ([head] if head is not None else [])).to(device)
    model.train()
    n = batch * segments
    clip = head is None
    images = torch.randn(n, 3, 224 if clip else 192, 224 if clip else 192, device=device)
    sounds = torch.randn(n, 1, 501 if task.startswith("avs") else 1001, 64, device=device)
    tuned = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(tuned, 1e-4)
    began = time.perf_counter()
    with torch.set_grad_enabled(True):
        loss = _loss(task, encoder, head, images, sounds, batch, segments, device)
    loss.backward()
    optimizer.step()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    sizes = count(task, variant)
    memory = records.peak_memory()
    return {"task": task, "variant": variant, "frames": n, "parameters_m": round(sizes["used_total"], 2),
            "trainable_m": round(sizes["used_trainable"], 2), "trainable_share": round(sizes["used_share"], 2),
            "step_s": round(seconds, 2), "peak_rss_mib": memory["rss_mib"], "peak_device_mib": memory["device_mib"]}  # fmt: skip


def _loss(task, encoder, head, images, sounds, batch, segments, device) -> torch.Tensor:
    out = encoder(images, sounds)
    v, a = out.pooled("map")
    v, a = v.view(batch, segments, -1), a.view(batch, segments, -1)
    if task == "ave":
        labels = torch.arange(segments, device=device).remainder(2).mul(28).expand(batch, -1)
        return head.loss(head(v, a), labels)
    if task == "avvp":
        truth = torch.zeros(batch, 25, device=device)
        return head.loss(head(v, a, torch.randn(batch, segments, 512, device=device)), truth)
    if task == "avqa":
        question = torch.zeros(batch, 14, dtype=torch.long, device=device)
        answer, match = head(out.visual.view(batch, segments, *out.visual.shape[1:]), a, question)
        zeros = torch.zeros(batch, segments, dtype=torch.long, device=device)
        return head.loss(answer, match, zeros[:, 0], zeros)
    # the masks' decoder and the CLIP heads need more than the last features; their step is the encoder's
    return v.square().mean() + a.square().mean()
