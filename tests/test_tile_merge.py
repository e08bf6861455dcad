"""The merge in tiles against a plain one."""

from functools import partial

import jax
import numpy as np
import pytest

from jax_sparse_grad import _tile_merge
from jax_sparse_grad._primitives import NONE
from samples import ravel

SIZES = (700, 900)  # of the arrays, so that one compilation serves all data; several coarse tiles
NSE = 1500
SMALL, LARGE = (60, 70), (2**31 - 1, 2**31 - 1)  # keys of one word and of two


def merge_plainly(a, b, nse):
    """The union of two sorted lists of tuples, and where its first `nse` come from: one step at a time."""
    sources_a, sources_b, i, j = [], [], 0, 0
    while i < len(a) or j < len(b):
        from_a = j == len(b) or (i < len(a) and a[i] <= b[j])
        from_b = i == len(a) or (j < len(b) and b[j] <= a[i])
        sources_a.append(i if from_a else None)
        sources_b.append(j if from_b else None)
        i, j = i + from_a, j + from_b
    return len(sources_a), (sources_a[:nse], sources_b[:nse])


def padded(rows, size, shape):
    return np.concatenate([rows, np.tile(np.array([shape], np.int32), (size - len(rows), 1))]).astype(np.int32)


def rows_of(cells, shape):
    """Cells of a 60 x 70 corner, spread over a large shape so that either word decides."""
    rows = np.stack(np.unravel_index(np.asarray(cells, int), SMALL), axis=1)
    return rows if shape == SMALL else rows * 2**24


@partial(jax.jit, static_argnums=(2, 3))
def run(a, b, shape, nse):
    nnz, bitmaps = _tile_merge.merge(ravel(a, shape), ravel(b, shape), nse)
    sizes = a.shape[0], b.shape[0]
    return (
        nnz,
        [_tile_merge.sources_of(bitmap, nse) for bitmap in bitmaps],
        [_tile_merge.positions_of(bitmap, size, nse) for bitmap, size in zip(bitmaps, sizes, strict=True)],
        _tile_merge.select_rows(bitmaps, a, b, shape, nse),
    )


def check(a_cells, b_cells, shape, sizes=SIZES, nse=NSE):
    lists = [rows_of(cells, shape) for cells in (a_cells, b_cells)]
    a, b = (padded(rows, size, shape) for rows, size in zip(lists, sizes, strict=True))
    nnz, sources, positions, rows = run(a, b, shape, nse)
    expected_nnz, expected = merge_plainly(*([tuple(row) for row in rows.tolist()] for rows in lists), nse)
    assert int(nnz) == expected_nnz
    for got, slots_of, wanted, size in zip(sources, positions, expected, sizes, strict=True):
        wanted = [NONE if source is None else source for source in wanted]
        np.testing.assert_array_equal(got, wanted + [NONE] * (nse - len(wanted)))
        inverse = np.full(size, NONE)
        inverse[[source for source in wanted if source < size]] = [k for k, s in enumerate(wanted) if s < size]
        np.testing.assert_array_equal(slots_of, inverse)
    union = np.unique(np.concatenate(lists), axis=0)[:nse]
    np.testing.assert_array_equal(rows, padded(union, nse, shape))


ALL = np.arange(60 * 70)
PATTERNS = {
    "random": lambda rng: (rng.choice(ALL, 600, False), rng.choice(ALL, 800, False)),
    "dense, half shared": lambda rng: (rng.choice(1000, 650, False), rng.choice(1000, 850, False)),
    "all shared": lambda rng: (ALL[:700], ALL[:700]),
    "one inside the other": lambda rng: (ALL[100:200], ALL[:900]),
    "a before b": lambda rng: (ALL[:700], ALL[700:1600]),
    "b before a": lambda rng: (ALL[900:1600], ALL[:900]),
    "a in a gap of b": lambda rng: (ALL[450:1150], np.concatenate([ALL[:450], ALL[1150:1600]])),
    "runs": lambda rng: (ALL[ALL // 64 % 2 == 0][:700], ALL[ALL // 64 % 3 > 0][:900]),
    "alternating": lambda rng: (ALL[:1400:2], ALL[1:1401:2]),
    "every third shared": lambda rng: (ALL[:1400:2], ALL[:2700:3]),
    "full lists": lambda rng: (rng.choice(ALL, 700, False), rng.choice(ALL, 900, False)),
    "single": lambda rng: ([7], [9]),
    "a empty": lambda rng: ([], ALL[:33]),
    "b empty": lambda rng: (ALL[:33], []),
    "both empty": lambda rng: ([], []),
}


@pytest.mark.parametrize("shape", [SMALL, pytest.param(LARGE, marks=pytest.mark.slow)])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_merge_agrees_with_the_plain_one(rng, pattern, shape):
    a, b = PATTERNS[pattern](rng)
    check(np.sort(a), np.sort(b), shape)


@pytest.mark.slow(but="97-sizes4")
@pytest.mark.parametrize("sizes", [(0, 0), (0, 5), (5, 0), (1, 1), (31, 33)])
@pytest.mark.parametrize("nse", [0, 1, 64, 97])
def test_arrays_of_any_length_and_slots_of_any_number(rng, sizes, nse):
    a, b = (np.sort(rng.choice(80, size, False)) for size in sizes)
    check(a, b, SMALL, sizes, nse)


def test_a_batch_of_merges(rng):
    lists = [np.stack([padded(rows_of(np.sort(rng.choice(200, 50, False)), SMALL), 60, SMALL)] * 2) for _ in range(2)]
    lists[0][1] = padded(rows_of(np.arange(60), SMALL), 60, SMALL)
    batched = jax.vmap(run, (0, 0, None, None))(*lists, SMALL, 120)
    for k in range(2):
        one = run(lists[0][k], lists[1][k], SMALL, 120)
        jax.tree.map(lambda got, wanted, k=k: np.testing.assert_array_equal(np.asarray(got)[k], wanted), batched, one)


def test_positions_of_many_slots_are_scattered_in_blocks(rng, monkeypatch):
    monkeypatch.setattr(_tile_merge, "BLOCK", 12)  # words, which do not divide evenly into blocks
    a, b = np.sort(rng.choice(ALL, 600, False)), np.sort(rng.choice(ALL, 800, False))
    check(a, b, SMALL, nse=NSE + 1)


@pytest.mark.slow(but="100")
@pytest.mark.parametrize("size", [0, 1, 32, 100, 5000])
def test_flags_before_each_are_counted(rng, size):
    flags = rng.random(size) < 0.3
    np.testing.assert_array_equal(jax.jit(_tile_merge.count_before)(flags), np.cumsum(flags) - flags)
