"""Heads, losses, metrics, counts, and the committed encoders."""

import io
import tarfile
import wave
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from companion import records, training
from companion.dgsct import binding, cost, digits, events, fast, metrics, parsing, plain, world
from companion.dgsct.masks import TPAVI, AVSHead
from companion.dgsct.model import PRESETS, CrossModalPrompt, DualGuidedEncoder
from companion.dgsct.tasks import AVEHead, AVQAHead, AVVPHead
from tests.dgsct.test_dgsct_model import busy


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
    # a video in which nothing happens (AVE has one) has no class: the terms per segment are left
    labels = torch.tensor([[28, 3, 3, 28], [28, 28, 28, 28]])
    y = (labels != 28).float()
    want = (F.binary_cross_entropy_with_logits(out.event, y) + F.binary_cross_entropy_with_logits(out.gate, y)
            + F.cross_entropy(out.category[:1], k[:1]) + F.cross_entropy(out.activation[:1], k[:1]))  # fmt: skip
    assert torch.allclose(head.loss(out, labels), want)


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


def test_avqa_shapes_and_matching():
    head = AVQAHead(words=9, answers=4, visual=16, audio=8).eval()
    v, a = torch.randn(2, 10, 36, 16), torch.randn(2, 10, 8)
    answer, match = head(v, a, torch.randint(0, 9, (2, 14)))
    assert answer.shape == (2, 4)
    assert torch.equal(match, head.matching(v, a))


def test_tpavi_is_the_product_over_all_pairs():
    """The published order: every pixel of every second against every other, then the values."""
    torch.manual_seed(0)
    block = TPAVI(16, 8).eval()
    torch.nn.init.normal_(block.out[1].weight)
    x, sound = torch.randn(2, 16, 3, 4, 4), torch.randn(2, 3, 8)
    heard = block.align(sound).transpose(1, 2)[..., None, None].expand(-1, -1, -1, 4, 4)
    theta, phi, value = (layer(y).flatten(2) for layer, y in
                         ((block.theta, x), (block.phi, heard), (block.value, x)))  # fmt: skip
    pairs = theta.transpose(1, 2) @ phi / phi.shape[-1]  # [B, THW, THW]
    mixed = (pairs @ value.transpose(1, 2)).transpose(1, 2)
    want = block.out(mixed.view(2, 8, 3, 4, 4)) + x
    want = block.norm(want.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)
    assert torch.allclose(block(x, sound)[0], want, atol=1e-5)
    torch.nn.init.zeros_(block.out[1].weight)  # as at the start: nothing but the LayerNorm
    same = block.norm(x.permute(0, 2, 3, 4, 1)).permute(0, 4, 1, 2, 3)
    assert torch.allclose(block(x, sound)[0], same, atol=1e-6)


def test_segmentation_head_and_its_losses():
    torch.manual_seed(0)
    head = AVSHead((8, 16), 8, hidden=16, sound=8, grids=(8, 4)).eval()
    stages, audio = (torch.randn(10, 36, 8), torch.randn(10, 9, 16)), torch.randn(10, 8)
    out = head(stages, audio)
    assert out.logits.shape == (10, 32, 32)  # four times the finest grid, as 56 gives 224
    truth = torch.rand(10, 32, 32) > 0.5
    first = F.binary_cross_entropy_with_logits(out.logits[[0, 5]], truth[[0, 5]].float())
    assert torch.allclose(head.loss(out, truth[[0, 5]], first_only=True), first)
    soft, terms = out.logits.sigmoid()[:, None], []
    for x, sound in zip(out.features, out.sounds, strict=True):
        inside = F.adaptive_avg_pool2d(soft, x.shape[-1])
        q, p = (F.relu(x) * inside).mean((2, 3)).log_softmax(-1), sound.softmax(-1)
        terms.append((p * (p.log() - q)).sum())
    want = F.binary_cross_entropy_with_logits(out.logits, truth.float()) + 0.5 * sum(terms) / 2
    assert torch.allclose(head.loss(out, truth, match=0.5), want, rtol=1e-5)
    # the gate of the sound scales vision: γ = 0 takes the temporal attention out
    head.gamma = 0.0
    assert not torch.allclose(head(stages, audio).logits, out.logits)
    with pytest.raises(ValueError, match="7 frames are not a multiple of 5"):
        head(tuple(x[:7] for x in stages), audio[:7])
    with pytest.raises(ValueError, match="masks are"):
        head.loss(out, truth[:, :16])
    with pytest.raises(ValueError, match="half of the one before"):
        AVSHead((8, 16), grids=(8, 5))


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
    ("avvp", "dg-sct", 458.91, 198.81), ("avqa", "dg-sct", 516.85, 256.75), ("avs-s4", "dg-sct", 594.77, 365.99),
    ("avs-ms3", "dg-sct", 602.85, 342.76), ("few-shot", "dg-sct", 97.30, 97.30),
])  # fmt: skip
def test_counts_are_those_of_the_published_classes(task, variant, total, trainable):
    """Golden numbers: parameters counted from the instantiated official classes, in millions."""
    found = cost.count(task, variant)
    assert round(found["total"], 2) == total
    assert round(found["trainable"], 2) == trainable


