"""What type checkers make of the package in a user's file, and what readers of its signatures see."""

import importlib.util
import inspect
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tomllib
import typing

import pytest

import jax_sparse_grad as jsg

ROOT = pathlib.Path(__file__).parent.parent
USER = pathlib.Path(__file__).parent / "user_types.py"

FUNCTIONS = [
    getattr(house, name)
    for house in (jsg, jsg.sharded)
    for name in house.__all__
    if inspect.isfunction(getattr(house, name))
]
METHODS = [
    jsg.SparseAddPlan.__call__,
    jsg.SparseAddPlan.with_data,
    jsg.sharded.ShardedPlan.__call__,
    jsg.sharded.ShardedPlan.with_data,
    jsg.sharded.RowSharded.with_data,
]


def command(checker):
    """How to run it: as found on the path, or as a module of this Python."""
    if found := shutil.which(checker):
        return [found]
    if importlib.util.find_spec(checker):
        return [sys.executable, "-m", checker]
    pytest.skip(f"{checker} is not installed (pip install 'pyright[nodejs]' mypy)")


def run(arguments, folder, **environment):
    """What it prints; it finds the package of this folder, wherever another one is installed."""
    done = subprocess.run(
        arguments, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def mypy():
    # With the settings of the package, so that it finds in the cache what was found when that was checked.
    arguments = [f"--python-executable={sys.executable}", "--no-pretty", "--hide-error-context", str(USER)]
    out = run([*command("mypy"), *arguments], ROOT, MYPYPATH=str(ROOT))
    return {int(line): text for line, text in re.findall(r"^.*user_types\.py:(\d+): error: (.*)$", out, re.MULTILINE)}


@pytest.fixture(scope="module")
def pyright(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pyright")
    shutil.copy(USER, folder)  # to where its settings are: they must not name files outside
    settings = {"extraPaths": [str(ROOT)], "typeCheckingMode": "strict"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings))
    out = run([*command("pyright"), "--outputjson", f"--pythonpath={sys.executable}"], folder)
    found = [each for each in json.loads(out)["generalDiagnostics"] if each["severity"] == "error"]
    return {each["range"]["start"]["line"] + 1: each["message"] for each in found}


@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_a_strict_checker_refuses_what_is_marked_and_accepts_all_else(checker, request):
    reported = request.getfixturevalue(checker)
    lines = USER.read_text().splitlines()
    marked = {number for number, line in enumerate(lines, 1) if line.endswith("  # refused")}
    assert len(marked) > 50
    assert {number: text for number, text in reported.items() if number not in marked} == {}
    assert [lines[number - 1].strip() for number in sorted(marked - set(reported))] == []


@pytest.mark.parametrize("public", FUNCTIONS + METHODS, ids=lambda public: f"{public.__module__}.{public.__qualname__}")
def test_every_parameter_has_a_type_of_its_own(public):
    signature, hints = inspect.signature(public), typing.get_type_hints(public)
    names = [name for name in signature.parameters if name != "self"]
    assert set(hints) == {*names, "return"}
    assert all(hints[name] is not typing.Any for name in hints)


def test_the_version_has_one_source():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" in settings["project"]["dynamic"]
    assert ROOT / settings["tool"]["hatch"]["version"]["path"] == pathlib.Path(jsg.__file__)
    assert re.fullmatch(r"\d+\.\d+\.\d+", jsg.__version__)
