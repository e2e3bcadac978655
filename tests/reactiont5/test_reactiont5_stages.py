"""The stages on small files: molecules, then reactions of each task, then a handful, read back by `predict`."""

import csv
import json

import pytest
import torch

from companion.reactiont5 import pretrain_molecules, stages, train_reactions, world
from companion.reactiont5.__main__ import main
from companion.reactiont5.chemistry import Row
from companion.reactiont5.hub import ReactionT5
from companion.reactiont5.model import ReactionYield, T5Config
from companion.reactiont5.prediction import load, predict, predict_yield
from companion.reactiont5.tokens import PublishedTokenizer

SIZE = T5Config(
    vocab=221, d_model=32, d_ff=48, d_kv=8, heads=4, encoder_layers=1, decoder_layers=1, head_std=0.2
)
SHORT = stages.Plan(epochs=1, lr=1e-3, batch=8, most_in=64, most_out=40)


def reactions(n=40, kind="amide coupling"):
    return [Row(r.reactant, r.product, r.reagent, yield_percent=r.yield_percent)
            for r in world.with_yields(world.reactions(kind, n, seed=1), seed=1)]  # fmt: skip


@pytest.fixture(scope="module")
def compound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compound")
    smiles = [s for group in world.building_blocks().values() for s in group[:8]]
    kept, _ = stages.canonical_molecules(smiles)
    pretrain_molecules(kept, folder, size=SIZE, plan=SHORT)
    return folder


def test_molecule_files(tmp_path):
    (tmp_path / "a.smi").write_text("OCC ethanol\nCCO again\nC1CC broken\n\nCCN\n")
    kept, report = stages.read_molecules(tmp_path / "a.smi")
    assert kept == ["CCO", "CCN"]
    assert dict(report.counts) == {"duplicate": 1, "unreadable": 1, "empty": 1}
    assert "row 3: 'C1CC', not SMILES (syntax)" in str(report)
    (tmp_path / "a.csv").write_text("name,smiles\nx,OCC\n")
    assert stages.read_molecules(tmp_path / "a.csv")[0] == ["CCO"]
    (tmp_path / "b.csv").write_text("name\nx\n")
    with pytest.raises(ValueError, match=r"b\.csv: column SMILES is missing; it has name"):
        stages.read_molecules(tmp_path / "b.csv")


def test_stage_one_is_a_compound_checkpoint_with_the_published_tokens(compound):
    engine = ReactionT5.from_pretrained(compound)
    assert engine.task == "compound"
    assert len(engine.tokenizer) == engine.model.config.vocab == 221
    report = json.loads((compound / "report.json").read_text())
    assert report["steps"] == max(1, round(report["counts"]["tokens"] / (8 * 64)))
    assert report["curves"]["valid_loss"][-1][1] > 0
    assert not (compound / "vocabulary.json").exists()


@pytest.mark.parametrize("task", ["forward", "retrosynthesis"])
def test_stage_two_and_fine_tuning_answer_with_the_reaction_tokens(compound, tmp_path, task):
    start = load(compound)
    old = start.model.lm_head.weight.detach().clone()
    engine, report = train_reactions(reactions(), tmp_path / "ord", start=start, task=task, plan=SHORT)
    assert (report.read, report.kept, report.counts["held out for validation"]) == (40, 36, 4)
    assert engine.model.config.vocab == len(engine.tokenizer) == 268
    assert (
        torch.nn.functional.cosine_similarity(engine.model.lm_head.weight[:221], old).min() > 0.9
    )  # head kept
    again = load(tmp_path / "ord")  # the folder says its task
    assert again.task == task
    few, report = train_reactions(
        reactions(kind="Suzuki"), tmp_path / "few", start=again, plan=SHORT, examples=10
    )
    assert report.kept == 10
    asked = [r.product if task == "retrosynthesis" else r.reactant for r in reactions(3)]
    assert [f.input for f in predict(load(tmp_path / "few"), asked)] == [f.input for f in predict(few, asked)]
    assert predict(load(tmp_path / "few"), asked) == predict(few, asked)


