"""SparseAdd: the sum of two sparse tensors, as a `custom_vjp` whose backward rule is SparseAddGrad."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_sparse_grad import _validation
from jax_sparse_grad._plan import SparseAddPlan, add_values, make_plan, poison_overflow, restrict, settle
from jax_sparse_grad._primitives import vary_alike
from jax_sparse_grad._sparse_add_grad import gather_cotangent
from jax_sparse_grad._union import Union


class SparseAddOutput(NamedTuple):
    """The outputs of TensorFlow's `SparseAdd`.

    sum_indices: `[nse, ndims]`, lexicographically sorted and unique, padding last.
    sum_values: `[nse, *dense]`.
    sum_shape: the dense shape, a tuple of ints. Static: as a pytree, the output has two leaves, so that the shape
      leaves `jit`, `vmap` and `scan` as it was and can be given to the next addition.
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


def sparse_add(
    a_indices: Any,
    a_values: Any,
    a_shape: Any,
    b_indices: Any,
    b_values: Any,
    b_shape: Any,
    thresh: Any = 0,
    *,
    nse: Any = None,
    assume_canonical: bool = False,
) -> SparseAddOutput:
    """Add two sparse tensors, differentiably with respect to their values.

    Args:
      a_indices: `[nnz_a, ndims]`, any integer dtype, in any order; duplicates are summed; rows whose every index equals
        the shape are padding.
      a_values: `[nnz_a, *dense]`, any numeric dtype.
      a_shape: the dense shape, static: `ndims` ints.
      b_indices: `[nnz_b, ndims]`; index dtypes promote as in `jnp`.
      b_values: `[nnz_b, *dense]`; value dtypes promote as in `jnp`, and each gradient has its own operand's dtype.
      b_shape: equal to `a_shape`.
      thresh: real scalar, static or traced, cast to the real dtype of the sum. Where both operands hold an entry, it is
        dropped if `abs(sum) < thresh` (of hybrid values, if all components are); its gradient is 0. NaN is kept.
        `thresh` itself has no gradient.
      nse: the number of entries the sum stores, static. By default the exact number if all it depends on is concrete
        (also inside `jit`, when closed over), otherwise `nnz_a + nnz_b`, which can never overflow.
      assume_canonical: promise that both operands are sorted, unique and padded only at the end, and skip the check.

    Returns:
      `SparseAddOutput(sum_indices [nse, ndims], sum_values [nse, *dense], sum_shape)`, lexicographically sorted and
      unique, padding last. If the sum does not fit `nse`, NaN in all values (the minimum of a signed, the maximum of an
      unsigned integer dtype) under `jit`.

    Raises:
      TypeError: indices are not integers, values not numeric, or a static argument is traced.
      ValueError: shapes do not match; concrete indices lie outside the shape; a concrete sum does not fit `nse`. Under
        `jit` the latter two are reported by `checkify`; without it such indices count as padding, and the values of an
        overflowed sum are poisoned.

    Example:
      >>> import jax, jax.numpy as jnp, jax_sparse_grad as jsg
      >>> a, b = jnp.array([[0, 0], [1, 1]]), jnp.array([[1, 1], [2, 0]])
      >>> total = jsg.sparse_add(a, jnp.array([1., 2.]), (3, 3), b, jnp.array([10., 20.]), (3, 3))
      >>> total.sum_indices.tolist(), total.sum_values.tolist(), total.sum_shape
      ([[0, 0], [1, 1], [2, 0]], [1.0, 12.0, 20.0], (3, 3))
      >>> loss = lambda v: (jsg.sparse_add(a, v, (3, 3), b, jnp.array([10., 20.]), (3, 3)).sum_values ** 2).sum()
      >>> jax.grad(loss)(jnp.array([1., 2.])).tolist()
      [2.0, 24.0]

    Mirrors `tf.raw_ops.SparseAdd`, argument for argument.
    """
    shape = _validation.as_shape("a_shape", a_shape)
    other_shape = _validation.as_shape("b_shape", b_shape)
    if other_shape != shape:
        raise ValueError(f"`b_shape` must equal `a_shape`; got {other_shape} and {shape}")
    names = ("a_indices", "b_indices")
    indices = _validation.as_common_indices(names, (a_indices, b_indices))
    _validation.check_shape_fits("a_shape", shape, names[0], indices[0])
    value_names = ("a_values", "b_values")
    a_values, b_values = (
        _validation.as_values(value_name, values, rows.shape[0], name)
        for value_name, values, rows, name in zip(value_names, (a_values, b_values), indices, names, strict=True)
    )
    a_values, b_values = _validation.as_common_values(value_names, (a_values, b_values))
    thresh = _validation.as_thresh(thresh)
    size = _validation.as_nse(nse)
    assume_canonical = _validation.as_flag("assume_canonical", assume_canonical)

    if _validation.is_concrete(thresh) and np.asarray(thresh) <= 0:  # no magnitude is less than that
        plan = make_plan(names, indices, shape, size, assume_canonical)
    else:
        full = make_plan(names, indices, shape, None, assume_canonical)
        plan = _without_small(full, a_values, b_values, thresh, size)
    return SparseAddOutput(plan.indices, _sum_values(plan.union, a_values, b_values), shape)


