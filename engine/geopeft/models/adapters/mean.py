"""The weighted mean of what several trainings have made of the same adapter.

What enters a layer linearly (biases, prompts, scales of one side, whole networks) is averaged value by value, as in
federated averaging (McMahan et al. 2017, arXiv 1602.05629). Low-rank factors are not: the mean of products is not the
product of the means. Their products are averaged and cut back to the rank by a singular value decomposition, as in
FlexLoRA (arXiv 2402.11505), without ever making a matrix as large as the layer's. Other exact means change what a
site trains or what travels: FFA-LoRA (arXiv 2403.12313) trains one factor only, FedEx-LoRA (arXiv 2410.09432) moves
what the cut takes away into the frozen weights, which a package does not hold. What is lost is told instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

Arrays = Mapping[str, np.ndarray]

UP, DOWN = "lora_B.weight", "lora_A.weight"
# The factors that a training of principal directions began with; see `lora.PissaUpdate`.
FIRST_UP, FIRST_DOWN = "first_B", "first_A"
RUNNING_MEAN, RUNNING_VAR = "running_mean", "running_var"


class Mean(NamedTuple):
    """A mean by name, and the part of the low-rank updates' squared norm that the cut to the rank has lost, 0..1; None
    where nothing was cut."""

    arrays: dict[str, np.ndarray]
    lost: float | None


class _Product(NamedTuple):
    """up (rows, r) and down (r, cols) of the mean, squared norms of the update and of what the cut has taken off it."""

    up: np.ndarray
    down: np.ndarray
    whole: float
    lost: float


def mean_of(states: Sequence[Arrays], weights: Sequence[float]) -> Mean:
    """The mean of states with the same names and shapes.

    Args:
        weights: one for each state, with the sum 1.
    """
    found = {name: _plain(states, weights, name) for name in states[0]}
    whole = lost = 0.0
    products = list(_low_rank(states[0]))
    for layer in products:
        product = _mean_product(states, weights, layer)
        found[layer + UP] = product.up.reshape(states[0][layer + UP].shape).astype(np.float32)
        found[layer + DOWN] = product.down.reshape(states[0][layer + DOWN].shape).astype(np.float32)
        if layer + FIRST_UP in found:
            found |= {layer + name: states[0][layer + name] for name in (FIRST_UP, FIRST_DOWN)}
        whole, lost = whole + product.whole, lost + product.lost
    return Mean(found, (lost / whole if whole else 0.0) if products else None)


def _low_rank(state: Arrays) -> Iterator[str]:
    """What stands in front of the names of the factors, for every layer that has them."""
    for name in state:
        if name.endswith("." + UP) and name.removesuffix(UP) + DOWN in state:
            yield name.removesuffix(UP)


def _plain(states: Sequence[Arrays], weights: Sequence[float], name: str) -> np.ndarray:
    """Value by value; counters are the first one's; the mean of batch variances has the spread of the batch means."""
    first = states[0][name]
    if not np.issubdtype(first.dtype, np.floating):
        return first
    mean = _weighted([state[name] for state in states], weights)
    if name.endswith(RUNNING_VAR):
        means = [state[name.removesuffix(RUNNING_VAR) + RUNNING_MEAN].astype(np.float64) for state in states]
        centre = _weighted(means, weights)
        mean = mean + _weighted([(own - centre) ** 2 for own in means], weights)
    return mean.astype(first.dtype)


def _weighted(arrays: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    total = np.zeros(arrays[0].shape, np.float64)
    for array, weight in zip(arrays, weights, strict=True):
        total += weight * array.astype(np.float64)
    return total


def _mean_product(states: Sequence[Arrays], weights: Sequence[float], layer: str) -> _Product:
    """The mean of a layer's products, cut to their rank."""
    ups = [weight * _matrix(state[layer + UP]) for state, weight in zip(states, weights, strict=True)]
    downs = [_matrix(state[layer + DOWN]) for state in states]
    rank = len(downs[0])
    length = np.sqrt(sum(w * (own**2).sum() / rank for w, own in zip(weights, downs, strict=True)))
    update_ups, update_downs = list(ups), list(downs)
    if layer + FIRST_UP in states[0]:
        # Only the way from its own beginning is a training's update; the mean begins where the first one did.
        for state, weight in zip(states, weights, strict=True):
            update_ups.append(-weight * _matrix(state[layer + FIRST_UP]))
            update_downs.append(_matrix(state[layer + FIRST_DOWN]))
        ups = [*update_ups, _matrix(states[0][layer + FIRST_UP])]
        downs = [*update_downs, _matrix(states[0][layer + FIRST_DOWN])]
    left, values, right = _decompose(ups, downs)
    whole = values if len(ups) == len(update_ups) else _decompose(update_ups, update_downs)[1]
    lost = float((values[rank:] ** 2).sum())
    return _Product(*_factors(left, values, right, rank, float(length)), float((whole**2).sum()), lost)


def _decompose(ups: Sequence[np.ndarray], downs: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Singular vectors and values of the sum of the products: (rows, n), (n,), (n, cols)."""
    left, left_core = np.linalg.qr(np.concatenate(ups, 1))
    right, right_core = np.linalg.qr(np.concatenate(downs).T)
    core_left, values, core_right = np.linalg.svd(left_core @ right_core.T)
    count = len(values)
    return left @ core_left[:, :count], values, core_right[:count] @ right.T


def _factors(
    left: np.ndarray, values: np.ndarray, right: np.ndarray, rank: int, length: float
) -> tuple[np.ndarray, np.ndarray]:
    """up (rows, rank) and down (rank, cols): the directions of `down` keep a length, even those without an update:
    one whose two factors are zero could never learn again. Signs are fixed, so that equal models give equal bytes."""
    length = length or 1.0
    signs = np.sign(right[np.arange(len(right)), np.abs(right).argmax(1)])
    up, down = np.zeros((len(left), rank)), np.zeros((rank, right.shape[1]))
    count = min(rank, len(values))
    up[:, :count] = left[:, :count] * (signs * values / length)[:count]
    down[:count] = right[:count] * (signs * length)[:count, None]
    return up, down


def _matrix(factor: np.ndarray) -> np.ndarray:
    return factor.reshape(len(factor), -1).astype(np.float64)
