"""GESTUR, after section 2 of the paper as its official code states it.

Two copies of one network. The *task expert* (TE) is trained; the *generalisation expert* (GE) is the moving average
of TE and is what predicts. Numbers (1) to (6) below are the steps of one update:

    (1)  g   = ∇ CE(f_θ(x), y)              all parameters; θ = (φ featurizer, w head)
    (2)  d   = φ - φ'                        φ' = GE's featurizer
    (3)  g~  = λ ‖g‖ d / ‖d‖                 0 where d = 0 (first step); ‖·‖ over all parameters together
    (4)  G_φ = (g_φ + g~) / 2,  G_w = g_w    the head is not halved
    (5)  θ   ← optimizer(θ, G)
    (6)  θ'  ← m θ' + (1 - m) θ              after the step; GE's buffers are copies of TE's

g~ is subtracted by the optimizer: the step moves TE towards GE.

Shapes: B examples in one domain's batch, S source domains, C classes, D features.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Batches = Sequence[tuple[Tensor, Tensor]]  # one (x [B, ...], y [B]) per source domain
MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
Objective = Callable[[nn.Module, Batches], Tensor]


def adam(lr: float = 5e-5, *, head_factor: float = 1.0, weight_decay: float = 0.0) -> MakeOptimizer:
    """Adam as DomainBed uses it: constant rate, L2 added to the gradient; `head_factor` scales the head's rate."""

    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        factors = {"head": head_factor, "encoders": 10.0}  # MIRO's variance encoders learn 10 times faster
        for group in groups:
            group["lr"] = lr * factors.get(group["name"], 1.0)
        return torch.optim.Adam(groups, lr=lr, weight_decay=weight_decay, fused=True)

    return make


