"""The figures of a package as the report reads them: what is missing, or is no number, is None and is never drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Interval:
    """A figure and the ends of its 95 % interval; each None where it is not known."""

    value: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def has_ends(self) -> bool:
        """True where both ends are known."""
        return self.low is not None and self.high is not None


@dataclass(frozen=True)
class ClassScore:
    """The figures of one class.

    Args:
        support: labelled pixels that were judged.
        blocks: blocks of ground that hold the class.
        reason: why a figure is left out; empty where none is.
    """

    name: str
    iou: Interval
    f1: Interval
    precision: float | None
    recall: float | None
    support: int | None
    blocks: int | None
    reason: str


@dataclass(frozen=True)
class Bin:
    """One bin of a reliability diagram: mean confidence, share that was right, share of all pixels; each 0..1."""

    confidence: float
    accuracy: float
    weight: float


@dataclass(frozen=True)
class Rival:
    """A baseline on the same places; `difference` is the map's mIoU minus its own, over the same blocks."""

    name: str
    miou: Interval
    overall_accuracy: Interval
    f1_macro: Interval
    difference: Interval


@dataclass(frozen=True)
class Moment:
    """One point of the training's curve."""

    step: int
    loss: float | None
    miou: float | None


@dataclass(frozen=True)
class Scores:
    """Everything that is known of how good a map is.

    Args:
        labels: labelled pixels that were judged.
        blocks, block_m: blocks of ground that they lie in, and their side.
        folds: 1: one part of the labels was held out; more: each place was judged by a training without it.
        parts: mIoU of the network and of the classical part alone.
        confusion: rows are the labels, columns the map; empty where it is not known.
    """

    miou: Interval
    overall_accuracy: Interval
    f1_macro: Interval
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]
    labels: int | None
    blocks: int | None
    block_m: float | None
    folds: int | None
    split: str
    left_out: tuple[str, ...]
    ece: float | None
    bins: tuple[Bin, ...]
    rivals: tuple[Rival, ...]
    parts: Mapping[str, float | None]
    history: tuple[Moment, ...]
    seconds: float | None

    @classmethod
    def read(cls, figures: Mapping[str, Any]) -> Scores:
        """From the dictionary in a package's `metrics`, or in a file that `evaluate` wrote."""
        calibration = _mapping(figures.get("calibration"))
        return cls(
            miou=_interval(figures.get("miou")),
            overall_accuracy=_interval(figures.get("overall_accuracy")),
            f1_macro=_interval(figures.get("f1_macro")),
            classes=tuple(_class_score(row) for row in _rows(figures.get("classes"))),
            confusion=_confusion(figures.get("confusion_matrix")),
            labels=_count(figures.get("labels")),
            blocks=_count(figures.get("blocks")),
            block_m=_number(figures.get("block_m")),
            folds=_count(figures.get("folds")),
            split=_text(figures.get("split")),
            left_out=tuple(text for text in _list(figures.get("left_out")) if isinstance(text, str)),
            ece=_number(calibration.get("ece")),
            bins=tuple(found for row in _rows(calibration.get("bins")) if (found := _bin(row)) is not None),
            rivals=tuple(_rival(name, _mapping(row)) for name, row in _mapping(figures.get("baselines")).items()),
            parts={str(name): _number(value) for name, value in _mapping(figures.get("parts")).items()},
            history=tuple(
                Moment(step, _number(row.get("loss")), _number(row.get("miou")))
                for row in _rows(figures.get("history"))
                if (step := _count(row.get("step"))) is not None
            ),
            seconds=_number(figures.get("seconds")),
        )

    @property
    def is_known(self) -> bool:
        """False where no label was held out."""
        return self.miou.value is not None or self.overall_accuracy.value is not None


def _class_score(row: Mapping[str, Any]) -> ClassScore:
    return ClassScore(
        name=str(row.get("name", "")),
        iou=Interval(_number(row.get("iou")), _number(row.get("iou_low")), _number(row.get("iou_high"))),
        f1=Interval(_number(row.get("f1")), _number(row.get("f1_low")), _number(row.get("f1_high"))),
        precision=_number(row.get("precision")),
        recall=_number(row.get("recall")),
        support=_count(row.get("support")),
        blocks=_count(row.get("blocks")),
        reason=_text(row.get("reason")),
    )


def _rival(name: str, row: Mapping[str, Any]) -> Rival:
    parts = (_interval(row.get(key)) for key in ("miou", "overall_accuracy", "f1_macro", "difference"))
    return Rival(str(name), *parts)


def _bin(row: Mapping[str, Any]) -> Bin | None:
    confidence, accuracy, weight = (_number(row.get(key)) for key in ("confidence", "accuracy", "weight"))
    if confidence is None or accuracy is None or not weight:
        return None
    return Bin(confidence, accuracy, weight)


def _confusion(value: Any) -> tuple[tuple[int, ...], ...]:
    rows = [[_count(cell) for cell in _list(row)] for row in _list(value)]
    if not rows or any(len(row) != len(rows) or None in row for row in rows):
        return ()
    return tuple(tuple(cell or 0 for cell in row) for row in rows)


def _interval(value: Any) -> Interval:
    row = _mapping(value)
    return Interval(*(_number(row.get(key)) for key in ("value", "low", "high")))


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _count(value: Any) -> int | None:
    number = _number(value)
    return int(number) if number is not None and number >= 0 else None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


def _rows(value: Any) -> list[Mapping[str, Any]]:
    return [row for row in _list(value) if isinstance(row, Mapping)]
