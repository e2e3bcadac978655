"""The chapter's tables and figures, made from the committed records when the page is built.

Runs never import this module, so that a change of a heading here makes no record stale.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from companion import plotting, records, report, tables

# What a start knows, as the figure's legend says it; the order gives a start one style in both panels.
STARTS = {"reaction": "reactions", "real": "patent reactions", "compound": "molecules only", "scratch": "nothing",
          "world": "RDKit's reactions", "real-slow": "patents, a tenth of the rate"}  # fmt: skip
SPLITS = {"random": "random 70/30", "test1": "Test 1", "test2": "Test 2", "test3": "Test 3", "test4": "Test 4",
          "suzuki": "Suzuki, random"}  # fmt: skip
TESTS = ("test1", "test2", "test3", "test4")
# Mean and spread over the four Tests as the authors' model card prints them (theirs are of unrounded values).
MEANS = {"reactiont5": "0.857 ± 0.041", "compoundt5": "0.741 ± 0.126", "t5chem": "0.785 ± 0.094"}


def excerpt(table: str, scale: str, columns: Mapping[str, str], title: str, rows: Sequence[str] = (),
            folder: Path | str | None = None) -> report.Html:  # fmt: skip
    """Rows × columns of a table of this paper.

    A cell is the mean, half of its 95 % interval over seeds and their number, `17.3 ± 9.4 (3)`; one seed has no
    interval. Stale records count as not run and are called stale.

    Args:
        table, scale: which table, such as "few-shot-world" at "reduced".
        columns: id -> head, in the order in which they are shown.
        title: the caption; it says what a number is and in which unit.
        rows: ids in the order in which they are shown; none: all of them.
        folder: where the records are; default: the committed ones.

    Raises:
        TableError: for a table, row or column that does not exist.
    """
    t, grid = _grid(table, scale, folder)
    rows = rows or [row.id for row in t.rows]
    for kind, named, known in (("row", rows, t.rows), ("column", columns, t.columns)):
        if missing := [n for n in named if n not in {k.id for k in known}]:
            raise tables.TableError(
                f"{table} has no {kind} {missing[0]!r}; it has {', '.join(k.id for k in known)}"
            )
    names = {row.id: row.title for row in t.rows}
    lines = [[names[row], *(tables.text(grid[row, c]) for c in columns)] for row in rows]
    return report.grid(title, ["", *columns.values()], lines)


def yields(folder: Path | str | None = None) -> report.Html:
    """Real yields, R²: what the authors report, the forests, and our small network, split by split, and the mean of Tests 1 to 4. In the random column the
    interval is over splits."""
    reported = tables.table("reactiont5", "yield")
    metric = reported.metrics[0]
    columns = list(SPLITS)
    after = columns.index(TESTS[-1]) + 1

    def line(name: str, cells: Mapping[str, str], mean: str) -> list[str]:
        texts = [cells[c] for c in columns]
        return [name, *texts[:after], mean, *texts[after:]]

    lines = []
    for row in ("reactiont5", "compoundt5", "t5chem"):
        name = next(r.title for r in reported.rows if r.id == row)
        cells = {c: tables.reported_text(reported.reported.get((row, c)), metric) or "–" for c in SPLITS}
        lines.append(line(f"reported: {name}", cells, MEANS[row]))
    for table, lead in (("yield-baselines", ""), ("yield-small", "small network, ")):
        t, grid = _grid(table, "real", folder)
        for row in t.rows:
            found = {c: grid[row.id, c] for c in SPLITS}
            if table == "yield-baselines":
                found["random"] = _over_splits(found["random"], folder)
            four = [found[c].mean for c in TESTS if found[c].values]
            mean = tables.number(sum(four) / len(four), metric) if len(four) == len(TESTS) else "–"
            lines.append(line(lead + row.title, {c: tables.text(r) for c, r in found.items()}, mean))
    title = "Real yields, R² (higher is better); the small network's epoch is chosen on held-out data"
    heads = list(SPLITS.values())
    return report.grid(title, ["", *heads[:after], "mean of Tests", *heads[after:]], lines)


def _over_splits(cell: tables.Result, folder: Path | str | None) -> tables.Result:
    """A forest's cell with the ten random splits of its first run in place of runs that each are their mean."""
    if not cell.values:
        return cell
    base = Path(folder) if folder else records.evidence_folder()
    for r in records.read(base, "reactiont5", "yield-baselines"):
        run = r["run"]
        here = (run["row"], run["column"], run["seed"]) == (cell.row.id, cell.column.id, min(cell.values))
        if here and "r2 of each split" in r.get("notes", {}):
            return replace(cell, values=dict(enumerate(r["notes"]["r2 of each split"])))
    return cell


