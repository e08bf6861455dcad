"""Symbolic phase: the sorted union of key lists, and where each entry went.

    operands            in any order, duplicates and padding among them
       | _canonicalise  one stable sort; passed by at run time where both operands are sorted and unique already
    canonical lists     strictly ascending, padding last
       | _merge         two lists: each finds its place by a search in the other
    union               a balanced binary tree of merges: k operands cost log2(k) levels of the same total length

Every edge of the tree is a `Placement`: the linear map that carries the values of a child to the slots of its parent,
stored in both directions (`sources` for the map, `positions` for its transpose), so that either way is a gather.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_sparse_grad import _keys, _search
from jax_sparse_grad._keys import Keys
from jax_sparse_grad._primitives import gather, if_all, iota_like, scatter, vary_alike


class Placement(NamedTuple):
    """Where the n entries of a child stand among the m slots of their parent.

    positions: `[n]` int32, the slot of each entry; m or more if it has none (padding, overflow, dropped).
    sources: `[m]` int32, the entry in each slot; n if there is none.
    unique: scalar bool, whether no slot has two entries. If false, `sources` counts the entries in the order of
      `order`, and names the first of those that share a slot. None if known to be true.
    order: `[n]` int32, a permutation that puts the entries in the order of their slots (those without one may stand
      anywhere). None if `unique` is None.
    """

    positions: jax.Array
    sources: jax.Array
    unique: jax.Array | None = None
    order: jax.Array | None = None


class Union(NamedTuple):
    """A node of the tree: the union of one or two children, each an operand (None) or a union itself.

    nnz: scalar int32, the true number of distinct entries, which may exceed the number of slots.
    """

    nnz: jax.Array
    children: tuple[Union | None, ...]
    placements: tuple[Placement, ...]


def unite(operands: tuple[Keys, ...], nse: int, assume_canonical: bool) -> tuple[Keys, Union]:
    """The union of the keys of all operands in `nse` slots, sorted and padded, and the tree that leads to it."""
    half = (len(operands) + 1) // 2
    parts = [part for part in (operands[:half], operands[half:]) if part]
    subtrees = [_subtree(part, assume_canonical) for part in parts]
    lists = tuple(keys for keys, _ in subtrees)
    children = tuple(union for _, union in subtrees)

    def merge(lists: tuple[Keys, ...]) -> tuple[Keys, jax.Array, tuple[Placement, ...]]:
        return _merge(*lists, nse=nse) if len(lists) == 2 else _resize(*lists, nse=nse)

    if assume_canonical or None not in children:
        merged, nnz, placements = merge(lists)
        return merged, Union(nnz, children, placements)

    lists = vary_alike(lists)  # for the branches below to agree
    canonical = functools.reduce(jnp.logical_and, map(_keys.is_canonical, lists))

    def merge_at_once(lists: tuple[Keys, ...]) -> tuple[Keys, jax.Array, tuple[Placement, ...]]:
        merged, nnz, placements = merge(lists)
        in_order = tuple(
            placement._replace(unique=canonical, order=iota_like(placement.positions)) if child is None else placement
            for child, placement in zip(children, placements, strict=True)
        )
        return merged, nnz, in_order

    def canonicalise_first(lists: tuple[Keys, ...]) -> tuple[Keys, jax.Array, tuple[Placement, ...]]:
        pairs = [
            _canonicalise(keys) if child is None else (keys, None) for child, keys in zip(children, lists, strict=True)
        ]
        merged, nnz, placements = merge(tuple(keys for keys, _ in pairs))
        composed = tuple(
            placement if leaf is None else _compose(leaf, placement)
            for (_, leaf), placement in zip(pairs, placements, strict=True)
        )
        return merged, nnz, composed

    # The merge stands in both branches, so that input in order passes through no other step.
    merged, nnz, placements = if_all(canonical, merge_at_once, canonicalise_first, lists)
    return merged, Union(nnz, children, placements)


def _subtree(operands: tuple[Keys, ...], assume_canonical: bool) -> tuple[Keys, Union | None]:
    if len(operands) == 1:
        return operands[0], None
    return unite(operands, sum(keys[0].shape[0] for keys in operands), assume_canonical)


def trim(union: Union, nse: int) -> Union:
    """The same tree with `nse` slots at its root and exactly `nnz` at every inner node (all concrete)."""

    def trim_child(child: Union | None, placement: Placement) -> tuple[Union | None, Placement]:
        placement = placement._replace(sources=placement.sources[:nse])
        if child is None:
            return None, placement
        size = int(child.nnz)
        return trim(child, size), placement._replace(positions=placement.positions[:size])

    pairs = [trim_child(*pair) for pair in zip(union.children, union.placements, strict=True)]
    children, placements = zip(*pairs, strict=True)
    return Union(union.nnz, children, placements)


def restrict(union: Union, keep: jax.Array, nse: int) -> tuple[Union, jax.Array]:
    """The union without the slots that `keep` does not name, in `nse` slots, and the former slot of each of these."""
    former_nse = keep.shape[0]
    kept_through = jnp.cumsum(keep, dtype=jnp.int32)
    slots = jnp.where(keep, kept_through - 1, max(nse, former_nse))
    former = scatter(nse, slots, jnp.arange(former_nse, dtype=jnp.int32), fill=former_nse)
    placements = tuple(
        placement._replace(
            positions=gather(slots, placement.positions, fill=max(nse, former_nse)),
            sources=gather(placement.sources, former, fill=placement.positions.shape[0]),
        )
        for placement in union.placements
    )
    return union._replace(nnz=jnp.sum(keep, dtype=jnp.int32), placements=placements), former


def placement_of(positions: jax.Array, nse: int) -> Placement:
    """The placement of entries whose slots are known; `positions >= nse` have none."""
    size = positions.shape[0]
    entries = iota_like(positions)
    # Of several entries that ask for one slot a single one gets it: the others find a stranger there.
    sources = scatter(nse, positions, entries, fill=size)
    unique = jnp.all((positions >= nse) | (gather(sources, positions, fill=size) == entries))

    def already_unique() -> tuple[jax.Array, jax.Array]:
        return sources, entries

    def sort() -> tuple[jax.Array, jax.Array]:
        slots, order = lax.sort((positions, entries), num_keys=1)
        starts = jnp.concatenate([jnp.ones(min(1, size), bool), slots[1:] != slots[:-1]])
        first = scatter(nse, jnp.where(starts, slots, nse), entries, fill=size)
        return jnp.where(unique, sources, first), order

    sources, order = if_all(unique, already_unique, sort)
    return Placement(positions, sources, unique, order)


def _canonicalise(keys: Keys) -> tuple[Keys, Placement]:
    """The keys sorted and without duplicates, and the way from the operand to this list."""
    size = keys[0].shape[0]
    entries = iota_like(keys[0])
    *sorted_words, order = lax.sort((*keys, entries), num_keys=len(keys), is_stable=True)
    sorted_keys = tuple(sorted_words)
    starts = _keys.starts_run(sorted_keys)
    padding = _keys.is_padding(sorted_keys)
    slots = jnp.where(padding, size, jnp.cumsum(starts, dtype=jnp.int32) - 1)
    first = scatter(size, jnp.where(starts, slots, size), entries, fill=size)
    unique = jnp.all(starts | padding)
    canonical = tuple(gather(word, first, _keys.all_ones(word.dtype)) for word in sorted_keys)
    positions = scatter(size, order, slots, fill=size)
    return canonical, Placement(positions, jnp.where(unique, gather(order, first, size), first), unique, order)


def _compose(leaf: Placement, placement: Placement) -> Placement:
    """From an operand through its canonical list to the parent's slots."""
    return Placement(
        positions=gather(placement.positions, leaf.positions, fill=placement.sources.shape[0]),
        sources=gather(leaf.sources, placement.sources, fill=leaf.positions.shape[0]),
        unique=leaf.unique,
        order=leaf.order,
    )


