"""The same lines in TensorFlow and in this package, side by side: where they agree, and where TensorFlow is wrong.

Takes 30 seconds on two cores, 40 with TensorFlow. Needs the extra `examples` (of that matplotlib and tqdm). TensorFlow
is optional (extra `bench-tensorflow`): without it, its answers are those recorded in this file, and marked as such.
With it, they are compared with the recorded ones, and any difference is reported.

Each task below is written once with TensorFlow and once with this package. A third function, in NumPy with dense
arrays, computes the right answer, and an answer counts as right only if it equals NumPy's exactly. What TensorFlow 2.21
does:

- Sorted operands without duplicates: indices, values and gradients agree, bit for bit.
- Unsorted operands: the documentation asks users to sort them first, but nothing checks that. The sum may hold a cell
  twice, each time with a part of its value. What is computed from these values is wrong, and so is its gradient. The
  gradient op itself leaves entries without their gradient.
- Duplicated entries: the same. `tf.sparse.reorder` does not help, because it keeps duplicates.
- NaN: where both operands hold an entry and the sum is NaN, the entry vanishes even at threshold 0, at which everything
  is kept according to the documentation. Its gradient is 0, and training goes on as if nothing had happened.
- The second derivative through a sparse sum is zero, without an error.
- bfloat16 and eight more dtypes of the op's signature have no kernel, and values cannot be vectors.
  `tf.vectorized_map` falls back to a loop, and fails if a threshold leaves sums of different sizes.
- The sum of a dense and a sparse tensor is right, whatever the order of the entries.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import os
import textwrap
import warnings
from collections.abc import Callable, Sequence
from itertools import zip_longest
from math import nan
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from tqdm import tqdm

import jax_sparse_grad as jsg

Array = np.ndarray
Shape = tuple[int, ...]

COLUMN = 57  # the width of the left column of the printed report
LONG = 100  # arrays with more numbers are shown by their digest

# The inputs that are drawn as matrices, and what they are about.
DRAWN = {
    "sorted": "entries in order,\nno cell twice",
    "threshold": "an entry of both is\ndropped if |sum| < 0.5",
    "unsorted": "A is stored in the\norder of the small digits",
    "duplicated": "A holds one cell twice",
    "NaN": "A holds a NaN",
}

# What TensorFlow answered, by task and input. Long arrays are recorded by their SHA-256.
RECORDED_VERSION = "2.21.0"
RECORDED: dict[str, Any] = {
    "sum: sorted": [[[0, 0], [0, 2], [1, 1], [2, 0]], [1.0, 10.0, 22.0, 3.0]],
    "sum: 48,000 entries": "SHA-256 948116a76ffe3034b8582e9a3793b295",
    "sum: threshold": [[[0, 0], [0, 2], [2, 0]], [1.0, 10.0, 3.0]],
    "sum: unsorted": [[[0, 2], [1, 1], [2, 0], [0, 0], [1, 1]], [10.0, 20.0, 3.0, 1.0, 2.0]],
    "sum: duplicated": [[[0, 0], [0, 2], [1, 1], [1, 1]], [1.0, 10.0, 22.0, 3.0]],
    "sum: NaN": [[[0, 0], [0, 2], [2, 0]], [1.0, 10.0, 3.0]],
    "sum: bfloat16": "raises NotFoundError",
    "sum: vector values": "raises ValueError",
    "gradient: sorted": [[2.0, 44.0, 6.0], [20.0, 44.0]],
    "gradient: threshold": [[2.0, 0.0, 6.0], [20.0, 0.0]],
    "gradient: unsorted": [[6.0, 2.0, 4.0], [20.0, 40.0]],
    "gradient: duplicated": [[2.0, 44.0, 6.0], [20.0, 44.0]],
    "gradient: NaN": [[2.0, 0.0, 6.0], [20.0, 0.0]],
    "SparseAddGrad: sorted": [[1.0, 3.0, 4.0], [2.0, 3.0]],
    "SparseAddGrad: 48,000 entries": "SHA-256 5b02bcc4589fd8930a5908b1db434e9c",
    "SparseAddGrad: unsorted": [[4.0, 0.0, 0.0], [2.0, 3.0]],
    "SparseAddGrad: duplicated": [[1.0, 3.0, 0.0], [2.0, 3.0]],
    "second derivative: with weight decay": [2.0, 2.0, 2.0],
    "vmap: results of two sizes": "raises InvalidArgumentError",
    "dense + sparse: unsorted, duplicated": [[1.0, 1.0, 4.0], [1.0, 7.0, 1.0], [1.0, 1.0, 1.0]],
}


class Task(NamedTuple):
    """The same thing done three times, by functions of the same arguments; `tensorflow` takes the module before them.

    name, title: for the report.
    inputs: the arguments, by the name of the input.
    show: prints the answer.
    """

    name: str
    title: str
    tensorflow: Callable[..., Any]
    ours: Callable[..., Any]
    numpy: Callable[..., Any]
    inputs: dict[str, tuple[Any, ...]]
    show: Callable[[Any], str]


class Case(NamedTuple):
    """One task with one input, and the answers as plain lists and numbers; "raises ..." where there was an error.

    recorded: whether TensorFlow's answer was read from this file.
    """

    task: Task
    input: str
    tensorflow: Any
    ours: Any
    truth: Any
    recorded: bool

    @property
    def name(self) -> str:
        """Task and input."""
        return f"{self.task.name}: {self.input}"

    @property
    def arguments(self) -> tuple[Any, ...]:
        """What the functions of the task were given."""
        return self.task.inputs[self.input]

    @property
    def tensorflow_right(self) -> bool:
        """Whether TensorFlow's answer is NumPy's."""
        return repr(self.tensorflow) == repr(self.truth)  # NaN is equal to NaN here

    @property
    def ours_right(self) -> bool:
        """Whether our answer is NumPy's."""
        return repr(self.ours) == repr(self.truth)


