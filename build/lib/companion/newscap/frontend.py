"""From an image and an article to the parts of a rule: names, situations, and how well a name fits an image.

Three kinds of stage, each a plain callable, so that a reader's own can take its place:

    names      article text            -> [Entity]                                  (stage A)
    situation  image                   -> Situation: verb, and per role a noun, a box   (stage C)
    match      image, situation, names -> score(role, entity)                       (stage B; role None: whole image)

`rule.fill_roles` puts them together (stage D). Here are the stages for real news (local checkpoints of a
token classifier, CLIP, CoFormer) and the stand-ins for the news world.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from companion.newscap import world
from companion.newscap.rule import Entity, Frames, role_class

Score = Callable[[str | None, Entity], float]


@dataclass(frozen=True)
class Situation:
    """What situation recognition says of one image. `verbs`: the best verbs with probabilities."""

    verb: str
    score: float | None = None
    nouns: Mapping[str, str] = field(default_factory=dict)
    boxes: Mapping[str, tuple[float, float, float, float]] = field(default_factory=dict)
    verbs: Mapping[str, float] = field(default_factory=dict)


class Names(Protocol):
    def __call__(self, article: str) -> list[Entity]: ...


class Situations(Protocol):
    def __call__(self, image: Any) -> Situation: ...


class Matcher(Protocol):
    def __call__(self, image: Any, situation: Situation, entities: Sequence[Entity]) -> Score: ...


# --- stage A: names of the article -------------------------------------------------------------------


def merge(entities: Sequence[Entity]) -> list[Entity]:
    """One entity per name: equal texts become one (best score), and a person whose words all stand in a longer
    person's name becomes that person ("Obama" -> "Barack Obama")."""
    best: dict[tuple[str, str], Entity] = {}
    for e in entities:
        key = (e.text, e.type)
        if key not in best or (e.score or 0) > (best[key].score or 0):
            best[key] = e if key not in best else replace(best[key], score=e.score)
    found = list(best.values())
    people = [set(e.text.split()) for e in found if e.type == "PER"]
    return [e for e in found if e.type != "PER" or not any(set(e.text.split()) < words for words in people)]


