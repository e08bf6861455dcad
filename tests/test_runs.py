"""Sums of neighbours, on every platform, against a loop over the runs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_sparse_grad._primitives import NONE
from jax_sparse_grad._runs import sum_runs_by_gathers, sum_runs_by_shifts, sum_runs_unrolled
from samples import random_values

METHODS = {
    "cpu": sum_runs_by_gathers,
    "gpu": sum_runs_unrolled,
    "tpu": sum_runs_by_shifts,
}


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.complex64, jnp.bfloat16])
@pytest.mark.parametrize("method", METHODS)
def test_runs_are_summed_by_halves(rng, method, dtype):
    runs = np.sort(rng.integers(0, 9, 50))
    values = random_values(rng, (50, 2), dtype)
    counted = jnp.asarray(np.where(runs < 8, runs, NONE), jnp.int32)
    summed = np.asarray(jax.jit(METHODS[method])(jnp.asarray(values), counted))
    for run in range(8):
        where = np.flatnonzero(runs == run)
        np.testing.assert_array_equal(summed[where[0]], values[where].sum(axis=0))
    np.testing.assert_array_equal(summed[runs == 8], values[runs == 8])


@pytest.mark.parametrize("size", [0, 1, 7])
@pytest.mark.parametrize("method", METHODS)
def test_entries_of_their_own_stay_bit_for_bit(method, size):
    values = jnp.asarray([-0.0, np.nan, np.inf, 0.0, -1.0, 1e-45, -0.0][:size], jnp.float32)
    summed = jax.jit(METHODS[method])(values, jnp.arange(size, dtype=jnp.int32))
    np.testing.assert_array_equal(np.asarray(summed).view(np.uint32), np.asarray(values).view(np.uint32))


def test_all_methods_add_in_the_same_order(rng):
    """Down to the last bit, whatever was rounded."""
    runs = jnp.asarray(np.sort(rng.integers(0, 5, 60)), jnp.int32)
    values = jnp.asarray(rng.normal(size=60), jnp.float32)
    first = np.unique(np.asarray(runs), return_index=True)[1]
    sums = [np.asarray(jax.jit(method)(values, runs))[first] for method in METHODS.values()]
    np.testing.assert_array_equal(sums[0], sums[1])
    np.testing.assert_array_equal(sums[0], sums[2])
