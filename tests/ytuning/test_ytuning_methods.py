"""Baselines, the common protocol, the classifier on disk, and costs."""

import pytest
import torch

from companion import tables, training
from companion.ytuning import baselines, cost, data, methods, metrics, protocol
from companion.ytuning.classifier import YTuningForSequenceClassification
from companion.ytuning.features import Noisy, extract
from companion.ytuning.frozen import FrozenEncoder
from companion.ytuning.model import YTuning, YTuningConfig

SPLIT = data.Split(
    ["the cat sat", "very sad dog", "the happy cat ran", "a sad cat"] * 4, [1, 0, 1, 0] * 4, ("no", "yes")
)


@pytest.mark.parametrize("method", methods.METHODS)
def test_every_method_trains_what_it_says_and_nothing_else(make_encoder, tmp_path, method):
    encoder = make_encoder(layers=methods.layers_for(method, 2))
    read = methods.inputs(method, encoder, SPLIT, folder=tmp_path)
    model = methods.make(
        method, encoder, SPLIT.labels, {"width": 8, "heads": 2} if method != "ladder" else {}
    )
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    scores = model(*read.source.batch(range(6)))
    assert scores.shape == (6, 2)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    methods.loss(model, scores, read.target[:6]).backward()
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert moved
    assert not moved & frozen
    inside = {name for name in moved if name.startswith("model.")}
    if method == "bitfit":
        assert inside
        assert all(name.endswith("bias") for name in inside)
    elif method == "lora":
        assert inside
        assert all("lora_" in name for name in inside)
    elif method == "fine-tuning":
        assert any("word_embeddings" in name for name in inside)
    else:
        assert not inside
    # the frozen original never moves
    assert all(not p.requires_grad for p in encoder.model.parameters())


def test_a_fresh_lora_is_the_original_model(make_encoder):
    encoder = make_encoder()
    batch = encoder.pad(encoder.tokenize(SPLIT.texts), range(4))
    torch.manual_seed(0)
    plain = baselines.Tuned(encoder, 2, "fine-tuning").eval()
    torch.manual_seed(0)
    adapted = baselines.Tuned(encoder, 2, "lora").eval()
    adapted.out.load_state_dict(plain.out.state_dict())
    torch.testing.assert_close(adapted(*batch), plain(*batch))


def test_probes_pool_what_their_names_say(make_encoder, tmp_path):
    H, pad, segments = extract(make_encoder(), SPLIT.texts[:3], folder=tmp_path, quiet=True).batch(range(3))
    cls, mean = (baselines.LinearProbe(16, 2, pool) for pool in ("cls", "mean"))
    torch.testing.assert_close(cls(H, pad), cls.out(H[:, 0]))
    torch.testing.assert_close(mean(H, pad)[0], mean.out(H[0, ~pad[0]].mean(0)))
    pair = baselines.LinearProbe(16, 2, "mean", pairs=True)
    both = extract(make_encoder(), SPLIT.texts[:2], SPLIT.texts[2:4], apart=True, folder=tmp_path, quiet=True)
    H, pad, segments = both.batch([0])
    u, v = H[0, segments[0] == 0].mean(0), H[0, segments[0] == 1].mean(0)
    torch.testing.assert_close(pair(H, pad, segments)[0], pair.out(torch.cat([u, v, (u - v).abs(), u * v])))


def _ladder(make_encoder, folder, gate):
    encoder = make_encoder(layers=(0, 1, 2))
    H, pad, _ = extract(encoder, SPLIT.texts[:3], number="float32", folder=folder, quiet=True).batch(range(3))
    torch.manual_seed(0)
    model = baselines.Ladder(16, 3, 2, reduction=4).eval()
    with torch.no_grad():
        model.gate.fill_(gate)
    return model, H, pad


def test_an_open_gate_shuts_out_the_frozen_layers(make_encoder, tmp_path):
    model, H, pad = _ladder(make_encoder, tmp_path, 100.0)
    other = H.clone()
    other[..., 16:] = torch.randn_like(other[..., 16:])  # all but the embeddings
    torch.testing.assert_close(model(H, pad), model(other, pad))
    other[..., :16] += 1
    assert not torch.allclose(model(H, pad), model(other, pad))


def test_a_closed_gate_reads_the_last_frozen_layer_only(make_encoder, tmp_path):
    model, H, pad = _ladder(make_encoder, tmp_path, -100.0)
    other = H.clone()
    other[..., :32] = torch.randn_like(other[..., :32])
    torch.testing.assert_close(model(H, pad), model(other, pad))
    by_hand = model.side[-1](model.down[2](H[..., 32:]), src_key_padding_mask=pad)
    torch.testing.assert_close(model(H, pad), model.out(baselines.mean_pool(model.up(by_hand), ~pad)))


def test_the_ladder_tells_the_two_texts_of_a_pair_apart(make_encoder, tmp_path):
    encoder = make_encoder(layers=(0, 1, 2))
    both = extract(encoder, SPLIT.texts[:2], SPLIT.texts[2:4], apart=True, folder=tmp_path, quiet=True)
    H, pad, segments = both.batch([0, 1])
    model = methods.make("ladder", encoder, ("a", "b"), {}, apart=True).eval()
    with torch.no_grad():
        model.segment.weight.mul_(50)
    assert not torch.allclose(model(H, pad, segments), model(H, pad, 1 - segments))


