"""The `suggest` job: places whose labels would teach the map the most, the best first."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geopeft.advice.sights import (
    Ground,
    ShapePixels,
    Sight,
    describe_ground,
    gather_shapes,
    in_first_crs,
    open_sights,
    write_places,
)
from geopeft.advice.squares import Squares, look_at, outline, spread_tiles, square_px
from geopeft.classical import Classical
from geopeft.data.labels import read_area
from geopeft.errors import LabelError
from geopeft.events import Reporter
from geopeft.forest import fit_classical
from geopeft.job import SuggestJob
from geopeft.texture_tiles import TextureTiles
from geopeft.watched import watched
from geopeft.writing import check_target, write_bytes

PIXELS_OF_A_PLACE, MOST_PIXELS = 200, 6000
# Squares that stand for the rasters when places are weighed: every pair of them is compared.
MOST_SQUARES = 3000
# A tile is looked at once or twice, for the labels and for the squares in it.
TILES_BYTES = 64 << 20
# Of the squares that look like one class, the part that is one thing inside, and of these the part in most doubt.
UNMIXED, DOUBTFUL = 0.3, 0.5
# How much more doubt there may be about a square as a whole than about its pixels.
MOST_SPLIT = 0.1
# Places are at least this far apart, as a part of the side of the ground that each would have for itself.
APART = 0.5
LARGEST_DEVIATION = 4.0
# A place is like nothing labelled when it is farther from all labels than so many of the squares.
UNLIKE = 0.9
# The map hesitates where the two likeliest classes are no farther apart, in percent.
HESITATES = 50
LAYER = "suggested"
# Fields of the layer and their types; percentages are of probability, and of the ground that was looked at.
FIELDS = {
    "rank": int, "reason": str, "likely": str, "second": str, "p_likely": int, "p_second": int, "doubt": int,
    "distance": float, "ground": float, "raster": str,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Chosen:
    """Places in the order in which they help most.

    Args:
        squares: of them.
        distance: (n,) from what is labelled, in standard deviations of a feature.
        ground: (n,) share of the ground that is nearer to the place than to any other and to any label.
        unlike: (n,) whether nothing like it is labelled.
    """

    squares: Squares
    distance: np.ndarray
    ground: np.ndarray
    unlike: np.ndarray


def run(job: SuggestJob, reporter: Reporter) -> dict[str, Any]:
    """Runs a suggest job.

    Returns:
        `places` (the GeoPackage), `count` (places in it), `table` (of the layer, the best first), `width_px` and
        `width_m` (of a place), `looked_at` (squares that were compared), `classes`, `seconds`.
    """
    start = time.monotonic()
    out = Path(job.out)
    check_target(out)
    # The area bounds the places, and the background class where there is one.
    ground = describe_ground(job if job.background else job.model_copy(update={"area": ""}), 2, reporter)
    areas = read_area(job.area, ground.infos, reporter) if job.area else None
    side = square_px(ground.infos[0].gsd_m)
    with open_sights(ground) as sights:
        tiles = TextureTiles(TILES_BYTES)
        classical, taught = teach(sights, ground, tiles, job.seed, reporter)
        where = spread_tiles(ground.infos, areas, job.seed)
        found = look_at(sights, where, ground.labels, areas, classical, tiles, side, reporter)
    if not len(found.doubt):
        raise _nowhere(job, side)
    chosen = choose(found, taught, job.count, job.seed)
    rows = _rows(ground, chosen, side)
    write_places(out, LAYER, FIELDS, rows, ground)
    result: dict[str, Any] = {
        "count": len(rows),
        "table": [{name: value for name, value in row.items() if name != "geometry"} for row in rows],
        "width_px": side,
        "width_m": round(side * ground.infos[0].gsd_m, 2),
        "looked_at": len(found.doubt),
        "classes": [{"name": known.name, "color": known.color} for known in ground.labels.classes],
        "seconds": round(time.monotonic() - start, 2),
    }
    if job.json_file:
        write_bytes(Path(job.json_file), json.dumps(result, indent=1, ensure_ascii=False).encode())
        result["json"] = job.json_file
    reporter.message(f"{len(rows)} places to label, each {side} pixels wide, of {len(found.doubt)} looked at.")
    return {"places": str(out), **result}


def teach(
    sights: Sequence[Sight], ground: Ground, tiles: TextureTiles, seed: int, reporter: Reporter
) -> tuple[Classical, np.ndarray]:
    """A classifier of the labels, and (m, F) mean features of the labelled shapes."""
    names = [known.name for known in ground.labels.classes]
    lesson = gather_shapes(sights, ground.labels, tiles, PIXELS_OF_A_PLACE, MOST_PIXELS, reporter.check_canceled)
    there = set(lesson.pixels.classes.tolist())
    if len(there) < 2:
        missing = ", ".join(name for number, name in enumerate(names) if number not in there)
        raise LabelError(
            f"No valid pixel of the raster is labelled as {missing}.",
            "Draw labels of at least two classes where the raster has data.",
            "LABELS_EMPTY",
        )
    model = watched(lambda: fit_classical(lesson.pixels, len(names), len(ground.inputs), seed), reporter)
    return Classical(sights[0].view.texture, model, len(names)), _means(lesson)


def _means(lesson: ShapePixels) -> np.ndarray:
    """(m, F) mean features of the shapes; squares of the background are none."""
    pixels, places = lesson.pixels, len(lesson.shapes)
    mean = np.zeros((places, pixels.features.shape[1]), np.float64)
    np.add.at(mean, pixels.sites, pixels.features)
    mean /= np.maximum(np.bincount(pixels.sites, minlength=places), 1)[:, None]
    shapes: np.ndarray = mean[lesson.shapes >= 0]
    return shapes


def choose(found: Squares, taught: np.ndarray, count: int, seed: int) -> Chosen:
    """The places that, labelled, would leave the least doubtful ground without a label like it.

    Every square is in some doubt, and some way off in feature space from the nearest label. That way, weighted with
    `_weights` and summed over all squares, is what labels are to shorten; each next place is the one that shortens it
    most: greedy k-median (facility location; Wei, Iyer and Bilmes 2015, ICML) with uncertainty as weights
    (Zhdanov 2019, arXiv 1901.05954). So a place stands for much doubtful ground that is unlike all labels and all
    places before it. Only squares that are one thing inside are taken: in others nobody can draw a label.

    Args:
        found: at least one.
        taught: (m, F) what is labelled.
        count: places at most; fewer where squares are few.
    """
    rng = np.random.default_rng(seed)
    if len(found.doubt) > MOST_SQUARES:
        found = found.of(np.sort(rng.choice(len(found.doubt), MOST_SQUARES, replace=False)))
    centre, spread = found.features.mean(0), found.features.std(0) + 1e-6
    features = np.clip((found.features - centre) / spread, -LARGEST_DEVIATION, LARGEST_DEVIATION)
    labelled = np.clip((taught - centre) / spread, -LARGEST_DEVIATION, LARGEST_DEVIATION)
    apart, nearest = _distances(features, features), _distances(features, labelled).min(1)
    free = _candidates(found, (found.mixture / spread**2).mean(1), count)
    places = _greedy(apart, nearest, _weights(found), free, found.corners, count)
    owner = np.where(apart[:, places].min(1) < nearest, apart[:, places].argmin(1), -1)
    return Chosen(
        found.of(np.array(places)),
        nearest[places],
        np.bincount(owner[owner >= 0], minlength=len(places)) / len(owner),
        nearest[places] >= np.quantile(nearest, UNLIKE),
    )


def _distances(ones: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(n, m) root mean squared differences of features (n, F) and (m, F)."""
    squared = (ones**2).sum(1)[:, None] + (others**2).sum(1) - 2 * ones @ others.T
    distances: np.ndarray = np.sqrt(np.maximum(squared, 0) / ones.shape[1]).astype(np.float32)
    return distances


