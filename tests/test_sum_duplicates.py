"""`sum_duplicates`: the canonical form of one matrix, against JAX's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO

import jax_sparse_grad as jsg
from helpers.matrices import as_bcoo, check_canonical, to_dense, union_indices
from helpers.samples import LAYOUTS, NSE, SHAPE, column, random_bcoo, random_bcsr

BATCHES = ((3, *SHAPE), 1, 0)


def with_zeros(x):
    x.data = jnp.asarray(np.where(np.abs(x.data) < 4, np.copysign(0, x.data), x.data))
    return x


@pytest.mark.parametrize(("layout", "remove_zeros"), [(LAYOUTS[0], False), (BATCHES, True)], ids=str)
def test_it_is_that_of_jax(rng, layout, remove_zeros):
    x = with_zeros(random_bcoo(rng, layout))

    @jax.jit
    def both(x):
        return jsg.sum_duplicates(x, nse=NSE, remove_zeros=remove_zeros), x.sum_duplicates(NSE, remove_zeros)

    traced, expected = both(x)
    total = jsg.sum_duplicates(x, remove_zeros=remove_zeros)
    np.testing.assert_array_equal(traced.indices, expected.indices)
    np.testing.assert_array_equal(total.indices, np.asarray(expected.indices)[..., : total.nse, :])
    for each in (total, traced):
        np.testing.assert_array_equal(to_dense(each), to_dense(expected))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("remove_zeros", [False, True])
@pytest.mark.parametrize("make", [random_bcoo, random_bcsr])
def test_it_is_canonical_and_as_short_as_the_longest_batch(rng, layout, remove_zeros, make):
    x = with_zeros(make(rng, layout if make is random_bcoo else LAYOUTS[0]))
    total = jsg.sum_duplicates(x, remove_zeros=remove_zeros)
    assert isinstance(total, type(x))
    check_canonical(total)
    np.testing.assert_array_equal(to_dense(total), to_dense(x))
    rows, data, shape = as_bcoo(x).indices, as_bcoo(x).data, x.shape[x.n_batch :][: x.n_sparse]
    kept = data.any(axis=tuple(range(x.n_batch + 1, data.ndim))) | (not remove_zeros)
    lengths = [len(union_indices(rows[k][kept[k]], shape=shape)) for k in np.ndindex(x.shape[: x.n_batch])]
    assert total.nse == max(lengths)


def test_zeros_of_a_shared_pattern_go_if_they_are_zero_in_all_batches():
    data = jnp.array([[0.0, 0, 3], [0, 2, 0]])
    x = BCOO((data, jnp.array([[[2], [1], [0]]])), shape=(2, 3))
    total = jsg.sum_duplicates(x, remove_zeros=True)
    assert (total.indices.tolist(), total.data.tolist()) == ([[[0], [1]]], [[3, 0], [0, 2]])


def test_entries_that_cancel_stay():
    x = column(np.array([1.0, 0, -1], np.float32), [3, 3, 3])
    assert jsg.sum_duplicates(x, remove_zeros=True).data.tolist() == [0.0]


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_what_is_left_out_has_gradient_zero(transform):
    data, rows = jnp.array([1.0, 0, 2, 4, 0]), [3, 1, 3, 6, 3]

    def loss(data):
        return jnp.sum(jsg.sum_duplicates(column(data, rows), remove_zeros=True).data ** 2)

    np.testing.assert_array_equal(transform(jax.grad(loss))(data), [6, 0, 6, 0, 0])


def test_refusals():
    with pytest.raises(TypeError, match=r"`x` must be a BCOO or a BCSR, got an array; convert it with `BCOO"):
        jsg.sum_duplicates(jnp.ones(3))
    with pytest.raises(TypeError, match="`remove_zeros` must be a Python bool, got 1"):
        jsg.sum_duplicates(column([1.0], [0]), remove_zeros=1)
    with pytest.raises(ValueError, match="`nse` must be at least 2"):
        jsg.sum_duplicates(column([1.0, 2.0], [0, 1]), nse=1)
