"""Nothing that a caller owns is kept: arrays where JAX would take the memory itself are overwritten afterwards."""

import numpy as np
import pytest
import scipy.sparse
from jax.experimental.sparse import BCOO

from helpers.samples import aligned
from helpers.shards import check_form, dense_of, host, make_mesh
from jax_sparse_grad import sharded

SIZE = 64
STARTS = np.arange(9) * SIZE // 8


def diagonal(*, size=SIZE, form=BCOO):
    """`(matrix, arrays)`: ones on the diagonal, and the memory that holds them."""
    data, places = aligned(np.ones(size, np.float32)), np.arange(size, dtype=np.int32)
    if form is BCOO:
        indices = aligned(np.stack([places, places], axis=1))
        return BCOO((data, indices), shape=(size, size)), (data, indices)
    coordinates = aligned(places), aligned(places)
    return scipy.sparse.coo_array((data, coordinates), shape=(size, size)), (data, *coordinates)


def overwrite(*arrays):
    for array in arrays:
        array[...] = 3


@pytest.fixture
def x():
    matrix, _ = diagonal()
    mesh, axis, _ = make_mesh()
    return sharded.partition(matrix, mesh, axis, row_starts=STARTS)


@pytest.mark.parametrize("form", [BCOO, scipy.sparse.coo_array])
@pytest.mark.parametrize("capacity", [None, SIZE // 8])
def test_partition(form, capacity):
    mesh, axis, _ = make_mesh()
    matrix, arrays = diagonal(form=form)
    starts = aligned(STARTS)
    x = sharded.partition(matrix, mesh, axis, row_starts=starts, capacity=capacity)
    overwrite(*arrays, starts)
    check_form(x)
    np.testing.assert_array_equal(dense_of(x), np.eye(SIZE))


@pytest.mark.parametrize("capacity", [None, SIZE // 8])
def test_from_shards_of_a_loader_with_one_buffer(capacity):
    mesh, axis, _ = make_mesh()
    block, arrays = diagonal(size=SIZE // 8, form=scipy.sparse.coo_array)
    buffer = scipy.sparse.coo_array((block.data, block.coords), shape=(SIZE // 8, SIZE))

    def load(start, _):
        buffer.data[...] = start
        return buffer

    starts = aligned(STARTS)
    x = sharded.from_shards(load, (SIZE, SIZE), mesh, axis, row_starts=starts, capacity=capacity)
    overwrite(*arrays, starts)
    check_form(x)
    np.testing.assert_array_equal(dense_of(x).sum(axis=1), np.arange(SIZE) // 8 * 8)


def test_row_starts_of_a_repartition(x):
    starts = aligned(np.array([0, 1, *STARTS[2:]], np.int32))
    y = sharded.repartition(x, starts)
    overwrite(starts)
    check_form(y)
    np.testing.assert_array_equal(dense_of(y), np.eye(SIZE))


def test_values_for_a_pattern_and_for_a_plan(x):
    values = aligned(np.full(SIZE, 2, np.float32))
    plan = sharded.plan_sparse_add(x, x)
    others = x.with_data(values), plan.with_data(values)
    total = plan(values, values)
    overwrite(values)
    for y in others:
        np.testing.assert_array_equal(dense_of(y), 2 * np.eye(SIZE))
    np.testing.assert_array_equal(host(total), np.full(SIZE, 4))
