"""Every row of the tables as an algorithm: `build(name, ...)`; what the rows share is decided here, once."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from companion.gestur import baselines
from companion.gestur.model import Erm, Gestur, GesturConfig, adam
from companion.gestur.nets import Backbone, linear_head

NAMES = (
    "erm",
    "linear-probe",
    "lp-ft",
    "ema",
    "sma",
    "gestur",
    "l2-sp",
    "miro",
    "wise-ft",
    "coral",
    "mixup",
    "sam",
    "sagm",
)


@dataclass(frozen=True)
class MethodConfig:
    """Settings of all methods; each reads its own."""

    method: str = "gestur"
    lr: float = 5e-5
    head_factor: float = 1.0  # head's learning rate over the featurizer's
    weight_decay: float = 0.0
    dropout: float = 0.0
    lam: float = 0.01  # λ of GESTUR
    decay: float = 0.999  # m of GESTUR and EMA
    norm: str = "global"
    halve: bool = True
    scope: str = "featurizer"
    anchor: str = "expert"
    predict: str = "expert"
    alpha: float = 0.01  # L2-SP
    miro: float = 0.1  # λ of MIRO
    gamma: float = 1.0  # CORAL
    beta: float = 0.2  # Mixup
    rho: float = 0.05  # SAM, SAGM
    match: float = 1e-3  # α of SAGM
    share: float = 0.5  # WiSE-FT: weight of the fine-tuned end

    def __post_init__(self) -> None:
        if self.method not in NAMES:
            raise ValueError(f"method {self.method!r} does not exist; choose {', '.join(NAMES)}")

    @classmethod
    def of(cls, parameters: Mapping[str, Any]) -> MethodConfig:
        """From a run's flat parameters; keys of other parts are ignored."""
        return cls(**{k: v for k, v in parameters.items() if k in cls.__dataclass_fields__})


def build(config: MethodConfig, backbone: Backbone, classes: int, *, seed: int = 0, example: Tensor | None = None,
          probe: nn.Linear | None = None, steps: int = 0, accelerator: Any = None) -> Erm:  # fmt: skip
    """The algorithm `config.method` on a copy of the backbone with a fresh head.

    Args:
        example: one input, for MIRO.
        probe: a head fitted on the frozen features, for lp-ft and wise-ft.
        steps: length of the training; SMA starts to average after a fifth of it.
    """
    name = config.method
    if name in ("lp-ft", "wise-ft") and probe is None:
        raise ValueError(f"{name} starts from a linear probe; pass probe=fit_probe(...)")
    module = copy.deepcopy(backbone.module)
    head = (
        copy.deepcopy(probe) if name in ("lp-ft", "wise-ft") else linear_head(backbone.width, classes, seed)
    )
    optimizer = adam(config.lr, head_factor=config.head_factor, weight_decay=config.weight_decay)
    base = {"dropout": config.dropout, "accelerator": accelerator}
    if name == "gestur":
        gestur = GesturConfig(config.lam, config.decay, config.norm, config.halve, config.scope, config.anchor,
                              config.predict)  # fmt: skip
        return Gestur(module, head, optimizer, gestur, **base)
    if name == "wise-ft":
        return WiseFt(module, head, optimizer, share=config.share, **base)
    kinds = {
        "erm": (Erm, {}), "lp-ft": (Erm, {}), "linear-probe": (baselines.LinearProbe, {}),
        "ema": (baselines.Ema, {"decay": config.decay}), "sma": (baselines.Sma, {"start": steps // 5}),
        "l2-sp": (baselines.L2sp, {"alpha": config.alpha}), "coral": (baselines.Coral, {"gamma": config.gamma}),
        "mixup": (baselines.Mixup, {"alpha": config.beta}), "sam": (baselines.Sam, {"rho": config.rho}),
        "sagm": (baselines.Sagm, {"rho": config.rho, "alpha": config.match}),
        "miro": (baselines.Miro, {"lam": config.miro, "taps": backbone.taps, "example": example}),
    }  # fmt: skip
    kind, own = kinds[name]
    return kind(module, head, optimizer, **own, **base)


class WiseFt(Erm):
    """ERM from a fitted head; predicts with the mixture of the weights before and after."""

    def __init__(self, *args: Any, share: float = 0.5, **options: Any) -> None:
        self.__dict__["share"] = share
        super().__init__(*args, **options)

    def _prepare(self) -> None:
        from companion.gestur.model import average_of

        self.start = average_of(self.network)

    @property
    def predictor(self) -> nn.Module:
        return baselines.wise_ft(self.start, self.network, self.share)


def fit_probe(
    backbone: Backbone, x: Tensor, y: Tensor, classes: int, l2: float = 1e-4, steps: int = 60
) -> nn.Linear:
    """A linear head fitted on frozen features by L-BFGS. x: [N, ...], y: [N]"""
    backbone.module.eval()
    with torch.no_grad():
        z = torch.cat([backbone.module(part) for part in x.split(512)])
    head = nn.Linear(backbone.width, classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(z), y) + l2 * head.weight.pow(2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return head
