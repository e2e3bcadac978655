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
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from companion.gestur.baselines import Swad
from companion.gestur.model import Erm
from companion.training import generator, load_checkpoint, save_checkpoint


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

    def __post_init__(self) -> None:
        for name in ("steps", "every", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; a training needs 1 or more")
        if not 0 < self.holdout < 1:
            raise ValueError(f"holdout is {self.holdout}; it is a share between 0 and 1")


RULES = {
    "training-domain": "the evaluation with the highest mean accuracy on held-out images of the sources",
    "oracle": "the last evaluation; between runs, the highest accuracy on held-out images of the target",
    "leave-one-domain-out": "the run and step with the highest mean accuracy on sources left out with the target",
}


@dataclass
class Trial:
    """One training: what was evaluated when. `log[k]`: step, accuracy of every part as `<domain>/in`, `<domain>/out`."""

    target: tuple[str, ...]
    sources: tuple[str, ...]
    log: list[dict[str, float]] = field(default_factory=list)
    swad: dict[str, float] | None = None  # the same accuracies of the dense average

    def __post_init__(self) -> None:
        self.target, self.sources = tuple(self.target), tuple(self.sources)

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
        """Step, source `val`idation and target accuracies (`test`: `in` part, `out`: `out` part), all in %.

        `rule` "swad" is the dense average, which needs no choice of a step. Raises ValueError where there is none.
        """
        if rule == "swad":
            if self.swad is None:
                raise ValueError("this training was not averaged densely; set `swad` in its ProtocolConfig")
            entry, val = self.swad, fmean(self.swad[f"{name}/out"] for name in self.sources)
        else:
            k = self.chosen(rule)
            entry, val = self.log[k], self.validation(k)
        test = fmean(entry[f"{name}/in"] for name in self.target)
        out = fmean(entry[f"{name}/out"] for name in self.target)
        return {"step": entry["step"], "val": 100 * val, "test": 100 * test, "out": 100 * out}


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


def target_numbers(targets: Sequence[int | str] | int | str, domains: Sequence[Any]) -> list[int]:
    """The numbers of the target domains, given by number or name, one or several.

    Raises ValueError for none, one that does not exist or one that is there twice.
    """
    given = [targets] if np.ndim(targets) == 0 else list(targets)
    names = [d.name for d in domains]
    if not given:
        raise ValueError(f"no target domain is given; leave out at least one of {', '.join(names)}")
    found = [names.index(t) if t in names else t for t in given]
    for t in found:
        if not isinstance(t, (int, np.integer)):
            raise ValueError(f"target {t!r} is not a domain; choose {', '.join(names)}, or their numbers")
        if not 0 <= t < len(domains):
            raise ValueError(f"target {t} does not exist; domains are numbered 0 to {len(domains) - 1}")
        if found.count(t) > 1:
            raise ValueError(f"target {names[t]} is there twice; name every target once")
    return found


def train(algorithm: Erm, domains: Sequence[Any], targets: Sequence[int | str] | int | str, config: ProtocolConfig, *,
          watch: Callable[[int, Erm], None] | None = None, device: Any = "cpu", folder: Path | str | None = None,
          stop_after: int | None = None) -> Trial:  # fmt: skip
    """Train on all domains but `targets` and evaluate on all.

    Args:
        targets: numbers (in sorted order) or names of the domains that are left out; a single one needs no list.
        watch: called as `watch(step, algorithm)` before every update (for analyses).
        folder: a checkpoint is kept there after every evaluation; called again, the training goes on from it and
            ends with the same numbers (on one device). A new training seeds torch's global random state.
        stop_after: leave after this many evaluations in this call.

    Raises:
        ValueError: for fewer than two source domains, a missing class, no target or one that does not exist, or a
            domain too small for a part.
    """
    check_domains(domains)
    targets = target_numbers(targets, domains)
    sources = [k for k in range(len(domains)) if k not in targets]
    if len(sources) < 2:
        raise ValueError(
            f"{len(sources)} source domain is left; domain generalisation trains on at least two"
        )
    parts = [split(len(d), config.trial, k, config.holdout) for k, d in enumerate(domains)]
    for d, (_, out) in zip(domains, parts, strict=True):
        if not len(out):
            raise ValueError(f"domain {d.name} has {len(d)} images, of which a holdout of {config.holdout:g} keeps none for "
                             f"validation; at least {math.ceil(1 / config.holdout)} are needed")  # fmt: skip
    trial = Trial(tuple(domains[t].name for t in targets), tuple(domains[s].name for s in sources))
    average = Swad(*config.swad) if config.swad else None
    began = 0
    if folder and (state := load_checkpoint(Path(folder))):
        algorithm.load_state_dict(state["algorithm"])
        began, trial.log = state["step"] + 1, state["log"]
        if average:
            average.restore(state["swad"], algorithm.predictor)
    else:
        # what a method draws itself (mixtures, dropout) hangs on this training's seed, not on what ran before it
        torch.manual_seed(generator(config.seed, "method").initial_seed())
    left = stop_after
    progress = tqdm(range(began, config.steps), desc=f"without {'+'.join(trial.target)}", unit="step",
                    initial=began, total=config.steps, mininterval=5, disable=config.steps < 1000)  # fmt: skip
    for step in progress:
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
            if folder:
                save_checkpoint(Path(folder), step, {"step": step, "log": trial.log, "algorithm": algorithm.state_dict(),
                                                     "swad": average.state() if average else {}})  # fmt: skip
            left = left - 1 if left else left
            if left == 0:
                return trial
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


@dataclass(frozen=True)
class Choice:
    """What a selection rule keeps: the run's name, per target the step, what the rule saw (`val`) and `test`, in %."""

    name: str
    steps: tuple[int, ...]
    val: float
    test: float


def select(runs: Mapping[str, Sequence[Trial]], rule: str = "training-domain", target: str = "") -> Choice:
    """The hyper-parameters (a key of `runs`) and the step that a rule picks within one trial seed.

    Args:
        runs: per setting of the hyper-parameters its trainings; those that leave two domains out serve
            leave-one-domain-out only.
        rule: a key of `RULES`. Leave-one-domain-out compares steps, too, and needs for every source the training
            that leaves it out together with the target.
        target: DomainBed chooses for every target anew. Without one, a single setting is chosen for all targets
            by the mean over them, as the code base of GESTUR does.

    Of equal steps the first counts, of equal runs the last (DomainBed sorts and takes the end).
    Raises ValueError for an unknown rule, or where trainings are missing or doubled.
    """
    if rule not in RULES:
        raise ValueError(f"selection rule {rule!r} does not exist; choose {', '.join(RULES)}")
    best: Choice | None = None
    for name, trials in runs.items():
        targets = [target] if target else sorted({t.target[0] for t in trials if len(t.target) == 1})
        found = [_seen(name, trials, rule, one) for one in targets]
        if not found:
            raise ValueError(f"{name}: no run leaves out one domain")
        choice = Choice(
            name, tuple(f[0] for f in found), fmean(f[1] for f in found), fmean(f[2] for f in found)
        )
        if best is None or choice.val >= best.val:
            best = choice
    if best is None:
        raise ValueError("there is no run to choose from")
    return best


def _seen(name: str, trials: Sequence[Trial], rule: str, target: str) -> tuple[int, float, float]:
    """(step, what the rule sees, test accuracy) of one setting for one target."""
    alone = [t for t in trials if t.target == (target,)]
    if len(alone) != 1:
        raise ValueError(f"{name}: {len(alone)} runs leave out {target} alone; a choice is made within one trial, "
                         "from one run each")  # fmt: skip
    one = alone[0]
    if rule != "leave-one-domain-out":
        r = one.result(rule)
        return int(r["step"]), r["val"] if rule == "training-domain" else r["out"], r["test"]
    pairs = {}
    for t in trials:
        if len(t.target) == 2 and target in t.target:
            pairs[next(x for x in t.target if x != target)] = t
    if missing := sorted(set(one.sources) - set(pairs)):
        raise ValueError(f"{name}: no run leaves out {target} together with {missing[0]}")
    scores_ = [fmean(t.log[k][f"{other}/in"] for other, t in pairs.items()) for k in range(len(one.log))]
    k = scores_.index(max(scores_))
    return int(one.log[k]["step"]), 100 * scores_[k], 100 * one.log[k][f"{target}/in"]


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
