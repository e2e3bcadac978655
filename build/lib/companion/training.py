"""One short training loop over accelerate, for every paper: CPU, one GPU or several, any precision.

`fit` asks `batches(k)` for the k-th micro-batch instead of iterating over a loader. Data order then
depends on nothing but `k`, and a resumed run is the same run: stop after any checkpoint, call `fit` again,
and the parameters come out bit for bit as if nothing had happened (on one device, in one precision).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from companion import records


@dataclass(frozen=True)
class FitConfig:
    """How a model is trained; what is trained is the caller's. Papers' symbols are in the papers' configs."""

    steps: int  # optimiser steps
    lr: float = 1e-3  # peak learning rate
    warmup: int = 0  # steps of linear warm-up
    schedule: str = "cosine"  # cosine, linear or constant after the warm-up
    final_lr: float = 0.0  # where the schedule ends, as a share of `lr`
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float = 1.0  # largest gradient norm; 0 switches clipping off
    accumulate: int = 1  # micro-batches per step
    precision: str = "no"  # no, bf16 or fp16
    ema: float = 0.0  # decay of the averaged weights; 0 keeps none
    evaluate_every: int = 0  # steps between evaluations; 0 evaluates only at the end
    save_every: int = 0  # steps between checkpoints; 0 saves only at the end
    shard_mib: int = 15  # largest file of a checkpoint

    def __post_init__(self) -> None:
        if self.schedule not in ("cosine", "linear", "constant"):
            raise ValueError(f"schedule is {self.schedule!r}; choose cosine, linear or constant")
        if self.precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"precision is {self.precision!r}; choose no, bf16 or fp16")
        if self.steps < 1 or self.accumulate < 1:
            raise ValueError(f"steps is {self.steps} and accumulate {self.accumulate}; both start at 1")


@dataclass
class Fitted:
    """What `fit` returns: curves as lists of [step, value], and the meter's reading."""

    curves: dict[str, list[list[float]]] = field(default_factory=dict)
    step: int = 0
    seconds: float = 0.0  # time in training steps, over all pieces of a resumed run
    examples: int = 0
    averaged: nn.Module | None = None  # the EMA model when `ema` > 0

    @property
    def examples_per_second(self) -> float:
        return self.examples / self.seconds if self.seconds else math.nan


def seed_everything(seed: int, threads: int | None = None) -> None:
    """Seed Python, NumPy and torch; with `threads`, also fix torch's CPU threads (sums depend on it)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if threads:
        torch.set_num_threads(threads)


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator seeded by all of `key`, e.g. `generator(seed, "train", k)`: independent streams."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def epochs(size: int, batch_size: int, seed: int) -> Callable[[int], torch.Tensor]:
    """`index(k)` -> the k-th batch of example numbers `[batch_size]`: a fresh shuffle per epoch, last part dropped.

    Raises ValueError when a batch is larger than the data.
    """
    if not 1 <= batch_size <= size:
        raise ValueError(f"batch size {batch_size} does not fit {size} examples; choose 1 to {size}")
    per_epoch = size // batch_size

    def index(k: int) -> torch.Tensor:
        order = torch.randperm(size, generator=generator(seed, "epoch", k // per_epoch))
        at = k % per_epoch * batch_size
        return order[at : at + batch_size]

    return index


def learning_rate(config: FitConfig, step: int) -> float:
    """The factor on `lr` at `step` (counted from 0): linear warm-up, then the schedule down to `final_lr`."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
    return config.final_lr + (1 - config.final_lr) * shape


# --- checkpoints -------------------------------------------------------------------------------------


def cache_folder(name: str, *key: Any) -> Path:
    """Folder for a training's checkpoints: under `$COMPANION_CACHE` (else the runs folder's `.cache`).

    The folder's name depends on `key` (configs, seeds, data fingerprints) and on the package's code that is
    loaded, so a changed training never picks up another's weights.
    """
    plain = [asdict(part) if is_dataclass(part) else part for part in key]
    digest = hashlib.sha256(json.dumps([plain, records.loaded_code()], sort_keys=True, default=str).encode())
    base = Path(os.environ.get("COMPANION_CACHE") or records.runs_folder() / ".cache")
    return base / f"{name}-{digest.hexdigest()[:16]}"


