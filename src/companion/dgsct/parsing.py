"""The paper's other tasks on the procedural world: parsing, masks, questions, few shots, unseen classes.

A clip shows three objects of different shape and colour, each in a quadrant of its own; one or two of them sound, each during
an interval, and a shape that is not in view may be heard as well. Heads, losses and metrics are the full-size ones, only narrower.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from companion import training
from companion.dgsct import binding, metrics
from companion.dgsct.masks import AVSHead
from companion.dgsct.model import DualGuidedEncoder
from companion.dgsct.prompts import FewShotHead
from companion.dgsct.tasks import AVQAHead, AVVPHead
from companion.dgsct.world import _RGB, COLOURS, MELS, QUADRANT, SHAPES, SIDE, TIME, draw, sound

TASKS = ("avvp", "avs-s4", "avs-ms3", "avqa", "avqa-colour", "avqa-colour-map", "few-shot", "zero-shot")
ROWS = ("late-fusion", "unguided", "dg-sct")
SEGMENTS = 3
HEADLINE = {"avvp": "segment-Type", "avs-s4": "m_j", "avs-ms3": "m_j", "avqa": "Avg",
            "avqa-colour": "Avg", "avqa-colour-map": "Avg", "few-shot": "accuracy",
            "zero-shot": "accuracy"}  # fmt: skip
# (colour, shape) pairs that few- and zero-shot classes are made of; in zero-shot the last half is never trained on: three
# colours of each shape, so that the sound, which tells the shape, does not tell the pair
PAIRS = [(c, s) for odd in (1, 0) for s in range(6) for c in range(6) if (c + s) % 2 == odd]
HELD_OUT = len(PAIRS) // 2


@dataclass(frozen=True)
class World:
    """V clips of T segments. `visible`, `audible`: which of six kinds are seen and heard, `[V, 6, T]`."""

    images: Tensor  # [V, T, 3, 32, 32]
    sounds: Tensor  # [V, T, 1, 64, 16]
    visible: Tensor
    audible: Tensor
    masks: Tensor  # [V, T, 32, 32], pixels of objects that are seen and heard
    shapes: Tensor  # [V, 4] kind by quadrant, -1 where empty
    colours: Tensor  # [V, 4]
    source: Tensor  # [V] quadrant of the first object that sounds

    def __len__(self) -> int:
        return len(self.images)

    @property
    def classes(self) -> Tensor:
        """Number in `PAIRS` of the first sounding object's (colour, shape) `[V]`."""
        number = {pair: k for k, pair in enumerate(PAIRS)}
        at = self.source[:, None]
        pairs = torch.cat([self.colours.gather(1, at), self.shapes.gather(1, at)], 1)
        return torch.tensor([number[tuple(p)] for p in pairs.tolist()])


def clips(count: int, seed: int, sources: int = 1, always: bool = False, off_screen: float = 0.5) -> World:
    """Clips in which `sources` of three objects sound.

    Args:
        always: objects sound in all segments and nothing else is heard (masks, few shots), else in intervals.
        off_screen: how often a shape that is not in view is heard in some segment (without `always`).
    """
    if sources not in (1, 2):
        raise ValueError(f"sources is {sources}; choose 1 or 2 of the three objects")
    random = np.random.default_rng([seed, sources, always, 5])
    kinds = random.random((count, 6)).argsort(1)
    colour = random.random((count, 6)).argsort(1)[:, :3]
    place = random.random((count, 4)).argsort(1)[:, :3]
    t = SEGMENTS
    heard = np.zeros((count, 6, t), bool)
    seen = np.zeros((count, 6, t), bool)
    rows = np.arange(count)
    for k in range(3):
        seen[rows, kinds[:, k]] = True
        if k < sources:
            start = np.zeros(count, int) if always else random.integers(0, t, count)
            stop = np.full(count, t) if always else start + 1 + random.integers(0, t, count)
            inside = (np.arange(t) >= start[:, None]) & (np.arange(t) < stop[:, None])
            heard[rows, kinds[:, k]] = inside
    if not always:
        heard[rows, kinds[:, 3], random.integers(0, t, count)] |= random.random(count) < off_screen
    drawn = draw(kinds[:, :3].ravel(), random).reshape(count, 3, QUADRANT, QUADRANT)
    still = np.zeros((count, 3, SIDE, SIDE), np.float32)
    masks = np.zeros((count, t, SIDE, SIDE), bool)
    where, colours = np.full((count, 4), -1), np.full((count, 4), -1)
    for k in range(3):
        paint = _RGB[colour[:, k]] * random.uniform(0.75, 1, (count, 1))
        for n in range(count):
            y, x = place[n, k] // 2 * QUADRANT, place[n, k] % 2 * QUADRANT
            still[n, :, y : y + QUADRANT, x : x + QUADRANT] = np.where(
                drawn[n, k], paint[n][:, None, None], 0
            )
            on = heard[n, kinds[n, k]]
            masks[n, :, y : y + QUADRANT, x : x + QUADRANT] = on[:, None, None] & drawn[n, k]
        where[rows, place[:, k]], colours[rows, place[:, k]] = kinds[:, k], colour[:, k]
    images = still[:, None] + 0.08 * random.standard_normal((count, t, 3, SIDE, SIDE), dtype=np.float32)
    sounds = 0.12 * random.standard_normal((count, t, TIME, MELS), dtype=np.float32)
    for kind in range(6):
        at = np.argwhere(heard[:, kind])
        if len(at):
            sounds[at[:, 0], at[:, 1]] += sound(np.full(len(at), kind), random)
    arrays = (images, sounds[:, :, None], seen, heard, masks, where, colours, place[:, 0])
    return World(*(torch.from_numpy(np.ascontiguousarray(x)) for x in arrays))


