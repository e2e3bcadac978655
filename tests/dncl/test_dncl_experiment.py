"""Controlled training, proposals, and how answers are judged."""

import time
from dataclasses import replace

import numpy as np
import pytest
import sympy
import torch

from companion import tables, training
from companion.dncl import constants, cost, decode, experiment, peers, pretrained, suites
from companion.dncl import expressions as ex
from companion.dncl.data import truth


def parameters(row="dn-cl", table="training", **changes):
    scale = "reduced" if table == "training" else "real"
    return dict(tables.cell("dncl", table, row, "exact-0", scale).parameters) | changes


def problem(name, eta=0.0):
    return suites.problem(next(e for e in suites.equations() if e.name == name), eta, 0)


def test_all_rows_encode_equally_many_data_sets_per_step():
    rows = ("clean-only", "noise-augmented", "two-views", "dn-cl")
    made = {row: experiment.setup(parameters(row)) for row in rows}
    encoded = {row: s.batch * (2 if s.loss.views == "both" else 1) for row, s in made.items()}
    assert len(set(encoded.values())) == 1
    assert made["two-views"].loss.contrast == 0.0
    assert made["dn-cl"].model == made["clean-only"].model
    assert made["dn-cl"].stream == made["two-views"].stream


def test_the_streams_share_no_structure():
    seen, held = experiment.streams(experiment.setup(parameters()))
    assert not set(seen.structure.tolist()) & set(held.structure.tolist())


def test_deep_sets_do_not_care_about_order_and_attention_is_the_default():
    training.seed_everything(0)
    s = experiment.setup(parameters("deep-sets", "ablation"))
    net = s.network().eval()
    assert isinstance(net.encoder, experiment.DeepSets)
    views = experiment.streams(s)[0].draw(3, np.random.default_rng(0), 0.1)
    order = torch.randperm(views.noisy.shape[1])
    a, b = (net.encode(p, views.noisy_mask)[0] for p in (views.noisy, views.noisy[:, order]))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="lstm"):
        experiment.setup(parameters(encoder="lstm")).network()


def test_feature_distance_is_zero_without_noise_and_grows_with_it():
    training.seed_everything(0)
    s = experiment.setup(parameters())
    net, seen = s.network().eval(), experiment.streams(s)[0]
    none, little, much = (experiment.feature_distance(net, seen, e, 64, 0).mean() for e in (0.0, 0.01, 0.2))
    assert none == 0
    assert 0 < little < much


def test_hard_negatives_are_same_skeletons_and_other_constants():
    stream = experiment.streams(experiment.setup(parameters(hard=0.5)))[0]
    tokens = stream.draw(200, np.random.default_rng(1)).tokens
    assert (tokens[1:] == tokens[:-1]).all(1).float().mean() > 0.25
    plain = experiment.streams(experiment.setup(parameters()))[0]
    assert (plain.draw(200, np.random.default_rng(1)).tokens[1:] == 0).all(1).sum() == 0


def test_proposals_are_distinct_formulas_in_the_allowed_variables():
    training.seed_everything(1)
    net = experiment.DNCL(pretrained.SIZES["tiny"].model).eval()
    points = torch.rand(40, 4)
    found = decode.propose(net, points, 2, decode.DecodeConfig(16, 16, subsets=3), 0)
    assert len(found) > 10
    assert len({ids for ids, _ in found}) == len(found)
    assert all(ex.complete(list(ids)) and ex.ID["x3"] not in ids for ids, _ in found)
    assert [s for _, s in found] == sorted((s for _, s in found), reverse=True)
    assert found == decode.propose(net, points, 2, decode.DecodeConfig(16, 16, subsets=3), 0)


def test_a_decoding_by_steps_gives_the_numbers_of_whole_prefixes():
    training.seed_everything(2)
    net = experiment.DNCL(replace(pretrained.SIZES["tiny"].model, decoder=2)).eval()
    memory = torch.randn(3, 5, net.config.d)  # E = 3 encodings
    tokens = torch.randint(3, len(ex.TOKENS), (4, 6))  # W = 4 hypotheses
    parents = torch.tensor([2, 0, 0, 3])
    with torch.no_grad():
        cache = net.decoder.start(memory)
        for k in range(tokens.shape[1]):
            if k == 3:  # beams are reordered on the way
                cache.follow(parents)
                tokens = tokens[parents]
            got = net.decoder.step(tokens[:, k].expand(3, -1), cache)
            want = net.decoder(tokens[:, : k + 1].repeat(3, 1), memory.repeat_interleave(4, 0))[:, -1]
            torch.testing.assert_close(got.flatten(0, 1), want, atol=1e-5, rtol=1e-4)
    assert cache.places == 6


