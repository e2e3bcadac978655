"""The model card's scores, and the order of operands that the shipped network learns."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from companion.dncl import card, pools, pretrained
from companion.dncl import expressions as ex


def ids(*names):
    return tuple(ex.ID[n] for n in names)


def test_operands_are_sorted_whatever_order_they_came_in():
    want = ids("add", "x1", "mul", "C", "sin", "x2")
    for written in (
        want,
        ids("add", "mul", "sin", "x2", "C", "x1"),
        ids("add", "x1", "mul", "sin", "x2", "C"),
    ):
        assert pretrained.ascending(written) == want
    # what does not commute stays
    assert pretrained.ascending(ids("sub", "sin", "x2", "x1")) == ids("sub", "sin", "x2", "x1")
    assert pretrained.ascending(ids("add", "x2", "x1")) == ids("add", "x1", "x2")


def test_the_training_pool_is_in_that_order_and_its_formulas_are_the_same():
    config = pools.PoolConfig(2, (1, 3), 1, 10, outer=False)
    seen, held = pretrained.pool_of(config, 600, 3)
    for pool in (seen, held):
        rows = [[t for t in row if t] for row in pool.tokens.tolist()]
        assert all(tuple(row) == pretrained.ascending(row) for row in rows)
        # a structure's mark comes from values: the reordered formula still has it
        wrapped = [pools.wrapped(row) for row in rows]
        tokens = np.zeros((len(rows), max(map(len, wrapped))), dtype=np.uint8)
        for k, row in enumerate(wrapped):
            tokens[k, : len(row)] = row
        assert (pools.marks(pools.probe_values(tokens, "neutral"))[0] == pool.structure).mean() > 0.99
    assert len({tuple(r) for r in seen.tokens.tolist()}) == len(seen)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    folder = tmp_path_factory.mktemp("card")
    tiny = pretrained.SIZES["tiny"]
    fit = {"steps": 3, "warmup": 1}
    short = replace(
        tiny, skeletons=600, batch=8, hold=replace(tiny.hold, **fit), cool=replace(tiny.cool, **fit)
    )
    pretrained.train(short, folder / "run", cpu=True)
    return pretrained.export(short, folder / "run", folder / "out")


def test_the_card_counts_what_the_proposals_hold(network, monkeypatch):
    monkeypatch.setattr(card, "SUITES", {"R": ("r",)})
    held = pretrained.pool_of(pretrained.SIZES["tiny"].pool, 600, 0)[1]
    problems = card.drawn(pretrained.SIZES["tiny"], held, 3, 0.1)
    again = card.drawn(pretrained.SIZES["tiny"], held, 3, 0.1)
    for a, b in zip(problems, again, strict=True):
        torch.testing.assert_close(a.y, b.y)
        assert not torch.equal(a.y, a.test_y)
        assert str(a.truth) == str(b.truth)
    # a network that always proposes the truth scores 100, one that never does scores 0
    truth = [ex.from_sympy(p.truth) for p in problems]
    for right in (True, False):
        given = iter(truth)
        monkeypatch.setattr(card.SymbolicRegressor, "_propose",
                            lambda self, *a, right=right, given=given: [tuple(next(given))] if right else [])  # fmt: skip
        out = card.score(network, card.drawn(pretrained.SIZES["tiny"], held, 3, 0.0), 0, "test")
        assert out["problems"] == 3
        assert out["proposed"] == (100 if right else 0)
        # one of the three has its constant inside cos(exp(c x)), where fits get stuck
        assert out["accurate"] > 60 if right else out["accurate"] == 0
    monkeypatch.undo()
    monkeypatch.setattr(card, "SUITES", {"R": ("r",)})
    card.main([str(network), "--number", "2"])
    kept = json.loads(network.with_suffix(".json").read_text())
    assert kept["recipe"]["name"] == "tiny"
    assert {"training structures, new draws", "unseen structures", "R"} == set(kept["card"])
    assert kept["card"]["R"]["eta 0.1"]["problems"] == 3
    assert all(0 <= kept["card"]["R"]["eta 0"][k] <= 100 for k in ("proposed", "chosen", "accurate"))
    page = (network.parent / "README.md").read_text()
    assert "| R | 3 |" in page
    assert "stopped" not in page


def test_the_shipped_model_card_is_made_from_the_shipped_record():
    about = json.loads((pretrained.SHIPPED / "small.json").read_text())
    assert (pretrained.SHIPPED / "README.md").read_text() == card.text(about)
    assert about["card"]["unseen structures"]["eta 0"]["problems"] >= 100


def test_a_network_that_is_not_there_or_not_of_this_recipe_is_refused(network, tmp_path, capsys):
    with pytest.raises(SystemExit):
        card.main(["nowhere.safetensors"])
    assert "nowhere.json" in capsys.readouterr().err
    other = tmp_path / network.name
    other.write_bytes(network.read_bytes())
    about = json.loads(network.with_suffix(".json").read_text())
    about["recipe"]["name"] = "small"
    other.with_suffix(".json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="another recipe"):
        card.scores(other, 1)
