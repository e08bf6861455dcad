"""SparseAddGrad against its definition: the cotangent at the place of each entry."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_sparse_grad as jsg
from helpers.matrices import at_rows, union_indices
from helpers.samples import SHAPE, random_coo, random_values


def example(rng, dense=(), **form):
    a, _ = random_coo(rng, SHAPE, 9, **form)
    b, _ = random_coo(rng, SHAPE, 9, **form)
    table = random_values(rng, (*SHAPE, *dense))
    total = union_indices(a, b, shape=SHAPE).astype(np.int32)
    return a, b, total, table, at_rows(table, total, SHAPE)


def check(output, a, b, table):
    for indices, gradient in zip((a, b), output, strict=True):
        np.testing.assert_array_equal(gradient, at_rows(table, indices, SHAPE))


traced_grad = jax.jit(jsg.sparse_add_grad, static_argnames="shape")


@pytest.mark.parametrize("shape", [None, SHAPE])
@pytest.mark.parametrize("grad", [jsg.sparse_add_grad, traced_grad], ids=["eager", "jit"])
def test_any_order_and_duplicates(rng, shape, grad):
    a, b, total, table, cotangent = example(rng, dense=(3,), shuffled=True, duplicates=4)
    check(grad(cotangent, a, b, total, shape=shape), a, b, table)


@pytest.mark.parametrize("shape", [None, SHAPE])
def test_rows_absent_from_the_sum_get_zero(rng, shape):
    a, b, total, table, _ = example(rng, shuffled=True)
    total, gone = total[::2], total[1::2]
    for row in gone:
        table[tuple(row)] = 0
    check(jsg.sparse_add_grad(at_rows(table, total, SHAPE), a, b, total, shape=shape), a, b, table)


def test_padding_gets_zero_where_the_shape_is_given(rng):
    a, b, total, table, cotangent = example(rng, padding=2)
    total = np.concatenate([total, [SHAPE, SHAPE]])
    cotangent = np.concatenate([cotangent, [99, 99]]).astype(np.float32)
    check(jsg.sparse_add_grad(cotangent, a, b, total, shape=SHAPE), a, b, table)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "uint32"])
def test_any_index_dtype(rng, dtype):
    a, b, total, table, cotangent = example(rng)
    check(jsg.sparse_add_grad(cotangent, a.astype(dtype), b.astype(dtype), total.astype(dtype)), a, b, table)


@pytest.mark.parametrize("sizes", [(0, 0, 0), (0, 2, 2), (2, 0, 0), (1, 1, 1)])
@pytest.mark.parametrize("shape", [None, SHAPE])
def test_empty_and_single_operands(sizes, shape):
    a, b, total = (np.stack([np.arange(size)] * 2, axis=1) for size in sizes)
    cotangent = np.arange(1.0, len(total) + 1, dtype=np.float32)
    expected = [np.where(np.arange(n) < len(total), np.arange(1.0, n + 1), 0).astype(np.float32) for n in sizes[:2]]
    for grad in (jsg.sparse_add_grad, traced_grad) if sizes == (1, 1, 1) else (jsg.sparse_add_grad,):
        chex.assert_trees_all_equal(list(grad(cotangent, a, b, total, shape=shape)), expected)


def test_a_row_beyond_the_only_one_of_the_sum_gets_zero():
    one, other, cotangent = np.array([[6, 7]]), np.array([[5, 2]]), np.ones(1, np.float32)
    for grad in (jsg.sparse_add_grad, traced_grad):
        assert [each.tolist() for each in grad(cotangent, other, one, one)] == [[0], [1]]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.uint32])
def test_the_largest_index_of_a_dtype_needs_no_shape(dtype):
    a = np.array([[np.iinfo(dtype).max, 3], [1, 2]], dtype)
    output = jsg.sparse_add_grad(np.array([1.0, 2.0], np.float32), a, a[:1], a[::-1])
    assert [each.tolist() for each in output] == [[2, 1], [2]]


def test_a_scalar_tensor():
    one, none = np.zeros((1, 0), np.int32), np.zeros((0, 0), np.int32)
    for shape in (None, ()):
        output = jsg.sparse_add_grad(np.array([3.0]), one, none, one, shape=shape)
        assert [g.tolist() for g in output] == [[3.0], []]


@pytest.mark.parametrize(
    ("shape", "wide"),
    [((2**31 - 1,) * 3, False), ((2**16, 2**16), False), ((65535, 65537), False), ((2**31 - 1, 2), True)],
)
def test_the_key_width_found_from_data_is_right_under_jit(rng, shape, wide):
    with jax.enable_x64(wide):
        rows = rng.integers(0, shape, (40, len(shape))).astype(np.int32)
        rows[0], rows[1] = 0, np.array(shape) - 1
        total = np.unique(rows, axis=0)
        a, b = rows[rng.permutation(40)[:25]], rows[:20]
        cotangent = np.arange(1.0, len(total) + 1, dtype=np.float32)
        place = {tuple(row): value for row, value in zip(total.tolist(), cotangent, strict=True)}
        for output in (
            traced_grad(cotangent, a, b, total),
            jsg.sparse_add_grad(cotangent, a, b, total, shape=shape),
        ):
            for indices, gradient in zip((a, b), output, strict=True):
                assert gradient.tolist() == [place[tuple(row)] for row in indices.tolist()]


def test_it_is_the_gradient_of_sparse_add(rng):
    a, x = random_coo(rng, SHAPE, 9, shuffled=True, duplicates=2, padding=1)
    b, y = random_coo(rng, SHAPE, 9)
    output, pull = jax.vjp(lambda x, y: jsg.sparse_add(a, x, SHAPE, b, y, SHAPE).sum_values, x, y)
    cotangent = random_values(rng, output.shape)
    total = jsg.sparse_add(a, x, SHAPE, b, y, SHAPE).sum_indices
    chex.assert_trees_all_equal(
        pull(jnp.asarray(cotangent)), tuple(jsg.sparse_add_grad(cotangent, a, b, total, shape=SHAPE))
    )


def test_it_is_linear_in_both_directions_without_a_sort_backwards(rng):
    a, b, total, _, cotangent = example(rng, shuffled=True, duplicates=4)

    def run(cotangent):
        return tuple(jsg.sparse_add_grad(cotangent, a, b, total))

    a_weight, b_weight = random_values(rng, len(a)), random_values(rng, len(b))
    _, tangents = jax.jvp(run, (cotangent,), (cotangent,))
    chex.assert_trees_all_equal(tangents, run(cotangent))
    transpose = jax.linear_transpose(run, cotangent)
    (back,) = transpose((a_weight, b_weight))
    expected = jsg.sparse_add(a, a_weight, SHAPE, b, b_weight, SHAPE)
    np.testing.assert_array_equal(back, expected.sum_values)
    assert "sort(" not in jax.jit(transpose).lower((a_weight, b_weight)).compile().as_text()
