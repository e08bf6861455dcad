"""SparseAddGrad: the gradient of a sparse sum, gathered at the places of the operands' entries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from jax_sparse_grad import _keys, _tree, _union, _validation
from jax_sparse_grad._auto_axes import on_auto_axes
from jax_sparse_grad._buckets import buckets, resize
from jax_sparse_grad._checks import guard
from jax_sparse_grad._keys import Space
from jax_sparse_grad._numeric import pick_values
from jax_sparse_grad._tree import Union
from jax_sparse_grad._types import ArrayInput, Shape
from jax_sparse_grad._validation import MOST_ENTRIES
from jax_sparse_grad._xla_cpu import all_true


class SparseAddGradOutput(NamedTuple):
    """The outputs of TensorFlow's `SparseAddGrad`: `a_val_grad [nnz_a, *dense]` and `b_val_grad [nnz_b, *dense]`."""

    a_val_grad: jax.Array
    b_val_grad: jax.Array


@on_auto_axes
def sparse_add_grad(
    backprop_val_grad: ArrayInput,
    a_indices: ArrayInput,
    b_indices: ArrayInput,
    sum_indices: ArrayInput,
    *,
    shape: Shape | None = None,
) -> SparseAddGradOutput:
    """Compute the gradients with respect to the values of A and B from the gradient with respect to those of their sum.

    Args:
      backprop_val_grad: `[nnz_sum, *dense]`, of any numeric dtype: the gradient with respect to the values of the sum.
      a_indices: `[nnz_a, ndims]`, of any integer dtype, in any order. Duplicates each get the gradient of their sum.
      b_indices: `[nnz_b, ndims]`, likewise.
      sum_indices: `[nnz_sum, ndims]`, sorted as `sparse_add` returns them.
      shape: the dense shape, static. Optional: with it, the width of the search keys need not be found from the data,
        and padding (all indices equal to the shape) is recognised and gets 0. Give it if indices are padded.

    Returns:
      `SparseAddGradOutput(a_val_grad, b_val_grad)`, shaped like the values of A and B, in the dtype of
      `backprop_val_grad`. Rows of A and B that are absent from `sum_indices` (dropped by a threshold) get 0.

    Raises:
      TypeError: indices are not integers; values are not numeric; `shape` is traced.
      ValueError: indices are not matrices with equal numbers of columns; `backprop_val_grad` does not have one row for
        each row of `sum_indices`; concrete indices are negative or lie outside `shape`; concrete `sum_indices` are not
        sorted. Under `jit` only `checkify` checks the data.

    Example:
      >>> import jax.numpy as jnp, jax_sparse_grad as jsg
      >>> a, b = jnp.array([[0, 0], [1, 1]]), jnp.array([[1, 1], [2, 0]])
      >>> total = jnp.array([[0, 0], [1, 1], [2, 0]])
      >>> grads = jsg.sparse_add_grad(jnp.array([1., 2., 3.]), a, b, total)
      >>> grads.a_val_grad.tolist(), grads.b_val_grad.tolist()
      ([1.0, 2.0], [2.0, 3.0])

    Transformations: all of JAX's, forward mode included.

    Derivatives: linear in `backprop_val_grad`, and differentiable in it, to any order. Indices have no gradient.
    Derivatives gather; they hold no sort and no scatter.

    Mirrors `tf.raw_ops.SparseAddGrad`, argument for argument.
    """
    names = ("a_indices", "b_indices", "sum_indices")
    a, b, total = _validation.as_common_indices(names, (a_indices, b_indices, sum_indices))
    cotangent = _validation.as_values("backprop_val_grad", backprop_val_grad, total.shape[0], "sum_indices")
    _validation.check_devices((*names, "backprop_val_grad"), (a, b, total, cotangent))
    sizes = None if shape is None else _validation.as_shape("shape", shape)
    if sizes is not None:
        _validation.check_shape_fits("shape", sizes, names[0], a)
    rows = (a, b, total)
    space = None if sizes is None else _keys.space_of(sizes, a.dtype)
    if not _validation.is_concrete(rows):
        return _gather(cotangent, *_guard_rows(names, rows, sizes), space)
    if _validation.is_concrete(cotangent):
        return _validation.call_concretely(lambda: _gather_concrete(names, cotangent, rows, sizes, space))
    union = _validation.call_concretely(lambda: _locate_concrete(names, rows, sizes, space))
    return SparseAddGradOutput(*gather_cotangent(union, cotangent))


