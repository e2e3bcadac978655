"""Readers of the public news sets in their real formats, as `Article` items; nothing here holds an article.

GoodNews (`captioning_dataset.json` with `img_splits.json`), NYTimes800k (the `articles` collection of
transform-and-tell's database: its dump as it is, or exported as JSON lines, a JSON array or Parquet), VisualNews
(`data.json` beside its article files), and your own JSON lines. Context follows transform-and-tell: the first 500
words, or for NYTimes800k the paragraphs around the image.
"""

from __future__ import annotations

import hashlib
import html
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from companion.newscap import mongodump

SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class Article:
    """One captioning item: an image, the text to read, and the caption (empty where it is to be written)."""

    id: str
    image: str  # path of the image file
    headline: str
    text: str  # body, or the context around the image
    caption: str = ""
    split: str = ""
    joint: str = "\n\n"  # between headline and text (transform-and-tell: one line break for NYTimes800k)

    @property
    def context(self) -> str:
        """Headline and text as the model reads them."""
        return f"{self.headline}{self.joint}{self.text}".strip()


class DataError(ValueError):
    """A file that is not in the format it should have; the message names file, item and what is wanted."""


def load_json(path: str | Path) -> Any:
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path} is not there") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path} is not JSON ({error})") from None


def clean_caption(text: str) -> str:
    """A caption without HTML tags, entities and [bracketed] remarks, with single spaces."""
    text = re.sub(r"\[[^\]]*\]", "", re.sub(r"<[^>]*>", "", html.unescape(text)))
    return " ".join(text.split())


def first_words(text: str, most: int = 500) -> str:
    """The first `most` words, split at single spaces (so that line breaks stay inside words, as published)."""
    return " ".join(text.strip().split(" ")[:most])


MISSING = ("refuse", "skip")


def _checked(missing: str) -> bool:
    """Whether items that lack something are passed over. Raises ValueError for another word."""
    if missing not in MISSING:
        raise ValueError(f"missing is {missing!r}; choose {' or '.join(MISSING)}")
    return missing == "skip"


def need_caption(caption: Any, where: str, split: str, clean: Callable[[str], str] = clean_caption) -> str:
    """The cleaned caption. Raises DataError where a training item has none."""
    if caption is None and split != "train":
        return ""
    if not isinstance(caption, str) or (not caption.strip() and split == "train"):
        raise DataError(f"{where} has no caption; training items need one")
    return clean(caption)


def usable(items: Iterable[Article], dropped: list[str] | None = None) -> Iterator[Article]:
    """Items with a caption and an image file that is there, as transform-and-tell takes them; ids of the others
    are appended to `dropped`."""
    for item in items:
        if item.caption and Path(item.image).is_file():
            yield item
        elif dropped is not None:
            dropped.append(item.id)


# --- GoodNews ----------------------------------------------------------------------------------------


def goodnews(folder: str | Path, split: str | None = None, most_words: int = 500, *,
             missing: str = "refuse") -> Iterator[Article]:  # fmt: skip
    """Items of GoodNews from `folder`: `captioning_dataset.json` (or `article_caption.json`), `img_splits.json`,
    and images `images/<article id>_<index>.jpg` (or in the folder itself).

    The published split is by image, so articles occur in several splits. `missing`: what happens to an empty article
    and to an image without a caption, "refuse" or "skip".
    """
    folder, skip = Path(folder), _checked(missing)
    file = next(
        (folder / n for n in ("captioning_dataset.json", "article_caption.json") if (folder / n).is_file()),
        None,
    )
    if file is None:
        raise DataError(f"{folder} has neither captioning_dataset.json nor article_caption.json")
    content, splits = load_json(file), load_json(folder / "img_splits.json")
    images = folder / "images" if (folder / "images").is_dir() else folder
    for article_id, part in content.items():
        for k, caption in part.get("images", {}).items():
            key = f"{article_id}_{k}"
            mine = {"val": "valid"}.get(splits.get(key, ""), splits.get(key, ""))
            if not mine or (split and mine != split):
                continue
            headline = part.get("headline") or {}
            headline = headline.get("main", "") if isinstance(headline, Mapping) else str(headline)
            text = part.get("article") or ""
            if skip and not (text.strip() and (caption or "").strip()):
                continue
            if not text.strip():
                raise DataError(f"{file}: article {article_id} is empty")
            whole = first_words(f"{headline}\n\n{text}", most_words)
            body = whole[len(headline) :].lstrip("\n") if whole.startswith(headline) else whole
            yield Article(
                key,
                str(images / f"{key}.jpg"),
                headline,
                body,
                need_caption(caption, f"{file}: image {key}", mine),
                mine,
            )


