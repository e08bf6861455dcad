"""What the package does in one picture: a sparse sum that stores each cell once, and its gradient at each operand.

Takes 10 seconds on two cores. Needs the extra `examples` (of that only matplotlib).

Two BCOO matrices share some cells. `jsg.add` merges them, so that a shared cell is stored once; JAX's own `A + B` would
store it twice. Backwards, `jax.grad` gives each stored value of A and of B the gradient of the cell that it went into.
All numbers are computed here, and compared with dense NumPy before anything is drawn.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import jax_sparse_grad as jsg

SHAPE = (3, 3)
A = [[1, 0, 0], [0, 2, 0], [3, 0, 0]]
B = [[0, 0, 10], [0, 20, 0], [0, 0, 0]]

BLUE, ORANGE, VIOLET = "#cfe2f6", "#fbdcb4", "#bda6e0"


class Result(NamedTuple):
    """A + B; gradients by the stored values of A, of B and of the sum, as matrices; the picture."""

    total: BCOO
    gradients: tuple[BCOO, BCOO, BCOO]
    plot: Path


def main(*, output: str | Path | None = None) -> Result:
    """Add, differentiate, compare with NumPy, and draw into the folder `output`."""
    a, b = (BCOO.fromdense(jnp.array(matrix, jnp.float32)) for matrix in (A, B))
    total = jsg.add(a, b)

    def loss(a_values: jax.Array, b_values: jax.Array) -> jax.Array:
        total = jsg.add(BCOO((a_values, a.indices), shape=SHAPE), BCOO((b_values, b.indices), shape=SHAPE))
        return jnp.sum(total.data**2)

    by_values = *jax.grad(loss, (0, 1))(a.data, b.data), jax.grad(lambda values: jnp.sum(values**2))(total.data)
    gradients = tuple(
        BCOO((values, matrix.indices), shape=SHAPE) for values, matrix in zip(by_values, (a, b, total), strict=True)
    )
    check(total, gradients)
    duplicated = (a + b).nse
    print(f"A stores {a.nse} entries and B {b.nse}; jsg.add(A, B) stores {total.nse}, JAX's own A + B {duplicated}")
    print(f"gradient of the sum of squares: by A's values {by_values[0].tolist()}, by B's {by_values[1].tolist()}")

    folder = Path(__file__).parent / "output" if output is None else Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    plot = folder / "how_it_works.png"
    draw_plot(a, b, total, gradients, duplicated).savefig(plot, dpi=120)
    print(f"Picture saved to {plot}")
    return Result(total, gradients, plot)


def check(total: BCOO, gradients: tuple[BCOO, ...]) -> None:
    """Compare with NumPy: the sum, each of its cells stored once, and the gradients, each in its operand's cells."""
    dense = np.add(A, B)
    np.testing.assert_array_equal(total.todense(), dense)
    np.testing.assert_array_equal(total.indices, np.argwhere(dense))
    for gradient, matrix in zip(gradients, (A, B, dense), strict=True):
        np.testing.assert_array_equal(gradient.todense(), np.where(np.array(matrix) != 0, 2 * dense, 0))


# The picture, in units of a cell: two rows of three matrices; y points downwards.
LEFTS, TOPS, WIDTH, HEIGHT = (0.3, 4.6, 8.9), (1.75, 7.3), 12.2, 11.4


