"""Random sparse tensors, and the dense sum in numpy that every result is compared with."""

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


def is_entry(indices, shape):
    return np.all((indices >= 0) & (indices < np.array(shape).reshape(1, -1)), axis=1)


def to_dense(indices, values, shape):
    indices, values = np.asarray(indices), np.asarray(values)
    total = np.zeros((*shape, *values.shape[1:]), values.dtype)
    inside = is_entry(indices, shape)
    np.add.at(total, tuple(indices[inside].T), values[inside])
    return total


def union_indices(*indices, shape):
    """The distinct rows inside the shape, lexicographically sorted."""
    rows = np.concatenate([np.asarray(i) for i in indices])
    return np.unique(rows[is_entry(rows, shape)], axis=0)


def at_rows(table, indices, shape):
    """`table[row]` for each row of the indices, 0 for padding: the gradient of `sum(table * dense)`."""
    inside = is_entry(indices, shape)
    rows = np.where(inside.reshape(-1, 1), indices, 0)
    values = table[tuple(rows.T)]
    return np.where(inside.reshape(-1, *[1] * (values.ndim - 1)), values, 0)
