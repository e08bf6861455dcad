"""`add` under JAX's transformations, forward mode included, with patterns that are closed over and with traced ones."""

import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO, BCSR

import jax_sparse_grad as jsg
from helpers.matrices import as_bcsr, at_rows, to_dense
from helpers.samples import NSE, SHAPE, random_bcoo, random_bcsr, random_values


@pytest.fixture(params=["concrete", pytest.param("traced", marks=pytest.mark.slow)])
def kind(request):
    return request.param


@pytest.fixture
def operands(rng):
    return random_bcoo(rng), random_bcoo(rng)


@pytest.fixture
def function(kind, operands):
    """`f(u, v)`, the values of the sum of two operands and, with a dense operand, of a dense sum."""
    x, y = operands

    def add(rows_x, rows_y, u, v):
        total = jsg.add(BCOO((u, rows_x), shape=SHAPE), BCOO((v, rows_y), shape=SHAPE))
        return jsg.add(total, jnp.full(SHAPE, u[0]))

    if kind == "concrete":
        return lambda u, v: add(x.indices, y.indices, u, v)
    jitted = jax.jit(add)
    return lambda u, v: jitted(x.indices, y.indices, u, v)


def by_hand(operands, u, v):
    """The same in numpy."""
    parts = (to_dense(np.asarray(x.indices), np.asarray(w), SHAPE) for x, w in zip(operands, (u, v), strict=True))
    return sum(parts) + u[0]


def by_hand_backwards(operands, table):
    of_u, of_v = (at_rows(table, x.indices, SHAPE) for x in operands)
    return of_u + np.where(np.arange(NSE) == 0, table.sum(), 0), of_v


@pytest.fixture
def values(rng):
    return tuple(jnp.asarray(random_values(rng, NSE) / 9) for _ in range(2))


def test_derivatives_of_both_modes_to_second_order(operands, function, values):
    def loss(*values):
        return (function(*values) ** 3).sum()

    @jax.jit  # all of them in one program
    def derive(values, tangents):
        def slope(*values):
            return jax.jvp(loss, values, tangents)[1]

        gradient = jax.grad(loss, (0, 1))
        second = [
            jax.jvp(gradient, values, tangents)[1],
            jax.vjp(gradient, *values)[1](tangents),
            jax.grad(slope, (0, 1))(*values),
        ]
        return gradient(*values), second, jax.jvp(slope, values, tangents)

    tangents = tuple(value[::-1] for value in map(np.asarray, values))
    gradient, second, slopes = derive(values, tangents)
    total, change = by_hand(operands, *values), by_hand(operands, *tangents)
    chex.assert_trees_all_close(gradient, by_hand_backwards(operands, 3 * total**2), rtol=1e-5)
    for each in second:
        chex.assert_trees_all_close(each, by_hand_backwards(operands, 6 * total * change), rtol=1e-5)
    np.testing.assert_allclose(slopes, [(3 * total**2 * change).sum(), (6 * total * change**2).sum()], rtol=1e-5)


def test_it_is_linear(function, values):
    @jax.jit  # all of them in one program
    def derive(*values):
        primal, tangent = jax.jvp(function, values, values)
        hessian = jax.hessian(lambda *v: (function(*v) ** 2).sum(), (0, 1))(*values)[0][1]
        return (
            (primal, tangent, jax.linearize(function, *values)[1](*values)),
            [mode(function, (0, 1))(*values) for mode in (jax.jacfwd, jax.jacrev)],
            (tuple(jax.linear_transpose(function, *values)(primal)), jax.vjp(function, *values)[1](primal)),
            hessian,
        )

    alike, jacobians, transposes, hessian = derive(*values)
    chex.assert_trees_all_equal(*alike)
    chex.assert_trees_all_equal(*jacobians)
    chex.assert_trees_all_equal(*transposes)
    expected = 2 * np.einsum("rci,rcj->ij", *map(np.asarray, jacobians[0]))
    chex.assert_trees_all_close(hessian, expected, rtol=1e-6)


