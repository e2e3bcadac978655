"""What a training step of a cell costs on this machine: full-size model, random weights, random images."""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from typing import Any

import torch

from companion import records, training
from companion.gestur import data, methods, nets, recipe


def dry_run(parameters: Mapping[str, Any], steps: int = 3, batch: int | None = None) -> dict[str, Any]:
    """Build the cell's model with random weights and take `steps` steps on three random source batches.

    On a CPU the batch is cut to 1 image per source domain (and said so). `copies` counts the numbers the method keeps
    besides network, gradients and optimizer, in units of the network: 1 for GESTUR's expert or MIRO's frozen network.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    full = parameters["backbone"] in nets.FULL
    per_domain = batch or (parameters["batch"] if device.type == "cuda" or not full else 1)
    backbone = nets.full(parameters["backbone"], pretrained=False) if full else nets.small()
    size = 224 if full else parameters["size"]
    classes = data.SETS[parameters["data"]].classes if parameters["data"] in data.SETS else 10
    x = torch.randn(per_domain, 3, size, size, device=device)
    y = torch.arange(per_domain, device=device) % classes
    backbone.module.to(device)
    probe = torch.nn.Linear(backbone.width, classes).to(device)
    algorithm = methods.build(
        recipe.method_config(parameters), backbone, classes, example=x[:1], probe=probe
    ).to(device)
    del backbone
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        algorithm.update([(x, y)] * 3)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    trainable, total = training.trainable(algorithm.network)
    kept = sum(p.numel() for p in algorithm.parameters()) - total
    return {"parameters": total, "trainable": trainable, "copies": round(kept / total, 3),
            "images per step": 3 * per_domain, "step seconds": round(min(times), 3), **records.peak_memory()}  # fmt: skip
