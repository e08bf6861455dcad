"""Sums of BCOO, BCSR and dense operands against dense numpy, their gradients, and what is refused."""

import re
from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify, sparse
from jax.experimental.sparse import BCOO, BCSR

import jax_sparse_grad as jsg
from matrices import LAYOUTS, NSE, SHAPE, as_bcsr, check_form, random_bcoo, random_bcsr, to_dense
from samples import is_entry, random_coo, random_values, special_values, union_indices

todense = jax.jit(lambda matrix: matrix.todense())  # one program, not one for each of its steps


def by_cases(names, cases):
    """A test of cases, with what they print as ids."""
    return pytest.mark.parametrize(names, [pytest.param(*case, id="-".join(map(str, case))) for case in cases])


class TestForms:
    """What comes out for what goes in."""

    @pytest.mark.slow(but="((6, 7), 0, 0)")
    @by_cases(["layout"], [(layout,) for layout in LAYOUTS])
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

    @pytest.mark.slow(but="((6, 7), 0, 0)")
    @pytest.mark.parametrize("layout", LAYOUTS[:3], ids=str)
    def test_bcsr_and_bcsr_give_a_bcsr(self, rng, layout):
        x, y = random_bcsr(rng, layout), random_bcsr(rng, layout, nse=5)
        for total in (jsg.add(x, y), jax.jit(jsg.add)(x, y)):
            assert isinstance(total, BCSR)
            np.testing.assert_array_equal(to_dense(total), to_dense(x) + to_dense(y))
            np.testing.assert_array_equal(todense(total), to_dense(x) + to_dense(y))
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
        np.testing.assert_array_equal(to_dense(jsg.add_n(x for x in operands)), dense)
        single = jsg.add_n([operands[0]], nse=9)
        assert single.nse == 9
        check_form(single)
        np.testing.assert_array_equal(to_dense(single), to_dense(operands[0]))

    @pytest.mark.slow
    def test_a_scalar_has_one_entry_whatever_the_number_of_operands(self):
        scalar = BCOO((jnp.array([2.0]), jnp.zeros((1, 0), jnp.int32)), shape=())
        for count in (1, 5):
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

    @pytest.mark.slow
    def test_batches_that_share_a_pattern_still_do(self, rng):
        rows = random_bcoo(rng).indices[None]
        x = BCOO((jnp.asarray(random_values(rng, (3, NSE))), rows), shape=(3, *SHAPE))
        y = BCOO((jnp.asarray(random_values(rng, (1, NSE))), rows[:, ::-1]), shape=(3, *SHAPE))
        for total in (jsg.add(x, y), jax.jit(jsg.add)(x, y)):
            assert (total.indices.shape[0], total.data.shape[0]) == (1, 3)
            np.testing.assert_array_equal(to_dense(total), to_dense(x) + to_dense(y))
        # Of which each batch has its own pattern: so they are not one list, and a tree is made.
        own = random_bcoo(rng, ((3, *SHAPE), 1, 0))
        np.testing.assert_array_equal(to_dense(jax.jit(jsg.add)(y, own)), to_dense(y) + to_dense(own))
        np.testing.assert_array_equal(jsg.add(y, to_dense(own)), to_dense(y) + to_dense(own))

    @pytest.mark.slow(but="shape0")
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

    @pytest.mark.slow(but="jit")
    @by_cases(["transform"], [("eager",), ("jit",)])
    def test_of_all_operands(self, rng, table, transform):
        # Explicit zeros count as entries; duplicates each get the gradient of their sum, padding gets 0.
        x, y, z = (random_bcoo(rng, dtype=dtype) for dtype in (np.float32, jnp.bfloat16, np.float32))
        z.data = jnp.zeros_like(z.data)

        @{"eager": lambda f: f, "jit": jax.jit}[transform]
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
    def kind(self, request):
        return request.param

    @pytest.fixture
    def operands(self, rng):
        return random_bcoo(rng), random_bcoo(rng)

    @pytest.fixture
    def function(self, kind, operands):
        """`f(u, v)`, the values of the sum of two operands and, with a dense operand, of a dense sum."""
        x, y = operands

        def add(rows_x, rows_y, u, v):
            total = jsg.add(BCOO((u, rows_x), shape=SHAPE), BCOO((v, rows_y), shape=SHAPE))
            return jsg.add(total, jnp.full(SHAPE, u[0]))

        if kind == "concrete":
            return lambda u, v: add(x.indices, y.indices, u, v)
        jitted = jax.jit(add)
        return lambda u, v: jitted(x.indices, y.indices, u, v)

    def by_hand(self, operands, u, v):
        """The same in numpy."""
        x, y = operands
        parts = (to_dense(BCOO((np.asarray(data), each.indices), shape=SHAPE)) for data, each in ((u, x), (v, y)))
        return sum(parts) + u[0]

    def by_hand_backwards(self, operands, table):
        of_u, of_v = (TestGradients().at_entries(table, x) for x in operands)
        return of_u + np.where(np.arange(NSE) == 0, table.sum(), 0), of_v

    @pytest.fixture
    def values(self, rng):
        return tuple(jnp.asarray(random_values(rng, NSE) / 9) for _ in range(2))

    @pytest.mark.slow
    def test_derivatives_of_both_modes_to_second_order(self, operands, function, values):
        def loss(*values):
            return (function(*values) ** 3).sum()

        @jax.jit  # all of them in one program
        def derive(values, tangents):
            def slope(*values):
                return jax.jvp(loss, values, tangents)[1]

            gradient = jax.grad(loss, (0, 1))
            second = [
                jax.jvp(gradient, values, tangents)[1],
                jax.vjp(gradient, *values)[1](tangents),
                jax.grad(slope, (0, 1))(*values),
            ]
            return gradient(*values), second, jax.jvp(slope, values, tangents)

        tangents = tuple(value[::-1] for value in map(np.asarray, values))
        gradient, second, slopes = derive(values, tangents)
        total, change = self.by_hand(operands, *values), self.by_hand(operands, *tangents)
        chex.assert_trees_all_close(gradient, self.by_hand_backwards(operands, 3 * total**2), rtol=1e-5)
        for each in second:
            chex.assert_trees_all_close(each, self.by_hand_backwards(operands, 6 * total * change), rtol=1e-5)
        np.testing.assert_allclose(slopes, [(3 * total**2 * change).sum(), (6 * total * change**2).sum()], rtol=1e-5)

    @pytest.mark.slow
    def test_it_is_linear(self, function, values):
        @jax.jit  # all of them in one program
        def derive(*values):
            primal, tangent = jax.jvp(function, values, values)
            hessian = jax.hessian(lambda *v: (function(*v) ** 2).sum(), (0, 1))(*values)[0][1]
            return (
                (primal, tangent, jax.linearize(function, *values)[1](*values)),
                [mode(function, (0, 1))(*values) for mode in (jax.jacfwd, jax.jacrev)],
                (tuple(jax.linear_transpose(function, *values)(primal)), jax.vjp(function, *values)[1](primal)),
                hessian,
            )

        alike, jacobians, transposes, hessian = derive(*values)
        chex.assert_trees_all_equal(*alike)
        chex.assert_trees_all_equal(*jacobians)
        chex.assert_trees_all_equal(*transposes)
        expected = 2 * np.einsum("rci,rcj->ij", *map(np.asarray, jacobians[0]))
        chex.assert_trees_all_close(hessian, expected, rtol=1e-6)

    @pytest.mark.slow(but="concrete")
    def test_vmap_cond_and_checkpoint(self, kind, operands, function, values):
        @jax.checkpoint
        def either(flag, values):
            return jax.lax.cond(flag, lambda v: function(*v), lambda v: jnp.full(SHAPE, v[0][1]), values)

        def use(values):
            batch = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), values)
            flags = jnp.array([True, False])
            gradients = [jax.grad(lambda v, f=flag: (either(f, v) ** 2).sum())(values) for flag in (True, False)]
            return function(*values), jax.vmap(function)(*batch), jax.vmap(either, (0, None))(flags, values), gradients

        # What is traced anyway is one program.
        one, mapped, chosen, gradients = (jax.jit(use) if kind == "traced" else use)(values)
        other = np.asarray(values[0])[1]
        chex.assert_trees_all_close(one, self.by_hand(operands, *values), rtol=1e-6)
        chex.assert_trees_all_equal(mapped, np.stack([one, 2 * one]))
        chex.assert_trees_all_equal(chosen, np.stack([one, np.full_like(one, other)]))
        first = np.where(np.arange(NSE) == 1, 2 * other * one.size, 0), np.zeros(NSE)
        expected = [self.by_hand_backwards(operands, 2 * np.asarray(one)), first]
        chex.assert_trees_all_close(gradients, expected, rtol=1e-5)

    def test_vmap_over_values_alone_unites_patterns_once(self, rng):
        x, y = random_bcoo(rng), random_bcoo(rng)

        def add(rows_x, rows_y, u, v):
            return jsg.add(BCOO((u, rows_x), shape=SHAPE), BCOO((v, rows_y), shape=SHAPE)).data

        values = jnp.ones((5, NSE)), jnp.ones((5, NSE))

        def symbolic_phase(in_axes, *arrays):
            """What it returns, as the program says."""
            (line,) = re.findall(r".*= sparse_add_call", str(jax.make_jaxpr(jax.vmap(add, in_axes))(*arrays, *values)))
            return line

        assert "[5," not in symbolic_phase((None, None, 0, 0), x.indices, y.indices)
        # The same reading does find patterns that are batched.
        assert "[5," in symbolic_phase((0, None, 0, 0), jnp.stack([x.indices] * 5), y.indices)

    @by_cases(["kind"], [("bcoo",), ("bcsr",)])
    def test_vmap_over_containers(self, rng, kind):
        make, layout = {"bcoo": random_bcoo, "bcsr": random_bcsr}[kind], ((3, *SHAPE), 1, 0)
        x, y = make(rng, layout), make(rng, layout)
        total = jax.vmap(jsg.add)(x, y)
        np.testing.assert_array_equal(to_dense(total), to_dense(x) + to_dense(y))

    @pytest.mark.slow(but="bcoo")
    @by_cases(["kind"], [("bcoo",), ("bcsr",)])
    def test_a_scan_carries_a_sum_of_one_structure(self, rng, kind):
        steps = [random_bcoo(rng, nse=5) for _ in range(4)]
        stacked = jnp.stack([x.data for x in steps]), jnp.stack([x.indices for x in steps])
        empty = BCOO((jnp.zeros(0), jnp.zeros((0, 2), jnp.int32)), shape=SHAPE)
        empty = as_bcsr(empty) if kind == "bcsr" else empty

        def accumulate(total, step):
            operand = BCOO(step, shape=SHAPE)
            if kind == "bcsr":
                operand = jsg.add_n([empty, BCSR.from_bcoo(operand)])
            return jsg.add(total, operand, nse=20), None

        @jax.jit
        def run(data, rows):
            def loss(data):
                total = jax.lax.scan(accumulate, jsg.add_n([empty], nse=20), (data, rows))[0]
                return (total.data**2).sum(), total

            return jax.grad(loss, has_aux=True)(data)

        gradient, total = run(*stacked)
        assert isinstance(total, BCSR if kind == "bcsr" else BCOO)
        assert total.nse == 20
        np.testing.assert_array_equal(to_dense(total), sum(to_dense(x) for x in steps))
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


