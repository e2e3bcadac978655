"""Overhead of the batch runner: `python benchmarks/batch_overhead.py [RUNS] [SECONDS]`.

A scratch checkout with one table whose runs sleep SECONDS in a cell; compares the wall time of
`companion reproduce --jobs 1` with the sum of the runs' own cell times plus one measured kernel start per run
(starting a kernel and importing nothing). Prints one JSON object and writes it to `batch_overhead.json` beside it.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from companion import records

ROOT = records.checkout()
TOML = """
[paper]
title = "Overhead"
short = "Overhead"
authors = ["none"]
year = 2026
arxiv = "0"
evidence = "made for a measurement"
[tables.t]
title = "t"
origin = "companion"
notebook = "overhead/t"
metrics = [{ id = "m", title = "m", direction = "none" }]
[tables.t.scales.reduced]
minutes = 0.2
[tables.t.rows.only]
title = "only"
[tables.t.columns.x]
title = "x"
"""
CODE = """import time
began = time.perf_counter()
from companion import records, tables
cell = tables.cell("overhead", table, row, column, scale)
run = records.Run(cell, seed, record_dir)
time.sleep({seconds})
run.save({{"m": time.perf_counter() - began}})"""


def kernel_start() -> float:
    """Seconds to start a kernel, run one empty cell and stop it."""
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("pass")])
    began = time.perf_counter()
    NotebookClient(book, kernel_name="python3").execute()
    return time.perf_counter() - began


def main() -> None:
    """Measure and print."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 6
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 15.0
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch) / "checkout"
        shutil.copytree(ROOT / "src", home / "src", ignore=shutil.ignore_patterns("__pycache__", "weights"))
        shutil.copytree(ROOT / "workflow", home / "workflow")
        (home / "pyproject.toml").write_text("")
        for old in (home / "src/companion/papers").glob("*.toml"):
            old.unlink()
        (home / "src/companion/papers/overhead.toml").write_text(TOML)
        (home / "notebooks/overhead").mkdir(parents=True)
        parameters = {
            "cell_type": "code",
            "id": "a",
            "metadata": {"tags": ["parameters"]},
            "outputs": [],
            "execution_count": None,
            "source": "table = row = column = scale = record_dir = ''\nseed = 0",
        }
        body = parameters | {"id": "b", "metadata": {}, "source": CODE.format(seconds=seconds)}
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        (home / "notebooks/overhead/t.ipynb").write_text(json.dumps(
            {"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": [parameters, body]}))  # fmt: skip
        env = os.environ | {"PYTHONPATH": str(home / "src"), "COMPANION_RUNS": str(home / "runs")}
        start = sorted(kernel_start() for _ in range(3))[1]
        began = time.perf_counter()
        subprocess.run([sys.executable, "-m", "companion.cli", "reproduce", "overhead", "t", "--jobs", "1", "--seeds",
                        str(runs)], cwd=home, env=env, check=True, stdout=subprocess.DEVNULL)  # fmt: skip
        wall = time.perf_counter() - began
        cells = sum(r["metrics"]["m"] for r in records.read(home / "runs"))
    found = {"runs": runs, "wall_s": round(wall, 2), "cell_s": round(cells, 2), "kernel_start_s": round(start, 2),
             "ratio": round(wall / (cells + runs * start), 3), "target: at most": 1.15,
             "processor": records.processor(), "versions": records.versions()}  # fmt: skip
    print(json.dumps(found, indent=1))
    records.write_json(Path(__file__).with_suffix(".json"), found)


if __name__ == "__main__":
    main()
