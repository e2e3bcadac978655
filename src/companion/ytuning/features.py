"""The feature cache: a set of texts goes through the frozen model once.

An entry is a folder with the features of a set of texts, token after token without padding, memory-mapped. Its
name is a hash of the model's files, the tokenisation, the kept layers, the number format and the texts; labels
play no part, so tasks and label sets share entries. One process writes, others wait; a killed writer's work is
taken up where it stopped.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from filelock import FileLock
from tqdm import tqdm

from companion import datasets, records
from companion.training import generator
from companion.ytuning.frozen import FrozenEncoder, check_texts

SAVE_EVERY = 2000  # texts between marks from which a killed pass goes on
FORMATS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Batch(NamedTuple):
    """Padded features of some texts: H [B, M, P], pad [B, M] (true on padding), segments [B, M]."""

    H: torch.Tensor
    pad: torch.Tensor
    segments: torch.Tensor


def padded(parts: Sequence[tuple[torch.Tensor, torch.Tensor]], extra: int = 0) -> Batch:
    """One batch of features [M_k, P] and segments [M_k] of several texts, padded to the longest (plus `extra`)."""
    most = max(len(H) for H, _ in parts) + extra
    H = torch.zeros(len(parts), most, parts[0][0].size(1))
    pad = torch.ones(len(parts), most, dtype=torch.bool)
    segments = torch.zeros(len(parts), most, dtype=torch.uint8)
    for b, (h, s) in enumerate(parts):
        H[b, : len(h)], pad[b, : len(h)], segments[b, : len(h)] = h, False, s
    return Batch(H, pad, segments)


@dataclass(frozen=True)
class Features:
    """Ragged features. Text k owns tokens starts[rows[k]] to starts[rows[k] + 1] of `values` [tokens, P]."""

    values: torch.Tensor
    starts: torch.Tensor
    segments: torch.Tensor
    rows: torch.Tensor
    truncated: int = 0
    folder: Path | None = None
    second: Features | None = None  # the second texts' features, when pairs are encoded apart

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        return self.values.size(1)

    @property
    def bytes(self) -> int:
        """Size of the values, on disk and once read."""
        return self.values.numel() * self.values.element_size() + (self.second.bytes if self.second else 0)

    def lengths(self) -> torch.Tensor:
        """Tokens per text [n]."""
        own = self.starts[self.rows + 1] - self.starts[self.rows]
        return own + self.second.lengths() if self.second else own

    def one(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [M, P] and segments [M] of text k."""
        row = int(self.rows[k])
        part = slice(int(self.starts[row]), int(self.starts[row + 1]))
        H, segments = self.values[part].float(), self.segments[part]
        if self.second:
            H2, _ = self.second.one(k)
            return torch.cat([H, H2]), torch.cat([torch.zeros(len(H)), torch.ones(len(H2))]).to(torch.uint8)
        return H, segments

    def batch(self, index: Sequence[int] | torch.Tensor, extra: int = 0) -> Batch:
        """The texts in `index`, padded to the longest (plus `extra`)."""
        return padded([self.one(int(k)) for k in index], extra)

    def select(self, index: Sequence[int]) -> Features:
        """A view of some texts, in that order."""
        rows = self.rows[torch.as_tensor(index)]
        second = self.second.select(index) if self.second else None
        return Features(self.values, self.starts, self.segments, rows, self.truncated, self.folder, second)


def estimate(encoder: FrozenEncoder, texts: Sequence[str], pairs: Sequence[str] | None = None,
             number: str = "float16") -> int:  # fmt: skip
    """Bytes that the features of these texts will take: distinct texts' tokens x P x bytes per number."""
    inputs = sorted(set(zip(texts, pairs, strict=True)) if pairs is not None else set(texts))
    tokens = encoder.tokenize(*_split(inputs, pairs is not None))
    return sum(tokens.lengths()) * encoder.width * FORMATS[_known(number)].itemsize


def check_space(size: int, folder: Path, what: str) -> None:
    """Raises OSError where `folder`'s disk has too little room for `size` more bytes (5 % of it stay free)."""
    free = shutil.disk_usage(folder).free
    if size > 0.95 * free:
        raise OSError(f"the features of {what} take {readable(size)} but {folder} has {readable(free)} free; free some "
                      "space, choose another folder, fewer texts, or stream them")  # fmt: skip


def folder_of(folder: Path | str | None) -> Path:
    """The cache's folder (default: `default_folder()`), made where it is missing.

    Raises NotADirectoryError where it, or a folder above it, is a file.
    """
    base = Path(folder) if folder else default_folder()
    try:
        base.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(
            f"{base} is no folder for the features: a file is in its place; give a folder"
        ) from None
    return base


def _known(number: str) -> str:
    if number not in FORMATS:
        raise ValueError(f"number format is {number!r}; choose {', '.join(FORMATS)}")
    return number


def _split(inputs: list, paired: bool) -> tuple[list[str], list[str] | None]:
    return ([a for a, _ in inputs], [b for _, b in inputs]) if paired else (inputs, None)


