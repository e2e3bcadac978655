"""Text into ids: the published unigram tokenizer, an atom-level one for small models, spans and reaction strings."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import torch

from companion.reactiont5.model import EOS, PAD, UNK

ROLES = ("REACTANT:", "REAGENT:", "PRODUCT:")
# The 46 lines of the official `additional_tokens.txt`, in its order (a fact of the published vocabulary).
ADDED = [".", "6", "7", "8", "<", ">", "Ag", "Al", "Ar", "As", "Au", "Ba", "Bi", "Ca", "Cl", "Cu", "Fe", "Ge", "Hg", "K", "Li", "Mg", "Mn", "Mo", "Na", "Nd", "Ni", "P", "Pb", "Pd", "Pt", "Re", "Rh", "Ru", "Sb", "Si", "Sm", "Ta", "Ti", "Tl", "W", "Yb", "Zn", "Zr", "e", "p"]  # fmt: skip
SPECIAL = {  # special tokens per task, in the order of their ids
    "compound": (),
    "forward": ("REACTANT:", "REAGENT:"),
    "retrosynthesis": ("REACTANT:", "REAGENT:"),
    "yield": ("REACTANT:", "PRODUCT:", "REAGENT:"),
}
SENTINELS = 100


class Tokenizer:
    """What both tokenizers share: batches of text into padded ids. Subclasses have `tokens`, `encode` and `decode`."""

    tokens: list[str]

    def __len__(self) -> int:
        return len(self.tokens)

    def encode(self, text: str) -> list[int]:
        raise NotImplementedError

    def unpublished(self) -> dict[str, list]:
        """What a checkpoint must store to rebuild this tokenizer; nothing where it is the published one."""
        raise NotImplementedError

    def pieces(self, text: str) -> list[str]:
        """The tokens of `text` as a reader sees them, without </s>."""
        return [self.tokens[i] for i in self.encode(text)[:-1]]

    def batch(self, texts: Iterable[str], most: int = 0, pad_to: int = 0) -> torch.Tensor:
        """Ids [B, L], padded at the end; cut to `most` tokens with </s> kept (0: no limit), padded to `pad_to`."""
        rows = [self.encode(text) for text in texts]
        rows = [row if not most or len(row) <= most else [*row[: most - 1], EOS] for row in rows]
        out = torch.full((len(rows), max([pad_to, *map(len, rows)])), PAD)
        for k, row in enumerate(rows):
            out[k, : len(row)] = torch.tensor(row)
        return out

    def unknown(self, text: str) -> int:
        """How many tokens of `text` are not in the vocabulary (and vanish when ids become text again)."""
        return self.encode(text).count(UNK)


class PublishedTokenizer(Tokenizer):
    """The released tokenizer, rebuilt from its plain list of 121 unigram pieces and their log-probabilities.

    Sizes: 221 for CompoundT5, 268 for forward and retrosynthesis, 269 for yield. `encode` is faithful to its
    oddities: every added token starts a new segment that is prefixed with "▁" (hence the spaces that `decode`
    removes), and "0", "9", "%", "U", "Y", "d", "t" are unknown, so `[Cd]` comes back as `[C]`.

    Args:
        task: compound, forward, retrosynthesis or yield.
        pieces: another list of [piece, log-probability], for instance from `train_unigram`.
    """

    def __init__(self, task: str = "forward", pieces: Sequence[Sequence] | None = None) -> None:
        if task not in SPECIAL:
            raise ValueError(f"task is {task!r}; choose {', '.join(SPECIAL)}")
        self.task = task
        self._pieces = [list(p) for p in (pieces or published_pieces())]
        self._inner = _unigram(self._pieces)
        known = {p for p, _ in self._pieces}
        self._inner.add_special_tokens(["<pad>", "</s>", "<unk>", *sentinels(SENTINELS)])
        if task != "compound":
            self._inner.add_tokens([t for t in ADDED if t not in known or t == "Cl"])
            self._inner.add_special_tokens(list(SPECIAL[task]))
        self.tokens = [self._inner.id_to_token(k) for k in range(self._inner.get_vocab_size())]
        self.first_sentinel = self.tokens.index("<extra_id_0>")

    def encode(self, text: str) -> list[int]:
        return self._inner.encode(text).ids

    def for_task(self, task: str) -> PublishedTokenizer:
        """The same pieces with the added tokens and roles of `task`."""
        return PublishedTokenizer(task, self._pieces)

    def unpublished(self) -> dict[str, list]:
        return {} if self._pieces == published_pieces() else {"pieces": self._pieces}

    def decode(self, ids: Iterable[int]) -> str:
        """SMILES of `ids`: special and unknown tokens dropped, blanks removed, trailing dots removed."""
        text = self._inner.decode([int(i) for i in ids], skip_special_tokens=True)
        return text.replace(" ", "").rstrip(".")


@lru_cache(maxsize=1)
def published_pieces() -> list[list]:
    """[piece, log-probability] of the released CompoundT5 vocabulary (MIT licence), ids 0 to 120."""
    return json.loads((Path(__file__).parent / "vocabulary.json").read_text(encoding="utf-8"))["pieces"]


def sentinels(n: int) -> list[str]:
    return [f"<extra_id_{k}>" for k in range(n)]


def _unigram(pieces: Sequence[Sequence]):
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    inner = Tokenizer(models.Unigram([(p, float(s)) for p, s in pieces], unk_id=UNK))
    inner.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    inner.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Metaspace("▁", prepend_scheme="always"), pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Punctuation(),
    ])  # fmt: skip
    inner.decoder = decoders.Metaspace("▁", prepend_scheme="always")
    inner.post_processor = processors.TemplateProcessing("$A </s>", special_tokens=[("</s>", EOS)])
    return inner


def train_unigram(smiles: Sequence[str], size: int = 1000) -> list[list]:
    """Train the pieces as CompoundT5 does: at most `size` of them. Returns [piece, log-probability] pairs.

    The official script shows the trainer only the first 1,000 molecules of ZINC (it counts splits instead of
    rows), which is why the published vocabulary has 121 pieces and no ".", "P" or "6".
    """
    from tokenizers import trainers

    inner = _unigram([["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0]])
    trainer = trainers.UnigramTrainer(
        vocab_size=size, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    inner.train_from_iterator(smiles, trainer)
    return json.loads(inner.to_str())["model"]["vocab"]


class AtomTokenizer(Tokenizer):
    """One token per atom, bond or ring digit, bracket atoms whole: the small models' tokenizer.

    Ids: padding, </s>, unknown, 20 sentinels, the three roles, then `symbols`.
    """

    PATTERN = re.compile(r"REACTANT:|REAGENT:|PRODUCT:|<extra_id_\d+>|\[[^\]]+\]|Br|Cl|%\d\d|.")
    SENTINELS = 20

    def __init__(self, symbols: Sequence[str]) -> None:
        self.tokens = ["<pad>", "</s>", "<unk>", *sentinels(self.SENTINELS), *ROLES, *symbols]
        self._ids = {t: i for i, t in enumerate(self.tokens)}
        if len(self._ids) < len(self.tokens):
            raise ValueError("symbols must differ from each other and from the special tokens")
        self.first_sentinel = 3

    def encode(self, text: str) -> list[int]:
        return [self._ids.get(t, UNK) for t in self.PATTERN.findall(text) if t != " "] + [EOS]

    def unpublished(self) -> dict[str, list]:
        return {"symbols": self.tokens[3 + self.SENTINELS + len(ROLES) :]}

    def decode(self, ids: Iterable[int]) -> str:
        """SMILES of `ids`; special and unknown tokens are dropped."""
        first = 3 + self.SENTINELS + len(ROLES)
        return "".join(self.tokens[int(i)] for i in ids if int(i) >= first).rstrip(".")


# --- span corruption ---------------------------------------------------------------------------------


def corrupted_lengths(length: int, density: float = 0.15, mean_span: float = 3.0) -> tuple[int, int]:
    """(noise tokens, spans) for a sequence of `length` tokens, as in T5."""
    noise = min(max(round(length * density), 1), length - 1)
    return noise, min(max(round(noise / mean_span), 1), noise, length - noise)


def span_corrupt(ids: Sequence[int], sentinel: int, generator: torch.Generator, density: float = 0.15,
                 mean_span: float = 3.0) -> tuple[list[int], list[int]]:  # fmt: skip
    """T5's denoising task on one sequence without </s>: (input, target), both ending with </s>.

    Kept and masked spans alternate, beginning with a kept one; masked span k becomes sentinel k in the input and
    "sentinel k, its tokens" in the target. `sentinel` is the id of <extra_id_0>; ids of later sentinels follow.
    Raises ValueError for fewer than two tokens.
    """
    if len(ids) < 2:
        raise ValueError(f"span corruption needs at least 2 tokens, got {len(ids)}")
    noise, spans = corrupted_lengths(len(ids), density, mean_span)

    def parts(total: int) -> list[int]:
        """`total` cut into `spans` random positive lengths."""
        cuts = torch.randperm(total - 1, generator=generator)[: spans - 1].add(1).sort().values.tolist()
        return [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]

    source, target, at = [], [], 0
    for k, (keep, hide) in enumerate(zip(parts(len(ids) - noise), parts(noise), strict=True)):
        source += [*ids[at : at + keep], sentinel + k]
        target += [sentinel + k, *ids[at + keep : at + keep + hide]]
        at += keep + hide
    return [*source, EOS], [*target, EOS]


# --- reaction strings --------------------------------------------------------------------------------


def forward_text(reactant: str, reagent: str = "") -> str:
    """Input of the forward model; an empty reagent role is one blank."""
    return f"REACTANT:{reactant}REAGENT:{reagent or ' '}"


def yield_text(reactant: str, reagent: str, product: str) -> str:
    """Input of the yield model: the components of every role in alphabetical order."""
    ordered = [".".join(sorted(part.split("."))) or " " for part in (reactant, reagent, product)]
    return "REACTANT:{}REAGENT:{}PRODUCT:{}".format(*ordered)
