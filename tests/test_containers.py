"""add and add_n: sums of BCOO, BCSR and dense operands against dense numpy, their gradients, and what is refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify, sparse
from jax.experimental.sparse import BCOO, BCSR
from jax.test_util import check_grads

import jax_sparse_grad as jsg
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
    return BCSR.from_bcoo(random_bcoo(rng, layout, **arguments))


def to_dense(x):
    """The dense array of a container, by numpy."""
    if isinstance(x, BCSR):
        rows = np.zeros((*x.indices.shape, 2), int)
        for batch in np.ndindex(x.indices.shape[:-1]):
            indptr = np.asarray(x.indptr[batch])
            rows[batch] = x.shape[x.n_batch]
            rows[batch][: indptr[-1], 0] = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
            rows[batch][: indptr[-1], 1] = x.indices[batch][: indptr[-1]]
        return to_dense(BCOO((x.data, jnp.asarray(rows)), shape=x.shape))
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
    coordinates = total.to_bcoo() if isinstance(total, BCSR) else total
    shape = total.shape[total.n_batch :][: total.n_sparse]
    for batch in np.ndindex(coordinates.indices.shape[:-2]):
        rows = np.asarray(coordinates.indices[batch])
        expected = union_indices(rows, shape=shape)
        np.testing.assert_array_equal(rows[: len(expected)], expected)
        np.testing.assert_array_equal(rows[len(expected) :], np.tile([shape], (len(rows) - len(expected), 1)))


class TestForms:
    """What comes out for what goes in."""

    @pytest.mark.parametrize("layout", LAYOUTS, ids=str)
    def test_bcoo_and_bcoo_give_a_bcoo(self, rng, layout):
        if len(layout[0]) == layout[1] + layout[2]:
            x, y = (random_bcoo(rng, layout, padding=0) for _ in range(2))  # padding has no mark there
        else:
            # Flags that claim what is not so must not matter.
            x = random_bcoo(rng, layout, indices_sorted=True, unique_indices=True)
            y = random_bcoo(rng, layout, nse=5)
        expected = to_dense(x) + to_dense(y)
        eager, traced = jsg.add(x, y), jax.jit(jsg.add)(x, y)
        for total in (eager, traced):
            assert isinstance(total, BCOO)
            assert (total.n_batch, total.n_dense) == layout[1:]
            np.testing.assert_array_equal(to_dense(total), expected)
            check_form(total)
        entries = np.all(np.asarray(traced.indices) < np.array(x.shape[x.n_batch :][: x.n_sparse], int), axis=-1)
        assert eager.nse == entries.sum(axis=-1).max()
        assert traced.nse == (x.nse + y.nse if x.n_sparse else 1)

    @pytest.mark.parametrize("layout", LAYOUTS[:3], ids=str)
    def test_bcsr_and_bcsr_give_a_bcsr(self, rng, layout):
        x, y = random_bcsr(rng, layout), random_bcsr(rng, layout, nse=5)
        for total in (jsg.add(x, y), jax.jit(jsg.add)(x, y)):
            assert isinstance(total, BCSR)
            np.testing.assert_array_equal(to_dense(total), to_dense(x) + to_dense(y))
            np.testing.assert_array_equal(total.todense(), to_dense(x) + to_dense(y))
            check_form(total)
            # Rows without entries have a start as well, and the last row ends with the last entry.
            assert total.indptr.shape == (*layout[0][: layout[1]], layout[0][layout[1]] + 1)
            assert np.all(np.asarray(total.indptr)[..., 0] == 0)

    def test_bcoo_and_bcsr_give_a_bcoo(self, rng):
        x, y = random_bcoo(rng), random_bcsr(rng)
        for total in (jsg.add(x, y), jsg.add(y, x)):
            assert isinstance(total, BCOO)
            np.testing.assert_array_equal(to_dense(total), to_dense(x) + to_dense(y))

    @pytest.mark.parametrize("layout", LAYOUTS, ids=str)
    def test_a_dense_operand_gives_a_dense_array(self, rng, layout):
        x = random_bcoo(rng, layout, padding=0 if len(layout[0]) == layout[1] + layout[2] else 2)
        dense = random_values(rng, layout[0])
        for total in (jsg.add(x, dense), jsg.add(jnp.asarray(dense), x), jax.jit(jsg.add)(x, dense)):
            assert isinstance(total, jax.Array)
            np.testing.assert_array_equal(total, to_dense(x) + dense)

    def test_what_lies_outside_adds_nothing_to_a_dense_operand_under_jit(self):
        rows, data = jnp.array([[0], [-1], [3], [2]]), jnp.array([1.0, jnp.nan, jnp.inf, 4.0])
        add = jax.jit(lambda rows, data, dense: jsg.add(BCOO((data, rows), shape=(3,)), dense))
        total, pull = jax.vjp(lambda *v: add(rows, *v), data, jnp.array([-0.0, -0.0, 5.0]))
        assert [*map(str, total)] == ["1.0", "-0.0", "9.0"]
        chex.assert_trees_all_equal(pull(jnp.arange(1.0, 4)), (jnp.array([1.0, 0, 0, 3]), jnp.arange(1.0, 4)))

    def test_add_n_takes_any_number_and_mixture(self, rng):
        operands = [
            random_bcoo(rng),
            random_bcsr(rng),
            random_bcoo(rng, nse=3, padding=0),
            random_bcsr(rng, nse=0, padding=0),
        ]
        dense = sum(to_dense(x) for x in operands)
        for total in (jsg.add_n(operands), jax.jit(jsg.add_n)(operands)):
            np.testing.assert_array_equal(to_dense(total), dense)
            check_form(total)
        assert isinstance(jsg.add_n(operands[1::2]), BCSR)
        np.testing.assert_array_equal(jsg.add_n([*operands, dense, dense]), 3 * dense)
        single = jsg.add_n([operands[0]], nse=9)
        assert single.nse == 9
        check_form(single)
        np.testing.assert_array_equal(to_dense(single), to_dense(operands[0]))

    def test_a_scalar_has_one_entry_whatever_the_number_of_operands(self):
        scalar = BCOO((jnp.array([2.0]), jnp.zeros((1, 0), jnp.int32)), shape=())
        for count in (1, 2, 5):
            for total in (jsg.add_n([scalar] * count), jax.jit(jsg.add_n)([scalar] * count)):
                assert (total.nse, total.data.tolist()) == (1, [2.0 * count])

    def test_calls_are_compiled_where_jit_is_disabled(self, rng):
        x = random_bcoo(rng)
        with jax.disable_jit():
            total = jsg.add(x, x)
        np.testing.assert_array_equal(to_dense(total), 2 * to_dense(x))

    def test_dtypes_promote(self, rng):
        x = random_bcoo(rng, dtype=np.int16, index_dtype=np.int8)
        y = random_bcoo(rng, dtype=np.float32, index_dtype=np.uint8)
        total = jsg.add(x, y)
        assert (total.dtype, total.indices.dtype) == (jnp.float32, jnp.int16)
        np.testing.assert_array_equal(to_dense(total), to_dense(x).astype(np.float32) + to_dense(y))
        assert jsg.add(x, jnp.ones(SHAPE, jnp.bfloat16)).dtype == jnp.bfloat16
        assert jsg.add(random_bcsr(rng, index_dtype=np.int8), random_bcsr(rng)).indptr.dtype == jnp.int32

    def test_batches_that_share_a_pattern_still_do(self, rng):
        rows = random_bcoo(rng).indices[None]
        x = BCOO((jnp.asarray(random_values(rng, (3, NSE))), rows), shape=(3, *SHAPE))
        y = BCOO((jnp.asarray(random_values(rng, (1, NSE))), rows[:, ::-1]), shape=(3, *SHAPE))
        for total in (jsg.add(x, y), jax.jit(jsg.add)(x, y)):
            assert (total.indices.shape[0], total.data.shape[0]) == (1, 3)
            np.testing.assert_array_equal(to_dense(total), to_dense(x) + to_dense(y))
        own = random_bcoo(rng, ((3, *SHAPE), 1, 0))  # of which each batch has its own pattern
        np.testing.assert_array_equal(to_dense(jax.jit(jsg.add)(y, own)), to_dense(y) + to_dense(own))
        np.testing.assert_array_equal(jsg.add(y, to_dense(own)), to_dense(y) + to_dense(own))

    @pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (3, 4, 0)])
    def test_shapes_without_cells(self, shape):
        rows = jnp.tile(jnp.array(shape[1:], jnp.int32), (shape[0], 2, 1))
        x = BCOO((jnp.ones((shape[0], 2)), rows), shape=shape)
        for total in (jsg.add(x, x), jax.jit(jsg.add)(x, x)):
            assert total.shape == shape
            assert not np.any(total.data)
        assert jsg.add(x, jnp.zeros(shape)).shape == shape

    def test_todense_matmul_and_sparsify_of_the_result(self, rng):
        x, y = random_bcoo(rng), random_bcoo(rng)
        dense = to_dense(x) + to_dense(y)
        vector = jnp.asarray(random_values(rng, 7))

        @jax.jit
        def use(x, y):
            total = jsg.add(x, y)
            scaled = sparse.sparsify(lambda m: (m * 2.0).sum(axis=0))(total)
            return total.todense(), total @ vector, total.T.todense(), scaled.todense()

        chex.assert_trees_all_equal(use(x, y), (dense, dense @ vector, dense.T, 2 * dense.sum(axis=0)))


class TestGradients:
    """The gradient of an operand has the pattern, the number of entries, the shape and the dtype of that operand."""

    @pytest.fixture
    def table(self, rng):
        return random_values(rng, SHAPE)

    def at_entries(self, table, x):
        rows = np.asarray(x.indices)
        inside = is_entry(rows, SHAPE)
        return np.where(inside, table[tuple(np.where(inside[:, None], rows, 0).T)], 0)

    @pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
    def test_of_all_operands(self, rng, table, transform):
        # Explicit zeros count as entries; duplicates each get the gradient of their sum, padding gets 0.
        x, y, z = (random_bcoo(rng, dtype=dtype) for dtype in (np.float32, jnp.bfloat16, np.float32))
        z.data = jnp.zeros_like(z.data)

        @transform
        def gradients(x, y, z):
            def loss(x, y, z):
                return jnp.vdot(jnp.asarray(table), jsg.add_n([x, y, z]).todense())

            return jax.grad(loss, (0, 1, 2), allow_int=True)(x, y, z)

        for gradient, operand in zip(gradients(x, y, z), (x, y, z), strict=True):
            assert isinstance(gradient, BCOO)
            assert (gradient.shape, gradient.dtype) == (operand.shape, operand.dtype)
            np.testing.assert_array_equal(np.asarray(gradient.data, np.float32), self.at_entries(table, operand))

    def test_by_the_gradient_of_jax_sparse(self, rng, table):
        x, y = random_bcoo(rng), random_bcoo(rng)
        gradient = sparse.grad(lambda x: jnp.vdot(jnp.asarray(table), jsg.add(x, y).todense()))(x)
        assert isinstance(gradient, BCOO)
        np.testing.assert_array_equal(gradient.indices, x.indices)
        np.testing.assert_array_equal(gradient.data, self.at_entries(table, x))

    def test_with_a_dense_operand(self, rng, table):
        x = random_bcoo(rng)

        def loss(data, dense):
            return jnp.vdot(jnp.asarray(table), jsg.add(BCOO((data, x.indices), shape=SHAPE), dense))

        of_x, of_dense = jax.grad(loss, (0, 1))(x.data, jnp.asarray(table))
        np.testing.assert_array_equal(of_x, self.at_entries(table, x))
        np.testing.assert_array_equal(of_dense, table)

    def test_of_bcsr(self, rng, table):
        x, y = random_bcsr(rng), random_bcsr(rng)

        def loss(data):
            return jnp.vdot(jnp.asarray(table), jsg.add(BCSR((data, x.indices, x.indptr), shape=SHAPE), y).todense())

        np.testing.assert_array_equal(jax.jit(jax.grad(loss))(x.data), self.at_entries(table, x.to_bcoo()))

    def test_of_batches(self, rng):
        layout = ((3, *SHAPE), 1, 0)
        x, y = random_bcoo(rng, layout), random_bcoo(rng, layout)
        table = random_values(rng, layout[0])

        @jax.jit
        def gradient(x, y):
            return jax.grad(lambda x: jnp.vdot(jnp.asarray(table), jsg.add(x, y).todense()), allow_int=True)(x).data

        expected = [self.at_entries(table[k], BCOO((x.data[k], x.indices[k]), shape=SHAPE)) for k in range(3)]
        np.testing.assert_array_equal(gradient(x, y), expected)

    def test_backward_has_no_sort_and_no_scatter(self, rng):
        x, y = random_bcoo(rng), random_bcoo(rng)

        def pull_of(rows_x, rows_y):
            def add(u, v):
                return jsg.add(BCOO((u, rows_x), shape=SHAPE), BCOO((v, rows_y), shape=SHAPE)).data

            return jax.vjp(add, x.data, y.data)[1]

        pull = jax.jit(pull_of)(x.indices, y.indices)
        # As an argument: residuals that were constants would be folded, and the conditional on the order with them.
        text = jax.jit(lambda pull, cotangent: pull(cotangent)).lower(pull, jnp.ones(2 * NSE)).compile().as_text()
        assert "gather(" in text
        for forbidden in ("scatter(", "sort("):
            assert forbidden not in text


class TestTransformations:
    """With the pattern closed over, and with it traced."""

    @pytest.fixture(params=["concrete", "traced"])
    def function(self, request, rng):
        """`f(u, v)`, the values of the sum of two operands and, with a dense operand, of a dense sum."""
        x, y = random_bcoo(rng), random_bcoo(rng)

        def add(rows_x, rows_y, u, v):
            total = jsg.add(BCOO((u, rows_x), shape=SHAPE), BCOO((v, rows_y), shape=SHAPE))
            return jsg.add(total, jnp.full(SHAPE, u[0]))

        if request.param == "concrete":
            return lambda u, v: add(x.indices, y.indices, u, v)
        jitted = jax.jit(add)
        return lambda u, v: jitted(x.indices, y.indices, u, v)

    @pytest.fixture
    def values(self, rng):
        return tuple(jnp.asarray(random_values(rng, NSE) / 9) for _ in range(2))

    def test_derivatives_of_both_modes_to_second_order(self, function, values):
        check_grads(lambda u, v: (function(u, v) ** 3).sum(), values, order=2, rtol=2e-2, atol=2e-2)

    def test_it_is_linear(self, function, values):
        primal, tangent = jax.jvp(function, values, values)
        chex.assert_trees_all_equal(primal, tangent, jax.linearize(function, *values)[1](*values))
        forward, backward = (mode(function, (0, 1))(*values) for mode in (jax.jacfwd, jax.jacrev))
        chex.assert_trees_all_equal(forward, backward)
        transpose = jax.linear_transpose(function, *values)
        chex.assert_trees_all_equal(transpose(primal), jax.vjp(function, *values)[1](primal))
        hessian = jax.hessian(lambda *v: (function(*v) ** 2).sum(), (0, 1))(*values)[0][1]
        chex.assert_trees_all_close(hessian, 2 * jnp.einsum("rci,rcj->ij", forward[0], forward[1]), rtol=1e-6)

    def test_vmap_cond_and_checkpoint(self, function, values):
        batch = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), values)
        one = function(*values)
        chex.assert_trees_all_equal(jax.vmap(function)(*batch), jnp.stack([one, 2 * one]))

        @jax.checkpoint
        def either(flag, values):
            return jax.lax.cond(flag, lambda v: function(*v), lambda v: 2 * function(*v), values)

        chex.assert_trees_all_equal(
            jax.vmap(either, (0, None))(jnp.array([True, False]), values), jnp.stack([one, 2 * one])
        )
        gradient = jax.grad(lambda v: either(False, v).sum())(values)
        chex.assert_trees_all_equal(
            gradient, jax.tree.map(lambda g: 2 * g, jax.grad(lambda v: function(*v).sum())(values))
        )

    def test_vmap_over_values_alone_unites_patterns_once(self, rng):
        x, y = random_bcoo(rng), random_bcoo(rng)

        def add(rows_x, rows_y, u, v):
            return jsg.add(BCOO((u, rows_x), shape=SHAPE), BCOO((v, rows_y), shape=SHAPE)).data

        values = jnp.ones((5, NSE)), jnp.ones((5, NSE))
        mapped = jax.make_jaxpr(jax.vmap(add, (None, None, 0, 0)))(x.indices, y.indices, *values)
        of_batches = {aval.shape for aval in avals_of(mapped) if aval.shape[:1] == (5,)}
        assert {(5, NSE), (5, 2 * NSE)} <= of_batches
        # Indices, keys and positions are integers (and masks, where values are selected, are broadcast).
        assert not [aval for aval in avals_of(mapped) if aval.shape[:1] == (5,) and aval.dtype.kind in "iu"]
        # The same reading does find patterns that are batched.
        rows = jnp.stack([x.indices] * 5)
        batched = jax.make_jaxpr(jax.vmap(add, (0, None, 0, 0)))(rows, y.indices, *values)
        assert [aval for aval in avals_of(batched) if aval.shape[:1] == (5,) and aval.dtype == jnp.uint32]
        # And there, one conditional on the order of the whole batch stays a conditional.
        assert "cond[" in str(batched)

    def test_vmap_over_containers(self, rng):
        layout = ((3, *SHAPE), 1, 0)
        for make in (random_bcoo, random_bcsr):
            x, y = make(rng, layout), make(rng, layout)
            total = jax.vmap(jsg.add)(x, y)
            np.testing.assert_array_equal(to_dense(total), to_dense(x) + to_dense(y))

    @pytest.mark.parametrize("kind", ["bcoo", "bcsr"])
    def test_a_scan_carries_a_sum_of_one_structure(self, rng, kind):
        steps = [random_bcoo(rng, nse=5) for _ in range(4)]
        stacked = jnp.stack([x.data for x in steps]), jnp.stack([x.indices for x in steps])
        empty = BCOO((jnp.zeros(0), jnp.zeros((0, 2), jnp.int32)), shape=SHAPE)
        empty = BCSR.from_bcoo(empty) if kind == "bcsr" else empty

        def accumulate(total, step):
            operand = BCOO(step, shape=SHAPE)
            if kind == "bcsr":
                operand = jsg.add_n([empty, BCSR.from_bcoo(operand)])
            return jsg.add(total, operand, nse=20), None

        @jax.jit
        def run(data, rows):
            return jax.lax.scan(accumulate, jsg.add_n([empty], nse=20), (data, rows))[0]

        total = run(*stacked)
        assert isinstance(total, BCSR if kind == "bcsr" else BCOO)
        assert total.nse == 20
        np.testing.assert_array_equal(to_dense(total), sum(to_dense(x) for x in steps))
        gradient = jax.grad(lambda data: (run(data, stacked[1]).data ** 2).sum())(stacked[0])
        expected = [2 * TestGradients().at_entries(to_dense(total), x) for x in steps]
        np.testing.assert_array_equal(gradient, expected)


def avals_of(jaxpr):
    """The type of every value that is computed in a jaxpr, down to the innermost."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        inner = [leaf for leaf in jax.tree.leaves(list(equation.params.values()), is_leaf=is_jaxpr) if is_jaxpr(leaf)]
        for each in inner:
            yield from avals_of(each)
        if not inner:
            yield from (variable.aval for variable in equation.outvars)


