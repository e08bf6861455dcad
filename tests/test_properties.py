"""Properties of the sum for any shape, order, duplicates, padding and bounds."""

from functools import partial

import hypothesis
import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

import jax_sparse_grad as jsg
from helpers.matrices import at_rows, is_entry, to_dense, union_indices

# A few shapes and one length, so that a few compilations serve all examples; padding makes the lengths differ.
LENGTH = 9
SHAPES = [(), (3, 4), (2**31 - 1, 3), (2**20, 2**20, 2**20)]


@st.composite
def tensors(draw, in_bounds=True):
    """Two index lists in a small corner of a shape (so that they meet), values, and a table to weigh the sum with."""
    shape = draw(st.sampled_from(SHAPES))
    low, high = (0, 3) if in_bounds else (-2, 5)
    lists = []
    for _ in range(2):
        rows = draw(npst.arrays(np.int32, (LENGTH, len(shape)), elements=st.integers(low, high)))
        if in_bounds:
            rows = np.minimum(rows, np.maximum(np.array(shape) - 1, 0)).astype(np.int32).reshape(LENGTH, len(shape))
        # Padding means nothing for a scalar tensor.
        padding = draw(npst.arrays(bool, LENGTH)) if shape else np.zeros(LENGTH, bool)
        if draw(st.booleans()):
            rows, padding = rows[np.lexsort(rows.T[::-1])] if shape else rows, np.sort(padding)
        rows[padding] = np.array(shape, np.int32)
        lists.append(rows)
    values = draw(npst.arrays(np.float32, (3, LENGTH), elements=st.integers(-50, 50)))
    return shape, *lists, *values


@partial(jax.jit, static_argnums=0)
def add_and_pull(shape, a, b, x, y, weight):
    def add(x, y):
        output = jsg.sparse_add(a, x, shape, b, y, shape, nse=2 * LENGTH)
        return output.sum_values, output.sum_indices

    values, pull, indices = jax.vjp(add, x, y, has_aux=True)
    return indices, values, pull(weight)


def corner(indices, shape):
    """The rows with what lies outside the shape as padding, and the shape no larger than the corner they lie in."""
    small = tuple(min(size, 6) for size in shape)
    return np.where(is_entry(indices, shape).reshape(-1, 1), indices, np.array(small, np.int32)), small


def check(example):
    shape, a, b, x, y, weights = example
    cotangent = np.concatenate([weights, weights])
    # By numpy from here on: JAX would compile for each length that is cut off.
    indices, values, gradients = jax.device_get(add_and_pull(shape, a, b, x, y, cotangent))
    expected = union_indices(a, b, shape=shape)
    nnz = len(expected)
    np.testing.assert_array_equal(indices[:nnz], expected)
    assert np.all(indices[nnz:] == np.array(shape, np.int32))
    np.testing.assert_array_equal(values[nnz:], 0)

    (total, small), (a_rows, _), (b_rows, _) = (corner(rows, shape) for rows in (expected, a, b))
    dense = to_dense(a_rows, x, small) + to_dense(b_rows, y, small)
    np.testing.assert_array_equal(to_dense(total, values[:nnz], small), dense)
    table = to_dense(total, cotangent[:nnz], small)
    for rows, gradient in zip((a_rows, b_rows), gradients, strict=True):
        np.testing.assert_array_equal(gradient, at_rows(table, rows, small))
    return indices, values, *gradients


@pytest.mark.slow
@hypothesis.given(tensors() | tensors(in_bounds=False))
def test_sums_and_gradients_of_anything_are_right_and_commute(example):
    """What lies out of bounds counts as padding under `jit`."""
    shape, a, b, x, y, weights = example
    forwards, backwards = check(example), check((shape, b, a, y, x, weights))
    for one, other in zip(forwards, (*backwards[:2], *backwards[:1:-1]), strict=True):
        np.testing.assert_array_equal(one, other)
