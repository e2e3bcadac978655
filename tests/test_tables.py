"""Tables as data: what is refused, with which words, and how records become cells and verdicts."""

import dataclasses
import math

import pytest

from companion import records, tables

GOOD = """
[paper]
title = "T"
short = "S"
authors = ["A"]
year = 2024
arxiv = "1"
evidence = "all read"
[claims.better]
text = "better"
source = "abstract"
table = "t"
row = "new"
than = "old"
at_least = 0.0
[tables.t]
title = "A table"
origin = "paper: Table 1"
notebook = "x/y"
metrics = [{ id = "acc", title = "accuracy", direction = "higher", unit = "%", decimals = 1 },
           { id = "f1", title = "F1", direction = "higher" }]
tolerance = 1.0
[tables.t.scales.reduced]
seeds = 2
minutes = 0.1
parameters = { steps = 10, lr = 0.1 }
[tables.t.scales.full]
minutes = 9.0
parameters = { steps = 1000 }
[tables.t.rows.new]
title = "new"
parameters = { method = "new" }
parameters_at.full = { steps = 2000 }
[tables.t.rows.old]
title = "old"
parameters = { method = "old" }
[tables.t.rows.big]
title = "big"
at = ["full"]
[tables.t.rows.other]
title = "other, published"
reference = true
[tables.t.columns.a]
title = "A"
parameters = { task = "a" }
[tables.t.columns.b]
title = "B"
run = "a"
metric = "f1"
parameters = { task = "a" }
[tables.t.reported]
default = { origin = "unknown" }
new.a = { value = 81.2, spread = 0.4, origin = "paper: Table 1" }
other.a = { value = 70.0, origin = "secondary: a review" }
"""


def paper(text=GOOD):
    return tables.parse(text, "p", "papers/p.toml")


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("year = 2024", "year = '2024'", ["papers/p.toml", "year", "int"]),
        ("seeds = 2", "seed = 2", ["table 't'", "scale 'reduced'", "'seed'", "seeds"]),
        (
            'value = 81.2, spread = 0.4, origin = "paper: Table 1"',
            "value = 81.2",
            ["cell 'new' × 'a'", "origin"],
        ),
        (
            'value = 70.0, origin = "secondary: a review"',
            "value = 70.0, origin = 'seen'",
            ["cell 'other' × 'a'", "'seen'"],
        ),
        (
            'value = 70.0, origin = "secondary: a review"',
            'origin = "paper: Table 2"',
            ["'other' × 'a'", "no value"],
        ),
        ("new.a = {", "new.c = {", ["row 'new'", "column 'c'"]),
        ("other.a = {", "another.a = {", ["row 'another'"]),
        ('metric = "f1"', 'metric = "f2"', ["column 'b'", "'f2'", "f1"]),
        ('direction = "higher" }]', 'direction = "up" }]', ["metric 2", "'up'", "higher, lower, none"]),
        ('row = "new"', 'row = "newer"', ["claim 'better'", "'newer'", "new"]),
        ("at_least = 0.0", "", ["claim 'better'", "at_least", "at_most"]),
        ('default = { origin = "unknown" }', "", ["cell 'new' × 'b'", "nothing reported"]),
        (
            "parameters = { steps = 10, lr = 0.1 }",
            "parameters = { steps = [1] }",
            ["'reduced'", "steps", "flat"],
        ),
        ("[tables.t.columns.a]", "[tables.t.columns.'a/b']", ["'a/b'", "file name"]),
        ("[tables.t.scales.full]", "[tables.t.scales.huge]", ["'huge'", "did you mean"]),
    ],
)
def test_a_wrong_toml_is_refused_with_its_place(old, new, words):
    assert old in GOOD
    with pytest.raises(tables.TableError) as error:
        paper(GOOD.replace(old, new))
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "papers/p.toml" in str(error.value)


