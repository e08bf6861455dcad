"""Gather, scatter and cond as this package uses them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_sparse_grad._primitives import (
    at,
    gather,
    if_all,
    in_all_batches,
    iota_like,
    scatter,
)


def test_gather_fills_what_lies_past_the_end():
    array = jnp.arange(6.0).reshape(3, 2)
    index = jnp.array([2, 3, 0, 99])
    np.testing.assert_array_equal(gather(array, index, -1), [[4, 5], [-1, -1], [0, 1], [-1, -1]])
    fill = jnp.array([10.0, 20.0, 30.0, 40.0])
    np.testing.assert_array_equal(gather(array, index, fill), [[4, 5], [20, 20], [0, 1], [40, 40]])


def test_gather_from_nothing_is_all_fill():
    np.testing.assert_array_equal(gather(jnp.zeros((0, 2)), jnp.array([0, 5]), 7), [[7, 7], [7, 7]])
    assert gather(jnp.ones(3), jnp.zeros(0, jnp.int32), 0).shape == (0,)


def test_scatter_drops_what_lies_past_the_end():
    values = jnp.array([1, 2, 3, 4])
    np.testing.assert_array_equal(scatter(3, jnp.array([2, 3, 0, 99]), values, fill=-1), [3, -1, 1])
    assert scatter(0, jnp.array([0]), jnp.array([1]), fill=0).shape == (0,)
    np.testing.assert_array_equal(scatter(2, jnp.zeros(0, jnp.int32), jnp.zeros(0), fill=5), [5, 5])


@pytest.mark.parametrize("flags", [[True, True, True], [True, False, True]])
def test_a_conditional_stays_one_under_vmap_and_needs_a_single_exception_to_be_general(flags):
    def double(x):
        return 2 * x

    def doubled_by_sum(x):
        return x + x + 0 * jnp.sort(x)

    def either(flag, x):
        return if_all(flag, double, doubled_by_sum, x)

    nested = jax.vmap(jax.vmap(either))
    flags = jnp.array([flags, [True] * 3])
    x = jnp.arange(12.0).reshape(2, 3, 2)
    chex.assert_trees_all_equal(jax.jit(nested)(flags, x), 2 * x)
    text = str(jax.make_jaxpr(nested)(flags, x))
    assert "cond[" in text
    assert "select_n" not in text


def test_iota_counts_rows():
    np.testing.assert_array_equal(iota_like(jnp.ones((3, 2))), [0, 1, 2])


def test_any_element_stands_for_one_out_of_bounds():
    array = jnp.array([3, 5, 7])
    np.testing.assert_array_equal(at(array, jnp.array([-1, 0, 2, 3])), [3, 3, 7, 7])
    assert at(array[:0], jnp.array([0, 1])).shape == (2,)


def test_a_batch_has_one_answer():
    flags = jnp.array([[True, True], [True, False]])
    np.testing.assert_array_equal(jax.vmap(in_all_batches)(flags[0]), [True, True])
    np.testing.assert_array_equal(jax.vmap(jax.vmap(in_all_batches))(flags), np.zeros((2, 2), bool))
