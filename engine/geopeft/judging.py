"""What a fit can say of its map: extra folds are trained where labels are few, and everything held out is judged.

The model that is kept has nothing from here: each fold is a training of its own from the same starting weights, with
the same steps, of which only the forecasts of the places that it did not see remain.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geopeft.baselines import FOREST, UNET, build_unet, fit_forest
from geopeft.blending import Forecast, as_tensors, forecasts, from_tensors, judged_blends, with_rival
from geopeft.checkpoint import Checkpoint
from geopeft.classical import Classical
from geopeft.data.chips import ChipReader, ChipSampler, Site
from geopeft.data.few_windows import Few
from geopeft.errors import JobError, OutputError
from geopeft.events import Level, Reporter
from geopeft.evidence import named
from geopeft.features.kept import KeptFeatures
from geopeft.forest import Pixels, fit_classical, fit_probe
from geopeft.holdout import HeldOut
from geopeft.models import SegmentationModel
from geopeft.models.texture import Texture
from geopeft.prepare import Prepared
from geopeft.training.trainer import Pace, Trainer

STAGE = "folds"
MOST_HISTORY = 100


@dataclass(frozen=True)
class Lesson:
    """What all trainings of a fit have in common.

    Args:
        reader, sites: the labelled places.
        texture, pixels: features, and a sample of the labelled pixels with them.
        num_classes, size_px: how many classes there are, and the side of the chips.
        seed: of everything random.
        baselines: names of what is judged beside the map.
        features: where features of the model are kept; None: they are computed.
        few: from how few windows its chips come.
    """

    reader: ChipReader
    sites: Sequence[Site]
    texture: Texture
    pixels: Pixels
    num_classes: int
    size_px: int
    seed: int
    baselines: Sequence[str]
    features: KeptFeatures | None = None
    few: Few | None = None

    def classical(self, pixels: Pixels) -> Classical:
        """The classical part that these pixels teach."""
        model = fit_classical(pixels, self.num_classes, len(self.texture.mean[0]), self.seed)
        return Classical(self.texture, model, self.num_classes)

    def rival(self, pixels: Pixels) -> Any:
        """The baseline's forest that these pixels teach; None where it is not asked for."""
        return fit_forest(pixels, len(self.texture.mean[0]), self.seed) if FOREST in self.baselines else None

    def sampler(self, held: HeldOut, fold: int = 0, few: Few | None = None) -> ChipSampler:
        """Draws chips of what teaches in a fold."""
        sites = [self.sites[at] for at in held.taught]
        return ChipSampler(self.reader, sites, held.withheld, self.size_px, self.seed + fold, few)


@dataclass
class Course:
    """How the training of the model went, which those of the folds repeat.

    Args:
        initial: the weights that it began with.
        steps, until: the steps that its rates were planned for, and the step of the weights that were kept.
        seconds: what so many steps took; 0 where that is not known.
        deadline: no training begins that would end after it (time.monotonic()).
        rate: factor of the learning rates.
    """

    initial: Mapping[str, Tensor]
    steps: int
    until: int
    seconds: float
    deadline: float
    rate: float = 1.0


def trainings(folds: int, baselines: Sequence[str]) -> int:
    """How many trainings the folds need beside that of the model."""
    return max(folds - 1, 0) + (folds if UNET in baselines else 0)


def judge_folds(
    lesson: Lesson,
    model: SegmentationModel,
    folds: Sequence[HeldOut],
    first: list[Forecast],
    course: Course,
    checkpoint: Checkpoint,
    reporter: Reporter,
) -> list[list[Forecast]]:
    """The forecasts of each fold's held-out places, of as many folds as time and a stop allow.

    Args:
        model: its weights are lost.
        folds: that of the model, then the extra ones.
        first: what the model said of the held-out places of its own fold.
        checkpoint: with the end of the model's training; gets every fold that is done, and gives those of an earlier
            run.
    """
    kept = _kept(checkpoint)
    work = _Work(lesson, course, reporter, trainings(len(folds), lesson.baselines))
    result: list[list[Forecast]] = []
    for number, held in enumerate(folds):
        found = from_tensors(kept, f"fold.{number}.")
        if found:
            work.skip(number)
        else:
            said = first if number == 0 else work.train(model, held, number)
            if said is None:
                break
            found = work.with_unet(said, model, held, number)
            if found and (number or UNET in lesson.baselines):
                with contextlib.suppress(OutputError, JobError):
                    checkpoint.add(as_tensors(found, f"fold.{number}."))
        result.append(found)
    return result


