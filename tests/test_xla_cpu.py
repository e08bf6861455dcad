"""What XLA:CPU needs, against plain numpy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_sparse_grad._xla_cpu import all_true, argsort, count_true, largest_of, materialise


@pytest.mark.slow(but="1")
@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 300])
def test_reductions_by_groups(rng, size):
    flags = rng.random(size) < 0.5
    assert int(count_true(jnp.asarray(flags))) == flags.sum()
    assert bool(all_true(jnp.asarray(flags))) == flags.all()
    assert bool(all_true(jnp.ones(size, bool)))
    numbers = rng.integers(0, 2**32, size, dtype=np.uint32)
    assert int(largest_of(jnp.asarray(numbers))) == numbers.max(initial=0)


def test_materialised_arrays_are_the_same(rng):
    tree = {"words": jnp.asarray(rng.integers(0, 2**32, 5, dtype=np.uint32)), "count": jnp.int32(-3)}
    chex.assert_trees_all_equal(jax.jit(materialise)(tree), tree)
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf + 1]), tree)
    chex.assert_trees_all_equal(jax.vmap(materialise)(batch), batch)
    assert "while" in jax.jit(lambda x: materialise(x * 2) + 1).lower(tree["words"]).compile().as_text()


@pytest.mark.parametrize("count", [1, 2])
def test_digits_are_sorted_stably(rng, count):
    digits = rng.integers(0, 9, (count, 200), dtype=np.uint32) << 28
    order = jax.jit(argsort)(tuple(map(jnp.asarray, digits)))
    np.testing.assert_array_equal(order, np.lexsort(digits[::-1]))
