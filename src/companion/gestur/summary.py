"""What run records say, in the form that readers of domain-generalisation papers ask for.

`everything` is one table with, per method: accuracy on every left-out domain with its standard error over trials,
their mean, the accuracy on the sources that selection saw, the last step's accuracy, the step that was chosen and the
settings. The figures are those of the chapter; all intervals are 95 % t-intervals over seeds.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from companion import records, tables
from companion.gestur.protocol import RULES, mean_and_error

Trials = Mapping[
    str, Mapping[str, float]
]  # target -> {"test", "val", "last", "step", ...}, one trial of one method


def trials(found: Sequence[Mapping[str, Any]], part: str = "") -> dict[str, list[Trials]]:
    """Per method the list of its trials, out of `records.read` lists of the tables here.

    Args:
        found: records that hold `notes["per target"]`: {part: {method: {target: {...}}}}.
        part: which entry of it: the strength of the shortcut as text, or the first one there.

    Raises:
        ValueError: where a record has no such notes.
    """
    out: dict[str, list[Trials]] = {}
    for record in sorted(found, key=lambda r: r["run"]["seed"]):
        noted = record["notes"].get("per target")
        if not noted:
            raise ValueError(f"the record of {record['run']['row']} keeps no results per target")
        for method, targets in noted[part or next(iter(noted))].items():
            out.setdefault(method, []).append(targets)
    return out


def everything(paper: str, table: str, scale: str, row: str = "", titles: Mapping[str, str] | None = None,
               folder: Any = None, column: str = "") -> Any:  # fmt: skip
    """The table as a pandas frame, a line per method.

    Args:
        row: in tables with many methods per run, the row to show; where every row is a method, leave it out.
        column: in tables with a run per data set (`pacs`, `rotated`, ...), the one to show.
        titles: method -> how it is called; also the order.
        folder: where the records are; default: the committed ones.

    Raises:
        ValueError: when there are no records that fit their cell any more.
    """
    import pandas as pd

    found = valid(paper, table, scale, row, folder)
    found = [r for r in found if not column or r["run"]["column"] == column]
    if not found:
        raise ValueError(
            f"there are no valid records of {paper} {table} at scale {scale}"
            + (f", row {row}" if row else "")
            + (f", column {column}" if column else "")
        )
    by_method = trials(found)
    settings = {m: s for r in found for m, s in r["notes"].get("settings", {}).items()}
    order = [m for m in titles or by_method if m in by_method]
    lines = []
    for method in order:
        all_trials = by_method[method]
        names = list(all_trials[0])
        line = {"method": (titles or {}).get(method, method)}
        for name in names:
            line[name] = show([t[name]["test"] for t in all_trials])
        for title, key in (("mean", "test"), ("sources", "val"), ("last step", "last")):
            per_trial = [[t[name][key] for name in names if t[name].get(key) is not None] for t in all_trials]
            line[title] = show([fmean(v) for v in per_trial]) if all(per_trial) else "–"
        steps = [int(t[name]["step"]) for t in all_trials for name in names]
        line["chosen steps"] = f"{min(steps)}–{max(steps)}" if min(steps) < max(steps) else f"{steps[0]}"
        line["trials"] = len(all_trials)
        line["settings"] = settings.get(method.removesuffix("+swad"), "")
        lines.append(line)
    return pd.DataFrame(lines).set_index("method")


def differences(
    table: str, scale: str, column: str, folder: Any = None, *, others_minus: bool = False
) -> Any:
    """How far the method of `column` is above every other on unseen domains, paired by seed, as a pandas frame.

    A line per method, a column per row of the table: mean ± half of the 95 % interval over seeds. With `others_minus`
    how far every other is above it.
    """
    import pandas as pd

    t = tables.table("gestur", table)
    ours = next(c for c in t.columns if c.id == column)
    others = [c for c in t.columns if c.id != column and c.metric.startswith("test@")]
    lines: dict[str, dict[str, str]] = {c.title: {} for c in others}
    for row in t.rows:
        found = valid("gestur", table, scale, row.id, folder)
        for c in others if found else []:
            sign = -1 if others_minus else 1
            gap = [sign * (r["metrics"][ours.metric] - r["metrics"][c.metric]) for r in found]
            lines[c.title][f"{row.title} ({count(found)})"] = _text(gap, "+.1f")
    if not any(lines.values()):
        raise ValueError(f"there are no valid records of gestur {table} at scale {scale}")
    frame = pd.DataFrame(lines).T
    frame.index.name = f"minus {ours.title}" if others_minus else f"{ours.title} minus"
    return frame


def gaps(table: str, scale: str, ours: str, row: str = "", folder: Any = None) -> dict[str, list[float]]:
    """How far `ours` is above every other method on unseen domains, a list over the seeds that both have, by title.

    Args:
        ours: a column of a table whose runs train all methods, with `row` to say which run; else a row.

    Raises:
        ValueError: where there are no records of it that fit their cell any more.
    """
    t = tables.table("gestur", table)
    unseen: dict[str, dict[int, float]] = {}
    if row:
        titles = {c.id: c.title for c in t.columns if c.metric.startswith("test@")}
        for r in valid("gestur", table, scale, row, folder):
            for c in t.columns:
                if c.id in titles:
                    unseen.setdefault(c.id, {})[r["run"]["seed"]] = r["metrics"][c.metric]
    else:
        titles = {r.id: r.title for r in t.rows}
        for r in valid("gestur", table, scale, folder=folder):
            unseen.setdefault(r["run"]["row"], {})[r["run"]["seed"]] = r["metrics"]["test"]
    if ours not in unseen:
        raise ValueError(f"there are no valid records of gestur {table} at scale {scale}, {row or ours}")
    mine = unseen.pop(ours)
    paired = {
        titles[m]: [mine[k] - v for k, v in values.items() if k in mine] for m, values in unseen.items()
    }
    return {title: values for title, values in paired.items() if values}


def standing(table: str, scale: str, ours: str, row: str = "", folder: Any = None) -> str:
    """In words: whom `ours` is ahead of, whom behind and who cannot be told apart from it, by 95 % intervals over seeds.

    Takes what `gaps` takes, and raises what it raises.
    """
    found = gaps(table, scale, ours, row, folder)
    if all(len(values) == 1 for values in found.values()):
        return "compared at one seed only, which has no interval"
    sides: dict[str, list[str]] = {"ahead of": [], "behind": [], "not to be told apart from": []}
    for title, values in found.items():
        clear = _clear(values)
        side = ("ahead of" if fmean(values) > 0 else "behind") if clear else "not to be told apart from"
        sides[side].append(f"{title} ({_text(values, '+.1f')})" if clear else title)
    seeds = {len(values) for values in found.values()}
    over = " to ".join(str(n) for n in sorted({min(seeds), max(seeds)})) if seeds else "no"
    said = [f"{side} {_and(names)}" for side, names in sides.items() if names]
    return "; ".join(said) + f" ({over} seed{'s' * (over != '1')})"


def said(
    words: Any, table: str, scale: str, *given: Any, start: str = "", otherwise: str = "not run yet"
) -> Any:
    """What `words(table, scale, *given, row)` says of every row of the table, as a list for a page.

    Args:
        start: comes before each sentence.
        otherwise: stands where there are no records.
    """
    from companion import report

    lines = []
    for row in tables.table("gestur", table).rows:
        try:
            sentence = f"{start} {words(table, scale, *given, row.id)}"
        except ValueError:
            sentence = otherwise
        lines.append(f"<li><strong>{html.escape(row.title)}</strong>: {html.escape(sentence.strip())}.</li>")
    return report.Html(f"<ul>{''.join(lines)}</ul>")


def rivals(table: str = "pacs", scale: str = "real", row: str = "gestur", folder: Any = None) -> Any:
    """Where every row is a method: unseen accuracy, and how far `row` is above it, paired by seed; best first.

    Raises ValueError where there are no records that fit their cell any more.
    """
    import pandas as pd

    ahead = gaps(table, scale, row, folder=folder)
    titles = {r.id: r.title for r in tables.table("gestur", table).rows}
    unseen: dict[str, list[float]] = {}
    for r in valid("gestur", table, scale, folder=folder):
        unseen.setdefault(titles[r["run"]["row"]], []).append(r["metrics"]["test"])
    lines = [
        {"method": title, "unseen": _text(values, ".1f"),
         f"{titles[row]} minus it": _text(ahead[title], "+.1f") if title in ahead else "–", "seeds": len(values)}
        for title, values in sorted(unseen.items(), key=lambda item: -fmean(item[1]))
    ]  # fmt: skip
    return pd.DataFrame(lines).set_index("method")


def by_seed(
    table: str, scale: str, row: str, metric: str, folder: Any = None, column: str | None = None
) -> dict[int, float]:
    """{seed: value} of one metric, over the valid records of a row (and of `column` where columns have runs of their own);
    empty where there are none."""
    found = [r for r in valid("gestur", table, scale, row, folder) if column in (None, r["run"]["column"])]
    return {r["run"]["seed"]: v for r in found if (v := r["metrics"].get(metric)) is not None}


def stretch(row: str, name: str, first: float, last: float, folder: Any = None) -> dict[int, float]:
    """{seed: mean from `first` to `last`} of the curve `name` of a row of the table "gradients"; empty without records."""
    found = valid("gestur", "gradients", "reduced", row, folder)
    return {r["run"]["seed"]: fmean(y for x, y in r["curves"][name] if first <= x <= last) for r in found}


def points(ours: Mapping[int, float], others: Mapping[int, float] | None = None, form: str = ".1f") -> str:
    """`1.2 ± 0.3` for a sentence: what `by_seed` gave, or how far it is above `others`, paired by seed."""
    paired = [
        v - (others[k] if others is not None else 0.0)
        for k, v in ours.items()
        if others is None or k in others
    ]
    return _text(paired, form) if paired else NOT_RUN


def curve(table: str, scale: str, row: str = "gestur", folder: Any = None) -> str:
    """What the λ curve of a row says, in words: its ends, where it leaves λ = 0, and what validation on the sources takes.

    Raises ValueError where there are no records that fit their cell any more.
    """
    found = valid("gestur", table, scale, row, folder)
    if not found:
        raise ValueError(f"there are no valid records of gestur {table} at scale {scale}, row {row}")
    shown = [c.metric for c in tables.table("gestur", table).columns]
    unseen = {m: {r["run"]["seed"]: r["metrics"][m] for r in found} for m in shown}
    zero, lams = unseen["test@lam=0"], [m for m in shown if m.startswith("test@lam=") and m != "test@lam=0"]
    gains = {m.removeprefix("test@lam="): [v - zero[k] for k, v in unseen[m].items()] for m in lams}
    clear = [f"{lam} ({_text(v, '+.1f')})" for lam, v in gains.items() if _clear(v)]
    ends = [f"{points(unseen[m])} % at λ = {m.removeprefix('test@lam=')}" for m in ("test@lam=0", lams[-1])]
    chosen = [r["notes"]["chosen"] for r in found]
    return (
        f"The unseen accuracy is {_and(ends)}; the difference to λ = 0 excludes zero "
        f"{'at λ = ' + _and(clear) if clear else 'at no λ'}. The best λ, seen from the target, has "
        f"{points(unseen['test@best'], zero)} points more than λ = 0. Validation on the sources, choosing one λ for all "
        f"domains, picks λ = 0 in {chosen.count('lam=0')} of {len(chosen)} seeds; what it picks has "
        f"{points(unseen['test@chosen'], zero)} points more than λ = 0."
    )


# What a prototype of the shortcut experiment found with one seed: row, one method, the other, how the one stood to it.
PROTOTYPE = (
    ("strong", "ema", "erm", "ahead of"),
    ("strong", "gestur", "ema", "ahead of"),
    ("strong", "miro", "gestur", "ahead of"),
    ("strong", "linear-probe", "gestur", "ahead of"),
    ("weak", "gestur", "ema", "level with"),
    ("weak", "miro", "gestur", "ahead of"),
    ("weak", "linear-probe", "gestur", "ahead of"),
)


def prototype(folder: Any = None) -> Any:
    """Whether what a prototype found with one seed stands, as a pandas frame: a line per part of it, a column per scale.

    "ahead of" stands where the 95 % interval over seeds lies above zero, and does not where it lies below. "level with"
    does not stand where the interval excludes zero. An interval that holds zero leaves either open: it does not show that
    two are equal.
    """
    import pandas as pd

    t = tables.table("gestur", "shortcut")
    rows, methods = ({line.id: line.title for line in lines} for lines in (t.rows, t.columns))
    lines = []
    for row, one, other, stood in PROTOTYPE:
        line = {"prototype": f"{rows[row]}: {methods[one]} {stood} {methods[other]}"}
        for scale in t.scales:
            found = valid("gestur", "shortcut", scale, row, folder)
            gap = [r["metrics"][f"test@{one}"] - r["metrics"][f"test@{other}"] for r in found]
            if gap:
                ahead = stood == "ahead of" and fmean(gap) > 0
                verdict = ("stands" if ahead else "does not stand") if _clear(gap) else "open"
                line[f"{scale} scale"] = f"{_text(gap, '+.1f')} ({count(gap)}): {verdict}"
        lines.append(line)
    frame = pd.DataFrame(lines).set_index("prototype")
    if not len(frame.columns):
        raise ValueError("there are no valid records of gestur shortcut")
    return frame


def each(found: Mapping[int, float], form: str = ".2f") -> str:
    """`1.04 and 1.13` for a sentence: every run by itself."""
    return _and([f"{v:{form}}".replace("-", "−") for _, v in sorted(found.items())]) if found else NOT_RUN


NOT_RUN = "(not run)"


def costs(folder: Any = None) -> Any:
    """Step times at full size in units of a step of ERM, and peak memory over ERM's in copies of the weights, each run."""
    import pandas as pd

    found = valid("gestur", "cost", "full", folder=folder)
    if not found:
        raise ValueError("there are no valid records of gestur cost at scale full")
    heads = {"ratio@{}": ("time, {}", ".2f"), "peak_copies@{}": ("memory, {}", ".3f")}
    lines = {}
    for row in tables.table("gestur", "cost").rows:
        runs = [r["metrics"] for r in found if r["run"]["row"] == row.id]
        if runs:
            lines[row.title] = {"runs": len(runs)} | {
                head.format(title): ", ".join(f"{m[key.format(method)]:{form}}" for m in runs).replace(
                    "-", "−"
                )
                for key, (head, form) in heads.items()
                for method, title in (("gestur", "GESTUR"), ("swad", "SWAD"), ("miro", "MIRO"))
            }
    frame = pd.DataFrame(lines).T
    frame.index.name = "network"
    return frame


