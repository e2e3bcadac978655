"""Does the pre-training file know the test? Exact and near duplicates, by four keys of rising tolerance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from companion.reactiont5.chemistry import Row, components

KEYS: dict[str, tuple[str, Callable[[Row], tuple]]] = {
    "reaction": ("same reactants, conditions and product",
                 lambda r: (*components(r.reactant), ">", *components(r.conditions()), ">", *components(r.product))),
    "reactants and product": ("same reactants and product, any conditions",
                              lambda r: (*components(r.reactant), ">", *components(r.product))),
    "pool and product": ("same molecules before the arrow whatever their role, same product",
                         lambda r: (*sorted(components(r.reactant) + components(r.conditions())), ">",
                                    *components(r.product))),
    "product": ("same product, any way to it", lambda r: tuple(components(r.product))),
}  # fmt: skip


@dataclass(frozen=True)
class Overlap:
    """One line of the report: how many of the test reactions have their key among the pre-training reactions."""

    key: str
    meaning: str
    found: int
    tests: int
    examples: tuple[str, ...]

    @property
    def share(self) -> float:
        return self.found / self.tests


def leakage_report(pretraining: Iterable[Row], test: Iterable[Row], examples: int = 3) -> list[Overlap]:
    """Overlap of `test` with `pretraining` under each key of `KEYS`.

    The published filter removes pre-training rows by the first key only, and as text; what remains under the
    others is what it lets through. Raises ValueError for an empty side.
    """
    before, after = list(pretraining), list(test)
    if not before or not after:
        raise ValueError(
            f"{len(before)} pre-training and {len(after)} test reactions; both sides need at least one"
        )
    lines = []
    for name, (meaning, key) in KEYS.items():
        known = {key(r) for r in before}
        hits = [r for r in after if key(r) in known]
        shown = tuple(f"{r.reactant}>{r.conditions()}>{r.product}" for r in hits[:examples])
        lines.append(Overlap(name, meaning, len(hits), len(after), shown))
    return lines


def table(report: list[Overlap]) -> str:
    """The report as text."""
    head = f"{'key':<24}{'found':>8}{'of':>8}{'share':>9}  meaning"
    return "\n".join(
        [head, *(f"{o.key:<24}{o.found:>8}{o.tests:>8}{o.share:>9.2%}  {o.meaning}" for o in report)]
    )


def without(
    pretraining: Iterable[Row], test: Iterable[Row], key: str = "reactants and product"
) -> tuple[list[Row], int]:
    """`pretraining` without the rows whose `key` occurs in `test`, and how many were removed.

    Raises ValueError for an unknown key.
    """
    if key not in KEYS:
        raise ValueError(f"key {key!r} does not exist; choose {', '.join(KEYS)}")
    of = KEYS[key][1]
    known = {of(r) for r in test}
    rows = list(pretraining)
    kept = [r for r in rows if of(r) not in known]
    return kept, len(rows) - len(kept)


def duplicates(rows: Iterable[Row], key: str = "reactants and product") -> int:
    """How many of `rows` repeat an earlier one under `key`."""
    counts = Counter(KEYS[key][1](r) for r in rows)
    return sum(counts.values()) - len(counts)
