"""The union as a primitive: numpy for what is concrete, loops when compiled, batches, all platforms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import PartitionSpec as P

from helpers.compilations import compilations_of
from helpers.meshes import mesh_of
from helpers.samples import SHAPE, random_rows
from jax_sparse_grad import _union

NSE = 20


def find(*operands):
    return _union.find_union(SHAPE, NSE, operands)


def operands(rng, *sizes):
    return [jax.device_put(random_rows(rng, SHAPE, n, ascending=False, unique=False).astype(np.int32)) for n in sizes]


def check_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


AXES = [((0, None),), ((0, None), (None, 0)), ((None, 0), (0, 0))]


@pytest.mark.parametrize(("axes", "count"), [*((axes, 3) for axes in AXES), (AXES[-1], 0)], ids=str)
def test_batches_by_numpy_and_by_loops(rng, axes, count):
    lists, function = operands(rng, 9, 5), find
    for level in axes:
        function = jax.vmap(function, level)
        lists = [
            rows if axis is None else jnp.stack([rows, rows[..., ::-1, :], rows[..., ::-1] % 6])[:count]
            for rows, axis in zip(lists, level, strict=True)
        ]
    eager, compiled = function(*lists), jax.jit(function)(*lists)
    check_equal(eager, compiled)
    assert eager.nnz.shape == (count,) * len(axes)
    for k in itertools.product(range(count), repeat=len(axes)):
        own = [
            rows[tuple(i for i, level in zip(k, axes[::-1], strict=True) if level[n] == 0)]
            for n, rows in enumerate(lists)
        ]
        check_equal(jax.tree.map(lambda leaf, k=k: leaf[k], eager), find(*own))


def test_concrete_operands_compile_nothing(rng):
    def several(size):
        lists = operands(rng, size, 5)
        _union.locate(None, find(*lists).indices, lists)

    several(10)
    assert compilations_of(lambda: several(11)) == 0


@pytest.mark.parametrize("shape", [SHAPE, None], ids=str)
def test_batches_are_located(rng, shape):
    total, lists = find(*operands(rng, 9, 5)).indices, operands(rng, 8, 3)
    batched = jax.vmap(lambda total, *lists: _union.locate(shape, total, lists), (None, 0, None))
    stacked = jnp.stack([lists[0], lists[0][::-1]])
    found = batched(total, stacked, lists[1])
    check_equal(found, jax.jit(batched)(total, stacked, lists[1]))
    for k in range(2):
        check_equal([each[k] for each in found], list(_union.locate(shape, total, [stacked[k], lists[1]])))


def test_one_program_serves_all_platforms(rng):
    lists = operands(rng, 9, 5)
    exported = export.export(jax.jit(find), platforms=("cpu", "cuda", "tpu"))(*lists)
    check_equal(jax.tree.leaves(exported.call(*lists)), jax.tree.leaves(find(*lists)))


def test_each_device_finds_the_union_of_its_own(rng):
    lists = [np.concatenate([rows, rows[::-1]]) for rows in operands(rng, 9, 5)]

    def own(*lists):
        return jax.tree.map(lambda leaf: leaf[None], find(*lists))

    total = jax.jit(jax.shard_map(own, mesh=mesh_of((2,)), in_specs=P("rows"), out_specs=P("rows")))(*lists)
    for k in range(2):
        half = [np.split(rows, 2)[k] for rows in lists]
        check_equal(jax.tree.map(lambda leaf, k=k: leaf[k], total), find(*half))


def test_it_has_no_derivatives(rng):
    lists = operands(rng, 9, 5)
    assert jax.grad(lambda x: find(*lists).nnz * x)(2.0) == find(*lists).nnz