def test_a_table_without_columns_is_refused():
    text = (
        GOOD[: GOOD.index("[tables.t.columns.a]")]
        + "[tables.t.columns]\n"
        + GOOD[GOOD.index("[tables.t.reported]") :]
    )
    with pytest.raises(tables.TableError, match="without a column"):
        paper(text)


def test_parameters_go_from_scale_over_row_to_column():
    t = paper().tables["t"]
    assert t.cell("new", "a", "reduced").parameters == {"steps": 10, "lr": 0.1, "method": "new", "task": "a"}
    assert t.cell("new", "a", "full").parameters == {"steps": 2000, "method": "new", "task": "a"}


def test_columns_that_share_a_run_are_one_cell_with_both_metrics():
    t = paper().tables["t"]
    cells = t.cells("reduced")
    assert [(c.row, c.column) for c in cells] == [("new", "a"), ("old", "a")]
    assert cells[0].metrics == ("acc", "f1")
    assert t.cell("new", "b", "reduced") == t.cell("new", "a", "reduced")


def test_rows_live_only_at_their_scales_and_references_never_run():
    t = paper().tables["t"]
    assert "big" in [c.row for c in t.cells("full")]
    assert "big" not in [c.row for c in t.cells("reduced")]
    with pytest.raises(tables.TableError, match="exists at full, not at reduced"):
        t.cell("big", "a", "reduced")
    with pytest.raises(tables.TableError, match="published values"):
        t.cell("other", "a", "reduced")


def test_wrong_names_get_the_nearest_ones():
    with pytest.raises(tables.TableError, match="noise"):
        tables.cell("dncl", "nose", "dn-cl", "0")
    with pytest.raises(tables.TableError, match="dn-cl"):
        tables.cell("dncl", "noise", "dncl", "0")
    with pytest.raises(tables.TableError, match=r"0\.1"):
        tables.cell("dncl", "noise", "dn-cl", "0.11")
    with pytest.raises(tables.TableError, match="reduced"):
        tables.cell("dncl", "noise", "dn-cl", "0", "reduce")
    with pytest.raises(tables.TableError, match="dncl"):
        tables.paper("dnlc")


def record(row, seed, acc, f1=0.5, **changes):
    cell = paper().tables["t"].cell(row, "a", changes.pop("scale", "reduced"))
    return {"run": {"paper": "p", "table": "t", "row": row, "column": "a", "scale": cell.scale, "seed": seed},
            "parameters": dict(cell.parameters) | changes, "metrics": {"acc": acc, "f1": f1},
            "provenance": {"code": {}}, "path": f"{row}-{seed}"}  # fmt: skip


def test_a_cell_is_the_mean_over_seeds_with_a_t_interval():
    grid = tables.results(
        paper().tables["t"], "reduced", [record("new", k, v) for k, v in enumerate([80, 82, 84])]
    )
    cell = grid[0][0]
    assert cell.mean == 82
    # t(0.975; 2) = 4.30265, standard deviation 2
    assert cell.half_width == pytest.approx(4.30265 * 2 / math.sqrt(3), rel=1e-5)
    assert tables.text(cell) == "82.0 ± 5.0 (3)"
    assert [c.status for c in grid[1]] == ["not run", "not run"]
    assert [c.status for c in grid[3]] == ["reference", "reference"]
    assert tables.results(paper().tables["t"], "reduced", [record("new", 0, 80, f1=0.7)])[0][1].mean == 0.7


def test_t_quantiles_are_scipys():
    from scipy.special import stdtrit

    for freedom in [*range(1, 40), 100, 1000]:
        assert tables.t_quantile(freedom) == pytest.approx(stdtrit(freedom, 0.975), abs=1e-4)


def test_other_parameters_make_a_record_stale_and_keep_it_out_of_the_mean():
    found = [record("new", 0, 80.0), record("new", 1, 10.0, steps=11)]
    cell = tables.results(paper().tables["t"], "reduced", found)[0][0]
    assert cell.values == {0: 80.0}
    assert "steps" in cell.stale
    alone = tables.results(paper().tables["t"], "reduced", found[1:])[0][0]
    assert alone.status == "stale"
    assert tables.text(alone) == "stale"


