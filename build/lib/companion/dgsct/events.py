"""Event localisation on the procedural clips: paired encoders, temporal attention, one label per segment."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from companion import training
from companion.dgsct import binding, metrics
from companion.dgsct.tasks import AVEHead, AVEOutput
from companion.dgsct.world import Clips, clips

ROWS = {"late-fusion": "late-fusion", "unguided": "unguided", "dg-sct": "dg-sct", "no-temporal": "dg-sct"}


class Localiser(nn.Module):
    """Encoder, pooling and the AVE head: images `[B, T, ...]`, sounds `[B, T, ...]` -> `AVEOutput`."""

    def __init__(self, encoder: nn.Module, head: AVEHead, pooling: str = "map", guide: str = "other",
                 background: int = 28) -> None:  # fmt: skip
        super().__init__()
        self.encoder, self.head, self.pooling, self.guide, self.background = (
            encoder,
            head,
            pooling,
            guide,
            background,
        )

    def forward(self, images: Tensor, sounds: Tensor) -> AVEOutput:
        b, t = images.shape[:2]
        v, a = self.encoder(images.flatten(0, 1), sounds.flatten(0, 1), guide=self.guide).pooled(self.pooling)
        return self.head(v.view(b, t, -1), a.view(b, t, -1))

    def loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return self.head.loss(
            self(batch[0], batch[1]), batch[2], background=self.background, as_published=False
        )

    def predict(self, images: Tensor, sounds: Tensor) -> Tensor:
        """Class per segment `[B, T]`."""
        out = self(images, sounds)
        return metrics.ave_predict(out.event, out.category, self.background)


def small(row: str) -> Localiser:
    """The reduced model of a row. Raises ValueError for an unknown row."""
    if row not in ROWS:
        raise ValueError(f"row is {row!r}; choose {', '.join(ROWS)}")
    arm, pair = binding.ARMS[ROWS[row]], binding.upper(binding.towers())
    encoder = binding.Binding(arm, "map", pair).encoder
    head = AVEHead(48, 48, 6, gamma=0.0 if row == "no-temporal" else 0.1, hidden=32)
    return Localiser(encoder, head, guide=arm.guide, background=6)


def small_data(count: int, seed: int) -> Clips:
    """Procedural clips with the frozen features below the prompted layers in place of frames and sounds."""
    raw, pair = clips(count, seed), binding.upper(binding.towers())
    parts = []
    for tower, whole in zip(pair, (raw.images, raw.sounds), strict=True):
        flat = torch.cat([tower.lower(x) for x in whole.flatten(0, 1).split(500)])
        parts.append(flat.view(*whole.shape[:2], *flat.shape[1:]))
    return Clips(parts[0], parts[1], raw.labels, raw.masks)


def fit(
    model: Localiser, source: Clips, seed: int, steps: int, lr: float, batch: int, folder: Path | None = None
) -> training.Fitted:
    """Adam, cosine, last step kept."""
    index = training.epochs(len(source.labels), batch, seed)

    def batches(k: int) -> tuple[Tensor, Tensor, Tensor]:
        at = index(k)
        return source.images[at], source.sounds[at], source.labels[at]

    config = training.FitConfig(steps=steps, lr=lr, clip=0)
    return training.fit(model, lambda m, part: m.loss(part), batches, config, parameters=binding.groups(model, lr),
                        folder=folder, cpu=True, title="event localisation")  # fmt: skip


@torch.no_grad()
def evaluate(model: Localiser, source: Clips) -> dict[str, float]:
    """Accuracy over all segments, over those inside events, and of event against background, in percent."""
    model.eval()
    found = torch.cat(
        [model.predict(i, s) for i, s in zip(source.images.split(50), source.sounds.split(50), strict=True)]
    )
    inside = source.labels != model.background
    return {"accuracy": metrics.accuracy(found, source.labels),
            "inside": metrics.accuracy(found[inside], source.labels[inside]),
            "event": metrics.accuracy(found != model.background, inside)}  # fmt: skip
