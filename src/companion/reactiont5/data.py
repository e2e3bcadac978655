"""Readers for the public files, each in the format in which it is distributed.

All return `chemistry.Row`s. Files are found below `reactions/` of COMPANION_DATA (`companion.datasets.find`);
the functions also take a path. Nothing is fetched and nothing is redistributed.
"""

from __future__ import annotations

import csv
import io
import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from companion import datasets
from companion.reactiont5.chemistry import Report, Row, canonical, clean, components, merge, strip_maps

NUMBER = re.compile(r":(\d+)\]")
ARROW = re.compile(r"(?<!-)>")  # not the dative bond "->"
# Last training row of every sheet of the Buchwald-Hartwig workbook: the order of rows is the split.
TRAIN_ROWS = {f"FullCV_{k:02d}": 2767 for k in range(1, 11)} | {
    "Test1": 3057,
    "Test2": 3055,
    "Test3": 3058,
    "Test4": 3055,
}
TOLUIDINE = "Cc1ccc(N)cc1"
PALLADACYCLE = "O=S(=O)(O[Pd]1~[NH2]C2C=CC=CC=2C2C=CC=CC1=2)C(F)(F)F"
AMINATION = ("[F,Cl,Br,I]-[c;H0;D3;+0:1](:[c,n:2]):[c,n:3].[NH2;D1;+0:4]-[c:5]"
             ">>[c,n:2]:[c;H0;D3;+0:1](:[c,n:3])-[NH;D2;+0:4]-[c:5]")  # fmt: skip


def _path(path: str | Path | None, name: str) -> Path:
    return Path(path) if path else datasets.find(f"reactions/{name}")


# --- the Open Reaction Database's table ---------------------------------------------------------------


def read_ord_csv(path: str | Path | None = None, task: str = "forward") -> tuple[list[Row], Report]:
    """The pre-processed ORD table (CATALYST, REACTANT, REAGENT, SOLVENT, PRODUCT, YIELD), cleaned for `task`.

    The authors' demo file already holds the catalyst inside REAGENT; such rows get an empty catalyst, so that
    `Row.conditions` does not name it twice, and are counted. Raises ValueError for a file without the columns.
    """
    path = _path(path, "reactiont5v2_demo_reaction_data.csv")
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    columns = set(rows[0]) if rows else set()
    if missing := {"REACTANT", "PRODUCT"} - columns:
        raise ValueError(
            f"{path.name}: column {sorted(missing)[0]} is missing; the file has {', '.join(sorted(columns))}"
        )
    merged = 0
    for row in rows:
        catalyst = components(row.get("CATALYST") or "")
        if catalyst and set(catalyst) <= set(components(row.get("REAGENT") or "")):
            row["CATALYST"], merged = "", merged + 1
    need = ("REACTANT", "PRODUCT", "YIELD") if task == "yield" else ("REACTANT", "PRODUCT")
    kept, report = clean(rows, need=need, first_row=2)
    if merged:
        report.note("catalyst already merged into REAGENT", "the file's own convention", merged)
    return kept, report


# --- reaction SMILES with atom maps -------------------------------------------------------------------


def split_roles(reactants: str, product: str) -> tuple[str, str]:
    """(REACTANT, REAGENT) of the molecules before the arrow, decided by the atom maps: those that share a map
    number with the product are reactants. Still mapped."""
    made = set(NUMBER.findall(product))
    own, other = [], []
    for part in reactants.split("."):
        (own if made & set(NUMBER.findall(part)) else other).append(part)
    return ".".join(own), ".".join(other)


def from_mapped(lines: Iterable[str], first_row: int = 1) -> tuple[list[Row], Report]:
    """Rows of atom-mapped reaction SMILES (`reactants>>product` or `reactants>agents>product`, more text ignored)."""

    whole = []  # rows whose product carries no maps

    def rows() -> Iterator[dict[str, str]]:
        for number, line in enumerate(lines, first_row):
            parts = ARROW.split((line.split() or [""])[0])
            if len(parts) != 3:
                yield {"REACTANT": parts[0], "PRODUCT": ""}  # counted as what it lacks
                continue
            if NUMBER.search(parts[2]):
                own, other = split_roles(parts[0], parts[2])
            else:
                own, other = parts[0], ""
                whole.append(number)
            yield {"REACTANT": own, "REAGENT": merge(other, parts[1]), "PRODUCT": parts[2]}

    kept, report = clean(rows(), first_row=first_row)
    if whole:
        report.note(
            "product without atom maps: all molecules count as REACTANT", f"row {whole[0]}", len(whole)
        )
    return kept, report


