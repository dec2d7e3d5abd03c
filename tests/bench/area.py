"""Do the 95 % intervals of areas and accuracy hold what is true? Samples of maps whose every pixel is known.

    build.py bench area [--draws N] [--out FOLDER]

Each draw takes a stratified random sample of a made map, as `sample` does, labels its points with what is truly there,
and lets the engine estimate areas and accuracy. Beside our intervals stand those that are usual: the value and 1.96
standard errors on both sides. In the last row every draw goes all the way through the files of the two jobs.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import rasterio
import shapely
from affine import Affine
from geopeft.data.pixel_area import PixelAreas
from geopeft.data.raster import describe
from geopeft.events import Reporter
from geopeft.job import AreaJob, SampleJob
from geopeft.sampling import area, sample
from geopeft.sampling.stratified import Estimate, allocate, estimate, points_needed
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
FIGURES = ("area", "overall", "user", "producer")
NAMES = {"area": "areas", "overall": "overall accuracy", "user": "user's accuracy", "producer": "producer's accuracy"}
PIXELS = 10_000_000
FEWEST = 20
# Of the map in files: rows of a raster in degrees from 0 to 60 degrees north, where pixels differ in area twofold.
SIDE_PX, DEGREES = 240, 60.0
FILE_POINTS = 200


@dataclass(frozen=True)
class Map:
    """A made map: share of each mapped class, and what is truly there where it is mapped.

    Args:
        name: for the table.
        shares: (H) of the area.
        truth: (H, K) shares of the true classes within each mapped one; the first H of the K are the mapped ones.
    """

    name: str
    shares: tuple[float, ...]
    truth: tuple[tuple[float, ...], ...]


def _alike(accuracies: tuple[float, ...]) -> tuple[tuple[float, ...], ...]:
    """Truth of a map that mistakes each class for all others alike."""
    count = len(accuracies)
    return tuple(
        tuple(own if at == other else (1 - own) / (count - 1) for other in range(count))
        for at, own in enumerate(accuracies)
    )


MAPS = (
    Map("five classes, 80 to 95 % right", (0.3, 0.25, 0.2, 0.15, 0.1), _alike((0.95, 0.9, 0.85, 0.8, 0.8))),
    Map("five classes, 97 to 99 % right", (0.3, 0.25, 0.2, 0.15, 0.1), _alike((0.99, 0.98, 0.98, 0.97, 0.97))),
    Map(
        "change: 2 % loss, 1.5 % gain",
        (0.02, 0.015, 0.32, 0.645),
        (
            (0.88, 0.0, 0.067, 0.053),
            (0.0, 0.733, 0.107, 0.16),
            (0.006, 0.0, 0.927, 0.067),
            (0.006, 0.003, 0.028, 0.963),
        ),
    ),
    Map(
        "1 % of the largest class is a rare one",
        (0.02, 0.18, 0.8),
        ((0.9, 0.05, 0.05), (0.01, 0.9, 0.09), (0.01, 0.04, 0.95)),
    ),
    Map(
        "a class that is not mapped",
        (0.6, 0.3, 0.1),
        ((0.9, 0.05, 0.02, 0.03), (0.05, 0.85, 0.05, 0.05), (0.05, 0.05, 0.8, 0.1)),
    ),
)


@dataclass
class Count:
    """How often intervals held what is true: ours, the usual ones, and how often no figure was given."""

    ours: int = 0
    usual: int = 0
    given: int = 0
    left_out: int = 0

    def add(self, one: Any, true: float) -> None:
        if one is None:
            self.left_out += 1
            return
        slack = 1e-9 * max(abs(true), 1e-300)
        self.given += 1
        self.ours += one.low - slack <= true <= one.high + slack
        self.usual += abs(one.value - true) <= 1.96 * one.se + slack


@dataclass
class Row:
    """A row of the table."""

    name: str
    points: int
    counts: dict[str, Count] = field(default_factory=lambda: {name: Count() for name in FIGURES})


def run(draws: int, say: Callable[[str], None] = lambda _: None) -> list[Row]:
    """All rows of the table."""
    rows = []
    for one in MAPS:
        for points in (0, 100):
            rows.append(of_map(one, points, draws))
            say(_line(rows[-1]))
    with tempfile.TemporaryDirectory() as folder:
        rows.append(through_files(draws, Path(folder)))
    say(_line(rows[-1]))
    return rows


def of_map(one: Map, points: int, draws: int) -> Row:
    """Coverage on one map; with 0 points there are as many as `sample` chooses by itself."""
    rng = np.random.default_rng(1)
    shares = np.array(one.shares)
    within = np.rint(shares[:, None] * np.array(one.truth) * PIXELS).astype(np.int64)
    pixels = within.sum(1)
    wanted = points or points_needed(pixels.astype(float), pixels, 0.02, sample.EXPECTED_ACCURACY)
    drawn = allocate(wanted, pixels.astype(float), pixels, FEWEST)
    row = Row(one.name, int(drawn.sum()))
    true = _truth(within.astype(float))
    for _ in range(draws):
        counts = np.stack(
            [rng.multivariate_hypergeometric(own, number) for own, number in zip(within, drawn, strict=True)]
        )
        strata, labels = np.divmod(np.repeat(np.arange(counts.size), counts.ravel()), counts.shape[1])
        found = estimate(
            strata, labels, np.ones(len(strata)), pixels.astype(float), pixels, range(len(pixels)), counts.shape[1]
        )
        _add(row, found, true)
    return row


def _truth(within: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """True figures from the areas (H, K) of true classes within mapped ones."""
    mapped, there = within.sum(1), within.sum(0)
    hit = np.diag(within[:, : len(within)])
    own = np.zeros(len(there))
    own[: len(hit)] = hit
    return {
        "area": there,
        "overall": np.array([hit.sum() / within.sum()]),
        "user": hit / mapped,
        "producer": own / there,
    }


def _add(row: Row, found: Any, true: dict[str, NDArray[np.float64]]) -> None:
    given = {"area": found.areas, "overall": (found.overall,), "user": found.users, "producer": found.producers}
    for name in FIGURES:
        # A class that is not mapped has no user's accuracy, and its producer's accuracy is 0 by definition.
        number = len(true["user"]) if name in ("user", "producer") else len(true[name])
        for one, value in zip(given[name][:number], true[name][:number], strict=True):
            if value > 0:
                row.counts[name].add(one, float(value))


def through_files(draws: int, folder: Path) -> Row:
    """Coverage where each draw is a sample drawn, labelled and estimated by the jobs, on a map in degrees."""
    mapped, truth = _rasters()
    path = folder / "map.tif"
    step = DEGREES / SIDE_PX
    with rasterio.open(path, "w", driver="GTiff", count=1, height=SIDE_PX, width=SIDE_PX, dtype="uint8", nodata=0,
                       crs="EPSG:4326", transform=Affine(step, 0, 10, 0, -step, DEGREES)) as out:  # fmt: skip
        out.write(mapped, 1)
    ground = PixelAreas(describe(str(path), classes=True)).of(*np.indices(mapped.shape))
    within = np.array([[ground[(mapped == h) & (truth == k)].sum() for k in (1, 2, 3)] for h in (1, 2, 3)])
    true = _truth(within / 1e4)
    row = Row("in degrees, through the files", FILE_POINTS)
    for seed in range(draws):
        _add(row, _through_files(path, truth, seed, folder), true)
    return row


def _rasters() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A map of three classes in bands of latitude, and the truth, whose errors grow to the north."""
    rng = np.random.default_rng(0)
    shape = (SIDE_PX, SIDE_PX)
    north = np.linspace(1, 0, SIDE_PX)[:, None]
    mapped = np.where(rng.random(shape) < 0.2 + 0.6 * north, 1, np.where(rng.random(shape) < 0.85, 2, 3))
    truth = np.where(rng.random(shape) < 0.25 * north, rng.integers(1, 4, shape), mapped)
    return mapped.astype(np.uint8), truth.astype(np.uint8)


