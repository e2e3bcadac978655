"""The Open Reaction Database's own files (`*.pb.gz`, `*.parquet`), read without further packages.

Field numbers are those of `ord_schema/proto/reaction.proto` and `dataset.proto` (Apache 2.0). Only what the paper
uses is read: roles, SMILES, yields; everything else is skipped by its length. The Parquet export holds the same
messages, one per row, in its column `reaction`. The tests compare this reader with files that the library ord-schema
(0.9.6) wrote, and with the library itself where it is installed.
"""

from __future__ import annotations

import csv
import gzip
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from companion.reactiont5.chemistry import Report, Row, _number, clean, components

# ReactionRole.ReactionRoleType; workups and standards take no part in the paper's strings
ROLE = {0: "NoData", 1: "REACTANT", 2: "REAGENT", 3: "SOLVENT", 4: "CATALYST", 8: "PRODUCT"}
SMILES, YIELD = 2, 3  # CompoundIdentifier.IdentifierType, ProductMeasurement.MeasurementType


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """(field number, value) of one protobuf message: numbers, or bytes for text and messages.

    Raises ValueError where the bytes are not a protobuf message.
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise ValueError("not a protobuf message: a number does not end")
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
            shift += 7

    while at < len(data):
        key = varint()
        number, kind = key >> 3, key & 7
        if kind == 0:
            yield number, varint()
            continue
        size = varint() if kind == 2 else {1: 8, 5: 4}.get(kind, -1)
        if size < 0 or at + size > len(data) or number == 0:
            raise ValueError(f"not a protobuf message: field {number} of wire type {kind} does not fit")
        part = data[at : at + size]
        at += size
        yield number, part if kind == 2 else struct.unpack("<d" if kind == 1 else "<f", part)[0]


def _smiles(compound: list[tuple[int, Any]]) -> str:
    """The first SMILES among a compound's identifiers (field 1: type 1, value 3)."""
    for number, part in compound:
        if number == 1:
            identifier = dict(fields(part))
            if identifier.get(1) == SMILES:
                return identifier.get(3, b"").decode()
    return ""


def reaction(data: bytes) -> dict[str, Any]:
    """One `Reaction` message as a row of the paper's table: roles joined by dots, the highest reported yield.

    Compounds without a role come back under NoData (version 1 guesses their role; version 2 drops them).
    """
    row: dict[str, Any] = {name: [] for name in ROLE.values()}
    yields = []
    for number, part in fields(data):
        if number == 10:
            row["id"] = part.decode()
        elif number == 2:  # map entry: key 1, ReactionInput 2
            for inner, entry in fields(part):
                if inner == 2:
                    for field, compound in fields(entry):
                        if field == 1:
                            known = list(fields(compound))
                            role = ROLE.get(dict(known).get(3, 0))
                            if role and (text := _smiles(known)):
                                row[role].append(text)
        elif number == 8:  # ReactionOutcome: products 3
            for inner, made in fields(part):
                if inner == 3:
                    known = list(fields(made))
                    if dict(known).get(7, 8) != 8:
                        continue  # recovered starting material
                    if text := _smiles(known):
                        row["PRODUCT"].append(text)
                    for field, measured in known:
                        if field == 3 and dict(fields(measured)).get(2) == YIELD:
                            percentage = dict(fields(dict(fields(measured)).get(8, b"")))
                            if 1 in percentage:
                                yields.append(percentage[1])
    return {
        name: ".".join(dict.fromkeys(part)) if isinstance(part, list) else part for name, part in row.items()
    } | {"YIELD": max(yields) if yields else None}


def messages(path: Path) -> list[bytes]:
    """The serialised `Reaction` messages of one ORD data set file. Raises ValueError for other files."""
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            return pq.read_table(path, columns=["reaction"])["reaction"].to_pylist()
        except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
            raise ValueError(
                f"{path.name} is not ORD's Parquet export: {str(error).splitlines()[0]}"
            ) from None
    content = path.read_bytes()
    if content.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path.name} is a Git LFS pointer, not the data; fetch it with `git lfs pull`")
    try:
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        return [part for number, part in fields(content) if number == 3]
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path.name} is not an ORD data set: {error}") from None


