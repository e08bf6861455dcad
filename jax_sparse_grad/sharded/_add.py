"""`add` and `add_n` of row-sharded operands: every device adds its own rows."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex, overload

import jax
import numpy as np

from jax_sparse_grad import _arguments, _containers
from jax_sparse_grad._add import name_operands
from jax_sparse_grad._types import Dense, SupportsJaxArray
from jax_sparse_grad.sharded import _engine
from jax_sparse_grad.sharded._guards import common_pattern
from jax_sparse_grad.sharded._operand import RowSharded
from jax_sparse_grad.sharded._validation import as_capacity

DenseOperand = Dense | SupportsJaxArray
Operand = RowSharded | DenseOperand


@overload
def add(
    x: RowSharded, y: RowSharded, *, capacity: SupportsIndex | None = None, assume_canonical: bool = False
) -> RowSharded: ...
@overload
def add(
    x: RowSharded, y: DenseOperand, *, capacity: SupportsIndex | None = None, assume_canonical: bool = False
) -> jax.Array: ...
@overload
def add(
    x: DenseOperand, y: RowSharded, *, capacity: SupportsIndex | None = None, assume_canonical: bool = False
) -> jax.Array: ...
def add(
    x: Operand,
    y: Operand,
    *,
    capacity: SupportsIndex | None = None,
    assume_canonical: bool = False,
) -> RowSharded | jax.Array:
    """Add two row-sharded sparse matrices or tensors, or one of them and a dense one. Differentiable in both.

    Args:
      x: a `RowSharded` with values `[shards * capacity_x, *dense]`, or an array or nested list.
      y: the same, with the shape of `x`. At least one of the two must be a `RowSharded`. Two of these must be spread
        over the same axis of the same mesh with equal `row_starts`; capacities may differ. Dtypes promote as in `jnp`.
      capacity: the number of elements that the sum stores in each shard, static. By default what the fullest shard
        needs if all indices are concrete, otherwise the sum of the operands' capacities, which is always enough.
      assume_canonical: a promise that each shard is sorted and unique, is padded only at its end, and holds only rows
        of its range. Skips the checks.

    Returns:
      A `RowSharded` partitioned as the operands are, each shard sorted and unique, padding last. With a dense operand,
      a dense array, replicated.

    Raises:
      TypeError: no operand is a `RowSharded`; one is neither that nor an array; a static argument is traced.
      ValueError: shapes, meshes or axes differ. If they are concrete: `row_starts` differ; indices lie outside the
        shape or the range of their shard; a shard of the sum has more entries than `capacity` (the error says which
        shard). In a program of several processes, all of them raise. Under `jit` nothing is raised, not even by
        `checkify`: indices outside the shape count as padding, and a shard that overflows or holds rows of others is
        poisoned (all shards are, if `row_starts` differ): all its values are NaN, the minimum of a signed, or the
        maximum of an unsigned integer dtype.

    Example:
      >>> import jax, numpy as np, jax_sparse_grad as jsg
      >>> from jax.experimental.sparse import BCOO
      >>> mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> a, b = (BCOO.fromdense(np.eye(16, k=k, dtype=np.float32)) for k in (0, 1))
      >>> starts = jsg.sharded.balanced_row_starts([a, b], jax.device_count())
      >>> x, y = (jsg.sharded.partition(each, mesh, "rows", row_starts=starts) for each in (a, b))
      >>> total = jsg.sharded.add(x, y)
      >>> int(total.nnz.sum()), total.matrix.todense()[:2, :3].tolist()
      (31, [[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]])
      >>> loss = lambda data: (jsg.sharded.add(x.with_data(data), y).data ** 2).sum()
      >>> gradient = jax.jit(jax.grad(loss))(x.data)
      >>> float(gradient.sum()), gradient.sharding.spec
      (32.0, P('rows',))

    Works under all of JAX's transformations, forward mode included. No device waits for another: neither the sum nor
    its gradient communicates. The exception is a dense operand, whose replicated sum takes one all-reduce.

    Mirrors `jax_sparse_grad.add`.
    """
    return _add_sharded(("x", "y"), (x, y), capacity, assume_canonical)


@overload
def add_n(
    operands: Iterable[RowSharded], *, capacity: SupportsIndex | None = None, assume_canonical: bool = False
) -> RowSharded: ...
@overload
def add_n(
    operands: Iterable[Operand],
    *,
    capacity: SupportsIndex | None = None,
    assume_canonical: bool = False,
) -> RowSharded | jax.Array: ...
def add_n(
    operands: Iterable[Operand],
    *,
    capacity: SupportsIndex | None = None,
    assume_canonical: bool = False,
) -> RowSharded | jax.Array:
    """Add any number of row-sharded sparse matrices or tensors, and dense ones, in one pass over all patterns.

    Args:
      operands: a list, tuple or other iterable of `RowSharded` and arrays, as for `add`; at least one of them a
        `RowSharded`. A single one is brought to canonical form.
      capacity: as for `add`.
      assume_canonical: as for `add`.

    Returns:
      A `RowSharded`; with a dense operand, a dense array, replicated.

    Raises:
      TypeError: as for `add`; `operands` is not iterable, or is itself an operand.
      ValueError: as for `add`; `operands` is empty.

    Example:
      >>> import jax, numpy as np, jax_sparse_grad as jsg
      >>> from jax.experimental.sparse import BCOO
      >>> mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> bands = [BCOO.fromdense(np.eye(16, k=k, dtype=np.float32)) for k in (-1, 0, 1)]
      >>> starts = jsg.sharded.balanced_row_starts(bands, jax.device_count())
      >>> total = jsg.sharded.add_n([jsg.sharded.partition(band, mesh, "rows", row_starts=starts) for band in bands])
      >>> int(total.nnz.sum())
      46

    Mirrors `jax_sparse_grad.add_n`.
    """
    return _add_sharded(*name_operands(operands), capacity, assume_canonical)


def _add_sharded(
    names: Sequence[str], operands: Sequence[Any], capacity: SupportsIndex | None, assume_canonical: bool
) -> RowSharded | jax.Array:
    room = as_capacity(capacity)
    canonical = _arguments.as_flag("assume_canonical", assume_canonical)
    named = dict(zip(names, operands, strict=True))
    sparse = {name: x for name, x in named.items() if isinstance(x, RowSharded)}
    arrays = {name: _as_array(name, x, next(iter(sparse), None)) for name, x in named.items() if name not in sparse}
    if not sparse:
        raise TypeError("one of the operands must be a `RowSharded`, got only arrays; add those with `+`")
    _containers.common_shape(names, [sparse.get(name, arrays.get(name)) for name in names])
    layout, starts, indices = common_pattern(sparse, alike=not arrays)
    data = [_arguments.as_numeric(f"{name}.data", x.data) for name, x in sparse.items()]
    values, dense = tuple(data), tuple(arrays.values())
    dtype = _arguments.common_dtype(("values",), [*values, *dense])
    if dense:
        if room is not None:
            raise ValueError(f"`capacity` must not be given if an operand is dense: the sum is dense too; got {room}")
        return _engine.add_to_dense(layout, dense, indices, values, dtype)
    total = _engine.add(layout, room, canonical, starts, indices, values, dtype)
    return RowSharded(total.values, total.indices, starts[0], total.nnz, layout, total.values.shape[1:])


def _as_array(name: str, operand: Any, other: str | None) -> jax.Array:
    """A dense operand; `other` is the name of a sparse one, for messages."""
    if isinstance(operand, jax.Array | np.ndarray | list | tuple) or hasattr(operand, "__jax_array__"):
        return _arguments.as_numeric(name, operand)
    remedy = ""
    if hasattr(operand, "todense"):
        remedy = (
            "; `partition` spreads its rows, and `jax_sparse_grad.add` adds on one device"
            if other is None
            else f"; `partition({name}, {other}.mesh, {other}.axis, row_starts={other}.row_starts)` spreads its rows"
        )
    elif isinstance(operand, numbers.Number):
        remedy = "; a number has no shape: add it to `data` to change the entries, or pass an array made by `jnp.full`"
    raise TypeError(f"`{name}` must be a `RowSharded` or an array, got {type(operand).__name__}{remedy}")
