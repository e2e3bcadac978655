"""Prefixes in BART's encoder: when they change nothing, what they change, what trains."""

import pytest
import torch
from torch.nn import functional as F

from companion.newscap.model import (
    Prefix,
    RuleAttention,
    RuleBart,
    RulePrefixConfig,
    chosen_layers,
    inject,
    random_bart,
)

SIZES = {"vocab_size": 60, "d_model": 16, "encoder_layers": 4, "decoder_layers": 2, "encoder_attention_heads": 4,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 40,
         "dropout": 0.0}  # fmt: skip


def bold(model):
    """Large weight matrices, so that a difference cannot hide below the tolerance."""
    for p in model.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, std=0.3)
    return model


def captioner(seed=0, attention="sdpa", **config):
    torch.manual_seed(seed)
    bart = bold(random_bart(**SIZES, attn_implementation=attention))
    return RuleBart(bart, RulePrefixConfig(mid=24, **config)).eval()


def batch(seed=1, padded=True):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 60, (3, 9), generator=g)
    mask = torch.ones(3, 9, dtype=torch.long)
    if padded:
        mask[1, 6:] = 0
        ids[1, 6:] = 1
    rule = {"rule_ids": torch.randint(5, 60, (3, 7), generator=g), "rule_slots": torch.randint(0, 4, (3, 7), generator=g),
            "rule_mask": torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] * 6 + [0]])}  # fmt: skip
    labels = torch.randint(5, 60, (3, 5), generator=g)
    return ids, mask, rule, labels


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("mode", ["mlp_kv", "proj_hidden"])
@pytest.mark.parametrize("padded", [False, True])
def test_masked_empty_and_absent_prefix_are_plain_bart(attention, mode, padded):
    torch.manual_seed(0)
    plain = bold(random_bart(**SIZES, attn_implementation=attention))
    model = captioner(attention=attention, mode=mode)
    ids, mask, rule, labels = batch(padded=padded)
    wanted = plain.eval()(input_ids=ids, attention_mask=mask, labels=labels).logits
    masked = rule | {"rule_mask": torch.zeros_like(rule["rule_mask"])}
    empty = {k: v[:, :0] for k, v in rule.items()}
    for inputs in ({}, masked, empty):
        torch.testing.assert_close(
            model(ids, mask, labels, **inputs).logits,
            wanted,
            rtol=1e-6,
            atol=1e-6 * float(wanted.abs().max()),
        )
    assert (model(ids, mask, labels, **rule).logits - wanted).abs().max() > 1e-2


def test_prefix_attention_is_the_equation():
    """softmax([q P_K^T ; q k^T] / sqrt(e)) [P_V ; v], written out with loops over heads."""
    bart = random_bart(**SIZES, attn_implementation="sdpa")
    inject(bart, [2])
    layer = bart.model.encoder.layers[2].self_attn
    assert isinstance(layer, RuleAttention)
    B, T, p, d, H, e = 2, 5, 3, 16, 4, 4
    g = torch.Generator().manual_seed(0)
    h, pk, pv = (torch.randn(B, n, d, generator=g) for n in (T, p, p))
    seen = torch.tensor([[True, True, False], [True, False, False]])
    out, _ = layer(h, attention_mask=None, rule_prefix={2: Prefix(pk, pv, seen)})
    q, k, v = layer.q_proj(h), layer.k_proj(h), layer.v_proj(h)
    for b in range(B):
        heads = []
        for a in range(H):
            cut = slice(a * e, (a + 1) * e)
            keys = torch.cat([pk[b, seen[b], cut], k[b, :, cut]])
            values = torch.cat([pv[b, seen[b], cut], v[b, :, cut]])
            heads.append(F.softmax(q[b, :, cut] @ keys.T / e**0.5, -1) @ values)
        torch.testing.assert_close(out[b], layer.out_proj(torch.cat(heads, -1)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["mlp_kv", "proj_hidden"])
def test_eager_and_sdpa_agree(mode):
    ids, mask, rule, labels = batch()
    one, two = (
        captioner(attention=a, mode=mode)(ids, mask, labels, **rule).logits for a in ("eager", "sdpa")
    )
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4)