def _tune(make_encoder, folder, rates=(1e-2, 1e-3), epochs=3, seed=0):
    encoder = make_encoder()
    read = methods.inputs("y-tuning", encoder, SPLIT, folder=folder / "features")
    return protocol.tune(lambda: methods.make("y-tuning", encoder, SPLIT.labels, {"width": 8, "heads": 2}), methods.loss,
                         read, read, metrics.accuracy, protocol.Budget(rates, epochs, 4), seed, folder / "fit"), read  # fmt: skip


def test_the_best_epoch_is_kept_and_found_again(make_encoder, tmp_path):
    first, read = _tune(make_encoder, tmp_path)
    best = max(score for _, score in first.curves["valid"])
    assert first.valid == best == max(first.trials.values())
    score = metrics.accuracy(protocol.predict(first.model, read.source).argmax(1), read.target)
    assert score == pytest.approx(best)
    again, _ = _tune(make_encoder, tmp_path)
    assert again.seconds == pytest.approx(first.seconds, abs=1e-2)
    torch.testing.assert_close(
        protocol.predict(again.model, read.source), protocol.predict(first.model, read.source)
    )


def test_equal_seeds_give_equal_models(make_encoder, tmp_path):
    one, read = _tune(make_encoder, tmp_path / "a")
    two, _ = _tune(make_encoder, tmp_path / "b")
    other, _ = _tune(make_encoder, tmp_path / "c", seed=1)
    scores = [protocol.predict(x.model, read.source) for x in (one, two, other)]
    assert torch.equal(scores[0], scores[1])
    assert not torch.equal(scores[0], scores[2])


def test_batches_hold_texts_of_similar_length_and_every_text_once_an_epoch():
    lengths = torch.randint(3, 60, (203,), generator=torch.Generator().manual_seed(0))
    index, plain = protocol.grouped(lengths, 8, seed=1, pool=16), training.epochs(203, 8, 1)
    for epoch in (0, 1):
        batches = [index(epoch * 25 + k) for k in range(25)]
        kept = torch.cat([plain(epoch * 25 + k) for k in range(25)])
        assert sorted(torch.cat(batches).tolist()) == sorted(kept.tolist())
        padding = [float(lengths[b].max() * len(b) / lengths[b].sum()) for b in batches]
        assert sum(padding) / 25 < 1.15
    assert not torch.equal(index(0), index(25))
    assert torch.equal(index(3), protocol.grouped(lengths, 8, seed=1, pool=16)(3))
    # the order of the batches is not the order of their lengths
    firsts = [int(lengths[index(k)].max()) for k in range(16)]
    assert firsts != sorted(firsts)


