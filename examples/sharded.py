"""Add corrections to a graph whose rows are spread over eight devices, and learn them.

Takes 50 seconds on two cores, most of them for compilation, and 1.5 GB of memory. `--large` does the same with a graph
of ten million edges, and more timings: 4 minutes and 8 GB. Needs the extra `examples` (of that matplotlib, scipy and
tqdm).

The nodes are numbered by age, as in a graph of citations: old ones have most edges, and the degrees follow a power law.
Shards with equally many rows therefore have very unequal work: a sum takes as long as the fullest shard, and all others
are padded to its length. `balanced_row_starts` cuts so that the shards have equally many entries, and `repartition`
moves rows that are already on the devices. Then come the sum and its gradients, compared with SciPy's; a few steps of
descent with a plan, which merges the patterns once; and timings.

On a CPU, the host is divided into eight devices: they share its cores and its memory, so more shards than cores gain
nothing but smaller pieces. The example shows what each device has to do. How fast eight real ones are, only they can
tell.

Results of `--large`, which sharded.png beside this file shows, on a CPU with two cores: 10,000,000 edges of 1,000,000
nodes and 2,000,000 corrections. Ranges are those of several runs, some on a busy machine.

- With equally many rows, the fullest shard has 5.5 times as many entries as the mean; balanced, 1.000 times, or 1.001
  times if the cuts come from a sample of what is on the devices. The balanced shards have from 609 to 663,011 rows.
- The sum and its gradients equal SciPy's bit for bit, and nothing is communicated, forward or backward. In the loss,
  JAX's product of the sum and a vector needs an all-reduce.
- With equally many rows, eight shards take 3.5 to 4.5 times as long as balanced ones forward, 3.8 to 5.3 times with the
  backward pass, and 6.3 to 7.7 times with a plan, because padding is merged too: 66 million slots, not 12 million.
- With a plan, forward and backward take a sixth to a seventh of the time on one shard, an eighth to an eleventh on
  eight balanced ones.
- Eight balanced shards take 0.75 to 0.85 times as long as one, 0.75 to 0.87 times with the backward pass, 0.5 times
  with a plan. XLA uses both cores for a single shard as well, so this is the gain of smaller pieces, not that of eight
  devices.
- One shard takes 1.02 to 1.2 times as long as `jsg.add` on one device, 0.9 to 1.1 times with a plan.
- Going from equally many rows to balanced ones by `repartition` takes 13 to 19 s, with the cuts and compilation: more
  than half of the graph leaves one shard, and of the blocks for all pairs of shards, each is as long as the largest.
  Where the cuts are known before the graph is loaded, give them to `from_shards`: 1.4 s.

Results of the default run: 1,000,000 edges of 100,000 nodes and 200,000 corrections.

- The skew is the same, 5.5 and 1.001, and so are the checks. The balanced shards have from 69 to 66,025 rows.
- With equally many rows, eight shards take 6 times as long as balanced ones forward and backward, and 3.4 to 4 times
  with a plan. Eight balanced shards take 0.6 to 0.7 times as long as `jsg.add` on one device.
"""

from __future__ import annotations

import argparse
import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO
from jax.sharding import AxisType, Mesh
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from scipy.sparse import coo_array, csr_array
from tqdm import tqdm

import jax_sparse_grad as jsg
from jax_sparse_grad.sharded import RowSharded

AXIS = "rows"
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "collective-broadcast", "reduce-scatter")

# What is timed.
FORWARD = "forward"
BACKWARD = "forward and backward"
PLANNED = "forward and backward, planned"

# Colours that all eyes can tell apart.
COLOURS = {FORWARD: "#B8A4D8", BACKWARD: "#6A51A3", PLANNED: "#009E73"}
EVEN, BALANCED = "equally many rows", "balanced"
SHADES = {EVEN: ("#D55E00", "#F0B48A"), BALANCED: ("#0072B2", "#8FC1E3")}  # of the graph, of the corrections

# What `--large` sets. The default leaves most of the timings out, because each is a program to compile.
LARGE = {
    "nodes": 1_000_000,
    "edges": 10_000_000,
    "corrections": 2_000_000,
    "shard_counts": (1, 2, 4, 8),
    "ways": (FORWARD, BACKWARD, PLANNED),
}


