"""Do the 95 % intervals hold the true accuracy of a map? Made scenes whose truth is known everywhere.

    build.py bench intervals [--draws N] [--placements NAME,...] [--out FOLDER]

Each draw makes a scene and a few labels on it, and lets the engine deal them as a fit does: whole blocks of ground are
held out, in several folds where labels are few. The classical part of a model stands for the whole, so that hundreds of
draws are affordable. What is said of the held-out labels, with its interval, is compared with the accuracy of the final
map, which all labels teach, on all unlabelled ground. Beside it stands what is usual: a quarter of the labelled pixels
held out at random, with the binomial interval of so many pixels. Draws that are done are kept in OUT/intervals.jsonl,
so that a stopped run goes on where it was; the intervals are made anew from their confusion matrices.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import _intervals_report as report  # type: ignore[import-not-found]
import _scenes  # type: ignore[import-not-found]
import numpy as np
import sklearn
import torch
from geopeft import forest
from geopeft.accuracy import confusion, figures
from geopeft.blending import Forecast, _by_block
from geopeft.classical import Classical
from geopeft.data.chips import ChipReader, Site, find_sites, groups_of
from geopeft.data.labels import IGNORE
from geopeft.events import Reporter
from geopeft.forest import Pixels, fit_texture, gather_pixels
from geopeft.holdout import HeldOut, hold_out, more_folds
from geopeft.job import FitJob
from geopeft.judging import Lesson
from geopeft.prepare import Prepared, prepare
from geopeft.runtime import fill_values
from numpy.typing import NDArray
from scipy import special

FIGURES = ("miou", "overall_accuracy")
# The side of the chips of the backbones for satellites and of the others.
CHIPS_PX = (32, 64, 128)
# Of the scene's pixels every third of every third row is compared: 29 000 of them.
STEP_PX = 3
HELD_OUT = 0.25
# Trees of a forest, and of those that tell its share: fewer than a fit takes, which makes no difference for what is
# asked here.
TREES, FOLD_TREES = 12, 4


@dataclass(frozen=True)
class Draw:
    """What one draw said and what is true.

    Args:
        placement, seed, labels, classes: of the draw and its labels.
        patch_px, variation_px, chip_px: of the scene and the chips.
        folds, blocks, block_px: how the labels were dealt.
        judged: classes that the figures rest on.
        matrices: confusion matrices of the blocks that were held out.
        pixels: figure -> (value, low, high) from random pixels.
        final: figure -> true value of the final map, over the classes that are judged.
        alike: the same with the classes in the proportions that they have in the labels.
        of_folds: true values of the maps of the folds, their mean.
    """

    placement: str
    seed: int
    labels: int
    classes: int
    patch_px: float
    variation_px: float
    chip_px: int
    folds: int
    blocks: int
    block_px: float
    judged: int
    matrices: list[list[list[int]]] = field(default_factory=list)
    pixels: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    final: dict[str, float] = field(default_factory=dict)
    alike: dict[str, float] = field(default_factory=dict)
    of_folds: dict[str, float] = field(default_factory=dict)

    @cached_property
    def ours(self) -> dict[str, tuple[float, float, float]]:
        """Figure -> (value, low, high) from the blocks; without those that are not given."""
        blocks = [np.array(matrix) for matrix in self.matrices]
        found = figures(blocks, [""] * len(blocks[0])) if blocks else {}
        given = {key: found[key] for key in FIGURES if found and found[key]["value"] is not None}
        return {key: (one["value"], one["low"], one["high"]) for key, one in given.items()}


@dataclass(frozen=True)
class Dealt:
    """What a fit would have of a scene's labels: the places, which of them each fold holds out, and the features."""

    prepared: Prepared
    sites: Sequence[Site]
    folds: Sequence[HeldOut]
    lesson: Lesson


