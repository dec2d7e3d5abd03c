"""The engine's events as Processing's feedback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qgis.core import QgsProcessingFeedback

from ..language import tr

STAGES = {
    "download": "Downloading weights:",
    "labels": "Reading labels:",
    "label raster": "Reading labels:",
    "fit": "Training: step",
    "folds": "Judging the accuracy: step",
    "pretrain": "Training: step",
    "teach": "Asking the model that teaches:",
    "distil": "Training: step",
    "average": "Averaging:",
    "predict": "Mapping:",
    "evaluate": "Evaluating:",
    "vectorize": "Drawing polygons:",
    "export": "Exporting:",
    "count": "Counting pixels:",
    "draw": "Drawing points:",
    "suggest": "Looking for places:",
    "predict second": "Mapping with the second model:",
    "judge": "Judging both on the labels:",
    "compare": "Comparing:",
    "study": "Training and judging:",
}


class Listener:
    """Turns the engine's events into Processing's feedback.

    Args:
        stage_ends: stage -> percentage of the whole job that is done when that stage is; others have no share.
    """

    def __init__(self, feedback: QgsProcessingFeedback, stage_ends: Mapping[str, float]) -> None:
        self._feedback = feedback
        self._ends = stage_ends
        self._stage = ""
        self._stage_start = 0.0
        self._percent = 0.0

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "progress":
            self._progress(event)
        elif kind == "message":
            self._message(event)
        elif kind == "metric":
            self._metric(event)
        elif kind == "started":
            text = tr("Engine {version}, device {device}")
            self._feedback.pushInfo(text.format(version=event.get("engine", ""), device=event.get("device", "")))

    def _progress(self, event: Mapping[str, Any]) -> None:
        stage, current, total = str(event.get("stage", "")), event.get("current") or 0, event.get("total") or 0
        eta = eta_text(event.get("eta_s"))
        if stage != self._stage:
            self._stage, self._stage_start = stage, self._percent
        if total > 0 and stage in self._ends:
            share = max(0.0, self._ends[stage] - self._stage_start)
            self._percent = max(self._percent, self._stage_start + share * min(1.0, current / total))
            self._feedback.setProgress(self._percent)
        if stage == "download":
            done = tr("{done:.0f} of {total:.0f} MB").format(done=current / 1e6, total=total / 1e6)
        else:
            done = tr("{done} of {total}").format(done=current, total=total)
        self._feedback.setProgressText(f"{stage_text(stage)} {done}{', ' if eta else ''}{eta}")

    def _message(self, event: Mapping[str, Any]) -> None:
        text = str(event.get("text", ""))
        if event.get("level") == "warning":
            self._feedback.pushWarning(text)
        else:
            self._feedback.pushInfo(text)

    def _metric(self, event: Mapping[str, Any]) -> None:
        values = event.get("values") or {}
        figures = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if isinstance(value, (int, float)))
        text = tr("{stage} {step}: {figures}")
        stage = stage_text(str(event.get("stage", "")))
        self._feedback.pushInfo(text.format(stage=stage, step=event.get("step", ""), figures=figures))
        listen = getattr(self._feedback, "metric", None)
        if listen is not None:
            listen(dict(event))


def stage_text(stage: str) -> str:
    """A stage's name for people."""
    return tr(STAGES[stage]) if stage in STAGES else stage.replace("_", " ").capitalize() + ":"


def eta_text(seconds: Any) -> str:
    """The time left, as people say it; empty where it is not known."""
    if not isinstance(seconds, (int, float)) or seconds < 0:
        return ""
    if seconds < 90:
        return tr("about {seconds} s left").format(seconds=max(1, round(seconds)))
    return tr("about {minutes} min left").format(minutes=round(seconds / 60))
