"""What run records say, in the form that readers of domain-generalisation papers ask for.

`everything` is one table with, per method: accuracy on every left-out domain with its standard error over trials,
their mean, the accuracy on the sources that selection saw, the last step's accuracy, the step that was chosen and the
settings. The figures are those of the chapter; all intervals are 95 % t-intervals over seeds.
"""

from __future__ import annotations

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
               folder: Any = None) -> Any:  # fmt: skip
    """The table as a pandas frame, a line per method.

    Args:
        row: in tables with many methods per run, the row to show.
        titles: method -> how it is called; also the order.
        folder: where the records are; default: the committed ones.

    Raises:
        ValueError: when there are no records that fit their cell any more.
    """
    import pandas as pd

    found = valid(paper, table, scale, row, folder)
    if not found:
        raise ValueError(
            f"there are no valid records of {paper} {table} at scale {scale}"
            + (f", row {row}" if row else "")
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
            line[name] = show(*mean_and_error([t[name]["test"] for t in all_trials]))
        for title, key in (("mean", "test"), ("sources", "val"), ("last step", "last")):
            per_trial = [[t[name][key] for name in names if t[name].get(key) is not None] for t in all_trials]
            line[title] = show(*mean_and_error([fmean(v) for v in per_trial])) if all(per_trial) else "–"
        steps = [int(t[name]["step"]) for t in all_trials for name in names]
        line["chosen steps"] = f"{min(steps)}–{max(steps)}" if min(steps) < max(steps) else f"{steps[0]}"
        line["trials"] = len(all_trials)
        line["settings"] = settings.get(method.removesuffix("+swad"), "")
        lines.append(line)
    return pd.DataFrame(lines).set_index("method")


def show(mean: float, error: float) -> str:
    """`83.4 ± 0.6`: mean and standard error as DomainBed prints them."""
    return f"{mean:.1f} ± {error:.1f}"


def rule() -> str:
    """The selection rule of all these tables, in words."""
    return (f"Selected by training-domain validation: {RULES['training-domain']}. Reported: accuracy on the 80 % of the "
            "left-out domain that DomainBed calls `in`; none of it is trained on. ± is DomainBed's standard error over "
            "trials; `last step` needs no selection and is also what DomainBed's oracle reports of a single run.")  # fmt: skip


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


def _metric(found: Sequence[Mapping[str, Any]], name: str) -> tuple[float, float]:
    return interval([r["metrics"][name] for r in found])


def _bars(ax: Any, lines: Sequence[str], points: Sequence[tuple[float, float]], **style: Any) -> None:
    """Horizontal error bars, one line of text each."""
    at = range(len(lines))
    ax.errorbar([m for m, _ in points], at, xerr=[h for _, h in points], linestyle="none", capsize=3, **style)
    ax.set_yticks(at, lines)


def _legend(ax: Any, where: str) -> None:
    if ax.get_legend_handles_labels()[0]:  # nothing is drawn where there are no records
        ax.legend(loc=where, fontsize=8)


def figure_methods(scale: str = "reduced") -> Any:
    """Unseen accuracy and source accuracy of every method at both strengths of the shortcut."""
    import matplotlib.pyplot as plt

    from companion import plotting

    t = tables.table("gestur", "shortcut")
    titles = {c.metric.removeprefix("test@"): c.title for c in t.columns}
    fig, axes = plt.subplots(1, 2, figsize=(9, 5), sharey=True)
    order = None
    for ax, row in zip(axes, t.rows, strict=True):
        found = valid("gestur", "shortcut", scale, row.id)
        if not found:
            continue
        unseen = {m: _metric(found, f"test@{m}") for m in titles}
        order = order or sorted(titles, key=lambda m: unseen[m][0])
        names = [titles[m] for m in order]
        for kind, color, marker in (("val", plotting.PALETTE[7], "s"), ("test", plotting.PALETTE[0], "o")):
            points = [_metric(found, f"{kind}@{m}") for m in order]
            label = {"val": "held-out sources", "test": "unseen styles"}[kind]
            _bars(ax, names, points, color=color, marker=marker, markersize=5, label=label)
        ax.set(xlabel="accuracy (%)", title=f"{row.title} ({count(found)})")
    _legend(axes[0], "upper left")
    return fig


def figure_lambda() -> Any:
    """The λ curve on held-out sources and on unseen styles, and how often validation chose which λ."""
    import matplotlib.pyplot as plt

    from companion import plotting

    t = tables.table("gestur", "lambda")
    names = [c.metric.removeprefix("test@") for c in t.columns if c.metric.startswith("test@lam=")]
    fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for ax, row in zip(axes, t.rows, strict=True):
        found = valid("gestur", "lambda", "reduced", row.id)
        if not found:
            continue
        for kind, label, color, marker in (("val", "held-out sources", plotting.PALETTE[7], "s"),
                                           ("test", "unseen styles", plotting.PALETTE[0], "o")):  # fmt: skip
            points = [_metric(found, f"{kind}@{n}") for n in names]
            ax.errorbar(range(len(names)), [m for m, _ in points], yerr=[h for _, h in points], color=color,
                        marker=marker, capsize=3, label=label)  # fmt: skip
        chosen = [r["notes"]["chosen"] for r in found]
        for k, n in enumerate(names):
            if times := chosen.count(n):
                ax.annotate(f"chosen {times}×", (k, 0.02), xycoords=("data", "axes fraction"), ha="center",
                            fontsize=8)  # fmt: skip
        ax.set_xticks(range(len(names)), [n.removeprefix("lam=") for n in names])
        ax.margins(0.08, 0.12)
        ax.set(xlabel="λ", title=f"{row.title} ({count(found)})")
    axes[0].set_ylabel("accuracy (%)")
    _legend(axes[0], "upper right")
    return fig


def figure_ablation() -> Any:
    """What every variant loses (left) or gains (right) on unseen styles against the published form, paired by seed."""
    import matplotlib.pyplot as plt

    from companion import plotting

    t = tables.table("gestur", "ablation")
    found = valid("gestur", "ablation", "reduced")
    columns = [c for c in t.columns if c.id != "published"]
    fig, ax = plt.subplots(figsize=(7, 3.6))
    if found:
        gains = [
            interval([-r["metrics"]["gap@" + c.metric.removeprefix("test@")] for r in found]) for c in columns
        ]
        _bars(ax, [c.title for c in columns], gains, color=plotting.PALETTE[0], marker="o")
        ax.invert_yaxis()
        ax.set(title=f"{t.rows[0].title} ({count(found)})")
    ax.axvline(0, color=plotting.INK, lw=0.8)
    ax.set(xlabel="unseen accuracy, minus the published form's (points)")
    return fig


def figure_gradients() -> Any:
    """Cosines with the true unseen gradient, and the bias towards the sources, over training; bands are intervals."""
    import matplotlib.pyplot as plt

    from companion import plotting

    t = tables.table("gestur", "gradients")
    fig, axes = plt.subplots(2, len(t.rows), figsize=(9, 6), sharex=True, sharey="row")
    for k, row in enumerate(t.rows):
        found = valid("gestur", "gradients", "reduced", row.id)
        if not found:
            continue
        for ax, lines in ((axes[0, k], ("source gradient", "estimate", "both together")),
                          (axes[1, k], ("bias, source gradient", "bias, both together"))):  # fmt: skip
            for j, name in enumerate(lines):
                per_seed = [r["curves"][name] for r in found]
                steps = [x for x, _ in per_seed[0]]
                points = [interval([c[i][1] for c in per_seed]) for i in range(len(steps))]
                style = j if ax is axes[0, k] else 2 * j
                ax.plot(steps, [m for m, _ in points], label=name.removeprefix("bias, "),
                        color=plotting.PALETTE[style], linestyle=plotting.DASHES[style])  # fmt: skip
                ax.fill_between(steps, [m - h for m, h in points], [m + h for m, h in points],
                                color=plotting.PALETTE[style], alpha=0.15, lw=0)  # fmt: skip
        axes[0, k].axhline(0, color=plotting.INK, lw=0.8)
        axes[0, k].set_title(f"{row.title} ({count(found)})")
        axes[1, k].set_xlabel("step")
    axes[0, 0].set_ylabel("cosine with unseen gradient")
    axes[1, 0].set_ylabel("bias towards the sources")
    for ax in axes[:, 0]:
        _legend(ax, "best")
    return fig
