"""The dispatch of sharded sums, as `jax_sparse_grad._engine` is that of sums on one device.

Concrete operands are given as much room as the fullest shard needs; traced ones, room for all entries. No device waits
for another but to agree on that.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jax_sparse_grad import _numeric
from jax_sparse_grad._eager import call_concretely, is_concrete
from jax_sparse_grad._engine import Total, form_of, unite, unite_and_add
from jax_sparse_grad._keys import space_of
from jax_sparse_grad._numeric import add_values, poison_unless
from jax_sparse_grad._tree import UnionTree, placements_of, settle, truncate
from jax_sparse_grad._types import Arrays, Order
from jax_sparse_grad.sharded._guards import (
    all_in_all_shards,
    check_sum_fits,
    exact_capacity,
    is_sound,
    most_in_shard,
)
from jax_sparse_grad.sharded._mesh import Layout, cut, on_shards

T = TypeVar("T")


class ShardedPattern(NamedTuple):
    """A sum without values, shard by shard.

    indices: `[shards * capacity, ndims]`.
    union: where the entries of the operands went; all arrays are `[shards, ...]`.
    sound: `[shards]` bool, whether the operands were partitioned alike and all rows lie in their shard.
    """

    indices: jax.Array
    union: UnionTree
    sound: jax.Array


def add(
    layout: Layout, capacity: int | None, order: Order, row_starts: Arrays, indices: Arrays, values: Arrays
) -> Total:
    """The indices, values and true numbers of entries of a sum."""
    bound = most_in_shard(layout, indices)
    room = bound if capacity is None else capacity
    if not is_concrete(indices, row_starts):
        return _add(layout, room, order, row_starts, indices, values)
    if not is_concrete(values):
        pattern = plan(layout, capacity, order, row_starts, indices)
        rows, nnz = _as_sharded(layout, (pattern.indices, pattern.union.nnz))
        return Total(rows, add_planned(layout, pattern, values), nnz)

    def add_exactly() -> Total:
        total = _add(layout, room, order, row_starts, indices, values)
        if capacity is not None:
            check_sum_fits(layout, total.nnz, capacity, bound)
            return total
        rows, data = cut(layout, exact_capacity(layout, total.nnz), (total.indices, total.values))
        return Total(rows, data, total.nnz)

    return call_concretely(add_exactly)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _add(layout: Layout, capacity: int, order: Order, row_starts: Arrays, indices: Arrays, values: Arrays) -> Total:
    def add_shard(row_starts: Arrays, operands: tuple[Arrays, Arrays]) -> Total:
        indices, values = operands
        form, lists = form_of(capacity, order, indices)
        rows, total, nnz = unite_and_add(form, space_of(layout.shape, indices[0].dtype), lists, values)
        if order is not Order.CANONICAL:
            total = poison_unless(is_sound(layout, row_starts, indices), total)
        return Total(rows, total, nnz[None])

    return on_shards(layout, add_shard, row_starts, (indices, values))


def plan(layout: Layout, capacity: int | None, order: Order, row_starts: Arrays, indices: Arrays) -> ShardedPattern:
    """The pattern of a sum."""
    bound = most_in_shard(layout, indices)
    room = bound if capacity is None else capacity
    if not is_concrete(row_starts, indices):
        return _unite(layout, room, order, row_starts, indices)

    def plan_exactly() -> ShardedPattern:
        pattern = _unite(layout, room, order, row_starts, indices)
        # Without duplicates, a step with the plan needs no conditional.
        flags = [placement.unique for placement in placements_of(pattern.union) if placement.unique is not None]
        if all_in_all_shards(layout, flags):
            pattern = pattern._replace(union=settle(pattern.union, lambda _: True))
        if capacity is not None:
            check_sum_fits(layout, pattern.union.nnz, capacity, bound)
            return pattern
        return _cut(layout, exact_capacity(layout, pattern.union.nnz), pattern)

    return call_concretely(plan_exactly)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _unite(layout: Layout, capacity: int, order: Order, row_starts: Arrays, indices: Arrays) -> ShardedPattern:
    def unite_shard(row_starts: Arrays, indices: Arrays) -> ShardedPattern:
        form, operands = form_of(capacity, order, indices)
        rows, union = unite(form, space_of(layout.shape, indices[0].dtype), operands)
        sound = jnp.ones_like(union.nnz, bool)
        if order is not Order.CANONICAL:
            sound = is_sound(layout, row_starts, indices)
        union, sound = jax.tree.map(lambda leaf: leaf[None], (union, sound))
        return ShardedPattern(rows, union, sound)

    return on_shards(layout, unite_shard, row_starts, indices)


@partial(jax.jit, static_argnums=(0, 1))
def _cut(layout: Layout, capacity: int, pattern: ShardedPattern) -> ShardedPattern:
    """The same pattern with fewer slots in each shard, which must hold all of its entries."""
    union = jax.vmap(lambda union: truncate(union, capacity))(pattern.union)
    return pattern._replace(indices=cut(layout, capacity, pattern.indices), union=union)


@partial(jax.jit, static_argnums=0)
def add_planned(layout: Layout, pattern: ShardedPattern, values: Arrays) -> jax.Array:
    """The values of a sum whose pattern is known."""

    def add_shard(_: None, sharded: tuple[tuple[UnionTree, jax.Array], Arrays]) -> jax.Array:
        (union, sound), values = sharded
        union, sound = jax.tree.map(lambda leaf: leaf[0], (union, sound))
        return poison_unless(sound, add_values(union, values))

    return on_shards(layout, add_shard, None, ((pattern.union, pattern.sound), values))


@partial(jax.jit, static_argnums=0)
def _as_sharded(layout: Layout, tree: T) -> T:
    """The same arrays, sharded. Constants under `jit` would otherwise be replicated."""
    return on_shards(layout, lambda _, tree: tree, None, tree)


@partial(jax.jit, static_argnums=0)
def add_to_dense(layout: Layout, dense: jax.Array, indices: Arrays, values: Arrays) -> jax.Array:
    """A replicated dense array with the values of sharded operands added to it."""

    def add_shard(dense: jax.Array, operands: tuple[Arrays, Arrays]) -> jax.Array:
        # Not added to `dense` itself, which all devices hold but which must count once.
        own = _numeric.scatter_add(jnp.zeros_like(dense), *operands, layout.shape)
        return dense + lax.psum(own, layout.axis)

    return on_shards(layout, add_shard, dense, (indices, values), replicated_result=True)
