"""DomainBed's protocol as GESTUR's code base runs it: splits, batches, checkpoints, model selection, reporting.

Per domain a seeded shuffle; the first 20 % are `out`, the rest `in`. Train on the `in` part of the sources with one
batch per source domain, drawn with replacement. After steps 0, F, 2F, ... evaluate the predicting network on every
part. Training-domain validation keeps the first evaluation with the highest mean source `out` accuracy; what is
reported is the accuracy on the target's `in` part there.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from companion.gestur.baselines import Swad
from companion.gestur.model import Erm
from companion.training import generator


def seed_hash(*key: Any) -> int:
    """A seed from anything that prints: md5 of the tuple's text, modulo 2^31."""
    return int(hashlib.md5(str(key).encode()).hexdigest(), 16) % 2**31


def split(n: int, trial: int, number: int, holdout: float = 0.2) -> tuple[np.ndarray, np.ndarray]:
    """(in, out) indices of the domain with this `number` (in sorted order) and `n` images, for this trial."""
    keys = list(range(n))
    np.random.RandomState(seed_hash(trial, number)).shuffle(keys)
    at = int(n * holdout)
    return np.array(keys[at:]), np.array(keys[:at])


class Domain:
    """Images of one domain in memory. `get(index, augment)` -> x [n, 3, H, W]; `labels`: [N].

    Args:
        images: [N, 3, H, W] in [0, 1] (or uint8).
        labels: [N].
        shift: training images are moved by up to this many pixels.
        flip: training images are mirrored half of the time.
    """

    def __init__(self, name: str, images: Tensor, labels: Tensor, *, shift: int = 0, flip: bool = False,
                 mean: float = 0.5, std: float = 0.25) -> None:  # fmt: skip
        if len(images) != len(labels):
            raise ValueError(f"domain {name}: {len(images)} images but {len(labels)} labels")
        self.name, self.images, self.labels = name, images, labels
        self.shift, self.flip, self.mean, self.std = shift, flip, mean, std

    def __len__(self) -> int:
        return len(self.labels)

    def get(self, index: Tensor, augment: torch.Generator | None = None) -> Tensor:
        x = self.images[index]
        x = (x.float() / 255 if x.dtype == torch.uint8 else x).sub(self.mean).div(self.std)
        if augment is None:
            return x
        if self.shift:
            size, s = x.shape[-1], self.shift
            padded = F.pad(x, (s, s, s, s), mode="replicate")
            at = torch.randint(0, 2 * s + 1, (2, len(x)), generator=augment)
            span = torch.arange(size)
            rows, cols = at[0][:, None] + span, at[1][:, None] + span
            x = padded[torch.arange(len(x))[:, None, None], :, rows[:, :, None], cols[:, None, :]].permute(
                0, 3, 1, 2
            )
        if self.flip:
            x = torch.where(torch.rand(len(x), 1, 1, 1, generator=augment) < 0.5, x.flip(-1), x)
        return x


def check_domains(domains: Sequence[Any], classes: int | None = None) -> int:
    """Number of classes; raises ValueError when a domain lacks a class or there are fewer than two domains."""
    if len(domains) < 2:
        raise ValueError(f"domain generalisation needs sources and a target; got {len(domains)} domain")
    known = classes or int(max(int(d.labels.max()) for d in domains)) + 1
    for d in domains:
        if missing := sorted(set(range(known)) - set(d.labels.unique().tolist())):
            raise ValueError(
                f"domain {d.name} has no image of class {missing[0]} of 0 to {known - 1}; all domains share one label set"
            )
    return known


@dataclass(frozen=True)
class ProtocolConfig:
    """Numbers of the protocol; defaults are DomainBed's for PACS, VLCS, OfficeHome and TerraIncognita."""

    steps: int = 5001  # 15001 on DomainNet in the fork, 5001 in DomainBed
    every: int = 200  # F: 300 in DomainBed, 1000 on DomainNet
    batch: int = 32  # per source domain
    holdout: float = 0.2
    trial: int = 0  # seeds the split
    seed: int = 0  # seeds batches and augmentation
    swad: tuple[int, int, float] | None = None  # (converge, tolerate, ratio) also averages densely


