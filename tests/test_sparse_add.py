"""SparseAdd against a dense numpy sum, where TensorFlow is wrong or silent too."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_sparse_grad as jsg
from helpers.matrices import at_rows, check_rows, to_dense, union_indices
from helpers.samples import SHAPE, random_coo, random_values

FORMS = {
    "canonical": {},
    "shuffled": {"shuffled": True},
    "duplicates": {"duplicates": 4},
    "all": {"shuffled": True, "duplicates": 4, "padding": 2},
}


def operand(rng, form, **options):
    """Indices and values of 15 entries in a form: of one length, so that one program serves all forms."""
    form = FORMS[form]
    return random_coo(rng, SHAPE, 15 - form.get("duplicates", 0) - form.get("padding", 0), **form, **options)


def check_sum(output, a, x, b, y, shape):
    """The output is the dense sum on the union pattern, padded behind it."""
    indices, values = np.asarray(output.sum_indices), np.asarray(output.sum_values)
    check_rows(indices, shape)
    expected = union_indices(a, b, shape=shape)
    np.testing.assert_array_equal(indices[: len(expected)], expected)
    np.testing.assert_array_equal(values[len(expected) :], 0)
    np.testing.assert_array_equal(to_dense(indices, values, shape), to_dense(a, x, shape) + to_dense(b, y, shape))
    assert output.sum_shape == shape


add_traced = jax.jit(jsg.sparse_add, static_argnums=(2, 5), static_argnames="nse")


@pytest.mark.parametrize("of_a", FORMS)
@pytest.mark.parametrize("of_b", FORMS)
def test_sum_on_the_union_pattern(rng, of_a, of_b):
    (a, x), (b, y) = operand(rng, of_a), operand(rng, of_b)
    eager, traced = (add(a, x, SHAPE, b, y, SHAPE) for add in (jsg.sparse_add, add_traced))
    for output in (eager, traced):
        check_sum(output, a, x, b, y, SHAPE)
    assert len(eager.sum_indices) == len(union_indices(a, b, shape=SHAPE))
    assert len(traced.sum_indices) == len(a) + len(b)


@pytest.mark.parametrize("shape", [(11,), (2, 3, 4), (2, 2, 3, 2, 3), (1,) * 9])
def test_any_rank(rng, shape):
    nnz = min(7, int(np.prod(shape)))
    a, x = random_coo(rng, shape, nnz, shuffled=True)
    b, y = random_coo(rng, shape, nnz, shuffled=True)
    check_sum(jsg.sparse_add(a, x, shape, b, y, shape), a, x, b, y, shape)


@pytest.mark.parametrize("sizes", [(0, 0), (0, 1), (5, 0)])
def test_empty_operands(rng, sizes):
    (a, x), (b, y) = (random_coo(rng, SHAPE, size) for size in sizes)

    def loss(x, y, a, b):
        output = jsg.sparse_add(a, x, SHAPE, b, y, SHAPE)
        return output.sum_values.sum(), output

    check_sum(jsg.sparse_add(a, x, SHAPE, b, y, SHAPE), a, x, b, y, SHAPE)
    gradient = jax.grad(loss, (0, 1), has_aux=True)
    for each in (gradient, jax.jit(gradient)) if sizes == (0, 1) else (gradient,):
        gradients, output = each(x, y, a, b)
        check_sum(output, a, x, b, y, SHAPE)
        chex.assert_trees_all_equal(gradients, (np.ones_like(x), np.ones_like(y)))


def test_a_scalar_tensor():
    index = np.zeros((1, 0), np.int32)
    output = jsg.sparse_add(index, [2.0], (), index, [3.0], ())
    assert output.sum_indices.shape == (1, 0)
    assert output.sum_values.tolist() == [5.0]
    assert output.sum_shape == ()


def test_a_shape_without_cells():
    none = np.zeros((0, 2), np.int32)
    output = jsg.sparse_add(none, np.zeros(0), (0, 4), none, np.zeros(0), (0, 4))
    assert (output.sum_indices.shape, output.sum_values.shape) == ((0, 2), (0,))


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
        expected = union_indices(a, b, shape=shape)
        np.testing.assert_array_equal(output.sum_indices, expected)
        table = {tuple(r): v for r, v in zip(a.tolist(), range(8), strict=True)}
        for r, v in zip(b.tolist(), range(8), strict=True):
            table[tuple(r)] = table.get(tuple(r), 0) + 10 * v
        assert output.sum_values.tolist() == [table[tuple(r)] for r in expected.tolist()]


def test_64_bit_indices_beyond_32_bits(x64):
    shape = (2**40, 2**40)
    a, b = np.array([[1, 2**39], [2**33, 5]]), np.array([[2**33, 5], [2**33 + 1, 0]])
    for add, grad in ((jsg.sparse_add, jsg.sparse_add_grad), (add_traced, jax.jit(jsg.sparse_add_grad))):
        output = add(a, np.array([1.0, 2.0]), shape, b, np.array([10.0, 20.0]), shape, nse=3)
        assert output.sum_indices.tolist() == [[1, 2**39], [2**33, 5], [2**33 + 1, 0]]
        assert output.sum_values.tolist() == [1.0, 12.0, 20.0]
        elsewhere = b + np.array([2**34, 0])  # with the same lower words
        gradients = grad(np.array([1.0, 2.0, 3.0]), a, elsewhere, output.sum_indices)
        assert [g.tolist() for g in gradients] == [[1.0, 2.0], [0.0, 0.0]]


@pytest.mark.parametrize("dtypes", [("int8", "int32"), ("uint8", "int8"), ("uint16", "uint16"), ("int32", "uint8")])
def test_index_dtypes_promote(rng, dtypes):
    (a, x), (b, y) = (random_coo(rng, SHAPE, 5) for _ in range(2))
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
    output, pull = jax.vjp(lambda x, y: jsg.sparse_add(a, x, SHAPE, b, y, SHAPE).sum_values, x, y)
    assert output.dtype == expected
    total = jsg.sparse_add(a, x, SHAPE, b, y, SHAPE)
    check_sum(total, a, x.astype(expected), b, y.astype(expected), SHAPE)
    inexact = jnp.issubdtype(output.dtype, jnp.inexact)
    cotangent = np.ones(output.shape, expected if inexact else jax.dtypes.float0)
    for gradient, values in zip(pull(cotangent), (x, y), strict=True):
        if jnp.issubdtype(values.dtype, jnp.inexact):
            assert gradient.dtype == values.dtype
            np.testing.assert_array_equal(gradient, np.ones_like(values))
        else:
            assert gradient.dtype == jax.dtypes.float0


@jax.jit
def gradients_of_weighted_sum(table, a, x, b, y):
    def loss(x, y):
        output = jsg.sparse_add(a, x, SHAPE, b, y, SHAPE)
        rows = tuple(output.sum_indices[:, d] for d in range(2))
        return (table.at[rows].get(mode="fill", fill_value=7) * output.sum_values).sum()

    return jax.grad(loss, (0, 1))(x, y)


@pytest.mark.parametrize("form", FORMS)
def test_gradient_of_each_operand_is_the_cotangent_at_its_entries(rng, form):
    (a, x), (b, y) = operand(rng, form, dense=(2,)), operand(rng, form, dense=(2,))
    table = random_values(rng, (*SHAPE, 2))
    for indices, gradient in zip((a, b), gradients_of_weighted_sum(table, a, x, b, y), strict=True):
        np.testing.assert_array_equal(gradient, at_rows(table, indices, SHAPE))


def test_the_shape_passes_through_jit_and_vmap_unchanged(rng):
    a, x = random_coo(rng, SHAPE, 5)
    array_shape = jnp.array(SHAPE)
    output = jax.jit(lambda x: jsg.sparse_add(a, x, np.array(SHAPE), a, x, array_shape))(x)
    assert output.sum_shape == SHAPE
    assert len(jax.tree.leaves(output)) == 2
    assert jax.vmap(lambda x: jsg.sparse_add(a, x, SHAPE, a, x, SHAPE))(x[None]).sum_shape == SHAPE


class TestThreshold:
    a, b = np.array([[0], [1], [2], [3], [5]]), np.array([[1], [2], [3], [4], [5]])
    x, y = np.array([0.1, 1.0, 1.0, -2.0, np.nan], np.float32), np.array([-1.5, -1.0, 1.0, 0.2, 1.0], np.float32)
    shape = (6,)

    @pytest.mark.parametrize("traced", [False, True])
    @pytest.mark.parametrize(
        ("thresh", "kept"),
        [(0, [0, 1, 2, 3, 4, 5]), (-1.0, [0, 1, 2, 3, 4, 5]), (0.25, [0, 1, 3, 4, 5]), (0.5, [0, 1, 3, 4, 5])]
        + [(0.75, [0, 3, 4, 5]), (1.0, [0, 3, 4, 5]), (np.inf, [0, 4, 5])],
    )
    def test_drops_shared_entries_below_it_and_keeps_nan(self, thresh, kept, traced):
        sums = np.array([0.1, -0.5, 0.0, -1.0, 0.2, np.nan], np.float32)
        add = add_traced if traced else jsg.sparse_add
        output = add(self.a, self.x, self.shape, self.b, self.y, self.shape, thresh)
        assert len(output.sum_values) == (10 if traced else len(kept))
        np.testing.assert_array_equal(output.sum_indices[: len(kept), 0], kept)
        np.testing.assert_array_equal(output.sum_values[: len(kept)], sums[kept])
        np.testing.assert_array_equal(output.sum_values[len(kept) :], 0)

    @pytest.mark.parametrize("jit", [False, True])
    def test_a_dropped_entry_receives_no_gradient(self, jit):
        def loss(x, y):
            return jsg.sparse_add(self.a, x, self.shape, self.b, y, self.shape, 0.75).sum_values.sum()

        gradient = jax.grad(loss, (0, 1))
        chex.assert_trees_all_equal(
            (jax.jit(gradient) if jit else gradient)(self.x, self.y),
            (np.array([1, 0, 0, 1, 1], np.float32), np.array([0, 0, 1, 1, 1], np.float32)),
        )

    def test_has_no_gradient_itself(self):
        def loss(thresh):
            return jsg.sparse_add(self.a, self.x, self.shape, self.b, self.y, self.shape, thresh).sum_values[0]

        assert jax.grad(loss)(0.5) == 0

    @pytest.mark.parametrize(
        ("dtype", "thresholds"),
        [
            (np.int32, (1, 2, 1.5, np.float32(1.0), 2**31, 2**32)),
            (np.int8, (128, 129, 1e9)),
            (np.uint8, (255, 256)),
            (np.uint32, (np.uint32(2**32 - 1), 1e30)),
        ],
    )
    def test_compares_integers(self, dtype, thresholds):
        limits = np.iinfo(dtype)
        candidates = [v for v in (0, 1, -1, 127, -128, 255, 2**32 - 1, -(2**31)) if limits.min <= v <= limits.max]
        index, values = np.arange(len(candidates)).reshape(-1, 1), np.array(candidates, dtype)
        for thresh in thresholds:
            output = jsg.sparse_add(index, values, (9,), index, np.zeros_like(values), (9,), thresh)
            assert output.sum_values.tolist() == [v for v in candidates if abs(v) >= thresh]

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

    def test_concrete_indices_are_checked_under_jit(self):
        def add(values):
            return jsg.sparse_add([[0], [4]], values, (3,), [[1]], [1.0], (3,), 0.5).sum_values

        with pytest.raises(ValueError, match=r"`a_indices` must lie in \[0, \(3,\)\), .* row 1 is \[4\]"):
            jax.jit(add)(jnp.ones(2))

    def test_stored_number_of_entries_counts_what_stays(self):
        def add(nse, x=self.x):
            return jsg.sparse_add(self.a, x, self.shape, self.b, self.y, self.shape, 0.75, nse=nse)

        assert len(add(4).sum_values) == 4
        assert add(6).sum_indices[:, 0].tolist() == [0, 3, 4, 5, 6, 6]
        with pytest.raises(
            ValueError, match="`nse` must be at least 4, the number of distinct entries of the sum; got 3"
        ):
            add(3)
        assert np.all(np.isnan(jax.jit(lambda x: add(3, x))(self.x).sum_values))


def test_overflow_poisons_values_and_gradients_under_jit(rng):
    a, x = random_coo(rng, SHAPE, 9)
    b, y = random_coo(rng, SHAPE, 9)

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


def test_strict_promotion_and_lists_are_accepted():
    with jax.numpy_dtype_promotion("strict"):
        output = jsg.sparse_add([[0, 1]], [1.0], [2, 2], [[0, 1], [1, 0]], [2.0, 3.0], [2, 2], 0.5)
        assert output.sum_values.tolist() == [3.0, 3.0]
        rows, values = jax.ShapeDtypeStruct((2, 2), np.int32), jax.ShapeDtypeStruct((2,), np.float32)
        assert add_traced.trace(rows, values, (2, 2), rows, values, (2, 2)).out_info.sum_values.shape == (4,)


def test_a_threshold_finds_no_union_of_indices_that_are_known(rng):
    a, x = random_coo(rng, SHAPE, 9, shuffled=True, duplicates=3)
    b, y = random_coo(rng, SHAPE, 9, shuffled=True)

    def add(x, y, a=a, b=b):
        return jsg.sparse_add(a, x, SHAPE, b, y, SHAPE, 4.0)

    known, traced = jax.jit(add).lower(x, y), jax.jit(add).lower(x, y, a, b)
    assert ["stablehlo.case" in each.as_text() for each in (known, traced)] == [False, True]