def deal(raster: str, labels: str, seed: int, chip_px: int) -> Dealt:
    """Holds labels out as a fit does, with chips of this size."""
    job = FitJob(rasters=(raster,), labels=labels, class_field="class", out=f"{raster}.geopeft",
                 backbone="scratch_unet", seed=seed, baselines=())  # fmt: skip
    reporter = Reporter()
    prepared = prepare(job, reporter)
    prepared = replace(prepared, spec=prepared.spec.model_copy(update={"chip_size_px": chip_px}))
    with ChipReader(prepared.infos, prepared.bands, prepared.labels, prepared.units) as reader:
        sites = find_sites(reader, seed=seed)
        held = hold_out(job, prepared, reader, sites, reporter)
        folds = [held, *more_folds(job, prepared, reader, sites, held, reporter)]
        return Dealt(prepared, sites, folds, _lesson(prepared, reader, sites, seed))


def draw(placement: str, seed: int, folder: Path, side_px: int = _scenes.SIDE_PX) -> Draw:
    """One scene with its labels, what is said of its map, and what is true of it."""
    rng = np.random.default_rng(seed)
    scene = _scenes.make_scene(rng, side_px)
    owner = _scenes.draw_labels(scene, placement, _scenes.how_many(scene, rng), rng)
    chip_px = int(rng.choice(CHIPS_PX))
    raster, labels = _scenes.write_scene(scene, owner, folder)
    dealt = deal(raster, labels, seed, chip_px)
    lesson, first = dealt.lesson, dealt.folds[0]
    ground = _Ground(scene, owner, lesson.texture)
    final = lesson.classical(lesson.pixels)
    folds = [fold for fold in dealt.folds if fold.chips]
    models = [lesson.classical(lesson.pixels.of(fold.taught)) for fold in folds]
    said = [one for model, fold in zip(models, folds, strict=True) for one in _forecasts(model, fold)]
    matrices = _by_block(said, [one.classical.argmax(1) for one in said], first.blocks, scene.classes)
    found = figures(matrices, [known.name for known in dealt.prepared.labels.classes])
    judged = np.array([row["iou"] is not None for row in found["classes"]])
    shares = np.array(found["confusion_matrix"]).sum(1)
    matrix = ground.matrix(final)
    return Draw(
        placement=placement,
        seed=seed,
        labels=len(dealt.sites),
        classes=scene.classes,
        patch_px=scene.patch_px,
        variation_px=scene.variation_px,
        chip_px=chip_px,
        folds=len(models),
        blocks=found["blocks"],
        block_px=(first.block_m or 0.0) / dealt.prepared.infos[0].gsd_m,
        judged=int(judged.sum()),
        matrices=[matrix.tolist() for matrix in matrices],
        pixels=_random_pixels(lesson, judged, rng),
        final=_figures(matrix, judged),
        alike=_figures(matrix * (shares / np.maximum(matrix.sum(1), 1))[:, None], judged),
        of_folds=_mean([_figures(ground.matrix(model), judged) for model in models]),
    )


@contextmanager
def small_forests(trees: int = TREES, fold_trees: int = FOLD_TREES) -> Iterator[None]:
    """Forests have so few trees, and what is known of their parameters is not checked again and again."""
    before = forest.TREES, forest.FOLD_TREES
    forest.TREES, forest.FOLD_TREES = trees, fold_trees
    try:
        with sklearn.config_context(assume_finite=True, skip_parameter_validation=True), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        forest.TREES, forest.FOLD_TREES = before


def _lesson(prepared: Prepared, reader: ChipReader, sites: Sequence[Site], seed: int) -> Lesson:
    spec = prepared.spec
    fill = fill_values(spec.bands)
    texture = fit_texture(reader, sites, spec.bands, spec.gsd_m, fill, seed)
    # Of the network only its make is asked for.
    model: Any = SimpleNamespace(spec=spec, probe=None)
    pixels = gather_pixels(reader, sites, texture, model, fill, seed)
    return Lesson(reader, sites, texture, pixels, spec.num_classes, spec.chip_size_px, seed, ())


def _forecasts(model: Classical, fold: HeldOut) -> list[Forecast]:
    """What the model says of the labelled pixels of a fold's held-out places."""
    found = []
    for chip, (_, row, col) in fold.chips:
        rows, cols = np.nonzero(chip.class_ids != IGNORE)
        raw = torch.from_numpy(chip.values[None])
        said = model.probabilities(raw)[0][:, rows, cols].T
        places = groups_of(chip, row, col)[rows, cols]
        found.append(Forecast(chip.class_ids[rows, cols].astype(np.int64), np.zeros_like(said), said, places))
    return found


