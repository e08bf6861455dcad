"""The checks of indices. Concrete indices raise at once; `checkify` reports those that are traced.

Each function returns the arrays that it was given. Use these: otherwise, a traced check is removed as dead code.
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
from jax_sparse_grad._checkify import check
from jax_sparse_grad._concrete import is_concrete, read
from jax_sparse_grad._types import Spec

T = TypeVar("T")


def check_operands(spec: Spec, indices: Sequence[Any]) -> tuple[Any, ...]:
    """Check that all index rows `[*batch, nnz_k, ndims]` of all operands are entries or padding.

    Traced rows are also checked for the order that `assume_canonical` asserts.
    """
    shape = None if spec.beyond_is_padding else spec.shape
    checked = tuple(check_rows(name, rows, shape) for name, rows in zip(spec.names, indices, strict=True))
    if not spec.canonical or is_concrete(checked):
        return checked
    return tuple(
        map_batches(partial(_check_canonical, name, spec.shape), rows.ndim - 2)(rows)
        for name, rows in zip(spec.names, checked, strict=True)
    )


def check_rows(name: str, rows: T, shape: tuple[int, ...] | None) -> T:
    """Check that all index rows `[*batch, nnz, ndims]` are entries or padding; without a shape, that none is negative.

    A shape is given for indices that people write by hand. In JAX's containers, any row beyond the shape is padding.
    """
    array: Any = read(rows) if is_concrete(rows) else rows
    if 0 in array.shape[:-1] or (is_concrete(rows) and not is_bad(array, shape).any()):
        return rows
    find = _find_bad_row if is_concrete(rows) else _find_bad_row_traced
    ok, content, (*batch, row) = find(array, shape)
    where = "".join(f"[{{batch_{k}}}]" for k in range(len(batch)))
    expected = "not be negative" if shape is None else f"lie in [0, {shape}), or equal {shape} in padding"
    message = f"`{name}{where}` must {expected}; row {{row}} is {{indices}}"
    return check(rows, ok, message, row=row, indices=content, **{f"batch_{k}": each for k, each in enumerate(batch)})


def _find_bad_row(rows: Any, shape: tuple[int, ...] | None) -> tuple[Any, Any, list[Any]]:
    """Whether no row is bad, the first bad row (any row if none is), and its position along each axis."""
    bad = is_bad(rows, shape)
    number = bad.argmax()
    content = rows.reshape(bad.size, rows.shape[-1])[number]
    position: list[Any] = []
    for size in reversed(bad.shape):
        position.insert(0, number % size)
        number = number // size
    return ~bad.any(), content, position


_find_bad_row_traced = jax.jit(_find_bad_row, static_argnums=1)  # one function in the program, for all operands


def is_bad(rows: Any, shape: tuple[int, ...] | None) -> Any:
    """Whether each row `[..., ndims]` is neither an entry nor padding; without a shape, whether an index is negative.

    By numpy if the rows are numpy's.
    """
    if shape is None:
        return (rows < 0).any(axis=-1)
    padding = np.asarray(shape, rows.dtype).reshape(*[1] * (rows.ndim - 1), -1)
    return ~(_keys.is_entry(rows, shape) | (rows == padding).all(axis=-1))


def _check_canonical(name: str, shape: tuple[int, ...], rows: jax.Array) -> jax.Array:
    message = f"`{name}` must be sorted and unique, with padding last, for `assume_canonical=True`"
    return check(rows, jnp.all(_keys.ascend_strictly(_keys.ravel(rows, shape))), message)


def check_nse(arrays: T, nnz: Any, nse: int, bound: int) -> T:
    """Check that `nnz` entries, at most `bound` in each batch, fit `nse`."""
    if nse >= bound:
        return arrays
    if nse == 0 and not is_concrete(nnz):
        # Nothing is stored that could be poisoned.
        raise ValueError(f"`nse` must be positive for a traced sum of up to {bound} entries, got 0")
    most: Any = read(nnz).max(initial=0) if is_concrete(nnz) else jnp.max(nnz, initial=0)
    message = f"`nse` must be at least {{nnz}}, the number of distinct entries of the sum; got {nse}"
    return check(arrays, most <= nse, message, nnz=most)


def check_sum_and_operands(
    names: Sequence[str], rows: Sequence[jax.Array], shape: tuple[int, ...] | None
) -> tuple[jax.Array, ...]:
    """Check the index rows of A, B and their sum, and that those of the sum are sorted."""
    *operands, total = (check_rows(name, each, shape) for name, each in zip(names, rows, strict=True))
    array: Any = read(total) if is_concrete(total) else total
    before, after = _keys.columns_as_words(array[:-1]), _keys.columns_as_words(array[1:])
    ok = ~_keys.is_less(after, before).any()
    return *operands, check(total, ok, f"`{names[-1]}` must be sorted as `sparse_add` returns them")


def check_indptr(name: str, indptr: T, nse: int) -> T:
    """Check that the row starts `[*batch, rows + 1]` of a BCSR rise from 0 to at most `nse`."""
    starts: Any = read(indptr) if is_concrete(indptr) else indptr
    most = min(nse, int(jnp.iinfo(starts.dtype).max))
    rises = (starts[..., 1:] >= starts[..., :-1]).all() & (starts[..., 0] == 0).all()
    ok = rises & (starts[..., -1] <= np.asarray(most, starts.dtype)).all()
    return check(indptr, ok, f"`{name}` must rise from 0 to at most nse ({nse}); got {{indptr}}", indptr=starts)
