"""Find the pipes that a map lacks, by gradients through a sparse sum.

Takes 12 seconds on two cores. Needs the extra `examples` (of that matplotlib, optax and tqdm).

Tanks are joined by pipes, through which their levels even out. A map shows the pipes, but some are missing there and
some are wider than drawn. Gauges read all levels before and after, in 64 trials. The sparse matrix of all pipes is

    A + B    A: areas of the pipes on the map; B: areas to be added, an unknown for each pair of tanks that are near

and B is learnt. (It leaves out a third of the map's pipes, which have been measured.) What a pipe carries grows with
the square of its area, so what A and B say of the same pipe must be added before it is squared. Sums of this package
have one entry for each pipe; JAX's own `A + B` has two for some.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.sparse import BCOO
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from tqdm import trange

import jax_sparse_grad as jsg

SIDE = 12  # the tanks stand roughly on a square grid
MISSING, WIDENED = 12, 8  # pipes that the map lacks, and that it draws too narrow
TRIALS, GAUGE_ERROR = 64, 0.005  # levels lie between 0 and 1
BLUE, ORANGE, VIOLET = "#4C8BC9", "#E69F00", "#7B5EA7"  # pipes of A alone, of B alone, of both


class Result(NamedTuple):
    """Errors of the gradient and of levels by JAX's own A + B, the areas of B in truth and as learnt, the picture."""

    gradient_error: float
    unmerged_error: float
    truth: np.ndarray
    learnt: np.ndarray
    plot: Path


def main(*, steps: int = 200, output: str | Path | None = None) -> Result:
    """Read the gauges, learn B from what they show, compare with the truth, and draw into the folder `output`."""
    rng = np.random.default_rng(0)
    places, mapped, near, truth = build_network(rng)
    print(f"{SIDE**2} tanks; the map shows {len(mapped)} pipes, lacks {MISSING}, and draws {WIDENED} too narrow")
    a, b = as_matrix(mapped, np.ones(len(mapped))), as_matrix(near, truth)

    # The true levels, by `add`, which merges the entries that A and B share.
    before = rng.uniform(size=(SIDE**2, TRIALS)).astype(np.float32)
    after = flow(jsg.add(a, b), before)
    readings = after + GAUGE_ERROR * rng.normal(size=after.shape).astype(np.float32)
    unmerged_error = float(abs(flow(a + b, before) - after).max())

    # To learn, by a plan: the patterns of A and B stay, so they are merged once, and each step only adds values.
    plan = jsg.plan_sparse_add(a, b)
    print(f"A + B: {a.nse:,} + {b.nse:,} entries, {a.nse + b.nse - plan.nse:,} of them shared, make {plan.nse:,}")
    print(f"JAX's own A + B keeps all {(a + b).nse:,}; squared so, they put levels wrong by up to {unmerged_error:.3f}")

    def loss(parameters: jax.Array, plan: jsg.SparseAddPlan) -> jax.Array:
        pipes = plan.with_data(plan(a.data, jnp.tile(jax.nn.softplus(parameters), 2)))  # A + B; B in both directions
        return jnp.mean(((flow(pipes, before) - readings) / GAUGE_ERROR) ** 2)

    evaluate = jax.jit(jax.value_and_grad(loss))
    parameters = jnp.full(len(near), -1.0, jnp.float32)
    first, gradient = evaluate(parameters, plan)
    slope = jnp.linalg.norm(gradient)
    shift = 0.01 * gradient / slope
    difference = (evaluate(parameters + shift, plan)[0] - evaluate(parameters - shift, plan)[0]) / 0.02
    print(f"steepest slope of the loss: {slope:.3f} by jax.grad, {difference:.3f} by finite differences")

    optimiser = optax.adam(optax.cosine_decay_schedule(0.2, steps))
    update, state = jax.jit(optimiser.update), optimiser.init(parameters)
    for _ in trange(steps, desc="learning"):
        value, gradient = evaluate(parameters, plan)
        changes, state = update(gradient, state)
        parameters = optax.apply_updates(parameters, changes)

    learnt = np.asarray(jax.nn.softplus(parameters))
    right, error = truth[learnt > 0.4] > 0, abs(learnt - truth)[truth > 0].mean()
    print(f"levels differ from the readings by {first**0.5:.1f} gauge errors before learning, {value**0.5:.2f} after")
    print(f"found {sum(right)} of these {MISSING + WIDENED}, areas right to {error:.2f}; {sum(~right)} false finds")
    folder = Path(__file__).parent / "output" if output is None else Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    plot = folder / "quickstart.png"
    draw(places, truth, learnt, plan).savefig(plot, dpi=120)
    print(f"Picture saved to {plot}")
    return Result(float(abs(difference / slope - 1)), unmerged_error, truth, learnt, plot)


