"""Pre-training of the small network on the styled glyphs; its weights are stored beside this file.

`omniglot` are the weights made with procedural strokes and Omniglot's characters (MIT licence), by the recorded run of
that name in the table "pretraining". `glyphs` were made with procedural strokes alone, by a run of which there is no
record; the recorded one is a second run of the same recipe, as good and not the same bit by bit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from tqdm import tqdm

from companion import records
from companion.gestur import nets, world
from companion.training import generator

WEIGHTS = Path(__file__).parent / "weights"
ALPHABET = 1000  # seed of the pre-training glyphs; tasks use small seeds
STROKES = 200  # procedural classes of the stored weights; real characters are counted on from there


def real_characters(held_out: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Omniglot's characters (292 labels), 16 drawers of each for training or the other 4. -> ([N, 1, 28, 28], [N])

    Raises companion.datasets.DataMissing where Omniglot is not there.
    """
    from companion.gestur import data

    ink, labels = data.omniglot()
    nth = torch.cat([torch.arange(n) for n in labels.bincount()])  # characters are stored drawer by drawer
    keep = (nth >= 16) == held_out
    return ink[keep], labels[keep]


def pretrain(
    classes: int, steps: int, batch: int, lr: float, size: int, seed: int, characters: bool = False
) -> tuple[nets.Backbone, torch.nn.Module, dict[str, Any]]:
    """Train a `SmallNet` to tell `classes` glyphs apart in all six styles, with `characters` also Omniglot's.

    Returns the backbone, its head and {"loss": [[step, value], ...], "accuracy": held-out accuracy in %, per style too,
    "characters": the same on drawings of other hands (None without)}.
    """
    glyphs = world.alphabet(classes, ALPHABET + seed)
    drawings = real_characters(held_out=False) if characters else None
    backbone = nets.small()
    head = torch.nn.Linear(backbone.width, classes + (int(drawings[1].max()) + 1 if drawings else 0))
    params = [*backbone.module.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(params, lr=lr, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    curve = []
    backbone.module.train()
    for k in tqdm(range(steps), desc="pre-training", unit="step", mininterval=5):
        x, y = world.pretraining_batch(glyphs, batch, size, k, seed, drawings=drawings)
        loss = F.cross_entropy(head(backbone.module(normal(x))), y, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (k + 1) % max(1, steps // 100) == 0:
            curve.append([k + 1, float(loss.detach())])
    backbone.module.eval()
    found = {"loss": curve, **accuracy(backbone, head, glyphs, size, seed), "characters": None}
    if characters:
        ink, labels = real_characters(held_out=True)
        found["characters"] = character_accuracy(backbone, head, ink, labels + classes, size, seed)
    return backbone, head, found


def normal(x: torch.Tensor) -> torch.Tensor:
    """The input scale of `protocol.Domain`."""
    return (x - 0.5) / 0.25


@torch.no_grad()
def accuracy(
    backbone: nets.Backbone, head: torch.nn.Module, glyphs: torch.Tensor, size: int, seed: int
) -> dict[str, float]:
    """Accuracy in % on fresh glyphs, per style and overall (key `accuracy`)."""
    found = {}
    for style in (*world.STYLES, *world.EXTRA):
        g = generator(seed, "held-out", style)
        labels = torch.randint(0, len(glyphs), (600,), generator=g)
        x = world.paint(world.draw(glyphs[labels], size, 0.07, g), torch.rand(600, generator=g), style, g)
        found[style] = 100 * float((head(backbone.module(normal(x))).argmax(1) == labels).float().mean())
    return {"accuracy": sum(found.values()) / len(found), **found}


@torch.no_grad()
def character_accuracy(backbone: nets.Backbone, head: torch.nn.Module, ink: torch.Tensor, labels: torch.Tensor, size: int,
                       seed: int) -> float:  # fmt: skip
    """Accuracy in % on the given drawings, each in one of the six styles. ink: [N, 1, H, W], labels: [N]"""
    g = generator(seed, "held-out", "characters")
    order = torch.randperm(len(labels), generator=g)
    right = 0
    for part, style in zip(order.tensor_split(6), (*world.STYLES, *world.EXTRA), strict=True):
        x = world.paint(world.shake(ink[part], size, g), torch.rand(len(part), generator=g), style, g)
        right += int((head(backbone.module(normal(x))).argmax(1) == labels[part]).sum())
    return 100 * right / len(labels)


def save(backbone: nets.Backbone, head: torch.nn.Module | None, name: str, folder: Path = WEIGHTS) -> Path:
    """Store the featurizer (and the head) as safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"featurizer.{k}": v.contiguous() for k, v in backbone.module.state_dict().items()}
    tensors |= {f"head.{k}": v.detach().contiguous() for k, v in head.state_dict().items()} if head else {}
    save_file(tensors, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


def stored_fingerprint(tensors: dict[str, torch.Tensor]) -> str:
    """Fingerprint of weights by name, to compare a run's with the stored ones."""
    return records.fingerprint({k: tensors[k] for k in sorted(tensors)})


def load(name: str = "glyphs", folder: Path = WEIGHTS) -> tuple[nets.Backbone, dict[str, torch.Tensor]]:
    """The pre-trained backbone and the pre-training head's tensors. Raises ValueError when there is none of that name."""
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in folder.glob("*.safetensors"))) or "none"
        raise ValueError(f"no pre-trained weights {name!r}; there are: {there}")
    tensors = load_file(path)
    backbone = nets.small()
    backbone.module.load_state_dict(
        {k.removeprefix("featurizer."): v for k, v in tensors.items() if k.startswith("featurizer.")}
    )
    backbone.module.eval()
    return backbone, {k.removeprefix("head."): v for k, v in tensors.items() if k.startswith("head.")}


@torch.no_grad()
def old_accuracy(
    featurizer: torch.nn.Module, head: dict[str, torch.Tensor], size: int, seed: int = 0, n: int = 400
) -> float:
    """Accuracy in % of `featurizer` with the pre-training head on fresh procedural pre-training images: what is not
    forgotten."""
    featurizer.eval()
    x, y = pretraining_images(min(STROKES, len(head["weight"])), size, seed, n)
    out = F.linear(featurizer(normal(x)), head["weight"], head["bias"])
    return 100 * float((out.argmax(1) == y).float().mean())


def pretraining_images(classes: int, size: int, seed: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`n` images of the pre-training task that no training batch has."""
    return world.pretraining_batch(world.alphabet(classes, ALPHABET + seed), n, size, -1, seed)
