"""What an H100 or a TPU v5e would have to do, without either: `benchmark.py --compile-for h100` (or `v5e`).

Takes 4 minutes for the H100 and 14 for the v5e, on two cores, and 2 GB of memory. Needs the extra
`platforms`, Linux and x86-64:

    pip install -e '.[platforms]' && python examples/benchmark.py --compile-for h100

Ours and JAX's BCOO are compiled for the device, and what it would do is counted. `absent_devices.py` says how, and what
the figures mean. Nothing runs. PyTorch, the peer on a GPU, has no program that could be looked at: its figures stay
blank.

    launches, syncs    on a GPU: about 3 microseconds each; 10 to 20 and an empty queue
    model ms           on a TPU: the time by XLA's own model, which charges a gather 4 KB an element and a sort next to
                       nothing
    sorts              on a GPU some tens of launches each, counted as one
    temporary MB       memory beside operands and results, for operands in any order
    compile s          processor time, with tracing

A program that looks whether its operands are in order is counted for those that are: sorted, each entry once. On a TPU
ours does not look, nor does BCOO anywhere: they always sort.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax

import absent_devices
import benchmark
import jax_sparse_grad as jsg
from benchmark import BACKWARD, BCOO, FORWARD, HALF, OUR_CONTENDERS, OURS, Contender

SIZES = {"h100": (10**4, 10**5, 10**6), "v5e": (10**4, 10**5)}
BATCH = 16, 5_000  # matrices, and entries of each
ADD = Contender("ours, add of BCOO", partial(benchmark.prepare_bcoo, add=jsg.add))
BLANK = "PyTorch COO"


class Program(NamedTuple):
    """A function and its arguments, of which only shapes and dtypes count."""

    problem: str
    operation: str
    contender: str
    function: Callable[..., Any]
    arguments: Sequence[Any]


class Compilation(NamedTuple):
    """What was counted in a compiled program; `model_milliseconds` is None where there is no such model."""

    device: str
    problem: str
    operation: str
    contender: str
    launches: int
    syncs: int
    sorts: int
    temporary_megabytes: float
    compile_seconds: float
    processor_seconds: float
    model_milliseconds: float | None

    @property
    def row(self) -> dict[str, str]:
        """The figures by columns of a table. A TPU launches its program as a whole and never waits for the host."""
        if self.device == "h100":
            first = {"launches": str(self.launches), "syncs": str(self.syncs)}
        else:
            first = {"model ms": "-" if self.model_milliseconds is None else f"{self.model_milliseconds:.3f}"}
        rest = {"temporary MB": f"{self.temporary_megabytes:.1f}", "compile s": f"{self.processor_seconds:.1f}"}
        return {**first, "sorts": str(self.sorts), **rest}


def programs(sizes: Iterable[int]) -> list[Program]:
    """All that is compiled. Of ours, one backward pass: the others differ from it in the forward pass only."""
    found = []
    for size in sizes:
        problem = benchmark.draw(HALF, size)
        for contender in (*OUR_CONTENDERS, ADD, BCOO):
            for operation, call in contender.prepare(problem).items():
                if operation != BACKWARD or contender.name in (OURS, BCOO.name):
                    names = problem.name, operation, contender.name
                    found.append(Program(*names, call.run.function, call.run.arguments))
    count, size = BATCH
    problem = benchmark.draw(HALF, size)
    calls = {OURS: benchmark.jax_calls(problem, benchmark.forward_of(problem)), BCOO.name: BCOO.prepare(problem)}
    for name, by_operation in calls.items():
        run = by_operation[FORWARD].run
        arguments = [jax.ShapeDtypeStruct((count, *each.shape), each.dtype) for each in run.arguments]
        names = f"vmap of {count} x {size:,}", FORWARD, name
        found.append(Program(*names, jax.vmap(run.function), arguments))
    return found


def compiled(device: absent_devices.DeviceName, program: Program) -> Compilation:
    """Compile a program, and count."""
    result = absent_devices.compile_for(device, program.function, *program.arguments)
    counts = absent_devices.count(result.text)
    return Compilation(
        device,
        program.problem,
        program.operation,
        program.contender,
        counts.launches,
        counts.syncs,
        counts.sorts,
        result.temporary_bytes / 1e6,
        result.seconds,
        result.processor_seconds,
        result.model_milliseconds,
    )


def table(compilations: Iterable[Compilation], *, markdown: bool = False) -> str:
    """The figures for one problem."""
    cells: benchmark.Cells = {}
    columns: dict[str, str] = {}
    for each in sorted(compilations, key=lambda each: benchmark.OPERATIONS.index(each.operation)):
        if each.contender == BCOO.name:
            cells[each.operation, BLANK] = {}
        cells[each.operation, each.contender] = columns = each.row
    return benchmark.table("compiled, not run", columns, cells, markdown=markdown)


def main(
    device: absent_devices.DeviceName, sizes: Sequence[int] | None, folder: Path, *, markdown: bool = False
) -> dict[str, Any]:
    """Compile, count, print and save everything; returns the figures."""
    if reason := absent_devices.missing(device):
        raise SystemExit(f"--compile-for {device} needs its compiler: {reason}")
    jax.config.update("jax_platforms", "cpu")  # before JAX looks for the device
    todo = programs(sizes or SIZES[device])
    compilations = []
    with benchmark.progress(f"compiling {len(todo)} programs for {device}", len(todo)) as tick:
        for program in todo:
            compilations.append(compiled(device, program))
            tick()
    for problem in dict.fromkeys(each.problem for each in compilations):
        group = [each for each in compilations if each.problem == problem]
        print(f"\n{device}, {problem}\n\n{table(group, markdown=markdown)}")
    figures = benchmark.surroundings() | {"compilations": [each._asdict() for each in compilations]}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"benchmark_{device}.json").write_text(json.dumps(figures, indent=1) + "\n")
    print(f"\nSaved to {folder.resolve()}")
    return figures
