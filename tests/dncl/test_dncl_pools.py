"""The fast generator: canonical, distinct, without benchmarks, split by structure."""

import time

import numpy as np
import pytest

from companion.dncl import expressions as ex
from companion.dncl import pools, pretrained, suites

SHAPE = pools.PoolConfig(2, (1, 4), 2, 14)


@pytest.fixture(scope="module")
def pool():
    return pools.make(8000, SHAPE, 0)


def ids_of(row):
    return [int(t) for t in row if t]


def padded(rows):
    out = np.zeros((len(rows), max(map(len, rows))), dtype=np.uint8)
    for k, row in enumerate(rows):
        out[k, : len(row)] = row
    return out


def test_every_skeleton_is_a_formula_within_the_limits(pool):
    for row in pool.tokens[:2000]:
        ids = ids_of(row)
        assert ex.complete(ids)
        assert len(ids) <= SHAPE.length
        assert ids.count(ex.CONST) <= SHAPE.constants
        assert ex.FIRST_VARIABLE in ids


def test_no_two_are_equal_as_tokens_or_as_functions(pool):
    assert len(np.unique(pool.tokens, axis=0)) == len(pool)
    some = [pools.wrapped(ids_of(r)) for r in pool.tokens[:3000]]
    mark, usable = pools.marks(pools.probe_values(padded(some)))
    assert usable.all()
    assert len(np.unique(mark)) == len(mark)


def test_brackets_and_order_do_not_make_a_new_skeleton():
    same = [
        "add x1 add x2 sin x1", "add add x1 x2 sin x1", "add sin x1 add x2 x1",
    ]  # fmt: skip
    with_constants = ["add x2 mul C sin x1", "add mul C sin x1 x2"]
    for group in (same, with_constants):
        rows = padded([pools.wrapped(ex.encode(t)) for t in group])
        assert len(np.unique(pools.marks(pools.probe_values(rows))[0])) == 1, group
    different = padded([pools.wrapped(ex.encode(t)) for t in ("sin mul C x1", "mul C sin x1", "sin x1")])
    assert len(np.unique(pools.marks(pools.probe_values(different))[0])) == 3


def test_canonical_sorts_operands_and_refuses_trivial_ones():
    rows = padded([ex.encode(t) for t in (
        "mul x1 sin x2", "mul sin x2 x1", "sub x1 x1", "add x1 x1", "div sin x1 sin x1", "sin cos x1", "exp log x1",
    )])  # fmt: skip
    out, good = pools.canonical(rows)
    assert (out[0] == out[1]).all()
    assert good.tolist() == [True, True, False, False, False, False, False]


def test_wrapped_and_prefix_are_inverses(pool):
    for row in pool.tokens[:300]:
        ids = ids_of(row)
        again = pools.prefix(np.array([pools.wrapped(ids)], dtype=np.uint8))[0]
        assert ids_of(again) == ids
    with pytest.raises(ValueError, match="constant"):
        pools.wrapped([ex.CONST])


def test_benchmarks_are_kept_out_also_with_other_constants():
    banned = pools.structure_marks(suites.skeletons())
    clean = pools.make(4000, pools.PoolConfig(1, (1, 3), 2, 12), 1, without=banned)
    free = pools.make(4000, pools.PoolConfig(1, (1, 3), 2, 12), 1)
    targets = ["sqrt x1", "mul C sqrt x1", "add C sin x1", "exp mul C pow2 x1", "add x1 add pow2 x1 pow3 x1",
               "add mul C pow2 x1 add x1 pow3 x1"]  # fmt: skip

    def neutral(tokens):
        rows = padded([pools.wrapped(ids_of(r)) for r in tokens])
        return set(pools.marks(pools.probe_values(rows, "neutral"))[0].tolist())

    structures = {t: neutral([np.array(ex.encode(t))]).pop() for t in targets}
    inside = neutral(free.tokens)
    assert structures["sqrt x1"] in inside  # the test can fail: without the ban Nguyen-8 is generated
    assert structures["sqrt x1"] not in neutral(clean.tokens)
    assert not banned & neutral(clean.tokens)
    # perturbed constants: 3.39 x^3 + 2.12 x^2 + 1.78 x has the structure of Nguyen-1
    assert structures["add x1 add pow2 x1 pow3 x1"] == structures["add mul C pow2 x1 add x1 pow3 x1"]
    assert structures["add x1 add pow2 x1 pow3 x1"] in banned


