"""What ground without labels does: drawn from everywhere, it counts less the more is labelled, and starves no class."""

import numpy as np
import onnx
import pytest
import torch
from geopeft.classical import Classical
from geopeft.data.chips import Chip
from geopeft.forest import NO_PLACE, Pixels, _taught_on, fit_classical
from geopeft.ground import PIXELS_OF_A_WINDOW, WINDOWS, evening, gather_ground, surest, trust
from geopeft.models.spec import InputBand
from geopeft.models.texture import Texture, describe_texture

BANDS = (InputBand(name="red", common="red"), InputBand(name="nir", common="nir"))


def texture() -> Texture:
    return Texture(describe_texture(BANDS, 10), BANDS, torch.eye(2))


class Shape:
    """A raster's grid: so many rows and columns."""

    def __init__(self, rows: int, cols: int) -> None:
        self.geobox = self
        self.shape = (rows, cols)


class Sources:
    """Rasters whose values are their rows and columns; the left half of each has no data."""

    def __init__(self, *shapes: tuple[int, int]) -> None:
        self.infos = [Shape(*shape) for shape in shapes]
        self.read_rasters: list[int] = []

    def read(self, raster: int, row: int, col: int, height: int, width: int) -> Chip:
        self.read_rasters.append(raster)
        rows, cols = np.mgrid[row : row + height, col : col + width]
        inside = (rows < self.infos[raster].shape[0]) & (cols < self.infos[raster].shape[1])
        assert inside.all() and row >= 0 and col >= 0, "what lies outside is not asked for"
        valid = cols >= self.infos[raster].shape[1] // 2
        values = np.where(valid, np.stack([rows, cols]), 1e6).astype(np.float32) / 100
        return Chip(values, valid, np.full(valid.shape, 255, np.uint8), np.full(valid.shape, -1, np.int32))


def test_ground_comes_from_all_over_and_never_from_pixels_without_data() -> None:
    sources = Sources((400, 600), (100, 100))
    found = gather_ground(sources, texture(), np.zeros(2, np.float32), seed=1)  # type: ignore[arg-type]
    assert WINDOWS * PIXELS_OF_A_WINDOW * 0.7 < len(found) <= WINDOWS * PIXELS_OF_A_WINDOW
    rows, cols = found[:, 0] * 100, found[:, 1] * 100
    assert cols.min() >= 50 and cols.max() > 550
    assert np.histogram(rows, 4, (0, 400))[0].min() > len(rows) / 10
    first = sources.read_rasters.count(0) / len(sources.read_rasters)
    assert 0.85 < first < 1, "a raster counts by its ground"


def test_a_raster_smaller_than_a_window_is_ground_too() -> None:
    found = gather_ground(Sources((9, 12)), texture(), np.zeros(2, np.float32), seed=0)  # type: ignore[arg-type]
    assert len(found) and found.shape[1] == texture().count
    assert np.isfinite(found).all()


def test_where_there_are_no_data_at_all_there_is_no_ground() -> None:
    sources = Sources((40, 1))
    sources.infos[0].shape = (40, 1)
    sources.read = lambda *_: Chip(  # type: ignore[method-assign]
        np.zeros((2, 40, 1), np.float32), np.zeros((40, 1), bool), np.zeros((40, 1), np.uint8), np.zeros((40, 1), int)
    )
    assert gather_ground(sources, texture(), np.zeros(2, np.float32), 0).shape == (0, texture().count)  # type: ignore[arg-type]


def test_ground_counts_less_the_more_places_a_class_has() -> None:
    def of(places: int) -> float:
        return trust(np.repeat([0, 1], places), np.arange(2 * places))

    assert of(1) > of(3) > of(10) > of(200)
    assert of(8) == pytest.approx(0.35)
    assert of(200) < 0.03


