"""Excerpts of the news world's tables, for the chapter: chosen rows and columns, made from the records at build."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from companion import records, report, tables

WRAP = "white-space: normal; max-width: min(11rem, 30vw)"  # a page need not scroll sideways for long titles


def excerpt(
    table: str, columns: Sequence[str], rows: Sequence[str] = (), each: bool = False, folder: Any = None
) -> report.Html:
    """Rows × columns of a table of this paper at the scale "real".

    A cell is the mean, half of its 95 % interval and the number of seeds, `96.8 ± 9.9 (3)`; without interval where
    there is one seed, `3.5 (1)`. Stale records count as not run.

    Args:
        table: its name, such as "conditions".
        columns, rows: ids, in the order in which they are shown; no rows: all of them.
        each: every seed's value in place of mean and interval.
        folder: where the records are; default: the committed ones.

    Raises:
        ValueError: for a row or column that the table lacks.
    """
    t = tables.table("newscap", table)
    found = records.read(folder or records.evidence_folder(), "newscap", table, "real")
    grid = {(r.row.id, r.column.id): r for line in tables.results(t, "real", found) for r in line}
    rows = rows or [row.id for row in t.rows]
    for name, known in ((rows, t.rows), (columns, t.columns)):
        if missing := [n for n in name if n not in {k.id for k in known}]:
            raise ValueError(
                f"the table {table} has no {missing[0]!r}; it has {', '.join(k.id for k in known)}"
            )
    titles = {c.id: c.title for c in t.columns}
    body = []
    for row in rows:
        line = [grid[row, c] for c in columns]
        body.append([line[0].row.title, *(spelt(r, each) for r in line)])
    head = "".join(
        f'<th scope="col" style="white-space: normal; max-width: 6rem">{html.escape(titles[c])}, %</th>'
        for c in columns
    )
    lines = "".join(
        f'<tr><th scope="row" style="{WRAP}">{html.escape(name)}</th>{"".join(f"<td>{html.escape(v)}</td>" for v in values)}</tr>'
        for name, *values in body
    )
    return report.Html(
        f'<div class="results"><table><thead><tr><th scope="col"></th>{head}</tr></thead>'
        f"<tbody>{lines}</tbody></table></div>"
    )


def spelt(result: tables.Result, each: bool) -> str:
    """One cell: every seed's value, or mean, half-width and number of seeds."""
    values = [result.values[seed] for seed in sorted(result.values)]
    if each and values:
        return ", ".join(tables.number(v, result.metric) for v in values)
    return tables.text(result) + (" (1)" if len(values) == 1 else "")
