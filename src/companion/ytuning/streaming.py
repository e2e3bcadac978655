"""Feature sets that are too large for one cache entry: written in pieces, or not written at all.

MNLI's features in half precision take 31 GB at width 1024 and 46 GB at 1536. `extract_pieces` cuts the texts into
pieces that are cache entries of their own: several processes fill different pieces, a killed pass goes on at its
piece, and only one piece is tokenised at a time. `Streamed` stores nothing and runs the frozen model in every batch.
`source` chooses between the two by the space that may be used.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from companion.ytuning import features as store
from companion.ytuning.frozen import FrozenEncoder, Tokens, check_texts

PIECE = 20_000  # texts


@dataclass(frozen=True)
class Pieces:
    """Features that lie in several entries. Text k is row `where[k, 1]` of piece `where[k, 0]`; where: [n, 2]."""

    parts: tuple[store.Features, ...]
    where: torch.Tensor

    def __len__(self) -> int:
        return len(self.where)

    @property
    def width(self) -> int:
        return self.parts[0].width

    @property
    def bytes(self) -> int:
        """Size of all pieces on disk."""
        return sum(part.bytes for part in self.parts)

    @property
    def truncated(self) -> int:
        """How many distinct texts were cut."""
        return sum(part.truncated for part in self.parts)

    def lengths(self) -> torch.Tensor:
        """Tokens per text [n]."""
        first = torch.tensor([0, *(len(part) for part in self.parts)]).cumsum(0)
        return torch.cat([part.lengths() for part in self.parts])[first[self.where[:, 0]] + self.where[:, 1]]

    def one(self, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [M, P] and segments [M] of text k."""
        piece, row = self.where[k].tolist()
        return self.parts[piece].one(row)

    def batch(self, index: Sequence[int] | torch.Tensor, extra: int = 0) -> store.Batch:
        """The texts in `index`, padded to the longest (plus `extra`)."""
        return store.padded([self.one(int(k)) for k in index], extra)

    def select(self, index: Sequence[int]) -> Pieces:
        """A view of some texts, in that order."""
        return Pieces(self.parts, self.where[torch.as_tensor(index)])


def extract_pieces(encoder: FrozenEncoder, texts: Sequence[str], pairs: Sequence[str] | None = None, *,
                   apart: bool = False, piece: int = PIECE, number: str = "float16",
                   folder: Path | str | None = None, quiet: bool = False) -> Pieces:  # fmt: skip
    """`features.extract` for large sets: entries of at most `piece` distinct texts (or pairs) each.

    The space that all missing pieces need is estimated, and compared with the disk, before the first one is computed.

    Raises:
        OSError: where the disk has too little space for all pieces.
        NotADirectoryError: where `folder` is a file.
        ValueError: for an empty text, pairs that do not match, an unknown number format, or a piece below 1.
    """
    check_texts(texts, pairs)
    if apart and pairs is None:
        raise ValueError("apart=True encodes the two texts of a pair separately; pass pairs")
    if piece < 1:
        raise ValueError(f"piece is {piece}; it counts texts and starts at 1")
    given = list(zip(texts, pairs, strict=True)) if pairs is not None else list(texts)
    inputs = sorted(set(given))
    base = store.folder_of(folder)
    cuts = [_columns(inputs[at : at + piece], pairs is not None) for at in range(0, len(inputs), piece)]
    bar = tqdm(cuts, desc="size of the features", unit="piece", disable=quiet or len(cuts) < 2)
    missing = 0
    for first, second in bar:
        for a, b in [(first, None), (second, None)] if apart else [(first, second)]:
            if not store.entry_folder(encoder, a, b, number, base)[0].joinpath("complete").is_file():
                missing += store.estimate(encoder, a, b, number)
    store.check_space(missing, base, f"{len(inputs)} texts in {len(cuts)} pieces")

    def one(first: list[str], second: list[str] | None) -> store.Features:
        return store.extract(encoder, first, second, apart=apart, number=number, folder=base, quiet=quiet)

    # first round: pieces that no other process works on; second round: all, waiting for the others
    for first, second in cuts:
        entry, _ = store.entry_folder(encoder, first, second, number, base)
        with contextlib.suppress(Timeout), FileLock(f"{entry}.claim", timeout=0):
            one(first, second)
    parts = tuple(one(first, second) for first, second in cuts)
    place = {text: divmod(k, piece) for k, text in enumerate(inputs)}
    return Pieces(parts, torch.tensor([place[x] for x in given]))


