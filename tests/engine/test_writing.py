"""A result at its final name is whole, or the old one or none is there."""

import errno
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
from geopeft import writing
from geopeft.errors import DeviceError, OutputError
from rasterio.windows import Window

PROFILE = {
    "driver": "GTiff",
    "dtype": "uint8",
    "count": 1,
    "height": 600,
    "width": 500,
    "tiled": True,
    "blockxsize": 256,
    "blockysize": 256,
    "compress": "deflate",
    "crs": "EPSG:32633",
    "transform": rasterio.Affine(10, 0, 0, 0, -10, 0),
}


def write_noise(path: Path, seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 255, (600, 500), np.uint8)
    with writing.whole_raster(path, **PROFILE) as write:
        for row in range(0, 600, 256):
            part = pixels[row : row + 256]
            write(part, Window(0, row, 500, len(part)))
    return pixels


def test_a_raster_is_written_as_it_was_given(tmp_path: Path) -> None:
    pixels = write_noise(tmp_path / "a.tif")
    with rasterio.open(tmp_path / "a.tif") as raster:
        assert np.array_equal(raster.read(1), pixels)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


def test_an_error_while_writing_keeps_the_old_raster_and_leaves_nothing_else(tmp_path: Path) -> None:
    old = write_noise(tmp_path / "a.tif")
    with pytest.raises(RuntimeError), writing.whole_raster(tmp_path / "a.tif", **PROFILE) as write:
        write(np.zeros((256, 500), np.uint8), Window(0, 0, 500, 256))
        raise RuntimeError("stopped")
    with rasterio.open(tmp_path / "a.tif") as raster:
        assert np.array_equal(raster.read(1), old)
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]


def test_a_raster_that_reads_back_differently_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damage(part: Path) -> None:
        with rasterio.open(part, "r+") as raster:
            raster.write(np.full((1, 10, 10), 7, np.uint8), window=Window(0, 0, 10, 10))

    with pytest.raises(OutputError), writing.whole_raster(tmp_path / "a.tif", damage, **PROFILE) as write:
        write(np.zeros((600, 500), np.uint8), Window(0, 0, 500, 600))
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_gdal_signals_without_raising_is_not_published(tmp_path: Path) -> None:
    with pytest.raises(OutputError), writing.whole_raster(tmp_path / "a.tif", **PROFILE) as write:
        write(np.zeros((600, 500), np.uint8), Window(0, 0, 500, 600))
        logging.getLogger("rasterio._err").info("GDAL signalled an error: err_no=3, msg='write error'")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system needs more rights than this user has")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("free_kb", [0, 4, 64, 200])
def test_a_full_disk_is_reported_and_nothing_is_left(
    small_disk: Path, free_kb: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small_disk / "ballast").write_bytes(b"x" * ((3 << 20) - (free_kb << 10) - 4096))
    with pytest.raises(OutputError) as caught:
        write_noise(small_disk / "a.tif")
    assert caught.value.code == "DISK_FULL"
    assert [p.name for p in small_disk.iterdir()] == ["ballast"]


def test_too_little_room_is_told_before_the_work(small_disk: Path) -> None:
    with pytest.raises(OutputError) as caught:
        writing.check_target(small_disk / "a.tif", 1 << 20)
    assert caught.value.code == "DISK_FULL"


def test_a_target_in_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError):
        writing.check_target(tmp_path / "file" / "a.tif")


def test_permission_is_told_by_its_own_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "touch", refuse)
    with pytest.raises(OutputError) as caught:
        writing.check_target(tmp_path / "a.tif")
    assert caught.value.code == "NO_PERMISSION"


@pytest.mark.fault("P19")
def test_a_file_that_memory_is_missing_for_is_told_as_missing_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr("geopeft.writing.os.fsync", fail)
    with pytest.raises(DeviceError) as error:
        writing.write_bytes(tmp_path / "f", b"x")
    assert error.value.code == "OUT_OF_MEMORY" and not list(tmp_path.iterdir())
