"""Our reader of safetensors: what the library writes comes back, anything else is refused before memory is taken."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from geopeft.tensors import MAX_HEADER_BYTES, read_tensors
from safetensors import numpy as library

KINDS = ("f8", "f4", "f2", "i8", "i4", "i2", "i1", "u8", "u4", "u2", "u1", "?")


def file(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def entry(dtype: object = "U8", shape: object = (2,), place: object = (0, 2)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": place}


def test_what_the_library_writes_comes_back() -> None:
    rng = np.random.default_rng(0)
    arrays = {f"a{kind}": rng.integers(0, 2, (3, 1, 5)).astype(kind) for kind in KINDS}
    arrays |= {"number": np.asarray(3.5, "f4"), "empty": np.empty((0, 7), "f4"), "name ä": np.arange(3.0)}
    found = read_tensors(library.save(arrays, {"note": "kept apart"}), 100)
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)
        assert found[name].flags.writeable and found[name].flags.aligned


@pytest.mark.fault("M12", "M13")
@pytest.mark.parametrize(
    "body",
    [
        b"",
        struct.pack("<Q", 1 << 60) + b"{}",
        struct.pack("<Q", 3) + b"{}",
        file(b" " * (MAX_HEADER_BYTES + 1)),
        file({str(n): entry("U8", [0], [0, 0]) for n in range(101)}),
    ],
)
def test_a_header_that_claims_too_much_is_too_large(body: bytes) -> None:
    with pytest.raises(OverflowError):
        read_tensors(body, 100)


@pytest.mark.parametrize(
    "body",
    [
        file(b"[" * 100_000),
        file(b"[]"),
        file(b'{"a": 1, "a": 2}'),
        file(b'{"\\ud800": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]}}', b"ab"),
        file(b"\xff"),
        file({"a": 7}),
        file({"a": {"dtype": "U8", "shape": [2]}}, b"ab"),
        file({"a": entry("BF16", [1], [0, 2])}, b"ab"),
        file({"a": entry(7)}, b"ab"),
        file({"a": entry("U8", [-2], [0, 2])}, b"ab"),
        file({"a": entry("U8", [True, 2])}, b"ab"),
        file({"a": entry("U8", [2], [0, 2, 2])}, b"ab"),
        file({"a": entry("U8", [1] * 33 + [2])}, b"ab"),
        file({"a": entry("U8", [1 << 62, 1 << 62], [0, 2])}, b"ab"),
        file({"a": entry("F4", [2])}, b"ab"),
        file({"a": entry("U8", [4], [0, 4])}, b"ab"),
        file({"a": entry("U8", [2], [2, 4])}, b"abcd"),
        file({"a": entry(), "b": entry()}, b"ab"),
        file({"a": entry(), "b": entry("U8", [2], [1, 3])}, b"abc"),
        file({"a": entry()}, b"abc"),
    ],
)
def test_anything_that_the_format_does_not_have_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="."):
        read_tensors(body, 100)