@pytest.mark.parametrize(
    ("task", "gamma"), [("ave", 0.1), ("avvp", 0.05), ("avs-s4", 0.05), ("avs-ms3", 0.1)]
)
def test_temporal_gates_weigh_as_published(task, gamma):
    with torch.device("meta"):
        assert cost.build(task)[1].gamma == gamma
        assert cost.build(task, "no-temporal")[1].gamma == 0


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


def test_localiser_reads_every_segment():
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
    with pytest.raises(ValueError, match="row is 'shuffled'"):
        events.small("shuffled")


def test_told_pools_the_quadrant_that_sounds_and_nothing_else():
    training.seed_everything(0)
    source = events.small_data(6, seed=2)
    where = events.quadrants(source)
    inside = source.labels < 6
    assert torch.equal(where.any(2), inside)
    assert torch.equal(where.sum(2) == 1, inside)
    model = events.small("told").eval()
    first, segment = torch.nonzero(inside)[0].tolist()
    quadrant = int(where[first, segment].int().argmax())
    grid = torch.zeros(4, 4, dtype=torch.bool)
    row, column = divmod(quadrant, 2)
    grid[2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = True
    seen = {}
    model.head.register_forward_pre_hook(lambda module, inputs: seen.update(v=inputs[0]))
    with torch.no_grad():
        model(source.images, source.sounds, where)
        tokens = model.encode(source.images, source.sounds).visual.view(*where.shape[:2], 16, -1)
    assert torch.allclose(
        seen["v"][first, segment], tokens[first, segment][grid.flatten()].mean(0), atol=1e-6
    )
    quiet = torch.nonzero(~inside)[0].tolist()
    assert torch.allclose(seen["v"][tuple(quiet)], tokens[tuple(quiet)].mean(0), atol=1e-6)


def test_where_the_map_looks_is_measured_inside_events():
    source = events.small_data(6, seed=2)
    model = events.small("late-fusion")
    with torch.no_grad():  # a flat map
        model.encoder.score_visual.weight.zero_()
    found = events.evaluate(model, source)
    assert found["mass"] == pytest.approx(25, abs=1e-3)


# --- the other tasks on the procedural world, and digits -----------------------------------------------


def test_world_of_the_tasks():
    data = parsing.clips(80, seed=2, sources=2)
    # what is outlined is seen and heard: in each segment the masks' quadrants are those of visible, audible kinds
    for n in range(20):
        for t in range(parsing.SEGMENTS):
            wanted = {q for q in range(4) if data.shapes[n, q] >= 0 and data.audible[n, data.shapes[n, q], t]}
            found = data.masks[n, t].view(2, 16, 2, 16).any(3).any(1).flatten()
            assert set(torch.nonzero(found).flatten().tolist()) == wanted
    assert torch.equal(data.visible.sum(1), torch.full((80, parsing.SEGMENTS), 3))
    off_screen = (data.audible & ~data.visible).any(1).any(1).float().mean()
    assert 0.3 < off_screen < 0.7
    still = parsing.clips(80, seed=2, always=True)
    assert not (still.audible & ~still.visible).any()
    with pytest.raises(ValueError, match="sources is 3"):
        parsing.clips(4, 0, sources=3)


def test_questions_can_be_answered_from_what_is_shown():
    data = parsing.clips(120, seed=1)
    words, answers, kinds = parsing.questions(data, 0)
    for n in range(120):
        text = " ".join(parsing.WORDS[w] for w in words[n].tolist() if w)
        if text == "what colour sounds":
            assert kinds[n] == ("Audio-Visual", "Attribute")
            assert parsing.ANSWERS[answers[n]] == world.COLOURS[data.colours[n, data.source[n]]]
        if text == "is what sounds left":
            assert kinds[n] == ("Audio-Visual", "Location")
            assert parsing.ANSWERS[answers[n]] == ("yes" if data.source[n] in (0, 2) else "no")
        if text == "how many heard":
            assert parsing.ANSWERS[answers[n]] == ["zero", "one", "two"][data.audible[n].any(1).sum()]


def test_unseen_pairs_are_unseen_but_their_words_are_not():
    seen, unseen = parsing.PAIRS[: -parsing.HELD_OUT], parsing.PAIRS[-parsing.HELD_OUT :]
    assert not set(seen) & set(unseen)
    assert {c for c, _ in seen} == {s for _, s in seen} == set(range(6))
    for pairs in (seen, unseen):  # what is heard tells the shape, and leaves three pairs to choose from
        assert [sum(s == shape for _, s in pairs) for shape in range(6)] == [3] * 6
    train = parsing.source("zero-shot", 60, 0)
    test = parsing.source("zero-shot", 60, 0, held_out=True)
    assert len(train) + len(test) == 60
    assert test.tensors["class"].max() < parsing.HELD_OUT
    few = parsing.source("few-shot", 500, 0, shots=2)
    assert torch.bincount(few.tensors["class"]).tolist() == [2] * 36
    with pytest.raises(ValueError, match=r"has fewer than 9 clips among 60"):
        parsing.source("few-shot", 60, 0, shots=9)


def test_the_colour_question_is_about_the_object_that_sounds_in_every_segment():
    data = parsing.source("avqa-colour", 30, 3)
    clips = parsing.clips(30, 3, always=True)
    assert data.kinds == (("Audio-Visual", "Attribute"),) * 30
    colours = clips.colours.gather(1, clips.source[:, None]).squeeze(1).tolist()
    assert [parsing.ANSWERS[n] for n in data.tensors["answer"]] == [world.COLOURS[n] for n in colours]
    assert (data.tensors["audible"] & data.tensors["visible"]).any(1).all()


@pytest.mark.parametrize("row", parsing.ROWS)
def test_the_colour_question_can_read_the_frame_through_the_map(row):
    """Tokens that the map leaves out cannot change the answer; with an even map both heads answer alike."""
    torch.manual_seed(0)
    model, plain = parsing.Small("avqa-colour-map", row).eval(), parsing.Small("avqa-colour", row).eval()
    plain.load_state_dict(model.state_dict())
    batch = parsing.source("avqa-colour", 4, 0).batch(torch.arange(4))
    found = model._features(batch)
    even = torch.full_like(found.pool_visual, 1 / found.pool_visual.shape[-1])
    for m in (model, plain):
        m._features = lambda batch, **keep: found._replace(pool_visual=even)
    torch.testing.assert_close(model.outputs(batch)[0], plain.outputs(batch)[0])
    first = torch.zeros_like(even)
    first[..., 0] = 1
    changed = found.visual.clone()
    changed[:, 1:] += 1
    model._features = lambda batch, **keep: found._replace(pool_visual=first)
    one = model.outputs(batch)[0]
    model._features = lambda batch, **keep: found._replace(pool_visual=first, visual=changed)
    torch.testing.assert_close(model.outputs(batch)[0], one)


@pytest.mark.parametrize("task", parsing.TASKS)
def test_small_tasks_train_and_are_scored(task):
    training.seed_everything(0)
    train = parsing.source(task, 100 if task != "few-shot" else 300, 0, shots=task == "few-shot")
    model = parsing.Small(task, "dg-sct")
    before = [p.detach().clone() for p in model.parameters() if not p.requires_grad]
    parsing.fit(model, train, 0, steps=2, batch=4)
    after = [p for p in model.parameters() if not p.requires_grad]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))  # the encoders stay
    found = parsing.evaluate(model, parsing.source(task, 40, 1, held_out=task == "zero-shot"))
    assert 0 <= found[parsing.HEADLINE[task]] <= 100


