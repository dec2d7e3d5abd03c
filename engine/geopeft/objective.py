"""What is optimised and what is reported: the loss, and accuracy figures with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from geopeft.data.labels import IGNORE

_RESAMPLES = 1000
_PRIOR_PLACES = 8.0
# However many places of one region there are, they say only so much about how a network does in another.
MOST_PLACES = 40.0
USUAL_TEMPERATURE = 1.5
_TEMPERATURES = (0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.5)


def balanced_cross_entropy(logits: torch.Tensor, class_ids: torch.Tensor, class_weights: torch.Tensor) -> torch.Tensor:
    """Cross entropy over labelled pixels, weighted by class.

    Args:
        logits: (B, K, H, W).
        class_ids: (B, H, W) int64, 255 where nothing is to be learned.
        class_weights: (K,).

    Returns:
        The weighted mean over the labelled pixels; 0 (with a gradient of 0) where there are none.
    """
    loss = F.cross_entropy(logits, class_ids, weight=class_weights, ignore_index=IGNORE, reduction="sum")
    known = class_ids[class_ids != IGNORE]
    return loss / class_weights[known].sum().clamp_min(1e-6)


def fit_blend(
    logits: np.ndarray,
    probabilities: np.ndarray,
    truth: np.ndarray,
    places: np.ndarray,
    prior: float,
    most_places: float = MOST_PLACES,
) -> tuple[float, float]:
    """The share of one forecast in its blend with another and its temperature, from pixels that taught neither.

    The most likely pair under a prior: every labelled place counts the same, every class too, and the prior as much as
    8 places. A linear pool of two forecasts (Stone 1961) with temperature scaling (Guo et al. 2017) of one.

    Args:
        logits: (n, K) of the one forecast.
        probabilities: (n, K) of the other.
        truth: (n,) class numbers.
        places: (n,) which labelled place a pixel belongs to.
        prior: share of the one that is likely before any label was looked at.
        most_places: as much as this many places count at most, however many there are.

    Returns:
        (share, temperature); near the prior and the usual temperature where there are no pixels.
    """
    _, place = np.unique(places, return_inverse=True)
    weight = 1 / np.bincount(place)[place]
    by_class = np.bincount(truth, weight)
    weight = weight / by_class[truth] * (min(by_class.sum(), most_places) / max(np.count_nonzero(by_class), 1))
    rows = np.arange(len(truth))
    of_other = np.maximum(probabilities[rows, truth], 1e-6)
    best, found = -math.inf, (prior, USUAL_TEMPERATURE)
    for temperature in _TEMPERATURES:
        of_one = softmax(logits / temperature)[rows, truth]
        for share in np.linspace(0.02, 0.98, 33):
            fit = float((weight * np.log(share * of_one + (1 - share) * of_other)).sum())
            fit += _PRIOR_PLACES * (prior * math.log(share) + (1 - prior) * math.log(1 - share))
            fit -= _PRIOR_PLACES * math.log(temperature / USUAL_TEMPERATURE) ** 2
            if fit > best:
                best, found = fit, (float(share), float(temperature))
    return found


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (n, K) of logits (n, K)."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    result: np.ndarray = exponentials / exponentials.sum(1, keepdims=True)
    return result


def confusion(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """(K, K) int64 counts, rows are the labels, columns the map; pixels with label 255 do not count.

    Args:
        truth, predicted: integer arrays of the same shape with classes from 0.
    """
    known = truth != IGNORE
    pairs = truth[known].astype(np.int64) * num_classes + predicted[known].astype(np.int64)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def figures(blocks: Sequence[np.ndarray], names: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Accuracy figures from the confusion matrices of spatial blocks, with 95 % intervals.

    A class without a labelled pixel has no figures and takes no part in the means; its false alarms still count
    against the other classes. The interval is a percentile bootstrap over blocks (Efron and Tibshirani 1993), so that
    pixels of one place are not taken for independent; with fewer than two blocks there is none.

    Args:
        blocks: (K, K) matrices as of `confusion`, one for each block.
        names: the K class names.
    """
    stack = np.stack([np.asarray(block, np.float64) for block in blocks]) if len(blocks) else np.zeros((0, 0, 0))
    total = stack.sum(0) if len(blocks) else np.zeros((len(names), len(names)))
    rng = np.random.default_rng(seed)
    draws = [stack[rng.integers(0, len(stack), len(stack))].sum(0) for _ in range(_RESAMPLES if len(stack) > 1 else 0)]
    scores = _scores(total)
    sampled = [_scores(draw) for draw in draws]
    result: dict[str, Any] = {
        key: _with_interval(scores[key], [draw[key] for draw in sampled])
        for key in ("miou", "overall_accuracy", "f1_macro")
    }
    result["classes"] = [
        {
            "name": name,
            **{key: _known(scores[f"class_{key}"][index]) for key in ("iou", "f1", "precision", "recall")},
            "support": int(total[index].sum()),
        }
        for index, name in enumerate(names)
    ]
    result["confusion_matrix"] = total.astype(np.int64).tolist()
    result["labels"] = int(total.sum())
    result["blocks"] = len(stack)
    return result


def _scores(matrix: np.ndarray) -> dict[str, Any]:
    with np.errstate(divide="ignore", invalid="ignore"):
        hit, truth, mapped = np.diag(matrix), matrix.sum(1), matrix.sum(0)
        present = truth > 0
        iou = np.where(present, hit / (truth + mapped - hit), np.nan)
        f1 = np.where(present, 2 * hit / (truth + mapped), np.nan)
        precision = np.where(present, np.where(mapped > 0, hit / mapped, 0.0), np.nan)
        recall = np.where(present, hit / truth, np.nan)
        total = matrix.sum()
    known = bool(present.any())
    return {
        "miou": float(np.nanmean(iou)) if known else math.nan,
        "f1_macro": float(np.nanmean(f1)) if known else math.nan,
        "overall_accuracy": float(hit.sum() / total) if known else math.nan,
        "class_iou": iou,
        "class_f1": f1,
        "class_precision": precision,
        "class_recall": recall,
    }


def _with_interval(value: float, draws: list[float]) -> dict[str, float | None]:
    kept = [draw for draw in draws if math.isfinite(draw)]
    low, high = np.percentile(kept, [2.5, 97.5]) if kept else (math.nan, math.nan)
    return {"value": _known(value), "low": _known(float(low)), "high": _known(float(high))}


def _known(value: float) -> float | None:
    """Rounded to what can be meant; JSON has no NaN, so a figure that is not known is null."""
    return round(float(value), 5) if math.isfinite(value) else None
