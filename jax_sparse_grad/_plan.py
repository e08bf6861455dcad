"""Plans: the symbolic phase once, the numeric phase as often as wanted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from jax_sparse_grad import _buckets, _keys, _union, _validation
from jax_sparse_grad._auto_axes import on_auto_axes
from jax_sparse_grad._checks import guard
from jax_sparse_grad._numeric import add_values
from jax_sparse_grad._primitives import map_batches
from jax_sparse_grad._union import Union, entry_counts

T = TypeVar("T")


@partial(jax.tree_util.register_dataclass, data_fields=["indices", "union"], meta_fields=["shape", "nse"])
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SparseAddPlan:
    """The symbolic phase of a sparse addition, ready to add values of its operands as often as wanted.

    Made by `plan_sparse_add`. A pytree whose leaves are integer arrays (and one flag per operand), so that it passes
    through `jit`, `vmap`, `scan` and `checkpoint` like any other array.

    Attributes:
      indices: `[nse, ndims]`, lexicographically sorted, unique; behind the `nnz` entries follows padding, whose every
        index equals the shape.
      union: where the entries of the operands went.
      shape: the dense shape, a tuple of ints (static).
      nse: the number of stored entries of the sum (static).
    """

    indices: jax.Array
    union: Union
    shape: tuple[int, ...]
    nse: int

    @property
    def nnz(self) -> jax.Array:
        """Scalar int32, the true number of distinct entries.

        If it exceeds `nse`, the plan has overflowed, and every sum it makes is poisoned.
        """
        return self.union.nnz

    @property
    def ndim(self) -> int:
        """The number of sparse dimensions (static)."""
        return len(self.shape)

    def __repr__(self) -> str:
        return f"SparseAddPlan(shape={self.shape}, nse={self.nse})"

    @on_auto_axes
    def __call__(self, *values: Any) -> jax.Array:
        """Add the values of all operands.

        Args:
          *values: for operand k `[nnz_k, *dense]`, any numeric dtypes; they promote as in `jnp`.

        Returns:
          `[nse, *dense]`, the values of the sum at `plan.indices`; 0 at padding. If the plan has overflowed, NaN (the
          minimum of a signed, the maximum of an unsigned integer dtype).

        Raises:
          TypeError: values are not numeric.
          ValueError: their number or shapes do not match the operands of the plan.

        Example:
          >>> import jax.numpy as jnp, jax_sparse_grad as jsg
          >>> plan = jsg.plan_sparse_add(jnp.array([[0], [2]]), jnp.array([[1], [2]]), shape=(3,))
          >>> plan(jnp.array([1., 2.]), jnp.array([10., 20.])).tolist()
          [1.0, 10.0, 22.0]

        Linear in the values, under every JAX transformation; the derivative only gathers.
        """
        sizes = entry_counts(self.union)
        if self.nnz.ndim:
            raise ValueError(f"the plan is batched (`plan.nnz` has shape {self.nnz.shape}); call it under `jax.vmap`")
        if len(values) != len(sizes):
            raise ValueError(
                f"`values` must be given for each of the {len(sizes)} operands of the plan, got {len(values)}"
            )
        names = [f"values[{k}]" for k in range(len(values))]
        arrays = [
            _validation.as_values(name, array, size, f"indices[{k}]")
            for k, (name, array, size) in enumerate(zip(names, values, sizes, strict=True))
        ]
        return add_values(self.union, _validation.as_common_values(names, arrays))


@on_auto_axes
def plan_sparse_add(*indices: Any, shape: Any, nse: Any = None, assume_canonical: bool = False) -> SparseAddPlan:
    """Do the symbolic phase of adding sparse tensors: unite their patterns once, to add values as often as wanted.

    Args:
      *indices: one `[nnz_k, ndims]` array of any integer dtype for each operand (at least one). Any order, duplicates
        and padding (every index equal to the shape) are allowed.
      shape: the dense shape of all operands, static.
      nse: the number of entries the sum stores, static. By default the exact number if all indices are concrete (also
        inside `jit`, when closed over), otherwise the sum of the `nnz_k`, which can never overflow.
      assume_canonical: promise that all indices are sorted, unique and padded only at the end, and skip the check.

    Returns:
      A `SparseAddPlan`; `plan(*values)` adds.

    Raises:
      TypeError: indices are not integers, or a static argument is traced.
      ValueError: shapes do not match; concrete indices lie outside `shape`; a concrete sum does not fit `nse`. Under
        `jit` the latter two are reported by `checkify`; without it such indices count as padding, and the values of an
        overflowed sum are poisoned (`plan.nnz > plan.nse` tells).

    Example:
      >>> import jax, jax.numpy as jnp, jax_sparse_grad as jsg
      >>> mass, stiffness = jnp.array([[0, 0], [1, 1]]), jnp.array([[0, 0], [0, 1], [1, 1]])
      >>> plan = jsg.plan_sparse_add(mass, stiffness, shape=(2, 2))
      >>> plan.indices.tolist(), int(plan.nnz), plan.nse
      ([[0, 0], [0, 1], [1, 1]], 3, 3)
      >>> loss = lambda k: (plan(jnp.ones(2), k) ** 2).sum()
      >>> jax.grad(loss)(jnp.array([1., 2., 3.])).tolist()
      [4.0, 4.0, 8.0]

    Mirrors the symbolic/numeric split of sparse direct solvers; the sum is that of TensorFlow's `SparseAdd`.
    """
    if not indices:
        raise ValueError("`indices` must be given for at least one operand")
    names = tuple(f"indices[{k}]" for k in range(len(indices)))
    arrays = _validation.as_common_indices(names, indices)
    size = _validation.as_shape("shape", shape)
    _validation.check_shape_fits("shape", size, names[0], arrays[0])
    flag = _validation.as_flag("assume_canonical", assume_canonical)
    return make_plan(Request(names, size, _validation.as_nse(nse), flag), arrays)


class Request(NamedTuple):
    """What is asked of a sum, beside its data; checked, and static.

    names: of the operands' indices, in messages.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    nse: int | None
    assume_canonical: bool


