"""What `add` alone has under JAX's transformations: containers, and the work that it spares."""

import re

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import BCOO, BCSR

import jax_sparse_grad as jsg
from helpers.matrices import as_bcsr, to_dense
from helpers.samples import NSE, SHAPE, random_bcoo


def test_vmap_over_values_alone_finds_the_union_once(rng):
    def add(rows_x, rows_y, u, v):
        return jsg.add(BCOO((u, rows_x), shape=SHAPE), BCOO((v, rows_y), shape=SHAPE)).data

    x, y = random_bcoo(rng), random_bcoo(rng)
    values = jnp.ones((5, NSE)), jnp.ones((5, NSE))

    def symbolic_phase(in_axes, *arrays):
        """What it returns, as the program says."""
        (line,) = re.findall(r".*= sparse_add_call", str(jax.make_jaxpr(jax.vmap(add, in_axes))(*arrays, *values)))
        return line

    assert "[5," not in symbolic_phase((None, None, 0, 0), x.indices, y.indices)
    # The same reading does find patterns that are batched.
    assert "[5," in symbolic_phase((0, None, 0, 0), jnp.stack([x.indices] * 5), y.indices)


def test_vmap_over_containers(rng):
    x, y = (random_bcoo(rng, ((3, *SHAPE), 1, 0)) for _ in range(2))
    np.testing.assert_array_equal(to_dense(jax.vmap(jsg.add)(x, y)), to_dense(x) + to_dense(y))


def test_a_scan_carries_a_bcsr_of_one_structure(rng):
    steps = [as_bcsr(random_bcoo(rng, nse=5)) for _ in range(4)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *steps)
    start = jsg.add_n([as_bcsr(random_bcoo(rng, nse=0))], nse=20)

    def add(total, step):
        return jsg.add(total, BCSR(step, shape=SHAPE), nse=20), None

    total, _ = jax.jit(lambda steps: jax.lax.scan(add, start, steps))((stacked.data, stacked.indices, stacked.indptr))
    assert isinstance(total, BCSR)
    assert total.nse == 20
    np.testing.assert_array_equal(to_dense(total), sum(map(to_dense, steps)))
