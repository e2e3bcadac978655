"""Notebooks: pairs in step, outputs stored, one set-up cell, small defaults, figures that can be read aloud."""

import ast
import re

import jupytext
import nbformat
import pytest
from jupytext.compare import NotebookDifference, compare_notebooks

from companion import records, tables

ROOT = records.checkout()
SOURCES = sorted((ROOT / "notebooks").glob("*/*.py"))
NAMES = [str(p.relative_to(ROOT / "notebooks")) for p in SOURCES]


def setup_cell(book):
    return next(c.source for c in book.cells if c.cell_type == "code")


def test_there_are_notebooks_and_all_are_paired():
    assert SOURCES
    assert {p.with_suffix(".ipynb") for p in SOURCES} == set((ROOT / "notebooks").glob("*/*.ipynb"))


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_the_pair_is_in_step(path):
    text, book = jupytext.read(path), nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    try:
        compare_notebooks(
            book, text, fmt="py:percent", allow_expected_differences=True, compare_outputs=False
        )
    except NotebookDifference as difference:
        pytest.fail(
            f"{path.name} and its .ipynb differ; run make notebooks NOTEBOOKS={path.relative_to(ROOT)}\n{difference}"
        )


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_outputs_are_those_of_a_whole_run(path):
    book = nbformat.read(path.with_suffix(".ipynb"), as_version=4)
    counts = [c.execution_count for c in book.cells if c.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1)), "executed from top to bottom in one go"
    for cell in book.cells:
        if cell.cell_type == "code":
            assert not any(o.output_type == "error" for o in cell.outputs)
            if "NBVAL_CHECK_OUTPUT" in cell.source:
                assert cell.outputs, f"a cell to be compared has no stored output: {cell.source[:80]}"
            if any("image/png" in o.get("data", {}) for o in cell.outputs):
                own = cell.metadata.get("mystnb", {})
                assert own.get("image", {}).get("alt"), f"a figure without alt text: {cell.source[:80]}"
                assert own.get("figure", {}).get("caption"), f"a figure without caption: {cell.source[:80]}"
    text = path.with_suffix(".ipynb").read_text()
    assert str(ROOT) not in text
    assert "/home/" not in text


def comments(text):
    """Lines of Markdown that MyST takes for comments, outside code and headers of pages."""
    text = re.sub(r"^```.*?^```|\A---\n.*?^---\n", "", text, flags=re.M | re.S)
    return re.findall(r"^\s{0,3}%.*$", text, re.M)


def test_the_search_for_swallowed_lines_finds_them():
    assert comments("12\n% of the products\n```\n% code\n```\n50 % here") == ["% of the products"]


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_no_line_of_text_is_taken_for_a_comment(path):
    """A wrapped "12 %" whose sign begins a line vanishes from the page."""
    cells = [c.source for c in jupytext.read(path).cells if c.cell_type == "markdown"]
    assert [line for cell in cells for line in comments(cell)] == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "book").rglob("*.md")), ids=lambda p: f"{p.parent.name}/{p.stem}"
)
def test_no_line_of_a_page_is_taken_for_a_comment(path):
    assert comments(path.read_text()) == []


@pytest.mark.parametrize("paper", sorted({p.parent.name for p in SOURCES}))
def test_every_paper_compares_some_outputs_with_stored_ones(paper):
    marked = [p for p in SOURCES if p.parent.name == paper and "NBVAL_CHECK_OUTPUT" in p.read_text()]
    assert any(p.name == "method.py" for p in marked)


@pytest.mark.parametrize("path", SOURCES, ids=NAMES)
def test_the_set_up_cell_is_the_same_everywhere(path):
    assert setup_cell(jupytext.read(path)) == setup_cell(jupytext.read(ROOT / "notebooks/dncl/noise.py"))


def notebooks_of_tables():
    for name in tables.available():
        for table in tables.paper(name).tables.values():
            yield pytest.param(table, id=f"{name}-{table.id}")


@pytest.mark.parametrize("table", notebooks_of_tables())
def test_a_tables_notebook_has_the_parameters_and_small_defaults(table):
    book = jupytext.read(ROOT / "notebooks" / f"{table.notebook}.py")
    cells = [c for c in book.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(cells) == 1
    values = {t.id: ast.literal_eval(n.value) for n in ast.parse(cells[0].source).body for t in n.targets}
    assert set(values) == {"table", "row", "column", "scale", "seed", "record_dir"}
    scales = tables.table(table.paper, values["table"]).scales
    assert values["scale"] == ("reduced" if "reduced" in scales else next(iter(scales)))
    assert values["record_dir"] == ""
    paper = table.paper
    default = tables.cell(paper, values["table"], values["row"], values["column"], values["scale"])
    if "reduced" in scales:
        assert scales["reduced"].minutes <= 1.5
    assert cells[0].source.count("#") >= len(values), "each parameter says what it accepts"
    assert default.table == values["table"]