def bits(array):
    """The bytes of an array, by which zeros of either sign and NaN differ."""
    return np.asarray(array).view(f"u{array.dtype.itemsize}").tolist()


def column(data, rows, size=6):
    """A sparse vector."""
    return BCOO((jnp.asarray(data), jnp.asarray(rows, jnp.int32).reshape(-1, 1)), shape=(size,))


class TestWeights:
    """Differences, and sums of multiples."""

    WEIGHTS = (2, -0.5, 3.0)

    @pytest.fixture
    def operands(self, rng):
        return [random_bcoo(rng), random_bcsr(rng, nse=5), random_values(rng, SHAPE)]

    @pytest.mark.parametrize("count", [2, 3])
    def test_of_containers_and_dense_arrays(self, operands, count):
        operands = operands[:count]
        expected = sum(w * to_dense(x) for w, x in zip(self.WEIGHTS, operands, strict=False))
        traced = jax.jit(lambda operands, weights: jsg.add_n(operands, weights=weights))
        totals = [
            jsg.add_n(operands, weights=self.WEIGHTS[:count]),
            jsg.add_n(operands, weights=np.array(self.WEIGHTS[:count], np.float32)),
            traced(operands, list(self.WEIGHTS[:count])),
            traced(operands, jnp.array(self.WEIGHTS[:count])),
        ]
        for total in totals:
            np.testing.assert_array_equal(to_dense(total), expected)

    def test_derivatives_of_the_weights_see_no_padding(self, rng):
        x, y = random_bcoo(rng), random_bcoo(rng)
        x.data = jnp.where(is_entry(np.asarray(x.indices), SHAPE), x.data, jnp.nan)
        dense = random_values(rng, SHAPE)
        table = random_values(rng, SHAPE)

        def loss(weights):
            total = jsg.add_n([x, y], weights=weights[:2])
            return jnp.vdot(table, total.todense()) + jnp.vdot(table, jsg.add_n([x, dense], weights=weights[2:]))

        weights = jnp.array([2.0, -3.0, 0.5, 4.0])
        expected = [np.vdot(table, to_dense(each)) for each in (x, y, x, dense)]
        chex.assert_trees_all_equal(jax.jit(jax.grad(loss))(weights), jax.grad(loss)(weights), np.array(expected))
        chex.assert_trees_all_equal(jax.jit(jax.jacfwd(loss))(weights), np.array(expected))

    @pytest.mark.parametrize("weight", [np.inf, -np.inf, np.nan])
    def test_derivatives_of_padding_are_zero_whatever_its_weight(self, weight):
        indices = jnp.array([[0, 0], [3, 3]])

        def total(values, weight):
            return jsg.add_n([BCOO((values, indices), shape=(3, 3))], weights=[weight]).data.sum()

        for gradient in (jax.grad(total)(jnp.ones(2), weight), jax.jit(jax.grad(total))(jnp.ones(2), weight)):
            np.testing.assert_array_equal(gradient, [weight, 0])

    def test_derivatives_of_the_values_are_weighted(self, rng):
        x, y = random_bcoo(rng), random_bcsr(rng)

        def total(data, weights):
            return jsg.add_n([BCOO((data, x.indices), shape=SHAPE), y], weights=weights).data

        for weights in ([3.0, 1], [jnp.float32(3), 1]):
            gradient = jax.grad(lambda data, w=weights: total(data, w).sum())(x.data)
            np.testing.assert_array_equal(gradient, 3.0 * is_entry(np.asarray(x.indices), SHAPE))
        gradient = jax.grad(lambda data: total(data, [1j, 1]).imag.sum())(x.data)
        np.testing.assert_array_equal(gradient, 1.0 * is_entry(np.asarray(x.indices), SHAPE))

    @pytest.mark.parametrize(
        ("dtype", "weight", "expected"),
        [
            (jnp.bfloat16, 2.0, jnp.bfloat16),
            (jnp.bfloat16, np.float32(2), jnp.float32),
            (jnp.float32, 1j, jnp.complex64),
            (jnp.int8, 3, jnp.int8),
            (jnp.int8, np.int32(3), jnp.int32),
            (jnp.int32, 0.5, jnp.float32),
            (jnp.float32, 2**40, jnp.float32),
        ],
        ids=str,
    )
    def test_dtypes_promote_as_in_jnp(self, dtype, weight, expected):
        x = column(np.array([1, -3], dtype), [0, 2])
        total = jsg.add_n([x], weights=[weight])
        assert total.dtype == expected
        np.testing.assert_array_equal(total.data, np.array([1, -3]) * weight)
        assert jsg.add_n([x, np.zeros(6, dtype)], weights=[weight, 1]).dtype == expected

    def test_the_sum_is_made_in_its_own_dtype(self):
        narrow, wide = column(np.array([200], np.uint8), [0]), column(np.array([1], np.int32), [1])
        assert jsg.add_n([narrow, wide], weights=[3, 1]).data.tolist() == [600, 1]
        assert jsg.subtract(wide, narrow).data.tolist() == [-200, 1]
        assert jsg.subtract(narrow, column(np.array([201, 1], np.uint8), [0, 1])).data.tolist() == [255, 255]

    def test_a_difference_without_a_partner_is_exact(self):
        special = special_values()
        count = len(special)
        x = column(np.array([-0.0], np.float32), [count], count + 1)
        for subtract in (jsg.subtract, jax.jit(jsg.subtract)):
            total = subtract(x, column(special, range(count), count + 1))
            assert bits(total.data) == bits(np.append(-special, np.float32(-0.0)))
            of_dense = subtract(column(special[:0], [], count + 1), np.append(special, special[:1]))
            assert bits(of_dense) == bits(-np.append(special, special[:1]))

    @pytest.mark.slow(but="dense")
    @pytest.mark.parametrize("kind", ["bcoo", "bcsr", "batch", "dense"])
    def test_differences_of_all_forms(self, rng, kind):
        layout = LAYOUTS[2] if kind == "batch" else LAYOUTS[0]
        x, y = (random_bcsr if kind == "bcsr" else random_bcoo)(rng, layout), random_bcoo(rng, layout, nse=5)
        y = {"bcsr": as_bcsr, "dense": to_dense}.get(kind, lambda y: y)(y)
        total = jsg.subtract(x, y)
        assert isinstance(total, jax.Array if kind == "dense" else type(x))
        for each in (total, jax.jit(jsg.subtract)(x, y)):
            np.testing.assert_array_equal(to_dense(each), to_dense(x) - to_dense(y))
        np.testing.assert_array_equal(to_dense(jsg.subtract(y, x)), to_dense(y) - to_dense(x))

    def test_eager_multiples_of_new_lengths_compile_nothing(self, rng):
        def add(count):
            arrays = [random_coo(rng, (40, 50), count + k) for k in range(2)]
            x, y = (BCOO(jax.device_put((values, rows)), shape=(40, 50)) for rows, values in arrays)
            total = jsg.add_n([x, y], weights=[2.0, 3])
            assert float(np.asarray(total.data).sum()) == 2 * arrays[0][1].sum() + 3 * arrays[1][1].sum()
            jsg.subtract(x, y)
            jsg.sum_duplicates(x, remove_zeros=True)

        add(100)
        with jax.no_tracing():
            for count in (101, 250, 555):
                add(count)

    @pytest.mark.parametrize(
        ("weights", "error", "message"),
        [
            (2.0, TypeError, "`weights` must be a list, tuple or vector with a scalar for each operand, got float"),
            (np.float32(2), TypeError, "`weights` must be a list, .* got an array without dimensions"),
            ([2.0], ValueError, "`weights` must hold one scalar for each of the 2 operands, got 1"),
            ([1, np.ones(2)], ValueError, r"`weights\[1\]` must be a scalar, got shape \(2,\)"),
            ([1, None], TypeError, r"`weights\[1\]` must be a real or complex number, got NoneType"),
            ([True, 1], TypeError, r"`weights\[0\]` must be a real or complex number, got bool"),
            ([1, np.array("a")], TypeError, r"`weights\[1\]` must be a real or complex number, got dtype <U1"),
            ([1, 300], ValueError, r"`weights\[1\]` must fit uint8, the dtype of the sum; got 300"),
            ([1, -1], ValueError, r"`weights\[1\]` must fit uint8, the dtype of the sum; got -1"),
        ],
        ids=repr,
    )
    def test_refused_weights(self, weights, error, message):
        x = column(np.array([1], np.uint8), [0])
        with pytest.raises(error, match=message):
            jsg.add_n([np.zeros(6, np.uint8), x], weights=weights)


