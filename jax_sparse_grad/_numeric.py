"""The numeric phase: values through a union that was made once.

`add_values` carries the values of all operands to the slots of the sum, `pick_values` takes a cotangent from there back
to the entries of the operands. Each is the other's transpose, and both are gathers.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_sparse_grad._primitives import gather, if_all, iota_like, vary_alike
from jax_sparse_grad._union import Placement, Union, entry_counts

R = TypeVar("R")


@jax.jit
def add_values(union: Union, values: tuple[jax.Array, ...]) -> jax.Array:
    """The sum of values of one dtype, `[nse, *dense]`."""
    (total,) = _linear(_add, _pick, union, values, [union.placements[0].sources.shape[0]])
    return total


@jax.jit
def pick_values(union: Union, cotangent: jax.Array) -> tuple[jax.Array, ...]:
    """The transpose of `add_values`: for each entry of each operand the cotangent of its slot; 0 if it has none."""
    return _linear(_pick, _add, union, (cotangent,), entry_counts(union))


def _add(union: Union, values: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    operands = iter(values)
    return (_poison_overflow(union, _add_node(union, operands)),)


def _add_node(union: Union, operands: Iterator[jax.Array]) -> jax.Array:
    children = tuple(next(operands) if child is None else _add_node(child, operands) for child in union.children)

    def add(children: tuple[jax.Array, ...]) -> jax.Array:
        placed = [
            _place(placement, union.nnz, values) for placement, values in zip(union.placements, children, strict=True)
        ]
        return functools.reduce(jnp.add, placed)

    def sum_duplicates_first(children: tuple[jax.Array, ...]) -> jax.Array:
        return add(tuple(map(_sum_duplicates, union.placements, children)))

    flags = [placement.unique for placement in union.placements if placement.unique is not None]
    if not flags:
        return add(children)
    return if_all(functools.reduce(jnp.logical_and, flags), add, sum_duplicates_first, children)


def _place(placement: Placement, nnz: jax.Array, values: jax.Array) -> jax.Array:
    """The values of a child without duplicates in the slots of its parent, of which `nnz` are in use."""
    slots = iota_like(placement.sources)
    # x + -0.0 is x for every x, x + 0.0 is not (for -0.0): an entry without a partner must arrive bit for bit.
    absent = jnp.where(slots < nnz, _negative_zero(values.dtype), np.zeros((), values.dtype))
    return gather(values, placement.sources, absent)


def _pick(union: Union, cotangents: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return tuple(_pick_node(union, _poison_overflow(union, *cotangents)))


def _pick_node(union: Union, cotangent: jax.Array) -> Iterator[jax.Array]:
    for child, placement in zip(union.children, union.placements, strict=True):
        picked = gather(cotangent, placement.positions, 0)
        if child is None:
            yield picked
        else:
            yield from _pick_node(child, picked)


@jax.jit
def poison_unless(sound: jax.Array, values: jax.Array) -> jax.Array:
    """`values`, or throughout what an overflowed sum holds; tangents and cotangents are poisoned too."""

    def poison(sound: jax.Array, parts: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return (_poison(~sound, parts[0]),)

    (poisoned,) = _linear(poison, poison, sound, (values,), [values.shape[0]])
    return poisoned


def _poison_overflow(union: Union, values: jax.Array) -> jax.Array:
    """`values`, or the fill value of `jnp.take(mode="fill")` throughout if the union has more entries than slots.

    Counted as a linear map that is its own transpose, so that tangents and cotangents are poisoned too.
    """
    return _poison(union.nnz > values.shape[0], values) if _may_overflow(union) else values


def _poison(overflow: jax.Array, values: jax.Array) -> jax.Array:
    dtype = values.dtype
    if jnp.issubdtype(dtype, jnp.inexact):
        fill = np.asarray(np.nan, dtype)
    else:
        limits = jnp.iinfo(dtype)
        fill = np.asarray(limits.min if jnp.issubdtype(dtype, jnp.signedinteger) else limits.max, dtype)
    return jnp.where(overflow, fill, values)


def _negative_zero(dtype: np.dtype) -> np.ndarray:
    """What changes no number it is added to (for integers 0)."""
    return -np.zeros((), dtype)


def _may_overflow(union: Union) -> bool:
    return union.placements[0].sources.shape[0] < sum(entry_counts(union))


def _sum_duplicates(placement: Placement, values: jax.Array) -> jax.Array:
    """Values of which those at `placement.sources` are complete sums."""
    if placement.order is None:
        return values
    nse = placement.sources.shape[0]
    runs = gather(placement.positions, placement.order, fill=nse)
    return _sum_runs(gather(values, placement.order, fill=0), runs, runs < nse)


def _sum_runs(values: jax.Array, runs: jax.Array, counted: jax.Array) -> jax.Array:
    """Sum neighbours with equal `runs`, so that the first of them holds the whole; gathers only, no atomic additions.

    After round r entry i holds the sum of the entries i ... i + 2**r - 1 of its run. Rounds end with the longest run:
    there are none if all runs have length one, and the additions form a balanced tree, the same on every device.
    """
    size = values.shape[0]
    entries = jnp.arange(size, dtype=jnp.uint32)  # an entry plus a step must not wrap round

    def partners(step: jax.Array) -> tuple[jax.Array, jax.Array]:
        partner = entries + step
        return partner, counted & (gather(runs, partner, fill=-1) == runs)

    def add_partner(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        step, values = carry
        partner, same_run = partners(step)
        return 2 * step, values + gather(values, jnp.where(same_run, partner, size), _negative_zero(values.dtype))

    start = (jnp.uint32(1), values)
    return lax.while_loop(lambda carry: jnp.any(partners(carry[0])[1]), add_partner, start)[1]


def _linear(
    apply: Callable[[R, tuple[jax.Array, ...]], tuple[jax.Array, ...]],
    transpose: Callable[[R, tuple[jax.Array, ...]], tuple[jax.Array, ...]],
    data: R,
    x: tuple[jax.Array, ...],
    y_sizes: Sequence[int],
) -> tuple[jax.Array, ...]:
    """`apply(data, x)`, arrays of `y_sizes` rows: linear in x, with the given transpose, under every transformation.

    `custom_vjp` would bar forward mode, and nothing else in JAX lets a transpose be named and be batched but
    `lax.custom_linear_solve`: its `solve` is any linear map of a space to itself whose transpose is `transpose_solve`
    (`matvec`, here the identity, would matter only if it depended on differentiated values). The space here is that of
    the rows of x and y together, and the map takes (x, y) to (0, A x); so its transpose takes (x, y) to (A^T y, 0).
    XLA removes what is put together and taken apart again. (In one array, since the solve fails if only some of several
    have a tangent.)
    """
    if not jnp.issubdtype(x[0].dtype, jnp.inexact):
        return apply(data, x)
    data, x = vary_alike((data, x))
    x_sizes = [part.shape[0] for part in x]

    def zeros(sizes: Sequence[int]) -> tuple[jax.Array, ...]:
        return tuple(jnp.zeros((size, *x[0].shape[1:]), x[0].dtype) for size in sizes)

    def split(rows: jax.Array) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        sizes = [*x_sizes, *y_sizes]
        ends = itertools.accumulate(sizes)
        # Not by `jnp.split`, whose transpose fails under `shard_map` in jax 0.8.
        parts = [lax.slice_in_dim(rows, end - size, end) for size, end in zip(sizes, ends, strict=True)]
        return tuple(parts[: len(x)]), tuple(parts[len(x) :])

    solved = lax.custom_linear_solve(
        lambda b: b,
        jnp.concatenate([*x, *zeros(y_sizes)]),
        solve=lambda _, b: jnp.concatenate([*zeros(x_sizes), *apply(data, split(b)[0])]),
        transpose_solve=lambda _, c: jnp.concatenate([*transpose(data, split(c)[1]), *zeros(y_sizes)]),
    )
    return split(solved)[1]
