"""JAX's containers BCOO and BCSR to index rows and values, and back.

Index rows are `[*batch, nse, n_sparse]`, values `[*batch, nse, *dense]`. Rows beyond the shape are padding.
"""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO, BCSR, JAXSparse

from jax_sparse_grad import _arguments
from jax_sparse_grad._batching import map_batches
from jax_sparse_grad._concrete import is_concrete, put_like, read
from jax_sparse_grad._data_checks import check_indptr
from jax_sparse_grad._types import Sparse


def index_dtype(shape: tuple[int, ...]) -> np.dtype:
    """The dtype of indices for a shape, where the user gives none."""
    return np.dtype(np.int32 if max(shape, default=0) <= np.iinfo(np.int32).max else np.int64)


def without_wrappers(operand: Any) -> Any:
    """The content of a wrapper such as `flax.nnx.Param`, or a container whose arrays are not wrapped."""
    operand = _arguments.unwrap(operand)
    if isinstance(operand, BCOO | BCSR):
        bare = {part: _arguments.unwrap(array) for part, array in vars(operand).items()}
        if any(array is not getattr(operand, part) for part, array in bare.items()):
            operand = copy.copy(operand)
            vars(operand).update(bare)
    return operand


def is_sparse(x: Any) -> bool:
    """Whether it is a sparse matrix: JAX's, SciPy's, or one whose rows are spread over devices."""
    return isinstance(x, JAXSparse) or hasattr(x, "tocoo") or hasattr(x, "row_starts")


def as_operand(names: Sequence[str], name: str, operand: Any) -> Sparse | jax.Array:
    """A BCOO, a BCSR or an array of numbers, without wrappers."""
    operand = without_wrappers(operand)
    if isinstance(operand, BCOO | BCSR):
        return operand
    listed = isinstance(operand, list | tuple) and not hasattr(operand, "_fields")  # not a named tuple
    inner = [x for x in jax.tree.leaves(operand, is_leaf=is_sparse) if is_sparse(x)] if listed else []
    if inner or not (listed or isinstance(operand, jax.Array | np.ndarray)):
        either = "a BCOO or a BCSR" if tuple(names) == ("x",) else "a BCOO, a BCSR or an array"
        of = f" of {type(inner[0]).__name__}" if inner else ""
        remedy = _remedy(names, name, operand)
        raise TypeError(f"`{name}` must be {either}, got {type(operand).__name__}{of}; {remedy}")
    return _arguments.as_numeric(name, operand)


def _remedy(names: Sequence[str], name: str, operand: Any) -> str:
    """What to do about something that is not an operand."""
    if isinstance(operand, numbers.Number):
        other = next((each for each in names if each != name), "x")
        return f"a sparse matrix plus a number is dense: `{other}.todense() + {operand}`"
    if isinstance(operand, list | tuple) and not hasattr(operand, "_fields"):
        return "flatten the list" if name.startswith("operands") else "`add_n` adds the matrices of a list"
    if type(operand).__name__ == "RowSharded":
        return "call `jsg.sharded.add` or `add_n`, and spread all operands with `jsg.sharded.partition`"
    return (
        "`BCOO.fromdense`, `BCOO.from_scipy_sparse` and `BCOO((data, indices), shape=...)` make a BCOO, "
        "`jnp.asarray` an array"
    )


