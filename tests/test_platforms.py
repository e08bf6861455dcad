"""Compiled for an H100 and a TPU v5e, which are not there: programs stay within budgets, and nothing fails.

The compilers come with the extra `platforms`. What is counted in their programs is exact; time there is not known.
"""

from typing import NamedTuple

import pytest

import absent_devices
from platform_programs import WITHOUT_BUDGET, compiled

pytestmark = pytest.mark.platforms


def on(*devices):
    """A test on devices, skipped where their compilers are missing."""
    reasons = {device: absent_devices.missing(device) for device in devices}
    marks = {device: pytest.mark.skipif(reason is not None, reason=str(reason)) for device, reason in reasons.items()}
    return pytest.mark.parametrize("device", [pytest.param(device, marks=mark) for device, mark in marks.items()])


class Budget(NamedTuple):
    """The most that a program for an H100 may take.

    entries: of each of two operands; fewer take fewer rounds of a search.
    seconds: of all processors together, for compilation. Where the machine is slow, that many times what BCOO takes.
    """

    launches: int
    syncs: int
    entries: int = 10**6
    seconds: tuple[float, float] | None = None


# A sum in JAX, BCOO + `sum_duplicates`, has 22 to 26 launches, one of which is a sort.
ON_H100 = {
    "sparse_add": Budget(launches=40, syncs=1, seconds=(12, 1.5)),
    "sparse_add of canonical": Budget(launches=28, syncs=0, seconds=(6, 0.75)),
    "forward and backward": Budget(launches=28, syncs=1, entries=2000),
    "sparse_add_grad": Budget(launches=14, syncs=0),
    "planned, forward and backward": Budget(launches=6, syncs=0),
}


@on("h100")
@pytest.mark.parametrize("program", ON_H100)
def test_sums_of_operands_in_order_are_a_few_kernels(device, program):
    budget = ON_H100[program]
    ours, counts = compiled(device, program, budget.entries)
    assert counts.launches <= budget.launches
    assert counts.syncs <= budget.syncs
    assert counts.sorts == 0
    if budget.seconds and ours.processor_seconds > budget.seconds[0]:
        bcoo, _ = compiled(device, "BCOO", budget.entries)
        assert ours.processor_seconds <= budget.seconds[1] * bcoo.processor_seconds


@on("v5e")
def test_sums_take_less_of_a_tpu_than_those_of_jax(device):
    """Than BCOO's without a gradient. At 10^4 entries the shares are no larger."""
    bcoo, _ = compiled(device, "BCOO", 1000)
    for program, share in {"sparse_add": 0.5, "forward and backward": 0.7, "sparse_add_grad": 0.7}.items():
        ours, counts = compiled(device, program, 1000)
        assert counts.sorts <= 2
        assert ours.model_milliseconds <= share * bcoo.model_milliseconds
        assert ours.processor_seconds <= 2 * bcoo.processor_seconds


# What a program communicates: an all-reduce; three all-to-all, of indices, values and cotangents. All others nothing.
COLLECTIVES = {"sharded sum with dense": 1, "repartition": 3}
# What is launched on a GPU, and how often its host waits. The loop, whose length is not known, is the program's own.
LAUNCHES = {"scan": (150, 4, 0), "plans in a loop": (450, 21, 1), "repartition": (90, 0, 0)}
ALL_OTHERS = 35, 1, 0


@on("h100", "v5e")
@pytest.mark.parametrize("program", WITHOUT_BUDGET)
def test_public_functions_compile(device, program):
    _, counts = compiled(device, program, 60)  # for a TPU, compilation takes longer if more are to be sorted
    assert counts.collectives == COLLECTIVES.get(program, 0)
    if device == "h100":
        launches, syncs, loops = LAUNCHES.get(program, ALL_OTHERS)
        assert counts.launches <= launches
        assert counts.syncs <= syncs
        assert counts.loops == loops
