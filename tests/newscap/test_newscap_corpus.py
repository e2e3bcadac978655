"""Training on news sets: reading below COMPANION_DATA, stored rules, ways to give the rule, control on a set."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from companion import datasets
from companion.newscap import corpus, data, frontend, reduced, world
from companion.newscap.model import RuleBart, RulePrefixConfig
from companion.newscap.pipeline import NewsCaptioner, as_hugging_face
from companion.newscap.rule import Entity, Rule

ANA, LEO, MIA = (Entity(n, "PER") for n in ("Ana Torres", "Leo Park", "Mia Sato"))
NAMES = frontend.GazetteerNames(
    {"Ana Torres": "PER", "Leo Park": "PER", "Mia Sato": "PER", "Corvo": "LOC", "Lanta": "LOC"}
)
ARTICLE = "Ana Torres in red . Leo Park in blue . Mia Sato in green . Corvo beach . Lanta hall . On Friday ."


def item(k="0", caption="Ana Torres hugs Leo Park at Corvo on Friday .", image="x.jpg"):
    return data.Article(k, image, "", ARTICLE, caption)


def tokenizer():
    return as_hugging_face(reduced.tokenizer())


def parts(way="prefix", rules=None, items=None):
    items = items or [item("0"), item("1")]
    rules = rules or [
        Rule("hugging", {"agent": (ANA,), "hugged": (LEO,), "place": (Entity("Corvo", "LOC"),)}),
        None,
    ]
    return corpus.Corpus(
        items, rules, tokenizer(), None, most_article=80, most_caption=20, most_rule=40, way=way
    )


def test_pairs_for_clip_are_names_of_caption_and_article():
    other = item("1", caption="Somebody at Lanta")
    assert corpus.clip_pairs([item(), other], NAMES) == [
        ("x.jpg", "Ana Torres", ["Mia Sato", "Lanta"]), ("x.jpg", "Leo Park", ["Mia Sato", "Lanta"]),
        ("x.jpg", "Corvo", ["Mia Sato", "Lanta"]),
        ("x.jpg", "Lanta", ["Ana Torres", "Leo Park", "Mia Sato", "Corvo"])]  # fmt: skip


def test_the_three_ways_to_give_a_rule():
    prefix, text, none = (parts(way).batch([0, 1]) for way in ("prefix", "text", "none"))
    assert prefix["rule_mask"].sum(1).tolist()[1] == 0  # an item without a rule is fully masked
    assert torch.equal(prefix["input_ids"], none["input_ids"])
    assert "rule_ids" not in text
    assert "rule_ids" not in none
    said = tokenizer().decode(text["input_ids"][0], skip_special_tokens=False)
    assert said.index("<rule>") < said.index("</rule>") < said.index("in red")
    assert (text["attention_mask"].sum(1) - none["attention_mask"].sum(1)).tolist() == [
        int(prefix["rule_mask"][0].sum()), 0]  # fmt: skip
    assert (prefix["labels"][0] != -100).sum() > 8


def test_edits_take_names_of_the_same_article():
    work = parts()
    agent = corpus.edits(work.rules, work.items, NAMES, "agent")
    assert list(agent) == [0]  # the second item has no rule
    assert (str(agent[0][0]), *agent[0][1:]) == (
        "hugging(agent = Mia Sato, hugged = Leo Park, place = Corvo)", "Mia Sato", "Ana Torres")  # fmt: skip
    assert corpus.edits(work.rules, work.items, NAMES, "place")[0][1:] == ("Lanta", "Corvo")
    with pytest.raises(ValueError, match="edit is 'verb'; choose agent or place"):
        corpus.edits(work.rules, work.items, NAMES, "verb")


def test_obedience_counts_new_names_that_come_and_old_ones_that_go(monkeypatch):
    work = parts()
    model = RuleBart(reduced.pretrained(), RulePrefixConfig(mid=8))
    said = iter((["Mia Sato hugs Leo Park"], ["Ana Torres at Lanta , far from Corvo"]))
    monkeypatch.setattr(corpus, "write_captions", lambda *a, **k: next(said))
    assert corpus.obedience(model, work, NAMES) == {
        "obey_agent": 100.0, "edited_agent": 1.0, "obey_place": 0.0, "edited_place": 1.0}  # fmt: skip
    assert corpus.obedience(model, parts("none"), NAMES) == {"obey_agent": None, "obey_place": None}
    lonely = parts(rules=[None, None])
    assert corpus.obedience(model, lonely, NAMES)["obey_agent"] is None


def test_rules_are_made_once_and_kept(tmp_path):
    asked = []

    def situation(image):
        asked.append(1)
        return frontend.Situation("hugging")

    world.write_goodnews(tmp_path, world.make("test", 2), ["test", "test"])
    items = [*data.goodnews(tmp_path), item("gone", image=str(tmp_path / "no.jpg"))]
    captioner = NewsCaptioner(
        frontend.WorldNames(), situation, lambda i, s, e: lambda r, x: 1.0, lambda *a: ""
    )
    first = corpus.made_rules(items, captioner, tmp_path / "rules" / "test.jsonl")
    again = corpus.made_rules(items, captioner, tmp_path / "rules" / "test.jsonl")
    assert first == again
    assert first[2] is None  # an image that cannot be read has no rule
    assert len(asked) == 2
    assert [r.verb for r in first[:2]] == ["hugging", "hugging"]


def test_sets_are_found_below_the_data_folder(tmp_path, monkeypatch):
    from test_newscap_data import ARTICLE as NYT
    from test_newscap_data import archive

    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    for name in ("goodnews", "nytimes", "visualnews", "own"):
        with pytest.raises(datasets.DataMissing, match="set COMPANION_DATA"):
            corpus.read_set(name, "test")
    with pytest.raises(ValueError, match="choose goodnews, nytimes, visualnews, own or newsworld"):
        corpus.read_set("bbc", "test")
    (tmp_path / "goodnews").mkdir()
    world.write_goodnews(tmp_path / "goodnews", world.make("test", 3), ["train", "test", "test"])
    assert len(corpus.read_set("goodnews", "test")) == 2
    images = tmp_path / "nytimes800k" / "images_processed"
    images.mkdir(parents=True)
    (images / "h8.jpg").write_bytes(b"x")
    dump = gzip.compress(archive([("articles", [NYT])]))
    (tmp_path / "nytimes800k" / "nytimes-2020-04-21.gz").write_bytes(dump)
    counted = []
    found = corpus.read_set("nytimes", "valid", lambda t: counted.append(t) or 1)
    assert [Path(i.image).stem for i in found] == ["h8"]  # h7 has no image file
    assert "Head line" in counted
    (tmp_path / "visualnews").mkdir()
    (tmp_path / "visualnews" / "data.json").write_text(json.dumps([]))
    assert corpus.read_set("visualnews", "train") == []
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.jpg").write_bytes(b"x")
    lines = [
        {"id": s, "image": "a.jpg", "article": "Text", "caption": "C", "split": s} for s in ("train", "test")
    ]
    (tmp_path / "own" / "items.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert [i.id for i in corpus.read_set("own", "test")] == ["test"]


def test_an_empty_split_is_refused():
    with pytest.raises(ValueError, match="this split has no items"):
        corpus.Corpus([], [], None, None, most_article=1, most_caption=1, most_rule=1)