def test_small_tasks_say_what_is_wrong():
    with pytest.raises(ValueError, match="'avx' of 'dg-sct' does not exist"):
        parsing.Small("avx", "dg-sct")


def archive(path, rate=8000, digits=range(10)):
    """A tiny spoken-digits archive in the data set's layout."""
    with tarfile.open(path, "w:xz") as box:
        for digit in digits:
            for index in (0, 7):
                content = io.BytesIO()
                with wave.open(content, "wb") as file:
                    file.setparams((1, 2, rate, 0, "NONE", ""))
                    t = np.arange(4000) / 8000
                    file.writeframes(
                        (9000 * np.sin(2 * np.pi * (200 + 150 * digit) * t)).astype("<i2").tobytes()
                    )
                entry = tarfile.TarInfo(f"fsdd/recordings/{digit}_ann_{index}.wav")
                entry.size = len(content.getvalue())
                box.addfile(entry, io.BytesIO(content.getvalue()))
    return path


def test_digits_bind_a_recording_to_one_of_three(tmp_path):
    voice = digits.read_spoken(archive(tmp_path / "a.tar.xz"))
    assert voice.sounds.shape == (20, 1, 64, 16)
    assert voice.test.tolist() == [True, False] * 10
    s = digits.scenes(40, 0, test=True, voice=voice)
    assert torch.equal(s.shapes.gather(1, s.place[:, None]).squeeze(1), s.timbre)
    assert all(len(set(row[row >= 0].tolist())) == 3 for row in s.colours)
    quadrants = s.masks.view(-1, 2, 16, 2, 16).float().sum((2, 4)).flatten(1)
    assert torch.equal(quadrants.argmax(1), s.place)
    with pytest.raises(ValueError, match="16000 Hz with 1 channels"):
        digits.read_spoken(archive(tmp_path / "b.tar.xz", rate=16_000))
    few = digits.read_spoken(archive(tmp_path / "c.tar.xz", digits=range(9)))
    with pytest.raises(ValueError, match="digit 9 has no recording in the test part"):
        digits.scenes(4, 0, test=True, voice=few)


