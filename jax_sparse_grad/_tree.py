"""What the symbolic phase finds: the union of lists of index rows, and where each entry went.

A union is a balanced binary tree: k operands cost log2(k) levels of the same total length. Every edge of the tree is a
`Placement`: the linear map that carries the values of a child to the slots of its parent. It is stored in both
directions (`sources` for the map, `positions` for its transpose), so that either one is a gather.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jax_sparse_grad import _keys
from jax_sparse_grad._eager import concatenate, read, resize
from jax_sparse_grad._keys import Space
from jax_sparse_grad._primitives import NONE, gather, iota_like, scatter, split_rows
from jax_sparse_grad._seam import per_platform
from jax_sparse_grad._tile_merge import count_before
from jax_sparse_grad._types import Form, Order

T = TypeVar("T")

# Measured on two cores, for 2 to 20 operands of 300 to 10^5 sorted entries, with shared and with different patterns:
MOST_IN_TREE = 12  # operands: a tree of merges may be faster than one sort up to this number
SORTED_BELOW = 1536  # times k (k - 1): the entries of k operands that one sort takes as long for as the merges


class Placement(NamedTuple):
    """The places of the n entries of a child among the m slots of their parent.

    positions: `[n]` int32, the slot of each entry. `NONE` if it has none (padding, dropped); m or more if there is no
      room.
    sources: `[m]` int32, the entry in each slot; `NONE` if there is none.
    unique: scalar bool, whether no slot has two entries of one operand, for both operands of a node together. None if
      that is known: true if there is no `order`, else false.
    order: `[n]` int32, a permutation that sorts the entries by their slots (those without a slot may stand anywhere).
      None if `unique` is known to be true.

    Without duplicates, a source is the number of an entry. With them, it is a place in the sorted list of entries,
    where those that share a slot stand side by side: the place of the first, at which the sum of them all is made.

                        unique                          not unique
        entries         a   b   c                       a   b   c          c belongs to the slot of a
        positions       2   0   1                       1   0   1
        order           -                               1   0   2          sorted: b a c
        sources         1   2   0                       0   1              places in that list
        slots           b   c   a                       b  a+c

    The flag may be traced, so both are one shape.
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


class UnionTree(NamedTuple):
    """A node of the tree: the union of its children, each an operand (None), several operands, or a union.

    It has one child or two, or a few that were one list.

    nnz: scalar int32, the true number of distinct entries, which may exceed the number of slots.
    """

    nnz: jax.Array
    children: tuple[Child, ...]
    placements: tuple[Placement, ...]


Child = UnionTree | Joined | None
"""What a placement leads from: a union, several operands that are one list, or an operand."""

Then = Callable[[jax.Array, UnionTree, jax.Array | None], T]
"""What becomes of `(indices, union, total)`; `total` is None where the union must be used to add values."""


def join(operands: tuple[jax.Array, ...], order: Order) -> tuple[tuple[jax.Array, ...], tuple[int, ...] | None]:
    """The operands `[*batch, n, ndims]`; or one list of them all and their sizes, if sorting that is better.

    A merge costs a fixed number of kernels, and seconds of compilation, however short the lists. A sort takes time for
    each entry, whatever the number of operands. A small number of operands that are all sorted is always merged.
    """
    sizes = tuple(rows.shape[-2] for rows in operands)
    short = order is not Order.CANONICAL and sum(sizes) <= SORTED_BELOW * len(sizes) * (len(sizes) - 1)
    # XLA:CPU ends the process if integers of less than a byte are concatenated.
    alike = len({rows.shape[:-2] for rows in operands}) == 1 and jnp.iinfo(operands[0].dtype).bits >= 8
    if len(sizes) == 1 or not alike or not (short or len(sizes) > MOST_IN_TREE):
        return operands, None
    return (concatenate(operands, operands[0].ndim - 2),), sizes


def with_orders(union: UnionTree) -> UnionTree:
    """The same node with `unique` and `order` for every operand, also if their keys were sorted.

    A node whose children are unions themselves is left alone: those are always sorted.
    """

    def complete(placement: Placement) -> Placement:
        if placement.unique is not None or placement.order is not None:
            return placement
        return placement._replace(unique=jnp.ones_like(union.nnz, bool), order=iota_like(placement.positions))

    if all(isinstance(child, UnionTree) for child in union.children):
        return union
    return union._replace(placements=tuple(map(complete, union.placements)))


