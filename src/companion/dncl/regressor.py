"""A symbolic regressor for noisy points, with scikit-learn's interface::

    from companion.dncl import SymbolicRegressor
    model = SymbolicRegressor().fit(X, y)        # X: array or DataFrame, up to 3 columns are used
    model.formula_, model.equations_, model.sympy(), model.latex()

or, from a file with a header::

    python -m companion.dncl.regressor points.csv --target y --sigma dy

The trained network proposes skeletons, a small evolutionary search refines them, all constants are fitted in
batches, and the description length selects (`decode`, `evolve`, `constants`).
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import warnings
from dataclasses import dataclass
from itertools import permutations
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sympy
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from companion.dncl import constants as fitting
from companion.dncl import decode, evolve
from companion.dncl import expressions as ex

MOST_VARIABLES = len(ex.VARIABLES)
FEWEST_POINTS = 4
FEW_POINTS = 10  # below, a warning


class SymbolicRegressor(RegressorMixin, BaseEstimator):
    """A short formula for y from up to three variables.

    Args:
        max_seconds: wall-clock limit of `fit` (what has begun is finished: some tenths of a second); None leaves it
            to `rounds`, which makes a fit repeatable on any machine.
        noise: "auto" estimates the noise together with the formula; a number eta says that its standard deviation
            is eta times the root mean square of y; "weights" says that `sample_weight` is 1 / sigma^2 with sigma in
            the units of y (error bars).
        network: "shipped" for the trained network of this package, a path to another one, None for none.
        beam, samples, subsets: how many skeletons the network proposes, and from how many subsets of the points.
        rounds: most rounds of the evolutionary search; 0 takes the network's skeletons as they are.
        selection: "bic" (description length) or "mse" (training error; overfits noise, for comparison).
        token_price: description length of a token, in units of -2 log likelihood; higher gives shorter formulas.
        snap: set constants to simple numbers within their errors where that shortens the description.
        screen: with more than three columns, keep the three most relevant and say so; False refuses them.
        max_points: more points than this are subsampled for the search, with a warning; the constants of the
            result are fitted on up to 40 times as many.
        random_state: seed.

    Attributes:
        equations_: data frame, shortest first: formula, length, r2, mse, bic, constants, errors, selected. `bic` is the
            description length that was minimised, `errors` are standard errors of the constants (0: set, not
            fitted), `form` is the formula with named constants.
        formula_: the selected formula as text.
        n_features_in_, feature_names_in_: as usual.
        used_: the columns that were used.
        seconds_, fitted_: time of the fit, number of formulas whose constants were fitted.

    Raises (in `fit`):
        ValueError: constant or non-finite targets, non-finite input, fewer than 4 different points, duplicate column
            names, and with `screen=False` more than three columns.
    """

    def __init__(self, max_seconds: float | None = 5.0, *, noise: float | str = "auto", network: str | Path | None = "shipped",
                 beam: int = 16, samples: int = 32, subsets: int = 2, rounds: int = 30, selection: str = "bic",
                 token_price: float = 3.0, snap: bool = True, screen: bool = True, max_points: int = 500,
                 random_state: Any = 0) -> None:  # fmt: skip
        self.max_seconds = max_seconds
        self.noise = noise
        self.network = network
        self.beam = beam
        self.samples = samples
        self.subsets = subsets
        self.rounds = rounds
        self.selection = selection
        self.token_price = token_price
        self.snap = snap
        self.screen = screen
        self.max_points = max_points
        self.random_state = random_state

    # --- fitting ----------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SymbolicRegressor:
        """Find formulas for y `[n]` from X `[n, columns]`.

        Args:
            sample_weight: `[n]`, not negative; proportional to 1 / sigma^2, and equal to it with noise="weights".
                A weight of 2 counts like the point given twice.
        """
        began = fitting.clock()
        deadline = math.inf if self.max_seconds is None else began + float(self.max_seconds)
        self._check_settings()
        if isinstance(X, pd.DataFrame) and not X.columns.is_unique:
            twice = sorted(set(map(str, X.columns[X.columns.duplicated()])))
            raise ValueError(f"duplicate columns {', '.join(twice)}; give every column its own name")
        if isinstance(X, pd.DataFrame):
            _numeric(X)
        _finite(X, y)
        X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True)
        y = y.astype(np.float64)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        weight = _weights(sample_weight, len(y), needed=self.noise == "weights")
        x, y, weight = _distinct(X, y, weight)
        if len(y) < FEWEST_POINTS:
            raise ValueError(
                f"{len(y)} different points (n_samples={len(X)}); at least {FEWEST_POINTS} are needed"
            )
        if max(np.abs(y).max(), np.abs(x).max()) > 1e100:
            raise ValueError("values beyond 1e100 in X or y; give the column in other units")
        if np.ptp(y) <= 1e-12 * np.abs(y).max(initial=0):
            raise ValueError(f"the target is constant ({y[0]:g}); there is no formula to find")
        names = [str(n) for n in getattr(self, "feature_names_in_", [f"x{j + 1}" for j in range(x.shape[1])])]
        self.used_ = self._choose(x, y, names, seed)
        x = x[:, self.used_]
        self._names = [names[j] for j in self.used_]
        rng = np.random.default_rng(seed)
        full = (x, y, weight)
        if len(y) > self.max_points:
            warnings.warn(f"{len(y)} points: the search uses {self.max_points} of them, drawn at random (max_points)",
                          UserWarning, stacklevel=2)  # fmt: skip
            pick = np.sort(rng.choice(len(y), self.max_points, replace=False))
            x, y, weight = x[pick], y[pick], weight[pick]
        self._shift = np.array([_origin(c) for c in x.T])
        self._scale = np.array([_power_of_ten(np.abs(c).max(), 0.01, 100.0) for c in (x - self._shift).T])
        self._y_scale = _power_of_ten(np.abs(y).max(), 1e-3, 1e4)
        known = self.noise != "auto"
        if known and self.noise != "weights":
            weight = weight / max(float(self.noise) * math.sqrt(np.mean(y**2)), 1e-300) ** 2
        weight = weight * self._y_scale**2 if known else weight / weight.mean()
        # two points more than constants: a formula with as many constants as points joins them up, noise and all
        config = evolve.EvolveConfig(rounds=self.rounds, token_price=self.token_price, selection=self.selection,
                                     snap=self.snap, constants=min(evolve.EvolveConfig.constants, len(y) - 2))  # fmt: skip
        xs, ys = (x - self._shift) / self._scale, y / self._y_scale
        # the last part of the time is for the constants of the best, and for writing the formulas down
        soon, polish = (deadline - share * (self.max_seconds or 0.0) for share in (0.12, 0.04))
        search = evolve.Search(
            xs, ys, config, weight=weight, known=known, seed=seed, deadline=soon, polish=polish
        )
        # a third of the time at most: the rest is the search's
        self.proposals_ = self._propose(xs, ys, seed, began + (self.max_seconds or math.inf) / 3)
        best = search.run(self.proposals_)
        if len(full[1]) > len(y):
            best = self._refit(search, full, known, rng)
        self.fitted_ = search.fitted
        self._report(best, search)
        self.seconds_ = fitting.clock() - began
        return self

    def _check_settings(self) -> None:
        if isinstance(self.noise, str) and self.noise not in ("auto", "weights"):
            raise ValueError(f"noise is {self.noise!r}; choose 'auto', 'weights' or a number eta above 0")
        if not isinstance(self.noise, str) and not (_real(self.noise) and self.noise > 0):
            raise ValueError(
                f"noise is {self.noise!r}; a known noise level eta is above 0 (use 'auto' otherwise)"
            )
        for name, least in (("beam", 0), ("samples", 0), ("subsets", 1), ("rounds", 0), ("token_price", 0)):
            value, whole = getattr(self, name), name != "token_price"
            if not (_real(value) and value >= least and (not whole or isinstance(value, Integral))):
                raise ValueError(f"{name} is {value!r}; it is {'a whole number, ' * whole}{least} or more")
        if self.max_seconds is not None and not (_real(self.max_seconds) and self.max_seconds > 0):
            raise ValueError(f"max_seconds is {self.max_seconds!r}; choose a number above 0, or None")
        if not isinstance(self.max_points, Integral) or self.max_points < FEWEST_POINTS:
            raise ValueError(
                f"max_points is {self.max_points!r}; it is a whole number, {FEWEST_POINTS} or more"
            )
        if self.selection not in ("bic", "mse"):
            raise ValueError(f"selection is {self.selection!r}; choose bic or mse")

    def _choose(self, x: np.ndarray, y: np.ndarray, names: list[str], seed: int) -> list[int]:
        """The columns to use, at most three."""
        varying = [j for j in range(x.shape[1]) if np.ptp(x[:, j]) > 0]
        if not varying:
            raise ValueError("every column of X is constant; there is nothing to learn from")
        if len(varying) <= MOST_VARIABLES:
            return varying
        if not self.screen:
            raise ValueError(f"{len(varying)} varying columns; this model takes {MOST_VARIABLES} (screen=True keeps "
                             "the most relevant)")  # fmt: skip
        from sklearn.ensemble import ExtraTreesRegressor

        rows = np.random.default_rng(seed).permutation(len(y))[:2000]
        trees = ExtraTreesRegressor(60, random_state=seed % 2**31, min_samples_leaf=2)
        trees.fit(x[np.ix_(rows, varying)], y[rows])
        order = np.argsort(-trees.feature_importances_)[:MOST_VARIABLES]
        kept = sorted(varying[k] for k in order)
        warnings.warn(f"{len(varying)} columns: only the {MOST_VARIABLES} most relevant are used, "
                      f"{', '.join(names[j] for j in kept)}", UserWarning, stacklevel=3)  # fmt: skip
        return kept

    def _propose(self, x: np.ndarray, y: np.ndarray, seed: int, until: float) -> list[evolve.Ids]:
        """The network's skeletons, for the variables in several orders and for each alone."""
        if self.network is None or not (self.beam or self.samples):
            return []
        from companion.dncl import pretrained

        net = pretrained.load(None if self.network == "shipped" else self.network)
        D = net.config.variables
        d = min(x.shape[1], D)
        top = np.abs(x).max(0)
        # the network was trained on x within (-5, 5)
        x = x / np.where(top > 5, top / 4, np.where(top < 0.5, np.maximum(top, 1e-300), 1.0))
        orders: list[tuple[int, ...]] = list(permutations(range(d)))[: 1 if d == 1 else 2]
        if d > 1:
            orders += [(j,) for j in range(d)]
        config = decode.DecodeConfig(self.beam, self.samples, subsets=self.subsets)
        found: dict[evolve.Ids, float] = {}
        for order in orders:
            if fitting.clock() > until:
                break
            points = np.zeros((len(y), D + 1))
            points[:, : len(order)] = x[:, order]
            points[:, -1] = y
            share = (
                config
                if len(order) == d
                else decode.DecodeConfig(self.beam // 4, self.samples // 4, subsets=1)
            )
            told = decode.propose(net, torch.from_numpy(points).float(), len(order), share, seed, until)
            for ids, score in told:
                here = tuple(ex.FIRST_VARIABLE + order[t - ex.FIRST_VARIABLE]
                             if ex.FIRST_VARIABLE <= t < ex.FIRST_UNARY else t for t in ids)  # fmt: skip
                found[here] = max(score, found.get(here, -math.inf))
        return [ids for ids, _ in sorted(found.items(), key=lambda kv: -kv[1])]

    def _refit(
        self, search: evolve.Search, full: tuple, known: bool, rng: np.random.Generator
    ) -> list[evolve.Formula]:
        """The best formulas again, on (up to 40 times) more points than the search used."""
        x, y, weight = full
        pick = rng.permutation(len(y))[: 40 * self.max_points]
        if known and self.noise != "weights":
            weight = weight / max(float(self.noise) * math.sqrt(np.mean(y**2)), 1e-300) ** 2
        weight = weight * self._y_scale**2 if known else weight / weight.mean()
        larger = evolve.Search((x[pick] - self._shift) / self._scale, y[pick] / self._y_scale, search.config, weight=weight[pick],
                               known=known, seed=search.seed)  # fmt: skip
        front = evolve.pareto(search.found.values()) + search.elite[:20]
        larger.fit([(f.ids, f.constants, f.fixed) for f in front], restarts=1, iterations=8)
        search.found, search.elite = larger.found, larger.elite
        search.n, search.var, search.y, search.w = larger.n, larger.var, larger.y, larger.w
        return larger.elite

    def _report(self, best: list[evolve.Formula], search: evolve.Search) -> None:
        self._best = best[0]
        total = search.var
        self.formula_ = readable(self._fold(self._best))
        # below the mean of the targets nothing is worth a row, and the selected formula stands there once
        front = [f for f in evolve.pareto(search.found.values())
                 if f.sse < total and f is not self._best and readable(self._fold(f)) != self.formula_]  # fmt: skip
        front = sorted([*front, self._best], key=lambda f: (len(f.ids), -f.sse))
        alone = search.data_cost(total) + math.log(search.n) + self.token_price
        if self._best.sse >= total or (self.selection == "bic" and self._best.score >= alone):
            warnings.warn(f"no formula describes the targets better than a constant does; {self.formula_} is only the "
                          "best of those tried (too few points, or nothing but noise?)", UserWarning, stacklevel=3)  # fmt: skip
        if search.n < FEW_POINTS:
            warnings.warn(f"{search.n} points are few: other formulas fit them as well as {self.formula_} does; compare the "
                          "rows of equations_, or measure more", UserWarning, stacklevel=3)  # fmt: skip
        rows = []
        for f in front:
            labels = [f"c{k}" for k in range(len(f.constants))]
            rows.append({
                "formula": readable(self._fold(f)), "length": len(f.ids), "r2": 1 - f.sse / total,
                "mse": f.sse / search.w.sum() * self._y_scale**2, "bic": f.score,
                "constants": dict(zip(labels, f.constants, strict=True)),
                "errors": dict(zip(labels, f.errors or (0.0,) * len(labels), strict=True)),
                "form": str(self._form(f)), "selected": f is self._best,
            })  # fmt: skip
        self.equations_ = pd.DataFrame(rows)
        self._front = front

    # --- formulas ---------------------------------------------------------------------------------------

    def _symbols(self) -> dict[sympy.Symbol, sympy.Expr]:
        return {v: (sympy.Symbol(name, real=True) - sympy.Rational(repr(float(a)))) / _exact(s)
                for v, name, a, s in zip(ex.SYMBOLS, self._names, self._shift, self._scale, strict=False)}  # fmt: skip

    def _fold(self, f: evolve.Formula) -> sympy.Expr:
        """The formula in the units of the data: the scaling of inputs and target is multiplied in."""
        return evolve.powers(f.expression()).xreplace(self._symbols()) * _exact(self._y_scale)

    def _form(self, f: evolve.Formula) -> sympy.Expr:
        return ex.to_sympy(list(f.ids)).xreplace(self._symbols()) * _exact(self._y_scale)

    def _row(self, index: int | None) -> evolve.Formula:
        if index is None:
            return self._best
        if not isinstance(index, Integral) or not -len(self._front) <= index < len(self._front):
            raise ValueError(
                f"there is no row {index!r} in equations_; its rows are 0 to {len(self._front) - 1}"
            )
        return self._front[index]

    def sympy(self, index: int | None = None) -> sympy.Expr:
        """The selected formula, or row `index` of `equations_`, as a sympy expression in the columns' names."""
        check_is_fitted(self, "equations_")
        return self._fold(self._row(index))

    def latex(self, index: int | None = None, digits: int = 3) -> str:
        """The same as LaTeX, with constants of `digits` significant digits."""
        return sympy.latex(_rounded(self.sympy(index), digits))

    def predict(self, X: Any, index: int | None = None) -> np.ndarray:
        """Values `[n]` of the selected formula, or of row `index`; NaN (with a warning) where it is not defined."""
        check_is_fitted(self, "equations_")
        X = validate_data(self, X, dtype=np.float64, reset=False)
        f = self._row(index)
        x = torch.from_numpy((X[:, self.used_] - self._shift) / self._scale)
        c = torch.tensor([[list(f.constants) or [0.0]]], dtype=torch.float64)
        value = fitting.Program([f.ids], x).run(c, derivatives=False)[0][0, 0].numpy() * self._y_scale
        if not np.isfinite(value).all():
            warnings.warn(f"{(~np.isfinite(value)).sum()} predictions are not finite: {self.formula_} is not defined "
                          "there", UserWarning, stacklevel=2)  # fmt: skip
            value = np.where(np.isfinite(value), value, np.nan)
        return value

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.regressor_tags.poor_score = (
            True  # three variables at most: no match for scikit-learn's test sets
        )
        return tags


def _real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _numeric(table: pd.DataFrame) -> None:
    """ValueError for the first column that holds something else than numbers."""
    for name, column in table.items():
        if pd.api.types.is_numeric_dtype(column.dtype):
            continue
        text = pd.to_numeric(column.astype(str), errors="coerce").isna() & column.notna()
        if text.any():
            raise ValueError(f"column {name!r} holds {str(column[text].iloc[0])!r}, which is not a number; every column "
                             "is numeric (encode it, or leave it out)")  # fmt: skip


def _finite(X: Any, y: Any) -> None:
    """ValueError for the first value that is NaN or infinite; what is not an array of numbers passes."""
    names = getattr(X, "columns", None)
    for what, values in (("X", X), ("y", y)):
        values = np.asarray(values)
        if values.ndim == 0 or values.dtype.kind not in "fO":
            continue
        try:
            values = values.astype(np.float64)
        except (TypeError, ValueError):
            continue
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            row, *column = bad[0].tolist()
            place = f"row {row}" + "".join(
                f", column {k if names is None else repr(names[k])}" for k in column[:1]
            )
            kind = "NaN" if np.isnan(values[tuple(bad[0])]) else "infinite (inf)"
            raise ValueError(f"{what} is {kind} in {place} (counted from 0); every value is a finite number: leave such points "
                             "out")  # fmt: skip


def _weights(sample_weight: Any, n: int, needed: bool) -> np.ndarray:
    if sample_weight is None:
        if needed:
            raise ValueError("noise='weights' needs sample_weight = 1 / sigma^2")
        return np.ones(n)
    weight = np.asarray(sample_weight, dtype=np.float64)
    if weight.ndim == 0:
        weight = np.full(n, float(weight))
    if weight.shape != (n,):
        raise ValueError(
            f"sample_weight has shape {weight.shape}; it needs one number for each of the {n} points"
        )
    if not np.isfinite(weight).all() or (weight < 0).any():
        raise ValueError("sample_weight has negative or non-finite numbers; weights are 0 or more")
    if not weight.any():
        raise ValueError("every sample_weight is zero; there is nothing to fit")
    return weight


def _distinct(X: np.ndarray, y: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of positive weight in a fixed order, equal ones merged with the sum of their weights."""
    keep = weight > 0
    rows, inverse = np.unique(np.column_stack([X[keep], y[keep]]), axis=0, return_inverse=True)
    return rows[:, :-1], rows[:, -1], np.bincount(inverse.ravel(), weights=weight[keep], minlength=len(rows))


def _power_of_ten(top: float, low: float, high: float) -> float:
    """1 where `top` lies between `low` and `high`, else the power of ten below it."""
    return 1.0 if top == 0 or low <= top <= high else 10.0 ** math.floor(math.log10(top))


def _origin(column: np.ndarray) -> float:
    """0, or a round number below all values where their range is less than a twentieth of their size (years, ...)."""
    low, spread = float(column.min()), float(np.ptp(column))
    if spread >= 0.05 * np.abs(column).max():
        return 0.0
    unit = 10.0 ** math.floor(math.log10(spread))
    return float(f"{math.floor(low / unit) * unit:.15g}")


def _exact(power: float) -> sympy.Rational:
    k = round(math.log10(power))
    return sympy.Rational(10) ** k


def _rounded(expression: sympy.Expr, digits: int) -> sympy.Expr:
    return expression.xreplace({f: sympy.Float(f, digits) for f in expression.atoms(sympy.Float)})


def readable(expression: sympy.Expr, digits: int = 4) -> str:
    """A formula as text, its floats cut to `digits` significant digits."""
    return re.sub(r"(\.\d*?[1-9])0+(?!\d)|\.0+(?![\d])", r"\1", str(_rounded(expression, digits)))


# --- a formula of one's own ------------------------------------------------------------------------------


@dataclass(frozen=True)
class FormulaFit:
    """A given formula, fitted: text, sympy expression, constants with standard errors, R^2, mean square, BIC."""

    formula: str
    expression: sympy.Expr
    constants: dict[str, float]
    errors: dict[str, float]
    r2: float
    mse: float
    bic: float


def _inner(name: str) -> sympy.Symbol:
    return sympy.Symbol(name, real=True)


def parse(text: str, names: list[str]) -> tuple[evolve.Ids, list[float], list[bool], list[str]]:
    """A formula as prefix ids, values, flags and names of its constants. Every `c` is a constant of its own; c0, c1,
    ... and other unknown lower-case names `c<something>` are constants, too; numbers stay as they are.

    Raises ValueError for what cannot be read, unknown names and functions without a token.
    """
    count = 0

    def number(_match: re.Match) -> str:
        nonlocal count
        count += 1
        return f"c__{count - 1}"

    # columns stand under names of our own while sympy reads: `lambda`, `S` or `mass (kg)` are columns, too
    places = dict(zip(names, ex.VARIABLES, strict=False))
    places |= {v: v for v in ex.VARIABLES[: len(names)] if v not in places}
    symbols = {f"v__{k}": sympy.Symbol(v, real=True) for k, v in enumerate(places.values())}
    word = {n: f"v__{k}" for k, n in enumerate(places) if _number(n) is None}
    longest = "|".join(map(re.escape, sorted(word, key=len, reverse=True)))
    named = re.sub(rf"(?<![\w.])(?:{longest})(?!\w|\()", lambda m: word[m[0]], text) if word else text
    numbered = re.sub(r"(?<![\w.])c(?![\w(])", number, named)
    unknown = [w for w in re.findall(r"[A-Za-z_]\w*", numbered)
               if w not in symbols and not re.fullmatch(r"c_?_?\d+", w) and not hasattr(sympy, w)]  # fmt: skip
    if unknown:
        raise ValueError(
            f"{unknown[0]!r} in {text!r} is neither a column ({', '.join(places)}) nor a constant (c) nor a function"
        )
    try:
        expression = sympy.sympify(numbered, locals=symbols)
    except (sympy.SympifyError, TypeError, SyntaxError, AttributeError) as error:
        raise ValueError(f"{text!r} is not a formula ({str(error).splitlines()[0]})") from None
    ids: list[int] = []
    values: list[float] = []
    fixed: list[bool] = []
    labels: list[str] = []

    def constant(value: float, held: bool, label: str) -> None:
        ids.append(ex.CONST)
        values.append(value)
        fixed.append(held)
        labels.append(label)

    def walk(e: sympy.Expr) -> None:
        if e.is_Symbol and str(e) in ex.VARIABLES:
            ids.append(ex.ID[str(e)])
        elif e.is_Symbol:
            constant(1.0, False, str(e).replace("c__", "c"))
        elif e.is_number:
            constant(float(e), True, str(e))
        elif e.func is sympy.Pow:
            base, power = e.args
            if power == sympy.Rational(1, 2):
                ids.append(ex.ID["sqrt"])
                walk(base)
            elif power.is_Integer and 2 <= power <= 9:
                for part in {6: (2, 3), 7: (0, 3, 4), 8: (2, 4), 9: (3, 3)}.get(int(power), (int(power),)):
                    ids.append(ex.ID["mul"] if part == 0 else ex.ID[f"pow{part}"])
                    if part == 3 and power == 7:
                        walk(base)
                walk(base)
            elif power.is_number and power.is_negative:
                ids.append(ex.ID["div"])
                constant(1.0, True, "1")
                walk(base**-power)
            else:
                ids.extend([ex.ID["exp"], ex.ID["mul"]])
                walk(power)
                ids.append(ex.ID["log"])
                walk(base)
        elif e.func in (sympy.Add, sympy.Mul):
            parts = e.args
            for part in parts[:-1]:
                ids.append(ex.ID["add" if e.func is sympy.Add else "mul"])
                walk(part)
            walk(parts[-1])
        elif e.func.__name__ in ex.UNARY:
            ids.append(ex.ID[e.func.__name__])
            walk(e.args[0])
        elif e.func is sympy.tanh:  # in a form that names its argument once
            walk(1 - 2 / (sympy.exp(2 * e.args[0]) + 1))
        elif e.func in (sympy.sinh, sympy.cosh) and e.free_symbols <= set(map(_inner, ex.VARIABLES)):
            walk(e.rewrite(sympy.exp))
        else:
            raise ValueError(f"{e.func.__name__} in {text!r} is not available; use + - * / ** sin cos "
                             "tan exp log sqrt tanh")  # fmt: skip

    walk(expression)
    return tuple(ids), values, fixed, labels


def score_formula(formula: str, X: Any, y: Any, sample_weight: Any = None, *, restarts: int = 30, seed: int = 0) -> FormulaFit:  # fmt: skip
    """Fit the constants of a given formula, e.g. `score_formula("c*sin(x1) + c", X, y)`.

    Columns go by their names (DataFrame) or x1, x2, x3; every `c` is a constant, numbers stay as written.

    Raises:
        ValueError: for what cannot be read, other bad input, or where the formula is not finite on the points.
    """
    names = [str(c) for c in X.columns] if isinstance(X, pd.DataFrame) else None
    x = np.asarray(X, dtype=np.float64)
    x = x[:, None] if x.ndim == 1 else x
    names = names or [f"x{j + 1}" for j in range(x.shape[1])]
    y = np.asarray(y, dtype=np.float64).ravel()
    if len(x) != len(y):
        raise ValueError(f"X has {len(x)} points and y {len(y)}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("X or y has NaN or infinite values; remove those points")
    used = [n for n in names if re.search(rf"(?<!\w){re.escape(n)}(?!\w)", formula)]
    if len(names) > MOST_VARIABLES:
        if not 1 <= len(used) <= MOST_VARIABLES:
            raise ValueError(f"{formula!r} uses {len(used)} columns; 1 to {MOST_VARIABLES} are possible")
        x, names = x[:, [names.index(n) for n in used]], used
    ids, values, fixed, labels = parse(formula, names)
    weight = _weights(sample_weight, len(y), needed=False)
    weight = weight / weight.mean()
    free = len(fixed) - sum(fixed)
    if len(y) <= free:
        raise ValueError(f"{len(y)} points for {free} constants; more points than constants are needed")
    if not any(ex.CONST < t < ex.FIRST_UNARY for t in ids):
        raise ValueError(f"{formula!r} has none of the columns {', '.join(names)} in it")
    tensors = [torch.from_numpy(np.array(a)) for a in (x, y, weight)]
    out = fitting.fit(
        [ids], *tensors, restarts=restarts, iterations=60, seed=seed, guesses=[values], fixed=[fixed]
    )
    sse = float(out.sse[0])
    if not math.isfinite(sse):
        raise ValueError(f"{formula!r} is not finite on the points for any constants that were tried")
    c = out.constants[0, : len(fixed)]
    errors = np.sqrt(np.maximum(np.diagonal(out.covariance[0])[: len(fixed)], 0) * sse / (len(y) - free))
    best = evolve.Formula(ids, tuple(c.tolist()), tuple(fixed), sse, 0.0)
    expression = best.expression().xreplace(
        {v: sympy.Symbol(n, real=True) for v, n in zip(ex.SYMBOLS, names, strict=False)}
    )
    kept = sorted((k for k, held in enumerate(fixed) if not held), key=lambda k: labels[k])
    total = float((weight * (y - np.average(y, weights=weight)) ** 2).sum())
    bic = len(y) * math.log(max(sse / len(y), 1e-300)) + free * math.log(len(y))
    return FormulaFit(readable(expression), expression, {labels[k]: float(c[k]) for k in kept},
                      {labels[k]: float(errors[k]) for k in kept}, 1 - sse / total if total else math.nan,
                      sse / float(weight.sum()), bic)  # fmt: skip


# --- points from a file ----------------------------------------------------------------------------------


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def read_points(path: Path | str, target: str | None = None, sigma: str | None = None) -> tuple[pd.DataFrame, np.ndarray, np.ndarray | None]:  # fmt: skip
    """Columns X, target y and, with `sigma`, error bars of a CSV file with a header line.

    Cells are parted by commas, semicolons or tabs (whichever the header has); empty lines and lines that begin with
    # are passed over. The target is the last column (but for `sigma`) unless named.

    Raises:
        ValueError: for a missing header, unnamed or duplicate columns, text, empty or infinite cells, a line with more
            or fewer cells, a missing column, error bars that are not above 0, or fewer than two points: which column
            and, for cells, which line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"{path.name} is not a text file in UTF-8; save it as such") from None
    kept = [(k, line) for k, line in enumerate(lines, 1) if line.strip() and not line.startswith("#")]
    top = kept[0][1] if kept else ""
    mark = next((m for m in ",;\t" if m in top), ",")
    rows = list(csv.reader([line for _, line in kept], delimiter=mark, skipinitialspace=True))
    header = [h.strip() for h in rows[0]] if rows else []
    twice = sorted({h for h in header if h and header.count(h) > 1})
    if twice:
        raise ValueError(f"{path.name}: duplicate columns {', '.join(twice)}; give every column its own name")
    if len(header) < 2:
        raise ValueError(
            f"{path.name} has {len(header)} columns; it needs at least one variable and the target"
        )
    if "" in header:
        raise ValueError(f"{path.name}: column {header.index('') + 1} has no name; every column needs one (pandas "
                         "writes its index like that: to_csv(..., index=False))")  # fmt: skip
    if all(_number(h) is not None for h in header):
        raise ValueError(f"{path.name}: the first line is numbers; it has to name the columns")
    values = np.empty((len(rows) - 1, len(header)))
    for k, (row, (number, _)) in enumerate(zip(rows[1:], kept[1:], strict=True)):
        if len(row) != len(header):
            raise ValueError(
                f"{path.name}, line {number}: {len(row)} cells; the header names {len(header)} columns"
            )
        for j, cell in enumerate(row):
            value = _number(cell)
            if value is None or not math.isfinite(value):
                what = ("text" if value is None and cell.strip() else
                        "infinite" if value is not None and math.isinf(value) else "empty or NaN")  # fmt: skip
                raise ValueError(f"{path.name}, line {number}, column {header[j]}: {cell.strip()!r} is {what}; every "
                                 "cell below the header is a finite number")  # fmt: skip
            values[k, j] = value
    table = pd.DataFrame(values, columns=header)
    for name in (target, sigma):
        if name is not None and name not in header:
            raise ValueError(f"{path.name} has no column {name!r}; it has {', '.join(header)}")
    target = target or [h for h in header if h != sigma][-1]
    if len(table) < 2:
        raise ValueError(f"{path.name} has {len(table)} points; at least {FEWEST_POINTS} are needed")
    error = None
    if sigma is not None:
        error = table[sigma].to_numpy()
        if (error <= 0).any():
            raise ValueError(f"{path.name}, line {kept[int(np.argmax(error <= 0)) + 1][0]}: an error bar of {error[error <= 0][0]:g}; "
                             "error bars are above 0")  # fmt: skip
    X = table[[h for h in header if h not in (target, sigma)]]
    if X.shape[1] == 0:
        raise ValueError(f"{path.name} has no column left for the variables")
    return X, table[target].to_numpy(), error


def main(arguments: list[str] | None = None) -> None:
    """The command line in this module's first lines."""
    parser = argparse.ArgumentParser(
        prog="python -m companion.dncl.regressor", description=__doc__.split("\n")[0]
    )
    parser.add_argument("file", type=Path, help="CSV with a header line")
    parser.add_argument("--target", help="column of y (default: the last one)")
    parser.add_argument("--sigma", help="column of y's error bars")
    parser.add_argument("--seconds", type=float, default=5.0)
    a = parser.parse_args(arguments)
    try:
        X, y, sigma = read_points(a.file, a.target, a.sigma)
        model = SymbolicRegressor(a.seconds, noise="auto" if sigma is None else "weights")
        model.fit(X, y, None if sigma is None else 1 / sigma**2)
    except (ValueError, OSError) as error:
        raise SystemExit(str(error)) from None
    print(model.equations_[["formula", "length", "r2", "bic", "selected"]].to_string(index=False))
    print(f"\n{model.formula_}   ({model.seconds_:.1f} s)")


if __name__ == "__main__":
    main()
