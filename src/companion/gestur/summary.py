"""One table with what readers of domain-generalisation papers ask for, made from run records.

Per method: accuracy on every left-out domain with its standard error over trials, their mean, the accuracy on the
sources that selection saw, the last step's accuracy, the step that was chosen, the settings that were used and the
selection rule in words. Works for the tables of one method per run and for those of many variants per run.
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

    t = tables.table(paper, table)
    found = [
        r for r in records.read(folder or records.evidence_folder(), paper, table, scale)
        if (not row or r["run"]["row"] == row)
        and records.stale(r, t.cell(r["run"]["row"], r["run"]["column"], scale)) is None
    ]  # fmt: skip
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
        line["settings"] = settings.get(method, "")
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
