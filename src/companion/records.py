"""One JSON file per run: what was asked, what came out, and everything needed to trust it.

A record answers four questions: which cell of which table (`run`), with which settings (`parameters`),
with what outcome (`metrics`, `curves`), made by what (`provenance`: code, commit, versions, machine,
time, memory). Records are written atomically and are the only sign that a run is done.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

SCHEMA = 1
VERSIONED = ("torch", "torchaudio", "torchvision", "transformers", "accelerate", "numpy", "scipy",
             "scikit-learn", "sympy", "rdkit", "peft", "timm", "tokenizers")  # fmt: skip
# Rooms that show or store results but do not compute them: editing them leaves records valid.
SILENT = ("companion", "companion.records", "companion.tables", "companion.plotting", "companion.report", "companion.cli",
          "companion.batch")  # fmt: skip


# --- places ------------------------------------------------------------------------------------------


def checkout() -> Path | None:
    """Root of the project's checkout, or None where only the package is installed (Colab)."""
    for base in (Path(__file__).resolve(), Path.cwd().resolve() / "_"):
        for folder in base.parents:
            if (folder / "pyproject.toml").is_file() and (folder / "src" / "companion").is_dir():
                return folder
    return None


def runs_folder() -> Path:
    """Where this machine's records go: `$COMPANION_RUNS`, else `runs/` of the checkout, else `./runs`."""
    if named := os.environ.get("COMPANION_RUNS"):
        return Path(named)
    return (checkout() or Path.cwd()) / "runs"


def evidence_folder() -> Path | None:
    """The committed records behind the book (`results/`), or None outside a checkout."""
    root = checkout()
    return root / "results" if root else None


def record_path(folder: Path | str, scale: str, paper: str, table: str, row: str, column: str,
                seed: int) -> Path:  # fmt: skip
    """`<folder>/<scale>/<paper>/<table>/<row>/<column>/seed-<seed>.json`."""
    return Path(folder) / scale / paper / table / row / column / f"seed-{seed}.json"


# --- fingerprints ------------------------------------------------------------------------------------


def source_fingerprint(source: str) -> str:
    """Hash of what Python source says (16 hex digits): comments, docstrings and layout do not count.

    Written out by hand because `ast.dump` and `ast.unparse` differ between Python versions.
    """

    def say(node: Any) -> str:
        if isinstance(node, list):
            return "[" + ",".join(map(say, node)) + "]"
        if not isinstance(node, ast.AST):
            return repr(node)
        fields = {k: v for k, v in ast.iter_fields(node)
                  if v not in (None, []) and k not in ("ctx", "kind", "type_comment", "type_ignores")}  # fmt: skip
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            fields["body"] = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
        return type(node).__name__ + "(" + ",".join(f"{k}={say(v)}" for k, v in fields.items()) + ")"

    return hashlib.sha256(say(ast.parse(source)).encode()).hexdigest()[:16]


@lru_cache(maxsize=512)
def _file_fingerprint(path: str, mtime: float) -> str:
    return source_fingerprint(Path(path).read_text(encoding="utf-8"))


def file_fingerprint(path: Path) -> str | None:
    """`source_fingerprint` of a file, or None when it is not there."""
    return _file_fingerprint(str(path), path.stat().st_mtime) if path.is_file() else None


def loaded_code() -> dict[str, str]:
    """Name and fingerprint of every module of this package that the process has imported."""
    found = {}
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "companion" and name not in SILENT and getattr(module, "__file__", None):
            found[name] = file_fingerprint(Path(module.__file__)) or ""
    return dict(sorted(found.items()))


def current_code(name: str) -> str | None:
    """Fingerprint, as it stands on disk now, of a module (`companion.x.y`) or a file of the checkout."""
    if name.endswith(".py"):
        root = checkout()
        return file_fingerprint(root / name) if root else None
    base = Path(__file__).resolve().parent.joinpath(*name.split(".")[1:])
    return file_fingerprint(base / "__init__.py") or file_fingerprint(base.with_suffix(".py"))


def _edited(name: str, since: float) -> bool:
    """Whether the source of a module or file of the checkout was written after `since` (seconds of the epoch)."""
    module = sys.modules.get(name)
    root = checkout()
    path = Path(module.__file__) if module else root / name if root and name.endswith(".py") else None
    return bool(path and path.is_file() and path.stat().st_mtime > since)


