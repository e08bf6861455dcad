"""The loops of XLA:CPU: their shortcuts. `test_slots.py` holds that each is compiled into one native function."""

import jax
import numpy as np
import pytest

from jax_sparse_grad import _cpu
from jax_sparse_grad._keys import NONE

LENGTH = 40_000
RUNS = np.split(np.arange(60_000), np.cumsum(np.random.default_rng(0).integers(100, 400, 230)))[:-1]
OVERLAPS = {
    "all shared": (np.arange(5000), np.arange(5000)),
    "one behind the other": (np.arange(5000), np.arange(4990, 9000)),
    "in a gap": (np.r_[0:2000, 7000:9000], np.arange(2100, 6000)),
    "runs of any length in turn": (np.concatenate(RUNS[::2]), np.concatenate(RUNS[1::2])),
    "alternately": (np.arange(0, 9000, 3), np.arange(1, 9000, 2)),
    "repeated across blocks": (np.repeat(np.arange(800), 7), np.repeat(np.arange(300, 1500), 3)),
    "blocks that repeat one key": (np.r_[0:100, [100] * 40, 101:600], np.r_[200:300, [700] * 50]),
}


@jax.jit
def merge_and_locate(a, b, table, queries):
    return _cpu.find_slots([(a,), (b,)], canonical=True), _cpu.locate((table,), [(queries,)])


def padded(keys):
    return np.append(keys, [2**32 - 1] * (LENGTH - len(keys))).astype(np.uint32)


@pytest.mark.parametrize(("a", "b"), OVERLAPS.values(), ids=OVERLAPS)
def test_blocks_are_copied_and_skipped_without_a_trace(a, b):
    """In a merge of what is distinct, and in a walk of the second along what is distinct in the first."""
    table, others = np.unique(a), np.unique(b)
    found = merge_and_locate(padded(table), padded(others), padded(table), padded(b))
    (slots, count), (places,) = jax.device_get(found)  # numpy slices without a compilation
    distinct = np.union1d(table, others)
    assert count == len(distinct)
    for keys, got in zip((table, others), slots, strict=True):
        np.testing.assert_array_equal(got[: len(keys)], np.searchsorted(distinct, keys))
        assert np.all(got[len(keys) :] == NONE)
    place = np.searchsorted(padded(table), padded(b))  # the first of equal ones, of padding too
    np.testing.assert_array_equal(places, np.where(padded(table)[place] == padded(b), place, NONE))


def test_sort_is_stable_and_of_the_unsorted_alone(rng):
    keys = [rng.choice([0, 1, 5, 2**11, 2**20, 2**31, 2**32 - 1], 300).astype(np.uint32) for _ in range(2)]
    expected = np.arange(300)
    for begin, end in [(0, 120), (250, 300)]:
        expected[begin:end] = begin + np.lexsort([word[begin:end] for word in reversed(keys)])
    unsorted = np.array([True, False, False, True])
    in_order, order = jax.jit(_cpu.sort_spans, static_argnums=1)(keys, (120, 120, 250, 300), unsorted)
    np.testing.assert_array_equal(order, expected)
    np.testing.assert_array_equal(in_order, [word[expected] for word in keys])
