"""Slots by sorting, for XLA:TPU and unknown platforms: one sort, whatever the order of the operands.

    keys of all operands, one list after the other, beside each the number of its entry
       | sort
    runs of equal keys      numbered by a prefix sum
       | scatter
    slots                   of the entries in their stored order

A TPU reads 4 KB to gather one element, so binary searches are out of the question. Its sorts are networks of vector
operations. Their price is compile time, which grows with their number and with the arrays that each sorts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_sparse_grad import _keys
from jax_sparse_grad._keys import NONE, ONES, Keys

Sort = Callable[[Keys], tuple[Keys, jax.Array]]
"""Sorts keys: `(sorted keys, where each comes from [n] int32)`. Equal keys keep their order."""


def sort_at_once(keys: Keys) -> tuple[Keys, jax.Array]:
    """One sort of all words; entry numbers as the last one take the place of stability."""
    numbers = jnp.arange(keys[0].shape[0], dtype=np.int32)
    *words, order = lax.sort((*keys, numbers), num_keys=len(keys) + 1, is_stable=False)
    return tuple(words), order


def find_union(
    lists: Sequence[Keys], nse: int, sort: Sort = sort_at_once
) -> tuple[Keys, tuple[jax.Array, ...], jax.Array]:
    """The first `nse` distinct keys, for each list the slot of each key (`NONE` for padding), and their true number."""
    sizes = [keys[0].shape[0] for keys in lists]
    words, order = sort(_keys.join(lists))
    padding = _keys.is_padding(words)
    starts = _starts_run(words) & ~padding
    number = jnp.cumsum(starts, dtype=np.int32) - 1
    slots = jnp.zeros_like(order).at[order].set(jnp.where(padding, NONE, number), unique_indices=True)
    heads = tuple(
        jnp.full_like(word, ONES, shape=(nse,)).at[jnp.where(starts, number, NONE)].set(word, mode="drop")
        for word in words
    )
    return heads, tuple(jnp.split(slots, np.cumsum(sizes)[:-1])), jnp.sum(starts, dtype=np.int32)


def lookup(total: Keys, lists: Sequence[Keys], sort: Sort = sort_at_once) -> tuple[jax.Array, ...]:
    """For each list the place of each key in an ascending one, `NONE` where it is not there.

    Not by `jnp.searchsorted`, which gathers or sorts several times.
    """
    size, sizes = total[0].shape[0], [keys[0].shape[0] for keys in lists]
    words, order = sort(_keys.join([total, *lists]))
    starts = _starts_run(words)
    # Keys of the sum come first in their run, and their numbers ascend: what is found is the latest of them.
    of_total, position = starts & (order < size), jnp.arange(order.shape[0], dtype=np.int32)
    in_run = _latest(starts, position) == _latest(of_total, position)
    found = jnp.where(in_run, _latest(of_total, order), NONE)
    places = jnp.zeros_like(order).at[order].set(found, unique_indices=True)
    return tuple(jnp.split(places, np.cumsum([size, *sizes])[:-1])[1:])


def _starts_run(words: Keys) -> jax.Array:
    """Whether each of the sorted keys differs from the one before it."""
    differs = ~_keys.is_equal(tuple(word[1:] for word in words), tuple(word[:-1] for word in words))
    return jnp.concatenate([jnp.ones_like(differs, shape=min(1, words[0].shape[0])), differs])


def _latest(flags: jax.Array, numbers: jax.Array) -> jax.Array:
    """The largest of the flagged numbers so far; they ascend."""
    return lax.cummax(jnp.where(flags, numbers, np.int32(-1)))
