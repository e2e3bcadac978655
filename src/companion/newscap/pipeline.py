"""The whole way from an image and an article to a caption and the rule it followed.

Every stage is a plain callable and can be replaced (see `frontend`):

    names(article) -> entities; situation(image) -> verb, nouns, boxes; match(image, situation, entities) -> score
    keep_best, fill_roles -> rule; writer(image, article, rule) -> caption
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from companion.newscap import data, frontend
from companion.newscap.audit import Support, audit
from companion.newscap.model import RuleBart
from companion.newscap.rule import MARK, MARKERS, Frames, Rule, RuleError, fill_roles


@dataclass(frozen=True)
class Captioned:
    """A caption and the rule that it was written from (None: no rule could be made)."""

    caption: str
    rule: Rule | None
    note: str = ""

    def audit(self, article: str, names: frontend.Names) -> list[Support]:
        """What supports each name of the caption: the rule, the article or nothing (see `audit`)."""
        return audit(self.caption, article, self.rule, names)


class BartWriter:
    """A trained `RuleBart` with its tokenizer and image tower, as the last stage.

    `vectors(image)` gives image vectors [n, image_width] (None: the model reads no images).
    """

    def __init__(self, model: RuleBart, tokenizer: Any, vectors: Callable[[Any], torch.Tensor] | None = None,
                 **decoding: Any) -> None:  # fmt: skip
        self.model, self.tokenizer, self.vectors = model.eval(), tokenizer, vectors
        self.decoding = {"num_beams": 5, "max_length": 50, "length_penalty": 2.0} | decoding

    def rule_inputs(self, rules: Sequence[Rule | None]) -> dict[str, torch.Tensor]:
        """rule_ids, rule_slots, rule_mask [B, p] of rules; a missing rule is fully masked."""
        return spell_batch(rules, self.tokenizer, self.model.config.max_length)

    def __call__(self, image: Any, article: str, rule: Rule | None) -> str:
        longest = self.model.bart.config.max_position_embeddings - self.model.config.image_tokens
        ids = self.tokenizer(article)["input_ids"]
        if len(ids) > longest:
            warnings.warn(f"the article has {len(ids)} tokens; the first {longest} are read", stacklevel=2)
            ids = [*ids[: longest - 1], ids[-1]]
        device = next(self.model.parameters()).device
        x = torch.tensor([ids], device=device)
        inputs = self.rule_inputs([rule]) if rule is not None else {}
        if self.vectors is not None:
            inputs["image"] = self.vectors(image)[None]
        inputs = {k: v.to(device) for k, v in inputs.items()}
        out = self.model.generate(x, torch.ones_like(x), **inputs, **self.decoding)
        return self.tokenizer.decode(out[0], skip_special_tokens=True).strip()


def spell_batch(rules: Sequence[Rule | None], tokenizer: Any, most: int) -> dict[str, torch.Tensor]:
    """Rules as padded ids, slots and mask [B, p] for any Hugging Face tokenizer; longer rules lose whole roles.

    The tokenizer must know the markers: `tokenizer.add_special_tokens({"additional_special_tokens": MARKERS})`.
    """
    rows: list[tuple[list[int], list[int]]] = []
    for rule in rules:
        ids: list[int] = []
        slots: list[int] = []
        while rule is not None:
            ids, slots = [], []
            for text, kind in rule.pieces():
                if text in MARKERS:
                    part = [tokenizer.convert_tokens_to_ids(text)]
                    if part[0] is None or part[0] == tokenizer.unk_token_id:
                        raise RuleError(f"the tokenizer does not know the marker {text}; add MARKERS to it")
                else:
                    # the leading space gives the pieces that the word has inside the article
                    part = tokenizer(" " + text, add_special_tokens=False)["input_ids"]
                ids += part
                slots += [kind if text not in MARKERS else MARK] * len(part)
            if len(ids) <= most or not rule.roles:
                break
            rule = rule.edit(drop=list(rule.roles)[-1])
        rows.append((ids[:most], slots[:most]))
    p = max((len(r) for r, _ in rows), default=0)
    out = {"rule_ids": torch.zeros(len(rows), p, dtype=torch.long), "rule_slots": torch.zeros(len(rows), p, dtype=torch.long),
           "rule_mask": torch.zeros(len(rows), p, dtype=torch.long)}  # fmt: skip
    for k, (ids, slots) in enumerate(rows):
        out["rule_ids"][k, : len(ids)] = torch.tensor(ids, dtype=torch.long)
        out["rule_slots"][k, : len(ids)] = torch.tensor(slots, dtype=torch.long)
        out["rule_mask"][k, : len(ids)] = 1
    return out


def as_hugging_face(tokenizer: Any) -> Any:
    """A `tokenizers.Tokenizer` with BART's special tokens as a Hugging Face tokenizer that knows the rule's markers
    and puts <s> and </s> around a text."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
                                   unk_token="<unk>", mask_token="<mask>")  # fmt: skip
    made.add_special_tokens({"additional_special_tokens": list(MARKERS)})
    ends = [(t, made.convert_tokens_to_ids(t)) for t in ("<s>", "</s>")]
    made.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return made


