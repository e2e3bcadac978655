"""Formulas as prefix (pre-order) token sequences, and one tensor program that evaluates a batch of them.

Shape letters: B formulas, L tokens, C constants, n points, D variables, s stack depth.

Token ids are fixed: checkpoints and stored pools depend on them.
"""

from __future__ import annotations

import sympy
import torch

PAD, START, END, CONST = 0, 1, 2, 3
VARIABLES = ("x1", "x2", "x3")
SYMBOLS = tuple(sympy.Symbol(v, real=True) for v in VARIABLES)
UNARY = ("sin", "cos", "tan", "exp", "log", "sqrt", "pow2", "pow3", "pow4", "pow5")
BINARY = ("add", "sub", "mul", "div")
TOKENS = ("<pad>", "<start>", "<end>", "C", *VARIABLES, *UNARY, *BINARY)
ID = {name: k for k, name in enumerate(TOKENS)}
FIRST_VARIABLE, FIRST_UNARY, FIRST_BINARY = ID["x1"], ID["sin"], ID["add"]
# how many operands a token takes
ARITY = torch.tensor([0] * FIRST_UNARY + [1] * len(UNARY) + [2] * len(BINARY))


def encode(names: str) -> list[int]:
    """Token ids of a formula written with spaces, e.g. "add C sin x1". ValueError for an unknown token."""
    try:
        return [ID[name] for name in names.split()]
    except KeyError as error:
        raise ValueError(f"{error.args[0]!r} is not a token; known are {' '.join(TOKENS[3:])}") from None


def decode(ids: list[int]) -> str:
    """The inverse of `encode`; stops at the end token and skips padding."""
    words = []
    for k in ids:
        if k == END:
            break
        if k > START:
            words.append(TOKENS[k])
    return " ".join(words)


def complete(ids: list[int]) -> bool:
    """Whether `ids` (no start, end or padding) is exactly one formula: the count of open places hits 0 last."""
    open_places = 1
    for k, token in enumerate(ids):
        if token <= END:
            return False
        open_places += int(ARITY[token]) - 1
        if open_places == 0:
            return k == len(ids) - 1
    return False


