"""Skeletons by the hundred thousand: whole batches of trees as integer arrays, no Python loop over formulas.

The same unary-binary trees as in `generator` (Lample and Charton's counting table), made, brought
into a canonical form and compared in NumPy. Three things differ from NeSymReS's sympy route:

- constants are wrapped around subtrees as unary operators (`C * t`, `C + t`, `C / t`) only where no other place
  would give the same family of functions: under a product, a power or `log` a factor can be pulled out, under a
  sum or `exp` a summand can;
- two skeletons are the same when they have the same values on fixed points, where the constant beside a subtree
  is a fixed function of that subtree's values: the order of terms and brackets then does not matter;
- the *structure* of a skeleton is itself without its constants. Benchmark equations are kept out, and training
  and validation are split, by structure, so that `sin(x)` and `C + sin(C * x)` are never on different sides.

Shape letters: B formulas, L tokens, n probe points.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from companion.dncl import expressions as ex
from companion.dncl import generator

# unary tokens that carry a constant, beside those of `expressions`
TIMES, PLUS, OVER = len(ex.TOKENS), len(ex.TOKENS) + 1, len(ex.TOKENS) + 2
SIZE = len(ex.TOKENS) + 3
_ARITY = np.array([*ex.ARITY.tolist(), 1, 1, 1])
_WEIGHTS = generator.WEIGHTS | {"over": 3}
_UNARY = np.array([ex.ID[u] for u in ex.UNARY] + [OVER])
_UNARY_P = np.cumsum([_WEIGHTS[u] for u in (*ex.UNARY, "over")]) / sum(
    _WEIGHTS[u] for u in (*ex.UNARY, "over")
)
_BINARY = np.array([ex.ID[b] for b in ex.BINARY])
_BINARY_P = np.cumsum([_WEIGHTS[b] for b in ex.BINARY]) / sum(_WEIGHTS[b] for b in ex.BINARY)
ADD, SUB, MUL, DIV = _BINARY


def _pairs(rules: dict[str, str]) -> np.ndarray:
    """`[operator, operand]` booleans from "operators": "operands"."""
    table = np.zeros((SIZE, SIZE), dtype=bool)
    ids = ex.ID | {"times": TIMES, "plus": PLUS, "over": OVER}
    for outer, inner in rules.items():
        for o in outer.split():
            table[ids[o], [ids[i] for i in inner.split()]] = True
    return table


# A unary operator that may not stand directly on another one.
REFUSED = _pairs({
    "sin cos tan": "sin cos tan", "exp": "exp log", "log": "exp log pow2 pow3 pow4 pow5 sqrt over",
    "sqrt": "sqrt exp pow2 pow3 pow4 pow5 over", "pow2": "sqrt exp pow2 pow4 pow5 over",
    "pow3 pow4 pow5": "sqrt exp pow2 pow3 pow4 pow5 over", "over": "over exp pow2 pow3 pow4 pow5 sqrt",
})  # fmt: skip
# Parents under which a factor or a summand could be pulled out, so that it stands elsewhere already.
_NO_TIMES = np.zeros(SIZE, dtype=bool)
_NO_TIMES[[MUL, DIV, OVER, ex.ID["log"], *(ex.ID[p] for p in ("sqrt", "pow2", "pow3", "pow4", "pow5"))]] = (
    True
)
_NO_PLUS = np.zeros(SIZE, dtype=bool)
_NO_PLUS[[ADD, SUB, ex.ID["exp"]]] = True


@dataclass(frozen=True)
class PoolConfig:
    """What the skeletons of a pool look like."""

    variables: int = 3  # D, at most 3
    operators: tuple[int, int] = (1, 5)  # fewest and most operators of the structure, uniform
    constants: int = 3  # most constants in a skeleton
    length: int = 20  # most tokens, constants included
    outer: bool = True  # whether a factor and a summand around the whole formula are part of it

    def __post_init__(self) -> None:
        if not 1 <= self.variables <= len(ex.VARIABLES):
            raise ValueError(f"variables is {self.variables}; the token set has 1 to {len(ex.VARIABLES)}")
        if not 1 <= self.operators[0] <= self.operators[1]:
            raise ValueError(f"operators is {self.operators}; choose (fewest, most) with 1 <= fewest <= most")


@lru_cache(maxsize=8)
def _placement(most: int) -> np.ndarray:
    """Cumulative chances `[e, n, choice]` of the next operator; choice = 2 * places skipped + (0 unary, 1 binary)."""
    table = np.ones((most + 2, most + 1, 2 * (most + 2)))
    for e in range(1, most + 2):
        for n in range(1, most + 1):
            if e + n > most + 1:  # never reached: every operator placed opens at most one more place
                continue
            weights = []
            for k in range(e):
                weights += [generator.count(e - k, n - 1), generator.count(e - k + 1, n - 1)]
            table[e, n, : 2 * e] = np.cumsum(weights) / sum(weights)
    return table


def trees(number: int, config: PoolConfig, rng: np.random.Generator) -> np.ndarray:
    """`[number, L]` random trees without constants (but for `OVER`), uniform over shapes, padded with PAD."""
    low, high = config.operators
    table = _placement(high)
    arity = np.full((number, 2 * high + 1), -1, dtype=np.int64)
    left = rng.integers(low, high + 1, number)
    empty, at = np.ones(number, dtype=np.int64), np.zeros(number, dtype=np.int64)
    rows = np.arange(number)
    for _ in range(high):
        busy = rows[left > 0]
        choice = (rng.random(len(busy))[:, None] > table[empty[busy], left[busy]]).sum(1)
        skip, kind = choice // 2, choice % 2 + 1
        at[busy] += skip
        arity[busy, at[busy]] = kind
        at[busy] += 1
        empty[busy] += kind - skip - 1
        left[busy] -= 1
    column = np.arange(arity.shape[1])
    arity[(arity < 0) & (column < (at + empty)[:, None])] = 0
    u = rng.random(arity.shape)
    tokens = np.where(arity == 1, _UNARY[np.searchsorted(_UNARY_P, u).clip(max=len(_UNARY) - 1)], ex.PAD)
    tokens = np.where(arity == 2, _BINARY[np.searchsorted(_BINARY_P, u).clip(max=len(_BINARY) - 1)], tokens)
    used = np.zeros(number, dtype=np.int64)
    for k in column:  # x1 is used before x2 before x3
        leaf = arity[:, k] == 0
        index = (u[:, k] * np.minimum(used + 1, config.variables)).astype(np.int64)
        tokens[leaf, k] = ex.FIRST_VARIABLE + index[leaf]
        used = np.where(leaf, np.maximum(used, index + 1), used)
    return tokens.astype(np.uint8)


def _ends(tokens: np.ndarray) -> np.ndarray:
    """Sizes `[B, L]` of the subtree that starts at each position."""
    B, L = tokens.shape
    size = np.ones((B, L + 2), dtype=np.int64)
    rows = np.arange(B)
    for k in range(L - 2, -1, -1):
        a = size[:, k + 1]
        b = size[rows, np.minimum(k + 1 + a, L + 1)]
        n = _ARITY[tokens[:, k]]
        size[:, k] = 1 + np.where(n > 0, a, 0) + np.where(n > 1, b, 0)
    return size[:, :L]


def canonical(tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Operands of `add` and `mul` sorted; and which rows `[B]` break no rule.

    Refused are nested pairs of `REFUSED`, t - t, t / t, t + t (a factor), t * t (a power) and C / t in a product.
    """
    B, L = tokens.shape
    t = tokens.astype(np.int64)
    size = _ends(t)
    size = np.concatenate([size, np.ones((B, 2), dtype=np.int64)], 1)
    t = np.concatenate([t, np.zeros((B, 2), dtype=np.int64)], 1)
    key = t.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    good = np.ones(B, dtype=bool)
    column = np.arange(L + 2)
    for k in range(L - 2, -1, -1):
        arity = _ARITY[t[:, k]]
        one = np.flatnonzero(arity == 1)
        good[one] &= ~REFUSED[t[one, k], t[one, k + 1]]
        key[one, k] = _mix(key[one, k], key[one, k + 1], 3)
        two = np.flatnonzero(arity == 2)
        if len(two):
            second = k + 1 + size[two, k + 1]
            left, right = key[two, k + 1], key[two, second]
            good[two] &= left != right
            product = (t[two, k] == MUL) | (t[two, k] == DIV)
            # t * (C / s) is C * (t / s), which stands in the pool already
            good[two] &= ~(product & ((t[two, k + 1] == OVER) | (t[two, second] == OVER)))
            swap = (right < left) & ((t[two, k] == ADD) | (t[two, k] == MUL))
            key[two, k] = _mix(
                _mix(key[two, k], np.where(swap, right, left), 5), np.where(swap, left, right), 7
            )
            rows = two[swap]
            a, b = size[rows, k + 1][:, None], size[rows, second[swap]][:, None]
            source = np.where((column > k) & (column <= k + b), column + a, column)
            source = np.where((column > k + b) & (column <= k + a + b), column - b, source)
            for part in (t, size, key):
                part[rows] = np.take_along_axis(part[rows], source, 1)
    return t[:, :L].astype(np.uint8), good


