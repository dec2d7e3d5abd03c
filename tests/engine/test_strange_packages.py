"""A model package from a stranger: refused with a code, or as harmless as a picture."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

from tests.package_judge import Judge, good_packages, sweep
from tests.strange_packages import FOREST, MANIFEST, PICKLE, WEIGHTS, Members, pack, read, signed

ROOT = Path(__file__).resolve().parents[2]
COUNT = 400


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    folder = tmp_path_factory.mktemp("strange")
    return folder, good_packages(folder)


@pytest.fixture(scope="module")
def judge(good: tuple[Path, list[bytes]]) -> Iterator[Judge]:
    judge = Judge(good[0])
    yield judge
    judge.close()


@pytest.mark.slow
@pytest.mark.fault("M01", "M41", "M43", "S18", "S19")
def test_no_package_does_more_than_give_a_map_or_a_sentence(judge: Judge, good: tuple[Path, list[bytes]]) -> None:
    folder, bodies = good
    outcomes, wrong = sweep(judge, bodies, range(COUNT))
    assert wrong == []
    assert sum(count for outcome, count in outcomes.items() if outcome.startswith("refused")) > COUNT / 2
    assert sorted(path.name for path in folder.rglob("*")) == ["full.geopeft", "lora.geopeft"]


@pytest.mark.fault("M43")
def test_good_packages_open_without_a_socket_a_process_a_pickle_or_a_file_elsewhere(
    judge: Judge, good: tuple[Path, list[bytes]]
) -> None:
    for body in good[1]:
        answer = judge("again", body)
        assert str(answer["outcome"]).startswith("result") and answer["harm"] == []


@pytest.mark.parametrize(
    "deed",
    [
        "import socket; socket.socket().connect_ex(('127.0.0.1', 9))",
        "import os; os.system('true')",
        "import subprocess, sys; subprocess.run([sys.executable, '-c', ''])",
        "import pickle; pickle.loads(pickle.dumps(Path('x')))",
        "open('/etc/hostname')",
        "open(folder.parent / 'x', 'w')",
        "import torch; torch.load(folder / 'x.pt', weights_only=False)",
    ],
)
def test_the_judge_hears_what_a_package_must_not_do(tmp_path: Path, deed: str) -> None:
    code = f"""
import sys; from pathlib import Path; import pickle
sys.path[:0] = [{str(ROOT)!r}]
from tests.package_judge import Watch, engine_folders
folder = Path({str(tmp_path / "in")!r}); folder.mkdir()
(folder / 'x.pt').write_bytes(pickle.dumps(Path('x')))
watch = Watch(engine_folders(), [folder]); watch.on = True
try:
    {deed}
except Exception:
    pass
watch.on = False
print(len(watch.harm))"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(ran.stdout) > 0


def edited(**changes: Any) -> Callable[[Members], Members]:
    """Values of the manifest by their place, `spec__rank=7`, in one that vouches for itself."""

    def change(members: Members) -> Members:
        data = json.loads(members[MANIFEST])
        for place, value in changes.items():
            *outer, last = place.split("__")
            holder = data
            for key in outer:
                holder = holder[int(key) if key.isdigit() else key]
            holder[last] = value
        return {**members, MANIFEST: json.dumps(data).encode()}

    return change


def tensors(change: Callable[[dict[str, Any]], None]) -> Callable[[Members], Members]:
    """Another header for the weights."""

    def changed(members: Members) -> Members:
        body = members[WEIGHTS]
        (size,) = struct.unpack("<Q", body[:8])
        header = json.loads(body[8 : 8 + size])
        change(header)
        text = json.dumps(header).encode()
        return {**members, WEIGHTS: struct.pack("<Q", len(text)) + text + body[8 + size :]}

    return changed


def renamed(header: dict[str, Any]) -> None:
    for name in [name for name in header if name.startswith("adapter.")]:
        header[name.replace("adapter.", "adapter.encoder.")] = header.pop(name)


