"""What was called once with operands of some sizes compiles nothing when it is called with the like again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.compilations import compilations_of
from helpers.shards import EVEN, SHAPE, canonical, random_matrix, spread
from jax_sparse_grad import sharded


@pytest.fixture(scope="module")
def operands():
    rng = np.random.default_rng(3)
    return spread([canonical(random_matrix(rng, nnz, duplicates=3)) for nnz in (150, 90)])


def add(x, y):
    return sharded.add(x, y, assume_canonical=True)


def add_by_plan(x, y):
    plan = sharded.plan_sparse_add(x, y, assume_canonical=True)
    return plan.with_data(plan(x.data, y.data))


def move(x, _):
    return sharded.repartition(x, EVEN)


def add_to_dense(x, _):
    return sharded.add(x, np.ones(SHAPE, np.float32))


@pytest.mark.parametrize(
    "function", [add, *(pytest.param(each, marks=pytest.mark.slow) for each in (add_by_plan, move, add_to_dense))]
)
def test_sums_and_gradients_compile_once(operands, function):
    x, y = operands

    def value_and_pull(scale):
        # All is made anew, as in an eager loop: the operands' trees, and the function that is differentiated.
        def values_of(data):
            total = function(x.with_data(data), y)
            return getattr(total, "data", total)

        values, pull = jax.vjp(values_of, scale * x.data)
        jax.jvp(values_of, (scale * x.data,), (x.data,))
        return function(x.with_data(scale * x.data), y), values, pull(values)

    value_and_pull(jnp.float32(2))
    again = []
    assert compilations_of(lambda: again.extend(value_and_pull(jnp.float32(3)))) == 0
    total, values, _ = again
    np.testing.assert_array_equal(getattr(total, "data", total), values)


def test_a_new_program_is_seen():
    assert compilations_of(lambda: jax.jit(lambda x: 3 * x)(np.float32(1))) == 1
