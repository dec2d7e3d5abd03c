"""The `suspects` job: labelled shapes that a classifier trained without them contradicts, the most suspicious first."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax

from geopeft.advice.sights import (
    Ground,
    ShapePixels,
    describe_ground,
    gather_shapes,
    in_first_crs,
    open_sights,
    write_places,
)
from geopeft.errors import LabelError
from geopeft.events import Reporter
from geopeft.forest import Pixels, cross_fit
from geopeft.job import SuspectsJob
from geopeft.texture_tiles import TextureTiles
from geopeft.watched import watched
from geopeft.writing import check_target, write_bytes

PIXELS_OF_A_PLACE, MOST_PIXELS = 48, 16_000
FOLDS, REPEATS = 5, 2
# Blocks along the longer side of what is labelled: neighbours are held out together, as their pixels are alike.
BLOCKS_ACROSS = 10
# Of a class's places, the most that are taken for wrong when the rest teaches anew.
MOST_PRUNED = 0.2
LAYER = "suspects"
# Fields of the layer and their types; percentages are of pixels or of probability.
FIELDS = {
    "rank": int, "given": str, "likely": str, "score": float, "disagree": int, "p_likely": int, "p_given": int,
    "reason": str, "fid_label": int, "raster": str,
}  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """What models that have not seen a place say of it.

    Args:
        probabilities: (p, K) mean over the place's pixels.
        disagreeing: (p,) share of its pixels whose likeliest class is not the given one.
        likely: (p,) the class that speaks most against the given one.
        scores: (p,) how much it does; above 0 the label is contradicted, NaN where it cannot be judged.
    """

    probabilities: np.ndarray
    disagreeing: np.ndarray
    likely: np.ndarray
    scores: np.ndarray


def run(job: SuspectsJob, reporter: Reporter) -> dict[str, Any]:
    """Runs a suspects job.

    Returns:
        `suspects` (the GeoPackage), `count` (shapes in it), `judged` (shapes), `not_judged` (sentences), `places` (the
        table of the layer, the most suspicious first), `classes`, `seconds`.
    """
    start = time.monotonic()
    out = Path(job.out)
    check_target(out)
    ground = describe_ground(job, 2, reporter)
    with open_sights(ground) as sights:
        found = gather_shapes(
            sights, ground.labels, TextureTiles(), PIXELS_OF_A_PLACE, MOST_PIXELS, reporter.check_canceled
        )
    names = [known.name for known in ground.labels.classes]
    not_judged = cannot_judge(found, names)
    for sentence in not_judged:
        reporter.warn(sentence)
    judged = watched(lambda: judge(found, len(names), len(ground.inputs), job.seed), reporter)
    if not np.isfinite(judged.scores).any():
        raise LabelError(
            "No label can be judged: every class has one labelled place only.",
            "Draw at least two shapes of each class, away from each other.",
            "LABELS_FEW",
        )
    rows = _rows(ground, found, judged, names)
    write_places(out, LAYER, FIELDS, rows, ground)
    result: dict[str, Any] = {
        "count": len(rows),
        "judged": int(np.isfinite(judged.scores).sum()),
        "not_judged": not_judged,
        "places": [{name: value for name, value in row.items() if name != "geometry"} for row in rows],
        "classes": [{"name": known.name, "color": known.color} for known in ground.labels.classes],
        "seconds": round(time.monotonic() - start, 2),
    }
    if job.json_file:
        write_bytes(Path(job.json_file), json.dumps(result, indent=1, ensure_ascii=False).encode())
        result["json"] = job.json_file
    reporter.message(f"{len(rows)} of {result['judged']} labelled shapes are contradicted by the others.")
    return {"suspects": str(out), **result}


def judge(found: ShapePixels, num_classes: int, bands: int, seed: int) -> Judged:
    """Asks models that were trained without a place, and without its whole block, for its class.

    Confident learning (Northcutt et al. 2021, Journal of Artificial Intelligence Research 70): a class counts as likely
    where its probability is above what places labelled so get on average, so that a hard or rare class is not
    suspicious as a whole. As there, what is most likely wrong is left out and the rest teaches again: labels that are
    wrong together then no longer speak for each other.

    Args:
        found: the labelled places.
        bands: how many of the features are bands.
    """
    rng = np.random.default_rng(seed)
    classes = place_classes(found.pixels, len(found.shapes))
    taught = np.ones(len(classes), bool)
    scores = np.full((REPEATS, len(classes)), np.nan)
    means, shares = np.zeros((REPEATS, len(classes), num_classes)), np.zeros((REPEATS, len(classes)))
    for repeat in range(REPEATS):
        fold = deal_places(found, classes, rng)
        means[repeat], shares[repeat] = _held_out(
            found.pixels, fold, taught, classes, num_classes, bands, seed + repeat
        )
        scores[repeat], _ = surplus(means[repeat], classes, fold >= 0)
        taught = _teachers(scores[repeat], classes)
    # A class's only place has no score in any repeat.
    mean = means[-1]
    # Squares of the background tell what their class looks like, but nobody has drawn them.
    score, likely = surplus(mean, classes, np.isfinite(scores).all(0))
    return Judged(mean, shares[-1], likely, np.where(found.shapes >= 0, score, np.nan))


def place_classes(pixels: Pixels, places: int) -> np.ndarray:
    """(p,) the given class of each place."""
    classes = np.zeros(places, np.int64)
    classes[pixels.sites] = pixels.classes
    return classes


def deal_places(found: ShapePixels, classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(p,) the fold of each place, -1 for a class's only one, which always teaches.

    Blocks are dealt whole, with the places in them; a class that lies in one block is dealt place by place.
    """
    low, high = found.middles[:, 1:].min(0), found.middles[:, 1:].max(0)
    side = max(float((high - low).max()) / BLOCKS_ACROSS, 1.0)
    cells = np.column_stack([found.middles[:, 0], (found.middles[:, 1:] - low) // side]).astype(np.int64)
    block = np.unique(cells, axis=0, return_inverse=True)[1].reshape(-1)
    fold = rng.permutation(block.max() + 1)[block] % FOLDS
    for index in np.unique(classes):
        own = np.flatnonzero(classes == index)
        if len(own) == 1:
            fold[own] = -1
        elif len(np.unique(fold[own])) == 1:
            fold[rng.permutation(own)] = np.arange(len(own)) % FOLDS
    # Few blocks may leave a number out, and a fold without places has nothing to be asked.
    fold[fold >= 0] = np.unique(fold[fold >= 0], return_inverse=True)[1].reshape(-1)
    return fold


def _held_out(
    pixels: Pixels, fold: np.ndarray, taught: np.ndarray, classes: np.ndarray, num_classes: int, bands: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """(p, K) mean probabilities of places held out, and (p,) share of their pixels that look like another class."""
    weights = np.where(taught[pixels.sites], pixels.weights, 1e-6 * pixels.weights)
    lesson = Pixels(pixels.features, pixels.deep, pixels.classes, weights, pixels.sites)
    logits, trees = cross_fit(lesson, fold[pixels.sites], num_classes, bands, seed)
    found = (softmax(logits, 1) + trees) / 2
    count = np.maximum(np.bincount(pixels.sites, minlength=len(fold)), 1)
    mean = np.stack([np.bincount(pixels.sites, found[:, k], len(fold)) for k in range(num_classes)], 1) / count[:, None]
    other = found.argmax(1) != classes[pixels.sites]
    return mean, np.bincount(pixels.sites, other, len(fold)) / count


def surplus(probabilities: np.ndarray, classes: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(p,) scores and (p,) likely classes from held-out probabilities (p, K).

    The score is the largest surplus of another class over its threshold, less that of the given class over its own;
    a threshold is the mean probability that places with this label get. NaN where `known` is false.
    """
    number = np.arange(len(classes))
    own = probabilities[number, classes]
    thresholds = np.ones(probabilities.shape[1])
    for index in np.unique(classes[known]):
        thresholds[index] = own[known & (classes == index)].mean()
    above = probabilities - thresholds
    given = above[number, classes]
    above[number, classes] = -np.inf
    likely = above.argmax(1)
    return np.where(known, above[number, likely] - given, np.nan), likely


def _teachers(scores: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """(p,) which places teach the next time: all but the most suspicious of each class."""
    kept = np.ones(len(scores), bool)
    for index in np.unique(classes):
        own = np.flatnonzero((classes == index) & (scores > 0))
        most = int(MOST_PRUNED * (classes == index).sum())
        kept[own[np.argsort(-scores[own])][:most]] = False
    return kept


def cannot_judge(found: ShapePixels, names: Sequence[str]) -> list[str]:
    """A sentence for each class whose labels cannot be judged."""
    classes = place_classes(found.pixels, len(found.shapes))
    counts = np.bincount(classes, minlength=len(names))
    return [
        f"The label of '{name}' cannot be judged: it is the only place of its class. Draw a second one elsewhere."
        for name, count in zip(names, counts.tolist(), strict=True)
        if count == 1
    ]


def _rows(ground: Ground, found: ShapePixels, judged: Judged, names: Sequence[str]) -> list[dict[str, Any]]:
    """The contradicted shapes as fields of the layer, the most suspicious first; one row a shape."""
    classes = place_classes(found.pixels, len(found.shapes))
    rows: list[dict[str, Any]] = []
    seen: set[int] = set()
    for at in np.argsort(-np.nan_to_num(judged.scores, nan=-np.inf), kind="stable").tolist():
        if not judged.scores[at] > 0:
            break
        number = int(found.shapes[at])
        if number in seen:
            continue
        seen.add(number)
        shape = ground.labels.shapes[number]
        given, likely = int(classes[at]), int(judged.likely[at])
        figures = judged.probabilities[at, likely], judged.probabilities[at, given], judged.disagreeing[at]
        percent = [round(100 * float(value)) for value in figures]
        rows.append(
            {
                "rank": len(rows) + 1,
                "given": names[given],
                "likely": names[likely],
                "score": round(float(judged.scores[at]), 3),
                "disagree": percent[2],
                "p_likely": percent[0],
                "p_given": percent[1],
                "reason": _reason(names[given], names[likely], percent),
                "fid_label": shape.fid if shape.fid >= 0 else None,
                "raster": ground.infos[shape.raster_index].path,
                "geometry": in_first_crs(shape.geometry, ground, shape.raster_index),
            }
        )
    return rows


def _reason(given: str, likely: str, percent: Sequence[int]) -> str:
    p_likely, p_given, disagree = percent
    if p_likely > p_given:
        return (
            f"Labelled {given}, but a map made without this label sees {likely} here ({p_likely} % against {p_given} "
            f"%; {disagree} % of its pixels are not {given})."
        )
    return (
        f"Labelled {given}, but it looks less like {given} than other labels of it do, and more like {likely} "
        f"({p_given} % against {p_likely} %)."
    )