def without_tree(union: UnionTree) -> UnionTree:
    """The number of entries alone."""
    return UnionTree(union.nnz, (), ())


def placements_of(union: UnionTree) -> list[Placement]:
    """The edges of the whole tree."""
    inner = (placements_of(child) for child in union.children if isinstance(child, UnionTree))
    return [*union.placements, *itertools.chain.from_iterable(inner)]


def settle(union: UnionTree, is_unique: Callable[[jax.Array], bool | None]) -> UnionTree:
    """The same tree without `unique` where `is_unique(unique)` tells what it is, nor `order` where it is true."""

    def settle_placement(placement: Placement) -> Placement:
        known = None if placement.unique is None else is_unique(placement.unique)
        if known is None:
            return placement
        return placement._replace(unique=None, order=None if known else placement.order)

    children = tuple(settle(child, is_unique) if isinstance(child, UnionTree) else child for child in union.children)
    return UnionTree(union.nnz, children, tuple(map(settle_placement, union.placements)))


def separate(union: UnionTree) -> UnionTree:
    """The same union with a child for each of a few operands that are one list, if none has duplicates of its own.

    In one list, an entry that operands share is a duplicate. Apart, their values need no sorting. Everything is
    concrete.
    """
    (child, *others), (placement, *_) = union.children, union.placements
    if others or not isinstance(child, Joined) or len(child.sizes) > MOST_IN_TREE:
        return union
    together: Any = placement.positions
    *batches, nse = placement.sources.shape
    ends = list(itertools.accumulate(child.sizes))[:-1]
    placements = []
    positions: Any
    for positions in np.split(read(together), ends, len(batches)):
        slots = positions.reshape(math.prod(batches), positions.shape[-1])
        sources: Any = np.full((slots.shape[0], nse), NONE)
        batch, entry = np.nonzero(slots < nse)
        sources[batch, slots[batch, entry]] = entry
        if np.any(sources[batch, slots[batch, entry]] != entry):
            return union
        placements.append(Placement(positions, sources.reshape(*batches, nse)))
    if not isinstance(together, np.ndarray):  # on the device of the rest
        placements = jax.device_put(placements, together.sharding)
    return UnionTree(union.nnz, (None,) * len(placements), tuple(placements))


def skeleton(sizes: tuple[int, ...], ndim: int, form: Form) -> UnionTree:
    """The shapes of the union of operands with these numbers of entries, whichever platform makes it."""

    def of(dtype: Any, *shape: int) -> Any:
        return jax.ShapeDtypeStruct(shape, np.dtype(dtype))

    def node(sizes: tuple[int, ...], nse: int) -> UnionTree:
        children, placements = [], []
        for part in halves(sizes):
            inner = inner_nse(part, ndim)
            child = node(part, inner) if len(part) > 1 else None
            children.append(Joined(form.joined) if form.joined is not None else child)
            placements.append(Placement(of(np.int32, inner if child else sum(part)), of(np.int32, nse)))
        if form.order is not Order.CANONICAL and None in map(_union_or_none, children):
            placements = [placement._replace(unique=of(bool), order=placement.positions) for placement in placements]
        return UnionTree(of(np.int32), tuple(children), tuple(placements))

    return node(sizes, form.nse)


def _union_or_none(child: Child) -> UnionTree | None:
    return child if isinstance(child, UnionTree) else None


def halves(parts: tuple[T, ...]) -> list[tuple[T, ...]]:
    """What the children of a node are made of: half of the operands each, or all of a single one."""
    half = (len(parts) + 1) // 2
    return [part for part in (parts[:half], parts[half:]) if part]


def inner_nse(sizes: Sequence[int], ndim: int) -> int:
    """The number of slots of a node that is not the root: enough for all entries."""
    # A scalar tensor has no padding: the parent would read spare slots as entries.
    return sum(sizes) if ndim else min(sum(sizes), 1)


def entry_counts(union: UnionTree) -> tuple[tuple[int, ...], ...]:
    """The number of entries of each operand; for joined operands in one tuple."""
    counts: list[tuple[int, ...]] = []
    for child, placement in zip(union.children, union.placements, strict=True):
        if isinstance(child, UnionTree):
            counts += entry_counts(child)
        else:
            counts.append((placement.positions.shape[-1],) if child is None else child.sizes)
    return tuple(counts)


