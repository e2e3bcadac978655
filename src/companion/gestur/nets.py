"""Backbones: the small network of the reduced and real scales, and the paper's three by name.

A backbone is a featurizer (x [B, 3, H, W] -> [B, D]) together with D and the names of its taps for MIRO.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from companion.tables import nearest


@dataclass
class Backbone:
    """`module`: the featurizer; `width`: D; `taps`: submodules whose outputs MIRO compares; `weights`: where they come from."""

    module: nn.Module
    width: int
    taps: tuple[str, ...]
    weights: str = "random"


class SmallNet(nn.Module):
    """3x3 convolutions with BatchNorm, then the global mean. [B, 3, S, S] -> [B, widths[-1]]"""

    def __init__(self, widths: tuple[int, ...] = (24, 48, 64), strides: tuple[int, ...] = (2, 2, 1)) -> None:
        super().__init__()
        sizes = zip((3, *widths), widths, strides, strict=False)
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
                for a, b, stride in sizes
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x).mean((2, 3))


def small(widths: tuple[int, ...] = (24, 48, 64), strides: tuple[int, ...] = (2, 2, 1)) -> Backbone:
    """A fresh `SmallNet`."""
    return Backbone(SmallNet(widths, strides), widths[-1], tuple(f"blocks.{k}" for k in range(len(widths))))


class ClipVisual(nn.Module):
    """CLIP's image tower with its projection: [B, 3, 224, 224] -> [B, 512]; no text tower."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, x: Tensor) -> Tensor:
        return self.tower(pixel_values=x).image_embeds


FULL = ("resnet50", "clip-vit-b16", "swag-regnety-16gf")


def is_full(name: str) -> bool:
    """Whether `full` knows the name: one of `FULL`, or `timm:` and the name of a timm model."""
    return name in FULL or name.startswith("timm:")


def full(name: str, pretrained: bool) -> Backbone:
    """One of the paper's backbones.

    `resnet50`: torchvision's IMAGENET1K_V1 (2048); `clip-vit-b16`: openai/clip-vit-base-patch16 through transformers
    (512, with its projection); `swag-regnety-16gf`: torchvision's RegNetY-16GF, the trunk that SWAG pre-trained and
    did not fine-tune (3024; CC-BY-NC 4.0); `timm:NAME`: any image model of timm, with the weights its name says.
    `pretrained=False` gives random weights of the same shape.

    Raises:
        ValueError: for another name.
        companion.datasets.DataMissing: where the weights cannot be had.
    """
    if not is_full(name):
        raise ValueError(f"backbone {name!r} does not exist; choose {', '.join(FULL)} or timm:NAME")
    try:
        return _full(name, pretrained)
    except OSError as error:
        from companion.datasets import DataMissing

        raise DataMissing(
            f"the weights of {name} are not on this machine and could not be fetched ({type(error).__name__}); "
            "connect once so that torchvision, transformers or timm can store them"
        ) from None


def _full(name: str, pretrained: bool) -> Backbone:
    if name.startswith("timm:"):
        return _timm(name.removeprefix("timm:"), pretrained)
    import torchvision.models as tv

    if name == "resnet50":
        net = tv.resnet50(weights=tv.ResNet50_Weights.IMAGENET1K_V1 if pretrained else None)
        net.fc = nn.Identity()
        return Backbone(net, 2048, ("maxpool", "layer1", "layer2", "layer3", "layer4"),
                        "torchvision IMAGENET1K_V1" if pretrained else "random")  # fmt: skip
    if name == "swag-regnety-16gf":
        # the linear variant is SWAG's frozen trunk: what torch.hub's facebookresearch/swag gives without a head
        weights = tv.RegNet_Y_16GF_Weights.IMAGENET1K_SWAG_LINEAR_V1 if pretrained else None
        net = tv.regnet_y_16gf(weights=weights)
        net.fc = nn.Identity()
        taps = ("stem", *(f"trunk_output.block{k}" for k in range(1, 5)))
        return Backbone(net, 3024, taps, "torchvision SWAG linear V1 trunk" if pretrained else "random")
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    if pretrained:
        tower = CLIPVisionModelWithProjection.from_pretrained("openai/clip-vit-base-patch16")
    else:
        tower = CLIPVisionModelWithProjection(CLIPVisionConfig(patch_size=16, projection_dim=512))
    layers = next(n for n, _ in tower.named_modules() if n.endswith("encoder.layers"))
    taps = tuple(f"tower.{layers}.{k}" for k in (2, 5, 8, 11))
    return Backbone(
        ClipVisual(tower.float()), 512, taps, "openai/clip-vit-base-patch16" if pretrained else "random"
    )


def _timm(name: str, pretrained: bool) -> Backbone:
    """A timm model without its head. MIRO's taps are its stages, or four blocks of a transformer."""
    import timm

    if not timm.is_model(name):
        raise ValueError(f"timm has no model {name!r}; did you mean {nearest(name, timm.list_models())}?")
    net = timm.create_model(name, pretrained=pretrained, num_classes=0)
    inside = dict(net.named_modules())
    if "blocks" in inside and len(inside["blocks"]) % 4 == 0:  # a transformer: after each quarter
        quarter = len(inside["blocks"]) // 4
        taps = tuple(f"blocks.{(k + 1) * quarter - 1}" for k in range(4))
    else:
        taps = tuple(t for t in dict.fromkeys(i["module"] for i in net.feature_info) if t in inside)
    if not taps:
        raise ValueError(
            f"timm model {name!r} names no stages for MIRO; build a Backbone with taps of your own"
        )
    return Backbone(net, net.num_features, taps, f"timm {name}" if pretrained else "random")


def linear_head(width: int, classes: int, seed: int) -> nn.Linear:
    """A fresh linear head with PyTorch's default start, drawn from its own stream."""
    from companion.training import generator

    head = nn.Linear(width, classes)
    bound, g = width**-0.5, generator(seed, "head")
    with torch.no_grad():
        for p in head.parameters():
            p.copy_((torch.rand(p.shape, generator=g) * 2 - 1) * bound)
    return head
