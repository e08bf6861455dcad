"""Rows move to their shards: by all-to-all forward and backward, and none is lost silently."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from helpers.shards import (
    CASES,
    EVEN,
    FORM,
    SHAPE,
    check_form,
    collectives_in,
    dense_of,
    host,
    make_mesh,
    random_matrix,
)
from jax_sparse_grad import sharded


@pytest.fixture
def matrix(rng):
    return random_matrix(rng, 150, **FORM)


@pytest.fixture
def x(matrix):
    mesh, axis, _ = make_mesh()
    return sharded.partition(matrix, mesh, axis, row_starts=EVEN)


@pytest.fixture
def balanced(matrix):
    return sharded.balanced_row_starts(matrix, 8)


@pytest.mark.parametrize(
    "case",
    [CASES[1], *(pytest.param(case, marks=pytest.mark.slow) for case in (CASES[0], *CASES[2:]))],
    ids=str,
)
def test_it_gives_what_partition_gives(matrix, case):
    mesh, axis, shards = make_mesh(*case)
    x = sharded.partition(matrix, mesh, axis, row_starts=np.arange(shards + 1) * SHAPE[0] // shards)
    expected = sharded.partition(matrix, mesh, axis)
    y = sharded.repartition(x, expected.row_starts)
    for name in ("data", "indices", "row_starts", "nnz"):  # order included
        np.testing.assert_array_equal(host(getattr(y, name)), host(getattr(expected, name)))
    check_form(y, canonical=False)


def test_by_default_the_load_is_balanced(x):
    y = sharded.repartition(x)
    assert host(x.nnz).max() > 2 * host(x.nnz).mean()
    assert host(y.nnz).max() < 1.5 * host(y.nnz).mean()
    assert y.capacity == host(y.nnz).max()
    np.testing.assert_array_equal(dense_of(y), dense_of(x))


def test_rows_that_drifted_come_home(rng, x, balanced):
    # What a traced update of a pattern leaves behind: any row in any shard, padding in between.
    indices = jax.device_put(rng.permutation(host(x.indices)), x.indices.sharding)
    drifted = dataclasses.replace(x, indices=indices)
    for y in (
        sharded.repartition(drifted, balanced),
        jax.jit(lambda drifted: sharded.repartition(drifted, balanced))(drifted),
    ):
        np.testing.assert_array_equal(dense_of(y), dense_of(drifted))
        check_form(y, canonical=False)


def test_hybrid_values_of_integers_and_another_axis(rng):
    mesh, axis, _ = make_mesh("beside another axis")
    matrix = random_matrix(rng, 60)
    x = sharded.partition(matrix, mesh, axis, row_starts=[0, 40, 40, 40, 40])
    hybrid = x.with_data(jnp.stack([x.data, -x.data], axis=1).astype(jnp.int16))
    y = sharded.repartition(hybrid, [0, 0, 3, 20, 40])
    assert y.data.dtype == np.int16
    np.testing.assert_array_equal(dense_of(y)[..., 1], -dense_of(matrix))
    check_form(y, canonical=False)


@pytest.mark.slow
def test_values_are_differentiable_and_come_back_the_same_way(x, balanced):
    def move(data, x):
        return sharded.repartition(x.with_data(data), balanced, capacity=60).data

    check_grads(jax.jit(lambda data: (move(data, x) ** 2).sum() / 81), (x.data,), order=1, rtol=3e-2, atol=3e-2)
    cotangent = move(x.data, x)
    (gradient,) = jax.vjp(lambda data: move(data, x), x.data)[1](cotangent)
    assert gradient.sharding.is_equivalent_to(x.data.sharding, 1)
    entries = np.all(host(x.indices) < SHAPE, axis=1)
    np.testing.assert_array_equal(host(gradient)[entries], host(x.data)[entries])

    def pull(x, cotangent):
        return jax.vjp(lambda data: move(data, x), x.data)[1](cotangent)

    assert collectives_in(lambda x: move(x.data, x), x) == ["all-to-all"]
    assert collectives_in(pull, x, cotangent) == ["all-to-all"]


def test_moved_operands_can_be_added(rng, matrix, x):
    other = random_matrix(rng, 90)
    y = sharded.partition(other, x.mesh, x.axis)

    @jax.jit
    def total(x, y):
        return sharded.add(sharded.repartition(x, y.row_starts, capacity=100), y)

    np.testing.assert_array_equal(dense_of(total(x, y)), dense_of(matrix) + dense_of(other))


def test_a_shard_that_overflows_is_named_and_poisoned(x, balanced):
    counts = host(sharded.repartition(x, balanced).nnz)
    capacity = int(counts.max()) - 1
    message = f"`capacity` must be at least {counts.max()}.* in shard {counts.argmax()}; got {capacity}"
    with pytest.raises(ValueError, match=message):
        sharded.repartition(x, balanced, capacity=capacity)
    move = jax.jit(lambda x: sharded.repartition(x, balanced, capacity=capacity))
    moved = move(x)
    np.testing.assert_array_equal(host(moved.nnz), counts)
    poisoned = [bool(np.isnan(part).all()) for part in np.split(host(moved.data), 8)]
    assert poisoned == (counts > capacity).tolist()


def test_faults_are_named(x, balanced):
    with pytest.raises(TypeError, match="`x` must be a `RowSharded`, got BCOO; `partition` makes one"):
        sharded.repartition(x.matrix, balanced)
    for move in (sharded.repartition, jax.jit(sharded.repartition)):
        with pytest.raises(TypeError, match="`row_starts` must be integers, got RowSharded; pass its `row_starts`"):
            move(x, x)
    with pytest.raises(TypeError, match="`row_starts` must be given if `x` is traced"):
        jax.jit(sharded.repartition)(x)
    with pytest.raises(ValueError, match="`row_starts` must ascend from 0 to 40"):
        sharded.repartition(x, balanced[::-1])
    with pytest.raises(ValueError, match=r"`row_starts` must have shape \(9,\), one more than shards; got \(5,\)"):
        jax.jit(sharded.repartition)(x, balanced[:5])
    bad = dataclasses.replace(x, indices=x.indices.at[3, 1].set(-2))
    with pytest.raises(ValueError, match=r"`x.indices` must lie in .*; entry 3 of shard 0 is \[ *\d+ -2\]"):
        sharded.repartition(bad, balanced)
