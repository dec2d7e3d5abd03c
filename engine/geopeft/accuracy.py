"""How good a map is: figures with intervals from the confusion matrices of blocks of ground.

Pixels of one place resemble each other, so what is counted are blocks: a figure's spread is that between blocks, and a
figure that rests on one block is not given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import special

from geopeft.data.labels import IGNORE

CONFIDENCE = 0.95
# A figure needs so many blocks that hold its class.
FEWEST_BLOCKS = 2
# However alike blocks are, one of them says no more than so many independent pixels would: those of a few small shapes
# close together are right or wrong together, so that ten places without an error do not speak for hundreds of pixels.
MOST_PER_BLOCK = 8.0
_BINS = 10
_MEANS = ("miou", "overall_accuracy", "f1_macro")
_OF_CLASS = ("iou", "f1", "precision", "recall")


def confusion(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """(K, K) int64 counts, rows are the labels, columns the map; pixels with label 255 do not count.

    Args:
        truth, predicted: integer arrays of the same shape with classes from 0.
    """
    known = truth != IGNORE
    pairs = truth[known].astype(np.int64) * num_classes + predicted[known].astype(np.int64)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def mean_iou(matrix: np.ndarray) -> float | None:
    """mIoU of one (K, K) matrix over the classes that have labels, however few; None without any."""
    return _known(float(_mean(_class_scores(np.asarray(matrix, np.float64))["iou"], matrix.sum(1) > 0)))


def figures(
    blocks: Sequence[np.ndarray], names: Sequence[str], block_m: float | None = None, folds: int = 1
) -> dict[str, Any]:
    """Accuracy figures from the confusion matrices of spatial blocks, with 95 % intervals.

    A class whose labels lie in fewer than two blocks has no figures and takes no part in the means; its false alarms
    still count against the other classes. Where no class lies in two, nothing is given.

    The interval is that of Korn and Graubard (1998, Survey Methodology 24) for proportions from clustered samples: the
    exact binomial one for as many independent pixels as the blocks' spread speaks for, which is found by leaving out
    one block after the other (the jackknife, Efron and Tibshirani 1993), with Student's t for so few blocks. Blocks
    that hold most of the labels decide alone, so that they count as their effective number. The means over classes rest
    on no more independent pixels than overall accuracy: each class has a part of the same pixels, and where one lies in
    two or three blocks that happen to agree, its spread says too little.

    In simulations of independent blocks a percentile bootstrap over them held the true value in 44 to 92 % of the cases
    with up to ten blocks, this one in 93 to 100 %; of scenes with labels, see the bench `intervals`.

    Args:
        blocks: (K, K) matrices as of `confusion`, one for each block.
        names: the K class names.
        block_m: side of the blocks in metres, None where it is not known.
        folds: 1 for one hold-out, k for k folds.
    """
    count = len(names)
    stack = np.array([np.asarray(block, np.float64) for block in blocks]).reshape(-1, count, count)
    total = stack.sum(0)
    spread = (stack.sum(2) > 0).sum(0)
    judged = spread >= FEWEST_BLOCKS
    scores, without = _scores(total, judged), [_scores(total - block, judged) for block in stack]
    count_of_all = effective_number(stack.sum((1, 2))) if judged.any() else 0.0
    most = _independent(scores["overall_accuracy"], _jackknife([one["overall_accuracy"] for one in without]))
    result: dict[str, Any] = {
        key: _with_interval(scores[key], [one[key] for one in without], count_of_all, most) for key in _MEANS
    }
    reasons = [_reason(name, int(own)) for name, own in zip(names, spread, strict=True)]
    result["classes"] = [
        _class_figures(index, name, scores, without, stack.sum(2)[:, index])
        | {"support": int(total[index].sum()), "blocks": int(spread[index]), "reason": reasons[index]}
        for index, name in enumerate(names)
    ]
    result["confusion_matrix"] = total.astype(np.int64).tolist()
    result["labels"] = int(total.sum())
    result |= {"blocks": len(stack), "block_m": block_m, "folds": folds}
    result["left_out"] = _left_out(len(stack), judged, reasons)
    return result


def difference(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> dict[str, float | None]:
    """mIoU of one map minus that of another on the same labels, with its 95 % interval.

    Both are left out block by block together (a paired jackknife), so that what is hard for both does not blur the
    difference. However alike the differences of the blocks are, and where there is none in any of them, the interval is
    as wide as `interval_of_difference` says.

    Args:
        one, other: (K, K) matrices of the same blocks, in the same order.
    """
    return _paired(one, other, "miou")


def differences(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> dict[str, dict[str, float | None]]:
    """`difference` for mIoU, overall accuracy and F1."""
    return {key: _paired(one, other, key) for key in _MEANS}


def class_differences(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> list[dict[str, float | None]]:
    """`difference` of the IoU of each class; null where a class lies in fewer than two blocks."""
    return [_paired(one, other, "class_iou", index) for index in range(len(one[0]))] if len(one) else []


def calibration(confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray) -> dict[str, Any]:
    """How often a map is right where it says how sure it is, in ten bins of confidence.

    The error is the mean difference of confidence and accuracy over the bins (Guo et al. 2017, On calibration of modern
    neural networks), by the weights of their pixels.

    Args:
        confidence: (n,) the probability of the class that is mapped.
        correct: (n,) bool, whether it is the labelled one.
        weights: (n,) what each pixel counts.

    Returns:
        `ece`, null without pixels, and `bins` that hold any: mean `confidence`, `accuracy` and share of the `weight`.
    """
    parts = (np.ones(len(confidence)), confidence, correct)
    return _reliability(*(np.bincount(_bin(confidence), part * weights, minlength=_BINS) for part in parts))


class Reliability:
    """`calibration` of a whole map, bit by bit; every class weighs the same, as in the mean figures."""

    def __init__(self, num_classes: int) -> None:
        self._sums = np.zeros((3, num_classes, _BINS))

    def add(self, truth: np.ndarray, probabilities: np.ndarray) -> None:
        """(n,) class numbers of labelled pixels, and (n, K) what the map says of them."""
        confidence = probabilities.max(1)
        parts = (np.ones(len(truth)), confidence, probabilities.argmax(1) == truth)
        where = truth * _BINS + _bin(confidence)
        size = self._sums[0].size
        for sums, part in zip(self._sums, parts, strict=True):
            sums += np.bincount(where, part, minlength=size).reshape(sums.shape)

    def figures(self) -> dict[str, Any]:
        """As of `calibration`."""
        weights = 1 / np.maximum(self._sums[0].sum(1), 1)
        return _reliability(*(self._sums * weights[:, None]).sum(1))


def _bin(confidence: np.ndarray) -> np.ndarray:
    return np.minimum((confidence * _BINS).astype(np.int64), _BINS - 1)


def _reliability(weight: np.ndarray, said: np.ndarray, right: np.ndarray) -> dict[str, Any]:
    """From the weight, confidence and accuracy summed up in every bin, each (10,)."""
    total, there = weight.sum(), np.flatnonzero(weight > 0)
    bins = [
        {
            "confidence": _known(said[at] / weight[at]),
            "accuracy": _known(right[at] / weight[at]),
            "weight": _known(weight[at] / total),
        }
        for at in there
    ]
    return {"ece": _known(np.abs(said - right).sum() / total) if total > 0 else None, "bins": bins}


def effective_number(sizes: np.ndarray) -> float:
    """How many parts of equal size say as much as parts of these sizes (Kish 1965, Survey Sampling)."""
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if sizes.any() else 0.0


def interval_of_share(value: float, variance: float, blocks: float, most: float = math.inf) -> tuple[float, float]:
    """The 95 % interval of a figure between 0 and 1, with the variance that blocks speak for (see `figures`).

    Args:
        value: the figure.
        variance: of the figure, from its spread between blocks.
        blocks: how many there are, or their effective number.
        most: independent pixels that there are at most, whatever the variance.
    """
    independent = min(_independent(value, variance), most, MOST_PER_BLOCK * blocks)
    independent *= (special.ndtri(0.5 + CONFIDENCE / 2) / _student(blocks)) ** 2
    hits, tail = value * independent, (1 - CONFIDENCE) / 2
    misses = independent - hits
    low = float(special.betaincinv(hits, misses + 1, tail)) if hits > 1e-9 else 0.0
    high = float(special.betaincinv(hits + 1, misses, 1 - tail)) if misses > 1e-9 else 1.0
    return low, high


def _independent(value: float, variance: float) -> float:
    """Independent pixels of which a share has this variance."""
    return value * (1 - value) / variance if variance > 0 else math.inf


def interval_of_difference(value: float, variance: float, blocks: float) -> tuple[float, float]:
    """The 95 % interval of the difference of two figures between 0 and 1, with the variance that blocks speak for.

    Student's t on the blocks' spread, but never narrower than what the most independent pixels that the blocks may
    stand for leave open, where the maps differ on no more pixels than the difference needs: one of them right and the
    other wrong on a share of them, never the other way round. That is the difference of two proportions, put together
    from their exact intervals (MOVER, Zou and Donner 2008, Statistics in Medicine 27).

    Args:
        value: the difference, -1 to 1.
        variance: of it, from its spread between blocks.
        blocks: how many there are, or their effective number.
    """
    if value < 0:
        low, high = interval_of_difference(-value, variance, blocks)
        return -high, -low
    spread = _student(blocks) * math.sqrt(variance)
    less, more = interval_of_share(value, 0.0, blocks)
    _, opposite = interval_of_share(0.0, 0.0, blocks)
    below = max(spread, math.hypot(value - less, opposite))
    return max(value - below, -1.0), min(value + max(spread, more - value), 1.0)


def _student(blocks: float) -> float:
    return float(special.stdtrit(max(blocks, FEWEST_BLOCKS) - 1, 0.5 + CONFIDENCE / 2))


def _class_figures(
    index: int, name: str, scores: dict[str, Any], without: Sequence[dict[str, Any]], sizes: np.ndarray
) -> dict[str, Any]:
    """A class's row, from the (B,) numbers of its labelled pixels in the blocks."""
    row: dict[str, Any] = {"name": name, **dict.fromkeys(_OF_CLASS)}
    enough = int((sizes > 0).sum()) >= FEWEST_BLOCKS
    if enough:
        row |= {key: _known(scores[f"class_{key}"][index]) for key in _OF_CLASS}
    for key in ("iou", "f1"):
        values = [one[f"class_{key}"][index] for one in without]
        found = _with_interval(scores[f"class_{key}"][index], values, effective_number(sizes) if enough else 0.0)
        row |= {f"{key}_{end}": found[end] for end in ("low", "high")}
    return row


