"""One protocol for every method: same splits, same early stopping, same number of learning rates tried.

A *source* gives padded model inputs for example numbers: `Features` for heads on the frozen model, `TokenSource`
for methods that run the model. Models are called as `model(*source.batch(index))` and give scores [B, C].
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from companion import training
from companion.ytuning.frozen import FrozenEncoder, Tokens


class Source(Protocol):
    """Model inputs by example number."""

    def __len__(self) -> int: ...
    def batch(self, index: Sequence[int] | torch.Tensor) -> tuple[torch.Tensor, ...]: ...
    def lengths(self) -> torch.Tensor: ...


@dataclass(frozen=True)
class TokenSource:
    """Token ids for methods that run the encoder: batches of ids, pad, types, each [B, M]."""

    encoder: FrozenEncoder
    tokens: Tokens

    def __len__(self) -> int:
        return len(self.tokens.ids)

    def batch(self, index: Sequence[int] | torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.encoder.pad(self.tokens, [int(k) for k in index])

    def lengths(self) -> torch.Tensor:
        return torch.tensor(self.tokens.lengths())


@dataclass(frozen=True)
class Labelled:
    """A source and the label numbers of its examples [n]."""

    source: Source
    target: torch.Tensor

    def __post_init__(self) -> None:
        if len(self.source) != len(self.target):
            raise ValueError(f"{len(self.source)} inputs come with {len(self.target)} labels")

    def batch(self, index: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        return self.source.batch(index), self.target[index]


@dataclass(frozen=True)
class Budget:
    """What each method may spend: epochs per trial, and one trial per learning rate."""

    rates: tuple[float, ...]
    epochs: int = 10
    batch_size: int = 32
    warmup: float = 0.06  # share of the steps; GLUE's custom, like the weight decay
    weight_decay: float = 0.01
    schedule: str = "linear"
    precision: str = "no"  # no, bf16 or fp16: of the trained part
    pool: int = 1  # this many batches are shuffled, sorted by length and cut anew; 1 leaves them as they are

    def __post_init__(self) -> None:
        if not self.rates or min(self.rates) <= 0:
            raise ValueError(f"rates are {self.rates}; give at least one learning rate above 0")
        if self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}; it starts at 1")
        if self.pool < 1:
            raise ValueError(f"pool is {self.pool}; it counts batches and starts at 1")


@dataclass
class Outcome:
    """The best epoch of the best trial: its model, validation score, curves, and the cost of all trials."""

    model: nn.Module
    valid: float
    rate: float
    epoch: int
    curves: dict[str, list[list[float]]]
    seconds: float  # processor seconds of training, all trials
    examples: int
    trials: dict[str, float] = field(default_factory=dict)


def grouped(lengths: torch.Tensor, batch_size: int, seed: int, pool: int) -> Callable[[int], torch.Tensor]:
    """`index(k)` -> the k-th batch of example numbers, of texts of similar length, so that little is padded.

    `training.epochs` shuffles; every `pool` batches in its order are sorted by length and cut anew, and the
    epoch's batches are shuffled. Each epoch has the examples that `training.epochs` gives it, once.
    """
    plain = training.epochs(len(lengths), batch_size, seed)
    per_epoch = len(lengths) // batch_size

    @lru_cache(2)
    def epoch(number: int) -> list[torch.Tensor]:
        order = torch.cat([plain(number * per_epoch + k) for k in range(per_epoch)])
        # a stable sort: texts of equal length keep their shuffled order
        parts = [part[lengths[part].argsort(stable=True)] for part in order.split(pool * batch_size)]
        batches = torch.cat(parts).split(batch_size)
        turn = torch.randperm(per_epoch, generator=training.generator(seed, "batches", number))
        return [batches[k] for k in turn]

    return lambda k: epoch(k // per_epoch)[k % per_epoch]


@torch.no_grad()
def predict(model: nn.Module, source: Source, batch_size: int = 128) -> torch.Tensor:
    """Scores [n, C] of all examples, computed in order of length, returned in their own order."""
    was = model.training
    model.eval()
    device = next(model.parameters()).device
    order = source.lengths().argsort(stable=True)
    parts = [
        model(*(x.to(device) for x in source.batch(index))).float().cpu() for index in order.split(batch_size)
    ]
    model.train(was)
    return torch.cat(parts)[order.argsort(stable=True)]


def tune(make: Callable[[], nn.Module], loss: Callable[[nn.Module, torch.Tensor, torch.Tensor], torch.Tensor],
         train: Labelled, valid: Labelled, metric: Callable[[torch.Tensor, torch.Tensor], float], budget: Budget,
         seed: int, folder: Path | str | None = None, title: str = "tuning") -> Outcome:  # fmt: skip
    """Train a fresh `make()` per learning rate; keep the epoch with the best `metric` on `valid`.

    Args:
        make: a new model; called after seeding, so equal seeds start equal.
        loss: `loss(model, scores, target)`.
        metric: `metric(predicted labels, target)`; higher is better.
        folder: finished trials found here are loaded instead of trained.
    """
    best: Outcome | None = None
    trials, seconds, examples = {}, 0.0, 0
    for rate in budget.rates:
        one = _trial(make, loss, train, valid, metric, budget, rate, seed,
                     Path(folder) / f"rate-{rate:g}" if folder else None, title)  # fmt: skip
        trials[f"{rate:g}"] = one.valid
        seconds, examples = seconds + one.seconds, examples + one.examples
        if best is None or one.valid > best.valid:
            best = one
    best.trials, best.seconds, best.examples = trials, seconds, examples
    return best


def _trial(make, loss, train, valid, metric, budget, rate, seed, folder, title) -> Outcome:
    torch.manual_seed(seed)
    model = make()
    batch_size = min(budget.batch_size, len(train.target))
    per_epoch = len(train.target) // batch_size
    index = (
        grouped(train.source.lengths(), batch_size, seed, budget.pool)
        if budget.pool > 1
        else training.epochs(len(train.target), batch_size, seed)
    )
    steps = budget.epochs * per_epoch
    config = training.FitConfig(steps=steps, lr=rate, warmup=max(1, round(budget.warmup * steps)),
                                schedule=budget.schedule, weight_decay=budget.weight_decay,
                                precision=budget.precision,
                                evaluate_every=per_epoch)  # fmt: skip
    best: dict[str, Any] = {"valid": -float("inf")}
    kept = folder / "best.safetensors" if folder else None
    clock = [0.0]
    # only what is trained is kept; the rest is the frozen model
    names = {name for name, p in model.named_parameters() if p.requires_grad}

    def evaluate(now: nn.Module) -> dict[str, float]:
        began = time.process_time()
        score = metric(predict(now, valid.source).argmax(1), valid.target)
        if score > best["valid"]:
            best.update(
                valid=score, state={k: v.detach().clone() for k, v in now.state_dict().items() if k in names}
            )
            if kept:
                kept.parent.mkdir(parents=True, exist_ok=True)
                save_file({k: v.cpu().contiguous() for k, v in best["state"].items()}, kept)
        clock[0] += time.process_time() - began
        return {"valid": score}

    def step_loss(now: nn.Module, batch) -> torch.Tensor:
        inputs, target = batch
        return loss(now, now(*inputs), target)

    began = time.process_time()
    done = training.fit(model, step_loss, lambda k: train.batch(index(k)), config, evaluate=evaluate,
                        folder=folder / "fit" if folder else None, title=title)  # fmt: skip
    spent = time.process_time() - began - clock[0]
    cost = _Cost(folder, spent, done.step)
    curve = done.curves["valid"]
    top = max(curve, key=lambda point: point[1])
    if best["valid"] < top[1]:
        best.update(valid=top[1], state=load_file(kept))  # a finished trial from the cache
    model.load_state_dict(best["state"], strict=False)
    model.eval()
    return Outcome(model, top[1], rate, round(top[0] / per_epoch), done.curves, cost.seconds, done.examples)


class _Cost:
    """Processor seconds of a trial, kept beside it so that a trial from the cache still tells its cost."""

    def __init__(self, folder: Path | None, spent: float, steps: int) -> None:
        self.seconds = spent
        if folder is None:
            return
        note = folder / "seconds.txt"
        if note.is_file():
            self.seconds = float(note.read_text())
        else:
            note.write_text(f"{spent:.3f}")
