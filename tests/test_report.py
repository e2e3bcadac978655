"""Results as HTML: what is known, what is not, and a link for every number."""

import json
import re
import shutil
import subprocess
import sys

import matplotlib.pyplot as plt
import pytest
from bs4 import BeautifulSoup

from companion import records, report, tables

ROOT = records.checkout()


def make_record(folder, row, column, seed, value, **changes):
    cell = tables.cell("dncl", "noise", row, column)
    record = {
        "schema": 1,
        "run": {"paper": "dncl", "table": "noise", "row": row, "column": column, "scale": "reduced", "seed": seed},
        "parameters": dict(cell.parameters) | changes,
        "metrics": dict.fromkeys((m.id for m in tables.table("dncl", "noise").metrics), value),
        "curves": {},
        "provenance": {
            "code": {}, "commit": "0123456789", "dirty": False, "gpu": None, "processor": "<a processor>",
            "wall_s": 3.0, "peak_memory": {"rss_mib": 100.0, "device_mib": None},
        },
    }  # fmt: skip
    path = records.record_path(folder, "reduced", "dncl", "noise", row, column, seed)
    records.write_json(path, record)


@pytest.fixture
def evidence(tmp_path, monkeypatch):
    folder = tmp_path / "results"
    monkeypatch.setattr(records, "evidence_folder", lambda: folder)
    monkeypatch.setattr(records, "runs_folder", lambda: tmp_path / "runs")
    for seed in range(3):
        make_record(folder, "dn-cl", "0.1", seed, 10.0 + seed)
    make_record(folder, "clean-only", "0.1", 0, 99.0, steps=1)
    make_record(tmp_path / "runs", "dn-cl", "0", 0, 42.0)
    return folder


def cells(html):
    table = BeautifulSoup(html, "lxml").find("table")
    heads = [th.get_text() for th in table.find("thead").find_all("th")]
    return {(tr.th.get_text(), head): td for tr in table.tbody.find_all("tr")
            for head, td in zip(heads[1:], tr.find_all("td"), strict=True)}  # fmt: skip


def test_a_cell_shows_reported_and_ours_with_a_link_to_the_record(evidence):
    found = cells(report.table("dncl", "noise"))
    ours = found["DN-CL", "η = 0.1"]
    assert "11.0 ± 2.5 (3)" in ours.get_text()
    link = ours.find("a")["href"]
    assert link == "../../reduced/dncl/noise/dn-cl/0.1/seed-0.json"
    assert (evidence / link.removeprefix("../../")).is_file()
    published = found["NeSymReS, published", "η = 0"]
    assert "65.0" in published.get_text()
    assert "AlphaSymbol" in published.find(class_="reported")["title"]


def test_what_is_missing_or_stale_says_so(evidence):
    found = cells(report.table("dncl", "noise"))
    assert found["noise augmentation", "η = 0.1"].get_text() == "unknown · not run"
    stale = found["clean training", "η = 0.1"]
    assert "stale" in stale.get_text()
    assert "steps" in stale.find(class_="stale")["title"]
    assert "99" not in stale.get_text()


def test_this_machines_runs_stand_apart_from_the_evidence(evidence):
    cell = cells(report.table("dncl", "noise"))["DN-CL", "η = 0"]
    assert "here 42.0" in cell.get_text()
    assert cell.find("a") is None


def test_run_lists_escape_what_they_show(evidence):
    html = report.table("dncl", "noise")
    assert "&lt;a processor&gt;" in html
    assert "4 run records" in html


def test_claims_show_effect_seeds_and_verdict(evidence):
    for seed in range(3):
        for column in ("0.05", "0.1"):
            make_record(evidence, "dn-cl", column, seed, 30.0 + seed)
            make_record(evidence, "noise-augmented", column, seed, 20.0 + seed)
    text = BeautifulSoup(report.claims(["dncl"]), "lxml").get_text(" ")
    assert "+10" in text
    assert "3 seeds" in text
    assert "supported" in text
    assert "not tested" in text


def test_the_overview_counts_each_claim_once(evidence):
    for seed in range(3):
        for column in ("0.05", "0.1"):
            make_record(evidence, "dn-cl", column, seed, 30.0 + seed)
            make_record(evidence, "noise-augmented", column, seed, 20.0 + seed)
    rows = BeautifulSoup(report.overview(), "lxml").select("tbody tr")
    texts = {row.th.get_text(): [cell.get_text() for cell in row.select("td")] for row in rows}
    assert set(texts) == {tables.paper(name).short for name in tables.available()}
    *counts, runs = texts[tables.paper("dncl").short]
    counts = [0 if c == "–" else int(c) for c in counts]
    assert sum(counts) == len(tables.paper("dncl").claims)
    assert counts[0] == 1  # against noise augmentation; every other claim lacks its records
    assert runs == f"{len(records.read(evidence, 'dncl'))} runs"


