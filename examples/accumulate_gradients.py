"""Train a table of embeddings on micro-batches, without ever making a gradient as large as the table.

Takes two minutes on two cores and 2 GB of memory. Needs the extra `examples` (of that matplotlib, optax and tqdm).

A classifier of documents looks up the embedding of each token and takes their mean; a small head predicts the topic, as
in fastText. The documents are synthetic: eight topics, and tokens with the uneven frequencies of words. A step consists
of several micro-batches, as it must where the whole batch does not fit in memory. Their gradients are summed, clipped
as a whole, and given to Adagrad.

A micro-batch touches few rows of the table, some of them many times. Its gradient is a `BCOO` of those rows, and
`lax.scan` carries the sum, a `BCOO` of fixed `nse`: `total = jsg.add(total, gradient, nse=nse)`. The optimiser sees
only the rows that occur. Their number is known from the tokens before the step, and `nse` is chosen accordingly. If it
is too small after all, every value is NaN, and `checkify` says why; `BCOO.sum_duplicates` silently drops what does not
fit.

Results on a CPU with two cores, for steps of 16 x 8,192 tokens and embeddings of 64 float32 numbers:

- Sparse and dense training have the same losses. The sparse sum is about 20 times closer to NumPy's in float64, because
  the many rows of a frequent token are added in pairs, not one after the other.
- Memory in addition to the model and the optimiser's state: a dense step needs two more tables, a sparse one five times
  `nse` rows. With 1,000,000 rows in the table, of which 58,000 occur, the dense step needs 6.5 times as much; with
  50,000, of which 30,000 occur, only 0.65 times.
- Time: a dense step takes 1.4 to 1.8 times as long as a sparse one with 1,000,000 rows, equally long with 500,000, but
  only 0.6 to 0.7 times with 200,000 and 0.2 to 0.3 times with 50,000 or fewer: there, dense is the better choice.
  Adding rows to a dense gradient in place is cheap; setting it to zero and passing it through the optimiser is not.
- The same scan with `BCOO.sum_duplicates` takes 1.4 to 2.8 times as long.
- Keeping the rows of all micro-batches and summing them at the end takes 0.9 to 3 times as long: the fewer tokens occur
  again, the less. It needs 1.3 to 8 times the memory, and more with every further micro-batch.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import checkify
from jax.experimental.sparse import BCOO
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter
from tqdm import tqdm

import jax_sparse_grad as jsg

CLASSES = 8
LENGTH = 64  # of each document, in tokens
TOPICAL = 0.3  # the share of tokens from the topic's own list; the others come from the common one

OPTIMISER = optax.chain(
    optax.clip_by_global_norm(1.0), optax.scale_by_rss(initial_accumulator_value=0.0), optax.scale_by_learning_rate(0.3)
)

# The ways to accumulate.
SPARSE = "sparse: jsg.add"
DENSE = "dense"
STACKED = "stacked, summed at the end"
BCOO_SUM = "sparse: BCOO.sum_duplicates"

STYLES: dict[str, dict[str, Any]] = {
    SPARSE: {"color": "tab:green", "marker": "o", "linewidth": 2.5},
    BCOO_SUM: {"color": "tab:orange", "marker": "s", "linestyle": "--"},
    STACKED: {"color": "tab:blue", "marker": "^"},
    DENSE: {"color": "black", "marker": "D"},
}


class Model(NamedTuple):
    """A classifier of bags of words; gradients and the optimiser's state have the same structure.

    table: `[vocabulary, width]`, the embedding of each token; in gradients, a `BCOO` or an array.
    head: `[width, classes]`, maps the mean embedding of a document to its logits.
    """

    table: Any
    head: jax.Array


class Batches(NamedTuple):
    """The micro-batches of one step: `tokens` `[micro_batches, documents, length]`, `labels` without `length`."""

    tokens: Any
    labels: Any


class Cost(NamedTuple):
    """What one training step costs: `seconds` `[rounds]`, and `temporary` bytes in addition to model and state."""

    seconds: np.ndarray
    temporary: int


class Result(NamedTuple):
    """The figures of a run.

    error: of the sparse total against NumPy's in float64, relative to the largest gradient.
    error_dense: of the dense total against the same.
    overflow: what `checkify` says when `nse` is too small.
    poisoned: the share of the values that are NaN then.
    losses: `[2, steps]`, of the sparse and the dense training.
    slower: for each way and vocabulary, the median time of a step divided by that with `jsg.add`.
    larger: the same for the temporary memory.
    plot: where the picture was saved.
    """

    error: float
    error_dense: float
    overflow: str
    poisoned: float
    losses: np.ndarray
    slower: dict[str, list[float]]
    larger: dict[str, list[float]]
    plot: Path


def main(
    vocabulary: int = 200_000,
    vocabularies: tuple[int, ...] = (10_000, 50_000, 200_000, 1_000_000),
    *,
    micro_batches: int = 16,
    documents: int = 128,
    width: int = 64,
    steps: int = 10,
    rounds: int = 5,
    output: str | Path | None = None,
) -> Result:
    """Check the accumulated gradient, let it overflow, train with it, and compare its cost with that of the other ways.

    Args:
      vocabulary: the number of rows of the table, for everything except the measurements.
      vocabularies: the numbers of rows for which the ways are measured.
      micro_batches: in each step.
      documents: in each micro-batch.
      width: of an embedding.
      steps: of the training.
      rounds: of the measurements.
      output: the folder for the plot; by default `output` beside this file. Made if missing.
    """
    size = micro_batches, documents
    model, batches = make_model(vocabulary, width), make_batches(vocabulary, size)
    nse = fitting_nse(batches, vocabulary)
    print_problem(model, batches, nse)
    expected = numpy_gradient(model, batches)
    error, error_dense = check_gradient(model, batches, expected, nse)
    overflow, poisoned = show_overflow(model, batches, expected, nse // 2)
    losses = compare_trainings(vocabulary, size, width, steps)
    # In every size, each way is compiled, and then does one step to warm up and one in each round.
    with tqdm(total=len(vocabularies) * len(WAYS) * (2 + rounds), desc="measuring", unit="step") as progress:
        costs = {each: measure(each, size, width, rounds, progress) for each in vocabularies}
    slower, larger = print_costs(costs)

    folder = Path(__file__).parent / "output" if output is None else Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    plot = folder / "accumulate_gradients.png"
    draw_plot(costs, batches, vocabulary, nse, nse // 2).savefig(plot, dpi=120)
    print(f"Plot saved to {plot}")
    return Result(error, error_dense, overflow, poisoned, losses, slower, larger, plot)


def make_model(vocabulary: int, width: int) -> Model:
    """An untrained model."""
    table_key, head_key = jax.random.split(jax.random.key(0))
    table = jax.random.uniform(table_key, (vocabulary, width), minval=-1 / width, maxval=1 / width)
    return Model(table, jax.random.normal(head_key, (width, CLASSES)) / np.sqrt(width))


def make_batches(vocabulary: int, size: tuple[int, int], seed: int = 0) -> Batches:
    """Draw documents on eight topics.

    The n-th most frequent token of a list occurs about 1 / n as often as the first, as in natural language (Zipf). Some
    tokens come from a list that all documents share, the others from that of the document's topic.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(CLASSES, size=size)
    tokens = (*size, LENGTH)
    rank = (np.exp(rng.random(tokens) * np.log(vocabulary + 1)) - 1).astype(np.int64)
    start = np.where(rng.random(tokens) < TOPICAL, labels[..., None] * (vocabulary // CLASSES), 0)
    # Numbers say nothing about frequency, as where they are hashes.
    number = np.random.default_rng(vocabulary).permutation(vocabulary)
    return Batches(number[(rank + start) % vocabulary].astype(np.int32), labels.astype(np.int32))


def fitting_nse(batches: Batches, vocabulary: int) -> int:
    """Room for all rows that occur in a step, rounded up so that few numbers occur: each compiles a program."""
    distinct = len(np.unique(batches.tokens))
    unit = 1 << max(distinct.bit_length() - 4, 0)
    return min(-(-distinct // unit) * unit, vocabulary)


def loss_of_rows(rows: jax.Array, head: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean cross-entropy of documents, from the embeddings of their tokens, `[documents, length, width]`."""
    return optax.softmax_cross_entropy_with_integer_labels(rows.mean(axis=1) @ head, labels).mean()


def row_gradient(model: Model, batch: Batches) -> tuple[jax.Array, Model]:
    """The loss of a micro-batch and its gradient, that of the table as a `BCOO`.

    The derivative is taken by the rows that were looked up, not by the table, so nothing is as large as the table. A
    token that occurs n times has n rows.
    """
    rows = model.table[batch.tokens]
    loss, (by_rows, by_head) = jax.value_and_grad(loss_of_rows, (0, 1))(rows, model.head, batch.labels)
    data, indices = by_rows.reshape(-1, model.table.shape[1]), batch.tokens.reshape(-1, 1)
    return loss, Model(BCOO((data, indices), shape=model.table.shape), by_head)


def accumulate_sparse(model: Model, batches: Batches, nse: int) -> tuple[jax.Array, Model]:
    """The losses of all micro-batches, and the sum of their gradients, carried from one to the next."""

    def add(total: Model, batch: Batches) -> tuple[Model, jax.Array]:
        loss, gradient = row_gradient(model, batch)
        # The few rows of the micro-batch are sorted first and their duplicates summed. Then both operands are
        # canonical, and promising that saves half of the sum's memory.
        table = jsg.add(total.table, jsg.sum_duplicates(gradient.table), nse=nse, assume_canonical=True)
        return Model(table, total.head + gradient.head), loss

    total, losses = jax.lax.scan(add, no_gradient(model, nse), batches)
    return losses, total


def accumulate_bcoo(model: Model, batches: Batches, nse: int) -> tuple[jax.Array, Model]:
    """The same with JAX's own means: `+` concatenates, `sum_duplicates` sorts and sums."""

    def add(total: Model, batch: Batches) -> tuple[Model, jax.Array]:
        loss, gradient = row_gradient(model, batch)
        table = (total.table + gradient.table).sum_duplicates(nse=nse)
        return Model(table, total.head + gradient.head), loss

    total, losses = jax.lax.scan(add, no_gradient(model, nse), batches)
    return losses, total


def accumulate_stacked(model: Model, batches: Batches, nse: int) -> tuple[jax.Array, Model]:
    """The same, but the rows of all micro-batches are kept, and summed at the end."""

    def keep(_: None, batch: Batches) -> tuple[None, tuple[jax.Array, jax.Array, jax.Array]]:
        loss, gradient = row_gradient(model, batch)
        return None, (loss, gradient.table.data, gradient.head)

    _, (losses, data, heads) = jax.lax.scan(keep, None, batches)
    rows = BCOO((data.reshape(-1, data.shape[-1]), batches.tokens.reshape(-1, 1)), shape=model.table.shape)
    return losses, Model(jsg.sum_duplicates(rows, nse=nse), heads.sum(axis=0))


def accumulate_dense(model: Model, batches: Batches, nse: int) -> tuple[jax.Array, Model]:
    """The same with a gradient as large as the table."""
    del nse

    def loss_of_model(model: Model, batch: Batches) -> jax.Array:
        return loss_of_rows(model.table[batch.tokens], model.head, batch.labels)

    def add(total: Model, batch: Batches) -> tuple[Model, jax.Array]:
        loss, gradient = jax.value_and_grad(loss_of_model)(model, batch)
        return jax.tree.map(jnp.add, total, gradient), loss

    total, losses = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, model), batches)
    return losses, total


def no_gradient(model: Model, nse: int) -> Model:
    """What a sum of `nse` rows starts from: padding only."""
    return Model(jsg.empty(model.table.shape, nse, model.table.dtype, n_dense=1), jnp.zeros_like(model.head))


WAYS: dict[str, Callable[[Model, Batches, int], tuple[jax.Array, Model]]] = {
    SPARSE: accumulate_sparse,
    BCOO_SUM: accumulate_bcoo,
    STACKED: accumulate_stacked,
    DENSE: accumulate_dense,
}


@partial(jax.jit, static_argnums=(3, 4), donate_argnums=(0, 1))
def train_step(model: Model, state: Any, batches: Batches, way: str, nse: int) -> tuple[Model, Any, jax.Array]:
    """Accumulate the gradient in a given way and do one step of the optimiser; also returns the mean loss."""
    losses, gradient = WAYS[way](model, batches, nse)
    if not isinstance(gradient.table, BCOO):
        change, state = OPTIMISER.update(gradient, state)
        return optax.apply_updates(model, change), state, losses.mean()
    # Adagrad leaves rows without a gradient alone, so it need not see them. (Adam would go on moving them.)
    rows = gradient.table.indices[:, 0]
    change, new_rows = OPTIMISER.update(gradient._replace(table=gradient.table.data), take_rows(state, rows))
    table = model.table.at[rows].add(change.table, mode="drop", indices_are_sorted=True)
    return Model(table, model.head + change.head), put_rows(state, rows, new_rows), losses.mean()


def take_rows(tree: Any, rows: jax.Array) -> Any:
    """The given rows of each table in a tree of models; zeros for padding, which lies beyond the table."""

    def take(node: Any) -> Any:
        if not isinstance(node, Model):
            return node
        return node._replace(table=node.table.at[rows].get(mode="fill", fill_value=0, indices_are_sorted=True))

    return jax.tree.map(take, tree, is_leaf=lambda node: isinstance(node, Model))


def put_rows(tree: Any, rows: jax.Array, new: Any) -> Any:
    """The inverse: puts the rows of `new` into the tables of `tree`; those of padding are dropped."""

    def put(node: Any, new: Any) -> Any:
        if not isinstance(node, Model):
            return new
        return new._replace(table=node.table.at[rows].set(new.table, mode="drop", indices_are_sorted=True))

    return jax.tree.map(put, tree, new, is_leaf=lambda node: isinstance(node, Model))


def print_problem(model: Model, batches: Batches, nse: int) -> None:
    """Print what is accumulated, and how large it is."""
    (vocabulary, width), tokens = model.table.shape, batches.tokens
    print(f"Embedding table: {vocabulary:,} x {width} float32, {megabytes(model.table.nbytes)}")
    print(f"  one step: {len(tokens)} micro-batches of {tokens[0].size:,} tokens, {tokens.size:,} in all,")
    print(f"  of which {len(np.unique(tokens)):,} are distinct: room for nse = {nse:,} rows")
    carried = nse * (4 * width + 4)
    print(f"  carried from one micro-batch to the next: {megabytes(carried)}, or a gradient as large as the table")


def check_gradient(model: Model, batches: Batches, expected: np.ndarray, nse: int) -> tuple[float, float]:
    """Print how far the sparse and the dense total are from NumPy's, whose derivatives are written by hand."""
    largest = np.abs(expected).max()

    def error(way: str) -> float:
        _, gradient = jax.jit(WAYS[way], static_argnums=2)(model, batches, nse)
        table = gradient.table.todense() if isinstance(gradient.table, BCOO) else gradient.table
        return float(np.abs(np.asarray(table, np.float64) - expected).max() / largest)

    errors = {way: error(way) for way in (SPARSE, DENSE)}
    print("\nThe accumulated gradient of the table, compared with NumPy's in float64, derived by hand:")
    for way, each in errors.items():
        print(f"  {way:30} largest difference {each:.1e}, relative to the largest entry")
    return errors[SPARSE], errors[DENSE]


def numpy_gradient(model: Model, batches: Batches) -> np.ndarray:
    """The summed gradient of the table; that of the cross-entropy by the logits is `softmax - one-hot`."""
    table, head = (np.asarray(x, np.float64) for x in model)
    tokens, labels = batches.tokens.reshape(-1, LENGTH), batches.labels.ravel()
    logits = table[tokens].mean(axis=1) @ head
    likelihoods = np.exp(logits - logits.max(axis=1, keepdims=True))
    by_logits = likelihoods / likelihoods.sum(axis=1, keepdims=True) - np.eye(CLASSES)[labels]
    by_token = by_logits @ head.T / (LENGTH * batches.labels.shape[1])
    gradient = np.zeros_like(table)
    np.add.at(gradient, tokens, by_token[:, None])
    return gradient


def show_overflow(model: Model, batches: Batches, expected: np.ndarray, nse: int) -> tuple[str, float]:
    """Print what happens to a total with too little room: it is NaN, and `checkify` says why."""
    print(f"\nThe same with nse = {nse:,}, which is too small:")
    _, gradient = jax.jit(accumulate_sparse, static_argnums=2)(model, batches, nse)
    poisoned = float(jnp.isnan(gradient.table.data).mean())
    print(f"  jsg.add: {poisoned:.0%} of the values are NaN, so a step with them is sure to be noticed")
    checked = checkify.checkify(partial(accumulate_sparse, nse=nse), errors=checkify.user_checks)
    message, _ = jax.jit(checked)(model, batches)
    overflow = (message.get() or "").splitlines()[0]
    print(f"  under checkify, at the first micro-batch that did not fit:\n    {overflow}")

    _, gradient = jax.jit(accumulate_bcoo, static_argnums=2)(model, batches, nse)
    lost = (expected.any(axis=1) & ~np.asarray(gradient.table.todense()).any(axis=1)).sum()
    print(f"  BCOO.sum_duplicates: {lost:,} rows are silently missing")
    return overflow, poisoned


def compare_trainings(vocabulary: int, size: tuple[int, int], width: int, steps: int) -> np.ndarray:
    """Print the losses of a sparse and a dense training, `[2, steps]`; each step has new documents."""
    losses: list[list[float]] = []
    batches = [make_batches(vocabulary, size, seed=1 + step) for step in range(steps)]
    nse = max(fitting_nse(batch, vocabulary) for batch in batches)
    with tqdm(total=2 * steps, desc="training", unit="step") as progress:
        for way in (SPARSE, DENSE):
            model = make_model(vocabulary, width)
            state = OPTIMISER.init(model)
            losses.append([])
            for batch in batches:
                model, state, loss = train_step(model, state, batch, way, nse)
                losses[-1].append(float(loss))
                progress.update()
    table = np.array(losses, np.float64)
    print(f"\nLosses of {steps} steps, each on new documents:")
    for way, row in zip((SPARSE, DENSE), table, strict=True):
        print(f"  {way:30} " + " ".join(f"{loss:.3f}" for loss in row))
    print(f"  largest difference {np.abs(table[0] - table[1]).max():.1e}")
    return table


def measure(vocabulary: int, size: tuple[int, int], width: int, rounds: int, progress: tqdm) -> dict[str, Cost]:
    """What a training step costs in each way; each round does one step of every way, one after the other."""
    batches = jax.device_put(make_batches(vocabulary, size))
    nse = fitting_nse(batches, vocabulary)
    model = make_model(vocabulary, width)
    state = OPTIMISER.init(model)
    compiled = {}
    for way in WAYS:
        compiled[way] = train_step.lower(model, state, batches, way, nse).compile()
        progress.update()
    seconds = np.zeros((1 + rounds, len(WAYS)))  # the first round warms up
    for times in seconds:
        for k, step in enumerate(compiled.values()):
            start = time.perf_counter()
            model, state, _ = jax.block_until_ready(step(model, state, batches))
            times[k] = time.perf_counter() - start
            progress.update()
    return {
        way: Cost(column, step.memory_analysis().temp_size_in_bytes)
        for (way, step), column in zip(compiled.items(), seconds[1:].T, strict=True)
    }


def print_costs(costs: dict[int, dict[str, Cost]]) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Print time and memory of a step; returns, for each way, both divided by those of `jsg.add`."""
    each = list(costs.values())
    medians = {way: [float(np.median(cost[way].seconds)) for cost in each] for way in WAYS}
    slower = {way: list(np.divide(medians[way], medians[SPARSE])) for way in WAYS}
    larger = {way: [cost[way].temporary / cost[SPARSE].temporary for cost in each] for way in WAYS}

    def print_row(way: str, amounts: list[str], ratios: list[float]) -> None:
        cells = (f"{amount} ({ratio:.2f})" for amount, ratio in zip(amounts, ratios, strict=True))
        print(f"  {way:30}" + "".join(f"{cell:>18}" for cell in cells))

    print("\nOne training step; in brackets, divided by that of jsg.add")
    print(f"  {'rows of the table':30}" + "".join(f"{vocabulary:>18,}" for vocabulary in costs))
    print("  median time, without compilation:")
    for way, ratios in slower.items():
        print_row(way, [f"{1e3 * median:,.0f} ms" for median in medians[way]], ratios)
    print("  temporary memory, in addition to the model and the optimiser's state:")
    for way, ratios in larger.items():
        print_row(way, [megabytes(cost[way].temporary) for cost in each], ratios)
    return slower, larger


def megabytes(size: float) -> str:
    """A number of bytes as text."""
    return f"{size / 1e6:,.1f} MB"


def draw_plot(
    costs: dict[int, dict[str, Cost]], batches: Batches, vocabulary: int, nse: int, overflowing: int
) -> Figure:
    """Draw time and memory of a step against the size of the table, and the rows that a sum must hold."""
    figure = Figure(figsize=(15, 4.8), layout="constrained")
    time_axes, memory_axes, rows_axes = figure.subplots(1, 3)
    milliseconds = {way: [1e3 * np.median(each[way].seconds) for each in costs.values()] for way in WAYS}
    temporary = {way: [each[way].temporary / 1e6 for each in costs.values()] for way in WAYS}
    plot_ways(time_axes, list(costs), milliseconds, "Time of a training step", "milliseconds")
    plot_ways(memory_axes, list(costs), temporary, "Temporary memory of a training step", "MB")
    plot_rows(rows_axes, batches, vocabulary, nse, overflowing)
    figure.legend(*time_axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(WAYS))
    return figure


def plot_ways(axes: Axes, vocabularies: list[int], figures: dict[str, list[float]], title: str, unit: str) -> None:
    """Plot a figure of all ways against the number of rows of the table."""
    for way, values in figures.items():
        axes.plot(vocabularies, values, label=way, **STYLES[way])
    axes.set(xscale="log", yscale="log", title=title, xlabel="rows of the embedding table", ylabel=unit)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(vocabularies, [f"{vocabulary:,}" for vocabulary in vocabularies])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.grid(alpha=0.25)


def plot_rows(axes: Axes, batches: Batches, vocabulary: int, nse: int, overflowing: int) -> None:
    """Plot the rows that a sum holds against the number of micro-batches in it."""
    flat = np.reshape(batches.tokens, (len(batches.tokens), -1))
    # A token counts from the micro-batch in which it first occurs.
    first = np.unique(flat, return_index=True)[1] // flat.shape[1]
    distinct = np.bincount(first, minlength=len(flat)).cumsum()
    number = np.arange(1, len(flat) + 1)

    def label(text: str, x: float, y: float, colour: str, *, above: bool = True, right: bool = False) -> None:
        offset, vertical = (5, "bottom") if above else (-5, "top")
        horizontal = "right" if right else "left"
        axes.annotate(text, (x, y), (0, offset), textcoords="offset points", color=colour, ha=horizontal, va=vertical)

    axes.axhline(vocabulary, color=STYLES[DENSE]["color"])
    label("dense: the whole table", 1, vocabulary, STYLES[DENSE]["color"], above=False)
    axes.plot(number, number * flat.shape[1], color=STYLES[STACKED]["color"])
    label("stacked: all tokens  ", number[-1], flat.size, STYLES[STACKED]["color"], right=True)
    axes.axhline(nse, color=STYLES[SPARSE]["color"], linewidth=2.5)
    label(f"sparse: nse = {nse:,}", number[-1], nse, STYLES[SPARSE]["color"], right=True)
    axes.plot(number, distinct, color="tab:purple", marker=".")
    label("distinct tokens", number[-1], 0.83 * distinct[-1], "tab:purple", above=False, right=True)
    axes.axhline(overflowing, color="tab:red", linestyle="--")
    for over in np.flatnonzero(distinct > overflowing)[:1]:
        axes.plot(number[over], distinct[over], color="tab:red", marker="X", markersize=11)
        label(f"nse = {overflowing:,} overflows", number[over], overflowing, "tab:red", above=False)
    axes.set(title=f"Rows in the sum, for {vocabulary:,} in the table", xlabel="micro-batches summed", ylabel="rows")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.grid(alpha=0.25)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Accumulate the gradient of an embedding table over micro-batches.")
    parser.add_argument("--steps", type=int, default=10, help="of each training (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="of the measurements (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder for the plot (default: output, beside this file)")
    arguments = parser.parse_args()
    main(steps=arguments.steps, rounds=arguments.rounds, output=arguments.output)
