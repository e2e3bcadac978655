"""The binding experiment of the reduced scale: two small encoders, pre-trained apart, must learn to work together.

Arms differ in one thing each (`ARMS`): what the guide is, which parts of the unit exist, which direction is on.
Every arm is run with both poolings, because the published code pools by a guided map that the paper's figure does
not show.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from companion import training
from companion.dgsct.model import DualGuidedEncoder, Encoded, PromptConfig
from companion.dgsct.towers import SmallTower, Tower, Upper
from companion.dgsct.world import MELS, SIDE, TIME, Scenes

WEIGHTS = Path(__file__).parent / "weights"
UNIT = PromptConfig(
    reduction=4, tokens=8, init="he"
)  # α 0.3, β 0.05 as published; r and M fit the small widths


@dataclass(frozen=True)
class Arm:
    """What a row of the table changes against DG-SCT."""

    title: str
    units: bool = True  # False: late fusion of the frozen encoders' features
    guide: str = "other"  # other, none (zeros) or shuffled (the next sample's features)
    config: PromptConfig = UNIT
    to_visual: bool = True
    to_audio: bool = True
    freeze: bool = True


ARMS: Mapping[str, Arm] = {
    "late-fusion": Arm("frozen encoders, late fusion", units=False),
    "fine-tuning": Arm("late fusion, both encoders fine-tuned", units=False, freeze=False),
    "unguided": Arm("the same units, guide = zeros", guide="none"),
    "shuffled": Arm("the same units, guide = another sample's", guide="shuffled"),
    "lavish": Arm("LAVISH-style: guided latent tokens, no attention", config=replace(UNIT, channel=False, spatial=False)),
    "dg-sct": Arm("DG-SCT"),
    "no-reweighting": Arm("α = β = 0: attention only pools", config=replace(UNIT, alpha=0.0, beta=0.0)),
    "no-channel": Arm("without channel attention", config=replace(UNIT, channel=False)),
    "no-spatial": Arm("without spatial attention", config=replace(UNIT, spatial=False)),
    "no-latent": Arm("without latent tokens", config=replace(UNIT, latent=False)),
    "to-visual": Arm("audio guides vision only", to_audio=False),
    "to-audio": Arm("vision guides audio only", to_visual=False),
}  # fmt: skip


def towers(pretrained: bool = True) -> tuple[SmallTower, SmallTower]:
    """The visual and the audio encoder: 64 tokens x 24, then 16 x 48; with the committed weights or random ones."""
    pair = SmallTower((SIDE, SIDE), 3, 4), SmallTower((TIME, MELS), 1, 4)
    if pretrained:
        for name, tower in zip(("visual", "audio"), pair, strict=True):
            tower.load_state_dict(load_file(WEIGHTS / f"{name}.safetensors"))
    return pair


def upper(pair: tuple[SmallTower, SmallTower], start: int = 1) -> tuple[Upper, Upper]:
    """The layers from `start` on of both towers: the ones that prompt each other."""
    return Upper(pair[0], start), Upper(pair[1], start)


def features(data: Scenes, pair: tuple[Upper, Upper]) -> Scenes:
    """`data` with images and sounds replaced by the frozen features below the prompted layers."""
    parts = [torch.cat([tower.lower(x) for x in whole.split(500)]) for tower, whole in
             zip(pair, (data.images, data.sounds), strict=True)]  # fmt: skip
    return replace(data, images=parts[0], sounds=parts[1])


class LateFusion(nn.Module):
    """The frozen towers as they are; pooled features by the mean or by a learned attention of each modality's own."""

    def __init__(self, visual: Tower, audio: Tower, freeze: bool = True) -> None:
        super().__init__()
        self.visual, self.audio, self.freeze = visual, audio, freeze
        self.score_visual, self.score_audio = (nn.Linear(t.shapes[-1][1], 1) for t in (visual, audio))
        for tower in (visual, audio):
            tower.requires_grad_(not freeze)

    def train(self, mode: bool = True) -> LateFusion:
        super().train(mode)
        if self.freeze:
            self.visual.eval(), self.audio.eval()
        return self

    def forward(
        self, images: Tensor, sounds: Tensor, guide: Any = "other", keep_maps: bool = False
    ) -> Encoded:
        v, a = self.visual(images), self.audio(sounds)
        pools = [torch.softmax(torch.tanh(score(x)).transpose(1, 2), -1)
                 for score, x in ((self.score_visual, v), (self.score_audio, a))]  # fmt: skip
        return Encoded(v, a, *pools, [])


