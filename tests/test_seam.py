"""One primitive for the whole of a sum: what users see of it, and how transformations treat it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO

import jax_sparse_grad as jsg
from jax_sparse_grad._seam import Seam, per_platform
from methods import jit_for


def scale_on(factor):
    """A toy: the running sum of integers, and values times `factor` times that."""

    def method(static, data, values, separate):
        sums = jnp.cumsum(data)
        return (sums, factor), values[0] * sums * static if values else None

    return method


toy = Seam(
    {"cpu": scale_on(1), "gpu": scale_on(2), "tpu": scale_on(3)},
    lambda static, data, values: (
        (jax.ShapeDtypeStruct(data.shape, np.int32), jax.ShapeDtypeStruct((), np.int32)),
        jax.ShapeDtypeStruct(values[0].shape, values[0].dtype) if values else None,
    ),
    lambda kept, values: values[0] * kept[0],
)
OWN = {"cpu": 1, "gpu": 2}.get(jax.default_backend(), 3)  # the factor of the platform of the tests
DATA, VALUES = jnp.arange(1, 5, dtype=jnp.int32), jnp.array([1.0, -2.0, 0.5, 3.0])


def run(data, values):
    (sums, factor), scaled = toy(1, data, (values,))
    return sums, factor, scaled


@pytest.mark.parametrize(("method", "factor"), [("cpu", 1), ("gpu", 2), ("tpu", 3), (None, OWN)])
def test_each_platform_runs_its_method(method, factor):
    sums, found, scaled = jit_for(method, run)(DATA, VALUES)
    np.testing.assert_array_equal(sums, [1, 3, 6, 10])
    assert int(found) == factor
    np.testing.assert_array_equal(scaled, VALUES * sums)


def test_it_runs_eagerly_and_without_jit():
    expected = jax.jit(run)(DATA, VALUES)
    chex.assert_trees_all_equal(run(DATA, VALUES), expected)
    with jax.disable_jit():
        chex.assert_trees_all_equal(run(DATA, VALUES), expected)


@pytest.mark.parametrize("axes", [((0, None), 0), ((None, 0), 0), ((0, 0), 0)])
def test_only_what_depends_on_the_batch_has_its_axis(axes):
    in_axes = axes[0]
    data = jnp.stack([DATA, 2 * DATA]) if in_axes[0] == 0 else DATA
    values = jnp.stack([VALUES, -VALUES]) if in_axes[1] == 0 else VALUES
    shapes = jax.eval_shape(jax.vmap(run, in_axes, (0 if in_axes[0] == 0 else None,) * 2 + (0,)), data, values)
    assert shapes[0].shape == ((2, 4) if in_axes[0] == 0 else (4,))
    mapped = jax.vmap(run, in_axes)(data, values)
    for k in range(2):
        one = run(data[k] if in_axes[0] == 0 else data, values[k] if in_axes[1] == 0 else values)
        chex.assert_trees_all_equal(jax.tree.map(lambda leaf, k=k: leaf[k], mapped), one)


def test_batches_nest():
    data = np.multiply.outer(np.arange(1, 4, dtype=np.int32), DATA)
    values = np.multiply.outer(np.arange(1, 7, dtype=np.float32).reshape(2, 3), VALUES)
    mapped = jax.vmap(jax.vmap(run), (None, 0))(data, values)
    for outer in range(2):
        for inner in range(3):
            one = run(data[inner], values[outer, inner])
            chex.assert_trees_all_equal(jax.tree.map(lambda leaf, at=(outer, inner): leaf[at], mapped), one)


def test_it_is_linear_in_values_to_every_transformation():
    def scaled(values):
        return run(DATA, values)[2]

    tangent = jax.jvp(scaled, (VALUES,), (jnp.ones(4),))[1]
    np.testing.assert_array_equal(tangent, [1, 3, 6, 10])
    np.testing.assert_array_equal(jax.grad(lambda v: scaled(v).sum())(VALUES), [1, 3, 6, 10])
    np.testing.assert_array_equal(jax.linearize(scaled, VALUES)[1](VALUES), scaled(VALUES))
    for function in (scaled, jax.jit(scaled), jax.checkpoint(scaled)):
        np.testing.assert_array_equal(jax.linear_transpose(function, VALUES)(VALUES)[0], scaled(VALUES))
    batch = jnp.stack([VALUES, 2 * VALUES])
    np.testing.assert_array_equal(jax.linear_transpose(jax.vmap(scaled), batch)(batch)[0], jax.vmap(scaled)(batch))
    mixed = jax.vmap(lambda data, values: run(data, values)[2], (0, None))
    rows = jnp.stack([DATA, DATA])
    np.testing.assert_array_equal(jax.grad(lambda values: mixed(rows, values).sum())(VALUES), [2, 6, 12, 20])


def test_what_depends_on_data_alone_is_known_where_values_are_not():
    """Here it is an index, which a linear function of the values could not be."""

    def gathered(values):
        sums, _, scaled = run(DATA, values)
        return scaled[jnp.minimum(sums, 3)]

    (pulled,) = jax.linear_transpose(gathered, VALUES)(jnp.ones(4))
    np.testing.assert_array_equal(pulled, jax.grad(lambda values: gathered(values).sum())(VALUES))


def test_a_function_of_integers_may_differ_by_platform():
    which = per_platform(cpu=lambda x: x + 1, gpu=lambda x: x + 2, otherwise=lambda x: x + 3)
    assert [int(jit_for(method, which)(jnp.int32(0))) for method in ("cpu", "gpu", "tpu")] == [1, 2, 3]
    np.testing.assert_array_equal(jax.vmap(which)(DATA), DATA + OWN)
    assert jax.grad(lambda x: x * which(DATA)[0])(2.0) == 1.0 + OWN


def test_the_program_of_a_sum_can_be_read():
    """As JAX prints it: one line for the sum, some for checks that only `checkify` makes."""
    rows, values = jax.ShapeDtypeStruct((100, 2), jnp.int32), jax.ShapeDtypeStruct((100,), jnp.float32)

    def add(a, x, b, y):
        return jsg.add(BCOO((x, a), shape=(40, 40)), BCOO((y, b), shape=(40, 40))).data

    printed = str(jax.make_jaxpr(add)(rows, values, rows, values))
    assert printed.count("sparse_add_platform_call") == 1
    assert len(printed.splitlines()) < 100