def _weights(found: Squares) -> np.ndarray:
    """(n,) how much the squares count: by their doubt, and less where their class covers much.

    A map's accuracy is the mean over its classes, so that doubt about a rare one costs more.
    """
    likely = found.probabilities.argmax(1)
    share = np.bincount(likely, minlength=found.probabilities.shape[1]) / len(likely)
    weights: np.ndarray = found.doubt / np.sqrt(share[likely])
    return weights


def _candidates(found: Squares, mixture: np.ndarray, count: int) -> np.ndarray:
    """(n,) squares in doubt that are one thing inside; where these are fewer than asked for, also the others."""
    even = _one_thing(mixture, found.probabilities.argmax(1)) & _agreeing(found)
    if even.sum() < count:
        return np.ones(len(even), np.bool_)
    doubtful: np.ndarray = even & (found.doubt >= np.quantile(found.doubt[even], 1 - DOUBTFUL))
    return doubtful if doubtful.sum() >= count else even


def _one_thing(mixture: np.ndarray, likely: np.ndarray) -> np.ndarray:
    """(n,) the less mixed part of the squares of each class: towns are never as even as water."""
    kept = np.zeros(len(mixture), np.bool_)
    for number in np.unique(likely):
        own = likely == number
        kept |= own & (mixture <= np.quantile(mixture[own], UNMIXED))
    return kept


