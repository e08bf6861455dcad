"""SparseAdd against a dense numpy sum, where TensorFlow is wrong or silent too."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_sparse_grad as jsg
from helpers.matrices import at_rows, check_rows, to_dense, union_indices
from helpers.samples import FORMS, SHAPE, random_coo, random_operand, random_values


def check_sum(output, a, x, b, y, shape):
    """The output is the dense sum on the union pattern, padded behind it."""
    indices, values = np.asarray(output.sum_indices).astype(np.int64), np.asarray(output.sum_values)
    check_rows(indices, shape)
    expected = union_indices(a, b, shape=shape)
    np.testing.assert_array_equal(indices[: len(expected)], expected)
    np.testing.assert_array_equal(values[len(expected) :], 0)
    np.testing.assert_array_equal(to_dense(indices, values, shape), to_dense(a, x, shape) + to_dense(b, y, shape))
    assert output.sum_shape == shape


@jax.jit
def add_traced(table, a, x, b, y, thresh):
    """The sum, and the gradients of the sum of `table * sum`: one program for all forms and thresholds."""

    def loss(x, y):
        output = jsg.sparse_add(a, x, SHAPE, b, y, SHAPE, thresh)
        weights = table.at[tuple(output.sum_indices.T)].get(mode="fill", fill_value=7)
        return (weights * output.sum_values).sum(), output

    gradients, output = jax.grad(loss, (0, 1), has_aux=True)(x, y)
    return output, gradients


@pytest.mark.parametrize("of_a", FORMS)
@pytest.mark.parametrize("of_b", FORMS)
def test_sum_and_gradients_on_the_union_pattern(rng, of_a, of_b):
    (a, x), (b, y) = (random_operand(rng, form, dense=(2,)) for form in (of_a, of_b))
    table = random_values(rng, (*SHAPE, 2))
    eager = jsg.sparse_add(a, x, SHAPE, b, y, SHAPE)
    assert len(eager.sum_indices) == len(union_indices(a, b, shape=SHAPE))
    _, pull = jax.vjp(lambda x, y: jsg.sparse_add(a, x, SHAPE, b, y, SHAPE).sum_values, x, y)
    traced, gradients = add_traced(table, a, x, b, y, 0.0)
    assert len(traced.sum_indices) == len(a) + len(b)
    for output in (eager, traced):
        check_sum(output, a, x, b, y, SHAPE)
    for each in (gradients, pull(jnp.asarray(at_rows(table, eager.sum_indices, SHAPE)))):
        chex.assert_trees_all_equal(each, (at_rows(table, a, SHAPE), at_rows(table, b, SHAPE)))


@pytest.mark.parametrize("shape", [(11,), (2, 3, 4), (2, 2, 3, 2, 3), (1,) * 9, (0, 4), ()])
def test_any_rank(rng, shape):
    nnz = min(7, int(np.prod(shape)))
    (a, x), (b, y) = (random_coo(rng, shape, nnz, shuffled=True) for _ in range(2))
    check_sum(jsg.sparse_add(a, x, shape, b, y, shape), a, x, b, y, shape)


@pytest.mark.parametrize("sizes", [(0, 0), (0, 1), (5, 0), (1, 1)])
def test_empty_and_single_operands(rng, sizes):
    (a, x), (b, y) = (random_coo(rng, SHAPE, size) for size in sizes)
    check_sum(jsg.sparse_add(a, x, SHAPE, b, y, SHAPE), a, x, b, y, SHAPE)
    plan = jsg.plan_sparse_add(a, b, shape=SHAPE)
    for add in (plan, lambda x, y: jsg.sparse_add(a, x, SHAPE, b, y, SHAPE).sum_values):
        total, pull = jax.vjp(add, x, y)
        np.testing.assert_array_equal(
            to_dense(plan.indices, total, SHAPE), to_dense(a, x, SHAPE) + to_dense(b, y, SHAPE)
        )
        chex.assert_trees_all_equal(pull(np.ones_like(total)), (np.ones_like(x), np.ones_like(y)))


def test_cancelled_entries_stay_as_explicit_zeros():
    index = np.array([[0, 1], [2, 3]])
    output = jsg.sparse_add(index, [1.0, 2.0], SHAPE, index, [-1.0, 2.0], SHAPE)
    assert output.sum_values.tolist() == [0.0, 4.0]


@pytest.mark.parametrize("shape", [(2**31 - 1,) * 3, (2**20,) * 5, (255,) * 8, (2**16, 2**16), (65535, 65537)])
@pytest.mark.parametrize("wide", [False, True])
def test_no_shape_overflows(rng, shape, wide):
    with jax.enable_x64(wide):
        rows = rng.integers(0, shape, (12, len(shape))).astype(np.int32)
        rows[0], rows[1] = 0, np.array(shape) - 1
        a, b = rows[:8], rows[4:]
        output = jsg.sparse_add(a, np.arange(8), shape, b, np.arange(8) * 10, shape)
        expected, numbers = np.unique(np.concatenate([a, b]), axis=0, return_inverse=True)
        np.testing.assert_array_equal(output.sum_indices, expected)
        terms = np.concatenate([np.arange(8), np.arange(8) * 10])
        np.testing.assert_array_equal(output.sum_values, np.bincount(numbers.reshape(-1), terms))


def test_64_bit_indices_beyond_32_bits(x64):
    shape = (2**40,)
    a, b = np.array([[2**39], [5]]), np.array([[5], [2**33 + 1]])
    elsewhere = b + np.array([2**34])  # with the same lower words

    def use(a, b, elsewhere):
        output = jsg.sparse_add(a, np.array([1.0, 2.0]), shape, b, np.array([10.0, 20.0]), shape, nse=3)
        return output, jsg.sparse_add_grad(np.array([1.0, 2.0, 3.0]), a, elsewhere, output.sum_indices)

    for each in (use, jax.jit(use)):
        output, gradients = each(a, b, elsewhere)
        assert output.sum_indices.tolist() == [[5], [2**33 + 1], [2**39]]
        assert output.sum_values.tolist() == [12.0, 20.0, 1.0]
        assert [g.tolist() for g in gradients] == [[3.0, 1.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    "dtypes", [("int8", "int32"), ("uint8", "int8"), ("uint16", "uint16"), ("int4", "int4"), ("uint4", "uint4")]
)
def test_index_dtypes_promote(rng, dtypes):
    (a, x), (b, y) = (random_coo(rng, SHAPE, 5) for _ in range(2))
    dtypes = [*map(jnp.dtype, dtypes)]
    output = jsg.sparse_add(a.astype(dtypes[0]), x, SHAPE, b.astype(dtypes[1]), y, SHAPE)
    assert output.sum_indices.dtype == jnp.promote_types(*dtypes)
    check_sum(output, a, x, b, y, SHAPE)


@pytest.mark.parametrize(
    ("a_dtype", "b_dtype", "expected"),
    [
        ("bfloat16", "float32", "float32"),
        ("float16", "bfloat16", "float32"),
        ("float32", "complex64", "complex64"),
        ("int32", "float32", "float32"),
        ("int8", "uint8", "int16"),
    ],
)
def test_value_dtypes_promote_and_each_gradient_has_its_own(rng, a_dtype, b_dtype, expected):
    (a, x), (b, y) = (random_coo(rng, SHAPE, 9, jnp.dtype(dtype)) for dtype in (a_dtype, b_dtype))
    check_sum(jsg.sparse_add(a, x, SHAPE, b, y, SHAPE), a, x.astype(expected), b, y.astype(expected), SHAPE)
    plan = jsg.plan_sparse_add(a, b, shape=SHAPE)
    for add in (plan, lambda x, y: jsg.sparse_add(a, x, SHAPE, b, y, SHAPE).sum_values):
        output, pull = jax.vjp(add, x, y)
        assert output.dtype == expected
        inexact = jnp.issubdtype(output.dtype, jnp.inexact)
        number = -2 + 1j if jnp.iscomplexobj(output) else -2  # of which a real operand receives the real part
        cotangent = np.full(output.shape, number, expected if inexact else jax.dtypes.float0)
        for gradient, values in zip(pull(cotangent), (x, y), strict=True):
            if jnp.issubdtype(values.dtype, jnp.inexact):
                assert gradient.dtype == values.dtype
                np.testing.assert_array_equal(gradient, number if jnp.iscomplexobj(values) else -2)
            else:
                assert gradient.dtype == jax.dtypes.float0


def test_the_shape_passes_through_jit_and_vmap_unchanged(rng):
    a, x = random_coo(rng, SHAPE, 5)
    array_shape = jnp.array(SHAPE)
    output = jax.eval_shape(lambda x: jsg.sparse_add(a, x, np.array(SHAPE), a, x, array_shape), x)
    assert output.sum_shape == SHAPE
    assert len(jax.tree.leaves(output)) == 2
    assert jax.vmap(lambda x: jsg.sparse_add(a, x, SHAPE, a, x, SHAPE))(x[None]).sum_shape == SHAPE


def in_one_row(columns, values):
    """An operand with entries in the first row of a matrix, with as much padding as `add_traced` is compiled for."""
    indices = np.array([[0, column] for column in columns] + [SHAPE] * (15 - len(columns)))
    return indices, np.append(np.array(values, np.float32), np.zeros(15 - len(values), np.float32))[:, None] * [
        1.0,
        1.0,
    ]


class TestThreshold:
    a, x = in_one_row([0, 1, 2, 3, 5], [0.1, 1.0, 1.0, -2.0, np.nan])
    b, y = in_one_row([1, 2, 3, 4, 5], [-1.5, -1.0, 1.0, 0.2, 1.0])

    def add(self, x, y, thresh, nse=None):
        return jsg.sparse_add(self.a, x, SHAPE, self.b, y, SHAPE, thresh, nse=nse)

    @pytest.mark.parametrize(
        ("thresh", "kept"),
        [(0, [0, 1, 2, 3, 4, 5]), (-1.0, [0, 1, 2, 3, 4, 5]), (0.25, [0, 1, 3, 4, 5]), (0.5, [0, 1, 3, 4, 5])]
        + [(0.75, [0, 3, 4, 5]), (1.0, [0, 3, 4, 5]), (np.inf, [0, 4, 5])],
    )
    def test_drops_shared_entries_below_it_and_their_gradients_and_keeps_nan(self, thresh, kept):
        sums = np.array([0.1, -0.5, 0.0, -1.0, 0.2, np.nan], np.float32)
        eager = self.add(self.x, self.y, thresh)
        assert len(eager.sum_values) == len(kept)
        ones = np.ones((*SHAPE, 2), np.float32)
        compiled, gradients = add_traced(ones, self.a, self.x, self.b, self.y, float(thresh))
        for output in (eager, compiled):
            np.testing.assert_array_equal(output.sum_indices[: len(kept)], [[0, column] for column in kept])
            np.testing.assert_array_equal(output.sum_values[: len(kept)], np.stack([sums[kept]] * 2, axis=1))
            np.testing.assert_array_equal(output.sum_values[len(kept) :], 0)
        values, pull = jax.vjp(lambda x, y: self.add(x, y, thresh).sum_values, self.x, self.y)
        expected = [np.isin(rows[:, 1], kept) & (rows[:, 0] == 0) for rows in (self.a, self.b)]
        for each in (gradients, pull(np.ones_like(values))):
            chex.assert_trees_all_equal(each, tuple(np.stack([own] * 2, axis=1).astype(np.float32) for own in expected))

    def test_has_no_gradient_itself(self):
        assert jax.grad(lambda thresh: self.add(self.x, self.y, thresh).sum_values[0, 0])(0.5) == 0

    @pytest.mark.parametrize(
        ("dtype", "thresholds"),
        [
            ("int32", (1, 2, 1.5, np.float32(1.0), 2**31, 2**32)),
            ("int8", (128, 129, 1e9)),
            ("uint8", (255, 256)),
            ("uint32", (np.uint32(2**32 - 1), 1e30)),
            ("int4", (2, 8, 9.0, 300)),
            ("uint2", (1, 2.5, 300)),
            ("float8_e5m2", (0.5, 2, 8)),
        ],
    )
    def test_compares_numbers_of_any_width(self, dtype, thresholds):
        """The magnitude of the least integer overflows."""
        dtype = jnp.dtype(dtype)
        candidates = np.array([0, 1, -1, 3, -8, 127, -128, 255, 2**32 - 1, -(2**31)])
        values = candidates.astype(dtype)
        values = values[values.astype(float) == candidates]
        index = np.arange(len(values)).reshape(-1, 1)
        for thresh in thresholds:
            output = jsg.sparse_add(index, values, (9,), index, np.zeros_like(values), (9,), thresh)
            kept = np.abs(values.astype(float)) >= thresh
            np.testing.assert_array_equal(np.asarray(output.sum_values).astype(float), values[kept].astype(float))

    def test_hybrid_entries_go_only_as_a_whole(self):
        index = np.array([[0], [1]])
        values = np.array([[0.1, 0.2], [0.1, 9.0]])
        output = jsg.sparse_add(index, values, (2,), index, 0 * values, (2,), 0.5)
        assert output.sum_indices.tolist() == [[1]]
        np.testing.assert_allclose(output.sum_values, [[0.1, 9.0]])

    def test_sees_complete_sums_of_duplicates(self):
        a = np.array([[1], [0], [1]])
        output = jsg.sparse_add(a, [0.3, 5.0, 0.3], (2,), np.array([[1]]), [0.3], (2,), 0.5)
        np.testing.assert_allclose(output.sum_values, [5.0, 0.9], rtol=1e-6)

    def test_stored_number_of_entries_counts_what_stays(self):
        assert len(self.add(self.x, self.y, 0.75, nse=4).sum_values) == 4
        padded = self.add(self.x, self.y, 0.75, nse=6).sum_indices
        assert padded.tolist() == [[0, 0], [0, 3], [0, 4], [0, 5], [6, 7], [6, 7]]
        with pytest.raises(
            ValueError, match="`nse` must be at least 4, the number of distinct entries of the sum; got 3"
        ):
            self.add(self.x, self.y, 0.75, nse=3)
        assert np.all(np.isnan(jax.jit(lambda x: self.add(x, self.y, 0.75, nse=3))(self.x).sum_values))


def test_overflow_poisons_values_and_gradients_under_jit(rng):
    (a, x), (b, y) = (random_coo(rng, SHAPE, 9) for _ in range(2))

    @jax.jit
    def run(a, x):
        def loss(x):
            values = jsg.sparse_add(a, x, SHAPE, b, y, SHAPE, nse=5).sum_values
            return values.sum(), values

        return jax.grad(loss, has_aux=True)(x)

    gradient, values = run(a, x)
    assert np.all(np.isnan(values))
    stored = [row in union_indices(a, b, shape=SHAPE)[:5].tolist() for row in a.tolist()]
    np.testing.assert_array_equal(np.isnan(gradient), stored)


def test_a_threshold_finds_no_union_of_indices_that_are_known(rng):
    (a, x), (b, y) = (random_coo(rng, SHAPE, 9, shuffled=True) for _ in range(2))

    def add(x, y, a=a, b=b):
        return jsg.sparse_add(a, x, SHAPE, b, y, SHAPE, 4.0)

    known, traced = jax.jit(add).lower(x, y), jax.jit(add).lower(x, y, a, b)
    assert ["stablehlo.case" in each.as_text() for each in (known, traced)] == [False, True]
