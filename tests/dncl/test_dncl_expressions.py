"""The evaluator against sympy, the generator against its counting table, the noise against its formula."""

import math
import random

import pytest
import sympy
import torch

from companion import training
from companion.dncl import data, generator
from companion.dncl import expressions as ex

CONFIG = generator.GeneratorConfig(variables=2, operators=(1, 5), constants=2, length=16)


def test_the_evaluator_agrees_with_sympy_on_random_formulas():
    formulas = generator.skeletons(150, CONFIG, seed=1)
    rng = training.generator("sympy")
    c = torch.rand(150, 2, generator=rng, dtype=torch.float64) + 0.5
    x = torch.rand(150, 7, 2, generator=rng, dtype=torch.float64) + 0.2
    got = ex.evaluate(ex.batch(formulas), c, x)
    compared, defined = 0, 0
    for k, ids in enumerate(formulas):
        want = data.values(ex.to_sympy(ids, c[k].tolist()), x[k])
        both = torch.isfinite(want) & torch.isfinite(got[k])
        compared += int(both.sum())
        defined += int(torch.isfinite(want).sum())
        torch.testing.assert_close(got[k][both], want[both], rtol=1e-9, atol=1e-9)
    # sympy may cancel an undefined part (the square of a root of a negative number); nothing else may be lost
    assert compared >= 0.97 * defined > 700


def test_padding_and_batch_neighbours_do_not_change_a_value():
    ids = ex.encode("add mul C x1 sin x1")
    x = torch.linspace(0.1, 2, 5, dtype=torch.float64).view(1, 5, 1)
    c = torch.tensor([[1.5]], dtype=torch.float64)
    alone = ex.evaluate(torch.tensor([ids]), c, x)
    other = ex.encode("div x1 sub x1 x1")  # infinite everywhere
    together = ex.evaluate(ex.batch([ids, other], length=12), c.expand(2, 1), x.expand(2, -1, -1))
    assert torch.equal(alone[0], together[0])
    assert not torch.isfinite(together[1]).any()


def test_the_evaluator_never_asks_for_a_value():
    # tensors of the meta device have none: whatever would wait for a GPU raises here
    tokens = torch.ones(6, 9, dtype=torch.long, device="meta")
    out = ex.evaluate(tokens, torch.ones(6, 2, device="meta"), torch.ones(6, 20, 3, device="meta"))
    assert out.shape == (6, 20)
    with pytest.raises(RuntimeError):
        bool((tokens > 0).any())


def test_forward_derivatives_of_constants():
    ids = torch.tensor([ex.encode("mul C exp mul C x1")])
    x = torch.tensor([[[0.5], [1.0]]], dtype=torch.float64)
    c = torch.tensor([[2.0, 0.3]], dtype=torch.float64)
    for k, want in enumerate([torch.exp(0.3 * x[0, :, 0]), 2 * x[0, :, 0] * torch.exp(0.3 * x[0, :, 0])]):
        e = torch.zeros_like(c)
        e[0, k] = 1
        torch.testing.assert_close(torch.func.jvp(lambda t: ex.evaluate(ids, t, x), (c,), (e,))[1][0], want)


@pytest.mark.parametrize(
    "text", ["sin(x1**2)*cos(x1) - 1", "x1**4 + x1**3", "sqrt(x1)/(x2 + 1)", "exp(-x1)", "x1**x2"]
)
def test_from_sympy_keeps_the_function(text):
    truth = data.truth(text)
    ids = ex.from_sympy(truth)
    assert ex.complete(ids)
    constants = [float(n) for n in (1.0, 1.0, 1.0)]
    x = torch.rand(5, 2, generator=training.generator(1), dtype=torch.float64) + 0.5
    if ex.CONST not in ids:
        got = ex.evaluate(torch.tensor([ids]), torch.tensor([constants]).double(), x[None])[0]
        torch.testing.assert_close(got, data.values(truth, x))


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match="'plus'"):
        ex.encode("plus x1 x1")
    with pytest.raises(ValueError, match="gamma"):
        ex.from_sympy(sympy.gamma(sympy.Symbol("x1", real=True)))
    with pytest.raises(ValueError, match="complete"):
        ex.to_sympy(ex.encode("add x1"))