def _agreeing(found: Squares) -> np.ndarray:
    """(n,) squares whose pixels do not contradict each other: the mean is in no more doubt than they are."""
    second, first = np.sort(found.probabilities, 1)[:, -2:].T
    agreeing: np.ndarray = 1 - first + second - found.doubt <= MOST_SPLIT
    return agreeing


def _greedy(
    apart: np.ndarray, nearest: np.ndarray, weights: np.ndarray, free: np.ndarray, corners: np.ndarray, count: int
) -> list[int]:
    """Positions of the chosen among the free, the best first; where there is no room for more, nearer to each other."""
    places: list[int] = []
    spacing, allowed, nearest = _spacing_px(corners, count), free.copy(), nearest.copy()
    while len(places) < min(count, int(free.sum())):
        if not allowed.any():
            spacing /= 2
            allowed = free & _far(corners, places, spacing)
            allowed[places] = False
            continue
        own = np.flatnonzero(allowed)
        gain = weights @ np.maximum(nearest[:, None] - apart[:, own], 0)
        best = int(own[gain.argmax()])
        places.append(best)
        nearest = np.minimum(nearest, apart[:, best])
        allowed &= _far(corners, [best], spacing)
        allowed[best] = False
    return places


def _spacing_px(corners: np.ndarray, count: int) -> float:
    """How far places shall be apart, by the ground that the squares lie on."""
    ground = 0.0
    for raster in np.unique(corners[:, 0]):
        own = corners[corners[:, 0] == raster, 1:]
        ground += float(np.prod(own.max(0) - own.min(0) + 1.0))
    return APART * float(np.sqrt(ground / count))


def _far(corners: np.ndarray, places: Sequence[int], spacing: float) -> np.ndarray:
    """(n,) which squares are so far from all these places; another raster is another place."""
    far = np.ones(len(corners), np.bool_)
    for place in places:
        steps = corners[:, 1:] - corners[place, 1:]
        far &= (corners[:, 0] != corners[place, 0]) | (np.hypot(steps[:, 0], steps[:, 1]) >= spacing)
    return far


def _nowhere(job: SuggestJob, side: int) -> LabelError:
    inside = f" inside {job.area}" if job.area else ""
    return LabelError(
        f"There is no place of {side} x {side} valid pixels without a label{inside}.",
        "Choose a larger area or another raster; what is labelled already needs no more labels.",
        "NO_PLACE",
    )


def _rows(ground: Ground, chosen: Chosen, side: int) -> list[dict[str, Any]]:
    """The chosen places as fields of the layer."""
    names = [known.name for known in ground.labels.classes]
    rows: list[dict[str, Any]] = []
    for at, (corner, probabilities) in enumerate(
        zip(chosen.squares.corners, chosen.squares.probabilities, strict=True)
    ):
        likely, second = np.argsort(-probabilities, kind="stable")[:2].tolist()
        percent = [round(100 * float(probabilities[number])) for number in (likely, second)]
        ground_percent = round(100 * float(chosen.ground[at]), 1)
        raster = int(corner[0])
        info = ground.infos[raster]
        rows.append(
            {
                "rank": at + 1,
                "reason": _reason((names[likely], names[second]), percent, ground_percent, bool(chosen.unlike[at])),
                "likely": names[likely],
                "second": names[second],
                "p_likely": percent[0],
                "p_second": percent[1],
                "doubt": round(100 * float(chosen.squares.doubt[at])),
                "distance": round(float(chosen.distance[at]), 2),
                "ground": ground_percent,
                "raster": info.path,
                "geometry": in_first_crs(outline(corner, side, info), ground, raster),
            }
        )
    return rows


def _reason(names: tuple[str, str], percent: Sequence[int], ground_percent: float, unlike: bool) -> str:
    if percent[0] - percent[1] <= HESITATES:
        doubt = f"The map hesitates between {names[0]} ({percent[0]} %) and {names[1]} ({percent[1]} %)"
    else:
        doubt = f"The map takes this for {names[0]} ({percent[0]} %) rather than {names[1]} ({percent[1]} %)"
    stands = f"{ground_percent:g} % of the ground looks more like this than like any label"
    return f"{doubt}; {stands}{', and nothing like it is labelled yet' if unlike else ''}."
