"""What an ONNX file gives, as probabilities."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from geopeft.errors import PackageError


@dataclass(frozen=True)
class Output:
    """How the first output becomes probabilities.

    Args:
        kind: "probabilities"; "shares", which are to be brought to a sum of 1; or "logits".
        single: one probability, of the second of two classes.
        margin_px: how much smaller than its input the output is, at each side.
        threshold: what a single probability has to reach.
    """

    kind: str
    single: bool
    margin_px: int
    threshold: float

    def probabilities(self, values: np.ndarray) -> np.ndarray:
        """(B, K, h, w) float32 from (B, C, h, w); PackageError where they cannot be."""
        values = values.astype(np.float32)
        if self.kind == "logits":
            return _sigmoid(values, self.threshold) if self.single else _softmax(values)
        if not ((values >= -0.05) & (values <= 1.05)).all():
            raise PackageError(
                "This model gives values that are no probabilities.",
                "Ask where the file came from what it gives.",
                "PACKAGE_VALUES",
            )
        values = values.clip(0, 1)
        if self.single:
            return _two(values, self.threshold)
        total = values.sum(1, keepdims=True)
        shares: np.ndarray = np.where(total > 0, values / np.where(total > 0, total, 1), 1 / values.shape[1])
        return shares


def _softmax(values: np.ndarray) -> np.ndarray:
    raised = np.exp(values - values.max(1, keepdims=True))
    result: np.ndarray = raised / raised.sum(1, keepdims=True)
    return result


def _sigmoid(values: np.ndarray, threshold: float) -> np.ndarray:
    return _two(1 / (1 + np.exp(-values.clip(-60, 60))), threshold)


def _two(share: np.ndarray, threshold: float) -> np.ndarray:
    """Two classes from the probability of the second; where it reaches the threshold it becomes one half."""
    below, above = share / (2 * threshold), 0.5 + (share - threshold) / (2 * (1 - threshold))
    second = np.where(share < threshold, below, above)
    return np.concatenate([1 - second, second], 1).astype(np.float32)
