"""Caption audit: for every name of a caption, what supports it: the rule, the article, or nothing.

A rule that comes with its caption makes this possible: a reader sees which names were meant (rule), which the model
took from the article on its own, and which stand nowhere. The last kind should not be printed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from companion.newscap.rule import Entity, Rule

SOURCES = ("rule", "article", "nothing")


@dataclass(frozen=True)
class Support:
    """One name of a caption. `by`: "rule", "article" or "nothing"; `role`: the rule's role that holds it, or ""."""

    text: str
    type: str
    by: str
    role: str = ""


def within(name: str, text: str) -> bool:
    """Whether `name` stands in `text` as whole words ("Park" in "Leo Park", not in "Parker")."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None


def audit(
    caption: str, article: str, rule: Rule | None, names: Callable[[str], Sequence[Entity]]
) -> list[Support]:
    """Every name that `names` finds in the caption, with what supports it.

    A part of a name counts as the name ("Torres" for Ana Torres). The rule comes first: most of its names stand in
    the article as well.
    """
    found = []
    for e in names(caption):
        role = next((r for r, held in (rule.roles if rule else {}).items()
                     if any(within(e.text, x.text) for x in held)), "")  # fmt: skip
        by = "rule" if role else "article" if within(e.text, article) else "nothing"
        found.append(Support(e.text, e.type, by, role))
    return found


def shares(audits: Iterable[Sequence[Support]]) -> dict[str, float | None]:
    """Of all names of all captions, how many per cent each source supports (None where there is no name)."""
    count = Counter(s.by for one in audits for s in one)
    return {by: 100 * count[by] / count.total() if count else None for by in SOURCES}