def test_a_budget_that_cannot_be_spent_gets_one_sentence():
    for options, words in (({"rates": ()}, "at least one learning rate"), ({"rates": (0.0,)}, "above 0"),
                           ({"rates": (1e-3,), "epochs": 0}, "epochs is 0"), ({"rates": (1e-3,), "pool": 0}, "pool is 0")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            protocol.Budget(**options)


@pytest.mark.parametrize("method", baselines.TUNED)
def test_a_tuned_model_cut_after_its_last_layer_gives_its_own_scores(make_encoder, method):
    encoder = make_encoder()
    source = protocol.TokenSource(encoder, encoder.tokenize(SPLIT.texts))
    model = methods.make(method, encoder, SPLIT.labels, {})
    head, states = methods.readout(model, source)
    torch.testing.assert_close(
        protocol.predict(head, states), protocol.predict(model, source), atol=1e-5, rtol=1e-4
    )
    assert torch.equal(states.lengths(), source.lengths())
    noisy = protocol.predict(head, Noisy(states, 1.0, 0))
    assert not torch.allclose(noisy, protocol.predict(head, states), atol=1e-2)


def test_predictions_come_back_in_their_own_order(make_encoder, tmp_path):
    found = extract(make_encoder(), SPLIT.texts, number="float32", folder=tmp_path, quiet=True)
    model = baselines.LinearProbe(16, 2)
    whole = protocol.predict(model, found, batch_size=3)
    for k in range(len(found)):
        torch.testing.assert_close(whole[k], model(*found.batch([k]))[0].detach(), atol=1e-5, rtol=1e-4)


def test_a_saved_head_gives_the_same_scores(make_encoder, tmp_path):
    model = YTuningForSequenceClassification(make_encoder(), ("no", "yes"), width=8, heads=2)
    names = [SPLIT.labels[k] for k in SPLIT.target]
    model.fit(SPLIT.texts, names, epochs=2, folder=tmp_path / "f", quiet=True)
    model.save_pretrained(tmp_path / "head")
    stored = sum(p.stat().st_size for p in (tmp_path / "head").iterdir())
    assert stored < 4 * sum(p.numel() for p in model.head.parameters()) + 4000
    back = YTuningForSequenceClassification.from_pretrained(tmp_path / "head", make_encoder())
    texts = ["the dog sat", "a very sad mat"]
    torch.testing.assert_close(back.scores(texts, folder=tmp_path / "f", quiet=True),
                               model.scores(texts, folder=tmp_path / "f", quiet=True))  # fmt: skip
    with pytest.raises(ValueError, match="a head only fits its own frozen model"):
        YTuningForSequenceClassification.from_pretrained(tmp_path / "head", make_encoder(seed=5))
    with pytest.raises(ValueError, match=r"holds no ytuning.json"):
        YTuningForSequenceClassification.from_pretrained(tmp_path)


def test_a_label_is_added_without_the_model(make_encoder, tmp_path):
    model = YTuningForSequenceClassification(make_encoder(), ("no", "yes"), width=8, heads=2)
    model.scores(SPLIT.texts, folder=tmp_path, quiet=True)
    calls = []
    model.encoder._module.register_forward_hook(lambda *_: calls.append(1))
    model.add_label("maybe")
    assert model.scores(SPLIT.texts, folder=tmp_path, quiet=True).shape == (16, 3)
    assert model.labels() == ("no", "yes", "maybe")
    assert not calls


def test_every_learning_rate_starts_from_the_same_head(make_encoder, tmp_path):
    trials = []
    for rates in ((3e-2, 1e-12), (1e-12,)):
        torch.manual_seed(0)
        model = YTuningForSequenceClassification(make_encoder(), ("no", "yes"), width=8, heads=2)
        out = model.fit(SPLIT.texts, [SPLIT.labels[k] for k in SPLIT.target], epochs=20, rates=rates, hold_out=0.5,
                        folder=tmp_path, quiet=True)  # fmt: skip
        trials.append(out.trials)
    assert trials[0]["1e-12"] == trials[1]["1e-12"]
    assert trials[0]["0.03"] > trials[0]["1e-12"]  # the rate does matter here


def test_bad_labels_get_one_sentence(make_encoder, tmp_path):
    model = YTuningForSequenceClassification(make_encoder(), ("no", "yes"), width=8, heads=2)
    with pytest.raises(ValueError, match="example 1 has label 'yess'; did you mean yes"):
        model.fit(["a", "b"], ["no", "yess"], folder=tmp_path)
    with pytest.raises(ValueError, match="2 texts come with 1 labels"):
        model.fit(["a", "b"], ["no"], folder=tmp_path)
    with pytest.raises(ValueError, match="'no' twice"):
        model.add_label("no")


def test_one_string_or_too_few_examples_get_one_sentence(make_encoder, tmp_path):
    model = YTuningForSequenceClassification(make_encoder(), ("no", "yes"), width=8, heads=2)
    with pytest.raises(ValueError, match="texts is one string, 'the cat'; give a list"):
        model.predict("the cat", folder=tmp_path)
    with pytest.raises(ValueError, match="pairs is one string"):
        model.predict(["the cat"], "the dog", folder=tmp_path)
    with pytest.raises(ValueError, match="texts is one string"):
        model.fit("ab", ["no", "yes"], folder=tmp_path)
    with pytest.raises(ValueError, match="labels is one string"):
        model.fit(["a", "b"], "no", folder=tmp_path)
    with pytest.raises(ValueError, match="1 example cannot be split"):
        model.fit(["a"], ["no"], folder=tmp_path)
    for share in (0, 1, 1.5):
        with pytest.raises(ValueError, match=f"hold_out is {share}; it lies between 0 and 1"):
            model.fit(["a", "b"], ["no", "yes"], hold_out=share, folder=tmp_path)
    with pytest.raises(ValueError, match="2 examples cannot be split"):
        model.fit(["a", "b"], ["no", "yes"], hold_out=0.9, folder=tmp_path)


@pytest.mark.parametrize("kind", ["array", "series", "tensor", "tuple", "iterator"])
def test_texts_and_labels_may_be_columns_of_any_kind(make_encoder, tmp_path, kind):
    """Arrays, columns of a table whose index starts elsewhere, tensors of numbers."""
    import numpy as np
    import pandas as pd

    def column(values):
        if kind == "tensor":
            return torch.tensor(values) if isinstance(values[0], int) else list(values)
        if kind == "series":
            return pd.Series(values, index=range(5, 5 + len(values)))
        return {"array": np.array, "tuple": tuple, "iterator": iter}[kind](values)

    model = YTuningForSequenceClassification(make_encoder(), (0, 1), width=8, heads=2, apart=True)
    here = {"folder": tmp_path, "quiet": True}
    out = model.fit(column(SPLIT.texts), column(SPLIT.target), column(SPLIT.texts[::-1]), epochs=1, **here)
    assert out.examples == 14
    want = model.predict(SPLIT.texts, SPLIT.texts[::-1], **here)
    assert model.predict(column(SPLIT.texts), column(SPLIT.texts[::-1]), **here) == want
    assert set(want) <= {"0", "1"}
    assert model.numbers(column([1, 0])).tolist() == [1, 0]
    with pytest.raises(ValueError, match="example 0 has label 2; did you mean 0, 1"):
        model.numbers([2])


@pytest.mark.parametrize(("labels", "words"), [
    ("positive", "labels is one string, 'positive'"), (2, "labels is 2; give a list"),
    ({"type": ("a", "b")}, "task 'type' cannot name a table of parameters .* rename it"),
    ({"v1.2": ("a", "b")}, "task 'v1.2' cannot name"), ({"": ("a", "b")}, "task '' cannot name"),
    (("a",), "task has 1 label; Y-Tuning scores a list of two or more labels and cannot do regression"),
    (("a", None), "label 1 of task is None; each label needs a name"),
    (("a", float("nan")), "label 1 of task is nan"), ((" ", "a"), "label 0 of task is ' '"),
])  # fmt: skip
def test_labels_and_tasks_that_cannot_be_get_one_sentence(make_encoder, labels, words):
    with pytest.raises(ValueError, match=words):
        YTuningForSequenceClassification(make_encoder(), labels, width=8, heads=2)


@pytest.mark.parametrize(("options", "words"), [
    ({"num_labels": 1}, "there is no num_labels; labels=.* regression cannot be done"),
    ({"problem_type": "regression"}, "there is no problem_type"),
    ({"margni": 2.0}, "option 'margni' does not exist; did you mean margin"),
    ({"tasks": {"a": ("b", "c")}}, "option 'tasks' does not exist"),
])  # fmt: skip
def test_options_that_do_not_exist_get_one_sentence(make_encoder, options, words):
    with pytest.raises(ValueError, match=words):
        YTuningForSequenceClassification(make_encoder(), ("no", "yes"), **options)


def test_a_whole_table_is_no_column(make_encoder, tmp_path):
    """Walking through a dict or a table gives the names of its columns, which would pass for texts."""
    import numpy as np
    import pandas as pd

    model = YTuningForSequenceClassification(make_encoder(), ("no", "yes"), width=8, heads=2)
    table = {"text": ["the cat", "a dog"], "label": ["no", "yes"]}
    for given, kind in (
        (table, "dict"),
        (pd.DataFrame(table), "DataFrame"),
        (np.array([["a"], ["b"]]), "ndarray"),
    ):
        with pytest.raises(ValueError, match=f"texts is a {kind} and no single column; give a list"):
            model.predict(given, folder=tmp_path, quiet=True)
    with pytest.raises(ValueError, match="labels is a ndarray and no single column"):
        model.fit(["a", "b"], np.eye(2), folder=tmp_path, quiet=True)


def test_more_labels_than_anybody_reported_are_no_error(make_encoder, tmp_path):
    names = [f"label {k}" for k in range(200)]
    model = YTuningForSequenceClassification(make_encoder(), names, width=8, heads=2)
    model.fit(["the cat", "a dog"] * 100, names, epochs=1, folder=tmp_path, quiet=True)
    assert model.scores(["the cat"], folder=tmp_path, quiet=True).shape == (1, 200)


def test_a_budget_of_the_classifier_gets_one_sentence(make_encoder, tmp_path):
    model = YTuningForSequenceClassification(make_encoder(), ("no", "yes"), width=8, heads=2)
    for options, words in (({"batch_size": 0}, "batch_size is 0; it starts at 1"), ({"rates": 0.0}, "above 0"),
                           ({"epochs": 0}, "epochs is 0")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            model.fit(["a", "b"], ["no", "yes"], folder=tmp_path, **options)
    names = [SPLIT.labels[k] for k in SPLIT.target]
    out = model.fit(SPLIT.texts, names, epochs=1, rates=1e-3, folder=tmp_path, quiet=True)
    assert list(out.trials) == ["0.001"]


def test_equal_seeds_make_equal_heads_and_leave_other_random_numbers_alone(make_encoder):
    heads = []
    for seed, noise in ((0, 1), (0, 2), (1, 2)):
        encoder = make_encoder()
        torch.manual_seed(noise)
        model = YTuningForSequenceClassification(encoder, ("no", "yes"), width=8, heads=2, seed=seed)
        model.add_label("maybe")
        after = torch.rand(1)
        torch.manual_seed(noise)
        assert torch.equal(torch.rand(1), after)
        heads.append(torch.cat([p.flatten() for p in model.parameters()]))
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_a_head_whose_files_are_broken_gets_one_sentence(make_encoder, tmp_path):
    model = YTuningForSequenceClassification(make_encoder(), ("no", "yes"), width=8, heads=2)
    model.save_pretrained(tmp_path)
    described = (tmp_path / "ytuning.json").read_text()
    (tmp_path / "ytuning.json").write_text(described[:40])
    with pytest.raises(ValueError, match=r"ytuning.json of .* cannot be read .* save the head again"):
        YTuningForSequenceClassification.from_pretrained(tmp_path, make_encoder())
    (tmp_path / "ytuning.json").write_text(described.replace('"feed_forward": 32', '"feed_forward": 24'))
    with pytest.raises(
        ValueError, match=r"not the one that its ytuning.json describes \(size mismatch.*again$"
    ):
        YTuningForSequenceClassification.from_pretrained(tmp_path, make_encoder())
    for content, words in (("{}", "lacks apart, format, frozen, head; save"), ("[1]", "lacks apart"),
                           (described.replace('"margin"', '"margni"'), "option 'margni' does not exist")):  # fmt: skip
        (tmp_path / "ytuning.json").write_text(content)
        with pytest.raises(ValueError, match=words):
            YTuningForSequenceClassification.from_pretrained(tmp_path, make_encoder())
    (tmp_path / "ytuning.json").write_text(described)
    (tmp_path / "ytuning.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"ytuning.safetensors of .* is broken"):
        YTuningForSequenceClassification.from_pretrained(tmp_path, make_encoder())


def test_a_model_without_its_tokenizer_is_refused(tmp_path, tokenizer):
    """transformers makes an empty vocabulary then, and every word is [UNK]."""
    import transformers as hf

    hf.BertModel(
        hf.BertConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    ).save_pretrained(tmp_path)  # fmt: skip
    for use in (lambda: YTuningForSequenceClassification(str(tmp_path), ("no", "yes"), width=8, heads=2),
                lambda: extract(FrozenEncoder(str(tmp_path), max_length=12), ["the cat"], folder=tmp_path / "f"),
                lambda: methods.inputs("fine-tuning", FrozenEncoder(str(tmp_path), max_length=12), SPLIT)):  # fmt: skip
        with pytest.raises(ValueError, match=r"holds a model but no tokenizer .* save its tokenizer"):
            use()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    model = YTuningForSequenceClassification(tmp_path, ("no", "yes"), width=8, heads=2)  # a Path will do
    assert model.predict(["the cat"], folder=tmp_path / "f", quiet=True)[0] in ("no", "yes")


def test_what_may_not_be_stored_is_trained_on_from_the_frozen_model(make_encoder, tmp_path):
    """A streamed fit sees the same texts in the same order as a cached one."""
    names, found = [SPLIT.labels[k] for k in SPLIT.target], []
    for where in ({"number": "float32"}, {"cache_gb": 0.0}, {"cache_gb": 1.0, "number": "float32"}):
        model = YTuningForSequenceClassification(make_encoder(), SPLIT.labels, width=8, heads=2)
        model.fit(SPLIT.texts, names, epochs=2, folder=tmp_path / str(len(found)), quiet=True, **where)
        found.append(model.scores(SPLIT.texts, folder=tmp_path / "s", quiet=True, **where))
    assert not (tmp_path / "1").exists()
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=1e-4, rtol=1e-4)


def test_loading_a_head_never_runs_the_frozen_model(make_encoder, tmp_path):
    model = YTuningForSequenceClassification(
        make_encoder(), ("happy", "sad"), width=16, heads=2, label_init="names"
    )
    model.save_pretrained(tmp_path / "head")
    encoder, calls = make_encoder(), []
    encoder._module.register_forward_hook(lambda *_: calls.append(1))
    back = YTuningForSequenceClassification.from_pretrained(tmp_path / "head", encoder)
    assert not calls
    assert back.config == back.head.config == model.config
    torch.testing.assert_close(back.head.labels["task"], model.head.labels["task"])
    (tmp_path / "head" / "ytuning.safetensors").unlink()
    with pytest.raises(ValueError, match=r"head holds no ytuning.safetensors; give a folder"):
        YTuningForSequenceClassification.from_pretrained(tmp_path / "head", encoder)


def test_a_head_refuses_other_layers_of_its_own_model(make_encoder, tmp_path):
    YTuningForSequenceClassification(make_encoder(), ("no", "yes"), width=8, heads=2).save_pretrained(
        tmp_path
    )
    with pytest.raises(
        ValueError, match=r"this head reads layers \[-1\] of tiny; the encoder given keeps \[0, -1\]"
    ):
        YTuningForSequenceClassification.from_pretrained(tmp_path, make_encoder(layers=(0, -1)))


def test_no_operation_of_the_frozen_model_is_in_the_graph(make_encoder, tmp_path):
    """Walking back from the loss reaches psi's parameters and nothing else, however deep the frozen model is."""
    reached = []
    for depth in (2, 6):
        encoder = make_encoder(depth=depth)
        model = YTuningForSequenceClassification(encoder, ("no", "yes"), width=8, heads=2)
        H, pad, segments = model.features(SPLIT.texts[:4], folder=tmp_path, quiet=True).batch(range(4))
        loss = model(H, pad, segments, torch.tensor([1, 0, 1, 0])).loss
        leaves, seen, left = set(), set(), [loss.grad_fn]
        while left:
            node = left.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if hasattr(node, "variable"):
                leaves.add(id(node.variable))
            left += [following for following, _ in node.next_functions]
        assert leaves == {id(p) for p in model.head.parameters()}
        reached.append(len(seen))
    assert reached[0] == reached[1]


def test_cached_and_online_features_give_the_same_scores(make_encoder, tmp_path):
    encoder = make_encoder()
    model = YTuningForSequenceClassification(encoder, ("no", "yes"), width=8, heads=2).eval()
    online = model.head(*(encoder(*(b := encoder.pad(encoder.tokenize(SPLIT.texts[:4]), range(4)))), b[1]))
    for number, slack in (("float16", 1e-2), ("float32", 1e-5)):
        cached = model.scores(SPLIT.texts[:4], folder=tmp_path, number=number, quiet=True)
        torch.testing.assert_close(cached, online, atol=slack, rtol=0)


def test_labels_may_start_at_their_names(make_encoder):
    model = YTuningForSequenceClassification(make_encoder(), ("happy", "sad"), width=16, label_init="names")
    vectors = methods.name_vectors(make_encoder(), ("happy", "sad"))
    centred = vectors - vectors.mean(0)
    found = torch.nn.functional.cosine_similarity(model.head.labels["task"], centred)
    torch.testing.assert_close(found, torch.ones(2))


def test_the_decoder_has_the_frozen_models_heads_at_its_width(make_encoder):
    encoder = make_encoder()
    assert encoder.heads == 2
    assert YTuningForSequenceClassification(encoder, ("a", "b")).config.heads == 2
    assert methods.make("y-tuning", encoder, ("a", "b"), {}).config.heads == 2
    assert methods.make("y-tuning", encoder, ("a", "b"), {"width": 64}).config.heads == 1


def test_the_page_of_bert_is_transformers_bert():
    """Token by token equality on the real MiniLM weights, and on tiny models of the other families."""
    import transformers

    encoder = FrozenEncoder("minilm", max_length=32)
    inputs = encoder.pad(encoder.tokenize(["A b c.", "Frozen features do not move, do they?"]), [0, 1])
    theirs = transformers.AutoModel.from_pretrained(encoder.folder).eval()
    with torch.no_grad():
        want = theirs(input_ids=inputs[0], attention_mask=(~inputs[1]).long()).last_hidden_state
    torch.testing.assert_close(encoder(*inputs)[~inputs[1]], want[~inputs[1]], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["roberta", "deberta-v2", "bart", "distilbert", "t5"])
def test_other_families_work_from_a_folder(tmp_path, tokenizer, kind):
    import transformers as hf

    size = {"vocab_size": tokenizer.get_vocab_size(), "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 32, "max_position_embeddings": 40, "pad_token_id": 0}  # fmt: skip
    torch.manual_seed(0)
    if kind == "bart":
        model = hf.BartModel(hf.BartConfig(vocab_size=tokenizer.get_vocab_size(), d_model=16, encoder_layers=2, decoder_layers=1, pad_token_id=0,
                                           encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
                                           decoder_ffn_dim=32, max_position_embeddings=40))  # fmt: skip
    elif kind == "distilbert":
        model = hf.DistilBertModel(hf.DistilBertConfig(vocab_size=tokenizer.get_vocab_size(), dim=16, n_layers=2, n_heads=2,
                                                       hidden_dim=32, max_position_embeddings=40, pad_token_id=0))  # fmt: skip
    elif kind == "t5":
        model = hf.T5Model(hf.T5Config(vocab_size=tokenizer.get_vocab_size(), d_model=16, d_kv=8, num_layers=2, num_heads=2,
                                       d_ff=32, pad_token_id=0))  # fmt: skip
    elif kind == "roberta":
        model = hf.RobertaModel(hf.RobertaConfig(**size, type_vocab_size=1))
    else:
        model = hf.DebertaV2Model(hf.DebertaV2Config(**size, relative_attention=True, pos_att_type=["p2c", "c2p"],
                                                     position_biased_input=False, type_vocab_size=0))  # fmt: skip
    model.save_pretrained(tmp_path / kind)
    tokenizer.save(str(tmp_path / kind / "tokenizer.json"))
    encoder = FrozenEncoder(str(tmp_path / kind), max_length=16, layers=(0, -1), device="cpu")
    assert (encoder.width, encoder.depth, encoder.heads) == (32, 2, 2)
    found = extract(
        encoder, ["the cat sat", "a dog"], ["the mat", "on"], number="float32", folder=tmp_path, quiet=True
    )
    H, alone = found.batch([0, 1]).H, found.batch([1]).H
    torch.testing.assert_close(H[1, : alone.size(1)], alone[0])  # padding in the batch changed nothing
    source = protocol.TokenSource(encoder, encoder.tokenize(SPLIT.texts))
    for method in baselines.TUNED:
        assert baselines.Tuned(encoder, 2, method)(*source.batch([0, 1])).shape == (2, 2)
    if kind == "roberta":  # the frozen model's folder may move
        model = YTuningForSequenceClassification(encoder, ("no", "yes"))
        before = model.scores(["a dog"], folder=tmp_path / "f", quiet=True)
        model.save_pretrained(tmp_path / "head")
        (tmp_path / kind).rename(tmp_path / "elsewhere")
        back = YTuningForSequenceClassification.from_pretrained(
            tmp_path / "head", str(tmp_path / "elsewhere")
        )
        torch.testing.assert_close(back.scores(["a dog"], folder=tmp_path / "g", quiet=True), before)


SIZES = {"vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
         "pad_token_id": 1}  # fmt: skip
SEQ2SEQ = {"vocab_size": 32, "d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32,
           "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "pad_token_id": 1}  # fmt: skip


@pytest.mark.parametrize(("family", "options", "most"), [
    ("bert", SIZES, 24),
    ("deberta-v2", SIZES | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]}, 24),
    ("roberta", SIZES, 22),
    ("roberta", SIZES | {"pad_token_id": 0}, 23),
    ("mpnet", SIZES, 22),
    ("mpnet", SIZES | {"pad_token_id": 0}, 22),
    ("longformer", SIZES | {"attention_window": 4}, 22),
    ("bart", SEQ2SEQ, 24),
    ("led", SEQ2SEQ | {"attention_window": 4, "max_encoder_position_embeddings": 24}, 24),
])  # fmt: skip
def test_the_longest_text_that_is_accepted_goes_through_the_model(tokenizer, tmp_path, family, options, most):
    """24 rows of positions: RoBERTa, MPNet and Longformer count tokens from behind their padding's number."""
    import transformers as hf

    torch.manual_seed(0)
    rows = {} if family == "led" else {"max_position_embeddings": 24}
    hf.AutoModel.from_config(hf.AutoConfig.for_model(family, **options, **rows)).save_pretrained(
        tmp_path / "m"
    )
    tokenizer.save(str(tmp_path / "m" / "tokenizer.json"))
    encoder = FrozenEncoder(str(tmp_path / "m"), most, device="cpu")
    with pytest.warns(UserWarning, match=f"1 of 2 texts were longer than {most} tokens and were cut"):
        found = extract(encoder, ["the cat sat on the mat " * 8, "a dog"], number="float32", folder=tmp_path)
    assert found.lengths().tolist() == [most, 4]
    with pytest.raises(ValueError, match=f"takes at most {most} tokens"):
        FrozenEncoder(str(tmp_path / "m"), most + 1, device="cpu")
    # one more than what is accepted is more than the model has
    with pytest.raises((IndexError, RuntimeError)):
        encoder(torch.full((1, most + 1), 4), torch.zeros(1, most + 1, dtype=torch.bool))


def test_tuned_methods_say_what_was_cut_too(make_encoder):
    split = data.Split(["the cat " * 20, "a b"], [0, 1], ("no", "yes"))
    with pytest.warns(UserWarning, match="1 of 2 texts were longer than 12 tokens and were cut"):
        methods.inputs("fine-tuning", make_encoder(), split)


def test_deberta_is_read_as_it_is_published(tmp_path):
    """config.json, spm.model, pytorch_model.bin in half precision: no tokenizer.json and no safetensors."""
    import json

    import sentencepiece
    import transformers as hf

    (tmp_path / "text").write_text(
        "\n".join(f"the {a} cat sat on the {b} mat" for a in "abcdefgh" for b in "abcdefgh")
    )
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"), model_prefix=str(tmp_path / "spm"), vocab_size=40, pad_id=0, bos_id=1, eos_id=2,
        unk_id=3, pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]", unk_piece="[UNK]", minloglevel=2,
        hard_vocab_limit=False, normalization_rule_name="identity",
    )  # fmt: skip
    torch.manual_seed(0)
    model = hf.DebertaV2Model(hf.DebertaV2Config(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, type_vocab_size=0,
        max_position_embeddings=40, relative_attention=True, pos_att_type=["p2c", "c2p"], position_biased_input=False,
    ))  # fmt: skip
    model.config.to_json_file(tmp_path / "config.json")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "vocab_type": "spm"}))
    torch.save(
        {f"deberta.{k}": v.half() for k, v in model.state_dict().items()}, tmp_path / "pytorch_model.bin"
    )
    encoder = FrozenEncoder(str(tmp_path), max_length=32, device="cpu")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spm.model"))
    first, second = pieces.encode(["the a cat sat", "on the mat"])
    tokens = encoder.tokenize(["the a cat sat"], ["on the mat"])
    assert tokens.ids == [[1, *first, 2, *second, 2]]
    H = encoder(*encoder.pad(tokens, [0]))
    want = model.half().float().eval()(torch.tensor(tokens.ids)).last_hidden_state
    torch.testing.assert_close(H, want)