def _reason(name: str, blocks: int) -> str:
    if blocks >= FEWEST_BLOCKS:
        return ""
    where = "lies in one place" if blocks else "is there"
    what = "All that is held out of it" if blocks else "Nothing that is held out"
    return f"{name}: {what} {where}, which tells nothing of others. Label it in more places."


def _left_out(blocks: int, judged: np.ndarray, reasons: Sequence[str]) -> list[str]:
    if blocks < FEWEST_BLOCKS:
        where = "the held-out labels lie in one place" if blocks else "no label is held out"
        return [f"No accuracy is given: {where}. Label more places."]
    said = [reason for reason in reasons if reason]
    if not judged.any():
        return ["No accuracy is given: no class lies in two separate places of the held-out labels.", *said]
    return [*said, "The mean figures are those of the other classes."] if said else []


def _scores(matrix: np.ndarray, judged: np.ndarray) -> dict[str, Any]:
    """Means over the classes that are judged, (K,) bool, and the figures of each class; NaN where there are none."""
    found = _class_scores(matrix)
    total = matrix.sum()
    return {
        "miou": _mean(found["iou"], judged),
        "f1_macro": _mean(found["f1"], judged),
        "overall_accuracy": float(np.diag(matrix).sum() / total) if total > 0 else math.nan,
        **{f"class_{key}": values for key, values in found.items()},
    }


