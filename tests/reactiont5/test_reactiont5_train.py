"""Batches, stored weights, the recorded pre-training, and the steps from a table's parameters to a score."""

import json

import pytest
import torch

from companion import tables, training
from companion.reactiont5 import cost, pretrain, tasks, train, world
from companion.reactiont5.metrics import accuracy
from companion.reactiont5.model import PAD, T5, ReactionYield


def test_an_epoch_shows_every_example_once_and_sorts_by_length():
    lengths = torch.randint(5, 60, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    index = train.bucketed(lengths, 20, seed=1)
    epoch = [index(k) for k in range(10)]
    assert sorted(torch.cat(epoch).tolist()) == list(range(200))
    spread = [max(lengths[i] for i in b.tolist()) - min(lengths[i] for i in b.tolist()) for b in epoch]
    assert sum(spread) / 10 < 20  # shuffled batches would spread over almost all 55
    assert not torch.equal(index(0), index(10))
    with pytest.raises(ValueError, match="batch size 300"):
        train.bucketed(lengths, 300, seed=1)


def test_masked_text_never_pads_away_targets():
    tok = train.tokenizer()
    batch = train.masked(["CCO", "c1ccccc1", "CC(=O)O"], tok, 0, 4)(3)
    assert (batch["ids"] >= tok.first_sentinel).any(1).all()
    assert batch["targets"].ne(PAD).sum(1).min() >= 3
    again = train.masked(["CCO", "c1ccccc1", "CC(=O)O"], tok, 0, 4)(3)
    assert torch.equal(batch["ids"], again["ids"])


def test_stored_weights_are_close_and_small(tmp_path):
    torch.manual_seed(0)
    model = T5(train.small_config())
    pretrain.store(model, tmp_path / "x.safetensors")
    back = pretrain._read(tmp_path / "x.safetensors")
    assert back.keys() == model.state_dict().keys()
    for name, w in model.state_dict().items():
        assert (w - back[name]).abs().max() <= w.abs().max() / 127
    assert sum(f.stat().st_size for f in pretrain.WEIGHTS.glob("*.safetensors")) < 3 * 2**20


def test_recorded_pretraining_is_of_this_world():
    record = json.loads((pretrain.WEIGHTS / "record.json").read_text())
    known, held_back = train.seen_reactions()
    assert (record["reactions"], record["validation"]) == (len(known), len(held_back))
    assert {r.kind for r in known} == set(world.SEEN)
    assert not {(r.kind, r.product) for r in known} & {(r.kind, r.product) for r in held_back}
    assert not {(r.reactant, r.product) for r in known} & {(r.reactant, r.product) for r in held_back}
    assert set(record["per_type"]) == set(world.TYPES)


def test_reaction_start_knows_seen_types_and_molecule_start_does_not():
    _, held_back = train.seen_reactions()
    some = held_back[::3]
    ids, want = train.forward_pairs(some, train.tokenizer()).ids, [r.product for r in some]
    top = {s: accuracy(want, pretrain.answers(pretrain.small_model(s), ids, 1), tops=(1,)).top[1]
           for s in ("reaction", "compound")}  # fmt: skip
    assert top["reaction"] > 0.35
    assert top["compound"] == 0


def test_starts_of_the_yield_model_share_the_backbone_of_their_stage():
    made = pretrain.small_yield_model("compound")
    assert torch.equal(made.model.shared.weight, pretrain.small_model("compound").shared.weight)
    assert not torch.equal(
        made.model.shared.weight, pretrain.small_yield_model("scratch").model.shared.weight
    )
    assert pretrain.small_yield_model("reaction").fc1.weight.std() < 0.02  # the head starts anew
    with pytest.raises(ValueError, match="'magic'"):
        pretrain.small_yield_model("magic")


def test_split_never_tests_on_what_it_learns_from_and_is_the_same_for_every_row():
    p = tables.cell("reactiont5", "few-shot-world", "reaction", "all").parameters
    split = tasks.split(p, 3)
    assert len(split.train) == 300
    assert len(split.test) == 100
    assert not {(r.reactant, r.reagent) for r in split.train} & {(r.reactant, r.reagent) for r in split.test}
    other = tables.cell("reactiont5", "few-shot-world", "scratch", "all").parameters
    assert tasks.split(other, 3) == split
    assert {k: v for k, v in p.items() if k != "start"} == {k: v for k, v in other.items() if k != "start"}
    with pytest.raises(ValueError, match="'moon'"):
        tasks.split({"data": "moon"}, 0)


def test_few_steps_of_fine_tuning_lower_the_loss():
    p = dict(tables.cell("reactiont5", "few-shot-world", "reaction", "all").parameters)
    rows = tasks.split(p | {"tests": 8, "pool": 16}, 0).train
    fitted = tasks.fine_tune(tasks.start(p, 0), rows, p | {"steps": 8}, 0)
    loss = [v for _, v in fitted.curves["loss"]]
    assert loss[-1] < 0.7 * loss[0]


def test_mean_baseline_has_no_skill():
    p = dict(tables.cell("reactiont5", "yield-world", "mean", "all").parameters)
    split = tasks.split(p | {"tests": 30, "pool": 30}, 0)
    told = tasks.baseline_yields(p, split.train, split.test, 0)
    assert len(set(told)) == 1
    assert told[0] == pytest.approx(sum(r.yield_percent for r in split.train) / 30)


def test_compound_start_gets_the_reaction_tokens(tmp_path):
    from companion.reactiont5.hub import ReactionT5
    from companion.reactiont5.model import T5Config
    from companion.reactiont5.tokens import PublishedTokenizer

    small = T5Config(vocab=221, d_model=16, d_ff=16, d_kv=8, heads=2, encoder_layers=1, decoder_layers=1)
    folder = tmp_path / "CompoundT5"
    ReactionT5(T5(small), PublishedTokenizer("compound"), "compound").save_pretrained(folder)
    p = {"task": "forward", "data": "uspto-mit", "start": str(folder), "as_published": True}
    engine = tasks.start(p, 0)
    assert len(engine.tokenizer) == engine.model.config.vocab == 268
    assert engine.tokenizer.unknown("CC.O") == 0
    regress = tasks.yield_start(p, 0)
    assert isinstance(regress.model, ReactionYield)
    assert regress.model.mask_padding is False
    assert regress.model.model.config.vocab == 269


def test_full_size_models_of_the_cost_report():
    assert cost.full_size("forward").vocab == 268
    assert cost.full_size("yield").vocab == 269
    with pytest.raises(ValueError, match="'poetry'"):
        cost.dry_run({"task": "poetry", "batch": 1})


def test_steps_are_epochs_over_the_examples():
    p = {"steps": 0, "epochs": 20, "batch": 2}
    assert tasks.steps_for(p, 10) == 100
    assert tasks.steps_for(p | {"steps": 7}, 10) == 7
    assert training.FitConfig(steps=1).clip == 1.0  # transformers' default, as in the official runs