class Network(nn.Module):
    """`head(dropout(featurizer(x)))`; BatchNorm keeps its running statistics for ever (its affine part is trained)."""

    def __init__(self, featurizer: nn.Module, head: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.featurizer, self.head, self.dropout = featurizer, head, nn.Dropout(dropout)
        self.train()

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, ...] -> [B, C]"""
        return self.head(self.dropout(self.featurizer(x)))

    def train(self, mode: bool = True) -> Network:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def check_batches(batches: Batches) -> None:
    """Raises ValueError where there is none."""
    if not len(batches):
        raise ValueError("no batch was given; an update takes a list with one (x, y) per source domain")


def cross_entropy(network: nn.Module, batches: Batches) -> Tensor:
    """Mean cross-entropy over the batches of all source domains joined into one. Returns a scalar."""
    check_batches(batches)
    return F.cross_entropy(network(torch.cat([x for x, _ in batches])), torch.cat([y for _, y in batches]))


class Erm(nn.Module):
    """Empirical risk minimisation: the joined batch, one optimizer step. Every method here derives from it.

    Args:
        featurizer: x -> features [B, D]; the pre-trained part.
        head: features -> [B, C]; the new part.
        optimizer: called with the parameter groups `{"name": "featurizer" | "head", "params": [...]}`.
        objective: `objective(network, batches)` -> scalar; cross-entropy by default, any task will do.
        dropout: on the features.
        accelerator: an `accelerate.Accelerator` for mixed precision or several processes (each holding all weights).
            With its `gradient_accumulation_steps` at 1: one update is one step of the optimizer.

    `state_dict` holds everything a training needs to go on bit by bit: the weights, the method's copies, the optimizer,
    the random state and the scale of float16's loss.

    Raises:
        ValueError: without a split into two modules that share no parameter, with nothing to train, with weights in
            half precision, with an accelerator that cuts the weights up or accumulates gradients, or with an objective
            for a method whose loss is its own.
    """

    one_process = False  # methods that cannot run in several say True
    own_loss = False  # methods whose loss is cross-entropy in a form of their own say True

    def __init__(self, featurizer: nn.Module, head: nn.Module | None = None, optimizer: MakeOptimizer | None = None, *,
                 objective: Objective = cross_entropy, dropout: float = 0.0, accelerator: Any = None) -> None:  # fmt: skip
        super().__init__()
        if not isinstance(featurizer, nn.Module) or not isinstance(head, nn.Module):
            raise ValueError(
                f"the model needs a declared split into two torch modules, featurizer and head; got "
                f"{type(featurizer).__name__} and {'no head' if head is None else type(head).__name__}"
            )
        if not any(p.requires_grad for p in [*featurizer.parameters(), *head.parameters()]):
            raise ValueError("nothing can be trained: no parameter of featurizer or head requires a gradient")
        if {id(p) for p in featurizer.parameters()} & {id(p) for p in head.parameters()}:
            raise ValueError(
                "featurizer and head share a parameter; every parameter belongs to one of the two"
            )
        for p in [*featurizer.parameters(), *head.parameters()]:
            if p.requires_grad and p.dtype in (torch.float16, torch.bfloat16):
                raise ValueError(
                    f"the weights are {str(p.dtype).removeprefix('torch.')}, which loses small steps and averages; keep "
                    "float32 weights and pass accelerator=Accelerator(mixed_precision=...)"
                )
        if self.own_loss and objective is not cross_entropy:
            raise ValueError(
                f"{type(self).__name__} has its own form of cross-entropy and takes no objective; leave it out"
            )
        self._check_accelerator(accelerator)
        self.network = Network(featurizer, head, dropout)
        self.objective_of, self.steps = objective, 0
        self._prepare()
        made = (optimizer or adam())(self.groups())
        if accelerator:
            self.to(accelerator.device)  # the copies that a method keeps, too
        wrapped, made = accelerator.prepare(self.network, made) if accelerator else (self.network, made)
        # not registered as submodules: the wrapped network holds the same parameters
        self.__dict__.update(accelerator=accelerator, wrapped=wrapped, optimizer=made)

    def _check_accelerator(self, accelerator: Any) -> None:
        if accelerator is None:
            return
        kind = getattr(accelerator.distributed_type, "value", accelerator.distributed_type)
        if kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
            raise ValueError(
                f"accelerate runs as {kind}, which cuts the weights up; norms and averages here need whole weights, as "
                "on one device or with one full copy per process"
            )
        if self.one_process and accelerator.num_processes > 1:
            raise ValueError(
                f"{type(self).__name__} runs in one process, its loss is not synchronised; got {accelerator.num_processes}"
            )
        if (pieces := getattr(accelerator, "gradient_accumulation_steps", 1)) != 1:
            raise ValueError(
                f"accelerate's gradient_accumulation_steps is {pieces}; one update is one step of the optimizer on whole "
                "batches (norms and averages are taken in every step), so it must be 1"
            )

    def _prepare(self) -> None:
        """Make what the method holds besides the network, before the optimizer exists."""

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups, empty ones left out."""
        parts = {"featurizer": self.network.featurizer, "head": self.network.head}
        found = {name: [p for p in part.parameters() if p.requires_grad] for name, part in parts.items()}
        return [{"name": name, "params": params} for name, params in found.items() if params]

    def objective(self, batches: Batches) -> Tensor:
        return self.objective_of(self.wrapped, batches)

    def update(self, batches: Batches) -> dict[str, float | Tensor]:
        """One step on one batch per source domain. Returns the loss (a tensor: reading it waits for the device)."""
        self.network.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self.accelerator.autocast() if self.accelerator else contextlib.nullcontext():
            loss = self.objective(batches)
        self.backward(loss)
        self.before_step()
        scale = self.scaler.get_scale() if self.scaler else 0.0
        self.optimizer.step()
        # accelerate does not notice when a fused optimizer skips a step; the scale falls in every case
        if not (self.scaler and self.scaler.get_scale() < scale):
            self.steps += 1
            self.after_step()
        return {"loss": loss.detach()}

    @property
    def scaler(self) -> Any:
        """The loss scaler of accelerate's float16, else None."""
        return getattr(self.accelerator, "scaler", None)

    def backward(self, loss: Tensor) -> None:
        if self.accelerator:
            self.accelerator.backward(loss)
        else:
            loss.backward()

    def before_step(self) -> None:
        """Between the gradient and the optimizer."""

    def after_step(self) -> None:
        """After the optimizer."""

    @property
    def predictor(self) -> nn.Module:
        """The network that predicts, is validated and is kept."""
        return self.network

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """x: [B, ...] -> logits [B, C], in eval mode."""
        model = self.predictor.eval()
        return model(x)

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "scaler": self.scaler.state_dict() if self.scaler else {},
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
            "random": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        # also puts the random state back, so that a resumed run draws the same dropout masks
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]
        if state["scaler"] and self.scaler:
            self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(
            state["random"].cpu()
        )  # random states live on the CPU, wherever a file was mapped to
        if len(state["cuda"]) and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([one.cpu() for one in state["cuda"]])