def choices(folder: Path | str | None = None) -> report.Html:
    """R² of the same trainings by who chooses the epoch, and what the test part's choice adds."""
    who = {"r2": "held-out data", "r2_published": "test part, as published", "r2_last": "the last epoch",
           "optimism": "gain by the test part"}  # fmt: skip
    short = {"real": "patents", "scratch": "untrained"}
    lines = []
    for metric, name in who.items():
        _, grid = _grid("yield-small", "real", folder, metric)
        for row, start in short.items():
            lines.append([f"{start}: {name}", *(tables.text(grid[row, c]) for c in SPLITS)])
    title = "R² on the test part, by what chooses the epoch (higher is better); network pre-trained on patents, and untrained"
    return report.grid(title, ["", *SPLITS.values()], sorted(lines, key=lambda line: line[0].split(":")[0]))


def few_shot_figure(folder: Path | str | None = None) -> Any:
    """Exact match over the number of examples: RDKit's reactions and short patent reactions. None without records."""
    panels = [("few-shot-world", "reduced", "all", "a new reaction type (RDKit)"),
              ("few-shot-uspto", "real", "forward", "short patent reactions")]  # fmt: skip
    found = [curves(table, scale, run, folder) for table, scale, run, _ in panels]
    if not any(found):
        print("Not drawn: no valid record of few-shot-world or few-shot-uspto is here.")
        return None
    figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.9))
    for (table, *_, title), ax, series in zip(panels, axes, found, strict=True):
        for name, points in series.items():
            k = list(dict.fromkeys(STARTS.values())).index(name)
            k = max(0, k - 1)  # "reactions" and "patent reactions" are the same kind of start
            xs, ys, half = zip(*points, strict=True)
            ax.errorbar(xs, ys, yerr=[0 if h != h else h for h in half], label=name, capsize=3,
                        color=plotting.PALETTE[k], marker=plotting.MARKERS[k], linestyle=plotting.DASHES[k])  # fmt: skip
        counts = sorted({x for points in series.values() for x, *_ in points})
        ax.set_xscale("symlog", linthresh=10)
        ax.set_xticks(counts, [str(n) for n in counts])
        ax.set(
            xlabel="examples",
            ylabel="top-1 (%)",
            title=title,
            ylim=(-3, 103 if table == "few-shot-world" else 48),
        )
        if series:
            ax.legend(title="pre-trained on", loc="upper left")
    return figure


def curves(table: str, scale: str, run: str, folder: Path | str | None = None) -> dict[str, list[tuple]]:
    """Start -> (number of examples, mean top-1, half of the 95 % interval or NaN), for starts that have records."""
    t, grid = _grid(table, scale, folder)
    found: dict[str, list[tuple]] = {}
    for row in t.rows:
        for column in t.columns:
            count, r = re.fullmatch(r"top1_(\d+)", column.metric or ""), grid[row.id, column.id]
            if count and column.run == run and r.values:
                found.setdefault(STARTS[row.id], []).append((int(count[1]), r.mean, r.half_width))
    return found


def selection_figure(row: str = "real", columns: Sequence[str] = ("test1", "test4"), seed: int = 0,
                     folder: Path | str | None = None) -> Any:  # fmt: skip
    """Error on held-out data and on the test part during one training per split. None without records."""
    base = Path(folder) if folder else records.evidence_folder()
    found = {}
    for r in records.read(base, "reactiont5", "yield-small"):
        run = r["run"]
        cell = tables.cell("reactiont5", "yield-small", run["row"], run["column"], run["scale"])
        if (
            run["row"] == row
            and run["column"] in columns
            and run["seed"] == seed
            and not records.stale(r, cell)
        ):
            found[run["column"]] = {
                k.split(", ")[1]: v for k, v in r["curves"].items() if k.startswith("rmse, ")
            }
    if not found:
        print("Not drawn: no valid record of yield-small is here.")
        return None
    figure, axes = plt.subplots(1, len(found), figsize=(4.8 * len(found), 3.6), sharey=True, squeeze=False)
    for ax, (column, series) in zip(axes[0], sorted(found.items()), strict=True):
        plotting.curves(series, y="RMSE (% yield)", title=SPLITS[column], ax=ax)
        for k, points in enumerate(series.values()):
            best = min(points, key=lambda p: p[1])
            ax.plot(*best, marker=plotting.MARKERS[k], color=plotting.PALETTE[k], markersize=8)
    return figure


def _grid(
    table: str, scale: str, folder: Path | str | None, metric: str = ""
) -> tuple[tables.Table, dict[tuple[str, str], tables.Result]]:
    t = tables.table("reactiont5", table)
    chosen = next((m for m in t.metrics if m.id == metric), None)
    found = records.read(Path(folder) if folder else records.evidence_folder(), "reactiont5", table)
    return t, {(r.row.id, r.column.id): r for line in tables.results(t, scale, found, chosen) for r in line}
