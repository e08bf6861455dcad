"""JAX's settings: under each of them the public functions give the same sums, eager and jitted."""

import contextlib
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO, BCSR

import jax_sparse_grad as jsg
from helpers.matrices import to_dense
from helpers.meshes import devices

SHAPE = (3, 4)
A, VA = np.array([[2, 0], [0, 1], [0, 1]], np.int32), np.array([1, 2, 3], np.float32)  # out of order, with a duplicate
B, VB = np.array([[0, 1], [1, 1]], np.int32), np.array([-5, 7], np.float32)
DENSE = to_dense(A, VA, SHAPE) + to_dense(B, VB, SHAPE)
COTANGENT = np.array([10, 20, 30], np.float32)  # of the sum's entries: [0, 1], [1, 1] and [2, 0]


@contextlib.contextmanager
def configured(**values):
    before = {name: getattr(jax.config, name) for name in values}
    try:
        for name, value in values.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@contextlib.contextmanager
def debugging():
    with jax.debug_nans(True), jax.debug_infs(True), jax.checking_leaks(), configured(jax_enable_checks=True):
        yield


@contextlib.contextmanager
def logging_compilations():
    """Whose messages are warnings of `logging`; here only that they do no harm is of interest."""
    logging.disable()
    try:
        with jax.log_compiles(), configured(jax_explain_cache_misses=True):
            yield
    finally:
        logging.disable(logging.NOTSET)


@contextlib.contextmanager
def strictly():
    ranks, precision = jax.numpy_rank_promotion("raise"), jax.default_matmul_precision("float32")
    with jax.numpy_dtype_promotion("strict"), ranks, precision:
        yield


@contextlib.contextmanager
def without_jit():
    with jax.disable_jit(), jax.debug_nans(True):
        yield


SETTINGS = {
    "transfer_guard": lambda: jax.transfer_guard("disallow"),
    "transfer_guard, everywhere": lambda: configured(jax_transfer_guard="disallow"),
    "default_device by name": lambda: jax.default_device("cpu"),
    "strict promotion": strictly,
    "enable_x64": lambda: jax.enable_x64(True),
    "debugging": debugging,
    "logging": logging_compilations,
    "disable_jit": without_jit,
}


@pytest.fixture(scope="module")
def arguments():
    a, va, b, vb, cotangent = map(jnp.asarray, (A, VA, B, VB, COTANGENT))
    # A BCSR of the same entries as A, whose `indptr` has a dtype of its own.
    rows = BCSR((va[jnp.array([1, 2, 0])], jnp.array([1, 1, 0]), jnp.array([0, 2, 2, 3], jnp.int16)), shape=SHAPE)
    return a, va, b, vb, rows, jnp.asarray(DENSE), cotangent, jsg.plan_sparse_add(a, b, shape=SHAPE)


def every_sum(a, va, b, vb, rows, dense, cotangent, plan):
    return {
        "sparse_add": jsg.sparse_add(a, va, SHAPE, b, vb, SHAPE, 0.5),  # drops [0, 1], where 5 and -5 meet
        "add": jsg.add(rows, BCOO((vb, b), shape=SHAPE)),
        "add_n": jsg.add_n([rows]),
        "to dense": jsg.add(BCOO((va, a), shape=SHAPE), dense),
        "plan": plan(va, vb),
        "gradients": jax.vjp(lambda v: plan(v, vb), va)[1](cotangent)[0],
        "sparse_add_grad": jsg.sparse_add_grad(cotangent, a, b, plan.indices),
    }


def check(results):
    total = results["sparse_add"]
    np.testing.assert_array_equal(to_dense(total.sum_indices, total.sum_values, SHAPE), DENSE)
    assert [0, 1] not in np.asarray(total.sum_indices).tolist()
    np.testing.assert_array_equal(to_dense(results["add"].indices, results["add"].data, SHAPE), DENSE)
    np.testing.assert_array_equal(results["add_n"].data[:2], [5, 1])
    np.testing.assert_array_equal(results["to dense"], DENSE + to_dense(A, VA, SHAPE))
    np.testing.assert_array_equal(results["plan"], [0, 7, 1])
    np.testing.assert_array_equal(results["gradients"], [30, 10, 10])
    np.testing.assert_array_equal(results["sparse_add_grad"].a_val_grad, [30, 10, 10])
    np.testing.assert_array_equal(results["sparse_add_grad"].b_val_grad, [10, 20])


def test_concrete_arguments_may_lie_where_numpy_does_not_reach_them(arguments):
    """Another CPU stands for a GPU here."""
    elsewhere = jax.device_put(arguments, devices(2)[1])
    for sums in (every_sum, lambda *arguments: jax.jit(lambda: every_sum(*arguments))()):
        check(jax.device_get(sums(*elsewhere)))


@pytest.mark.parametrize("setting", SETTINGS)
def test_concrete_sums_and_gradients_are_the_same_under_every_setting(setting, arguments):
    with SETTINGS[setting]():
        results = every_sum(*arguments)
    check(results)


@pytest.mark.parametrize("setting", SETTINGS)
def test_everything_is_traced_under_every_setting(setting, arguments):
    """Without compiling, which takes longer than all else."""
    with SETTINGS[setting]():
        traced = jax.jit(lambda *arguments: every_sum(*arguments)).trace(*arguments)
    assert traced.out_info["plan"].shape == (3,)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["transfer_guard", "debugging", "logging"])
def test_compiled_sums_run_under_settings_of_the_run(setting, arguments):
    with SETTINGS[setting]():
        results = jax.jit(every_sum)(*arguments)
    check(results)


def test_disallow_explicit_bars_what_goes_through_numpy_as_well(arguments):
    a, va, b, vb, *_ = arguments
    with jax.transfer_guard("disallow_explicit"), pytest.raises(Exception, match="Disallowed"):
        jsg.sparse_add(a, va, SHAPE, b, vb, SHAPE)
