"""What concrete calls need: a way out of traces, and lengths for which functions are compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO, BCSR
from jax.sharding import PartitionSpec as P

import jax_sparse_grad as jsg
from compilations import compilations_of
from jax_sparse_grad import _eager
from meshes import devices, mesh_of
from samples import random_coo, to_dense, union_indices


def test_few_buckets_hold_all_sizes():
    sizes = np.unique(np.concatenate([np.arange(3000), np.geomspace(3000, 2**31 - 1, 5000).astype(int)]))
    lengths = [_eager.bucket(int(size)) for size in sizes]
    assert all(length >= size for length, size in zip(lengths, sizes, strict=True))
    assert all(length <= 1.5 * size + 1 for length, size in zip(lengths, sizes, strict=True) if size > 8192)
    assert lengths == sorted(lengths)
    assert len(set(lengths)) < 45


def test_operands_share_the_bucket_of_the_longest_unless_they_are_much_shorter():
    assert _eager.buckets([9000, 3000]) == [12288, 12288]
    assert _eager.buckets([10**6, 100]) == [2**20, 2048]


@pytest.mark.parametrize("size", [0, 2, 3, 5])
def test_resize_cuts_or_fills(size):
    array = jnp.array([[1, 2], [3, 4], [5, 6]])
    resized = _eager.resize(array, size, (7, 8))
    np.testing.assert_array_equal(resized, np.array([[1, 2], [3, 4], [5, 6], [7, 8], [7, 8]])[:size])


def test_arrays_on_another_device_stay_there():
    _, other = devices(2)
    assert _eager.resize(jax.device_put(jnp.arange(3), other), 5, 0).devices() == {other}


def test_away_from_a_cpu_numpy_resizes_until_a_length_has_come_often(monkeypatch):
    monkeypatch.setattr(_eager, "is_on_cpu", lambda arrays: False)
    monkeypatch.setattr(_eager, "_calls", {})
    resized = [_eager.resize(jnp.arange(3), 5, 0) for _ in range(_eager.REPEATED_ELSEWHERE + 2)]
    assert [isinstance(array, np.ndarray) for array in resized[-3:]] == [True, False, False]
    np.testing.assert_array_equal(np.stack(resized), [[0, 1, 2, 0, 0]] * len(resized))
    assert isinstance(_eager.resize(jnp.arange(3), 4, 0), np.ndarray)


def test_few_kinds_of_calls_are_remembered(monkeypatch):
    monkeypatch.setattr(_eager, "_calls", {})
    assert [_eager.comes_again(1, "sum", 5) for _ in range(3)] == [False, True, True]
    for length in range(2 * _eager.MOST_REMEMBERED):
        assert not _eager.comes_again(1, "sum", length, "long")
    assert len(_eager._calls) <= _eager.MOST_REMEMBERED + 1


def in_shard_map(function):
    return jax.shard_map(function, mesh=mesh_of((2,)), in_specs=P("rows"), out_specs=P("rows"))


TRACED = {
    "jit": jax.jit,
    "grad": lambda function: jax.grad(lambda x: function(x).sum()),
    "vmap": jax.vmap,
    "scan": lambda function: lambda x: jax.lax.scan(lambda _, x: (None, function(x)), None, x)[1],
    "jit without jit": lambda function: lambda x: _with_disabled_jit(jax.vmap(function), x),
    "shard_map": in_shard_map,
    "jit of shard_map": lambda function: jax.jit(in_shard_map(function)),
}


def _with_disabled_jit(function, x):
    with jax.disable_jit():
        return function(x)


@pytest.mark.parametrize("transform", TRACED.values(), ids=TRACED)
def test_concrete_calls_leave_every_trace_and_compile_as_a_whole(transform):
    numbers = np.arange(6, dtype=np.int32)
    calls = []

    def several(numbers):
        return jnp.cumsum(jnp.sort(numbers * 3 % 4)) + jnp.max(numbers)

    def function(x):
        compiled = jax.jit(several)
        count = compilations_of(lambda: calls.append(_eager.call_concretely(lambda: compiled(numbers))))
        calls.append(count)
        return x * 2

    transform(function)(jnp.arange(4.0))
    total, count = calls[:2]
    assert _eager.is_concrete(total)
    np.testing.assert_array_equal(total, np.cumsum(np.sort(numbers * 3 % 4)) + 5)
    assert count == 1


def test_concrete_calls_pass_errors_on():
    def fail():
        raise ValueError("as it is")

    with pytest.raises(ValueError, match="as it is"):
        jax.jit(lambda: _eager.call_concretely(fail))()


def draw(rng, shape, count):
    return random_coo(rng, shape, count), random_coo(rng, shape, count + 7)


def add_tensors(rng, shape, count):
    (a, x), (b, y) = draw(rng, shape, count)
    b, y = b[::-1].copy(), y[::-1].copy()
    total = jsg.sparse_add(a, x, shape, b, y, shape)
    jsg.sparse_add_grad(total.sum_values, a, b, total.sum_indices)
    jsg.sparse_add_grad(total.sum_values, a, b, total.sum_indices, shape=shape)
    expected = to_dense(a, x, shape) + to_dense(b, y, shape)
    np.testing.assert_array_equal(to_dense(total.sum_indices, total.sum_values, shape), expected)


def add_matrices(rng, shape, count):
    def matrices(rows, values):
        starts = np.searchsorted(rows[:, 0], np.arange(shape[0] + 1)).astype(np.int32)
        arrays = values, rows, rows[:, 1].copy(), starts
        values, rows, columns, starts = jax.device_put(arrays)  # `jnp.asarray` would compile
        return BCOO((values, rows), shape=shape), BCSR((values, columns, starts), shape=shape)

    (a, x), (b, y) = draw(rng, shape, count)
    expected = to_dense(a, x, shape) + to_dense(b, y, shape)
    for first, second in zip(matrices(a, x), matrices(b, y), strict=True):
        plan = jsg.plan_sparse_add(first, second)
        for total in (jsg.add(first, second), plan.with_data(x, y)):
            assert np.asarray(total.data).sum() == expected.sum()
            assert total.nse == len(union_indices(a, b, shape=shape))
        many = jsg.add_n([first, second] * 7)
        assert np.asarray(many.data).sum() == 7 * expected.sum()


def pull_back(rng, shape, count):
    (a, x), (b, y) = draw(rng, shape, count)
    x, y = jax.device_put((x, y))
    size = len(union_indices(a, b, shape=shape))
    cotangent = jax.device_put(np.ones(size, np.float32))
    plan = jsg.plan_sparse_add(a, b, shape=shape)
    for add in (lambda x, y: jsg.sparse_add(a, x, shape, b, y, shape).sum_values, plan):
        _, pull = jax.vjp(add, x, y)
        gradients = pull(cotangent)
        np.testing.assert_array_equal(gradients[0], np.ones_like(x))
        np.testing.assert_array_equal(gradients[1], np.ones_like(y))
        jax.vjp(lambda x, add=add: add(x, y), x)[1](cotangent)
    limited, pull = jax.vjp(lambda x, y: jsg.sparse_add(a, x, shape, b, y, shape, 3.0).sum_values, x, y)
    pull(jax.device_put(np.ones(limited.shape, np.float32)))


@pytest.mark.slow(but="sorted-add_tensors")
@pytest.mark.usefixtures("method")
@pytest.mark.parametrize("call", [add_tensors, add_matrices, pull_back])
def test_eager_calls_of_new_sizes_and_shapes_compile_nothing(rng, call):
    call(rng, (40, 50), 100)
    call(rng, (70, 80), 100)
    for shape, count in (((40, 50), 101), ((71, 33), 120), ((48, 47), 140)):
        assert compilations_of(lambda shape=shape, count=count: call(rng, shape, count)) == 0


def test_dense_sums_of_new_sizes_compile_nothing(rng):
    dense = np.ones((40, 50), np.float32)

    def add(count):
        a, x = random_coo(rng, (40, 50), count)
        np.testing.assert_array_equal(
            jsg.add(BCOO(jax.device_put((x, a)), shape=(40, 50)), dense), to_dense(a, x, (40, 50)) + 1
        )

    add(100)
    for count in (101, 250, 555):
        assert compilations_of(lambda count=count: add(count)) == 0
    # What it counts, it does see.
    assert compilations_of(lambda: jax.jit(lambda x: 3 * x)(np.float32(1))) == 1
