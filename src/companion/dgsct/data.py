"""Readers for the public annotation files of AVE, LLP, AVSBench and MUSIC-AVQA, in the formats they are shared in.

Files only; media are read by `companion.dgsct.audio.read_clip`. Every reader raises ValueError with the file, the
line or entry and what was expected.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SEGMENTS = 10
AVE_CLASSES = (
    "Church bell", "Male speech, man speaking", "Bark", "Fixed-wing aircraft, airplane", "Race car, auto racing",
    "Female speech, woman speaking", "Helicopter", "Violin, fiddle", "Flute", "Ukulele", "Frying (food)", "Truck",
    "Shofar", "Motorcycle", "Acoustic guitar", "Train horn", "Clock", "Banjo", "Goat", "Baby cry, infant cry", "Bus",
    "Chainsaw", "Cat", "Horse", "Toilet flush", "Rodents, rats, mice", "Accordion", "Mandolin",
)  # fmt: skip
LLP_CLASSES = (
    "Speech", "Car", "Cheering", "Dog", "Cat", "Frying_(food)", "Basketball_bounce", "Fire_alarm", "Chainsaw",
    "Cello", "Banjo", "Singing", "Chicken_rooster", "Violin_fiddle", "Vacuum_cleaner", "Baby_laughter", "Accordion",
    "Lawn_mower", "Motorcycle", "Helicopter", "Acoustic_guitar", "Telephone_bell_ringing", "Baby_cry_infant_cry",
    "Blender", "Clapping",
)  # fmt: skip


def _class(name: str, known: tuple[str, ...], place: str) -> int:
    if name not in known:
        raise ValueError(f"{place}: class {name!r} is not one of the {len(known)} classes")
    return known.index(name)


# --- AVE ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Event:
    """One AVE video: its class and the seconds in which it is both seen and heard."""

    video: str
    label: int
    quality: str
    start: int
    stop: int

    def segments(self, background: int = len(AVE_CLASSES)) -> np.ndarray:
        """Class per second `[10]`; `background` outside the event."""
        out = np.full(SEGMENTS, background)
        out[self.start : self.stop] = self.label
        return out


def read_ave(path: Path | str) -> list[Event]:
    """`Annotations.txt`: `Category&VideoID&Quality&StartTime&EndTime`, with or without that header."""
    events = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8-sig").splitlines(), 1):
        if not line.strip() or line.startswith("Category&"):
            continue
        place = f"{Path(path).name} line {number}"
        parts = line.strip().split("&")
        if len(parts) != 5 or not (parts[3].isdigit() and parts[4].isdigit()):
            raise ValueError(f"{place}: {line.strip()!r} is not Category&VideoID&Quality&StartTime&EndTime")
        start, stop = int(parts[3]), int(parts[4])
        # one published video (VWi2ENBuTbw, a church bell) is marked 0&0: never seen and heard together
        if not (0 <= start < stop <= SEGMENTS or start == stop == 0):
            raise ValueError(
                f"{place}: event from {start} to {stop} s lies outside the {SEGMENTS}-second clip"
            )
        events.append(Event(parts[1], _class(parts[0], AVE_CLASSES, place), parts[2], start, stop))
    return events


def read_ave_split(annotations: Path | str, order: Path | str) -> list[Event]:
    """The events that an order file (`train_order.h5`, ...) names by their line numbers."""
    import h5py

    events, name = read_ave(annotations), Path(order).name
    try:
        with h5py.File(order) as file:
            index = np.asarray(file["order"]).reshape(-1)
    except (OSError, KeyError):
        raise ValueError(
            f"{name} is missing, or not an HDF5 file with a data set 'order' of line numbers"
        ) from None
    if len(wrong := index[(index < 0) | (index >= len(events))]):
        raise ValueError(f"{name} names event {wrong[0]}, but there are {len(events)}, counted from 0")
    return [events[k] for k in index]


def few_shot_ave(events: Iterable[Event], shots: int) -> list[Event]:
    """The first `shots` videos of each class, in the given order (the published few-shot sets are not drawn).

    Raises ValueError when a class has fewer.
    """
    taken: dict[int, list[Event]] = {k: [] for k in range(len(AVE_CLASSES))}
    chosen = []
    for event in events:
        if len(taken[event.label]) < shots:
            taken[event.label].append(event)
            chosen.append(event)
    short = [AVE_CLASSES[k] for k, got in taken.items() if len(got) < shots]
    if short:
        raise ValueError(f"class {short[0]!r} has fewer than {shots} videos in this split")
    return chosen


# --- LLP ---------------------------------------------------------------------------------------------


def _table(path: Path | str, header: tuple[str, ...]) -> Iterable[tuple[str, dict[str, str]]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t")
        if tuple(reader.fieldnames or ()) != header:
            raise ValueError(
                f"{Path(path).name}: columns are {reader.fieldnames}, expected {', '.join(header)} by tabs"
            )
        for number, row in enumerate(reader, 2):
            if None in row or None in row.values():
                raise ValueError(
                    f"{Path(path).name} line {number}: {len(header)} columns by tabs are expected"
                )
            yield f"{Path(path).name} line {number}", row


def read_llp_weak(path: Path | str) -> dict[str, np.ndarray]:
    """Video-level labels (`AVVP_train.csv`, `*_pd.csv`): video -> multi-hot `[25]`."""
    out = {}
    for place, row in _table(path, ("filename", "event_labels")):
        target = np.zeros(len(LLP_CLASSES))
        for name in row["event_labels"].split(","):
            target[_class(name, LLP_CLASSES, place)] = 1
        out[row["filename"]] = target
    return out


def read_llp_dense(path: Path | str) -> dict[str, np.ndarray]:
    """Second-level labels of one modality (`AVVP_eval_audio.csv`, `AVVP_eval_visual.csv`): video -> `[25, 10]`."""
    out: dict[str, np.ndarray] = {}
    for place, row in _table(path, ("filename", "onset", "offset", "event_labels")):
        if not (row["onset"].isdigit() and row["offset"].isdigit()):
            raise ValueError(
                f"{place}: onset {row['onset']!r} and offset {row['offset']!r} are not whole seconds"
            )
        start, stop = int(row["onset"]), int(row["offset"])
        # the published files hold events that end where, or before, they begin (9 to 9, 9 to 0): they mark no second
        if not (0 <= start <= SEGMENTS and 0 <= stop <= SEGMENTS):
            raise ValueError(
                f"{place}: event from {start} to {stop} s lies outside the {SEGMENTS}-second clip"
            )
        target = out.setdefault(row["filename"], np.zeros((len(LLP_CLASSES), SEGMENTS)))
        target[_class(row["event_labels"], LLP_CLASSES, place), start:stop] = 1
    return out


def few_shot_llp(weak: dict[str, np.ndarray], shots: int) -> dict[str, int]:
    """The first `shots` videos with a single label of each class, in file order: video -> class.

    LLP's training split has no such video of "Speech", so that the published few-shot sets lack that class; classes
    with fewer videos simply have fewer here, as published.
    """
    taken: dict[int, int] = {}
    chosen = {}
    for video, target in weak.items():
        label = int(target.argmax())
        if target.sum() == 1 and taken.get(label, 0) < shots:
            taken[label] = taken.get(label, 0) + 1
            chosen[video] = label
    return chosen


def llp_single_label(targets: np.ndarray) -> np.ndarray:
    """The published "classification" label: the lowest class number present. Prefer none of this; see the chapter."""
    return targets.argmax(-1)


# --- MUSIC-AVQA --------------------------------------------------------------------------------------


AVQA_KEYS = ("video_id", "question_id", "type", "question_content", "templ_values", "anser")


@dataclass(frozen=True)
class Question:
    """One question with its template filled. `kind` is (modality, type), e.g. ("Audio-Visual", "Counting")."""

    video: str
    number: int
    kind: tuple[str, str]
    text: str
    answer: str


def read_avqa(path: Path | str) -> list[Question]:
    """`avqa-{train,val,test}.json`, plain or gzipped (the answer's key is spelled `anser` in the files)."""
    path = Path(path)
    content = path.read_bytes()
    try:
        rows = json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)
    except (OSError, EOFError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path.name} cannot be read as JSON ({error})") from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path.name} is not a list of questions")
    questions = []
    for number, row in enumerate(rows, 1):
        if missing := [key for key in AVQA_KEYS if key not in row]:
            raise ValueError(
                f"{path.name} entry {number}: {missing[0]!r} is missing; it needs {', '.join(AVQA_KEYS)}"
            )
        place = f"{path.name} question {row['question_id']} of {row['video_id']}"
        try:
            kind, values = json.loads(row["type"]), json.loads(row["templ_values"])
        except (TypeError, json.JSONDecodeError):
            raise ValueError(f"{place}: type and templ_values are not lists written as JSON") from None
        words, k = row["question_content"].rstrip(" ?").split(), 0
        for at, word in enumerate(words):
            if "<" in word:
                if k >= len(values):
                    raise ValueError(f"{place}: more slots than values in {row['question_content']!r}")
                words[at] = re.sub(r"<.*?>", values[k], word)
                k += 1
        if k < len(values):
            raise ValueError(f"{place}: {len(values)} values for {k} slots in {row['question_content']!r}")
        questions.append(
            Question(row["video_id"], row["question_id"], tuple(kind), " ".join(words), row["anser"])
        )
    return questions


