"""Slots by plain loops, held against numpy, and that XLA:CPU makes native functions of them."""

import itertools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_sparse_grad import _cpu, _keys
from jax_sparse_grad._keys import NONE

SHAPES = [(6, 7), (40_000, 40_000), (2**31 - 1, 2**31 - 1, 2), (2**32 - 1,), (1, 5), ()]


def draw(rng, shape, size, *, ascending, unique):
    """Index rows of a few cells spread over the shape, some of them padding."""
    columns = [np.minimum(rng.integers(0, 9, size) * max(each // 8, 1), each) for each in shape]
    rows = np.stack(columns, axis=1) if shape else np.zeros((size, 0))
    rows = rows.astype(np.uint32)
    if unique:
        rows = np.unique(rows, axis=0) if shape else rows[:1]
        rows = np.concatenate([rows, np.tile(np.array(shape, np.uint32), (size - len(rows), 1))])
    inside = np.all(rows < np.array(shape, np.int64), axis=1)
    rows[~inside] = shape
    if ascending:
        rows = rows[np.lexsort([*rows.T[::-1], np.all(rows == shape, axis=1)])] if shape else rows
    return rows


def reference(lists, shape):
    """The slots of rows among the distinct entries of all lists, by numpy."""
    rows = np.concatenate(lists)
    inside = np.all(rows < np.array(shape, np.int64), axis=1)
    distinct, numbers = np.unique(rows[inside], axis=0, return_inverse=True)
    if not shape:
        distinct, numbers = distinct[:1], np.zeros(len(rows), int)
    slots = np.full(len(rows), NONE)
    slots[inside] = numbers.ravel()
    return np.split(slots, np.cumsum([len(each) for each in lists])[:-1]), distinct


@partial(jax.jit, static_argnums=0)
def find(shape, *lists):
    return _cpu.find_slots([_keys.ravel(rows, shape) for rows in lists])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_slots_are_the_numbers_of_the_distinct_entries(rng, shape):
    orders = [(True, True), (False, True), (False, False), (True,), (False,), (True, True, True), (False, True, True)]
    for ascending, unique in itertools.product(orders, [True, False]):
        lists = [draw(rng, shape, 50, ascending=each, unique=unique) for each in ascending]
        expected, distinct = reference(lists, shape)
        slots, count = find(shape, *lists)
        assert count == len(distinct)
        for got, want in zip(slots, expected, strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("sizes", [(0, 5), (5, 0), (0, 0), (1, 1), (0,)])
def test_operands_may_be_empty_or_single(rng, sizes):
    lists = [draw(rng, (6, 7), size, ascending=False, unique=False) for size in sizes]
    expected, distinct = reference(lists, (6, 7))
    slots, count = _cpu.find_slots([_keys.ravel(jnp.asarray(rows), (6, 7)) for rows in lists])
    assert count == len(distinct)
    for got, want in zip(slots, expected, strict=True):
        np.testing.assert_array_equal(got, want)


OVERLAPS = {
    "all shared": (np.arange(5000), np.arange(5000)),
    "one behind the other": (np.arange(5000), np.arange(4990, 9000)),
    "in a gap": (np.r_[0:2000, 7000:9000], np.arange(2100, 6000)),
    "repeated across blocks": (np.repeat(np.arange(900), 7), np.repeat(np.arange(300, 1500), 3)),
    "blocks that repeat one key": (np.r_[0:100, [100] * 40, 101:600], np.r_[200:300, [700] * 50]),
}


@pytest.mark.parametrize(("a", "b"), OVERLAPS.values(), ids=OVERLAPS)
def test_blocks_are_copied_without_a_trace(a, b):
    slots, count = jax.jit(_cpu.find_slots)([(jnp.asarray(each, np.uint32),) for each in (a, b)])
    distinct, numbers = np.unique(np.concatenate([a, b]), return_inverse=True)
    assert count == len(distinct)
    np.testing.assert_array_equal(np.concatenate(slots), numbers)


@pytest.mark.parametrize("words", [1, 2])
def test_sort_is_stable_and_of_the_unsorted_alone(rng, words):
    keys = [rng.choice([0, 1, 5, 2**11, 2**31, 2**32 - 1], 300).astype(np.uint32) for _ in range(words)]
    expected = np.arange(300)
    for begin, end in [(0, 120), (250, 300)]:
        expected[begin:end] = begin + np.lexsort([word[begin:end] for word in reversed(keys)])
    unsorted = np.array([True, False, False, True])
    in_order, order = jax.jit(_cpu.sort_spans, static_argnums=1)(keys, (120, 120, 250, 300), unsorted)
    np.testing.assert_array_equal(order, expected)
    np.testing.assert_array_equal(in_order, [word[expected] for word in keys])


@pytest.mark.parametrize("ascending", [True, False])
def test_locate_finds_each_row_or_says_that_it_is_not_there(rng, ascending):
    shape = (6, 7)
    total = np.unique(draw(rng, shape, 30, ascending=True, unique=True), axis=0)
    lists = [draw(rng, shape, size, ascending=ascending, unique=ascending) for size in (60, 20)]
    lists = [rows[np.all(rows < shape, axis=1)] for rows in lists]
    table, *keys = (_keys.ravel(jnp.asarray(rows), shape) for rows in (total, *lists))
    for rows, places in zip(lists, jax.jit(_cpu.locate)(table, keys), strict=True):
        for row, place in zip(rows, places, strict=True):
            (found,) = np.nonzero(np.all(total == row, axis=1))
            assert place == (found[0] if len(found) else NONE)


def test_locate_finds_the_first_of_equal_keys():
    total, a, b = (jnp.array(keys, np.uint32) for keys in ([1, 3, 3, 7], [0, 3, 5], [3, 7, 9]))
    for lists in ([(a,), (b,)], [(a[::-1],), (b,)]):
        places = jax.jit(_cpu.locate)((total,), lists)
        assert [each.tolist() for each in places] in ([[NONE, 1, NONE], [1, 3, NONE]],)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_keys_keep_rows_and_their_order(rng, shape):
    rows = draw(rng, shape, 60, ascending=True, unique=False)
    keys = _keys.ravel(jnp.asarray(rows), shape)
    np.testing.assert_array_equal(_keys.unravel(keys, shape, np.uint32), rows)
    before, after = ([word[part] for word in keys] for part in (slice(None, -1), slice(1, None)))
    assert not np.any(_keys.is_less(after, before))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", [2**32 - 1, 2**32, 2**32 + 1, 2**63 - 1])
def test_64_bit_indices_have_words_of_32_bits(size):
    rows = np.array([[0, 1], [size // 2, 0], [size - 1, 1], [size, 2]])
    keys = _keys.ravel(jnp.asarray(rows), (size, 2))
    assert {word.dtype for word in keys} == {np.dtype(np.uint32)}
    np.testing.assert_array_equal(_keys.is_padding(keys), [False, False, False, True])
    np.testing.assert_array_equal(_keys.unravel(keys, (size, 2), np.int64), rows)
    assert np.all(_keys.is_less([word[:-1] for word in keys], [word[1:] for word in keys]))


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


@pytest.mark.parametrize(("shape", "count"), [((40, 50), 2), ((2**31 - 1,) * 2, 2), ((2**31 - 1,) * 2, 4)], ids=str)
def test_each_loop_is_one_native_function(shape, count):
    rows = jax.ShapeDtypeStruct((100, 2), np.int32)
    words = len(_keys.words_of(shape))

    def locate(*lists):
        total, *others = (_keys.ravel(each, shape) for each in lists)
        return _cpu.locate(total, others)

    native, found = loops(find.lower(shape, *[rows] * count).compile().as_text())
    assert len(found) - len(native) == words, "the loop over passes of the radix sort of each word, and no other"
    assert len(native) > 10
    native, found = loops(jax.jit(locate).lower(*[rows] * 3).compile().as_text())
    assert len(found) - len(native) == 2, "the rounds of a search of each list, and no other"
    assert len(native) >= 4