def selection(folder: Any = None) -> Any:
    """What the selection rules pick out of the λ curve, as a pandas frame: unseen accuracy, its difference to λ = 0
    paired by seed, and how often which λ was picked (over seeds and left-out styles)."""
    import pandas as pd

    t = tables.table("gestur", "selection")
    picks = {
        "test@chosen-each": "chosen by style",
        "test@crossed": "crossed by style",
        "test@oracle": "oracle by style",
    }
    lines = []
    for row in t.rows:
        found = valid("gestur", "selection", "reduced", row.id, folder)
        for c in t.columns if found else []:
            picked = [name for r in found for name in r["notes"].get(picks.get(c.metric, ""), {}).values()]
            gain = [r["metrics"][c.metric] - r["metrics"]["test@lam=0"] for r in found]
            lines.append({
                "": f"{row.title.removeprefix('GESTUR, ')} ({count(found)})", "rule": c.title,
                "unseen": _text([r["metrics"][c.metric] for r in found], ".1f"),
                "above λ = 0": _text(gain, "+.1f") if c.metric != "test@lam=0" else "",
                "λ picked (times)": ", ".join(f"{name.removeprefix('lam=')} ({picked.count(name)})"
                                      for name in sorted(set(picked), key=lambda n: float(n.removeprefix("lam=")))),
            })  # fmt: skip
    if not lines:
        raise ValueError("there are no valid records of gestur selection at scale reduced")
    return pd.DataFrame(lines, columns=["", "rule", "unseen", "above λ = 0", "λ picked (times)"])


