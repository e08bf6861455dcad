"""Sharded sums: on every device the union and the sum of the unsharded modules, of its own rows.

Faults raise if they are concrete. If they are traced, each device finds out alone whether its own shard has overflowed
or holds rows of others, and poisons it. `checkify` does not see that: behind a `shard_map` it keeps an error for each
device, and JAX cannot check anything more with these.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_sparse_grad import _arguments, _sum, _union, _values
from jax_sparse_grad._batching import take
from jax_sparse_grad._concrete import cast, is_concrete
from jax_sparse_grad._data_checks import is_bad
from jax_sparse_grad._keys import NONE
from jax_sparse_grad._types import Arrays
from jax_sparse_grad._union import Union
from jax_sparse_grad.sharded._mesh import Layout, on_shards, read_all
from jax_sparse_grad.sharded._operand import RowSharded, check_capacity, common_layout

T = TypeVar("T")


def patterns_of(operands: Mapping[str, RowSharded], *, same_starts: bool) -> tuple[Layout, Arrays, Arrays]:
    """The layout of all operands, and their `row_starts` and indices in one dtype; checked if they are concrete.

    Each shard must hold only rows of its own range. If `same_starts`, all operands must have the same ranges.
    """
    layout = common_layout(operands)
    names = [f"{name}.indices" for name in operands]
    arrays = [_arguments.as_integers(name, x.indices) for name, x in zip(names, operands.values(), strict=True)]
    indices = _arguments.promote_indices(names, arrays, layout.shards)
    first, *_ = operands
    _arguments.check_sizes_fit(f"{first}.shape", layout.shape, indices[0].dtype)
    row_starts = tuple(cast(x.row_starts, indices[0].dtype) for x in operands.values())
    if is_concrete(indices, row_starts):
        on_host = [read_all(starts) for starts in row_starts]
        for name, starts, rows in zip(operands, on_host, indices, strict=True):
            if same_starts and np.any(starts != on_host[0]):
                raise ValueError(
                    f"`{name}` must be partitioned as `{first}`; its row_starts are {starts}, not {on_host[0]}; "
                    f"`repartition({name}, {first}.row_starts)` moves its rows"
                )
            check_rows(layout, name, starts, rows)
    return layout, row_starts, indices


def check_rows(layout: Layout, name: str, row_starts: np.ndarray | None, rows: jax.Array) -> None:
    """Check that concrete index rows lie in the shape or are padding and, if `row_starts` are given, in their shard."""
    entries, contents = _find_bad_rows(layout, None, row_starts, rows)
    first = read_all(entries)
    if np.all(first < 0):
        return
    shard = int(np.argmax(first >= 0))
    message = f"`{name}.indices` must lie in [0, {layout.shape}), or equal {layout.shape} in padding"
    if row_starts is not None:
        low, high = row_starts[shard : shard + 2]
        message += f", and in shard {shard} have rows {low} ... {high} - 1 (`repartition` moves rows to their shards)"
    raise ValueError(f"{message}; entry {first[shard]} of shard {shard} is {read_all(contents)[shard]}")


@on_shards
def _find_bad_rows(layout: Layout, _: None, row_starts: Any, rows: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The number of the first bad row of each shard, -1 if there is none, and its content."""
    bad = is_bad(rows, layout.shape)
    if row_starts is not None:
        bad |= _in_other_shard(layout, row_starts, rows)
    row = jnp.argmax(bad)
    return jnp.where(bad[row], row, -1)[None], rows[row][None]


def _in_other_shard(layout: Layout, row_starts: jax.Array, rows: jax.Array) -> jax.Array:
    """Whether each index row of this shard lies in the range of another."""
    shard, row = lax.axis_index(layout.axis), rows[:, 0]
    low, high = take(row_starts, shard), take(row_starts, shard + 1)
    return (row >= 0) & (row < np.asarray(layout.shape[0], row.dtype)) & ((row < low) | (row >= high))


def find_union(layout: Layout, capacity: int | None, canonical: bool, row_starts: Arrays, indices: Arrays) -> Union:
    """The union of each shard: indices `[shards * nse, ndims]`, slots `[shards * capacity_k]`, nnz `[shards]`."""
    bound = sum(rows.shape[0] for rows in indices) // layout.shards
    union = _find_union(layout, (bound if capacity is None else capacity, canonical), row_starts, indices)
    if not is_concrete(union) or (capacity is not None and capacity >= bound):
        return union
    nnz = read_all(union.nnz)
    if capacity is None:
        return union._replace(indices=cut(layout, max(1, int(nnz.max())), None, union.indices))  # no array is empty
    check_capacity(capacity, nnz, "distinct entries of the sum")
    return union


@on_shards
def _find_union(layout: Layout, static: tuple[int, bool], row_starts: Arrays, indices: Arrays) -> Union:
    nse, canonical = static
    union = _union.find_union(layout.shape, nse, indices, canonical=canonical)
    nnz = union.nnz
    if not canonical:
        for starts, rows in zip(row_starts, indices, strict=True):
            wrong = jnp.any(_in_other_shard(layout, row_starts[0], rows)) | jnp.any(starts != row_starts[0])
            nnz = jnp.where(wrong, NONE, nnz)  # as if the shard had overflowed
    return union._replace(nnz=nnz[None])


@on_shards
def cut(_: Layout, count: int | None, __: None, tree: T) -> T:
    """The first `count` rows of each shard of all arrays, or all rows."""
    return jax.tree.map(lambda leaf: leaf[:count], tree)


@on_shards
def add_values(_: Layout, static: Any, weights: Sequence[Any], sharded: tuple[Union, Arrays]) -> jax.Array:
    """The values of a sum `[shards * nse, *dense]`, given its union and the values of its operands.

    `static`: the dtype of the sum, and whether each operand is subtracted.
    """
    (dtype, negated), (union, values) = static, sharded
    return _sum.add_values(union._replace(nnz=union.nnz[0]), values, dtype, negated=negated, weights=weights)


@partial(on_shards, everywhere=True)
def add_to_dense(
    layout: Layout, static: Any, replicated: tuple[Arrays, Sequence[Any]], sharded: tuple[Arrays, Arrays]
) -> jax.Array:
    """The sum of dense arrays, which are replicated as it is, and of the indices and values of sharded operands.

    `static`: as for `add_values`; signs and weights are those of the dense arrays, followed by those of the others.
    """
    (dtype, negated), (dense, weights) = static, replicated
    factors = zip(weights or [None] * len(negated), negated, strict=True)
    terms = [_values.scale(each.astype(dtype), *factor) for each, factor in zip(dense, factors, strict=False)]
    total = functools.reduce(jnp.add, terms)
    # Sharded operands are not added to the dense ones themselves, which all devices hold but which must count once.
    sum_of_shard = _values.place_onto(
        [jnp.zeros_like(total)],
        *sharded,
        sizes=layout.shape,
        dtype=dtype,
        negated=[False, *negated[len(dense) :]],
        weights=[jnp.ones((), dtype), *weights[len(dense) :]] if weights else [],
    )
    return total + lax.psum(sum_of_shard, layout.axis)
