"""Entries move from shard to shard, by one all-to-all."""

from __future__ import annotations

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
from jax_sparse_grad.sharded._operand import RowSharded, as_capacity, as_sharded, check_capacity, common_layout
from jax_sparse_grad.sharded._sum import check_rows


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
        error says which shard); indices lie outside the shape. Under `jit` nothing is raised: indices outside the shape
        are left out, and a shard that overflows is poisoned.

    Example:
      >>> import jax, jax_sparse_grad as jsg
      >>> from scipy.sparse import eye_array
      >>> x = jsg.sharded.partition(eye_array(16), jax.sharding.Mesh(jax.devices(), "rows"), "rows")
      >>> all_in_the_last = [0] * x.shards + [16]
      >>> jsg.sharded.repartition(x, all_in_the_last).nnz.tolist()[-1]
      16

    Works under all of JAX's transformations; the gradient with respect to `x.data` takes the same way back. In between,
    each shard holds a block for each of the others, with as many elements as the largest flow between two shards; if
    indices are traced, with all its capacity. (`jax.device_put` moves slots, not rows.)
    """
    as_sharded("x", x)
    size = as_capacity(capacity)
    layout = common_layout({"x": x})
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
    return _count(layout, _destinations(layout, row_starts, rows))[:-1]


def _destinations(layout: Layout, row_starts: jax.Array, rows: jax.Array) -> jax.Array:
    """For each index row the shard whose range it lies in, `[n]` int32; for padding the number of shards."""
    shard = jnp.searchsorted(row_starts[1:], rows[:, 0], side="right").astype(jnp.int32)
    return jnp.where(_keys.is_entry(rows, layout.shape), shard, layout.shards)


def _count(layout: Layout, shard: jax.Array) -> jax.Array:
    """How often each shard occurs, and at last how often none does."""
    return jnp.zeros(layout.shards + 1, jnp.int32).at[shard].add(1)


@on_shards
def _move(
    layout: Layout, static: tuple[int, int], row_starts: jax.Array, sharded: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The index rows and values of all shards that lie in the range of this one, and their true number.

    `static`: the capacity of a shard afterwards, and the most entries that it can send to any other.
    """
    (capacity, block), (rows, values) = static, sharded
    this, shards = lax.axis_index(layout.axis), layout.shards
    padding = np.asarray(layout.shape, rows.dtype)[None]

    def place(
        nse: int, nnz: jax.Array, slots: list[jax.Array], rows: list[jax.Array], values: list[jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        """Index rows in their slots and padding in all others, and values, poisoned if `nnz` exceeds `nse`."""
        # Slots that nothing is placed in hold 0.
        distances = _values.place(nse, jnp.int32(nse), slots, [each - padding for each in rows], dtype=rows[0].dtype)
        return distances + padding, _values.place(nse, nnz, slots, values, dtype=values[0].dtype)

    # An entry that leaves goes into the block for its shard, behind those before it.
    destination, size = _destinations(layout, row_starts, rows), shards * block
    counts = _count(layout, destination)
    rank = jnp.argsort(jnp.argsort(destination, stable=True)).astype(jnp.int32)
    before = rank - take(jnp.cumsum(counts) - counts, destination)
    leaves, stays = (destination != this) & (destination < shards), destination == this
    slots = [jnp.where(leaves, destination * block + before, NONE)]
    sent = place(size, jnp.int32(size), slots, [rows], [values])
    came_rows, came_values = (lax.all_to_all(each, layout.axis, 0, 0, tiled=True) for each in sent)

    # What came goes behind all that came from lower shards, whose rows were lower, and so does what stayed.
    position = jnp.arange(size, dtype=jnp.int32)
    source = jnp.where(_keys.is_entry(came_rows, layout.shape), position // block, shards)
    counts = _count(layout, source)[:-1].at[this].set(counts[this])
    begin, nnz = jnp.cumsum(counts) - counts, jnp.sum(counts)
    slots = [
        jnp.where(source < shards, take(begin, source) + position % block, NONE),
        jnp.where(stays, take(begin, this) + before, NONE),
    ]
    rows, values = place(capacity, nnz, slots, [came_rows, rows], [came_values, values])
    return rows, values, nnz[None]