def test_proposals_stop_at_the_limit_and_keep_what_is_finished(monkeypatch):
    training.seed_everything(1)
    net = experiment.DNCL(pretrained.SIZES["tiny"].model).eval()
    points, config = torch.rand(40, 4), decode.DecodeConfig(0, 200, subsets=1)
    ticks = iter(range(10_000))
    monkeypatch.setattr(constants, "clock", lambda: next(ticks))  # one tick per token
    everything = decode.propose(net, points, 2, config, 0)
    spent = next(ticks)
    some = decode.propose(net, points, 2, config, 0, until=spent + 1 + spent // 2)
    assert 0 < len(some) < len(everything)
    assert dict(some).items() <= dict(everything).items()
    assert decode.propose(net, points, 2, config, 0, until=next(ticks)) == []


def test_one_subset_is_the_plain_encoding():
    training.seed_everything(1)
    net = experiment.DNCL(pretrained.SIZES["tiny"].model).eval()
    points = torch.rand(40, 4)
    one = decode.encodings(net, points, decode.DecodeConfig(subsets=1), 0)
    with torch.no_grad():
        plain = net.encode(points[None], torch.ones(1, 40, dtype=torch.bool))[0]
    torch.testing.assert_close(one, plain, atol=1e-5, rtol=1e-4)
    assert len(decode.encodings(net, points, decode.DecodeConfig(subsets=5), 0)) == 5


def exact(text):
    f = sympy.lambdify(sympy.symbols("x1 x2", real=True)[: 2 if "x2" in text else 1], truth(text))
    return peers.Answer(lambda x: f(*x.T), truth(text), 0.1)


def test_recovery_form_and_accuracy_are_different_things():
    nguyen = problem("Nguyen-10")
    right = peers.judge(nguyen, exact("2.0*sin(x1)*cos(x2)"))
    assert (right["recovery"], right["form"], right["precise"]) == (1, 1, 1)
    constant = problem("Constant-3")
    near = peers.judge(constant, exact("sin(1.49*x1)*cos(0.51*x2)"))
    assert (near["recovery"], near["form"], near["accurate"]) == (0, 1, 1)
    other = peers.judge(constant, exact("1.3*x1 - 0.35*x1**3 - 0.05*x2"))
    assert (other["recovery"], other["form"]) == (0, 0)
    assert peers.judge(problem("Nguyen-11"), exact("x1**x2"))["recovery"] == 1
    total = peers.summary([right, other])
    assert total["recovery"] == 50
    assert total["seconds"] == pytest.approx(0.1)


def test_cpu_time_replaces_the_clock_only_inside():
    with peers.cpu_time():
        assert constants.clock is time.process_time
    assert constants.clock is time.monotonic
    with pytest.raises(ValueError, match="eureqa"):
        peers.answer("eureqa", problem("Nguyen-8"), 1.0, 0)


def test_floors_and_ours_answer_in_the_same_form():
    easy = problem("Nguyen-8", 0.01)
    for name in ("linear", "forest", "network-only", "no-network"):
        got = peers.answer(name, easy, 1.0, 0, {"rounds": 1} if name == "no-network" else None)
        line = peers.judge(easy, got)
        assert np.isfinite(line["r2"])
        assert (got.expression is None) == (name == "forest")
    assert line["recovery"] == 1


def test_a_training_in_pieces_is_the_same_training(tmp_path):
    from dataclasses import replace

    tiny = pretrained.SIZES["tiny"]
    fit = {"steps": 12, "warmup": 2}
    short = replace(
        tiny, skeletons=600, batch=8, hold=replace(tiny.hold, **fit), cool=replace(tiny.cool, **fit)
    )
    whole, out, finished = pretrained.train(short, tmp_path / "a", cpu=True)
    assert finished
    assert out.step == 24
    again, out, finished = pretrained.train(short, tmp_path / "a", cpu=True)
    assert finished
    assert out.step == 24
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b)
    path = pretrained.export(short, tmp_path / "a", tmp_path / "out")
    loaded = pretrained.load(path)
    for a, b in zip(loaded.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=2e-3)
    with pytest.raises(ValueError, match="no checkpoint"):
        pretrained.export(short, tmp_path / "none", tmp_path / "out")


def test_the_full_sizes_take_a_step():
    full = tables.cell("dncl", "training", "dn-cl", "exact-0", "full").parameters
    out = cost.dry_run(full)
    assert out["parameters"] > 5e6
    assert np.isfinite(out["loss"])
