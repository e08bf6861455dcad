"""sparse_add and plans under every JAX transformation."""

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


@pytest.fixture
def pair(rng):
    a, x = random_coo(rng, SHAPE, 8, **FORM)
    b, y = random_coo(rng, SHAPE, 8)
    return a, jnp.asarray(x / 9), b, jnp.asarray(y / 9)


def add(a, x, b, y, **keywords):
    return jsg.sparse_add(a, x, SHAPE, b, y, SHAPE, **keywords)


def dense_add(a, x, b, y):
    """The same sum by dense scatters, which JAX differentiates itself."""

    def dense(indices, values):
        # Padding lies outside and is dropped.
        return jnp.zeros(SHAPE).at[tuple(jnp.asarray(indices).T)].add(values, mode="drop")

    return dense(a, x) + dense(b, y)


def cubes(values):
    return (values**3).sum()


def sparse_loss(a, b, **keywords):
    return lambda x, y: cubes(add(a, x, b, y, **keywords).sum_values)


def dense_loss(a, b):
    return lambda x, y: cubes(dense_add(a, x, b, y))


def gradients_of_cubes(*pairs):
    """The gradient of `cubes` of a sum, for each operand: by numpy, for which nothing is compiled."""
    total = sum(to_dense(*pair, SHAPE) for pair in pairs)
    return tuple(at_rows(3 * total**2, indices, SHAPE) for indices, _ in pairs)


class TestSparseAdd:
    def test_agrees_with_finite_differences_to_second_order(self, pair):
        a, x, b, y = pair
        check_grads(sparse_loss(a, b, thresh=0.4), (x, y), order=2, modes=["rev"], rtol=2e-2, atol=2e-2)

    @pytest.mark.parametrize(
        "second", [lambda f: jax.jacrev(jax.jacrev(f)), jax.hessian], ids=["jacrev of jacrev", "hessian"]
    )
    def test_second_derivatives(self, pair, second):
        a, x, b, y = pair
        chex.assert_trees_all_close(
            jax.jit(second(sparse_loss(a, b)))(x, y), jax.jit(second(dense_loss(a, b)))(x, y), rtol=1e-5, atol=1e-6
        )

    def test_grad_under_jit_with_traced_indices(self, pair):
        a, x, b, y = pair
        gradient = jax.jit(lambda a, x, b, y: jax.grad(sparse_loss(a, b), (0, 1))(x, y))
        chex.assert_trees_all_close(gradient(*pair), gradients_of_cubes((a, x), (b, y)), rtol=1e-5)

    @pytest.mark.parametrize("axes", [(None, 0, None, 0), (0, None, None, None), (0, 0, None, 0)])
    def test_vmap_over_values_indices_and_both(self, rng, axes):
        batches = [(*random_coo(rng, SHAPE, 8, **FORM), *random_coo(rng, SHAPE, 8)) for _ in range(3)]
        stacked = [
            np.stack(leaf) if axis == 0 else leaf[0]
            for leaf, axis in zip(zip(*batches, strict=True), axes, strict=True)
        ]

        def gradient(a, x, b, y):
            def loss(x, y):
                output = add(a, x, b, y, nse=24)
                return cubes(output.sum_values), output

            return jax.grad(loss, (0, 1), has_aux=True)(x, y)

        got = jax.jit(jax.vmap(gradient, axes))(*stacked)
        for k in range(3):
            a, x, b, y = (leaf[k] if axis == 0 else leaf for leaf, axis in zip(stacked, axes, strict=True))
            gradients, output = jax.tree.map(lambda leaf, k=k: np.asarray(leaf)[k], got)
            np.testing.assert_array_equal(to_dense(*output[:2], SHAPE), to_dense(a, x, SHAPE) + to_dense(b, y, SHAPE))
            chex.assert_trees_all_equal(gradients, gradients_of_cubes((a, x), (b, y)))

    def test_nested_vmap(self, pair):
        a, x, b, y = pair
        scales = jnp.arange(1.0, 4.0)
        nested = jax.vmap(jax.vmap(lambda s, t: add(a, s * x, b, t * y, nse=20).sum_values, (None, 0)), (0, None))
        got = nested(scales, scales)
        for i in range(3):
            for j in range(3):
                chex.assert_trees_all_close(
                    got[i, j], add(a, scales[i] * x, b, scales[j] * y, nse=20).sum_values, rtol=1e-6
                )

    def test_a_scan_that_carries_a_padded_sum_is_differentiable(self, rng):
        steps = [random_coo(rng, SHAPE, 5, shuffled=True, duplicates=2) for _ in range(4)]
        indices, values = np.stack([i for i, _ in steps]), jnp.asarray(np.stack([v for _, v in steps]) / 9)
        nse = 30

        def accumulate(carry, step):
            total = jsg.sparse_add(*carry, SHAPE, *step, SHAPE, nse=nse)
            return total[:2], None

        @jax.jit
        def loss(values, indices):
            empty = (jnp.full((nse, 2), jnp.array([SHAPE]), indices.dtype), jnp.zeros(nse))
            (_, total), _ = jax.lax.scan(accumulate, empty, (indices, values))
            return cubes(total)

        total, gradient = jax.value_and_grad(loss)(values, indices)
        pairs = list(zip(indices, np.asarray(values), strict=True))
        np.testing.assert_allclose(total, (sum(to_dense(*pair, SHAPE) for pair in pairs) ** 3).sum(), rtol=1e-5)
        np.testing.assert_allclose(gradient, np.stack(gradients_of_cubes(*pairs)), rtol=1e-5, atol=1e-6)

    def test_cond_and_checkpoint(self, pair):
        a, x, b, y = pair

        @jax.checkpoint
        def loss(x, y, twice):
            return jax.lax.cond(twice, sparse_loss(a, b), lambda x, y: 2 * sparse_loss(a, b)(x, y), x, y)

        gradient = jax.jit(jax.grad(loss, (0, 1)))
        for flag, factor in ((True, 1), (False, 2)):
            expected = tuple(factor * each for each in gradients_of_cubes((a, x), (b, y)))
            chex.assert_trees_all_close(gradient(x, y, flag), expected, rtol=1e-5)

    def test_vmap_of_a_threshold(self, pair):
        a, x, b, y = pair
        thresholds = jnp.array([0.0, 0.3, 9.0])
        got = jax.vmap(lambda t: add(a, x, b, y, thresh=t))(thresholds)
        for k, thresh in enumerate(thresholds):
            one = add(a, x, b, y, thresh=thresh)
            count = len(one.sum_values)
            chex.assert_trees_all_equal((got.sum_indices[k, :count], got.sum_values[k, :count]), one[:2])
            assert np.all(got.sum_indices[k, count:] == np.array([SHAPE]))

    @pytest.mark.parametrize("platform", ["cpu", "cuda"])
    def test_order_checks_of_a_batch_do_not_sort_a_batch_in_order(self, rng, platform):
        batch = [random_coo(rng, SHAPE, 8) for _ in range(4)]
        a, x = np.stack([i for i, _ in batch]), np.stack([v for _, v in batch])
        mapped = jax.jit(jax.vmap(lambda a, x: add(a, x, a, x)))
        text = mapped.trace(a, x).lower(lowering_platforms=(platform,)).as_text()
        assert "stablehlo.case" in text  # not a select, which would run the sort


