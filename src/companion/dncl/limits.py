"""What keeps the regressor from the true formula: the points, the search, or the numbers; and did the network know it?

A problem that is not solved is told apart by one question: does the true formula, with its constants fitted to the same noisy
points, have a shorter description than the formula that was chosen? If it has, the search did not find it. If it has
not, more search cannot help: these points speak for another formula.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import sympy
import torch
from tqdm import tqdm

from companion.dncl import constants as fitting
from companion.dncl import evolve, peers, suites
from companion.dncl import expressions as ex
from companion.dncl.data import Problem
from companion.dncl.regressor import SymbolicRegressor, parse

OUTCOMES = ("recovered", "numbers", "points", "search", "unwritten")


def writings(truth: sympy.Expr, names: list[str]) -> list[tuple[evolve.Ids, list[float], list[bool]]]:
    """The formula as prefix ids, values and held flags: as given, expanded, factored and nested, with numbers held and free.

    Empty where it cannot be written with the model's tokens.
    """
    variables = [s for s in truth.free_symbols if str(s) in names]
    tries = [
        lambda: truth,
        lambda: sympy.expand(truth),
        lambda: sympy.factor(truth),
        lambda: sympy.horner(truth, *variables),
    ]
    found: dict[evolve.Ids, tuple[evolve.Ids, list[float], list[bool]]] = {}
    for make in tries:
        try:
            ids, values, fixed, _ = parse(str(make()), names)
        except (ValueError, TypeError, sympy.PolynomialError):
            continue
        found.setdefault(ids, (ids, values, fixed))
    free = [(ids, values, [False] * len(fixed)) for ids, values, fixed in found.values() if any(fixed)]
    return [*found.values(), *free]


def best_score(truth: sympy.Expr, problem: Problem, model: SymbolicRegressor) -> float:
    """The shortest description length of the true formula on the points that `model` was fitted to, in its units.

    All `writings` are fitted from many starts and their numbers set to simple ones where that pays, as the search does. What
    has lost its form on that way does not count. Infinite where no writing can be fitted.
    """
    scale, shift = model._scale, model._shift
    inner = truth.xreplace({s: s * evolve._exact(a) + sympy.Float(b) if b else s * evolve._exact(a)
                            for s, a, b in zip(ex.SYMBOLS, scale, shift, strict=False)})  # fmt: skip
    inner = inner / evolve._exact(model._y_scale)
    x, y = (problem.x.numpy() - shift) / scale, problem.y.numpy() / model._y_scale
    config = evolve.EvolveConfig(
        token_price=model.token_price, selection=model.selection, snap=model.snap, length=60, constants=12
    )
    search = evolve.Search(x, y, config, seed=0)
    made = search.fit(writings(inner, list(ex.VARIABLES[: x.shape[1]])), restarts=20, iterations=60)
    if model.snap:
        search.snap([f for f in made if f.free])
    ranked = sorted(search.found.values(), key=lambda f: f.score)
    return next((f.score for f in ranked if peers.same_form(model._fold(f), problem)), math.inf)


def proposed(proposals: Sequence[evolve.Ids], problem: Problem, model: SymbolicRegressor) -> bool:
    """Whether one of the network's skeletons is the true form, with a factor and a summand at most: it fits clean points exactly."""
    if not proposals:
        return False
    forms = [(ex.ID["add"], ex.CONST, ex.ID["mul"], ex.CONST, *ids) for ids in proposals]
    x = torch.from_numpy((problem.test_x.numpy() - model._shift) / model._scale)
    y = problem.test_y
    out = fitting.fit(forms, x, y, restarts=6, iterations=40)
    total = float((y - y.mean()).square().sum())
    return bool((np.asarray(out.sse) < 1e-10 * total).any())


def diagnose(problem: Problem, seconds: float, seed: int) -> dict[str, float | str | bool]:
    """Fit `SymbolicRegressor` for `seconds` of CPU time and say what came of it.

    Returns what `peers.judge` does, with `outcome` (one of `OUTCOMES`), `proposed`, and `lead`: by how many units of
    description length (-2 log likelihood) the true formula is shorter than the chosen one, where it could be fitted.

    - recovered: SRBench's symbolic solution; numbers: the true form, but for its numbers;
    - points: another formula has the shorter description; search: the true one has, and was not found;
    - unwritten: the true formula cannot be written or fitted with the model's tokens.
    """
    x, y = problem.x.numpy(), problem.y.numpy()
    with peers.cpu_time():
        model = SymbolicRegressor(seconds, random_state=seed).fit(x, y)
    judged = peers.judge(problem, peers.Answer(model.predict, model.sympy(), model.seconds_))
    truth = best_score(problem.truth, problem, model)
    lead = model._best.score - truth
    if judged["recovery"]:
        outcome = "recovered"
    elif judged["form"]:
        outcome = "numbers"
    elif not math.isfinite(truth):
        outcome = "unwritten"
    else:
        outcome = "search" if lead > 0 else "points"
    return judged | {"outcome": outcome, "proposed": proposed(model.proposals_, problem, model),
                     "lead": lead if math.isfinite(truth) else math.nan}  # fmt: skip


def diagnose_all(
    equations: Sequence[suites.Equation], eta: float, seconds: float, seed: int, **points: int
) -> list[dict]:
    """`diagnose` for each equation at noise level `eta`; `points` goes to `suites.problem`. With a progress bar."""
    found = []
    for equation in tqdm(equations, desc="diagnosis", unit="equation"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # few points, predictions that are not defined
            one = diagnose(suites.problem(equation, eta, seed, **points), seconds, seed)
        found.append({"problem": equation.name} | one)
    return found


def summary(found: list[dict[str, float | str | bool]]) -> dict[str, float]:
    """Shares of `OUTCOMES` and of problems whose form the network proposed, in percent."""
    share = lambda flags: 100.0 * float(np.mean(flags))  # noqa: E731
    return {o: share([f["outcome"] == o for f in found]) for o in OUTCOMES} | {
        "proposed": share([f["proposed"] for f in found]),
        "form": share([f["form"] for f in found]),
    }
