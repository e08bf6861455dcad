"""The symbolic phase by ranks, for XLA:GPU: few kernels, no loop, no sort, and one look at the order.

For two lists that ascend strictly, with padding last:

    a_before[i] = the number of keys of b below a[i]      a search of few, unrolled rounds, a kernel for one or two of
    b_before[j] = the number of keys of a below b[j]      them; the same kernels seek a in b and b in a
    shared[i]   = whether b[a_before[i]] is a[i]
    doubled[i]  = the number of shared entries before i   a prefix sum
    slot of a[i] = i + a_before[i] - doubled[i]           its own number, those of b before it, each cell once
    slot of b[j] = j + b_before[j] - doubled[b_before[j]]

Sources are scattered from these slots; rows and values are gathered by sources.

A GPU pays for launches, some 3 microseconds each, and for looks of the host at a flag, 10 to 20 and an empty queue. The
merge in tiles, which is fast on a CPU, takes some 700 launches, this one 20. Whatever loops on a GPU launches kernels
in every round, copies what it carries, and looks at a flag if the number of rounds is not static.

On an H200, for 10^6 + 10^6 entries, the kernels take 0.18 ms of 0.41: the search 0.08 of it, at 10^7 + 10^7 0.8 of 1.9,
and the check of the order 0.02. The rest is the host's, 0.08 to start a program and 0.1 for the one look.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp

from jax_sparse_grad import _keys, _tpu
from jax_sparse_grad._keys import Keys, Space
from jax_sparse_grad._primitives import NONE, at, if_all, iota_like, scatter, split_rows
from jax_sparse_grad._search import rank, rank_in_other
from jax_sparse_grad._tree import Placement, Then, UnionTree, halves, inner_nse, pick_rows, resize_list, with_orders
from jax_sparse_grad._types import Form, Order

T = TypeVar("T")

MOST_MERGED = 4  # of operands joined to be sorted, which is for CPUs: a merge takes 20 launches, the sort 50 in all


def unite(
    operands: tuple[jax.Array, ...],
    space: Space,
    form: Form,
    then: Then[T],
    values: tuple[jax.Array, ...] = (),
    *,
    tree: bool = True,
) -> T:
    """`then(indices, union, total)` of the sorted, padded union of index rows.

    One conditional looks whether all operands are in order. `total` is None where they are.
    """
    if form.joined is not None and not tree and len(form.joined) <= MOST_MERGED:
        operands = tuple(split_rows(operands[0], form.joined))
        form = form._replace(joined=None, order=Order.UNKNOWN)

    def merge_all(operands: tuple[jax.Array, ...], _: tuple[jax.Array, ...]) -> T:
        return then(*_merge_tree(operands, space, form), None)

    def sort_all(operands: tuple[jax.Array, ...], values: tuple[jax.Array, ...]) -> T:
        return _tpu.unite(operands, space, form, then, values, tree=tree, sort=_tpu.in_pairs)

    if form.order is Order.CANONICAL or not any(rows.shape[0] for rows in operands):
        return merge_all(operands, values)
    if form.order is Order.ANY:
        return sort_all(operands, values)
    ascending = [jnp.all(_keys.ascends(_keys.ravel(rows, space))) for rows in operands]
    return if_all(functools.reduce(jnp.logical_and, ascending), merge_all, sort_all, operands, values)


def _merge_tree(operands: tuple[jax.Array, ...], space: Space, form: Form) -> tuple[jax.Array, UnionTree]:
    lists, children = [], []
    for part in halves(operands):
        rows, child = part[0], None
        if len(part) > 1:
            nse = inner_nse([rows.shape[0] for rows in part], len(space.sizes))
            rows, child = _merge_tree(part, space, form._replace(nse=nse))
            child = child if form.order is Order.CANONICAL else with_orders(child)
        lists.append(rows)
        children.append(child)
    keys = [_keys.ravel(rows, space) for rows in lists]
    if len(lists) == 1:
        entries = jnp.sum(~_keys.is_padding(keys[0]), dtype=jnp.int32)
        indices, nnz, placements = resize_list(lists[0], entries, space, form.nse)
        return indices, UnionTree(nnz, tuple(children), placements)
    nnz, placements = _merge(keys[0], keys[1], form.nse)
    indices = pick_rows(lists, [placement.sources for placement in placements], space.sizes)
    return indices, UnionTree(nnz, tuple(children), placements)


def _merge(a: Keys, b: Keys, nse: int) -> tuple[jax.Array, tuple[Placement, ...]]:
    """The number of distinct keys in two canonical lists, and where each of them goes.

    The same kernels seek a in b and b in a: what they write is as long as both. They also seek the key of padding in
    both, which tells the numbers of entries.
    """
    sizes = a[0].shape[0], b[0].shape[0]
    padding = jnp.full_like(a[0], _keys.all_ones(a[0].dtype), shape=(2,))
    keys = tuple(jnp.concatenate([*words, padding]) for words in zip(a, b, strict=True))
    place = iota_like(keys[0])
    in_b = (place < sizes[0]) | (place == sum(sizes))
    before = rank_in_other(keys, sizes, in_b)
    entries, both = before[-2] + before[-1], slice(sum(sizes))

    is_entry = ~_keys.is_padding(keys)
    of_a = slice(sizes[0])
    candidates = _keys.key_at(b, before[of_a])
    shared = is_entry[of_a] & (before[of_a] < sizes[1]) & _keys.is_equal(candidates, a)
    through = jnp.cumsum(shared, dtype=jnp.int32)
    # For an entry of a the shared ones before itself, for an entry of b those among the entries of a before it.
    counted = jnp.where(in_b, place, before)
    doubled = jnp.where(counted > 0, at(through, counted - 1), 0)
    entry = jnp.where(in_b, place, place - sizes[0])
    slot = entry + before - doubled
    positions = jnp.where(is_entry & (slot < nse), slot, NONE)[both]
    placements = map(Placement, jnp.split(positions, sizes[:1]), _sources(positions, entry[both], sizes[0], nse))
    return entries - at(through, jnp.int32(sizes[0] - 1)), tuple(placements)


def _sources(positions: jax.Array, entries: jax.Array, of_a: int, nse: int) -> Sequence[jax.Array]:
    """For both lists the entry in each slot; the first `of_a` positions are those of a."""
    if 2 * nse > NONE:
        parts = zip(jnp.split(positions, [of_a]), jnp.split(entries, [of_a]), strict=True)
        return [scatter(nse, slots, numbers, fill=NONE) for slots, numbers in parts]
    # One scatter for both: the sources of b stand behind those of a.
    shift = jnp.where(iota_like(positions) < of_a, 0, nse)
    targets = jnp.where(positions == NONE, NONE, positions + shift)
    return jnp.split(scatter(2 * nse, targets, entries, fill=NONE), 2)


def locate(rows: Sequence[jax.Array], space: Space | None, then: Callable[[tuple[jax.Array, ...]], T]) -> T:
    """`then(positions)`: for each list of rows but the first, the entry of the first list that is equal to each row.

    `NONE` where none is. Without a space, columns are compared one by one.
    """
    total, *operands = (_keys.keys_of(each, space) for each in rows)
    queries = _keys.join(operands)
    position = rank(total, queries)
    found = (position < total[0].shape[0]) & _keys.is_equal(_keys.key_at(total, position), queries)
    positions = jnp.where(found & ~_keys.is_padding(queries), position, NONE)
    return then(tuple(split_rows(positions, [keys[0].shape[0] for keys in operands])))


def placement_of(positions: jax.Array, nse: int) -> Placement:
    """The placement of entries whose slots are known; those without one are at `NONE`."""
    return _tpu.placement_of(positions, nse, _tpu.in_pairs)
