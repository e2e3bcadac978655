"""The DG-SCT unit and the paired encoders: the published operations, one by one."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from companion.dgsct.fast import FastPrompt
from companion.dgsct.memory import checkpoint_activations
from companion.dgsct.model import (
    OFFICIAL_NAMES,
    ORDERS,
    PRESETS,
    CrossModalPrompt,
    DualGuidedEncoder,
    PromptConfig,
    load_official,
    pair_layers,
)
from companion.dgsct.towers import SmallTower, Upper

SMALL = PromptConfig(reduction=4, tokens=4)


def reference(u: CrossModalPrompt, x: torch.Tensor, g: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The ten steps as the official code performs them, in double precision and without any rearrangement."""
    c, p = u.config, {n: t.detach().double() for n, t in u.state_dict().items()}
    x, g = x.double(), g.double()

    def linear(name, y):
        return F.linear(y, p[f"{name}.weight"], p[f"{name}.bias"])

    if c.remap == "conv":
        g = torch.stack(
            [linear("remap_width", p["remap_tokens.weight"] @ y + p["remap_tokens.bias"][:, None]) for y in g]
        )
    else:
        k, m = int(g.shape[1] ** 0.5), int(x.shape[1] ** 0.5)
        g = linear("remap_width", g).mT.reshape(len(g), -1, k, k)
        g = F.interpolate(g, size=(m, m), mode="bicubic", align_corners=False).flatten(2).mT
    r = p["latents"] + torch.softmax(p["latents"] @ g.mT, -1) @ g
    x1 = x + p["latent_gate"] * (torch.softmax(x @ r.mT, -1) @ r)
    bar = g.mean(1)
    u1 = (F.relu(linear("channel_guide", bar))[:, None] * F.relu(linear("channel_input", x1))).mean(1)
    mc = torch.sigmoid(linear("channel_up", F.relu(linear("channel_down", u1))))[:, None]
    xc = x1 * (1 + mc)
    s = linear(
        "spatial_score", F.relu(linear("spatial_input", xc)) * F.relu(linear("spatial_guide", bar))[:, None]
    )
    weight = c.alpha * mc + c.beta * torch.sigmoid(s) + 1 - c.alpha
    if c.gamma:
        weight = weight + c.gamma * torch.sigmoid(linear("temporal", bar))[:, None]
    y = x1 * weight
    if c.norm_before:
        y = F.layer_norm(y, y.shape[-1:], p["norm_before.weight"], p["norm_before.bias"])

    def grouped(name, y):
        parts = y.chunk(c.groups, -1)
        return torch.cat(
            [a @ w.T for a, w in zip(parts, p[f"{name}.weight"].chunk(c.groups), strict=True)], -1
        )

    def batch_norm(name, y):
        if not c.batch_norm:
            return y
        mean, var = ((p[f"{name}.running_mean"], p[f"{name}.running_var"]) if not u.training
                     else (y.mean((0, 1)), y.var((0, 1), unbiased=False)))  # fmt: skip
        return (y - mean) / (var + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]

    o = batch_norm("norm_up", grouped("up", F.relu(batch_norm("norm_down", grouped("down", y)))))
    gate = p.get("gate", torch.ones(1).double())
    if not c.gate_last:
        o = gate * o
    o = F.layer_norm(o, o.shape[-1:], p["norm_after.weight"], p["norm_after.bias"])
    return (gate * o if c.gate_last else o), torch.softmax(torch.tanh(s).mT, -1)


