"""The benches of advice on labels: their short form on a synthetic scene, and what their tables say."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from affine import Affine
from scipy.ndimage import gaussian_filter

sys.path.insert(0, str(Path(__file__).resolve().parent / "bench"))

import _curves  # type: ignore[import-not-found]
import _places  # type: ignore[import-not-found]
import _sets  # type: ignore[import-not-found]
import suggest as bench_suggest  # type: ignore[import-not-found]
import suspects as bench_suspects  # type: ignore[import-not-found]

SIZE, BANDS, CLASSES, KINDS = 192, 4, 4, 12


def write_scene(folder: Path, seed: int) -> _sets.Region:
    """A raster of twelve kinds of ground, three to a class, some of them rare; and its truth as a label raster."""
    rng = np.random.default_rng(seed)
    fields = np.stack([gaussian_filter(rng.normal(size=(SIZE, SIZE)), 9, mode="wrap") for _ in range(KINDS)])
    fields = fields / fields.std((1, 2), keepdims=True) - rng.permutation(np.linspace(0, 1.5, KINDS))[:, None, None]
    kind = fields.argmax(0)
    means = rng.normal(0, 1.6, (KINDS, BANDS))
    values = means[kind].transpose(2, 0, 1) + rng.normal(0, 0.6, (BANDS, SIZE, SIZE))
    values = (1500 + 300 * values).clip(1, 10_000).astype(np.uint16)
    for name, bands in (("r.tif", values), ("t.tif", (kind[None] % CLASSES + 1).astype(np.uint8))):
        profile = {"driver": "GTiff", "crs": "EPSG:32633", "transform": Affine(10, 0, 3e5, 0, -10, 58e5)}
        with rasterio.open(
            folder / name, "w", count=len(bands), height=SIZE, width=SIZE, dtype=bands.dtype, **profile
        ) as out:
            out.write(bands)
    return _sets.Region((str(folder / "r.tif"),), str(folder / "t.tif"), ())


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    folder = tmp_path_factory.mktemp("scene")
    region = write_scene(folder, 0)
    with _places.open_scene(region, region, "", folder, split=True) as opened:
        yield opened, folder


def test_suggested_labels_reach_with_half_as_many_what_random_ones_reach(scene: tuple[Any, Path]) -> None:
    random, suggested = (
        np.mean([_places.simulate(*scene[:1], way, seed, 2 - way, scene[1]) for seed in range(3)], 0)
        for way in (False, True)
    )
    assert suggested[0] == random[0]
    assert suggested[1] > random[2] > random[0]


def test_only_the_western_half_is_labelled_and_the_east_scored(scene: tuple[Any, Path]) -> None:
    opened, _ = scene
    assert opened.corners[:, 2].max() + opened.side <= SIZE // 2
    assert len(opened.scored[1]) < SIZE * SIZE // 2
    assert set(opened.classes.tolist()) == set(range(CLASSES))


def test_labels_needed_are_read_between_the_rounds() -> None:
    placed = np.array([0.0, 10, 20])
    assert bench_suggest.needed(placed, np.array([0.2, 0.4, 0.5]), 0.3) == pytest.approx(5)
    assert bench_suggest.needed(placed, np.array([0.2, 0.4, 0.5]), 0.2) == 0
    assert bench_suggest.needed(placed, np.array([0.2, 0.4, 0.5]), 0.6) == float("inf")


def rows(way: str, curves: list[list[float]]) -> list[dict[str, Any]]:
    return [
        {"set": "a", "way": way, "simulation": number, "placed": 10 * at, "miou": value}
        for number, curve in enumerate(curves)
        for at, value in enumerate(curve)
    ]


def test_the_ratio_is_of_labels_placed_until_the_same_miou(tmp_path: Path) -> None:
    both = rows("random", [[0.2, 0.3, 0.4]] * 2) + rows("suggested", [[0.2, 0.4, 0.4], [0.2, 0.4, 0.5]])
    curves = bench_suggest.gather(both)
    text = bench_suggest.table(curves)
    line = next(line for line in text.splitlines() if "half of the rise" in line)
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "a", "half of the rise", "30.0", "10", "5", "50 %", "50 ± 0 %", "yes",
    ]  # fmt: skip
    _curves.draw(bench_suggest._panels(curves), {w: (w, (0, 0, 0)) for w in bench_suggest.WAYS}, "x", "y",
                 tmp_path / "f.png")  # fmt: skip
    assert (tmp_path / "f.png").stat().st_size > 1000


def test_a_simulation_that_was_stopped_between_the_ways_does_not_count() -> None:
    curves = bench_suggest.gather(rows("random", [[0.2, 0.3], [0.4, 0.5]]) + rows("suggested", [[0.2, 0.4]]))
    assert curves["a", "random"] == {0: [0.2], 10: [0.3]}


def test_a_target_that_suggestion_does_not_reach_is_told() -> None:
    curves = bench_suggest.gather(rows("random", [[0.2, 0.3, 0.4]]) + rows("suggested", [[0.2, 0.2, 0.2]]))
    line = next(line for line in bench_suggest.table(curves).splitlines() if "half of the rise" in line)
    assert "not reached" in line and line.endswith("| no |")


def test_a_tenth_of_the_labels_get_another_class() -> None:
    classes = np.array(["a", "b", "c"] * 20, object)
    given, wrong = bench_suspects.flip(classes, np.array(["a", "b", "c"], object), 3)
    assert set((np.flatnonzero(given != classes) + 1).tolist()) == wrong and len(wrong) == 6


def test_found_counts_the_changed_labels_in_the_first_fifth_of_those_judged() -> None:
    scores = np.array([0.9, 0.8, 0.7, -1, -1, -1, -1, -1, -1, -1, np.nan])
    fids = np.arange(1, 12)
    found = bench_suspects.ranked(scores, fids, {1, 3, 4, 11})
    # Two of ten are looked at; the eleventh is not judged, the fourth not suspected.
    assert (found["judged"], found["flipped"], found["listed"]) == (10, 3, 3)
    assert (found["found"], found["flips_listed"]) == (1, 2)
    assert found["steps"].split() == ["0", "0", "1", "1", "1", "2", "2", "2"]
