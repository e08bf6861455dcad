"""Plans: the symbolic phase once, the numeric phase as often as wanted."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, Generic, SupportsIndex, cast, overload

import jax
import jax.numpy as jnp
from jax.experimental.sparse import BCOO, BCSR

from jax_sparse_grad import _containers, _engine, _tree, _validation
from jax_sparse_grad._auto_axes import on_auto_axes
from jax_sparse_grad._eager import call_concretely, is_concrete
from jax_sparse_grad._numeric import add_values
from jax_sparse_grad._tree import UnionTree, entry_counts
from jax_sparse_grad._types import ArrayInput, MatrixT, Order, Shape, Sparse, Spec, SupportsJaxArray


@partial(jax.tree_util.register_dataclass, data_fields=["indices", "union", "compressed"], meta_fields=["shape", "nse"])
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class SparseAddPlan(Generic[MatrixT]):
    """The symbolic phase of a sparse addition: adds values of its operands as often as wanted.

    Made by `plan_sparse_add`. A pytree whose leaves are integer arrays, and a flag for each operand that may have
    duplicates: it passes through `jit`, `vmap`, `scan` and `checkpoint` like any array, can be exported, pickled and
    copied, and has no values that an optimiser could change. To type checkers, `SparseAddPlan[BCSR]` is one whose
    `with_data` gives a BCSR.

    A plan of concrete operands has no such flags, and neither has one made with `assume_canonical=True`, so that a
    compiled step with it has no conditional. Plans without duplicates, with duplicates, and with flags are pytrees of
    different structure: a jitted function is compiled once for each kind, and JAX refuses to carry one kind into a loop
    and another out of it. If a loop makes plans, make the first one as it does: under `jit`, or with the same promise.

    Attributes:
      indices: `[nse, ndims]`, lexicographically sorted and unique. Behind the `nnz` entries comes padding, where all
        indices equal the shape.
      union: where the entries of the operands went.
      shape: the sparse shape, a tuple of ints (static).
      nse: the number of elements that the sum stores (static).
      compressed: `indices` and `indptr` of the sum as a BCSR if all operands are BCSR, else None.
    """

    indices: jax.Array
    union: UnionTree
    shape: tuple[int, ...]
    nse: int
    compressed: tuple[jax.Array, jax.Array] | None = None

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

        def find() -> tuple[jax.Array, ...]:
            return tuple(jnp.minimum(slots, self.nse) for slots in _tree.slots_of(self.union))

        return call_concretely(find) if is_concrete(self) else find()

    def __repr__(self) -> str:
        try:
            nnz = ", ".join(str(size) for group in entry_counts(self.union) for size in group)
        except AttributeError:  # no arrays, while JAX handles the tree
            nnz = "..."
        return f"SparseAddPlan(shape={self.shape}, nse={self.nse}, operands of nnz {nnz})"

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
          are NaN (the minimum of a signed, the maximum of an unsigned integer dtype).

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
        nnz = [size for group in entry_counts(self.union) for size in group]
        return add_values(self.union, _validation.as_plan_values(values, nnz))

    @on_auto_axes
    def with_data(self, *values: ArrayInput) -> MatrixT:
        """Add the values of all operands, and return the sum as a matrix.

        Args:
          *values: as for a call of the plan.

        Returns:
          A BCSR if all operands of the plan were BCSR, else a BCOO. It is sorted and unique, with padding last, and
          shares the indices of the plan. Its shape is that of the plan, followed by the dense dimensions of the values.

        Raises:
          TypeError: as for a call.
          ValueError: as for a call.

        Example:
          >>> import jax.numpy as jnp, jax_sparse_grad as jsg
          >>> from jax.experimental.sparse import BCOO
          >>> x, y = (BCOO.fromdense(jnp.eye(3, k=k)) for k in (0, 1))
          >>> plan = jsg.plan_sparse_add(x, y)
          >>> total = plan.with_data(x.data, 2 * y.data)
          >>> total, total.todense().tolist()
          (BCOO(float32[3, 3], nse=5), [[1.0, 2.0, 0.0], [0.0, 1.0, 2.0], [0.0, 0.0, 1.0]])
        """
        data = self(*values)
        shape = self.shape + data.shape[1:]
        return cast(MatrixT, _containers.as_matrix(data, self.indices, self.compressed, shape))


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
    """Do the symbolic phase of a sparse addition: unite the patterns once, to add values as often as wanted.

    Args:
      *operands: at least one. Either an array of indices `[nnz_k, ndims]`, of any integer dtype, for each operand; or
        all of them BCOO or BCSR without batch dimensions. Indices may be in any order, with duplicates and padding. In
        arrays, a row is padding if all its indices equal the shape; in matrices, as everywhere in JAX, if any index
        lies beyond it.
      shape: the sparse shape of all operands, static. Not needed for matrices, which know their shape.
      nse: the number of elements that the sum stores, static. By default the exact number if all indices are concrete
        (also inside `jit` if they are closed over), otherwise the sum of all `nnz_k`, which is always enough.
      assume_canonical: a promise that all indices are sorted and unique, with padding only at the end. Skips the check.

    Returns:
      A `SparseAddPlan`: `plan(*values)` adds, `plan.with_data(*values)` returns the sum as a matrix.

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
    nse, order = _validation.as_nse(nse), Order.promised(_validation.as_flag("assume_canonical", assume_canonical))
    if any(isinstance(x, BCOO | BCSR) for x in operands):
        return _plan_of_matrices(operands, shape, nse, order)
    if isinstance(operands[0], list | tuple) and any(map(_containers.is_sparse, operands[0])):
        raise TypeError("`operands` must be passed one by one, got a list; call `plan_sparse_add(*operands)`")
    names = tuple(f"operands[{k}]" for k in range(len(operands)))
    arrays = _validation.as_common_indices(names, operands)
    if shape is None:
        raise TypeError("`shape` must be given if the operands are arrays of indices, got None")
    sizes = _validation.as_shape("shape", shape)
    _validation.check_shape_fits("shape", sizes, names[0], arrays[0])
    return _plan(Spec(names, sizes, nse, order), arrays)


def _plan_of_matrices(operands: Sequence[Any], shape: Shape | None, nse: int | None, order: Order) -> SparseAddPlan:
    named = {f"operands[{k}]": _containers.without_wrappers(x) for k, x in enumerate(operands)}
    for name, x in named.items():
        if not isinstance(x, BCOO | BCSR):
            raise TypeError(
                f"`{name}` must be a BCOO or a BCSR, as other operands are, got {_validation.kind_of(x)}; "
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
    if shape is not None and _validation.as_shape("shape", shape) != sizes:
        raise ValueError(f"`shape` must be the shape of the matrices, {sizes}, or be left out; got {shape}")
    names = tuple(f"{name}.indices" for name in named)
    rows = [_containers.indices_of(name, x) for name, x in named.items()]
    indices = _validation.promote_indices(names, rows)
    _validation.check_shape_fits(f"{next(iter(named))}.shape", sizes, names[0], indices[0])
    plan = _plan(Spec(names, sizes, nse, order, strict=False), indices)
    compressed = _containers.compress_if_all_are(list(named.values()), plan.indices, sizes)
    return dataclasses.replace(plan, compressed=compressed)


def _plan(spec: Spec, indices: tuple[jax.Array, ...]) -> SparseAddPlan:
    rows, union = _engine.plan(spec, indices)
    return SparseAddPlan(rows, union, spec.shape, rows.shape[0])
