"""Excerpts of the news world's tables, for the chapter: chosen rows and columns, made from the records at build."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from companion import records, report, tables


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
    lines = [[grid[row, columns[0]].row.title, *(spelt(grid[row, c], each) for c in columns)] for row in rows]
    caption = t.title + (", every seed by itself" if each else "")
    return report.grid(caption, ["", *(f"{titles[c]}, %" for c in columns)], lines)


def spelt(result: tables.Result, each: bool) -> str:
    """One cell: every seed's value, or mean, half-width and number of seeds."""
    values = [result.values[seed] for seed in sorted(result.values)]
    if each and values:
        return ", ".join(tables.number(v, result.metric) for v in values)
    return tables.text(result) + (" (1)" if len(values) == 1 else "")