# --- NYTimes800k -------------------------------------------------------------------------------------


def words(text: str) -> int:
    return len(text.split())


def context_around(sections: Sequence[Mapping[str, Any]], position: int, headline: str = "", most: int = 510,
                   count: Callable[[str], int] = words) -> str:  # fmt: skip
    """Transform-and-tell's location-aware context: headline, first paragraph, then paragraphs in turn before and after
    the image until `most` tokens are there. The first paragraph does not count towards them.

    sections: `parsed_section` of an article ({"type": "paragraph" | "caption", "text"}); position: the image's index.
    """
    if not 0 <= position < len(sections):
        raise DataError(f"image position {position} is not among the article's {len(sections)} sections")
    first = next((k for k, s in enumerate(sections) if s.get("type") == "paragraph"), None)
    head = [headline] if headline else []
    if first is None:
        return "\n".join(head)
    start = [sections[first]["text"]]
    n = count(headline) if headline else 0
    before: list[str] = []
    after: list[str] = []
    i, j = position - 1, position + 1
    while n < most and (i > first or j < len(sections)):
        if i > first:
            if sections[i].get("type") == "paragraph":
                before.insert(0, sections[i]["text"])
                n += count(sections[i]["text"])
            i -= 1
        if j < len(sections):
            if j > first and sections[j].get("type") == "paragraph":
                after.append(sections[j]["text"])
                n += count(sections[j]["text"])
            j += 1
    return "\n".join([*head, *start, *before, *after])


def context_plain(sections: Iterable[Mapping[str, Any]], headline: str = "", most: int = 500,
                  count: Callable[[str], int] = words) -> str:  # fmt: skip
    """Headline and paragraphs from the start until more than `most` tokens are there."""
    parts, n = ([headline] if headline else []), count(headline) if headline else 0
    for section in sections:
        if section.get("type") == "paragraph":
            parts.append(section["text"])
            n += count(section["text"])
            if n > most:
                break
    return "\n".join(parts)


