"""Our T5 against transformers' T5: logits, beams and scores; and the head that the library ties."""

import pytest
import torch
from torch import nn
from transformers import T5Config as LibraryConfig
from transformers import T5ForConditionalGeneration, T5Model

from companion.reactiont5 import hub
from companion.reactiont5.beam import beam_search
from companion.reactiont5.model import T5, ReactionYield, T5Config

TINY = T5Config(
    vocab=60, d_model=32, d_ff=48, d_kv=8, heads=4, encoder_layers=2, decoder_layers=2, dropout=0.0
)


@pytest.fixture(scope="module")
def pair():
    torch.manual_seed(3)
    ours = T5(TINY).eval()
    with torch.no_grad():
        # a flatter head makes beams disagree, so that the comparison means something
        ours.lm_head.weight.mul_(0.15)
        ours.lm_head.weight[1] *= 4
    return ours, hub.to_transformers(ours)


def inputs(rows=8, seed=1):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(2, TINY.vocab, (rows, 60), generator=g)
    for k in range(rows):
        ids[k, 5 + 7 * k :] = 0  # lengths 5 to 54, the rest is padding
    return ids


def test_logits_are_those_of_transformers(pair):
    ours, theirs = pair
    ids, targets = inputs(), inputs(seed=2)[:, :20].clamp(min=2)
    with torch.no_grad():
        a = ours(ids, targets)
        b = theirs(input_ids=ids, attention_mask=ids.ne(0), labels=targets).logits
    assert (a - b).abs().max() < 1e-4


@pytest.mark.parametrize("beams", [1, 5])
def test_beam_search_gives_the_same_sequences_and_scores(pair, beams):
    ours, theirs = pair
    ids, most = inputs(), 24
    sequences, scores = beam_search(ours, ids, beams, most)
    out = theirs.generate(
        input_ids=ids, attention_mask=ids.ne(0).long(), num_beams=beams, num_return_sequences=beams, max_length=most,
        min_length=1, return_dict_in_generate=True, output_scores=True, do_sample=False,
    )  # fmt: skip
    want = []
    for row in out.sequences.tolist():
        row = row[1:]
        row = row[: row.index(1)] if 1 in row else row
        while row and row[-1] == 0 and 1 not in row:
            row.pop()
        want.append(row)
    assert [s for group in sequences for s in group] == want
    ends = [s for group in sequences for s in group]
    assert len({len(s) for s in ends}) > 2  # answers of different lengths: finished and cut ones
    if beams > 1:
        flat = torch.tensor([s for group in scores for s in group])
        assert (flat - out.sequences_scores).abs().max() < 1e-4


def test_one_at_a_time_equals_the_batch(pair):
    ours, _ = pair
    ids = inputs()
    together = beam_search(ours, ids, 3, 20)
    for k, row in enumerate(ids):
        alone = beam_search(ours, row[row != 0][None], 3, 20)
        assert alone[0][0] == together[0][k]
        assert torch.allclose(torch.tensor(alone[1][0]), torch.tensor(together[1][k]), atol=1e-5)


def test_the_library_ties_a_fresh_head_and_to_transformers_does_not(pair):
    from transformers import T5Config as Theirs
    from transformers import T5ForConditionalGeneration

    _, theirs = pair
    assert theirs.lm_head.weight.data_ptr() != theirs.shared.weight.data_ptr()
    assert not torch.equal(theirs.lm_head.weight, theirs.shared.weight)
    options = {k: v for k, v in hub.as_transformers(TINY).items() if k != "model_type"}
    fresh = T5ForConditionalGeneration(Theirs(**options))  # asks for tie_word_embeddings=False
    # what transformers 5 does with it; if this ever changes, `untie` has become unnecessary
    assert fresh.lm_head.weight.data_ptr() == fresh.shared.weight.data_ptr()
    hub.untie(fresh)
    assert fresh.lm_head.weight.data_ptr() != fresh.shared.weight.data_ptr()


def test_an_untied_model_survives_resize_and_reload(pair, tmp_path):
    from transformers import T5ForConditionalGeneration

    ours, _ = pair
    theirs = hub.to_transformers(ours)
    head = theirs.lm_head.weight.detach().clone()
    theirs.resize_token_embeddings(TINY.vocab + 5, mean_resizing=False)
    assert torch.equal(theirs.lm_head.weight[: TINY.vocab], head)
    theirs.save_pretrained(tmp_path)
    again = T5ForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight[: TINY.vocab], head)
    assert not torch.equal(again.lm_head.weight, again.shared.weight)


class Regressor(nn.Module):
    """The published yield regressor on the library's encoder and decoder: the decoder is not told what is padding."""

    def __init__(self, config, spread):
        super().__init__()
        d = config.d_model
        self.model = T5Model(config)
        self.fc1, self.fc2 = nn.Linear(d, d // 2), nn.Linear(d, d // 2)
        self.fc3, self.fc4, self.fc5 = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, 1)
        for fc in (self.fc1, self.fc2, self.fc3, self.fc4, self.fc5):
            nn.init.normal_(fc.weight, std=spread)
            nn.init.normal_(fc.bias, std=spread)

    def forward(self, ids):
        states = self.model.encoder(input_ids=ids, attention_mask=ids.ne(0).long()).last_hidden_state
        start = torch.zeros(len(ids), 1, dtype=torch.long)
        s = self.model.decoder(input_ids=start, encoder_hidden_states=states).last_hidden_state[:, 0]
        return self.fc5(self.fc4(self.fc3(torch.cat((self.fc1(s), self.fc2(states[:, 0])), 1))))[:, 0]


def library_config(vocab, **more):
    return LibraryConfig(vocab_size=vocab, d_model=64, d_ff=128, d_kv=16, num_heads=4, num_layers=2,
                         num_decoder_layers=2, feed_forward_proj="gated-gelu", **more)  # fmt: skip


def test_the_authors_yield_files_give_the_published_answers_at_every_padding(tmp_path):
    torch.manual_seed(5)
    config = library_config(269)
    theirs = Regressor(config, spread=0.1).eval()
    torch.save(theirs.state_dict(), tmp_path / "CompoundT5_best.pth")
    torch.save(config, tmp_path / "config.pth")  # the authors pickle the configuration
    ours = ReactionYield.from_pretrained(tmp_path)
    ids = inputs() % 200
    seen = []
    for length in (60, 100, 300):
        long = nn.functional.pad(ids, (0, length - ids.shape[1]))
        with torch.no_grad():
            expected, found = theirs(long), ours(long)
        assert (found - expected).abs().max() < 1e-5
        assert 0.01 < expected.std() < 100  # numbers of a size at which 1e-5 says something
        seen.append(found)
    assert (seen[0] - seen[2]).abs().max() > 1e-3  # the padding is seen, as published


def test_a_folder_that_the_library_saved_is_read_with_its_own_head(tmp_path):
    torch.manual_seed(6)
    config = library_config(268, tie_word_embeddings=False, decoder_start_token_id=0)
    theirs = hub.untie(T5ForConditionalGeneration(config)).eval()
    nn.init.normal_(theirs.lm_head.weight, std=0.2)
    theirs.save_pretrained(tmp_path)
    engine = hub.ReactionT5.from_pretrained(tmp_path, task="forward")
    assert torch.equal(engine.model.lm_head.weight, theirs.lm_head.weight)
    assert not torch.equal(engine.model.lm_head.weight, engine.model.shared.weight)
    ids, targets = inputs(), inputs(seed=2)[:, :20].clamp(min=2)
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=ids.ne(0), labels=targets).logits
        assert (engine.model(ids, targets) - expected).abs().max() < 1e-4
