"""Values to their slots and back: against a dense matrix, by numpy and by XLA, under transformations."""

import itertools
from functools import partial, reduce

import jax
import numpy as np
import pytest

from helpers.matrices import at_rows, to_dense
from helpers.samples import random_values
from jax_sparse_grad import _values
from jax_sparse_grad._keys import NONE

NSE, SIZES = 6, (7, 4)


def eagerly(function):
    return function


EITHER_WAY = pytest.mark.parametrize("run", [eagerly, jax.jit], ids=["numpy", "xla"])

# Dtypes of sums, and the dense dimensions of their values.
KINDS = {"float32": (), "bfloat16": (3,), "float16": (), "complex64": (), "int32": (2, 2), "uint8": (), "int4": ()}


def draw_slots(rng, *batch):
    return [np.where(rng.random((*batch, n)) < 0.2, NONE, rng.integers(0, NSE, n)).astype(np.int32) for n in SIZES]


def draw(rng, *dense, batch=(), dtypes=(np.float32, np.float32)):
    return [random_values(rng, (*batch, n, *dense), dtype) for n, dtype in zip(SIZES, dtypes, strict=True)]


def matrices(slots):
    return [(np.arange(NSE)[:, None] == each).astype(np.float32) for each in slots]


def place(slots, values, nnz=NSE, nse=NSE, dtype="float32", **keywords):
    nnz = np.int32(nnz) if isinstance(nnz, int) else nnz
    return _values.place(nse, nnz, slots, values, dtype=np.dtype(dtype), **keywords)


def with_gradient(add, values):
    """A sum, and the gradient of half the sum of its squares."""
    total, pull = jax.vjp(add, values)
    return total, pull(total)[0]


def place_all(slots, values, nnz):
    return {dtype: place(slots, each, nnz, dtype=dtype) for dtype, each in values.items()}


both_ways = place_all, jax.jit(place_all)


def of_all_kinds(draw):
    return {dtype: [draw((n, *dense)) for n in SIZES] for dtype, dense in KINDS.items()}


def cast(values):
    return {dtype: [each.astype(dtype) for each in own] for dtype, own in values.items()}


def test_sums_are_products_with_the_matrix_of_slots(rng):
    slots, values = draw_slots(rng), of_all_kinds(lambda shape: rng.integers(-4, 4, shape))
    for place_all in both_ways:
        for dtype, total in place_all(slots, cast(values), NSE).items():
            products = [np.tensordot(m.astype(int), v, 1) for m, v in zip(matrices(slots), values[dtype], strict=True)]
            np.testing.assert_array_equal(total, sum(products).astype(dtype))


def test_numpy_and_xla_agree_bit_for_bit(rng):
    slots, values = draw_slots(rng), cast(of_all_kinds(lambda shape: rng.normal(size=shape)))
    eager, compiled = (place_all(slots, values, NSE) for place_all in both_ways)
    assert all(np.asarray(eager[dtype]).tobytes() == np.asarray(compiled[dtype]).tobytes() for dtype in KINDS)


def test_signs_of_zero_survive_and_padding_is_positive():
    slots = [np.array([0, 1, *[NONE] * 5], np.int32), np.array([0, *[NONE] * 3], np.int32)]
    values = of_all_kinds(lambda shape: np.where(np.indices(shape)[0] == 1, 0.0, -0.0))
    for place_all in both_ways:
        total = np.asarray(place_all(slots, cast(values), 2)["float32"])
        assert np.signbit(total).tolist() == [True, False, False, False, False, False]


def test_overflow_poisons_all_values(rng):
    slots, values = draw_slots(rng), cast(of_all_kinds(lambda shape: rng.integers(0, 4, shape)))
    for place_all in both_ways:
        total = place_all(slots, values, NSE + 1)
        for dtype, poison in {"int32": -(2**31), "uint8": 255, "int4": -8}.items():
            assert np.all(np.asarray(total.pop(dtype)).astype(int) == poison)
        assert all(np.isnan(np.asarray(each).astype(complex)).all() for each in total.values())


