"""Gather, scatter and cond in the one form that this package uses.

Gathers and scatters never leave the bounds of their arrays (a missing element is asked for by any index past the end),
so that `checkify.index_checks` raises no false alarm. Conditionals stay conditionals under `vmap`. Whatever has no
place is at `NONE`, which is past the end of every array, however much longer the array may become.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

T = TypeVar("T")

NONE = np.int32(2**31 - 1)  # no array is longer: see `_validation.MOST_ENTRIES`


def iota_like(array: jax.Array) -> jax.Array:
    """`0 ... n - 1` for an array of n rows, int32.

    Under `shard_map` it varies over the mesh as the array does, so that it may stand in for data in one branch of a
    conditional.
    """
    return vary_alike((jnp.arange(array.shape[0], dtype=jnp.int32), array))[0]


def vary_alike(tree: T) -> T:
    """The same arrays, all varying over the mesh if one of them does under `shard_map`; elsewhere unchanged.

    `shard_map` demands of both branches of a conditional, of a loop's carry and of a cotangent that they vary alike.
    It adds marks itself between the operands of one operation, but not there. `check_vma=False` would spare them, but
    is the caller's to give, and without marks JAX does not know which cotangents to sum over devices.
    """
    axes = frozenset().union(*map(_varying_axes, jax.tree.leaves(tree)))
    if not axes:
        return tree

    def vary(leaf: jax.Array) -> jax.Array:
        missing = tuple(axes - _varying_axes(leaf))
        if not missing:
            return leaf
        if hasattr(lax, "pcast"):
            return lax.pcast(leaf, missing, to="varying")
        return lax.pvary(leaf, missing)  # type: ignore[attr-defined]  # jax 0.8

    return jax.tree.map(vary, tree)


def _varying_axes(leaf: ArrayLike) -> frozenset[str]:
    """The mesh axes that an array varies over under `shard_map`; `vma` is their name up to jax 0.9."""
    kind = jax.typeof(leaf)
    manual = getattr(kind, "manual_axis_type", None)
    axes: frozenset[str] = kind.vma if manual is None else manual.varying
    return axes


def at(array: jax.Array, index: jax.Array) -> jax.Array:
    """Rows `array[index]`; any row where the index is out of bounds."""
    size = array.shape[0]
    if size == 0:
        return jnp.zeros(index.shape + array.shape[1:], array.dtype)
    return array.at[jnp.clip(index, 0, size - 1)].get(mode="promise_in_bounds", wrap_negative_indices=False)


def gather(array: jax.Array, index: jax.Array, fill: ArrayLike) -> jax.Array:
    """Rows `array[index]`; where `index >= len(array)`, `fill` (a scalar or one value per index)."""
    size = array.shape[0]
    fill = jnp.asarray(fill, array.dtype)
    per_row = index.shape + (1,) * (array.ndim - 1)
    if fill.ndim:
        fill = fill.reshape(per_row)
    if size == 0:
        return jnp.broadcast_to(vary_alike((fill, array, index))[0], index.shape + array.shape[1:])
    rows = array.at[jnp.minimum(index, size - 1)].get(mode="promise_in_bounds")
    return jnp.where((index < size).reshape(per_row), rows, fill)


def scatter(size: int, index: jax.Array, values: jax.Array, fill: ArrayLike) -> jax.Array:
    """An array of `size` rows holding `values` at `index` and `fill` elsewhere; `index >= size` is dropped."""
    spare = jnp.full((size + 1, *values.shape[1:]), fill, values.dtype)
    return spare.at[jnp.minimum(index, size)].set(values, mode="promise_in_bounds")[:size]


def join_rows(parts: Sequence[jax.Array]) -> jax.Array:
    """Arrays of one dtype, one after the other."""
    # XLA:CPU would end the process with narrower integers.
    return jnp.concatenate(list(map(in_bytes, parts))).astype(parts[0].dtype)


def split_rows(array: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
    """The inverse of `join_rows`: parts of the given sizes."""
    return jnp.split(array, list(itertools.accumulate(sizes))[:-1])


def negative_zero(dtype: np.dtype) -> np.ndarray:
    """The number that changes no number it is added to (for integers 0)."""
    return np.asarray(-np.zeros((), dtype), dtype)  # numpy negates 4-bit integers to 8 bits


def in_bytes(array: jax.Array) -> jax.Array:
    """Integers of less than 8 bits as integers of 8; anything else unchanged."""
    dtype = array.dtype
    if not jnp.issubdtype(dtype, jnp.integer) or jnp.iinfo(dtype).bits >= 8:
        return array
    return array.astype(jnp.int8 if jnp.issubdtype(dtype, jnp.signedinteger) else jnp.uint8)


@jax.custom_batching.custom_vmap
def largest_in_batches(number: jax.Array) -> jax.Array:
    """The scalar; under `vmap` the largest of the whole batch: a single answer for a loop or a branch."""
    return number


@largest_in_batches.def_vmap
def _largest_in_batches_vmap(_axis_size: int, _in_batched: list[bool], number: jax.Array) -> tuple[jax.Array, bool]:
    return largest_in_batches(jnp.max(number)), False


def in_all_batches(flag: jax.Array) -> jax.Array:
    """Whether the scalar is true; under `vmap`, in the whole batch."""
    return ~largest_in_batches(~flag)


def if_all(flag: jax.Array, fast: Callable[..., T], general: Callable[..., T], *operands: object) -> T:
    """`lax.cond(flag, fast, general)`, where `general` is right for either value of `flag`.

    Under `vmap`, a batched predicate would turn the `cond` into a `select`, which always runs both branches. Because
    `general` may stand in for `fast`, one predicate for the whole batch is enough: the `cond` survives, and only a
    batch with at least one general case pays for it.
    """
    return lax.cond(in_all_batches(flag), fast, general, *operands)


def map_batches(function: Callable[..., T], n_batch: int) -> Callable[..., T]:
    """`function` mapped over `n_batch` leading axes of all arrays in its arguments.

    As in BCOO, an array whose axis has length 1 is shared by the whole batch. If all arrays are shared, so are the
    results: the work is done once.
    """
    for _ in range(n_batch):
        function = _map_batch(function)
    return function


def _map_batch(function: Callable[..., T]) -> Callable[..., T]:
    def mapped(*arguments: object) -> T:
        leaves, treedef = jax.tree.flatten(arguments)

        def call(*leaves: jax.Array) -> T:
            return function(*jax.tree.unflatten(treedef, leaves))

        if any(leaf.shape[0] == 0 for leaf in leaves):  # JAX cannot gather over an empty batch
            one = jax.eval_shape(call, *(jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in leaves))
            return jax.tree.map(lambda leaf: jnp.zeros((0, *leaf.shape), leaf.dtype), one)
        shared = [leaf.shape[0] == 1 for leaf in leaves]
        leaves = [leaf.reshape(leaf.shape[1:]) if each else leaf for leaf, each in zip(leaves, shared, strict=True)]
        if all(shared):
            return jax.tree.map(lambda leaf: leaf[None], call(*leaves))
        return jax.vmap(call, [None if each else 0 for each in shared])(*leaves)

    return mapped


def furthest(
    holds: Callable[[jax.Array], jax.Array], low: jax.Array, high: jax.Array, rounds: int | jax.Array
) -> jax.Array:
    """The largest number in `low ... high` for which a condition holds that is true up to there, and at `low`.

    By halving steps: `rounds` of them are enough if `high - low < 2**rounds`. The condition is also evaluated out of
    these bounds, where its value does not count.
    """

    def halve(round_: jax.Array, position: jax.Array) -> jax.Array:
        proposed = position + (jnp.int32(1) << jnp.asarray(rounds - 1 - round_, jnp.int32))
        within = (proposed <= high) & (proposed > position)  # the sum may wrap round
        return jnp.where(within & holds(proposed), proposed, position)

    return lax.fori_loop(0, rounds, halve, low)
