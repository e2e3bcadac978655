"""Heads, losses, metrics, counts, and the committed encoders."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from companion import datasets, records, training
from companion.dgsct import binding, cost, events, metrics, world
from companion.dgsct.tasks import AVEHead, AVQAHead, AVSHead, AVVPHead


def test_ave_gate_scales_the_other_modality():
    """γ = 0 takes the temporal attention out; the gates' product stays for the loss."""
    torch.manual_seed(0)
    head = AVEHead(12, 8, 5, gamma=0.1, hidden=16).eval()
    v, a = torch.randn(3, 10, 12), torch.randn(3, 10, 8)
    on = head(v, a)
    head.gamma = 0.0
    off = head(v, a)
    assert torch.equal(on.gate, off.gate)
    assert not torch.equal(on.event, off.event)


def test_ave_loss_by_hand():
    head = AVEHead(12, 8, 5, hidden=16).eval()
    out = head(torch.randn(2, 4, 12), torch.randn(2, 4, 8))
    labels = torch.tensor([[28, 3, 3, 28], [1, 1, 1, 1]])
    y, k = (labels != 28).float(), torch.tensor([3, 1])
    want = (F.binary_cross_entropy_with_logits(out.event, y) + F.binary_cross_entropy_with_logits(out.gate, y)
            + F.cross_entropy(out.category, k) + F.cross_entropy(out.activation, k))  # fmt: skip
    assert torch.allclose(head.loss(out, labels), want)
    clean = head.loss(out, labels, as_published=False)
    assert not torch.allclose(clean, want)
    with pytest.raises(ValueError, match="without any event"):
        head.loss(out, torch.full((2, 4), 28))


def test_ave_prediction():
    event, category = torch.tensor([[1.0, -1.0]]), torch.tensor([[0.0, 5.0, 1.0]])
    assert metrics.ave_predict(event, category).tolist() == [[1, 28]]


def test_avvp_head_quirk_and_range():
    torch.manual_seed(0)
    head = AVVPHead(12, 8, 6, classes=5, width=16, segments=10).eval()
    v, a, m = torch.randn(2, 10, 12), torch.randn(2, 10, 8), torch.randn(2, 10, 6)
    out = head(v, a, m)
    assert out["audio_frames"].shape == (2, 10, 5)
    # frame scores carry 1 + softmax: at least the video's score, at most twice
    ratio = out["audio_frames"] / out["audio"][:, None]
    assert ratio.min() >= 1
    assert ratio.max() <= 2
    loss = head.loss(out, torch.eye(5)[:2])
    assert torch.isfinite(loss)
    head.as_published = True
    assert not torch.equal(head(v, a, m)["audio"], out["audio"])  # published: the gated audio is thrown away
    audio, visual = head.decide(out)
    assert audio.shape == visual.shape == (2, 5, 10)


def test_avqa_and_avs_shapes():
    head = AVQAHead(words=9, answers=4, visual=16, audio=8).eval()
    answer, match = head(torch.randn(2, 10, 36, 16), torch.randn(2, 10, 8), torch.randint(0, 9, (2, 14)))
    assert answer.shape == (2, 4)
    assert match.shape == (2, 10, 2)
    avs = AVSHead((8, 16), 8, 16).eval()
    logits = avs([torch.randn(10, 8, 8, 8), torch.randn(10, 16, 4, 4)], torch.randn(10, 8), size=32)
    assert logits.shape == (10, 32, 32)
    truth = torch.rand(10, 32, 32) > 0.5
    first = F.binary_cross_entropy_with_logits(logits[[0, 5]], truth[[0, 5]].float())
    assert torch.allclose(avs.loss(logits, truth, first_only=True), first)


def test_parsing_f1_by_hand():
    truth = np.zeros((3, 10))
    truth[0, 2:6] = 1
    predicted = np.zeros((3, 10))
    predicted[0, 3:6] = 1  # segments: tp 3, fp 0, fn 1 -> 6/7; event: IoU 3/4 -> right
    predicted[1, 0] = 1  # a class that is not there -> 0
    empty = np.zeros((3, 10))
    out = metrics.avvp_scores([(predicted, empty)], [(truth, empty)])
    assert out["segment-A"] == pytest.approx(100 * (6 / 7 + 0) / 2)
    assert out["event-A"] == pytest.approx(50)
    assert out["segment-V"] == 100  # nothing there, nothing said
    assert out["segment-Type"] == pytest.approx((out["segment-A"] + 200) / 3)
    assert metrics.events(np.array([1, 1, 0, 1])) == [(0, 2), (3, 4)]


def test_segmentation_metrics():
    truth = torch.zeros(2, 4, 4)
    truth[0, :2] = 1
    logits = torch.where(truth > 0, 5.0, -5.0)
    assert metrics.mean_iou(logits, truth) == 100  # the empty image counts by its background
    assert metrics.best_f(logits, truth) == pytest.approx(100, abs=1e-3)
    half = logits.clone()
    half[0, 1] = -5
    assert metrics.mean_iou(half, truth) == pytest.approx(75)


