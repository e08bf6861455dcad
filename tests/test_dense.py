"""Sums of sparse and dense operands."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO

import jax_sparse_grad as jsg
from helpers.matrices import bits, to_dense
from helpers.samples import LAYOUTS, SHAPE, random_bcoo, random_bcsr, random_values


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_dense_operand_gives_a_dense_array(rng, layout):
    x, dense = random_bcoo(rng, layout), random_values(rng, layout[0])
    for total in (jsg.add(x, dense), jsg.add(jnp.asarray(dense), x), jax.jit(jsg.add)(x, dense)):
        assert isinstance(total, jax.Array)
        np.testing.assert_array_equal(total, to_dense(x) + dense)


def test_what_lies_outside_adds_nothing_under_jit():
    rows, data = jnp.array([[0], [-1], [3], [2]]), jnp.array([1.0, jnp.nan, jnp.inf, 4.0])
    add = jax.jit(lambda rows, data, dense: jsg.add(BCOO((data, rows), shape=(3,)), dense))
    total, pull = jax.vjp(lambda *v: add(rows, *v), data, jnp.array([-0.0, -0.0, 5.0]))
    assert [*map(str, total)] == ["1.0", "-0.0", "9.0"]
    chex.assert_trees_all_equal(pull(jnp.arange(1.0, 4)), (jnp.array([1.0, 0, 0, 3]), jnp.arange(1.0, 4)))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float8_e5m2], ids=lambda dtype: dtype.__name__)
def test_duplicates_in_narrow_floats_are_summed_in_wide_ones(dtype):
    rows, data = jnp.ones((3000, 1), jnp.int32), jnp.ones(3000, dtype)
    dense = np.array([-0.0, 8, 0], dtype)
    total, pull = jax.vjp(jax.jit(lambda data, dense: jsg.add(BCOO((data, rows), shape=(3,)), dense)), data, dense)
    assert (total.dtype, bits(total)) == (dtype, bits(np.array([-0.0, 3008, 0], np.float32).astype(dtype)))
    cotangent = np.array([1, np.asarray(jnp.finfo(dtype).smallest_subnormal), -0.0], dtype)
    of_data, of_dense = pull(jnp.asarray(cotangent))
    assert (of_data.dtype, bits(of_data), bits(of_dense)) == (dtype, bits(cotangent[1:2]) * 3000, bits(cotangent))


@pytest.mark.parametrize(("dtype", "expected"), [(jnp.int4, -7), (jnp.uint4, 9), (jnp.int2, 1), (jnp.uint2, 1)])
def test_integers_of_less_than_a_byte_wrap(dtype, expected):
    rows, ones = jnp.ones((1000, 1), jnp.int32), jnp.ones(1000, jnp.int8).astype(dtype)
    total = jsg.add(BCOO((ones, rows), shape=(3,)), jnp.ones(3, jnp.int8).astype(dtype))
    assert (total.dtype, total.astype(jnp.int32).tolist()) == (dtype, [1, expected, 1])


def test_they_may_be_nested_lists(rng):
    x, lists = random_bcoo(rng), random_values(rng, SHAPE).tolist()
    np.testing.assert_array_equal(jsg.add(x, lists), to_dense(x) + np.array(lists))
    np.testing.assert_array_equal(jsg.add_n([tuple(lists), x, lists]), to_dense(x) + 2 * np.array(lists))


class Wrapped:
    """What holds an array without being one, as `flax.nnx.Param` does."""

    def __init__(self, held):
        self.held = held

    def __jax_array__(self):
        return self.held


@pytest.mark.parametrize("make", [random_bcoo, random_bcsr])
def test_wrappers_hold_containers_their_arrays_dense_arrays_and_weights(rng, make):
    x, y, dense = make(rng), make(rng), jnp.asarray(random_values(rng, SHAPE))
    wrap = lambda x: jax.tree.map(Wrapped, x)  # noqa: E731

    def add(x, y):
        return [jsg.add(wrap(x), wrap(y)), jsg.add(wrap(x), y), jsg.add(Wrapped(x), wrap(y))]

    for total in add(x, y):
        np.testing.assert_array_equal(to_dense(total), to_dense(x) + to_dense(y))
    assert jax.eval_shape(add, x, y)[0].shape == SHAPE
    assert isinstance(jax.tree.leaves(wrap(x))[0], Wrapped)
    np.testing.assert_array_equal(jsg.add(x, Wrapped(dense)), to_dense(x) + dense)
    for weights in ([Wrapped(jnp.float32(2)), 3], Wrapped(jnp.array([2.0, 3.0]))):
        np.testing.assert_array_equal(jsg.add_n([x, dense], weights=weights), 2 * to_dense(x) + 3 * dense)
