"""The numeric phase: values through a union that was made once.

`place` carries the values of an operand to the slots of the sum, `pick` takes a cotangent from there back to the
entries of the operand. Each is the other's transpose, and both are gathers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_sparse_grad import _keys, _union, _validation
from jax_sparse_grad._checks import guard
from jax_sparse_grad._primitives import gather, if_all, iota_like, vary_alike
from jax_sparse_grad._union import Placement, Union


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
        sizes = _sizes(self.union)
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
    names = [f"indices[{k}]" for k in range(len(indices))]
    arrays = _validation.as_common_indices(names, indices)
    size = _validation.as_shape("shape", shape)
    _validation.check_shape_fits("shape", size, names[0], arrays[0])
    return make_plan(
        names, arrays, size, _validation.as_nse(nse), _validation.as_flag("assume_canonical", assume_canonical)
    )


def make_plan(
    names: Sequence[str],
    indices: tuple[jax.Array, ...],
    shape: tuple[int, ...],
    nse: int | None,
    assume_canonical: bool,
) -> SparseAddPlan:
    """`plan_sparse_add` for arguments that were checked; `names` are those of the indices in messages."""
    bound = sum(rows.shape[0] for rows in indices)
    with _validation.evaluate_if_concrete(indices):
        indices = tuple(_keys.guard_rows(name, rows, shape) for name, rows in zip(names, indices, strict=True))
        if assume_canonical and not _validation.is_concrete(indices):  # a promise is checked only where that is free
            indices = tuple(_keys.guard_canonical(name, rows, shape) for name, rows in zip(names, indices, strict=True))
        return settle(_unite(indices, shape, bound if nse is None else nse, assume_canonical), nse)


def settle(plan: SparseAddPlan, nse: int | None) -> SparseAddPlan:
    """The plan with its final number of slots: the exact one if none was asked for and the plan is concrete.

    On the condition that the sum fits its stored entries.
    """
    if _validation.is_concrete(plan):
        plan = _trim(plan, int(plan.nnz) if nse is None else nse)
    if nse is None or not _may_overflow(plan.union):
        return plan
    message = f"`nse` must be at least {{nnz}}, the number of distinct entries of the sum; got {plan.nse}"
    return guard(plan, plan.nnz <= plan.nse, message, nnz=plan.nnz)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _unite(indices: tuple[jax.Array, ...], shape: tuple[int, ...], nse: int, assume_canonical: bool) -> SparseAddPlan:
    keys, union = _union.unite(tuple(_keys.ravel(rows, shape) for rows in indices), nse, assume_canonical)
    return SparseAddPlan(_keys.unravel(keys, shape, indices[0].dtype), union, shape, nse)


def _trim(plan: SparseAddPlan, nse: int) -> SparseAddPlan:
    """A concrete plan cut down to `nse` slots."""
    return SparseAddPlan(plan.indices[:nse], _union.trim(plan.union, nse), plan.shape, nse)


@partial(jax.jit, static_argnums=2)
def restrict(plan: SparseAddPlan, keep: jax.Array, nse: int) -> SparseAddPlan:
    """The plan of those entries that `keep` `[plan.nse]` names, in `nse` slots; the others are dropped."""
    keep &= jnp.arange(plan.nse, dtype=jnp.int32) < plan.nnz
    union, former = _union.restrict(plan.union, keep, nse)
    columns = zip(_keys.columns_of(plan.indices), plan.shape, strict=True)
    kept = [gather(column, former, np.asarray(size, column.dtype)) for column, size in columns]
    indices = _keys.stack_columns(kept, nse, plan.indices.dtype)
    return SparseAddPlan(indices, union, plan.shape, nse)


@jax.jit
def add_values(union: Union, values: tuple[jax.Array, ...]) -> jax.Array:
    """The sum of values of one dtype, `[nse, *dense]`."""
    return poison_overflow(union, _add_children(union, iter(values)))


def _add_children(union: Union, operands: Iterator[jax.Array]) -> jax.Array:
    placed = [
        place(placement, union.nnz, next(operands) if child is None else _add_children(child, operands))
        for child, placement in zip(union.children, union.placements, strict=True)
    ]
    return placed[0] if len(placed) == 1 else placed[0] + placed[1]


def place(placement: Placement, nnz: jax.Array, values: jax.Array) -> jax.Array:
    """The values of a child in the slots of its parent, of which `nnz` are in use; duplicates are summed."""
    return _linear(_place, _pick, (placement, nnz), values, placement.sources.shape[0])


def pick(placement: Placement, nnz: jax.Array, cotangent: jax.Array) -> jax.Array:
    """The transpose of `place`: for each entry the cotangent of its slot; 0 for entries without one."""
    return _linear(_pick, _place, (placement, nnz), cotangent, placement.positions.shape[0])


def _place(residuals: tuple[Placement, jax.Array], values: jax.Array) -> jax.Array:
    placement, nnz = residuals
    slots = iota_like(placement.sources)
    # x + -0.0 is x for every x, x + 0.0 is not (for -0.0): an entry without a partner must arrive bit for bit.
    absent = jnp.where(slots < nnz, _negative_zero(values.dtype), np.zeros((), values.dtype))
    return gather(_sum_duplicates(placement, values), placement.sources, absent)


def _pick(residuals: tuple[Placement, jax.Array], cotangent: jax.Array) -> jax.Array:
    placement, _ = residuals
    return gather(cotangent, placement.positions, 0)


def poison_overflow(union: Union, values: jax.Array) -> jax.Array:
    """`values`, or the fill value of `jnp.take(mode="fill")` throughout if the union has more entries than slots.

    Counted as a linear map that is its own transpose, so that tangents and cotangents are poisoned too.
    """
    if not _may_overflow(union):
        return values
    nse = values.shape[0]
    return _linear(_poison, _poison, union.nnz > nse, values, nse)


def _poison(overflow: jax.Array, values: jax.Array) -> jax.Array:
    dtype = values.dtype
    if jnp.issubdtype(dtype, jnp.inexact):
        fill = np.asarray(np.nan, dtype)
    else:
        limits = jnp.iinfo(dtype)
        fill = np.asarray(limits.min if jnp.issubdtype(dtype, jnp.signedinteger) else limits.max, dtype)
    return jnp.where(overflow, fill, values)


def _negative_zero(dtype: np.dtype) -> np.ndarray:
    """What changes no number it is added to (for integers 0)."""
    return -np.zeros((), dtype)


def _may_overflow(union: Union) -> bool:
    return union.placements[0].sources.shape[0] < sum(_sizes(union))


def _sizes(union: Union) -> list[int]:
    """The number of entries of each operand."""
    sizes = []
    for child, placement in zip(union.children, union.placements, strict=True):
        sizes += [placement.positions.shape[-1]] if child is None else _sizes(child)
    return sizes


def _sum_duplicates(placement: Placement, values: jax.Array) -> jax.Array:
    """Values of which those at `placement.sources` are complete sums, as they are if no slot has two entries."""
    unique, order = placement.unique, placement.order
    if unique is None or order is None:
        return values

    def sum_runs(values: jax.Array) -> jax.Array:
        nse = placement.sources.shape[0]
        runs = gather(placement.positions, order, fill=nse)
        summed = _sum_runs(gather(values, order, fill=0), runs, runs < nse)
        return jnp.where(unique, values, summed)

    return if_all(unique, lambda values: values, sum_runs, values)


def _sum_runs(values: jax.Array, runs: jax.Array, counted: jax.Array) -> jax.Array:
    """Sum neighbours with equal `runs`, so that the first of them holds the whole; gathers only, no atomic additions.

    After round r entry i holds the sum of the entries i ... i + 2**r - 1 of its run. Rounds end with the longest run:
    there are none if all runs have length one, and the additions form a balanced tree, the same on every device.
    """
    size = values.shape[0]
    entries = jnp.arange(size, dtype=jnp.uint32)  # an entry plus a step must not wrap round

    def partners(step: jax.Array) -> tuple[jax.Array, jax.Array]:
        partner = entries + step
        return partner, counted & (gather(runs, partner, fill=-1) == runs)

    def add_partner(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        step, values = carry
        partner, same_run = partners(step)
        return 2 * step, values + gather(values, jnp.where(same_run, partner, size), _negative_zero(values.dtype))

    start = (jnp.uint32(1), values)
    return lax.while_loop(lambda carry: jnp.any(partners(carry[0])[1]), add_partner, start)[1]


def _linear(
    apply: Callable[[Any, jax.Array], jax.Array],
    transpose: Callable[[Any, jax.Array], jax.Array],
    residuals: Any,
    x: jax.Array,
    size: int,
) -> jax.Array:
    """`apply(residuals, x)`, `[n, ...] -> [size, ...]`, linear with the given transpose under every transformation.

    `custom_vjp` would bar forward mode, and nothing else in JAX lets a transpose be named and be batched but
    `lax.custom_linear_solve`: its `solve` is any linear map of a space to itself whose transpose is `transpose_solve`
    (`matvec`, here the identity, would matter only if it depended on differentiated values). Both sides are brought to
    one length for it; XLA removes a pad that is sliced off again.
    """
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return apply(residuals, x)
    residuals, x = vary_alike((residuals, x))
    n = x.shape[0]
    common = max(n, size)
    y = lax.custom_linear_solve(
        lambda b: b,
        _resize(x, common),
        solve=lambda _, b: _resize(apply(residuals, _resize(b, n)), common),
        transpose_solve=lambda _, c: _resize(transpose(residuals, _resize(c, size)), common),
    )
    return _resize(y, size)


def _resize(x: jax.Array, size: int) -> jax.Array:
    """The first `size` rows of x, with rows of zeros behind it if there are fewer."""
    if x.shape[0] >= size:
        return x[:size]
    return jnp.concatenate([x, jnp.zeros((size - x.shape[0], *x.shape[1:]), x.dtype)])