@jax.jit
def _sum_values(union: Union, a_values: jax.Array, b_values: jax.Array) -> jax.Array:
    # A backward rule must return cotangents that vary over the mesh as its arguments do: so these all do alike.
    return _sparse_add(*vary_alike((union, a_values, b_values)))


@jax.custom_vjp
def _sparse_add(union: Union, a_values: jax.Array, b_values: jax.Array) -> jax.Array:
    return add_values(union, (a_values, b_values))


def _sparse_add_fwd(union: Union, a_values: jax.Array, b_values: jax.Array) -> tuple[jax.Array, Union]:
    # Not by a call of `_sparse_add`: on a `custom_vjp` forward-over-reverse would fail.
    return add_values(union, (a_values, b_values)), union


def _sparse_add_bwd(union: Union, cotangent: jax.Array) -> tuple[None, jax.Array | None, jax.Array | None]:
    if cotangent.dtype == jax.dtypes.float0:  # integer values
        return None, None, None
    return None, *gather_cotangent(union.placements, union.nnz, poison_overflow(union, cotangent))


_sparse_add.defvjp(_sparse_add_fwd, _sparse_add_bwd)


def _without_small(
    full: SparseAddPlan, a_values: jax.Array, b_values: jax.Array, thresh: jax.Array | np.ndarray, nse: int | None
) -> SparseAddPlan:
    """The plan of the entries that the threshold leaves, in `nse` slots."""
    # The pattern has no derivative; without its tangents, the values show whether they are concrete.
    values = jax.lax.stop_gradient((a_values, b_values))
    bound = a_values.shape[0] + b_values.shape[0]
    with _validation.evaluate_if_concrete(full, values, thresh):
        keep = _is_kept(full.union, values, jax.lax.stop_gradient(thresh))
        return settle(restrict(full, keep, bound if nse is None else nse), nse)


@jax.jit
def _is_kept(union: Union, values: tuple[jax.Array, jax.Array], thresh: jax.Array) -> jax.Array:
    """Which slots do not hold an entry of both operands whose sum is less than `thresh` in magnitude, `[nse]` bool."""
    total = add_values(union, values)
    a, b = union.placements
    shared = (a.sources < a.positions.shape[0]) & (b.sources < b.positions.shape[0])
    dense_axes = tuple(range(1, total.ndim))
    return ~(shared & jnp.all(_is_below(total, thresh), axis=dense_axes))


def _is_below(total: jax.Array, thresh: jax.Array) -> jax.Array:
    """`abs(total) < thresh`; false for NaN."""
    if jnp.issubdtype(total.dtype, jnp.inexact):
        magnitude = jnp.abs(total)
        return magnitude < thresh.astype(magnitude.dtype)
    # abs() of the least integer overflows, but is right when read as unsigned.
    unsigned = jnp.dtype(f"uint{8 * total.dtype.itemsize}")
    magnitude = jnp.abs(total).astype(unsigned)
    # Whole numbers are less than `thresh` if they are at most `last`; a `thresh` beyond the dtype is above them all.
    largest = jnp.iinfo(unsigned).max
    if jnp.issubdtype(thresh.dtype, jnp.integer):
        reachable = thresh.dtype.type(min(largest, jnp.iinfo(thresh.dtype).max))
        last = jnp.minimum(thresh - 1, reachable).astype(unsigned)
    else:
        whole = jnp.ceil(thresh)
        beyond = whole >= 2.0 ** (8 * unsigned.itemsize)
        last = jnp.where(beyond, unsigned.type(largest), whole.astype(unsigned) - unsigned.type(1))
    return (thresh > 0) & (magnitude <= last)
