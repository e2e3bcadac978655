"""Encoder, loss, search and metrics: invariances and closed forms."""

import math

import pytest
import sympy
import torch

from companion import training
from companion.dncl import data, generator, metrics, model, search
from companion.dncl import expressions as ex

SHAPE = generator.GeneratorConfig(variables=1, operators=(1, 3), constants=1, length=9)
SIZES = model.ModelConfig(variables=1, d=16, heads=2, inducing=4, seeds=3, decoder=1, length=9, projection=8)


@pytest.fixture(scope="module")
def pool():
    return data.Pool(generator.skeletons(40, SHAPE, 0), 1, data.PointConfig(), data.NoiseConfig())


@pytest.fixture
def net():
    training.seed_everything(0)
    return model.DNCL(SIZES).eval()


def test_order_and_padding_of_points_do_not_matter(net, pool):
    v = pool.draw(4, training.generator(0))
    h, z = net.encode(v.clean, v.clean_mask)
    order = torch.randperm(v.clean.shape[1])
    h2, z2 = net.encode(v.clean[:, order], v.clean_mask[:, order])
    torch.testing.assert_close(h, h2, atol=1e-5, rtol=1e-4)
    junk = torch.where(v.clean_mask[..., None], v.clean, torch.tensor(123.0))
    h3, z3 = net.encode(junk, v.clean_mask)
    torch.testing.assert_close(z, z2, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(h, h3, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(z3.norm(dim=1), torch.ones(4))


def test_the_decoder_does_not_look_ahead(net, pool):
    v = pool.draw(2, training.generator(0))
    h, _ = net.encode(v.clean, v.clean_mask)
    tokens = v.tokens[:, :5]
    changed = tokens.clone()
    changed[:, 4] = ex.ID["tan"]
    torch.testing.assert_close(net.decoder(tokens, h)[:, :4], net.decoder(changed, h)[:, :4])


def test_info_nce_closed_forms():
    blind = torch.ones(8, 4) / 2
    ids = torch.arange(8)
    assert float(model.info_nce(blind, blind, ids, 0.1)) == pytest.approx(math.log(8), rel=1e-5)
    sharp = torch.eye(8)
    want = -math.log(math.e**10 / (math.e**10 + 7))
    assert float(model.info_nce(sharp, sharp, ids, 0.1)) == pytest.approx(want, abs=1e-6)


def test_same_skeletons_are_not_negatives():
    q = torch.nn.functional.normalize(torch.randn(6, 4, generator=training.generator(0)), dim=1)
    k = torch.nn.functional.normalize(torch.randn(6, 4, generator=training.generator(1)), dim=1)
    one = torch.zeros(6, dtype=torch.long)
    assert float(model.info_nce(q, k, one, 0.1)) == pytest.approx(0.0, abs=1e-6)
    assert float(model.info_nce(q, k, one, 0.1, mask_same=False)) > 0.5
    assert model.info_nce(q, k, torch.arange(6), 0.1) == model.info_nce(
        q, k, torch.arange(6), 0.1, mask_same=False
    )


def test_lambda_zero_is_the_mean_cross_entropy_of_both_views(net, pool):
    v = pool.draw(8, training.generator(2))
    both, parts = model.dncl_loss(net, v, model.LossConfig(contrast=0.0))
    clean, _ = model.dncl_loss(net, v, model.LossConfig("clean", 0.0))
    noisy, _ = model.dncl_loss(net, v, model.LossConfig("noisy", 0.0))
    torch.testing.assert_close(both, (clean + noisy) / 2)
    torch.testing.assert_close(parts["cross_entropy"], both.detach())
    more, parts = model.dncl_loss(net, v, model.LossConfig(contrast=0.5))
    torch.testing.assert_close(more.detach(), both.detach() + 0.5 * parts["contrast"])


def test_bad_configs_are_refused():
    with pytest.raises(ValueError, match="both"):
        model.LossConfig("clean", 0.1)
    with pytest.raises(ValueError, match="'none'"):
        model.LossConfig("none", 0.0)
    with pytest.raises(ValueError, match="aic"):
        search.SearchConfig(selection="aic")
    with pytest.raises(ValueError, match="4"):
        generator.GeneratorConfig(variables=4)


def test_a_few_steps_reduce_the_loss_and_the_views_come_together(pool):
    training.seed_everything(0)
    fresh = model.DNCL(SIZES)
    choice = model.LossConfig()
    out = training.fit(fresh, lambda m, b: model.dncl_loss(m, b, choice), pool.batches(16, 0),
                       training.FitConfig(steps=60, lr=5e-3, warmup=10), cpu=True)  # fmt: skip
    curve = out.curves["cross_entropy"]
    assert curve[-1][1] < 0.8 * curve[0][1]
    assert out.curves["contrast"][-1][1] < 0.5 * out.curves["contrast"][0][1]


def test_every_beam_is_a_formula_of_allowed_length(net, pool):
    v = pool.draw(5, training.generator(0))
    for beams in search.beam_search(net, v.noisy, v.noisy_mask, width=12):
        assert len(beams) >= 8
        assert len({tuple(ids) for ids, _ in beams}) == len(beams)
        scores = [s for _, s in beams]
        assert scores == sorted(scores, reverse=True)
        for ids, _ in beams:
            assert ex.complete(ids)
            assert len(ids) <= SIZES.length


def test_a_wide_beam_finds_the_most_probable_formula(net, pool):
    """Against enumeration: all formulas of at most 3 tokens, scored by teacher forcing."""
    small = model.DNCL(
        model.ModelConfig(variables=1, d=16, heads=2, inducing=4, seeds=3, decoder=1, length=3)
    )
    small.eval()
    v = pool.draw(1, training.generator(0))
    leaves, unary, binary = ["C", "x1"], ex.UNARY, ex.BINARY
    texts = (
        leaves
        + [f"{u} {a}" for u in unary for a in leaves]
        + [f"{u} {w} {a}" for u in unary for w in unary for a in leaves]
    )
    texts += [f"{b} {a} {c}" for b in binary for a in leaves for c in leaves]

    def log_probability(ids):
        row, total, places = [ex.START], 0.0, 1
        h, _ = small.encode(v.clean, v.clean_mask)
        for token in [*ids, ex.END]:
            t = torch.tensor([row])
            logits = small.decoder(t, h)[0, -1]
            ok = search.allowed(t, torch.tensor([places]), 3, 1)[0]
            total += float(logits.masked_fill(~ok, -math.inf).log_softmax(-1)[token])
            places += int(ex.ARITY[token]) - 1 if token > ex.END else 0
            row.append(token)
        return total

    with torch.no_grad():
        scored = {text: log_probability(ex.encode(text)) for text in texts}
        assert sum(math.exp(s) for s in scored.values()) == pytest.approx(1.0, abs=1e-4)
        (found,) = search.beam_search(small, v.clean, v.clean_mask, width=len(texts))
    by_total = {ex.decode(ids): s * (len(ids) + 1) for ids, s in found}
    assert set(by_total) == set(texts)
    for text in texts:
        assert by_total[text] == pytest.approx(scored[text], abs=1e-3)


def test_constants_are_found():
    cases = [
        ("mul C sin mul C x1", (1.7, 0.8)),
        ("add C exp mul C x1", (-2.0, 0.5)),
        ("div C add C x1", (3.0, 1.2)),
    ]
    x = torch.linspace(0.2, 3, 40, dtype=torch.float64).view(1, -1, 1)
    for text, truth in cases:
        tokens = torch.tensor([ex.encode(text)])
        y = ex.evaluate(tokens, torch.tensor([truth], dtype=torch.float64), x)
        c, mse = search.fit_constants(tokens, x, y, torch.ones_like(y), restarts=6, iterations=40, seed=0)
        assert float(mse) < 1e-16, text
        again = ex.evaluate(tokens, c, x)
        torch.testing.assert_close(again, y)


def test_the_linear_case_is_least_squares_and_weights_count():
    g = training.generator(0)
    x = torch.rand(1, 30, 1, generator=g, dtype=torch.float64)
    y = 2 + 3 * x[..., 0] + 0.1 * torch.randn(1, 30, generator=g, dtype=torch.float64)
    y[0, 0] = 100.0
    w = torch.ones(1, 30, dtype=torch.float64)
    w[0, 0] = 0
    tokens = torch.tensor([ex.encode("add C mul C x1")])
    c, _ = search.fit_constants(tokens, x, y, w, restarts=2, iterations=20, seed=0)
    A = torch.stack([torch.ones(29, dtype=torch.float64), x[0, 1:, 0]], 1)
    torch.testing.assert_close(c[0], torch.linalg.lstsq(A, y[0, 1:]).solution, rtol=1e-6, atol=1e-6)


def test_bic_prefers_the_short_formula_where_mse_does_not():
    bic, mse = search.SearchConfig(), search.SearchConfig(selection="mse")
    short, long = (0.0100, 20, 1, 4), (0.0099, 20, 3, 12)
    assert search.criterion(*short, bic) < search.criterion(*long, bic)
    assert search.criterion(*short, mse) > search.criterion(*long, mse)


@pytest.mark.parametrize(
    ("found", "right"),
    [
        ("x1**3 + x1**2 + x1", True),
        ("x1*(x1**2 + x1 + 1.0002)", True),  # rounds to 1.000
        ("x1**3 + x1**2 + x1 + 0.7", True),  # off by a constant: SRBench counts it
        ("2.5*x1**3 + 2.5*x1**2 + 2.5*x1", True),  # off by a factor: SRBench counts it
        ("x1**3 + x1**2 + 1.1*x1", False),
        ("x1**3 + x1**2", False),
        ("1.5", False),
    ],
)
def test_symbolic_solution_is_srbenchs(found, right):
    assert metrics.symbolic_solution(data.truth(found), data.truth("x1**3 + x1**2 + x1")) is right


def test_r2_by_hand():
    y = torch.tensor([1.0, 2.0, 3.0])
    assert metrics.r2(y, y) == 1
    assert metrics.r2(y, torch.full((3,), 2.0)) == 0
    assert metrics.r2(y, torch.tensor([1.0, 2.0, float("nan")])) == float("-inf")


def test_judge_scores_the_formula_on_clean_points():
    problem = data.nguyen(0.1, 0, variables=1)[7]
    assert problem.truth == sympy.sqrt(sympy.Symbol("x1", real=True))
    right = search.Candidate(tuple(ex.encode("sqrt x1")), (), 0.1, 0.0)
    wrong = search.Candidate(tuple(ex.encode("exp mul C x1")), (9.0,), 0.1, 0.0)
    out = metrics.judge(problem, [right, wrong])
    assert (out["recovery"], out["accurate"], out["length"]) == (1.0, 1.0, 2)
    assert out["r2"] == pytest.approx(1.0)
    assert metrics.judge(problem, [wrong])["recovery"] == 0.0
    nothing = metrics.judge(problem, [])
    assert metrics.summary([out, nothing])["recovery"] == 50.0
