"""Optimisers: only values are trained, and no `tree.map` can touch indices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO

import jax_sparse_grad as jsg
from helpers.matrices import to_dense
from helpers.samples import SHAPE, random_coo

optax = pytest.importorskip("optax", reason="optax is not installed (extra `examples`)")


@pytest.fixture
def problem(rng):
    """A fixed matrix, the indices and first values of a learnable one, and the sum that is sought."""
    fixed = BCOO(tuple(map(jnp.asarray, random_coo(rng, SHAPE, 9)[::-1])), shape=SHAPE)
    rows, values = map(jnp.asarray, random_coo(rng, SHAPE, 8, duplicates=2))
    target = jnp.asarray(to_dense(rows, np.asarray(values) + 1, SHAPE)) + fixed.todense()
    return fixed, rows, values, target


def test_values_are_the_parameters_and_indices_are_closed_over(problem):
    fixed, rows, values, target = problem
    plan, optimiser = jsg.plan_sparse_add(fixed.indices, rows, shape=SHAPE), optax.adam(0.3)

    def loss(params):
        return jnp.sum((plan.with_data(plan(fixed.data, params["edges"])).todense() - target) ** 2)

    @jax.jit
    def step(carry, _):
        params, state = carry
        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = optimiser.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), value

    params = {"edges": values}
    _, losses = jax.lax.scan(step, (params, optimiser.init(params)), length=300)
    assert losses[0] > 1
    assert losses[-1] < 1e-6


def test_a_container_with_a_mask_keeps_its_indices(problem):
    fixed, rows, values, target = problem
    # Where a whole BCOO must be a parameter, `optax.masked` and `allow_int` keep the indices out of it.
    matrix = BCOO((values, rows), shape=SHAPE)
    trainable = jax.tree.map(lambda leaf: jnp.issubdtype(leaf.dtype, jnp.inexact), matrix)
    optimiser = optax.masked(optax.adam(0.3), trainable)

    @jax.jit
    def step(matrix, state):
        gradient = jax.grad(lambda m: jnp.sum((jsg.add(fixed, m).todense() - target) ** 2), allow_int=True)(matrix)
        updates, state = optimiser.update(gradient, state, matrix)
        data = optax.apply_updates(matrix.data, updates.data)
        return BCOO((data, matrix.indices), shape=SHAPE), state

    state = optimiser.init(matrix)
    for _ in range(200):
        matrix, state = step(matrix, state)
    np.testing.assert_array_equal(matrix.indices, rows)
    np.testing.assert_allclose(to_dense(jsg.add(fixed, matrix)), target, atol=1e-2)
