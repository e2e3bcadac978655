"""The label decoder, its pointer and its loss: what equations (1) to (4) of the walk-through demand."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from companion.ytuning.model import Attention, YTuning, YTuningConfig, parameter_count, triplet_loss

TWO = {"task": ("no", "yes")}


def head(tasks=None, **options):
    torch.manual_seed(0)
    config = YTuningConfig(tasks or TWO, 16, **{"width": 8, "heads": 2, "feed_forward": 12, **options})
    return YTuning(config).eval()


def inputs(batch=3, tokens=5, width=16, seed=1):
    g = torch.Generator().manual_seed(seed)
    pad = torch.zeros(batch, tokens, dtype=torch.bool)
    pad[0, 3:] = True
    return torch.randn(batch, tokens, width, generator=g), pad


@pytest.mark.parametrize("options", [{}, {"layers": 3}, {"width": 16}, {"self_attention": False}, {"score": "linear"},
                                     {"score": "linear", "task_embedding": False}, {"per_label": 4}, {"segments": 2},
                                     {"mix": 2}])  # fmt: skip
def test_parameter_count_follows_the_formula(options):
    tasks = {"a": "xyz", "b": "uv"}
    model = head(tasks, **options)
    assert sum(p.numel() for p in model.parameters()) == parameter_count(model.config)


def test_one_layer_at_full_width_is_two_per_cent_of_deberta_xxl():
    config = YTuningConfig(TWO, 1536, heads=24)
    d, f = 1536, 6144
    assert parameter_count(config) == 8 * d * d + 2 * d * f + 15 * d + f + 3 * d
    # 1.57 B parameters in the encoder; two layers would be 5 %
    assert round(100 * parameter_count(config) / 1.567e9) == 2


def test_loss_is_zero_when_every_margin_is_kept():
    scores = torch.tensor([[3.0, 2.0, 1.0], [-1.0, 0.5, 3.5]])
    assert triplet_loss(scores, torch.tensor([0, 2]), 1.0) == 0


@pytest.mark.parametrize(("labels", "margin"), itertools.product((2, 3, 150), (0.1, 1.0, 5.0)))
def test_loss_of_equal_scores_is_margin_times_other_labels(labels, margin):
    loss = triplet_loss(torch.full((4, labels), 0.7), torch.tensor([0, 1, 0, 1]), margin)
    assert loss == pytest.approx((labels - 1) * margin, rel=1e-5)


def test_satisfied_negatives_get_no_gradient():
    scores = torch.tensor([[2.0, 0.5, 1.9]], requires_grad=True)
    triplet_loss(scores, torch.tensor([0]), 1.0).backward()
    assert scores.grad.tolist() == [[-1.0, 0.0, 1.0]]


def test_permuting_the_classes_permutes_the_scores():
    model, order = head({"task": "abcd"}), torch.tensor([2, 0, 3, 1])
    H, pad = inputs()
    before = model(H, pad)
    with torch.no_grad():
        model.labels["task"].copy_(model.labels["task"][order])
    after = model(H, pad)
    torch.testing.assert_close(after, before[:, order])
    target = torch.tensor([0, 1, 3])
    moved = order.argsort()[target]
    torch.testing.assert_close(model.loss(after, moved), model.loss(before, target))


def test_padding_changes_nothing():
    model = head(layers=2)
    H, pad = inputs()
    short = model(H[:1, :3], pad[:1, :3])
    H[0, 3:] = 1e3
    torch.testing.assert_close(model(H, pad)[:1], short)
    torch.testing.assert_close(model(F.pad(H, (0, 0, 0, 4)), F.pad(pad, (0, 4), value=True)), model(H, pad))


def test_two_tasks_on_one_forward_equal_two_models():
    both = head({"a": "xyz", "b": "uv"})
    H, pad = inputs()
    for task, labels in (("a", "xyz"), ("b", "uv")):
        alone = head({task: labels})
        state = {k: v for k, v in both.state_dict().items() if k in alone.state_dict()}
        alone.load_state_dict(state)
        torch.testing.assert_close(both(H, pad, task=task), alone(H, pad))


def test_a_task_does_not_move_another_tasks_labels():
    model = head({"a": "xyz", "b": "uv"})
    H, pad = inputs()
    model.loss(model(H, pad, task="a"), torch.tensor([0, 1, 2])).backward()
    assert model.labels["b"].grad is None
    assert model.labels["a"].grad.abs().sum() > 0


def test_shared_label_attention_equals_the_layer_per_text():
    """The first layer's self-attention is computed once for all texts; expanding it first must not matter."""
    model = head({"task": "abc"})
    H, pad = inputs()
    e, memory = model.queries("task").expand(3, -1, -1), model.memory(H)
    torch.testing.assert_close(model.states(H, pad), model.layers[0](e, memory, pad))


def test_scores_are_what_their_names_say():
    H, pad = inputs()
    for score in ("dot", "scaled_dot", "cosine"):
        model = head(score=score)
        h = model.states(H, pad)
        by_hand = {"dot": (h[:, :1] * h[:, 1:]).sum(-1), "scaled_dot": (h[:, :1] * h[:, 1:]).sum(-1) / 8**0.5,
                   "cosine": F.cosine_similarity(h[:, :1], h[:, 1:], dim=-1)}[score]  # fmt: skip
        torch.testing.assert_close(model(H, pad), by_hand)


