"""Time of a fit, and what a token should cost: both on generated problems, never on a benchmark's equations.

    python benchmarks/dncl_regressor.py time       # 20 problems of 200 points, default settings
    python benchmarks/dncl_regressor.py price      # 81 problems, seven prices

Writes its part of `dncl_regressor.json` and leaves the other one as it is. *Time*: seconds on the wall and
of this process's CPU until `fit` returns, with the default budget and with limits of 1 and 2 seconds. *Price*: one
search per problem; then the formulas that it fitted are ranked anew with each price of a token. The truth is a
skeleton of the pool (1 to 4 operators, up to 2 constants, no benchmark's structure), noise eta in {0.01, 0.05, 0.1}, 20,
60 or 200 points; the selected formula is judged on clean test points.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from pathlib import Path

import numpy as np
import sympy
import torch

from companion import records
from companion.dncl import SymbolicRegressor, evolve, metrics, peers, pools, pretrained, suites
from companion.dncl import expressions as ex
from companion.dncl.data import Problem

PRICES = (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
ETAS, POINTS = (0.01, 0.05, 0.1), (20, 60, 200)


def problems(number: int, seed: int, points: tuple[int, ...] = POINTS) -> list[tuple[float, Problem]]:
    """(eta, problem) of generated formulas of one to three variables, x in (0.2, 3), |constants| in (0.3, 4)."""
    rng = np.random.default_rng([seed, 1])
    banned = pools.structure_marks(suites.skeletons())
    out: list[tuple[float, Problem]] = []
    tables = [
        pools.make(500, pools.PoolConfig(d, (1, 4), 2, 14), seed, without=banned).tokens for d in (1, 2, 3)
    ]
    while len(out) < number:
        k = len(out)
        table = tables[k % 3]
        ids = [int(t) for t in table[rng.integers(len(table))] if t]
        d = sum(v in ids for v in range(ex.FIRST_VARIABLE, ex.FIRST_UNARY))
        constants = rng.choice([-1, 1, 1], ids.count(ex.CONST)) * np.exp(
            rng.uniform(*np.log((0.3, 4.0)), ids.count(ex.CONST))
        )
        n = points[k // 3 % len(points)]
        x = rng.uniform(0.2, 3.0, (n + 400, d))
        c = np.array([constants]) if len(constants) else np.zeros((1, 1))
        y = pretrained.evaluate_rows(np.array([ids]), c, x[None])[0]
        # a target that hardly varies beside its size drowns in noise that is measured by its size
        if not np.isfinite(y).all() or np.abs(y).max() > 100 or y.std() < 0.3 * math.sqrt(np.mean(y**2)):
            continue
        eta = ETAS[k // (3 * len(points)) % len(ETAS)]
        noisy = y[:n] + eta * math.sqrt(np.mean(y[:n] ** 2)) * rng.normal(size=n)
        parts = (torch.from_numpy(a) for a in (x[:n], noisy, x[n:], y[n:]))
        out.append((eta, Problem(f"{k}", ex.to_sympy(ids, constants.tolist()), *parts)))
    return out


def measure_time() -> dict:
    """Seconds until `fit` returns."""
    chosen = [p for _, p in problems(20, 0, points=(200,))]
    SymbolicRegressor(None, rounds=0).fit(chosen[0].x.numpy(), chosen[0].y.numpy())  # loads the network
    out = {}
    for limit in (None, 1.0, 2.0, 5.0):
        wall, cpu = [], []
        for p in chosen:
            a, b = time.monotonic(), time.process_time()
            SymbolicRegressor(limit).fit(p.x.numpy(), p.y.numpy())
            wall.append(time.monotonic() - a)
            cpu.append(time.process_time() - b)
        line = {"wall, median": np.median(wall), "wall, most": max(wall), "CPU, median": np.median(cpu),
                "CPU, most": max(cpu)}  # fmt: skip
        out["no limit" if limit is None else f"max_seconds = {limit:g}"] = {
            k: round(float(v), 2) for k, v in line.items()
        }
        print(limit, out, flush=True)
    return {f"seconds of a fit ({len(chosen)} problems of 200 points)": out}


def measure_price(number: int, seconds: float) -> dict:
    """Outcomes by price: form right (%), R^2 > 0.99 (%), median of 1 - R^2, length."""
    lines: dict[float, list[dict]] = {price: [] for price in PRICES}
    names = [sympy.Symbol(f"x{j + 1}", real=True) for j in range(3)]
    for k, (eta, p) in enumerate(problems(number, 0)):
        x, y = p.x.numpy(), p.y.numpy()
        with peers.cpu_time(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            began = time.process_time()
            search = evolve.Search(x, y, evolve.EvolveConfig(), seed=0, deadline=began + 0.88 * seconds,
                                   polish=began + seconds)  # fmt: skip
            search.run()
        chosen: dict = {}
        for price in PRICES:
            taste = evolve.Search(x, y, evolve.EvolveConfig(token_price=price))
            best = min(search.found.values(), key=lambda f: taste.score(f.sse, f.ids, f.constants, f.fixed))
            if best not in chosen:
                found = best.expression()
                f = sympy.lambdify(names[: x.shape[1]], found)
                predicted = np.broadcast_to(f(*p.test_x.numpy().T), (len(p.test_y),)).astype(float)
                r2 = metrics.r2(p.test_y, torch.from_numpy(predicted.copy()))
                chosen[best] = {
                    "form": r2 > 0.5 and peers.same_form(found, p),
                    "r2": r2,
                    "length": len(best.ids),
                }
            lines[price].append(chosen[best] | {"eta": eta, "points": len(y)})
        print(k, eta, len(y), p.truth, [lines[q][-1]["form"] for q in PRICES], flush=True)
    share = lambda rows, test: round(100 * float(np.mean([bool(test(r)) for r in rows])), 1)  # noqa: E731
    table = {}
    for price, rows in lines.items():
        table[f"{price:g}"] = {
            "form, %": share(rows, lambda r: r["form"]),
            **{f"form at eta {e:g}, %": share([r for r in rows if r["eta"] == e], lambda r: r["form"]) for e in ETAS},
            **{f"form with {n} points, %": share([r for r in rows if r["points"] == n], lambda r: r["form"])
               for n in POINTS},
            "R2 > 0.99, %": share(rows, lambda r: r["r2"] > 0.99),
            "median 1 - R2": round(float(np.median([1 - max(r["r2"], 0) for r in rows])), 5),
            "length": round(float(np.mean([r["length"] for r in rows])), 1),
        }  # fmt: skip
    return {f"price of a token ({number} problems, {seconds:g} CPU seconds each)": table}


def main() -> None:
    """The command line in this file's first lines."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", nargs="?", choices=("time", "price"), help="default: both")
    parser.add_argument("--problems", type=int, default=81)
    parser.add_argument("--seconds", type=float, default=1.5)
    a = parser.parse_args()
    torch.set_num_threads(1)
    out = measure_price(a.problems, a.seconds) if a.what != "time" else {}
    out |= measure_time() if a.what != "price" else {}
    path = Path(__file__).with_suffix(".json")
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    records.write_json(path, before | out | {"threads": 1, "processor": records.processor(),
                                             "versions": records.versions()})  # fmt: skip
    print(out)


if __name__ == "__main__":
    main()