def test_padding_of_the_rule_changes_nothing():
    model = captioner()
    ids, mask, rule, labels = batch()
    wider = {"rule_ids": F.pad(rule["rule_ids"], (0, 4), value=9), "rule_slots": F.pad(rule["rule_slots"], (0, 4)),
             "rule_mask": F.pad(rule["rule_mask"], (0, 4))}  # fmt: skip
    torch.testing.assert_close(model(ids, mask, labels, **rule).logits, model(ids, mask, labels, **wider).logits,
                               rtol=1e-5, atol=1e-5)  # fmt: skip


def test_layers_below_the_first_chosen_one_do_not_see_the_rule():
    model = captioner(layers="last2")
    ids, mask, rule, _ = batch()
    seen = []
    for layer in model.bart.model.encoder.layers:
        layer.register_forward_hook(lambda m, i, o: seen.append(o.detach()))
    model.encode(ids, mask)
    model.encode(ids, mask, **rule)
    without, with_rule = seen[:4], seen[4:]
    assert [torch.equal(a, b) for a, b in zip(without, with_rule, strict=True)] == [True, True, False, False]


def test_decoder_never_attends_to_the_prefix():
    """The encoder hands over exactly T states: the rule can act only through the article's states."""
    model = captioner()
    ids, mask, rule, _ = batch()
    states, out = model.encode(ids, mask, **rule)
    assert states.shape == (3, 9, 16)
    assert torch.equal(out, mask)


def test_gradients_reach_only_what_trains():
    ids, mask, rule, labels = batch()
    frozen = captioner(layers="last1").train_only("prefix")
    frozen(ids, mask, labels, **rule).loss.backward()
    assert all(p.grad is None for p in frozen.bart.parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in frozen.rule.parameters())
    both = captioner(layers="last1")
    both(ids, mask, labels, **rule).loss.backward()
    assert all(p.grad is not None for p in both.bart.parameters())
    without = captioner(layers="last1")
    without(ids, mask, labels).loss.backward()
    assert all(p.grad is None for p in without.rule.parameters())


def test_gradients_of_padding_positions_are_zero():
    model = captioner()
    ids, mask, rule, labels = batch()
    kept = []
    model.rule.mlp.register_full_backward_hook(lambda m, i, o: kept.append(o[0]))
    model(ids, mask, labels, **rule).loss.backward()
    grad = kept[0].abs().sum(-1)
    assert torch.equal(grad > 0, rule["rule_mask"].bool())


def test_gradient_checkpointing_gives_the_same_gradients():
    grads = []
    for on in (False, True):
        model = captioner().train()
        if on:
            model.bart.gradient_checkpointing_enable()
        ids, mask, rule, labels = batch()
        model(ids, mask, labels, **rule).loss.backward()
        grads.append(model.rule.mlp[0].weight.grad.clone())
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("where", ["encoder", "decoder", "cross"])
@pytest.mark.parametrize("beams", [1, 3])
def test_generation_equals_item_by_item(beams, where):
    """Beams are expanded, prefixes are not: a batch must give what its items give alone."""
    model = captioner(where=where, layers="all")
    ids, mask, rule, _ = batch()
    options = {"num_beams": beams, "max_new_tokens": 6, "do_sample": False}
    together = model.generate(ids, mask, **rule, **options)
    for b in range(3):
        alone = model.generate(
            ids[b : b + 1], mask[b : b + 1], **{k: v[b : b + 1] for k, v in rule.items()}, **options
        )
        n = alone.shape[1]
        assert torch.equal(together[b, :n], alone[0])
        assert (together[b, n:] == 1).all()


