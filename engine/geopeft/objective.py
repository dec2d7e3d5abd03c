"""What is optimised: the loss of the network, and how two forecasts are blended."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.special import logsumexp

from geopeft.data.labels import IGNORE
from geopeft.models.spec import SHARPNESS_RANGE

_PRIOR_PLACES = 8.0
# However many places of one region there are, they say only so much about how a network does in another.
MOST_PLACES = 40.0
USUAL_TEMPERATURE = 1.5
# How a labelled place counts by its pixels where confidence is judged.
SIZE_POWER = 0.5
_TEMPERATURES = (0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3.5)
_SHARES = np.linspace(0.02, 0.98, 33)
# How many temperatures and shares are looked at.
BLENDS = (len(_TEMPERATURES), len(_SHARES))
_SHARPNESSES = np.geomspace(*SHARPNESS_RANGE, 41)


def balanced_cross_entropy(
    logits: torch.Tensor, class_ids: torch.Tensor, class_weights: torch.Tensor, total: torch.Tensor | None = None
) -> torch.Tensor:
    """Cross entropy over labelled pixels, weighted by class.

    Args:
        logits: (B, K, H, W).
        class_ids: (B, H, W) int64, 255 where nothing is to be learned.
        class_weights: (K,).
        total: what the weights of all labelled pixels add up to, where these chips are a part of a batch.

    Returns:
        The weighted mean over the labelled pixels, or this part's share of it; 0 (with a gradient of 0) where there are
        none.
    """
    loss = F.cross_entropy(logits, class_ids, weight=class_weights, ignore_index=IGNORE, reduction="sum")
    if total is None:
        total = class_weights[class_ids[class_ids != IGNORE]].sum()
    return loss / total.clamp_min(1e-6)


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
    return likeliest_blend(blend_evidence(logits, probabilities, truth, places, most_places), prior)


def blend_evidence(
    logits: np.ndarray, probabilities: np.ndarray, truth: np.ndarray, places: np.ndarray, most_places: float
) -> np.ndarray:
    """Log-likelihood of every pair of temperature and share, BLENDS; see `fit_blend`."""
    weight = place_weights(truth, places)
    weight *= min(len(np.unique(places)), most_places) / max(len(np.unique(truth)), 1)
    rows = np.arange(len(truth))
    of_other = np.maximum(probabilities[rows, truth], 1e-6)
    found = np.zeros(BLENDS)
    for at, temperature in enumerate(_TEMPERATURES):
        of_one = softmax(logits / temperature)[rows, truth]
        found[at] = [(weight * np.log(share * of_one + (1 - share) * of_other)).sum() for share in _SHARES]
    return found


def likeliest_blend(evidence: np.ndarray, prior: float) -> tuple[float, float]:
    """(share, temperature), from what `blend_evidence` gives and the prior of `fit_blend`."""
    before = prior * np.log(_SHARES) + (1 - prior) * np.log(1 - _SHARES)
    unusual = np.log(np.array(_TEMPERATURES)[:, None] / USUAL_TEMPERATURE) ** 2
    at, number = np.unravel_index((evidence + _PRIOR_PLACES * (before - unusual)).argmax(), BLENDS)
    return float(_SHARES[number]), float(_TEMPERATURES[at])


def fit_sharpness(
    probabilities: np.ndarray, truth: np.ndarray, places: np.ndarray, most_places: float = MOST_PLACES
) -> float:
    """The exponent that makes a map as sure as it is right, from pixels that have not taught it.

    The temperature scaling of Guo et al. (2017) of the logarithms of a blend, whose mean of two forecasts is less sure
    than either (Ranjan and Gneiting 2010). The most likely one; before any label has spoken, a factor of two either way
    lies one standard deviation off. Every class counts the same and within it a place by the root of its pixels: what
    is to be right is the confidence of pixels, and small shapes hold more mixed ones than the ground does.

    Args:
        probabilities: (n, K) of the blend.
        truth: (n,) class numbers.
        places: (n,) which labelled place a pixel belongs to.
        most_places: as much as this many places count at most, however many there are.

    Returns:
        A value inside SHARPNESS_RANGE; 1 where there are no pixels.
    """
    if not len(truth):
        return 1.0
    weight = place_weights(truth, places, SIZE_POWER)
    weight *= min(len(np.unique(places)), most_places) / len(np.unique(truth))
    logs = np.log(np.maximum(probabilities, 1e-6))
    rows = np.arange(len(truth))
    best, found = -math.inf, 1.0
    for sharpness in _SHARPNESSES:
        raised = sharpness * logs
        fit = float(weight @ (raised[rows, truth] - logsumexp(raised, axis=1)))
        fit -= 0.5 * math.log2(sharpness) ** 2
        if fit > best:
            best, found = fit, float(sharpness)
    return found


def place_weights(truth: np.ndarray, places: np.ndarray, power: float = 0.0) -> np.ndarray:
    """(n,) what each pixel counts where every class counts as 1, and within it a labelled place by its pixels.

    Args:
        truth: (n,) class numbers.
        places: (n,) which labelled place a pixel belongs to.
        power: of the number of a place's pixels: 0 where all places count the same, 1 where all pixels do.
    """
    _, place = np.unique(places, return_inverse=True)
    weight = np.bincount(place)[place] ** (power - 1.0)
    result: np.ndarray = weight / np.bincount(truth, weight)[truth]
    return result


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (n, K) of logits (n, K)."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    result: np.ndarray = exponentials / exponentials.sum(1, keepdims=True)
    return result
