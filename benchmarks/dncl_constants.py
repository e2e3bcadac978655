"""Fitting constants: our batched Levenberg-Marquardt beside SciPy's BFGS, on the same candidates and starts.

    python benchmarks/dncl_constants.py                 # 120 candidates, 4 starts each, 100 points, one thread

Candidates are random skeletons with one to three constants; the target is one of them with noise (eta = 0.05), as
in a search, where most candidates are wrong; further lines give ours twice and four times as many starts. SciPy minimises the same mean square with its default settings and
numerical gradients (as NeSymReS does) and, in a second line, with our exact gradients. Then the parts of our fit one
by one: every candidate on targets of its own (planted constants, eta = 0.05), with more or fewer starts, with and
without variable projection. CPU seconds; writes `dncl_constants.json` beside it.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from scipy.optimize import minimize

from companion import records
from companion.dncl import constants, pools
from companion.dncl import expressions as ex


def parts(formulas: list[tuple[int, ...]], x: torch.Tensor, repeats: int = 3) -> dict[str, dict[str, float]]:
    """How often a fit is as good as the planted constants (within 1 %), and ms per candidate, by number of starts,
    with and without variable projection (without it every constant is searched for)."""
    rng = np.random.default_rng(1)
    tasks = []
    for f in formulas * repeats:
        c = rng.choice([-1, 1, 1], f.count(ex.CONST)) * np.exp(
            rng.uniform(*np.log((0.3, 4.0)), f.count(ex.CONST))
        )
        y = constants.Program([f], x).run(torch.from_numpy(c)[None, None], derivatives=False)[0][0, 0]
        if torch.isfinite(y).all() and float(y.abs().max()) < 1e3 and float(y.std()) > 1e-2:
            noise = 0.05 * y.square().mean().sqrt() * torch.from_numpy(rng.normal(size=len(y)))
            tasks.append((f, y + noise, float(noise.square().sum())))
    out = {}
    nothing = lambda ids: ([False] * ids.count(ex.CONST), [-1] * ids.count(ex.CONST))  # noqa: E731
    for projection in (True, False):
        for starts in (1, 2, 4, 8, 16):
            good, began = 0, time.process_time()
            with mock.patch.object(constants, "linear", constants.linear if projection else nothing):
                for f, y, reached in tasks:
                    good += bool(
                        constants.fit([f], x, y, restarts=starts, iterations=20).sse[0] < 1.01 * reached
                    )
            spent = (time.process_time() - began) / len(tasks)
            name = f"{starts} start{'s' * (starts > 1)}, {'with' if projection else 'without'} variable projection"
            out[name] = {"as good as the planted constants, %": round(100 * good / len(tasks), 1),
                         "ms per candidate, one at a time": round(1e3 * spent, 2), "candidates": len(tasks)}  # fmt: skip
            print(name, out[name], flush=True)
    return out


def main() -> None:
    """Print seconds per candidate and how often each is as good as the other."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--candidates", type=int, default=120)
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--starts", type=int, default=4)
    a = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    pool = pools.make(6000, pools.PoolConfig(2, (1, 5), 3, 18), 11)
    formulas = [tuple(int(t) for t in row if t) for row in pool.tokens]
    formulas = [f for f in formulas if ex.CONST in f][: a.candidates]
    x = torch.from_numpy(rng.uniform(0.3, 3, (a.points, 2)))
    for k, truth in enumerate(formulas):
        y = constants.Program([truth], x).run(
            torch.tensor([[[1.3] * truth.count(ex.CONST)]], dtype=torch.float64)
        )[0][0, 0]
        if k > 5 and torch.isfinite(y).all() and 0.1 < float(y.std()) < 100:
            break
    y = y + 0.05 * y.square().mean().sqrt() * torch.from_numpy(rng.normal(size=a.points))

    fits = {}
    for more in (1, 2, 4):
        began = time.process_time()
        sums = constants.fit(formulas, x, y, restarts=more * a.starts, iterations=20).sse
        fits[more] = (np.asarray(sums), (time.process_time() - began) / len(formulas))

    rivals = {}
    for name, exact in (("SciPy BFGS, numerical gradients", False), ("SciPy BFGS, exact gradients", True)):
        best = np.full(len(formulas), np.inf)
        spent = 0.0
        for k, f in enumerate(formulas):
            program = constants.Program([f], x)

            def square(c: np.ndarray, program=program) -> float:
                value = program.run(torch.from_numpy(c).view(1, 1, -1), derivatives=False)[0][0, 0]
                loss = float((value - y).square().mean())
                return loss if np.isfinite(loss) else 1e30

            def both(c: np.ndarray, program=program) -> tuple[float, np.ndarray]:
                value, J = program.run(torch.from_numpy(c).view(1, 1, -1))
                r = value[0, 0] - y
                loss = float(r.square().mean())
                g = (2 * (J[0, 0] @ r) / len(y)).numpy()
                return (loss, g) if np.isfinite(loss) and np.isfinite(g).all() else (1e30, np.zeros(len(c)))

            at = time.process_time()
            for start in constants.starts(f, a.starts, np.random.default_rng(0)):
                with np.errstate(all="ignore"):
                    found = minimize(both if exact else square, start, jac=exact, method="BFGS")
                best[k] = min(best[k], found.fun)
            spent += time.process_time() - at
        each = spent / len(formulas)
        sse = best * a.points
        for more, (ours, mine) in fits.items():
            good = np.isfinite(ours) | (sse < 1e20)
            better = (ours[good] <= sse[good] * (1 + 1e-6)).mean()
            line = f"{name}; ours with {more * a.starts} starts" if more > 1 else name
            rivals[line] = {
                "ms per candidate": round(1e3 * float(each), 1), "ours, ms": round(1e3 * mine, 2),
                "times faster": round(float(each / mine), 1), "candidates compared": int(good.sum()),
                "ours at least as good, %": round(100 * float(better), 1),
                "ours clearly worse (> 1 %), %": round(100 * (ours[good] > 1.01 * sse[good]).mean(), 1),
            }  # fmt: skip
            print(line, rivals[line], flush=True)
    found = {"rivals": rivals, "parts": parts(formulas, x), "points": a.points, "starts": a.starts, "target: times faster, at least": 20, "threads": 1,
             "processor": records.processor(), "versions": records.versions()}  # fmt: skip
    records.write_json(Path(__file__).with_suffix(".json"), found)


if __name__ == "__main__":
    main()
