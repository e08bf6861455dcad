"""The four ways to find slots and places in a sum, against one plain reference, and so against each other, by bits."""

import itertools

import jax
import numpy as np
import pytest

from helpers.matrices import is_entry
from helpers.samples import SHAPE, random_rows
from jax_sparse_grad import _host, _union
from jax_sparse_grad._keys import NONE

SHAPES = [SHAPE, (2**31 - 1, 2**31 - 1, 2), ()]  # keys of one and of two words; of no digits
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


@pytest.fixture(scope="module", params=["host", "cpu", "gpu", "tpu"])
def platform(request):
    return request.param


@pytest.fixture(scope="module")
def find(platform):
    """`find(shape, canonical, *lists)`: indices, number, slots. What is compiled once serves all tests."""
    method = getattr(_union._find, platform)
    run = lambda shape, canonical, *lists: method(_union._Sum(shape, NSE, canonical), *lists)  # noqa: E731
    return run if platform == "host" else jax.jit(run, static_argnums=(0, 1))


@pytest.fixture(scope="module")
def locate(platform):
    method = getattr(_union._locate, platform)
    return method if platform == "host" else jax.jit(method, static_argnums=0)


def check(found, lists, shape):
    indices, nnz, *slots = found
    entries, numbers = union(lists, shape)
    assert nnz == len(entries)
    np.testing.assert_array_equal(indices, padded(entries, shape, NSE))
    for got, expected in zip(slots, numbers, strict=True):
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_union_of_two_operands_in_any_order(rng, find, shape):
    for *orders, unique, _ in itertools.product([True, False], repeat=4):
        lists = [random_rows(rng, shape, 60, ascending=each, unique=unique) for each in orders]
        check(find(shape, False, *lists), lists, shape)


@pytest.mark.parametrize("sizes", [(60, 60), (12,), (30, 9, 8), (20, 9, 30, 8, 10)], ids=str)
def test_the_union_of_operands_that_are_said_to_be_canonical(rng, find, sizes):
    for _ in range(3):
        lists = [random_rows(rng, SHAPE, size, ascending=True, unique=True) for size in sizes]
        check(find(SHAPE, True, *lists), lists, SHAPE)


@pytest.mark.parametrize("sizes", [(30,), (12, 30, 9), (9, 8, 7, 9, 6), (0, 5)], ids=str)
def test_the_union_of_any_number_and_size_of_operands(rng, find, sizes):
    for ascending, unique in itertools.product([True, False], repeat=2):
        lists = [random_rows(rng, SHAPE, size, ascending=ascending, unique=unique) for size in sizes]
        check(find(SHAPE, False, *lists), lists, SHAPE)
    if len(sizes) == 3:  # of which one is out of order
        lists[1] = random_rows(rng, SHAPE, sizes[1], ascending=True, unique=True)
        check(find(SHAPE, False, *lists), lists, SHAPE)


@pytest.mark.parametrize("shape", [SHAPE, None], ids=str)
def test_places_in_a_sum(rng, locate, shape):
    cells = shape or (300, 70_000)
    for ascending, unique in itertools.product([True, False], repeat=2):
        total = random_rows(rng, cells, 25, ascending=True, unique=unique)
        lists = [random_rows(rng, cells, size, ascending=ascending, unique=unique) for size in (30, 9)]
        for got, expected in zip(locate(shape, total, *lists), places(total, lists, shape), strict=True):
            assert got.dtype == np.int32
            np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    ("shape", "sizes"), [(SHAPE, (0, 9, 4)), (SHAPE, (9, 0, 1)), (None, (0, 9, 4)), (None, (1, 4, 0))], ids=str
)
def test_places_of_none_and_of_single_rows(rng, locate, shape, sizes):
    total, *lists = (random_rows(rng, SHAPE, size, ascending=True, unique=True) for size in sizes)
    for got, expected in zip(locate(shape, total, *lists), places(total, lists, shape), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("largest", [2**16 - 2, 2**16 - 1, 2**31 - 1, 2**32 - 1])
def test_places_where_all_columns_of_the_sum_just_fit_a_word_and_where_not(locate, largest):
    """Without a shape, indices beyond those of the sum must not be taken for others."""
    sides = (largest, 2**16 - 1)
    total = np.array([[0, 0], [0, sides[1]], [1, 0], [sides[0], 0], sides], np.uint32)
    lists = [np.array([sides, (0, sides[1]), (0, sides[1] + 1), (0, 0)], np.uint32), total[::-1]]
    for got, expected in zip(locate(None, total, *lists), places(total, lists, None), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("shape", [*SHAPES, (2**31 - 1,) * 3], ids=str)
@pytest.mark.parametrize("batch", [(3,), (2, 3), (0,), (1,), (2, 0)], ids=str)
def test_batches_by_numpy_have_unions_of_their_own(rng, shape, batch):
    """With an operand that all batches share, and as many slots as the largest of their unions needs."""
    shared = random_rows(rng, shape, 8, ascending=False, unique=False).astype(np.int64)
    own = [random_rows(rng, shape, 20, ascending=False, unique=False) for _ in np.ndindex(batch)]
    rows = np.array(own, np.int64).reshape(*batch, 20, len(shape))
    indices, slots, nnz = _host.find_union([rows, shared[(None,) * len(batch)]], shape)
    unions = {k: union([rows[k], shared], shape) for k in np.ndindex(batch)}
    nse = max([len(entries) for entries, _ in unions.values()], default=0)
    assert (nnz.shape, indices.shape) == (batch, (*batch, nse, len(shape)))
    for k, (entries, numbers) in unions.items():
        assert nnz[k] == len(entries)
        np.testing.assert_array_equal(indices[k], padded(entries, shape, nse))
        for got, expected in zip(slots, numbers, strict=True):
            np.testing.assert_array_equal(got[k], expected)


@pytest.mark.parametrize("nse", [0, 3, 60])
def test_a_given_number_of_slots_cuts_or_pads_all_batches(rng, nse):
    rows = random_rows(rng, SHAPE, 30, ascending=False, unique=False).reshape(2, 15, 2)
    indices, _, nnz = _host.find_union([rows], SHAPE, nse)
    for k in range(2):
        entries, _ = union([rows[k]], SHAPE)
        assert nnz[k] == len(entries)
        np.testing.assert_array_equal(indices[k], padded(entries, SHAPE, nse))


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.uint64])
def test_indices_keep_their_dtype_and_negative_ones_are_padding(dtype):
    rows = np.array([[1, 2], [3, 0], [1, 2], [-1, 0]]).astype(dtype)
    indices, (slots,), nnz = _host.find_union([rows], (3, 4))
    assert indices.dtype == dtype
    assert (indices.tolist(), slots.tolist(), nnz) == ([[1, 2]], [0, NONE, 0, NONE], 1)
