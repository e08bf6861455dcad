"""One process of several, which `test_sharded_processes.py` starts: it makes its own rows, adds, and checks its part.

Arguments: the number of processes, which of them this is, the port of the first, and what to do.
"""

import os
import pickle
import sys

import jax
import numpy as np
import pytest
import scipy.sparse
from jax.sharding import AxisType

from jax_sparse_grad import sharded

SHAPE = (64, 20)
SHARDS = 8


def rows_of(seed, start, stop):
    """Rows of a skewed random matrix, each drawn by itself."""
    rows = []
    for row in range(start, stop):
        rng = np.random.default_rng([seed, row])
        columns = rng.choice(SHAPE[1], 12 if row < 8 else 2, replace=False)
        rows.append(scipy.sparse.coo_array((rng.integers(1, 9, len(columns)), (0 * columns, columns)), (1, SHAPE[1])))
    return scipy.sparse.vstack(rows, "csr", dtype=np.float32) if rows else scipy.sparse.csr_array((0, SHAPE[1]))


def load_all(mesh):
    """Two operands, of which every process makes its own rows only."""
    operands = []
    for seed in (0, 1):
        asked = []
        # That the first finds out: of equal length, both are served by the same programs.
        capacity = operands[0].capacity if operands else None

        def load(start, stop, seed=seed, asked=asked):
            asked.append((start, stop))
            return rows_of(seed, start, stop)

        operands.append(sharded.from_shards(load, SHAPE, mesh, "rows", capacity=capacity))
        assert len(asked) == SHARDS // jax.process_count(), asked
    return operands


def check_local(values, indices, dense):
    """The entries that this process holds are those of a dense array."""
    parts = list(zip(values.addressable_shards, indices.addressable_shards, strict=True))
    assert len(parts) == SHARDS // jax.process_count()
    for data, rows in parts:
        places = np.asarray(rows.data)
        entries = places[:, 0] < SHAPE[0]
        np.testing.assert_array_equal(np.asarray(data.data)[entries], dense[tuple(places[entries].T)])


def add_and_check(mesh):
    x, y = load_all(mesh)
    starts = sharded.balanced_row_starts([x, y])
    x, y = (sharded.repartition(each, starts) for each in (x, y))
    # Their rows are in order, and to promise so halves the time of compilation.
    total = sharded.add(x, y, assume_canonical=True)  # eager: all agree on its capacity

    @jax.jit
    def gradient(x, y):
        def loss(u, v):
            return (sharded.add(x.with_data(u), y.with_data(v), assume_canonical=True).data ** 2).sum()

        return jax.value_and_grad(loss, (0, 1))(x.data, y.data)

    loss, gradients = gradient(x, y)

    single = sum(rows_of(seed, 0, SHAPE[0]) for seed in (0, 1))
    assert loss == (single.data**2).sum()
    dense = single.toarray()
    per_shard = np.diff(single.indptr[starts])
    assert total.capacity == per_shard.max()
    for shard in total.nnz.addressable_shards:
        np.testing.assert_array_equal(shard.data, per_shard[shard.index])
    check_local(total.data, total.indices, dense)
    for operand, values in zip((x, y), gradients, strict=True):
        check_local(values, operand.indices, 2 * dense)

    # What is wrong anywhere raises everywhere.
    with pytest.raises(ValueError, match="`y` must be partitioned as `x`"):
        sharded.add(x, load_all(mesh)[1])
    with pytest.raises(
        ValueError, match="a `RowSharded` must lie in one process to be pickled, but this process holds only a part"
    ):
        pickle.dumps(x)
    with pytest.raises(ValueError, match=r"`capacity` must be at least .* in shard 0; got 50"):
        sharded.from_shards(lambda start, stop: rows_of(0, start, stop), SHAPE, mesh, "rows", capacity=50)

    def load(start, stop):
        if jax.process_index() == 1:
            raise OSError("the disk is gone")
        return rows_of(0, start, stop)

    message = "`load` must return the rows of all shards, but failed for shard 4 in another process"
    error = (OSError, "the disk is gone") if jax.process_index() == 1 else (ValueError, message)
    with pytest.raises(error[0], match=error[1]):
        sharded.from_shards(load, SHAPE, mesh, "rows", capacity=100)


def die(mesh):
    x, _ = load_all(mesh)
    if jax.process_index() == jax.process_count() - 1:
        os._exit(3)
    sharded.repartition(x)


def main(processes, process, port, what):
    jax.distributed.initialize(
        f"127.0.0.1:{port}",
        processes,
        process,
        initialization_timeout=60,
        heartbeat_timeout_seconds=10,
        shutdown_timeout_seconds=30,
    )
    mesh = jax.make_mesh((SHARDS,), ("rows",), axis_types=(AxisType.Auto,))
    {"add": add_and_check, "die": die}[what](mesh)
    print(f"process {process} has done what it should")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), sys.argv[4])
