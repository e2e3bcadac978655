"""Tables, claims and run lists as HTML for notebooks and pages: reported beside reproduced, each with its record."""

from __future__ import annotations

import html
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from companion import records, tables

ARROWS = {"higher": "↑", "lower": "↓", "none": ""}


class Html(str):
    """Text that a notebook shows as HTML."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return str(self)


def _link(path: str, text: str, base: str) -> str:
    """`text` linked to a committed record, or bare when the record is only on this machine."""
    evidence = records.evidence_folder()
    if evidence and (inside := os.path.relpath(path, evidence)) and not inside.startswith(".."):
        return f'<a href="{base}{html.escape(Path(inside).as_posix())}">{text}</a>'
    return text


class _Sources:
    """Where the reported values of one table were read: numbered in the order of their first use.

    One source for all is named below the table without numbers.
    """

    def __init__(self, table: tables.Table) -> None:
        self.prefix = f"{table.paper}-{table.id}-source"
        known = [table.reported.get((r.id, c.id)) for r in table.rows for c in table.columns]
        self.texts = list(dict.fromkeys(self.text(r) for r in known if r is not None and r.value is not None))

    @staticmethod
    def text(reported: tables.Reported) -> str:
        kind, _, where = reported.origin.partition(": ")
        where = f"the paper, {where}" if kind == "paper" else where
        return where + (f" ({reported.note.rstrip('.')})" if reported.note else "")

    def mark(self, reported: tables.Reported) -> str:
        """A small number that leads to the source, nothing where there is only one."""
        if len(self.texts) < 2 or reported.value is None:
            return ""
        k = self.texts.index(self.text(reported)) + 1
        return f'<sup><a href="#{self.prefix}-{k}" title="{html.escape(self.text(reported))}">{k}</a></sup>'

    def line(self) -> str:
        """The paragraph below the table."""
        if not self.texts:
            return ""
        many = len(self.texts) > 1
        items = [f'<span id="{self.prefix}-{k}">{f"<sup>{k}</sup> " if many else ""}{html.escape(text)}</span>'
                 for k, text in enumerate(self.texts, 1)]  # fmt: skip
        return f'<p class="sources"><small>Reported values as read in: {"; ".join(items)}.</small></p>'


def _reported(result: tables.Result, sources: _Sources) -> str:
    if result.reported is None:
        return ""
    text = html.escape(tables.reported_text(result.reported, result.metric))
    return f'<span class="reported">{text}</span>{sources.mark(result.reported)}'


def _ours(result: tables.Result, base: str) -> str:
    text = html.escape(tables.text(result))
    if result.values:
        links = [p for p in result.paths if p]
        text = _link(links[0], text, base) if links else text
        if result.stale:
            text += f' <span class="stale" title="{html.escape(result.stale)}">some seeds stale</span>'
        return f'<span class="ours">{text}</span>'
    title = f' title="{html.escape(result.stale)}"' if result.stale else ""
    kind = result.status.replace(" ", "-")
    return f'<span class="{kind}"{title}>{text}</span>'


def _words(text: str) -> set[str]:
    return set(re.findall(r"[\w.²/]+", text.lower()))


def _head(column: tables.Line, metric: tables.Metric) -> str:
    """A column's head: its title, then the metric's title, unit and direction.

    What the metric says as well is left out of the title ("10 reactions, invalid" over "invalid among the top 5"), and
    when one of the two has all the words of the other, only that one is shown.
    """
    words = _words(metric.title)
    title = ", ".join(part for part in column.title.split(", ") if not _words(part) <= words)
    name = "" if not title or words <= _words(column.title) else metric.title
    title = (column.title if words <= _words(column.title) else title) or metric.title
    small = f"{', '.join(filter(None, (name, metric.unit)))} {ARROWS[metric.direction]}".strip()
    return html.escape(title) + (f"<br><small>{html.escape(small)}</small>" if small else "")


def _grid(
    table: tables.Table,
    scale: str,
    metric: tables.Metric | None,
    found: dict[str, list],
    base: str,
    sources: _Sources,
) -> str:
    """One rows × columns table; every cell holds what is reported and what each source of records says.

    A metric that all columns share stands in the caption, else each head has its own.
    """
    grids = {name: tables.results(table, scale, recs, metric) for name, recs in found.items()}
    first = next(iter(grids.values()))
    # where nothing was run at all, the page says so once and the cells show what is reported
    idle = all(r.status not in ("run", "stale") for grid in grids.values() for line in grid for r in line)
    shown = [result.metric for result in first[0]]
    shared = len({(m.title, m.unit, m.direction) for m in shown}) == 1
    heads = [
        html.escape(c.title) if shared else _head(c, m) for c, m in zip(table.columns, shown, strict=True)
    ]
    lines, hidden = [], []
    for i, row in enumerate(table.rows):
        line = first[i]
        known = any(r.reported is not None and r.reported.value is not None for r in line)
        if not known and all(r.status == "not at this scale" for r in line):
            hidden.append(row.title)
            continue
        if metric is not None and row.reference:
            continue  # published values belong to the columns' own metric
        cells = []
        for j, column in enumerate(table.columns):
            one = first[i][j]
            silent = row.reference or (one.status == "not at this scale" and one.reported is not None)
            silent = silent or (idle and one.reported is not None and one.status == "not run")
            parts = [] if silent else [_ours(grids["committed"][i][j], base)]
            if "this machine" in grids and grids["this machine"][i][j].values:
                parts.append(
                    f'<span class="mine">here {html.escape(tables.text(grids["this machine"][i][j]))}</span>'
                )
            if metric is None or metric.id == table.metric(column).id:
                parts.insert(0, _reported(one, sources))
            # nothing known and nothing run: one line instead of two
            empty = one.reported is not None and one.reported.value is None and one.status == "not run"
            cells.append("<td>" + (" · " if empty else "<br>").join(p for p in parts if p) + "</td>")
        note = f"<br><small>{html.escape(row.note)}</small>" if row.note else ""
        lines.append(f'<tr><th scope="row">{html.escape(row.title)}{note}</th>{"".join(cells)}</tr>')
    left = (
        f"<details><summary>{len(hidden)} rows exist at other scales only, and nobody's numbers for them are known"
        f"</summary><p>{html.escape(', '.join(hidden))}</p></details>"
        if hidden
        else ""
    )
    what = ", ".join(filter(None, (shown[0].title, shown[0].unit))) + f" {ARROWS[shown[0].direction]}"
    only = " (reported; nothing was run)" if idle and sources.texts else ""
    caption = f"{scale.capitalize()} scale" + (f": {what.strip()}" if shared else "") + only
    return (f'<div class="results{" idle" if only else ""}"><table><caption>{html.escape(caption)}</caption><thead><tr><th scope="col"></th>'
            f'{"".join(f"""<th scope="col">{head}</th>""" for head in heads)}</tr></thead>'
            f'<tbody>{"".join(lines)}</tbody></table></div>{left}')  # fmt: skip


def grid(caption: str, head: Iterable[Any], lines: Iterable[Sequence[Any]]) -> Html:
    """A plain table in the look of the results pages.

    Args:
        caption: what the numbers are, with their unit; may be empty.
        head: the columns' heads, the first of them above the rows' names.
        lines: a row's name and its cells; text, not HTML.
    """
    top = "".join(f'<th scope="col">{html.escape(str(h))}</th>' for h in head)
    body = "".join(
        f'<tr><th scope="row">{html.escape(str(name))}</th>'
        + "".join(f"<td>{html.escape(str(x))}</td>" for x in cells)
        + "</tr>"
        for name, *cells in lines
    )
    above = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return Html(
        f'<div class="results plain"><table>{above}<thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def table(paper: str, table_id: str, base: str = "../../") -> Html:
    """A table at every scale for which there are records (else the first scale, as "not run").

    Args:
        paper, table_id: which table.
        base: where the records' folder lies, seen from the page.
    """
    t = tables.table(paper, table_id)
    parts = []
    origin = {"companion": "A table of ours; the paper has none like it.", "paper": "A table of the paper."}
    where = origin.get(t.origin, t.origin.replace("paper:", "In the paper:").rstrip(".") + ".")
    parts.append(f'<p id="table-{table_id}">{html.escape(where)} {_inline(t.caption)}</p>')
    sources = _Sources(t)
    committed = records.read(records.evidence_folder(), paper, table_id)
    mine = records.read(records.runs_folder(), paper, table_id)
    there = [s for s in t.scales if any(r["run"]["scale"] == s for r in committed + mine)]
    usual = "full" if t.origin != "companion" and "full" in t.scales else next(iter(t.scales), "full")
    for scale in there or [usual]:
        found: dict[str, list] = {"committed": committed}
        if any(r["run"]["scale"] == scale for r in mine):
            found["this machine"] = mine
        parts.append(_grid(t, scale, None, found, base, sources))
        if not any(c.metric for c in t.columns) and len(t.metrics) > 1 and there:
            more = "".join(_grid(t, scale, m, found, base, sources) for m in t.metrics[1:])
            parts.append(f"<details><summary>Other measures of the same runs</summary>{more}</details>")
        own = [r for r in committed if r["run"]["scale"] == scale]
        if own:
            parts.append(_runs(own, base))
    parts.append(sources.line())
    missing = [s for s in t.scales if s not in there]
    if missing:
        parts.append(f"<p>Not run at: {', '.join(missing)}. "
                     f"<code>companion reproduce {paper} {table_id} --scale {missing[0]}</code></p>")  # fmt: skip
    return Html("".join(parts))


def _inline(text: str) -> str:
    """Escaped text with **strong**, *emphasis* and `code`, the only markup that captions use."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
    text = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)
    return re.sub(r"\*([^*\s][^*]*)\*", r"<em>\1</em>", text)


