"""The yield head, padding, resizing, full-size counts, and checkpoints in the released layout."""

import json

import pytest
import torch

from companion.datasets import DataMissing
from companion.reactiont5 import hub
from companion.reactiont5.beam import beam_search
from companion.reactiont5.hub import ReactionT5
from companion.reactiont5.model import T5, ReactionYield, T5Config, bucket, seq2seq_loss
from companion.reactiont5.tokens import PublishedTokenizer

TINY = {
    "d_model": 32,
    "d_ff": 48,
    "d_kv": 8,
    "heads": 4,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "dropout": 0.0,
}


def regressor(**options):
    torch.manual_seed(0)
    made = ReactionYield(T5Config(vocab=269, **TINY), **options)
    with torch.no_grad():
        for fc in (made.fc1, made.fc2, made.fc3, made.fc4, made.fc5):
            fc.weight.normal_(std=0.5)
            fc.bias.normal_(std=0.5)
    return made.eval()


def padded(ids, to):
    return torch.nn.functional.pad(ids, (0, to - ids.shape[1]))


IDS = torch.randint(3, 260, (2, 20), generator=torch.Generator().manual_seed(1))


def test_fresh_head_predicts_almost_nothing():
    torch.manual_seed(0)
    assert ReactionYield(T5Config(vocab=269, **TINY)).eval()(IDS).abs().max() < 1e-2


@torch.no_grad()
def test_published_model_depends_on_padding_and_the_masked_one_does_not():
    masked = regressor()
    published = regressor(mask_padding=False)
    published.load_state_dict(masked.state_dict())
    long = [padded(IDS, n) for n in (20, 60, 100, 300)]
    kept = torch.stack([masked(x) for x in long])
    moved = torch.stack([published(x) for x in long])
    assert (kept - kept[0]).abs().max() < 1e-5
    assert ((moved[1:] - moved[0]).abs().amax(1) > 1e-3).all()
    assert torch.allclose(moved[0], kept[0], atol=1e-5)  # without padding they agree
    one_by_one = torch.cat([published(padded(row[None], 300)) for row in IDS])
    assert torch.allclose(one_by_one, moved[3], atol=1e-5)  # all padded to 300: batches do not matter


@torch.no_grad()
def test_head_is_one_linear_map():
    made = regressor()
    s, h = made.states(IDS)
    w_s, w_h, c = made.collapsed()
    assert torch.allclose(made(IDS), s @ w_s + h @ w_h + c, atol=1e-4)


def test_pooling_switch():
    first, mean = regressor(), regressor(pooling="mean")
    with torch.no_grad():
        assert not torch.allclose(first(IDS), mean(IDS), atol=1e-3)
        assert torch.allclose(mean(IDS), mean(padded(IDS, 50)), atol=1e-5)
    with pytest.raises(ValueError, match="'max'"):
        ReactionYield(T5Config(vocab=269, **TINY), pooling="max")


