"""Compile a JAX function for an H100 or a TPU v5e that is not there, and count what the program would do on it.

    Needs the extra `platforms` of pyproject.toml; `missing` says what is not there. Linux on x86-64 only.

    >>> compiled = compile_for("h100", jnp.cumsum, jax.ShapeDtypeStruct((1000,), jnp.float32))
    >>> count(compiled.text).launches
    2

The compilers are the real ones; only the clock is missing, so compare counts. A GPU takes about 3 microseconds to
launch a kernel, and 10 to 20 for a sync, in which the host reads a flag while nothing runs. XLA:TPU has a model of its
costs, in milliseconds: it charges a gather 4 KB for an element, as the hardware does, and a sort almost nothing.

Import this module before jax, or set JAX_PLATFORMS=cpu yourself, and leave XLA_FLAGS empty. Without a GPU, XLA writes a
sort of its own instead of NVIDIA's: much more to launch than it would be there.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any, Literal, TypeAlias

# libtpu reads these when it is loaded. Without the first three it asks a server, which only machines with a TPU have;
# without the last, only one process at a time may load it.
os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
if "jax" not in sys.modules:  # which reads this when it is imported
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

DeviceName: TypeAlias = Literal["h100", "v5e"]

# The packages that hold the compilers.
PACKAGES = {"h100": ("jax-cuda12-plugin", "jax-cuda12-pjrt", "nvidia-cuda-nvcc-cu12"), "v5e": ("libtpu",)}

# The name that `jax.jit(...).lower(lowering_platforms=...)` has for each.
PLATFORMS = {"h100": "cuda", "v5e": "tpu"}

# What an H100 SXM says of itself: XLA's message `GpuTargetConfigProto`.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84929347584
  shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
runtime_version { major: 12 minor: 8 } platform_name: "CUDA" dnn_version_info { major: 9 minor: 7 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

# Rounds that a loop is counted with if its length is known only when it runs.
ROUNDS = 20

# Operations that only name or regroup arrays. All others are launched.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier", "call"}
COLLECTIVES = re.compile(
    r"(ragged-)?all-to-all|all-(reduce|gather)|reduce-scatter|collective-(permute|broadcast)|send|recv"
)


@dataclass(frozen=True)
class Compiled:
    """A program for a device that is not there."""

    text: str  # in XLA's notation (HLO)
    seconds: float  # to trace, lower and compile
    processor_seconds: float  # the same, of all processors together; it varies less where other programs run
    temporary_bytes: int  # on each device, beside arguments and results
    model_milliseconds: float | None  # by XLA:TPU's model; None on a GPU, and where it does not know all operations


@dataclass(frozen=True)
class Counts:
    """What a program does on its cheapest path: of each conditional, the branch with the fewest sorts and launches.

    What is in a loop counts in each of its rounds.
    """

    launches: int = 0  # kernels, copies and sorts; on a TPU, which launches the program as a whole, its steps
    syncs: int = 0  # on a GPU, times that the host waits for a flag: conditionals, and loops of unknown length
    sorts: int = 0
    loops: int = 0  # of unknown length; they count as `ROUNDS` rounds
    conditionals: int = 0
    collectives: int = 0  # operations that communicate, on all paths, each once

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))

    def __mul__(self, rounds: int) -> Counts:
        return Counts(*(rounds * getattr(self, name) for name in self.__dataclass_fields__))


def missing(device: DeviceName) -> str | None:
    """Why nothing can be compiled for a device here, or None."""
    jaxlib = metadata.version("jaxlib")
    for package in PACKAGES[device]:
        try:
            version = metadata.version(package)
        except metadata.PackageNotFoundError:
            return f"{package} is not installed (extra `platforms`)"
        if package.startswith("jax-") and version != jaxlib:
            return f"{package} {version} does not match jaxlib {jaxlib}"
    return None


@cache
def absent_devices(device: DeviceName, count: int = 1) -> tuple[jax.Device, ...]:
    """Devices that are not there, as `jax.sharding.Mesh` takes them: up to 4 of a TPU, any number of GPUs."""
    if device == "h100":
        import jax_plugins.xla_cuda12  # noqa: F401  (registers the platform)

        topology = topologies.get_topology_desc("h100", "cuda", target_config=H100, topology=f"1x1x{count}")
    else:
        topology = topologies.get_topology_desc("v5e:2x2", "tpu")
    return tuple(topology.devices[:count])


def compile_for(device: DeviceName, function: Callable[..., Any], *arguments: Any, devices: int = 1) -> Compiled:
    """Compile a function for one or several devices that are not there.

    Of the arguments, only shapes and dtypes count. A `jax.ShapeDtypeStruct` that has a sharding over
    `absent_devices(device, devices)` keeps it; all else is replicated.
    """
    present = absent_devices(device, devices)
    replicated = NamedSharding(Mesh(np.array(present), ("devices",)), PartitionSpec())

    def place(array: Any) -> jax.ShapeDtypeStruct:
        sharding = array.sharding if isinstance(array, jax.ShapeDtypeStruct) else None
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding or replicated)

    start, processors = time.perf_counter(), sum(os.times()[:4])  # of children too: XLA:GPU starts NVIDIA's assembler
    traced = jax.jit(function).trace(*jax.tree.map(place, arguments))
    compiled = traced.lower(lowering_platforms=(PLATFORMS[device],)).compile()
    seconds, processors = time.perf_counter() - start, sum(os.times()[:4]) - processors
    model = (compiled.cost_analysis() or {}).get("optimal_seconds") if device == "v5e" else None
    memory = compiled.memory_analysis()
    milliseconds = None if model is None or model < 0 else 1e3 * model
    return Compiled(compiled.as_text(), seconds, processors, memory.temp_size_in_bytes, milliseconds)


def count(text: str) -> Counts:
    """What a compiled program does, counted in its text."""
    computations, entry = _parse(text)

    def sorts(operation: _Operation) -> bool:
        if operation.name == "sort" or re.search(r'custom_call_target="[^"]*Sort', operation.line):
            return True
        return operation.name == "fusion" and any(map(sorts, computations[operation.called("calls")]))

    @cache
    def cost(computation: str) -> Counts:
        return sum(map(cost_of, computations[computation]), Counts())

    def cost_of(operation: _Operation) -> Counts:
        if operation.name == "while":
            body = cost(operation.called("body"))
            if known := re.search(r'known_trip_count":\{"n":"(\d+)"', operation.line):
                return body * int(known[1])
            return (body + cost(operation.called("condition"))) * ROUNDS + Counts(syncs=1, loops=1)
        if operation.name == "conditional":
            cheapest = min(map(cost, operation.branches()), key=lambda each: (each.sorts, each.launches))
            return cheapest + Counts(syncs=1, conditionals=1)
        if operation.name == "call":
            return cost(operation.called("to_apply"))
        if operation.name in FREE or operation.name.endswith(("-done", "-update")):
            return Counts()
        return Counts(launches=1, sorts=int(sorts(operation)))

    operations = (operation for each in computations.values() for operation in each)
    collectives = sum(COLLECTIVES.fullmatch(each.name.removesuffix("-start")) is not None for each in operations)
    return cost(entry) + Counts(collectives=collectives)


@dataclass(frozen=True)
class _Operation:
    """One line of a compiled program: `%name = type operation(operands), attributes`."""

    name: str
    line: str

    def called(self, attribute: str) -> str:
        """The computation that the operation names as this attribute."""
        names: list[str] = re.findall(rf"\b{attribute}=%?([\w.\-]+)", self.line)
        return names[0]

    def branches(self) -> list[str]:
        """The computations of a conditional."""
        if listed := re.search(r"branch_computations=\{([^}]*)\}", self.line):
            return re.findall(r"[\w.\-]+", listed[1])
        return [self.called("true_computation"), self.called("false_computation")]


def _parse(text: str) -> tuple[dict[str, list[_Operation]], str]:
    """The operations of each computation, and the name of the one that the program starts with."""
    computations: dict[str, list[_Operation]] = {}
    entry, current = "", None
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{\s*$", line)
        if head:
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None and (operation := re.search(r" = .*? ([a-z][a-z\-]*)\(", line)):
            current.append(_Operation(operation[1], line))
    return computations, entry
