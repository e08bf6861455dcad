"""SparseAddGrad against its definition: the cotangent at the place of each entry."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_sparse_grad as jsg
from helpers.matrices import at_rows, union_indices
from helpers.samples import SHAPE, random_coo, random_values

traced_grad = jax.jit(jsg.sparse_add_grad, static_argnames="shape")
EITHER_SHAPE = pytest.mark.parametrize("shape", [None, SHAPE])


def example(rng, padding=0):
    """Operands, the indices of their sum, a table of cotangents, and those of the sum: always of the same lengths."""
    a, b = (random_coo(rng, SHAPE, 11 - padding, shuffled=True, duplicates=4, padding=padding)[0] for _ in range(2))
    union, table = union_indices(a, b, shape=SHAPE), random_values(rng, (*SHAPE, 3))
    total = np.concatenate([union, np.tile([SHAPE], (30 - len(union), 1))]).astype(np.int32)
    cotangent = at_rows(table, total, SHAPE)
    cotangent[len(union) :] = 99
    return a, b, total, table, cotangent


def check(output, a, b, table):
    for indices, gradient in zip((a, b), output, strict=True):
        np.testing.assert_array_equal(gradient, at_rows(table, indices, SHAPE))


@EITHER_SHAPE
def test_any_order_and_duplicates_and_padding_where_the_shape_is_given(rng, shape):
    a, b, total, table, cotangent = example(rng, padding=2 if shape else 0)
    for grad in (jsg.sparse_add_grad, traced_grad):
        check(grad(cotangent, a, b, total, shape=shape), a, b, table)


@EITHER_SHAPE
def test_rows_absent_from_the_sum_get_zero(rng, shape):
    a, b, total, table, _ = example(rng)
    for row in union_indices(total[1::2], shape=SHAPE):
        table[tuple(row)] = 0
    total = union_indices(total[::2], shape=SHAPE)
    check(jsg.sparse_add_grad(at_rows(table, total, SHAPE), a, b, total, shape=shape), a, b, table)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32"])
def test_any_index_dtype(rng, dtype):
    a, b, total, table, cotangent = example(rng)
    check(jsg.sparse_add_grad(cotangent, a.astype(dtype), b.astype(dtype), total.astype(dtype)), a, b, table)


@pytest.mark.parametrize("sizes", [(0, 0, 0), (0, 2, 2), (2, 0, 0), (1, 1, 1)])
@EITHER_SHAPE
def test_empty_and_single_operands(sizes, shape):
    a, b, total = (np.stack([np.arange(size)] * 2, axis=1) for size in sizes)
    cotangent = np.arange(1.0, len(total) + 1, dtype=np.float32)
    expected = [np.where(np.arange(n) < len(total), np.arange(1.0, n + 1), 0).astype(np.float32) for n in sizes[:2]]
    chex.assert_trees_all_equal(list(jsg.sparse_add_grad(cotangent, a, b, total, shape=shape)), expected)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint32])
def test_the_largest_index_of_a_dtype_needs_no_shape(dtype):
    a = np.array([[np.iinfo(dtype).max, 3], [1, 2]], dtype)
    output = jsg.sparse_add_grad(np.array([1.0, 2.0], np.float32), a, a[:1], a[::-1])
    assert [each.tolist() for each in output] == [[2, 1], [2]]


@pytest.mark.parametrize("shape", [None, ()])
def test_a_scalar_tensor(shape):
    one, none = np.zeros((1, 0), np.int32), np.zeros((0, 0), np.int32)
    output = jsg.sparse_add_grad(np.array([3.0]), one, none, one, shape=shape)
    assert [each.tolist() for each in output] == [[3.0], []]


@pytest.mark.parametrize("shape", [(2**31 - 1,) * 3, (2**16, 2**16), (65535, 65537), (2**31 - 1, 2)])
def test_the_key_width_found_from_data_is_right_under_jit(rng, shape):
    rows = rng.integers(0, shape, (30, len(shape)))
    rows[0], rows[1] = 0, np.array(shape) - 1
    total, cotangent = np.unique(rows, axis=0).astype(np.int32), random_values(rng, (30, 3))
    of_a, of_b = rng.integers(0, 30, (2, 15))
    for grad, known in ((traced_grad, None), (jsg.sparse_add_grad, shape)):
        output = grad(cotangent, total[of_a], total[of_b], total, shape=known)
        chex.assert_trees_all_equal(tuple(output), (cotangent[of_a], cotangent[of_b]))


def test_it_is_the_gradient_of_sparse_add(rng):
    (a, x), (b, y) = (random_coo(rng, SHAPE, 9, shuffled=True, duplicates=2, padding=1) for _ in range(2))
    total = jsg.sparse_add(a, x, SHAPE, b, y, SHAPE)
    _, pull = jax.vjp(lambda x, y: jsg.sparse_add(a, x, SHAPE, b, y, SHAPE).sum_values, x, y)
    cotangent = random_values(rng, total.sum_values.shape)
    expected = tuple(jsg.sparse_add_grad(cotangent, a, b, total.sum_indices, shape=SHAPE))
    chex.assert_trees_all_equal(pull(jnp.asarray(cotangent)), expected)


def test_it_is_linear_in_both_directions_without_a_sort_backwards(rng):
    a, b, total, _, cotangent = example(rng)

    def run(cotangent):
        return tuple(jsg.sparse_add_grad(cotangent, a, b, total))

    weights = tuple(random_values(rng, (len(rows), 3)) for rows in (a, b))
    _, tangents = jax.jvp(run, (cotangent,), (cotangent,))
    chex.assert_trees_all_equal(tangents, run(cotangent))
    transpose = jax.linear_transpose(run, cotangent)
    (back,) = transpose(weights)
    expected = jsg.sparse_add(a, weights[0], SHAPE, b, weights[1], SHAPE, nse=30)
    np.testing.assert_array_equal(back, expected.sum_values)
    assert "sort(" not in jax.jit(transpose).lower(weights).compile().as_text()
