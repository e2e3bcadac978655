"""The procedural world of the reduced scale: frames with several objects, one second of sound for each.

Shape and sound kind belong together one to one (kind k sounds like timbre k), which no uni-modal encoder can
know. Who sounds is told by the pairing only, and the label is *another* property of that object, its colour: the
binding task. Audio alone gives 1/6; the image alone 1 / objects.

A frame is `[3, 32, 32]`, a sound is a log-mel-like `[1, 64 time, 16 mel]`. Everything is vectorised NumPy and
depends on the seed only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SHAPES = ("disc", "square", "triangle", "cross", "ring", "diamond")
TIMBRES = ("steady tone", "pulsed tone", "rising chirp", "falling chirp", "noise bursts", "two tones")
COLOURS = ("red", "green", "blue", "yellow", "magenta", "cyan")
_RGB = np.array(
    [[1, 0.15, 0.15], [0.15, 0.9, 0.2], [0.2, 0.3, 1], [0.95, 0.9, 0.1], [0.9, 0.2, 0.9], [0.1, 0.85, 0.9]]
)
SIDE, QUADRANT, TIME, MELS = 32, 16, 64, 16


@dataclass(frozen=True)
class Scenes:
    """N frames with their sounds. `shapes` and `colours` are -1 where a quadrant is empty."""

    images: Tensor  # [N, 3, 32, 32]
    sounds: Tensor  # [N, 1, 64, 16]
    shapes: Tensor  # [N, 4] by quadrant
    colours: Tensor  # [N, 4]
    timbre: Tensor  # [N]
    place: Tensor  # [N] quadrant of the sounding object
    masks: Tensor  # [N, 32, 32] its pixels (bool)

    @property
    def label(self) -> Tensor:
        """Colour of the sounding object [N]."""
        return self.colours.gather(1, self.place[:, None]).squeeze(1)

    def __len__(self) -> int:
        return len(self.images)


def draw(shape: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Pixel masks `[N, 16, 16]` of shapes with random size and place inside their quadrant."""
    n = len(shape)
    radius = random.uniform(4.2, 6.2, (n, 1, 1))
    centre = 7.5 + random.uniform(-1.5, 1.5, (2, n, 1, 1))
    y = (np.arange(QUADRANT)[None, :, None] - centre[0]) / radius
    x = (np.arange(QUADRANT)[None, None, :] - centre[1]) / radius
    masks = np.zeros((n, QUADRANT, QUADRANT), bool)
    for kind in range(6):
        at = shape == kind
        masks[at] = _inside(kind, x[at], y[at])
    return masks


