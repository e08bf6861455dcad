"""Entries move from shard to shard, by one all-to-all."""

from __future__ import annotations

from functools import partial
from typing import SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from jax_sparse_grad import _arguments, _keys, _values
from jax_sparse_grad._batching import take
from jax_sparse_grad._concrete import is_concrete
from jax_sparse_grad._keys import NONE
from jax_sparse_grad._types import RowStarts
from jax_sparse_grad.sharded._balance import as_row_starts, balanced_row_starts
from jax_sparse_grad.sharded._mesh import Layout, from_host, on_shards, read_all
from jax_sparse_grad.sharded._operand import RowSharded
from jax_sparse_grad.sharded._sum import check_rows
from jax_sparse_grad.sharded._validation import as_capacity, as_sharded, check_capacity, layout_of_all


def repartition(
    x: RowSharded, row_starts: RowStarts | None = None, *, capacity: SupportsIndex | None = None
) -> RowSharded:
    """Move the rows of a sharded matrix or tensor to the shards whose range they lie in, by one all-to-all.

    For operands that are partitioned differently, for patterns whose rows have left their shards, and to balance shards
    again.

    Args:
      x: a `RowSharded` whose entries may lie in any shard.
      row_starts: `[shards + 1]` integers, the new ranges, or the `row_starts` of another operand. By default they
        balance the entries of `x`, whose indices must then be concrete; `balanced_row_starts([x, y])` balances several
        operands together.
      capacity: the number of elements that each shard stores afterwards, static. By default what the fullest shard
        needs if all indices are concrete, otherwise that of `x`.

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
    are traced, the blocks of a shard can hold all of its entries for each of the others, `shards` times its capacity.
    If they are concrete, only the largest flow between two shards.

    Mirrors no operation of JAX: `jax.device_put` moves slots, not rows.
    """
    as_sharded("x", x)
    size = as_capacity(capacity)
    layout = layout_of_all({"x": x})
    indices, data = _arguments.as_integers("x.indices", x.indices), _arguments.as_numeric("x.data", x.data)
    if row_starts is None:
        if not is_concrete(indices):
            raise TypeError("`row_starts` must be given if `x` is traced; choose them outside of `jit`")
        row_starts = balanced_row_starts(x)
    starts = as_row_starts(row_starts, layout.shape[0], layout.shards).astype(indices.dtype)
    block = x.capacity
    if not is_concrete(starts, indices):
        size, starts = x.capacity if size is None else size, jnp.asarray(starts)
    else:
        starts = from_host(x.mesh, PartitionSpec(), starts)
        check_rows(layout, "x", None, indices)
        flows = read_all(_count_flows(layout, None, starts, indices)).reshape(layout.shards, layout.shards)
        counts = flows.sum(axis=0)
        size = max(1, int(counts.max())) if size is None else size
        check_capacity(size, counts)
        largest = int((flows - np.diag(flows.diagonal())).max())
        block = 1 << max(largest - 1, 0).bit_length()  # rounded up, or each flow would be compiled for
    rows, values, nnz = _move(layout, (size, block), starts, (indices, data))
    return RowSharded(values, rows, starts, nnz, layout, x.dense_shape)


@on_shards
def _count_flows(layout: Layout, _: None, row_starts: jax.Array, rows: jax.Array) -> jax.Array:
    """How many entries of this shard go to each shard."""
    counts = jnp.zeros(layout.shards + 1, jnp.int32)
    return counts.at[_destinations(layout, row_starts, rows)].add(1)[:-1]


def _destinations(layout: Layout, row_starts: jax.Array, rows: jax.Array) -> jax.Array:
    """For each index row the shard whose range it lies in, `[n]` int32; for padding the number of shards."""
    shard = jnp.searchsorted(row_starts[1:], rows[:, 0], side="right").astype(jnp.int32)
    return jnp.where(_keys.is_entry(rows, layout.shape), shard, layout.shards)


@on_shards
def _move(
    layout: Layout, static: tuple[int, int], row_starts: jax.Array, own: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The index rows and values of all shards that lie in the range of this one, and their true number.

    `static`: the capacity of a shard afterwards, and the most entries that it can send to any other.
    """
    (capacity, block), (rows, values) = static, own
    this, shards = lax.axis_index(layout.axis), layout.shards
    size, place = shards * block, partial(_place, layout.shape)

    # Sorted by destination, each entry that leaves goes into the block for it, behind those before it.
    destination = _destinations(layout, row_starts, rows)
    order = jnp.argsort(destination, stable=True).astype(jnp.int32)
    destination, rows = destination[order], rows[order]
    (values,) = _values.pick(np.int32(len(order)), [order], values)
    begin = jnp.searchsorted(destination, jnp.arange(shards + 1, dtype=jnp.int32)).astype(jnp.int32)
    before = jnp.arange(len(order), dtype=jnp.int32) - take(begin, destination)
    leaves = (destination != this) & (destination < shards) & (before < block)
    sent = place(size, jnp.int32(size), [jnp.where(leaves, destination * block + before, NONE)], [rows], [values])
    came_rows, came_values = (lax.all_to_all(each, layout.axis, 0, 0, tiled=True) for each in sent)

    # What came goes behind all that came from lower shards, whose rows were lower, and so does what stayed.
    came, stays = _keys.is_entry(came_rows, layout.shape), destination == this
    counts = jnp.sum(came.reshape(shards, block), axis=1, dtype=jnp.int32)
    counts = jnp.where(jnp.arange(shards) == this, jnp.sum(stays, dtype=jnp.int32), counts)
    begin, nnz = jnp.cumsum(counts) - counts, jnp.sum(counts, dtype=jnp.int32)
    position = jnp.arange(size, dtype=jnp.int32)
    slots = [
        jnp.where(came, take(begin, position // block) + position % block, NONE),
        jnp.where(stays, take(begin, this) + before, NONE),
    ]
    rows, values = place(capacity, nnz, slots, [came_rows, rows], [came_values, values])
    return rows, values, nnz[None]


def _place(
    shape: tuple[int, ...],
    nse: int,
    nnz: jax.Array,
    slots: list[jax.Array],
    rows: list[jax.Array],
    values: list[jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Index rows in their slots and padding in all others, and values, poisoned if `nnz` exceeds `nse`."""
    padding = np.asarray(shape, rows[0].dtype)[None]
    # Slots that nothing is placed in hold 0.
    distances = _values.place(nse, jnp.int32(nse), slots, [each - padding for each in rows], dtype=padding.dtype)
    return distances + padding, _values.place(nse, nnz, slots, values, dtype=values[0].dtype)
