"""Time sparse addition and its gradient: this package and every other library that is installed.

Takes 30 minutes on two cores and 10 GB of memory; `--quick` takes 2 minutes and 2 GB. Needs the extra `bench`, and for
the heavy peers `bench-tensorflow` and `bench-torch`; what is not installed is left out. Torch from PyPI brings CUDA
along, 7.7 GB in all; `pip install torch --index-url https://download.pytorch.org/whl/cpu` before avoids that.

`benchmark_contenders.py` says what is timed, `benchmark_report.py` draws it. A peer whose answer is not NumPy's is left
out and named. All others run in turns, each for about 20 ms in every round, and the median of the rounds counts.
Formats are converted and programs compiled before.

Figures, tables and pictures go to `examples/output`. `--publish` puts them into BENCHMARKS.md and beside it, and
`--saved` takes figures that are there instead of measuring, for example those of a GPU on another machine.

`--compile-for h100` (or `v5e`) times nothing. It compiles for a device that need not be there, and counts what the
program would do: 2 minutes (14). Needs the extra `platforms`, Linux and x86-64; `absent_devices.py` says what counts.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import jax
import numpy as np

import benchmark_contenders
import benchmark_report
from benchmark_contenders import BACKWARD, CONTENDERS, FORWARD, OURS, PATTERNS, Contender, Problem, bcoo, draw, ours

SIZES = 10**2, 10**3, 10**4, 10**5, 10**6, 10**7
TURN, SLOW, FEW = 0.02, 1.0, 3  # seconds of a contender's turn in each round; a call of more than SLOW has FEW rounds


def progress(what: str, steps: int) -> Callable[[], Any]:
    """What to call after each step: it moves a bar, where tqdm is installed."""
    if find_spec("tqdm"):
        return import_module("tqdm").tqdm(total=steps, desc=what).update
    return lambda: print(what, "...", flush=True)


def timed(call: Callable[[], Any], repeats: int = 1) -> float:
    """Seconds per call."""
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def measure(calls: dict[Any, Callable[[], Any]], rounds: int) -> dict[Any, float]:
    """The median seconds of each call, all of which ran before, in interleaved rounds."""
    seconds = {key: timed(call) for key, call in calls.items()}
    samples: dict[Any, list[float]] = {key: [] for key in calls}
    for k in range(rounds):
        for key, call in calls.items():
            if k < FEW or seconds[key] < SLOW:
                repeats = max(1, round(TURN / max(seconds[key], 1e-7)))
                if repeats > 1:
                    call()  # after another's turn: caches and threads
                samples[key].append(timed(call, repeats))
    return {key: float(np.median(values)) for key, values in samples.items()}


def is_wrong(answer: Any, right: tuple[np.ndarray, ...], side: int) -> bool:
    """Whether indices, values or gradients are not NumPy's; indices may come in any order."""
    indices, values, *gradients = answer
    if indices is not None:
        cells = benchmark_contenders.flatten(indices, side)
        order = np.argsort(cells, kind="stable")
        values = np.asarray(values)[order]
        if not np.array_equal(cells[order], right[0]) or not np.allclose(values, right[1], rtol=1e-5):
            return True
    return any(not np.allclose(*pair, rtol=1e-6) for pair in zip(gradients, right[2:], strict=False))


def checked_calls(problem: Problem, contenders: list[Contender], left_out: dict[str, str]) -> dict[Any, Any]:
    """The calls whose answers are right, by operation and contender; why others are not among them is noted."""
    right, calls = problem.answer(), {}
    for contender in contenders:
        if left_out.get(contender.name) == "not installed":
            continue
        try:
            for operation, call in contender.prepare(problem).items():
                if is_wrong(call.read(call.run()), right, problem.side):
                    raise ValueError(f"WRONG ANSWER: {operation}")
                calls[operation, contender.name] = call.run
        except Exception as error:
            if contender.name.startswith(OURS):  # without ours, the rest is worthless
                raise
            left_out[f"{contender.name}, {problem.name}"] = f"{type(error).__name__}: {str(error).strip()[:80]}"
    return calls


def compile_seconds(problem: Problem) -> Iterator[tuple[str, str, float]]:
    """Seconds to trace and compile both passes, with nothing compiled before, and of a first call outside of `jit`."""
    for operation in (FORWARD, BACKWARD):
        for name, prepare in ((OURS, ours), ("JAX BCOO", bcoo)):
            call = prepare(problem)[operation].run
            jax.clear_caches()
            yield operation, name, timed(lambda call=call: jax.jit(call.function).lower(*call.arguments).compile())
        call = ours(problem, compiled=False)[operation].run
        jax.clear_caches()
        yield operation, f"{OURS}, first call outside of `jit`", timed(call)