# --- the published operations ------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("training_mode", [False, True])
def test_unit_equals_the_published_operations(name, training_mode):
    """The parity recipe: its shapes, gates at 0.7, random norms and statistics; outputs to 1e-5, gradients to 1e-4 of
    the largest."""
    for seed in range(3):
        torch.manual_seed(seed)
        u = busy(CrossModalPrompt(36, 64, 64, 96, PRESETS[name])).train(training_mode)
        x, g = torch.randn(20, 36, 64, requires_grad=True), torch.randn(20, 64, 96, requires_grad=True)
        noise = torch.randn(20, 36, 64)
        y, maps = u(x, g)
        z, (pool, *_) = plain.plain(u, x.mT[..., None], g.mT[..., None])
        assert (y - z.squeeze(-1).mT).abs().max() < 1e-5
        assert (maps.pool - pool).abs().max() < 1e-7
        assert y.abs().mean() > 0.1
        leaves = [x, g, *(p for p in u.parameters() if p.requires_grad)]
        ours, theirs = (
            torch.autograd.grad((out * noise).sum() + m.square().sum(), leaves, allow_unused=True)
            for out, m in ((y, maps.pool), (z.squeeze(-1).mT, pool))
        )
        largest = max(float(t.abs().max()) for t in theirs if t is not None)
        for a, b in zip(ours, theirs, strict=True):
            assert (a is None) == (b is None)
            assert a is None or float((a - b).abs().max()) < 1e-4 * largest


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("sizes", [(144, 64, 64, 96), (36, 64, 64, 96)])
@pytest.mark.parametrize("training_mode", [False, True])
def test_fused_unit_is_the_unit(name, sizes, training_mode):
    """Outputs and gradients, where the guide is never formed (144 tokens) and where it is (36, many latent tokens)."""
    for seed in range(2):
        torch.manual_seed(seed)
        config = PRESETS[name]
        u = busy(CrossModalPrompt(*sizes, config)).train(training_mode)
        fused = fast.FastPrompt(*sizes, config).train(training_mode)
        assert fused.short == (sizes[0] == 144 or config.tokens == 2)
        assert list(fused.state_dict()) == list(u.state_dict())
        fused.load_state_dict(u.state_dict())
        x, g = torch.randn(20, *sizes[:2]), torch.randn(20, *sizes[2:])
        (y, a), (z, b) = u(x, g), fused(x, g)
        assert (y - z).abs().max() < 2e-5
        assert (a.pool - b.pool).abs().max() < 1e-6
        assert (a.channel - b.channel).abs().max() < 1e-6
        (y.square().sum() + a.pool.sum()).backward()
        (z.square().sum() + b.pool.sum()).backward()
        largest = max(float(p.grad.abs().max()) for p in u.parameters() if p.grad is not None)
        theirs = dict(fused.named_parameters())
        for key, p in u.named_parameters():
            if p.grad is not None:
                assert float((p.grad - theirs[key].grad).abs().max()) < 1e-4 * largest