def _merge(a: Keys, b: Keys, *, nse: int) -> tuple[Keys, jax.Array, tuple[Placement, ...]]:
    """The union of two canonical lists in `nse` slots, its true length, and where the entries of either went.

    An entry of a stands behind the entries of a and of b that are less than it; those that a and b share count once:
    position = rank in a + rank in b - shared entries before it. The same holds for b.
    """
    rank_in_b, a_shared = _search.search(b, a)
    rank_in_a, b_shared = _search.search(a, b)
    a_positions = jnp.where(_keys.is_padding(a), nse, _own_rank(a_shared) + rank_in_b)
    b_positions = jnp.where(_keys.is_padding(b), nse, _own_rank(b_shared) + rank_in_a)
    positions = jnp.concatenate([a_positions, b_positions])
    # Shared entries are written twice, with the same key.
    merged = tuple(
        scatter(nse, positions, jnp.concatenate(words), _keys.all_ones(words[0].dtype))
        for words in zip(a, b, strict=True)
    )
    nnz = _count_entries(a) + _count_entries(b) - jnp.sum(a_shared, dtype=jnp.int32)
    return merged, nnz, (_placement_of_unique(a_positions, nse), _placement_of_unique(b_positions, nse))


def _resize(keys: Keys, *, nse: int) -> tuple[Keys, jax.Array, tuple[Placement, ...]]:
    """One canonical list in `nse` slots: the union of a single operand."""
    ranks = jnp.arange(keys[0].shape[0], dtype=jnp.int32)
    positions = jnp.where(_keys.is_padding(keys), nse, ranks)
    resized = tuple(scatter(nse, positions, word, _keys.all_ones(word.dtype)) for word in keys)
    return resized, _count_entries(keys), (_placement_of_unique(positions, nse),)


def _own_rank(shared: jax.Array) -> jax.Array:
    """Each entry's place in its own list, less the shared entries before it."""
    before = jnp.cumsum(shared, dtype=jnp.int32) - shared.astype(jnp.int32)
    return jnp.arange(shared.shape[0], dtype=jnp.int32) - before


def _count_entries(keys: Keys) -> jax.Array:
    return jnp.sum(~_keys.is_padding(keys), dtype=jnp.int32)


def _placement_of_unique(positions: jax.Array, nse: int) -> Placement:
    entries = jnp.arange(positions.shape[0], dtype=jnp.int32)
    return Placement(positions, scatter(nse, positions, entries, fill=positions.shape[0]))
