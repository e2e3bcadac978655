"""The claim behind the method, measured: is the estimated gradient the unseen domain's gradient?

The analyst may look at target labels, the method never does. All gradients are of the featurizer, at the task expert's
weights, flattened to one vector: g_S over source images, g_U over target images, g~ the estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from companion.gestur.model import Erm, Gestur


def gradient(network: nn.Module, x: Tensor, y: Tensor, *, all_parameters: bool = False) -> Tensor:
    """The flattened gradient of the mean cross-entropy on (x, y) at `network`, in eval mode. -> [number of weights]"""
    was = network.training
    network.eval()
    part = network if all_parameters else network.featurizer
    params = [p for p in part.parameters() if p.requires_grad]
    grads = torch.autograd.grad(F.cross_entropy(network(x), y), params)
    network.train(was)
    return torch.cat([g.flatten() for g in grads])


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of two vectors; 0 where one of them is 0."""
    size = a.norm() * b.norm()
    return float(a @ b / size) if size > 0 else 0.0


@dataclass
class GradientWatch:
    """Give it to `protocol.train(watch=...)`: every `every` steps it measures the gradients at TE.

    `rows[k]`: step and, with G = g_S + g~ the direction that the featurizer follows,
        source      cos(g_S, g_U)
        estimate    cos(g~, g_U), the direction d where λ = 0
        combined    cos(G, g_U)
        descent     cos(g_S, g_S + g_U): how far the observed gradient is from the one that is wanted
        corrected   cos(G, g_S + g_U)
        bias        cos(g_S, g_S) - cos(g_S, g_U) = 1 - source: how much more a step along g_S serves the sources
        bias_left   cos(G, g_S) - cos(G, g_U): the same for a step along G
        ratio       ‖g_U‖ / ‖g_S‖
        drift       ‖φ - φ_0‖ of TE, `gap` = ‖φ - φ'‖
    """

    sources: Sequence[tuple[Tensor, Tensor]]
    target: tuple[Tensor, Tensor]
    start: nn.Module  # the featurizer before training
    every: int = 10
    rows: list[dict[str, float]] = field(default_factory=list)

    def __call__(self, step: int, algorithm: Erm) -> None:
        if step == 0 or step % self.every:
            return
        if not isinstance(algorithm, Gestur):
            raise ValueError(f"only GESTUR has an estimate to look at; got {type(algorithm).__name__}")
        network = algorithm.network
        x, y = (torch.cat(part) for part in zip(*self.sources, strict=True))
        everything = gradient(network, x, y, all_parameters=True)  # the featurizer's come first
        g_u = gradient(network, *self.target)
        g_s = everything[: len(g_u)]
        gap = flat(network.featurizer) - flat(algorithm.expert.featurizer)
        estimate = (
            gap * (algorithm.config.lam * everything.norm() / gap.norm()) if gap.norm() > 0 else gap * 0
        )
        wanted, followed = g_s + g_u, g_s + estimate
        self.rows.append({
            "step": step, "source": cosine(g_s, g_u), "estimate": cosine(gap, g_u), "combined": cosine(followed, g_u),
            "descent": cosine(g_s, wanted), "corrected": cosine(followed, wanted), "bias": 1 - cosine(g_s, g_u),
            "bias_left": cosine(followed, g_s) - cosine(followed, g_u), "ratio": float(g_u.norm() / g_s.norm()),
            "drift": float((flat(network.featurizer) - flat(self.start)).norm()), "gap": float(gap.norm()),
        })  # fmt: skip

    def means(self) -> dict[str, float]:
        """Mean of every column over the steps, `gain` = corrected - descent and `relief` = bias - bias_left."""
        if not self.rows:
            raise ValueError("nothing was measured; the training was shorter than `every` steps")
        found = {k: fmean(row[k] for row in self.rows) for k in self.rows[0] if k != "step"}
        return found | {
            "gain": found["corrected"] - found["descent"],
            "relief": found["bias"] - found["bias_left"],
        }


def flat(module: nn.Module) -> Tensor:
    """All parameters as one vector."""
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@torch.no_grad()
def along_the_line(one: nn.Module, two: nn.Module, measure: Callable[[nn.Module], float],
                   shares: Sequence[float]) -> list[list[float]]:  # fmt: skip
    """[[share, measure((1 - share) · one + share · two)], ...]"""
    from companion.gestur.baselines import mix

    return [[share, measure(mix([one, two], [1 - share, share]))] for share in shares]
