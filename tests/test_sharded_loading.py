"""From the host to the devices: whole matrices, shard by shard; what is refused; no memory of the caller is kept."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from jax.experimental.sparse import BCOO, CSR, bcoo_concatenate
from jax.sharding import AxisType
from scipy.sparse import coo_array

from helpers.matrices import as_bcsr
from helpers.samples import aligned
from helpers.shards import (
    EVEN,
    MESHES,
    SHAPE,
    as_bcoo,
    canonical,
    check_form,
    dense_of,
    host,
    make_mesh,
    random_matrix,
    spread,
)
from jax_sparse_grad import sharded


@pytest.fixture
def mesh():
    return make_mesh()[0]


@pytest.fixture
def matrix(rng):
    return random_matrix(rng, shuffled=True, padding=2)


class TestPartition:
    @pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
    @pytest.mark.parametrize("name", MESHES)
    def test_each_shard_holds_its_rows_in_order(self, matrix, name, axis_type):
        mesh, axis, shards = make_mesh(name, axis_type)
        x = sharded.partition(matrix, mesh, axis)
        assert (x.shards, x.shape, x.ndim) == (shards, SHAPE, 2)
        assert x.capacity == host(x.nnz).max()
        check_form(x, canonical=False)
        np.testing.assert_array_equal(dense_of(x), dense_of(matrix))
        for rows in np.split(host(x.indices), shards):
            np.testing.assert_array_equal(rows, rows[np.lexsort(rows.T[::-1])])
        assert host(x.nnz).max() < 2 * host(x.nnz).mean()
        assert f"shards={shards}" in repr(x)

    def test_it_is_a_bcoo_to_jax(self, matrix, mesh):
        x = sharded.partition(matrix, mesh, "rows")
        dense = dense_of(matrix)
        v = np.arange(SHAPE[1], dtype=np.float32)
        product, twice = jax.jit(lambda x, v: (x.matrix @ v, (x.matrix * 2).T.todense()))(x, v)
        np.testing.assert_allclose(product, dense @ v, rtol=1e-6)
        np.testing.assert_array_equal(twice, 2 * dense.T)

    def test_what_only_a_bcoo_has_is_pointed_to(self, matrix, mesh):
        x = sharded.partition(matrix, mesh, "rows")
        with pytest.raises(AttributeError, match=r"a `RowSharded` has no 'todense'; `x.matrix.todense` is that of"):
            x.todense()
        with pytest.raises(AttributeError, match=r"a `RowSharded` has no 'todens'$"):
            x.todens()
        assert not hasattr(x, "todense")
        v = np.ones(SHAPE[1], np.float32)
        for call in (lambda: x @ v, lambda: v @ x, lambda: x @ jnp.asarray(v), lambda: x + x, lambda: 2 * x):
            with pytest.raises(TypeError, match=r"`jsg.sharded.add\(x, y\)`.*`x.matrix @ v`.*`x.with_data\("):
                call()

    def test_a_bcsr_and_scipy_matrices_are_taken_too(self, matrix, mesh):
        dense = dense_of(matrix)
        for operand in (as_bcsr(matrix), canonical(matrix).tocoo(), canonical(matrix).tocsc()):
            np.testing.assert_array_equal(dense_of(sharded.partition(operand, mesh, "rows")), dense)

    @pytest.mark.parametrize("index_dtype", [np.int8, np.uint16])
    def test_hybrid_values_and_narrow_indices(self, rng, mesh, index_dtype):
        indices = rng.integers(0, 9, (20, 1)).astype(index_dtype)
        x = sharded.partition(as_bcoo(indices, rng.random((20, 3), np.float32), (9, 3)), mesh, "rows")
        assert (x.indices.dtype, x.row_starts.dtype, x.data.shape[1:]) == (index_dtype, index_dtype, (3,))
        check_form(x, canonical=False)

    def test_rows_beyond_the_shape_are_padding_as_jax_makes_it(self, matrix, mesh):
        padded = random_matrix(np.random.default_rng(1), 60, padding=3)
        both = bcoo_concatenate([matrix, padded], dimension=0)
        shape = (2 * SHAPE[0], SHAPE[1])
        beyond = np.any(host(both.indices) >= shape, axis=1)
        assert np.any(beyond & np.any(host(both.indices) < shape, axis=1))  # in one dimension only
        x = sharded.partition(both, mesh, "rows", row_starts=sharded.balanced_row_starts(both, 8))
        check_form(x, canonical=False)
        np.testing.assert_array_equal(dense_of(x), np.concatenate([dense_of(matrix), dense_of(padded)]))
        assert host(x.nnz).sum() == np.sum(~beyond)

    def test_what_is_closed_over_is_spread_while_jax_traces(self, matrix, mesh):
        x = sharded.partition(matrix, mesh, "rows")
        values = jax.jit(lambda data: data + sharded.partition(matrix, mesh, "rows").data)(x.data)
        np.testing.assert_array_equal(host(values), 2 * host(x.data))

    def test_fewer_rows_than_shards_and_no_entries_at_all(self, mesh):
        few = scipy.sparse.eye_array(3, 4)
        check_form(sharded.partition(few, mesh, "rows"))
        none = sharded.partition(coo_array((5, 4)), mesh, "rows")
        assert (none.capacity, host(none.nnz).tolist()) == (1, [0] * 8)
        check_form(none)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"mesh": None}, TypeError, "`mesh` must be a `jax.sharding.Mesh`, got NoneType"),
            ({"axis": 0}, TypeError, "`axis` must be the name of a mesh axis, or a tuple of names; got 0"),
            ({"axis": "x"}, ValueError, r"`axis` must name axes of the mesh, which are \('rows',\); got 'x'"),
            ({"axis": ("rows", "rows")}, ValueError, "`axis` must name axes of the mesh"),
            ({"capacity": 3}, ValueError, r"`capacity` must be at least \d+, the number of entries in shard \d; got 3"),
            ({"capacity": 0}, ValueError, "`capacity` must be positive, got 0"),
            ({"capacity": 1.5}, TypeError, "`capacity` must be an int or None, got 1.5"),
            ({"row_starts": [0, 40]}, ValueError, r"`row_starts` must have shape \(9,\), .*; got \(2,\)"),
            ({"row_starts": np.arange(9)}, ValueError, "`row_starts` must ascend from 0 to 40, .*; got"),
            ({"row_starts": np.linspace(0, 40, 9)}, TypeError, "`row_starts` must be integers, got float64"),
            ({"operand": np.eye(3)}, TypeError, "`operand` must be a BCOO, .*, got ndarray; `BCOO.fromdense` converts"),
            ({"operand": CSR.fromdense(np.eye(3))}, TypeError, r".*, got CSR; `BCOO.fromdense\(x.todense\(\)\)` conv"),
        ],
    )
    def test_faults_are_named(self, matrix, mesh, arguments, error, message):
        arguments = {"operand": matrix, "mesh": mesh, "axis": "rows"} | arguments
        with pytest.raises(error, match=message):
            sharded.partition(**arguments)

    def test_faulty_operands_are_named(self, matrix, mesh):
        indices = host(matrix.indices).copy()
        indices[5] = 3, -1
        with pytest.raises(ValueError, match=r"`operand.indices` must not be negative; row 5 is \[ 3 -1\]"):
            sharded.partition(as_bcoo(indices, matrix.data, SHAPE), mesh, "rows")
        x = sharded.partition(matrix, mesh, "rows")
        with pytest.raises(TypeError, match="`repartition` moves its rows"):
            sharded.partition(x, mesh, "rows")
        with pytest.raises(TypeError, match="`operand` must be concrete, got a traced array"):
            jax.jit(lambda data: sharded.partition(as_bcoo(matrix.indices, data, SHAPE), mesh, "rows"))(matrix.data)
        batched = as_bcoo(matrix.indices[None], matrix.data[None], (1, *SHAPE))
        with pytest.raises(ValueError, match="`operand` must have n_batch 0 and rows; got n_batch 1"):
            sharded.partition(batched, mesh, "rows")
        large = coo_array((np.ones(1), ([2**31], [0])), shape=(2**31 + 1, 1))
        with pytest.raises(ValueError, match=r"`operand.shape` must not exceed 2147483647.*use uint32 indices"):
            sharded.partition(large, mesh, "rows")
        wide = coo_array((np.array([2**40]), ([0], [0])), shape=(1, 1))
        with pytest.raises(ValueError, match=r"`operand.data` must fit int32, got .*1099511627776"):
            sharded.partition(wide, mesh, "rows")

    def test_rows_beyond_int32_with_x64(self, mesh, x64):
        rows = np.array([1, 2**32, 2**33 - 1])
        matrix = coo_array((np.array([1, 2, 2**40]), (rows, [0, 1, 2])), shape=(2**33, 3))
        x = sharded.partition(matrix, mesh, "rows")
        assert (x.indices.dtype, x.row_starts.dtype, x.data.dtype) == (np.int64,) * 3
        total = sharded.add(x, x, assume_canonical=True)
        values = host(total.data).reshape(8, -1)[host(total.nnz) > 0]
        assert values.ravel().tolist() == [2, 4, 2**41]


class TestFromShards:
    @pytest.mark.parametrize(
        ("name", "capacity"), [("one axis", None), ("beside another axis", 90), ("two axes", None)]
    )
    def test_it_gives_what_partition_gives(self, matrix, name, capacity):
        mesh, axis, shards = make_mesh(name)
        rows = canonical(matrix)
        starts = sharded.balanced_row_starts(rows, shards)
        asked = []

        def load(start, stop):
            asked.append((start, stop))
            return rows[start:stop]

        x = sharded.from_shards(load, SHAPE, mesh, axis, row_starts=starts, capacity=capacity)
        whole = sharded.partition(rows, mesh, axis, row_starts=starts, capacity=capacity)
        for name in ("data", "indices", "row_starts", "nnz"):
            np.testing.assert_array_equal(host(getattr(x, name)), host(getattr(whole, name)))
        check_form(x, canonical=False)
        # Each shard once, however many devices hold it.
        assert asked == list(itertools.pairwise(starts))

    def test_bcoo_shards_of_hybrid_values_are_cut_evenly_by_default(self, rng, mesh):
        table = rng.random((24, 3), np.float32)

        def load(start, stop):
            return as_bcoo(
                np.arange(stop - start, dtype=np.int32)[::-1, None].copy(), table[start:stop][::-1], (stop - start, 3)
            )

        x = sharded.from_shards(load, (24, 3), mesh, "rows")
        np.testing.assert_array_equal(dense_of(x), table)
        assert host(x.row_starts).tolist() == [3 * shard for shard in range(9)]

    @pytest.mark.parametrize(
        ("load", "error", "message"),
        [
            (lambda start, stop: coo_array((stop, 30)), ValueError, r"`load\(5, 10\)` must have shape \(5, 30\)"),
            (lambda start, stop: np.zeros((5, 30)), TypeError, r"`load\(0, 5\)` must be a BCOO, a BCSR or a SciPy"),
            (
                lambda start, stop: coo_array((5, 30), dtype=np.float32 if start else np.int32),
                ValueError,
                "`load` must return all shards in the same dtypes .*; shard 1 differs from shard 0",
            ),
            (
                coo_array((3, 3)),
                TypeError,
                "`load` must be a function .*, got coo_array; `partition` takes a whole",
            ),
        ],
    )
    @pytest.mark.parametrize("capacity", [None, 9])
    def test_faults_are_named(self, mesh, load, error, message, capacity):
        with pytest.raises(error, match=message):
            sharded.from_shards(load, SHAPE, mesh, "rows", capacity=capacity)

    def test_an_exception_of_the_loader_passes_through(self, mesh):
        with pytest.raises(FileNotFoundError, match="shard-0"):
            sharded.from_shards(lambda start, stop: scipy.sparse.load_npz(f"shard-{start}.npz"), SHAPE, mesh, "rows")


def test_other_values_on_the_same_pattern(matrix, mesh):
    x = sharded.partition(matrix, mesh, "rows")
    hybrid = x.with_data(np.stack([host(x.data), 2 * host(x.data)], axis=1))
    assert hybrid.shape == (*SHAPE, 2)
    np.testing.assert_array_equal(dense_of(hybrid)[..., 1], 2 * dense_of(x))
    with pytest.raises(ValueError, match="`data` must have one row for each row of `indices`"):
        x.with_data(x.data[:-1])


def test_it_passes_through_jit_as_a_tree(matrix, mesh):
    x = sharded.partition(matrix, mesh, "rows")
    shardings = jax.tree.map(lambda leaf: leaf.sharding, x)
    y = jax.jit(lambda x: x.with_data(3 * x.data), in_shardings=(shardings,), out_shardings=shardings)(x)
    check_form(y, canonical=False)
    np.testing.assert_array_equal(dense_of(y), 3 * dense_of(x))


def overwrite(*arrays):
    for array in arrays:
        array[...] = 3


@pytest.mark.parametrize("form", [BCOO, coo_array])
@pytest.mark.parametrize("capacity", [None, 5])
def test_what_the_caller_owns_may_be_overwritten(mesh, form, capacity):
    data, places, starts = aligned(np.ones(40, np.float32)), np.arange(40, dtype=np.int32), aligned(EVEN)
    if form is BCOO:
        arrays = data, aligned(np.stack([places, places], axis=1))
    else:
        arrays = data, (aligned(places), aligned(places))
    x = sharded.partition(form(arrays, shape=(40, 40)), mesh, "rows", row_starts=starts, capacity=capacity)
    overwrite(*jax.tree.leaves(arrays), starts)
    check_form(x)
    np.testing.assert_array_equal(dense_of(x), np.eye(40))


@pytest.mark.parametrize("capacity", [None, 5])
def test_a_loader_may_use_one_buffer(mesh, capacity):
    places = np.arange(5, dtype=np.int32)
    buffer = coo_array((aligned(np.ones(5, np.float32)), (aligned(places), aligned(places))), (5, 40))

    def load(start, _):
        buffer.data[...] = start
        return buffer

    x = sharded.from_shards(load, (40, 40), mesh, "rows", capacity=capacity)
    overwrite(buffer.data, *buffer.coords)
    check_form(x)
    np.testing.assert_array_equal(dense_of(x).sum(axis=1), np.arange(40) // 5 * 5)


@pytest.mark.slow
def test_strict_promotion_no_implicit_transfers_and_another_default_device(rng, mesh):
    first, second = (canonical(random_matrix(rng, nnz)) for nnz in (90, 60))
    device = jax.default_device(jax.devices()[3])
    with jax.numpy_dtype_promotion("strict"), jax.transfer_guard("disallow"), device:
        x = sharded.from_shards(lambda start, stop: first[start:stop], SHAPE, mesh, "rows")
        y = sharded.partition(second, mesh, "rows", row_starts=EVEN)
        starts = sharded.balanced_row_starts([x, y])
        x, y = (sharded.repartition(each, starts) for each in (x, y))
        total = sharded.add(x, y, assume_canonical=True)
        (gradient,) = jax.vjp(lambda u: sharded.add(x.with_data(u), y, assume_canonical=True).data, x.data)[1](
            total.data
        )
    check_form(total)
    np.testing.assert_array_equal(dense_of(total), (first + second).toarray())
    np.testing.assert_array_equal(dense_of(x.with_data(gradient)), (first + second).toarray() * (first.toarray() != 0))


def test_a_default_device_by_name(rng):
    with jax.default_device("cpu"):
        (x,) = spread([canonical(random_matrix(rng, 60))])
        np.testing.assert_array_equal(dense_of(sharded.add(x, x, assume_canonical=True)), 2 * dense_of(x))
