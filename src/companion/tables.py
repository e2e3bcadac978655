"""Tables as data: what a paper reports, which run fills which cell, and what came out.

`papers/<paper>.toml` is the only source. A *cell* is a (table, row, column) at a scale; it resolves to a
notebook and its parameters. Records (`companion.records`) come back to the cell they were made for and
are summarised over seeds beside the reported value. See CONTRIBUTING.md for the format.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from companion import PAPERS, records

SCALES = ("reduced", "real", "full")
ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]*")


class TableError(ValueError):
    """A TOML file, or a name that a person typed, does not fit; the message is one sentence."""


@dataclass(frozen=True)
class Metric:
    """A number that a table shows: `id` is its key in a record; `direction` is higher, lower or none."""

    id: str
    title: str
    direction: str
    unit: str = ""
    decimals: int = 2


@dataclass(frozen=True)
class Reported:
    """A value as printed somewhere. `origin`: "paper: where", "secondary: where" or "unknown"."""

    origin: str
    value: float | None = None
    spread: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Line:
    """A row or a column: `at` are the scales where it exists, `reference` marks rows that only report."""

    id: str
    title: str
    at: tuple[str, ...]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    parameters_at: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metric: str = ""
    run: str = ""
    reference: bool = False
    note: str = ""


@dataclass(frozen=True)
class Scale:
    """How a table is run at one scale: default number of seeds, minutes and GPUs per run, parameters."""

    seeds: int
    minutes: float
    gpus: int
    parameters: Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One run to make: where it belongs and with which parameters its notebook is called."""

    paper: str
    table: str
    row: str
    column: str
    scale: str
    notebook: str
    parameters: Mapping[str, Any]
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """One table. Rows that are `reference` have reported values only."""

    paper: str
    id: str
    title: str
    origin: str
    notebook: str
    metrics: tuple[Metric, ...]
    rows: tuple[Line, ...]
    columns: tuple[Line, ...]
    scales: Mapping[str, Scale]
    reported: Mapping[tuple[str, str], Reported]
    caption: str = ""
    tolerance: float | None = None

    def metric(self, column: Line) -> Metric:
        """The metric that `column` shows (the table's first unless the column names another)."""
        return next((m for m in self.metrics if m.id == column.metric), self.metrics[0])

    def cell(self, row: str, column: str, scale: str) -> Cell:
        """The run behind a cell. Raises TableError for a name or a combination that does not exist."""
        at = _pick(scale, self.scales, f"{self.paper} {self.id}: scale")
        r = next(
            x
            for x in self.rows
            if x.id == _pick(row, [x.id for x in self.rows], f"{self.paper} {self.id}: row")
        )
        known = {c.id: c for c in self.columns} | {c.run: c for c in reversed(self.columns)}
        c = known[_pick(column, known, f"{self.paper} {self.id}: column")]
        if r.reference:
            raise TableError(
                f"{self.paper} {self.id}: row {r.id!r} only holds published values; nothing to run"
            )
        for line, kind in ((r, "row"), (c, "column")):
            if at not in line.at:
                raise TableError(f"{self.paper} {self.id}: {kind} {line.id!r} exists at {', '.join(line.at)}, "
                                 f"not at {at}")  # fmt: skip
        parameters = {**self.scales[at].parameters}
        for line in (r, c):
            parameters |= {**line.parameters, **line.parameters_at.get(at, {})}
        shown = tuple(dict.fromkeys(self.metric(x).id for x in self.columns if x.run == c.run))
        return Cell(self.paper, self.id, r.id, c.run, at, self.notebook, parameters, shown)

    def cells(self, scale: str, rows: Iterable[str] = (), columns: Iterable[str] = ()) -> list[Cell]:
        """All runs of the table at `scale`, or only those of the named rows and columns."""
        known_columns = [c.id for c in self.columns] + [c.run for c in self.columns]
        rows = [_pick(x, [r.id for r in self.rows], f"{self.paper} {self.id}: row") for x in rows]
        columns = [_pick(x, known_columns, f"{self.paper} {self.id}: column") for x in columns]
        found: dict[tuple[str, str], Cell] = {}
        for r in self.rows:
            for c in self.columns:
                wanted = (not rows or r.id in rows) and (not columns or c.id in columns or c.run in columns)
                if wanted and not r.reference and scale in r.at and scale in c.at and scale in self.scales:
                    found.setdefault((r.id, c.run), self.cell(r.id, c.id, scale))
        return list(found.values())


