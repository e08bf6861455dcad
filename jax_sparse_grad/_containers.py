"""BCOO and BCSR, the containers of JAX: their content as index rows and values, and containers made from these.

Index rows are `[*batch, nse, n_sparse]`, values `[*batch, nse, *dense]`. Rows beyond the shape are padding.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO, BCSR, JAXSparse
from jax.typing import ArrayLike

from jax_sparse_grad import _validation
from jax_sparse_grad._buckets import buckets, resize
from jax_sparse_grad._checks import guard
from jax_sparse_grad._primitives import map_batches
from jax_sparse_grad._search import count_less


def as_bcoo(data: jax.Array, indices: jax.Array, shape: tuple[int, ...]) -> BCOO:
    """The BCOO of entries in any order."""
    return BCOO((data, indices), shape=shape)


def index_dtype(shape: tuple[int, ...]) -> np.dtype:
    """The dtype of indices where none of JAX's is given."""
    return np.dtype(np.int32 if max(shape, default=0) <= np.iinfo(np.int32).max else np.int64)


def host_entries(name: str, operand: Any) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
    """The index rows `[nnz, ndims]`, values `[nnz, *dense]` and shape of a BCOO, a BCSR or a SciPy matrix, in numpy.

    Padding is left out, that is, as everywhere in JAX, any row with an index beyond the shape.
    """
    if not _validation.is_concrete(operand):
        raise TypeError(f"`{name}` must be concrete, got a traced array; call this outside of `jit`")
    shape = tuple(operand.shape) if hasattr(operand, "shape") else ()
    if isinstance(operand, BCOO | BCSR):
        n_batch, n_sparse = common_layout({name: operand})
        if n_batch or not n_sparse:
            raise ValueError(f"`{name}` must have n_batch 0 and rows; got n_batch {n_batch} and n_sparse {n_sparse}")
        indices, values = np.asarray(indices_of(name, operand)), np.asarray(operand.data)
    elif hasattr(operand, "tocoo"):
        coordinates = operand.tocoo()
        indices = np.stack(coordinates.coords, axis=1).astype(index_dtype(shape))
        values = _validation.as_host_array(f"{name}.data", coordinates.data)
    else:
        remedy = ""
        if isinstance(operand, jax.Array | np.ndarray):
            remedy = "; `BCOO.fromdense` converts an array"
        elif hasattr(operand, "todense"):
            remedy = "; `BCOO.fromdense(x.todense())` converts it"
        raise TypeError(
            f"`{name}` must be a BCOO, a BCSR or a SciPy matrix, got {_validation.kind_of(operand)}{remedy}"
        )
    _validation.as_numeric(f"{name}.data", values[:0])
    sizes = shape[: indices.shape[1]]
    _validation.check_sizes_fit(f"{name}.shape", sizes, indices.dtype)
    negative = np.any(indices < 0, axis=1)
    if negative.any():
        row = int(np.argmax(negative))
        raise ValueError(f"`{name}.indices` must not be negative; row {row} is {indices[row]}")
    inside = np.all(indices < np.array(sizes, indices.dtype), axis=1)
    if not inside.all():
        indices, values = indices[inside], values[inside]
    return indices, values, shape


def without_wrappers(operand: Any) -> Any:
    """The content of a wrapper such as `flax.nnx.Param`, or a container whose arrays are not wrapped."""
    operand = _validation.unwrap(operand)
    if isinstance(operand, BCOO | BCSR):
        bare = {part: _validation.unwrap(array) for part, array in vars(operand).items()}
        if any(array is not getattr(operand, part) for part, array in bare.items()):
            operand = copy.copy(operand)
            vars(operand).update(bare)
    return operand


def is_sparse(x: Any) -> bool:
    """Whether it is a sparse matrix: JAX's, SciPy's, or one whose rows are spread over devices."""
    return isinstance(x, JAXSparse) or hasattr(x, "tocoo") or hasattr(x, "row_starts")