def make_plan(request: Request, indices: tuple[jax.Array, ...]) -> SparseAddPlan:
    """The plan of indices `[*batch, nnz_k, ndims]`; one for each batch, but a single one along axes of length 1."""
    if _validation.is_concrete(indices):
        return _validation.call_concretely(lambda: _make_concrete(request, indices))
    indices = guard_indices(request, indices)
    bound = most_rows(indices)
    nse = bound if request.nse is None else request.nse
    plan = unite_plan(indices, request.shape, nse, request.assume_canonical or None, request.assume_canonical)
    return guard_nse(plan, plan.nnz, nse, bound)


def _make_concrete(request: Request, indices: tuple[jax.Array, ...]) -> SparseAddPlan:
    """The plan of concrete indices: at the exact size, by functions that are compiled for few sizes."""
    padded = pad_indices(indices, request.shape)
    canonical = known_canonical(request, padded)
    roomy = unite_plan(padded, request.shape, most_rows(padded), canonical, request.assume_canonical)
    nse = exact_nse(request, roomy.nnz, indices)
    union = _union.fit(roomy.union, nse, (rows.shape[-2] for rows in indices))
    fitted = _buckets.resize(roomy.indices, nse, request.shape, n_batch_of(indices))
    plan = SparseAddPlan(fitted, union, request.shape, nse)
    return jax.device_put(plan)  # where numpy did the fitting; compiles nothing for a new length


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def unite_plan(
    operands: tuple[jax.Array, ...], shape: tuple[int, ...], nse: int, canonical: bool | None, promised: bool
) -> SparseAddPlan:
    def make(indices: jax.Array, union: Union) -> SparseAddPlan:
        # The same structure whatever the order is found to be, lest a loop that makes plans not carry one.
        return SparseAddPlan(indices, union if promised else _union.with_orders(union), shape, nse)

    def unite(*operands: jax.Array) -> SparseAddPlan:
        return _union.unite(operands, shape, nse, canonical, make)

    return map_batches(unite, n_batch_of(operands))(*operands)