def test_best_f_depends_on_the_batch():
    """Two images whose best thresholds differ: one batch of two scores less than two batches of one."""
    truth = torch.zeros(2, 1, 4)
    truth[:, :, :2] = 1
    logits = torch.tensor([[[3.0, 3, 2, 2]], [[1.0, 1, -1, -1]]])
    alone = [metrics.best_f(logits[k : k + 1], truth[k : k + 1]) for k in range(2)]
    assert metrics.best_f(logits, truth) < np.mean(alone) - 5


def test_question_scores():
    kinds = [("Audio", "Counting"), ("Audio", "Comparative"), ("Visual", "Location")]
    out = metrics.avqa_scores(kinds, [True, False, True])
    assert out["Audio"] == 50
    assert out["Visual Location"] == 100
    assert out["Avg"] == pytest.approx(66.67, abs=0.01)
    with pytest.raises(ValueError, match="'Smell'"):
        metrics.avqa_scores([("Smell", "x")], [True])


@pytest.mark.parametrize(("task", "variant", "total", "trainable"), [
    ("ave", "dg-sct", 461.26, 201.16), ("ave", "lavish", 374.86, 114.77),
    ("avvp", "dg-sct", 458.91, 198.81), ("avqa", "dg-sct", 516.85, 256.75),
])  # fmt: skip
def test_counts_are_those_of_the_published_classes(task, variant, total, trainable):
    """Golden numbers: parameters counted from the instantiated official classes, in millions."""
    found = cost.count(task, variant)
    assert round(found["total"], 2) == total
    assert round(found["trainable"], 2) == trainable


def test_cost_says_what_is_wrong():
    with pytest.raises(ValueError, match="task is 'avx'"):
        cost.build("avx")
    with pytest.raises(ValueError, match="variant is 'sct'"):
        cost.build("ave", "sct")


def test_committed_encoders_know_their_modality_only():
    """Single objects: the frozen features hold shape and colour; the towers are those the record speaks of."""
    visual, audio = binding.towers()
    assert not torch.equal(binding.towers(False)[0].position, visual.position)
    single = world.scenes(600, 9, objects=1)
    with torch.no_grad():
        for x, tower, y in ((single.images, visual, single.timbre), (single.sounds, audio, single.timbre)):
            f = tower(x).mean(1)
            f = torch.cat([f, torch.ones(600, 1)], 1)
            w = torch.linalg.lstsq(f[:400], F.one_hot(y[:400], 6).float(), driver="gelsd").solution
            assert ((f[400:] @ w).argmax(1) == y[400:]).float().mean() > 0.8


def test_binding_starts_from_the_frozen_features_and_leaves_them(tmp_path):
    training.seed_everything(0)
    pair = binding.upper(binding.towers())
    data = binding.features(world.scenes(64, 5), pair)
    late, ours = (binding.Binding(binding.ARMS[n], "mean", pair) for n in ("late-fusion", "dg-sct"))
    for name in ("from_visual", "from_audio", "head"):
        getattr(ours, name).load_state_dict(getattr(late, name).state_dict())
    late.eval()
    ours.eval()
    with torch.no_grad():
        assert torch.equal(late(data.images, data.sounds), ours(data.images, data.sounds))
    before = records.fingerprint(*(x for t in pair for x in t.state_dict().values()))
    binding.fit(ours, data, 0, steps=2, batch=16)
    assert records.fingerprint(*(x for t in pair for x in t.state_dict().values())) == before
    with torch.no_grad():
        assert not torch.equal(late(data.images, data.sounds), ours(data.images, data.sounds))
    out = binding.evaluate(ours, data)
    assert 0 <= out["swapped"] <= 100


def test_arms_differ_in_one_thing():
    pair = binding.upper(binding.towers(False))
    sizes = {
        n: training.trainable(binding.Binding(a, "map", pair))[0] for n, a in binding.ARMS.items() if a.units
    }
    assert sizes["dg-sct"] == sizes["unguided"] == sizes["shuffled"] == sizes["no-reweighting"]
    assert sizes["lavish"] < sizes["dg-sct"]


def test_localiser_reads_every_segment_and_full_size_says_what_is_missing(monkeypatch):
    training.seed_everything(0)
    source = events.small_data(4, seed=2)
    model = events.small("dg-sct").eval()
    with torch.no_grad():
        said = model.predict(source.images, source.sounds)
        # temporal attention looks along the clip: another last second changes what is known of the first
        changed = source.sounds.clone()
        changed[:, -1] = source.sounds.flip(0)[:, -1]
        assert not torch.equal(
            model(source.images, source.sounds).event[:, 0], model(source.images, changed).event[:, 0]
        )
    assert said.shape == source.labels.shape
    assert set(said.unique().tolist()) <= set(range(7))
    assert events.small("no-temporal").head.gamma == 0
    monkeypatch.delenv("COMPANION_DATA", raising=False)
    with pytest.raises(datasets.DataMissing, match=r"av/annotations/AVE/Annotations\.txt is needed"):
        events.run_full("ave", "dg-sct")
    with pytest.raises(ValueError, match="'avqa' is not written yet"):
        events.run_full("avqa", "dg-sct")
    with pytest.raises(ValueError, match="row is 'shuffled'"):
        events.small("shuffled")