def test_yields_keep_their_switches_in_the_folder(compound, tmp_path):
    engine, _ = train_reactions(
        reactions(), tmp_path, start=load(compound), task="yield", plan=stages.replace(SHORT, most_in=150)
    )
    again = load(tmp_path)
    assert again.task == "yield"
    assert (
        again.model.mask_padding is True
    )  # ours; files of the authors come without the word and are read as published
    assert ReactionYield.from_pretrained(tmp_path).mask_padding is True
    row = reactions(1)[0]
    told = [predict_yield(e, [row.reactant], [row.reagent], [row.product], pad_to=n)[0].yield_percent
            for e in (engine, again) for n in (0, 300)]  # fmt: skip
    assert max(told) - min(told) < 1e-3
    about = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in about.items() if k != "mask_padding"}))
    assert ReactionYield.from_pretrained(tmp_path).mask_padding is False


def test_what_is_left_out_is_counted(compound, tmp_path):
    rows = [*reactions(20), Row(".".join(["[Na+]"] * 20), "CCN"), Row("CC[U]", "CCO")]
    tests = [Row(rows[0].reactant, rows[0].product, reagent="O")]  # same reaction, other conditions
    plan = stages.replace(SHORT, most_in=60)
    _, wide = train_reactions(
        rows, tmp_path / "a", start=load(compound), task="forward", plan=plan, tests=tests
    )
    assert wide.counts["known to the tests by reactants and product (left out)"] == 1
    _, narrow = train_reactions(rows, tmp_path / "b", start=load(compound), task="forward", plan=plan, tests=tests,
                                key="reaction")  # fmt: skip
    assert not any("known to the tests" in reason for reason in narrow.counts)
    assert wide.counts["longer than 60 and 40 tokens (left out)"] >= 1
    assert wide.counts["with symbols outside the vocabulary (kept)"] == 1
    with pytest.raises(ValueError, match="0 of 1 reactions are left to learn from"):
        train_reactions(
            rows[:1], tmp_path / "c", start=load(compound), task="forward", plan=plan, tests=tests
        )
    with pytest.raises(ValueError, match="'poetry'; choose forward"):
        train_reactions(rows, tmp_path / "c", start=load(compound), task="poetry")
    with pytest.raises(ValueError, match="3 molecules"):
        pretrain_molecules(["C", "CC", "CCC"], tmp_path / "d")


def test_a_few_examples_of_many_and_rows_without_a_yield_are_counted(compound, tmp_path):
    rows = [*reactions(20), Row("CCBr.N", "CCN")]
    plan = stages.replace(SHORT, most_in=120)
    _, report = train_reactions(
        rows, tmp_path / "a", start=load(compound), task="yield", plan=plan, examples=10
    )
    assert report.counts["without a yield (left out)"] == 1
    assert report.counts["held out for validation"] == 2
    assert report.counts["not used (examples)"] == 8
    assert report.read == 21 == report.kept + sum(report.counts.values())


@pytest.mark.parametrize(("name", "value"), [("epochs", 0), ("batch", 0), ("most_in", 1)])
def test_a_plan_that_trains_nothing_is_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} is {value}; it starts at"):
        stages.replace(SHORT, **{name: value})


def test_a_negative_number_of_examples_is_refused(compound, tmp_path):
    with pytest.raises(ValueError, match="examples is -3"):
        train_reactions(reactions(), tmp_path, start=load(compound), task="forward", plan=SHORT, examples=-3)


def test_a_stopped_training_goes_on_and_another_one_starts_anew(compound, tmp_path):
    plan = stages.replace(SHORT, epochs=4)
    whole, _ = train_reactions(reactions(), tmp_path / "a", start=load(compound), task="forward", plan=plan)
    for part in (5, None):
        parts, _ = train_reactions(
            reactions(), tmp_path / "b", start=load(compound), task="forward", plan=plan, stop_after=part
        )
    assert all(
        torch.equal(a, b) for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True)
    )
    other, _ = train_reactions(reactions(30), tmp_path / "b", start=load(compound), task="forward", plan=plan)
    assert not torch.equal(other.model.lm_head.weight, parts.model.lm_head.weight)


