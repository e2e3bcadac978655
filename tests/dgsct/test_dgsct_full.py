"""From video files to test numbers on every task: real mp4 files, annotation files in the public formats, tiny towers."""

import csv
import json
import shutil

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from companion import datasets
from companion.dgsct import checkpoints, extract, full, media, official
from companion.dgsct.audio import LogMel, read_sound
from companion.dgsct.data import AVE_CLASSES, LLP_CLASSES, class_missing, read_vggsound40k
from companion.dgsct.masks import AVSHead
from companion.dgsct.model import OFFICIAL_NAMES, DualGuidedEncoder, PromptConfig
from companion.dgsct.tasks import AVEHead, AVQAHead, AVVPHead
from companion.dgsct.towers import htsat_tower, swinv2_tower
from tests.dgsct.test_dgsct_data import video

SMALL = PromptConfig(reduction=4, tokens=4)
FRONT = media.FrontEnd(size=32, samples=32_000, logmel=LogMel(mels=16, hop=512))


def swin(**change):
    sizes = {"image_size": 32, "embed_dim": 24, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}
    return swinv2_tower(**(sizes | change))


def hearing():
    return htsat_tower(num_mel_bins=16, spec_size=32, window_size=4, depths=[1, 1], num_attention_heads=[2, 4],
                       patch_embeds_hidden_size=24, hidden_size=48)  # fmt: skip


