"""Index rows and the words of their keys."""

import jax
import numpy as np
import pytest

from helpers.matrices import is_entry
from helpers.samples import random_rows
from jax_sparse_grad import _keys

# Each shape, and how many words its keys have: as few as the sizes allow in their order.
WORDS = {
    (): 1,
    (5,): 1,
    (1, 5): 1,
    (6, 7, 3): 1,
    (2**32 - 1,): 1,
    (65535, 65537): 1,  # all ones are left for padding
    (2**16, 2**16): 2,
    (100, 1000, 100_000): 2,  # the first two fit a word, and the first with the third would, but not all of them
    (2, 2**16, 2**16): 2,
    (2**31 - 1, 2**31 - 1, 2): 2,
    (2**31 - 1,) * 3: 3,
    (255,) * 8: 2,
}


LENGTH = 80  # of all lists, so that all shapes share what is compiled for each operation


def halves(keys):
    """All keys but the last, and those behind them."""
    return [tuple(word[part] for word in keys) for part in (slice(None, -1), slice(1, None))]


@pytest.mark.parametrize("shape", WORDS, ids=str)
def test_keys_keep_rows_and_their_order_in_few_words(rng, shape):
    rows = random_rows(rng, shape, 60, ascending=True, unique=False)
    corners = np.array([[0] * len(shape), [size - 1 for size in shape]], np.uint32)
    rows = np.concatenate([corners[:1], rows[is_entry(rows, shape)], corners[1:]])
    count = len(rows) if shape else LENGTH  # of a scalar tensor, nothing is padding
    rows = np.concatenate([rows, np.tile(np.array([shape], np.uint32), (LENGTH - len(rows), 1))])
    same = np.all(rows[1:] == rows[:-1], axis=1)

    keys = _keys.ravel(rows, shape)
    assert len(keys) == WORDS[shape]
    np.testing.assert_array_equal(_keys.is_padding(keys), np.arange(LENGTH) >= count)
    assert all(np.all(np.asarray(word)[count:] == 2**32 - 1) for word in keys)
    np.testing.assert_array_equal(_keys.unravel(keys, shape, np.uint32), rows)
    before, after = halves(keys)
    np.testing.assert_array_equal(_keys.is_less(before, after), ~same)
    np.testing.assert_array_equal(_keys.is_less(after, before), 0 * same)
    np.testing.assert_array_equal(_keys.is_equal(before, after), same)
    np.testing.assert_array_equal(_keys.ascend_strictly(keys), ~same | (np.arange(1, LENGTH) >= count))
    assert not np.any(_keys.ascend_strictly(tuple(word[::-1] for word in keys))[LENGTH - count :])


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("size", [2**32 - 1, 2**32, 2**32 + 1, 2**63 - 1])
def test_64_bit_indices_have_words_of_32_bits(size):
    rows = np.array([[0, 1], [size // 2, 0], [size - 1, 1], [size, 2]])

    @jax.jit
    def use(rows):
        keys = _keys.ravel(rows, (size, 2))
        return keys, _keys.is_padding(keys), _keys.unravel(keys, (size, 2), np.int64), _keys.is_less(*halves(keys))

    keys, padding, again, less = use(rows)
    assert {word.dtype for word in keys} == {np.dtype(np.uint32)}
    np.testing.assert_array_equal(padding, [False, False, False, True])
    np.testing.assert_array_equal(again, rows)
    assert np.all(less)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32])
def test_rows_outside_are_padding_whatever_their_dtype(dtype):
    rows = np.array([[-1, 0], [0, -1], [3, 0], [2, 4], [3, 4], [100, 100]]).astype(dtype)
    assert np.all(jax.jit(lambda rows: _keys.is_padding(_keys.ravel(rows, (3, 4))))(rows))
    assert not np.any(_keys.is_entry(rows, (3, 4)))