def test_hidden_sizes_are_the_published_ones():
    assert cost.count("deberta-v2-xxlarge") == pytest.approx(1.567e9, rel=0.01)
    assert cost.count("roberta-large") == pytest.approx(354e6, rel=0.01)
    assert cost.count("facebook/bart-large") == pytest.approx(203e6, rel=0.02)
    # 22,713,216 with its pooler of 384 x 385
    assert cost.count("minilm") == 22_713_216 - 384 * 385


@pytest.mark.parametrize("method", cost.METHODS)
def test_costs_are_measured_for_every_method(method):
    found = cost.measure(method, "tiny", batch=2, tokens=8, steps=1, warmup=0, device="cpu")
    assert found["step_ms"] > 0
    assert found["share"] > 0
    if method in ("y-tuning", "y-tuning-cached"):
        d, f = 32, 64
        assert found["trainable"] == 8 * d * d + 2 * d * f + 15 * d + f + 3 * d


def test_a_comparison_has_all_methods_in_one_run():
    found = cost.compare(
        "tiny", ("y-tuning-cached", "fine-tuning"), batch=4, tokens=16, steps=1, warmup=1, examples=100
    )
    assert set(found["rows"]) == {"y-tuning-cached", "fine-tuning"}
    cached, full = found["rows"].values()
    assert found["ratios"]["speed y-tuning-cached"] == cached["examples_per_s"] / full["examples_per_s"]
    assert found["feature_pass_s"] > 0
    assert full["epoch_s"] == pytest.approx(100 / full["examples_per_s"])
    with pytest.raises(RuntimeError, match="ValueError: method is 'tuning'; choose"):
        cost.apart("tuning", "tiny", batch=2, tokens=4, steps=1)


