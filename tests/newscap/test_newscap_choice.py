"""Choosing among well-formed captions: the list is complete and fair, the score is the model's own likelihood."""

from types import SimpleNamespace

import pytest
import torch

from companion import tables
from companion.newscap import choice, reduced, world

ITEMS = world.make("test", 60, seed=3)
GOLD = [reduced.gold_rule(item) for item in ITEMS]
OPTIONS = [choice.candidates(item.article) for item in ITEMS]
IMAGE = torch.zeros(len(ITEMS), 10, 64)


def data(condition, items=ITEMS, image=IMAGE):
    return reduced.tensors(items, GOLD[: len(items)], image[: len(items)], condition)


def test_the_list_is_complete_and_holds_the_truth():
    for item, options in zip(ITEMS, OPTIONS, strict=True):
        assert item.caption in options
        assert len(options) == len(set(options)) == 8 * 6 * 2
        said = [world.parse(c) for c in options]
        assert {s["verb"] for s in said} == set(world.BY_VERB)
        assert {s["agent"] for s in said} == {s["other"] for s in said} == set(item.people)
        assert {s["place"] for s in said} == set(item.places)
        assert {s["day"] for s in said} == {item.day}
        assert all(s["agent"] != s["other"] for s in said)


def test_the_order_of_the_list_says_nothing():
    """A model that finds all captions alike takes the first; the world lists the people of the photograph first."""
    given = [choice.of_verb(o, i.verb) for o, i in zip(OPTIONS, ITEMS, strict=True)]
    said = choice.choose(given, [torch.zeros(len(o)) for o in given])
    # 60 items at 1 in 12: more than 15 right would happen once in ten thousand times
    assert reduced.slot_hits(said, ITEMS)["all"].sum() <= 15


@pytest.mark.parametrize(
    "article",
    [
        "Ana Torres in red . Corvo beach . On Friday .",
        "Ana Torres in red . Leo Park in blue . On Friday .",
        "Ana Torres in red . Leo Park in blue . Corvo beach .",
    ],
)
def test_an_article_that_allows_no_caption(article):
    with pytest.raises(ValueError, match="a caption needs two people, a place and a day"):
        choice.candidates(article)


def test_candidates_of_a_verb():
    kept = choice.of_verb(OPTIONS[0], "hugging")
    assert len(kept) == 12
    assert all(" hugs " in c for c in kept)


@pytest.mark.parametrize("rule", ["none", "prefix", "text", "constant", "cross"])
def test_likelihood_is_the_loss_of_the_single_caption(rule):
    torch.manual_seed(0)
    condition = reduced.Condition(rule=rule)
    model = reduced.Captioner(reduced.pretrained(), condition).eval()
    items = ITEMS[:5]
    image = torch.randn(len(items), 10, 64)
    # ragged on purpose, and two to a batch: captions of one item must not meet the states of another
    options = [o[:: 7 + k] for k, o in enumerate(OPTIONS[:5])]
    found = choice.likelihoods(model, data(condition, items, image), options, batch=2)
    assert [len(f) for f in found] == [len(o) for o in options]
    for k, captions in enumerate(options):
        one = reduced.tensors([items[k]], [GOLD[k]], image[k : k + 1], condition)
        inputs = one.rows(slice(0, 1), condition)
        for score, caption in zip(found[k], captions, strict=True):
            labels = torch.tensor([[*reduced.ids(caption), reduced.EOS]])
            with torch.no_grad():
                mean = model.core(labels=labels, **inputs).loss
            assert score / labels.numel() == pytest.approx(-float(mean), abs=1e-5)


def test_a_decoder_prefix_is_refused():
    condition = reduced.Condition(rule="decoder")
    model = reduced.Captioner(reduced.pretrained(), condition)
    with pytest.raises(ValueError, match="without decoder prefixes"):
        choice.likelihoods(model, data(condition, ITEMS[:1]), OPTIONS[:1])


class Preferring:
    """A captioner by hand: whatever it is asked, the tokens of one known caption per item are all but sure.

    It knows the item by the first number of its image.
    """

    def __init__(self, wanted):
        self.condition = reduced.Condition(rule="none")
        self.wanted = [[*reduced.ids(c), reduced.EOS] for c in wanted]
        self.core = SimpleNamespace(_encode=self._encode, bart=self._bart)

    def eval(self):
        return self

    def _encode(self, input_ids, attention_mask, image):
        return image, attention_mask, {}

    def _bart(self, encoder_outputs, attention_mask, labels, use_cache):
        states = encoder_outputs.last_hidden_state
        assert len(states) == len(attention_mask) == len(labels)
        logits = torch.zeros(*labels.shape, reduced.tokenizer().get_vocab_size())
        for row, number in enumerate(states[:, 0, 0].long().tolist()):
            for at, token in enumerate(self.wanted[number][: labels.shape[1]]):
                logits[row, at, token] = 50.0
        return SimpleNamespace(logits=logits)