class Result(NamedTuple):
    """What a run found.

    cases: every task with every input.
    version: of the TensorFlow that answered.
    differences: the names of the cases in which TensorFlow did not answer as recorded; empty if it was not run.
    plot: where the picture was saved.
    """

    cases: list[Case]
    version: str
    differences: list[str]
    plot: Path


def main(*, tensorflow: bool | None = None, output: str | Path | None = None) -> Result:
    """Do every task with every input, print and draw the answers.

    Args:
      tensorflow: whether to run TensorFlow or read its recorded answers; by default, it is run if it is installed.
      output: the folder for the plot; by default `output` beside this file. Made if missing.
    """
    tf = import_tensorflow(tensorflow)
    pairs = [(task, name) for task in TASKS for name in task.inputs]
    cases = [solve(tf, task, name) for task, name in tqdm(pairs, desc="cases", unit="case")]
    version = RECORDED_VERSION if tf is None else tf.__version__
    print_report(cases, version)
    differences = [] if tf is None else print_differences(cases)

    folder = Path(__file__).parent / "output" if output is None else Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    plot = folder / "from_tensorflow.png"
    draw_plot(cases, version).savefig(plot, dpi=120)
    print(f"Plot saved to {plot}")
    return Result(cases, version, differences, plot)


def import_tensorflow(wanted: bool | None) -> Any:
    """TensorFlow without its start-up messages, or None."""
    if wanted is False:
        return None
    quiet = {"TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}  # oneDNN announces itself at any level
    try:
        with patch.dict(os.environ, quiet), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import tensorflow
    except ImportError:
        if wanted:
            raise
        return None
    tensorflow.get_logger().setLevel("ERROR")
    return tensorflow


# The tasks. In their arguments, A has the values x at the indices a, and B has y at b.


def tensorflow_sum(tf: Any, a: Array, x: Array, b: Array, y: Array, shape: Shape, thresh: float) -> Any:
    """The indices and values of A + B."""
    first = tf.SparseTensor(a, x, shape)
    second = tf.SparseTensor(b, y, shape)
    total = tf.sparse.add(first, second, thresh)
    return total.indices, total.values


def our_sum(a: Array, x: Array, b: Array, y: Array, shape: Shape, thresh: float) -> Any:
    """The same here."""
    total = jsg.sparse_add(a, x, shape, b, y, shape, thresh)
    return total.sum_indices, total.sum_values


def numpy_sum(a: Array, x: Array, b: Array, y: Array, shape: Shape, thresh: float) -> Any:
    """The same in NumPy."""
    total, stored = dense_sum(a, x, b, y, shape, thresh)
    return np.argwhere(stored), total[stored]


def dense_sum(a: Array, x: Array, b: Array, y: Array, shape: Shape, thresh: float = 0.0) -> tuple[Array, Array]:
    """A + B as a dense array, and which of its cells hold an entry."""
    operands = np.zeros((2, *shape, *x.shape[1:]))  # float64, rounded to the values' own dtype at the end
    held = np.zeros((2, *shape), bool)
    for operand, mask, rows, values in zip(operands, held, (a, b), (x, y), strict=True):
        np.add.at(operand, tuple(rows.T), values.astype(float))
        mask[tuple(rows.T)] = True
    total = operands.sum(axis=0).astype(x.dtype)
    small = (abs(total) < thresh).reshape(*shape, -1).all(axis=-1)
    stored = held.any(axis=0) & ~(held.all(axis=0) & small)
    total[~stored] = 0
    return total, stored


def tensorflow_gradient(tf: Any, a: Array, x: Array, b: Array, y: Array, shape: Shape, thresh: float) -> Any:
    """The gradient of the sum of the squares of A + B, by the values of A and B."""
    x, y = tf.Variable(x), tf.Variable(y)
    with tf.GradientTape() as tape:
        first = tf.SparseTensor(a, x, shape)
        second = tf.SparseTensor(b, y, shape)
        total = tf.sparse.add(first, second, thresh)
        loss = tf.reduce_sum(total.values**2)
    return tape.gradient(loss, (x, y))


def our_gradient(a: Array, x: Array, b: Array, y: Array, shape: Shape, thresh: float) -> Any:
    """The same here."""

    def loss(x, y):
        total = jsg.sparse_add(a, x, shape, b, y, shape, thresh)
        return jnp.sum(total.sum_values**2)

    return jax.grad(loss, (0, 1))(x, y)


def numpy_gradient(a: Array, x: Array, b: Array, y: Array, shape: Shape, thresh: float) -> Any:
    """The same in NumPy: twice the sum, at each entry."""
    total, _ = dense_sum(a, x, b, y, shape, thresh)
    return 2 * total[tuple(a.T)], 2 * total[tuple(b.T)]


def tensorflow_gradient_op(tf: Any, backprop: Array, a: Array, b: Array, total: Array) -> Any:
    """The gradients of the values of A and B, from the gradient of the values of their sum at the indices `total`."""
    grads = tf.raw_ops.SparseAddGrad(
        backprop_val_grad=backprop,
        a_indices=a,
        b_indices=b,
        sum_indices=total,
    )
    return grads.a_val_grad, grads.b_val_grad


def our_gradient_op(backprop: Array, a: Array, b: Array, total: Array) -> Any:
    """The same here."""
    grads = jsg.sparse_add_grad(backprop, a, b, total)
    return grads.a_val_grad, grads.b_val_grad


def numpy_gradient_op(backprop: Array, a: Array, b: Array, total: Array) -> Any:
    """The same in NumPy."""
    dense = np.zeros(total.max(axis=0) + 1, backprop.dtype)
    dense[tuple(total.T)] = backprop
    return dense[tuple(a.T)], dense[tuple(b.T)]


def tensorflow_second(tf: Any, a: Array, x: Array, b: Array, y: Array, shape: Shape) -> Any:
    """The second derivative, by x, of the sum of the cubes of A + B, with the squares of x as weight decay."""
    x = tf.Variable(x)
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            first = tf.SparseTensor(a, x, shape)
            second = tf.SparseTensor(b, y, shape)
            total = tf.sparse.add(first, second)
            cubes = tf.reduce_sum(total.values**3)
            loss = cubes + tf.reduce_sum(x**2)
        slope = inner.gradient(loss, x)
    return outer.gradient(slope, x)


def our_second(a: Array, x: Array, b: Array, y: Array, shape: Shape) -> Any:
    """The same here."""

    def loss(x):
        total = jsg.sparse_add(a, x, shape, b, y, shape)
        cubes = jnp.sum(total.sum_values**3)
        return cubes + jnp.sum(x**2)

    def slope(x):
        return jnp.sum(jax.grad(loss)(x))

    return jax.grad(slope)(x)


def numpy_second(a: Array, x: Array, b: Array, y: Array, shape: Shape) -> Any:
    """The same in NumPy."""
    total, _ = dense_sum(a, x, b, y, shape)
    return 6 * total[tuple(a.T)] + 2


def tensorflow_batch(tf: Any, a: Array, x: Array, b: Array, y: Array, shape: Shape, thresh: float) -> Any:
    """The values of A + B for several x at once, each of which gives its own number of entries."""

    def add(x):
        first = tf.SparseTensor(a, x, shape)
        second = tf.SparseTensor(b, y, shape)
        total = tf.sparse.add(first, second, thresh)
        return total.values

    return tf.vectorized_map(add, x)


def our_batch(a: Array, x: Array, b: Array, y: Array, shape: Shape, thresh: float) -> Any:
    """The same here, padded."""

    def add(x):
        total = jsg.sparse_add(a, x, shape, b, y, shape, thresh)
        return total.sum_values

    return jax.vmap(add)(x)


def numpy_batch(a: Array, x: Array, b: Array, y: Array, shape: Shape, thresh: float) -> Any:
    """The same in NumPy."""
    rows = [numpy_sum(a, each, b, y, shape, thresh)[1] for each in x]
    return np.stack([np.pad(row, (0, len(a) + len(b) - len(row))) for row in rows])


def tensorflow_dense(tf: Any, dense: Array, b: Array, y: Array, shape: Shape) -> Any:
    """A dense array plus B."""
    return tf.sparse.add(dense, tf.SparseTensor(b, y, shape))


def our_dense(dense: Array, b: Array, y: Array, shape: Shape) -> Any:
    """The same here."""
    return jsg.add(dense, BCOO((y, b), shape=shape))


def numpy_dense(dense: Array, b: Array, y: Array, shape: Shape) -> Any:
    """The same in NumPy."""
    total = np.zeros(shape, dense.dtype)
    np.add.at(total, tuple(b.T), y)
    return total + dense


# Their inputs.


def entries(*cells: tuple[float, ...]) -> tuple[Array, Array]:
    """The indices and values of cells given as (row, column, value)."""
    table = np.array(cells)
    return table[:, :2].astype(np.int64), table[:, 2].astype(np.float32)


def every(*steps: int) -> tuple[Array, Array]:
    """Indices and values of the cells of a 300x300 matrix that one of the steps meets, counted row by row."""
    cells = np.unique(np.concatenate([np.arange(0, 300 * 300, step) for step in steps]))
    # Square roots use all the digits that a value has, and are the same on every machine.
    return np.stack(np.divmod(cells, 300), axis=1), np.sqrt(cells).astype(np.float32)


SHAPE = (3, 3)
A = entries((0, 0, 1), (1, 1, 2), (2, 0, 3))
B = entries((0, 2, 10), (1, 1, 20))
UNSORTED = entries((2, 0, 3), (0, 0, 1), (1, 1, 2))
DUPLICATED = entries((0, 0, 1), (1, 1, 2), (1, 1, 3))
SUM, BACKPROP = entries((0, 0, 1), (0, 2, 2), (1, 1, 3), (2, 0, 4))
LARGE_A, LARGE_B, (LARGE_SUM, LARGE_BACKPROP) = every(3), every(5), every(3, 5)
OPERANDS = {
    "sorted": (*A, *B, SHAPE, 0.0),
    "48,000 entries": (*LARGE_A, *LARGE_B, (300, 300), 0.0),
    "threshold": (*A, *entries((0, 2, 10), (1, 1, -1.75)), SHAPE, 0.5),
    "unsorted": (*UNSORTED, *B, SHAPE, 0.0),
    "duplicated": (*DUPLICATED, *B, SHAPE, 0.0),
    "NaN": (*entries((0, 0, 1), (1, 1, nan), (2, 0, 3)), *B, SHAPE, 0.0),
    "bfloat16": (A[0], A[1].astype(jnp.bfloat16), B[0], B[1].astype(jnp.bfloat16), SHAPE, 0.0),
    "vector values": (A[0][:2], np.float32([[1, 2], [3, 4]]), B[0][1:], np.float32([[30, 40]]), SHAPE, 0.0),
}


def number(value: Any) -> str:
    """Numbers, or lists of them, as text."""
    return f"[{', '.join(map(number, value))}]" if isinstance(value, Sequence) else f"{value:g}"


def show_entries(answer: Any) -> str:
    """The entries of a sparse matrix as text, in the order in which they are stored."""
    return "  ".join(f"({row},{column}) {number(value)}" for (row, column), value in zip(*answer, strict=True))


def show_gradients(answer: Any) -> str:
    """The gradients of both operands' values as text."""
    return "  ".join(f"{name} {number(gradient)}" for name, gradient in zip("AB", answer, strict=True))


TASKS = [
    Task("sum", "A + B: indices and values", tensorflow_sum, our_sum, numpy_sum, OPERANDS, show_entries),
    Task(
        "gradient",
        "The gradient of the sum of the squares of A + B",
        tensorflow_gradient,
        our_gradient,
        numpy_gradient,
        {name: OPERANDS[name] for name in DRAWN},
        show_gradients,
    ),
    Task(
        "SparseAddGrad",
        "The gradient op alone: `backprop` is the gradient of the values of the sum, `total` holds its indices",
        tensorflow_gradient_op,
        our_gradient_op,
        numpy_gradient_op,
        {
            "sorted": (BACKPROP, A[0], B[0], SUM),
            "48,000 entries": (LARGE_BACKPROP, LARGE_A[0], LARGE_B[0], LARGE_SUM),
            "unsorted": (BACKPROP, UNSORTED[0], B[0], SUM),
            "duplicated": (BACKPROP[:3], DUPLICATED[0], B[0], SUM[:3]),
        },
        show_gradients,
    ),
    Task(
        "second derivative",
        "The second derivative of the cubes of A + B, with weight decay",
        tensorflow_second,
        our_second,
        numpy_second,
        {"with weight decay": (*A, *B, SHAPE)},
        number,
    ),
    Task(
        "vmap",
        "The values of A + B for two x at once; in the second, the threshold drops an entry",
        tensorflow_batch,
        our_batch,
        numpy_batch,
        {"results of two sizes": (A[0], np.float32([[1, 2, 3], [1, -20, 3]]), *B, SHAPE, 0.5)},
        number,
    ),
    Task(
        "dense + sparse",
        "A dense array plus B",
        tensorflow_dense,
        our_dense,
        numpy_dense,
        {"unsorted, duplicated": (np.ones(SHAPE, np.float32), *entries((1, 1, 2), (0, 2, 3), (1, 1, 4)), SHAPE)},
        number,
    ),
]


def solve(tf: Any, task: Task, name: str) -> Case:
    """Do a task with one of its inputs; without TensorFlow, its answer is the recorded one."""
    arguments = task.inputs[name]
    case = Case(task, name, None, plain(task.ours(*arguments)), plain(task.numpy(*arguments)), tf is None)
    if tf is None:
        return case._replace(tensorflow=RECORDED[case.name])
    try:
        answer = plain(task.tensorflow(tf, *arguments))
    except Exception as error:  # many types, and the messages contain names of internal nodes
        answer = f"raises {type(error).__name__}"
    return case._replace(tensorflow=answer)


def plain(answer: Any) -> Any:
    """An array, or a tuple or list of arrays, as Python's numbers; long ones as the digest of all their bits."""
    if not isinstance(answer, tuple | list):
        return plain([answer])[0]
    arrays = [np.asarray(array) for array in answer]
    # The widest types: libraries may differ in that of the indices.
    arrays = [array.astype(np.int64 if array.dtype.kind in "iu" else np.float64) for array in arrays]
    if max(array.size for array in arrays) > LONG:
        return "SHA-256 " + hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest()[:32]
    return [array.tolist() for array in arrays]


def print_report(cases: list[Case], version: str) -> None:
    """Print every task with its answers, and count the right ones."""
    recorded = cases[0].recorded
    tensorflow = f"TensorFlow {version}" + (", RECORDED" if recorded else "")
    if recorded:
        print(f"TensorFlow is not run: its answers below were recorded from version {version}.")
    print("An answer is right if it equals what NumPy computes with dense arrays, bit for bit.")
    described: set[int] = set()
    for task in TASKS:
        print_task(task, [case for case in cases if case.task is task], tensorflow, described)

    right = sum(case.tensorflow_right for case in cases)
    failed = sum(is_error(case.tensorflow) for case in cases)
    wrong = len(cases) - right - failed
    print(f"\nOf {len(cases)} answers:")
    print(f"  {tensorflow}: {right} right, {wrong} silently wrong, {failed} not given (error)")
    print(f"  jax_sparse_grad: {sum(case.ours_right for case in cases)} right")


def print_task(task: Task, cases: list[Case], tensorflow: str, described: set[int]) -> None:
    """Print the lines that do a task, and both answers to every input; `described` holds the ids of inputs shown."""
    print(f"\n{task.title}\n")
    print_columns(tensorflow, "jax_sparse_grad")
    print("  " + "-" * COLUMN + "-+-" + "-" * COLUMN)
    for theirs, ours in zip_longest(body(task.tensorflow), body(task.ours), fillvalue=""):
        print_columns(theirs, ours)
    print()
    for case in cases:
        print(f"  {case.input}: {'as above' if id(case.arguments) in described else describe(case)}")
        print_columns(show(case, case.tensorflow, case.tensorflow_right), show(case, case.ours, case.ours_right))
        described.add(id(case.arguments))


def print_columns(left: str, right: str) -> None:
    """Print a line of two columns."""
    print(f"  {left:{COLUMN}} | {right}".rstrip())


def body(function: Callable[..., Any]) -> list[str]:
    """The lines of a function below its definition and docstring, which take one line each."""
    lines = inspect.getsource(function).splitlines()[2:]
    return [line for line in textwrap.dedent("\n".join(lines)).splitlines() if line]


def describe(case: Case) -> str:
    """The arguments of a case, under the names that its lines give them."""
    names = inspect.signature(case.task.numpy).parameters
    return "  ".join(f"{name} {argument(each)}" for name, each in zip(names, case.arguments, strict=True))


def argument(value: Any) -> str:
    """An argument as text."""
    if not isinstance(value, np.ndarray):
        return str(value)
    if value.size > LONG:
        return f"of {len(value):,} rows"
    if value.dtype.kind == "i":
        return " ".join(f"({row},{column})" for row, column in value)
    return number(plain(value))


def show(case: Case, answer: Any, right: bool) -> str:
    """An answer as text, with the verdict."""
    if is_error(answer):
        return answer
    text = answer if isinstance(answer, str) else case.task.show(answer)
    return f"{text:{COLUMN - 6}} {'right' if right else 'WRONG'}"


def is_error(answer: Any) -> bool:
    """Whether an answer is an error."""
    return isinstance(answer, str) and answer.startswith("raises")


def is_digest(answer: Any) -> bool:
    """Whether an answer is long, and known by its digest alone."""
    return isinstance(answer, str) and answer.startswith("SHA-256")


def print_differences(cases: list[Case]) -> list[str]:
    """Print TensorFlow's answers that are not as recorded, ready to replace the record; returns their names."""
    differing = [case for case in cases if repr(case.tensorflow) != repr(RECORDED.get(case.name))]
    if not differing:
        print(f"TensorFlow's answers are all as recorded from version {RECORDED_VERSION}")
        return []
    print(f"These answers of TensorFlow are not as recorded from version {RECORDED_VERSION}:")
    for case in differing:
        print(f"    {case.name!r}: {case.tensorflow!r},")
    return [case.name for case in differing]


# The picture. One row for each input, and in it eight matrices of 3x3 unit squares; y points downwards.
LABELS, MATRIX, GAP, GROUP_GAP, ROW, LINE = 6.6, 3.0, 1.0, 2.0, 4.2, 1.05
BLUE, ORANGE, PURPLE, PINK = "#cfe2f6", "#fbdcb4", "#bda6e0", "#fbd3d0"
RED, GREEN = "#c62828", "#2e7d32"

Cells = dict[tuple[int, int], list[float]]


def draw_plot(cases: list[Case], version: str) -> Figure:
    """Draw operands, sums and gradients of some inputs as matrices; below them, the other answers, unless long."""
    by_name = {case.name: case for case in cases}
    drawn = {f"{task}: {name}" for task in ("sum", "gradient") for name in DRAWN}
    others = [case for case in cases if case.name not in drawn and not is_digest(case.truth)]
    lefts = column_places()
    top, bottom = -3.6, len(DRAWN) * ROW + 2.1 + len(others) * LINE
    width = lefts[-1] + MATRIX + 1.8
    figure = Figure(figsize=(0.34 * width, 0.34 * (bottom - top)))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-0.8, width - 0.8), ylim=(bottom, top))
    axes.set_axis_off()

    theirs = f"TensorFlow {version}" + ("\nRECORDED" if cases[0].recorded else "")
    headings = ["A", "B", *["NumPy, dense", theirs, "jax_sparse_grad"] * 2]
    for left, heading in zip(lefts, headings, strict=True):
        axes.text(left + MATRIX / 2, -0.3, heading, ha="center", va="bottom", fontsize=8.5)
    for first, last, title in ((0, 1, "operands"), (2, 4, "A + B"), (5, 7, "gradient of Σ (A + B)², at A's entries")):
        left, right = lefts[first], lefts[last] + MATRIX
        axes.text((left + right) / 2, -2.2, title, ha="center", va="bottom", fontsize=12, weight="bold")
        axes.plot((left, right), (-2.0, -2.0), color="black", linewidth=0.8)

    draw_legend(axes)
    for row, (name, note) in enumerate(DRAWN.items()):
        y = row * ROW
        axes.text(0, y + 0.1, name, va="top", fontsize=12, weight="bold")
        axes.text(0, y + 1.1, note, va="top", fontsize=8.5, color="dimgray", linespacing=1.4)
        draw_row(axes, lefts, y, by_name[f"sum: {name}"], by_name[f"gradient: {name}"])

    y = len(DRAWN) * ROW
    axes.plot((0, lefts[-1] + MATRIX), (y, y), color="black", linewidth=0.8)
    draw_table(axes, (0, lefts[2], lefts[5]), y + 0.6, others, [theirs.replace("\n", ", "), "jax_sparse_grad"])
    return figure