def test_the_split_is_by_structure(pool):
    seen, held = pool.split(10)
    assert len(seen) + len(held) == len(pool)
    assert 0.05 < len(held) / len(pool) < 0.2
    assert not set(seen.structure.tolist()) & set(held.structure.tolist())
    rows = padded([pools.wrapped(ids_of(r)) for r in held.tokens[:200]])
    marks = pools.marks(pools.probe_values(rows, "neutral"))[0]
    assert (marks == held.structure[:200]).all()


def test_storage_is_tokens_only(pool, tmp_path):
    pool.save(tmp_path / "pool.npz")
    again = pools.SkeletonPool.load(tmp_path / "pool.npz")
    assert (again.tokens == pool.tokens).all()
    assert (again.structure == pool.structure).all()
    assert (tmp_path / "pool.npz").stat().st_size < 24 * len(pool)
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    with pytest.raises(ValueError, match="tokens"):
        pools.SkeletonPool.load(tmp_path / "other.npz")


def test_ten_thousand_distinct_skeletons_per_second():
    config = pools.PoolConfig(3, (1, 6), 3, 22)
    began = time.process_time()
    number = len(pools.make(20_000, config, 5))
    assert number / (time.process_time() - began) > 10_000


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="4"):
        pools.PoolConfig(variables=4)
    with pytest.raises(ValueError, match="hold only about"):
        pools.make(100_000, pools.PoolConfig(1, (1, 1), 0, 3), 0, batch=2000)


def test_row_evaluation_is_the_tensor_programs(pool):
    import torch

    rng = np.random.default_rng(0)
    tokens = pool.tokens[:400].astype(np.int64)
    c, x = rng.uniform(0.5, 2, (400, 2)), rng.uniform(0.2, 2, (400, 7, 2))
    mine = pretrained.evaluate_rows(tokens, c, x)
    ref = ex.evaluate(torch.from_numpy(tokens), torch.from_numpy(c), torch.from_numpy(x)).numpy()
    good = np.isfinite(ref)
    assert (np.isfinite(mine) == good).all()
    np.testing.assert_allclose(mine[good], ref[good], rtol=1e-9)


def test_the_stream_depends_on_the_step_only_and_noise_is_eta_times_rms(pool):
    import torch

    stream = pretrained.Stream(pool, pretrained.StreamConfig(points=(60, 60)), 2, 14)
    batch = stream.batches(64, 3)
    assert torch.equal(batch(5).noisy, batch(5).noisy)
    assert not torch.equal(batch(5).noisy, batch(6).noisy)
    views = stream.draw(400, np.random.default_rng(0), eta=0.1)
    y, noisy = views.clean[..., -1].double(), views.noisy[..., -1].double()
    ratio = (noisy - y).square().mean(1).sqrt() / y.square().mean(1).sqrt()
    assert abs(float(ratio.square().mean().sqrt()) - 0.1) < 0.005
    for other in (0.0, 0.05):
        quiet = stream.draw(400, np.random.default_rng(0), eta=other)
        assert torch.equal(quiet.clean, views.clean)
        assert not torch.equal(quiet.noisy, views.noisy)


def test_suites_are_complete_and_refuse_other_names():
    count = {name: len(suites.choose([name])) for name in suites.NAMES}
    assert count == {"nguyen": 12, "constant": 8, "keijzer": 15, "livermore": 22, "r": 3, "jin": 6, "neat": 8,
                     "koza": 2, "feynman": 53, "strogatz": 14}  # fmt: skip
    with pytest.raises(ValueError, match="korns"):
        suites.choose(["korns"])
    for equation in suites.equations()[::9]:
        a, b = (suites.problem(equation, eta, 0) for eta in (0.0, 0.1))
        assert np.isfinite(a.y.numpy()).all()
        assert len(a.test_y) >= 20
        assert (a.x == b.x).all()
        assert (a.y != b.y).any()
        assert (a.test_y == b.test_y).all()
