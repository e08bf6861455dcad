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
from jax.test_util import check_grads

import jax_sparse_grad as jsg
from helpers.matrices import at_rows, is_entry
from helpers.shards import (
    CASES,
    COLLECTIVES,
    EVEN,
    FORM,
    SHAPE,
    as_bcoo,
    canonical,
    check_form,
    collectives_in,
    dense_of,
    host,
    make_mesh,
    random_matrix,
    spread,
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
    mesh, axis, _ = make_mesh()
    return sharded.partition(matrices[0], mesh, axis, row_starts=EVEN)


add_in_order = partial(sharded.add, assume_canonical=True)


def add_by_plan(x, y, **arguments):
    plan = sharded.plan_sparse_add(x, y, assume_canonical=True, **arguments)
    return plan.with_data(plan(x.data, y.data))


def squares(data):
    return (data**2).sum()


class TestSum:
    @pytest.mark.parametrize(
        ("name", "axis_type"),
        [CASES[1], *(pytest.param(*case, marks=pytest.mark.slow) for case in (CASES[0], *CASES[2:]))],
        ids=str,
    )
    def test_it_and_its_gradient_are_those_of_one_device_and_communicate_nothing(self, matrices, name, axis_type):
        x, y = spread(matrices[:2], name, axis_type)

        def add_and_pull(x, y):
            def add(u, v):
                total = sharded.add(x.with_data(u), y.with_data(v))
                return total.data, total

            data, pull, total = jax.vjp(add, x.data, y.data, has_aux=True)
            return total, pull(3 * data**2)

        compiled = jax.jit(add_and_pull).lower(x, y).compile()
        assert [word for word in COLLECTIVES if word in compiled.as_text()] == []
        total, gradients = compiled(x, y)
        expected = dense_of(matrices[0]) + dense_of(matrices[1])
        np.testing.assert_array_equal(dense_of(total), expected)
        check_form(total)
        assert total.capacity == x.capacity + y.capacity
        for operand, gradient in zip((x, y), gradients, strict=True):
            assert gradient.sharding.is_equivalent_to(operand.data.sharding, 1)
            np.testing.assert_array_equal(host(gradient), at_rows(3 * expected**2, host(operand.indices), SHAPE))

    @pytest.mark.slow
    def test_it_stores_no_more_than_needed_where_indices_are_concrete(self, matrices):
        x, y = spread(matrices[:2])
        eager = sharded.add(x, y)
        closed = jax.jit(lambda data: sharded.add(x.with_data(data), y))(x.data)
        for total in (eager, closed):
            np.testing.assert_array_equal(dense_of(total), dense_of(matrices[0]) + dense_of(matrices[1]))
            check_form(total)
            assert total.capacity == host(total.nnz).max()

    @pytest.mark.slow
    def test_of_many_and_of_one(self, matrices):
        operands = spread(matrices)
        total = jax.jit(sharded.add_n)(operands)
        np.testing.assert_array_equal(dense_of(total), sum(map(dense_of, matrices)))
        check_form(total)
        canonical = sharded.add_n(operands[:1])
        np.testing.assert_array_equal(dense_of(canonical), dense_of(matrices[0]))
        check_form(canonical)

    @pytest.mark.slow
    def test_a_padded_sum_is_an_operand_of_the_next(self, matrices):
        x, y, z = spread(matrices)
        twice = sharded.add(sharded.add(x, y, capacity=90), z, capacity=90)
        assert twice.capacity == 90
        np.testing.assert_array_equal(dense_of(twice), sum(map(dense_of, matrices)))

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("dtypes", "index_dtypes"),
        [
            ((np.int8, np.int16), (np.int8, np.uint8)),
            ((np.float16, np.float32), (np.int32, np.int16)),
            ((np.complex64, np.float32), (np.int32, np.int32)),
            ((jnp.bfloat16, jnp.bfloat16), (np.uint32, np.uint32)),
        ],
        ids=str,
    )
    def test_dtypes_promote(self, rng, dtypes, index_dtypes):
        drawn = [random_matrix(rng, 60, dtype=dtype, **FORM) for dtype in dtypes]
        matrices = [
            as_bcoo(x.indices.astype(index_dtype), x.data, SHAPE)
            for x, index_dtype in zip(drawn, index_dtypes, strict=True)
        ]
        total = sharded.add(*spread(matrices))
        assert total.data.dtype == jnp.result_type(*dtypes)
        assert total.indices.dtype == jnp.result_type(*index_dtypes)
        np.testing.assert_array_equal(dense_of(total), dense_of(matrices[0]) + dense_of(matrices[1]))

    @pytest.mark.parametrize(
        ("shape", "dense"),
        [
            ((40,), (3,)),
            *(pytest.param(*each, marks=pytest.mark.slow) for each in [((12, 5, 6), ()), ((9, 4), (2, 2))]),
        ],
        ids=str,
    )
    def test_other_ranks_and_hybrid_values(self, rng, shape, dense):
        matrices = []
        for _ in range(2):
            indices = np.stack([rng.integers(0, size, 50) for size in shape], axis=1).astype(np.int32)
            matrices.append(as_bcoo(indices, rng.integers(-9, 9, (50, *dense)).astype(np.float32), (*shape, *dense)))
        x, y = spread(matrices)
        total = sharded.add(x, y)
        assert total.shape == (*shape, *dense)
        np.testing.assert_array_equal(dense_of(total), dense_of(matrices[0]) + dense_of(matrices[1]))
        check_form(total)

    def test_rows_beyond_one_word_of_keys(self):
        size = 2**31 - 1
        rows = np.array([0, 7, size - 1], np.int32)
        matrix = scipy.sparse.coo_array((np.ones(3, np.float32), (rows, rows[::-1])), shape=(size, size))
        total = sharded.add(*spread([matrix, matrix]))
        entries = host(total.nnz).astype(bool)
        assert host(total.data).reshape(total.shards, -1)[entries].ravel().tolist() == [2, 2, 2]

    @pytest.mark.slow
    def test_nothing_and_almost_nothing(self, matrices):
        nothing = scipy.sparse.coo_array(SHAPE, dtype=np.float32)
        x, none = spread([matrices[0], nothing])
        np.testing.assert_array_equal(dense_of(sharded.add(x, none)), dense_of(matrices[0]))
        assert not np.any(dense_of(sharded.add(none, none)))
        plan = sharded.plan_sparse_add(none, none)
        assert host(plan(none.data, none.data)).tolist() == [0] * 8
        assert sharded.repartition(none, EVEN).capacity == sharded.add(none, none).capacity == 1