WORLD = "newsworld"  # in stages.json: the stand-ins of the news world, which come with the package


def save_pretrained(folder: str | Path, model: RuleBart, tokenizer: Any, *, names: str, clip: Any, visual: str = "",
                    situation: str = "clip", **decoding: Any) -> None:  # fmt: skip
    """Store a trained captioner for `NewsCaptioner.from_pretrained`.

    Args:
        names: the token classifier's hub name or folder; "newsworld" for a captioner of the news world.
        clip: the entity filter: hub name, folder, or a (fine-tuned) `ClipMatcher`, which is stored too.
        visual: the CLIP of the image vectors, default `clip`.
        situation: what made the rules it learned from, "clip" (zero-shot) or "coformer".
        decoding: num_beams, max_length, length_penalty.
    """
    folder = Path(folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder / "tokenizer")
    if isinstance(clip, frontend.ClipMatcher):
        clip.model.save_pretrained(folder / "clip")
        clip.processor.save_pretrained(folder / "clip")
        clip = "clip"  # a folder inside this one, so that it may be moved
    stages = {
        "names": names,
        "clip": clip,
        "visual": visual or clip,
        "situation": situation,
        "decoding": decoding,
    }
    (folder / "stages.json").write_text(json.dumps(stages, indent=1) + "\n", encoding="utf-8")


def _world_stages() -> tuple[Any, Any, Any, Callable[[Any], torch.Tensor]]:
    """Names, situation, match and image vectors of the news world, for pictures of its size."""
    from companion.newscap import reduced, world

    stage = reduced.situations()

    def pixels(image: Any) -> np.ndarray:
        found, side = np.array(image), world.WorldConfig().size
        if found.shape != (side, side, 3):
            raise data.DataError(f"the picture has the shape {found.shape}; this captioner knows the news world only, whose "
                                 f"pictures have {side} x {side} pixels in three colours")  # fmt: skip
        return found

    @torch.no_grad()
    def vectors(image: Any) -> torch.Tensor:
        return stage.net.features(torch.from_numpy(pixels(image))[None])[0]

    class Match(frontend.WorldMatcher):
        def read(self, article: str) -> Any:
            fresh = super().read(article)
            return lambda image, situation, entities: fresh(pixels(image), situation, entities)

    def names(
        text: str,
    ) -> list[Any]:  # an article says who wears what; in a caption (for the audit) names stand alone
        return frontend.WorldNames()(text) or reduced.find_names(text)

    return names, lambda image: stage(pixels(image)), Match(stage), vectors


