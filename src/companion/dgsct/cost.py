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
from companion.dgsct import fast
from companion.dgsct.masks import AVSHead
from companion.dgsct.model import PRESETS, DualGuidedEncoder
from companion.dgsct.tasks import AVEHead, AVQAHead, AVVPHead
from companion.dgsct.towers import HTS_AT, clip_tower, htsat_tower, swinv2_tower

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
    settings: dict[str, Any] = (
        {"gamma": 0.1} if task == "avs-ms3" else {}
    )  # the other heads' defaults are theirs
    if variant == "no-temporal" and task != "avqa":
        settings = {"gamma": 0.0}
    return encoder, HEADS[task](**settings)


def _size(module: nn.Module | None) -> int:
    return sum(p.numel() for p in module.parameters()) if module is not None else 0


def _cross_decoder(width: int, d: int = 256, ff: int = 1024) -> int:
    return width * d + d + 4 * d * d + 4 * d + 2 * d * ff + ff + d + 4 * d


def unused(task: str) -> dict[str, tuple[int, str]]:
    """Parameters of the published classes that no output depends on: name -> (count, where).

    "frozen" and "trained" say how the published code treats them, "hearing" that they belong to HTS-AT, which is
    frozen in all tasks but S4.
    """
    d, ff, units = 256, 1024, 48
    attention = 4 * d * d + 4 * d
    feed = 2 * d * ff + ff + d + 4 * d
    hearing = {
        "HTS-AT's classifier": (768 * 527 * 2 * 3 + 527 + 527 * 527 + 527, "hearing"),
        "STFT and mel matrices stored as parameters": (2 * 513 * 1024 + 513 * 64, "hearing"),
    }
    templates = 2 * (attention + feed) + 2 * (2 * attention + feed)
    hierarchical = (
        [192] * 2 + [384] * 2 + [768] * 6 + [1536] * 2 + [96] * 2 + [192] * 2 + [384] * 6 + [768] * 2
    )
    scalars = 2 * sum(w + 1 for w in hierarchical)  # temporal_gated of every unit
    caption = {"fc_caption": (units * (512 * 192 + 192), "trained")}
    if task not in HEADS:
        return caption
    dead = {"Swin's 21 841-way classifier": (1536 * 21_841 + 21_841, "frozen"), **hearing}
    if not task.startswith("avs"):
        dead["gate_tk"] = (units, "trained")
    if task == "ave":
        dead["template layers that were only copied from"] = (templates, "trained")
        dead["self-attention of the cross-decoders"] = (2 * attention, "trained")
        dead["CMBS's two interaction modules and norms"] = (2 * (attention + 2 * d) + 4 * d, "trained")
    if task == "avvp":
        small = 4 * 64 * 64 + 4 * 64 + 2 * 64 * ff + ff + 64 + 4 * 64
        dead["template layers that were only copied from"] = (2 * small, "trained")
        dead |= caption
        dead["adapter_token_downsampler"] = (
            sum(w // 16 * (w // 8) for w in (384, 768, 1536)),
            "trained",
        )
        dead["temporal_gated inside the units"] = (scalars, "trained")
    if task == "avqa":
        wide = 1536
        dead["fc_a1_pure, fc_a2_pure and norm3"] = (768 * wide + wide * wide + 2 * wide + 2 * wide, "trained")
    if task.startswith("avs"):
        dead["PVT-v2-b5, the backbone of another model"] = (81_443_008, "trained")
        dead["temporal_gated inside the units"] = (scalars, "trained")
        dead["ln_before, built and skipped"] = (4 * sum(hierarchical), "trained")
        decoders = _cross_decoder(2 * d) + _cross_decoder(d)
        dead["cross-decoders, evaluated and ignored, and templates"] = (
            4 * (decoders + templates + 2 * attention),
            "trained",
        )
        dead["PVT's dilated convolutions"] = (4 * (9 * d * (64 + 128 + 320 + 512) + 4 * d), "trained")
        old = ((192, 64), (384, 128), (768, 320), (1536, 512))
        dead["linear maps to PVT's widths"] = (sum((a + 1) * b for a, b in old), "trained")
    if task == "avs-s4":
        pairs = zip([2304] * 2 + [576] * 2 + [144] * 6 + [36] * 2, [4096] * 2 + [1024] * 2 + [256] * 6 + [64] * 2,
                    strict=True)  # fmt: skip
        dead["token maps that the bicubic re-mapping leaves out"] = (
            sum(2 * (2 * v * a + v + a) for v, a in pairs),
            "trained",
        )
    return dead


def count(task: str, variant: str = "dg-sct") -> dict[str, float]:
    """Parameters in millions: `total`, `trainable`, `share` in percent as the published code counts them (dead ones
    included; for the CLIP tasks the units only), and `used_total`, `used_trainable`, `used_share` without dead ones."""
    with torch.device("meta"):
        encoder, head = build(task, variant)
    vision, hearing = _size(encoder.visual), _size(encoder.audio)
    trained = sum(p.numel() for p in encoder.unit_parameters()) + _size(head)
    dead = unused(task)
    by = {
        kind: sum(n for n, where in dead.values() if where == kind)
        for kind in ("frozen", "trained", "hearing")
    }
    if task not in HEADS:
        units = (trained + by["trained"]) / 1e6
        return {"total": units, "trainable": units, "share": 100.0, "used_total": (vision + hearing + trained) / 1e6,
                "used_trainable": trained / 1e6, "used_share": 100 * trained / (vision + hearing + trained)}  # fmt: skip
    listening = hearing if task == "avs-s4" else 0  # HTS-AT is trained there, by the published script
    total = vision + hearing + trained + sum(by.values())
    trainable = trained + by["trained"] + (listening and listening + by["hearing"])
    used, used_trained = vision + hearing + trained, trained + listening
    return {"total": total / 1e6, "trainable": trainable / 1e6, "share": 100 * trainable / total,
            "used_total": used / 1e6, "used_trainable": used_trained / 1e6, "used_share": 100 * used_trained / used}  # fmt: skip


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
        parameters: `task`, and optionally `variant`, `segments` (default 10), `batch` (default 1 video) and `fused`
            (units of `companion.dgsct.fast`; default false).

    Returns:
        Counts in millions, frames, seconds of the forward pass, of the backward pass and of the whole step with its
        optimiser, CPU threads, and peak memory in MiB.
    """
    task, variant = parameters["task"], parameters.get("variant", "dg-sct")
    segments, batch = int(parameters.get("segments", 10)), int(parameters.get("batch", 1))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    size = 192 if task in HEADS else 224
    steps = 501 if task.startswith("avs") else 1001
    model = step_model(task, variant)
    if parameters.get("fused"):
        fast.fuse(model)
    model.to(device).train()
    images = torch.randn(batch, segments, 3, size, size, device=device)
    sounds = torch.randn(batch, segments, 1, steps, 64, device=device)
    example = {"images": images, "sounds": sounds} | targets(task, batch, segments, device)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-4)
    clock = [_now(device)]
    loss = model.loss(example, 1)
    clock.append(_now(device))
    loss.backward()
    clock.append(_now(device))
    optimizer.step()
    clock.append(_now(device))
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    memory = records.peak_memory()
    return {"task": task, "variant": variant, "frames": batch * segments, "parameters_m": round(_size(model) / 1e6, 2),
            "trainable_m": round(trained / 1e6, 2), "trainable_share": round(100 * trained / _size(model), 2),
            "loss": round(float(loss.detach()), 3), "forward_s": round(clock[1] - clock[0], 2),
            "backward_s": round(clock[2] - clock[1], 2), "step_s": round(clock[3] - clock[0], 2),
            "threads": torch.get_num_threads(), "peak_rss_mib": memory["rss_mib"],
            "peak_device_mib": memory["device_mib"]}  # fmt: skip


def _now(device: str) -> float:
    """Seconds; with one CPU thread those of this process, which other processes do not lengthen."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.process_time() if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter()


def step_model(task: str, variant: str = "dg-sct") -> nn.Module:
    """The task's whole model at full size with random weights, with the `loss` of `companion.dgsct.full`."""
    from companion.dgsct import full

    if task in HEADS:
        encoder, head = build(task, variant)
        if task == "avs-s4":
            encoder.audio.requires_grad_(True)  # as the published script trains it, and as `count` counts
        if task.startswith("avs"):
            return full.AVSModel(encoder, head, task)
        return {"ave": full.AVEModel, "avvp": full.AVVPModel, "avqa": full.AVQAModel}[task](encoder, head)
    from transformers import ClapConfig, ClapModel, CLIPConfig, CLIPModel

    from companion.dgsct.prompts import FewShot

    clip, clap = CLIPModel(CLIPConfig()), ClapModel(ClapConfig(audio_config=HTS_AT))
    names = torch.full((29, 16), 7)
    names[:, -1] = clip.config.text_config.eos_token_id
    heard = {"input_ids": torch.full((29, 12), 7), "attention_mask": torch.ones(29, 12, dtype=torch.long)}
    model = FewShot(clip, clap, (names, heard), PRESETS[task], "ratio" if task == "zero-shot" else "sum",
                    units=variant != "late-fusion")  # fmt: skip
    return full.PromptModel(model, task != "few-shot")


def targets(task: str, batch: int, segments: int, device: str) -> dict[str, torch.Tensor]:
    """Random-enough targets of a task's shapes."""
    long = {"dtype": torch.long, "device": device}
    if task == "avvp":
        return {"weak": torch.zeros(batch, 25, device=device),
                "motion": torch.randn(batch, segments, 512, device=device)}  # fmt: skip
    if task.startswith("avs"):
        return {"masks": torch.rand(batch, 5, 224, 224, device=device) > 0.5}
    if task == "avqa":
        return {"question": torch.zeros(batch, 14, **long), "answer": torch.zeros(batch, **long)}
    labels = torch.arange(segments, device=device).remainder(2).mul(28).expand(batch, -1)
    return {"labels": labels, "video_label": torch.zeros(batch, **long)}
