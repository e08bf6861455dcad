"""The README keeps its word: each of its snippets runs alone and prints what it says, and what it names exists."""

import inspect
import os
import pathlib
import re
import subprocess
import sys

import pytest

import jax_sparse_grad as jsg

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
FRONT = README.split("\n# Reference\n")[0]
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PEERS = ("equinox", "flax", "networkx", "optax", "orbax", "scipy")  # the extra `recipes`
AT_HAND = {"jax", "jax_sparse_grad", "numpy", *sys.stdlib_module_names}


def imported(snippet):
    """The packages that it imports, but those that are always there."""
    lines = re.findall(r"^(?:from|import) (.*)$", snippet, re.MULTILINE)
    names = {part.split()[0].split(".")[0] for line in lines for part in line.split(" import ")[0].split(",")}
    return names - AT_HAND


def title(snippet):
    """The last words in bold, or the last heading, before it, where other snippets have powers and comments."""
    prose = re.sub(r"```.*?```", "", README[: README.index(snippet)], flags=re.DOTALL)
    return re.findall(r"\*\*([^*]+)\*\*|^#+ (.*)$", prose, re.MULTILINE)[-1]


@pytest.mark.slow  # a process each; in CI with the wheel alone
@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: "".join(title(snippet)).strip(" .,"))
def test_snippet_runs_alone_and_prints_its_comments(snippet, tmp_path):
    peers = imported(snippet)
    for package in peers:
        pytest.importorskip(package, reason=f"{package} is not installed (extra `recipes`)")
    # As a user's process: without the settings of the tests, except those that only make XLA compile faster. What peers
    # warn of is theirs.
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_"))}
    settings["XLA_FLAGS"] = re.sub(r"\S*device_count\S*", "", os.environ["XLA_FLAGS"])
    command = [sys.executable, *([] if peers else ["-W", "error"]), "-c", snippet]
    run = subprocess.run(command, env=settings, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr

    expected = re.findall(r"^ *print\(.*\)  # (.*)$", snippet, re.MULTILINE)
    assert run.stdout.splitlines() == expected
    assert len(expected) == snippet.count("print(") > 0


def test_the_snippets_are_those_of_the_front_page_and_the_recipes():
    assert len(SNIPPETS) >= 14
    assert SNIPPETS[0] in FRONT
    assert imported(SNIPPETS[0]) == set()
    assert set().union(*map(imported, SNIPPETS)) == set(PEERS)


def test_the_two_commands_stand_alone_on_their_lines():
    for command in (
        "pip install -e '.[examples]' && python examples/quickstart.py",
        "pip install -e '.[test]' && python -m pytest",
    ):
        assert f"\n{command}\n" in FRONT


def test_the_reference_begins_within_170_lines():
    assert len(FRONT.splitlines()) <= 170


@pytest.mark.parametrize(("module", "section"), [(jsg, "Public names"), (jsg.sharded, "Many devices")])
def test_every_public_function_is_named_with_its_arguments(module, section):
    text = README.split(f"\n## {section}\n")[1].split("\n## ")[0]
    for name in module.__all__:
        function = getattr(module, name)
        if inspect.isfunction(function):
            assert f"`{name}(" in text, name
            written = re.search(rf"`{name}\((.*?)\)`", text)[1]
            if "..." not in written:
                arguments = [part.split("=")[0].strip(" *") for part in written.split(",")]
                assert [each for each in arguments if each] == list(inspect.signature(function).parameters)


def test_every_file_and_section_that_it_names_exists():
    for name in re.findall(r"\b(?:examples|tests|jax_sparse_grad)/[\w./]+\w", README):
        assert (ROOT / name).exists() or name == "examples/output", name
    sections = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.*)$", README, re.MULTILINE)}
    for anchor in re.findall(r"\]\(#([\w-]+)\)", README):
        assert anchor in sections, anchor