# --- questions ---------------------------------------------------------------------------------------

WORDS = [
    "<pad>",
    "how",
    "many",
    "heard",
    "seen",
    "what",
    "colour",
    "sounds",
    "is",
    "the",
    "left",
    "visible",
    *SHAPES,
]
ANSWERS = ["zero", "one", "two", "three", "yes", "no", *COLOURS]
QUESTIONS = (("Audio", "Counting", "how many heard"), ("Audio", "Existential", "is the {} heard"),
             ("Visual", "Location", "is the {} left"), ("Visual", "Existential", "is the {} visible"),
             ("Audio-Visual", "Location", "is what sounds left"), ("Audio-Visual", "Attribute", "what colour sounds"))  # fmt: skip


def questions(
    data: World, seed: int, choice: tuple[tuple[str, str, str], ...] = QUESTIONS
) -> tuple[Tensor, Tensor, list[tuple[str, str]]]:
    """One question of `choice` per clip: word numbers `[V, 5]`, answer numbers `[V]`, (modality, type) of each."""
    random = np.random.default_rng([seed, 6])
    words, answers, kinds = [], [], []
    for n in range(len(data)):
        modality, kind, text = choice[random.integers(len(choice))]
        shape = int(random.integers(6))
        quadrant = data.shapes[n].tolist().index(shape) if shape in data.shapes[n] else -1
        heard = data.audible[n].any(1)
        place = int(data.source[n])
        answer = {
            "how many heard": ANSWERS[int(heard.sum())],
            "is the {} heard": "yes" if heard[shape] else "no",
            "is the {} left": "yes" if quadrant in (0, 2) else "no",
            "is the {} visible": "yes" if quadrant >= 0 else "no",
            "is what sounds left": "yes" if place in (0, 2) else "no",
            "what colour sounds": COLOURS[int(data.colours[n, place])],
        }[text]
        numbers = [WORDS.index(w) for w in text.format(SHAPES[shape]).split()]
        words.append(numbers + [0] * (5 - len(numbers)))
        answers.append(ANSWERS.index(answer))
        kinds.append((modality, kind))
    return torch.tensor(words), torch.tensor(answers), kinds


# --- models ------------------------------------------------------------------------------------------


