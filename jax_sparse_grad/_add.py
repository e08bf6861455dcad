"""`add`, `subtract`, `add_n` and `sum_duplicates`: sums of `jax.experimental.sparse` containers and dense arrays.

Every container is read as index rows and values, with batch dimensions before them, added as those, and given back in
the form of the operands:

    BCOO + BCOO -> BCOO      BCSR + BCSR -> BCSR      BCOO + BCSR -> BCOO      dense + any -> dense
"""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, SupportsIndex, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.experimental.sparse import BCOO, BCSR, JAXSparse
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from jax_sparse_grad import _containers, _keys, _validation
from jax_sparse_grad._auto_axes import call_on_auto_axes, explicit_mesh
from jax_sparse_grad._buckets import bucket, resize
from jax_sparse_grad._plan import Request, SparseAddPlan, add_once, guard_indices, pad_indices, pad_values
from jax_sparse_grad._primitives import map_batches
from jax_sparse_grad._types import Dense, Operand, Shape, Sparse, SupportsJaxArray, Weights


@overload
def add(x: BCOO, y: Sparse, *, nse: SupportsIndex | None = None, assume_canonical: bool = False) -> BCOO: ...
@overload
def add(x: BCSR, y: BCOO, *, nse: SupportsIndex | None = None, assume_canonical: bool = False) -> BCOO: ...
@overload
def add(x: BCSR, y: BCSR, *, nse: SupportsIndex | None = None, assume_canonical: bool = False) -> BCSR: ...
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
    """Add two sparse matrices or tensors, or a sparse and a dense one, differentiably in both.

    Args:
      x: a BCOO with any `n_batch` and `n_dense`, a BCSR, an array, or a nested list of numbers. Indices may be in any
        order, with duplicates and padding (as everywhere in JAX, rows of which any index lies beyond the shape); the
        flags `indices_sorted` and `unique_indices` are not relied on.
      y: the same, with the shape of `x`; at least one of the two is sparse. Sparse operands have equal `n_batch` and
        `n_dense`. Dtypes of indices and values promote as in `jnp`.
      nse: the number of entries the sum stores in each batch, static. By default the exact number if all indices are
        concrete (the largest of the batches), otherwise the sum of the operands' `nse`, which can never overflow.
      assume_canonical: promise that sparse operands are sorted, unique and padded only at the end, and skip the check.

    Returns:
      BCOO + BCOO gives a BCOO, BCSR + BCSR a BCSR, a mixture of them a BCOO: sorted, unique (its flags say so), padding
      last, entries that cancel kept as zeros. Batch dimensions of length 1, by which all operands share a pattern among
      batches, stay so. With a dense operand, a dense array.

    Raises:
      TypeError: an operand is neither sparse nor an array, or both are dense; values are not numeric; a static argument
        is traced.
      ValueError: shapes or layouts differ; `nse` is given for a dense sum; concrete indices are negative, or a concrete
        `indptr` does not rise from 0 to at most nse; a concrete sum does not fit `nse`. Under `jit`, `checkify` reports
        the latter three; without it, such indices count as padding, and the values of an overflowed sum are NaN (the
        minimum of a signed, the maximum of an unsigned integer dtype).

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

    Under every JAX transformation, forward mode too; the gradient of each operand has that operand's own pattern. Where
    values change and patterns do not, `plan_sparse_add` unites them once. If one operand, or one matrix of a batch, is
    out of order, all are sorted: sort a small update of a large sum first, by `sum_duplicates(update)`. Inside a
    function under `jax.experimental.sparse.sparsify`, where sparse arguments look dense, it cannot be called.

    To a dense array of a dtype narrower than 32 bits, entries are added in a wider one, and the sum is rounded once.
    Batches that are divided among devices stay so, on `Auto` and on `Explicit` axes of a mesh; where the entries of one
    matrix are divided, the sum is not (see `sharded.add`).

    Mirrors `tf.sparse.add`, which also takes a dense operand.
    """
    # Without a default, `add([x, y])` would only say that an argument is missing.
    return _add_all(("x", "y"), (x, y), nse, assume_canonical)