def draw_plot(a: BCOO, b: BCOO, total: BCOO, gradients: tuple[BCOO, ...], duplicated: int) -> Figure:
    """Draw the sum from left to right, and below it the gradient from right to left."""
    figure = Figure(figsize=(10, 10 * HEIGHT / WIDTH))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(HEIGHT, 0))
    axes.set_axis_off()
    of_a, of_b = (set(map(tuple, matrix.indices.tolist())) for matrix in (a, b))
    colours = dict.fromkeys(of_a, BLUE) | dict.fromkeys(of_b, ORANGE) | dict.fromkeys(of_a & of_b, VIOLET)
    for left, colour, meaning in zip(
        LEFTS, (BLUE, ORANGE, VIOLET), ("stored by A", "stored by B", "stored by both"), strict=True
    ):
        axes.add_patch(Rectangle((left + 0.3, 0.25), 0.5, 0.5, facecolor=colour, edgecolor="0.5"))
        axes.text(left + 1, 0.5, meaning, va="center", fontsize=12.5)

    only_a, only_b = dict.fromkeys(of_a, BLUE), dict.fromkeys(of_b, ORANGE)
    stored = f"{total.nse} stored entries, each cell once\n(JAX's own A + B stores {duplicated})"
    columns = [
        ("A", a, only_a, f"{a.nse} stored entries"),
        ("B", b, only_b, f"{b.nse} stored entries"),
        ("C = jsg.add(A, B)", total, colours, stored),
    ]
    for left, (title, matrix, palette, note) in zip(LEFTS, columns, strict=True):
        draw_matrix(axes, left, TOPS[0], matrix, palette)
        say(axes, left + 1.5, TOPS[0] - 0.2, title, size=17, weight="bold", va="bottom")
        say(axes, left + 1.5, TOPS[0] + 3.2, note, color="dimgray", va="top")
    for left, sign in zip(LEFTS[1:], "+=", strict=True):
        say(axes, left - 0.65, TOPS[0] + 1.5, sign, size=30)

    draw_arrows(axes)
    notes = "only at A's own entries", "only at B's own entries", "at every stored entry"
    for left, gradient, name, note in zip(LEFTS, gradients, "ABC", notes, strict=True):
        draw_matrix(axes, left, TOPS[1], gradient, colours)
        for row, column in colours.keys() - set(map(tuple, gradient.indices.tolist())):
            say(axes, left + column + 0.5, TOPS[1] + row + 0.5, "nothing", size=11, color="0.6")
        say(axes, left + 1.5, TOPS[1] + 3.2, f"∂loss / ∂{name}", size=15, weight="bold", va="top")
        say(axes, left + 1.5, TOPS[1] + 3.7, note, color="dimgray", va="top")
    return figure


def draw_arrows(axes: Axes) -> None:
    """Draw the way of the gradient: from the loss to the sum, and from there to both operands."""
    above, line = TOPS[1] - 0.12, TOPS[1] - 0.9
    a, b, c = (left + 1.5 for left in LEFTS)
    arrow = {"arrowstyle": "-|>,head_width=0.4,head_length=0.8", "color": "0.25", "linewidth": 2}
    axes.annotate("", (c + 0.7, above), (c + 0.7, line - 0.25), arrowprops=arrow)
    axes.plot((c - 0.7, c - 0.7, a), (above, line, line), color="0.25", linewidth=2)
    for x in (a, b):
        axes.annotate("", (x, above), (x, line), arrowprops=arrow)
    say(axes, (a + b) / 2, line - 0.15, "jax.grad: each entry gets the gradient of its cell", va="bottom")
    say(axes, c + 0.7, line - 0.35, "loss = Σ C²", va="bottom")


def draw_matrix(axes: Axes, left: float, top: float, matrix: BCOO, colours: dict[tuple[int, int], str]) -> None:
    """Draw the stored entries of a matrix in colour, all other cells empty."""
    for row, column in np.ndindex(SHAPE):
        axes.add_patch(Rectangle((left + column, top + row), 1, 1, facecolor="none", edgecolor="0.8"))
    for (row, column), value in zip(matrix.indices.tolist(), matrix.data.tolist(), strict=True):
        x, y = left + column, top + row
        axes.add_patch(Rectangle((x, y), 1, 1, facecolor=colours[row, column], edgecolor="0.5", zorder=2))
        say(axes, x + 0.5, y + 0.52, f"{value:g}", size=18, zorder=3)


def say(axes: Axes, x: float, y: float, text: str, *, size: float = 12.5, va: str = "center", **style: object) -> None:
    """Write centred text."""
    axes.text(x, y, text, ha="center", va=va, fontsize=size, **style)


if __name__ == "__main__":
    main()
