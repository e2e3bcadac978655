"""Batches of runs: one papermill run per cell and seed, scheduled by Snakemake.

`plan` says what is missing or stale, `execute` hands that to the workflow and watches it, and
`python -m companion.batch run ...` is the single run that the workflow starts. A finished record is the
only sign of success; a failed run leaves its executed notebook, with the error in it, beside the record.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from companion import records, tables


@dataclass(frozen=True)
class Job:
    """One run: its cell and seed, where record and executed notebook go, and what it takes."""

    paper: str
    table: str
    row: str
    column: str
    scale: str
    seed: int
    record: str
    notebook: str
    why: str
    gpus: int
    minutes: float
    folder: str


def plan(table: tables.Table, scale: str, *, rows: list[str], columns: list[str], seeds: int | None,
         folder: Path, force: bool = False) -> tuple[list[Job], int]:  # fmt: skip
    """Jobs still to do for `table` at `scale`, and the number of runs that are already there.

    Raises TableError for a name or scale that does not exist, RuntimeError outside a checkout.
    """
    at = table.scales.get(scale)
    if at is None:
        known = tables.nearest(scale, table.scales)
        raise tables.TableError(
            f"{table.paper} {table.id}: scale {scale!r} does not exist; did you mean {known}?"
        )
    jobs, there = [], 0
    cells = table.cells(scale, rows, columns)
    # column by column: neighbours in the plan, which run at the same time, then share no training
    order = {c.run: k for k, c in reversed(list(enumerate(table.columns)))}
    for cell in sorted(cells, key=lambda c: order[c.column]):
        for seed in range(at.seeds if seeds is None else seeds):
            path = records.record_path(
                folder, scale, cell.paper, cell.table, cell.row, cell.column, seed
            ).resolve()
            why = "forced" if force else "missing"
            if path.is_file() and not force:
                why = records.stale(records.load(path), cell)
                if why is None:
                    there += 1
                    continue
            jobs.append(Job(cell.paper, cell.table, cell.row, cell.column, scale, seed, str(path),
                            str(path.with_suffix(".ipynb")), why, at.gpus, at.minutes,
                            str(Path(folder).resolve())))  # fmt: skip
    return jobs, there


def die_with_parent() -> None:
    """Ask Linux to stop this process when its parent dies, so that a killed batch leaves nothing running."""
    if sys.platform == "linux":
        import ctypes

        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def check_pairs(root: Path, jobs: list[Job]) -> None:
    """Refuse a notebook whose .py was edited and not paired again: the run would not be what its record claims.

    Raises RuntimeError naming the first such notebook.
    """
    import jupytext

    for name in dict.fromkeys(tables.table(j.paper, j.table).notebook for j in jobs):
        pair = [root / "notebooks" / f"{name}{end}" for end in (".py", ".ipynb")]
        if all(path.is_file() for path in pair):
            text, stored = ([(c.cell_type, c.source) for c in jupytext.read(path).cells] for path in pair)
            if text != stored:
                raise RuntimeError(f"notebooks/{name}.ipynb is out of step with its .py; run "
                                   f"`make notebooks NOTEBOOKS=notebooks/{name}.py` first")  # fmt: skip


def visible_gpus() -> int:
    """GPUs that jobs may use: CUDA_VISIBLE_DEVICES, else what nvidia-smi lists, else 0. Needs no torch."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return len([x for x in named.split(",") if x.strip() and x.strip() != "-1"])
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
        return done.stdout.count("GPU ") if done.returncode == 0 else 0
    return 0