@overload
def subtract(x: BCOO, y: Sparse, *, nse: SupportsIndex | None = None, assume_canonical: bool = False) -> BCOO: ...
@overload
def subtract(x: BCSR, y: BCOO, *, nse: SupportsIndex | None = None, assume_canonical: bool = False) -> BCOO: ...
@overload
def subtract(x: BCSR, y: BCSR, *, nse: SupportsIndex | None = None, assume_canonical: bool = False) -> BCSR: ...
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
    """Subtract a sparse matrix or tensor from another, or a sparse from a dense one or the reverse, differentiably.

    Args:
      x: as for `add`.
      y: as for `add`; what is subtracted.
      nse: as for `add`.
      assume_canonical: as for `add`.

    Returns:
      As for `add`, with x + (-y) for values: where y alone has an entry, exactly -y, for zeros and NaN too. Unsigned
      integers wrap as in `jnp`.

    Raises:
      TypeError: as for `add`.
      ValueError: as for `add`.

    Example:
      >>> import jax.numpy as jnp, jax_sparse_grad as jsg
      >>> from jax.experimental.sparse import BCSR
      >>> x = BCSR.fromdense(jnp.array([[1., 0.], [0., 2.]]))
      >>> y = BCSR.fromdense(jnp.array([[0., 3.], [0., 2.]]))
      >>> difference = jsg.subtract(x, y)
      >>> difference, difference.data.tolist()
      (BCSR(float32[2, 2], nse=3), [1.0, -3.0, 0.0])

    Mirrors `jnp.subtract`.
    """
    return _add_all(("x", "y"), (x, y), nse, assume_canonical, scales=(None, _MINUS))


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
      operands: a list, tuple or other iterable of BCOO, BCSR and arrays of one shape, as for `add`; at least one of
        them sparse. A single BCOO or BCSR is brought to canonical form: sorted, unique, with `nse` entries.
      weights: a real or complex scalar for each operand, by which its values are multiplied: numbers or arrays without
        dimensions in a sequence, or a vector. They may be traced, and are differentiable. They promote with the dtypes
        of all operands as in `jnp`, numbers of Python weakly; products are of the dtype of the sum.
      nse: as for `add`.
      assume_canonical: as for `add`.

    Returns:
      A BCSR if all operands are BCSR, a BCOO if all are sparse, else a dense array.

    Raises:
      TypeError: as for `add`; `operands` is not iterable, or a single operand; a weight is not a number.
      ValueError: as for `add`; `operands` is empty; there are more or fewer weights than operands, or one is not a
        scalar or does not fit the integer dtype of the sum.

    Example:
      >>> import jax.numpy as jnp, jax_sparse_grad as jsg
      >>> from jax.experimental.sparse import BCOO
      >>> matrices = [BCOO.fromdense(jnp.diag(jnp.ones(3 - abs(k)), k)) for k in (-1, 0, 1)]
      >>> jsg.add_n(matrices)
      BCOO(float32[3, 3], nse=7)
      >>> jsg.add_n(matrices, weights=[1, -2, 1]).data.tolist()
      [-2.0, 1.0, 1.0, -2.0, 1.0, 1.0, -2.0]

    Mirrors `tf.add_n`, for sparse operands; the weights are alpha and beta of cuSPARSE's `csrgeam2`.
    """
    names, operands = name_operands(operands)
    scales = None if weights is None else _as_weights(weights, len(operands))
    return _add_all(names, operands, nse, assume_canonical, scales=scales)


@overload
def sum_duplicates(x: BCOO, *, nse: SupportsIndex | None = None, remove_zeros: bool = False) -> BCOO: ...
@overload
def sum_duplicates(x: BCSR, *, nse: SupportsIndex | None = None, remove_zeros: bool = False) -> BCSR: ...
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
      nse: the number of entries to store in each batch, static. By default the exact number if all indices are concrete
        (the largest of the batches), which strips padding; otherwise the `nse` of `x`.
      remove_zeros: leave out stored zeros (with dense dimensions, rows of zeros; of a pattern that batches share, those
        that are zero in all of them). As in JAX, those that are zero before duplicates are summed: entries that cancel
        stay. Without a given `nse`, concrete values are needed too for the exact number.

    Returns:
      A BCOO or a BCSR as `x`, whose flags say that it is sorted and unique. Each of several duplicates receives the
      gradient of their sum; what is left out, padding and zeros, 0.

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

    Mirrors `BCOO.sum_duplicates`, whose `remove_zeros` is True by default, and which drops what does not fit `nse`.
    """
    drop = _validation.as_flag("remove_zeros", remove_zeros)
    operand = _as_operand(("x",), "x", x)
    if isinstance(operand, jax.Array):
        raise TypeError("`x` must be a BCOO or a BCSR, got an array; `BCOO.fromdense` makes one of it")
    return _add_all(("x",), (operand,), nse, False, remove_zeros=drop)