def test_fused_gradients_in_double_precision():
    """A full-size unit of the few-shot model (stage 3, audio). In single precision a ReLU's input within rounding of zero
    falls on either side of it, which moves single gradients by far more than rounding; in double precision nothing does.
    """
    torch.manual_seed(3)
    u = plain.open_gates(fast.FastPrompt(256, 384, 50, 768, PRESETS["few-shot"])).double()
    x, g = (torch.randn(10, *s, dtype=torch.double, requires_grad=True) for s in ((256, 384), (50, 768)))
    y, maps = u(x, g)
    z, (pool, *_) = plain.plain(u, x.mT[..., None], g.mT[..., None])
    assert u.short
    assert float((y - z.squeeze(-1).mT).detach().abs().max()) < 1e-12
    noise = torch.randn(10, 256, 384, dtype=torch.double)
    leaves = [x, g, *u.parameters()]
    ours, theirs = (
        torch.autograd.grad((out * noise).sum() + m.square().sum(), leaves, allow_unused=True)
        for out, m in ((y, maps.pool), (z.squeeze(-1).mT, pool))
    )
    largest = max(float(t.abs().max()) for t in theirs if t is not None)
    assert all(
        float((a - b).abs().max()) < 1e-12 * largest
        for a, b in zip(ours, theirs, strict=True)
        if a is not None
    )


@pytest.mark.parametrize("off", ["latent", "channel", "spatial"])
def test_fused_unit_leaves_out_what_the_unit_leaves_out(off):
    torch.manual_seed(0)
    config = replace(PRESETS["few-shot"], **{off: False})
    u = busy(CrossModalPrompt(144, 64, 64, 96, config, gated=False)).eval()
    fused = fast.FastPrompt(144, 64, 64, 96, config, gated=False).eval()
    fused.load_state_dict(u.state_dict())
    x, g = torch.randn(20, 144, 64), torch.randn(20, 64, 96)
    with torch.no_grad():
        (y, a), (z, b) = u(x, g), fused(x, g)
    assert (y - z).abs().max() < 2e-5
    assert (a.pool - b.pool).abs().max() < 1e-6
    assert (a.channel is None) == (b.channel is None)


def test_fused_unit_starts_silent():
    """Gates at 0: the residual is exactly 0, as that of the unit."""
    unit = fast.FastPrompt(144, 64, 64, 96)
    assert not unit(torch.randn(4, 144, 64), torch.randn(4, 64, 96))[0].any()


def test_times_of_a_model_are_weighted_by_its_units():
    one = {"plain_ms": 4.0, "ours_ms": 2.0, "output": 1e-6, "gradient": 2e-6}
    found = {(s, side): dict(one) for s in plain.STAGES for side in ("visual", "audio")}
    found[3, "audio"] |= {"ours_ms": 1.0, "output": 1e-5}
    out = plain.summary(found)
    assert out["visual-ratio"] == 2
    # 24 audio units, 12 of them in stage 3
    assert out["audio-ratio"] == pytest.approx(24 * 4 / (12 * 2 + 12 * 1))
    assert out["ratio"] == pytest.approx(48 * 4 / (36 * 2 + 12 * 1))
    assert (out["apart"], out["gradient"]) == (1e-5, 2e-6)
    assert plain.summary({(2, "visual"): one, (2, "audio"): one})["visual-plain_ms"] == 4


def test_fusing_a_model_keeps_weights_and_outputs():
    from tests.dgsct.test_dgsct_model import SMALL, towers

    encoder = DualGuidedEncoder(*towers(), SMALL).eval()
    for group in (encoder.visual_1, encoder.visual_2, encoder.audio_1, encoder.audio_2):
        for unit in group:
            busy(unit)
    images, sounds = torch.randn(3, 3, 32, 32), torch.randn(3, 1, 64, 16)
    with torch.no_grad():
        want = encoder(images, sounds)
        state = encoder.state_dict()
        fast.fuse(encoder)
        kinds = [type(u).__name__ for u in encoder.visual_1]
        assert kinds == ["FastPrompt", "FastPrompt"]  # L is 64, then 16; M is 4
        assert list(encoder.state_dict()) == list(state)
        got = encoder(images, sounds)
    assert torch.allclose(got.visual, want.visual, atol=1e-4)
    assert torch.allclose(got.pool_audio, want.pool_audio, atol=1e-5)
    with pytest.raises(ValueError, match="given 36 and 16"):
        fast.FastPrompt(64, 64, 64, 96)(torch.zeros(1, 16, 64), torch.zeros(1, 36, 96))
