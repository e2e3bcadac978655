"""The news world: images, articles and captions made by a small program, so that the claim can be tested.

Three properties matter. The article alone cannot say what the image shows (bystanders, two places, decoy
events). The image alone cannot name anybody (it shows coats, the article says who wears which). And the weekday
stands only in the article, so a model that ignores it fails. Test names are pairs that training never showed.

An item of tier 1 (words, in random order of sentences):

    article   Ana Torres in red . Leo Park in blue . Mia Sato in green . Corvo beach . Lanta hall .
              Earlier Leo Park hugged Mia Sato in Lanta . Earlier ... On Friday .
    image     two figures in red and blue coats, an icon for the action, an arm stretched by the agent, a beach
    caption   Ana Torres teaches Leo Park at Corvo on Friday .
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FIRST = ("Ana", "Leo", "Mia", "Omar", "Nina", "Hugo", "Ruth", "Ivan", "Lena", "Paul", "Sara", "Karl",
         "Tara", "Joel", "Vera", "Noah", "Elsa", "Amir", "Gwen", "Dario", "Inga", "Felix", "Yara", "Bruno")  # fmt: skip
LAST = ("Torres", "Park", "Sato", "Berg", "Silva", "Lindt", "Costa", "Novak", "Haas", "Moreau", "Okafor", "Reyes",
        "Dunn", "Vidal", "Kaya", "Weiss", "Patel", "Rossi", "Larsen", "Mbeki", "Ortega", "Quinn", "Tanaka", "Zorn")  # fmt: skip
PLACES = ("Corvo", "Lanta", "Tisa", "Velda", "Marno", "Quera", "Sulen", "Orbeck", "Pavia", "Dorun", "Kessel", "Ristow",
          "Amber", "Yelton", "Hovden", "Brisk")  # fmt: skip
KINDS = ("beach", "stadium", "hall", "market", "forest")
COLOURS = {"red": (205, 40, 45), "blue": (45, 80, 205), "green": (30, 150, 60), "yellow": (235, 205, 40),
           "purple": (135, 50, 165), "white": (240, 240, 240)}  # fmt: skip
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True)
class Action:
    """An imSitu verb with the two person roles of its frame, and how sentences spell it."""

    verb: str
    agent: str
    other: str
    present: str
    past: str


ACTIONS = (
    Action("hugging", "agent", "hugged", "hugs", "hugged"),
    Action("interviewing", "agent", "interviewee", "interviews", "interviewed"),
    Action("teaching", "teacher", "student", "teaches", "taught"),
    Action("saluting", "agent", "target", "salutes", "saluted"),
    Action("applauding", "agent", "addressee", "applauds", "applauded"),
    Action("arresting", "agent", "suspect", "arrests", "arrested"),
    Action("helping", "agent", "entityhelped", "helps", "helped"),
    Action("filming", "agent", "performer", "films", "filmed"),
)
BY_VERB = {a.verb: a for a in ACTIONS}
SLOTS = ("verb", "agent", "other", "place", "day")


@dataclass(frozen=True)
class WorldConfig:
    """Difficulty: tier 1 is the default; tier 2 has more of everything and three caption templates."""

    people: int = 3
    places: int = 2
    decoys: int = 2
    templates: int = 1  # 1: active only; 3: active, passive, place first
    noise: float = 0.02  # standard deviation of the image noise, of 1
    size: int = 48  # image side in pixels

    def __post_init__(self) -> None:
        if not (3 <= self.people <= len(COLOURS) and 2 <= self.places <= len(KINDS)):
            raise ValueError(f"{self.people} people and {self.places} places; choose 3 to {len(COLOURS)} people "
                             f"(one coat each) and 2 to {len(KINDS)} places")  # fmt: skip
        if self.templates not in (1, 3):
            raise ValueError(f"templates is {self.templates}; choose 1 or 3")


TIERS = {1: WorldConfig(), 2: WorldConfig(people=4, places=3, decoys=3, templates=3)}


@dataclass(frozen=True)
class Item:
    """One news photograph with its article. `image`: [size, size, 3] uint8. `people`: name -> coat colour, in
    the order agent, other, bystanders. `places`: name -> kind, the depicted one first."""

    id: str
    image: np.ndarray
    article: str
    caption: str
    verb: str
    agent: str
    other: str
    place: str
    day: str
    people: dict[str, str]
    places: dict[str, str]

    @property
    def slots(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in SLOTS}


def names(split: str) -> list[str]:
    """Full names of a split: of the 576 pairs, 96 (four last names per first name, drawn once) are for "test" only.

    The draw has no pattern: with a pattern, pre-training learns that the missing pairs do not exist.
    """
    rank = np.random.default_rng(7).random((len(FIRST), len(LAST))).argsort(1).argsort(1)
    return [
        f"{FIRST[i]} {LAST[j]}" for i, j in zip(*np.nonzero((rank < 4) == (split == "test")), strict=True)
    ]


def caption_of(verb: str, agent: str, other: str, place: str, day: str, template: int = 0) -> str:
    """The caption that says all five slots. Template 0 active, 1 passive, 2 place first."""
    a = BY_VERB[verb]
    return (f"{agent} {a.present} {other} at {place} on {day} .",
            f"{other} is {a.past} by {agent} at {place} on {day} .",
            f"At {place} on {day} {agent} {a.present} {other} .")[template]  # fmt: skip


_NAME = r"([A-Z][a-z]+ [A-Z][a-z]+)"
_PRESENT = {a.present: a.verb for a in ACTIONS}
_PAST = {a.past: a.verb for a in ACTIONS}
_PATTERNS = (
    (re.compile(rf"{_NAME} (\w+) {_NAME} at (\w+) on (\w+) ?\."), ("agent", "present", "other", "place", "day")),
    (re.compile(rf"{_NAME} is (\w+) by {_NAME} at (\w+) on (\w+) ?\."), ("other", "past", "agent", "place", "day")),
    (re.compile(rf"At (\w+) on (\w+) {_NAME} (\w+) {_NAME} ?\."), ("place", "day", "agent", "present", "other")),
)  # fmt: skip


def parse(caption: str) -> dict[str, str | None]:
    """The five slots that a caption states, exactly; a caption of no known form gives None everywhere."""
    for pattern, order in _PATTERNS:
        if match := pattern.fullmatch(caption.strip()):
            found = dict(zip(order, match.groups(), strict=True))
            verb = _PRESENT.get(found.get("present", "")) or _PAST.get(found.get("past", ""))
            return {s: verb if s == "verb" else found[s] for s in SLOTS}
    return dict.fromkeys(SLOTS)


# --- images ------------------------------------------------------------------------------------------

# Each action's icon is one of eight 5 x 5 patterns with ten dark cells.
_ICONS = np.stack([np.random.default_rng(100 + k).permutation(np.repeat([1, 0], [12, 13])).reshape(5, 5)
                   for k in range(len(ACTIONS))])  # fmt: skip
_SKIN, _INK = np.array([228, 190, 160]), np.array([25, 25, 30])


def _background(kind: str, size: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    light, dark, pattern = {
        "beach": ((240, 225, 170), (150, 200, 230), y < size // 3),
        "stadium": ((120, 195, 110), (150, 215, 140), (x // 6) % 2 == 0),
        "hall": ((205, 200, 195), (180, 175, 172), ((x // 8) + (y // 8)) % 2 == 0),
        "market": ((225, 180, 150), (240, 215, 200), ((x + y) // 6) % 2 == 0),
        "forest": ((95, 120, 80), (120, 150, 100), (x * 7 + y * 13) % 11 < 4),
    }[kind]
    return np.where(pattern[..., None], np.array(light), np.array(dark)).astype(np.float32)


def draw(verb: str, coats: tuple[str, str], kind: str, flipped: bool, shift: int, config: WorldConfig = TIERS[1],
         noise: np.ndarray | None = None) -> np.ndarray:  # fmt: skip
    """[size, size, 3] uint8: agent and other in their coats (agent on the left unless `flipped`).

    Only the arm says who is the agent. `shift` moves the scene up or down; `noise` is added, of 1.
    """
    s = config.size / 48
    image = _background(kind, config.size)

    def box(x0: float, y0: float, x1: float, y1: float, colour) -> None:
        lo, hi = round((y0 + shift) * s), round((y1 + shift) * s)
        image[max(lo, 0) : max(hi, 0), round(x0 * s) : round(x1 * s)] = colour

    left, right = coats if not flipped else coats[::-1]
    for x, coat in ((5, left), (33, right)):
        box(x + 2, 14, x + 8, 20, _SKIN)
        box(x, 20, x + 10, 42, COLOURS[coat])
    arm = COLOURS[coats[0]]
    box(*((15, 23, 27, 27) if not flipped else (21, 23, 33, 27)), arm)
    icon = _ICONS[[a.verb for a in ACTIONS].index(verb)]
    box(18, 4, 30, 16, (250, 250, 250))
    for r, c in zip(*np.nonzero(icon), strict=True):
        box(19 + 2 * c, 5 + 2 * r, 21 + 2 * c, 7 + 2 * r, _INK)
    if noise is not None:
        image = image + 255 * noise
    return np.clip(image, 0, 255).astype(np.uint8)


# --- items -------------------------------------------------------------------------------------------


def article_of(people: dict[str, str], places: dict[str, str], day: str, decoys: Sequence[tuple[str, str, str, str]],
               rng: np.random.Generator) -> str:  # fmt: skip
    """All sentences of an article in random order. `decoys`: (agent, verb, other, place)."""
    lines = [f"{name} in {coat} ." for name, coat in people.items()]
    lines += [f"{place} {kind} ." for place, kind in places.items()]
    lines += [f"Earlier {a} {BY_VERB[v].past} {o} in {p} ." for a, v, o, p in decoys]
    lines.append(f"On {day} .")
    return " ".join(lines[k] for k in rng.permutation(len(lines)))


def sample(rng: np.random.Generator, roster: Sequence[str], number: str, config: WorldConfig = TIERS[1],
           pictures: bool = True) -> Item:  # fmt: skip
    """Draw one item whose people come from `roster`; `pictures=False` leaves the image empty (text only)."""

    def some(options: Sequence[str], k: int) -> list[str]:
        return [options[j] for j in rng.choice(len(options), k, replace=False)]

    people = dict(zip(some(roster, config.people), some(tuple(COLOURS), config.people), strict=True))
    places = dict(zip(some(PLACES, config.places), some(KINDS, config.places), strict=True))
    verbs = some(tuple(BY_VERB), 1 + config.decoys)
    agent, other = list(people)[:2]
    place, day = next(iter(places)), DAYS[rng.integers(len(DAYS))]
    decoys = []
    for verb in verbs[1:]:
        a, o = some(list(people), 2)
        decoys.append((a, verb, o, some(list(places), 1)[0]))
    article = article_of(people, places, day, decoys, rng)
    template = int(rng.integers(config.templates))
    flipped, shift = bool(rng.integers(2)), int(rng.integers(-2, 3))
    image = np.zeros((0, 0, 3), np.uint8)
    if pictures:
        noise = rng.normal(0, config.noise, (config.size, config.size, 3)).astype(np.float32)
        image = draw(verbs[0], (people[agent], people[other]), places[place], flipped, shift, config, noise)
    caption = caption_of(verbs[0], agent, other, place, day, template)
    return Item(number, image, article, caption, verbs[0], agent, other, place, day, people, places)


def make(
    split: str, size: int, seed: int = 0, config: WorldConfig = TIERS[1], pictures: bool = True
) -> list[Item]:
    """`size` items of a split ("train", "valid" or "test"); the same arguments give the same items."""
    if split not in ("train", "valid", "test"):
        raise ValueError(f"split is {split!r}; choose train, valid or test")
    rng = np.random.default_rng([seed, ("train", "valid", "test").index(split)])
    roster = names("test" if split == "test" else "train")
    return [sample(rng, roster, f"{split}-{k}", config, pictures) for k in range(size)]


def write_goodnews(folder, items: Sequence[Item], splits: Sequence[str]) -> None:
    """Items as a folder in GoodNews's format (`captioning_dataset.json`, `img_splits.json`, `images/`).

    With it, the code path of the real sets runs from files to scores without a real article.
    """
    import json
    from pathlib import Path

    from PIL import Image

    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    content, where = {}, {}
    for item, split in zip(items, splits, strict=True):
        content[item.id] = {"images": {"0": item.caption}, "headline": {"main": ""}, "article": item.article}
        where[f"{item.id}_0"] = {"valid": "val"}.get(split, split)
        # PNG content under the published name: the reader goes by content, and no coat colour is blurred
        Image.fromarray(item.image).save(folder / "images" / f"{item.id}_0.jpg", format="PNG")
    (folder / "captioning_dataset.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / "img_splits.json").write_text(json.dumps(where), encoding="utf-8")
