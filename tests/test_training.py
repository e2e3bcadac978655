"""The loop: a resumed training is the same training, schedules and accumulation do the arithmetic they name."""

import math

import pytest
import torch
from torch import nn

from companion import training

X = torch.randn(64, 5, generator=torch.Generator().manual_seed(1))
Y = X @ torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0]) + 0.1


def net():
    training.seed_everything(3)
    return nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 1))


def loss(model, batch):
    x, y = batch
    return (model(x)[:, 0] - y).square().mean()


def batches(size=8):
    index = training.epochs(len(X), size, seed=0)
    return lambda k: (X[index(k)], Y[index(k)])


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("stop", [1, 7, 19])
def test_a_resumed_training_ends_bit_for_bit_where_an_uninterrupted_one_does(tmp_path, stop):
    config = training.FitConfig(steps=20, lr=0.01, warmup=3, ema=0.9, save_every=5)
    straight = net()
    a = training.fit(straight, loss, batches(), config, cpu=True)
    first = net()
    training.fit(first, loss, batches(), config, folder=tmp_path / "run", stop_after=stop, cpu=True)
    second = net()
    torch.manual_seed(999)  # another process would start with another random state
    b = training.fit(second, loss, batches(), config, folder=tmp_path / "run", cpu=True)
    assert torch.equal(weights(straight), weights(second))
    assert torch.equal(weights(a.averaged), weights(b.averaged))
    assert a.curves["loss"] == b.curves["loss"]
    assert not torch.equal(weights(first), weights(second))


def test_a_finished_training_is_loaded_not_repeated(tmp_path):
    config = training.FitConfig(steps=5, lr=0.01)
    one = net()
    training.fit(one, loss, batches(), config, folder=tmp_path / "run", cpu=True)

    def never(_):
        raise AssertionError("a finished training asked for data")

    two = net()
    again = training.fit(two, loss, never, config, folder=tmp_path / "run", cpu=True)
    assert torch.equal(weights(one), weights(two))
    assert again.step == 5


def test_accumulated_small_batches_take_the_step_of_a_large_one():
    plain = nn.Linear(5, 1)
    with torch.no_grad():
        plain.weight.fill_(0.1)
        plain.bias.zero_()
    other = nn.Linear(5, 1)
    other.load_state_dict(plain.state_dict())
    config = dict(steps=1, lr=0.1, schedule="constant", clip=0.0)
    training.fit(plain, loss, lambda k: (X, Y), training.FitConfig(**config), cpu=True)
    training.fit(other, loss, lambda k: (X[k * 16 : k * 16 + 16], Y[k * 16 : k * 16 + 16]),
                 training.FitConfig(**config, accumulate=4), cpu=True)  # fmt: skip
    torch.testing.assert_close(weights(plain), weights(other))


def test_clipping_bounds_the_gradient_norm():
    model = nn.Linear(5, 1)
    seen = []

    def watched(m, batch):
        return 1e4 * loss(m, batch)

    step = torch.optim.AdamW.step
    torch.optim.AdamW.step = lambda self, *a, **k: (
        seen.append(math.sqrt(sum(p.grad.square().sum() for p in model.parameters()))), step(self, *a, **k)
    )[1]  # fmt: skip
    try:
        training.fit(model, watched, lambda k: (X, Y), training.FitConfig(steps=3, clip=0.5), cpu=True)
    finally:
        torch.optim.AdamW.step = step
    assert seen
    assert all(norm <= 0.5 + 1e-5 for norm in seen)


def test_schedules():
    cosine = training.FitConfig(steps=110, warmup=10, final_lr=0.1)
    assert [training.learning_rate(cosine, k) for k in (0, 9, 10, 60, 110)] == pytest.approx(
        [0.1, 1, 1, 0.55, 0.1]
    )
    linear = training.FitConfig(steps=100, schedule="linear")
    assert training.learning_rate(linear, 25) == pytest.approx(0.75)
    constant = training.FitConfig(steps=100, schedule="constant", warmup=4)
    assert [training.learning_rate(constant, k) for k in (1, 50)] == pytest.approx([0.5, 1])


def test_ema_is_the_running_average():
    model = nn.Linear(1, 1, bias=False)
    seen = []
    config = training.FitConfig(steps=4, lr=0.1, ema=0.75, schedule="constant", evaluate_every=1)
    training.fit(model, loss=lambda m, b: m(b).sum(), batches=lambda k: torch.ones(1, 1), config=config, cpu=True,
                 evaluate=lambda m: seen.append((float(m.weight), float(model.weight))) or {})  # fmt: skip
    average = seen[0][1]  # the first update copies
    for averaged, raw in seen:
        average = average if raw == seen[0][1] else 0.75 * average + 0.25 * raw
        assert averaged == pytest.approx(average, abs=1e-6)


def test_checkpoints_are_split_and_only_the_newest_is_kept(tmp_path):
    state = {
        "a": torch.ones(600_000),
        "b": [torch.zeros(600_000), {3: torch.arange(4)}],
        "n": 7,
        "t": (1, None),
    }
    training.save_checkpoint(tmp_path, 1, state, shard_mib=3)
    training.save_checkpoint(tmp_path, 2, state, shard_mib=3)
    parts = sorted(tmp_path.glob("step-*/part-*.safetensors"))
    assert len(parts) == 2
    assert all(p.stat().st_size < 3.1 * 2**20 for p in parts)
    assert [p.name for p in tmp_path.glob("step-*")] == ["step-00000002"]
    back = training.load_checkpoint(tmp_path)
    assert torch.equal(back["b"][1][3], torch.arange(4))
    assert back["t"] == (1, None)


def test_a_kill_before_the_pointer_moves_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    training.save_checkpoint(tmp_path, 1, {"x": torch.ones(2)})

    def killed(path, content):
        if path.name == "latest":
            raise KeyboardInterrupt
        path.write_text("{}")

    monkeypatch.setattr(training.records, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        training.save_checkpoint(tmp_path, 2, {"x": torch.zeros(2)})
    assert torch.equal(training.load_checkpoint(tmp_path)["x"], torch.ones(2))


def test_epochs_visit_every_example_once():
    index = training.epochs(12, 4, seed=5)
    assert sorted(torch.cat([index(k) for k in range(3)]).tolist()) == list(range(12))
    assert index(0).tolist() != index(3).tolist()
    assert torch.equal(index(4), training.epochs(12, 4, seed=5)(4))
    with pytest.raises(ValueError, match="20"):
        training.epochs(12, 20, seed=0)


def test_bad_settings_are_refused():
    for wrong in ({"schedule": "cosin"}, {"precision": "fp8"}, {"steps": 0}):
        with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
            training.FitConfig(**{"steps": 1} | wrong)


def test_a_loss_that_is_not_finite_stops_with_its_step():
    with pytest.raises(FloatingPointError, match="step 0"):
        training.fit(
            net(), lambda m, b: loss(m, b) * float("nan"), batches(), training.FitConfig(steps=2), cpu=True
        )


def test_streams_are_independent_and_repeatable():
    a, b = (torch.rand(4, generator=training.generator(0, name)) for name in ("train", "test"))
    assert not torch.equal(a, b)
    assert torch.equal(a, torch.rand(4, generator=training.generator(0, "train")))


def test_bf16_trains(tmp_path):
    out = training.fit(
        net(), loss, batches(), training.FitConfig(steps=30, lr=0.05, precision="bf16"), cpu=True
    )
    assert out.curves["loss"][-1][1] < out.curves["loss"][0][1]
    assert out.examples == 30 * 8
