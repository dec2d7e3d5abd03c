"""A model package comes from anywhere: a manifest is read, or one sentence says what is wrong with the file."""

import ast
import io
import json
import os
import random
import struct
import sys
import time
import zipfile
from pathlib import Path

import pytest
from model_files import MANIFEST, changed, members, write

from geopeft_qgis import model_package
from geopeft_qgis.model_package import PackageError, read_manifest, summary


@pytest.fixture
def package(tmp_path):
    return write(tmp_path / "m.geopeft", members())


def refused(path):
    with pytest.raises(PackageError) as caught:
        read_manifest(path)
    error = caught.value
    assert error.message.startswith(str(path)) or "There is no file" in error.message
    assert error.message.endswith(".") and error.hint.endswith(".") and "\n" not in str(error)
    return error.message


def test_a_package_is_summed_up(package):
    found = summary(read_manifest(package), package.stat().st_size)
    assert found.name == "Itaipú" and found.gsd_m == 30 and found.sensor == "reflectance, uint16"
    assert found.classes == ((1, "water", "#3b7dd8", 0.9), (2, "Forêt", "#1f7a3d", None))
    assert found.bands == (("B3", "red", 0.655), ("slope", "", None))
    assert found.accuracy.text == "mIoU 0.74 (0.66–0.80)"
    assert found.accuracy.measured_on == "blocks of the labels held out"
    assert (found.backbone, found.licence, found.revision, found.adapter) == ("galileo_nano", "MIT", "abc", "lora")
    assert (found.created, found.engine_version) == ("2026-11-25T22:28:24+00:00", "0.1.0")
    assert found.size_bytes == package.stat().st_size


def test_a_package_of_the_engine_is_understood(tmp_path):
    """With every member that the engine may write, and the first version of the manifest."""
    path = write(tmp_path / "m.geopeft", members(changed(schema_version=1), **{"forest.onnx": b"", "model.onnx": b""}))
    assert read_manifest(str(path))["schema_version"] == 1


def test_a_model_without_an_accuracy_says_nothing_of_it(tmp_path):
    for metrics in ({}, {"miou": {"value": None}}, {"miou": "good"}, {"miou": {"value": 7}}, None, []):
        found = summary(read_manifest(write(tmp_path / "m.geopeft", members(changed(metrics=metrics)))))
        assert found.accuracy.text == "" and found.accuracy.value is None


def test_a_file_that_is_not_there_or_is_no_file(tmp_path):
    assert "There is no file" in refused(tmp_path / "none.geopeft")
    assert "is no file" in refused(tmp_path)
    for body in (b"", b"PK", b"<html>not found</html>", b"PK\x05\x06", bytes(100_000)):
        (tmp_path / "m.geopeft").write_bytes(body)
        assert "no zip file" in refused(tmp_path / "m.geopeft")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "m.geopeft")
    assert "is no file" in refused(tmp_path / "m.geopeft")


def test_every_truncation_is_refused(package):
    whole = package.read_bytes()
    for length in [*range(0, len(whole), 37), len(whole) - 1]:
        package.write_bytes(whole[:length])
        refused(package)


@pytest.mark.fault("S18")
def test_any_damage_is_a_sentence_or_a_manifest_that_can_be_summed_up(package):
    whole = package.read_bytes()
    generator = random.Random(0)
    refusals = 0
    for _ in range(1500):
        body = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            body[generator.randrange(len(body))] = generator.randrange(256)
        package.write_bytes(body)
        try:
            summary(read_manifest(package))
        except PackageError:
            refusals += 1
    assert refusals > 1000


@pytest.mark.parametrize(
    "name",
    [
        "../manifest.json",
        "/etc/passwd",
        "a\\b",
        "C:manifest.json",
        "sub/weights.safetensors",
        ".hidden",
        "code.pkl",
        "x.py",
    ],
)
@pytest.mark.fault("M02", "M08")
def test_other_files_in_a_package_are_refused(tmp_path, name):
    assert name[:8] in refused(write(tmp_path / "m.geopeft", members(**{name: b"x"})))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.geopeft"]


def test_missing_and_doubled_members_are_refused(tmp_path):
    path = tmp_path / "m.geopeft"
    assert "no manifest.json" in refused(write(path, {"weights.safetensors": b"x"}))
    assert "no weights.safetensors" in refused(write(path, {"manifest.json": json.dumps(MANIFEST)}))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "w") as archive:
        for name in ("manifest.json", "weights.safetensors", "manifest.json"):
            archive.writestr(name, json.dumps(MANIFEST))
    assert "twice" in refused(path)


