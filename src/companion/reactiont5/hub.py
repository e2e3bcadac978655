"""Released checkpoints: the authors' `sagawa/ReactionT5v2-*` by name or folder, and back to transformers.

Layouts read: a folder with `config.json` (or the authors' pickled `config.pth`) and `model.safetensors`,
`pytorch_model.bin` or `CompoundT5_best.pth`. Folders written here hold more: the task and a yield model's switches (in
`config.json`) and, where it is not the published one, the vocabulary (`vocabulary.json`). Weights go into `companion.reactiont5.model` classes, whose
parameter names are those of the files, so nothing is converted and nothing can be tied by accident.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from companion import training
from companion.datasets import DataMissing
from companion.reactiont5.model import T5, ReactionYield, T5Config
from companion.reactiont5.tokens import AtomTokenizer, PublishedTokenizer, Tokenizer

# Which released model is which row of the tables (the question of the official repository's issue 4).
CHECKPOINTS = {
    "sagawa/CompoundT5": "compound",
    "sagawa/ReactionT5v2-forward": "forward",
    "sagawa/ReactionT5v2-forward-USPTO_MIT": "forward",
    "sagawa/ReactionT5v2-retrosynthesis": "retrosynthesis",
    "sagawa/ReactionT5v2-retrosynthesis-USPTO_50k": "retrosynthesis",
    "sagawa/ReactionT5v2-yield": "yield",
}
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin", "CompoundT5_best.pth")
# Aliases of `shared.weight` that some files store a second and third time, and v1's unused head of the yield model.
ALIASES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


@dataclass
class ReactionT5:
    """A model with its tokenizer: what `predict` takes."""

    model: nn.Module
    tokenizer: Tokenizer
    task: str

    @classmethod
    def from_pretrained(cls, name: str | Path, task: str = "") -> ReactionT5:
        """A released checkpoint by hub name (`sagawa/ReactionT5v2-forward`) or folder.

        Args:
            name: folder, or a name of the hub; see `CHECKPOINTS`.
            task: forward, retrosynthesis, yield or compound; needed for a folder of others whose vocabulary fits
                several.

        Raises:
            DataMissing: where the files are neither here nor reachable.
            ValueError: where they are not in a known layout, or do not fit each other.
        """
        folder = locate(name)
        own = read_own(folder)
        task = task or CHECKPOINTS.get(str(name), "") or own.get("reaction_task", "")
        state, sizes = read_state(folder), read_config(folder)
        is_yield = any(key.startswith("fc1.") for key in state)
        if not task:
            vocab = next(v for k, v in state.items() if k.endswith("shared.weight")).shape[0]
            task = "yield" if is_yield else {221: "compound"}.get(vocab, "")
            if not task:
                raise ValueError(
                    f"{folder.name}: a vocabulary of {vocab} fits forward and retrosynthesis; say task=..."
                )
        if is_yield != (task == "yield"):
            raise ValueError(
                f"{folder.name}: task {task!r} does not fit weights {'with' if is_yield else 'without'} a yield head"
            )
        tok = read_tokenizer(folder, task)
        model: nn.Module = T5(sizes)
        if is_yield:  # released: padding is seen by the decoder
            model = ReactionYield(sizes, own.get("mask_padding", False), own.get("pooling", "first"))
        load_state(model, state)
        if len(tok) != sizes.vocab:
            raise ValueError(f"{folder.name}: {sizes.vocab} embeddings, but the {task} tokenizer has {len(tok)} tokens; "
                             "this is another model's vocabulary")  # fmt: skip
        return cls(model.eval(), tok, task)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `config.json` and `model.safetensors` in the released layout, and a vocabulary that is not published."""
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        inner = self.model.model if isinstance(self.model, ReactionYield) else self.model
        about = as_transformers(inner.config) | {"reaction_task": self.task}
        if isinstance(self.model, ReactionYield):
            about |= {"mask_padding": self.model.mask_padding, "pooling": self.model.pooling}
        (folder / "config.json").write_text(json.dumps(about, indent=1) + "\n")
        if own := self.tokenizer.unpublished():
            (folder / "vocabulary.json").write_text(json.dumps(own, ensure_ascii=False) + "\n")
        save_file(
            {k: v.contiguous() for k, v in self.model.state_dict().items()}, folder / "model.safetensors"
        )

    def adapted(self, task: str, seed: int = 0) -> ReactionT5:
        """This model, ready to learn `task`.

        A molecule-only model gets the tokens of the task (their rows are drawn with `seed`) and, for yields, the
        published head (with padding hidden from it, see `ReactionYield`); products and reactants share their tokens, so each may start from the other. The book's
        small models have all tokens from the start.

        Raises ValueError where the vocabulary of this model does not hold the tokens of `task`.
        """
        tok, known, model = self.tokenizer, self.task, self.model
        if known == task:
            return self
        if isinstance(tok, PublishedTokenizer):
            if known != "compound" and {known, task} != {"forward", "retrosynthesis"}:
                raise ValueError(f"a {known} model cannot start a {task} model: their role tokens differ; start from "
                                 "sagawa/CompoundT5, or from a model of the task")  # fmt: skip
            tok = tok.for_task(task)
        if isinstance(model, ReactionYield):
            raise ValueError(f"a yield model has no output matrix; it cannot start a {task} model")
        training.seed_everything(seed)
        if len(tok) > model.config.vocab:
            model.resize(len(tok))
        if task == "yield":
            regressor = ReactionYield(model.config)
            regressor.model.load_state_dict(
                {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
            )
            model = regressor.to(model.shared.weight.device)
        return ReactionT5(model.eval(), tok, task)


def locate(name: str | Path) -> Path:
    """The folder of a checkpoint: a local one, or the hub's files fetched into its cache."""
    if Path(name).is_dir():
        return Path(name)
    if str(name) not in CHECKPOINTS:
        raise DataMissing(
            f"{str(name)!r} is neither a folder nor a released model; released are {', '.join(CHECKPOINTS)}"
        )
    from huggingface_hub import snapshot_download

    patterns = ["config.json", "config.pth", "*.safetensors", "pytorch_model.bin", "CompoundT5_best.pth"]
    try:
        return Path(snapshot_download(str(name), allow_patterns=patterns))
    except Exception as error:  # the hub raises many kinds, all of which mean: not here
        raise DataMissing(
            f"{name} is not in the hub's cache and could not be fetched ({type(error).__name__}); download it on a "
            "machine with internet and pass the folder"
        ) from None


def read_state(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of the first weight file that is there."""
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            if name.endswith(".safetensors"):
                from safetensors.torch import load_file

                return load_file(folder / name)
            return torch.load(folder / name, map_location="cpu", weights_only=True)
    raise ValueError(f"{folder.name}: none of {', '.join(WEIGHT_FILES)} is there")


def _about(folder: Path) -> dict[str, Any]:
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{folder.name}: config.json is no JSON ({error}); fetch it again") from None


def read_own(folder: Path) -> dict[str, Any]:
    """What `save_pretrained` wrote into `config.json` beyond the sizes; nothing in folders of others."""
    about = _about(folder) if (folder / "config.json").is_file() else {}
    return {name: about[name] for name in ("reaction_task", "mask_padding", "pooling") if name in about}


def read_tokenizer(folder: Path, task: str) -> Tokenizer:
    """The published tokenizer of `task`, or the one in the folder's `vocabulary.json`."""
    path = folder / "vocabulary.json"
    own = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return AtomTokenizer(own["symbols"]) if "symbols" in own else PublishedTokenizer(task, own.get("pieces"))


def read_config(folder: Path) -> T5Config:
    """Sizes from `config.json`, or from the authors' pickled `config.pth` (read only for plain values)."""
    if (folder / "config.json").is_file():
        return from_transformers(_about(folder))
    if (folder / "config.pth").is_file():
        from transformers import T5Config as Theirs

        with torch.serialization.safe_globals([Theirs]):
            return from_transformers(torch.load(folder / "config.pth", weights_only=True).to_dict())
    raise ValueError(f"{folder.name}: neither config.json nor config.pth is there")


def from_transformers(c: Mapping[str, Any]) -> T5Config:
    """Our sizes from a transformers T5 configuration. Raises ValueError for a T5 without the gated tanh-GELU."""
    if c.get("feed_forward_proj", "relu") != "gated-gelu":
        raise ValueError(
            f"feed_forward_proj is {c.get('feed_forward_proj', 'relu')!r}; the released models have 'gated-gelu'"
        )
    return T5Config(
        vocab=c["vocab_size"], d_model=c["d_model"], d_ff=c["d_ff"], d_kv=c["d_kv"], heads=c["num_heads"],
        encoder_layers=c["num_layers"], decoder_layers=c.get("num_decoder_layers") or c["num_layers"],
        buckets=c.get("relative_attention_num_buckets", 32),
        max_distance=c.get("relative_attention_max_distance", 128), dropout=c.get("dropout_rate", 0.1),
        epsilon=c.get("layer_norm_epsilon", 1e-6),
    )  # fmt: skip


def as_transformers(c: T5Config) -> dict[str, Any]:
    """A transformers T5 configuration of the same network."""
    return {
        "model_type": "t5", "vocab_size": c.vocab, "d_model": c.d_model, "d_ff": c.d_ff, "d_kv": c.d_kv,
        "num_heads": c.heads, "num_layers": c.encoder_layers, "num_decoder_layers": c.decoder_layers,
        "relative_attention_num_buckets": c.buckets, "relative_attention_max_distance": c.max_distance,
        "dropout_rate": c.dropout, "layer_norm_epsilon": c.epsilon, "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip


def load_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Load a checkpoint's tensors; aliases of the embedding may be there or not, anything else must fit exactly.

    Raises ValueError that names the first tensor that is missing, left over, or of another shape.
    """
    state = {k: v for k, v in state.items() if not k.endswith(ALIASES)}
    if isinstance(model, ReactionYield):
        state = {k: v for k, v in state.items() if k != "model.lm_head.weight"}
    own = model.state_dict()
    if missing := sorted(own.keys() - state.keys()):
        tied = " (saved by a tied model: its trained head is lost)" if missing == ["lm_head.weight"] else ""
        raise ValueError(f"the checkpoint has no {missing[0]!r}{tied}")
    if extra := sorted(state.keys() - own.keys()):
        raise ValueError(f"the checkpoint has {extra[0]!r}, which this model does not know")
    for name, tensor in own.items():
        if tensor.shape != state[name].shape:
            raise ValueError(
                f"{name} is {list(state[name].shape)} in the checkpoint, {list(tensor.shape)} here"
            )
    model.load_state_dict({k: v.to(own[k].dtype) for k, v in state.items()})


def to_transformers(model: T5):
    """The same network as `T5ForConditionalGeneration`, with its own head also under transformers 5.

    transformers from version 5 on sets `tie_word_embeddings=True` for every T5 configuration: a fresh model then
    shares head and embedding, and `resize_token_embeddings` ties a loaded one again. The head is put back here.
    """
    from transformers import T5Config as Theirs
    from transformers import T5ForConditionalGeneration

    made = T5ForConditionalGeneration(
        Theirs(**{k: v for k, v in as_transformers(model.config).items() if k != "model_type"})
    )
    untie(made)
    state = dict(model.state_dict())
    state |= dict.fromkeys(ALIASES, state["shared.weight"])
    made.load_state_dict(state)
    return made.eval()


def untie(theirs: Any) -> Any:
    """Give a transformers T5 a head of its own (in place); to be called before `resize_token_embeddings`."""
    theirs.config.tie_word_embeddings = False
    if theirs.lm_head.weight is theirs.shared.weight:
        theirs.lm_head.weight = nn.Parameter(theirs.shared.weight.detach().clone())
    return theirs
