"""The numeric phase: values through a union that was made before, or into a dense array.

`add_values` carries the values of all operands to the slots of the sum; `pick_values` takes a cotangent from there back
to the entries of the operands. Each is the transpose of the other, and both are gathers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_sparse_grad._eager import is_concrete, read
from jax_sparse_grad._keys import columns_of, is_entry
from jax_sparse_grad._linear import linear
from jax_sparse_grad._primitives import NONE, gather, if_all, iota_like, map_batches, negative_zero
from jax_sparse_grad._runs import sum_runs
from jax_sparse_grad._tree import Placement, UnionTree, entry_counts, settle
from jax_sparse_grad._xla_cpu import stored


def add_values(union: UnionTree, values: tuple[jax.Array, ...], *, in_passing: bool = False) -> jax.Array:
    """The sum of values of one dtype, `[nse, *dense]`.

    `in_passing` says that it is stored anyway, as in a branch of a conditional, or read once.
    """
    nse = union.placements[0].sources.shape[0]
    add = _add if in_passing else _add_and_store
    (total,) = linear(add, _pick, _route_of(union), values, entry_counts(union), ((nse,),))
    return total


def pick_values(union: UnionTree, cotangent: jax.Array) -> tuple[jax.Array, ...]:
    """SparseAddGrad, the transpose of `add_values`: for each entry of each operand the cotangent of its slot.

    The value in slot p is the sum of all entries at p. So d sum[p] / d entry is 1 if the entry is at p and 0 elsewhere:
    the gradient of an entry is the cotangent of its slot, and 0 if it has none.
    """
    nse = union.placements[0].sources.shape[0]
    return linear(_pick, _add, _route_of(union), (cotangent,), ((nse,),), entry_counts(union))


class _Route(NamedTuple):
    """The data of the numeric phase: the union, and its number of slots if it may have more entries than these."""

    union: UnionTree
    room: np.int32 | jax.Array | None


def _route_of(union: UnionTree) -> _Route:
    nse = union.placements[0].sources.shape[0]
    fits = nse >= sum(map(sum, entry_counts(union))) or _is_known(union.nnz, lambda nnz: nnz <= nse)
    return _Route(without_known(union), None if fits else np.int32(nse))


def without_known(union: UnionTree) -> UnionTree:
    """`without_flags`, and without the sizes of operands that are one list, for each of which JAX would compile."""
    children = tuple(without_known(child) if isinstance(child, UnionTree) else None for child in union.children)
    return without_flags(union._replace(children=children))


def without_flags(union: UnionTree) -> UnionTree:
    """The same union without flags that are known, and without what only duplicates need where there are none.

    In a batch, what one needs, all do.
    """
    return settle(union, lambda unique: bool(np.all(read(unique))) if is_concrete(unique) else None)


def _is_known(array: jax.Array, holds: Callable[[np.ndarray], Any]) -> bool:
    """Whether the array is concrete, and a condition holds for all of it."""
    return is_concrete(array) and bool(np.all(holds(read(array))))


def _add(route: _Route, values: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return (_poison_overflow(route, _add_node(route.union, iter(values))),)


def _add_and_store(route: _Route, values: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    # The backward pass gathers from what the loss makes of these: XLA:CPU would add again for each entry it gathers.
    return (stored(*_add(route, values)),)


def _add_node(union: UnionTree, operands: Iterator[jax.Array]) -> jax.Array:
    children = tuple(
        _add_node(child, operands) if isinstance(child, UnionTree) else next(operands) for child in union.children
    )

    def add(children: tuple[jax.Array, ...]) -> jax.Array:
        placed = [
            _place(placement, union.nnz, values) for placement, values in zip(union.placements, children, strict=True)
        ]
        return functools.reduce(jnp.add, placed)

    def sum_duplicates_first(children: tuple[jax.Array, ...]) -> jax.Array:
        return add(tuple(map(_sum_duplicates, union.placements, children)))

    flags = [placement.unique for placement in union.placements if placement.unique is not None]
    if not flags:  # none has duplicates, or those that have an order do
        return sum_duplicates_first(children)
    return if_all(functools.reduce(jnp.logical_and, flags), add, sum_duplicates_first, children)


def _place(placement: Placement, nnz: jax.Array, values: jax.Array) -> jax.Array:
    """The values of a child without duplicates in the slots of its parent, of which `nnz` are in use."""
    slots = iota_like(placement.sources)
    # x + -0.0 is x for every x, but -0.0 + 0.0 is 0.0: an entry without a partner must arrive bit for bit.
    absent = jnp.where(slots < nnz, negative_zero(values.dtype), np.zeros((), values.dtype))
    return gather(values, placement.sources, absent)


def _pick(route: _Route, cotangents: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return tuple(_pick_node(route.union, _poison_overflow(route, *cotangents)))


def _pick_node(union: UnionTree, cotangent: jax.Array) -> Iterator[jax.Array]:
    for child, placement in zip(union.children, union.placements, strict=True):
        picked = gather(cotangent, placement.positions, np.zeros((), cotangent.dtype))
        if isinstance(child, UnionTree):
            yield from _pick_node(child, picked)
        else:
            yield picked


@jax.jit
def poison_unless(sound: jax.Array, values: jax.Array) -> jax.Array:
    """`values`; if not `sound`, filled as an overflowed sum is. Tangents and cotangents are poisoned too."""
    rows = ((values.shape[0],),)
    (poisoned,) = linear(_poison_unsound, _poison_unsound, sound, (values,), rows, rows)
    return poisoned


def _poison_unsound(sound: jax.Array, values: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return (_poison(~sound, values[0]),)


def poison_overflow(values: jax.Array, nnz: jax.Array, bound: int) -> jax.Array:
    """Values in the slots of a union of `nnz` entries, at most `bound`; poisoned if it has more entries than slots."""
    return values if values.shape[0] >= bound else _poison(nnz > values.shape[0], values)


def _poison_overflow(route: _Route, values: jax.Array) -> jax.Array:
    """`values`; filled with the fill value of `jnp.take(mode="fill")` if the union has more entries than slots.

    It counts as a linear map that is its own transpose, so that tangents and cotangents are poisoned too.
    """
    return values if route.room is None else _poison(route.union.nnz > route.room, values)


def _poison(overflow: jax.Array, values: jax.Array) -> jax.Array:
    dtype = values.dtype
    if jnp.issubdtype(dtype, jnp.inexact):
        fill = np.asarray(np.nan, dtype)
    else:
        limits = jnp.iinfo(dtype)
        fill = np.asarray(limits.min if jnp.issubdtype(dtype, jnp.signedinteger) else limits.max, dtype)
    return jnp.where(overflow, fill, values)


def _sum_duplicates(placement: Placement, values: jax.Array) -> jax.Array:
    """Values in which those at `placement.sources` are complete sums."""
    if placement.order is None:
        return values
    runs = gather(placement.positions, placement.order, fill=NONE)
    in_order = gather(values, placement.order, np.zeros((), values.dtype))
    return sum_runs(in_order, jnp.where(runs < placement.sources.shape[0], runs, NONE))


@partial(jax.jit, static_argnums=3)
def scatter_add(
    dense: jax.Array, indices: tuple[jax.Array, ...], values: tuple[jax.Array, ...], shape: tuple[int, ...]
) -> jax.Array:
    """The dense array with values added at indices, rounded once; its transpose is a gather."""
    if dense.size == 0:
        return dense

    def add_to(dense: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
        inside = is_entry(rows, shape)
        # Rows outside the shape add -0.0, which changes nothing, to some cell: so no index is out of bounds.
        added = jnp.where(inside.reshape(-1, *[1] * (values.ndim - 1)), values, -np.zeros((), values.dtype))
        if not shape:
            return dense + jnp.sum(added, axis=0, dtype=added.dtype)
        cells = tuple(jnp.clip(column, 0, size - 1) for column, size in zip(columns_of(rows), shape, strict=True))
        return dense.at[cells].add(added, mode="promise_in_bounds", wrap_negative_indices=False)

    wide = _wide(dense.dtype)
    total = dense.astype(wide)
    for rows, each in zip(indices, values, strict=True):
        total = map_batches(add_to, rows.ndim - 2)(total, rows, each.astype(wide))
    return total.astype(dense.dtype)


def _wide(dtype: np.dtype) -> np.dtype:
    """The dtype to sum in: narrow floats would stop growing, and few machines can add integers of half a byte."""
    if jnp.issubdtype(dtype, jnp.integer):
        # The lowest bits of the wide sum are the narrow sum.
        return np.dtype(np.int8) if jnp.iinfo(dtype).bits < 8 else dtype
    return np.dtype(np.float32) if dtype.itemsize < 4 else dtype
