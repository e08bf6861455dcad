"""`add` and `add_n`: sums of `jax.experimental.sparse` containers and of dense arrays.

Every container is read as index rows and values, with batch dimensions before them, added as those, and given back in
the form of the operands:

    BCOO + BCOO -> BCOO      BCSR + BCSR -> BCSR      BCOO + BCSR -> BCOO      dense + any -> dense
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO, BCSR

from jax_sparse_grad import _keys, _validation
from jax_sparse_grad._buckets import bucket, resize
from jax_sparse_grad._checks import guard
from jax_sparse_grad._plan import Request, add_once, guard_indices, pad_indices, pad_values
from jax_sparse_grad._primitives import map_batches
from jax_sparse_grad._search import search


def add(x: Any, y: Any, *, nse: Any = None, assume_canonical: bool = False) -> Any:
    """Add two sparse matrices or tensors, or a sparse and a dense one, differentiably in both.

    Args:
      x: a BCOO with any `n_batch` and `n_dense`, a BCSR, or an array. Indices may be in any order, with duplicates and
        padding; the flags `indices_sorted` and `unique_indices` are not relied on.
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
      ValueError: shapes or layouts differ; `nse` is given for a dense sum; concrete indices lie outside the shape, or
        `indptr` is none; a concrete sum does not fit `nse`. Under `jit` the latter three are reported by `checkify`;
        without it, such indices count as padding, and the values of an overflowed sum are NaN (the minimum of a signed,
        the maximum of an unsigned integer dtype).

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
    out of order, all are sorted: bring a small update of a large sum in order by `add_n([update])` first. Inside a
    function under `jax.experimental.sparse.sparsify`, where sparse arguments look dense, it cannot be called.

    Mirrors `tf.sparse.add`, which also takes a dense operand.
    """
    return _add_all(("x", "y"), (x, y), nse, assume_canonical)


def add_n(operands: Sequence[Any], *, nse: Any = None, assume_canonical: bool = False) -> Any:
    """Add any number of sparse matrices or tensors, and dense ones, in one pass over all patterns.

    Args:
      operands: a list or tuple of BCOO, BCSR and arrays of one shape, as for `add`; at least one of them sparse. A
        single BCOO or BCSR is brought to canonical form: sorted, unique, with `nse` entries.
      nse: as for `add`.
      assume_canonical: as for `add`.

    Returns:
      A BCSR if all operands are BCSR, a BCOO if all are sparse, else a dense array.

    Raises:
      TypeError: as for `add`; `operands` is not a list or tuple.
      ValueError: as for `add`; `operands` is empty.

    Example:
      >>> import jax.numpy as jnp, jax_sparse_grad as jsg
      >>> from jax.experimental.sparse import BCOO
      >>> matrices = [BCOO.fromdense(jnp.diag(jnp.ones(3 - abs(k)), k)) for k in (-1, 0, 1)]
      >>> jsg.add_n(matrices)
      BCOO(float32[3, 3], nse=7)
      >>> empty = BCOO((jnp.zeros(0), jnp.zeros((0, 2), int)), shape=(3, 3))
      >>> jsg.add_n([empty], nse=5)  # what a scan starts with
      BCOO(float32[3, 3], nse=5)

    Mirrors `tf.add_n`, for sparse operands.
    """
    return _add_all(*name_operands(operands), nse, assume_canonical)


def as_bcoo(data: jax.Array, indices: jax.Array, shape: tuple[int, ...]) -> BCOO:
    """The BCOO of entries in any order."""
    return BCOO((data, indices), shape=shape)


def index_dtype(shape: tuple[int, ...]) -> np.dtype:
    """The dtype of indices that come without one of JAX's."""
    return np.dtype(np.int32 if max(shape, default=0) <= np.iinfo(np.int32).max else np.int64)


