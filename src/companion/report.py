"""Tables, claims and run lists as HTML for notebooks and pages: reported beside reproduced, each with its record."""

from __future__ import annotations

import html
import math
import os
import re
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


def _reported(result: tables.Result) -> str:
    if result.reported is None:
        return ""
    text = tables.reported_text(result.reported, result.metric)
    return f'<span class="reported" title="{html.escape(result.reported.origin)}">{html.escape(text)}</span>'


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


def _head(column: tables.Line, metric: tables.Metric) -> str:
    """A column's head: its title and, where it has a metric of its own, the metric's title, unit and direction.

    When one of the two titles has all the words of the other, only that one is shown.
    """
    title = html.escape(column.title)
    if not column.metric:
        return title
    ours, metrics = (set(re.findall(r"[\w.²/]+", text.lower())) for text in (column.title, metric.title))
    if ours <= metrics:
        title = html.escape(metric.title)
    name = "" if ours <= metrics or metrics <= ours else html.escape(metric.title)
    unit = f", {html.escape(metric.unit)}" if metric.unit and name else html.escape(metric.unit)
    small = f"{name}{unit} {ARROWS[metric.direction]}".strip()
    return f"{title}<br><small>{small}</small>" if small else title


def _grid(
    table: tables.Table, scale: str, metric: tables.Metric | None, found: dict[str, list], base: str
) -> str:
    """One rows × columns table; every cell holds what is reported and what each source of records says."""
    grids = {name: tables.results(table, scale, recs, metric) for name, recs in found.items()}
    first = next(iter(grids.values()))
    # where nothing was run at all, the page says so once and the cells show what is reported
    idle = all(r.status not in ("run", "stale") for grid in grids.values() for line in grid for r in line)
    heads = [
        f'<th scope="col">{_head(c, result.metric)}</th>'
        for c, result in zip(table.columns, first[0], strict=True)
    ]
    lines, hidden = [], []
    for i, row in enumerate(table.rows):
        line = first[i]
        known = any(r.reported is not None and r.reported.value is not None for r in line)
        if not known and all(r.status == "not at this scale" for r in line):
            hidden.append(row.title)
            continue
        cells = []
        for j, _ in enumerate(table.columns):
            one = first[i][j]
            silent = row.reference or (one.status == "not at this scale" and one.reported is not None)
            silent = silent or (idle and one.reported is not None and one.status == "not run")
            parts = [] if silent else [_ours(grids["committed"][i][j], base)]
            if "this machine" in grids and grids["this machine"][i][j].values:
                parts.append(
                    f'<span class="mine">here {html.escape(tables.text(grids["this machine"][i][j]))}</span>'
                )
            # published values belong to the column's own metric only
            if metric is None or one.row.reference or metric.id == table.metric(table.columns[j]).id:
                parts.insert(0, _reported(one))
            # nothing known and nothing run: one line instead of two
            empty = one.reported is not None and one.reported.value is None and one.status == "not run"
            cells.append("<td>" + (" · " if empty else "<br>").join(p for p in parts if p) + "</td>")
        note = f' title="{html.escape(row.note)}"' if row.note else ""
        lines.append(f'<tr><th scope="row"{note}>{html.escape(row.title)}</th>{"".join(cells)}</tr>')
    left = (
        f"<p><small>Not at this scale, nothing known: {html.escape(', '.join(hidden))}.</small></p>"
        if hidden
        else ""
    )
    shown = metric or table.metrics[0]
    unit = f", {shown.unit}" if shown.unit else ""
    per_column = metric is None and any(c.metric for c in table.columns)
    what = "" if per_column else f": {shown.title}{unit} {ARROWS[shown.direction]}"
    caption = f"{table.title}{what} ({scale} scale)"
    return (f'<div class="results"><table><caption>{html.escape(caption)}</caption><thead><tr><th scope="col"></th>'
            f'{"".join(heads)}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>{left}')  # fmt: skip


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
    parts.append(f"<p>{html.escape(where)} {_inline(t.caption)}</p>")
    committed = records.read(records.evidence_folder(), paper, table_id)
    mine = records.read(records.runs_folder(), paper, table_id)
    there = [s for s in t.scales if any(r["run"]["scale"] == s for r in committed + mine)]
    usual = "full" if t.origin != "companion" and "full" in t.scales else next(iter(t.scales), "full")
    for scale in there or [usual]:
        found: dict[str, list] = {"committed": committed}
        if any(r["run"]["scale"] == scale for r in mine):
            found["this machine"] = mine
        parts.append(_grid(t, scale, None, found, base))
        if not any(c.metric for c in t.columns) and len(t.metrics) > 1 and there:
            more = "".join(_grid(t, scale, m, found, base) for m in t.metrics[1:])
            parts.append(f"<details><summary>Other measures of the same runs</summary>{more}</details>")
        own = [r for r in committed if r["run"]["scale"] == scale]
        if own:
            parts.append(_runs(own, base))
    missing = [s for s in t.scales if s not in there]
    if missing:
        parts.append(f"<p>Not run at: {', '.join(missing)}. "
                     f"<code>companion reproduce {paper} {table_id} --scale {missing[0]}</code></p>")  # fmt: skip
    return Html("".join(parts))


