"""Frozen means frozen, and the cache gives the features that the model gives."""

import json
import multiprocessing
import shutil
import time
from collections import namedtuple

import pytest
import torch

from companion.ytuning import features, streaming
from companion.ytuning.features import Noisy, estimate, extract, open_entry

TEXTS = ["the cat sat on the mat", "the dog ran", "a very happy dog", "the dog ran"]


def online(encoder, texts, pairs=None):
    tokens = encoder.tokenize(texts, pairs)
    return [encoder(*encoder.pad(tokens, [k]))[0] for k in range(len(texts))]


@pytest.mark.parametrize(("number", "slack"), [("float32", 1e-5), ("float16", 1e-2), ("bfloat16", 4e-2)])
def test_cached_features_are_the_models(make_encoder, tmp_path, number, slack):
    encoder = make_encoder()
    found = extract(encoder, TEXTS, number=number, folder=tmp_path, quiet=True)
    for k, H in enumerate(online(encoder, TEXTS)):
        torch.testing.assert_close(found.one(k)[0], H, atol=slack, rtol=0)


def test_batches_pad_and_mark(make_encoder, tmp_path):
    found = extract(make_encoder(), TEXTS, number="float32", folder=tmp_path, quiet=True)
    H, pad, _ = found.batch([0, 1], extra=2)
    assert H.shape == (2, 10, 16)
    assert (~pad).sum(1).tolist() == found.lengths()[:2].tolist() == [8, 5]
    assert H[pad].abs().max() == 0


def test_the_frozen_model_gets_no_gradient_and_keeps_its_weights(make_encoder, tmp_path):
    from companion.ytuning.classifier import YTuningForSequenceClassification

    encoder = make_encoder()
    before = encoder.fingerprint
    model = YTuningForSequenceClassification(encoder, ("no", "yes"))
    H = extract(encoder, TEXTS, folder=tmp_path, quiet=True).batch(range(4)).H
    assert not H.requires_grad
    model.fit(TEXTS * 4, ["no", "yes", "no", "yes"] * 4, epochs=2, folder=tmp_path, quiet=True)
    assert all(not p.requires_grad and p.grad is None for p in encoder.model.parameters())
    del encoder.fingerprint
    assert encoder.fingerprint == before
    assert not any(name.startswith("encoder") for name in model.state_dict())


def test_equal_texts_are_encoded_once_and_labels_play_no_part(make_encoder, tmp_path):
    encoder = make_encoder()
    first = extract(encoder, TEXTS, folder=tmp_path, quiet=True)
    calls = []
    encoder._module.register_forward_hook(lambda *_: calls.append(1))
    again = extract(encoder, TEXTS[::-1], folder=tmp_path, quiet=True)
    assert not calls
    assert again.folder == first.folder
    assert len(first.starts) == 4  # three distinct texts
    torch.testing.assert_close(again.one(0)[0], first.one(3)[0])


def test_the_estimate_is_exact(make_encoder, tmp_path):
    encoder = make_encoder()
    found = extract(encoder, TEXTS, folder=tmp_path, quiet=True)
    assert estimate(encoder, TEXTS) == found.bytes == (found.folder / "values.bin").stat().st_size


def test_layers_lie_side_by_side(make_encoder, tmp_path):
    encoder, every = make_encoder(), make_encoder(layers=(0, 1, 2))
    wide = extract(every, TEXTS, folder=tmp_path, number="float32", quiet=True)
    last = extract(encoder, TEXTS, folder=tmp_path, number="float32", quiet=True)
    assert wide.width == 48
    torch.testing.assert_close(wide.one(1)[0][:, 32:], last.one(1)[0])


def test_pairs_apart_read_both_texts(make_encoder, tmp_path):
    encoder = make_encoder()
    both = extract(encoder, TEXTS[:2], TEXTS[2:], apart=True, number="float32", folder=tmp_path, quiet=True)
    H, segments = both.one(0)
    a, b = online(encoder, [TEXTS[0], TEXTS[2]])
    torch.testing.assert_close(H, torch.cat([a, b]), atol=1e-5, rtol=0)
    assert segments.tolist() == [0] * len(a) + [1] * len(b)
    assert both.lengths()[0] == len(H)
    torch.testing.assert_close(both.select([1]).one(0)[0], both.one(1)[0])


def test_pairs_in_one_input_know_their_segments(make_encoder, tmp_path):
    H, segments = extract(make_encoder(), ["a b"], ["c d e"], folder=tmp_path, quiet=True).one(0)
    assert segments.tolist() == [0, 0, 0, 0, 1, 1, 1, 0]
    assert len(H) == 8


class Killed(Exception):
    pass