def test_vmap_cond_and_checkpoint(kind, operands, function, values):
    @jax.checkpoint
    def either(flag, values):
        return jax.lax.cond(flag, lambda v: function(*v), lambda v: jnp.full(SHAPE, v[0][1]), values)

    def use(values):
        batch = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), values)
        flags = jnp.array([True, False])
        gradients = [jax.grad(lambda v, f=flag: (either(f, v) ** 2).sum())(values) for flag in (True, False)]
        return function(*values), jax.vmap(function)(*batch), jax.vmap(either, (0, None))(flags, values), gradients

    # What is traced anyway is one program.
    one, mapped, chosen, gradients = (jax.jit(use) if kind == "traced" else use)(values)
    other = np.asarray(values[0])[1]
    chex.assert_trees_all_close(one, by_hand(operands, *values), rtol=1e-6)
    chex.assert_trees_all_equal(mapped, np.stack([one, 2 * one]))
    chex.assert_trees_all_equal(chosen, np.stack([one, np.full_like(one, other)]))
    first = np.where(np.arange(NSE) == 1, 2 * other * one.size, 0), np.zeros(NSE)
    expected = [by_hand_backwards(operands, 2 * np.asarray(one)), first]
    chex.assert_trees_all_close(gradients, expected, rtol=1e-5)


def test_vmap_over_values_alone_finds_the_union_once(operands):
    def add(rows_x, rows_y, u, v):
        return jsg.add(BCOO((u, rows_x), shape=SHAPE), BCOO((v, rows_y), shape=SHAPE)).data

    x, y = operands
    values = jnp.ones((5, NSE)), jnp.ones((5, NSE))

    def symbolic_phase(in_axes, *arrays):
        """What it returns, as the program says."""
        (line,) = re.findall(r".*= sparse_add_call", str(jax.make_jaxpr(jax.vmap(add, in_axes))(*arrays, *values)))
        return line

    assert "[5," not in symbolic_phase((None, None, 0, 0), x.indices, y.indices)
    # The same reading does find patterns that are batched.
    assert "[5," in symbolic_phase((0, None, 0, 0), jnp.stack([x.indices] * 5), y.indices)


@pytest.mark.parametrize("make", [random_bcoo, random_bcsr])
def test_vmap_over_containers(rng, make):
    x, y = (make(rng, ((3, *SHAPE), 1, 0)) for _ in range(2))
    np.testing.assert_array_equal(to_dense(jax.vmap(jsg.add)(x, y)), to_dense(x) + to_dense(y))


@pytest.mark.parametrize("form", [BCOO, BCSR])
def test_a_scan_carries_a_sum_of_one_structure(rng, form):
    steps = [random_bcoo(rng, nse=5) for _ in range(4)]
    data, rows = jnp.stack([x.data for x in steps]), jnp.stack([x.indices for x in steps])
    empty = random_bcoo(rng, nse=0, padding=0)
    empty = as_bcsr(empty) if form is BCSR else empty

    def accumulate(total, step):
        operand = BCOO(step, shape=SHAPE)
        if form is BCSR:
            operand = jsg.add_n([empty, BCSR.from_bcoo(operand)])
        return jsg.add(total, operand, nse=20), None

    @jax.jit
    def run(data, rows):
        def loss(data):
            total = jax.lax.scan(accumulate, jsg.add_n([empty], nse=20), (data, rows))[0]
            return (total.data**2).sum(), total

        return jax.grad(loss, has_aux=True)(data)

    gradient, total = run(data, rows)
    assert isinstance(total, form)
    assert total.nse == 20
    np.testing.assert_array_equal(to_dense(total), sum(to_dense(x) for x in steps))
    np.testing.assert_array_equal(gradient, [2 * at_rows(to_dense(total), x.indices, SHAPE) for x in steps])
