"""The model package: what is written is what is read, and anything else is refused in one sentence."""

import io
import json
import stat
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from geopeft import package
from geopeft.errors import PackageError
from geopeft.models.spec import InputBand, ModelSpec, TextureSpec
from pydantic import BaseModel

from tests.strange_packages import signed

WEIGHTS = {
    "decoder.w": np.arange(12, dtype=np.float32).reshape(3, 4),
    "head.b": np.ones(2, np.float32),
    "adapter.count": np.array(7),  # without a dimension, as the counters of batch normalisation are
}


def manifest() -> package.Manifest:
    spec = ModelSpec(
        backbone="scratch_unet",
        adapter="full",
        decoder="unet",
        bands=(InputBand(name="red"), InputBand(name="nir")),
        num_classes=2,
        gsd_m=10,
        chip_size_px=64,
    )
    classes = (
        package.ClassInfo(value=1, name="Wasser ü", color="#0000ff", label="1"),
        package.ClassInfo(value=2, name="land", color="#00ff00", label="2"),
    )
    base = package.BaseWeights(backbone="scratch_unet", licence="none")
    return package.Manifest(
        engine_version="0.1.0",
        created="2026-01-01T00:00:00+00:00",
        name="m",
        spec=spec,
        classes=classes,
        base_weights=base,
        radiometry="reflectance",
        dtype="uint16",
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "m.geopeft"
    package.write(path, manifest(), WEIGHTS)
    return path


def rewrite(
    path: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]], compression: int = zipfile.ZIP_STORED
) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, body in change(members).items():
            archive.writestr(name, body)


def test_a_package_reads_back_as_written(saved: Path) -> None:
    opened = package.read(saved)
    assert opened.manifest.model_copy(update={"sha256": {}}) == manifest()
    assert {name: (array.shape, array.tolist()) for name, array in opened.weights.items()} == {
        name: (array.shape, array.tolist()) for name, array in WEIGHTS.items()
    }


def test_the_same_model_gives_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    package.write(tmp_path / "again.geopeft", manifest(), WEIGHTS)
    assert (tmp_path / "again.geopeft").read_bytes() == saved.read_bytes()


def flip_a_bit(members: dict[str, bytes]) -> dict[str, bytes]:
    body = bytearray(members["weights.safetensors"])
    body[-3] ^= 4
    return {**members, "weights.safetensors": bytes(body)}


def with_weights(members: dict[str, bytes], body: bytes) -> dict[str, bytes]:
    """Other weights under a manifest that vouches for them."""
    return signed({**members, "weights.safetensors": body})


def not_finite(members: dict[str, bytes]) -> dict[str, bytes]:
    from safetensors.numpy import save

    return with_weights(members, save({"decoder.w": np.array([1, np.nan], np.float32)}))


def huge_header(members: dict[str, bytes]) -> dict[str, bytes]:
    return with_weights(members, struct.pack("<Q", 1 << 40) + b"{}")


def edited(**fields: object) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    """Other fields in a manifest that vouches for itself."""

    def change(members: dict[str, bytes]) -> dict[str, bytes]:
        data = json.loads(members["manifest.json"]) | fields
        return signed({**members, "manifest.json": json.dumps(data).encode()})

    return change


def edited_by_hand(members: dict[str, bytes]) -> dict[str, bytes]:
    text = members["manifest.json"].decode()
    assert '"gsd_m": 10.0' in text
    return {**members, "manifest.json": text.replace('"gsd_m": 10.0', '"gsd_m": 20.0').encode()}


@pytest.mark.fault("M01", "M02", "M08", "M14", "M15", "M22", "M25", "M30", "M42")
@pytest.mark.parametrize(
    ("change", "code"),
    [
        (flip_a_bit, "PACKAGE_CHECKSUM"),
        (edited_by_hand, "PACKAGE_CHECKSUM"),
        (not_finite, "PACKAGE_VALUES"),
        (huge_header, "PACKAGE_TOO_LARGE"),
        (edited(surprise=1), "PACKAGE_MANIFEST"),
        (edited(classes=[{"value": 1, "name": "a", "color": "#000000", "label": "a"}]), "PACKAGE_MANIFEST"),
        (edited(spec={"backbone": "x"}), "PACKAGE_MANIFEST"),
        (lambda members: {"manifest.json": members["manifest.json"]}, "PACKAGE_BROKEN"),
        (lambda members: {**members, "../evil.txt": b"x"}, "PACKAGE_UNSAFE"),
        (lambda members: {**members, "model.pkl": b"x"}, "PACKAGE_UNSAFE"),
        (lambda members: {**members, "manifest.json": b"\xff\xfe"}, "PACKAGE_MANIFEST"),
        (lambda members: {**members, "manifest.json": b"[" * 100_000}, "PACKAGE_MANIFEST"),
    ],
)
def test_a_changed_package_is_refused(
    saved: Path, change: Callable[[dict[str, bytes]], dict[str, bytes]], code: str
) -> None:
    rewrite(saved, change)
    with pytest.raises(PackageError) as caught:
        package.read(saved)
    assert caught.value.code == code
    assert caught.value.hint


