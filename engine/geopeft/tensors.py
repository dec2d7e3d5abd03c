"""Arrays from the bytes of a safetensors file.

The library's own reader never returns where there is too little memory for what it copies; this one copies each array
once, with NumPy, which says so. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np

MAX_HEADER_BYTES = 1 << 20
_NOTE = "__metadata__"
_TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1", "BOOL": "?",
}  # fmt: skip


def read_tensors(body: bytes, most: int) -> dict[str, np.ndarray]:
    """Name -> array, in the order in which they lie in the file, without gaps and overlaps.

    Args:
        body: the whole file.
        most: so many arrays at most.

    Raises:
        OverflowError: a header beyond MAX_HEADER_BYTES or the file's end, or too many arrays.
        ValueError: anything else that is not as the format has it.
    """
    if len(body) < 8 or (size := struct.unpack("<Q", body[:8])[0]) > min(MAX_HEADER_BYTES, len(body) - 8):
        raise OverflowError("the header of its weights is longer than it may be")
    header = _header(body[8 : 8 + size])
    if len(header) > most:
        raise OverflowError(f"it holds {len(header)} tensors")
    found, begin = {}, 8 + size
    for name, (start, end), dtype, shape in sorted(map(_entry, header.items()), key=lambda entry: entry[1]):
        if start != begin - 8 - size or end - start != math.prod(shape) * dtype.itemsize or 8 + size + end > len(body):
            raise ValueError(f"{name[:80]} does not lie where it should")
        begin = 8 + size + end
        found[name] = np.frombuffer(body, dtype, math.prod(shape), 8 + size + start).reshape(shape).copy()
    if begin != len(body):
        raise ValueError("there is more in it than its header says")
    return found


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_once)
    except RecursionError as error:
        raise ValueError("its header is nested without end") from error
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    header.pop(_NOTE, None)
    # A name that is no text, which JSON can write, is an error here and not where it is first shown.
    "".join(header).encode()
    return header


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("a name is there twice in its header")
    return found


def _entry(item: tuple[str, Any]) -> tuple[str, tuple[int, int], np.dtype[Any], tuple[int, ...]]:
    """(name, where it lies, type, shape) of one array; ValueError where the header says something else."""
    name, told = item
    if not isinstance(told, dict) or set(told) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name[:80]} is not described")
    shape, place = told["shape"], told["data_offsets"]
    if not isinstance(told["dtype"], str) or told["dtype"] not in _TYPES:
        raise ValueError(f"{name[:80]} has a type that is not known")
    for numbers in (shape, place):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 1 << 63 for n in numbers):
            raise ValueError(f"{name[:80]} has no shape, or no place")
    if len(place) != 2 or len(shape) > 32:
        raise ValueError(f"{name[:80]} has no shape, or no place")
    return name, (place[0], place[1]), np.dtype(_TYPES[told["dtype"]]), tuple(shape)