# What is said of the measured gradients, out of their means over training.
SAID = {
    "source gradient: cosine with the unseen gradient": lambda m: m["source"],
    "estimate: cosine with the unseen gradient": lambda m: m["estimate"],
    "what the estimate adds to the cosine with the unseen gradient": lambda m: m["combined"] - m["source"],
    "what it adds to the cosine with the wanted direction": lambda m: m["gain"],
    "what it takes off the bias towards the sources": lambda m: m["relief"],
}


def _by_style(row: str, folder: Any = None) -> dict[str, list[Mapping[str, float]]]:
    """Per left-out style, and for their mean, the means over training of every seed. Raises ValueError without records."""
    found = valid("gestur", "gradients", "reduced", row, folder)
    if not found:
        raise ValueError(f"there are no valid records of gestur gradients at scale reduced, row {row}")
    per_style = [r["notes"]["per target"] for r in found]
    return {style: [p[style] for p in per_style] for style in per_style[0]} | {
        "mean": [r["metrics"] for r in found]
    }


def directions(row: str = "gestur", folder: Any = None) -> Any:
    """The measured gradients of a row of the table "gradients" per left-out style and on their mean, as a pandas frame:
    mean ± half of the 95 % interval over seeds.

    Raises ValueError where there are no records that fit their cell any more.
    """
    import pandas as pd

    parts = _by_style(row, folder)
    frame = pd.DataFrame({
        style: {line: _text([of(m) for m in measured], "+.3f") for line, of in SAID.items()}
        for style, measured in parts.items()
    })  # fmt: skip
    titles = {r.id: r.title for r in tables.table("gestur", "gradients").rows}
    frame.index.name = f"{titles[row]} ({count(parts['mean'])})"
    return frame


