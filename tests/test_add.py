"""`add` and `subtract` of BCOO and BCSR matrices: sums, their form, and their gradients."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify, sparse
from jax.experimental.sparse import BCOO, BCSR

import jax_sparse_grad as jsg
from helpers.matrices import as_bcsr, at_rows, check_canonical, is_entry, to_dense
from helpers.samples import LAYOUTS, NSE, SHAPE, random_bcoo, random_bcsr, random_values, special_values

add = jax.jit(jsg.add)
subtract = jax.jit(jsg.subtract)
BATCHES = ((3, *SHAPE), 1, 0)


def bits(array):
    """The bytes of an array, by which zeros of either sign and NaN differ."""
    return np.asarray(array).view(f"u{array.dtype.itemsize}").tolist()


EAGER = [pytest.param(layout, jsg.add, id=f"eager-{layout}") for layout in LAYOUTS]
TRACED = [
    pytest.param(layout, add, id=f"jit-{layout}", marks=[] if layout in LAYOUTS[::2] else [pytest.mark.slow])
    for layout in LAYOUTS
]


@pytest.mark.parametrize(("layout", "add"), EAGER + TRACED)
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
    assert total.nse == (entries if add is jsg.add else x.nse + y.nse if x.n_sparse else 1)


@pytest.mark.parametrize(("layout", "add"), EAGER[:3] + TRACED[:3])
def test_bcsr_and_bcsr_give_a_bcsr(rng, layout, add):
    x, y = random_bcsr(rng, layout), random_bcsr(rng, layout, nse=5)
    total = add(x, y)
    assert isinstance(total, BCSR)
    np.testing.assert_array_equal(to_dense(total), to_dense(x) + to_dense(y))
    check_canonical(total)
    # Rows without entries have a start as well, and the last row ends with the last entry.
    assert total.indptr.shape == (*layout[0][: layout[1]], layout[0][layout[1]] + 1)
    assert np.all(np.asarray(total.indptr)[..., 0] == 0)


def test_bcoo_and_bcsr_give_a_bcoo(rng):
    x, y = random_bcoo(rng), random_bcsr(rng)
    for total in (jsg.add(x, y), jsg.add(y, x)):
        assert isinstance(total, BCOO)
        np.testing.assert_array_equal(to_dense(total), to_dense(x) + to_dense(y))


def test_calls_are_the_same_where_jit_is_disabled(rng):
    x = random_bcoo(rng)
    with jax.disable_jit():
        total = jsg.add(x, x)
    np.testing.assert_array_equal(to_dense(total), 2 * to_dense(x))


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
    for total in (add(y, own), jsg.add(y, to_dense(own))):
        np.testing.assert_array_equal(to_dense(total), to_dense(y) + to_dense(own))


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5), (3, 4, 0)])
def test_shapes_without_cells(shape):
    rows = jnp.tile(jnp.array(shape[1:], jnp.int32), (shape[0], 2, 1))
    x = BCOO((jnp.ones((shape[0], 2)), rows), shape=shape)
    for total in (jsg.add(x, x), add(x, x)) if shape[0] == 0 else (jsg.add(x, x),):
        assert total.shape == shape
        assert not np.any(total.data)
    assert jsg.add(x, jnp.zeros(shape)).shape == shape


def test_todense_matmul_and_sparsify_of_the_result(rng):
    x, y = random_bcoo(rng), random_bcoo(rng)
    dense, vector = to_dense(x) + to_dense(y), jnp.asarray(random_values(rng, 7))

    @jax.jit
    def use(x, y):
        total = jsg.add(x, y)
        scaled = sparse.sparsify(lambda m: (m * 2.0).sum(axis=0))(total)
        return total.todense(), total @ vector, total.T.todense(), scaled.todense()

    chex.assert_trees_all_equal(use(x, y), (dense, dense @ vector, dense.T, 2 * dense.sum(axis=0)))


@pytest.mark.parametrize("kind", ["bcoo", "bcsr", "batch", "dense"])
def test_differences_of_all_forms(rng, kind):
    layout = LAYOUTS[2] if kind == "batch" else LAYOUTS[0]
    x, y = (random_bcsr if kind == "bcsr" else random_bcoo)(rng, layout), random_bcoo(rng, layout, nse=5)
    y = {"bcsr": as_bcsr, "dense": to_dense}.get(kind, lambda y: y)(y)
    for total in (jsg.subtract(x, y), subtract(x, y)) if kind == "batch" else (jsg.subtract(x, y),):
        assert isinstance(total, jax.Array if kind == "dense" else type(x))
        np.testing.assert_array_equal(to_dense(total), to_dense(x) - to_dense(y))
    np.testing.assert_array_equal(to_dense(jsg.subtract(y, x)), to_dense(y) - to_dense(x))


def test_a_difference_without_a_partner_is_exact():
    special = special_values()
    count = len(special)

    def column(data, *rows):
        return BCOO((jnp.asarray(data), jnp.array(rows, jnp.int32).reshape(-1, 1)), shape=(count + 1,))

    x = column(np.array([-0.0], np.float32), count)
    for each in (jsg.subtract, subtract):
        total = each(x, column(special, *range(count)))
        assert bits(total.data) == bits(np.append(-special, np.float32(-0.0)))
        of_dense = each(column(special[:0]), np.append(special, special[:1]))
        assert bits(of_dense) == bits(-np.append(special, special[:1]))


def cotangent_of(total, data):
    """A cotangent of a matrix: its indices have none."""
    cotangent = jax.tree.map(lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0), total)
    cotangent.data = data
    return cotangent


class TestGradients:
    """The gradient of an operand has the pattern, the number of entries, the shape and the dtype of that operand."""

    @pytest.fixture
    def table(self, rng):
        return random_values(rng, SHAPE)

    @pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
    def test_of_all_operands(self, rng, table, transform):
        # Explicit zeros count as entries; duplicates each get the gradient of their sum, padding gets 0.
        operands = [random_bcoo(rng, dtype=dtype) for dtype in (np.float32, jnp.bfloat16, np.float32)]
        operands[2].data = jnp.zeros_like(operands[2].data)

        @transform
        def gradients(*operands):
            total, pull = jax.vjp(lambda *operands: jsg.add_n(operands, nse=30), *operands)
            return pull(cotangent_of(total, jnp.asarray(table).at[tuple(total.indices.T)].get(mode="fill")))

        for gradient, operand in zip(gradients(*operands), operands, strict=True):
            assert isinstance(gradient, BCOO)
            assert (gradient.shape, gradient.dtype) == (operand.shape, operand.dtype)
            expected = at_rows(table, operand.indices, SHAPE)
            np.testing.assert_array_equal(np.asarray(gradient.data, np.float32), expected)

    def test_by_the_gradient_of_jax_sparse(self, rng, table):
        x, y = random_bcoo(rng), random_bcoo(rng)
        gradient = sparse.grad(lambda x: jnp.vdot(jnp.asarray(table), jsg.add(x, y).todense()))(x)
        assert isinstance(gradient, BCOO)
        np.testing.assert_array_equal(gradient.indices, x.indices)
        np.testing.assert_array_equal(gradient.data, at_rows(table, x.indices, SHAPE))

    def test_of_both_sides_of_a_difference(self, rng, table):
        x, y = random_bcoo(rng), random_bcsr(rng)
        total, pull = jax.vjp(jsg.subtract, x, y)
        of_x, of_y = pull(cotangent_of(total, jnp.asarray(at_rows(table, total.indices, SHAPE))))
        np.testing.assert_array_equal(of_x.data, at_rows(table, x.indices, SHAPE))
        np.testing.assert_array_equal(of_y.data, -at_rows(table, y.to_bcoo().indices, SHAPE))

    def test_of_batches(self, rng):
        x, y, table = random_bcoo(rng, BATCHES), random_bcoo(rng, BATCHES), random_values(rng, BATCHES[0])

        @jax.jit
        def gradient(x, y):
            return jax.grad(lambda x: jnp.vdot(jnp.asarray(table), jsg.add(x, y).todense()), allow_int=True)(x).data

        expected = [at_rows(table[k], x.indices[k], SHAPE) for k in range(3)]
        np.testing.assert_array_equal(gradient(x, y), expected)


class TestOverflow:
    def test_the_sum_is_refused_or_poisoned(self, rng):
        x, y = (random_bcoo(rng, BATCHES) for _ in range(2))
        with pytest.raises(ValueError, match=r"`nse` must be at least .*, the number of distinct entries .*; got 2"):
            jsg.add(x, x, nse=2)
        short = jax.jit(lambda x, y: jsg.add(x, y, nse=4))
        assert np.all(np.isnan(short(x, y).data))
        for each in (x, y):  # of which only one does not fit
            each.indices = jnp.asarray(np.where(np.arange(3)[:, None, None] == 1, each.indices, SHAPE), jnp.int32)
        poisoned = np.isnan(short(x, y).data)
        np.testing.assert_array_equal(poisoned, np.broadcast_to([[False], [True], [False]], (3, 4)))


checked_add = jax.jit(checkify.checkify(jsg.add), static_argnames=("nse", "assume_canonical"))


class TestPaddingOfJax:
    """To JAX, any row of which one index lies beyond the shape is padding."""

    def make(self, rng, kind):
        """A matrix that JAX made, with rows of which only some indices are those of padding; and its dense form."""
        if kind == "bcsr":
            parts = jnp.arange(1.0, 6), jnp.array([0, 3, 9, 1, 3]), jnp.array([0, 2, 2, 4])
            return BCSR(parts, shape=(3, 3)), np.array([[1, 0, 0], [0, 0, 0], [0, 4, 0]], np.float32)
        sizes = {"concatenation": [(3, 7), (3, 7)], "product": [(6, 4), (4, 7)], "slice": [(9, 8)]}[kind]
        parts = [random_bcoo(rng, (size, 0, 0), padding=3) for size in sizes]
        dense = [to_dense(part) for part in parts]
        if kind == "concatenation":
            return sparse.bcoo_concatenate(parts, dimension=0), np.concatenate(dense)
        if kind == "product":
            return jax.jit(lambda a, b: a @ b)(*parts), dense[0] @ dense[1]
        return parts[0][1:7, 1:], dense[0][1:7, 1:]

    @pytest.mark.parametrize("kind", ["concatenation", "product", "slice", "bcsr"])
    def test_it_adds_nothing_and_is_removed(self, rng, kind):
        x, expected = self.make(rng, kind)
        for total in (jsg.add(x, x), add(x, x)) if kind == "bcsr" else (jsg.add(x, x),):
            np.testing.assert_allclose(to_dense(total), 2 * expected, rtol=1e-6)
        np.testing.assert_allclose(jsg.add(x, np.zeros(x.shape, np.float32)), expected, rtol=1e-6)
        canonical = jsg.sum_duplicates(x)
        check_canonical(canonical)
        np.testing.assert_allclose(to_dense(canonical), expected, rtol=1e-6)

    def test_its_gradient_is_zero(self):
        rows = jnp.array([[0, 1], [2, 0], [0, 3], [0, 1], [5, 9]])

        def loss(data):
            x = BCOO((data, rows), shape=(2, 3))
            return jsg.add(x, x).data.sum() + jsg.add(x, np.zeros((2, 3), np.float32)).sum()

        for gradient in (jax.grad(loss), jax.jit(jax.grad(loss))):
            np.testing.assert_array_equal(gradient(jnp.ones(5)), [3, 0, 0, 3, 0])


class TestData:
    """What is refused once it can be looked at: now, or by `checkify`."""

    def test_negative_indices(self, rng):
        x = random_bcoo(rng, BATCHES)
        bad = BCOO((x.data, x.indices.at[2, 4].set(jnp.array([0, -1]))), shape=x.shape)
        for other in (x, jnp.ones(x.shape)):
            with pytest.raises(ValueError, match=r"`y.indices\[2\]` must not be negative; row 4 is \[ 0 -1\]"):
                jsg.add(other, bad)
            assert checked_add(other, x)[0].get() is None
            assert "must not be negative; row 4 is [ 0 -1]" in checked_add(other, bad)[0].get()
        y = BCSR((jnp.ones(2), jnp.array([1, -2]), jnp.array([0, 1, 2])), shape=(2, 3))
        with pytest.raises(ValueError, match=r"`x.indices` .* row 1 is \[ 1 -2\]"):
            jsg.add(y, y)

    def test_starts_of_rows(self):
        for indptr in ([1, 2, 3], [0, 3, 2], [0, 2, 4]):
            matrix = BCSR((jnp.ones(3), jnp.arange(3), jnp.array(indptr)), shape=(2, 3))
            with pytest.raises(ValueError, match=r"`x.indptr` must rise from 0 to at most nse \(3\); got \["):
                jsg.add(matrix, matrix)
        assert "`x.indptr` must rise from 0" in checked_add(matrix, matrix)[0].get()

    @pytest.mark.parametrize(
        ("keywords", "message"),
        [
            pytest.param({"nse": 2}, "`nse` must be at least", marks=pytest.mark.slow),
            ({"assume_canonical": True}, "must be sorted and unique"),
        ],
        ids=["nse", "assume_canonical"],
    )
    def test_broken_promises_by_checkify(self, rng, keywords, message):
        x = random_bcoo(rng, BATCHES)
        assert message in checked_add(x, x, **keywords)[0].get()
