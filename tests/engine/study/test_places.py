"""Which labelled places teach and which judge: apart from each other, whole, and nested."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import shapely
from affine import Affine
from geopeft.data.labels import IGNORE, read_labels
from geopeft.data.raster import describe
from geopeft.events import Reporter
from geopeft.study.places import Place, digest, find_places, nested, share_out, write_places
from rasterio.windows import Window

MakeRaster = Callable[..., Path]
MakeLabels = Callable[..., Path]
ORIGIN = Affine(10, 0, 300_000, 0, -10, 5_800_000)
SIDE = 300
NAMES = ("field", "wood")


def disc(row: float, col: float, radius: float) -> shapely.Geometry:
    """A disc given in pixels."""
    return shapely.Point(ORIGIN.c + 10 * col, ORIGIN.f - 10 * row).buffer(10 * radius)


@pytest.fixture
def found(make_raster: MakeRaster, make_labels: MakeLabels) -> Callable[..., tuple]:  # type: ignore[type-arg]
    """Places, labels and description of a raster with 40 discs, two of which touch."""

    def make(background: str = "") -> tuple:  # type: ignore[type-arg]
        raster = make_raster(np.ones((2, SIDE, SIDE), np.uint8), names=("red", "nir"))
        rng = np.random.default_rng(1)
        shapes = [disc(row, col, rng.uniform(2, 5)) for row in range(20, 290, 60) for col in range(20, 290, 36)]
        path = make_labels(shapes, [NAMES[number % 2] for number in range(len(shapes))])
        infos = (describe(str(raster)),)
        labels = read_labels(f"{path}:labels", "class", infos, background=background, reporter=Reporter())
        return find_places(infos, [infos[0].bands], labels), labels, infos

    return make


@pytest.mark.parametrize("background", ["", "other"])
def test_written_places_label_the_same_pixels_as_the_labels_did(
    found: Callable[..., tuple],
    background: str,
    tmp_path: Path,  # type: ignore[type-arg]
) -> None:
    """Also where unlabelled pixels are a class: its squares become shapes like the others."""
    places, labels, infos = found(background)
    spec = write_places(tmp_path / "p.gpkg", places, labels, infos[0])
    again = read_labels(spec, "class", infos, reporter=Reporter())
    whole = Window(0, 0, SIDE, SIDE)
    names = np.array([*(known.name for known in labels.classes), *[""] * 253][:IGNORE] + [""])
    names_again = np.array([*(known.name for known in again.classes), *[""] * 253][:IGNORE] + [""])
    before, after = names[labels.burn(0, whole)[0]], names_again[again.burn(0, whole)[0]]
    assert (before == after).all() and (before != "").sum() > 500


def test_every_place_has_one_use_and_neighbours_share_it(found: Callable[..., tuple]) -> None:  # type: ignore[type-arg]
    places, labels, _ = found()
    shares = share_out(places, NAMES, 0, Reporter())
    parts = (shares.teach, shares.choose, shares.judge)
    assert sum(map(len, parts)) == len(places) == len({id(place) for part in parts for place in part})
    assert all({place.class_index for place in part} == {0, 1} for part in parts)
    assert 0.1 * len(places) <= len(shares.judge) <= 0.4 * len(places)
    for judge in shares.judge:
        others = [place.geometry for place in (*shares.teach, *shares.choose)]
        assert min(judge.geometry.distance(other) for other in others) > 100
    assert share_out(places, NAMES, 0, Reporter()) == shares != share_out(places, NAMES, 3, Reporter())


def test_smaller_shares_are_part_of_larger_ones_and_keep_every_class(
    found: Callable[..., tuple],  # type: ignore[type-arg]
) -> None:
    places: list[Place] = found()[0]
    shares = [nested(places, fraction, 5) for fraction in (0.01, 0.1, 0.5, 1.0)]
    ids = [{id(place) for place in share} for share in shares]
    assert ids[0] < ids[1] < ids[2] < ids[3] and len(ids[3]) == len(places)
    assert {place.class_index for place in shares[0]} == {0, 1} and len(shares[0]) == 2
    assert len(shares[2]) == len(places) // 2
    assert ids[2] != {id(place) for place in nested(places, 0.5, 6)}


def test_a_shape_on_two_rasters_is_one_place(make_raster: MakeRaster, make_labels: MakeLabels) -> None:
    left = make_raster(np.ones((1, 60, 60), np.uint8), "left.tif")
    right = make_raster(np.ones((1, 60, 60), np.uint8), "right.tif", transform=ORIGIN * Affine.translation(50, 0))
    path = make_labels([disc(30, 55, 4), disc(20, 10, 4), disc(20, 95, 4)], ["field", "wood", "wood"])
    infos = [describe(str(left)), describe(str(right))]
    labels = read_labels(f"{path}:labels", "class", infos, reporter=Reporter())
    places = find_places(infos, [info.bands for info in infos], labels)
    assert len(places) == 3
    both = next(place for place in places if place.class_index == 0)
    # All of it, though the left raster ends in the middle.
    assert both.geometry.area == pytest.approx(np.pi * 40**2, rel=0.1)


def test_other_labels_have_another_checksum(found: Callable[..., tuple]) -> None:  # type: ignore[type-arg]
    places, _, _ = found()
    assert digest(places, NAMES) == digest(places, NAMES) != digest(places[1:], NAMES)
    assert digest(places, NAMES) != digest(places, NAMES[::-1])
