"""Points for formulas: the noise view, training batches made on the fly, and the public benchmarks.

Shape letters: B data sets, n points, D variables, L tokens, C constants.
"""

from __future__ import annotations

import csv
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import sympy
import torch

from companion.dncl import expressions as ex
from companion.dncl import generator
from companion.training import generator as random_stream

# Nguyen-1..12 with the training points of the DSO benchmark file.
# name: (formula, variables, low, high, points)
NGUYEN: dict[str, tuple[str, int, float, float, int]] = {
    "Nguyen-1": ("x1**3 + x1**2 + x1", 1, -1, 1, 20),
    "Nguyen-2": ("x1**4 + x1**3 + x1**2 + x1", 1, -1, 1, 20),
    "Nguyen-3": ("x1**5 + x1**4 + x1**3 + x1**2 + x1", 1, -1, 1, 20),
    "Nguyen-4": ("x1**6 + x1**5 + x1**4 + x1**3 + x1**2 + x1", 1, -1, 1, 20),
    "Nguyen-5": ("sin(x1**2)*cos(x1) - 1", 1, -1, 1, 20),
    "Nguyen-6": ("sin(x1) + sin(x1 + x1**2)", 1, -1, 1, 20),
    "Nguyen-7": ("log(x1 + 1) + log(x1**2 + 1)", 1, 0, 2, 20),
    "Nguyen-8": ("sqrt(x1)", 1, 0, 4, 20),
    "Nguyen-9": ("sin(x1) + sin(x2**2)", 2, 0, 1, 20),
    "Nguyen-10": ("2*sin(x1)*cos(x2)", 2, 0, 1, 20),
    "Nguyen-11": ("x1**x2", 2, 0, 1, 20),
    "Nguyen-12": ("x1**4 - x1**3 + x2**2/2 - x2", 2, 0, 1, 20),
}


@dataclass(frozen=True)
class NoiseConfig:
    """The second view, t2: Gaussian noise on y. Training's eta is not known from the paper."""

    eta: float = 0.1  # largest eta; per data set eta ~ U(0, eta)
    zero: float = 0.2  # share of data sets with eta exactly 0


@dataclass(frozen=True)
class PointConfig:
    """How points and constants of a training data set are drawn. The paper's choices are not known."""

    points: tuple[int, int] = (20, 40)  # fewest and most points per data set
    radius: tuple[float, float] = (1.0, 4.0)  # r is log-uniform here; x ~ U(-r, r) or U(0, r)
    symmetric: float = 0.5  # share of data sets with x ~ U(-r, r)
    constant: tuple[float, float] = (0.5, 2.5)  # |c| is uniform here
    negative: float = 0.5  # share of negative constants
    limit: float = 1e3  # data sets with |y| above this are redrawn
    resample: bool = False  # draw new x for the noisy view (otherwise the same x, as in the paper's t2)


class Views(NamedTuple):
    """A training batch. `clean` and `noisy` are points `[B, n, D + 1]` (y last), with their masks `[B, n]`."""

    clean: torch.Tensor
    clean_mask: torch.Tensor
    noisy: torch.Tensor
    noisy_mask: torch.Tensor
    tokens: torch.Tensor  # [B, L + 2] with start and end
    skeleton: torch.Tensor  # [B] number of the skeleton in the pool


def add_noise(y: torch.Tensor, eta: torch.Tensor | float, rng: torch.Generator,
              mask: torch.Tensor | None = None) -> torch.Tensor:  # fmt: skip
    """y + N(0, sigma^2) with sigma = eta · RMS(y) of each data set: DN-CL's noise, and SRBench's.

    RMS, not standard deviation, over the clean targets `[B, n]` (only where `mask` is true); eta is a number or
    `[B]`. Only y is disturbed, never x.
    """
    mask = torch.ones_like(y, dtype=torch.bool) if mask is None else mask
    kept = torch.where(mask, y, torch.zeros_like(y))
    rms = (kept.square().sum(-1) / mask.sum(-1).clamp(min=1)).sqrt()
    sigma = torch.as_tensor(eta, dtype=y.dtype) * rms
    noise = torch.randn(y.shape, generator=rng, dtype=y.dtype)
    return y + sigma[..., None] * noise


