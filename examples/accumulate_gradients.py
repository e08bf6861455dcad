"""Sum the gradients of micro-batches without ever making one as large as the table of embeddings.

Takes 40 seconds on two cores and 2 GB of memory. Needs the extra `examples` (of that matplotlib, optax and tqdm).

A classifier of documents takes the mean of its tokens' embeddings. A micro-batch touches few rows of the table, some of
them many times, so its gradient is a `BCOO` of those rows. A `scan` of fixed `nse` sums them over the micro-batches of
a step, and Adagrad sees only the rows that occur. Their number is known from the tokens before the step. If `nse` is
too small after all, every value is NaN, and `checkify` says why; `BCOO.sum_duplicates` silently drops what is too much.

Sparse and dense training have the same losses. With many rows in the table, of which few occur, the dense step needs
several times the memory and more time; with few rows it is faster. The picture says where the two cross here.
"""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import checkify
from jax.experimental.sparse import BCOO
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter
from tqdm import tqdm

import jax_sparse_grad as jsg

CLASSES, LENGTH, WIDTH = 8, 64, 64  # topics; tokens of a document; numbers in an embedding
RATE = 0.3
COLOURS = {"sparse": "#0072B2", "dense": "#D55E00"}


class Model(NamedTuple):
    """Embeddings `[vocabulary, width]` and a head `[width, classes]`; of a gradient, the first may be a BCOO."""

    table: Any
    head: jax.Array


class Batches(NamedTuple):
    """The micro-batches of a step: tokens `[micro_batches, documents, length]`, and the documents' topics."""

    tokens: Any
    topics: Any


class Result(NamedTuple):
    """Losses of both trainings, what checkify says of an overflow, what a step costs, the picture."""

    losses: dict[str, list[float]]
    overflow: str
    milliseconds: dict[str, list[float]]
    megabytes: dict[str, list[float]]
    plot: Path


def loss_of_rows(rows: jax.Array, head: jax.Array, topics: jax.Array) -> jax.Array:
    """The mean cross-entropy of documents, from the embeddings of their tokens, `[documents, length, width]`."""
    return optax.softmax_cross_entropy_with_integer_labels(rows.mean(axis=1) @ head, topics).mean()


def sum_sparse(model: Model, batches: Batches, nse: int) -> tuple[jax.Array, Model]:
    """The losses of the micro-batches, and the sum of their gradients: a BCOO with room for `nse` rows."""

    def add(total: Model, batch: Batches) -> tuple[Model, jax.Array]:
        # The derivative by the rows that were looked up, not by the table: a token that occurs n times has n rows.
        rows = model.table[batch.tokens]
        loss, (by_rows, by_head) = jax.value_and_grad(loss_of_rows, (0, 1))(rows, model.head, batch.topics)
        gradient = BCOO((by_rows.reshape(-1, WIDTH), batch.tokens.reshape(-1, 1)), shape=model.table.shape)
        return Model(jsg.add(total.table, gradient, nse=nse), total.head + by_head), loss

    start = Model(jsg.empty(model.table.shape, nse, model.table.dtype, n_dense=1), jnp.zeros_like(model.head))
    total, losses = jax.lax.scan(add, start, batches)
    return losses, total


def sum_dense(model: Model, batches: Batches, nse: int) -> tuple[jax.Array, Model]:  # noqa: ARG001
    """The same, with gradients as large as the table."""

    def add(total: Model, batch: Batches) -> tuple[Model, jax.Array]:
        loss, gradient = jax.value_and_grad(lambda m: loss_of_rows(m.table[batch.tokens], m.head, batch.topics))(model)
        return jax.tree.map(jnp.add, total, gradient), loss

    total, losses = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, model), batches)
    return losses, total


WAYS = {"sparse": sum_sparse, "dense": sum_dense}


@partial(jax.jit, static_argnums=(3, 4), donate_argnums=(0, 1))
def train_step(model: Model, squares: Model, batches: Batches, way: str, nse: int) -> tuple[Model, Model, jax.Array]:
    """One step of Adagrad, whose state is the sum of the squares of all gradients."""
    losses, gradient = WAYS[way](model, batches, nse)
    head_squares = squares.head + gradient.head**2
    head = model.head - RATE * gradient.head / jnp.sqrt(head_squares + 1e-12)
    if way == "dense":
        table_squares = squares.table + gradient.table**2
        table = model.table - RATE * gradient.table / jnp.sqrt(table_squares + 1e-12)
    else:  # rows without a gradient stay as they are; padding lies beyond the table, and is dropped
        rows, data = gradient.table.indices[:, 0], gradient.table.data
        table_squares = squares.table.at[rows].add(data**2, mode="drop", indices_are_sorted=True)
        scale = table_squares.at[rows].get(mode="fill", fill_value=1, indices_are_sorted=True)
        table = model.table.at[rows].add(-RATE * data / jnp.sqrt(scale + 1e-12), mode="drop", indices_are_sorted=True)
    return Model(table, head), Model(table_squares, head_squares), losses.mean()