def derive(slots, nnz, primals, tangents, cotangents):
    """The tangent of a sum and, of its gradient, itself, its tangent, and its own gradient: each transposes another."""

    def add(values, weights):
        return place(slots, values, nnz, negated=(False, True), weights=weights)

    def pull(values, weights, cotangent):
        return jax.vjp(add, values, weights)[1](cotangent)

    tangent = jax.jvp(add, primals[:2], tangents[:2])[1]
    return tangent, *jax.jvp(pull, primals, tangents), jax.vjp(pull, *primals)[1](cotangents)


@pytest.mark.parametrize(("run", "weighted"), [(eagerly, True), (eagerly, False), (jax.jit, True)])
def test_derivatives_of_values_and_weights_to_second_order(rng, run, weighted):
    """The second operand is subtracted; values are cast to the dtype of the sum, and their gradients back."""
    slots = draw_slots(rng)
    v, dv, a = (draw(rng, dtypes=(np.float16, np.float32)) for _ in range(3))
    w, dw, b = ([1.5, -2], [3, 0.5], [4, 2]) if weighted else ([1, 1], [0, 0], [0, 0])
    c, dc = (random_values(rng, NSE) for _ in range(2))
    given_w, given_dw, given_b = ([np.float32(each) for each in x] if weighted else [] for x in (w, dw, b))
    arguments = (v, given_w, c), (dv, given_dw, dc), (a, given_b)

    derive_by = run(derive)
    tangent, first, change, second = derive_by(slots, NSE, *arguments)
    assert [each.dtype for each in first[0]] == [np.float16, np.float32]
    of_sum, of_cotangent = 0, 0
    for k, (m, sign) in enumerate(zip(matrices(slots), (1, -1), strict=True)):
        of_sum += sign * (dw[k] * m @ v[k] + w[k] * m @ dv[k])
        of_cotangent += sign * (w[k] * m @ a[k] + b[k] * m @ v[k])
        of_values = w[k] * c @ m, dw[k] * c @ m + w[k] * dc @ m, b[k] * c @ m
        of_weights = c @ m @ v[k], c @ m @ dv[k] + dc @ m @ v[k], c @ m @ a[k]
        for found, own, weight in zip((first, change, second), of_values, of_weights, strict=True):
            np.testing.assert_array_equal(found[0][k], sign * own)
            assert not weighted or found[1][k] == sign * weight
    np.testing.assert_array_equal(tangent, of_sum)
    np.testing.assert_array_equal(second[2], of_cotangent)

    tangent, (gradient, _), *_ = derive_by(slots, NSE + 1, *arguments)  # an overflow
    assert np.isnan(tangent).all()
    for each, slot in zip(gradient, slots, strict=True):  # what has no slot receives 0 nevertheless
        np.testing.assert_array_equal(np.isnan(each), slot != NONE)


def test_padding_has_no_part_in_derivatives():
    slots, values = [np.array([0, NONE], np.int32)], [np.float32([2, np.nan])]
    for weight, wanted in ((3, [3, 0]), (np.inf, [np.inf, 0])):
        _, pull = jax.vjp(lambda v, w: place(slots, v, nnz=1, weights=[w]), values, np.float32(weight))
        of_values, of_weight = pull(np.ones(NSE, np.float32))
        np.testing.assert_array_equal(of_values[0], wanted)
        assert of_weight == 2


# For each `vmap`, the outermost last: its length, and which of slots and values have its axis.
BATCHES = [[(3, None, 0)], [(3, 0, None)], [(1, 0, 0)], [(0, None, 0)], [(2, 0, 0), (3, None, 0)]]
COMPILED = itertools.product([jax.jit], BATCHES[-2:])


