"""The chapter's tables and figures, and the runs that the committed notebooks show."""

import ast
import json
import math
import re

import matplotlib.pyplot as plt
import nbformat
import pytest
from bs4 import BeautifulSoup

from companion import records, tables
from companion.reactiont5 import summary

NOTEBOOKS = records.checkout() / "notebooks" / "reactiont5"


def put(folder, table, row, column, scale, seed, **values):
    """A record of today's code and parameters, with the given metrics (all others 0)."""
    cell = tables.cell("reactiont5", table, row, column, scale)
    names = [m.id for m in tables.table("reactiont5", table).metrics]
    record = {
        "schema": 1,
        "run": {"paper": "reactiont5", "table": table, "row": row, "column": cell.column, "scale": scale, "seed": seed},
        "parameters": dict(cell.parameters), "metrics": dict.fromkeys(names, 0.0) | values,
        "curves": {"loss": [[1, 2.0]], "rmse, held out": [[1, 9.0], [2, 8.0]], "rmse, test": [[1, 7.0], [2, 8.0]]},
        "provenance": {"code": {}},
    }  # fmt: skip
    path = records.record_path(folder, scale, "reactiont5", table, row, cell.column, seed)
    records.write_json(path, record)


def lines(html):
    rows = BeautifulSoup(html, "lxml").find_all("tr")
    return {row.th.get_text(): [td.get_text() for td in row.find_all("td")] for row in rows[1:]}


def test_a_cell_is_mean_interval_and_seeds_and_one_seed_is_a_value(tmp_path):
    for seed, value in enumerate((20.0, 30.0)):
        put(tmp_path, "few-shot-world", "reaction", "10", "reduced", seed, top1_10=value)
    put(tmp_path, "few-shot-world", "scratch", "10", "reduced", 0, top1_10=1.0)
    shown = summary.excerpt(
        "few-shot-world", "reduced", {"10": "ten", "30": "thirty"}, "t <", folder=tmp_path
    )
    assert "t &lt;" in shown
    # two values 10 apart: t of one degree of freedom times 5
    assert lines(shown) == {
        "pre-trained on reactions": ["25.0 ± 63.5 (2)", "0.0 (2)"],
        "pre-trained on molecules only": ["not run", "not run"],
        "not pre-trained": ["1.0", "0.0"],
    }


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        ({"11": "x"}, (), "few-shot-world has no column '11'; it has 0, 10, 30"),
        ({"10": "x"}, ["real"], "few-shot-world has no row 'real'; it has reaction, compound, scratch"),
    ],
)
def test_a_name_that_the_table_lacks(tmp_path, columns, rows, message):
    with pytest.raises(tables.TableError, match=message):
        summary.excerpt("few-shot-world", "reduced", columns, "t", rows, tmp_path)


def test_yields_stand_below_what_the_authors_report(tmp_path):
    put(tmp_path, "yield-small", "real", "test3", "real", 0, r2=0.5, r2_published=0.625, optimism=0.125)
    found = lines(summary.yields(tmp_path))
    assert found["reported: ReactionT5"] == [
        "0.947 ± 0.003",
        "0.872",
        "0.917",
        "0.811",
        "0.830",
        "0.857 ± 0.041",
        "–",
    ]
    assert found["small network, pre-trained on patent reactions"] == [
        *["not run"] * 3,
        "0.500",
        "not run",
        "–",  # a mean of one Test would not be the mean of four
        "not run",
    ]
    assert found["random forest, DRFP"] == [*["not run"] * 5, "–", "not run"]
    for k, value in enumerate((0.1, 0.2, 0.3, 0.8), 1):
        put(tmp_path, "yield-small", "scratch", f"test{k}", "real", 0, r2=value)
    assert lines(summary.yields(tmp_path))["small network, not pre-trained"][5] == "0.350"
    chosen = lines(summary.choices(tmp_path))
    assert [v[3] for k, v in chosen.items() if k.startswith("patents")] == [
        "0.500",
        "0.625",
        "0.000",
        "0.125",
    ]


def test_the_interval_of_a_forest_on_random_splits_is_over_the_splits(tmp_path):
    for seed in (0, 1):  # two runs that agree, each the mean of two splits that do not
        put(tmp_path, "yield-baselines", "mean", "random", "real", seed, r2=0.5)
    path = records.record_path(tmp_path, "real", "reactiont5", "yield-baselines", "mean", "random", 0)
    record = json.loads(path.read_text())
    assert lines(summary.yields(tmp_path))["mean of the training yields"][0] == "0.500 (2)"
    records.write_json(path, record | {"notes": {"r2 of each split": [0.4, 0.6]}})
    # two values 0.2 apart: t of one degree of freedom times 0.1
    assert lines(summary.yields(tmp_path))["mean of the training yields"][0] == "0.500 ± 1.271 (2)"


