"""Training on a news set: items from files, rules made once and stored, images through a frozen tower, batches.

Used by the notebook "news" for GoodNews and NYTimes800k (`full`), and with the news world written in GoodNews's
format to run the same path in seconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from companion import datasets, training
from companion.newscap import data, frontend
from companion.newscap.model import RuleBart
from companion.newscap.pipeline import NewsCaptioner, spell_batch
from companion.newscap.rule import MARKERS, Rule, RuleError, role_class

NYTIMES = ("articles.jsonl", "articles.json", "articles.parquet", "articles.bson", "nytimes-2020-04-21.gz")


def read_set(name: str, split: str, count: Callable[[str], int] = data.words) -> list[data.Article]:
    """Items of a split of "goodnews", "nytimes", "visualnews" or "own" below COMPANION_DATA, those with caption and image.

    "own" is `own/items.jsonl`, in which each item names its split ("train" or "test").
    `count` counts the tokens of a text (NYTimes800k's context is cut by tokens). Raises DataMissing, with what to get.
    """
    if name == "goodnews":
        found = data.goodnews(datasets.find("goodnews/captioning_dataset.json").parent, split)
    elif name == "nytimes":
        base = datasets.data_folder()
        path = next(
            (base / "nytimes800k" / n for n in NYTIMES if base and (base / "nytimes800k" / n).is_file()), None
        )
        path = path or datasets.find(f"nytimes800k/{NYTIMES[-1]}")
        found = data.nytimes(path, path.parent / "images_processed", split, count=count, missing="skip")
    elif name == "visualnews":
        found = data.visualnews(datasets.find("visualnews/data.json").parent, split)
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


def clip_pairs(items: Sequence[data.Article], names: frontend.Names) -> list[tuple[str, str, list[str]]]:
    """Pairs for `ClipMatcher.fit`: (image, a name of caption and article, the article's names that the caption lacks).

    Use training items only: the caption is read.
    """
    found = []
    for item in items:
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
    # one line per item, written as it is made: a stopped run goes on where it was
    if store.is_file():
        for line in store.read_text(encoding="utf-8").splitlines():
            part = json.loads(line)
            known[part["id"]] = part["rule"]
    store.parent.mkdir(parents=True, exist_ok=True)
    with store.open("a", encoding="utf-8") as file:
        for item in items:
            if item.id in known:
                continue
            try:
                rule = captioner.rule(data.open_image(item.image), item.context)[0].to_json()
            except (data.DataError, RuleError):
                rule = None
            known[item.id] = rule
            file.write(json.dumps({"id": item.id, "rule": rule}) + "\n")
    return [Rule.from_json(known[i.id]) if known[i.id] else None for i in items]


class Corpus:
    """Items of one split with their rules, as batches for `RuleBart`.

    Args:
        vectors: pictures (PIL) -> image vectors [B, n, width], frozen.
        most_article, most_caption: longest article and caption in tokens.
        way: how the rule is given: "prefix" (or "decoder": same inputs), "text" (spelt before the article), "none".
    """

    def __init__(self, items: Sequence[data.Article], rules: Sequence[Rule | None], tokenizer: Any,
                 vectors: Callable[[list[Any]], Tensor] | None, *, most_article: int, most_caption: int,
                 most_rule: int, way: str = "prefix") -> None:  # fmt: skip
        if not items:
            raise ValueError("this split has no items; check the split's name and the files")
        self.items, self.rules, self.tokenizer, self.vectors = list(items), list(rules), tokenizer, vectors
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
        return Corpus([self.items[k] for k in index], rules, self.tokenizer, self.vectors, most_article=self.most_article,
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
        if self.vectors is not None:
            found["image"] = self.vectors([data.open_image(r.image) for r in rows])
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
    for start in range(0, len(corpus), size):
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