@pytest.mark.fault("M04")
def test_a_compressed_manifest_is_refused_so_that_no_bomb_is_unpacked(tmp_path):
    start = time.monotonic()
    path = write(tmp_path / "m.geopeft", members(b" " * (200 << 20)), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    written = time.monotonic()
    assert "its manifest is compressed" in refused(path)
    assert time.monotonic() - written < max(0.5, (written - start) / 4)


def test_a_huge_manifest_is_refused(tmp_path):
    path = write(tmp_path / "m.geopeft", members(b" " * (model_package.MAX_MANIFEST_BYTES + 1)))
    assert "larger than 4 MB" in refused(path)


@pytest.mark.fault("M05")
def test_a_size_that_lies_is_refused(package):
    body = package.read_bytes()
    entry = body.rindex(b"PK\x01\x02", 0, body.rindex(b"PK\x01\x02"))
    for size in (10, 3 << 20, 1 << 30):
        lying = bytearray(body)
        lying[entry + 20 : entry + 28] = struct.pack("<LL", size, size)
        package.write_bytes(lying)
        refused(package)


@pytest.mark.fault("M07")
def test_very_many_members_are_refused_at_once(tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(100_000):
            archive.writestr(f"f{number}", b"")
    path = tmp_path / "m.geopeft"
    path.write_bytes(buffer.getvalue())
    start = time.monotonic()
    assert "too many files (100000)" in refused(path)
    assert time.monotonic() - start < 0.3


def test_a_newer_package_asks_for_an_update(tmp_path):
    content = members(changed(schema_version=99, classes="otherwise"), **{"new.bin": b"x"})
    with pytest.raises(PackageError) as caught:
        read_manifest(write(tmp_path / "m.geopeft", content))
    assert "newer GeoPEFT" in caught.value.message and caught.value.hint == "Update GeoPEFT."


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b'"text"',
        b"\xff\xfe",
        b"[" * 200_000,
        b'{"a":' * 200_000,
        json.dumps(MANIFEST)[:-1].encode() + b', "name": "another"}',
        json.dumps(MANIFEST).replace("30.0", "NaN").encode(),
        json.dumps(MANIFEST).replace("30.0", "1e999").encode(),
        json.dumps(MANIFEST).replace("30.0", "1" * 2_000_000).encode(),
        json.dumps(MANIFEST).replace("30.0", "0." + "1" * 2_000_000).encode(),
        "\ufeff".encode() + json.dumps(MANIFEST).encode(),
    ],
    ids=lambda body: body[:12].decode("latin-1"),
)
def test_json_that_is_no_manifest_is_refused_at_once(tmp_path, body):
    path = write(tmp_path / "m.geopeft", members(body))
    start = time.monotonic()
    refused(path)
    assert time.monotonic() - start < 1


WRONG: list[object] = [None, 7, -1, 1.5, True, "text", [], {}, [None], ["text"], [{}], [[]], "\ud800", "x" * 100_000]


def places(data, path=()):
    """The place of every value in the manifest that the summary reads."""
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        yield (*path, key)
        if isinstance(value, (dict, list)):
            yield from places(value, (*path, key))


@pytest.mark.parametrize("place", list(places(MANIFEST)), ids=str)
def test_a_value_of_any_wrong_type_is_a_sentence_or_a_summary_that_can_be_shown(tmp_path, place):
    for wrong in WRONG:
        manifest = json.loads(json.dumps(MANIFEST))
        where = manifest
        for key in place[:-1]:
            where = where[key]
        where[place[-1]] = wrong
        path = write(tmp_path / "m.geopeft", members(manifest))
        try:
            found = summary(read_manifest(path))
        except PackageError as error:
            assert str(error).endswith(".") and len(str(error)) < 600
            continue
        for text in texts(found):
            assert len(text) <= model_package.MAX_TEXT
            text.encode("utf-8")


def texts(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from texts(part)


@pytest.mark.parametrize("color", ["red", "#12345", "#1234567", "#12345g", "#123456;background:url(x)", "#123456\n", 5])
def test_only_a_colour_is_taken_as_a_colour(tmp_path, color):
    classes = [{**MANIFEST["classes"][0], "color": color}]
    assert "no colour" in refused(write(tmp_path / "m.geopeft", members(changed(classes=classes))))


@pytest.mark.fault("S02")
def test_texts_are_short_and_hide_nothing(tmp_path):
    name = "a\x00b\nc\u202ed\u200de" + "x" * 500
    found = summary(read_manifest(write(tmp_path / "m.geopeft", members(changed(name=name)))))
    assert found.name.startswith("a b c d\u200de") and len(found.name) == model_package.MAX_NAME


def test_the_reader_needs_the_standard_library_only():
    """And the plugin's own translation, which needs no more."""
    for node in ast.walk(ast.parse(Path(model_package.__file__).read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert all(name.split(".")[0] in {*sys.stdlib_module_names, "language"} for name in names)
