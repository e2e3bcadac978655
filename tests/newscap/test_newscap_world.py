"""The news world has the properties that make the claim testable; its items never change unnoticed."""

import hashlib

import numpy as np
import pytest

from companion.newscap import world
from companion.newscap.frontend import WorldNames


def test_items_never_change_unnoticed():
    items = world.make("train", 10, seed=0)
    text = "\n".join(f"{i.article}|{i.caption}" for i in items)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == GOLDEN
    assert items[0].image.shape == (48, 48, 3)
    again = world.make("train", 10, seed=0)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(items, again, strict=True))


def test_full_names_of_the_test_split_are_new_but_their_words_are_not():
    train, test = set(world.names("train")), set(world.names("test"))
    assert (len(train), len(test)) == (480, 96)
    assert not train & test
    words = {w for n in train for w in n.split()}
    assert {w for n in test for w in n.split()} <= words
    for item in world.make("test", 50, pictures=False):
        assert set(item.people) <= test


def test_article_alone_cannot_decide():
    """Over many items, nothing that the article says tells agent, other, place or verb better than chance."""
    items = world.make("train", 3000, pictures=False)
    first_agent = first_place = verb_of_decoy = 0
    for item in items:
        people, places = WorldNames.PERSON.findall(item.article), WorldNames.PLACE.findall(item.article)
        assert len(people) == 3
        assert len(places) == 2
        first_agent += people[0][0] == item.agent
        first_place += places[0][0] == item.place
        verb_of_decoy += world.BY_VERB[item.verb].past in item.article
    assert abs(first_agent / 3000 - 1 / 3) < 0.03
    assert abs(first_place / 3000 - 1 / 2) < 0.03
    assert verb_of_decoy == 0  # decoys use other verbs; the true one is one of the six left


def test_image_alone_cannot_name():
    """The picture depends on coats, kind of place, action and side; not on any name."""
    args = ("teaching", ("red", "blue"), "hall", False, 1)
    assert np.array_equal(world.draw(*args), world.draw(*args))
    for k, other in enumerate((("hugging", ("red", "blue"), "hall", False, 1), ("teaching", ("blue", "red"), "hall", False, 1),
                               ("teaching", ("red", "blue"), "beach", False, 1))):  # fmt: skip
        assert not np.array_equal(world.draw(*args), world.draw(*other)), k


def test_only_the_arm_tells_the_agent():
    """Same two coats left and right, other agent: pictures differ in the arm's pixels only."""
    one = world.draw("teaching", ("red", "blue"), "hall", False, 0)
    two = world.draw("teaching", ("blue", "red"), "hall", True, 0)
    y, x = np.nonzero((one != two).any(-1))
    assert (y.min(), y.max()) == (23, 26)
    assert x.min() >= 15
    assert x.max() < 33


def test_the_weekday_stands_only_in_the_article():
    for item in world.make("train", 30, pictures=False):
        assert f"On {item.day} ." in item.article
        assert sum(day in item.article for day in world.DAYS) == 1


@pytest.mark.parametrize("template", [0, 1, 2])
def test_the_parser_reads_every_caption_exactly(template):
    for item in world.make("valid", 40, pictures=False):
        caption = world.caption_of(item.verb, item.agent, item.other, item.place, item.day, template)
        assert world.parse(caption) == item.slots
    assert world.parse("Ana Torres and Leo Park .") == dict.fromkeys(world.SLOTS)
    assert world.parse("Ana Torres eats Leo Park at Corvo on Friday .")["verb"] is None


def test_second_tier_has_more_of_everything():
    item = world.make("train", 1, config=world.TIERS[2], pictures=False)[0]
    assert (len(item.people), len(item.places), item.article.count("Earlier")) == (4, 3, 3)
    forms = {
        world.make("train", 20, config=world.TIERS[2], pictures=False)[k].caption.split()[2]
        for k in range(20)
    }
    assert len(forms) > 3


def test_bad_settings():
    with pytest.raises(ValueError, match="choose train, valid or test"):
        world.make("dev", 1)
    with pytest.raises(ValueError, match="choose 3 to 6 people"):
        world.WorldConfig(people=7)


GOLDEN = "fdfb57810146fca7"
