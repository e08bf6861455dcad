"""Every integer dtype serves as the index dtype of every function, up to its last row, and is given back."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.meshes import mesh_of
from helpers.shards import EVEN, as_bcoo, host, spread
from jax_sparse_grad import sharded

OTHERS = ["int8", "uint32", "uint64"]
WIDE = ["int64", "uint64"]


@pytest.fixture(params=["int32", *(pytest.param(each, marks=pytest.mark.slow) for each in OTHERS)])
def dtype(request):
    with jax.enable_x64(request.param in WIDE):
        yield np.dtype(request.param)


@pytest.fixture
def mesh():
    return mesh_of((2,))


def rows_of(x):
    """`[(row, value)]` of all entries, as Python numbers; each in the shard whose range holds it."""
    starts, shape = host(x.row_starts), x.shape
    assert (starts[0], int(starts[-1])) == (0, shape[0])
    entries = []
    parts = (np.split(host(each), x.shards) for each in (x.indices[:, 0], x.data))
    for (low, high), rows, values in zip(itertools.pairwise(starts.tolist()), *parts, strict=True):
        inside = [(row, value) for row, value in zip(rows.tolist(), values.tolist(), strict=True) if row < shape[0]]
        assert all(low <= row < high for row, _ in inside)
        entries += inside
    return entries


def test_rows_at_both_ends_of_a_dtype(dtype, mesh):
    n_rows = int(np.iinfo(dtype).max)  # itself the index of padding
    rows = [0, 1, n_rows // 2, n_rows // 2 + 1, n_rows - 2, n_rows - 1]
    values = list(range(1, 7))
    indices = np.stack([np.array(rows, dtype), np.zeros(6, dtype)], axis=1)
    matrix = as_bcoo(indices, np.array(values, np.float32), (n_rows, 1))
    expected = list(zip(rows, values, strict=True))

    starts = sharded.balanced_row_starts(matrix, 2)
    assert starts.tolist() == [0, n_rows // 2 + 1, n_rows]
    x = sharded.partition(matrix, mesh, "rows", row_starts=starts, capacity=6)
    assert sharded.balanced_row_starts([x, x]).tolist() == starts.tolist()
    moved = sharded.repartition(x, np.array([0, n_rows - 1, n_rows], starts.dtype), capacity=6)
    balanced = sharded.repartition(moved, capacity=6)
    for y in (x, moved, balanced):
        assert (y.indices.dtype, y.row_starts.dtype) == (dtype, dtype)
        assert rows_of(y) == expected
    assert [host(y.nnz).tolist() for y in (moved, balanced)] == [[5, 1], [3, 3]]

    def load(start, stop):
        here = [row for row in rows if start <= row < stop]
        local = np.array([[row - start, 0] for row in here], dtype).reshape(-1, 2)
        return as_bcoo(local, np.ones(len(here), np.float32), (stop - start, 1))

    loaded = sharded.from_shards(load, (n_rows, 1), mesh, "rows", row_starts=starts, capacity=6)
    assert (loaded.indices.dtype, loaded.row_starts.dtype) == (dtype, dtype)
    total = sharded.add(x, loaded, assume_canonical=True)
    assert (total.indices.dtype, total.row_starts.dtype) == (dtype, dtype)
    assert rows_of(total) == [(row, value + 1) for row, value in expected]


def test_a_scan_carries_what_was_added_and_moved():
    indices = np.arange(40, dtype=np.int8)[:, None]
    matrix = as_bcoo(indices, np.ones(40, np.float32), (40,))
    (x,), (y,) = (spread([matrix], row_starts=starts, capacity=40) for starts in ([0, 3, *[40] * 7], EVEN))

    def step(total, _):
        return sharded.add(sharded.repartition(total, EVEN), y, capacity=40, assume_canonical=True), None

    total = jax.jit(lambda x: jax.lax.scan(step, x, length=3)[0])(x)
    assert total.indices.dtype == np.int8
    assert rows_of(total) == [(row, 4.0) for row in range(40)]


def test_indices_of_two_dtypes_are_added_in_their_common_one():
    matrices = [as_bcoo(np.arange(40, dtype=dtype)[:, None], np.ones(40, np.float32), (40,)) for dtype in ("i1", "u1")]
    total = sharded.add(*spread(matrices), assume_canonical=True)
    assert (total.indices.dtype, total.row_starts.dtype) == (np.int16, np.int16)
    assert rows_of(total) == [(row, 2.0) for row in range(40)]


def test_bad_rows_of_unsigned_indices_are_shown_as_they_are(mesh):
    n_rows = 2**32 - 1
    indices = jnp.array([[1, 0], [n_rows - 1, 0]], jnp.uint32)
    x = sharded.partition(as_bcoo(indices, np.ones(2, np.float32), (n_rows, 1)), mesh, "rows", capacity=2)
    bad = dataclasses.replace(x, indices=x.indices.at[2, 1].set(7))
    with pytest.raises(ValueError, match=r"`x.indices` must lie in .*; entry 0 of shard 1 is \[4294967294 +7\]"):
        sharded.add(bad, x)
