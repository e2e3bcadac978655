"""Unit tests run on one thread, each with a records folder of its own."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("COMPANION_CACHE", str(tmp_path / "cache"))
