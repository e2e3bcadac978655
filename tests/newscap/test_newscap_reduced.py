"""The reduced scale: corruption, rules with errors, edits, scores; and that the committed weights do what they should."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from companion import tables, training
from companion.newscap import cost, reduced, world
from companion.newscap.model import random_bart
from companion.newscap.rule import Rule

ITEMS = world.make("test", 40, seed=3)
GOLD = [reduced.gold_rule(item) for item in ITEMS]


def test_corruption_hides_a_third_in_spans_and_keeps_the_rest_in_order():
    tokens = list(range(100, 160))
    for seed in range(20):
        out = reduced.corrupt(tokens, np.random.default_rng(seed))
        left = [t for t in out if t >= 100]
        assert left == sorted(left)
        assert 0.3 <= 1 - len(left) / 60 <= 0.45
        assert (out[0], out[-1]) == (reduced.BOS, reduced.EOS)
        # neighbouring spans are one mask
        assert all(not (a == b == reduced.MASK) for a, b in pairwise(out))


def test_denoising_batches_depend_on_their_number_only():
    pages = [list(range(100, 130)), list(range(200, 240))]
    one, two = (reduced.denoising_batches(pages, 4, seed=0) for _ in range(2))
    two(0)
    assert torch.equal(one(5)["input_ids"], two(5)["input_ids"])
    assert not torch.equal(one(5)["labels"], one(6)["labels"])


def test_rule_tokens_say_what_each_token_is():
    tokens, slots = reduced.rule_tokens(GOLD[0])
    text = reduced.tokenizer().decode(tokens, skip_special_tokens=False)
    assert text.replace(" ", "") == GOLD[0].spell().replace(" ", "")
    words = [reduced.tokenizer().decode([t], skip_special_tokens=False).strip() for t in tokens]
    assert [w for w, s in zip(words, slots, strict=True) if s == 1] == [GOLD[0].verb]
    assert " ".join(w for w, s in zip(words, slots, strict=True) if s == 3) == " ".join(
        e.text for e in GOLD[0].entities
    )


def test_names_are_tokenised_alike_in_rule_article_and_caption():
    """Otherwise a prefix could not match its mention."""
    for item in ITEMS[:10]:
        name = reduced.ids(item.agent)
        for text in (item.article, item.caption):
            line = reduced.ids(text)
            assert any(line[k : k + len(name)] == name for k in range(len(line)))


def test_errors_hit_their_share():
    items = world.make("train", 600, pictures=False)
    rules = [reduced.gold_rule(i) for i in items]
    assert [str(r) for r in reduced.with_errors(rules, items, 0.0, 0)] == [str(r) for r in rules]
    broken = reduced.with_errors(rules, items, 0.3, 0)
    verbs = np.mean([a.verb != b.verb for a, b in zip(rules, broken, strict=True)])
    swaps = np.mean([a.entities[0] != b.entities[0] for a, b in zip(rules, broken, strict=True)])
    assert verbs == pytest.approx(0.3, abs=0.06)
    assert swaps == pytest.approx(0.3, abs=0.06)


def test_nobody_keeps_the_own_rule_when_rules_are_shuffled():
    tagged = [Rule("hugging").edit(agent=f"P{k}") for k in range(30)]
    other = reduced.other_items_rules(tagged, 0)
    assert all(a != b for a, b in zip(tagged, other, strict=True))
    assert {r.spell() for r in other} == {r.spell() for r in tagged}


def obeys(rule):
    """A perfect writer: the caption that states the rule, with the item's day."""
    agent, other = reduced.two_roles(rule.verb)
    found = {r: rule.roles[r][0].text if r in rule.roles else "Nowhere" for r in (agent, other, "place")}
    return lambda item: world.caption_of(rule.verb, found[agent], found[other], found["place"], item.day)


@pytest.mark.parametrize("kind", reduced.EDITS)
def test_edits_change_what_they_say_and_nothing_else(kind):
    for k, (rule, item) in enumerate(zip(GOLD, ITEMS, strict=True)):
        changed, wanted = reduced.edited(rule, item, kind, np.random.default_rng(k))
        before, after = world.parse(obeys(rule)(item)), world.parse(obeys(changed)(item))
        for slot in world.SLOTS:
            if slot in wanted:
                assert after[slot] != before[slot]
                assert kind == "delete" or after[slot] == wanted[slot]
            else:
                assert after[slot] == before[slot]
        names = {e.text for e in changed.entities}
        inside = names <= set(item.people) | set(item.places)
        assert inside == (kind != "outside")