def test_an_own_vocabulary_travels_with_the_checkpoint(tmp_path):
    smiles = [f"C%1{k}CCC%1{k}[Se]{'C' * n}" for k in range(3) for n in range(1, 21)]
    made = pretrain_molecules(smiles, tmp_path / "x", size=SIZE, plan=SHORT, own_vocabulary=True)
    again = ReactionT5.from_pretrained(tmp_path / "x")
    text = "C%10CCC%10[Se]"
    assert again.tokenizer.decode(again.tokenizer.encode(text)) == text  # the published one drops "%" and "0"
    assert PublishedTokenizer("compound").unknown(text) > 0
    assert again.tokenizer.tokens == made.tokenizer.tokens
    grown = again.adapted("forward")
    assert grown.tokenizer.unknown("REACTANT:" + text + ".[Pd]REAGENT: ") == 0
    grown.save_pretrained(tmp_path / "y")
    assert ReactionT5.from_pretrained(tmp_path / "y").tokenizer.tokens == grown.tokenizer.tokens


def test_a_model_of_one_task_does_not_pass_for_another():
    forward = stages.fresh(SIZE).adapted("forward")
    assert forward.adapted("retrosynthesis").model is forward.model  # same tokens
    with pytest.raises(ValueError, match="a forward model cannot start a yield model"):
        forward.adapted("yield")
    with pytest.raises(ValueError, match="no output matrix"):
        ReactionT5(ReactionYield(SIZE), load("small").tokenizer, "yield").adapted("forward")
    assert stages.SIZES["base"] == T5Config(vocab=221)  # the published sizes


def test_the_small_patent_models_can_be_fine_tuned_and_saved(tmp_path):
    engine, _ = train_reactions(reactions(20), tmp_path, start=load("small-forward"), plan=SHORT)
    again = load(tmp_path)
    assert again.tokenizer.tokens == engine.tokenizer.tokens
    assert predict(again, ["CC(=O)O.NCC"]) == predict(engine, ["CC(=O)O.NCC"])
    with pytest.raises(ValueError, match="small-forward, small-retrosynthesis"):
        load("small-talk")


def test_from_molecules_to_answers_by_commands(tmp_path, capsys):
    smiles = [s for group in world.building_blocks().values() for s in group[:8]]
    (tmp_path / "zinc.smi").write_text("\n".join(smiles) + "\n")
    with open(tmp_path / "ord.csv", "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["REACTANT", "REAGENT", "PRODUCT"])
        out.writerows([r.reactant, r.reagent, r.product] for r in reactions())
    (tmp_path / "mine.csv").write_text("REACTANT,REAGENT\nCC(=O)O.NCC,\nC1CC,\n")
    short = ["--epochs", "1", "--batch", "8", "--size", "tiny"]
    zinc, ord_, mine = (str(tmp_path / name) for name in ("zinc.smi", "ord.csv", "mine.csv"))
    one, two, three, answers = (str(tmp_path / name) for name in ("1", "2", "3", "answers.csv"))
    assert main(["molecules", zinc, one, *short]) == 0
    assert main(["train", ord_, two, "--start", one, "--task", "forward", "--tests", ord_, *short]) == 2
    assert "0 of 40 reactions are left" in capsys.readouterr().err
    assert main(["train", ord_, two, "--start", one, "--task", "forward", *short]) == 0
    assert main(["train", ord_, three, "--start", two, "--examples", "10", *short[:4]]) == 0
    assert "40 rows read, 10 kept" in capsys.readouterr().out
    assert main(["predict", mine, answers, "--model", three, "--beams", "2", "--top", "1"]) == 0
    assert "2 rows, 1 predicted, 1 not" in capsys.readouterr().out
    assert main(["leakage", ord_, ord_]) == 0
    assert "100.00%" in capsys.readouterr().out
    assert main(["train", ord_, three, "--start", "scratch"]) == 2
    assert "task is 'compound'; choose forward" in capsys.readouterr().err