def batch(formulas: list[list[int]], length: int | None = None) -> torch.Tensor:
    """Token ids `[B, L]`, padded on the right with PAD."""
    length = length or max(map(len, formulas))
    out = torch.full((len(formulas), length), PAD)
    for row, ids in zip(out, formulas, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return out


def evaluate(tokens: torch.Tensor, constants: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Values of B formulas on n points each, as one tensor program without host synchronisation.

    The tokens are read from right to left with a stack whose top is row 0. At every position all operators
    are computed for the whole batch and the one that the token names is selected, so nothing depends on the
    data and the same program runs on CPU and GPU, and under forward-mode differentiation.

    Args:
        tokens: `[B, L]` prefix ids, padded with PAD (start and end tokens count as padding).
        constants: `[B, C]`; the k-th CONST of a formula, from the left, takes the k-th column.
        x: `[B, n, D]` points.

    Returns:
        `[B, n]`; NaN or infinite where the formula is not defined (log of a negative number, ...).
    """
    B, L = tokens.shape
    n, D = x.shape[1:]
    zero = x.new_zeros(B, 1, n)
    is_const = tokens == CONST
    which = (is_const.cumsum(1) - 1).clamp(0, constants.shape[1] - 1)
    value_of_const = constants.gather(1, which)  # [B, L]
    padded_x = x.transpose(1, 2)  # [B, D, n]
    depth = L // 2 + 2  # a binary formula of L tokens has at most (L + 1) / 2 leaves
    stack = x.new_zeros(B, depth, n)
    for k in range(L - 1, -1, -1):
        token = tokens[:, k].view(B, 1, 1)
        a, b = stack[:, :1], stack[:, 1:2]
        column = (tokens[:, k] - FIRST_VARIABLE).clamp(0, D - 1).view(B, 1, 1).expand(B, 1, n)
        leaf = torch.where(token == CONST, value_of_const[:, k].view(B, 1, 1), padded_x.gather(1, column))
        square = a * a
        # selecting by arithmetic-free where keeps NaN of the operators not chosen out of the result
        one = torch.sin(a)
        for name, value in (
            ("cos", torch.cos(a)), ("tan", torch.tan(a)), ("exp", torch.exp(a)), ("log", torch.log(a)),
            ("sqrt", torch.sqrt(a)), ("pow2", square), ("pow3", square * a), ("pow4", square * square),
            ("pow5", square * square * a),
        ):  # fmt: skip
            one = torch.where(token == ID[name], value, one)
        two = torch.where(token == ID["sub"], a - b, a + b)
        two = torch.where(token == ID["mul"], a * b, two)
        two = torch.where(token == ID["div"], a / b, two)
        pushed = torch.cat([leaf, stack[:, :-1]], 1)
        replaced = torch.cat([one, stack[:, 1:]], 1)
        popped = torch.cat([two, stack[:, 2:], zero], 1)
        nxt = torch.where(token >= FIRST_BINARY, popped, torch.where(token >= FIRST_UNARY, replaced, pushed))
        stack = torch.where(token <= END, stack, nxt)
    return stack[:, 0]


def to_sympy(ids: list[int], constants: list[float] | None = None) -> sympy.Expr:
    """The formula as a sympy expression; constants become c0, c1, ... unless given.

    Raises ValueError when `ids` is not one complete formula.
    """
    if not complete(ids):
        raise ValueError(f"{decode(ids)!r} is not one complete prefix formula")
    position, seen = 0, 0

    def build() -> sympy.Expr:
        nonlocal position, seen
        token = ids[position]
        name = TOKENS[token]
        position += 1
        if token == CONST:
            seen += 1
            return sympy.Symbol(f"c{seen - 1}") if constants is None else sympy.Float(constants[seen - 1])
        if token < FIRST_UNARY:
            return SYMBOLS[token - FIRST_VARIABLE]
        a = build()
        if name.startswith("pow"):
            return a ** int(name[3:])
        if token < FIRST_BINARY:
            return getattr(sympy, name)(a)
        b = build()
        return {"add": a + b, "sub": a - b, "mul": a * b, "div": a / b}[name]

    return build()


def from_sympy(expression: sympy.Expr | str) -> list[int]:
    """Prefix ids of a sympy expression; every number that is not an exponent becomes CONST (1 and -1 by rule).

    Raises ValueError where an operator has no token.
    """
    expression = sympy.sympify(expression, locals=dict(zip(VARIABLES, SYMBOLS, strict=True)))

    def walk(e: sympy.Expr) -> list[int]:
        if e.is_Symbol:
            return [CONST] if str(e).startswith("c") else encode(str(e))
        if e.is_number:
            return [CONST]
        if e.func is sympy.Pow:
            base, power = e.args
            if power == sympy.Rational(1, 2):
                return [ID["sqrt"], *walk(base)]
            if power.is_Integer and 2 <= int(power) <= 5:
                return [ID[f"pow{power}"], *walk(base)]
            if power.is_Integer and int(power) == 6:
                return [ID["pow2"], ID["pow3"], *walk(base)]
            if power.is_Integer and int(power) < 0:
                return [ID["div"], CONST, *walk(base**-power)]
            if (base.free_symbols and not power.is_number) or power.is_number:
                return [ID["exp"], ID["mul"], *walk(power), ID["log"], *walk(base)]
        if e.func in (sympy.Add, sympy.Mul):
            head, *rest = e.as_ordered_terms() if e.func is sympy.Add else e.as_ordered_factors()
            out = walk(head)
            for part in rest:
                if e.func is sympy.Add and part.could_extract_minus_sign():
                    out = [ID["sub"], *out, *walk(-part)]
                elif e.func is sympy.Mul and part.func is sympy.Pow and part.args[1].is_negative:
                    out = [ID["div"], *out, *walk(1 / part)]
                else:
                    out = [ID["add" if e.func is sympy.Add else "mul"], *out, *walk(part)]
            return out
        if e.func.__name__ in UNARY:
            return [ID[e.func.__name__], *walk(e.args[0])]
        raise ValueError(
            f"{e.func.__name__} in {expression} has no token; known are {' '.join(UNARY + BINARY)}"
        )

    return walk(expression)