def make_model(vocabulary: int) -> tuple[Model, Model]:
    """An untrained model, and the state of its optimiser."""
    keys = jax.random.split(jax.random.key(0))
    model = Model(0.01 * jax.random.normal(keys[0], (vocabulary, WIDTH)), jax.random.normal(keys[1], (WIDTH, CLASSES)))
    return model, jax.tree.map(jnp.zeros_like, model)


def make_batches(vocabulary: int, micro_batches: int, documents: int, seed: int) -> Batches:
    """Documents whose tokens have the uneven frequencies of words (Zipf); a third of them depend on the topic."""
    rng = np.random.default_rng(seed)
    topics = rng.integers(CLASSES, size=(micro_batches, documents))
    sizes = micro_batches, documents, LENGTH
    rank = (np.exp(rng.random(sizes) * np.log(vocabulary + 1)) - 1).astype(np.int64)
    start = np.where(rng.random(sizes) < 1 / 3, topics[..., None] * (vocabulary // CLASSES), 0)
    scattered = (rank + start) * 7_368_787  # numbers say nothing about frequency, as where they are hashes
    return Batches((scattered % vocabulary).astype(np.int32), topics.astype(np.int32))


def main(
    vocabularies: tuple[int, ...] = (10_000, 100_000, 1_000_000),
    *,
    micro_batches: int = 16,
    documents: int = 128,
    steps: int = 5,
    output: str | Path | None = None,
) -> Result:
    """Train both ways with the first vocabulary, let a sum overflow, and compare time and memory for all of them."""
    all_batches = [make_batches(vocabularies[0], micro_batches, documents, seed) for seed in range(steps)]
    nse = max(len(np.unique(batches.tokens)) for batches in all_batches)
    print(
        f"{vocabularies[0]:,} rows, of which at most {nse:,} occur in a step of {all_batches[0].tokens.size:,} tokens"
    )
    losses: dict[str, list[float]] = {way: [] for way in WAYS}
    for way in WAYS:
        model, squares = make_model(vocabularies[0])
        for batches in all_batches:
            model, squares, loss = train_step(model, squares, batches, way, nse)
            losses[way].append(float(loss))
        print(f"  losses, {way}:", *(f"{loss:.5f}" for loss in losses[way]))

    model, _ = make_model(vocabularies[0])
    _, total = jax.jit(sum_sparse, static_argnums=2)(model, all_batches[0], nse // 2)
    checked = checkify.checkify(partial(sum_sparse, nse=nse // 2), errors=checkify.user_checks)
    overflow = (jax.jit(checked)(model, all_batches[0])[0].get() or "").splitlines()[0]
    print(
        f"with half of that nse, {jnp.isnan(total.table.data).mean():.0%} of the values are NaN; checkify: {overflow}"
    )

    milliseconds, megabytes = ({way: [] for way in WAYS} for _ in range(2))
    with tqdm(total=len(vocabularies) * len(WAYS), desc="measuring") as progress:
        for vocabulary in vocabularies:
            for way in WAYS:
                seconds, size = cost(vocabulary, make_batches(vocabulary, micro_batches, documents, 0), way)
                milliseconds[way].append(1e3 * seconds)
                megabytes[way].append(size / 1e6)
                progress.update()
    folder = Path(__file__).parent / "output" if output is None else Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    plot = folder / "accumulate_gradients.png"
    draw(vocabularies, {"milliseconds of a step": milliseconds, "temporary memory, MB": megabytes}).savefig(
        plot, dpi=120
    )
    print(f"Picture saved to {plot}")
    return Result(losses, overflow, milliseconds, megabytes, plot)


def cost(vocabulary: int, batches: Batches, way: str) -> tuple[float, int]:
    """Seconds of a step, the best of three, and the bytes that it needs beside model and state."""
    model, squares = make_model(vocabulary)
    nse = len(np.unique(batches.tokens))
    step = train_step.lower(model, squares, batches, way, nse).compile()
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        model, squares, _ = jax.block_until_ready(step(model, squares, batches))
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:]), step.memory_analysis().temp_size_in_bytes


def draw(vocabularies: tuple[int, ...], figures: dict[str, dict[str, list[float]]]) -> Figure:
    """Draw what a step costs against the number of rows."""
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    for axes, (title, ways) in zip(figure.subplots(1, 2), figures.items(), strict=True):
        for way, values in ways.items():
            axes.loglog(vocabularies, values, "o-", color=COLOURS[way], label=way)
        axes.set(title=title, xlabel="rows of the table")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
