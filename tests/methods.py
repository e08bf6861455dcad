"""Programs traced for a platform, and run on the CPU."""

import contextlib

import jax

from jax_sparse_grad import _seam

OTHERS = ["gpu", "tpu"]


@contextlib.contextmanager
def forced(method):
    """Whatever is traced inside uses this method. What was traced before, by inner functions too, stays as it is."""
    before, _seam.forced = _seam.forced, method
    try:
        yield
    finally:
        _seam.forced = before


def jit_for(method, function):
    """`jax.jit` of a function, by the method of a platform."""

    def traced(*arguments):
        with forced(method):
            return function(*arguments)

    return jax.jit(traced)
