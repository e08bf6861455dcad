"""`add`, `subtract`, `add_n` and `sum_duplicates`: sums of `jax.experimental.sparse` containers and dense arrays.

Each container is read as index rows and values, which are added. The sum is a container of the operands' kind:

    BCOO + BCOO -> BCOO      BCSR + BCSR -> BCSR      BCOO + BCSR -> BCOO      dense + any -> dense
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, SupportsIndex, overload

import jax
import numpy as np
from jax.experimental.sparse import BCOO, BCSR
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from jax_sparse_grad import _arguments, _containers, _sum, _weights
from jax_sparse_grad._auto_axes import call_on_auto_axes, explicit_mesh, merge_specs, spec_of
from jax_sparse_grad._types import Dense, Operand, Shape, Sparse, SparseT, Spec, SupportsJaxArray, Weights
from jax_sparse_grad._weights import Weight


@overload
def add(x: BCOO, y: Sparse, *, nse: SupportsIndex | None = None, assume_canonical: bool = False) -> BCOO: ...
@overload
def add(x: BCSR, y: SparseT, *, nse: SupportsIndex | None = None, assume_canonical: bool = False) -> SparseT: ...
@overload
def add(x: Sparse, y: Dense, *, nse: SupportsIndex | None = None, assume_canonical: bool = False) -> jax.Array: ...
@overload
def add(x: Dense, y: Sparse, *, nse: SupportsIndex | None = None, assume_canonical: bool = False) -> jax.Array: ...
@overload
def add(
    x: SupportsJaxArray, y: Operand, *, nse: SupportsIndex | None = None, assume_canonical: bool = False
) -> Any: ...
@overload
def add(
    x: Operand, y: SupportsJaxArray, *, nse: SupportsIndex | None = None, assume_canonical: bool = False
) -> Any: ...
def add(
    x: Operand, y: Operand, *, nse: SupportsIndex | None = None, assume_canonical: bool = False
) -> BCOO | BCSR | jax.Array:
    """Add two sparse matrices or tensors, or a sparse and a dense one. Differentiable in both.

    Args:
      x: a BCOO with any `n_batch` and `n_dense`, a BCSR, an array, or a nested list of numbers. Indices may be in any
        order, with duplicates and padding (as everywhere in JAX, a row with any index beyond the shape is padding). The
        flags `indices_sorted` and `unique_indices` are ignored, so a wrong flag never gives a wrong sum.
      y: the same, with the shape of `x`. At least one of the two must be sparse. Sparse operands must have equal
        `n_batch` and `n_dense`. Dtypes of indices and values promote as in `jnp`.
      nse: the number of elements that the sum stores (in each batch), static. By default the exact number if all
        indices are concrete (the largest over all batches), otherwise the sum of the operands' `nse`, which is always
        enough.
      assume_canonical: assert that sparse operands are sorted and unique, with padding only at the end. Their order is
        then not looked at: if the assertion is false, the sum is wrong, which only `checkify` reports.

    Returns:
      A BCOO for two BCOO, a BCSR for two BCSR, and a BCOO for one of each: sorted and unique (as its flags say),
      padding last. Entries that cancel are kept as zeros. A batch dimension in which all operands have indices of
      length 1, because the batches share a pattern, keeps that length. If one operand is dense, a dense array.

    Raises:
      TypeError: an operand is neither sparse nor an array, or both are dense; values are not numeric; a static argument
        is traced.
      ValueError: shapes or layouts differ; `nse` is given although one operand is dense, or is 0 in a traced sum that
        may have entries; concrete indices are negative, or a concrete `indptr` does not rise from 0 to at most nse; a
        concrete sum has more entries than `nse`. Under `jit` only `checkify` reports the last three. Without it, such
        indices count as padding, and the values of a sum with too many entries are NaN (the minimum of a signed, the
        maximum of an unsigned integer dtype, which marks this sum only: the next one adds to it).

    Example:
      >>> import jax, jax.numpy as jnp, jax_sparse_grad as jsg
      >>> from jax.experimental.sparse import BCOO
      >>> x = BCOO.fromdense(jnp.array([[1., 0.], [0., 2.]]))
      >>> y = BCOO.fromdense(jnp.array([[0., 3.], [0., 4.]]))
      >>> total = jsg.add(x, y)
      >>> total, total.indices.tolist(), total.data.tolist()
      (BCOO(float32[2, 2], nse=3), [[0, 0], [0, 1], [1, 1]], [1.0, 3.0, 6.0])
      >>> loss = lambda data: (jsg.add(BCOO((data, x.indices), shape=x.shape), y).data ** 2).sum()
      >>> jax.grad(loss)(x.data).tolist()
      [2.0, 12.0]
      >>> jsg.add(x, jnp.ones((2, 2))).tolist()
      [[2.0, 1.0], [1.0, 3.0]]

    Transformations: all of JAX's, in forward and reverse mode, of any order. The one exception is
    `jax.experimental.sparse.sparsify`, inside which sparse arguments look dense: call `add` outside of it.

    Derivatives: with respect to the values of both operands. Each gradient has the shape, dtype and pattern of its own
    operand. Duplicates each receive the gradient of their sum, padding receives 0. The backward pass only gathers.

    Speed: where values change and patterns do not, `plan_sparse_add` finds the union of the patterns once.

    A BCSR has no `.T` in JAX: `BCSR.from_bcoo(x.to_bcoo().T)` is the transpose.

    Precision: sums in floats of less than 32 bits are computed in a wider dtype and rounded once.

    Sharding: batches that are divided among devices stay divided, on `Auto` and on `Explicit` axes of a mesh. If the
    entries of one matrix are divided among devices, the sum is not: use `sharded.add` for that.

    Mirrors `tf.sparse.add`, which also takes a dense operand.
    """
    return _add(("x", "y"), (x, y), nse, assume_canonical)


@overload
def subtract(x: BCOO, y: Sparse, *, nse: SupportsIndex | None = None, assume_canonical: bool = False) -> BCOO: ...
@overload
def subtract(x: BCSR, y: SparseT, *, nse: SupportsIndex | None = None, assume_canonical: bool = False) -> SparseT: ...
@overload
def subtract(x: Sparse, y: Dense, *, nse: SupportsIndex | None = None, assume_canonical: bool = False) -> jax.Array: ...
@overload
def subtract(x: Dense, y: Sparse, *, nse: SupportsIndex | None = None, assume_canonical: bool = False) -> jax.Array: ...
@overload
def subtract(
    x: SupportsJaxArray, y: Operand, *, nse: SupportsIndex | None = None, assume_canonical: bool = False
) -> Any: ...
@overload
def subtract(
    x: Operand, y: SupportsJaxArray, *, nse: SupportsIndex | None = None, assume_canonical: bool = False
) -> Any: ...
def subtract(
    x: Operand, y: Operand, *, nse: SupportsIndex | None = None, assume_canonical: bool = False
) -> BCOO | BCSR | jax.Array:
    """Subtract sparse matrices or tensors, or a sparse and a dense one in either order. Differentiable in both.

    Args:
      x: as for `add`.
      y: as for `add`; it is subtracted from `x`.
      nse: as for `add`.
      assume_canonical: as for `add`.

    Returns:
      As for `add`, with values x + (-y). Where only y has an entry, the value is exactly -y, also for zeros and NaN.
      Unsigned integers wrap around as in `jnp`.

    Raises:
      TypeError, ValueError: as for `add`.

    Example:
      >>> import jax.numpy as jnp, jax_sparse_grad as jsg
      >>> from jax.experimental.sparse import BCSR
      >>> x = BCSR.fromdense(jnp.array([[1., 0.], [0., 2.]]))
      >>> y = BCSR.fromdense(jnp.array([[0., 3.], [0., 2.]]))
      >>> difference = jsg.subtract(x, y)
      >>> difference, difference.data.tolist()
      (BCSR(float32[2, 2], nse=3), [1.0, -3.0, 0.0])

    Transformations and derivatives: as for `add`.

    Mirrors `jnp.subtract`.
    """
    return _add(("x", "y"), (x, y), nse, assume_canonical, negated=(False, True))


@overload
def add_n(
    operands: Iterable[BCOO],
    *,
    weights: Weights | None = None,
    nse: SupportsIndex | None = None,
    assume_canonical: bool = False,
) -> BCOO: ...
@overload
def add_n(
    operands: Iterable[BCSR],
    *,
    weights: Weights | None = None,
    nse: SupportsIndex | None = None,
    assume_canonical: bool = False,
) -> BCSR: ...
@overload
def add_n(
    operands: Iterable[Sparse],
    *,
    weights: Weights | None = None,
    nse: SupportsIndex | None = None,
    assume_canonical: bool = False,
) -> BCOO | BCSR: ...
@overload
def add_n(
    operands: Iterable[Operand],
    *,
    weights: Weights | None = None,
    nse: SupportsIndex | None = None,
    assume_canonical: bool = False,
) -> BCOO | BCSR | jax.Array: ...
def add_n(
    operands: Iterable[Operand],
    *,
    weights: Weights | None = None,
    nse: SupportsIndex | None = None,
    assume_canonical: bool = False,
) -> BCOO | BCSR | jax.Array:
    """Add any number of sparse matrices or tensors, and dense ones, in one pass over all patterns.

    Args:
      operands: a list, tuple or other iterable of BCOO, BCSR and arrays of one shape, as for `add`. At least one of
        them must be sparse. A single BCOO or BCSR is brought to canonical form: sorted and unique, with `nse` elements.
      weights: a real or complex scalar for each operand, by which its values are multiplied: a sequence of numbers and
        of arrays without dimensions, or a vector. Weights may be traced, and are differentiable. They promote with the
        dtypes of all operands as in `jnp`, Python numbers weakly. Products have the dtype of the sum.
      nse: as for `add`.
      assume_canonical: as for `add`.

    Returns:
      A BCSR if all operands are BCSR, a BCOO if all are sparse, and a dense array if any is dense.

    Raises:
      TypeError: as for `add`; `operands` is not iterable, or is itself an operand; a weight is not a number.
      ValueError: as for `add`; `operands` is empty; the number of weights is not that of the operands; a weight is not
        a scalar, or does not fit the integer dtype of the sum.

    Example:
      >>> import jax.numpy as jnp, jax_sparse_grad as jsg
      >>> from jax.experimental.sparse import BCOO
      >>> matrices = [BCOO.fromdense(jnp.diag(jnp.ones(3 - abs(k)), k)) for k in (-1, 0, 1)]
      >>> jsg.add_n(matrices)
      BCOO(float32[3, 3], nse=7)
      >>> jsg.add_n(matrices, weights=[1, -2, 1]).data.tolist()
      [-2.0, 1.0, 1.0, -2.0, 1.0, 1.0, -2.0]

    Transformations and derivatives: as for `add`; also with respect to the weights.

    Speed: if indices are traced, a CPU merges up to four operands that are in order, and sorts the entries of more as
    one list; a GPU merges two. A plan does this once.

    Mirrors `tf.add_n`, for sparse operands; the weights are alpha and beta of cuSPARSE's `csrgeam2`.
    """
    names, operands = name_operands(operands)
    factors = [] if weights is None else _weights.as_weights(weights, len(operands))
    return _add(names, operands, nse, assume_canonical, weights=factors)


@overload
def sum_duplicates(x: SparseT, *, nse: SupportsIndex | None = None, remove_zeros: bool = False) -> SparseT: ...
@overload
def sum_duplicates(
    x: SupportsJaxArray, *, nse: SupportsIndex | None = None, remove_zeros: bool = False
) -> BCOO | BCSR: ...
def sum_duplicates(
    x: Sparse | SupportsJaxArray, *, nse: SupportsIndex | None = None, remove_zeros: bool = False
) -> BCOO | BCSR:
    """Bring a sparse matrix or tensor to canonical form: sorted, each entry once, padding last.

    Args:
      x: a BCOO with any `n_batch` and `n_dense`, or a BCSR. Indices may be in any order, with duplicates and padding.
      nse: the number of elements to store in each batch, static. By default the exact number if all indices are
        concrete (the largest over all batches), which removes padding; otherwise the `nse` of `x`.
      remove_zeros: leave out stored zeros. With dense dimensions, these are rows of zeros; in a pattern that batches
        share, entries that are zero in all of them. As in JAX, zeros are removed before duplicates are summed: entries
        that cancel stay. If `nse` is not given, the values must be concrete too for the exact number.

    Returns:
      A BCOO or a BCSR, as `x` is, whose flags say that it is sorted and unique. Each of several duplicates receives the
      gradient of their sum. Padding, and zeros that are left out, receive 0.

    Raises:
      TypeError: `x` is not sparse; its values are not numeric; a static argument is traced.
      ValueError: as for `add`.

    Example:
      >>> import jax.numpy as jnp, jax_sparse_grad as jsg
      >>> from jax.experimental.sparse import BCOO
      >>> x = BCOO((jnp.array([1., 2., 0., 4.]), jnp.array([[1], [0], [2], [1]])), shape=(3,))
      >>> total = jsg.sum_duplicates(x)
      >>> total.indices.tolist(), total.data.tolist()
      ([[0], [1], [2]], [2.0, 5.0, 0.0])
      >>> jsg.sum_duplicates(x, remove_zeros=True)
      BCOO(float32[3], nse=2)

    Transformations and derivatives: as for `add`.

    Mirrors `BCOO.sum_duplicates`, where `remove_zeros` is True by default, and entries beyond `nse` are dropped
    silently.
    """
    drop = _arguments.as_flag("remove_zeros", remove_zeros)
    operand = _containers.as_operand(("x",), "x", x)
    if isinstance(operand, jax.Array):
        raise TypeError("`x` must be a BCOO or a BCSR, got an array; convert it with `BCOO.fromdense`")
    return _add(("x",), (operand,), nse, False, remove_zeros=drop)


def empty(
    shape: Shape,
    nse: SupportsIndex,
    dtype: DTypeLike,
    *,
    n_batch: SupportsIndex = 0,
    n_dense: SupportsIndex = 0,
    index_dtype: DTypeLike | None = None,
) -> BCOO:
    """Make a BCOO that stores only padding: the initial carry of a loop that accumulates.

    Args:
      shape: the dense shape, static.
      nse: the number of elements to store (in each batch), static: the `nse` of the sums to come.
      dtype: the dtype of the values, which must be that of the sums to come.
      n_batch: the number of leading batch dimensions.
      n_dense: the number of trailing dense dimensions.
      index_dtype: the dtype of the indices. By default int32, or int64 if a size needs that.

    Returns:
      A canonical BCOO without entries, with the flags of a sum.

    Raises:
      TypeError: an argument is traced or has the wrong type; `dtype` is not numeric.
      ValueError: a size or number is negative; the index dtype, or any dtype without `jax_enable_x64`, cannot hold all
        sizes.

    Example:
      >>> import jax, jax.numpy as jnp, jax_sparse_grad as jsg
      >>> from jax.experimental.sparse import BCOO
      >>> def step(total, batch):
      ...     return jsg.add(total, BCOO(batch, shape=total.shape), nse=total.nse), None
      >>> batches = jnp.ones((4, 2)), jnp.array([[[0], [7]], [[7], [3]], [[3], [3]], [[0], [7]]], jnp.int32)
      >>> total, _ = jax.lax.scan(step, jsg.empty((9,), 5, jnp.float32), batches)
      >>> total.data.tolist()
      [2.0, 3.0, 3.0, 0.0, 0.0]

    Under `shard_map`, JAX wants a loop's carry to vary over the mesh from the start, as what is added to it does:
    `jax.lax.pcast(jsg.empty(...), axis, to="varying")` (up to jax 0.8, `jax.lax.pvary(jsg.empty(...), axis)`).

    Mirrors `jax.experimental.sparse.empty`, whose flags would change in the first step of a loop, which JAX does not
    allow.
    """
    sizes = _arguments.as_shape("shape", shape)
    nse, n_batch, n_dense = (
        _as_count(name, count) for name, count in (("nse", nse), ("n_batch", n_batch), ("n_dense", n_dense))
    )
    if n_batch + n_dense > len(sizes):
        raise ValueError(
            f"`n_batch` and `n_dense` together must not exceed the number of sizes; got {n_batch}, {n_dense}, {sizes}"
        )
    batch, sparse, dense = sizes[:n_batch], sizes[n_batch : len(sizes) - n_dense], sizes[len(sizes) - n_dense :]
    if index_dtype is None:
        index_dtype = _containers.index_dtype(sparse)
    index_dtype = _as_dtype("index_dtype", index_dtype, "an integer dtype", _arguments.as_integers)
    dtype = _as_dtype("dtype", dtype, "a numeric dtype", _arguments.as_numeric)
    _arguments.check_sizes_fit("shape", sparse, index_dtype)
    # numpy compiles nothing for a new length.
    indices = np.array(np.broadcast_to(np.asarray(sparse, index_dtype), (*batch, nse, len(sparse))))
    data = np.zeros((*batch, nse, *dense), dtype)
    return BCOO(jax.device_put((data, indices)), shape=sizes, indices_sorted=True, unique_indices=True)


def _as_count(name: str, count: Any) -> int:
    number = _arguments.as_nse(count, name)
    if number is None:
        raise TypeError(f"`{name}` must be an int, got None")
    return number


def _as_dtype(name: str, given: Any, expected: str, as_array: Callable[[str, Any], jax.Array]) -> np.dtype:
    """The dtype that JAX uses for a dtype, or for anything that names one, if `as_array` accepts it."""
    try:
        if given is None:
            raise TypeError
        dtype = np.dtype(jax.dtypes.canonicalize_dtype(given))
        as_array(name, np.zeros(0, dtype))
    except TypeError:
        raise TypeError(f"`{name}` must be {expected}, got {given!r}") from None
    return dtype


def name_operands(operands: Any) -> tuple[tuple[str, ...], Sequence[Any]]:
    """The names of the operands of `add_n` in messages, and the operands."""
    # A single operand is iterable too, row by row.
    single = isinstance(operands, jax.Array | np.ndarray | str | bytes | Mapping) or _containers.is_sparse(operands)
    if single or not isinstance(operands, Iterable):
        raise TypeError(
            f"`operands` must be a list or tuple of operands (or another iterable), got {_arguments.kind_of(operands)}"
        )
    operands = list(operands)
    if not operands:
        raise ValueError("`operands` must hold at least one operand")
    return tuple(f"operands[{k}]" for k in range(len(operands))), operands


def _add(
    names: Sequence[str],
    operands: Sequence[Any],
    nse: SupportsIndex | None,
    assume_canonical: bool,
    *,
    negated: Sequence[bool] | None = None,
    weights: Sequence[Weight] = (),
    remove_zeros: bool = False,
) -> Any:
    canonical = _arguments.as_flag("assume_canonical", assume_canonical)
    spec = Spec((), (), _arguments.as_nse(nse), canonical, beyond_is_padding=True)
    signs = negated or [False] * len(operands)
    arrays = [_containers.as_operand(names, name, operand) for name, operand in zip(names, operands, strict=True)]
    given = arrays, list(weights)

    def add_given(given: tuple[Sequence[Any], Sequence[Weight]]) -> Sparse | jax.Array:
        return _add_operands(spec, names, *given, signs, remove_zeros)

    mesh = explicit_mesh(given)
    if mesh is None:
        return add_given(given)
    treedef = jax.tree.structure(None)

    def add_to_leaves(given: tuple[Sequence[Any], Sequence[Weight]]) -> list[jax.Array]:
        nonlocal treedef
        leaves, treedef = jax.tree.flatten(add_given(given))
        return leaves

    leaves = call_on_auto_axes(add_to_leaves, given, mesh, _specs_of_sum(arrays))
    return jax.tree.unflatten(treedef, leaves)


def _specs_of_sum(operands: Sequence[Sparse | jax.Array]) -> list[PartitionSpec]:
    """How the arrays of a sum are divided: batch and dense dimensions as in the operands, entries not at all."""
    sparse = [x for x in operands if isinstance(x, BCOO | BCSR)]
    dense = [spec_of(x) for x in operands if not isinstance(x, BCOO | BCSR)]
    if not sparse:
        return [PartitionSpec()]
    n_batch, n_sparse = sparse[0].n_batch, sparse[0].n_sparse
    of_rows = merge_specs(spec_of(part)[:n_batch] for x in sparse for part in jax.tree.leaves(x)[1:])
    of_data = [(spec[:n_batch], spec[n_batch + 1 :]) for spec in (spec_of(x.data) for x in sparse)]
    if dense:
        within = (None,) * n_sparse
        return [PartitionSpec(*merge_specs([*dense, of_rows, *((*a, *within, *b) for a, b in of_data)]))]
    of_sum = merge_specs([of_rows, *((*a, None, *b) for a, b in of_data)])
    indices = 2 if all(isinstance(x, BCSR) for x in sparse) else 1
    return [PartitionSpec(*of_sum), *[PartitionSpec(*of_rows)] * indices]


def _add_operands(
    spec: Spec,
    names: Sequence[str],
    operands: Sequence[Any],
    weights: Sequence[Weight],
    negated: Sequence[bool],
    remove_zeros: bool,
) -> Sparse | jax.Array:
    sparse = {name: x for name, x in zip(names, operands, strict=True) if isinstance(x, BCOO | BCSR)}
    dense = {name: x for name, x in zip(names, operands, strict=True) if name not in sparse}
    full_shape = _containers.common_shape(names, operands)
    n_batch, n_sparse = _containers.common_layout(sparse)
    shape = full_shape[n_batch : n_batch + n_sparse]

    index_names = tuple(f"{name}.indices" for name in sparse)
    indices = _arguments.promote_indices(index_names, [_containers.indices_of(name, x) for name, x in sparse.items()])
    _arguments.check_sizes_fit(f"{names[0]}.shape", shape, indices[0].dtype)
    data = tuple(_arguments.as_numeric(f"{name}.data", x.data) for name, x in sparse.items())
    if remove_zeros:
        indices = tuple(_containers.mark_zeros(rows, each, shape) for rows, each in zip(indices, data, strict=True))

    value_names, values = (*dense, *(f"{name}.data" for name in sparse)), (*dense.values(), *data)
    _arguments.check_devices((*index_names, *value_names), (*indices, *values))
    numbers = [names.index(name) for name in (*dense, *sparse)]
    signs = [negated[k] for k in numbers]
    dtype, factors = _weights.in_dtype_of_sum(
        value_names, values, numbers, [weights[k] for k in numbers] if weights else []
    )
    spec = spec._replace(names=index_names, shape=shape)
    if dense:
        if spec.nse is not None:
            raise ValueError(f"`nse` must not be given if an operand is dense: the sum is dense too; got {spec.nse}")
        spec = spec._replace(canonical=False)  # only a merge relies on the order
        return _sum.add_to_dense(spec, tuple(dense.values()), indices, data, dtype, negated=signs, weights=factors)
    union = _sum.find_union(spec, indices)
    total = _sum.add_values(union, data, dtype, negated=signs, weights=factors)
    compressed = _containers.compress_if_all_bcsr(list(sparse.values()), union.indices, shape)
    return _containers.as_matrix(total, union.indices, compressed, full_shape)
