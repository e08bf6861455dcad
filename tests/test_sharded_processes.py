"""Several processes on this machine, each with its own rows (`sharded_process.py`); none may outlive its test."""

import os
import pathlib
import re
import socket
import subprocess
import sys

import pytest

PROCESS = pathlib.Path(__file__).parent / "sharded_process.py"
SHARDS = 8
SECONDS = 180  # enough for all of them to compile on a busy machine


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(processes, what):
    """`(return code, output)` of each process."""
    flags = re.sub(r"(?<=device_count=)\d+", str(SHARDS // processes), os.environ["XLA_FLAGS"])
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    port = free_port()
    started = []
    try:
        for process in range(processes):
            command = [sys.executable, "-u", str(PROCESS), str(processes), str(process), str(port), what]
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            started.append(subprocess.Popen(command, env=environment, **pipes))
        outputs = [process.communicate(timeout=SECONDS)[0] for process in started]
        return [(process.returncode, output) for process, output in zip(started, outputs, strict=True)]
    finally:
        for process in started:
            process.kill()
            process.wait()
            process.stdout.close()


@pytest.mark.slow
def test_sums_and_gradients_are_those_of_a_single_device_and_errors_of_one_raise_in_all():
    for process, (code, output) in enumerate(run(2, "add")):
        assert code == 0, output
        assert f"process {process} has done what it should" in output


@pytest.mark.slow
def test_when_one_dies_the_other_ends_with_a_clear_error():
    (code, output), (dead, _) = run(2, "die")
    assert dead == 3
    assert code != 0
    assert "has done what it should" not in output
    assert re.search(r"another task died|tasks have crashed|[Cc]onnection closed by peer|unhealthy", output), output
