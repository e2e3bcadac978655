"""Ideas for the search of formulas, one change each: smoothed targets, more samples, more subsets.

    python benchmarks/dncl_inference.py                 # 54 generated problems, 1.5 CPU seconds each

Problems are those of `dncl_regressor.py`: generated formulas, no benchmark's, noise eta in {0.01, 0.05, 0.1}, 20, 60 or
200 points. *Smoothed*: a Gaussian process (scikit-learn; RBF with a length per variable plus white noise) is fitted
to the points, and the search sees its posterior mean in the place of the targets. *Both*: three quarters of the points
are searched raw and smoothed, half of the time each; the raw targets of the last quarter choose. What is found is judged on clean
test points. Writes `dncl_inference.json` beside it.
"""

from __future__ import annotations

import argparse
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from dncl_regressor import problems
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from tqdm import tqdm

from companion import records
from companion.dncl import SymbolicRegressor, peers

MORE = {"samples": 256, "subsets": 6}


def smoothed(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Posterior means `[n]` at x `[n, d]` of a Gaussian process with its noise level fitted."""
    kernel = ConstantKernel() * RBF(np.ones(x.shape[1])) + WhiteKernel(0.01)
    process = GaussianProcessRegressor(kernel, normalize_y=True, n_restarts_optimizer=1, random_state=0)
    return process.fit(x, y).predict(x)


def fitted(x: np.ndarray, y: np.ndarray, seconds: float | None, **settings) -> SymbolicRegressor:
    """A regressor after `fit`, its limit in CPU seconds."""
    with peers.cpu_time():
        return SymbolicRegressor(seconds, **settings).fit(x, y)


def both(x: np.ndarray, y: np.ndarray, seconds: float) -> SymbolicRegressor:
    """Of the formulas from raw and from smoothed targets, the one with the smaller error on held-out raw targets."""
    held = np.random.default_rng(0).permutation(len(y)) < len(y) // 4
    a, b = x[~held], y[~held]
    models = [fitted(a, b, seconds / 2), fitted(a, smoothed(a, b), seconds / 2)]
    errors = [float(np.mean((m.predict(x[held]) - y[held]) ** 2)) for m in models]
    return models[int(not errors[0] <= errors[1])]


def main() -> None:
    """Judge every way on every problem."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", type=int, default=54)
    parser.add_argument("--seconds", type=float, default=1.5)
    a = parser.parse_args()
    torch.set_num_threads(1)
    ways = {
        "as shipped": lambda x, y: fitted(x, y, a.seconds),
        "smoothed targets": lambda x, y: fitted(x, smoothed(x, y), a.seconds),
        "both, held-out points choose": lambda x, y: both(x, y, a.seconds),
        "256 samples over 6 subsets": lambda x, y: fitted(x, y, a.seconds, **MORE),
        "without the network": lambda x, y: fitted(x, y, a.seconds, network=None),
        "network alone": lambda x, y: fitted(x, y, None, rounds=0),
        "network alone, 256 samples over 6 subsets": lambda x, y: fitted(x, y, None, rounds=0, **MORE),
    }
    lines: dict[str, list[dict]] = {way: [] for way in ways}
    for eta, p in tqdm(problems(a.problems, 0), unit="problem"):
        for way, run in ways.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                began = time.process_time()
                model = run(p.x.numpy(), p.y.numpy())
                spent = time.process_time() - began
                judged = peers.judge(p, peers.Answer(model.predict, model.sympy(), spent))
            lines[way].append(judged | {"eta": eta})
    share = lambda rows, key: round(100 * float(np.mean([r[key] for r in rows])), 1)  # noqa: E731
    table = {
        way: {
            "form, %": share(rows, "form"),
            **{f"form at eta {e:g}, %": share([r for r in rows if r["eta"] == e], "form")
               for e in sorted({r["eta"] for r in rows})},
            "R2 > 0.99, %": share(rows, "accurate"),
            "length": round(float(np.mean([r["length"] for r in rows])), 1),
            "CPU seconds": round(float(np.mean([r["seconds"] for r in rows])), 2),
        }
        for way, rows in lines.items()
    }  # fmt: skip
    records.write_json(Path(__file__).with_suffix(".json"), {
        "ways": table, "problems": a.problems, "one problem, %": round(100 / a.problems, 1), "seconds": a.seconds, "threads": 1,
        "processor": records.processor(), "versions": records.versions(),
    })  # fmt: skip
    for way, row in table.items():
        print(way, row)


if __name__ == "__main__":
    main()
