"""Plans: the symbolic phase once, the numeric phase as often as wanted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Generic, NamedTuple, SupportsIndex, TypeVar, cast, overload

import jax
import jax.numpy as jnp
from jax.experimental.sparse import BCOO, BCSR

from jax_sparse_grad import _buckets, _containers, _keys, _tree, _union, _validation
from jax_sparse_grad._auto_axes import on_auto_axes
from jax_sparse_grad._checks import guard
from jax_sparse_grad._keys import Space, space_of
from jax_sparse_grad._numeric import add_values, without_flags, without_known
from jax_sparse_grad._primitives import map_batches
from jax_sparse_grad._tree import Form, Union, entry_counts
from jax_sparse_grad._types import ArrayInput, MatrixT, Shape, Sparse, SupportsJaxArray

T = TypeVar("T")

SEPARATE_BELOW = 1 << 15  # slots: for a shorter concrete sum, 2 s of compilation would save less than 1 ms a call


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
    union: Union
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

        return _validation.call_concretely(find) if _validation.is_concrete(self) else find()

    def __repr__(self) -> str:
        try:
            nnz = ", ".join(str(size) for counts in entry_counts(self.union) for size in counts)
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
        sizes = [size for counts in entry_counts(self.union) for size in counts]
        self._check_single()
        if len(values) != len(sizes):
            listed = len(values) == 1 and isinstance(values[0], list | tuple)
            raise ValueError(
                f"`values` must be given for each of the {len(sizes)} operands of the plan, got {len(values)}"
                + ("; unpack the list, `plan(*values)`" if listed else "")
            )
        names = [f"values[{k}]" for k in range(len(values))]
        arrays = [
            _validation.as_values(name, array, size, f"operands[{k}]")
            for k, (name, array, size) in enumerate(zip(names, values, sizes, strict=True))
        ]
        return add_values(self.union, _validation.as_common_values(names, arrays))

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
        matrix: BCOO | BCSR
        if self.compressed is None:
            matrix = BCOO((data, self.indices), shape=shape, indices_sorted=True, unique_indices=True)
        else:
            matrix = BCSR((data, *self.compressed), shape=shape, indices_sorted=True, unique_indices=True)
        return cast(MatrixT, matrix)


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
    size = _validation.as_nse(nse)
    flag = _validation.as_flag("assume_canonical", assume_canonical)
    if any(isinstance(x, BCOO | BCSR) for x in operands):
        return _plan_of_matrices(operands, shape, size, flag)
    if isinstance(operands[0], list | tuple) and any(map(_containers.is_sparse, operands[0])):
        raise TypeError("`operands` must be passed one by one, got a list; call `plan_sparse_add(*operands)`")
    names = tuple(f"operands[{k}]" for k in range(len(operands)))
    arrays = _validation.as_common_indices(names, operands)
    if shape is None:
        raise TypeError("`shape` must be given if the operands are arrays of indices, got None")
    sizes = _validation.as_shape("shape", shape)
    _validation.check_shape_fits("shape", sizes, names[0], arrays[0])
    return make_plan(Request(names, sizes, size, flag), arrays)


def _plan_of_matrices(
    operands: Sequence[Any], shape: Shape | None, nse: int | None, assume_canonical: bool
) -> SparseAddPlan:
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
    plan = make_plan(Request(names, sizes, nse, assume_canonical, strict=False), indices)
    if not all(isinstance(x, BCSR) for x in named.values()):
        return plan
    dtype = _containers.common_index_dtype(*(x.indptr for x in named.values()))
    return dataclasses.replace(plan, compressed=_containers.compress(plan.indices, sizes, dtype))


class Request(NamedTuple):
    """What is asked of a sum, apart from its data; checked, and static.

    names: of the operands' indices, for messages.
    strict: whether a row beyond the shape is an error unless it is marked as padding. In containers it is padding.
    apart: whether it matters which operand an entry belongs to.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    nse: int | None
    assume_canonical: bool
    strict: bool = True
    apart: bool = False

    def join(self, indices: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, ...], tuple[int, ...] | None]:
        """`_tree.join`, if it is allowed."""
        return (indices, None) if self.apart else _tree.join(indices, self.assume_canonical)

    def space_of(self, indices: tuple[jax.Array, ...]) -> Space:
        """The space of the indices."""
        return space_of(self.shape, indices[0].dtype)


