"""Plans: the numeric phase against a dense numpy sum."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO, BCSR

import jax_sparse_grad as jsg
from helpers.matrices import as_bcsr, at_rows, check_rows, is_entry, to_dense, union_indices
from helpers.samples import SHAPE, random_coo, random_values, special_values

FORM = {"shuffled": True, "duplicates": 4, "padding": 2}


def dense_sum(pairs, shape=SHAPE):
    return sum(to_dense(indices, values, shape) for indices, values in pairs)


@pytest.mark.parametrize("count", [1, 2, 3, 13])
@pytest.mark.parametrize("form", [{}, FORM], ids=["canonical", "disordered"])
def test_values_of_any_number_of_operands_add_up(rng, count, form):
    pairs = [random_coo(rng, SHAPE, 7, **form) for _ in range(count)]
    plan = jsg.plan_sparse_add(*(indices for indices, _ in pairs), shape=SHAPE)
    np.testing.assert_array_equal(plan.indices, union_indices(*(i for i, _ in pairs), shape=SHAPE))
    assert int(plan.nnz) == plan.nse == len(plan.indices)
    assert (plan.shape, plan.ndim) == (SHAPE, 2)
    values = plan(*(values for _, values in pairs))
    np.testing.assert_array_equal(to_dense(plan.indices, values, SHAPE), dense_sum(pairs))


@pytest.mark.parametrize("form", [{}, FORM], ids=["canonical", "disordered"])
def test_gradient_of_each_operand_is_the_cotangent_at_its_entries(rng, form):
    pairs = [random_coo(rng, SHAPE, 7, **form) for _ in range(3)]
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
            check_rows(plan.indices, SHAPE)
            values = plan(np.ones(len(a), np.float32), np.ones(len(b), np.float32))
            np.testing.assert_array_equal(values[exact:], 0)
            assert not np.any(np.signbit(values[exact:]))


@jax.jit  # once for all types of values
def plan_of_three_slots(a, b):
    return jsg.plan_sparse_add(a, b, shape=SHAPE, nse=3)


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
    plan = plan_of_three_slots(a, b)
    assert int(plan.nnz) > plan.nse == 3
    values = plan(abs(x).astype(dtype), abs(y).astype(dtype))
    assert values.dtype == dtype
    np.testing.assert_array_equal(np.asarray(values).astype(np.complex64), np.full(3, fill, np.complex64))


def test_a_traced_sum_without_room_is_refused_for_nothing_could_be_poisoned(rng):
    a, x = random_coo(rng, SHAPE, 7)
    message = "`nse` must be positive for a traced sum of up to 14 entries, got 0"
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda a: jsg.plan_sparse_add(a, a, shape=SHAPE, nse=0))(a)
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda a, x: jsg.sparse_add(a, x, SHAPE, a, x, SHAPE, nse=0))(a, x)
    # Where there are certainly no entries, no room is enough.
    none = jax.jit(lambda a, x: jsg.sparse_add(a, x, SHAPE, a, x, SHAPE, nse=0))(a[:0], x[:0])
    assert none.sum_values.shape == (0,)
    padding = jnp.full_like(a, jnp.array(SHAPE, a.dtype))
    assert jsg.plan_sparse_add(padding, padding, shape=SHAPE, nse=0).nnz == 0


def test_overflow_poisons_derivatives(rng):
    a, x = random_coo(rng, SHAPE, 7)
    plan = jax.jit(lambda a: jsg.plan_sparse_add(a, shape=SHAPE, nse=3))(a)
    _, tangents = jax.jvp(plan, (x,), (x,))
    assert np.all(np.isnan(tangents))
    assert np.all(np.isnan(jax.grad(lambda x: plan(x).sum())(x)[:3]))


def test_a_lone_entry_arrives_bit_for_bit():
    special = special_values()
    ones, count = np.arange(len(special)).reshape(-1, 1), len(special)
    plan = jsg.plan_sparse_add(ones, ones + count, ones + 2 * count, shape=(3 * count,))
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
    assert repr(copy) == repr(plan) == f"SparseAddPlan(shape=(6, 7), nse={plan.nse}, operands of nnz 13, 13)"
    chex.assert_trees_all_equal(jax.jit(lambda p, *v: p(*v))(plan, x, y), plan(x, y))


def test_the_promise_of_canonical_input_leaves_no_conditional(rng):
    a, x = random_coo(rng, SHAPE, 7)
    b, y = random_coo(rng, SHAPE, 7)

    def add(a, b, x, y, promise):
        return jsg.plan_sparse_add(a, b, shape=SHAPE, assume_canonical=promise)(x, y)

    texts = [jax.jit(add, static_argnums=4).lower(a, b, x, y, promise).as_text() for promise in (False, True)]
    assert ["stablehlo.case" in text for text in texts] == [True, False]
    chex.assert_trees_all_equal(add(a, b, x, y, True), add(a, b, x, y, False))


@pytest.mark.parametrize("promise", [False, True])
def test_a_loop_carries_plans_whatever_made_them(rng, promise):
    pairs = [random_coo(rng, SHAPE, 8) for _ in range(4)]
    rows, values = (jnp.asarray(np.stack(each)) for each in zip(*pairs, strict=True))
    (first_rows, first_values), *_ = pairs

    def step(plan, k):
        following = jsg.plan_sparse_add(rows[k], first_rows, shape=SHAPE, nse=16, assume_canonical=promise)
        return following, plan(values[k - 1], first_values)

    first = jsg.plan_sparse_add(first_rows, first_rows, shape=SHAPE, nse=16)
    last, sums = jax.lax.scan(step, first, jnp.arange(1, 4))
    for k in range(3):
        each = jsg.plan_sparse_add(pairs[k][0], first_rows, shape=SHAPE, nse=16)
        np.testing.assert_array_equal(np.asarray(sums)[k], each(pairs[k][1], first_values))
    np.testing.assert_array_equal(
        last.indices, jsg.plan_sparse_add(pairs[3][0], first_rows, shape=SHAPE, nse=16).indices
    )


def test_entries_outside_the_shape_count_as_padding_under_jit(rng):
    a, x = random_coo(rng, SHAPE, 7)
    a[2], a[5] = (0, -1), (6, 3)
    plan = jax.jit(lambda a: jsg.plan_sparse_add(a, shape=SHAPE))(a)
    assert int(plan.nnz) == is_entry(a, SHAPE).sum() == 5
    np.testing.assert_array_equal(to_dense(plan.indices, plan(x), SHAPE), to_dense(a, x, SHAPE))


def matrices(rng, make, **form):
    (a, x), (b, y) = (random_coo(rng, SHAPE, 7, dense=(2,) if make is BCOO else (), **form) for _ in range(2))
    shape = SHAPE + x.shape[1:]
    pair = [BCOO((jnp.asarray(v), jnp.asarray(i)), shape=shape) for i, v in ((a, x), (b, y))]
    return pair if make is BCOO else [as_bcsr(each) for each in pair]


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("make", [BCOO, BCSR])
def test_a_plan_of_matrices_gives_their_sum_in_their_form(rng, make, jit):
    x, y = matrices(rng, make, **(FORM if make is BCOO else {}))

    def add(x, y):
        plan = jsg.plan_sparse_add(x, y)
        return plan.with_data(plan(x.data, y.data))

    total = (jax.jit(add) if jit else add)(x, y)
    assert type(total) is make
    assert total.shape == x.shape
    assert total.indices_sorted
    assert total.unique_indices
    np.testing.assert_array_equal(to_dense(total), to_dense(x) + to_dense(y))
    if not jit:
        assert total.nse == int(jsg.plan_sparse_add(x, y).nnz)


def test_a_plan_of_both_kinds_of_matrices_gives_a_bcoo(rng):
    x, y = matrices(rng, BCSR)
    plan = jsg.plan_sparse_add(x, y.to_bcoo())
    total = plan.with_data(plan(x.data, y.data))
    assert type(total) is BCOO
    np.testing.assert_array_equal(to_dense(total), to_dense(x) + to_dense(y))


def test_a_plan_of_indices_gives_a_bcoo(rng):
    a, x = random_coo(rng, SHAPE, 7, **FORM)
    plan = jsg.plan_sparse_add(a, shape=SHAPE)
    total = plan.with_data(plan(x))
    assert type(total) is BCOO
    np.testing.assert_array_equal(to_dense(total), to_dense(a, x, SHAPE))


@pytest.mark.parametrize(("count", "jit"), [(1, False), (2, False), (13, False), (2, True)])
def test_slots_name_the_place_of_each_entry(rng, count, jit):
    rows = [random_coo(rng, SHAPE, 7 + k, **FORM)[0] for k in range(count)]

    def find(*rows):
        plan = jsg.plan_sparse_add(*rows, shape=SHAPE)
        return plan.indices, plan.slots

    indices, slots = (jax.jit(find) if jit else find)(*rows)
    padded = np.concatenate([indices, [SHAPE]])
    for each, places in zip(rows, slots, strict=True):
        assert places.shape == (len(each),)
        assert places.dtype == jnp.int32
        np.testing.assert_array_equal(padded[places], each)  # and that of padding is nse
        assert np.all((np.asarray(places) == len(indices)) == ~is_entry(each, SHAPE))


def test_entries_beyond_the_room_of_a_plan_have_no_slot(rng):
    a, _ = random_coo(rng, SHAPE, 7)
    (slots,) = jax.jit(lambda a: jsg.plan_sparse_add(a, shape=SHAPE, nse=3).slots)(a)
    assert slots.tolist() == [0, 1, 2, 3, 3, 3, 3]


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
def test_what_has_no_slot_gets_no_gradient_whatever_the_room(rng, nse):
    (a, x), (b, y) = (random_coo(rng, SHAPE, 4, **FORM) for _ in range(2))
    a[1], b[3] = SHAPE, SHAPE
    table = random_values(rng, SHAPE)

    def derivatives(add, size):
        total, pull = jax.vjp(add, x, y)
        cotangent = jnp.asarray(at_rows(table, np.resize(rows[:size], (size, 2)), SHAPE))
        for gradient, indices in zip(pull(cotangent), (a, b), strict=True):
            if fits:
                np.testing.assert_array_equal(gradient, at_rows(table, indices, SHAPE))
            np.testing.assert_array_equal(gradient[~is_entry(indices, SHAPE)], 0)
        return total

    rows = np.concatenate([union_indices(a, b, shape=SHAPE), np.tile([SHAPE], (nse, 1))])[:nse]
    fits = len(union_indices(a, b, shape=SHAPE)) <= nse
    plans = [jax.jit(lambda a, b: jsg.plan_sparse_add(a, b, shape=SHAPE, nse=nse))(a, b)]
    plans += [jsg.plan_sparse_add(a, b, shape=SHAPE, nse=nse)] if fits else []
    for plan in plans:
        total = derivatives(plan, nse)
        _, forward = jax.jvp(plan, (x, y), (x, y))
        np.testing.assert_array_equal(forward, total)  # linear, and of one mind with its transpose
    if fits:
        derivatives(lambda x, y: jsg.sparse_add(a, x, SHAPE, b, y, SHAPE, nse=nse).sum_values, nse)


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
