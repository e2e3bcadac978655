"""The reduced scale's chemistry: reactions made with RDKit from named templates, and yields with a known rule.

A *world* is a fixed set of building blocks and sixteen reaction types with the reagents a chemist would use.
Twelve types are for pre-training; four are held out, and are what a model meets with few examples: the Suzuki
and Chan-Lam couplings, sulfonamide formation and the click reaction. Boronic acids, sulfonyl chlorides and azides
take part in no reaction of the pre-training; the molecule stage knows them as molecules. A reaction is kept only if
the template gives exactly one product, so that every label is unambiguous.
"""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass, replace
from functools import lru_cache

AMINE = "[NX3;H2,H1;!$(N-C=O);!$(N-S=O);!$(N~[!#6;!#1]):3]"


@dataclass(frozen=True)
class Type:
    """A reaction type: its template, the building blocks of each side, and reagent sets (`.` joined)."""

    template: str
    blocks: tuple[str, ...]
    reagents: tuple[str, ...]
    held_out: bool = False


TYPES = {
    "amide coupling": Type(f"[CX3:1](=[O:2])[OX2H1].{AMINE}>>[C:1](=[O:2])[N:3]", ("acid", "amine"),
                           ("CC(C)N=C=NC(C)C", "CN(C)C=O.O=S(Cl)Cl")),
    "esterification": Type("[CX3:1](=[O:2])[OX2H1].[OX2H1:3][CX4:4]>>[C:1](=[O:2])[O:3][C:4]", ("acid", "alcohol"),
                           ("O=S(=O)(O)O", "O=S(Cl)Cl")),
    "ester hydrolysis": Type("[CX3:1](=[O:2])[OX2][CH3,$([CH2][CH3])]>>[C:1](=[O:2])[OH]", ("ester",),
                             ("[Li+].[OH-]", "O.[Na+].[OH-]", "C1CCOC1.[Li+].[OH-]")),
    "reductive amination": Type(f"[CX3H1:1](=O)[c:2].{AMINE}>>[CH2:1]([c:2])[N:3]", ("aldehyde", "amine"),
                                ("[BH4-].[Na+]", "CC(=O)O.[BH4-].[Na+]")),
    "Williamson ether": Type("[CX4:1][Br].[c:2][OX2H1:3]>>[C:1][O:3][c:2]", ("alkyl bromide", "phenol"),
                             ("O=C([O-])[O-].[K+].[K+]", "CN(C)C=O.O=C([O-])[O-].[K+].[K+]")),
    "N-alkylation": Type(f"[CX4:1][Br].{AMINE}>>[C:1][N:3]", ("alkyl bromide", "amine"),
                         ("CCN(CC)CC", "CCN(C(C)C)C(C)C")),
    "Buchwald-Hartwig": Type(f"[c:1][Br].{AMINE}>>[c:1][N:3]", ("aryl bromide", "amine"),
                             ("CC(C)(C)[O-].[Na+].[Pd]", "CC(C)(C)[O-].[K+].[Pd]")),
    "nitro reduction": Type("[c:1][N+](=O)[O-]>>[c:1][NH2]", ("nitroarene",), ("[H][H].[Pd]", "Cl.[Fe]")),
    "ketone reduction": Type("[c:1][CX3:2](=[O:3])[CX4:4]>>[c:1][CH:2]([OH:3])[C:4]", ("ketone",),
                             ("CO.[BH4-].[Na+]", "[AlH4-].[Li+]")),
    "urea formation": Type(f"[#6:4][N:1]=[C:2]=[O:5].{AMINE}>>[#6:4][N:1][C:2](=[O:5])[N:3]", ("isocyanate", "amine"),
                           ("ClCCl", "C1CCOC1")),
    "Sonogashira": Type("[c:1][Br].[CH1:2]#[C:3]>>[c:1][C:2]#[C:3]", ("aryl bromide", "alkyne"),
                        ("CCN(CC)CC.[Cu]I.[Pd]", "CCNCC.[Cu]I.[Pd]")),
    "Boc protection": Type(f"{AMINE}>>[N:3]C(=O)OC(C)(C)C", ("amine",),
                           ("CC(C)(C)OC(=O)OC(=O)OC(C)(C)C",)),
    "Chan-Lam": Type(f"[c:1][B]([OH])[OH].{AMINE}>>[c:1][N:3]", ("boronic acid", "amine"),
                     ("CC(=O)O[Cu]OC(C)=O",), held_out=True),
    "Suzuki": Type("[c:1][Br].[c:2][B]([OH])[OH]>>[c:1][c:2]", ("aryl bromide", "boronic acid"),
                   ("O=C([O-])[O-].[K+].[K+].[Pd]", "O=C([O-])[O-].[Na+].[Na+].[Pd]"), held_out=True),
    "sulfonamide": Type(f"[#6:4][S:1](=[O:2])(=[O:5])[Cl].{AMINE}>>[#6:4][S:1](=[O:2])(=[O:5])[N:3]",
                        ("sulfonyl chloride", "amine"), ("CCN(CC)CC", "c1ccncc1"), held_out=True),
    "click": Type("[#6:1][N:2]=[N+:3]=[N-:4].[CH:5]#[C:6]>>[#6:1][n+0:2]1[n+0:3]=[n+0:4][c:6][cH:5]1",
                  ("azide", "alkyne"), ("O=S(=O)([O-])[O-].[Cu+2]", "[Cu]I"), held_out=True),
}  # fmt: skip
SEEN = tuple(n for n, t in TYPES.items() if not t.held_out)
HELD_OUT = tuple(n for n, t in TYPES.items() if t.held_out)

