"""Compiled for an H100 and a TPU v5e, which are not there: programs stay within budgets, and nothing fails.

The compilers come with the extra `platforms`. What is counted in their programs is exact; time there is not known.
"""

import contextlib
import functools
import json
import os
import subprocess
import sys
from types import SimpleNamespace
from typing import NamedTuple

import pytest

import absent_devices
import platforms_process

ENTRIES = 200  # where only compilation is asked for, whose time for a TPU grows with the length of sorts

pytestmark = pytest.mark.platforms


def on(*devices):
    """A test on devices, skipped where their compilers are missing."""
    reasons = {device: absent_devices.missing(device) for device in devices}
    marks = {device: pytest.mark.skipif(reason is not None, reason=str(reason)) for device, reason in reasons.items()}
    return pytest.mark.parametrize("device", [pytest.param(device, marks=mark) for device, mark in marks.items()])


class Compilers:
    """A process that compiles programs, and what it said of them. Another takes its place if it dies."""

    def __init__(self, log):
        self.log = log
        self.process = None
        self.figures = functools.cache(self._figures)

    def _figures(self, device, program, entries=ENTRIES):
        if self.process is None:
            self.process = self._start()
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps([device, program, entries]), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            self.close()
            pytest.fail(f"the compiler died:\n{self.log.read_text()[-5000:]}")
        answer = json.loads(answer)
        if "error" in answer:
            pytest.fail(answer["error"])
        return SimpleNamespace(**answer)

    def _start(self):
        path = [os.path.dirname(absent_devices.__file__), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path)), "XLA_FLAGS": ""}
        command = [sys.executable, platforms_process.__file__]
        with self.log.open("w") as log:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log, "text": True}
            return subprocess.Popen(command, env=environment, **pipes)

    def close(self):
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


@pytest.fixture(scope="session")
def compilers(tmp_path_factory):
    compilers = Compilers(tmp_path_factory.mktemp("compilers") / "log.txt")
    yield compilers
    compilers.close()


class Budget(NamedTuple):
    """The most that a program may take.

    seconds: of all processors together, for compilation. Where the machine is slow, that many times what BCOO takes.
    """

    launches: int
    syncs: int
    seconds: tuple[float, float] | None = None


# For two operands of 10^6 entries; `vmap`: 16 times 5,000. A sum in JAX, BCOO + `sum_duplicates`,
# has 22 to 26 launches, one of which is a sort.
ON_H100 = {
    "sparse_add": Budget(launches=40, syncs=1, seconds=(12, 1.5)),
    "sparse_add_of_canonical": Budget(launches=28, syncs=0, seconds=(6, 0.75)),
    "forward_and_backward": Budget(launches=44, syncs=1),
    "add": Budget(launches=44, syncs=1),
    "sparse_add_grad": Budget(launches=14, syncs=1),
    "planned_forward_and_backward": Budget(launches=6, syncs=0),
    "vmap": Budget(launches=60, syncs=1),
}


@on("h100")
@pytest.mark.parametrize("program", ON_H100)
def test_sums_of_operands_in_order_are_a_few_kernels(compilers, device, program):
    entries = 10**5 if program == "vmap" else 10**6  # fewer take fewer rounds of a search
    budget, ours = ON_H100[program], compilers.figures(device, program, entries)
    assert ours.launches <= budget.launches
    assert ours.syncs <= budget.syncs
    assert ours.sorts == 0
    if budget.seconds and ours.processor_seconds > budget.seconds[0]:
        bcoo = compilers.figures(device, "bcoo", entries)
        assert ours.processor_seconds <= budget.seconds[1] * bcoo.processor_seconds


@on("v5e")
@pytest.mark.parametrize(
    ("program", "share", "of"),
    [
        ("sparse_add", 0.5, "bcoo"),
        ("forward_and_backward", 0.8, "bcoo_forward_and_backward"),
        ("sparse_add_grad", 0.8, "bcoo_forward_and_backward"),
    ],
)
def test_sums_take_less_of_a_tpu_than_those_of_jax(compilers, device, program, share, of):
    # At 10^4 entries the shares are no larger, and compilation takes four times as long.
    ours, theirs = (compilers.figures(device, name, 2000) for name in (program, of))
    assert ours.sorts <= 2
    assert ours.model_milliseconds <= share * theirs.model_milliseconds
    assert ours.processor_seconds <= 2 * theirs.processor_seconds


# What a program communicates: an all-reduce; three all-to-all, of indices, values and cotangents. All others nothing.
COLLECTIVES = {"sharded_add_to_dense": 1, "repartition": 3}
# Loops of unknown length, for each round of which a GPU waits for its host. This one is the program's own.
LOOPS = {"plan_carried_by_a_loop": 1}


@on("h100", "v5e")
@pytest.mark.parametrize("program", platforms_process.WITHOUT_BUDGET)
def test_public_functions_compile(compilers, device, program):
    figures = compilers.figures(device, program)
    assert figures.collectives == COLLECTIVES.get(program, 0)
    if device == "h100":
        assert figures.loops == LOOPS.get(program, 0)