class Problem(NamedTuple):
    """A graph, corrections to it, and what the corrections are learnt from.

    graph: the adjacency, float32 `[nodes, nodes]`; row i holds the edges of node i to the nodes that cite it.
    corrections: the same; half of its entries lie on edges of the graph, the other half do not.
    signal: `[nodes]`, 1 or -1 at each node.
    wanted: `[nodes]`, the product of the signal and the graph with the corrections that are sought.
    entries: `[nodes]`, of each row of the sum; 1 for empty rows.
    """

    graph: csr_array
    corrections: csr_array
    signal: np.ndarray
    wanted: np.ndarray
    entries: np.ndarray


class Cuts(NamedTuple):
    """Where the rows are cut, and what each shard gets.

    starts: `[shards + 1]`, the first row of each shard, and the number of rows.
    entries: `[2, shards]`, of the graph and of the corrections.
    """

    starts: np.ndarray
    entries: np.ndarray

    @property
    def skew(self) -> float:
        """The entries of the fullest shard as a multiple of the mean."""
        work = self.entries.sum(axis=0)
        return float(work.max() / work.mean())


class Result(NamedTuple):
    """The figures of a run.

    skew_before: the entries of the fullest shard divided by the mean, if all shards have equally many rows.
    skew_after: the same if the rows are cut by `balanced_row_starts`.
    moved_alike: whether `repartition` on the devices gave what `partition` gives from the host.
    sum_error: the largest difference between the sharded sum and SciPy's.
    gradient_error: the largest difference between the gradient of half its squares and SciPy's.
    collectives: what the compiled sum communicates, forward and backward.
    losses: `[1 + steps]`, before each step of the descent and after the last.
    milliseconds: for each way the time on each set of devices.
    plot: where the picture was saved.
    """

    skew_before: float
    skew_after: float
    moved_alike: bool
    sum_error: float
    gradient_error: float
    collectives: list[str]
    losses: np.ndarray
    milliseconds: dict[str, dict[str, float]]
    plot: Path


def main(
    nodes: int = 100_000,
    edges: int = 1_000_000,
    corrections: int = 200_000,
    shard_counts: tuple[int, ...] = (8,),
    *,
    ways: tuple[str, ...] = (BACKWARD, PLANNED),
    steps: int = 10,
    rounds: int = 5,
    output: str | Path | None = None,
) -> Result:
    """Balance a graph and its corrections over the devices, add them, learn the corrections, and time the sum.

    Args:
      nodes: of the graph.
      edges: of the graph, all distinct.
      corrections: the number of entries of the second operand.
      shard_counts: the numbers of shards for which the sum is timed; those above the number of devices are left out.
      ways: what is timed.
      steps: of the descent.
      rounds: of the measurements.
      output: the folder for the plot; by default `output` beside this file. Made if missing.
    """
    counts = [count for count in shard_counts if count <= jax.device_count()]
    shards = max(counts)
    problem = draw_problem(nodes, edges, corrections)
    print_problem(problem, shards)
    cuts = {EVEN: cut(problem, even_row_starts(nodes, shards)), BALANCED: cut(problem, balanced(problem, shards))}
    print_cuts(cuts)
    (x, y), moved_alike = move_rows(problem, cuts)
    sum_error, gradient_error, collectives = check_sum(problem, x, y)
    losses = descend(problem, x, y, steps)
    milliseconds = measure(problem, counts, ways, rounds)
    print_times(milliseconds, counts)

    folder = Path(__file__).parent / "output" if output is None else Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    plot = folder / "sharded.png"
    draw_plot(cuts, milliseconds, counts).savefig(plot, dpi=120)
    print(f"\nPlot saved to {plot}")
    skews = cuts[EVEN].skew, cuts[BALANCED].skew
    return Result(*skews, moved_alike, sum_error, gradient_error, collectives, losses, milliseconds, plot)


