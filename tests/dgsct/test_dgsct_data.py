"""Annotation readers on tiny files in the public formats, real mp4 files, the front end, and the procedural world."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from companion.dgsct import data, world
from companion.dgsct.audio import LogMel, read_clip, repeat_to

REAL = Path(os.environ.get("COMPANION_TEST_DATA") or "/nowhere") / "av" / "annotations"
needs_real = pytest.mark.skipif(
    not REAL.is_dir(), reason="COMPANION_DATA names no folder with av/annotations"
)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_ave_reader(tmp_path):
    file = write(
        tmp_path / "Annotations.txt",
        "Category&VideoID&Quality&StartTime&EndTime\nBark&x1&good&2&5\nBus&y&good&0&10\n",
    )
    first, second = data.read_ave(file)
    assert first.segments().tolist() == [28, 28, 2, 2, 2, 28, 28, 28, 28, 28]
    assert second.label == data.AVE_CLASSES.index("Bus")
    (never,) = data.read_ave(write(tmp_path / "zero.txt", "Church bell&z&good&0&0\n"))
    assert set(never.segments().tolist()) == {28}


@pytest.mark.parametrize(("line", "message"), [
    ("Bark&x&good&2&12", "line 1: event from 2 to 12 s lies outside"), ("Dragon&x&good&2&5", "class 'Dragon'"),
    ("Bark&x&good&2", "is not Category&VideoID"), ("Bark&x&good&5&5", "event from 5 to 5"),
])  # fmt: skip
def test_ave_reader_says_what_is_wrong(tmp_path, line, message):
    with pytest.raises(ValueError, match=message):
        data.read_ave(write(tmp_path / "Annotations.txt", line))


def test_few_shot_takes_the_first_and_misses_none():
    events = [data.Event(f"v{k}", k % 28, "good", 0, 10) for k in range(84)]
    chosen = data.few_shot_ave(events, 2)
    assert [e.video for e in chosen] == [f"v{k}" for k in range(56)]
    with pytest.raises(ValueError, match="'Mandolin' has fewer than 1"):
        data.few_shot_ave(events[:27], 1)


def test_llp_readers(tmp_path):
    weak = write(tmp_path / "w.csv", "filename\tevent_labels\na\tSpeech,Dog\n")
    assert np.flatnonzero(data.read_llp_weak(weak)["a"]).tolist() == [0, 3]
    dense = write(tmp_path / "d.csv", "filename\tonset\toffset\tevent_labels\na\t0\t2\tDog\na\t8\t10\tDog\n")
    assert data.read_llp_dense(dense)["a"][3].tolist() == [1, 1, 0, 0, 0, 0, 0, 0, 1, 1]
    # six published lines end where, or before, they begin: they mark no second
    dense = write(tmp_path / "e.csv", "filename\tonset\toffset\tevent_labels\na\t9\t0\tDog\na\t4\t4\tCat\n")
    assert data.read_llp_dense(dense)["a"].sum() == 0
    assert list(
        data.few_shot_llp({"a": np.eye(25)[3], "b": np.eye(25)[3], "c": np.eye(25)[:2].sum(0)}, 1)
    ) == ["a"]
    with pytest.raises(ValueError, match="expected filename, event_labels by tabs"):
        data.read_llp_weak(write(tmp_path / "x.csv", "filename,event_labels\na,Dog\n"))
    for line, message in (
        ("a\t0\t11\tDog", "line 2: event from 0 to 11 s lies outside"),
        ("a\t0.5\t2\tDog", r"line 2: onset '0\.5' and offset '2' are not whole seconds"),
        ("a\t0\t2\tDog\tCat", "line 2: 4 columns by tabs are expected"),
        ("a\t0\t2\tDragon", "line 2: class 'Dragon' is not one of the 25"),
    ):
        with pytest.raises(ValueError, match=message):
            data.read_llp_dense(write(tmp_path / "y.csv", f"filename\tonset\toffset\tevent_labels\n{line}\n"))


def test_avqa_reader_fills_templates(tmp_path):
    row = {"video_id": "1", "question_id": 2, "type": '["Audio", "Comparative"]', "anser": "yes",
           "question_content": "Is the <Object> louder than the <Object>?", "templ_values": '["guzheng", "piano"]'}  # fmt: skip
    (q,) = data.read_avqa(write(tmp_path / "q.json", json.dumps([row])))
    assert q.text == "Is the guzheng louder than the piano"
    assert q.kind == ("Audio", "Comparative")
    vocabulary = data.Vocabulary([q])
    assert vocabulary.encode(q.text).tolist()[:8] == [1, 2, 3, 4, 5, 2, 6, 0]
    with pytest.raises(ValueError, match="'cello'"):
        vocabulary.encode("Is the cello")
    for content, message in (
        (json.dumps([row | {"templ_values": '["piano"]'}]), "more slots than values"),
        (json.dumps([row | {"type": "Audio"}]), "question 2 of 1: type and templ_values are not lists"),
        (json.dumps([row, {"video_id": "1"}]), r"r\.json entry 2: 'question_id' is missing"),
        (json.dumps(row), r"r\.json is not a list of questions"),
        ("[{", r"r\.json cannot be read as JSON"),
    ):
        with pytest.raises(ValueError, match=message):
            data.read_avqa(write(tmp_path / "r.json", content))
    with pytest.raises(ValueError, match=r"q\.json\.gz cannot be read as JSON"):
        data.read_avqa(write(tmp_path / "q.json.gz", "no gzip"))


def test_ave_order_file_says_what_is_wrong(tmp_path):
    import h5py

    notes, order = write(tmp_path / "Annotations.txt", "Bark&x&good&2&5\n"), tmp_path / "val_order.h5"
    with pytest.raises(ValueError, match=r"val_order\.h5 is missing, or not an HDF5 file"):
        data.read_ave_split(notes, order)
    for number in (1, -1):
        with h5py.File(order, "w") as file:
            file["order"] = [0, number]
        with pytest.raises(ValueError, match=f"names event {number}, but there are 1, counted from 0"):
            data.read_ave_split(notes, order)


def test_avs_reader(tmp_path):
    s4 = write(tmp_path / "s4_meta_data.csv", "name,category,split\nv1,dog,train\nv2,cat,test\n")
    first, second = data.read_avs(s4, tmp_path, "s4")
    assert (len(first.masks), len(second.masks), len(first.frames)) == (1, 5, 5)
    with pytest.raises(ValueError, match="split 'dev'"):
        data.read_avs(write(tmp_path / "bad.csv", "name,category,split\nv,dog,dev\n"), tmp_path, "s4")
    with pytest.raises(ValueError, match="column 'video_id' is missing"):
        data.read_avs(s4, tmp_path, "ms3")


def test_vggsound_reader(tmp_path):
    file = write(tmp_path / "vggsound.csv", 'abc,30,"playing, loudly",train\n')
    assert data.read_vggsound(file) == [("abc", 30, "playing, loudly", "train")]
    with pytest.raises(ValueError, match=r"line 1: .* is not id, start, label, split"):
        data.read_vggsound(write(tmp_path / "bad.csv", "abc,soon,dog,train\n"))


def test_annotations_saved_by_a_spreadsheet(tmp_path):
    """A byte-order mark and CRLF, which Windows programs write, are no part of the first name."""

    def file(text):
        path = tmp_path / "notes.csv"
        path.write_bytes(("\ufeff" + text.replace("\n", "\r\n")).encode())
        return path

    assert data.read_ave(file("Church bell&a b&good&0&10\n"))[0].video == "a b"
    assert list(data.read_llp_weak(file("filename\tevent_labels\nabc\tSpeech,Car\n"))) == ["abc"]
    assert data.read_avs(file("video_id,split\na b,train\n"), tmp_path, "ms3")[0].video == "a b"
    assert data.read_vggsound(file("--abc,1,x,train\n"))[0] == ("--abc", 1, "x", "train")


@needs_real
def test_public_annotation_files():
    """Counts measured in the published files, and the two ceilings that follow from them."""
    root = REAL / "AVE"
    events = data.read_ave(root / "Annotations.txt")
    sizes = [
        len(data.read_ave_split(root / "Annotations.txt", root / f"{s}_order.h5"))
        for s in ("train", "val", "test")
    ]
    assert (len(events), sizes) == (4143, [3339, 402, 402])
    test = data.read_ave_split(root / "Annotations.txt", root / "test_order.h5")
    assert np.mean([e.stop - e.start for e in test]) == pytest.approx(8.22, abs=0.01)
    weak = {s: data.read_llp_weak(REAL / "LLP" / f"AVVP_{s}.csv") for s in ("train", "val_pd", "test_pd")}
    assert [len(x) for x in weak.values()] == [10_000, 649, 1200]
    labels = data.llp_single_label(np.stack(list(weak["test_pd"].values())))
    assert (labels == 0).sum() == 625  # the constant answer "Speech" scores 52.1 %
    single = [x for x in weak["train"].values() if x.sum() == 1]
    assert not any(x[0] for x in single)  # and no few-shot model ever sees that class
    assert len(data.read_llp_dense(REAL / "LLP" / "AVVP_eval_audio.csv")) > 1700
    assert len(data.read_avqa(REAL / "MUSIC-AVQA" / "avqa-val.json")) == 4595
    assert len(data.read_avqa(REAL / "MUSIC-AVQA" / "avqa-test.json.gz")) == 9185


def test_log_mel_has_the_published_shape_and_scale():
    wave = torch.sin(2 * torch.pi * 1000 * torch.arange(32_000) / 32_000)[None]
    long = repeat_to(wave, 320_000)
    assert torch.equal(long[:, 32_000:64_000], wave)
    mel = LogMel()(long)
    assert mel.shape == (1, 1, 1001, 64)
    assert LogMel()(torch.zeros(1, 3200)).max() == pytest.approx(-100)  # floor 1e-10 -> -100 dB
    # ten times the amplitude is twenty decibels more
    band = mel.mean((0, 1, 2)).argmax()
    assert torch.allclose(LogMel()(10 * long)[..., band], mel[..., band] + 20, atol=1e-3)
    with pytest.raises(ValueError, match="0 samples"):
        repeat_to(torch.zeros(1, 0), 10)


def test_log_mel_is_the_published_pipeline():
    """The same steps with NumPy and transformers' own filter bank: power of a Hann-windowed STFT, Slaney bands, dB."""
    from transformers.audio_utils import mel_filter_bank

    wave = np.random.default_rng(0).normal(0, 0.1, 32_000)
    padded = np.pad(wave, 512, mode="reflect")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(1024) / 1024)
    frames = np.lib.stride_tricks.sliding_window_view(padded, 1024)[::320] * window
    power = np.abs(np.fft.rfft(frames, axis=1)) ** 2
    bank = mel_filter_bank(513, 64, 50.0, 14_000.0, 32_000, norm="slaney", mel_scale="slaney")
    want = 10 * np.log10(np.maximum(power @ bank, 1e-10))
    got = LogMel()(torch.from_numpy(wave).float()[None])[0, 0].numpy()
    assert got.shape == want.shape == (101, 64)
    assert np.abs(got - want).max() < 1e-2  # dB, of about 60