def host_entries(name: str, operand: Any) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """The index rows `[nnz, ndims]`, values `[nnz, *dense]` and shape of a BCOO, a BCSR or a SciPy matrix, in numpy.

    Padding is left out.
    """
    if not _validation.is_concrete(operand):
        raise TypeError(f"`{name}` must be concrete, got a traced array; call this outside of `jit`")
    shape = tuple(operand.shape) if hasattr(operand, "shape") else ()
    if isinstance(operand, BCOO | BCSR):
        n_batch, n_sparse = _common_layout({name: operand})
        if n_batch or not n_sparse:
            raise ValueError(f"`{name}` must have n_batch 0, and rows; got n_batch {n_batch} and n_sparse {n_sparse}")
        indices, values = np.asarray(_indices_of(name, operand)), np.asarray(operand.data)
    elif hasattr(operand, "tocoo"):
        coordinates = operand.tocoo()
        indices = np.stack(coordinates.coords, axis=1).astype(index_dtype(shape))
        values = _validation.as_host_array(f"{name}.data", coordinates.data)
    else:
        raise TypeError(f"`{name}` must be a BCOO, a BCSR or a SciPy matrix, got {type(operand).__name__}")
    _validation.as_numeric(f"{name}.data", values[:0])
    sizes = shape[: indices.shape[1]]
    _validation.check_sizes_fit(f"{name}.shape", sizes, indices.dtype)
    inside = np.all((indices >= 0) & (indices < np.array(sizes)), axis=1)
    if not inside.all():
        _keys.guard_rows(f"{name}.indices", jnp.asarray(indices), sizes)
        indices, values = indices[inside], values[inside]
    return indices, values, shape


def name_operands(operands: Any) -> tuple[tuple[str, ...], Sequence[Any]]:
    """What the operands of `add_n` are called in messages, and themselves."""
    if not isinstance(operands, list | tuple):
        raise TypeError(f"`operands` must be a list or tuple, got {type(operands).__name__}")
    if not operands:
        raise ValueError("`operands` must hold at least one operand")
    return tuple(f"operands[{k}]" for k in range(len(operands))), operands


def _add_all(names: Sequence[str], operands: Sequence[Any], nse: Any, assume_canonical: bool) -> Any:
    size, flag = _validation.as_nse(nse), _validation.as_flag("assume_canonical", assume_canonical)
    sparse: dict[str, Any] = {}
    dense: dict[str, jax.Array] = {}
    for name, operand in zip(names, operands, strict=True):
        if isinstance(operand, BCOO | BCSR):
            sparse[name] = operand
        else:
            dense[name] = _as_dense(name, operand)
    shape = common_shape(names, operands)
    n_batch, n_sparse = _common_layout(sparse)
    sparse_shape = shape[n_batch : n_batch + n_sparse]

    index_names = tuple(f"{name}.indices" for name in sparse)
    indices = _validation.promote_indices(index_names, [_indices_of(name, x) for name, x in sparse.items()])
    _validation.check_shape_fits(f"{names[0]}.shape", sparse_shape, index_names[0], indices[0])
    data = [_validation.as_numeric(f"{name}.data", x.data) for name, x in sparse.items()]
    promoted = _validation.promote_values([*data, *dense.values()])
    values, arrays = promoted[: len(data)], promoted[len(data) :]
    if arrays:
        if size is not None:
            raise ValueError(f"`nse` must not be given where an operand is dense, for so is the sum; got {size}")
        return _add_to_dense(index_names, sum(arrays[1:], arrays[0]), indices, values, sparse_shape)
    sum_indices, sum_values = add_once(Request(index_names, sparse_shape, size, flag), indices, values)
    if all(isinstance(x, BCSR) for x in sparse.values()):
        return _as_bcsr(sum_indices, sum_values, shape, jnp.result_type(*(x.indptr for x in sparse.values())))
    return BCOO((sum_values, sum_indices), shape=shape, indices_sorted=True, unique_indices=True)


def _as_dense(name: str, operand: Any) -> jax.Array:
    if not isinstance(operand, jax.Array | np.ndarray):
        raise TypeError(
            f"`{name}` must be a BCOO, a BCSR or an array, got {type(operand).__name__}; "
            "a SciPy matrix becomes one by `BCOO.from_scipy_sparse`"
        )
    return _validation.as_numeric(name, operand)