@dataclass(frozen=True)
class Claim:
    """A sentence of the abstract and how records decide it.

    The effect per seed is `row` minus (`difference`), over (`ratio`) or without (`value`) the row `than`,
    averaged over `columns`. The claim holds where the whole 95 % interval over seeds lies on the claimed
    side of `bound`.
    """

    id: str
    text: str
    source: str
    table: str = ""
    row: str = ""
    than: str = ""
    columns: tuple[str, ...] = ()
    metric: str = ""
    kind: str = "difference"
    at_least: float | None = None
    at_most: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Paper:
    """A paper: who, what, where it was read, its tables and claims."""

    id: str
    title: str
    short: str
    authors: tuple[str, ...]
    year: int
    arxiv: str
    evidence: str
    tables: Mapping[str, Table]
    claims: tuple[Claim, ...]
    venue: str = ""
    code: str = ""


# --- loading and checking ----------------------------------------------------------------------------


def nearest(name: str, known: Iterable[str]) -> str:
    """`known` as a readable list, the names nearest to `name` first."""
    known = list(dict.fromkeys(map(str, known)))
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    return ", ".join(close or known) or "none"


def _pick(name: str, known: Iterable[str], what: str) -> str:
    known = list(known)
    if str(name) in known:
        return str(name)
    raise TableError(f"{what} {str(name)!r} does not exist; did you mean {nearest(name, known)}?")


class _Reader:
    """Takes keys out of one TOML table and complains with the place when one is wrong, missing or left."""

    def __init__(self, content: Any, place: str) -> None:
        if not isinstance(content, dict):
            raise TableError(f"{place}: expected a table of keys, found {content!r}")
        self.content, self.place, self.used = content, place, set()

    def take(self, key: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
        self.used.add(key)
        if key not in self.content:
            if default is ...:
                raise TableError(f"{self.place}: key {key!r} is missing")
            return default
        value = self.content[key]
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, kind):
            names = kind.__name__ if isinstance(kind, type) else " or ".join(k.__name__ for k in kind)
            raise TableError(f"{self.place}: {key} = {value!r} is not of type {names}")
        return value

    def done(self) -> None:
        if left := [key for key in self.content if key not in self.used]:
            raise TableError(f"{self.place}: unknown key {left[0]!r}; known: {nearest(left[0], self.used)}")


def _parameters(reader: _Reader, key: str) -> dict[str, Any]:
    values = reader.take(key, dict, {})
    for name, value in values.items():
        if not isinstance(value, str | int | float | bool):
            raise TableError(
                f"{reader.place}: {key}.{name} = {value!r}; parameters are flat: text, number or true/false"
            )
    return values


def _metric(content: Any, place: str) -> Metric:
    r = _Reader(content, place)
    metric = Metric(r.take("id", str), r.take("title", str), r.take("direction", str), r.take("unit", str, ""),
                    r.take("decimals", int, 2))  # fmt: skip
    r.done()
    if metric.direction not in ("higher", "lower", "none"):
        raise TableError(f"{place}: direction {metric.direction!r} is not one of higher, lower, none")
    return metric


def _line(id_: str, content: Any, place: str, scales: Iterable[str], metrics: Iterable[str]) -> Line:
    if not ID.fullmatch(id_):
        raise TableError(
            f"{place}: {id_!r} cannot be a file name; use letters, digits, '.', '+', '_' and '-'"
        )
    r = _Reader(content, place)
    at = r.take("at", list, list(scales))
    by_scale = r.take("parameters_at", dict, {})
    for name in [*at, *by_scale]:
        _pick(name, scales, f"{place}: scale")
    for name in by_scale:
        _parameters(_Reader(by_scale, f"{place}.parameters_at"), name)
    line = Line(id_, r.take("title", str), tuple(at), _parameters(r, "parameters"), by_scale,
                r.take("metric", str, ""), r.take("run", str, id_), r.take("reference", bool, False),
                r.take("note", str, ""))  # fmt: skip
    r.done()
    if line.metric:
        _pick(line.metric, metrics, f"{place}: metric")
    return line


