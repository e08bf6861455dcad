"""The pages keep their word: each snippet runs alone and prints what it says, and what they name exists."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

import jax_sparse_grad as jsg

ROOT = pathlib.Path(__file__).parent.parent
PATHS = [ROOT / "README.md", ROOT / "examples" / "RECIPES.md", ROOT / "examples" / "BENCHMARKS.md"]
README, RECIPES, BENCHMARKS = PAGES = [path.read_text() for path in PATHS]
BOTH = README + RECIPES
SNIPPETS = re.findall(r"```python\n(.*?)```", BOTH, re.DOTALL)
PEERS = ("equinox", "flax", "networkx", "optax", "orbax", "scipy")  # the extra `recipes`
AT_HAND = {"jax", "jax_sparse_grad", "numpy", *sys.stdlib_module_names}


def imported(snippet):
    """The packages that it imports, but those that are always there."""
    lines = re.findall(r"^(?:from|import) (.*)$", snippet, re.MULTILINE)
    names = {part.split()[0].split(".")[0] for line in lines for part in line.split(" import ")[0].split(",")}
    return names - AT_HAND


def title(snippet):
    """The last words in bold, or the last heading, before it, where other snippets have powers and comments."""
    prose = re.sub(r"```.*?```", "", BOTH[: BOTH.index(snippet)], flags=re.DOTALL)
    return re.findall(r"\*\*([^*]+)\*\*|^#+ (.*)$", prose, re.MULTILINE)[-1]


@pytest.mark.slow  # a process each; in CI with the wheel alone
@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: "".join(title(snippet)).strip(" .,"))
def test_snippet_runs_alone_and_prints_its_comments(snippet, tmp_path):
    peers = imported(snippet)
    for package in peers:
        pytest.importorskip(package, reason=f"{package} is not installed (extra `recipes`)")
    # As a user's process: without the settings of the tests. What peers warn of is theirs.
    settings = {name: value for name, value in os.environ.items() if not name.startswith(("XLA_", "JAX_"))}
    command = [sys.executable, *([] if peers else ["-W", "error"]), "-c", snippet]
    run = subprocess.run(command, env=settings, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr

    expected = re.findall(r"^ *print\(.*\)  # (.*)$", snippet, re.MULTILINE)
    assert run.stdout.splitlines() == expected
    assert len(expected) == snippet.count("print(") > 0


def test_the_snippets_are_those_of_the_front_page_and_the_recipes():
    assert len(SNIPPETS) == 1 + 5 + RECIPES.count("\n## ")
    assert "Twelve more" in README
    assert RECIPES.count("\n## ") == 12
    assert imported(SNIPPETS[0]) == set()
    assert set().union(*map(imported, SNIPPETS)) == set(PEERS)


def test_the_readme_is_short_and_its_two_commands_stand_alone_on_their_lines():
    for command in (
        "pip install -e '.[examples]' && python examples/quickstart.py",
        "pip install -e '.[test]' && python -m pytest",
    ):
        assert f"\n{command}\n" in README
    assert len(README.splitlines()) <= 200
    assert len(README.split()) <= 1600


def test_the_guide_names_every_public_name():
    for module in (jsg, jsg.sharded):
        assert [name for name in module.__all__ if not re.search(rf"\b{name}\b", module.__doc__)] == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)
def test_every_file_and_section_that_a_page_names_exists(path):
    page = path.read_text()
    for name in re.findall(r"\b(?:examples|tests|jax_sparse_grad)/[\w./]+\w", page):
        assert (ROOT / name).exists() or name == "examples/output", name
    for link in re.findall(r"\]\((?!https://)([^)]*)\)", page) + re.findall(r'src="([^"]*)"', page):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        assert target.exists(), link
        sections = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in {section.lower().replace(" ", "-") for section in sections}, link
