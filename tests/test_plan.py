"""Plans: the symbolic phase once, and the numeric phase against a dense numpy sum."""

import re
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO, BCSR

import jax_sparse_grad as jsg
from helpers.matrices import as_bcsr, at_rows, bits, check_canonical, check_rows, is_entry, to_dense, union_indices
from helpers.samples import SHAPE, column, random_coo, random_operand, random_values, special_values


@partial(jax.jit, static_argnames=("nse", "assume_canonical"))
def plan_traced(*rows, nse=None, assume_canonical=False):
    return plan_of(*rows, nse=nse, assume_canonical=assume_canonical)


def plan_of(*rows, **keywords):
    return jsg.plan_sparse_add(*rows, shape=SHAPE, **keywords)


@pytest.mark.parametrize("count", [1, 2, 3, 13])
@pytest.mark.parametrize("form", ["canonical", "all"])
def test_pattern_slots_values_and_gradients_of_any_number_of_operands(rng, count, form):
    pairs = [random_operand(rng, form, 9) for _ in range(count)]
    rows, values = zip(*pairs, strict=True)
    table, union = random_values(rng, SHAPE), union_indices(*rows, shape=SHAPE)
    plans = [plan_of(*rows), plan_of(*rows, nse=len(union)), plan_of(*rows, nse=len(union) + 3)]
    if count == 2:
        plans.append(plan_traced(*rows))
    assert [plan.nse for plan in plans] == [len(union), len(union), len(union) + 3, 18][: len(plans)]
    for plan in plans:
        np.testing.assert_array_equal(plan.indices[: len(union)], union)
        check_rows(plan.indices, SHAPE)
        assert int(plan.nnz) == len(union)
        assert (plan.shape, plan.ndim, plan.nse) == (SHAPE, 2, len(plan.indices))
        for each, slots in zip(rows, plan.slots, strict=True):
            assert (slots.shape, slots.dtype) == ((len(each),), jnp.int32)
            np.testing.assert_array_equal(np.concatenate([plan.indices, [SHAPE]])[slots], each)  # of padding nse
            np.testing.assert_array_equal(np.asarray(slots) == plan.nse, ~is_entry(each, SHAPE))
        total, pull = jax.vjp(plan, *map(jnp.asarray, values))
        np.testing.assert_array_equal(
            to_dense(plan.indices, total, SHAPE), sum(to_dense(*pair, SHAPE) for pair in pairs)
        )
        assert bits(total[len(union) :]) == bits(np.zeros(plan.nse - len(union), np.float32))
        gradients = pull(jnp.asarray(at_rows(table, plan.indices, SHAPE)))
        chex.assert_trees_all_equal(gradients, tuple(at_rows(table, each, SHAPE) for each in rows))


def test_indices_that_are_closed_over_are_concrete(rng):
    a, b = (random_operand(rng, "all", 9)[0] for _ in range(2))
    assert jax.eval_shape(lambda: plan_of(a, b)).nse == plan_of(a, b).nse


def test_overflow_poisons_every_value_and_derivative_of_what_has_a_slot(rng):
    (a, x), (b, y) = (random_operand(rng, "all", 9) for _ in range(2))
    plan = plan_traced(a, b, nse=3)
    assert int(plan.nnz) == len(union_indices(a, b, shape=SHAPE)) > plan.nse == 3
    assert plan.slots[0].max() == 3  # that of entries beyond, and of padding
    total, pull = jax.vjp(plan, x, y)
    for values in (total, jax.jvp(plan, (x, y), (x, y))[1]):
        assert np.all(np.isnan(values))
    for gradient, slots in zip(pull(jnp.ones(3)), plan.slots, strict=True):
        np.testing.assert_array_equal(gradient, np.where(np.asarray(slots) < 3, np.nan, 0))


def test_a_traced_sum_of_no_slots_is_refused_for_nothing_could_be_poisoned(rng):
    a, x = random_coo(rng, SHAPE, 7)
    message = "`nse` must be positive for a traced sum of up to 14 entries, got 0"
    with pytest.raises(ValueError, match=message):
        plan_traced(a, a, nse=0)

    def add(a, x):
        return jsg.sparse_add(a, x, SHAPE, a, x, SHAPE, nse=0)

    with pytest.raises(ValueError, match=message):
        jax.eval_shape(add, a, x)
    # Where there are certainly no entries, no slot is enough.
    assert jax.eval_shape(add, a[:0], x[:0]).sum_values.shape == (0,)
    assert plan_of(np.full_like(a, SHAPE), nse=0).nnz == 0