@pytest.mark.parametrize("mode", ["mlp_kv", "proj_hidden"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_empty_and_masked_decoder_prefix_are_plain_bart_and_the_encoder_never_changes(attention, mode):
    model = captioner(where="decoder", layers="all", attention=attention, mode=mode)
    ids, mask, rule, labels = batch()
    wanted = model.bart(input_ids=ids, attention_mask=mask, labels=labels).logits
    masked = rule | {"rule_mask": torch.zeros_like(rule["rule_mask"])}
    for inputs in ({}, masked, {k: v[:, :0] for k, v in rule.items()}):
        torch.testing.assert_close(model(ids, mask, labels, **inputs).logits, wanted, rtol=1e-6,
                                   atol=1e-6 * float(wanted.abs().max()))  # fmt: skip
    assert (model(ids, mask, labels, **rule).logits - wanted).abs().max() > 1e-2
    assert torch.equal(model.encode(ids, mask, **rule)[0], model.encode(ids, mask)[0])


def test_decoder_prefix_leaves_no_trace_and_stays_causal():
    model = captioner(where="decoder", layers="all")
    ids, mask, rule, labels = batch()
    model.generate(ids, mask, **rule, num_beams=2, max_new_tokens=3)
    assert all(layer.self_attn.held is None for layer in model.bart.model.decoder.layers)
    later = labels.clone()
    later[:, 3:] = 7  # what comes later must not change what is said now
    one, two = (model(ids, mask, decoder_input_ids=x, **rule).logits[:, :3] for x in (labels, later))
    torch.testing.assert_close(one, two)


def test_pefts_prefix_never_reaches_the_encoder():
    """Why the package has its own prefixes: peft's come in through the decoder's cache, and know no sample."""
    peft = pytest.importorskip("peft")
    bart = bold(random_bart(**SIZES)).eval()
    ids, mask, _, labels = batch()
    plain = bart(input_ids=ids, attention_mask=mask, labels=labels)
    theirs = peft.get_peft_model(
        bart, peft.PrefixTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=4)
    ).eval()
    bold(theirs.prompt_encoder)
    out = theirs(input_ids=ids, attention_mask=mask, labels=labels)
    assert torch.equal(out.encoder_last_hidden_state, plain.encoder_last_hidden_state)
    assert not torch.allclose(out.logits, plain.logits)
    assert len(theirs.prompt_encoder.default.embedding.weight) == 4  # one table for all inputs


@pytest.mark.parametrize("where", ["encoder", "decoder"])
def test_greedy_generation_is_the_argmax_of_forward(where):
    model = captioner(where=where, layers="all")
    ids, mask, rule, _ = batch()
    out = model.generate(ids, mask, **rule, num_beams=1, max_new_tokens=5, do_sample=False)
    logits = model(ids, mask, decoder_input_ids=out[:, :-1], **rule).logits
    alive = (out[:, 1:] != 1) & (out[:, 1:] != 2)
    assert torch.equal(logits.argmax(-1)[alive], out[:, 1:][alive])


def test_half_precision():
    model = captioner()
    ids, mask, rule, labels = batch()
    wanted = model(ids, mask, labels, **rule).logits
    for kind in (torch.bfloat16, torch.float16):
        got = captioner().to(kind)(ids, mask, labels, **rule).logits
        assert got.dtype == kind
        assert ((got.float() - wanted).norm() / wanted.norm()) < 0.1


def test_save_and_load_round_trip(tmp_path):
    from transformers import BartForConditionalGeneration

    model = captioner(image_width=5, image_tokens=2, layers="0,3")
    model.save_pretrained(tmp_path / "captioner")
    again = RuleBart.from_pretrained(tmp_path / "captioner").eval()
    ids, mask, rule, labels = batch()
    image = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(model(ids, mask, labels, image=image, **rule).logits,
                               again(ids, mask, labels, image=image, **rule).logits)  # fmt: skip
    assert again.layers == (0, 3)
    # the BART inside is a plain checkpoint, for any other program
    plain = BartForConditionalGeneration.from_pretrained(tmp_path / "captioner" / "bart").eval()
    torch.testing.assert_close(plain(input_ids=ids, attention_mask=mask, labels=labels).logits,
                               model.bart(input_ids=ids, attention_mask=mask, labels=labels).logits)  # fmt: skip
    with pytest.raises(ValueError, match="holds no rule_prefix"):
        RuleBart.from_pretrained(tmp_path)


def test_images_come_first_and_count_as_positions():
    model = captioner(image_width=5, image_tokens=2)
    ids, mask, rule, _ = batch()
    image = torch.randn(3, 2, 5)
    states, seen = model.encode(ids, mask, image=image, **rule)
    assert states.shape == (3, 11, 16)
    assert seen[1].tolist() == [1, 1, *mask[1].tolist()]
    other, _ = model.encode(ids, mask, image=image + 1, **rule)
    assert not torch.allclose(states, other)


def test_one_image_vector_becomes_twenty_positions():
    """ClipCap's mapper: w -> wn/2 -> wn, then to BART's width."""
    model = captioner(image_width=6, image_tokens=20, mapper="clipcap")
    assert [tuple(m.weight.shape) for m in model.visual.modules() if isinstance(m, torch.nn.Linear)] == [
        (60, 6), (120, 60), (16, 6)]  # fmt: skip
    ids, mask, rule, _ = batch()
    image = torch.randn(3, 1, 6, generator=torch.Generator().manual_seed(4))
    states, seen = model.encode(ids, mask, image=image, **rule)
    assert states.shape == (3, 29, 16)
    assert seen.sum(1).tolist() == [29, 26, 29]
    with pytest.raises(ValueError, match="takes one vector per image; 2 were given"):
        model.encode(ids, mask, image=torch.zeros(3, 2, 6))


def test_half_precision_captions():
    model = captioner().to(torch.bfloat16)
    ids, mask, rule, _ = batch()
    assert model.generate(ids, mask, **rule, num_beams=2, max_new_tokens=4).shape[0] == 3


def test_constant_prefix_sees_no_rule():
    model = captioner(source="constant", max_length=7)
    ids, mask, rule, labels = batch()
    other = rule | {"rule_ids": rule["rule_ids"].flip(1)}
    wanted = model(ids, mask, labels, **rule).logits
    assert torch.equal(wanted, model(ids, mask, labels, **other).logits)
    assert torch.equal(wanted, model(ids, mask, labels).logits)
    with torch.no_grad():
        model.rule.table += 1.0
    assert not torch.allclose(wanted, model(ids, mask, labels, **rule).logits)


@pytest.mark.parametrize(("spec", "wanted"), [("last3", (3, 4, 5)), ("first2", (0, 1)), ("all", (0, 1, 2, 3, 4, 5)),
                                              ("none", ()), ("4, 1", (1, 4))])  # fmt: skip
def test_layers_are_counted_from_zero(spec, wanted):
    assert chosen_layers(spec, 6) == wanted


@pytest.mark.parametrize("spec", ["last7", "last0", "6", "deep", "-1,2"])
def test_layers_that_are_not_there(spec):
    with pytest.raises(ValueError, match="layers is"):
        chosen_layers(spec, 6)


def test_bad_inputs_get_one_sentence():
    model = captioner(max_length=5)
    ids, mask, rule, labels = batch()
    with pytest.raises(ValueError, match="the rule has 7 tokens; this model takes up to 5"):
        model(ids, mask, labels, **rule)
    long = torch.full((1, 41), 7)
    with pytest.raises(ValueError, match="make 41 positions; this BART takes 40"):
        model.encode(long, torch.ones_like(long))
    with pytest.raises(ValueError, match="image_width = 0"):
        model.encode(ids, mask, image=torch.zeros(3, 2, 5))
    with pytest.raises(ValueError, match="image mapper is 'mlp'"):
        RulePrefixConfig(mapper="mlp")
    with pytest.raises(ValueError, match="choose encoder or decoder or cross"):
        RulePrefixConfig(where="both")
    with pytest.raises(ValueError, match="prefix mode is 'kv'"):
        RulePrefixConfig(mode="kv")
    with pytest.raises(ValueError, match="choose all or prefix"):
        model.train_only("nothing")
