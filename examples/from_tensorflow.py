"""Port a training step from TensorFlow, and see what TensorFlow's sparse sums get silently wrong.

Takes 15 seconds on two cores, 20 with TensorFlow. Needs nothing but this package. TensorFlow is optional (extra
`bench-tensorflow`): its column is empty without it.

First, the same training step in both libraries: a fixed sparse matrix plus learnt corrections, by gradient descent. The
losses agree. Then seven small questions on two 3 x 3 matrices, A and B, answered by TensorFlow, by this package, and by
NumPy with dense arrays, which decides who is right. A ported model that shows none of these patterns needs no change.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO

import jax_sparse_grad as jsg

SHAPE = (3, 3)
SORTED = np.array([[0, 0], [1, 1], [2, 0]])
VALUES = np.array([1, 2, 3], np.float32)
B, B_VALUES = np.array([[0, 2], [1, 1]]), np.array([10, 20], np.float32)
# Indices and values of A, by what is special about it.
OPERANDS = {
    "sorted": (SORTED, VALUES),
    "unsorted": (SORTED[[2, 0, 1]], VALUES[[2, 0, 1]]),
    "(1, 1) twice": (np.array([[0, 0], [1, 1], [1, 1]]), VALUES),
    "NaN at (1, 1)": (SORTED, np.array([1, np.nan, 3], np.float32)),
}


class Answer(NamedTuple):
    """Of one question: what both libraries say, None without TensorFlow, and what is right."""

    question: str
    tensorflow: list[float] | None
    ours: list[float]
    right: list[float]


def main(*, steps: int = 5) -> tuple[list[list[float]], list[Answer]]:
    """Train, ask, and print; returns the losses of each library, and the answers."""
    tf = import_tensorflow()
    losses = [train(our_step(), steps), *([train(tensorflow_step(tf), steps)] if tf else [])]
    print("Losses of a training step that goes through a sparse sum")
    for name, values in zip(("jax_sparse_grad", "TensorFlow"), losses, strict=False):
        print(f"  {name:15} ", *(f"{value:.4f}" for value in values))

    answers = ask(tf)
    print(f"\n  {'A is / asked for':40} {'TensorFlow':26} {'jax_sparse_grad':26} right")
    for answer in answers:
        cells = (answer.tensorflow, answer.ours, answer.right)
        texts = ["-" if cell is None else " ".join(f"{value:g}" for value in cell) for cell in cells]
        wrong = [text != texts[2] and text != "-" for text in texts]
        theirs, ours, right = (text + " WRONG" * is_wrong for text, is_wrong in zip(texts, wrong, strict=True))
        print(f"  {answer.question:40} {theirs:26} {ours:26} {right}")
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


# The training step: find the corrections B for which (A + B) v comes near a target.
VECTOR, TARGET, RATE = np.array([[1], [2], [3]], np.float32), np.array([[5], [60], [2]], np.float32), 0.02


def tensorflow_step(tf: Any) -> Callable[[np.ndarray], tuple[Any, Any]]:
    """One step of gradient descent in TensorFlow."""
    fixed = tf.SparseTensor(SORTED, VALUES, SHAPE)

    def step(corrections: Any) -> tuple[Any, Any]:
        corrections = tf.Variable(corrections)
        with tf.GradientTape() as tape:
            total = tf.sparse.add(fixed, tf.SparseTensor(B, corrections, SHAPE))
            product = tf.sparse.sparse_dense_matmul(total, VECTOR)
            loss = tf.reduce_sum((product - TARGET) ** 2)
        return corrections - RATE * tape.gradient(loss, corrections), loss

    return step


def our_step() -> Callable[[np.ndarray], tuple[Any, Any]]:
    """The same here: `tf.sparse.add` becomes `jsg.sparse_add`, the tape becomes `jax.value_and_grad`."""

    def loss_of(corrections: jax.Array) -> jax.Array:
        total = jsg.sparse_add(SORTED, VALUES, SHAPE, B, corrections, SHAPE)
        product = BCOO((total.sum_values, total.sum_indices), shape=SHAPE) @ VECTOR
        return jnp.sum((product - TARGET) ** 2)

    @jax.jit
    def step(corrections: jax.Array) -> tuple[jax.Array, jax.Array]:
        loss, gradient = jax.value_and_grad(loss_of)(corrections)
        return corrections - RATE * gradient, loss

    return step


def train(step: Callable[[Any], tuple[Any, Any]], steps: int) -> list[float]:
    """The losses of some steps."""
    corrections, losses = B_VALUES, []
    for _ in range(steps):
        corrections, loss = step(corrections)
        losses.append(float(loss))
    return losses


def ask(tf: Any) -> list[Answer]:
    """The questions, each with a function for TensorFlow, one for this package, and what is right."""
    answers = []
    for kind, (indices, values) in OPERANDS.items():
        dense = np.zeros(SHAPE)
        np.add.at(dense, tuple(B.T), B_VALUES)
        np.add.at(dense, tuple(indices.T), values)
        at_a, cells = dense[tuple(indices.T)], np.unique(np.concatenate([indices, B]), axis=0)

        def theirs(values: Any, indices: np.ndarray = indices) -> Any:
            return tf.sparse.add(tf.SparseTensor(indices, values, SHAPE), tf.SparseTensor(B, B_VALUES, SHAPE)).values

        def ours(values: Any, indices: np.ndarray = indices) -> Any:
            return jsg.sparse_add(indices, values, SHAPE, B, B_VALUES, SHAPE).sum_values

        theirs_gradient, gradient = tensorflow_gradient(tf, squares(theirs)), jax_gradient(squares(ours))
        questions = {
            "values of the sum": (theirs, ours, dense[tuple(cells.T)]),
            "gradient of its squares": (theirs_gradient, gradient, 2 * at_a),
        }
        if kind == "sorted":
            theirs_second = tensorflow_gradient(tf, tensorflow_gradient(tf, cubes(theirs)))
            questions["second derivative"] = theirs_second, jax_gradient(jax_gradient(cubes(ours))), 6 * at_a + 2
        if kind == "unsorted":
            of_sum = np.array([1, 2, 3, 4], np.float32)
            arguments = {"backprop_val_grad": of_sum, "a_indices": indices, "b_indices": B, "sum_indices": cells}
            questions["SparseAddGrad of 1 2 3 4"] = (
                lambda _, arguments=arguments: tf.raw_ops.SparseAddGrad(**arguments).a_val_grad,
                lambda _, arguments=arguments: jsg.sparse_add_grad(**arguments).a_val_grad,
                of_sum[[cells.tolist().index(row) for row in indices.tolist()]],
            )
        for asked, (tensorflow, package, right) in questions.items():
            their = np.asarray(tensorflow(tf.constant(values))).tolist() if tf else None
            answers.append(
                Answer(f"{kind}: {asked}", their, np.asarray(package(jnp.asarray(values))).tolist(), right.tolist())
            )
    return answers


def squares(values_of: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    """What is summed for the gradient."""
    return lambda x: [values_of(x) ** 2]


def cubes(values_of: Callable[[Any], Any]) -> Callable[[Any], list[Any]]:
    """What is summed for the second derivative: (A + B)³, and A² as weight decay."""
    return lambda x: [values_of(x) ** 3, x**2]


def jax_gradient(terms_of: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The gradient of the sum of all terms."""
    return jax.grad(lambda x: sum(jnp.sum(term) for term in terms_of(x)))


def tensorflow_gradient(tf: Any, terms_of: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same in TensorFlow."""

    def gradient(x: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(x)
            terms = terms_of(x)
        return tape.gradient(terms, x)

    return gradient


if __name__ == "__main__":
    main()