class NewsCaptioner:
    """Rule-driven captioning with replaceable stages.

    Args:
        names, situation, match: stages as in `frontend`; `writer(image, article, rule) -> caption`.
        keep: how many entities the filter keeps (always the best one of each type besides).
        options: go to `fill_roles` (threshold, most, tie, events).
    """

    def __init__(self, names: frontend.Names, situation: frontend.Situations, match: Any,
                 writer: Callable[[Any, str, Rule | None], str], *, keep: int = 10, frames: Frames | None = None,
                 **options: Any) -> None:  # fmt: skip
        self.names, self.situation, self.match, self.writer = names, situation, match, writer
        self.keep, self.frames, self.options = keep, frames or Frames.imsitu(), options

    @classmethod
    def from_pretrained(cls, folder: str | Path, *, names: Any = "", clip: Any = "", situation: Any = None,
                        **options: Any) -> NewsCaptioner:  # fmt: skip
        """A captioner trained by the notebook "news" (or saved by `save_pretrained`), ready for an image and an article.

        Args:
            folder: the trained `RuleBart`, its tokenizer, and `stages.json` with the checkpoints of the other stages.
            names, clip: a hub name, a local folder, or your own stage; empty takes what `stages.json` says.
            situation: "clip" (zero-shot), or your own stage such as `CoFormerSituations.from_checkout(...)`; None takes
                what `stages.json` says.

        Raises:
            ValueError: for a folder without `stages.json`, and for a captioner of CoFormer's situations without them.
        """
        from transformers import AutoTokenizer

        folder = Path(folder)
        if not (folder / "stages.json").is_file():
            raise ValueError(
                f"{folder} holds no stages.json; give a folder written by pipeline.save_pretrained"
            )
        stages = json.loads((folder / "stages.json").read_text(encoding="utf-8"))
        model = RuleBart.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        if stages["names"] == WORLD:
            *stand_ins, vectors = _world_stages()
            return cls(*stand_ins, BartWriter(model, tokenizer, vectors, **stages["decoding"]), **options)
        if situation is None and stages.get("situation") == "coformer":
            raise ValueError(f"{folder} learned from CoFormer's situations; give situation=CoFormerSituations."
                             'from_checkout(checkout, checkpoint), or situation="clip" for zero-shot CLIP')  # fmt: skip
        for part in ("clip", "visual"):
            if (folder / stages[part]).is_dir():
                stages[part] = str(folder / stages[part])
        names, clip = names or stages["names"], clip or stages["clip"]
        match = frontend.ClipMatcher(clip) if isinstance(clip, str) else clip
        find = frontend.TokenClassifierNames(names) if isinstance(names, str) else names
        situation = frontend.ClipSituations(match) if situation in (None, "clip") else situation
        vectors = None
        if model.config.image_width:
            from companion.newscap.corpus import clip_vectors

            same = isinstance(match, frontend.ClipMatcher) and stages["visual"] == stages["clip"] == clip
            several = clip_vectors(match if same else frontend.ClipMatcher(stages["visual"]))
            vectors = lambda image: several([image])[0]  # noqa: E731
        return cls(
            find, situation, match, BartWriter(model, tokenizer, vectors, **stages["decoding"]), **options
        )

    def rule(self, image: Any, article: str) -> tuple[Rule, str]:
        """Stages A to D: the rule of an image with its article, and a note where something was missing."""
        if not article.strip():
            raise data.DataError("the article is empty; a rule needs its names")
        entities = self.names(article)
        seen = self.situation(image)
        match = self.match.read(article) if hasattr(self.match, "read") else self.match
        score = match(image, seen, entities)
        kept = frontend.keep_best(entities, score, self.keep)
        rule = fill_roles(seen.verb, kept, score, frames=self.frames, score=seen.score, nouns=seen.nouns,
                          boxes=seen.boxes, **self.options)  # fmt: skip
        return (
            rule,
            "" if entities else "no named entity was found in the article; the rule holds the verb only",
        )

    def caption(self, image: Any, article: str, rule: Rule | None = None,
                edit: Mapping[str, Any] | Callable[[Rule], Rule] | None = None) -> Captioned:  # fmt: skip
        """The caption of an image with its article.

        Args:
            image: a PIL image, an array [h, w, 3], or a path.
            rule: a designated rule; None makes it from image and article.
            edit: arguments of `Rule.edit` (such as {"verb": "hugging"} or {"place": "Corvo"}), or a function of the rule.
        """
        if not article.strip():
            raise data.DataError("the article is empty; a caption needs its names")
        if isinstance(image, str | Path):
            image = data.open_image(image)
        note = ""
        if rule is None:
            rule, note = self.rule(image, article)
        if edit is not None:
            rule = edit(rule) if callable(edit) else rule.edit(**edit)
        return Captioned(self.writer(image, article, rule), rule, note)