def parts(task):
    """Tiny encoder and head of a task."""
    torch.manual_seed(0)

    def make():
        encoder = DualGuidedEncoder(swin(), hearing(), SMALL)
        head = {"ave": lambda: AVEHead(48, 48, hidden=16), "avvp": lambda: AVVPHead(48, 48, width=16),
                "avqa": lambda: AVQAHead(words=9, answers=2, visual=48, audio=48)}.get(
                    task, lambda: AVSHead((24, 48), 48, hidden=16, sound=8, grids=(8, 4)))  # fmt: skip
        return encoder, head()

    return full.Parts(FRONT, make)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A COMPANION_DATA with a few clips of each set, all made out of one extracted mp4."""
    base = tmp_path_factory.mktemp("data")
    av, raw = base / "av", base / "raw"
    raw.mkdir()
    video(raw / "clip.mp4", seconds=10, sound=10)
    assert extract.main([str(raw), str(base / "out"), "--jobs", "1"]) == 0

    def put(folder, names):
        for name in names:
            shutil.copytree(base / "out" / "frames" / "clip", av / folder / "frames" / name)
            (av / folder / "waves").mkdir(exist_ok=True)
            shutil.copy(base / "out" / "waves" / "clip.npy", av / folder / "waves" / f"{name}.npy")

    notes = av / "annotations" / "AVE"
    notes.mkdir(parents=True)
    lines = [f"{name}&v{k}&good&2&6" for k, name in enumerate(AVE_CLASSES)]
    (notes / "Annotations.txt").write_text("\n".join(["Category&VideoID&Quality&StartTime&EndTime", *lines]))
    for split in ("train", "val", "test"):
        with h5py.File(notes / f"{split}_order.h5", "w") as file:
            file["order"] = np.arange(28)
    put("AVE", [f"v{k}" for k in range(28)])

    notes = av / "annotations" / "LLP"
    notes.mkdir()
    names = [f"abcdefghi{k:02d}_0_10" for k in range(25)]
    weak = "".join(f"{n}\t{LLP_CLASSES[k]}\n" for k, n in enumerate(names))
    dense = "".join(f"{n}\t2\t5\t{LLP_CLASSES[k]}\n" for k, n in enumerate(names))
    for name in media.LLP.FILES.values():
        (notes / name).write_text(f"filename\tevent_labels\n{weak}")
    for side in ("audio", "visual"):
        (notes / f"AVVP_eval_{side}.csv").write_text(f"filename\tonset\toffset\tevent_labels\n{dense}")
    put("LLP", [n[:11] for n in names])
    (av / "LLP" / "st").mkdir()
    for n in names:
        np.save(av / "LLP" / "st" / f"{n[:11]}.npy", np.random.default_rng(0).normal(size=(20, 512)))

    notes = av / "annotations" / "MUSIC-AVQA"
    notes.mkdir()
    rows = [{"video_id": f"{k}", "question_id": k, "type": '["Audio", "Counting"]', "anser": ("yes", "no")[k % 2],
             "question_content": "Is the <Object> louder?", "templ_values": '["guzheng"]'} for k in range(4)]  # fmt: skip
    for split in ("train", "val", "test"):
        (notes / f"avqa-{split}.json").write_text(json.dumps(rows))
    put("MUSIC-AVQA", [f"{k}" for k in range(4)])

    table = av / "VGGSound40K" / "vggsound-avel40k_labels.csv"
    table.parent.mkdir()
    table.with_name("VggsoundAVEL40kCategories.txt").write_text("cat\ndog\n")
    with open(table, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "category", "video_id", "label", "split"])
        for k, split in enumerate(("train", "train", "val")):
            writer.writerow([f"x{k}", ("cat", "dog")[k % 2], k, str([0, 1] * 5), split])
    put("VGGSound40K", [f"{k:06d}" for k in range(3)])

    frame = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
    mask = np.zeros((32, 32), np.uint8)
    mask[8:20, 8:20] = 255
    sound = read_sound(raw / "clip.mp4", 5).reshape(-1).numpy()
    for source, task, folder in (("Single-source", "s4", "s4_data"), ("Multi-sources", "ms3", "ms3_data")):
        home = av / "AVSBench" / source
        lines = []
        for split in ("train", "val", "test"):
            for k in range(2):
                name, middle = f"{split}{k}", ((split, "dog") if task == "s4" else (split,))
                lines.append(f"{name},dog,{split}" if task == "s4" else f"{name},{split}")
                at = (home / folder / "visual_frames").joinpath(*(middle if task == "s4" else ())) / name
                truth = (home / folder / "gt_masks").joinpath(*middle) / name
                wave = (home / folder / "audio_wav").joinpath(*middle) / f"{name}.wav"
                for path in (at, truth, wave.parent):
                    path.mkdir(parents=True, exist_ok=True)
                for second in range(1, 6):
                    stem = f"{name}_{second}.png" if task == "s4" else f"{name}.mp4_{second}.png"
                    Image.fromarray(frame).save(at / stem)
                    Image.fromarray(mask).save(truth / f"{name}_{second}.png")
                write_wav(wave, sound)
        head = "name,category,split" if task == "s4" else "video_id,split"
        (home / f"{task}_meta_data.csv").write_text("\n".join([head, *lines]))
    return base


def write_wav(path, wave, rate=32_000):
    import wave as waves

    with waves.open(str(path), "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes((wave * 32_000).astype("<i2").tobytes())


@pytest.mark.parametrize("task", ["ave", "avvp", "avs-s4", "avs-ms3", "avqa"])
def test_every_main_task_trains_from_files_to_its_metric(task, root, monkeypatch, tmp_path):
    monkeypatch.setenv("COMPANION_DATA", str(root))
    protocol = full.Protocol(2, 2, 1e-3, full.PROTOCOLS[task].metric, 0, every=1, factor=0.5, limit=1)
    out = full.run(task, protocol=protocol, parts=parts(task), folder=tmp_path / "run")
    assert set(out["test"]) >= {protocol.metric}
    assert all(0 <= v <= 100 for v in out["test"].values())
    assert [e for e, _ in out["curves"]["loss"]] == [1, 2]
    again = full.run(
        task, protocol=protocol, parts=parts(task), folder=tmp_path / "run"
    )  # nothing left to do
    assert again["curves"] == out["curves"]


def test_a_training_with_recomputed_activations_is_the_same(root, monkeypatch):
    monkeypatch.setenv("COMPANION_DATA", str(root))
    protocol = full.Protocol(1, 2, 1e-3, "accuracy", 0, limit=2)
    kept, recomputed = (
        full.run("ave", protocol=protocol, parts=parts("ave"), recompute=how) for how in (False, True)
    )
    assert recomputed == kept


class Words:
    """A tokenizer with transformers' calling convention: one number per character, CLIP's first and last tokens."""

    def __call__(self, texts, padding=True, return_tensors="pt"):
        rows = [[1, *(2 + ord(c) % 90 for c in text.replace("X ", "X")), 99] for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([r + [99] * (longest - len(r)) for r in rows])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def clip_and_clap():
    from transformers import ClapConfig, ClapModel, CLIPConfig, CLIPModel

    torch.manual_seed(0)
    text = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2}  # fmt: skip
    clip = CLIPModel(CLIPConfig(
        text_config=text | {"max_position_embeddings": 60, "eos_token_id": 99, "bos_token_id": 1, "pad_token_id": 99},
        vision_config={"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
                       "image_size": 32, "patch_size": 16}, projection_dim=16))  # fmt: skip
    clap = ClapModel(ClapConfig(
        text_config=text | {"max_position_embeddings": 60, "pad_token_id": 0},
        audio_config={"num_mel_bins": 16, "spec_size": 32, "window_size": 4, "depths": [1, 1],
                      "num_attention_heads": [2, 4], "patch_embeds_hidden_size": 24, "hidden_size": 48,
                      "enable_fusion": False}, projection_dim=16))  # fmt: skip
    return clip, clap, Words(), Words()


@pytest.mark.parametrize(("task", "change"), [
    ("few-shot-ave", {"shots": 1}), ("few-shot", {"shots": 1}), ("few-shot", {"shots": 1, "data": "llp"}),
    ("zero-shot", {"target": "ave"}), ("zero-shot", {"target": "llp-class"}),
])  # fmt: skip
def test_few_and_zero_shot_train_from_files(task, change, root, monkeypatch):
    monkeypatch.setenv("COMPANION_DATA", str(root))
    monkeypatch.setitem(full.PRESETS, task, PromptConfig(reduction=4, tokens=2, gamma=0.05))
    protocol = full.Protocol(1, 2, 1e-3, "accuracy", 0, clip=0.5, limit=1)
    out = full.run(task, protocol=protocol, parts=full.Parts(FRONT, clip=clip_and_clap), **change)
    assert 0 <= out["test"]["accuracy"] <= 100


def test_published_switches_change_what_they_say(root, monkeypatch):
    monkeypatch.setenv("COMPANION_DATA", str(root))
    protocol = full.Protocol(1, 2, 1e-2, "accuracy", 0, limit=1)

    def trained(**switch):
        out = {}
        made = parts("ave")
        encoder, head = made.encoder()
        model = full.AVEModel(encoder, head)
        encoder.towers_in_training_mode = switch.get("towers_in_training_mode", False)
        before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
        statistics = encoder.audio.encoder.batch_norm.running_mean.clone()
        data = media.AVE("train", FRONT)
        seen = []
        full.train(model, data, protocol, lambda m: seen.append("check") or {"accuracy": 1.0},
                   lambda m: seen.append("test") or {"accuracy": 2.0}, full.Published(**switch), device="cpu")  # fmt: skip
        after = [p.detach().cpu() for p in model.parameters() if p.requires_grad]
        out["moved"] = any(not torch.equal(x, y) for x, y in zip(before, after, strict=True))
        out["statistics"] = not torch.equal(statistics, encoder.audio.encoder.batch_norm.running_mean.cpu())
        return out | {"seen": seen}

    assert trained() == {"moved": True, "statistics": False, "seen": ["check", "test"]}
    assert trained(select_on_test=True)["seen"] == ["test"]  # the validation split is never looked at
    assert trained(throw_away_gradients=True)["moved"] is False  # one batch: its gradient is thrown away
    assert trained(towers_in_training_mode=True)["statistics"] is True


def test_published_switches_reach_heads_and_towers(root, monkeypatch):
    """`run` hands each switch to the part that it changes; all are off by default."""
    monkeypatch.setenv("COMPANION_DATA", str(root))
    seen = {}
    monkeypatch.setattr(full, "train", lambda model, *rest, **more: seen.update(model=model) or {})

    def model(task, **switch):
        few = task.startswith("few")
        made = full.Parts(FRONT, clip=clip_and_clap) if few else parts(task)
        change = {"shots": 1} if few else {}
        full.run(task, parts=made, published=full.Published(**switch), **change)
        return seen["model"]

    assert not model("ave").as_published
    assert model("ave", double_sigmoid=True).as_published
    assert not model("avvp").head.as_published
    assert model("avvp", ungated_audio=True).head.as_published
    heard = [any(p.requires_grad for p in model("avs-s4", train_hearing=on).encoder.audio.parameters())
             for on in (False, True)]  # fmt: skip
    assert heard == [False, True]
    assert not any(p.requires_grad for p in seen["model"].encoder.visual.parameters())
    monkeypatch.setitem(full.PRESETS, "few-shot", PromptConfig(reduction=4, tokens=2, gamma=0.05))
    assert not model("few-shot").model.as_published
    assert model("few-shot", raw_clap_scale=True).model.as_published


def test_learning_rates_are_the_published_ones():
    ave, few = full.PROTOCOLS["ave"], full.PROTOCOLS["few-shot"]
    assert [ave.rate(e) / ave.lr for e in (1, 3, 4, 7)] == pytest.approx([1, 1, 0.35, 0.35**2])
    assert [few.rate(e) / few.lr for e in (1, 10, 11, 21, 31)] == pytest.approx([1, 1, 0.5, 0.25, 0.125])


def test_mixing_takes_the_reversed_order_of_all_segments():
    x = torch.arange(6.0).view(2, 3, 1, 1, 1)
    assert torch.equal(full.mixed(x, torch.zeros(6)).flatten(), torch.arange(5.0, -1, -1))
    assert torch.equal(full.mixed(x, torch.ones(6)), x)


def test_zero_shot_ave_cannot_say_background():
    """28 prompts against labels with background: the ceiling of the chapter's traps."""
    out = {"said": torch.zeros(1, 10, dtype=torch.long), "true": torch.tensor([[0] * 8 + [28] * 2])}
    assert full.PromptModel.score([out]) == {"accuracy": pytest.approx(80.0)}


