"""The dispatch: what is concrete is asked here, once for each sum, and decides how it is computed.

    indices     values      a sum
    concrete    concrete    in buckets, for which little is compiled; then cut to the exact number of entries
    concrete    traced      the patterns are united now, and values go through their union, which is a constant
    traced      any         one program for everything, with room for as many entries as there could be

Plans are sums without values, and `sparse_add_grad` a union that is found again. Indices are `[*batch, nnz_k, ndims]`,
values `[*batch, nnz_k, *dense]`, both checked by `_validation`. Their content is checked here, by `_guards`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from jax_sparse_grad import _guards, _numeric, _tree, _union
from jax_sparse_grad._eager import bucket, buckets, call_concretely, concatenate, is_concrete, resize
from jax_sparse_grad._keys import Space, space_of
from jax_sparse_grad._linear import Groups
from jax_sparse_grad._numeric import add_values, pick_values
from jax_sparse_grad._primitives import map_batches
from jax_sparse_grad._threshold import is_kept
from jax_sparse_grad._tree import UnionTree, entry_counts
from jax_sparse_grad._types import Arrays, Form, Limit, Order, Spec
from jax_sparse_grad._validation import MOST_ENTRIES

SEPARATE_BELOW = 1 << 15  # slots: for a shorter concrete sum, 2 s of compilation would save less than 1 ms a call


class Pattern(NamedTuple):
    """A sum without values: its index rows `[*batch, nse, ndims]`, and where the entries of the operands go."""

    indices: jax.Array
    union: UnionTree


class Total(NamedTuple):
    """A sum: its index rows, its values, and its true number of entries."""

    indices: jax.Array
    values: jax.Array
    nnz: jax.Array


class Derivative(NamedTuple):
    """How a sum is differentiated: the two functions that add values.

    unite_and_add: `(form, space, indices, values, limit)`, the sum of traced operands; a limit is a threshold or None.
    add: `(union, values)`, values through a union that is known.
    """

    unite_and_add: Callable[[Form, Space, Arrays, Arrays, Limit | None], Total]
    add: Callable[[UnionTree, Arrays], jax.Array]


# --- Sums ---


def add(
    spec: Spec, indices: Arrays, values: Arrays, derivative: Derivative, limit: Limit | None = None
) -> tuple[jax.Array, jax.Array]:
    """The indices and values of a sum, of which a limit drops some entries."""
    if is_concrete(indices, values, limit):
        return call_concretely(lambda: _add_exactly(spec, indices, values, derivative, limit))
    bound = most_rows(indices)
    nse = bound if spec.nse is None else spec.nse
    if is_concrete(indices):
        # What a limit keeps depends on the values: then the plan has room for all, and the sum as if none were known.
        pattern = plan(spec if limit is None else spec._replace(nse=None), indices)
        if limit is not None:
            pattern = _keep(spec, nse, pattern, jax.lax.stop_gradient(values), limit)
            pattern = pattern._replace(indices=_guards.guard_nse(pattern.indices, pattern.union.nnz, nse, bound))
        return pattern.indices, derivative.add(pattern.union, values)
    indices = _guards.guard_operands(spec, indices)
    form, operands = form_of(nse, spec.order, indices, apart=spec.apart)
    total = derivative.unite_and_add(form, space_of(spec.shape, indices[0].dtype), operands, values, limit)
    return _guards.guard_nse(total.indices, total.nnz, nse, bound), total.values


def form_of(nse: int, order: Order, indices: Arrays, *, apart: bool = False) -> tuple[Form, Arrays]:
    """The form of a sum of traced operands in `nse` slots, and these, perhaps joined."""
    operands, joined = _join(order, indices, apart)
    return Form(nse, order if joined is None else Order.ANY, joined), operands


def _join(order: Order, indices: Arrays, apart: bool) -> tuple[Arrays, tuple[int, ...] | None]:
    """The operands; or one list of them all and their sizes, if that is better, and allowed."""
    return (indices, None) if apart else _tree.join(indices, order)


def most_rows(indices: Arrays) -> int:
    """The most entries that a sum can have: the rows of all operands, or one if the tensor is a scalar."""
    total = sum(rows.shape[-2] for rows in indices)
    return total if indices[0].shape[-1] else min(total, 1)


def _add_exactly(
    spec: Spec, indices: Arrays, values: Arrays, derivative: Derivative, limit: Limit | None
) -> tuple[jax.Array, jax.Array]:
    padded, groups = _pad_indices(spec, indices)
    form = Form(most_rows(padded), _order_of(spec, indices, padded))
    unite_and_add = _unite_then_add if form.nse <= SEPARATE_BELOW and limit is None else derivative.unite_and_add
    space = space_of(spec.shape, padded[0].dtype)
    total = unite_and_add(form, space, padded, _pad_values(values, padded, groups), limit)
    nse, axis = _exact_nse(spec, total.nnz, indices), n_batch_of(indices)
    resized = resize(total.indices, nse, spec.shape, axis), resize(total.values, nse, 0, axis)
    # numpy did the fitting where it could: nothing is compiled for a new length.
    fitted: tuple[jax.Array, jax.Array] = jax.device_put(resized)
    return fitted


def _unite_then_add(form: Form, space: Space, operands: Arrays, values: Arrays, _: object) -> Total:
    """The sum of concrete operands by the program that also makes plans and eager gradients, and a small one."""
    indices, union = unite(form, space, operands)
    return Total(indices, _add_compiled(_numeric.without_known(union), values), union.nnz)


def _add_batches(union: UnionTree, values: Arrays) -> jax.Array:
    return map_batches(add_values, union.nnz.ndim)(union, values)


_add_compiled = jax.jit(_add_batches)


@partial(jax.jit, static_argnums=0)
def unite_and_add(form: Form, space: Space, operands: Arrays, values: Arrays, _: None = None) -> Total:
    """A sum that is used once, differentiated as the linear map that it is."""
    n_batch = n_batch_of(operands)
    if any(_is_shared(operands, k) and not _is_shared(values, k) for k in range(n_batch)):
        sum_indices, union = unite(form, space, operands)
        return Total(sum_indices, _add_batches(union, values), union.nnz)

    def add(operands: Arrays, values: Arrays) -> Total:
        sum_indices, union, total = _union.unite_and_add(form, space, operands, values)
        return Total(sum_indices, total, union.nnz)

    return map_batches(add, n_batch)(operands, values)


def _is_shared(arrays: Arrays, axis: int) -> bool:
    return all(array.shape[axis] == 1 for array in arrays)


LINEAR = Derivative(unite_and_add, _add_batches)
"""Sums that JAX may transpose, and differentiate forward."""


def n_batch_of(indices: Arrays) -> int:
    """The number of batch dimensions of indices `[*batch, nnz, ndims]`."""
    return indices[0].ndim - 2


# --- Plans ---


def plan(spec: Spec, indices: Arrays) -> Pattern:
    """The pattern of a sum: one for each batch, but a single one along axes of length 1."""
    if is_concrete(indices):
        return call_concretely(lambda: _plan_exactly(spec, indices))
    indices = _guards.guard_operands(spec, indices)
    bound = most_rows(indices)
    nse = bound if spec.nse is None else spec.nse
    form, operands = form_of(nse, spec.order, indices, apart=spec.apart)
    pattern = unite(form, space_of(spec.shape, indices[0].dtype), operands)
    return _guards.guard_nse(pattern, pattern.union.nnz, nse, bound)


def _plan_exactly(spec: Spec, indices: Arrays) -> Pattern:
    padded, groups = _pad_indices(spec, indices)
    form = Form(most_rows(padded), _order_of(spec, indices, padded))
    rows, union = unite(form, space_of(spec.shape, padded[0].dtype), padded)
    nse = _exact_nse(spec, union.nnz, indices)
    # So a step with the plan needs no conditional, even if the plan is an argument of a compiled one.
    union = _tree.separate(_tree.fit(_numeric.without_flags(union), nse, iter(groups)))
    return jax.device_put(Pattern(resize(rows, nse, spec.shape, n_batch_of(indices)), union))


@partial(jax.jit, static_argnums=0)
def unite(form: Form, space: Space, operands: Arrays) -> Pattern:
    """The pattern of a sum of operands, perhaps joined, for keeping."""

    def unite(*operands: jax.Array) -> Pattern:
        return Pattern(*_union.unite(form, space, operands))

    return map_batches(unite, n_batch_of(operands))(*operands)


def _keep(spec: Spec, nse: int, pattern: Pattern, values: Arrays, limit: Limit) -> Pattern:
    """The pattern of those slots that a limit keeps, in `nse` slots."""
    space = space_of(spec.shape, pattern.indices.dtype)
    if not is_concrete(pattern, values, limit):
        return _restrict(nse, space, pattern, values, limit)

    def keep() -> Pattern:
        groups = entry_counts(pattern.union)
        length = bucket(max(pattern.indices.shape[0], *(size for (size,) in groups)))  # one for all
        roomy = Pattern(
            resize(pattern.indices, length, spec.shape), _tree.fit(pattern.union, length, ((length,) for _ in groups))
        )
        padded_values = tuple(resize(array, length, 0) for array in values)
        indices, union = _restrict(bucket(nse), space, roomy, padded_values, limit)
        return jax.device_put(Pattern(resize(indices, nse, spec.shape), _tree.fit(union, nse, iter(groups))))

    return call_concretely(keep)


@partial(jax.jit, static_argnums=0)
def _restrict(nse: int, space: Space, pattern: Pattern, values: Arrays, limit: Limit) -> Pattern:
    indices, union = pattern
    return Pattern(*_tree.restrict(indices, union, is_kept(union, values, limit), space, nse))


# --- Gradients ---


def gather_gradients(
    names: Sequence[str], shape: tuple[int, ...] | None, rows: Arrays, cotangent: jax.Array
) -> tuple[jax.Array, ...]:
    """The gradients of A and B, given the indices of A, B and their sum, and the cotangent of the sum."""
    space = None if shape is None else space_of(shape, rows[0].dtype)
    if not is_concrete(rows):
        return _locate_and_gather(cotangent, _guards.guard_sum_and_operands(names, rows, shape), space)
    if is_concrete(cotangent):
        return call_concretely(lambda: _gather_exactly(names, shape, rows, cotangent, space))
    return pick_values(call_concretely(lambda: _locate_exactly(names, shape, rows, space)), cotangent)


@jax.jit
def _locate_and_gather(cotangent: jax.Array, rows: Arrays, space: Space | None) -> tuple[jax.Array, ...]:
    return pick_values(_locate(rows, space), cotangent)


@jax.jit
def _locate(
    rows: Arrays, space: Space | None, counts: tuple[ArrayLike, ...] = (np.int32(MOST_ENTRIES),) * 2
) -> UnionTree:
    """The places of the first `counts` rows of A and B in the sum; rows behind them have none."""
    *operands, total = rows
    return _union.locate(total, tuple(operands), counts, space)


def _gather_exactly(
    names: Sequence[str], shape: tuple[int, ...] | None, rows: Arrays, cotangent: jax.Array, space: Space | None
) -> tuple[jax.Array, ...]:
    padded = _pad_located(names, shape, rows, space)
    gradients = _locate_and_gather(resize(cotangent, padded[-1].shape[0], 0), padded, space)
    sizes = [each.shape[0] for each in rows]
    fitted: tuple[jax.Array, ...] = jax.device_put(
        tuple(resize(*each, 0) for each in zip(gradients, sizes, strict=False))
    )
    return fitted


def _locate_exactly(
    names: Sequence[str], shape: tuple[int, ...] | None, rows: Arrays, space: Space | None
) -> UnionTree:
    *sizes, nse = (each.shape[0] for each in rows)
    roomy = _locate(_pad_located(names, shape, rows, space), space, tuple(map(np.int32, sizes)))
    union = _tree.fit(roomy._replace(nnz=np.int32(nse)), nse, ((size,) for size in sizes))
    placed: UnionTree = jax.device_put(union)
    return placed


def _pad_located(names: Sequence[str], shape: tuple[int, ...] | None, rows: Arrays, space: Space | None) -> Arrays:
    """Concrete indices of A, B and their sum, padded to buckets, on condition that they are right."""
    fills: Sequence[Any] = [shape] * len(rows)
    if shape is None:
        # Repeating the last row keeps the order and changes nothing: a search finds the first of equal rows.
        fills = [np.asarray(each)[-1] if each.shape[0] else 0 for each in rows]
    lengths = buckets([each.shape[0] for each in rows])
    padded = tuple(resize(*each) for each in zip(rows, lengths, fills, strict=True))
    if not _guards.are_sum_and_operands(padded, space):
        _guards.guard_sum_and_operands(names, rows, shape)
    return padded


# --- Sums with dense arrays ---


def add_to_dense(spec: Spec, dense: jax.Array, indices: Arrays, values: Arrays) -> jax.Array:
    """A dense array with the values of sparse operands added to it."""
    if not is_concrete(indices):
        return _numeric.scatter_add(dense, _guards.guard_operands(spec, indices), values, spec.shape)

    def pad_and_check() -> tuple[Arrays, Groups]:
        padded, groups = _pad_indices(spec, indices)
        _guards.check_concrete(spec, indices, padded)
        return padded, groups

    padded, groups = call_concretely(pad_and_check)
    if is_concrete(values):
        # `jax.transfer_guard("disallow")` requires an explicit transfer of what numpy padded.
        indices, values = jax.device_put((padded, _pad_values(values, padded, groups)))
    return _numeric.scatter_add(dense, indices, values, spec.shape)


# --- Concrete operands ---


def _pad_indices(spec: Spec, indices: Arrays) -> tuple[Arrays, Groups]:
    """Concrete indices padded to buckets, and the numbers of entries in each list.

    Operands that are sorted as one list are joined first, so that only the total length counts.
    """
    operands, joined = _join(spec.order, indices, spec.apart)
    sizes = [rows.shape[-2] for rows in operands]
    lengths = buckets(sizes) if spec.shape else sizes  # a scalar tensor has no padding
    axis = n_batch_of(operands)
    padded = tuple(resize(rows, length, spec.shape, axis) for rows, length in zip(operands, lengths, strict=True))
    return padded, (joined,) if joined else tuple((size,) for size in sizes)


def _pad_values(values: Arrays, padded: Arrays, groups: Groups) -> Arrays:
    """Concrete values joined and padded as their indices are."""
    axis = n_batch_of(padded)
    parts = iter(values)
    joined = [concatenate([next(parts) for _ in sizes], axis) for sizes in groups]
    return tuple(resize(array, rows.shape[-2], 0, axis) for array, rows in zip(joined, padded, strict=True))


def _order_of(spec: Spec, indices: Arrays, padded: Arrays) -> Order:
    """The order of concrete operands as padded, on condition that they are valid."""
    canonical = _guards.check_concrete(spec, indices, padded)
    if len(padded) < len(indices):  # joined, and sorted in any case
        return Order.ANY
    if canonical or spec.order is Order.CANONICAL:
        return Order.CANONICAL
    return Order.UNKNOWN if len(padded) > 2 else Order.ANY  # in a tree, some may be


def _exact_nse(spec: Spec, nnz: jax.Array, indices: Arrays) -> int:
    """The number of elements that a concrete sum stores: the number asked for, or as many as there are."""
    nse = _tree.most_entries(nnz) if spec.nse is None else spec.nse
    _guards.guard_nse((), nnz, nse, most_rows(indices))
    return nse
