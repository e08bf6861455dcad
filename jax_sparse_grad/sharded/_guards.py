"""Checks of the operands of a sharded sum: an immediate error if concrete, poison and `checkify` if not.

No check may cost communication that nobody asked for. What `checkify` would report is dead code without it, and whether
to poison a shard is known on its own device.
"""

from __future__ import annotations

from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jax_sparse_grad import _keys, _validation
from jax_sparse_grad._checks import guard
from jax_sparse_grad._xla_cpu import all_true
from jax_sparse_grad.sharded._mesh import Layout, from_all_shards, on_shards, own_range
from jax_sparse_grad.sharded._operand import RowSharded, layout_of

T = TypeVar("T")


def common_pattern(
    operands: dict[str, RowSharded], *, alike: bool, canonical: bool
) -> tuple[Layout, tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """The layout of all operands, and their `row_starts` and indices in one dtype, on condition that they are valid.

    Each shard must hold only rows of its own range. If `alike`, all operands must have the same ranges. If `canonical`,
    each shard must be canonical (which only `checkify` checks).
    """
    layout = common_layout(operands)
    names = [f"{name}.indices" for name in operands]
    arrays = [_validation.as_integers(name, x.indices) for name, x in zip(names, operands.values(), strict=True)]
    indices = _validation.promote_indices(names, arrays, layout.shards)
    dtype = indices[0].dtype
    first_name, *_ = operands
    _validation.check_sizes_fit(f"{first_name}.shape", layout.shape, dtype)
    row_starts = tuple(_validation.cast(x.row_starts, dtype) for x in operands.values())
    concrete = _validation.is_concrete(indices, row_starts)

    def guard_operand(name: str, starts: jax.Array, rows: jax.Array) -> jax.Array:
        if alike and starts is not row_starts[0]:
            message = (
                f"`{name}` must be partitioned as `{first_name}`; its row_starts are {{starts}}, not {{expected}}; "
                f"`repartition({name}, {first_name}.row_starts)` moves its rows"
            )
            rows = guard(rows, _are_equal(starts, row_starts[0]), message, starts=starts, expected=row_starts[0])
        rows = guard_rows(layout, name, starts, rows)
        return _guard_canonical(layout, name, rows) if canonical and not concrete else rows

    def guard_all() -> tuple[jax.Array, ...]:
        return tuple(map(guard_operand, operands, row_starts, indices))

    return layout, row_starts, _validation.call_concretely(guard_all) if concrete else guard_all()


def common_layout(operands: dict[str, Any]) -> Layout:
    """The layout of operands that must be spread over the same devices and have one shape."""
    (first_name, first), *_ = operands.items()
    for name, x in operands.items():
        if (x.mesh, x.axis) != (first.mesh, first.axis):
            raise ValueError(
                f"`{name}` must be spread over the mesh and axis of `{first_name}`; "
                f"got axis {x.axis!r} of {x.mesh} and axis {first.axis!r} of {first.mesh}; "
                f"`partition({name}.matrix, {first_name}.mesh, {first_name}.axis)` spreads it again"
            )
        if x.indices.ndim != 2 or x.data.shape[:1] != x.indices.shape[:1] or x.indices.shape[0] % x.shards:
            raise ValueError(
                f"`{name}` must have as many values as index rows, a multiple of its {x.shards} shards; got data "
                f"{x.data.shape} and indices {x.indices.shape}; take apart what `scan` or `vmap` has stacked"
            )
        if x.row_starts.shape != (x.shards + 1,):
            raise ValueError(f"`{name}.row_starts` must have shape {(x.shards + 1,)}; got {x.row_starts.shape}")
        if layout_of(x).shape != layout_of(first).shape:
            raise ValueError(f"`{name}` must have the n_sparse of `{first_name}`; got {x.shape} and {first.shape}")
    return layout_of(first)


@jax.jit
def _are_equal(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.all(a == b)


def guard_rows(layout: Layout, name: str, row_starts: jax.Array | None, rows: jax.Array) -> jax.Array:
    """The same indices, on condition that all lie in the shape and, if `row_starts` are given, in their shard."""
    ok, facts = _first_bad_row(layout, row_starts, rows)
    message = f"`{name}.indices` must lie in [0, {layout.shape}), or equal {layout.shape} in padding"
    if row_starts is not None:
        message += ", and in shard {shard} have rows {low} ... {high} - 1 (`repartition` moves rows to their shards)"
    return guard(rows, ok, message + "; entry {entry} of shard {shard} is {indices}", **facts)


@partial(jax.jit, static_argnums=0)
def _first_bad_row(
    layout: Layout, row_starts: jax.Array | None, indices: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Whether no row is bad, and what to say about the first bad one."""

    def first(row_starts: jax.Array | None, rows: jax.Array) -> Any:
        bad = _keys.is_bad(rows, layout.shape)
        if row_starts is not None:
            bad |= _is_elsewhere(rows, *own_range(layout, row_starts), layout.shape[0])
        entry = jnp.argmax(bad)
        found, entries, contents = from_all_shards(layout, (jnp.any(bad), entry, rows[entry]))
        shard = jnp.argmax(found)
        facts = {"shard": shard, "entry": entries[shard], "indices": contents[shard]}
        if row_starts is not None:
            facts |= {"low": row_starts[shard], "high": row_starts[shard + 1]}
        return jnp.all(found == 0), facts

    return on_shards(layout, first, row_starts, indices, replicated_result=True)


def _guard_canonical(layout: Layout, name: str, rows: jax.Array) -> jax.Array:
    ok, shard = _all_canonical(layout, rows)
    message = f"`{name}` must be sorted and unique, with padding last, in each shard for `assume_canonical=True`"
    return guard(rows, ok, message + "; shard {shard} is not", shard=shard)


@partial(jax.jit, static_argnums=0)
def _all_canonical(layout: Layout, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether all shards are canonical, and if not, which is the first that is not."""
    space = _keys.space_of(layout.shape, indices.dtype)

    def ask(_: None, rows: jax.Array) -> Any:
        canonical = from_all_shards(layout, _keys.is_canonical(_keys.ravel(rows, space)))
        return jnp.all(canonical > 0), jnp.argmin(canonical)

    return on_shards(layout, ask, None, indices, replicated_result=True)


def guard_capacity(tree: T, layout: Layout, nnz: jax.Array, capacity: int, bound: int) -> T:
    """The same arrays, on condition that `nnz` entries of each shard, at most `bound`, fit its capacity."""
    if capacity >= bound:
        return tree
    most, shard = _fullest(layout, nnz)
    message = (
        "`capacity` must be at least {nnz}, the number of distinct entries of the sum in shard {shard}; "
        f"got {capacity}"
    )
    return guard(tree, most <= capacity, message, nnz=most, shard=shard)


def exact_capacity(layout: Layout, nnz: jax.Array) -> int:
    """The room that the fullest shard needs, of concrete numbers; at least one slot, so that no array is empty."""
    return max(1, int(_fullest(layout, nnz)[0]))


@partial(jax.jit, static_argnums=0)
def _fullest(layout: Layout, nnz: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest number of entries in a shard, and which shard that is."""

    def fullest(_: None, nnz: jax.Array) -> Any:
        counts = from_all_shards(layout, nnz[0])
        return jnp.max(counts), jnp.argmax(counts)

    return on_shards(layout, fullest, None, nnz, replicated_result=True)


@partial(jax.jit, static_argnums=0)
def all_in_all_shards(layout: Layout, flags: list[jax.Array]) -> jax.Array:
    """Whether all flags `[shards]` are true."""

    def ask(_: None, flags: list[jax.Array]) -> jax.Array:
        return jnp.all(from_all_shards(layout, jnp.all(jnp.stack(flags))) > 0)

    return jnp.array(True) if not flags else on_shards(layout, ask, None, flags, replicated_result=True)


def most_in_shard(layout: Layout, indices: tuple[jax.Array, ...]) -> int:
    """The most entries that a shard of a sum can have."""
    return sum(rows.shape[0] for rows in indices) // layout.shards


def is_sound(layout: Layout, row_starts: tuple[jax.Array, ...], indices: tuple[jax.Array, ...]) -> jax.Array:
    """Whether all operands are partitioned alike, and this shard holds only rows of its range."""
    low, high = own_range(layout, row_starts[0])
    sound = all_true(jnp.ones_like(indices[0], bool, shape=(1,)))  # varies over the mesh as the rest does
    for starts in row_starts[1:]:
        sound &= jnp.all(starts == row_starts[0])
    for rows in indices:
        sound &= all_true(~_is_elsewhere(rows, low, high, layout.shape[0]))
    return sound


def _is_elsewhere(rows: jax.Array, low: jax.Array, high: jax.Array, n_rows: int) -> jax.Array:
    """Whether each index row lies in the range of another shard."""
    first = rows[:, 0]
    return (first >= 0) & (first < np.asarray(n_rows, first.dtype)) & ((first < low) | (first >= high))


def check_capacity(capacity: int, counts: np.ndarray) -> None:
    """Check that each shard has room for its entries, whose numbers are known."""
    shard = int(np.argmax(counts))
    if counts[shard] > capacity:
        raise ValueError(
            f"`capacity` must be at least {counts[shard]}, the number of entries in shard {shard}; got {capacity}"
        )
