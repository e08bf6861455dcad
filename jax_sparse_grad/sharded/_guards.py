"""Checks of the data of a sharded sum: errors if they are concrete, and poison if they are traced.

`checkify` does not look into sharded sums: it keeps an error for each device behind a `shard_map`, and JAX cannot check
anything more with these. Whether to poison a shard is known on its own device, so no check communicates under `jit`.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jax_sparse_grad import _arguments, _checkify
from jax_sparse_grad._concrete import call_concretely, cast, is_concrete
from jax_sparse_grad._data_checks import is_bad
from jax_sparse_grad._types import Arrays
from jax_sparse_grad.sharded._mesh import Layout, from_all_shards, on_shards, own_range
from jax_sparse_grad.sharded._operand import RowSharded
from jax_sparse_grad.sharded._validation import layout_of_all


def common_pattern(operands: Mapping[str, RowSharded], *, alike: bool) -> tuple[Layout, Arrays, Arrays]:
    """The layout of all operands, and their `row_starts` and indices in one dtype, on condition that they are valid.

    Each shard must hold only rows of its own range. If `alike`, all operands must have the same ranges.
    """
    layout = layout_of_all(operands)
    names = [f"{name}.indices" for name in operands]
    arrays = [_arguments.as_integers(name, x.indices) for name, x in zip(names, operands.values(), strict=True)]
    indices = _arguments.promote_indices(names, arrays, layout.shards)
    dtype = indices[0].dtype
    first_name, *_ = operands
    _arguments.check_sizes_fit(f"{first_name}.shape", layout.shape, dtype)
    row_starts = tuple(cast(x.row_starts, dtype) for x in operands.values())

    def check() -> None:
        for name, starts, rows in zip(operands, row_starts, indices, strict=True):
            if alike and starts is not row_starts[0]:
                message = (
                    f"`{name}` must be partitioned as `{first_name}`; its row_starts are {{starts}}, not {{expected}}; "
                    f"`repartition({name}, {first_name}.row_starts)` moves its rows"
                )
                _checkify.check((), _are_equal(starts, row_starts[0]), message, starts=starts, expected=row_starts[0])
            check_rows(layout, name, starts, rows)

    if is_concrete(indices, row_starts):
        call_concretely(check)
    return layout, row_starts, indices


@jax.jit
def _are_equal(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.all(a == b)


def check_rows(layout: Layout, name: str, row_starts: jax.Array | None, rows: jax.Array) -> None:
    """Check that all concrete indices lie in the shape and, if `row_starts` are given, in their shard."""
    ok, facts = _find_bad_entry(layout, row_starts, rows)
    message = f"`{name}.indices` must lie in [0, {layout.shape}), or equal {layout.shape} in padding"
    if row_starts is not None:
        message += ", and in shard {shard} have rows {low} ... {high} - 1 (`repartition` moves rows to their shards)"
    _checkify.check((), ok, message + "; entry {entry} of shard {shard} is {indices}", **facts)


@partial(jax.jit, static_argnums=0)
def _find_bad_entry(
    layout: Layout, row_starts: jax.Array | None, indices: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Whether no row is bad, and what to say about the first bad one."""

    def first(row_starts: jax.Array | None, rows: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        bad = is_bad(rows, layout.shape)
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


def check_sum_fits(layout: Layout, nnz: jax.Array, capacity: int, bound: int) -> None:
    """Check that `nnz` entries of each shard, concrete and at most `bound`, fit its capacity."""
    if capacity >= bound:
        return
    most, shard = _fullest(layout, nnz)
    message = (
        "`capacity` must be at least {nnz}, the number of distinct entries of the sum in shard {shard}; "
        f"got {capacity}"
    )
    _checkify.check((), most <= capacity, message, nnz=most, shard=shard)


def exact_capacity(layout: Layout, nnz: jax.Array) -> int:
    """The room that the fullest shard needs, of concrete numbers; at least one slot, so that no array is empty."""
    return max(1, int(_fullest(layout, nnz)[0]))


@partial(jax.jit, static_argnums=0)
def _fullest(layout: Layout, nnz: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The largest number of entries in a shard, and which shard that is."""

    def fullest(_: None, nnz: jax.Array) -> tuple[jax.Array, jax.Array]:
        counts = from_all_shards(layout, nnz[0])
        return jnp.max(counts), jnp.argmax(counts)

    return on_shards(layout, fullest, None, nnz, replicated_result=True)


def most_in_shard(layout: Layout, indices: Arrays) -> int:
    """The most entries that a shard of a sum can have."""
    return sum(rows.shape[0] for rows in indices) // layout.shards


def is_sound(layout: Layout, row_starts: Arrays, indices: Arrays) -> jax.Array:
    """Whether all operands are partitioned alike, and this shard holds only rows of its range."""
    low, high = own_range(layout, row_starts[0])
    elsewhere = [jnp.any(_is_elsewhere(rows, low, high, layout.shape[0])) for rows in indices]
    different = [jnp.any(starts != row_starts[0]) for starts in row_starts[1:]]
    return ~functools.reduce(jnp.logical_or, [*elsewhere, *different])


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