def draw_problem(nodes: int, edges: int, corrections: int, seed: int = 0) -> Problem:
    """Draw a graph whose nodes are numbered by age, as in a graph of citations, and corrections to it."""
    rng = np.random.default_rng(seed)
    new = corrections // 2
    old = corrections - new
    keys = draw_edges(rng, nodes, edges + new)
    # The first ones are the graph. The corrections are the last ones of the graph, and what follows it.
    graph = as_matrix(keys[:edges], 1 - rng.random(edges, np.float32), nodes)
    values, sought = 0.1 * rng.standard_normal((2, corrections), np.float32)
    first, true = (as_matrix(keys[edges - old :], each, nodes) for each in (values, sought))
    signal = rng.choice(np.array([-1, 1], np.float32), nodes)
    total = graph + true
    return Problem(graph, first, signal, total @ signal, np.maximum(np.diff(total.indptr), 1).astype(np.float32))


def draw_edges(rng: np.random.Generator, nodes: int, number: int) -> np.ndarray:
    """The numbers `row * nodes + column` of distinct edges, in random order.

    All nodes cite equally often. The older a node, the more often it is cited: in proportion to about rank^(-2/3), so
    the degrees follow a power law of exponent 2.5, like those of many graphs.
    """
    keys = np.empty(0, np.int64)
    while len(keys) < number:
        citing, chance = rng.integers(1, nodes, number + number // 10), rng.random(number + number // 10)
        cited = (citing * chance * chance * chance).astype(np.int64)
        keys = np.sort(np.concatenate([keys, cited * nodes + citing]))
        keys = keys[np.append(True, keys[1:] > keys[:-1])]
    return rng.permutation(keys)[:number]


def as_matrix(keys: np.ndarray, values: np.ndarray, nodes: int) -> csr_array:
    """The matrix with the given values at distinct edges, sorted, with int32 indices."""
    order = np.argsort(keys)
    rows, columns = (each.astype(np.int32) for each in np.divmod(keys[order], nodes))
    return coo_array((values[order], (rows, columns)), shape=(nodes, nodes)).tocsr()


def print_problem(problem: Problem, shards: int) -> None:
    """Print how large and how uneven the graph is, and on which devices it is spread."""
    graph, corrections = problem.graph, problem.corrections
    degrees = np.sort(np.diff(graph.indptr))[::-1]
    both = graph.nnz + corrections.nnz - int(np.diff((graph + corrections).indptr).sum())
    print(f"Graph: {graph.shape[0]:,} nodes, {graph.nnz:,} edges")
    print(
        f"  the {len(degrees) // 20:,} rows with the most hold {degrees[: len(degrees) // 20].sum() / graph.nnz:.0%},"
    )
    print(f"  the fullest row {degrees[0]:,}, the median row {int(np.median(degrees)):,}")
    print(f"Corrections: {corrections.nnz:,} entries, of which {both:,} lie on edges of the graph")
    print(f"Devices: {shards} of {jax.device_count()} ({jax.devices()[0].device_kind}), {os.cpu_count()} cores")


def even_row_starts(rows: int, shards: int) -> np.ndarray:
    """The starts of shards with equally many rows."""
    return np.array([rows * k // shards for k in range(shards + 1)])


def balanced(problem: Problem, shards: int) -> np.ndarray:
    """The starts of shards with equally many entries to add."""
    return jsg.sharded.balanced_row_starts([problem.graph, problem.corrections], shards)


def cut(problem: Problem, starts: np.ndarray) -> Cuts:
    """What each shard gets if the rows are cut at `starts`."""
    return Cuts(starts, np.array([np.diff(x.indptr[starts]) for x in (problem.graph, problem.corrections)]))


def print_cuts(cuts: dict[str, Cuts]) -> None:
    """Print the rows and entries of each shard, before and after balancing."""
    print("\nRows and entries of each shard")
    print("       " + "".join(f"{name:^42}" for name in cuts).rstrip())
    print("  shard" + (len(cuts) * "        rows       graph   corrections    ").rstrip())
    for shard, rows in enumerate(np.transpose([np.diff(each.starts) for each in cuts.values()])):
        cells = [(count, *each.entries[:, shard]) for count, each in zip(rows, cuts.values(), strict=True)]
        print(f"  {shard:5}" + "".join(f"{a:12,}{b:12,}{c:14,}    " for a, b, c in cells).rstrip())
    for name, each in cuts.items():
        print(f"  {name}: the fullest shard has {each.skew:.3f} times as many entries as the mean")


def make_mesh(shards: int) -> Mesh:
    """The first devices, in a row."""
    return jax.make_mesh((shards,), (AXIS,), axis_types=(AxisType.Auto,), devices=jax.devices()[:shards])


def spread(problem: Problem, starts: np.ndarray) -> tuple[RowSharded, RowSharded]:
    """Both operands on the devices, their rows cut alike."""
    mesh = make_mesh(len(starts) - 1)
    x, y = (
        jsg.sharded.partition(matrix, mesh, AXIS, row_starts=starts) for matrix in (problem.graph, problem.corrections)
    )
    return x, y


def rows_of(matrix: csr_array, start: int, stop: int) -> csr_array:
    """A range of rows. If the matrix were in files, this would read only those, and no process would hold them all."""
    return matrix[start:stop]


def move_rows(problem: Problem, cuts: dict[str, Cuts]) -> tuple[tuple[RowSharded, RowSharded], bool]:
    """Load shards of equally many rows, then move rows between devices; both operands, and whether they are right."""
    shards = len(cuts[EVEN].starts) - 1
    mesh = make_mesh(shards)
    start = time.perf_counter()
    even = [
        jsg.sharded.from_shards(partial(rows_of, matrix), matrix.shape, mesh, AXIS)
        for matrix in (problem.graph, problem.corrections)
    ]
    loaded = time.perf_counter()
    found = jsg.sharded.balanced_row_starts(even)
    x, y = (jsg.sharded.repartition(each, cuts[BALANCED].starts) for each in even)
    jax.block_until_ready((x, y))
    moved = time.perf_counter()
    alike = all(
        np.array_equal(*arrays)
        for pair in zip((x, y), spread(problem, cuts[BALANCED].starts), strict=True)
        for arrays in zip(*(jax.tree.map(np.asarray, jax.tree.leaves(each)) for each in pair), strict=True)
    )
    print(f"\nThe same on {shards} devices")
    print(f"  loaded shard by shard, equally many rows in each: {loaded - start:.1f} s,")
    print(f"    room for {even[0].capacity:,} and {even[1].capacity:,} entries a shard")
    print(f"  cuts from a sample of what is there: the fullest shard has {cut(problem, found).skew:.3f} times the mean")
    print(
        f"  cuts and repartition: {moved - loaded:.1f} s with compilation, room for {x.capacity:,} and {y.capacity:,}"
    )
    print(f"    {'the same' if alike else 'NOT THE SAME'} as `partition` gives directly")
    return (x, y), alike


@jax.jit
def add(x: Any, y: Any) -> Any:
    """The sum, of row-sharded operands or of those on one device."""
    return jsg.sharded.add(x, y) if isinstance(x, RowSharded) else jsg.add(x, y)


def with_values(x: Any, values: jax.Array) -> Any:
    """The same pattern with other values."""
    return x.with_data(values) if isinstance(x, RowSharded) else BCOO((values, x.indices), shape=x.shape)


@jax.jit
def forward_backward(x: Any, y: Any) -> tuple[Any, tuple[jax.Array, jax.Array]]:
    """The sum, and the gradients of half the sum of its squares by the values of both operands."""

    def values_of(x_values: jax.Array, y_values: jax.Array) -> tuple[jax.Array, Any]:
        total = add(with_values(x, x_values), with_values(y, y_values))
        return total.data, total

    values, pull, total = jax.vjp(values_of, x.data, y.data, has_aux=True)
    return total, pull(values)


@jax.jit
def planned_forward_backward(
    plan: Any, x_values: jax.Array, y_values: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The same by a plan; the indices of the sum are known already."""
    values, pull = jax.vjp(plan, x_values, y_values)
    return values, pull(values)


def collectives_in(compiled: jax.stages.Compiled) -> list[str]:
    """What a compiled program communicates."""
    text = compiled.as_text() or ""
    return [name for name in COLLECTIVES if name in text]


def check_sum(problem: Problem, x: RowSharded, y: RowSharded) -> tuple[float, float, list[str]]:
    """Print how far the sharded sum and its gradients are from SciPy's, and what they communicate."""
    total, gradients = forward_backward(x, y)
    indices, values = entries_of(total, total.data)
    expected = (problem.graph + problem.corrections).tocoo()
    cells = np.stack(expected.coords, axis=1)
    alike = np.array_equal(indices, cells)
    error = float(np.abs(values - expected.data).max()) if alike else np.inf
    print(f"\nThe sum under jit: {len(values):,} entries, {'' if alike else 'NOT '}in the same places as SciPy's")
    print(f"  largest difference of the values: {error:.1e}")

    # The gradient of half a square is the value itself: each entry of an operand gets the value of the sum there.
    keys, gradient_error = flatten(cells, x.shape), 0.0
    for operand, gradient in zip((x, y), gradients, strict=True):
        rows, received = entries_of(operand, gradient)
        found = np.searchsorted(keys, flatten(rows, x.shape))
        gradient_error = max(gradient_error, float(np.abs(received - expected.data[found]).max()))
    print(f"  largest difference of the gradients of half the sum of its squares: {gradient_error:.1e}")
    collectives = collectives_in(forward_backward.lower(x, y).compile())
    print(f"  what the compiled program communicates, forward and backward: {', '.join(collectives) or 'nothing'}")
    return error, gradient_error, collectives


def flatten(indices: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The flat positions of rows of indices."""
    return indices[:, 0].astype(np.int64) * shape[1] + indices[:, 1]


def entries_of(x: RowSharded, values: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """The index rows and the values of all entries, without padding, which depends on the number of shards."""
    indices = np.asarray(x.indices)
    kept = indices[:, 0] < x.shape[0]
    return indices[kept], np.asarray(values)[kept]


def loss_of(total: Any, problem: Problem) -> jax.Array:
    """How far the signal at each node is from the one that is wanted.

    Divided by the entries of each row, so that no curvature exceeds 1 and steps of length 1 cannot overshoot.
    """
    matrix = total.matrix if isinstance(total, RowSharded) else total
    return 0.5 * jnp.sum((matrix @ problem.signal - problem.wanted) ** 2 / problem.entries)


def on_one_device(problem: Problem) -> tuple[BCOO, BCOO]:
    """Both operands as plain BCOOs."""
    x, y = (BCOO.from_scipy_sparse(matrix) for matrix in (problem.graph, problem.corrections))
    return x, y


def descend(problem: Problem, x: RowSharded, y: RowSharded, steps: int) -> np.ndarray:
    """Print the losses while the corrections are learnt; `[1 + steps]`.

    The patterns stay the same, so one plan serves all steps.
    """

    @jax.jit
    def train(plan: Any, x: RowSharded, y: RowSharded) -> jax.Array:
        def loss(values: jax.Array) -> jax.Array:
            return loss_of(plan.with_data(plan(x.data, values)), problem)

        def step(values: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            before, gradient = jax.value_and_grad(loss)(values)
            return values - gradient, before

        values, losses = jax.lax.scan(step, y.data, length=steps)
        return jnp.append(losses, loss(values))

    start = time.perf_counter()
    compiled = train.lower(plan := jsg.sharded.plan_sparse_add(x, y), x, y).compile()
    losses = np.asarray(compiled(plan, x, y))
    seconds = time.perf_counter() - start
    print(f"\nLosses of {steps} steps of gradient descent, {seconds:.1f} s with the plan and compilation:")
    print("  " + " ".join(f"{loss:.4g}" for loss in losses))
    print(f"  JAX's product of the sum and a vector communicates: {', '.join(collectives_in(compiled)) or 'nothing'}")
    return losses


def measure(problem: Problem, counts: list[int], ways: tuple[str, ...], rounds: int) -> dict[str, dict[str, float]]:
    """The median time of the sum in each way and on each set of devices, in milliseconds.

    Each round runs all of them, one after the other. Compilation and making the plan are not counted.
    """
    operands: dict[str, tuple[Any, Any]] = {ONE_DEVICE: on_one_device(problem)}
    for count in counts:
        operands[label(count)] = spread(problem, balanced(problem, count))
    nodes, most = problem.graph.shape[0], max(counts)
    operands[label(most, even=True)] = spread(problem, even_row_starts(nodes, most))

    programs: dict[tuple[str, str], tuple[Any, tuple[Any, ...]]] = {}
    for name, (x, y) in operands.items():
        if isinstance(x, RowSharded):
            plan: Any = jsg.sharded.plan_sparse_add(x, y)
        else:
            plan = jsg.plan_sparse_add(x.indices, y.indices, shape=x.shape)
        each = {
            FORWARD: (add, (x, y)),
            BACKWARD: (forward_backward, (x, y)),
            PLANNED: (planned_forward_backward, (plan, x.data, y.data)),
        }
        programs |= {(way, name): each[way] for way in ways}

    seconds = np.zeros((1 + rounds, len(programs)))  # the first round warms up
    with tqdm(total=len(programs) * (2 + rounds), desc="timing the sum") as progress:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for _ in pool.map(lambda program: program[0].lower(*program[1]).compile(), programs.values()):
                progress.update()
        for times in seconds:
            for k, (function, arguments) in enumerate(programs.values()):
                start = time.perf_counter()
                jax.block_until_ready(function(*arguments))
                times[k] = time.perf_counter() - start
                progress.update()
    medians = dict(zip(programs, 1e3 * np.median(seconds[1:], axis=0), strict=True))
    return {way: {name: float(medians[way, name]) for name in operands} for way in ways}


ONE_DEVICE = "jsg.add"


def label(shards: int, *, even: bool = False) -> str:
    """The name of a set of devices in tables."""
    return f"{shards} shard{'s' * (shards > 1)}{', even' * even}"


def print_times(milliseconds: dict[str, dict[str, float]], counts: list[int]) -> None:
    """Print the times, also divided by those on the fewest shards and on one device."""
    names = list(next(iter(milliseconds.values())))
    print("\nMedian time of the sum in milliseconds, without compilation ('even': equally many rows in each shard)")
    print(f"  {'':32}" + "".join(f"{name:>15}" for name in names))
    for way, times in milliseconds.items():
        print(f"  {way:32}" + "".join(f"{each:15,.0f}" for each in times.values()))
        for base in (label(min(counts)), ONE_DEVICE):
            print(
                f"  {f'  divided by that of {base}':32}"
                + "".join(f"{each / times[base]:15.2f}" for each in times.values())
            )


def draw_plot(cuts: dict[str, Cuts], milliseconds: dict[str, dict[str, float]], counts: list[int]) -> Figure:
    """Draw the rows and the entries of each shard, and the time of the sum on each set of devices."""
    figure = Figure(figsize=(15, 5.2), layout="constrained")
    rows_axes, work_axes, time_axes = figure.subplots(1, 3, width_ratios=(1, 1.15, 1.3))
    plot_rows(rows_axes, cuts)
    plot_work(work_axes, cuts)
    plot_times(time_axes, milliseconds, counts)
    return figure


BAR = 0.4  # the width of one; two stand beside each other


def places(cuts: dict[str, Cuts]) -> dict[str, np.ndarray]:
    """Where the bars stand."""
    shards = np.arange(len(cuts[EVEN].starts) - 1)
    return {EVEN: shards - BAR / 2, BALANCED: shards + BAR / 2}


def plot_rows(axes: Axes, cuts: dict[str, Cuts]) -> None:
    """Plot the rows of each shard, with the numbers of the shortest and the longest."""
    for name, where in places(cuts).items():
        rows = np.diff(cuts[name].starts)
        axes.bar(where, rows, BAR, color=SHADES[name][0], label=name)
        for shard in {int(np.argmin(rows)), int(np.argmax(rows))} if name == BALANCED else ():
            write(axes, f"{rows[shard]:,}", where[shard], rows[shard], color=SHADES[name][0])
    axes.set(title="Rows of each shard", xlabel="shard", ylabel="rows", xlim=(-0.7, len(where)))
    axes.set_xticks(range(len(where)))
    axes.set_ylim(0, 1.1 * axes.dataLim.y1)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(axis="y", alpha=0.25)
    axes.legend(loc="upper left")


def write(axes: Axes, text: str, x: float, y: float, **style: Any) -> None:
    """Write something just above a point."""
    axes.annotate(text, (x, y), (0, 3), textcoords="offset points", **{"ha": "center", "va": "bottom"} | style)


def plot_work(axes: Axes, cuts: dict[str, Cuts]) -> None:
    """Plot the entries of each shard, and the length that padding brings them to."""
    unit, scale = (1e6, "millions") if cuts[EVEN].entries.sum() > 1e7 else (1e3, "thousands")
    for name, where in places(cuts).items():
        graph, corrections = cuts[name].entries / unit
        strong, light = SHADES[name]
        axes.bar(where, graph, BAR, color=strong)
        axes.bar(where, corrections, BAR, graph, color=light)
        # For each operand, all shards have the room that the fullest one needs.
        room = (cuts[name].entries.max(axis=1) / unit).sum()
        axes.bar(where, np.full(len(where), room), BAR, fill=False, edgecolor=strong, linestyle=":")
    even, (graph, corrections) = places(cuts)[EVEN], cuts[EVEN].entries / unit
    top = (cuts[EVEN].entries.max(axis=1) / unit).sum()
    upright = {"rotation": 90, "ha": "center", "va": "center", "fontsize": 9}
    axes.text(even[0], graph[0] / 2, "graph", color="white", **upright)
    axes.text(even[0] + BAR, top - corrections[0] / 2, "corrections", color=SHADES[EVEN][0], **upright)
    for where in even[1:]:
        axes.text(where, 0.6 * top, "padding, merged too", color=SHADES[EVEN][0], **upright)
    mean = cuts[EVEN].entries.sum() / unit / len(even)
    axes.axhline(mean, color="black", linewidth=1)
    axes.annotate(
        "mean", (1, mean), (4, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center"
    )
    axes.set(title="Entries of each shard", xlabel="shard", ylabel=f"entries, {scale}")
    axes.set_xticks(range(len(even)))
    axes.set_ylim(0, 1.1 * top)
    axes.grid(axis="y", alpha=0.25)


def plot_times(axes: Axes, milliseconds: dict[str, dict[str, float]], counts: list[int]) -> None:
    """Plot the time of the sum on each set of devices, and what shards of equally many rows cost."""
    names, most = list(next(iter(milliseconds.values()))), max(counts)
    even, width = label(most, even=True), 0.8 / len(milliseconds)
    ratios: list[float] = []
    for k, (way, times) in enumerate(milliseconds.items()):
        offset = k - (len(milliseconds) - 1) / 2
        where = np.arange(len(names)) + offset * width
        axes.bar(where, list(times.values()), width, color=COLOURS[way], label=way)
        ratios.append(times[even] / times[label(most)])
        side = "left" if offset > 0 else "right" if offset < 0 else "center"
        write(axes, f"{ratios[-1]:.1f}x", where[-1], times[even], color=COLOURS[way], weight="bold", ha=side)
    axes.set(title="Time of the sum", ylabel="milliseconds", xlim=(-0.6, len(names) - 0.2))
    balanced = [f"{count}\nshard{'s' if count > 1 else ''}" for count in counts]
    axes.set_xticks(range(len(names)), ["jsg.add,\none device", *balanced, f"{most} shards,\nequal rows"])
    note = f"with equally many rows:\n{min(ratios):.1f}x to {max(ratios):.1f}x as long as balanced"
    axes.annotate(note, (len(names) - 1.6, 0.6 * axes.dataLim.y1), ha="right", va="center")
    axes.set_ylim(0, 1.1 * axes.dataLim.y1)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(axis="y", alpha=0.25)
    axes.legend(loc="upper left")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Add row-sharded sparse matrices, differentiate and time the sum.")
    parser.add_argument("--large", action="store_true", help="a graph of ten million edges, on 1, 2, 4 and 8 shards")
    parser.add_argument("--steps", type=int, default=10, help="of the descent (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of the measurements (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder for the plot (default: output, beside this file)")
    arguments = parser.parse_args()
    # Before the first computation. Concerns the host only: other devices, if there are any, are as many as they are.
    jax.config.update("jax_num_cpu_devices", 8)
    size: dict[str, Any] = LARGE if arguments.large else {}
    main(**size, steps=arguments.steps, rounds=arguments.rounds, output=arguments.output)
