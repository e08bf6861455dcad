"""The four ways to find slots and places in a sum, against one plain reference, and so against each other, by bits.

What is compiled for a CPU is also read: its loops are native functions.
"""

import itertools
import re
from functools import partial

import jax
import numpy as np
import pytest

from helpers.matrices import is_entry
from helpers.samples import SHAPE, random_rows
from jax_sparse_grad import _cpu, _host, _keys, _union
from jax_sparse_grad._keys import NONE

WIDE = (2**31 - 1, 2**31 - 1, 2)  # keys of two words
NSE = 30  # fewer than some unions have, and more than others


def union(lists, shape):
    """The distinct entries of index rows in order, and the number of each row among them."""
    entries = sorted({tuple(row) for rows in lists for row in rows[is_entry(rows, shape)].tolist()})
    numbers = {entry: number for number, entry in enumerate(entries)}
    return entries, [[numbers.get(tuple(row), NONE) for row in rows.tolist()] for rows in lists]


def padded(entries, shape, nse):
    return np.array([*entries, *[shape] * nse][:nse], np.int64).reshape(nse, len(shape))


def places(total, lists, shape):
    """The place of each row in a sum, the first of equal ones; of padding only if the shape is not known."""
    first = {}
    for place, row in enumerate(total.tolist()):
        if shape is None or is_entry(np.array(row), shape):
            first.setdefault(tuple(row), place)
    return [[first.get(tuple(row), NONE) for row in rows.tolist()] for rows in lists]


def check_slots(found, expected):
    for got, each in zip(found, expected, strict=True):
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, each)


on_all_platforms = pytest.mark.parametrize("platform", ["host", "cpu", "gpu", "tpu"])


def compiled(methods, platform, static, columns, sizes):
    """The method of a platform for so many index rows: each test compiles its own, and gives it all its cases."""
    method = partial(getattr(methods, platform), static)
    rows = [jax.ShapeDtypeStruct((size, columns), np.uint32) for size in sizes]
    return method if platform == "host" else jax.jit(method).lower(*rows).compile()


def check_loops(program, others):
    """All loops of a program for a CPU are native functions, but for so many others."""
    native, found, computation = set(), [], None
    for line in program.as_text().splitlines():
        native.update(re.findall(r'to_apply=%?([\w.\-]+),.*xla_cpu_small_call="true"', line))
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            computation = head[1]
        if re.search(r' while\(.*op_name="[^"]*while"', line):
            found.append(computation)
    assert sum(each not in native for each in found) == others
    assert native.intersection(found)


@on_all_platforms
@pytest.mark.parametrize(
    ("shape", "canonical", "sizes"),
    [
        (SHAPE, False, (60, 60)),
        (WIDE, True, (7, 6)),
        (SHAPE, True, (0, 5)),
        (WIDE, False, (12, 30, 0, 9)),
        (SHAPE, True, (20, 9, 30, 8, 10)),  # too many for a merge
    ],
    ids=str,
)
def test_the_union(rng, platform, shape, canonical, sizes):
    """Of operands in any order, with duplicates and padding; or of canonical ones that are promised to be."""
    find = compiled(_union._find, platform, _union._Static(shape, NSE, canonical), len(shape), sizes)
    if canonical:
        draws = [[random_rows(rng, shape, n, ascending=True, unique=True) for n in sizes] for _ in range(3)]
        one_behind_the_other = random_rows(rng, shape, sum(sizes), ascending=True, unique=True)
        draws.append(np.split(one_behind_the_other, np.cumsum(sizes)[:-1]))
    else:
        draws = [
            [random_rows(rng, shape, n, ascending=each, unique=unique) for n, each in zip(sizes, orders, strict=True)]
            for unique, *orders in itertools.product([True, False], repeat=1 + len(sizes))
        ]
    for lists in draws:
        indices, nnz, *slots = find(*lists)
        entries, numbers = union(lists, shape)
        assert nnz == len(entries)
        np.testing.assert_array_equal(indices, padded(entries, shape, NSE))
        check_slots(slots, numbers)
    if platform == "cpu":  # each radix sort has a loop over its passes
        sorts = 0 if canonical and len(sizes) <= _cpu.MOST_MERGED else len(_keys.words_of(shape))
        check_loops(find, others=sorts)


def rows_that_just_fit_a_word_or_not(size, length):
    """Sums whose largest indices have keys of one word or not, and lists with indices beyond these."""
    for largest in (2**16 - 2, 2**16 - 1, 2**31 - 1, 2**32 - 1):
        sides = (largest, 2**16 - 1)
        total = np.array([[0, 0]] * (size - 3) + [[0, sides[1]], [1, 0], sides], np.uint32)
        rows = np.array([sides, (0, sides[1]), (0, sides[1] + 1), (sides[0], 0), (0, 0)], np.uint32)
        yield total, [np.resize(rows, (length, 2))]


SIZES = [(SHAPE, 25, (30, 9)), (None, 33, (30,)), (SHAPE, 0, (4, 0)), (None, 1, (4,))]


@on_all_platforms
@pytest.mark.parametrize(("shape", "size", "sizes"), SIZES, ids=str)
def test_places_in_a_sum(rng, platform, shape, size, sizes):
    lookup, draws = compiled(_union._lookup, platform, shape, 2, (size, *sizes)), []
    for ascending, unique in itertools.product([True, False], repeat=2):
        cells = shape or (300, 70_000)
        total = random_rows(rng, cells, size, ascending=True, unique=unique)
        draws.append((total, [random_rows(rng, cells, n, ascending=ascending, unique=unique) for n in sizes]))
    if shape is None and size > 1:
        draws += rows_that_just_fit_a_word_or_not(size, *sizes)
    for total, lists in draws:
        check_slots(lookup(total, *lists), places(total, lists, shape))
    if platform == "cpu" and size > 0:  # the rounds of each search
        check_loops(lookup, others=2)