class Vocabulary:
    """Words of training questions -> numbers, `<pad>` first."""

    def __init__(self, questions: Iterable[Question]) -> None:
        found = (word for question in questions for word in question.text.split())
        self.words = list(dict.fromkeys(["<pad>", *found]))
        self._at = {w: k for k, w in enumerate(self.words)}

    def encode(self, text: str, length: int = 14) -> np.ndarray:
        """`[length]` numbers, padded at the end. Raises ValueError for a word that no training question has."""
        words = text.split()
        if unknown := [w for w in words if w not in self._at]:
            raise ValueError(
                f"{unknown[0]!r} in {text!r} is not in the vocabulary of {len(self.words)} words"
            )
        if len(words) > length:
            raise ValueError(f"{text!r} has {len(words)} words; the longest question has {length}")
        return np.array([self._at[w] for w in words] + [0] * (length - len(words)))


# --- AVSBench ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AVSItem:
    """One AVSBench clip: its frames, which of them have masks, and its sound, as paths below the root."""

    video: str
    category: str
    split: str
    frames: tuple[Path, ...]
    masks: tuple[Path, ...]
    wave: Path


def read_avs(table: Path | str, root: Path | str, task: str) -> list[AVSItem]:
    """`s4_meta_data.csv` (`name,category,split`) or `ms3_meta_data.csv` (`video_id,split`), five frames per clip.

    S4 has one mask per training clip (its first frame), else five.
    """
    if task not in ("s4", "ms3"):
        raise ValueError(f"task is {task!r}; choose s4 or ms3")
    root, items = Path(root), []
    with open(table, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        name = "name" if task == "s4" else "video_id"
        need = {name, "split"} | ({"category"} if task == "s4" else set())
        if missing := sorted(need - set(reader.fieldnames or ())):
            raise ValueError(
                f"{Path(table).name}: column {missing[0]!r} is missing; {task} needs {', '.join(sorted(need))}"
            )
        for number, row in enumerate(reader, 2):
            split = row["split"]
            if split not in ("train", "val", "test"):
                raise ValueError(
                    f"{Path(table).name} line {number}: split {split!r} is not train, val or test"
                )
            video = row[name]
            middle = (split, row["category"], video) if task == "s4" else (split, video)
            frames, masks = root / "visual_frames", root / "gt_masks"
            if task == "s4":
                shown = frames.joinpath(*middle)
            else:
                shown = frames / video  # MS3 keeps frames outside the split folders
            count = 1 if task == "s4" and split == "train" else 5
            stem = {"s4": "{}_{}.png", "ms3": "{}.mp4_{}.png"}[task]
            items.append(AVSItem(
                video, row.get("category", ""), split, tuple(shown / stem.format(video, k) for k in range(1, 6)),
                tuple(masks.joinpath(*middle) / f"{video}_{k}.png" for k in range(1, count + 1)),
                root / "audio_wav" / Path(*middle[:-1]) / f"{video}.wav"))  # fmt: skip
    return items


# --- VGG-Sound(40K) ----------------------------------------------------------------------------------


def read_vggsound(path: Path | str) -> list[tuple[str, int, str, str]]:
    """VGGSound's own CSV `youtube id, start seconds, label, split` (no header): list of such tuples."""
    out = []
    with open(path, encoding="utf-8-sig", newline="") as file:
        for number, row in enumerate(csv.reader(file), 1):
            if len(row) != 4 or not row[1].isdigit():
                raise ValueError(f"{Path(path).name} line {number}: {row!r} is not id, start, label, split")
            out.append((row[0], int(row[1]), row[2], row[3]))
    return out


@dataclass(frozen=True)
class Segmented:
    """One VGG-Sound(40K) video: class number per second `[10]`, the number of classes where nothing happens."""

    video: str
    category: str
    split: str
    labels: tuple[int, ...]


def read_vggsound40k(table: Path | str, categories: Path | str) -> list[Segmented]:
    """`vggsound-avel40k_labels.csv` (columns `category`, `video_id`, `label`, `split` among others; `label` a list of
    ten 0 or 1, `video_id` a number that files carry with six digits) and `VggsoundAVEL40kCategories.txt`."""
    names = tuple(
        x.strip() for x in Path(categories).read_text(encoding="utf-8-sig").splitlines() if x.strip()
    )
    out = []
    with open(table, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        need = ("category", "video_id", "label", "split")
        if missing := [c for c in need if c not in (reader.fieldnames or ())]:
            raise ValueError(
                f"{Path(table).name}: column {missing[0]!r} is missing; it needs {', '.join(need)}"
            )
        for number, row in enumerate(reader, 2):
            place = f"{Path(table).name} line {number}"
            known = _class(row["category"], names, place)
            try:
                flags = [int(x) for x in json.loads(row["label"])]
            except (json.JSONDecodeError, TypeError, ValueError):
                flags = []
            if len(flags) != SEGMENTS or not set(flags) <= {0, 1}:
                raise ValueError(
                    f"{place}: label {row['label']!r} is not a list of {SEGMENTS} zeros and ones"
                )
            if not row["video_id"].removesuffix(".0").isdigit():
                raise ValueError(f"{place}: video_id {row['video_id']!r} is not a number")
            labels = tuple(known if flag else len(names) for flag in flags)
            out.append(Segmented(f"{int(float(row['video_id'])):06d}", row["category"], row["split"], labels))
    return out


def class_missing(labels: Iterable[int], names: tuple[str, ...], split: str) -> None:
    """Raises ValueError where a class of `names` does not occur in `labels`, the classes of a split."""
    found = set(labels)
    if missing := [name for k, name in enumerate(names) if k not in found]:
        raise ValueError(
            f"class {missing[0]!r} does not occur in the {split} split ({len(missing)} of {len(names)} "
            "classes missing)"
        )
