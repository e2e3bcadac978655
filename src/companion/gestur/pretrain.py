"""Pre-training of the small network on the styled glyphs; its weights are stored beside this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from tqdm import tqdm

from companion.gestur import nets, world
from companion.training import generator

WEIGHTS = Path(__file__).parent / "weights"
ALPHABET = 1000  # seed of the pre-training glyphs; tasks use small seeds


def pretrain(
    classes: int, steps: int, batch: int, lr: float, size: int, seed: int
) -> tuple[nets.Backbone, torch.nn.Module, dict[str, Any]]:
    """Train a `SmallNet` to tell `classes` glyphs apart in all six styles.

    Returns the backbone, its head and {"loss": [[step, value], ...], "accuracy": held-out accuracy in %, per style too}.
    """
    glyphs = world.alphabet(classes, ALPHABET + seed)
    backbone = nets.small()
    head = torch.nn.Linear(backbone.width, classes)
    params = [*backbone.module.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(params, lr=lr, weight_decay=1e-4, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    curve = []
    backbone.module.train()
    for k in tqdm(range(steps), desc="pre-training", unit="step", mininterval=5):
        x, y = world.pretraining_batch(glyphs, batch, size, k, seed)
        loss = F.cross_entropy(head(backbone.module(normal(x))), y, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if (k + 1) % max(1, steps // 100) == 0:
            curve.append([k + 1, float(loss.detach())])
    backbone.module.eval()
    return backbone, head, {"loss": curve, **accuracy(backbone, head, glyphs, size, seed)}


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


def save(backbone: nets.Backbone, head: torch.nn.Module | None, name: str, folder: Path = WEIGHTS) -> Path:
    """Store the featurizer (and the head) as safetensors."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"featurizer.{k}": v.contiguous() for k, v in backbone.module.state_dict().items()}
    tensors |= {f"head.{k}": v.detach().contiguous() for k, v in head.state_dict().items()} if head else {}
    save_file(tensors, folder / f"{name}.safetensors")
    return folder / f"{name}.safetensors"


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
    """Accuracy in % of `featurizer` with the pre-training head on fresh pre-training images: what is not forgotten."""
    featurizer.eval()
    x, y = pretraining_images(len(head["weight"]), size, seed, n)
    out = F.linear(featurizer(normal(x)), head["weight"], head["bias"])
    return 100 * float((out.argmax(1) == y).float().mean())


def pretraining_images(classes: int, size: int, seed: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`n` images of the pre-training task that no training batch has."""
    return world.pretraining_batch(world.alphabet(classes, ALPHABET + seed), n, size, -1, seed)
