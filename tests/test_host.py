"""Slots in numpy, held against a reference that looks at one batch after the other."""

import numpy as np
import pytest

from jax_sparse_grad import _host
from jax_sparse_grad._keys import NONE
from test_cpu import SHAPES, draw, reference


def check(lists, shape, nse=None):
    batch = np.broadcast_shapes(*(rows.shape[:-2] for rows in lists))
    lists = [np.broadcast_to(rows, (*batch, *rows.shape[-2:])) for rows in lists]
    indices, slots, nnz = _host.find_union(lists, shape, nse)
    each = [reference([rows[k] for rows in lists], shape) for k in np.ndindex(batch)]
    assert nnz.shape == batch
    assert nnz.ravel().tolist() == [len(distinct) for _, distinct in each]
    assert indices.shape == (*batch, max([*nnz.ravel(), 0]) if nse is None else nse, len(shape))
    for k, (expected, distinct) in zip(np.ndindex(batch), each, strict=True):
        for got, want in zip(slots, expected, strict=True):
            np.testing.assert_array_equal(got[k], want)
        padding = np.tile(np.array(shape, int), (max(indices.shape[-2] - len(distinct), 0), 1))
        np.testing.assert_array_equal(indices[k], np.concatenate([distinct, padding])[: indices.shape[-2]])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sizes", [(50, 40), (50,), (0, 7), (0,), (9, 8, 7)], ids=str)
def test_slots_and_indices_are_those_of_the_union(rng, shape, sizes):
    for ascending in (True, False):
        check([draw(rng, shape, size, ascending=ascending, unique=False) for size in sizes], shape)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("batch", [(3,), (2, 3), (0,), (1,), (2, 0)], ids=str)
def test_batches_have_unions_of_their_own(rng, shape, batch):
    size = int(np.prod(batch))
    rows = draw(rng, shape, 20 * size, ascending=False, unique=False).reshape(*batch, 20, len(shape))
    shared = draw(rng, shape, 8, ascending=False, unique=False).reshape(*(1,) * len(batch), 8, len(shape))
    check([rows, shared], shape)


@pytest.mark.parametrize("nse", [0, 3, 60])
def test_a_given_number_of_slots_cuts_or_pads(rng, nse):
    check([draw(rng, (6, 7), 30, ascending=False, unique=False).reshape(2, 15, 2)], (6, 7), nse)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.uint64])
def test_indices_keep_their_dtype_and_negative_ones_are_padding(dtype):
    rows = np.array([[1, 2], [3, 0], [1, 2], [-1, 0]]).astype(dtype)
    indices, (slots,), nnz = _host.find_union([rows], (3, 4))
    assert indices.dtype == dtype
    assert (indices.tolist(), slots.tolist(), nnz) == ([[1, 2]], [0, NONE, 0, NONE], 1)


@pytest.mark.parametrize("with_shape", [True, False])
def test_locate_finds_the_first_of_equal_rows_or_says_that_there_is_none(rng, with_shape):
    total = np.array([[0, 1], [0, 1], [2, 2], [5, 0], [6, 7]])
    rows = np.array([[5, 0], [0, 1], [0, 0], [6, 7], [2, 2], [9, 9]])
    places, none = _host.locate(total, [rows, rows[:0]], (6, 7) if with_shape else None)
    assert places.tolist() == [3, 0, NONE, NONE if with_shape else 4, 2, NONE]
    assert none.shape == (0,)