@dataclass
class Trial:
    """One training: what was evaluated when. `log[k]`: step, accuracy of every part as `<domain>/in`, `<domain>/out`."""

    target: tuple[str, ...]
    sources: tuple[str, ...]
    log: list[dict[str, float]] = field(default_factory=list)
    swad: dict[str, float] | None = None  # the same accuracies of the dense average

    def validation(self, k: int) -> float:
        """Mean source `out` accuracy at evaluation k."""
        return fmean(self.log[k][f"{name}/out"] for name in self.sources)

    def chosen(self, rule: str = "training-domain") -> int:
        """Index of the evaluation that `rule` keeps.

        `training-domain`: first maximum of the mean source `out` accuracy; `last`: the last step, which is also what
        DomainBed's oracle looks at (its oracle compares runs, not steps).
        """
        if rule == "training-domain":
            values = [self.validation(k) for k in range(len(self.log))]
            return values.index(max(values))
        if rule in ("last", "oracle"):
            return len(self.log) - 1
        raise ValueError(f"selection rule {rule!r} does not exist; choose training-domain, oracle, last")

    def result(self, rule: str = "training-domain") -> dict[str, float]:
        """Step, source `val`idation and target accuracies (`test`: `in` part, `oracle`: `out` part), all in %."""
        if rule == "training-domain" and self.swad is not None:
            entry, val = self.swad, fmean(self.swad[f"{name}/out"] for name in self.sources)
        else:
            k = self.chosen(rule)
            entry, val = self.log[k], self.validation(k)
        test = fmean(entry[f"{name}/in"] for name in self.target)
        oracle = fmean(entry[f"{name}/out"] for name in self.target)
        return {"step": entry["step"], "val": 100 * val, "test": 100 * test, "oracle": 100 * oracle}


@torch.no_grad()
def scores(
    model: nn.Module, domain: Any, index: Any, batch: int = 512, device: Any = "cpu"
) -> tuple[float, float]:
    """(accuracy, mean cross-entropy) of `model` on part `index` of a domain, without augmentation."""
    model.eval()
    right = loss = 0.0
    index = torch.as_tensor(index)
    for part in index.split(batch):
        out = model(domain.get(part).to(device)).cpu()
        right += float((out.argmax(1) == domain.labels[part]).sum())
        loss += float(F.cross_entropy(out, domain.labels[part], reduction="sum"))
    return right / len(index), loss / len(index)


def train(algorithm: Erm, domains: Sequence[Any], targets: Sequence[int], config: ProtocolConfig, *,
          watch: Callable[[int, Erm], None] | None = None, device: Any = "cpu") -> Trial:  # fmt: skip
    """Train on all domains but `targets` (numbers in sorted order) and evaluate on all.

    Args:
        watch: called as `watch(step, algorithm)` before every update (for analyses).

    Raises:
        ValueError: for fewer than two source domains, a missing class, or a target that does not exist.
    """
    check_domains(domains)
    if bad := [t for t in targets if not 0 <= t < len(domains)]:
        raise ValueError(f"target {bad[0]} does not exist; domains are numbered 0 to {len(domains) - 1}")
    sources = [k for k in range(len(domains)) if k not in targets]
    if len(sources) < 2:
        raise ValueError(
            f"{len(sources)} source domain is left; domain generalisation trains on at least two"
        )
    parts = [split(len(d), config.trial, k, config.holdout) for k, d in enumerate(domains)]
    trial = Trial(tuple(domains[t].name for t in targets), tuple(domains[s].name for s in sources))
    average = Swad(*config.swad) if config.swad else None
    for step in range(config.steps):
        batches = []
        for s in sources:
            g = generator(config.seed, "batch", s, step)
            inside = torch.as_tensor(parts[s][0])
            index = inside[torch.randint(0, len(inside), (config.batch,), generator=g)]
            batches.append((domains[s].get(index, g).to(device), domains[s].labels[index].to(device)))
        if watch:
            watch(step, algorithm)
        algorithm.update(batches)
        if average:
            average.follow(algorithm)
        if step % config.every == 0 or step == config.steps - 1:
            entry, losses = evaluate(algorithm.predictor, domains, parts, sources, device)
            trial.log.append({"step": step, **entry})
            if average:
                average.evaluated(losses)
    if average:
        entry, _ = evaluate(average.model().to(device), domains, parts, sources, device)
        trial.swad = {"step": config.steps - 1, **entry}
    return trial


