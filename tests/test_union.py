"""The union as one primitive: numpy for what is concrete, loops when compiled, batches, all platforms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import PartitionSpec as P

from compilations import compilations_of
from jax_sparse_grad import _union
from meshes import mesh_of
from test_cpu import draw

SHAPE, NSE = (6, 7), 20


def find(*operands):
    return _union.find_union(SHAPE, NSE, operands)


def operands(rng, *sizes):
    return [jnp.asarray(draw(rng, SHAPE, size, ascending=False, unique=False).astype(np.int32)) for size in sizes]


def check_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


AXES = [((0, 0),), ((0, None),), ((0, None), (None, 0)), ((None, 0), (0, 0))]


@pytest.mark.parametrize("axes", AXES, ids=str)
@pytest.mark.parametrize("count", [0, 3])
def test_batches_by_numpy_and_by_loops(rng, axes, count):
    lists, function = operands(rng, 9, 5), find
    for level in axes:
        function = jax.vmap(function, level)
    for level in axes:
        lists = [
            rows if axis is None else jnp.stack([rows, rows[..., ::-1, :], rows])[:count]
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
        lists = [jax.device_put(draw(rng, SHAPE, n, ascending=False, unique=False)) for n in (size, 5)]
        total = find(*lists)
        _union.locate(None, total.indices, lists)

    several(10)
    assert compilations_of(lambda: several(11)) == 0


@pytest.mark.parametrize("shape", [SHAPE, None], ids=str)
def test_rows_are_located(rng, shape):
    total, lists = find(*operands(rng, 9, 5)).indices, operands(rng, 8, 3)

    def locate(total, *lists):
        return _union.locate(shape, total, lists)

    check_equal(locate(total, *lists), jax.jit(locate)(total, *lists))
    batched = jax.vmap(locate, (None, 0, None))
    stacked = jnp.stack([lists[0], lists[0][::-1]])
    check_equal(batched(total, stacked, lists[1]), jax.jit(batched)(total, stacked, lists[1]))


def test_one_program_serves_all_platforms(rng):
    lists = operands(rng, 9, 5)
    exported = export.export(jax.jit(find), platforms=("cpu", "cuda", "tpu"))(*lists)
    check_equal(jax.tree.leaves(exported.call(*lists)), jax.tree.leaves(find(*lists)))


def test_each_device_finds_the_union_of_its_own(rng):
    mesh = mesh_of((2,))
    lists = [np.concatenate([rows, rows[::-1]]) for rows in operands(rng, 9, 5)]

    def own(*lists):
        return jax.tree.map(lambda leaf: leaf[None], find(*lists))

    mapped = jax.jit(jax.shard_map(own, mesh=mesh, in_specs=P("rows"), out_specs=P("rows")))
    total = mapped(*lists)
    for k in range(2):
        half = [rows[len(rows) // 2 * k :][: len(rows) // 2] for rows in lists]
        check_equal(jax.tree.map(lambda leaf, k=k: leaf[k], total), find(*half))


def test_it_has_no_derivatives(rng):
    lists = operands(rng, 9, 5)
    gradient = jax.grad(lambda x: find(*lists).nnz * x)(2.0)
    assert gradient == find(*lists).nnz
