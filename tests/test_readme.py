"""The README keeps its word: its code runs and prints what it says, its commands are those of the project."""

import pathlib
import re

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_code_blocks_run_and_print_their_comments(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) >= 2
    code = "".join(blocks)
    expected = re.findall(r"^print\(.*\)\s+# (.*)$", code, re.MULTILINE)
    exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.splitlines() == expected
    assert len(expected) == code.count("print(")


def test_the_two_commands_stand_alone_on_their_lines():
    for command in (
        "pip install -e '.[examples]' && python examples/quickstart.py",
        "pip install -e '.[test]' && python -m pytest",
    ):
        assert f"\n{command}\n" in README


def test_every_file_it_names_exists():
    for name in re.findall(r"\b(?:examples|tests|jax_sparse_grad)/[\w./]+\w", README):
        assert (ROOT / name).exists(), name