def _pack(thing: Any, tensors: dict[str, torch.Tensor], at: str) -> Any:
    """`thing` as JSON, with its tensors moved into `tensors` under readable names."""
    if isinstance(thing, torch.Tensor):
        # contiguous() keeps values; clone() undoes sharing, which safetensors refuses
        tensors[at] = thing.detach().cpu().contiguous().clone()
        return {"__tensor__": at}
    if isinstance(thing, Mapping):
        return {"__map__": [[k, _pack(v, tensors, f"{at}.{k}")] for k, v in thing.items()]}
    if isinstance(thing, tuple | list):
        kind = "__tuple__" if isinstance(thing, tuple) else "__list__"
        return {kind: [_pack(v, tensors, f"{at}.{k}") for k, v in enumerate(thing)]}
    return thing


def _unpack(thing: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(thing, dict):
        return thing
    ((kind, value),) = thing.items()
    if kind == "__tensor__":
        return tensors[value]
    if kind == "__map__":
        return {k: _unpack(v, tensors) for k, v in value}
    parts = [_unpack(v, tensors) for v in value]
    return tuple(parts) if kind == "__tuple__" else parts


def save_checkpoint(folder: Path, step: int, state: Mapping[str, Any], shard_mib: int = 15) -> None:
    """Store `state` (nested dicts, lists, numbers, tensors) as `step-N/` of `folder`; keep only the newest.

    Tensors go into safetensors files of at most `shard_mib` MiB (a larger tensor gets a file of its own), the
    rest into `state.json`. The `latest` file is replaced last, so a kill leaves the older checkpoint usable.
    """
    tensors: dict[str, torch.Tensor] = {}
    tree = _pack(state, tensors, "state")
    here = folder / f"step-{step:08d}"
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir(parents=True)
    shards: list[dict[str, torch.Tensor]] = [{}]
    size, most = 0, shard_mib * 2**20
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > most:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    for k, shard in enumerate(shards):
        save_file(shard, here / f"part-{k:04d}.safetensors")
    records.write_json(here / "state.json", tree)
    records.write_json(folder / "latest", here.name)
    for old in folder.glob("step-*"):
        if old != here:
            shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The newest state in `folder`, or None when there is none."""
    latest = folder / "latest"
    if not latest.is_file():
        return None
    here = folder / json.loads(latest.read_text())
    tensors: dict[str, torch.Tensor] = {}
    for part in sorted(here.glob("part-*.safetensors")):
        tensors |= load_file(part)
    return _unpack(json.loads((here / "state.json").read_text()), tensors)


def _random_state() -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state()
    return {"torch": torch.get_rng_state(), "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],
            "python": list(random.getstate()),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []}  # fmt: skip


def _restore_random(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, inner, gauss = state["python"]
    random.setstate((version, tuple(inner), gauss))
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


# --- the loop ----------------------------------------------------------------------------------------


def fit(model: nn.Module, loss: Callable[..., Any], batches: Callable[[int], Any], config: FitConfig, *,
        evaluate: Callable[[nn.Module], Mapping[str, float]] | None = None,
        folder: Path | str | None = None, parameters: Any = None, stop_after: int | None = None,
        title: str = "training", cpu: bool = False) -> Fitted:  # fmt: skip
    """Train `model` in place.

    Args:
        model: any module; only parameters that require gradients are trained and stored by the optimiser.
        loss: `loss(model, batch)` -> a scalar, or `(scalar, {name: number})` whose numbers become curves.
        batches: `batches(k)` -> the k-th micro-batch (tensors, or containers of them), k from 0. With several
            processes, process r of w is asked for k·w + r.
        evaluate: `evaluate(model)` -> named numbers; called in eval mode, without gradients.
        folder: where checkpoints go. A finished training found there is loaded, an unfinished one continued.
        parameters: parameter groups for AdamW; all trainable parameters by default.
        stop_after: stop (with a checkpoint) after this many steps in this call.
        title: label of the progress bar.
        cpu: stay on the CPU even where there is a GPU.

    Returns:
        `Fitted` with curves `loss`, `lr`, those of `loss` and of `evaluate`.

    Raises:
        FloatingPointError: when the loss is not finite; the checkpoint before it is kept.
    """
    folder = Path(folder) if folder else None
    with FileLock(f"{_made(folder)}.lock") if folder else contextlib.nullcontext():
        return _fit(model, loss, batches, config, evaluate, folder, parameters, stop_after, title, cpu)


def _made(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    return folder


def _fit(model, loss, batches, config, evaluate, folder, parameters, stop_after, title, cpu) -> Fitted:
    # a process may train several models in turn, each in its own precision
    AcceleratorState._reset_state()
    accelerator = Accelerator(mixed_precision=config.precision, cpu=cpu,
                              gradient_accumulation_steps=config.accumulate)  # fmt: skip
    groups = parameters if parameters is not None else [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(config, step))
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    averaged = None
    if config.ema:
        averaged = torch.optim.swa_utils.AveragedModel(
            model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema), use_buffers=True
        )
    out = Fitted(averaged=averaged.module if averaged else None)

    if folder and (state := load_checkpoint(folder)):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        if averaged:
            averaged.load_state_dict(state["averaged"])
        if accelerator.scaler:
            accelerator.scaler.load_state_dict(state["scaler"])
        out.curves, out.step, out.seconds, out.examples = state["out"]
        _restore_random(state["random"])

    def save() -> None:
        if folder and accelerator.is_main_process:
            save_checkpoint(folder, out.step, {
                "model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict(),
                "averaged": averaged.state_dict() if averaged else {},
                "scaler": accelerator.scaler.state_dict() if accelerator.scaler else {},
                "out": [out.curves, out.step, out.seconds, out.examples], "random": _random_state(),
            }, config.shard_mib)  # fmt: skip

    def note(**values: float) -> None:
        for name, value in values.items():
            out.curves.setdefault(name, []).append([out.step, float(value)])

    def assess() -> None:
        if evaluate:
            shown = averaged.module if averaged else model
            was = shown.training
            shown.eval()
            with torch.no_grad():
                note(**evaluate(shown))
            shown.train(was)

    log_every = max(1, config.steps // 200)
    last = config.steps if stop_after is None else min(config.steps, out.step + stop_after)
    bar = tqdm(total=config.steps, initial=out.step, desc=title, unit="step", mininterval=1.0,
               disable=not accelerator.is_main_process or out.step >= last)  # fmt: skip
    world, rank = accelerator.num_processes, accelerator.process_index
    wrapped.train()
    while out.step < last:
        began, total, extra = time.perf_counter(), 0.0, {}
        for a in range(config.accumulate):
            batch = _to(batches((out.step * config.accumulate + a) * world + rank), accelerator.device)
            # only the last micro-batch synchronises gradients between processes
            quiet = accelerator.no_sync(wrapped) if a < config.accumulate - 1 else contextlib.nullcontext()
            with quiet, accelerator.autocast():
                answer = loss(wrapped, batch)
                value, extra = answer if isinstance(answer, tuple) else (answer, {})
                # with gradient_accumulation_steps set, accelerate divides by it in backward
                accelerator.backward(value)
            total += value.detach() / config.accumulate
            out.examples += _length(batch) * world
        if not torch.isfinite(total):
            raise FloatingPointError(
                f"{title}: loss is {float(total)} at step {out.step}; lower lr, or look at the batch"
            )
        if config.clip:
            accelerator.clip_grad_norm_(wrapped.parameters(), config.clip)
        lr = optimizer.param_groups[0]["lr"]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        if averaged:
            averaged.update_parameters(model)
        out.step += 1
        if out.step % log_every == 0 or out.step == config.steps:
            note(loss=total, lr=lr, **{k: float(v) for k, v in extra.items()})
            bar.set_postfix(loss=f"{float(total):.3f}", refresh=False)
        out.seconds += time.perf_counter() - began
        bar.update()
        if out.step == config.steps or (config.evaluate_every and out.step % config.evaluate_every == 0):
            assess()
        if out.step == last or (config.save_every and out.step % config.save_every == 0):
            save()
    bar.close()
    model.eval()
    return out


def _to(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {k: _to(v, device) for k, v in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_to(v, device) for v in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(_to(v, device) for v in batch)
    return batch


def _length(batch: Any) -> int:
    """Examples in a batch: the first dimension of its first tensor."""
    if isinstance(batch, torch.Tensor):
        return len(batch) if batch.ndim else 1
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, tuple | list) else ()
    return next((n for part in parts if (n := _length(part))), 0)


def trainable(model: nn.Module) -> tuple[int, int]:
    """(trainable, all) parameters of `model`, shared ones counted once."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, on in sizes if on), sum(n for n, _ in sizes)
