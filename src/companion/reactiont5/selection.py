"""Which epoch of a yield model is reported: chosen on held-out training data, or, as published, on the test part.

The official fine-tuning script takes the test file as its validation file. One training here gives both numbers and
the last epoch's, so that nothing but the choice differs.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from companion import training
from companion.reactiont5 import data, metrics, pretrain, tasks, train, uspto
from companion.reactiont5.chemistry import Row, components
from companion.reactiont5.hub import ReactionT5
from companion.reactiont5.model import ReactionYield


def split(p: Mapping[str, Any], seed: int) -> tuple[list[Row], list[Row], list[Row]]:
    """(training, held-out, test) rows of `p["data"]`: bh-Test1 to 4, bh-FullCV or suzuki.

    A share `p["hold_out"]` of the official training part is held out; `p["examples"]` training rows are used
    (0: all).
    """
    if p["data"] == "suzuki":
        whole = data.read_suzuki_split()
    else:
        whole = data.read_buchwald_hartwig(data.sheet_of(p["data"], seed))
    rows = list(whole.train)
    random.Random(seed).shuffle(rows)
    cut = max(2, round(p["hold_out"] * len(rows)))
    return rows[cut:][: p["examples"] or None], rows[:cut], list(whole.test)


def varying(rows: Sequence[Row], known: Sequence[Row]) -> list[Row]:
    """`rows` without the molecules that take part in every reaction of `known`, and without the product.

    Catalyst and amine of the Buchwald-Hartwig set are the same in all rows, and the aryl halide decides the product:
    two fifths of the string say nothing, and a small network spends its few steps on them.
    """
    always = {
        role: set.intersection(*(set(components(getattr(r, role))) for r in known))
        for role in ("reactant", "reagent")
    }

    def rest(text: str, role: str) -> str:
        return ".".join(c for c in components(text) if c not in always[role])

    return [
        replace(r, reactant=rest(r.reactant, "reactant"), reagent=rest(r.reagent, "reagent"), product="")
        for r in rows
    ]


def start(p: Mapping[str, Any], seed: int) -> ReactionT5:
    """A yield regressor: real, world, compound or scratch (small, see `uspto.start`), or a released checkpoint."""
    name = p["start"]
    if "/" in name or Path(name).is_dir():
        return tasks.yield_start(p, seed)
    backbone = uspto.start(name, "forward", seed)
    training.seed_everything(seed, threads=1)
    model = ReactionYield(backbone.config, mask_padding=not p["as_published"])
    pretrain.load_backbone(model, backbone.state_dict())
    return ReactionT5(model, uspto.tokenizer(), "yield")


def fit(engine: ReactionT5, known: Sequence[Row], held_out: Sequence[Row], test: Sequence[Row], p: Mapping[str, Any],
        seed: int) -> tuple[dict[str, float], dict[str, list], dict[str, list[float]]]:  # fmt: skip
    """Fine-tune, look at both parts after every `p["epochs"]` / `p["looks"]` epochs, choose twice.

    `p["text"]`: "full" strings, as published, or "varying" (see there).

    Returns:
        (metrics, curves, predictions on the test part by choice). `r2`, `mae`, `rmse`, `pearson2` belong to the look
        with the smallest held-out error, `r2_published` to the one with the smallest test error, `r2_last` to the
        last; `optimism` is published minus clean.
    """
    shown = {"train": known, "held out": held_out, "test": test}
    if p["text"] == "varying":
        shown = {name: varying(rows, known) for name, rows in shown.items()}
    made = {name: tasks.yield_data(engine, rows) for name, rows in shown.items()}
    truth = {"held out": [r.yield_percent for r in held_out], "test": [r.yield_percent for r in test]}
    looks: list[dict[str, list[float]]] = []

    def look(model: ReactionYield) -> dict[str, float]:
        looks.append({name: train.predicted_yields(model, made[name]) for name in truth})
        return {
            f"rmse, {name}": metrics.yield_errors(truth[name], told)["rmse"]
            for name, told in looks[-1].items()
        }

    if not p["epochs"]:  # the start model as it is: nothing to choose
        look(engine.model)
        told = dict.fromkeys(("clean", "published", "last"), looks[0]["test"])
        return judged(truth["test"], told), {}, told
    steps = tasks.steps_for(p | {"steps": 0}, len(known))
    config = training.FitConfig(
        steps=steps, lr=p["lr"], warmup=p["warmup"], schedule="linear", weight_decay=p["weight_decay"],
        betas=(0.9, p["beta2"]), precision=p["precision"], evaluate_every=max(1, steps // p["looks"]),
    )  # fmt: skip
    fitted = train.fit_yield(engine.model, made["train"], config, p["batch"], seed, evaluate=look,
                             cpu="/" not in p["start"], title=p["start"])  # fmt: skip

    def error(k: int, part: str) -> float:
        return metrics.yield_errors(truth[part], looks[k][part])["rmse"]

    every = range(len(looks))
    clean, best = (min(every, key=lambda k: error(k, part)) for part in ("held out", "test"))
    chosen = {"clean": clean, "published": best, "last": len(looks) - 1}
    told = {name: looks[k]["test"] for name, k in chosen.items()}
    return judged(truth["test"], told), fitted.curves, told


def judged(truth: Sequence[float], told: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Metrics of `fit` from predictions by choice: clean, published, last."""
    r2 = {name: metrics.r2(truth, values) for name, values in told.items()}
    return metrics.yield_errors(truth, told["clean"]) | {
        "r2_published": r2["published"], "r2_last": r2["last"], "optimism": r2["published"] - r2["clean"],
    }  # fmt: skip
