"""BCOO and BCSR matrices: drawn at random, and read back by numpy, for each step of JAX outside of `jit` compiles."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO, BCSR

from samples import is_entry, random_values, union_indices

SHAPE = (6, 7)
# Shape, n_batch, n_dense: a matrix, a batch of them, a batch of hybrid ones, no sparse dimension at all.
LAYOUTS = [(SHAPE, 0, 0), ((2, 3, 4, 5), 2, 0), ((3, 4, 5, 2), 1, 1), ((2, 3), 2, 0)]
NSE = 7


def random_bcoo(rng, layout=LAYOUTS[0], dtype=np.float32, nse=NSE, padding=2, index_dtype=np.int32, **flags):
    """Entries in any order, some twice, some padding whose values must not count."""
    shape, n_batch, n_dense = layout
    batch, cells, dense = shape[:n_batch], shape[n_batch : len(shape) - n_dense], shape[len(shape) - n_dense :]
    indices = np.stack([rng.integers(0, size, (*batch, nse)) for size in cells], axis=-1) if cells else None
    indices = np.zeros((*batch, nse, 0), index_dtype) if indices is None else indices.astype(index_dtype)
    if cells:
        indices[..., rng.choice(nse, padding, replace=False), :] = cells
    return BCOO(
        (jnp.asarray(random_values(rng, (*batch, nse, *dense), dtype)), jnp.asarray(indices)), shape=shape, **flags
    )


def random_bcsr(rng, layout=LAYOUTS[0], **arguments):
    """Columns in any order within a row, some twice."""
    return as_bcsr(random_bcoo(rng, layout, **arguments))


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
    """A BCSR by coordinates, as numpy arrays."""
    x = jax.device_get(x)
    rows = np.empty(x.indices.shape, x.indices.dtype)
    for batch in np.ndindex(x.indices.shape[:-1]):
        starts = x.indptr[batch]
        rows[batch] = x.shape[x.n_batch]
        rows[batch][: starts[-1]] = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    columns = np.where(rows < x.shape[x.n_batch], x.indices, x.shape[x.n_batch + 1])
    return BCOO((x.data, np.stack([rows, columns], axis=-1)), shape=x.shape)


def to_dense(x):
    """The dense array of a matrix."""
    if isinstance(x, BCSR):
        return to_dense(as_bcoo(x))
    x = jax.device_get(x)
    if not isinstance(x, BCOO):
        return np.asarray(x)
    total = np.zeros(x.shape, x.dtype)
    batches = x.shape[: x.n_batch]
    indices = np.broadcast_to(x.indices, (*batches, *x.indices.shape[x.n_batch :]))
    values = np.broadcast_to(x.data, (*batches, *x.data.shape[x.n_batch :]))
    for batch in np.ndindex(batches):
        if x.n_sparse == 0:
            total[batch] = values[batch].sum(axis=0)
            continue
        inside = is_entry(indices[batch], x.shape[x.n_batch :][: x.n_sparse])
        np.add.at(total[batch], tuple(indices[batch][inside].T), values[batch][inside])
    return total


def check_form(total):
    """Sorted, unique, padding last, in every batch; and its flags say so."""
    assert total.indices_sorted
    assert total.unique_indices
    coordinates = as_bcoo(total) if isinstance(total, BCSR) else jax.device_get(total)
    shape = total.shape[total.n_batch :][: total.n_sparse]
    for batch in np.ndindex(coordinates.indices.shape[:-2]):
        rows = coordinates.indices[batch]
        expected = union_indices(rows, shape=shape)
        np.testing.assert_array_equal(rows[: len(expected)], expected)
        np.testing.assert_array_equal(rows[len(expected) :], np.tile([shape], (len(rows) - len(expected), 1)))
