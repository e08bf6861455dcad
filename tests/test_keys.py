"""Index rows <-> sort keys."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_sparse_grad import _keys
from samples import ravel, union_indices

EDGES = [
    (5, 6),
    (2**16, 2**16),
    (2**16 - 1, 2**16 + 1),
    (2**16 + 1, 2**16 - 1),
    (2**31 - 1,),
    (2**31 - 1, 2),
    (2**31 - 1, 3),
    (2, 2**31 - 1),
    (65537, 65535),
    (2**15, 2**16),  # 2**31 cells
    (3, 715827883),  # 2**31 + 1
    (641, 6700417),  # 2**32 + 1
    (2**31,),
    (2**31 + 1,),
    (2**32 - 1,),
    (2**32 - 1, 2**32 - 1),
    (2**31 - 1, 2**31 - 1, 2**31 - 1),
    (2**20,) * 5,
    (3,) * 40,
    (1,) * 7,
    (0, 2**31 - 1, 2**31 - 1),
    (),
]


def corner_rows(rng, shape, count=40):
    """Random rows, the first and last cell, and cells one step off them in each dimension."""
    sizes = np.array(shape, np.int64).reshape(1, -1)
    rows = rng.integers(0, np.maximum(sizes, 1), (count, len(shape)))
    corners = np.concatenate([np.zeros_like(sizes), sizes - 1, sizes // 2])
    steps = np.concatenate([corners + step for step in (-1, 0, 1)])
    return np.clip(np.concatenate([rows, steps]), 0, sizes - 1).astype(index_dtype(shape))


def index_dtype(shape):
    return np.dtype(np.int32 if max(shape, default=0) < 2**31 else np.uint32)


@pytest.mark.slow(but="False-shape5")
@pytest.mark.parametrize("shape", EDGES)
@pytest.mark.parametrize("wide", [False, True])
def test_keys_order_as_rows_do(rng, shape, wide):
    with jax.enable_x64(wide):
        rows = corner_rows(rng, shape) if 0 not in shape else np.zeros((0, len(shape)), np.int32)
        rows = np.unique(rows, axis=0) if shape else rows[:1]

        @jax.jit
        def look(rows):
            keys = ravel(rows, shape)
            return _keys.is_canonical(keys), _keys.is_padding(keys)

        canonical, padding = look(rows)
        assert bool(canonical)  # strictly ascending, as the distinct sorted rows are
        assert not np.any(padding)


@pytest.mark.parametrize("shape", [s for s in EDGES if s])
def test_padding_is_the_last_key(shape):
    padding = jnp.asarray(np.array([shape], index_dtype(shape)))
    keys = jax.jit(ravel, static_argnums=1)(padding, shape)
    assert np.all(_keys.is_padding(keys))
    assert all(np.all(np.asarray(word) == np.iinfo(word.dtype).max) for word in keys)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("shape", [(5, 6), (2**31 - 1, 3), (2**31 - 1,) * 3])
def test_sort_is_stable_and_tells_where_each_key_came_from(rng, shape, wide):
    with jax.enable_x64(wide):
        rows = rng.choice(corner_rows(rng, shape, 10), 100)
        keys = ravel(rows, shape)
        sorted_keys, order = jax.jit(_keys.sort)(keys)
        assert order.dtype == np.int32
        expected = np.lexsort(rows.T[::-1])  # stable, the first column foremost
        np.testing.assert_array_equal(order, expected)
        for word, sorted_word in zip(keys, sorted_keys, strict=True):
            assert sorted_word.dtype == word.dtype
            np.testing.assert_array_equal(sorted_word, np.asarray(word)[expected])


def test_entries_before_the_padding_are_counted():
    for count in range(4):
        rows = jnp.array([[0, 1], [0, 2], [4, 5]][:count] + [[5, 6]] * (3 - count))
        assert int(_keys.count_entries(ravel(rows, (5, 6)))) == count


def test_rows_outside_the_shape_count_as_padding():
    rows = jnp.array([[-1, 0], [0, -1], [5, 0], [0, 6], [5, 6], [2**31 - 1, -(2**31)]])
    assert np.all(_keys.is_padding(ravel(rows, (5, 6))))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((2**16, 2**16 - 1), 1),
        ((2**16, 2**16), 2),  # 2**32 cells leave no room for padding
        ((65535, 65537), 1),  # 2**32 - 1 cells do
        ((641, 6700417), 2),  # 2**32 + 1 cells do not
        ((2**31 - 1, 2), 1),
        ((2**31 - 1, 3), 2),
        ((2**32 - 1,), 1),
        ((2**32 - 1, 2), 2),
        ((2**31 - 1,) * 3, 3),
        ((2**20,) * 5, 5),
        ((3,) * 40, 2),
        ((), 1),
    ],
)
def test_keys_take_as_few_32_bit_words_as_hold_them(shape, words):
    layout = _keys.key_layout(shape)
    assert layout.dtype == np.uint32
    assert len(layout.words) == words


@pytest.mark.parametrize(
    ("shape", "words", "dtype"),
    [
        ((2**16, 2**16 - 1), 1, np.uint32),
        ((2**16, 2**16), 1, np.uint64),
        ((2**32 - 1, 2**32 + 1), 1, np.uint64),  # 2**64 - 1 cells
        ((2**32, 2**32), 2, np.uint64),
        ((3,) * 40, 1, np.uint64),
        ((3,) * 41, 2, np.uint64),
        ((2**31 - 1,) * 3, 2, np.uint64),
        ((2**62, 3), 1, np.uint64),
        ((2**63 - 1, 2**63 - 1), 2, np.uint64),
    ],
)
def test_with_x64_a_64_bit_word_is_used_where_32_bits_do_not_do(x64, shape, words, dtype):
    layout = _keys.key_layout(shape)
    assert layout.dtype == dtype
    assert len(layout.words) == words


@pytest.mark.slow
def test_order_is_known_for_runs_and_padding():
    @jax.jit
    def look(rows):
        keys = ravel(rows, (5, 6))
        return _keys.is_canonical(keys), _keys.is_sorted(keys), _keys.starts_run(keys)

    def of(*rows):
        canonical, ascending, starts = look(np.array(rows, np.int32).reshape(-1, 2))
        return bool(canonical), bool(ascending), starts.tolist()

    pad = (5, 6)
    assert of() == (True, True, [])
    assert of((4, 5)) == (True, True, [1])
    assert of((0, 1), (1, 0), pad, pad) == (True, True, [1, 1, 0, 0])
    assert of((0, 1), (0, 1))[:2] == (False, True)
    assert of((1, 0), (0, 1))[:2] == (False, False)
    assert of(pad, (0, 1))[:2] == (False, False)
    assert of((0, 1), (0, 1), pad, pad)[:2] == (False, True)
    assert of((0, 1), (0, 0))[:2] == (False, False)
    assert of((0, 1), (0, 1), (1, 1), (2, 0), (2, 0), pad, pad)[2] == [1, 0, 1, 1, 0, 0, 0]


@pytest.mark.parametrize("digits", [(2**16 - 1, 2**16 - 2), (2**16 - 1, 2**16 - 1), (2**31, 0), (2**31, 1), (0, 0)])
@pytest.mark.parametrize("wide", [False, True])
def test_the_width_found_from_data_is_exact(digits, wide):
    with jax.enable_x64(wide):
        largest = [jnp.asarray(d, jnp.uint32) for d in digits]
        cells = math.prod(d + 1 for d in digits)
        assert bool(_keys.fits_one_word(largest, np.dtype(np.uint32))) == (cells <= 2**32 - 1)
        if wide:
            assert bool(_keys.fits_one_word(largest, np.dtype(np.uint64)))


def test_union_oracle_agrees_with_the_definition():
    rows = np.array([[1, 0], [0, 1], [1, 0], [5, 6]])
    np.testing.assert_array_equal(union_indices(rows, shape=(5, 6)), [[0, 1], [1, 0]])