@pytest.mark.parametrize("count", [2, 13])
def test_a_lone_entry_arrives_and_its_gradient_returns_bit_for_bit(count):
    special = special_values()
    size = len(special)
    rows = [np.arange(k * size, (k + 1) * size).reshape(-1, 1) for k in range(count)]
    plan, values = jsg.plan_sparse_add(*rows, shape=(count * size,)), [jnp.asarray(special)] * count
    sums = [plan, jax.jit(plan), lambda *v: jsg.add_n(map(partial(column, size=count * size), v, rows)).data]
    if count == 2:
        a, b = rows
        sums.append(lambda x, y: jsg.sparse_add(a, x, (2 * size,), b, y, (2 * size,)).sum_values)
    for add in sums:
        total, pull = jax.vjp(add, *values)
        assert bits(total)[: 4 * count * size] == bits(np.tile(special, count))
        cotangent = np.tile(special, count + 1)[: len(total)]
        for gradient in pull(jnp.asarray(cotangent)):
            assert bits(gradient) == bits(special)


def test_a_plan_is_a_pytree_of_integers(rng):
    plan = plan_of(*(random_operand(rng, "all", 13)[0] for _ in range(2)))
    assert not any(jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf in jax.tree.leaves(plan))
    copy = jax.tree.map(lambda leaf: leaf, plan)
    assert repr(copy) == repr(plan) == f"SparseAddPlan(shape=(6, 7), nse={plan.nse}, operands of nnz 13, 13)"


def test_the_promise_of_canonical_input_leaves_no_conditional(rng):
    rows = [random_operand(rng, "canonical", 9)[0] for _ in range(2)]
    texts = [plan_traced.lower(*rows, assume_canonical=promise).as_text() for promise in (False, True)]
    assert ["stablehlo.case" in text for text in texts] == [True, False]
    expected = plan_traced(*rows)
    chex.assert_trees_all_equal(expected, plan_traced(*rows, assume_canonical=True))
    chex.assert_trees_all_equal(plan_of(*rows), plan_of(*rows, assume_canonical=True))


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
    (a, x), (b, y) = (random_operand(rng, "canonical", 9) for _ in range(2))
    a[2], a[5] = (0, -1), (6, 3)
    plan = plan_traced(a, b)
    assert int(plan.nnz) == len(union_indices(a, b, shape=SHAPE))
    np.testing.assert_array_equal(
        to_dense(plan.indices, plan(x, y), SHAPE), to_dense(a, x, SHAPE) + to_dense(b, y, SHAPE)
    )


def matrices(rng, make):
    pairs = [random_operand(rng, "all", 9, dense=(2,) if make is BCOO else ()) for _ in range(2)]
    pair = [BCOO((jnp.asarray(v), jnp.asarray(i)), shape=SHAPE + v.shape[1:]) for i, v in pairs]
    return pair if make is BCOO else [as_bcsr(each) for each in pair]


@pytest.mark.parametrize("make", [BCOO, BCSR])
def test_a_plan_of_matrices_gives_their_sum_in_their_form(rng, make):
    x, y = matrices(rng, make)

    def add(x, y):
        plan = jsg.plan_sparse_add(x, y)
        return plan.with_data(plan(x.data, y.data))

    for total in (add(x, y), jax.jit(add)(x, y)) if make is BCSR else (add(x, y),):
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
    batch = BCOO((np.ones((2, 1)), np.ones((2, 1, 1), int)), shape=(2, 3))
    for call, message in [
        (lambda: jsg.plan_sparse_add(x, y.indices), "`operands[1]` must be a BCOO or a BCSR, as other operands are"),
        (lambda: jsg.plan_sparse_add([x, y]), "call `plan_sparse_add(*operands)`"),
        (lambda: jsg.plan_sparse_add(x.indices), "`shape` must be given if the operands are arrays of indices"),
        (lambda: jsg.plan_sparse_add(x, y)(x, y), "pass its values, `x.data`"),
        (lambda: jsg.plan_sparse_add(x, y)([x.data, y.data]), "unpack the list, `plan(*values)`"),
        (lambda: jsg.plan_sparse_add(x, shape=(3, 3)), "`shape` must be the shape of the matrices, (6, 7)"),
        (lambda: jsg.plan_sparse_add(batch), "must have no batch dimensions"),
    ]:
        with pytest.raises((TypeError, ValueError), match=re.escape(message)):
            call()


def test_the_program_of_a_sum_grows_with_its_operands_by_a_few_operations_each():
    def operations(count):
        rows = [jnp.zeros((5, 2), jnp.int32)] * count
        text = jax.jit(lambda *rows: jsg.plan_sparse_add(*rows, shape=SHAPE)(*[jnp.ones(5)] * count)).lower(*rows)
        return text.as_text().count(" = ")

    few, many = operations(10), operations(25)
    assert (many - few) / 15 < 15
