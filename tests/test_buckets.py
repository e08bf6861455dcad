"""Lengths for which functions are compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO, BCSR

import jax_sparse_grad as jsg
from jax_sparse_grad import _buckets
from samples import random_coo, to_dense, union_indices

compilations = []


def listen(event, _duration, **_details):
    if event == "/jax/core/compile/backend_compile_duration":
        compilations.append(event)


jax.monitoring.register_event_duration_secs_listener(listen)


def compilations_of(call):
    """How many programs JAX compiles during a call."""
    before = len(compilations)
    call()
    return len(compilations) - before


def test_few_buckets_hold_all_sizes():
    sizes = np.unique(np.concatenate([np.arange(3000), np.geomspace(3000, 2**31 - 1, 5000).astype(int)]))
    lengths = [_buckets.bucket(int(size)) for size in sizes]
    assert all(length >= size for length, size in zip(lengths, sizes, strict=True))
    assert all(length <= 1.5 * size + 1 for length, size in zip(lengths, sizes, strict=True) if size > 8192)
    assert lengths == sorted(lengths)
    assert len(set(lengths)) < 45


def test_operands_share_the_bucket_of_the_longest_unless_they_are_much_shorter():
    assert _buckets.buckets([9000, 3000]) == [12288, 12288]
    assert _buckets.buckets([10**6, 100]) == [2**20, 2048]


@pytest.mark.parametrize("size", [0, 2, 3, 5])
def test_resize_cuts_or_fills(size):
    array = jnp.array([[1, 2], [3, 4], [5, 6]])
    resized = _buckets.resize(array, size, (7, 8))
    np.testing.assert_array_equal(resized, np.array([[1, 2], [3, 4], [5, 6], [7, 8], [7, 8]])[:size])


def test_arrays_on_another_device_stay_there():
    array = jax.device_put(jnp.arange(3), jax.devices()[1])
    assert _buckets.resize(array, 5, 0).devices() == {jax.devices()[1]}


def test_eager_containers_and_plans_of_new_sizes_compile_nothing(rng):
    shape = (40, 50)
    dense = np.ones(shape, np.float32)

    def matrices(rows, values):
        starts = np.searchsorted(rows[:, 0], np.arange(shape[0] + 1)).astype(np.int32)
        arrays = values, rows, rows[:, 1].copy(), starts
        values, rows, columns, starts = jax.device_put(arrays)  # `jnp.asarray` would compile
        return BCOO((values, rows), shape=shape), BCSR((values, columns, starts), shape=shape)

    def add(count):
        (a, x), (b, y) = random_coo(rng, shape, count), random_coo(rng, shape, count + 7)
        jsg.plan_sparse_add(a, b, shape=shape)
        expected = to_dense(a, x, shape) + to_dense(b, y, shape)
        for first, second in zip(matrices(a, x), matrices(b, y), strict=True):
            total = jsg.add(first, second)
            assert np.asarray(total.data).sum() == expected.sum()
            assert total.nse == len(union_indices(a, b, shape=shape))
            np.testing.assert_array_equal(jsg.add(first, dense), to_dense(a, x, shape) + 1)

    add(100)
    for count in (101, 250, 555):
        assert compilations_of(lambda count=count: add(count)) == 0


def test_eager_calls_of_new_sizes_compile_nothing(rng):
    def add(count):
        a, x = random_coo(rng, (40, 50), count)
        b, y = random_coo(rng, (40, 50), count + 7, shuffled=True)
        total = jsg.sparse_add(a, x, (40, 50), b, y, (40, 50))
        jsg.sparse_add_grad(total.sum_values, a, b, total.sum_indices)
        expected = to_dense(a, x, (40, 50)) + to_dense(b, y, (40, 50))
        np.testing.assert_array_equal(to_dense(total.sum_indices, total.sum_values, (40, 50)), expected)

    add(100)
    for count in (101, 250, 555):
        assert compilations_of(lambda count=count: add(count)) == 0
    # What it counts, it does see.
    assert compilations_of(lambda: jax.jit(lambda x: 3 * x)(np.float32(1))) == 1
