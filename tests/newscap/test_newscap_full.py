"""The full scale is executable: the cells of the full tables, as they stand in the TOML, run from files to record.

Only the things that nobody may redistribute are replaced: tiny checkpoints lie under the published names, and the news
world stands where GoodNews and NYTimes800k would. The notebook's code is the one that is published.
"""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from companion import datasets, records, tables
from companion.newscap import corpus, data, frontend, metrics, reduced, world
from companion.newscap import pipeline as pipe
from companion.newscap.model import random_bart
from companion.newscap.rule import Entity, Rule

SPACY = metrics.Spacy
NOTEBOOK = records.checkout() / "notebooks" / "newscap" / "news.py"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory, ner, clip, checkout):
    """A working folder in which the hub names of the full tables are folders with tiny checkpoints."""
    folder = tmp_path_factory.mktemp("shelf")
    tokenizer = pipe.as_hugging_face(reduced.tokenizer())
    for name, layers in (("bart-base", 3), ("bart-large", 4)):
        where = folder / "facebook" / name
        torch.manual_seed(0)
        random_bart(vocab_size=len(tokenizer), d_model=8, encoder_layers=layers, decoder_layers=layers, encoder_ffn_dim=8,
                    encoder_attention_heads=2, decoder_attention_heads=2, decoder_ffn_dim=8).save_pretrained(where)  # fmt: skip
        tokenizer.save_pretrained(where)
    for name, target in (("openai/clip-vit-base-patch32", clip), ("openai/clip-vit-base-patch16", clip),
                         ("Davlan/distilbert-base-multilingual-cased-ner-hrl", ner)):  # fmt: skip
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(target)
    return folder


@pytest.fixture
def at_work(shelf, checkout, tmp_path, monkeypatch):
    """Work in the shelf, with GoodNews (the news world in its format, one image broken) and CoFormer in COMPANION_DATA."""
    monkeypatch.chdir(shelf)
    monkeypatch.delenv("COMPANION_METEOR_JAR", raising=False)
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    monkeypatch.setattr(metrics, "Spacy", lambda model: reduced.gazetteer())
    (tmp_path / "coformer").symlink_to(checkout)
    (tmp_path / "goodnews").mkdir()
    items = world.make("train", 36, 0) + world.make("test", 5, 0)
    world.write_goodnews(tmp_path / "goodnews", items, ["train"] * 36 + ["test"] * 5)
    (tmp_path / "goodnews" / "images" / f"{items[-1].id}_0.jpg").write_text("no picture")
    return tmp_path


def execute(**parameters):
    """The notebook's cells in one go, `parameters` set after its parameters cell. Returns what they defined."""
    head, cell, tail = NOTEBOOK.read_text(encoding="utf-8").partition("# %%\nimport tempfile\n")
    assert cell
    text = "\n".join([head, *(f"{k} = {v!r}" for k, v in parameters.items()), cell, tail])
    space = {"__name__": "notebook"}
    exec(compile(text, str(NOTEBOOK), "exec"), space)
    return space


@pytest.mark.parametrize(
    ("table", "row", "column"),
    [("goodnews", "rule-prefix", "all"), ("ablation", "zero-shot", "goodnews-base")],
)
def test_a_full_cell_runs_from_files_to_record(at_work, table, row, column):
    cell = tables.cell("newscap", table, row, column, "full")
    done = execute(table=table, row=row, column=column, scale="full", record_dir=str(at_work / "records"))
    p = cell.parameters
    steps = p["epochs"] * (36 // p["batch"])
    assert done["fitted"].step == steps
    record = json.loads(done["path"].read_text())
    assert record["parameters"] == json.loads(json.dumps(dict(p)))
    assert record["metrics"]["meteor"] is None  # no jar here
    assert 0 <= record["metrics"]["cider"] <= 1000
    # 5 test items, of which one has no readable image
    assert len(done["items"]["test"]) == len(done["said"]) == 4
    assert done["captioner"].layers == ((1, 2, 3) if "base" not in column else (0, 1, 2))  # the last three
    verbs = {r.verb for r in done["rules"]["test"]}
    assert (verbs == {"hugging"}) == (p["situation"] == "coformer")
    # what the command line needs is left beside the record
    folder = done["where"]
    stages = json.loads((folder / "stages.json").read_text())
    assert (stages["situation"], stages["clip"]) == (p["situation"], "clip")
    if p["situation"] == "coformer":
        with pytest.raises(ValueError, match=r"learned from CoFormer's situations; give situation="):
            pipe.NewsCaptioner.from_pretrained(folder)
        stage = corpus.coformer(at_work / "coformer")
        got = pipe.NewsCaptioner.from_pretrained(folder, situation=stage)
    else:
        got = pipe.NewsCaptioner.from_pretrained(folder)
    item = done["items"]["test"][0]
    assert str(got.caption(item.image, item.context).rule) == str(done["rules"]["test"][0])


def test_what_is_missing_is_said_before_anything_is_computed(at_work, monkeypatch):
    (at_work / "coformer").unlink()
    with pytest.raises(datasets.DataMissing, match=r"coformer/CoFormer_checkpoint\.pth is needed"):
        execute(table="goodnews", row="rule-prefix", column="all", scale="full")
    for name in ("captioning_dataset.json", "img_splits.json"):
        (at_work / "goodnews" / name).unlink()
    with pytest.raises(datasets.DataMissing, match=r"goodnews/captioning_dataset\.json is needed"):
        execute(table="ablation", row="zero-shot", column="goodnews", scale="full")
    monkeypatch.setattr(metrics, "Spacy", SPACY)
    with pytest.raises(ValueError, match="spaCy model 'en_core_web_lg' cannot be loaded"):
        execute(table="ablation", row="zero-shot", column="goodnews", scale="full")


def test_a_meteor_jar_that_does_not_run_is_found_before_the_training(tmp_path, monkeypatch):
    monkeypatch.delenv("COMPANION_METEOR_JAR", raising=False)
    assert not corpus.need_meteor()
    (tmp_path / "java").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "java").chmod(0o755)
    (tmp_path / "meteor-1.5.jar").write_bytes(b"")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("COMPANION_METEOR_JAR", str(tmp_path / "meteor-1.5.jar"))
    with pytest.raises(ValueError, match="does not run; it needs its folder data beside it and Java"):
        corpus.need_meteor()


