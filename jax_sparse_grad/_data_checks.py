"""Every check of data, with its message. Concrete data raise at once; `checkify` reports those that are traced.

`guard_*` return what they were given, on condition that it is what the caller says. The result must be used.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jax_sparse_grad import _keys
from jax_sparse_grad._batching import map_batches
from jax_sparse_grad._checkify import guard
from jax_sparse_grad._concrete import is_concrete, read
from jax_sparse_grad._types import Spec

T = TypeVar("T")


def guard_operands(spec: Spec, indices: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Traced indices `[*batch, nnz_k, ndims]`, on condition that rows are entries or padding, in the promised order."""

    def guard_operand(name: str, rows: jax.Array) -> jax.Array:
        rows = guard_rows(name, rows, spec.shape if spec.strict else None)
        return _guard_canonical(name, rows, spec.shape) if spec.canonical else rows

    return tuple(
        map_batches(partial(guard_operand, name), rows.ndim - 2)(rows)
        for name, rows in zip(spec.names, indices, strict=True)
    )


def check_operands(spec: Spec, indices: Sequence[np.ndarray]) -> None:
    """Check that all concrete rows `[*batch, nnz_k, ndims]` are entries or padding."""
    shape = spec.shape if spec.strict else None
    for name, rows in zip(spec.names, indices, strict=True):
        bad = is_bad(rows, shape)
        if bad.any():
            batch = tuple(np.argwhere(bad)[0][:-1])
            guard_rows(name + "".join(f"[{index}]" for index in batch), rows[batch], shape)


def guard_rows(name: str, indices: T, shape: tuple[int, ...] | None) -> T:
    """Index rows `[nnz, ndims]`, on condition that all are entries or padding; without a shape, that none is negative.

    A shape is given for indices that people write by hand. In JAX's containers, any row beyond the shape is padding.
    """
    rows: Any = read(indices) if is_concrete(indices) else indices
    if rows.shape[0] == 0:
        return indices
    find = _find_bad_row if is_concrete(indices) else _find_bad_row_traced
    ok, row, content = find(rows, shape)
    expected = "not be negative" if shape is None else f"lie in [0, {shape}), or equal {shape} in padding"
    message = f"`{name}` must {expected}; row {{row}} is {{indices}}"
    return guard(indices, ok, message, row=row, indices=content)


def _find_bad_row(rows: Any, shape: tuple[int, ...] | None) -> tuple[Any, Any, Any]:
    """Whether no row is bad, and the number and content of the first bad row (of any row if none is)."""
    bad = is_bad(rows, shape)
    row = bad.argmax()
    return ~bad.any(), row, rows[row]


_find_bad_row_traced = jax.jit(_find_bad_row, static_argnums=1)  # one function in the program, for all operands


def is_bad(rows: Any, shape: tuple[int, ...] | None) -> Any:
    """Whether each row `[..., ndims]` is neither an entry nor padding; without a shape, whether an index is negative.

    By numpy if the rows are numpy's.
    """
    if shape is None:
        return (rows < 0).any(axis=-1)
    return ~(_keys.is_entry(rows, shape) | (rows == np.asarray(shape, rows.dtype)[(None,) * (rows.ndim - 1)]).all(-1))


def _guard_canonical(name: str, indices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    message = f"`{name}` must be sorted and unique, with padding last, for `assume_canonical=True`"
    return guard(indices, jnp.all(_keys.ascend_strictly(_keys.ravel(indices, shape))), message)


def guard_nse(tree: T, nnz: Any, nse: int, bound: int) -> T:
    """The same arrays, on condition that `nnz` entries, at most `bound` in each batch, fit `nse`."""
    if nse >= bound:
        return tree
    if nse == 0 and not is_concrete(nnz):
        # Nothing is stored that could be poisoned.
        raise ValueError(f"`nse` must be positive for a traced sum of up to {bound} entries, got 0")
    message = f"`nse` must be at least {{nnz}}, the number of distinct entries of the sum; got {nse}"
    most: Any = read(nnz).max(initial=0) if is_concrete(nnz) else jnp.max(nnz, initial=0)
    return guard(tree, most <= nse, message, nnz=most)


def guard_sum_and_operands(
    names: Sequence[str], rows: tuple[jax.Array, ...], shape: tuple[int, ...] | None
) -> tuple[jax.Array, ...]:
    """The indices of A, B and their sum, on condition that all are valid, and the sum is sorted."""
    *operands, total = (guard_rows(name, each, shape) for name, each in zip(names, rows, strict=True))
    host: Any = read(total) if is_concrete(total) else total
    before, after = (_keys.columns_as_words(host[part]) for part in (slice(None, -1), slice(1, None)))
    falls = _keys.is_less(after, before)
    return *operands, guard(total, ~falls.any(), "`sum_indices` must be sorted as `sparse_add` returns them")


def guard_indptr(name: str, indptr: T, nse: int) -> T:
    """Row starts `[*batch, rows + 1]` of a BCSR, on condition that they rise from 0 to at most `nse`."""
    starts: Any = read(indptr) if is_concrete(indptr) else indptr
    rises = (starts[..., 1:] >= starts[..., :-1]).all() & (starts[..., 0] == 0).all()
    most = min(nse, int(jnp.iinfo(starts.dtype).max))
    message = f"`{name}` must rise from 0 to at most nse ({nse}); got {{indptr}}"
    return guard(indptr, rises & (starts[..., -1] <= np.asarray(most, starts.dtype)).all(), message, indptr=starts)