def test_counted_operations_follow_the_matrix_products():
    """Linear layers of the decoder on B x M tokens: 2 operations per weight and token forward, twice that backward."""
    small, large = (cost.counted("y-tuning-cached", "tiny", batch=b, tokens=64)["gflop"] for b in (2, 4))
    assert large > 1.5 * small
    full = cost.counted("fine-tuning", "roberta-large", batch=8, tokens=64)
    # 12 D^2 weights a layer, 24 layers: 6 operations per weight and token; attention adds little at 64 tokens
    by_hand = 6 * 24 * 12 * 1024**2 * 8 * 64 / 1e9
    assert by_hand < full["gflop"] < 1.1 * by_hand
    free = cost.counted("y-tuning", "roberta-large", batch=8, tokens=64)
    assert free["gflop"] == pytest.approx(full["gflop"] / 3, rel=0.05)


@pytest.mark.parametrize("kind", ["bert", "roberta", "bart", "deberta-v2"])
def test_every_family_can_be_counted(monkeypatch, kind):
    monkeypatch.setitem(cost.SHAPES, "tiny", cost.Shape(kind, 2, 32, 2, 64, 100))
    found = {
        m: cost.counted(m, "tiny", batch=2, tokens=16)
        for m in ("y-tuning-cached", "y-tuning", "lora", "fine-tuning")
    }
    work = [found[m]["gflop"] for m in found]
    assert work == sorted(work)
    assert found["y-tuning"]["kept_gib"] < found["lora"]["kept_gib"] < found["fine-tuning"]["kept_gib"]