def read_uspto_mit(
    part: str = "test", path: str | Path | None = None, most: int = 0, skip: int = 0
) -> tuple[list[Row], Report]:
    """USPTO-MIT as distributed with rexgen (`train` 409,035, `valid` 30,000, `test` 40,000), roles from atom maps.

    `most` reads only the first rows (0: all), `skip` leaves the first rows of those out.
    """
    if part not in ("train", "valid", "test"):
        raise ValueError(f"part is {part!r}; choose train, valid or test")
    lines = _tar_lines(_path(path, f"uspto_mit_rexgen_{part}.txt.tar.gz"), f"{part}.txt", most)
    return from_mapped(lines[skip:], first_row=skip + 1)


def read_uspto_15k(
    part: str = "train", path: str | Path | None = None, most: int = 0
) -> tuple[list[Row], Report]:
    """USPTO-15K (`train` 10,500, `valid` 1,500, `test` 3,000). Its products carry no maps: roles stay mixed."""
    if part not in ("train", "valid", "test"):
        raise ValueError(f"part is {part!r}; choose train, valid or test")
    with zipfile.ZipFile(_path(path, "uspto15k_rexgen_data.zip")) as archive:
        lines = archive.read(f"data/{part}.txt").decode().splitlines()
    return from_mapped(lines[: most or None])


def read_uspto_50k(
    part: str = "test", path: str | Path | None = None, most: int = 0
) -> tuple[list[Row], Report]:
    """USPTO-50k from bigchem's files (`product >> reactants`, no maps, no reagents)."""
    if part not in ("train", "valid", "test"):
        raise ValueError(f"part is {part!r}; choose train, valid or test")
    lines = _path(path, f"uspto50k_bigchem_{part}.smi").read_text().splitlines()[: most or None]
    rows = ({"PRODUCT": a, "REACTANT": b} for a, _, b in (line.partition(" >> ") for line in lines))
    return clean(rows)


def read_uspto_50k_mapped(path: str | Path | None = None, most: int = 0) -> tuple[list[Row], Report]:
    """USPTO-50k's validation part in RetroXpert's form (class, id, mapped reaction SMILES); maps are removed."""
    with open(_path(path, "uspto50k_retroxpert_valid.csv"), newline="", encoding="utf-8") as file:
        lines = [row["rxn_smiles"] for row in csv.DictReader(file)]
    return from_mapped(lines[: most or None], first_row=2)


def _tar_lines(path: Path, member: str, most: int = 0) -> list[str]:
    with tarfile.open(path) as archive:
        names = archive.getnames()
        if member not in names:
            raise ValueError(f"{path.name}: no {member!r} inside; it holds {', '.join(names[:6])}")
        lines = []
        for line in io.TextIOWrapper(archive.extractfile(member), encoding="utf-8"):
            lines.append(line.rstrip("\n"))
            if most and len(lines) == most:
                break
    return lines


def read_t5chem(task: str = "product", part: str = "test", path: str | Path | None = None,
                most: int = 0) -> tuple[list[Row], Report]:  # fmt: skip
    """T5Chem's sample data: `product`, `reactants` (pool of molecules, product) or `regression` (C-N yields)."""
    if task not in ("product", "reactants", "regression") or part not in ("train", "val", "test"):
        raise ValueError(
            f"task {task!r}, part {part!r}; choose product, reactants or regression, and train, val or test"
        )
    path = _path(path, "t5chem_sample_data.tar.bz2")
    source = _tar_lines(path, f"data/sample/{task}/{part}.source", most)
    target = _tar_lines(path, f"data/sample/{task}/{part}.target", most)
    if task == "reactants":
        return clean({"PRODUCT": s, "REACTANT": t} for s, t in zip(source, target, strict=True))
    if task == "product":
        return clean(
            {"REACTANT": s.split(">>")[0], "PRODUCT": t} for s, t in zip(source, target, strict=True)
        )
    split = [ARROW.split(s) for s in source]
    return clean(({"REACTANT": a, "REAGENT": b, "PRODUCT": c, "YIELD": y} for (a, b, c), y in
                  zip(split, target, strict=True)), share=False)  # fmt: skip


# --- yields -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class YieldSplit:
    """A split of a yield data set: rows with their yields, and the factors that were varied (for one-hot codes)."""

    train: list[Row]
    test: list[Row]
    train_factors: list[tuple[str, ...]]
    test_factors: list[tuple[str, ...]]


@lru_cache(maxsize=64)
def amination_product(halide: str) -> str:
    """The coupling product of an aryl halide with p-toluidine, by the template of the public benchmark."""
    from rdkit import Chem
    from rdkit.Chem import AllChem

    made = AllChem.ReactionFromSmarts(AMINATION).RunReactants(
        (Chem.MolFromSmiles(halide), Chem.MolFromSmiles(TOLUIDINE))
    )
    products = set()
    for (part,) in made:
        Chem.SanitizeMol(part)
        products.add(Chem.MolToSmiles(part))
    if len(products) != 1:
        raise ValueError(
            f"aryl halide {halide!r} gives {len(products)} amination products; exactly one is expected"
        )
    return products.pop()