def busy(u: CrossModalPrompt) -> CrossModalPrompt:
    """`u` with gates at 0.7 and random norms, so that no step is silent."""
    with torch.no_grad():
        for name, p in u.named_parameters():
            if name.endswith("gate"):
                p.fill_(0.7)
            elif "norm" in name:
                p.uniform_(0.5, 1.5)
        for name, b in u.named_buffers():
            if name.endswith("running_mean"):
                b.normal_()
            elif name.endswith("running_var"):
                b.uniform_(0.5, 2)
    return u


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("sizes", [(36, 64, 64, 96), (64, 96, 36, 64)])
def test_unit_is_the_published_operations(name, training, sizes):
    torch.manual_seed(1)
    config = PRESETS[name]
    if sizes[1] % (config.reduction * config.groups):
        config = replace(config, reduction=2)
    u = busy(CrossModalPrompt(*sizes, config)).train(training)
    x, g = torch.randn(20, *sizes[:2]), torch.randn(20, *sizes[2:])
    want, pool = reference(u, x, g)
    with torch.no_grad():
        got, maps = u(x, g)
    assert want.abs().mean() > 0.1
    assert (got - want).abs().max() < 2e-5
    assert (maps.pool - pool).abs().max() < 1e-7
    u.published = True
    with torch.no_grad():
        same, maps = u(x, g)
    # without BatchNorm the LayerNorm after near-silent tokens magnifies rounding, there as here
    assert (same - want).abs().max() < (4e-6 if config.batch_norm else 2e-5)
    assert (maps.pool - pool).abs().max() < 1e-7


def test_both_orders_of_remapping_agree():
    """W_ch(W_tok g) and W_tok(W_ch g) with the bias carried through: which is used depends on the cost only."""
    for sizes in ((64, 8, 16, 48), (16, 48, 64, 8)):
        u = CrossModalPrompt(*sizes, replace(SMALL, groups=1))
        g = torch.randn(3, *sizes[2:])
        plain = u.remap_width(u.remap_tokens.weight @ g + u.remap_tokens.bias[:, None])
        assert torch.allclose(u.remapped(g), plain, atol=1e-5)


def test_pool_is_a_distribution_and_ratio_is_bounded():
    u = CrossModalPrompt(16, 32, 9, 24, SMALL)
    u.spatial_score.weight.data.mul_(1e4)
    pool = u(torch.randn(5, 16, 32), torch.randn(5, 9, 24))[1].pool
    assert torch.allclose(pool.sum(-1), torch.ones(5, 1))
    # tanh lies in (-1, 1), so no token can outweigh another by more than e squared
    assert (pool.amax(-1) / pool.amin(-1)).max() <= torch.e**2 + 1e-3


def test_alpha_beta_zero_leaves_the_features_but_not_the_pooling():
    u = CrossModalPrompt(16, 32, 9, 24, replace(SMALL, alpha=0.0, beta=0.0, norm_before=False)).eval()
    x, g, other = torch.randn(2, 16, 32), torch.randn(2, 9, 24), torch.randn(2, 9, 24)
    u.gate.data.fill_(1.0)
    (a, ma), (b, mb) = u(x, g), u(x, other)
    assert torch.equal(a, b)  # the guide reaches the residual only by the (closed) latent gate
    assert not torch.equal(ma.pool, mb.pool)


def test_gate_before_layernorm_means_nothing():
    """As published for segmentation: two gates a thousand times apart give the same residual."""
    config = replace(SMALL, gate_last=False, batch_norm=False)
    u = CrossModalPrompt(16, 32, 9, 24, config).eval()
    x, g = torch.randn(2, 16, 32), torch.randn(2, 9, 24)
    u.gate.data.fill_(1000.0)
    a = u(x, g)[0]
    u.gate.data.fill_(1e6)
    assert torch.allclose(a, u(x, g)[0], atol=1e-3)
    assert a.std() > 0.5


def towers(depths=((2, 1), (1, 1))):
    torch.manual_seed(3)
    return (
        SmallTower((32, 32), 3, 4, depths=depths[0]).eval(),
        SmallTower((64, 16), 1, 4, depths=depths[1]).eval(),
    )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("depths", [((1, 1), (1, 1)), ((1, 3), (1, 1)), ((1, 1), (2, 2)), ((2, 2), (3,))])
