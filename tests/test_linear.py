"""Linear maps with named transposes, against the matrices that they stand for."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from compilations import compilations_of
from jax_sparse_grad import _eager, _linear

ROWS = jnp.array([3, 0, 0, 2, 2], jnp.int32)


def pick(rows, x):
    """Rows of the one array."""
    return (x[0][jnp.minimum(rows, x[0].shape[0] - 1)],)


def spread(rows, y):
    return (jnp.zeros_like(y[0], shape=(4, *y[0].shape[1:])).at[rows].add(y[0], mode="drop"),)


def run(x, rows=ROWS):
    """Two parts of one argument, three of one result."""
    return jnp.concatenate(_linear.linear(pick, spread, rows, x, ((1, 3),), ((2, 2, 1),)))


@pytest.fixture
def x(rng):
    return jnp.asarray(rng.normal(size=(1, 2)), jnp.float32), jnp.asarray(rng.normal(size=(3, 2)), jnp.float32)


def plain(x, rows=ROWS):
    return jnp.concatenate(x)[rows]


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_it_is_the_map_forwards_and_its_transpose_backwards(x, transform):
    np.testing.assert_array_equal(transform(run)(x), plain(x))
    cotangent = jnp.arange(10.0).reshape(5, 2)
    chex.assert_trees_all_close(jax.vjp(transform(run), x)[1](cotangent), jax.vjp(plain, x)[1](cotangent))
    chex.assert_trees_all_close(jax.jvp(transform(run), (x,), (x,)), jax.jvp(plain, (x,), (x,)))
    chex.assert_trees_all_close(jax.linearize(transform(run), x)[1](x), plain(x))
    (transposed,) = jax.linear_transpose(transform(run), x)(cotangent)
    chex.assert_trees_all_close(transposed, jax.linear_transpose(plain, x)(cotangent)[0])


def test_one_part_alone_is_differentiated(x):
    for k in (0, 1):

        def of_part(function, part, k=k):
            return (function((part, x[1]) if k == 0 else (x[0], part)) ** 2).sum()

        gradients = (jax.grad(partial(of_part, function))(x[k]) for function in (run, plain))
        chex.assert_trees_all_close(*gradients)


@pytest.mark.slow
def test_batches_of_values_of_data_and_of_both(x):
    many = jax.tree.map(lambda part: jnp.stack([part, 2 * part, part + 1]), x)
    rows = jnp.stack([ROWS, ROWS[::-1], jnp.zeros_like(ROWS)])

    def loss(function, *batched):
        return lambda x, rows: (jax.vmap(function, batched)(x, rows) ** 3).sum()

    for batched, arguments in (((0, None), (many, ROWS)), ((None, 0), (x, rows)), ((0, 0), (many, rows))):
        expected = jax.jit(jax.value_and_grad(loss(plain, *batched)))(*arguments)
        for transform in (lambda f: f, jax.jit):
            result = transform(jax.value_and_grad(loss(run, *batched)))(*arguments)
            chex.assert_trees_all_close(result, expected, rtol=1e-5)
    nested = [jax.vmap(jax.vmap(function, (0, None)), (None, 0)) for function in (run, plain)]
    chex.assert_trees_all_close(nested[0](many, rows), jax.jit(nested[1])(many, rows))


@pytest.mark.slow
def test_second_derivatives(x):
    hessians = [jax.hessian(lambda x, f=function: (f(x) ** 3).sum()) for function in (run, plain)]
    chex.assert_trees_all_close(hessians[0](x), jax.jit(hessians[1])(x), rtol=1e-5)


def test_lengths_that_come_again_and_again_get_a_program_of_their_own(x, monkeypatch):
    for name in ("REPEATED", "REPEATED_ELSEWHERE"):
        monkeypatch.setattr(_linear, name, 3)
    monkeypatch.setattr(_eager, "_calls", {})
    expected = run(x)
    counts = [compilations_of(lambda: np.testing.assert_array_equal(run(x), expected)) for _ in range(5)]
    assert counts[:2] == [0, 0]
    assert counts[2] > 0
    assert counts[3:] == [0, 0]
    monkeypatch.setattr(_linear, "MOST_PROGRAMS", 0)
    monkeypatch.setattr(_linear, "_own_programs", set())
    assert not any(_linear._is_worth_a_program((), ("a map",)) for _ in range(5))
