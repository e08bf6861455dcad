"""Properties of the sum for any shape, order, duplicates, padding and bounds."""

from functools import partial

import hypothesis
import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

import jax_sparse_grad as jsg
from helpers.matrices import is_entry

# A few shapes and one length, so that a few compilations serve all examples; padding makes the lengths differ.
LENGTH = 9
SHAPES = [(), (3, 4), (2**31 - 1, 3), (2**20, 2**20, 2**20)]


@st.composite
def tensors(draw):
    """Two index lists in and around a small corner of a shape, values, and a table to weigh the sum with."""
    shape = draw(st.sampled_from(SHAPES))
    lists = []
    for _ in range(2):
        rows = draw(npst.arrays(np.int32, (LENGTH, len(shape)), elements=st.integers(-1, 4)))
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


def check(shape, a, b, x, y, weights):
    cotangent = np.concatenate([weights, weights])
    indices, values, gradients = jax.device_get(add_and_pull(shape, a, b, x, y, cotangent))
    terms = [(tuple(row), value) for row, value in zip([*a.tolist(), *b.tolist()], [*x, *y], strict=True)]
    entries = sorted({row for row, _ in terms if is_entry(np.array(row), shape)})
    padding = [shape] * (2 * LENGTH - len(entries))
    assert list(map(tuple, indices.tolist())) == entries + padding
    assert values.tolist() == [sum(value for row, value in terms if row == entry) for entry in entries] + [0] * len(
        padding
    )
    weight = dict(zip(entries, cotangent, strict=False))
    for rows, gradient in zip((a, b), gradients, strict=True):
        assert gradient.tolist() == [weight.get(tuple(row), 0) for row in rows.tolist()]
    return indices, values, *gradients


@pytest.mark.slow
@hypothesis.given(tensors())
def test_sums_and_gradients_of_anything_are_right_and_commute(example):
    """What lies out of bounds counts as padding under `jit`."""
    shape, a, b, x, y, weights = example
    forwards, backwards = check(*example), check(shape, b, a, y, x, weights)
    for one, other in zip(forwards, (*backwards[:2], *backwards[:1:-1]), strict=True):
        np.testing.assert_array_equal(one, other)
