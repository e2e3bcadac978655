"""Comparison methods against hand computations, other libraries or closed forms."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from companion.gestur import baselines, methods, nets
from companion.gestur.model import Erm, Gestur, GesturConfig, adam, cross_entropy


def net(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 4)), nn.Linear(4, 3)


def batches(k, n=6):
    g = torch.Generator().manual_seed(k)
    return [(torch.randn(n, 5, generator=g), torch.randint(0, 3, (n,), generator=g)) for _ in range(3)]


def sgd(groups):
    return torch.optim.SGD(groups, lr=0.1)


def flat(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def test_erm_is_the_joined_batch_and_one_adam():
    erm = Erm(*net(), adam(1e-2))
    model = nn.Sequential(*net())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
    for k in range(20):
        erm.update(batches(k))
        optimizer.zero_grad()
        x, y = torch.cat([b[0] for b in batches(k)]), torch.cat([b[1] for b in batches(k)])
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert torch.equal(flat(erm.network), flat(model))


def test_linear_probe_is_a_head_trained_on_features_made_once():
    probe = baselines.LinearProbe(*net(), sgd)
    features, head = net()
    start = flat(head)
    made = []
    with torch.no_grad():
        for k in range(10):
            x, y = (torch.cat(part) for part in zip(*batches(k), strict=True))
            made.append((features(x), y))
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    for k, (z, y) in enumerate(made):
        loss = F.cross_entropy(head(z), y)
        assert float(probe.update(batches(k))["loss"]) == pytest.approx(loss.item(), rel=1e-6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert torch.allclose(flat(probe.network.head), flat(head), atol=1e-6)
    assert not torch.allclose(flat(head), start, atol=1e-2)
    assert torch.equal(flat(probe.network.featurizer), flat(features))


def test_sma_is_the_mean_of_all_weights_after_its_start():
    sma = baselines.Sma(*net(), sgd, start=3)
    seen = []
    for k in range(8):
        sma.update(batches(k))
        seen.append(flat(sma.network))
        if k < 3:
            assert torch.allclose(flat(sma.predictor), seen[-1], atol=1e-7)
    # the average opens with the weights after step 3
    assert torch.allclose(flat(sma.predictor), torch.stack(seen[2:]).mean(0), atol=1e-6)


def test_sma_from_the_first_step_is_the_mean_of_the_start_and_every_update():
    """DomainBed's moving average: avg <- (c avg + θ) / (c + 1), c = 1, 2, ..., from a copy of the start."""
    sma = baselines.Sma(*net(), sgd, start=0)
    seen = [flat(sma.network)]
    for k in range(6):
        sma.update(batches(k))
        seen.append(flat(sma.network))
        assert torch.allclose(flat(sma.predictor), torch.stack(seen).mean(0), atol=1e-6)


