"""The controlled comparison behind the tables "noise" and "ablation": same data order, same steps, one change.

Everything a run needs is made from the cell's flat parameters here; the notebook calls the steps one by one.

Shape letters: B data sets, n points, D variables, d width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from companion import training
from companion.dncl import constants as fitting
from companion.dncl import decode, evolve, metrics, peers, pools, suites
from companion.dncl import expressions as ex
from companion.dncl.data import Problem, Views
from companion.dncl.model import DNCL, LossConfig, ModelConfig, feature_width, point_features
from companion.dncl.pretrained import Stream, StreamConfig


class DeepSets(nn.Module):
    """The simplest set encoder: every point by itself, then the mean, spread over k rows (no attention)."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(feature_width(c.variables), 2 * c.d), nn.GELU(), nn.Linear(2 * c.d, 2 * c.d),
                                  nn.GELU(), nn.Linear(2 * c.d, c.d))  # fmt: skip
        self.rows = nn.Linear(c.d, c.seeds * c.d)
        self.norm = nn.LayerNorm(c.d)

    def forward(self, points: Tensor, mask: Tensor) -> Tensor:
        """`[B, n, D + 1]` and mask `[B, n]` -> `[B, k, d]`."""
        h = self.each(point_features(points, mask)) * mask[..., None]
        mean = h.sum(1) / mask.sum(1, keepdim=True)
        return self.norm(self.rows(mean).view(len(mean), -1, mean.shape[-1]))


@dataclass(frozen=True)
class Setup:
    """A run's configuration."""

    pool: pools.PoolConfig
    skeletons: int
    stream: StreamConfig
    model: ModelConfig
    encoder: str  # set-transformer or deep-sets
    loss: LossConfig
    fit: training.FitConfig
    batch: int  # data sets drawn per step
    etas: tuple[float, ...] = (0.0, 0.001, 0.01, 0.02, 0.05, 0.1)

    def network(self) -> DNCL:
        """The network before training."""
        net = DNCL(self.model)
        if self.encoder == "deep-sets":
            net.encoder = DeepSets(self.model)
        elif self.encoder != "set-transformer":
            raise ValueError(f"encoder is {self.encoder!r}; choose set-transformer or deep-sets")
        return net


def setup(p: Mapping[str, Any]) -> Setup:
    """From a cell's parameters. `batch` counts encoded data sets, so that all rows cost the same per step."""
    pair = p["views"] == "both"
    pool = pools.PoolConfig(p["variables"], (1, p["operators"]), p["constants"], p["length"], outer=False)
    stream = StreamConfig(points=(p["fewest_points"], p["most_points"]), eta=p["train_eta"], resample=p["resample"],
                          hard=p["hard"], radius=(1.0, p["radius"]))  # fmt: skip
    if p["teaching"]:  # one range, positive factors, nothing around the formula: learnt in seconds
        stream = replace(stream, radius=(p["radius"], p["radius"]), ranges=(0.0, 1.0, 0.0), affine=0.0, negative=0.0,
                         multiplier=(0.5, 2.5), summand=2.5)  # fmt: skip
    return Setup(
        pool, p["skeletons"],
        stream,
        ModelConfig(p["variables"], p["width"], 4, p["encoder_layers"], p["inducing"], p["seed_rows"],
                    p["decoder_layers"], p["length"], p["projection"]),
        p["encoder"],
        LossConfig(p["views"], p["contrast"], p["temperature"], mask_same=p["hard"] == 0.0),
        training.FitConfig(p["steps"], p["lr"], warmup=p["steps"] // 10, final_lr=0.03, weight_decay=0.01,
                           betas=(0.9, 0.98), precision=p["precision"], save_every=1000),
        p["batch"] // 2 if pair else p["batch"],
    )  # fmt: skip


def streams(s: Setup) -> tuple[Stream, Stream]:
    """(training skeletons, held-out structures) as streams of data sets; no benchmark's structure is in either."""
    pool = pools.make(s.skeletons, s.pool, 0, without=pools.structure_marks(suites.skeletons()))
    seen, held = pool.split(10)
    make = lambda part: Stream(part, s.stream, s.pool.variables, s.pool.length)  # noqa: E731
    return make(seen), make(held)


def accuracy(
    net: DNCL, stream: Stream, etas: Sequence[float], number: int, seed: int
) -> dict[float, dict[str, float]]:
    """Teacher-forced accuracy on `number` draws per noise level: eta -> token_accuracy, exact (percent)."""
    found = {}
    for eta in etas:
        views = stream.draw(number, np.random.default_rng([seed, 41]), eta)
        device = next(net.parameters()).device
        views = Views(*(part.to(device) for part in views))
        found[eta] = metrics.skeleton_accuracy(net, views, noisy=True)
    return found


@torch.no_grad()
def feature_distance(net: DNCL, stream: Stream, eta: float, number: int, seed: int) -> Tensor:
    """`[B]`: distance between the features of a data set's clean and noisy view, over the mean distance between
    clean features of different data sets. 0 is blind to noise, 1 sees nothing but noise.

    The feature is the mean over the rows of the encoding (what the decoder reads), not the projection.
    """
    views = stream.draw(number, np.random.default_rng([seed, 43]), eta)
    device = next(net.parameters()).device
    clean = net.encode(views.clean.to(device), views.clean_mask.to(device))[0].mean(1)
    noisy = net.encode(views.noisy.to(device), views.noisy_mask.to(device))[0].mean(1)
    apart = torch.cdist(clean, clean)
    between = apart.sum() / (len(apart) * (len(apart) - 1))
    return ((clean - noisy).norm(dim=1) / between).cpu()


def recover(
    net: DNCL, problem: Problem, beam: int, restarts: int, seed: int, selection: str = "bic"
) -> dict[str, Any]:
    """A benchmark problem by the network alone: beam, outer factor and summand, constants, selection. No evolution.

    Returns what `peers.judge` does.
    """
    x, y = problem.x.numpy(), problem.y.numpy()
    points = np.zeros((len(y), net.config.variables + 1))
    points[:, : x.shape[1]] = x
    points[:, -1] = y
    found = decode.propose(net, torch.from_numpy(points).float(), x.shape[1],
                           decode.DecodeConfig(beam, 0, subsets=1), seed)  # fmt: skip
    search = evolve.Search(x, y, evolve.EvolveConfig(rounds=0, restarts=restarts, snap=False, selection=selection),
                           seed=seed)  # fmt: skip
    best = search.run([ids for ids, _ in found])[0]

    def predict(t: np.ndarray) -> np.ndarray:
        c = torch.tensor([[list(best.constants) or [0.0]]], dtype=torch.float64)
        return fitting.Program([best.ids], torch.from_numpy(np.array(t))).run(c, False)[0][0, 0].numpy()

    return peers.judge(problem, peers.Answer(predict, best.expression(), 0.0)) | {"tokens": len(best.ids)}


def benchmark(net: DNCL, names: Sequence[str], eta: float, seed: int, *, repeats: int, beam: int, restarts: int,
              most: int = 200) -> list[dict[str, Any]]:  # fmt: skip
    """All equations of the suites `names` that have no more variables than the network: outcomes by `recover`."""
    out = []
    for equation in suites.choose(names):
        if equation.variables <= min(net.config.variables, len(ex.VARIABLES)):
            for r in range(repeats):
                problem = suites.problem(equation, eta, seed, repeat=r, most=most)
                out.append(
                    {"problem": problem.name, "suite": equation.suite}
                    | recover(net, problem, beam, restarts, seed)
                )
    return out
