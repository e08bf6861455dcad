"""`empty`: what a loop that adds starts from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_sparse_grad as jsg
from helpers.matrices import check_canonical, to_dense
from helpers.samples import LAYOUTS, SHAPE, random_bcoo


@pytest.mark.parametrize("layout", LAYOUTS[:2], ids=str)
def test_it_holds_nothing_and_has_the_flags_of_a_sum(rng, layout):
    shape, n_batch, n_dense = layout
    nothing = jsg.empty(shape, 4, jnp.bfloat16, n_batch=n_batch, n_dense=n_dense)
    assert (nothing.nse, nothing.dtype, nothing.indices.dtype) == (4, jnp.bfloat16, jnp.int32)
    check_canonical(nothing)
    assert not to_dense(nothing).any()
    x = random_bcoo(rng, layout)
    np.testing.assert_array_equal(to_dense(jsg.add(nothing, x)), to_dense(x))


def test_a_loop_carries_sums_of_its_structure(rng):
    start, x = jsg.empty(SHAPE, 20, jnp.float32), random_bcoo(rng)
    total = jax.eval_shape(lambda x: jax.lax.fori_loop(0, 4, lambda _, total: jsg.add(total, x, nse=20), start), x)
    assert jax.tree.structure(total) == jax.tree.structure(start)


def test_indices_are_as_wide_as_the_shape_needs(x64):
    assert jsg.empty((2**31 - 1,), 1, np.float64).indices.dtype == jnp.int32
    wide = jsg.empty((2**31, 3), 1, np.float64)
    assert (wide.dtype, wide.indices.dtype, wide.indices.tolist()) == (jnp.float64, jnp.int64, [[2**31, 3]])
    assert jsg.empty((3,), 1, int, index_dtype=jnp.int64).indices.dtype == jnp.int64


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "message"),
    [
        (((2**31,), 1, float), {}, ValueError, r"`shape` must not exceed 2147483647, .*; use uint32 indices"),
        (((3,), None, float), {}, TypeError, "`nse` must be an int, got None"),
        (((3,), -1, float), {}, ValueError, "`nse` must not be negative"),
        (((-3,), 1, float), {}, ValueError, r"`shape` must not have negative sizes, got \(-3,\)"),
        (((3,), 1, "foo"), {}, TypeError, "`dtype` must be a numeric dtype, got 'foo'"),
        (((3,), 1, bool), {}, TypeError, "`dtype` must be a numeric dtype, got <class 'bool'>"),
        (((3,), 1, float), {"index_dtype": float}, TypeError, "`index_dtype` must be an integer dtype, got"),
        (((300,), 1, float), {"index_dtype": np.int8}, ValueError, "`shape` must not exceed 127"),
        (((3,), 1, float), {"n_batch": 1, "n_dense": 1}, ValueError, "`n_batch` and `n_dense` together must not"),
    ],
    ids=str,
)
def test_refusals(arguments, keywords, error, message):
    with pytest.raises(error, match=message):
        jsg.empty(*arguments, **keywords)