def make_plan(request: Request, indices: tuple[jax.Array, ...]) -> SparseAddPlan:
    """The plan of indices `[*batch, nnz_k, ndims]`: one for each batch, but a single one along axes of length 1."""
    if _validation.is_concrete(indices):
        return _validation.call_concretely(lambda: _make_concrete(request, indices))
    indices = guard_indices(request, indices)
    bound = most_rows(indices)
    nse = bound if request.nse is None else request.nse
    operands, joined = request.join(indices)
    form = Form.of_traced(nse, request.assume_canonical, joined)
    plan = _as_plan(request.shape, *unite_patterns(form, request.space_of(indices), operands))
    return guard_nse(plan, plan.nnz, nse, bound)


def _make_concrete(request: Request, indices: tuple[jax.Array, ...]) -> SparseAddPlan:
    """The plan of concrete indices: of exact size, by functions that are compiled for few sizes."""
    padded, counts = pad_indices(request, indices)
    promised = request.assume_canonical and len(padded) == len(indices)
    form = Form(most_rows(padded), known_canonical(request, indices, padded), promised)
    rows, union = unite_patterns(form, request.space_of(padded), padded)
    nse = exact_nse(request, union.nnz, indices)
    # So a step with the plan needs no conditional, even if the plan is an argument of a compiled one.
    union = _tree.separate(_tree.fit(without_flags(union), nse, iter(counts)))
    fitted = _buckets.resize(rows, nse, request.shape, n_batch_of(indices)), union
    # numpy did the fitting where it could: nothing is compiled for a new length.
    return _as_plan(request.shape, *jax.device_put(fitted))


def _as_plan(shape: tuple[int, ...], indices: jax.Array, union: Union) -> SparseAddPlan:
    return SparseAddPlan(indices, union, shape, indices.shape[-2])


@partial(jax.jit, static_argnums=0)
def unite_patterns(form: Form, space: Space, operands: tuple[jax.Array, ...]) -> tuple[jax.Array, Union]:
    """The indices of a sum, and the union of `operands [*batch, nnz_k, ndims]`, for keeping."""

    def unite(*operands: jax.Array) -> tuple[jax.Array, Union]:
        return _union.unite(form, space, operands)

    return map_batches(unite, n_batch_of(operands))(*operands)


