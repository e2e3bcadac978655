"""Encoders behind one small interface, so that any two can prompt each other.

A tower has `depths` (layers per stage), `shapes` ((L, C) that layer i works on) and five steps:
`embed(inputs)`, `attend(i, x)` and `mix(i, x)` (layer i's attention half and MLP half, residuals included),
`reduce(i, x)` (patch merging where layer i ends a stage) and `finish(x)`. Without units they compute what the
wrapped encoder computes, bit for bit.

transformers is imported only by the `*_tower` makers that build random models; wrapping a model needs torch only.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Tower(nn.Module):
    """What all towers share: running layers without prompts."""

    depths: tuple[int, ...]
    shapes: list[tuple[int, int]]

    def run(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Layers start..stop-1, patch merging included."""
        for i in range(start, stop):
            x = self.reduce(i, self.mix(i, self.attend(i, x)))
        return x

    def reduce(self, i: int, x: Tensor) -> Tensor:
        return x

    def forward(self, inputs: Any) -> Tensor:
        """The encoder as it is: last features `[N, L, C]`."""
        return self.finish(self.run(self.embed(inputs), 0, len(self.shapes)))


class _Windowed(Tower):
    """Shared by Swin-V2 and HTS-AT of transformers: windowed attention on a grid, stages with patch merging."""

    def __init__(self, encoder: nn.Module, grids: list[tuple[int, int]]) -> None:
        super().__init__()
        self.depths = tuple(len(stage.blocks) for stage in encoder.layers)
        self.shapes, self._grids, self._merge = [], [], []
        for stage, grid in zip(encoder.layers, grids, strict=True):
            for block in stage.blocks:
                self.shapes.append((grid[0] * grid[1], block.layernorm_before.normalized_shape[0]))
                self._grids.append(grid)
                self._merge.append(block is stage.blocks[-1] and stage.downsample is not None)
        self._stage = [s for s, stage in enumerate(encoder.layers) for _ in stage.blocks]
        self._inside = [b for stage in encoder.layers for b in range(len(stage.blocks))]

    def _block(self, i: int) -> nn.Module:
        return self.encoder.layers[self._stage[i]].blocks[self._inside[i]]

    def reduce(self, i: int, x: Tensor) -> Tensor:
        return self.encoder.layers[self._stage[i]].downsample(x, self._grids[i]) if self._merge[i] else x

    def _attention(self, i: int, x: Tensor) -> Tensor:
        """Shifted-window attention of layer i on `x [N, L, C]`, without norm and residual."""
        block, (height, width) = self._block(i), self._grids[i]
        n, _, channels = x.shape
        x, pad = block.maybe_pad(x.view(n, height, width, channels), height, width)
        _, high, wide, _ = x.shape
        shift, window = int(block.shift_size), int(block.window_size)
        if shift:
            x = torch.roll(x, shifts=(-shift, -shift), dims=(1, 2))
        x = x.view(n, high // window, window, wide // window, window, channels).transpose(2, 3)
        x = x.reshape(-1, window * window, channels)
        mask = block.get_attn_mask(high, wide, dtype=x.dtype, device=x.device)
        x = block.attention(x, mask)[0]
        x = x.view(n, high // window, wide // window, window, window, channels).transpose(2, 3)
        x = x.reshape(n, high, wide, channels)
        if shift:
            x = torch.roll(x, shifts=(shift, shift), dims=(1, 2))
        if pad[3] or pad[5]:
            x = x[:, :height, :width].contiguous()
        return x.reshape(n, height * width, channels)


class SwinV2Tower(_Windowed):
    """Swin-V2 (`transformers.Swinv2Model`): post-norm blocks, images `[N, 3, H, W]`."""

    def __init__(self, model: nn.Module) -> None:
        first = model.embeddings.patch_grid
        grids = [(first[0] >> s, first[1] >> s) for s in range(len(model.encoder.layers))]
        super().__init__(model.encoder, grids)
        self.model = model

    @property
    def encoder(self) -> nn.Module:
        return self.model.encoder

    def embed(self, images: Tensor) -> Tensor:
        return self.model.embeddings(images)[0]

    def attend(self, i: int, x: Tensor) -> Tensor:
        block = self._block(i)
        return x + block.drop_path(block.layernorm_before(self._attention(i, x)))

    def mix(self, i: int, x: Tensor) -> Tensor:
        block = self._block(i)
        return x + block.drop_path(block.layernorm_after(block.output(block.intermediate(x))))

    def finish(self, x: Tensor) -> Tensor:
        return self.model.layernorm(x)


class HTSATTower(_Windowed):
    """HTS-AT (the audio encoder inside `transformers.ClapAudioModel`): pre-norm blocks, log-mel `[N, 1, T, mel]`.

    `final_norm` is False by default: the published main-task code never applies HTS-AT's last LayerNorm.
    """

    def __init__(self, model: nn.Module, final_norm: bool = False) -> None:
        encoder = getattr(model, "audio_encoder", model)
        super().__init__(encoder, [tuple(g) for g in encoder.input_resolutions])
        self.encoder, self.final_norm = encoder, final_norm
        for i in range(len(self.shapes)):
            self._block(i).set_shift_and_window_size(self._grids[i])

    def image(self, logmel: Tensor) -> Tensor:
        """BatchNorm over mel bins, then time folded into `[N, 1, spec, spec]`."""
        x = self.encoder.batch_norm(logmel.transpose(1, 3)).transpose(1, 3)
        return self.encoder.reshape_mel2img(x)

    def embed(self, logmel: Tensor) -> Tensor:
        return self.encoder.patch_embed(self.image(logmel), None)

    def attend(self, i: int, x: Tensor) -> Tensor:
        block = self._block(i)
        return x + block.drop_path(self._attention(i, block.layernorm_before(x)))

    def mix(self, i: int, x: Tensor) -> Tensor:
        block = self._block(i)
        return x + block.output(block.intermediate(block.layernorm_after(x)))

    def finish(self, x: Tensor) -> Tensor:
        return self.encoder.norm(x) if self.final_norm else x


class CLIPTower(Tower):
    """CLIP's vision transformer (`transformers.CLIPVisionModel` and kin): flat, class token first."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.vision = getattr(model, "vision_model", model)
        layers = self.vision.encoder.layers
        tokens = self.vision.embeddings.num_positions
        self.depths = (len(layers),)
        self.shapes = [(tokens, layer.embed_dim) for layer in layers]

    def embed(self, images: Tensor) -> Tensor:
        return self.vision.pre_layrnorm(self.vision.embeddings(images))

    def attend(self, i: int, x: Tensor) -> Tensor:
        layer = self.vision.encoder.layers[i]
        return x + layer.self_attn(hidden_states=layer.layer_norm1(x), attention_mask=None)[0]

    def mix(self, i: int, x: Tensor) -> Tensor:
        layer = self.vision.encoder.layers[i]
        return x + layer.mlp(layer.layer_norm2(x))

    def finish(self, x: Tensor) -> Tensor:
        return self.vision.post_layernorm(x)


class SmallTower(Tower):
    """A small hierarchical pre-norm transformer for the reduced scale, images `[N, in, H, W]`.

    Each stage: `depth` blocks of self-attention inside windows of `window` x `window` tokens; between stages 2 x 2
    patch merging doubles the width, as in Swin (without its shifts).
    """

    def __init__(self, size: tuple[int, int], channels: int, patch: int, width: int = 24,
                 depths: tuple[int, ...] = (1, 1), heads: int = 2, window: int = 4) -> None:  # fmt: skip
        super().__init__()
        self.depths = tuple(depths)
        grid = (size[0] // patch, size[1] // patch)
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.position = nn.Parameter(torch.randn(1, grid[0] * grid[1], width) * 0.02)
        self.blocks, self.merges, self.shapes, self._merge, self._grids = (
            nn.ModuleList(),
            nn.ModuleList(),
            [],
            [],
            [],
        )
        for s, depth in enumerate(depths):
            for d in range(depth):
                self.blocks.append(_Block(width, heads << s, grid, window))
                self.shapes.append((grid[0] * grid[1], width))
                self._grids.append(grid)
                self._merge.append(s if d == depth - 1 and s < len(depths) - 1 else None)
            if s < len(depths) - 1:
                self.merges.append(
                    nn.Sequential(nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False))
                )
                grid, width = (grid[0] // 2, grid[1] // 2), 2 * width
        self.norm = nn.LayerNorm(width)

    def embed(self, images: Tensor) -> Tensor:
        return self.patches(images).flatten(2).transpose(1, 2) + self.position

    def attend(self, i: int, x: Tensor) -> Tensor:
        return x + self.blocks[i].attend(x)

    def mix(self, i: int, x: Tensor) -> Tensor:
        return x + self.blocks[i].mlp(x)

    def reduce(self, i: int, x: Tensor) -> Tensor:
        if self._merge[i] is None:
            return x
        (high, wide), n = self._grids[i], len(x)
        x = (
            x.view(n, high // 2, 2, wide // 2, 2, -1)
            .permute(0, 1, 3, 2, 4, 5)
            .reshape(n, high * wide // 4, -1)
        )
        return self.merges[self._merge[i]](x)

    def finish(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Upper(Tower):
    """The layers of `tower` from `start` on; its inputs are the features that `lower` computes.

    The layers below are frozen and unprompted, so their features can be computed once for a whole data set.
    """

    def __init__(self, tower: Tower, start: int) -> None:
        super().__init__()
        if not 0 < start < len(tower.shapes):
            raise ValueError(f"start is {start}; choose 1 to {len(tower.shapes) - 1}, a layer of the tower")
        self.tower, self.start = tower, start
        self.shapes = tower.shapes[start:]
        ends = [sum(tower.depths[: s + 1]) for s in range(len(tower.depths))]
        self.depths = tuple(
            e - max(start, e - d) for e, d in zip(ends, tower.depths, strict=True) if e > start
        )

    @torch.no_grad()
    def lower(self, inputs: Any) -> Tensor:
        """Features below `start`, `[N, L, C]`."""
        return self.tower.run(self.tower.embed(inputs), 0, self.start)

    def embed(self, features: Tensor) -> Tensor:
        return features

    def attend(self, i: int, x: Tensor) -> Tensor:
        return self.tower.attend(i + self.start, x)

    def mix(self, i: int, x: Tensor) -> Tensor:
        return self.tower.mix(i + self.start, x)

    def reduce(self, i: int, x: Tensor) -> Tensor:
        return self.tower.reduce(i + self.start, x)

    def finish(self, x: Tensor) -> Tensor:
        return self.tower.finish(x)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, grid: tuple[int, int], window: int) -> None:
        super().__init__()
        self.heads, self.grid = heads, grid
        self.window = (min(window, grid[0]), min(window, grid[1]))
        self.norm, self.qkv, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def attend(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        (high, wide), (h, w) = self.grid, self.window
        x = self.qkv(self.norm(x)).view(n, high // h, h, wide // w, w, 3, self.heads, width // self.heads)
        q, k, v = x.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, -1, self.heads, h * w, width // self.heads)
        x = F.scaled_dot_product_attention(q, k, v)  # [N x windows, heads, h w, width / heads]
        x = x.view(n, high // h, wide // w, self.heads, h, w, -1).permute(0, 1, 4, 2, 5, 3, 6)
        return self.out(x.reshape(n, length, width))


# --- full-size encoders with random or published weights ----------------------------------------------


def swinv2_tower(name: str = "", **config: Any) -> SwinV2Tower:
    """Swin-V2 behind the tower interface: pre-trained `name` of the hub, or random weights of `config`."""
    from transformers import Swinv2Config, Swinv2Model

    model = (
        Swinv2Model.from_pretrained(name) if name else Swinv2Model(Swinv2Config(**(SWIN_V2_LARGE | config)))
    )
    return SwinV2Tower(model)


def htsat_tower(name: str = "", **config: Any) -> HTSATTower:
    """HTS-AT behind the tower interface: from a CLAP checkpoint `name` of the hub, or random weights of `config`."""
    from transformers import ClapAudioConfig, ClapAudioModel

    model = (
        ClapAudioModel.from_pretrained(name) if name else ClapAudioModel(ClapAudioConfig(**(HTS_AT | config)))
    )
    return HTSATTower(model)


def clip_tower(name: str = "", **config: Any) -> CLIPTower:
    """CLIP's ViT behind the tower interface (default size B/32)."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    return CLIPTower(
        CLIPVisionModel.from_pretrained(name) if name else CLIPVisionModel(CLIPVisionConfig(**config))
    )


SWIN_V2_LARGE = {"image_size": 192, "patch_size": 4, "embed_dim": 192, "depths": [2, 2, 18, 2],
                 "num_heads": [6, 12, 24, 48], "window_size": 12, "drop_path_rate": 0.1}  # fmt: skip
HTS_AT = {"num_mel_bins": 64, "spec_size": 256, "patch_size": 4, "patch_stride": [4, 4], "window_size": 8,
          "depths": [2, 2, 6, 2], "num_attention_heads": [4, 8, 16, 32], "patch_embeds_hidden_size": 96,
          "hidden_size": 768, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
          "drop_path_rate": 0.1, "enable_fusion": False}  # fmt: skip