def _runs(found: list[dict[str, Any]], base: str) -> str:
    """A folded list of runs with links: cell, seed, time, memory, machine, commit."""
    lines = []
    for r in found:
        run, made = r["run"], r["provenance"]
        device = made["gpu"]["name"] if made["gpu"] else made["processor"]
        commit = (made["commit"] or "unknown")[:8] + ("+" if made["dirty"] else "")
        if confirmed := made.get("confirmed"):
            why = f"a run of the code of that commit gave the same numbers: {confirmed['by']}"
            commit += f' <span title="{html.escape(why)}">(confirmed at {confirmed["commit"][:8]})</span>'
        name = f"{run['row']} × {run['column']}, seed {run['seed']}"
        lines.append(
            f"<tr><td>{_link(r['path'], html.escape(name), base)}</td>"
            f"<td>{made['wall_s']:.0f} s</td><td>{made['peak_memory']['rss_mib'] or 0:.0f} MiB</td>"
            f"<td>{html.escape(device)}</td><td>{commit}</td></tr>"
        )
    return (f"<details><summary>{len(found)} run records</summary><div class='results'><table><thead><tr>"
            "<th scope='col'>run</th><th scope='col'>time</th><th scope='col'>memory</th><th scope='col'>machine</th>"
            f"<th scope='col'>commit</th></tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
            "<p><small>Time is that of the run itself; what it found in the cache, such as a training that another "
            "table had asked for, is not in it.</small></p></details>")  # fmt: skip