# --- few-shot model ----------------------------------------------------------------------------------


def few_shot(**change):
    from companion.dgsct.prompts import FewShot, tokenised

    clip, clap, a, b = clip_and_clap()
    return FewShot(clip, clap, tokenised(["dog", "cat", "bus"], a, b),
                   PromptConfig(reduction=4, tokens=2, gamma=0.05), **change)  # fmt: skip


def test_few_shot_logits_are_the_published_ones():
    """Gates at 0 and no adapters: CLIP's and CLAP's own classifiers, added twice."""
    model = few_shot().eval()
    model.head.mix = 0.0
    ids = model._clip_ids
    with torch.no_grad():  # a context equal to the slots' own embeddings is no context at all
        model.head.context.copy_(model.clip.text_model.embeddings.token_embedding(ids[0, 1:5]))
        images, mels = torch.randn(2, 3, 3, 32, 32), torch.randn(2, 3, 1, 64, 16)
        out = model(images, mels)
        flat = images.flatten(0, 1)
        seen = torch.nn.functional.normalize(model.clip.get_image_features(flat).pooler_output, dim=-1)
        text = torch.nn.functional.normalize(model.clip.get_text_features(ids).pooler_output, dim=-1)
        want = model.clip.logit_scale.exp() * seen @ text.T
        heard = model.clap.get_audio_features(mels.flatten(0, 1)).pooler_output
        loud = model.clap.logit_scale_a.exp() * heard @ model._clap_text.T
    assert torch.allclose(out.visual.flatten(0, 1), want, atol=1e-4)
    assert torch.allclose(out.audio.flatten(0, 1), loud, atol=1e-4)
    assert torch.allclose(out.logits, 2 * out.visual + 2 * out.audio)