class TokenClassifierNames:
    """Names by a token-classification checkpoint with PER, ORG and LOC labels, by name or local folder.

    The paper used a multilingual DistilBERT; `Davlan/distilbert-base-multilingual-cased-ner-hrl` fits what is
    known of it. Long articles are read in overlapping windows.
    """

    def __init__(self, checkpoint: str, least: float = 0.5, window: int = 512, overlap: int = 64,
                 device: str = "cpu") -> None:  # fmt: skip
        from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

        try:
            tokenizer = AutoTokenizer.from_pretrained(checkpoint)
            model = AutoModelForTokenClassification.from_pretrained(checkpoint)
        except OSError as error:
            raise ValueError(f"token classifier {checkpoint!r} cannot be loaded ({str(error).splitlines()[0]}); "
                             "give a hub name or a local folder") from None  # fmt: skip
        tokenizer.model_max_length = min(window, getattr(model.config, "max_position_embeddings", window))
        self.pipe = pipeline("token-classification", model=model, tokenizer=tokenizer, device=device,
                             aggregation_strategy="simple", stride=min(overlap, tokenizer.model_max_length // 4))  # fmt: skip
        self.least = least

    def __call__(self, article: str) -> list[Entity]:
        found = []
        for hit in self.pipe(article):
            kind = hit["entity_group"].removeprefix("B-").removeprefix("I-")
            text = article[hit["start"] : hit["end"]].strip()
            if kind in ("PER", "ORG", "LOC") and hit["score"] >= self.least and text:
                found.append(Entity(text, kind, float(hit["score"])))
        return merge(found)


class SpacyNames:
    """Names by a spaCy model: PERSON -> PER, ORG -> ORG, GPE, LOC and FAC -> LOC."""

    KINDS = {"PERSON": "PER", "ORG": "ORG", "GPE": "LOC", "LOC": "LOC", "FAC": "LOC"}  # noqa: RUF012

    def __init__(self, model: str = "en_core_web_sm") -> None:
        from companion.newscap.metrics import Spacy

        self.matcher = Spacy(model)

    def __call__(self, article: str) -> list[Entity]:
        pairs = self.matcher.entities(article)
        return merge([Entity(text, self.KINDS[label]) for text, label in pairs if label in self.KINDS])


class GazetteerNames:
    """Names by a list: name -> PER, ORG or LOC."""

    def __init__(self, names: Mapping[str, str]) -> None:
        from companion.newscap.metrics import Gazetteer

        self.gazetteer = Gazetteer(names)

    def __call__(self, article: str) -> list[Entity]:
        return merge([Entity(text, kind) for text, kind in self.gazetteer.entities(article)])


# --- stage B: does a name fit the image --------------------------------------------------------------


def contrastive_loss(image: Tensor, text: Tensor, names: Sequence[str], scale: Tensor, hard: Tensor | None = None,
                     there: Tensor | None = None) -> Tensor:  # fmt: skip
    """InfoNCE in both directions between images and the names they show.

    image, text: [B, d] embeddings; names: the B names; hard: [B, n, d] embeddings of names of the same article
    that the caption does not hold (negatives for the image only), `there` [B, n] True where there is one (default:
    everywhere). Pairs with equal names are no negatives.
    """
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    logits = scale * image @ text.T
    same = torch.tensor([[a == b for b in names] for a in names], device=image.device)
    twin = same & ~torch.eye(len(names), dtype=torch.bool, device=image.device)
    logits = logits.masked_fill(twin, float("-inf"))
    target = torch.arange(len(names), device=image.device)
    by_image = logits
    if hard is not None:
        extra = scale * torch.einsum("bd,bnd->bn", image, F.normalize(hard, dim=-1))
        if there is not None:
            extra = extra.masked_fill(~there, float("-inf"))
        by_image = torch.cat([logits, extra], 1)
    return (F.cross_entropy(by_image, target) + F.cross_entropy(logits.T, target)) / 2


class ClipMatcher:
    """Score of a name: cosine between CLIP's image and "a photo of {name}.". `score` chooses the image or text:

    "global": the whole image; "grounded": the box of the role where there is one; "prompted": the text says
    name, role and verb, and the role's definition where `frames` (of an imsitu_space.json) has it.
    """

    def __init__(self, checkpoint: str, score: str = "global", prompt: str = "a photo of {e}.",
                 device: str = "cpu", frames: Frames | None = None) -> None:  # fmt: skip
        """`checkpoint`: hub name or local folder of a CLIP; ValueError where it cannot be loaded."""
        from transformers import CLIPModel, CLIPProcessor

        if score not in ("global", "grounded", "prompted"):
            raise ValueError(f"score is {score!r}; choose global, grounded or prompted")
        try:
            self.model = CLIPModel.from_pretrained(checkpoint).eval().to(device)
            self.processor = CLIPProcessor.from_pretrained(checkpoint)
        except OSError as error:
            raise ValueError(f"CLIP {checkpoint!r} cannot be loaded ({str(error).splitlines()[0]}); "
                             "give a hub name or a local folder") from None  # fmt: skip
        self.score, self.prompt, self.frames = score, prompt, frames

    def texts(self, lines: Sequence[str]) -> Tensor:
        """Unit vectors [n, d]; gradients flow."""
        inputs = self.processor(text=list(lines), return_tensors="pt", padding=True, truncation=True)
        out = self.model.text_model(**inputs.to(self.model.device)).pooler_output
        return F.normalize(self.model.text_projection(out), dim=-1)

    def images(self, pictures: Sequence[Any]) -> Tensor:
        """Unit vectors [n, d]; gradients flow."""
        inputs = self.processor(images=list(pictures), return_tensors="pt").to(self.model.device)
        out = self.model.vision_model(pixel_values=inputs["pixel_values"]).pooler_output
        return F.normalize(self.model.visual_projection(out), dim=-1)

    @torch.no_grad()
    def __call__(self, image: Any, situation: Situation, entities: Sequence[Entity]) -> Score:
        whole = self.images([image])[0]
        texts = dict(zip([e.text for e in entities], self.texts([self.prompt.format(e=e.text) for e in entities]),
                         strict=True)) if entities else {}  # fmt: skip
        crops: dict[str, Tensor] = {}
        if self.score == "grounded":
            crops = {r: self.images([crop(image, box)])[0] for r, box in situation.boxes.items()}

        @torch.no_grad()
        def score(role: str | None, entity: Entity) -> float:
            if role is not None and self.score == "prompted":
                said = self.frames.definitions.get(situation.verb, {}).get(role) if self.frames else None
                line = f"{entity.text} as the {role} of {situation.verb}" + (f": {said}" if said else "")
                return float(whole @ self.texts([line])[0])
            return float(crops.get(role, whole) @ texts[entity.text])

        return score

    def fit(self, pairs: Sequence[tuple[Any, str, Sequence[str]]], *, epochs: int = 5, batch_size: int = 256,
            lr: float = 1e-6, weight_decay: float = 0.2, most: int = 8, seed: int = 0) -> list[float]:  # fmt: skip
        """Fine-tune on (image, name in the caption, other names of the article); returns the loss per step.

        Up to `most` of the other names are hard negatives. An image may be a path: it is opened when its turn comes (`corpus.clip_pairs` makes such pairs). Spec 2.4.
        """
        from companion import training
        from companion.newscap.data import open_image

        if not pairs:
            raise ValueError(
                "no (image, name, other names) pairs; they come from captions whose names stand in the article"
            )
        batch_size = min(batch_size, len(pairs))
        order = training.epochs(len(pairs), batch_size, seed)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=lr, weight_decay=weight_decay)
        self.model.train()
        losses = []
        for k in range(epochs * (len(pairs) // batch_size)):
            rows = [pairs[j] for j in order(k).tolist()]
            names = [name for _, name, _ in rows]
            n = min(most, max(len(others) for _, _, others in rows))
            hard = there = None
            if n:
                # articles hold different numbers of names: short lists are filled up and masked
                lines = [
                    self.prompt.format(e=o)
                    for _, _, others in rows
                    for o in [*others[:n], *[""] * (n - len(others))]
                ]
                hard = self.texts(lines).view(len(rows), n, -1)
                there = torch.tensor(
                    [[k < len(others) for k in range(n)] for _, _, others in rows], device=hard.device
                )
            pictures = [open_image(x) if isinstance(x, str | Path) else x for x, _, _ in rows]
            loss = contrastive_loss(self.images(pictures),
                                    self.texts([self.prompt.format(e=x) for x in names]), names,
                                    self.model.logit_scale.exp(), hard, there)  # fmt: skip
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        self.model.eval()
        return losses


def crop(image: Any, box: Sequence[float]) -> Any:
    """The part of a PIL image (or array [h, w, 3]) inside (x1, y1, x2, y2), at least one pixel."""
    x1, y1 = (int(max(0, v)) for v in box[:2])
    x2, y2 = max(x1 + 1, round(box[2])), max(y1 + 1, round(box[3]))
    if hasattr(image, "crop"):
        return image.crop((x1, y1, x2, y2))
    return image[y1:y2, x1:x2]


def keep_best(entities: Sequence[Entity], score: Score, most: int = 10) -> list[Entity]:
    """The `most` entities that fit the image best, and always the best one of each type."""
    ranked = sorted(entities, key=lambda e: -score(None, e))
    kept = ranked[:most]
    for kind in ("PER", "ORG", "LOC"):
        best = next((e for e in ranked if e.type == kind), None)
        if best is not None and best not in kept:
            kept.append(best)
    return [replace(e, score=round(float(score(None, e)), 4)) for e in kept]


# --- stage C: verb and roles -------------------------------------------------------------------------


class ClipSituations:
    """Situations without a situation network: zero-shot CLIP over one sentence per verb; roles without boxes."""

    def __init__(self, matcher: ClipMatcher, frames: Frames | None = None) -> None:
        self.matcher, self.frames = matcher, frames or Frames.imsitu()
        self.verbs = list(self.frames.verbs)
        with torch.no_grad():
            lines = [f"a photo of {self.frames.sentence(v)}" for v in self.verbs]
            self.table = torch.cat([matcher.texts(lines[k : k + 64]) for k in range(0, len(lines), 64)])

    @torch.no_grad()
    def __call__(self, image: Any) -> Situation:
        scale = self.matcher.model.logit_scale.exp()
        p = (scale * self.table @ self.matcher.images([image])[0]).softmax(0)
        best = p.topk(min(5, len(self.verbs)))
        verbs = {self.verbs[int(k)]: float(v) for v, k in zip(best.values, best.indices, strict=True)}
        verb = next(iter(verbs))
        return Situation(verb, verbs[verb], verbs=verbs)


def coformer_input(image: Any, short: int = 512, long: int = 700) -> tuple[Tensor, float, int, int]:
    """A PIL image as CoFormer wants it: [3, 700, 700], ImageNet-normalised, centred on zeros.

    Returns the tensor, the scale that was applied, and the left and top padding in pixels.
    """
    image = image.convert("RGB")
    w, h = image.size
    scale = min(short / min(w, h), long / max(w, h))
    w, h = max(1, round(w * scale)), max(1, round(h * scale))
    x = torch.from_numpy(np.asarray(image.resize((w, h), 2), dtype=np.float32) / 255)
    x = (x - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    left, top = (long - w) // 2, (long - h) // 2
    out = torch.zeros(3, long, long)
    out[:, top : top + h, left : left + w] = x.permute(2, 0, 1)
    return out, scale, left, top


class CoFormerSituations:
    """Situations by a CoFormer network (or any network with its outputs), from a reader's own checkout.

    `network(images)` with images [B, 3, 700, 700] must return `pred_verb` [B, verbs], `pred_noun_3` [B, 6, nouns],
    `pred_bbox` [B, 6, 4] (centre x, centre y, width, height, of the padded square) and `pred_bbox_conf` [B, 6, 1]
    (a logit). `verbs` and `nouns` list the classes in the network's order; a noun may be a synset, which `glosses` names.
    """

    # CoFormer's sizes (its inference.py); another network of the same checkout may want others
    ARGUMENTS = {"backbone": "resnet50", "position_embedding": "learned", "num_glance_enc_layers": 3,  # noqa: RUF012
                 "num_gaze_s1_dec_layers": 3, "num_gaze_s1_enc_layers": 3, "num_gaze_s2_dec_layers": 3,
                 "dim_feedforward": 2048, "hidden_dim": 512, "dropout": 0.15, "nheads": 8, "inference": True,
                 "device": "cpu"}  # fmt: skip

    def __init__(self, network: Callable[..., Mapping[str, Tensor]], verbs: Sequence[str], nouns: Sequence[str],
                 frames: Frames | None = None, glosses: Mapping[str, str] | None = None) -> None:  # fmt: skip
        self.network, self.verbs, self.nouns = network, list(verbs), list(nouns)
        self.frames, self.glosses = frames or Frames.imsitu(), glosses or {}

    @classmethod
    def from_checkout(
        cls, checkout: str | Path, checkpoint: str | Path, **arguments: Any
    ) -> CoFormerSituations:
        """CoFormer from a checkout of its repository (github.com/jhcho99/CoFormer, Apache-2.0) and its checkpoint.

        The checkout's own `models.build_model` makes the network; verbs, roles, nouns and frames come from its
        `SWiG/SWiG_jsons`. `arguments` override `ARGUMENTS` (layers, widths) for a checkpoint of another size.

        Raises:
            ValueError: where the checkout, a list or the checkpoint is not there or does not fit.
        """
        checkout, lists = Path(checkout), Path(checkout) / "SWiG" / "SWiG_jsons"
        for file in (checkout / "models" / "__init__.py", lists / "imsitu_space.json", lists / "verb_indices.txt",
                     lists / "role_indices.txt", lists / "train_classes.csv", Path(checkpoint)):  # fmt: skip
            if not file.is_file():
                raise ValueError(f"{file} is not there; give a checkout of github.com/jhcho99/CoFormer with its "
                                 "SWiG_jsons, and its checkpoint")  # fmt: skip
        verbs, roles = read_classes(lists / "verb_indices.txt"), read_classes(lists / "role_indices.txt")
        nouns, frames = (
            read_classes(lists / "train_classes.csv"),
            Frames.from_space(lists / "imsitu_space.json"),
        )
        order = [[roles.index(r) for r in frames.roles(v)] for v in verbs]
        settings = SimpleNamespace(**(cls.ARGUMENTS | arguments), num_noun_classes=len(nouns), vidx_ridx=order,
                                   idx_to_verb=verbs, idx_to_role=roles)  # fmt: skip
        with imports_from(checkout):
            net = importlib.import_module("models").build_model(settings)
        net = (net[0] if isinstance(net, tuple) else net).eval()
        try:
            stored = torch.load(checkpoint, map_location="cpu", weights_only=False)
            net.load_state_dict(stored.get("model", stored))
        except (RuntimeError, AttributeError, OSError) as error:
            raise ValueError(f"checkpoint {checkpoint} does not fit the network of {checkout} "
                             f"({str(error).splitlines()[0]})") from None  # fmt: skip
        return cls(lambda x: net(x, inference=True), verbs, [n.split("_")[0] for n in nouns], frames,
                   read_glosses(lists / "imsitu_space.json"))  # fmt: skip

    @torch.no_grad()
    def __call__(self, image: Any) -> Situation:
        if not hasattr(image, "convert"):
            image = Image.fromarray(np.asarray(image))
        x, scale, left, top = coformer_input(image)
        out = self.network(x[None])
        p = out["pred_verb"][0].softmax(0)
        if len(p) != len(self.verbs):
            raise ValueError(f"the network scores {len(p)} verbs but {len(self.verbs)} verbs are listed")
        verb = self.verbs[int(p.argmax())]
        nouns, boxes = {}, {}
        for k, role in enumerate(self.frames.roles(verb)):
            noun = self.nouns[int(out["pred_noun_3"][0, k].argmax())]
            if noun not in ("", "blank", "oov", "Pad"):
                nouns[role] = self.glosses.get(noun, noun)
            if float(out["pred_bbox_conf"][0, k, 0]) >= 0:
                cx, cy, w, h = (out["pred_bbox"][0, k] * x.shape[-1]).tolist()
                corners = ((cx - w / 2 - left) / scale, (cy - h / 2 - top) / scale,
                           (cx + w / 2 - left) / scale, (cy + h / 2 - top) / scale)  # fmt: skip
                wide, high = image.size
                boxes[role] = tuple(
                    min(max(v, 0.0), float(m)) for v, m in zip(corners, (wide, high, wide, high), strict=True)
                )
        return Situation(verb, float(p.max()), nouns, boxes)


def read_classes(path: str | Path) -> list[str]:
    """Class names in index order from a list (a name per line) or from `name,index` lines (train_classes.csv)."""
    lines = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    if all("," in line for line in lines):
        lines = [
            name for _, name in sorted((int(i), name) for name, i in (line.rsplit(",", 1) for line in lines))
        ]
    return lines


def read_glosses(path: str | Path) -> dict[str, str]:
    """Synset -> its first gloss, from an `imsitu_space.json` (n14845743 -> water)."""
    nouns = json.loads(Path(path).read_text(encoding="utf-8")).get("nouns", {})
    return {synset: part["gloss"][0] for synset, part in nouns.items() if part.get("gloss")}


@contextlib.contextmanager
def imports_from(folder: Path) -> Iterator[None]:
    """Import another repository's top-level packages (`models`, `util`, ...) without leaving them behind."""
    ours = {n: m for n, m in sys.modules.items() if n.split(".")[0] in ("models", "util", "datasets")}
    for name in ours:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        for name in [n for n in sys.modules if n.split(".")[0] in ("models", "util", "datasets")]:
            del sys.modules[name]
        sys.modules.update(ours)


# --- stand-ins of the news world ---------------------------------------------------------------------

COATS, KINDS = list(world.COLOURS), list(world.KINDS)
HEADS = {"verb": len(world.ACTIONS), "agent": len(COATS), "other": len(COATS), "place": len(KINDS)}


class WorldNet(nn.Module):
    """Plays CoFormer (and CLIP's image tower): three strided convolutions, one head per slot.

    It says a verb and a noun per role ("person in red"), never a name.
    """

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for a, b in ((3, 16), (16, 32), (32, 64)):
            layers += [nn.Conv2d(a, b, 3, stride=2, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.join = nn.Linear(64 * 36, width)
        self.heads = nn.ModuleDict({name: nn.Linear(width, n) for name, n in HEADS.items()})

    def features(self, images: Tensor) -> Tensor:
        """images [B, 48, 48, 3] uint8 -> ten image vectors [B, 10, 64]: a 3 x 3 grid, and the joined vector."""
        x = self.body(images.permute(0, 3, 1, 2).float() / 127.5 - 1)
        grid = F.avg_pool2d(x, 2).flatten(2).transpose(1, 2)
        return torch.cat([F.relu(self.join(x.flatten(1)))[:, None], grid], 1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits per slot: verb [B, 8], agent and other (coat) [B, 6], place (kind) [B, 5]."""
        x = self.features(images)[:, 0]
        return {name: head(x) for name, head in self.heads.items()}


def labels(items: Sequence[world.Item]) -> dict[str, Tensor]:
    """What `WorldNet` learns: the verb, the two coats and the kind of place of each item."""
    verbs = list(world.BY_VERB)
    return {"verb": torch.tensor([verbs.index(i.verb) for i in items]),
            "agent": torch.tensor([COATS.index(i.people[i.agent]) for i in items]),
            "other": torch.tensor([COATS.index(i.people[i.other]) for i in items]),
            "place": torch.tensor([KINDS.index(i.places[i.place]) for i in items])}  # fmt: skip


def stack(items: Sequence[world.Item]) -> Tensor:
    """Images of items as one tensor [N, 48, 48, 3] uint8."""
    return torch.from_numpy(np.stack([i.image for i in items]))


def fit_world_net(net: WorldNet, items: Sequence[world.Item], *, epochs: int = 6, batch_size: int = 64, lr: float = 2e-3,
                  seed: int = 0) -> list[float]:  # fmt: skip
    """Train `net` on gold labels of training images; returns the loss per step."""
    from companion import training

    images, targets = stack(items), labels(items)
    order = training.epochs(len(items), batch_size, seed)
    steps = epochs * (len(items) // batch_size)
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    net.train()
    losses = []
    for k in range(steps):
        rows = order(k)
        out = net(images[rows])
        loss = sum(F.cross_entropy(out[name], targets[name][rows]) for name in HEADS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    net.eval()
    return losses


class WorldNames:
    """Names of the news world by its two kinds of sentence; `attribute` remembers what the article says of them."""

    PERSON = re.compile(rf"([A-Z][a-z]+ [A-Z][a-z]+) in ({'|'.join(COATS)}) ?\.")
    PLACE = re.compile(rf"([A-Z][a-z]+) ({'|'.join(KINDS)}) ?\.")

    def __call__(self, article: str) -> list[Entity]:
        people = [Entity(name, "PER") for name, _ in self.PERSON.findall(article)]
        return people + [Entity(name, "LOC") for name, _ in self.PLACE.findall(article)]

    @classmethod
    def attributes(cls, article: str) -> dict[str, str]:
        """name -> coat or kind of place, as the article has it."""
        return dict(cls.PERSON.findall(article)) | dict(cls.PLACE.findall(article))


class WorldSituations:
    """`WorldNet` as a situation stage; nouns are "person in red" and "beach"."""

    def __init__(self, net: WorldNet) -> None:
        self.net = net.eval()

    @torch.no_grad()
    def many(self, images: Tensor) -> list[tuple[Situation, dict[str, dict[str, float]]]]:
        """For each image the situation, and per role the probability of each noun."""
        logits = self.net(images)
        p = {name: x.softmax(-1) for name, x in logits.items()}
        found = []
        for k in range(len(images)):
            action = world.ACTIONS[int(p["verb"][k].argmax())]
            nouns = {action.agent: [f"person in {c}" for c in COATS], action.other: [f"person in {c}" for c in COATS],
                     "place": KINDS}  # fmt: skip
            chances = {role: dict(zip(nouns[role], p[head][k].tolist(), strict=True))
                       for role, head in ((action.agent, "agent"), (action.other, "other"), ("place", "place"))}  # fmt: skip
            best = {role: max(c, key=c.get) for role, c in chances.items()}
            verbs = dict(zip((a.verb for a in world.ACTIONS), p["verb"][k].tolist(), strict=True))
            found.append((Situation(action.verb, float(p["verb"][k].max()), best, {}, verbs), chances))
        return found

    def __call__(self, image: Any) -> Situation:
        image = np.asarray(image)
        seen = self.many(torch.as_tensor(image)[None])[0][0]
        boxes = {r: coat_box(image, noun.split()[-1]) for r, noun in seen.nouns.items() if r != "place"}
        return replace(seen, boxes={r: box for r, box in boxes.items() if box})


def coat_box(image: np.ndarray, coat: str) -> tuple[float, float, float, float] | None:
    """Where a coat is in a picture of the world [48, 48, 3]: (x1, y1, x2, y2), its head included; None without one."""
    near = (np.abs(image.astype(int) - world.COLOURS[coat]).max(-1) < 30)[28:40]  # below heads, arms and icon
    columns = np.nonzero(near.mean(0) > 0.8)[0]
    if not len(columns):
        return None
    rows = np.nonzero(
        (np.abs(image.astype(int) - world.COLOURS[coat]).max(-1) < 30)[:, columns].mean(1) > 0.8
    )[0]
    return float(columns[0]), max(0.0, float(rows[0]) - 6), float(columns[-1] + 1), float(rows[-1] + 1)


class WorldMatcher:
    """Fits names to roles through the article: the coat it gives a person, the kind it gives a place.

    The score of a name in a role is the probability that the situation stage gives to that noun; without a role,
    the best over roles. It needs the article, so `read` it first.
    """

    def __init__(self, situations: WorldSituations) -> None:
        self.situations, self.said = situations, {}

    def read(self, article: str) -> WorldMatcher:
        fresh = WorldMatcher(self.situations)
        fresh.said = WorldNames.attributes(article)
        return fresh

    def scorer(self, chances: Mapping[str, Mapping[str, float]]) -> Score:
        """score(role, entity) from the probabilities of nouns per role."""

        def score(role: str | None, entity: Entity) -> float:
            said = self.said.get(entity.text, "")
            noun = f"person in {said}" if entity.type == "PER" else said
            if role is None:
                kind = "person" if entity.type == "PER" else "place"
                return max(
                    (c.get(noun, 0.0) for r, c in chances.items() if role_class(r) == kind), default=0.0
                )
            return chances.get(role, {}).get(noun, 0.0)

        return score

    def __call__(self, image: Any, situation: Situation, entities: Sequence[Entity]) -> Score:
        return self.scorer(self.situations.many(torch.as_tensor(np.asarray(image))[None])[0][1])