def test_several_embeddings_per_label_score_by_the_best():
    model = head({"task": "abc"}, per_label=2)
    H, pad = inputs()
    h = model.states(H, pad)
    every = torch.einsum("bd,bnd->bn", h[:, 0], h[:, 1:]) / 8**0.5
    torch.testing.assert_close(model(H, pad), every.view(3, 3, 2).amax(-1))


def test_attention_maps_sum_to_one_and_skip_padding():
    model = head({"task": "abc"}, layers=2)
    H, pad = inputs()
    for layer in (0, 1):
        maps = model.attention(H, pad, layer=layer)
        assert maps.shape == (3, 4, 5)
        torch.testing.assert_close(maps.sum(-1), torch.ones(3, 4))
        assert maps[0, :, 3:].abs().max() == 0


def test_a_new_label_leaves_the_others_embeddings_alone():
    model = head({"task": "ab"})
    old = model.labels["task"].detach().clone()
    model.add_label("task", "c")
    assert model.config.tasks["task"] == ("a", "b", "c")
    torch.testing.assert_close(model.labels["task"][:2].detach(), old)
    assert model(*inputs()).shape == (3, 3)


def test_label_names_start_with_the_spread_of_the_random_start():
    model = head({"task": "abc"}, width=16)
    vectors = torch.randn(3, 16) * 7 + 3
    model.name_labels("task", vectors)
    assert model.labels["task"].std().item() == pytest.approx(0.02, rel=1e-3)
    centred = vectors - vectors.mean(0)
    torch.testing.assert_close(F.cosine_similarity(model.labels["task"], centred), torch.ones(3))


@pytest.mark.parametrize("batch", [1, 3])
def test_few_queries_read_the_tokens_without_projecting_them(batch):
    """Moving W_K to the queries and W_V behind the sum changes no score and no gradient, under dropout, too."""
    torch.manual_seed(0)
    net = Attention(32, 4, 0.0)
    for part in (net.key, net.value):
        torch.nn.init.normal_(part.bias)
    q, memory, pad = torch.randn(batch, 3, 32, requires_grad=True), torch.randn(3, 9, 32), inputs()[1]
    pad = F.pad(pad, (0, 4), value=False)
    found = []
    for way in (net._few, net._many):
        read = way(net._split(net.query(q)), memory, pad)
        found.append(
            [
                read,
                *torch.autograd.grad(read.pow(2).sum(), [q, *net.key.parameters(), *net.value.parameters()]),
            ]
        )
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one, two, atol=1e-3, rtol=1e-4)
    # dropped weights no longer sum to 1, and the values' bias must shrink with them
    net.dropout = 0.5
    torch.nn.init.zeros_(net.value.weight)
    weights = net._few(net._split(net.query(q)), memory, pad) / net.value.bias.view(4, 1, 8)
    assert weights.std(-1).max() < 1e-4
    assert (weights[..., 0] - 1).abs().max() > 0.1


def test_the_way_with_fewer_operations_is_taken(monkeypatch):
    taken = []
    for way in ("_few", "_many"):
        real = getattr(Attention, way)
        monkeypatch.setattr(
            Attention, way, lambda self, *a, way=way, real=real: taken.append(way) or real(self, *a)
        )
    for labels, tokens in ((2, 12), (40, 12), (2, 1)):
        net = head({"task": [str(k) for k in range(labels)]}, width=16, self_attention=False)
        assert net(torch.randn(2, tokens, 16)).shape == (2, labels)
    assert taken == ["_few", "_many", "_many"]


def test_a_separable_toy_is_learned():
    torch.manual_seed(0)
    model = head(width=16, heads=2, feed_forward=32, dropout=0.0).train()
    marks = torch.randn(2, 16)
    target = torch.randint(2, (64,))
    H = torch.randn(64, 6, 16) * 0.3
    H[torch.arange(64), torch.randint(6, (64,))] += 2 * marks[target]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(120):
        loss = model.loss(model(H), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (model.eval()(H).argmax(1) == target).all()


@pytest.mark.parametrize(("options", "words"), [
    ({"tasks": {"stsb": ["score"]}}, "cannot do regression"),
    ({"tasks": {"t": ["a", "a"]}}, "'a' twice"),
    ({"tasks": {}}, "at least one task"),
    ({"score": "euclid"}, "choose scaled_dot"),
    ({"loss": "hinge"}, "choose triplet"),
    ({"heads": 3}, "cannot be split into 3 heads"),
    ({"task_embedding": False}, "use 'linear'"),
    ({"label_init": "zeros"}, "choose random or names"),
    ({"margin": 0.0}, "margin above 0"),
    ({"layers": 0}, "starts at 1"),
])  # fmt: skip
def test_bad_configurations_get_one_sentence(options, words):
    with pytest.raises(ValueError, match=words):
        YTuningConfig(**{"tasks": TWO, "width_in": 16, "width": 8, "heads": 2, **options})


def test_features_of_another_width_are_refused():
    with pytest.raises(ValueError, match="features are 12 wide; this model reads 1 x 16"):
        head()(torch.zeros(1, 2, 12))


def test_an_unknown_task_is_refused():
    with pytest.raises(ValueError, match="knows a, b"):
        head({"a": "xy", "b": "uv"})(torch.zeros(1, 2, 16))