def empty(
    shape: Shape,
    nse: SupportsIndex,
    dtype: DTypeLike,
    *,
    n_batch: SupportsIndex = 0,
    n_dense: SupportsIndex = 0,
    index_dtype: DTypeLike | None = None,
) -> BCOO:
    """A BCOO without entries, but with room for some: what the carry of a loop that adds starts from.

    Args:
      shape: the dense shape, static.
      nse: the number of entries (in each batch) to make room for, static: the `nse` of the sums to come.
      dtype: of the values; that of the sums to come.
      n_batch: the number of leading batch dimensions.
      n_dense: the number of trailing dense dimensions.
      index_dtype: of the indices; by default int32, or int64 if a size needs that.

    Returns:
      A canonical BCOO, all padding, with the flags of a sum.

    Raises:
      TypeError: an argument is traced, or of another type; `dtype` is not numeric.
      ValueError: a size or number is negative; the dtype of the indices, or any without `jax_enable_x64`, cannot hold
        all sizes.

    Example:
      >>> import jax, jax.numpy as jnp, jax_sparse_grad as jsg
      >>> from jax.experimental.sparse import BCOO
      >>> def step(total, batch):
      ...     return jsg.add(total, BCOO(batch, shape=total.shape), nse=total.nse), None
      >>> batches = jnp.ones((4, 2)), jnp.array([[[0], [7]], [[7], [3]], [[3], [3]], [[0], [7]]], jnp.int32)
      >>> total, _ = jax.lax.scan(step, jsg.empty((9,), 5, jnp.float32), batches)
      >>> total.data.tolist()
      [2.0, 3.0, 3.0, 0.0, 0.0]

    Mirrors `jax.experimental.sparse.empty`, whose flags change in the first step of a loop.
    """
    sizes = _validation.as_shape("shape", shape)
    room, batches, dense = (
        _as_count(name, number) for name, number in (("nse", nse), ("n_batch", n_batch), ("n_dense", n_dense))
    )
    if batches + dense > len(sizes):
        raise ValueError(
            f"`n_batch` and `n_dense` must not exceed the number of sizes together; got {batches}, {dense} and {sizes}"
        )
    sparse_sizes = sizes[batches : len(sizes) - dense]
    kind = _as_dtype("dtype", dtype)
    try:
        _validation.as_numeric("dtype", np.zeros(0, kind))
    except TypeError as error:
        raise TypeError(f"`dtype` must be one of those that sums have, got {kind}") from error
    row_kind = _row_dtype(sparse_sizes, index_dtype)
    _validation.check_sizes_fit("shape", sparse_sizes, row_kind)
    # By numpy, which compiles nothing for a new length.
    rows = np.broadcast_to(np.asarray(sparse_sizes, row_kind), (*sizes[:batches], room, len(sparse_sizes)))
    data = np.zeros((*sizes[:batches], room, *sizes[len(sizes) - dense :]), kind)
    return BCOO(jax.device_put((data, np.array(rows))), shape=sizes, indices_sorted=True, unique_indices=True)