def _inline(text: str) -> str:
    """Escaped text with *emphasis* and `code`, the only markup that captions use."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
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
            f"<th scope='col'>commit</th></tr></thead><tbody>{''.join(lines)}</tbody></table></div></details>")  # fmt: skip


def _effect(finding: tables.Finding, claim: tables.Claim) -> str:
    if math.isnan(finding.effect):
        return "–"
    sign = "" if claim.kind != "difference" else "+" if finding.effect >= 0 else "−"
    half = f" ± {finding.half_width:.3g}" if not math.isnan(finding.half_width) else ""
    return f"{sign}{abs(finding.effect) if sign else finding.effect:.3g}{half}"


def _test(claim: tables.Claim) -> str:
    if not claim.table:
        return "no test"
    other = {"difference": f" minus {claim.than}", "ratio": f" over {claim.than}", "value": ""}[claim.kind]
    bound = f"≥ {claim.at_least:g}" if claim.at_least is not None else f"≤ {claim.at_most:g}"
    where = f" at {', '.join(claim.columns)}" if claim.columns else ""
    return f"{claim.table}: {claim.row}{other}{where}{', ' + claim.metric if claim.metric else ''} {bound}"


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
    """Every claim with its verdict at every scale that has records; grouped by paper when there are several."""
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
                seeds = (
                    f", {finding.seeds} seeds" if finding.seeds > 1 else ", 1 seed" if finding.seeds else ""
                )
                findings.append(_verdict(finding.verdict, f"{scale}: {_effect(finding, claim)}{seeds}"))
            note = f"<br><small>{html.escape(claim.note)}</small>" if claim.note else ""
            lines.append(
                f'<tr><th scope="row">{html.escape(claim.text)}{note}'
                f"<br><small>{html.escape(claim.source)}; test: {html.escape(_test(claim))}</small></th>"
                f"<td>{'<br>'.join(findings or [_verdict('not tested')])}</td></tr>"
            )
    return Html('<div class="results claims"><table><thead><tr><th scope="col">claim and its test</th>'
                '<th scope="col">verdict, with the effect and its 95 % interval over seeds</th></tr></thead>'
                f"<tbody>{''.join(lines)}</tbody></table></div>")  # fmt: skip


def _verdict(verdict: str, small: str = "") -> str:
    kind = verdict.replace(" ", "-")
    after = f"<br><small>{html.escape(small)}</small>" if small else ""
    return f'<span class="verdict {kind}">{verdict}</span>{after}'


def benchmarks() -> Html:
    """Every script of `benchmarks/` with the numbers it stored beside itself (`<name>.json`), or "not measured yet".

    A stored file is a JSON object: plain values, and objects or lists of objects that become tables; `processor`,
    `gpu`, `threads` and `versions` say where it was measured. Outside a checkout: an empty page.
    """
    import ast
    import json

    root = records.checkout()
    parts = []
    for script in sorted((root / "benchmarks").glob("*.py")) if root else []:
        about = ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or script.stem
        about = about.splitlines()[0].split(":")[0].rstrip(".")
        parts.append(f"<h2>{html.escape(about)}</h2>"
                     f"<p><code>python benchmarks/{script.name}</code></p>")  # fmt: skip
        stored = script.with_suffix(".json")
        if not stored.is_file():
            parts.append("<p>Not measured yet.</p>")
            continue
        found = json.loads(stored.read_text(encoding="utf-8"))
        where = [found.pop("processor", None), (found.pop("gpu", None) or {}).get("name")]
        threads, versions = found.pop("threads", None), found.pop("versions", {})
        plain = {k: v for k, v in found.items() if not isinstance(v, dict | list)}
        if plain:
            parts.append(_rows({k: {"": v} for k, v in plain.items()}))
        parts += [_nested(k, v) for k, v in found.items() if k not in plain]
        where.append(f"{threads} thread{'s' if threads != 1 else ''}" if threads else None)
        where += [f"{name} {versions[name]}" for name in ("torch", "transformers") if name in versions]
        parts.append(f"<p><small>{html.escape(', '.join(filter(None, where)))}</small></p>")
    return Html("".join(parts))


def _nested(title: str, thing: Any) -> str:
    """A table for an object of objects or a list of objects; anything deeper gets a table of its own below."""
    rows = thing if isinstance(thing, dict) else {str(k + 1): v for k, v in enumerate(thing)}
    rows = {k: v if isinstance(v, dict) else {"": v} for k, v in rows.items()}
    flat = {k: {c: x for c, x in v.items() if not isinstance(x, dict)} for k, v in rows.items()}
    deep = [(f"{title}, {k}, {c}", x) for k, v in rows.items() for c, x in v.items() if isinstance(x, dict)]
    return (_rows(flat, title) if any(flat.values()) else "") + "".join(_nested(*one) for one in deep)


def _rows(rows: dict[str, dict[str, Any]], caption: str = "") -> str:
    columns = list(dict.fromkeys(c for row in rows.values() for c in row))
    head = "".join(f'<th scope="col">{html.escape(c.replace("_", " "))}</th>' for c in columns)
    head = f"<thead><tr><th></th>{head}</tr></thead>" if any(columns) else ""
    body = "".join(
        f'<tr><th scope="row">{html.escape(name.replace("_", " "))}</th>'
        + "".join(f"<td>{html.escape(_short(row.get(c)))}</td>" for c in columns)
        + "</tr>"
        for name, row in rows.items()
    )
    caption = f"<caption>{html.escape(caption.replace('_', ' '))}</caption>" if caption else ""
    return f'<div class="results"><table>{caption}{head}<tbody>{body}</tbody></table></div>'


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
