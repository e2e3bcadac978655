"""GLUE's classification tasks in their public formats, and sentences that a small grammar writes.

`read` gives a split of a GLUE task from the local TSV files (COMPANION_DATA/glue) or from the hub. `grammar`
writes the reduced scale's tasks; they are ours, and each is made for one question (see `GRAMMAR`).
"""

from __future__ import annotations

import csv
import io
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from companion import datasets
from companion.tables import nearest
from companion.training import generator


@dataclass(frozen=True)
class Split:
    """Labelled texts: `target[k]` is the number of text k's label in `labels`."""

    texts: list[str]
    target: list[int]
    labels: tuple[str, ...]
    pairs: list[str] | None = None

    def __post_init__(self) -> None:
        if not len(self.texts) == len(self.target) == len(self.pairs or self.texts):
            raise ValueError(f"{len(self.texts)} texts, {len(self.target)} labels, {len(self.pairs or [])} second texts; "
                             "the numbers must agree")  # fmt: skip
        for k, label in enumerate(self.target):
            if label not in range(len(self.labels)):
                raise ValueError(f"example {k} has label number {label}; {len(self.labels)} labels have numbers 0 to "
                                 f"{len(self.labels) - 1}")  # fmt: skip

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, index: Sequence[int]) -> Split:
        """Some of the examples, in that order."""
        return replace(self, texts=[self.texts[i] for i in index], target=[self.target[i] for i in index],
                       pairs=[self.pairs[i] for i in index] if self.pairs else None)  # fmt: skip


# --- GLUE --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A GLUE task: names in TSV and on the hub, label order (the hub's), columns."""

    folder: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]  # TSV columns of text (and second text)
    hub: tuple[str, ...]
    dev: str = "dev.tsv"
    hub_dev: str = "validation"
    by_number: bool = True  # whether the TSV's label column holds numbers


GLUE = {
    "cola": Task("CoLA", ("unacceptable", "acceptable"), ("3",), ("sentence",)),
    "sst2": Task("SST-2", ("negative", "positive"), ("sentence",), ("sentence",)),
    "mrpc": Task("MRPC", ("not_equivalent", "equivalent"), ("#1 String", "#2 String"), ("sentence1", "sentence2")),
    "qqp": Task("QQP", ("not_duplicate", "duplicate"), ("question1", "question2"), ("question1", "question2")),
    "mnli": Task("MNLI", ("entailment", "neutral", "contradiction"), ("sentence1", "sentence2"),
                 ("premise", "hypothesis"), "dev_matched.tsv", "validation_matched", False),
    "qnli": Task("QNLI", ("entailment", "not_entailment"), ("question", "sentence"), ("question", "sentence"),
                 by_number=False),
    "rte": Task("RTE", ("entailment", "not_entailment"), ("sentence1", "sentence2"), ("sentence1", "sentence2"),
                by_number=False),
}  # fmt: skip
LABEL_COLUMNS = {"cola": "1", "mrpc": "Quality", "qqp": "is_duplicate", "mnli": "gold_label"}


def glue_name(task: str) -> str:
    """The task's name in `GLUE`, from any of its usual spellings: SST-2, sst-2, SST_2 and sst2 are one task.

    Raises ValueError for regression tasks and unknown names.
    """
    name = str(task).lower().replace("-", "").replace("_", "")
    if name == "stsb":
        raise ValueError("STS-B is regression; Y-Tuning scores a finite list of labels and cannot do it")
    if name not in GLUE:
        raise ValueError(f"GLUE task {task!r} is not known; did you mean {nearest(name, GLUE)}?")
    return name


