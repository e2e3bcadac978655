"""The public benchmark equations of at most three variables, and points for them.

`benchmarks.csv` holds the suites Nguyen, Constant, Keijzer, Livermore, R, Jin, Neat and Koza with the points of
DSO's benchmark file (BSD-3; Livermore in the published numbering, Neat-6 left out: a sum, not a formula), the 53
Feynman equations of at most three variables with their original ranges, and the 14 right-hand sides of
ODE-Strogatz (PMLB's metadata, MIT), whose trajectories are simulated here.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import sympy
import torch

from companion.dncl import expressions as ex
from companion.dncl.data import Problem, truth, values
from companion.training import generator as random_stream

NAMES = ("nguyen", "constant", "keijzer", "livermore", "r", "jin", "neat", "koza", "feynman", "strogatz")
CLASSIC = NAMES[:8]


@dataclass(frozen=True)
class Equation:
    """A line of `benchmarks.csv`. `train` and `test` are (kind, low, high, number or step) per variable."""

    suite: str
    name: str
    variables: int
    formula: str
    train: tuple[tuple[str, float, float, float], ...]
    test: tuple[tuple[str, float, float, float], ...]

    @property
    def truth(self) -> sympy.Expr:
        """The formula as a sympy expression in x1, x2, x3."""
        return truth(self.formula)


@lru_cache(maxsize=1)
def equations() -> tuple[Equation, ...]:
    """All lines of `benchmarks.csv`."""

    def spec(text: str, d: int) -> tuple[tuple[str, float, float, float], ...]:
        parts = [p.split() for p in text.split(";")] if text else []
        parts = parts * d if len(parts) == 1 else parts
        return tuple((kind, float(a), float(b), float(n)) for kind, a, b, n in parts)

    with (Path(__file__).parent / "benchmarks.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return tuple(Equation(r["suite"], r["name"], d := int(r["variables"]), r["formula"], train := spec(r["train"], d),
                          spec(r["test"], d) or train) for r in rows)  # fmt: skip


@lru_cache(maxsize=1)
def skeletons() -> tuple[tuple[int, ...], ...]:
    """Prefix ids of all equations that the token set can write; fractional powers and inverse sines it cannot."""
    found = []
    for equation in equations():
        try:
            ids = ex.from_sympy(equation.truth)
        except ValueError:
            continue
        # x ** 0.4 would be exp(C log x), whose structure is x itself: no pool holds exp of a log anyway
        if not any(a == ex.ID["exp"] and b == ex.ID["mul"] and c == ex.CONST and d == ex.ID["log"]
                   for a, b, c, d in zip(ids, ids[1:], ids[2:], ids[3:], strict=False)):  # fmt: skip
            found.append(tuple(ids))
    return tuple(found)


def choose(suites: Iterable[str]) -> list[Equation]:
    """The equations of some suites. ValueError for a name that is not in `NAMES`."""
    wanted = list(suites)
    for name in wanted:
        if name not in NAMES:
            raise ValueError(f"there is no suite {name!r}; choose from {', '.join(NAMES)}")
    return [e for e in equations() if e.suite in wanted]


def _points(spec: tuple[tuple[str, float, float, float], ...], rng: torch.Generator, default: int,
            most: int) -> torch.Tensor:  # fmt: skip
    """`[n, d]`: uniform draws (U) or the product of even grids (E; a step larger than the range is a number of
    points, as in DSO), thinned to at most `most`."""
    if spec[0][0] == "E":
        axes = []
        for _, low, high, step in spec:
            number = int(step) if step > high - low else round((high - low) / step) + 1
            axes.append(torch.linspace(low, high, number, dtype=torch.float64))
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(spec))
        if len(grid) <= most:
            return grid
        return grid[torch.randperm(len(grid), generator=rng)[:most].sort().values]
    n = min(most, int(spec[0][3]) or default)
    low, high = (torch.tensor([s[k] for s in spec], dtype=torch.float64) for k in (1, 2))
    return low + (high - low) * torch.rand(n, len(spec), generator=rng, dtype=torch.float64)


def problem(equation: Equation, eta: float, seed: int, *, repeat: int = 0, points: int = 200, most: int = 1000,
            test_points: int = 400) -> Problem:  # fmt: skip
    """Points of one equation: noisy training targets, clean test targets on fresh points of the test range.

    Args:
        eta: noise; its standard deviation is eta times the root mean square of the clean training targets.
        points: number of training points where the suite names none (Feynman).
        most: no more training points than this.

    Points whose target is not finite, or 100 and more as in DSO's classic suites, are drawn again.
    """
    if eta < 0:
        raise ValueError(f"eta is {eta}; a noise level is 0 or more")
    rng = random_stream(seed, equation.name, repeat)
    if equation.suite == "strogatz":
        x, y, test_x, test_y = _strogatz(equation, seed + 1000 * repeat)
    else:
        bound = 1e2 if equation.suite in CLASSIC and equation.train[0][0] == "U" else np.inf

        def sets(spec, number: int) -> tuple[torch.Tensor, torch.Tensor]:
            x = _points(spec, rng, points, number)
            for _ in range(50):
                y = values(equation.truth, x)
                bad = ~torch.isfinite(y) | (y.abs() >= bound)
                if spec[0][0] == "E" or not bad.any():
                    break
                x[bad] = _points(spec, rng, int(bad.sum()), len(x))[: int(bad.sum())]
            good = torch.isfinite(y)
            return x[good], y[good]

        x, y = sets(equation.train, most)
        spec = tuple((k, a, b, 0.0) if k == "U" else (k, a, b, n) for k, a, b, n in equation.test)
        points, keep = test_points, test_points
        test_x, test_y = sets(spec, keep)
    # noise last, so that all levels share their points
    sigma = eta * y.square().mean().sqrt()
    noisy = y + sigma * torch.randn(len(y), generator=rng, dtype=torch.float64)
    return Problem(f"{equation.name}/{repeat}", equation.truth, x, noisy, test_x, test_y)


_STATE = {"bacres": ("bacres1", "bacres2"), "barmag": ("barmag1", "barmag2"), "glider": ("glider1", "glider2"),
          "lv": ("lv1", "lv2"), "predprey": ("predprey1", "predprey2"), "shearflow": ("shearflow1", "shearflow2"),
          "vdp": ("vdp1", "vdp2")}  # fmt: skip


def _strogatz(equation: Equation, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """400 points on four trajectories, t = 0, 0.1, ..., 9.9, target the derivative; every fourth point is a test
    point (initial conditions of the original script)."""
    from scipy.integrate import solve_ivp

    system = equation.name[:-1]
    symbols = sympy.symbols("x1 x2", real=True)
    sides = [sympy.lambdify(symbols, e.truth) for e in equations() if e.name in _STATE[system]]
    rng = np.random.default_rng([seed, len(system), ord(system[0]), ord(system[-1])])
    starts = {
        "bacres": lambda: rng.normal((5, 10), 1), "predprey": lambda: rng.normal((5, 10), 1),
        "barmag": lambda: rng.uniform(0, 2 * np.pi, 2), "glider": lambda: rng.normal((5, 0), 0.5),
        "shearflow": lambda: rng.uniform((-np.pi, -np.pi / 2), (np.pi, np.pi / 2)), "vdp": lambda: rng.random(2),
    }  # fmt: skip
    rows = []
    for k in range(4):
        start = ((1, 3), (4, 1), (8, 2), (3, 3))[k] if system == "lv" else starts[system]()
        found = solve_ivp(lambda t, s: [f(*s) for f in sides], (0, 9.9), start, t_eval=np.linspace(0, 9.9, 100),
                          rtol=1e-8, atol=1e-10)  # fmt: skip
        rows.append(found.y.T)
    x = torch.from_numpy(np.concatenate(rows))
    y = values(equation.truth, x)
    good = torch.isfinite(y) & (y.abs() < 1e6)
    x, y = x[good], y[good]
    held = torch.arange(len(x)) % 4 == 3
    return x[~held], y[~held], x[held], y[held]
