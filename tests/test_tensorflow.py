"""Side by side with TensorFlow's own kernels, bit for bit, where TensorFlow is installed."""

import jax
import numpy as np
import pytest

import jax_sparse_grad as jsg
from helpers.matrices import bits

tf = pytest.importorskip("tensorflow", reason="no TensorFlow (extra `bench-tensorflow`)", exc_type=ImportError)

# The types for which TensorFlow 2.21 has kernels, of the seventeen in the op's signature.
DTYPES = ["float32", "float64", "int64", "int32", "int16", "int8", "complex64", "complex128"]
SHAPES = [(40,), (3, 4, 5), (2, 3, 2, 4), (2, 2, 3, 2, 2)]


def cells_of(rng, shape, overlap, count=15):
    """Two sorted index lists of which the given share coincides."""
    cells = rng.permutation(int(np.prod(shape)))
    shared = round(overlap * count)
    a, b = cells[:count], cells[count - shared : 2 * count - shared]
    return [np.stack(np.unravel_index(np.sort(c), shape), axis=1).astype(np.int64) for c in (a, b)]


def draw(rng, size, dtype):
    """Full-width numbers, so that rounding and wrap-around have to agree too; a few that cancel; a negative zero."""
    dtype = np.dtype(dtype)
    if dtype.kind == "i":
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, size, dtype, endpoint=True)
    values = rng.normal(size=size)
    if dtype.kind == "c":
        values = values + 1j * rng.normal(size=size)
    values = values.astype(dtype)
    values[: size // 5] = -0.0
    return values


def thresholds(dtype):
    """In the dtype that TensorFlow asks for: that of the magnitude."""
    real = np.empty(0, dtype).real.dtype
    return np.array([0, 1, 100] if real.kind == "i" else [0, 0.3, 1.5], real)


def their_sum_and_gradients(rng, shape, a, x, b, y, thresh):
    total = tf.raw_ops.SparseAdd(
        a_indices=a, a_values=x, a_shape=shape, b_indices=b, b_values=y, b_shape=shape, thresh=thresh
    )
    backprop = draw(rng, len(total.sum_values), x.dtype)
    grads = tf.raw_ops.SparseAddGrad(
        backprop_val_grad=backprop, a_indices=a, b_indices=b, sum_indices=total.sum_indices
    )
    arrays = (total.sum_indices, total.sum_values, backprop, grads.a_val_grad, grads.b_val_grad)
    return tuple(np.asarray(array) for array in arrays)


def ours(a, x, b, y, thresh, backprop, shape):
    """The sum, and its gradients, by SparseAddGrad and by JAX."""

    def add(x, y):
        total = jsg.sparse_add(a, x, shape, b, y, shape, thresh)
        return total.sum_values, total

    _, pull, total = jax.vjp(add, x, y, has_aux=True)
    backprop = backprop[: len(total.sum_values)]
    gradients = [jsg.sparse_add_grad(backprop, a, b, total.sum_indices, shape=shape)]
    if x.dtype.kind != "i":
        gradients.append(pull(backprop))
    return total, gradients


# Indices are treated alike whatever the type of values, and values whatever the number of dimensions.
CASES = [(dtype, (6, 7), ours) for dtype in DTYPES] + [("float32", shape, ours) for shape in SHAPES]
compiled = jax.jit(ours, static_argnums=6)
CASES += [("float32", (6, 7), compiled), ("complex128", (2, 3, 2, 4), compiled)]


@pytest.mark.parametrize(("dtype", "shape", "ours"), CASES)
def test_sum_and_gradients_are_the_same_bits(x64, rng, dtype, shape, ours):
    for overlap in (0.0, 0.5, 1.0):
        a, b = cells_of(rng, shape, overlap)
        x, y = draw(rng, len(a), dtype), draw(rng, len(b), dtype)
        for thresh in thresholds(dtype):
            indices, values, backprop, *grads = their_sum_and_gradients(rng, shape, a, x, b, y, thresh)
            padded = np.concatenate([backprop, np.ones(len(a) + len(b) - len(backprop), dtype)])
            total, gradients = ours(a, x, b, y, thresh, padded, shape)
            np.testing.assert_array_equal(total.sum_indices[: len(indices)], indices)
            np.testing.assert_array_equal(bits(total.sum_values[: len(indices)]), bits(values))
            for each in gradients:
                assert [*map(bits, each)] == [*map(bits, grads)]


def test_the_differences_are_the_stated_ones():
    """NaN sums, duplicates and order: TensorFlow silently loses entries, where the sum here is complete."""
    index = np.array([[0], [1]])
    nan = np.array([np.nan, 1.0], np.float32)
    theirs = tf.raw_ops.SparseAdd(
        a_indices=index, a_values=nan, a_shape=[2], b_indices=index, b_values=nan, b_shape=[2], thresh=0.0
    )
    assert theirs.sum_indices.numpy().tolist() == [[1]]
    assert jsg.sparse_add(index, nan, (2,), index, nan, (2,)).sum_indices.tolist() == [[0], [1]]

    unsorted, one = np.array([[1], [0]]), np.array([[0]])
    theirs = tf.raw_ops.SparseAdd(
        a_indices=unsorted, a_values=[1.0, 2.0], a_shape=[2], b_indices=one, b_values=[4.0], b_shape=[2], thresh=0.0
    )
    assert theirs.sum_indices.numpy().tolist() == [[0], [1], [0]]
    ours = jsg.sparse_add(unsorted, [1.0, 2.0], (2,), one, [4.0], (2,))
    assert (ours.sum_indices.tolist(), ours.sum_values.tolist()) == ([[0], [1]], [6.0, 1.0])