# `{}` is where the functional group goes. Substituents and cores are chosen small so that strings stay short.
_ONE = ("C", "F", "Cl", "OC", "C#N", "C(F)(F)F", "CC")
_TWO = (("F", "C"), ("C", "F"), ("Cl", "C"), ("OC", "C"), ("C", "OC"), ("F", "OC"), ("F", "Cl"), ("C#N", "F"))
ARYL = tuple(
    [core for s in _ONE for core in (f"c1ccc({s})cc1{{}}", f"c1cc({s})ccc1{{}}", f"c1cccc({s})c1{{}}")]
    + [f"c1cc({a})c({b})cc1{{}}" for a, b in _TWO] + [f"c1c({a})cc({b})cc1{{}}" for a, b in _TWO]
    + ["c1ccccc1{}", "c1ccncc1{}", "c1cccnc1{}", "c1ccccn1{}", "c1ccsc1{}", "c1cccs1{}", "c1ccoc1{}", "c1ncncc1{}",
       "c1cc(C)ncc1{}", "c1cc(OC)ncc1{}", "c1ccc2ccccc2c1{}", "c1nn(C)cc1{}", "c1cc(C)sc1{}"]
)  # fmt: skip
ALKYL = ("C{}", "CC{}", "CCC{}", "CC(C){}", "CCCC{}", "CC(C)C{}", "C1CC1{}", "C1CCC1{}", "C1CCCC1{}", "C1CCCCC1{}",
         "COCC{}", "FCC{}", "C=CC{}", "CC(C)(C)C{}", "C1CCOCC1{}", "C1CC1C{}", "C1CCCCC1C{}", "c1ccccc1C{}",
         "Fc1ccc(C{})cc1", "COc1ccc(C{})cc1", "Cc1ccc(C{})cc1", "c1ccc(CC{})cc1", "c1ccncc1C{}")  # fmt: skip
RING_AMINES = ("C1CCNC1", "C1CCNCC1", "C1COCCN1", "CN1CCNCC1", "CC1CCNCC1", "CNC", "CCNCC", "CNCc1ccccc1", "C1CNC1",
               "CNC1CCCCC1", "OC1CCNCC1", "FC1CCNCC1")  # fmt: skip


def _aryl(group: str) -> list[str]:
    return [core.replace("{}", group) for core in ARYL]


def _alkyl(group: str) -> list[str]:
    return [core.replace("{}", group) for core in ALKYL]


@lru_cache(maxsize=1)
def building_blocks() -> dict[str, tuple[str, ...]]:
    """Canonical building blocks per class, sorted."""
    raw = {
        "acid": _aryl("C(=O)O") + _alkyl("C(=O)O"),
        "ester": _aryl("C(=O)OC") + _alkyl("C(=O)OC") + _aryl("C(=O)OCC"),
        "amine": _alkyl("N") + list(RING_AMINES) + _aryl("N"),
        "alcohol": _alkyl("O"),
        "phenol": [s for s in _aryl("O") if "n" not in s and "s" not in s and "o" not in s],
        "aldehyde": _aryl("C=O"),
        "ketone": _aryl("C(=O)C") + _aryl("C(=O)CC"),
        "alkyl bromide": _alkyl("Br"),
        "aryl bromide": _aryl("Br"),
        "boronic acid": _aryl("B(O)O"),
        "nitroarene": _aryl("[N+](=O)[O-]"),
        "isocyanate": _aryl("N=C=O") + _alkyl("N=C=O"),
        "alkyne": _aryl("C#C") + _alkyl("C#C"),
        "sulfonyl chloride": _aryl("S(=O)(=O)Cl") + _alkyl("S(=O)(=O)Cl"),
        "azide": _aryl("N=[N+]=[N-]") + _alkyl("N=[N+]=[N-]"),
    }
    from companion.reactiont5.chemistry import canonical

    return {name: tuple(sorted({c for s in group if (c := canonical(s))})) for name, group in raw.items()}


@dataclass(frozen=True)
class Reaction:
    """A reaction of the world: canonical roles, type, and yield in percent."""

    kind: str
    reactant: str
    reagent: str
    product: str
    yield_percent: float = float("nan")


@lru_cache(maxsize=64)
def _compiled(kind: str):
    from rdkit.Chem import AllChem

    return AllChem.ReactionFromSmarts(TYPES[kind].template)