def test_zero_gates_change_nothing_bit_for_bit(order, depths):
    v, a = towers(depths)
    images, sounds = torch.randn(4, 3, 32, 32), torch.randn(4, 1, 64, 16)
    encoder = DualGuidedEncoder(v, a, SMALL, order=order).eval()
    out = encoder(images, sounds)
    assert torch.equal(out.visual, v(images))
    assert torch.equal(out.audio, a(sounds))
    for unit in encoder.visual_2:
        unit.gate.data.fill_(0.5)
    assert not torch.equal(encoder(images, sounds).visual, v(images))


def test_pairs_of_the_published_towers():
    pairs = pair_layers((2, 2, 18, 2), (2, 2, 6, 2))
    assert len(pairs) == 12
    assert [v - 4 for v, a in pairs if 4 <= a < 10] == [2, 5, 8, 11, 14, 17]
    assert pair_layers((12,), (2, 2, 6, 2)) == [(k, k) for k in range(12)]


def test_published_order_of_a_pair():
    """Section 2.2 written out: the audio MLP runs before the second units, vision's after."""
    v, a = towers(((1,), (1,)))
    e = DualGuidedEncoder(v, a, SMALL).eval()
    for group in (e.visual_1, e.visual_2, e.audio_1, e.audio_2):
        busy(group[0])
    images, sounds = torch.randn(3, 3, 32, 32), torch.randn(3, 1, 64, 16)
    fv, fa = v.embed(images), a.embed(sounds)
    da, dv = e.audio_1[0](fa, fv)[0], e.visual_1[0](fv, fa)[0]
    fv = v.attend(0, fv) + dv
    fa = a.mix(0, a.attend(0, fa)) + da
    (da, ma), (dv, mv) = e.audio_2[0](fa, fv), e.visual_2[0](fv, fa)
    fv, fa = v.finish(v.mix(0, fv) + dv), a.finish(fa + da)
    out = e(images, sounds)
    assert torch.equal(out.visual, fv)
    assert torch.equal(out.audio, fa)
    pv, pa = out.pooled("map")
    assert torch.allclose(pv, (mv.pool @ fv)[:, 0])
    assert torch.allclose(pa, (ma.pool @ fa)[:, 0])


