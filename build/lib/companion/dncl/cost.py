"""What a training step of a cell costs on this machine, with random weights and real random data."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from companion import records, training
from companion.dncl import data, experiment, generator, model
from companion.dncl.recipe import recipe


def dry_run(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Build the cell's model, take two optimiser steps on a pool of 2000 skeletons, report the second.

    On a CPU the batch is cut to 64 data sets (and said so): the paper-like batch of 2048 is meant for a GPU.
    """
    if "teaching" in parameters:
        return _controlled(parameters)
    r = recipe(parameters)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = r.batch if device.type == "cuda" else min(r.batch, 64)
    pool = data.Pool(generator.skeletons(2000, r.generator, 0), r.generator.variables, r.points, r.noise)
    net = model.DNCL(r.model).to(device)
    batch = data.Views(*(part.to(device) for part in pool.draw(size, training.generator(0))))
    return _measure(net, batch, r.loss, r.fit.lr)


def _controlled(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The same for the tables "training" and "ablation"."""
    s = experiment.setup(parameters)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = s.batch if device.type == "cuda" else min(s.batch, 64)
    seen, _held = experiment.streams(replace(s, skeletons=min(s.skeletons, 2000)))
    batch = data.Views(*(part.to(device) for part in seen.batches(size, 0)(0)))
    return _measure(s.network().to(device), batch, s.loss, s.fit.lr)


def _measure(
    net: torch.nn.Module, batch: data.Views, loss_config: model.LossConfig, lr: float
) -> dict[str, Any]:
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    seconds = 0.0
    for _ in range(2):
        began = time.perf_counter()
        loss, _parts = model.dncl_loss(net, batch, loss_config)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if batch.clean.is_cuda:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
    trainable, total = training.trainable(net)
    return {"parameters": total, "trainable": trainable, "data sets per step": len(batch.tokens),
            "step seconds": round(seconds, 3), "loss": round(float(loss.detach()), 3), **records.peak_memory()}  # fmt: skip