def test_publishing_fills_the_address_in_once_and_everywhere(tmp_path):
    home = tmp_path / "checkout"
    (home / "notebooks" / "dncl").mkdir(parents=True)
    shutil.copytree(ROOT / "workflow", home / "workflow")
    shutil.copy(ROOT / "_config.yml", home)
    for name in ("noise.py", "noise.ipynb"):
        shutil.copy(ROOT / "notebooks" / "dncl" / name, home / "notebooks" / "dncl")
    publish = [sys.executable, str(home / "workflow" / "publish.py")]
    assert subprocess.run([*publish, "not a name"], capture_output=True).returncode == 2
    assert subprocess.run([*publish, "someone/their-fork"]).returncode == 0
    assert "url: https://github.com/someone/their-fork" in (home / "_config.yml").read_text()
    wanted = 'REPOSITORY = "https://github.com/someone/their-fork@published"'
    assert wanted in (home / "notebooks/dncl/noise.py").read_text()
    book = json.loads((home / "notebooks/dncl/noise.ipynb").read_text())
    assert any(wanted in "".join(c["source"]) for c in book["cells"])


def test_the_address_is_written_nowhere_else():
    done = subprocess.run(
        ["git", "-C", str(ROOT), "grep", "-l", "OWNER/REPOSITORY"], capture_output=True, text=True
    )
    if done.returncode == 128:
        pytest.skip("not a Git checkout")
    assert set(done.stdout.split()) <= {"_config.yml", "workflow/publish.py", "tests/test_report.py"}


def test_benchmarks_show_what_was_stored_and_say_what_was_not(tmp_path, monkeypatch):
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    (folder / "fast.py").write_text('"""Fast against slow: `python`."""\n')
    (folder / "later.py").write_text('"""Never run.\n\nIts details.\n"""\n')
    stored = {"ratio": 3.25, "rows": {"ours": {"seconds": 2, "identical": True}, "theirs": {"seconds": 6.5}}}
    (folder / "fast.json").write_text(
        json.dumps(stored | {"processor": "a processor", "versions": {"torch": "2"}})
    )
    monkeypatch.setattr(report.records, "checkout", lambda: tmp_path)
    page = BeautifulSoup(report.benchmarks(), "lxml")
    assert [h.text for h in page.find_all("h2")] == ["Fast against slow", "Never run"]
    cells = [[c.text for c in row.find_all(["th", "td"])] for row in page.find_all("tr")]
    assert cells == [
        ["ratio", "3.25"],
        ["", "seconds", "identical"],
        ["ours", "2", "yes"],
        ["theirs", "6.5", "–"],
    ]
    assert "a processor, torch 2" in page.text
    assert "Not measured yet." in page.text


@pytest.mark.parametrize(
    ("title", "metric", "unit", "shown"),
    [
        ("η = 0.1", "", "%", "η = 0.1"),  # the table's own metric stands in the caption
        ("top-1", "top-1", "%", "top-1<br><small>% ↑</small>"),
        ("exact, η = 0", "exact skeleton, η = 0", "%", "exact skeleton, η = 0<br><small>% ↑</small>"),
        ("Nguyen recovered", "recovered", "", "Nguyen recovered<br><small>↑</small>"),
        ("λ < 1", "unseen", "%", "λ &lt; 1<br><small>unseen, % ↑</small>"),
    ],
)
def test_a_head_says_once_what_title_and_metric_share(title, metric, unit, shown):
    column = tables.Line("c", title, ("reduced",), metric=metric and "m")
    assert report._head(column, tables.Metric("m", metric, "higher", unit)) == shown


@pytest.mark.parametrize("page", sorted((ROOT / "book").rglob("*.md")), ids=lambda page: page.stem)
def test_a_page_stands_without_any_record(page, tmp_path, monkeypatch):
    """After a change of code all of a paper's records may be stale; its pages must say so and not stop the book."""
    monkeypatch.setattr(records, "evidence_folder", lambda: tmp_path)
    monkeypatch.setattr(records, "runs_folder", lambda: tmp_path)
    names = {}
    for cell in re.findall(r"^```\{code-cell\}.*?\n(.*?)^```", page.read_text(), re.M | re.S):
        source = re.sub(r"\A---\n.*?^---\n|^:.*\n", "", cell, flags=re.M | re.S)
        exec(compile(source, page.name, "exec"), names)
    plt.close("all")


def test_where_nothing_was_run_the_cells_hold_reported_values_only(evidence):
    shutil.rmtree(evidence)
    shutil.rmtree(evidence.parent / "runs")
    html = report.table("dncl", "noise")
    found = cells(html)
    assert found["noise augmentation", "η = 0.1"].get_text() == "unknown"
    assert "Not run at" in html
