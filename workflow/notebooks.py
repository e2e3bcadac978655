"""Pair, execute and store notebooks: `python workflow/notebooks.py notebooks/dncl/noise.py ...` (default: all).

The `.py` is the source. Its `.ipynb` gets the outputs of a real run at the reduced scale (the defaults of the
parameters cell); warnings on stderr, execution times and empty metadata are dropped so that diffs stay small.
Records go to a scratch folder: evidence is made by `companion reproduce`, not here.
"""

import os
import sys
import tempfile
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent


def store(source: Path) -> None:
    """Execute `source` and write the notebook beside it."""
    book = jupytext.read(source)
    for k, cell in enumerate(book.cells):
        cell["id"] = f"cell-{k:03d}"  # stable ids: an edit elsewhere changes nothing here
    book.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    book.metadata["language_info"] = {"name": "python"}
    NotebookClient(
        book, timeout=900, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}}
    ).execute()
    for cell in book.cells:
        if cell.cell_type != "code":
            continue
        cell.metadata.pop("execution", None)
        cell.outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
        if "figure" in cell.metadata.get("mystnb", {}):  # a caption belongs to the picture alone
            cell.outputs = [out for out in cell.outputs if out.output_type != "execute_result"]
    book.metadata["language_info"] = {"name": "python"}
    nbformat.validate(book)
    target = source.with_suffix(".ipynb")
    target.write_text(nbformat.writes(book) + "\n", encoding="utf-8")


def main() -> None:
    """Store the named notebooks, or all."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["COMPANION_RUNS"] = scratch
        named = [Path(name).resolve() for name in sys.argv[1:]] or sorted((ROOT / "notebooks").glob("*/*.py"))
        for k, source in enumerate(named):
            print(f"[{k + 1}/{len(named)}] {source.relative_to(ROOT)}", flush=True)
            store(source)


if __name__ == "__main__":
    main()