class Pool:
    """A pool of skeletons, stored as tokens; draws constants, points and noise anew for every batch.

    Args:
        formulas: prefix ids of the skeletons.
        variables: D, the number of columns of x.
        points, noise: how points and noise are drawn.
    """

    def __init__(
        self, formulas: list[list[int]], variables: int, points: PointConfig, noise: NoiseConfig
    ) -> None:
        self.tokens = ex.batch(formulas)
        self.variables, self.points, self.noise = variables, points, noise
        self.constants = max(1, int((self.tokens == ex.CONST).sum(1).max()))

    def __len__(self) -> int:
        return len(self.tokens)

    def _x(self, size: int, rng: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Points `[size, most, D]` and their mask `[size, most]`."""
        fewest, most = self.points.points
        low, high = (torch.tensor(r).log() for r in self.points.radius)
        radius = (low + (high - low) * torch.rand(size, 1, 1, generator=rng)).exp()
        symmetric = torch.rand(size, 1, 1, generator=rng) < self.points.symmetric
        u = torch.rand(size, most, self.variables, generator=rng)
        x = torch.where(symmetric, 2 * u - 1, u) * radius
        n = torch.randint(fewest, most + 1, (size, 1), generator=rng)
        return x, torch.arange(most) < n

    def draw(self, size: int, rng: torch.Generator) -> Views:
        """`size` data sets with finite, not constant targets of at most `limit`; what fails is redrawn."""
        kept: list[tuple[torch.Tensor, ...]] = []
        have = 0
        while have < size:
            index = torch.randint(len(self), (2 * (size - have) + 8,), generator=rng)
            small, large = self.points.constant
            c = small + (large - small) * torch.rand(len(index), self.constants, generator=rng)
            c = torch.where(torch.rand(c.shape, generator=rng) < self.points.negative, -c, c)
            tokens = self.tokens[index]
            x, mask = self._x(len(index), rng)
            y = ex.evaluate(tokens, c, x)
            other, other_mask = self._x(len(index), rng) if self.points.resample else (x, mask)
            other_y = ex.evaluate(tokens, c, other) if self.points.resample else y
            good = self._good(y, mask) & self._good(other_y, other_mask)
            eta = self.noise.eta * torch.rand(len(index), generator=rng)
            eta = torch.where(torch.rand(len(index), generator=rng) < self.noise.zero, 0.0, eta)
            noisy = add_noise(other_y, eta, rng, other_mask)
            parts = (torch.cat([x, y[..., None]], -1), mask, torch.cat([other, noisy[..., None]], -1), other_mask,
                     tokens, index)  # fmt: skip
            kept.append(tuple(part[good] for part in parts))
            have += int(good.sum())
        clean, mask, noisy, noisy_mask, tokens, index = (torch.cat(p)[:size] for p in zip(*kept, strict=True))
        start = torch.full((size, 1), ex.START)
        framed = torch.cat([start, tokens, torch.full((size, 1), ex.PAD)], 1)
        ends = (tokens != ex.PAD).sum(1, keepdim=True) + 1
        framed = framed.scatter(1, ends, ex.END)
        clean = torch.where(mask[..., None], clean, torch.zeros_like(clean))
        noisy = torch.where(noisy_mask[..., None], noisy, torch.zeros_like(noisy))
        return Views(clean, mask, noisy, noisy_mask, framed, index)

    def _good(self, y: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        y = torch.where(mask, y, y[:, :1])
        return torch.isfinite(y).all(1) & (y.abs().amax(1) < self.points.limit) & (y.std(1) > 1e-3)

    def batches(self, size: int, seed: int):
        """`batch(k)` for `companion.training.fit`: the k-th batch depends on `seed` and k only."""
        return lambda k: self.draw(size, random_stream(seed, "dncl batch", k))


@dataclass(frozen=True)
class Problem:
    """A benchmark problem: points to fit (noisy y) and clean points to be judged on, float64."""

    name: str
    truth: sympy.Expr
    x: torch.Tensor  # [n, D]
    y: torch.Tensor  # [n], noisy
    test_x: torch.Tensor  # [m, D]
    test_y: torch.Tensor  # [m], clean


def truth(text: str) -> sympy.Expr:
    """A sympy expression in x1, x2, x3 (real). ValueError when it does not parse."""
    names = dict(zip(ex.VARIABLES, ex.SYMBOLS, strict=True))
    try:
        return sympy.sympify(text, locals=names)
    except (sympy.SympifyError, TypeError, SyntaxError) as error:
        raise ValueError(f"{text!r} is not a formula in {', '.join(names)} ({error})") from None


def values(expression: sympy.Expr, x: torch.Tensor) -> torch.Tensor:
    """Values `[n]` of a sympy expression on points `[n, D]`, in float64; NaN where it is not real."""
    import numpy as np

    with np.errstate(all="ignore"):
        y = sympy.lambdify(ex.SYMBOLS[: x.shape[1]], expression, "numpy")(*x.double().numpy().T)
    y = torch.as_tensor(np.real_if_close(np.asarray(y, dtype=complex)).astype(complex))
    y = torch.where(y.imag.abs() > 1e-9, torch.nan, y.real)
    return y.expand(len(x)).clone()


def nguyen(
    eta: float, seed: int, *, repeats: int = 1, variables: int = 2, test_points: int = 200
) -> list[Problem]:
    """Nguyen-1..12 (those with at most `variables` variables), `repeats` draws of points and noise each.

    Noise only on the training targets; the test targets are clean, on fresh points of the same range
    (scored on noisy targets, R2 has a ceiling below 1).
    """
    if eta < 0:
        raise ValueError(f"eta is {eta}; a noise level is 0 or more")
    problems = []
    for name, (text, d, low, high, n) in NGUYEN.items():
        if d > variables:
            continue
        expression = truth(text)
        for r in range(repeats):
            # the points do not depend on eta, so that noise levels are compared on the same points
            rng = random_stream(seed, name, r)
            x, test_x = (low + (high - low) * torch.rand(k, d, generator=rng, dtype=torch.float64)
                         for k in (n, test_points))  # fmt: skip
            y = add_noise(values(expression, x)[None], eta, rng)[0]
            problems.append(Problem(f"{name}/{r}", expression, x, y, test_x, values(expression, test_x)))
    return problems


def benchmark_hashes() -> frozenset[bytes]:
    """Value hashes of the Nguyen formulas, as printed and with their numbers perturbed, to keep out of pools."""
    marks = set()
    for text, *_ in NGUYEN.values():
        try:
            ids = ex.from_sympy(truth(text))
        except ValueError:
            continue
        for constants in (None, 1.0, 0.5, 2.0):
            marks |= {m for m in generator.value_hash([ids], constants=constants) if m is not None}
    return frozenset(marks)


def read_dso(path: Path, families: tuple[str, ...] = (), variables: int = 3) -> dict[str, dict]:
    """The DSO benchmark file (`benchmarks.csv`): name -> {expression, variables, train, test}.

    `train` and `test` are lists of (kind, low, high, number or step) per variable, kind U (random) or E (grid);
    test is the training points where the file says None.

    Raises ValueError for a file without the columns, or a row that does not parse.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"name", "variables", "expression", "train_spec", "test_spec"} <= rows[0].keys():
        raise ValueError(f"{path.name} is not DSO's benchmark table; it needs the columns name, variables, "
                         "expression, train_spec, test_spec")  # fmt: skip
    found = {}
    for row in rows:
        d = int(row["variables"])
        if d > variables or (families and not row["name"].startswith(tuple(f"{f}-" for f in families))):
            continue
        text = re.sub(r"\bdiv\(", "Div(", row["expression"]).replace("pow(", "Pow(")
        div = {"Div": lambda a, b: a / b, "Pow": sympy.Pow}
        names = dict(zip(ex.VARIABLES, ex.SYMBOLS, strict=True))
        try:
            expression = sympy.sympify(text, locals=names | div)
            train = _spec(row["train_spec"], d)
        except (sympy.SympifyError, TypeError, KeyError, json.JSONDecodeError) as error:
            raise ValueError(f"{path.name}: {row['name']} does not parse ({error})") from None
        test = train if row["test_spec"] in ("None", "") else _spec(row["test_spec"], d)
        found[row["name"]] = {"expression": expression, "variables": d, "train": train, "test": test}
    return found


def _spec(text: str, d: int) -> list[tuple[str, float, float, float]]:
    spec = json.loads(text)
    out = []
    for k in range(d):
        ((kind, (low, high, step)),) = (spec.get("all") or spec[f"x{k + 1}"]).items()
        out.append((kind, low, high, step))
    return out
