"""What users of other packages reported, each of its kind, with the right value."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO, BCSR

import jax_sparse_grad as jsg
from helpers.compilations import compilations_of
from helpers.samples import SHAPE, random_coo, random_values


def coo(rng, nnz=5, **form):
    indices, values = random_coo(rng, SHAPE, nnz, **form)
    return BCOO((jnp.asarray(values), jnp.asarray(indices)), shape=SHAPE)


SUMS = {
    "add": lambda x, y: jsg.add(x, y).data,
    "sparse_add": lambda x, y: jsg.sparse_add(x.indices, x.data, SHAPE, y.indices, y.data, SHAPE).sum_values,
    "plan": lambda x, y: jsg.plan_sparse_add(x, y)(x.data, y.data),
    "dense": lambda x, y: jsg.add(x, y.todense()),
    "sum_duplicates": lambda x, y: jsg.sum_duplicates(x, nse=5).data,
}


@pytest.mark.parametrize("name", SUMS)
def test_a_batch_of_none_is_a_batch(rng, name):
    x, y = coo(rng), coo(rng)
    add = SUMS[name]
    of_values = jax.vmap(lambda u, v: add(BCOO((u, x.indices), shape=SHAPE), BCOO((v, y.indices), shape=SHAPE)))
    assert of_values(x.data[None][:0], y.data[None][:0]).shape == (0, *add(x, y).shape)
    both = jax.vmap(lambda i, u: add(BCOO((u, i), shape=SHAPE), y))
    lowered = jax.jit(both).lower(x.indices[None][:0], x.data[None][:0])  # where loops over batches are made
    assert lowered.out_info.shape[0] == 0


def test_a_batch_of_none_as_batch_dimensions(rng):
    x = BCOO((jnp.zeros((0, 3)), jnp.zeros((0, 3, 2), jnp.int32)), shape=(0, *SHAPE))
    y = BCSR((jnp.zeros((0, 3)), jnp.zeros((0, 3), jnp.int32), jnp.zeros((0, 7), jnp.int32)), shape=(0, *SHAPE))
    for operand in (x, y):
        for add in (jsg.add, jax.jit(jsg.add)):
            total = add(operand, operand)
            assert (type(total), total.shape) == (type(operand), (0, *SHAPE))


def test_jacobians_with_respect_to_an_operand_without_entries(rng):
    x, y = coo(rng), coo(rng, 0)
    for jacobian in (jax.jacfwd, jax.jacrev):
        of_none = jacobian(lambda v: jsg.add(x, BCOO((v, y.indices), shape=SHAPE)).data)(y.data)
        assert of_none.shape == (5, 0)


def test_eager_calls_compile_nothing_for_a_new_shape(rng):
    def several(nnz, shape):
        (a, u), (b, v) = (random_coo(rng, shape, n, shuffled=True, duplicates=2) for n in (nnz, nnz + 3))
        u, v, w, ints = jax.device_put((u, v, u.astype(np.float16), np.ones(len(v), np.int8)))
        a, b = jax.device_put((a, b))
        x, y = BCOO((u, a), shape=shape), BCOO((v, b), shape=shape)
        plan = jsg.plan_sparse_add(x, y)
        assert plan.slots[0].shape == u.shape
        for total in (jsg.add(x, y), jsg.subtract(x, y), jsg.add_n([x, y, x], weights=[1.0, 0.5, 2])):
            plan.with_data(jax.device_put(np.ones(plan.nse, np.float32)))
            jsg.sum_duplicates(total, remove_zeros=True)
        jsg.add(BCOO((w, a), shape=shape), BCOO((ints, b), shape=shape))
        jsg.add(x, jax.device_put(np.ones(shape, np.float32)))
        total = jsg.sparse_add(a, u, shape, b, v, shape, 0.5)
        jsg.sparse_add_grad(total.sum_values, a, b, total.sum_indices)
        for add in (plan, lambda u, v: jsg.sparse_add(a, u, shape, b, v, shape).sum_values):
            cotangent = jax.device_put(np.ones(plan.nse, np.float32))
            jax.vjp(add, u, v)[1](cotangent)
        jax.jvp(plan, (u, v), (u, v))
        return x, y, cotangent

    def derivatives(x, y, cotangent):
        for add in (jsg.subtract, lambda x, y: jsg.add_n([x, y], weights=[2.0, 3.0])):
            _, pull = jax.vjp(lambda u, f=add: f(BCOO((u, x.indices), shape=x.shape), y).data, x.data)
            pull(cotangent)

    derivatives(*several(10, (40, 50)))
    known = []
    assert compilations_of(lambda: known.append(several(11, (41, 53)))) == 0
    # JAX's own `BCOO(...)` compiles for traced arrays: here those of x, and those of the sum.
    assert compilations_of(lambda: derivatives(*known[0])) <= 2


def test_python_weights_under_a_transfer_guard(rng):
    x, y = coo(rng), coo(rng)
    with jax.transfer_guard("disallow"):
        total = jsg.add_n([x, y], weights=[1.0, 0.5])
    np.testing.assert_array_equal(total.data, jsg.add_n([x, y], weights=jnp.array([1.0, 0.5])).data)


def test_a_plan_made_with_64_bits_is_used_without(rng):
    with jax.enable_x64(True):
        plan = jsg.plan_sparse_add(np.array([[0, 1], [2, 3]]), np.array([[2, 3]]), shape=SHAPE)
        assert plan.indices.dtype == np.int64
    assert plan.indices.dtype == np.int32
    total = plan.with_data(plan(jnp.ones(2), jnp.ones(1)))
    assert (total.indices.dtype, total.todense()[2, 3]) == (np.int32, 2)


def test_a_size_that_uint32_holds_asks_for_no_64_bits():
    indices = jnp.zeros((1, 1), jnp.int32)
    with pytest.raises(ValueError, match="use uint32 indices"):
        jsg.plan_sparse_add(indices, shape=(2**32 - 1,))
    assert jsg.plan_sparse_add(indices.astype(jnp.uint32), shape=(2**32 - 1,)).nse == 1
    with pytest.raises(ValueError, match="set `jax_enable_x64`, and use int64"):
        jsg.plan_sparse_add(indices.astype(jnp.uint32), shape=(2**32,))


def test_an_overflow_of_integers_is_marked_in_one_sum():
    rows, ones = jnp.arange(3)[:, None], jnp.ones(3, jnp.int32)

    def step(total, update):
        total = jsg.add(total, BCOO((ones, rows), shape=(9,)), nse=2)
        return total, total.data

    empty = jsg.empty((9,), 2, jnp.int32)
    marked = np.iinfo(np.int32).min
    _, marks = jax.lax.scan(step, empty, jnp.arange(2))
    assert marks.tolist() == [[marked] * 2] * 2  # each of these sums overflows
    fits = jsg.add(BCOO((marks[0], rows[:2]), shape=(9,)), BCOO((ones[:2], rows[:2]), shape=(9,)))
    assert fits.data.tolist() == [marked + 1] * 2  # the next one adds to the mark


def test_one_plan_takes_the_place_of_another_without_a_new_compilation(rng):
    step = jax.jit(lambda plan, x, y: plan(x, y))
    x, y = jnp.asarray(random_values(rng, (9,))), jnp.asarray(random_values(rng, (9,)))
    plans = [
        jsg.plan_sparse_add(*(random_coo(rng, SHAPE, 9 - k, duplicates=k)[0] for _ in range(2)), shape=SHAPE, nse=18)
        for k in (0, 3)
    ]
    plans.append(
        jax.jit(lambda *rows: jsg.plan_sparse_add(*rows, shape=SHAPE, nse=18))(*(p.indices[:9] for p in plans))
    )
    step(plans[0], x, y)
    assert step._cache_size() == 1
    for plan in plans[1:]:
        np.testing.assert_array_equal(step(plan, x, y), plan(x, y))
    assert step._cache_size() == 1


@pytest.mark.parametrize("dense", [(0,), (0, 2), (2, 0)])
def test_gradients_of_values_without_elements(dense):
    indices, values = jnp.array([[0], [1]]), jnp.zeros((2, *dense))
    x = lambda data: BCOO((data, indices), shape=(2, *dense))  # noqa: E731
    assert jax.grad(lambda data: jsg.add(x(data), x(values)).data.sum())(values).shape == values.shape
    assert jsg.sparse_add_grad(values, indices, indices, indices).a_val_grad.shape == values.shape


def test_a_threshold_warns_no_more_outside_of_jit_than_inside():
    indices = jnp.array([[0]])
    nan = jnp.array([jnp.nan], jnp.bfloat16)
    assert jnp.isnan(jsg.sparse_add(indices, nan, (1,), indices, nan, (1,), 0.5).sum_values).all()
    one = jnp.ones(1, jnp.float16)
    assert jsg.sparse_add(indices, one, (1,), indices, one, (1,), 1e6).sum_values.shape == (0,)


def test_a_shape_among_the_operands_of_a_plan():
    indices = jnp.array([[0, 1]])
    with pytest.raises(TypeError, match=re.escape("`shape` must be given by keyword, `shape=(3, 3)`")):
        jsg.plan_sparse_add(indices, indices, (3, 3))