def signs(line: str, row: str = "gestur", folder: Any = None) -> str:
    """In words: for which left-out styles a line of `directions` is above zero, for which below, by 95 % intervals over
    seeds, and for which neither can be said. Raises what `directions` raises."""
    parts = _by_style(row, folder)
    if len(parts["mean"]) == 1:
        return "measured at one seed only, which has no interval"
    sides: dict[str, list[str]] = {"above": [], "below": [], "not to be told apart from": []}
    for style, measured in parts.items():
        values = [SAID[line](m) for m in measured]
        side = ("above" if fmean(values) > 0 else "below") if _clear(values) else "not to be told apart from"
        if style != "mean":
            sides[side].append(style)
    return "; ".join(f"{side} zero for {_and(styles)}" for side, styles in sides.items() if styles)


def published() -> Any:
    """The settings of every run of the paper's tables, as a pandas frame; methods and data sets that share all their
    settings share a line."""
    import pandas as pd

    from companion.gestur import recipe

    lines: dict[tuple[str, ...], dict[str, list[str]]] = {}  # settings -> method -> data sets
    for name in ("resnet50", "clip", "swag"):
        t = tables.table("gestur", name)
        titles = {r.id: r.title for r in t.rows}
        for cell in t.cells("full"):
            config, rules = recipe.method_config(cell.parameters), recipe.protocol_config(cell.parameters, 0)
            own = [
                f"{k} = {v:g}"
                for k in recipe.OWN.get(config.method, ())
                if type(v := getattr(config, k)) is float
            ]
            key = (cell.parameters["backbone"], f"{config.lr:g}", f"{config.dropout:g}", f"{config.weight_decay:g}",
                   ", ".join(own), str(rules.batch), str(rules.steps), str(rules.every))  # fmt: skip
            lines.setdefault(key, {}).setdefault(titles[cell.row], []).append(cell.parameters["data"])
    merged: dict[tuple[str, ...], list[str]] = {}
    for key, methods in lines.items():
        for method, sets in methods.items():
            merged.setdefault((*key, " · ".join(sets)), []).append(method)
    return pd.DataFrame(
        [{"backbone": k[0], "method": " · ".join(methods), "data": k[8], "learning rate": k[1], "dropout": k[2],
          "weight decay": k[3], "own": k[4], "images per source": k[5], "steps": k[6], "evaluated every": k[7]}
         for k, methods in merged.items()]
    ).sort_values(["backbone", "method"], ignore_index=True)  # fmt: skip