def common_shape(names: Sequence[str], operands: Sequence[Any]) -> tuple[int, ...]:
    """The shape of all operands."""
    shapes = [tuple(operand.shape) for operand in operands]
    for name, shape in zip(names, shapes, strict=True):
        if shape != shapes[0]:
            raise ValueError(f"`{name}` must have the shape of `{names[0]}`; got {shape} and {shapes[0]}")
    return shapes[0]


def _common_layout(sparse: dict[str, Any]) -> tuple[int, int]:
    """The number of batch and of sparse dimensions of all sparse operands."""
    if not sparse:
        raise TypeError(
            "one of the operands must be a BCOO or a BCSR, got arrays only; add those by `+` "
            "(under `sparsify`, sparse arguments look like arrays: call this function outside of it)"
        )
    first, *_ = sparse
    layouts = {name: (x.n_batch, x.n_sparse, x.n_dense) for name, x in sparse.items()}
    for name, layout in layouts.items():
        if sum(layout) != len(sparse[name].shape):
            raise ValueError(
                f"`{name}` must have as many sizes as n_batch, n_sparse and n_dense together; got {layout} and shape "
                f"{tuple(sparse[name].shape)}; what `scan` or `vmap` stacked needs a new container around its arrays"
            )
        _check_arrays(name, sparse[name])
        if layout != layouts[first]:
            raise ValueError(
                f"`{name}` must have the n_batch, n_sparse and n_dense of `{first}`; got {layout} and "
                f"{layouts[first]}; `BCOO.update_layout` changes them"
            )
    return layouts[first][:2]


def _check_arrays(name: str, operand: Any) -> None:
    """The arrays of a container fit together, which is checked where it is made, but not where a tree is mapped."""
    n_batch, n_sparse = operand.n_batch, operand.n_sparse
    shape, nse = operand.shape, operand.nse
    parts = {"data": (nse, *shape[n_batch + n_sparse :])}
    if isinstance(operand, BCOO):
        parts["indices"] = (nse, n_sparse)
    else:
        parts |= {"indices": (nse,), "indptr": (shape[n_batch] + 1,)}
    for part, expected in parts.items():
        actual = tuple(getattr(operand, part).shape)
        batches = zip(actual[:n_batch], shape[:n_batch], strict=False)
        if actual[n_batch:] != expected or any(size not in (1, whole) for size, whole in batches):
            batch = f"batch dimensions {tuple(shape[:n_batch])} (or 1) and then " if n_batch else "shape "
            raise ValueError(f"`{name}.{part}` must have {batch}{expected}; got shape {actual}")


def _indices_of(name: str, operand: Any) -> jax.Array:
    """Index rows `[*batch, nse, n_sparse]`."""
    indices = _validation.as_integers(f"{name}.indices", operand.indices)
    if isinstance(operand, BCOO):
        return indices
    shape = tuple(operand.shape[operand.n_batch :][:2])
    indptr = _validation.as_integers(f"{name}.indptr", operand.indptr)
    dtype = jnp.result_type(indices, indptr)
    _validation.check_sizes_fit(f"{name}.shape", shape, dtype)
    message = f"`{name}.indptr` must rise from 0 to at most nse ({operand.nse}); got {{indptr}}"

    def guarded(indptr: jax.Array) -> jax.Array:
        return guard(indptr, _is_indptr(indptr, np.int32(operand.nse)), message, indptr=indptr)

    if not _validation.is_concrete(indices, indptr):
        return _rows_of(indices, guarded(indptr), shape, dtype)

    def in_buckets() -> jax.Array:
        axis = operand.n_batch
        padded = resize(indices, bucket(operand.nse), 0, axis)
        rows: jax.Array = jax.device_put(resize(_rows_of(padded, guarded(indptr), shape, dtype), operand.nse, 0, axis))
        return rows

    return _validation.call_concretely(in_buckets)


@jax.jit
def _is_indptr(indptr: jax.Array, nse: np.int32) -> jax.Array:
    return jnp.all(indptr[..., 0] == 0) & jnp.all(indptr[..., 1:] >= indptr[..., :-1]) & jnp.all(indptr[..., -1] <= nse)


