"""Every check of data, with its message. Concrete data raise at once; `checkify` reports those that are traced.

`guard_*` return what they were given, on condition that it is what the caller says. The result must be used.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jax_sparse_grad import _keys
from jax_sparse_grad._checks import guard
from jax_sparse_grad._eager import is_concrete
from jax_sparse_grad._keys import Space, space_of
from jax_sparse_grad._primitives import map_batches
from jax_sparse_grad._types import Order, Spec
from jax_sparse_grad._xla_cpu import all_true

T = TypeVar("T")


def guard_operands(spec: Spec, indices: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Traced indices `[*batch, nnz_k, ndims]`, on condition that rows are entries or padding, in the promised order."""

    def guard_operand(name: str, rows: jax.Array) -> jax.Array:
        rows = guard_rows(name, rows, spec.shape if spec.strict else None)
        return _guard_canonical(name, rows, spec.shape) if spec.order is Order.CANONICAL else rows

    return tuple(
        map_batches(partial(guard_operand, name), rows.ndim - 2)(rows)
        for name, rows in zip(spec.names, indices, strict=True)
    )


def guard_rows(name: str, indices: jax.Array, shape: tuple[int, ...] | None) -> jax.Array:
    """Index rows `[nnz, ndims]`, on condition that all are entries or padding; without a shape, that none is negative.

    A shape is given for indices that people write by hand. In JAX's containers, any row beyond the shape is padding.
    """
    if indices.shape[0] == 0:
        return indices
    ok, row, content = _find_bad_row(indices, shape)
    expected = "not be negative" if shape is None else f"lie in [0, {shape}), or equal {shape} in padding"
    message = f"`{name}` must {expected}; row {{row}} is {{indices}}"
    return guard(indices, ok, message, row=row, indices=content)


@partial(jax.jit, static_argnums=1)
def _find_bad_row(indices: jax.Array, shape: tuple[int, ...] | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Whether no row is bad, and the number and content of the first bad row (of any row if none is)."""
    bad = is_bad(indices, shape)
    row = jnp.argmax(bad)
    return ~jnp.any(bad), row, indices[row]


def is_bad(indices: jax.Array, sizes: Sequence[ArrayLike] | None) -> jax.Array:
    """Whether each row is neither an entry nor padding; without sizes, whether it has a negative index."""
    columns = _keys.columns_of(indices)
    if sizes is None:
        bad = jnp.zeros(indices.shape[0], bool)
        for column in columns:
            bad |= column < 0
        return bad
    padding = jnp.ones(indices.shape[0], bool)
    for column, size in zip(columns, sizes, strict=True):
        padding &= column == jnp.asarray(size, column.dtype)
    return ~(_keys.is_entry(indices, sizes) | padding)


def _guard_canonical(name: str, indices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    message = f"`{name}` must be sorted and unique, with padding last, for `assume_canonical=True`"
    return guard(indices, _keys.is_canonical(_keys.ravel(indices, space_of(shape, indices.dtype))), message)


def check_concrete(spec: Spec, given: tuple[jax.Array, ...], padded: tuple[jax.Array, ...]) -> bool:
    """Whether concrete operands are canonical as padded, on condition that rows are entries or padding."""
    space = space_of(spec.shape, padded[0].dtype)
    valid, canonical = np.asarray(_facts(padded, space, spec.strict))  # one call, one look
    if not valid:
        shape = spec.shape if spec.strict else None
        for name, rows in zip(spec.names, given, strict=True):
            for batch in np.ndindex(rows.shape[:-2]):
                guard_rows(name + "".join(f"[{index}]" for index in batch), rows[batch], shape)
    return bool(canonical)


@partial(jax.jit, static_argnums=2)
def _facts(operands: tuple[jax.Array, ...], space: Space, strict: bool) -> jax.Array:
    """Whether no row is bad, and whether all operands are canonical."""

    def facts(*operands: jax.Array) -> jax.Array:
        valid = [all_true(~is_bad(rows, space.sizes if strict else None)) for rows in operands]
        canonical = [_keys.is_canonical(_keys.ravel(rows, space)) for rows in operands]
        return jnp.stack([functools.reduce(jnp.logical_and, flags) for flags in (valid, canonical)])

    n_batch = operands[0].ndim - 2
    return jnp.all(map_batches(facts, n_batch)(*operands), axis=range(n_batch))


def guard_nse(tree: T, nnz: jax.Array, nse: int, bound: int) -> T:
    """The same arrays, on condition that `nnz` entries, at most `bound` in each batch, fit `nse`."""
    if nse >= bound:
        return tree
    if nse == 0 and not is_concrete(nnz):
        # Nothing is stored that could be poisoned.
        raise ValueError(f"`nse` must be positive for a traced sum of up to {bound} entries, got 0")
    message = f"`nse` must be at least {{nnz}}, the number of distinct entries of the sum; got {nse}"
    most = jnp.max(nnz, initial=0)
    return guard(tree, most <= nse, message, nnz=most)


def guard_sum_and_operands(
    names: Sequence[str], rows: tuple[jax.Array, ...], shape: tuple[int, ...] | None
) -> tuple[jax.Array, ...]:
    """The indices of A, B and their sum, on condition that all are valid, and the sum is sorted."""
    *operands, total = (guard_rows(name, each, shape) for name, each in zip(names, rows, strict=True))
    ordered = _keys.is_sorted(_keys.as_words(total))
    return *operands, guard(total, ordered, "`sum_indices` must be sorted as `sparse_add` returns them")


@jax.jit
def are_sum_and_operands(rows: tuple[jax.Array, ...], space: Space | None) -> jax.Array:
    """Whether `guard_sum_and_operands` would accept them: one call, one look."""
    sound = _keys.is_sorted(_keys.as_words(rows[-1]))
    for each in rows:
        sound &= all_true(~is_bad(each, None if space is None else space.sizes))
    return sound


def guard_indptr(name: str, indptr: jax.Array, nse: int, padded: jax.Array | None = None) -> jax.Array:
    """Row starts `[*batch, rows + 1]` of a BCSR, on condition that they rise from 0 to at most `nse`.

    padded: the same, perhaps longer, which is looked at instead.
    """
    most = np.asarray(min(nse, jnp.iinfo(indptr.dtype).max), indptr.dtype)
    message = f"`{name}` must rise from 0 to at most nse ({nse}); got {{indptr}}"
    return guard(indptr, _is_indptr(indptr if padded is None else padded, most), message, indptr=indptr)


@jax.jit
def _is_indptr(indptr: jax.Array, nse: np.ndarray) -> jax.Array:
    return jnp.all(indptr[..., 0] == 0) & jnp.all(indptr[..., 1:] >= indptr[..., :-1]) & jnp.all(indptr[..., -1] <= nse)
