"""Real patent reactions at small size: the chapter's network on what is public of USPTO-MIT and USPTO-50k.

The paper pre-trains on some two million reactions of the Open Reaction Database. At hand are 30,000 reactions of
USPTO-MIT's validation part, of which those that are short enough are used: `python -m companion.reactiont5.uspto
FOLDER` pre-trains on them (5,000 steps for products, 17 minutes on one core when it was recorded, then as many for
reactants, of which the committed model had 1,200; needs COMPANION_DATA). It starts from the network that knows the
RDKit reactions, because copying molecules takes a small network longest to learn. Reactions whose reactants and product
occur among the tests are taken out first.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from companion import records, training
from companion.reactiont5 import data, leakage, pretrain, train
from companion.reactiont5.beam import beam_search
from companion.reactiont5.chemistry import Row
from companion.reactiont5.metrics import accuracy
from companion.reactiont5.model import T5
from companion.reactiont5.tokens import AtomTokenizer, forward_text

# What at least ten of 11,000 patent reactions contain beyond the world's symbols; the rest is unknown (0.02 %).
MORE = ["[Si]", "[H-]", "[Cl-]", "[P]", "[NH4+]", "[Cs+]", "[Li]", "[C@]", "[I-]", "[Br-]", "[Sn]", "[Al+3]", "[C@@]", "[Mg+]", "[P-]", "[Na]", "[BH-]", "[Pd+2]", "[F-]", "[SiH]", "[P+]", "[BH3-]", "[C-]", "[Mg]", "[K]", "7", "[Zn]", "[B-]", "[C]", "[SiH2]", "[nH+]", "[Zn+2]", "[S-]", "[Pt]", "[Al]", "[Br]", "[Cr]", "[Mn]", "[Ti+4]"]  # fmt: skip
LONGEST = {"forward": (64, 40), "retrosynthesis": (40, 48)}  # tokens of input and target
POOL = 28_000  # reactions of the validation part for pre-training; few-shot examples come from the rest
TESTS = 3_000  # lines of USPTO-MIT's test part from which the tests are drawn


def tokenizer() -> AtomTokenizer:
    """The small models' tokens, then `MORE`: ids of the smaller vocabulary keep their meaning."""
    return AtomTokenizer([*train.SYMBOLS, *MORE])


def texts(row: Row, task: str) -> tuple[str, str]:
    """Input and target of `task`."""
    if task == "retrosynthesis":
        return row.product, row.reactant
    return forward_text(row.reactant, row.conditions()), row.product


def fits(row: Row, task: str) -> bool:
    """Whether the reaction is short enough for the small model."""
    pattern = AtomTokenizer.PATTERN
    return all(
        len(pattern.findall(text)) < most for text, most in zip(texts(row, task), LONGEST[task], strict=True)
    )


def pairs(rows: Sequence[Row], task: str) -> train.Pairs:
    """Tokenised examples."""
    tok, made = tokenizer(), [texts(r, task) for r in rows]
    return train.Pairs([tok.encode(a) for a, _ in made], [tok.encode(b) for _, b in made])


def reactions(task: str) -> tuple[list[Row], list[Row], dict[str, int]]:
    """(pre-training, validation) reactions and the counts of what was read, too long, and known to the tests."""
    known, _ = data.read_uspto_mit("valid", most=POOL)
    tests = data.read_uspto_mit("test", most=TESTS)[0] + data.read_uspto_50k("test")[0]
    clean, leaked = leakage.without(known, tests)
    short = [r for r in clean if fits(r, task)]
    random.Random(0).shuffle(short)
    counts = {
        "read": len(known),
        "leaked": leaked,
        "too long": len(clean) - len(short),
        "used": len(short) - 100,
    }
    return short[100:], short[:100], counts


