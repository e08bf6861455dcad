"""What code under `vmap` and `shard_map` needs, and the meaning of BCOO's batch dimensions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from jax_sparse_grad._concrete import reshape

T = TypeVar("T")


def pvary_alike(tree: T) -> T:
    """The same arrays, all marked as varying over the mesh axes that any of them varies over.

    `shard_map` requires that both branches of a conditional, a loop's carry in and out, and a cotangent and its primal
    vary over the same axes. Only between the operands of one operation does it add marks itself. (The caller may turn
    the requirement off, by `check_vma=False`; but then JAX does not know which cotangents to sum over devices.)
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


def _varying_axes(leaf: Any) -> frozenset[str]:
    """The mesh axes that an array, or its type, varies over under `shard_map`; `vma` is their name up to jax 0.9."""
    kind: Any = leaf if hasattr(leaf, "to_tangent_aval") else jax.typeof(leaf)
    manual = getattr(kind, "manual_axis_type", None)
    axes: frozenset[str] = kind.vma if manual is None else manual.varying
    return axes


def take(array: jax.Array, index: jax.Array) -> jax.Array:
    """Rows `array[index]`; some row where the index is out of bounds, which `checkify` does not report."""
    size = array.shape[0]
    if size == 0:
        return jnp.zeros(index.shape + array.shape[1:], array.dtype)
    return array.at[jnp.clip(index, 0, size - 1)].get(mode="promise_in_bounds", wrap_negative_indices=False)


@jax.custom_batching.custom_vmap
def all_of_batch(flag: jax.Array) -> jax.Array:
    """Whether the scalar is true, under `vmap` in the whole batch. So a conditional on it remains one."""
    return flag


@all_of_batch.def_vmap
def _all_of_batch_vmap(_axis_size: int, _in_batched: list[bool], flag: jax.Array) -> tuple[jax.Array, bool]:
    return all_of_batch(jnp.all(flag)), False


def map_batches(function: Callable[..., T], n_batch: int) -> Callable[..., T]:
    """`function` mapped over `n_batch` leading axes of all arrays in its arguments.

    As in BCOO, an array whose axis has length 1 is shared by the whole batch. If all arrays are shared, the work is
    done once, and the results are shared too.
    """
    for _ in range(n_batch):
        function = _map_batch(function)
    return function


def _map_batch(function: Callable[..., T]) -> Callable[..., T]:
    def mapped(*arguments: object) -> T:
        leaves, treedef = jax.tree.flatten(arguments)

        def call(*leaves: jax.Array) -> T:
            return function(*jax.tree.unflatten(treedef, leaves))

        shared = [leaf.shape[0] == 1 for leaf in leaves]
        leaves = [reshape(leaf, leaf.shape[1:]) if each else leaf for leaf, each in zip(leaves, shared, strict=True)]
        if all(shared):
            return jax.tree.map(lambda leaf: reshape(leaf, (1, *leaf.shape)), call(*leaves))
        return jax.vmap(call, [None if each else 0 for each in shared])(*leaves)

    return mapped
