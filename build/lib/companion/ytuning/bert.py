"""A BERT encoder on one page: the same numbers as `transformers`' BertModel, loaded in a second.

`transformers` takes ten seconds of processor time to import; this file exists so that runs on the small
MiniLM, a plain BERT, start at once. Module names follow the checkpoint, shapes are [B, M, D].
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn


class Layer(nn.Module):
    """Post-norm Transformer layer."""

    def __init__(self, d: int, heads: int, f: int, dropout: float, eps: float) -> None:
        super().__init__()
        self.heads, self.p = heads, dropout
        self.attention = nn.ModuleDict({
            "self": nn.ModuleDict({name: nn.Linear(d, d) for name in ("query", "key", "value")}),
            "output": nn.ModuleDict({"dense": nn.Linear(d, d), "LayerNorm": nn.LayerNorm(d, eps)}),
        })  # fmt: skip
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(d, f)})
        self.output = nn.ModuleDict({"dense": nn.Linear(f, d), "LayerNorm": nn.LayerNorm(d, eps)})

    def forward(self, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        """x: [B, M, D], seen: [B, 1, 1, M]"""
        p = self.p if self.training else 0.0
        q, k, v = (self.attention["self"][n](x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                   for n in ("query", "key", "value"))  # fmt: skip
        read = F.scaled_dot_product_attention(q, k, v, seen, p).transpose(1, 2).flatten(2)
        out = self.attention["output"]
        x = out["LayerNorm"](x + F.dropout(out["dense"](read), p))
        y = self.output["dense"](F.gelu(self.intermediate["dense"](x)))
        return self.output["LayerNorm"](x + F.dropout(y, p))


class Bert(nn.Module):
    """Embeddings and layers; `forward` gives all hidden states, the embeddings' first."""

    def __init__(self, config: dict) -> None:
        super().__init__()
        c = self.config = dict(config)
        d, eps, p = c["hidden_size"], c["layer_norm_eps"], c["hidden_dropout_prob"]
        self.p = p
        self.embeddings = nn.ModuleDict({
            "word_embeddings": nn.Embedding(c["vocab_size"], d),
            "position_embeddings": nn.Embedding(c["max_position_embeddings"], d),
            "token_type_embeddings": nn.Embedding(c["type_vocab_size"], d),
            "LayerNorm": nn.LayerNorm(d, eps),
        })  # fmt: skip
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(
            Layer(d, c["num_attention_heads"], c["intermediate_size"], p, eps) for _ in range(c["num_hidden_layers"])
        )})  # fmt: skip

    def forward(self, ids: torch.Tensor, pad: torch.Tensor, types: torch.Tensor | None = None,
                prompt: torch.Tensor | None = None) -> list[torch.Tensor]:  # fmt: skip
        """ids, pad (true on padding), types: [B, M]; prompt: [R, D] goes before the words -> L + 1 times [B, R + M, D]"""
        e = self.embeddings
        words = e["word_embeddings"](ids)
        if prompt is not None:
            words = torch.cat([prompt.expand(len(ids), -1, -1), words], 1)
            pad = F.pad(pad, (len(prompt), 0))
            types = F.pad(types, (len(prompt), 0)) if types is not None else None
        place = torch.arange(words.size(1), device=ids.device)
        kind = torch.zeros_like(pad, dtype=torch.long) if types is None else types
        x = words + e["token_type_embeddings"](kind) + e["position_embeddings"](place)
        x = F.dropout(e["LayerNorm"](x), self.p, self.training)
        states, seen = [x], ~pad[:, None, None, :]
        for layer in self.encoder["layer"]:
            states.append(layer(states[-1], seen))
        return states

    @classmethod
    def load(cls, folder: Path) -> Bert:
        """The checkpoint in `folder` (config.json, model.safetensors). Raises ValueError if it is not plain BERT."""
        config = json.loads((folder / "config.json").read_text())
        if not plain(config):
            raise ValueError(
                f"{folder.name} is a {config.get('model_type')!r} model; this page only knows plain BERT"
            )
        with torch.device("meta"):
            model = cls(config)
        state = {
            k.removeprefix("bert."): v.float() for k, v in load_file(folder / "model.safetensors").items()
        }
        model.load_state_dict({k: state[k] for k in model.state_dict()}, assign=True)
        return model


def plain(config: dict) -> bool:
    """Whether a config.json describes a BERT that `Bert` can run."""
    return (config.get("model_type") == "bert" and config.get("hidden_act") == "gelu"
            and config.get("position_embedding_type", "absolute") == "absolute"
            and not config.get("is_decoder", False))  # fmt: skip
