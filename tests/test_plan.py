"""Plans: the symbolic phase once, and the numeric phase against a dense numpy sum."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO, BCSR

import jax_sparse_grad as jsg
from helpers.matrices import as_bcsr, at_rows, check_canonical, check_rows, is_entry, to_dense, union_indices
from helpers.samples import SHAPE, random_coo, random_values, special_values

FORM = {"shuffled": True, "duplicates": 4, "padding": 2}


@functools.partial(jax.jit, static_argnames=("nse", "assume_canonical"))
def plan_traced(*rows, **keywords):
    return jsg.plan_sparse_add(*rows, shape=SHAPE, **keywords)


def plan_of(*rows, **keywords):
    return jsg.plan_sparse_add(*rows, shape=SHAPE, **keywords)


def dense_sum(pairs, shape=SHAPE):
    return sum(to_dense(indices, values, shape) for indices, values in pairs)


@pytest.mark.parametrize("count", [1, 2, 3, 13])
@pytest.mark.parametrize("form", [{}, FORM], ids=["canonical", "disordered"])
def test_pattern_slots_values_and_gradients_of_any_number_of_operands(rng, count, form):
    pairs = [random_coo(rng, SHAPE, 7, **form) for _ in range(count)]
    rows, values = zip(*pairs, strict=True)
    table, union = random_values(rng, SHAPE), union_indices(*rows, shape=SHAPE)
    for plan in (plan_of(*rows), plan_traced(*rows)) if count == 2 else (plan_of(*rows),):
        np.testing.assert_array_equal(plan.indices[: len(union)], union)
        check_rows(plan.indices, SHAPE)
        assert int(plan.nnz) == len(union)
        assert (plan.shape, plan.ndim, plan.nse) == (SHAPE, 2, len(plan.indices))
        for each, slots in zip(rows, plan.slots, strict=True):
            assert (slots.shape, slots.dtype) == ((len(each),), jnp.int32)
            np.testing.assert_array_equal(np.concatenate([plan.indices, [SHAPE]])[slots], each)  # of padding nse
            np.testing.assert_array_equal(np.asarray(slots) == plan.nse, ~is_entry(each, SHAPE))
        total, pull = jax.vjp(plan, *map(jnp.asarray, values))
        np.testing.assert_array_equal(to_dense(plan.indices, total, SHAPE), dense_sum(pairs))
        gradients = pull(jnp.asarray(at_rows(table, plan.indices, SHAPE)))
        chex.assert_trees_all_equal(gradients, tuple(at_rows(table, each, SHAPE) for each in rows))


def test_many_duplicates_of_one_entry_are_all_counted(rng):
    # Runs longer than any power of two below them, beside runs of one.
    cells = np.repeat(np.arange(6), [1, 37, 2, 64, 5, 19])
    indices, values = rng.permutation(cells).reshape(-1, 1), random_values(rng, (len(cells), 3))
    plan = jsg.plan_sparse_add(indices, shape=(6,))
    np.testing.assert_array_equal(plan(values), to_dense(indices, values, (6,)))


def test_stored_number_of_entries(rng):
    a, b = (random_coo(rng, SHAPE, 7, **FORM)[0] for _ in range(2))
    exact = len(union_indices(a, b, shape=SHAPE))
    assert plan_of(a, b).nse == jax.jit(lambda: plan_of(a, b))().nse == exact
    assert plan_traced(a, b).nse == len(a) + len(b)
    for plan in (plan_of(a, b, nse=exact), plan_of(a, b, nse=exact + 3), plan_traced(a, b, nse=exact + 3)):
        assert (plan.nse, int(plan.nnz)) == (len(plan.indices), exact)
        check_rows(plan.indices, SHAPE)
        values = plan(np.ones(len(a), np.float32), np.ones(len(b), np.float32))
        np.testing.assert_array_equal(values[exact:], 0)
        assert not np.any(np.signbit(values[exact:]))


POISON = {"float32": np.nan, "complex64": np.nan, "bfloat16": np.nan, "int8": -128, "int32": -(2**31), "uint16": 65535}


@pytest.mark.parametrize("dtype", POISON)
def test_overflow_poisons_every_value_and_derivative(rng, dtype):
    (a, x), (b, y) = (random_coo(rng, SHAPE, 7, jnp.dtype(dtype)) for _ in range(2))
    plan = plan_traced(a, b, nse=3)
    assert int(plan.nnz) > plan.nse == 3
    values = plan(x, y)
    assert values.dtype == dtype
    np.testing.assert_array_equal(np.asarray(values).astype(np.complex64), np.full(3, POISON[dtype], np.complex64))
    assert plan.slots[0].max() <= 3  # that of entries beyond
    if dtype == "float32":
        assert np.all(np.isnan(jax.jvp(plan, (x, y), (x, y))[1]))
        stored = np.asarray(plan.slots[0]) < 3
        np.testing.assert_array_equal(np.isnan(jax.grad(lambda x: plan(x, y).sum())(x)), stored)


def test_a_traced_sum_of_no_slots_is_refused_for_nothing_could_be_poisoned(rng):
    a, x = random_coo(rng, SHAPE, 7)
    message = "`nse` must be positive for a traced sum of up to 14 entries, got 0"
    with pytest.raises(ValueError, match=message):
        plan_traced(a, a, nse=0)
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda a, x: jsg.sparse_add(a, x, SHAPE, a, x, SHAPE, nse=0))(a, x)
    # Where there are certainly no entries, no slot is enough.
    none = jax.jit(lambda a, x: jsg.sparse_add(a, x, SHAPE, a, x, SHAPE, nse=0))(a[:0], x[:0])
    assert none.sum_values.shape == (0,)
    padding = np.full_like(a, SHAPE)
    assert plan_of(padding, padding, nse=0).nnz == 0


def test_a_lone_entry_arrives_bit_for_bit():
    special = special_values()
    ones, count = np.arange(len(special)).reshape(-1, 1), len(special)
    plan = jsg.plan_sparse_add(ones, ones + count, ones + 2 * count, shape=(3 * count,))
    for add in (plan, jax.jit(plan)):
        values = np.asarray(add(special, special, special))
        np.testing.assert_array_equal(values.view(np.uint32), np.tile(special, 3).view(np.uint32))


@pytest.mark.parametrize("sizes", [(0, 0), (0, 3), (3, 0), (1, 1)])
def test_empty_and_single_entries(sizes):
    a, b = (np.arange(size).reshape(-1, 1) for size in sizes)
    plan = jsg.plan_sparse_add(a, b, shape=(4,))
    x, y = (np.arange(1.0, size + 1, dtype=np.float32) for size in sizes)
    np.testing.assert_array_equal(to_dense(plan.indices, plan(x, y), (4,)), dense_sum([(a, x), (b, y)], (4,)))
    gradients = jax.grad(lambda *v: plan(*v).sum(), argnums=(0, 1))(x, y)
    chex.assert_trees_all_equal(gradients, (np.ones_like(x), np.ones_like(y)))


def test_a_scalar_tensor_has_no_columns():
    plan = jsg.plan_sparse_add(np.zeros((1, 0), np.int32), np.zeros((2, 0), np.int32), shape=())
    assert plan.indices.shape == (1, 0)
    np.testing.assert_array_equal(plan(np.array([1.0]), np.array([10.0, 100.0])), [111.0])


def test_a_plan_is_a_pytree_of_integers(rng):
    plan = plan_of(*(random_coo(rng, SHAPE, 7, **FORM)[0] for _ in range(2)))
    assert not any(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(plan))
    copy = jax.tree.map(lambda leaf: leaf, plan)
    assert repr(copy) == repr(plan) == f"SparseAddPlan(shape=(6, 7), nse={plan.nse}, operands of nnz 13, 13)"


def test_the_promise_of_canonical_input_leaves_no_conditional(rng):
    (a, x), (b, y) = (random_coo(rng, SHAPE, 7) for _ in range(2))
    texts = [plan_traced.lower(a, b, assume_canonical=promise).as_text() for promise in (False, True)]
    assert ["stablehlo.case" in text for text in texts] == [True, False]
    sums = [plan(a, b, assume_canonical=promise)(x, y) for plan in (plan_of, plan_traced) for promise in (False, True)]
    chex.assert_trees_all_equal(*(each[: sums[0].shape[0]] for each in sums))


def test_a_loop_carries_plans_whatever_made_them(rng):
    pairs = [random_coo(rng, SHAPE, 8) for _ in range(4)]
    rows, values = (jnp.asarray(np.stack(each)) for each in zip(*pairs, strict=True))

    def step(plan, k):
        following = plan_of(rows[k], rows[0], nse=16, assume_canonical=True)
        return following, plan(values[k - 1], values[0])

    last, sums = jax.lax.scan(step, plan_of(rows[0], rows[0], nse=16), jnp.arange(1, 4))
    for k in range(3):
        np.testing.assert_array_equal(sums[k], plan_of(rows[k], rows[0], nse=16)(values[k], values[0]))
    np.testing.assert_array_equal(last.indices, plan_of(rows[3], rows[0], nse=16).indices)


def test_entries_outside_the_shape_count_as_padding_under_jit(rng):
    a, x = random_coo(rng, SHAPE, 7)
    a[2], a[5] = (0, -1), (6, 3)
    plan = plan_traced(a)
    assert int(plan.nnz) == is_entry(a, SHAPE).sum() == 5
    np.testing.assert_array_equal(to_dense(plan.indices, plan(x), SHAPE), to_dense(a, x, SHAPE))


def matrices(rng, make, **form):
    (a, x), (b, y) = (random_coo(rng, SHAPE, 7, dense=(2,) if make is BCOO else (), **form) for _ in range(2))
    pair = [BCOO((jnp.asarray(v), jnp.asarray(i)), shape=SHAPE + x.shape[1:]) for i, v in ((a, x), (b, y))]
    return pair if make is BCOO else [as_bcsr(each) for each in pair]


@pytest.mark.parametrize("make", [BCOO, BCSR])
def test_a_plan_of_matrices_gives_their_sum_in_their_form(rng, make):
    x, y = matrices(rng, make, **(FORM if make is BCOO else {}))

    def add(x, y):
        plan = jsg.plan_sparse_add(x, y)
        return plan.with_data(plan(x.data, y.data))

    for total in (add(x, y), jax.jit(add)(x, y)):
        assert type(total) is make
        assert total.shape == x.shape
        check_canonical(total)
        np.testing.assert_array_equal(to_dense(total), to_dense(x) + to_dense(y))
    assert add(x, y).nse == int(jsg.plan_sparse_add(x, y).nnz)


def test_a_plan_of_both_kinds_of_matrices_or_of_indices_gives_a_bcoo(rng):
    x, y = matrices(rng, BCSR)
    both, indices = jsg.plan_sparse_add(x, y.to_bcoo()), plan_of(x.to_bcoo().indices, y.to_bcoo().indices)
    for total in (plan.with_data(plan(x.data, y.data)) for plan in (both, indices)):
        assert type(total) is BCOO
        np.testing.assert_array_equal(to_dense(total), to_dense(x) + to_dense(y))


def test_misused_plans_of_matrices_say_what_to_do(rng):
    x, y = matrices(rng, BCOO)
    for call, message in [
        (lambda: jsg.plan_sparse_add(x, y.indices), "`operands[1]` must be a BCOO or a BCSR, as other operands are"),
        (lambda: jsg.plan_sparse_add([x, y]), "call `plan_sparse_add(*operands)`"),
        (lambda: jsg.plan_sparse_add(x.indices), "`shape` must be given if the operands are arrays of indices"),
        (lambda: jsg.plan_sparse_add(x, y)(x, y), "pass its values, `x.data`"),
        (lambda: jsg.plan_sparse_add(x, y)([x.data, y.data]), "unpack the list, `plan(*values)`"),
        (lambda: jsg.plan_sparse_add(x, shape=(3, 3)), "`shape` must be the shape of the matrices, (6, 7)"),
        (
            lambda: jsg.plan_sparse_add(BCOO((np.ones((2, 1)), np.ones((2, 1, 1), int)), shape=(2, 3))),
            "must have no batch dimensions",
        ),
    ]:
        with pytest.raises((TypeError, ValueError), match=re.escape(message)):
            call()


# Fewer slots than entries; fewer than the 20 rows; more.
@pytest.mark.parametrize("nse", [5, 9, 21])
def test_what_has_no_slot_gets_no_gradient_whatever_the_number_of_slots(rng, nse):
    (a, x), (b, y) = (random_coo(rng, SHAPE, 4, **FORM) for _ in range(2))
    union = union_indices(a, b, shape=SHAPE)
    fits = len(union) <= nse
    table = random_values(rng, SHAPE)
    for plan in (plan_traced(a, b, nse=nse), plan_of(a, b, nse=nse)) if fits else (plan_traced(a, b, nse=nse),):
        total, pull = jax.vjp(plan, x, y)
        np.testing.assert_array_equal(
            jax.jvp(plan, (x, y), (x, y))[1], total
        )  # linear, and of one mind with its transpose
        for gradient, indices in zip(pull(jnp.asarray(at_rows(table, plan.indices, SHAPE))), (a, b), strict=True):
            expected = at_rows(table, indices, SHAPE)
            np.testing.assert_array_equal(
                gradient if fits else gradient[~is_entry(indices, SHAPE)], expected if fits else 0
            )


@pytest.mark.parametrize("count", [2, 13])
def test_zeros_keep_their_sign_on_the_way_back(rng, count):
    rows = [random_coo(rng, SHAPE, 7)[0] for _ in range(count)]
    values = [jnp.ones(7)] * count
    plan = jsg.plan_sparse_add(*rows, shape=SHAPE)
    functions = [
        plan,
        jax.jit(plan),
        lambda *v: jsg.add_n([BCOO(each, shape=SHAPE) for each in zip(v, rows, strict=True)]).data,
    ]
    if count == 2:
        functions.append(lambda x, y: jsg.sparse_add(rows[0], x, SHAPE, rows[1], y, SHAPE).sum_values)
    for function in functions:
        total, pull = jax.vjp(function, *values)
        for gradient in pull(jnp.full(total.shape, -0.0)):
            assert np.all(np.signbit(gradient))


def test_the_program_of_a_sum_grows_with_its_operands_by_a_few_operations_each():
    def operations(count):
        rows = [jnp.zeros((5, 2), jnp.int32)] * count
        text = jax.jit(lambda *rows: jsg.plan_sparse_add(*rows, shape=SHAPE)(*[jnp.ones(5)] * count)).lower(*rows)
        return text.as_text().count(" = ")

    few, many = operations(20), operations(50)
    assert (many - few) / 30 < 15