def _mix(a: np.ndarray, b: np.ndarray, salt: int) -> np.ndarray:
    with np.errstate(over="ignore"):
        z = (a ^ (b * np.uint64(0xBF58476D1CE4E5B9 + 2 * salt))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(29))


def wrap_constants(tokens: np.ndarray, config: PoolConfig, rng: np.random.Generator) -> np.ndarray:
    """Up to `constants` subtrees t become C * t or C + t, where that is not another skeleton's family.

    A row's number of constants is uniform on 0 to what is left beside its `OVER` tokens; returns `[B, 2L]`.
    """
    B, L = tokens.shape
    size = _ends(tokens)
    parent = np.full((B, L), -1)
    rows = np.arange(B)
    for k in range(L):
        n = _ARITY[tokens[:, k]]
        first = rows[(n > 0)]
        if k + 1 < L:
            parent[first, k + 1] = tokens[first, k]
            both = rows[n > 1]
            parent[both, np.minimum(k + 1 + size[both, k + 1], L - 1)] = tokens[both, k]
    real = tokens > ex.END
    root = parent < 0
    times = real & ~_NO_TIMES[parent] & (tokens != OVER)
    plus = real & ~_NO_PLUS[parent]
    if not config.outer:
        times &= ~root
        plus &= ~root
    else:
        times |= real & root & (tokens != OVER)
        plus |= real & root
    spots = np.concatenate([times, plus], 1)
    left = (config.constants - (tokens == OVER).sum(1)).clip(min=0)
    wanted = (rng.random(B) * (left + 1)).astype(np.int64)
    lottery = np.where(spots, rng.random(spots.shape), 2.0)
    rank = lottery.argsort(1).argsort(1)
    chosen = (rank < wanted[:, None]) & spots
    times, plus = chosen[:, :L], chosen[:, L:]
    shift = np.cumsum(times.astype(np.int64) + plus, 1)
    out = np.zeros((B, L + 2 * config.constants), dtype=np.uint8)
    r, c = np.nonzero(real)
    at = c + shift[r, c]
    out[r, at] = tokens[r, c]
    m = times[r, c]
    out[r[m], at[m] - 1] = TIMES
    p = plus[r, c]
    out[r[p], at[p] - 1 - times[r[p], c[p]]] = PLUS
    return out


