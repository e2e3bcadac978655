"""The reduced scale: a tiny BART in the news world, its pre-training, the conditions, and the control test.

Nothing here is new method: it feeds `model.RuleBart` with items of `world` through the stages of `frontend`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn

from companion import training
from companion.newscap import audit, frontend, metrics, world
from companion.newscap.model import RuleBart, RulePrefixConfig, random_bart
from companion.newscap.rule import MARKERS, Entity, Rule, fill_roles

COMMITTED = Path(__file__).with_name("weights")
_weights = {"folder": COMMITTED}
BOS, PAD, EOS, MASK = 0, 1, 2, 4
SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>", *MARKERS)
SIZES = {"d_model": 64, "encoder_layers": 4, "decoder_layers": 2, "encoder_attention_heads": 4,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_position_embeddings": 128,
         "dropout": 0.0,
         # BART's own 0.02 leaves a network this narrow on a plateau: attention starts flat, copying is not found
         "init_std": 0.1}  # fmt: skip


# --- tokens ------------------------------------------------------------------------------------------


def make_tokenizer(items: Sequence[world.Item], size: int = 760) -> Tokenizer:
    """Byte-level BPE with BART's special tokens in BART's order, then the rule's markers."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    frames = [f"{a.verb} {a.agent} {a.other} place" for a in world.ACTIONS]
    corpus = [i.article for i in items] + [i.caption for i in items] + frames * 50
    tokenizer.train_from_iterator(corpus, trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(SPECIALS), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))  # fmt: skip
    return tokenizer


def _file(name: str) -> Path:
    path = _weights["folder"] / name
    if not path.is_file():
        raise ValueError(f"{name} of the news world is not in {path.parent.name}/; make it with `companion reproduce "
                         "newscap pretrain --scale real` and copy it from the folder beside that record")  # fmt: skip
    return path


@lru_cache(maxsize=1)
def tokenizer() -> Tokenizer:
    """The tokenizer of the committed weights."""
    return Tokenizer.from_file(str(_file("tokenizer.json")))


def ends():
    """A post-processor that puts <s> and </s> around a text, as BART's tokenizer does."""
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", BOS), ("</s>", EOS)])


def use_weights(folder: Path) -> None:
    """Read tokenizer and weights from `folder` instead of the committed ones (pre-training does)."""
    _weights["folder"] = Path(folder)
    tokenizer.cache_clear()


def ids(text: str) -> list[int]:
    return tokenizer().encode(text, add_special_tokens=False).ids


def rule_tokens(rule: Rule) -> tuple[list[int], list[int]]:
    """Token ids of the spelt rule, and the slot of each token (marker, verb, role name, entity)."""
    found: list[int] = []
    slots: list[int] = []
    for text, kind in rule.pieces():
        part = ids(text) if text not in MARKERS else [tokenizer().token_to_id(text)]
        found += part
        slots += [kind] * len(part)
    return found, slots


def pad(rows: Sequence[Sequence[int]], value: int = PAD) -> Tensor:
    """Rows of ids as one tensor [N, longest]."""
    out = torch.full((len(rows), max(map(len, rows))), value)
    for k, row in enumerate(rows):
        out[k, : len(row)] = torch.tensor(row)
    return out


# --- pre-training ------------------------------------------------------------------------------------


def tiny_bart() -> nn.Module:
    """A `BartForConditionalGeneration` of about 0.3 M parameters, with random weights."""
    return random_bart(vocab_size=tokenizer().get_vocab_size(), **SIZES)


def page(item: world.Item, rng: np.random.Generator) -> str:
    """A page of pre-training text: the article with one more sentence, of the kind that captions are."""
    lines = [f"{part.strip()} ." for part in item.article.split(" .") if part.strip()]
    lines.insert(int(rng.integers(len(lines) + 1)), item.caption)
    return " ".join(lines)


