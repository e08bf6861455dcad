"""Gather, scatter and cond in the one form this package uses.

Gathers and scatters never leave the bounds of their arrays (a missing element is asked for by any index past the end),
so `checkify.index_checks` raises no false alarm; conditionals stay conditionals under `vmap`.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

T = TypeVar("T")


def iota_like(array: jax.Array) -> jax.Array:
    """`0 ... n - 1` for an array of n rows, int32.

    Under `shard_map` it varies over the mesh as the array does, so that it may stand in for data in one branch of a
    conditional; the zeros that see to this are folded away by XLA.
    """
    zeros = jnp.zeros_like(array, jnp.int32, shape=array.shape[:1])
    return jnp.arange(array.shape[0], dtype=jnp.int32) + zeros


def vary_alike(tree: T) -> T:
    """The same arrays, all varying over the mesh if one of them does under `shard_map`; XLA folds the selects away."""
    zero = sum(jnp.zeros_like(leaf, jnp.int32, shape=()) for leaf in jax.tree.leaves(tree))
    return jax.tree.map(lambda leaf: jnp.where(zero == 0, leaf, leaf), tree)


def gather(array: jax.Array, index: jax.Array, fill: ArrayLike) -> jax.Array:
    """Rows `array[index]`; where `index >= len(array)`, `fill` (a scalar or one value per index)."""
    size = array.shape[0]
    fill = jnp.asarray(fill, array.dtype)
    per_row = index.shape + (1,) * (array.ndim - 1)
    if fill.ndim:
        fill = fill.reshape(per_row)
    if size == 0:
        return jnp.broadcast_to(fill, index.shape + array.shape[1:])
    rows = array.at[jnp.minimum(index, size - 1)].get(mode="promise_in_bounds")
    return jnp.where((index < size).reshape(per_row), rows, fill)


def scatter(size: int, index: jax.Array, values: jax.Array, fill: ArrayLike) -> jax.Array:
    """An array of `size` rows holding `values` at `index` and `fill` elsewhere; `index >= size` is dropped."""
    spare = jnp.full((size + 1, *values.shape[1:]), fill, values.dtype)
    return spare.at[jnp.minimum(index, size)].set(values, mode="promise_in_bounds")[:size]


@jax.custom_batching.custom_vmap
def _true_in_all_batches(flag: jax.Array) -> jax.Array:
    return flag


@_true_in_all_batches.def_vmap
def _true_in_all_batches_vmap(_axis_size: int, _in_batched: list[bool], flag: jax.Array) -> tuple[jax.Array, bool]:
    return _true_in_all_batches(jnp.all(flag)), False


def if_all(flag: jax.Array, fast: Callable[..., T], general: Callable[..., T], *operands: object) -> T:
    """`lax.cond(flag, fast, general)` where `general` is right for either value of `flag`.

    Under `vmap` a batched predicate would turn the `cond` into a `select` that always runs both branches. Since
    `general` may stand in for `fast`, one predicate for the whole batch is enough: the `cond` survives, and only a
    batch with at least one general case in it pays for it.
    """
    return lax.cond(_true_in_all_batches(flag), fast, general, *operands)