def _rows(path: Path) -> list[list[str]]:
    """The rows of a TSV file. Raises ValueError for a file that is not UTF-8, or no table."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = error.object[: error.start].count(b"\n") + 1, error.object[error.start]
        raise ValueError(f"{path.name} of {path.parent.name} is not UTF-8 (byte 0x{byte:02x} in line {line}); GLUE's files are: "
                         "save it as UTF-8, or fetch it again") from None  # fmt: skip
    try:
        # GLUE's files are not quoted; a lone quotation mark is text
        lines = csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE)
        return [row for row in lines if row]
    except csv.Error as error:
        raise ValueError(
            f"{path.name} of {path.parent.name} is no table with tabs ({error}); fetch it again"
        ) from None


def read_tsv(path: Path, task: str) -> Split:
    """One split in GLUE's own TSV format. Raises ValueError for a file that is no UTF-8, a missing column, a broken row
    or an unknown label.

    In GLUE's own file of QQP some questions hold line breaks or tabs; these rows are left out, counted and said.
    """
    task = glue_name(task)
    spec, rows = GLUE[task], _rows(path)
    if not rows:
        raise ValueError(f"{path.name} of {task} is empty; fetch it again")
    head = [str(k) for k in range(len(rows[0]))] if task == "cola" else rows.pop(0)
    label_column = LABEL_COLUMNS.get(task, "label")
    for column in (*spec.columns, label_column):
        if column not in head:
            raise ValueError(f"{path.name}: column {column!r} of {task} is missing; found {', '.join(head)}")
    at, of = [head.index(c) for c in spec.columns], head.index(label_column)
    codes = (
        {str(k): k for k in range(len(spec.labels))}
        if spec.by_number
        else {x: k for k, x in enumerate(spec.labels)}
    )
    texts: list[list[str]] = [[] for _ in at]
    target = []
    broken = 0
    for number, row in enumerate(rows, 1):
        if task == "qqp" and (len(row) != len(head) or not all(row[k].strip() for k in at)):
            broken += 1
            continue
        if len(row) != len(head):
            raise ValueError(f"{path.name}: row {number} has {len(row)} fields, expected {len(head)}")
        if row[of] not in codes:
            raise ValueError(f"{path.name}: row {number} has label {row[of]!r}; known: {', '.join(codes)}")
        target.append(codes[row[of]])
        for column, k in zip(texts, at, strict=True):
            column.append(row[k].strip())
    if broken:
        warnings.warn(
            f"{path.name} of {task}: {broken} of {len(rows)} rows are broken and were left out", stacklevel=2
        )
    return Split(texts[0], target, spec.labels, texts[1] if len(texts) > 1 else None)


def read(task: str, split: str = "train") -> Split:
    """`train` or `dev` of a GLUE task, in any usual spelling of its name: local TSV files where they are, else the hub's
    `nyu-mll/glue`.

    Raises DataMissing where neither can be had.
    """
    task = glue_name(task)
    spec = GLUE[task]
    if split not in ("train", "dev"):
        raise ValueError(f"split is {split!r}; GLUE's labelled splits are train and dev")
    try:
        return read_tsv(
            datasets.find(f"glue/{spec.folder}/{'train.tsv' if split == 'train' else spec.dev}"), task
        )
    except datasets.DataMissing as missing:
        reason = missing
    try:
        from datasets import load_dataset

        found = load_dataset("nyu-mll/glue", task, split="train" if split == "train" else spec.hub_dev)
    except Exception as error:
        raise datasets.DataMissing(f"{reason}; and the hub's nyu-mll/glue cannot be read "
                                   f"({type(error).__name__})") from None  # fmt: skip
    columns = [[text.strip() for text in found[name]] for name in spec.hub]
    whole = [k for k, given in enumerate(zip(*columns, strict=True)) if all(given)]
    if len(whole) < len(found):  # some questions of QQP are empty
        warnings.warn(f"{len(found) - len(whole)} of {len(found)} examples of {task} have an empty text and were left "
                      "out", stacklevel=2)  # fmt: skip
    split_ = Split(columns[0], list(found["label"]), spec.labels, columns[1] if len(columns) > 1 else None)
    return split_.take(whole)


def same_labels(*splits: Split) -> tuple[str, ...]:
    """The labels that all splits share. Raises ValueError where they differ."""
    for other in splits[1:]:
        if other.labels != splits[0].labels:
            raise ValueError(f"the splits have different labels: {', '.join(splits[0].labels)} and "
                             f"{', '.join(other.labels)}; they must be the same, in the same order")  # fmt: skip
    return splits[0].labels


def divide(data: Split, share: float, seed: int, most: int = 0) -> tuple[Split, Split]:
    """Two random parts of `data`: all but `share` of it, and `share`. With `most`, of `most` examples only."""
    if not 0 < share < 1:
        raise ValueError(f"share is {share}; it lies between 0 and 1")
    order = list(range(len(data)))
    random.Random(f"divide {seed}").shuffle(order)
    order = order[: most or None]
    cut = round(len(order) * (1 - share))
    return data.take(order[:cut]), data.take(order[cut:])


# --- the grammar -------------------------------------------------------------------------------------

GOOD = ("great", "lovely", "superb", "perfect", "charming", "excellent", "wonderful", "delightful")
BAD = ("awful", "bland", "poor", "terrible", "dreadful", "horrible", "mediocre", "disgusting")
PARTS = ("food", "service", "music", "view")
FRAMES = ("the {a} was {p} but the {b} was {q}", "the {a} was {p} and the {b} {q}",
          "while the {a} was {p} , the {b} seemed {q}", "we found the {a} {p} and the {b} {q}",
          "{p} {a} , {q} {b}", "the {a} , which was {p} , came with {q} {b}")  # fmt: skip
PEOPLE = ("nurse", "pilot", "baker", "lawyer", "farmer", "singer", "doctor", "painter", "guard", "teacher")
VERBS = ("thanked", "followed", "called", "helped", "blamed", "paid", "warned", "hired")
SINGULAR = ("walks", "sings", "waits", "smiles", "works", "laughs", "sleeps", "travels")
PLURAL = ("walk", "sing", "wait", "smile", "work", "laugh", "sleep", "travel")
NEAR = ("near", "behind", "beside", "with", "in front of")
TIMES = ("morning", "evening", "night", "week", "summer", "winter", "day", "month")


# requests: label k asks for action k mod 15 on a thing; 150 pairs, the first C of them mix actions and things
ACTIONS = (("book", "booked"), ("cancel", "cancelled"), ("change", "changed"), ("check", "checked"),
           ("compare", "compared"), ("confirm", "confirmed"), ("delay", "delayed"), ("explain", "explained"),
           ("find", "found"), ("order", "ordered"), ("print", "printed"), ("renew", "renewed"),
           ("return", "returned"), ("send", "sent"), ("update", "updated"))  # fmt: skip
THINGS = (
    "flight",
    "hotel",
    "ticket",
    "invoice",
    "parcel",
    "insurance",
    "loan",
    "passport",
    "phone",
    "newspaper",
)
ASKS = ("please {a} the {x} , the {y} is already {d}", "i have {d} the {y} , now i want to {a} the {x}",
        "do not {b} the {y} , just {a} the {x}", "could you {a} my {x} ? we {d} the {y} last week",
        "after they {d} my {y} i would like to {a} the {x}", "{a} the {x} today and never {b} the {y}",
        "i want to {a} the {x} , not to {b} the {y}", "the {y} was {d} , so {a} the {x} next")  # fmt: skip
REQUESTS = tuple((k % 15, (k + k // 30) % 10) for k in range(150))  # label -> (action, thing), each pair once

# Sentences of our own for pictures of attention: ordinary prose that no template has written.
SENTENCES = (
    "We waited forty minutes, but the food was worth every one of them.",
    "The terrace is lovely; what arrives on the plate is not.",
    "I expected a dull evening and left with a smile on my face.",
    "Despite a famous cast the film never comes to life.",
    "The waiter was friendly although he forgot half of our order.",
    "It is hard to think of a warmer or wiser story this year.",
)


def typos(texts: Sequence[str], share: float, seed: int) -> list[str]:
    """The texts with two inner neighbouring letters swapped in about `share` of the words of four letters or more."""
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}; it lies between 0 and 1")
    changed = []
    for k, text in enumerate(texts):
        r, words = random.Random(f"typos {seed} {k}"), text.split(" ")
        for at, word in enumerate(words):
            if len(word) > 3 and r.random() < share:
                i = r.randrange(1, len(word) - 2)
                words[at] = word[:i] + word[i + 1] + word[i] + word[i + 2 :]
        changed.append(" ".join(words))
    return changed


def _request(r: random.Random, labels: tuple[str, ...]) -> tuple[str, str | None, int]:
    target = r.randrange(len(labels))
    (a, x), (b, y) = REQUESTS[target], r.choice(REQUESTS)
    while b == a or y == x:
        b, y = r.choice(REQUESTS)
    text = r.choice(ASKS).format(a=ACTIONS[a][0], x=THINGS[x], b=ACTIONS[b][0], d=ACTIONS[b][1], y=THINGS[y])
    return text, None, target


def _aspect(r: random.Random, labels: tuple[str, ...]) -> tuple[str, str | None, int]:
    other, target, opposite = r.choice(PARTS[1:]), r.randrange(2), r.randrange(2)
    words = {"food": r.choice((BAD, GOOD)[target]), other: r.choice((BAD, GOOD)[opposite])}
    a, b = r.sample(["food", other], 2)
    return r.choice(FRAMES).format(a=a, b=b, p=words[a], q=words[b]), None, target


def _agreement(r: random.Random, labels: tuple[str, ...]) -> tuple[str, str | None, int]:
    subject, other = r.sample(PEOPLE, 2)
    plural, attractor, target = r.randrange(2), r.randrange(2), r.randrange(2)
    verb = r.choice(PLURAL if plural == target else SINGULAR)
    text = f"the {subject}{'s' * plural} {r.choice(NEAR)} the {other}{'s' * attractor} {verb} every {r.choice(TIMES)}"
    return text, None, target


def _roles(r: random.Random, labels: tuple[str, ...]) -> tuple[str, str | None, int]:
    a, b = r.sample(PEOPLE, 2)
    verb, target = r.choice(VERBS), r.randrange(2)
    x, y = (b, a) if target else (a, b)
    first = f"the {a} {verb} the {b}" if r.randrange(2) else f"the {b} was {verb} by the {a}"
    second = f"the {x} {verb} the {y}" if r.randrange(2) else f"the {y} was {verb} by the {x}"
    return first, second, target


GRAMMAR: dict[str, tuple[tuple[str, ...], Callable]] = {
    # two judgements in a sentence, the label is that of the food: a mean over tokens mixes them
    "aspect": (("bad", "good"), _aspect),
    # does the verb agree with its subject, past an attractor? (the second label is: it does)
    "agreement": (("unacceptable", "acceptable"), _agreement),
    # does the second sentence say who did what as the first does? Same words either way
    "roles": (("entailment", "not_entailment"), _roles),
}


def grammar(task: str, count: int, seed: int, part: str = "train") -> Split:
    """`count` examples of a grammar task; `part` (train, valid, dev) names an independent stream of the seed.

    `requests-C` has the first C of 150 requests as labels. No text of `dev` is in another part of any seed.
    """
    if task.startswith("requests-"):
        number = task.removeprefix("requests-")
        if not number.isdigit() or not 2 <= int(number) <= len(REQUESTS):
            raise ValueError(f"grammar task {task!r}: the number of requests is 2 to {len(REQUESTS)}")
        labels = tuple(f"{ACTIONS[a][0]} {THINGS[x]}" for a, x in REQUESTS[: int(number)])
        write = _request
    elif task in GRAMMAR:
        labels, write = GRAMMAR[task]
    else:
        raise ValueError(
            f"grammar task {task!r} does not exist; did you mean {nearest(task, [*GRAMMAR, 'requests-8'])}?"
        )
    if count < 1:
        raise ValueError(f"count is {count}; it starts at 1")
    r = random.Random(int(generator("ytuning grammar", task, seed, part).initial_seed()))
    found = []
    while len(found) < count:
        example = write(r, labels)
        # one sentence in three belongs to dev, whatever the seed: nothing is tested that was trained on
        kept_for_dev = random.Random(" ".join(filter(None, example[:2]))).random() < 1 / 3
        if kept_for_dev == (part == "dev"):
            found.append(example)
    texts, pairs, target = zip(*found, strict=True)
    return Split(list(texts), list(target), labels, list(pairs) if pairs[0] is not None else None)
