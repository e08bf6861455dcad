"""The numeric phase: values through a union that was made once.

`add_values` carries the values of all operands to the slots of the sum, `pick_values` takes a cotangent from there back
to the entries of the operands. Each is the other's transpose, and both are gathers.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_sparse_grad import _buckets, _keys, _union, _validation
from jax_sparse_grad._checks import guard
from jax_sparse_grad._primitives import gather, if_all, iota_like, vary_alike
from jax_sparse_grad._union import Placement, Union

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
    if _validation.is_concrete(indices):
        return _validation.call_concretely(lambda: _make_concrete(names, indices, shape, nse, assume_canonical))
    indices = guard_indices(names, indices, shape, assume_canonical)
    bound = sum(rows.shape[0] for rows in indices)
    plan = _unite(indices, shape, bound if nse is None else nse, assume_canonical or None, assume_canonical)
    return plan if nse is None else guard_nse(plan, plan.nnz, nse, bound)


def _make_concrete(
    names: Sequence[str],
    indices: tuple[jax.Array, ...],
    shape: tuple[int, ...],
    nse: int | None,
    assume_canonical: bool,
) -> SparseAddPlan:
    """The plan of concrete indices: at the exact size, by functions that are compiled for few sizes."""
    sizes = [rows.shape[0] for rows in indices]
    padded = pad_indices(indices, shape)
    canonical: bool | None = _keys.guard_concrete(names, padded, shape) or assume_canonical
    if len(padded) > 2 and not canonical:
        canonical = None  # some may be
    plan = _unite(padded, shape, sum(rows.shape[0] for rows in padded), canonical, assume_canonical)
    nse = int(plan.nnz) if nse is None else nse
    guard_nse((), plan.nnz, nse, sum(sizes))
    union = _union.fit(plan.union, nse, iter(sizes))
    return SparseAddPlan(jnp.asarray(_buckets.resize(plan.indices, nse, shape)), union, shape, nse)


def guard_indices(
    names: Sequence[str], indices: tuple[jax.Array, ...], shape: tuple[int, ...], assume_canonical: bool
) -> tuple[jax.Array, ...]:
    """The same traced indices, on the condition that they are what the caller says."""
    indices = tuple(_keys.guard_rows(name, rows, shape) for name, rows in zip(names, indices, strict=True))
    if assume_canonical:
        return tuple(_keys.guard_canonical(name, rows, shape) for name, rows in zip(names, indices, strict=True))
    return indices


def guard_nse(tree: T, nnz: jax.Array, nse: int, bound: int) -> T:
    """The same arrays, on the condition that `nnz` entries, at most `bound`, fit `nse`."""
    if nse >= bound:
        return tree
    message = f"`nse` must be at least {{nnz}}, the number of distinct entries of the sum; got {nse}"
    return guard(tree, nnz <= nse, message, nnz=nnz)


def pad_indices(indices: tuple[jax.Array, ...], shape: tuple[int, ...]) -> tuple[jax.Array, ...]:
    """Concrete indices padded to lengths for which little is compiled."""
    sizes = [rows.shape[0] for rows in indices]
    lengths = _buckets.buckets(sizes) if shape else sizes  # a scalar tensor has no padding
    return tuple(_buckets.resize(rows, length, shape) for rows, length in zip(indices, lengths, strict=True))


@partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _unite(
    operands: tuple[jax.Array, ...], shape: tuple[int, ...], nse: int, canonical: bool | None, promised: bool
) -> SparseAddPlan:
    def make(indices: jax.Array, union: Union) -> SparseAddPlan:
        # The same structure whatever the order is found to be, lest a loop that makes plans not carry one.
        return SparseAddPlan(indices, union if promised else _union.with_orders(union), shape, nse)

    return _union.unite(operands, shape, nse, canonical, make)


@jax.jit
def add_values(union: Union, values: tuple[jax.Array, ...]) -> jax.Array:
    """The sum of values of one dtype, `[nse, *dense]`."""
    (total,) = _linear(_add, _pick, union, values, [union.placements[0].sources.shape[0]])
    return total


@jax.jit
def pick_values(union: Union, cotangent: jax.Array) -> tuple[jax.Array, ...]:
    """The transpose of `add_values`: for each entry of each operand the cotangent of its slot; 0 if it has none."""
    return _linear(_pick, _add, union, (cotangent,), _sizes(union))


def _add(union: Union, values: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    operands = iter(values)
    return (_poison_overflow(union, _add_node(union, operands)),)


def _add_node(union: Union, operands: Iterator[jax.Array]) -> jax.Array:
    children = tuple(next(operands) if child is None else _add_node(child, operands) for child in union.children)

    def add(children: tuple[jax.Array, ...]) -> jax.Array:
        placed = [
            _place(placement, union.nnz, values) for placement, values in zip(union.placements, children, strict=True)
        ]
        return functools.reduce(jnp.add, placed)

    def sum_duplicates_first(children: tuple[jax.Array, ...]) -> jax.Array:
        return add(tuple(map(_sum_duplicates, union.placements, children)))

    flags = [placement.unique for placement in union.placements if placement.unique is not None]
    if not flags:
        return add(children)
    return if_all(functools.reduce(jnp.logical_and, flags), add, sum_duplicates_first, children)


def _place(placement: Placement, nnz: jax.Array, values: jax.Array) -> jax.Array:
    """The values of a child without duplicates in the slots of its parent, of which `nnz` are in use."""
    slots = iota_like(placement.sources)
    # x + -0.0 is x for every x, x + 0.0 is not (for -0.0): an entry without a partner must arrive bit for bit.
    absent = jnp.where(slots < nnz, _negative_zero(values.dtype), np.zeros((), values.dtype))
    return gather(values, placement.sources, absent)


def _pick(union: Union, cotangents: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    return tuple(_pick_node(union, _poison_overflow(union, *cotangents)))


def _pick_node(union: Union, cotangent: jax.Array) -> Iterator[jax.Array]:
    for child, placement in zip(union.children, union.placements, strict=True):
        picked = gather(cotangent, placement.positions, 0)
        if child is None:
            yield picked
        else:
            yield from _pick_node(child, picked)


def _poison_overflow(union: Union, values: jax.Array) -> jax.Array:
    """`values`, or the fill value of `jnp.take(mode="fill")` throughout if the union has more entries than slots.

    Counted as a linear map that is its own transpose, so that tangents and cotangents are poisoned too.
    """
    return _poison(union.nnz > values.shape[0], values) if _may_overflow(union) else values


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
    """Values of which those at `placement.sources` are complete sums."""
    if placement.order is None:
        return values
    nse = placement.sources.shape[0]
    runs = gather(placement.positions, placement.order, fill=nse)
    return _sum_runs(gather(values, placement.order, fill=0), runs, runs < nse)


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
    apply: Callable[[Union, tuple[jax.Array, ...]], tuple[jax.Array, ...]],
    transpose: Callable[[Union, tuple[jax.Array, ...]], tuple[jax.Array, ...]],
    union: Union,
    x: tuple[jax.Array, ...],
    y_sizes: Sequence[int],
) -> tuple[jax.Array, ...]:
    """`apply(union, x)`, arrays of `y_sizes` rows: linear in x, with the given transpose, under every transformation.

    `custom_vjp` would bar forward mode, and nothing else in JAX lets a transpose be named and be batched but
    `lax.custom_linear_solve`: its `solve` is any linear map of a space to itself whose transpose is `transpose_solve`
    (`matvec`, here the identity, would matter only if it depended on differentiated values). The space here is that of
    the rows of x and y together, and the map takes (x, y) to (0, A x); so its transpose takes (x, y) to (A^T y, 0).
    XLA removes what is put together and taken apart again. (In one array, since the solve fails if only some of several
    have a tangent.)
    """
    if not jnp.issubdtype(x[0].dtype, jnp.inexact):
        return apply(union, x)
    union, x = vary_alike((union, x))
    x_sizes = [part.shape[0] for part in x]

    def zeros(sizes: Sequence[int]) -> tuple[jax.Array, ...]:
        return tuple(jnp.zeros((size, *x[0].shape[1:]), x[0].dtype) for size in sizes)

    def split(rows: jax.Array) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
        sizes = [*x_sizes, *y_sizes]
        ends = itertools.accumulate(sizes)
        # Not by `jnp.split`, whose transpose fails under `shard_map` in jax 0.8.
        parts = [lax.slice_in_dim(rows, end - size, end) for size, end in zip(sizes, ends, strict=True)]
        return tuple(parts[: len(x)]), tuple(parts[len(x) :])

    solved = lax.custom_linear_solve(
        lambda b: b,
        jnp.concatenate([*x, *zeros(y_sizes)]),
        solve=lambda _, b: jnp.concatenate([*zeros(x_sizes), *apply(union, split(b)[0])]),
        transpose_solve=lambda _, c: jnp.concatenate([*transpose(union, split(c)[1]), *zeros(y_sizes)]),
    )
    return split(solved)[1]
