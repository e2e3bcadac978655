"""A frozen model with a Y-Tuning head: fit, predict, `save_pretrained`, `from_pretrained`.

Only the head is stored, with a pointer to the frozen model (its name and the hash of its files).
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from companion import records
from companion.tables import nearest
from companion.training import generator
from companion.ytuning import features as store
from companion.ytuning import methods, metrics, multitask, protocol, streaming
from companion.ytuning.frozen import FrozenEncoder
from companion.ytuning.model import YTuning, YTuningConfig, check_labels

FORMAT = 1


def listed(texts: Sequence[str], what: str = "texts") -> list:
    """`texts` (a list, an array, a column of a table) as a list.

    Raises ValueError for one string, whose letters would pass for texts, for a dict or a whole table, whose column names
    would, and for what is no list at all.
    """
    if isinstance(texts, str):
        raise ValueError(f"{what} is one string, {texts[:40]!r}; give a list of them, even for one")
    if isinstance(texts, Mapping) or getattr(texts, "ndim", 1) != 1:
        raise ValueError(
            f"{what} is a {type(texts).__name__} and no single column; give a list, such as one column of it"
        )
    try:
        return list(texts.tolist() if hasattr(texts, "tolist") else texts)
    except TypeError:
        raise ValueError(f"{what} is {texts!r}; give a list") from None


def check_names(names: Sequence[str], task: str) -> None:
    """Raises ValueError for a label without a name: a missing value of a table would become the label "nan"."""
    for k, name in enumerate(names):
        missing = name is None or (isinstance(name, float) and math.isnan(name))
        if missing or not str(name).strip():
            raise ValueError(f"label {k} of {task} is {name!r}; each label needs a name")


def check_options(options: Mapping[str, Any]) -> None:
    """Raises ValueError for an option that `YTuningConfig` does not have."""
    known = {field.name for field in fields(YTuningConfig)} - {"tasks"}
    for name in options:
        if name in ("num_labels", "problem_type"):
            raise ValueError(f"there is no {name}; labels=('no', 'yes') lists the labels of a classification by their names, and "
                             "regression cannot be done")  # fmt: skip
        if name not in known:
            raise ValueError(f"option {name!r} does not exist; did you mean {nearest(name, sorted(known))}?")


def check_tasks(tasks: Mapping[str, Sequence[str]]) -> None:
    """Raises ValueError for a task name that torch cannot give to a table of parameters."""
    taken = nn.ParameterDict()
    for task in map(str, tasks):
        if not task or "." in task or hasattr(taken, task):
            raise ValueError(f"task {task!r} cannot name a table of parameters (it is empty, has a dot, or is a word that "
                             "torch keeps for itself, such as type, train or items); rename it")  # fmt: skip


def held_out(count: int, share: float, seed: int, what: str = "") -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of `count` examples, shuffled: those to train on, and at least one, about `share` of all, to choose on.

    Raises ValueError for a share outside 0 to 1, or too few examples for two parts.
    """
    if not 0 < share < 1:
        raise ValueError(f"hold_out is {share}; it lies between 0 and 1")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    cut = max(1, round(count * share))
    if cut >= count:
        raise ValueError(f"{what}{count} example{'s' if count != 1 else ''} cannot be split into training and held-out "
                         "part; give more, or hold out less")  # fmt: skip
    return order[cut:], order[:cut]