def block(
    make: Any, *given: Any, caption: str = "", fold: str = "", otherwise: str = "", **options: Any
) -> Any:
    """The frame that `make(*given, **options)` returns as HTML for a page; a sentence where there are no records yet.

    Args:
        caption: the table's.
        fold: a title; the table then opens on a click. Settings go into a table of their own there.
        otherwise: the sentence where there are no records; default: the title, "not run".
    """
    from companion import report

    try:
        frame = make(*given, **options)
    except ValueError:
        otherwise = otherwise or f"Not run: {(fold or caption).rstrip('.')}."
        return report.Html(f"<p>{html.escape(otherwise)}</p>")
    frame = frame.reset_index() if frame.index.name else frame
    shown = ""
    if fold and "settings" in frame:
        shown = _table(frame[[frame.columns[0], "settings"]], "The settings of these runs.")
        frame = frame.drop(columns="settings")
    shown = _table(frame, caption) + shown
    if fold:
        shown = f"<details><summary>{html.escape(fold)}</summary>{shown}</details>"
    return report.Html(shown)


def _table(frame: Any, caption: str = "") -> str:
    from companion import report

    return report.grid(
        caption, frame.columns, frame.astype(object).where(frame.notna(), "–").itertuples(index=False)
    )


def drawn(make: Any, *given: Any, otherwise: str) -> Any:
    """Draws the figure `make(*given)`; the sentence `otherwise` for a page where there are no records yet."""
    from companion import report

    try:
        make(*given)
    except ValueError:
        return report.Html(f"<p>{html.escape(otherwise)}</p>")
    return None


