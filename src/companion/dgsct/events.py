"""Event localisation on the procedural clips: paired encoders, temporal attention, one label per segment."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from companion import training
from companion.dgsct import binding, metrics
from companion.dgsct.model import Encoded
from companion.dgsct.tasks import AVEHead, AVEOutput
from companion.dgsct.world import Clips, clips

# row -> arm of the binding experiment
ROWS = {"late-fusion": "late-fusion", "told": "late-fusion", "unguided": "unguided", "dg-sct": "dg-sct",
        "no-temporal": "dg-sct", "short": "dg-sct"}  # fmt: skip


class Localiser(nn.Module):
    """Encoder, pooling and the AVE head: images `[B, T, ...]`, sounds `[B, T, ...]` -> `AVEOutput`.

    With `told` vision is pooled over the quadrant of the object that sounds, which nobody knows outside an experiment: it
    shows what head and loss can do once the map is right.
    """

    def __init__(self, encoder: nn.Module, head: AVEHead, pooling: str = "map", guide: str = "other",
                 background: int = 28, told: bool = False) -> None:  # fmt: skip
        super().__init__()
        self.encoder, self.head, self.told = encoder, head, told
        self.pooling, self.guide, self.background = pooling, guide, background

    def encode(self, images: Tensor, sounds: Tensor) -> Encoded:
        """All segments of all clips as one batch of frames."""
        return self.encoder(images.flatten(0, 1), sounds.flatten(0, 1), guide=self.guide)

    def forward(self, images: Tensor, sounds: Tensor, where: Tensor | None = None) -> AVEOutput:
        """`where [B, T, 4]`, read only with `told`: the quadrant that sounds, none where nothing visible does."""
        b, t = images.shape[:2]
        out = self.encode(images, sounds)
        v, a = out.pooled(self.pooling)
        if self.told:
            share = where.flatten(0, 1).float()
            share = torch.where(share.sum(1, keepdim=True) > 0, share, torch.full_like(share, 0.25))
            half = int(out.visual.shape[1] ** 0.5) // 2
            cells = share.view(-1, 2, 1, 2, 1).expand(-1, 2, half, 2, half).flatten(1) / half**2
            v = (cells[:, None] @ out.visual).squeeze(1)
        return self.head(v.view(b, t, -1), a.view(b, t, -1))

    def loss(self, batch: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        images, sounds, where, labels = batch
        return self.head.loss(
            self(images, sounds, where), labels, background=self.background, as_published=False
        )

    def predict(self, images: Tensor, sounds: Tensor, where: Tensor | None = None) -> Tensor:
        """Class per segment `[B, T]`."""
        out = self(images, sounds, where)
        return metrics.ave_predict(out.event, out.category, self.background)


def small(row: str) -> Localiser:
    """The reduced model of a row. Raises ValueError for an unknown row."""
    if row not in ROWS:
        raise ValueError(f"row is {row!r}; choose {', '.join(ROWS)}")
    arm, pair = binding.ARMS[ROWS[row]], binding.upper(binding.towers())
    encoder = binding.Binding(arm, "map", pair).encoder
    head = AVEHead(48, 48, 6, gamma=0.0 if row == "no-temporal" else 0.1, hidden=32)
    return Localiser(encoder, head, guide=arm.guide, background=6, told=row == "told")


def quadrants(source: Clips) -> Tensor:
    """Which quadrant holds the object that sounds, `[V, T, 4]` (bool; none where nothing visible sounds)."""
    side = source.masks.shape[-1] // 2
    return source.masks.unflatten(-1, (2, side)).unflatten(-3, (2, side)).any(-1).any(-2).flatten(-2)


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
    index, where = training.epochs(len(source.labels), batch, seed), quadrants(source)

    def batches(k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        at = index(k)
        return source.images[at], source.sounds[at], where[at], source.labels[at]

    config = training.FitConfig(steps=steps, lr=lr, clip=0)
    return training.fit(model, lambda m, part: m.loss(part), batches, config, parameters=binding.groups(model, lr),
                        folder=folder, cpu=True, title="event localisation")  # fmt: skip


@torch.no_grad()
def evaluate(model: Localiser, source: Clips) -> dict[str, float]:
    """In percent: accuracy over all segments, over those inside events, and of event against background; inside events
    also how much of the visual map lies in the quadrant that sounds (`mass`) and how often its largest part (`peak`)."""
    model.eval()
    where, found, mass, peak = quadrants(source), [], [], []
    for at in torch.arange(len(source.labels)).split(50):
        images, sounds, place = source.images[at], source.sounds[at], where[at].flatten(0, 1)
        found.append(model.predict(images, sounds, where[at]))
        pool = model.encode(images, sounds).pool_visual.squeeze(1)
        half = int(pool.shape[-1] ** 0.5) // 2
        share = pool.view(-1, 2, half, 2, half).sum((2, 4)).flatten(1)
        event = place.any(1)
        mass.append(share[place])
        peak.append(share.argmax(1)[event] == place.int().argmax(1)[event])
    said, inside = torch.cat(found), source.labels != model.background
    return {"accuracy": metrics.accuracy(said, source.labels),
            "inside": metrics.accuracy(said[inside], source.labels[inside]),
            "event": metrics.accuracy(said != model.background, inside),
            "mass": 100 * float(torch.cat(mass).mean()),
            "peak": 100 * float(torch.cat(peak).float().mean())}  # fmt: skip