class TestSumDuplicates:
    """The canonical form of one matrix, against JAX's."""

    @pytest.mark.slow(but="False-((6, 7), 0, 0)")
    @pytest.mark.parametrize("layout", LAYOUTS, ids=str)
    @pytest.mark.parametrize("remove_zeros", [False, True])
    def test_it_is_that_of_jax(self, rng, layout, remove_zeros):
        x = random_bcoo(rng, layout, padding=0 if len(layout[0]) == layout[1] + layout[2] else 2)
        data = np.asarray(x.data)
        x.data = jnp.asarray(np.where(np.abs(data) < 4, np.copysign(0, data), data))

        @jax.jit
        def both(x):
            return jsg.sum_duplicates(x, nse=NSE, remove_zeros=remove_zeros), x.sum_duplicates(NSE, remove_zeros)

        traced, expected = both(x)
        total = jsg.sum_duplicates(x, remove_zeros=remove_zeros)
        np.testing.assert_array_equal(traced.indices, expected.indices)
        np.testing.assert_array_equal(total.indices, np.asarray(expected.indices)[..., : total.nse, :])
        for each in (total, traced):
            np.testing.assert_array_equal(to_dense(each), to_dense(expected))
        check_form(total)
        if x.n_sparse:
            inside = np.all(np.asarray(expected.indices) < x.shape[x.n_batch :][: x.n_sparse], axis=-1)
            assert total.nse == inside.sum(axis=-1).max()

    def test_zeros_of_a_shared_pattern_go_if_they_are_zero_in_all_batches(self):
        data = jnp.array([[0.0, 0, 3], [0, 2, 0]])
        x = BCOO((data, jnp.array([[[2], [1], [0]]])), shape=(2, 3))
        total = jsg.sum_duplicates(x, remove_zeros=True)
        assert (total.indices.tolist(), total.data.tolist()) == ([[[0], [1]]], [[3, 0], [0, 2]])

    def test_entries_that_cancel_stay(self):
        x = column(np.array([1.0, 0, -1], np.float32), [3, 3, 3])
        assert jsg.sum_duplicates(x, remove_zeros=True).data.tolist() == [0.0]

    @pytest.mark.slow
    def test_bcsr(self, rng):
        x = random_bcsr(rng)
        x.data = x.data.at[:3].set(0)
        for remove_zeros in (False, True):
            total = jsg.sum_duplicates(x, remove_zeros=remove_zeros)
            assert isinstance(total, BCSR)
            assert total.nse == x.to_bcoo().sum_duplicates(remove_zeros=remove_zeros).nse
            np.testing.assert_array_equal(to_dense(total), to_dense(x))
            check_form(total)

    def test_padding_of_a_sum_made_under_jit_is_stripped(self, rng):
        x, y = random_bcoo(rng), random_bcoo(rng)
        total = jsg.sum_duplicates(jax.jit(jsg.add)(x, y))
        assert total.nse == len(union_indices(x.indices, y.indices, shape=SHAPE))
        scipy = pytest.importorskip("scipy.sparse")
        rows, columns = np.asarray(total.indices).T
        matrix = scipy.coo_array((np.asarray(total.data), (rows, columns)), shape=SHAPE)
        np.testing.assert_array_equal(matrix.todense(), to_dense(x) + to_dense(y))

    @pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
    def test_what_is_left_out_has_gradient_zero(self, transform):
        data, rows = jnp.array([1.0, 0, 2, 4, 0]), [3, 1, 3, 6, 3]

        def loss(data):
            total = jsg.sum_duplicates(column(data, rows), remove_zeros=True)
            return jnp.sum(total.data**2)

        np.testing.assert_array_equal(transform(jax.grad(loss))(data), [6, 0, 6, 0, 0])

    def test_refusals(self):
        with pytest.raises(TypeError, match=r"`x` must be a BCOO or a BCSR, got an array; convert it with `BCOO"):
            jsg.sum_duplicates(jnp.ones(3))
        with pytest.raises(TypeError, match="`remove_zeros` must be a Python bool, got 1"):
            jsg.sum_duplicates(column([1.0], [0]), remove_zeros=1)
        with pytest.raises(ValueError, match="`nse` must be at least 2"):
            jsg.sum_duplicates(column([1.0, 2.0], [0, 1]), nse=1)


