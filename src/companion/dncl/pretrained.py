"""One training recipe in three sizes, and the network that is shipped with the package.

    python -m companion.dncl.pretrained train small FOLDER --minutes 9     # repeat until it says "finished"
    python -m companion.dncl.pretrained export small FOLDER OUT            # EMA weights and their record

The network learns *cores*: skeletons without a factor and a summand around the whole formula, because those two
are always found by least squares afterwards (`companion.dncl.constants`). Every batch is drawn anew from a pool
of skeletons (`companion.dncl.pools`); what is stored is tokens, never points.

Shape letters: B data sets, n points, D variables, L tokens, C constants.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from companion import records, training
from companion.dncl import expressions as ex
from companion.dncl import metrics, pools, suites
from companion.dncl.data import Views
from companion.dncl.model import DNCL, LossConfig, ModelConfig, dncl_loss

SHIPPED = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class StreamConfig:
    """How the data sets of a training are drawn; the paper's own choices are not known."""

    points: tuple[int, int] = (
        16,
        40,
    )  # fewest and most points; one number per batch, so that nothing is padding
    radius: tuple[float, float] = (1.0, 5.0)  # r is log-uniform here
    ranges: tuple[float, float, float] = (0.45, 0.4, 0.15)  # chances of x in (-r, r), (0, r), (r / 5, r)
    multiplier: tuple[float, float] = (0.3, 4.0)  # |C| of C * t and C / t, log-uniform
    negative: float = 0.3  # share of negative multipliers
    summand: float = 3.0  # C of C + t is U(-summand, summand)
    affine: float = 0.6  # share of data sets with a + b y, b = +-10^U(-1, 1), a up to 2 standard deviations
    limit: float = 1e4  # data sets with |y| above this are redrawn
    variables: tuple[float, ...] = (0.45, 0.35, 0.2)  # shares of formulas with 1, 2, 3 variables
    eta: float = 0.1  # noise of the second view: eta ~ U(0, eta), and exactly 0 with chance `zero`
    zero: float = 0.2
    resample: bool = False  # the second view has its own x: a harder positive
    hard: float = (
        0.0  # share of rows with the skeleton of the row before and other constants (hard negatives)
    )


@dataclass(frozen=True)
class Size:
    """A recipe: pool, stream, model, loss and schedule. Everything that decides a training is in here."""

    name: str
    pool: pools.PoolConfig
    skeletons: int
    model: ModelConfig
    batch: int  # encoded data sets per step; both views of a pair count
    hold: training.FitConfig  # warm-up, then a constant rate
    cool: training.FitConfig  # linear decay to 0 from the weights of `hold`
    stream: StreamConfig = field(default_factory=StreamConfig)
    loss: LossConfig = field(default_factory=lambda: LossConfig("noisy", 0.0))
    seed: int = 0


