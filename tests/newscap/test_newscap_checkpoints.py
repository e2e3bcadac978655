"""The stages that load checkpoints, with tiny random ones: the calls fit the library, long articles are read whole."""

import numpy as np
import pytest
import torch
from PIL import Image

from companion.newscap import corpus
from companion.newscap import frontend as f
from companion.newscap.rule import MARKERS, Entity, Frames, Rule


def test_names_beyond_the_first_window_are_found(ner):
    find = f.TokenClassifierNames(ner, window=32, overlap=8)
    article = "leo met park in corvo . " * 12 + "Ana Torres met leo ."
    assert [(e.text, e.type) for e in find(article)] == [("Ana Torres", "PER")]
    assert find("leo met park .") == []


def picture(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 50, 3), dtype=np.uint8))


ENTITIES = [Entity("ana torres", "PER"), Entity("leo park", "PER"), Entity("corvo", "LOC")]


def test_clip_scores_are_cosines_of_image_or_box(clip):
    seen = f.Situation("hugging", boxes={"agent": (0.0, 0.0, 20.0, 20.0)})
    whole = f.ClipMatcher(clip)
    image = picture(0)
    score = whole(image, seen, ENTITIES)
    with torch.no_grad():
        wanted = float(whole.images([image])[0] @ whole.texts(["a photo of ana torres."])[0])
    assert score(None, ENTITIES[0]) == pytest.approx(wanted, abs=1e-5)
    assert score("agent", ENTITIES[0]) == pytest.approx(wanted, abs=1e-5)
    grounded = f.ClipMatcher(clip, score="grounded")(image, seen, ENTITIES)
    alone = whole(f.crop(image, seen.boxes["agent"]), seen, ENTITIES)
    assert grounded("agent", ENTITIES[0]) == pytest.approx(alone(None, ENTITIES[0]), abs=1e-5)
    assert grounded("hugged", ENTITIES[0]) == pytest.approx(wanted, abs=1e-5)  # no box: the whole image
    assert abs(f.ClipMatcher(clip, score="prompted")(image, seen, ENTITIES)("agent", ENTITIES[0])) <= 1 + 1e-5


def test_fine_tuning_pairs_pictures_with_their_names(clip):
    matcher = f.ClipMatcher(clip)
    pairs = [(picture(k), name, ["corvo"]) for k, name in enumerate(("ana", "leo", "park", "torres"))]
    losses = matcher.fit(pairs, epochs=30, batch_size=4, lr=3e-3, weight_decay=0.0)
    assert losses[-1] < 0.5 * losses[0]
    seen = f.Situation("hugging")
    score = matcher(pairs[0][0], seen, [Entity(n, "PER") for n in ("ana", "leo", "park", "torres")])
    assert max(("ana", "leo", "park", "torres"), key=lambda n: score(None, Entity(n, "PER"))) == "ana"
    with pytest.raises(ValueError, match="no \\(image, name"):
        matcher.fit([])


def test_fine_tuning_opens_pictures_when_their_turn_comes(clip, tmp_path):
    pairs = []
    for k, (name, others) in enumerate((("ana", []), ("leo", ["park", "corvo"]))):
        picture(k).save(tmp_path / f"{k}.png")
        pairs.append((str(tmp_path / f"{k}.png"), name, others))
    assert len(f.ClipMatcher(clip).fit(pairs, epochs=2, batch_size=2, lr=1e-3)) == 2
    (tmp_path / "1.png").write_text("no picture")
    with pytest.raises(ValueError, match="cannot be read"):
        f.ClipMatcher(clip).fit(pairs, epochs=1, batch_size=2)


def test_prompted_scores_say_the_roles_definition(clip):
    frames = Frames({"tug": ("a",)}, definitions={"tug": {"a": "z"}})
    seen, image, ana = f.Situation("tug"), picture(0), Entity("ana", "PER")
    plain = f.ClipMatcher(clip, score="prompted")
    told = f.ClipMatcher(clip, score="prompted", frames=frames)
    with torch.no_grad():
        wanted = float(told.images([image])[0] @ told.texts(["ana as the a of tug: z"])[0])
    assert told(image, seen, [ana])("a", ana) == pytest.approx(wanted, abs=1e-5)
    assert plain(image, seen, [ana])("a", ana) != pytest.approx(wanted, abs=1e-5)