def test_figures_that_are_no_numbers_are_kept_as_unknown(tmp_path: Path) -> None:
    package.write(tmp_path / "m.geopeft", manifest().model_copy(update={"metrics": {"miou": float("nan")}}), WEIGHTS)
    assert package.read(tmp_path / "m.geopeft").manifest.metrics == {"miou": None}


@pytest.mark.fault("M23")
def test_a_package_of_a_newer_engine_says_so(saved: Path) -> None:
    rewrite(saved, edited(schema_version=99))
    with pytest.raises(PackageError) as caught:
        package.read(saved)
    assert caught.value.code == "PACKAGE_NEWER"


def of_version(version: int) -> Callable[[dict[str, bytes]], dict[str, bytes]]:
    """A package as the earlier versions wrote it: without what came later, and without a checksum of its manifest."""

    def plain(model: type[BaseModel], data: dict[str, Any]) -> dict[str, Any]:
        return {name: data[name] for name, field in model.model_fields.items() if field.is_required()}

    def change(members: dict[str, bytes]) -> dict[str, bytes]:
        data = json.loads(members["manifest.json"])
        kept = plain(package.Manifest, data) | {"schema_version": version, "sha256": data["sha256"]}
        kept["spec"] = plain(ModelSpec, data["spec"])
        del kept["sha256"]["manifest.json"]
        return {**members, "manifest.json": json.dumps(kept).encode()}

    return change


@pytest.mark.fault("M24")
@pytest.mark.parametrize("version", range(1, package.SCHEMA_VERSION))
def test_packages_of_earlier_versions_are_read(saved: Path, version: int) -> None:
    now = package.read(saved)
    rewrite(saved, of_version(version))
    found = package.read(saved)
    assert found.manifest.schema_version == version
    assert found.manifest.model_copy(update={"schema_version": now.manifest.schema_version, "sha256": {}}) == (
        now.manifest.model_copy(update={"sha256": {}})
    )
    assert {name: array.tobytes() for name, array in found.weights.items()} == {
        name: array.tobytes() for name, array in now.weights.items()
    }


@pytest.mark.fault("M04")
def test_a_compressed_member_is_refused(saved: Path) -> None:
    rewrite(saved, lambda members: members, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(PackageError):
        package.read(saved)


@pytest.mark.fault("M03")
@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFDIR])
def test_a_member_that_is_a_link_or_a_device_is_refused(saved: Path, kind: int) -> None:
    with zipfile.ZipFile(saved) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(saved, "w") as archive:
        for name, body in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = (kind if name == "weights.safetensors" else stat.S_IFREG) << 16 | 0o644 << 16
            archive.writestr(info, body)
    with pytest.raises(PackageError) as error:
        package.read(saved)
    assert error.value.code == "PACKAGE_UNSAFE" and "weights.safetensors is no plain file" in error.value.message


def test_a_member_twice_is_refused(saved: Path) -> None:
    buffer = io.BytesIO(saved.read_bytes())
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("manifest.json", b"{}")
    saved.write_bytes(buffer.getvalue())
    with pytest.raises(PackageError):
        package.read(saved)


@pytest.mark.fault("M01")
@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_half_a_package_is_refused(saved: Path, share: float) -> None:
    body = saved.read_bytes()
    saved.write_bytes(body[: int(len(body) * share)])
    with pytest.raises(PackageError):
        package.read(saved)


def test_a_missing_package_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(PackageError) as missing:
        package.read(tmp_path / "none.geopeft")
    with pytest.raises(PackageError) as folder:
        package.read(tmp_path)
    assert missing.value.code == "PACKAGE_MISSING"
    assert "folder" in folder.value.message


def test_a_forest_is_kept_and_one_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "f.geopeft"
    texture = TextureSpec(windows_px=(3,), ratios=(), components=2)
    package.write(path, manifest().model_copy(update={"classical": texture}), WEIGHTS, b"trees")
    assert package.read(path).forest == b"trees"
    rewrite(path, lambda members: members | {"forest.onnx": b"other"})
    with pytest.raises(PackageError, match="forest"):
        package.read(path)


@pytest.mark.parametrize("spoken_of", [True, False])
def test_forest_and_manifest_must_agree(tmp_path: Path, spoken_of: bool) -> None:
    path = tmp_path / "f.geopeft"
    texture = TextureSpec(windows_px=(3,), ratios=(), components=2) if spoken_of else None
    package.write(path, manifest().model_copy(update={"classical": texture}), WEIGHTS, b"" if spoken_of else b"trees")
    with pytest.raises(PackageError, match="forest"):
        package.read(path)
