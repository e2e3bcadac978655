"""What the full-size models cost on this machine, with random weights: no download is needed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from companion import records, training
from companion.reactiont5 import train
from companion.reactiont5.beam import beam_search
from companion.reactiont5.model import T5, ReactionYield, T5Config, seq2seq_loss, yield_loss

# Tokens per input and target: the means measured on USPTO-MIT, USPTO-50k and the C-N set.
LENGTHS = {"forward": (67, 37), "retrosynthesis": (40, 45), "yield": (201, 1)}


def full_size(task: str) -> T5Config:
    """T5 v1.1-base with the vocabulary of `task`."""
    return T5Config(vocab=269 if task == "yield" else 268)


def dry_run(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Build the cell's full-size model (or, with `size = "small"`, the chapter's) and measure it.

    Two optimiser steps, of which the second is reported; then answers (five beams, or a yield). On a CPU the batch is
    cut to 2 (and said so), and seconds are core-seconds.
    """
    task = parameters.get("task", "yield")
    if task not in LENGTHS:
        raise ValueError(f"task is {task!r}; choose {', '.join(LENGTHS)}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = int(parameters["batch"]) if device.type == "cuda" else min(2, int(parameters["batch"]))
    # core-seconds on a CPU, so that other work on the machine does not count
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    training.seed_everything(0)
    sizes = train.small_config() if parameters.get("size") == "small" else full_size(task)
    model = (ReactionYield if task == "yield" else T5)(sizes).to(device)
    source, target = LENGTHS[task]
    batch = {"ids": torch.randint(3, 70, (size, source), device=device),
             "targets": torch.randint(3, 70, (size, target), device=device),
             "yields": torch.rand(size, device=device)}  # fmt: skip
    loss_of = yield_loss if task == "yield" else seq2seq_loss
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    model.train()
    for _ in range(2):
        began = clock()
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = clock() - began
    trainable, total = training.trainable(model)
    report = {"parameters": total, "trainable": trainable, "examples per step": size, "step seconds": round(seconds, 3),
              "training tokens per second": round(size * (source + target) / seconds)}  # fmt: skip
    model.eval()
    began = clock()
    if task == "yield":
        with torch.no_grad():
            model(batch["ids"])
    else:
        # random weights never write </s>: every answer has the mean length of the real ones
        beam_search(model, batch["ids"], beams=5, most=target + 1)
        report["tokens per answer"] = target
    if device.type == "cuda":
        torch.cuda.synchronize()
    report["answers per second"] = round(size / (clock() - began), 3)
    return report | {"loss": round(float(loss.detach()), 3), **records.peak_memory()}