def show(values: Sequence[float]) -> str:
    """`83.4 ± 0.6`: mean and standard error over trials as DomainBed prints them; a single value has no error."""
    mean, error = mean_and_error(list(values))
    return f"{mean:.1f} ± {error:.1f}" if len(values) > 1 else f"{mean:.1f}"


def rule() -> str:
    """The selection rule of all these tables, in words."""
    return (f"Selected by training-domain validation: {RULES['training-domain']}. Reported: accuracy on the 80 % of the "
            "left-out domain that DomainBed calls “in”; none of it is trained on. ± is DomainBed's standard error over "
            "trials; “last step” needs no selection and is also what DomainBed's oracle reports of a single run.")  # fmt: skip


def valid(paper: str, table: str, scale: str, row: str = "", folder: Any = None) -> list[dict[str, Any]]:
    """The records of a table (or one row of it) that still speak for their cells."""
    t = tables.table(paper, table)
    rows = {r.id for r in t.rows}
    return [
        r for r in records.read(folder or records.evidence_folder(), paper, table, scale)
        if r["run"]["row"] in rows and (not row or r["run"]["row"] == row)
        and records.stale(r, t.cell(r["run"]["row"], r["run"]["column"], scale)) is None
    ]  # fmt: skip


def count(found: Sequence[Any]) -> str:
    """`1 seed`, `5 seeds`."""
    return f"{len(found)} seed" + "s" * (len(found) != 1)


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of its 95 % interval (0 for a single value, which has none)."""
    half = tables.half_width(list(values))
    return fmean(values), 0.0 if half != half else half


def _text(values: Sequence[float], form: str) -> str:
    """`+1.2 ± 0.3`, with a real minus sign; a single value has no interval."""
    mean, half = interval(values)
    spread = f" ± {half:{form.lstrip('+')}}" if len(values) > 1 else ""
    return f"{mean:{form.replace('.', 'z.')}}{spread}".replace("-", "−")  # z: no minus before zero


def _clear(values: Sequence[float]) -> bool:
    """Whether the 95 % interval over seeds excludes zero; a single value has none."""
    mean, half = interval(values) if values else (0.0, 0.0)
    return len(values) > 1 and abs(mean) > half


def _and(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1])] * (len(names) > 1) + [names[-1]])


def _metric(found: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float]:
    return interval([r["metrics"][name] for r in found])


def _bars(ax: Any, lines: Sequence[str], points: Sequence[tuple[float, float]], **style: Any) -> None:
    """Horizontal error bars, one line of text each."""
    at = range(len(lines))
    ax.errorbar([m for m, _ in points], at, xerr=[h for _, h in points], linestyle="none", capsize=3, **style)
    ax.set_yticks(at, lines)


def _not_run(ax: Any) -> None:
    ax.text(0.5, 0.5, "not run", transform=ax.transAxes, ha="center", va="center")
    ax.set_axis_off()  # its axes are shared: clearing the ticks would clear the neighbour's


def _legend(ax: Any, where: str) -> None:
    if ax.get_legend_handles_labels()[0]:  # nothing is drawn where there are no records
        ax.legend(loc=where, fontsize=8)


def figure_methods(scale: str = "reduced") -> Any:
    """Unseen accuracy and source accuracy of every method at both strengths of the shortcut."""
    import matplotlib.pyplot as plt

    from companion import plotting

    t = tables.table("gestur", "shortcut")
    titles = {c.metric.removeprefix("test@"): c.title for c in t.columns}
    runs = {row.id: valid("gestur", "shortcut", scale, row.id) for row in t.rows}
    if not any(runs.values()):
        raise ValueError(f"there are no valid records of gestur shortcut at scale {scale}")
    fig, axes = plt.subplots(1, 2, figsize=(9, 5), sharex=all(runs.values()), sharey=True)
    order = None
    for ax, row in zip(axes, t.rows, strict=True):
        found = runs[row.id]
        if not found:
            ax.set_title(row.title)
            _not_run(ax)
            continue
        unseen = {m: _metric(found, f"test@{m}") for m in titles}
        order = order or sorted(titles, key=lambda m: unseen[m][0])
        names = [titles[m] for m in order]
        for kind, color, marker in (("val", plotting.PALETTE[7], "s"), ("test", plotting.PALETTE[0], "o")):
            points = [_metric(found, f"{kind}@{m}") for m in order]
            label = {"val": "held-out sources", "test": "unseen styles"}[kind]
            _bars(ax, names, points, color=color, marker=marker, markersize=5, label=label)
        ax.set(xlabel="accuracy (%)", title=f"{row.title} ({count(found)})")
    fig.legend(*next(h for ax in axes if (h := ax.get_legend_handles_labels())[0]), loc="outside upper center", ncols=2,
               fontsize=8)  # fmt: skip
    return fig


def figure_lambda(table: str = "lambda", scale: str = "reduced") -> Any:
    """The λ curve on held-out sources and on unseen domains, and how often validation chose which λ."""
    import matplotlib.pyplot as plt

    from companion import plotting

    t = tables.table("gestur", table)
    names = [c.metric.removeprefix("test@") for c in t.columns if c.metric.startswith("test@lam=")]
    if not valid("gestur", table, scale):
        raise ValueError(f"there are no valid records of gestur {table} at scale {scale}")
    fig, axes = plt.subplots(1, len(t.rows), figsize=(4.5 * len(t.rows), 3.6), sharey=True, squeeze=False)
    axes = axes[0]
    for ax, row in zip(axes, t.rows, strict=True):
        found = valid("gestur", table, scale, row.id)
        if not found:
            ax.set_title(row.title)
            _not_run(ax)
            continue
        for kind, label, color, marker in (("val", "held-out sources", plotting.PALETTE[7], "s"),
                                           ("test", "unseen domains", plotting.PALETTE[0], "o")):  # fmt: skip
            points = [_metric(found, f"{kind}@{n}") for n in names]
            ax.errorbar(range(len(names)), [m for m, _ in points], yerr=[h for _, h in points], color=color,
                        marker=marker, capsize=3, label=label)  # fmt: skip
        chosen = [r["notes"]["chosen"] for r in found]
        for k, n in enumerate(names):
            if times := chosen.count(n):
                ax.annotate(f"chosen {times}×", (k, 0.02), xycoords=("data", "axes fraction"), ha="center",
                            fontsize=8)  # fmt: skip
        ax.set_xticks(range(len(names)), [n.removeprefix("lam=") for n in names])
        ax.margins(0.13, 0.12)
        ax.set(xlabel="λ", title=f"{row.title} ({count(found)})")
    axes[0].set_ylabel("accuracy (%)")
    _legend(axes[0], "upper right")
    return fig


def figure_ablation() -> Any:
    """What every variant loses (left) or gains (right) on unseen styles against the published form, paired by seed."""
    import matplotlib.pyplot as plt

    from companion import plotting

    t = tables.table("gestur", "ablation")
    columns = [c for c in t.columns if c.id != "published"]
    fig, axes = plt.subplots(1, len(t.rows), figsize=(9, 3.8), sharey=True, sharex=True)
    for ax, row in zip(axes, t.rows, strict=True):
        ax.axvline(0, color=plotting.INK, lw=0.8)
        ax.set(xlabel="variant minus published form (points)")
        if not (found := valid("gestur", "ablation", "reduced", row.id)):
            continue
        gains = [
            interval([-r["metrics"]["gap@" + c.metric.removeprefix("test@")] for r in found]) for c in columns
        ]
        _bars(ax, [c.title for c in columns], gains, color=plotting.PALETTE[0], marker="o")
        ax.set(title=f"{row.title} ({count(found)})")
    if axes[0].lines[1:]:
        axes[0].invert_yaxis()  # shared by both
    return fig


# Rows of the table "gradients" at one strength of the shortcut: without and with the estimate fed back.
PAIRS = (("ema", "gestur"), ("ema-weak", "gestur-weak"))


def _strength(row: str) -> str:
    return f"s = {tables.cell('gestur', 'gradients', row, 'all').parameters['strength']:g}"


def _band(ax: Any, found: Sequence[Mapping[str, Any]], name: str, label: str, style: int, *,
          dashes: int | None = None, band: bool = True) -> None:  # fmt: skip
    """The curve `name` of the records: its mean over seeds as a line, the 95 % interval as a band; nothing without any."""
    from companion import plotting

    per_seed = [r["curves"][name] for r in found]
    at = [x for x, _ in per_seed[0]] if per_seed else []
    means = [interval([c[i][1] for c in per_seed]) for i in range(len(at))]
    color = plotting.PALETTE[style]
    ax.plot(at, [m for m, _ in means], label=label, color=color,
            linestyle=plotting.DASHES[style if dashes is None else dashes])  # fmt: skip
    if band:
        ax.fill_between(
            at, [m - h for m, h in means], [m + h for m, h in means], color=color, alpha=0.15, lw=0
        )


def _gradients() -> dict[str, list[dict[str, Any]]]:
    """The records of the table "gradients" by row. Raises ValueError without any."""
    found = {row: valid("gestur", "gradients", "reduced", row) for pair in PAIRS for row in pair}
    if not any(found.values()):
        raise ValueError("there are no valid records of gestur gradients at scale reduced")
    return found


def figure_gradients() -> Any:
    """Cosines with the true unseen gradient, and the bias towards the sources, over training at both strengths of the
    shortcut; bands are intervals, left out for both gradients together, where they lie on the source gradient's."""
    import matplotlib.pyplot as plt

    from companion import plotting

    found = _gradients()
    fig, axes = plt.subplots(2, 2, figsize=(7, 6.2), sharex=True, sharey="row")
    for k, (plain, fed) in enumerate(PAIRS):
        top, bottom = axes[:, k]
        _band(top, found[fed], "source gradient", "source gradient", 0)
        _band(top, found[fed], "both together", "both together", 2, band=False)
        _band(top, found[fed], "estimate", "estimate", 1)
        _band(top, found[plain], "estimate", "estimate at λ = 0", 4, dashes=3)
        _band(bottom, found[fed], "bias, source gradient", "source gradient", 0)
        _band(bottom, found[fed], "bias, both together", "both together", 2, band=False)
        top.axhline(0, color=plotting.INK, lw=0.8)
        top.set_title(f"{_strength(fed)} ({count(found[fed])})")
        bottom.set_xlabel("step")
    axes[0, 0].set_ylabel("cosine with unseen gradient")
    axes[1, 0].set_ylabel("bias towards the sources")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=10)
    return fig


