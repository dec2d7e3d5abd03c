"""The sample of labelled pixels: fair to classes and places, and as it was where nothing was drawn."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import shapely
from geopeft.data.decimated import open_decimated
from geopeft.data.labels import read_labels
from geopeft.data.raster import describe
from geopeft.events import Reporter
from geopeft.forest import Pixels
from geopeft.labelled_pixels import PIXELS_PER_CLASS, gather_tiles
from geopeft.models.spec import InputBand
from geopeft.texture_tiles import TextureTiles, make_view

MakeFile = Callable[..., Path]
SIDE = 400


def box(row: int, col: int, side: int) -> shapely.Polygon:
    left, top = 300_000 + 10 * col, 5_800_000 - 10 * row
    return shapely.box(left, top - 10 * side, left + 10 * side, top)


@pytest.fixture
def gather(make_raster: MakeFile, make_labels: MakeFile) -> Callable[..., Pixels]:
    """Pixels of boxes (class, row, col, side) on a raster whose only band counts the pixels."""
    values = np.arange(SIDE * SIDE, dtype=np.float32).reshape(1, SIDE, SIDE) / 100 + 1
    values[0, :20, :20] = 0
    info = describe(str(make_raster(values, nodata=0)))

    def of(boxes: list[tuple[str, int, int, int]], background: str = "") -> Pixels:
        path = make_labels([box(*place) for _, *place in boxes], [name for name, *_ in boxes])
        labels = read_labels(str(path), "class", [info], background=background, reporter=Reporter(), minimum_classes=1)
        with open_decimated(info, 1, [1]) as reader:
            view = make_view("v", info, 1, (InputBand(name="b", mean=800, std=400),), [1], reader)
            return gather_tiles(view, reader, labels, TextureTiles(), lambda: None)

    return of


def where(pixels: Pixels) -> set[float]:
    """The first feature tells a pixel's place."""
    return {round(float(value), 3) for value in pixels.features[:, 0]}


def test_every_class_weighs_the_same_and_within_it_a_place_by_its_root(gather: Callable[..., Pixels]) -> None:
    pixels = gather([("a", 50, 50, 30), ("a", 50, 150, 10), ("b", 200, 200, 4)])
    assert pixels.weights.mean() == pytest.approx(1)
    by_class = np.bincount(pixels.classes, pixels.weights)
    assert by_class[0] == pytest.approx(by_class[1])
    of_a = pixels.classes == 0
    by_place = np.bincount(pixels.sites[of_a], pixels.weights[of_a])
    assert sorted(by_place[by_place > 0] / by_place[by_place > 0].min()) == pytest.approx([1, 3])
    assert len(pixels.classes) == len(pixels.features) == len(pixels.sites)
    assert (pixels.classes == 1).sum() == 16
    assert (pixels.classes == 0).sum() <= PIXELS_PER_CLASS + 2


def test_a_label_that_is_added_leaves_the_sample_of_other_classes(gather: Callable[..., Pixels]) -> None:
    before = gather([("a", 50, 50, 60), ("b", 200, 200, 60)])
    after = gather([("b", 200, 200, 60), ("c", 300, 100, 60), ("a", 50, 50, 60)])
    assert where(before) < where(after)


def test_a_large_shape_is_sampled_over_its_tiles(gather: Callable[..., Pixels]) -> None:
    pixels = gather([("a", 0, 0, 390), ("b", 392, 392, 6)])
    rows = (pixels.features[pixels.classes == 0, 0] * 400 + 799) * 100 // SIDE
    assert (pixels.classes == 0).sum() == PIXELS_PER_CLASS
    assert {int(row) // 100 for row in rows} == {0, 1, 2, 3}


def test_pixels_without_data_do_not_teach(gather: Callable[..., Pixels]) -> None:
    pixels = gather([("a", 0, 0, 20), ("b", 100, 100, 5)])
    assert set(pixels.classes) == {1}


def test_the_background_is_looked_at_in_some_tiles(gather: Callable[..., Pixels]) -> None:
    pixels = gather([("a", 10, 300, 8), ("a", 380, 10, 8)], background="rest")
    assert np.bincount(pixels.classes).tolist() == [128, pytest.approx(PIXELS_PER_CLASS, abs=60)]
    assert len(set(pixels.sites[pixels.classes == 1])) > 20


def test_hundreds_of_places_stay_a_sample(gather: Callable[..., Pixels]) -> None:
    boxes = [("ab"[i % 2], 20 * (i // 18) + 22, 20 * (i % 18) + 22, 3) for i in range(324)]
    pixels = gather(boxes)
    assert len(set(pixels.sites)) > 200
    assert len(pixels.sites) <= 2 * (PIXELS_PER_CLASS + 162)
