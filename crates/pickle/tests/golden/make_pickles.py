"""Writes the pickles that the tests of this crate read, with Python's own pickle, numpy and torch.

    python make_pickles.py

Python 3.11, numpy 2.4, torch 2.11. Needs no arguments; writes beside itself.
"""

import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy
import torch

HERE = Path(__file__).parent


class Command:
    """Unpickling it would run a shell command."""

    def __reduce__(self):
        return os.system, ("echo unpickled",)


def plain():
    shared = ["shared"]
    return {
        "none": None,
        "truth": [True, False],
        "ints": [0, 1, -1, 255, 256, 65535, 65536, -(2**31), 2**31, -(2**63), 2**63 - 1],
        "floats": [0.0, -0.5, 1e-5, 1.7976931348623157e308, float("inf")],
        "text": ["", "a circle", "café 猫 😀", "line\nfeed \\u0041 \\", "x" * 300],
        "bytes": [b"", b"\x00\xff", bytes(range(256)) * 2],
        "array": bytearray(b"abc"),
        "tuples": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "sets": [set(), {7}, frozenset({8})],
        "nested": [[[["deep"]]], {"a": {"b": ["c"]}}],
        "twice": [shared, shared],
        5: "a key that is an int",
    }


def numbers():
    return {
        "float64": numpy.float64(0.1),
        "float32": numpy.float32(0.1),
        "int64": numpy.int64(-3),
        "bool": numpy.bool_(True),
        "list": [numpy.float32(0.25), numpy.float64(-2.5), 1, True, 0.5],
        "array64": numpy.array([0.1, -2.0, 3.5]),
        "array32": numpy.array([0.25, -2.0], dtype=numpy.float32),
        "array16": numpy.array([0.5, 65504.0], dtype=numpy.float16),
        "big_endian": numpy.array([1.5, -2.0], dtype=">f4"),
        "integers": numpy.array([-1, 2], dtype=numpy.int16),
        "flags": numpy.array([True, False]),
        "grid": numpy.array([[1.0, 2.0], [3.0, 4.0]]),
        "empty": numpy.array([]),
        "frozen": frozen(numpy.array([7.0, 8.0])),
        "complex": numpy.array([1j]),
        "words": numpy.array(["a"]),
    }


def frozen(array):
    array.setflags(write=False)
    return array


def torch_weights():
    """The pickle inside of a file of torch.save."""
    weights = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    module = torch.nn.Linear(2, 1)
    state = OrderedDict(weight=weights, half=torch.ones(2, dtype=torch.bfloat16), step=3)
    state["parameter"] = torch.nn.Parameter(torch.zeros(1))
    state["module"] = module.state_dict()
    file = io.BytesIO()
    torch.save(state, file)
    with zipfile.ZipFile(file) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def main():
    for protocol in range(6):
        (HERE / f"plain_{protocol}.pkl").write_bytes(pickle.dumps(plain(), protocol))
        (HERE / f"numbers_{protocol}.pkl").write_bytes(pickle.dumps(numbers(), protocol))
        (HERE / f"command_{protocol}.pkl").write_bytes(pickle.dumps({"outputs": [Command()]}, protocol))
    (HERE / "torch.pkl").write_bytes(torch_weights())


if __name__ == "__main__":
    main()
