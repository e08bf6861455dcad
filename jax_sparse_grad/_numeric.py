"""The numeric phase: values through a union that was made before.

`add_values` carries the values of all operands to the slots of the sum; `pick_values` takes a cotangent from there back
to the entries of the operands. Each is the transpose of the other, and both are gathers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_sparse_grad._linear import Map, linear
from jax_sparse_grad._primitives import NONE, gather, if_all, iota_like, negative_zero
from jax_sparse_grad._runs import sum_runs
from jax_sparse_grad._tree import Placement, Union, entry_counts, settle
from jax_sparse_grad._xla_cpu import stored


def add_values(union: Union, values: tuple[jax.Array, ...]) -> jax.Array:
    """The sum of values of one dtype, `[nse, *dense]`."""
    return _add_by(_add_and_store, union, values)


def add_in_passing(union: Union, values: tuple[jax.Array, ...]) -> jax.Array:
    """The same where the sum is stored anyway, as in a branch of a conditional, or read once."""
    return _add_by(_add, union, values)


def _add_by(add: Map, union: Union, values: tuple[jax.Array, ...]) -> jax.Array:
    nse = union.placements[0].sources.shape[0]
    (total,) = linear(add, _pick, _route_of(union), values, entry_counts(union), ((nse,),))
    return total


def pick_values(union: Union, cotangent: jax.Array) -> tuple[jax.Array, ...]:
    """The transpose of `add_values`: for each entry of each operand the cotangent of its slot, or 0 if it has none."""
    nse = union.placements[0].sources.shape[0]
    return linear(_pick, _add, _route_of(union), (cotangent,), ((nse,),), entry_counts(union))


class _Route(NamedTuple):
    """The data of the numeric phase: the union, and its number of slots if it may have more entries than these."""

    union: Union
    room: np.int32 | jax.Array | None


def _route_of(union: Union) -> _Route:
    nse = union.placements[0].sources.shape[0]
    fits = nse >= sum(map(sum, entry_counts(union))) or _is_known(union.nnz, lambda nnz: nnz <= nse)
    return _Route(without_known(union), None if fits else np.int32(nse))


def without_known(union: Union) -> Union:
    """`without_flags`, and without the sizes of operands that are one list, for each of which JAX would compile."""
    children = tuple(without_known(child) if isinstance(child, Union) else None for child in union.children)
    return without_flags(union._replace(children=children))


def without_flags(union: Union) -> Union:
    """The same union without flags that are known, and without what only duplicates need where there are none.

    In a batch, what one needs, all do.
    """
    return settle(
        union, lambda unique: None if isinstance(unique, jax.core.Tracer) else bool(np.all(np.asarray(unique)))
    )


def _is_known(array: jax.Array, holds: Callable[[np.ndarray], Any]) -> bool:
    """Whether the array is concrete, and a condition holds for all of it."""
    return not isinstance(array, jax.core.Tracer) and bool(np.all(holds(np.asarray(array))))


def _add(route: _Route, values: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return (_poison_overflow(route, _add_node(route.union, iter(values))),)


def _add_and_store(route: _Route, values: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    # The backward pass gathers from what the loss makes of these: XLA:CPU would add again for each entry it gathers.
    return (stored(*_add(route, values)),)


def _add_node(union: Union, operands: Iterator[jax.Array]) -> jax.Array:
    children = tuple(
        _add_node(child, operands) if isinstance(child, Union) else next(operands) for child in union.children
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


def _pick_node(union: Union, cotangent: jax.Array) -> Iterator[jax.Array]:
    for child, placement in zip(union.children, union.placements, strict=True):
        picked = gather(cotangent, placement.positions, np.zeros((), cotangent.dtype))
        if isinstance(child, Union):
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
