"""Sum sparse gradients in a `scan`: of micro-batches that each touch few rows of a table of embeddings.

Takes 15 seconds on two cores and 1 GB of memory. Needs the extra `examples` (of that matplotlib, optax and tqdm).

A classifier of documents takes the mean of its tokens' embeddings. The gradient of a micro-batch is a BCOO of the rows
that it looked up, some of them many times. The sum over the micro-batches of a step has a fixed `nse`, the number of
different tokens, which is known before the step. Adagrad then changes only the rows that occur. If `nse` is too small
after all, every value is NaN, and `checkify` says why; `BCOO.sum_duplicates` silently drops what is too much.

The losses are compared with those of optax's Adagrad on dense gradients. Summed densely, a step with 16 micro-batches
of 128 documents took a third of the time with 10⁵ rows, but twice the time and 8 times the memory with 10⁶.
"""

from __future__ import annotations

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
from tqdm import tqdm

import jax_sparse_grad as jsg

CLASSES, LENGTH, WIDTH = 8, 64, 64  # topics; tokens of a document; numbers in an embedding
STEPS, RATE, EPSILON = 5, 0.3, 1e-12
OUTPUT = Path(__file__).parent / "output"


class Model(NamedTuple):
    """Embeddings `[vocabulary, width]` and a head `[width, classes]`; of a gradient, the first may be a BCOO."""

    table: Any
    head: jax.Array


class Result(NamedTuple):
    """Losses of both trainings; what checkify says of an overflow; rows after each micro-batch; the picture."""

    sparse: list[float]
    dense: list[float]
    overflow: str
    rows: np.ndarray
    plot: Path


def loss_of_rows(rows: jax.Array, head: jax.Array, topics: jax.Array) -> jax.Array:
    """The mean cross-entropy of documents, from the embeddings of their tokens, `[documents, length, width]`."""
    return optax.softmax_cross_entropy_with_integer_labels(rows.mean(axis=1) @ head, topics).mean()


def sum_gradients(model: Model, batches: Any, nse: int) -> tuple[Model, tuple[jax.Array, jax.Array]]:
    """The sum, by the table a BCOO of `nse` rows; of each micro-batch the loss, and the rows in the sum after it."""

    def add(total: Model, batch: Any) -> tuple[Model, tuple[jax.Array, jax.Array]]:
        tokens, topics = batch
        # The derivative by the rows that were looked up, not by the table: a token that occurs n times has n rows.
        loss, (by_rows, by_head) = jax.value_and_grad(loss_of_rows, (0, 1))(model.table[tokens], model.head, topics)
        gradient = BCOO((by_rows.reshape(-1, WIDTH), tokens.reshape(-1, 1)), shape=model.table.shape)
        table = jsg.add(total.table, gradient, nse=nse)
        return Model(table, total.head + by_head), (loss, jnp.sum(table.indices < len(model.table)))

    start = Model(jsg.empty(model.table.shape, nse, model.table.dtype, n_dense=1), jnp.zeros_like(model.head))
    return jax.lax.scan(add, start, batches)


@partial(jax.jit, static_argnames="nse", donate_argnums=(0, 1))
def train_step(model: Model, squares: Model, batches: Any, nse: int) -> tuple[Model, Model, jax.Array, jax.Array]:
    """One step of Adagrad, whose state is the sum of the squares of all gradients."""
    gradient, (losses, rows_after) = sum_gradients(model, batches, nse)
    head_squares = squares.head + gradient.head**2
    head = model.head - RATE * gradient.head * jax.lax.rsqrt(head_squares + EPSILON)
    # Rows without a gradient stay as they are; padding lies beyond the table, and is dropped.
    rows, data = gradient.table.indices[:, 0], gradient.table.data
    table_squares = squares.table.at[rows].add(data**2, mode="drop", indices_are_sorted=True)
    scale = table_squares.at[rows].get(mode="fill", fill_value=1, indices_are_sorted=True)
    changes = -RATE * data * jax.lax.rsqrt(scale + EPSILON)
    table = model.table.at[rows].add(changes, mode="drop", indices_are_sorted=True)
    return Model(table, head), Model(table_squares, head_squares), losses.mean(), rows_after


def train_densely(model: Model, steps: list[Any]) -> list[float]:
    """The losses of the same training by optax, with gradients as large as the table."""
    optimiser = optax.adagrad(RATE, initial_accumulator_value=0, eps=EPSILON)

    def loss_of(model: Model, tokens: jax.Array, topics: jax.Array) -> jax.Array:
        return jax.vmap(loss_of_rows, (0, None, 0))(model.table[tokens], model.head, topics).sum()

    evaluate, update = jax.jit(jax.value_and_grad(loss_of)), jax.jit(optimiser.update)
    state, losses = optimiser.init(model), []
    for tokens, topics in tqdm(steps, desc="dense"):
        loss, gradient = evaluate(model, tokens, topics)
        changes, state = update(gradient, state)
        model = optax.apply_updates(model, changes)
        losses.append(float(loss) / len(topics))
    return losses


def main(vocabulary: int = 200_000, micro_batches: int = 16, documents: int = 64, output: Path = OUTPUT) -> Result:
    """Train both ways, let a sum overflow, and draw into the folder `output`."""
    all_batches = [draw_batches(np.random.default_rng(k), vocabulary, micro_batches, documents) for k in range(STEPS)]
    nse = max(len(np.unique(tokens)) for tokens, _ in all_batches)
    looked_up = all_batches[0][0].size
    print(f"{vocabulary:,} rows; of the {looked_up:,} that a step looks up, at most {nse:,} are different")
    head = np.random.default_rng(0).standard_normal((WIDTH, CLASSES), np.float32)
    untrained = Model(jnp.zeros((vocabulary, WIDTH)), jnp.asarray(head))
    sparse, model, squares = [], jax.tree.map(jnp.copy, untrained), jax.tree.map(jnp.zeros_like, untrained)
    for batches in tqdm(all_batches, desc="sparse"):
        model, squares, loss, rows = train_step(model, squares, batches, nse)
        sparse.append(float(loss))
    dense = train_densely(untrained, all_batches)
    print("losses, sparse:", *np.round(sparse, 5))
    print("losses, dense: ", *np.round(dense, 5))
    checked = checkify.checkify(partial(sum_gradients, nse=nse // 2), errors=checkify.user_checks)
    error, (total, _) = jax.jit(checked)(untrained, all_batches[0])
    overflow, lost = str(error.get()).splitlines()[0], np.isnan(total.table.data).mean()
    print(f"with half of that nse, {lost:.0%} of the values are NaN; checkify: {overflow}")
    output.mkdir(parents=True, exist_ok=True)
    plot = output / "accumulate_gradients.png"
    draw(np.asarray(rows), looked_up // micro_batches).savefig(plot, dpi=120)
    print(f"Picture saved to {plot}")
    return Result(sparse, dense, overflow, np.asarray(rows), plot)


def draw_batches(rng: np.random.Generator, vocabulary: int, *sizes: int) -> tuple[np.ndarray, np.ndarray]:
    """Tokens, as unevenly frequent as words (Zipf), and topics, on which a third of the tokens depend."""
    topics = rng.integers(CLASSES, size=sizes)
    rank = vocabulary ** rng.random((*sizes, LENGTH)) - 1
    start = np.where(rng.random(rank.shape) < 1 / 3, topics[..., None] * (vocabulary // CLASSES), 0)
    return ((rank + start) % vocabulary).astype(np.int32), topics.astype(np.int32)


def draw(rows: np.ndarray, looked_up: int) -> Figure:
    """Draw how many rows the sum has after each micro-batch, and how many went into it."""
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes, count = figure.subplots(), np.arange(1, len(rows) + 1)
    axes.plot(count, np.stack([looked_up * count, rows], axis=1), "o-", label=["rows looked up", "rows of the sum"])
    axes.set(xlabel="micro-batch", ylim=0)
    axes.legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