def test_few_shot_trains_units_context_and_adapters_only():
    model = few_shot().train()
    loss = model.loss(
        model(torch.randn(2, 2, 3, 32, 32), torch.randn(2, 2, 1, 64, 16)), torch.tensor([0, 2]), epoch=1
    )
    loss.backward()
    assert model.head.context.grad.abs().sum() > 0
    assert model.head.contrast.weight.grad.abs().sum() > 0
    assert all(p.grad is None for m in (model.clip, model.clap) for p in m.parameters())
    assert not model.clip.training


def test_few_shot_says_what_is_wrong():
    with pytest.raises(ValueError, match="fusion is 'mean'"):
        few_shot(fusion="mean")
    model = few_shot()
    out = model(torch.randn(2, 2, 3, 32, 32), torch.randn(2, 2, 1, 64, 16))
    with pytest.raises(ValueError, match="epoch is 0"):
        model.loss(out, torch.tensor([0, 1]), epoch=0)
    with pytest.raises(ValueError, match="shots is 0"):
        full.run("few-shot")
    with pytest.raises(ValueError, match="target is 'x'"):
        full.run("zero-shot", target="x")
    with pytest.raises(ValueError, match="variant is 'lavish'; the CLIP tasks"):
        full.run("few-shot", "lavish", shots=1)
    with pytest.raises(ValueError, match="task is 'avx'"):
        full.run("avx")