def slots_of(union: UnionTree, outer: jax.Array | None = None) -> list[jax.Array]:
    """For each operand the slot of each of its entries in the whole sum, `[nnz_k]`; `NONE` or more if there is none.

    `outer` are the slots of this node's own slots in the whole sum.
    """
    slots: list[jax.Array] = []
    for child, placement in zip(union.children, union.placements, strict=True):
        positions = placement.positions
        if outer is not None:
            positions = gather(outer, positions, fill=NONE)
        if isinstance(child, UnionTree):
            slots += slots_of(child, positions)
        else:
            sizes = (positions.shape[0],) if child is None else child.sizes
            slots += split_rows(positions, sizes)
    return slots


def most_entries(nnz: jax.Array) -> int:
    """The largest of the concrete numbers of entries in a batch."""
    return int(np.max(read(nnz), initial=0))


def fit(union: UnionTree, nse: int, counts: Iterator[tuple[int, ...]]) -> UnionTree:
    """The same tree with `nse` slots at its root, `nnz` at every inner node and `counts` entries at its leaves.

    Everything is concrete, and slots and entries that are cut off are empty. A batch of trees keeps the room that its
    largest needs.
    """
    axis = np.ndim(union.nnz)

    def fit_child(child: Child, placement: Placement) -> tuple[Child, Placement]:
        sizes = (most_entries(child.nnz),) if isinstance(child, UnionTree) else next(counts)
        fitted = placement._replace(
            positions=resize(placement.positions, sum(sizes), NONE, axis),
            sources=resize(placement.sources, nse, NONE, axis),
            order=None if placement.order is None else resize(placement.order, sum(sizes), NONE, axis),
        )
        if isinstance(child, UnionTree):
            return fit(child, sum(sizes), counts), fitted
        return None if len(sizes) == 1 else Joined(sizes), fitted

    pairs = [fit_child(*pair) for pair in zip(union.children, union.placements, strict=True)]
    children, placements = zip(*pairs, strict=True)
    return UnionTree(union.nnz, children, placements)


def truncate(union: UnionTree, nse: int) -> UnionTree:
    """The same node with its first `nse` slots only, which must hold all of its entries."""
    placements = tuple(placement._replace(sources=placement.sources[:nse]) for placement in union.placements)
    return union._replace(placements=placements)


def restrict(
    indices: jax.Array, union: UnionTree, keep: jax.Array, space: Space, nse: int
) -> tuple[jax.Array, UnionTree]:
    """The indices and the union of the slots that `keep` selects, in `nse` slots; all others are dropped."""
    former_nse = keep.shape[0]
    keep &= jnp.arange(former_nse, dtype=jnp.int32) < union.nnz
    slots = jnp.where(keep, _count_before(keep), NONE)
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


def pick_rows(lists: Sequence[jax.Array], sources: Sequence[jax.Array], sizes: Sequence[ArrayLike]) -> jax.Array:
    """Index rows `rows[sources]` of the first list for which that is within bounds; padding if there is none."""
    columns = []
    for dim, size in enumerate(sizes):
        column = jnp.asarray(size, lists[0].dtype)
        for rows, entries in zip(reversed(lists), reversed(sources), strict=True):
            column = gather(rows[:, dim], entries, column)
        columns.append(column)
    return _keys.stack_columns(columns, sources[0].shape[0], lists[0].dtype)


def resize_list(
    rows: jax.Array, nnz: jax.Array, space: Space, nse: int
) -> tuple[jax.Array, jax.Array, tuple[Placement, ...]]:
    """One canonical list in `nse` slots: the union of a single operand."""
    entries, slots = jnp.arange(rows.shape[0], dtype=jnp.int32), jnp.arange(nse, dtype=jnp.int32)
    positions = jnp.where((entries < nnz) & (entries < nse), entries, NONE)
    sources = jnp.where(slots < nnz, slots, NONE)
    return pick_rows([rows], [sources], space.sizes), nnz, (Placement(positions, sources),)


def _count_by_sum(flags: jax.Array) -> jax.Array:
    counts = flags.astype(jnp.int32)
    return jnp.cumsum(counts) - counts


_count_before = per_platform(cpu=count_before, otherwise=_count_by_sum)
