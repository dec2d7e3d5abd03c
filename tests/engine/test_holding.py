"""One job at a time writes a file, and what a killed one left is taken away."""

# ruff: noqa: F811, fixtures of another test file
from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from geopeft import __main__, holding, writing
from geopeft.__main__ import _unexpected
from geopeft.errors import OutputError, RasterError, is_out_of_memory
from geopeft.events import Reporter
from geopeft.holding import hold, part_of
from geopeft.job import parse
from geopeft.mapping.strips import Batch, Mapping, Seen
from geopeft.writing import write_bytes
from test_predict import NAMES, VALUES, model, run  # noqa: F401

MakeRaster = Callable[..., Path]
HOLD = (
    "import sys, pathlib; from geopeft.holding import hold\n"
    "with hold(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def other(tmp_path: Path) -> Any:
    """Another process that holds out.tif."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "out.tif")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


@pytest.mark.fault("C03", "P14")
def test_the_second_of_two_jobs_with_one_output_is_refused_at_once(
    other: subprocess.Popen[bytes],
    tmp_path: Path,
    model: Path,
    make_raster: MakeRaster,
) -> None:
    raster = make_raster(VALUES, "a.tif", names=NAMES)
    with pytest.raises(OutputError) as caught:
        run(model, [raster], tmp_path / "out.tif")
    assert caught.value.code == "OUTPUT_BUSY" and caught.value.hint
    assert not (tmp_path / "out.tif").exists()
    job = parse({"job": "fit", "rasters": [str(raster)], "labels": "l.gpkg", "out": str(tmp_path / "out.tif")})
    reporter = Reporter(progress_stream=open(os.devnull, "w"))
    assert __main__.execute(job, reporter) == 1
    other.kill()
    other.wait()
    with hold(tmp_path / "out.tif"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif"]


def test_two_names_of_one_folder_are_one_output(other: subprocess.Popen[bytes], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OutputError), hold(tmp_path / "link" / "out.tif"):
        pass
    with hold(tmp_path / "other.tif"):
        pass


@pytest.mark.fault("C05")
def test_a_file_system_without_locks_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "no locks here")

    monkeypatch.setattr(holding.fcntl, "flock", refuse)
    with hold(tmp_path / "out.tif"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("W08")
def test_what_a_killed_job_left_is_taken_away_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / ("a long name " * 6 + "x.tif")
    neighbour = tmp_path / ("a long name " * 6 + "y.tif")
    left = [part_of(out), part_of(part_of(out, ".confidence.tif"))]
    kept = [part_of(neighbour), out, neighbour, tmp_path / ".mine.part.tif"]
    for path in (*left, *kept):
        path.touch()
    with hold(out):
        assert sorted(path for path in tmp_path.iterdir() if path.suffix != ".lock") == sorted(kept)


@pytest.mark.fault("T12", "T01")
def test_the_same_map_is_the_same_file(tmp_path: Path, model: Path, make_raster: MakeRaster) -> None:
    raster = make_raster(VALUES, "a.tif", names=NAMES)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        run(model, [raster], tmp_path / name / "map.tif", confidence=True)
    for name in ("map.tif", "map_confidence.tif"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.mark.fault("R37", "R36")
def test_a_raster_that_is_overwritten_while_it_is_mapped_gives_no_map(
    tmp_path: Path,
    model: Path,
    make_raster: MakeRaster,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raster = make_raster(VALUES, "a.tif", names=NAMES)
    real = Mapping.look

    def overwritten(self: Mapping, batch: Batch) -> Seen:
        with rasterio.open(raster, "r+") as file:
            file.write(VALUES[:, ::-1])
        return real(self, batch)

    monkeypatch.setattr(Mapping, "look", overwritten)
    with pytest.raises(RasterError) as caught:
        run(model, [raster], tmp_path / "map.tif")
    assert caught.value.code == "RASTER_CHANGED"
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


@pytest.mark.fault("R32")
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (63, 64), (64, 65), (127, 129)])
def test_every_pixel_of_a_raster_of_any_size_is_mapped(
    tmp_path: Path,
    model: Path,
    make_raster: MakeRaster,
    shape: tuple[int, int],
) -> None:
    values = np.random.default_rng(1).integers(1, 3000, (2, *shape)).astype(np.uint16)
    raster = make_raster(values, "a.tif", names=NAMES)
    outputs = run(model, [raster], tmp_path / "map.tif")
    with rasterio.open(tmp_path / "map.tif") as mapped:
        assert mapped.shape == shape and (mapped.read(1) > 0).all()
    assert outputs["rasters"][0]["mapped_share"] == 1


@pytest.mark.fault("R05")
def test_a_raster_without_data_gives_an_empty_map_and_says_so(
    tmp_path: Path,
    model: Path,
    make_raster: MakeRaster,
) -> None:
    raster = make_raster(np.zeros((2, 80, 80), np.uint16), "a.tif", names=NAMES, nodata=0)
    reporter = Reporter()
    run(model, [raster], tmp_path / "map.tif", reporter)
    with rasterio.open(tmp_path / "map.tif") as mapped:
        assert not mapped.read(1).any()
    assert any("no pixel to map" in text for text in reporter.warnings)


@pytest.mark.fault("W16")
def test_a_name_that_is_too_long_is_told_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="too long") as caught:
        writing.check_target(tmp_path / ("x" * 300 + ".tif"))
    assert caught.value.code == "OUTPUT_FAILED"


@pytest.mark.fault("W09")
def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def noted(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            done.append(name)
            return real(*arguments)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    writing.write_bytes(tmp_path / "a", b"x")
    assert done == ["fsync", "replace", "fsync"]


@pytest.mark.fault("W14")
def test_others_may_read_what_the_user_lets_them(tmp_path: Path) -> None:
    with writing.whole_file(tmp_path / "a") as part:
        part.write_bytes(b"x")
        part.chmod(0o600)
    mode = stat.S_IMODE((tmp_path / "a").stat().st_mode)
    (tmp_path / "b").touch()
    assert mode == stat.S_IMODE((tmp_path / "b").stat().st_mode)


@pytest.mark.fault("W07")
@pytest.mark.parametrize("refusals", [3, 10**6])
def test_a_file_that_is_open_elsewhere_is_waited_for_a_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refusals: int
) -> None:
    real, asked = os.replace, []

    def replace(*arguments: Any) -> None:
        asked.append(1)
        if len(asked) <= refusals:
            error = PermissionError(errno.EACCES, "in use")
            error.winerror = 32  # type: ignore[attr-defined]
            raise error
        real(*arguments)

    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(writing, "_IN_USE_WAIT_S", 0.3)
    (tmp_path / "a").write_bytes(b"old")
    if refusals == 3:
        writing.write_bytes(tmp_path / "a", b"new")
        assert (tmp_path / "a").read_bytes() == b"new"
        return
    with pytest.raises(OutputError) as caught:
        writing.write_bytes(tmp_path / "a", b"new")
    assert caught.value.code == "OUTPUT_IN_USE"
    assert (tmp_path / "a").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(os.name != "posix", reason="links and modes of POSIX")
@pytest.mark.fault("S10")
def test_links_that_lie_in_wait_are_not_followed(tmp_path: Path) -> None:
    victim, out = tmp_path / "victim", tmp_path / "map.tif"
    victim.write_text("mine")
    with hold(out):
        (lock,) = (path for path in tmp_path.iterdir() if path.name.startswith("."))
    for name in {lock.name, "map.tif", "map.tif.part", ".map.tif.part"}:
        (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / name).symlink_to(victim)
    with hold(out):
        write_bytes(out, b"map")
    assert victim.read_text() == "mine" and not out.is_symlink() and out.read_bytes() == b"map"
    assert part_of(out) != part_of(out), "its name cannot be foreseen"


@pytest.mark.fault("P19")
@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("CUDA out of memory"), True),
        (OSError(errno.ENOMEM, "no"), True),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("could not create a primitive"), True),
        (SystemError("error return without exception set"), True),
        (RuntimeError("Failed to serialize proto"), True),
        (ImportError("_flapack.so: failed to map segment from shared object"), True),
        (OSError(errno.ENOSPC, "no"), False),
        (ValueError("no band"), False),
    ],
)
def test_missing_memory_is_known_in_the_words_of_each_library(error: Exception, is_memory: bool) -> None:
    assert is_out_of_memory(error) == is_memory


@pytest.mark.fault("P19")
@pytest.mark.parametrize(("there", "code"), [(True, "INTERNAL"), (False, "OUT_OF_MEMORY")])
def test_an_error_without_sense_is_missing_memory_where_there_is_none(
    there: bool, code: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("geopeft.__main__.has_memory", lambda: there)
    assert _unexpected(TypeError("'frame' object is not callable"), Reporter()).code == code
