"""Checks under jit: named errors with `checkify`, nothing paid without."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jax_sparse_grad as jsg
from helpers.samples import random_coo
from jax_sparse_grad import _data_checks

SHAPE, NSE = (6, 7), 8


def sum_and_gradient(a, x, b, y):
    def loss(x):
        return (jsg.sparse_add(a, x, SHAPE, b, y, SHAPE, nse=NSE).sum_values ** 2).sum()

    return jax.value_and_grad(loss)(x)


FUNCTIONS = {
    "add": sum_and_gradient,
    "thresh": lambda a, x, b, y: jsg.sparse_add(a, x, SHAPE, b, y, SHAPE, 1e-9, nse=NSE),
    "plan": lambda a, x, b, y: jsg.plan_sparse_add(a, b, shape=SHAPE, nse=NSE)(x, y),
    "canonical": lambda a, x, b, y: jsg.sparse_add(a, x, SHAPE, b, y, SHAPE, nse=NSE, assume_canonical=True),
    "grad": lambda a, x, b, y: jsg.sparse_add_grad(jnp.ones(len(a)), a, a, b, shape=SHAPE),
}


@cache
def checked(name):
    """One program for all data."""
    return jax.jit(checkify.checkify(FUNCTIONS[name], errors=checkify.all_checks))


@pytest.fixture
def error_of(rng):
    (a, x), (b, y) = random_coo(rng, SHAPE, NSE), random_coo(rng, SHAPE, NSE)

    def error_of(name, a=a, b=a):
        return checked(name)(a, x, b, y)[0].get()

    error_of.a, error_of.other = a, b
    return error_of


def with_row(indices, k, row):
    changed = indices.copy()
    changed[k] = row
    return changed


@pytest.mark.parametrize("name", FUNCTIONS)
def test_good_input_raises_no_alarm_and_bad_rows_are_reported(error_of, name):
    assert error_of(name) is None
    argument = "operands[0]" if name == "plan" else "a_indices"
    message = error_of(name, with_row(error_of.a, 2, (0, 7)))
    assert f"`{argument}` must lie in [0, (6, 7)), or equal (6, 7) in padding; row 2 is [0 7]" in message


@pytest.mark.parametrize("name", ["add", "thresh", "plan"])
def test_overflow_is_reported_with_both_numbers(error_of, name):
    message = error_of(name, b=error_of.other)
    assert re.search(r"`nse` must be at least (9|1\d), the number of distinct entries of the sum; got 8", message)


def test_a_broken_promise_of_canonical_input_is_reported(error_of):
    message = error_of("canonical", error_of.a[::-1])
    assert "`a_indices` must be sorted and unique, with padding last, for `assume_canonical=True`" in message


def test_an_unsorted_sum_is_reported(error_of):
    assert "`sum_indices` must be sorted as `sparse_add` returns them" in error_of("grad", b=error_of.a[::-1])


def test_checks_work_in_a_batch(error_of):
    batch = np.stack([error_of.a, with_row(error_of.a, 1, (-1, 0))])
    mapped = jax.jit(jax.vmap(lambda rows: _data_checks.check_rows("rows", rows, SHAPE)))
    assert "`rows` must lie in" in checkify.checkify(mapped)(batch)[0].get()


def test_without_checkify_nothing_is_paid(rng):
    pair = (*random_coo(rng, SHAPE, NSE), *random_coo(rng, SHAPE, NSE))
    traced = jax.jit(sum_and_gradient).trace(*pair)
    assert not traced.jaxpr.effects  # an effect would cost the fast dispatch
    text = traced.lower().as_text()
    for word in ("callback", "assert", "custom_call"):
        assert word not in text
