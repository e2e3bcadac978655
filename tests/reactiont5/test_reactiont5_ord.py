"""ORD's files: written here byte by byte from the schema's field numbers, and by the library ord-schema."""

import gzip
import struct
from pathlib import Path

import pytest

from companion.reactiont5 import ord as room

DATA = Path(__file__).parent / "data"  # tiny_ord.*: four reactions, written by ord-schema 0.9.6


def varint(n):
    out = b""
    while n > 0x7F:
        out, n = out + bytes([n & 0x7F | 0x80]), n >> 7
    return out + bytes([n])


def message(*parts):
    """(number, value): bytes and text get a length, floats four bytes, numbers a varint."""
    out = b""
    for number, value in parts:
        if isinstance(value, float):
            out += varint(number << 3 | 5) + struct.pack("<f", value)
        elif isinstance(value, int):
            out += varint(number << 3) + varint(value)
        else:
            value = value.encode() if isinstance(value, str) else value
            out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def compound(smiles, role, field=3):
    name = message((1, 6), (3, "some name"))
    return message((1, name), (1, message((1, 2), (3, smiles))), (2, b"\x08\x01"), (field, role))


def one_reaction(amount=87.5):
    inputs = [(2, message((1, f"in {k}"), (2, message((1, compound(s, r)))))) for k, (s, r) in
              enumerate([("CCBr", 1), ("N", 1), ("O=C([O-])[O-].[K+].[K+]", 2), ("CO", 3), ("[Pd]", 4), ("C1CC1", 0)])]  # fmt: skip
    measured = message((1, "lc"), (2, 3), (8, message((1, amount), (2, 1.0))))
    product = message((1, message((1, 2), (3, "CCN"))), (2, 1), (3, message((2, 2))), (3, measured), (7, 8))
    recovered = message((1, message((1, 2), (3, "CCBr"))), (7, 1))
    return message(*inputs, (8, message((3, recovered), (3, product))), (10, "ord-1"))


def test_roles_yield_and_id(tmp_path):
    path = tmp_path / "set.pb.gz"
    path.write_bytes(
        gzip.compress(message((1, "a name"), (3, one_reaction()), (3, one_reaction(150.0)), (5, "set")))
    )
    (row,), report = room.read_ord(path, task="yield")
    assert (row.reactant, row.product, row.catalyst, row.solvent) == ("CCBr.N", "CCN", "[Pd]", "CO")
    assert row.reagent == "O=C([O-])[O-].[K+].[K+]"
    assert row.yield_percent == 87.5
    assert row.id == "ord-1"
    assert report.counts["yield outside 0 to 100"] == 1
    assert report.counts["compounds without a role left out"] == 2


def test_numbers_over_seven_bits():
    assert list(room.fields(message((300, 70_000), (1, "x" * 200)))) == [(300, 70_000), (1, b"x" * 200)]


