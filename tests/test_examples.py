"""The examples run, in a small set-up, and their figures are sound."""

import importlib.util
import pathlib
import sys

import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"


def load(name, *needs):
    """The module of an example; skips where what it needs (extra `examples`) is not installed."""
    for package in needs:
        pytest.importorskip(package, reason=f"{package} is not installed (extra `examples`)")
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # for dataclasses, which look their module up
    spec.loader.exec_module(module)
    return module


def test_quickstart(tmp_path, capsys):
    quickstart = load("quickstart", "matplotlib", "optax", "sklearn", "tqdm")
    result = quickstart.main(images=200, steps=5, draws=1, output=tmp_path)
    out = capsys.readouterr().out
    assert out.startswith("sparse_add (TensorFlow's SparseAdd)")
    assert "A's values receive [0.1, 0.3, 0.4], B's values [0.2, 0.3]" in out
    assert result.gradient_error < 1e-2
    assert 0.5 < result.accuracy_before <= 1
    assert 0.5 < result.accuracy_after <= 1
    assert np.isfinite(result.steps_per_second)
    assert result.plot.read_bytes().startswith(b"\x89PNG")


def test_benchmark(tmp_path, capsys):
    benchmark = load("benchmark", "matplotlib")
    figures = benchmark.main(["--sizes", "1000", "--rounds", "2", "--no-extras", "--out", str(tmp_path)])
    out = capsys.readouterr().out
    assert "ours" in out
    ours = [each for each in figures["timings"] if each["contender"] == "ours"]
    assert {each["operation"] for each in ours} >= {"forward", "forward + backward", "sparse_add_grad alone"}
    assert all(0 < each["milliseconds"] < 1000 for each in ours)
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "benchmark.json").exists()
