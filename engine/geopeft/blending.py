"""How network and classical part make one map: the shares, found on labels that taught neither, and what they reach."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from geopeft import package
from geopeft.classical import Classical
from geopeft.data.chips import groups_of
from geopeft.data.labels import IGNORE
from geopeft.models.texture import FINE_GSD_M
from geopeft.objective import USUAL_TEMPERATURE, confusion, figures, fit_blend, softmax
from geopeft.runtime import fill_invalid, fill_values
from geopeft.training import Trainer

# The network's share of the blend before any held-out label has spoken: in fine imagery shape decides, in coarse
# imagery the spectrum, where the classical part carries over to other places better.
NETWORK_PRIOR = {"fine": 0.5, "coarse": 0.15}
# Labelled places of a class from which the network's prior share is the full one; it grows up to there.
ENOUGH_PLACES = 10
_BLEND_PIXELS = 2000


def blend_parts(
    trainer: Trainer, classical: Classical, names: Sequence[str], prior: float, seed: int
) -> tuple[package.Blend, dict[str, Any]]:
    """How to blend, and the figures of the blend and of its parts on the held-out places."""
    fill, rng = fill_values(trainer.model.spec.bands), np.random.default_rng(seed)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    samples: list[tuple[np.ndarray, ...]] = []
    for chip, (raster, row, col), logits in trainer.held_out():
        raw = torch.from_numpy(fill_invalid(chip.values[None], chip.valid[None], fill))
        rows, cols = np.nonzero(chip.class_ids != IGNORE)
        truth = chip.class_ids[rows, cols].astype(np.int64)
        own, other = logits[:, rows, cols].T, classical.probabilities(raw)[0][:, rows, cols].T
        found.append((truth, own, other))
        places = groups_of(chip, row, col)[rows, cols] + raster * 10**13
        some = rng.permutation(len(rows))[:_BLEND_PIXELS]
        samples.append((own[some], other[some], truth[some], places[some]))
    blend = package.Blend(network=prior, temperature=USUAL_TEMPERATURE)
    if any(len(sample[2]) for sample in samples):
        own, other, truth, places = (np.concatenate(parts) for parts in zip(*samples, strict=True))
        share, temperature = fit_blend(own, other, truth, places, prior)
        blend = package.Blend(network=round(share, 4), temperature=temperature)
    matrices: dict[str, list[np.ndarray]] = {"": [], "network": [], "classical": []}
    for truth, own, other in found:
        soft = softmax(own / blend.temperature)
        mixed = blend.network * soft + (1 - blend.network) * other
        for part, scores in (("", mixed), ("network", own), ("classical", other)):
            matrices[part].append(confusion(truth, scores.argmax(1), len(names)))
    metrics = figures(matrices[""], names, seed)
    metrics["parts"] = {
        part: figures(matrices[part], names, seed)["miou"]["value"] for part in ("network", "classical")
    }
    return blend, metrics


def network_prior(gsd_m: float, classes: Sequence[int]) -> float:
    """The network's share before any held-out label has spoken, from the pixel size and the places of each class."""
    counts = np.bincount(classes)
    enough = float(np.minimum(counts[counts > 0] / ENOUGH_PLACES, 1).mean())
    return NETWORK_PRIOR["fine" if gsd_m < FINE_GSD_M else "coarse"] * enough


def blend_sentence(blend: package.Blend, metrics: dict[str, Any]) -> str:
    """Which part carries the map."""
    parts = metrics["parts"]
    share = f"{blend.network:.0%} network, {1 - blend.network:.0%} forest and linear model"
    if parts["network"] is None:
        return f"The map is a blend: {share}, as is usual for so many labels."
    return (
        f"The map is a blend: {share}. mIoU on held-out labels: network {parts['network']:.2f}, forest and linear "
        f"model {parts['classical']:.2f}, blend {metrics['miou']['value']:.2f}."
    )