def test_slot_hits_and_bootstrap():
    said = [ITEMS[0].caption, ITEMS[1].caption.replace(ITEMS[1].day, "Nonday"), "nothing"]
    hits = reduced.slot_hits(said, ITEMS[:3])
    assert hits["all"].tolist() == [True, False, False]
    assert hits["day"].tolist() == [True, False, False]
    assert hits["agent"].tolist() == [True, True, False]
    low, high = reduced.bootstrap(np.repeat([True, False], [80, 20]))
    assert low == pytest.approx(72, abs=2)
    assert high == pytest.approx(87.5, abs=2)


def test_audit_of_captions():
    item, rule = ITEMS[0], GOLD[0]
    outsider = next(n for n in world.names("train") if n not in item.people)
    bystander = list(item.people)[2]
    caption = f"{item.agent} hugs {outsider} and {bystander} at {item.place} ."
    found = reduced.supported([caption], [item], [rule])
    assert found == {"from_rule": 50.0, "from_article": 25.0, "from_nothing": 25.0}


def test_a_caption_states_its_rule_or_not():
    item, rule = ITEMS[0], GOLD[0]
    assert reduced.states(item.caption, rule)
    agent, other = reduced.two_roles(rule.verb)
    assert not reduced.states(item.caption, rule.edit(swap=(agent, other)))
    assert not reduced.states(item.caption, rule.edit(verb=next(v for v in world.BY_VERB if v != rule.verb)))
    assert not reduced.states("nothing", rule)


class Perfect:
    """A captioner that obeys its rule, or (`blind=False`) writes the truth whatever the rule says."""

    condition = reduced.Condition(rule="text")

    def __init__(self, blind, items, given):
        self.blind, self.items, self.given = blind, items, given

    def captions(self, data, beams=1):
        text = [reduced.tokenizer().decode(row.tolist(), skip_special_tokens=False) for row in data.article]
        out = []
        for line, item in zip(text, self.items, strict=True):
            rule = Rule.parse(line[line.index("<rule>") : line.index("</rule>") + len("</rule>")])
            out.append(obeys(rule)(item) if self.blind else item.caption)
        return out


@pytest.mark.parametrize("blind", [True, False])
def test_accuracy_and_obedience_part_as_rules_get_worse(blind):
    work = reduced.Study({"test": ITEMS}, {"test": GOLD}, {"test": torch.zeros(len(ITEMS), 10, 64)})
    found = reduced.worse_rules(Perfect(blind, ITEMS, GOLD), work, 0)
    assert found["right_0"] == found["obeys_0"] == found["rule_0"] == 100.0
    assert "overruled_0" not in found
    for q in ("10", "30", "50"):
        assert found[f"rule_{q}"] < 100
        assert found[f"obeys_{q}"] == (100.0 if blind else found[f"rule_{q}"])
        assert found[f"right_{q}"] == (found[f"rule_{q}"] if blind else 100.0)
        assert found[f"overruled_{q}"] == (0.0 if blind else 100.0)


def test_the_committed_situation_network_reads_the_test_pictures():
    rules = reduced.predicted_rules(ITEMS, reduced.situations())
    assert np.mean([str(a) == str(b) for a, b in zip(rules, GOLD, strict=True)]) >= 0.9


def test_the_committed_bart_restores_pages():
    """Held-out pages of training names: masked words must be far likelier than by guessing among the words."""
    bart = reduced.pretrained()
    rng = np.random.default_rng(0)
    pages = [reduced.ids(reduced.page(i, rng)) for i in world.make("valid", 64, seed=9, pictures=False)]
    with torch.no_grad():
        loss = float(bart(**reduced.denoising_batches(pages, 64, 0)(0), use_cache=False).loss)
    assert loss < 1.0  # before copying was found it was 1.9


