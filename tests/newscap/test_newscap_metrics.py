"""Caption metrics against numbers of coco-caption's own scorers, and against their definitions."""

import math

import pytest

from companion.newscap import metrics as m

# Scores of these four pairs by pycocoevalcap's scorers, punctuation removed with [^\w\s].
HYP = ["Ana Torres hugs Leo Park at Corvo on Friday.", "Leo Park teaches Mia Sato at Lanta.",
       "Omar Berg, left, greets fans.", "Ruth Costa at Velda on Friday."]  # fmt: skip
REF = ["Ana Torres hugs Leo Park at Corvo on Friday.", "Leo Park interviews Mia Sato at Lanta on Monday.",
       "Nina Silva salutes Omar Berg in Tisa on Sunday.", "Ruth Costa pushes Hugo Lindt at Velda on Friday."]  # fmt: skip


def cleaned():
    return [m.clean(h) for h in HYP], [m.clean(r) for r in REF]


def test_golden_numbers_of_coco_caption():
    h, r = cleaned()
    assert m.bleu(h, r) == pytest.approx([0.610379, 0.568562, 0.511851, 0.475791], abs=1e-6)
    assert m.rouge_l(h, r) == pytest.approx([1.0, 0.733467, 0.271715, 0.772152], abs=1e-6)
    assert m.cider_d(h, r) == pytest.approx([10.0, 4.197726, 0.986918, 4.241592], abs=1e-6)
    found = m.evaluate(HYP, REF)
    assert (found["bleu4"], found["rouge_l"], found["cider"]) == pytest.approx(
        (47.5791, 69.4333, 485.6559), abs=1e-4
    )


def test_bleu_agrees_with_sacrebleu_without_its_tokeniser():
    sacrebleu = pytest.importorskip("sacrebleu")
    h, r = cleaned()
    theirs = sacrebleu.corpus_bleu(h, [r], tokenize="none", smooth_method="none", force=True)
    assert 100 * m.bleu(h, r)[3] == pytest.approx(theirs.score, abs=1e-4)


def test_rouge_agrees_with_rouge_score_at_its_beta():
    """rouge-score weighs precision and recall alike; with beta = 1 ours is the same number."""
    rouge_score = pytest.importorskip("rouge_score.rouge_scorer")
    from rouge_score.tokenizers import Tokenizer

    class Words(Tokenizer):
        def tokenize(self, text):
            return text.split(" ")

    scorer = rouge_score.RougeScorer(["rougeL"], tokenizer=Words())
    h, r = cleaned()
    theirs = [scorer.score(b, a)["rougeL"].fmeasure for a, b in zip(h, r, strict=True)]
    assert m.rouge_l(h, r, beta=1.0) == pytest.approx(theirs, abs=1e-12)


def test_longest_common_subsequence_against_the_table():
    import random

    rng = random.Random(0)
    for _ in range(200):
        a, b = ([rng.choice("abcd") for _ in range(rng.randrange(9))] for _ in range(2))
        best = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                best[i + 1][j + 1] = best[i][j] + 1 if x == y else max(best[i][j + 1], best[i + 1][j])
        assert m.longest_common(a, b) == best[-1][-1]


def test_rouge_sees_double_spaces_and_cider_of_one_item_is_zero():
    assert m.rouge_l(["a  b"], ["a b"])[0] < 1  # a dash was removed: coco splits on each space
    assert m.cider_d(["a b c d"], ["a b c d"]) == [0.0]  # log of one document


def test_cider_depends_on_the_set():
    h, r = cleaned()
    assert m.cider_d(h[:2], r[:2])[1] != pytest.approx(m.cider_d(h, r)[1], abs=1e-3)


def test_bleu_takes_the_closest_reference_length():
    assert m.bleu(["a b c"], [["a b c x y", "a b"]], 1)[0] == pytest.approx(1.0)
    short = m.bleu(["a b"], [["a b c x"]], 1)[0]
    assert short == pytest.approx(math.exp(1 - 2), abs=1e-6)


GAZETTEER = m.Gazetteer(
    {"Ana Torres": "PERSON", "Ana": "PERSON", "Leo Park": "PERSON", "Corvo": "GPE", "Park": "GPE"}
)


def test_entities_match_without_assignment_and_with_labels():
    hyp, ref = ["Leo Park and Leo Park at Corvo", "Park"], ["Leo Park", "Leo Park"]
    found = m.entity_scores(hyp, ref, GAZETTEER, labels=["PERSON", "GPE"])
    # both mentions count; "Park" the place is not "Leo Park" the person
    assert found["entity_precision"] == pytest.approx(2 / 4)
    assert found["entity_recall"] == pytest.approx(1 / 2)
    assert found["entity_PERSON_precision"] == pytest.approx(1.0)
    assert found["entity_GPE_recall"] is None


def test_longest_name_wins_and_words_are_whole():
    assert GAZETTEER.entities("Ana Torres met Anatol at Corvo.") == [
        ("Ana Torres", "PERSON"),
        ("Corvo", "GPE"),
    ]


def test_protocols_differ_in_case_only_for_entities():
    lower = m.Gazetteer({"Ana": "PERSON", "ANA": "PERSON"})
    tell = m.entity_scores(["ANA"], ["Ana"], lower)["entity_precision"]
    vacnic = m.entity_scores(["ANA"], ["Ana"], lower, protocol="vacnic")["entity_precision"]
    assert (tell, vacnic) == (0.0, 1.0)


def test_rare_proper_nouns_are_those_that_training_never_held():
    found = m.entity_scores(["Leo Park at Corvo"], ["Leo Park"], GAZETTEER, known={"Leo": 3, "Corvo": 1})
    assert found["rare_precision"] == 1.0  # only "Park" is rare
    assert found["proper_precision"] == pytest.approx(2 / 3)


def test_meteor_is_none_without_its_jar(monkeypatch):
    monkeypatch.delenv("COMPANION_METEOR_JAR", raising=False)
    assert m.evaluate(HYP, REF)["meteor"] is None


def test_twenty_thousand_captions_in_a_minute():
    import time

    began = time.process_time()
    m.evaluate(HYP * 1000, REF * 1000, GAZETTEER)
    assert (time.process_time() - began) * 5 < 60


def test_bad_input():
    with pytest.raises(ValueError, match="1 captions for 2 references"):
        m.bleu(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="choose tell or vacnic"):
        m.evaluate(HYP, REF, protocol="coco")
    with pytest.raises(ValueError, match="cannot be loaded"):
        m.Spacy("no_such_model")
