"""Predictions a chemist can use: lists or CSV in, ranked and checked SMILES out.

Rows that cannot be predicted keep their place and say why; nothing is dropped, nothing unreadable counts as an
answer. Inputs are sorted by length and predicted in batches, equal inputs once.
"""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from companion.reactiont5.beam import beam_search
from companion.reactiont5.chemistry import canonical, merge, strip_maps, why_not
from companion.reactiont5.hub import ReactionT5
from companion.reactiont5.tokens import forward_text, yield_text


@dataclass(frozen=True)
class Candidate:
    """One answer: canonical SMILES, its best score (mean log-probability per token), beams that agreed on it."""

    smiles: str
    score: float
    beams: int


@dataclass
class Prediction:
    """What became of one row. `problem` is empty or says why there is no answer; `notes` are harmless remarks."""

    input: str = ""
    candidates: list[Candidate] = field(default_factory=list)
    raw: list[str] = field(default_factory=list)  # text of every beam, best first, unchecked
    invalid: int = 0  # beams whose text is no molecule
    yield_percent: float | None = None
    problem: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def best(self) -> str | None:
        return self.candidates[0].smiles if self.candidates else None


def predict(model: ReactionT5 | str | Path, reactants: Sequence[str], reagents: Sequence[str | None] | None = None, *,
            beams: int = 5, top: int = 5, batch_size: int = 32, longest_input: int = 400,
            longest_answer: int = 300) -> list[Prediction]:  # fmt: skip
    """Products of reactions, or precursors of products with a retrosynthesis model.

    Args:
        model: a `ReactionT5`, the name of a released checkpoint, a folder, or one of the book's own (see `load`).
        reactants: one dot-joined SMILES per reaction; for retrosynthesis the products.
        reagents: catalysts, reagents and solvents of each reaction; None or "" where there are none.
        beams, top: beams searched, answers kept (at most `beams`).
        batch_size: inputs per batch; results do not depend on it.
        longest_input: longer inputs (in tokens) are refused, not cut.
        longest_answer: tokens.

    Returns:
        A `Prediction` per row, in order; canonical duplicates among the beams are merged, best score kept.

    Raises:
        ValueError: for one string in a list's place, lists of different lengths, a batch size below 1, a yield model, or a
            `top` larger than `beams`.
    """
    _lists(reactants=reactants, reagents=reagents)
    _size(batch_size)
    engine = load(model)
    if engine.task not in ("forward", "retrosynthesis"):
        raise ValueError(
            f"this is a {engine.task} model; predict() needs forward or retrosynthesis (see predict_yield)"
        )
    if reagents is not None and len(reagents) != len(reactants):
        raise ValueError(
            f"{len(reactants)} reactants and {len(reagents)} reagents; give one per row, or no reagents"
        )
    if not 1 <= top <= beams:
        raise ValueError(f"top is {top} and beams {beams}; top goes from 1 to beams")
    rows = []
    for k, first in enumerate(reactants):
        row = Prediction()
        main = _read(first, "PRODUCT" if engine.task == "retrosynthesis" else "REACTANT", row)
        if engine.task == "forward":
            other = _read(reagents[k], "REAGENT", row, optional=True) if reagents is not None else ""
            row.input = forward_text(main, other) if not row.problem else ""
        else:
            row.input = main
        rows.append(row)
    for texts, ids, asking in _batches(engine, rows, longest_input, batch_size):
        sequences, scores = beam_search(engine.model, ids, beams, longest_answer)
        for text, group, score in zip(texts, sequences, scores, strict=True):
            candidates, invalid, raw = _answers(engine, group, score, top)
            for row in asking[text]:
                row.candidates, row.invalid, row.raw = list(candidates), invalid, list(raw)
    return rows


def predict_yield(model: ReactionT5 | str | Path, reactants: Sequence[str], reagents: Sequence[str | None],
                  products: Sequence[str], *, batch_size: int = 32, longest_input: int = 400,
                  pad_to: int = 0) -> list[Prediction]:  # fmt: skip
    """Yields in percent, clipped to 0 to 100 as the authors' script does.

    `pad_to`: pad every input to so many tokens. The released weights were trained with padding to 300 that the
    decoder could see, and answer differently without it; 300 repeats the training.

    Raises:
        ValueError: for one string in a list's place, lists of different lengths, a batch size below 1, or another model.
    """
    _lists(reactants=reactants, reagents=reagents, products=products)
    _size(batch_size)
    engine = load(model)
    if engine.task != "yield":
        raise ValueError(f"this is a {engine.task} model; predict_yield() needs a yield model")
    if not len(reactants) == len(reagents) == len(products):
        raise ValueError(
            f"{len(reactants)} reactants, {len(reagents)} reagents, {len(products)} products; give one per row"
        )
    rows = []
    for a, b, c in zip(reactants, reagents, products, strict=True):
        row = Prediction()
        parts = _read(a, "REACTANT", row), _read(b, "REAGENT", row, optional=True), _read(c, "PRODUCT", row)
        row.input = yield_text(*parts) if not row.problem else ""
        rows.append(row)
    for texts, ids, asking in _batches(engine, rows, longest_input, batch_size, pad_to):
        with torch.no_grad():
            told = engine.model(ids).mul(100).clamp(0, 100).tolist()
        for text, value in zip(texts, told, strict=True):
            for row in asking[text]:
                row.yield_percent = value
    return rows