def brute(e, n):
    """All ways to fill e places with n operators, written out."""
    if e == 0:
        return 0 if n else 1
    if n == 0:
        return 1
    return brute(e - 1, n) + brute(e, n - 1) + brute(e + 1, n - 1)


def test_the_counting_table_counts():
    assert [generator.count(1, n) for n in range(5)] == [brute(1, n) for n in range(5)]
    # unary-binary trees with n internal nodes: the large Schroeder numbers
    assert [generator.count(1, n) for n in range(1, 7)] == [2, 6, 22, 90, 394, 1806]


def test_tree_shapes_are_drawn_uniformly():
    rng = random.Random(0)

    def shape(t):
        return tuple(shape(c) for c in t[1:])

    seen = {}
    for _ in range(6600):
        s = shape(generator.random_tree(rng, 3, 1))
        seen[s] = seen.get(s, 0) + 1
    assert len(seen) == generator.count(1, 3) == 22
    chi2 = sum((n - 300) ** 2 / 300 for n in seen.values())
    assert chi2 < 46.8  # 99.9 % point of chi-square with 21 degrees of freedom


def test_skeletons_are_valid_distinct_and_repeatable():
    pool = generator.skeletons(400, CONFIG, seed=3)
    assert pool == generator.skeletons(400, CONFIG, seed=3)
    assert pool != generator.skeletons(400, CONFIG, seed=4)
    assert len({tuple(s) for s in pool}) == 400
    assert len(set(generator.value_hash(pool))) == 400
    for ids in pool:
        assert ex.complete(ids)
        assert len(ids) <= CONFIG.length
        assert ids.count(ex.CONST) <= CONFIG.constants
        used = {t for t in ids if ex.FIRST_VARIABLE <= t < ex.FIRST_UNARY}
        assert used <= {ex.ID["x1"], ex.ID["x2"]}


def test_the_benchmark_stays_out_of_pools():
    # small formulas fill the whole space, so without the filter some Nguyen equation is always drawn
    shape = generator.GeneratorConfig(variables=1, operators=(1, 2), constants=0, length=6)
    marks = data.benchmark_hashes()
    assert len(marks) >= 10
    leaky = generator.skeletons(60, shape, seed=0)
    assert any(m in marks for m in generator.value_hash(leaky)), "sqrt(x1), Nguyen-8, is in any small pool"
    clean = generator.skeletons(60, shape, seed=0, without=marks)
    assert not any(m in marks for m in generator.value_hash(clean))


def test_the_same_function_in_another_writing_has_the_same_hash():
    pairs = [("add x1 sin x1", "add sin x1 x1"), ("mul x1 x1", "pow2 x1"), ("sub x1 mul C x1", "mul C x1")]
    for a, b in pairs[:2]:
        one, two = generator.value_hash([ex.encode(a), ex.encode(b)])
        assert one == two
    assert generator.value_hash([ex.encode("sin x1")]) != generator.value_hash([ex.encode("cos x1")])


def test_a_pool_that_cannot_be_filled_says_so():
    with pytest.raises(ValueError, match="about"):
        generator.skeletons(
            10_000, generator.GeneratorConfig(operators=(1, 1), constants=0, length=3), seed=0
        )


def test_noise_is_eta_times_the_root_mean_square():
    y = torch.full((1, 200_000), 10.0)  # constant: its standard deviation is 0, its RMS is 10
    noisy = data.add_noise(y, 0.05, training.generator(0))
    assert float((noisy - y).std()) == pytest.approx(0.5, rel=0.01)
    assert float((noisy - y).mean()) == pytest.approx(0.0, abs=0.01)
    assert torch.equal(data.add_noise(y, 0.0, training.generator(0)), y)


