"""A raster mapped in parts: the same map however it is cut, and going on after an interruption."""

# ruff: noqa: F811, fixtures of another test file
from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from geopeft.data.raster import describe
from geopeft.errors import Canceled, GeopeftError, OutputError
from geopeft.events import Reporter
from geopeft.job import parse
from geopeft.mapping import strips
from geopeft.mapping.strips import Batch, Mapping, Seen, map_raster
from geopeft.maps import parts
from geopeft.maps.drawing import Work
from geopeft.maps.parts import Part, PartStore, Rows, kept, order_of, parts_of, runs_of
from geopeft.runtime import Runtime
from test_predict import NAMES, model, run  # noqa: F401

MakeRaster = Callable[..., Path]
TALL = np.random.default_rng(3).integers(1, 3000, (2, 900, 110)).astype(np.uint16)
TALL[:, 200:380, :70] = 0
TALL[:, 440:640] = 0


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of one row of blocks."""
    monkeypatch.setattr(parts, "PART_PX", 1)


@pytest.fixture
def tall(make_raster: MakeRaster) -> Path:
    """A raster of four parts, with pixels, windows and whole rows of windows without data."""
    return make_raster(TALL, "tall.tif", names=NAMES, nodata=0)


def order(model: Path, raster: Path, **fields: Any) -> parts.Order:
    job = parse({"job": "predict", "model": str(model), "rasters": [str(raster)], "out": "o.tif"} | fields)
    return order_of(job, describe(str(raster)))  # type: ignore[arg-type]


class Quick(Runtime):
    """Says of a pixel what its values and its place in the window tell, so that every weight can be seen."""

    def look(self, values: np.ndarray, valid: np.ndarray, *_: Any) -> tuple[np.ndarray, list[np.ndarray]]:
        rows, cols = (np.arange(n, dtype=np.float32) / n for n in values.shape[-2:])
        share = (values[:, 0] % 7 / 7 + rows[:, None] + cols) / 3
        return np.stack([share, 1 - share], 1), []


def mapped(runtime: Runtime, asked: parts.Order, run: tuple[Part, ...]) -> list[Rows]:
    work = Work(runtime, asked, Reporter())
    return list(work.rows(run, work.look(run, lambda _: None)))


@pytest.mark.parametrize("width", [40, 110, 312, 350])
def test_a_pixel_is_the_same_however_the_rows_are_cut(model: Path, make_raster: MakeRaster, width: int) -> None:
    """One window to a row, two, four, five."""
    values = np.random.default_rng(width).integers(1, 3000, (2, 900, width)).astype(np.uint16)
    values[:, 200:380, width // 2 :] = 0
    values[:, 440:640] = 0
    runtime = Quick.open(model, "cpu", "", Reporter())
    asked = order(model, make_raster(values, names=NAMES, nodata=0), confidence=True, entropy=True, unknown_below=55)
    every = parts_of(asked.info)
    assert [(part.row0, part.row1) for part in every] == [(0, 256), (256, 512), (512, 768), (768, 900)]
    whole = mapped(runtime, asked, every)
    assert [rows.row for rows in whole] == [part.row0 for part in every]
    for some in (*runs_of(every, 3), *runs_of(every, 4)):
        for found in mapped(runtime, asked, some):
            (same,) = [rows for rows in whole if rows.row == found.row]
            assert np.array_equal(found.values, same.values) and found.tally == same.tally
    drawn = np.concatenate([rows.values for rows in whole], 1)
    sure, there = summed(runtime, asked.info), (values > 0).all(0)
    assert np.array_equal(drawn[0] > 0, there)
    clear = there & (np.abs(sure.max(0) - 0.55) > 0.01) & (np.abs(sure[0] - 0.5) > 0.01)
    assert np.array_equal(drawn[0][clear], np.where(sure.max(0) < 0.55, 255, sure.argmax(0) + 1)[clear])
    assert np.abs(drawn[1] / 100 - sure.max(0))[there].max() < 0.0051
    tally = sum((rows.tally for rows in whole), parts.Tally())
    assert (tally.mapped, tally.unknown) == (there.sum(), (drawn[0] == 255).sum())


def summed(runtime: Runtime, info: Any) -> np.ndarray:
    """(K, H, W): the windows added up over the whole raster at once; as well those of `map_raster`."""
    work = Mapping(runtime, info, (), Reporter())
    total, weight = np.zeros((2, info.height, info.width)), np.full((info.height, info.width), 1e-9)
    for batch in work.read(range(len(work.rows))):
        seen = work.look(batch)
        for number, column in enumerate(batch.columns):
            top, left = work.rows.starts[batch.row], work.columns.starts[column]
            place = (slice(top, top + work.rows.window_px), slice(left, left + work.columns.window_px))
            blend = work.rows.weights(batch.row)[:, None] * work.columns.weights(column)
            total[:, *place] += seen.probabilities[number] * blend
            weight[place] += blend
    strips = list(map_raster(runtime, info, (), Reporter()))
    found, mapped = (np.concatenate([getattr(s, name) for s in strips], at) for name, at in PLACES)
    assert np.abs(found - total / weight)[:, mapped].max() < 1e-5 and not found[:, ~mapped].any()
    return total / weight


PLACES = (("probabilities", 1), ("mapped", 0))


def test_windows_are_read_once_side_by_side(model: Path, tall: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from geopeft.data.raster import RasterReader

    columns: list[tuple[int, int, int]] = []
    real = RasterReader.read

    def read(self: RasterReader, window: Any) -> Any:
        columns.append((window.row_off, window.col_off, window.width))
        return real(self, window)

    monkeypatch.setattr(RasterReader, "read", read)
    runtime = Runtime.open(model, "cpu", "", Reporter())
    work = Mapping(runtime, describe(str(tall)), (), Reporter())
    list(work.read(range(1)))
    assert sum(width for *_, width in columns) == 110 and len(columns) == len(work.columns) > 1


@pytest.mark.parametrize("nodata", [0, None])
def test_blocks_that_a_file_lacks_are_not_read_where_it_says_what_they_would_hold(
    model: Path, tmp_path: Path, nodata: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geopeft.data.raster import RasterReader

    path = tmp_path / "sparse.tif"
    affine = rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)
    with rasterio.open(
        path, "w", driver="GTiff", count=2, height=600, width=700, dtype="uint16", crs="EPSG:32633", nodata=nodata,
        transform=affine, tiled=True, blockxsize=64, blockysize=64, SPARSE_OK=True,
    ) as file:  # fmt: skip
        file.write(TALL[:, :64, :64], window=rasterio.windows.Window(320, 256, 64, 64))
        file.descriptions = NAMES
    found: list[Any] = []
    real = RasterReader.read

    def read(self: RasterReader, window: Any) -> Any:
        found.append(window)
        return real(self, window)

    monkeypatch.setattr(RasterReader, "read", read)
    runtime = Quick.open(model, "cpu", "", Reporter())
    work = Mapping(runtime, describe(str(path)), (), Reporter())
    seen = list(work.read(range(len(work.rows))))
    assert [batch.until for batch in seen if batch.until == len(work.columns)] == len(work.rows) * [len(work.columns)]
    if nodata is None:
        assert len(found) == len(work.rows) * len(work.columns), "what is missing is 0, which may be a value"
    else:
        assert 0 < len(found) <= 9 and all(batch.valid.any() for batch in seen if batch.columns)


def test_a_huge_map_does_without_blocks_and_says_the_same(
    model: Path, tall: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runtime, "look", Quick.look)
    run(model, [tall], tmp_path / "whole.tif", confidence=True)
    monkeypatch.setattr("geopeft.class_raster.SPARSE_FROM_PX", 1)
    monkeypatch.setattr("geopeft.class_raster.BLOCK_PX", 64)
    monkeypatch.setattr(parts, "BLOCK_PX", 64)
    monkeypatch.setattr("geopeft.maps.drawing.BLOCK_PX", 64)
    run(model, [tall], tmp_path / "huge.tif", confidence=True)
    for name in ("", "_confidence"):
        with rasterio.open(tmp_path / f"whole{name}.tif") as one, rasterio.open(tmp_path / f"huge{name}.tif") as other:
            assert np.array_equal(one.read(), other.read()) and (one.read(1) != one.nodata).any()
            assert other.get_tag_item("BLOCK_OFFSET_0_8", "TIFF", bidx=1) is None
            assert other.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1) is not None


class Stop(Reporter):
    """Cancels after so many looks of the progress."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left = after

    def progress(self, *arguments: Any, **options: Any) -> None:
        self.left -= 1
        if self.left < 0:
            raise Canceled