def test_a_killed_pass_goes_on_where_it_stopped(make_encoder, tmp_path, monkeypatch):
    texts = [" ".join(["the", w1, w2, w3]) for w1 in "abcde" for w2 in "abcde" for w3 in "abcde"]
    whole = extract(make_encoder(), texts, number="float32", folder=tmp_path / "whole", quiet=True)
    flushes = []

    def kill(path):
        flushes.append(path)
        if len(flushes) == 3:
            raise Killed

    monkeypatch.setattr(features, "_flush", kill)
    monkeypatch.setattr(features, "SAVE_EVERY", 20)
    with pytest.raises(Killed):
        extract(
            make_encoder(), texts, number="float32", folder=tmp_path / "part", batch_tokens=64, quiet=True
        )
    (entry,) = (tmp_path / "part").glob("features-*[!k]")
    with pytest.raises(ValueError, match="not a finished feature cache"):
        open_entry(entry)
    done = json.loads((entry / "done.json").read_text())
    assert 0 < done < len(texts)
    monkeypatch.undo()
    encoder, seen = make_encoder(), []
    encoder._module.register_forward_hook(lambda m, inputs, out: seen.append(len(inputs[0])))
    resumed = extract(encoder, texts, number="float32", folder=tmp_path / "part", quiet=True)
    assert sum(seen) == len(texts) - done
    torch.testing.assert_close(resumed.values, whole.values, atol=1e-5, rtol=0)


def _slowly(make, texts, folder, started):
    torch.set_num_threads(1)
    features.SAVE_EVERY = 5
    encoder = make()

    def wait(*_):
        if len(list(folder.glob("features-*/done.json"))):
            started.set()
            time.sleep(60)

    encoder._module.register_forward_hook(wait)
    extract(encoder, texts, number="float32", folder=folder, batch_tokens=64, quiet=True)


def test_a_process_killed_by_the_system_leaves_a_cache_that_another_finishes(make_encoder, tmp_path):
    """SIGKILL while it holds the lock: no handler runs, and the next process neither waits nor starts over."""
    texts = [f"the {a} {b}" for a in "abcde" for b in "abcde"]
    context = multiprocessing.get_context("fork")
    started = context.Event()
    process = context.Process(target=_slowly, args=(make_encoder, texts, tmp_path, started))
    process.start()
    assert started.wait(60)
    process.kill()
    process.join()
    encoder, seen = make_encoder(), []
    encoder._module.register_forward_hook(lambda m, inputs, out: seen.append(len(inputs[0])))
    found = extract(encoder, texts, number="float32", folder=tmp_path, quiet=True)
    assert 0 < sum(seen) < len(texts)
    for k, H in enumerate(online(encoder, texts)):
        torch.testing.assert_close(found.one(k)[0], H, atol=1e-5, rtol=0)


def _extract_in_process(make, folder, queue):
    torch.set_num_threads(1)
    found = extract(make(), TEXTS, number="float32", folder=folder, quiet=True)
    queue.put(found.values.sum().item())


def test_two_processes_make_one_entry(make_encoder, tmp_path):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    both = [
        context.Process(target=_extract_in_process, args=(make_encoder, tmp_path, queue)) for _ in range(2)
    ]
    for one in both:
        one.start()
    sums = [queue.get(timeout=60) for _ in both]
    for one in both:
        one.join()
    assert sums[0] == sums[1]
    assert len([p for p in tmp_path.glob("features-*") if p.is_dir()]) == 1


def test_a_full_disk_is_said_before_anything_is_computed(make_encoder, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(100, 100, 10))
    encoder, seen = make_encoder(), []
    encoder._module.register_forward_hook(lambda *_: seen.append(1))
    with pytest.raises(OSError, match=r"take 608 B but .* has 10 B free"):
        extract(encoder, TEXTS, folder=tmp_path, quiet=True)
    assert not seen


def test_a_file_in_the_place_of_the_cache_is_said(make_encoder, tmp_path):
    encoder, file = make_encoder(), tmp_path / "cache"
    file.write_text("kept")
    for folder in (file, file / "below"):
        with pytest.raises(NotADirectoryError, match="a file is in its place; give a folder"):
            extract(encoder, ["a dog"], folder=folder, quiet=True)
        with pytest.raises(NotADirectoryError, match="a file is in its place; give a folder"):
            streaming.extract_pieces(encoder, ["a dog"], folder=folder, quiet=True)
    assert file.read_text() == "kept"


