"""Sums of arrays that lie on a mesh, whatever the type of its axes: as on one device, and divided as the operands."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jax_sparse_grad as jsg
from helpers.matrices import as_bcsr
from helpers.meshes import mesh_of
from helpers.samples import random_values

BATCH, SHAPE, NSE = 8, (4, 5), 6


@pytest.fixture
def mesh(request):
    return mesh_of((4, 2), ("batch", "other"), getattr(request, "param", AxisType.Explicit))


EITHER_KIND = pytest.mark.parametrize(
    "mesh",
    [pytest.param(AxisType.Auto, id="auto", marks=pytest.mark.slow), pytest.param(AxisType.Explicit, id="explicit")],
    indirect=True,
)


def spread(mesh, tree, *spec):
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(*spec)))


def assert_divided(array, *spec):
    """Whether each device holds what it should, and no more."""
    whole = array.sharding.mesh
    assert array.sharding.is_equivalent_to(NamedSharding(whole, PartitionSpec(*spec)), array.ndim)


def is_explicit(mesh):
    return AxisType.Explicit in mesh.axis_types


@pytest.fixture
def batches(rng):
    """Two batches of matrices on one device."""
    rows = [np.stack([rng.integers(0, size, (BATCH, NSE)) for size in SHAPE], axis=-1) for _ in range(2)]
    return [
        BCOO((jnp.asarray(random_values(rng, (BATCH, NSE))), jnp.asarray(each, jnp.int32)), shape=(BATCH, *SHAPE))
        for each in rows
    ]


@pytest.mark.slow
@EITHER_KIND
def test_a_divided_batch_stays_divided(mesh, batches):
    expected = sum(np.asarray(x.todense()) for x in batches)
    x, y = spread(mesh, batches, "batch")
    one = jsg.add(*batches)
    for add in (jsg.add, jax.jit(jsg.add)):
        total = add(x, y)
        np.testing.assert_array_equal(jax.device_get(total).todense(), expected)
        # The loops of XLA:CPU take all batches on each device if nobody says that they are divided.
        for part in (total.data, total.indices) if add is jsg.add or is_explicit(mesh) else ():
            assert_divided(part, "batch")
    assert jsg.add(x, y).nse == one.nse
    total = jax.jit(jsg.subtract)(x, np.ones(x.shape, np.float32))
    np.testing.assert_array_equal(total, np.asarray(batches[0].todense()) - 1)
    assert_divided(total, "batch")


@pytest.mark.slow
def test_a_batch_of_bcsr(mesh, batches):
    matrices = [as_bcsr(jsg.sum_duplicates(x)) for x in batches]
    expected = jsg.add(*matrices, nse=sum(x.nse for x in matrices))
    total = jax.jit(jsg.add)(*spread(mesh, matrices, "batch"))
    for part, of_one in zip(jax.tree.leaves(total), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(part, of_one)
        assert_divided(part, "batch")


@pytest.mark.slow
def test_gradients_are_divided_as_their_operands(mesh, batches):
    table = random_values(np.random.default_rng(0), (BATCH, 2 * NSE))

    def loss(data, x, y, weight):
        total = jsg.add_n([BCOO((data, x.indices), shape=x.shape), y], weights=[weight, 1], nse=2 * NSE)
        return jnp.sum(total.data**2 * table)

    x, y = spread(mesh, batches, "batch")
    expected = jax.grad(loss, (0, 3))(batches[0].data, *batches, 2.0)
    gradients = jax.jit(jax.grad(loss, (0, 3)))(x.data, x, y, 2.0)
    np.testing.assert_array_equal(gradients[0], expected[0])
    np.testing.assert_allclose(gradients[1], expected[1], rtol=1e-6)
    assert_divided(gradients[0], "batch")


@pytest.mark.slow
def test_patterns_that_are_closed_over_give_the_exact_number(mesh, batches):
    x, y = spread(mesh, batches, "batch")

    @jax.jit
    def add(data):
        return jsg.add(BCOO((data, x.indices), shape=x.shape), y)

    total = add(x.data)
    assert total.nse == jsg.add(*batches).nse
    np.testing.assert_array_equal(jax.device_get(total).todense(), sum(np.asarray(each.todense()) for each in batches))


def test_a_pattern_that_batches_share(mesh, rng, batches):
    data = random_values(rng, (BATCH, NSE))
    rows = batches[0].indices[:1]
    expected = jsg.add(*[BCOO((data, rows), shape=(BATCH, *SHAPE))] * 2)
    x = BCOO((spread(mesh, data, "batch"), spread(mesh, rows)), shape=(BATCH, *SHAPE))
    total = jsg.add(x, x)
    np.testing.assert_array_equal(total.data, expected.data)
    np.testing.assert_array_equal(total.indices, expected.indices)
    assert_divided(total.data, "batch")


@EITHER_KIND
def test_dense_dimensions_stay_divided_and_entries_do_not(mesh, rng):
    data, rows = random_values(rng, (8, 4)), np.arange(8)[:, None] % 5
    expected = np.zeros((5, 4), np.float32)
    np.add.at(expected, rows[:, 0], data)
    x = BCOO((spread(mesh, data, "batch", "other"), spread(mesh, rows, "batch")), shape=(5, 4))
    for add in (jsg.add, jax.jit(jsg.add)):
        total = add(x, x)
        np.testing.assert_array_equal(jax.device_get(total).todense(), 2 * expected)
        assert_divided(total.data, None, "other")
        np.testing.assert_array_equal(add(x, np.ones((5, 4), np.float32)), expected + 1)

    @jax.jit
    def gradient(data):
        return jax.grad(lambda data: jnp.sum(jsg.add(BCOO((data, x.indices), shape=x.shape), x).data ** 2))(data)

    np.testing.assert_array_equal(gradient(x.data), 4 * expected[rows[:, 0]])


@pytest.mark.slow
def test_functions_of_arrays_under_vmap(mesh, batches):
    def loss(x, a, b, y):
        total = jsg.sparse_add(a, x, SHAPE, b, y, SHAPE, nse=2 * NSE)
        gradient = jsg.sparse_add_grad(total.sum_values, a, b, total.sum_indices).a_val_grad
        return jnp.sum(total.sum_values**2), (total.sum_values, gradient)

    with_gradient = jax.grad(loss, has_aux=True)
    x, y = batches
    arrays = x.data, x.indices, y.indices, y.data
    results = jax.jit(jax.vmap(with_gradient))(*spread(mesh, arrays, "batch"))
    alone = [with_gradient(*(each[k] for each in arrays)) for k in range(BATCH)]
    for divided, *one in zip(*map(jax.tree.leaves, (results, *alone)), strict=True):
        np.testing.assert_array_equal(divided, one)
    for total in results[1]:  # jax 0.8 gathers the other gradient
        assert_divided(total, "batch")
