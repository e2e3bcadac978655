"""The gradient analysis against hand computations; pre-trained weights and what they were pre-trained for."""

import pytest
import torch
from torch import nn

from companion import records
from companion.gestur import analysis, pretrain, world
from companion.gestur.model import Erm, Gestur, GesturConfig, adam, cross_entropy, estimate


def parts(k):
    g = torch.Generator().manual_seed(k)
    return torch.randn(12, 5, generator=g), torch.randint(0, 3, (12,), generator=g)


def algorithm(lam=0.3):
    torch.manual_seed(0)
    return Gestur(nn.Linear(5, 4), nn.Linear(4, 3), adam(1e-2), GesturConfig(lam=lam, decay=0.9))


def test_gradient_is_the_featurizers_and_leaves_no_trace():
    network = algorithm().network
    x, y = parts(0)
    wanted = torch.autograd.grad(cross_entropy(network, [(x, y)]), list(network.featurizer.parameters()))
    assert torch.allclose(analysis.gradient(network, x, y), torch.cat([g.flatten() for g in wanted]))
    assert all(p.grad is None for p in network.parameters())
    assert network.training


def test_cosine_ends_and_zero():
    a = torch.tensor([1.0, 2.0])
    assert analysis.cosine(a, 3 * a) == pytest.approx(1)
    assert analysis.cosine(a, -a) == pytest.approx(-1)
    assert analysis.cosine(a, torch.tensor([-2.0, 1.0])) == pytest.approx(0)
    assert analysis.cosine(a, 0 * a) == 0.0


def test_the_watch_measures_the_estimate_that_the_method_uses():
    gestur, sources, target = algorithm(), [parts(1), parts(2)], parts(3)
    watch = analysis.GradientWatch(sources, target, gestur.expert.featurizer, every=3)
    for step in range(4):
        watch(step, gestur)
        gestur.update(sources)
    assert [row["step"] for row in watch.rows] == [3]
    gestur, start = algorithm(), algorithm()
    for _ in range(3):
        gestur.update(sources)
    gestur.network.zero_grad()
    gestur.objective(sources).backward()
    g_s = torch.cat([p.grad.flatten() for p in gestur.network.featurizer.parameters()])
    g_u = analysis.gradient(gestur.network, *target)
    mine = torch.cat(
        [g.flatten() for g in estimate(gestur.network.parameters(), gestur.pairs(), gestur.config)]
    )
    row = watch.rows[0]
    assert row["estimate"] == pytest.approx(analysis.cosine(mine, g_u), abs=1e-5)
    assert row["corrected"] == pytest.approx(analysis.cosine(g_s + mine, g_s + g_u), abs=1e-5)
    assert row["combined"] == pytest.approx(analysis.cosine(g_s + mine, g_u), abs=1e-5)
    assert row["bias"] == pytest.approx(1 - analysis.cosine(g_s, g_u), abs=1e-5)
    left = analysis.cosine(g_s + mine, g_s) - analysis.cosine(g_s + mine, g_u)
    assert row["bias_left"] == pytest.approx(left, abs=1e-5)
    drift = analysis.flat(gestur.network.featurizer) - analysis.flat(start.network.featurizer)
    assert float(drift.norm()) > 0
    assert watch.means()["relief"] == pytest.approx(row["bias"] - left, abs=1e-5)
    assert watch.means()["gain"] == pytest.approx(row["corrected"] - row["descent"])


def test_the_watch_refuses_methods_without_an_estimate_and_too_short_runs():
    erm = Erm(nn.Linear(5, 4), nn.Linear(4, 3))
    watch = analysis.GradientWatch([parts(1)], parts(2), erm.network.featurizer, every=1)
    with pytest.raises(ValueError, match="only GESTUR has an estimate to look at; got Erm"):
        watch(1, erm)
    with pytest.raises(ValueError, match="nothing was measured"):
        watch.means()


def test_the_line_between_models_has_its_ends():
    one, two = algorithm().network, Erm(nn.Linear(5, 4), nn.Linear(4, 3)).network
    found = analysis.along_the_line(one, two, lambda n: float(analysis.flat(n).norm()), [0.0, 0.5, 1.0])
    assert found[0][1] == pytest.approx(float(analysis.flat(one).norm()))
    assert found[2][1] == pytest.approx(float(analysis.flat(two).norm()))


def test_stored_weights_know_their_glyphs_and_unknown_names_are_named(tmp_path):
    backbone, head = pretrain.load("glyphs")
    assert pretrain.old_accuracy(backbone.module, head, 16) > 40  # chance is 0.5
    with pytest.raises(ValueError, match="no pre-trained weights 'imagenet'; there are: glyphs, omniglot"):
        pretrain.load("imagenet")
    path = pretrain.save(backbone, None, "again", tmp_path)
    again, none = pretrain.load("again", tmp_path)
    assert path.name == "again.safetensors"
    assert none == {}
    assert torch.equal(analysis.flat(again.module), analysis.flat(backbone.module))


def test_stored_weights_are_as_good_as_the_recorded_run():
    """The record is a second run of the recipe behind the stored weights: equal within 2 points, not bit for bit."""
    found = records.read(records.evidence_folder(), "gestur", "pretraining", "real")
    recorded = next(r["metrics"] for r in found if r["run"]["row"] == "glyphs")
    backbone, tensors = pretrain.load("glyphs")
    head = nn.Linear(backbone.width, len(tensors["weight"]))
    head.load_state_dict(tensors)
    mine = pretrain.accuracy(backbone, head, world.alphabet(200, pretrain.ALPHABET), 16, 0)
    assert mine["accuracy"] == pytest.approx(recorded["accuracy"], abs=2)
    assert mine["sketch"] == pytest.approx(recorded["sketch"], abs=4)


def test_the_stored_omniglot_weights_are_those_of_the_recorded_run():
    from safetensors.torch import load_file

    found = records.read(records.evidence_folder(), "gestur", "pretraining", "real")
    noted = next(r["notes"]["weights"] for r in found if r["run"]["row"] == "omniglot")
    assert pretrain.stored_fingerprint(load_file(pretrain.WEIGHTS / "omniglot.safetensors")) == noted


def test_real_characters_are_half_of_a_batch_and_their_labels_go_on_from_the_glyphs():
    glyphs = world.alphabet(10, 1)
    ink = torch.zeros(6, 1, 28, 28)
    ink[:, :, 8:20, 8:20] = 1
    x, y = world.pretraining_batch(glyphs, 60, 16, 0, 0, drawings=(ink, torch.arange(6)))
    assert x.shape == (60, 3, 16, 16)
    assert int((y >= 10).sum()) == 30
    assert int(y.max()) <= 15
    shaken = world.shake(ink, 16, torch.Generator().manual_seed(0))
    assert shaken.shape == (6, 1, 16, 16)
    assert 0.05 < float(shaken.mean()) < 0.4  # the square is still there, moved and scaled
    plain = world.pretraining_batch(glyphs, 12, 16, 0, 0)
    again = world.pretraining_batch(glyphs, 12, 16, 0, 0)
    assert torch.equal(plain[0], again[0])
