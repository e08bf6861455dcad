"""What XLA:CPU needs in order to be fast, and no other compiler does.

`all_true` is for code that runs on any platform: it takes this medicine on a CPU alone. The rest is for the CPU's own
rooms.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_sparse_grad._primitives import in_all_batches, vary_alike
from jax_sparse_grad._seam import per_platform

T = TypeVar("T")

REDUCED_FIRST = 32  # elements: XLA:CPU reduces groups on all threads, many elements at a time, but a vector one by one


def count_true(flags: jax.Array) -> jax.Array:
    """The number of true flags in a vector."""
    whole = flags.shape[0] // REDUCED_FIRST * REDUCED_FIRST
    groups = jnp.sum(flags[:whole].reshape(-1, REDUCED_FIRST).astype(jnp.uint8), axis=1, dtype=jnp.uint8)
    return jnp.sum(groups, dtype=jnp.int32) + jnp.sum(flags[whole:], dtype=jnp.int32)


def _all_true(flags: jax.Array) -> jax.Array:
    return count_true(~flags) == 0


all_true = per_platform(cpu=_all_true, otherwise=jnp.all)
"""`jnp.all` of a vector."""


def largest_of(numbers: jax.Array) -> jax.Array:
    """The maximum of a vector of unsigned integers; 0 if it is empty."""
    whole = numbers.shape[0] // REDUCED_FIRST * REDUCED_FIRST
    rest = jnp.max(numbers[whole:], initial=0)
    if whole == 0:
        return rest
    # Materialised, or XLA would merge the two reductions.
    groups = materialise(jnp.max(numbers[:whole].reshape(-1, REDUCED_FIRST), axis=1))
    return jnp.maximum(jnp.max(groups), rest)


def materialise(tree: T) -> T:
    """The same arrays, stored so that no consumer computes them again.

    XLA:CPU drops `lax.optimization_barrier` before it fuses. A loop that carries the arrays stays, and costs nothing if
    it makes no iteration; XLA does not know that a population count is never negative.
    """
    leaves, treedef = jax.tree.flatten(vary_alike(tree))
    if leaves[0].size == 0:
        return tree
    bits = lax.population_count(jnp.real(leaves[0].reshape(-1)[0]).astype(jnp.uint32))
    never = in_all_batches(bits.astype(jnp.int32) < 0)
    _, leaves = lax.while_loop(
        lambda carry: carry[0], lambda carry: (~carry[0], [-leaf for leaf in carry[1]]), (never, leaves)
    )
    return jax.tree.unflatten(treedef, leaves)


stored = per_platform(cpu=materialise, otherwise=lambda array: array)
"""The same array, for code that runs on any platform."""


def argsort(digits: tuple[jax.Array, ...]) -> jax.Array:
    """The stable order of keys of 32-bit digits, the most significant first: `[n]` int32.

    It goes digit by digit, the least significant first, each packed with its position into one 64-bit word: XLA:CPU
    sorts a single array 4 times as fast as two side by side. These words do not need `jax_enable_x64` around the
    package.
    """
    order = jnp.arange(digits[0].shape[0], dtype=np.int32)
    for count, digit in enumerate(reversed(digits)):
        in_order = digit[order] if count else digit
        with jax.enable_x64(True):
            places = jnp.arange(digit.shape[0], dtype=np.uint64)
            packed = lax.sort((in_order.astype(np.uint64) << np.uint64(32)) | places, is_stable=False)
            places = packed.astype(np.uint32).astype(np.int32)
        order = order[places] if count else places
    return order
