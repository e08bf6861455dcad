"""The examples run, in a small set-up, and their figures are sound."""

import importlib.util
import json
import pathlib
import sys

import jax
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
    quickstart = load("quickstart", "matplotlib", "optax", "tqdm")
    result = quickstart.main(steps=60, output=tmp_path)
    out = capsys.readouterr().out
    assert "A + B: 514 + 1,454 entries, 344 of them shared, make 1,624" in out
    assert "found 20 of these 20" in out
    assert "0 false finds" in out
    assert result.gradient_error < 1e-3
    assert result.unmerged_error > quickstart.GAUGE_ERROR
    assert np.abs(result.learnt - result.truth).max() < 0.3
    assert result.plot.read_bytes().startswith(b"\x89PNG")


def test_the_quickstart_is_short():
    assert len((EXAMPLES / "quickstart.py").read_text().splitlines()) <= 150


def test_learn_graph(tmp_path):
    learn_graph = load("learn_graph", "matplotlib", "optax", "sklearn", "tqdm")
    result = learn_graph.main(images=200, steps=5, output=tmp_path)
    assert all(0.5 < accuracy <= 1 for accuracy in (result.nearest, result.untrained, result.learnt))
    assert np.isfinite(result.weights).all()
    assert np.ptp(result.weights) > 0
    assert result.plot.read_bytes().startswith(b"\x89PNG")


def test_how_it_works(tmp_path, capsys):
    how_it_works = load("how_it_works", "matplotlib")
    result = how_it_works.main(output=tmp_path)
    assert "jsg.add(A, B) stores 4, JAX's own A + B 5" in capsys.readouterr().out
    np.testing.assert_array_equal(result.total.todense(), [[1, 0, 10], [0, 22, 0], [3, 0, 0]])
    by_a, by_b, _ = (gradient.todense().tolist() for gradient in result.gradients)
    assert by_a == [[2, 0, 0], [0, 44, 0], [6, 0, 0]]
    assert by_b == [[0, 0, 20], [0, 44, 0], [0, 0, 0]]
    assert result.plot.read_bytes().startswith(b"\x89PNG")


def test_benchmark(tmp_path, capsys, monkeypatch):
    benchmark = load("benchmark", "matplotlib")
    missing, find_spec = ("torch", "graphblas"), benchmark.find_spec
    monkeypatch.setattr(benchmark, "find_spec", lambda name: None if name in missing else find_spec(name))
    figures = benchmark.main(["--sizes", "1000", "--rounds", "2", "--no-extras", "--output", str(tmp_path)])
    out, err = capsys.readouterr()
    assert "problem 1 of 1 (1,000)" in out + err
    assert (out + err).count("left out: not installed") == 1
    assert {"PyTorch COO", "PyTorch CSR", "GraphBLAS"} <= figures["left_out"]["CPU"].keys()
    assert "median ms (our median / this one)" in out
    ours = [each for each in figures["timings"] if each["contender"] == "ours"]
    assert {each["operation"] for each in ours} >= {"forward", "forward + backward", "sparse_add_grad alone"}
    assert all(0 < each["milliseconds"] < 1000 for each in ours)
    assert (tmp_path / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "benchmark.json").exists()


def test_benchmark_without_a_device(tmp_path, capsys, monkeypatch):
    absent_devices, benchmark, compiled_benchmark = map(load, ("absent_devices", "benchmark", "compiled_benchmark"))

    def trace(device, function, *arguments):
        jax.eval_shape(function, *arguments)
        return absent_devices.Compiled("", 1.25, 2.0, temporary_bytes=3_500_000, model_milliseconds=None)

    monkeypatch.setattr(absent_devices, "missing", lambda device: None)
    monkeypatch.setattr(absent_devices, "compile_for", trace)
    monkeypatch.setattr(absent_devices, "count", lambda text: absent_devices.Counts(launches=17, syncs=1, sorts=2))
    platforms = jax.config.jax_platforms
    options = ["--compile-for", "h100", "--sizes", "1000", "--markdown", "--output", str(tmp_path)]
    figures = benchmark.main(options)["compilations"]
    jax.config.update("jax_platforms", platforms)
    out = capsys.readouterr().out
    assert out.count("| launches | syncs | sorts | temporary MB | compile s |") == 2
    for contender in ("ours", "ours, assume_canonical=True", "ours, shape= given", "ours, add of BCOO", "JAX BCOO"):
        assert f"| {contender} | 17 | 1 | 2 | 3.5 | 2.0 |" in out
    assert "| PyTorch COO | - | - | - | - | - |" in out
    ours = [(each["problem"], each["operation"]) for each in figures if each["contender"] == "ours"]
    assert ours == [
        ("1,000", "forward"),
        ("1,000", "forward + backward"),
        ("1,000", "sparse_add_grad alone"),
        ("1,000", "forward + backward, ours planned before"),
        ("vmap of 16 x 5,000", "forward"),
    ]
    assert json.loads((tmp_path / "benchmark_h100.json").read_text())["compilations"] == figures

    on_tpu = compiled_benchmark.Compilation(**figures[0])._replace(device="v5e", model_milliseconds=0.125)
    assert "compiled, not run  model ms  sorts  temporary MB  compile s" in compiled_benchmark.table([on_tpu])
    assert on_tpu.row["model ms"] == "0.125"
    assert on_tpu._replace(model_milliseconds=None).row["model ms"] == "-"  # an operation that the model does not know


