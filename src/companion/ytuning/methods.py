"""The methods of the tables by name: what each reads, how it is made, what it minimises."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from companion.tables import nearest
from companion.ytuning import baselines
from companion.ytuning.data import Split
from companion.ytuning.features import Features, check_tokenizer, extract
from companion.ytuning.frozen import FrozenEncoder
from companion.ytuning.model import YTuning, YTuningConfig
from companion.ytuning.protocol import Labelled, TokenSource

METHODS = ("y-tuning", *baselines.HEADS, *baselines.TUNED)


def check(method: str) -> str:
    """`method`. Raises ValueError for an unknown one."""
    if method not in METHODS:
        raise ValueError(f"method {method!r} does not exist; did you mean {nearest(method, METHODS)}?")
    return method


def inputs(method: str, encoder: FrozenEncoder, split: Split, apart: bool = False, folder: Path | None = None,
           cache_gb: float = 0.0) -> Labelled:  # fmt: skip
    """What `method` reads of a split: cached features, or tokens for the methods that run the model.

    With `cache_gb`, features go into pieces of the cache, and are not stored at all where they would take more.
    """
    if check(method) in baselines.TUNED:
        check_tokenizer(encoder)
        tokens = encoder.tokenize(split.texts, split.pairs)
        source = TokenSource(encoder, tokens)
        if tokens.truncated:
            warnings.warn(f"{tokens.truncated} of {len(split)} texts were longer than {encoder.max_length} tokens and were cut",
                          stacklevel=2)  # fmt: skip
    elif cache_gb:
        from companion.ytuning import streaming

        source = streaming.source(encoder, split.texts, split.pairs, apart=apart and split.pairs is not None,
                                  most_bytes=cache_gb * 1e9, folder=folder)  # fmt: skip
    else:
        source = extract(
            encoder, split.texts, split.pairs, apart=apart and split.pairs is not None, folder=folder
        )
    return Labelled(source, torch.tensor(split.target))


def make(method: str, encoder: FrozenEncoder, labels: tuple[str, ...], p: Mapping[str, Any],
         apart: bool = False) -> nn.Module:  # fmt: skip
    """A new model of `method` for these labels.

    `p` may hold `width`, `heads`, `feed_forward` of the decoder (the attention pool has the same sizes) and the
    options of `YTuningConfig`. `apart`: the inputs are pairs whose texts were encoded separately.
    """
    count, segments, P = len(labels), 2 if apart else 0, encoder.width
    width = int(p.get("width", 0)) or encoder.base_width
    heads = int(p.get("heads", 0)) or (encoder.heads if width == encoder.base_width else max(1, width // 64))
    feed_forward = int(p.get("feed_forward", 0)) or 4 * width
    if check(method) == "y-tuning":
        names = (
            "layers",
            "score",
            "loss",
            "margin",
            "per_label",
            "self_attention",
            "task_embedding",
            "dropout",
            "label_init",
        )
        options = {name: p[name] for name in names if name in p}
        model = YTuning(YTuningConfig({"task": labels}, encoder.base_width, width, heads, feed_forward,
                                      segments=segments, mix=len(encoder.layers), **options))  # fmt: skip
        if model.config.label_init == "names":
            model.name_labels("task", name_vectors(encoder, labels))
        return model
    if method == "attention-pool":
        return baselines.AttentionPool(P, count, width, heads, feed_forward, p.get("dropout", 0.1), segments)
    if method == "label-tuning":
        return baselines.LabelTuning(P, count)
    if method == "ladder":
        return baselines.Ladder(encoder.base_width, len(encoder.layers), count, segments=segments)
    if method in baselines.HEADS:
        return baselines.LinearProbe(P, count, method.removeprefix("linear-"), apart)
    return baselines.Tuned(encoder, count, method)


def readout(model: baselines.Tuned, source: TokenSource, batch_size: int = 64) -> tuple[nn.Module, Features]:
    """A tuned model cut after its last layer: the head, and what it reads of `source`'s texts as features.

    Head and features give the model's own scores, and its features can be disturbed like frozen ones.
    """
    was = model.training
    model.eval()
    device, order = next(model.parameters()).device, source.lengths().argsort(stable=True)
    own: list[torch.Tensor] = [torch.empty(0)] * len(source)
    with torch.no_grad():
        for index in order.split(batch_size):
            H, keep = model.states(*(x.to(device) for x in source.batch(index)))
            for k, h, kept in zip(index.tolist(), H, keep, strict=True):
                own[k] = h[kept].float().cpu()
    model.train(was)
    starts = torch.tensor([0, *map(len, own)]).cumsum(0)
    segments = torch.zeros(int(starts[-1]), dtype=torch.uint8)
    return baselines.MeanHead(model.out), Features(torch.cat(own), starts, segments, torch.arange(len(own)))


def loss(model: nn.Module, scores: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Y-Tuning's own loss, cross-entropy for everything else."""
    return model.loss(scores, target) if isinstance(model, YTuning) else F.cross_entropy(scores, target)


def name_vectors(encoder: FrozenEncoder, labels: tuple[str, ...]) -> torch.Tensor:
    """What the frozen model makes of the labels' names, averaged over tokens: [C, P]."""
    tokens = encoder.tokenize([label.replace("_", " ") for label in labels])
    ids, pad, types = encoder.pad(tokens, range(len(labels)))
    return baselines.mean_pool(encoder(ids, pad, types), ~pad)[:, -encoder.base_width :].float().cpu()


def layers_for(method: str, depth: int, mixed: bool = False) -> tuple[int, ...]:
    """The hidden states that `method` reads: all for the ladder (and for heads that mix them), else the last."""
    return tuple(range(depth + 1)) if method == "ladder" or mixed else (-1,)
