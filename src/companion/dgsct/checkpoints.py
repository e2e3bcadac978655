"""The encoders' published weights into transformers' models: timm's Swin-V2 and HTS-AT's own checkpoint.

The maps are names only, except that one `qkv` matrix becomes three. transformers' `Swinv2Model` and `ClapAudioModel` then
compute what the published encoders compute (tested on small random models).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

_SWIN = (
    (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
    (r"^patch_embed\.norm\.", "embeddings.norm."),
    (r"^layers\.(\d+)\.blocks\.(\d+)\.", r"encoder.layers.\1.blocks.\2."),
    (r"^layers\.(\d+)\.downsample\.", r"encoder.layers.\1.downsample."),
    (r"\.attn\.logit_scale$", ".attention.self.logit_scale"),
    (r"\.attn\.cpb_mlp\.", ".attention.self.continuous_position_bias_mlp."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"^norm\.", "layernorm."),
)
_HTSAT = (
    (r"^bn0\.", "batch_norm."),
    (r"^(layers\.\d+\.blocks\.\d+)\.attn\.relative_position_bias_table$", r"\1.attention.self.relative_position_bias_table"),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
)  # fmt: skip
# computed in the constructors, or parts that are not used here (classifier heads, STFT and mel matrices)
_SKIP = re.compile(
    r"relative_position_index|relative_coords_table|attn_mask|^head\.|^tscam_conv\.|^spectrogram_extractor\.|"
    r"^logmel_extractor\.|^spec_augmenter\."
)


def _renamed(state: Mapping[str, Tensor], rules: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    out = {}
    for name, value in state.items():
        if _SKIP.search(name):
            continue
        parts = re.match(r"^(.*)\.attn\.(qkv\.weight|qkv\.bias|q_bias|v_bias)$", name)
        pieces = {name: value}
        if parts:
            place, kind = parts.groups()
            leaf = kind.rpartition(".")[2] if "qkv" in kind else "bias"
            kinds = ("query", "key", "value") if "qkv" in kind else ("query" if kind[0] == "q" else "value",)
            pieces = {
                f"{place}.attention.self.{k}.{leaf}": v
                for k, v in zip(kinds, value.chunk(len(kinds)), strict=True)
            }
        for key, piece in pieces.items():
            for pattern, new in rules:
                key = re.sub(pattern, new, key)
            out[key] = piece
    return out


def _load(model: nn.Module, state: dict[str, Tensor], what: str) -> None:
    own = {k for k in model.state_dict() if not re.search(r"relative_position_index|relative_coords", k)}
    if missing := sorted(own - set(state)):
        raise ValueError(
            f"{what} has nothing for {missing[0]!r} ({len(missing)} of {len(own)} names missing)"
        )
    if extra := sorted(set(state) - own):
        raise ValueError(f"{what} holds {extra[0]!r}, which the model does not have")
    wrong = [k for k in own if state[k].numel() != model.state_dict()[k].numel()]
    if wrong:
        raise ValueError(f"{what}: {wrong[0]!r} is {tuple(state[wrong[0]].shape)}, "
                         f"the model needs {tuple(model.state_dict()[wrong[0]].shape)}")  # fmt: skip
    shaped = {k: v.reshape(model.state_dict()[k].shape) for k, v in state.items()}
    model.load_state_dict(shaped, strict=False)


def load_timm_swinv2(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Fill a `Swinv2Model` from timm's `SwinTransformerV2` (0.6 names: the merging layer ends a stage).

    Raises ValueError naming what is missing, left over or of another shape.
    """
    state = dict(state)
    if any(k.startswith("layers.1.downsample.") for k in state) and not any(
        k.startswith("layers.0.downsample.") for k in state
    ):  # newer timm: the merging layer opens the next stage
        state = {
            re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", k): v
            for k, v in state.items()
        }
    _load(model, _renamed(state, _SWIN), "the Swin-V2 checkpoint")
    return model


def load_htsat(model: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    """Fill a `ClapAudioModel` (or its encoder) from HTS-AT's own checkpoint, with or without the prefix `sed_model.`."""
    plain = {k.removeprefix("sed_model."): v for k, v in state.items()}
    _load(getattr(model, "audio_encoder", model), _renamed(plain, _HTSAT), "the HTS-AT checkpoint")
    return model


def read(path: Path | str) -> dict[str, Tensor]:
    """A checkpoint's tensors: safetensors, or torch's format with or without a `state_dict` entry (weights only)."""
    path = Path(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    found = torch.load(path, map_location="cpu", weights_only=True)
    found = found.get("state_dict", found)
    return {k: v for k, v in found.items() if isinstance(v, Tensor)}
