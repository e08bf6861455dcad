"""Rows move to their shards: by all-to-all forward and backward, and none is lost silently."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.shards import (
    CASES,
    EVEN,
    FORM,
    SHAPE,
    check_form,
    compile_for,
    dense_of,
    host,
    make_mesh,
    poisoned,
    random_matrix,
    spread,
)
from jax_sparse_grad import sharded


@pytest.fixture
def matrix(rng):
    return random_matrix(rng, 150, **FORM)


@pytest.fixture
def x(matrix):
    return spread([matrix], row_starts=EVEN)[0]


@pytest.fixture
def balanced(matrix):
    return sharded.balanced_row_starts(matrix, 8)


@pytest.mark.parametrize(
    "case",
    [CASES[1], pytest.param(CASES[-1], marks=pytest.mark.slow)],
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


def test_values_are_differentiable_and_come_back_the_same_way(x, balanced):
    def move_and_back(x):
        y, pull = jax.vjp(lambda data: sharded.repartition(x.with_data(data), balanced).data, x.data)
        return pull(y)[0]

    compiled, collectives = compile_for(move_and_back, x)
    assert collectives == ["all-to-all"] * 3  # of indices, of values and of their cotangents
    gradient = compiled(x)
    assert gradient.sharding.is_equivalent_to(x.data.sharding, 1)
    entries = np.all(host(x.indices) < SHAPE, axis=1)
    np.testing.assert_array_equal(host(gradient)[entries], host(x.data)[entries])


def test_a_shard_that_overflows_is_named_and_poisoned(x, balanced):
    counts = host(sharded.repartition(x, balanced).nnz)
    capacity = int(counts.max()) - 1
    message = f"`capacity` must be at least {counts.max()}.* in shard {counts.argmax()}; got {capacity}"
    with pytest.raises(ValueError, match=message):
        sharded.repartition(x, balanced, capacity=capacity)
    move = jax.jit(lambda x: sharded.repartition(x, balanced, capacity=capacity))
    moved = move(x)
    np.testing.assert_array_equal(host(moved.nnz), counts)
    assert poisoned(moved.data, 8) == (counts > capacity).tolist()


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
