"""Event localisation end to end: paired encoders, temporal attention, one label per second.

The same `Localiser` runs on the procedural clips (reduced) and on AVE's videos (full).
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from companion import datasets, training
from companion.dgsct import binding, data, metrics
from companion.dgsct.audio import LogMel, read_clip, repeat_to
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


# --- AVE at full size --------------------------------------------------------------------------------


class AVEVideos:
    """AVE's own files below COMPANION_DATA: `av/annotations/AVE/*` and `av/AVE/<video>.mp4`.

    Raises DataMissing where they are not there.
    """

    def __init__(self, split: str) -> None:
        notes = datasets.find("av/annotations/AVE/Annotations.txt")
        self.videos = datasets.find("av/AVE")
        self.events = data.read_ave_split(notes, notes.with_name(f"{split}_order.h5"))
        self.logmel = LogMel()

    def __len__(self) -> int:
        return len(self.events)

    def item(self, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Frames `[10, 3, 192, 192]`, log-mels `[10, 1, 1001, 64]`, labels `[10]` of one video."""
        event = self.events[k]
        clip = read_clip(self.videos / f"{event.video}.mp4", allow_short=True)
        frames = nn.functional.interpolate(
            clip.frames.float() / 255, (192, 192), mode="bicubic", antialias=True
        )
        mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        mel = self.logmel(repeat_to(clip.sounds, 320_000))
        return (frames - mean) / std, mel, torch.from_numpy(event.segments())

    def batch(self, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Several videos, stacked."""
        return tuple(torch.stack(parts) for parts in zip(*(self.item(int(k)) for k in at), strict=True))


def run_full(task: str, variant: str, epochs: int = 50, batch: int = 8, lr: float = 5e-4, seed: int = 43,
             visual: str = "microsoft/swinv2-large-patch4-window12-192-22k",
             audio: str = "laion/clap-htsat-unfused") -> tuple[dict[str, float], training.Fitted]:  # fmt: skip
    """Train the full-size AVE model on AVE's videos; the epoch is chosen on the validation split.

    Raises ValueError for tasks whose full-size loop does not exist yet, DataMissing where videos are missing.
    """
    if task != "ave":
        raise ValueError(
            f"the full-size training of {task!r} is not written yet; its model is costed by --dry-run"
        )
    train, val, test = (AVEVideos(split) for split in ("train", "val", "test"))
    from companion.dgsct.cost import build
    from companion.dgsct.towers import htsat_tower, swinv2_tower

    encoder, head = build(task, variant)
    for tower, found in ((encoder.visual, swinv2_tower(visual)), (encoder.audio, htsat_tower(audio))):
        tower.load_state_dict(found.state_dict())
    model = Localiser(encoder, head)
    index = training.epochs(len(train), batch, seed)
    per_epoch = len(train) // batch

    def score(model: Localiser, source: AVEVideos) -> float:
        device = next(model.parameters()).device
        right = total = 0
        for k in range(len(source)):
            images, sounds, labels = (x[None].to(device) for x in source.item(k))
            right += int((model.predict(images, sounds) == labels).sum())
            total += labels.numel()
        return 100 * right / total

    best = {"val": -1.0, "test": -1.0}

    def assess(model: Localiser) -> dict[str, float]:
        val_accuracy = score(model, val)
        if val_accuracy > best["val"]:
            best.update(val=val_accuracy, test=score(model, test))
        return {"val": val_accuracy}

    folder = training.cache_folder("dgsct-ave", task, variant, epochs, batch, lr, seed, visual, audio)
    config = training.FitConfig(steps=epochs * per_epoch, lr=lr, clip=0, precision="bf16", evaluate_every=per_epoch,
                                save_every=per_epoch)  # fmt: skip
    fitted = training.fit(model, lambda m, part: m.loss(part), lambda k: train.batch(index(k)), config, evaluate=assess,
                          folder=folder, title=f"AVE, {variant}")  # fmt: skip
    return {"accuracy": best["test"], "validation": best["val"]}, fitted