def check_tokenizer(encoder: FrozenEncoder) -> None:
    """Raises ValueError for a folder with a model and no tokenizer: transformers would read every word as unknown."""
    if encoder._given:
        return
    names = [path.name for path in encoder.folder.iterdir()]
    known = {"tokenizer.json", "vocab.txt", "vocab.json"} & set(names)
    if not known and not any(name.endswith(".model") for name in names):
        raise ValueError(f"{encoder.name} holds a model but no tokenizer (tokenizer.json, vocab.txt, vocab.json or a .model "
                         "file); save its tokenizer into the same folder")  # fmt: skip


def default_folder() -> Path:
    """Where entries live: `features` in the companion's cache (`$COMPANION_CACHE`, else the system's)."""
    return datasets.cache() / "ytuning-features"


def entry_folder(encoder: FrozenEncoder, texts: Sequence[str], pairs: Sequence[str] | None, number: str,
                 base: Path) -> tuple[Path, list]:  # fmt: skip
    """Where the features of these texts lie below `base`, and the distinct texts (or pairs) in stored order."""
    inputs = sorted(set(zip(texts, pairs, strict=True)) if pairs is not None else set(texts))
    return (
        base / f"features-{records.fingerprint(encoder.key, _known(number), pairs is not None, inputs)}",
        inputs,
    )


def extract(encoder: FrozenEncoder, texts: Sequence[str], pairs: Sequence[str] | None = None, *, apart: bool = False,
            number: str = "float16", folder: Path | str | None = None, batch_tokens: int = 4096,
            quiet: bool = False) -> Features:  # fmt: skip
    """Features of the texts, from the cache or computed once.

    Args:
        encoder: the frozen model.
        texts, pairs: single texts, or pairs of texts.
        apart: encode the two texts of a pair separately, for models that never saw pairs in one input.
        number: storage format: float16, bfloat16 or float32.
        folder: the cache (default: `default_folder()`).
        batch_tokens: padded tokens per forward pass; texts are sorted by length.

    Raises:
        OSError: where the disk has too little space, before anything is computed.
        NotADirectoryError: where `folder` is a file.
        ValueError: for an empty text or an unknown number format.
    """
    check_texts(texts, pairs)
    if apart:
        if pairs is None:
            raise ValueError("apart=True encodes the two texts of a pair separately; pass pairs")
        keep = {"number": number, "folder": folder, "batch_tokens": batch_tokens, "quiet": quiet}
        first, second = extract(encoder, texts, **keep), extract(encoder, pairs, **keep)
        return Features(first.values, first.starts, first.segments, first.rows,
                        first.truncated + second.truncated, first.folder, second)  # fmt: skip
    check_tokenizer(encoder)
    given = list(zip(texts, pairs, strict=True)) if pairs is not None else list(texts)
    base = folder_of(folder)
    entry, inputs = entry_folder(encoder, texts, pairs, number, base)
    with FileLock(f"{entry}.lock"):
        if not _whole(entry):
            _compute(entry, encoder, *_split(inputs, pairs is not None), number, batch_tokens, quiet)
    where = {text: k for k, text in enumerate(inputs)}
    found = open_entry(entry, encoder)
    rows = torch.tensor([where[x] for x in given])
    if found.truncated and not quiet:
        warnings.warn(f"{found.truncated} of {len(inputs)} texts were longer than {encoder.max_length} tokens and "
                      "were cut", stacklevel=2)  # fmt: skip
    return Features(found.values, found.starts, found.segments, rows, found.truncated, entry)


def _whole(entry: Path) -> bool:
    """Whether an entry is finished and has all of its files whole: lost or cut values would be read as zeros."""
    if not (entry / "complete").is_file():
        return False
    try:
        meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
        size = meta["tokens"] * meta["width"] * FORMATS[meta["number"]].itemsize
        starts, segments = (np.load(entry / f"{name}.npy", mmap_mode="r") for name in ("starts", "segments"))
        found = (entry / "values.bin").stat().st_size, starts[-1], len(segments)
    except (OSError, ValueError, LookupError, EOFError):
        return False
    return found == (size, meta["tokens"], meta["tokens"])


