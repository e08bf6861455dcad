"""A sum, a plan, a gradient, from a `Spec`, indices and values. Concrete or traced is decided here, once.

    indices      the symbolic phase                the numeric phase
    concrete     numpy; exactly as many entries    numpy if values are concrete too, and lie on a CPU; else XLA
    traced       XLA; as many as all have          XLA

Indices are `[*batch, nnz_k, ndims]`, values `[*batch, nnz_k, *dense]`; `_arguments` has checked both. Here the content
of indices is checked, by `_data_checks`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jax_sparse_grad import _data_checks, _host, _threshold, _union, _values
from jax_sparse_grad._batching import map_batches
from jax_sparse_grad._concrete import is_concrete, outside_of_trace, put_like, read
from jax_sparse_grad._types import Arrays, Spec, Threshold
from jax_sparse_grad._union import Union


def find_union(spec: Spec, indices: Arrays) -> Union:
    """The union of operands: one for each batch, but a single one along axes of length 1."""
    bound = most_entries(indices)
    if is_concrete(indices):
        rows = [read(each) for each in indices]
        _data_checks.check_operands(spec, rows)
        sum_indices, slots, nnz = _host.find_union(rows, spec.shape, spec.nse)
        _data_checks.check_nse((), nnz, sum_indices.shape[-2], bound)
        return Union(*put_like(indices, (sum_indices, slots, nnz), rows[0].ndim - 2))
    nse = bound if spec.nse is None else spec.nse

    def find(*operands: jax.Array) -> Union:
        return _union.find_union(spec.shape, nse, operands, canonical=spec.canonical)

    union = map_batches(find, indices[0].ndim - 2)(*_data_checks.check_operands(spec, indices))
    return _data_checks.check_nse(union, union.nnz, nse, bound)


def most_entries(indices: Arrays) -> int:
    """The most entries that a sum can have: the rows of all operands, or one if the tensor is a scalar."""
    total = sum(rows.shape[-2] for rows in indices)
    return total if indices[0].shape[-1] else min(total, 1)


def find_union_above(spec: Spec, indices: Arrays, values: Arrays, thresh: Threshold, dtype: np.dtype) -> Union:
    """The union of two operands without batches, from which a threshold drops entries."""
    every = find_union(spec._replace(nse=None), indices)
    bound = most_entries(indices)
    nse = bound if spec.nse is None else spec.nse
    exact = spec.nse is None and is_concrete(indices, values, thresh)

    def drop() -> Union:
        return _threshold.drop_below(every, values, thresh, shape=spec.shape, nse=nse, dtype=dtype)

    union = outside_of_trace(drop) if is_concrete(indices, values, thresh) else drop()
    if exact:
        return union._replace(indices=put_like(indices, read(union.indices)[: int(read(union.nnz))]))
    return _data_checks.check_nse(union, union.nnz, nse, bound)


def add_values(
    union: Union, values: Arrays, dtype: np.dtype, *, negated: Sequence[bool] = (), weights: Sequence[Any] = ()
) -> jax.Array:
    """The values of a sum, linear in those of the operands and in their weights."""
    nse, n_batch = union.indices.shape[-2], union.nnz.ndim

    def add(nnz: jax.Array, slots: Arrays, values: Arrays) -> jax.Array:
        return _values.place(nse, nnz, slots, values, dtype=dtype, negated=negated, weights=weights)

    return map_batches(add, n_batch)(union.nnz, union.slots, values)


def add_to_dense(
    spec: Spec,
    dense: Arrays,
    indices: Arrays,
    values: Arrays,
    dtype: np.dtype,
    *,
    negated: Sequence[bool] = (),
    weights: Sequence[Any] = (),
) -> jax.Array:
    """The sum of dense arrays `[*batch, *shape, *dense]` and sparse operands, whose signs and weights follow theirs."""
    if is_concrete(indices):
        _data_checks.check_operands(spec, [read(each) for each in indices])
    else:
        indices = _data_checks.check_operands(spec, indices)

    def add(dense: Arrays, indices: Arrays, values: Arrays) -> jax.Array:
        return _values.place_onto(
            dense, indices, values, sizes=spec.shape, dtype=dtype, negated=negated, weights=weights
        )

    return map_batches(add, indices[0].ndim - 2)(dense, indices, values)


def gather_gradients(
    names: Sequence[str], shape: tuple[int, ...] | None, rows: Arrays, cotangent: jax.Array
) -> tuple[jax.Array, ...]:
    """The gradients of A and B, given the indices of A, B and their sum, and the cotangent of the sum."""
    *operands, total = _data_checks.check_sum_and_operands(names, rows, shape)

    def lookup() -> Arrays:
        return _union.lookup(shape, total, operands)

    slots = outside_of_trace(lookup) if is_concrete(rows) else lookup()
    return _values.gather(np.int32(cotangent.shape[0]), slots, cotangent)
