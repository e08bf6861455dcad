"""Meshes, random operands spread over them, and their numpy counterparts."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jax.experimental.sparse import BCOO
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from helpers.matrices import is_entry, to_dense, union_indices
from helpers.meshes import mesh_of
from helpers.samples import random_coo
from jax_sparse_grad import sharded

SHAPE = (40, 30)
EVEN = np.arange(9) * SHAPE[0] // 8  # equally many rows in each of eight shards
CAPACITY = 60  # of all operands, so that those of one rank share programs, however they are cut
FORM = {"shuffled": True, "duplicates": 3, "padding": 2}  # of random operands
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "collective-broadcast", "reduce-scatter")

# The shape and the names of the mesh, and the axis, or axes, that rows are spread over.
MESHES = {
    "one axis": ((8,), ("rows",), "rows"),
    "beside another axis": ((2, 4), ("other", "rows"), "rows"),
    "two axes": ((4, 2), ("hosts", "devices"), ("hosts", "devices")),
}
# Each of them with one of the two types that an axis can have.
CASES = [
    ("one axis", AxisType.Auto),
    ("one axis", AxisType.Explicit),
    ("beside another axis", AxisType.Auto),
    ("two axes", AxisType.Explicit),
]


def make_mesh(name="one axis", axis_type=AxisType.Auto):
    """`(mesh, axis, shards)`."""
    shape, names, axis = MESHES[name]
    mesh = mesh_of(shape, names, axis_type)
    return mesh, axis, math.prod(mesh.shape[name] for name in ((axis,) if isinstance(axis, str) else axis))


def spread(matrices, name="one axis", axis_type=AxisType.Auto, *, row_starts=None, capacity=CAPACITY):
    """The matrices on one mesh, their rows cut alike."""
    mesh, axis, shards = make_mesh(name, axis_type)
    starts = sharded.balanced_row_starts(matrices, shards) if row_starts is None else row_starts
    return [sharded.partition(x, mesh, axis, row_starts=starts, capacity=capacity) for x in matrices]


def random_matrix(rng, nnz=150, shape=SHAPE, dtype=np.float32, **form):
    """A BCOO most of whose entries lie in its first rows."""
    skewed = (max(shape[0] // 4, 1), *shape[1:])
    indices, values = random_coo(rng, shape, nnz // 2, dtype, **form)
    more, more_values = random_coo(rng, skewed, nnz - nnz // 2, dtype, **form | {"padding": 0})
    both = np.concatenate([more, indices]), np.concatenate([more_values, values])
    return as_bcoo(*both, shape)


def as_bcoo(indices, values, shape):
    return BCOO((jnp.asarray(values), jnp.asarray(indices)), shape=shape)


def canonical(matrix):
    """The same as a SciPy matrix, sorted and without duplicates; programs that may rely on that compile faster."""
    inside = is_entry(host(matrix.indices), matrix.shape)
    places = tuple(host(matrix.indices)[inside].T)
    rows = scipy.sparse.coo_array((host(matrix.data)[inside], places), shape=matrix.shape).tocsr()
    rows.sort_indices()
    return rows


def host(array):
    """A numpy copy, of whatever lies on many devices."""
    return np.asarray(array)


def dense_of(x):
    """The dense array of a BCOO or a `RowSharded`, by numpy."""
    return to_dense(host(x.indices), host(x.data), x.shape[: x.indices.shape[1]])


def check_form(x, *, canonical=True):
    """Each shard holds rows of its range, as many as it says, and where `canonical` sorted, unique, padding last."""
    spec = PartitionSpec(x.axis)
    for array in (x.data, x.indices, x.nnz):
        assert array.sharding.is_equivalent_to(NamedSharding(x.mesh, spec), array.ndim)
    assert x.row_starts.sharding.is_fully_replicated
    starts, nnz = host(x.row_starts), host(x.nnz)
    shape = x.shape[: x.indices.shape[1]]
    assert (starts[0], starts[-1]) == (0, shape[0])
    for shard, rows in enumerate(np.split(host(x.indices), x.shards)):
        entries = rows[is_entry(rows, shape)]
        assert len(entries) == nnz[shard]
        assert np.all((entries[:, 0] >= starts[shard]) & (entries[:, 0] < starts[shard + 1]))
        if canonical:
            np.testing.assert_array_equal(rows[: len(entries)], union_indices(rows, shape=shape))
        np.testing.assert_array_equal(rows[len(entries) :], np.tile([shape], (len(rows) - len(entries), 1)))


def compile_for(function, *arguments):
    """The compiled program of a function, and what it communicates: a word for each collective."""
    compiled = jax.jit(function).lower(*arguments).compile()
    return compiled, re.findall(rf"\b({'|'.join(COLLECTIVES)})(?:-start)?\(", compiled.as_text())


def squares(data):
    return (data**2).sum()


def poisoned(values, shards):
    """Of which shards all values are NaN."""
    return [bool(np.isnan(part).all()) for part in np.split(host(values), shards)]
