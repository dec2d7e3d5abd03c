"""What every adapter is: it says what of a backbone is trained, what has to be stored, and how it goes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from geopeft.errors import PackageError
from geopeft.models.backbones.backbone import Backbone
from geopeft.models.spec import ModelSpec

State = dict[str, Tensor]


class Adapter(Protocol):
    """One way to tune a backbone.

    Attributes:
        trains_statistics: batch statistics of the backbone are updated in training; else they stay as published.
        stores_backbone: the state holds the whole backbone, so published weights are not needed to open it.
    """

    trains_statistics: bool
    stores_backbone: bool

    def apply(self, backbone: Backbone, spec: ModelSpec) -> None:
        """Prepares a plain backbone for training, in place."""

    def state(self, backbone: Backbone) -> State:
        """What of an adapted backbone must be stored."""

    def load(self, backbone: Backbone, state: Mapping[str, Tensor]) -> None:
        """Puts a stored state into an adapted backbone; PackageError unless it fits exactly."""

    def merge(self, backbone: Backbone, state: Mapping[str, Tensor], spec: ModelSpec) -> None:
        """Puts a stored state into a plain backbone, for prediction."""


def require_fit(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]], part: str) -> None:
    """PackageError unless names and shapes are exactly those expected and every value is finite."""
    missing, extra = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    wrong = sorted(key for key in expected.keys() & state.keys() if tuple(state[key].shape) != tuple(expected[key]))
    if missing or extra or wrong:
        first = (missing or extra or wrong)[0]
        raise PackageError(
            f"The stored {part} does not fit the model: {len(missing)} tensors are missing, {len(extra)} are unknown, "
            f"{len(wrong)} have another shape (first: {first}).",
            "The file is damaged or comes from another version; fit the model again.",
            "PACKAGE_KEYS",
        )
    broken = sorted(key for key, value in state.items() if not bool(torch.isfinite(value).all()))
    if broken:
        raise PackageError(
            f"The stored {part} holds values that are not finite (first: {broken[0]}).",
            "The file is damaged; fit the model again.",
            "PACKAGE_VALUES",
        )
