"""Another process, which `test_serialization.py` starts: it reads what that one wrote, and calls it."""

import pathlib
import pickle
import sys

import jax
import numpy as np

sys.modules["flatbuffers"] = None  # importing needs none
import jax_sparse_grad as jsg  # noqa: E402

del sys.modules["flatbuffers"]
from jax import export  # noqa: E402
from jax.sharding import NamedSharding, PartitionSpec  # noqa: E402


def check(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def main(folder):
    def read(name):
        return pickle.loads((folder / f"{name}.pickle").read_bytes())

    def call(name, *arguments):
        return export.deserialize((folder / f"{name}.exported").read_bytes()).call(*arguments)

    (a, b, shape), (u, v), expected = read("operands")
    plan = jsg.plan_sparse_add(a, b, shape=shape, assume_canonical=True)
    check(call("by plan", plan, u, v), expected["sum"])
    check(jax.grad(lambda u: (call("by plan", plan, u, v) ** 2).sum())(u), expected["gradient"])
    check(read("plan")(u, v), expected["sum"])
    made, total, gradients = call("trees", plan, u, v)
    assert isinstance(made, jsg.SparseAddPlan)
    check(made(u, v), expected["sum"])
    check(total, jsg.SparseAddOutput(plan.indices, expected["sum"], shape))
    check(gradients, jsg.SparseAddGradOutput(*expected["cotangents"]))

    x, plan = read("sharded"), read("sharded plan")
    assert x.data.sharding.is_equivalent_to(NamedSharding(x.mesh, PartitionSpec("rows")), 1)
    check(plan(x.data, x.data).sum(), 2 * x.data.sum())
    total = call("sharded", x, x, plan)
    assert total.mesh == x.mesh
    check(total.data.sum(), 4 * x.data.sum())
    gradient = jax.grad(lambda u: call("sharded", x.with_data(u), x, plan).data.sum())(x.data)
    check(gradient.sum(), 2 * x.nnz.sum())
    print("read and called")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
