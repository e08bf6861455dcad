"""SparseAddGrad: the gradient of a sparse sum, gathered at the places of the operands' entries."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_sparse_grad import _keys, _validation
from jax_sparse_grad._checks import guard
from jax_sparse_grad._plan import pick
from jax_sparse_grad._search import search, search_rows
from jax_sparse_grad._union import Placement, placement_of


class SparseAddGradOutput(NamedTuple):
    """The outputs of TensorFlow's `SparseAddGrad`: `a_val_grad [nnz_a, *dense]` and `b_val_grad [nnz_b, *dense]`."""

    a_val_grad: jax.Array
    b_val_grad: jax.Array


def sparse_add_grad(
    backprop_val_grad: Any, a_indices: Any, b_indices: Any, sum_indices: Any, *, shape: Any = None
) -> SparseAddGradOutput:
    """Give the gradients with respect to the values of A and B, from that with respect to the values of their sum.

    Args:
      backprop_val_grad: `[nnz_sum, *dense]`, any numeric dtype: the gradient with respect to the values of the sum.
      a_indices: `[nnz_a, ndims]`, any integer dtype, in any order; duplicates each get the gradient of their sum.
      b_indices: `[nnz_b, ndims]`, likewise.
      sum_indices: `[nnz_sum, ndims]`, sorted as `sparse_add` returns them.
      shape: the dense shape, static. Optional: with it the width of the search keys need not be found from the data,
        and padding (every index equal to the shape) is known as such and gets 0. Give it where indices are padded.

    Returns:
      `SparseAddGradOutput(a_val_grad, b_val_grad)`, shaped like the values of A and B, in the dtype of
      `backprop_val_grad`. Rows of A and B that are absent from `sum_indices` (dropped by a threshold) get 0.

    Raises:
      TypeError: indices are not integers, values not numeric, or `shape` is traced.
      ValueError: indices are not matrices with equal numbers of columns; `backprop_val_grad` has not one row for each
        row of `sum_indices`; concrete indices are negative or lie outside `shape`; concrete `sum_indices` are not
        sorted. Under `jit` the data is checked by `checkify` only.

    Example:
      >>> import jax.numpy as jnp, jax_sparse_grad as jsg
      >>> a, b = jnp.array([[0, 0], [1, 1]]), jnp.array([[1, 1], [2, 0]])
      >>> total = jnp.array([[0, 0], [1, 1], [2, 0]])
      >>> grads = jsg.sparse_add_grad(jnp.array([1., 2., 3.]), a, b, total)
      >>> grads.a_val_grad.tolist(), grads.b_val_grad.tolist()
      ([1.0, 2.0], [2.0, 3.0])

    Mirrors `tf.raw_ops.SparseAddGrad`, argument for argument.
    """
    names = ("a_indices", "b_indices", "sum_indices")
    a, b, total = _validation.as_common_indices(names, (a_indices, b_indices, sum_indices))
    cotangent = _validation.as_values("backprop_val_grad", backprop_val_grad, total.shape[0], "sum_indices")
    sizes = None if shape is None else _validation.as_shape("shape", shape)
    if sizes is not None:
        _validation.check_shape_fits("shape", sizes, names[0], a)
    with _validation.evaluate_if_concrete(a, b, total):
        a, b, total = (_keys.guard_rows(name, rows, sizes) for name, rows in zip(names, (a, b, total), strict=True))
        ordered = _keys.is_sorted(_keys.as_words(total))
        total = guard(total, ordered, "`sum_indices` must be sorted as `sparse_add` returns them")
        placements = _locate(a, b, total, sizes)
    return SparseAddGradOutput(*gather_cotangent(placements, jnp.int32(total.shape[0]), cotangent))


@jax.jit
def gather_cotangent(placements: tuple[Placement, ...], nnz: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, ...]:
    """SparseAddGrad once the entries of both operands are located.

    sum[p] is the sum of all entries whose position is p, so d sum[p] / d entry is 1 where entry's position is p and 0
    elsewhere: the gradient of an entry is the cotangent at its position, and 0 if it has none.
    """
    return tuple(pick(placement, nnz, cotangent) for placement in placements)


@partial(jax.jit, static_argnums=3)
def _locate(
    a_indices: jax.Array, b_indices: jax.Array, sum_indices: jax.Array, shape: tuple[int, ...] | None
) -> tuple[Placement, Placement]:
    """Where the rows of A and B stand in the sum."""
    rows = jnp.concatenate([a_indices, b_indices])
    if shape is None:
        position, found = search_rows(sum_indices, rows)
    else:
        position, found = search(_keys.ravel(sum_indices, shape), _keys.ravel(rows, shape))
    nse = sum_indices.shape[0]
    positions = jnp.where(found, position, nse)
    nnz_a = a_indices.shape[0]
    return placement_of(positions[:nnz_a], nse), placement_of(positions[nnz_a:], nse)
