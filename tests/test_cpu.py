"""The loops of XLA:CPU: their shortcuts, and that each is compiled into one native function."""

import re
from functools import partial

import jax
import numpy as np
import pytest

from jax_sparse_grad import _cpu, _keys
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
find_slots, find_places = jax.jit(_cpu.find_slots), jax.jit(_cpu.locate)


def padded(keys):
    return np.append(keys, [2**32 - 1] * (LENGTH - len(keys))).astype(np.uint32)


@pytest.mark.parametrize(("a", "b"), OVERLAPS.values(), ids=OVERLAPS)
def test_blocks_are_copied_without_a_trace(a, b):
    slots, count = find_slots([(padded(each),) for each in (a, b)])
    distinct, numbers = np.unique(np.concatenate([a, b]), return_inverse=True)
    assert count == len(distinct)
    np.testing.assert_array_equal(slots[0][: len(a)], numbers[: len(a)])
    np.testing.assert_array_equal(slots[1][: len(b)], numbers[len(a) :])


@pytest.mark.parametrize(("a", "b"), OVERLAPS.values(), ids=OVERLAPS)
def test_blocks_of_places_are_copied_and_skipped_without_a_trace(a, b):
    table, lists = padded(np.unique(a)), [padded(each) for each in (a, b)]
    for keys, places in zip(lists, find_places((table,), [(keys,) for keys in lists]), strict=True):
        place = np.searchsorted(table, keys)  # the first of equal ones, of padding too
        np.testing.assert_array_equal(places, np.where(table[place] == keys, place, NONE))


@pytest.mark.parametrize("words", [1, 2])
def test_sort_is_stable_and_of_the_unsorted_alone(rng, words):
    keys = [rng.choice([0, 1, 5, 2**11, 2**20, 2**31, 2**32 - 1], 300).astype(np.uint32) for _ in range(words)]
    expected = np.arange(300)
    for begin, end in [(0, 120), (250, 300)]:
        expected[begin:end] = begin + np.lexsort([word[begin:end] for word in reversed(keys)])
    unsorted = np.array([True, False, False, True])
    in_order, order = jax.jit(_cpu.sort_spans, static_argnums=1)(keys, (120, 120, 250, 300), unsorted)
    np.testing.assert_array_equal(order, expected)
    np.testing.assert_array_equal(in_order, [word[expected] for word in keys])


def loops(text):
    """The loops of a compiled program: those that are native functions, and all."""
    native = set(re.findall(r'to_apply=%?([\w.\-]+),.*xla_cpu_small_call="true"', text))
    computation, found = None, []
    for line in text.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        computation = head[1] if head else computation
        if re.search(r' while\(.*op_name="[^"]*while"', line):
            found.append(computation)
    return native & set(found), found


@partial(jax.jit, static_argnums=0)
def find(shape, *lists):
    return _cpu.find_slots([_keys.ravel(rows, shape) for rows in lists])


@partial(jax.jit, static_argnums=0)
def locate(shape, *lists):
    total, *others = (_keys.ravel(each, shape) for each in lists)
    return _cpu.locate(total, others)


@pytest.mark.parametrize(("shape", "count"), [((40, 50), 2), ((2**31 - 1,) * 2, 2), ((2**31 - 1,) * 2, 4)], ids=str)
def test_each_loop_is_one_native_function(shape, count):
    rows, words = jax.ShapeDtypeStruct((100, 2), np.int32), len(_keys.words_of(shape))
    native, found = loops(find.lower(shape, *[rows] * count).compile().as_text())
    assert len(found) - len(native) == words, "the loop over passes of the radix sort of each word, and no other"
    assert len(native) > 10
    if count == 2:
        native, found = loops(locate.lower(shape, *[rows] * 3).compile().as_text())
        assert len(found) - len(native) == 2, "the rounds of a search of each list, and no other"
        assert len(native) >= 4


@pytest.mark.parametrize("columns", [2, 4])
def test_each_loop_for_rows_of_any_shape_is_one_native_function(columns):
    rows = jax.ShapeDtypeStruct((100, columns), np.int32)
    lowered = jax.jit(lambda total, *lists: _cpu.locate_rows(total, lists)).lower(*[rows] * 3)
    native, found = loops(lowered.compile().as_text())
    assert len(found) - len(native) == 4, "the rounds of a search of each list, by packed keys and by columns"
    assert len(native) >= 8
