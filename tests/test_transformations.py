"""Sums under JAX's transformations, against the matrix S of zeros and ones: S @ values; so derivatives are products."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO
from jax.sharding import PartitionSpec
from jax.test_util import check_grads

import jax_sparse_grad as jsg
from helpers.matrices import at_rows, to_dense, union_indices
from helpers.meshes import mesh_of
from helpers.samples import SHAPE, random_coo

FORM = {"shuffled": True, "duplicates": 3, "padding": 1}


def sparse_add(a, x, b, y, **keywords):
    return jsg.sparse_add(a, x, SHAPE, b, y, SHAPE, **keywords)


def matrix(indices, values):
    return BCOO((values, indices), shape=SHAPE)


SUMS = {
    "sparse_add": lambda *pair: sparse_add(*pair).sum_values,
    "plan": lambda a, x, b, y: jsg.plan_sparse_add(a, b, shape=SHAPE)(x, y),
    "add": lambda a, x, b, y: jsg.add(matrix(a, x), matrix(b, y)).data,
    "dense": lambda a, x, b, y: jsg.add_n([matrix(a, x), jnp.full(SHAPE, x[0]), matrix(b, y)]).reshape(-1),
}


def matrices(name, a, b, nse=None):
    """S, by the columns of each operand."""
    cells = [to_dense(rows, np.eye(len(rows)), SHAPE) for rows in (a, b)]
    if name == "dense":
        of_a, of_b = (each.reshape(-1, each.shape[-1]) for each in cells)
        of_a[:, 0] += 1  # the dense operand is full of the first value of A
        return of_a, of_b
    rows = union_indices(a, b, shape=SHAPE)
    rows = np.concatenate([rows, np.tile([SHAPE], (0 if nse is None else nse - len(rows), 1))])
    return tuple(at_rows(each, rows, SHAPE) for each in cells)


def times(matrices, values):
    return sum(m @ np.asarray(v) for m, v in zip(matrices, values, strict=True))


def cubes(values):
    return (values**3).sum()


def gradients_of_cubes(matrices, values):
    return tuple(m.T @ (3 * times(matrices, values) ** 2) for m in matrices)


@pytest.fixture
def pair(rng):
    a, x = random_coo(rng, SHAPE, 8, **FORM)
    b, y = random_coo(rng, SHAPE, 8)
    return jnp.asarray(a), jnp.asarray(x / 9), jnp.asarray(b), jnp.asarray(y / 9)


def test_gradients_agree_with_finite_differences(pair):
    a, x, b, y = pair
    above = jax.jit(lambda x, y: cubes(sparse_add(a, x, b, y, thresh=0.4).sum_values))
    check_grads(above, (x, y), order=1, modes=["rev"], rtol=2e-2, atol=2e-2)
    check_grads(jax.jit(lambda x, y: cubes(SUMS["add"](a, x, b, y))), (x, y), order=1, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", SUMS)
def test_derivatives_of_both_modes_to_second_order(pair, name):
    a, x, b, y = pair
    values, tangents = (x, y), (x[::-1], y[::-1])

    def total(*values):
        return SUMS[name](a, values[0], b, values[1])

    def loss(*values):
        return cubes(total(*values))

    @jax.jit  # all of them in one program
    def derive(values, tangents, cotangent):
        gradient = jax.grad(loss, (0, 1))
        derived = {
            "gradient": gradient(*values),
            "reverse over reverse": jax.jacrev(gradient, (0, 1))(*values),
            "forward over reverse": jax.hessian(loss, (0, 1))(*values),
            "vjp": jax.vjp(total, *values)[1](cotangent),
        }
        if name == "sparse_add":  # a `custom_vjp`, on which JAX bars the others
            return derived
        transpose = jax.linear_transpose(total, *values)
        slope = lambda *values: jax.jvp(loss, values, tangents)[1]  # noqa: E731
        return derived | {
            "jvp": jax.jvp(total, values, tangents),
            "linearize": jax.linearize(total, *values)[1](*tangents),
            "jacfwd": jax.jacfwd(total, (0, 1))(*values),
            "jacrev": jax.jacrev(total, (0, 1))(*values),
            "its transpose": jax.linear_transpose(lambda c: tuple(transpose(c)), cotangent)(tangents)[0],
            "reverse over forward": jax.grad(slope, (0, 1))(*values),
            "forward over forward": jax.jvp(slope, values, tangents)[1],
        }

    parts = matrices(name, a, b)
    cotangent = np.linspace(-1, 1, len(parts[0]), dtype=np.float32)
    derived = derive(values, tangents, cotangent)
    sums, change = times(parts, values), times(parts, tangents)
    hessian = tuple(tuple(m.T @ (6 * sums[:, None] * n) for n in parts) for m in parts)
    expected = {
        "gradient": gradients_of_cubes(parts, values),
        "reverse over reverse": hessian,
        "forward over reverse": hessian,
        "vjp": tuple(m.T @ cotangent for m in parts),
        "jvp": (sums, change),
        "linearize": change,
        "jacfwd": parts,
        "jacrev": parts,
        "its transpose": change,
        "reverse over forward": tuple(m.T @ (6 * sums * change) for m in parts),
        "forward over forward": (6 * sums * change**2).sum(),
    }
    chex.assert_trees_all_close(derived, {key: expected[key] for key in derived}, rtol=1e-4, atol=1e-5)


def test_derivatives_of_both_modes_with_traced_patterns(pair):
    @jax.jit
    def derive(a, x, b, y, cotangent):
        total = lambda x, y: SUMS["add"](a, x, b, y)  # noqa: E731
        gradient = jax.grad(lambda x, y: cubes(total(x, y)), (0, 1))
        return jax.jvp(gradient, (x, y), (x, y)), tuple(jax.linear_transpose(total, x, y)(cotangent))

    a, x, b, y = pair
    cotangent = np.arange(1.0, 21, dtype=np.float32)
    (gradient, change), back = derive(*pair, cotangent)
    parts = matrices("add", a, b, nse=20)
    chex.assert_trees_all_close(gradient, gradients_of_cubes(parts, (x, y)), rtol=1e-5, atol=1e-5)
    chex.assert_trees_all_close(change, tuple(2 * each for each in gradient), rtol=1e-5)
    chex.assert_trees_all_close(back, tuple(m.T @ cotangent for m in parts), rtol=1e-5)


@pytest.mark.parametrize("name", ["sparse_add", "plan", "dense"])
def test_vmap_cond_and_checkpoint(pair, name):
    a, x, b, y = pair

    def total(*values):
        return SUMS[name](a, values[0], b, values[1])

    @jax.checkpoint
    def either(flag, *values):
        return jax.lax.cond(flag, lambda *v: cubes(total(*v)), lambda *v: 2 * cubes(total(*v)), *values)

    @jax.jit
    def use(x, y, scales, flags):
        nested = jax.vmap(jax.vmap(lambda s, t: total(s * x, t * y), (None, 0)), (0, None))
        gradient = jax.grad(either, (1, 2))
        chosen = jax.vmap(either, (0, None, None))(flags, x, y)
        return nested(scales, scales), jax.lax.map(lambda flag: gradient(flag, x, y), flags), chosen

    nested, gradients, chosen = use(x, y, jnp.arange(1.0, 4), jnp.array([True, False]))
    parts = matrices(name, a, b)
    for i, j in np.ndindex(3, 3):
        np.testing.assert_allclose(nested[i, j], times(parts, ((i + 1) * x, (j + 1) * y)), rtol=1e-5, atol=1e-6)
    once = gradients_of_cubes(parts, (x, y))
    chex.assert_trees_all_close(gradients, tuple(np.stack([g, 2 * g]) for g in once), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(chosen, cubes(times(parts, (x, y))) * np.array([1, 2]), rtol=1e-5)


@pytest.mark.parametrize(("axes", "transform"), [((0, None, None, None), lambda f: f), ((0, 0, None, 0), jax.jit)])
def test_vmap_over_indices_and_values(rng, axes, transform):
    batches = [(*random_coo(rng, SHAPE, 8, **FORM), *random_coo(rng, SHAPE, 8)) for _ in range(3)]
    stacked = [
        np.stack(leaf) if axis == 0 else leaf[0] for leaf, axis in zip(zip(*batches, strict=True), axes, strict=True)
    ]

    def gradient(a, x, b, y):
        def loss(x, y):
            output = sparse_add(a, x, b, y, nse=24)
            return cubes(output.sum_values), output

        return jax.grad(loss, (0, 1), has_aux=True)(x, y)

    got = transform(jax.vmap(gradient, axes))(*stacked)
    for k in range(3):
        a, x, b, y = (leaf[k] if axis == 0 else leaf for leaf, axis in zip(stacked, axes, strict=True))
        gradients, output = jax.tree.map(lambda leaf, k=k: np.asarray(leaf)[k], got)
        np.testing.assert_array_equal(to_dense(*output[:2], SHAPE), to_dense(a, x, SHAPE) + to_dense(b, y, SHAPE))
        chex.assert_trees_all_close(gradients, gradients_of_cubes(matrices("sparse_add", a, b), (x, y)), rtol=1e-6)


def test_vmap_of_a_threshold(pair):
    thresholds = np.array([0.0, 0.3, 9.0], np.float32)
    got = jax.vmap(lambda thresh: sparse_add(*pair, thresh=thresh))(thresholds)
    for k, thresh in enumerate(thresholds):
        one = sparse_add(*pair, thresh=thresh)
        count = len(one.sum_values)
        chex.assert_trees_all_equal((got.sum_indices[k, :count], got.sum_values[k, :count]), one[:2])
        assert np.all(got.sum_indices[k, count:] == np.array([SHAPE]))


def test_a_scan_that_carries_a_padded_sum_is_differentiable(rng):
    steps = [random_coo(rng, SHAPE, 5, shuffled=True, duplicates=2) for _ in range(4)]
    indices, values = np.stack([i for i, _ in steps]), jnp.asarray(np.stack([v for _, v in steps]) / 9)
    nse = 30

    @jax.jit
    @jax.value_and_grad
    def run(values, indices):
        empty = (jnp.full((nse, 2), jnp.array([SHAPE]), indices.dtype), jnp.zeros(nse))
        add = lambda carry, step: (sparse_add(*carry, *step, nse=nse)[:2], None)  # noqa: E731
        (_, total), _ = jax.lax.scan(add, empty, (indices, values))
        return cubes(total)

    total, gradient = run(values, indices)
    sums = sum(to_dense(*step, SHAPE) for step in zip(indices, np.asarray(values), strict=True))
    np.testing.assert_allclose(total, cubes(sums), rtol=1e-5)
    expected = [at_rows(3 * sums**2, rows, SHAPE) for rows in indices]
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-6)


def test_order_checks_of_a_batch_do_not_sort_a_batch_in_order(rng):
    a, x = (np.stack(each) for each in zip(*(random_coo(rng, SHAPE, 8) for _ in range(4)), strict=True))
    traced = jax.jit(jax.vmap(lambda a, x: sparse_add(a, x, a, x))).trace(a, x)
    for platform in ("cpu", "cuda"):
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert "stablehlo.case" in text  # not a select, which would run the sort


def test_a_batch_of_plans(rng):
    patterns = [random_coo(rng, SHAPE, 8 - k, shuffled=True, duplicates=k, padding=2) for k in range(3)]
    indices, values = np.stack([i for i, _ in patterns]), jnp.asarray(np.stack([v for _, v in patterns]))
    plans = jax.vmap(lambda i: jsg.plan_sparse_add(i, i, shape=SHAPE))(indices)
    assert plans.nnz.tolist() == [len(union_indices(i, shape=SHAPE)) for i in indices]
    gradient = jax.vmap(jax.grad(lambda v, p: cubes(p(v, v))))(values, plans)
    for k in range(3):
        total = 2 * to_dense(indices[k], values[k], SHAPE)
        np.testing.assert_allclose(np.asarray(gradient)[k], at_rows(6 * total**2, indices[k], SHAPE), rtol=1e-6)


class TestShardMap:
    def shard(self, function):
        spec = PartitionSpec("rows")
        return jax.jit(jax.shard_map(function, mesh=mesh_of((4,)), in_specs=spec, out_specs=spec))

    @pytest.mark.parametrize("name", ["sparse_add", "add"])
    def test_each_device_adds_its_own_and_what_all_share_gets_the_sum_of_their_gradients(self, rng, pair, name):
        own = [random_coo(rng, SHAPE, 8, **FORM) for _ in range(4)]
        _, _, b, y = pair

        def gradient(a, x):
            gradients = jax.grad(lambda x, y: cubes(SUMS[name](a[0], x, b, y)), (0, 1))(x[0], y)
            return jax.tree.map(lambda g: g.reshape(1, -1), gradients)

        of_own, of_shared = self.shard(gradient)(*map(np.stack, zip(*own, strict=True)))
        expected = [gradients_of_cubes(matrices(name, a, b), (x, y)) for a, x in own]
        np.testing.assert_allclose(of_own, [each for each, _ in expected], rtol=1e-5)
        np.testing.assert_allclose(of_shared, [sum(each for _, each in expected)] * 4, rtol=1e-5)

    def test_one_plan_serves_all_devices(self, pair):
        a, x, b, y = pair
        plan = jsg.plan_sparse_add(a, b, shape=SHAPE)
        scales = jnp.arange(1.0, 5.0)
        gradient = self.shard(lambda scale: jax.grad(lambda s: cubes(plan(s[0] * x, s[0] * y)))(scale))
        np.testing.assert_allclose(gradient(scales), 3 * scales**2 * cubes(plan(x, y)), rtol=1e-5)


def test_gradients_export_to_every_platform(pair):
    @jax.jit
    def gradient(a, x, b, y, thresh):
        return jax.grad(lambda x, y: cubes(sparse_add(a, x, b, y, thresh=thresh).sum_values), (0, 1))(x, y)

    platforms = ("cpu", "cuda", "tpu")
    exported = jax.export.export(gradient, platforms=platforms)(*pair, 0.1)
    assert exported.platforms == platforms
    restored = jax.export.deserialize(exported.serialize())
    a, x, b, y = pair
    _, pull = jax.vjp(lambda x, y: cubes(sparse_add(a, x, b, y, thresh=0.1).sum_values), x, y)
    chex.assert_trees_all_close(restored.call(*pair, 0.1), pull(np.float32(1)), rtol=1e-6)


@pytest.mark.parametrize("name", ["sparse_add", "plan", "add"])
def test_the_compiled_backward_pass_gathers_only(pair, name):
    a, x, b, y = pair
    loss = lambda x, y: cubes(SUMS[name](a, x, b, y))  # noqa: E731
    # As an argument: residuals that were constants would be folded, and conditionals on them.
    text = jax.jit(lambda pull, cotangent: pull(cotangent)).lower
    first = text(jax.vjp(loss, x, y)[1], 1.0).compile().as_text()
    assert "gather(" in first
    for forbidden in ("scatter(", "sort(", "while(", "conditional("):
        assert forbidden not in first
    second = text(jax.vjp(jax.grad(loss, (0, 1)), x, y)[1], (x, y)).compile().as_text()
    assert "sort(" not in second