def figure_styles() -> Any:
    """The estimate's cosine with the true unseen gradient over training, a line per left-out style, at both strengths of
    the shortcut; bands are intervals."""
    import matplotlib.pyplot as plt

    from companion import plotting
    from companion.gestur import world

    found = _gradients()
    fig, axes = plt.subplots(1, 2, figsize=(7, 3.8), sharex=True, sharey=True)
    for ax, (_, fed) in zip(axes, PAIRS, strict=True):
        for k, style in enumerate(world.STYLES):
            _band(ax, found[fed], f"estimate, {style}", style, k)
        ax.axhline(0, color=plotting.INK, lw=0.8)
        ax.set(title=f"{_strength(fed)} ({count(found[fed])})", xlabel="step")
    axes[0].set_ylabel("cosine with unseen gradient")
    fig.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=10)
    return fig


def figure_way() -> Any:
    """Loss from the pre-trained featurizer to the averaged model's, on sources and unseen styles, without and with the
    estimate fed back, at both strengths of the shortcut; bands are intervals."""
    import matplotlib.pyplot as plt

    found = _gradients()
    fig, axes = plt.subplots(2, 2, figsize=(7, 5.6), sharex=True, sharey=True)
    for line, pair in zip(axes, PAIRS, strict=True):
        for ax, row, what in zip(line, pair, ("λ = 0", "λ = 0.1"), strict=True):
            ax.set_title(f"{what}, {_strength(row)} ({count(found[row])})", fontsize=10.5)
            for j, name in enumerate(("sources", "unseen")):
                _band(ax, found[row], f"loss on the way, {name}", name, j)
        line[0].set_ylabel("cross-entropy")
    for ax in axes[1]:
        ax.set_xlabel("share of the way")
    fig.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=2, fontsize=10)
    return fig


def figure_pretraining() -> Any:
    """Training loss of the recorded pre-trainings at the real scale, with that of guessing."""
    from math import log

    import matplotlib.pyplot as plt

    from companion import plotting

    found = valid("gestur", "pretraining", "real")
    if not found:
        raise ValueError("there are no valid records of gestur pretraining at scale real")
    titles = {r.id: r.title for r in tables.table("gestur", "pretraining").rows}
    fig, ax = plt.subplots()
    plotting.curves({titles[r["run"]["row"]]: r["curves"]["loss"] for r in found}, y="cross-entropy", ax=ax)
    for k, r in enumerate(found):
        classes = r["parameters"]["classes"] + 292 * r["parameters"]["characters"]
        ax.axhline(log(classes), color=plotting.PALETTE[k], lw=0.8, linestyle=":")
        ax.annotate(f"guessing among {classes}", (1, log(classes)), xycoords=("axes fraction", "data"), ha="right",
                    va="bottom", fontsize=8)  # fmt: skip
    ax.legend(loc="lower left")
    return fig