def test_curves_are_of_one_task_and_leave_out_what_was_not_run(tmp_path):
    put(tmp_path, "few-shot-uspto", "real", "forward-0", "real", 0, top1_0=19.0, top1_200=13.0, top5_200=23.0)
    put(tmp_path, "few-shot-uspto", "scratch", "retro-0", "real", 0, top1_0=7.0)
    found = summary.curves("few-shot-uspto", "real", "forward", tmp_path)
    assert list(found) == ["patent reactions"]
    assert [point[:2] for point in found["patent reactions"]] == [
        (0, 19.0),
        (10, 0.0),
        (30, 0.0),
        (100, 0.0),
        (200, 13.0),
    ]
    assert math.isnan(found["patent reactions"][0][2])  # one seed has no interval


def test_every_start_of_the_figure_has_a_name():
    rows = {r.id for t in ("few-shot-world", "few-shot-uspto") for r in tables.table("reactiont5", t).rows}
    assert rows == set(summary.STARTS)


def test_figures_draw_what_is_there_and_say_when_nothing_is(tmp_path, capsys):
    assert summary.few_shot_figure(tmp_path) is None
    assert summary.selection_figure(folder=tmp_path) is None
    assert capsys.readouterr().out.count("Not drawn: no valid record of") == 2
    put(tmp_path, "few-shot-world", "reaction", "10", "reduced", 0, top1_10=50.0)
    left, right = summary.few_shot_figure(tmp_path).axes
    assert [t.get_text() for t in left.get_legend().get_texts()] == ["reactions"]
    assert right.get_legend() is None
    put(tmp_path, "yield-small", "real", "test4", "real", 0)
    put(tmp_path, "yield-small", "scratch", "test1", "real", 0)
    (only,) = summary.selection_figure(folder=tmp_path).axes
    assert only.get_title() == "Test 4"
    # the smallest held-out error is at the second look, the smallest test error at the first
    assert [tuple(line.get_xydata()[0]) for line in only.lines if len(line.get_xdata()) == 1] == [
        (2, 8),
        (1, 7),
    ]
    plt.close("all")


def outputs(name):
    book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    return [(cell, out) for cell in book.cells if cell.cell_type == "code" for out in cell.outputs]


def test_the_walk_through_shows_the_recorded_curves():
    drawn = [cell.metadata["mystnb"]["figure"]["name"] for cell, out in outputs("method")
             if "image/png" in out.get("data", {})]  # fmt: skip
    assert "fig-reactiont5-curves" in drawn
    assert not any("no committed records" in out.get("text", "") for _, out in outputs("method"))


def test_the_run_that_the_page_on_epochs_shows_is_the_recorded_one():
    """A committed notebook without outputs ("nothing is run") would fail here, as would a run of other code."""
    printed = "".join(out.get("text", "") for _, out in outputs("yield_selection"))
    r2 = [float(x) for x in re.findall(r"(-?\d\.\d{3}) (?:chosen|at)", printed)]
    path = records.record_path(
        records.evidence_folder(), "real", "reactiont5", "yield-small", "real", "test1", 0
    )
    kept = json.loads(path.read_text())["metrics"]
    assert r2 == [round(kept[name], 3) for name in ("r2", "r2_published", "r2_last")]
    assert sum("image/png" in out.get("data", {}) for _, out in outputs("yield_selection")) == 2


@pytest.mark.parametrize("empty", [False, True])
def test_every_cell_of_the_chapter_runs_with_and_without_records(empty, tmp_path, monkeypatch):
    if empty:
        monkeypatch.setattr(records, "evidence_folder", lambda: tmp_path)
    text = (records.checkout() / "book" / "papers" / "reactiont5.md").read_text()
    names, shown = {}, 0
    for cell in re.findall(r"^```\{code-cell\}\n(.*?)^```", text, re.M | re.S):
        source = re.sub(r"\A---\n.*?\n---\n|\A(?::[^\n]*\n)+", "", cell, flags=re.S)
        tree = ast.parse(source)
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "chapter", "exec"), names)
        value = eval(compile(ast.Expression(last.value), "chapter", "eval"), names) if last else None
        if value is not None:
            shown += 1
            assert ("not run" in value) or not empty
            assert value.count("<td>") > 5
    assert shown == text.count("\nsummary.excerpt(") + text.count("\npatents(") + 2  # yields, choices
    plt.close("all")
