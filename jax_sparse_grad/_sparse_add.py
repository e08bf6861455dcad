"""SparseAdd: the sum of two sparse tensors, as a `custom_vjp` whose backward rule is SparseAddGrad."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jax_sparse_grad import _tree, _union, _validation
from jax_sparse_grad._auto_axes import on_auto_axes
from jax_sparse_grad._buckets import bucket, resize
from jax_sparse_grad._keys import Space, space_of
from jax_sparse_grad._numeric import add_in_passing, add_values
from jax_sparse_grad._plan import (
    Request,
    SparseAddPlan,
    add_in_buckets,
    guard_indices,
    guard_nse,
    make_plan,
    most_rows,
)
from jax_sparse_grad._primitives import NONE, vary_alike
from jax_sparse_grad._sparse_add_grad import gather_cotangent
from jax_sparse_grad._tree import Form, Union, entry_counts
from jax_sparse_grad._types import ArrayInput, Shape


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
      thresh: real scalar, static or traced, cast to the real dtype of the sum. An entry that both operands hold is
        dropped if `abs(sum) < thresh` (with hybrid values, if this holds for all components). Dropped entries have
        gradient 0. NaN is kept. `thresh` itself has no gradient.
      nse: the number of elements that the sum stores, static. By default the exact number if everything it depends on
        is concrete (also inside `jit` if closed over), otherwise `nnz_a + nnz_b`, which is always enough.
      assume_canonical: a promise that both operands are sorted and unique, with padding only at the end. Skips the
        check.

    Returns:
      `SparseAddOutput(sum_indices [nse, ndims], sum_values [nse, *dense], sum_shape)`, lexicographically sorted and
      unique, padding last. If a sum under `jit` has more entries than `nse`, all values are NaN (the minimum of a
      signed, the maximum of an unsigned integer dtype).

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
    _validation.check_devices((*names, *value_names), (*indices, a_values, b_values))
    limit: Any = _validation.as_thresh(thresh)
    if _validation.is_concrete(limit) and np.asarray(limit) <= 0:  # no magnitude is less than that
        limit = None
    size = _validation.as_nse(nse)
    assume_canonical = _validation.as_flag("assume_canonical", assume_canonical)

    values = (a_values, b_values)
    request = Request(names, shape, size, assume_canonical, apart=limit is not None)
    bound = most_rows(indices)
    nse = bound if size is None else size
    if not _validation.is_concrete(indices):
        indices = guard_indices(request, indices)
        operands, joined = request.join(indices)
        pattern = request.space_of(indices), operands
        sum_indices, sum_values, nnz = _sum(Form.of_traced(nse, assume_canonical, joined), pattern, values, limit)
        return SparseAddOutput(guard_nse(sum_indices, nnz, nse, bound), sum_values, shape)
    if _validation.is_concrete(values, limit):

        def add(form: Form, space: Space, operands: Any, values: Any) -> tuple[jax.Array, ...]:
            return _sum(form, (space, operands), values, limit)

        fitted = _validation.call_concretely(lambda: add_in_buckets(add, request, indices, values))
        return SparseAddOutput(*fitted, shape)
    if limit is None:
        plan = make_plan(request, indices)
        return SparseAddOutput(plan.indices, _add_planned(plan, values), shape)
    # What is kept depends on the values: the plan has room for all, and the sum for as many as if none were known.
    plan = _keep_in_plan(nse, make_plan(request._replace(nse=None), indices), jax.lax.stop_gradient(values), limit)
    return SparseAddOutput(guard_nse(plan.indices, plan.nnz, nse, bound), _add_planned(plan, values), shape)


@partial(jax.jit, static_argnums=0)
def _sum(form: Form, pattern: Any, values: tuple[jax.Array, ...], limit: Any) -> tuple[jax.Array, ...]:
    # A backward rule must return cotangents that vary over the mesh as its arguments do: so these all do alike.
    return _sparse_add(form, *vary_alike((pattern, values, limit)))


def _add_planned(plan: SparseAddPlan, values: tuple[jax.Array, ...]) -> jax.Array:
    # Indices are left out: that they have no cotangent is an array of no type for JAX, which it compiles by length.
    return _sparse_add(Form(plan.nse, canonical=None), *vary_alike((plan, values, None)))[1]


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _sparse_add(form: Form, pattern: Any, values: tuple[jax.Array, ...], limit: Any) -> tuple[Any, jax.Array, Any]:
    """The indices, values and true number of entries of the sum; values alone if the pattern is a plan.

    Args:
      form: what is static.
      pattern: the space and the indices of both operands, or their `SparseAddPlan` if it was made before.
      values: the values of both operands, in one dtype.
      limit: a scalar threshold, or None.
    """
    return _add_values(form, pattern, values, limit, tree=False)[0]


def _sparse_add_fwd(
    form: Form, pattern: Any, values: tuple[jax.Array, ...], limit: Any
) -> tuple[tuple[Any, jax.Array, Any], Union]:
    # Not by a call of `_sparse_add`: on a `custom_vjp` forward-over-reverse would fail.
    return _add_values(form, pattern, values, limit, tree=True)


def _add_values(
    form: Form, pattern: Any, values: tuple[jax.Array, ...], limit: Any, *, tree: bool
) -> tuple[tuple[Any, jax.Array, Any], Union]:
    if isinstance(pattern, SparseAddPlan):
        return (None, add_values(pattern.union, values), None), pattern.union

    space, operands = pattern
    keep = None if limit is None else _is_kept
    indices, union, total = _union.unite_and_add(form, space, operands, values, keep, limit, tree=tree)
    return (indices, total, union.nnz), union


def _sparse_add_bwd(_form: Form, union: Union, cotangents: tuple[Any, ...]) -> tuple[None, Any, None]:
    _, cotangent, _ = cotangents
    if cotangent.dtype == jax.dtypes.float0:  # integer values
        return None, None, None
    return None, gather_cotangent(union, cotangent), None


_sparse_add.defvjp(_sparse_add_fwd, _sparse_add_bwd)


def _keep_in_plan(nse: int, plan: SparseAddPlan, values: tuple[jax.Array, ...], limit: Any) -> SparseAddPlan:
    """The plan of those slots that stay, in `nse` slots."""
    space = space_of(plan.shape, plan.indices.dtype)
    if not _validation.is_concrete(plan, values, limit):
        indices, union = _keep(nse, space, plan.indices, plan.union, values, limit)
        return SparseAddPlan(indices, union, plan.shape, nse)

    def keep() -> SparseAddPlan:
        counts = entry_counts(plan.union)
        length = bucket(max(plan.nse, *(size for (size,) in counts)))  # one for all
        padded = _tree.fit(plan.union, length, ((length,) for _ in counts))
        padded_values = tuple(resize(array, length, 0) for array in values)
        rows = resize(plan.indices, length, plan.shape)
        indices, union = _keep(bucket(nse), space, rows, padded, padded_values, limit)
        fitted = SparseAddPlan(resize(indices, nse, plan.shape), _tree.fit(union, nse, iter(counts)), plan.shape, nse)
        return jax.device_put(fitted)

    return _validation.call_concretely(keep)


@partial(jax.jit, static_argnums=0)
def _keep(
    nse: int, space: Space, indices: jax.Array, union: Union, values: tuple[jax.Array, ...], limit: jax.Array
) -> tuple[jax.Array, Union]:
    """The indices and the union of the slots that stay, in `nse` slots."""
    return _tree.restrict(indices, union, _is_kept(union, jax.lax.stop_gradient(values), limit), space, nse)


def _is_kept(union: Union, values: tuple[jax.Array, ...], thresh: jax.Array) -> jax.Array:
    """Which slots do not hold an entry of both operands whose sum is less than `thresh` in magnitude, `[nse]` bool."""
    total = add_in_passing(union, values)
    a, b = union.placements
    shared = (a.sources != NONE) & (b.sources != NONE)
    dense_axes = tuple(range(1, total.ndim))
    return ~(shared & jnp.all(_is_below(total, thresh), axis=dense_axes))


def _is_below(total: jax.Array, thresh: jax.Array) -> jax.Array:
    """`abs(total) < thresh`; false for NaN."""
    if jnp.issubdtype(total.dtype, jnp.inexact):
        magnitude = jnp.abs(total)
        return magnitude < thresh.astype(magnitude.dtype)
    if jnp.iinfo(total.dtype).bits < 8:  # XLA has no abs() for these
        total = total.astype(jnp.int8 if jnp.issubdtype(total.dtype, jnp.signedinteger) else jnp.uint8)
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