def test_other_code_makes_a_record_stale():
    cell = paper().tables["t"].cell("new", "a", "reduced")
    made = record("new", 0, 80.0)
    made["provenance"]["code"] = {"companion.training": records.current_code("companion.training")}
    assert records.stale(made, cell) is None
    made["provenance"]["code"]["companion.training"] = "0" * 16
    assert "companion.training" in records.stale(made, cell)


def test_only_the_full_scale_can_reproduce_a_number():
    t = paper().tables["t"]

    def at(scale, *values):
        found = [record("new", k, v, scale=scale) for k, v in enumerate(values)]
        return tables.verdict(tables.results(t, scale, found)[0][0], scale, t.tolerance)

    assert at("full", 81.0) == "reproduced"
    assert at("full", 79.5) == "partly reproduced"
    assert at("full", 70.0) == "not reproduced"
    assert at("reduced", 81.0) == "other scale"
    assert at("full") == "not run"
    result = tables.results(t, "full", [record("new", 0, 81.0, scale="full")])[0][0]
    unread = dataclasses.replace(result, reported=tables.Reported("unknown"))
    assert tables.verdict(unread, "full", t.tolerance) == "unknown"
    assert tables.verdict(dataclasses.replace(result, reported=None), "full", t.tolerance) == "–"


@pytest.mark.parametrize(
    ("gaps", "word"),
    [
        ([2, 3, 2.5], "supported"),
        ([-2, -3, -2.5], "not supported"),
        ([2, -3, 1], "mixed"),
        ([2], "not tested"),
    ],
)
def test_claims_are_judged_by_the_whole_interval(gaps, word):
    found = [record("old", k, 70.0) for k in range(len(gaps))]
    found += [record("new", k, 70.0 + gap) for k, gap in enumerate(gaps)]
    claim = paper().claims[0]
    claim = type(claim)(**{**claim.__dict__, "columns": ("a",)})
    assert tables.judge(claim, paper(), "reduced", found).verdict == word


def test_ratio_and_value_claims():
    claim = paper().claims[0]
    found = [record("old", k, 50.0) for k in range(3)] + [record("new", k, 48.0 + 0.1 * k) for k in range(3)]
    ratio = type(claim)(**{**claim.__dict__, "columns": ("a",), "kind": "ratio", "at_least": 0.95})
    finding = tables.judge(ratio, paper(), "reduced", found)
    assert finding.verdict == "supported"
    assert finding.effect == pytest.approx(48.1 / 50)
    value = type(claim)(
        **{**claim.__dict__, "columns": ("a",), "kind": "value", "at_least": None, "at_most": 40.0}
    )
    assert tables.judge(value, paper(), "reduced", found).verdict == "not supported"


def test_render_forms():
    head, body = ["row", "x"], [["a & b", "1 ± 2"]]
    assert tables.render(head, body, "csv") == "row,x\na & b,1 ± 2\n"
    assert r"a \& b & 1 $\pm$ 2 \\" in tables.render(head, body, "latex")
    assert "| a & b | 1 ± 2 |" in tables.render(head, body, "markdown")
    with pytest.raises(tables.TableError, match="markdown"):
        tables.render(head, body, "markdwn")


@pytest.mark.parametrize("name", tables.available())
def test_every_shipped_cell_resolves(name):
    for table in tables.paper(name).tables.values():
        for scale in table.scales:
            for cell in table.cells(scale):
                assert table.cell(cell.row, cell.column, scale) == cell
                assert cell.parameters


def test_a_table_of_ours_has_nothing_unknown_to_report():
    ours = tables.table("dncl", "training")
    assert ours.origin == "companion"
    assert not ours.reported
    assert tables.table("dncl", "noise").reported["dn-cl", "0"].value is None
    assert tables.table("dncl", "peers").reported["nesymres", "nguyen-0.05"].value == 12.0