def _columns(inputs: list, paired: bool) -> tuple[list[str], list[str] | None]:
    return ([a for a, _ in inputs], [b for _, b in inputs]) if paired else (inputs, None)


@dataclass(frozen=True)
class Streamed:
    """Features that are computed when a batch asks for them, every time, and never stored.

    `tokens` has one entry for texts (or pairs in one input), two for pairs that are encoded apart. Text k of the source
    is number `rows[k]` of them (all, in their order, by default).
    """

    encoder: FrozenEncoder
    tokens: tuple[Tokens, ...]
    rows: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens[0].ids if self.rows is None else self.rows)

    @property
    def width(self) -> int:
        return self.encoder.width

    @property
    def bytes(self) -> int:
        """Nothing is stored."""
        return 0

    @property
    def truncated(self) -> int:
        """How many texts were cut."""
        return sum(t.truncated for t in self.tokens)

    def lengths(self) -> torch.Tensor:
        """Tokens per text [n]."""
        every = torch.tensor([t.lengths() for t in self.tokens]).sum(0)
        return every if self.rows is None else every[self.rows]

    def select(self, index: Sequence[int]) -> Streamed:
        """A view of some texts, in that order."""
        index = torch.as_tensor(index)
        return Streamed(self.encoder, self.tokens, index if self.rows is None else self.rows[index])

    def batch(self, index: Sequence[int] | torch.Tensor) -> store.Batch:
        """The texts in `index`: one forward pass of the frozen model, without a graph."""
        index = [int(k if self.rows is None else self.rows[int(k)]) for k in index]
        sides = []
        for side, tokens in enumerate(self.tokens):
            H = self.encoder(*self.encoder.pad(tokens, index)).float().cpu()
            marks = [torch.tensor(tokens.segments[k], dtype=torch.uint8) for k in index]
            if len(self.tokens) > 1:
                marks = [torch.full_like(m, side) for m in marks]
            sides.append([(h[: len(m)], m) for h, m in zip(H, marks, strict=True)])
        return store.padded(
            [
                (torch.cat([h for h, _ in parts]), torch.cat([m for _, m in parts]))
                for parts in zip(*sides, strict=True)
            ]
        )


def stream(encoder: FrozenEncoder, texts: Sequence[str], pairs: Sequence[str] | None = None, *, apart: bool = False,
           quiet: bool = False) -> Streamed:  # fmt: skip
    """The texts as a `Streamed` source; says how many were cut. Raises ValueError for an empty text or pairs that do
    not match."""
    check_texts(texts, pairs)
    if apart and pairs is None:
        raise ValueError("apart=True encodes the two texts of a pair separately; pass pairs")
    sides = (encoder.tokenize(texts), encoder.tokenize(pairs)) if apart else (encoder.tokenize(texts, pairs),)
    found = Streamed(encoder, sides)
    if found.truncated and not quiet:
        warnings.warn(f"{found.truncated} of {len(sides) * len(texts)} texts were longer than {encoder.max_length} tokens and "
                      "were cut", stacklevel=2)  # fmt: skip
    return found


def source(encoder: FrozenEncoder, texts: Sequence[str], pairs: Sequence[str] | None = None, *, apart: bool = False,
           most_bytes: float = 50e9, number: str = "float16", folder: Path | str | None = None,
           piece: int = PIECE, quiet: bool = False) -> Pieces | Streamed:  # fmt: skip
    """Cached pieces where their features take at most `most_bytes`, else `Streamed`; says which, and why.

    Raises ValueError and OSError like `extract_pieces`.
    """
    check_texts(texts, pairs)
    if apart and pairs is None:
        raise ValueError("apart=True encodes the two texts of a pair separately; pass pairs")
    if apart:
        size = sum(store.estimate(encoder, side, number=number) for side in (texts, pairs))
    else:
        size = store.estimate(encoder, texts, pairs, number)
    if size > most_bytes:
        if not quiet:
            tqdm.write(f"the features of {len(texts)} texts would take {store.readable(size)}, more than "
                       f"{store.readable(most_bytes)}: the frozen model runs in every batch instead")  # fmt: skip
        return stream(encoder, texts, pairs, apart=apart, quiet=quiet)
    return extract_pieces(
        encoder, texts, pairs, apart=apart, piece=piece, number=number, folder=folder, quiet=quiet
    )
