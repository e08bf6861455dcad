"""Plans: the numeric phase against a dense numpy sum."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_sparse_grad as jsg
from samples import at_rows, is_entry, random_coo, random_values, to_dense, union_indices

SHAPE = (6, 7)
FORM = {"shuffled": True, "duplicates": 4, "padding": 2}


def dense_sum(pairs, shape=SHAPE):
    return sum(to_dense(indices, values, shape) for indices, values in pairs)


@pytest.mark.usefixtures("method")
@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("form", [{}, FORM], ids=["canonical", "disordered"])
def test_values_of_any_number_of_operands_add_up(rng, count, form):
    pairs = [random_coo(rng, SHAPE, 7, **form) for _ in range(count)]
    plan = jsg.plan_sparse_add(*(indices for indices, _ in pairs), shape=SHAPE)
    np.testing.assert_array_equal(plan.indices, union_indices(*(i for i, _ in pairs), shape=SHAPE))
    assert int(plan.nnz) == plan.nse == len(plan.indices)
    assert (plan.shape, plan.ndim) == (SHAPE, 2)
    values = plan(*(values for _, values in pairs))
    np.testing.assert_array_equal(to_dense(plan.indices, values, SHAPE), dense_sum(pairs))


@pytest.mark.usefixtures("method")
@pytest.mark.parametrize("form", [{}, FORM], ids=["canonical", "disordered"])
def test_gradient_of_each_operand_is_the_cotangent_at_its_entries(rng, form):
    pairs = [random_coo(rng, SHAPE, 7, **form) for _ in range(5)]
    plan = jsg.plan_sparse_add(*(indices for indices, _ in pairs), shape=SHAPE)
    table = random_values(rng, SHAPE)
    _, pull = jax.vjp(plan, *(jnp.asarray(values) for _, values in pairs))
    gradients = pull(jnp.asarray(at_rows(table, np.asarray(plan.indices), SHAPE)))
    for (indices, values), gradient in zip(pairs, gradients, strict=True):
        chex.assert_equal_shape([gradient, values])
        np.testing.assert_array_equal(gradient, at_rows(table, indices, SHAPE))


def test_many_duplicates_of_one_entry_are_all_counted(rng):
    # Runs longer than any power of two below them, beside runs of one.
    cells = np.repeat(np.arange(6), [1, 37, 2, 64, 5, 19])
    indices = rng.permutation(cells).reshape(-1, 1)
    values = random_values(rng, (len(cells), 3))
    plan = jsg.plan_sparse_add(indices, shape=(6,))
    np.testing.assert_array_equal(plan(values), to_dense(indices, values, (6,)))


def test_hybrid_values_of_different_dtypes(rng):
    a, x = random_coo(rng, SHAPE, 7, np.int16, dense=(2, 3), **FORM)
    b, y = random_coo(rng, SHAPE, 7, np.float32, dense=(2, 3), **FORM)
    plan = jsg.plan_sparse_add(a, b, shape=SHAPE)
    values = plan(x, y)
    assert values.dtype == jnp.float32
    np.testing.assert_array_equal(to_dense(plan.indices, values, SHAPE), dense_sum([(a, x), (b, y)]))


@pytest.mark.usefixtures("method")
def test_stored_number_of_entries(rng):
    a, _ = random_coo(rng, SHAPE, 7, **FORM)
    b, _ = random_coo(rng, SHAPE, 7, **FORM)
    exact = len(union_indices(a, b, shape=SHAPE))
    bound = len(a) + len(b)
    assert jsg.plan_sparse_add(a, b, shape=SHAPE).nse == exact
    assert jax.jit(lambda: jsg.plan_sparse_add(a, b, shape=SHAPE))().nse == exact
    traced = jax.jit(lambda a, b: jsg.plan_sparse_add(a, b, shape=SHAPE))(a, b)
    assert (traced.nse, int(traced.nnz)) == (bound, exact)
    for nse in (exact, exact + 3):
        for plan in (
            jsg.plan_sparse_add(a, b, shape=SHAPE, nse=nse),
            jax.jit(lambda a, b, nse=nse: jsg.plan_sparse_add(a, b, shape=SHAPE, nse=nse))(a, b),
        ):
            assert (plan.nse, len(plan.indices), int(plan.nnz)) == (nse, nse, exact)
            np.testing.assert_array_equal(plan.indices[exact:], np.tile([SHAPE], (nse - exact, 1)))
            values = plan(np.ones(len(a), np.float32), np.ones(len(b), np.float32))
            np.testing.assert_array_equal(values[exact:], 0)
            assert not np.any(np.signbit(values[exact:]))


@pytest.mark.parametrize(
    ("dtype", "fill"),
    [
        (np.float32, np.nan),
        (np.complex64, np.nan),
        (jnp.bfloat16, np.nan),
        (np.int8, -128),
        (np.int32, -(2**31)),
        (np.uint16, 65535),
    ],
)
def test_overflow_poisons_every_value(rng, dtype, fill):
    a, x = random_coo(rng, SHAPE, 7)
    b, y = random_coo(rng, SHAPE, 7)
    plan = jax.jit(lambda a, b: jsg.plan_sparse_add(a, b, shape=SHAPE, nse=3))(a, b)
    assert int(plan.nnz) > plan.nse == 3
    values = plan(abs(x).astype(dtype), abs(y).astype(dtype))
    assert values.dtype == dtype
    np.testing.assert_array_equal(np.asarray(values).astype(np.complex64), np.full(3, fill, np.complex64))


@pytest.mark.usefixtures("method")
def test_overflow_poisons_derivatives(rng):
    a, x = random_coo(rng, SHAPE, 7)
    plan = jax.jit(lambda a: jsg.plan_sparse_add(a, shape=SHAPE, nse=3))(a)
    _, tangents = jax.jvp(plan, (x,), (x,))
    assert np.all(np.isnan(tangents))
    assert np.all(np.isnan(jax.grad(lambda x: plan(x).sum())(x)[:3]))


def test_a_lone_entry_arrives_bit_for_bit():
    special = np.array([-0.0, 0.0, np.inf, -np.inf, np.nan, 3e38, 2e-38], np.float32)
    ones = np.arange(7).reshape(-1, 1)
    plan = jsg.plan_sparse_add(ones, ones + 7, ones + 14, shape=(21,))
    values = plan(special, special, special)
    np.testing.assert_array_equal(np.asarray(values).view(np.uint32), np.tile(special, 3).view(np.uint32))


@pytest.mark.parametrize("sizes", [(0, 0), (0, 3), (3, 0), (1, 1)])
def test_empty_and_single_entries(sizes):
    a, b = (np.arange(size).reshape(-1, 1) for size in sizes)
    plan = jsg.plan_sparse_add(a, b, shape=(4,))
    x, y = (np.arange(1.0, size + 1, dtype=np.float32) for size in sizes)
    np.testing.assert_array_equal(to_dense(plan.indices, plan(x, y), (4,)), dense_sum([(a, x), (b, y)], (4,)))
    gradients = jax.grad(lambda *v: plan(*v).sum(), argnums=(0, 1))(x, y)
    chex.assert_trees_all_equal(gradients, (np.ones_like(x), np.ones_like(y)))


def test_a_scalar_tensor_has_no_columns():
    none = np.zeros((1, 0), np.int32)
    plan = jsg.plan_sparse_add(none, np.zeros((2, 0), np.int32), shape=())
    assert plan.indices.shape == (1, 0)
    np.testing.assert_array_equal(plan(np.array([1.0]), np.array([10.0, 100.0])), [111.0])


def test_a_plan_is_a_pytree_of_integers(rng):
    a, x = random_coo(rng, SHAPE, 7, **FORM)
    b, y = random_coo(rng, SHAPE, 7, **FORM)
    plan = jsg.plan_sparse_add(a, b, shape=SHAPE)
    assert not any(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(plan))
    copy = jax.tree.map(lambda leaf: leaf, plan)
    assert repr(copy) == repr(plan) == f"SparseAddPlan(shape=(6, 7), nse={plan.nse})"
    chex.assert_trees_all_equal(jax.jit(lambda p, *v: p(*v))(plan, x, y), plan(x, y))


def test_the_promise_of_canonical_input_leaves_no_sort_and_no_conditional(rng):
    a, x = random_coo(rng, SHAPE, 7)
    b, y = random_coo(rng, SHAPE, 7)

    def add(a, b, x, y, promise):
        return jsg.plan_sparse_add(a, b, shape=SHAPE, assume_canonical=promise)(x, y)

    texts = [jax.jit(add, static_argnums=4).lower(a, b, x, y, promise).as_text() for promise in (False, True)]
    assert ["stablehlo.sort" in text for text in texts] == [True, False]
    assert ["stablehlo.case" in text for text in texts] == [True, False]
    chex.assert_trees_all_equal(add(a, b, x, y, True), add(a, b, x, y, False))


def test_entries_outside_the_shape_count_as_padding_under_jit(rng):
    a, x = random_coo(rng, SHAPE, 7)
    a[2], a[5] = (0, -1), (6, 3)
    plan = jax.jit(lambda a: jsg.plan_sparse_add(a, shape=SHAPE))(a)
    assert int(plan.nnz) == is_entry(a, SHAPE).sum() == 5
    np.testing.assert_array_equal(to_dense(plan.indices, plan(x), SHAPE), to_dense(a, x, SHAPE))
