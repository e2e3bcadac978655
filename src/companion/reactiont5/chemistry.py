"""SMILES as the paper treats them: canonical, without atom maps, in roles; everything refused is counted."""

from __future__ import annotations

import contextlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

MAP = re.compile(r":\d+(?=\])")
# an atom that needs no brackets, in brackets: RDKit writes so beside a metal (recent versions), and for radicals
NEEDLESS = re.compile(r"\[(Cl|Br|[BCNOPSFI]|[cnops])H?\d?\]")
ROLES = ("CATALYST", "REACTANT", "REAGENT", "SOLVENT", "PRODUCT")


@contextlib.contextmanager
def quiet():
    """Silence RDKit's messages: refused molecules are counted and reported by the caller instead."""
    from rdkit import rdBase

    block = rdBase.BlockLogs()
    try:
        yield
    finally:
        del block


@lru_cache(maxsize=300_000)
def canonical(smiles: str) -> str | None:
    """RDKit's canonical SMILES, or None where it cannot be read. Empty text is not a molecule: None.

    Canonical text stays as it is when it is made canonical again, also that of the palladium precatalyst of the
    Buchwald-Hartwig set, whose undirected bond (`~`) RDKit turns into a dative one on the second reading only.
    """
    from rdkit import Chem

    if not isinstance(smiles, str) or not smiles.strip():
        return None
    with quiet():
        molecule = Chem.MolFromSmiles(smiles.strip())
        if molecule is None:
            return None
        form = Chem.MolToSmiles(molecule)
        if "~" in form:  # RDKit completes the clean-up of a metal's bonds only when it reads its own text
            form = Chem.MolToSmiles(Chem.MolFromSmiles(form))
        return _bare(form) if NEEDLESS.search(form) else form


def _bare(form: str) -> str:
    """`form` without brackets that say nothing: `[CH3][Mg+]` becomes `C[Mg+]`, a radical stays as it is.

    Recent RDKit versions put atoms beside a metal in brackets; the public reaction files hold the shorter text.
    """
    from rdkit import Chem

    def same(text: str) -> bool:
        molecule = Chem.MolFromSmiles(text)
        return molecule is not None and Chem.MolToSmiles(molecule) == form

    if same(short := NEEDLESS.sub(r"\1", form)):
        return short
    text, at = form, 0
    while found := NEEDLESS.search(text, at):
        short = text[: found.start()] + found[1] + text[found.end() :]
        text, at = (short, found.start() + 1) if same(short) else (text, found.end())
    return text


def why_not(smiles: str) -> str:
    """Why RDKit cannot read `smiles`, in a few words."""
    from rdkit import Chem

    if not str(smiles).strip():
        return "empty"
    with quiet():
        molecule = Chem.MolFromSmiles(str(smiles).strip(), sanitize=False)
        if molecule is None:
            return "not SMILES (syntax)"
        problems = Chem.DetectChemistryProblems(molecule)
    return problems[0].Message() if problems else "cannot be read"


def strip_maps(smiles: str) -> tuple[str, int]:
    """`smiles` without atom maps, and how many there were. Not canonical yet: the brackets stay."""
    return MAP.sub("", smiles), len(MAP.findall(smiles))


def merge(*parts: str | None) -> str:
    """Roles joined into one, empty ones left out: the paper's `space_clean(CATALYST.REAGENT.SOLVENT)`."""
    return ".".join(p.strip() for p in parts if isinstance(p, str) and p.strip())


def components(smiles: str) -> list[str]:
    """The dot-separated parts, sorted."""
    return sorted(p for p in smiles.strip().split(".") if p)


@dataclass(frozen=True)
class Row:
    """One reaction in the schema of the Open Reaction Database: canonical SMILES per role, "" where empty.

    `yield_percent` is NaN where none is known; `map_numbers` says whether the source carried atom maps.
    """

    reactant: str
    product: str
    reagent: str = ""
    catalyst: str = ""
    solvent: str = ""
    yield_percent: float = math.nan
    id: str = ""

    def conditions(self, task: str = "forward") -> str:
        """The reagent role of the paper's input: catalyst, reagent and solvent; without solvent for yields."""
        last = () if task == "yield" else (self.solvent,)
        return canonical(merge(self.catalyst, self.reagent, *last)) or ""