def _measure(claim: tables.Claim, table: tables.Table) -> tables.Metric:
    """The metric that a claim is about: its own where the table shows it, else that of its first column."""
    first = next(c for c in table.columns if not claim.columns or c.id in claim.columns)
    return next((m for m in table.metrics if m.id == claim.metric), table.metric(first))


def _signed(claim: tables.Claim) -> bool:
    """Whether the effect is a difference: by its kind, or because the value is compared with zero."""
    return claim.kind == "difference" or (claim.kind == "value" and 0 in (claim.at_least, claim.at_most))


def _unit(claim: tables.Claim, metric: tables.Metric) -> str:
    unit = "" if claim.kind == "ratio" else "points" if metric.unit == "%" and _signed(claim) else metric.unit
    return f" {unit}" if unit else ""


def _effect(finding: tables.Finding, claim: tables.Claim, metric: tables.Metric) -> str:
    """The effect with sign, the metric's decimals and unit: `+25.6 ± 8.6 points`; no interval where all seeds agree."""
    if math.isnan(finding.effect):
        return "–"
    digits = max(metric.decimals, 2) if claim.kind == "ratio" else metric.decimals
    while finding.half_width > 0 and not float(f"{finding.half_width:.{digits}f}"):
        digits += 1
    size = f"{abs(finding.effect):.{digits}f}"
    sign = "−" if finding.effect < 0 and float(size) else "+" if _signed(claim) and float(size) else ""
    half = f" ± {finding.half_width:.{digits}f}" if finding.half_width > 0 else ""
    return f"{sign}{size}{half}{_unit(claim, metric)}"