def test_the_preferred_caption_is_chosen():
    wanted = [o[(7 * k) % len(o)] for k, o in enumerate(OPTIONS)]
    image = IMAGE + torch.arange(len(ITEMS))[:, None, None]
    model = Preferring(wanted)
    scores = choice.likelihoods(model, data(model.condition, image=image), OPTIONS, batch=7)
    assert choice.choose(OPTIONS, scores) == wanted


def test_what_the_image_adds_is_freed_of_a_liking_for_names(monkeypatch):
    """Every caption of the alphabetically first agent scores 10 more; the image adds 3 to the truth."""
    seen = []

    def scored(model, data, options, batch=8):
        numbers = data.image[:, 0, 0].long().tolist()
        seen.append(numbers)
        return [
            torch.tensor(
                [10.0 * (k < 4) + 3.0 * (c == ITEMS[number].caption) for k, c in enumerate(captions)]
            )
            for number, captions in zip(numbers, options, strict=True)
        ]

    monkeypatch.setattr(choice, "likelihoods", scored)
    given = [choice.of_verb(o, i.verb) for o, i in zip(OPTIONS, ITEMS, strict=True)]
    image = IMAGE + torch.arange(len(ITEMS))[:, None, None]
    model = SimpleNamespace(condition=reduced.Condition(rule="none"))
    inputs = data(model.condition, image=image)
    liked = reduced.slot_hits(choice.choose(given, scored(model, inputs, given)), ITEMS)["all"].mean()
    assert liked < 0.6
    seen.clear()
    freed = choice.beyond_image(model, inputs, given, seed=1, others=4)
    assert reduced.slot_hits(choice.choose(given, freed), ITEMS)["all"].all()
    own = list(range(len(ITEMS)))
    foreign = [numbers for numbers in seen if numbers != own]
    assert len(foreign) == 4
    for numbers in foreign:
        assert sorted(numbers) == own
        assert all(a != b for a, b in zip(numbers, own, strict=True))
    assert all(len({n[k] for n in foreign}) == 4 for k in own)
    for k, captions in enumerate(given):  # 3 nats more than elsewhere for the truth, nothing for the others
        expected = [3.0 if c == ITEMS[k].caption else 0.0 for c in captions]
        assert freed[k].tolist() == pytest.approx(expected)


def test_what_the_image_adds_needs_an_image_and_other_items():
    blind = SimpleNamespace(condition=reduced.Condition(rule="none", image=False))
    with pytest.raises(ValueError, match="sees no image"):
        choice.beyond_image(blind, data(blind.condition), OPTIONS)
    seeing = SimpleNamespace(condition=reduced.Condition(rule="none"))
    with pytest.raises(ValueError, match="8 other images of 3 items; choose 1 to 2"):
        choice.beyond_image(seeing, data(seeing.condition, ITEMS[:3]), OPTIONS[:3])


def test_guessing_is_right_once_in_twelve():
    items = world.make("test", 600, seed=5, pictures=False)
    given = [choice.of_verb(choice.candidates(i.article), i.verb) for i in items]
    one, two, other = (choice.choose(given, choice.drawn(given, seed)) for seed in (0, 0, 1))
    assert one == two
    assert one != other
    # 600 at 1 in 12: 50 expected, standard deviation 6.8
    assert 25 <= reduced.slot_hits(one, items)["all"].sum() <= 75


def test_outcome_counts_each_way_by_itself():
    truth = [i.caption for i in ITEMS]
    half = [c if k % 2 else "nothing" for k, c in enumerate(truth)]
    names = [f"{i.agent.split()[0]} {i.other.split()[1]}" for i in ITEMS]
    torn = [f"{n} hugs {i.other} at {i.place} on {i.day} ." for n, i in zip(names, ITEMS, strict=True)]
    found = choice.outcome({"chosen": half, "given": truth, "free": torn}, ITEMS)
    assert (found["chosen"], found["given"], found["beyond"]) == (50.0, 100.0, None)
    assert found["free"] < 10
    assert found["place"] == 50.0
    assert found["chosen_low"] < 50 < found["chosen_high"]
    assert (found["given_low"], found["beyond_low"]) == (100.0, None)
    # one of three names is put together from two; by chance it may be that of somebody in the article
    nowhere = sum(n not in i.article for n, i in zip(names, ITEMS, strict=True))
    assert nowhere > 40
    assert found["from_nothing"] == pytest.approx(100 * nowhere / (3 * len(ITEMS)))
    assert choice.outcome({"chosen": half}, ITEMS)["from_nothing"] is None
    assert set(tables.cell("newscap", "copying", "img", "all", "real").metrics) <= set(found)