def _size(name: str, *, operators: int, length: int, constants: int, skeletons: int, d: int, heads: int, isab: int,
          inducing: int, rows: int, decoder: int, batch: int, hold: int, cool: int, lr: float, precision: str = "no",
          stream: StreamConfig | None = None) -> Size:  # fmt: skip
    common = {
        "weight_decay": 0.01,
        "betas": (0.9, 0.98),
        "precision": precision,
        "save_every": 500,
        "ema": 0.998,
    }
    return Size(
        name, pools.PoolConfig(3, (1, operators), constants, length, outer=False), skeletons,
        ModelConfig(3, d, heads, isab, inducing, rows, decoder, length), batch,
        training.FitConfig(hold, lr, warmup=min(1000, hold // 5), schedule="constant", **common),
        training.FitConfig(cool, lr, schedule="linear", **common), stream or StreamConfig(),
    )  # fmt: skip


SIZES = {
    # a minute or two on one core: for the notebook and the tests
    "tiny": _size("tiny", operators=3, length=10, constants=1, skeletons=3_000, d=48, heads=4, isab=1, inducing=8,
                  rows=4, decoder=1, batch=64, hold=400, cool=200, lr=3e-3),
    # an hour on two cores
    "small": _size("small", operators=4, length=14, constants=2, skeletons=150_000, d=128, heads=4, isab=1, inducing=16,
                   rows=8, decoder=3, batch=128, hold=24_000, cool=6_000, lr=1e-3),
    # 25 minutes on a large GPU: an estimate, never trained
    "base": _size("base", operators=7, length=22, constants=3, skeletons=1_500_000, d=256, heads=8, isab=2, inducing=32,
                  rows=16, decoder=4, batch=1024, hold=14_000, cool=4_000, lr=5e-4, precision="bf16",
                  stream=StreamConfig(points=(32, 256), radius=(1.0, 10.0))),
}  # fmt: skip


def evaluate_rows(tokens: np.ndarray, constants: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Values `[B, n]` of prefix ids `[B, L]` with constants `[B, C]` on points `[B, n, D]`, in float64.

    As `expressions.evaluate`, but every operator is computed only for the rows that name it: several times
    faster on a CPU.
    """
    B, L = tokens.shape
    n = x.shape[1]
    stack = np.zeros((B, L // 2 + 4, n))
    top = np.full(B, stack.shape[1] - 1)
    seen = (tokens == ex.CONST).sum(1)
    arity = ex.ARITY.numpy()
    with np.errstate(all="ignore"):
        for k in range(L - 1, -1, -1):
            order = np.argsort(tokens[:, k], kind="stable")
            names, starts = np.unique(tokens[order, k], return_index=True)
            for name, rows in zip(names.tolist(), np.split(order, starts[1:]), strict=True):
                if name <= ex.END:
                    continue
                if arity[name] == 0:
                    top[rows] -= 1
                    if name == ex.CONST:
                        seen[rows] -= 1
                        value = constants[rows, seen[rows]][:, None]
                    else:
                        value = x[rows, :, name - ex.FIRST_VARIABLE]
                elif arity[name] == 1:
                    value = pools._UNARY_FUNCTIONS[name](stack[rows, top[rows]])
                else:
                    a = stack[rows, top[rows]]
                    top[rows] += 1
                    b = stack[rows, top[rows]]
                    value = (a + b if name == pools.ADD else a - b if name == pools.SUB
                             else a * b if name == pools.MUL else a / b)  # fmt: skip
                stack[rows, top[rows]] = value
        return stack[np.arange(B), np.minimum(top, stack.shape[1] - 1)]


class Stream:
    """Training batches from a pool: `batch(k)` depends on the seed and k only, so a resumed run is the same run."""

    def __init__(self, pool: pools.SkeletonPool, config: StreamConfig, variables: int, length: int) -> None:
        if not len(pool):
            raise ValueError("the pool is empty")
        self.tokens = np.zeros((len(pool), length), dtype=np.int64)
        self.tokens[:, : pool.tokens.shape[1]] = pool.tokens
        self.structure = pool.structure.view(np.int64)
        self.config, self.variables = config, variables
        is_const = self.tokens == ex.CONST
        self.most = max(1, int(is_const.sum(1).max()))
        # the operator to the left of a constant says what it does
        rows, at = np.nonzero(is_const)
        self.adds = np.zeros((len(pool), self.most), dtype=bool)
        self.adds[rows, (is_const.cumsum(1) - 1)[rows, at]] = self.tokens[rows, at - 1] == pools.ADD
        # strata of equal number of variables and length, each drawn in proportion to the root of its size
        number = np.stack([(self.tokens == ex.FIRST_VARIABLE + j).any(1) for j in range(variables)]).sum(0)
        stratum = number * 100 + (self.tokens > 0).sum(1)
        _, inverse, counts = np.unique(stratum, return_inverse=True, return_counts=True)
        weight = 1 / np.sqrt(counts)[inverse]
        for d in range(1, variables + 1):
            mine = number == d
            if mine.any():
                weight[mine] *= config.variables[d - 1] / weight[mine].sum()
        self.cumulative = np.cumsum(weight / weight.sum())

    def _x(self, size: int, n: int, rng: np.random.Generator) -> np.ndarray:
        c = self.config
        r = np.exp(rng.uniform(*np.log(c.radius), (size, 1, 1)))
        u = rng.random((size, n, self.variables))
        kind = rng.choice(3, (size, 1, 1), p=np.array(c.ranges) / sum(c.ranges))
        return np.where(kind == 0, 2 * u - 1, np.where(kind == 1, u, 0.2 + 0.8 * u)) * r

    def draw(self, size: int, rng: np.random.Generator, eta: float | None = None) -> Views:
        """`size` data sets; with `eta`, that noise for all instead of the configuration's."""
        c = self.config
        n = int(rng.integers(c.points[0], c.points[1] + 1))
        kept: list[tuple[np.ndarray, ...]] = []
        have = 0
        while have < size:
            m = int(1.6 * (size - have)) + 16
            index = np.searchsorted(self.cumulative, rng.random(m)).clip(max=len(self.tokens) - 1)
            if c.hard:
                repeat = np.flatnonzero(rng.random(m) < c.hard)
                index[repeat] = index[repeat - 1]
            tokens = self.tokens[index]
            constants = np.exp(rng.uniform(*np.log(c.multiplier), (m, self.most)))
            constants = np.where(rng.random(constants.shape) < c.negative, -constants, constants)
            constants = np.where(
                self.adds[index], rng.uniform(-c.summand, c.summand, constants.shape), constants
            )
            x = self._x(m, n, rng)
            y = evaluate_rows(tokens, constants, x)
            other = self._x(m, n, rng) if c.resample else x
            other_y = evaluate_rows(tokens, constants, other) if c.resample else y
            with np.errstate(all="ignore"):
                spread = y.std(1, keepdims=True)
                b = 10 ** rng.uniform(-1, 1, (m, 1)) * rng.choice([-1, 1], (m, 1))
                a = b * spread * rng.uniform(-2, 2, (m, 1)) * (rng.random((m, 1)) < 0.6)
                plain = rng.random((m, 1)) >= c.affine
                a, b = np.where(plain, 0.0, a), np.where(plain, 1.0, b)
                y, other_y = a + b * y, a + b * other_y
                good = np.isfinite(y).all(1) & np.isfinite(other_y).all(1)
                good &= (np.abs(y).max(1) < c.limit) & (np.abs(other_y).max(1) < c.limit) & (y.std(1) > 1e-3)
            if eta is None:
                level = c.eta * rng.random((m, 1)) * (rng.random((m, 1)) >= c.zero)
            else:
                level = np.full((m, 1), float(eta))
            with np.errstate(all="ignore"):
                rms = np.sqrt(np.square(other_y).mean(1, keepdims=True))
                noisy = other_y + level * rms * rng.standard_normal((m, n))
            parts = (np.concatenate([x, y[..., None]], -1), np.concatenate([other, noisy[..., None]], -1), tokens,
                     self.structure[index])  # fmt: skip
            kept.append(tuple(part[good] for part in parts))
            have += int(good.sum())
        clean, noisy, tokens, structure = (np.concatenate(p)[:size] for p in zip(*kept, strict=True))
        # columns of variables that the formula does not use carry nothing: 0, as at test time
        unused = np.stack([~(tokens == ex.FIRST_VARIABLE + j).any(1) for j in range(self.variables)], 1)
        for part in (clean, noisy):
            part[..., :-1] *= ~unused[:, None, :]
        framed = np.zeros((size, tokens.shape[1] + 2), dtype=np.int64)
        framed[:, 0] = ex.START
        framed[:, 1:-1] = tokens
        framed[np.arange(size), (tokens > 0).sum(1) + 1] = ex.END
        mask = torch.ones(size, n, dtype=torch.bool)
        return Views(torch.from_numpy(clean).float(), mask, torch.from_numpy(noisy).float(), mask,
                     torch.from_numpy(framed), torch.from_numpy(structure))  # fmt: skip

    def batches(self, size: int, *key: int) -> Callable[[int], Views]:
        """`batch(k)` for `companion.training.fit`."""
        return lambda k: self.draw(size, np.random.default_rng([*key, k]))


def ascending(ids: Sequence[int]) -> tuple[int, ...]:
    """The same formula with the operands of sums and products sorted: C first, then short before long, then by id.

    `pools.canonical` sorts by a hash, which nobody can tell for two operands never seen together; this order follows
    from the operands, so a decoder can learn it.
    """
    position = 0

    def build() -> tuple[int, ...]:
        nonlocal position
        token = ids[position]
        position += 1
        parts = [build() for _ in range(int(ex.ARITY[token]))]
        if token in (pools.ADD, pools.MUL):
            parts.sort(key=lambda part: (part != (ex.CONST,), len(part), part))
        return (token, *(t for part in parts for t in part))

    return build()


@lru_cache(maxsize=4)
def pool_of(
    config: pools.PoolConfig, number: int, seed: int
) -> tuple[pools.SkeletonPool, pools.SkeletonPool]:
    """(training, validation) pool without any benchmark's structure; made in seconds, so it is never shipped.

    Formulas of one variable are few in a pool of three: a third of the draws is made with one, a third with two.
    """
    banned = frozenset(pools.structure_marks(suites.skeletons()))
    parts = []
    for d in range(1, config.variables + 1):
        share = number // config.variables
        part = replace(config, variables=d)
        try:
            parts.append(pools.make(share, part, seed, without=banned))
        except ValueError:  # few variables and operators: take what there is
            parts.append(pools.make(max(100, share // 8), part, seed, without=banned))
    wide = config.length
    tokens = np.concatenate([np.pad(p.tokens, ((0, 0), (0, wide - p.tokens.shape[1]))) for p in parts])
    structure = np.concatenate([p.structure for p in parts])
    _, first = np.unique(tokens, axis=0, return_index=True)
    first = np.sort(first)
    tokens, structure = tokens[first], structure[first]
    for k, row in enumerate(tokens.tolist()):
        tokens[k, : np.count_nonzero(row)] = ascending([t for t in row if t])
    return pools.SkeletonPool(tokens, structure).split()


def validation(size: Size, held: pools.SkeletonPool, number: int = 512) -> Callable[[DNCL], dict[str, float]]:
    """Teacher-forced accuracy on unseen structures, without noise and with eta = 0.1."""
    stream = Stream(held, size.stream, size.model.variables, size.model.length)
    sets = {
        e: stream.draw(number, np.random.default_rng([size.seed, 99, k]), e) for k, e in enumerate((0.0, 0.1))
    }

    def evaluate(net: DNCL) -> dict[str, float]:
        device = next(net.parameters()).device
        out = {}
        for e, views in sets.items():
            views = Views(*(part.to(device) for part in views))
            out |= {
                f"unseen_{k}_{e:g}": v for k, v in metrics.skeleton_accuracy(net, views, noisy=True).items()
            }
        return out

    return evaluate


def train(
    size: Size, folder: Path, minutes: float = 9.0, cpu: bool = False
) -> tuple[DNCL, training.Fitted, bool]:
    """Train, or go on training, for at most `minutes`; call again until the last value (finished) is true.

    Returns the EMA model, curves over both phases, and whether the recipe's last step is done.
    """
    training.seed_everything(size.seed)
    began = time.monotonic()
    seen, held = pool_of(size.pool, size.skeletons, size.seed)
    stream = Stream(seen, size.stream, size.model.variables, size.model.length)
    check = validation(size, held)
    batch = size.batch // 2 if size.loss.views == "both" else size.batch
    loss = lambda m, views: dncl_loss(m, views, size.loss)  # noqa: E731
    net = DNCL(size.model)
    curves: dict[str, list[list[float]]] = {}
    total = training.Fitted()
    for phase, fit in enumerate((size.hold, size.cool)):
        fit = replace(fit, evaluate_every=max(100, fit.steps // 20))
        out = None
        piece = fit.steps
        while out is None or out.step < fit.steps:
            started = time.monotonic()
            out = training.fit(net, loss, stream.batches(batch, size.seed, phase), fit, evaluate=check, cpu=cpu,
                               folder=folder / f"phase-{phase}", stop_after=min(piece, 250), title=f"{size.name} {phase}")  # fmt: skip
            spent = time.monotonic() - started
            if out.step < fit.steps and time.monotonic() - began + spent > 60 * minutes:
                break
        for name, points in out.curves.items():
            curves.setdefault(name, []).extend([s + total.step, v] for s, v in points)
        total = training.Fitted(curves, total.step + out.step, total.seconds + out.seconds,
                                total.examples + out.examples, out.averaged)  # fmt: skip
        if out.step < fit.steps:
            return out.averaged, total, False
    return total.averaged, total, True


def export(size: Size, folder: Path, out: Path) -> Path:
    """The EMA weights of the newest checkpoint (float16 safetensors), and their record (`.json`), as files of `out`.

    Does not train; ValueError where there is no checkpoint.
    """
    from safetensors.torch import save_file

    states = [s for k in (0, 1) if (s := training.load_checkpoint(folder / f"phase-{k}"))]
    if not states:
        raise ValueError(f"{folder} holds no checkpoint; train first")
    net = DNCL(size.model)
    net.load_state_dict(
        {k.removeprefix("module."): v for k, v in states[-1]["averaged"].items() if k != "n_averaged"}
    )
    curves: dict[str, list[list[float]]] = {}
    steps = seconds = examples = 0
    for state in states:
        part, step, spent, seen_sets = state["out"]
        for name, points in part.items():
            curves.setdefault(name, []).extend([s + steps, round(v, 4)] for s, v in points)
        steps, seconds, examples = steps + step, seconds + spent, examples + seen_sets
    seen, held = pool_of(size.pool, size.skeletons, size.seed)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f"{size.name}.safetensors"
    save_file({k: v.detach().half().contiguous().clone() for k, v in net.state_dict().items()}, path)
    records.write_json(path.with_suffix(".json"), {
        "recipe": asdict(size), "steps": steps, "finished": steps == size.hold.steps + size.cool.steps,
        "data_sets": examples, "training_seconds": round(seconds), "date": date.today().isoformat(),
        "processor": records.processor(), "threads": torch.get_num_threads(), "gpu": records.gpu(), "versions": records.versions(),
        "skeletons": {"training": len(seen), "validation": len(held)},
        "parameters": sum(p.numel() for p in net.parameters()),
        "scores": validation(size, held, 2048)(net.eval()), "curves": curves,
    })  # fmt: skip
    return path


@lru_cache(maxsize=4)
def load(path: Path | str | None = None) -> DNCL:
    """A trained network: the shipped one, or that of `path` (a `.safetensors` with its `.json` beside it).

    Raises:
        ValueError: where one of the two files is missing.
    """
    from safetensors.torch import load_file

    path = Path(path) if path else SHIPPED / "small.safetensors"
    about = path.with_suffix(".json")
    if not (path.is_file() and about.is_file()):
        raise ValueError(f"{path} needs to be there, with {about.name} beside it; `export` writes both")
    net = DNCL(ModelConfig(**json.loads(about.read_text())["recipe"]["model"]))
    net.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return net.eval()


def main(arguments: list[str] | None = None) -> None:
    """The command line in this module's first lines."""
    parser = argparse.ArgumentParser(
        prog="python -m companion.dncl.pretrained", description=__doc__.split("\n")[0]
    )
    parts = parser.add_subparsers(dest="what", required=True)
    for what in ("train", "export"):
        one = parts.add_parser(what)
        one.add_argument("size", choices=list(SIZES))
        one.add_argument("folder", type=Path)
        if what == "train":
            one.add_argument("--minutes", type=float, default=9.0)
        else:
            one.add_argument("out", type=Path)
    a = parser.parse_args(arguments)
    if a.what == "train":
        _, fitted, finished = train(SIZES[a.size], a.folder, a.minutes)
        last = {k: v[-1][1] for k, v in fitted.curves.items()}
        print(f"step {fitted.step}, {fitted.seconds:.0f} s", "finished" if finished else "not finished", last)
    else:
        print(export(SIZES[a.size], a.folder, a.out))


if __name__ == "__main__":
    main()
