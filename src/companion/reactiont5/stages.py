"""Both pre-training stages and fine-tuning, on your own files, in one folder each.

Stage 1 (`pretrain_molecules`): SMILES in, a CompoundT5 out. Stage 2 and everything after it (`train_reactions`):
reactions in the ORD schema in, a model of products, reactants or yields out, started from stage 1, from a released
checkpoint, or from a model trained before. Folders are what `predict` and `ReactionT5.from_pretrained` read, with the
network's published layout; both trainings go on where they were stopped (their `checkpoints` may be deleted after).

Two departures: AdamW where the authors' stage 1 used Adafactor, and rows that are too long are left out and counted
instead of being cut in the middle of a molecule.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import nn

from companion import records, training
from companion.reactiont5 import leakage, train
from companion.reactiont5.beam import beam_search
from companion.reactiont5.chemistry import Report, Row, canonical, why_not
from companion.reactiont5.hub import ReactionT5
from companion.reactiont5.metrics import accuracy, yield_errors
from companion.reactiont5.model import T5, T5Config, seq2seq_loss
from companion.reactiont5.tokens import PublishedTokenizer, forward_text, train_unigram, yield_text

TASKS = ("forward", "retrosynthesis", "yield")
SIZES = {
    "base": T5Config(vocab=221),
    "small": T5Config(vocab=221, d_model=256, d_ff=512, d_kv=64, heads=4, encoder_layers=4, decoder_layers=4,
                      head_std=256**-0.5),
    "tiny": T5Config(vocab=221, d_model=64, d_ff=128, d_kv=16, heads=4, encoder_layers=2, decoder_layers=2,
                     head_std=64**-0.5),
}  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """How a stage is trained; `most_in` and `most_out` are the longest input and target in tokens."""

    epochs: int
    lr: float
    batch: int = 32
    most_in: int = 150
    most_out: int = 150
    warmup: int = 0
    weight_decay: float = 0.01
    precision: str = "no"

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch", 1), ("most_in", 2), ("most_out", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it starts at {least}")


# The authors' settings: of pre-training on ORD, and of fine-tuning on a benchmark. Few-shot runs: 20 epochs, batch 2 or 4.
MOLECULES = Plan(30, 5e-3, 30, most_in=512, warmup=2000, weight_decay=0.001)
PRETRAINING = {"forward": Plan(100, 1e-3, most_out=100), "retrosynthesis": Plan(100, 2e-4, most_in=100),
               "yield": Plan(100, 5e-4, most_in=300, weight_decay=0.05)}  # fmt: skip
FINE_TUNING = {"forward": Plan(50, 2e-5, most_in=200), "retrosynthesis": Plan(20, 2e-5),
               "yield": Plan(200, 1e-5, 16, most_in=300, weight_decay=0.05)}  # fmt: skip


# --- stage 1 ------------------------------------------------------------------------------------------


def read_molecules(path: str | Path) -> tuple[list[str], Report]:
    """Canonical SMILES of a `.smi` file (SMILES first on each line) or of a CSV's column SMILES.

    Unreadable lines (with row and reason), empty ones and duplicates are left out and counted. Raises ValueError for a
    CSV without that column.
    """
    path = Path(path)
    with open(path, newline="", encoding="utf-8-sig") as file:
        if path.suffix.lower() == ".csv":
            table = csv.DictReader(file)
            names = {name.upper(): name for name in table.fieldnames or []}
            if "SMILES" not in names:
                raise ValueError(
                    f"{path.name}: column SMILES is missing; it has {', '.join(names.values()) or 'none'}"
                )
            raw, first = [row[names["SMILES"]] or "" for row in table], 2
        else:
            raw, first = [(line.split() or [""])[0] for line in file], 1
    return canonical_molecules(raw, first)


def canonical_molecules(raw: Iterable[str], first_row: int = 1) -> tuple[list[str], Report]:
    """Distinct canonical SMILES in their order, and what became of the others."""
    report, kept = Report(), {}
    for number, text in enumerate(raw, first_row):
        report.read += 1
        form = canonical(text)
        if form is None:
            report.note(
                "unreadable" if text.strip() else "empty", f"row {number}: {text[:60]!r}, {why_not(text)}"
            )
        elif form in kept:
            report.note("duplicate", f"row {number}: {text[:60]!r}")
        else:
            kept[form] = None
    report.kept = len(kept)
    return list(kept), report


def pretrain_molecules(smiles: Sequence[str], folder: str | Path, *, size: str | T5Config = "base", plan: Plan = MOLECULES,
                       own_vocabulary: bool = False, seed: int = 0, stop_after: int | None = None) -> ReactionT5:  # fmt: skip
    """Span corruption on molecules (CompoundT5); writes a checkpoint and `report.json` into `folder`.

    Args:
        smiles: canonical SMILES; one in fifty, 500 at most, is kept for the validation loss.
        folder: of the checkpoint; a training that was stopped there goes on.
        size: base (as published), small, tiny, or a `T5Config`.
        plan: `most_in` is the length of the text that is corrupted, `batch` such texts per step.
        own_vocabulary: train the unigram pieces on all of `smiles` instead of taking the published 121, which lack
            the digits 0 and 9, "%" and several elements for good.
        stop_after: pause after so many steps.

    Raises ValueError for fewer than 50 molecules or an unknown size.
    """
    if len(smiles) < 50:
        raise ValueError(f"{len(smiles)} molecules; span corruption needs at least 50")
    order = list(smiles)
    random.Random(seed).shuffle(order)
    cut = min(500, len(order) // 50)
    held, known = order[:cut], order[cut:]
    tok = PublishedTokenizer("compound", train_unigram(known) if own_vocabulary else None)
    training.seed_everything(seed)
    model = T5(replace(_sizes(size), vocab=len(tok)))
    tokens = sum(len(tok.encode(s)) for s in known)
    steps = max(1, round(plan.epochs * tokens / (plan.batch * plan.most_in)))
    check = train.masked(held, tok, seed + 1, min(64, plan.batch), plan.most_in)(0)

    def examine(m: T5) -> dict[str, float]:
        here = m.shared.weight.device
        return {"valid_loss": float(seq2seq_loss(m, {k: v.to(here) for k, v in check.items()}))}

    fitted = training.fit(
        model, seq2seq_loss, train.masked(known, tok, seed, plan.batch, plan.most_in), _config(plan, steps),
        folder=_checkpoints(folder, plan, seed, model, known), title="molecules", evaluate=examine, stop_after=stop_after,
    )  # fmt: skip
    engine = ReactionT5(model.eval(), tok, "compound")
    _finish(engine, folder, plan, fitted, {"molecules": len(known), "held out": cut, "tokens": tokens}, seed)
    return engine


# --- stage 2, fine-tuning -----------------------------------------------------------------------------


def fresh(size: str | T5Config = "base", seed: int = 0) -> ReactionT5:
    """A stage 1 that never was: random weights and CompoundT5's tokens, to start `train_reactions` without it."""
    training.seed_everything(seed)
    return ReactionT5(T5(_sizes(size)).eval(), PublishedTokenizer("compound"), "compound")


