"""The examples run, in a small set-up, and their figures are sound."""

import importlib
import json
import pathlib
import sys

import jax
import numpy as np
import pytest

import absent_devices
import benchmark
import benchmark_contenders

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
EXTRA = "matplotlib", "optax", "scipy", "skfem", "sklearn", "tqdm"


@pytest.fixture
def run(tmp_path):
    """A function that runs an example and looks for its picture; skips where the extra `examples` is not installed."""
    for package in EXTRA:
        pytest.importorskip(package, reason=f"{package} is not installed (extra `examples`)")

    def run(name, *sizes, **options):
        result = importlib.import_module(name).main(*sizes, **options, output=tmp_path)
        assert result.plot.read_bytes().startswith(b"\x89PNG")
        return result

    return run


def test_quickstart(run, capsys):
    result = run("quickstart", steps=60)
    out = capsys.readouterr().out
    assert "A + B: 514 + 1,454 entries, 344 of them shared, make 1,624" in out
    assert "found 20 of these 20" in out
    assert "0 false finds" in out
    assert result.gradient_error < 1e-3
    assert result.unmerged_error > 0.005  # what a gauge is wrong by
    assert np.abs(result.learnt - result.truth).max() < 0.3


def test_how_it_works(run, capsys):
    result = run("how_it_works")
    assert "jsg.add(A, B) stores 4, JAX's own A + B 5" in capsys.readouterr().out
    np.testing.assert_array_equal(result.total.todense(), [[1, 0, 10], [0, 22, 0], [3, 0, 0]])
    by_a, by_b, _ = (gradient.todense().tolist() for gradient in result.gradients)
    assert by_a == [[2, 0, 0], [0, 44, 0], [6, 0, 0]]
    assert by_b == [[0, 0, 20], [0, 44, 0], [0, 0, 0]]


def test_learn_graph(run):
    result = run("learn_graph", images=200, steps=5)
    assert all(0.5 < accuracy <= 1 for accuracy in result.accuracies.values())
    assert np.isfinite(result.weights).all()
    assert np.ptp(result.weights) > 0


def test_heat_equation(run):
    result = run("heat_equation", refinements=2, steps=6, descent=20)
    assert result.state_error < 1e-4
    assert result.error_after < 0.6 * result.error_before


def test_accumulate_gradients(run, capsys):
    result = run("accumulate_gradients", 2_000, micro_batches=4, documents=8)
    assert "at most 849 are different" in (out := capsys.readouterr().out)
    assert "100% of the values are NaN" in out
    assert result.overflow.startswith("`nse` must be at least")
    np.testing.assert_allclose(result.sparse, result.dense, rtol=1e-5)
    assert result.sparse[-1] < 0.5 * result.sparse[0]
    assert 0 < result.rows[0] < result.rows[-1] <= 849


def test_sharded(run, capsys):
    result = run("sharded", 2_000, 20_000, steps=3)
    assert "communicates: nothing" in capsys.readouterr().out
    assert result.skews[0] > 2
    assert result.skews[1] < 1.2
    assert result.errors == (0, 0)
    assert result.collectives == []
    assert np.all(np.diff(result.losses) < 0)


def test_from_tensorflow(capsys, monkeypatch):
    from_tensorflow = importlib.import_module("from_tensorflow")
    # One after the other in one test: most of the time is compilation, which the second run finds done.
    for installed in (False, True) if importlib.util.find_spec("tensorflow") else (False,):
        with monkeypatch.context() as patch:
            if not installed:
                patch.setitem(sys.modules, "tensorflow", None)  # an import of it fails
            losses, answers = from_tensorflow.main(steps=3)
        assert len(losses) == 1 + installed
        assert losses[0][0] > losses[0][-1]
        np.testing.assert_allclose(losses[-1], losses[0], rtol=1e-5)
        for ours, right, *_ in answers:
            np.testing.assert_array_equal(ours, right)
        assert capsys.readouterr().out.count("WRONG") == 10 * installed


