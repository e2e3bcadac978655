"""Random formula skeletons: Lample and Charton's unary-binary trees, simplified by rules, without repeats.

Source: the counting table of Lample and Charton (2020), with which NeSymReS (Biggio et al. 2021) makes its trees; the
rules of simplification are ours. No sympy here: it is some hundred times slower.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

import torch

from companion.dncl import expressions as ex

# operator weights of T-JSL, the same laboratory's earlier system, as in its public code
WEIGHTS = {"add": 10, "mul": 10, "sub": 5, "div": 5, "sqrt": 4, "pow2": 4, "pow3": 2, "pow4": 1, "pow5": 1,
           "log": 4, "exp": 4, "sin": 4, "cos": 4, "tan": 1}  # fmt: skip
TRIG = {"sin", "cos", "tan"}
POWERS = {"pow2", "pow3", "pow4", "pow5", "sqrt"}
Tree = tuple  # ("add", Tree, Tree) | ("sin", Tree) | ("x1",) | ("C",)


@dataclass(frozen=True)
class GeneratorConfig:
    """What skeletons look like."""

    variables: int = 1  # D, at most 3
    operators: tuple[int, int] = (1, 5)  # fewest and most operators, uniform
    constants: int = 1  # most constants in a skeleton
    length: int = 15  # most tokens, constants included

    def __post_init__(self) -> None:
        if not 1 <= self.variables <= len(ex.VARIABLES):
            raise ValueError(f"variables is {self.variables}; the token set has 1 to {len(ex.VARIABLES)}")


@lru_cache(maxsize=4096)
def count(e: int, n: int) -> int:
    """D[e][n]: how many ways n operators fill trees with e empty places (Lample and Charton 2020).

    D[0][n] = 0, D[e][0] = 1, D[e][n] = D[e-1][n] + D[e][n-1] + D[e+1][n-1]: the first empty place becomes a
    leaf, a unary or a binary operator.
    """
    if e == 0:
        return 0
    if n == 0:
        return 1
    return count(e - 1, n) + count(e, n - 1) + count(e + 1, n - 1)


@lru_cache(maxsize=4096)
def _choices(e: int, n: int) -> tuple[list[tuple[int, int]], list[int]]:
    """(places skipped, arity) of the next operator, with their numbers of completions."""
    options, weights = [], []
    for k in range(e):
        options += [(k, 1), (k, 2)]
        weights += [count(e - k, n - 1), count(e - k + 1, n - 1)]
    return options, weights


_UNARY = [u for u in ex.UNARY if u in WEIGHTS]
_UNARY_W = [WEIGHTS[u] for u in _UNARY]
_BINARY_W = [WEIGHTS[b] for b in ex.BINARY]


def random_tree(rng: random.Random, operators: int, variables: int) -> Tree:
    """A tree with `operators` operators, uniform over shapes; x1 is used before x2 before x3."""
    arities: list[int] = []  # pre-order arities, leaves included
    e, n = 1, operators
    while n:
        options, weights = _choices(e, n)
        skip, arity = rng.choices(options, weights)[0]
        arities += [0] * skip + [arity]
        e, n = e - skip - 1 + arity, n - 1
    arities += [0] * e
    used = 0
    position = 0

    def build() -> Tree:
        nonlocal used, position
        arity = arities[position]
        position += 1
        if arity == 0:
            index = rng.randrange(min(used + 1, variables))
            used = max(used, index + 1)
            return (ex.VARIABLES[index],)
        if arity == 1:
            return (rng.choices(_UNARY, _UNARY_W)[0], build())
        return (rng.choices(ex.BINARY, _BINARY_W)[0], build(), build())

    return build()


def simplify(tree: Tree) -> Tree | None:
    """A canonical form by rules, or None for a skeleton that is trivial or badly nested.

    Rules: commutative operands are sorted, constants fold (C op C, f(C), C + (C + t), C·(C·t)), x - x, x / x,
    inverse pairs (exp log, pow2 sqrt, ...) and nested trigonometric or exponential functions are refused
    rather than rewritten, so that every kept skeleton stands for itself.
    """
    name = tree[0]
    if len(tree) == 1:
        return tree
    if len(tree) == 2:
        a = simplify(tree[1])
        if a is None or a == ("C",):
            return a
        inner = a[0]
        bad = (
            (name in TRIG and inner in TRIG)
            or (name in {"exp", "log"} and inner in {"exp", "log"})
            or (name in POWERS and inner in {"sqrt", "exp"})
            or (name == "sqrt" and inner in POWERS)
            or (name in POWERS - {"pow2"} and inner in POWERS)
            or (name == "log" and inner in POWERS)
            or (name == "pow2" and inner in {"pow2", "pow4", "pow5"})
        )
        return None if bad else (name, a)
    a, b = simplify(tree[1]), simplify(tree[2])
    if a is None or b is None:
        return None
    if name in {"sub", "div"} and a == b:
        return None
    if a == ("C",) and b == ("C",):
        return ("C",)
    if name == "sub" and b == ("C",):
        name = "add"  # t - C is t + C with another constant
    if name == "div" and b == ("C",):
        name = "mul"
    if name in {"add", "mul"}:
        if a == b:
            return ("mul", ("C",), a) if name == "add" else None
        if b < a:
            a, b = b, a
        for one, other in ((a, b), (b, a)):
            if one == ("C",) and other[0] == name and ("C",) in other[1:]:
                return other
    if name in {"div", "sub"} and b[0] == "div":
        return None
    return (name, a, b)


def add_constants(rng: random.Random, tree: Tree, most: int) -> Tree:
    """Up to `most` subtrees t, drawn at random, become (mul C t) or (add C t)."""

    def spots(t: Tree, path: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
        found = [path] if t != ("C",) else []
        for k, child in enumerate(t[1:], 1):
            found += spots(child, (*path, k))
        return found

    def wrap(t: Tree, path: tuple[int, ...], name: str) -> Tree:
        if not path:
            return (name, ("C",), t)
        k, rest = path[0], path[1:]
        return (*t[:k], wrap(t[k], rest, name), *t[k + 1 :])

    for _ in range(rng.randint(0, most)):
        tree = wrap(tree, rng.choice(spots(tree)), rng.choice(("mul", "add")))
    return tree


def tokens_of(tree: Tree) -> list[int]:
    """Prefix ids of a tree."""
    out = [ex.ID[tree[0]]]
    for child in tree[1:]:
        out += tokens_of(child)
    return out


def skeletons(number: int, config: GeneratorConfig, seed: int, *, without: frozenset[bytes] = frozenset()) -> list[list[int]]:  # fmt: skip
    """`number` distinct skeletons as prefix ids.

    Distinct means: no two have the same token sequence after `simplify`, and no two the same values on fixed
    points with fixed constants (`value_hash`). Those whose hash is in `without` (benchmarks) are left out.

    Raises ValueError when the settings do not hold that many skeletons.
    """
    rng = random.Random(f"skeletons {seed}")
    kept: list[list[int]] = []
    texts: set[tuple[int, ...]] = set()
    values: set[bytes] = set(without)
    barren = 0
    while len(kept) < number:
        fresh = []
        for _ in range(max(256, number // 2)):
            raw = random_tree(rng, rng.randint(*config.operators), config.variables)
            tree = simplify(raw)
            if tree is None or tree == ("C",):
                continue
            tree = simplify(add_constants(rng, tree, config.constants))
            if tree is None:
                continue
            ids = tokens_of(tree)
            key = tuple(ids)
            if len(ids) > config.length or ids.count(ex.CONST) > config.constants or key in texts:
                continue
            if ex.FIRST_VARIABLE not in ids:
                continue
            texts.add(key)
            fresh.append(ids)
        before = len(kept)
        for ids, mark in zip(fresh, value_hash(fresh, config.length) if fresh else [], strict=True):
            if mark is not None and mark not in values:
                values.add(mark)
                kept.append(ids)
        barren = barren + 1 if len(kept) == before else 0
        if barren == 20:
            raise ValueError(
                f"{number} skeletons asked for, but {config} seems to hold only about {len(kept)}"
            )
    return kept[:number]


def _probe(variables: int = 3, points: int = 48) -> torch.Tensor:
    """Fixed points in (0.2, 1.8), where most formulas are defined: `[points, variables]`."""
    g = torch.Generator().manual_seed(20240621)
    return 0.2 + 1.6 * torch.rand(points, variables, generator=g, dtype=torch.float64)


def value_hash(formulas: list[list[int]], length: int | None = None, constants: float | None = None) -> list[bytes | None]:  # fmt: skip
    """A hash of each formula's values on fixed points; None where fewer than half of them are finite.

    With the fixed irrational-looking constants two skeletons get the same hash only when they are the same
    function of x and of their constants in order. Values are divided by their root mean square and rounded to
    6 digits, so a factor in front does not make a formula new.
    """
    tokens = ex.batch(formulas, length)
    most = max(1, int((tokens == ex.CONST).sum(1).max()))
    if constants is None:
        c = torch.tensor([1.3862, 0.5729, 2.1337, 0.8765, 1.7171], dtype=torch.float64)[:most]
        c = torch.cat([c, torch.linspace(0.61, 1.9, max(0, most - 5), dtype=torch.float64)])
    else:
        c = torch.full((most,), constants, dtype=torch.float64)
    x = _probe().expand(len(formulas), -1, -1)
    y = ex.evaluate(tokens, c.expand(len(formulas), -1), x)
    finite = torch.isfinite(y)
    y = torch.where(finite, y, torch.zeros_like(y))
    scale = (y.square().sum(1) / finite.sum(1).clamp(min=1)).sqrt().clamp(min=1e-12)
    y = (y / scale[:, None] * 1e6).round()
    varied = y.std(1) > 1
    ok = (finite.float().mean(1) >= 0.5) & (scale < 1e6) & varied
    marks = torch.cat([y, finite.double()], 1)
    return [row.numpy().tobytes() if good else None for row, good in zip(marks, ok.tolist(), strict=True)]