def _compute(entry: Path, encoder: FrozenEncoder, texts: list[str], pairs: list[str] | None, number: str,
             batch_tokens: int, quiet: bool) -> None:  # fmt: skip
    tokens = encoder.tokenize(texts, pairs)
    lengths = np.array(tokens.lengths())
    starts = np.concatenate([[0], lengths.cumsum()])
    kind = FORMATS[number]
    size = int(starts[-1]) * encoder.width * kind.itemsize
    entry.mkdir(exist_ok=True)
    values = entry / "values.bin"
    have = values.stat().st_size if values.is_file() else 0
    check_space(size - have, entry.parent, f"{len(texts)} texts")
    if not quiet:
        tqdm.write(
            f"features of {len(texts)} texts ({starts[-1]} tokens) with {encoder.name}: {readable(size)}"
        )
    meta = {"model": encoder.name, "fingerprint": encoder.fingerprint, "key": list(encoder.key), "number": number,
            "width": encoder.width, "texts": len(texts), "tokens": int(starts[-1]), "truncated": tokens.truncated}  # fmt: skip
    _atomic(entry / "starts.npy", starts.astype(np.int64))
    _atomic(entry / "segments.npy", np.concatenate([np.array(s, np.uint8) for s in tokens.segments]))
    records.write_json(entry / "meta.json", meta)
    if have != size:
        for mark in ("done.json", "complete"):
            (entry / mark).unlink(missing_ok=True)
        _reserve(values, size)
    out = _map(values, size, encoder.width, kind)
    # longest first: memory trouble shows at once, and a batch pads little
    order = np.argsort(-lengths, kind="stable")
    done_file = entry / "done.json"
    done = json.loads(done_file.read_text()) if done_file.is_file() else 0
    bar = tqdm(total=len(texts), initial=done, unit="text", desc=f"features {encoder.name}", disable=quiet,
               mininterval=1.0)  # fmt: skip
    since = 0
    while done < len(texts):
        longest = int(lengths[order[done]])
        part = order[done : done + max(1, batch_tokens // longest)]
        H = encoder(*encoder.pad(tokens, part)).to(kind).cpu()
        for h, k in zip(H, part, strict=True):
            own = out[starts[k] : starts[k + 1]] = h[: lengths[k]]
            if not own.isfinite().all():
                raise ValueError(f"the features of text {texts[k][:40]!r} do not fit into {number} (or are no numbers); "
                                 "store them as bfloat16 or float32")  # fmt: skip
        done += len(part)
        since += len(part)
        bar.update(len(part))
        if since >= SAVE_EVERY or done >= len(texts):
            _flush(values)
            records.write_json(done_file, int(done))
            since = 0
    bar.close()
    (entry / "complete").touch()


def _map(path: Path, size: int, width: int, kind: torch.dtype) -> torch.Tensor:
    return torch.from_file(str(path), shared=True, size=size // kind.itemsize, dtype=kind).view(-1, width)


def _reserve(path: Path, size: int) -> None:
    """A file of `size` bytes whose space is taken now: writing to a mapped file on a full disk kills the process.

    Raises OSError where the disk fills up meanwhile; nothing is left behind.
    """
    with path.open("wb") as file:
        if not hasattr(os, "posix_fallocate"):  # macOS, Windows
            file.truncate(size)
            return
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            path.unlink()
            raise OSError(f"{readable(size)} of features do not fit into {path.parent.parent} ({error.strerror}); free some "
                          "space, choose another folder, fewer texts, or stream them") from None  # fmt: skip


def _flush(path: Path) -> None:
    """Bring mapped pages to the disk before the progress mark says so."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _atomic(path: Path, array: np.ndarray) -> None:
    part = path.with_name(f".{path.name}")
    with part.open("wb") as file:
        np.save(file, array)
    part.replace(path)


def readable(count: float) -> str:
    """A number of bytes with its unit, three digits."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def open_entry(entry: Path | str, encoder: FrozenEncoder | None = None) -> Features:
    """A finished entry of the cache, all its texts in stored order.

    Raises ValueError when it is unfinished, or was made by another model than `encoder`.
    """
    entry = Path(entry)
    if not _whole(entry):
        raise ValueError(f"{entry.name} is not a finished feature cache; run extract on the same texts again")
    meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
    if encoder is not None and json.loads(json.dumps(list(encoder.key))) != meta["key"]:
        raise ValueError(f"{entry.name} holds features of {meta['model']} ({meta['fingerprint']}), not of "
                         f"{encoder.name} ({encoder.fingerprint}) with the same settings; extract them again")  # fmt: skip
    kind = FORMATS[meta["number"]]
    values = _map(entry / "values.bin", meta["tokens"] * meta["width"] * kind.itemsize, meta["width"], kind)
    starts = torch.from_numpy(np.load(entry / "starts.npy"))
    segments = torch.from_numpy(np.load(entry / "segments.npy"))
    return Features(values, starts, segments, torch.arange(len(starts) - 1), meta["truncated"], entry)


@dataclass(frozen=True)
class Noisy:
    """Features with Gaussian noise of `sigma` times their root mean square on every number.

    The noise of a text depends on `seed` and the text's number only, so methods are compared under equal noise.
    """

    clean: Features
    sigma: float
    seed: int

    def __len__(self) -> int:
        return len(self.clean)

    def lengths(self) -> torch.Tensor:
        return self.clean.lengths()

    @cached_property
    def scale(self) -> float:
        """Root mean square of the clean features."""
        return self.clean.values.float().pow(2).mean().sqrt().item()

    def batch(self, index: Sequence[int] | torch.Tensor) -> Batch:
        H, pad, segments = self.clean.batch(index)
        for row, k in enumerate(index):
            own = int((~pad[row]).sum())
            noise = torch.randn(own, H.size(-1), generator=generator("feature noise", self.seed, int(k)))
            H[row, :own] += self.sigma * self.scale * noise
        return Batch(H, pad, segments)