def execute(jobs: list[Job], *, workers: int, profile: str) -> list[Job]:
    """Run `jobs`; show progress and the time left; return the jobs that left no record.

    Raises RuntimeError outside a checkout (notebooks and workflow are not part of the installed package).
    """
    root = records.checkout()
    if root is None:
        raise RuntimeError("`companion reproduce` needs the project's checkout (notebooks and workflow); "
                           "clone the repository and run it there")  # fmt: skip
    from tqdm import tqdm

    check_pairs(root, jobs)
    profiles = root / "workflow" / "profiles"
    if not (profiles / profile).is_dir():
        known = tables.nearest(profile, sorted(p.name for p in profiles.iterdir()))
        raise tables.TableError(f"profile {profile!r} does not exist; did you mean {known}?")
    # the scheduler's own files and checkpoints stay with this machine's runs, wherever the records go
    folder = records.runs_folder()
    folder.mkdir(parents=True, exist_ok=True)
    records.write_json(folder / f".plan-{os.getpid()}.json", [asdict(job) for job in jobs])
    targets = [job.record for job in jobs]
    before = {t: os.stat(t).st_mtime_ns if os.path.exists(t) else 0 for t in targets}
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(root / "workflow" / "Snakefile"),
               "--workflow-profile", str(profiles / profile), "--directory", str(folder.resolve()),
               "--config", f"plan={(folder / f'.plan-{os.getpid()}.json').resolve()}",
               "--resources", f"gpu={max(visible_gpus(), 0) if profile == 'local' else 10_000}",
               "--jobs" if profile != "local" else "--cores", str(workers),
               "--forcerun", *targets, "--", *targets]  # fmt: skip
    log = folder / "batch.log"
    env = os.environ | {"COMPANION_RUNS": str(folder.resolve()), "PYTHONPATH": os.pathsep.join(
        filter(None, [str(root / "src"), os.environ.get("PYTHONPATH", "")]))}  # fmt: skip

    def fresh(target: str) -> bool:
        return os.path.exists(target) and os.stat(target).st_mtime_ns != before[target]

    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env, cwd=root,
                                   preexec_fn=die_with_parent if os.name == "posix" else None)  # fmt: skip
        bar = tqdm(total=len(jobs), unit="run", mininterval=0.5 if sys.stderr.isatty() else 10,
                   desc=" ".join(dict.fromkeys(f"{j.paper}/{j.table}" for j in jobs)))  # fmt: skip
        try:
            while True:
                ended = process.poll() is not None
                done = sum(map(fresh, targets))
                bar.update(done - bar.n)
                if ended:
                    break
                time.sleep(0.3)
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
        finally:
            bar.close()
            (folder / f".plan-{os.getpid()}.json").unlink(missing_ok=True)
    failed = [job for job in jobs if not fresh(job.record)]
    if (
        len(failed) == len(jobs)
        and process.returncode
        and not any(os.path.exists(j.notebook) for j in failed)
    ):
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-15:])
        raise RuntimeError(f"the workflow did not start a single run; the end of {log}:\n{tail}")
    return failed


def reason(job: Job) -> str:
    """The error that ended a failed run, from its executed notebook, in one line."""
    with contextlib.suppress(OSError, ValueError):
        book = json.loads(Path(job.notebook).read_text(encoding="utf-8"))
        for cell in reversed(book["cells"]):
            for output in cell.get("outputs", []):
                if output.get("output_type") == "error":
                    return f"{output['ename']}: {output['evalue']}".splitlines()[0]
    return "no error was left behind; it was stopped, or ran out of memory"


@contextlib.contextmanager
def a_gpu(wanted: int):
    """Hold `wanted` of this machine's GPUs (by lock files) and make only those visible to the run."""
    count = visible_gpus()
    if not wanted or count <= 1 or "SLURM_JOB_ID" in os.environ:
        yield
        return
    import tempfile

    from filelock import FileLock, Timeout

    ids = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    with contextlib.ExitStack() as held:
        mine: list[str] = []
        while len(mine) < min(wanted, count):
            for one in ids:
                lock = FileLock(Path(tempfile.gettempdir()) / f"companion-gpu-{one}.lock")
                with contextlib.suppress(Timeout):
                    held.enter_context(lock.acquire(timeout=0))
                    mine.append(one)
                    if len(mine) == min(wanted, count):
                        break
            else:
                time.sleep(1)
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        yield


def run(cell: tables.Cell, seed: int, folder: Path, gpus: int = 0) -> None:
    """Execute one cell's notebook with papermill; its record and executed notebook land in `folder`.

    Raises papermill's PapermillExecutionError when the notebook fails.
    """
    root = records.checkout()
    if root is None:
        raise RuntimeError("a run needs the project's checkout; clone the repository and run it there")
    # papermill would load pyarrow for HDFS, half of its own import time; the notebook's process is another
    sys.modules.setdefault("pyarrow", None)
    import papermill

    record = records.record_path(folder, cell.scale, cell.paper, cell.table, cell.row, cell.column, seed)
    out = record.with_suffix(".ipynb")
    out.parent.mkdir(parents=True, exist_ok=True)
    parameters = {"table": cell.table, "row": cell.row, "column": cell.column, "scale": cell.scale, "seed": seed,
                  "record_dir": str(folder)}  # fmt: skip
    with a_gpu(gpus):
        papermill.execute_notebook(str(root / "notebooks" / f"{cell.notebook}.ipynb"), str(out), parameters,
                                   kernel_name="python3", cwd=str(root), progress_bar=False)  # fmt: skip


def main() -> None:
    """Entry point of the workflow's jobs."""
    die_with_parent()
    parser = argparse.ArgumentParser(prog="python -m companion.batch")
    for name in ("paper", "table", "row", "column", "scale"):
        parser.add_argument(name)
    parser.add_argument("seed", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("gpus", type=int, nargs="?", default=0)
    args = parser.parse_args()
    run(
        tables.cell(args.paper, args.table, args.row, args.column, args.scale),
        args.seed,
        args.folder,
        args.gpus,
    )


if __name__ == "__main__":
    main()
