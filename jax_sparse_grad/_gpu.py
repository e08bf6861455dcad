"""Slots by ranks, for XLA:GPU: few kernels, no loop, no sort, and one conditional on the order.

For two lists of keys that ascend strictly, with padding last:

    a_before[i] = the number of keys of b below a[i]      a search whose rounds are unrolled, a kernel for one or two of
    b_before[j] = the number of keys of a below b[j]      them; the same kernels seek a in b and b in a
    shared[i]   = whether b[a_before[i]] is a[i]
    doubled[i]  = the number of shared entries before i   a prefix sum
    slot of a[i] = i + a_before[i] - doubled[i]           its own number, those of b before it, each cell once
    slot of b[j] = j + b_before[j] - doubled[b_before[j]]

Other operands are sorted, as on a TPU, but by sorts of one key with one payload, which XLA:GPU leaves to CUB's radix
sort.

On a GPU, a kernel launch takes some 3 microseconds. When the host reads a flag, that takes 10 to 20, and the queue runs
empty. A loop launches kernels in every round, and copies its carry.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_sparse_grad import _keys, _tpu
from jax_sparse_grad._batching import all_of_batch, pvary_alike, take
from jax_sparse_grad._keys import NONE, ONES, Keys

BRANCHES = 8  # of a round of a search: 4 need half as many kernels again, 16 hardly fewer


def sort_by_word(keys: Keys) -> tuple[Keys, jax.Array]:
    """A stable sort, word by word from the last one, each with its position as the only payload."""
    order = jnp.arange(keys[0].shape[0], dtype=np.int32)
    for count, word in enumerate(reversed(keys)):
        _, order = lax.sort((word[order] if count else word, order), num_keys=1, is_stable=True)
    return tuple(word[order] for word in keys), order


def find_union(
    lists: Sequence[Keys], nse: int, *, canonical: bool = False
) -> tuple[Keys, tuple[jax.Array, ...], jax.Array]:
    """The first `nse` distinct keys, for each list the slot of each key (`NONE` for padding), and their true number.

    `canonical`: all lists are known to ascend strictly, with padding last.
    """
    if len(lists) != 2 or not all(keys[0].shape[0] for keys in lists):
        return _tpu.find_union(lists, nse, sort_by_word)

    a, b = pvary_alike(tuple(lists))
    if canonical:
        return _merge(a, b, nse)

    def merge(a: Keys, b: Keys) -> tuple[Keys, tuple[jax.Array, ...], jax.Array]:
        return pvary_alike(_merge(a, b, nse))

    def sort(a: Keys, b: Keys) -> tuple[Keys, tuple[jax.Array, ...], jax.Array]:
        return pvary_alike(_tpu.find_union((a, b), nse, sort_by_word))

    in_order = all_of_batch(jnp.all(_keys.ascend_strictly(a)) & jnp.all(_keys.ascend_strictly(b)))
    found: tuple[Keys, tuple[jax.Array, ...], jax.Array] = lax.cond(in_order, merge, sort, a, b)
    return found


def _merge(a: Keys, b: Keys, nse: int) -> tuple[Keys, tuple[jax.Array, ...], jax.Array]:
    sizes = a[0].shape[0], b[0].shape[0]
    # The same kernels seek the key of padding in both lists: its ranks are the numbers of entries.
    ends = jnp.full_like(a[0], ONES, shape=(2,))
    keys = tuple(jnp.concatenate([*words, ends]) for words in zip(a, b, strict=True))
    place = jnp.arange(sum(sizes) + 2, dtype=np.int32)
    in_b = (place < sizes[0]) | (place == sum(sizes))
    before = _rank_in_other(keys, sizes, in_b)
    entries, of_a = before[-2] + before[-1], slice(sizes[0])

    is_entry = ~_keys.is_padding(keys)
    candidates = tuple(take(word, before[of_a]) for word in b)
    shared = is_entry[of_a] & (before[of_a] < sizes[1]) & _keys.is_equal(candidates, a)
    through = jnp.cumsum(shared, dtype=np.int32)
    # For an entry of a the shared ones before itself, for an entry of b those among the entries of a before it.
    counted = jnp.where(in_b, place, before)
    doubled = jnp.where(counted > 0, take(through, counted - 1), 0)
    own = jnp.where(in_b, place, place - sizes[0])
    slots = jnp.where(is_entry, own + before - doubled, NONE)[:-2]
    heads = tuple(
        jnp.full_like(word, ONES, shape=(nse,)).at[slots].set(word[:-2], mode="drop", wrap_negative_indices=False)
        for word in keys
    )
    return heads, tuple(jnp.split(slots, [sizes[0]])), entries - through[-1]


def lookup(total: Keys, lists: Sequence[Keys]) -> tuple[jax.Array, ...]:
    """For each list the place of each key in an ascending one, `NONE` where it is not there.

    Not by `jnp.searchsorted`: its unrolled rounds make 34 kernels where these make 8.
    """
    queries = _keys.join(lists)
    strides = [(jnp.int32(stride), jnp.int32(most)) for stride, most in _strides(total[0].shape[0])]
    place = _descend(total, queries, strides, jnp.int32(0))
    found = (place < total[0].shape[0]) & _keys.is_equal(tuple(take(word, place) for word in total), queries)
    places = jnp.where(found, place, NONE)
    return tuple(jnp.split(places, np.cumsum([keys[0].shape[0] for keys in lists])[:-1]))


def _rank_in_other(keys: Keys, sizes: tuple[int, int], of_first: jax.Array) -> jax.Array:
    """For each of `keys`, the number of keys less than it in the other of two ascending lists, which they begin with.

    `of_first` tells which are sought in the second list.
    """
    strides = [_strides(size) for size in sizes[::-1]]
    rounds = max(map(len, strides))
    in_second, in_first = ([(0, 0)] * (rounds - len(each)) + each for each in strides)

    def choose(second: int, first: int) -> jax.Array:
        return jnp.where(of_first, np.int32(second), np.int32(first))

    chosen = [
        (choose(stride, other_stride), choose(most, other_most))
        for (stride, most), (other_stride, other_most) in zip(in_second, in_first, strict=True)
    ]
    return _descend(keys, keys, chosen, jnp.where(of_first, np.int32(sizes[0]), np.int32(0)))


def _strides(size: int) -> list[tuple[int, int]]:
    """For each round how far apart the keys are that it compares with, and how far it may go.

    Together they reach every number from 0 to `size`; after each round, all that follow stay within.
    """
    strides: list[tuple[int, int]] = []
    reach = 0
    while reach < size:
        stride = reach + 1
        most = min((BRANCHES - 1) * stride, size - reach)
        if most < (BRANCHES - 1) * stride:
            stride = -(-most // (BRANCHES - 1))
        strides.append((stride, most))
        reach += most
    return strides[::-1]


def _descend(table: Keys, queries: Keys, rounds: Sequence[tuple[jax.Array, jax.Array]], begin: jax.Array) -> jax.Array:
    """The number of keys less than each query.

    XLA:GPU makes a kernel of one or two rounds, however little they do. So each round compares a query with seven keys,
    which are read at the same time. No step leads out of the table.
    """
    position = jnp.zeros_like(queries[0], np.int32)
    for stride, most in rounds:
        passed = jnp.zeros_like(position)
        for branch in range(1, BRANCHES):
            last = begin + position + (jnp.minimum(branch * stride, most) - 1)
            passed += _keys.is_less(tuple(take(word, last) for word in table), queries).astype(np.int32)
        position += jnp.minimum(passed * stride, most)
    return position