def test_benchmark(tmp_path, capsys, monkeypatch):
    def wrong(problem):
        return planned.prepare(problem._replace(operands=problem.operands[2:] * 2))

    ours, planned, *_ = benchmark.CONTENDERS["cpu"]
    missing = benchmark.Contender("missing", planned.prepare, needs="no_such_module")
    contenders = [ours, planned, missing, benchmark.Contender("wrong", wrong)]
    monkeypatch.setitem(benchmark.CONTENDERS, "cpu", contenders)
    (figures,) = benchmark.main(["--sizes", "1000", "--rounds", "2", "--output", str(tmp_path)])
    assert figures["left_out"] == {"missing": "not installed", "wrong, 1,000": "ValueError: WRONG ANSWER: sum"}
    assert "| **sum and gradient** | |" in capsys.readouterr().out
    records = [each for each in figures["records"] if each["contender"] == benchmark.OURS]
    assert {each["operation"] for each in records} == {"sum", "sum and gradient", "`sparse_add_grad` alone"}
    assert all(0 < each["value"] < 1000 for each in records)
    assert json.loads((tmp_path / "benchmark_cpu.json").read_text()) == figures


def test_the_benchmark_draws_and_publishes_what_is_saved(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra `examples`)")
    records = [
        benchmark.record(group, operation, contender, column, value, 10**entries)
        for group, columns in (("size", ("10,000", "100,000")), ("pattern", benchmark.PATTERNS))
        for operation in (benchmark.FORWARD, benchmark.BACKWARD)
        for contender, value in ((benchmark.OURS, 2.0), ("TensorFlow", 4.0), ("JAX BCOO", 80.0))
        for entries, column in enumerate(columns, 4)
    ]
    figures = {"device": "cpu", "kind": "x86_64", "cores": 2, "versions": {"jax": "1"}, "records": records}
    (tmp_path / "benchmark_cpu.json").write_text(json.dumps(figures))
    monkeypatch.setattr(benchmark.benchmark_report, "HERE", tmp_path)
    (tmp_path / "BENCHMARKS.md").write_text((EXAMPLES / "BENCHMARKS.md").read_text())
    assert benchmark.main(["--saved", "--publish", "--output", str(tmp_path)]) == [figures]
    page = (tmp_path / "BENCHMARKS.md").read_text()
    assert "<!-- cpu-machine -->\n\nx86_64, 2 cores; jax 1\n\n<!-- /cpu-machine -->" in page
    assert "| | 10,000 | 100,000 |" in page
    assert "| TensorFlow | 4.0 (0.50) | 4.0 (0.50) |" in page
    for name in ("size", "pattern"):
        assert (tmp_path / f"benchmark_{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("pattern", benchmark.PATTERNS)
def test_the_contenders_answer_each_pattern(pattern):
    problem = benchmark.draw(pattern, 400)
    rows = [benchmark_contenders.flatten(each, problem.side) for each in problem.operands[::2]]
    shared = len(np.intersect1d(*rows)) / min(map(len, rows))
    assert shared == {"half": 0.5, "same": 1, "small": 0.5, "unsorted": 0.5, "assembly": 1}.get(pattern, 0)
    assert problem.canonical == all((np.diff(each) > 0).all() for each in rows)
    np.testing.assert_array_equal(np.union1d(*rows), problem.cells)


def test_benchmark_without_a_device(tmp_path, capsys, monkeypatch):
    def trace(device, function, *arguments):
        jax.eval_shape(function, *arguments)
        return absent_devices.Compiled("", 1.25, 2.0, temporary_bytes=3_500_000, model_milliseconds=None)

    monkeypatch.setattr(absent_devices, "missing", lambda device: None)
    monkeypatch.setattr(absent_devices, "compile_for", trace)
    monkeypatch.setattr(absent_devices, "count", lambda text: absent_devices.Counts(launches=17, syncs=1, sorts=2))
    platforms = jax.config.jax_platforms
    benchmark.main(["--compile-for", "h100", "--sizes", "1000", "2000", "--output", str(tmp_path)])
    jax.config.update("jax_platforms", platforms)
    out = capsys.readouterr().out
    assert "| | launches, 1,000 | launches, 2,000 | syncs, 1,000 |" in out
    assert f"| {benchmark.OURS} | 17 | 17 | 1 | 1 | 2 | 2 | 3.5 | 3.5 | 2.0 | 2.0 |" in out
    assert "| JAX BCOO | 17 | 17 |" in out


def test_benchmark_says_what_compiling_needs(monkeypatch):
    monkeypatch.setitem(absent_devices.PACKAGES, "v5e", ("no-such-compiler",))
    with pytest.raises(SystemExit, match=r"v5e needs its compiler: no-such-compiler .* \(extra `platforms`\)"):
        benchmark.main(["--compile-for", "v5e"])


def test_no_example_is_long():
    for path in set(EXAMPLES.glob("*.py")) - set(EXAMPLES.glob("*bench*")) - {EXAMPLES / "absent_devices.py"}:
        assert len(path.read_text().splitlines()) <= 150, path.name
