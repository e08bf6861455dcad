"""`add` and `subtract` of BCOO and BCSR matrices: sums, their form, and their gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify, sparse
from jax.experimental.sparse import BCOO, BCSR

import jax_sparse_grad as jsg
from helpers.matrices import as_bcoo, as_bcsr, at_rows, bits, check_canonical, is_entry, to_dense
from helpers.samples import LAYOUTS, NSE, SHAPE, random_bcoo, random_bcsr, random_values, special_values

add = jax.jit(jsg.add)
BATCHES = ((3, *SHAPE), 1, 0)


# Compiled, BCOO has one pattern and BCSR batches of them.
@pytest.mark.parametrize(("layout", "add"), [*((layout, jsg.add) for layout in LAYOUTS), (LAYOUTS[0], add)])
def test_bcoo_and_bcoo_give_a_bcoo(rng, layout, add):
    # Flags that claim what is not so must not matter.
    x = random_bcoo(rng, layout, indices_sorted=True, unique_indices=True)
    y = random_bcoo(rng, layout, nse=5)
    total = add(x, y)
    assert isinstance(total, BCOO)
    assert (total.n_batch, total.n_dense) == layout[1:]
    np.testing.assert_array_equal(to_dense(total), to_dense(x) + to_dense(y))
    check_canonical(total)
    entries = is_entry(np.asarray(total.indices), x.shape[x.n_batch :][: x.n_sparse]).sum(axis=-1).max()
    assert total.nse == (entries if add is jsg.add else x.nse + y.nse)


@pytest.mark.parametrize(("layout", "add"), [(LAYOUTS[0], jsg.add), (LAYOUTS[1], jsg.add), (BATCHES, add)])
def test_bcsr_and_bcsr_give_a_bcsr(rng, layout, add):
    x, y = random_bcsr(rng, layout), random_bcsr(rng, layout, nse=5)
    total = add(x, y)
    assert isinstance(total, BCSR)
    np.testing.assert_array_equal(to_dense(total), to_dense(x) + to_dense(y))
    check_canonical(total)
    # Rows without entries have a start as well, and the last row ends with the last entry.
    assert total.indptr.shape == (*layout[0][: layout[1]], layout[0][layout[1]] + 1)
    assert np.all(np.asarray(total.indptr)[..., 0] == 0)


def test_dtypes_promote(rng):
    x = random_bcoo(rng, dtype=np.int16, index_dtype=np.int8)
    y = random_bcoo(rng, dtype=np.float32, index_dtype=np.uint8)
    total = jsg.add(x, y)
    assert (total.dtype, total.indices.dtype) == (jnp.float32, jnp.int16)
    np.testing.assert_array_equal(to_dense(total), to_dense(x).astype(np.float32) + to_dense(y))
    assert jsg.add(x, jnp.ones(SHAPE, jnp.bfloat16)).dtype == jnp.bfloat16
    assert jsg.add(random_bcsr(rng, index_dtype=np.int8), random_bcsr(rng)).indptr.dtype == jnp.int32


def test_batches_that_share_a_pattern_still_do(rng):
    rows = random_bcoo(rng).indices[None]
    x = BCOO((jnp.asarray(random_values(rng, (3, NSE))), rows), shape=(3, *SHAPE))
    y = BCOO((jnp.asarray(random_values(rng, (1, NSE))), rows[:, ::-1]), shape=(3, *SHAPE))
    total = jsg.add(x, y)
    assert (total.indices.shape[0], total.data.shape[0]) == (1, 3)
    np.testing.assert_array_equal(to_dense(total), to_dense(x) + to_dense(y))
    own = random_bcoo(rng, BATCHES)  # of which each batch has its own pattern
    for total in (jsg.add(y, own), jsg.add(y, to_dense(own))):
        np.testing.assert_array_equal(to_dense(total), to_dense(y) + to_dense(own))


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (3, 4, 0)])
def test_shapes_without_cells(shape):
    rows = jnp.tile(jnp.array(shape[1:], jnp.int32), (shape[0], 2, 1))
    x = BCOO((jnp.ones((shape[0], 2)), rows), shape=shape)
    total = jsg.add(x, x)
    assert total.shape == shape
    assert not np.any(total.data)
    assert jsg.add(x, jnp.zeros(shape)).shape == shape


def test_todense_matmul_and_sparsify_of_the_result(rng):
    x, y = random_bcoo(rng), random_bcoo(rng)
    dense, vector = to_dense(x) + to_dense(y), jnp.asarray(random_values(rng, 7))

    @jax.jit
    def use(u, v):
        total = jsg.add(BCOO((u, x.indices), shape=SHAPE), BCOO((v, y.indices), shape=SHAPE))
        scaled = sparse.sparsify(lambda m: (m * 2.0).sum(axis=0))(total)
        return total.todense(), total @ vector, total.T.todense(), scaled.todense()

    chex.assert_trees_all_equal(use(x.data, y.data), (dense, dense @ vector, dense.T, 2 * dense.sum(axis=0)))


@pytest.mark.parametrize("kind", ["bcoo", "bcsr", "batch", "dense"])
def test_differences_of_all_forms(rng, kind):
    layout = BATCHES if kind == "batch" else LAYOUTS[0]
    x, y = (random_bcsr if kind == "bcsr" else random_bcoo)(rng, layout), random_bcoo(rng, layout, nse=5)
    y = {"bcsr": as_bcsr, "dense": to_dense}.get(kind, lambda y: y)(y)
    total = jsg.subtract(x, y)
    assert isinstance(total, jax.Array if kind == "dense" else type(x))
    np.testing.assert_array_equal(to_dense(total), to_dense(x) - to_dense(y))
    np.testing.assert_array_equal(to_dense(jsg.subtract(y, x)), to_dense(y) - to_dense(x))


def test_a_difference_without_a_partner_is_exact():
    special = special_values()
    count, zero = len(special), np.array([-0.0], np.float32)

    one, many, none = (jnp.arange(*ends)[:, None] for ends in ((count, count + 1), (count,), (0,)))

    def subtract(zero, special):
        x, y, nothing = (
            BCOO((data, rows), shape=(count + 1,)) for data, rows in ((zero, one), (special, many), (special[:0], none))
        )
        return jsg.subtract(x, y).data, jsg.subtract(nothing, jnp.append(special, special[:1]))

    for each in (subtract, jax.jit(subtract)):
        total, of_dense = each(zero, special)
        assert bits(total) == bits(np.append(-special, zero))
        assert bits(of_dense) == bits(-np.append(special, special[:1]))


def cotangent_of(total, data):
    """A cotangent of a matrix: its indices have none."""
    cotangent = jax.tree.map(lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0), total)
    cotangent.data = jnp.asarray(data)
    return cotangent


class TestGradients:
    """The gradient of an operand has the pattern, the number of entries, the shape and the dtype of that operand."""

    @pytest.fixture
    def table(self, rng):
        return random_values(rng, SHAPE)

    def test_of_a_mixture_of_traced_operands(self, rng, table):
        # Explicit zeros count as entries; duplicates each get the gradient of their sum, padding gets 0.
        operands = [
            random_bcoo(rng),
            random_bcsr(rng, dtype=jnp.bfloat16),
            random_bcoo(rng, nse=5),
            random_bcsr(rng, nse=0),
        ]
        operands[2].data = jnp.zeros_like(operands[2].data)

        @jax.jit
        def gradients(*operands):
            total, pull = jax.vjp(lambda *operands: jsg.add_n(operands, nse=30), *operands)
            return total, pull(cotangent_of(total, jnp.asarray(table).at[tuple(total.indices.T)].get(mode="fill")))

        total, of_operands = gradients(*operands)
        np.testing.assert_array_equal(to_dense(total), sum(to_dense(x).astype(np.float32) for x in operands))
        for gradient, operand in zip(of_operands, operands, strict=True):
            assert isinstance(gradient, type(operand))
            assert (gradient.shape, gradient.dtype) == (operand.shape, operand.dtype)
            expected = at_rows(table, as_bcoo(operand).indices, SHAPE)
            np.testing.assert_array_equal(np.asarray(gradient.data, np.float32), expected)

    def test_by_the_gradient_of_jax_sparse(self, rng, table):
        x, y = random_bcoo(rng), random_bcoo(rng)
        weights = at_rows(table, jsg.add(x, y).indices, SHAPE)
        gradient = sparse.grad(lambda x: jnp.vdot(weights, jsg.add(x, y).data))(x)
        assert isinstance(gradient, BCOO)
        np.testing.assert_array_equal(gradient.indices, x.indices)
        np.testing.assert_array_equal(gradient.data, at_rows(table, x.indices, SHAPE))

    def test_of_both_sides_of_a_difference(self, rng, table):
        x, y = random_bcoo(rng), random_bcsr(rng)
        total, pull = jax.vjp(jsg.subtract, x, y)
        of_x, of_y = pull(cotangent_of(total, at_rows(table, total.indices, SHAPE)))
        np.testing.assert_array_equal(of_x.data, at_rows(table, x.indices, SHAPE))
        np.testing.assert_array_equal(of_y.data, -at_rows(table, as_bcoo(y).indices, SHAPE))

    def test_of_batches(self, rng):
        x, y, table = random_bcoo(rng, BATCHES), random_bcoo(rng, BATCHES), random_values(rng, BATCHES[0])
        total, pull = jax.vjp(jsg.add, x, y)
        gradients = pull(cotangent_of(total, [at_rows(table[k], total.indices[k], SHAPE) for k in range(3)]))
        for gradient, operand in zip(gradients, (x, y), strict=True):
            expected = [at_rows(table[k], operand.indices[k], SHAPE) for k in range(3)]
            np.testing.assert_array_equal(gradient.data, expected)


def test_a_sum_that_overflows_is_refused_or_poisoned_in_its_own_batch(rng):
    x, y = (random_bcoo(rng, BATCHES) for _ in range(2))
    with pytest.raises(ValueError, match=r"`nse` must be at least .*, the number of distinct entries .*; got 2"):
        jsg.subtract(x, x, nse=2)
    y.indices = y.indices.at[::2].set(x.indices[::2])
    total = jax.jit(lambda x, y: jsg.subtract(x, y, nse=5))(x, y)
    np.testing.assert_array_equal(np.isnan(total.data), np.broadcast_to([[False], [True], [False]], (3, 5)))
    np.testing.assert_array_equal(to_dense(total)[::2], (to_dense(x) - to_dense(y))[::2])


class TestPaddingOfJax:
    """To JAX, any row of which one index lies beyond the shape is padding."""

    def make(self, rng, kind):
        """A matrix that JAX made, with rows of which only some indices are those of padding; and its dense form."""
        if kind == "bcsr":
            parts = jnp.arange(1.0, 6), jnp.array([0, 3, 9, 1, 3]), jnp.array([0, 2, 2, 4])
            return BCSR(parts, shape=(3, 3)), np.array([[1, 0, 0], [0, 0, 0], [0, 4, 0]], np.float32)
        parts = [random_bcoo(rng, padding=3) for _ in range(2)]
        return sparse.bcoo_concatenate(parts, dimension=0), np.concatenate([*map(to_dense, parts)])

    @pytest.mark.parametrize("kind", ["concatenation", "bcsr"])
    def test_it_adds_nothing_and_is_removed(self, rng, kind):
        x, expected = self.make(rng, kind)
        np.testing.assert_array_equal(to_dense(jsg.add(x, x)), 2 * expected)
        np.testing.assert_array_equal(jsg.add(x, np.zeros(x.shape, np.float32)), expected)
        canonical = jsg.sum_duplicates(x)
        check_canonical(canonical)
        np.testing.assert_array_equal(to_dense(canonical), expected)

    def test_its_gradient_is_zero(self):
        rows = jnp.array([[0, 1], [2, 0], [0, 3], [0, 1], [5, 9]])

        def loss(data):
            x = BCOO((data, rows), shape=(2, 3))
            return jsg.add(x, x).data.sum() + jsg.add(x, np.zeros((2, 3), np.float32)).sum()

        for gradient in (jax.grad(loss), jax.jit(jax.grad(loss))):
            np.testing.assert_array_equal(gradient(jnp.ones(5)), [3, 0, 0, 3, 0])


class TestData:
    """What is refused once it can be looked at: now, or by `checkify`."""

    @pytest.fixture
    def x(self, rng):
        return jsg.sum_duplicates(random_bcoo(rng, BATCHES), nse=NSE)

    @pytest.fixture
    def bad(self, x):
        return BCOO((x.data, x.indices.at[2, 0].set(jnp.array([-1, 0]))), shape=x.shape)

    def test_negative_indices(self, x, bad):
        for other in (x, np.ones(x.shape)):
            with pytest.raises(ValueError, match=r"`y.indices\[2\]` must not be negative; row 0 is \[-1  0\]"):
                jsg.add(other, bad)
        y = BCSR((jnp.ones(2), jnp.array([1, -2]), jnp.array([0, 1, 2])), shape=(2, 3))
        with pytest.raises(ValueError, match=r"`x.indices` .* row 1 is \[ 1 -2\]"):
            jsg.add(y, y)

    @pytest.mark.parametrize("indptr", [[1, 2, 3], [0, 3, 2], [0, 2, 4]], ids=str)
    def test_starts_of_rows(self, indptr):
        matrix = BCSR((jnp.ones(3), jnp.arange(3), jnp.array(indptr)), shape=(2, 3))
        with pytest.raises(ValueError, match=r"`x.indptr` must rise from 0 to at most nse \(3\); got \["):
            jsg.add(matrix, matrix)

    def test_by_checkify(self, rng, x, bad):
        checked = jax.jit(checkify.checkify(lambda x, y: jsg.add(x, y, nse=4, assume_canonical=True)))
        assert checked(x, x)[0].get() is None
        assert "`y.indices[2]` must not be negative; row 0 is [-1  0]" in checked(x, bad)[0].get()
        assert "must be sorted and unique" in checked(x, BCOO((x.data, x.indices[:, ::-1]), shape=x.shape))[0].get()
        other = jsg.sum_duplicates(random_bcoo(rng, BATCHES), nse=NSE)
        assert "`nse` must be at least" in checked(x, other)[0].get()

    def test_dense_operands_and_starts_of_rows_by_checkify(self):
        checked = jax.jit(checkify.checkify(jsg.add))

        def error_of(columns, indptr):
            x = BCSR((jnp.ones(3), jnp.array(columns), jnp.array(indptr)), shape=(2, 3))
            return checked(x, jnp.ones(x.shape))[0].get()

        assert error_of([0, 1, 2], [0, 2, 3]) is None
        assert "`x.indices` must not be negative; row 1 is [ 0 -1]" in error_of([0, -1, 2], [0, 2, 3])
        assert "`x.indptr` must rise from 0" in error_of([0, 1, 2], [0, 3, 2])