def corrupt(tokens: Sequence[int], rng: np.random.Generator, share: float = 0.3) -> list[int]:
    """BART's text infilling: spans of `share` of the tokens, each replaced by one <mask>."""
    n = len(tokens)
    hidden = np.zeros(n, bool)
    while hidden.sum() < int(share * n):
        length = min(int(rng.poisson(2)) + 1, n)
        start = rng.integers(0, n - length + 1)
        hidden[start : start + length] = True
    out = [BOS]
    for k, token in enumerate(tokens):
        if not hidden[k]:
            out.append(token)
        elif k == 0 or not hidden[k - 1]:
            out.append(MASK)
    return [*out, EOS]


def denoising_batches(pages: Sequence[Sequence[int]], batch: int, seed: int):
    """`batches(k)` for `training.fit`: corrupted pages in, whole pages out. The k-th batch depends on k only."""

    def batches(k: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([seed, k])
        rows = [pages[j] for j in rng.integers(0, len(pages), batch)]
        x, y = pad([corrupt(r, rng) for r in rows]), pad([[*r, EOS] for r in rows], -100)
        return {"input_ids": x, "attention_mask": (x != PAD).long(), "labels": y}

    return batches


def save_weights(name: str, module: nn.Module) -> Path:
    """Half-precision weights of a trained part into the folder in use. Tied tables are stored once."""
    kept: dict[str, Tensor] = {}
    stored: set[int] = set()
    for key, value in module.state_dict().items():
        if value.data_ptr() not in stored:
            kept[key] = value
            stored.add(value.data_ptr())
    out = {
        k: (v.detach().half() if v.is_floating_point() else v).clone().contiguous() for k, v in kept.items()
    }
    save_file(out, _weights["folder"] / f"{name}.safetensors")
    return _weights["folder"] / f"{name}.safetensors"


def load_weights(name: str, module: nn.Module) -> nn.Module:
    """`module` with the committed weights `name`, in evaluation mode."""
    stored = load_file(_file(f"{name}.safetensors"))
    with torch.no_grad():
        own = module.state_dict()
        for key, value in stored.items():
            own[key].copy_(value)
    return module.eval()


def pretrained() -> nn.Module:
    """The tiny BART as the recorded pre-training left it."""
    return load_weights("bart", tiny_bart())


def situations() -> frontend.WorldSituations:
    """The situation stage as the recorded training left it."""
    return frontend.WorldSituations(load_weights("situations", frontend.WorldNet()))


# --- rules for items ---------------------------------------------------------------------------------


def gold_rule(item: world.Item) -> Rule:
    """The rule that the caption states."""
    action = world.BY_VERB[item.verb]
    return Rule(item.verb).edit(**{action.agent: item.agent, action.other: item.other, "place": item.place})


def predicted_rules(items: Sequence[world.Item], stage: frontend.WorldSituations) -> list[Rule]:
    """Stages A to D for every item: names of the article, situation of the image, roles filled by score."""
    with torch.no_grad():
        seen = stage.many(frontend.stack(items))
    find, match, found = frontend.WorldNames(), frontend.WorldMatcher(stage), []
    for item, (situation, chances) in zip(items, seen, strict=True):
        score = match.read(item.article).scorer(chances)
        kept = frontend.keep_best(find(item.article), score)
        found.append(fill_roles(situation.verb, kept, score, score=situation.score, nouns=situation.nouns))
    return found


def two_roles(verb: str) -> tuple[str, str]:
    """The names of the two person roles of a verb of the world."""
    action = world.BY_VERB[verb]
    return action.agent, action.other


def broken(rule: Rule, item: world.Item, kind: str, rng: np.random.Generator) -> Rule:
    """One front-end error, on purpose: another verb, agent and other swapped, or a wrong entity somewhere.

    kind: "verb", "swap", "entity" (a role gets another entity of the right type) or "all" (each role does).
    """
    agent, other = two_roles(rule.verb)
    if kind == "verb":
        return rule.edit(
            verb=[v for v in world.BY_VERB if v != rule.verb][rng.integers(len(world.ACTIONS) - 1)]
        )
    if kind == "swap":
        return rule.edit(swap=(agent, other))
    if kind in ("entity", "all"):
        people, places = list(item.people), list(item.places)
        if kind == "entity":
            role = (agent, other, "place")[rng.integers(3)]
            pool = places if role == "place" else people
            used = {e.text for e in rule.entities}
            pool = [x for x in pool if x not in used]
            return rule.edit(**{role: pool[rng.integers(len(pool))]})
        a, b = rng.choice(len(people), 2, replace=False)
        return rule.edit(**{agent: people[a], other: people[b], "place": places[rng.integers(len(places))]})
    raise ValueError(f"error kind is {kind!r}; choose verb, swap, entity or all")


def with_errors(rules: Sequence[Rule], items: Sequence[world.Item], q: float, seed: int) -> list[Rule]:
    """Rules of which a share `q` have a wrong verb and, independently, a share `q` have their people swapped."""
    rng = np.random.default_rng([seed, 77])
    out = []
    for rule, item in zip(rules, items, strict=True):
        if rng.random() < q:
            rule = broken(rule, item, "verb", rng)
        if rng.random() < q:
            rule = broken(rule, item, "swap", rng)
        out.append(rule)
    return out


def other_items_rules(rules: Sequence[Rule], seed: int) -> list[Rule]:
    """Each item with another item's rule (no item keeps its own)."""
    order = np.random.default_rng([seed, 78]).permutation(len(rules))
    out = list(rules)
    for a, b in zip(order, np.roll(order, 1), strict=True):
        out[a] = rules[b]
    return out


# --- conditions --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Condition:
    """What the model is given. `rule`: none, prefix (encoder), decoder (its self-attention), cross (its
    cross-attention), text (in front of the article) or constant (a learned prefix). `keep`: all, verb or roles of
    the rule (the ablations); random puts entities of the right type at random. `layers` are the encoder's; a
    decoder prefix goes into all of the two."""

    rule: str = "prefix"
    keep: str = "all"
    image: bool = True
    auxiliary: bool = False  # img+aux: the image vectors must also predict verb, coats and place
    layers: str = "last3"
    mode: str = "proj_hidden"
    errors: float = 0.0  # share of errors in training rules


def kept(rule: Rule, item: world.Item, keep: str, rng: np.random.Generator) -> Rule | list[tuple[str, int]]:
    """The part of a rule that a condition shows."""
    if keep == "all":
        return rule
    if keep == "verb":
        return replace(rule, roles={})
    if keep == "random":
        return broken(rule, item, "all", rng)
    if keep == "roles":
        return rule  # the verb is masked in `tensors`: a rule cannot lack one
    raise ValueError(f"keep is {keep!r}; choose all, verb, roles or random")


@dataclass
class Tensors:
    """All inputs of a set of items: article [N, T], caption [N, Y], rule [N, p], image [N, 10, 64]."""

    article: Tensor
    caption: Tensor
    rule: Tensor
    slots: Tensor
    image: Tensor
    targets: dict[str, Tensor]

    def rows(self, index: Tensor | slice, condition: Condition) -> dict[str, Tensor]:
        """The arguments of `RuleBart.encode` for some items."""
        x = self.article[index]
        x = x[:, : int((x != PAD).sum(1).max())]
        found = {"input_ids": x, "attention_mask": (x != PAD).long()}
        if condition.image:
            found["image"] = self.image[index]
        if condition.rule in ("prefix", "decoder", "cross", "constant"):
            found |= {"rule_ids": self.rule[index], "rule_slots": self.slots[index],
                      "rule_mask": (self.rule[index] != PAD).long()}  # fmt: skip
        return found


def image_vectors(items: Sequence[world.Item], stage: frontend.WorldSituations) -> Tensor:
    """The situation network's image vectors: every condition with an image sees what the rule was read from."""
    with torch.no_grad():
        return torch.cat(
            [stage.net.features(frontend.stack(items[k : k + 500])) for k in range(0, len(items), 500)]
        )


def tensors(
    items: Sequence[world.Item], rules: Sequence[Rule], image: Tensor, condition: Condition, seed: int = 0
) -> Tensors:
    """Everything a condition reads, as tensors."""
    rng = np.random.default_rng([seed, 79])
    spelt = []
    for rule, item in zip(rules, items, strict=True):
        tokens, slots = rule_tokens(kept(rule, item, condition.keep, rng))
        if condition.keep == "roles":
            tokens = [MASK if s == 1 else t for t, s in zip(tokens, slots, strict=True)]
        spelt.append((tokens, slots))
    ahead = [t if condition.rule == "text" else [] for t, _ in spelt]
    article = pad([[BOS, *a, *ids(i.article), EOS] for a, i in zip(ahead, items, strict=True)])
    caption = pad([[*ids(i.caption), EOS] for i in items], -100)
    return Tensors(article, caption, pad([t for t, _ in spelt]), pad([s for _, s in spelt], 0), image,
                   frontend.labels(items))  # fmt: skip


class Captioner(nn.Module):
    """A `RuleBart` of the reduced world; with `auxiliary`, four heads read verb, coats and place off the image."""

    def __init__(self, bart: nn.Module, condition: Condition) -> None:
        super().__init__()
        self.condition = condition
        self.core = RuleBart(bart, RulePrefixConfig(
            layers="all" if condition.rule == "decoder" else condition.layers, mode=condition.mode, mid=64, max_length=32,
            where=condition.rule if condition.rule in ("cross", "decoder") else "encoder",
            source="constant" if condition.rule == "constant" else "rule",
            image_width=64 if condition.image else 0, image_tokens=10))  # fmt: skip
        width = bart.config.d_model
        self.heads = (
            nn.ModuleDict({n: nn.Linear(width, k) for n, k in frontend.HEADS.items()})
            if condition.auxiliary
            else None
        )

    def loss(self, data: Tensors, index: Tensor) -> Tensor:
        """Caption cross-entropy of some items (plus the auxiliary one)."""
        inputs = data.rows(index, self.condition)
        value = self.core(labels=data.caption[index], **inputs).loss
        if self.heads is not None:
            seen = self.core.encode(**inputs)[0][:, :10].mean(1)
            value = value + 0.25 * sum(nn.functional.cross_entropy(head(seen), data.targets[name][index])
                                       for name, head in self.heads.items())  # fmt: skip
        return value

    @torch.no_grad()
    def captions(self, data: Tensors, beams: int = 1) -> list[str]:
        """Captions of all items (greedy, or with beams)."""
        self.eval()
        found = []
        for k in range(0, len(data.article), 250):
            out = self.core.generate(**data.rows(slice(k, k + 250), self.condition), num_beams=beams,
                                     max_new_tokens=16, do_sample=False)  # fmt: skip
            found += [tokenizer().decode([t for t in row if t > EOS]).strip() for row in out.tolist()]
        return found


def fit_captioner(model: Captioner, data: Tensors, config: training.FitConfig, batch: int, seed: int, *,
                  prefix_rate: float = 3.0, folder: Path | None = None, title: str = "") -> training.Fitted:  # fmt: skip
    """Train all of BART, and the new parts `prefix_rate` times faster (they start from random weights)."""
    old = list(model.core.bart.parameters())
    known = {id(p) for p in old}
    new = [p for p in model.parameters() if id(p) not in known]
    groups = [{"params": old, "lr": config.lr}, {"params": new, "lr": config.lr * prefix_rate}]
    return training.fit(model, lambda m, index: m.loss(data, index), training.epochs(len(data.article), batch, seed),
                        config, parameters=groups, folder=folder, title=title, cpu=True)  # fmt: skip


@dataclass
class Study:
    """What a run works on: items per split ("train", "test"), their predicted rules and image vectors."""

    items: dict[str, list[world.Item]]
    rules: dict[str, list[Rule]]
    images: dict[str, Tensor]


def study(train: int, test: int, seed: int, tier: int = 1) -> Study:
    """Items of the world, and their rules by stages A to D with the committed situation network."""
    config, stage = world.TIERS[tier], situations()
    items = {
        "train": world.make("train", train, seed, config),
        "test": world.make("test", test, seed, config),
    }
    return Study(items, {k: predicted_rules(part, stage) for k, part in items.items()},
                 {k: image_vectors(part, stage) for k, part in items.items()})  # fmt: skip


def trained(
    work: Study, p: Mapping[str, Any], seed: int, title: str = ""
) -> tuple[Captioner, training.Fitted]:
    """The captioner of a cell's parameters, trained on `work`, or found in the cache when some run trained it before."""
    condition, config = recipe(p)
    taught = with_errors(work.rules["train"], work.items["train"], p["errors"], seed)
    data = tensors(work.items["train"], taught, work.images["train"], condition, seed)
    training.seed_everything(seed, threads=1)
    model = Captioner(pretrained(), condition)
    folder = training.cache_folder(
        "newscap-captioner", condition, config, p["batch"], p["train"], p["tier"], seed
    )
    return model, fit_captioner(model, data, config, p["batch"], seed, folder=folder, title=title)


# --- scores ------------------------------------------------------------------------------------------


def slot_hits(captions: Sequence[str], items: Sequence[world.Item]) -> dict[str, np.ndarray]:
    """Per slot, and for all five together, which captions are right [N] bool."""
    said = [world.parse(c) for c in captions]
    found = {s: np.array([p[s] == i.slots[s] for p, i in zip(said, items, strict=True)]) for s in world.SLOTS}
    return found | {"all": np.stack(list(found.values())).all(0)}


def bootstrap(hits: np.ndarray, seed: int = 0, draws: int = 2000) -> tuple[float, float]:
    """95 % interval of a mean over items, in per cent."""
    rng = np.random.default_rng([seed, 80])
    means = hits[rng.integers(0, len(hits), (draws, len(hits)))].mean(1)
    return tuple(float(100 * q) for q in np.quantile(means, [0.025, 0.975]))


@lru_cache(maxsize=1)
def gazetteer() -> metrics.Gazetteer:
    people = {n: "PERSON" for split in ("train", "test") for n in world.names(split)}
    return metrics.Gazetteer(people | dict.fromkeys(world.PLACES, "GPE") | dict.fromkeys(world.DAYS, "DATE"))


def scores(captions: Sequence[str], items: Sequence[world.Item], seed: int = 0) -> dict[str, Any]:
    """Slot accuracies with the interval of "all", and the caption metrics of `metrics.evaluate`, in per cent."""
    hits = slot_hits(captions, items)
    low, high = bootstrap(hits["all"], seed)
    found: dict[str, Any] = {name: 100 * float(h.mean()) for name, h in hits.items()}
    text = metrics.evaluate(captions, [i.caption for i in items], gazetteer())
    names = ("bleu4", "rouge_l", "cider", "entity_precision", "entity_recall")
    return found | {"all_low": low, "all_high": high} | {n: text[n] for n in names}


def find_names(caption: str) -> list[Entity]:
    """People and places of a caption of the world, for the audit."""
    kinds = {"PERSON": "PER", "GPE": "LOC"}
    return [Entity(text, kinds[label]) for text, label in gazetteer().entities(caption) if label in kinds]


def supported(
    captions: Sequence[str], items: Sequence[world.Item], rules: Sequence[Rule]
) -> dict[str, float | None]:
    """The audit's shares, in per cent of all names: "from_rule", "from_article" (only), "from_nothing"."""
    found = audit.shares(audit.audit(c, i.article, r, find_names)
                         for c, i, r in zip(captions, items, rules, strict=True))  # fmt: skip
    return {f"from_{by}": share for by, share in found.items()}


def states(caption: str, rule: Rule) -> bool:
    """Whether a caption says just what a rule says: verb, agent, other person and place."""
    said, (agent, other) = world.parse(caption), two_roles(rule.verb)
    wanted = {s: next((e.text for e in rule.roles.get(r, ())), None)
              for s, r in (("agent", agent), ("other", other), ("place", "place"))}  # fmt: skip
    return said["verb"] == rule.verb and all(said[s] == w for s, w in wanted.items())


def worse_rules(model: Captioner, work: Study, seed: int, shares: Sequence[float] = (0.0, 0.1, 0.3, 0.5)) -> dict[str, float]:  # fmt: skip
    """Accuracy against obedience as the front end gets worse: test rules with a share q of wrong verbs, and of
    swapped people. In per cent, per q: "right_q" (caption all right), "obeys_q" (caption states the rule it was
    given), "rule_q" (rules still right), and "overruled_q": of the wrong rules, captions that are right all the same."""
    items, found = work.items["test"], {}
    for q in shares:
        given = with_errors(work.rules["test"], items, q, seed)
        said = model.captions(tensors(items, given, work.images["test"], model.condition, seed))
        right = slot_hits(said, items)["all"]
        good = np.array([str(g) == str(gold_rule(i)) for g, i in zip(given, items, strict=True)])
        name = f"{100 * q:.0f}"
        found |= {f"right_{name}": 100 * float(right.mean()),
                  f"obeys_{name}": 100 * float(np.mean([states(c, g) for c, g in zip(said, given, strict=True)])),
                  f"rule_{name}": 100 * float(good.mean())}  # fmt: skip
        if not good.all():
            found[f"overruled_{name}"] = 100 * float(right[~good].mean())
    return found


EDITS = ("verb", "swap", "place", "bystander", "delete", "outside")


def edited(
    rule: Rule, item: world.Item, kind: str, rng: np.random.Generator
) -> tuple[Rule, dict[str, str | None]]:
    """One edit of a rule, and the slots that the caption must show for it (None: anything but the old value)."""
    agent, other = two_roles(rule.verb)
    said = {"verb": rule.verb, **{s: next((e.text for e in rule.roles.get(r, ())), None)
                                  for s, r in (("agent", agent), ("other", other), ("place", "place"))}}  # fmt: skip
    if kind == "verb":
        new = broken(rule, item, "verb", rng)
        return new, {"verb": new.verb}
    if kind == "swap":
        return rule.edit(swap=(agent, other)), {"agent": said["other"], "other": said["agent"]}
    if kind == "place":
        place = next(p for p in item.places if p != said["place"])
        return rule.edit(place=place), {"place": place}
    if kind == "bystander":
        name = next(p for p in item.people if p not in (said["agent"], said["other"]))
        return rule.edit(**{agent: name}), {"agent": name}
    if kind == "delete":
        return rule.edit(drop="place"), {"place": None}
    if kind == "outside":
        roster = [n for n in world.names("test") if n not in item.people]
        name = roster[rng.integers(len(roster))]
        return rule.edit(**{agent: name}), {"agent": name}
    raise ValueError(f"edit is {kind!r}; choose {', '.join(EDITS)}")


def control(model: Captioner, items: Sequence[world.Item], rules: Sequence[Rule], image: Tensor, seed: int = 0,
            kinds: Sequence[str] = EDITS) -> dict[str, float]:  # fmt: skip
    """Obedience and stability per kind of edit, in per cent, image and article unchanged.

    Obedience: the edited slots say what the edit wants. Stability: every other slot reads as in the caption of the
    unedited rule. For "delete", obedience is the share of captions that still name a place of the article.
    """

    def write(given: Sequence[Rule]) -> list[dict[str, str | None]]:
        data = tensors(items, given, image, model.condition, seed)
        return [world.parse(c) for c in model.captions(data)]

    before, found = write(rules), {}
    for kind in kinds:
        rng = np.random.default_rng([seed, 81])
        pairs = [edited(rule, item, kind, rng) for rule, item in zip(rules, items, strict=True)]
        after = write([rule for rule, _ in pairs])
        obeyed, stable = [], []
        for old, new, (_, wanted), item in zip(before, after, pairs, items, strict=True):
            if kind == "delete":
                obeyed.append(new["place"] in item.places)
            else:
                obeyed.append(all(new[s] == v for s, v in wanted.items()))
            stable.append(all(new[s] == old[s] for s in world.SLOTS if s not in wanted))
        found |= {
            f"obey_{kind}": 100 * float(np.mean(obeyed)),
            f"stable_{kind}": 100 * float(np.mean(stable)),
        }
    return found


def recipe(p: Mapping[str, Any]) -> tuple[Condition, training.FitConfig]:
    """Condition and training of a cell's parameters."""
    condition = Condition(
        p["rule"], p["keep"], p["image"], p["auxiliary"], p["layers"], p["mode"], p["errors"]
    )
    return condition, training.FitConfig(steps=p["steps"], lr=p["lr"], warmup=p["warmup"], weight_decay=0.01,
                                         clip=1.0, schedule="linear", final_lr=0.01, betas=(0.9, 0.98))  # fmt: skip
