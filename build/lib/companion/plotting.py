"""One look for every figure: seaborn on a white card, readable in light and dark pages, colour-blind safe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import seaborn as sns

INK = "#1f2933"
PALETTE = sns.color_palette("colorblind")
# Line styles and markers repeat what the colours say, for readers who do not see them.
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def theme() -> None:
    """Set seaborn's and matplotlib's defaults for the book. Figures keep a white ground in dark pages."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind", rc={
        "figure.facecolor": "white", "savefig.facecolor": "white", "axes.facecolor": "white",
        "figure.dpi": 110, "savefig.dpi": 110, "figure.figsize": (6.4, 3.8), "figure.constrained_layout.use": True,
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
        "axes.titleweight": "bold", "axes.titlesize": "medium", "legend.frameon": False, "grid.color": "#d9dee4",
        "svg.hashsalt": "companion",
    })  # fmt: skip


def curves(named: Mapping[str, Sequence[Sequence[float]]], *, x: str = "step", y: str = "", title: str = "",
           ax: Any = None, log: str = "") -> Any:  # fmt: skip
    """Lines of [x, y] pairs, one style each. `log` names the logarithmic axes ("x", "y", "xy"). Returns the axes."""
    ax = ax or plt.subplots()[1]
    for k, (name, points) in enumerate(named.items()):
        xs, ys = zip(*points, strict=True) if len(points) else ((), ())
        ax.plot(xs, ys, label=name, color=PALETTE[k % len(PALETTE)], linestyle=DASHES[k % len(DASHES)])
    ax.set(xlabel=x, ylabel=y, title=title)
    if "x" in log:
        ax.set_xscale("log")
    if "y" in log:
        ax.set_yscale("log")
    if len(named) > 1:
        ax.legend()
    return ax


def intervals(named: Mapping[str, Iterable[tuple[Any, float, float]]], *, x: str = "", y: str = "", title: str = "",
              ax: Any = None) -> Any:  # fmt: skip
    """Points with error bars: name -> (x, mean, half-width). Returns the axes."""
    ax = ax or plt.subplots()[1]
    for k, (name, points) in enumerate(named.items()):
        xs, ys, half = zip(*points, strict=True)
        half = [0.0 if h != h else h for h in half]
        ax.errorbar(xs, ys, yerr=half, label=name, color=PALETTE[k % len(PALETTE)], capsize=3,
                    marker=MARKERS[k % len(MARKERS)], linestyle=DASHES[k % len(DASHES)])  # fmt: skip
    ax.set(xlabel=x, ylabel=y, title=title)
    ax.legend()
    return ax


def close() -> None:
    """Close all figures (long batches)."""
    plt.close("all")
