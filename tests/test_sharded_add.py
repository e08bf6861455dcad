"""Sums of row-sharded operands and their gradients against dense numpy and a single device; what they communicate."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jax_sparse_grad as jsg
from helpers.matrices import at_rows, is_entry
from helpers.shards import (
    CASES,
    EVEN,
    FORM,
    SHAPE,
    as_bcoo,
    canonical,
    check_form,
    compile_for,
    dense_of,
    host,
    make_mesh,
    poisoned,
    random_matrix,
    spread,
    squares,
)
from jax_sparse_grad import sharded

# jax 0.8 fails to transpose a concatenation under shard_map twice.
SECOND_ORDER = pytest.mark.skipif(jax.__version_info__ < (0, 9), reason="fails within jax 0.8")


@pytest.fixture
def matrices(rng):
    return [random_matrix(rng, nnz, **FORM) for nnz in (150, 90, 60)]


@pytest.fixture
def pair(matrices):
    return spread(matrices[:2])


@pytest.fixture
def in_order(matrices):
    """The same pair, sorted and without duplicates."""
    return spread([canonical(x) for x in matrices[:2]])


@pytest.fixture
def elsewhere(matrices):
    """The first operand, cut at other rows than `pair`."""
    return spread(matrices[:1], row_starts=EVEN)[0]


add_in_order = partial(sharded.add, assume_canonical=True)


def add_by_plan(x, y, **arguments):
    plan = sharded.plan_sparse_add(x, y, assume_canonical=True, **arguments)
    return plan.with_data(plan(x.data, y.data))


@jax.jit
def add_and_pull(x, y):
    """The sum, and the gradient of the sum of its cubes with respect to both operands."""

    def add(u, v):
        total = sharded.add(x.with_data(u), y.with_data(v))
        return total.data, total

    data, pull, total = jax.vjp(add, x.data, y.data, has_aux=True)
    return total, pull(3 * data**2)


class TestSum:
    @pytest.mark.parametrize(
        ("name", "axis_type"),
        [CASES[1], *(pytest.param(*case, marks=pytest.mark.slow) for case in CASES[2:])],
        ids=str,
    )
    def test_it_and_its_gradient_are_those_of_one_device_and_communicate_nothing(self, matrices, name, axis_type):
        x, y = spread(matrices[:2], name, axis_type)
        compiled, collectives = compile_for(add_and_pull, x, y)
        assert collectives == []
        total, gradients = compiled(x, y)
        expected = dense_of(matrices[0]) + dense_of(matrices[1])
        np.testing.assert_array_equal(dense_of(total), expected)
        check_form(total)
        assert total.capacity == x.capacity + y.capacity
        for operand, gradient in zip((x, y), gradients, strict=True):
            assert gradient.sharding.is_equivalent_to(operand.data.sharding, 1)
            np.testing.assert_array_equal(host(gradient), at_rows(3 * expected**2, host(operand.indices), SHAPE))

    def test_dtypes_promote_and_each_gradient_comes_in_its_own(self, rng):
        drawn = [random_matrix(rng, 60, dtype=dtype) for dtype in (jnp.bfloat16, np.float32)]
        first, second = (
            as_bcoo(x.indices.astype(dtype), x.data, SHAPE) for x, dtype in zip(drawn, ("i1", "u1"), strict=True)
        )
        total, gradients = add_and_pull(*spread([first, second]))
        assert (total.data.dtype, total.indices.dtype) == (np.float32, np.int16)
        np.testing.assert_array_equal(dense_of(total), dense_of(first).astype(np.float32) + dense_of(second))
        assert [gradient.dtype for gradient in gradients] == [jnp.bfloat16, np.float32]

    def test_three_dimensions_and_hybrid_values(self, rng):
        matrices, shape = [], (12, 5, 6)
        for _ in range(2):
            indices = np.stack([rng.integers(0, size, 50) for size in shape], axis=1).astype(np.int32)
            matrices.append(as_bcoo(indices, rng.integers(-9, 9, (50, 3)).astype(np.float32), (*shape, 3)))
        total = sharded.add(*spread(matrices))
        assert total.shape == (*shape, 3)
        np.testing.assert_array_equal(dense_of(total), dense_of(matrices[0]) + dense_of(matrices[1]))
        check_form(total)

    def test_rows_beyond_one_word_of_keys(self):
        size = 2**31 - 1
        rows = np.array([0, 7, size - 1], np.int32)
        matrix = scipy.sparse.coo_array((np.ones(3, np.float32), (rows, rows[::-1])), shape=(size, size))
        total = add_in_order(*spread([matrix, matrix]))
        entries = host(total.nnz).astype(bool)
        assert host(total.data).reshape(total.shards, -1)[entries].ravel().tolist() == [2, 2, 2]

    @pytest.mark.slow
    def test_nothing(self):
        (none,) = spread([scipy.sparse.coo_array(SHAPE, dtype=np.float32)], capacity=None)
        plan = sharded.plan_sparse_add(none, none)
        assert host(plan(none.data, none.data)).tolist() == [0] * 8
        assert sharded.repartition(none, EVEN).capacity == sharded.add(none, none).capacity == 1


class TestWhatTheUnshardedFunctionsHave:
    """Each result and gradient is that of `jax_sparse_grad` and of numpy."""

    def test_subtract(self, matrices, pair):
        x, y = pair

        @jax.jit
        def subtract_and_pull(u, v):
            def loss(u, v):
                closed_over = sharded.subtract(x.with_data(u), y.with_data(v))
                return squares(closed_over.data), closed_over

            return jax.grad(loss, (0, 1), has_aux=True)(u, v)

        gradients, closed_over = subtract_and_pull(x.data, y.data)
        single = jsg.subtract(*matrices[:2])
        for difference in (sharded.subtract(x, y), closed_over):
            check_form(difference)
            assert difference.capacity == host(difference.nnz).max()  # no more than needed: indices are concrete
            entries = is_entry(host(difference.indices), SHAPE)
            np.testing.assert_array_equal(host(difference.data)[entries], single.data)
        for operand, sign, gradient in zip(pair, (2, -2), gradients, strict=True):
            expected = at_rows(dense_of(closed_over), host(operand.indices), SHAPE)
            np.testing.assert_array_equal(gradient, sign * expected)

    @pytest.mark.parametrize("axis_type", [AxisType.Auto, pytest.param(AxisType.Explicit, marks=pytest.mark.slow)])
    def test_weights_communicate_nothing_but_their_gradient(self, matrices, axis_type):
        operands, weights = spread(matrices, axis_type=axis_type), jnp.array([2, -0.5, 3])

        def add_and_pull(operands, weights):
            def add(weights):
                total = sharded.add_n(operands, weights=weights)
                return total.data, total

            data, pull, total = jax.vjp(add, weights, has_aux=True)
            return total, pull(2 * data)

        compiled, collectives = compile_for(add_and_pull, operands, weights)
        assert collectives == ["all-reduce"]
        total, (gradient,) = compiled(operands, weights)
        expected = sum(weight * dense_of(x) for weight, x in zip(host(weights), matrices, strict=True))
        np.testing.assert_array_equal(dense_of(total), expected)
        check_form(total)
        np.testing.assert_allclose(gradient, [2 * (expected * dense_of(x)).sum() for x in matrices], rtol=1e-5)

    def test_weights_and_signs_of_dense_operands(self, matrices, pair):
        x, y = pair
        dense = np.full(SHAPE, 3, np.float32)
        total = sharded.add_n([x, dense, y], weights=[2, 3, -1])
        np.testing.assert_array_equal(total, 2 * dense_of(matrices[0]) + 9 - dense_of(matrices[1]))
        first, second = jax.jit(lambda x: (sharded.subtract(dense, x), sharded.subtract(x, dense)))(x)
        np.testing.assert_array_equal(first, 3 - dense_of(x))
        np.testing.assert_array_equal(second, dense_of(x) - 3)

    def test_faulty_weights_are_named(self, pair):
        with pytest.raises(ValueError, match="`weights` must hold one scalar for each of the 2 operands, got 1"):
            sharded.add_n(pair, weights=[1])

    @pytest.mark.parametrize("remove_zeros", [False, True])
    def test_sum_duplicates(self, matrices, remove_zeros):
        values = host(matrices[0].data).copy()
        values[::3] = 0
        matrix = as_bcoo(matrices[0].indices, values, SHAPE)
        (x,) = spread([matrix])
        single = jsg.sum_duplicates(matrix, remove_zeros=remove_zeros)
        total = sharded.sum_duplicates(x, remove_zeros=remove_zeros)
        check_form(total)
        entries = is_entry(host(total.indices), SHAPE)
        np.testing.assert_array_equal(host(total.indices)[entries], single.indices)
        np.testing.assert_array_equal(host(total.data)[entries], single.data)
        if remove_zeros:
            remove = partial(sharded.sum_duplicates, remove_zeros=True)
            gradient = jax.jit(jax.grad(lambda u, x: squares(remove(x.with_data(u)).data)))(x.data, x)
            expected = 2 * at_rows(dense_of(x), host(x.indices), SHAPE)
            np.testing.assert_array_equal(gradient, np.where(host(x.data) == 0, 0, expected))

    def test_sum_duplicates_of_something_else(self, matrices):
        with pytest.raises(TypeError, match="`x` must be a `RowSharded`, got BCOO; `partition` makes one"):
            sharded.sum_duplicates(matrices[0])


class TestTransformations:
    @pytest.mark.slow
    def test_forward_over_reverse_of_traced_patterns(self, matrices, pair):
        @jax.jit
        def second(scale, x, y):
            return jax.hessian(lambda s: squares(sharded.add(x.with_data(s * x.data), y).data))(scale)

        np.testing.assert_allclose(second(1.0, *pair), 2 * squares(dense_of(matrices[0])), rtol=1e-5)

    @pytest.mark.slow
    def test_vmap_over_values(self, in_order):
        x, y = in_order
        batch = jax.vmap(lambda s: add_in_order(x.with_data(s * x.data), y).data)(jnp.arange(3.0))
        total = add_in_order(x, y)
        np.testing.assert_array_equal(batch[1], total.data)
        np.testing.assert_array_equal(batch[0] + batch[2], 2 * total.data)

    def test_a_collective_would_be_seen(self, pair):
        assert compile_for(lambda x: x.data.sum(), pair[0])[1] == ["all-reduce"]

    @SECOND_ORDER
    def test_second_order_communicates_nothing(self, in_order):
        x, y = in_order

        def first(u, x, y):
            return jax.vjp(lambda u: add_in_order(x.with_data(u), y).data ** 3, u)[1](jnp.ones_like(u, shape=nse))[0]

        nse = (x.capacity + y.capacity) * x.shards
        ones = jax.device_put(jnp.ones(len(x.data)), x.data.sharding)
        _, collectives = compile_for(lambda u, x, y: jax.vjp(lambda u: first(u, x, y), u)[1](ones), x.data, x, y)
        assert collectives == []

    def test_checkify_does_not_look_into_sums_and_does_not_disturb_them(self, in_order):
        compiled, collectives = compile_for(checkify.checkify(partial(add_in_order, capacity=1)), *in_order)
        assert collectives == []
        error, total = compiled(*in_order)
        assert error.get() is None
        assert any(poisoned(total.data, total.shards))


class TestDense:
    def test_a_replicated_operand_gives_a_replicated_sum(self, matrices):
        x, y = spread(matrices[:2], "beside another axis")
        total = sharded.add_n([x, np.full(SHAPE, 2, np.float32), y])
        assert total.sharding.is_fully_replicated
        np.testing.assert_array_equal(total, dense_of(matrices[0]) + dense_of(matrices[1]) + 2)

    def test_a_list_and_an_array_in_a_wrapper_are_dense_operands(self, matrices, pair):
        class Parameter:
            def __jax_array__(self):
                return jnp.ones(SHAPE)

        for dense in (np.ones(SHAPE).tolist(), Parameter()):
            np.testing.assert_array_equal(sharded.add(pair[0], dense), dense_of(matrices[0]) + 1)

    def test_operands_may_be_cut_differently(self, matrices, pair, elsewhere):
        total = sharded.add_n([elsewhere, np.zeros(SHAPE, np.float32), pair[1]])
        np.testing.assert_array_equal(total, dense_of(matrices[0]) + dense_of(matrices[1]))

    def test_the_sum_takes_one_all_reduce_and_its_gradient_none(self, matrices, pair):
        x, _ = pair
        dense = jax.device_put(np.full(SHAPE, 2, np.float32), NamedSharding(x.mesh, PartitionSpec()))

        def add_and_pull(x, dense, cotangent):
            total, pull = jax.vjp(lambda u, d: sharded.add(d, x.with_data(u)), x.data, dense)
            return total, pull(cotangent)

        compiled, collectives = compile_for(add_and_pull, x, dense, 3 * dense)
        assert collectives == ["all-reduce"]
        total, (by_values, by_dense) = compiled(x, dense, 3 * dense)
        assert total.sharding.is_fully_replicated
        np.testing.assert_array_equal(total, dense_of(matrices[0]) + 2)
        np.testing.assert_array_equal(by_values, at_rows(host(3 * dense), host(x.indices), SHAPE))
        np.testing.assert_array_equal(by_dense, 3 * dense)


@pytest.mark.slow
def test_a_scan_carries_a_sum_that_starts_with_nothing(matrices):
    x, y = spread([canonical(x) for x in matrices[:2]])
    (nothing,) = spread([jsg.empty(SHAPE, 0, np.float32)], row_starts=x.row_starts, capacity=100)

    @jax.jit
    def accumulate(scales, y):
        def loss(scales):
            def add(total, scale):
                return add_in_order(total, y.with_data(scale * y.data), capacity=total.capacity), None

            total = jax.lax.scan(add, nothing, scales)[0]
            return squares(total.data), total

        return jax.grad(loss, has_aux=True)(scales)

    gradient, total = accumulate(jnp.arange(1.0, 4.0), y)
    np.testing.assert_array_equal(dense_of(total), 6 * dense_of(matrices[1]))
    np.testing.assert_allclose(gradient, [12 * squares(dense_of(matrices[1]))] * 3, rtol=1e-5)


def test_a_scan_on_every_device_starts_from_an_empty_matrix_that_varies():
    mesh = make_mesh()[0]
    vary = partial(jax.lax.pcast, to="varying") if hasattr(jax.lax, "pcast") else jax.lax.pvary

    def accumulate(rows):
        def step(total, row):
            entry = as_bcoo(row, jnp.ones_like(row[:, 0], np.float32), total.shape)
            return jsg.add(total, entry, nse=total.nse, assume_canonical=True), None

        total, _ = jax.lax.scan(step, vary(jsg.empty((9,), 5, np.float32), ("rows",)), rows)
        return jax.lax.psum(total.todense(), "rows")

    rows = np.arange(32, dtype=np.int32).reshape(32, 1, 1) % 9
    spec = PartitionSpec("rows")
    summed = jax.jit(jax.shard_map(accumulate, mesh=mesh, in_specs=spec, out_specs=PartitionSpec()))(rows)
    np.testing.assert_array_equal(summed, np.bincount(rows.ravel()))


class TestFaults:
    def test_operands_cut_differently(self, pair, elsewhere):
        for function in (sharded.add, lambda x, y: sharded.add_n([y, x]), sharded.plan_sparse_add):
            with pytest.raises(ValueError, match=r"must be partitioned as .*; its row_starts are \[.*\], not \[.*\]"):
                function(elsewhere, pair[1])
        assert np.all(np.isnan(add_and_pull(elsewhere, pair[1])[0].data))

    def test_rows_in_another_shard(self, pair):
        x, y = pair
        row = host(x.row_starts)[-2]  # the first of the last shard
        indices = host(x.indices).copy()
        indices[1] = row, 0
        bad = dataclasses.replace(x, indices=jax.device_put(indices, x.indices.sharding))
        message = (
            rf"`x.indices` must lie in .* and in shard 0 have rows 0 ... \d+ - 1 .*; entry 1 of shard 0 is \[{row}  0\]"
        )
        with pytest.raises(ValueError, match=message):
            sharded.add(bad, y)
        total, (gradient, _) = add_and_pull(bad, y)
        assert poisoned(total.data, 8) == [True] + [False] * 7
        assert [bool(np.isnan(part).any()) for part in np.split(host(gradient), 8)] == [True] + [False] * 7

    def test_indices_outside_the_shape(self, pair):
        x, y = pair
        indices = host(x.indices).copy()
        indices[1, 1] = -1
        bad = dataclasses.replace(x, indices=jax.device_put(indices, x.indices.sharding))
        with pytest.raises(ValueError, match=r"`x.indices` must lie in "):
            sharded.add(bad, y)
        assert not np.any(np.isnan(add_and_pull(bad, y)[0].data))  # counts as padding

    @pytest.mark.parametrize("add", [add_in_order, pytest.param(add_by_plan, marks=pytest.mark.slow)])
    def test_overflow_poisons_its_shard_and_names_it(self, in_order, add):
        exact = host(add_in_order(*in_order).nnz)
        capacity = int(exact.max()) - 1
        with pytest.raises(
            ValueError, match=f"`capacity` must be at least {exact.max()}.* in shard {exact.argmax()}; got {capacity}"
        ):
            add(*in_order, capacity=capacity)
        total = jax.jit(lambda x, y: add(x, y, capacity=capacity))(*in_order)
        np.testing.assert_array_equal(host(total.nnz), exact)
        assert poisoned(total.data, 8) == (exact > capacity).tolist()

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (
                lambda x, y: (x, y.matrix),
                TypeError,
                r"`y` must be a `RowSharded` or an array, got BCOO; "
                r"`partition\(y, x.mesh, x.axis, row_starts=x.row_starts\)` spreads its rows",
            ),
            (
                lambda x, y: (x.matrix, y.matrix),
                TypeError,
                "got BCOO; `partition` spreads its rows, and `jax_sparse_grad.add` adds on one device",
            ),
            (lambda x, y: (x, None), TypeError, "`y` must be a `RowSharded` or an array, got NoneType"),
            (lambda x, y: (host(x.data), host(x.data)), TypeError, "one of the operands must be a `RowSharded`"),
            (lambda x, y: (x, np.ones(3)), ValueError, r"`y` must have the shape of `x`; got \(3,\) and \(40, 30\)"),
            (
                lambda x, y: (x, spread([y.matrix], "beside another axis")[0]),
                ValueError,
                r"`y` must be spread over the mesh and axis of `x`; got axis 'rows' of .*; "
                r"`partition\(y.matrix, x.mesh, x.axis, row_starts=x.row_starts\)` spreads it again",
            ),
            (
                lambda x, y: (x, jax.tree.map(lambda leaf: leaf[None], y)),
                ValueError,
                "`y` must have as many values as index rows",
            ),
        ],
    )
    def test_static_faults_are_named_while_tracing_too(self, pair, change, error, message):
        operands = change(*pair)
        for add in (sharded.add, jax.jit(sharded.add)):
            with pytest.raises(error, match=message):
                add(*operands)

    def test_what_jax_cannot_trace_is_named_too(self, pair):
        remedy = r"`partition\(x, y.mesh, y.axis, row_starts=y.row_starts\)` spreads its rows"
        with pytest.raises(TypeError, match=f"`x` must be a `RowSharded` or an array, got csr_array; {remedy}"):
            sharded.add(scipy.sparse.eye_array(3, format="csr"), pair[1])
        with pytest.raises(TypeError, match=r"`operands\[1\]` must be .*, got float; a number has no shape"):
            sharded.add_n([pair[0], 1.0])

    def test_capacity_of_a_dense_sum(self, pair):
        with pytest.raises(ValueError, match="`capacity` must not be given if an operand is dense"):
            sharded.add(pair[0], np.ones(SHAPE), capacity=3)


def test_trees_of_a_sum_are_alike(in_order):
    chex.assert_trees_all_equal_structs(jax.eval_shape(add_in_order, *in_order), add_in_order(*in_order))