def test_what_is_kept_for_the_way_back_grows_with_depth_only_through_the_model(monkeypatch):
    kept = {}
    for layers in (2, 4):
        monkeypatch.setitem(cost.SHAPES, "tiny", cost.Shape("bert", layers, 32, 2, 64, 100))
        for method in ("y-tuning", "lora", "fine-tuning"):
            kept[method, layers] = cost.counted(method, "tiny", batch=2, tokens=16)["kept_gib"]
    assert kept["y-tuning", 2] == kept["y-tuning", 4]
    for method in ("lora", "fine-tuning"):
        assert kept[method, 4] > 1.7 * kept[method, 2]


def test_the_feature_pass_pays_after_its_break_even():
    assert cost.break_even(73.0, 13.3, 229.0) == pytest.approx(73 / 215.7)
    with pytest.raises(ValueError, match="not cheaper"):
        cost.break_even(1.0, 3.0, 2.0)
    assert cost.cache_bytes(8551, 11, "minilm") == 8551 * 11 * 384 * 2


def test_a_dry_run_takes_a_step_and_says_when_it_cannot(monkeypatch):
    found = cost.dry_run({"method": "y-tuning", "backbone": "tiny", "batch": 2, "tokens": 8})
    assert found["trainable"] > 0
    assert found["step_s"] >= 0
    assert cost.dry_run({"backbone": "tiny", "batch": 2, "tokens": 8})["trainable"] == found["trainable"]
    half = cost.dry_run({"backbone": "tiny", "batch": 2, "tokens": 8, "width": 16, "rates": "1e-3"})
    assert half["trainable"] < found["trainable"]
    double = cost.dry_run({"backbone": "tiny", "batch": 2, "tokens": 8, "layers": 2})
    assert double["trainable"] > 1.5 * found["trainable"]
    with pytest.raises(ValueError, match="method is 'count'; choose"):
        cost.dry_run({"method": "count", "backbone": "tiny"})
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("m", (), {"available": 2**30})())
    assert "needs about" in cost.dry_run({"method": "fine-tuning", "backbone": "roberta-large"})["step"]


