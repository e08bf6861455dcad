"""Plans: the symbolic phase once, the numeric phase as often as wanted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Generic, SupportsIndex, cast, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO, BCSR

from jax_sparse_grad import _arguments, _containers, _sum
from jax_sparse_grad._auto_axes import on_auto_axes
from jax_sparse_grad._concrete import on_cpu, put_like, read
from jax_sparse_grad._types import ArrayInput, MatrixT, Shape, Sparse, Spec, SupportsJaxArray
from jax_sparse_grad._union import Union


@partial(jax.tree_util.register_dataclass, data_fields=["union", "compressed"], meta_fields=["shape"])
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SparseAddPlan(Generic[MatrixT]):
    """The symbolic phase of a sparse addition: adds values of its operands as often as wanted.

    Made by `plan_sparse_add`. A pytree of integer arrays: it passes through `jit`, `vmap`, `scan` and `checkpoint` like
    any array, can be exported, pickled and copied, and has no values that an optimiser could change. However it was
    made, its structure is the same: one plan can take another's place under `jit` without a new compilation if its
    arrays have the same shapes, and be a loop's carry. To type checkers, `SparseAddPlan[BCSR]` is one whose `with_data`
    gives a BCSR.

    Attributes:
      union: the indices of the sum, where the entries of the operands went, and the number of distinct entries.
      shape: the sparse shape, a tuple of ints (static).
      compressed: `indices` and `indptr` of the sum as a BCSR if all operands are BCSR, else None.
    """

    union: Union
    shape: tuple[int, ...]
    compressed: tuple[jax.Array, jax.Array] | None = None

    @property
    def indices(self) -> jax.Array:
        """`[nse, ndims]`, lexicographically sorted and unique.

        Behind the `nnz` entries comes padding, where all indices equal the shape.
        """
        return _arguments.as_integers("plan.indices", self.union.indices)

    @property
    def nse(self) -> int:
        """The number of elements that the sum stores (static)."""
        return self.union.indices.shape[-2]

    @property
    def nnz(self) -> jax.Array:
        """Scalar int32, the true number of distinct entries.

        If it exceeds `nse`, the plan has overflowed, and all its sums are poisoned.
        """
        return self.union.nnz

    @property
    def ndim(self) -> int:
        """The number of sparse dimensions (static)."""
        return len(self.shape)

    @property
    def slots(self) -> tuple[jax.Array, ...]:
        """For operand k `[nnz_k]` int32, the place of each of its entries in the sum, or `nse` if it has none.

        Padding has no place, and in a plan that has overflowed, neither have entries beyond its `nse`. With slots,
        assembly can add into a given pattern:

          >>> import jax.numpy as jnp, jax_sparse_grad as jsg
          >>> system, element = jnp.array([[0, 0], [0, 1], [1, 1]]), jnp.array([[1, 1], [0, 0]])
          >>> plan = jsg.plan_sparse_add(system, element, shape=(2, 2))
          >>> [slots.tolist() for slots in plan.slots]
          [[0, 1, 2], [2, 0]]
          >>> jnp.zeros(plan.nse).at[plan.slots[1]].add(jnp.array([5., 7.]), mode="drop").tolist()
          [7.0, 0.0, 5.0]
        """
        self._check_single()
        if not on_cpu(self.union.slots):
            return tuple(jnp.minimum(slots, self.nse) for slots in self.union.slots)
        slots = tuple(np.minimum(read(each), np.int32(self.nse)) for each in self.union.slots)
        return put_like(self.union.slots, slots)

    def __repr__(self) -> str:
        try:
            sizes = f"nse={self.nse}, operands of nnz " + ", ".join(str(slots.shape[-1]) for slots in self.union.slots)
        except AttributeError:  # no arrays, while JAX handles the tree
            sizes = "..."
        return f"SparseAddPlan(shape={self.shape}, {sizes})"

    def _check_single(self) -> None:
        if self.nnz.ndim:
            raise ValueError(f"the plan is batched (`plan.nnz` has shape {self.nnz.shape}); call it under `jax.vmap`")

    @on_auto_axes
    def __call__(self, *values: ArrayInput) -> jax.Array:
        """Add the values of all operands.

        Args:
          *values: for operand k `[nnz_k, *dense]`, of any numeric dtype. Dtypes promote as in `jnp`. The values of a
            matrix are taken in the order in which it stores them.

        Returns:
          `[nse, *dense]`, the values of the sum at `plan.indices`, with 0 at padding. If the plan has overflowed, all
          are NaN (the minimum of a signed, the maximum of an unsigned integer dtype, to which a next sum adds).

        Raises:
          TypeError: values are not numeric.
          ValueError: their number or shapes do not match the operands of the plan.

        Example:
          >>> import jax.numpy as jnp, jax_sparse_grad as jsg
          >>> plan = jsg.plan_sparse_add(jnp.array([[0], [2]]), jnp.array([[1], [2]]), shape=(3,))
          >>> plan(jnp.array([1., 2.]), jnp.array([10., 20.])).tolist()
          [1.0, 10.0, 22.0]

        Linear in the values. Works under all of JAX's transformations, forward mode included; derivatives only gather.
        """
        self._check_single()
        arrays, dtype = _arguments.as_plan_values(values, [slots.shape[0] for slots in self.union.slots])
        return _sum.add_values(self.union, arrays, dtype)

    @on_auto_axes
    def with_data(self, data: ArrayInput) -> MatrixT:
        """Make the matrix that has the pattern of the plan, and these values.

        Args:
          data: `[nse, *dense]`, of any numeric dtype: the values of a sum, as a call of the plan returns them.

        Returns:
          A BCSR if all operands of the plan were BCSR, else a BCOO. It is sorted and unique, with padding last, and
          shares the indices of the plan. Its shape is that of the plan, followed by the dense dimensions of the values.

        Raises:
          TypeError: `data` is not numeric.
          ValueError: `data` does not have one row for each row of `plan.indices`.

        Example:
          >>> import jax.numpy as jnp, jax_sparse_grad as jsg
          >>> from jax.experimental.sparse import BCOO
          >>> x, y = (BCOO.fromdense(jnp.eye(3, k=k)) for k in (0, 1))
          >>> plan = jsg.plan_sparse_add(x, y)
          >>> total = plan.with_data(plan(x.data, 2 * y.data))
          >>> total, total.todense().tolist()
          (BCOO(float32[3, 3], nse=5), [[1.0, 2.0, 0.0], [0.0, 1.0, 2.0], [0.0, 0.0, 1.0]])
        """
        self._check_single()
        values = _arguments.as_values("data", data, self.nse, "plan.indices")
        compressed = self.compressed
        if compressed is not None:
            columns, indptr = (_arguments.as_integers("plan.compressed", each) for each in compressed)
            compressed = columns, indptr
        shape = self.shape + values.shape[1:]
        return cast(MatrixT, _containers.as_matrix(values, self.indices, compressed, shape))


@overload
def plan_sparse_add(
    operand: BCOO,
    /,
    *operands: BCOO,
    shape: Shape | None = None,
    nse: SupportsIndex | None = None,
    assume_canonical: bool = False,
) -> SparseAddPlan[BCOO]: ...
@overload
def plan_sparse_add(
    operand: BCSR,
    /,
    *operands: BCSR,
    shape: Shape | None = None,
    nse: SupportsIndex | None = None,
    assume_canonical: bool = False,
) -> SparseAddPlan[BCSR]: ...
@overload
def plan_sparse_add(
    operand: ArrayInput,
    /,
    *operands: ArrayInput,
    shape: Shape,
    nse: SupportsIndex | None = None,
    assume_canonical: bool = False,
) -> SparseAddPlan[BCOO]: ...
@overload
def plan_sparse_add(
    operand: Sparse | SupportsJaxArray,
    /,
    *operands: Sparse | SupportsJaxArray,
    shape: Shape | None = None,
    nse: SupportsIndex | None = None,
    assume_canonical: bool = False,
) -> SparseAddPlan: ...
@on_auto_axes
def plan_sparse_add(
    *operands: ArrayInput | Sparse,
    shape: Shape | None = None,
    nse: SupportsIndex | None = None,
    assume_canonical: bool = False,
) -> SparseAddPlan:
    """Do the symbolic phase of a sparse addition: merge the patterns once, to add values as often as wanted.

    Args:
      *operands: at least one. Either an array of indices `[nnz_k, ndims]`, of any integer dtype, for each operand; or
        all of them BCOO or BCSR without batch dimensions. Indices may be in any order, with duplicates and padding. In
        arrays, a row is padding if all its indices equal the shape; in matrices, as everywhere in JAX, if any index
        lies beyond it.
      shape: the sparse shape of all operands, static. Not needed for matrices, which know their shape.
      nse: the number of elements that the sum stores, static. By default the exact number if all indices are concrete
        (also inside `jit` if they are closed over), otherwise the sum of all `nnz_k`, which is always enough.
      assume_canonical: assert that all indices are sorted and unique, with padding only at the end. Their order is then
        not looked at: if the assertion is false, the plan is wrong, which only `checkify` reports.

    Returns:
      A `SparseAddPlan`: `plan(*values)` adds, and `plan.with_data(data)` makes a matrix of the result.

    Raises:
      TypeError: indices are not integers; arrays and matrices are mixed; a static argument is traced.
      ValueError: shapes do not match; `nse` is 0 in a traced plan that may have entries; concrete indices lie outside
        `shape`; a concrete sum has more entries than `nse`. Under `jit` only `checkify` reports the last two. Without
        it, such indices count as padding, and sums with too many entries are poisoned (as `plan.nnz > plan.nse` tells).

    Example:
      >>> import jax, jax.numpy as jnp, jax_sparse_grad as jsg
      >>> mass, stiffness = jnp.array([[0, 0], [1, 1]]), jnp.array([[0, 0], [0, 1], [1, 1]])
      >>> plan = jsg.plan_sparse_add(mass, stiffness, shape=(2, 2))
      >>> plan.indices.tolist(), int(plan.nnz), plan.nse
      ([[0, 0], [0, 1], [1, 1]], 3, 3)
      >>> loss = lambda k: (plan(jnp.ones(2), k) ** 2).sum()
      >>> jax.grad(loss)(jnp.array([1., 2., 3.])).tolist()
      [4.0, 4.0, 8.0]

    Transformations: all of JAX's, forward mode included. `plan_sparse_add` itself may be called under `jit` and `vmap`;
    what it makes may be an argument, a result, a constant or a loop carry of transformed functions.

    Derivatives: a plan is linear in the values of all operands, and the compiled backward pass consists of gathers
    only. Indices have no gradient.

    When: a plan pays off as soon as its pattern is used twice.

    Mirrors the split of sparse direct solvers into a symbolic and a numeric phase; the sum is that of TensorFlow's
    `SparseAdd`.
    """
    if not operands:
        raise ValueError("`operands` must hold at least one operand")
    spec = Spec((), (), _arguments.as_nse(nse), _arguments.as_flag("assume_canonical", assume_canonical))
    if any(isinstance(x, BCOO | BCSR) for x in operands):
        return _plan_of_matrices(operands, shape, spec)
    if isinstance(operands[0], list | tuple) and any(map(_containers.is_sparse, operands[0])):
        raise TypeError("`operands` must be passed one by one, got a list; call `plan_sparse_add(*operands)`")
    if shape is None and isinstance(operands[-1], tuple) and all(isinstance(size, int) for size in operands[-1]):
        raise TypeError(f"`shape` must be given by keyword, `shape={operands[-1]}`; a tuple of ints is no operand")
    names = tuple(f"operands[{k}]" for k in range(len(operands)))
    sizes = None if shape is None else _arguments.as_shape("shape", shape)
    arrays = _arguments.as_common_indices(names, operands, "shape", sizes)
    if sizes is None:
        raise TypeError("`shape` must be given if the operands are arrays of indices, got None")
    return SparseAddPlan(_sum.find_union(spec._replace(names=names, shape=sizes), arrays), sizes)


def _plan_of_matrices(operands: Sequence[Any], shape: Shape | None, spec: Spec) -> SparseAddPlan:
    named = {f"operands[{k}]": _containers.without_wrappers(x) for k, x in enumerate(operands)}
    for name, x in named.items():
        if not isinstance(x, BCOO | BCSR):
            raise TypeError(
                f"`{name}` must be a BCOO or a BCSR, as other operands are, got {_arguments.kind_of(x)}; "
                "if that holds indices, pass `indices` of the matrices too, and `shape`"
            )
    whole = _containers.common_shape(tuple(named), list(named.values()))
    n_batch, n_sparse = _containers.common_layout(named)
    if n_batch:
        raise ValueError(
            f"`{next(iter(named))}` must have no batch dimensions, got n_batch {n_batch}; make one plan for each under "
            "`jax.vmap`, or add them with `jsg.add`"
        )
    sizes = whole[:n_sparse]
    if shape is not None and _arguments.as_shape("shape", shape) != sizes:
        raise ValueError(f"`shape` must be the shape of the matrices, {sizes}, or be left out; got {shape}")
    names = tuple(f"{name}.indices" for name in named)
    rows = [_containers.indices_of(name, x) for name, x in named.items()]
    indices = _arguments.promote_indices(names, rows)
    _arguments.check_sizes_fit(f"{next(iter(named))}.shape", sizes, indices[0].dtype)
    union = _sum.find_union(spec._replace(names=names, shape=sizes, beyond_is_padding=True), indices)
    compressed = _containers.compress_if_all_bcsr(list(named.values()), union.indices, sizes)
    return SparseAddPlan(union, sizes, compressed)
