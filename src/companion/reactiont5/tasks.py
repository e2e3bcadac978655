"""From a table's parameters to a start model, examples and a score: the same steps for toy and paper scale."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from companion import training
from companion.reactiont5 import baselines, data, pretrain, train, uspto, world
from companion.reactiont5.chemistry import Row
from companion.reactiont5.hub import ReactionT5
from companion.reactiont5.metrics import Accuracy, accuracy
from companion.reactiont5.model import T5
from companion.reactiont5.prediction import load, predict
from companion.reactiont5.tokens import forward_text, yield_text


@dataclass(frozen=True)
class Split:
    """Reactions to learn from (in random order: the first n are the n-shot set) and to test on."""

    train: list[Row]
    test: list[Row]


def as_row(r: world.Reaction) -> Row:
    """A reaction of the world in the ORD schema."""
    return Row(r.reactant, r.product, r.reagent, yield_percent=r.yield_percent)


def split(p: Mapping[str, Any], seed: int) -> Split:
    """The reactions of `p["data"]`: world (type `kind`), uspto-small, uspto-mit, uspto-50k or a Buchwald-Hartwig sheet."""
    source = p["data"]
    if source == "world":
        found = world.with_yields(world.reactions(p["kind"], p["tests"] + p["pool"], seed), seed)
        rows = [as_row(r) for r in found]
        return Split(rows[p["tests"] :], rows[: p["tests"]])
    if source == "uspto-small":
        return Split(*uspto.split(p, seed))
    if source.startswith("bh-"):
        sheet = data.read_buchwald_hartwig(data.sheet_of(source, seed))
        return Split(_shuffled(sheet.train, seed), sheet.test)
    if source == "uspto-50k":
        return Split(
            _shuffled(data.read_uspto_50k("train")[0], seed),
            data.read_uspto_50k("test")[0][: p["tests"] or None],
        )
    if source == "uspto-mit":
        test = data.read_uspto_mit("test", most=p["tests"])[0]
        # the 409,000 training reactions are not in the public copy; asking for none needs no file
        return Split(_shuffled(data.read_uspto_mit("train")[0], seed) if p["most"] else [], test)
    raise ValueError(
        f"data {source!r} does not exist; choose world, uspto-small, uspto-mit, uspto-50k, bh-Test1, ..., bh-FullCV"
    )


def _shuffled(rows: Sequence[Row], seed: int) -> list[Row]:
    rows = list(rows)
    random.Random(seed).shuffle(rows)
    return rows


# --- sequences ----------------------------------------------------------------------------------------


def start(p: Mapping[str, Any], seed: int) -> ReactionT5:
    """A fresh start model with its tokenizer: reaction, compound or scratch (small), or a released checkpoint.

    With the data uspto-small the small starts are those of `uspto.start`.
    """
    task, name = p["task"], p["start"]
    if p["data"] == "uspto-small":
        return ReactionT5(uspto.start(name, task, seed), uspto.tokenizer(), task)
    if "/" not in name and not Path(name).is_dir():
        return ReactionT5(pretrain.small_model(name, seed), train.tokenizer(), task)
    # a fair molecule-only baseline knows the same tokens as the reaction model
    return load(name, "compound" if "Compound" in name else task).adapted(task, seed)


def pairs(engine: ReactionT5, rows: Sequence[Row], most_in: int = 0, most_out: int = 0) -> train.Pairs:
    """Tokenised input and target of the engine's task; `most_in`, `most_out` cut (0: never)."""
    tok, task = engine.tokenizer, engine.task

    def cut(ids: list[int], most: int) -> list[int]:
        return ids if not most or len(ids) <= most else [*ids[: most - 1], ids[-1]]

    texts = [(r.product, r.reactant) if task == "retrosynthesis" else (forward_text(r.reactant, r.conditions()), r.product)
             for r in rows]  # fmt: skip
    return train.Pairs(
        [cut(tok.encode(a), most_in) for a, _ in texts], [cut(tok.encode(b), most_out) for _, b in texts]
    )


