"""Add corrections to a graph whose rows are spread over eight devices, and learn them.

Takes 15 seconds on two cores. Needs the extra `examples` (of that matplotlib, scipy and tqdm).

The nodes are numbered by age, as in a graph of citations: old ones have most edges, and the degrees follow a power law.
With equally many rows, the fullest shard has 5 times as many entries as the mean, all others are padded to its length,
and a sum takes three times as long. `balanced_row_starts` cuts so that all have equally many entries, and `repartition`
moves the rows of the graph, which are on the devices already. The sum and its gradient equal SciPy's bit for bit, and
communicate nothing.

On a CPU, the host is divided into eight devices, which share its cores: the example shows what each has to do, not how
fast eight real ones are.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from matplotlib.figure import Figure
from scipy.sparse import coo_array, csr_array
from tqdm import trange

import jax_sparse_grad as jsg
from jax_sparse_grad.sharded import RowSharded, ShardedPlan

OUTPUT = Path(__file__).parent / "output"


class Result(NamedTuple):
    """Figures of a run."""

    skews: list[float]  # entries of the fullest shard divided by the mean, with equally many rows and balanced
    errors: tuple[float, float]  # largest differences of the sum and of its gradient from SciPy's
    collectives: list[str]  # what the compiled sum communicates, forward and backward
    losses: list[float]  # of the descent
    plot: Path  # the picture


def main(nodes: int = 100_000, edges: int = 1_000_000, *, steps: int = 10, output: Path = OUTPUT) -> Result:
    """Balance a graph and its corrections over the devices, add them, learn the corrections, and draw the shards."""
    graph, corrections = draw_graph(np.random.default_rng(0), nodes, edges)
    mesh = jax.make_mesh((jax.device_count(),), ("rows",), axis_types=(AxisType.Auto,))
    print(f"{graph.nnz:,} edges of {nodes:,} nodes + {corrections.nnz:,} corrections, on {mesh.size} devices")

    def load(matrix: csr_array, row_starts: np.ndarray | None = None) -> RowSharded:
        # Each shard is read alone: no process needs to hold all rows. By default, all have equally many.
        return jsg.sharded.from_shards(
            lambda start, stop: matrix[start:stop], matrix.shape, mesh, "rows", row_starts=row_starts
        )

    even = load(graph)
    # The same cuts for both operands. Rows that are on the devices already move to where they belong.
    starts = jsg.sharded.balanced_row_starts([even, corrections])
    x, y = jsg.sharded.repartition(even, starts), load(corrections, starts)
    rows, entries = [np.diff(each.row_starts) for each in (even, x)], [even.nnz + load(corrections).nnz, x.nnz + y.nnz]
    skews = [float(each.max() / each.mean()) for each in entries]
    print(f"the fullest shard has {skews[0]:.2f} times as many entries as the mean, when balanced {skews[1]:.3f} times")

    program = sum_and_gradient.lower(x, y).compile()
    errors = compare(graph, corrections, *program(x, y))
    print(f"differences from SciPy: {errors[0]} in the sum, {errors[1]} in its gradient")
    kinds = r"all-reduce|all-gather|all-to-all|collective-\w+|reduce-scatter"
    collectives = sorted(set(re.findall(kinds, program.as_text() or "")))
    print(f"the compiled program communicates: {', '.join(collectives) or 'nothing'}")

    signal = np.random.default_rng(1).choice(np.float32([-1, 1]), nodes)
    losses = learn(x, y, jnp.asarray(signal), signal @ (graph + corrections), steps)
    print("losses of learning the corrections:", *(f"{loss:.4g}" for loss in losses))
    output.mkdir(parents=True, exist_ok=True)
    plot = output / "sharded.png"
    draw({"rows": rows, "entries": entries}).savefig(plot, dpi=120)
    print(f"Picture saved to {plot}")
    return Result(skews, errors, collectives, losses, plot)


@jax.jit
def sum_and_gradient(x: RowSharded, y: RowSharded) -> tuple[RowSharded, RowSharded]:
    """The sum, and the gradient of its squares by the values of y."""

    def squares_of(values: jax.Array) -> tuple[jax.Array, RowSharded]:
        total = jsg.sharded.add(x, y.with_data(values))
        return jnp.sum(total.data**2), total

    gradient, total = jax.grad(squares_of, has_aux=True)(y.data)
    return total, y.with_data(gradient)


def learn(x: RowSharded, y: RowSharded, signal: jax.Array, wanted: np.ndarray, steps: int) -> list[float]:
    """The losses of learning corrections with which the signal becomes what is wanted; a plan merges patterns once."""

    def loss_of(values: jax.Array, plan: ShardedPlan, x_values: jax.Array) -> jax.Array:
        return jnp.sum((signal @ plan.with_data(plan(x_values, values)).matrix - wanted) ** 2)

    evaluate = jax.jit(jax.value_and_grad(loss_of))
    plan, values, losses = jsg.sharded.plan_sparse_add(x, y), jnp.zeros_like(y.data), []
    for _ in trange(steps, desc="learning"):
        loss, gradient = evaluate(values, plan, x.data)
        values -= 0.05 * gradient
        losses.append(float(loss))
    return losses


def compare(graph: csr_array, corrections: csr_array, total: RowSharded, gradient: RowSharded) -> tuple[float, float]:
    """The largest differences of the sum and of its gradient from SciPy's; infinite where entries are not alike."""

    def difference(found: RowSharded, expected: csr_array) -> float:
        indices = np.asarray(found.indices)
        stored = indices[:, 0] < found.shape[0]  # the others are padding
        expected = expected.tocoo()
        alike = np.array_equal(indices[stored], np.stack(expected.coords, axis=1))
        return float(abs(np.asarray(found.data)[stored] - expected.data).max()) if alike else np.inf

    expected, pattern = graph + corrections, abs(corrections).sign()
    return difference(total, expected), difference(gradient, (2 * expected).multiply(pattern).tocsr())


def draw_graph(rng: np.random.Generator, nodes: int, edges: int) -> tuple[csr_array, csr_array]:
    """A graph in which the older of two nodes is cited more often, and corrections, half of them to its edges."""
    citing = rng.integers(1, nodes, edges)
    cited = (citing * rng.random(edges) ** 3).astype(np.int64)  # degrees follow a power law of exponent 2.5
    chosen, new = rng.choice(edges, edges // 10, replace=False), rng.integers(0, nodes, (2, edges // 10))
    pairs = (cited, citing), np.concatenate([[cited[chosen], citing[chosen]], new], axis=1)
    graph, corrections = (
        coo_array((np.ones(np.shape(each)[1], np.float32), tuple(each)), (nodes, nodes)).tocsr() for each in pairs
    )
    corrections.data = 0.1 * rng.standard_normal(corrections.nnz, np.float32)
    return graph, corrections


def draw(figures: dict[str, list[np.ndarray]]) -> Figure:
    """Draw the rows and the entries of each shard, before and after they are balanced."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, (title, numbers) in zip(figure.subplots(1, 2), figures.items(), strict=True):
        for k, name in enumerate(("equally many rows", "equally many entries")):
            axes.bar(np.arange(len(numbers[k])) + 0.4 * k - 0.2, numbers[k], 0.4, label=name)
        axes.set(title=f"{title} of each shard", xlabel="shard")
    axes.legend(title="each shard has", frameon=False)
    return figure


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)  # before anything runs; on real devices without effect
    main()
