"""Where sorted keys stand in sorted keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_sparse_grad import _search
from methods import OTHERS, jit_for
from samples import ravel

SHAPES = [(97,), (40, 50), (2**20, 2**20, 2**20), (2**31 - 1, 2**31 - 1)]


def sorted_rows(rng, shape, count):
    return np.unique(rng.integers(0, shape, (count, len(shape))).astype(np.int32), axis=0)


def queries_around(rng, rows, shape):
    """Rows that are there, their neighbours, random ones, and padding."""
    near = np.clip(rows + rng.integers(-1, 2, rows.shape), 0, np.array(shape) - 1)
    far = rng.integers(0, shape, (30, len(shape)))
    return rng.permutation(np.concatenate([rows, near, far, [shape]])).astype(np.int32)


search = jax.jit(_search.search)
ravel_jitted = jax.jit(ravel, static_argnums=1)


@jax.jit
def search_rows(rows, queries):
    return _search.with_keys(rows, lambda keys_of: _search.search(keys_of(rows), keys_of(queries)))


def expected(rows, queries):
    """Brute force: rank among, and membership in, the rows as Python tuples."""
    table = [tuple(row) for row in rows.tolist()]
    wanted = [tuple(row) for row in queries.tolist()]
    return [sum(row < query for row in table) for query in wanted], [query in table for query in wanted]


@pytest.mark.slow(but="2-shape1")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", [1, 2, 31, 64])
def test_search_finds_rank_and_membership(rng, shape, count):
    rows = sorted_rows(rng, shape, count)
    queries = queries_around(rng, rows, shape)

    @jax.jit
    def run(rows, queries):
        return _search.search(ravel(rows, shape), ravel(queries, shape))

    position, found = run(rows, queries)
    rank, member = expected(rows, queries)
    np.testing.assert_array_equal(position, rank)
    np.testing.assert_array_equal(found, member)


@pytest.mark.slow(but="shape0-False")
@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_found_without_a_shape(rng, shape, wide):
    rows = sorted_rows(rng, shape, 64)
    queries = queries_around(rng, rows, shape)
    with jax.enable_x64(wide):
        position, found = search_rows(rows, queries)
    rank, member = expected(rows, queries)
    np.testing.assert_array_equal(found, member)
    np.testing.assert_array_equal(np.asarray(position)[member], np.array(rank)[member])


def test_a_row_too_large_for_the_packing_meets_no_other_row():
    rows = jnp.array([[0, 0], [1, 2]])
    queries = jnp.array([[0, 5], [1, 2], [2, -1], [-1, 0]])  # (0, 5) packs like (1, 2) where columns reach 2
    _, found = search_rows(rows, queries)
    np.testing.assert_array_equal(found, [False, True, False, False])


def test_nothing_is_found_among_no_keys():
    none, some = jnp.zeros((0, 2), jnp.int32), jnp.array([[0, 1]])
    for position, found in (
        search(ravel_jitted(none, (3, 3)), ravel_jitted(some, (3, 3))),
        search_rows(none, some),
    ):
        np.testing.assert_array_equal(position, [0])
        np.testing.assert_array_equal(found, [False])


def test_padding_is_never_found():
    keys = ravel_jitted(jnp.array([[0, 1], [3, 3]]), (3, 3))
    _, found = search(keys, keys)
    np.testing.assert_array_equal(found, [True, False])


@pytest.mark.parametrize("count", [1, 31, 32, 33, 500])
@pytest.mark.parametrize("spread", [1, 40])
def test_queries_in_order_are_found_between_their_neighbours(rng, count, spread):
    table = np.arange(0, 1000 * spread, spread, dtype=np.uint32)
    queries = np.sort(rng.integers(0, 1000 * spread, count).astype(np.uint32))
    queries[count // 2 :] //= 8  # two gaps of very different width, or no order at all
    for asked in (queries, np.sort(queries)):
        position, found = search((table,), (asked,))
        np.testing.assert_array_equal(position, np.searchsorted(table, asked))
        np.testing.assert_array_equal(found, np.isin(asked, table))


def test_a_batch_of_searches(rng):
    table = np.sort(rng.integers(0, 99, (3, 40)).astype(np.uint32), axis=1)
    queries = rng.integers(0, 99, (3, 70)).astype(np.uint32)
    queries[0].sort()
    position, _ = jax.jit(jax.vmap(lambda t, q: _search.search((t,), (q,))))(table, queries)
    np.testing.assert_array_equal(position, [np.searchsorted(t, q) for t, q in zip(table, queries, strict=True)])


@pytest.mark.parametrize("size", [0, 1, 6, 7, 8, 9, 55, 56, 57, 64, 500])
def test_unrolled_rounds_reach_every_place(rng, size):
    table = np.sort(rng.integers(0, 2 * size + 1, size)).astype(np.uint32)
    queries = np.arange(-1, 2 * size + 2).astype(np.uint32)
    rank = jax.jit(_search.rank)((table,), (queries,))
    np.testing.assert_array_equal(rank, np.searchsorted(table, queries))


@pytest.mark.parametrize("sizes", [(0, 0), (0, 9), (7, 0), (1, 100), (100, 1), (63, 64)])
def test_two_lists_are_sought_in_each_other(rng, sizes):
    first, second = (np.sort(rng.integers(0, 120, size)).astype(np.uint32) for size in sizes)
    keys = np.concatenate([first, second, [np.uint32(2**32 - 1)] * 2])
    of_first = np.arange(len(keys)) < sizes[0]
    of_first[-2] = True
    rank = jax.jit(lambda keys, of_first: _search.rank_in_other((keys,), sizes, of_first))(keys, of_first)
    expected = [*np.searchsorted(second, first), *np.searchsorted(first, second), sizes[1], sizes[0]]
    np.testing.assert_array_equal(rank, expected)


@pytest.mark.parametrize("method", ["cpu", *OTHERS])
def test_smaller_numbers_are_counted(rng, method):
    numbers, queries = (np.sort(rng.integers(0, 50, size)).astype(np.uint32) for size in (40, 70))
    count = jit_for(method, _search.count_less)(numbers, queries)
    np.testing.assert_array_equal(count, np.searchsorted(numbers, queries))
