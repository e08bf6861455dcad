"""What matrices hold, read and added by numpy, for each step of JAX outside of `jit` compiles."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO, BCSR


def is_entry(indices, shape):
    """Whether each index row lies inside the shape."""
    return np.all((indices >= 0) & (indices < np.array(shape, np.int64).reshape(1, -1)), axis=-1)


def cell_of(indices, shape):
    """The number of each row's cell in row-major order; a scalar tensor has one cell, number 0."""
    strides = np.cumprod([1, *shape[:0:-1]], dtype=np.int64)[::-1][: len(shape)]
    return np.asarray(indices, np.int64) @ strides


def to_dense(x, *parts):
    """The dense array of a matrix, or of `(indices, values, shape)`."""
    if parts:
        return _add_up(x, *parts)
    x = as_bcoo(x) if isinstance(x, BCSR) else jax.device_get(x)
    if not isinstance(x, BCOO):
        return np.asarray(x)
    batch, shape = x.shape[: x.n_batch], x.shape[x.n_batch :][: x.n_sparse]
    indices = np.broadcast_to(x.indices, (*batch, *x.indices.shape[x.n_batch :]))
    values = np.broadcast_to(x.data, (*batch, *x.data.shape[x.n_batch :]))
    total = np.zeros(x.shape, x.dtype)
    for k in np.ndindex(batch):
        total[k] = _add_up(indices[k], values[k], shape)
    return total


def _add_up(indices, values, shape):
    indices, values = np.asarray(indices), np.asarray(values)
    total = np.zeros((math.prod(shape), *values.shape[1:]), values.dtype)
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
    indices = np.asarray(indices)
    inside = is_entry(indices, shape)
    cells = table.reshape((-1, *table.shape[len(shape) :]))
    values = np.zeros((len(indices), *cells.shape[1:]), table.dtype)
    values[inside] = cells[cell_of(indices[inside], shape)]
    return values


def as_bcsr(x):
    """The same matrix by rows, which keep the order of their entries; padding comes last."""
    data, indices = np.asarray(x.data), np.asarray(x.indices)
    order = np.argsort(indices[..., 0], axis=-1, kind="stable")
    data = np.take_along_axis(data, order.reshape(order.shape + (1,) * (data.ndim - order.ndim)), axis=order.ndim - 1)
    indices = np.take_along_axis(indices, order[..., None], axis=-2)
    rows = np.arange(x.shape[x.n_batch] + 1)
    starts = np.apply_along_axis(np.searchsorted, -1, indices[..., 0], rows).astype(indices.dtype)
    return BCSR((jnp.asarray(data), jnp.asarray(indices[..., 1]), jnp.asarray(starts)), shape=x.shape)


def as_bcoo(x):
    """A matrix by coordinates, as numpy arrays."""
    x = jax.device_get(x)
    if isinstance(x, BCOO):
        return x
    rows = np.empty(x.indices.shape, x.indices.dtype)
    for batch in np.ndindex(x.indices.shape[:-1]):
        starts = x.indptr[batch]
        rows[batch] = x.shape[x.n_batch]
        rows[batch][: starts[-1]] = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    columns = np.where(rows < x.shape[x.n_batch], x.indices, x.shape[x.n_batch + 1])
    return BCOO((x.data, np.stack([rows, columns], axis=-1)), shape=x.shape)


def bits(array):
    """The bytes of an array, by which zeros of either sign and NaN differ."""
    return np.ascontiguousarray(array).view(np.uint8).tolist()


def check_canonical(total):
    """Sorted, unique, padding last, in every batch; and its flags say so."""
    assert total.indices_sorted
    assert total.unique_indices
    check_rows(as_bcoo(total).indices, total.shape[total.n_batch :][: total.n_sparse])


def check_rows(indices, shape):
    """Index rows `[*batch, nse, ndims]` are sorted and unique, with padding last."""
    for batch in np.ndindex(indices.shape[:-2]):
        rows = np.asarray(indices[batch])
        expected = union_indices(rows, shape=shape)
        np.testing.assert_array_equal(rows[: len(expected)], expected)
        np.testing.assert_array_equal(rows[len(expected) :], np.tile([shape], (len(rows) - len(expected), 1)))
