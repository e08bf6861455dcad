"""Random sparse tensors, and the dense sum in numpy that every result is compared with."""

import jax
import numpy as np


def random_coo(rng, shape, nnz, dtype=np.float32, *, dense=(), duplicates=0, padding=0, shuffled=False):
    """`(indices, values)`: nnz distinct entries, some of them again, some padding (with values that must not count)."""
    cells = rng.choice(int(np.prod(shape)), nnz, replace=False)
    cells = np.sort(np.concatenate([cells, rng.choice(cells, duplicates)])) if duplicates else np.sort(cells)
    if shuffled:
        cells = rng.permutation(cells)
    indices = np.stack(np.unravel_index(cells, shape), axis=1).astype(np.int32).reshape(-1, len(shape))
    indices = np.concatenate([indices, np.tile(np.array(shape, np.int32).reshape(1, -1), (padding, 1))])
    return indices, random_values(rng, (len(indices), *dense), dtype)


def random_values(rng, shape, dtype=np.float32):
    """Small integers in any dtype: sums are exact, whatever their order."""
    dtype = np.dtype(dtype)
    values = rng.integers(0 if dtype.kind == "u" else -9, 9, shape)
    if dtype.kind == "c":
        values = values + 1j * rng.integers(-9, 9, shape)
    return values.astype(dtype)


def special_values():
    """Floats of which no bit may change: zeros of either sign among them, and NaN, but on GPUs, which have only one."""
    nans = [np.nan, -np.nan] if jax.default_backend() == "cpu" else []
    return np.array([0.0, -0.0, np.inf, -np.inf, 3e38, 2e-38, *nans], np.float32)


def is_entry(indices, shape):
    return np.all((indices >= 0) & (indices < np.array(shape).reshape(1, -1)), axis=1)


def cell_of(indices, shape):
    """The number of each row's cell in row-major order; a scalar tensor has one cell, number 0."""
    strides = np.cumprod([1, *shape[:0:-1]], dtype=np.int64)[::-1][: len(shape)]
    return np.asarray(indices, np.int64) @ strides


def to_dense(indices, values, shape):
    indices, values = np.asarray(indices), np.asarray(values)
    total = np.zeros((int(np.prod(shape)), *values.shape[1:]), values.dtype)
    inside = is_entry(indices, shape)
    np.add.at(total, cell_of(indices[inside], shape), values[inside])
    return total.reshape((*shape, *values.shape[1:]))


def union_indices(*indices, shape):
    """The distinct rows inside the shape, lexicographically sorted."""
    rows = np.concatenate([np.asarray(i) for i in indices])
    rows = rows[is_entry(rows, shape)]
    return np.unique(rows, axis=0) if shape else rows[:1]


def at_rows(table, indices, shape):
    """`table[row]` for each row of the indices, 0 for padding: the gradient of `sum(table * dense)`."""
    inside = is_entry(indices, shape)
    cells = table.reshape((-1, *table.shape[len(shape) :]))
    values = cells[np.where(inside, cell_of(indices, shape), 0)]
    return np.where(inside.reshape(-1, *[1] * (values.ndim - 1)), values, 0).astype(table.dtype)


def aligned(array):
    """A copy that begins at a multiple of 64 bytes, as what `np.load` and torch give often does."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
