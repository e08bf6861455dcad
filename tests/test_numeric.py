"""Parts of the numeric phase that a plan does not show."""

import jax.numpy as jnp
import numpy as np

from jax_sparse_grad import _numeric
from samples import random_values


def test_runs_are_summed_by_halves():
    """The plain reference: a loop over the runs."""
    rng = np.random.default_rng(0)
    runs = np.sort(rng.integers(0, 9, 50))
    values = random_values(rng, (50, 2))
    summed = _numeric._sum_runs(jnp.asarray(values), jnp.asarray(runs), jnp.asarray(runs < 8))
    for run in range(8):
        where = np.flatnonzero(runs == run)
        np.testing.assert_array_equal(np.asarray(summed)[where[0]], values[where].sum(axis=0))
    np.testing.assert_array_equal(np.asarray(summed)[runs == 8], values[runs == 8])
