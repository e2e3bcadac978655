"""The chapter's tables, figure and numbers, made from the committed records when the page is built.

`grid` shows chosen columns of a table as they are; `differences` one row minus others, paired by seed; `tasks` sets the
six tasks side by side with the differences that count and with what can be had without pairing sound and vision.
`gain` is for sentences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from companion import records, report, tables
from companion.dgsct import metrics, parsing


def grid(
    table: str, scale: str, columns: Sequence[str], caption: str = "", folder: Path | str | None = None
) -> report.Html:
    """A line per row of `table`: mean ± half of the 95 % interval (seeds), one value where there is one seed.

    Raises TableError for a table or column that does not exist.
    """
    t, at = _columns(table, columns)
    lines = [[row.title, *(tables.text(line[k]) for k in at)]
             for row, line in zip(t.rows, _results(table, scale, folder), strict=True)]  # fmt: skip
    return report.grid(caption, ["", *_titles(t, at)], lines)


def differences(
    table: str, scale: str, columns: Sequence[str], row: str, others: Sequence[str], caption: str = "",
    folder: Path | str | None = None,
) -> report.Html:  # fmt: skip
    """A line per row of `others`: what `row` has more than it, paired by seed.

    Raises TableError for a table, row or column that does not exist.
    """
    t, at = _columns(table, columns)
    found = [_pairs(table, scale, c, row, others, folder) for c in columns]
    titles = {r.id: r.title for r in t.rows}
    lines = [[f"minus {titles[o]}", *(gap(column[o]) for column in found)] for o in others]
    heads = [
        f"{title.removesuffix(', %')}, points" if title.endswith(", %") else title for title in _titles(t, at)
    ]
    return report.grid(caption, [f"{titles[row]} …", *heads], lines)


def gain(table: str, scale: str, column: str, row: str, than: str, folder: Path | str | None = None) -> str:
    """`+3.2 ± 1.1`: what `row` has more than `than`, for a sentence that says over how many seeds.

    Raises TableError as `differences` does.
    """
    return gap(_pairs(table, scale, column, row, [than], folder)[than]).partition(" (")[0]


def tasks(caption: str = "", folder: Path | str | None = None, clips: int = 400) -> report.Html:
    """A line per task: the three arms, DG-SCT minus unguided paired by seed, and `without_pairing`."""
    t = tables.table("dgsct", "tasks")
    arms = {row.id: line for row, line in zip(t.rows, _results("tasks", "reduced", folder), strict=True)}
    floor = without_pairing(clips)
    lines = []
    for k, column in enumerate(t.columns):
        shown = [tables.text(arms[a][k]) for a in ("late-fusion", "unguided", "dg-sct")]
        shown.append(gap(_pairs("tasks", "reduced", column.id, "dg-sct", ["unguided"], folder)["unguided"]))
        lines.append([column.title, *shown, f"{floor[column.id]:.1f}" if column.id in floor else "–"])
    head = ["%", "late fusion", "unguided", "DG-SCT", "DG-SCT − unguided", "without pairing"]
    return report.grid(caption, head, lines)


def figure_localisation(folder: Path | str | None = None) -> Any:
    """Event localisation: colours named inside events by row, a mark per seed; and the same against how often the map's
    peak lies on the object. Returns the axes."""
    import matplotlib.pyplot as plt

    from companion import plotting

    t = tables.table("dgsct", "localisation")
    ids = [c.id for c in t.columns]
    lines = _results("localisation", "reduced", folder)
    _, axes = plt.subplots(1, 2, figsize=(9.6, 3.6), sharey=True, width_ratios=(3, 2))
    for n, (row, line) in enumerate(zip(t.rows, lines, strict=True)):
        inside, peak = (line[ids.index(c)].values for c in ("inside", "peak"))
        style = {"color": plotting.PALETTE[n], "marker": plotting.MARKERS[n], "linestyle": "none"}
        height = [inside[s] for s in sorted(inside)]
        axes[0].plot([n + 0.14 * (k - (len(height) - 1) / 2) for k in range(len(height))], height, **style)
        both = sorted(inside.keys() & peak.keys())
        if row.id != "told":  # reads no map
            axes[1].plot([peak[s] for s in both], [inside[s] for s in both], **style)
    names = {"late-fusion": "late fusion", "told": "told where", "unguided": "unguided", "no-temporal": "no temporal\ngates",
             "dg-sct": "DG-SCT", "short": "DG-SCT,\n250 steps"}  # fmt: skip
    axes[0].set_xticks(range(len(t.rows)), [names[r.id] for r in t.rows], fontsize=9)
    for ax in axes:
        ax.axhline(100 / 3, color="0.5", linewidth=1)
    axes[0].set(ylabel="colour right inside events (%)", ylim=(0, 100))
    axes[1].set(xlabel="map's peak on the object (%)", xlim=(0, 100))
    return axes


def without_pairing(clips: int = 400, seed: int = 50_000) -> dict[str, float]:
    """Percent that a task's headline reaches with the sound's and the picture's own answers, never put together.

    Masks: every visible object is marked, outlines exact. Questions: the most common answer of each kind of question;
    where only the colour is asked, any colour in view.
    Few-shot and zero-shot: the shape that is heard with any visible colour that makes a class of it.
    """
    found = {}
    for sources, task in ((1, "avs-s4"), (2, "avs-ms3")):
        data = parsing.clips(clips, seed, sources, always=True)
        objects = (
            data.images.mean(1, keepdim=True).amax(2) > 0.45
        )  # black ground, noise of 0.08, colours from 0.75
        logits = 20.0 * objects.expand_as(data.masks).flatten(0, 1).float() - 10
        found[task] = metrics.mean_iou(logits, data.masks.flatten(0, 1).float())
    data = parsing.clips(2 * clips, seed, always=False)
    _, answers, kinds = parsing.questions(data, seed)
    right = sum(
        int(answers[[n for n, k in enumerate(kinds) if k == kind]].bincount().max()) for kind in set(kinds)
    )
    found["avqa"] = 100 * right / len(data)
    data = parsing.clips(4 * clips, seed, always=True)
    held = set(parsing.PAIRS[-parsing.HELD_OUT :])
    chances = []
    for place, colours, shapes in zip(
        data.source.tolist(), data.colours.tolist(), data.shapes.tolist(), strict=True
    ):
        if (colours[place], shapes[place]) in held:
            chances.append(1 / sum((c, shapes[place]) in held for c in colours if c >= 0))
    colours = dict.fromkeys(("avqa-colour", "avqa-colour-map", "few-shot"), 100 / 3)
    return found | colours | {"zero-shot": 100 * sum(chances) / len(chances)}


def gap(values: Sequence[float]) -> str:
    """`+3.2 ± 1.1 (3)`: mean of paired differences, half of the 95 % interval, seeds; one seed has no interval."""
    if not values:
        return "not run"
    half = tables.half_width(list(values))
    mean = f"{sum(values) / len(values):+.1f}".replace("-", "−")
    return mean if math.isnan(half) else f"{mean} ± {half:.1f} ({len(values)})"


def _columns(table: str, columns: Sequence[str]) -> tuple[tables.Table, list[int]]:
    t = tables.table("dgsct", table)
    known = [c.id for c in t.columns]
    if wrong := [c for c in columns if c not in known]:
        raise tables.TableError(f"{table} has no column {wrong[0]!r}; it has {', '.join(known)}")
    return t, [known.index(c) for c in columns]


def _titles(t: tables.Table, at: Sequence[int]) -> list[str]:
    units = [(t.columns[k].title, t.metric(t.columns[k]).unit) for k in at]
    return [f"{title}, {unit}" if unit else title for title, unit in units]


def _pairs(
    table: str, scale: str, column: str, row: str, others: Sequence[str], folder: Path | str | None
) -> dict[str, list[float]]:
    """For each of `others` the values of `row` minus its own, over the seeds that both have."""
    t, (k,) = _columns(table, [column])
    lines = {r.id: line for r, line in zip(t.rows, _results(table, scale, folder), strict=True)}
    if wrong := [r for r in (row, *others) if r not in lines]:
        raise tables.TableError(f"{table} has no row {wrong[0]!r}; it has {', '.join(lines)}")
    mine = lines[row][k].values
    theirs = {o: lines[o][k].values for o in others}
    return {o: [mine[s] - v[s] for s in sorted(mine.keys() & v.keys())] for o, v in theirs.items()}


def _results(table: str, scale: str, folder: Path | str | None) -> list[list[tables.Result]]:
    found = records.read(Path(folder) if folder else records.evidence_folder(), "dgsct", table)
    return tables.results(tables.table("dgsct", table), scale, found)
