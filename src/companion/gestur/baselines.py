"""What GESTUR is compared with. Every method is a small class with `update(batches)` and `predict(x)`.

Trained differently: `LinearProbe`, `L2sp`, `Miro`, `Coral`, `Mixup`, `Sam`, `Sagm`. Averaged while training: `Ema`, `Sma`.
Averaged afterwards: `Swad` (from the validation losses) and `wise_ft` (with the weights before training); both apply
to any method, for instance MIRO + SWAD and GESTUR + SWAD.

Shapes: B examples of one domain's batch, S source domains, C classes, D features.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from companion.gestur.model import Batches, Erm, average_of, check_batches, follow


def joined(batches: Batches) -> tuple[Tensor, Tensor]:
    """All domains' batches as one: x [S·B, ...], y [S·B]."""
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


class LinearProbe(Erm):
    """The pre-trained features stay as they are; only the head learns."""

    def _prepare(self) -> None:
        self.network.featurizer.requires_grad_(False)


class Ema(Erm):
    """ERM that predicts with the exponential moving average of its weights: GESTUR with λ = 0 and nothing halved."""

    def __init__(self, *args: Any, decay: float = 0.999, **options: Any) -> None:
        self.__dict__["decay"] = decay
        super().__init__(*args, **options)

    def _prepare(self) -> None:
        self.average = average_of(self.network)

    def after_step(self) -> None:
        follow(self.average, self.network, self.decay)

    @property
    def predictor(self) -> nn.Module:
        return self.average


class Sma(Ema):
    """ERM with a uniform running mean of the weights from step `start` on (Arpit et al. 2022)."""

    def __init__(self, *args: Any, start: int = 100, **options: Any) -> None:
        self.__dict__["start"] = start
        super().__init__(*args, **options)

    def after_step(self) -> None:
        n = max(0, self.steps - self.start)  # models already in the mean
        follow(self.average, self.network, n / (n + 1))


class L2sp(Erm):
    """ERM plus α/2 ‖φ - φ_0‖², the pull towards the pre-trained weights (Li et al. 2018)."""

    def __init__(self, *args: Any, alpha: float = 0.01, **options: Any) -> None:
        self.__dict__["alpha"] = alpha
        super().__init__(*args, **options)

    def _prepare(self) -> None:
        self.start = average_of(self.network.featurizer)

    def penalty(self) -> Tensor:
        pairs = zip(self.network.featurizer.parameters(), self.start.parameters(), strict=True)
        return sum(((p - q) ** 2).sum() for p, q in pairs if p.requires_grad) / 2

    def objective(self, batches: Batches) -> Tensor:
        return super().objective(batches) + self.alpha * self.penalty()