def video(path, seconds=3.0, sound=3.0, rate=32_000, noise=False):
    import av

    random = np.random.default_rng(0)
    with av.open(str(path), "w") as file:
        picture = file.add_stream("mpeg4", rate=4)
        picture.width = picture.height = 64 if noise else 32
        track = file.add_stream("aac", rate=rate) if sound else None
        for k in range(int(seconds * 4)):
            shown = np.full((32, 32, 3), 20 * (k // 4) + 20, np.uint8)
            if noise:
                shown = random.integers(0, 255, (64, 64, 3), dtype=np.uint8)
            file.mux(picture.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        file.mux(picture.encode())
        if track is not None:
            wave = np.sin(2 * np.pi * 440 * np.arange(int(sound * rate)) / rate).astype(np.float32)
            for at in range(0, len(wave), 1024):
                part = av.AudioFrame.from_ndarray(wave[None, at : at + 1024], format="fltp", layout="mono")
                part.sample_rate, part.pts = rate, at
                file.mux(track.encode(part))
            file.mux(track.encode())
    return path


def test_clip_has_one_frame_and_one_second_of_sound_per_segment(tmp_path):
    clip = read_clip(video(tmp_path / "a.mp4"), segments=3)
    assert clip.frames.shape == (3, 3, 32, 32)
    assert clip.sounds.shape == (3, 32_000)
    brightness = clip.frames.float().mean((1, 2, 3))
    assert torch.allclose(brightness, torch.tensor([20.0, 40, 60]), atol=4)
    assert clip.sounds.std() == pytest.approx(0.5**0.5, abs=0.1)
    assert clip.resampled_from is None
    assert read_clip(video(tmp_path / "b.mp4", rate=16_000), segments=3).resampled_from == 16_000


def test_clip_says_what_is_wrong(tmp_path):
    with pytest.raises(ValueError, match="has no sound"):
        read_clip(video(tmp_path / "mute.mp4", sound=0), segments=3)
    short = video(tmp_path / "short.mp4", sound=1.0)
    with pytest.raises(ValueError, match=r"sound lasts 1\.\d s of 3 s"):
        read_clip(short, segments=3)
    assert read_clip(short, segments=3, allow_short=True).sounds[2].abs().max() == 0
    still = video(tmp_path / "still.mp4", seconds=1.0)
    with pytest.raises(
        ValueError, match=r"still\.mp4: the picture ends at 0\.8 s of 3 s; pass allow_short=True"
    ):
        read_clip(still, segments=3)
    filled = read_clip(still, segments=3, allow_short=True)
    assert filled.repeated == 2
    assert torch.equal(filled.frames[1], filled.frames[2])
    with pytest.raises(ValueError, match="segments is 0"):
        read_clip(still, segments=0)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    with pytest.raises(ValueError, match=r"broken\.mp4 cannot be decoded"):
        read_clip(broken)


def test_a_whole_picture_may_end_a_little_early(tmp_path):
    """Four frames a second end at 2.25 s; the middle of the third second, 2.5 s, shows the last of them."""
    assert read_clip(video(tmp_path / "a.mp4", seconds=2.5), segments=3).repeated == 1


@pytest.mark.parametrize(("damage", "message"), [
    ("half", r"damaged\.mp4: the frame at 1\.2 s is corrupt"), ("all", r"damaged\.mp4 cannot be decoded"),
])  # fmt: skip
def test_a_corrupt_frame_is_not_used(tmp_path, damage, message):
    """Real damage: the bytes of one frame in the middle of the file."""
    import av

    whole = video(tmp_path / "whole.mp4", noise=True)
    content = bytearray(whole.read_bytes())
    with av.open(str(whole)) as file:
        at = [(p.pos, p.size) for p in file.demux(video=0) if p.size][5]
    start = at[0] + (at[1] // 2 if damage == "half" else 0)
    stop = sum(at)
    content[start:stop] = np.random.default_rng(1).integers(0, 256, stop - start, dtype=np.uint8).tobytes()
    (tmp_path / "damaged.mp4").write_bytes(content)
    assert read_clip(whole, segments=3).frames.shape == (3, 3, 64, 64)
    with pytest.raises(ValueError, match=message):
        read_clip(tmp_path / "damaged.mp4", segments=3)


def test_world_binds_and_nothing_else_does():
    s = world.scenes(3000, seed=3)
    assert torch.equal(s.shapes.gather(1, s.place[:, None]).squeeze(1), s.timbre)
    # colour tells nothing about the timbre, the quadrant nothing about either
    joint = torch.zeros(6, 6).index_put_((s.label, s.timbre), torch.ones(3000), accumulate=True) / 3000
    assert (joint - 1 / 36).abs().max() < 0.012
    present = s.shapes >= 0
    assert torch.equal(present.sum(1), torch.full((3000,), 3))
    for row, there in zip(s.colours[:50], present[:50], strict=True):
        assert len(set(row[there].tolist())) == 3
    # the mask lies in the quadrant of the sounding object
    quadrants = s.masks.view(-1, 2, 16, 2, 16).float().sum((2, 4)).flatten(1)
    assert torch.equal(quadrants.argmax(1), s.place)
    assert torch.equal(s.images, world.scenes(3000, seed=3).images)
    with pytest.raises(ValueError, match="objects is 5"):
        world.scenes(10, 0, objects=5)


def test_clips_sound_only_inside_the_event():
    c = world.clips(60, seed=1)
    inside = c.labels < 6
    assert inside.any(1).all()
    assert torch.equal(c.masks.flatten(2).any(2), inside)
    for row in inside:  # one interval
        assert (row[1:] & ~row[:-1]).sum() + row[0] == 1
