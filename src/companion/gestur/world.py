"""The styled-glyph world: images = strokes x style, with a shortcut of known strength.

A *glyph class* is a handful of quadratic strokes; every image jitters them. A *style* paints the glyph: photo, cartoon,
sketch and art are the domains of the task, two more styles only occur in pre-training. In the task, the hue of the
glyph tells the class with probability `strength` in every source domain and nothing in the target: a bias that all
sources share. Pre-training sees other glyphs in all styles with uninformative hues.

Shapes: n images, S pixels, K strokes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from companion.training import generator

STYLES = ("art", "cartoon", "photo", "sketch")  # sorted, as folders would be
EXTRA = ("mix-a", "mix-b")


@dataclass(frozen=True)
class WorldConfig:
    """The task: how many images, how many classes, how strong the shortcut."""

    size: int = 16  # pixels
    classes: int = 10
    images: int = 500  # per domain
    strength: float = 0.95  # probability that the hue is the class's, in the sources
    jitter: float = 0.09  # of control points, in image widths
    alphabet: int = 0  # seed of the glyph classes; pre-training uses another

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise ValueError(f"strength is {self.strength}; it is a probability from 0 to 1")
        if self.classes < 2 or self.images < 5 * self.classes:
            raise ValueError(
                f"{self.images} images for {self.classes} classes; 2 classes and 5 images each are needed"
            )


def alphabet(classes: int, seed: int, strokes: int = 4) -> Tensor:
    """Control points of `classes` glyphs: [classes, K, 3, 2] in [0, 1]; NaN marks strokes a glyph does not have."""
    g = generator(seed, "alphabet")
    points = 0.12 + 0.76 * torch.rand(classes, strokes, 3, 2, generator=g)
    count = torch.randint(2, strokes + 1, (classes,), generator=g)
    points[torch.arange(strokes)[None] >= count[:, None]] = float("nan")
    return points


def draw(points: Tensor, size: int, jitter: float, g: torch.Generator) -> Tensor:
    """Ink of one image per row of `points` [n, K, 3, 2]: [n, 1, S, S] in [0, 1]."""
    n = len(points)
    p = points + jitter * torch.randn(points.shape, generator=g)
    angle = 0.15 * torch.randn(n, generator=g)
    scale = 0.8 + 0.3 * torch.rand(n, generator=g)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).reshape(n, 1, 1, 2, 2)
    p = ((p - 0.5)[..., None, :] @ turn)[..., 0, :] * scale[:, None, None, None] + 0.5
    p = p + 0.05 * torch.randn(n, 1, 1, 2, generator=g)
    t = torch.linspace(0, 1, 10)[:, None]
    a, b, c = p[:, :, None, 0], p[:, :, None, 1], p[:, :, None, 2]
    dots = ((1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c).reshape(n, -1, 2)  # [n, 10 K, 2]
    dots = torch.nan_to_num(dots, nan=9.0)
    grid = (torch.arange(size) + 0.5) / size
    far = (dots[:, :, 0, None, None] - grid) ** 2 + (dots[:, :, 1, None, None] - grid[:, None]) ** 2
    width = 0.06 + 0.08 * torch.rand(n, 1, 1, generator=g)
    ink = (width / 2 - far.amin(1).sqrt()) * size + 0.5
    return ink.clamp(0, 1)[:, None]


def rgb(hue: Tensor, saturation: Tensor | float, value: Tensor | float) -> Tensor:
    """Colours [n, 3, 1, 1] of hues [n] in [0, 1]."""
    k = (hue[:, None] * 6 + torch.tensor([5.0, 3.0, 1.0])) % 6
    s = torch.as_tensor(saturation).expand(len(hue))[:, None]
    v = torch.as_tensor(value).expand(len(hue))[:, None]
    return (v - v * s * torch.minimum(k, 4 - k).clamp(0, 1))[:, :, None, None]


def _blobs(n: int, channels: int, size: int, g: torch.Generator) -> Tensor:
    low = torch.rand(n, channels, 4, 4, generator=g)
    return F.interpolate(low, size=(size, size), mode="bilinear", align_corners=False)


def _stripes(n: int, size: int, g: torch.Generator) -> Tensor:
    grid = (torch.arange(size) + 0.5) / size
    angle = 3.1416 * torch.rand(n, 1, 1, generator=g)
    phase = grid[None, None] * angle.cos() + grid[None, :, None] * angle.sin()
    return ((phase * (2 + 3 * torch.rand(n, 1, 1, generator=g))) % 1 > 0.5).float()[:, None]


def paint(ink: Tensor, hue: Tensor, style: str, g: torch.Generator) -> Tensor:
    """The glyphs in a style. ink: [n, 1, S, S], hue: [n] -> images [n, 3, S, S] in [0, 1].

    Raises ValueError for an unknown style.
    """
    n, size = len(ink), ink.shape[-1]

    def u(low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=g)

    noise = 0.0
    if style == "photo":
        front = rgb(hue, u(0.6, 0.9), u(0.75, 1)) * (0.6 + 0.5 * _blobs(n, 1, size, g))
        back, noise = 0.45 * _blobs(n, 3, size, g), 0.08
    elif style == "cartoon":
        front, back = rgb(hue, 0.95, 0.95), rgb(u(), 0.25, u(0.75, 1))
    elif style == "sketch":
        padded = F.pad(ink, (1, 1, 1, 1))
        dx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]).abs()
        dy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]).abs()
        ink = (1.5 * torch.maximum(dx, dy)).clamp(0, 1)
        front, back, noise = (
            rgb(hue, 0.8, u(0.2, 0.5)),
            u(0.9, 1)[:, None, None, None].expand(n, 3, 1, 1),
            0.02,
        )
    elif style == "art":
        front = rgb(hue, u(0.35, 0.7), 1.0) * (0.7 + 0.4 * _blobs(n, 1, size, g))
        one, two, stripes = rgb(u(), 0.6, 0.5), rgb(u(), 0.6, 0.3), _stripes(n, size, g)
        back, noise = stripes * one + (1 - stripes) * two, 0.06
    elif style == "mix-a":
        front, stripes = rgb(hue, u(), u(0.2, 1)), _stripes(n, size, g)
        back = stripes * rgb(u(), u(), u()) + (1 - stripes) * rgb(u(), u(), u())
    elif style == "mix-b":
        front, back, noise = rgb(hue, u(), u(0.5, 1)), rgb(u(), u(), u(0, 0.4)), 0.12
    else:
        raise ValueError(f"style {style!r} does not exist; choose {', '.join(STYLES + EXTRA)}")
    x = ink * front + (1 - ink) * back
    if style == "art":
        x = 0.5 * x + 0.5 * F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    if style == "mix-b":
        flip = (torch.rand(n, 1, 1, 1, generator=g) < 0.5).float()
        x = flip * (1 - x) + (1 - flip) * x
    return (x + noise * torch.randn(x.shape, generator=g)).clamp(0, 1)


def hues(labels: Tensor, classes: int, strength: float, g: torch.Generator) -> Tensor:
    """A hue per label: the class's own (k / classes, slightly blurred) with probability `strength`, else any."""
    own = (labels / classes + 0.02 * torch.randn(len(labels), generator=g)) % 1
    free = torch.rand(len(labels), generator=g)
    return torch.where(torch.rand(len(labels), generator=g) < strength, own, free)


