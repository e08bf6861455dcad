"""The symbolic phase for XLA:CPU: a tree of merges, each of them in a conditional where the order is not known.

operands     in any order, with duplicates and padding
   | merge          two lists that ascend strictly, with padding last: see `_tile_merge.py`
   | _sort_lists    lists in any order, as found out at run time: all keys in one sort
union        a balanced binary tree of these
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp

from jax_sparse_grad import _keys
from jax_sparse_grad._keys import Keys, Space
from jax_sparse_grad._primitives import NONE, gather, if_all, iota_like, scatter, vary_alike
from jax_sparse_grad._search import search, with_keys
from jax_sparse_grad._tile_merge import count_before, merge, positions_of, select_rows, sources_of
from jax_sparse_grad._tree import (
    Child,
    Joined,
    Placement,
    Then,
    UnionTree,
    halves,
    inner_nse,
    pick_rows,
    resize_list,
    with_orders,
)
from jax_sparse_grad._types import Form, Order
from jax_sparse_grad._xla_cpu import argsort, count_true, materialise

T = TypeVar("T")


def unite(
    operands: tuple[jax.Array, ...],
    space: Space,
    form: Form,
    then: Then[T],
    values: tuple[jax.Array, ...] = (),
    *,
    tree: bool = True,
) -> T:
    """`then(indices, union, None)` of the sorted, padded union of index rows. Values are left to `then`.

    If it is not known whether all operands are canonical (sorted and unique, padded only at the end), `then` stands in
    both branches of a conditional, and knows statically which of them it is in (`Placement.unique` is None if they
    are). Only its results leave the conditional, so nothing that only unsorted operands need is written for sorted
    ones. The results must have the same structure in both branches; `with_orders` makes sure of that for the union.
    """
    del values, tree  # what `then` does not use of the tree is not computed
    parts = halves(operands)
    subtrees = [_subtree(part, space, form) for part in parts]
    lists = tuple(rows for rows, _ in subtrees)
    children: tuple[Child, ...] = tuple(union for _, union in subtrees)
    if form.joined is not None:
        children = (Joined(form.joined),)

    def unite_canonical(lists: tuple[jax.Array, ...]) -> T:
        indices, nnz, placements = _merge_lists(lists, space, form.nse)
        return then(indices, UnionTree(nnz, children, placements), None)

    leaves = any(not isinstance(child, UnionTree) for child in children)
    if form.order is Order.CANONICAL or not leaves or not any(rows.shape[0] for rows in lists):
        return unite_canonical(lists)

    def unite_any(lists: tuple[jax.Array, ...]) -> T:
        indices, nnz, placements = _sort_lists(lists, space, form.nse)
        return then(indices, UnionTree(nnz, children, placements), None)

    if form.order is Order.ANY:
        return unite_any(lists)
    lists = vary_alike(lists)  # so that the branches agree
    in_order = functools.reduce(jnp.logical_and, (_is_canonical(_keys.ravel(rows, space)) for rows in lists))
    return if_all(in_order, unite_canonical, unite_any, lists)


def _subtree(operands: Sequence[jax.Array], space: Space, form: Form) -> tuple[jax.Array, UnionTree | None]:
    if len(operands) == 1:
        return operands[0], None
    nse = inner_nse([rows.shape[0] for rows in operands], len(space.sizes))

    def keep(indices: jax.Array, union: UnionTree, _: object) -> tuple[jax.Array, UnionTree]:
        return indices, union if form.order is Order.CANONICAL else with_orders(union)

    return unite(tuple(operands), space, form._replace(nse=nse), keep)


def _is_canonical(keys: Keys) -> jax.Array:
    return count_true(~_keys.ascends(keys)) == 0


def placement_of(positions: jax.Array, nse: int) -> Placement:
    """The placement of entries whose slots are known; those without one are at `NONE`."""
    size = positions.shape[0]
    entries = iota_like(positions)
    # If several entries ask for one slot, one of them gets it: the others find another entry there.
    sources = scatter(nse, positions, entries, fill=NONE)
    unique = jnp.all((positions == NONE) | (gather(sources, positions, fill=NONE) == entries))

    def already_unique() -> tuple[jax.Array, jax.Array]:
        return sources, entries

    def sort() -> tuple[jax.Array, jax.Array]:
        digit = positions.astype(jnp.uint32)
        order = argsort((digit,))
        slots = digit[order]
        starts = jnp.concatenate([jnp.ones(min(1, size), bool), slots[1:] != slots[:-1]])
        first = scatter(nse, jnp.where(starts, slots.astype(jnp.int32), NONE), entries, fill=NONE)
        return jnp.where(unique, sources, first), order

    sources, order = if_all(unique, already_unique, sort)
    return Placement(positions, sources, unique, order)


def _merge_lists(
    lists: tuple[jax.Array, ...], space: Space, nse: int
) -> tuple[jax.Array, jax.Array, tuple[Placement, ...]]:
    """The union of one or two canonical lists in `nse` slots, its true length, and where their entries went."""
    keys = [materialise(_keys.ravel(rows, space)) for rows in lists]
    if len(lists) == 1:
        return resize_list(lists[0], _keys.count_entries(keys[0]), space, nse)
    nnz, bitmaps = merge(keys[0], keys[1], nse)
    indices = select_rows(bitmaps, lists[0], lists[1], space.sizes, nse)
    placements = []
    for bitmap, rows in zip(bitmaps, lists, strict=True):
        placements.append(Placement(positions_of(bitmap, rows.shape[0], nse), sources_of(bitmap, nse)))
    return indices, nnz, tuple(placements)


def _sort_lists(
    lists: tuple[jax.Array, ...], space: Space, nse: int
) -> tuple[jax.Array, jax.Array, tuple[Placement, ...]]:
    """The union of one or two lists in any order in `nse` slots, its true length, and where their entries went."""
    sizes = [rows.shape[0] for rows in lists]

    # 1. Sort all keys, stably. Then entry `order[k]` of both lists together is at place k. In a run of equal keys, the
    #    entries of each list stand side by side, in their original order.
    keys = _keys.join(_keys.ravel(rows, space) for rows in lists)
    order = argsort(_keys.digits_of(keys))
    sorted_keys = tuple(word[order] for word in keys)
    starts, padding = _keys.starts_run(sorted_keys), _keys.is_padding(sorted_keys)

    # 2. Number the runs. Then `slots[k]` is the slot of the entry at place k, and `positions` that of each entry.
    slots = jnp.where(padding, NONE, count_before(starts) + starts.astype(jnp.int32) - 1)
    slots = jnp.where(slots < nse, slots, NONE)
    positions = jnp.split(scatter(sum(sizes), order, slots, fill=NONE), sizes[:-1])

    # 3. Find the first entry of each list in each run. If all are first, no slot has two entries of one list.
    of_second = order >= sizes[0]
    own = (~of_second, of_second)[: len(lists)]
    first = tuple(_keys.starts_run_of(mine, starts, padding) for mine in own)
    unique = jnp.all(functools.reduce(jnp.logical_or, first) | padding)

    def place_first(numbers: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """For each list and slot the number of the first entry in it."""
        return tuple(
            scatter(nse, jnp.where(is_first, slots, NONE), number, fill=NONE)
            for is_first, number in zip(first, numbers, strict=False)
        )

    # 4. Pick an index row for each slot: that of the first entry of either list.
    entries = (order, order - sizes[0])
    in_slots = place_first(entries)
    indices = pick_rows(lists, in_slots, space.sizes)

    # 5. Number the sources by entry if all are unique, else by their place in the sorted list: see `Placement`.
    def by_entry() -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        return in_slots, tuple(map(iota_like, positions))

    def by_place() -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        seconds = count_before(of_second)
        places = (iota_like(order) - seconds, seconds)
        orders = (
            scatter(size, jnp.where(mine, place, NONE), entry, fill=NONE)
            for mine, place, entry, size in zip(own, places, entries, sizes, strict=False)
        )
        return place_first(places), tuple(orders)

    sources, orders = if_all(unique, by_entry, by_place)
    placements = tuple(
        Placement(slots_of, entries_of, unique, order_of)
        for slots_of, entries_of, order_of in zip(positions, sources, orders, strict=True)
    )
    return indices, jnp.sum(starts, dtype=jnp.int32), placements


def locate(rows: Sequence[jax.Array], space: Space | None, then: Callable[[tuple[jax.Array, ...]], T]) -> T:
    """`then(positions)`: for each list of rows but the first, the entry of the first list that is equal to each row.

    `NONE` where none is. Without a space, the width of keys is found from the data.
    """

    def search_all(keys_of: Callable[[jax.Array], Keys]) -> T:
        total, *operands = (materialise(keys_of(each)) for each in rows)
        found = (search(total, keys) for keys in operands)
        return then(tuple(jnp.where(is_found, position, NONE) for position, is_found in found))

    return with_keys(rows[0], search_all) if space is None else search_all(partial(_keys.ravel, space=space))