def _test(claim: tables.Claim, paper: tables.Paper, page: str) -> str:
    """What is compared, in the table's own words, and the bound; linked to the table on the page `page`."""
    if not claim.table:
        return "no test"
    table = paper.tables[claim.table]
    rows, columns = ({x.id: x.title for x in lines} for lines in (table.rows, table.columns))
    metric = _measure(claim, table)
    other = {"difference": " minus ", "ratio": " over ", "value": ""}[claim.kind] + rows.get(claim.than, "")
    where = " · ".join(columns[c] for c in claim.columns)
    own = claim.metric and (metric.title if claim.metric == metric.id else claim.metric)
    what = [where] * bool(where) + [own] * bool(own and own not in where)
    bound = f"≥ {claim.at_least:g}" if claim.at_least is not None else f"≤ {claim.at_most:g}"
    text = "; ".join([rows[claim.row] + other, *what])
    return (f'test: {html.escape(text)} {bound.replace("-", "−")}{html.escape(_unit(claim, metric))}, '
            f'<a href="{page}#table-{claim.table}">{html.escape(table.title)}</a>')  # fmt: skip


def overview() -> Html:
    """The front page's summary: per paper, how many of its claims got which verdict, linked to chapter and results.

    A claim counts once, with its verdict at the largest scale that gave one.
    """
    order = ("supported", "mixed", "not supported", "not tested")
    lines = []
    for name in tables.available():
        paper = tables.paper(name)
        found = records.read(records.evidence_folder(), name)
        count = dict.fromkeys(order, 0)
        for claim in paper.claims:
            scales = tables.SCALES if claim.table else ()
            verdicts = [tables.judge(claim, paper, s, found).verdict for s in scales
                        if s in paper.tables[claim.table].scales]  # fmt: skip
            tested = [v for v in verdicts if v != "not tested"]
            count[tested[-1] if tested else "not tested"] += 1
        cells = "".join(f"<td>{count[v] or '–'}</td>" for v in order)
        lines.append(f'<tr><th scope="row"><a href="papers/{name}.html">{html.escape(paper.short)}</a></th>{cells}'
                     f'<td><a href="results/{name}.html">{len(found)} runs</a></td></tr>')  # fmt: skip
    head = "".join(f'<th scope="col">{_verdict(v)}</th>' for v in order)
    return Html(f'<div class="results overview"><table><thead><tr><th></th>{head}<th scope="col">results</th></tr></thead>'
                f"<tbody>{''.join(lines)}</tbody></table></div>")  # fmt: skip