def domains(config: WorldConfig, target: str, seed: int,
            digits: tuple[Tensor, Tensor] | None = None) -> dict[str, tuple[Tensor, Tensor]]:  # fmt: skip
    """The task: per style (images [n, 3, S, S], labels [n]). The target's hues are uninformative.

    Args:
        digits: ink [N, 1, H, W] and labels [N] to be painted instead of procedural glyphs, dealt out to the styles.

    Raises ValueError when `target` is not one of the four styles.
    """
    if target not in STYLES:
        raise ValueError(f"target {target!r} is not a style of the task; choose {', '.join(STYLES)}")
    glyphs = alphabet(config.classes, config.alphabet)
    order = torch.randperm(len(digits[1]) if digits else 0, generator=generator(seed, "deal"))
    if digits and len(order) < len(STYLES) * config.images:
        raise ValueError(f"{len(order)} digits do not fill {len(STYLES)} domains of {config.images} images")
    found = {}
    for style in STYLES:
        g = generator(seed, "domain", style)
        if digits is None:
            labels = torch.arange(config.images) % config.classes
            ink = draw(glyphs[labels], config.size, config.jitter, g)
        else:
            part = order[STYLES.index(style) * config.images :][: config.images]
            labels = digits[1][part]
            ink = F.interpolate(digits[0][part], size=(config.size, config.size), mode="area")
        hue = hues(labels, config.classes, 0.0 if style == target else config.strength, g)
        found[style] = (paint(ink, hue, style, g), labels)
    return found


def pretraining_batch(glyphs: Tensor, n: int, size: int, k: int, seed: int, jitter: float = 0.07,
                      drawings: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The k-th batch of pre-training: any glyph in any of the six styles, any hue. -> ([n, 3, S, S], [n])

    Args:
        drawings: ink [N, 1, H, W] and labels [N] of real characters; half of the batch is taken from them, and their
            labels are counted on from the glyphs'.
    """
    g = generator(seed, "pretrain", k)
    ours = n if drawings is None else n - n // 2
    labels = torch.randint(0, len(glyphs), (ours,), generator=g)
    ink = draw(glyphs[labels], size, jitter, g)
    if drawings is not None:
        at = torch.randint(0, len(drawings[1]), (n // 2,), generator=g)
        mixed = torch.randperm(n, generator=g)
        ink = torch.cat([ink, shake(drawings[0][at], size, g)])[mixed]
        labels = torch.cat([labels, len(glyphs) + drawings[1][at]])[mixed]
    styles = STYLES + EXTRA
    parts = [paint(part, torch.rand(len(part), generator=g), style, g)
             for part, style in zip(ink.tensor_split(len(styles)), styles, strict=True)]  # fmt: skip
    return torch.cat(parts), labels


def shake(ink: Tensor, size: int, g: torch.Generator) -> Tensor:
    """Drawings slightly turned, scaled and moved, as `draw` does with strokes. [n, 1, H, W] -> [n, 1, S, S]"""
    n = len(ink)
    angle = 0.15 * torch.randn(n, generator=g)
    zoom = 1 / (0.8 + 0.3 * torch.rand(n, generator=g))
    move = 0.1 * torch.randn(n, 2, 1, generator=g)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).reshape(n, 2, 2)
    grid = F.affine_grid(
        torch.cat([zoom[:, None, None] * turn, move], 2), list(ink.shape), align_corners=False
    )
    moved = F.grid_sample(ink, grid, align_corners=False)
    return F.interpolate(moved, size=(size, size), mode="area")