def _as_count(name: str, number: Any) -> int:
    count = _validation.as_nse(number, name)
    if count is None:
        raise TypeError(f"`{name}` must be an int, got None")
    return count


def _row_dtype(sizes: tuple[int, ...], asked: Any) -> np.dtype:
    if asked is None:
        return _containers.index_dtype(sizes)
    dtype = _as_dtype("index_dtype", asked)
    _validation.as_integers("index_dtype", np.zeros(0, dtype))
    return dtype


def _as_dtype(name: str, dtype: Any) -> np.dtype:
    """The dtype that JAX has for it."""
    if dtype is None:
        raise TypeError(f"`{name}` must be a dtype, got None")
    try:
        return np.dtype(jax.dtypes.canonicalize_dtype(dtype))
    except TypeError:
        raise TypeError(f"`{name}` must be a dtype, got {dtype!r}") from None


def name_operands(operands: Any) -> tuple[tuple[str, ...], Sequence[Any]]:
    """What the operands of `add_n` are called in messages, and themselves."""
    # A single operand can be iterated over too, row by row.
    single = isinstance(operands, jax.Array | np.ndarray | str | bytes | Mapping) or _containers.is_sparse(operands)
    if single or not isinstance(operands, Iterable):
        raise TypeError(
            f"`operands` must be a list or tuple of operands (or another iterable), got {type(operands).__name__}"
        )
    operands = list(operands)
    if not operands:
        raise ValueError("`operands` must hold at least one operand")
    return tuple(f"operands[{k}]" for k in range(len(operands))), operands


class _Minus:
    """The weight of what is subtracted: -1 would not turn the sign of NaN, and unsigned integers do not have it."""


_MINUS = _Minus()


Scale = Any


"""What the values of an operand are multiplied by: a number, an array without dimensions, `_MINUS`, or None."""


def _as_weights(weights: Any, count: int) -> list[Scale]:
    weights = _validation.unwrap(weights)
    if isinstance(weights, jax.Array | np.ndarray) and weights.ndim:
        vector = np.asarray(weights) if _validation.is_concrete(weights) else weights
        scales = [vector[k] for k in range(vector.shape[0])]
    elif isinstance(weights, Iterable) and not isinstance(weights, jax.Array | np.ndarray | str | bytes | Mapping):
        scales = list(weights)
    else:
        got = "an array without dimensions" if hasattr(weights, "ndim") else type(weights).__name__
        raise TypeError(f"`weights` must be a list, tuple or vector with a scalar for each operand, got {got}")
    if len(scales) != count:
        raise ValueError(f"`weights` must hold one scalar for each of the {count} operands, got {len(scales)}")
    return [_as_weight(f"weights[{k}]", scale) for k, scale in enumerate(scales)]


def _as_weight(name: str, weight: Any) -> Scale:
    """A number of Python, whose dtype is weak, or an array without dimensions."""
    weight = _validation.unwrap(weight)
    if isinstance(weight, jax.Array | np.ndarray | np.generic):
        if weight.ndim:
            raise ValueError(f"`{name}` must be a scalar, got shape {weight.shape}")
        if not jnp.issubdtype(weight.dtype, jnp.number):
            raise TypeError(f"`{name}` must be a real or complex number, got dtype {weight.dtype}")
        return weight if isinstance(weight, jax.Array) else _validation.as_numeric(name, np.asarray(weight))
    if isinstance(weight, bool) or not isinstance(weight, int | float | complex):
        raise TypeError(f"`{name}` must be a real or complex number, got {type(weight).__name__}")
    return weight


