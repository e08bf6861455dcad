"""Strict settings for every test: rank promotion raises, warnings are errors (pyproject.toml), eight CPU devices."""

import importlib.metadata
import os
import pathlib

# Compiling takes most of the time of these tests, whose arrays are small: half of it without optimisations. A flag that
# XLA does not know ends the process: the last two were tried with jaxlib 0.8 to 0.10.
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        *(
            ["--xla_cpu_use_fusion_emitters=false", "--xla_llvm_disable_expensive_passes=true"]
            if importlib.metadata.version("jaxlib").startswith(("0.8.", "0.9.", "0.10."))
            else []
        ),
    ]
)

import hypothesis
import jax
import numpy as np
import pytest

from jax_sparse_grad import _tree

jax.config.update("jax_numpy_rank_promotion", "raise")

# Compilation makes the first run of a property slow; the draw itself must not vary from one machine to the next.
hypothesis.settings.register_profile("jax", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("jax")


SORTED_BELOW = _tree.SORTED_BELOW


@pytest.fixture(scope="module")
def merges():
    """Short operands are merged, as long ones are: else those of tests would all be sorted together."""
    _tree.SORTED_BELOW = 0
    yield
    _tree.SORTED_BELOW = SORTED_BELOW


@pytest.fixture(params=["merged", "sorted"])
def method(request, monkeypatch):
    """How short operands are united: as long ones are, or as they are for users."""
    monkeypatch.setattr(_tree, "SORTED_BELOW", 0 if request.param == "merged" else SORTED_BELOW)


MAPPINGS = pathlib.Path("/proc/self/maps")
MOST_MAPPINGS = 30_000  # of the 65,530 that Linux grants a process, which ends with a segmentation fault without more


@pytest.fixture(scope="module", autouse=True)
def _few_programs():
    """Compiled programs are dropped in time: each holds memory mappings, and all of them more than there are."""
    yield
    if MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261123)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