def add_once(
    request: Request, indices: tuple[jax.Array, ...], values: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    """The indices and values of a sum of `indices [*batch, nnz_k, ndims]` and `values [*batch, nnz_k, *dense]`."""
    if _validation.is_concrete(indices, values):
        add = partial(unite_and_add, request.shape)
        return _validation.call_concretely(lambda: add_in_buckets(add, request, indices, values))
    if _validation.is_concrete(indices):
        plan = make_plan(request, indices)
        return plan.indices, map_batches(add_values, n_batch_of(indices))(plan.union, values)
    indices = guard_indices(request, indices)
    bound = most_rows(indices)
    nse = bound if request.nse is None else request.nse
    canonical = request.assume_canonical or None
    sum_indices, sum_values, nnz = unite_and_add(request.shape, indices, values, nse, canonical)
    return guard_nse(sum_indices, nnz, nse, bound), sum_values


@partial(jax.jit, static_argnums=(0, 3, 4))
def unite_and_add(
    shape: tuple[int, ...],
    indices: tuple[jax.Array, ...],
    values: tuple[jax.Array, ...],
    nse: int,
    canonical: bool | None,
) -> tuple[jax.Array, ...]:
    """The indices, values and true number of entries of a sum, without a plan that outlives it."""
    n_batch = n_batch_of(indices)
    if any(_is_shared(indices, k) and not _is_shared(values, k) for k in range(n_batch)):
        plan = unite_plan(indices, shape, nse, canonical, bool(canonical))
        return plan.indices, map_batches(add_values, n_batch)(plan.union, values), plan.nnz

    def add(indices: tuple[jax.Array, ...], values: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        def then(sum_indices: jax.Array, union: Union) -> tuple[jax.Array, ...]:
            return sum_indices, add_values(union, values), union.nnz

        return _union.unite(indices, shape, nse, canonical, then)

    return map_batches(add, n_batch)(indices, values)


def _is_shared(arrays: tuple[jax.Array, ...], axis: int) -> bool:
    return all(array.shape[axis] == 1 for array in arrays)


def add_in_buckets(
    add: Callable[..., tuple[jax.Array, ...]],
    request: Request,
    indices: tuple[jax.Array, ...],
    values: tuple[jax.Array, ...],
) -> tuple[jax.Array, jax.Array]:
    """The indices and values of a sum of concrete tensors: at the exact size, by functions compiled for few sizes.

    `add(indices, values, nse, canonical)` gives indices, values and the true number of entries of a sum; `canonical` as
    for `_union.unite`.
    """
    axis = n_batch_of(indices)
    padded = pad_indices(indices, request.shape)
    padded_values = pad_values(values, padded)
    canonical = known_canonical(request, padded)
    sum_indices, sum_values, nnz = add(padded, padded_values, most_rows(padded), canonical)
    nse = exact_nse(request, nnz, indices)
    resized = _buckets.resize(sum_indices, nse, request.shape, axis), _buckets.resize(sum_values, nse, 0, axis)
    fitted: tuple[jax.Array, jax.Array] = jax.device_put(resized)
    return fitted


def n_batch_of(indices: tuple[jax.Array, ...]) -> int:
    """The number of batch dimensions of indices `[*batch, nnz, ndims]`."""
    return indices[0].ndim - 2


def most_rows(indices: tuple[jax.Array, ...]) -> int:
    """The most entries that a sum can have: the rows of all operands, but one of a scalar tensor."""
    total = sum(rows.shape[-2] for rows in indices)
    return total if indices[0].shape[-1] else min(total, 1)


def pad_indices(indices: tuple[jax.Array, ...], shape: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Concrete indices padded to lengths for which little is compiled."""
    sizes = [rows.shape[-2] for rows in indices]
    lengths = _buckets.buckets(sizes) if shape else sizes  # a scalar tensor has no padding
    axis = n_batch_of(indices)
    return tuple(_buckets.resize(rows, length, shape, axis) for rows, length in zip(indices, lengths, strict=True))


def pad_values(values: tuple[jax.Array, ...], padded: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Concrete values padded to the lengths of their indices."""
    axis = n_batch_of(padded)
    return tuple(_buckets.resize(array, rows.shape[-2], 0, axis) for array, rows in zip(values, padded, strict=True))


def known_canonical(request: Request, indices: tuple[jax.Array, ...]) -> bool | None:
    """Whether concrete operands are canonical; None if not all are, but some of more than two may be."""
    if _keys.guard_concrete(request.names, indices, request.shape) or request.assume_canonical:
        return True
    return None if len(indices) > 2 else False


def exact_nse(request: Request, nnz: jax.Array, indices: tuple[jax.Array, ...]) -> int:
    """The number of entries that a concrete sum stores: what was asked for, or as many as there are."""
    nse = _union.most_entries(nnz) if request.nse is None else request.nse
    guard_nse((), nnz, nse, most_rows(indices))
    return nse


def guard_indices(request: Request, indices: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """The same traced indices, on the condition that they are what the caller says."""

    def guard_rows(name: str, rows: jax.Array) -> jax.Array:
        rows = _keys.guard_rows(name, rows, request.shape)
        return _keys.guard_canonical(name, rows, request.shape) if request.assume_canonical else rows

    n_batch = n_batch_of(indices)
    named = zip(request.names, indices, strict=True)
    return tuple(map_batches(partial(guard_rows, name), n_batch)(rows) for name, rows in named)


def guard_nse(tree: T, nnz: jax.Array, nse: int, bound: int) -> T:
    """The same arrays, on the condition that `nnz` entries, at most `bound` in each batch, fit `nse`."""
    if nse >= bound:
        return tree
    message = f"`nse` must be at least {{nnz}}, the number of distinct entries of the sum; got {nse}"
    most = jnp.max(nnz, initial=0)
    return guard(tree, most <= nse, message, nnz=most)