def prefix(tokens: np.ndarray) -> np.ndarray:
    """The token ids of `expressions`: TIMES, PLUS and OVER become `mul C`, `add C` and `div C`."""
    B, L = tokens.shape
    carries = tokens >= TIMES
    at = np.arange(L) + np.cumsum(carries, 1) - carries
    out = np.zeros((B, L + int(carries.sum(1).max(initial=0))), dtype=np.uint8)
    r, c = np.nonzero(tokens > ex.END)
    plain = np.arange(SIZE)
    plain[[TIMES, PLUS, OVER]] = MUL, ADD, DIV
    out[r, at[r, c]] = plain[tokens[r, c]]
    r, c = np.nonzero(carries)
    out[r, at[r, c] + 1] = ex.CONST
    used = int((out > 0).sum(1).max(initial=1))
    return out[:, :used]


def wrapped(ids: Sequence[int]) -> list[int]:
    """The inverse of `prefix` for one formula: constants beside an operator become TIMES, PLUS or OVER.

    Constants in other places (t - C, C ** t, ...) are written as their nearest relative, a lone constant is
    refused with a ValueError.
    """
    position = 0

    def build() -> list[int] | None:  # None is a constant
        nonlocal position
        token = ids[position]
        position += 1
        if token == ex.CONST:
            return None
        if token < ex.FIRST_UNARY:
            return [token]
        a = build()
        if token < ex.FIRST_BINARY:
            return None if a is None else [token, *a]
        b = build()
        if a is None and b is None:
            return None
        if a is None:
            head = {ADD: PLUS, SUB: PLUS, MUL: TIMES, DIV: OVER}[token]
            return [head, *b]
        if b is None:
            return [PLUS if token in (ADD, SUB) else TIMES, *a]
        return [token, *a, *b]

    out = build()
    if out is None:
        raise ValueError(f"{ex.decode(list(ids))!r} is a constant; it has no structure")
    return out