def test_every_run_of_every_table_can_be_made():
    """Names in the TOML resolve: method, backbone, tasks, options."""
    paper = tables.paper("ytuning")
    for table in paper.tables.values():
        for scale in table.scales:
            for cell in table.cells(scale):
                p = cell.parameters
                if table.id in ("size", "efficiency", "counts"):
                    assert cost.shape(p["backbone"])
                    continue
                if table.id == "sharing":
                    assert 0 < p["new_labels"] < p["labels"] <= len(data.REQUESTS)
                    continue
                assert methods.check(p["method"])
                for task in p["tasks"].split():
                    assert task in data.GLUE if p["source"] == "glue" else data.grammar(task, 3, 0)
                protocol.Budget(tuple(map(float, p["rates"].split())), p["epochs"], p["batch_size"])


@pytest.mark.parametrize("table", ["glue", "robustness", "ablation", "labels"])
def test_every_study_has_a_configuration_at_full_size(table):
    """Each of its heads can be made at the large model's shape, and every method may try three learning rates."""
    fields = {"layers", "score", "loss", "margin", "per_label", "self_attention", "task_embedding"}
    for cell in tables.table("ytuning", table).cells("full"):
        p, shape = cell.parameters, cost.shape(cell.parameters["backbone"])
        assert len(set(p["rates"].split())) == 3
        assert shape.width >= 1024
        if p["method"] == "y-tuning":
            width = p.get("width", shape.width)
            with torch.device("meta"):
                YTuning(YTuningConfig({"task": ("no", "yes")}, shape.width, width,
                                      **{k: v for k, v in p.items() if k in fields}))  # fmt: skip