def train_reactions(rows: Sequence[Row], folder: str | Path, *, start: ReactionT5, task: str = "", plan: Plan | None = None,
                    tests: Sequence[Row] = (), key: str = "reactants and product", examples: int = 0, seed: int = 0,
                    stop_after: int | None = None) -> tuple[ReactionT5, Report]:  # fmt: skip
    """Pre-train or fine-tune `start` on reactions; writes a checkpoint and `report.json` into `folder`.

    A tenth of the rows, 200 at most, is held out: for the exact match of greedy answers, or the errors of yields, at the
    end. The last weights are kept.

    Args:
        rows: reactions in the ORD schema, read by `ord.read_any` or `chemistry.clean`.
        start: stage 1, a released or earlier model, or `fresh(...)`. May be changed in place.
        task: forward, retrosynthesis or yield; default: that of `start`.
        plan: default: the authors' fine-tuning where `start` knows the task, else their pre-training on ORD.
        tests: reactions that will be tested on; rows with the same `key` (`leakage.KEYS`) are left out first. The
            published filter is the key "reaction", which lets the same reaction under other conditions through.
        examples: use only so many rows (0: all), drawn with `seed`: the few-shot setting.

    Returns:
        (the model, what became of the rows).

    Raises ValueError for an unknown task, a negative `examples`, and where too few rows are left.
    """
    if examples < 0:
        raise ValueError(f"examples is {examples}; give how many reactions to use, or 0 for all")
    task = task or start.task
    if task not in TASKS:
        raise ValueError(f"task is {task!r}; choose {', '.join(TASKS)}")
    plan = plan or (FINE_TUNING if start.task == task else PRETRAINING)[task]
    engine = start.adapted(task, seed)
    report = Report(read=len(rows))
    kept, leaked = leakage.without(rows, tests, key) if tests else (list(rows), 0)
    if leaked:
        report.note(f"known to the tests by {key} (left out)", "compared with the test file", leaked)
    usable = []
    for number, row in enumerate(kept, 1):
        if task == "yield" and math.isnan(row.yield_percent):
            report.note("without a yield (left out)", f"reaction {number}")
            continue
        source, target = _texts(row, task)
        lengths = len(engine.tokenizer.encode(source)), len(engine.tokenizer.encode(target))
        if lengths[0] > plan.most_in or (task != "yield" and lengths[1] > plan.most_out):
            report.note(
                f"longer than {plan.most_in} and {plan.most_out} tokens (left out)",
                f"reaction {number}, {lengths}",
            )
            continue
        if engine.tokenizer.unknown(source + target):
            report.note(
                "with symbols outside the vocabulary (kept)", f"reaction {number}: {(source + target)[:80]}"
            )
        usable.append(row)
    random.Random(seed).shuffle(usable)
    held = usable[: min(200, len(usable) // 10)]
    rest = usable[len(held) :]
    known = rest[: examples or None]
    report.kept = len(known)
    if held:
        report.note("held out for validation", "drawn at random", len(held))
    if len(rest) > len(known):
        report.note("not used (examples)", f"{examples} asked for", len(rest) - len(known))
    if len(known) < 2:
        raise ValueError(
            f"{len(known)} of {len(rows)} reactions are left to learn from; at least 2 are needed\n{report}"
        )
    training.seed_everything(seed)
    content = [[*_texts(r, task), r.yield_percent if task == "yield" else 0.0] for r in known]
    fitted = _fit(
        engine, known, held, plan, seed, _checkpoints(folder, plan, seed, engine.model, content), stop_after
    )
    counts = {"read": report.read, "used": report.kept, **report.counts}
    _finish(engine, folder, plan, fitted, counts, seed)
    return engine, report


def _fit(engine: ReactionT5, known: Sequence[Row], held: Sequence[Row], plan: Plan, seed: int, folder: Path,
         stop_after: int | None) -> training.Fitted:  # fmt: skip
    tok, task = engine.tokenizer, engine.task
    batch = min(plan.batch, len(known))
    config = _config(plan, max(1, plan.epochs * len(known) // batch))
    options = {"folder": folder, "title": task, "stop_after": stop_after}
    if task == "yield":

        def data(rows: Sequence[Row]) -> train.Yields:
            return train.Yields(
                [tok.encode(_texts(r, task)[0]) for r in rows], [r.yield_percent / 100 for r in rows]
            )

        def judge(m) -> dict[str, float]:
            found = yield_errors([r.yield_percent for r in held], train.predicted_yields(m, data(held), 32))
            return {f"valid_{name}": found[name] for name in ("r2", "mae", "rmse")}

        return train.fit_yield(engine.model, data(known), config, batch, seed,
                               evaluate=judge if len(held) > 1 else None, **options)  # fmt: skip
    texts = [_texts(r, task) for r in known]
    pairs = train.Pairs([tok.encode(a) for a, _ in texts], [tok.encode(b) for _, b in texts])

    def examine(m: T5) -> dict[str, float]:
        asked = [_texts(r, task) for r in held]
        answers = []
        for k in range(0, len(asked), 32):
            ids = train.padded([tok.encode(a) for a, _ in asked[k : k + 32]])
            answers += [
                [tok.decode(s) for s in group] for group in beam_search(m, ids, 1, plan.most_out + 2)[0]
            ]
        found = accuracy([b for _, b in asked], answers, tops=(1,))
        return {"valid_exact": found.top[1], "valid_invalid": found.invalid}

    return train.fit_forward(
        engine.model, pairs, config, batch, seed, evaluate=examine if held else None, **options
    )


def _texts(row: Row, task: str) -> tuple[str, str]:
    """Input and target; a yield has no target text."""
    if task == "retrosynthesis":
        return row.product, row.reactant
    if task == "yield":
        return yield_text(row.reactant, row.conditions("yield"), row.product), ""
    return forward_text(row.reactant, row.conditions()), row.product


def _sizes(size: str | T5Config) -> T5Config:
    if isinstance(size, T5Config):
        return size
    if size not in SIZES:
        raise ValueError(f"size is {size!r}; choose {', '.join(SIZES)}")
    return SIZES[size]


def _checkpoints(folder: str | Path, plan: Plan, seed: int, model: nn.Module, content: list) -> Path:
    """A folder per start, plan and data: another training in the same `folder` never picks up this one's weights."""
    return (
        Path(folder)
        / "checkpoints"
        / records.fingerprint(asdict(plan), seed, next(model.parameters()), content)
    )


def _config(plan: Plan, steps: int) -> training.FitConfig:
    return training.FitConfig(steps=steps, lr=plan.lr, warmup=min(plan.warmup, steps // 10), schedule="linear",
                              weight_decay=plan.weight_decay, precision=plan.precision,
                              save_every=max(100, steps // 50))  # fmt: skip


def _finish(
    engine: ReactionT5, folder: str | Path, plan: Plan, fitted: training.Fitted, counts: dict, seed: int
) -> None:
    """Write the checkpoint, and beside it what was done."""
    engine.save_pretrained(folder)
    curves = {
        name: points[:: max(1, len(points) // 100)] for name, points in fitted.curves.items() if name != "lr"
    }
    records.write_json(Path(folder) / "report.json", {
        "task": engine.task, "plan": asdict(plan), "counts": counts, "steps": fitted.step, "seed": seed,
        "seconds": round(fitted.seconds, 1), "parameters": sum(p.numel() for p in engine.model.parameters()),
        "curves": curves, "provenance": {"code": records.loaded_code(), **records.commit(), "versions": records.versions(),
                                         "processor": records.processor(), "gpu": records.gpu()},
    })  # fmt: skip