def _guard_rows(
    names: Sequence[str], rows: tuple[jax.Array, ...], shape: tuple[int, ...] | None
) -> tuple[jax.Array, ...]:
    """The same indices, on condition that they are what the caller says."""
    *operands, total = (_keys.guard_rows(name, each, shape) for name, each in zip(names, rows, strict=True))
    ordered = _keys.is_sorted(_keys.as_words(total))
    return *operands, guard(total, ordered, "`sum_indices` must be sorted as `sparse_add` returns them")


def _gather_concrete(
    names: Sequence[str],
    cotangent: jax.Array,
    rows: tuple[jax.Array, ...],
    shape: tuple[int, ...] | None,
    space: Space | None,
) -> SparseAddGradOutput:
    """The gradients for concrete indices, by functions that are compiled for few sizes."""
    padded = _pad_rows(names, rows, shape, space)
    gradients = _gather(resize(cotangent, padded[-1].shape[0], 0), *padded, space)
    sizes = [each.shape[0] for each in rows]
    fitted = jax.device_put(tuple(resize(*each, 0) for each in zip(gradients, sizes, strict=False)))
    return SparseAddGradOutput(*fitted)


def _locate_concrete(
    names: Sequence[str], rows: tuple[jax.Array, ...], shape: tuple[int, ...] | None, space: Space | None
) -> Union:
    """The places of concrete rows of A and B in the sum, likewise."""
    *counts, nse = (each.shape[0] for each in rows)
    roomy = _locate(*_pad_rows(names, rows, shape, space), space, tuple(map(np.int32, counts)))
    union = _tree.fit(roomy._replace(nnz=np.int32(nse)), nse, ((count,) for count in counts))
    placed: Union = jax.device_put(union)
    return placed


def _pad_rows(
    names: Sequence[str], rows: tuple[jax.Array, ...], shape: tuple[int, ...] | None, space: Space | None
) -> tuple[jax.Array, ...]:
    """Concrete indices padded to lengths for which little is compiled, on condition that they are right."""
    fills: Sequence[Any] = [shape] * len(rows)
    if shape is None:
        # Repeating the last row keeps the order and changes nothing: a search finds the first of equal rows.
        fills = [np.asarray(each)[-1] if each.shape[0] else 0 for each in rows]
    lengths = buckets([each.shape[0] for each in rows])
    padded = tuple(resize(*each) for each in zip(rows, lengths, fills, strict=True))
    if not _are_sound(padded, space):
        _guard_rows(names, rows, shape)
    return padded


@jax.jit
def _are_sound(rows: tuple[jax.Array, ...], space: Space | None) -> jax.Array:
    """Whether `_guard_rows` would accept them."""
    sound = _keys.is_sorted(_keys.as_words(rows[-1]))
    for each in rows:
        sound &= all_true(~_keys.is_bad(each, None if space is None else space.sizes))
    return sound


@jax.jit
def _gather(
    cotangent: jax.Array, a: jax.Array, b: jax.Array, total: jax.Array, space: Space | None
) -> SparseAddGradOutput:
    return SparseAddGradOutput(*gather_cotangent(_locate(a, b, total, space), cotangent))


def gather_cotangent(union: Union, cotangent: jax.Array) -> tuple[jax.Array, ...]:
    """SparseAddGrad, once the entries of both operands are located.

    sum[p] is the sum of all entries at position p. So d sum[p] / d entry is 1 if the entry is at p and 0 elsewhere: the
    gradient of an entry is the cotangent at its position, and 0 if it has none.
    """
    return pick_values(union, cotangent)


@jax.jit
def _locate(
    a_indices: jax.Array,
    b_indices: jax.Array,
    sum_indices: jax.Array,
    space: Space | None,
    counts: tuple[ArrayLike, ...] = (np.int32(MOST_ENTRIES),) * 2,
) -> Union:
    """The places of the first `counts` rows of A and B in the sum; rows behind them have none."""
    return _union.locate(sum_indices, (a_indices, b_indices), counts, space)
