"""The rule: checked against imSitu's frames, spelt, edited, stored, filled."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.newscap import world
from companion.newscap.rule import (
    EVENT_ROLES,
    PERSON_ROLES,
    PLACE_ROLES,
    Entity,
    Frames,
    Rule,
    RuleError,
    allowed_types,
    fill_roles,
)

ANA, LEO, UN = Entity("Ana Torres", "PER"), Entity("Leo Park", "PER"), Entity("United Nations", "ORG")
CORVO = Entity("Corvo", "LOC")


def test_frames_are_imsitus():
    frames = Frames.imsitu()
    assert len(frames.verbs) == 504
    assert frames.roles("performing") == ("agent", "event", "stage", "tool", "place")
    assert frames.roles("interviewing") == ("agent", "interviewee", "place")
    assert frames.roles("teaching") == ("teacher", "student", "place")
    assert max(map(len, frames.verbs.values())) == 6
    roles = {r for order in frames.verbs.values() for r in order}
    assert len(roles) == 190
    assert roles >= PERSON_ROLES | PLACE_ROLES | EVENT_ROLES


def test_the_worlds_actions_are_frames():
    for action in world.ACTIONS:
        order = Frames.imsitu().roles(action.verb)
        assert order.index(action.agent) < order.index(action.other) < order.index("place")
        assert allowed_types(action.agent) == allowed_types(action.other) == ("PER", "ORG")


def test_exact_spelling():
    rule = Rule(
        "performing",
        {"place": (Entity("Madison Square Garden", "LOC"),), "agent": (Entity("Madonna", "PER"),)},
    )
    assert rule.spell() == (
        "<rule> performing <role> agent <ent> Madonna <role> place <ent> Madison Square Garden </rule>"
    )
    assert str(rule) == "performing(agent = Madonna, place = Madison Square Garden)"


name = st.text(st.characters(categories=["L"]), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(Frames.imsitu().verbs)), st.data())
def test_spelling_and_json_lose_nothing(verb, data):
    roles = {}
    for role in Frames.imsitu().roles(verb):
        kinds = allowed_types(role, events=True)
        if kinds and data.draw(st.booleans()):
            roles[role] = (Entity(data.draw(name), kinds[0], data.draw(st.floats(-1, 1))),)
    rule = Rule(verb, roles, score=0.25, boxes={Frames.imsitu().roles(verb)[0]: (1.0, 2.0, 3.0, 4.0)})
    assert Rule.from_json(rule.to_json()) == rule
    assert Rule.parse(rule.spell()).spell() == rule.spell()
    assert "".join(text for text, _ in rule.pieces()).replace(" ", "") == rule.spell().replace(" ", "")


def test_edits():
    rule = Rule("hugging", {"agent": (ANA,), "hugged": (LEO,), "place": (CORVO,)})
    assert (
        str(rule.edit(swap=("agent", "hugged")))
        == "hugging(agent = Leo Park, hugged = Ana Torres, place = Corvo)"
    )
    assert (
        str(rule.edit(verb="teaching")) == "teaching(teacher = Ana Torres, student = Leo Park, place = Corvo)"
    )
    assert str(rule.edit(drop="place")) == "hugging(agent = Ana Torres, hugged = Leo Park)"
    moved = rule.edit(place="Lanta")
    assert moved.roles["place"] == (Entity("Lanta", "LOC"),)
    assert rule.roles["place"] == (CORVO,)
    # a verb without a second person loses it
    assert str(rule.edit(verb="marching")) == "marching(agent = Ana Torres, place = Corvo)"


def test_filling_types_then_scores():
    fit = {("hugging-agent", ANA): 0.2, ("hugging-agent", LEO): 0.9}

    def score(role, entity):
        return fit.get((f"hugging-{role}", entity), 0.1)

    rule = fill_roles("hugging", [ANA, LEO, UN, CORVO], score)
    assert [e.text for e in rule.roles["agent"]] == ["Leo Park"]
    assert [e.text for e in rule.roles["hugged"]] == ["Ana Torres"]
    assert "agentpart" not in rule.roles  # a thing is never filled by a name
    assert [e.text for e in rule.roles["place"]] == ["Corvo"]


def test_filling_is_one_to_one_and_prefers_people():
    rule = fill_roles("interviewing", [UN, ANA], lambda r, e: 1.0 if e is UN else 0.0)
    assert [e.text for e in rule.roles["agent"]] == ["Ana Torres"]
    assert [e.text for e in rule.roles["interviewee"]] == ["United Nations"]


def test_two_agents_only_where_scores_tie_and_nobody_else_is_asked_for():
    close = {ANA: 0.50, LEO: 0.49}
    assert len(fill_roles("marching", [ANA, LEO], lambda r, e: close[e]).roles["agent"]) == 2
    far = {ANA: 0.50, LEO: 0.40}
    assert len(fill_roles("marching", [ANA, LEO], lambda r, e: far[e]).roles["agent"]) == 1
    assert len(fill_roles("hugging", [ANA, LEO], lambda r, e: close[e]).roles["agent"]) == 1


def test_threshold_leaves_roles_empty_and_an_article_without_names_gives_the_verb():
    assert str(fill_roles("hugging", [ANA, CORVO], lambda r, e: 0.1, threshold=0.2)) == "hugging()"
    assert fill_roles("hugging", [], lambda r, e: 0.0).spell() == "<rule> hugging </rule>"


def test_space_file(tmp_path):
    space = {"verbs": {"drinking": {"framenet": "Ingestion", "abstract": "the AGENT drinks a LIQUID at a PLACE",
                                    "def": "take in", "order": ["agent", "liquid", "place"],
                                    "roles": {r: {"framenet": r, "def": f"the {r}"} for r in ("agent", "liquid", "place")}}},
             "nouns": {"n14845743": {"gloss": ["water", "H2O"], "def": "a liquid"}}}  # fmt: skip
    (tmp_path / "imsitu_space.json").write_text(json.dumps(space))
    frames = Frames.from_space(tmp_path / "imsitu_space.json")
    assert frames.roles("drinking") == ("agent", "liquid", "place")
    assert frames.sentence("drinking") == "the AGENT drinks a LIQUID at a PLACE"
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(RuleError, match="is not an imsitu_space"):
        Frames.from_space(tmp_path / "bad.json")


def test_bad_rules_get_one_sentence():
    with pytest.raises(RuleError, match=r"verb 'huging' is not among the 504 verbs; did you mean hugging"):
        Rule("huging")
    with pytest.raises(RuleError, match="hugging has no role 'interviewee'; its roles are agent, hugged"):
        Rule("hugging", {"interviewee": (ANA,)})
    with pytest.raises(RuleError, match="has no role 'student'"):
        Rule("hugging").edit(swap=("agent", "student"))
    with pytest.raises(RuleError, match="is not filled"):
        Rule("hugging").edit(drop="place")
    with pytest.raises(RuleError, match="choose PER, ORG, LOC"):
        Entity("Ana", "PERSON")
    with pytest.raises(RuleError, match="rule marker"):
        Entity("Ana <ent> Leo", "PER")
    with pytest.raises(RuleError, match="not a rule in JSON"):
        Rule.from_json("[]")
    with pytest.raises(RuleError, match="starts with <rule>"):
        Rule.parse("hugging")
