"""The command line and the batch runner: plans, failures, resumption, and what stays light."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from companion import batch, cli, records, tables

ROOT = records.checkout()


def fake_record(job):
    cell = tables.cell(job.paper, job.table, job.row, job.column, job.scale)
    record = {"schema": 1, "run": {"paper": job.paper, "table": job.table, "row": job.row, "column": job.column,
                                   "scale": job.scale, "seed": job.seed},
              "parameters": dict(cell.parameters), "metrics": dict.fromkeys(cell.metrics, 1.0), "curves": {},
              "provenance": {"code": {}}}  # fmt: skip
    records.write_json(Path(job.record), record)


def plan(folder, **changes):
    options = {"rows": [], "columns": [], "seeds": 1, "folder": folder} | changes
    return batch.plan(tables.table("dncl", "noise"), "reduced", **options)


def test_a_plan_is_what_is_missing_or_stale(tmp_path):
    table = tables.table("dncl", "noise")
    cells = len(table.columns) * sum(not row.reference for row in table.rows)
    jobs, there = plan(tmp_path)
    assert len({job.record for job in jobs}) == len(jobs) == cells
    assert there == 0
    for job in jobs:
        fake_record(job)
    assert plan(tmp_path) == ([], cells)
    Path(jobs[4].record).unlink()
    again, there = plan(tmp_path)
    assert [j.record for j in again] == [jobs[4].record]
    assert there == cells - 1
    changed = json.loads(Path(jobs[0].record).read_text())
    changed["parameters"]["steps"] += 1
    records.write_json(Path(jobs[0].record), changed)
    why = {j.record: j.why for j in plan(tmp_path)[0]}
    assert "steps" in why[jobs[0].record]
    assert len(plan(tmp_path, force=True)[0]) == cells
    assert len(plan(tmp_path, rows=["dn-cl"], columns=["0", "0.1"], seeds=3)[0]) == 6 - 2


def test_neighbours_in_a_plan_share_no_training(tmp_path):
    jobs, _ = plan(tmp_path)
    assert len({j.row for j in jobs[:3]}) == 3


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["reproduce", "dncl", "nose"], "noise"),
        (["reproduce", "dncll", "noise"], "dncl"),
        (["reproduce", "dncl", "noise", "--row", "dncl"], "dn-cl"),
        (["reproduce", "dncl", "noise", "--column", "0.2"], "0.1"),
        (["reproduce", "dncl", "noise", "--scale", "reducd"], "reduced"),
        (["reproduce", "dncl", "noise", "--seeds", "0"], "starts at 1"),
        (["reproduce", "dncl", "noise", "--profile", "slurmm"], "slurm"),
        (["show", "dncl", "noise", "--scale", "real"], "reduced"),
        (["show", "dncl", "noise", "--format", "latx"], "latex"),
    ],
)
def test_a_mistyped_name_gets_one_sentence_with_the_nearest(words, expected, capsys):
    assert cli.main(words) == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


def test_dry_run_lists_and_runs_nothing(capsys, tmp_path):
    cells = len(plan(tmp_path)[0])
    assert cli.main(["reproduce", "dncl", "noise", "--dry-run", "--record-dir", str(tmp_path / "r")]) == 0
    out = capsys.readouterr().out
    assert f"{cells} would run" in out
    assert not (tmp_path / "r").exists()


def test_show_in_all_forms(capsys):
    for form in ("text", "markdown", "csv", "latex"):
        assert cli.main(["show", "dncl", "noise", "--format", form]) == 0
        out = capsys.readouterr().out
        assert "DN-CL" in out
        assert "unknown" in out
        assert "65.0" in out


def test_show_takes_the_smallest_scale_that_a_table_has(capsys):
    assert cli.main(["show", "gestur", "pacs"]) == 0
    assert "(real scale" in capsys.readouterr().out


def test_list_and_show_load_nothing_heavy():
    code = ("import sys; from companion import cli; cli.main(sys.argv[1:]); "
            "heavy = {'torch', 'transformers', 'snakemake', 'papermill', 'pandas', 'sympy', 'matplotlib'}; "
            "sys.exit(', '.join(heavy & set(sys.modules)) or 0)")  # fmt: skip
    for words in (["list"], ["show", "dncl", "noise"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr


def test_doctor_fits_one_screen(capsys):
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) <= 24
    for word in ("versions", "GPU", "COMPANION_DATA", "reduced", "real", "full", "weights"):
        assert word in out


NOTEBOOK = {
    "nbformat": 4, "nbformat_minor": 5,
    "metadata": {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}},
    "cells": [
        {"cell_type": "code", "id": "a", "metadata": {"tags": ["parameters"]}, "outputs": [], "execution_count": None,
         "source": "table = row = column = scale = record_dir = ''\nseed = 0"},
        {"cell_type": "code", "id": "b", "metadata": {}, "outputs": [], "execution_count": None,
         "source": "import sys\nsys.path.insert(0, 'src')\nfrom companion import records, tables\n"
                   "cell = tables.cell('toy', table, row, column, scale)\nrun = records.Run(cell, seed, record_dir)\n"
                   "if row == 'bad':\n    raise RuntimeError('this row always fails')\nrun.save({'m': seed + 1.0})"},
    ],
}  # fmt: skip
TOML = """
[paper]
title = "Toy"
short = "Toy"
authors = ["T"]
year = 2024
arxiv = "0"
evidence = "made for a test"
[tables.t]
title = "t"
origin = "companion"
notebook = "toy/t"
metrics = [{ id = "m", title = "m", direction = "higher" }]
[tables.t.scales.reduced]
seeds = 1
minutes = 0.1
[tables.t.rows.good]
title = "good"
[tables.t.rows.bad]
title = "bad"
[tables.t.columns.x]
title = "x"
"""


@pytest.fixture
def toy(tmp_path):
    """A small checkout of its own with one table: a row that works and a row that fails."""
    import shutil

    home = tmp_path / "checkout"
    shutil.copytree(ROOT / "src", home / "src", ignore=shutil.ignore_patterns("__pycache__", "weights"))
    shutil.copytree(
        ROOT / "workflow", home / "workflow", ignore=shutil.ignore_patterns("__pycache__", ".snakemake")
    )
    (home / "pyproject.toml").write_text("")
    (home / "notebooks" / "toy").mkdir(parents=True)
    (home / "notebooks" / "toy" / "t.ipynb").write_text(json.dumps(NOTEBOOK))
    for old in (home / "src/companion/papers").glob("*.toml"):
        old.unlink()
    (home / "src/companion/papers/toy.toml").write_text(TOML)

    def run(*words, **options):
        import os

        env = os.environ | {"PYTHONPATH": str(home / "src"), "COMPANION_RUNS": str(home / "runs")}
        return subprocess.Popen([sys.executable, "-m", "companion.cli", *words], cwd=home, env=env, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)  # fmt: skip

    return home, run


def test_a_failed_run_is_named_kept_and_does_not_stop_the_others(toy):
    home, run = toy
    first = run("reproduce", "toy", "t", "--jobs", "1")
    out, err = first.communicate(timeout=240)
    assert first.returncode == 1, out + err
    assert "FAILED toy t bad × x seed 0: RuntimeError: this row always fails" in out
    assert (home / "runs/reduced/toy/t/good/x/seed-0.json").is_file()
    left = home / "runs/reduced/toy/t/bad/x/seed-0.ipynb"
    assert "this row always fails" in left.read_text()
    # the same command does only what is missing
    stamp = (home / "runs/reduced/toy/t/good/x/seed-0.json").stat().st_mtime_ns
    again = run("reproduce", "toy", "t", "--row", "good")
    out, _ = again.communicate(timeout=60)
    assert again.returncode == 0
    assert "1 runs are there, 0 to do" in out
    assert (home / "runs/reduced/toy/t/good/x/seed-0.json").stat().st_mtime_ns == stamp


def test_a_killed_batch_goes_on_where_it_was(toy):
    home, run = toy
    process = run(
        "reproduce", "toy", "t", "--row", "good", "--seeds", "2", "--jobs", "1", start_new_session=True
    )
    folder = home / "runs/reduced/toy/t/good/x"
    deadline = time.time() + 120
    while time.time() < deadline and not list(folder.glob("seed-*.json")):
        time.sleep(0.1)
    process.kill()
    process.wait()
    done = {p.name: p.read_text() for p in folder.glob("seed-*.json")}
    assert done
    assert len(done) < 2
    time.sleep(3)  # its children die with it
    again = run("reproduce", "toy", "t", "--row", "good", "--seeds", "2", "--jobs", "1")
    out, err = again.communicate(timeout=240)
    assert again.returncode == 0, out + err
    assert sorted(p.name for p in folder.glob("seed-*.json")) == ["seed-0.json", "seed-1.json"]
    for path in folder.glob("seed-*.json"):
        records.load(path)
    assert all((folder / name).read_text() == text for name, text in done.items())


def test_a_notebook_out_of_step_with_its_text_is_refused(toy):
    import jupytext

    home, run = toy
    source = home / "notebooks" / "toy" / "t.py"
    jupytext.write(jupytext.read(source.with_suffix(".ipynb")), source, fmt="py:percent")
    source.write_text(source.read_text() + "\nx = 'edited'\n")
    process = run("reproduce", "toy", "t", "--row", "good")
    out, err = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "notebooks/toy/t.ipynb is out of step with its .py" in out + err
    assert "Traceback" not in out + err
    assert not list(home.glob("runs/**/seed-*.json"))


def test_confirm_keeps_what_new_code_repeats_and_nothing_else(toy):
    import jupytext

    home, run = toy
    source = home / "notebooks" / "toy" / "t.py"

    def edit(old, new):
        text = source.read_text().replace(old, new)
        assert new in text
        source.write_text(text)
        jupytext.write(jupytext.read(source), source.with_suffix(".ipynb"))
        commit()

    def commit():
        for words in (["add", "-A"], ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "x"]):
            subprocess.run(["git", "-C", str(home), *words], check=True)

    def call(*words):
        process = run(*words)
        out, err = process.communicate(timeout=240)
        return process.returncode, out + err

    jupytext.write(jupytext.read(source.with_suffix(".ipynb")), source, fmt="py:percent")
    (home / ".gitignore").write_text("runs/\n__pycache__/\n*.seed-*.ipynb\nresults/**/*.ipynb\n")
    subprocess.run(["git", "init", "-q", str(home)], check=True)
    commit()
    keep = ["--row", "good", "--seeds", "2", "--jobs", "1", "--record-dir", str(home / "results")]
    code, out = call("reproduce", "toy", "t", *keep)
    assert code == 0, out
    paths = [home / f"results/reduced/toy/t/good/x/seed-{k}.json" for k in range(2)]
    old = [records.load(p) for p in paths]
    commit()

    source.write_text(source.read_text() + "\n# %%\nunused = 1\n")
    assert call("confirm", "toy")[0] == 2  # uncommitted changes: such a run would name the wrong commit
    edit("unused = 1", "unused = 2")
    code, out = call("confirm", "toy", "--jobs", "1")
    assert code == 0, out
    assert "2 of 2 records hold" in out
    new = [records.load(p) for p in paths]
    kept = [n for n in new if "confirmed" in n["provenance"]]
    assert len(kept) == 1  # the other one is the witness, a run of the new code
    assert kept[0]["provenance"]["commit"] == old[0]["provenance"]["commit"]
    assert kept[0]["metrics"] in [o["metrics"] for o in old]
    assert "0 to do" in call("reproduce", "toy", "t", *keep)[1]

    commit()
    edit("seed + 1.0", "seed + 2.0")
    code, out = call("confirm", "toy", "--jobs", "1")
    assert code == 1
    assert "stay stale" in out
    assert "2 to do" in call("reproduce", "toy", "t", *keep)[1]


def test_numbers_differ_beyond_six_digits_only():
    def of(**metrics):
        return {"metrics": metrics}

    old = of(a=1.0, b=float("nan"), c=None, d=2.0)
    assert records.differences(old, of(a=1.0 + 1e-9, b=float("nan"), c=None, d=2.1), ["a", "b", "c"]) == []
    assert records.differences(old, of(a=1.001, b=0.0, c=1.0), ["a", "b", "c", "d", "e"]) == ["a", "b", "d"]
    with pytest.raises(ValueError, match="no number to compare"):
        records.differences(old, old, ["c", "e"])
