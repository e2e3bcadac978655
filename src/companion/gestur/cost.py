"""What a training step costs on this machine: full-size models, random weights, random images.

`dry_run` looks at one cell of a table, `compare` at several methods side by side in one process.
"""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from companion import records, training
from companion.gestur import baselines, data, methods, nets, recipe


def dry_run(parameters: Mapping[str, Any], steps: int = 3, batch: int | None = None) -> dict[str, Any]:
    """Build the cell's model with random weights and take `steps` steps on three random source batches.

    On a CPU the batch is cut to 1 image per source domain (and said so). `copies` counts the numbers the method keeps
    besides network, gradients and optimizer, in units of the network: 1 for GESTUR's expert or MIRO's frozen network.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    full = nets.is_full(parameters["backbone"])
    asked = parameters.get("batch", parameters.get("per_domain", 1))
    per_domain = batch or (asked if device.type == "cuda" or not full else 1)
    if "per_domain" in parameters:  # a cell of the table of costs, where `published` is a number of images
        parameters = {"method": "gestur", "backbone": parameters["backbone"], "size": parameters["size"]}
    config = recipe.method_config({"method": "gestur", **parameters})
    size = 224 if full else parameters["size"]
    classes = data.SETS[name].classes if (name := parameters.get("data")) in data.SETS else 10
    stepper = Stepper(parameters["backbone"], config, classes, size, per_domain, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = [stepper() for _ in range(steps)]
    trainable, total = training.trainable(stepper.algorithm.network)
    return {"parameters": total, "trainable": trainable, "copies": round(stepper.copies(), 3),
            "images per step": 3 * per_domain, "step seconds": round(min(times), 3), **records.peak_memory()}  # fmt: skip


class Stepper:
    """One method on random data; each call takes a training step and returns its seconds.

    With `swad` the dense average is kept, too, as during a training between two evaluations.
    """

    def __init__(self, backbone: str, config: methods.MethodConfig, classes: int, size: int, per_domain: int,
                 device: torch.device, swad: bool = False) -> None:  # fmt: skip
        net = nets.full(backbone, pretrained=False) if nets.is_full(backbone) else nets.small()
        g = training.generator(0, "cost")
        self.x = torch.randn(per_domain, 3, size, size, generator=g).to(device)
        self.y = (torch.arange(per_domain) % classes).to(device)
        net.module.to(device)
        probe = nn.Linear(net.width, classes).to(device)
        self.algorithm = methods.build(config, net, classes, example=self.x[:1], probe=probe).to(device)
        self.average = baselines.Swad() if swad else None
        del net
        gc.collect()

    def __call__(self) -> float:
        _wait(self.x)
        began = time.perf_counter()
        self.algorithm.update([(self.x, self.y)] * 3)
        if self.average:
            self.average.follow(self.algorithm)
        _wait(self.x)
        return time.perf_counter() - began

    def copies(self) -> float:
        """Numbers kept besides network, gradients and optimizer, in units of the network."""
        total = training.trainable(self.algorithm.network)[1]
        kept = sum(p.numel() for p in self.algorithm.parameters()) - total
        if self.average and self.average.open is not None:
            kept += sum(p.numel() for p in self.average.open.parameters())
        return kept / total


def _wait(x: Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize()


def stepper(
    backbone: str, settings: Mapping[str, Any], size: int, images: int, device: torch.device
) -> Stepper:
    """The `Stepper` of settings of `MethodConfig`, and `swad = True`; seven classes."""
    plain = {k: v for k, v in settings.items() if k != "swad"}
    return Stepper(
        backbone, methods.MethodConfig(**plain), 7, size, images, device, bool(settings.get("swad"))
    )


def peak(
    backbone: str, settings: Mapping[str, Any], size: int, images: int, device: torch.device
) -> float | None:
    """Peak memory in MiB of three training steps of one method, network and all included.

    On a CPU measured in a process of its own, over what that process takes with nothing but the packages loaded. None
    where the system does not tell (other than Linux).
    """
    given = (backbone, dict(settings), size, images, device)
    if device.type != "cuda":
        if _high_water() is None:
            return None
        context = multiprocessing.get_context("forkserver")  # loads the packages once for all methods
        context.set_forkserver_preload([__name__])
        with context.Pool(1) as pool:
            return pool.apply(_peak_here, given)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    one = stepper(*given)
    for _ in range(3):
        one()
    found = torch.cuda.max_memory_allocated() / 2**20
    del one
    gc.collect()
    return found


def _peak_here(*given: Any) -> float:
    torch.set_num_threads(1)
    before = _high_water()
    one = stepper(*given)
    for _ in range(3):
        one()
    return _high_water() - before


def _high_water() -> float | None:
    """Most memory in MiB that this process has had, where Linux tells it (the system call counts the parent's, too)."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 2**10


def compare(backbone: str, rows: Mapping[str, Mapping[str, Any]], *, per_domain: int, published: int, rounds: int,
            size: int = 224) -> dict[str, float | None]:  # fmt: skip
    """Step times of several methods, taken in turns so that whatever else the machine does meets all of them.

    Args:
        rows: name -> settings of `MethodConfig`, and `swad = True`; the first row is the yardstick.
        per_domain: images per source domain and step here; `published` is what the paper's code base uses.
        rounds: how often each method takes a step (after one step that is not counted).

    Returns:
        `seconds@name` (median), `ratio@name` (median over rounds of the time over the yardstick's in that round),
        `copies@name`, `extra@name` (seconds over the yardstick's), and on a CPU `ratio-published@name`: the ratio at
        the published batch if the extra time, which is per weight and not per image, stays what it is here. The time
        per image is taken from a step of the yardstick with twice the images. On a GPU the published batch is used.
        `peak_mib@name` is the peak memory of each method alone (on a CPU in a process of its own, None where the system
        does not tell it), `peak_copies@name` by how much it exceeds the yardstick's, in units of the weights.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    here = published if device.type == "cuda" else per_domain
    found: dict[str, float | None] = {"images": 3 * here}

    def made(settings: Mapping[str, Any], images: int = here) -> Stepper:
        return stepper(backbone, settings, size, images, device)

    for name, settings in rows.items():
        found[f"peak_mib@{name}"] = peak(backbone, settings, size, here, device)
    steppers = {name: made(settings) for name, settings in rows.items()}
    for one in steppers.values():
        one()
    times: dict[str, list[float]] = {name: [] for name in rows}
    for k in range(rounds):
        for name in _turned(list(rows), k):
            times[name].append(steppers[name]())
    first = next(iter(rows))
    for name in rows:
        found[f"seconds@{name}"] = median(times[name])
        found[f"ratio@{name}"] = median(a / b for a, b in zip(times[name], times[first], strict=True))
        found[f"extra@{name}"] = median(a - b for a, b in zip(times[name], times[first], strict=True))
        found[f"copies@{name}"] = steppers[name].copies()
    found["parameters"] = training.trainable(steppers[first].algorithm.network)[1]
    for name in rows:
        ours, least = found[f"peak_mib@{name}"], found[f"peak_mib@{first}"]
        known = ours is not None and least is not None
        found[f"peak_copies@{name}"] = (ours - least) / (4 * found["parameters"] / 2**20) if known else None
    if device.type == "cpu":
        settings = rows[first]
        steppers.clear()
        gc.collect()
        twice = made(settings, 2 * here)
        twice()
        slope = (min(twice() for _ in range(max(1, rounds // 2))) - min(times[first])) / (3 * here)
        at_published = min(times[first]) + max(0.0, slope) * 3 * (published - here)
        for name, settings in rows.items():
            if settings["method"] != "miro":  # its extra forward pass grows with the images
                found[f"ratio-published@{name}"] = 1 + found[f"extra@{name}"] / at_published
    return found


def _turned(names: Sequence[str], k: int) -> list[str]:
    """The names in another order every round, so that no method always follows the same one."""
    at = k % len(names)
    return [*names[at:], *names[:at]]
