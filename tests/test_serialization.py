"""What is exported, pickled and copied is the same afterwards, in another process too."""

import copy
import io
import json
import os
import pathlib
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jax_sparse_grad as jsg
from helpers.matrices import to_dense
from helpers.meshes import mesh_of
from helpers.samples import random_coo
from helpers.shards import CASES, canonical, check_form, dense_of, host, make_mesh, random_matrix
from jax_sparse_grad import sharded

PROCESS = pathlib.Path(__file__).parent / "saved_process.py"
SHAPE = (7, 9)


@pytest.fixture
def operands(rng):
    return [random_coo(rng, SHAPE, nnz) for nnz in (12, 9)]


@pytest.fixture
def plan(operands):
    return jsg.plan_sparse_add(*(indices for indices, _ in operands), shape=SHAPE, assume_canonical=True)


@pytest.fixture
def x(rng):
    return sharded.partition(random_matrix(rng, 60), *make_mesh()[:2])


def alike(first, second):
    """Trees of one structure, with equal arrays."""
    assert jax.tree.structure(first) == jax.tree.structure(second)
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.slow
def test_another_process_reads_and_calls_what_was_written(tmp_path, operands, plan, rng):
    (a, u), (b, v) = operands
    dense = to_dense(a, u, SHAPE) + to_dense(b, v, SHAPE)
    total = dense[tuple(np.asarray(plan.indices).T)]

    def write(name, content):
        (tmp_path / name).write_bytes(content)

    def write_exported(name, function, *arguments, vjp_order=0):
        write(f"{name}.exported", export.export(jax.jit(function))(*arguments).serialize(vjp_order))

    def trees(plan, u, v):
        total = jsg.sparse_add(a, u, SHAPE, b, v, SHAPE)
        return plan, total, jsg.sparse_add_grad(total.sum_values, a, b, total.sum_indices, shape=SHAPE)

    write_exported("by plan", lambda plan, u, v: plan(u, v), plan, u, v, vjp_order=1)
    write_exported("trees", trees, plan, u, v)
    expected = {"sum": total, "gradient": 2 * dense[tuple(a.T)], "cotangents": (dense[tuple(a.T)], dense[tuple(b.T)])}
    write("operands.pickle", pickle.dumps(((a, b, SHAPE), (u, v), expected)))
    write("plan.pickle", pickle.dumps(plan))

    x = sharded.partition(canonical(random_matrix(rng, 30)), mesh_of((2,)), "rows")
    pattern = sharded.plan_sparse_add(x, x, assume_canonical=True)

    def add(x, y, plan):
        return plan.with_data(plan(x.data, y.data) + plan(x.data, y.data))

    write_exported("sharded", add, x, x, pattern, vjp_order=1)
    write("sharded.pickle", pickle.dumps(x))
    write("sharded plan.pickle", pickle.dumps(pattern))
    settings = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, PROCESS, tmp_path]
    finished = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, timeout=180)
    assert "read and called" in finished.stdout, finished.stderr


def test_what_is_written_can_be_read_by_eye_and_what_a_later_version_adds_is_named(plan):
    written = export.export(jax.jit(lambda plan: plan))(plan).serialize()
    for part in ("jax_sparse_grad.SparseAddPlan", "jax_sparse_grad.Union", json.dumps({"shape": SHAPE})):
        assert part.encode() in written
    later = written.replace(b'{"shape"', b'{"shale"')
    with pytest.raises(ValueError, match=r"this SparseAddPlan is of another version .*, which has \['shale'\]"):
        export.deserialize(bytearray(later))


def through_numpy(tree):
    file = io.BytesIO()
    np.savez(file, *jax.tree.leaves(tree))
    file.seek(0)
    return jax.tree.unflatten(jax.tree.structure(tree), np.load(file).values())


DUPLICATES = [copy.copy, copy.deepcopy, lambda tree: pickle.loads(pickle.dumps(tree)), through_numpy]


@pytest.mark.parametrize("duplicate", DUPLICATES, ids=["copy", "deepcopy", "pickle", "numpy"])
def test_copies_of_plans_are_alike_and_add(plan, operands, duplicate):
    values, again = [values for _, values in operands], duplicate(plan)
    alike(again, plan)
    np.testing.assert_array_equal(again(*values), plan(*values))


class TestSharded:
    @pytest.mark.parametrize("case", CASES, ids=str)
    def test_pickles_come_back_to_their_devices(self, rng, case):
        mesh, axis, _ = make_mesh(*case)
        x = sharded.partition(random_matrix(rng, 60), mesh, axis)
        x = x.with_data(x.data.astype(jnp.bfloat16))
        again = pickle.loads(pickle.dumps(x))
        alike(again, x)
        check_form(again, canonical=False)

    def test_pickles_and_numpy_arrays_of_plans_and_operands(self, x):
        plan = sharded.plan_sparse_add(x, x)
        again = pickle.loads(pickle.dumps(plan))
        check_form(again.with_data(again(x.data, x.data)))
        arrays, operand = through_numpy((plan, x))
        for each, values in ((again, x.data), (arrays, operand.data)):
            alike(each, plan)
            np.testing.assert_array_equal(host(each(values, values)), host(plan(x.data, x.data)))

    def test_copies(self, x):
        shallow, deep = copy.copy(x), copy.deepcopy(x)
        assert shallow.data is x.data
        alike(deep, x)
        check_form(deep, canonical=False)
        expected = dense_of(x)
        x.data.delete()
        np.testing.assert_array_equal(dense_of(deep), expected)

    def test_what_is_traced_cannot_be_pickled(self, x):
        with pytest.raises(TypeError, match="a `RowSharded` must be concrete to be pickled, got a traced array"):
            jax.jit(pickle.dumps)(x)

    def test_devices_that_are_missing_are_named(self, x):
        devices = b'"device_ids": [0, 1, 2, 3, 4, 5, 6, 7]'
        written = export.export(jax.jit(lambda x: x.data))(x).serialize()
        elsewhere = written.replace(devices, devices.replace(b"7", b"9"))
        assert elsewhere != written
        message = r"a mesh of 8 devices \(axes {'rows': 8}\) needs devices with the same ids; \[9\] are missing"
        with pytest.raises(ValueError, match=message):
            export.deserialize(bytearray(elsewhere))
