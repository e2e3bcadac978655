"""`predict` and its CSV command on the chapter's small model: places kept, duplicates merged, reasons given."""

import copy
import csv
import subprocess
import sys

import pytest
import torch

from companion.reactiont5 import prediction as room
from companion.reactiont5.__main__ import main
from companion.reactiont5.chemistry import canonical
from companion.reactiont5.hub import ReactionT5
from companion.reactiont5.model import ReactionYield
from companion.reactiont5.prediction import predict, predict_csv, predict_yield
from companion.reactiont5.train import small_config, tokenizer

AMIDE = ("CC(=O)O.NCC", "CC(C)N=C=NC(C)C")


@pytest.fixture(scope="module")
def engine():
    return room.load("small")


def test_the_function_is_what_the_package_gives():
    # in a process of its own: an import order decides nothing
    code = ("import companion.reactiont5.prediction; from companion.reactiont5 import predict, predict_yield; "
            "import companion.reactiont5 as r; print(predict.__name__, r.predict is predict, predict_yield.__name__)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["predict", "True", "predict_yield"]


def test_rows_keep_their_place_and_say_what_is_wrong(engine):
    found = predict(engine, [AMIDE[0], "C1CC", "", "[CH3:1][OH:2]", "C" * 600], [AMIDE[1], "", "", None, ""])
    assert [bool(f.problem) for f in found] == [False, True, True, False, True]
    assert found[1].problem.startswith("REACTANT 'C1CC' cannot be read")
    assert found[2].problem == "REACTANT is empty"
    assert found[3].notes == ["2 atom maps removed from REACTANT"]
    assert "tokens, the model takes 400" in found[4].problem
    assert all(not f.candidates for f in found if f.problem)


def test_answers_are_distinct_canonical_and_ranked(engine):
    (found,) = predict(engine, [AMIDE[0]], [AMIDE[1]], beams=8, top=8)
    assert found.candidates
    smiles = [c.smiles for c in found.candidates]
    assert smiles == [canonical(s) for s in smiles]
    assert len(set(smiles)) == len(smiles)
    assert [c.score for c in found.candidates] == sorted((c.score for c in found.candidates), reverse=True)
    assert sum(c.beams for c in found.candidates) + found.invalid == 8


def test_different_spellings_give_one_merged_answer(engine):
    tok = engine.tokenizer
    sequences = [tok.encode(s)[:-1] for s in ("OCC", "CCO", "C1CC", "C(C)O")]
    answers, invalid, raw = room._answers(engine, sequences, [-0.3, -0.1, -0.2, -0.4], 5)
    assert answers == [room.Candidate("CCO", -0.1, 3)]
    assert invalid == 1
    assert raw == ["OCC", "CCO", "C1CC", "C(C)O"]


def test_batches_and_repeats_do_not_matter(engine):
    reactants = [AMIDE[0], "OB(O)c1ccccc1.NC", AMIDE[0]]
    together = predict(engine, reactants, batch_size=8)
    alone = [predict(engine, [r], batch_size=1)[0] for r in reactants]
    assert [f.best for f in together] == [f.best for f in alone]
    assert together[0].candidates == together[2].candidates


def test_unknown_symbols_are_said(engine):
    (found,) = predict(engine, ["C[Si](C)(C)C"])
    assert found.notes == ["1 symbols are not in the model's vocabulary"]


def test_csv_in_csv_out(engine, tmp_path):
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text(
        f"name,REACTANT,REAGENT,CATALYST\na,{AMIDE[0]},{AMIDE[1]},\nb,C1CC,,\nc,CCBr.NC,[Pd],[Pd]\n"
    )
    report = predict_csv(source, target, engine, top=2)
    assert report.splitlines()[0] == "3 rows, 2 predicted, 1 not"
    assert "row 3: REACTANT 'C1CC'" in report
    with open(target, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["name"] for r in rows] == ["a", "b", "c"]
    assert rows[1]["problem"]
    assert rows[1]["0th"] == ""
    assert canonical(rows[0]["0th"])
    assert float(rows[0]["0th score"]) < 0
    assert room._conditions({"REAGENT": "[Pd].O", "CATALYST": "[Pd]", "SOLVENT": "CO"}, True) == "[Pd].O.CO"
    assert room._conditions({"REAGENT": "O", "CATALYST": "[Pd]", "SOLVENT": "CO"}, False) == "[Pd].O"


def test_command_ends_with_one_sentence(tmp_path, capsys):
    (tmp_path / "in.csv").write_text("A\n1\n")
    assert main(["predict", str(tmp_path / "in.csv"), str(tmp_path / "out.csv")]) == 2
    assert "column REACTANT is missing" in capsys.readouterr().err


@pytest.mark.parametrize(("content", "target", "options", "said"), [
    (b"REACTANT,REAGENT\nCCBr.N,\nCCBr.N,,CO\n", "b.csv", [], "row 3 has 3 cells, the header 2"),
    (b"REACTANT\n", "b.csv", [], "a.csv has no rows to predict"),
    (b"", "b.csv", [], "a.csv has no rows to predict"),
    (b"REACTANT\nCCBr.N\xe9\n", "b.csv", [], "a.csv is not UTF-8"),
    (b"REACTANT\nCCBr.N\n", "no folder/b.csv", [], "cannot be written"),
    (b"REACTANT\nCCBr.N\n", "b.csv", ["--batch-size", "-1"], "batch_size is -1"),
])  # fmt: skip
def test_what_would_spoil_the_end_is_said_first(
    tmp_path, capsys, monkeypatch, content, target, options, said
):
    (tmp_path / "a.csv").write_bytes(content)
    monkeypatch.setattr("companion.reactiont5.prediction.load", lambda *_: pytest.fail("a model was loaded"))
    assert main(["predict", str(tmp_path / "a.csv"), str(tmp_path / target), *options]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "b.csv").exists()


def test_csv_of_products_gives_their_reactants(tmp_path):
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text("PRODUCT\nCCOc1ccccc1\n[CH3:1][OH:2]\n")
    assert "2 predicted" in predict_csv(source, target, "small-retrosynthesis", beams=3, top=3)
    with open(target, newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[1]["notes"] == "2 atom maps removed from PRODUCT"
    assert (
        sum(bool(rows[0][f"{k}th"]) for k in range(3) if f"{k}th" in rows[0]) + int(rows[0]["invalid"]) <= 3
    )
    assert main(["predict", str(source), str(target)]) == 2  # a model of products needs REACTANT


def test_csv_of_yields_leaves_the_solvent_out(tmp_path):
    torch.manual_seed(0)
    model = ReactionYield(small_config()).eval()
    with torch.no_grad():
        model.fc5.bias.fill_(0.5)
        model.fc5.weight.normal_(std=5.0)
    engine = ReactionT5(model, tokenizer(), "yield")
    source, target = tmp_path / "in.csv", tmp_path / "out.csv"
    source.write_text(
        "REACTANT,REAGENT,SOLVENT,PRODUCT\nCC(=O)O.NCC,,CO,CCNC(C)=O\nCC(=O)O.NCC,,,CCNC(C)=O\nCC,,,\n"
    )
    report = predict_csv(source, target, engine)
    assert "row 4: PRODUCT is empty" in report
    with open(target, newline="") as file:
        one, two, three = csv.DictReader(file)
    assert one["prediction"] == two["prediction"] != ""
    assert three["prediction"] == ""


def test_long_files_show_their_progress_and_ask_each_input_once(engine, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(room, "beam_search", lambda m, ids, beams, most: (
        asked.append(len(ids)) or [[[5]] * beams] * len(ids), [[-1.0] * beams] * len(ids)))  # fmt: skip
    found = predict(engine, [f"C{'C' * (k % 25)}O" for k in range(100)], batch_size=2)
    assert sum(asked) == 25
    assert max(asked) == 2
    assert all(f.input and not f.problem for f in found)
    assert "25/25" in capsys.readouterr().err


def test_inputs_follow_the_model_to_its_device(engine, monkeypatch):
    from companion.reactiont5 import beam, train
    from companion.reactiont5.model import T5

    elsewhere = T5(small_config()).to("meta")
    seen = []
    monkeypatch.setattr(
        elsewhere, "encode", lambda ids, mask: seen.append((ids.device.type, mask.device.type)) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        beam.beam_search(elsewhere, torch.ones(1, 4, dtype=torch.long), 2, 5)
    regressor = ReactionYield(small_config()).to("meta")
    monkeypatch.setattr(
        regressor, "forward", lambda ids: seen.append((ids.device.type,)) or torch.zeros(len(ids))
    )
    assert train.predicted_yields(regressor, train.Yields([[3, 1]], [0.5])) == [0.0]
    assert seen == [("meta", "meta"), ("meta",)]


def test_yields_are_percent_and_clipped():
    torch.manual_seed(0)
    model = ReactionYield(small_config()).eval()
    with torch.no_grad():
        model.fc5.bias.fill_(1.7)
    found = predict_yield(ReactionT5(model, tokenizer(), "yield"), [AMIDE[0]], [AMIDE[1]], ["CCNC(C)=O"])
    assert found[0].yield_percent == 100


def test_wrong_use_is_refused(engine):
    with pytest.raises(ValueError, match="2 reactants and 1 reagents"):
        predict(engine, ["C", "C"], [""])
    with pytest.raises(ValueError, match="top is 6"):
        predict(engine, ["C"], top=6)
    with pytest.raises(ValueError, match="needs a yield model"):
        predict_yield(engine, ["C"], [""], ["C"])
    for arguments in (("CCO",), (["CCO"], "CCO")):
        with pytest.raises(ValueError, match="is one string, 'CCO'"):
            predict(engine, *arguments)
    for size in (0, -1):
        with pytest.raises(ValueError, match=f"batch_size is {size}"):
            predict(engine, ["C"], batch_size=size)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_answers(engine, kind):
    half = ReactionT5(copy.deepcopy(engine.model).to(kind), engine.tokenizer, engine.task)
    (told,), (want,) = (predict(e, [AMIDE[0]], [AMIDE[1]]) for e in (half, engine))
    assert told.raw
    assert len({c.smiles for c in told.candidates} & {c.smiles for c in want.candidates}) > 0


def test_a_broken_configuration_is_said(tmp_path):
    (tmp_path / "config.json").write_text('{"d_model": ')
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"config\.json is no JSON"):
        ReactionT5.from_pretrained(tmp_path, "forward")
