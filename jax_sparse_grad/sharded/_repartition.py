"""Entries move from shard to shard: one all-to-all, as seen from one of the devices.

    entries       of this shard, in any order
       |              those that leave go into a block of slots for each shard, those that stay do not
    blocks  <-- all_to_all -->  blocks of all other shards
       |              what came, block after block, with what stayed in its place among the blocks
    entries       of the new shard; sorted if they were, because lower shards held lower rows

Values are placed at slots, as in a sum, so the backward pass is the same exchange, reversed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_sparse_grad import _arguments, _keys, _values
from jax_sparse_grad._batching import at
from jax_sparse_grad._concrete import call_concretely, is_concrete
from jax_sparse_grad._keys import NONE
from jax_sparse_grad._types import RowStarts
from jax_sparse_grad.sharded._balance import as_row_starts, balanced_row_starts
from jax_sparse_grad.sharded._engine import Total
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
        raise TypeError(f"`x` must be a `RowSharded`, got {_arguments.kind_of(x)}; `partition` makes one")
    room = as_capacity(capacity)
    layout = layout_of_all({"x": x})
    if row_starts is None:
        if not is_concrete(x.indices, x.row_starts, x.nnz):
            raise TypeError("`row_starts` must be given if `x` is traced; choose them outside of `jit`")
        row_starts = balanced_row_starts(dataclasses.replace(x, data=x.indices))
    indices = _arguments.as_integers("x.indices", x.indices)
    data = _arguments.as_numeric("x.data", x.data)
    if is_concrete(row_starts) or isinstance(row_starts, RowSharded):
        row_starts = as_row_starts(row_starts, layout.shape[0], layout.shards).astype(indices.dtype)
        concrete = is_concrete(indices)
        starts = replicate(x.mesh, row_starts) if concrete else jnp.asarray(row_starts)
    else:
        concrete = False
        starts = _arguments.as_integers("row_starts", row_starts).astype(indices.dtype)
        if starts.shape != (layout.shards + 1,):
            raise ValueError(f"`row_starts` must have shape {(layout.shards + 1,)}; got {starts.shape}")
    if concrete:
        flows = call_concretely(lambda: _checked_flows(layout, starts, indices))
        room = max(1, int(flows.sum(axis=0).max())) if room is None else room
        check_capacity(room, flows.sum(axis=0))
        largest = int((flows - np.diag(flows.diagonal())).max())
        block = 1 << max(largest - 1, 0).bit_length()  # rounded up, or each flow would be compiled for
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
    (shape, _, axis), shards, block = route.layout, route.layout.shards, route.block
    own = lax.axis_index(axis)

    # 1. Each entry that leaves goes into the block for its destination, behind those before it.
    destination = destinations(row_starts, indices, shape)
    before = _count_before(destination, shards)
    leaves = (destination != own) & (destination < shards) & (before < block)
    to_block = jnp.where(leaves, destination * block + before, NONE)
    size = shards * block
    rows = _scatter_rows(size, [to_block], [indices], shape)
    blocks = _values.place(size, jnp.full_like(own, size), [to_block], [values], dtype=values.dtype)
    rows, blocks = (lax.all_to_all(each, axis, split_axis=0, concat_axis=0, tiled=True) for each in (rows, blocks))

    # 2. What came goes behind all that came from lower shards, and so does what stayed.
    came = _keys.is_entry(rows, shape)
    stays = destination == own
    counts = jnp.sum(came.reshape(shards, block), axis=1, dtype=jnp.int32)
    counts = jnp.where(jnp.arange(shards) == own, jnp.sum(stays, dtype=jnp.int32), counts)
    begin = jnp.cumsum(counts) - counts
    position = jnp.arange(size, dtype=jnp.int32)
    slots = (
        jnp.where(came, at(begin, position // block) + position % block, NONE),
        jnp.where(stays, at(begin, own) + before, NONE),
    )
    nnz = jnp.sum(counts, dtype=jnp.int32)
    moved = _values.place(route.capacity, nnz, slots, [blocks, values], dtype=values.dtype)
    return Total(_scatter_rows(route.capacity, slots, [rows, indices], shape), moved, nnz)


def _count_before(numbers: jax.Array, most: int) -> jax.Array:
    """How many equal numbers, all from 0 to `most`, stand before each."""
    order = jnp.argsort(numbers, stable=True)
    in_order = numbers[order]
    begin = jnp.searchsorted(in_order, jnp.arange(most + 1, dtype=jnp.int32)).astype(jnp.int32)
    counted = jnp.arange(numbers.shape[0], dtype=jnp.int32) - at(begin, in_order)
    return jnp.zeros_like(numbers).at[order].set(counted, unique_indices=True)


def _scatter_rows(
    size: int, slots: Sequence[jax.Array], lists: Sequence[jax.Array], shape: tuple[int, ...]
) -> jax.Array:
    """Index rows in their slots, and padding in all others."""
    rows = jnp.broadcast_to(np.asarray(shape, lists[0].dtype), (size, len(shape)))
    for slot, each in zip(slots, lists, strict=True):
        rows = rows.at[slot].set(each, mode="drop", wrap_negative_indices=False)
    return rows
