"""Tokenizers, reaction strings and span corruption against the published facts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.reactiont5 import tokens, train
from companion.reactiont5.tokens import AtomTokenizer, PublishedTokenizer, span_corrupt

LONG = "REACTANT:COC(=O)C1=CCCN(C)C1.O.[Al+3].[H-].[Li+].[Na+].[OH-]REAGENT:C1CCOC1"


@pytest.mark.parametrize(
    ("task", "size"), [("compound", 221), ("forward", 268), ("retrosynthesis", 268), ("yield", 269)]
)
def test_published_vocabulary_sizes(task, size):
    assert len(PublishedTokenizer(task)) == size


def test_published_ids_of_pieces_added_tokens_and_roles():
    tok = PublishedTokenizer("yield")
    assert [tok.tokens.index(t) for t in ("<pad>", "</s>", "<unk>", "C", "Cl", "<extra_id_0>")] == [
        0,
        1,
        2,
        3,
        36,
        121,
    ]
    assert [tok.tokens.index(t) for t in (".", "6", "Zr", "e", "p")] == [221, 222, 263, 264, 265]
    assert [tok.tokens.index(t) for t in ("REACTANT:", "PRODUCT:", "REAGENT:")] == [266, 267, 268]
    assert [PublishedTokenizer("forward").tokens.index(t) for t in ("REACTANT:", "REAGENT:")] == [266, 267]


def test_published_example_has_58_ids():
    assert len(PublishedTokenizer("yield").encode(LONG)) == 58


def test_an_added_token_starts_a_segment_with_its_own_blank():
    assert PublishedTokenizer("forward").pieces("[Al+3]") == ["▁", "[", "Al", "▁", "+", "3", "]"]


@pytest.mark.parametrize(("text", "back"), [
    ("[Cd]", "[C]"), ("[U]", "[]"), ("C%10", "C1"), ("[te]", "[e]"), ("[Al+3]", "[Al+3]"), ("[Se]", "[Se]"),
    ("CS[Cs+]", "CS[Cs+]"), ("Clc1ccc(Br)cc1.[Na+]", "Clc1ccc(Br)cc1.[Na+]"), ("F/C=C\\\\F", "F/C=C\\\\F"),
])  # fmt: skip
def test_what_survives_the_published_tokenizer(text, back):
    tok = PublishedTokenizer("forward")
    assert tok.decode(tok.encode(text)) == back


def test_compound_tokenizer_fuses_molecules():
    # trap: CompoundT5's own vocabulary has no dot, so two molecules become one
    tok = PublishedTokenizer("compound")
    assert tok.decode(tok.encode("CCO.CCN")) == "CCOCCN"
    assert tok.unknown("CCO.CCN") == 1


def test_training_pieces_yields_a_small_vocabulary_without_unseen_symbols():
    pieces = tokens.train_unigram(["CCO", "c1ccccc1O", "CC(=O)N", "CCN(CC)CC"] * 50)
    names = [p for p, _ in pieces]
    assert names[:3] == ["<pad>", "</s>", "<unk>"]
    assert "." not in names
    assert {"C", "c", "(", ")"} <= set(names)


@pytest.mark.parametrize("text", ["C[C@@H](N)C(=O)O", "O=C([O-])[O-].[K+].[Pd]", "Brc1ccc(Cl)cc1"])
def test_atom_tokens_keep_bracket_atoms_and_halogens_whole(text):
    tok = AtomTokenizer(
        ["C", "c", "N", "O", "(", ")", "=", "1", ".", "Br", "Cl", "[C@@H]", "[O-]", "[K+]", "[Pd]"]
    )
    assert tok.decode(tok.encode(text)) == text
    assert tok.unknown(text) == 0


def test_roles():
    assert tokens.forward_text("CCO") == "REACTANT:CCOREAGENT: "
    assert tokens.yield_text("N.C", "", "O.B") == "REACTANT:C.NREAGENT: PRODUCT:B.O"
    with pytest.raises(ValueError, match="'reverse'"):
        PublishedTokenizer("reverse")


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 200), st.integers(0, 10_000))
def test_span_corruption_loses_nothing(length, seed):
    ids = [200 + k for k in range(length)]
    source, target = span_corrupt(ids, 10, torch.Generator().manual_seed(seed))
    noise, spans = tokens.corrupted_lengths(length)
    assert source[-1] == target[-1] == 1
    assert sum(t >= 200 for t in target) == noise
    assert (
        [t for t in source if 10 <= t < 200]
        == [t for t in target if 10 <= t < 200]
        == list(range(10, 10 + spans))
    )
    # put every span back in the place of its sentinel
    hidden, at = {}, None
    for t in target[:-1]:
        if t < 200:
            hidden[at := t] = []
        else:
            hidden[at].append(t)
    whole = [x for t in source[:-1] for x in (hidden[t] if t < 200 else [t])]
    assert whole == ids
    assert all(hidden.values())


def test_span_corruption_density_is_fifteen_percent_in_spans_of_three():
    assert tokens.corrupted_lengths(100) == (15, 5)
    with pytest.raises(ValueError, match="at least 2"):
        span_corrupt([5], 10, torch.Generator())


def test_small_vocabulary_covers_the_world():
    from companion.reactiont5 import world

    tok = train.tokenizer()
    for kind in world.TYPES:
        for r in world.reactions(kind, 20, seed=3):
            assert tok.unknown(tokens.yield_text(r.reactant, r.reagent, r.product)) == 0
            assert tok.decode(tok.encode(r.product)) == r.product
