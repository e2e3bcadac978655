"""From candidate skeletons to formulas: pairing, mutation, constants, and selection by description length.

The search is small and steady-state. Each round (a) pairs all known subtrees by the four operations and scores every pair
with its best outer constants in closed form, millions at a time, by a few matrix products; (b) mutates and
crosses the best formulas; (c) fits all new constants in one batch (`companion.dncl.constants`). At the end,
constants that lie within their standard error of a simple number are set to it, where that shortens the
description. The network's skeletons seed the first round; without them the search starts from scratch.

The description length is in units of -2 log likelihood: n log(mean square) + log(n) per fitted constant + a price
per token. With known standard errors of the targets the first part is chi-square instead.

Shape letters: P subtrees, n points, C constants.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import sympy
import torch

from companion.dncl import constants as fitting
from companion.dncl import expressions as ex

Ids = tuple[int, ...]
ADD, SUB, MUL, DIV = (ex.ID[b] for b in ex.BINARY)
# what a token costs beside another: rare operators are dearer
PRICE = np.ones(len(ex.TOKENS))
PRICE[[ex.ID["tan"], ex.ID["pow4"], ex.ID["pow5"]]] = 1.5
# numbers that a constant may be set to, with their price in tokens (the constant's own token is paid already)
SIMPLE = {float(k): 0.3 * (k - 1) for k in range(1, 11)} | {0.5: 0.3, 0.25: 0.8, 1 / 3: 0.6, 0.2: 1.0, 0.1: 1.0,
          1.5: 0.9, 2.5: 1.2, 2 / 3: 1.0, 0.75: 1.2, math.pi: 0.8, 2 * math.pi: 1.0, math.pi / 2: 1.2}  # fmt: skip
SIMPLE |= {-v: p + 0.3 for v, p in SIMPLE.items()}


@dataclass(frozen=True)
class EvolveConfig:
    """The budget and the taste of the search."""

    rounds: int = 30
    pool: int = 420  # P, most subtrees that are paired with each other
    pairs: int = 120  # pairs that go on to fitting, per round
    children: int = 120  # mutations and crossings per round
    elite: int = 60  # formulas that are kept
    restarts: int = 3
    iterations: int = 14
    length: int = 30  # most tokens
    constants: int = 7  # most fitted constants
    token_price: float = 3.0  # description length of a token, in units of -2 log likelihood
    selection: str = "bic"  # bic: description length; mse: training error alone
    snap: bool = True  # set constants to simple numbers where that pays
    patience: int = 5  # rounds without a better formula before it stops
    exact: float = 1e-20  # relative mean square below which a fit counts as exact

    def __post_init__(self) -> None:
        if self.selection not in ("bic", "mse"):
            raise ValueError(f"selection is {self.selection!r}; choose bic or mse")


@dataclass(frozen=True)
class Formula:
    """A fitted formula: prefix ids, a value for each constant, which of those were set rather than fitted."""

    ids: Ids
    constants: tuple[float, ...]
    fixed: tuple[bool, ...]
    sse: float
    score: float
    errors: tuple[float, ...] = ()  # standard errors; 0 where fixed

    @property
    def free(self) -> int:
        """Number of fitted constants."""
        return len(self.fixed) - sum(self.fixed)

    def expression(self):
        """As a sympy expression with its constants; exp(a log(b)) is written b ** a."""
        values = [
            _exact(c) if held else sympy.Float(c) for c, held in zip(self.constants, self.fixed, strict=True)
        ]
        return powers(
            ex.to_sympy(list(self.ids)).xreplace({sympy.Symbol(f"c{k}"): v for k, v in enumerate(values)})
        )


def _exact(value: float) -> sympy.Expr:
    """A number that was set: whole ones, thirds and multiples of pi as what they are, others as they stand."""
    for unit in (sympy.Integer(1), sympy.Rational(1, 3), sympy.pi / 2):
        k = round(value / float(unit))
        if k and abs(value - k * float(unit)) < 1e-9:
            return k * unit
    return sympy.Float(value)


def powers(expression: sympy.Expr) -> sympy.Expr:
    """exp(a log(b)) as b ** a, everywhere in `expression`."""

    def rewrite(argument: sympy.Expr) -> sympy.Expr:
        logs = [f for f in sympy.Mul.make_args(argument) if f.func is sympy.log]
        return logs[0].args[0] ** (argument / logs[0]) if len(logs) == 1 else sympy.exp(argument)

    return expression.replace(sympy.exp, rewrite)


def drop(ids: Ids, k: int) -> Ids:
    """`ids` without its k-th constant and the operator that it stands beside (C * t becomes t)."""
    at = [i for i, t in enumerate(ids) if t == ex.CONST][k]
    return ids[: at - 1] + ids[at + 1 :]


def simple_price(value: float) -> float:
    """Price of a number that was set, in tokens; numbers outside `SIMPLE` cost 3."""
    for known, price in SIMPLE.items():
        if abs(value - known) < 1e-9:
            return price
    return 3.0


class Search:
    """One search on one data set.

    Args:
        x: points `[n, D]`, y: targets `[n]`, float64.
        weight: `[n]`, 1 / sigma^2 up to a factor; with `known` the factor is 1 and chi-square takes the place of
            n log(mean square).
        deadline: `constants.clock()` value after which no new round begins.
        polish: the same for the last fit of the best formulas.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray, config: EvolveConfig, *, weight: np.ndarray | None = None,
                 known: bool = False, seed: int = 0, deadline: float = math.inf,
                 polish: float = math.inf) -> None:  # fmt: skip
        self.x, self.y, self.config, self.known, self.deadline = x, y, config, known, deadline
        self.polish = polish
        self.w = np.ones_like(y) if weight is None else weight
        self.n, self.D = x.shape
        self.rng = np.random.default_rng([seed, 5])
        self.seed = seed
        self.tensors = tuple(torch.from_numpy(np.ascontiguousarray(a)) for a in (x, y, self.w))
        self.var = float((self.w * (y - np.average(y, weights=self.w)) ** 2).sum())
        self.found: dict[tuple[Ids, tuple], Formula] = {}
        self.elite: list[Formula] = []
        self.fitted = 0
        self.library: dict[Ids, tuple[tuple[float, ...], np.ndarray]] = {}
        self._signatures: set[bytes] = set()

    # --- scores -----------------------------------------------------------------------------------------

    def data_cost(self, sse: np.ndarray | float) -> np.ndarray | float:
        """The data's part of the description length."""
        sse = np.maximum(sse, self.config.exact * self.var + 1e-300)
        return sse if self.known else self.n * np.log(sse / self.n)

    def price(self, ids: Sequence[int], constants: Sequence[float], fixed: Sequence[bool]) -> float:
        """The formula's part of the description length."""
        tokens = PRICE[list(ids)].sum() + sum(
            simple_price(c) for c, f in zip(constants, fixed, strict=True) if f
        )
        return self.config.token_price * tokens + (len(fixed) - sum(fixed)) * math.log(self.n)

    def score(self, sse: float, ids: Ids, constants: Sequence[float], fixed: Sequence[bool]) -> float:
        """What selection minimises."""
        if not math.isfinite(sse):
            return math.inf
        return (
            sse
            if self.config.selection == "mse"
            else float(self.data_cost(sse)) + self.price(ids, constants, fixed)
        )

    # --- fitting ----------------------------------------------------------------------------------------

    def fit(self, candidates: Iterable[tuple[Ids, Sequence[float] | None, Sequence[bool] | None]],
            restarts: int | None = None, iterations: int | None = None) -> list[Formula]:  # fmt: skip
        """Fit candidates (ids, guess, fixed) that are new, keep the best in `elite`; returns the fitted ones."""
        c = self.config
        new: list[tuple[Ids, Sequence[float] | None, tuple[bool, ...]]] = []
        seen = set()
        for ids, guess, fixed in candidates:
            number = sum(t == ex.CONST for t in ids)
            fixed = tuple(fixed) if fixed is not None else (False,) * number
            key = (ids, tuple(g for g, f in zip(guess, fixed, strict=True) if f) if any(fixed) else ())
            if len(ids) > c.length or number - sum(fixed) > c.constants or key in seen or (
                    key in self.found and restarts is None):  # fmt: skip
                continue
            if not any(ex.CONST < t < ex.FIRST_UNARY for t in ids) or not sober(ids):
                continue
            seen.add(key)
            new.append((ids, guess, fixed))
        if not new or fitting.clock() > self.deadline:
            return []
        x, y, w = self.tensors
        out = fitting.fit([f[0] for f in new], x, y, w, restarts=restarts or c.restarts,
                          iterations=iterations or c.iterations, seed=self.seed + self.fitted,
                          guesses=[f[1] for f in new], fixed=[f[2] for f in new], deadline=self.deadline)  # fmt: skip
        self.fitted += len(new)
        made = []
        for k, (ids, _guess, fixed) in enumerate(new):
            p = len(fixed)
            values = tuple(out.constants[k, :p].tolist())
            sse = float(out.sse[k])
            if not math.isfinite(sse) or any(not math.isfinite(v) or abs(v) > 1e8 for v in values):
                continue
            free = p - sum(fixed)
            noise = 1.0 if self.known else sse / max(1, self.n - free)
            errors = tuple(np.sqrt(np.maximum(noise * np.diagonal(out.covariance[k])[:p], 0)).tolist())
            one = Formula(ids, values, fixed, sse, self.score(sse, ids, values, fixed), errors)
            key = (ids, tuple(v for v, f in zip(values, fixed, strict=True) if f))
            if key not in self.found or one.score < self.found[key].score:
                self.found[key] = one
            made.append(one)
        pool = {(f.free, round(float(self.data_cost(f.sse)), 6)): f
                for f in sorted(self.elite + made, key=lambda f: -f.score)}  # fmt: skip
        ranked = sorted(pool.values(), key=lambda f: f.score)
        # the best, and the best two of every length: long formulas that fit anything must not crowd out the rest
        best, by_length = ranked[: c.elite // 2], {}
        for f in ranked[c.elite // 2 :]:
            by_length.setdefault(len(f.ids), []).append(f)
        self.elite = sorted(best + [f for fs in by_length.values() for f in fs[:2]], key=lambda f: f.score)
        return made

    # --- subtrees ---------------------------------------------------------------------------------------

    def values(self, formulas: Sequence[tuple[Ids, Sequence[float]]]) -> np.ndarray:
        """Values `[N, n]` of formulas with given constants."""
        if not formulas:
            return np.zeros((0, self.n))
        program = fitting.Program([f[0] for f in formulas], self.tensors[0])
        c = np.zeros((len(formulas), 1, program.constants))
        for k, (_, given) in enumerate(formulas):
            c[k, 0, : len(given)] = given
        return program.run(torch.from_numpy(c), derivatives=False)[0][:, 0].numpy()

    def learn(self, formulas: Iterable[tuple[Ids, tuple[float, ...]]]) -> None:
        """Add subtrees to the library: those with finite, varying values that are not there yet."""
        new = [
            (ids, c)
            for ids, c in dict.fromkeys(formulas)
            if ids not in self.library and len(ids) <= 14 and sober(ids)
        ]
        if not new:
            return
        for (ids, c), v in zip(new, self.values(new), strict=True):
            top = np.abs(v).max() if np.isfinite(v).all() else math.inf
            if not 1e-6 < top < 1e6 or np.ptp(v) < 1e-9 * top:
                continue
            mark = np.round(v / top, 9).tobytes() + np.float64(round(top, 9)).tobytes()
            if mark not in self._signatures:
                self._signatures.add(mark)
                self.library[ids] = (c, v)

    def start_library(self) -> None:
        """Short constant-free formulas, and a few with a one: the alphabet of pairing."""
        x = [(ex.FIRST_VARIABLE + j,) for j in range(self.D)]
        unary = [ex.ID[u] for u in ex.UNARY if u != "tan"]
        one = lambda ids: (ADD, ex.CONST, *ids)  # noqa: E731
        first = [(v, ()) for v in x]
        second = [((u, *v), ()) for v in x for u in unary]
        products = [((op, *a, *b), ()) for k, a in enumerate(x) for m, b in enumerate(x)
                    for op in (ADD, MUL, SUB, DIV) if a != b and (k < m or op == DIV)]  # fmt: skip
        self.learn(first + second + products)
        simple = list(self.library)
        self.learn([((ex.ID["pow2"], ex.ID["pow3"], *v), ()) for v in x])
        self.learn([(one(ids), (1.0,)) for ids in simple if len(ids) <= 3])
        self.learn([((SUB, ex.CONST, *ids), (1.0,)) for ids in simple if len(ids) <= 3])
        self.learn([((DIV, ex.CONST, *ids), (1.0,)) for ids in simple if len(ids) <= 3])
        power = lambda a, b: (ex.ID["exp"], MUL, *a, ex.ID["log"], *b)  # noqa: E731
        self.learn([(power(a, b), ()) for a in x for b in x])
        self.learn([(power((ex.CONST,), v), (e,)) for v in x for e in (1 / 3, 2 / 3, 1.5)])
        inner = [(ids, c) for ids, (c, _) in list(self.library.items()) if len(ids) <= 5]
        few = [ex.ID[u] for u in ("sin", "cos", "exp", "log", "sqrt")]
        self.learn([((u, *ids), c) for ids, c in inner for u in few if ids[0] not in (few[2], few[3])])
        powers = [ids for ids in simple if len(ids) <= 2]
        self.learn(
            [((op, *a, *b), ()) for k, a in enumerate(powers) for b in powers[k + 1 :] for op in (ADD, MUL)]
        )
        self.learn([((u, ADD, *a, *b), ()) for a in x for b in powers[:8] for u in few[:2] if a != b])

    def subtrees(self, f: Formula) -> list[tuple[Ids, tuple[float, ...]]]:
        """All subtrees of a formula but constants, with their constants."""
        out = []
        for at in range(len(f.ids)):
            stop = end(f.ids, at)
            if f.ids[at] != ex.CONST:
                before = f.ids[:at].count(ex.CONST)
                part = f.ids[at:stop]
                out.append((part, f.constants[before : before + part.count(ex.CONST)]))
        return out

    # --- pairing ----------------------------------------------------------------------------------------

    def pair(self) -> list[tuple[Ids, Sequence[float] | None, Sequence[bool] | None]]:
        """The best `pairs` formulas t1 op t2 with outer constants in closed form."""
        c = self.config
        entries = [(ids, cs, v) for ids, (cs, v) in self.library.items()]
        if len(entries) > c.pool:
            # short ones, and those whose own fit is good
            V = np.stack([e[2] for e in entries])
            size = np.array([len(e[0]) for e in entries])
            forms = self._forms(*self._moments(V))
            alone = np.min([self.data_cost(sse) + more for sse, more in forms], 0) + c.token_price * size
            pick = np.argsort(alone)[: c.pool // 2]
            rest = np.setdiff1d(
                np.argsort(size + self.rng.random(len(size)), kind="stable"), pick, assume_unique=False
            )
            rest = rest[np.argsort(size[rest] + self.rng.random(len(rest)), kind="stable")]
            entries = [entries[k] for k in [*pick.tolist(), *rest[: c.pool - len(pick)].tolist()]]
        V = np.stack([e[2] for e in entries])
        cost = np.array([self.price(e[0], e[1], [True] * len(e[1])) for e in entries])
        W, Y = self.w, self.y
        found: list[tuple[float, int, int, str, int]] = []
        P = len(V)
        # n log(sse) + price orders as sse exp(price / n) does, without a logarithm for each of millions of pairs
        n = 1 if self.known else self.n
        price = cost[:, None] + cost[None, :] + c.token_price
        price = price if self.known else np.exp(price / n)
        floor = c.exact * self.var + 1e-300
        upper = np.triu(np.ones((P, P), dtype=bool), 1)
        other = ~np.eye(P, dtype=bool)

        def keep(sse: np.ndarray, more: float, priced: np.ndarray, op: str, form: int) -> None:
            rank = np.maximum(sse, floor)
            rank = (rank + priced + more if self.known else rank * (priced * math.exp(more / n))).ravel()
            number = min(c.pairs // 3, rank.size)
            for at in np.argpartition(rank, number - 1)[:number].tolist():
                if rank[at] < np.inf:
                    score = rank[at] if self.known else n * math.log(rank[at] / n)
                    found.append((float(score), at // P, at % P, op, form))

        with np.errstate(all="ignore"):
            reciprocal = 1.0 / V
            for op, B in (("mul", V), ("div", reciprocal)):
                good = np.isfinite(B).all(1) & (np.abs(B).max(1) < 1e6)
                B = np.where(good[:, None], B, 0.0)
                S, Sy, SS = (V * W) @ B.T, (V * (W * Y)) @ B.T, (V * V * W) @ (B * B).T
                allowed = (upper if op == "mul" else other) & good[None, :]
                priced = np.where(allowed, price, np.inf)
                for form, (sse, more) in enumerate(self._forms(S, Sy, SS)):
                    keep(sse, more, priced, op, form)
            # sums: G are weighted inner products, h those with y
            G, h, m = (V * W) @ V.T, V @ (W * Y), V @ W
            d = np.diag(G)
            yy, y1, w1 = float((W * Y * Y).sum()), float((W * Y).sum()), float(W.sum())
            once, both = np.where(upper, price, np.inf), np.where(other, price, np.inf)
            for op, s in (("add", 1.0), ("sub", -1.0)):
                S = m[:, None] + s * m[None, :]
                Sy = h[:, None] + s * h[None, :]
                SS = d[:, None] + 2 * s * G + d[None, :]
                for form, (sse, more) in enumerate(self._forms(S, Sy, SS)):
                    keep(sse, more, once if s > 0 else both, op, form)
            constant = math.log(self.n) + 2 * c.token_price
            for centred, form in ((False, 4), (True, 5)):
                g = G - np.outer(m, m) / w1 if centred else G
                b = h - m * y1 / w1 if centred else h
                total = yy - y1 * y1 / w1 if centred else yy
                e = np.diag(g)
                # t1 + b t2: one factor only
                gain = (b[None, :] - g) ** 2 / e[None, :]
                rest = total - 2 * b[:, None] + e[:, None] - gain
                more = constant if centred else 0.0
                keep(rest, constant + more, both, "lin1", form)
                det = np.outer(e, e) - g * g
                gain = (np.outer(b * b, e) - 2 * np.outer(b, b) * g + np.outer(e, b * b)) / det
                rest = np.where(det > 1e-9 * np.outer(e, e), total - gain, np.inf)
                keep(rest, 2 * constant + more, once, "lin2", form)
        found.sort()
        out = []
        for _, i, j, op, form in found:
            (a, ca, _), (b, cb, _) = entries[i], entries[j]
            C = ex.CONST
            if op == "lin1":
                ids: Ids = (ADD, *a, MUL, C, *b)
                values, fixed = [*ca, 0.0, *cb], [True] * len(ca) + [False] + [True] * len(cb)
            elif op == "lin2":
                ids = (ADD, MUL, C, *a, MUL, C, *b)
                values, fixed = [0.0, *ca, 0.0, *cb], [False] + [True] * len(ca) + [False] + [True] * len(cb)
            else:
                ids = (ex.ID[op], *a, *b)
                values, fixed = [*ca, *cb], [True] * (len(ca) + len(cb))
                if form in (1, 3):
                    ids, values, fixed = (MUL, C, *ids), [1.0, *values], [False, *fixed]
            if form in (2, 3, 5):
                ids, values, fixed = (ADD, C, *ids), [0.0, *values], [False, *fixed]
            # fixed stays fixed for simple numbers only
            fixed = [f and v in SIMPLE for f, v in zip(fixed, values, strict=True)]
            out.append((ids, values, fixed))
            if len(out) >= c.pairs:
                break
        return out

    def _moments(self, V: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return V @ self.w, V @ (self.w * self.y), (V * V) @ self.w

    def _forms(self, S: np.ndarray, Sy: np.ndarray, SS: np.ndarray) -> list[tuple[np.ndarray, float]]:
        """Of g, C g, C + g, C + C g: the squared error, from sums of g, g y and g^2, and the price of the constants."""
        W, Y, c = self.w, self.y, self.config
        yy, y1, w1 = float((W * Y * Y).sum()), float((W * Y).sum()), float(W.sum())
        constant = math.log(self.n) + 2 * c.token_price
        with np.errstate(all="ignore"):
            centre, cross, rest = SS - S * S / w1, Sy - S * y1 / w1, yy - y1 * y1 / w1
            both = np.where(centre > 1e-12 * SS, rest - cross**2 / centre, np.inf)
            return [(yy - 2 * Sy + SS, 0.0), (yy - Sy**2 / SS, constant), (rest - 2 * cross + centre, constant),
                    (both, 2 * constant)]  # fmt: skip

    # --- neighbours that are tried for all good formulas --------------------------------------------------

    def wraps(self, f: Formula) -> list[tuple[Ids, list[float], list[bool]]]:
        """`f` with one constant more, in every place."""
        out = []
        for at in range(len(f.ids)):
            if f.ids[at] == ex.CONST:
                continue
            b = f.ids[:at].count(ex.CONST)
            above = f.ids[at - 1] if at else -1
            for op, start in ((MUL, 1.0), (ADD, 0.0)):
                if (op == ADD and above in (ADD, SUB)) or (op == MUL and above in (MUL, DIV)):
                    continue
                if at + 1 < len(f.ids) and f.ids[at] == op and f.ids[at + 1] == ex.CONST:
                    continue
                out.append(((*f.ids[:at], op, ex.CONST, *f.ids[at:]), [*f.constants[:b], start, *f.constants[b:]],
                            [*f.fixed[:b], False, *f.fixed[b:]]))  # fmt: skip
        return out

    def fewer(self, f: Formula) -> list[tuple[Ids, Sequence[float], Sequence[bool]]]:
        """`f` with one of its binary operators left out, in every way: one of the two operands stays."""
        out = []
        for at, token in enumerate(f.ids):
            if token < ex.FIRST_BINARY:
                continue
            middle, stop = end(f.ids, at + 1), end(f.ids, at)
            for first, last in ((at + 1, middle), (middle, stop)):
                upto = lambda k: f.ids[:k].count(ex.CONST)  # noqa: E731
                kept = [*range(upto(at)), *range(upto(first), upto(last)), *range(upto(stop), len(f.fixed))]
                out.append(((*f.ids[:at], *f.ids[first:last], *f.ids[stop:]), [f.constants[k] for k in kept],
                            [f.fixed[k] for k in kept]))  # fmt: skip
        return out

    def prune(self, number: int) -> None:
        """Take out of the best `number` formulas what they can do without, as long as the best gets better."""
        best = math.inf
        while self.elite and self.elite[0].score < best - 1e-6:
            best = self.elite[0].score
            self.fit([one for f in self.elite[:number] for one in self.fewer(f)], iterations=8)

    def more_terms(
        self, formulas: Sequence[Formula], each: int = 6
    ) -> list[tuple[Ids, list[float], list[bool]]]:
        """f + C t for the subtrees t that lower the error most when all constants of f move along (one step of
        orthogonal matching pursuit, in the tangent space of f)."""
        if not formulas or not self.library:
            return []
        keys = list(self.library)
        V = np.stack([self.library[k][1] for k in keys]) * np.sqrt(self.w)
        size = np.array([self.price(k, self.library[k][0], [True] * len(self.library[k][0])) for k in keys])
        program = fitting.Program([f.ids for f in formulas], self.tensors[0])
        c = np.zeros((len(formulas), 1, program.constants))
        for k, f in enumerate(formulas):
            c[k, 0, : len(f.constants)] = f.constants
        value, J = program.run(torch.from_numpy(c))
        out = []
        for k, f in enumerate(formulas):
            r = (self.y - value[k, 0].numpy()) * np.sqrt(self.w)
            T = np.nan_to_num(J[k, 0].numpy() * np.sqrt(self.w))
            Q = np.linalg.qr(T.T)[0] if len(f.fixed) else np.zeros((self.n, 0))
            rest = V - (V @ Q) @ Q.T
            square = (rest * rest).sum(1)
            gain = np.where(square > 1e-9 * (V * V).sum(1), (rest @ r) ** 2 / np.maximum(square, 1e-300), 0.0)
            gain = self.data_cost(np.maximum(f.sse - gain, 0.0)) + size
            for j in np.argsort(gain)[:each].tolist():
                ids = keys[j]
                mine = self.library[ids][0]
                held = [v in SIMPLE for v in mine]
                out.append(
                    ((ADD, *f.ids, MUL, ex.CONST, *ids), [*f.constants, 0.0, *mine], [*f.fixed, False, *held])
                )
        return out

    def sums(self, terms: int = 6, firsts: int = 5) -> list[tuple[Ids, list[float], list[bool]]]:
        """Sums of `C * t`, by forward selection with exchanges from several first terms: powers and products of the
        variables in one family, all short constant-free subtrees in another."""
        keys = [k for k in self.library if ex.CONST not in k and len(k) <= 6]
        plain = {MUL, *(ex.ID[p] for p in ("pow2", "pow3", "pow4", "pow5"))}
        families = [
            [k for k in keys if all(t in plain or t < ex.FIRST_UNARY for t in k)],
            [k for k in keys if len(k) <= 4],
        ]
        root = np.sqrt(self.w)
        y = self.y * root
        made: dict[tuple[Ids, ...], bool] = {}
        for family in families:
            V = np.stack([self.library[k][1] for k in family]) * root
            V = V / np.linalg.norm(V, axis=1, keepdims=True)
            for offset in (False, True):
                base = root[:, None] if offset else np.zeros((self.n, 0))

                def best(rows: list[int], V=V, base=base) -> tuple[np.ndarray, float]:
                    """Error left for each further term beside `rows`, and without one."""
                    Q = np.linalg.qr(np.concatenate([base, V[rows].T], 1))[0]
                    rest, r = V - (V @ Q) @ Q.T, y - Q @ (Q.T @ y)
                    square = (rest * rest).sum(1)
                    return np.where(
                        square > 1e-7, r @ r - (rest @ r) ** 2 / np.maximum(square, 1e-12), r @ r
                    ), r @ r

                for first in np.argsort(best([])[0])[:firsts].tolist():
                    rows = [first]
                    while len(rows) < min(terms, self.n - 2, len(family)):
                        rows.append(int(best(rows)[0].argmin()))
                        for _ in range(2):
                            for k in range(len(rows)):
                                others = rows[:k] + rows[k + 1 :]
                                rows[k] = int(best(others)[0].argmin())
                        if len(set(rows)) < len(rows):
                            break
                        made[tuple(sorted(family[j] for j in rows))] = offset
        out = []
        for parts, offset in made.items():
            ids: Ids = (MUL, ex.CONST, *parts[0])
            for part in parts[1:]:
                ids = (ADD, *ids, MUL, ex.CONST, *part)
            out.append(((ADD, ex.CONST, *ids) if offset else ids, None, None))
        return out

    def templates(self) -> list[tuple[Ids, Sequence[float] | None, Sequence[bool] | None]]:
        """Functions with an inner constant, u(C x): alone, times or over another variable, and two of them in a
        product or a sum; and `curves`. Their outer constants are linear, so that few starts are needed."""
        C = ex.CONST
        x = [(ex.FIRST_VARIABLE + j,) for j in range(self.D)]
        sin, cos, exp, log = (ex.ID[u] for u in ("sin", "cos", "exp", "log"))
        per = [[(sin, MUL, C, *v), (cos, MUL, C, *v), (exp, MUL, C, *v), (log, ADD, C, *v), (exp, MUL, C, log, *v),
                (exp, MUL, C, ex.ID["pow2"], *v)] for v in x]  # fmt: skip
        cores: list[Ids] = [t for ts in per for t in ts] + [(sin, ADD, C, MUL, C, *v) for v in x]
        for k, ts in enumerate(per):
            inverse = (ADD, C, *x[k])
            for m, v in enumerate(x):
                cores += [(MUL, *v, *t) for t in ts] + [(DIV, *v, *inverse)]
                if m != k:
                    cores += [(DIV, *t, *v) for t in ts]
                if m > k:
                    cores += [
                        (op, *a, *(b if op == MUL else (MUL, C, *b)))
                        for a in ts
                        for b in per[m]
                        for op in (MUL, ADD)
                    ]
            cores += [(op, *a, *b) for i, a in enumerate(ts) for b in ts[i + 1 :] for op in (MUL,)]
        forms = [form for t in cores for form in ((MUL, C, *t), (ADD, C, MUL, C, *t))]
        return [(form, None, None) for form in forms] + self.curves()

    def curves(self) -> list[tuple[Ids, Sequence[float] | None, Sequence[bool] | None]]:
        """What measurements of one variable often follow and no pair of short functions makes: the logistic curve, in
        x and in log x (Hill, any power), saturation in powers of x, two exponentials, a wave on a straight line."""
        C = ex.CONST
        exp, log, sin = (ex.ID[u] for u in ("exp", "log", "sin"))
        out: list[tuple[Ids, Sequence[float] | None, Sequence[bool] | None]] = []
        for j in range(self.D):
            v: Ids = (ex.FIRST_VARIABLE + j,)
            logistic = [(DIV, C, ADD, C, exp, ADD, C, MUL, C, *t) for t in (v, (log, *v))]
            # C / (1 + exp(C + C t)): the one stays
            for ids in logistic:
                out.append((ids, [1.0, 1.0, 0.0, 1.0], [False, True, False, False]))
                out.append(((ADD, C, *ids), [0.0, 1.0, 1.0, 0.0, 1.0], [False, False, True, False, False]))
            decay = (MUL, C, exp, MUL, C, *v)
            plain = [(MUL, C, DIV, k, *v, ADD, C, k, *v) for k in (ex.ID["pow2"], ex.ID["pow3"])]
            plain += [(ADD, *decay, *decay), (ADD, MUL, C, *v, MUL, C, sin, ADD, C, MUL, C, *v)]
            out += [(form, None, None) for ids in plain for form in (ids, (ADD, C, *ids))]
        return out

    def alone(self) -> list[tuple[Ids, None, None]]:
        """Every short subtree by itself with free constants, alone and with a factor and a summand."""
        C = ex.CONST
        short = [ids for ids in self.library if len(ids) <= 5]
        return [(form, None, None) for ids in short for form in (ids, (MUL, C, *ids), (ADD, C, MUL, C, *ids))
                if C in ids or form != ids]  # fmt: skip

    # --- mutation ---------------------------------------------------------------------------------------

    def mutate(self, f: Formula) -> tuple[Ids, list[float], list[bool]] | None:
        """A neighbour of `f`: a constant more or less, another operator, another subtree, or a part alone."""
        rng = self.rng
        ids, values, fixed = list(f.ids), list(f.constants), list(f.fixed)
        at = int(rng.integers(len(ids)))
        stop = end(f.ids, at)
        before = f.ids[:at].count(ex.CONST)
        inside = f.ids[at:stop].count(ex.CONST)
        kind = rng.random()

        def replace(
            new: Sequence[int], cs: Sequence[float], fx: Sequence[bool]
        ) -> tuple[Ids, list[float], list[bool]]:
            return ((*ids[:at], *new, *ids[stop:]), values[:before] + list(cs) + values[before + inside :],
                    fixed[:before] + list(fx) + fixed[before + inside :])  # fmt: skip

        part, cs, fx = ids[at:stop], values[before : before + inside], fixed[before : before + inside]
        if kind < 0.3 and ids[at] != ex.CONST:  # a constant more
            op = int(rng.choice([MUL, ADD, DIV], p=[0.45, 0.45, 0.1]))
            start = 0.0 if op == ADD else 1.0
            return replace([op, ex.CONST, *part], [start, *cs], [False, *fx])
        if kind < 0.4:  # a constant set free
            if any(fixed):
                k = int(rng.choice([k for k, held in enumerate(fixed) if held]))
                fixed[k] = False
                return tuple(ids), values, fixed
            return None
        if kind < 0.55:  # another operator
            arity = int(ex.ARITY[ids[at]])
            if arity == 1:
                ids[at] = int(rng.integers(ex.FIRST_UNARY, ex.FIRST_BINARY))
            elif arity == 2:
                ids[at] = int(rng.integers(ex.FIRST_BINARY, len(ex.TOKENS)))
            elif ids[at] >= ex.FIRST_VARIABLE:
                ids[at] = ex.FIRST_VARIABLE + int(rng.integers(self.D))
            else:
                return None
            return tuple(ids), values, fixed
        if kind < 0.7:  # an operator more
            if ids[at] == ex.CONST:
                return None
            if rng.random() < 0.5:
                return replace([int(rng.integers(ex.FIRST_UNARY, ex.FIRST_BINARY)), *part], cs, fx)
            other, oc, of = self._draw()
            return replace(
                [int(rng.integers(ex.FIRST_BINARY, len(ex.TOKENS))), *part, *other], [*cs, *oc], [*fx, *of]
            )
        if kind < 0.85:  # another subtree
            other, oc, of = self._draw()
            return replace(other, oc, of)
        if len(part) > 1:  # an operator less: one of the operands stays
            spots = list(range(at + 1, stop))
            k = int(rng.choice(spots))
            inner, b = f.ids[k : end(f.ids, k)], f.ids[:k].count(ex.CONST)
            m = inner.count(ex.CONST)
            return replace(inner, values[b : b + m], fixed[b : b + m])
        return None

    def _draw(self) -> tuple[Ids, list[float], list[bool]]:
        """A subtree: of another good formula, or of the library."""
        if self.elite and self.rng.random() < 0.6:
            f = self.elite[int(len(self.elite) * self.rng.random() ** 2)]
            at = int(self.rng.integers(len(f.ids)))
            part, b = f.ids[at : end(f.ids, at)], f.ids[:at].count(ex.CONST)
            m = part.count(ex.CONST)
            return part, list(f.constants[b : b + m]), list(f.fixed[b : b + m])
        keys = list(self.library)
        ids = keys[int(len(keys) * self.rng.random() ** 2)]
        c = self.library[ids][0]
        return ids, list(c), [v in SIMPLE for v in c]

    # --- the whole ---------------------------------------------------------------------------------------

    def snap(self, formulas: Sequence[Formula]) -> None:
        """Set constants to simple numbers near them, one at a time, as long as the description gets shorter."""
        for _ in range(self.config.constants if formulas else 0):
            tries = []
            for f in formulas:
                for k, (v, e, held) in enumerate(zip(f.constants, f.errors, f.fixed, strict=True)):
                    if held:
                        continue
                    at = [i for i, t in enumerate(f.ids) if t == ex.CONST][k]
                    beside = f.ids[at - 1] if at else -1
                    neutral = {MUL: 1.0, ADD: 0.0}.get(beside)
                    if neutral is not None and abs(v - neutral) < 3 * e + 1e-6:
                        tries.append((drop(f.ids, k), f.constants[:k] + f.constants[k + 1 :],
                                      f.fixed[:k] + f.fixed[k + 1 :]))  # fmt: skip
                    near = sorted((abs(v - s), s) for s in SIMPLE if abs(v - s) < 3 * e + 1e-6 * abs(v))[:3]
                    for _, s in near:
                        values, fixed = list(f.constants), list(f.fixed)
                        values[k], fixed[k] = s, True
                        tries.append((f.ids, values, fixed))
            made = self.fit(tries, iterations=8)
            best = {}
            for f in made:
                best[f.ids] = min(best.get(f.ids, f), f, key=lambda g: g.score)
            worst = max(g.score for g in formulas)
            better = [f for f in best.values()
                      if f.score < min((g.score for g in formulas if g.ids == f.ids), default=worst)]  # fmt: skip
            if not better:
                return
            formulas = better

    def run(self, skeletons: Sequence[Ids] = ()) -> list[Formula]:
        """Search; returns the best formulas, best first.

        Args:
            skeletons: the network's proposals; each is tried alone, with a factor, with a summand, with both.
        """
        c = self.config
        C = ex.CONST
        seeds = []
        for ids in skeletons:
            for form in (ids, (MUL, C, *ids), (ADD, C, *ids), (ADD, C, MUL, C, *ids)):
                seeds.append((form, None, None))
        # straight lines, a factor on every short function, and the best pairs are always there, however little time
        # is left: without the second, two logarithms stand in for a factor of 2
        limit, self.deadline = self.deadline, math.inf
        pairing = 0.0
        self.fit([((ADD, C, MUL, C, ex.FIRST_VARIABLE + j), None, None) for j in range(self.D)])
        if c.rounds:
            self.start_library()
            self.fit([((MUL, C, *ids), None, None) for ids in self.library if len(ids) <= 3 and C not in ids])
            began = fitting.clock()
            pairs = self.pair()
            pairing = fitting.clock() - began
            self.fit(pairs)
        self.deadline = limit
        # what costs little for what it finds comes first: a short limit ends somewhere in here
        templates = self.templates() if c.rounds else []
        self.fit([t for t in templates if _TRIG.isdisjoint(t[0])])
        self.fit(seeds)
        best, stale = math.inf, 0
        expanded: set[tuple[Ids, tuple[bool, ...]]] = set()
        if c.rounds and fitting.clock() < self.deadline:
            self.fit([one for one in self.alone() if ex.CONST in one[0][2:]][:400])
            # frequencies need many starts; with several variables there are many templates instead
            sums = self.fit(self.sums()) if fitting.clock() < self.deadline else []
            waves = [t for t in templates if not _TRIG.isdisjoint(t[0])]
            self.fit(waves, restarts=24 if self.D == 1 else 8)
            if c.snap:
                self.snap(sorted(sums, key=lambda f: f.score)[:6])
            self.prune(3)
        for _ in range(c.rounds):
            # pairs that nothing is left to fit are worth nothing: the last fits can use that time
            began = fitting.clock()
            if began + pairing > self.deadline:
                break
            self.learn([s for f in self.elite[:25] for s in self.subtrees(f)])
            children = self.pair()
            pairing = fitting.clock() - began
            # half by rank, half from the front of length against error
            unseen = [f for f in self.elite if (f.ids, f.fixed) not in expanded]
            fresh = list(dict.fromkeys(unseen[:5] + [f for f in pareto(self.elite) if f in unseen][-5:]))
            expanded |= {(f.ids, f.fixed) for f in fresh}
            children += [w for f in fresh for w in self.wraps(f)] + self.more_terms(fresh)
            children += [one for f in fresh for one in self.fewer(f)]
            ranks = (len(self.elite) * self.rng.random(c.children) ** 2).astype(int) if self.elite else []
            children += [m for k in ranks if (m := self.mutate(self.elite[k])) is not None]
            self.fit(children)
            if c.snap:
                self.snap([f for f in self.elite[:8] if f.free])
            top = self.elite[0].score if self.elite else math.inf
            stale = 0 if top < best - 1e-6 else stale + 1
            best = min(best, top)
            exact = bool(self.elite) and self.elite[0].sse <= 10 * c.exact * self.var
            if stale >= (2 if exact else c.patience):
                break
        # the best ones again, from many starts
        self.deadline = self.polish
        if c.rounds:
            self.prune(3)
        self.fit(
            [(f.ids, f.constants, f.fixed) for f in self.elite[:10] if f.free], restarts=10, iterations=30
        )
        if c.snap:
            self.snap([f for f in self.elite[:12] if f.free])
        if c.rounds:
            self.prune(3)
        return self.elite


def end(ids: Sequence[int], at: int) -> int:
    """Where the subtree that starts at `at` stops."""
    places = 1
    while places:
        places += int(ARITY[ids[at]]) - 1
        at += 1
    return at


ARITY = ex.ARITY.tolist()
_TRIG = frozenset(ex.ID[t] for t in ("sin", "cos", "tan"))
_GROWTH = frozenset(ex.ID[t] for t in ("exp", "log"))


@lru_cache(maxsize=200_000)
def sober(ids: Ids) -> bool:
    """Whether no sine stands inside a sine and no exponential or logarithm directly on another (DSO's and the
    generator's rule: such formulas imitate anything and are hardly ever meant)."""
    for at, token in enumerate(ids):
        if token in _TRIG and not _TRIG.isdisjoint(ids[at + 1 : end(ids, at)]):
            return False
        if token in _GROWTH and ids[at + 1] in _GROWTH:
            return False
    return True


def pareto(formulas: Iterable[Formula]) -> list[Formula]:
    """Formulas that no shorter (or as short) one fits as well, shortest first."""
    front: list[Formula] = []
    size = lambda f: len(f.ids)  # noqa: E731
    for f in sorted(formulas, key=lambda f: (size(f), f.sse)):
        if not front or f.sse < front[-1].sse * (1 - 1e-9):
            if front and size(front[-1]) == size(f):
                continue
            front.append(f)
    return front