class TestWhatTheUnshardedFunctionsHave:
    """Each result and gradient is that of `jax_sparse_grad` and of numpy."""

    def test_subtract(self, matrices, pair):
        x, y = pair
        difference = sharded.subtract(x, y)
        check_form(difference)
        np.testing.assert_array_equal(dense_of(difference), dense_of(matrices[0]) - dense_of(matrices[1]))
        single = jsg.subtract(*matrices[:2])
        entries = is_entry(host(difference.indices), SHAPE)
        np.testing.assert_array_equal(host(difference.data)[entries], single.data)

        def loss(u, v):
            return squares(sharded.subtract(x.with_data(u), y.with_data(v)).data)

        gradients = jax.jit(jax.grad(loss, (0, 1)))(x.data, y.data)
        for operand, sign, gradient in zip(pair, (2, -2), gradients, strict=True):
            expected = at_rows(dense_of(difference), host(operand.indices), SHAPE)
            np.testing.assert_array_equal(gradient, sign * expected)
        ones = np.ones(SHAPE, np.float32)
        np.testing.assert_array_equal(sharded.subtract(ones, x), 1 - dense_of(x))
        np.testing.assert_array_equal(sharded.subtract(x, ones), dense_of(x) - 1)

    @pytest.mark.parametrize("traced", [pytest.param(False, marks=pytest.mark.slow), True])
    def test_weights(self, matrices, traced):
        operands, weights = spread(matrices), [2, jnp.float32(-0.5), 3.0]
        add = jax.jit(sharded.add_n) if traced else sharded.add_n
        total = add(operands, weights=weights)
        expected = sum(weight * dense_of(x) for weight, x in zip(weights, matrices, strict=True))
        np.testing.assert_array_equal(dense_of(total), expected)
        check_form(total)

        def loss(weights, matrices, add_n):
            return squares(add_n(matrices, weights=weights).data)

        vector = jnp.array([2, -0.5, 3])
        gradient = jax.grad(lambda w: loss(w, operands, add))(vector)
        np.testing.assert_allclose(gradient, jax.grad(lambda w: loss(w, matrices, jsg.add_n))(vector), rtol=1e-5)

    @pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
    def test_weights_communicate_nothing_but_their_gradient(self, matrices, axis_type):
        operands = spread([canonical(x) for x in matrices[:2]], axis_type=axis_type)

        def add(operands, weights):
            return sharded.add_n(operands, weights=weights, assume_canonical=True).data

        weights = jnp.array([2.0, 3.0])
        assert collectives_in(add, operands, weights) == []
        gradient = jax.grad(lambda operands, weights: squares(add(operands, weights)), 1)
        assert collectives_in(gradient, operands, weights) == ["all-reduce"]

    def test_weights_of_dense_operands(self, matrices, pair):
        x, y = pair
        dense = np.full(SHAPE, 3, np.float32)
        total = sharded.add_n([x, dense, y], weights=[2, 3, -1])
        np.testing.assert_array_equal(total, 2 * dense_of(matrices[0]) + 9 - dense_of(matrices[1]))

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
        gradient = jax.jit(
            jax.grad(lambda u: squares(sharded.sum_duplicates(x.with_data(u), remove_zeros=remove_zeros).data))
        )(x.data)
        expected = 2 * at_rows(dense_of(total), host(x.indices), SHAPE)
        if remove_zeros:
            expected = np.where(host(x.data) == 0, 0, expected)
        np.testing.assert_array_equal(gradient, expected)

    def test_sum_duplicates_of_something_else(self, matrices):
        with pytest.raises(TypeError, match="`x` must be a `RowSharded`, got BCOO; `partition` makes one"):
            sharded.sum_duplicates(matrices[0])