def is_jaxpr(value):
    return isinstance(value, jax.extend.core.Jaxpr | jax.extend.core.ClosedJaxpr)


class TestRefusals:
    """What is refused, and with which words."""

    @pytest.fixture
    def x(self, rng):
        return random_bcoo(rng)

    @pytest.mark.parametrize(
        ("other", "error", "message"),
        [
            (lambda x: jnp.ones((6, 6)), ValueError, r"`y` must have the shape of `x`; got \(6, 6\) and \(6, 7\)"),
            (lambda x: 1.0, TypeError, "`y` must be a BCOO, a BCSR or an array, got float"),
            (lambda x: sparse.COO._empty(SHAPE), TypeError, "`y` must be a BCOO, a BCSR or an array, got COO"),
            (
                lambda x: BCOO((x.data > 0, x.indices), shape=SHAPE),
                TypeError,
                "`y.data` must have a numeric dtype, got bool",
            ),
            (
                lambda x: x.update_layout(n_batch=1, on_inefficient=None),
                ValueError,
                r"`y` must have the n_batch, n_sparse and n_dense of `x`; got \(1, 1, 0\) and \(0, 2, 0\); `BCOO",
            ),
            (
                lambda x: jax.tree.map(lambda leaf: leaf[None], x),
                ValueError,
                r"`y` must have as many sizes as .* together; got \(1, 2, 0\) and shape \(6, 7\); what `scan` or",
            ),
            (
                lambda x: jax.grad(lambda x: x.data.sum(), allow_int=True)(x),
                TypeError,
                "`y.indices` must have an integer dtype, got float0, which stands for no gradient",
            ),
        ],
        ids=["shape", "number", "COO", "bool", "layout", "stacked", "gradient"],
    )
    def test_of_an_operand(self, x, other, error, message):
        with pytest.raises(error, match=message):
            jsg.add(x, other(x))
        with pytest.raises(error, match=message):
            jax.jit(lambda: jsg.add(x, other(x)))()

    def test_of_arguments(self, x):
        dense = jnp.ones(SHAPE)
        with pytest.raises(TypeError, match="one of the operands must be a BCOO or a BCSR, got arrays only"):
            jsg.add(dense, dense)
        with pytest.raises(TypeError, match=r"arrays only; .*under `sparsify`, sparse arguments look like arrays"):
            sparse.sparsify(jsg.add)(x, x)
        with pytest.raises(ValueError, match=r"`nse` must not be given where an operand is dense, .* got 3"):
            jsg.add(x, dense, nse=3)
        with pytest.raises(TypeError, match="`operands` must be a list or tuple, got BCOO"):
            jsg.add_n(x)
        with pytest.raises(ValueError, match="`operands` must hold at least one operand"):
            jsg.add_n([])
        with pytest.raises(ValueError, match=r"`operands\[1\]` must have the shape of `operands\[0\]`"):
            jsg.add_n([x, random_bcoo(np.random.default_rng(0), ((7, 6), 0, 0))])
        wide = BCSR((x.data, x.indices[:, 1].astype(jnp.int8), jnp.zeros(201, jnp.int8)), shape=(200, 7))
        with pytest.raises(ValueError, match=r"`x.shape` must not exceed 127, the largest index of int8"):
            jsg.add(wide, wide)
        narrow = BCSR((jnp.ones(100), jnp.zeros(100, jnp.int8), jnp.array([0, 100], jnp.int8)), shape=(1, 100))
        with pytest.raises(ValueError, match="`nse` must not exceed 127, the largest number of the operands' `indptr`"):
            jax.jit(jsg.add)(narrow, narrow)

    def test_of_arrays_that_do_not_fit_together(self, rng):
        x, y = random_bcoo(rng, ((3, *SHAPE), 1, 0)), random_bcsr(rng)

        def refuse(operand, message, **arrays):
            leaves, treedef = jax.tree.flatten_with_path(operand)
            names = ["data", "indices", "indptr"]
            broken = jax.tree.unflatten(treedef, [arrays.get(n, v) for n, (_, v) in zip(names, leaves, strict=False)])
            with pytest.raises(ValueError, match=message):
                jsg.add(broken, operand)

        refuse(
            x,
            r"`x.data` must have batch dimensions \(3,\) \(or 1\) and then \(7,\); got shape \(3, 5\)",
            data=jnp.ones((3, 5)),
        )
        refuse(x, r"`x.indices` must have batch .* and then \(7, 2\); got shape \(2, 7, 2\)", indices=x.indices[:2])
        refuse(y, r"`x.data` must have shape \(7,\); got shape \(6,\)", data=y.data[1:])
        refuse(y, r"`x.indptr` must have shape \(7,\); got shape \(6,\)", indptr=y.indptr[1:])

    def test_of_data_where_it_is_concrete(self, rng):
        x = random_bcoo(rng, ((3, *SHAPE), 1, 0))
        bad = BCOO((x.data, x.indices.at[2, 4].set(jnp.array([0, -1]))), shape=x.shape)
        message = r"`y.indices\[2\]` must lie in \[0, \(6, 7\)\), or equal \(6, 7\) in padding; row 4 is \[ 0 -1\]"
        with pytest.raises(ValueError, match=message):
            jsg.add(x, bad)
        with pytest.raises(ValueError, match=message):
            jsg.add(jnp.ones(x.shape), bad)
        with pytest.raises(
            ValueError, match=r"`nse` must be at least .*, the number of distinct entries of the sum; got 2"
        ):
            jsg.add(x, x, nse=2)
        for indptr in ([1, 2, 3], [0, 3, 2], [0, 2, 4]):
            matrix = BCSR((jnp.ones(3), jnp.arange(3), jnp.array(indptr)), shape=(2, 3))
            with pytest.raises(ValueError, match=r"`x.indptr` must rise from 0 to at most nse \(3\); got \["):
                jsg.add(matrix, matrix)

    def test_of_data_by_checkify_where_it_is_traced(self, rng):
        x = random_bcoo(rng, ((3, *SHAPE), 1, 0))
        checked = jax.jit(checkify.checkify(jsg.add), static_argnames=("nse", "assume_canonical"))

        def message(x, y, **keywords):
            return checked(x, y, **keywords)[0].get() or ""

        assert message(x, x) == message(x, jnp.ones(x.shape)) == ""
        bad = BCOO((x.data, x.indices.at[2, 4].set(jnp.array([0, -1]))), shape=x.shape)
        for other in (x, jnp.ones(x.shape)):
            assert "must lie in [0, (6, 7)), or equal (6, 7) in padding; row 4 is [ 0 -1]" in message(other, bad)
        assert "`nse` must be at least" in message(x, x, nse=2)
        assert "must be sorted and unique" in message(x, x, assume_canonical=True)
        matrix = BCSR((jnp.ones(3), jnp.arange(3), jnp.array([0, 3, 2])), shape=(2, 3))
        assert "`x.indptr` must rise from 0" in message(matrix, matrix)

    def test_an_overflowed_sum_is_poisoned_under_jit(self, rng):
        x, y = random_bcoo(rng, ((3, *SHAPE), 1, 0)), random_bcoo(rng, ((3, *SHAPE), 1, 0), nse=2, padding=1)
        total = jax.jit(lambda x, y: jsg.add(x, y, nse=4))(x, y)
        assert np.all(np.isnan(total.data))
        few = BCOO((x.data.at[1:].get(), x.indices.at[1:].set(jnp.array(SHAPE))[1:]), shape=(2, *SHAPE))
        both = BCOO((jnp.stack([x.data[0], few.data[0]]), jnp.stack([x.indices[0], few.indices[0]])), shape=(2, *SHAPE))
        total = jax.jit(lambda x: jsg.add(x, x, nse=4))(both)
        # Only the batch that does not fit.
        assert np.isnan(np.asarray(total.data)).all(axis=1).tolist() == [True, False]
        assert not np.isnan(np.asarray(total.data)[1]).any()