def evaluate(model: nn.Module, domains: Sequence[Any], parts: Sequence[Any], sources: Sequence[int],
             device: Any = "cpu") -> tuple[dict[str, float], float]:  # fmt: skip
    """Accuracy of every domain's `in` and `out` part (a source's `in` part is left out: nothing reads it), and the
    mean `out` loss of the sources."""
    entry, losses = {}, []
    for k, domain in enumerate(domains):
        for name, part in zip(("in", "out"), parts[k], strict=True):
            if name == "in" and k in sources:
                continue
            entry[f"{domain.name}/{name}"], loss = scores(model, domain, part, device=device)
            if name == "out" and k in sources:
                losses.append(loss)
    return entry, fmean(losses)


# --- from trials to a table ---------------------------------------------------------------------------


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard error over trials as DomainBed prints them: deviation with n in the denominator, over √n."""
    values = list(values)
    if not values:
        raise ValueError("no trial to average")
    return fmean(values), pstdev(values) / math.sqrt(len(values))


def choose(runs: Mapping[str, Sequence[Trial]], rule: str, target: str) -> str:
    """The hyper-parameters (a key of `runs`) that a selection rule picks for `target`; the first of equals.

    `training-domain`: highest source validation among the runs that only leave `target` out. `oracle`: highest target
    `out` accuracy at the last step (looks at the test domain). `leave-one-domain-out`: highest mean accuracy on
    domains left out together with `target`; needs the runs with two targets.
    """
    best, kept = -math.inf, None
    for name, trials in runs.items():
        alone = [t for t in trials if t.target == (target,)]
        pairs = [t for t in trials if len(t.target) == 2 and target in t.target]
        if rule == "training-domain":
            values = [t.result("training-domain")["val"] for t in alone]
        elif rule == "oracle":
            values = [t.result("oracle")["oracle"] for t in alone]
        elif rule == "leave-one-domain-out":
            values = [100 * t.log[-1][f"{other}/in"] for t in pairs for other in t.target if other != target]
        else:
            raise ValueError(
                f"selection rule {rule!r} does not exist; choose training-domain, oracle, leave-one-domain-out"
            )
        if not values:
            raise ValueError(f"{name}: no run leaves out {target}"
                             + (" together with another domain" if rule == "leave-one-domain-out" else ""))  # fmt: skip
        if fmean(values) > best:
            best, kept = fmean(values), name
    return kept


def report(trials: Sequence[Trial], rule: str = "training-domain") -> dict[str, tuple[float, float]]:
    """Mean and standard error over trials per target domain, and of the mean over targets (key `mean`)."""
    by_target: dict[str, list[float]] = {}
    for trial in trials:
        by_target.setdefault("+".join(trial.target), []).append(trial.result(rule)["test"])
    counts = {len(v) for v in by_target.values()}
    if len(counts) != 1:
        raise ValueError(
            f"targets have different numbers of trials: { {k: len(v) for k, v in by_target.items()} }"
        )
    found = {name: mean_and_error(values) for name, values in by_target.items()}
    return found | {"mean": mean_and_error([fmean(v) for v in zip(*by_target.values(), strict=True)])}