class TestGradient:
    @pytest.mark.slow
    def test_each_comes_in_its_own_dtype(self, matrices):
        x, y = spread(matrices[:2])
        u, v = x.data.astype(jnp.bfloat16), y.data
        gradients = jax.grad(lambda u, v: squares(sharded.add(x.with_data(u), y.with_data(v)).data), (0, 1))(u, v)
        assert [gradient.dtype for gradient in gradients] == [jnp.bfloat16, jnp.float32]

    @pytest.mark.slow
    @SECOND_ORDER
    def test_finite_differences_to_second_order_and_forward_mode(self, in_order):
        x, y = in_order

        @jax.jit
        def loss(u, v):
            return ((add_in_order(x.with_data(u), y.with_data(v)).data / 9) ** 3).sum()

        check_grads(loss, (x.data, y.data), order=2, rtol=3e-2, atol=3e-2)

    @pytest.mark.slow
    def test_forward_over_reverse_of_traced_patterns(self, pair):
        @jax.jit
        def second(scale, x, y):
            return jax.hessian(lambda s: squares(sharded.add(x.with_data(s * x.data), y).data))(scale)

        entries = jax.jit(lambda x: sharded.add_n([x]).data)(pair[0])
        np.testing.assert_allclose(second(1.0, *pair), 2 * squares(host(entries)), rtol=1e-5)

    @pytest.mark.slow
    def test_vmap_over_values(self, in_order):
        x, y = in_order
        scales = jnp.arange(3.0)
        batch = jax.jit(jax.vmap(lambda s: add_in_order(x.with_data(s * x.data), y).data))(scales)
        for scale, total in zip(scales, batch, strict=True):
            np.testing.assert_array_equal(total, add_in_order(x.with_data(scale * x.data), y).data)


class TestCommunication:
    """Read in the compiled HLO."""

    def test_the_test_sees_a_collective(self, pair):
        assert collectives_in(lambda x: x.data.sum(), pair[0]) == ["all-reduce"]

    @SECOND_ORDER
    def test_second_order_communicates_nothing(self, in_order):
        x, y = in_order

        def first(u, x, y):
            return jax.vjp(lambda u: add_in_order(x.with_data(u), y).data ** 3, u)[1](jnp.ones_like(u, shape=nse))[0]

        nse = (x.capacity + y.capacity) * x.shards
        ones = jax.device_put(jnp.ones(len(x.data)), x.data.sharding)
        assert collectives_in(lambda u, x, y: jax.vjp(lambda u: first(u, x, y), u)[1](ones), x.data, x, y) == []

    def test_not_under_checkify_either(self, in_order):
        assert collectives_in(checkify.checkify(partial(add_in_order, capacity=40)), *in_order) == []