def _add_all(
    names: Sequence[str],
    operands: Sequence[Any],
    nse: Any,
    assume_canonical: Any,
    *,
    scales: Sequence[Scale] | None = None,
    remove_zeros: bool = False,
) -> Any:
    size, flag = _validation.as_nse(nse), _validation.as_flag("assume_canonical", assume_canonical)
    arrays = [_as_operand(names, name, operand) for name, operand in zip(names, operands, strict=True)]
    given = arrays, scales or [None] * len(arrays)
    mesh = explicit_mesh(given)
    if mesh is None:
        return _add_arrays(names, given, size, flag, remove_zeros)
    form: Any = None

    def parts_of_sum(given: Any) -> Any:
        nonlocal form
        parts, form = jax.tree.flatten(_add_arrays(names, given, size, flag, remove_zeros))
        return parts

    parts = call_on_auto_axes(parts_of_sum, given, mesh, _specs_of_sum(arrays))
    return jax.tree.unflatten(form, parts)


def _specs_of_sum(operands: Sequence[Any]) -> list[PartitionSpec]:
    """How the arrays of a sum are divided: batches and dense dimensions as the operands' are, entries not at all."""
    sparse = [x for x in operands if isinstance(x, BCOO | BCSR)]
    dense = [_spec_of(x) for x in operands if not isinstance(x, BCOO | BCSR)]
    if not sparse:
        return [PartitionSpec()]
    n_batch, n_sparse = sparse[0].n_batch, sparse[0].n_sparse
    of_rows = _merge_specs(_spec_of(part)[:n_batch] for x in sparse for part in jax.tree.leaves(x)[1:])
    of_data = [(spec[:n_batch], spec[n_batch + 1 :]) for spec in (_spec_of(x.data) for x in sparse)]
    if dense:
        within = (None,) * n_sparse
        return [PartitionSpec(*_merge_specs([*dense, of_rows, *((*a, *within, *b) for a, b in of_data)]))]
    of_sum = _merge_specs([of_rows, *((*a, None, *b) for a, b in of_data)])
    indices = 2 if all(isinstance(x, BCSR) for x in sparse) else 1
    return [PartitionSpec(*of_sum), *[PartitionSpec(*of_rows)] * indices]


def _spec_of(array: jax.Array) -> tuple[Any, ...]:
    """The mesh axes that each dimension of an array is divided along, None where it is not."""
    spec = tuple(jax.typeof(array).sharding.spec)
    return (*spec, *[None] * (array.ndim - len(spec)))


def _merge_specs(specs: Iterable[Sequence[Any]]) -> tuple[Any, ...]:
    """The first division of each dimension, along axes that no other dimension has taken."""
    merged: list[Any] = []
    taken: set[str] = set()
    for candidates in itertools.zip_longest(*specs):
        named = [(axes, {axes} if isinstance(axes, str) else set(axes)) for axes in candidates if axes is not None]
        axes, new = next((each for each in named if not each[1] & taken), (None, set()))
        merged.append(axes)
        taken |= new
    return tuple(merged)


def _add_arrays(
    names: Sequence[str],
    given: tuple[Sequence[Any], Sequence[Scale]],
    nse: int | None,
    assume_canonical: bool,
    remove_zeros: bool,
) -> Any:
    operands, scales = given
    sparse: dict[str, Any] = {n: x for n, x in zip(names, operands, strict=True) if isinstance(x, BCOO | BCSR)}
    dense = {name: x for name, x in zip(names, operands, strict=True) if name not in sparse}
    shape = _containers.common_shape(names, operands)
    n_batch, n_sparse = _containers.common_layout(sparse)
    sparse_shape = shape[n_batch : n_batch + n_sparse]

    index_names = tuple(f"{name}.indices" for name in sparse)
    indices = _validation.promote_indices(index_names, [_containers.indices_of(name, x) for name, x in sparse.items()])
    _validation.check_shape_fits(f"{names[0]}.shape", sparse_shape, index_names[0], indices[0])
    data = [_validation.as_numeric(f"{name}.data", x.data) for name, x in sparse.items()]
    if remove_zeros:
        indices = tuple(_mark_zeros(rows, each, sparse_shape) for rows, each in zip(indices, data, strict=True))

    value_names = (*(f"{name}.data" for name in sparse), *dense)
    _validation.check_devices((*index_names, *value_names), (*indices, *data, *dense.values()))
    places = [names.index(name) for name in (*sparse, *dense)]
    promoted, weights = _promote(value_names, [*data, *dense.values()], places, [scales[k] for k in places])
    arrays = [_scale_dense(*each) for each in zip(promoted[len(data) :], weights[len(data) :], strict=True)]
    values = tuple(
        _scale(rows, each, weight, sparse_shape)
        for rows, each, weight in zip(indices, promoted[: len(data)], weights[: len(data)], strict=True)
    )
    if arrays:
        if nse is not None:
            raise ValueError(f"`nse` must not be given where an operand is dense, for so is the sum; got {nse}")
        return _add_to_dense(index_names, sum(arrays[1:], arrays[0]), indices, values, sparse_shape)
    request = Request(index_names, sparse_shape, nse, assume_canonical, strict=False)
    sum_indices, sum_values = add_once(request, indices, values)
    if all(isinstance(x, BCSR) for x in sparse.values()):
        dtype = _containers.common_index_dtype(*(x.indptr for x in sparse.values()))
        return _containers.as_bcsr(sum_indices, sum_values, shape, dtype)
    return BCOO((sum_values, sum_indices), shape=shape, indices_sorted=True, unique_indices=True)