def load(model: ReactionT5 | str | Path, task: str = "") -> ReactionT5:
    """`model` itself, a checkpoint by name or folder, or one of the book's own: "small" (products of the RDKit world),
    "small-forward" and "small-retrosynthesis" (short patent reactions). Read models go to the GPU where there is one.
    """
    if isinstance(model, ReactionT5):
        return model
    name = str(model)
    if name.startswith("small") and not Path(name).is_dir():
        from companion.reactiont5 import pretrain, train, uspto

        if name == "small":
            return ReactionT5(pretrain.small_model("reaction").eval(), train.tokenizer(), "forward")
        known = name.removeprefix("small-")
        if known not in uspto.LONGEST:
            raise ValueError(
                f"{name!r} is no model of the book; choose small, small-{', small-'.join(uspto.LONGEST)}"
            )
        return ReactionT5(uspto.start("real", known, 0).eval(), uspto.tokenizer(), known)
    engine = ReactionT5.from_pretrained(model, task)
    engine.model.to("cuda" if torch.cuda.is_available() else "cpu")
    return engine


def _lists(**given: Sequence | None) -> None:
    """Raise ValueError for a string, whose letters would pass for rows."""
    for name, values in given.items():
        if isinstance(values, str):
            raise ValueError(f"{name} is one string, {values[:40]!r}; give a list of SMILES, even for one")