def documents(path: str | Path) -> Iterator[dict[str, Any]]:
    """Documents of an export: `.jsonl`/`.json` (lines or one array, as mongoexport writes), `.parquet`, or a dump
    (`.gz` or `.archive` of `mongodump --archive`, `.bson`)."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} is not there; give the dump (nytimes-2020-04-21.gz), or export the collection with: "
                        "mongoexport --db nytimes --collection articles")  # fmt: skip
    if mongodump.is_dump(path):
        try:
            yield from mongodump.read_dump(path)
        except mongodump.DumpError as error:
            raise DataError(str(error)) from None
        return
    if path.suffix == ".parquet":
        import pyarrow.parquet

        for part in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=256):
            yield from part.to_pylist()
        return
    with path.open(encoding="utf-8") as file:
        start = file.read(1)
        file.seek(0)
        if start == "[":
            yield from json.load(file)
            return
        for number, line in enumerate(file, 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise DataError(f"{path}, line {number}: not JSON ({error})") from None


def nytimes(path: str | Path, images: str | Path, split: str | None = None, *, located: bool = True, most: int = 510,
            count: Callable[[str], int] = words, missing: str = "refuse") -> Iterator[Article]:  # fmt: skip
    """Items of NYTimes800k from its dump or an export of its `articles`; images are `images/<hash>.jpg`.

    Splits are by date: train before May 2019, valid in May 2019, test after. Only English articles are read.
    The id of an item is its article's and the image's index there: a photograph may stand in several articles.
    `count` counts tokens (transform-and-tell: those of RoBERTa; `corpus.read_set` passes BART's). `missing`: what
    happens to an image without a caption and to an article without text, "refuse" or "skip" (as published).

    Raises:
        DataError: for a file, an article or a training caption that is not there or not in the format.
    """
    skip = _checked(missing)
    for document in documents(path):
        if document.get("language", "en") != "en":
            continue
        mine = document.get("split") or split_by_date(document.get("pub_date"))
        if split and mine != split:
            continue
        try:
            sections, positions = document["parsed_section"], document["image_positions"]
            headline = ((document.get("headline") or {}).get("main") or "").strip()
        except KeyError as error:
            raise DataError(f"{path}: article {document.get('_id')} has no {error}") from None
        for k in positions:
            section = sections[k] if 0 <= k < len(sections) else {}
            where = f"{path}: article {document.get('_id')}, section {k}"
            if skip and not (section.get("text") or "").strip():
                continue
            caption = need_caption(section.get("text"), where, mine, str.strip)
            whole = (context_around(sections, k, headline, most, count) if located
                     else context_plain(sections, headline, most, count))  # fmt: skip
            text = whole.removeprefix(headline).lstrip("\n")  # the headline counts, but is kept apart
            if not text.strip():
                if skip:
                    continue
                raise DataError(f"{where}: the article is empty")
            if not section.get("hash"):
                raise DataError(f"{where} has no hash, which names its image file")
            number = document.get("_id", "")
            number = number.get("$oid", "") if isinstance(number, Mapping) else number  # mongoexport's way
            yield Article(f"{number}_{k}", str(Path(images) / f"{section['hash']}.jpg"), headline, text, caption, mine,
                          "\n")  # fmt: skip


def split_by_date(date: Any) -> str:
    """Split of a publication date ("2019-05-03..." or mongoexport's {"$date": "..."})."""
    text = date.get("$date", "") if isinstance(date, Mapping) else str(date or "")
    if not re.match(r"\d{4}-\d{2}", text):
        raise DataError(f"publication date {date!r} is not of the form 2019-05-03")
    return "train" if text[:7] < "2019-05" else "valid" if text[:7] == "2019-05" else "test"


# --- VisualNews and your own -------------------------------------------------------------------------


def visualnews(folder: str | Path, split: str | None = None, most_words: int = 500, *,
               missing: str = "refuse") -> Iterator[Article]:  # fmt: skip
    """Items of VisualNews: `data.json` lists id, caption, topic, source, image_path and article_path (a text file).

    The set comes without splits. Here an article's name decides (5 % valid, 5 % test), so that no article is in two.
    `missing`: what happens to an item without article file, text or caption, "refuse" or "skip".
    """
    folder, skip = Path(folder), _checked(missing)
    for part in load_json(folder / "data.json"):
        try:
            where, text_path = f"{folder / 'data.json'}: item {part['id']}", folder / part["article_path"]
            image, caption = str(folder / part["image_path"]), part["caption"]
        except (KeyError, TypeError) as error:
            raise DataError(f"{folder / 'data.json'}: an item lacks {error}") from None
        share = int(hashlib.sha256(part["article_path"].encode()).hexdigest()[:8], 16) % 100
        mine = "test" if share < 5 else "valid" if share < 10 else "train"
        if split and mine != split:
            continue
        if skip and not (text_path.is_file() and (caption or "").strip()):
            continue
        if not text_path.is_file():
            raise DataError(f"{where}: article file {text_path} is not there")
        text = text_path.read_text(encoding="utf-8")
        if not text.strip():
            if skip:
                continue
            raise DataError(f"{where}: the article is empty")
        yield Article(str(part["id"]), image, "", first_words(text, most_words),
                      need_caption(caption, where, "train"), mine)  # fmt: skip


def own(path: str | Path, *, training: bool = True) -> Iterator[Article]:
    """Your own items, one JSON object a line: id, image, headline, article, caption (optional unless `training`)
    and split (optional). Image paths are relative to the file."""
    path = Path(path)
    for number, part in enumerate(documents(path), 1):
        where = f"{path}, item {number}"
        if missing := [k for k in ("id", "image", "article") if not part.get(k)]:
            raise DataError(
                f"{where} has no {', '.join(missing)}; each line needs id, image, headline, article, caption"
            )
        caption = need_caption(part.get("caption") or "", where, "train" if training else "test")
        yield Article(str(part["id"]), str(path.parent / part["image"]), part.get("headline") or "", part["article"],
                      caption, part.get("split") or "")  # fmt: skip


def open_image(path: str | Path) -> Any:
    """A picture as PIL image, RGB. Raises DataError where it cannot be read."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"image {path} cannot be read ({error}); give a JPEG or PNG file") from None