def test_y_tuning_options_reach_the_model(make_encoder):
    rows = {row.id: row.parameters for row in tables.table("ytuning", "ablation").rows}
    made = {
        k: methods.make("y-tuning", make_encoder(layers=methods.layers_for("y-tuning", 2, p.get("mix_layers", False))),
                        ("a", "b"), {**p, "heads": 2})
        for k, p in rows.items()
    }  # fmt: skip
    assert all(isinstance(m, YTuning) for m in made.values())
    assert len({str(m.config) for m in made.values()}) == len(rows)


def test_the_package_is_light_until_it_is_used():
    import subprocess
    import sys

    code = "import sys, companion.ytuning as y; assert 'torch' not in sys.modules; print(y.YTuning.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "YTuning"
    import companion.ytuning

    with pytest.raises(AttributeError, match="no attribute 'Tuning'"):
        _ = companion.ytuning.Tuning


def test_a_hub_model_without_safetensors_is_fetched_whole(monkeypatch, tmp_path):
    """deberta-v2-xxlarge is published as pytorch_model.bin only."""
    import json

    import huggingface_hub

    asked = []

    def fetch(name, allow_patterns):
        asked.append(allow_patterns)
        (tmp_path / "config.json").write_text(json.dumps({"num_hidden_layers": 2, "hidden_size": 8}))
        if "pytorch_model*.bin" in allow_patterns and not (tmp_path / "pytorch_model.bin").exists():
            (tmp_path / "pytorch_model.bin").write_bytes(b"x")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    before = FrozenEncoder("owner/model").fingerprint
    assert len(asked) == 2
    assert (tmp_path / "pytorch_model.bin").is_file()
    (tmp_path / "pytorch_model.bin").write_bytes(b"yy")
    assert FrozenEncoder("owner/model").fingerprint != before


def test_a_model_that_cannot_be_had_gets_one_sentence(monkeypatch, tmp_path):
    import huggingface_hub

    from companion.datasets import DataMissing

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(DataMissing, match="neither 'minilm', nor a folder, nor fetched from the hub"):
        FrozenEncoder("owner/model")
    with pytest.raises(ValueError, match=r"holds no config.json"):
        FrozenEncoder(str(tmp_path))
