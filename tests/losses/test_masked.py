"""Order statistics, the quantile filter against its rule on a plain list, means that merge."""

import functools
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lite3r_jax.losses import Masked, filter_by_quantile, kth_smallest
from lite3r_jax.losses.masked import quantile_rank


@pytest.mark.parametrize("quantile", [0.95, 0.98, 0.9, 0.99, 0.5, 0.925, 0.1, 1.0, 0.9999])
def test_ranks_are_those_of_python_rounding(quantile):
    n = np.concatenate([np.arange(1, 200_000), 2**24 + np.arange(100_000), 10**8 - np.arange(100)])
    want = np.rint(quantile * (n.astype(np.float64) - 1)).astype(np.int64) + 1
    rank = jax.jit(quantile_rank, static_argnums=0)
    np.testing.assert_array_equal(rank(quantile, n), want)
    assert round(quantile * 10) + 1 == quantile_rank(quantile, 11)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["normal", "ties", "tiny", "infinite"]))
def test_kth_smallest_is_that_of_a_sort(seed, kind):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(20, 30)).astype(np.float32)
    if kind == "ties":
        values = np.round(values)  # with zeros of both signs
    elif kind == "tiny":
        values *= np.float32(1e-42)
    elif kind == "infinite":
        values[rng.random(values.shape) < 0.2] = rng.choice([-np.inf, np.inf])
    mask = rng.random(values.shape) < rng.choice([0.02, 0.5, 1])
    mask[0, 0] = True
    values[~mask] = np.nan
    k = int(rng.integers(1, mask.sum() + 1))
    pick = jax.jit(kth_smallest)
    assert pick(values, mask, k) == np.sort(values[mask])[k - 1]
    assert np.isnan(pick(values, mask, 0))
    assert np.isnan(pick(values, mask, int(mask.sum()) + 1))


@functools.partial(jax.jit, static_argnums=2)
def filter_and_slope(values, mask, quantile):
    def total(values):
        kept = filter_by_quantile(values, mask, quantile)
        return kept.sum, kept

    (_, kept), slope = jax.value_and_grad(total, has_aux=True)(values)
    return kept, slope


def filtered(values, quantile):
    """The rule of the original on a plain list."""
    if len(values) <= 1000:
        return values
    threshold = np.sort(values)[round(quantile * (len(values) - 1))]
    kept = values[values < threshold]
    return kept if len(kept) > 1000 else values


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([0, 1, 999, 1000, 1001, 1002, 1112, 1200, 2000]),
    st.sampled_from([0.5, 0.9, 0.95, 1.0]),
    st.booleans(),
)
def test_filter_keeps_what_the_original_keeps(seed, valid, quantile, ties):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=2000).astype(np.float32)
    values = np.round(values, 1) if ties else values
    mask = np.zeros(2000, bool)
    mask[rng.permutation(2000)[:valid]] = True
    kept, slope = filter_and_slope(values, mask, quantile)
    want = filtered(values[mask], quantile)
    assert kept.count == len(want)
    np.testing.assert_allclose(kept.sum, want.astype(np.float64).sum(), rtol=1e-4, atol=1e-3)
    assert set(np.unique(slope)) <= {0, 1}
    assert slope.sum() == len(want)
    np.testing.assert_array_equal(np.asarray(slope)[~mask], 0)


def test_masked_means_merge_exactly():
    of = jax.jit(Masked.of)
    rng = np.random.default_rng(3)
    values, mask = rng.normal(size=(6, 50)).astype(np.float32), rng.random((6, 50)) < 0.3
    mask[0] = False
    whole = of(values, mask)
    parts = [of(np.where(m, v, np.nan), m) for v, m in zip(values, mask, strict=True)]
    merged = parts[0] + parts[1] + parts[2] + parts[3] + parts[4] + parts[5]
    assert merged.count == whole.count == mask.sum()
    np.testing.assert_allclose(merged.mean, values[mask].mean(), rtol=1e-5)
    np.testing.assert_allclose(whole.mean, values[mask].mean(), rtol=1e-5)
    assert parts[0].mean == 0
    grad = jax.grad(lambda x: of(x, mask[0]).mean)(values[0])
    np.testing.assert_array_equal(grad, 0)
    assert of(values[..., None], mask[..., None]).count == mask.sum()
    assert of(np.ones((6, 50, 3), np.float32), mask[..., None]).count == 3 * mask.sum()


@pytest.mark.slow
def test_sharding_the_batch_changes_nothing():
    program = textwrap.dedent("""
        import jax, numpy as np
        jax.config.update("jax_num_cpu_devices", 4)
        from jax.sharding import NamedSharding, PartitionSpec
        from lite3r_jax.losses import MapLoss, filter_by_quantile, map_terms

        rng = np.random.default_rng(0)
        shape = (4, 2, 16, 20)
        truth = rng.uniform(1, 2, (*shape, 1)).astype(np.float32)
        pred = truth + rng.normal(size=truth.shape).astype(np.float32) / 10
        conf = rng.uniform(1, 5, shape).astype(np.float32)
        mask = rng.random(shape) < np.float32([0.9, 0.1, 0.7, 1]).reshape(4, 1, 1, 1)
        loss = MapLoss(gradient="grad", valid_range=0.9)
        run = jax.jit(jax.value_and_grad(
            lambda p, *rest: (lambda t: (t["conf"] + t["reg"] + t["grad"], t))(
                map_terms(loss, p, *rest)), has_aux=True))
        one, slope = run(pred, conf, truth, mask)
        sharding = NamedSharding(jax.make_mesh((4,), ("data",)), PartitionSpec("data"))
        data = jax.device_put((pred, conf, truth, mask), sharding)
        four, slopes = run(*data)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=2e-6), one, four)
        np.testing.assert_allclose(slopes, slope, rtol=1e-4, atol=1e-8)
        assert slopes.sharding.is_equivalent_to(sharding, 5)
        program = jax.jit(lambda x, m: filter_by_quantile(x, m, 0.9).mean)
        text = program.lower(data[1], data[3]).compile().as_text()
        assert "all-reduce" in text and "all-gather" not in text and " sort(" not in text
    """)
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