def test_masked_points_do_not_count_towards_the_noise():
    y = torch.cat([torch.ones(1, 100_000), torch.full((1, 100_000), 1000.0)], 1)
    mask = torch.arange(200_000)[None] < 100_000
    noisy = data.add_noise(y, 0.1, training.generator(0), mask)
    assert float((noisy - y)[mask].std()) == pytest.approx(0.1, rel=0.02)


def test_pool_batches_depend_on_the_seed_and_number_only():
    pool = data.Pool(generator.skeletons(50, CONFIG, 0), 2, data.PointConfig(), data.NoiseConfig())
    a, b = pool.batches(8, seed=0), pool.batches(8, seed=0)
    b(0)
    for one, two in zip(a(5), b(5), strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(a(5).clean, a(6).clean)


@pytest.mark.parametrize("resample", [False, True])
def test_views_are_of_the_same_formula(resample):
    pool = data.Pool(generator.skeletons(50, CONFIG, 0), 2, data.PointConfig(resample=resample),
                     data.NoiseConfig(eta=0.0))  # fmt: skip
    v = pool.draw(32, training.generator(0))
    assert v.tokens[:, 0].eq(ex.START).all()
    assert v.tokens.eq(ex.END).sum(1).eq(1).all()
    assert torch.isfinite(v.clean).all()
    same = torch.equal(v.clean, v.noisy)
    assert same != resample
    for row, skeleton in zip(v.tokens.tolist(), v.skeleton.tolist(), strict=True):
        assert [t for t in row if t > ex.END] == [t for t in pool.tokens[skeleton].tolist() if t > ex.END]


def test_nguyen_problems_have_the_published_points_and_clean_tests():
    quiet, loud = data.nguyen(0.0, seed=1), data.nguyen(0.1, seed=1)
    assert len(quiet) == 12
    assert {p.name.split("/")[0] for p in data.nguyen(0.0, 1, variables=1)} == {
        f"Nguyen-{k}" for k in range(1, 9)
    }
    for a, b in zip(quiet, loud, strict=True):
        assert len(a.x) == 20
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.test_y, b.test_y)
        torch.testing.assert_close(a.y, data.values(a.truth, a.x))
        assert not torch.equal(a.y, b.y)
    residual = torch.cat([(b.y - a.y) / a.y.square().mean().sqrt() for a, b in zip(quiet, loud, strict=True)])
    assert float(residual.std()) == pytest.approx(0.1, rel=0.15)
    with pytest.raises(ValueError, match="-1"):
        data.nguyen(-1, 0)


def test_the_dso_table_is_read_in_its_own_format(tmp_path):
    path = tmp_path / "benchmarks.csv"
    path.write_text(
        "name,variables,expression,train_spec,test_spec,function_set\n"
        'Keijzer-15,2,"div(pow(x1,3),5)+div(pow(x2,3),2)-x2-x1","{""all"":{""U"":[-3,3,20]}}","{""all"":{""E"":[-3,3,0.01]}}",Keijzer\n'
        'Korns-1,5,1.57+24.3*x4,"{""all"":{""U"":[-50,50,100]}}","{""all"":{""U"":[-50,50,100]}}",Korns\n'
        'Koza-2,1,"pow(x1,5)-2*pow(x1,3)+x1","{""all"":{""U"":[-1,1,20]}}",None,Koza\n'
    )
    found = data.read_dso(path)
    assert list(found) == ["Keijzer-15", "Koza-2"]
    x1, x2 = sympy.symbols("x1 x2", real=True)
    assert sympy.simplify(found["Keijzer-15"]["expression"] - (x1**3 / 5 + x2**3 / 2 - x2 - x1)) == 0
    assert found["Keijzer-15"]["test"] == [("E", -3, 3, 0.01)] * 2
    assert found["Koza-2"]["test"] == found["Koza-2"]["train"] == [("U", -1, 1, 20)]
    assert list(data.read_dso(path, families=("Koza",))) == ["Koza-2"]
    bad = tmp_path / "other.csv"
    bad.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="train_spec"):
        data.read_dso(bad)
    assert math.isclose(float(found["Koza-2"]["expression"].subs(x1, 2)), 32 - 16 + 2)
