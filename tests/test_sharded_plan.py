"""Sharded plans: the sums of `sharded.add`, made as often as wanted, and nothing communicated."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.sparse
from jax.sharding import AxisType

from helpers.matrices import at_rows
from helpers.shards import (
    CASES,
    EVEN,
    FORM,
    SHAPE,
    canonical,
    check_form,
    compile_for,
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


@pytest.mark.parametrize("case", [CASES[0], pytest.param(CASES[-1], marks=pytest.mark.slow)], ids=str)
def test_it_adds_what_add_adds_and_communicates_nothing(matrices, case):
    operands = spread(matrices[:2], *case)
    expected = dense_of(matrices[0]) + dense_of(matrices[1])

    def plan_and_pull(x, y):
        plan = sharded.plan_sparse_add(x, y)
        total, pull = jax.vjp(plan, x.data, y.data)
        return plan, total, pull(total)

    compiled, collectives = compile_for(plan_and_pull, *operands)
    assert collectives == []
    traced, total, gradients = compiled(*operands)
    eager = sharded.plan_sparse_add(*operands)
    for x in (traced.with_data(total), eager.with_data(eager(*(x.data for x in operands)))):
        np.testing.assert_array_equal(dense_of(x), expected)
        check_form(x)
    for x, gradient in zip(operands, gradients, strict=True):
        assert gradient.sharding.is_equivalent_to(x.data.sharding, 1)
        np.testing.assert_array_equal(gradient, at_rows(expected, host(x.indices), SHAPE))
    assert eager.capacity == host(eager.nnz).max()
    assert (eager.shape, eager.ndim) == (SHAPE, 2)
    assert f"capacity={eager.capacity}" in repr(eager)


@pytest.mark.slow
def test_it_is_linear_and_its_transpose_its_gradient(operands, values):
    @jax.jit
    def derive(plan, values):
        total, tangent = jax.jvp(plan, values, values)
        return total, tangent, jax.linear_transpose(plan, *values)(total), jax.vjp(plan, *values)[1](total)

    total, tangent, transposed, pulled = derive(plan_in_order(*operands), values)
    np.testing.assert_array_equal(total, tangent)
    for direct, gradient in zip(transposed, pulled, strict=True):
        np.testing.assert_array_equal(direct, gradient)


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
    @jax.jit
    def add_all(plan, values):
        batch = [jnp.stack([v, 2 * v]) for v in values]
        _, scanned = jax.lax.scan(lambda plan, each: (plan, plan(*each)), plan, batch)
        return scanned, jax.vmap(plan.__call__)(*batch), plan(*[each.T for each in batch]).T

    plan = plan_in_order(*operands)
    for total in add_all(plan, values):
        np.testing.assert_allclose(total, [plan(*values), 2 * plan(*values)], rtol=1e-6)


def test_a_plan_of_operands_cut_differently_is_poisoned(matrices, operands, values):
    (even,) = spread(matrices[:1], row_starts=EVEN)

    @jax.jit
    def pull(x, y):
        plan = sharded.plan_sparse_add(x, y)
        return plan, jax.grad(lambda u: plan(u, y.data).sum())(x.data)

    plan, gradient = pull(even, operands[1])
    assert np.all(host(plan.nnz) == 2**31 - 1)
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
        plan(*values[:2], host(values[0])[1:])
    with pytest.raises(ValueError, match=r"3 operands of the plan, got 1; unpack the list, `plan\(\*values\)`"):
        plan(values)


def test_operands_are_not_values(operands, values):
    plan = plan_in_order(*operands)
    for call in (lambda operand: plan(operand, *values[1:]), plan.with_data, operands[0].with_data):
        with pytest.raises(TypeError, match=r"must be an array, got RowSharded; pass its values, `x\.data`"):
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
    x = sharded.partition(scipy.sparse.eye_array(16), mesh, "rows")
    ones = np.ones(16, np.float32)
    plan = plan_in_order(x, x)
    np.testing.assert_array_equal(plan(ones, ones.tolist()), 2 * ones)
    gradient = jax.grad(lambda values: (plan(values, x.data) ** 2).sum())
    np.testing.assert_array_equal(jax.jit(gradient)(jnp.asarray(ones)), 4 * ones)
