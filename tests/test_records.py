"""Records: atomic, complete, readable, and their fingerprints mean what they say."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from companion import records, tables


def test_comments_docstrings_and_blank_lines_do_not_change_code():
    a = 'def f(x):\n    """Doc."""\n    return x + 1  # why\n'
    b = '"""Module."""\n\n\ndef f(x):\n    # another\n    """Other\n    doc."""\n\n    return x + 1\n'
    assert records.source_fingerprint(a) == records.source_fingerprint(b)
    assert records.source_fingerprint(a) != records.source_fingerprint(a.replace("+ 1", "+ 2"))


def test_layout_does_not_change_code():
    a = "f(alpha, beta=[1, 2])\n"
    b = "f(\n    alpha,\n    beta=[\n        1,\n        2,\n    ],\n)\n"
    assert records.source_fingerprint(a) == records.source_fingerprint(b)
    assert records.source_fingerprint(a) != records.source_fingerprint(a.replace("beta", "gamma"))
    # a known value: the fingerprint must not depend on the version of Python
    assert records.source_fingerprint("x = f'{a!r:>{w}}' + 'b'\n") == "f02c2f7d7bd5c0fd"


def test_a_string_that_looks_like_a_comment_counts():
    assert records.source_fingerprint('x = "# a"\n') != records.source_fingerprint('x = "# b"\n')


def test_data_fingerprints_depend_on_content_only():
    a = records.fingerprint({"x": torch.arange(3), "y": [1, 2]})
    assert a == records.fingerprint({"y": (1, 2), "x": np.arange(3)})
    assert a != records.fingerprint({"y": (1, 2), "x": np.arange(3) + 1})
    assert records.fingerprint(np.zeros(4)) != records.fingerprint(np.zeros((2, 2)))
    with pytest.raises(TypeError, match="object"):
        records.fingerprint(object())


def open_run(tmp_path, seed=0):
    cell = tables.cell("dncl", "noise", "dn-cl", "0.1")
    return cell, records.Run(cell, seed, tmp_path)


def test_a_record_says_everything(tmp_path):
    cell, run = open_run(tmp_path, seed=3)
    metrics = dict.fromkeys(["recovery", "accurate", "exact", "token_accuracy", "length"], torch.tensor(1.5))
    path = run.save(metrics, curves={"loss": [[0, np.float64(1)]]}, data=torch.ones(2))
    assert path == tmp_path / "reduced/dncl/noise/dn-cl/0.1/seed-3.json"
    record = records.load(path)
    assert record["run"] == {"paper": "dncl", "table": "noise", "row": "dn-cl", "column": "0.1", "scale": "reduced",
                             "seed": 3}  # fmt: skip
    assert record["parameters"] == dict(cell.parameters)
    assert record["metrics"]["recovery"] == 1.5
    made = record["provenance"]
    assert made["data"] == records.fingerprint(torch.ones(2))
    assert made["versions"]["torch"] == torch.__version__.split("+")[0]
    assert made["peak_memory"]["rss_mib"] > 10
    assert made["wall_s"] >= 0
    assert "companion.records" not in made["code"]
    assert "notebooks/dncl/noise.py" in made["code"]
    assert records.stale(record, cell) is None
    frame = records.frame(records.read(tmp_path))
    assert frame.loc[0, "metrics.recovery"] == 1.5
    assert frame.loc[0, "run.seed"] == 3


def test_code_that_was_edited_during_the_run_is_not_called_clean(tmp_path, monkeypatch):
    source = tmp_path / "during.py"
    source.write_text("x = 1\n")
    module = type(sys)("companion.during")
    module.__file__ = str(source)
    monkeypatch.setitem(sys.modules, "companion.during", module)
    monkeypatch.setattr(records, "commit", lambda code=(): {"commit": "0123", "dirty": False})
    metrics = dict.fromkeys(["recovery", "accurate", "exact", "token_accuracy", "length"], 1.0)
    os.utime(source, (0, 0))
    _, run = open_run(tmp_path)
    assert records.load(run.save(metrics))["provenance"]["dirty"] is False
    _, run = open_run(tmp_path)
    source.write_text("x = 2\n")
    assert records.load(run.save(metrics))["provenance"]["dirty"] is True


def test_a_record_without_the_tables_metric_is_refused(tmp_path):
    _, run = open_run(tmp_path)
    with pytest.raises(KeyError, match="recovery"):
        run.save({"accuracy": 1.0})
    assert not run.path.exists()


def test_a_negative_seed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="-1"):
        open_run(tmp_path, seed=-1)


def test_a_kill_while_writing_leaves_the_old_record(tmp_path):
    target = tmp_path / "seed-0.json"
    records.write_json(target, {"old": 1})
    code = ("import json, os, sys; from pathlib import Path; from companion import records\n"
            "def die(*a, **k): os._exit(9)\n"
            "records.os.replace = die\n"
            f"records.write_json(Path({str(target)!r}), {{'new': 2}})")  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code]).returncode == 9
    assert json.loads(target.read_text()) == {"old": 1}
    assert records.read(tmp_path) == []


def test_a_broken_record_is_named(tmp_path):
    path = tmp_path / "reduced/dncl/noise/dn-cl/0.1/seed-0.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"schema": 1, "run"')
    with pytest.raises(ValueError, match=r"seed-0\.json.*delete"):
        records.read(tmp_path)


def test_runs_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path))
    assert records.runs_folder() == tmp_path
    assert records.checkout() is not None
    assert os.path.samefile(records.evidence_folder(), records.checkout() / "results")
