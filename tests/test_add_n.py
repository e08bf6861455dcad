"""`add_n` of any number and mixture of operands, and its weights."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO, BCSR

import jax_sparse_grad as jsg
from helpers.matrices import check_canonical, is_entry, to_dense
from helpers.samples import SHAPE, column, random_bcoo, random_bcsr, random_values

WEIGHTS = (2, -0.5, 3.0)


def test_any_number_and_mixture(rng):
    operands = [random_bcoo(rng), random_bcsr(rng), random_bcoo(rng, nse=3, padding=0), random_bcsr(rng, nse=0)]
    dense = sum(to_dense(x) for x in operands)
    for total in (jsg.add_n(operands), jsg.add_n(iter(operands))):
        np.testing.assert_array_equal(to_dense(total), dense)
        check_canonical(total)
        assert isinstance(total, BCOO)
    assert isinstance(jsg.add_n(operands[1::2]), BCSR)
    np.testing.assert_array_equal(jsg.add_n([*operands, dense, dense]), 3 * dense)
    single = jsg.add_n(operands[:1], nse=9)
    assert single.nse == 9
    check_canonical(single)
    np.testing.assert_array_equal(to_dense(single), to_dense(operands[0]))


def test_a_scalar_has_one_entry_whatever_the_number_of_operands():
    scalar = BCOO((jnp.array([2.0]), jnp.zeros((1, 0), jnp.int32)), shape=())
    for count in (1, 5):
        total = jsg.add_n([scalar] * count)
        assert (total.nse, total.data.tolist()) == (1, [2.0 * count])
    assert jax.eval_shape(jsg.add_n, [scalar] * 5).nse == 1


@pytest.mark.parametrize("count", [2, 3])
def test_weights_of_sparse_and_dense_operands(rng, count):
    operands = [random_bcoo(rng), random_bcsr(rng, nse=5), random_values(rng, SHAPE)][:count]
    expected = sum(w * to_dense(x) for w, x in zip(WEIGHTS, operands, strict=False))
    for weights in (WEIGHTS[:count], np.array(WEIGHTS[:count], np.float32), jnp.array(WEIGHTS[:count])):
        np.testing.assert_array_equal(to_dense(jsg.add_n(operands, weights=weights)), expected)


def test_derivatives_of_the_weights_see_no_padding(rng):
    x, y = random_bcoo(rng), random_bcoo(rng)
    x.data = jnp.where(is_entry(np.asarray(x.indices), SHAPE), x.data, jnp.nan)
    dense, table = random_values(rng, SHAPE), random_values(rng, SHAPE)

    def loss(weights):
        total = jsg.add_n([x, y], weights=weights[:2])
        return jnp.vdot(table, total.todense()) + jnp.vdot(table, jsg.add_n([x, dense], weights=weights[2:]))

    weights = jnp.array([2.0, -3.0, 0.5, 4.0])
    expected = np.array([np.vdot(table, to_dense(each)) for each in (x, y, x, dense)])
    value, gradient, forward = jax.jit(lambda w: (*jax.value_and_grad(loss)(w), jax.jacfwd(loss)(w)))(weights)
    np.testing.assert_allclose(value, weights @ expected, rtol=1e-6)
    chex.assert_trees_all_equal(gradient, forward, expected)


def test_derivatives_of_padding_are_zero_whatever_its_weight():
    indices = jnp.array([[0, 0], [3, 3]])

    @jax.jit
    def gradient(values, weight):
        total = lambda values: jsg.add_n([BCOO((values, indices), shape=(3, 3))], weights=[weight]).data.sum()  # noqa: E731
        return jax.grad(total)(values)

    for weight in (np.inf, -np.inf, np.nan):
        np.testing.assert_array_equal(gradient(jnp.ones(2), weight), [weight, 0])


def test_derivatives_of_the_values_are_weighted(rng):
    x, y = random_bcoo(rng), random_bcsr(rng)

    def total(data, weights):
        return jsg.add_n([BCOO((data, x.indices), shape=SHAPE), y], weights=weights).data

    for weights in ([3.0, 1], [jnp.float32(3), 1]):
        gradient = jax.grad(lambda data, w=weights: total(data, w).sum())(x.data)
        np.testing.assert_array_equal(gradient, 3.0 * is_entry(np.asarray(x.indices), SHAPE))


@pytest.mark.parametrize("weight", [2 - 1j, 2.0])
def test_derivatives_of_weights_and_values_that_are_complex_are_those_of_the_product(rng, weight):
    x = random_bcoo(rng, dtype=np.complex64, padding=0)

    def total(weight, data):
        return jsg.add_n([BCOO((data, x.indices), shape=SHAPE)], weights=[weight]).data

    of_sum, of_product = (
        jax.grad(lambda *terms, f=f: f(*terms).imag.sum(), (0, 1))(jnp.asarray(weight), x.data)
        for f in (total, lambda weight, data: weight * data)
    )
    chex.assert_trees_all_close(of_sum, of_product)


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
def test_dtypes_promote_as_in_jnp(dtype, weight, expected):
    x = column(np.array([1, -3], dtype), [0, 2])
    total = jsg.add_n([x], weights=[weight])
    assert total.dtype == expected
    np.testing.assert_array_equal(total.data, np.array([1, -3]) * weight)
    assert jsg.add_n([x, np.zeros(6, dtype)], weights=[weight, 1]).dtype == expected


def test_the_sum_is_made_in_its_own_dtype():
    narrow, wide = column(np.array([200], np.uint8), [0]), column(np.array([1], np.int32), [1])
    assert jsg.add_n([narrow, wide], weights=[3, 1]).data.tolist() == [600, 1]
    assert jsg.subtract(wide, narrow).data.tolist() == [-200, 1]
    assert jsg.subtract(narrow, column(np.array([201, 1], np.uint8), [0, 1])).data.tolist() == [255, 255]


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ({0: 2.0, 1: 1.0}, TypeError, "`weights` must be a list, tuple or vector .*, got dict"),
        ({2.0, 1.0}, TypeError, "`weights` must be a list, tuple or vector .*, got set"),
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
def test_refused_weights(weights, error, message):
    x = column(np.array([1], np.uint8), [0])
    with pytest.raises(error, match=message):
        jsg.add_n([np.zeros(6, np.uint8), x], weights=weights)
