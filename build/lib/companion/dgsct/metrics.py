"""The tasks' metrics exactly as published, and what is wrong with two of them.

- AVE: accuracy over all segments.
- AVVP: F1 per video on segments or events, averaged over videos; classes absent from prediction and truth are left out.
- AVS: mean IoU (M_J) and the best F over 255 thresholds (M_F), which depends on the batch it is computed in.
- MUSIC-AVQA: accuracy per question type.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

KINDS = ("Audio", "Visual", "Audio-Visual")


def ave_predict(event: Tensor, category: Tensor, background: int = 28) -> Tensor:
    """Segment labels `[B, T]`: the video's best class where sigmoid(event `[B, T]`) > 0.5, else background."""
    return torch.where(event.sigmoid() > 0.5, category.argmax(-1)[:, None], background)


def accuracy(predicted: Tensor, truth: Tensor) -> float:
    """Share of equal entries in percent."""
    return 100 * float((predicted == truth).double().mean())


# --- AVVP --------------------------------------------------------------------------------------------


def events(active: np.ndarray) -> list[tuple[int, int]]:
    """Runs of ones `[T]` as half-open (start, stop) pairs.

    >>> events(np.array([0, 1, 1, 0, 1]))
    [(1, 3), (4, 5)]
    """
    edges = np.diff(np.concatenate([[0], (np.asarray(active) > 0).astype(int), [0]]))
    return list(zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True))


def _counts(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Per class (true positives, false positives, false negatives) of segments, `[C, 3]`."""
    p, t = predicted > 0, truth > 0
    return np.stack([(p & t).sum(1), (p & ~t).sum(1), (~p & t).sum(1)], 1)


def _event_counts(predicted: np.ndarray, truth: np.ndarray, overlap: float = 0.5) -> np.ndarray:
    """The same of events: a predicted event is right where some true event of its class has IoU >= `overlap`."""
    out = []
    for p, t in zip(predicted, truth, strict=True):
        found, true, matched, right = events(p), events(t), set(), 0
        for a, b in found:
            for k, (c, d) in enumerate(true):
                both = min(b, d) - max(a, c)
                if k not in matched and both > 0 and both / (max(b, d) - min(a, c)) >= overlap:
                    matched.add(k)
                    right += 1
                    break
        out.append((right, len(found) - right, len(true) - right))
    return np.array(out)


def _f1(counts: np.ndarray) -> np.ndarray:
    tp, fp, fn = counts[..., 0], counts[..., 1], counts[..., 2]
    return 2 * tp / np.maximum(2 * tp + fp + fn, 1e-12)


def video_f1(counts: np.ndarray) -> float:
    """F1 of one video: mean over classes in prediction or truth, 1 where there is none. `counts [C, 3]`."""
    present = counts.sum(1) > 0
    return float(_f1(counts[present]).mean()) if present.any() else 1.0


def avvp_scores(predicted: Sequence[tuple[np.ndarray, np.ndarray]],
                truth: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:  # fmt: skip
    """All ten LLP numbers in percent from (audio, visual) pairs of binary `[25, T]` arrays per video."""
    if len(predicted) != len(truth):
        raise ValueError(f"{len(predicted)} predictions for {len(truth)} videos")
    out: dict[str, float] = {}
    for level, count in (("segment", _counts), ("event", _event_counts)):
        scores: dict[str, list[float]] = {"A": [], "V": [], "AV": [], "Event": []}
        for (pa, pv), (ta, tv) in zip(predicted, truth, strict=True):
            audio, visual = count(pa, ta), count(pv, tv)
            scores["A"].append(video_f1(audio))
            scores["V"].append(video_f1(visual))
            scores["AV"].append(video_f1(count(pa * pv, ta * tv)))
            scores["Event"].append(video_f1(audio + visual))
        out |= {f"{level}-{k}": 100 * float(np.mean(v)) for k, v in scores.items()}
        out[f"{level}-Type"] = (out[f"{level}-A"] + out[f"{level}-V"] + out[f"{level}-AV"]) / 3
    return out


# --- AVS ---------------------------------------------------------------------------------------------


def mean_iou(logits: Tensor, truth: Tensor) -> float:
    """M_J in percent: IoU of sigmoid(logits) > 0.5 `[N, H, W]`; for an empty truth, IoU of the background."""
    p, t = logits > 0, truth > 0.5
    empty = ~t.flatten(1).any(1)
    p, t = torch.where(empty[:, None, None], ~p, p), torch.where(empty[:, None, None], ~t, t)
    both, either = (p & t).flatten(1).sum(1), (p | t).flatten(1).sum(1)
    return 100 * float((both / either.clamp_min(1)).double().mean())


def best_f(logits: Tensor, truth: Tensor, beta2: float = 0.3, thresholds: int = 255) -> float:
    """M_F of one batch in percent: images with an empty truth are left out; best of `thresholds`.

    The maximum is taken after averaging over the batch, so the published number depends on the batch size.
    """
    keep = truth.flatten(1).any(1)
    p, t = logits[keep].sigmoid().flatten(1), truth[keep].flatten(1) > 0.5
    if not len(p):
        return 0.0
    best = 0.0
    for at in torch.linspace(0, 1 - 1e-10, thresholds):
        on = p >= at
        right = (on & t).sum(1)
        precision, recall = right / (on.sum(1) + 1e-20), right / (t.sum(1) + 1e-20)
        f = (1 + beta2) * precision * recall / (beta2 * precision + recall)
        best = max(best, float(f.nan_to_num(0).mean()))
    return 100 * best


# --- MUSIC-AVQA --------------------------------------------------------------------------------------


def avqa_scores(kinds: Iterable[tuple[str, str]], right: Iterable[bool]) -> dict[str, float]:
    """Accuracy in percent overall ("Avg"), per modality ("Audio", ...) and per type ("Audio Counting", ...)."""
    groups: dict[str, list[bool]] = {}
    for (modality, kind), ok in zip(kinds, right, strict=True):
        if modality not in KINDS:
            raise ValueError(f"question modality {modality!r} is not one of {', '.join(KINDS)}")
        for name in ("Avg", modality, f"{modality} {kind}"):
            groups.setdefault(name, []).append(bool(ok))
    return {name: 100 * float(np.mean(values)) for name, values in groups.items()}