def run(device: str, sizes: list[int], pattern_size: int | None, rounds: int | None, save: Any) -> dict[str, Any]:
    """All figures of a device, saved after each problem."""
    contenders, records = CONTENDERS[device], []
    left_out = {each.name: "not installed" for each in contenders if not find_spec(each.needs)}
    figures = surroundings() | {"device": device, "left_out": left_out, "records": records}
    todo = [("size", partial(draw, "half", size, f"{size:,}")) for size in sizes]
    todo += [("pattern", partial(draw, pattern, pattern_size)) for pattern in PATTERNS] if pattern_size else []
    step = progress(f"timing on the {device.upper()}", len(todo))
    for group, make in todo:
        problem = make()
        calls = checked_calls(problem, contenders, left_out)
        seconds = measure(calls, rounds or (9 if problem.entries < 10**7 else 5))
        found = [(group, *key, 1e3 * each) for key, each in seconds.items()]
        if group == "size" and problem.entries in (10**4, 10**6):
            found += [("compile", *each) for each in compile_seconds(problem)]
        records += [record(*each[:3], problem.name, each[3], problem.entries) for each in found]
        save(figures)
        step()
    return figures


def compiled_for(device: str, sizes: list[int]) -> dict[str, Any]:
    """What programs would do on a device that is not there."""
    import absent_devices

    if reason := absent_devices.missing(device):
        raise SystemExit(f"--compile-for {device} needs its compiler: {reason}")
    jax.config.update("jax_platforms", "cpu")  # before JAX looks for the device
    contenders, records = [*CONTENDERS["cpu"][:3], CONTENDERS["cpu"][-1]], []  # those that `jit` compiles
    step = progress(f"compiling for {device}", len(sizes) * len(contenders))
    for size, contender in product(sizes, contenders):
        for operation, call in contender.prepare(draw("half", size)).items():
            compiled = absent_devices.compile_for(device, call.run.function, *call.run.arguments)
            counts = absent_devices.count(compiled.text)
            on_gpu = {"launches": counts.launches, "syncs": counts.syncs}
            found = on_gpu if device == "h100" else {"model ms": compiled.model_milliseconds}
            found |= {"sorts": counts.sorts, "temporary MB": compiled.temporary_bytes / 1e6}
            found |= {"compile s": compiled.processor_seconds}
            columns = ((f"{name}, {size:,}", value) for name, value in found.items())
            records += [record("programs", operation, contender.name, *column, size) for column in columns]
        step()
    return surroundings() | {"device": device, "records": records}


def record(group: str, operation: str, contender: str, column: str, value: float, entries: int) -> dict[str, Any]:
    """One figure: milliseconds in the groups `size` and `pattern`, seconds in `compile`."""
    what = {"group": group, "operation": operation, "contender": contender, "column": column}
    return what | {"value": value, "entries": entries}


def surroundings() -> dict[str, Any]:
    """The machine and the versions that figures come from."""
    modules = ("jax", "tensorflow", "torch", "scipy", "graphblas", "sparse", "cupy", "libtpu")
    packages = {name: found[0] for name, found in metadata.packages_distributions().items() if name in modules}
    versions = {package: metadata.version(package) for _, package in sorted(packages.items())}
    kind = jax.devices()[0].device_kind if jax.default_backend() == "gpu" else platform.machine()
    return {"versions": versions, "kind": kind, "cores": os.cpu_count()}


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    """Measure, or take what is saved; print, draw and perhaps publish it."""
    parser = argparse.ArgumentParser(description="Time sparse addition and its gradient, in this and other libraries.")
    whole = {"type": lambda text: int(float(text)), "metavar": "N"}  # allows 1e6
    parser.add_argument("--sizes", nargs="+", help="entries of each operand; leaves the patterns out", **whole)
    parser.add_argument("--rounds", help="of each measurement (default: 9; 5 from 10^7 entries on)", **whole)
    parser.add_argument("--quick", action="store_true", help="10^2 to 10^5 entries, patterns of 10^4, 3 rounds")
    parser.add_argument("--only-gpu", action="store_true", help="leave out the CPU")
    parser.add_argument("--compile-for", choices=["h100", "v5e"], help="time nothing, count what it would do there")
    parser.add_argument("--saved", action="store_true", help="measure nothing, take all figures in the output folder")
    parser.add_argument("--publish", action="store_true", help="put tables and pictures into BENCHMARKS.md")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output", help="folder for figures")
    options = parser.parse_args(argv)
    if options.only_gpu and jax.default_backend() != "gpu":
        parser.error(f"--only-gpu needs a GPU; JAX has {jax.devices()[0].device_kind}")
    options.output.mkdir(parents=True, exist_ok=True)

    def save(figures: dict[str, Any]) -> None:
        text = json.dumps(figures, indent=1)
        (options.output / f"benchmark_{figures['device']}.json").write_text(text + "\n")

    results = []
    if options.saved:
        results = [json.loads(path.read_text()) for path in sorted(options.output.glob("benchmark_*.json"))]
    elif options.compile_for:
        most = 10**6 if options.compile_for == "h100" else 10**5
        results = [compiled_for(options.compile_for, options.sizes or [size for size in SIZES[2:] if size <= most])]
    else:
        sizes, pattern_size = options.sizes or list(SIZES), None if options.sizes else 10**6
        if options.quick:
            sizes, pattern_size, options.rounds = list(SIZES[:4]), 10**4, options.rounds or 3
        gpu = ["gpu"] if jax.default_backend() == "gpu" else []
        for device in gpu if options.only_gpu else ["cpu", *gpu]:
            with jax.default_device(jax.devices(device)[0]):
                results.append(run(device, sizes, pattern_size, options.rounds, save))
    for figures in results:
        save(figures)
        benchmark_report.report(figures, options.output, publish=options.publish)
    return results


if __name__ == "__main__":
    main()
