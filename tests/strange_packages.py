"""Model packages that are damaged, wrong or malicious: made from a good one, from a seed."""

from __future__ import annotations

import hashlib
import io
import json
import random
import struct
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

MANIFEST, WEIGHTS, FOREST, START = "manifest.json", "weights.safetensors", "forest.onnx", "start.safetensors"
Members = dict[str, bytes]

# What stands where a text, a number or a list was.
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 255, 1e-300, 1e300, -1e308, 2**31, 2**63, 10**400, "", "1", "x" * 100_000, [], {},
    [[]], "../../x", "/dev/zero", "http://127.0.0.1:1/x", "\x00", "\ud800", "\u202e", "([a-z_.0-9]+)+!", "<img src=x>",
    "$(touch canary)", "__import__('os').system('touch canary')", "timm", "vit_giant_patch14_dinov2", "lora", "full",
    "frozen", "linear", "unet", "scratch_unet",
)  # fmt: skip
ODD_NAMES = (
    "../x", "../../x", "/tmp/x", "C:\\x", "..\\x", "x.py", "x.pkl", "adapter_model.bin", "x.so", "x.vrt", "x/", ".x",
    "manifest.json/", "weights.safetensors\x00.py", "MANIFEST.JSON", "weights.safetensors.", "model.onnx", "a" * 60_000,
)  # fmt: skip
PICKLE = b"cos\nsystem\n(S'touch canary'\ntR."


def read(data: bytes) -> Members:
    """The members of a package."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(members: Members, compression: int = zipfile.ZIP_STORED) -> bytes:
    """A package of these members, whatever they are."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, body in members.items():
            archive.writestr(zipfile.ZipInfo(name), body, compression)
    return buffer.getvalue()