class Binding(nn.Module):
    """Encoder (any arm) + pooling ("mean" or "map") + a fusion head that sees `[h_v, h_a, h_v ⊙ h_a]`."""

    def __init__(self, arm: Arm, pooling: str, pair: tuple[Tower, Tower], classes: int = 6) -> None:
        super().__init__()
        visual, audio = pair
        self.arm, self.pooling = arm, pooling
        if arm.units:
            self.encoder = DualGuidedEncoder(visual, audio, arm.config, to_visual=arm.to_visual, to_audio=arm.to_audio,
                                             freeze=arm.freeze)  # fmt: skip
        else:
            self.encoder = LateFusion(visual, audio, arm.freeze)
        self.from_visual, self.from_audio = (nn.Linear(t.shapes[-1][1], 64) for t in (visual, audio))
        self.head = nn.Sequential(nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, classes))

    def encode(self, images: Tensor, sounds: Tensor, guide: Any = None, keep_maps: bool = False) -> Encoded:
        guide = guide or self.arm.guide
        change: str | Callable = (lambda g: g.roll(1, 0)) if guide == "shuffled" else guide
        return self.encoder(images, sounds, guide=change, keep_maps=keep_maps)

    def forward(self, images: Tensor, sounds: Tensor, guide: Any = None) -> Tensor:
        v, a = self.encode(images, sounds, guide).pooled(self.pooling)
        v, a = F.relu(self.from_visual(v)), F.relu(self.from_audio(a))
        return self.head(torch.cat([v, a, v * a], -1))


def groups(model: nn.Module, lr: float) -> list[dict[str, Any]]:
    """Parameter groups: the scalar gates learn five times as fast, because they start at 0; encoders that are
    fine-tuned learn ten times more slowly, because they were trained before."""
    speed = {"gate": 5.0, "tower": 0.1, "rest": 1.0}
    found: dict[str, list[nn.Parameter]] = {kind: [] for kind in speed}
    for name, p in model.named_parameters():
        if p.requires_grad:
            inside = name.startswith(("encoder.visual.", "encoder.audio."))
            found["gate" if name.endswith("gate") else "tower" if inside else "rest"].append(p)
    return [{"params": ps, "lr": lr * speed[kind]} for kind, ps in found.items() if ps]


def prepared(arm: Arm, *parts: Scenes) -> tuple[tuple[Tower, Tower], list[Scenes]]:
    """The encoders of an arm and `parts` as these take them: frozen lower layers are computed once, for all steps."""
    if not arm.freeze:
        return towers(), list(parts)
    pair = upper(towers())
    return pair, [features(data, pair) for data in parts]


def fit(model: Binding, data: Scenes, seed: int, steps: int, lr: float = 3e-3, batch: int = 32,
        folder: Path | None = None) -> training.Fitted:  # fmt: skip
    """Train the units and the head on `data` (features of `upper` towers, or raw); Adam, cosine, last step kept."""
    index = training.epochs(len(data), batch, seed)
    labels = data.label

    def batches(k: int) -> tuple[Tensor, Tensor, Tensor]:
        at = index(k)
        return data.images[at], data.sounds[at], labels[at]

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(batch[0], batch[1]), batch[2])

    config = training.FitConfig(steps=steps, lr=lr, clip=0)
    return training.fit(model, loss, batches, config, parameters=groups(model, lr), folder=folder, cpu=True,
                        title=f"{model.arm.title}, {model.pooling}")  # fmt: skip


@torch.no_grad()
def evaluate(model: Binding, data: Scenes) -> dict[str, float]:
    """Accuracy [%], accuracy with the guide swapped at test only, and where the visual pooling map looks."""
    model.eval()
    labels = data.label
    right, swapped, mass, peak = 0, 0, 0.0, 0
    for at in torch.arange(len(data)).split(250):
        images, sounds = data.images[at], data.sounds[at]
        right += int((model(images, sounds).argmax(-1) == labels[at]).sum())
        swapped += int((model(images, sounds, guide="shuffled").argmax(-1) == labels[at]).sum())
        pool = model.encode(images, sounds).pool_visual.squeeze(1)
        side = int(pool.shape[-1] ** 0.5)
        quadrants = pool.view(-1, 2, side // 2, 2, side // 2).sum((2, 4)).flatten(1)
        mass += float(quadrants.gather(1, data.place[at, None]).sum())
        peak += int((quadrants.argmax(-1) == data.place[at]).sum())
    n = len(data)
    return {
        "accuracy": 100 * right / n,
        "swapped": 100 * swapped / n,
        "mass": 100 * mass / n,
        "peak": 100 * peak / n,
    }
