"""Audio-visual digits: the binding task on real sounds and real handwriting.

Three different handwritten digits (scikit-learn's, 8 x 8, twice as large) in three of four quadrants, each inked in its
own colour; one of them is spoken (Free Spoken Digit Dataset, six speakers). The label is the colour of the spoken
digit: the image alone allows 1/3, the recording alone 1/6. Recordings 0-4 of every speaker and digit are kept for testing, as the
data set asks, and so is a fifth of the handwriting.
"""

from __future__ import annotations

import io
import tarfile
import wave
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion import datasets, training
from companion.dgsct.audio import LogMel
from companion.dgsct.binding import Upper, features
from companion.dgsct.towers import SmallTower
from companion.dgsct.world import _RGB, MELS, QUADRANT, SIDE, TIME, Scenes

ARCHIVE = "av/fsdd.tar.xz"
RATE = 8000


@dataclass(frozen=True)
class Spoken:
    """Recordings as log-mel images `[N, 1, 64, 16]` (scaled to about unit size) with digit and speaker."""

    sounds: Tensor
    digit: Tensor
    speaker: tuple[str, ...]
    test: Tensor  # index below 5


def read_spoken(archive: Path | str) -> Spoken:
    """The archive's `recordings/{digit}_{speaker}_{index}.wav`; a recording is cut or padded to 1.02 s.

    Raises ValueError for a recording that is not 8 kHz mono 16-bit, or an archive without recordings.
    """
    logmel = LogMel(RATE, 256, 128, MELS, 60.0, 3800.0)
    need, found = 128 * (TIME - 1), []
    with tarfile.open(archive) as box:
        for member in box:  # in the archive's own order: going back would unpack it from the start each time
            if not member.name.endswith(".wav"):
                continue
            with wave.open(io.BytesIO(box.extractfile(member).read())) as file:
                kind = (file.getframerate(), file.getnchannels(), file.getsampwidth())
                if kind != (RATE, 1, 2):
                    raise ValueError(f"{member.name} is {kind[0]} Hz with {kind[1]} channels of {8 * kind[2]} bits; "
                                     f"{RATE} Hz mono 16-bit is expected")  # fmt: skip
                sound = np.frombuffer(file.readframes(file.getnframes()), "<i2").astype(np.float32) / 2**15
            sound = sound / max(1e-4, float(np.abs(sound).max()))
            digit, speaker, index = Path(member.name).stem.split("_")
            found.append(
                (np.pad(sound[:need], (0, max(0, need - len(sound)))), int(digit), speaker, int(index))
            )
    if not found:
        raise ValueError(f"{Path(archive).name} holds no .wav recordings")
    sounds, digit, speaker, index = zip(*sorted(found, key=lambda x: x[1:]), strict=True)
    with torch.no_grad():
        image = logmel(torch.from_numpy(np.stack(sounds)))
    return Spoken((image.clamp_min(-60) + 60) / 40, torch.tensor(digit), speaker, torch.tensor(index) < 5)


@lru_cache(maxsize=1)
def spoken() -> Spoken:
    """`read_spoken` of the archive below COMPANION_DATA. Raises DataMissing where it is not there."""
    return read_spoken(datasets.find(ARCHIVE))


@lru_cache(maxsize=1)
def written() -> tuple[Tensor, Tensor, Tensor]:
    """Handwriting `[N, 16, 16]` in [0, 1], digits, and which belong to the test fifth."""
    from sklearn.datasets import load_digits

    found = load_digits()
    ink = torch.from_numpy(found.images / 16).float()[:, None]
    large = F.interpolate(ink, (QUADRANT, QUADRANT), mode="bilinear")[:, 0]
    return large, torch.from_numpy(found.target).long(), torch.arange(len(ink)) % 5 == 0