def _inside(kind: int, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points (in radii from the centre) belong to a shape."""
    if kind == 0:
        return np.hypot(x, y) < 0.95
    if kind == 1:
        return np.maximum(abs(x), abs(y)) < 0.8
    if kind == 2:
        return (y < 0.8) & (abs(x) * 2 < y + 1.05)
    if kind == 3:
        return (np.minimum(abs(x), abs(y)) < 0.3) & (np.maximum(abs(x), abs(y)) < 1)
    if kind == 4:
        r = np.hypot(x, y)
        return (r < 1) & (r > 0.55)
    return abs(x) + abs(y) < 1.05


def sound(timbre: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Log-mel-like spectrograms `[N, 64, 16]` with random pitch, phase and noise."""
    n = len(timbre)
    t, m = np.arange(TIME, dtype=np.float32)[:, None] / TIME, np.arange(MELS, dtype=np.float32)
    out = 0.12 * random.standard_normal((n, TIME, MELS), dtype=np.float32)
    pitch, phase, beat, rate, loud = random.random((5, n, 1, 1), dtype=np.float32)
    pitch, beat, rate, loud = 3 + 9 * pitch, 5 + 2 * beat, 7 + 2 * rate, 0.7 + 0.5 * loud
    for kind in range(6):
        at = timbre == kind
        p, k = pitch[at], phase[at]

        def tone(centre):
            return np.exp(-(((m - centre) / 0.9) ** 2))

        if kind == 0:
            clean = tone(p)
        elif kind == 1:
            clean = tone(p) * ((t * beat[at] + k) % 1 < 0.5)
        elif kind in (2, 3):
            clean = tone(p + (t - 0.5) * rate[at] * (1 if kind == 2 else -1))
        elif kind == 4:
            clean = random.random((at.sum(), TIME, MELS), dtype=np.float32) * (
                0.5 + 0.5 * np.sin(2 * np.pi * (3 * t + k))
            )
        else:
            clean = tone(p - 2.5) + tone(p + 2.5)
        out[at] += loud[at] * clean
    return out


def scenes(count: int, seed: int, objects: int = 3, kinds: tuple[int, ...] = tuple(range(6))) -> Scenes:
    """`count` frames with `objects` objects of different shape and colour; one of them sounds.

    Args:
        kinds: which shapes (and so timbres) occur: fewer than six make a held-out world.
    """
    if not 1 <= objects <= 4 or objects > len(kinds):
        raise ValueError(
            f"objects is {objects}; choose 1 to {min(4, len(kinds))}: four quadrants, {len(kinds)} kinds"
        )
    random = np.random.default_rng([seed, objects, count, *kinds])
    # independent permutations per row: different shapes, colours and quadrants inside a frame
    shape = np.array(kinds)[random.random((count, len(kinds))).argsort(1)[:, :objects]]
    colour = random.random((count, 6)).argsort(1)[:, :objects]
    place = random.random((count, 4)).argsort(1)[:, :objects]
    images = 0.06 * random.standard_normal((count, 3, SIDE, SIDE), dtype=np.float32)
    images += random.uniform(0, 0.25, (count, 1, 1, 1)).astype(np.float32)
    masks = draw(shape.ravel(), random).reshape(count, objects, QUADRANT, QUADRANT)
    where = np.full((count, 4), -1)
    colours = np.full((count, 4), -1)
    rows = np.arange(count)
    target = np.zeros((count, SIDE, SIDE), bool)
    for k in range(objects):
        paint = _RGB[colour[:, k]] * random.uniform(0.75, 1, (count, 1)) + random.normal(0, 0.04, (count, 3))
        for q in range(4):
            at = np.flatnonzero(place[:, k] == q)
            ys, xs = (
                slice(q // 2 * QUADRANT, q // 2 * QUADRANT + QUADRANT),
                slice(q % 2 * QUADRANT, q % 2 * QUADRANT + QUADRANT),
            )
            mask = masks[at, k][:, None]
            images[at, :, ys, xs] = np.where(
                mask, paint[at][:, :, None, None] + images[at, :, ys, xs] * 0.3, images[at, :, ys, xs]
            )
            if k == 0:
                target[at, ys, xs] = masks[at, 0]
        where[rows, place[:, k]], colours[rows, place[:, k]] = shape[:, k], colour[:, k]
    sounds = sound(shape[:, 0], random)
    return Scenes(*(torch.from_numpy(np.ascontiguousarray(x)) for x in (
        images, sounds[:, None], where, colours, shape[:, 0], place[:, 0], target)))  # fmt: skip


@dataclass(frozen=True)
class Clips:
    """V videos of T segments. `labels [V, T]`: colour of the sounding object, 6 where nothing visible sounds."""

    images: Tensor  # [V, T, 3, 32, 32]
    sounds: Tensor  # [V, T, 1, 64, 16]
    labels: Tensor  # [V, T]
    masks: Tensor  # [V, T, 32, 32]


def clips(count: int, seed: int, segments: int = 5, objects: int = 3) -> Clips:
    """Videos for event localisation: one visible object sounds during an interval; outside it there is silence
    (noise) or the sound of a shape that is not in view. The objects stay, with fresh noise per frame."""
    random = np.random.default_rng([seed, segments, 77])
    base = scenes(count, seed + 10_000, objects)
    images = base.images[:, None] + 0.06 * torch.from_numpy(
        random.standard_normal((count, segments, 3, SIDE, SIDE), dtype=np.float32)
    )
    start = random.integers(0, segments - 1, count)
    stop = np.minimum(segments, start + random.integers(2, segments, count))
    inside = (np.arange(segments) >= start[:, None]) & (np.arange(segments) < stop[:, None])
    absent = np.array(
        [random.choice(sorted(set(range(6)) - set(row.tolist()))) for row in base.shapes.numpy()]
    )
    other = random.random((count, segments)) < 0.5
    kind = np.where(inside, base.timbre.numpy()[:, None], np.where(other, absent[:, None], 6))
    flat = kind.ravel()
    sounds = sound(np.where(flat == 6, 0, flat), random)
    sounds[flat == 6] = 0.12 * random.standard_normal(((flat == 6).sum(), TIME, MELS), dtype=np.float32)
    labels = torch.where(torch.from_numpy(inside), base.label[:, None], 6)
    masks = base.masks[:, None] & torch.from_numpy(inside)[:, :, None, None]
    shaped = torch.from_numpy(sounds).view(count, segments, 1, TIME, MELS)
    return Clips(images, shaped, labels, masks)
