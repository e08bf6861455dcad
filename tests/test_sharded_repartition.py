"""Rows move to their shards: by all-to-all forward and backward, and none is lost silently."""

import dataclasses

import jax
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

MATRIX = random_matrix(np.random.default_rng(7), 150, **FORM)
BALANCED = sharded.balanced_row_starts(MATRIX, 8)


@pytest.fixture
def x():
    return spread([MATRIX], row_starts=EVEN)[0]


def move_and_back(x, row_starts):
    def move(data):
        y = sharded.repartition(x.with_data(data), row_starts)
        return y.data, y

    data, pull, y = jax.vjp(move, x.data, has_aux=True)
    return y, pull(data)[0]


@pytest.fixture(scope="module")
def compiled():
    return compile_for(move_and_back, *spread([MATRIX], row_starts=EVEN), EVEN)


def test_it_gives_what_partition_gives():
    mesh, axis, _ = make_mesh(*CASES[-1])
    x = sharded.partition(MATRIX, mesh, axis, row_starts=EVEN)
    expected = sharded.partition(MATRIX, mesh, axis)
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


def test_rows_that_drifted_come_home(rng, x, compiled):
    # What a traced update of a pattern leaves behind: any row in any shard, padding in between.
    indices = jax.device_put(rng.permutation(host(x.indices)), x.indices.sharding)
    drifted = dataclasses.replace(x, indices=indices)
    y, _ = compiled[0](drifted, BALANCED)
    np.testing.assert_array_equal(dense_of(y), dense_of(drifted))
    check_form(y, canonical=False)


def test_hybrid_values_of_integers_and_another_axis():
    (x,) = spread([MATRIX], "beside another axis", row_starts=[0, 5, 7, 9, 40], capacity=80)
    values = host(x.data).astype(np.int16)
    hybrid = x.with_data(np.stack([values, -values], axis=1))
    y = jax.jit(sharded.repartition)(hybrid, np.array([0, 3, 6, 20, 40]))
    assert y.data.dtype == np.int16
    np.testing.assert_array_equal(dense_of(y)[..., 1], -dense_of(MATRIX))
    check_form(y, canonical=False)


def test_values_come_back_the_same_way(x, compiled):
    move_and_back, collectives = compiled
    assert collectives == ["all-to-all"] * 3  # of indices, of values and of their cotangents
    _, gradient = move_and_back(x, BALANCED)
    assert gradient.sharding.is_equivalent_to(x.data.sharding, 1)
    entries = np.all(host(x.indices) < SHAPE, axis=1)
    np.testing.assert_array_equal(host(gradient)[entries], host(x.data)[entries])


def test_a_shard_that_overflows_is_named_and_poisoned(x, compiled):
    starts, total = np.array([0, 0, 0, *[40] * 6]), host(x.nnz).sum()
    message = f"`capacity` must be at least {total}.* in shard 2; got {x.capacity}"
    with pytest.raises(ValueError, match=message):
        sharded.repartition(x, starts, capacity=x.capacity)
    moved, _ = compiled[0](x, starts)
    assert host(moved.nnz).tolist() == [0, 0, total, *[0] * 5]
    assert poisoned(moved.data, 8) == [False, False, True, *[False] * 5]


def test_faults_are_named(x):
    with pytest.raises(TypeError, match="`x` must be a `RowSharded`, got BCOO; `partition` makes one"):
        sharded.repartition(x.matrix, BALANCED)
    for move in (sharded.repartition, jax.jit(sharded.repartition)):
        with pytest.raises(TypeError, match="`row_starts` must be integers, got RowSharded; pass its `row_starts`"):
            move(x, x)
    with pytest.raises(TypeError, match="`row_starts` must be given if `x` is traced"):
        jax.jit(sharded.repartition)(x)
    with pytest.raises(ValueError, match="`row_starts` must ascend from 0 to 40"):
        sharded.repartition(x, BALANCED[::-1])
    with pytest.raises(ValueError, match=r"`row_starts` must have shape \(9,\), one more than shards; got \(5,\)"):
        jax.jit(sharded.repartition)(x, BALANCED[:5])
    bad = host(x.indices).copy()
    bad[3, 1] = -2
    with pytest.raises(ValueError, match=r"`x.indices` must lie in .*; entry 3 of shard 0 is \[ *\d+ -2\]"):
        sharded.repartition(dataclasses.replace(x, indices=jax.device_put(bad, x.indices.sharding)), BALANCED)
