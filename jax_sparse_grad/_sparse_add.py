"""SparseAdd: the sum of two sparse tensors, as a `custom_vjp` whose backward rule is SparseAddGrad."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jax_sparse_grad import _arguments, _sum
from jax_sparse_grad._auto_axes import on_auto_axes
from jax_sparse_grad._batching import pvary_alike
from jax_sparse_grad._concrete import is_concrete
from jax_sparse_grad._types import ArrayInput, Arrays, Shape, Spec
from jax_sparse_grad._union import Union
from jax_sparse_grad._values import gather


class SparseAddOutput(NamedTuple):
    """The outputs of TensorFlow's `SparseAdd`.

    sum_indices: `[nse, ndims]`, lexicographically sorted and unique, padding last.
    sum_values: `[nse, *dense]`.
    sum_shape: the dense shape, a tuple of ints. Static: as a pytree, the output has two leaves, so the shape comes out
      of `jit`, `vmap` and `scan` as it went in, and can be passed to the next addition.
    """

    sum_indices: jax.Array
    sum_values: jax.Array
    sum_shape: tuple[int, ...]


def _flatten_output(output: SparseAddOutput) -> tuple[tuple[tuple[Any, jax.Array], ...], tuple[int, ...]]:
    indices, values = jax.tree_util.GetAttrKey("sum_indices"), jax.tree_util.GetAttrKey("sum_values")
    return ((indices, output.sum_indices), (values, output.sum_values)), output.sum_shape


def _unflatten_output(shape: tuple[int, ...], leaves: Iterable[Any]) -> SparseAddOutput:
    indices, values = leaves
    return SparseAddOutput(indices, values, shape)


jax.tree_util.register_pytree_with_keys(SparseAddOutput, _flatten_output, _unflatten_output)


@on_auto_axes
def sparse_add(
    a_indices: ArrayInput,
    a_values: ArrayInput,
    a_shape: Shape,
    b_indices: ArrayInput,
    b_values: ArrayInput,
    b_shape: Shape,
    thresh: ArrayLike = 0,
    *,
    nse: SupportsIndex | None = None,
    assume_canonical: bool = False,
) -> SparseAddOutput:
    """Add two sparse tensors, differentiably with respect to their values.

    Args:
      a_indices: `[nnz_a, ndims]`, of any integer dtype, in any order. Duplicates are summed. A row is padding if all
        its indices equal the shape.
      a_values: `[nnz_a, *dense]`, of any numeric dtype.
      a_shape: the dense shape, static: `ndims` ints.
      b_indices: `[nnz_b, ndims]`. Index dtypes promote as in `jnp`.
      b_values: `[nnz_b, *dense]`. Value dtypes promote as in `jnp`, and each gradient has its own operand's dtype.
      b_shape: equal to `a_shape`.
      thresh: real scalar, static or traced; cast to the real dtype of the sum. Integers are compared as floats, exactly
        up to 2**24 (with `jax_enable_x64` to 2**53). An entry that both operands hold is dropped if `abs(sum) < thresh`
        (with hybrid values, if this holds for all components). Dropped entries have gradient 0. NaN is kept. `thresh`
        itself has no gradient.
      nse: the number of elements that the sum stores, static. By default the exact number if everything it depends on
        is concrete (also inside `jit` if closed over), otherwise `nnz_a + nnz_b`, which is always enough.
      assume_canonical: assert that both operands are sorted and unique, with padding only at the end. Their order is
        then not looked at: if the assertion is false, the sum is wrong, which only `checkify` reports.

    Returns:
      `SparseAddOutput(sum_indices [nse, ndims], sum_values [nse, *dense], sum_shape)`, lexicographically sorted and
      unique, padding last. If a sum under `jit` has more entries than `nse`, all values are NaN (the minimum of a
      signed, the maximum of an unsigned integer dtype, a mark that holds for this sum only: the next one adds to it).

    Raises:
      TypeError: indices are not integers; values are not numeric; a static argument is traced.
      ValueError: shapes do not match; `nse` is 0 in a traced sum that may have entries; concrete indices lie outside
        the shape; a concrete sum has more entries than `nse`. Under `jit` only `checkify` reports the last two. Without
        it, such indices count as padding, and the values of a sum with too many entries are poisoned as above.

    Example:
      >>> import jax, jax.numpy as jnp, jax_sparse_grad as jsg
      >>> a, b = jnp.array([[0, 0], [1, 1]]), jnp.array([[1, 1], [2, 0]])
      >>> total = jsg.sparse_add(a, jnp.array([1., 2.]), (3, 3), b, jnp.array([10., 20.]), (3, 3))
      >>> total.sum_indices.tolist(), total.sum_values.tolist(), total.sum_shape
      ([[0, 0], [1, 1], [2, 0]], [1.0, 12.0, 20.0], (3, 3))
      >>> loss = lambda v: (jsg.sparse_add(a, v, (3, 3), b, jnp.array([10., 20.]), (3, 3)).sum_values ** 2).sum()
      >>> jax.grad(loss)(jnp.array([1., 2.])).tolist()
      [2.0, 24.0]

    Transformations: `grad`, `vjp`, `jacrev`, `hessian`, `jit`, `vmap` (over values, indices or both), `scan`, `cond`,
    `checkpoint`, `shard_map`, `jax.export`. JAX bars `jvp`, `jacfwd`, `linearize` and `linear_transpose` from every
    `custom_vjp`, which this is: use `add` or a plan for these.

    Derivatives: with respect to `a_values` and `b_values`, of any order. The backward pass is `sparse_add_grad`, which
    gathers the cotangent: it holds no sort and no scatter.

    Mirrors `tf.raw_ops.SparseAdd`, argument for argument.
    """
    shape = _arguments.as_shape("a_shape", a_shape)
    other_shape = _arguments.as_shape("b_shape", b_shape)
    if other_shape != shape:
        raise ValueError(f"`b_shape` must equal `a_shape`; got {other_shape} and {shape}")
    names = ("a_indices", "b_indices")
    indices = _arguments.as_common_indices(names, (a_indices, b_indices), "a_shape", shape)
    value_names = ("a_values", "b_values")
    values = _arguments.as_common_values(value_names, (a_values, b_values), names, [rows.shape[0] for rows in indices])
    _arguments.check_devices((*names, *value_names), (*indices, *values))
    dtype = _arguments.common_dtype(value_names, values)
    spec = Spec(names, shape, _arguments.as_nse(nse), _arguments.as_flag("assume_canonical", assume_canonical))
    threshold = _arguments.as_threshold(thresh)
    if threshold is None:
        union = _sum.find_union(spec, indices)
    else:
        union = _sum.find_union_above(spec, indices, values, threshold, dtype)
    if is_concrete(values):  # nothing is differentiated, and calling a `custom_vjp` would take as long as a small sum
        return SparseAddOutput(union.indices, _sum.add_values(union, values, dtype), shape)
    dtypes = _Dtypes(dtype, tuple(np.dtype(each.dtype) for each in values))
    return SparseAddOutput(union.indices, _sparse_add(dtypes, *pvary_alike((union, values))), shape)


class _Dtypes(NamedTuple):
    """The dtypes of a sum and of its operands."""

    of_sum: np.dtype
    of_values: tuple[np.dtype, ...]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sparse_add(dtypes: _Dtypes, union: Union, values: Arrays) -> jax.Array:
    """SparseAdd, whose backward rule is SparseAddGrad."""
    return _sum.add_values(union, values, dtypes.of_sum)


def _sparse_add_fwd(dtypes: _Dtypes, union: Union, values: Arrays) -> tuple[jax.Array, Union]:
    # Not by a call of `_sparse_add`: on a `custom_vjp` forward-over-reverse would fail.
    return _sum.add_values(union, values, dtypes.of_sum), union


def _sparse_add_bwd(dtypes: _Dtypes, union: Union, cotangent: jax.Array) -> tuple[None, tuple[jax.Array | None, ...]]:
    """SparseAddGrad: each entry receives the cotangent of its slot.

    `sparse_add_grad` searches for the keys of entries among those of the sum, by `jnp.searchsorted`. The forward pass
    has found the same slots already.
    """
    if cotangent.dtype == jax.dtypes.float0:  # integer values
        return None, (None,) * len(union.slots)
    gathered = gather(union.nnz, union.slots, cotangent, dtypes.of_values)
    differentiable = (jnp.issubdtype(dtype, np.inexact) for dtype in dtypes.of_values)
    return None, tuple(each if real else None for each, real in zip(gathered, differentiable, strict=True))


_sparse_add.defvjp(_sparse_add_fwd, _sparse_add_bwd)
