"""Pre-training of the two small encoders, each on its own modality; recorded once, weights committed.

The visual tower sees single objects and learns shape and colour; it never hears anything and never sees two
objects. The audio tower hears single sounds and learns the timbre; it never sees anything.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from companion import training
from companion.dgsct.binding import WEIGHTS, towers
from companion.dgsct.towers import SmallTower
from companion.dgsct.world import Scenes, scenes


class Uni(nn.Module):
    """One tower with one linear head per uni-modal label, on mean features."""

    def __init__(self, tower: SmallTower, classes: tuple[int, ...]) -> None:
        super().__init__()
        self.tower = tower
        self.heads = nn.ModuleList(nn.Linear(tower.shapes[-1][1], n) for n in classes)

    def forward(self, x: Tensor) -> list[Tensor]:
        pooled = self.tower(x).mean(1)
        return [head(pooled) for head in self.heads]


def build(modality: str) -> Uni:
    """A fresh tower of "visual" or "audio" with its heads: kind (and, seen, colour)."""
    if modality not in ("visual", "audio"):
        raise ValueError(f"modality is {modality!r}; choose visual or audio")
    visual, audio = towers(pretrained=False)
    return Uni(visual, (6, 6)) if modality == "visual" else Uni(audio, (6,))


def _view(data: Scenes, modality: str) -> tuple[Tensor, list[Tensor]]:
    return (data.images, [data.timbre, data.label]) if modality == "visual" else (data.sounds, [data.timbre])


def fit(
    model: Uni, modality: str, frames: int, steps: int, seed: int, batch: int = 64, lr: float = 2e-3
) -> training.Fitted:
    """Train on `frames` single-object frames or their sounds."""
    x, labels = _view(scenes(frames, seed, objects=1), modality)
    index = training.epochs(frames, batch, seed)

    def loss(model: nn.Module, part: tuple[Tensor, list[Tensor]]) -> Tensor:
        return sum(F.cross_entropy(out, y) for out, y in zip(model(part[0]), part[1], strict=True))

    def batches(k: int) -> tuple[Tensor, list[Tensor]]:
        at = index(k)
        return x[at], [y[at] for y in labels]

    config = training.FitConfig(steps=steps, lr=lr, warmup=min(60, steps // 4))
    return training.fit(model, loss, batches, config, cpu=True, title=f"pre-training, {modality}")


@torch.no_grad()
def evaluate(model: Uni, modality: str, seed: int, frames: int = 1000) -> dict[str, float]:
    """Accuracy in percent on fresh frames: `kind`, and `colour` where there is one (else None)."""
    x, labels = _view(scenes(frames, seed + 1_000_000, objects=1), modality)
    found = [
        100 * float((out.argmax(-1) == y).float().mean()) for out, y in zip(model(x), labels, strict=True)
    ]
    return {"kind": found[0], "colour": found[1] if len(found) > 1 else None}


def store(model: Uni, modality: str) -> None:
    """Write the tower's weights into the package."""
    WEIGHTS.mkdir(exist_ok=True)
    save_file(model.tower.state_dict(), WEIGHTS / f"{modality}.safetensors")
