"""Small networks on real reactions: vocabulary, starts, ranks that count beams, and the choice of the epoch."""

import json

import pytest
import torch

from companion.reactiont5 import metrics, pretrain, selection, tasks, train, uspto
from companion.reactiont5.chemistry import Row, canonical
from companion.reactiont5.hub import ReactionT5
from companion.reactiont5.model import ReactionYield
from companion.reactiont5.prediction import Prediction


def test_the_larger_vocabulary_keeps_the_smaller_ids():
    small, large = train.tokenizer(), uspto.tokenizer()
    assert large.tokens[: len(small)] == small.tokens
    assert large.unknown("C[Si](C)(C)C.[Cl-]") == 0


def test_grown_starts_answer_like_the_stored_model_on_old_tokens():
    small, large = pretrain.small_model("reaction").eval(), uspto.start("world", "forward", 0).eval()
    ids = torch.tensor([small_ids := train.tokenizer().encode("REACTANT:CCOREAGENT: ")])
    with torch.no_grad():
        assert torch.allclose(small(ids, ids), large(ids, ids)[..., : small.config.vocab], atol=1e-5)
    assert len(small_ids) > 5
    with pytest.raises(ValueError, match="'magic'"):
        uspto.start("magic", "forward", 0)


def stored(task):
    return (pretrain.WEIGHTS / f"uspto-{task}.json").is_file()


@pytest.mark.parametrize("task", [t for t in uspto.LONGEST if stored(t)])
def test_recorded_patent_pretraining_adds_up(task):
    record = json.loads((pretrain.WEIGHTS / f"uspto-{task}.json").read_text())
    counts = record["counts"]
    assert counts["read"] == counts["leaked"] + counts["too long"] + counts["used"] + 100
    assert counts["read"] <= uspto.POOL
    exact = record["curves"]["valid_exact"]
    assert exact[-1][0] == record["steps"]
    assert exact[-1][1] > 0  # weak, but some unseen patents are answered exactly


def test_the_small_patent_model_knows_an_ether_synthesis():
    row = Row("ClCCCBr.O=Cc1ccc(O)cc1Cl", "O=Cc1ccc(OCCCCl)cc1Cl", reagent="CC#N.O=C([O-])[O-].[K+].[K+]")
    model = uspto.start("real", "forward", 0)
    found = uspto.answers(model, uspto.pairs([row], "forward").ids, "forward")[0]
    assert row.product in [canonical(text) for text in found]
    other = uspto.start("world", "forward", 0)  # RDKit's reactions alone are not enough
    assert row.product != canonical(uspto.answers(other, uspto.pairs([row], "forward").ids, "forward")[0][0])


def test_only_short_reactions_fit():
    short, long = Row("CCBr.N", "CCN"), Row("C" * 70, "CC")
    assert uspto.fits(short, "forward")
    assert not uspto.fits(long, "forward")
    assert not uspto.fits(long, "retrosynthesis")
    assert uspto.texts(short, "retrosynthesis") == ("CCN", "CCBr.N")


def test_an_unreadable_beam_uses_up_its_rank(monkeypatch):
    from companion.reactiont5.prediction import Candidate

    beams = ["C1CC", "OCC", "CCO", "CCN", "C"]
    merged = [Candidate("CCO", -1.0, 2), Candidate("CCN", -2.0, 1), Candidate("C", -3.0, 1)]
    monkeypatch.setattr(
        tasks, "predict", lambda *a, **k: [Prediction(candidates=merged, raw=beams, invalid=1)]
    )
    engine = ReactionT5(train.T5(train.small_config()), train.tokenizer(), "forward")
    found, _ = tasks.score(engine, [Row("X", "CCO")], {"beams": 5, "longest_answer": 20})
    assert found == {"top1": 0, "top2": 100, "top3": 100, "top5": 100, "usable1": 100, "invalid": 20}


def test_the_varying_part_of_a_reaction_is_known_from_the_training_part():
    known = [Row("CCBr.N", "CCN", reagent="[Pd].O"), Row("CBr.N", "CN", reagent="[Pd].CO")]
    test = [Row("CCl.N", "CN", reagent="[Pd].C#N", catalyst="")]
    assert [(r.reactant, r.reagent, r.product) for r in selection.varying(known, known)] == [
        ("CCBr", "O", ""),
        ("CBr", "CO", ""),
    ]
    (row,) = selection.varying(test, known)
    assert (row.reactant, row.reagent) == ("CCl", "C#N")
    engine = ReactionT5(ReactionYield(train.small_config(32, 1)), train.tokenizer(), "yield")
    assert engine.tokenizer.decode(tasks.yield_data(engine, [row]).ids[0]) == "CClC#N"
    assert selection.varying(test, test)[0].reactant == ""  # a single reaction has nothing that varies


def test_the_published_choice_is_never_worse_on_the_test_part_than_the_clean_one():
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    rows = [Row("C" * int(n), "CO", yield_percent=float(y)) for n, y in
            zip(torch.randint(1, 12, (48,), generator=g), torch.randint(0, 100, (48,), generator=g), strict=True)]  # fmt: skip
    engine = ReactionT5(ReactionYield(train.small_config(32, 1)), train.tokenizer(), "yield")
    p = {"start": "scratch", "text": "full", "epochs": 4, "looks": 4, "batch": 8, "lr": 3e-3, "warmup": 0, "weight_decay": 0.0,
         "beta2": 0.98, "precision": "no"}  # fmt: skip
    outcome, curves, told = selection.fit(engine, rows[:24], rows[24:32], rows[32:], p, 0)
    truth = [r.yield_percent for r in rows[32:]]
    test = [v for _, v in curves["rmse, test"]]
    assert len(test) == 4
    assert outcome["optimism"] == pytest.approx(outcome["r2_published"] - outcome["r2"])
    assert outcome["optimism"] >= 0
    assert metrics.yield_errors(truth, told["published"])["rmse"] == pytest.approx(min(test))
    clean = min(range(4), key=lambda k: curves["rmse, held out"][k][1])
    assert metrics.yield_errors(truth, told["clean"])["rmse"] == pytest.approx(test[clean])
    zero, no_curves, _ = selection.fit(engine, rows[:24], rows[24:32], rows[32:], p | {"epochs": 0}, 0)
    assert zero["r2"] == zero["r2_published"] == zero["r2_last"] == pytest.approx(outcome["r2_last"])
    assert no_curves == {}