def add_once(
    request: Request, indices: tuple[jax.Array, ...], values: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    """The indices and values of a sum of `indices [*batch, nnz_k, ndims]` and `values [*batch, nnz_k, *dense]`."""
    if _validation.is_concrete(indices, values):
        return _validation.call_concretely(lambda: add_in_buckets(unite_and_add, request, indices, values))
    if _validation.is_concrete(indices):
        plan = make_plan(request, indices)
        return plan.indices, map_batches(add_values, n_batch_of(indices))(plan.union, values)
    indices = guard_indices(request, indices)
    bound = most_rows(indices)
    nse = bound if request.nse is None else request.nse
    operands, joined = request.join(indices)
    form = Form.of_traced(nse, request.assume_canonical, joined)
    sum_indices, sum_values, nnz = unite_and_add(form, request.space_of(indices), operands, values)
    return guard_nse(sum_indices, nnz, nse, bound), sum_values


@partial(jax.jit, static_argnums=0)
def unite_and_add(
    form: Form, space: Space, operands: tuple[jax.Array, ...], values: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    """The indices, values and true number of entries of a sum, without a plan to keep."""
    n_batch = n_batch_of(operands)
    if any(_is_shared(operands, k) and not _is_shared(values, k) for k in range(n_batch)):
        sum_indices, union = unite_patterns(form, space, operands)
        return sum_indices, map_batches(add_values, n_batch)(union, values), union.nnz

    def add(operands: tuple[jax.Array, ...], values: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        sum_indices, union, total = _union.unite_and_add(form, space, operands, values)
        return sum_indices, total, union.nnz

    return map_batches(add, n_batch)(operands, values)


def _is_shared(arrays: tuple[jax.Array, ...], axis: int) -> bool:
    return all(array.shape[axis] == 1 for array in arrays)


def add_in_buckets(
    add: Callable[..., tuple[jax.Array, ...]],
    request: Request,
    indices: tuple[jax.Array, ...],
    values: tuple[jax.Array, ...],
) -> tuple[jax.Array, jax.Array]:
    """The indices and values of a sum of concrete tensors: of exact size, by functions that are compiled for few sizes.

    `add(form, space, indices, values)` returns the indices, values and true number of entries of a sum.
    """
    axis = n_batch_of(indices)
    padded, counts = pad_indices(request, indices)
    form = Form(most_rows(padded), known_canonical(request, indices, padded))
    padded_values = pad_values(values, padded, counts)
    if form.nse <= SEPARATE_BELOW and not request.apart:
        add = _unite_then_add
    sum_indices, sum_values, nnz = add(form, request.space_of(padded), padded, padded_values)
    nse = exact_nse(request, nnz, indices)
    resized = _buckets.resize(sum_indices, nse, request.shape, axis), _buckets.resize(sum_values, nse, 0, axis)
    fitted: tuple[jax.Array, jax.Array] = jax.device_put(resized)
    return fitted


def _unite_then_add(
    form: Form, space: Space, operands: tuple[jax.Array, ...], values: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    """`unite_and_add` of concrete arrays, by the program that also makes plans and eager gradients, and a small one."""
    sum_indices, union = unite_patterns(form, space, operands)
    return sum_indices, _add_batches(without_known(union), values), union.nnz


@jax.jit
def _add_batches(union: Union, values: tuple[jax.Array, ...]) -> jax.Array:
    return map_batches(add_values, union.nnz.ndim)(union, values)


def n_batch_of(indices: tuple[jax.Array, ...]) -> int:
    """The number of batch dimensions of indices `[*batch, nnz, ndims]`."""
    return indices[0].ndim - 2


def most_rows(indices: tuple[jax.Array, ...]) -> int:
    """The most entries that a sum can have: the rows of all operands, or one if the tensor is a scalar."""
    total = sum(rows.shape[-2] for rows in indices)
    return total if indices[0].shape[-1] else min(total, 1)


def pad_indices(
    request: Request, indices: tuple[jax.Array, ...]
) -> tuple[tuple[jax.Array, ...], tuple[tuple[int, ...], ...]]:
    """Concrete indices padded to lengths for which little is compiled, and the sizes of the operands in each of them.

    Operands that are sorted as one list are joined first, so that only the total length counts.
    """
    operands, joined = request.join(indices)
    sizes = [rows.shape[-2] for rows in operands]
    lengths = _buckets.buckets(sizes) if request.shape else sizes  # a scalar tensor has no padding
    axis = n_batch_of(operands)
    padded = (
        _buckets.resize(rows, length, request.shape, axis) for rows, length in zip(operands, lengths, strict=True)
    )
    return tuple(padded), (joined,) if joined else tuple((size,) for size in sizes)


def pad_values(
    values: tuple[jax.Array, ...], padded: tuple[jax.Array, ...], counts: tuple[tuple[int, ...], ...]
) -> tuple[jax.Array, ...]:
    """Concrete values joined and padded as their indices are."""
    axis = n_batch_of(padded)
    parts = iter(values)
    joined = [_buckets.concatenate([next(parts) for _ in sizes], axis) for sizes in counts]
    return tuple(_buckets.resize(array, rows.shape[-2], 0, axis) for array, rows in zip(joined, padded, strict=True))


def known_canonical(request: Request, indices: tuple[jax.Array, ...], padded: tuple[jax.Array, ...]) -> bool | None:
    """Whether concrete operands are canonical as padded; None if not all are, but some may be."""
    canonical = _keys.guard_concrete(request.names, indices, padded, request.shape, request.strict)
    if len(padded) < len(indices):  # joined, and sorted in any case
        return False
    if canonical or request.assume_canonical:
        return True
    return None if len(padded) > 2 else False


def exact_nse(request: Request, nnz: jax.Array, indices: tuple[jax.Array, ...]) -> int:
    """The number of elements that a concrete sum stores: the number asked for, or as many as there are."""
    nse = _tree.most_entries(nnz) if request.nse is None else request.nse
    guard_nse((), nnz, nse, most_rows(indices))
    return nse


def guard_indices(request: Request, indices: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """The same traced indices, on condition that they are what the caller says."""

    def guard_rows(name: str, rows: jax.Array) -> jax.Array:
        rows = _keys.guard_rows(name, rows, request.shape if request.strict else None)
        return _keys.guard_canonical(name, rows, request.shape) if request.assume_canonical else rows

    n_batch = n_batch_of(indices)
    named = zip(request.names, indices, strict=True)
    return tuple(map_batches(partial(guard_rows, name), n_batch)(rows) for name, rows in named)


def guard_nse(tree: T, nnz: jax.Array, nse: int, bound: int) -> T:
    """The same arrays, on condition that `nnz` entries, at most `bound` in each batch, fit `nse`."""
    if nse >= bound:
        return tree
    if nse == 0 and not _validation.is_concrete(nnz):
        # Nothing is stored that could be poisoned.
        raise ValueError(f"`nse` must be positive for a traced sum of up to {bound} entries, got 0")
    message = f"`nse` must be at least {{nnz}}, the number of distinct entries of the sum; got {nse}"
    most = jnp.max(nnz, initial=0)
    return guard(tree, most <= nse, message, nnz=most)