class TestEmpty:
    """What a loop that adds starts from."""

    def test_it_holds_nothing_and_has_the_flags_of_a_sum(self, rng):
        for layout in LAYOUTS[:3]:
            shape, n_batch, n_dense = layout
            nothing = jsg.empty(shape, 4, jnp.bfloat16, n_batch=n_batch, n_dense=n_dense)
            assert (nothing.nse, nothing.dtype, nothing.indices.dtype) == (4, jnp.bfloat16, jnp.int32)
            check_form(nothing)
            assert not to_dense(nothing).any()
            x = random_bcoo(rng, layout)
            np.testing.assert_array_equal(to_dense(jsg.add(nothing, x)), to_dense(x))

    def test_scan_and_fori_loop_carry_sums(self, rng):
        steps = [random_bcoo(rng, nse=5) for _ in range(4)]
        data, rows = jnp.stack([x.data for x in steps]), jnp.stack([x.indices for x in steps])

        def add(total, step):
            return jsg.add(total, BCOO(step, shape=SHAPE), nse=20)

        @jax.jit
        def run(data, rows):
            start = jsg.empty(SHAPE, 20, jnp.float32)
            total, _ = jax.lax.scan(lambda total, step: (add(total, step), None), start, (data, rows))
            return total, jax.lax.fori_loop(0, 4, lambda k, total: add(total, (data[k], rows[k])), start)

        for total in run(data, rows):
            check_form(total)
            np.testing.assert_array_equal(to_dense(total), sum(map(to_dense, steps)))

    def test_indices_are_as_wide_as_the_shape_needs(self, x64):
        assert jsg.empty((2**31 - 1,), 1, np.float64).indices.dtype == jnp.int32
        wide = jsg.empty((2**31, 3), 1, np.float64)
        assert (wide.dtype, wide.indices.dtype, wide.indices.tolist()) == (jnp.float64, jnp.int64, [[2**31, 3]])
        assert jsg.empty((3,), 1, int, index_dtype=jnp.int64).indices.dtype == jnp.int64

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (((2**31,), 1, float), ValueError, r"`shape` must not exceed 2147483647, .*; cast the indices to uint32"),
            (((3,), None, float), TypeError, "`nse` must be an int, got None"),
            (((3,), -1, float), ValueError, "`nse` must not be negative"),
            (((-3,), 1, float), ValueError, r"`shape` must not have negative sizes, got \(-3,\)"),
            (((3,), 1, "foo"), TypeError, "`dtype` must be a dtype that sums support, got 'foo'"),
            (((3,), 1, bool), TypeError, "`dtype` must be a dtype that sums support, got <class 'bool'>"),
            (
                ((3,), 1, float, {"index_dtype": float}),
                TypeError,
                "`index_dtype` must be an integer dtype, got",
            ),
            (((300,), 1, float, {"index_dtype": np.int8}), ValueError, "`shape` must not exceed 127"),
            (((3,), 1, float, {"n_batch": 1, "n_dense": 1}), ValueError, "`n_batch` and `n_dense` together must not"),
        ],
        ids=str,
    )
    def test_refusals(self, arguments, error, message):
        keywords = arguments[3] if len(arguments) > 3 else {}
        with pytest.raises(error, match=message):
            jsg.empty(*arguments[:3], **keywords)