@lru_cache(maxsize=4096)
def _molecule(smiles: str):
    from rdkit import Chem

    return Chem.MolFromSmiles(smiles)


@lru_cache(maxsize=100_000)
def product(kind: str, blocks: tuple[str, ...]) -> str | None:
    """The one product of the template on `blocks`, canonical; None when there is none or more than one."""
    from rdkit import Chem

    found = set()
    for (part,) in _compiled(kind).RunReactants([_molecule(b) for b in blocks]):
        try:
            Chem.SanitizeMol(part)
        except Chem.MolSanitizeException:
            return None
        found.add(Chem.MolToSmiles(part))
    return found.pop() if len(found) == 1 else None


@lru_cache(maxsize=64)
def _all(kind: str, seed: int, n: int, most: int) -> list[Reaction]:
    t, blocks = TYPES[kind], building_blocks()
    choices = list(itertools.product(*(blocks[b] for b in t.blocks), t.reagents))
    random.Random(f"{kind}-{seed}").shuffle(choices)
    found: dict[tuple[str, str], Reaction] = {}
    for *chosen, reagent in choices:
        if len(found) == n:
            break
        # canonical order of components, so that order tells nothing about roles
        reactant = ".".join(sorted(chosen))
        if len(reactant) > most or (reactant, reagent) in found:
            continue
        made = product(kind, tuple(chosen))
        if made is not None and made not in chosen and len(made) <= most:
            found[reactant, reagent] = Reaction(kind, reactant, reagent, made)
    return list(found.values())


def count(kind: str, most: int = 48) -> int:
    """How many different reactions of type `kind` there are."""
    return len(_all(kind, 0, -1, most))


def reactions(kind: str, n: int, seed: int, most: int = 48) -> list[Reaction]:
    """`n` different reactions of type `kind` in random order, the same for the same seed.

    `most`: longest product and longest reactant string in characters. Raises ValueError for an unknown type or
    when the blocks do not give that many reactions.
    """
    if kind not in TYPES:
        raise ValueError(f"reaction type {kind!r} does not exist; choose {', '.join(TYPES)}")
    found = _all(kind, seed, n, most)
    if len(found) < n:
        raise ValueError(
            f"{kind!r} gives only {len(found)} different reactions of at most {most} characters, not {n}"
        )
    return found


# --- yields -------------------------------------------------------------------------------------------

# Aryl couplings like electron-poor partners, the others electron-rich ones; each type has its own level.
LOVES_POOR = frozenset(
    {"Buchwald-Hartwig", "Sonogashira", "Suzuki", "Chan-Lam", "ester hydrolysis", "ketone reduction"}
)
PATTERNS = {
    "withdrawing": "[$(F),$(Cl),$(C#N),$([N+](=O)[O-])]",  # CF3 counts three times: it withdraws most
    "donating": "[$([OX2][CH3]),$([NX3;H2]c),$([OX2H]c)]",
    "crowded": "[cX3;$(c-[!#1])]:[cX3;$(c-[!#1])]",  # neighbouring substituents on an aromatic ring
    "pyridine": "[nX2]",
}
NOISE = 5.0  # standard deviation of a measured yield, in percent


@lru_cache(maxsize=8)
def _pattern(name: str):
    from rdkit import Chem

    return Chem.MolFromSmarts(PATTERNS[name])


@lru_cache(maxsize=100_000)
def features(smiles: str) -> dict[str, int]:
    """How often each of `PATTERNS` occurs."""
    molecule = _molecule(smiles)
    return {name: len(molecule.GetSubstructMatches(_pattern(name))) for name in PATTERNS}


def expected_yield(kind: str, reactant: str, reagent: str) -> float:
    """The rule behind the world's yields, in percent, before noise.

    logit = level of the type + level of the reagent set ± 0.5 · (withdrawing - 2 · donating) - 0.9 · crowded
    - 0.6 · pyridine
    """
    if kind not in TYPES:
        raise ValueError(f"reaction type {kind!r} does not exist; choose {', '.join(TYPES)}")
    f, place = features(reactant), list(TYPES).index(kind)
    level = 0.4 * ((7 * place) % 5 - 2) - 1.1 * TYPES[kind].reagents.index(reagent)
    sign = 0.5 if kind in LOVES_POOR else -0.5
    logit = (
        0.9 + level + sign * (f["withdrawing"] - 2 * f["donating"]) - 0.9 * f["crowded"] - 0.6 * f["pyridine"]
    )
    return 100 / (1 + math.exp(-logit))


def with_yields(found: list[Reaction], seed: int) -> list[Reaction]:
    """`found` with measured yields: the rule plus normal noise of `NOISE` percent, kept within 0 to 100."""
    rng = random.Random(f"yields-{seed}")
    return [replace(r, yield_percent=min(100.0, max(0.0, expected_yield(r.kind, r.reactant, r.reagent)
                                                      + rng.gauss(0, NOISE)))) for r in found]  # fmt: skip
