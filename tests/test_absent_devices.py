"""What `examples/absent_devices.py` counts in a compiled program; no compiler is needed."""

import importlib.metadata

import pytest

from absent_devices import ROUNDS, Counts, count, missing

PROGRAM = """\
HloModule jit_f, is_scheduled=true, entry_computation_layout={(s32[8]{0})->s32[8]{0}}

%below (a: s32[], b: s32[]) -> pred[] {
  %a = s32[] parameter(0)
  ROOT %compare.1 = pred[] compare(%a, %b), direction=LT
}

%fused (p: s32[8]) -> s32[8] {
  %p = s32[8]{0} parameter(0)
  ROOT %sort.2 = s32[8]{0} sort(%p), dimensions={0}, to_apply=%below
}

%body (carry: (s32[], s32[8])) -> (s32[], s32[8]) {
  %carry = (s32[], s32[8]{0}) parameter(0)
  %value.1 = s32[8]{0} get-tuple-element(%carry), index=1
  %add.1 = s32[8]{0} fusion(%value.1), kind=kLoop, calls=%plain, metadata={op_name="jit(f)/while(x)/sort(y)"}
  %copy-start.1 = (s32[8]{0}, s32[8]{0}, u32[]) copy-start(%add.1)
  %copy-done.1 = s32[8]{0} copy-done(%copy-start.1)
  ROOT %tuple.1 = (s32[], s32[8]{0}) tuple(%value.1, %copy-done.1)
}

%plain (p.1: s32[8]) -> s32[8] {
  ROOT %p.1 = s32[8]{0} parameter(0)
}

%goes_on (carry.1: (s32[], s32[8])) -> pred[] {
  %carry.1 = (s32[], s32[8]{0}) parameter(0)
  ROOT %fusion.3 = pred[] fusion(%carry.1), kind=kLoop, calls=%plain
}

%in_order (x.1: s32[8]) -> s32[8] {
  %x.1 = s32[8]{0} parameter(0)
  %fusion.4 = s32[8]{0:T(256)S(1)} fusion(%x.1), kind=kLoop, calls=%plain
  ROOT %fusion.5 = s32[8]{0} fusion(%fusion.4), kind=kLoop, calls=%plain
}

%in_disorder (x.2: s32[8]) -> s32[8] {
  %x.2 = s32[8]{0} parameter(0)
  ROOT %fusion.6 = s32[8]{0} fusion(%x.2), kind=kLoop, calls=%fused
}

ENTRY %main (x: s32[8]) -> s32[8] {
  %x = s32[8]{0} parameter(0)
  BODY
}
"""

KNOWN = 'while(%x), condition=%goes_on, body=%body, backend_config={"known_trip_count":{"n":"3"}}'
UNKNOWN = "while(%x), condition=%goes_on, body=%body"
BRANCHES = "true_computation=%in_order, false_computation=%in_disorder"
LIST = "branch_computations={%in_disorder, %in_order}"


@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("bitcast(%x)", Counts()),
        ("fusion(%x), kind=kLoop, calls=%plain", Counts(launches=1)),
        ("fusion(%x), kind=kLoop, calls=%fused", Counts(launches=1, sorts=1)),
        ("sort(%x), dimensions={0}, to_apply=%below", Counts(launches=1, sorts=1)),
        ('custom-call(%x), custom_call_target="__cub$DeviceRadixSort"', Counts(launches=1, sorts=1)),
        ("call(%x), to_apply=%in_order", Counts(launches=2)),
        (f"conditional(%x, %x, %x), {BRANCHES}", Counts(launches=2, syncs=1, conditionals=1)),
        (f"conditional(%x, %x, %x), {LIST}", Counts(launches=2, syncs=1, conditionals=1)),
        (KNOWN, Counts(launches=3 * 2)),
        (UNKNOWN, Counts(launches=ROUNDS * 3, syncs=1, loops=1)),
        ("all-reduce(%x), to_apply=%below", Counts(launches=1, collectives=1)),
        ("all-gather-start(%x), dimensions={0}", Counts(launches=1, collectives=1)),
    ],
)
def test_counts(operation, expected):
    assert count(PROGRAM.replace("BODY", f"ROOT %y = s32[8]{{0}} {operation}")) == expected


def test_what_is_missing_is_named(monkeypatch):
    installed = {"jaxlib": "0.10.2", "jax-cuda12-plugin": "0.10.1"}

    def version(name):
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert missing("v5e") == "libtpu is not installed (extra `platforms`)"
    assert missing("h100") == "jax-cuda12-plugin 0.10.1 does not match jaxlib 0.10.2"
    installed["libtpu"] = "0.0.42.1"
    assert missing("v5e") is None
