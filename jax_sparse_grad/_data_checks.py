"""The checks of indices, for numpy's arrays and for traced ones.

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
from jax_sparse_grad._concrete import is_concrete
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


def check_rows(name: str, rows: Any, shape: tuple[int, ...] | None) -> Any:
    """Check that all index rows `[*batch, nnz, ndims]` are entries or padding; without a shape, that none is negative.

    A shape is given for indices that people write by hand. In JAX's containers, any row beyond the shape is padding.
    """
    sizes = rows.shape[:-1]
    if 0 in sizes:
        return rows
    axes = [*(f"batch_{k}" for k in range(len(sizes) - 1)), "row"]

    def all_are_good(rows: Any) -> tuple[Any, dict[str, Any]]:
        bad = is_bad(rows, shape)
        number = bad.argmax()
        found = {"indices": rows.reshape(bad.size, rows.shape[-1])[number]}
        for axis, size in zip(reversed(axes), reversed(sizes), strict=True):
            found[axis], number = number % size, number // size
        return ~bad.any(), found

    where = "".join(f"[{{{axis}}}]" for axis in axes[:-1])
    expected = "not be negative" if shape is None else f"lie in [0, {shape}), or equal {shape} in padding"
    return check(rows, all_are_good, f"`{name}{where}` must {expected}; row {{row}} is {{indices}}")


def is_bad(rows: Any, shape: tuple[int, ...] | None) -> Any:
    """Whether each row `[..., ndims]` is neither an entry nor padding; without a shape, whether an index is negative.

    By numpy if the rows are numpy's.
    """
    if shape is None:
        return (rows < 0).any(axis=-1)
    padding = np.asarray(shape, rows.dtype).reshape(*[1] * (rows.ndim - 1), -1)
    return ~(_keys.is_entry(rows, shape) | (rows == padding).all(axis=-1))


def _check_canonical(name: str, shape: tuple[int, ...], rows: jax.Array) -> jax.Array:
    def is_canonical(rows: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
        return _keys.ascend_strictly(_keys.ravel(rows, shape)).all(), {}

    message = f"`{name}` must be sorted and unique, with padding last, for `assume_canonical=True`"
    return check(rows, is_canonical, message)


def check_nse(arrays: T, nnz: Any, nse: int, bound: int) -> T:
    """Check that `nnz` entries, at most `bound` in each batch, fit `nse`."""
    if nse >= bound:
        return arrays
    if nse == 0 and not is_concrete(nnz):
        # Nothing is stored that could be poisoned.
        raise ValueError(f"`nse` must be positive for a traced sum of up to {bound} entries, got 0")

    def all_fit(arrays: Any) -> tuple[Any, dict[str, Any]]:
        most = arrays[1].max(initial=0)
        return most <= nse, {"nnz": most}

    message = f"`nse` must be at least {{nnz}}, the number of distinct entries of the sum; got {nse}"
    return check((arrays, nnz), all_fit, message)[0]


def check_sum_and_operands(
    names: Sequence[str], rows: Sequence[jax.Array], shape: tuple[int, ...] | None
) -> tuple[jax.Array, ...]:
    """Check the index rows of A, B and their sum, and that those of the sum are sorted."""

    def is_sorted(rows: Any) -> tuple[Any, dict[str, Any]]:
        before, after = _keys.columns_as_words(rows[:-1]), _keys.columns_as_words(rows[1:])
        return ~_keys.is_less(after, before).any(), {}

    *operands, total = (check_rows(name, each, shape) for name, each in zip(names, rows, strict=True))
    return *operands, check(total, is_sorted, f"`{names[-1]}` must be sorted as `sparse_add` returns them")


def check_indptr(name: str, indptr: T, nse: int) -> T:
    """Check that the row starts `[*batch, rows + 1]` of a BCSR rise from 0 to at most `nse`."""

    def all_rise(starts: Any) -> tuple[Any, dict[str, Any]]:
        most = np.asarray(min(nse, int(jnp.iinfo(starts.dtype).max)), starts.dtype)
        ok = (starts[..., 1:] >= starts[..., :-1]).all() & (starts[..., 0] == 0).all() & (starts[..., -1] <= most).all()
        return ok, {"indptr": starts}

    return check(indptr, all_rise, f"`{name}` must rise from 0 to at most nse ({nse}); got {{indptr}}")