def _size(batch_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it starts at 1")


def _read(text: str | None, role: str, row: Prediction, optional: bool = False) -> str:
    """Canonical `text` without atom maps; writes what is wrong with it into `row`."""
    text = (text or "").strip() if isinstance(text, str | None) else str(text)
    if not text:
        if not optional and not row.problem:
            row.problem = f"{role} is empty"
        return ""
    text, maps = strip_maps(text)
    if maps:
        row.notes.append(f"{maps} atom maps removed from {role}")
    form = canonical(text)
    if form is None:
        row.problem = row.problem or f"{role} {text[:60]!r} cannot be read: {why_not(text)}"
    return form or ""


def _waiting(engine: ReactionT5, rows: list[Prediction], longest: int) -> dict[str, list[int]]:
    """Different inputs still to be predicted -> ids; refuses what is too long, notes unknown tokens."""
    waiting: dict[str, list[int]] = {}
    for row in rows:
        if row.problem:
            continue
        ids = waiting.get(row.input) or engine.tokenizer.encode(row.input)
        if len(ids) > longest:
            row.problem = f"{len(ids)} tokens, the model takes {longest}"
            continue
        if lost := engine.tokenizer.unknown(row.input):
            row.notes.append(f"{lost} symbols are not in the model's vocabulary")
        waiting[row.input] = ids
    return waiting


def _batches(engine: ReactionT5, rows: list[Prediction], longest: int, size: int,
             pad_to: int = 0) -> Iterator[tuple[list[str], torch.Tensor, dict[str, list[Prediction]]]]:  # fmt: skip
    """Batches of different inputs, short ones first: (texts, ids [B, L], the rows that ask for each text)."""
    waiting, asking = _waiting(engine, rows, longest), defaultdict(list)
    for row in rows:
        if not row.problem:
            asking[row.input].append(row)
    order = sorted(waiting, key=lambda text: len(waiting[text]))
    device = next(engine.model.parameters()).device
    with tqdm(total=len(order), desc="predicting", unit="row", disable=len(order) <= 10 * size) as bar:
        for start in range(0, len(order), size):
            texts = order[start : start + size]
            yield texts, _padded([waiting[t] for t in texts], pad_to).to(device), asking
            bar.update(len(texts))


def _padded(rows: Sequence[Sequence[int]], least: int = 0) -> torch.Tensor:
    out = torch.zeros(len(rows), max([least, *map(len, rows)]), dtype=torch.long)
    for k, row in enumerate(rows):
        out[k, : len(row)] = torch.tensor(row)
    return out


def _answers(
    engine: ReactionT5, sequences: list, scores: list, top: int
) -> tuple[list[Candidate], int, list]:
    """Merged candidates, number of unreadable beams, text of every beam."""
    merged: dict[str, list[float]] = {}
    invalid, raw = 0, [engine.tokenizer.decode(sequence) for sequence in sequences]
    for text, score in zip(raw, scores, strict=True):
        form = canonical(text)
        if form is None:
            invalid += 1
        else:
            merged.setdefault(form, []).append(score)
    ranked = sorted(merged.items(), key=lambda item: -max(item[1]))
    return [Candidate(s, max(p), len(p)) for s, p in ranked[:top]], invalid, raw


# --- CSV ----------------------------------------------------------------------------------------------


def predict_csv(
    source: str | Path, target: str | Path, model: ReactionT5 | str | Path, task: str = "", **options
) -> str:
    """Predict every row of `source`, write `target`, return a short report.

    `task` is that of a folder which does not say it; `options` are those of `predict` or `predict_yield`.

    Columns read: REACTANT (PRODUCT for retrosynthesis), and where they are there REAGENT, CATALYST, SOLVENT,
    which are joined; a yield model needs REACTANT and PRODUCT and leaves SOLVENT out, as it was trained. Columns
    written: the old ones, then `problem`, `notes` and `0th`, `0th score`, ..., `invalid`; or `prediction`.

    Raises ValueError, before a model is loaded, for a file that is no UTF-8, without rows or with a row longer than its
    header, and for a place that cannot be written; then for a file without the needed column.
    """
    source, target = Path(source), Path(target)
    _size(options.get("batch_size", 1))
    rows = _rows(source)
    if (
        not target.resolve().parent.is_dir()
        or not os.access(target.resolve().parent, os.W_OK)
        or target.is_dir()
    ):
        raise ValueError(f"{target} cannot be written; name a file in a folder that exists")
    engine = load(model, task)
    need = {"forward": ["REACTANT"], "retrosynthesis": ["PRODUCT"]}.get(engine.task, ["REACTANT", "PRODUCT"])
    have = list(rows[0]) if rows else []
    if missing := [c for c in need if c not in have]:
        raise ValueError(f"{source.name}: column {missing[0]} is missing; it has {', '.join(have)}")
    if engine.task == "yield":
        options = {name: value for name, value in options.items() if name not in ("beams", "top")}
        found = predict_yield(engine, [r["REACTANT"] for r in rows], [_conditions(r, False) for r in rows],
                              [r["PRODUCT"] for r in rows], **options)  # fmt: skip
    elif engine.task == "forward":
        found = predict(
            engine, [r["REACTANT"] for r in rows], [_conditions(r, True) for r in rows], **options
        )
    else:
        found = predict(engine, [r["PRODUCT"] for r in rows], **options)
    top = max([len(f.candidates) for f in found], default=0)
    ranks = [name for k in range(top) for name in (f"{k}th", f"{k}th score")]
    extra = ["problem", "notes", *(["prediction"] if engine.task == "yield" else [*ranks, "invalid"])]
    with open(target, "w", newline="", encoding="utf-8") as file:
        out = csv.DictWriter(file, [*[c for c in have if c not in extra], *extra])
        out.writeheader()
        for row, f in zip(rows, found, strict=True):
            line = {k: v for k, v in row.items() if k not in extra}
            line |= {"problem": f.problem, "notes": "; ".join(f.notes)}
            if engine.task == "yield":
                line["prediction"] = "" if f.yield_percent is None else f"{f.yield_percent:.2f}"
            else:
                line["invalid"] = f.invalid
                for k, c in enumerate(f.candidates):
                    line |= {f"{k}th": c.smiles, f"{k}th score": f"{c.score:.4f}"}
            out.writerow(line)
    bad = [(k, f.problem) for k, f in enumerate(found, 2) if f.problem]
    report = f"{len(found)} rows, {len(found) - len(bad)} predicted, {len(bad)} not"
    return (
        report + "".join(f"\n  row {k}: {why}" for k, why in bad[:20]) + ("\n  ..." if len(bad) > 20 else "")
    )


def _rows(source: Path) -> list[dict[str, str]]:
    try:
        with open(source, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except UnicodeDecodeError:
        raise ValueError(f'{source.name} is not UTF-8 text; save it as "CSV UTF-8"') from None
    if not rows:
        raise ValueError(f"{source.name} has no rows to predict")
    for number, row in enumerate(rows, 2):
        if None in row:
            many = len(row) - 1
            raise ValueError(f"{source.name}: row {number} has {many + len(row[None])} cells, the header {many}; "
                             "put text with commas in quotes")  # fmt: skip
    return rows


def _conditions(row: Mapping[str, str], solvent: bool) -> str:
    """The reagent role of a CSV row; a catalyst that REAGENT already names is not named twice."""
    reagent, catalyst = row.get("REAGENT") or "", row.get("CATALYST") or ""
    if catalyst and set(catalyst.split(".")) <= set(reagent.split(".")):
        catalyst = ""
    return merge(catalyst, reagent, row.get("SOLVENT") if solvent else None)