def judged_elsewhere(
    trainer: Trainer, prepared: Prepared, sites: Sequence[Site], held: HeldOut, seed: int
) -> Mapping[str, np.ndarray]:
    """What labels have said of the blend in regions that a model had never seen, for `Evidence`: those that the start
    knows of, and the held-out ones here, where the start has not learned here. Of such a region all places count.

    Args:
        trainer: with the start's weights, before any step.
        sites: the labelled places.
    """
    start = held.start
    if start is None:
        return {}
    known = start.evidence.elsewhere if start.evidence is not None else {}
    found = start.classical(prepared.spec, prepared.labels.classes)
    if found is None or not held.chips or not start.is_strange(prepared.infos, sites):
        return known
    classical, order = found
    said = [replace(chip, classical=chip.classical[:, order]) for chip in forecasts(trainer, held.chips, classical)]
    return {**known, **named(judged_blends(said, seed, math.inf))}


class _Work:
    """The trainings of the folds, one after the other."""

    def __init__(self, lesson: Lesson, course: Course, reporter: Reporter, count: int) -> None:
        self._lesson, self._course, self._reporter = lesson, course, reporter
        self._done, self._total = 0, count * course.until

    def skip(self, number: int) -> None:
        """Counts the trainings of a fold that is done already."""
        self._done += ((number > 0) + (UNET in self._lesson.baselines)) * self._course.until

    def train(self, model: SegmentationModel, held: HeldOut, number: int) -> list[Forecast] | None:
        """What a model says that learned without these places; None where a stop or the time left does not allow it."""
        lesson = self._lesson
        model.load_trainable_state(self._course.initial)
        taught = lesson.pixels.of(held.taught)
        if model.probe is not None:
            model.probe.put(*map(torch.from_numpy, fit_probe(taught, lesson.num_classes)))
        trainer = self._trained(model, held, number, None, lesson.features, lesson.few)
        if trainer is None:
            return None
        return forecasts(trainer, held.chips, lesson.classical(taught), lesson.rival(taught))

    def with_unet(self, found: list[Forecast], model: SegmentationModel, held: HeldOut, number: int) -> list[Forecast]:
        """With what a UNet maps that learned from the same places, where it is asked for and could be trained."""
        if UNET not in self._lesson.baselines or not held.chips:
            return found
        unet = build_unet(model.spec, self._lesson.seed + number).to(next(model.parameters()).device)
        trainer = self._trained(unet, held, number, Pace(alone=0.0))
        return with_rival(found, UNET, trainer, held.chips) if trainer is not None else found

    def _trained(
        self,
        model: SegmentationModel,
        held: HeldOut,
        number: int,
        pace: Pace | None,
        features: KeptFeatures | None = None,
        few: Few | None = None,
    ) -> Trainer | None:
        course, begun = self._course, time.monotonic()
        if self._reporter.stop_requested() or begun + course.seconds > course.deadline:
            return None
        # Each fold is the same whatever was done before it in this run.
        torch.manual_seed(self._lesson.seed + number)
        heard = _InFold(self._reporter, self._done, self._total)
        pace = replace(pace or Pace(), rate=course.rate)
        sampler = self._lesson.sampler(held, number, few)
        trainer = Trainer(model, sampler, (), heard, False, pace=pace, features=features)
        done = trainer.train(course.steps, deadline=course.deadline, until=course.until)
        if done < course.until:
            return None
        self._done += done
        course.seconds = time.monotonic() - begun
        return trainer


class _InFold(Reporter):
    """A fold's progress is a part of that of all folds; its figures and sentences are not those of the model."""

    def __init__(self, reporter: Reporter, done: int, total: int) -> None:
        super().__init__()
        self._reporter, self._done, self._total = reporter, done, total

    def check_canceled(self) -> None:
        self._reporter.check_canceled()

    def stop_requested(self) -> bool:
        return self._reporter.stop_requested()

    def progress(self, stage: str, current: int, total: int, at_most_s: float = math.inf) -> None:
        self._reporter.progress(STAGE, self._done + current, self._total, at_most_s)

    def message(self, text: str, level: Level = "info") -> None:
        return None


def _kept(checkpoint: Checkpoint) -> Mapping[str, Tensor]:
    with contextlib.suppress(JobError):
        found = checkpoint.read()
        return found[1] if found is not None else {}
    return {}


def history(curve: Sequence[tuple[int, Mapping[str, float]]]) -> list[dict[str, float | None]]:
    """Step, loss of the training and mIoU of the validations, thinned out evenly to at most MOST_HISTORY."""
    chosen = sorted({round(at) for at in np.linspace(0, len(curve) - 1, min(len(curve), MOST_HISTORY))})
    return [{"step": curve[at][0], **{name: curve[at][1].get(name) for name in ("loss", "miou")}} for at in chosen]