def _mean(values: np.ndarray, chosen: np.ndarray) -> float:
    known = values[chosen & np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


def _class_scores(matrix: np.ndarray) -> dict[str, np.ndarray]:
    with np.errstate(divide="ignore", invalid="ignore"):
        hit, truth, mapped = np.diag(matrix), matrix.sum(1), matrix.sum(0)
        present = truth > 0
        return {
            "iou": np.where(present, hit / (truth + mapped - hit), np.nan),
            "f1": np.where(present, 2 * hit / (truth + mapped), np.nan),
            "precision": np.where(present, np.where(mapped > 0, hit / mapped, 0.0), np.nan),
            "recall": np.where(present, hit / truth, np.nan),
        }


def _jackknife(values: Sequence[float]) -> float:
    """Variance of a figure from its values without one block each (Efron and Tibshirani 1993, chapter 11)."""
    kept = np.array([value for value in values if math.isfinite(value)])
    return float((len(kept) - 1) / len(kept) * ((kept - kept.mean()) ** 2).sum()) if len(kept) else 0.0


def _with_interval(
    value: float, without: Sequence[float], blocks: float, most: float = math.inf
) -> dict[str, float | None]:
    """A figure with its interval; null where `blocks`, their effective number, is 0."""
    if not blocks or not math.isfinite(value):
        return {"value": None, "low": None, "high": None}
    low, high = interval_of_share(value, _jackknife(without), blocks, most)
    return {"value": _known(value), "low": _known(low), "high": _known(high)}


def _paired(
    one: Sequence[np.ndarray], other: Sequence[np.ndarray], key: str, index: int | None = None
) -> dict[str, float | None]:
    """The difference of a figure, with its interval; of a class, where `index` says which."""
    nothing: dict[str, float | None] = {"value": None, "low": None, "high": None}
    stacks = [np.array([np.asarray(block, np.float64) for block in blocks]) for blocks in (one, other)]
    sizes = stacks[0].sum(2) if len(one) else np.zeros((0, 1))
    judged = (sizes > 0).sum(0) >= FEWEST_BLOCKS
    if not (judged.any() if index is None else judged[index]):
        return nothing
    blocks = effective_number(sizes.sum(1) if index is None else sizes[:, index])
    totals = [stack.sum(0) for stack in stacks]

    def gaps(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
        found, against = (_scores(matrix, judged) for matrix in (first, second))
        gap = found[key] - against[key]
        return float(gap if index is None else gap[index]), found["overall_accuracy"] - against["overall_accuracy"]

    value, _ = gaps(*totals)
    if not math.isfinite(value):
        return nothing
    without = [gaps(totals[0] - first, totals[1] - second) for first, second in zip(*stacks, strict=True)]
    variance, of_all = (_jackknife(values) for values in zip(*without, strict=True))
    # As for the figures themselves, a mean over classes is never surer than overall accuracy.
    low, high = interval_of_difference(value, max(variance, of_all) if index is None else variance, blocks)
    return {"value": _known(value), "low": _known(low), "high": _known(high)}


def _known(value: float) -> float | None:
    """Rounded to what can be meant; JSON has no NaN, so a figure that is not known is null."""
    return round(float(value), 5) if math.isfinite(value) else None
