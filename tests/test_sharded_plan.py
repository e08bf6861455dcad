"""Sharded plans: the sums of `sharded.add`, made as often as wanted, and nothing communicated."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO
from jax.sharding import AxisType

from helpers.matrices import at_rows
from helpers.shards import (
    CASES,
    EVEN,
    FORM,
    SHAPE,
    canonical,
    check_form,
    collectives_in,
    dense_of,
    host,
    make_mesh,
    random_matrix,
    spread,
)
from jax_sparse_grad import sharded


@pytest.fixture
def matrices(rng):
    return [random_matrix(rng, nnz, **FORM) for nnz in (150, 90, 60)]


@pytest.fixture
def operands(matrices):
    return spread([canonical(x) for x in matrices])


@pytest.fixture
def values(operands):
    return [x.data / 9 for x in operands]


plan_in_order = partial(sharded.plan_sparse_add, assume_canonical=True)


def cubes(data):
    return (data**3).sum()


@pytest.mark.parametrize("case", [CASES[0], pytest.param(CASES[-1], marks=pytest.mark.slow)], ids=str)
def test_it_adds_what_add_adds_and_communicates_nothing(matrices, case):
    operands = spread(matrices[:2], *case)
    values = [x.data for x in operands]
    expected = dense_of(matrices[0]) + dense_of(matrices[1])
    eager = sharded.plan_sparse_add(*operands)
    traced = jax.jit(sharded.plan_sparse_add)(*operands)
    for plan in (eager, traced):
        total = plan.with_data(plan(*values))
        np.testing.assert_array_equal(dense_of(total), expected)
        check_form(total)
    assert eager.capacity == host(eager.nnz).max()
    assert (eager.shape, eager.ndim) == (SHAPE, 2)
    assert f"capacity={eager.capacity}" in repr(eager)

    def pull(plan, values, cotangent):
        return jax.vjp(plan, *values)[1](cotangent)

    assert collectives_in(sharded.plan_sparse_add, *operands) == []
    assert collectives_in(lambda plan, values: plan(*values), eager, values) == []
    assert collectives_in(pull, eager, values, eager(*values)) == []
    for x, gradient in zip(operands, jax.jit(pull)(eager, values, eager(*values)), strict=True):
        assert gradient.sharding.is_equivalent_to(x.data.sharding, 1)
        np.testing.assert_array_equal(gradient, at_rows(expected, host(x.indices), SHAPE))


@pytest.mark.slow
def test_it_is_linear_and_its_transpose_its_gradient(operands, values):
    plan = plan_in_order(*operands)
    loss = jax.jit(lambda *values: cubes(plan(*values)))
    hessian = jax.hessian(lambda scale: loss(*[scale * v for v in values]))(1.0)
    np.testing.assert_allclose(hessian, 6 * loss(*values), rtol=1e-4)
    primal, tangent = jax.jvp(jax.jit(plan), values, values)
    np.testing.assert_array_equal(primal, tangent)
    transposed = jax.linear_transpose(plan, *values)(primal)
    for direct, pulled in zip(transposed, jax.vjp(plan, *values)[1](primal), strict=True):
        np.testing.assert_array_equal(direct, pulled)


def test_the_backward_pass_only_gathers(operands, values):
    plan = plan_in_order(*operands[:2])
    values = values[:2]
    pull = jax.jit(lambda plan, values, c: jax.vjp(plan, *values)[1](c))
    text = pull.lower(plan, values, plan(*values)).compile().as_text()
    assert "gather(" in text
    for forbidden in ("scatter(", "sort(", "while(", "conditional("):
        assert forbidden not in text


@pytest.mark.slow
def test_it_passes_through_scan_and_vmap_with_hybrid_values(operands, values):
    plan = plan_in_order(*operands)
    batch = [jnp.stack([v, 2 * v]) for v in values]
    _, scanned = jax.jit(lambda plan, batch: jax.lax.scan(lambda p, v: (p, p(*v)), plan, batch))(plan, batch)
    mapped = jax.jit(jax.vmap(lambda *v: plan(*v)))(*batch)
    hybrid = plan(*[jnp.stack([v, 2 * v], axis=1) for v in values])
    for total in (scanned, mapped, hybrid.T):
        np.testing.assert_allclose(total, [plan(*values), 2 * plan(*values)], rtol=1e-6)


@pytest.mark.slow
def test_a_plan_of_operands_cut_differently_is_poisoned(matrices, operands, values):
    mesh, axis, _ = make_mesh()
    even = sharded.partition(matrices[0], mesh, axis, row_starts=EVEN)
    plan = jax.jit(sharded.plan_sparse_add)(even, operands[1])
    assert np.all(host(plan.nnz) == 2**31 - 1)
    gradient = jax.grad(lambda u: plan(u, values[1]).sum())(even.data)
    entries = np.all(host(even.indices) < SHAPE, axis=1)
    assert np.all(np.isnan(host(gradient)[entries]))


def test_faults_are_named(operands, values):
    plan = plan_in_order(*operands)
    with pytest.raises(ValueError, match="`operands` must hold at least one operand"):
        sharded.plan_sparse_add()
    with pytest.raises(TypeError, match=r"`operands\[1\]` must be a `RowSharded`, got BCOO; `partition` makes one"):
        sharded.plan_sparse_add(operands[0], operands[1].matrix)
    with pytest.raises(TypeError, match=r"`operands\[0\]` must be a `RowSharded`, got list; .* several one by one"):
        sharded.plan_sparse_add(operands)
    with pytest.raises(ValueError, match="`values` must be given for each of the 3 operands of the plan, got 2"):
        plan(*values[:2])
    with pytest.raises(ValueError, match=r"`values\[2\]` must have one row for each row of `operands\[2\].indices`"):
        plan(*values[:2], values[0])
    with pytest.raises(ValueError, match=r"3 operands of the plan, got 1; unpack the list, `plan\(\*values\)`"):
        plan(values)
    with pytest.raises(ValueError, match="`data` must have one row for each row of `indices`"):
        plan.with_data(jnp.ones(3))


def test_operands_are_not_values(operands, values):
    plan = plan_in_order(*operands)
    for call in (
        lambda operand: plan(operand, *values[1:]),
        lambda operand: plan.with_data(operand),
        lambda operand: operands[0].with_data(operand),
    ):
        with pytest.raises(TypeError, match="must be an array, got RowSharded; pass its `data`"):
            call(operands[0])
        with pytest.raises(TypeError, match="must be an array, got BCOO; `partition` it, and pass the `data` of"):
            call(operands[0].matrix)  # at once: as an array, JAX would walk through its elements


def test_values_in_a_wrapper(operands, values):
    class Parameter:
        def __jax_array__(self):
            return values[0]

    plan = plan_in_order(*operands)
    np.testing.assert_array_equal(plan(Parameter(), *values[1:]), plan(*values))
    assert operands[0].with_data(Parameter()).data.sharding == values[0].sharding


@pytest.mark.slow
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=str)
def test_values_that_are_not_divided_yet_are_divided(axis_type):
    mesh, _, _ = make_mesh(axis_type=axis_type)
    x = sharded.partition(BCOO.fromdense(np.eye(16, dtype=np.float32)), mesh, "rows")
    ones = np.ones(16, np.float32)
    plan = sharded.plan_sparse_add(x, x)
    np.testing.assert_array_equal(plan(ones, ones.tolist()), 2 * ones)
    np.testing.assert_array_equal(sharded.add(x.with_data(ones), x).data, 2 * ones)

    def loss(values):
        return (sharded.add(x.with_data(values), x).data ** 2).sum()

    np.testing.assert_array_equal(jax.jit(jax.grad(loss))(jnp.asarray(ones)), 4 * ones)
