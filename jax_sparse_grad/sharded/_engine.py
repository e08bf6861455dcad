"""The dispatch of sharded sums, as `jax_sparse_grad._sum` is that of sums on one device.

Concrete operands are given as much room as the fullest shard needs; traced ones, room for all entries. No device waits
for another but to agree on that.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_sparse_grad import _union, _values
from jax_sparse_grad._batching import vary_alike
from jax_sparse_grad._concrete import call_concretely, is_concrete
from jax_sparse_grad._types import Arrays
from jax_sparse_grad._union import Union
from jax_sparse_grad.sharded._guards import check_sum_fits, exact_capacity, is_sound, most_in_shard
from jax_sparse_grad.sharded._mesh import Layout, cut, on_shards

T = TypeVar("T")


class Total(NamedTuple):
    """A sum: its index rows, its values, and the true numbers of entries of its shards."""

    indices: jax.Array
    values: jax.Array
    nnz: jax.Array


class ShardedPattern(NamedTuple):
    """A sum without values, shard by shard.

    union: indices `[shards * capacity, ndims]`, slots `[shards * capacity_k]`, nnz `[shards]`.
    sound: `[shards]` bool, whether the operands were partitioned alike and all rows lie in their shard.
    """

    union: Union
    sound: jax.Array


def add(
    layout: Layout,
    capacity: int | None,
    canonical: bool,
    row_starts: Arrays,
    indices: Arrays,
    values: Arrays,
    dtype: np.dtype,
) -> Total:
    """The indices, values and true numbers of entries of a sum."""
    pattern = plan(layout, capacity, canonical, row_starts, indices)
    if is_concrete(row_starts, indices) and not is_concrete(values):
        pattern = _as_sharded(layout, pattern)
    return Total(pattern.union.indices, add_planned(layout, pattern, values, dtype), pattern.union.nnz)


def plan(layout: Layout, capacity: int | None, canonical: bool, row_starts: Arrays, indices: Arrays) -> ShardedPattern:
    """The pattern of a sum."""
    bound = most_in_shard(layout, indices)
    room = bound if capacity is None else capacity
    if not is_concrete(row_starts, indices):
        return _find_union(layout, room, canonical, row_starts, indices)

    def plan_exactly() -> ShardedPattern:
        pattern = _find_union(layout, room, canonical, row_starts, indices)
        union = pattern.union
        if capacity is not None:
            check_sum_fits(layout, union.nnz, capacity, bound)
            return pattern
        rows = cut(layout, exact_capacity(layout, union.nnz), union.indices)
        return pattern._replace(union=union._replace(indices=rows))

    return call_concretely(plan_exactly)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _find_union(layout: Layout, capacity: int, canonical: bool, row_starts: Arrays, indices: Arrays) -> ShardedPattern:
    def find(row_starts: Arrays, indices: Arrays) -> ShardedPattern:
        union = _union.find_union(layout.shape, capacity, indices, canonical=canonical)
        sound = vary_alike((jnp.ones((), bool), union.nnz))[0] if canonical else is_sound(layout, row_starts, indices)
        return ShardedPattern(union._replace(nnz=union.nnz[None]), sound[None])

    return on_shards(layout, find, row_starts, indices)


@partial(jax.jit, static_argnums=(0, 3))
def add_planned(layout: Layout, pattern: ShardedPattern, values: Arrays, dtype: np.dtype) -> jax.Array:
    """The values of a sum whose pattern is known."""

    def add_shard(_: None, sharded: tuple[ShardedPattern, Arrays]) -> jax.Array:
        (union, sound), values = sharded
        nse = union.indices.shape[0]
        # A shard that is not sound is poisoned as one that has overflowed.
        nnz = jnp.where(sound[0], union.nnz[0], np.int32(nse + 1))
        return _values.place(nse, nnz, union.slots, values, dtype=dtype)

    return on_shards(layout, add_shard, None, (pattern, values))


@partial(jax.jit, static_argnums=0)
def _as_sharded(layout: Layout, tree: T) -> T:
    """The same arrays, sharded. Constants under `jit` would otherwise be replicated."""
    return on_shards(layout, lambda _, tree: tree, None, tree)


@partial(jax.jit, static_argnums=(0, 4))
def add_to_dense(layout: Layout, dense: Arrays, indices: Arrays, values: Arrays, dtype: np.dtype) -> jax.Array:
    """The sum of replicated dense arrays and sharded operands, replicated."""

    def add_shard(dense: Arrays, operands: tuple[Arrays, Arrays]) -> jax.Array:
        # Not added to `dense` itself, which all devices hold but which must count once.
        whole = sum((each.astype(dtype) for each in dense[1:]), dense[0].astype(dtype))
        own = _values.place_onto([jnp.zeros_like(whole)], *operands, sizes=layout.shape, dtype=dtype)
        return whole + lax.psum(own, layout.axis)

    return on_shards(layout, add_shard, dense, (indices, values), replicated_result=True)
