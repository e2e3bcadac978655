"""The constants of many formulas at once: a compiled batch, and Levenberg-Marquardt with variable projection.

`Program` turns a list of formulas into a schedule of tensor operations: subtrees without constants are shared by
all formulas and evaluated once per data set; the others are evaluated level by level, one operation per operator.
The derivatives by all constants come from one pass in reverse, at every point at once. Nothing in `Program.run`
depends on the data, so a GPU never waits for the host.

`fit` finds the constants of all formulas and all starts together, in float64. Constants that enter linearly
(`C * t` and `C` in a sum) are not searched for: for given inner constants they have a closed form (variable
projection; Golub and Pereyra 1973, in Kaufman's form), so that only the others need a start.

Shape letters: N formulas, R starts, C constants, n points, D variables, M nodes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from companion.dncl import expressions as ex

# what deadlines are read on; `peers.cpu_time` puts this process's CPU time in its place
clock = time.monotonic
_NAME = ex.TOKENS
_ARITY = ex.ARITY.tolist()


def _forward(name: str, a: Tensor, b: Tensor | None) -> Tensor:
    if name == "add":
        return a + b
    if name == "sub":
        return a - b
    if name == "mul":
        return a * b
    if name == "div":
        return a / b
    if name.startswith("pow"):
        return a ** int(name[3:])
    return getattr(torch, name)(a)


def _derivatives(name: str, a: Tensor, b: Tensor | None, value: Tensor) -> tuple[Tensor, Tensor | None]:
    """Partial derivatives by the first and the second operand."""
    if name == "add":
        return torch.ones_like(value), torch.ones_like(value)
    if name == "sub":
        return torch.ones_like(value), -torch.ones_like(value)
    if name == "mul":
        return b, a
    if name == "div":
        return 1 / b, -value / b
    if name.startswith("pow"):
        k = int(name[3:])
        return k * a ** (k - 1), None
    return {
        "sin": lambda: torch.cos(a), "cos": lambda: -torch.sin(a), "tan": lambda: 1 + value * value,
        "exp": lambda: value, "log": lambda: 1 / a, "sqrt": lambda: 0.5 / value,
    }[name](), None  # fmt: skip


@dataclass(frozen=True)
class _Group:
    """Nodes `start:stop` of one level, all with the operator `name`; `a` and `b` are their operands' numbers.

    `a_rows`/`b_rows` are the places in the group whose operand depends on a constant.
    """

    name: str
    start: int
    stop: int
    a: Tensor
    b: Tensor | None
    a_rows: Tensor
    b_rows: Tensor


class Program:
    """A compiled batch of formulas.

    Args:
        formulas: prefix ids, each complete (ValueError otherwise).
        x: points `[n, D]` in float64; variables beyond D are refused with a ValueError.
    """

    def __init__(self, formulas: Sequence[Sequence[int]], x: Tensor) -> None:
        self.x = x
        self.count = [sum(t == ex.CONST for t in ids) for ids in formulas]
        self.constants = max(1, max(self.count, default=1))
        device, D = x.device, x.shape[1]
        # (level, token, key, operand keys); constant-free subtrees are shared through their token tuple as key
        nodes: dict[object, tuple[int, int, object, object]] = {}
        roots: list[object] = []
        free: set[object] = set()
        for f, ids in enumerate(formulas):
            stack: list[object] = []
            seen = self.count[f]
            for at in range(len(ids) - 1, -1, -1):
                token = ids[at]
                if token == ex.CONST:
                    seen -= 1
                    key: object = (f, -1 - seen)
                    nodes[key] = (0, token, None, None)
                    stack.append(key)
                    continue
                arity = _ARITY[token]
                if len(stack) < arity:
                    raise ValueError(f"{ex.decode(list(ids))!r} is not one complete prefix formula")
                a = stack.pop() if arity > 0 else None
                b = stack.pop() if arity > 1 else None
                if (a is None or a in free) and (b is None or b in free):
                    key = ("s", token, a, b)
                    free.add(key)
                    if arity == 0 and token - ex.FIRST_VARIABLE >= D:
                        raise ValueError(f"{_NAME[token]} is in a formula, but there are {D} columns of x")
                else:
                    key = (f, at)
                if key not in nodes:
                    level = 1 + max(
                        nodes[a][0] if a is not None else -1, nodes[b][0] if b is not None else -1
                    )
                    nodes[key] = (level, token, a, b)
                stack.append(key)
            if len(stack) != 1:
                raise ValueError(f"{ex.decode(list(ids))!r} is not one complete prefix formula")
            roots.append(stack[0])
        order = sorted(nodes, key=lambda k: (k not in free, nodes[k][0], nodes[k][1]))
        place = {key: k for k, key in enumerate(order)}
        self.nodes = len(order)
        self.root = torch.tensor([place[k] for k in roots], device=device)
        leaf = [[place[(f, -1 - k)] if k < n else self.nodes for k in range(self.constants)]
                for f, n in enumerate(self.count)]  # fmt: skip
        self.leaf = torch.tensor(leaf, device=device)  # [N, C]; the number of nodes stands for "none"
        self.used = self.leaf < self.nodes
        self.shared = torch.zeros(len(free), len(x), dtype=torch.float64, device=device)
        self.groups: list[_Group] = []
        start = 0
        while start < len(order):
            level, token = nodes[order[start]][:2]
            is_free = order[start] in free
            stop = start
            while (
                stop < len(order)
                and nodes[order[stop]][:2] == (level, token)
                and (order[stop] in free) == is_free
            ):
                stop += 1
            members = order[start:stop]
            a = torch.tensor([place.get(nodes[k][2], 0) for k in members], device=device)
            b = (
                torch.tensor([place.get(nodes[k][3], 0) for k in members], device=device)
                if _ARITY[token] > 1
                else None
            )
            if is_free:
                if _ARITY[token] == 0:
                    self.shared[start:stop] = x[:, token - ex.FIRST_VARIABLE]
                else:
                    self.shared[start:stop] = _forward(
                        _NAME[token], self.shared[a], self.shared[b] if b is not None else None
                    )
            elif token != ex.CONST:
                depends = [[k for k, key in enumerate(members) if nodes[key][p] not in free] for p in (2, 3)]
                a_rows, b_rows = (torch.tensor(d, dtype=torch.long, device=device) for d in depends)
                self.groups.append(_Group(_NAME[token], start, stop, a, b, a_rows, b_rows))
            start = stop

    def run(self, c: Tensor, derivatives: bool = True) -> tuple[Tensor, Tensor | None]:
        """Values `[N, R, n]` and derivatives by the constants `[N, R, C, n]` for constants `[N, R, C]`."""
        _N, R, _C = c.shape
        n = len(self.x)
        v = torch.empty(self.nodes, R, n, dtype=torch.float64, device=c.device)
        v[: len(self.shared)] = self.shared[:, None]
        v[self.leaf[self.used]] = c.transpose(1, 2)[self.used][..., None].expand(-1, -1, n)
        for g in self.groups:
            v[g.start : g.stop] = _forward(g.name, v[g.a], v[g.b] if g.b is not None else None)
        value = v[self.root]
        if not derivatives:
            return value, None
        # a node with a constant has one parent only: its adjoint is set once, never added to
        adjoint = torch.zeros(self.nodes + 1, R, n, dtype=torch.float64, device=c.device)
        adjoint[self.root] = 1.0
        adjoint[: len(self.shared)] = 0.0
        for g in reversed(self.groups):
            b = v[g.b] if g.b is not None else None
            by_a, by_b = _derivatives(g.name, v[g.a], b, v[g.start : g.stop])
            up = adjoint[g.start : g.stop]
            adjoint[g.a[g.a_rows]] = (up * by_a)[g.a_rows]
            if g.b is not None:
                adjoint[g.b[g.b_rows]] = (up * by_b)[g.b_rows]
        adjoint[self.nodes] = 0.0
        return value, adjoint[self.leaf].transpose(1, 2)


def linear(ids: Sequence[int]) -> tuple[list[bool], list[int]]:
    """Which constants enter linearly, and for every other one the number of the linear constant that multiplies
    the term it stands in (-1: none)."""
    flags: list[bool] = []
    owner: list[int] = []
    position = 0

    def walk(top: bool, coefficient: int) -> None:
        nonlocal position
        token = ids[position]
        position += 1
        if token == ex.CONST:
            flags.append(top and coefficient < 0)
            owner.append(-1 if top and coefficient < 0 else coefficient)
            return
        name = _NAME[token]
        if name in ("mul", "div") and top and coefficient < 0 and ids[position] == ex.CONST:
            k = len(flags)
            walk(True, -1)
            walk(False, k)
        elif _ARITY[token]:
            keep = top and coefficient < 0 and name in ("add", "sub")
            for _ in range(_ARITY[token]):
                walk(keep, coefficient)

    walk(True, -1)
    return flags, owner


@dataclass(frozen=True)
class Fits:
    """Fitted constants `[N, C]` (unused columns 0), weighted sums of squares `[N]` (inf: none finite), and the
    inverse of J'J `[N, C, C]`, whose diagonal times the noise variance is the constants' variance."""

    constants: np.ndarray
    sse: np.ndarray
    covariance: np.ndarray


_WAVES = frozenset(ex.ID[t] for t in ("sin", "cos"))


def starts(
    ids: Sequence[int], number: int, rng: np.random.Generator, spans: Sequence[float] = ()
) -> np.ndarray:
    """`[number, C]`: neutral values first (1 beside mul and div, 0 beside add), then random ones.

    A factor on a variable directly inside a sine or cosine (or beside a phase in there) is a frequency, whose least
    squares has a minimum for every other turn: it starts on a grid of half turns over the variable's range (`spans`,
    one per variable).
    """
    out = []
    for at, token in enumerate(ids):
        if token == ex.CONST:
            added = at > 0 and _NAME[ids[at - 1]] in ("add", "sub")
            following = ids[at + 1] - ex.FIRST_VARIABLE if at + 1 < len(ids) else -1
            phased = (
                at > 3 and ids[at - 4] in _WAVES and _NAME[ids[at - 3]] == "add" and ids[at - 2] == ex.CONST
            )
            inside = at > 1 and (ids[at - 2] in _WAVES or phased)
            if inside and not added and 0 <= following < len(spans):
                wild = (0.5 + 0.75 * np.arange(number)) * math.pi / spans[following]
                wild = wild if not out else rng.permutation(wild)
                wild[0] = 1.0
            elif added:
                wild = rng.normal(0, 2, number)
                wild[0] = 0.0
                if number > 1:
                    wild[1] = 1.0
            else:
                wild = rng.choice([-1, 1, 1], number) * np.exp(rng.normal(0, 1.2, number))
                wild[0] = 1.0
            out.append(wild)
    return np.array(out).T if out else np.zeros((number, 0))


def fit(formulas: Sequence[Sequence[int]], x: Tensor, y: Tensor, weight: Tensor | None = None, *, restarts: int = 4,
        iterations: int = 20, seed: int = 0, guesses: Sequence[Sequence[float] | None] | None = None,
        fixed: Sequence[Sequence[bool]] | None = None, deadline: float = math.inf, chunk: int = 4_000_000) -> Fits:  # fmt: skip
    """Weighted least squares for the constants of all formulas at once.

    Args:
        x, y, weight: points `[n, D]`, targets `[n]`, and weights `[n]` (1 / sigma^2 up to a factor).
        guesses: per formula constants to start from, in place of the neutral start.
        fixed: per formula which constants stay at their guess.
        deadline: `clock()` value after which no further chunk or iteration begins.
        chunk: most node values (nodes x starts x points) held at once.
    """
    x, y = x.double(), y.double()
    weight = torch.ones_like(y) if weight is None else weight.double()
    N, n = len(formulas), len(y)
    C = max(1, max((sum(t == ex.CONST for t in f) for f in formulas), default=1))
    out = Fits(np.zeros((N, C)), np.full(N, np.inf), np.zeros((N, C, C)))
    # formulas with equally many constants together, none of them padded
    by_number: dict[tuple[int, bool], list[int]] = {}
    for k, f in enumerate(formulas):
        flags = linear(f)[0]
        held = fixed[k] if fixed is not None else [False] * len(flags)
        inner = any(not a and not b for a, b in zip(flags, held, strict=True))
        by_number.setdefault((len(flags), inner), []).append(k)
    for (number, inner), rows in sorted(by_number.items()):
        R = restarts if inner else 1
        step = max(1, chunk // (16 * R * n))
        for at in range(0, len(rows), step):
            if clock() > deadline:
                return out
            part = rows[at : at + step]
            c, sse, cov = _fit_equal([formulas[k] for k in part], x, y, weight, R, iterations if inner else 0, seed,
                                     [guesses[k] if guesses is not None else None for k in part],
                                     [fixed[k] if fixed is not None else None for k in part], deadline)  # fmt: skip
            out.constants[part, :number], out.sse[part] = c[:, :number], sse
            out.covariance[np.ix_(part, range(number), range(number))] = cov[:, :number, :number]
    return out


def _solve(A: Tensor, g: Tensor) -> Tensor:
    """A step from the normal equations `[..., C, C]`; columns that nothing depends on are left where they are."""
    scale = A.diagonal(dim1=-2, dim2=-1).clamp(min=1e-280).sqrt()
    scaled = A / (scale[..., None, :] * scale[..., :, None])
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device)
    return torch.linalg.solve_ex(scaled + 1e-11 * eye, (g / scale)[..., None])[0][..., 0] / scale


def _fit_equal(formulas, x, y, weight, R, iterations, seed, guesses, fixed, deadline):
    """`fit` for formulas with equally many constants; all have inner ones, or none (then `iterations` is 0)."""
    device, N = x.device, len(formulas)
    program = Program(formulas, x)
    C = program.constants
    rng = np.random.default_rng(seed)
    spans = (x.max(0).values - x.min(0).values).clamp(min=1e-12).tolist()
    begin = np.zeros((N, R, C))
    lin = np.zeros((N, C), dtype=bool)
    held = np.zeros((N, C), dtype=bool)
    owner = np.full((N, C), -1)
    for k, f in enumerate(formulas):
        p = program.count[k]
        begin[k, :, :p] = starts(f, R, rng, spans)
        lin[k, :p], owner[k, :p] = linear(f)
        if guesses[k] is not None:
            begin[k, 0, :p] = guesses[k]
        if fixed[k] is not None:
            held[k, :p] = fixed[k]
            begin[k, :, :p] = np.where(held[k, :p], np.asarray(guesses[k], dtype=float), begin[k, :, :p])
    c = torch.from_numpy(begin).to(device)
    lin_free = torch.from_numpy(lin & ~held).to(device)
    free = torch.from_numpy(~held).to(device) & program.used
    own = torch.from_numpy(owner).to(device)
    root = weight.sqrt()

    def look(c: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Linear constants at their best for the others: constants, residuals, derivatives, cost."""
        value, J = program.run(c)
        r = (y - value) * root
        J = torch.nan_to_num(J * root, 0.0, 0.0, 0.0) * free[:, None, :, None]
        sound = torch.isfinite(r).all(-1)
        r = torch.where(sound[..., None], r, 0.0)
        L = J * lin_free[:, None, :, None]
        H = L @ L.transpose(-1, -2)
        H = H + torch.diag_embed((~lin_free[:, None, :]).double().expand(-1, R, -1))
        step = torch.nan_to_num(_solve(H, (L @ r[..., None])[..., 0]), 0.0, 0.0, 0.0) * lin_free[:, None]
        after = c + step
        r = r - (step[..., None, :] @ L)[..., 0, :]
        # the derivative by an inner constant is proportional to its term's factor
        mine = own[:, None, :].clamp(min=0).expand(-1, R, -1)
        old, new = c.gather(2, mine), after.gather(2, mine)
        ratio = torch.where((own[:, None] >= 0) & (old.abs() > 1e-12), new / old, 1.0)
        J = J * ratio[..., None]
        cost = torch.where(sound, r.square().sum(-1), torch.inf)
        return after, r, J, torch.where(torch.isfinite(cost), cost, torch.inf)

    c, r, J, cost = look(c)
    damping = torch.full_like(cost, 1e-2)
    inner = (free & ~lin_free)[:, None, :].double()
    tiny = 1e-28 * float((weight * (y - y.mean()).square()).sum()) + 1e-300
    for k in range(iterations):
        if clock() > deadline:
            break
        H = J @ J.transpose(-1, -2)
        diagonal = H.diagonal(dim1=-2, dim2=-1)
        H = H + torch.diag_embed(damping[..., None] * diagonal * inner + (~free[:, None]).double())
        step = torch.nan_to_num(_solve(H, (J @ r[..., None])[..., 0]), 0.0, 0.0, 0.0) * free[:, None]
        c2, r2, J2, cost2 = look(c + step)
        better = cost2 < cost
        gain = torch.where(better, cost - cost2, 0.0)
        c = torch.where(better[..., None], c2, c)
        r = torch.where(better[..., None], r2, r)
        J = torch.where(better[..., None, None], J2, J)
        old = cost
        cost = torch.where(better, cost2, cost)
        damping = torch.where(better, damping / 6, damping * 5).clamp(1e-12, 1e10)
        # looking at the costs makes the host wait for a GPU, so not at every step
        if k % 4 == 3 and bool(
            ((gain < 1e-10 * old) & (damping > 1e3) | (cost < tiny) | ~torch.isfinite(cost)).all()
        ):
            break
    best = cost.argmin(1)
    row = torch.arange(N, device=device)
    c, cost, J = c[row, best], cost[row, best], J[row, best]
    H = J @ J.transpose(-1, -2)
    scale = H.diagonal(dim1=-2, dim2=-1).clamp(min=1e-280).sqrt()
    both = scale[..., None, :] * scale[..., :, None]
    H = H / both + torch.diag_embed((~free).double())
    cov = torch.linalg.pinv(torch.nan_to_num(H), hermitian=True) / both * (free[:, None] & free[..., None])
    return c.cpu().numpy(), cost.cpu().numpy(), torch.nan_to_num(cov).cpu().numpy()
