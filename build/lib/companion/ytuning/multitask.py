"""Many tasks on one cache, and labels that arrive later: training of a head alone, on features that are there.

The frozen model is not an argument of anything in this file.
"""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import torch

from companion import training
from companion.ytuning import protocol
from companion.ytuning.model import YTuning
from companion.ytuning.protocol import Budget, Labelled


class OneTask(torch.nn.Module):
    """A head with its task chosen, called like every other head: (H, pad, segments) -> scores [B, C]."""

    def __init__(self, head: YTuning, task: str) -> None:
        super().__init__()
        self.head, self.task = head, head.pick(task)

    def forward(
        self, H: torch.Tensor, pad: torch.Tensor, segments: torch.Tensor | None = None
    ) -> torch.Tensor:
        """[B, C]"""
        return self.head(H, pad, segments, self.task)


@dataclass
class Together:
    """What `tune` gives: the best state's scores per task, curves, and processor seconds of the training."""

    valid: dict[str, float]
    epoch: int
    seconds: float
    curves: dict[str, list[list[float]]] = field(default_factory=dict)


def turns(sizes: Mapping[str, int], seed: int, epoch: int) -> list[tuple[str, int]]:
    """The order of an epoch's batches: (task, number of its batch), every batch of every task once, shuffled."""
    order = [(task, k) for task, count in sizes.items() for k in range(count)]
    random.Random(f"turns {seed} {epoch}").shuffle(order)
    return order


def tune(head: YTuning, train: Mapping[str, Labelled], valid: Mapping[str, Labelled],
         metric: Callable[[torch.Tensor, torch.Tensor], float], budget: Budget, seed: int = 0,
         title: str = "tuning") -> Together:  # fmt: skip
    """Train `head` in place on all tasks of `train` at once; the epoch with the best mean `metric` on `valid` is kept.

    Every batch is of one task. `budget` gives one learning rate (its first), and epochs over all tasks' examples.
    Raises ValueError where `train` and `valid` name different tasks, or one that the head does not know.
    """
    if set(train) != set(valid):
        raise ValueError(
            f"train has the tasks {', '.join(train)}, valid has {', '.join(valid)}; give the same"
        )
    heads = {task: OneTask(head, task) for task in train}
    size = {task: min(budget.batch_size, len(one.target)) for task, one in train.items()}
    count = {task: len(one.target) // size[task] for task, one in train.items()}
    index = {task: training.epochs(len(one.target), size[task], seed) for task, one in train.items()}
    per_epoch = sum(count.values())
    order = lru_cache(2)(lambda epoch: turns(count, seed, epoch))
    best: dict = {"mean": -float("inf")}
    clock = [0.0]

    def batch(k: int):
        epoch, at = divmod(k, per_epoch)
        task, number = order(epoch)[at]
        inputs, target = train[task].batch(index[task](epoch * count[task] + number))
        return task, inputs, target

    def loss(now: YTuning, given) -> torch.Tensor:
        task, inputs, target = given
        return head.loss(now(*inputs, task), target)

    def evaluate(_: YTuning) -> dict[str, float]:
        began = time.process_time()
        found = {
            task: metric(protocol.predict(heads[task], one.source).argmax(1), one.target)
            for task, one in valid.items()
        }
        mean = sum(found.values()) / len(found)
        if mean > best["mean"]:
            best.update(mean=mean, found=found, state=copy.deepcopy(head.state_dict()))
        clock[0] += time.process_time() - began
        return {f"valid {task}": value for task, value in found.items()} | {"valid": mean}

    began = time.process_time()
    steps = budget.epochs * per_epoch
    config = training.FitConfig(steps=steps, lr=budget.rates[0], warmup=max(1, round(budget.warmup * steps)),
                                schedule=budget.schedule, weight_decay=budget.weight_decay,
                                precision=budget.precision, evaluate_every=per_epoch)  # fmt: skip
    done = training.fit(head, loss, batch, config, evaluate=evaluate, title=title)
    spent = time.process_time() - began - clock[0]
    head.load_state_dict(best["state"])
    head.eval()
    top = max(done.curves["valid"], key=lambda point: point[1])
    return Together(best["found"], round(top[0] / per_epoch), spent, done.curves)


def only_new(head: YTuning, task: str, old: int) -> Callable[[], None]:
    """Freeze all of `head` but the embeddings of the labels of `task` after the first `old`; gives back the undo.

    Train with `weight_decay=0`: decay would move the old labels, which share the table.
    Raises ValueError where no label is new.
    """
    task, c = head.pick(task), head.config
    if not 0 < old < len(c.tasks[task]):
        raise ValueError(f"{old} of {len(c.tasks[task])} labels of {task} are old; at least one must be new")
    was = {name: p.requires_grad for name, p in head.named_parameters()}
    head.requires_grad_(False)
    table = head.labels[task].requires_grad_(True)
    keep = torch.zeros(len(table), 1)
    keep[old * c.per_label :] = 1
    hook = table.register_hook(lambda grad: grad * keep.to(grad))

    def undo() -> None:
        hook.remove()
        for name, p in head.named_parameters():
            p.requires_grad_(was[name])

    return undo