class _Found:
    """The figures of an area job as `estimate` gives them."""

    def __init__(self, outputs: dict[str, Any]) -> None:
        self.overall = _figure(outputs["overall_accuracy"])
        self.areas, self.users, self.producers = (
            tuple(_figure(row[name]) for row in outputs["classes"])
            for name in ("area_ha", "users_accuracy", "producers_accuracy")
        )


def _figure(one: dict[str, Any]) -> Any:
    return None if one["value"] is None else Estimate(**one)


def _through_files(path: Path, truth: NDArray[np.uint8], seed: int, folder: Path) -> _Found:
    points = folder / f"points_{seed}.gpkg"
    sample.run(SampleJob(map=str(path), out=str(points), points=FILE_POINTS, seed=seed), Reporter())
    label(points, path, truth)
    found = _Found(area.run(AreaJob(points=str(points)), Reporter()))
    points.unlink()
    return found


def label(points: Path, path: Path, truth: NDArray[np.uint8]) -> None:
    """Writes what is truly there into the points of a sample, as values."""
    meta, _, shapes, columns = pyogrio.raw.read(points, layer="sample")
    data = dict(zip(meta["fields"].tolist(), columns, strict=True))
    with rasterio.open(path) as source:
        rows, cols = rasterio.transform.rowcol(source.transform, *shapely.get_coordinates(shapely.from_wkb(shapes)).T)
    data["class"] = np.array([str(value) for value in truth[rows, cols].tolist()], object)
    pyogrio.raw.write(
        points, shapes, list(data.values()), list(data), layer="sample", driver="GPKG", geometry_type="Point",
        crs=meta["crs"],
    )  # fmt: skip


def _cells(row: Row) -> Iterator[str]:
    for name in FIGURES:
        count = row.counts[name]
        yield f"{count.ours / max(count.given, 1):.1%} / {count.usual / max(count.given, 1):.1%}"
    out = sum(count.left_out for count in row.counts.values())
    yield f"{out / max(out + sum(count.given for count in row.counts.values()), 1):.1%}"


def _line(row: Row) -> str:
    return f"| {row.name} | {row.points} | {' | '.join(_cells(row))} |"


def table(rows: list[Row], draws: int) -> str:
    """The results as Markdown."""
    head = (
        "# Do the intervals of areas hold what is true?\n\n"
        "Samples of made maps whose every pixel is known: how often a 95 % interval holds the true value, ours and "
        f"then the usual one (the value and 1.96 standard errors on both sides), in {draws} draws each. 400 points are "
        "what `sample` chooses by itself; 100 are few, and no class has fewer than 20. Figures that are left out, as "
        "no point was labelled as the class, are in the last column. Made by `python3 build.py bench area`.\n\n"
    )
    titles = ["map", "points", *(NAMES[name] for name in FIGURES), "left out"]
    lines = ["| " + " | ".join(titles) + " |", "|---|" + "---:|" * (len(titles) - 1), *map(_line, rows)]
    return head + "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(prog="build.py bench area")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=ROOT / "resources" / "results")
    options = parser.parse_args()
    rows = run(options.draws, lambda line: print(line, flush=True))
    (options.out / "area.md").write_text(table(rows, options.draws), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