def scenes(count: int, seed: int, test: bool, objects: int = 3, voice: Spoken | None = None) -> Scenes:
    """`count` frames with their recordings; `shapes` and `timbre` are digits 0-9."""
    voice = voice or spoken()
    ink, target, held = written()
    random = np.random.default_rng([seed, count, objects, test])
    hands = [np.flatnonzero((target.numpy() == d) & (held.numpy() == test)) for d in range(10)]
    voices = [np.flatnonzero((voice.digit.numpy() == d) & (voice.test.numpy() == test)) for d in range(10)]
    if short := [d for d in range(10) if not len(voices[d])]:
        raise ValueError(f"digit {short[0]} has no recording in the {'test' if test else 'training'} part")
    digit = random.random((count, 10)).argsort(1)[:, :objects]
    colour = random.random((count, 6)).argsort(1)[:, :objects]
    place = random.random((count, 4)).argsort(1)[:, :objects]
    images = 0.05 * random.standard_normal((count, 3, SIDE, SIDE), dtype=np.float32)
    where, colours = np.full((count, 4), -1), np.full((count, 4), -1)
    masks = np.zeros((count, SIDE, SIDE), bool)
    for k in range(objects):
        for n in range(count):
            y, x = place[n, k] // 2 * QUADRANT, place[n, k] % 2 * QUADRANT
            drawn = ink[random.choice(hands[digit[n, k]])].numpy()
            images[n, :, y : y + QUADRANT, x : x + QUADRANT] += _RGB[colour[n, k]][:, None, None] * drawn
            if k == 0:
                masks[n, y : y + QUADRANT, x : x + QUADRANT] = drawn > 0.3
        where[np.arange(count), place[:, k]] = digit[:, k]
        colours[np.arange(count), place[:, k]] = colour[:, k]
    heard = torch.tensor([random.choice(voices[d]) for d in digit[:, 0]])
    arrays = (
        torch.from_numpy(np.ascontiguousarray(x)) for x in (where, colours, digit[:, 0], place[:, 0], masks)
    )
    return Scenes(torch.from_numpy(images), voice.sounds[heard], *arrays)


class Uni(nn.Module):
    """One tower with a linear head per label: digit (and, seen, colour)."""

    def __init__(self, modality: str) -> None:
        super().__init__()
        if modality not in ("visual", "audio"):
            raise ValueError(f"modality is {modality!r}; choose visual or audio")
        self.tower = (
            SmallTower((SIDE, SIDE), 3, 4) if modality == "visual" else SmallTower((TIME, MELS), 1, 4)
        )
        classes = (10, 6) if modality == "visual" else (10,)
        self.heads = nn.ModuleList(nn.Linear(48, n) for n in classes)

    def forward(self, x: Tensor) -> list[Tensor]:
        pooled = self.tower(x).mean(1)
        return [head(pooled) for head in self.heads]


def pretrain(
    modality: str, steps: int, seed: int, folder: Path | None = None
) -> tuple[SmallTower, dict[str, float]]:
    """A tower that saw single digits (or heard single recordings) only, and its test accuracies in percent."""
    model = Uni(modality)
    data, fresh = scenes(6000, seed, False, objects=1), scenes(1000, seed + 1, True, objects=1)

    def view(part: Scenes) -> tuple[Tensor, list[Tensor]]:
        return (
            (part.images, [part.timbre, part.label]) if modality == "visual" else (part.sounds, [part.timbre])
        )

    x, labels = view(data)
    index = training.epochs(len(x), 64, seed)
    config = training.FitConfig(steps=steps, lr=2e-3, warmup=min(60, steps // 4))
    training.fit(
        model,
        lambda m, part: sum(F.cross_entropy(o, y) for o, y in zip(m(part[0]), part[1], strict=True)),
        lambda k: (x[index(k)], [y[index(k)] for y in labels]),
        config, folder=folder, cpu=True, title=f"digits, {modality} encoder")  # fmt: skip
    x, labels = view(fresh)
    with torch.no_grad():
        right = [float((o.argmax(-1) == y).float().mean()) for o, y in zip(model(x), labels, strict=True)]
    names = ("digit", "colour")
    return model.tower, {f"{modality}-{n}": 100 * r for n, r in zip(names, right, strict=False)}


def prepared(pair: tuple[SmallTower, SmallTower], *parts: Scenes) -> tuple[tuple[Upper, Upper], list[Scenes]]:
    """The upper layers of two pre-trained towers, and `parts` with the frozen features below them."""
    upper = Upper(pair[0], 1), Upper(pair[1], 1)
    return upper, [features(part, upper) for part in parts]