@partial(jax.jit, static_argnums=(2, 3))
def _rows_of(columns: jax.Array, indptr: jax.Array, shape: tuple[int, ...], dtype: np.dtype) -> jax.Array:
    """Index rows `[*batch, nse, 2]` of a BCSR; what lies behind its last row is padding."""

    def rows_of(columns: jax.Array, indptr: jax.Array) -> jax.Array:
        # Entry k lies in row r if indptr[r] <= k < indptr[r + 1]: r + 1 starts are less than k + 1.
        entries = jnp.arange(1, columns.shape[0] + 1, dtype=jnp.uint32)
        row = search((indptr.astype(jnp.uint32),), (entries,))[0] - 1
        padding = row >= shape[0]
        coordinates = row.astype(dtype), columns.astype(dtype)
        return jnp.stack(
            [jnp.where(padding, np.asarray(size, dtype), each) for each, size in zip(coordinates, shape, strict=True)],
            axis=1,
        )

    return map_batches(rows_of, columns.ndim - 1)(columns, indptr)


def _as_bcsr(indices: jax.Array, values: jax.Array, shape: tuple[int, ...], dtype: np.dtype) -> BCSR:
    nse, n_rows = indices.shape[-2], shape[indices.ndim - 2]
    if nse > np.iinfo(dtype).max:
        raise ValueError(
            f"`nse` must not exceed {np.iinfo(dtype).max}, the largest number of the operands' `indptr` ({dtype}); "
            f"got {nse}; cast one of these to a wider dtype"
        )

    def in_buckets() -> tuple[jax.Array, jax.Array]:
        (padded,) = pad_indices((indices,), shape[indices.ndim - 2 :][:2])
        columns, indptr = _compress(padded, n_rows, dtype)
        return jax.device_put(resize(columns, nse, 0, columns.ndim - 1)), indptr

    concrete = _validation.is_concrete(indices)
    columns, indptr = _validation.call_concretely(in_buckets) if concrete else _compress(indices, n_rows, dtype)
    return BCSR((values, columns, indptr), shape=shape, indices_sorted=True, unique_indices=True)


@partial(jax.jit, static_argnums=(1, 2))
def _compress(indices: jax.Array, n_rows: int, dtype: np.dtype) -> tuple[jax.Array, jax.Array]:
    """The columns of sorted index rows, and the number of entries before each row."""

    def compress(rows: jax.Array) -> jax.Array:
        # Padding lies in row n_rows, so that the last count is that of all entries.
        starts = jnp.arange(n_rows + 1, dtype=jnp.uint32)
        return search((rows.astype(jnp.uint32),), (starts,))[0].astype(dtype)

    return indices[..., 1], map_batches(compress, indices.ndim - 2)(indices[..., 0])


def _add_to_dense(
    names: tuple[str, ...],
    dense: jax.Array,
    indices: tuple[jax.Array, ...],
    values: tuple[jax.Array, ...],
    shape: tuple[int, ...],
) -> jax.Array:
    if not _validation.is_concrete(indices):
        indices = guard_indices(Request(names, shape, None, False), indices)
        return scatter_add(dense, indices, values, shape)
    padded = pad_indices(indices, shape)
    _validation.call_concretely(lambda: _keys.guard_concrete(names, padded, shape))
    if _validation.is_concrete(values):
        return scatter_add(dense, padded, pad_values(values, padded), shape)
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

    for rows, each in zip(indices, values, strict=True):
        total = map_batches(add_to, rows.ndim - 2)(total, rows, each.astype(wide))
    return total.astype(dense.dtype)


def _wide(dtype: np.dtype) -> np.dtype:
    """What numbers of a dtype are summed in: narrow floats would stop growing, and few machines add half a byte."""
    if jnp.issubdtype(dtype, jnp.integer):
        # The lowest bits are those of a sum of narrow integers.
        return np.dtype(np.int8) if jnp.iinfo(dtype).bits < 8 else dtype
    return np.dtype(np.float32) if dtype.itemsize < 4 else dtype
    wide = _wide(dense.dtype)
    total = dense.astype(wide)
