"""Sharded operands under JAX's settings."""

import contextlib

import jax
import numpy as np
import pytest

from helpers.shards import SHAPE, canonical, check_form, dense_of, make_mesh, random_matrix
from jax_sparse_grad import sharded


@contextlib.contextmanager
def strictly():
    with jax.numpy_dtype_promotion("strict"), jax.transfer_guard("disallow"):
        yield


SETTINGS = {
    "strict promotion, no implicit transfers": strictly,
    "another default device": lambda: jax.default_device(jax.devices()[3]),
    "a default device by name": lambda: jax.default_device("cpu"),
}


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
def test_from_the_host_to_a_sum_and_its_gradient(rng, setting):
    mesh, axis, _ = make_mesh()
    first, second = (canonical(random_matrix(rng, nnz)) for nnz in (90, 60))
    with SETTINGS[setting]():
        x = sharded.from_shards(lambda start, stop: first[start:stop], SHAPE, mesh, axis)
        y = sharded.partition(second, mesh, axis, row_starts=np.arange(9) * 5)
        starts = sharded.balanced_row_starts([x, y])
        x, y = (sharded.repartition(each, starts) for each in (x, y))
        total = sharded.add(x, y, assume_canonical=True)
        (gradient,) = jax.vjp(lambda u: sharded.add(x.with_data(u), y, assume_canonical=True).data, x.data)[1](
            total.data
        )
    check_form(total)
    np.testing.assert_array_equal(dense_of(total), (first + second).toarray())
    np.testing.assert_array_equal(dense_of(x.with_data(gradient)), (first + second).toarray() * (first.toarray() != 0))