def fingerprint(*things: Any) -> str:
    """Hash of data: arrays, tensors, text, numbers and nested containers of them (16 hex digits).

    Equal content gives equal fingerprints on every machine; the type of container does not count.
    Raises TypeError for anything else, so that no object's address slips in.
    """
    digest = hashlib.sha256()

    def feed(thing: Any) -> None:
        if isinstance(thing, Mapping):
            for key in sorted(thing, key=str):
                feed(str(key))
                feed(thing[key])
        elif isinstance(thing, str | int | float | bool | bytes | type(None)):
            digest.update(repr(thing).encode() + b"|")
        elif isinstance(thing, Path):
            digest.update(thing.read_bytes())
        elif hasattr(thing, "detach"):
            feed(thing.detach().cpu().numpy())
        elif hasattr(thing, "dtype") and hasattr(thing, "tobytes"):
            digest.update(f"{thing.dtype}{getattr(thing, 'shape', ())}".encode() + thing.tobytes())
        elif isinstance(thing, Iterable):
            for part in thing:
                feed(part)
        else:
            raise TypeError(
                f"cannot fingerprint a {type(thing).__name__}; pass arrays, text, numbers or paths"
            )

    for thing in things:
        feed(thing)
    return digest.hexdigest()[:16]


# --- provenance --------------------------------------------------------------------------------------


def _git(*words: str) -> str | None:
    root = checkout()
    if root is None or not (root / ".git").exists():
        return None
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=20)
        if done.returncode == 0:
            return done.stdout.strip()
    return None


def commit(code: Iterable[str] = ()) -> dict[str, Any]:
    """`{"commit", "dirty"}` of the checkout, or of the Git address that pip installed the package from.

    `dirty` says whether any of `code` (module names, files of the checkout; default: all sources) differs
    from the commit.
    """
    head = _git("rev-parse", "HEAD")
    if head:
        files = []
        for name in code:
            base = Path("src").joinpath(*name.split("."))
            files += [name] if name.endswith(".py") else [f"{base}.py", f"{base}/__init__.py"]
        changes = _git("status", "--porcelain", "--", *(files or ["src", "notebooks"]))
        return {"commit": head, "dirty": bool(changes)}
    with contextlib.suppress(metadata.PackageNotFoundError, KeyError, TypeError, ValueError):
        direct = json.loads(metadata.distribution("companion").read_text("direct_url.json") or "{}")
        return {"commit": direct["vcs_info"]["commit_id"], "dirty": False}
    return {"commit": None, "dirty": None}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide numbers, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in VERSIONED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def processor() -> str:
    """The processor's marketing name where the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpu() -> dict[str, Any] | None:
    """`{"name", "count", "memory_gib"}` of the first CUDA device, or None. Imports torch only if loaded."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return None
    first = torch.cuda.get_device_properties(0)
    return {"name": first.name, "count": torch.cuda.device_count(),
            "memory_gib": round(first.total_memory / 2**30, 1)}  # fmt: skip


def peak_memory() -> dict[str, float | None]:
    """Peak memory of this process so far in MiB: resident set, and CUDA allocations (None without CUDA)."""
    try:
        import resource

        rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
            2**20 if sys.platform == "darwin" else 2**10
        )
    except ImportError:
        import psutil

        rss = psutil.Process().memory_info().peak_wset / 2**20
    torch = sys.modules.get("torch")
    device = torch.cuda.max_memory_allocated() / 2**20 if torch and torch.cuda.is_available() else None
    return {"rss_mib": round(rss, 1), "device_mib": round(device, 1) if device is not None else None}


# --- records -----------------------------------------------------------------------------------------


def write_json(path: Path, content: Any) -> None:
    """Write `content` to `path` so that a reader sees either the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.write_text(
        json.dumps(content, indent=1, ensure_ascii=False, allow_nan=True) + "\n", encoding="utf-8"
    )
    os.replace(part, path)


def _plain(thing: Any) -> Any:
    """Numbers, lists and dicts that JSON knows, out of NumPy scalars, arrays and tensors."""
    if isinstance(thing, Mapping):
        return {str(key): _plain(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [_plain(part) for part in thing]
    if hasattr(thing, "tolist"):
        return thing.tolist()
    return thing


class Run:
    """A run of one cell: opened before the work, saved after it.

    Args:
        cell: the `companion.tables.Cell` to fill; its parameters are `run.parameters`.
        seed: the run's seed, 0 or more.
        record_dir: folder for records; empty means `runs_folder()`.
    """

    def __init__(self, cell: Any, seed: int, record_dir: str | Path = "") -> None:
        if int(seed) < 0:
            raise ValueError(f"seed is {seed}; a seed is a whole number from 0")
        self.cell, self.seed = cell, int(seed)
        self.parameters = dict(cell.parameters)
        self.path = record_path(record_dir or runs_folder(), cell.scale, cell.paper, cell.table, cell.row,
                                cell.column, self.seed)  # fmt: skip
        self._started, self._clock = datetime.now(UTC), time.perf_counter()

    def save(self, metrics: Mapping[str, Any], *, curves: Mapping[str, Any] | None = None,
             data: Any = None, notes: Mapping[str, Any] | None = None) -> Path:  # fmt: skip
        """Write the record and return its path.

        Args:
            metrics: metric name -> number (None where it is undefined). The cell's metric must be there.
            curves: name -> list of numbers or of [x, y] pairs.
            data: whatever identifies the data; goes through `fingerprint`.
            notes: anything else worth keeping (formulas found, generated texts, chosen settings).

        Raises:
            KeyError: when the metric that the table shows is not among `metrics`.
        """
        metrics = _plain(metrics)
        if missing := [name for name in self.cell.metrics if name not in metrics]:
            raise KeyError(
                f"this cell shows {', '.join(missing)}; the run reports {', '.join(metrics) or 'nothing'}"
            )
        code = loaded_code()
        root, notebook = checkout(), f"notebooks/{self.cell.notebook}.py"
        if root and (found := file_fingerprint(root / notebook)):
            code[notebook] = found
        made = commit(code)
        # a source edited while the run was going on is not what ran
        began = self._started.timestamp()
        made["dirty"] = made["dirty"] or (made["commit"] and any(_edited(name, began) for name in code))
        record = {
            "schema": SCHEMA,
            "run": {"paper": self.cell.paper, "table": self.cell.table, "row": self.cell.row,
                    "column": self.cell.column, "scale": self.cell.scale, "seed": self.seed},
            "parameters": _plain(self.parameters),
            "metrics": metrics,
            "curves": _plain(curves or {}),
            "notes": _plain(notes or {}),
            "provenance": {
                "data": fingerprint(data) if data is not None else None,
                "code": code,
                **made,
                "versions": versions(),
                "platform": platform.system(),
                "processor": processor(),
                "threads": sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None,
                "gpu": gpu(),
                "started": self._started.isoformat(timespec="seconds"),
                "wall_s": round(time.perf_counter() - self._clock, 2),
                "peak_memory": peak_memory(),
            },
        }  # fmt: skip
        write_json(self.path, record)
        return self.path


def load(path: Path) -> dict[str, Any]:
    """One record. Raises ValueError, naming the file, when it is not a record of this schema."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"{path}: not a JSON record ({error}); delete the file and run the cell again"
        ) from None
    if not isinstance(record, dict) or record.get("schema") != SCHEMA:
        raise ValueError(f"{path}: not a record of schema {SCHEMA}; delete the file and run the cell again")
    return record