def common_shape(names: Sequence[str], operands: Sequence[Any]) -> tuple[int, ...]:
    """The shape of all operands."""
    shapes = [tuple(operand.shape) for operand in operands]
    for name, shape in zip(names, shapes, strict=True):
        if shape != shapes[0]:
            raise ValueError(
                f"`{name}` must have the shape of `{names[0]}`; got {shape} and {shapes[0]}"
                + _remedy_of_shapes(name, shape, names[0], shapes[0])
            )
    return shapes[0]


def _remedy_of_shapes(name: str, shape: tuple[int, ...], other: str, expected: tuple[int, ...]) -> str:
    if () in (shape, expected):
        return f"; a sparse matrix plus a number is dense: `{name if shape else other}.todense() + number`"
    if shape == expected[::-1]:
        return "; is one of them transposed?"
    fits = all(1 in sizes or sizes[0] == sizes[1] for sizes in zip(shape[::-1], expected[::-1], strict=False))
    return "; operands are not broadcast to a common shape" if fits else ""


def common_layout(sparse: dict[str, Any]) -> tuple[int, int]:
    """The number of batch and of sparse dimensions of all sparse operands."""
    if not sparse:
        raise TypeError(
            "one of the operands must be a BCOO or a BCSR, got only arrays; add those with `+` "
            "(under `sparsify`, sparse arguments look like arrays: call this function outside of it)"
        )
    first, *_ = sparse
    layouts = {name: (x.n_batch, x.n_sparse, x.n_dense) for name, x in sparse.items()}
    for name, layout in layouts.items():
        if sum(layout) != len(sparse[name].shape):
            raise ValueError(
                f"`{name}` must have as many sizes as n_batch, n_sparse and n_dense together; got {layout} and shape "
                f"{tuple(sparse[name].shape)}; arrays that `scan` or `vmap` has stacked need a new container"
            )
        _check_arrays(name, sparse[name])
        if layout != layouts[first]:
            raise ValueError(
                f"`{name}` must have the n_batch, n_sparse and n_dense of `{first}`; got {layout} and "
                f"{layouts[first]}; `BCOO.update_layout(n_batch={layouts[first][0]}, n_dense={layouts[first][2]})` "
                f"of `{name}` changes them"
            )
    return layouts[first][:2]


def _check_arrays(name: str, operand: Any) -> None:
    """Check that the arrays of a container fit together, which JAX does only where a container is constructed."""
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


def indices_of(name: str, operand: Any) -> jax.Array:
    """Index rows `[*batch, nse, n_sparse]`."""
    indices = _validation.as_integers(f"{name}.indices", operand.indices)
    if isinstance(operand, BCOO):
        return indices
    shape = tuple(operand.shape[operand.n_batch :][:2])
    indptr = _validation.as_integers(f"{name}.indptr", operand.indptr)
    dtype = common_index_dtype(indices, indptr)
    _validation.check_sizes_fit(f"{name}.shape", shape, dtype)
    sizes = tuple(np.asarray(size, dtype) for size in shape)
    nse, axis = operand.nse, operand.n_batch
    most = np.asarray(min(nse, jnp.iinfo(indptr.dtype).max), indptr.dtype)
    message = f"`{name}.indptr` must rise from 0 to at most nse ({nse}); got {{indptr}}"
    if not _validation.is_concrete(indices, indptr):
        return _rows_of(indices, guard(indptr, _is_indptr(indptr, most), message, indptr=indptr), sizes)

    def in_buckets() -> jax.Array:
        # More row starts at the end of all entries change nothing.
        length, count = buckets([nse, indptr.shape[-1]])
        starts = resize(indptr, count, np.asarray(indptr)[..., -1:], axis)
        guard((), _is_indptr(starts, most), message, indptr=indptr)
        rows = _rows_of(resize(indices, length, 0, axis), starts, sizes)
        return cast(jax.Array, jax.device_put(resize(rows, nse, 0, axis)))

    return _validation.call_concretely(in_buckets)


