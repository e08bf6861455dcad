"""Strict settings for every test: rank promotion raises, warnings are errors (pyproject.toml), eight CPU devices."""

import gc
import itertools
import os
import pathlib

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8"
# On other devices if asked for: `JAX_PLATFORMS=cuda,cpu python -m pytest`. Tests that need several of them are skipped.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
# Python's collector would go through all that JAX keeps again and again.
gc.freeze()
gc.set_threshold(20_000, 20, 20)

# Compilation makes the first run of a property slow; the draw itself must not vary from one machine to the next.
hypothesis.settings.register_profile("jax", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("jax")

MAPPINGS = pathlib.Path("/proc/self/maps")
MOST_MAPPINGS = 30_000  # of the 65,530 that Linux grants a process, which ends with a segmentation fault without more


_tests = itertools.count(1)


@pytest.fixture(autouse=True)
def _few_programs():
    """Compiled programs are dropped in time: each holds memory mappings, and all of them more than there are."""
    yield
    # Looked at now and then, because that takes some 10 ms: 20 tests add a few thousand.
    if next(_tests) % 20 == 0 and MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20261123)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
