"""ORD's protobuf files, written here byte by byte from the schema's field numbers."""

import gzip
import struct

import pytest

from companion.reactiont5 import ord as room


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