def test_weights_round_trip(tmp_path, monkeypatch):
    monkeypatch.setitem(reduced._weights, "folder", tmp_path)
    torch.manual_seed(0)
    bart = random_bart(vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
                       decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=20)  # fmt: skip
    reduced.save_weights("x", bart)
    torch.manual_seed(1)
    again = reduced.load_weights("x", random_bart(vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1,
                                                  encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16,
                                                  decoder_ffn_dim=16, max_position_embeddings=20))  # fmt: skip
    for (n, a), (_, b) in zip(bart.state_dict().items(), again.state_dict().items(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=n)


@pytest.mark.parametrize(
    ("rule", "extra"),
    [("none", 0), ("prefix", 1), ("decoder", 1), ("cross", 1), ("constant", 1), ("text", 0)],
)
def test_every_condition_trains_a_step(rule, extra):
    condition = reduced.Condition(rule=rule, auxiliary=rule == "none")
    stage = reduced.situations()
    data = reduced.tensors(ITEMS[:6], GOLD[:6], reduced.image_vectors(ITEMS[:6], stage), condition)
    model = reduced.Captioner(reduced.pretrained(), condition)
    before = [p.clone() for p in model.core.rule.parameters()]
    config = training.FitConfig(steps=1, lr=1e-2)
    reduced.fit_captioner(model, data, config, 6, 0)
    moved = any(not torch.equal(a, b) for a, b in zip(before, model.core.rule.parameters(), strict=True))
    assert moved == bool(extra)
    assert len(model.captions(data)) == 6


FULL = dict(tables.cell("newscap", "goodnews", "rule-prefix", "all", "full").parameters)


def test_full_size_models_have_the_known_sizes():
    with torch.device("meta"):
        for name, known in (("bart-base", 139_420_416), ("bart-large", 406_291_456)):
            assert sum(p.numel() for p in random_bart(**cost.SIZES[name]).parameters()) == known
        base = cost.captioner(FULL | {"bart": "facebook/bart-base"})
        large = cost.captioner(FULL)
    assert base.layers == (3, 4, 5)
    assert large.layers == (9, 10, 11)
    # Linear(768, 512), Linear(512, 2 · 3 · 768), slots, positions, norm
    wanted = 768 * 512 + 512 + 512 * 4608 + 4608 + 4 * 768 + 48 * 768 + 2 * 768
    assert sum(p.numel() for p in base.rule.parameters()) == wanted
    # one CLIP vector -> 20 positions, and to BART-large's width
    assert [tuple(m.weight.shape) for m in large.visual.modules() if isinstance(m, torch.nn.Linear)] == [
        (7680, 768), (15360, 7680), (1024, 768)]  # fmt: skip
    with pytest.raises(ValueError, match="the dry run knows bart-base and bart-large"):
        cost.captioner(FULL | {"bart": "t5"})
    with pytest.raises(ValueError, match="rule is 'verse'; choose none, prefix, text, decoder"):
        cost.captioner(FULL | {"rule": "verse"})


@pytest.mark.parametrize("way", cost.WAYS)
def test_the_dry_run_steps_and_writes(way, monkeypatch):
    """With a small BART under the full cell's name: the whole of `dry_run`, for each way to give the rule."""
    monkeypatch.setitem(cost.SIZES, "bart-large", {
        "vocab_size": 50265, "d_model": 4, "encoder_layers": 4, "decoder_layers": 3, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 8, "decoder_ffn_dim": 8})  # fmt: skip
    monkeypatch.setattr(cost, "CLIP_WIDTH", 6)
    cost._measured.cache_clear()
    cell = FULL | {"rule": way, "beams": 2, "train_bart": way != "text"}
    report = cost.dry_run(cell, rows=2, article=12)
    several = cost.dry_run(cell, rows=2, article=12, repeats=3)
    for name in ("step seconds", "captions per second"):
        least, most = several[f"{name}, least and most"]
        assert least <= several[name] <= most
        assert f"{name}, least and most" not in report
    assert cost.dry_run(cell | {"set": "nytimes", "clip_epochs": 0}, rows=2, article=12) == report
    assert cost._measured.cache_info().misses == 2  # another set costs the same: it is not measured again
    cost._measured.cache_clear()
    assert (report["rule prefix"] > 0) == (way in ("prefix", "decoder"))
    assert report["image mapper"] == 6 * 60 + 60 + 60 * 120 + 120 + 6 * 4 + 4 + 20 * 4
    assert report["captions per second"] > 0
    assert (report["trainable"] > report["bart"]) == (way != "text")


def test_the_dry_run_is_for_the_full_scale():
    with pytest.raises(ValueError, match="the dry run is for the full scale"):
        cost.dry_run({"rule": "prefix"})
