"""The labelled places of a region: which teach, which choose and which judge, and nested shares of those that teach."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio.features
import shapely
from affine import Affine
from pyproj import Transformer
from shapely.geometry.base import BaseGeometry

from geopeft.data.bands import Band
from geopeft.data.chips import SQUARE_PX, ChipReader, Site, find_sites, groups_of
from geopeft.data.labels import IGNORE, Labels
from geopeft.data.raster import RasterInfo
from geopeft.data.split import split_by_blocks
from geopeft.errors import LabelError
from geopeft.events import Reporter
from geopeft.writing import whole_layer

LAYER, FIELD = "labels", "class"
# Of a class, places from which on its accuracy means something.
FEW_PLACES = 4


@dataclass(frozen=True, eq=False)
class Place:
    """A labelled shape, or of a class without shapes a square of ground.

    Args:
        class_index: position in the labels' classes.
        site: where its pixels are; of a shape on several rasters, on the first one.
        geometry: outlines of its pixels, in the first raster's CRS.
    """

    class_index: int
    site: Site
    geometry: BaseGeometry


@dataclass(frozen=True)
class Shares:
    """The places of a region by what they are for.

    Args:
        teach: the training learns from these, or from a share of them.
        choose: they stop a training and choose the learning rate.
        judge: held out of everything; the accuracy in the region.
    """

    teach: tuple[Place, ...]
    choose: tuple[Place, ...]
    judge: tuple[Place, ...]


def find_places(infos: Sequence[RasterInfo], bands: Sequence[Sequence[Band]], labels: Labels) -> list[Place]:
    """Every labelled place with pixels that are valid in all bands in use, as a training would find it.

    A shape on several rasters is one place, so that none of its ground teaches while the rest judges.
    """
    outlines: dict[tuple[int, int, int], list[BaseGeometry]] = {}
    with ChipReader(infos, bands, labels) as reader:
        sites = find_sites(reader)
        for raster in range(len(infos)):
            for row, col, block in reader.labelled_blocks(raster):
                groups = groups_of(block, row, col)
                for class_index, group, outline in _outlines(block.class_ids, groups, infos[raster], row, col):
                    outlines.setdefault((raster, group, class_index), []).append(outline)
    places: dict[tuple[Any, ...], Place] = {}
    for site in sites:
        shape = labels.shapes[site.group] if site.group >= 0 else None
        known = ("fid", shape.fid) if shape is not None and shape.fid >= 0 else ("site", site.raster_index, site.group)
        key = (*known, site.class_index)
        found = outlines[site.raster_index, site.group, site.class_index]
        geometry = _moved(shapely.union_all(found), infos[site.raster_index], infos[0])
        if key in places:
            first = places[key]
            places[key] = Place(first.class_index, first.site, shapely.union_all([first.geometry, geometry]))
        else:
            places[key] = Place(site.class_index, site, geometry)
    return list(places.values())


def _outlines(
    class_ids: np.ndarray, groups: np.ndarray, info: RasterInfo, row: int, col: int
) -> list[tuple[int, int, BaseGeometry]]:
    """(class, group, outline in the raster's CRS) of the labelled pixels of a block (h, w)."""
    known = class_ids != IGNORE
    if not known.any():
        return []
    pairs = np.stack([class_ids[known].astype(np.int64), groups[known]], 1)
    named, numbers = np.unique(pairs, axis=0, return_inverse=True)
    image = np.zeros(class_ids.shape, np.int32)
    image[known] = numbers.ravel()
    place = info.geobox.affine * Affine.translation(col, row)
    return [
        (int(named[int(number)][0]), int(named[int(number)][1]), shapely.geometry.shape(outline))
        for outline, number in rasterio.features.shapes(image, mask=known, transform=place)
    ]


def _moved(geometry: BaseGeometry, source: RasterInfo, target: RasterInfo) -> BaseGeometry:
    if source.crs == target.crs:
        return geometry
    turn = Transformer.from_crs(source.crs.to_wkt(), target.crs.to_wkt(), always_xy=True)
    return shapely.transform(geometry, lambda xy: np.stack(turn.transform(xy[:, 0], xy[:, 1]), 1))


def share_out(places: Sequence[Place], names: Sequence[str], seed: int, reporter: Reporter) -> Shares:
    """About a quarter of each class's places, in blocks of ground, judges, and a quarter of the rest chooses.

    A class with fewer than three places only teaches.

    Raises:
        LabelError: STUDY_FEW_PLACES where nothing can be held out.
    """
    numbered = {id(place.site): place for place in places}
    first = split_by_blocks([place.site for place in places], SQUARE_PX, seed)
    if not first.validation:
        raise LabelError(
            f"The {len(places)} labelled places lie too close together to hold some out.",
            "Label at least three places of a class, far from each other.",
            "STUDY_FEW_PLACES",
        )
    second = split_by_blocks(first.training, SQUARE_PX, seed + 1)
    parts = [
        tuple(numbered[id(site)] for site in part) for part in (second.training, second.validation, first.validation)
    ]
    shares = Shares(*parts)
    reporter.message(
        f"Of {len(places)} labelled places {len(shares.teach)} teach, {len(shares.choose)} stop the trainings and "
        f"choose the learning rates, and {len(shares.judge)} judge; neighbours stay together."
    )
    judged = {place.class_index for place in shares.judge}
    missing = [name for index, name in enumerate(names) if index not in judged]
    if missing:
        reporter.warn(f"No place judges these classes in the region, they have too few: {', '.join(missing)}.")
    if len(shares.judge) < FEW_PLACES * len(judged):
        reporter.warn("Few places judge: the accuracy in the region is rough. Label more places, in other spots.")
    if not shares.choose:
        reporter.warn("There are too few places to choose learning rates by: each training holds its own out.")
    return shares


def nested(places: Sequence[Place], fraction: float, seed: int) -> list[Place]:
    """A share of each class's places, at least one. Of one seed, a smaller share is part of every larger one."""
    chosen: list[Place] = []
    for index in sorted({place.class_index for place in places}):
        own = [place for place in places if place.class_index == index]
        order = np.random.default_rng([seed, index]).permutation(len(own))
        # A product such as 0.1 * 30 may lie just above a whole number.
        chosen += [own[at] for at in order[: max(1, math.ceil(fraction * len(own) - 1e-9))]]
    return chosen


def write_places(path: Path, places: Sequence[Place], labels: Labels, info: RasterInfo) -> str:
    """Writes places as a label layer, of which the text field `class` has the class's value; returns FILE:layer."""
    shapes = shapely.to_wkb(np.array([_multi(place.geometry) for place in places], object))
    values = np.array([labels.classes[place.class_index].value for place in places], object)
    with whole_layer(path, LAYER, [FIELD], info.crs.to_wkt(), "MultiPolygon") as write:
        write(shapes, [values])
    return f"{path}:{LAYER}"


def _multi(geometry: BaseGeometry) -> BaseGeometry:
    return geometry if geometry.geom_type == "MultiPolygon" else shapely.multipolygons([geometry])


def digest(places: Sequence[Place], names: Sequence[str]) -> str:
    """A checksum of what is labelled where."""
    found = hashlib.sha256()
    for place in places:
        found.update(f"{names[place.class_index]} ".encode() + shapely.to_wkb(place.geometry))
    return found.hexdigest()
