"""Exact match, invalidity and yield errors; the published shortcuts are switches, never defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from companion.reactiont5.chemistry import canonical


@dataclass(frozen=True)
class Accuracy:
    """`top[k]`: share of targets met within the first k predictions; `invalid`: share of unreadable predictions."""

    top: dict[int, float]
    invalid: float
    targets: int
    bad_targets: int  # targets that RDKit cannot read: never counted as met


def accuracy(targets: Sequence[str], predictions: Sequence[Sequence[str]], tops: Sequence[int] = (1, 2, 3, 5),
             as_published: bool = False) -> Accuracy:  # fmt: skip
    """Exact match of canonical SMILES within the first k predictions, and the share of invalid predictions.

    The whole dot-joined text must agree after canonicalisation, stereo included. A target that RDKit cannot read
    is never met. `as_published` repeats the official training-time metric: text with "%" is compared as it
    stands, and a failed prediction equals a failed target (None == None).

    Raises ValueError for lists of different lengths, or none.
    """
    if len(targets) != len(predictions) or not targets:
        raise ValueError(
            f"{len(targets)} targets and {len(predictions)} prediction lists; give as many of both, at least 1"
        )

    def form(text: str) -> str | None:
        return text if as_published and "%" in text else canonical(text.rstrip("."))

    hits, invalid, total, bad = dict.fromkeys(tops, 0), 0, 0, 0
    for target, group in zip(targets, predictions, strict=True):
        want, have = form(target), [form(p) for p in group]
        bad += want is None
        invalid += sum(canonical(p.rstrip(".")) is None for p in group)
        total += len(group)
        for k in tops:
            hits[k] += want in have[:k] and (as_published or want is not None)
    n = len(targets)
    return Accuracy({k: h / n for k, h in hits.items()}, invalid / max(1, total), n, bad)


def r2(truth: Sequence[float], predicted: Sequence[float]) -> float:
    """1 - SS_res / SS_tot (scikit-learn's R²): 0 for the mean predictor, negative for worse."""
    t, p = np.asarray(truth, float), np.asarray(predicted, float)
    return float(1 - ((t - p) ** 2).sum() / ((t - t.mean()) ** 2).sum())


def squared_pearson(truth: Sequence[float], predicted: Sequence[float]) -> float:
    """Squared correlation, what T5Chem prints as R²: blind to shift and scale, hence never below R².

    NaN when a side is constant.
    """
    t, p = np.asarray(truth, float), np.asarray(predicted, float)
    if t.std() == 0 or p.std() == 0:
        return float("nan")
    return float(np.corrcoef(t, p)[0, 1] ** 2)


def yield_errors(truth: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """R², squared Pearson, MAE, RMSE and the spread of the predictions, all in percent yield."""
    t, p = np.asarray(truth, float), np.asarray(predicted, float)
    if t.shape != p.shape or t.ndim != 1 or len(t) < 2:
        raise ValueError(
            f"{t.shape} true and {p.shape} predicted yields; give two lists of the same length, at least 2"
        )
    return {"r2": r2(t, p), "pearson2": squared_pearson(t, p), "mae": float(np.abs(t - p).mean()),
            "rmse": float(np.sqrt(((t - p) ** 2).mean())), "predicted_std": float(p.std())}  # fmt: skip