def test_benchmark_says_what_compiling_needs(capsys, monkeypatch):
    absent_devices, benchmark = load("absent_devices"), load("benchmark")
    load("compiled_benchmark")
    monkeypatch.setitem(absent_devices.PACKAGES, "v5e", ("no-such-compiler",))
    with pytest.raises(SystemExit, match=r"v5e needs its compiler: no-such-compiler .* \(extra `platforms`\)"):
        benchmark.main(["--compile-for", "v5e"])
    with pytest.raises(SystemExit):
        benchmark.main(["--compile-for", "v5e", "--rounds", "2", "--no-extras"])
    assert "takes no --rounds and --no-extras" in capsys.readouterr().err


def test_heat_equation(tmp_path):
    heat_equation = load("heat_equation", "matplotlib", "optax", "scipy", "skfem", "tqdm")
    result = heat_equation.main(refinements=2, steps=6, descent=10, output=tmp_path)
    assert result.state_error < 1e-4
    assert result.error_after < 0.9 * result.error_constant <= 0.9 * result.error_before
    assert result.plot.read_bytes().startswith(b"\x89PNG")


def test_accumulate_gradients(tmp_path, capsys):
    accumulate = load("accumulate_gradients", "matplotlib", "optax", "tqdm")
    result = accumulate.main((2_000, 20_000), micro_batches=4, documents=8, steps=3, output=tmp_path)
    assert "100% of the values are NaN" in capsys.readouterr().out
    assert result.overflow.startswith("`nse` must be at least")
    np.testing.assert_allclose(result.losses["sparse"], result.losses["dense"], rtol=1e-5)
    assert result.megabytes["dense"][-1] > 2 * result.megabytes["sparse"][-1]
    assert all(np.isfinite(each).all() for each in result.milliseconds.values())
    assert result.plot.read_bytes().startswith(b"\x89PNG")


def test_sharded(tmp_path, capsys):
    sharded = load("sharded", "matplotlib", "scipy")
    result = sharded.main(2_000, 20_000, steps=3, output=tmp_path)
    assert "communicates: nothing" in capsys.readouterr().out
    assert result.skews[0] > 2
    assert result.skews[1] < 1.2
    assert result.errors == (0, 0)
    assert result.collectives == []
    assert np.all(np.diff(result.losses) < 0)
    assert np.isfinite(result.milliseconds).all()
    assert result.plot.read_bytes().startswith(b"\x89PNG")


def test_from_tensorflow(capsys, monkeypatch):
    from_tensorflow = load("from_tensorflow")
    # One after the other in one test: most of the time is compilation, which the second run finds done.
    for installed in (False, True) if importlib.util.find_spec("tensorflow") else (False,):
        with monkeypatch.context() as patch:
            if not installed:
                patch.setitem(sys.modules, "tensorflow", None)  # an import of it fails
            losses, answers = from_tensorflow.main(steps=3)
        assert len(losses) == 1 + installed
        assert losses[0][0] > losses[0][-1]
        np.testing.assert_allclose(losses[-1], losses[0], rtol=1e-5)
        for answer in answers:
            np.testing.assert_array_equal(answer.ours, answer.right)
        assert capsys.readouterr().out.count("WRONG") == 8 * installed


def test_no_example_is_long():
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 220, path.name