def mark_zeros(rows: jax.Array, values: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The index rows, with padding in place of entries whose values are all zero."""
    values = jax.lax.stop_gradient(values)
    if is_concrete(rows, values):
        return put_like([rows], _with_padding_at_zeros(np, read(rows), read(values), shape), rows.ndim - 2)
    marked: jax.Array = _with_padding_at_zeros(jnp, rows, values, shape)
    return marked


def _with_padding_at_zeros(xp: Any, rows: Any, values: Any, shape: tuple[int, ...]) -> Any:
    n_batch = rows.ndim - 2
    zero = (values == 0).all(axis=tuple(range(n_batch + 1, values.ndim)))
    # In a pattern that batches share, an entry is left out if it is zero in all of them.
    zero = zero.all(axis=tuple(k for k in range(n_batch) if rows.shape[k] == 1), keepdims=True)
    return xp.where(zero[..., None], np.asarray(shape, rows.dtype).reshape(*[1] * (n_batch + 1), -1), rows)


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


def common_layout(sparse: Mapping[str, Sparse]) -> tuple[int, int]:
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


def _check_arrays(name: str, operand: Sparse) -> None:
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


def indices_of(name: str, operand: Sparse) -> jax.Array:
    """Index rows `[*batch, nse, n_sparse]`."""
    indices = _arguments.as_integers(f"{name}.indices", operand.indices)
    if isinstance(operand, BCOO):
        return indices
    shape = tuple(operand.shape[operand.n_batch :][:2])
    indptr = _arguments.as_integers(f"{name}.indptr", operand.indptr)
    dtype = _index_dtype_of(indices, indptr)
    _arguments.check_sizes_fit(f"{name}.shape", shape, dtype)
    indptr = check_indptr(f"{name}.indptr", indptr, operand.nse)
    if is_concrete(indices, indptr):
        rows = _rows_of(np, read(indices), read(indptr), shape, dtype)
        return put_like([indices, indptr], rows, operand.n_batch)
    rows_of = partial(_rows_of, jnp, shape=shape, dtype=dtype)
    return map_batches(rows_of, operand.n_batch)(indices, indptr)


def _index_dtype_of(*arrays: jax.Array) -> np.dtype:
    """The dtype that index arrays of a container promote to, whatever promotion the user has set."""
    with jax.numpy_dtype_promotion("standard"):
        return np.dtype(jnp.result_type(*arrays))


def _rows_of(xp: Any, columns: Any, indptr: Any, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """Index rows `[*batch, nse, 2]` of a BCSR; entries after its last row are padding. `jnp`: of one batch."""
    batch, nse = np.broadcast_shapes(columns.shape[:-1], indptr.shape[:-1]), columns.shape[-1]
    # Entry k lies in row r if r of the starts, from that of row 1 on, are at most k.
    counts = _count(xp, indptr[..., 1:], nse)
    row = xp.broadcast_to(xp.cumsum(counts, axis=-1)[..., :nse], (*batch, nse))
    padding = row >= shape[0]
    columns = xp.broadcast_to(columns, (*batch, nse))
    parts = zip(shape, (row.astype(dtype), columns.astype(dtype)), strict=True)
    return xp.stack([xp.where(padding, np.asarray(size, dtype), part) for size, part in parts], axis=-1)


def _count(xp: Any, numbers: Any, most: int) -> Any:
    """How often each number from 0 to `most` occurs, `[*batch, most + 1]` int32. `jnp`: of one batch."""
    if xp is jnp:
        zeros = jnp.zeros_like(numbers, np.int32, shape=(most + 1,))
        numbers = numbers.astype(np.int32) if numbers.dtype.itemsize < 4 else numbers
        return zeros.at[numbers].add(1, mode="drop", wrap_negative_indices=False)
    flat = numbers.reshape(math.prod(numbers.shape[:-1]), numbers.shape[-1])
    counts = [np.bincount(each[each <= most].astype(np.int64), minlength=most + 1) for each in flat]
    return np.array(counts, np.int32).reshape(*numbers.shape[:-1], most + 1)


Compressed = tuple[jax.Array, jax.Array]
"""`indices` and `indptr` of a BCSR."""


def as_matrix(values: jax.Array, indices: jax.Array, compressed: Compressed | None, shape: tuple[int, ...]) -> Sparse:
    """The BCSR or, if nothing is compressed, the BCOO of canonical entries."""
    if compressed is None:
        return BCOO((values, indices), shape=shape, indices_sorted=True, unique_indices=True)
    return BCSR((values, *compressed), shape=shape, indices_sorted=True, unique_indices=True)


def compress_if_all_bcsr(operands: Sequence[Sparse], indices: jax.Array, sizes: tuple[int, ...]) -> Compressed | None:
    """Canonical index rows `[*batch, nse, 2]` as a BCSR stores them, if all operands are BCSR."""
    compressed = [x for x in operands if isinstance(x, BCSR)]
    if len(compressed) < len(operands):
        return None
    nse, axis = indices.shape[-2], indices.ndim - 2
    dtype = _index_dtype_of(*(x.indptr for x in compressed))
    if nse > np.iinfo(dtype).max:
        raise ValueError(
            f"`nse` must not exceed {np.iinfo(dtype).max}, the most that the operands' `indptr` ({dtype}) can hold; "
            f"got {nse}; cast one of these to a wider dtype"
        )
    if is_concrete(indices):
        return put_like([indices], _compress(np, read(indices), sizes[0], dtype), axis)
    return map_batches(partial(_compress, jnp, n_rows=sizes[0], dtype=dtype), axis)(indices)


def _compress(xp: Any, indices: Any, n_rows: int, dtype: np.dtype) -> Compressed:
    """The columns of sorted index rows, and the number of entries before each row and before the end."""
    # Padding comes after the last row, and is not counted.
    counts = _count(xp, indices[..., 0], n_rows)[..., :n_rows]
    starts = xp.cumsum(counts, axis=-1, dtype=dtype)
    return indices[..., 1], xp.concatenate([xp.zeros_like(starts, shape=(*starts.shape[:-1], 1)), starts], axis=-1)