# --- the moving average ------------------------------------------------------------------------------


def average_of(network: nn.Module) -> nn.Module:
    """A copy of `network` that no optimizer sees."""
    return copy.deepcopy(network).requires_grad_(False).eval()


def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """(6): average ← decay · average + (1 - decay) · network; buffers are copied, and parameters of types that have
    no arithmetic (integers, quantised, 8-bit floats)."""
    moving, still = [], []
    for p, q in zip(network.parameters(), average.parameters(), strict=True):
        arithmetic = (p.is_floating_point() or p.is_complex()) and p.element_size() > 1
        (moving if arithmetic else still).append((p, q))
    still += zip(network.buffers(), average.buffers(), strict=True)
    _follow(moving, still, decay)


@torch.no_grad()
def _follow(
    moving: Sequence[tuple[Tensor, Tensor]], still: Sequence[tuple[Tensor, Tensor]], decay: float
) -> None:
    """(6) for the pairs (network's, average's) of `moving`; those of `still` are copied."""
    # torch._foreach_*, which torch's optimizers are made of: one launch for a whole list, same arithmetic
    if moving:
        ours = [q for _, q in moving]
        torch._foreach_mul_(ours, decay)
        torch._foreach_add_(ours, [p for p, _ in moving], alpha=1 - decay)
    kinds: dict[Any, list[tuple[Tensor, Tensor]]] = {}  # a list of several types would be copied one by one
    for pair in still:
        kinds.setdefault((pair[0].device, pair[0].dtype), []).append(pair)
    for pairs in kinds.values():
        torch._foreach_copy_([q for _, q in pairs], [p for p, _ in pairs])


# --- the method --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GesturConfig:
    """The method's symbols; the last five switches are for ablations, their defaults are the published method."""

    lam: float = 0.01  # λ, size of the estimated gradient relative to the observed one
    decay: float = 0.999  # m, memory of the moving average
    norm: str = "global"  # "global": (3) as it is; "tensor": per parameter tensor; "none": g~ = λ d
    halve: bool = True  # (4): the featurizer's two gradients are averaged, not added
    scope: str = "featurizer"  # "featurizer", or "all": the head is pulled too
    anchor: str = "expert"  # "expert": pull towards GE; "start": towards the weights before training
    predict: str = "expert"  # "expert": GE predicts; "task": TE does

    def __post_init__(self) -> None:
        if not 0 <= self.lam < math.inf:
            raise ValueError(f"lam is {self.lam}; it scales a gradient and is a finite number, 0 or more")
        if not 0 <= self.decay <= 1:
            raise ValueError(f"decay is {self.decay}; a moving average needs a value from 0 to 1")
        for name, known in {"norm": ("global", "tensor", "none"), "scope": ("featurizer", "all"),
                            "anchor": ("expert", "start"), "predict": ("expert", "task")}.items():  # fmt: skip
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; choose {', '.join(known)}")