class TestDenseOperands:
    """What a dense operand adds to the questions."""

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float8_e5m2], ids=lambda dtype: dtype.__name__)
    def test_duplicates_in_narrow_floats_are_summed_in_wide_ones(self, dtype):
        x = column(np.ones(3000, dtype), [1] * 3000)
        dense = np.array([-0.0, 8, 0], dtype)
        x = BCOO((x.data, x.indices), shape=(3,))
        add = jax.jit(lambda data, dense: jsg.add(BCOO((data, x.indices), shape=(3,)), dense))
        total, pull = jax.vjp(add, x.data, dense)
        assert (total.dtype, bits(total)) == (dtype, bits(np.array([-0.0, 3008, 0], np.float32).astype(dtype)))
        smallest = np.asarray(jnp.finfo(dtype).smallest_subnormal)
        cotangent = np.array([1, smallest, -0.0], dtype)
        of_data, of_dense = pull(jnp.asarray(cotangent))
        assert (of_data.dtype, bits(of_data), bits(of_dense)) == (dtype, bits(cotangent[1:2]) * 3000, bits(cotangent))

    @pytest.mark.parametrize(("dtype", "expected"), [(jnp.int4, -7), (jnp.uint4, 9), (jnp.int2, 1), (jnp.uint2, 1)])
    def test_integers_of_less_than_a_byte_wrap(self, dtype, expected):
        rows, ones = jnp.ones((1000, 1), jnp.int32), jnp.ones(1000, jnp.int8).astype(dtype)
        total = jsg.add(BCOO((ones, rows), shape=(3,)), jnp.ones(3, jnp.int8).astype(dtype))
        assert (total.dtype, total.astype(jnp.int32).tolist()) == (dtype, [1, expected, 1])

    def test_they_may_be_nested_lists(self, rng):
        x = random_bcoo(rng)
        lists = random_values(rng, SHAPE).tolist()
        np.testing.assert_array_equal(jsg.add(x, lists), to_dense(x) + np.array(lists))
        np.testing.assert_array_equal(jsg.add_n([tuple(lists), x, lists]), to_dense(x) + 2 * np.array(lists))


