"""GLUE's metrics, in per cent: Matthews' correlation, accuracy, F1 of the positive class."""

from __future__ import annotations

import math

import torch


def _same(predicted: torch.Tensor, target: torch.Tensor) -> None:
    if predicted.shape != target.shape or not len(target):
        raise ValueError(f"{tuple(predicted.shape)} predictions for {tuple(target.shape)} targets; both need the same, "
                         "non-zero length")  # fmt: skip


def accuracy(predicted: torch.Tensor, target: torch.Tensor) -> float:
    """Share of right answers, in per cent. Both: [n]"""
    _same(predicted, target)
    return 100 * (predicted == target).double().mean().item()


def _counts(predicted: torch.Tensor, target: torch.Tensor) -> tuple[int, int, int, int]:
    _same(predicted, target)
    p, t = predicted == 1, target == 1
    return int((p & t).sum()), int((~p & ~t).sum()), int((p & ~t).sum()), int((~p & t).sum())


def matthews(predicted: torch.Tensor, target: torch.Tensor) -> float:
    """Matthews' correlation of two binary vectors x 100; 0 where one of them is constant, as GLUE has it."""
    tp, tn, fp, fn = _counts(predicted, target)
    below = math.sqrt((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))
    return 100 * (tp * tn - fp * fn) / below if below else 0.0


def f1(predicted: torch.Tensor, target: torch.Tensor) -> float:
    """F1 of label 1 x 100; 0 where label 1 is neither predicted nor there."""
    tp, _, fp, fn = _counts(predicted, target)
    return 100 * 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else 0.0


OF_TASK = {"cola": ("mcc", "accuracy"), "mrpc": ("accuracy", "f1"), "qqp": ("accuracy", "f1")}


def of_task(task: str, predicted: torch.Tensor, target: torch.Tensor) -> dict[str, float]:
    """All metrics that GLUE reports for `task` (accuracy for tasks it does not single out)."""
    known = {"accuracy": accuracy, "f1": f1, "mcc": matthews}
    return {name: known[name](predicted, target) for name in OF_TASK.get(task, ("accuracy",))}


def headline(task: str):
    """The metric that chooses epochs and rates for `task`: Matthews' correlation for CoLA, else accuracy."""
    return matthews if task == "cola" else accuracy