def test_full_size_counts_are_the_published_ones():
    with torch.device("meta"):
        forward, regress = T5(T5Config()), ReactionYield(T5Config(vocab=269))
    assert sum(p.numel() for p in forward.parameters()) == 198_640_896
    assert sum(p.numel() for p in regress.model.parameters()) == 198_435_840
    assert sum(p.numel() for p in regress.parameters()) == 200_208_385
    assert forward.lm_head.weight.shape == (268, 768)
    shapes = {k: tuple(v.shape) for k, v in regress.state_dict().items()}
    assert shapes["fc1.weight"] == shapes["fc2.weight"] == (384, 768)
    assert shapes["fc3.weight"] == shapes["fc4.weight"] == (768, 768)
    assert shapes["model.encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] == (32, 12)
    assert shapes["model.decoder.block.11.layer.1.EncDecAttention.o.weight"] == (768, 768)
    assert shapes["model.decoder.block.11.layer.2.DenseReluDense.wi_1.weight"] == (2048, 768)


def test_relative_buckets():
    d = torch.tensor([-200, -9, -3, 0, 3, 9, 200])
    assert bucket(d, True, 32, 128).tolist() == [15, 8, 3, 0, 19, 24, 31]
    assert bucket(d, False, 32, 128).tolist() == [31, 9, 3, 0, 0, 0, 0]


def test_resize_keeps_old_rows_of_embedding_and_head():
    model = T5(T5Config(vocab=221, **TINY))
    shared, head = model.shared.weight.detach().clone(), model.lm_head.weight.detach().clone()
    model.resize(268)
    assert torch.equal(model.shared.weight[:221], shared)
    assert torch.equal(model.lm_head.weight[:221], head)
    assert model.lm_head.weight[221:].abs().max() <= 32**-0.5
    assert model.shared.weight[221:].std() > 0.9
    assert model.lm_head.weight is not model.shared.weight
    with pytest.raises(ValueError, match="shrink"):
        model.resize(100)


def test_the_head_learns_apart_from_the_embedding():
    model = T5(T5Config(vocab=50, **TINY))
    batch = {"ids": torch.randint(3, 50, (2, 6)), "targets": torch.randint(3, 50, (2, 4))}
    seq2seq_loss(model, batch).backward()
    unused = sorted(
        set(range(2, 50)) - set(batch["ids"].flatten().tolist()) - set(batch["targets"].flatten().tolist())
    )
    assert model.shared.weight.grad[unused].abs().max() == 0  # a tied head would send every row a gradient
    assert model.lm_head.weight.grad[unused].abs().max() > 0


@pytest.mark.parametrize("task", ["forward", "yield"])
def test_released_layout_round_trip(task, tmp_path):
    torch.manual_seed(1)
    tok = PublishedTokenizer(task)
    c = T5Config(vocab=len(tok), **TINY)
    engine = ReactionT5((ReactionYield.as_published(c) if task == "yield" else T5(c)).eval(), tok, task)
    engine.save_pretrained(tmp_path)
    again = ReactionT5.from_pretrained(tmp_path, task=task)
    with torch.no_grad():
        if task == "yield":
            assert again.model.mask_padding is False
            assert torch.equal(again.model(IDS), engine.model(IDS))
        else:
            assert beam_search(again.model, IDS, 2, 8) == beam_search(engine.model, IDS, 2, 8)


def test_authors_yield_file_with_aliases_and_unused_head_loads(tmp_path):
    made = regressor(mask_padding=False)
    state = dict(made.state_dict())
    shared = state["model.shared.weight"]
    state |= {"model.encoder.embed_tokens.weight": shared, "model.decoder.embed_tokens.weight": shared,
              "model.lm_head.weight": torch.zeros(269, 32)}  # fmt: skip
    torch.save(state, tmp_path / "CompoundT5_best.pth")
    engine = ReactionT5(made, PublishedTokenizer("yield"), "yield")
    engine.save_pretrained(tmp_path / "x")
    (tmp_path / "config.json").write_text((tmp_path / "x" / "config.json").read_text())
    again = ReactionT5.from_pretrained(tmp_path)
    assert again.task == "yield"
    with torch.no_grad():
        assert torch.equal(again.model(IDS), made(IDS))
        assert torch.equal(ReactionYield.from_pretrained(tmp_path)(IDS), made(IDS))
    with pytest.raises(ValueError, match="does not fit weights with a yield head"):
        ReactionT5.from_pretrained(tmp_path, task="forward")


def test_what_does_not_fit_is_said(tmp_path):
    model = T5(T5Config(vocab=268, **TINY))
    state = dict(model.state_dict())
    with pytest.raises(ValueError, match="its trained head is lost"):
        hub.load_state(model, {k: v for k, v in state.items() if k != "lm_head.weight"})
    with pytest.raises(ValueError, match=r"\[3, 32\] in the checkpoint"):
        hub.load_state(model, state | {"lm_head.weight": torch.zeros(3, 32)})
    with pytest.raises(ValueError, match=r"'fc9\.weight'"):
        hub.load_state(model, state | {"fc9.weight": torch.zeros(1)})
    with pytest.raises(DataMissing, match="neither a folder nor a released model"):
        hub.locate("sagawa/ReactionT9")
    with pytest.raises(ValueError, match="is there"):
        ReactionT5.from_pretrained(tmp_path)
    ReactionT5(model, PublishedTokenizer("forward"), "forward").save_pretrained(tmp_path)
    assert ReactionT5.from_pretrained(tmp_path).task == "forward"  # our folders say their task
    theirs = json.loads((tmp_path / "config.json").read_text())
    del theirs["reaction_task"]
    (tmp_path / "config.json").write_text(json.dumps(theirs))
    assert ReactionT5.from_pretrained(tmp_path, task="retrosynthesis").task == "retrosynthesis"
    with pytest.raises(ValueError, match="say task"):
        ReactionT5.from_pretrained(tmp_path)