class Gestur(Erm):
    """GESTUR around any featurizer and head. Costs one more copy of the weights, no further forward pass.

    >>> algorithm = Gestur(featurizer, nn.Linear(2048, 7), adam(5e-5), GesturConfig(lam=0.01))  # doctest: +SKIP
    >>> algorithm.update([(x_photo, y_photo), (x_art, y_art), (x_cartoon, y_cartoon)])  # doctest: +SKIP
    >>> algorithm.predict(x_sketch)  # doctest: +SKIP
    """

    def __init__(self, featurizer: nn.Module, head: nn.Module | None = None, optimizer: MakeOptimizer | None = None,
                 config: GesturConfig | None = None, **options: Any) -> None:  # fmt: skip
        self.__dict__["config"] = config or GesturConfig()
        super().__init__(featurizer, head, optimizer, **options)

    def _prepare(self) -> None:
        self.expert = average_of(self.network)
        if self.config.anchor == "start":
            self.start = average_of(self.network)
        # a weight that was never trained is its own average; averaging it would only round it again and again
        self.__dict__["trained"] = [p.requires_grad for p in self.network.parameters()]

    @functools.cached_property
    def _held(self) -> tuple[list[tuple[nn.Parameter, Tensor]], list[tuple[nn.Parameter, Tensor]]]:
        """(TE's parameter, GE's) for all, (TE's, anchor) for those in scope; as lasting as the optimizer's lists."""
        anchor = self.start if self.config.anchor == "start" else self.expert
        ours, theirs = (
            (self.network, anchor)
            if self.config.scope == "all"
            else (self.network.featurizer, anchor.featurizer)
        )
        return (
            list(zip(self.network.parameters(), self.expert.parameters(), strict=True)),
            list(zip(ours.parameters(), theirs.parameters(), strict=True)),
        )

    @property
    def predictor(self) -> nn.Module:
        return self.expert if self.config.predict == "expert" else self.network

    def pairs(self) -> list[tuple[nn.Parameter, Tensor]]:
        """(parameter of TE, its anchor) for all that are pulled: the trainable ones of the featurizer."""
        return [(p, q) for p, q in self._held[1] if p.requires_grad]

    @torch.no_grad()
    def before_step(self) -> None:
        """(2) to (4), in place on `.grad`. Works on scaled gradients too: g~ is proportional to ‖g‖."""
        if (pairs := self.pairs()) and self.config.lam:
            add_estimate([p for p, _ in self._held[0]], pairs, self.config)
        elif self.config.halve and (grads := [p.grad for p, _ in pairs if p.grad is not None]):
            torch._foreach_mul_(grads, 0.5)

    def after_step(self) -> None:
        moving, still = [], list(zip(self.network.buffers(), self.expert.buffers(), strict=True))
        for k, pair in enumerate(self._held[0]):
            self.trained[k] |= pair[0].requires_grad
            (moving if self.trained[k] else still).append(pair)
        _follow(moving, still, self.config.decay)

    def get_extra_state(self) -> dict[str, Any]:
        return {**super().get_extra_state(), "trained": list(self.trained)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self.trained[:] = state.get("trained", self.trained)  # states saved by earlier versions have none


def estimate(parameters: Iterable[nn.Parameter], pairs: Sequence[tuple[nn.Parameter, Tensor]],
             config: GesturConfig) -> list[Tensor]:  # fmt: skip
    """(2), (3): the estimated unseen gradient g~, one tensor per pair, from the `.grad` of all `parameters`."""
    gaps = _gaps(pairs)
    return [gap * c for gap, c in zip(gaps, _scales(parameters, pairs, gaps, config), strict=True)]


@torch.no_grad()
def add_estimate(parameters: Iterable[nn.Parameter], pairs: Sequence[tuple[nn.Parameter, Tensor]],
                 config: GesturConfig) -> None:  # fmt: skip
    """(2) to (4) in place: `.grad` becomes (g + g~) / 2, or g~ alone for a parameter without a gradient.

    The differences d are made piece by piece and twice (for the norm, for the sum), so that no second copy of the
    weights is ever held.
    """
    parameters = list(parameters)
    if config.norm == "global":
        sizes = [size for part in _pieces(pairs) for size in torch._foreach_norm(_gaps(part))]
        common = _ratio(
            config.lam, _norm([p.grad for p in parameters if p.grad is not None], pairs), _total(sizes)
        )
    shared = [p.grad for p, _ in pairs if p.grad is not None]  # by the two losses
    for part in _pieces(pairs):
        gaps = _gaps(part)
        if config.norm == "global":
            torch._foreach_mul_(gaps, common.to(gaps[0].device))
        elif config.norm == "none":
            torch._foreach_mul_(gaps, config.lam)
        else:
            torch._foreach_mul_(gaps, _scales(parameters, part, gaps, config))
        if found := [(p.grad, gap) for (p, _), gap in zip(part, gaps, strict=True) if p.grad is not None]:
            torch._foreach_add_([grad for grad, _ in found], [gap for _, gap in found])
        for (p, _), gap in zip(part, gaps, strict=True):
            if p.grad is None:
                p.grad = gap  # not shared: the sum, and nothing is halved
    if config.halve and shared:
        torch._foreach_mul_(shared, 0.5)


def _gaps(pairs: Sequence[tuple[nn.Parameter, Tensor]]) -> list[Tensor]:
    """(2), without a graph."""
    return list(torch._foreach_sub([p.detach() for p, _ in pairs], [q for _, q in pairs]))


def _scales(parameters: Iterable[nn.Parameter], pairs: Sequence[tuple[nn.Parameter, Tensor]], gaps: list[Tensor],
            config: GesturConfig) -> list[Any]:  # fmt: skip
    """The factor of each difference in (3)."""
    if config.norm == "none":
        return [config.lam] * len(pairs)
    if config.norm == "tensor":
        return [_ratio(config.lam, _norm([p.grad] if p.grad is not None else [], [(p, q)]),
                       torch.linalg.vector_norm(gap)) for (p, q), gap in zip(pairs, gaps, strict=True)]  # fmt: skip
    grads = [p.grad for p in parameters if p.grad is not None]
    return [_ratio(config.lam, _norm(grads, pairs), _norm(gaps, pairs))] * len(pairs)


def _norm(tensors: list[Tensor], pairs: Sequence[tuple[nn.Parameter, Tensor]]) -> Tensor:
    if not tensors:
        return torch.zeros((), device=pairs[0][0].device, dtype=pairs[0][0].dtype)
    return _total(torch._foreach_norm(tensors)).to(pairs[0][0].device)


def _total(sizes: Sequence[Tensor]) -> Tensor:
    """The norm of everything from the norms of its tensors, which may lie on several devices."""
    return torch.linalg.vector_norm(torch.stack([size.to(sizes[0].device) for size in sizes]))


def _ratio(lam: float, n: Tensor, r: Tensor) -> Tensor:
    """λ n / r, and 0 where r = 0; stays on the device."""
    return torch.where(r > 0, lam * n / torch.where(r > 0, r, torch.ones_like(r)), torch.zeros_like(r))


def _pieces(
    pairs: Sequence[tuple[nn.Parameter, Tensor]], most: int = 2**22
) -> Iterator[list[tuple[nn.Parameter, Tensor]]]:
    """`pairs` in runs of at most `most` numbers (a larger tensor alone) on one device."""
    part, size = [], 0
    for pair in pairs:
        if part and (size + pair[0].numel() > most or pair[0].device != part[0][0].device):
            yield part
            part, size = [], 0
        part.append(pair)
        size += pair[0].numel()
    if part:
        yield part
