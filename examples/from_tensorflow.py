"""Port a training step from TensorFlow, and see what TensorFlow's sparse sums get silently wrong.

Takes 15 seconds on two cores, 20 with TensorFlow. Needs nothing but this package. TensorFlow is optional (extra
`bench-tensorflow`): its column is empty without it.

First, the same training step in both libraries: a fixed sparse matrix plus learnt corrections, by gradient descent. The
losses agree. Then three questions about 3 x 3 matrices A + B, for four kinds of A, answered by this package, by NumPy
with dense arrays, which decides who is right, and by TensorFlow. A ported model without unsorted or duplicated indices,
NaN and second derivatives needs no change.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO

import jax_sparse_grad as jsg

Function = Callable[[Any], Any]
SHAPE = (3, 3)
SORTED, VALUES = np.array([[0, 0], [1, 1], [2, 0]]), np.array([1, 2, 3], np.float32)
B, B_VALUES = np.array([[0, 2], [1, 1]]), np.array([10, 20], np.float32)
# Indices and values of A, by what is special about it.
OPERANDS = {
    "sorted": (SORTED, VALUES),
    "unsorted": (SORTED[[2, 0, 1]], VALUES[[2, 0, 1]]),
    "(1, 1) twice": (np.array([[0, 0], [1, 1], [1, 1]]), VALUES),
    "NaN at (1, 1)": (SORTED, np.array([1, np.nan, 3], np.float32)),
}
QUESTIONS = "values of the sum", "gradient of its squares", "second derivative"
# The training step: find the corrections B for which (A + B) v comes near a target.
VECTOR, TARGET, RATE = np.array([[1], [2], [3]], np.float32), np.array([[5], [60], [2]], np.float32), 0.02


def loss_of(corrections: jax.Array) -> jax.Array:
    """How far (A + B) v is from the target."""
    total = jsg.sparse_add(SORTED, VALUES, SHAPE, B, corrections, SHAPE)
    product = BCOO((total.sum_values, total.sum_indices), shape=SHAPE) @ VECTOR
    return jnp.sum((product - TARGET) ** 2)


@jax.jit
def our_step(corrections: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step of gradient descent: `tf.sparse.add` became `jsg.sparse_add`, the tape `jax.value_and_grad`."""
    loss, gradient = jax.value_and_grad(loss_of)(corrections)
    return corrections - RATE * gradient, loss


def tensorflow_step(tf: Any, corrections: Any) -> tuple[Any, Any]:
    """The same in TensorFlow."""
    corrections = tf.Variable(corrections)
    with tf.GradientTape() as tape:
        total = tf.sparse.add(tf.SparseTensor(SORTED, VALUES, SHAPE), tf.SparseTensor(B, corrections, SHAPE))
        product = tf.sparse.sparse_dense_matmul(total, VECTOR)
        loss = tf.reduce_sum((product - TARGET) ** 2)
    return corrections - RATE * tape.gradient(loss, corrections), loss


def ask_ours(indices: np.ndarray, values: np.ndarray) -> list[Any]:
    """The answers of this package about A, and A + B."""

    def add(values: jax.Array) -> jax.Array:
        return jsg.sparse_add(indices, values, SHAPE, B, B_VALUES, SHAPE).sum_values

    return ask(add, jnp.sum, jax.grad, jnp.asarray(values))


def ask_tensorflow(tf: Any, indices: np.ndarray, values: np.ndarray) -> list[Any]:
    """The answers of TensorFlow."""

    def add(values: Any) -> Any:
        return tf.sparse.add(tf.SparseTensor(indices, values, SHAPE), tf.SparseTensor(B, B_VALUES, SHAPE)).values

    def gradient(function: Function) -> Function:
        def derivative(x: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = function(x)
            return tape.gradient(y, x)

        return derivative

    return ask(add, tf.reduce_sum, gradient, tf.constant(values))


def ask(add: Function, total: Function, gradient: Callable[[Function], Function], values: Any) -> list[Any]:
    """The values of the sum, the gradient of its squares, and the second derivative of Σ (A + B)³ + Σ A²."""
    by_squares = gradient(lambda values: total(add(values) ** 2))
    by_cubes = gradient(lambda values: total(add(values) ** 3) + total(values**2))
    return [add(values), by_squares(values), gradient(lambda values: total(by_cubes(values)))(values)]


def answer(indices: np.ndarray, values: np.ndarray) -> list[np.ndarray]:
    """What is right, by dense arrays."""
    dense, cells = np.zeros(SHAPE), np.unique(np.concatenate([indices, B]), axis=0)
    np.add.at(dense, tuple(B.T), B_VALUES)
    np.add.at(dense, tuple(indices.T), values)
    at_a, copies = dense[tuple(indices.T)], (indices[:, None] == indices).all(axis=-1).sum(axis=1)
    return [dense[tuple(cells.T)], 2 * at_a, 6 * copies * at_a + 2]


def main(steps: int = 5) -> tuple[list[list[float]], list[list[Any]]]:
    """Train, ask, and print; the losses of each library, and the answers: ours, what is right, TensorFlow's if any."""
    tf, losses, answers = import_tensorflow(), [], []
    print("Losses of a training step that goes through a sparse sum")
    steppers = {"jax_sparse_grad": our_step} | ({"TensorFlow": partial(tensorflow_step, tf)} if tf else {})
    for name, step in steppers.items():
        corrections: Any = B_VALUES
        losses.append([])
        for _ in range(steps):
            corrections, loss = step(corrections)
            losses[-1].append(float(loss))
        print(f"  {name:15} ", *(f"{loss:.4f}" for loss in losses[-1]))

    print(f"\n  {'A is / asked for':40} {'jax_sparse_grad':20} {'right':20} TensorFlow")
    for kind, (indices, values) in OPERANDS.items():
        columns = [ask_ours(indices, values), answer(indices, values)]
        columns += [ask_tensorflow(tf, indices, values)] if tf else []
        for question, *row in zip(QUESTIONS, *columns, strict=True):
            texts = [" ".join(f"{value:g}" for value in np.asarray(each)) for each in row]
            marked = [f"{text + ' WRONG' * (text != texts[1]):20}" for text in texts]
            print(f"  {kind + ': ' + question:40}", *marked)
            answers.append(row)
    return losses, answers


def import_tensorflow() -> Any:
    """TensorFlow without its start-up messages, or None."""
    try:
        with patch.dict(os.environ, {"TF_CPP_MIN_LOG_LEVEL": "3"}), warnings.catch_warnings():
            os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # it announces itself at any level
            warnings.simplefilter("ignore")
            import tensorflow as tf
    except ImportError:
        return None
    tf.get_logger().setLevel("ERROR")
    return tf


if __name__ == "__main__":
    main()