def split(p: Mapping[str, Any], seed: int) -> tuple[list[Row], list[Row]]:
    """(examples, tests) of the few-shot table: the first n examples are the n-shot set.

    Forward: USPTO-MIT, examples from the end of its validation part. Retrosynthesis: USPTO-50k. Short reactions only.
    """
    task = p["task"]
    if task == "forward":
        pool, test = data.read_uspto_mit("valid", skip=POOL)[0], data.read_uspto_mit("test", most=1_500)[0]
    else:
        pool, test = data.read_uspto_50k("train", most=2_000)[0], data.read_uspto_50k("test", most=1_500)[0]
    pool, test = ([r for r in rows if fits(r, task)] for rows in (pool, test))
    pool, _ = leakage.without(pool, test)
    random.Random(seed).shuffle(pool)
    random.Random(seed).shuffle(test)
    return pool[: p["pool"]], test[: p["tests"]]


def start(name: str, task: str, seed: int) -> T5:
    """`real` (patent reactions), `world` (RDKit reactions only), `compound` (molecules only) or `scratch`.

    All have the same vocabulary; rows that a stored model lacks are drawn anew. Raises ValueError for another name.
    """
    if name == "real":
        model = grown("scratch", seed)
        model.load_state_dict(pretrain._stored(f"uspto-{task}"))
        return model
    stages = {"world": "reaction", "compound": "compound", "scratch": "scratch"}
    if name not in stages:
        raise ValueError(f"start {name!r} does not exist; choose real, {', '.join(stages)}")
    return grown(stages[name], seed)


def grown(stage: str, seed: int) -> T5:
    """A small model with the larger vocabulary."""
    model = pretrain.small_model(stage, seed)
    training.seed_everything(seed, threads=1)
    model.resize(len(tokenizer()))
    return model


def answers(model: T5, ids: list[list[int]], task: str, beams: int = 5, batch: int = 100) -> list[list[str]]:
    """The texts of all beams, best first."""
    tok, found = tokenizer(), []
    model.eval()
    for k in range(0, len(ids), batch):
        sequences, _ = beam_search(model, train.padded(ids[k : k + batch]), beams, LONGEST[task][1] + 2)
        found += [[tok.decode(s) for s in group] for group in sequences]
    return found


def fit(folder: Path, task: str, steps: int = 5000, stop_after: int | None = None) -> None:
    """Pre-train for `task` and store `uspto-<task>.safetensors` and its record in `folder`.

    Retrosynthesis starts from the forward model. `stop_after` pauses; the same call goes on.
    """
    known, held_back, counts = reactions(task)
    made, valid = pairs(known, task), pairs(held_back, task)
    training.seed_everything(0, threads=1)
    model = grown("reaction", 0)
    if task == "retrosynthesis":
        model.load_state_dict(pretrain._read(folder / "uspto-forward.safetensors"))

    def examine(m: T5) -> dict[str, float]:
        found = accuracy(
            [texts(r, task)[1] for r in held_back], answers(m, valid.ids, task, beams=1), tops=(1,)
        )
        return {"valid_exact": found.top[1], "valid_invalid": found.invalid}

    config = training.FitConfig(steps=steps, lr=2e-3, warmup=200, schedule="linear", final_lr=0.02, weight_decay=0.01,
                                betas=(0.9, 0.98), evaluate_every=1000, save_every=500)  # fmt: skip
    fitted = train.fit_forward(model, made, config, 32, 0, folder=folder / f"uspto-{task}", title=task, evaluate=examine,
                               stop_after=stop_after, cpu=True)  # fmt: skip
    if fitted.step < steps:
        return
    pretrain.store(model, folder / f"uspto-{task}.safetensors")
    curves = {
        name: points[:: max(1, len(points) // 50)] for name, points in fitted.curves.items() if name != "lr"
    }
    records.write_json(folder / f"uspto-{task}.json", {
        "counts": counts, "steps": steps, "batch": 32, "seconds": round(fitted.seconds), "curves": curves,
        "provenance": {"code": records.loaded_code(), **records.commit(), "versions": records.versions(),
                       "processor": records.processor(), "threads": 1},
    })  # fmt: skip


if __name__ == "__main__":
    for direction in LONGEST:
        fit(Path(sys.argv[1]), direction)
