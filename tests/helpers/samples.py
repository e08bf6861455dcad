"""Random sparse tensors and matrices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO

from helpers.matrices import as_bcsr, is_entry

SHAPE = (6, 7)
NSE = 7
# Shape, n_batch, n_dense: a matrix, batches of hybrid ones, no sparse dimension at all.
LAYOUTS = [(SHAPE, 0, 0), ((2, 3, 4, 5, 2), 2, 1), ((2, 3), 2, 0)]
FORMS = {
    "canonical": {},
    "shuffled": {"shuffled": True},
    "duplicates": {"duplicates": 4},
    "all": {"shuffled": True, "duplicates": 4, "padding": 2},
}


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


def random_rows(rng, shape, size, *, ascending, unique):
    """Index rows (uint32) of a few cells all over a shape of any size; where they are padding, last if ascending."""
    ends = np.array(shape, np.int64).reshape(1, -1)
    rows = np.minimum(rng.integers(0, 9, (size, len(shape))) * np.maximum(ends // 8, 1), ends).astype(np.uint32)
    inside = is_entry(rows, shape)
    if unique:
        entries = np.unique(rows[inside], axis=0) if shape else rows[:1]
        rows = rng.permutation(np.concatenate([entries, np.tile(ends, (size - len(entries), 1))]).astype(np.uint32))
        inside = is_entry(rows, shape)
    rows[~inside] = ends
    return rows[np.lexsort([*rows.T[::-1], ~inside])] if ascending else rows


def random_coo(rng, shape, nnz, dtype=np.float32, *, dense=(), duplicates=0, padding=0, shuffled=False):
    """`(indices, values)`: nnz distinct entries, some of them again, some padding (with values that must not count)."""
    cells = rng.choice(math.prod(shape), nnz, replace=False)
    cells = np.sort(np.append(cells, rng.choice(cells, duplicates))) if duplicates else np.sort(cells)
    indices = np.stack(np.unravel_index(cells, shape), axis=1) if shape else np.zeros((len(cells), 0))
    indices = np.concatenate([indices, np.tile(np.array(shape).reshape(1, -1), (padding, 1))]).astype(np.int32)
    if shuffled:
        indices = rng.permutation(indices)
    return indices, random_values(rng, (len(indices), *dense), dtype)


def random_operand(rng, form, size=15, shape=SHAPE, **options):
    """Indices and values in one of the forms: of one length, so that one program serves them all."""
    form = FORMS[form]
    return random_coo(rng, shape, size - form.get("duplicates", 0) - form.get("padding", 0), **form, **options)


def column(data, rows, size=6):
    """A sparse vector."""
    return BCOO((jnp.asarray(data), jnp.asarray(rows, jnp.int32).reshape(-1, 1)), shape=(size,))


def random_bcoo(rng, layout=LAYOUTS[0], dtype=np.float32, nse=NSE, padding=2, index_dtype=np.int32, **flags):
    """Entries in any order, some twice, and padding, which a matrix without sparse dimensions cannot have."""
    shape, n_batch, n_dense = layout
    batch, cells, dense = shape[:n_batch], shape[n_batch : len(shape) - n_dense], shape[len(shape) - n_dense :]
    padding = min(padding, nse) if cells else 0
    nnz = min(nse - padding, max(nse - padding - 2, 1), math.prod(cells))
    pairs = [
        random_coo(rng, cells, nnz, dtype, dense=dense, duplicates=nse - padding - nnz, padding=padding, shuffled=True)
        for _ in range(math.prod(batch))
    ]
    indices, values = (np.stack(each).reshape(*batch, *each[0].shape) for each in zip(*pairs, strict=True))
    return BCOO((jnp.asarray(values), jnp.asarray(indices.astype(index_dtype))), shape=shape, **flags)


def random_bcsr(rng, layout=LAYOUTS[0], **arguments):
    """Columns in any order within a row, some twice."""
    return as_bcsr(random_bcoo(rng, layout, **arguments))


def aligned(array):
    """A copy that begins at a multiple of 64 bytes, as what `np.load` and torch give often does."""
    memory = np.empty(array.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
