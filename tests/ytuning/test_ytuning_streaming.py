"""Large sets: pieces are the cache, streaming is the model, and both are what one entry would have been."""

import shutil
from collections import namedtuple

import pytest
import torch

from companion.ytuning import data, methods, streaming
from companion.ytuning.features import extract

TEXTS = ["the cat sat on the mat", "the dog ran", "a very happy dog", "the dog ran", "a sad cat", "not a cat"]


def same(one, two, slack=1e-5):
    for k in range(len(one)):
        a, b = one.batch([k]), two.batch([k])
        torch.testing.assert_close(a.H, b.H, atol=slack, rtol=0)
        assert torch.equal(a.segments, b.segments)


@pytest.mark.parametrize("mode", ["single", "pair", "apart"])
def test_pieces_and_streams_give_what_one_entry_gives(make_encoder, tmp_path, mode):
    encoder = make_encoder()
    given = (TEXTS[:3], None if mode == "single" else TEXTS[3:])
    apart = mode == "apart"
    whole = extract(encoder, *given, apart=apart, number="float32", folder=tmp_path / "whole", quiet=True)
    pieces = streaming.extract_pieces(
        encoder, *given, apart=apart, piece=2, number="float32", folder=tmp_path / "pieces", quiet=True
    )
    live = streaming.stream(encoder, *given, apart=apart)
    assert len(pieces.parts) == 2
    for other in (pieces, live):
        same(whole, other)
        assert torch.equal(whole.lengths(), other.lengths())
        batch, want = other.batch([2, 0]), whole.batch([2, 0])
        assert torch.equal(batch.pad, want.pad)
        torch.testing.assert_close(batch.H, want.H, atol=1e-5, rtol=0)
    assert pieces.bytes == whole.bytes
    assert live.bytes == 0
    assert not live.batch([0]).H.is_inference()


def test_a_stopped_pass_keeps_its_finished_pieces(make_encoder, tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    encoder, seen = make_encoder(), []

    def stop(module, inputs, out):
        seen.append(len(inputs[0]))
        if sum(seen) > 3:
            raise Stopped

    hook = encoder._module.register_forward_hook(stop)
    with pytest.raises(Stopped):
        streaming.extract_pieces(encoder, TEXTS, piece=2, folder=tmp_path, quiet=True)
    hook.remove()
    again = []
    encoder._module.register_forward_hook(lambda m, inputs, out: again.append(len(inputs[0])))
    found = streaming.extract_pieces(encoder, TEXTS, piece=2, number="float16", folder=tmp_path, quiet=True)
    assert 0 < sum(again) < 5  # five distinct texts, at least one finished piece was not made again
    same(found, extract(make_encoder(), TEXTS, folder=tmp_path / "whole", quiet=True), 1e-2)


def test_a_piece_that_another_process_works_on_is_left_for_later(make_encoder, tmp_path):
    """Two processes share the work: the one that comes second starts with a piece that is free."""
    import multiprocessing

    from filelock import FileLock

    from companion.ytuning.features import entry_folder

    encoder, inputs = make_encoder(), sorted(set(TEXTS))
    busy = entry_folder(encoder, inputs[:2], None, "float16", tmp_path)[0]
    ready, stop = multiprocessing.get_context("fork").Event(), multiprocessing.get_context("fork").Event()

    def other():
        with FileLock(f"{busy}.claim"):
            ready.set()
            stop.wait(30)

    process = multiprocessing.get_context("fork").Process(target=other)
    process.start()
    ready.wait(30)
    found = streaming.extract_pieces(encoder, TEXTS, piece=2, folder=tmp_path, quiet=True)
    stop.set()
    process.join()
    made = sorted((p.stat().st_mtime_ns, p.parent) for p in tmp_path.glob("*/complete"))
    assert made[-1][1] == busy
    assert len(found) == len(TEXTS)


def test_space_for_all_pieces_is_asked_for_before_the_first(make_encoder, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    encoder, seen = make_encoder(), []
    encoder._module.register_forward_hook(lambda *_: seen.append(1))
    need = sum(len(encoder.tokenize([t]).ids[0]) for t in set(TEXTS)) * 16 * 2
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1e6, 0, need))
    with pytest.raises(OSError, match=rf"5 texts in 3 pieces take {need} B but .* or stream them"):
        streaming.extract_pieces(encoder, TEXTS, piece=2, folder=tmp_path, quiet=True)
    assert not seen
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1e6, 0, 2 * need))
    streaming.extract_pieces(encoder, TEXTS, piece=2, folder=tmp_path, quiet=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1e6, 0, 1))
    streaming.extract_pieces(encoder, TEXTS, piece=2, folder=tmp_path, quiet=True)  # nothing is missing


def test_the_source_streams_what_may_not_be_stored(make_encoder, tmp_path, capsys):
    encoder = make_encoder()
    assert isinstance(streaming.source(encoder, TEXTS, folder=tmp_path, quiet=True), streaming.Pieces)
    found = streaming.source(encoder, TEXTS, folder=tmp_path, most_bytes=10)
    assert isinstance(found, streaming.Streamed)
    assert "more than 10 B: the frozen model runs in every batch instead" in capsys.readouterr().out
    split = data.Split(TEXTS[:2], [0, 1], ("a", "b"), TEXTS[2:4])
    read = methods.inputs("y-tuning", encoder, split, apart=True, folder=tmp_path, cache_gb=1e-9)
    assert isinstance(read.source, streaming.Streamed)
    model = methods.make("y-tuning", encoder, split.labels, {"width": 8, "heads": 2}, apart=True)
    methods.loss(model, model(*read.source.batch([0, 1])), read.target).backward()
    assert all(p.grad is None for p in encoder.model.parameters())


def test_bad_input_gets_one_sentence(make_encoder, tmp_path):
    with pytest.raises(ValueError, match="piece is 0; it counts texts"):
        streaming.extract_pieces(make_encoder(), TEXTS, piece=0, folder=tmp_path)
    with pytest.raises(ValueError, match="text 0 is ''"):
        streaming.stream(make_encoder(), [""])
    with pytest.raises(ValueError, match="pass pairs"):
        streaming.stream(make_encoder(), TEXTS, apart=True)
    with pytest.raises(ValueError, match="pass pairs"):
        streaming.source(make_encoder(), TEXTS, apart=True)
    with pytest.raises(ValueError, match="pass pairs"):
        streaming.extract_pieces(make_encoder(), TEXTS, apart=True, folder=tmp_path)


def test_streamed_texts_that_are_cut_are_counted_and_said(make_encoder):
    with pytest.warns(UserWarning, match="1 of 2 texts were longer than 12 tokens and were cut"):
        found = streaming.stream(make_encoder(), ["the cat " * 20, "a b"])
    assert found.truncated == 1


def test_a_view_of_a_stream_is_a_view_of_its_texts(make_encoder):
    live = streaming.stream(make_encoder(), TEXTS[:3], TEXTS[3:], apart=True)
    view = live.select([2, 0, 1]).select(torch.tensor([1, 0]))
    assert len(view) == 2
    assert view.lengths().tolist() == live.lengths()[[0, 2]].tolist()
    torch.testing.assert_close(view.batch([0, 1]).H, live.batch([0, 2]).H)
