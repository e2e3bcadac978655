"""Other regressors on the same points and in the same time, and one way to judge them all.

gplearn and Operon (pyoperon) are genetic programming; linear regression and a random forest are the floors: what
needs no search, and what needs no formula. Every answer is judged on clean test points.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import sympy
import torch

from companion.dncl import constants as fitting
from companion.dncl import evolve, metrics
from companion.dncl import expressions as ex
from companion.dncl.data import Problem
from companion.dncl.regressor import SymbolicRegressor, parse, readable

NAMES = ("regressor", "no-network", "mse-selection", "gplearn", "operon", "no-snap", "linear", "forest",
         "network-only")  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What a regressor made of a problem. `expression` is None where it has no formula in x1, x2, x3."""

    predict: Callable[[np.ndarray], np.ndarray]
    expression: sympy.Expr | None
    seconds: float


@contextmanager
def cpu_time() -> Iterator[None]:
    """Deadlines count this process's CPU time: on a busy machine nobody gains or loses by the neighbours."""
    before, fitting.clock = fitting.clock, time.process_time
    try:
        yield
    finally:
        fitting.clock = before


def answer(name: str, problem: Problem, seconds: float, seed: int, options: dict | None = None) -> Answer:
    """Fit `problem` with the regressor `name` (one of `NAMES`) for at most `seconds` of CPU
    time (one thread).

    `options` go to our regressor; Operon takes the noise level `eta` from them, because its description length needs
    the noise's standard deviation and is misleading without (ours estimates it).

    Raises ValueError for another name, ImportError where gplearn or pyoperon is not installed.
    """
    if name not in NAMES:
        raise ValueError(f"there is no regressor {name!r}; choose from {', '.join(NAMES)}")
    x, y = problem.x.numpy(), problem.y.numpy()
    options = dict(options or {})
    if name != "operon":
        options.pop("eta", None)
    began = time.process_time()
    with cpu_time(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predict, expression = {
            "regressor": _ours, "no-network": _ours, "network-only": _ours, "mse-selection": _ours, "no-snap": _ours, "gplearn": _gplearn, "operon": _operon,
            "linear": _floor, "forest": _floor,
        }[name](name, x, y, seconds, seed, options)  # fmt: skip
    return Answer(predict, expression, time.process_time() - began)


def _ours(name: str, x: np.ndarray, y: np.ndarray, seconds: float, seed: int, options: dict):
    settings = {"no-network": {"network": None}, "mse-selection": {"selection": "mse"},
                "no-snap": {"snap": False}, "network-only": {"rounds": 0}}.get(name, {})  # fmt: skip
    model = SymbolicRegressor(seconds, random_state=seed, **(settings | options)).fit(x, y)
    return model.predict, model.sympy()


def _gplearn(name: str, x: np.ndarray, y: np.ndarray, seconds: float, seed: int, options: dict):
    """gplearn's defaults (1000 programs, parsimony 0.001) with sin, cos, exp, log, sqrt, generation by generation
    until the time is up; the fittest program of the last one."""
    from gplearn.functions import make_function
    from gplearn.genetic import SymbolicRegressor as Gplearn

    began = time.process_time()
    exp = make_function(function=_bounded_exp, name="exp", arity=1)
    model = Gplearn(generations=1, function_set=("add", "sub", "mul", "div", "sqrt", "log", "sin", "cos", exp),
                    warm_start=True, random_state=seed, stopping_criteria=0.0)  # fmt: skip
    model.fit(x, y)
    spent = time.process_time() - began
    while time.process_time() - began + spent < seconds and model.generations < 200:
        at = time.process_time()
        model.set_params(generations=model.generations + 1)
        model.fit(x, y)
        spent = time.process_time() - at
    variables = {f"X{j}": s for j, s in enumerate(ex.SYMBOLS)}
    # gplearn takes the magnitude under roots and logarithms; for plain numbers it must be written, too
    size = lambda p: abs(p) if p.is_number else p  # noqa: E731
    functions = {
        "add": lambda p, q: p + q, "sub": lambda p, q: p - q, "mul": lambda p, q: p * q, "div": lambda p, q: p / q,
        "sqrt": lambda p: sympy.sqrt(size(p)), "log": lambda p: sympy.log(size(p)), "sin": sympy.sin,
        "cos": sympy.cos, "exp": sympy.exp,
    }  # fmt: skip
    return model.predict, sympy.sympify(str(model._program), locals=variables | functions)


def _bounded_exp(a: np.ndarray) -> np.ndarray:
    return np.exp(np.clip(a, -50, 50))


def _operon(name: str, x: np.ndarray, y: np.ndarray, seconds: float, seed: int, options: dict):
    """Operon with local optimisation of the constants; of its front, the model of least description length."""
    from pyoperon.sklearn import SymbolicRegressor as Operon

    sigma = max(options.get("eta", 0.0), 1e-3) * float(np.sqrt(np.mean(y * y)))
    wall = float(seconds)
    for _ in range(2):
        model = Operon(allowed_symbols="add,sub,mul,div,sin,cos,exp,log,sqrt,square,pow,constant,variable",
                       uncertainty=[sigma], optimizer_iterations=5, max_length=30, objectives=["mse", "length"],
                       max_time=max(1, math.ceil(wall)), generations=10_000, max_evaluations=10**9,
                       model_selection_criterion="minimum_description_length", n_threads=1, random_state=seed)  # fmt: skip
        before = time.process_time()
        model.fit(x, y)
        spent = time.process_time() - before
        if spent > 0.8 * seconds:
            break
        wall *= seconds / max(spent, 0.1)  # its limit is wall-clock time: once more with the time it lacked
    text = model.get_model_string(model.model_, 8).replace("^", "**")
    names = {f"X{j + 1}": s for j, s in enumerate(ex.SYMBOLS)}
    expression = sympy.sympify(text, locals=names | {"square": lambda a: a**2})
    return (lambda t: model.predict(t)), expression


def _floor(name: str, x: np.ndarray, y: np.ndarray, seconds: float, seed: int, options: dict):
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.linear_model import LinearRegression

    if name == "forest":
        model = RandomForestRegressor(100, random_state=seed).fit(x, y)
        return model.predict, None
    model = LinearRegression().fit(x, y)
    return model.predict, model.intercept_ + sum(
        c * s for c, s in zip(model.coef_.tolist(), ex.SYMBOLS, strict=False)
    )


def same_form(found: sympy.Expr, problem: Problem) -> bool:
    """Whether `found` is the true formula once its numbers are fitted anew, without noise.

    All numbers but whole exponents are set free and fitted to the clean test points; the relative mean square
    must fall below 1e-10, with at most two numbers more than the truth has.
    """
    try:
        ids, values, _, _ = parse(str(found), [f"x{j + 1}" for j in range(problem.x.shape[1])])
    except (ValueError, TypeError, RecursionError):
        return False
    free = ids.count(ex.CONST)
    try:
        most = 2 + sum(1 for _ in problem.truth.atoms(sympy.Number) if not _.is_Integer or abs(_) > 1)
    except TypeError:
        return False
    if free > most or free > 8 or not any(ex.CONST < t < ex.FIRST_UNARY for t in ids):
        return False
    out = fitting.fit([ids], problem.test_x, problem.test_y, restarts=10, iterations=60, guesses=[values])
    total = float((problem.test_y - problem.test_y.mean()).square().sum())
    return bool(out.sse[0] < 1e-10 * total)


def judge(problem: Problem, got: Answer) -> dict[str, float | str]:
    """One problem's outcome on clean test points: `recovery` (SRBench's symbolic solution), `form` (the true formula
    but for its numbers), `r2`, `accurate` (R^2 > 0.99), `precise` (> 0.999), `length` (nodes), `seconds`."""
    predicted = np.asarray(got.predict(problem.test_x.numpy()), dtype=float)
    score = metrics.r2(problem.test_y, torch.from_numpy(predicted))
    out: dict[str, float | str] = {
        "recovery": 0.0, "form": 0.0, "r2": score, "accurate": float(score > 0.99), "precise": float(score > 0.999),
        "length": math.nan, "seconds": got.seconds, "formula": "",
    }  # fmt: skip
    if got.expression is not None:
        found = evolve.powers(got.expression)
        out["length"] = float(sum(1 for _ in sympy.preorder_traversal(found)))
        out["formula"] = readable(found)
        if score > 0.5:
            try:
                right = metrics.symbolic_solution(found, metrics.rounded(problem.truth))
            except (TypeError, ValueError, NotImplementedError, RecursionError):
                right = False
            out["recovery"] = float(right)
            out["form"] = float(right or same_form(found, problem))
    return out


def summary(judged: list[dict[str, float | str]]) -> dict[str, float]:
    """Over problems: shares in percent, median R^2 (floored at 0), mean length and seconds."""
    share = lambda key: 100.0 * float(np.mean([j[key] for j in judged]))  # noqa: E731
    lengths = [j["length"] for j in judged if not math.isnan(j["length"])]
    return {key: share(key) for key in ("recovery", "form", "accurate", "precise")} | {
        "median_r2": float(np.median([max(0.0, j["r2"]) for j in judged])),
        "length": float(np.mean(lengths)) if lengths else math.nan,
        "seconds": float(np.mean([j["seconds"] for j in judged])),
    }