def _promote(
    names: Sequence[str], values: Sequence[jax.Array], places: Sequence[int], scales: Sequence[Scale]
) -> tuple[tuple[jax.Array, ...], list[Scale]]:
    """Values and what they are multiplied by, in one dtype; `places`: of the operands, in messages."""
    # Zeros stand for numbers of Python, which may be too large for the array that JAX would make of them.
    arrays = [jnp.asarray(scale * 0) if _is_number(scale) else scale for scale in scales]
    known = [k for k, array in enumerate(arrays) if isinstance(array, jax.Array)]
    all_names = (*names, *(f"weights[{places[k]}]" for k in known))
    promoted = _validation.promote_values([*values, *(arrays[k] for k in known)], all_names)
    weights = list(scales)
    for k, array in zip(known, promoted[len(values) :], strict=True):
        is_number = _is_number(scales[k])
        weights[k] = _number_as(f"weights[{places[k]}]", scales[k], array.dtype) if is_number else array
    return promoted[: len(values)], weights


def _is_number(scale: Scale) -> bool:
    return isinstance(scale, int | float | complex)


def _number_as(name: str, number: complex, dtype: np.dtype) -> np.ndarray:
    if jnp.issubdtype(dtype, jnp.integer):
        limits = jnp.iinfo(dtype)
        if not limits.min <= number <= limits.max:  # type: ignore[operator]
            raise ValueError(f"`{name}` must fit {dtype}, the dtype of the sum; got {number}")
    with np.errstate(over="ignore"):  # to infinity, as in `jnp`
        return np.asarray(number, dtype)


def _scale(rows: jax.Array, values: jax.Array, scale: Scale, shape: tuple[int, ...]) -> jax.Array:
    """Values `[*batch, nse, *dense]` at index rows, times a weight."""
    if scale is None:
        return values
    weight = None if scale is _MINUS else scale
    if _validation.is_concrete(values, weight):
        return _in_buckets(partial(_times, weight=weight), rows.ndim - 2, values)
    return _times(values, weight) if weight is None else _weigh(shape, rows, values, weight)


def _scale_dense(values: jax.Array, scale: Scale) -> jax.Array:
    return values if scale is None else _times(values, None if scale is _MINUS else scale)


@jax.jit
def _times(values: jax.Array, weight: jax.Array | None) -> jax.Array:
    """Values times a weight; without one, their negatives."""
    return -values if weight is None else values * weight


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _weigh(shape: tuple[int, ...], rows: jax.Array, values: jax.Array, weight: jax.Array) -> jax.Array:
    """Values at index rows times a weight, whose derivative does not see what stands at padding."""
    del shape, rows
    return _times(values, weight)


