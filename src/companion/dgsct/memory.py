"""Training in less memory: activations of units and layers are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from companion.dgsct.model import CrossModalPrompt, DualGuidedEncoder
from companion.dgsct.towers import Tower


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """BatchNorm still normalises by the batch; its running statistics have already seen it in the forward pass."""
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm1d) and m.training]
    before = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, (momentum, seen) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(seen)


def _recomputed(module: nn.Module, method: str, *args: Any) -> Any:
    function = partial(getattr(type(module), method), module)
    if not torch.is_grad_enabled():
        return function(*args)
    contexts = lambda: (nullcontext(), _statistics_kept(module))  # noqa: E731
    return checkpoint(function, *args, use_reentrant=False, context_fn=contexts)


def _recompute(module: nn.Module, *methods: str) -> None:
    for method in methods:
        # a partial, which copies and pickles with its module: a closure would keep a copy tied to the first one's weights
        setattr(module, method, partial(_recomputed, module, method))


def checkpoint_activations(model: nn.Module) -> nn.Module:
    """Let every unit, attention and MLP inside `model`'s `DualGuidedEncoder` keep its inputs only (in place).

    What lies between is computed again when gradients ask for it (`torch.utils.checkpoint`): the same loss, gradients
    and running statistics, for one more forward pass of time. Parameters and their names stay as they are.

    Returns:
        `model`.

    Raises:
        ValueError where it holds no `DualGuidedEncoder`.
    """
    encoders = [m for m in model.modules() if isinstance(m, DualGuidedEncoder)]
    if not encoders:
        raise ValueError(f"{type(model).__name__} holds no DualGuidedEncoder, whose activations these are")
    for part in (p for encoder in encoders for p in encoder.modules()):
        if isinstance(part, CrossModalPrompt):
            _recompute(part, "forward")
        elif isinstance(part, Tower):
            # frozen layers keep activations, too: gradients pass through them to the units below
            _recompute(part, "attend", "mix")
    return model