def test_rows_of_many_columns_and_batches_have_native_loops_on_a_cpu(rng):
    check_loops(compiled(_union._lookup, "cpu", None, 4, (25, 30)), others=2)

    find = jax.vmap(lambda rows: _union.find_union(SHAPE, NSE, [rows]))
    rows = np.stack([random_rows(rng, SHAPE, 9, ascending=each, unique=each) for each in (True, False, False)])
    program = jax.jit(find).lower(rows).compile()
    jax.tree.map(np.testing.assert_array_equal, program(rows), find(rows))
    check_loops(program, others=1 + 1)  # over the batches, and a radix sort's


@pytest.mark.parametrize("shape", [SHAPE, WIDE, (2**31 - 1,) * 3, ()], ids=str)
@pytest.mark.parametrize("batch", [(3,), (2, 3), (0,), (1,), (2, 0)], ids=str)
def test_batches_by_numpy_have_unions_of_their_own(rng, shape, batch):
    """With an operand that all batches share; in as many slots as the largest union needs, or in fewer or more."""
    shared = random_rows(rng, shape, 8, ascending=False, unique=False).astype(np.int64)
    own = [random_rows(rng, shape, 20, ascending=False, unique=False) for _ in np.ndindex(batch)]
    rows = np.array(own, np.int64).reshape(*batch, 20, len(shape))
    unions = {k: union([rows[k], shared], shape) for k in np.ndindex(batch)}
    largest = max([len(entries) for entries, _ in unions.values()], default=0)
    for nse in (None, 0, 3, 60):
        indices, slots, nnz = _host.find_union([rows, shared[(None,) * len(batch)]], shape, nse)
        size = largest if nse is None else nse
        assert (nnz.shape, indices.shape) == (batch, (*batch, size, len(shape)))
        for k, (entries, numbers) in unions.items():
            assert nnz[k] == len(entries)
            np.testing.assert_array_equal(indices[k], padded(entries, shape, size))
            check_slots([each[k] for each in slots], numbers)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.uint64])
def test_indices_keep_their_dtype_and_negative_ones_are_padding(dtype):
    rows = np.array([[1, 2], [3, 0], [1, 2], [-1, 0]]).astype(dtype)
    indices, (slots,), nnz = _host.find_union([rows], (3, 4))
    assert indices.dtype == dtype
    assert (indices.tolist(), slots.tolist(), nnz) == ([[1, 2]], [0, NONE, 0, NONE], 1)


# The loops of XLA:CPU: their shortcuts.

LENGTH = 40_000
RUNS = np.split(np.arange(60_000), np.cumsum(np.random.default_rng(0).integers(100, 400, 230)))[:-1]
OVERLAPS = {
    "all shared": (np.arange(5000), np.arange(5000)),
    "from the last key of a block on": (np.arange(5000), np.arange(4991, 9000)),
    "in a gap": (np.r_[0:2000, 7000:9000], np.arange(2100, 6000)),
    "runs of any length in turn": (np.concatenate(RUNS[::2]), np.concatenate(RUNS[1::2])),
    "alternately": (np.arange(0, 9000, 3), np.arange(1, 9000, 2)),
    "repeated across blocks": (np.repeat(np.arange(800), 7), np.repeat(np.arange(300, 1500), 3)),
    "blocks that repeat one key": (np.r_[0:100, [100] * 40, 101:600], np.r_[200:300, [700] * 50]),
}


@jax.jit
def merge_and_look_up(a, b, table, queries):
    return _cpu.find_slots([(a,), (b,)], canonical=True), _cpu.lookup((table,), [(queries,)])


def with_padding(keys):
    return np.append(keys, [2**32 - 1] * (LENGTH - len(keys))).astype(np.uint32)


@pytest.mark.parametrize(("a", "b"), OVERLAPS.values(), ids=OVERLAPS)
def test_blocks_are_copied_and_skipped_without_a_trace(a, b):
    """In a merge of what is distinct, and in a walk of the second along what is distinct in the first."""
    table, others = np.unique(a), np.unique(b)
    found = merge_and_look_up(with_padding(table), with_padding(others), with_padding(table), with_padding(b))
    (slots, count), (places,) = jax.device_get(found)  # numpy slices without a compilation
    distinct = np.union1d(table, others)
    assert count == len(distinct)
    for keys, got in zip((table, others), slots, strict=True):
        np.testing.assert_array_equal(got[: len(keys)], np.searchsorted(distinct, keys))
        assert np.all(got[len(keys) :] == NONE)
    place = np.searchsorted(with_padding(table), with_padding(b))  # the first of equal ones, of padding too
    np.testing.assert_array_equal(places, np.where(with_padding(table)[place] == with_padding(b), place, NONE))


def test_sort_is_stable_and_of_the_unsorted_alone(rng):
    keys = [rng.choice([0, 1, 5, 2**11, 2**20, 2**31, 2**32 - 1], 300).astype(np.uint32) for _ in range(2)]
    expected = np.arange(300)
    for begin, end in [(0, 120), (250, 300)]:
        expected[begin:end] = begin + np.lexsort([word[begin:end] for word in reversed(keys)])
    unsorted = np.array([True, False, False, True])
    in_order, order = jax.jit(_cpu.sort_spans, static_argnums=1)(keys, (120, 120, 250, 300), unsorted)
    np.testing.assert_array_equal(order, expected)
    np.testing.assert_array_equal(in_order, [word[expected] for word in keys])