def test_a_disk_that_fills_up_meanwhile_stops_the_pass_with_a_sentence(make_encoder, tmp_path, monkeypatch):
    """Two passes may both have seen the same free space; a mapped file without its blocks would kill the process."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features.os, "posix_fallocate", full)
    with pytest.raises(
        OSError, match=r"608 B of features do not fit into .* \(No space left on device\); free some"
    ):
        extract(make_encoder(), TEXTS, folder=tmp_path, quiet=True)
    monkeypatch.undo()
    found = extract(make_encoder(), TEXTS, folder=tmp_path, quiet=True)
    values = found.folder / "values.bin"
    assert values.stat().st_blocks * 512 >= values.stat().st_size


@pytest.mark.parametrize("loss", ["lost", "cut"])
def test_an_entry_whose_values_are_lost_is_made_again(make_encoder, tmp_path, loss):
    """A mapped file that is too short would be filled with zeros without a word."""
    found = extract(make_encoder(), TEXTS, number="float32", folder=tmp_path, quiet=True)
    want, values = found.one(0)[0].clone(), found.folder / "values.bin"
    if loss == "lost":
        values.unlink()
    else:
        values.write_bytes(values.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a finished feature cache"):
        open_entry(found.folder)
    again = extract(make_encoder(), TEXTS, number="float32", folder=tmp_path, quiet=True)
    torch.testing.assert_close(again.one(0)[0], want)
    assert len(open_entry(found.folder, make_encoder())) == 3


@pytest.mark.parametrize("name", ["meta.json", "starts.npy", "segments.npy"])
@pytest.mark.parametrize("loss", ["lost", "cut"])
def test_an_entry_that_lost_a_small_file_is_repaired_without_the_model(make_encoder, tmp_path, name, loss):
    found = extract(make_encoder(), TEXTS, number="float32", folder=tmp_path, quiet=True)
    want, path = [found.one(k)[0].clone() for k in range(4)], found.folder / name
    if loss == "lost":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="not a finished feature cache"):
        open_entry(found.folder)
    encoder, seen = make_encoder(), []
    encoder._module.register_forward_hook(lambda *_: seen.append(1))
    again = extract(encoder, TEXTS, number="float32", folder=tmp_path, quiet=True)
    assert not seen
    for k, H in enumerate(want):
        torch.testing.assert_close(again.one(k)[0], H)


def test_features_that_half_precision_cannot_hold_are_refused(make_encoder, tmp_path):
    encoder = make_encoder()
    with torch.no_grad():
        encoder.model.encoder["layer"][1].output["LayerNorm"].weight.mul_(1e6)
    with pytest.raises(ValueError, match=r"do not fit into float16 .* store them as bfloat16 or float32"):
        extract(encoder, TEXTS, folder=tmp_path, quiet=True)
    found = extract(encoder, TEXTS, number="bfloat16", folder=tmp_path, quiet=True)
    assert found.values.isfinite().all()


def test_another_models_cache_is_refused(make_encoder, tmp_path):
    found = extract(make_encoder(seed=0), TEXTS, folder=tmp_path, quiet=True)
    assert len(open_entry(found.folder, make_encoder(seed=0))) == 3
    with pytest.raises(ValueError, match=r"holds features of tiny .* not of tiny .* extract them again"):
        open_entry(found.folder, make_encoder(seed=1))


def test_long_texts_are_cut_counted_and_said(make_encoder, tmp_path):
    with pytest.warns(UserWarning, match="1 of 2 texts were longer than 12 tokens and were cut"):
        found = extract(make_encoder(), ["the cat " * 20, "a b"], folder=tmp_path)
    assert found.truncated == 1
    assert found.lengths().tolist() == [12, 4]


@pytest.mark.parametrize(("texts", "pairs", "words"), [
    (["a", " "], None, "text 1 is ' '"),
    ([], None, "there are no texts"),
    (["a", None], None, "text 1 is None, which is no string; give strings"),
    (["a", b"b"], None, "text 1 is b'b', which is no string"),
    (["a", "b \ud800"], None, r"text 1 holds '\\ud800', half a character; read its file with the right encoding"),
    (["a", "b"], ["c"], "2 texts come with 1 second texts"),
    (["a"], [""], "second text 0 is ''"),
])  # fmt: skip
def test_bad_texts_get_one_sentence(make_encoder, tmp_path, texts, pairs, words):
    with pytest.raises(ValueError, match=words):
        extract(make_encoder(), texts, pairs, folder=tmp_path, quiet=True)


@pytest.mark.parametrize(("options", "words"), [
    ({"max_length": 40}, "takes at most 32 tokens"),
    ({"max_length": 1}, "at least 3 tokens"),
    ({"layers": (5,)}, "hidden states 0 to 2"),
    ({"precision": "int8"}, "choose float32"),
    ({"max_length": "12"}, "max_length is '12'; give a whole number"),
    ({"layers": -1}, r"layers is -1; give a list of whole numbers, such as \(-1,\)"),
    ({"layers": (0.5,)}, r"layers is \(0.5,\); give a list of whole numbers"),
])  # fmt: skip
def test_bad_encoders_get_one_sentence(make_encoder, options, words):
    with pytest.raises(ValueError, match=words):
        make_encoder(**options)


def test_noise_is_relative_to_the_features_and_the_same_for_all(make_encoder, tmp_path):
    clean = extract(make_encoder(), TEXTS, number="float32", folder=tmp_path, quiet=True)
    H, pad, _ = clean.batch([0, 1, 2])
    noisy = Noisy(clean, 0.5, seed=3)
    again = Noisy(clean, 0.5, seed=3).batch([0, 1, 2]).H
    torch.testing.assert_close(noisy.batch([0, 1, 2]).H, again)
    change = (again - H)[~pad].pow(2).mean().sqrt() / H[~pad].pow(2).mean().sqrt()
    assert change.item() == pytest.approx(0.5, rel=0.1)
    alone = noisy.batch([1]).H  # a text's noise does not depend on its batch
    torch.testing.assert_close(alone[0], again[1, : alone.size(1)])
    torch.testing.assert_close(Noisy(clean, 0.0, seed=3).batch([0, 1]).H, clean.batch([0, 1]).H)