class Wrapped:
    """What holds an array without being one, as `flax.nnx.Param` does."""

    def __init__(self, held):
        self.held = held

    def __jax_array__(self):
        return self.held


class TestWrappers:
    """Arrays in wrappers."""

    @pytest.mark.parametrize("make", [random_bcoo, random_bcsr])
    @pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
    def test_containers_hold_them_and_are_held(self, rng, make, transform):
        x, y = make(rng), make(rng)
        wrap = lambda x: jax.tree.map(Wrapped, x)  # noqa: E731

        @transform
        def add(x, y):
            return [jsg.add(f(x), g(y)) for f, g in ((wrap, wrap), (wrap, lambda y: y), (Wrapped, wrap))]

        for total in add(x, y):
            np.testing.assert_array_equal(to_dense(total), to_dense(x) + to_dense(y))
        assert isinstance(jax.tree.leaves(wrap(x))[0], Wrapped)

    def test_dense_arrays_and_weights(self, rng):
        x, dense = random_bcoo(rng), random_values(rng, SHAPE)
        np.testing.assert_array_equal(jsg.add(x, Wrapped(jnp.asarray(dense))), to_dense(x) + dense)
        total = jsg.add_n([x, dense], weights=[Wrapped(jnp.float32(2)), 1])
        np.testing.assert_array_equal(total, 2 * to_dense(x) + dense)
        total = jsg.add_n([x, dense], weights=Wrapped(jnp.array([2.0, 3.0])))
        np.testing.assert_array_equal(total, 2 * to_dense(x) + 3 * dense)


checked_add = jax.jit(checkify.checkify(jsg.add), static_argnames=("nse", "assume_canonical"))


@cache
def matrix_of_jax(kind):
    """A matrix that JAX made, with rows of which only some indices are those of padding; and its dense form."""
    if kind == "bcsr":
        indptr = jnp.array([0, 2, 2, 4])
        total = BCSR((jnp.arange(1.0, 6), jnp.array([0, 3, 9, 1, 3]), indptr), shape=(3, 3))
        return total, np.array([[1, 0, 0], [0, 0, 0], [0, 4, 0]], np.float32)
    rng = np.random.default_rng(20261123)
    # All of one shape, so that one program adds them.
    sizes = {"concatenation": [(3, 7), (3, 7)], "product": [(6, 4), (4, 7)], "slice": [(9, 8)]}[kind]
    parts = [random_bcoo(rng, (size, 0, 0), padding=3) for size in sizes]
    dense = [to_dense(part) for part in parts]
    if kind == "concatenation":
        total, expected = sparse.bcoo_concatenate(parts, dimension=0), np.concatenate(dense)
        assert np.any(np.all(np.asarray(total.indices) == (3, 7), axis=1))  # which is not the shape of the whole
    elif kind == "product":
        total, expected = jax.jit(lambda a, b: a @ b)(*parts), dense[0] @ dense[1]
    else:
        total, expected = parts[0][1:7, 1:], dense[0][1:7, 1:]
    data, indices = np.asarray(total.data), np.asarray(total.indices)
    missing = 60 - len(data)
    indices = np.concatenate([indices, np.tile(np.array([SHAPE], np.int32), (missing, 1))])
    total = BCOO((jnp.asarray(np.append(data, [1.0] * missing), jnp.float32), jnp.asarray(indices)), shape=SHAPE)
    return total, expected