def many(header: dict[str, Any]) -> None:
    header |= {f"e{n}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(100_000)}


def filled(value: float) -> Callable[[Members], Members]:
    def change(members: Members) -> Members:
        return {**members, WEIGHTS: members[WEIGHTS][:-400] + struct.pack("<f", value) * 100}

    return change


def graph(change: Callable[[Any], None]) -> Callable[[Members], Members]:
    def changed(members: Members) -> Members:
        model = onnx.load_model_from_string(members[FOREST])
        change(model.graph)
        return {**members, FOREST: model.SerializeToString()}

    return changed


def elsewhere(location: str) -> Callable[[Any], None]:
    def change(found: Any) -> None:
        found.initializer[0].ClearField("raw_data")
        found.initializer[0].data_location = onnx.TensorProto.EXTERNAL
        found.initializer[0].external_data.add(key="location", value=location)

    return change


def node(operator: str, domain: str = "", **attributes: Any) -> Callable[[Any], None]:
    made = onnx.helper.make_node(operator, ["features"], ["x"], domain=domain, **attributes)
    return lambda found: found.node.insert(0, made)


def text(change: Callable[[bytes], bytes]) -> Callable[[Members], Members]:
    return lambda members: {**members, MANIFEST: change(members[MANIFEST])}


FULL, LORA = 0, 1
LOOP = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["c"], ["d"])], "b", [], [])
CASES = [
    ("M09", FULL, lambda m: {MANIFEST: m[MANIFEST], "adapter_model.bin": PICKLE}, "UNSAFE"),
    ("M10", FULL, lambda m: {**m, WEIGHTS: PICKLE}, "TOO_LARGE"),
    ("M12", FULL, lambda m: {**m, WEIGHTS: struct.pack("<Q", 2**63) + m[WEIGHTS][8:]}, "TOO_LARGE"),
    ("M13", FULL, tensors(many), "TOO_LARGE"),
    ("M13", FULL, tensors(lambda header: header.update(__metadata__={"x": "y" * (2 << 20)})), "TOO_LARGE"),
    ("M15", FULL, filled(float("inf")), "VALUES"),
    ("M16", FULL, filled(1e38), "VALUES"),
    ("M17", LORA, tensors(renamed), "KEYS"),
    ("M18", LORA, lambda m: {**m, WEIGHTS: struct.pack("<Q", 2) + b"{}"}, "KEYS"),
    ("M20", LORA, edited(spec__rank=200_000), "MANIFEST"),
    ("M20", LORA, edited(spec__rank=256), "KEYS"),
    ("M21", LORA, edited(spec__target_modules="([a-z_.0-9]+)+!"), "MANIFEST"),
    ("M22", FULL, edited(anything=1), "MANIFEST"),
    ("M26", FULL, edited(seed="1"), "MANIFEST"),
    ("M26", FULL, edited(spec__probe=1), "MANIFEST"),
    ("M26", FULL, edited(name="\ud800"), "MANIFEST"),
    ("M26", FULL, edited(metrics={"x": "\ud800"}), "MANIFEST"),
    ("M29", FULL, edited(spec__bands__0__std=0.0), "MANIFEST"),
    ("M29", FULL, edited(spec__bands__0__std=-1.0), "MANIFEST"),
    ("M29", FULL, edited(spec__bands__0__scale=0.0), "MANIFEST"),
    ("M29", FULL, edited(spec__bands=[]), "MANIFEST"),
    ("M30", FULL, edited(spec__num_classes=3), "MANIFEST"),
    ("M32", FULL, edited(spec__backbone="no such backbone"), "NAME_UNKNOWN"),
    ("M35", FULL, graph(elsewhere("../secret")), "UNSAFE"),
    ("M35", FULL, graph(elsewhere("/etc/hostname")), "UNSAFE"),
    ("M35", FULL, graph(elsewhere("lora.geopeft")), "UNSAFE"),
    ("M36", FULL, graph(node("ConstantOfShape")), "UNSAFE"),
    ("M36", FULL, graph(lambda found: found.initializer[0].dims.append(2**40)), "KEYS"),
    ("M37", FULL, graph(node("Loop", body=LOOP)), "UNSAFE"),
    ("M38", FULL, graph(node("EPContext", "com.microsoft")), "UNSAFE"),
]
TEXTS = [
    ("M26", text(lambda t: t.replace(b'"seed": 0', b'"seed": ' + b"9" * 5000))),
    ("M26", text(lambda t: t.replace(b'"gsd_m": 10.0', b'"gsd_m": NaN'))),
    ("M26", text(lambda t: t.replace(b'"value": 0.5', b'"value": 1e999'))),
    ("M26", text(lambda t: b"\xef\xbb\xbf" + t)),
    ("M27", text(lambda t: t[:-1] + b', "seed": 1}')),
    ("M25", text(lambda t: b'{"a":' * 200_000)),
]


def refusal(judge: Judge, body: bytes) -> str:
    answer = judge("case", body)
    assert answer["harm"] == [] and float(str(answer["seconds"])) < 5
    return str(answer["outcome"])


@pytest.mark.fault("M09", "M10", "M12", "M13", "M15", "M16", "M17", "M18", "M20", "M21", "M22", "M26", "M29", "M30")
@pytest.mark.fault("M32", "M35", "M36", "M37", "M38")
@pytest.mark.parametrize(("case", "which", "change", "code"), CASES, ids=[f"{c[0]}-{n}" for n, c in enumerate(CASES)])
def test_a_malicious_package_that_vouches_for_itself_is_refused(
    judge: Judge,
    good: tuple[Path, list[bytes]],
    case: str,
    which: int,
    change: Callable[[Members], Members],
    code: str,
) -> None:
    found = refusal(judge, pack(signed(change(read(good[1][which])))))
    assert found == f"refused {code if code == 'NAME_UNKNOWN' else 'PACKAGE_' + code}"


@pytest.mark.fault("M25", "M26", "M27")
@pytest.mark.parametrize(("case", "change"), TEXTS, ids=[f"{c[0]}-{n}" for n, c in enumerate(TEXTS)])
def test_json_that_readers_disagree_about_is_refused(
    judge: Judge, good: tuple[Path, list[bytes]], case: str, change: Callable[[Members], Members]
) -> None:
    members = read(good[1][FULL])
    assert change(members)[MANIFEST] != members[MANIFEST]
    assert refusal(judge, pack(change(members))) == "refused PACKAGE_MANIFEST"


@pytest.mark.fault("M28")
def test_a_huge_manifest_is_refused_by_its_size(judge: Judge, good: tuple[Path, list[bytes]]) -> None:
    members = read(good[1][FULL])
    assert refusal(judge, pack({**members, MANIFEST: b" " * (50 << 20)})) == "refused PACKAGE_TOO_LARGE"


@pytest.mark.fault("M14")
def test_every_flipped_bit_of_the_weights_is_found(judge: Judge, good: tuple[Path, list[bytes]]) -> None:
    body, rng = good[1][LORA], random.Random(0)
    first = body.index(WEIGHTS.encode()) + len(WEIGHTS)
    for _ in range(100):
        data = bytearray(body)
        data[rng.randrange(first, len(body) - 1000)] ^= 1 << rng.randrange(8)
        assert refusal(judge, bytes(data)) in ("refused PACKAGE_BROKEN", "refused PACKAGE_CHECKSUM")
