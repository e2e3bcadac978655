"""MongoDB dumps without MongoDB: the archives and .bson files in which NYTimes800k is handed on.

An archive (`mongodump --archive`, mostly with `--gzip`) is: a magic number; BSON documents with metadata, ended by
-1; then blocks, each a BSON header {db, collection, EOF, CRC}, documents of that collection, and -1 again. Several
collections may take turns. A `.bson` file is documents one after the other. Formats: bsonspec.org, version 1.1, and
the archive README of mongodb/mongo-tools. Documents are read one by one, so a dump of 40 GB needs no memory.
"""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

MAGIC = b"\x6d\xe2\x99\x81"  # 0x8199e26d, little-endian
END = b"\xff\xff\xff\xff"


class DumpError(ValueError):
    """A file that is no MongoDB dump, or ends in the middle of a document."""


def is_dump(path: str | Path) -> bool:
    """Whether `path` has the name of a dump: .bson, .archive or .gz (also .bson.gz, .archive.gz)."""
    return Path(path).suffix in (".bson", ".archive", ".gz")


def read_dump(path: str | Path, collection: str = "articles") -> Iterator[dict[str, Any]]:
    """Documents of `collection` of an archive, or all documents of a `.bson` file; gzip is recognised.

    Ids become text, dates "2019-05-03T00:00:00" (UTC); binary data stay bytes.

    Raises:
        DumpError: for another kind of file, or one that is cut off.
    """
    path = Path(path)
    with path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            head = file.read(4)
            if head == MAGIC:
                yield from _archive(file, collection, path)
                return
            while head:
                yield _document(file, head, path)
                head = file.read(4)
    except EOFError:
        raise DumpError(f"{path} ends in the middle of its gzip stream; fetch it again") from None


def _archive(file: BinaryIO, collection: str, path: Path) -> Iterator[dict[str, Any]]:
    while (head := file.read(4)) != END:  # header and metadata of all collections
        _document(file, head, path)
    while head := file.read(4):
        wanted = _document(file, head, path).get("collection") == collection
        while (head := file.read(4)) != END:
            size = _size(head, path)
            body = _exactly(file, size - 4, path)
            if wanted:
                yield _parse(body, path)


def _size(head: bytes, path: Path) -> int:
    size = struct.unpack("<i", head)[0] if len(head) == 4 else 0
    if not 5 <= size <= 64 * 2**20:  # MongoDB's documents have at most 16 MiB
        raise DumpError(f"{path} is not a MongoDB dump (a document of {size} bytes); give an archive of mongodump or "
                        "a .bson file")  # fmt: skip
    return size


def _exactly(file: BinaryIO, size: int, path: Path) -> bytes:
    body = file.read(size)
    if len(body) < size:
        raise DumpError(f"{path} ends in the middle of a document; fetch it again")
    return body


def _document(file: BinaryIO, head: bytes, path: Path) -> dict[str, Any]:
    return _parse(_exactly(file, _size(head, path) - 4, path), path)


def _parse(body: bytes, path: Path) -> dict[str, Any]:
    try:
        return _fields(body, 0)[0]
    except (struct.error, IndexError, ValueError) as error:
        raise DumpError(f"{path} holds a document that cannot be read ({error})") from None


def _fields(data: bytes, at: int) -> tuple[dict[str, Any], int]:
    """The elements from `at` up to their closing zero byte, and where the next thing starts."""
    found: dict[str, Any] = {}
    while data[at]:
        kind, stop = data[at], data.index(0, at + 1)
        name = data[at + 1 : stop].decode()
        found[name], at = _value(kind, data, stop + 1)
    return found, at + 1


def _value(kind: int, data: bytes, at: int) -> tuple[Any, int]:
    if kind in (0x01, 0x10, 0x12, 0x11):  # double, int32, int64, timestamp
        form = {0x01: "<d", 0x10: "<i", 0x12: "<q", 0x11: "<Q"}[kind]
        return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)
    if kind in (0x02, 0x0D, 0x0E):  # text, code, symbol
        size = struct.unpack_from("<i", data, at)[0]
        return data[at + 4 : at + 3 + size].decode("utf-8", "replace"), at + 4 + size
    if kind in (0x03, 0x04):  # document, array (its keys are "0", "1", ...)
        inner, end = _fields(data, at + 4)
        return (list(inner.values()) if kind == 0x04 else inner), end
    if kind == 0x05:  # binary: size, subtype, bytes
        size = struct.unpack_from("<i", data, at)[0]
        return data[at + 5 : at + 5 + size], at + 5 + size
    if kind == 0x07:  # ObjectId
        return data[at : at + 12].hex(), at + 12
    if kind == 0x08:
        return bool(data[at]), at + 1
    if kind == 0x09:  # milliseconds since 1970
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(
            milliseconds=struct.unpack_from("<q", data, at)[0]
        )
        return moment.strftime("%Y-%m-%dT%H:%M:%S"), at + 8
    if kind in (0x06, 0x0A, 0x7F, 0xFF):  # undefined, null, keys above and below all others
        return None, at
    if kind == 0x0B:  # regular expression: pattern and options, both ended by zero
        middle = data.index(0, at)
        return data[at:middle].decode(), data.index(0, middle + 1) + 1
    if kind == 0x13:  # decimal128: kept as bytes
        return data[at : at + 16], at + 16
    raise ValueError(f"BSON type {kind:#04x} is not known")
