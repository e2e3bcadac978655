"""What a training step of a cell costs on this machine, with random weights and real random data."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from companion import records, training
from companion.dncl import data, generator, model
from companion.dncl.recipe import recipe


def dry_run(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Build the cell's model, take two optimiser steps on a pool of 2000 skeletons, report the second.

    On a CPU the batch is cut to 64 data sets (and said so): the paper-like batch of 2048 is meant for a GPU.
    """
    r = recipe(parameters)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = r.batch if device.type == "cuda" else min(r.batch, 64)
    pool = data.Pool(generator.skeletons(2000, r.generator, 0), r.generator.variables, r.points, r.noise)
    net = model.DNCL(r.model).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), lr=r.fit.lr)
    batch = data.Views(*(part.to(device) for part in pool.draw(size, training.generator(0))))
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        loss, _parts = model.dncl_loss(net, batch, r.loss)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    trainable, total = training.trainable(net)
    return {"parameters": total, "trainable": trainable, "data sets per step": size, "step seconds": round(seconds, 3),
            "loss": round(float(loss.detach()), 3), **records.peak_memory()}  # fmt: skip
