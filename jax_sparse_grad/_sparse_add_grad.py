"""SparseAddGrad: the gradient of a sparse sum, gathered at the slots of the operands' entries."""

from __future__ import annotations

from typing import NamedTuple

import jax

from jax_sparse_grad import _arguments, _sum
from jax_sparse_grad._auto_axes import on_auto_axes
from jax_sparse_grad._types import ArrayInput, Shape


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
      sum_indices: `[nnz_sum, ndims]`, sorted and unique as `sparse_add` returns them.
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
    Forward derivatives gather. The transpose is the sum itself, which scatters. None sorts.

    Mirrors `tf.raw_ops.SparseAddGrad`, argument for argument.
    """
    names = ("a_indices", "b_indices", "sum_indices")
    sizes = None if shape is None else _arguments.as_shape("shape", shape)
    rows = _arguments.as_common_indices(names, (a_indices, b_indices, sum_indices), "shape", sizes)
    cotangent = _arguments.as_values("backprop_val_grad", backprop_val_grad, rows[-1].shape[0], "sum_indices")
    _arguments.check_devices((*names, "backprop_val_grad"), (*rows, cotangent))
    return SparseAddGradOutput(*_sum.gather_gradients(names, sizes, rows, cotangent))