@pytest.mark.parametrize(("content", "said"), [
    (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    (b"\xff\xff\xff", "not an ORD data set"),
    (b"\x1f\x8bnothing", "not an ORD data set"),
])  # fmt: skip
def test_other_files_are_refused(tmp_path, content, said):
    path = tmp_path / "set.pb.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        room.read_ord(path)


@pytest.mark.parametrize("name", ["tiny_ord.pb.gz", "tiny_ord.parquet"])
def test_files_written_by_ord_schema(name):
    kept, report = room.read_ord(DATA / name)
    first = kept[0]
    assert (first.reactant, first.product) == ("CCBr.N", "CCN")  # a by-product is not a product
    assert (first.reagent, first.catalyst, first.solvent) == ("O=C([O-])[O-].[K+].[K+]", "[Pd]", "CO")
    assert [r.yield_percent for r in kept[:1]] == [87.5]
    assert kept[-1].reactant == "CC(=O)Cl.CN"  # neither the work-up nor the internal standard
    assert report.read == 4
    assert report.counts["yield outside 0 to 100"] == 1
    assert report.counts["compounds without a role left out"] == 1
    assert [r.yield_percent for r in room.read_ord(DATA / name, task="yield")[0]] == [87.5, 0.0]


def test_a_folder_is_read_whole_and_a_csv_by_its_suffix(tmp_path):
    kept, report = room.read_ord(DATA)
    assert report.read == 8
    assert report.counts["exact duplicate"] == len(kept) == 4
    (tmp_path / "x.csv").write_text("REACTANT,PRODUCT\nCBr.N,CN\n")
    assert room.read_any(tmp_path / "x.csv")[0][0].product == "CN"
    with pytest.raises(ValueError, match=r"no \.pb"):
        room.read_ord(tmp_path)


def test_a_spreadsheet_with_a_byte_order_mark_is_read_and_another_encoding_named(tmp_path):
    text = "REACTANT,REAGENT,PRODUCT\r\nCBr.N,,CN\r\n"
    path = tmp_path / "with spaces.CSV"
    path.write_bytes(text.encode("utf-8-sig"))
    assert [r.reactant for r in room.read_any(path)[0]] == ["CBr.N"]
    path.write_bytes(text.replace("CN\r", "\xe9\r").encode("latin-1"))
    with pytest.raises(ValueError, match=r"with spaces\.CSV is not UTF-8"):
        room.read_any(path)


@pytest.mark.parametrize(("text", "task", "said"), [
    ("REACTANT;PRODUCT\nCBr.N;CN\n", "forward", "column REACTANT is missing; the file has REACTANT;PRODUCT"),
    ("REACTANT,PRODUCT\nCBr.N,CN\n", "yield", "column YIELD is missing"),
    ("", "forward", "no columns"),
])  # fmt: skip
def test_a_table_without_the_columns_is_refused(tmp_path, text, task, said):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(ValueError, match=said):
        room.read_any(tmp_path / "x.csv", task)


def test_products_are_learned_whatever_the_yield_and_once(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("REACTANT,PRODUCT,YIELD\nCBr.N,CN,150\nCCBr.N,CCN,50\nCCBr.N,CCN,60\nCCCBr.N,CCCN,-3\n")
    kept, report = room.read_any(path, "forward")
    assert [r.product for r in kept] == ["CN", "CCN", "CCCN"]
    assert [r.yield_percent for r in kept if r.yield_percent == r.yield_percent] == [50]
    assert report.counts == {"yield outside 0 to 100": 2, "duplicate but for the yield": 1}
    assert (report.read, report.kept) == (4, 3)
    kept, report = room.read_any(path, "yield")  # repeated measurements are two examples
    assert [r.yield_percent for r in kept] == [50, 60]
    assert report.counts == {"yield outside 0 to 100": 2}


def test_another_parquet_file_is_refused(tmp_path):
    import pandas as pd

    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="not ORD's Parquet export"):
        room.read_ord(tmp_path / "x.parquet")


def test_the_reader_agrees_with_ord_schema():
    helpers = pytest.importorskip("ord_schema.message_helpers")
    from ord_schema.proto import dataset_pb2, reaction_pb2

    name = {v: k for k, v in reaction_pb2.ReactionRole.ReactionRoleType.items()}
    theirs = helpers.load_message(str(DATA / "tiny_ord.pb.gz"), dataset_pb2.Dataset)
    for message_, raw in zip(theirs.reactions, room.messages(DATA / "tiny_ord.pb.gz"), strict=True):
        row, want = room.reaction(raw), {}
        for part in message_.inputs.values():
            for c in part.components:
                want.setdefault(name[c.reaction_role], set()).add(helpers.smiles_from_compound(c))
        for role in ("REACTANT", "REAGENT", "SOLVENT", "CATALYST"):
            have = {s for s in row[role].split(".") if s}
            assert have == {s for text in want.get(role, ()) for s in text.split(".")}
        assert row["PRODUCT"] == helpers.smiles_from_compound(message_.outcomes[0].products[0])
        assert row["id"] == message_.reaction_id