def read_ord(path: str | Path, task: str = "forward") -> tuple[list[Row], Report]:
    """The reactions of an ORD data set file (`.pb`, `.pb.gz`, `.parquet`), or of all in a folder, cleaned for `task`.

    Raises ValueError for a file that is no ORD data set, such as a Git LFS pointer, and for a folder without any.
    """
    path = Path(path)
    files = [path]
    if path.is_dir():
        files = sorted(f for kind in ("*.pb", "*.pb.gz", "*.parquet") for f in path.rglob(kind))
        if not files:
            raise ValueError(f"{path}: no .pb, .pb.gz or .parquet file in this folder")
    rows = []
    for file in files:
        found = messages(file)
        try:
            rows += [reaction(part) for part in found]
        except (ValueError, TypeError, UnicodeDecodeError) as error:
            raise ValueError(f"{file.name} is not an ORD data set: {error}") from None
    kept, report = cleaned(rows, task, share=False)
    if lost := sum(bool(r["NoData"]) for r in rows):
        report.note("compounds without a role left out", "the file's own gap", lost)
    return kept, report


def cleaned(rows: Sequence[Mapping[str, Any]], task: str, share: bool | None = None,
            first_row: int = 1) -> tuple[list[Row], Report]:  # fmt: skip
    """`chemistry.clean` with the paper's filters of `task`.

    For yields a row needs one, and one outside 0 to 100 costs the row. Products and reactants do not read yields: there
    such a yield is left out and the reaction kept, and reactions that differ in nothing but the yield are duplicates
    (the paper compares the five roles). All of it is counted.
    """
    if task == "yield":
        return clean(rows, need=("REACTANT", "PRODUCT", "YIELD"), share=share, first_row=first_row)
    amounts = [_number(r.get("YIELD")) for r in rows]
    if share is None:  # as `clean` decides
        share = max((a for a in amounts if a == a), default=2.0) <= 1.0000001
    outside = [k for k, a in enumerate(amounts) if a == a and not 0 <= a <= (1 if share else 100) + 1e-6]
    drop = set(outside)
    kept, report = clean([{**r, "YIELD": None} if k in drop else r for k, r in enumerate(rows)], share=share,
                         first_row=first_row)  # fmt: skip
    if outside:
        first = f"row {first_row + outside[0]}: {amounts[outside[0]]:g}; such reactions are kept without their yield"
        report.note("yield outside 0 to 100", first, len(outside))
    unique: dict[Row, Row] = {}
    for row in kept:
        unique.setdefault(replace(row, id="", yield_percent=0.0), row)
    if same := len(kept) - len(unique):
        report.note("duplicate but for the yield", "the first of them is kept", same)
    report.kept = len(unique)
    return list(unique.values()), report


def read_csv(path: str | Path, task: str = "forward") -> tuple[list[Row], Report]:
    """`data.read_ord_csv` for files of any origin: with or without a byte order mark, as spreadsheets write one.

    Raises ValueError for a file that is not UTF-8, or without the columns REACTANT and PRODUCT (and YIELD for yields).
    """
    path = Path(path)
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            rows, columns = list(table), table.fieldnames or []
    except UnicodeDecodeError:
        raise ValueError(f'{path.name} is not UTF-8 text; save it as "CSV UTF-8"') from None
    need = ["REACTANT", "PRODUCT", *(["YIELD"] if task == "yield" else [])]
    if missing := [name for name in need if name not in columns]:
        raise ValueError(
            f"{path.name}: column {missing[0]} is missing; the file has {', '.join(columns) or 'no columns'}"
        )
    merged = 0
    for row in rows:
        catalyst = set(components(row.get("CATALYST") or ""))
        if catalyst and catalyst <= set(components(row.get("REAGENT") or "")):
            row["CATALYST"], merged = "", merged + 1
    kept, report = cleaned(rows, task, first_row=2)
    if merged:
        report.note("catalyst already merged into REAGENT", "the file's own convention", merged)
    return kept, report


def read_any(path: str | Path, task: str = "forward") -> tuple[list[Row], Report]:
    """A table in the ORD schema (`.csv`) or the database's own files, by suffix."""
    return read_csv(path, task) if Path(path).suffix.lower() == ".csv" else read_ord(path, task)
