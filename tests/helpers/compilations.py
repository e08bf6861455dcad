"""How many programs JAX compiles."""

import jax

seen = []


def listen(event, _duration, **_details):
    if event == "/jax/core/compile/backend_compile_duration":
        seen.append(event)


jax.monitoring.register_event_duration_secs_listener(listen)


def compilations_of(call):
    """How many programs JAX compiles during a call."""
    before = len(seen)
    call()
    return len(seen) - before
