"""How a found formula is judged, after SRBench (La Cava et al. 2021). All on clean test targets."""

from __future__ import annotations

import sympy
import torch

from companion.dncl import expressions as ex
from companion.dncl.data import Problem, values
from companion.dncl.search import Candidate


def r2(y: torch.Tensor, predicted: torch.Tensor) -> float:
    """R² = 1 - sum (y - ŷ)² / sum (y - mean y)²; minus infinity where a prediction is not finite."""
    if not torch.isfinite(predicted).all():
        return float("-inf")
    return float(1 - (y - predicted).square().sum() / (y - y.mean()).square().sum())


def rounded(expression: sympy.Expr, digits: int = 3) -> sympy.Expr:
    """Every float rounded to `digits` decimals; whole ones become integers."""

    def fix(number: sympy.Float) -> sympy.Expr:
        value = round(float(number), digits)
        return sympy.Integer(int(value)) if value == int(value) else sympy.Rational(str(value))

    return expression.xreplace({f: fix(f) for f in expression.atoms(sympy.Float)})


def readable(expression: sympy.Expr, digits: int = 3) -> str:
    """The formula as text with floats cut to `digits` decimals."""
    return str(expression.xreplace({f: sympy.Float(round(float(f), digits), digits + 2)
                                    for f in expression.atoms(sympy.Float)}))  # fmt: skip


def symbolic_solution(found: sympy.Expr, truth: sympy.Expr) -> bool:
    """SRBench's symbolic solution: after rounding floats to 3 decimals, found - truth is a constant, or
    found / truth is a constant other than 0, and found is not constant itself."""
    found = rounded(found)
    if not found.free_symbols or found.has(sympy.zoo, sympy.nan, sympy.oo):
        return False
    # cheap refusal first: sympy's simplify takes seconds on formulas that are nowhere near each other
    probe = torch.rand(24, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64) * 0.9 + 0.1
    a, b = values(found, probe), values(truth, probe)
    good = torch.isfinite(a) & torch.isfinite(b)
    if good.sum() < 8:
        return False
    a, b = a[good], b[good]
    near = lambda t: float(t.std()) < 1e-6 * max(1.0, float(t.abs().mean()))  # noqa: E731
    if not near(a - b) and not near(a / b):
        return False
    if not sympy.simplify(found - truth).free_symbols:
        return True
    ratio = sympy.simplify(found / truth)
    return not ratio.free_symbols and ratio != 0


def judge(problem: Problem, candidates: list[Candidate]) -> dict[str, float | str]:
    """One problem's outcome: `recovery` (0 or 1), `r2`, `accurate` (R² > 0.99), `length`, `formula`."""
    if not candidates:
        return {"recovery": 0.0, "r2": float("-inf"), "accurate": 0.0, "length": 0, "formula": ""}
    best = candidates[0]
    x = torch.nn.functional.pad(problem.test_x, (0, len(ex.VARIABLES) - problem.test_x.shape[1]))
    constants = torch.tensor([best.constants or (0.0,)], dtype=torch.float64)
    predicted = ex.evaluate(torch.tensor([best.tokens]), constants, x[None])[0]
    score = r2(problem.test_y, predicted)
    right = score > 0.5 and symbolic_solution(best.formula, problem.truth)
    return {"recovery": float(right), "r2": score, "accurate": float(score > 0.99), "length": len(best.tokens),
            "formula": readable(best.formula)}  # fmt: skip


def summary(judged: list[dict[str, float | str]]) -> dict[str, float]:
    """Over problems: recovery and accuracy in percent, median R² (floored at 0, as SRBench does), mean length."""
    share = lambda key: 100.0 * sum(j[key] for j in judged) / len(judged)  # noqa: E731
    floored = torch.tensor([max(0.0, j["r2"]) for j in judged])
    return {"recovery": share("recovery"), "accurate": share("accurate"), "median_r2": float(floored.median()),
            "length": sum(j["length"] for j in judged) / len(judged)}  # fmt: skip


@torch.no_grad()
def skeleton_accuracy(model, views, *, noisy: bool) -> dict[str, float]:
    """Teacher-forced: share of tokens right, and of skeletons with all tokens right, in percent."""
    points, mask = (views.noisy, views.noisy_mask) if noisy else (views.clean, views.clean_mask)
    logits, _ = model(points, mask, views.tokens[:, :-1])
    target = views.tokens[:, 1:]
    counts = target != ex.PAD
    hit = (logits.argmax(-1) == target) | ~counts
    return {"token_accuracy": 100 * float((hit & counts).sum() / counts.sum()),
            "exact": 100 * float(hit.all(1).float().mean())}  # fmt: skip
