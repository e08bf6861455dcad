"""`add`, `subtract`, `add_n` and `sum_duplicates` of row-sharded operands: every device adds its own rows."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex, overload

import jax
import numpy as np

from jax_sparse_grad import _arguments, _containers, _weights
from jax_sparse_grad._add import name_operands
from jax_sparse_grad._concrete import is_concrete
from jax_sparse_grad._types import Dense, SupportsJaxArray, Weights
from jax_sparse_grad._weights import Weight
from jax_sparse_grad.sharded import _sum
from jax_sparse_grad.sharded._mesh import Layout, on_shards
from jax_sparse_grad.sharded._operand import RowSharded, as_capacity, as_sharded, common_layout

DenseOperand = Dense | SupportsJaxArray
Operand = RowSharded | DenseOperand


@overload
def add(
    x: RowSharded, y: RowSharded, *, capacity: SupportsIndex | None = None, assume_canonical: bool = False
) -> RowSharded: ...
@overload
def add(x: RowSharded, y: DenseOperand, *, capacity: None = None, assume_canonical: bool = False) -> jax.Array: ...
@overload
def add(x: DenseOperand, y: RowSharded, *, capacity: None = None, assume_canonical: bool = False) -> jax.Array: ...
def add(
    x: Operand, y: Operand, *, capacity: SupportsIndex | None = None, assume_canonical: bool = False
) -> RowSharded | jax.Array:
    """Add two row-sharded sparse matrices or tensors, or one of them and a dense one. Differentiable in both.

    Args:
      x: a `RowSharded` with values `[shards * capacity_x, *dense]`, or an array or nested list.
      y: the same, with the shape of `x`. At least one of the two must be a `RowSharded`. Two of these must be spread
        over the same axis of the same mesh with equal `row_starts`; capacities may differ. Dtypes promote as in `jnp`.
      capacity: the number of elements that the sum stores in each shard, static. By default what the fullest shard
        needs if all indices are concrete, otherwise the sum of the operands' capacities, which is always enough.
      assume_canonical: assert that each shard is sorted and unique, is padded only at its end, and holds only rows of
        its range. Skips the checks.

    Returns:
      A `RowSharded` partitioned as the operands are, each shard sorted and unique, padding last. With a dense operand,
      a dense array, replicated.

    Raises:
      TypeError: no operand is a `RowSharded`; one is neither that nor an array; a static argument is traced.
      ValueError: shapes, meshes or axes differ. If they are concrete: `row_starts` differ; indices lie outside the
        shape or the range of their shard; a shard of the sum has more entries than `capacity` (the error says which
        shard). In a program of several processes, all of them raise. Under `jit` nothing is raised: indices outside the
        shape count as padding, and a shard that overflows or holds rows of others is poisoned (all shards are, if
        `row_starts` differ): all its values are NaN, the minimum of a signed, or the maximum of an unsigned dtype.

    Example:
      >>> import jax, jax_sparse_grad as jsg
      >>> from scipy.sparse import eye_array
      >>> x = jsg.sharded.partition(eye_array(16), jax.sharding.Mesh(jax.devices(), "rows"), "rows")
      >>> jsg.sharded.add(x, x).data.tolist()[:2]
      [2.0, 2.0]
      >>> loss = lambda data: (jsg.sharded.add(x.with_data(data), x).data ** 2).sum()
      >>> jax.jit(jax.grad(loss))(x.data).tolist()[:2]
      [4.0, 4.0]

    Works under all of JAX's transformations, forward mode included. Neither the sum nor its gradient communicates, but
    for the one all-reduce of a dense sum.
    """
    return _add(("x", "y"), (x, y), capacity, assume_canonical)


@overload
def subtract(
    x: RowSharded, y: RowSharded, *, capacity: SupportsIndex | None = None, assume_canonical: bool = False
) -> RowSharded: ...
@overload
def subtract(x: RowSharded, y: DenseOperand, *, capacity: None = None, assume_canonical: bool = False) -> jax.Array: ...
@overload
def subtract(x: DenseOperand, y: RowSharded, *, capacity: None = None, assume_canonical: bool = False) -> jax.Array: ...
def subtract(
    x: Operand, y: Operand, *, capacity: SupportsIndex | None = None, assume_canonical: bool = False
) -> RowSharded | jax.Array:
    """Subtract row-sharded sparse matrices or tensors, or one of them and a dense one in either order. Differentiable.

    Args:
      x: as for `add`.
      y: as for `add`; it is subtracted from `x`.
      capacity: as for `add`.
      assume_canonical: as for `add`.

    Returns:
      As for `add`, with values x + (-y). Where only y has an entry, the value is exactly -y, also for zeros and NaN,
      but for the signs of zeros in a dense sum.

    Raises:
      TypeError, ValueError: as for `add`.

    Example:
      >>> import jax, jax_sparse_grad as jsg
      >>> from scipy.sparse import eye_array
      >>> x = jsg.sharded.partition(eye_array(16), jax.sharding.Mesh(jax.devices(), "rows"), "rows")
      >>> jsg.sharded.subtract(x, x.with_data(3 * x.data)).data.tolist()[:2]
      [-2.0, -2.0]
    """
    return _add(("x", "y"), (x, y), capacity, assume_canonical, negated=[1])


@overload
def add_n(
    operands: Iterable[RowSharded],
    *,
    weights: Weights | None = None,
    capacity: SupportsIndex | None = None,
    assume_canonical: bool = False,
) -> RowSharded: ...
@overload
def add_n(
    operands: Iterable[Operand],
    *,
    weights: Weights | None = None,
    capacity: SupportsIndex | None = None,
    assume_canonical: bool = False,
) -> RowSharded | jax.Array: ...
def add_n(
    operands: Iterable[Operand],
    *,
    weights: Weights | None = None,
    capacity: SupportsIndex | None = None,
    assume_canonical: bool = False,
) -> RowSharded | jax.Array:
    """Add any number of row-sharded sparse matrices or tensors, and dense ones, in one pass over all patterns.

    Args:
      operands: a list, tuple or other iterable of `RowSharded` and arrays, as for `add`; at least one of them a
        `RowSharded`. A single one is brought to canonical form.
      weights: a scalar for each operand, by which its values are multiplied, as for `jax_sparse_grad.add_n`. They may
        be traced, and are differentiable; their gradient takes one all-reduce of the scalars.
      capacity: as for `add`.
      assume_canonical: as for `add`.

    Returns:
      A `RowSharded`; with a dense operand, a dense array, replicated.

    Raises:
      TypeError, ValueError: as for `add`, and for operands and weights as `jax_sparse_grad.add_n`.

    Example:
      >>> import jax, jax_sparse_grad as jsg
      >>> from scipy.sparse import eye_array
      >>> x = jsg.sharded.partition(eye_array(16), jax.sharding.Mesh(jax.devices(), "rows"), "rows")
      >>> jsg.sharded.add_n([x, x], weights=[2, -0.5]).data.tolist()[:2]
      [1.5, 1.5]
    """
    names, operands = name_operands(operands)
    factors = [] if weights is None else _weights.as_weights(weights, len(operands))
    return _add(names, operands, capacity, assume_canonical, weights=factors)


def sum_duplicates(x: RowSharded, *, capacity: SupportsIndex | None = None, remove_zeros: bool = False) -> RowSharded:
    """Bring each shard of a row-sharded matrix or tensor to canonical form: sorted, each entry once, padding last.

    Args:
      x: a `RowSharded` with values `[shards * capacity_x, *dense]`.
      capacity: as for `add`; by default that of `x` if its indices are traced.
      remove_zeros: leave out stored zeros, as for `jax_sparse_grad.sum_duplicates`.

    Returns:
      A `RowSharded` partitioned as `x` is. Each of several duplicates receives the gradient of their sum.

    Raises:
      TypeError: `x` is not a `RowSharded`; a static argument is traced.
      ValueError: as for `add`.

    Example:
      >>> import jax, jax_sparse_grad as jsg
      >>> from scipy.sparse import coo_array
      >>> entries = [1.0, 2.0, 3.0], ([0, 15, 0], [1, 4, 1])
      >>> x = jsg.sharded.partition(coo_array(entries, (16, 16)), jax.sharding.Mesh(jax.devices(), "rows"), "rows")
      >>> sum(jsg.sharded.sum_duplicates(x).nnz.tolist())
      2
    """
    as_sharded("x", x)
    if _arguments.as_flag("remove_zeros", remove_zeros):
        x = dataclasses.replace(x, indices=_mark_zeros(common_layout({"x": x}), None, None, (x.indices, x.data)))
    total: RowSharded = _add(("x",), (x,), capacity, False)
    return total


@on_shards
def _mark_zeros(layout: Layout, _: None, __: None, own: tuple[jax.Array, jax.Array]) -> jax.Array:
    return _containers.mark_zeros(*own, layout.shape)


def _add(
    names: Sequence[str],
    operands: Sequence[Any],
    capacity: SupportsIndex | None,
    assume_canonical: bool,
    *,
    negated: Sequence[int] = (),
    weights: Sequence[Weight] = (),
) -> Any:
    size, canonical = as_capacity(capacity), _arguments.as_flag("assume_canonical", assume_canonical)
    sparse = {name: x for name, x in zip(names, operands, strict=True) if isinstance(x, RowSharded)}
    first = next(iter(sparse), None)
    dense = {name: _as_array(name, x, first) for name, x in zip(names, operands, strict=True) if name not in sparse}
    if first is None:
        raise TypeError("one of the operands must be a `RowSharded`, got only arrays; add those with `+`")
    _containers.common_shape(names, [sparse.get(name, dense.get(name)) for name in names])
    layout, row_starts, indices = _sum.patterns_of(sparse, same_starts=not dense)
    values = tuple(_arguments.as_numeric(f"{name}.data", x.data) for name, x in sparse.items())
    places = [names.index(name) for name in (*dense, *sparse)]
    value_names, factors = (*dense, *(f"{name}.data" for name in sparse)), [weights[k] for k in places if weights]
    dtype, factors = _weights.in_dtype_of_sum(value_names, [*dense.values(), *values], places, factors)
    static = dtype, tuple(k in negated for k in places)
    if dense:
        if size is not None:
            raise ValueError(f"`capacity` must not be given if an operand is dense: the sum is dense too; got {size}")
        return _sum.add_to_dense(layout, static, (tuple(dense.values()), factors), (indices, values))
    union = _sum.find_union(layout, size, canonical, row_starts, indices)
    total = _sum.add_values(layout, static, factors, (union, values))
    if is_concrete(union) and not is_concrete(total):  # as results of `jit`, constants would be replicated
        union, total = _sum.cut(layout, None, None, (union, total))
    return RowSharded(total, union.indices, row_starts[0], union.nnz, layout, total.shape[1:])


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