class Miro(Erm):
    """Mutual-information regularisation with the frozen pre-trained network as oracle (Cha et al. 2022).

    Adds λ Σ_taps ½ mean[(z - z_0)² / σ² + log σ²], where z and z_0 are a tap's feature maps in the trained and in the
    frozen featurizer and σ² is learned per channel (softplus, 0.1 at the start, its own learning rate).

    Args:
        taps: names of submodules of the featurizer whose outputs are compared (stem and blocks).
        example: any input [B, ...]; tells the number of channels at each tap.
        lam: λ.
    """

    one_process = True

    def __init__(
        self, *args: Any, taps: Sequence[str], example: Tensor, lam: float = 0.1, **options: Any
    ) -> None:
        self.__dict__.update(taps=tuple(taps), example=example, lam=lam)
        super().__init__(*args, **options)

    def _prepare(self) -> None:
        trained, self.oracle = self.network.featurizer, average_of(self.network.featurizer)
        known = [name for name, _ in trained.named_modules() if name]
        if missing := [name for name in self.taps if name not in known]:
            raise ValueError(
                f"tap {missing[0]!r} is not a submodule of the featurizer; it has {', '.join(known[:20])}"
            )
        seen: dict[tuple[str, str], Tensor] = {}
        self.__dict__["seen"] = seen

        def keep(part: str, name: str):
            return lambda module, inputs, output: seen.__setitem__((part, name), output)

        for name in self.taps:
            trained.get_submodule(name).register_forward_hook(keep("trained", name))
            self.oracle.get_submodule(name).register_forward_hook(keep("frozen", name))
        with torch.no_grad():
            self.oracle(self.example)
        raw = math.log(math.expm1(0.1 - 1e-5))
        self.raw_variance = nn.ParameterList(
            torch.full((_channels(seen["frozen", name]),), raw, device=self.example.device)
            for name in self.taps
        )

    def groups(self) -> list[dict[str, Any]]:
        return [*super().groups(), {"name": "encoders", "params": list(self.raw_variance)}]

    def regulariser(self, x: Tensor) -> Tensor:
        """The sum over taps for the x that the trained featurizer has just seen."""
        with torch.no_grad():
            self.oracle(x)
        total = x.new_zeros(())
        for name, raw in zip(self.taps, self.raw_variance, strict=True):
            z, z0 = self.seen["trained", name], self.seen["frozen", name]
            variance = F.softplus(raw) + 1e-5
            if z.ndim == 4:  # maps [B, channels, height, width]; otherwise channels come last
                variance = variance[:, None, None]
            total = total + ((z - z0) ** 2 / variance + variance.log()).mean() / 2
        return total

    def objective(self, batches: Batches) -> Tensor:
        loss = super().objective(batches)
        return loss + self.lam * self.regulariser(joined(batches)[0])


def _channels(z: Tensor) -> int:
    return z.shape[1] if z.ndim == 4 else z.shape[-1]