@pytest.mark.parametrize(("run", "levels"), [*itertools.product([eagerly], BATCHES), *COMPILED])
def test_batches(rng, run, levels):
    def mapped(slots, values):
        return with_gradient(partial(place, slots), values)

    def own(numbers, part):
        """Of numbers for all levels, the outermost first, those that slots (1) or values (2) have."""
        return tuple(each for each, level in zip(numbers, levels[::-1], strict=True) if level[part] == 0)

    batch = tuple(level[0] for level in levels[::-1])
    slots, values = draw_slots(rng, *own(batch, 1)), draw(rng, 2, batch=own(batch, 2))
    for _, *axes in levels:
        mapped = jax.vmap(mapped, axes)
    totals, gradients = jax.device_get(run(mapped)(slots, values))
    assert totals.shape == (*batch, NSE, 2)
    for k in np.ndindex(batch):
        products = matrices([each[own(k, 1)] for each in slots])
        total = sum(np.tensordot(m, v[own(k, 2)], 1) for m, v in zip(products, values, strict=True))
        np.testing.assert_array_equal(totals[k], total)
        for m, got in zip(products, gradients, strict=True):
            np.testing.assert_array_equal(got[k], np.tensordot(m.T, total, 1))


@EITHER_WAY
@pytest.mark.parametrize("nse", [0, 2])
def test_slots_of_none_and_sums_of_none(run, nse):
    slots, values = [np.zeros(0, np.int32), np.full(4, NONE)], [np.zeros(0, np.float32), np.ones(4, np.float32)]
    add = partial(place, slots, nnz=0, nse=nse)
    total, gradient = run(partial(with_gradient, add))(values)
    assert total.tolist() == [0] * nse
    assert [each.tolist() for each in gradient] == [[], [0, 0, 0, 0]]


@EITHER_WAY
@pytest.mark.parametrize(("sizes", "dense"), [((3, 4), ()), ((5,), (2,)), ((), ()), ((0, 3), ())], ids=str)
def test_dense_sums(rng, run, sizes, dense):
    rows = [rng.integers(-1, size + 2, 6) for size in sizes]
    rows = np.stack(rows, axis=1).astype(np.int32) if sizes else np.zeros((6, 0), np.int32)
    array, values = random_values(rng, (*sizes, *dense)), random_values(rng, (6, *dense))
    weights = [np.float32(w) for w in (1, 2, 3)]
    cotangent = random_values(rng, array.shape)
    static = {"sizes": sizes, "dtype": np.dtype(np.float32), "negated": (False, False, True)}

    def add(array, values, weights=()):
        return _values.place_onto([array, array], [rows], [values], weights=weights, **static)

    def everything(array, values, batch, weights):
        total, pull = jax.vjp(add, array, values)
        of_weights = jax.vjp(partial(add, array, values), weights)[1](cotangent)[0]
        return total, pull(cotangent), jax.vmap(add, (None, 0))(array, batch), of_weights

    total, gradients, batched, of_weights = run(everything)(array, values, np.stack([values, -values]), weights)
    of_rows = to_dense(rows, values, sizes)
    gathered = at_rows(cotangent, rows, sizes)
    np.testing.assert_array_equal(total, 2 * array - of_rows)
    np.testing.assert_array_equal(batched, [2 * array - of_rows, 2 * array + of_rows])
    np.testing.assert_array_equal(gradients[0], 2 * cotangent)
    np.testing.assert_array_equal(gradients[1], -gathered)
    np.testing.assert_array_equal(of_weights, [np.sum(array * cotangent)] * 2 + [-np.sum(values * gathered)])


@EITHER_WAY
def test_operands_are_added_one_after_the_other_and_each_in_its_stored_order(run):
    """So that the platforms agree in the last bit: 1 is lost beside 2**24, unless 2**24 has gone before it comes."""
    terms = [np.float32(each) for each in ([2.0**24, -(2.0**24), 1], [1], [-1, 2.0**24], [1], [1])]
    slots = [np.zeros(len(each), np.int32) for each in terms]
    counts = 3, 5  # on a CPU, five are added by one scatter
    totals = run(lambda terms: [place(slots[:n], terms[:n], nnz=1, nse=1) for n in counts])(terms)
    for n, total in zip(counts, totals, strict=True):
        assert total == reduce(np.add, np.concatenate(terms[:n]), np.float32(0))