def _reported(content: Any, place: str) -> Reported:
    r = _Reader(content, place)
    value, spread = r.take("value", float, None), r.take("spread", float, None)
    origin = r.take("origin", str, "")
    if not origin:
        raise TableError(f"{place}: value {value} has no origin; write origin = 'paper: where', "
                         "'secondary: where' or 'unknown'")  # fmt: skip
    if not re.match(r"(paper|secondary): \S|unknown$", origin):
        raise TableError(f"{place}: origin {origin!r} is not 'paper: where', 'secondary: where' or 'unknown'")
    if (origin == "unknown") != (value is None):
        raise TableError(f"{place}: " + ("a value needs an origin other than 'unknown'" if value is not None
                                         else f"origin {origin!r} but no value"))  # fmt: skip
    reported = Reported(origin, value, spread, r.take("note", str, ""))
    r.done()
    return reported


def _table(paper: str, id_: str, content: Any, place: str) -> Table:
    if not ID.fullmatch(id_):
        raise TableError(f"{place}: {id_!r} cannot be a file name")
    r = _Reader(content, place)
    metrics = tuple(_metric(m, f"{place}, metric {k + 1}") for k, m in enumerate(r.take("metrics", list)))
    if not metrics:
        raise TableError(f"{place}: a table shows at least one metric")
    scales = {}
    for name, part in r.take("scales", dict).items():
        _pick(name, SCALES, f"{place}: scale")
        s = _Reader(part, f"{place}, scale {name!r}")
        scales[name] = Scale(s.take("seeds", int, 1), s.take("minutes", float), s.take("gpus", int, 0),
                             _parameters(s, "parameters"))  # fmt: skip
        s.done()
    ids = [m.id for m in metrics]
    rows = tuple(_line(k, v, f"{place}, row {k!r}", scales, ids) for k, v in r.take("rows", dict).items())
    columns = tuple(
        _line(k, v, f"{place}, column {k!r}", scales, ids) for k, v in r.take("columns", dict).items()
    )
    if not rows or not columns:
        raise TableError(f"{place}: a row without a column (or a column without a row) cannot be shown")
    origin = r.take("origin", str)
    if not re.match(r"paper(: \S|$)|companion$", origin):
        raise TableError(
            f"{place}: origin {origin!r} is not 'paper', 'paper: Table n' or 'companion' (a table of ours)"
        )
    given = dict(r.take("reported", dict, {}))
    default = given.pop("default", None)
    reported = {}
    for row in rows:
        cells = dict(given.pop(row.id, {}))
        for column in columns:
            spot = f"{place}, cell {row.id!r} × {column.id!r}"
            part = cells.pop(column.id, default if not row.reference else None)
            if part is not None:
                value = _reported(part, spot)
                # nobody reported a table of ours: there only values with an origin are kept
                if value.value is not None or origin != "companion":
                    reported[row.id, column.id] = value
            elif origin.startswith("paper") and not row.reference:
                raise TableError(
                    f"{spot}: nothing reported; give a value with its origin, or origin = 'unknown'"
                )
        if cells:
            raise TableError(
                f"{place}, row {row.id!r}: reported column {next(iter(cells))!r} is not a column of the table"
            )
    if given:
        raise TableError(f"{place}: reported row {next(iter(given))!r} is not a row of the table")
    table = Table(paper, id_, r.take("title", str), origin, r.take("notebook", str), metrics, rows, columns, scales,
                  reported, r.take("caption", str, ""), r.take("tolerance", float, None))  # fmt: skip
    r.done()
    return table