def test_training_leaves_the_towers_alone():
    v, a = towers()
    before = [p.clone() for p in [*v.parameters(), *a.parameters()]]
    e = DualGuidedEncoder(v, a, SMALL).train()
    optimizer = torch.optim.Adam([p for p in e.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        out = e(torch.randn(4, 3, 32, 32), torch.randn(4, 1, 64, 16)).pooled("map")
        optimizer.zero_grad()
        sum(x.square().mean() for x in out).backward()
        optimizer.step()
    assert all(torch.equal(x, y) for x, y in zip(before, [*v.parameters(), *a.parameters()], strict=True))
    assert all(p.grad is None for p in [*v.parameters(), *a.parameters()])
    assert any(float(u.gate.abs()) > 0 for u in e.visual_1)


def test_no_guide_means_that_sound_cannot_matter():
    v, a = towers()
    e = DualGuidedEncoder(v, a, SMALL).eval()
    for group in (e.visual_1, e.visual_2):
        for unit in group:
            busy(unit)
    images, x, y = torch.randn(3, 3, 32, 32), torch.randn(3, 1, 64, 16), torch.randn(3, 1, 64, 16)
    assert torch.equal(e(images, x, guide="none").visual, e(images, y, guide="none").visual)
    assert not torch.allclose(e(images, x).visual, e(images, y).visual)


def test_upper_layers_continue_the_tower():
    v, _ = towers(((2, 2), (1, 1)))
    x = torch.randn(2, 3, 32, 32)
    for start in (1, 2, 3):
        top = Upper(v, start)
        assert torch.equal(top(top.lower(x)), v(x))
    assert Upper(v, 1).depths == (1, 2)
    assert Upper(v, 3).depths == (1,)


def official_state(u: CrossModalPrompt) -> dict:
    """The published layout of a unit's weights: 1x1 convolutions as 4-D kernels, plus parameters nobody uses."""
    state = {}
    for name, value in u.state_dict().items():
        part, _, leaf = name.partition(".")
        if part in ("remap_tokens", "down", "up") and leaf == "weight":
            value = value[..., None, None]
        state[OFFICIAL_NAMES[part] + (f".{leaf}" if leaf else "")] = value.clone()
    return state | {"gate_tk": torch.ones(1)}


def test_official_weights_round_trip():
    torch.manual_seed(0)
    u = busy(CrossModalPrompt(16, 32, 9, 24, SMALL)).eval()
    fresh = load_official(CrossModalPrompt(16, 32, 9, 24, SMALL), official_state(u)).eval()
    x, g = torch.randn(2, 16, 32), torch.randn(2, 9, 24)
    assert not u.published
    assert fresh.published  # computes as the published unit does, operation by operation
    u.published = True
    assert torch.equal(u(x, g)[0], fresh(x, g)[0])
    u.published = False
    assert torch.allclose(u(x, g)[0], fresh(x, g)[0], atol=1e-5)


def test_official_weights_that_do_not_fit():
    u = CrossModalPrompt(16, 32, 9, 24, SMALL)
    state = official_state(u)
    with pytest.raises(ValueError, match="'extra'"):
        load_official(u, state | {"extra": torch.ones(1)})
    with pytest.raises(ValueError, match=r"no 'fc\.weight'"):
        load_official(u, {k: x for k, x in state.items() if k != "fc.weight"})
    with pytest.raises(ValueError, match="this unit needs"):
        load_official(u, state | {"my_tokens": torch.ones(2, 2)})


def test_transformers_encoders_are_unchanged():
    from companion.dgsct.towers import clip_tower, htsat_tower, swinv2_tower

    torch.manual_seed(0)
    swin = swinv2_tower(
        image_size=32, embed_dim=24, depths=[2, 3], num_heads=[2, 4], window_size=4, mlp_ratio=2.0
    )
    hts = htsat_tower(num_mel_bins=16, spec_size=32, window_size=4, depths=[2, 1], num_attention_heads=[2, 4],
                      patch_embeds_hidden_size=24, hidden_size=48)  # fmt: skip
    clip = clip_tower(image_size=32, patch_size=8, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
                      num_attention_heads=2)  # fmt: skip
    for tower in (swin, hts, clip):
        tower.eval()
    images, mel = torch.randn(2, 3, 32, 32), torch.randn(2, 1, 64, 16)
    with torch.no_grad():
        assert torch.equal(swin(images), swin.model(images).last_hidden_state)
        hts.final_norm = True
        assert torch.allclose(hts(mel).mean(1), hts.encoder(mel).pooler_output, atol=1e-6)
        hts.final_norm = False
        for visual in (swin, clip):
            out = DualGuidedEncoder(visual, hts, SMALL).eval()(images, mel)
            assert torch.equal(out.visual, visual(images))
            assert torch.equal(out.audio, hts(mel))


@pytest.mark.parametrize(("change", "message"), [
    ({"remap": "linear"}, "remap is 'linear'"), ({"token_init": "ones"}, "token_init is 'ones'"),
    ({"tokens": 0}, "tokens 0"), ({"init": "xavier"}, "init is 'xavier'"),
])  # fmt: skip
def test_config_says_what_is_wrong(change, message):
    with pytest.raises(ValueError, match=message):
        PromptConfig(**change)


def test_unit_and_encoder_say_what_is_wrong():
    with pytest.raises(ValueError, match="does not divide the width 30"):
        CrossModalPrompt(16, 30, 16, 30, SMALL)
    u = CrossModalPrompt(16, 32, 9, 24, SMALL)
    with pytest.raises(ValueError, match="given 8 and 16"):
        u(torch.zeros(1, 16, 32), torch.zeros(1, 8, 24))
    with pytest.raises(ValueError, match="square grids"):
        CrossModalPrompt(16, 32, 10, 24, replace(SMALL, remap="bicubic"))
    v, a = towers()
    with pytest.raises(ValueError, match="order is 'later'"):
        DualGuidedEncoder(v, a, SMALL, order="later")
    e = DualGuidedEncoder(v, a, SMALL)
    with pytest.raises(ValueError, match="2 frames but 3 sounds"):
        e(torch.randn(2, 3, 32, 32), torch.randn(3, 1, 64, 16))
    with pytest.raises(ValueError, match="guide is 'both'"):
        e(torch.randn(2, 3, 32, 32), torch.randn(2, 1, 64, 16), guide="both")


@pytest.mark.parametrize("kind", [CrossModalPrompt, FastPrompt])
@pytest.mark.parametrize(("x", "g", "message"), [
    ((2, 16, 32), (2, 8, 24), "given 8 and 16"),
    ((2, 16, 31), (2, 9, 24), "features 32 and a guide 24 wide, not 31 and 24"),
    ((2, 16, 32), (2, 9, 32), "not 32 and 32"),
    ((3, 16, 32), (2, 9, 24), "3 frames of features and 2 of the guide"),
    ((0, 16, 32), (0, 9, 24), "0 frames of features"),
    ((16, 32), (9, 24), "2 and 2 axes"),
])  # fmt: skip
def test_unit_refuses_what_it_was_not_made_for(kind, x, g, message):
    with pytest.raises(ValueError, match=message):
        kind(16, 32, 9, 24, SMALL)(torch.zeros(x), torch.zeros(g))


@pytest.mark.parametrize("order", ORDERS)
def test_recomputed_activations_change_memory_and_nothing_else(order):
    """Loss, gradients and BatchNorm's running statistics are the same, bit for bit; fewer tensors are kept."""

    def train(recompute):
        encoder = DualGuidedEncoder(*towers(((2, 3), (1, 1))), SMALL, order=order)
        torch.manual_seed(4)
        for unit in (u for group in (encoder.visual_1, encoder.audio_2) for u in group):
            busy(unit)
        if recompute:
            checkpoint_activations(encoder)
        kept = [0]

        def note(t):
            kept[0] += t.numel()
            return t

        encoder.train()
        torch.manual_seed(5)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            out = encoder(torch.randn(4, 3, 32, 32), torch.randn(4, 1, 64, 16))
        sum(x.square().mean() for x in out.pooled("map")).backward()
        return kept[0], encoder

    kept, plain = train(False)
    less, recomputed = train(True)
    assert less < kept / 2
    for (name, p), (same, q) in zip(plain.named_parameters(), recomputed.named_parameters(), strict=True):
        assert name == same
        assert (p.grad is None and q.grad is None) or torch.equal(p.grad, q.grad)
    assert any(p.grad is not None and p.grad.any() for p in recomputed.unit_parameters())
    there = recomputed.state_dict()
    assert all(torch.equal(value, there[name]) for name, value in plain.state_dict().items())
    assert any(name.endswith("num_batches_tracked") and value == 1 for name, value in there.items())


def test_a_copy_of_a_recomputed_encoder_is_its_own():
    encoder = checkpoint_activations(DualGuidedEncoder(*towers(), SMALL)).eval()
    images, sounds = torch.randn(2, 3, 32, 32), torch.randn(2, 1, 64, 16)
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        before = encoder(images, sounds).visual
        for p in other.parameters():
            p.data.add_(1.0)
        assert torch.equal(encoder(images, sounds).visual, before)
        assert not torch.allclose(other(images, sounds).visual, before)
        other.load_state_dict(encoder.state_dict())
        loss = other.train()(images, sounds).visual.square().mean()
        loss.backward()
        assert all(p.grad is None for p in encoder.parameters())
        assert other.visual_2[-1].gate.grad is not None


def test_recomputing_needs_paired_encoders():
    with pytest.raises(ValueError, match="Linear holds no DualGuidedEncoder"):
        checkpoint_activations(torch.nn.Linear(2, 2))
