"""Stages from image and article to a rule; the pipeline that joins them; contracts of replaceable stages."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from companion.newscap import audit, world
from companion.newscap import frontend as f
from companion.newscap.data import DataError
from companion.newscap.pipeline import NewsCaptioner, spell_batch
from companion.newscap.rule import MARKERS, Entity, Frames, Rule, RuleError

ANA, LEO, CORVO = Entity("Ana Torres", "PER"), Entity("Leo Park", "PER"), Entity("Corvo", "LOC")


def test_merging_names():
    found = f.merge([Entity("Obama", "PER", 0.9), Entity("Barack Obama", "PER", 0.8), Entity("Obama", "LOC", 0.6),
                     Entity("Barack Obama", "PER", 0.95)])  # fmt: skip
    assert [(e.text, e.type, e.score) for e in found] == [
        ("Barack Obama", "PER", 0.95),
        ("Obama", "LOC", 0.6),
    ]


def test_filter_keeps_the_best_of_each_type():
    fit = {"Ana Torres": 0.9, "Leo Park": 0.8, "Corvo": 0.1}
    kept = f.keep_best([CORVO, LEO, ANA], lambda role, e: fit[e.text], most=1)
    assert [e.text for e in kept] == ["Ana Torres", "Corvo"]
    assert kept[0].score == 0.9


def test_contrastive_loss_is_cross_entropy_both_ways_and_ignores_twins():
    g = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(3, 4, generator=g), dim=-1) for _ in range(2))
    scale, target = torch.tensor(5.0), torch.arange(3)
    logits = 5 * image @ text.T
    wanted = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
    torch.testing.assert_close(f.contrastive_loss(image, text, ["a", "b", "c"], scale), wanted)
    # equal names are no negatives of each other: the twin's column leaves the sum
    twin = f.contrastive_loss(image, text, ["a", "a", "c"], scale)
    masked = logits.clone()
    masked[0, 1] = masked[1, 0] = float("-inf")
    torch.testing.assert_close(
        twin, (F.cross_entropy(masked, target) + F.cross_entropy(masked.T, target)) / 2
    )
    # hard negatives only make the image's task harder
    hard = torch.randn(3, 2, 4, generator=g)
    assert f.contrastive_loss(image, text, ["a", "b", "c"], scale, hard) > wanted
    nowhere = torch.zeros(3, 2, dtype=torch.bool)
    torch.testing.assert_close(f.contrastive_loss(image, text, ["a", "b", "c"], scale, hard, nowhere), wanted)


def test_coformer_input_is_centred_on_zeros():
    x, scale, left, top = f.coformer_input(Image.new("RGB", (200, 100), (255, 255, 255)))
    assert x.shape == (3, 700, 700)
    assert (scale, left, top) == (3.5, 0, 175)  # the longer side meets 700 before the shorter meets 512
    assert x[:, 0].abs().sum() == 0
    torch.testing.assert_close(x[0, 350, 350], torch.tensor((1 - 0.485) / 0.229))


def test_any_network_with_coformers_outputs_is_a_situation_stage():
    verbs, nouns = ["marching", "hugging"], ["blank", "n1"]

    def network(images):
        boxes = torch.zeros(1, 6, 4)
        boxes[0, 0] = torch.tensor([0.5, 0.5, 0.2, 0.2])
        sure = torch.full((1, 6, 1), -1.0)
        sure[0, 0] = 1.0
        noun = torch.zeros(1, 6, 2)
        noun[0, 0, 1] = 1.0
        return {
            "pred_verb": torch.tensor([[0.0, 4.0]]),
            "pred_noun_3": noun,
            "pred_bbox": boxes,
            "pred_bbox_conf": sure,
        }

    stage = f.CoFormerSituations(network, verbs, nouns, glosses={"n1": "woman"})
    seen = stage(Image.new("RGB", (200, 100)))
    assert (seen.verb, dict(seen.nouns)) == ("hugging", {"agent": "woman"})
    # (0.5 ± 0.1) · 700 in the padded square; back: minus padding (0, 175), over 3.5
    assert seen.boxes["agent"] == pytest.approx((80.0, 30.0, 120.0, 70.0), abs=1e-3)
    with pytest.raises(ValueError, match="scores 2 verbs but 3 verbs are listed"):
        f.CoFormerSituations(network, [*verbs, "speaking"], nouns)(Image.new("RGB", (20, 10)))


def test_coformer_from_a_checkout_and_a_checkpoint(checkout, tmp_path):
    """A checkout in CoFormer's layout (models.build_model, SWiG_jsons) and a checkpoint as its training saves it."""
    import sys

    stage = f.CoFormerSituations.from_checkout(checkout, checkout / "CoFormer_checkpoint.pth")
    seen = stage(np.zeros((20, 30, 3), np.uint8))
    assert (seen.verb, dict(seen.nouns)) == ("hugging", {"agent": "woman"})  # "oov" and "Pad" are no nouns
    assert seen.boxes == {}
    assert stage.frames.sentence("hugging") == "AGENT hugs HUGGED at PLACE"
    assert str(checkout) not in sys.path
    assert "models.net" not in sys.modules
    torch.save({"model": {"verb": torch.zeros(5)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="does not fit the network"):
        f.CoFormerSituations.from_checkout(checkout, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="give a checkout of"):
        f.CoFormerSituations.from_checkout(tmp_path / "none", tmp_path / "other.pth")


def test_the_worlds_stage_says_where_the_people_are():
    """Boxes lie on the two figures, the agent's on the side from which the arm comes."""
    from companion.newscap import reduced

    stage = reduced.situations()
    for item in world.make("test", 30, seed=11):
        seen = stage(item.image)
        action = world.BY_VERB[item.verb]
        a, o = seen.boxes[action.agent], seen.boxes[action.other]
        assert {round(a[0]), round(o[0])} == {5, 33}
        arm = item.image[27 + round(a[1]) - 14 - 2, 16 if a[0] < 20 else 31].astype(int)
        assert np.abs(arm - world.COLOURS[item.people[item.agent]]).max() < 40
        assert all(30 > box[3] - box[1] > 24 and box[2] - box[0] == 10 for box in (a, o))


def test_class_lists(tmp_path):
    (tmp_path / "train_classes.csv").write_text("n2,1\nblank,0\n")
    (tmp_path / "verb_indices.txt").write_text("educating\nputting\n")
    assert f.read_classes(tmp_path / "train_classes.csv") == ["blank", "n2"]
    assert f.read_classes(tmp_path / "verb_indices.txt") == ["educating", "putting"]


def test_crop_is_never_empty():
    assert f.crop(np.zeros((10, 10, 3)), (4.2, 4.2, 4.3, 4.3)).shape == (1, 1, 3)
    assert f.crop(Image.new("RGB", (10, 10)), (-3, 2, 5, 6)).size == (5, 4)


def test_missing_checkpoints_get_one_sentence(tmp_path):
    with pytest.raises(ValueError, match=r"token classifier .* cannot be loaded"):
        f.TokenClassifierNames(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="choose global, grounded or prompted"):
        f.ClipMatcher("x", score="local")


# --- the pipeline with small stages -------------------------------------------------------------------

NAMES = f.GazetteerNames({"Ana Torres": "PER", "Leo Park": "PER", "Corvo": "LOC", "Lanta": "LOC"})
FIT = {"Ana Torres": 0.9, "Leo Park": 0.5, "Corvo": 0.2, "Lanta": 0.4}


def news(**stages):
    parts = {
        "names": NAMES,
        "situation": lambda image: f.Situation(
            "hugging", 0.7, {"agent": "woman"}, {"agent": (0.0, 0.0, 4.0, 4.0)}
        ),
        "match": lambda image, situation, entities: lambda role, e: FIT[e.text],
        "writer": lambda image, article, rule: rule.spell(),
    } | stages
    return NewsCaptioner(**parts)


PICTURE = np.zeros((8, 8, 3), np.uint8)
ARTICLE = "In Lanta, Leo Park met Ana Torres. Corvo was far."


def test_caption_returns_the_rule_it_followed():
    got = news().caption(PICTURE, ARTICLE)
    assert str(got.rule) == "hugging(agent = Ana Torres, hugged = Leo Park, place = Lanta)"
    assert got.rule.score == 0.7
    assert got.rule.roles["agent"][0].score == 0.9
    assert got.rule.nouns == {"agent": "woman"}
    assert got.caption == got.rule.spell()


def test_designated_rules_and_edits():
    wanted = Rule("saluting", {"agent": (LEO,)})
    assert news().caption(PICTURE, ARTICLE, rule=wanted).rule == wanted
    got = news().caption(PICTURE, ARTICLE, edit={"verb": "teaching", "place": "Corvo"})
    assert str(got.rule) == "teaching(teacher = Ana Torres, student = Leo Park, place = Corvo)"
    got = news().caption(PICTURE, ARTICLE, edit=lambda r: r.edit(drop="place"))
    assert "place" not in got.rule.roles
    with pytest.raises(RuleError, match="has no role 'student'"):
        news().caption(PICTURE, ARTICLE, edit={"student": "Leo Park"})


def test_each_stage_can_be_replaced():
    assert (
        "marching" in news(situation=lambda image: f.Situation("marching")).caption(PICTURE, ARTICLE).caption
    )
    low = news(match=lambda i, s, e: lambda role, x: 1 - FIT[x.text]).caption(PICTURE, ARTICLE)
    assert str(low.rule) == "hugging(agent = Leo Park, hugged = Ana Torres, place = Corvo)"


def test_audit_says_what_supports_each_name():
    names = f.GazetteerNames(
        {"Ana Torres": "PER", "Torres": "PER", "Leo Park": "PER", "Park": "PER", "Corvo": "LOC"}
    )
    rule = Rule("hugging", {"agent": (ANA,)})
    got = news(writer=lambda i, a, r: "Torres met Leo Park at Corvo").caption(
        PICTURE, "Leo Park spoke.", rule=rule
    )
    assert [(s.text, s.by, s.role) for s in got.audit("Leo Park spoke.", names)] == [
        ("Torres", "rule", "agent"), ("Leo Park", "article", ""), ("Corvo", "nothing", "")]  # fmt: skip
    assert [s.by for s in audit.audit("Park", "Mr Parker spoke", None, names)] == [
        "nothing"
    ]  # whole words only
    every = [got.audit("Leo Park spoke.", names), audit.audit("Ana Torres", "", rule, names)]
    assert audit.shares(every) == {"rule": 50.0, "article": 25.0, "nothing": 25.0}
    assert audit.shares([[]]) == {"rule": None, "article": None, "nothing": None}


def test_articles_without_names_or_text(tmp_path):
    got = news().caption(PICTURE, "nobody is named here")
    assert got.rule.spell() == "<rule> hugging </rule>"
    assert "no named entity was found" in got.note
    with pytest.raises(DataError, match="the article is empty"):
        news().caption(PICTURE, "  ")
    (tmp_path / "x.jpg").write_text("no picture")
    with pytest.raises(DataError, match="cannot be read"):
        news().caption(tmp_path / "x.jpg", ARTICLE)


class Words:
    """A whitespace tokenizer with the few methods that `spell_batch` uses."""

    unk_token_id = 0

    def __init__(self, markers=MARKERS):
        self.known = {m: k + 1 for k, m in enumerate(markers)}

    def convert_tokens_to_ids(self, token):
        return self.known.get(token, 0)

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [self.known.setdefault(w, len(self.known) + 1) for w in text.split()]}


def test_spelling_a_batch():
    rule = Rule("hugging", {"agent": (ANA,), "place": (CORVO,)})
    out = spell_batch([rule, None], Words(), 48)
    assert out["rule_mask"].tolist() == [[1] * 12, [0] * 12]
    # marker, verb, marker, role, marker, two words of the name, marker, role, marker, name ... and </rule> is cut off?
    assert out["rule_slots"][0].tolist() == [0, 1, 0, 2, 0, 3, 3, 0, 2, 0, 3, 0]


def test_a_rule_that_is_too_long_loses_whole_roles():
    rule = Rule("hugging", {"agent": (ANA,), "place": (CORVO,)})
    out = spell_batch([rule], Words(), 9)
    assert int(out["rule_mask"].sum()) == 8  # <rule> hugging <role> agent <ent> Ana Torres </rule>
    assert out["rule_slots"][0].tolist() == [0, 1, 0, 2, 0, 3, 3, 0]
    with pytest.raises(RuleError, match="does not know the marker"):
        spell_batch([rule], Words(markers=()), 9)


# --- the news world's stages --------------------------------------------------------------------------


def test_world_stages_find_the_gold_rule_when_the_network_is_right():
    """With a network that reads the picture correctly, names and roles follow from the article."""

    class Oracle(torch.nn.Module):
        def __init__(self, item):
            super().__init__()
            self.item = item

        def forward(self, images):
            gold = f.labels([self.item])
            return {k: 20 * F.one_hot(v, f.HEADS[k]).float() for k, v in gold.items()}

    for item in world.make("test", 8):
        stage = f.WorldSituations(Oracle(item))
        captioner = NewsCaptioner(f.WorldNames(), stage, f.WorldMatcher(stage), lambda i, a, r: "")
        rule = captioner.caption(item.image, item.article).rule
        action = world.BY_VERB[item.verb]
        assert rule.verb == item.verb
        assert [e.text for r in (action.agent, action.other, "place") for e in rule.roles[r]] == [
            item.agent,
            item.other,
            item.place,
        ]
        assert set(rule.roles) <= set(Frames.imsitu().roles(item.verb))
