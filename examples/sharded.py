"""Add corrections to a graph whose rows are spread over eight devices, and learn them.

Takes 30 seconds on two cores. Needs the extra `examples` (of that matplotlib and scipy).

The nodes are numbered by age, as in a graph of citations: old ones have most edges, and the degrees follow a power law.
With equally many rows, the fullest shard has 5 times as many entries as the mean, all others are padded to its
length, and a sum takes several times as long. `balanced_row_starts` cuts so that all have equally many entries, and
`repartition` moves rows that are on the devices already. The sum and its gradient equal SciPy's bit for bit, and
communicate nothing.

On a CPU, the host is divided into eight devices, which share its cores: the example shows what each has to do, not how
fast eight real ones are.
"""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from scipy.sparse import coo_array, csr_array

import jax_sparse_grad as jsg
from jax_sparse_grad.sharded import RowSharded, ShardedPlan

COLOURS = {"equally many rows": "#D55E00", "equally many entries": "#0072B2"}


class Result(NamedTuple):
    """Figures of a run.

    skews: entries of the fullest shard divided by the mean, with equally many rows and balanced.
    errors: largest differences of the sum and of its gradient from SciPy's.
    collectives: what the compiled sum communicates, forward and backward.
    losses: of the descent.
    milliseconds: of a sum and its gradient, with equally many rows and balanced.
    plot: where the picture was saved.
    """

    skews: list[float]
    errors: tuple[float, float]
    collectives: list[str]
    losses: list[float]
    milliseconds: list[float]
    plot: Path


def main(nodes: int = 100_000, edges: int = 1_000_000, *, steps: int = 10, output: str | Path | None = None) -> Result:
    """Balance a graph and its corrections over the devices, add them, learn the corrections, and draw the shards."""
    rng = np.random.default_rng(0)
    graph, corrections = draw_graph(rng, nodes, edges)
    shards = jax.device_count()
    mesh = jax.make_mesh((shards,), ("rows",), axis_types=(AxisType.Auto,))
    print(f"{graph.nnz:,} edges of {nodes:,} nodes + {corrections.nnz:,} corrections, on {shards} devices")

    # Load equally many rows onto each device. Each shard is read alone: no process needs to hold all rows.
    even = [
        jsg.sharded.from_shards(lambda start, stop, matrix=matrix: matrix[start:stop], matrix.shape, mesh, "rows")
        for matrix in (graph, corrections)
    ]
    # Then move rows so that all devices have equally many entries.
    starts = jsg.sharded.balanced_row_starts(even)
    x, y = (jsg.sharded.repartition(each, starts) for each in even)
    entries = [np.asarray(even[0].nnz + even[1].nnz), np.asarray(x.nnz + y.nnz)]
    skews = [float(each.max() / each.mean()) for each in entries]
    milliseconds = [time_of(*even), time_of(x, y)]
    for name, skew, each in zip(COLOURS, skews, milliseconds, strict=True):
        print(f"{name}: the fullest shard has {skew:.3f} times the mean; sum and gradient take {each:,.0f} ms")

    total, gradient = sum_and_gradient(x, y)
    errors = compare(graph, corrections, total, y.with_data(gradient))
    program = sum_and_gradient.lower(x, y).compile().as_text() or ""
    collectives = sorted(set(re.findall(r"all-reduce|all-gather|all-to-all|collective-\w+|reduce-scatter", program)))
    print(f"differences from SciPy: {errors[0]} in the sum, {errors[1]} in its gradient")
    print(f"the compiled program communicates: {', '.join(collectives) or 'nothing'}")

    losses = learn(x, y, steps)
    print("losses of learning the corrections:", *(f"{loss:.4g}" for loss in losses))
    folder = Path(__file__).parent / "output" if output is None else Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    plot = folder / "sharded.png"
    draw([np.diff(even[0].row_starts), np.diff(x.row_starts)], entries).savefig(plot, dpi=120)
    print(f"Picture saved to {plot}")
    return Result(skews, errors, collectives, losses, milliseconds, plot)


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


@jax.jit
def sum_and_gradient(x: RowSharded, y: RowSharded) -> tuple[RowSharded, jax.Array]:
    """The sum, and the gradient of its squares by the values of y."""

    def squares_of(values: jax.Array) -> tuple[jax.Array, RowSharded]:
        total = jsg.sharded.add(x, y.with_data(values))
        return jnp.sum(total.data**2), total

    gradient, total = jax.grad(squares_of, has_aux=True)(y.data)
    return total, gradient


def compare(graph: csr_array, corrections: csr_array, total: RowSharded, gradient: RowSharded) -> tuple[float, float]:
    """The largest differences of the sum and of its gradient from SciPy's; infinite where entries are not alike."""

    def difference(found: RowSharded, expected: csr_array) -> float:
        indices = np.asarray(found.indices)
        stored = indices[:, 0] < found.shape[0]  # the others are padding
        expected = expected.tocoo()
        alike = np.array_equal(indices[stored], np.stack(expected.coords, axis=1))
        return float(abs(np.asarray(found.data)[stored] - expected.data).max()) if alike else np.inf

    expected = graph + corrections
    pattern = corrections.copy()
    pattern.data[:] = 1
    return difference(total, expected), difference(gradient, (2 * expected).multiply(pattern).tocsr())


def time_of(x: RowSharded, y: RowSharded) -> float:
    """Milliseconds of a sum and its gradient, the best of five after one that compiles."""
    seconds = []
    for _ in range(6):
        start = time.perf_counter()
        jax.block_until_ready(sum_and_gradient(x, y))
        seconds.append(time.perf_counter() - start)
    return 1e3 * min(seconds[1:])


def learn(x: RowSharded, y: RowSharded, steps: int) -> list[float]:
    """The losses of learning what other corrections do to a signal; the patterns are merged once, by a plan."""
    signal = jax.random.rademacher(jax.random.key(0), x.shape[1:], jnp.float32)
    sought = jax.random.normal(jax.random.key(1), y.data.shape)

    @jax.jit
    def learn(plan: ShardedPlan, x_values: jax.Array, values: jax.Array) -> jax.Array:
        def product(values: jax.Array) -> jax.Array:
            return plan.with_data(plan(x_values, values)).matrix @ signal

        wanted = product(sought)
        entries = jnp.maximum(
            plan.with_data(plan(0 * x_values, jnp.ones_like(values))).matrix @ jnp.ones(x.shape[1]), 1
        )

        def loss_of(values: jax.Array) -> jax.Array:  # by entries of a row, so that steps of length 1 do not overshoot
            return 0.5 * jnp.sum((product(values) - wanted) ** 2 / entries)

        def step(values: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            loss, gradient = jax.value_and_grad(loss_of)(values)
            return values - 0.5 * gradient, loss

        return jax.lax.scan(step, values, length=steps)[1]

    return learn(jsg.sharded.plan_sparse_add(x, y), x.data, y.data).tolist()


def draw(rows: list[np.ndarray], entries: list[np.ndarray]) -> Figure:
    """Draw the rows and the entries of each shard, before and after balancing."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, title, numbers in zip(figure.subplots(1, 2), ("rows", "entries"), (rows, entries), strict=True):
        for k, (name, colour) in enumerate(COLOURS.items()):
            axes.bar(np.arange(len(numbers[k])) + 0.4 * k - 0.2, numbers[k], 0.4, color=colour, label=name)
        axes.set(title=f"{title} of each shard", xlabel="shard")
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.spines[["top", "right"]].set_visible(False)
    axes.legend(title="each shard has", frameon=False)
    return figure


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)  # before anything runs; on real devices without effect
    main()