def common_index_dtype(*arrays: jax.Array) -> np.dtype:
    """The dtype that index arrays of a container promote to, whatever promotion the user has set."""
    with jax.numpy_dtype_promotion("standard"):
        return np.dtype(jnp.result_type(*arrays))


@jax.jit
def _is_indptr(indptr: jax.Array, nse: np.ndarray) -> jax.Array:
    return jnp.all(indptr[..., 0] == 0) & jnp.all(indptr[..., 1:] >= indptr[..., :-1]) & jnp.all(indptr[..., -1] <= nse)


@jax.jit
def _rows_of(columns: jax.Array, indptr: jax.Array, sizes: tuple[ArrayLike, ...]) -> jax.Array:
    """Index rows `[*batch, nse, 2]` of a BCSR, in the dtype of `sizes`; what lies behind its last row is padding."""
    dtype = jnp.result_type(*sizes)

    def rows_of(columns: jax.Array, indptr: jax.Array) -> jax.Array:
        # Entry k lies in row r if indptr[r] <= k < indptr[r + 1], that is, if r + 1 starts are less than k + 1.
        entries = jnp.arange(1, columns.shape[0] + 1, dtype=jnp.uint32)
        row = count_less(indptr.astype(jnp.uint32), entries) - 1
        padding = row >= jnp.asarray(sizes[0], row.dtype)
        coordinates = row.astype(dtype), columns.astype(dtype)
        return jnp.stack([jnp.where(padding, *each) for each in zip(sizes, coordinates, strict=True)], axis=1)

    return map_batches(rows_of, columns.ndim - 1)(columns, indptr)


def as_bcsr(indices: jax.Array, values: jax.Array, shape: tuple[int, ...], dtype: np.dtype) -> BCSR:
    """The BCSR of sorted entries, with `indptr` of a given dtype."""
    axis = indices.ndim - 2
    columns, indptr = compress(indices, shape[axis:][:2], dtype)
    return BCSR((values, columns, indptr), shape=shape, indices_sorted=True, unique_indices=True)


def compress(indices: jax.Array, sizes: tuple[int, ...], dtype: np.dtype) -> tuple[jax.Array, jax.Array]:
    """The columns of sorted index rows `[*batch, nse, 2]`, and the number of entries before each row, in a dtype."""
    nse, axis = indices.shape[-2], indices.ndim - 2
    if nse > np.iinfo(dtype).max:
        raise ValueError(
            f"`nse` must not exceed {np.iinfo(dtype).max}, the most that the operands' `indptr` ({dtype}) can hold; "
            f"got {nse}; cast one of these to a wider dtype"
        )
    count = sizes[0] + 1
    if not _validation.is_concrete(indices):
        return _compress(indices, count, dtype)

    def in_buckets() -> tuple[jax.Array, jax.Array]:
        lengths = buckets([nse, count])
        columns, indptr = _compress(resize(indices, lengths[0], sizes, axis), lengths[1], dtype)
        return jax.device_put((resize(columns, nse, 0, axis), resize(indptr, count, 0, axis)))

    return _validation.call_concretely(in_buckets)


@partial(jax.jit, static_argnums=(1, 2))
def _compress(indices: jax.Array, count: int, dtype: np.dtype) -> tuple[jax.Array, jax.Array]:
    """The columns of sorted index rows, and the number of entries before each of the first `count` rows."""

    def count_before(rows: jax.Array) -> jax.Array:
        # Padding lies behind the last row, so the last count is the number of all entries.
        starts = jnp.arange(count, dtype=jnp.uint32)
        return count_less(rows.astype(jnp.uint32), starts).astype(dtype)

    return indices[..., 1], map_batches(count_before, indices.ndim - 2)(indices[..., 0])
