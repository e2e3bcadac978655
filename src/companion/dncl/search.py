"""From points to a formula: syntax-constrained beam search, batched constant fitting, selection.

Beam search and fitted constants are those of NeSymReS (Biggio et al. 2021), which fits by BFGS and selects by training
error; BIC is ours. Shape letters: P problems, W beams, L tokens, V vocabulary, N candidates, R restarts,
C constants, n points.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from companion.dncl import expressions as ex
from companion.dncl.data import Problem
from companion.dncl.model import DNCL
from companion.training import generator as random_stream


@dataclass(frozen=True)
class SearchConfig:
    """Inference settings."""

    beam: int = 16  # W
    restarts: int = 4  # R, random starts of the constants
    iterations: int = 25  # Levenberg-Marquardt steps
    selection: str = "bic"  # bic or mse
    length_cost: float = 0.5  # c in BIC: every token counts c of a constant

    def __post_init__(self) -> None:
        if self.selection not in ("bic", "mse"):
            raise ValueError(f"selection is {self.selection!r}; choose bic or mse")


def allowed(tokens: Tensor, open_places: Tensor, length: int, variables: int) -> Tensor:
    """Which next tokens keep a prefix completable: `[N, V]` booleans.

    A leaf closes a place, a unary operator keeps it, a binary one opens another; no more places may be open
    than tokens are left. A finished formula is followed by the end token, then by padding.

    Args:
        tokens: `[N, t]` ids so far, starting with START.
        open_places: `[N]` places still to fill.
        length: most tokens of a formula.
        variables: variables of the problem; later ones are not allowed.
    """
    arity = ex.ARITY.to(tokens.device)
    left = length - (tokens.shape[1] - 1)
    after = open_places[:, None] + arity[None, :] - 1
    ok = (open_places[:, None] > 0) & (after <= left - 1)
    ok[:, : ex.CONST] = False
    ok[:, ex.FIRST_VARIABLE + variables : ex.FIRST_UNARY] = False
    done = open_places == 0
    last = tokens[:, -1]
    finished = (last == ex.END) | (last == ex.PAD)
    ok[:, ex.END] = done & ~finished
    ok[:, ex.PAD] = finished
    return ok


@torch.no_grad()
def beam_search(model: DNCL, points: Tensor, mask: Tensor, width: int, variables: int | None = None) -> list[list[tuple[list[int], float]]]:  # fmt: skip
    """The `width` most probable skeletons of each of P data sets, all valid by construction.

    Args:
        points: `[P, n, D + 1]`, mask `[P, n]`.

    Returns:
        Per data set a list of (prefix ids, log-probability / (tokens + 1)), best first.
    """
    P, W, length = len(points), width, model.config.length
    variables = variables or model.config.variables
    device = points.device
    memory, _ = model.encode(points, mask)
    memory = memory.repeat_interleave(W, 0)
    tokens = torch.full((P * W, 1), ex.START, device=device)
    places = torch.ones(P * W, dtype=torch.long, device=device)
    # only the first beam of each problem is alive at the start
    score = torch.full((P, W), -math.inf, device=device)
    score[:, 0] = 0
    arity = ex.ARITY.to(device)
    for _ in range(length + 1):
        logits = model.decoder(tokens, memory)[:, -1].float()
        ok = allowed(tokens, places, length, variables)
        logp = logits.masked_fill(~ok, -math.inf).log_softmax(-1)
        logp = torch.where(ok, logp, -math.inf)
        total = score.view(P * W, 1) + logp
        score, best = total.view(P, -1).topk(W)
        V = logits.shape[1]
        parent = (best // V + torch.arange(P, device=device)[:, None] * W).flatten()
        token = (best % V).flatten()
        tokens = torch.cat([tokens[parent], token[:, None]], 1)
        grow = torch.where(token > ex.END, arity[token] - 1, torch.zeros_like(token))
        places = places[parent] + grow
    out = []
    for row, marks in zip(tokens.view(P, W, -1).tolist(), score.tolist(), strict=True):
        found = {}
        for ids, mark in zip(row, marks, strict=True):
            body = [t for t in ids if t > ex.END]
            if mark > -math.inf and ex.complete(body):
                found.setdefault(tuple(body), mark / (len(body) + 1))
        out.append(sorted(((list(k), v) for k, v in found.items()), key=lambda kv: -kv[1]))
    return out


def fit_constants(tokens: Tensor, x: Tensor, y: Tensor, weight: Tensor, *, restarts: int, iterations: int,
                  seed: int) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Least squares for the constants of all candidates and restarts at once (Levenberg-Marquardt, float64).

    The Jacobian comes from forward-mode differentiation of the evaluator, one pass per constant.

    Args:
        tokens: `[N, L]` candidates. x: `[N, n, D]`, y: `[N, n]`, weight: `[N, n]` (0 leaves a point out).

    Returns:
        Constants `[N, C]` and mean weighted squared error `[N]` (infinite where no start gave a finite value).
    """
    N = len(tokens)
    C = int((tokens == ex.CONST).sum(1).max())
    x, y, weight = x.double(), y.double(), weight.double()
    total = weight.sum(1)
    if C == 0:
        r = (ex.evaluate(tokens, x.new_zeros(N, 1), x) - y) * weight.sqrt()
        mse = r.square().sum(1) / total
        return x.new_zeros(N, 1), torch.where(mse.isfinite(), mse, torch.inf)
    starts = torch.randn(restarts, C, generator=random_stream(seed, "constants"), dtype=torch.float64).to(
        x.device
    )
    starts[0] = 1.0
    c = starts[None].expand(N, -1, -1).reshape(N * restarts, C).clone()
    big = lambda t: t.repeat_interleave(restarts, 0)  # noqa: E731
    t, X, Y, w = big(tokens), big(x), big(y), big(weight).sqrt()
    kept = big(weight) > 0

    def residual(constants: Tensor) -> Tensor:
        return torch.where(kept, (ex.evaluate(t, constants, X) - Y) * w, 0.0)

    def cost(r: Tensor) -> Tensor:
        s = r.square().sum(1)
        return torch.where(s.isfinite(), s, torch.inf)

    damping = torch.full((len(c),), 1e-2, dtype=torch.float64, device=x.device)
    basis = torch.eye(C, dtype=torch.float64, device=x.device)
    r = residual(c)
    now = cost(r)
    for _ in range(iterations):
        columns = [torch.func.jvp(residual, (c,), (e.expand_as(c).contiguous(),))[1] for e in basis]
        J = torch.stack(columns, -1)  # [N·R, n, C]
        J = torch.where(J.isfinite(), J, 0.0)
        g = J.transpose(1, 2) @ torch.where(r.isfinite(), r, 0.0)[..., None]
        H = J.transpose(1, 2) @ J
        diagonal = H.diagonal(dim1=1, dim2=2)
        A = H + torch.diag_embed(damping[:, None] * (diagonal + 1e-8) + 1e-12)
        step = torch.linalg.solve_ex(A, g)[0][..., 0]
        tried = c - torch.where(step.isfinite(), step, 0.0)
        r_new = residual(tried)
        new = cost(r_new)
        better = new < now
        c = torch.where(better[:, None], tried, c)
        r = torch.where(better[:, None], r_new, r)
        now = torch.where(better, new, now)
        damping = torch.where(better, damping / 5, damping * 4).clamp(1e-12, 1e12)
    now, which = now.view(N, restarts).min(1)
    c = c.view(N, restarts, C)[torch.arange(N), which]
    return c, now / total