def coral_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference of the means plus that of the covariances. a, b: [B, D]"""
    gaps = [a.mean(0) - b.mean(0), torch.cov(a.T) - torch.cov(b.T)]
    return sum(gap.pow(2).mean() for gap in gaps)


class Coral(Erm):
    """ERM plus γ times the mean of `coral_distance` over pairs of source domains (Sun & Saenko 2016, DomainBed's form).

    Its cross-entropy is taken on the features, so it refuses an `objective`; a batch has at least two examples.
    """

    one_process = own_loss = True

    def __init__(self, *args: Any, gamma: float = 1.0, **options: Any) -> None:
        self.__dict__["gamma"] = gamma
        super().__init__(*args, **options)

    def objective(self, batches: Batches) -> Tensor:
        check_batches(batches)
        if len(batches) < 2:
            raise ValueError("CORAL aligns pairs of source domains; got one domain")
        if least := [len(y) for _, y in batches if len(y) < 2]:
            raise ValueError(
                f"CORAL compares covariances; every domain's batch needs at least 2 examples, got {least[0]}"
            )
        features = [self.network.featurizer(x) for x, _ in batches]
        loss = torch.stack([F.cross_entropy(self.network.head(self.network.dropout(z)), y)
                            for z, (_, y) in zip(features, batches, strict=True)]).mean()  # fmt: skip
        pairs = [(a, b) for k, a in enumerate(features) for b in features[k + 1 :]]
        return loss + self.gamma * torch.stack([coral_distance(a, b) for a, b in pairs]).mean()


class Mixup(Erm):
    """ERM on convex mixtures of two domains' images and losses, weight Beta(α, α) (Yan et al. 2020, DomainBed's form).

    The mixed loss is cross-entropy; an `objective` is refused.
    """

    one_process = own_loss = True

    def __init__(self, *args: Any, alpha: float = 0.2, **options: Any) -> None:
        self.__dict__["alpha"] = alpha
        super().__init__(*args, **options)

    def objective(self, batches: Batches) -> Tensor:
        check_batches(batches)
        order = torch.randperm(len(batches)).tolist()
        total = batches[0][0].new_zeros(())
        for k, i in enumerate(order):
            (x, y), (x2, y2) = batches[i], batches[order[(k + 1) % len(order)]]
            n = min(len(x), len(x2))
            share = float(torch.distributions.Beta(self.alpha, self.alpha).sample())
            out = self.network(share * x[:n] + (1 - share) * x2[:n])
            total = total + share * F.cross_entropy(out, y[:n]) + (1 - share) * F.cross_entropy(out, y2[:n])
        return total / len(batches)


class Sam(Erm):
    """Sharpness-aware minimisation: the gradient taken at θ + ρ g/‖g‖ (Foret et al. 2021). Two gradients per step.

    Raises ValueError with an `accelerator`: the two gradients of a step are not synchronised between processes.
    """

    def __init__(self, *args: Any, rho: float = 0.05, **options: Any) -> None:
        self.__dict__["rho"] = rho
        super().__init__(*args, **options)
        if self.accelerator:
            raise ValueError(f"{type(self).__name__} takes two gradients per step and runs without accelerate; "
                             "leave accelerator out")  # fmt: skip

    def factor(self, size: Tensor) -> Tensor:
        """How many times g = ∇L(θ), whose norm is `size`, the weights are moved uphill."""
        return self.rho / (size + 1e-12)

    def combine(self, uphill: Tensor, here: Tensor) -> None:
        """Make the gradient that the optimizer sees, in place of `uphill`, from those at the moved weights and at θ.

        In place, because a fused optimizer reads a gradient in the memory layout of its parameter, which `here` need
        not have.
        """

    def update(self, batches: Batches) -> dict[str, float | Tensor]:
        self.network.train()
        params = [p for p in self.network.parameters() if p.requires_grad]
        loss = self.objective(batches)
        grads = torch.autograd.grad(loss, params, allow_unused=True)
        found = [(p, g, p.detach().clone()) for p, g in zip(params, grads, strict=True) if g is not None]
        factor = self.factor(torch.linalg.vector_norm(torch.stack([g.norm() for _, g, _ in found])))
        with torch.no_grad():
            for p, g, _ in found:
                p.add_(factor * g)
        self.optimizer.zero_grad(set_to_none=True)
        self.objective(batches).backward()
        with torch.no_grad():
            for p, g, old in found:
                p.copy_(old)
                self.combine(p.grad, g)
        self.optimizer.step()
        self.steps += 1
        return {"loss": loss.detach()}


class Sagm(Sam):
    """Sharpness-aware gradient matching (Wang et al. 2023), as its official code states it.

    The mean of the gradients at θ and at θ + (ρ/‖g‖ - α) g: the α g pulls the second point back along g, which
    rewards gradients that agree. α = 0 is the mean of ERM's and SAM's gradient.
    """

    def __init__(self, *args: Any, alpha: float = 1e-3, **options: Any) -> None:
        self.__dict__["alpha"] = alpha
        super().__init__(*args, **options)

    def factor(self, size: Tensor) -> Tensor:
        return super().factor(size) - self.alpha

    def combine(self, uphill: Tensor, here: Tensor) -> None:
        uphill.add_(here).mul_(0.5)


# --- averages made afterwards -------------------------------------------------------------------------


def mix(models: Sequence[nn.Module], weights: Sequence[float]) -> nn.Module:
    """Σ weights_k · models_k over parameters; buffers of the last. Raises ValueError unless the weights sum to 1."""
    if len(models) != len(weights) or abs(sum(weights) - 1) > 1e-9:
        raise ValueError(
            f"{len(models)} models with weights {list(weights)}; one each, with sum 1, is needed"
        )
    out = copy.deepcopy(models[-1]).requires_grad_(False).eval()
    with torch.no_grad():
        for parts in zip(out.parameters(), *(m.parameters() for m in models), strict=True):
            parts[0].copy_(sum(w * p for w, p in zip(weights, parts[1:], strict=True)))
    return out


def wise_ft(before: nn.Module, after: nn.Module, share: float = 0.5) -> nn.Module:
    """(1 - share) · before + share · after (Wortsman et al. 2022); `before` needs a head that already predicts."""
    return mix([before, after], [1 - share, share])


def valley(losses: Sequence[float], converge: int = 3, tolerate: int = 6, ratio: float = 0.3) -> list[int]:
    """Which stretches between evaluations SWAD averages, one number per share: stretch k ends at evaluation k.

    The rule of the official class LossValley (khanrc/swad, read in three public copies that agree). The valley is found
    when the first of the last `converge` losses is their minimum, at evaluation c, say; what lies above (1 + ratio) times
    their mean is too high. From then on a window of the last `tolerate` evaluations slides along:

    1. When the valley is found, the first tolerate - converge + 1 of the window enter, from the second after the last
       one that is too high (with none, from the second). For tolerate < converge what the window has passed enters.
    2. At every later evaluation the window's first enters, unless it lies before c. When all in the window are too high,
       the valley ends for good.
    3. After the training the rest of the window enters from the left, as long as one of those left is not too high.

    A stretch can enter more than once, and has that many shares: by 1. and again by 2. or 3., and while the window is not
    yet full its first stays the same. Algorithm 1 of Cha et al. 2021 has none of that; the published numbers come from
    the class. Without a valley the last stretch stands alone.

    Raises ValueError without a loss.
    """
    n = len(losses)
    if not n:
        raise ValueError("SWAD has seen no evaluation yet; call `evaluated(loss)` at least once")
    start = next((i for i in range(n - converge + 1) if losses[i] == min(losses[i : i + converge])), None)
    if start is None:
        return [n - 1]
    found_at = start + converge  # evaluations seen by then
    limit = (1 + ratio) * sum(losses[start:found_at]) / converge

    def window(seen: int) -> list[int]:
        return list(range(max(0, seen - tolerate), seen))

    shares = list(range(start + 1, found_at - tolerate + 1))
    if tolerate > converge:
        low = window(found_at)[: tolerate - converge + 1]
        while any(losses[k] > limit for k in low):
            low.pop(0)
        shares = low[1:]
    for seen in range(found_at + 1, n + 1):
        here = window(seen)
        if here[0] < start:
            continue
        if min(losses[k] for k in here) > limit:
            return shares or [start]
        shares.append(here[0])
    rest = window(n)[1:]
    while rest and min(losses[k] for k in rest) <= limit:
        shares.append(rest.pop(0))
    return shares or [start]


class Swad:
    """Dense average of any method's predicting weights over the `valley` of its validation loss.

    Call `follow(algorithm)` after every step and `evaluated(loss)` with the mean source-validation loss after every
    evaluation; `model()` is the mean of the stretches in the valley, each the mean of its steps. Keeps one average per
    evaluation, on the CPU.
    """

    def __init__(self, converge: int = 3, tolerate: int = 6, ratio: float = 0.3) -> None:
        self.settings = (converge, tolerate, ratio)
        self.losses: list[float] = []
        self.parts: list[nn.Module] = []  # the mean of each stretch between evaluations
        self.open: nn.Module | None = None
        self.count = 0

    def follow(self, algorithm: Erm) -> None:
        if self.open is None:
            self.open, self.count = average_of(algorithm.predictor), 1
        else:
            self.count += 1
            follow(self.open, algorithm.predictor, (self.count - 1) / self.count)

    def evaluated(self, loss: float) -> None:
        self.losses.append(float(loss))
        self.parts.append(self.open.to("cpu"))
        self.open = None

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as nested lists of numbers and tensors."""
        return {"losses": self.losses, "parts": [m.state_dict() for m in self.parts],
                "open": self.open.state_dict() if self.open else {}, "count": self.count}  # fmt: skip

    def restore(self, state: Mapping[str, Any], like: nn.Module) -> None:
        """Back to `state`; `like` is any network of the same shape."""

        def module(weights: Mapping[str, Tensor], device: Any) -> nn.Module:
            made = average_of(like).to(device)
            made.load_state_dict(weights)
            return made

        self.losses, self.count = list(state["losses"]), state["count"]
        self.parts = [module(weights, "cpu") for weights in state["parts"]]
        self.open = module(state["open"], next(like.parameters()).device) if state["open"] else None

    def model(self) -> nn.Module:
        shares = Counter(valley(self.losses, *self.settings))
        return mix([self.parts[k] for k in shares], [n / shares.total() for n in shares.values()])