@lru_cache(maxsize=1)
def _probe() -> np.ndarray:
    return 0.2 + 1.6 * np.random.default_rng(20240621).random((len(ex.VARIABLES), 20))


def probe_values(tokens: np.ndarray, constants: str = "own") -> np.ndarray:
    """Values `[B, n]` on fixed points in (0.2, 1.8); constants are 1 and 0 ("neutral"), all 1 ("one"), or a fixed
    function of the subtree they stand beside ("own")."""
    if constants not in ("own", "neutral", "one"):
        raise ValueError(f"constants is {constants!r}; choose own, neutral or one")
    x = _probe()
    B, L = tokens.shape
    n = x.shape[1]
    if not B:
        return np.zeros((0, n))
    depth = L // 2 + 3
    stack = np.zeros((B, depth + 2, n))
    top = np.full(B, depth + 1)  # grows downwards; the top operand is stack[row, top]
    with np.errstate(all="ignore"):
        for k in range(L - 1, -1, -1):
            column = tokens[:, k]
            order = np.argsort(column, kind="stable")
            names, starts = np.unique(column[order], return_index=True)
            for name, rows in zip(names.tolist(), np.split(order, starts[1:]), strict=True):
                if name <= ex.END:
                    continue
                if _ARITY[name] == 0:
                    top[rows] -= 1
                    stack[rows, top[rows]] = x[name - ex.FIRST_VARIABLE]
                    continue
                a = stack[rows, top[rows]]
                if _ARITY[name] == 2:
                    top[rows] += 1
                    b = stack[rows, top[rows]]
                    value = (
                        a + b if name == ADD else a - b if name == SUB else a * b if name == MUL else a / b
                    )
                elif name >= TIMES:
                    if constants == "own":
                        c = 1.5 + 0.9 * np.sin(7.3 * a.mean(1, keepdims=True) + name)
                    else:
                        c = 0.0 if name == PLUS and constants == "neutral" else 1.0
                    value = c * a if name == TIMES else c + a if name == PLUS else c / a
                else:
                    value = _UNARY_FUNCTIONS[name](a)
                stack[rows, top[rows]] = value
        return stack[np.arange(B), np.minimum(top, depth)]


_UNARY_FUNCTIONS = {
    ex.ID["sin"]: np.sin, ex.ID["cos"]: np.cos, ex.ID["tan"]: np.tan, ex.ID["exp"]: np.exp, ex.ID["log"]: np.log,
    ex.ID["sqrt"]: np.sqrt, ex.ID["pow2"]: np.square, ex.ID["pow3"]: lambda a: a * a * a,
    ex.ID["pow4"]: lambda a: np.square(a * a), ex.ID["pow5"]: lambda a: np.square(a * a) * a,
}  # fmt: skip