def test_the_surest_half_of_each_class_teaches_and_every_class_weighs_the_same() -> None:
    said = np.array([[0.9, 0.1], [0.8, 0.2], [0.6, 0.4], [0.55, 0.45], [0.3, 0.7], [0.1, 0.9]])
    at, classes, weights = surest(said)
    assert at.tolist() == [0, 1, 5]
    assert classes.tolist() == [0, 0, 1]
    assert weights.tolist() == pytest.approx([0.25, 0.25, 0.5])


def test_evening_goes_part_of_the_way_and_leaves_absent_classes_alone() -> None:
    said = np.array([[0.8, 0.0, 0.2]] * 4)
    there = np.array([0, 2])
    assert evening(said, there, 0.0).tolist() == [1, 1, 1]
    factors = evening(said, there, 1.0)
    assert factors[1] == 1
    assert (said[0] * factors)[there] == pytest.approx([0.5, 0.5])
    half = said[0] * evening(said, there, 0.5)
    assert 0.5 < half[0] / half.sum() < 0.8


def shifted(ground: int) -> Pixels:
    """Two classes of three places whose ground lies half a step further on, so that one of them is hardly ever said."""
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1, 0, 1, 0, 1], 10)
    seen = rng.normal(0, 0.6, (60, texture().count)).astype(np.float32)
    seen[:, :2] += 2 * truth[:, None]
    pixels = rng.normal(0, 0.6, (ground, texture().count)).astype(np.float32)
    pixels[:, :2] += 2 * (np.arange(ground) % 2)[:, None] - 1.0
    return Pixels(seen, seen[:, :0], truth, np.ones(60), np.arange(60) // 10, pixels)


def test_with_ground_a_class_that_is_hardly_ever_said_is_found_more_often() -> None:
    data = shifted(400)
    truth = np.arange(400) % 2
    right = []
    for some in (shifted(0), data):
        found = Classical(texture(), fit_classical(some, 3, 2, seed=0), 3).of_features(data.ground)
        assert found[:, 2].max() < 1e-6, "a class without labelled pixels is never mapped"
        assert np.abs(found.sum(1) - 1).max() < 1e-4
        right.append(((found.argmax(1) == truth)[truth == 1]).mean())
    assert right[1] > right[0] + 0.05


def questions(pixels: Pixels) -> list[float]:
    """The thresholds of the trees that these pixels teach."""
    trees = onnx.load_model_from_string(fit_classical(pixels, 2, 2, seed=0)).graph.node[0]
    return next(list(attribute.floats) for attribute in trees.attribute if attribute.name == "nodes_values")


def test_trees_learn_on_from_the_surest_ground_as_a_part_of_the_labels() -> None:
    data = shifted(100)
    said = np.where(data.ground[:, :1] > 0, [0.2, 0.8], [0.9, 0.1])
    grown = _taught_on(data, said, 0.3)
    assert grown.weights[60:].sum() == pytest.approx(0.3 * data.weights.sum())
    assert set(grown.sites[60:]) == {NO_PLACE} and (grown.sites[:60] == data.sites).all()
    assert ((grown.features[60:, 0] > 0) == grown.classes[60:]).all()
    assert questions(data) != questions(shifted(0))


def test_of_many_places_ground_changes_hardly_anything() -> None:
    data = shifted(400)
    classes, sites = np.tile(data.classes, 50), np.arange(3000) // 10
    features, deep, ones = np.tile(data.features, (50, 1)), np.zeros((3000, 0)), np.ones(3000)
    alone, many = (Pixels(features, deep, classes, ones, sites, ground) for ground in (data.ground[:0], data.ground))
    maps = [Classical(texture(), fit_classical(p, 2, 2, seed=0), 2).of_features(data.ground) for p in (alone, many)]
    assert (maps[0].argmax(1) == maps[1].argmax(1)).mean() > 0.97


def test_a_single_class_is_not_evened_out() -> None:
    data = shifted(50)
    alone = data.where(data.classes == 1)
    found = Classical(texture(), fit_classical(alone, 2, 2, seed=0), 2).of_features(data.features)
    assert found[:, 1].min() > 0.999