def claims(papers: list[str] | None = None) -> Html:
    """Every claim with its verdict at every scale that has records.

    Args:
        papers: which; the tests then lead to tables on the same page. All of them by default, grouped, with links to
            the results pages.
    """
    names = papers or tables.available()
    lines = []
    for name in names:
        paper = tables.paper(name)
        found = records.read(records.evidence_folder(), name)
        if len(names) > 1:
            lines.append(
                f'<tr class="group"><th scope="rowgroup" colspan="2">{html.escape(paper.short)}</th></tr>'
            )
        for claim in paper.claims:
            scales = [s for s in tables.SCALES if claim.table and s in paper.tables[claim.table].scales
                      and any(r["run"]["scale"] == s and r["run"]["table"] == claim.table for r in found)]  # fmt: skip
            findings = []
            for scale in scales:
                finding = tables.judge(claim, paper, scale, found)
                if not finding.seeds:
                    continue
                effect = _effect(finding, claim, _measure(claim, paper.tables[claim.table]))
                small = f"{effect}, {finding.seeds} seeds" if finding.seeds > 1 else "one seed"
                findings.append(_verdict(finding.verdict, f"{scale}: {small}"))
            note = f'<div class="note">{html.escape(claim.note)}</div>' if claim.note else ""
            page = "" if papers else f"results/{name}.html"
            lines.append(
                f'<tr><th scope="row"><div class="claim">{html.escape(claim.text)}</div>{note}'
                f'<div class="test">{html.escape(claim.source)}; {_test(claim, paper, page)}</div></th>'
                f"<td>{'<br>'.join(findings or [_verdict('not tested')])}</td></tr>"
            )
    return Html('<div class="results claims"><table><thead><tr><th scope="col">claim and its test</th>'
                '<th scope="col">verdict, with the effect and its 95 % interval over seeds</th></tr></thead>'
                f"<tbody>{''.join(lines)}</tbody></table></div>")  # fmt: skip


def _verdict(verdict: str, small: str = "") -> str:
    kind = verdict.replace(" ", "-")
    after = f"<br><small>{html.escape(small)}</small>" if small else ""
    return f'<span class="verdict {kind}">{verdict}</span>{after}'


def benchmark(
    name: str,
    finding: str,
    *parts: tuple[str, str, str, Mapping[str, str]],
    titles: Mapping[str, str] | None = None,
) -> Html:
    """What `benchmarks/<name>.py` stored beside itself, or that it was not measured yet; empty outside a checkout.

    Args:
        name: the script, without ending.
        finding: a sentence; `{key}` and `{key[inner]:.1f}` take numbers out of the stored file, `{table[row][column]}`
            out of the first of `parts`.
        parts: tables: key of the stored file (an object of objects or of numbers), caption, head of the first column, and the columns
            in their order, key to title ("" for plain numbers). The first is shown, the others are folded.
        titles: titles of rows whose keys are no words for a reader.
    """
    import json

    root = records.checkout()
    if root is None:
        return Html("")
    command = f"<p><small><code>python benchmarks/{name}.py</code>"
    stored = root / "benchmarks" / f"{name}.json"
    if not stored.is_file():
        return Html(f"<p>Not measured yet.</p>{command}</small></p>")
    found = json.loads(stored.read_text(encoding="utf-8"))
    first = dict(found[parts[0][0]]) if parts else {}
    first |= {
        int(key): values for key, values in first.items() if key.isdigit()
    }  # format() reads [1] as a number
    shown = [f"<p>{_inline(finding.format(**found, table=first))}</p>"]
    for k, (key, caption, head, columns) in enumerate(parts):
        rows = {(titles or {}).get(row, row): values if isinstance(values, dict) else {"": values}
                for row, values in found[key].items()}  # fmt: skip
        if lost := [c for c in columns if not any(c in values for values in rows.values())]:
            raise KeyError(f"{stored.name}: {key} has no column {lost[0]!r}")
        box = grid("" if k else caption, (head, *columns.values()),
                   ([row, *(_short(values.get(c)) for c in columns)] for row, values in rows.items()))  # fmt: skip
        shown.append(f"<details><summary>{html.escape(caption)}</summary>{box}</details>" if k else box)
    where = [found.get("processor"), (found.get("gpu") or {}).get("name")]
    threads, versions = found.get("threads"), found.get("versions", {})
    where.append(f"{threads} thread{'s' if threads != 1 else ''}" if threads else None)
    where += [f"{one} {versions[one]}" for one in ("torch", "transformers") if one in versions]
    return Html("".join(shown) + f"{command} on {html.escape(', '.join(filter(None, where)))}</small></p>")


def _short(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        return "0" if text == "-0" else text
    if isinstance(value, int):
        return f"{value:,}"
    return ", ".join(map(_short, value)) if isinstance(value, list) else str(value)
