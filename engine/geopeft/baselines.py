"""What an analyst would use otherwise, on the same folds: a random forest on the bands, and a small UNet from nothing.

Their map is judged on the same held-out pixels, so that the difference between two maps can be told pair by pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from geopeft.forest import Pixels
from geopeft.models import SegmentationModel, build
from geopeft.models.spec import ModelSpec

FOREST, UNET = "random-forest", "unet"
TITLES = {FOREST: "a random forest on the bands", UNET: "a UNet from random values"}
FOREST_TREES = 100
_UNET_BACKBONE = "scratch_unet"


def fit_forest(pixels: Pixels, bands: int, seed: int) -> Any:
    """scikit-learn's random forest with its own settings (Breiman 2001) on the first `bands` features, the bands."""
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(FOREST_TREES, n_jobs=torch.get_num_threads(), random_state=seed)
    return forest.fit(pixels.features[:, :bands], pixels.classes)


def build_unet(spec: ModelSpec, seed: int) -> SegmentationModel:
    """A UNet of random values on all bands of `spec`, of which everything is trained."""
    torch.manual_seed(seed)
    network = {"backbone": _UNET_BACKBONE, "adapter": "full", "decoder": "unet", "decoder_size": "light"}
    changes = {**network, "probe": False, "resample": 1.0}
    return build(spec.model_copy(update=changes | {"metadata": False}), None, pretrained=False)


def winner_sentence(miou: float | None, baselines: dict[str, dict[str, Any]]) -> str:
    """Who is better on the held-out labels, also where that is a baseline; empty where it is not known."""
    rivals = {name: found["miou"]["value"] for name, found in baselines.items() if found["miou"]["value"] is not None}
    if miou is None or not rivals:
        return ""
    best = max(rivals, key=lambda name: rivals[name])
    others = _listed([f"{TITLES[name]} {value:.2f}" for name, value in rivals.items()])
    told = f"mIoU on the same held-out labels: this map {miou:.2f}, {others}."
    difference = baselines[best]["difference"]
    low, high = difference["low"], difference["high"]
    if low is None or high is None:
        return f"{told} The labels are too few to say which is better."
    if low <= 0 <= high:
        return f"{told} They are not told apart by these labels (difference {low:+.2f} to {high:+.2f})."
    if low > 0:
        return f"{told} This map is better than {TITLES[best]} (by {low:.2f} to {high:.2f})."
    return f"{told} {TITLES[best].capitalize()} is better here (by {-high:.2f} to {-low:.2f}): consider using it."


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
