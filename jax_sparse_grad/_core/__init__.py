"""The core anew, beside the one that it will replace: slots for all, loops on CPUs, numpy for what is concrete.

    _keys.py     index rows <-> words of keys
    _cpu.py      slots by plain loops
    _gpu.py      slots by ranks, or one sort
    _tpu.py      slots by one sort
    _host.py     slots of concrete indices, in numpy
    _values.py   values to slots and back

Nothing outside of the tests uses it yet.
"""
