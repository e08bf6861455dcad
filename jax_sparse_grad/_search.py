"""The positions of keys among sorted keys: a binary search, lexicographic if keys have several words."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_sparse_grad import _keys
from jax_sparse_grad._keys import Keys
from jax_sparse_grad._primitives import furthest, largest_in_batches
from jax_sparse_grad._seam import per_platform
from jax_sparse_grad._xla_cpu import largest_of

T = TypeVar("T")

BRANCHES = 8  # of a round of a search on a GPU: 4 need half as many kernels again, 16 hardly fewer
GROUP = 32  # queries between two that are sought first; 16 and 64 are no better


def search(sorted_keys: Keys, queries: Keys) -> tuple[jax.Array, jax.Array]:
    """The number of `sorted_keys` less than each query, and whether the query is among them (padding never is).

    Queries may be in any order. If they ascend, every 32nd is sought first, and the others between two of those: then
    the search takes as many rounds as the widest of these gaps needs.
    """
    size, count = sorted_keys[0].shape[0], queries[0].shape[0]
    if size == 0 or count == 0:
        return jnp.zeros_like(queries[0], jnp.int32), jnp.zeros_like(queries[0], bool)
    groups = -(-count // GROUP)
    spare = groups * GROUP - count
    grouped = tuple(
        jnp.concatenate([word, jnp.full(spare, _keys.all_ones(word.dtype))]).reshape(groups, GROUP) for word in queries
    )
    first = tuple(word[:, 0] for word in grouped)
    whole = jnp.full_like(first[0], size, jnp.int32)
    coarse = _lower_bounds(sorted_keys, first, jnp.zeros_like(whole), whole, jnp.int32(size.bit_length()))
    ascending = _keys.is_sorted(queries)
    low = jnp.where(ascending, coarse, 0)
    high = jnp.where(ascending, jnp.append(coarse[1:], size), size)
    rounds = largest_in_batches(32 - lax.clz(jnp.max(high - low)))
    position = _lower_bounds(sorted_keys, grouped, low[:, None], high[:, None], rounds).reshape(-1)[:count]
    candidates = _keys.key_at(sorted_keys, position)
    return position, (position < size) & _keys.is_equal(candidates, queries) & ~_keys.is_padding(queries)


def _lower_bounds(sorted_keys: Keys, queries: Keys, low: jax.Array, high: jax.Array, rounds: jax.Array) -> jax.Array:
    """The number of keys less than each query, known to lie in `low ... high`.

    Takes a third of the time of `jnp.searchsorted` on XLA:CPU, which keeps two bounds for every query.
    """
    return furthest(
        lambda position: _keys.is_less(_keys.key_at(sorted_keys, position - 1), queries),
        jnp.broadcast_to(low, queries[0].shape),
        high,
        rounds,
    )


def rank(table: Keys, queries: Keys) -> jax.Array:
    """The number of ascending keys less than each query: a search for GPUs, whose rounds are unrolled.

    XLA:GPU makes one kernel of one or two rounds, however little happens in them. So a round compares with seven keys,
    which do not wait for each other, and there are a third as many. No step leads out of the table.
    """
    return _descend(
        table,
        queries,
        [(jnp.int32(stride), jnp.int32(most)) for stride, most in _strides(table[0].shape[0])],
        jnp.int32(0),
    )


def rank_in_other(keys: Keys, sizes: tuple[int, int], of_first: jax.Array) -> jax.Array:
    """For each of `keys`, the number of keys less than it in the other of two ascending lists, which they begin with.

    `of_first` tells which are sought in the second list.
    """
    strides = [_strides(size) for size in sizes[::-1]]
    rounds = max(map(len, strides))
    sought_in_second, sought_in_first = ([(0, 0)] * (rounds - len(each)) + each for each in strides)

    def choose(in_second: int, in_first: int) -> jax.Array:
        return jnp.where(of_first, np.int32(in_second), np.int32(in_first))

    chosen = [
        (choose(stride, other_stride), choose(most, other_most))
        for (stride, most), (other_stride, other_most) in zip(sought_in_second, sought_in_first, strict=True)
    ]
    return _descend(keys, keys, chosen, jnp.where(of_first, sizes[0], 0))


def _strides(size: int) -> list[tuple[int, int]]:
    """For each round how far apart the keys are that it compares with, and how far it may go.

    Together they reach every number from 0 to `size`; after each round, all that follow stay within.
    """
    strides, reach = [], 0
    while reach < size:
        stride = reach + 1
        most = min((BRANCHES - 1) * stride, size - reach)
        if most < (BRANCHES - 1) * stride:
            stride = -(-most // (BRANCHES - 1))
        strides.append((stride, most))
        reach += most
    return strides[::-1]


def _descend(table: Keys, queries: Keys, rounds: Sequence[tuple[jax.Array, jax.Array]], begin: jax.Array) -> jax.Array:
    position = jnp.zeros_like(queries[0], jnp.int32)
    for stride, most in rounds:
        passed = jnp.zeros_like(position)
        for branch in range(1, BRANCHES):
            last = begin + position + (jnp.minimum(branch * stride, most) - 1)
            passed += _keys.is_less(_keys.key_at(table, last), queries).astype(jnp.int32)
        position += jnp.minimum(passed * stride, most)
    return position


count_less = per_platform(
    cpu=lambda numbers, queries: search((numbers,), (queries,))[0],
    gpu=lambda numbers, queries: rank((numbers,), (queries,)),
    otherwise=lambda numbers, queries: jnp.searchsorted(numbers, queries, method="sort").astype(jnp.int32),
)
"""For each query the number of ascending unsigned `numbers` that are less."""


def with_keys(sorted_rows: jax.Array, then: Callable[[Callable[[jax.Array], Keys]], T]) -> T:
    """`then(keys_of)`, where `keys_of` makes keys of index rows of unknown shape, in order to find some among others.

    The width of keys is determined from the data, at run time: `then` is compiled once for each width. Rows that cannot
    be among `sorted_rows` may become padding.
    """
    words = _keys.as_words(sorted_rows)
    if len(words) == 1:
        return then(_keys.as_words)
    largest = [largest_of(word) for word in words]
    dtypes: list[np.dtype] = [np.dtype(np.uint32), *([np.dtype(np.uint64)] if _keys.x64_enabled() else [])]
    fits = [_keys.fits_one_word(largest, dtype) for dtype in dtypes]

    def packed(dtype: np.dtype, rows: jax.Array) -> Keys:
        return _keys.pack(_keys.as_words(rows), largest, dtype)

    branches = [partial(then, partial(packed, dtype)) for dtype in dtypes] + [partial(then, _keys.as_words)]
    narrowest = jnp.argmax(jnp.stack([*fits, jnp.array(True)]))
    return lax.switch(narrowest, branches)
