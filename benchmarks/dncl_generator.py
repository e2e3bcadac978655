"""How many distinct skeletons a core makes per second, and how fast batches of formulas are evaluated.

    python benchmarks/dncl_generator.py            # this machine's CPU; with a GPU also the tensor evaluator there

Distinct: canonical by rules, no two with the same values, benchmark structures removed. The sympy line simplifies
the same raw trees with `sympy.simplify`, the route of NeSymReS, on a small sample.
"""

from __future__ import annotations

import time

import numpy as np
import sympy
import torch

from companion.dncl import expressions as ex
from companion.dncl import generator, pools, pretrained, suites


def main() -> None:
    """Print the rates."""
    torch.set_num_threads(1)
    config = pools.PoolConfig(3, (1, 6), 3, 22)
    banned = pools.structure_marks(suites.skeletons())
    began = time.process_time()
    pool = pools.make(100_000, config, 0, without=banned)
    print(f"pools.make: {len(pool) / (time.process_time() - began):,.0f} distinct skeletons/s per core")

    began = time.process_time()
    old = generator.skeletons(3000, generator.GeneratorConfig(3, (1, 6), 3, 22), 0)
    print(
        f"generator.skeletons (readable, one tree at a time): {len(old) / (time.process_time() - began):,.0f}/s"
    )

    rng = np.random.default_rng(1)
    raw, good = pools.canonical(pools.trees(400, config, rng))
    raw = [row[row > 0] for row in raw[good] if (row < pools.TIMES).all()][:40]
    began = time.process_time()
    made = {str(sympy.simplify(ex.to_sympy([int(t) for t in row]))) for row in raw}
    print(f"sympy.simplify on the same trees: {len(made) / (time.process_time() - began):,.0f}/s")

    n, rows = 64, 4096
    tokens = pool.tokens[:rows].astype(np.int64)
    c, x = rng.uniform(0.5, 2, (rows, config.constants)), rng.uniform(0.3, 2, (rows, n, 3))
    began = time.process_time()
    pretrained.evaluate_rows(tokens, c, x)
    print(f"evaluate_rows (CPU): {rows / (time.process_time() - began):,.0f} formulas/s at {n} points")
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        parts = [torch.from_numpy(a).to(device) for a in (tokens, c.astype(np.float32), x.astype(np.float32))]
        ex.evaluate(*parts)
        began = time.perf_counter()
        for _ in range(3):
            ex.evaluate(*parts)
        if device == "cuda":
            torch.cuda.synchronize()
        print(f"expressions.evaluate ({device}): {3 * rows / (time.perf_counter() - began):,.0f} formulas/s")


if __name__ == "__main__":
    main()