def column_places() -> list[float]:
    """The left edges of the matrices: two operands, three sums, three gradients."""
    lefts, left = [], LABELS
    for group in (2, 3, 3):
        for _ in range(group):
            lefts.append(left)
            left += MATRIX + GAP
        left += GROUP_GAP - GAP
    return lefts


def draw_legend(axes: Axes) -> None:
    """Draw what the colours mean."""
    meanings = ((BLUE, "of A"), (ORANGE, "of B"), (PURPLE, "of both"), (PINK, "wrong"))
    for place, (colour, meaning) in enumerate(meanings):
        x, y = 2.4 * (place % 2), -2.5 + 0.9 * (place // 2)
        edge = RED if colour == PINK else "lightgray"
        axes.add_patch(Rectangle((x, y - 0.25), 0.5, 0.5, facecolor=colour, edgecolor=edge, linewidth=0.8))
        axes.text(x + 0.75, y, meaning, va="center", fontsize=8.5)


def draw_table(
    axes: Axes, places: tuple[float, float, float], top: float, cases: list[Case], headings: list[str]
) -> None:
    """Draw a line for each case: its name, TensorFlow's answer and ours."""
    for x, heading in zip(places[1:], headings, strict=True):
        axes.text(x, top, heading, va="center", fontsize=8.5)
    for line, case in enumerate(cases, start=1):
        y = top + line * LINE
        axes.text(places[0], y, case.name, va="center", fontsize=9.5, weight="bold")
        verdicts = (case.tensorflow, case.tensorflow_right), (case.ours, case.ours_right)
        for x, (answer, right) in zip(places[1:], verdicts, strict=True):
            draw_mark(axes, x, y, right)
            axes.text(x + 0.9, y, brief(case, answer), va="center", fontsize=9, color="black" if right else RED)


def brief(case: Case, answer: Any) -> str:
    """An answer in few words."""
    return answer if is_error(answer) else case.task.show(answer)


def draw_mark(axes: Axes, x: float, y: float, right: bool) -> None:
    """Draw a tick or a cross."""
    mark, colour = ("✓", GREEN) if right else ("✗", RED)
    axes.text(x, y, mark, va="center", fontsize=12, weight="bold", color=colour)


def draw_row(axes: Axes, lefts: list[float], y: float, total: Case, gradient: Case) -> None:
    """Draw operands, sums and gradients of one input."""
    a, x, b, values, *_ = total.arguments
    operands = cells_of(a, x), cells_of(b, values)
    for left, operand, colour in zip(lefts, operands, (BLUE, ORANGE), strict=False):
        draw_matrix(axes, left, y, operand, dict.fromkeys(operand, colour))
    if a.tolist() != sorted(a.tolist()):
        for place, (row, column) in enumerate(a, start=1):
            axes.text(
                lefts[0] + column + 0.95, y + row + 0.04, place, ha="right", va="top", fontsize=7, color="dimgray"
            )

    colours = dict.fromkeys(operands[0], BLUE) | dict.fromkeys(operands[1], ORANGE)
    colours |= dict.fromkeys(operands[0].keys() & operands[1].keys(), PURPLE)
    for places, case in ((lefts[2:5], total), (lefts[5:8], gradient)):
        truth, theirs, ours = (
            {} if is_error(answer) else cells_of(*answer) if case is total else cells_of(a, answer[0])
            for answer in (case.truth, case.tensorflow, case.ours)
        )
        draw_matrix(axes, places[0], y, truth, colours)
        for left, answer, right in ((places[1], theirs, case.tensorflow_right), (places[2], ours, case.ours_right)):
            draw_matrix(axes, left, y, answer, colours, truth)
            draw_mark(axes, left + MATRIX + 0.12, y + 0.4, right)


def cells_of(indices: Any, values: Any) -> Cells:
    """The values stored in each cell."""
    cells: Cells = {}
    for (row, column), value in zip(indices, values, strict=True):
        cells.setdefault((int(row), int(column)), []).append(float(value))
    return cells


def draw_matrix(
    axes: Axes, left: float, top: float, cells: Cells, colours: dict[tuple[int, int], str], truth: Cells | None = None
) -> None:
    """Draw a matrix; cells that differ from those of `truth` in red."""
    for row, column in np.ndindex(SHAPE):
        held = cells.get((row, column), [])
        wrong = truth is not None and repr(held) != repr(truth.get((row, column), []))
        x, y = left + column, top + row
        face = PINK if wrong else colours[row, column] if held else "none"
        edge, line, order = (RED, 1.5, 3) if wrong else ("lightgray", 0.6, 1)
        axes.add_patch(Rectangle((x, y), 1, 1, facecolor=face, edgecolor=edge, linewidth=line, zorder=order))
        texts = [f"{value:g}" for value in held] or ["lost"] * wrong
        width = 1 / max(len(texts), 1)
        for k, text in enumerate(texts):
            if k:
                axes.plot((x + k * width,) * 2, (y, y + 1), color=RED if wrong else "gray", linewidth=0.7, zorder=4)
            axes.text(
                x + (k + 0.5) * width,
                y + 0.52,
                text,
                ha="center",
                va="center",
                fontsize=9.5 if len(texts) == 1 and len(text) < 4 else 7,
                color=RED if wrong else "black",
                weight="bold" if wrong else "normal",
                zorder=5,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The same lines in TensorFlow and in this package.")
    parser.add_argument("--recorded", action="store_true", help="do not run TensorFlow, even if it is installed")
    parser.add_argument("--output", type=Path, help="folder for the plot (default: output, beside this file)")
    arguments = parser.parse_args()
    main(tensorflow=False if arguments.recorded else None, output=arguments.output)