@dataclass(frozen=True)
class Candidate:
    """A fitted formula."""

    tokens: tuple[int, ...]
    constants: tuple[float, ...]
    mse: float
    score: float  # what selection minimises

    @property
    def formula(self):
        """As a sympy expression with its fitted constants."""
        return ex.to_sympy(list(self.tokens), list(self.constants))


def criterion(mse: float, n: int, constants: int, length: int, config: SearchConfig) -> float:
    """n log(MSE) + (p + c · length) log(n), or the MSE itself.

    Under noise the training error alone picks the longest candidate.
    """
    if config.selection == "mse":
        return mse
    return n * math.log(max(mse, 1e-24)) + (constants + config.length_cost * length) * math.log(n)


def fit_problems(
    model: DNCL, problems: list[Problem], config: SearchConfig, seed: int
) -> list[list[Candidate]]:
    """Candidates of every problem, best first: encode, search, fit constants, select.

    All problems must have the same number of points. Problems with fewer variables than the model get zeros in
    the missing columns.
    """
    D = model.config.variables
    x = torch.stack([torch.nn.functional.pad(p.x, (0, D - p.x.shape[1])) for p in problems])  # [P, n, D]
    y = torch.stack([p.y for p in problems])
    device = next(model.parameters()).device
    points = torch.cat([x, y[..., None]], -1).float().to(device)
    found: list[list[list[int]]] = [[] for _ in problems]
    for d in sorted({p.x.shape[1] for p in problems}):
        rows = [k for k, p in enumerate(problems) if p.x.shape[1] == d]
        mask = torch.ones(len(rows), x.shape[1], dtype=torch.bool, device=device)
        for k, beams in zip(rows, beam_search(model, points[rows], mask, config.beam, d), strict=True):
            found[k] = [ids for ids, _ in beams]
    owner = [k for k, beams in enumerate(found) for _ in beams]
    flat = [ids for beams in found for ids in beams]
    if not flat:
        return [[] for _ in problems]
    # candidates with equally many constants are fitted together: no padding in the normal equations
    out: list[list[Candidate]] = [[] for _ in problems]
    by_constants: dict[int, list[int]] = {}
    for k, ids in enumerate(flat):
        by_constants.setdefault(ids.count(ex.CONST), []).append(k)
    n = x.shape[1]
    for p, rows in by_constants.items():
        own = torch.tensor([owner[k] for k in rows])
        tokens = ex.batch([flat[k] for k in rows])
        c, mse = fit_constants(tokens, x[own], y[own], torch.ones(len(rows), n), restarts=config.restarts,
                               iterations=config.iterations, seed=seed)  # fmt: skip
        for k, constants, error in zip(rows, c.tolist(), mse.tolist(), strict=True):
            if math.isfinite(error):
                ids = flat[k]
                mark = criterion(error, n, p, len(ids), config)
                out[owner[k]].append(Candidate(tuple(ids), tuple(constants[:p]), error, mark))
    return [sorted(candidates, key=lambda one: one.score) for candidates in out]