class TestPaddingOfJax:
    """To JAX, any row of which one index lies beyond the shape is padding."""

    KINDS = ("concatenation", "product", "slice", "bcsr")

    @pytest.mark.slow(but="slice")
    @by_cases(["kind"], [(kind,) for kind in KINDS])
    def test_it_adds_nothing(self, kind):
        x, expected = matrix_of_jax(kind)
        for add in (jsg.add, jax.jit(jsg.add)):
            np.testing.assert_allclose(to_dense(add(x, x)), 2 * expected, rtol=1e-6)

    @pytest.mark.slow(but="slice")
    @pytest.mark.parametrize("kind", KINDS)
    def test_it_adds_nothing_to_others_and_is_removed(self, kind):
        x, expected = matrix_of_jax(kind)
        for add in (jsg.add, jax.jit(jsg.add)):
            np.testing.assert_allclose(add(x, np.zeros(x.shape, np.float32)), expected, rtol=1e-6)
        np.testing.assert_allclose(to_dense(jsg.sum_duplicates(x)), expected, rtol=1e-6)
        np.testing.assert_allclose(to_dense(jsg.subtract(jsg.sum_duplicates(x), x)), 0 * expected, atol=1e-5)
        error, _ = checked_add(x, x)
        assert error.get() is None

    def test_its_gradient_is_zero(self):
        rows = jnp.array([[0, 1], [2, 0], [0, 3], [0, 1], [5, 9]])

        def loss(data):
            x = BCOO((data, rows), shape=(2, 3))
            return jsg.add(x, x).data.sum() + jsg.add(x, np.zeros((2, 3), np.float32)).sum()

        for gradient in (jax.grad(loss), jax.jit(jax.grad(loss))):
            np.testing.assert_array_equal(gradient(jnp.ones(5)), [3, 0, 0, 3, 0])

    def test_negative_indices_are_errors_still(self):
        x = BCOO((jnp.ones(3), jnp.array([[0, 1], [2, 0], [0, -1]])), shape=(2, 3))
        y = BCSR((jnp.ones(2), jnp.array([1, -2]), jnp.array([0, 1, 2])), shape=(2, 3))
        with pytest.raises(ValueError, match=r"`y.indices` .* row 2 is \[ 0 -1\]"):
            jsg.add(jsg.empty((2, 3), 1, float), x)
        with pytest.raises(ValueError, match=r"`x.indices` .* row 1 is \[ 1 -2\]"):
            jsg.add(y, x)
        error, _ = checked_add(jsg.empty((2, 3), 1, float), x)
        assert "`y.indices`" in error.get()


