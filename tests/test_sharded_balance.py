"""Where rows are cut: no cut is better, nothing dense is made, and what is sharded already is sampled where it lies."""

import itertools

import numpy as np
import pytest
import scipy.sparse

import jax_sparse_grad as jsg
from helpers.shards import make_mesh, random_matrix
from jax_sparse_grad import sharded
from jax_sparse_grad.sharded._balance import balance


def fullest(starts, counts):
    return max(counts[low:high].sum() for low, high in itertools.pairwise(starts))


@pytest.mark.parametrize("shards", [1, 2, 3, 5])
def test_no_cut_has_a_lighter_heaviest_range(rng, shards):
    n_rows = 7
    for _ in range(20):
        rows = rng.integers(0, n_rows, rng.integers(0, 12))
        weights = rng.integers(1, 5, len(rows))
        counts = np.bincount(rows, weights, n_rows)
        starts = balance(rows, weights, n_rows, shards)
        assert (starts[0], starts[-1], len(starts)) == (0, n_rows, shards + 1)
        assert np.all(np.diff(starts) >= 0)
        inner = itertools.combinations_with_replacement(range(n_rows + 1), shards - 1)
        assert fullest(starts, counts) == min(fullest((0, *cuts, n_rows), counts) for cuts in inner)


def test_the_entries_of_all_operands_count():
    first = scipy.sparse.coo_matrix((np.ones(4), ([0, 0, 0, 0], [0, 1, 2, 3])), shape=(4, 4))
    second = scipy.sparse.coo_matrix((np.ones(4), ([3, 3, 3, 3], [0, 1, 2, 3])), shape=(4, 4))
    assert sharded.balanced_row_starts(first, 2).tolist() == [0, 4, 4]
    starts = sharded.balanced_row_starts([first, second], 2)
    assert 0 < starts[1] <= 3


def test_power_law_rows_are_balanced_where_row_counts_are_not(rng):
    n_rows, shards = 100_000, 16
    rows = (n_rows * rng.random(400_000) ** 3).astype(np.int32)
    matrix = scipy.sparse.coo_matrix((np.ones(len(rows)), (rows, rows)), shape=(n_rows, n_rows))
    counts = np.bincount(rows, minlength=n_rows)
    even = fullest(np.arange(shards + 1) * n_rows // shards, counts)
    balanced = fullest(sharded.balanced_row_starts(matrix, shards), counts)
    heaviest = counts.max()
    assert even > 4 * balanced
    assert balanced <= len(rows) / shards + heaviest


def test_memory_grows_with_entries_not_with_rows():
    n_rows = 2**31 - 1
    rows = np.array([5, 1_000_000_000, 2_000_000_000], np.int32)
    matrix = scipy.sparse.coo_matrix((np.ones(3), (rows, rows)), shape=(n_rows, n_rows))
    starts = sharded.balanced_row_starts(matrix, 3)  # a count for each row would take 16 GB
    assert starts.tolist() == [0, 1_000_000_000, 2_000_000_000, n_rows]


def test_what_is_sharded_is_sampled_where_it_lies(rng):
    mesh, axis, shards = make_mesh()
    matrices = [random_matrix(rng, nnz, shape=(2000, 50)) for nnz in (6000, 3000)]
    even = np.arange(shards + 1) * 2000 // shards
    operands = [sharded.partition(x, mesh, axis, row_starts=even) for x in matrices]
    rows = np.concatenate([np.asarray(x.indices)[:, 0] for x in matrices])
    counts = np.bincount(rows, minlength=2000)
    exact = fullest(sharded.balanced_row_starts(matrices, shards), counts)
    sampled = fullest(sharded.balanced_row_starts(operands), counts)
    assert exact <= sampled <= 1.02 * exact
    assert fullest(even, counts) > 2 * sampled


def test_empty_operands():
    empty = scipy.sparse.coo_matrix((6, 5))
    starts = sharded.balanced_row_starts(empty, 4)
    assert (starts[0], starts[-1], len(starts)) == (0, 6, 5)
    mesh, axis, shards = make_mesh()
    starts = sharded.balanced_row_starts(sharded.partition(empty, mesh, axis))
    assert (starts[0], starts[-1], len(starts)) == (0, 6, shards + 1)


@pytest.mark.parametrize(
    ("operands", "shards", "error", "message"),
    [
        ([], 2, ValueError, r"`operands` must hold at least one operand"),
        ([np.eye(3)], 2, TypeError, r"`operands\[0\]` must be a BCOO, a BCSR or a SciPy matrix, got ndarray"),
        (scipy.sparse.eye_array(3), None, ValueError, r"`shards` must be a positive int if no operand is a"),
        (scipy.sparse.eye_array(3), 0, ValueError, r"`shards` must be a positive int if no operand is a"),
        (scipy.sparse.eye_array(3), 2.5, TypeError, r"`shards` must be an int or None, got 2.5"),
        (
            [scipy.sparse.eye_array(3), scipy.sparse.eye_array(4)],
            2,
            ValueError,
            r"`operands\[1\]` must have as many rows as the first; got 4 and 3",
        ),
    ],
)
def test_faults_are_named(operands, shards, error, message):
    with pytest.raises(error, match=message):
        jsg.sharded.balanced_row_starts(operands, shards)
