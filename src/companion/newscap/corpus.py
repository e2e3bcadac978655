"""Training on a news set: items from files; names, image vectors and rules made once and stored; batches.

Used by the notebook "news" for GoodNews and NYTimes800k (`full`), and with the news world written in GoodNews's
format to run the same path in seconds. What takes hours on a set of this size (names, image vectors, CLIP's
fine-tuning, rules) is written to disk as it is made, so that a stopped run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from companion import datasets, training
from companion.newscap import data, frontend, metrics
from companion.newscap.model import RuleBart
from companion.newscap.pipeline import NewsCaptioner, spell_batch
from companion.newscap.rule import MARKERS, Entity, Rule, RuleError, role_class

COFORMER_WEIGHTS = "CoFormer_checkpoint.pth"
NYTIMES = ("articles.jsonl", "articles.json", "articles.parquet", "articles.bson", "nytimes-2020-04-21.gz")


def read_set(name: str, split: str, count: Callable[[str], int] = data.words) -> list[data.Article]:
    """Items of a split of "goodnews", "nytimes", "visualnews" or "own" below COMPANION_DATA, those with caption and image.

    "own" is `own/items.jsonl`, in which each item names its split ("train" or "test").
    `count` counts the tokens of a text (NYTimes800k's context is cut by tokens). Raises DataMissing, with what to get.
    """
    if name == "goodnews":
        found = data.goodnews(datasets.find("goodnews/captioning_dataset.json").parent, split, missing="skip")
    elif name == "nytimes":
        base = datasets.data_folder()
        path = next(
            (base / "nytimes800k" / n for n in NYTIMES if base and (base / "nytimes800k" / n).is_file()), None
        )
        path = path or datasets.find(f"nytimes800k/{NYTIMES[-1]}")
        found = data.nytimes(path, path.parent / "images_processed", split, count=count, missing="skip")
    elif name == "visualnews":
        found = data.visualnews(datasets.find("visualnews/data.json").parent, split, missing="skip")
    elif name == "own":
        items = data.own(datasets.find("own/items.jsonl"), training=split == "train")
        found = (i for i in items if i.split == split)
    else:
        raise ValueError(f"set is {name!r}; choose goodnews, nytimes, visualnews, own or newsworld")
    dropped: list[str] = []
    items = list(data.usable(found, dropped))
    if dropped:
        print(f"{name}, {split}: {len(dropped)} items have no caption or no image file and are left out")
    return items


def need_meteor() -> bool:
    """Whether METEOR will be computed, asked before the training. Raises ValueError for a jar that does not run."""
    try:
        return metrics.meteor(["a caption"], ["a caption"]) is not None
    except (ValueError, OSError) as error:
        raise ValueError("METEOR's jar (COMPANION_METEOR_JAR) does not run; it needs its folder data beside it and Java, or "
                         f"leave the variable unset ({type(error).__name__})") from None  # fmt: skip


# --- what is made once -------------------------------------------------------------------------------


def progress(things: Sequence[Any], title: str) -> tqdm:
    """A progress bar over work that may take hours."""
    return tqdm(things, desc=title, mininterval=5.0, disable=not things)


def remembered(names: frontend.Names, store: Path) -> frontend.Names:
    """`names` that reads each text once: entities are kept in `store`, a JSON line per text (its hash, and its names).

    Captions and articles are read several times: for CLIP's pairs, for rules, for edits.
    """
    known: dict[str, list[Entity]] = {}
    for line in whole_lines(store):
        part = json.loads(line)
        known[part["text"]] = [Entity(*e) for e in part["names"]]

    def find(text: str) -> list[Entity]:
        key = hashlib.sha256(text.encode()).hexdigest()[:24]
        if key not in known:
            known[key] = names(text)
            with store.open("a", encoding="utf-8") as file:
                kept = [(e.text, e.type, e.score) for e in known[key]]
                file.write(json.dumps({"text": key, "names": kept}, ensure_ascii=False) + "\n")
        return known[key]

    return find


def whole_lines(store: Path) -> list[str]:
    """The lines of a store that a stopped run may have left in the middle of one; that one is cut off.

    The folder is made where it is not there.
    """
    store.parent.mkdir(parents=True, exist_ok=True)
    if not store.is_file():
        return []
    content = store.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        store.write_bytes(whole)
    return whole.decode("utf-8").splitlines()


def with_vectors(items: Sequence[data.Article], vectors: Callable[[list[Any]], Tensor], store: Path,
                 size: int = 64) -> tuple[list[data.Article], np.ndarray]:  # fmt: skip
    """The items whose image can be read, and the vectors of these images [N, n, width] in half precision.

    `vectors`: pictures (PIL) -> [B, n, width] of a frozen tower. They are made once, in blocks of `size` images, and
    kept below `store` (a file per 64 blocks), so that training opens no image and a stopped run goes on.
    """
    store.mkdir(parents=True, exist_ok=True)
    found, many = [], 64 * size
    for start in progress(range(0, len(items), many), "image vectors"):
        file = store / f"{start:08d}.npy"
        if not file.is_file():
            blocks = [
                _block(items[k : k + size], vectors)
                for k in range(start, min(start + many, len(items)), size)
            ]
            part = file.with_suffix(".part.npy")
            np.save(part, _stacked(blocks))
            part.replace(file)
        found.append(np.load(file))
    table = _stacked(found)
    # an image that cannot be read has left a line of NaN
    good = ~np.isnan(table).any((1, 2))
    if not good.all():
        print(f"{int((~good).sum())} images cannot be read; their items are left out")
    return [i for i, ok in zip(items, good, strict=True) if ok], table[good]


def _block(items: Sequence[data.Article], vectors: Callable[[list[Any]], Tensor]) -> np.ndarray:
    """Vectors of some images [B, n, width], NaN where an image cannot be read ([B, 1, 1] if none can)."""
    pictures = []
    for item in items:
        try:
            pictures.append(data.open_image(item.image))
        except data.DataError:
            pictures.append(None)
    there = [x is not None for x in pictures]
    made = (
        vectors([x for x in pictures if x is not None]).cpu().numpy() if any(there) else np.zeros((0, 1, 1))
    )
    out = np.full((len(items), *made.shape[1:]), np.nan, np.float16)
    out[there] = made
    return out


def _stacked(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Blocks [B, n, width] as one array; a block of unreadable images takes the others' shape."""
    shape = max((b.shape[1:] for b in blocks), default=(1, 1))
    return np.concatenate([np.broadcast_to(b, (len(b), *shape)) if b.shape[1:] != shape else b
                           for b in blocks]) if blocks else np.zeros((0, *shape), np.float16)  # fmt: skip


def tuned_clip(checkpoint: str, pairs: Callable[[], Sequence[tuple[Any, str, Sequence[str]]]], store: Path, *, epochs: int,
               seed: int = 0, device: str = "cpu") -> frontend.ClipMatcher:  # fmt: skip
    """CLIP fine-tuned on `pairs()` (see `clip_pairs`), or as it was fine-tuned before and left in `store`.

    With `epochs=0` it stays as published.
    """
    if not epochs:
        return frontend.ClipMatcher(checkpoint, device=device)
    if not (store / "done").is_file():
        clip = frontend.ClipMatcher(checkpoint, device=device)
        clip.fit(pairs(), epochs=epochs, seed=seed)
        clip.model.save_pretrained(store)
        clip.processor.save_pretrained(store)
        (store / "done").write_text("")
    return frontend.ClipMatcher(str(store), device=device)


def coformer(folder: Path, device: str = "cpu") -> frontend.CoFormerSituations:
    """CoFormer on `device`: `folder` is a checkout of github.com/jhcho99/CoFormer with its checkpoint in it, under the
    name `CoFormer_checkpoint.pth`."""
    with torch.device(device):  # the checkout's own code makes its parameters here
        stage = frontend.CoFormerSituations.from_checkout(folder, folder / COFORMER_WEIGHTS, device=device)
    network = stage.network
    stage.network = lambda images: network(images.to(device))
    return stage


def clip_pairs(items: Sequence[data.Article], names: frontend.Names) -> list[tuple[str, str, list[str]]]:
    """Pairs for `ClipMatcher.fit`: (image, a name of caption and article, the article's names that the caption lacks).

    Use training items only: the caption is read.
    """
    found = []
    for item in progress(items, "names of captions and articles"):
        said = {e.text for e in names(item.caption)}
        known = [e.text for e in names(item.context)]
        rest = [n for n in known if n not in said]
        found += [(item.image, n, rest) for n in known if n in said]
    return found


def made_rules(items: Sequence[data.Article], captioner: NewsCaptioner, store: Path) -> list[Rule | None]:
    """The rule of every item, made once and kept in `store` (a JSON line per item: id and rule).

    An image whose rule cannot be made (unreadable file) gets none.
    """
    known: dict[str, str | None] = {}
    for line in whole_lines(store):
        part = json.loads(line)
        known[part["id"]] = part["rule"]
    with store.open("a", encoding="utf-8") as file:
        for item in progress(items, "rules"):
            if item.id in known:
                continue
            try:
                rule = captioner.rule(data.open_image(item.image), item.context)[0].to_json()
            except (data.DataError, RuleError):
                rule = None
            known[item.id] = rule
            file.write(json.dumps({"id": item.id, "rule": rule}) + "\n")
    return [Rule.from_json(known[i.id]) if known[i.id] else None for i in items]


# --- batches and captions ----------------------------------------------------------------------------


class Corpus:
    """Items of one split with their rules, as batches for `RuleBart`.

    Args:
        images: image vectors of the items [N, n, width] (see `with_vectors`), or None for a captioner without images.
        most_article, most_caption: longest article and caption in tokens.
        way: how the rule is given: "prefix" (or "decoder": same inputs), "text" (spelt before the article), "none".
    """

    def __init__(self, items: Sequence[data.Article], rules: Sequence[Rule | None], tokenizer: Any,
                 images: np.ndarray | None, *, most_article: int, most_caption: int,
                 most_rule: int, way: str = "prefix") -> None:  # fmt: skip
        if not items:
            raise ValueError("this split has no items; check the split's name and the files")
        self.items, self.rules, self.tokenizer, self.images = list(items), list(rules), tokenizer, images
        self.most_article, self.most_caption, self.most_rule, self.way = (
            most_article,
            most_caption,
            most_rule,
            way,
        )

    def __len__(self) -> int:
        return len(self.items)

    def part(self, index: Sequence[int], rules: Sequence[Rule | None]) -> Corpus:
        """Some items with other rules."""
        images = None if self.images is None else self.images[list(index)]
        return Corpus([self.items[k] for k in index], rules, self.tokenizer, images, most_article=self.most_article,
                      most_caption=self.most_caption, most_rule=self.most_rule, way=self.way)  # fmt: skip

    def batch(self, index: Sequence[int], *, labels: bool = True) -> dict[str, Tensor]:
        """The arguments of `RuleBart.forward` (or `generate`, without labels) for some items."""
        rows, rules = [self.items[k] for k in index], [self.rules[k] for k in index]
        texts = [r.context for r in rows]
        if self.way == "text":
            # a space before words only, so that the tokens are those of the prefix
            spelt = [
                "".join(t if t in MARKERS else f" {t}" for t, _ in r.pieces()) if r else "" for r in rules
            ]
            texts = [f"{s} {t}" if s else t for s, t in zip(spelt, texts, strict=True)]
        text = self.tokenizer(
            texts, truncation=True, max_length=self.most_article, padding=True, return_tensors="pt"
        )
        found = {"input_ids": text["input_ids"], "attention_mask": text["attention_mask"]}
        if self.way in ("prefix", "decoder"):
            found |= spell_batch(rules, self.tokenizer, self.most_rule)
        if self.images is not None:
            found["image"] = torch.from_numpy(self.images[list(index)]).float()
        if labels:
            told = self.tokenizer([r.caption for r in rows], truncation=True, max_length=self.most_caption, padding=True,
                                  return_tensors="pt")  # fmt: skip
            found["labels"] = told["input_ids"].masked_fill(told["attention_mask"] == 0, -100)
        return found

    def batches(self, size: int, seed: int) -> Callable[[int], dict[str, Tensor]]:
        """`batches(k)` for `training.fit`."""
        order = training.epochs(len(self), size, seed)
        return lambda k: self.batch(order(k).tolist())


def add_markers(tokenizer: Any, bart: Any) -> None:
    """Teach the tokenizer the rule's markers and give them rows in BART's token table."""
    if tokenizer.add_special_tokens({"additional_special_tokens": list(MARKERS)}):
        bart.resize_token_embeddings(len(tokenizer), mean_resizing=False)


@torch.no_grad()
def write_captions(model: RuleBart, corpus: Corpus, size: int, **decoding: Any) -> list[str]:
    """Captions of all items, in order."""
    model.eval()
    device = next(model.parameters()).device
    found: list[str] = []
    for start in progress(range(0, len(corpus), size), "captions"):
        index = range(start, min(start + size, len(corpus)))
        batch = {k: v.to(device) for k, v in corpus.batch(index, labels=False).items()}
        out = model.generate(**batch, **decoding)
        found += [corpus.tokenizer.decode(row, skip_special_tokens=True).strip() for row in out]
    return found


def clip_vectors(matcher: frontend.ClipMatcher) -> Callable[[list[Any]], Tensor]:
    """Frozen CLIP's one vector per picture [B, 1, 768]: the class token after the last norm (spec 2.8)."""

    @torch.no_grad()
    def vectors(pictures: list[Any]) -> Tensor:
        inputs = matcher.processor(images=pictures, return_tensors="pt").to(matcher.model.device)
        return matcher.model.vision_model(pixel_values=inputs["pixel_values"]).pooler_output[:, None].cpu()

    return vectors


# --- control on a news set ---------------------------------------------------------------------------


def edits(rules: Sequence[Rule | None], items: Sequence[data.Article], names: frontend.Names,
          kind: str) -> dict[int, tuple[Rule, str, str]]:  # fmt: skip
    """item number -> (edited rule, the name that comes, the name that goes), where this edit is possible.

    kind: "agent" (the first person-like role gets another person of the article) or "place" (the place-like one
    another place). The decoder sees article states only, so the new name is always one of the same article.
    """
    want = {"agent": ("person", "PER"), "place": ("place", "LOC")}
    if kind not in want:
        raise ValueError(f"edit is {kind!r}; choose {' or '.join(want)}")
    group, label = want[kind]
    found = {}
    for k, (rule, item) in enumerate(zip(rules, items, strict=True)):
        role = next((r for r in (rule.roles if rule else ()) if role_class(r) == group), None)
        if role is None:
            continue
        used = {e.text for e in rule.entities}
        new = next((e for e in names(item.context) if e.type == label and e.text not in used), None)
        if new is not None:
            found[k] = (rule.edit(**{role: new}), new.text, rule.roles[role][0].text)
    return found


def obedience(model: RuleBart, corpus: Corpus, names: frontend.Names, size: int = 64,
              **decoding: Any) -> dict[str, float | None]:  # fmt: skip
    """For each kind of edit: of how many per cent of the captions the new name comes and the old one goes
    ("obey_agent", "obey_place"), and the number of items that could be edited ("edited_agent", ...). None for a
    captioner that gets no rule."""
    out: dict[str, float | None] = {}
    if corpus.way == "none":
        return dict.fromkeys(("obey_agent", "obey_place"))
    for kind in ("agent", "place"):
        changed = edits(corpus.rules, corpus.items, names, kind)
        index = list(changed)
        part = corpus.part(index, [changed[k][0] for k in index]) if index else None
        said = write_captions(model, part, size, **decoding) if part else []
        hits = [
            new in text and old not in text
            for text, (_, new, old) in zip(said, changed.values(), strict=True)
        ]
        out |= {
            f"obey_{kind}": 100 * sum(hits) / len(hits) if hits else None,
            f"edited_{kind}": float(len(hits)),
        }
    return out