class TestDense:
    def test_a_replicated_operand_gives_a_replicated_sum(self, matrices):
        x, y = spread(matrices[:2], "beside another axis")
        dense = np.full(SHAPE, 2, np.float32)
        for total in (sharded.add(x, dense), jax.jit(sharded.add)(dense, x)):
            assert total.sharding.is_fully_replicated
            np.testing.assert_array_equal(total, dense_of(matrices[0]) + 2)
        expected = dense_of(matrices[0]) + dense_of(matrices[1]) + 2
        np.testing.assert_array_equal(sharded.add_n([x, dense, y]), expected)

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
        dense = jax.device_put(np.ones(SHAPE, np.float32), NamedSharding(x.mesh, PartitionSpec()))
        assert collectives_in(sharded.add, x, dense) == ["all-reduce"]

        def pull(x, dense, cotangent):
            return jax.vjp(lambda u, d: sharded.add(x.with_data(u), d), x.data, dense)[1](cotangent)

        assert collectives_in(pull, x, dense, 2 * dense) == []
        by_values, by_dense = pull(x, dense, 2 * dense)
        np.testing.assert_array_equal(by_values, at_rows(host(2 * dense), host(x.indices), SHAPE))
        np.testing.assert_array_equal(by_dense, 2 * dense)


class TestTrainingLoop:
    """Edge weights are learnt, so that the sum maps replicated features to a target."""

    @pytest.mark.slow
    def test_jit_with_shardings_learns_as_a_single_device_does(self, matrices, rng):
        fixed, learnt = spread([canonical(x) for x in matrices[:2]])
        features = np.asarray(rng.normal(size=SHAPE[1]), np.float32)
        everywhere = NamedSharding(fixed.mesh, PartitionSpec())
        shardings = jax.tree.map(lambda leaf: leaf.sharding, (learnt.data, fixed, learnt))

        def step(values, fixed, learnt, features):
            def loss(values):
                total = add_in_order(fixed, learnt.with_data(values))
                return squares(total.matrix @ features - 1)

            value, gradient = jax.value_and_grad(loss)(values)
            return values - 1e-3 * gradient, value

        jitted = jax.jit(
            step,
            in_shardings=(*shardings, everywhere),
            out_shardings=(shardings[0], everywhere),
            donate_argnums=0,
        )
        values, losses = jnp.copy(learnt.data), []
        for _ in range(4):
            values, loss = jitted(values, fixed, learnt, features)
            losses.append(float(loss))
        assert values.sharding.is_equivalent_to(learnt.data.sharding, 1)

        indices, here = jnp.asarray(host(learnt.indices)), jnp.asarray(host(learnt.data))
        for expected in losses:

            def loss(values):
                total = jsg.add(matrices[0], as_bcoo(indices, values, SHAPE))
                return squares(total @ features - 1)

            value, gradient = jax.value_and_grad(loss)(here)
            here = here - 1e-3 * gradient
            np.testing.assert_allclose(value, expected, rtol=1e-4)
        np.testing.assert_allclose(values, here, rtol=1e-3, atol=1e-4)
        assert losses[-1] < losses[0]

    @pytest.mark.slow
    @pytest.mark.parametrize("start", ["a sum", "nothing"])
    def test_a_scan_carries_a_sum(self, matrices, start):
        x, y = spread([canonical(x) for x in matrices[:2]])
        nothing = sharded.partition(
            jsg.empty(SHAPE, 0, np.float32), x.mesh, x.axis, row_starts=x.row_starts, capacity=100
        )

        @jax.jit
        def accumulate(scales, x, y):
            def add(total, scale):
                return add_in_order(total, y.with_data(scale * y.data), capacity=total.capacity), None

            first = sharded.add_n([x], capacity=100, assume_canonical=True) if start == "a sum" else nothing
            return jax.lax.scan(add, first, scales)[0]

        scales = jnp.arange(1.0, 4.0)
        total = accumulate(scales, x, y)
        expected = 6 * dense_of(matrices[1]) + (dense_of(matrices[0]) if start == "a sum" else 0)
        np.testing.assert_array_equal(dense_of(total), expected)
        gradient = jax.grad(lambda scales: squares(accumulate(scales, x, y).data))(scales)
        expected = 2 * (dense_of(total) * dense_of(matrices[1])).sum()
        np.testing.assert_allclose(gradient, [expected] * 3, rtol=1e-5)