def marks(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A 64-bit mark of each row of values `[B, n]` (7 digits of the largest), and which rows are usable.

    Usable: at least 60 % finite, not constant, of size 1e-6 to 1e6.
    """
    finite = np.isfinite(values)
    y = np.where(finite, values, 0.0)
    scale = np.abs(y).max(1, keepdims=True)
    usable = (finite.mean(1) >= 0.6) & (scale[:, 0] < 1e6) & (scale[:, 0] > 1e-6)
    unit = 10.0 ** np.ceil(np.log10(np.maximum(scale, 1e-300)))
    digits = np.rint(y / unit * 1e7)
    usable &= np.ptp(digits, axis=1) > 10
    weights = np.random.default_rng(7).integers(1, 2**63, (2, y.shape[1]), dtype=np.uint64) | np.uint64(1)
    with np.errstate(over="ignore", invalid="ignore"):
        whole = digits.astype(np.int64).view(np.uint64)
        mark = _mix(
            (whole * weights[0]).sum(1), (np.where(finite, 1, 2).astype(np.uint64) * weights[1]).sum(1), 1
        )
        mark = _mix(mark, np.rint(np.log10(unit[:, 0])).astype(np.int64).view(np.uint64), 9)
    return mark, usable


def structure_marks(formulas: Iterable[Sequence[int]]) -> set[int]:
    """Marks of benchmark formulas (prefix ids): their structure, and themselves with all constants 1.

    Formulas that are not defined on the probe points have no mark and are left out.
    """
    found: set[int] = set()
    rows = []
    for ids in formulas:
        try:
            rows.append(wrapped(ids))
        except ValueError:
            continue
    if not rows:
        return found
    tokens = np.zeros((len(rows), max(map(len, rows))), dtype=np.uint8)
    for k, row in enumerate(rows):
        tokens[k, : len(row)] = row
    for constants in ("neutral", "one"):
        mark, usable = marks(probe_values(tokens, constants))
        found |= set(mark[usable].tolist())
    return found


@dataclass(frozen=True)
class SkeletonPool:
    """Skeletons as tokens: `tokens` `[N, L]` uint8 prefix ids padded with 0, and the mark of each one's structure."""

    tokens: np.ndarray
    structure: np.ndarray  # [N] uint64

    def __len__(self) -> int:
        return len(self.tokens)

    def split(self, part: int = 50) -> tuple[SkeletonPool, SkeletonPool]:
        """(training, validation): one structure in `part` is validation's, with all its skeletons."""
        held = self.structure % np.uint64(part) == 0
        return (SkeletonPool(self.tokens[~held], self.structure[~held]),
                SkeletonPool(self.tokens[held], self.structure[held]))  # fmt: skip

    def save(self, path: Path) -> None:
        """As a compressed npz: tokens and marks, never points."""
        np.savez_compressed(path, tokens=self.tokens, structure=self.structure)

    @classmethod
    def load(cls, path: Path) -> SkeletonPool:
        """What `save` wrote. ValueError for another file."""
        with np.load(path) as file:
            if not {"tokens", "structure"} <= set(file.files):
                raise ValueError(f"{Path(path).name} is not a pool; it needs the arrays tokens and structure")
            return cls(file["tokens"], file["structure"])


def make(number: int, config: PoolConfig, seed: int, *, without: set[int] | frozenset[int] = frozenset(),
         batch: int = 40_000) -> SkeletonPool:  # fmt: skip
    """`number` distinct skeletons, none of them with a structure in `without` (see `structure_marks`).

    Raises:
        ValueError: when the settings do not hold that many (ten batches in a row brought nothing new).
    """
    rng = np.random.default_rng([seed, 20240621])
    banned = np.array(sorted(without), dtype=np.uint64)
    kept: list[np.ndarray] = []
    structures: list[np.ndarray] = []
    seen = np.zeros(0, dtype=np.uint64)
    have = barren = 0
    while have < number:
        tokens, good = canonical(trees(batch, config, rng))
        good &= ((tokens == OVER).sum(1) <= config.constants) & (tokens == ex.FIRST_VARIABLE).any(1)
        if not config.outer:
            good &= tokens[:, 0] != OVER
        tokens = wrap_constants(tokens[good], config, rng)
        length = (tokens > 0).sum(1) + (tokens >= TIMES).sum(1)
        tokens = tokens[length <= config.length]
        mark, usable = marks(probe_values(tokens))
        tokens, mark = tokens[usable], mark[usable]
        _, first = np.unique(mark, return_index=True)
        first = np.sort(first[~np.isin(mark[first], seen, assume_unique=False)])
        tokens, mark = tokens[first], mark[first]
        structure, usable = marks(probe_values(tokens, "neutral"))
        keep = usable & ~np.isin(structure, banned)
        if len(banned):
            one, _ = marks(probe_values(tokens, "one"))
            keep &= ~np.isin(one, banned)
        seen = np.concatenate([seen, mark])
        out = prefix(tokens[keep])
        wide = np.zeros((len(out), config.length), dtype=np.uint8)
        wide[:, : out.shape[1]] = out
        kept.append(wide)
        structures.append(structure[keep])
        have += len(wide)
        barren = 0 if len(wide) else barren + 1
        if barren == 10:
            raise ValueError(
                f"{number} skeletons asked for, but {config} seems to hold only about {have}; allow more operators "
                "or constants, or ask for fewer"
            )
    return SkeletonPool(np.concatenate(kept)[:number], np.concatenate(structures)[:number])
