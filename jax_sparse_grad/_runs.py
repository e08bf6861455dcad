"""Sums of neighbours that belong together, without atomic additions: the same on every run.

After round r, entry i holds the sum of the entries i ... i + 2**r - 1 of its run. The additions form a balanced tree,
the same on every platform. The rounds end with the longest run: there are none if all runs have length one. A GPU does
as many as there could be, because its host would have to look at a flag in every round. They are unrolled: a loop takes
2.6 times as long for 2*10^6 entries on an H200, because it copies what it carries.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jax_sparse_grad._primitives import NONE, gather, in_all_batches, in_bytes, negative_zero
from jax_sparse_grad._seam import per_platform


def sum_runs_by_gathers(values: jax.Array, runs: jax.Array) -> jax.Array:
    """For XLA:CPU."""
    size = values.shape[0]
    entries = jnp.arange(size, dtype=jnp.uint32)  # an entry plus a step must not wrap around

    def partners(step: jax.Array) -> tuple[jax.Array, jax.Array]:
        partner = entries + step
        return partner, (runs != NONE) & (gather(runs, partner, fill=-1) == runs)

    def add_partner(step: jax.Array, values: jax.Array) -> jax.Array:
        partner, same_run = partners(step)
        return values + gather(values, jnp.where(same_run, partner, size), negative_zero(values.dtype))

    return _as_often_as_needed(lambda step: jnp.any(partners(step)[1]), add_partner, values)


def sum_runs_by_shifts(values: jax.Array, runs: jax.Array) -> jax.Array:
    """For machines with little patience with gathers."""
    size, dtype = values.shape[0], values.dtype
    values = in_bytes(values)  # narrower integers cannot be concatenated everywhere

    def ahead(array: jax.Array, step: jax.Array, fill: Any) -> jax.Array:
        return lax.dynamic_slice_in_dim(jnp.concatenate([array, jnp.full_like(array, fill)]), step, size)

    def has_partner(step: jax.Array) -> jax.Array:
        return (runs != NONE) & (ahead(runs, step, NONE) == runs)

    def add_partner(step: jax.Array, values: jax.Array) -> jax.Array:
        return _add_in_runs(values, ahead(values, step, 0), has_partner(step))

    return _as_often_as_needed(lambda step: jnp.any(has_partner(step)), add_partner, values).astype(dtype)


def sum_runs_unrolled(values: jax.Array, runs: jax.Array) -> jax.Array:
    """For XLA:GPU."""
    size, dtype = values.shape[0], values.dtype
    values = in_bytes(values)  # narrower integers cannot be concatenated everywhere
    step = 1
    while step < size:
        same_run = (runs != NONE) & (_ahead(runs, step, NONE) == runs)
        values = _add_in_runs(values, _ahead(values, step, 0), same_run)
        step *= 2
    return values.astype(dtype)


def _ahead(array: jax.Array, step: int, fill: Any) -> jax.Array:
    return jnp.concatenate([array[step:], jnp.full_like(array[:step], fill)])


def _add_in_runs(values: jax.Array, partners: jax.Array, same_run: jax.Array) -> jax.Array:
    return jnp.where(same_run.reshape(-1, *[1] * (values.ndim - 1)), values + partners, values)


def _as_often_as_needed(
    is_needed: Callable[[jax.Array], jax.Array],
    add_partner: Callable[[jax.Array, jax.Array], jax.Array],
    values: jax.Array,
) -> jax.Array:
    def add(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return 2 * carry[0], add_partner(*carry)

    def goes_on(carry: tuple[jax.Array, jax.Array]) -> jax.Array:
        return ~in_all_batches(~is_needed(carry[0]))  # one step for a whole batch, or shifts would become gathers

    return lax.while_loop(goes_on, add, (jnp.uint32(1), values))[1]


sum_runs = per_platform(
    cpu=sum_runs_by_gathers,
    gpu=sum_runs_unrolled,
    otherwise=sum_runs_by_shifts,
)
"""`sum_runs(values, runs)`: sums neighbours with equal numbers in `runs`; the first of them then holds the total.

`NONE` is no run.
"""