def test_ema_is_torchs():
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    ema = baselines.Ema(*net(), sgd, decay=0.9)
    theirs = AveragedModel(ema.network, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    theirs.update_parameters(ema.network)  # its first call copies
    for k in range(6):
        ema.update(batches(k))
        theirs.update_parameters(ema.network)
    assert torch.allclose(flat(ema.predictor), flat(theirs.module), atol=1e-6)
    assert not torch.allclose(flat(ema.predictor), flat(ema.network), atol=1e-3)


def test_l2sp_gradient():
    one, two = baselines.L2sp(*net(), sgd, alpha=0.3), Erm(*net(), sgd)
    for method in (one, two):
        with torch.no_grad():
            for p in method.network.parameters():
                p.add_(0.1)
    a = torch.autograd.grad(one.objective(batches(0)), list(one.network.featurizer.parameters()))
    b = torch.autograd.grad(two.objective(batches(0)), list(two.network.featurizer.parameters()))
    for x, y in zip(a, b, strict=True):
        assert torch.allclose(x - y, torch.full_like(x, 0.03), atol=1e-6)  # α (φ - φ_0)


def test_miro_regulariser_by_hand_and_its_groups():
    backbone = nets.small((4, 6), (2, 2))
    x = torch.rand(5, 3, 8, 8)
    miro = baselines.Miro(
        backbone.module, nn.Linear(6, 3), adam(1e-3), taps=backbone.taps, example=x, lam=0.5
    )
    batch = [(x, torch.tensor([0, 1, 2, 0, 1]))]
    plain = cross_entropy(miro.network, batch).item()
    # untouched features: z = z_0, so every tap gives ½ log 0.1
    assert miro.objective(batch).item() - plain == pytest.approx(0.5 * 2 * 0.5 * math.log(0.1), abs=1e-4)
    with torch.no_grad():
        miro.network.featurizer.blocks[1][1].bias.add_(0.2)
    miro.network(x)
    miro.regulariser(x)
    z, z0 = miro.seen["trained", "blocks.1"].detach(), miro.seen["frozen", "blocks.1"]
    wanted = 0.5 * math.log(0.1) + 0.5 * float((((z - z0) ** 2) / 0.1 + math.log(0.1)).mean())
    assert miro.regulariser(x).item() == pytest.approx(wanted, rel=1e-4)
    rates = {g["name"]: g["lr"] for g in miro.optimizer.param_groups}
    assert rates["encoders"] == pytest.approx(10 * rates["featurizer"])
    before = [p.clone() for p in miro.oracle.parameters()]
    miro.update(batch)
    assert all(torch.equal(p, q) for p, q in zip(before, miro.oracle.parameters(), strict=True))
    with pytest.raises(ValueError, match=r"tap 'layer9' is not a submodule of the featurizer; it has blocks"):
        baselines.Miro(
            nets.small().module, nn.Linear(64, 3), taps=("layer9",), example=torch.rand(1, 3, 16, 16)
        )


def test_miro_has_a_variance_per_channel_of_tokens_too():
    """A transformer's tap is [B, tokens, channels]; the variances belong to the last dimension."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = nn.Linear(5, 4)

        def forward(self, x):
            return self.block(x).mean(1)

    torch.manual_seed(0)
    x = torch.randn(3, 7, 5)
    miro = baselines.Miro(Tokens(), nn.Linear(4, 3), sgd, taps=("block",), example=x, lam=1.0)
    with torch.no_grad():
        miro.raw_variance[0].copy_(torch.tensor([-1.0, 0.0, 1.0, 2.0]))
        miro.network.featurizer.block.bias.add_(0.3)
    miro.network(x)
    variance = F.softplus(torch.tensor([-1.0, 0.0, 1.0, 2.0])) + 1e-5
    wanted = float((0.09 / variance + variance.log()).mean()) / 2
    assert miro.regulariser(x).item() == pytest.approx(wanted, rel=1e-4)


def test_coral_distance_against_numpy():
    rng = np.random.RandomState(0)
    a, b = rng.randn(7, 3), rng.randn(9, 3)
    wanted = ((a.mean(0) - b.mean(0)) ** 2).mean() + ((np.cov(a.T) - np.cov(b.T)) ** 2).mean()
    assert float(baselines.coral_distance(torch.tensor(a), torch.tensor(b))) == pytest.approx(wanted)
    same = batches(0)[0]
    coral = baselines.Coral(*net(), sgd, gamma=5.0)
    assert coral.objective([same, same]).item() == pytest.approx(
        cross_entropy(coral.network, [same]).item(), abs=1e-6
    )
    with pytest.raises(ValueError, match="CORAL aligns pairs"):
        coral.objective([same])
    x, y = same
    with pytest.raises(
        ValueError, match="CORAL compares covariances; every domain's batch needs at least 2 examples, got 1"
    ):
        coral.update([same, (x[:1], y[:1])])


def test_corals_objective_by_hand_on_three_domains():
    """Mean cross-entropy of the domains plus γ times the mean over the three pairs, in NumPy; batches of unequal size."""
    coral = baselines.Coral(*net(), sgd, gamma=5.0)
    parts = [
        (x[:n] * scale, y[:n]) for (x, y), n, scale in zip(batches(0), (6, 4, 5), (1, 2, 3), strict=True)
    ]
    with torch.no_grad():
        z = [coral.network.featurizer(x).double().numpy() for x, _ in parts]
    weight, bias = (p.detach().double().numpy() for p in coral.network.head.parameters())
    losses = []
    for features, (_, y) in zip(z, parts, strict=True):
        out = features @ weight.T + bias
        right = out[np.arange(len(y)), y.numpy()]
        losses.append((np.log(np.exp(out).sum(1)) - right).mean())

    def gap(a, b):
        return ((a.mean(0) - b.mean(0)) ** 2).mean() + ((np.cov(a.T) - np.cov(b.T)) ** 2).mean()

    pairs = [gap(z[0], z[1]), gap(z[0], z[2]), gap(z[1], z[2])]
    assert len({round(p, 3) for p in pairs}) == 3
    wanted = sum(losses) / 3 + 5.0 * sum(pairs) / 3
    assert coral.objective(parts).item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("method", [baselines.Coral, baselines.Mixup])
def test_a_loss_of_ones_own_is_refused_where_it_would_be_ignored(method):
    with pytest.raises(
        ValueError, match=f"{method.__name__} has its own form of cross-entropy and takes no objective"
    ):
        method(*net(), sgd, objective=lambda network, batches: network(batches[0][0]).mean())


@pytest.mark.parametrize("method", [Erm, baselines.Coral, baselines.Mixup, baselines.Sam])
def test_an_update_without_a_batch_is_refused(method):
    algorithm = method(*net(), sgd)
    with pytest.raises(ValueError, match="no batch was given; an update takes a list with one"):
        algorithm.update([])


def test_mixup_by_hand(monkeypatch):
    """Order 2, 0, 1; every domain is mixed with the next of that order, images and losses with the same share."""
    shares = iter([0.3, 0.9, 0.5])
    monkeypatch.setattr(torch, "randperm", lambda n: torch.tensor([2, 0, 1]))
    monkeypatch.setattr(torch.distributions.Beta, "sample", lambda self: torch.tensor(next(shares)))
    mixup, parts = baselines.Mixup(*net(), sgd), batches(0)
    wanted = 0.0
    for share, i, j in ((0.3, 2, 0), (0.9, 0, 1), (0.5, 1, 2)):
        with torch.no_grad():
            out = mixup.network(share * parts[i][0] + (1 - share) * parts[j][0])
        wanted += float(
            share * F.cross_entropy(out, parts[i][1]) + (1 - share) * F.cross_entropy(out, parts[j][1])
        )
    assert mixup.objective(parts).item() == pytest.approx(wanted / 3, rel=1e-6)


def test_mixup_of_a_domain_with_itself_is_erm():
    same = batches(0)[0]
    mixup = baselines.Mixup(*net(), sgd)
    assert mixup.objective([same, same]).item() == pytest.approx(
        cross_entropy(mixup.network, [same]).item(), abs=1e-5
    )


def test_sam_takes_the_gradient_uphill_and_steps_from_where_it_was():
    sam = baselines.Sam(*net(), sgd, rho=0.05)
    start = copy.deepcopy(sam.network)
    batch = batches(0)
    grads = torch.autograd.grad(cross_entropy(start, batch), list(start.parameters()))
    size = torch.cat([g.flatten() for g in grads]).norm()
    moved = copy.deepcopy(start)
    with torch.no_grad():
        for p, g in zip(moved.parameters(), grads, strict=True):
            p.add_(0.05 * g / size)
    uphill = torch.autograd.grad(cross_entropy(moved, batch), list(moved.parameters()))
    sam.update(batch)
    wanted = flat(start) - 0.1 * torch.cat([g.flatten() for g in uphill])
    assert torch.allclose(flat(sam.network), wanted, atol=1e-6)


def test_sagm_is_the_mean_of_two_gradients_and_its_second_point_is_pulled_back():
    batch, start = batches(0), Erm(*net(), sgd).network
    grads = torch.autograd.grad(cross_entropy(start, batch), list(start.parameters()))
    here = torch.cat([g.flatten() for g in grads])
    moved = copy.deepcopy(start)
    with torch.no_grad():
        for p, g in zip(moved.parameters(), grads, strict=True):
            p.add_((0.05 / here.norm() - 0.02) * g)
    uphill = torch.cat(
        [g.flatten() for g in torch.autograd.grad(cross_entropy(moved, batch), list(moved.parameters()))]
    )
    sagm = baselines.Sagm(*net(), sgd, rho=0.05, alpha=0.02)
    sagm.update(batch)
    assert torch.allclose(flat(sagm.network), flat(start) - 0.1 * (here + uphill) / 2, atol=1e-6)
    assert not torch.allclose(flat(sagm.network), flat(start) - 0.1 * uphill, atol=1e-6)


@pytest.mark.parametrize(("name", "own"), [("sam", {"rho": 0.0}), ("sagm", {"rho": 0.0, "match": 0.0}),
                                           ("l2-sp", {"alpha": 0.0}), ("miro", {"miro": 0.0}), ("coral", {"gamma": 0.0}),
                                           ("gestur", {"lam": 0.0, "halve": False})])  # fmt: skip
def test_switched_off_every_method_is_erm(name, own):
    """On convolutions and with the fused Adam of the tables: layouts of gradients in memory matter there."""
    backbone, y = nets.small(), torch.arange(48) % 3
    x = torch.rand(48, 3, 16, 16).to(memory_format=torch.channels_last)  # as augmentation leaves it
    found = []
    for method, settings in (("erm", {}), (name, own)):
        config = methods.MethodConfig(method=method, lr=1e-2, **settings)
        algorithm = methods.build(config, backbone, 3, example=x, steps=10)
        for _ in range(5):
            algorithm.update([(x[:24], y[:24]), (x[24:], y[24:])])
        found.append(flat(algorithm.network.featurizer))
    assert torch.allclose(*found, atol=2e-4)
    assert not torch.allclose(found[0], flat(backbone.module), atol=1e-2)


@pytest.mark.parametrize("name", ["coral", "mixup", "miro"])
def test_methods_whose_loss_is_not_synchronised_refuse_several_processes(name):
    two = SimpleNamespace(distributed_type="MULTI_CPU", num_processes=2)
    backbone = nets.small((4, 6), (2, 2))
    with pytest.raises(ValueError, match=r"runs in one process, its loss is not synchronised; got 2"):
        methods.build(
            methods.MethodConfig(method=name), backbone, 3, example=torch.rand(2, 3, 8, 8), accelerator=two
        )


def test_the_running_mean_starts_as_published_and_earlier_in_short_runs():
    for steps, start in ((5001, 100), (100, 20)):
        assert methods.build(methods.MethodConfig(method="sma"), nets.small(), 3, steps=steps).start == start


def test_two_gradient_methods_refuse_accelerate():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state()
    with pytest.raises(ValueError, match="Sagm takes two gradients per step and runs without accelerate"):
        baselines.Sagm(*net(), adam(1e-2), accelerator=Accelerator(cpu=True))


def test_wise_ft_ends_and_middle():
    a, b = Erm(*net(0)).network, Erm(*net(1)).network
    assert torch.equal(flat(baselines.wise_ft(a, b, 0.0)), flat(a))
    assert torch.equal(flat(baselines.wise_ft(a, b, 1.0)), flat(b))
    assert torch.allclose(flat(baselines.wise_ft(a, b, 0.5)), (flat(a) + flat(b)) / 2)
    with pytest.raises(ValueError, match="one each, with sum 1, is needed"):
        baselines.mix([a, b], [0.5, 0.6])


@pytest.mark.parametrize(("losses", "wanted"), [
    # found at the fourth loss, limit 2.73: of the window 0 1 2 3 the 5 is too high, the next is 1, so 2 and 3 enter; the
    # window 1 ... 6 gives 1; after the training 2 and 3 enter, and what is left, 9 9 9, is too high
    ([5, 2, 2.1, 2.2, 9, 9, 9], [2, 3, 1, 2, 3]),
    # the same, but the windows 2 ... 7 and 3 ... 8 still hold a low loss; 4 ... 9 does not and ends it
    ([5, 2, 2.1, 2.2, 9, 9, 9, 9, 9, 9], [2, 3, 1, 2, 3]),
    # one good loss among them keeps it open until nothing but high losses is left
    ([5, 2, 2.1, 2.2, 9, 9, 9, 2, 9, 9, 9], [2, 3, 1, 2, 3, 4, 5, 6, 7]),
    # the window is full when the valley is found at 3: 5, 4 and 3 are too high, nothing enters twice
    ([5, 4, 3, 2, 2.1, 2.2, 2.0, 2.1, 2.2], [3, 4, 5, 6, 7, 8]),
    # no loss is too high: from the second of the window on, and again after the training
    ([1, 1.1, 1.2], [1, 2, 1, 2]),
    ([1, 1.1, 1.2, 1.3], [1, 2, 0, 1, 2, 3]),
    # equal losses: the first is the minimum
    ([1, 1, 1], [1, 2, 1, 2]),
    ([5, 4, 3, 2, 1], [4]),  # no valley yet: the last
    ([1, 2], [1]),
])  # fmt: skip
def test_swad_valley_by_hand(losses, wanted):
    assert baselines.valley(losses) == wanted


def test_swad_valley_with_other_windows():
    # limit 1.43: what the window of one has passed, 2 and 3, enters, and the 9 ends the valley
    assert baselines.valley([3, 1, 1.1, 1.2, 9], converge=3, tolerate=1) == [2, 3]
    # two windows of the same length: nothing enters when the valley is found at 1, the minimum itself is passed over
    assert baselines.valley([3, 1, 1.1, 1.2], converge=2, tolerate=2) == [2, 3]
    assert baselines.valley([3, 1, 1.1, 9, 9], converge=2, tolerate=2) == [2]
    # nothing follows: the minimum stands for the valley
    assert baselines.valley([3, 1, 1.1, 9], converge=3, tolerate=3, ratio=-0.9) == [1]


def test_swad_averages_the_stretches_of_its_valley():
    """Valley 2, 3, 1, 2, 3, 4: a stretch counts as often as it enters, however many steps it has."""
    erm, swad, stretches, k = Erm(*net(), sgd), baselines.Swad(), [], 0
    for loss, steps in ((5.0, 1), (2.0, 3), (2.1, 3), (2.2, 3), (2.3, 2)):
        seen = []
        for _ in range(steps):
            erm.update(batches(k))
            swad.follow(erm)
            seen.append(flat(erm.network))
            k += 1
        stretches.append(torch.stack(seen).mean(0))
        swad.evaluated(loss)
    wanted = sum(stretches[i] for i in (2, 3, 1, 2, 3, 4)) / 6
    assert torch.allclose(flat(swad.model()), wanted, atol=1e-6)
    assert not torch.allclose(wanted, torch.stack(stretches[1:]).mean(0), atol=1e-4)
    with pytest.raises(ValueError, match="SWAD has seen no evaluation yet"):
        baselines.Swad().model()


def test_gestur_with_swad_averages_the_generalisation_expert():
    gestur = Gestur(*net(), sgd, GesturConfig(lam=0.3, decay=0.8))
    swad, seen = baselines.Swad(converge=2, tolerate=3), []
    for loss in (3.0, 2.0, 2.1, 2.2):
        for _ in range(2):
            gestur.update(batches(len(seen)))
            swad.follow(gestur)
            seen.append(flat(gestur.expert))
        swad.evaluated(loss)
    assert torch.allclose(flat(swad.model()), torch.stack(seen[2:]).mean(0), atol=1e-6)


def test_miro_with_swad_averages_the_trained_network_and_no_oracle():
    backbone = nets.small((4, 6), (2, 2))
    x, y = torch.rand(8, 3, 8, 8), torch.arange(8) % 3
    config = methods.MethodConfig(method="miro", lr=1e-2, miro=1.0)
    miro = methods.build(config, backbone, 3, example=x)
    plain = methods.build(methods.MethodConfig(method="erm", lr=1e-2), backbone, 3)
    swad, seen, without = baselines.Swad(converge=2, tolerate=3), [], []
    for loss in (3.0, 2.0, 2.1, 2.2):
        for _ in range(2):
            miro.update([(x, y)])
            plain.update([(x, y)])
            swad.follow(miro)
            seen.append(flat(miro.network))
            without.append(flat(plain.network))
        swad.evaluated(loss)
    average = flat(swad.model())
    assert torch.allclose(average, torch.stack(seen[2:]).mean(0), atol=1e-6)
    assert torch.equal(flat(miro.oracle), flat(backbone.module))
    assert not torch.allclose(average, torch.stack(without[2:]).mean(0), atol=1e-3)  # its loss was at work


def test_wise_ft_predicts_half_way_between_the_fitted_head_and_the_end():
    backbone, x, y = nets.small((4, 6), (2, 2)), torch.rand(8, 3, 8, 8), torch.arange(8) % 3
    probe = methods.fit_probe(backbone, x, y, 3)
    wise = methods.build(methods.MethodConfig(method="wise-ft", lr=1e-2), backbone, 3, probe=probe)
    start = torch.cat([flat(backbone.module), flat(probe)])
    for _ in range(3):
        wise.update([(x, y)])
    assert torch.allclose(flat(wise.predictor), (start + flat(wise.network)) / 2, atol=1e-6)
    assert not torch.allclose(flat(wise.predictor), start, atol=1e-3)


@pytest.mark.parametrize("name", methods.NAMES)
def test_every_method_has_the_same_two_methods(name):
    backbone = nets.small((4, 6), (2, 2))
    x, y = torch.rand(8, 3, 8, 8), torch.arange(8) % 3
    probe = methods.fit_probe(backbone, x, y, 3)
    config = methods.MethodConfig(method=name, lr=1e-2)
    algorithm = methods.build(config, backbone, 3, example=x, probe=probe, steps=10)
    before = flat(algorithm.network)
    assert math.isfinite(float(algorithm.update([(x, y), (x, y)])["loss"]))
    assert not torch.equal(flat(algorithm.network), before)
    assert algorithm.predict(x).shape == (8, 3)


def test_a_probe_fits_separable_features_and_bad_names_are_named():
    backbone = nets.small((4, 6), (2, 2))
    y = torch.arange(60) % 3
    x = torch.rand(60, 3, 8, 8) * 0.1 + torch.eye(3)[y][:, :, None, None]
    head = methods.fit_probe(backbone, x, y, 3)
    with torch.no_grad():
        assert float((head(backbone.module.eval()(x)).argmax(1) == y).float().mean()) > 0.95
    with pytest.raises(ValueError, match="method 'dann' does not exist; choose erm"):
        methods.MethodConfig(method="dann")
    with pytest.raises(ValueError, match="wise-ft starts from a linear probe"):
        methods.build(methods.MethodConfig(method="wise-ft"), backbone, 3)