class TestPlan:
    @pytest.fixture
    def plan(self, pair):
        a, _, b, _ = pair
        return jsg.plan_sparse_add(a, b, a, shape=SHAPE)

    @pytest.fixture
    def values(self, pair):
        _, x, _, y = pair
        return x, y, 2 * x

    def dense(self, pair, values):
        a, _, b, _ = pair
        x, y, z = values
        return dense_add(a, x + z, b, y)

    def test_it_is_linear(self, plan, values):
        primal, tangent = jax.jvp(plan, values, values)
        chex.assert_trees_all_equal(primal, tangent, jax.linearize(plan, *values)[1](*values))
        chex.assert_trees_all_equal(jax.jacfwd(plan)(*values), jax.jacrev(plan)(*values))

    def test_its_transpose_is_its_gradient_and_its_transpose_itself(self, plan, values):
        transpose = jax.linear_transpose(plan, *values)
        cotangent = jnp.arange(1.0, plan.nse + 1)
        back = tuple(transpose(cotangent))
        chex.assert_trees_all_equal(back, jax.vjp(plan, *values)[1](cotangent))
        (again,) = jax.linear_transpose(lambda c: tuple(transpose(c)), cotangent)(values)
        chex.assert_trees_all_close(again, plan(*values), rtol=1e-6)

    def test_it_passes_through_jit_vmap_scan_cond_and_checkpoint(self, plan, values, pair):
        expected = to_dense(plan.indices, plan(*values), SHAPE)
        chex.assert_trees_all_equal(jax.jit(lambda p, v: p(*v))(plan, values), plan(*values))
        batch = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), values)
        chex.assert_trees_all_equal(jax.vmap(plan)(*batch)[1], 2 * plan(*values))
        _, outputs = jax.lax.scan(lambda p, v: (p, p(*v)), plan, batch)
        chex.assert_trees_all_equal(outputs, jax.vmap(plan)(*batch))

        def either(*v):
            return jax.lax.cond(v[0].sum() > -1e9, lambda: cubes(plan(*v)), lambda: 0.0)

        gradient = jax.grad(jax.checkpoint(either))(*values)
        a, x, b, y = pair
        by_hand = gradients_of_cubes((a, x), (b, y), (a, values[2]))
        np.testing.assert_allclose(gradient, by_hand[0], rtol=1e-5)
        np.testing.assert_allclose(expected, self.dense(pair, values), rtol=1e-5)

    def test_a_batch_of_plans(self, rng):
        patterns = [random_coo(rng, SHAPE, 8, **FORM) for _ in range(3)]
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
        return jax.shard_map(function, mesh=mesh_of((4,)), in_specs=spec, out_specs=spec)

    def test_each_device_adds_its_own_tensors(self, rng):
        pairs = [(*random_coo(rng, SHAPE, 8, **FORM), *random_coo(rng, SHAPE, 8)) for _ in range(4)]
        stacked = [np.stack(leaf) for leaf in zip(*pairs, strict=True)]

        def gradient(a, x, b, y):
            grads = jax.grad(sparse_loss(a[0], b[0]), (0, 1))(x[0], y[0])
            return jax.tree.map(lambda g: g.reshape(1, *g.shape), grads)

        got = jax.jit(self.shard(gradient))(*stacked)
        for k, (a, x, b, y) in enumerate(pairs):
            one = jax.tree.map(lambda leaf, k=k: np.asarray(leaf)[k], got)
            chex.assert_trees_all_close(one, gradients_of_cubes((a, x), (b, y)), rtol=1e-5)

    def test_what_is_the_same_on_all_devices_gets_the_sum_of_their_gradients(self, pair):
        a, x, b, y = pair
        patterns = jnp.stack([a, a[::-1], a, a[::-1]])

        def gradient(pattern):
            return jax.grad(lambda x: cubes(add(pattern[0], x, b, y, nse=20).sum_values))(x).reshape(1, -1)

        got = jax.jit(self.shard(gradient))(patterns)
        expected = sum(gradients_of_cubes((pattern, x), (b, y))[0] for pattern in np.asarray(patterns))
        np.testing.assert_allclose(got, np.stack([expected] * 4), rtol=1e-5, atol=1e-6)

    def test_one_plan_serves_all_devices(self, pair):
        a, x, b, y = pair
        plan = jsg.plan_sparse_add(a, b, shape=SHAPE)
        scales = jnp.arange(1.0, 5.0)

        def gradient(scale):
            return jax.grad(lambda s: cubes(plan(s[0] * x, s[0] * y)))(scale)

        expected = 3 * scales**2 * cubes(plan(x, y))
        np.testing.assert_allclose(jax.jit(self.shard(gradient))(scales), expected, rtol=1e-5)


