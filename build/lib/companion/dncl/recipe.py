"""From a table's flat parameters to the configs of this package; one place for every run and the dry run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from companion.dncl.data import NoiseConfig, PointConfig
from companion.dncl.generator import GeneratorConfig
from companion.dncl.model import LossConfig, ModelConfig
from companion.dncl.search import SearchConfig
from companion.training import FitConfig


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training, and how it is searched."""

    generator: GeneratorConfig
    points: PointConfig
    noise: NoiseConfig
    model: ModelConfig
    loss: LossConfig
    fit: FitConfig
    search: SearchConfig
    pool: int
    batch: int  # data sets drawn per step: half as many when both views are encoded


def recipe(p: Mapping[str, Any]) -> Recipe:
    """Configs from a cell's parameters; `batch` counts encoded data sets, so every row costs the same per step."""
    return Recipe(
        generator=GeneratorConfig(p["variables"], (1, p["most_operators"]), p["most_constants"], p["longest"]),
        points=PointConfig((p["fewest_points"], p["most_points"]), (p["radius_low"], p["radius_high"]),
                           p["symmetric"], negative=p["negative"]),
        noise=NoiseConfig(p["train_eta"]),
        model=ModelConfig(p["variables"], p["width"], p["heads"], p["encoder_layers"], p["inducing"], p["seed_rows"],
                          p["decoder_layers"], p["longest"]),
        loss=LossConfig(p["views"], p["contrast"]),
        fit=FitConfig(p["steps"], p["lr"], warmup=min(1000, p["steps"] // 5), final_lr=0.03, weight_decay=0.01,
                      betas=(0.9, 0.98), precision=p["precision"], save_every=1000),
        search=SearchConfig(p["beam"], p["restarts"], p["iterations"]),
        pool=p["pool"],
        batch=p["batch"] // 2 if p["views"] == "both" else p["batch"],
    )  # fmt: skip
