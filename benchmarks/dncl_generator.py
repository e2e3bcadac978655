"""How many distinct skeletons a core makes per second, and how fast batches of formulas are evaluated.

    python benchmarks/dncl_generator.py            # this machine's CPU; with a GPU also the tensor evaluator there

Distinct: canonical by rules, no two with the same values, benchmark structures removed. The sympy line simplifies
the same raw trees with `sympy.simplify`, the route of NeSymReS, on a small sample. CPU seconds of one thread; writes
`dncl_generator.json` beside it.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import sympy
import torch

from companion import records
from companion.dncl import expressions as ex
from companion.dncl import generator, pools, pretrained, suites


def main() -> None:
    """Print and store the rates."""
    rates: dict[str, float] = {}

    def note(what: str, rate: float) -> None:
        rates[what] = round(rate)
        print(f"{what}: {rate:,.0f}/s", flush=True)

    torch.set_num_threads(1)
    config = pools.PoolConfig(3, (1, 6), 3, 22)
    banned = pools.structure_marks(suites.skeletons())
    began = time.process_time()
    pool = pools.make(100_000, config, 0, without=banned)
    note("distinct skeletons, pools.make", len(pool) / (time.process_time() - began))

    began = time.process_time()
    old = generator.skeletons(3000, generator.GeneratorConfig(3, (1, 6), 3, 22), 0)
    note(
        "the same, generator.skeletons (readable, one tree at a time)",
        len(old) / (time.process_time() - began),
    )

    rng = np.random.default_rng(1)
    raw, good = pools.canonical(pools.trees(400, config, rng))
    raw = [row[row > 0] for row in raw[good] if (row < pools.TIMES).all()][:40]
    began = time.process_time()
    made = {str(sympy.simplify(ex.to_sympy([int(t) for t in row]))) for row in raw}
    note("the same, sympy.simplify", len(made) / (time.process_time() - began))

    n, rows = 64, 4096
    tokens = pool.tokens[:rows].astype(np.int64)
    c, x = rng.uniform(0.5, 2, (rows, config.constants)), rng.uniform(0.3, 2, (rows, n, 3))
    began = time.process_time()
    pretrained.evaluate_rows(tokens, c, x)
    note(f"formulas at {n} points, evaluate_rows (CPU)", rows / (time.process_time() - began))
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        parts = [torch.from_numpy(a).to(device) for a in (tokens, c.astype(np.float32), x.astype(np.float32))]
        ex.evaluate(*parts)
        began = time.perf_counter()
        for _ in range(3):
            ex.evaluate(*parts)
        if device == "cuda":
            torch.cuda.synchronize()
        note(
            f"formulas at {n} points, expressions.evaluate ({device})",
            3 * rows / (time.perf_counter() - began),
        )
    found = {"per second and core": rates, "target: distinct skeletons, at least": 10_000, "threads": 1,
             "processor": records.processor(), "gpu": records.gpu(), "versions": records.versions()}  # fmt: skip
    records.write_json(Path(__file__).with_suffix(".json"), found)


if __name__ == "__main__":
    main()
