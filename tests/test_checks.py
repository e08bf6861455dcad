"""Checks under jit: named errors with checkify, nothing paid and the fill rules without."""

import re
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jax_sparse_grad as jsg
from helpers.samples import random_coo

SHAPE = (6, 7)


@pytest.fixture
def pair(rng):
    return (*random_coo(rng, SHAPE, 8), *random_coo(rng, SHAPE, 8))


def with_row(indices, k, row):
    changed = indices.copy()
    changed[k] = row
    return changed


@cache  # so that each is one program, whichever tests call it
def run(thresh=0, **keywords):
    @jax.jit
    def function(a, x, b, y):
        def loss(x, y):
            return (jsg.sparse_add(a, x, SHAPE, b, y, SHAPE, thresh, **keywords).sum_values ** 2).sum()

        return jax.value_and_grad(loss, (0, 1))(x, y)

    return function


@cache
def planned(**keywords):
    return jax.jit(lambda a, x, b, y: jsg.plan_sparse_add(a, b, shape=SHAPE, **keywords)(x, y))


@jax.jit
def gradient(a, x, b, y):
    del x, y
    return jsg.sparse_add_grad(jnp.ones(len(a)), a, b, a, shape=SHAPE)


def error_of(function, *arguments, errors=checkify.user_checks):
    error, _ = checkify.checkify(function, errors=errors)(*arguments)
    return error.get()


@pytest.mark.parametrize(
    "function",
    [
        pytest.param(gradient, id="grad"),
        pytest.param(run(), id="add", marks=pytest.mark.slow),
        pytest.param(run(0.5), id="thresh", marks=pytest.mark.slow),
        pytest.param(run(nse=16), id="nse", marks=pytest.mark.slow),
        pytest.param(run(assume_canonical=True), id="assume_canonical", marks=pytest.mark.slow),
        pytest.param(planned(), id="plan", marks=pytest.mark.slow),
    ],
)
def test_good_input_raises_no_alarm(pair, function):
    assert error_of(function, *pair, errors=checkify.all_checks) is None


@pytest.mark.parametrize(
    "function",
    [pytest.param(run(nse=3), id="add"), pytest.param(run(1e-3, nse=3), id="thresh", marks=pytest.mark.slow)],
)
def test_overflow_is_reported_with_both_numbers(pair, function):
    message = error_of(function, *pair)
    assert re.search(r"`nse` must be at least \d+, the number of distinct entries of the sum; got 3", message)


def test_overflow_of_a_plan_is_reported(pair):
    assert "`nse` must be at least" in error_of(planned(nse=3), *pair)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        pytest.param(gradient, "a_indices", id="grad"),
        pytest.param(run(), "a_indices", id="add", marks=pytest.mark.slow),
        pytest.param(run(0.5), "a_indices", id="thresh", marks=pytest.mark.slow),
        pytest.param(planned(), "operands[0]", id="plan", marks=pytest.mark.slow),
    ],
)
def test_indices_out_of_range_are_reported_by_name_and_row(pair, function, name):
    a, x, b, y = pair
    message = error_of(function, with_row(a, 2, (0, 7)), x, b, y)
    assert f"`{name}` must lie in [0, (6, 7)), or equal (6, 7) in padding; row 2 is [0 7]" in message


def test_a_broken_promise_of_canonical_input_is_reported(pair):
    a, x, b, y = pair
    message = error_of(run(assume_canonical=True), a[::-1], x, b, y)
    assert "`a_indices` must be sorted and unique, with padding last, for `assume_canonical=True`" in message


def test_an_unsorted_sum_is_reported(pair):
    a, _, b, _ = pair
    message = error_of(jax.jit(lambda a, b: jsg.sparse_add_grad(jnp.ones(len(a)), a, b, a[::-1])), a, b)
    assert "`sum_indices` must be sorted as `sparse_add` returns them" in message


@pytest.mark.slow
def test_checks_work_in_a_batch(pair):
    a, x, b, y = pair
    batch = np.stack([a, with_row(a, 1, (-1, 0))])
    error, _ = checkify.checkify(jax.vmap(run(), (0, None, None, None)))(batch, x, b, y)
    assert "`a_indices` must lie in" in error.get()


def test_without_checkify_nothing_is_paid(pair):
    assert not jax.make_jaxpr(run(nse=3))(*pair).effects  # an effect would cost the fast dispatch
    text = run(nse=3).lower(*pair).as_text()
    for word in ("callback", "assert", "custom_call"):
        assert word not in text
    assert np.all(np.isnan(planned(nse=3)(*pair)))
