"""Symbolic phase: the sorted union of lists of index rows, and where each entry went.

    operands     in any order, with duplicates and padding
       | merge          two lists that ascend strictly, with padding last: see `_merge.py`
       | _sort_lists    lists in any order, as found out at run time: all keys in one sort
    union        a balanced binary tree of these: k operands cost log2(k) levels of the same total length

Every edge of the tree is a `Placement`: the linear map that carries the values of a child to the slots of its parent.
It is stored in both directions (`sources` for the map, `positions` for its transpose), so that either one is a gather.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jax_sparse_grad import _keys
from jax_sparse_grad._buckets import concatenate, resize
from jax_sparse_grad._keys import Space
from jax_sparse_grad._merge import count_before, merge, positions_of, select_rows, sources_of
from jax_sparse_grad._primitives import NONE, gather, if_all, iota_like, materialise, scatter, vary_alike

T = TypeVar("T")

# Measured on two cores, for 2 to 20 operands of 300 to 10^5 sorted entries, with shared and with different patterns:
MOST_IN_TREE = 12  # operands: a tree of merges may be faster than one sort up to this number
SORTED_BELOW = 1536  # times k (k - 1): the entries of k operands that one sort takes as long for as the merges


class Placement(NamedTuple):
    """The places of the n entries of a child among the m slots of their parent.

    positions: `[n]` int32, the slot of each entry. `NONE` if it has none (padding, dropped); m or more if there is no
      room.
    sources: `[m]` int32, the entry in each slot; `NONE` if there is none.
    unique: scalar bool, whether no slot has two entries of one operand, for both operands of a node together. If false,
      `sources` counts the entries in the order of `order`, and refers to the first of those that share a slot. None if
      known to be true.
    order: `[n]` int32, a permutation that sorts the entries by their slots (those without a slot may stand anywhere).
      None if `unique` is None.
    """

    positions: jax.Array
    sources: jax.Array
    unique: jax.Array | None = None
    order: jax.Array | None = None


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class Joined:
    """A child made of several operands, one list after the other, with their sizes (static)."""

    sizes: tuple[int, ...]


class Union(NamedTuple):
    """A node of the tree: the union of one or two children, each an operand (None), several operands, or a union.

    nnz: scalar int32, the true number of distinct entries, which may exceed the number of slots.
    """

    nnz: jax.Array
    children: tuple[Union | Joined | None, ...]
    placements: tuple[Placement, ...]


def unite(
    operands: tuple[jax.Array, ...],
    space: Space,
    nse: int,
    canonical: bool | None,
    then: Callable[[jax.Array, Union], T],
    joined: tuple[int, ...] | None = None,
) -> T:
    """`then(indices, union)` of the sorted, padded union of index rows in `nse` slots, and the tree that leads to it.

    A single operand may be several that `join` has put together; `joined` are then their sizes.

    `canonical` says whether all operands are sorted and unique, padded only at the end; None means to find out at run
    time. In that case, `then` stands in both branches of the conditional, and knows statically which of them it is in
    (`Placement.unique` is None if all operands are canonical). Only its results leave the conditional, so nothing that
    only unsorted operands need is written for sorted ones. The results must have the same structure in both branches;
    `with_orders` makes sure of that for the union.
    """
    half = (len(operands) + 1) // 2
    parts = [part for part in (operands[:half], operands[half:]) if part]
    subtrees = [_subtree(part, space, canonical) for part in parts]
    lists = tuple(rows for rows, _ in subtrees)
    children: tuple[Union | Joined | None, ...] = tuple(union for _, union in subtrees)
    if joined is not None:
        children = (Joined(joined),)

    def unite_canonical(lists: tuple[jax.Array, ...]) -> T:
        indices, nnz, placements = _merge_lists(lists, space, nse)
        return then(indices, Union(nnz, children, placements))

    leaves = any(not isinstance(child, Union) for child in children)
    if canonical or not leaves or not any(rows.shape[0] for rows in lists):
        return unite_canonical(lists)

    def unite_any(lists: tuple[jax.Array, ...]) -> T:
        indices, nnz, placements = _sort_lists(lists, space, nse)
        return then(indices, Union(nnz, children, placements))

    if canonical is not None:
        return unite_any(lists)
    lists = vary_alike(lists)  # so that the branches agree
    in_order = functools.reduce(jnp.logical_and, (_keys.is_canonical(_keys.ravel(rows, space)) for rows in lists))
    return if_all(in_order, unite_canonical, unite_any, lists)


def join(operands: tuple[jax.Array, ...], promised: bool) -> tuple[tuple[jax.Array, ...], tuple[int, ...] | None]:
    """The operands `[*batch, n, ndims]`; or one list of them all and their sizes, if sorting that is better.

    A merge costs a fixed number of kernels, and seconds of compilation, however short the lists. A sort takes time for
    each entry, whatever the number of operands. If all are promised to be sorted, a small number of operands is always
    merged.
    """
    sizes = tuple(rows.shape[-2] for rows in operands)
    short = not promised and sum(sizes) <= SORTED_BELOW * len(sizes) * (len(sizes) - 1)
    # XLA:CPU ends the process if integers of less than a byte are concatenated.
    alike = len({rows.shape[:-2] for rows in operands}) == 1 and jnp.iinfo(operands[0].dtype).bits >= 8
    if len(sizes) == 1 or not alike or not (short or len(sizes) > MOST_IN_TREE):
        return operands, None
    return (concatenate(operands, operands[0].ndim - 2),), sizes


def with_orders(union: Union) -> Union:
    """The same node with `unique` and `order` for every operand, also if their keys were sorted.

    A node whose children are unions themselves is left alone: those are always sorted.
    """

    def complete(placement: Placement) -> Placement:
        if placement.unique is not None:
            return placement
        return placement._replace(unique=jnp.ones_like(union.nnz, bool), order=iota_like(placement.positions))

    if all(isinstance(child, Union) for child in union.children):
        return union
    return union._replace(placements=tuple(map(complete, union.placements)))


def _subtree(operands: tuple[jax.Array, ...], space: Space, canonical: bool | None) -> tuple[jax.Array, Union | None]:
    if len(operands) == 1:
        return operands[0], None
    nse = sum(rows.shape[0] for rows in operands)
    if not space.sizes:
        nse = min(nse, 1)  # a scalar tensor has no padding: its parent would read spare slots as entries
    return unite(operands, space, nse, canonical, lambda indices, union: (indices, with_orders(union)))


def entry_counts(union: Union) -> tuple[tuple[int, ...], ...]:
    """The number of entries of each operand; for joined operands in one tuple."""
    counts: list[tuple[int, ...]] = []
    for child, placement in zip(union.children, union.placements, strict=True):
        if isinstance(child, Union):
            counts += entry_counts(child)
        else:
            counts.append((placement.positions.shape[-1],) if child is None else child.sizes)
    return tuple(counts)


def slots_of(union: Union, outer: jax.Array | None = None) -> list[jax.Array]:
    """For each operand the slot of each of its entries in the whole sum, `[nnz_k]`; `NONE` or more if there is none.

    `outer` are the slots of this node's own slots in the whole sum.
    """
    slots: list[jax.Array] = []
    for child, placement in zip(union.children, union.placements, strict=True):
        positions = placement.positions
        if outer is not None:
            positions = gather(outer, positions, fill=NONE)
        if isinstance(child, Union):
            slots += slots_of(child, positions)
        else:
            sizes = (positions.shape[0],) if child is None else child.sizes
            slots += jnp.split(positions, list(itertools.accumulate(sizes))[:-1])
    return slots


def most_entries(nnz: jax.Array) -> int:
    """The largest of the concrete numbers of entries in a batch."""
    return int(np.max(np.asarray(nnz), initial=0))


def fit(union: Union, nse: int, counts: Iterator[tuple[int, ...]]) -> Union:
    """The same tree with `nse` slots at its root, `nnz` at every inner node and `counts` entries at its leaves.

    Everything is concrete, and slots and entries that are cut off are empty. A batch of trees keeps the room that its
    largest needs.
    """
    axis = np.ndim(union.nnz)

    def fit_child(child: Union | Joined | None, placement: Placement) -> tuple[Union | Joined | None, Placement]:
        sizes = (most_entries(child.nnz),) if isinstance(child, Union) else next(counts)
        fitted = placement._replace(
            positions=resize(placement.positions, sum(sizes), NONE, axis),
            sources=resize(placement.sources, nse, NONE, axis),
            order=None if placement.order is None else resize(placement.order, sum(sizes), NONE, axis),
        )
        if isinstance(child, Union):
            return fit(child, sum(sizes), counts), fitted
        return None if len(sizes) == 1 else Joined(sizes), fitted

    pairs = [fit_child(*pair) for pair in zip(union.children, union.placements, strict=True)]
    children, placements = zip(*pairs, strict=True)
    return Union(union.nnz, children, placements)


def truncate(union: Union, nse: int) -> Union:
    """The same node with its first `nse` slots only, which must hold all of its entries."""
    placements = tuple(placement._replace(sources=placement.sources[:nse]) for placement in union.placements)
    return union._replace(placements=placements)


def restrict(indices: jax.Array, union: Union, keep: jax.Array, space: Space, nse: int) -> tuple[jax.Array, Union]:
    """The indices and the union of the slots that `keep` selects, in `nse` slots; all others are dropped."""
    former_nse = keep.shape[0]
    keep &= jnp.arange(former_nse, dtype=jnp.int32) < union.nnz
    slots = jnp.where(keep, count_before(keep), NONE)
    former = scatter(nse, slots, jnp.arange(former_nse, dtype=jnp.int32), fill=NONE)
    placements = tuple(
        placement._replace(
            positions=gather(slots, placement.positions, fill=NONE),
            sources=gather(placement.sources, former, fill=NONE),
        )
        for placement in union.placements
    )
    restricted = union._replace(nnz=jnp.sum(keep, dtype=jnp.int32), placements=placements)
    return pick_rows([indices], [former], space.sizes), restricted


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
        (slots,), order = _keys.sort((positions.astype(jnp.uint32),))
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
        return _resize(lists[0], _keys.count_entries(keys[0]), space, nse)
    nnz, bitmaps = merge(keys[0], keys[1], nse)
    indices = select_rows(bitmaps, lists[0], lists[1], space.sizes, nse)
    placements = []
    for bitmap, rows in zip(bitmaps, lists, strict=True):
        placements.append(Placement(positions_of(bitmap, rows.shape[0], nse), sources_of(bitmap, nse)))
    return indices, nnz, tuple(placements)


def _resize(
    rows: jax.Array, nnz: jax.Array, space: Space, nse: int
) -> tuple[jax.Array, jax.Array, tuple[Placement, ...]]:
    """One canonical list in `nse` slots: the union of a single operand."""
    entries, slots = jnp.arange(rows.shape[0], dtype=jnp.int32), jnp.arange(nse, dtype=jnp.int32)
    positions, sources = jnp.where(entries < nnz, entries, NONE), jnp.where(slots < nnz, slots, NONE)
    return pick_rows([rows], [sources], space.sizes), nnz, (Placement(positions, sources),)


def pick_rows(lists: Sequence[jax.Array], sources: Sequence[jax.Array], sizes: Sequence[ArrayLike]) -> jax.Array:
    """Index rows `rows[sources]` of the first list for which that is within bounds; padding if there is none."""
    columns = []
    for dim, size in enumerate(sizes):
        column = jnp.asarray(size, lists[0].dtype)
        for rows, entries in zip(reversed(lists), reversed(sources), strict=True):
            column = gather(rows[:, dim], entries, column)
        columns.append(column)
    return _keys.stack_columns(columns, sources[0].shape[0], lists[0].dtype)


def _sort_lists(
    lists: tuple[jax.Array, ...], space: Space, nse: int
) -> tuple[jax.Array, jax.Array, tuple[Placement, ...]]:
    """The union of one or two lists in any order in `nse` slots, its true length, and where their entries went."""
    sizes = [rows.shape[0] for rows in lists]
    words = zip(*(_keys.ravel(rows, space) for rows in lists), strict=True)
    sorted_keys, order = _keys.sort(tuple(map(jnp.concatenate, words)))
    starts, padding = _keys.starts_run(sorted_keys), _keys.is_padding(sorted_keys)
    slots = jnp.where(padding, NONE, count_before(starts) + starts.astype(jnp.int32) - 1)
    positions = jnp.split(scatter(sum(sizes), order, slots, fill=NONE), sizes[:-1])

    # The sort is stable: entries of one list in one slot stand side by side, in their original order.
    of_second = order >= sizes[0]
    own = (~of_second, of_second)[: len(lists)]
    entries = (order, order - sizes[0])
    first = tuple(mine & ~padding & (starts | ~_shifted(mine)) for mine in own)
    unique = jnp.all(functools.reduce(jnp.logical_or, first) | padding)

    def place_first(names: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(
            scatter(nse, jnp.where(is_first, slots, NONE), name, fill=NONE)
            for is_first, name in zip(first, names, strict=False)
        )

    in_slots = place_first(entries)
    indices = pick_rows(lists, in_slots, space.sizes)

    def by_entry() -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        return in_slots, tuple(map(iota_like, positions))

    def by_rank() -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        seconds = count_before(of_second)
        ranks = (iota_like(order) - seconds, seconds)
        orders = (
            scatter(size, jnp.where(mine, rank, NONE), entry, fill=NONE)
            for mine, rank, entry, size in zip(own, ranks, entries, sizes, strict=False)
        )
        return place_first(ranks), tuple(orders)

    sources, orders = if_all(unique, by_entry, by_rank)
    placements = tuple(
        Placement(slots_of, entries_of, unique, order_of)
        for slots_of, entries_of, order_of in zip(positions, sources, orders, strict=True)
    )
    return indices, jnp.sum(starts, dtype=jnp.int32), placements


def _shifted(flags: jax.Array) -> jax.Array:
    """Each flag's predecessor; false for the first."""
    return jnp.concatenate([jnp.zeros_like(flags[:1]), flags[:-1]])