def test_gradients_export_to_every_platform(rng):
    a, x = random_coo(rng, SHAPE, 8, shuffled=True)
    b, y = random_coo(rng, SHAPE, 8)

    def gradient(a, x, b, y, thresh):
        return jax.grad(lambda x, y: cubes(add(a, x, b, y, thresh=thresh).sum_values), (0, 1))(x, y)

    platforms = ("cpu", "cuda", "rocm", "tpu")
    exported = jax.export.export(jax.jit(gradient), platforms=platforms)(a, x, b, y, 0.1)
    assert exported.platforms == platforms
    restored = jax.export.deserialize(exported.serialize())
    chex.assert_trees_all_close(restored.call(a, x, b, y, 0.1), gradient(a, x, b, y, 0.1), rtol=1e-6)


SUMS = {
    "plan": lambda a, x, b, y: jsg.plan_sparse_add(a, b, shape=SHAPE)(x, y),
    "sparse_add": lambda *operands: add(*operands).sum_values,
    "add": lambda a, x, b, y: jsg.add(BCOO((x, a), shape=SHAPE), BCOO((y, b), shape=SHAPE)).data,
}


class TestCompiledBackward:
    """What the backward pass runs, read in the optimised HLO."""

    def text(self, pull, cotangent):
        # As an argument: residuals that were constants would be folded, and conditionals on them.
        return jax.jit(lambda pull, cotangent: pull(cotangent)).lower(pull, cotangent).compile().as_text()

    @pytest.mark.parametrize("name", SUMS)
    def test_it_gathers_only(self, pair, name):
        a, x, b, y = pair
        pull = jax.jit(lambda a, b: jax.vjp(lambda x, y: SUMS[name](a, x, b, y), x, y)[1])(a, b)
        text = self.text(pull, jnp.ones(len(a) + len(b)))
        assert "gather(" in text
        for forbidden in ("scatter(", "sort(", "while(", "conditional("):
            assert forbidden not in text

    def test_of_second_order_it_has_no_sort(self, pair):
        a, x, b, y = pair
        pull = jax.jit(lambda a, b: jax.vjp(jax.grad(sparse_loss(a, b), (0, 1)), x, y)[1])(a, b)
        assert "sort(" not in self.text(pull, (x, y))
