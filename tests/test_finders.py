"""Slots for GPUs and TPUs, run on the CPU, held against the CPU's loops bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_sparse_grad import _cpu, _gpu, _keys, _tpu
from test_cpu import SHAPES, draw, reference

FINDERS = {"gpu": _gpu, "tpu": _tpu}
NSE = 60


@pytest.mark.parametrize("platform", FINDERS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_platforms_find_the_same_union(rng, platform, shape):
    @jax.jit
    def find(*lists):
        heads, slots, count = FINDERS[platform].find_union([_keys.ravel(rows, shape) for rows in lists], NSE)
        return _keys.unravel(heads, shape, np.uint32), slots, count

    for ascending in [(True, True), (False, True), (True,)]:
        for unique in (True, False):
            lists = [draw(rng, shape, 50, ascending=each, unique=unique) for each in ascending]
            expected, distinct = reference(lists, shape)
            indices, slots, count = find(*lists)
            assert count == len(distinct)
            for got, want in zip(slots, expected, strict=True):
                np.testing.assert_array_equal(got, want)
            stored = distinct[:NSE]
            np.testing.assert_array_equal(indices[: len(stored)], stored)
            np.testing.assert_array_equal(indices[len(stored) :], np.tile(np.uint32(shape), (NSE - len(stored), 1)))


@pytest.mark.parametrize("platform", FINDERS)
@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (0, 0), (0,), (1, 1)], ids=str)
def test_operands_may_be_empty(rng, platform, sizes):
    lists = [_keys.ravel(jnp.asarray(draw(rng, (6, 7), size, ascending=True, unique=False)), (6, 7)) for size in sizes]
    _, slots, count = FINDERS[platform].find_union(lists, 8)
    expected, number = _cpu.find_slots(lists)
    assert count == number
    jax.tree.map(np.testing.assert_array_equal, slots, expected)


@pytest.mark.parametrize("platform", FINDERS)
@pytest.mark.parametrize("sizes", [(30, 60), (0, 9), (9, 0)], ids=str)
def test_all_platforms_locate_alike(rng, platform, sizes):
    total = np.unique(draw(rng, (6, 7), sizes[0], ascending=True, unique=False), axis=0)
    rows = [draw(rng, (6, 7), sizes[1], ascending=each, unique=False) for each in (True, False)]
    rows = [each[np.all(each < (6, 7), axis=1)] for each in rows]
    keys, *lists = (_keys.ravel(jnp.asarray(each), (6, 7)) for each in (total, *rows))
    jax.tree.map(np.testing.assert_array_equal, FINDERS[platform].locate(keys, lists), _cpu.locate(keys, lists))