def test_a_scan_on_every_device_starts_from_an_empty_matrix_that_varies():
    mesh = make_mesh()[0]
    vary = partial(jax.lax.pcast, to="varying") if hasattr(jax.lax, "pcast") else jax.lax.pvary

    def accumulate(values, rows):
        def step(total, batch):
            return jsg.add(total, as_bcoo(batch[1], batch[0], total.shape), nse=total.nse), None

        total, _ = jax.lax.scan(step, vary(jsg.empty((9,), 5, np.float32), ("rows",)), (values, rows))
        return jax.lax.psum(total.todense(), "rows")

    rows = np.arange(32, dtype=np.int32).reshape(16, 2, 1) % 9
    spec = PartitionSpec("rows")
    summed = jax.shard_map(accumulate, mesh=mesh, in_specs=spec, out_specs=PartitionSpec())(np.ones((16, 2)), rows)
    np.testing.assert_array_equal(summed, np.bincount(rows.ravel()))


class TestFaults:
    @pytest.mark.slow
    def test_operands_cut_differently(self, pair, elsewhere):
        for function in (sharded.add, lambda x, y: sharded.add_n([y, x]), sharded.plan_sparse_add):
            with pytest.raises(ValueError, match=r"must be partitioned as .*; its row_starts are \[.*\], not \[.*\]"):
                function(elsewhere, pair[1])
        assert np.all(np.isnan(jax.jit(sharded.add)(elsewhere, pair[1]).data))
        integers = [x.with_data(x.data.astype(np.int32)) for x in (elsewhere, pair[1])]
        assert np.all(host(jax.jit(sharded.add)(*integers).data) == np.iinfo(np.int32).min)

    @pytest.mark.slow
    def test_rows_in_another_shard(self, pair):
        x, y = pair
        row = host(x.row_starts)[-2]  # the first of the last shard
        moved = x.indices.at[1].set(jnp.array([row, 0]))
        bad = dataclasses.replace(x, indices=moved)
        message = (
            rf"`x.indices` must lie in .* and in shard 0 have rows 0 ... \d+ - 1 .*; entry 1 of shard 0 is \[{row}  0\]"
        )
        with pytest.raises(ValueError, match=message):
            sharded.add(bad, y)
        totals = np.split(host(jax.jit(sharded.add)(bad, y).data), x.shards)
        assert [bool(np.isnan(values).all()) for values in totals] == [True] + [False] * 7
        gradient = jax.jit(jax.grad(lambda u, bad, y: sharded.add(bad.with_data(u), y).data.sum()))(x.data, bad, y)
        poisoned = [bool(np.isnan(values).any()) for values in np.split(host(gradient), x.shards)]
        assert poisoned == [True] + [False] * 7

    def test_indices_outside_the_shape(self, pair):
        x, y = pair
        bad = dataclasses.replace(x, indices=x.indices.at[1, 1].set(-1))
        with pytest.raises(ValueError, match=r"`x.indices` must lie in "):
            sharded.add(bad, y)
        assert not np.any(np.isnan(jax.jit(sharded.add)(bad, y).data))  # counts as padding

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
        poisoned = [bool(np.isnan(values).all()) for values in np.split(host(total.data), total.shards)]
        assert poisoned == (exact > capacity).tolist()

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


@pytest.mark.slow
def test_checkify_does_not_look_into_sums_and_does_not_disturb_them(matrices):
    def poisoned(x, y):
        return sharded.add(sharded.add(x, y, capacity=1), y, capacity=60).data

    x, y = spread(matrices[:2])
    error, total = jax.jit(checkify.checkify(poisoned, errors=checkify.user_checks))(x, y)
    assert error.get() is None
    assert np.isnan(host(total)).any()


def test_trees_of_a_sum_are_alike(in_order):
    chex.assert_trees_all_equal_structs(jax.jit(add_in_order)(*in_order), add_in_order(*in_order))
