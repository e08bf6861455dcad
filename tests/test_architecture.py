"""The direction of imports, and what is public."""

import ast
import pathlib
import sys

import pytest

import jax_sparse_grad as jsg

PACKAGE = pathlib.Path(jsg.__file__).parent

# Each module may import only those before it.
MODULES = [
    *("_types", "_concrete", "_arguments", "_auto_axes", "_checkify", "_batching", "_keys", "_data_checks"),
    *("_host", "_cpu", "_tpu", "_gpu", "_platforms", "_union", "_values", "_threshold", "_sum"),
    *("_containers", "_plan", "_sparse_add_grad", "_sparse_add", "_weights", "_add"),
    *("sharded._mesh", "sharded._saving", "sharded._operand", "sharded._sum"),
    *("sharded._balance", "sharded._loading", "sharded._plan", "sharded._add", "sharded._repartition"),
    *("sharded", "_serialization", ""),
]
RUNTIME = {"jax", "numpy", "jax_sparse_grad", *sys.stdlib_module_names}
PUBLIC = {
    *("sparse_add", "SparseAddOutput", "sparse_add_grad", "SparseAddGradOutput", "plan_sparse_add", "SparseAddPlan"),
    *("add", "subtract", "add_n", "sum_duplicates", "empty", "sharded"),
}


def path_of(module):
    path = PACKAGE.joinpath(*module.split(".")) if module else PACKAGE
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(module):
    """The dotted names that a module imports, down to the imported names."""
    tree = ast.parse(path_of(module).read_text())
    branches = [each for each in ast.walk(tree) if isinstance(each, ast.If)]
    checkers = [each for branch in branches if ast.unparse(branch.test) == "TYPE_CHECKING" for each in ast.walk(branch)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            if node.module != "typing_extensions" or node not in checkers:  # type checkers know it, installed or not
                yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(name):
    """The module that a dotted name of this package lies in."""
    inside = name.removeprefix("jax_sparse_grad").removeprefix(".")
    return max((module for module in MODULES if f"{inside}.".startswith(f"{module}.") or not module), key=len)


def test_every_module_has_its_place():
    assert sorted(PACKAGE.rglob("*.py")) == sorted(map(path_of, MODULES))


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_backwards_only(module):
    for name in imports(module):
        parts = name.split(".")
        assert parts[0] in RUNTIME, f"{module} imports {name}"
        assert "_src" not in parts, f"{module} imports {name}"
        if parts[0] == "jax_sparse_grad":
            assert module_of(name) in MODULES[: MODULES.index(module)], f"{module} imports {name}"


def test_the_public_names_lie_in_modules_of_this_package():
    assert set(jsg.__all__) == PUBLIC
    for package in (jsg, jsg.sharded):
        for public in (getattr(package, name) for name in package.__all__ if name != "sharded"):
            assert public.__module__ == f"jax_sparse_grad.{module_of(public.__module__)}"
            assert public.__doc__