def build_network(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Places of the tanks, pairs `[m, 2]` with a pipe on the map, pairs that are near, and the true areas of these."""
    places = np.stack(np.indices((SIDE, SIDE)), axis=-1).reshape(-1, 2) + rng.uniform(-0.35, 0.35, (SIDE**2, 2))
    order = np.argsort(np.linalg.norm(places[:, None] - places, axis=-1), axis=1)
    pairs = [[(i, j) for i in range(SIDE**2) for j in order[i, 1 : count + 1]] for count in (3, 10)]
    mapped, near = (np.unique(np.sort(each), axis=0) for each in pairs)
    measured = rng.choice(mapped, len(mapped) // 3, replace=False)  # and found to be as drawn
    near = near[~(near[:, None] == measured).all(axis=-1).any(axis=1)]
    on_map = (near[:, None] == mapped).all(axis=-1).any(axis=1)
    truth = np.zeros(len(near))
    for where, count in ((on_map, WIDENED), (~on_map, MISSING)):
        truth[rng.choice(np.flatnonzero(where), count, replace=False)] = rng.uniform(0.5, 1.5, count)
    return places, mapped, near, truth


def as_matrix(pairs: np.ndarray, areas: np.ndarray) -> BCOO:
    """The pipes between `pairs` of tanks as a symmetric sparse matrix."""
    indices = jnp.asarray(np.concatenate([pairs, pairs[:, ::-1]]), jnp.int32)
    return BCOO((jnp.tile(jnp.asarray(areas, jnp.float32), 2), indices), shape=(SIDE**2, SIDE**2))


@jax.jit
def flow(pipes: BCOO, levels: jax.Array) -> jax.Array:
    """The levels `[tanks, trials]` after the water has run for a while."""
    conductance = BCOO((0.05 * pipes.data**2, pipes.indices), shape=pipes.shape)
    outflow = conductance @ jnp.ones((SIDE**2, 1))
    return jax.lax.fori_loop(0, 10, lambda _, h: h + conductance @ h - outflow * h, levels)


def draw(places: np.ndarray, truth: np.ndarray, learnt: np.ndarray, plan: jsg.SparseAddPlan) -> Figure:
    """Draw A, B and their learnt sum as maps, and the learnt areas of B against the true ones."""
    of_a, of_b = (np.isin(np.arange(plan.nse), slots) for slots in plan.slots)  # which entries of the sum
    colours = np.array([BLUE, ORANGE, VIOLET])[of_a + 2 * of_b - 1]
    carried = np.asarray(plan(jnp.ones(len(plan.slots[0])), jnp.tile(learnt, 2))) ** 2
    figure = Figure(figsize=(15, 4.3), layout="constrained")
    *maps, axes = figure.subplots(1, 4)
    drawn = [(of_a, BLUE, 1.5), (of_b, ORANGE, 0.5), (of_a | of_b, colours, 1.5 * carried)]
    titles = "A: pipes on the map", "+ B: areas to be learnt", "= A + B, learnt (width: flow)"
    for panel, title, (entries, colour, width) in zip(maps, titles, drawn, strict=True):
        panel.add_collection(LineCollection(places[plan.indices[entries]], linewidths=width, colors=colour))
        panel.plot(*places.T, ".", color="0.25", markersize=4)
        panel.set(title=title, aspect="equal")
        panel.set_axis_off()
    axes.axline((0, 0), slope=1, color="0.7", linewidth=1, zorder=0)
    axes.scatter(truth, learnt, s=14, color=colours[plan.slots[1][: len(truth)]])
    axes.set(title="areas of B (violet: on the map)", xlabel="true", ylabel="learnt", aspect="equal")
    return figure


if __name__ == "__main__":
    main()