def steps_for(p: Mapping[str, Any], n: int) -> int:
    """Optimiser steps for `n` examples: `steps` where the table fixes them, else `epochs` over the examples."""
    return p["steps"] or max(1, p["epochs"] * n // min(p["batch"], n))


def fine_tune(
    engine: ReactionT5, rows: Sequence[Row], p: Mapping[str, Any], seed: int, **options
) -> training.Fitted:
    """Full fine-tuning, all weights, fixed number of steps, last weights kept: no labels beyond `rows` are used."""
    config = training.FitConfig(
        steps=steps_for(p, len(rows)), lr=p["lr"], warmup=p["warmup"], schedule="linear", weight_decay=p["weight_decay"],
        betas=(0.9, p["beta2"]), precision=p["precision"],
    )  # fmt: skip
    made = pairs(engine, rows, p["most_in"], p["most_out"])
    return train.fit_forward(
        engine.model, made, config, p["batch"], seed, cpu="/" not in p["start"], **options
    )


def score(engine: ReactionT5, rows: Sequence[Row], p: Mapping[str, Any]) -> tuple[dict[str, float], list]:
    """Percentages on `rows`, and the predictions themselves.

    `top1`, `top2`, `top3`, `top5` and `invalid` as published: ranks are beams, an unreadable or repeated beam uses up
    its rank. `usable1`: the first readable answer is right, which is what a user of `predict` gets.
    """
    engine.model.eval()
    retro = engine.task == "retrosynthesis"
    first = [r.product if retro else r.reactant for r in rows]
    found = predict(engine, first, None if retro else [r.conditions() for r in rows], beams=p["beams"], top=p["beams"],
                    batch_size=100, longest_answer=p["longest_answer"])  # fmt: skip
    target = [r.reactant if retro else r.product for r in rows]
    return percentages(
        accuracy(target, [f.raw for f in found]), sum(f.best == t for f, t in zip(found, target, strict=True))
    ), found


def percentages(found: Accuracy, usable: int) -> dict[str, float]:
    """An `Accuracy` and the number of right first readable answers as a record's metrics."""
    shares = {f"top{k}": v for k, v in found.top.items()}
    shares |= {"usable1": usable / found.targets, "invalid": found.invalid}
    return {name: 100 * value for name, value in shares.items()}


# --- yields -------------------------------------------------------------------------------------------


def yield_start(p: Mapping[str, Any], seed: int) -> ReactionT5:
    """A yield regressor: yield, compound or scratch (small), or a released checkpoint."""
    name = p["start"]
    if "/" in name or Path(name).is_dir():
        engine = load(name, "compound" if "Compound" in name else "yield").adapted("yield", seed)
        engine.model.mask_padding = not p["as_published"]
        return engine
    return ReactionT5(pretrain.small_yield_model(name, seed), train.tokenizer(), "yield")


def yield_data(engine: ReactionT5, rows: Sequence[Row]) -> train.Yields:
    """Tokenised inputs (no solvent, components sorted) and yields as shares."""
    texts = [yield_text(r.reactant, r.conditions("yield"), r.product) for r in rows]
    return train.Yields([engine.tokenizer.encode(t) for t in texts], [r.yield_percent / 100 for r in rows])


def fine_tune_yield(engine: ReactionT5, rows: Sequence[Row], p: Mapping[str, Any], seed: int, **options):
    """Fine-tune the regressor with squared error, fixed number of steps, last weights kept."""
    config = training.FitConfig(
        steps=steps_for(p, len(rows)), lr=p["lr"], warmup=p["warmup"], schedule="linear", weight_decay=p["weight_decay"],
        betas=(0.9, p["beta2"]), precision=p["precision"],
    )  # fmt: skip
    return train.fit_yield(engine.model, yield_data(engine, rows), config, p["batch"], seed, cpu="/" not in p["start"],
                           **options)  # fmt: skip


def baseline_yields(p: Mapping[str, Any], rows: Sequence[Row], test: Sequence[Row], seed: int) -> list[float]:
    """Predictions of a baseline in percent: `mean`, or `forest` on Morgan fingerprints of the three roles."""
    y = [r.yield_percent for r in rows]
    if p["start"] == "mean":
        return [sum(y) / len(y)] * len(test)
    if p["start"] != "forest":
        raise ValueError(f"baseline {p['start']!r} does not exist; choose mean or forest")
    forest = baselines.random_forest(baselines.fingerprints(rows), torch.tensor(y).numpy(), seed)
    return forest.predict(baselines.fingerprints(test)).tolist()


__all__ = ["T5", "Split", "as_row", "baseline_yields", "fine_tune", "fine_tune_yield", "pairs", "score", "split", "start",
           "steps_for", "yield_data", "yield_start"]  # fmt: skip