@pytest.fixture(scope="module")
def captioner(ner, clip, tmp_path_factory):
    """A whole captioner on disk: the tiny BART and tokenizer of the news world, with the tiny NER and CLIP."""
    from companion.newscap import pipeline, reduced
    from companion.newscap.model import RuleBart, RulePrefixConfig

    folder = tmp_path_factory.mktemp("captioner")
    tokenizer = pipeline.as_hugging_face(reduced.tokenizer())
    torch.manual_seed(0)
    config = RulePrefixConfig(image_width=16, image_tokens=3, mapper="clipcap", mid=8)
    pipeline.save_pretrained(folder, RuleBart(reduced.pretrained(), config), tokenizer, names=ner, clip=clip, num_beams=2,
                             max_length=12)  # fmt: skip
    return folder


def test_an_image_and_an_article_in_one_command(captioner, tmp_path, capsys):
    from companion.newscap.__main__ import main

    picture(2).save(tmp_path / "photo.png")
    (tmp_path / "article.txt").write_text("Ana Torres met leo in corvo .")
    call = [str(captioner), str(tmp_path / "photo.png"), str(tmp_path / "article.txt")]
    assert main(call) == 0
    _, rule, *_ = capsys.readouterr().out.splitlines()
    made = Rule.from_json(rule)
    assert [e.text for e in made.entities if e.type == "PER"] in ([], ["Ana Torres"])
    (tmp_path / "rule.json").write_text(Rule("hugging").edit(agent="Ana Torres").to_json())
    assert main([*call, "--rule", str(tmp_path / "rule.json"), "--edit", "place=corvo"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert str(Rule.from_json(out[1])) == "hugging(agent = Ana Torres, place = corvo)"
    for wrong, message in (
        (["--edit", "student=Leo"], "has no role 'student'"),
        (["--edit", "verb=huging"], "did you mean"),
    ):
        assert main([*call, "--rule", str(tmp_path / "rule.json"), *wrong]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "article.txt").write_text(" ")
    assert main(call) == 2
    assert "the article is empty" in capsys.readouterr().err
    assert main([str(tmp_path), *call[1:]]) == 2
    assert "holds no stages.json" in capsys.readouterr().err


def test_a_fine_tuned_clip_is_stored_with_the_captioner_and_moves_with_it(captioner, ner, clip, tmp_path):
    from companion.newscap import pipeline, reduced
    from companion.newscap.model import RuleBart, RulePrefixConfig

    tuned = f.ClipMatcher(clip)
    with torch.no_grad():
        tuned.model.logit_scale.fill_(1.5)
    model = RuleBart(reduced.pretrained(), RulePrefixConfig(mid=8))
    tokenizer = pipeline.as_hugging_face(reduced.tokenizer())
    pipeline.save_pretrained(tmp_path / "here", model, tokenizer, names=ner, clip=tuned, max_length=5)
    (tmp_path / "here").rename(tmp_path / "there")
    situation = lambda image: f.Situation("marching")  # noqa: E731
    again = pipeline.NewsCaptioner.from_pretrained(tmp_path / "there", situation=situation)
    assert float(again.match.model.logit_scale) == 1.5


def test_an_article_longer_than_bart_takes_is_cut_with_a_warning(captioner, ner):
    from companion.newscap.pipeline import NewsCaptioner

    news = NewsCaptioner.from_pretrained(captioner, situation=lambda image: f.Situation("marching"))
    with pytest.warns(UserWarning, match=r"the article has \d+ tokens; the first 125 are read"):
        got = news.caption(picture(0), "Ana Torres met leo in corvo . " * 40)
    assert str(got.rule) == "marching(agent = Ana Torres)"


def test_zero_shot_situations_are_a_distribution_over_frames(clip):
    frames = Frames({v: Frames.imsitu().roles(v) for v in ("hugging", "marching", "speaking")})
    seen = f.ClipSituations(f.ClipMatcher(clip), frames)(picture(1))
    assert set(seen.verbs) == set(frames.verbs)
    assert sum(seen.verbs.values()) == pytest.approx(1.0, abs=1e-5)
    assert seen.verb == max(seen.verbs, key=seen.verbs.get)
    assert corpus.clip_vectors(f.ClipMatcher(clip))([picture(0), picture(1)]).shape == (2, 1, 16)


def test_markers_get_rows_in_the_token_table(clip):
    from transformers import CLIPTokenizerFast

    from companion.newscap.model import random_bart

    tokenizer = CLIPTokenizerFast.from_pretrained(clip)
    bart = random_bart(vocab_size=len(tokenizer), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                       decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=20)  # fmt: skip
    before = bart.get_input_embeddings().weight[: len(tokenizer)].clone()
    size = len(tokenizer)
    corpus.add_markers(tokenizer, bart)
    assert bart.get_input_embeddings().num_embeddings == size + len(MARKERS)
    torch.testing.assert_close(bart.get_input_embeddings().weight[:size], before)
    assert len({tokenizer.convert_tokens_to_ids(m) for m in MARKERS}) == len(MARKERS)