def _weigh_jvp(
    shape: tuple[int, ...], primals: tuple[jax.Array, ...], tangents: tuple[Any, ...]
) -> tuple[jax.Array, jax.Array]:
    rows, values, weight = primals
    _, of_values, of_weight = tangents
    product = _weigh(shape, rows, values, weight)
    terms = []
    if not isinstance(of_values, SymbolicZero):
        # Before it is weighed, so that backwards it comes last: at padding, 0 times an infinite weight is NaN.
        terms.append(_times(_without_padding(rows, of_values, shape), weight))
    if not isinstance(of_weight, SymbolicZero):
        terms.append(_times(_without_padding(rows, values, shape), of_weight))
    return product, sum(terms[1:], terms[0]) if terms else jnp.zeros_like(product)


_weigh.defjvp(_weigh_jvp, symbolic_zeros=True)


@partial(jax.jit, static_argnums=2)
def _without_padding(rows: jax.Array, values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    def clear(rows: jax.Array, values: jax.Array) -> jax.Array:
        inside = _keys.is_entry(rows, shape).reshape(-1, *[1] * (values.ndim - 1))
        return jnp.where(inside, values, np.zeros((), values.dtype))

    return map_batches(clear, rows.ndim - 2)(rows, values)


def _mark_zeros(rows: jax.Array, values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The index rows, with padding for entries whose values are all zero."""
    values = jax.lax.stop_gradient(values)
    mark = partial(_with_padding_at_zeros, padding=np.asarray(shape, rows.dtype))
    return (
        _in_buckets(mark, rows.ndim - 2, rows, values) if _validation.is_concrete(rows, values) else mark(rows, values)
    )


@jax.jit
def _with_padding_at_zeros(rows: jax.Array, values: jax.Array, *, padding: jax.Array) -> jax.Array:
    n_batch = rows.ndim - 2
    zero = jnp.all(values == 0, axis=range(n_batch + 1, values.ndim))
    # Of a pattern that batches share, an entry goes if it is zero in all of them.
    zero = jnp.all(zero, axis=[k for k in range(n_batch) if rows.shape[k] == 1], keepdims=True)
    return jnp.where(zero[..., None], padding.reshape(*[1] * (n_batch + 1), -1), rows)


def _in_buckets(function: Callable[..., jax.Array], axis: int, *arrays: jax.Array) -> jax.Array:
    """`function` of concrete arrays, and row by row along an axis of theirs; compiled for few lengths."""
    size = arrays[0].shape[axis]

    def call() -> jax.Array:
        result = function(*(resize(array, bucket(size), 0, axis) for array in arrays))
        cut: jax.Array = jax.device_put(resize(result, size, 0, axis))
        return cut

    return _validation.call_concretely(call)


def _as_operand(names: Sequence[str], name: str, operand: Any) -> Any:
    """A BCOO, a BCSR or an array of numbers, without wrappers."""
    operand = _containers.without_wrappers(operand)
    if isinstance(operand, BCOO | BCSR):
        return operand
    listed = isinstance(operand, list | tuple)
    is_sparse = _containers.is_sparse
    # JAX would walk through the elements of a matrix in a list.
    inner = [x for x in jax.tree.leaves(operand, is_leaf=is_sparse) if is_sparse(x)] if listed else []
    if inner or not (listed or isinstance(operand, jax.Array | np.ndarray)):
        raise TypeError(_refusal(names, name, operand, inner))
    if not listed and not jnp.issubdtype(operand.dtype, jnp.number):
        raise TypeError(f"`{name}` must have a numeric dtype, got {operand.dtype}")
    return _validation.as_numeric(name, operand)


def _refusal(names: Sequence[str], name: str, operand: Any, inner: Sequence[Any]) -> str:
    """What is said of something that is not an operand: what it is, and what to call instead."""
    kind = type(operand).__name__
    alone = tuple(names) == ("x",)  # of `sum_duplicates`
    got = f"`{name}` must be a BCOO{' or' if alone else ','} a BCSR{'' if alone else ' or an array'}, got {kind}"
    if isinstance(operand, numbers.Number):
        other = next((each for each in names if each != name), "x")
        return f"{got}; a sparse matrix plus a number is dense: `{other}.todense() + {operand}`"
    if hasattr(operand, "row_starts"):  # told by that: the module of `RowSharded` imports this one
        return f"{got}; call `jsg.sharded.add` or `add_n`, and spread all operands by `jsg.sharded.partition`"
    if isinstance(operand, SparseAddPlan):
        return f"{got}; a plan is called with the values of its operands: `plan(x.data, y.data)`"
    if isinstance(operand, JAXSparse):
        same = {
            "COO": "BCOO((m.data, jnp.stack([m.row, m.col], axis=1)), shape=m.shape)",
            "CSR": "BCSR((m.data, m.indices, m.indptr), shape=m.shape)",
            "CSC": "BCSR((m.data, m.indices, m.indptr), shape=m.shape[::-1]).to_bcoo().T",
        }
        return f"{got}; the same matrix m is `{same.get(kind, 'BCOO.fromdense(m.todense())')}`"
    if hasattr(operand, "tocoo"):
        return f"{got}; a SciPy matrix becomes one by `BCOO.from_scipy_sparse` or `BCSR.from_scipy_sparse`"
    if inner:
        return f"{got} of {type(inner[0]).__name__}; `add_n` adds the matrices of a list"
    if operand is None and not alone:
        return f"{got}; `add` takes two operands, and `add_n` a list of any number"
    return got + ("; `jnp.asarray` may make an array of it" if hasattr(operand, "__array__") else "")


def _add_to_dense(
    names: tuple[str, ...],
    dense: jax.Array,
    indices: tuple[jax.Array, ...],
    values: tuple[jax.Array, ...],
    shape: tuple[int, ...],
) -> jax.Array:
    request = Request(names, shape, None, False, strict=False)
    if not _validation.is_concrete(indices):
        indices = guard_indices(request, indices)
        return scatter_add(dense, indices, values, shape)
    padded, counts = pad_indices(request, indices)
    _validation.call_concretely(lambda: _keys.guard_concrete(names, indices, padded, shape, strict=False))
    if _validation.is_concrete(values):
        # What numpy padded is put on the device, which `jax.transfer_guard("disallow")` asks to be said.
        return scatter_add(dense, *jax.device_put((padded, pad_values(values, padded, counts))), shape)
    return scatter_add(dense, indices, values, shape)


@partial(jax.jit, static_argnums=3)
def scatter_add(
    dense: jax.Array, indices: tuple[jax.Array, ...], values: tuple[jax.Array, ...], shape: tuple[int, ...]
) -> jax.Array:
    """The dense array with values added at indices, rounded once; its transpose is a gather."""
    if dense.size == 0:
        return dense

    def add_to(dense: jax.Array, rows: jax.Array, values: jax.Array) -> jax.Array:
        inside = _keys.is_entry(rows, shape)
        # What lies outside adds what changes no number to some cell: so no index is out of bounds.
        added = jnp.where(inside.reshape(-1, *[1] * (values.ndim - 1)), values, -np.zeros((), values.dtype))
        if not shape:
            return dense + jnp.sum(added, axis=0, dtype=added.dtype)
        cells = tuple(jnp.clip(column, 0, size - 1) for column, size in zip(_keys.columns_of(rows), shape, strict=True))
        return dense.at[cells].add(added, mode="promise_in_bounds", wrap_negative_indices=False)

    wide = _wide(dense.dtype)
    total = dense.astype(wide)
    for rows, each in zip(indices, values, strict=True):
        total = map_batches(add_to, rows.ndim - 2)(total, rows, each.astype(wide))
    return total.astype(dense.dtype)


def _wide(dtype: np.dtype) -> np.dtype:
    """What numbers of a dtype are summed in: narrow floats would stop growing, and few machines add half a byte."""
    if jnp.issubdtype(dtype, jnp.integer):
        # The lowest bits are those of a sum of narrow integers.
        return np.dtype(np.int8) if jnp.iinfo(dtype).bits < 8 else dtype
    return np.dtype(np.float32) if dtype.itemsize < 4 else dtype
