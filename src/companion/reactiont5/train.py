"""Training in the paper's stages: span corruption on molecules, then reactions, then a handful of a new type."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from companion import training
from companion.reactiont5 import world
from companion.reactiont5.model import PAD, T5, ReactionYield, T5Config, seq2seq_loss, yield_loss
from companion.reactiont5.tokens import (
    AtomTokenizer,
    PublishedTokenizer,
    Tokenizer,
    forward_text,
    span_corrupt,
    yield_text,
)

# Tokens of the small models: every symbol that the world's strings use, plus those that wrong answers may need.
SYMBOLS = ["#", "(", ")", "-", ".", "1", "2", "3", "4", "5", "=", "B", "Br", "C", "Cl", "F", "I", "N", "O", "S", "c", "n", "o", "s", "[AlH4-]", "[BH4-]", "[Cu+2]", "[Cu]", "[Fe]", "[H]", "[K+]", "[Li+]", "[N+]", "[N-]", "[Na+]", "[O-]", "[OH-]", "[Pd]", "[nH]", "[n+]", "P", "/", "\\", "[C@@H]", "[C@H]", "+", "6"]  # fmt: skip


def tokenizer() -> AtomTokenizer:
    """The small models' tokenizer."""
    return AtomTokenizer(SYMBOLS)


def small_config(width: int = 96, layers: int = 2) -> T5Config:
    """The reduced scale's network; the output matrix starts small, as a short training needs."""
    return T5Config(vocab=len(tokenizer()), d_model=width, d_ff=2 * width, d_kv=width // 4, heads=4,
                    encoder_layers=layers, decoder_layers=layers, dropout=0.0, head_std=width**-0.5)  # fmt: skip


@dataclass(frozen=True)
class Pairs:
    """Tokenised examples: `ids[k]` is the input and `targets[k]` the target of example k, both with </s>."""

    ids: list[list[int]]
    targets: list[list[int]]

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, index: torch.Tensor) -> dict[str, torch.Tensor]:
        """Padded `ids` [B, L] and `targets` [B, T] of the examples `index`."""
        rows = index.tolist()
        return {
            "ids": padded([self.ids[i] for i in rows]),
            "targets": padded([self.targets[i] for i in rows]),
        }


def padded(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """Rows of ids as one tensor [B, L], padded at the end."""
    out = torch.full((len(rows), max(map(len, rows))), PAD)
    for k, row in enumerate(rows):
        out[k, : len(row)] = torch.tensor(row)
    return out


def forward_pairs(reactions: Sequence[world.Reaction], tok: Tokenizer) -> Pairs:
    """Forward prediction: roles in, product out."""
    return Pairs([tok.encode(forward_text(r.reactant, r.reagent)) for r in reactions],
                 [tok.encode(r.product) for r in reactions])  # fmt: skip


def bucketed(
    lengths: Sequence[int], batch_size: int, seed: int, window: int = 16
) -> Callable[[int], torch.Tensor]:
    """Like `training.epochs`, but within `window` batches examples are sorted by length, so little is padded."""
    size = len(lengths)
    if not 1 <= batch_size <= size:
        raise ValueError(f"batch size {batch_size} does not fit {size} examples; choose 1 to {size}")
    per_epoch, length = size // batch_size, torch.tensor(lengths)

    @lru_cache(maxsize=2)
    def epoch(e: int) -> torch.Tensor:
        g = training.generator(seed, "bucketed", e)
        order = torch.randperm(size, generator=g)[: per_epoch * batch_size]
        pieces = [part[length[part].argsort(stable=True)] for part in order.split(window * batch_size)]
        batches = torch.cat(pieces).view(per_epoch, batch_size)
        return batches[torch.randperm(per_epoch, generator=g)]

    return lambda k: epoch(k // per_epoch)[k % per_epoch]


# --- stage 1: molecules ------------------------------------------------------------------------------


def molecules() -> list[str]:
    """All molecules that a compound-only model may see: building blocks and products of the seen types."""
    blocks = {b for group in world.building_blocks().values() for b in group}
    return sorted(blocks | {r.product for r in seen_reactions()[0]})


def masked(smiles: Sequence[str], tok: AtomTokenizer | PublishedTokenizer, seed: int, batch_size: int,
           tokens: int = 64) -> Callable[[int], dict[str, torch.Tensor]]:  # fmt: skip
    """`batches(k)` of span-corrupted text: shuffled molecules joined with </s> and cut to `tokens`, as in T5."""
    encoded = [tok.encode(s) for s in smiles]

    def batch(k: int) -> dict[str, torch.Tensor]:
        g = training.generator(seed, "masked", k)
        sources, targets = [], []
        for _ in range(batch_size):
            text: list[int] = []
            while len(text) < tokens:
                text += encoded[int(torch.randint(len(encoded), (1,), generator=g))]
            source, target = span_corrupt(text[:tokens], tok.first_sentinel, g)
            sources.append(source)
            targets.append(target)
        return {"ids": padded(sources), "targets": padded(targets)}

    return batch


# --- stage 2: reactions ------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def seen_reactions(most_per_type: int = 4000, held_back: int = 10) -> tuple[list, list]:
    """(training, validation) reactions of the seen types. A validation product occurs in no training reaction of its
    type; another type may make the same molecule from other reactants."""
    train, valid = [], []
    for kind in world.SEEN:
        every = world.reactions(kind, world.count(kind), seed=0)
        test = every[:held_back]
        valid += test
        products = {r.product for r in test}
        train += [r for r in every[held_back:] if r.product not in products][:most_per_type]
    return train, valid


def fit_forward(model: T5, pairs: Pairs, config: training.FitConfig, batch_size: int, seed: int, **options):
    """Train `model` in place on `pairs`; small sets are repeated so that a batch can be filled."""
    index = bucketed([len(i) + len(t) for i, t in zip(pairs.ids, pairs.targets, strict=True)],
                     min(batch_size, len(pairs)), seed)  # fmt: skip
    return training.fit(model, seq2seq_loss, lambda k: pairs.batch(index(k)), config, **options)


# --- yields -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Yields:
    """Tokenised reactions with their yields as shares."""

    ids: list[list[int]]
    yields: list[float]

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, index: torch.Tensor) -> dict[str, torch.Tensor]:
        """Padded `ids` [B, L] and `yields` [B] of the examples `index`."""
        rows = index.tolist()
        return {
            "ids": padded([self.ids[i] for i in rows]),
            "yields": torch.tensor([self.yields[i] for i in rows]),
        }


def yield_pairs(reactions: Sequence[world.Reaction], tok: Tokenizer) -> Yields:
    """Yield regression: all three roles in, the yield as a share out."""
    return Yields([tok.encode(yield_text(r.reactant, r.reagent, r.product)) for r in reactions],
                  [r.yield_percent / 100 for r in reactions])  # fmt: skip


def fit_yield(
    model: ReactionYield, data: Yields, config: training.FitConfig, batch_size: int, seed: int, **options
):
    """Train the regressor in place with mean squared error."""
    index = bucketed([len(i) for i in data.ids], min(batch_size, len(data)), seed)
    return training.fit(model, yield_loss, lambda k: data.batch(index(k)), config, **options)


@torch.no_grad()
def predicted_yields(model: ReactionYield, data: Yields, batch: int = 200) -> list[float]:
    """Predicted yields in percent, clipped to 0 to 100."""
    model.eval()
    device = model.fc5.weight.device
    out: list[float] = []
    for k in range(0, len(data), batch):
        out += model(padded(data.ids[k : k + batch]).to(device)).mul(100).clamp(0, 100).tolist()
    return out