class PairHead(nn.Module):
    """Class names as classifiers for the small world: "colour shape", two fixed random word vectors added.

    The trained parts are those of the few-shot task (context, adapters, contrast), the projections stand in for CLIP's and CLAP's.
    """

    def __init__(self, width: int = 48, joint: int = 32) -> None:
        super().__init__()
        words = torch.randn(12, joint, generator=torch.Generator().manual_seed(7)) / joint**0.5
        self.register_buffer("words", words)
        self.see, self.hear = nn.Linear(width, joint), nn.Linear(width, joint)
        self.parts = FewShotHead(joint, joint)

    def forward(self, v: Tensor, a: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
        """`v, a [B, T, width]` -> logits `[B, len(pairs)]`."""
        names = torch.stack([self.words[c] + self.words[6 + s] for c, s in pairs]) + self.parts.context.mean(
            0
        )
        text = self.parts.adapted(names, self.parts.adapt_text)
        seen = self.parts.adapted(self.see(v).mean(1), self.parts.adapt_visual)
        heard = F.normalize(self.parts.contrast(self.hear(a)).mean(1), dim=-1)
        return 10 * (seen + heard) @ text.T


class Small(nn.Module):
    """Encoder of an arm with the head of a task; `loss(batch)`, `read(batch)`."""

    def __init__(self, task: str, row: str) -> None:
        super().__init__()
        if task not in TASKS or row not in ROWS:
            raise ValueError(
                f"{task!r} of {row!r} does not exist; tasks are {', '.join(TASKS)}, rows {', '.join(ROWS)}"
            )
        self.task, self.guide = task, binding.ARMS[row].guide
        shots = task in ("few-shot", "zero-shot")
        config = replace(binding.UNIT, gamma=0.05) if shots else binding.UNIT
        whole = task.startswith("avs")  # masks need both stages
        pair = binding.towers() if whole else binding.upper(binding.towers())
        units = binding.ARMS[row].units
        self.encoder = DualGuidedEncoder(*pair, config, order="after" if shots else "published", to_visual=units,
                                         to_audio=units)  # fmt: skip
        heads = {
            "avvp": lambda: AVVPHead(48, 48, 48, classes=6, width=32, segments=SEGMENTS),
            "avqa": lambda: AVQAHead(len(WORDS), len(ANSWERS), 48, 48),
        }
        masks = lambda: AVSHead((24, 48), 48, hidden=32, sound=16, grids=(8, 4), segments=SEGMENTS)  # noqa: E731
        self.head = PairHead() if shots else heads.get(task.partition("-colour")[0], masks)()

    def _features(self, batch: Mapping[str, Any], **keep: bool) -> Any:
        images, sounds = batch["images"], batch["sounds"]
        return self.encoder(images.flatten(0, 1), sounds.flatten(0, 1), guide=self.guide, **keep)

    def _pooled(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        v, a = self._features(batch).pooled("map")
        return v.view(-1, SEGMENTS, v.shape[-1]), a.view(-1, SEGMENTS, a.shape[-1])

    def outputs(self, batch: Mapping[str, Any]) -> Any:
        """What the task's head says."""
        if self.task == "avvp":
            # in place of the motion features of LLP's release: the frame's features below the prompted layers
            return self.head(*self._pooled(batch), batch["images"].mean(2))
        if self.task.startswith("avqa"):
            out = self._features(batch)
            v = out.visual
            if self.task == "avqa-colour-map":
                # tokens weighted by the guided map, mean weight 1: all that the published head reads of a frame goes through it
                v = v * v.shape[1] * out.pool_visual.transpose(1, 2)
            v = v.view(-1, SEGMENTS, *v.shape[1:])
            return self.head(v, out.pooled("map")[1].view(len(v), SEGMENTS, -1), batch["question"])
        if self.task.startswith("avs"):
            out = self._features(batch, keep_stages=True)
            return self.head(out.stages, out.pooled("map")[1])
        return self.head(*self._pooled(batch), batch["pairs"])

    def loss(self, batch: Mapping[str, Any]) -> Tensor:
        out = self.outputs(batch)
        if self.task == "avvp":
            weak = (batch["visible"] | batch["audible"]).any(-1).float()
            return self.head.loss(out, weak)
        if self.task.startswith("avqa"):
            # without the matching term: another clip's frames may well hold the shape that sounds
            return F.cross_entropy(out[0], batch["answer"])
        if self.task == "avs-s4":
            return self.head.loss(out, batch["masks"][:, 0], first_only=True)
        if self.task == "avs-ms3":
            return self.head.loss(out, batch["masks"].flatten(0, 1), match=0.5 / len(batch["masks"]))
        return F.cross_entropy(out, batch["class"])


@dataclass(frozen=True)
class Source:
    """A set for one task: tensors by name, and the questions' kinds."""

    tensors: Mapping[str, Tensor]
    pairs: tuple[tuple[int, int], ...] = ()
    kinds: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.tensors["images"])

    def batch(self, at: Tensor) -> dict[str, Any]:
        return {k: v[at] for k, v in self.tensors.items()} | {"pairs": list(self.pairs)}


def source(task: str, count: int, seed: int, shots: int = 0, held_out: bool = False) -> Source:
    """Clips of a task with the frozen features below the prompted layers where the task prompts only the upper ones.

    Args:
        task: as in `TASKS`. "avqa-colour" asks one kind of question, what colour sounds, of clips in which the object sounds all
            the time; "avqa-colour-map" is the same set, and its model's head reads the frame through the guided map.
        shots: few-shot: keep the first `shots` clips of each of the 36 classes.
        held_out: zero-shot: only clips of the unseen pairs (else only of the others).
    """
    always = task.startswith(("avs", "avqa-")) or task in ("few-shot", "zero-shot")
    data = clips(count, seed, 2 if task in ("avs-ms3", "avvp") else 1, always)
    keep, pairs = torch.arange(count), tuple(PAIRS)
    kinds: tuple[tuple[str, str], ...] = ()
    extra: dict[str, Tensor] = {}
    if task.startswith("avqa"):
        choice = QUESTIONS if task == "avqa" else QUESTIONS[-1:]
        extra["question"], extra["answer"], asked = questions(data, seed, choice)
        kinds = tuple(asked)
    if task in ("few-shot", "zero-shot"):
        extra["class"] = data.classes
        seen = len(PAIRS) - HELD_OUT
        if task == "zero-shot":
            keep = torch.nonzero((data.classes >= seen) == held_out).flatten()
            pairs = tuple(PAIRS[seen:] if held_out else PAIRS[:seen])
            if held_out:
                extra["class"] = data.classes - seen
        elif shots:
            order = [torch.nonzero(data.classes == k).flatten()[:shots] for k in range(len(PAIRS))]
            if short := [k for k, found in enumerate(order) if len(found) < shots]:
                raise ValueError(
                    f"class {PAIRS[short[0]]} has fewer than {shots} clips among {count}; draw more clips"
                )
            keep = torch.cat(order)
    tensors = {"visible": data.visible, "audible": data.audible, "masks": data.masks} | extra
    images, sounds = data.images, data.sounds
    if not task.startswith("avs"):
        low = []
        for tower, whole in zip(binding.upper(binding.towers()), (images, sounds), strict=True):
            flat = torch.cat([tower.lower(x) for x in whole.flatten(0, 1).split(500)])
            low.append(flat.view(*whole.shape[:2], *flat.shape[1:]))
        images, sounds = low
    tensors |= {"images": images, "sounds": sounds}
    return Source({k: v[keep] for k, v in tensors.items()}, pairs, kinds)


def fit(model: Small, data: Source, seed: int, steps: int, batch: int = 12, lr: float = 3e-3,
        folder: Path | None = None) -> training.Fitted:  # fmt: skip
    """Adam, cosine; the last step counts."""
    index = training.epochs(len(data), min(batch, len(data)), seed)

    def batches(k: int) -> dict[str, Any]:
        return data.batch(index(k))

    config = training.FitConfig(steps=steps, lr=lr, clip=1.0)
    return training.fit(model, lambda m, part: m.loss(part), batches, config, parameters=binding.groups(model, lr),
                        folder=folder, cpu=True, title=model.task)  # fmt: skip


@torch.no_grad()
def evaluate(model: Small, data: Source) -> dict[str, float]:
    """The task's metrics in percent, `HEADLINE` among them."""
    model.eval()
    parts = [data.batch(at) for at in torch.arange(len(data)).split(50)]
    found = [model.outputs(part) for part in parts]
    if model.task == "avvp":
        said = [
            pair for out in found for pair in zip(*(x.numpy() for x in model.head.decide(out)), strict=True)
        ]
        true = [(a, v) for part in parts
                for a, v in zip(part["audible"].long().numpy(), part["visible"].long().numpy(), strict=True)]  # fmt: skip
        return metrics.avvp_scores(said, true)
    if model.task.startswith("avs"):
        logits = torch.cat([out.logits for out in found])
        truth = data.tensors["masks"].flatten(0, 1).float()
        f = [metrics.best_f(x, y) for x, y in zip(logits.split(12), truth.split(12), strict=True)]
        return {"m_j": metrics.mean_iou(logits, truth), "m_f": float(np.mean(f))}
    if model.task.startswith("avqa"):
        right = torch.cat([out[0].argmax(-1) for out in found]) == data.tensors["answer"]
        return metrics.avqa_scores(data.kinds, right.tolist())
    said = torch.cat([out.argmax(-1) for out in found])
    return {"accuracy": metrics.accuracy(said, data.tensors["class"])}
