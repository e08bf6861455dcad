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


def test_learn_graph(tmp_path, capsys):
    learn_graph = load("learn_graph", "matplotlib", "optax", "sklearn", "tqdm")
    result = learn_graph.main(images=200, steps=5, draws=1, output=tmp_path)
    out = capsys.readouterr().out
    assert out.startswith("sparse_add (TensorFlow's SparseAdd)")
    assert "A's values receive [0.1, 0.3, 0.4], B's values [0.2, 0.3]" in out
    assert result.gradient_error < 1e-2
    assert 0.5 < result.accuracy_before <= 1
    assert 0.5 < result.accuracy_after <= 1
    assert np.isfinite(result.steps_per_second)
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


def test_heat_equation(tmp_path, capsys):
    heat_equation = load("heat_equation", "matplotlib", "optax", "scipy", "skfem", "tqdm")
    result = heat_equation.main(refinements=2, steps=6, descent_steps=10, output=tmp_path)
    assert "by jax.grad" in capsys.readouterr().out
    assert result.state_error < 1e-4
    assert result.state_error_double < 1e-10
    assert result.gradient_error < 1e-6
    assert result.field_error_after < 0.9 * result.field_error_constant <= 0.9 * result.field_error_before
    assert np.isfinite(result.steps_per_second)
    assert result.plot.read_bytes().startswith(b"\x89PNG")


def test_accumulate_gradients(tmp_path, capsys):
    accumulate = load("accumulate_gradients", "matplotlib", "optax")
    sizes = {"micro_batches": 4, "documents": 8, "width": 8, "steps": 3, "rounds": 2}
    result = accumulate.main(2_000, (20_000,), **sizes, output=tmp_path)
    out = capsys.readouterr().out
    assert result.error < 1e-5
    assert result.error_dense < 1e-5
    assert result.overflow.startswith("`nse` must be at least")
    assert result.poisoned == 1
    assert "rows are silently missing" in out
    assert ": 0 rows are silently missing" not in out
    sparse, dense = result.losses
    np.testing.assert_allclose(sparse, dense, rtol=1e-5)
    assert sparse[-1] < sparse[0]
    assert all(np.isfinite(ratios).all() for ratios in result.slower.values())
    assert result.larger[accumulate.DENSE][0] > 2
    assert result.plot.read_bytes().startswith(b"\x89PNG")


def test_sharded(tmp_path, capsys):
    sharded = load("sharded", "matplotlib", "scipy")
    result = sharded.main(2_000, 20_000, 4_000, (4,), steps=3, rounds=1, output=tmp_path)
    assert "communicates, forward and backward: nothing" in capsys.readouterr().out
    assert result.skew_before > 2
    assert result.skew_after < 1.2
    assert result.moved_alike
    assert result.sum_error == 0
    assert result.gradient_error == 0
    assert result.collectives == []
    assert np.all(np.diff(result.losses) < 0)
    assert all(np.isfinite(list(times.values())).all() for times in result.milliseconds.values())
    assert result.plot.read_bytes().startswith(b"\x89PNG")


# What TensorFlow 2.21 gets right, and where it says that it cannot; all else is silently wrong.
TENSORFLOW_RIGHT = {
    "sum: sorted",
    "sum: 48,000 entries",
    "sum: threshold",
    "gradient: sorted",
    "gradient: threshold",
    "SparseAddGrad: sorted",
    "SparseAddGrad: 48,000 entries",
    "dense + sparse: unsorted, duplicated",
}
TENSORFLOW_RAISES = {"sum: bfloat16", "sum: vector values", "vmap: results of two sizes"}


def test_from_tensorflow(tmp_path, capsys, monkeypatch):
    from_tensorflow = load("from_tensorflow", "matplotlib")
    # One after the other in one test: most of the time is compilation, which the second run finds done.
    for installed in (False, True) if importlib.util.find_spec("tensorflow") else (False,):
        with monkeypatch.context() as patch:
            if not installed:
                patch.setitem(sys.modules, "tensorflow", None)  # an import of it fails
            result = from_tensorflow.main(output=tmp_path / str(installed))
        out = capsys.readouterr().out

        assert [case.name for case in result.cases if not case.ours_right] == []
        assert {case.name for case in result.cases if case.tensorflow_right} == TENSORFLOW_RIGHT
        assert {case.name for case in result.cases if str(case.tensorflow).startswith("raises")} == TENSORFLOW_RAISES
        assert {case.name for case in result.cases} == set(from_tensorflow.RECORDED)
        assert result.differences == []

        assert all(case.recorded is not installed for case in result.cases)
        assert ("RECORDED" in out) is not installed
        assert f"TensorFlow {result.version}" in out
        assert out.count("WRONG") == 9
        # The lines shown are those that ran, beside each other.
        assert "total = tf.sparse.add(first, second, thresh)" in out
        assert "| total = jsg.sparse_add(a, x, shape, b, y, shape, thresh)\n" in out
        assert "| return jsg.add(dense, BCOO((y, b), shape=shape))\n" in out
        assert result.plot.read_bytes().startswith(b"\x89PNG")


def test_from_tensorflow_notices_what_is_wrong_or_not_as_recorded(capsys):
    from_tensorflow = load("from_tensorflow", "matplotlib")
    task = from_tensorflow.TASKS[0]
    case = from_tensorflow.solve(None, task._replace(ours=task.numpy), "unsorted")
    mended = case._replace(tensorflow=case.truth)
    assert (case.tensorflow_right, mended.tensorflow_right) == (False, True)
    assert not case._replace(ours=case.tensorflow).ours_right
    assert from_tensorflow.print_differences([case]) == []
    assert from_tensorflow.print_differences([case, mended]) == ["sum: unsorted"]
    assert "[1.0, 10.0, 22.0, 3.0]" in capsys.readouterr().out
