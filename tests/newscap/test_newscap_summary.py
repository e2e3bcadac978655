import pytest

from companion import records, tables
from companion.newscap import summary


def save(folder, row, seed, value):
    cell = tables.cell("newscap", "layers", row, "all", "real")
    records.Run(cell, seed, folder).save(dict.fromkeys(cell.metrics, value))


def test_an_excerpt_says_mean_interval_and_seeds(tmp_path):
    save(tmp_path, "last1", 0, 20.0)
    save(tmp_path, "last1", 1, 30.0)
    save(tmp_path, "first1", 0, 7.0)
    shown = summary.excerpt("layers", ["all"], ["last1", "first1", "all"], folder=tmp_path)
    # t(1) = 12.706; its half-width is 12.706 * deviation 7.07 / sqrt(2)
    assert "<td>25.0 ± 63.5 (2)</td>" in shown
    assert "<td>7.0 (1)</td>" in shown
    assert "<td>not run</td>" in shown
    assert shown.index("the last layer") < shown.index("the first layer") < shown.index("all four")
    every = summary.excerpt("layers", ["all"], ["last1"], each=True, folder=tmp_path)
    assert "<td>20.0, 30.0</td>" in every


def test_all_rows_unless_some_are_named(tmp_path):
    shown = summary.excerpt("layers", ["all", "oracle"], folder=tmp_path)
    assert shown.count("not run") == 2 * len(tables.table("newscap", "layers").rows)


def test_a_name_that_the_table_lacks(tmp_path):
    with pytest.raises(ValueError, match="the table layers has no 'last9'; it has first1, last1"):
        summary.excerpt("layers", ["all"], ["last9"], folder=tmp_path)
    with pytest.raises(ValueError, match="has no 'cider'; it has all, oracle"):
        summary.excerpt("layers", ["cider"], folder=tmp_path)