def test_every_full_cell_has_a_model_that_can_be_built():
    """Layers, ways and modes of all rows fit both sizes (on the meta device: nothing is allocated)."""
    from companion.newscap import cost

    seen = set()
    for name in ("goodnews", "nytimes", "ablation"):
        table = tables.table("newscap", name)
        for cell in table.cells("full"):
            p = dict(cell.parameters)
            key = tuple(p[k] for k in ("bart", "layers", "rule", "mode"))
            if key in seen:
                continue
            seen.add(key)
            with torch.device("meta"):
                core = cost.captioner(p | {"mid": 4, "image_tokens": 1})
            if p["rule"] in ("prefix", "decoder"):
                assert len(core.layers) == {"last1": 1, "last2": 2, "last3": 3, "first3": 3, "last6": 6}.get(
                    p["layers"], 12 if "large" in p["bart"] else 6)  # fmt: skip
            else:
                assert core.layers == ()
    assert {key[2] for key in seen} == {"prefix", "none", "text", "decoder"}


# --- what is made once ---------------------------------------------------------------------------------


def test_names_are_asked_for_once_and_survive_a_stop(tmp_path):
    asked = []

    def names(text):
        asked.append(text)
        return [Entity("Zoë Ünal", "PER", 0.75)] if "Zoë" in text else []

    store = tmp_path / "deep" / "names.jsonl"
    find = corpus.remembered(names, store)
    assert find("Zoë Ünal spoke") == find("Zoë Ünal spoke") == [Entity("Zoë Ünal", "PER", 0.75)]
    assert find("nobody") == []
    with store.open("ab") as file:
        file.write(b'{"text": "half a li')  # stopped in the middle of a line
    again = corpus.remembered(names, store)
    assert again("Zoë Ünal spoke") == [Entity("Zoë Ünal", "PER", 0.75)]
    assert again("someone else") == []
    assert asked == ["Zoë Ünal spoke", "nobody", "someone else"]
    assert [len(json.loads(line)["names"]) for line in store.read_text().splitlines()] == [1, 0, 0]


def test_rules_go_on_after_a_line_that_was_cut(tmp_path):
    world.write_goodnews(tmp_path, world.make("test", 2), ["test", "test"])
    items = list(data.goodnews(tmp_path))
    captioner = pipe.NewsCaptioner(frontend.WorldNames(), lambda i: frontend.Situation("hugging"),
                                   lambda i, s, e: lambda r, x: 1.0, lambda *a: "")  # fmt: skip
    store = tmp_path / "rules.jsonl"
    first = corpus.made_rules(items, captioner, store)
    content = store.read_text()
    store.write_text(content[:-20])
    assert corpus.made_rules(items, captioner, store) == first
    assert store.read_text() == content


