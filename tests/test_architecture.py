"""The house: its rooms, the direction of imports, and what is public."""

import ast
import pathlib
import sys

import pytest

import jax_sparse_grad as jsg

PACKAGE = pathlib.Path(jsg.__file__).parent

# Each module may import only those above it.
ROOMS = [
    "_types",
    "_concrete",
    "_arguments",
    "_auto_axes",
    "_checkify",
    "_batching",
    "_keys",
    "_data_checks",
    "_host",
    "_cpu",
    "_tpu",
    "_gpu",
    "_platforms",
    "_union",
    "_values",
    "_threshold",
    "_sum",
    "_containers",
    "_plan",
    "_sparse_add_grad",
    "_sparse_add",
    "_weights",
    "_add",
    "sharded._mesh",
    "sharded._saving",
    "sharded._operand",
    "sharded._validation",
    "sharded._sum",
    "sharded._balance",
    "sharded._loading",
    "sharded._plan",
    "sharded._add",
    "sharded._repartition",
    "sharded",
    "_serialization",
    "",
]
RUNTIME = {"jax", "numpy", "jax_sparse_grad", *sys.stdlib_module_names}


def path_of(room):
    path = PACKAGE.joinpath(*room.split(".")) if room else PACKAGE
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(room):
    """The dotted names that a module imports, down to the imported names."""
    tree = ast.parse(path_of(room).read_text())
    hidden = for_checkers(tree)
    for node in ast.walk(tree):
        if node in hidden and getattr(node, "module", "") == "typing_extensions":
            continue  # type checkers know it, installed or not
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{room} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def for_checkers(tree):
    """The nodes under `if TYPE_CHECKING:`, which do not run."""
    branches = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    return {node for branch in branches for statement in branch.body for node in ast.walk(statement)}


def room_of(name):
    """The room that a dotted name from this package lies in."""
    inside = name.removeprefix("jax_sparse_grad").removeprefix(".")
    return max((room for room in ROOMS if f"{inside}.".startswith(f"{room}.") or not room), key=len)


def test_every_module_is_a_known_room():
    assert sorted(PACKAGE.rglob("*.py")) == sorted(map(path_of, ROOMS))


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_upwards_only(room):
    above = ROOMS[: ROOMS.index(room)]
    for name in imports(room):
        parts = name.split(".")
        assert parts[0] in RUNTIME, f"{room} imports {name}"
        assert "_src" not in parts, f"{room} imports {name}"
        if parts[0] == "jax_sparse_grad":
            assert room_of(name) in above, f"{room} imports {name}"


def test_one_room_knows_shard_map():
    assert [room for room in ROOMS if "shard_map(" in path_of(room).read_text()] == ["sharded._mesh"]


def public_objects():
    return [getattr(house, name) for house in (jsg, jsg.sharded) for name in house.__all__ if name != "sharded"]


@pytest.mark.parametrize("public", public_objects(), ids=lambda public: f"{public.__module__}.{public.__name__}")
def test_every_public_object_lies_in_a_room_and_says_what_it_needs(public):
    assert public.__module__ == f"jax_sparse_grad.{room_of(public.__module__)}"
    if not isinstance(public, type):
        for section in ("Args:", "Returns:", "Raises:", "Example:", "Mirrors"):
            assert section in public.__doc__


def test_the_package_is_typed():
    assert (PACKAGE / "py.typed").exists()