# --- published weights -------------------------------------------------------------------------------


def test_swin_weights_of_timm():
    import timm

    torch.manual_seed(0)
    kind = timm.models.swin_transformer_v2.SwinTransformerV2
    theirs = kind(
        img_size=32, window_size=4, embed_dim=24, depths=(2, 3), num_heads=(2, 4), num_classes=3
    ).eval()
    ours = swin(depths=[2, 3]).eval()
    checkpoints.load_timm_swinv2(ours.model, theirs.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(ours(x), theirs.forward_features(x).flatten(1, 2), atol=1e-6)
    state = theirs.state_dict()
    del state["norm.weight"]
    with pytest.raises(ValueError, match=r"has nothing for 'layernorm\.weight'"):
        checkpoints.load_timm_swinv2(ours.model, state)


def htsat_state(source, prefix) -> dict:
    """A `hearing()` tower's weights under HTS-AT's own names."""
    state, stack = {}, {}
    names = {"batch_norm": "bn0", "attention.output.dense": "attn.proj", "layernorm_before": "norm1",
             "layernorm_after": "norm2", "intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2",
             "attention.self.relative": "attn.relative"}  # fmt: skip
    for name, value in source.encoder.state_dict().items():
        place, _, rest = name.partition(".attention.self.")
        if rest and not rest.startswith("relative"):
            stack.setdefault(f"{place}.attn.qkv.{rest.rpartition('.')[2]}", {})[rest.split(".")[0]] = value
            continue
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        state[prefix + name] = value
    for name, three in stack.items():
        state[prefix + name] = torch.cat([three[k] for k in ("query", "key", "value")])
    return state


def test_htsat_checkpoint_round_trip(tmp_path):
    """transformers' tower written out under HTS-AT's names and read back: the same features."""
    torch.manual_seed(0)
    source, fresh = hearing().eval(), hearing().eval()
    state = htsat_state(source, "sed_model.")
    state["sed_model.head.weight"] = torch.zeros(5, 48)
    state["sed_model.logmel_extractor.melW"] = torch.zeros(513, 16)
    torch.save({"state_dict": state}, tmp_path / "HTSAT.ckpt")
    checkpoints.load_htsat(fresh.encoder, checkpoints.read(tmp_path / "HTSAT.ckpt"))
    x = torch.randn(2, 1, 64, 16)
    with torch.no_grad():
        assert torch.equal(source(x), fresh(x))
    with pytest.raises(ValueError, match="has nothing for 'batch_norm"):
        checkpoints.load_htsat(fresh.encoder, {"a": torch.zeros(1)})


def test_a_whole_published_checkpoint_round_trips():
    """Towers and units under the published names, the head with them: same outputs, and the head's names come back."""
    import timm

    torch.manual_seed(0)
    kind = timm.models.swin_transformer_v2.SwinTransformerV2
    theirs = kind(
        img_size=32, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4), num_classes=3
    ).eval()
    source, fresh = (DualGuidedEncoder(swin(depths=[2, 2]), hearing(), SMALL).eval() for _ in range(2))
    checkpoints.load_timm_swinv2(source.visual.model, theirs.state_dict())
    state = {f"module.swin.{k}": v for k, v in theirs.state_dict().items()} | htsat_state(
        source.audio, "module.htsat."
    )
    for ours, blocks in official.BLOCKS.items():
        for k, unit in enumerate(getattr(source, ours)):
            with torch.no_grad():
                for name, p in unit.named_parameters():
                    if name.endswith("gate"):
                        p.fill_(0.7)
            for name, value in unit.state_dict().items():
                part, _, leaf = name.partition(".")
                name = OFFICIAL_NAMES[part] + (f".{leaf}" if leaf else "")
                state[f"module.{blocks}.{k}.{name}"] = value.clone()
    head = {"module.CMBS.fc.weight": torch.zeros(2, 2), "module.temporal_attn.gamma": torch.zeros(1)}
    assert official.load_official_encoder(fresh, state | head) == ["CMBS.fc.weight", "temporal_attn.gamma"]
    assert all(unit.published for unit in (*fresh.visual_1, *fresh.audio_1, *fresh.visual_2, *fresh.audio_2))
    for unit in (*source.visual_1, *source.audio_1, *source.visual_2, *source.audio_2):
        unit.published = True
    x, y = torch.randn(2, 3, 32, 32), torch.randn(2, 1, 64, 16)
    with torch.no_grad():
        a, b = source(x, y), fresh(x, y)
    assert torch.equal(a.visual, b.visual)
    assert torch.equal(a.audio, b.audio)
    assert not torch.equal(a.visual, source.visual(x))  # the units were not silent
    short = {k: v for k, v in state.items() if "vis_adapter_blocks_p2.1." not in k}
    with pytest.raises(ValueError, match=r"holds \d units of 'vis_adapter_blocks_p2'; this encoder has \d"):
        official.load_official_encoder(fresh, short)
    torn = {k: v for k, v in state.items() if k != "module.audio_adapter_blocks_p1.0.fc.weight"}
    with pytest.raises(ValueError, match=r"^audio_adapter_blocks_p1\.0: .* no 'fc\.weight'"):
        official.load_official_encoder(fresh, torn)