def test_image_vectors_are_made_once_and_unreadable_images_are_left_out(tmp_path, capsys):
    world.write_goodnews(tmp_path, world.make("test", 5), ["test"] * 5)
    items = list(data.goodnews(tmp_path))
    for k in (0, 1, 3):
        Path(items[k].image).write_text("no picture")
    calls = []

    def vectors(pictures):
        calls.append(len(pictures))
        return torch.stack([torch.full((2, 3), float(np.asarray(x).mean())) for x in pictures])

    kept, table = corpus.with_vectors(items, vectors, tmp_path / "v", size=2)
    assert [i.id for i in kept] == [items[2].id, items[4].id]
    assert table.shape == (2, 2, 3)
    means = [float(np.asarray(data.open_image(i.image)).mean()) for i in kept]
    np.testing.assert_allclose(table[:, 0, 0], means, rtol=1e-3)
    assert calls == [1, 1]  # the first block has no readable image, the others one each
    assert "3 images cannot be read" in capsys.readouterr().out
    again, same = corpus.with_vectors(items, vectors, tmp_path / "v", size=2)
    assert calls == [1, 1]
    assert again == kept
    np.testing.assert_array_equal(table, same)
    work = corpus.Corpus(kept, [None, None], pipe.as_hugging_face(reduced.tokenizer()), table, most_article=80,
                         most_caption=20, most_rule=9)  # fmt: skip
    np.testing.assert_allclose(work.batch([1])["image"], table[1:2].astype(np.float32))
    np.testing.assert_allclose(work.part([1], [None]).batch([0])["image"], table[1:2].astype(np.float32))


def test_clip_is_fine_tuned_once(clip, tmp_path):
    from PIL import Image

    asked = []

    def pairs():
        asked.append(1)
        return [(Image.new("RGB", (40, 40), c), n, []) for c, n in (("red", "ana"), ("blue", "leo"))]

    first = corpus.tuned_clip(clip, pairs, tmp_path / "clip", epochs=2)
    again = corpus.tuned_clip(clip, pairs, tmp_path / "clip", epochs=2)
    assert asked == [1]
    plain = corpus.tuned_clip(clip, pairs, tmp_path / "other", epochs=0)
    assert asked == [1]
    texts = [m.texts(["ana"]) for m in (first, again, plain)]
    torch.testing.assert_close(texts[0], texts[1])
    assert not torch.allclose(texts[0], texts[2], atol=1e-7)


# --- one image, one article ----------------------------------------------------------------------------


def test_the_command_runs_for_everybody_with_a_captioner_of_the_news_world(tmp_path, capsys):
    from PIL import Image

    from companion.newscap.__main__ import main
    from companion.newscap.model import RuleBart, RulePrefixConfig

    item = world.make("test", 1)[0]
    Image.fromarray(item.image).save(tmp_path / "photo.png")
    (tmp_path / "article.txt").write_text(item.article)
    torch.manual_seed(0)
    model = RuleBart(reduced.pretrained(), RulePrefixConfig(image_width=64, image_tokens=10, mid=8))
    pipe.save_pretrained(tmp_path / "captioner", model, pipe.as_hugging_face(reduced.tokenizer()), names=pipe.WORLD,
                         clip=pipe.WORLD, num_beams=2, max_length=12)  # fmt: skip
    call = [str(tmp_path / "captioner"), str(tmp_path / "photo.png"), str(tmp_path / "article.txt")]
    assert main([*call, "--draw", str(tmp_path / "rule.png")]) == 0
    caption, told, *supports = capsys.readouterr().out.splitlines()
    rule = Rule.from_json(told)
    # a line of the audit for every person and place of the caption
    assert len(supports) == len(reduced.find_names(caption)) > 0
    assert all(re.fullmatch(r"  .+ \((PER|LOC)\): (rule, \w+|article|nothing)", line) for line in supports)
    assert str(rule) == str(reduced.predicted_rules([item], reduced.situations())[0])
    assert rule.boxes
    drawn = Image.open(tmp_path / "rule.png").convert("RGB")
    assert len(drawn.getcolors(maxcolors=10**6)) > 100
    Image.new("RGB", (640, 480)).save(tmp_path / "photo.png")
    assert main(call) == 2
    assert "knows the news world only, whose pictures have 48 x 48 pixels" in capsys.readouterr().err
    assert main([*call, "--coformer", str(tmp_path / "no")]) == 2
    assert "give a checkout of github.com/jhcho99/CoFormer" in capsys.readouterr().err


METEOR = os.environ.get("COMPANION_METEOR_JAR", "")


@pytest.mark.skipif(not METEOR, reason="needs METEOR 1.5's jar (COMPANION_METEOR_JAR) and Java")
def test_meteor_of_the_real_jar():
    """The golden value of pycocoevalcap 1.2's jar, from its own scorer."""
    from test_newscap_metrics import HYP, REF

    assert metrics.evaluate(HYP, REF)["meteor"] == pytest.approx(37.0415, abs=1e-3)