def sheet_of(source: str, seed: int) -> str:
    """The sheet of `bh-Test1`, ...; `bh-FullCV` is the random split number `seed` + 1 of ten."""
    name = source.removeprefix("bh-")
    return f"FullCV_{seed % 10 + 1:02d}" if name == "FullCV" else name


@lru_cache(maxsize=32)
def read_buchwald_hartwig(sheet: str = "Test1", path: str | Path | None = None) -> YieldSplit:
    """The C-N coupling yields of Ahneman et al. in one of the official splits: FullCV_01 to 10, Test1 to Test4.

    REACTANT is aryl halide and p-toluidine, REAGENT palladium precatalyst, ligand, base and additive.
    """
    import openpyxl

    if sheet not in TRAIN_ROWS:
        raise ValueError(f"sheet {sheet!r} is no split; choose {', '.join(TRAIN_ROWS)}")
    # read-only: only this sheet of sixteen is parsed
    book = openpyxl.load_workbook(_path(path, "Dreher_and_Doyle_input_data.xlsx"), read_only=True)
    head, *body = book[sheet].iter_rows(values_only=True)
    book.close()
    columns = ["Ligand", "Additive", "Base", "Aryl halide", "Output"]
    if missing := [name for name in columns if name not in head]:
        raise ValueError(f"sheet {sheet}: column {missing[0]!r} is missing; this is not the public workbook")
    at = [head.index(name) for name in columns]
    table = [tuple(row[k] for k in at) for row in body if row[at[0]] is not None]
    factors = [row[:4] for row in table]
    rows = []
    for (ligand, additive, base, halide), amount in zip(factors, (row[4] for row in table), strict=True):
        if not isinstance(amount, int | float) or not 0 <= amount <= 100:
            raise ValueError(f"sheet {sheet}: yield {amount!r} is no number from 0 to 100")
        reagent = canonical(merge(PALLADACYCLE, ligand, base, additive))
        reactant = canonical(merge(halide, TOLUIDINE))
        rows.append(Row(reactant, amination_product(halide), reagent, yield_percent=float(amount)))
    cut = TRAIN_ROWS[sheet]
    return YieldSplit(rows[:cut], rows[cut:], factors[:cut], factors[cut:])


def read_suzuki(path: str | Path | None = None) -> tuple[list[Row], Report]:
    """The Suzuki-Miyaura yields of Perera et al. as reaction SMILES (`rxn`, `y` in 0 to 1), in the file's order.

    The file puts everything before `>>`; which molecules are reactants cannot be told from it, so all stand in
    REACTANT and REAGENT is empty.
    """
    with open(_path(path, "suzuki_random_split_0.tsv"), newline="", encoding="utf-8") as file:
        rows = [(r["rxn"].split(">>"), r["y"]) for r in csv.DictReader(file, delimiter="\t")]
    return clean(({"REACTANT": a, "PRODUCT": b, "YIELD": y} for (a, b), y in rows), share=True, first_row=2)


def read_suzuki_split(path: str | Path | None = None) -> YieldSplit:
    """The public random split number 0: the file's first 70 % are for training. A reaction's factors are its molecules.

    Raises ValueError where rows would be lost, because the split is the order of rows.
    """
    rows, report = read_suzuki(path)
    if report.kept != report.read:
        raise ValueError(
            f"Suzuki yields: {report.read - report.kept} of {report.read} rows were refused; the split is lost"
        )
    cut = int(0.7 * len(rows))
    factors = [tuple(components(r.reactant)) for r in rows]
    return YieldSplit(rows[:cut], rows[cut:], factors[:cut], factors[cut:])


def read_suzuki_factors(path: str | Path | None = None) -> tuple[list[tuple[str, ...]], list[float]]:
    """Perera et al.'s workbook: (reactant 1, reactant 2, ligand, base, solvent) names and the yield in percent."""
    import pandas as pd

    frame = pd.read_excel(_path(path, "aap9112_Data_File_S1.xlsx"))
    names = ["Reactant_1_Short_Hand", "Reactant_2_Name", "Ligand_Short_Hand", "Reagent_1_Short_Hand",
             "Solvent_1_Short_Hand"]  # fmt: skip
    if missing := [n for n in [*names, "Product_Yield_PCT_Area_UV"] if n not in frame.columns]:
        raise ValueError(f"column {missing[0]!r} is missing; this is not Perera et al.'s data file S1")
    factors = [tuple(map(str, row)) for row in frame[names].fillna("none").itertuples(index=False)]
    return factors, [float(y) for y in frame["Product_Yield_PCT_Area_UV"]]


__all__ = [
    "YieldSplit", "amination_product", "from_mapped", "read_buchwald_hartwig", "read_ord_csv", "read_suzuki",
    "read_suzuki_factors", "read_suzuki_split", "read_t5chem", "read_uspto_15k", "read_uspto_50k", "read_uspto_50k_mapped", "read_uspto_mit",
    "sheet_of", "split_roles", "strip_maps",
]  # fmt: skip