def _claim(id_: str, content: Any, place: str, tables: Mapping[str, Table]) -> Claim:
    r = _Reader(content, place)
    claim = Claim(id_, r.take("text", str), r.take("source", str), r.take("table", str, ""), r.take("row", str, ""),
                  r.take("than", str, ""), tuple(r.take("columns", list, [])), r.take("metric", str, ""),
                  r.take("kind", str, "difference"), r.take("at_least", float, None), r.take("at_most", float, None),
                  r.take("note", str, ""))  # fmt: skip
    r.done()
    if claim.table:
        table = tables[_pick(claim.table, tables, f"{place}: table")]
        for name in (claim.row, *([claim.than] if claim.kind != "value" else [])):
            _pick(name, [x.id for x in table.rows], f"{place}: row")
        for name in claim.columns:
            _pick(name, [x.id for x in table.columns], f"{place}: column")
        if claim.kind not in ("difference", "ratio", "value"):
            raise TableError(f"{place}: kind {claim.kind!r} is not one of difference, ratio, value")
        if (claim.at_least is None) == (claim.at_most is None):
            raise TableError(f"{place}: give exactly one of at_least and at_most")
    return claim


def parse(text: str, id_: str, file: str) -> Paper:
    """A paper out of TOML text. Raises TableError that names the file, the table and the cell."""
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TableError(f"{file}: not valid TOML ({error})") from None
    top = _Reader(content, file)
    r = _Reader(top.take("paper", dict), f"{file}, [paper]")
    tables = {k: _table(id_, k, v, f"{file}, table {k!r}") for k, v in top.take("tables", dict, {}).items()}
    claims = tuple(
        _claim(k, v, f"{file}, claim {k!r}", tables) for k, v in top.take("claims", dict, {}).items()
    )
    top.done()
    paper = Paper(id_, r.take("title", str), r.take("short", str), tuple(r.take("authors", list)), r.take("year", int),
                  r.take("arxiv", str), r.take("evidence", str), tables, claims, r.take("venue", str, ""),
                  r.take("code", str, ""))  # fmt: skip
    r.done()
    return paper


@lru_cache(maxsize=32)
def paper(id_: str) -> Paper:
    """The paper `id_`. Raises TableError when there is none, with the nearest names."""
    _pick(id_, available(), "paper")
    path = _folder() / f"{id_}.toml"
    return parse(path.read_text(encoding="utf-8"), id_, f"papers/{path.name}")


def _folder() -> Path:
    return Path(__file__).parent / "papers"


def available() -> list[str]:
    """Ids of the papers that have a TOML file, in the book's order."""
    there = {p.stem for p in _folder().glob("*.toml")}
    return [p for p in PAPERS if p in there] + sorted(there - set(PAPERS))


def table(paper_id: str, table_id: str) -> Table:
    """The table, or TableError with the nearest names."""
    tables = paper(paper_id).tables
    return tables[_pick(table_id, tables, f"{paper_id}: table")]


def cell(paper_id: str, table: str, row: str, column: str, scale: str = "reduced") -> Cell:
    """The cell that a notebook fills. Raises TableError for a wrong name, with the nearest ones."""
    tables = paper(paper_id).tables
    return tables[_pick(table, tables, f"{paper_id}: table")].cell(row, str(column), scale)


# --- results -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """What records say about one cell: per-seed values, their mean and 95 % half-width (NaN if unknown)."""

    row: Line
    column: Line
    metric: Metric
    reported: Reported | None
    values: Mapping[int, float]
    stale: str | None
    status: str
    paths: tuple[str, ...]

    @property
    def mean(self) -> float:
        return fmean(self.values.values()) if self.values else math.nan

    @property
    def half_width(self) -> float:
        return half_width(list(self.values.values()))


def half_width(values: list[float]) -> float:
    """Half of the 95 % t-interval of the mean of `values`; NaN for fewer than two."""
    if len(values) < 2:
        return math.nan
    return t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))


def t_quantile(freedom: int) -> float:
    """97.5 % point of Student's t. From a table up to 15, then the Cornish-Fisher series (error below 1e-4).

    SciPy has it, too, but takes longer to import than `companion show` takes to run.
    """
    known = (12.70620, 4.30265, 3.18245, 2.77645, 2.57058, 2.44691, 2.36462, 2.30600, 2.26216, 2.22814,
             2.20099, 2.17881, 2.16037, 2.14479, 2.13145)  # fmt: skip
    if freedom <= len(known):
        return known[freedom - 1]
    z, v = 1.959963985, freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )


def results(
    table: Table, scale: str, found: list[dict[str, Any]], metric: Metric | None = None
) -> list[list[Result]]:
    """One list per row, one `Result` per column, from the `records.read` list `found`.

    `metric` shows another number of the same runs than the columns' own. Records that no longer fit their cell
    are left out of the values and named in `stale`.
    """
    chosen = metric
    by_cell: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for record in found:
        run = record["run"]
        if (run["paper"], run["table"], run["scale"]) == (table.paper, table.id, scale):
            by_cell.setdefault((run["row"], run["column"]), []).append(record)
    lines = []
    for row in table.rows:
        line = []
        for column in table.columns:
            metric, reported = chosen or table.metric(column), table.reported.get((row.id, column.id))
            values, why, paths = {}, None, []
            exists = not row.reference and scale in table.scales and scale in row.at and scale in column.at
            if exists:
                cell = table.cell(row.id, column.id, scale)
                for record in by_cell.get((row.id, column.run), []):
                    paths.append(record.get("path", ""))
                    reason, value = records.stale(record, cell), record["metrics"].get(metric.id)
                    if reason:
                        why = reason
                    elif value is not None:
                        values[record["run"]["seed"]] = float(value)
            status = ("reference" if row.reference else "not at this scale" if not exists else "run" if values
                      else "stale" if why else "run" if paths else "not run")  # fmt: skip
            line.append(Result(row, column, metric, reported, values, why, status, tuple(paths)))
        lines.append(line)
    return lines


def verdict(result: Result, scale: str, tolerance: float | None) -> str:
    """ReScience's word for a cell, a dash where nothing is reported. Only the `full` scale can reproduce a number."""
    if result.status in ("not run", "stale", "reference", "not at this scale"):
        return result.status
    if result.reported is None:
        return "–"  # a table of ours: nobody reported anything
    if result.reported.value is None:
        return "unknown"
    if scale != "full" or tolerance is None:
        return "other scale"
    gap = abs(result.mean - result.reported.value)
    slack = tolerance + (0 if math.isnan(result.half_width) else result.half_width)
    return "reproduced" if gap <= slack else "partly reproduced" if gap <= 2 * slack else "not reproduced"


def number(value: float | None, metric: Metric) -> str:
    """`value` with the metric's decimals; an en dash where there is none."""
    return "–" if value is None or math.isnan(value) else f"{value:.{metric.decimals}f}"


def text(result: Result) -> str:
    """A cell in words: `63.9 ± 2.1 (5)`, `2.41 (2)` where all seeds agree exactly, `not run`, `stale`."""
    if not result.values:
        return {"reference": "", "not at this scale": "–", "run": "undefined"}.get(
            result.status, result.status
        )
    mean = number(result.mean, result.metric)
    if len(result.values) == 1:
        return mean
    if len(set(result.values.values())) == 1:
        return f"{mean} ({len(result.values)})"
    return f"{mean} ± {number(result.half_width, result.metric)} ({len(result.values)})"


def reported_text(reported: Reported | None, metric: Metric) -> str:
    """A reported value in words; `unknown` where nobody could read it, empty where nothing is reported."""
    if reported is None:
        return ""
    if reported.value is None:
        return "unknown"
    spread = f" ± {number(reported.spread, metric)}" if reported.spread is not None else ""
    return number(reported.value, metric) + spread