class _Ground:
    """The unlabelled pixels of a scene, every third of every third row."""

    def __init__(self, scene: Any, owner: NDArray[np.int64], texture: Any) -> None:
        some = (slice(None, None, STEP_PX), slice(None, None, STEP_PX))
        free = owner[some] < 0
        with torch.inference_mode():
            seen = texture(torch.from_numpy(scene.values[None]))[0][:, *some]
        self._features = np.ascontiguousarray(seen.numpy()[:, free].T)
        self._truth, self._classes = scene.truth[some][free], scene.classes

    def matrix(self, model: Classical) -> NDArray[np.int64]:
        """(K, K) confusion matrix of the map on them."""
        return confusion(self._truth, model.of_features(self._features).argmax(1), self._classes)


def _figures(matrix: NDArray[Any], judged: NDArray[np.bool_]) -> dict[str, float]:
    """mIoU over the classes that are judged, and overall accuracy."""
    hit = np.diag(matrix)
    with np.errstate(divide="ignore", invalid="ignore"):
        iou = hit / (matrix.sum(0) + matrix.sum(1) - hit)
    return {
        "miou": float(np.nanmean(iou[judged])) if judged.any() else math.nan,
        "overall_accuracy": float(hit.sum() / matrix.sum()),
    }


def _mean(figures: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([one[key] for one in figures])) for key in FIGURES} if figures else {}


def _random_pixels(
    lesson: Lesson, judged: NDArray[np.bool_], rng: np.random.Generator
) -> dict[str, tuple[float, float, float]]:
    """As is usual: a quarter of the labelled pixels held out at random, and the binomial interval of so many."""
    pixels: Pixels = lesson.pixels
    held = rng.random(len(pixels.classes)) < HELD_OUT
    model = lesson.classical(pixels.where(~held))
    found = confusion(pixels.classes[held], model.of_features(pixels.features[held]).argmax(1), lesson.num_classes)
    return {key: (value, *binomial(value, int(held.sum()))) for key, value in _figures(found, judged).items()}


def binomial(share: float, count: int) -> tuple[float, float]:
    """Exact 95 % interval of a share of independent pixels (Clopper and Pearson 1934)."""
    hits = share * count
    low = float(special.betaincinv(hits, count - hits + 1, 0.025)) if hits > 0 else 0.0
    return low, float(special.betaincinv(hits + 1, count - hits, 0.975)) if hits < count else 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws, prints the tables, and writes them and the picture; what is drawn already is kept."""
    options = _options(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    stem = options.out / "intervals"
    begun, drawn = time.monotonic(), read_draws(stem.with_suffix(".jsonl"))
    # One of each kind after the other, so that a run that is stopped has as many of all.
    for seed in range(options.draws):
        for placement in options.placements:
            if (placement, seed) in drawn:
                continue
            with tempfile.TemporaryDirectory() as folder, small_forests():
                drawn[placement, seed] = draw(placement, seed, Path(folder))
            with stem.with_suffix(".jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(drawn[placement, seed])) + "\n")
        if (seed + 1) % 20 == 0:
            print(f"{len(drawn)} draws, {time.monotonic() - begun:.0f} s", flush=True)
    draws = [drawn[key] for key in sorted(drawn)]
    text = report.write(draws, stem)
    print(text)
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="build.py bench intervals", description=__doc__)
    parser.add_argument("--draws", type=int, default=200, help="of each placement")
    parser.add_argument("--placements", type=_placements, default=list(_scenes.PLACEMENTS))
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    return parser.parse_args(arguments)


def _placements(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not set(names) <= set(_scenes.PLACEMENTS):
        raise argparse.ArgumentTypeError(f"{text} is not among {', '.join(_scenes.PLACEMENTS)}")
    return names


def read_draws(path: Path) -> dict[tuple[str, int], Draw]:
    """(placement, seed) -> the draw, of an earlier run that was stopped."""
    if not path.exists():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    return {(row["placement"], row["seed"]): Draw(**row) for row in rows}


if __name__ == "__main__":
    sys.exit(main())
