"""Why a formula was not found: the diagnosis against cases whose answer is known."""

import sympy
import torch

from companion.dncl import constants as fitting
from companion.dncl import evolve, limits, peers, regressor, suites
from companion.dncl import expressions as ex


def test_a_formula_is_written_in_several_ways_and_means_the_same():
    truth = suites.choose(["nguyen"])[1].truth  # x^4 + x^3 + x^2 + x
    found = limits.writings(truth, ["x1"])
    assert len(found) >= 3
    x = torch.linspace(0.2, 1.4, 7, dtype=torch.float64)[:, None]
    for ids, values, fixed in found:
        assert len(values) == len(fixed) == ids.count(ex.CONST)
        program = fitting.Program([ids], x)
        c = torch.tensor([[values or [0.0]]], dtype=torch.float64)
        want = torch.tensor(
            [float(truth.subs(sympy.Symbol("x1", real=True), float(v))) for v in x], dtype=torch.float64
        )
        torch.testing.assert_close(program.run(c, derivatives=False)[0][0, 0], want)
    assert limits.writings(sympy.asin(sympy.Symbol("x1", real=True)), ["x1"]) == []


def test_failures_are_told_apart_by_the_length_of_the_truth():
    """Clean points with the search cut off: the truth is shorter and was missed. Few points and much noise: it is longer."""
    equation = next(e for e in suites.choose(["nguyen"]) if e.name == "Nguyen-5")
    clean = suites.problem(equation, 0.0, 0, points=200, most=200)
    model = regressor.SymbolicRegressor(None, network=None, rounds=0, random_state=0).fit(
        clean.x.numpy(), clean.y.numpy()
    )
    assert not peers.same_form(model.sympy(), clean)
    truth = limits.best_score(equation.truth, clean, model)
    assert truth < model._best.score - 100
    again = evolve.Search(clean.x.numpy(), clean.y.numpy(), evolve.EvolveConfig())
    ids, values, fixed, _ = regressor.parse(str(equation.truth), ["x1"])
    assert truth <= again.score(0.0, ids, values, fixed) + 1e-6  # noiseless: the exact formula itself
    noisy = suites.problem(equation, 1.0, 0, points=200, most=200)
    model = regressor.SymbolicRegressor(None, network=None, rounds=2, random_state=0).fit(
        noisy.x.numpy(), noisy.y.numpy()
    )
    assert limits.best_score(equation.truth, noisy, model) > model._best.score


def test_a_diagnosis_adds_up_and_knows_what_the_network_proposed():
    equation = next(e for e in suites.choose(["nguyen"]) if e.name == "Nguyen-8")
    problem = suites.problem(equation, 0.0, 0, points=200, most=200)
    found = limits.diagnose(problem, 1.0, 0)
    assert found["outcome"] == "recovered"
    total = limits.summary([found, found | {"outcome": "points", "form": 0.0, "proposed": False}])
    assert sum(total[o] for o in limits.OUTCOMES) == 100
    assert total["recovered"] == total["points"] == 50
    model = regressor.SymbolicRegressor(1.0, network=None, random_state=0).fit(
        problem.x.numpy(), problem.y.numpy()
    )
    root, square = (ex.ID["sqrt"], ex.ID["x1"]), (ex.ID["pow2"], ex.ID["x1"])
    assert limits.proposed([square, root], problem, model)
    assert not limits.proposed([square], problem, model)
    assert not limits.proposed([], problem, model)