class TestRefusals:
    """What is refused, and with which words."""

    @pytest.fixture
    def x(self, rng):
        return random_bcoo(rng)

    @pytest.mark.parametrize(
        ("other", "error", "message"),
        [
            (lambda x: jnp.ones((6, 6)), ValueError, r"`y` must have the shape of `x`; got \(6, 6\) and \(6, 7\)"),
            (lambda x: x.T.todense(), ValueError, r"`y` .*; got \(7, 6\) and \(6, 7\); is one of them transposed\?"),
            (lambda x: jnp.ones(7), ValueError, r"`y` .*; got \(7,\) and \(6, 7\); operands are not broadcast"),
            (lambda x: 1.0, TypeError, r"got float; a sparse matrix plus a number is dense: `x.todense\(\) \+ 1.0`"),
            (lambda x: jnp.ones(()), ValueError, r"got \(\) and .* plus a number is dense: `x.todense\(\) \+ number`"),
            (
                lambda x: sparse.COO.fromdense(x.todense(), nse=3),
                TypeError,
                r"`y` .*, got COO; .*`BCOO.fromdense\(x.to",
            ),
            (lambda x: np.full(SHAPE, None), TypeError, "`y` must have a numeric dtype, got object"),
            (lambda x: np.full(SHAPE, "a"), TypeError, "`y` must have a numeric dtype, got <U1"),
            (lambda x: [x], TypeError, "`y` must be a BCOO, .*, got list of BCOO; `add_n` adds the matrices of a list"),
            (lambda x: None, TypeError, "`y` must be a BCOO, a BCSR or an array, got NoneType"),
            (
                lambda x: (x.data, x.indices),
                TypeError,
                r"got a tuple of JAX arrays; .* `BCOO\(\(data, indices\), shape",
            ),
            (
                lambda x: jsg.sparse_add(x.indices, x.data, SHAPE, x.indices, x.data, SHAPE),
                TypeError,
                r"got SparseAddOutput; the same matrix is `BCOO\(\(x.sum_values, x.sum_indices\), shape=x.sum_shape\)`",
            ),
            (
                lambda x: jsg.plan_sparse_add(np.zeros((1, 2), int), shape=SHAPE),
                TypeError,
                r"`y` must be a BCOO, .*, got SparseAddPlan; .*: `plan\(x.data, y.data\)`",
            ),
            (
                lambda x: BCOO((x.data > 0, x.indices), shape=SHAPE),
                TypeError,
                "`y.data` must have a numeric dtype, got bool",
            ),
            (
                lambda x: x.update_layout(n_batch=1, on_inefficient=None),
                ValueError,
                r"`y` .*; got \(1, 1, 0\) and \(0, 2, 0\); `BCOO.update_layout\(n_batch=0, n_dense=0\)` of `y` changes",
            ),
            (
                lambda x: jax.tree.map(lambda leaf: leaf[None], x),
                ValueError,
                r"`y` must have as many sizes as .* together; got \(1, 2, 0\) and shape \(6, 7\); arrays that `scan`",
            ),
            (
                lambda x: jax.grad(lambda x: x.data.sum(), allow_int=True)(x),
                TypeError,
                "`y.indices` must have an integer dtype, got float0, which stands for no gradient",
            ),
        ],
        ids=lambda part: part if isinstance(part, str) else "",
    )
    def test_of_an_operand(self, x, other, error, message):
        with pytest.raises(error, match=message):
            jsg.add(x, other(x))
        with pytest.raises(error, match=message):
            jax.jit(lambda: jsg.add(x, other(x)))()

    def test_of_arguments(self, x):
        dense = jnp.ones(SHAPE)
        with pytest.raises(TypeError, match="one of the operands must be a BCOO or a BCSR, got only arrays"):
            jsg.add(dense, dense)
        with pytest.raises(TypeError, match=r"got only arrays; .*under `sparsify`, sparse arguments look like arrays"):
            sparse.sparsify(jsg.add)(x, x)
        with pytest.raises(ValueError, match=r"`nse` must not be given if an operand is dense: .* got 3"):
            jsg.add(x, dense, nse=3)
        for operands, kind in ((x, "BCOO"), (dense, "an array"), ({"x": x}, "dict"), (3, "int")):
            with pytest.raises(TypeError, match=f"`operands` must be a list or tuple of operands .*, got {kind}"):
                jsg.add_n(operands)
        with pytest.raises(ValueError, match="`operands` must hold at least one operand"):
            jsg.add_n([])
        with pytest.raises(ValueError, match=r"`operands\[1\]` must have the shape of `operands\[0\]`"):
            jsg.add_n([x, random_bcoo(np.random.default_rng(0), ((7, 6), 0, 0))])
        wide = BCSR((x.data, x.indices[:, 1].astype(jnp.int8), jnp.zeros(201, jnp.int8)), shape=(200, 7))
        with pytest.raises(ValueError, match=r"`x.shape` must not exceed 127, the largest index of int8"):
            jsg.add(wide, wide)
        narrow = BCSR((jnp.ones(100), jnp.zeros(100, jnp.int8), jnp.array([0, 100], jnp.int8)), shape=(1, 100))
        with pytest.raises(ValueError, match="`nse` must not exceed 127, the most that the operands' `indptr`"):
            jax.jit(jsg.add)(narrow, narrow)

    def test_of_matrices_of_other_libraries(self, x):
        scipy = pytest.importorskip("scipy.sparse")
        with pytest.raises(TypeError, match=r"`y` .*, got csr_array; convert it with `BCOO.from_scipy"):
            jsg.add(x, scipy.csr_array(SHAPE))

    def test_of_matrices_whose_rows_are_spread_over_devices(self, x):
        spread = jsg.sharded.partition(x, jax.make_mesh((1,), ("rows",)), "rows")
        for operands, name in (((spread, x), "x"), ((x, spread), "y")):
            with pytest.raises(TypeError, match=f"`{name}` .*, got RowSharded; call `jsg.sharded.add` or .*partition"):
                jsg.add(*operands)

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
        message = r"`y.indices\[2\]` must not be negative; row 4 is \[ 0 -1\]"
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

    @pytest.mark.slow
    def test_of_data_by_checkify_where_it_is_traced(self, rng):
        x = random_bcoo(rng, ((3, *SHAPE), 1, 0))

        def message(x, y, **keywords):
            return checked_add(x, y, **keywords)[0].get() or ""

        assert message(x, x) == message(jnp.ones(x.shape), x) == ""
        bad = BCOO((x.data, x.indices.at[2, 4].set(jnp.array([0, -1]))), shape=x.shape)
        for other in (x, jnp.ones(x.shape)):
            assert "`y.indices[2]` must not be negative; row 4 is [ 0 -1]" in message(other, bad)
        assert "`nse` must be at least" in message(x, x, nse=2)
        assert "must be sorted and unique" in message(x, x, assume_canonical=True)
        matrix = BCSR((jnp.ones(3), jnp.arange(3), jnp.array([0, 3, 2])), shape=(2, 3))
        assert "`x.indptr` must rise from 0" in message(matrix, matrix)

    @pytest.mark.slow
    def test_an_overflowed_sum_is_poisoned_under_jit(self, rng):
        x, y = (random_bcoo(rng, ((3, *SHAPE), 1, 0)) for _ in range(2))
        add = jax.jit(lambda x, y: jsg.add(x, y, nse=4))
        assert np.all(np.isnan(add(x, y).data))
        # Only the batch that does not fit.
        for each in (x, y):
            each.indices = jnp.asarray(np.where(np.arange(3)[:, None, None] == 1, each.indices, SHAPE), jnp.int32)
        total = add(x, y)
        np.testing.assert_array_equal(np.isnan(total.data), np.broadcast_to([[False], [True], [False]], (3, 4)))
