"""The house: its rooms, the direction of imports, the public names, and what no room may contain."""

import ast
import pathlib

import pytest

import jax_sparse_grad as jsg

PACKAGE = pathlib.Path(jsg.__file__).parent

# Each module may import only those above it.
ROOMS = [
    "_validation",
    "_checks",
    "_primitives",
    "_keys",
    "_buckets",
    "_search",
    "_merge",
    "_union",
    "_numeric",
    "_plan",
    "_sparse_add_grad",
    "_sparse_add",
    "_containers",
    "__init__",
]
RUNTIME = {"jax", "numpy", "jax_sparse_grad"}
STANDARD = {
    "__future__",
    "collections",
    "concurrent",
    "contextlib",
    "dataclasses",
    "functools",
    "itertools",
    "math",
    "operator",
    "typing",
}


def imports(room):
    """The dotted names that a module imports, down to the imported names."""
    tree = ast.parse((PACKAGE / f"{room}.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{room} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_is_a_known_room():
    assert sorted(path.stem for path in PACKAGE.glob("*.py")) == sorted(ROOMS)


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_upwards_only(room):
    above = ROOMS[: ROOMS.index(room)]
    for name in imports(room):
        parts = name.split(".")
        assert parts[0] in RUNTIME | STANDARD, f"{room} imports {name}"
        assert "_src" not in parts, f"{room} imports {name}"
        if parts[0] == "jax_sparse_grad":
            assert parts[1] in above, f"{room} imports {name}"


def test_one_room_knows_the_containers_of_jax():
    assert [room for room in ROOMS if any(name.startswith("jax.experimental.sparse") for name in imports(room))] == [
        "_containers"
    ]


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_is_asserted_at_run_time(room):
    tree = ast.parse((PACKAGE / f"{room}.py").read_text())
    assert not any(isinstance(node, ast.Assert) for node in ast.walk(tree))


def test_star_import_shows_the_public_names():
    names = {}
    exec("from jax_sparse_grad import *", names)
    names.pop("__builtins__")
    assert sorted(names) == [
        "SparseAddGradOutput",
        "SparseAddOutput",
        "SparseAddPlan",
        "add",
        "add_n",
        "plan_sparse_add",
        "sparse_add",
        "sparse_add_grad",
    ]
    assert all(names[name].__module__ in {f"jax_sparse_grad.{room}" for room in ROOMS} for name in names)


@pytest.mark.parametrize("name", ["sparse_add", "sparse_add_grad", "plan_sparse_add", "add", "add_n"])
def test_every_public_function_says_what_it_needs(name):
    text = getattr(jsg, name).__doc__
    for section in ("Args:", "Returns:", "Raises:", "Example:", "Mirrors"):
        assert section in text


def test_the_package_is_typed():
    assert (PACKAGE / "py.typed").exists()