def windows_looked_at(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    rows: list[int] = []
    real = Mapping.look

    def look(self: Mapping, batch: Batch) -> Seen:
        rows.append(batch.row)
        return real(self, batch)

    monkeypatch.setattr(strips.Mapping, "look", look)
    return rows


def maps(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".tif"}


@pytest.mark.fault("T03")
def test_a_canceled_map_goes_on_and_ends_with_the_same_bytes(
    model: Path, tall: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = {"confidence": True, "entropy": True}
    first = run(model, [tall], tmp_path / "at once" / "map.tif", **asked)
    (tmp_path / "cut").mkdir()
    with pytest.raises(Canceled):
        run(model, [tall], tmp_path / "cut" / "map.tif", Stop(18), **asked)
    (folder,) = (tmp_path / "cut").iterdir()
    left = sorted(folder.iterdir())
    assert 2 <= len(left) < 4
    left[0].write_bytes(left[0].read_bytes()[:-90])
    rows, reporter = windows_looked_at(monkeypatch), Reporter()
    again = run(model, [tall], tmp_path / "cut" / "map.tif", reporter, **asked)
    assert maps(tmp_path / "cut") == maps(tmp_path / "at once")
    assert any(f"{len(left) - 1} of 4 parts of tall.tif were mapped before" in text for text in reporter.messages)
    assert len(set(rows)) < len(
        Mapping(Runtime.open(model, "cpu", "", Reporter()), describe(str(tall)), (), Reporter()).rows
    )
    assert min(rows) == 0, "the damaged part is mapped anew"
    assert not folder.exists()
    for name in ("mapped_share", "unknown_share", "outside_share"):
        assert again["rasters"][0][name] == first["rasters"][0][name]


def test_parts_of_another_order_raster_or_long_ago_are_dropped(model: Path, tall: Path, tmp_path: Path) -> None:
    target = tmp_path / "map.tif"

    def interrupted(**fields: Any) -> list[str]:
        with pytest.raises(Canceled):
            run(model, [tall], target, Stop(9), **fields)
        (folder,) = tmp_path.glob(".*.resume")
        return sorted(path.name for path in folder.iterdir())

    first = interrupted()
    second = interrupted(confidence=True)
    assert first and second and not set(first) & set(second)
    with rasterio.open(tall, "r+") as file:
        file.write(TALL[:, ::-1])
    third = interrupted(confidence=True)
    assert not set(second) & set(third)
    (folder,) = tmp_path.glob(".*.resume")
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    mine = tmp_path / ".other.0123abcd.resume"
    mine.mkdir()
    (mine / "of the user").touch()
    os.utime(mine / "of the user", (0, 0))
    run(model, [tall], tmp_path / "other.tif")
    assert not folder.exists() and mine.exists()


@pytest.mark.fault("W01")
def test_a_disk_too_full_for_parts_is_told_and_the_map_is_made(
    model: Path, tall: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = parts.whole_file, []

    def whole_file(path: Path) -> Any:
        written.append(path)
        if len(written) == 2:
            raise OutputError("The disk is full.", "Free some space.", "DISK_FULL")
        return real(path)

    monkeypatch.setattr(parts, "whole_file", whole_file)
    reporter = Reporter()
    run(model, [tall], tmp_path / "map.tif", reporter)
    assert len(written) == 2 and any("begun anew: The disk is full." in text for text in reporter.warnings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["map.tif", "map.tif.aux.xml", "tall.tif"]


def test_a_part_that_another_raster_got_into_is_not_kept(model: Path, tall: Path, tmp_path: Path) -> None:
    runtime, asked = Runtime.open(model, "cpu", "", Reporter()), order(model, tall)
    store = PartStore(tmp_path / "kept", "0" * 64, 0, 110)
    run = parts_of(asked.info)

    def changing() -> Iterator[Rows]:
        for number, rows in enumerate(mapped(runtime, asked, run)):
            if number == 1:
                os.utime(tall)
            yield rows

    with pytest.raises(GeopeftError) as caught:
        list(kept(store, run, asked.info, changing()))
    assert caught.value.code == "RASTER_CHANGED"
    assert [store.has(part) for part in run] == [True] + 3 * [False] and len(list(store.folder.iterdir())) == 1


def mapped_in_a_fork(model: Path, raster: Path, out: Path, kill_after: int) -> None:
    """Ends itself by SIGKILL once so many batches have been looked at."""
    import torch

    torch.set_num_threads(1)
    rows: list[int] = []
    real = Mapping.look

    def look(self: Mapping, batch: Batch) -> Seen:
        rows.append(batch.row)
        if len(rows) > kill_after:
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        return real(self, batch)

    Mapping.look = look  # type: ignore[method-assign]
    Runtime.look = Quick.look  # type: ignore[method-assign, assignment]
    run(model, [raster], out, confidence=True, polygons=True)


@pytest.mark.skipif(os.name != "posix", reason="forks")
@pytest.mark.fault("W08", "T03")
def test_a_killed_map_goes_on_and_ends_with_the_same_bytes(model: Path, tall: Path, tmp_path: Path) -> None:
    (tmp_path / "at once").mkdir()
    context = multiprocessing.get_context("fork")
    for folder, moments in (("at once", (10**6,)), ("killed", (7, 5, 10**6))):
        (tmp_path / folder).mkdir(exist_ok=True)
        for moment in moments:
            process = context.Process(target=mapped_in_a_fork, args=(model, tall, tmp_path / folder / "m.tif", moment))
            process.start()
            process.join(300)
            assert process.exitcode == (0 if moment == 10**6 else -signal.SIGKILL)
            kept_parts = list((tmp_path / folder).glob(".*.resume/*.zip"))
            assert bool(kept_parts) == (moment != 10**6)
    assert maps(tmp_path / "killed") == maps(tmp_path / "at once")
    assert sorted(path.name for path in (tmp_path / "killed").iterdir()) == [
        "m.tif", "m.tif.aux.xml", "m_confidence.tif", "m_polygons.gpkg"
    ]  # fmt: skip


def test_runs_are_of_parts_one_below_the_other() -> None:
    every = tuple(Part(n, 256 * n, 256 * n + 256) for n in range(7))
    assert [len(run) for run in runs_of(every, 3)] == [2, 3, 2]
    missing = [part for part in every if part.number not in (2, 3)]
    assert [[part.number for part in run] for run in runs_of(missing, 1)] == [[0, 1], [4, 5, 6]]
    assert runs_of([], 2) == []