def _budget(rates: Sequence[float] | float, epochs: int, batch_size: int) -> protocol.Budget:
    """One or several learning rates as a budget. Raises ValueError for a batch without examples, and like `Budget`."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it starts at 1")
    rates = (rates,) if isinstance(rates, int | float) else tuple(rates)
    return protocol.Budget(rates, epochs, batch_size)


class Output(NamedTuple):
    """What `forward` gives: loss (None without targets) and scores [B, C]."""

    loss: torch.Tensor | None
    scores: torch.Tensor


class YTuningForSequenceClassification(nn.Module):
    """Text classification by label representations on a frozen model.

    Args:
        encoder: a `FrozenEncoder`, or the name or folder of one.
        labels: the labels of the one task, or {task: labels} for several that share the decoder. Numbers become text:
            with `labels=(0, 1)` both `fit` and `predict` speak of "0" and "1".
        apart: encode the two texts of a pair separately (models that never saw pairs, such as minilm).
        seed: of the head's random start; equal seeds start equal.
        **options: fields of `YTuningConfig`.
    """

    def __init__(self, encoder: FrozenEncoder | str = "minilm", labels: Sequence[str] | Mapping[str, Sequence[str]] =
                 ("negative", "positive"), *, apart: bool = False, seed: int = 0, **options: Any) -> None:  # fmt: skip
        super().__init__()
        tasks = labels if isinstance(labels, Mapping) else {"task": labels}
        tasks = {task: listed(names, "labels") for task, names in tasks.items()}
        check_tasks(tasks)
        for task, names in tasks.items():
            check_names(names, task)
        check_options(options)
        encoder = encoder if isinstance(encoder, FrozenEncoder) else FrozenEncoder(str(encoder))
        store.check_tokenizer(encoder)
        # in a list: the frozen model is no part of this module's parameters or state
        self._frozen, self.apart, self.seed = [encoder], apart, seed
        if apart:
            options = {"segments": 2, **options}
        defaults = {"width_in": encoder.base_width, "mix": len(encoder.layers)}
        if options.get("width", 0) in (0, encoder.base_width):
            defaults["heads"] = encoder.heads  # as in the frozen model, where the decoder is as wide
        self.config = YTuningConfig(tasks, **{**defaults, **options})
        with self._seeded():
            self.head = YTuning(self.config)
        if self.config.label_init == "names":
            for task, names in self.config.tasks.items():
                self.head.name_labels(task, methods.name_vectors(encoder, names))

    @contextlib.contextmanager
    def _seeded(self, *key: int) -> Iterator[None]:
        """New parameters follow from the model's seed, and the caller's random numbers stay as they are."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(generator(self.seed, *key).initial_seed())
            yield

    @property
    def encoder(self) -> FrozenEncoder:
        """The frozen model."""
        return self._frozen[0]

    def labels(self, task: str | None = None) -> tuple[str, ...]:
        """The labels of a task, in the order of the scores."""
        return self.head.config.tasks[self.head.pick(task)]

    def numbers(self, labels: Sequence[str], task: str | None = None) -> torch.Tensor:
        """Label names as numbers [n]. Raises ValueError for an unknown one."""
        known = {name: k for k, name in enumerate(self.labels(task))}
        labels = listed(labels, "labels")
        for k, name in enumerate(labels):
            if str(name) not in known:
                raise ValueError(f"example {k} has label {name!r}; did you mean {nearest(str(name), known)}?")
        return torch.tensor([known[str(name)] for name in labels])

    def features(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        *,
        cache_gb: float | None = None,
        **options: Any,
    ) -> store.Features | streaming.Pieces | streaming.Streamed:
        """Frozen features from the cache; `options` go to `features.extract`.

        With `cache_gb`, as `streaming.source` gives them: in pieces, or, where they would take more gigabytes than
        that, from the frozen model in every batch. `fit`, `fit_tasks`, `scores` and `predict` pass their options here.

        Raises ValueError for one string in place of a list, an empty text, or pairs that do not match.
        """
        texts, pairs = listed(texts), None if pairs is None else listed(pairs, "pairs")
        options["apart"] = self.apart and pairs is not None
        if cache_gb is not None:
            return streaming.source(self.encoder, texts, pairs, most_bytes=cache_gb * 1e9, **options)
        return store.extract(self.encoder, texts, pairs, **options)

    def forward(self, H: torch.Tensor, pad: torch.Tensor | None = None, segments: torch.Tensor | None = None,
                labels: torch.Tensor | None = None, task: str | None = None) -> Output:  # fmt: skip
        """Scores, and the loss where label numbers [B] are given, from frozen features H [B, M, P]."""
        scores = self.head(H, pad, segments, task)
        return Output(None if labels is None else self.head.loss(scores, labels), scores)

    def fit(self, texts: Sequence[str], labels: Sequence[str], pairs: Sequence[str] | None = None, *,
            task: str | None = None, epochs: int = 10, rates: Sequence[float] | float = (5e-4,), batch_size: int = 32,
            hold_out: float = 0.1, seed: int = 0, **options: Any) -> protocol.Outcome:  # fmt: skip
        """Train the head; the epoch that is best on a held-out share of the data is kept.

        Raises ValueError for unknown labels, empty texts, or labels and texts that do not match.
        """
        texts, labels = listed(texts), listed(labels, "labels")
        if len(labels) != len(texts):
            raise ValueError(f"{len(texts)} texts come with {len(labels)} labels; give one for each")
        budget = _budget(rates, epochs, batch_size)
        parts = held_out(len(texts), hold_out, seed)
        task, target = self.head.pick(task), self.numbers(labels, task)
        found = self.features(texts, pairs, **options)
        train, valid = (protocol.Labelled(found.select(i), target[i]) for i in parts)
        # every learning rate starts from the head as it is now
        out = protocol.tune(lambda: multitask.OneTask(copy.deepcopy(self.head), task), lambda m, s, y: m.head.loss(s, y), train,
                            valid, metrics.accuracy, budget, seed)  # fmt: skip
        self.head.load_state_dict(out.model.head.state_dict())
        self.eval()
        return out

    def fit_tasks(self, examples: Mapping[str, tuple[Sequence[str], ...]], *, epochs: int = 10, rate: float = 5e-4,
                  batch_size: int = 32, hold_out: float = 0.1, seed: int = 0,
                  **options: Any) -> multitask.Together:  # fmt: skip
        """Train all tasks at once: task -> (texts, labels), or (texts, labels, pairs). What tasks share (texts, or pairs
        of texts) goes through the model once.

        The epoch with the best mean accuracy on held-out shares is kept. Raises ValueError like `fit`.
        """
        budget = _budget(rate, epochs, batch_size)
        inputs, targets = {}, {}
        for task, given in examples.items():
            if len(given) not in (2, 3):
                raise ValueError(
                    f"{task} has {len(given)} lists; give (texts, labels) or (texts, labels, pairs)"
                )
            texts, labels = listed(given[0]), listed(given[1], "labels")
            if len(labels) != len(texts):
                raise ValueError(
                    f"{task}: {len(texts)} texts come with {len(labels)} labels; give one for each"
                )
            pairs = listed(given[2], "pairs") if given[2:] and given[2] is not None else [None] * len(texts)
            if len(pairs) != len(texts):
                raise ValueError(
                    f"{task}: {len(texts)} texts come with {len(pairs)} second texts; give one for each"
                )
            inputs[task], targets[task] = list(zip(texts, pairs, strict=True)), self.numbers(labels, task)
        if not inputs:
            raise ValueError("there are no tasks; give at least one with its texts and labels")
        parts = {task: held_out(len(target), hold_out, seed, f"{task}: ") for task, target in targets.items()}
        found, where = [], {}
        for paired in (False, True):  # one set of features for all single texts, one for all pairs
            every = list(
                dict.fromkeys(x for given in inputs.values() for x in given if (x[1] is not None) == paired)
            )
            where |= {x: (paired, k) for k, x in enumerate(every)}
            texts, pairs = [a for a, _ in every], [b for _, b in every]
            found.append(self.features(texts, pairs if paired else None, **options) if every else None)
        train, valid = {}, {}
        for task, target in targets.items():
            rows = [where[x] for x in inputs[task]]
            own = found[rows[0][0]].select([k for _, k in rows])
            train[task], valid[task] = (protocol.Labelled(own.select(i), target[i]) for i in parts[task])
        return multitask.tune(self.head, train, valid, metrics.accuracy, budget, seed)

    def scores(self, texts: Sequence[str], pairs: Sequence[str] | None = None, task: str | None = None,
               **options: Any) -> torch.Tensor:  # fmt: skip
        """Scores [n, C]."""
        return protocol.predict(
            multitask.OneTask(self.head, self.head.pick(task)), self.features(texts, pairs, **options)
        )

    def predict(self, texts: Sequence[str], pairs: Sequence[str] | None = None, task: str | None = None,
                **options: Any) -> list[str]:  # fmt: skip
        """The best label of each text."""
        names = self.labels(task)
        return [names[k] for k in self.scores(texts, pairs, task, **options).argmax(1).tolist()]

    def add_label(self, label: str, task: str | None = None) -> None:
        """Append a label. Cached features stay valid; only the head has to go on training."""
        check_names([label], "what is added")
        check_labels((*self.labels(task), label), self.head.pick(task))
        with self._seeded(len(self.labels(task))):
            self.head.add_label(self.head.pick(task), label)
        self.config = self.head.config

    def save_pretrained(self, folder: Path | str) -> None:
        """Write `ytuning.json` and `ytuning.safetensors`: the head, and which frozen model it belongs to."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        encoder = self.encoder
        save_file({k: v.detach().cpu().contiguous() for k, v in self.head.state_dict().items()},
                  folder / "ytuning.safetensors")  # fmt: skip
        records.write_json(folder / "ytuning.json", {
            "format": FORMAT, "head": asdict(self.head.config), "apart": self.apart,
            "frozen": {"name": encoder.name, "fingerprint": encoder.fingerprint, "max_length": encoder.max_length,
                       "layers": list(encoder.layers), "precision": encoder.precision},
        })  # fmt: skip

    @classmethod
    def from_pretrained(
        cls, folder: Path | str, encoder: FrozenEncoder | str | None = None
    ) -> YTuningForSequenceClassification:
        """Load what `save_pretrained` wrote; `encoder` may bring the frozen model, or the folder where it lies now (it must
        be the same one).

        Raises ValueError for a folder without a head, and for another frozen model.
        """
        folder = Path(folder)
        for name in ("ytuning.json", "ytuning.safetensors"):
            if not (folder / name).is_file():
                raise ValueError(f"{folder.name} holds no {name}; give a folder that save_pretrained wrote")
        try:
            content = json.loads((folder / "ytuning.json").read_text(encoding="utf-8"))
        except ValueError as error:  # broken JSON, or no UTF-8
            raise ValueError(
                f"ytuning.json of {folder.name} cannot be read ({error}); save the head again"
            ) from None
        if lost := {"format", "head", "apart", "frozen"} - set(content if isinstance(content, dict) else ()):
            raise ValueError(
                f"ytuning.json of {folder.name} lacks {', '.join(sorted(lost))}; save the head again"
            )
        if content["format"] != FORMAT:
            raise ValueError(f"{folder.name} has format {content['format']!r}; this version reads {FORMAT}")
        frozen = content["frozen"]
        if not isinstance(encoder, FrozenEncoder):
            encoder = FrozenEncoder(encoder or frozen["name"], frozen["max_length"], frozen["layers"],
                                    precision=frozen["precision"])  # fmt: skip
        if encoder.fingerprint != frozen["fingerprint"]:
            raise ValueError(f"this head was trained on {frozen['name']} ({frozen['fingerprint']}), not on "
                             f"{encoder.name} ({encoder.fingerprint}); a head only fits its own frozen model")  # fmt: skip
        if list(encoder.layers) != frozen["layers"]:
            raise ValueError(f"this head reads layers {frozen['layers']} of {frozen['name']}; the encoder given keeps "
                             f"{list(encoder.layers)}")  # fmt: skip
        head = content["head"]
        tasks = head.pop("tasks")
        # the stored embeddings replace every start: the labels' names need no pass through the frozen model
        start = {"label_init": "random"} if head["label_init"] == "names" else {}
        model = cls(encoder, tasks, apart=content["apart"], **head | start)
        model.config = model.head.config = replace(model.config, label_init=head["label_init"])
        try:
            model.head.load_state_dict(load_file(folder / "ytuning.safetensors"))
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"ytuning.safetensors of {folder.name} is broken, or not the one that its ytuning.json describes "
                             f"({str(error).strip().splitlines()[-1].strip()}); save the head again") from None  # fmt: skip
        return model.eval()