@dataclass
class Report:
    """What reading a table did: nothing disappears without a line here."""

    read: int = 0
    kept: int = 0
    counts: Counter = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)  # reason -> first case, with its row

    def note(self, reason: str, where: str, n: int = 1) -> None:
        self.counts[reason] += n
        self.examples.setdefault(reason, where)

    def __str__(self) -> str:
        lines = [f"{self.read} rows read, {self.kept} kept"]
        lines += [
            f"  {n:>7}  {reason} (first: {self.examples[reason]})" for reason, n in self.counts.most_common()
        ]
        return "\n".join(lines)


def clean(rows: Iterable[Mapping[str, Any]], *, need: tuple[str, ...] = ("REACTANT", "PRODUCT"),
          share: bool | None = None, longest: int = 0, first_row: int = 1) -> tuple[list[Row], Report]:  # fmt: skip
    """Rows of the ORD schema, canonical and without duplicates, as the paper's filters leave them.

    Args:
        rows: mappings with some of the keys CATALYST, REACTANT, REAGENT, SOLVENT, PRODUCT, YIELD, id.
        need: roles that must not be empty ("YIELD" may be among them).
        share: yields are shares (True) or percent (False). None decides as the official code does, by whether the
            largest is below 1.0000001; a table of percent yields that are all below 1 is then misread.
        longest: drop rows with a role of more characters (0: no limit; v1 used 512).
        first_row: number of the first row in reports.

    Returns:
        (rows, report). Dropped and counted: unreadable SMILES (with row and reason), empty needed roles, yields
        outside 0 to 100, exact duplicates. Counted but kept: atom maps (removed) and rows with salts.
    """
    raw = list(rows)
    if share is None:
        known = [y for y in (_number(r.get("YIELD")) for r in raw) if not math.isnan(y)]
        share = bool(known) and max(known) <= 1.0000001
    report, kept, seen = Report(read=len(raw)), [], set()
    for number, row in enumerate(raw, first_row):
        parts, problem = {}, ""
        for role in ROLES:
            text = row.get(role)
            text = text.strip() if isinstance(text, str) else ""
            text, maps = strip_maps(text)
            if maps:
                report.note("roles with atom maps (maps removed)", f"row {number}, {role}", 1)
            form = canonical(text) if text else ""
            if form is None:
                problem = problem or f"unreadable {role}"
                where = f"row {number}: {text[:60]!r}, {why_not(text)}"
            elif longest and len(form) > longest:
                problem = problem or f"{role} longer than {longest} characters"
                where = f"row {number}, {len(form)} characters"
            elif not form and role in need:
                problem = problem or f"empty {role}"
                where = f"row {number}"
            parts[role] = form or ""
        amount = _number(row.get("YIELD")) * (100 if share else 1)
        if not problem and "YIELD" in need and math.isnan(amount):
            problem, where = "no yield", f"row {number}: {row.get('YIELD')!r}"
        if not problem and not math.isnan(amount) and not 0 <= amount <= 100 + 1e-6:
            problem, where = "yield outside 0 to 100", f"row {number}: {amount:g}"
        if problem:
            report.note(problem, where)
            continue
        if any("+" in p or "-]" in p for p in parts["REACTANT"].split(".")) and "." in parts["REACTANT"]:
            report.note("salts or charged parts among the reactants (kept)", f"row {number}")
        made = Row(parts["REACTANT"], parts["PRODUCT"], parts["REAGENT"], parts["CATALYST"], parts["SOLVENT"],
                   min(amount, 100.0), str(row.get("id") or ""))  # fmt: skip
        key = replace(made, id="", yield_percent=0.0), None if math.isnan(amount) else round(amount, 6)
        if key in seen:
            report.note("exact duplicate", f"row {number}")
            continue
        seen.add(key)
        kept.append(made)
    report.kept = len(kept)
    return kept, report


def _number(value: Any) -> float:
    try:
        return float(value) if value not in (None, "") else math.nan
    except (TypeError, ValueError):
        return math.nan