# --- extraction and bad media ------------------------------------------------------------------------


def test_extraction_resumes_and_checks(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    for name in ("a", "b"):
        video(raw / f"{name}.mp4", seconds=2, sound=2, rate=32_000 if name == "a" else 16_000)
    (raw / "broken.mp4").write_bytes(b"no video")
    video(raw / "mute.mp4", seconds=2, sound=0)
    first = extract.extract(raw, out, segments=2)
    assert first["done"] == ["a.mp4", "b.mp4"]
    assert first["resampled"] == 1
    assert "has no sound" in first["failed"]["mute.mp4"]
    assert "cannot be decoded" in first["failed"]["broken.mp4"]
    assert np.load(out / "waves" / "a.npy").shape == (64_000,)
    assert len(list((out / "frames" / "b").glob("*.jpg"))) == 2
    stamp = (out / "waves" / "a.npy").stat().st_mtime_ns
    second = extract.extract(raw, out, segments=2)
    assert (second["done"], second["there"]) == ([], 2)
    assert (out / "waves" / "a.npy").stat().st_mtime_ns == stamp
    with open(out / "manifest.jsonl", "a") as file:
        file.write('{"video": "cut')  # killed while writing
    (out / "waves" / "a.npy").unlink()
    assert extract.extract(raw, out, segments=2)["done"] == ["a.mp4"]
    assert [json.loads(x)["video"] for x in (out / "manifest.jsonl").read_text().splitlines() if "}" in x] == [
        "a.mp4", "b.mp4", "a.mp4"]  # fmt: skip
    (out / "waves" / "b.npy").write_bytes(b"damaged")
    assert extract.extract(raw, out, segments=2)["done"] == []  # files exist
    assert extract.extract(raw, out, segments=2, verify=True)["done"] == ["b.mp4"]  # contents are wrong
    with pytest.raises(ValueError, match="holds no video"):
        extract.extract(tmp_path / "empty", out)
    with pytest.raises(ValueError, match="stride 0"):
        extract.extract(raw, out, stride=0)
    (raw / "a.avi").write_bytes(b"another a")
    with pytest.raises(ValueError, match=r"a\.avi and a\.mp4 would be extracted to the same folder"):
        extract.extract(raw, out)


def test_extraction_command_says_what_it_did(tmp_path, capsys):
    raw = tmp_path / "raw"
    raw.mkdir()
    video(raw / "slow.mp4", seconds=2, sound=2, rate=16_000)
    video(raw / "short.mp4", seconds=2, sound=1)
    video(raw / "still.mp4", seconds=0.5, sound=2)
    arguments = [str(raw), str(tmp_path / "out"), "--segments", "2", "--jobs", "1"]
    assert extract.main(arguments) == 1
    said = capsys.readouterr().out
    assert "1 videos extracted, 0 were there, 2 failed; 1 sounds were resampled to 32 kHz" in said
    assert "FAILED short.mp4: short.mp4: sound lasts 1." in said
    assert extract.main([*arguments, "--allow-short"]) == 0
    assert "FAILED still.mp4: still.mp4: the picture ends at 0." in said
    assert extract.manifest(tmp_path / "out")["short.mp4"]["silence_s"] > 0.9
    assert extract.manifest(tmp_path / "out")["still.mp4"]["repeated_frames"] == 2
    assert extract.main([str(tmp_path / "nothing"), str(tmp_path / "out")]) == 2
    assert "holds no video" in capsys.readouterr().err


def test_extraction_in_parallel_gives_the_same_files(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in ("a", "b"):
        video(raw / f"{name}.mp4", seconds=2, sound=2)
    found = [extract.extract(raw, tmp_path / str(jobs), segments=2, jobs=jobs)["done"] for jobs in (1, 2)]
    assert found[0] == found[1] == ["a.mp4", "b.mp4"]
    one, two = (extract.manifest(tmp_path / str(jobs)) for jobs in (1, 2))
    assert one == two  # checksums included


def test_bad_media_says_what_is_wrong(root, monkeypatch, tmp_path):
    monkeypatch.setenv("COMPANION_DATA", str(root))
    box = media.Extracted(tmp_path)
    (tmp_path / "frames" / "v").mkdir(parents=True)
    with pytest.raises(datasets.DataMissing, match="holds no frames; extract the videos first"):
        box.frames("v", 2)
    (tmp_path / "frames" / "v" / "00000001.jpg").write_bytes(b"\xff\xd8 not a picture")
    with pytest.raises(ValueError, match=r"frame 00000001\.jpg of v cannot be read"):
        box.frames("v", 1)
    with pytest.raises(ValueError, match="v has 1 frames; 2 segments need 2; extract it again"):
        box.frames("v", 2)
    for name, side in (("1", 16), ("2", 32)):
        Image.new("RGB", (side, 32)).save(tmp_path / "frames" / "v" / f"0000000{name}.jpg")
    with pytest.raises(ValueError, match=r"frames of v differ in size \(\(32, 16\) and \(32, 32\)\)"):
        box.frames("v", 2)
    (tmp_path / "waves").mkdir()
    for wave, message in (
        (np.zeros(1000, np.float32), r"holds 1000 samples; 2 seconds at 32000 Hz need 64000"),
        (np.zeros(64_000, np.int16), r"v\.npy holds int16; float32 is expected"),
        (np.full(64_000, np.nan, np.float32), r"v\.npy holds values that are not finite"),
        (np.array([{}], dtype=object), r"v\.npy cannot be read"),
    ):
        np.save(tmp_path / "waves" / "v.npy", wave)
        with pytest.raises(ValueError, match=message):
            box.waves("v", 2)
    write_wav(tmp_path / "short.wav", np.zeros(32_000))
    with pytest.raises(ValueError, match=r"sound lasts 1\.0 s of 5 s"):
        read_sound(tmp_path / "short.wav", 5)
    write_wav(tmp_path / "slow.wav", np.zeros(16_000 * 5), rate=16_000)
    with pytest.warns(UserWarning, match="sound files of 16000 Hz are resampled to 32000 Hz"):
        assert read_sound(tmp_path / "slow.wav", 5).shape == (5, 32_000)
    write_wav(tmp_path / "none.wav", np.zeros(0))
    with pytest.raises(ValueError, match=r"none\.wav: sound lasts 0\.0 s of 5 s"):
        read_sound(tmp_path / "none.wav", 5)
    with pytest.raises(ValueError, match="class 'Flute' does not occur in the val split"):
        class_missing([k for k in range(28) if k != 8], AVE_CLASSES, "val")
    copy = tmp_path / "copy"
    shutil.copytree(root / "av" / "annotations", copy / "av" / "annotations")
    for name in ("AVE", "LLP"):
        (copy / "av" / name).mkdir()
    shutil.copytree(root / "av" / "VGGSound40K", copy / "av" / "VGGSound40K")
    monkeypatch.setenv("COMPANION_DATA", str(copy))
    with h5py.File(copy / "av/annotations/AVE/val_order.h5", "w") as file:
        file["order"] = np.arange(1, 28)
    with pytest.raises(ValueError, match="class 'Church bell' does not occur in the val split"):
        media.AVE("val", FRONT)
    weak = copy / "av/annotations/LLP" / media.LLP.FILES["val"]
    weak.write_text("".join(x for x in weak.read_text().splitlines(keepends=True) if "Blender" not in x))
    with pytest.raises(ValueError, match=r"class 'Blender' does not occur in the val split \(1 of 25"):
        media.LLP("val", FRONT)
    table = copy / "av/VGGSound40K/vggsound-avel40k_labels.csv"
    with pytest.raises(ValueError, match=r"vggsound-avel40k_labels\.csv has no video of the test split"):
        media.VGGSound40K("test", FRONT)
    table.write_text("".join(x for x in table.read_text().splitlines(keepends=True) if "dog" not in x))
    with pytest.raises(ValueError, match="class 'dog' does not occur in the train split"):
        media.VGGSound40K("train", FRONT)
    monkeypatch.delenv("COMPANION_DATA")
    with pytest.raises(
        datasets.DataMissing, match=r"AVE/Annotations\.txt is needed \(.*YapengTian/AVE-ECCV18\); set COMP"
    ):
        full.run("ave")
    with pytest.raises(
        datasets.DataMissing, match=r"HTSAT_AudioSet_Saved_1\.ckpt is needed \(weights: .*HTS-Audio"
    ):
        media.find("av/HTSAT_AudioSet_Saved_1.ckpt")


def test_vggsound40k_reader(root, tmp_path):
    table = root / "av" / "VGGSound40K" / "vggsound-avel40k_labels.csv"
    items = read_vggsound40k(table, table.with_name("VggsoundAVEL40kCategories.txt"))
    assert items[1].video == "000001"
    assert items[1].labels == (2, 1) * 5
    bad = tmp_path / "bad.csv"
    bad.write_text('category,video_id,label,split\ncat,1,"[0, 1]",train\n')
    with pytest.raises(ValueError, match="line 2: label '\\[0, 1\\]' is not a list of 10"):
        read_vggsound40k(bad, table.with_name("VggsoundAVEL40kCategories.txt"))
    bad.write_text(f'category,video_id,label,split\ncat,abc,"{[0, 1] * 5}",train\n')
    with pytest.raises(ValueError, match="line 2: video_id 'abc' is not a number"):
        read_vggsound40k(bad, table.with_name("VggsoundAVEL40kCategories.txt"))
    bad.write_text("category,label,split\n")
    with pytest.raises(ValueError, match="column 'video_id' is missing"):
        read_vggsound40k(bad, table.with_name("VggsoundAVEL40kCategories.txt"))