def read(
    folder: Path | str | None, paper: str = "*", table: str = "*", scale: str = "*"
) -> list[dict[str, Any]]:
    """All records below `folder`, in a stable order, each with its file under the key `path`."""
    if folder is None:
        return []
    found = sorted(Path(folder).glob(f"{scale}/{paper}/{table}/*/*/seed-*.json"))
    return [load(path) | {"path": str(path)} for path in found]


def frame(records: list[dict[str, Any]]) -> Any:
    """Records as one pandas frame: a line per run; nested keys joined by dots (`metrics.recovery`)."""
    import pandas as pd

    return pd.json_normalize([{k: v for k, v in r.items() if k != "curves"} for r in records])


def stale(record: Mapping[str, Any], cell: Any) -> str | None:
    """Why `record` no longer speaks for `cell` (one sentence), or None when it does."""
    changed = sorted(
        key for key in {*record["parameters"], *cell.parameters}
        if record["parameters"].get(key, "absent") != _plain(cell.parameters).get(key, "absent")
    )  # fmt: skip
    if changed:
        return f"made with other parameters ({', '.join(changed)})"
    made = record["provenance"]
    known = [made["code"], *([made["confirmed"]["code"]] if "confirmed" in made else [])]
    moved = [[name for name, old in code.items()
              if current_code(name) not in (old, None if name.endswith(".py") else "")] for code in known]  # fmt: skip
    if all(moved):
        return f"made by other code ({', '.join(moved[-1])})"
    return None


def differences(old: Mapping[str, Any], new: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Which of the metrics `names` came out differently in `new` than in `old` (beyond six digits).

    A metric that `old` lacks, or holds as None because it was not measured, is no difference. Raises ValueError where
    none is left: two records without a common number confirm nothing.
    """

    def same(a: Any, b: Any) -> bool:
        if not all(isinstance(x, int | float) for x in (a, b)):
            return a == b
        return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9) or (math.isnan(a) and math.isnan(b))

    had = {n: old["metrics"][n] for n in names if old["metrics"].get(n) is not None}
    if not had:
        raise ValueError("no number to compare: the record holds times and memory only")
    return [n for n, value in had.items() if not same(value, new["metrics"].get(n))]


def confirm(path: Path, witness: Mapping[str, Any]) -> None:
    """Note in the record at `path` that the code as it stands now gives the same numbers in the run `witness`.

    The record keeps the code and commit that it was made by; `provenance.confirmed` adds the code that the
    witness ran (and the present state of any other module that the record's own run had imported), its commit
    and its cell, so that `stale` accepts either.
    """
    record = load(path)
    made, seen = record["provenance"], witness["provenance"]
    code = {name: current_code(name) for name in made["code"]} | dict(seen["code"])
    made["confirmed"] = {
        "code": {name: value for name, value in sorted(code.items()) if value is not None},
        "commit": seen["commit"],
        "by": "/".join(str(witness["run"][k]) for k in ("scale", "paper", "table", "row", "column", "seed")),
        "on": seen["started"][:10],
    }
    write_json(path, record)