def signed(members: Members) -> Members:
    """The same members under a manifest that vouches for them, as whoever makes a malicious package would have it."""
    try:
        data = json.loads(members[MANIFEST])
    except (ValueError, RecursionError):
        return members
    if not isinstance(data, dict):
        return members
    rest = {key: value for key, value in data.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    data["sha256"] = {name: hashlib.sha256(body).hexdigest() for name, body in members.items() if name != MANIFEST}
    data["sha256"][MANIFEST] = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return {**members, MANIFEST: json.dumps(data).encode()}


def strange(good: bytes, seed: int) -> tuple[str, bytes]:
    """What was done to a good package, and the file that came of it; always the same for a seed."""
    rng = random.Random(seed)
    (kind,) = rng.choices(list(KINDS), WEIGHTS_OF_KINDS)
    return kind, KINDS[kind](good, rng)


def flipped(body: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut out, put in or repeated."""
    data = bytearray(body)
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        at = rng.randrange(len(data)) if data else 0
        step = rng.randrange(5)
        if step < 2 and data:
            data[at] = rng.randrange(256) if step else data[at] ^ 1 << rng.randrange(8)
        elif step == 2:
            data[at:at] = rng.choice((b"\0", b"\xff" * 8, rng.randbytes(16), bytes(data[:64])))
        elif step == 3:
            del data[at : at + rng.choice((1, 4, 64, 4096))]
        elif len(data) >= at + 8:
            data[at : at + 8] = struct.pack("<Q", rng.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)))
    return bytes(data)


def _bytes(good: bytes, rng: random.Random) -> bytes:
    return flipped(good, rng)


def _cut(good: bytes, rng: random.Random) -> bytes:
    return good[: rng.randrange(len(good))]


def _polyglot(good: bytes, rng: random.Random) -> bytes:
    more = rng.choice((b"#!/bin/sh\ntouch canary\n", PICKLE, b"\x7fELF" + bytes(60), b"%PDF-1.7\n"))
    return rng.choice((more + good, good + more))


def _directory(good: bytes, rng: random.Random) -> bytes:
    """One field of the zip's own records."""
    data = bytearray(good)
    heads = [at for mark in (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06") for at in _all(good, mark)]
    at = rng.choice(heads) + rng.randrange(4, 46)
    size = rng.choice((1, 2, 4))
    if at + size <= len(data):
        data[at : at + size] = rng.choice((b"\0" * size, b"\xff" * size, rng.randbytes(size)))
    return bytes(data)


def _members(good: bytes, rng: random.Random) -> bytes:
    """Members too many, missing, twice, compressed, or something else than files."""
    members = read(good)
    way = rng.randrange(6)
    if way == 0:
        members.pop(rng.choice(list(members)))
    if way == 1:
        members[rng.choice(ODD_NAMES)] = rng.choice((b"", PICKLE, b"x" * 1000))
    if way == 2:
        return pack(members, rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)))
    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w") as archive:
        warnings.simplefilter("ignore")
        for name, body in members.items():
            info = zipfile.ZipInfo(name)
            if way == 3 and rng.random() < 0.5:
                info.external_attr = rng.choice((0o120777, 0o060666, 0o010666, 0o040755)) << 16
            archive.writestr(info, body)
        if way == 4:
            archive.writestr(rng.choice(list(members)), rng.choice((b"", PICKLE)))
        if way == 5:
            for number in range(rng.choice((10, 1000))):
                archive.writestr(f"f{number}", b"")
    return buffer.getvalue()


def _all(data: bytes, mark: bytes) -> list[int]:
    found, at = [], data.find(mark)
    while at >= 0:
        found.append(at)
        at = data.find(mark, at + 1)
    return found


def _manifest(good: bytes, rng: random.Random) -> bytes:
    """A value of the manifest replaced, removed, added or moved, and signed."""
    members = read(good)
    data = json.loads(members[MANIFEST])
    for _ in range(rng.choice((1, 1, 1, 3))):
        holder, key = rng.choice(list(_places(data)))
        way = rng.randrange(8)
        if way == 0:
            del holder[key]
        elif way == 1 and isinstance(holder, dict):
            holder[rng.choice(("x", "__class__", "target_modules", "rank_pattern", key + "_"))] = rng.choice(ODD)
        elif way == 2 and isinstance(holder, list):
            holder += [holder[key]] * rng.choice((1, 300))
        elif way == 3 and isinstance(holder[key], int | float) and not isinstance(holder[key], bool):
            holder[key] = rng.choice((-1, 0, 0.5, 2, 10, 1e6)) * holder[key]
        else:
            holder[key] = rng.choice(ODD)
    members[MANIFEST] = json.dumps(data).encode()
    return pack(signed(members))


def _json(good: bytes, rng: random.Random) -> bytes:
    """JSON that readers disagree about."""
    members = read(good)
    text = members[MANIFEST]
    number = rng.choice((b"NaN", b"1e999", b"-Infinity", b"9" * 5000, b"0." + b"1" * 100_000, b"1_0", b"0x1", b'"1"'))
    members[MANIFEST] = rng.choice(
        (
            text.replace(b'"gsd_m": 10.0', b'"gsd_m": ' + number),
            text.replace(b'"seed": 0', b'"seed": ' + number),
            text.replace(b'"metrics": {', b'"metrics": {"x": ' + number + b", "),
            text[:-1] + b',"name":"two"}',
            b"\xef\xbb\xbf" + text,
            text.decode().encode("utf-16"),
            b"[" * 200_000,
            b'{"a":' * 200_000,
            b" " * (5 << 20) + text,
            text + b"x",
            flipped(text, rng),
        )
    )
    return pack(signed(members) if rng.random() < 0.5 else members)


def _places(data: Any) -> list[tuple[Any, Any]]:
    """(list or object, index or name) of every value."""
    pairs = list(data.items()) if isinstance(data, dict) else list(enumerate(data))
    found = [(data, key) for key, _ in pairs]
    for _, value in pairs:
        if isinstance(value, dict | list):
            found += _places(value)
    return found


def _tensors(good: bytes, rng: random.Random) -> bytes:
    """The header or the numbers of the weights changed, and signed."""
    members = read(good)
    name = rng.choice([name for name in (WEIGHTS, START) if name in members])
    body = members[name]
    (size,) = struct.unpack("<Q", body[:8])
    header, data = json.loads(body[8 : 8 + size]), body[8 + size :]
    key = rng.choice([key for key in header if key != "__metadata__"])
    entry = header[key]
    way = rng.randrange(12)
    if way == 0:
        header[rng.choice((f"{key}x", "x" * 1000, "\ud800", "adapter.", "../x"))] = header.pop(key)
    elif way == 1:
        header.pop(key)
    elif way == 2:
        entry["dtype"] = rng.choice(("F64", "F16", "BF16", "I64", "U8", "BOOL", "F8_E5M2", "C64", "", 7))
    elif way == 3:
        entry["shape"] = rng.choice(([], [0], [2**62, 2**62], [-1], entry["shape"][::-1], [*entry["shape"], 1], "x"))
    elif way == 4:
        entry["data_offsets"] = rng.choice(([0, 0], [0, 2**63], [-1, 4], [8, 4], [0, len(data)], [1.5, 2], None))
    elif way == 5:
        header["__metadata__"] = rng.choice(({"x": "y" * 200_000}, {"x": 1}, [], {"format": "pt"}))
    elif way == 6:
        header |= {
            f"e{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(rng.choice((9, 5000)))
        }
    elif way == 7 and entry["dtype"] == "F32":
        values = rng.choice((float("nan"), float("inf"), 1e38, -1e30, 1e9, 1e7, 0.0, -1.0))
        start, end = entry["data_offsets"]
        part = struct.pack("<f", values) * ((end - start) // 4 if rng.random() < 0.5 else min(1, (end - start) // 4))
        data = data[:start] + part + data[start + len(part) :]
    elif way == 8:
        data = flipped(data, rng)
    elif way == 9:
        members[name] = rng.choice((PICKLE, b"", b"\x80\x04" + PICKLE, body[: size // 2], bytes(1000)))
        return pack(signed(members))
    text = json.dumps(header).encode()
    length = rng.choice((0, 2**63, 2**64 - 1, 200 << 20, len(text) + 1)) if way == 10 else len(text)
    members[name] = struct.pack("<Q", length) + text + data
    return pack(signed(members))


def _forest(good: bytes, rng: random.Random) -> bytes:
    """The ONNX graph changed field by field, and signed."""
    members = read(good)
    if FOREST not in members:
        return _tensors(good, rng)
    members[FOREST] = strange_graph(members[FOREST], rng) if rng.random() < 0.8 else flipped(members[FOREST], rng)
    return pack(signed(members))


def strange_graph(body: bytes, rng: random.Random) -> bytes:
    """A graph with foreign operators, data elsewhere, absurd sizes, or numbers that do not fit."""
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load_model_from_string(body)
    graph = model.graph
    tensor, node = rng.choice(graph.initializer), rng.choice(graph.node)
    attribute = rng.choice(graph.node[0].attribute)
    way = rng.randrange(14)
    if way in (0, 1):  # data in another file
        tensor.ClearField("raw_data")
        tensor.external_data.add(
            key="location", value=rng.choice(("../secret", "/etc/hostname", "secret", "a/../secret"))
        )
        if way:
            tensor.data_location = TensorProto.EXTERNAL
    elif way == 2:
        huge = [2**40] if rng.random() < 0.5 else [2**31, 2**31]
        graph.node.insert(0, helper.make_node("ConstantOfShape", ["shape"], ["x"]))
        graph.initializer.append(helper.make_tensor("shape", TensorProto.INT64, [len(huge)], huge))
    elif way == 3:
        tensor.dims[:] = rng.choice(([2**40], [2**31, 2**31], [0], [], [-1], [3, 3, 3]))
    elif way == 4:
        node.domain = rng.choice(("com.microsoft", "evil", "ai.onnx.ml", "ai.onnx.training"))
    elif way == 5:
        node.op_type = rng.choice(("EPContext", "PyOp", "Loop", "If", "Scan", "Identity", "Gemm", "StringNormalizer"))
    elif way == 6:
        node.input[0] = rng.choice(("", "x", node.output[0], "classical_probabilities"))
    elif way == 7:
        body_graph = helper.make_graph([helper.make_node("Identity", ["c"], ["d"])], "b", [], [])
        graph.node.append(helper.make_node("Loop", ["", "c"], ["e"], body=body_graph))
    elif way == 8:
        model.functions.append(helper.make_function("f", node.op_type, ["a"], ["b"], [], [], ["x"]))
    elif way == 9:
        values = attribute.ints or attribute.floats or attribute.strings
        at = rng.randrange(len(values)) if values else 0
        if attribute.ints:
            attribute.ints[at] = rng.choice((-1, 0, 1, 10**6, 2**31, -(2**63), 2**63 - 1))
        elif attribute.floats:
            attribute.floats[at] = rng.choice((float("nan"), float("inf"), -1.0, 1e38))
        elif attribute.strings:
            attribute.strings[at] = rng.choice((b"BRANCH_GT", b"LEAF", b"", b"x" * 1000))
    elif way == 10:
        graph.node[0].attribute.append(attribute)
    elif way == 11:
        graph.node[0].attribute.remove(attribute)
    elif way == 12:
        del graph.node[rng.randrange(len(graph.node))]
    else:
        model.ir_version = rng.choice((0, 1, 99, 2**40))
        model.opset_import[0].version = rng.choice((0, 1, 999, -1))
    return bytes(model.SerializeToString())


def _swapped(good: bytes, rng: random.Random) -> bytes:
    """One member's content under another's name, or rubbish, signed."""
    members = read(good)
    first, second = rng.choice(list(members)), rng.choice(list(members))
    members[first] = rng.choice((members[second], PICKLE, b"", rng.randbytes(rng.choice((8, 1000)))))
    return pack(signed(members))


KINDS: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "bytes": _bytes,
    "cut": _cut,
    "polyglot": _polyglot,
    "directory": _directory,
    "members": _members,
    "manifest": _manifest,
    "json": _json,
    "tensors": _tensors,
    "forest": _forest,
    "swapped": _swapped,
}
WEIGHTS_OF_KINDS = (1, 1, 1, 2, 2, 6, 2, 6, 6, 1)
