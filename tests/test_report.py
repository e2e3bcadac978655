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
    return {(next(tr.th.stripped_strings), head): td for tr in table.tbody.find_all("tr")
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
    sources = BeautifulSoup(report.table("dncl", "noise"), "lxml").select_one(".sources")
    assert "AlphaSymbol" in sources.get_text()


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


def test_a_benchmark_shows_titles_and_a_sentence_or_says_that_it_was_not_measured(tmp_path, monkeypatch):
    folder = tmp_path / "benchmarks"
    folder.mkdir()
    stored = {
        "ratio": 3.25,
        "rows": {"raw-key": {"s": 2, "same": True}, "theirs": {"s": 6.5}},
        "flat": {"1": 1200},
    }
    (folder / "fast.json").write_text(
        json.dumps(stored | {"processor": "a processor", "versions": {"torch": "2"}})
    )
    monkeypatch.setattr(report.records, "checkout", lambda: tmp_path)
    parts = [
        ("rows", "Times", "who", {"s": "seconds", "same": "same answer"}),
        ("flat", "More", "what", {"": "number"}),
    ]
    html = report.benchmark(
        "fast", "**{ratio:.1f} times**, {rows[theirs][s]} s.", *parts, titles={"raw-key": "ours"}
    )
    page = BeautifulSoup(html, "lxml")
    assert page.p.get_text() == "3.2 times, 6.5 s."
    found = [[c.text for c in row.find_all(["th", "td"])] for row in page.find("table").find_all("tr")]
    assert found == [["who", "seconds", "same answer"], ["ours", "2", "yes"], ["theirs", "6.5", "–"]]
    assert page.details.summary.text == "More"
    assert [c.text for c in page.details.select("tbody tr > *")] == ["1", "1,200"]
    assert "a processor, torch 2" in page.text
    assert "1200" in report.benchmark("fast", "{table[1]}", parts[1])
    assert "Not measured yet." in report.benchmark("later", "{ratio}")
    with pytest.raises(KeyError, match="no column 'missing'"):
        report.benchmark("fast", "", ("rows", "Times", "who", {"missing": "x"}))


def test_every_benchmark_is_on_its_page():
    page = (ROOT / "book" / "benchmarks.md").read_text()
    scripts = {p.stem for p in (ROOT / "benchmarks").glob("*.py")}
    assert set(re.findall(r'report\.benchmark\("(\w+)"', page)) == scripts


@pytest.mark.parametrize(
    ("title", "metric", "unit", "shown"),
    [
        ("η = 0.1", "recovery", "%", "η = 0.1<br><small>recovery, % ↑</small>"),
        ("top-1", "top-1", "%", "top-1<br><small>% ↑</small>"),
        ("exact, η = 0", "exact skeleton, η = 0", "%", "exact skeleton, η = 0<br><small>% ↑</small>"),
        ("Nguyen recovered", "recovered", "", "Nguyen recovered<br><small>↑</small>"),
        ("λ < 1", "unseen", "%", "λ &lt; 1<br><small>unseen, % ↑</small>"),
        ("10 reactions, invalid", "invalid among the top 5", "%",
         "10 reactions<br><small>invalid among the top 5, % ↑</small>"),
        ("product, 10 examples", "top-1 with 10 examples", "%",
         "product<br><small>top-1 with 10 examples, % ↑</small>"),
    ],
)  # fmt: skip
def test_a_head_says_once_what_title_and_metric_share(title, metric, unit, shown):
    column = tables.Line("c", title, ("reduced",), metric="m")
    assert report._head(column, tables.Metric("m", metric, "higher", unit)) == shown


def heads_and_caption(paper, table):
    found = BeautifulSoup(report.table(paper, table), "lxml").find("table")
    return [th.get_text(" ") for th in found.thead.find_all("th")][1:], found.caption.get_text()


@pytest.mark.parametrize("name", tables.available())
def test_every_head_or_the_caption_names_metric_and_unit(name):
    """Also in a column that shows the table's first metric while others have their own."""
    for table in tables.paper(name).tables.values():
        heads, caption = heads_and_caption(name, table.id)
        for column, head in zip(table.columns, heads, strict=True):
            metric = table.metric(column)
            said = report._words(f"{caption} {head}")
            assert report._words(metric.title) <= said, (table.id, head)
            assert not metric.unit or metric.unit in f"{caption} {head}", (table.id, head)


def test_a_metric_that_all_columns_share_stands_in_the_caption_once(evidence):
    heads, caption = heads_and_caption("dncl", "noise")
    assert heads[0] == "η = 0"
    assert caption == "Reduced scale: Nguyen recovery, % ↑"
    heads, caption = heads_and_caption("ytuning", "glue")
    assert "accuracy, % ↑" in heads[1]
    assert "accuracy" not in caption


def test_each_reported_value_leads_to_where_it_was_read():
    page = BeautifulSoup(report.table("reactiont5", "retrosynthesis"), "lxml")
    marked = page.select("sup a[href^='#']")
    assert len(marked) == len(page.select(".reported")) - sum(
        r.text == "unknown" for r in page.select(".reported")
    )
    read = {a["href"]: page.find(id=a["href"][1:]).get_text() for a in marked}
    assert any("recalled from the authors' model card" in text for text in read.values())
    assert len(read) == len(page.select(".sources span")) > 2


def test_one_source_for_all_is_named_below_without_numbers():
    page = BeautifulSoup(report.table("dgsct", "avvp"), "lxml")
    assert page.select_one(".sources").get_text() == "Reported values as read in: the paper, Table 2."
    assert not page.find("sup")


def test_published_values_stay_with_the_metric_that_was_published(evidence):
    page = BeautifulSoup(report.table("dncl", "noise"), "lxml")
    assert any("NeSymReS" in row.text for row in page.select("table")[0].select("tr"))
    others = page.select("details table")
    assert others
    assert not any("NeSymReS" in row.text for table in others for row in table.select("tr"))


def test_a_count_that_all_seeds_agree_on_has_no_interval(evidence):
    for seed in range(3):
        make_record(evidence, "clean-only", "0.05", seed, 12.0)
    assert cells(report.table("dncl", "noise"))["clean training", "η = 0.05"].get_text().endswith("12.0 (3)")


def test_rows_that_nobody_knows_are_folded():
    page = BeautifulSoup(report.table("ytuning", "glue"), "lxml")
    folded = [d for d in page.find_all("details") if "at other scales only" in d.summary.text]
    assert folded
    assert all(len(d.p.text) > len(d.summary.text) / 2 for d in folded)


@pytest.mark.parametrize(
    ("kind", "bound", "unit", "decimals", "effect", "half", "shown"),
    [
        ("difference", 0.0, "%", 1, 28.0, 8.944, "+28.0 ± 8.9 points"),
        ("difference", 0.0, "%", 1, -0.567, 6.69, "−0.6 ± 6.7 points"),
        ("difference", 0.1, "", 3, 0.1686, 0.1249, "+0.169 ± 0.125"),
        ("value", 0.0, "%", 1, -3.5625, 1.9127, "−3.6 ± 1.9 points"),  # against zero: a difference in itself
        ("value", 36.0, "%", 1, 37.5, 52.94, "37.5 ± 52.9 %"),
        ("value", 2.5, "%", 2, 2.4149, 0.0, "2.41 %"),
        ("value", 2.5, "", 1, 3.737, 0.0335, "3.74 ± 0.03"),
        ("ratio", 0.96, "%", 1, 1.0014, 0.157, "1.00 ± 0.16"),
        ("difference", 0.0, "%", 1, -0.01, 0.2, "0.0 ± 0.2 points"),
    ],
)
def test_an_effect_has_sign_unit_and_the_metrics_decimals(kind, bound, unit, decimals, effect, half, shown):
    claim = tables.Claim("c", "", "", "t", "row", "than", kind=kind, at_least=bound)
    found = tables.Finding("mixed", effect, half, 3)
    assert report._effect(found, claim, tables.Metric("m", "metric", "higher", unit, decimals)) == shown


def test_a_claims_test_speaks_the_tables_words_and_leads_to_it(evidence):
    page = BeautifulSoup(report.claims(), "lxml")
    tests = [row.select_one(".test") for row in page.select("tr") if row.select_one(".test")]
    assert any("DN-CL minus noise augmentation" in t.text for t in tests)
    links = {t.a["href"] for t in tests if t.a}
    assert "results/dncl.html#table-noise" in links
    for link in links:
        name, table = link.removeprefix("results/").split(".html#table-")
        assert f'id="table-{table}"' in report.table(name, table)
    assert "#table-noise" in {
        a["href"] for a in BeautifulSoup(report.claims(["dncl"]), "lxml").select(".test a")
    }


@pytest.mark.parametrize("page", sorted((ROOT / "book").rglob("*.md")), ids=lambda page: page.stem)
def test_a_page_stands_without_any_record(page, tmp_path, monkeypatch):
    """After a change of code all of a paper's records may be stale; its pages must say so and not stop the book."""
    monkeypatch.setattr(records, "evidence_folder", lambda: tmp_path)
    monkeypatch.setattr(records, "runs_folder", lambda: tmp_path)
    names = {}
    for cell in re.findall(r"^```\{code-cell\}.*?\n(.*?)^```", page.read_text(), re.M | re.S):
        source = re.sub(r"\A---\n.*?^---\n|^:[^\n]*\n", "", cell, flags=re.M | re.S)
        exec(compile(source, page.name, "exec"), names)
    plt.close("all")


def test_where_nothing_was_run_the_cells_hold_reported_values_only(evidence):
    shutil.rmtree(evidence)
    shutil.rmtree(evidence.parent / "runs")
    html = report.table("dncl", "noise")
    found = cells(html)
    assert found["noise augmentation", "η = 0.1"].get_text() == "unknown"
    assert "Not run at" in html
