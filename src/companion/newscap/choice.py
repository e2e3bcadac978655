"""A captioner that chooses a caption instead of writing one: what does the model know, when copying is taken off it?

A small BART that has not learned to copy joins parts of different people's names. Its written captions are then
wrong whatever it knows of who does what, and a comparison with it mostly measures copying. Here the trained model
only *scores*: every caption that can be put together from the article's own names is listed (`candidates`), and the
one to which the model gives the highest likelihood is taken. No name can come out torn.

The list is complete, nothing is cut: of an article with three people, two places and one day, 8 verbs × 6 ordered
pairs of people × 2 places = 96 captions, in the form of tier 1, in alphabetical order (so that a model that cannot
tell them apart gains nothing by their order). The score is the log-likelihood of the whole caption, teacher forced::

    log p(y | x) = sum_t log p(y_t | y_<t, x)

Two readings of the scores make the choice easier still. With the **verb given**, only the 12 captions of the right
verb compete; guessing is then right in 1 of 12. And since the model may prefer one name to another for reasons that
have nothing to do with the image (a pair of first and last name that training never showed), `beyond_image` takes
off what the caption scores with other items' images, y being the caption, a the article, v the image::

    log p(y | a, v) - log 1/K sum_k p(y | a, v_k)

In this world the article makes all candidates of a verb equally likely, so an ideal copier would need no such
correction, and for it both readings agree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from companion.newscap import reduced, world
from companion.newscap.reduced import EOS, Captioner, Tensors


def candidates(article: str) -> list[str]:
    """Every caption in the form of tier 1 that an article's own people, places and days allow, in alphabetical order.

    Raises ValueError for an article with fewer than two people, or without a place or a day.
    """
    found = reduced.gazetteer().entities(article)
    people, places, days = (
        sorted({name for name, kind in found if kind == wanted}) for wanted in ("PERSON", "GPE", "DATE")
    )
    if len(people) < 2 or not places or not days:
        raise ValueError(f"the article names {len(people)} people, {len(places)} places and {len(days)} days of the news "
                         "world; a caption needs two people, a place and a day")  # fmt: skip
    return sorted(world.caption_of(verb, agent, other, place, day) for verb in world.BY_VERB
                  for agent, other in permutations(people, 2) for place in places for day in days)  # fmt: skip


def of_verb(options: Sequence[str], verb: str) -> list[str]:
    """The candidates that state `verb`."""
    return [caption for caption in options if world.parse(caption)["verb"] == verb]


@torch.no_grad()
def likelihoods(
    model: Captioner, data: Tensors, options: Sequence[Sequence[str]], batch: int = 8
) -> list[Tensor]:
    """Log-likelihood (nats) of each item's candidate captions, end token included: one tensor [n_i] per item.

    `batch` items go through the encoder at once; their states are repeated for the candidates.
    """
    model.eval()
    found: list[Tensor] = []
    for start in range(0, len(options), batch):
        part = options[start : start + batch]
        sizes = torch.tensor([len(captions) for captions in part])
        inputs = data.rows(slice(start, start + batch), model.condition)
        states, mask, prefixes = model.core._encode(**inputs)
        if prefixes:
            raise ValueError(
                "candidates are scored without decoder prefixes; choose another condition than decoder"
            )
        labels = reduced.pad([[*reduced.ids(c), EOS] for captions in part for c in captions], -100)
        logits = model.core.bart(
            encoder_outputs=BaseModelOutput(states.repeat_interleave(sizes, 0)),
            attention_mask=mask.repeat_interleave(sizes, 0), labels=labels, use_cache=False).logits  # fmt: skip
        # an ignored label costs nothing, so the sum runs over the caption's own tokens
        nats = nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none").sum(1)
        found += (-nats).split(sizes.tolist())
    return found


def beyond_image(model: Captioner, data: Tensors, options: Sequence[Sequence[str]], seed: int = 0, others: int = 8,
                 batch: int = 8) -> list[Tensor]:  # fmt: skip
    """Log-likelihood minus that under the mean of `others` other items' images: what the item's own image adds.

    The article and all else stay the item's own. Each item gets another item's image every time.

    Raises ValueError for a condition without image, and for too few items.
    """
    count = len(options)
    if not model.condition.image:
        raise ValueError("this captioner sees no image; what an image adds is undefined")
    if not 1 <= others < count:
        raise ValueError(f"{others} other images of {count} items; choose 1 to {count - 1}")
    order = torch.from_numpy(np.random.default_rng([seed, 82]).permutation(count))
    elsewhere = []
    for k in range(1, others + 1):
        image = torch.empty_like(data.image)
        image[order] = data.image[order.roll(k)]
        elsewhere.append(likelihoods(model, replace(data, image=image), options, batch))
    own = likelihoods(model, data, options, batch)
    return [mine - (torch.stack(theirs).logsumexp(0) - np.log(others))
            for mine, *theirs in zip(own, *elsewhere, strict=True)]  # fmt: skip


def choose(options: Sequence[Sequence[str]], scores: Sequence[Tensor]) -> list[str]:
    """The candidate of the highest score, per item."""
    return [captions[int(s.argmax())] for captions, s in zip(options, scores, strict=True)]


def drawn(options: Sequence[Sequence[str]], seed: int = 0) -> list[Tensor]:
    """Scores of a writer that knows nothing: one random number per candidate."""
    rng = np.random.default_rng([seed, 83])
    return [torch.from_numpy(rng.random(len(captions))) for captions in options]


def outcome(picks: Mapping[str, Sequence[str]], items: Sequence[world.Item], seed: int = 0) -> dict[str, float | None]:  # fmt: skip
    """The metrics of the table "copying" in per cent, from the captions of each way to get one.

    `picks`: "chosen" (among all candidates), "given" (of the right verb), "beyond" (what the image adds) and "free"
    (written); a way that is missing gives None. Of "chosen" also the parts of the caption; of each choice the
    bootstrap interval over items; of "free" the share of names that nothing supports.
    """
    found: dict[str, float | None] = {}
    for way in ("chosen", "given", "beyond", "free"):
        hits = reduced.slot_hits(picks[way], items) if way in picks else None
        found[way] = 100 * float(hits["all"].mean()) if hits else None
        if way == "chosen" and hits:
            found |= {part: 100 * float(hits[part].mean()) for part in world.SLOTS}
        if way != "free":
            found[f"{way}_low"], found[f"{way}_high"] = (
                reduced.bootstrap(hits["all"], seed) if hits else (None, None)
            )
    free = picks.get("free")
    found["from_nothing"] = (
        reduced.supported(free, items, [None] * len(items))["from_nothing"] if free else None
    )
    return found