def flat(
    table: Table, scale: str, sources: Mapping[str, list[dict[str, Any]]]
) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table in long form: a line per cell, a column per source of records."""
    head = ["row", "column", "metric", "reported", "origin", *sources, "verdict"]
    per_source = {name: results(table, scale, found) for name, found in sources.items()}
    body = []
    for i, row in enumerate(table.rows):
        for j, column in enumerate(table.columns):
            cells = [per_source[name][i][j] for name in sources]
            first = next((c for c in cells if c.values), cells[0])
            title = f"{first.metric.title} ({first.metric.unit})" if first.metric.unit else first.metric.title
            origin = first.reported.origin if first.reported else ""
            if row.reference and first.reported is None:
                continue
            body.append([row.title, column.title, title, reported_text(first.reported, first.metric), origin,
                         *[text(c) for c in cells], verdict(first, scale, table.tolerance)])  # fmt: skip
    return head, body


def render(head: list[str], body: list[list[str]], form: str = "text") -> str:
    """A table as `text`, `markdown`, `csv` or `latex`. Raises TableError for another form."""
    if form == "csv":
        import csv
        import io

        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([head, *body])
        return out.getvalue()
    if form == "latex":
        special = {"&": r"\&", "%": r"\%", "_": r"\_", "#": r"\#", "±": r"$\pm$", "–": "--", "η": r"$\eta$",
                   "λ": r"$\lambda$", "²": r"$^2$", "×": r"$\times$", "≥": r"$\ge$", "≤": r"$\le$", ">": r"$>$"}  # fmt: skip
        lines = [
            " & ".join("".join(special.get(ch, ch) for ch in part) for part in line) + r" \\"
            for line in [head, *body]
        ]
        rule = [r"\begin{tabular}{" + "l" * len(head) + "}", r"\hline"]
        return "\n".join([*rule, lines[0], r"\hline", *lines[1:], r"\hline", r"\end{tabular}"]) + "\n"
    if form == "markdown":
        rows = [head, ["---"] * len(head), *body]
        return "\n".join("| " + " | ".join(p.replace("|", r"\|") for p in row) + " |" for row in rows) + "\n"
    if form == "text":
        wide = [max(len(line[k]) for line in [head, *body]) for k in range(len(head))]
        rows = [
            "  ".join(p.ljust(w) for p, w in zip(line, wide, strict=True)).rstrip() for line in [head, *body]
        ]
        return "\n".join([rows[0], "  ".join("-" * w for w in wide), *rows[1:]]) + "\n"
    raise TableError(
        f"format {form!r} does not exist; did you mean {nearest(form, ['text', 'markdown', 'csv', 'latex'])}?"
    )


@dataclass(frozen=True)
class Finding:
    """A claim after the records: verdict, effect, 95 % half-width, number of seeds."""

    verdict: str
    effect: float = math.nan
    half_width: float = math.nan
    seeds: int = 0


def judge(claim: Claim, paper: Paper, scale: str, found: list[dict[str, Any]]) -> Finding:
    """Supported, not supported, mixed (the interval holds the bound) or not tested (under two seeds)."""
    if not claim.table:
        return Finding("not tested")
    table = paper.tables[claim.table]
    lines = {row.id: {r.column.id: r for r in line} for row, line in
             zip(table.rows, results(table, scale, found), strict=True)}  # fmt: skip
    columns = claim.columns or tuple(c.id for c in table.columns)

    def values(row: str) -> list[dict[int, float]]:
        return [_values(lines[row][c], claim.metric, found, table, scale) for c in columns]

    mine = values(claim.row)
    theirs = values(claim.than) if claim.kind != "value" else []
    seeds = sorted(set.intersection(*(set(v) for v in mine + theirs)))
    if len(seeds) < 2:
        return Finding("not tested", seeds=len(seeds))
    effects = []
    for seed in seeds:
        a = fmean(v[seed] for v in mine)
        b = fmean(v[seed] for v in theirs) if theirs else 0.0
        effects.append(a / b if claim.kind == "ratio" else a - b)
    mean, half = fmean(effects), half_width(effects)
    low, high = mean - half, mean + half
    bound = claim.at_least if claim.at_least is not None else claim.at_most
    holds, fails = (
        (low >= bound, high < bound) if claim.at_least is not None else (high <= bound, low > bound)
    )
    return Finding("supported" if holds else "not supported" if fails else "mixed", mean, half, len(seeds))


def _values(
    result: Result, metric: str, found: list[dict[str, Any]], table: Table, scale: str
) -> dict[int, float]:
    if not metric or metric == result.metric.id:
        return dict(result.values)
    keep = set(result.paths)
    return {r["run"]["seed"]: float(r["metrics"][metric]) for r in found
            if r.get("path", "") in keep and r["run"]["seed"] in result.values
            and r["metrics"].get(metric) is not None}  # fmt: skip
