"""Values to their slots and back: against a dense matrix, by numpy and by XLA, under transformations."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from helpers.matrices import at_rows, to_dense
from helpers.samples import random_values
from jax_sparse_grad import _values
from jax_sparse_grad._keys import NONE

NSE, NNZ, SIZES = 6, 5, (7, 4)
EITHER_WAY = pytest.mark.parametrize("run", [lambda f: f, jax.jit], ids=["numpy", "xla"])


def draw(rng, dtype=np.float32, dense=()):
    slots = [jnp.asarray(np.where(rng.random(n) < 0.2, NONE, rng.integers(0, NNZ, n)).astype(np.int32)) for n in SIZES]
    return slots, [jnp.asarray(random_values(rng, (n, *dense), dtype)) for n in SIZES]


def matrix(slots):
    return [(np.arange(NSE)[:, None] == np.asarray(each)).astype(float) for each in slots]


def place(slots, values, nnz=NNZ, nse=NSE, dtype=None, **keywords):
    dtype = jnp.result_type(*values) if dtype is None else dtype
    return _values.place(nse, jnp.int32(nnz), slots, values, dtype=dtype, **keywords)


@pytest.mark.parametrize(
    ("dtype", "dense"),
    [("float32", ()), ("bfloat16", (3,)), ("int32", (2, 2)), ("uint8", ()), ("complex64", ()), ("int4", ())],
)
def test_the_sum_is_a_product_with_the_matrix_of_slots(rng, dtype, dense):
    slots, values = draw(rng, np.float32, dense)
    values = [each.astype(jnp.int8).astype(dtype) for each in values]
    wanted = sum(np.tensordot(m, np.asarray(v).astype(complex), 1) for m, v in zip(matrix(slots), values, strict=True))
    wanted = np.asarray(wanted.real if dtype != "complex64" else wanted)
    wanted = wanted.astype(np.int64) if jnp.issubdtype(dtype, jnp.integer) else wanted
    for run in (place, jax.jit(place)):
        np.testing.assert_array_equal(run(slots, values), jnp.asarray(wanted.astype(np.dtype(dtype))))


def test_numpy_and_xla_agree_bit_for_bit(rng):
    slots, _ = draw(rng)
    values = [jnp.asarray(rng.normal(size=n).astype(np.float32)) for n in SIZES]
    for dtype in ("float32", "bfloat16", "float16"):
        cast = [each.astype(dtype) for each in values]
        eager, traced = place(slots, cast), jax.jit(place)(slots, cast)
        assert np.asarray(eager).tobytes() == np.asarray(traced).tobytes()


def test_signs_of_zero_survive_and_padding_is_positive():
    values = [jnp.array([-0.0, 0.0]), jnp.array([-0.0])]
    slots = [jnp.array([0, 1], np.int32), jnp.array([0], np.int32)]
    for run in (place, jax.jit(place)):
        assert np.signbit(run(slots, values, nnz=2)).tolist() == [True, False, False, False, False, False]


@EITHER_WAY
@pytest.mark.parametrize(("dtype", "poison"), [("float32", np.nan), ("int32", -(2**31)), ("uint8", 255)])
def test_overflow_poisons_all_values(rng, run, dtype, poison):
    slots, values = draw(rng)
    values = [each.astype(np.int8).astype(dtype) for each in values]
    total = run(lambda values: place(slots, values, nnz=NSE + 1))(values)
    np.testing.assert_array_equal(total, np.full(NSE, poison, dtype))


def test_overflow_poisons_tangents_and_cotangents(rng):
    slots, values = draw(rng)
    add = partial(place, slots, nnz=NSE + 1)
    _, tangent = jax.jvp(add, (values,), (values,))
    gradient = jax.grad(lambda values: add(values).sum())(values)
    assert np.isnan(tangent).all()
    for each, slot in zip(gradient, slots, strict=True):  # what has no slot receives 0 nevertheless
        np.testing.assert_array_equal(np.isnan(each), slot != NONE)


def test_values_are_cast_negated_and_weighted(rng):
    slots, values = draw(rng)
    values = [values[0].astype(np.int8), values[1]]
    weights = [jnp.float32(2), jnp.float32(0.5)]
    wanted = 2 * matrix(slots)[0] @ values[0] - 0.5 * matrix(slots)[1] @ values[1]
    for run in (lambda f: f, jax.jit):
        total = run(partial(place, negated=(False, True), dtype=np.float32))(slots, values, weights=weights)
        np.testing.assert_array_equal(total, wanted)


@EITHER_WAY
def test_derivatives_of_values_and_weights_to_second_order(rng, run):
    """Of f = |t|^2 / 2 with t = sum of w_k S_k v_k, by hand."""
    slots, values = draw(rng)
    weights, matrices = [jnp.float32(1.5), jnp.float32(-2)], matrix(slots)
    (_, d_values), d_weights = draw(rng), [jnp.float32(3), jnp.float32(0.5)]

    def derive(values, weights):
        def loss(values, weights):
            return (place(slots, values, weights=weights, negated=(False, True)) ** 2).sum() / 2

        gradient = jax.grad(loss, (0, 1))
        return gradient(values, weights), jax.jvp(gradient, (values, weights), (d_values, d_weights))[1]

    of_first, of_second = run(derive)(values, weights)
    w, dw = ([np.float32(a), -np.float32(b)] for a, b in (weights, d_weights))
    parts, d_parts = ([m @ np.asarray(v) for m, v in zip(matrices, x, strict=True)] for x in (values, d_values))
    total = sum(a * p for a, p in zip(w, parts, strict=True))
    change = sum(a * q + b * p for a, b, p, q in zip(w, dw, parts, d_parts, strict=True))
    for k, sign in enumerate((1, -1)):
        np.testing.assert_allclose(of_first[0][k], w[k] * matrices[k].T @ total, rtol=1e-5)
        np.testing.assert_allclose(of_first[1][k], sign * parts[k] @ total, rtol=1e-5)
        np.testing.assert_allclose(
            of_second[0][k], matrices[k].T @ (dw[k] * total + w[k] * change), rtol=1e-5, atol=1e-4
        )
        np.testing.assert_allclose(of_second[1][k], sign * (d_parts[k] @ total + parts[k] @ change), rtol=1e-5)


def test_padding_has_no_part_in_derivatives():
    slots, values = [jnp.array([0, NONE], np.int32)], [jnp.array([2.0, np.nan])]
    for weight, wanted in ((3.0, [3.0, 0.0]), (np.inf, [np.inf, 0.0])):
        add = lambda v, w: place(slots, v, weights=[w], nnz=1).sum()  # noqa: E731
        of_values, of_weight = jax.grad(add, (0, 1))(values, jnp.float32(weight))
        np.testing.assert_array_equal(of_values[0], wanted)
        assert of_weight == 2


@pytest.mark.parametrize(
    ("count", "slot_axis", "value_axis"), [(3, 0, 0), (3, None, 0), (3, 0, None), (1, 0, 0), (0, None, 0)]
)
@EITHER_WAY
def test_batches(rng, run, slot_axis, value_axis, count):
    draws = [draw(rng, dense=(2,)) for _ in range(max(count, 1))]
    slots = jax.tree.map(lambda *x: jnp.stack(x)[:count], *[each[0] for each in draws])
    values = jax.tree.map(lambda *x: jnp.stack(x)[:count], *[each[1] for each in draws])
    slots = draws[0][0] if slot_axis is None else slots
    values = draws[0][1] if value_axis is None else values
    both = jax.vmap(lambda s, v: jax.value_and_grad(lambda v: (place(s, v) ** 2).sum())(v), (slot_axis, value_axis))
    totals, gradients = run(both)(slots, values)
    assert totals.shape == (count,)
    for k in range(count):
        s = draws[0 if slot_axis is None else k][0]
        v = draws[0 if value_axis is None else k][1]
        total = sum(np.tensordot(m, x, 1) for m, x in zip(matrix(s), v, strict=True))
        np.testing.assert_allclose(totals[k], (total**2).sum(), rtol=1e-6)
        for m, got in zip(matrix(s), gradients, strict=True):
            np.testing.assert_array_equal(got[k], 2 * np.tensordot(m.T, total, 1))


def test_nested_batches_agree_by_numpy_and_xla(rng):
    slots, _ = draw(rng)
    values = [jnp.asarray(random_values(rng, (2, 3, n))) for n in SIZES]
    rolled = [jnp.stack([each, each[::-1], each]) for each in slots]
    add = jax.vmap(jax.vmap(place, (0, 0)), (None, 0))
    np.testing.assert_array_equal(add(rolled, values), jax.jit(add)(rolled, values))
    np.testing.assert_array_equal(
        add(rolled, values)[1, 1], place([each[::-1] for each in slots], [v[1, 1] for v in values])
    )


def test_slots_of_none_and_sums_of_none(rng):
    slots, values = [jnp.zeros(0, np.int32), jnp.full(4, NONE)], [jnp.zeros(0), jnp.ones(4)]
    for run in (place, jax.jit(place, static_argnames=("nse", "nnz"))):
        assert run(slots, values, nse=0, nnz=0).shape == (0,)
        assert run(slots, values, nse=2, nnz=0).tolist() == [0, 0]
    gradient = jax.grad(lambda v: place(slots, v, nse=0, nnz=0).sum())(values)
    assert [each.tolist() for each in gradient] == [[], [0, 0, 0, 0]]


@EITHER_WAY
@pytest.mark.parametrize(("sizes", "dense"), [((3, 4), ()), ((5,), (2,)), ((), ()), ((0, 3), ())], ids=str)
def test_dense_sums(rng, run, sizes, dense):
    rows = np.stack([rng.integers(-1, size + 2, 6) for size in sizes], axis=1) if sizes else np.zeros((6, 0), int)
    array, values = (jnp.asarray(random_values(rng, shape)) for shape in ((*sizes, *dense), (6, *dense)))
    weights = [jnp.float32(w) for w in (1, 2, 3)]

    def add(array, values, weights=()):
        return _values.place_onto(
            [array, array],
            [jnp.asarray(rows, jnp.int32)],
            [values],
            sizes=sizes,
            dtype=np.float32,
            negated=(False, False, True),
            weights=weights,
        )

    wanted = 2 * np.asarray(array) - to_dense(rows, values, sizes)
    cotangent = jnp.asarray(random_values(rng, wanted.shape))

    def everything(array, values, weights):
        return (
            add(array, values),
            jax.vjp(add, array, values)[1](cotangent),
            jax.vmap(add, (None, 0))(array, jnp.stack([values, values])),
            jax.grad(lambda w: (add(array, values, w) * cotangent).sum())(weights),
        )

    total, gradients, batched, of_weights = run(everything)(array, values, weights)
    np.testing.assert_array_equal(total, wanted)
    picked = -at_rows(np.asarray(cotangent), rows, sizes)
    np.testing.assert_array_equal(gradients[0], 2 * cotangent)
    np.testing.assert_array_equal(gradients[1], picked)
    np.testing.assert_array_equal(batched, [wanted, wanted])
    terms = [(array * cotangent).sum(), (array * cotangent).sum(), (values * picked).sum()]
    np.testing.assert_allclose(of_weights, terms, rtol=1e-5)


@EITHER_WAY
@pytest.mark.parametrize("weighted", [False, True])
def test_the_transpose_of_the_transpose_is_the_sum_again(rng, run, weighted):
    slots, values = draw(rng)
    weights = [jnp.float32(3), jnp.float32(0.5)] if weighted else []

    def add(values):
        return place(slots, values, weights=weights, negated=(False, True), dtype=np.float32)

    def there_and_back(values):
        once = jax.linear_transpose(add, values)
        cotangent = jnp.arange(1.0, NSE + 1)
        (picked,) = once(cotangent)
        (placed,) = jax.linear_transpose(lambda c: once(c)[0], cotangent)(values)
        return picked, placed

    picked, placed = run(there_and_back)(values)
    np.testing.assert_array_equal(placed, add(values))
    factors = (3, -0.5) if weighted else (1, -1)
    for own, m, factor in zip(picked, matrix(slots), factors, strict=True):
        np.testing.assert_array_equal(own, factor * m.T @ np.arange(1.0, NSE + 1))


def test_operands_are_added_one_after_the_other_and_each_in_its_stored_order():
    """So that the platforms agree in the last bit: 1 is lost beside 2**24, unless 2**24 has gone before it comes."""
    terms = [[2.0**24, -(2.0**24), 1.0], [1.0], [-1.0, 2.0**24], [1.0], [1.0]]
    slots, values = [jnp.zeros(len(each), np.int32) for each in terms], [jnp.array(each) for each in terms]
    for count in (3, 5):  # on a CPU, five are added by one scatter
        expected = functools.reduce(np.add, np.float32(np.concatenate(terms[:count])), np.float32(0))
        for run in (place, jax.jit(place, static_argnames="nse")):
            assert run(slots[:count], values[:count], nse=1, nnz=1).tolist() == [expected]
