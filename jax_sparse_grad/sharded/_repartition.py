"""Entries move from shard to shard: one all-to-all, as seen from one of the devices.

    entries       of this shard, in any order
       | _depart      those that leave go into a block of slots for each shard, those that stay do not
    blocks  <-- all_to_all -->  blocks of all other shards
       | _arrive      what came, block after block, with what stayed in its place among the blocks
    entries       of the new shard; sorted if they were, because lower shards held lower rows

Every arrow is a `Placement`, so that values go both ways by gathers: the backward pass is the same exchange, reversed.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_sparse_grad import _keys, _validation
from jax_sparse_grad._eager import bucket, call_concretely, is_concrete
from jax_sparse_grad._engine import Total
from jax_sparse_grad._numeric import add_values
from jax_sparse_grad._primitives import NONE, at, gather, scatter
from jax_sparse_grad._tree import Placement, UnionTree, pick_rows
from jax_sparse_grad._types import RowStarts
from jax_sparse_grad.sharded._balance import as_row_starts, balanced_row_starts
from jax_sparse_grad.sharded._guards import check_capacity, check_rows
from jax_sparse_grad.sharded._mesh import Layout, from_all_shards, on_shards, replicate
from jax_sparse_grad.sharded._operand import RowSharded
from jax_sparse_grad.sharded._validation import as_capacity, layout_of_all


def repartition(
    x: RowSharded, row_starts: RowStarts | None = None, *, capacity: SupportsIndex | None = None
) -> RowSharded:
    """Move the rows of a sharded matrix or tensor to the shards whose range they lie in, by one all-to-all.

    For operands that are partitioned differently, for patterns whose rows have left their shards, and to balance shards
    again.

    Args:
      x: a `RowSharded` whose entries may lie in any shard.
      row_starts: `[shards + 1]` integers, the new ranges, or the `row_starts` of another operand. By default they
        balance the entries of `x`, which must then be concrete; `balanced_row_starts([x, y])` balances several operands
        together.
      capacity: the number of elements that each shard has room for afterwards, static. By default what the fullest
        shard needs if all indices are concrete, otherwise that of `x`.

    Returns:
      A `RowSharded` with all entries of `x`, duplicates kept, padding last. Each shard is sorted if those of `x` were.

    Raises:
      TypeError: an argument has the wrong type; `row_starts` is not given although indices are traced.
      ValueError: `row_starts` does not ascend from 0 to the number of rows; a shard needs more than `capacity` (the
        error says which shard); indices lie outside the shape. Under `jit` nothing is raised, not even by `checkify`:
        indices outside the shape are left out, and a shard that overflows is poisoned.

    Example:
      >>> import jax, numpy as np, jax_sparse_grad as jsg
      >>> from jax.experimental.sparse import BCOO
      >>> mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> even = [32 * k // jax.device_count() for k in range(jax.device_count() + 1)]
      >>> skewed = BCOO.fromdense(np.tril(np.ones((32, 32), np.float32)))
      >>> x = jsg.sharded.partition(skewed, mesh, "rows", row_starts=even)
      >>> y = jsg.sharded.repartition(x)
      >>> int(y.nnz.max()) <= int(x.nnz.max()), bool((x.matrix.todense() == y.matrix.todense()).all())
      (True, True)

    Works under all of JAX's transformations; the gradient with respect to `x.data` takes the same way back. If indices
    are traced, a shard makes room to send everything it has to any single other shard, `shards` times its capacity. If
    they are concrete, it makes room only for the largest flow.

    Mirrors no operation of JAX: `jax.device_put` moves slots, not rows.
    """
    if not isinstance(x, RowSharded):
        raise TypeError(f"`x` must be a `RowSharded`, got {_validation.kind_of(x)}; `partition` makes one")
    room = as_capacity(capacity)
    layout = layout_of_all({"x": x})
    if row_starts is None:
        if not is_concrete(x.indices, x.row_starts, x.nnz):
            raise TypeError("`row_starts` must be given if `x` is traced; choose them outside of `jit`")
        row_starts = balanced_row_starts(dataclasses.replace(x, data=x.indices))
    indices = _validation.as_integers("x.indices", x.indices)
    data = _validation.as_numeric("x.data", x.data)
    if is_concrete(row_starts) or isinstance(row_starts, RowSharded):
        row_starts = as_row_starts(row_starts, layout.shape[0], layout.shards).astype(indices.dtype)
        concrete = is_concrete(indices)
        starts = replicate(x.mesh, row_starts) if concrete else jnp.asarray(row_starts)
    else:
        concrete = False
        starts = _validation.as_integers("row_starts", row_starts).astype(indices.dtype)
        if starts.shape != (layout.shards + 1,):
            raise ValueError(f"`row_starts` must have shape {(layout.shards + 1,)}; got {starts.shape}")
    if concrete:
        flows = call_concretely(lambda: _checked_flows(layout, starts, indices))
        room = max(1, int(flows.sum(axis=0).max())) if room is None else room
        check_capacity(room, flows.sum(axis=0))
        block = bucket(int((flows - np.diag(flows.diagonal())).max()))  # rounded up, or each flow would be compiled for
    else:
        room = x.capacity if room is None else room
        block = x.capacity

    def move() -> Total:
        return _move(Route(layout, room, block), starts, indices, data)

    moved = call_concretely(move) if concrete and is_concrete(data) else move()
    return RowSharded(moved.values, moved.indices, starts, moved.nnz, layout, x.dense_shape)


def _checked_flows(layout: Layout, row_starts: jax.Array, indices: jax.Array) -> np.ndarray:
    """How many entries go from which shard (row) to which (column), on condition that all lie in the shape."""
    check_rows(layout, "x", None, indices)
    return np.asarray(_flows(layout, row_starts, indices))


@partial(jax.jit, static_argnums=0)
def _flows(layout: Layout, row_starts: jax.Array, indices: jax.Array) -> jax.Array:
    def count(row_starts: jax.Array, rows: jax.Array) -> jax.Array:
        counts = jnp.zeros(layout.shards + 1, jnp.int32)
        counts = counts.at[destinations(row_starts, rows, layout.shape)].add(1)
        return from_all_shards(layout, counts[:-1])

    return on_shards(layout, count, row_starts, indices, replicated_result=True)


@partial(jax.jit, static_argnums=0)
def _move(route: Route, row_starts: jax.Array, indices: jax.Array, values: jax.Array) -> Total:
    def move(row_starts: jax.Array, shard: tuple[jax.Array, jax.Array]) -> Total:
        rows, moved, nnz = exchange(route, row_starts, *shard)
        return Total(rows, moved, nnz[None])

    return on_shards(route.layout, move, row_starts, (indices, values))


class Route(NamedTuple):
    """What is static in an exchange.

    layout: of the operand.
    capacity: the number of elements that a shard has room for afterwards.
    block: the number of entries that a shard has room to send to any single other shard.
    """

    layout: Layout
    capacity: int
    block: int


def destinations(row_starts: jax.Array, indices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """For each index row the shard whose range it lies in, `[n]` int32; for padding the number of shards."""
    shards = row_starts.shape[0] - 1
    shard = jnp.searchsorted(row_starts[1:], indices[:, 0], side="right").astype(jnp.int32)
    return jnp.where(_keys.is_entry(indices, shape), shard, shards)


def exchange(route: Route, row_starts: jax.Array, indices: jax.Array, values: jax.Array) -> Total:
    """The index rows and values, from all shards, that lie in this shard's range of rows, and their true number."""
    axis, shape = route.layout.axis, route.layout.shape
    own = lax.axis_index(axis)
    departure = _depart(route, own, destinations(row_starts, indices, shape))

    def send(blocks: jax.Array) -> jax.Array:
        return lax.all_to_all(blocks, axis, split_axis=0, concat_axis=0, tiled=True)

    leaving = departure.placement
    received = send(pick_rows([indices], [leaving.sources], shape))
    received_values = send(add_values(UnionTree(departure.leaving, (None,), (leaving,)), (values,)))
    union = _arrive(route, own, departure, received)
    sources = [placement.sources for placement in union.placements]
    moved = pick_rows([received, indices], sources, shape)
    return Total(moved, add_values(union, (received_values, values)), union.nnz)


class _Departure(NamedTuple):
    """Where entries go: `placement` puts those that leave into the slots of the blocks.

    order: `[n]`, the entries sorted by shard. Those that stay are `staying` entries from `first_staying` on.
    leaving: the number of entries that leave.
    """

    placement: Placement
    order: jax.Array
    first_staying: jax.Array
    staying: jax.Array
    leaving: jax.Array


def _depart(route: Route, own: jax.Array, destination: jax.Array) -> _Departure:
    """Put the entries that leave into blocks, one for each shard; `destination` is `destinations(...)`."""
    shards, block, size = route.layout.shards, route.block, destination.shape[0]

    # 1. Sort by destination. Then entries `begin[s] ... begin[s + 1] - 1` of `order` are those for shard s, and entry k
    #    of `order` is number `within[k]` of those with its destination. Padding, for no shard, comes last.
    (sorted_destination,), order = _keys.sort((destination.astype(jnp.uint32),))
    to = sorted_destination.astype(jnp.int32)
    begin = jnp.searchsorted(to, jnp.arange(shards + 1, dtype=jnp.int32)).astype(jnp.int32)
    within = jnp.arange(size, dtype=jnp.int32) - at(begin, to)

    # 2. Give each entry that leaves, and finds room, its slot in the block of its destination: `positions`.
    leaves = (to != own) & (to < shards) & (within < block)
    positions = scatter(size, order, jnp.where(leaves, to * block + within, NONE), fill=NONE)

    # 3. The same from the side of the slots: `sources`. The block for the shard itself stays empty.
    slot = jnp.arange(shards * block, dtype=jnp.int32)
    shard, place = slot // block, slot % block
    filled = (place < at(begin, shard + 1) - at(begin, shard)) & (shard != own)
    sources = jnp.where(filled, gather(order, at(begin, shard) + place, fill=NONE), NONE)

    # 4. What stays is the part of `order` for this shard.
    staying = at(begin, own + 1) - at(begin, own)
    return _Departure(Placement(positions, sources), order, at(begin, own), staying, begin[-1] - staying)


def _arrive(route: Route, own: jax.Array, departure: _Departure, received: jax.Array) -> UnionTree:
    """The union of the received blocks and of the shard's own entries, in the order of the shards they come from."""
    shards, block, size = route.layout.shards, route.block, departure.order.shape[0]

    # 1. Count what comes from each shard. Then the entries from shard s are to fill the slots from `begin[s]` on.
    came = _keys.is_entry(received, route.layout.shape).reshape(shards, block)
    counts = jnp.sum(came, axis=1, dtype=jnp.int32)
    counts = jnp.where(jnp.arange(shards) == own, departure.staying, counts)
    end = jnp.cumsum(counts)
    begin, nnz = end - counts, end[-1]

    # 2. For each slot, from which shard its entry comes, and where it stands in what that shard sent: two `sources`.
    slot = jnp.arange(route.capacity, dtype=jnp.int32)
    origin = jnp.searchsorted(end, slot, side="right").astype(jnp.int32)
    place = slot - at(begin, origin)
    stayed, filled = origin == own, slot < nnz
    from_blocks = jnp.where(filled & ~stayed, origin * block + place, NONE)
    own_entry = gather(departure.order, departure.first_staying + place, fill=NONE)
    from_own = jnp.where(filled & stayed, own_entry, NONE)

    # 3. For each received entry its slot: `positions` of the blocks.
    received_slot = jnp.arange(shards * block, dtype=jnp.int32)
    sender, sent_place = received_slot // block, received_slot % block
    blocks_to = jnp.where(came.reshape(-1), at(begin, sender) + sent_place, NONE)

    # 4. For each own entry that stayed its slot: `positions` of the shard itself, first in sorted order.
    staying_place = jnp.arange(size, dtype=jnp.int32) - departure.first_staying
    stays = (staying_place >= 0) & (staying_place < departure.staying)
    sorted_to = jnp.where(stays, at(begin, own) + staying_place, NONE)
    own_to = scatter(size, departure.order, sorted_to, fill=NONE)

    placements = Placement(blocks_to, from_blocks), Placement(own_to, from_own)
    return UnionTree(nnz, (None, None), placements)
