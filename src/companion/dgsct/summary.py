"""The chapter's tables, made from the committed records when the page is built.

`grid` shows chosen columns of a table as they are; `tasks` sets the six tasks side by side with the differences that
count, paired by seed, and with what can be had without pairing sound and vision.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path

from companion import records, report, tables
from companion.dgsct import metrics, parsing


def grid(table: str, scale: str, columns: Sequence[str], folder: Path | str | None = None) -> report.Html:
    """A line per row of `table`: mean ± half of the 95 % interval (seeds), one value where there is one seed.

    Raises TableError for a table or column that does not exist.
    """
    t = tables.table("dgsct", table)
    known = [c.id for c in t.columns]
    if wrong := [c for c in columns if c not in known]:
        raise tables.TableError(f"{table} has no column {wrong[0]!r}; it has {', '.join(known)}")
    at = [known.index(c) for c in columns]
    lines = [[row.title, *(tables.text(line[k]) for k in at)]
             for row, line in zip(t.rows, _results(table, scale, folder), strict=True)]  # fmt: skip
    titles = []
    for c in (t.columns[k] for k in at):
        unit = t.metric(c).unit
        titles.append(f"{c.title}, {unit}" if unit else c.title)
    return _html(["", *titles], lines)


def tasks(folder: Path | str | None = None, clips: int = 400) -> report.Html:
    """A line per task: the three arms, DG-SCT minus unguided paired by seed, and `without_pairing`."""
    t = tables.table("dgsct", "tasks")
    arms = {row.id: line for row, line in zip(t.rows, _results("tasks", "reduced", folder), strict=True)}
    floor = without_pairing(clips)
    lines = []
    for k, column in enumerate(t.columns):
        mine, theirs = arms["dg-sct"][k].values, arms["unguided"][k].values
        shown = [tables.text(arms[a][k]) for a in ("late-fusion", "unguided", "dg-sct")]
        shown.append(gap([mine[s] - theirs[s] for s in sorted(mine.keys() & theirs.keys())]))
        lines.append([column.title, *shown, f"{floor[column.id]:.1f}" if column.id in floor else "–"])
    return _html(["%", "late fusion", "unguided", "DG-SCT", "DG-SCT − unguided", "without pairing"], lines)


def without_pairing(clips: int = 400, seed: int = 50_000) -> dict[str, float]:
    """Percent that a task's headline reaches with the sound's and the picture's own answers, never put together.

    Masks: every visible object is marked, outlines exact. Questions: the most common answer of each kind of question.
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
    return found | {"few-shot": 100 / 3, "zero-shot": 100 * sum(chances) / len(chances)}


def gap(values: Sequence[float]) -> str:
    """`+3.2 ± 1.1 (3)`: mean of paired differences, half of the 95 % interval, seeds; one seed has no interval."""
    if not values:
        return "not run"
    half = tables.half_width(list(values))
    mean = f"{sum(values) / len(values):+.1f}".replace("-", "−")
    return mean if math.isnan(half) else f"{mean} ± {half:.1f} ({len(values)})"


def _results(table: str, scale: str, folder: Path | str | None) -> list[list[tables.Result]]:
    found = records.read(Path(folder) if folder else records.evidence_folder(), "dgsct", table)
    return tables.results(tables.table("dgsct", table), scale, found)


def _html(head: Sequence[str], lines: Sequence[Sequence[str]]) -> report.Html:
    top = "".join(f'<th scope="col">{html.escape(h)}</th>' for h in head)
    body = "".join(
        f'<tr><th scope="row">{html.escape(line[0])}</th>'
        + "".join(f"<td>{html.escape(x)}</td>" for x in line[1:])
        + "</tr>"
        for line in lines
    )
    return report.Html(
        f'<div class="results"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )
