"""Learn the edges of a graph: classify handwritten digits when only four images of each are labelled.

Takes 45 seconds on two cores and 0.9 GB of memory. Needs the extra `examples` (of that matplotlib, optax, scikit-learn
and tqdm).

The images are the nodes. A fixed graph joins each image to its nearest neighbours; a second, learnable one joins it to
further candidates. Both are sparse and overlap in part; the adjacency is their sparse sum, by a plan made once. Labels
spread over the adjacency from the labelled images, and the weights of the candidate edges are learnt through that sum.
The labels of all other images are held out: they measure the accuracy and are used for nothing else. The settings below
were chosen on other draws of labelled images than those that a run reports, with one exception: the number of steps was
cut from 80 to 60, to save time, after four of these draws had been seen.

Two ways to learn are run side by side, and compared with the fixed graph alone and with the untrained sum. Results of
twenty draws (`main(draws=20)`), in points of accuracy on held-out labels:

- Learnt from the labels alone (a random half of them must predict the other half), the weights overfit forty labels.
  That gained 0.6 on the untrained sum, but in only 11 of the 20 draws.
- Learning helps reliably once it uses the unlabelled images as well: each should end up near one class (low entropy),
  and all together should fill the classes evenly, which presumes that the digits are about equally frequent. That
  gained 1.8 on the untrained sum, in 19 of the 20 draws, and 2.3 on the fixed graph alone, in 18. (Evening out the
  classes of the untrained sum, without learning, gained 0.2.)

Where the candidates are bad, learning repairs much of the harm that they do, but gains little or nothing over the fixed
graph alone. That was so with only the first 200 images, where an image does not have twenty true neighbours, and with
candidates that matched only when shifted, a quarter of which joined different digits.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from sklearn.datasets import load_digits
from tqdm import tqdm

import jax_sparse_grad as jsg

CLASSES = 10
LABELS_PER_CLASS = 4
NEIGHBOURS = 5  # of each image in the fixed graph
CANDIDATES = 20  # of each image in the learnable graph
SPREAD = 0.95  # the share of its score that a node takes from its neighbours in each step of the propagation
ROUNDS = 15  # steps of the propagation
EVENNESS = 5.0  # weight of the demand that classes are filled evenly

OPTIMISER = optax.adam(0.1)

BLUE, ORANGE, VIOLET = "#4C8BC9", "#E69F00", "#7B5EA7"  # edges of the fixed graph, of the learnable one, of both

# What is compared.
NEAREST = "nearest neighbours alone"
UNTRAINED = "with candidates, untrained"
EVENED = "with candidates, untrained, classes balanced"
LABELS_ONLY = "candidates learnt from labels alone"
LEARNT = "candidates learnt, unlabelled images too"


class Graph(NamedTuple):
    """The two sparse graphs and the plan of their sum.

    plan: adds the values of the fixed edges and those of the candidates, in both directions.
    fixed: the values of the fixed edges.
    pairs: `[m, 2]`, the candidates, each pair of images once.
    """

    plan: jsg.SparseAddPlan
    fixed: jax.Array
    pairs: jax.Array


class Labels(NamedTuple):
    """One draw of labelled images: `nodes` `[classes, labels per class]`; all other images are `held_out`."""

    nodes: np.ndarray
    held_out: np.ndarray


class Run(NamedTuple):
    """One training: candidate weights and held-out accuracy at `steps`, and the seconds that it took."""

    steps: list[int]
    weights: list[jax.Array]
    accuracies: list[float]
    seconds: float


class Result(NamedTuple):
    """The figures of a run; accuracies are on held-out labels, the mean over all draws.

    gradient_error: relative difference between the gradient and finite differences, along a random direction.
    accuracy_nearest: of the fixed graph alone.
    accuracy_before: of the sum with untrained candidates.
    accuracy_labels_only: of the sum with candidates learnt from the labels alone.
    accuracy_after: of the sum with candidates learnt from labelled and unlabelled images.
    steps_per_second: of the training, without compilation.
    plot: where the picture was saved.
    """

    gradient_error: float
    accuracy_nearest: float
    accuracy_before: float
    accuracy_labels_only: float
    accuracy_after: float
    steps_per_second: float
    plot: Path


def main(
    *, images: int | None = None, steps: int = 60, draws: int = 5, output: str | Path | None = None, seed: int = 100
) -> Result:
    """Show the two ops, learn the candidate edges for some draws of labelled images, and report.

    Args:
      images: how many of the 1,797 images to use; all by default.
      steps: of each training.
      draws: how many times to choose the labelled images anew.
      output: the folder for the plot; by default `output` beside this file. Made if missing.
      seed: of the first draw; the others follow.
    """
    show_ops()

    digits = load_digits()
    pictures, truth = digits.images[:images] / 16.0, digits.target[:images]
    graph = build_graph(pictures)
    print_graph(graph, truth)

    label_draws = [draw_labels(truth, seed + k) for k in range(draws)]
    gradient_error = check_gradient(graph, label_draws[0])

    with tqdm(total=2 * draws * steps, desc="training", unit="step") as progress:
        labels_only, learnt = (
            [train(graph, labels, truth, steps, unlabelled, progress) for labels in label_draws]
            for unlabelled in (0.0, 1.0)
        )
    table = accuracy_table(graph, label_draws, truth, labels_only, learnt)
    steps_per_second = 2 * draws * steps / sum(run.seconds for run in labels_only + learnt)
    print_report(table, steps, steps_per_second)

    folder = Path(__file__).parent / "output" if output is None else Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    plot = folder / "learn_graph.png"
    draw_plot(graph, label_draws[0], pictures, truth, labels_only, learnt, table).savefig(plot, dpi=120)
    print(f"Plot saved to {plot}")
    means = (float(table[name].mean()) for name in (NEAREST, UNTRAINED, LABELS_ONLY, LEARNT))
    return Result(gradient_error, *means, steps_per_second, plot)


def show_ops() -> None:
    """Print TensorFlow's two ops on a 3x3 example."""
    a_indices, a_values = jnp.array([[0, 0], [1, 1], [2, 0]]), jnp.array([1.0, 2.0, 3.0])
    b_indices, b_values = jnp.array([[0, 2], [1, 1]]), jnp.array([10.0, 20.0])
    total = jsg.sparse_add(a_indices, a_values, (3, 3), b_indices, b_values, (3, 3))
    print("sparse_add (TensorFlow's SparseAdd): A + B, which share the entry (1, 1)")
    matrices = [
        dense(indices, values)
        for indices, values in ((a_indices, a_values), (b_indices, b_values), (total.sum_indices, total.sum_values))
    ]
    for (a, b, both), (plus, equals) in zip(zip(*matrices, strict=True), ("  ", "+=", "  "), strict=True):
        print(f"  {a} {plus} {b} {equals} {both}")
    print(f"  stored: indices {total.sum_indices.tolist()}, values {total.sum_values.tolist()}")

    backprop = jnp.array([0.1, 0.2, 0.3, 0.4])  # one number for each stored entry of the sum
    grads = jsg.sparse_add_grad(backprop, a_indices, b_indices, total.sum_indices)
    print(f"sparse_add_grad (TensorFlow's SparseAddGrad) of {rounded(backprop)}, the gradient of the stored values:")
    print(f"  A's values receive {rounded(grads.a_val_grad)}, B's values {rounded(grads.b_val_grad)}")


def dense(indices: jax.Array, values: jax.Array) -> list[str]:
    """The rows of a 3x3 matrix as text."""
    matrix = np.zeros((3, 3), int)
    matrix[tuple(np.asarray(indices).T)] = values
    return ["[" + " ".join(f"{entry:2d}" for entry in row) + "]" for row in matrix]


def rounded(values: jax.Array) -> list[float]:
    """Numbers without the noise of float32."""
    return [round(value, 3) for value in values.tolist()]


def build_graph(pictures: np.ndarray) -> Graph:
    """Join each image to its nearest ones pixel by pixel, and to candidates that may be shifted by a pixel."""
    size = len(pictures)
    nearest = both_ways(neighbour_pairs(pixel_distances(pictures, pictures), NEIGHBOURS))
    pairs = neighbour_pairs(shifted_distances(pictures), CANDIDATES)
    plan = jsg.plan_sparse_add(nearest, both_ways(pairs), shape=(size, size))
    return Graph(plan, jnp.ones(len(nearest)), jnp.asarray(pairs))


def pixel_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances between all images in `a` and all in `b`."""
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    return (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T


def shifted_distances(pictures: np.ndarray) -> np.ndarray:
    """Squared distances between all images, where one of the two may move by a pixel."""
    _, height, width = pictures.shape
    padded = np.pad(pictures, ((0, 0), (1, 1), (1, 1)))
    shifts = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    least = np.min([pixel_distances(pictures, shifted) for shifted in shifts], axis=0)
    return np.minimum(least, least.T)


def neighbour_pairs(distances: np.ndarray, count: int) -> np.ndarray:
    """The pairs `[m, 2]`, each once, in which one image is among the `count` nearest of the other."""
    apart = distances + np.diag(np.full(len(distances), np.inf))
    neighbours = np.argpartition(apart, count, axis=1)[:, :count]
    pairs = np.stack([np.repeat(np.arange(len(distances)), count), neighbours.ravel()], axis=1)
    return np.unique(np.sort(pairs, axis=1), axis=0).astype(np.int32)


def both_ways(pairs: np.ndarray) -> np.ndarray:
    """The two directed edges of each pair."""
    return np.concatenate([pairs, pairs[:, ::-1]])


def print_graph(graph: Graph, truth: np.ndarray) -> None:
    """Print the sizes of the graphs and of their overlap."""
    fixed, candidates, total = len(graph.fixed), 2 * len(graph.pairs), graph.plan.nse
    shared = fixed + candidates - total
    right = same_digit(graph, truth).mean()
    print(f"\n{len(truth):,} images, {LABELS_PER_CLASS} labelled of each digit")
    print(f"  {fixed:,} fixed + {candidates:,} learnable edges, {shared:,} of them shared: a sum of {total:,}")
    print(f"  {right:.1%} of the candidates join images of the same digit")


def same_digit(graph: Graph, truth: np.ndarray) -> np.ndarray:
    """Which candidates join two images of the same digit."""
    first, second = np.asarray(graph.pairs).T
    return truth[first] == truth[second]


def draw_labels(truth: np.ndarray, seed: int) -> Labels:
    """Choose the labelled images, equally many of each digit."""
    rng = np.random.default_rng(seed)
    nodes = [rng.choice(np.flatnonzero(truth == digit), LABELS_PER_CLASS, replace=False) for digit in range(CLASSES)]
    return Labels(np.stack(nodes), np.setdiff1d(np.arange(len(truth)), nodes))


def add_candidates(graph: Graph, weights: jax.Array) -> jax.Array:
    """The values of the adjacency, `[plan.nse]`: the sparse sum of the fixed edges and the weighted candidates."""
    return graph.plan(graph.fixed, jnp.tile(weights, 2))  # a pair weighs the same in both directions


def propagate(graph: Graph, adjacency: jax.Array, seeds: jax.Array) -> jax.Array:
    """Spread the labels `seeds` `[images, classes]` over the graph; returns the classes' probabilities."""
    rows, columns = graph.plan.indices.T
    # The plan's indices are sorted, and the sums by row may rely on it.
    sum_rows = partial(jax.ops.segment_sum, segment_ids=rows, num_segments=len(seeds), indices_are_sorted=True)
    scale = jax.lax.rsqrt(sum_rows(adjacency))
    normalised = (adjacency * scale[rows] * scale[columns])[:, None]

    @jax.checkpoint  # repeating the cheap gather in the backward pass is faster than reading it back from memory
    def spread(scores: jax.Array, _: None) -> tuple[jax.Array, None]:
        return SPREAD * sum_rows(normalised * scores[columns]) + (1 - SPREAD) * seeds, None

    scores, _ = jax.lax.scan(spread, seeds, length=ROUNDS)
    scores += 1e-6  # nodes that no label has reached yet
    return scores / scores.sum(axis=1, keepdims=True)


def seed_labels(size: int, nodes: jax.Array, chosen: jax.Array) -> jax.Array:
    """One-hot labels `[size, classes]` at the `chosen` nodes, zero elsewhere."""
    digits = jnp.broadcast_to(jnp.arange(CLASSES)[:, None], nodes.shape)
    return jnp.zeros((size, CLASSES)).at[nodes, digits].set(chosen.astype(float))


def loss(weights: jax.Array, graph: Graph, nodes: jax.Array, key: jax.Array, unlabelled: jax.Array) -> jax.Array:
    """How badly a random half of the labels predicts the other half, plus the demands on unlabelled images."""
    halves = jnp.broadcast_to(jnp.arange(LABELS_PER_CLASS) < LABELS_PER_CLASS // 2, nodes.shape)
    chosen = jax.random.permutation(key, halves, axis=1, independent=True)
    size = graph.plan.shape[0]
    guess = propagate(graph, add_candidates(graph, weights), seed_labels(size, nodes, chosen))

    logs = jnp.log(guess)
    targets = seed_labels(size, nodes, ~chosen)
    prediction = -(targets * logs).sum() / targets.sum()
    entropy = -(guess * logs).sum(axis=1).mean()
    share = guess.mean(axis=0)
    unevenness = (share * jnp.log(CLASSES * share)).sum()
    return prediction + unlabelled * (entropy + EVENNESS * unevenness)


def check_gradient(graph: Graph, labels: Labels) -> float:
    """Print the slope of the loss along a random direction, by `jax.grad` and by finite differences."""
    weights = jnp.ones(len(graph.pairs))
    direction = jax.random.uniform(jax.random.key(1), weights.shape)
    value_and_grad = jax.jit(jax.value_and_grad(loss))

    def along(distance: float) -> tuple[float, float]:
        value, gradient = value_and_grad(weights + distance * direction, graph, labels.nodes, jax.random.key(0), 1.0)
        return float(value), float(jnp.vdot(gradient, direction))

    # The loss has only seven digits in float32, so the steps are wide; with four points, the error is of fourth order.
    h = 0.1
    near, far = (along(k * h)[0] - along(-k * h)[0] for k in (1, 2))
    _, slope = along(0.0)
    differences = (8 * near - far) / (12 * h)
    error = abs(slope - differences) / abs(differences)
    print(f"  slope of the loss along a random direction of edge weights: {slope:.6f} by jax.grad,")
    print(f"  {differences:.6f} by finite differences (relative difference {error:.0e})")
    return error


@jax.jit
def update(
    graph: Graph, nodes: jax.Array, unlabelled: jax.Array, parameters: jax.Array, state: Any, key: jax.Array
) -> tuple[jax.Array, Any, jax.Array]:
    """Do one step of the optimiser; returns the new parameters and state, and the loss."""
    value, gradient = jax.value_and_grad(lambda p: loss(jax.nn.softplus(p), graph, nodes, key, unlabelled))(parameters)
    change, state = OPTIMISER.update(gradient, state)
    return optax.apply_updates(parameters, change), state, value


def train(graph: Graph, labels: Labels, truth: np.ndarray, steps: int, unlabelled: float, progress: tqdm) -> Run:
    """Learn the candidates' weights, which start at 1, like those of the fixed edges."""
    parameters = jnp.full(len(graph.pairs), np.log(np.expm1(1.0)))  # softplus makes them 1
    state = OPTIMISER.init(parameters)
    keys = list(jax.random.split(jax.random.key(0), steps))
    advance = partial(update, graph, labels.nodes, unlabelled)
    jax.block_until_ready(advance(parameters, state, keys[0]))  # compiles, before the clock starts

    weights = [jax.nn.softplus(parameters)]
    start = time.perf_counter()
    for key in keys:
        parameters, state, value = advance(parameters, state, key)
        weights.append(jax.nn.softplus(parameters))
        progress.set_postfix(loss=f"{value:.3f}", refresh=False)
        progress.update()
    seconds = time.perf_counter() - start
    # Held-out labels are used only from here on.
    shown = sorted({round(step) for step in np.linspace(0, steps, 21)})
    weights = [weights[step] for step in shown]
    return Run(shown, weights, [accuracy(graph, w, labels, truth) for w in weights], seconds)


@jax.jit
def predict(graph: Graph, weights: jax.Array, nodes: jax.Array) -> jax.Array:
    """The classes' probabilities for every image, `[images, classes]`, from all labels."""
    seeds = seed_labels(graph.plan.shape[0], nodes, jnp.ones(nodes.shape, bool))
    return propagate(graph, add_candidates(graph, weights), seeds)


def classify(graph: Graph, weights: jax.Array, labels: Labels, *, evened: bool = False) -> np.ndarray:
    """The class of every image; `evened`: after scaling the probabilities of each class to the same total."""
    guess = np.asarray(predict(graph, weights, labels.nodes))
    return np.argmax(guess / guess.sum(axis=0) if evened else guess, axis=1)


def accuracy(graph: Graph, weights: jax.Array, labels: Labels, truth: np.ndarray, *, evened: bool = False) -> float:
    """The share of the held-out images that are classified correctly."""
    return float((classify(graph, weights, labels, evened=evened) == truth)[labels.held_out].mean())


def accuracy_table(
    graph: Graph, label_draws: list[Labels], truth: np.ndarray, labels_only: list[Run], learnt: list[Run]
) -> dict[str, np.ndarray]:
    """Held-out accuracies in every draw, for the fixed graph, the untrained sum, and both trainings."""
    ones = jnp.ones(len(graph.pairs))

    def in_draws(weights: jax.Array, *, evened: bool = False) -> np.ndarray:
        return np.array([accuracy(graph, weights, labels, truth, evened=evened) for labels in label_draws])

    return {
        NEAREST: in_draws(0 * ones),
        UNTRAINED: in_draws(ones),
        EVENED: in_draws(ones, evened=True),
        LABELS_ONLY: np.array([run.accuracies[-1] for run in labels_only]),
        LEARNT: np.array([run.accuracies[-1] for run in learnt]),
    }


def print_report(table: dict[str, np.ndarray], steps: int, steps_per_second: float) -> None:
    """Print the accuracies, and the gains over both baselines."""
    draws = len(table[LEARNT])
    print(f"\nAccuracy on held-out labels, {steps} steps of training for each draw of the labels:")
    print(f"  {'':44}   mean    lowest   highest")
    for name, values in table.items():
        print(f"  {name:44} {values.mean():7.2%}  {values.min():7.2%}  {values.max():7.2%}")
    for name in (LABELS_ONLY, LEARNT):
        print(f"  {name}:")
        for baseline in (NEAREST, UNTRAINED):
            gain = table[name] - table[baseline]
            better = f"better in {(gain > 0).sum()} of {draws} draws"
            print(f"    {100 * gain.mean():+.2f} points over '{baseline}', {better}")
    print(f"{steps_per_second:.1f} steps per second, without compilation")


def draw_plot(
    graph: Graph,
    labels: Labels,
    pictures: np.ndarray,
    truth: np.ndarray,
    labels_only: list[Run],
    learnt: list[Run],
    table: dict[str, np.ndarray],
) -> Figure:
    """Draw the sum on a few images; below it the accuracies, the learnt weights, and images that learning corrected."""
    figure = Figure(figsize=(15, 9.6), layout="constrained")
    sums, results = figure.subfigures(2, 1, height_ratios=(1, 1.05))
    plot_sum(sums, graph, pictures, truth, np.asarray(learnt[0].weights[-1]))
    curves, histogram, corrected = results.subfigures(1, 3, width_ratios=(1.15, 1, 1))
    plot_accuracy(curves, labels_only, learnt, table)
    plot_weights(histogram, np.asarray(learnt[0].weights[-1]), same_digit(graph, truth))
    before, after = (classify(graph, learnt[0].weights[k], labels) for k in (0, -1))
    plot_corrected(corrected, pictures, truth, before, after, labels.held_out)
    return figure


def plot_sum(figure: SubFigure, graph: Graph, pictures: np.ndarray, truth: np.ndarray, weights: np.ndarray) -> None:
    """Draw both graphs and their sum on a few images, edges in the colour of the graphs that hold them."""
    edges = np.asarray(graph.plan.indices)
    fixed = np.asarray(graph.plan(graph.fixed, jnp.zeros(2 * len(graph.pairs))))
    learnable = np.asarray(graph.plan(0 * graph.fixed, jnp.tile(weights, 2)))
    kinds = (fixed > 0) + 2 * (learnable > 0)  # 1: fixed alone, 2: learnable alone, 3: both
    nodes = choose_nodes(edges, kinds, truth)
    inside = np.isin(edges, nodes).all(axis=1) & (edges[:, 0] < edges[:, 1])
    angles = np.linspace(0, 2 * np.pi, len(nodes), endpoint=False)
    points = dict(zip(nodes.tolist(), np.stack([np.sin(angles), np.cos(angles)], axis=1), strict=True))
    shown = list(zip(edges[inside].tolist(), kinds[inside], (fixed + learnable)[inside], strict=True))

    title = f"Learning through a sparse sum: fixed graph + learnable graph ({len(nodes)} of {len(pictures):,} images)"
    figure.suptitle(title, fontsize="x-large")
    panels = [
        ("fixed edges: nearest neighbours\n", {1: BLUE, 3: BLUE}),
        ("learnable edges: candidates,\nbefore training", {2: ORANGE, 3: ORANGE}),
        (
            "their sum after training (violet: in both graphs;\nwidth: weight; dotted: almost 0)",
            {1: BLUE, 2: ORANGE, 3: VIOLET},
        ),
    ]
    for axes, sign, (name, colours) in zip(figure.subplots(1, 3), " +=", panels, strict=True):
        for ends, kind, total in shown:
            if kind in colours:
                weight = total if sign == "=" else 1
                style = {"linewidth": 2.2 * weight} if weight > 0.4 else {"linewidth": 1, "linestyle": ":"}
                axes.plot(*np.transpose([points[end] for end in ends]), color=colours[kind], **style, zorder=1)
        for node, (x, y) in points.items():
            axes.imshow(pictures[node], cmap="gray_r", extent=(x - 0.2, x + 0.2, y - 0.2, y + 0.2), zorder=2)
            axes.add_patch(Rectangle((x - 0.2, y - 0.2), 0.4, 0.4, fill=False, edgecolor="0.6", zorder=3))
        axes.text(-1.75, 0, sign, fontsize=28, ha="center", va="center")
        axes.text(0, -1.3, name, fontsize=12, ha="center", va="top")
        axes.set(xlim=(-1.85, 1.65), ylim=(-1.6, 1.25), aspect="equal")
        axes.set_axis_off()


def choose_nodes(edges: np.ndarray, kinds: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """An image and some neighbours by each kind of edge, by digit: where all kinds occur, and edges between digits."""

    def around(centre: int) -> tuple[np.ndarray, tuple[int, ...]]:
        mine = edges[:, 0] == centre
        nodes = np.unique([centre, *(n for kind in (1, 2, 3) for n in edges[mine & (kinds == kind), 1][:3])])
        inside = np.isin(edges, nodes).all(axis=1)
        counts = np.bincount(kinds[inside], minlength=4)[1:]
        between = (kinds[inside] == 2) & (np.diff(truth[edges[inside]])[:, 0] != 0)
        return nodes, (min(counts.min(), 4), min(between.sum(), 6), -counts.sum())

    nodes, _ = max((around(centre) for centre in range(min(len(truth), 300))), key=lambda choice: choice[1])
    return nodes[np.argsort(truth[nodes], kind="stable")]


def plot_accuracy(figure: SubFigure, labels_only: list[Run], learnt: list[Run], table: dict[str, np.ndarray]) -> None:
    """Plot the accuracy of both trainings against the step, each draw and their mean, with the baseline."""
    axes = figure.subplots()
    for name, runs, colour in ((LEARNT, learnt, "tab:green"), (LABELS_ONLY, labels_only, "tab:orange")):
        rates = 100 * np.array([run.accuracies for run in runs])
        axes.plot(runs[0].steps, rates.T, color=colour, linewidth=0.8, alpha=0.4)
        axes.plot(runs[0].steps, rates.mean(axis=0), color=colour, linewidth=2.5, label=name)
    axes.axhline(100 * table[UNTRAINED].mean(), color="tab:gray", linestyle="--", label=UNTRAINED)
    axes.axhline(100 * table[NEAREST].mean(), color="black", linestyle=":", label=NEAREST)
    axes.set(xlabel="training step", ylabel="accuracy on held-out labels (%)")
    axes.set_title(f"{CLASSES * LABELS_PER_CLASS} labels, {len(learnt)} draws (thin) and their mean (bold)")
    figure.legend(loc="outside lower center", fontsize="small", ncols=2)


def plot_weights(figure: SubFigure, weights: np.ndarray, same: np.ndarray) -> None:
    """Plot the distribution of the learnt weights, separately for candidates that join equal and different digits."""
    axes = figure.subplots()
    bins = np.geomspace(weights.min(), weights.max() * 1.001, 50)
    for kind, name, colour in ((same, "same digit", "tab:blue"), (~same, "different digits", "tab:red")):
        part = weights[kind]
        share = np.full(part.shape, 100 / max(len(part), 1))
        axes.hist(part, bins, weights=share, color=colour, alpha=0.55, label=f"{name} ({len(part):,})")
    axes.axvline(1, color="black", linestyle="--", linewidth=1, label="before training")
    axes.set(xscale="log", xlabel="learnt weight", ylabel="share of the edges of its kind (%)")
    axes.set_title("Learnt weights of the candidate edges (first draw)")
    figure.legend(loc="outside lower center", fontsize="small", ncols=2)


def plot_corrected(
    figure: SubFigure,
    pictures: np.ndarray,
    truth: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    held_out: np.ndarray,
) -> None:
    """Show some held-out images that were wrong before training and right after it, and count them."""
    corrected = held_out[(before != truth)[held_out] & (after == truth)[held_out]]
    broken = held_out[(before == truth)[held_out] & (after != truth)[held_out]]
    title = f"First draw: learning corrected {len(corrected)} images and broke {len(broken)}"
    figure.suptitle(f"{title}\n(class before → after)", fontsize="large")
    shown = corrected[np.linspace(0, len(corrected) - 1, min(len(corrected), 12)).round().astype(int)]
    for axes, image in zip_longest(figure.subplots(3, 4).flat, shown):
        axes.set_axis_off()
        if image is not None:
            axes.imshow(pictures[image], cmap="gray_r")
            axes.set_title(f"{before[image]} → {after[image]}", fontsize="medium")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Learn the candidate edges of a graph of handwritten digits.")
    parser.add_argument("--steps", type=int, default=60, help="of each training (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder for the plot (default: output, beside this file)")
    arguments = parser.parse_args()
    main(steps=arguments.steps, output=arguments.output)
