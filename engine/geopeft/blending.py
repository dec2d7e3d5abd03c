"""How network and classical part make one map: the shares, found on labels that taught neither, and what they reach."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geopeft import package
from geopeft.accuracy import calibration, confusion, difference, figures
from geopeft.baselines import FOREST
from geopeft.classical import Classical
from geopeft.data.chips import groups_of
from geopeft.data.labels import IGNORE
from geopeft.models.texture import FINE_GSD_M
from geopeft.objective import (
    BLENDS,
    MOST_PLACES,
    SIZE_POWER,
    USUAL_TEMPERATURE,
    blend_evidence,
    fit_sharpness,
    likeliest_blend,
    place_weights,
    softmax,
)
from geopeft.runtime import fill_invalid, fill_values
from geopeft.training.trainer import Trainer, ValidationChips

# The network's share of the blend before any held-out label has spoken: in fine imagery shape decides, in coarse
# imagery the spectrum, where the classical part carries over to other places better.
NETWORK_PRIOR = {"fine": 0.5, "coarse": 0.15}
# Labelled places of a class from which the network's prior share is the full one; it grows up to there.
ENOUGH_PLACES = 10
_BLEND_PIXELS = 2000
# How sure a map is, is judged on one part of the blocks after the other, each as the rest makes it.
CALIBRATION_FOLDS = 5
_RASTER = 10**13


@dataclass(frozen=True)
class Forecast:
    """What is said of the labelled pixels of a chip that have taught nobody who speaks here.

    Args:
        truth: (n,) int64 class numbers.
        network: (n, K) float32 logits.
        classical: (n, K) float32 probabilities.
        places: (n,) int64, the labelled place of each: its raster and its shape or square, as `place_of` gives it.
        rivals: name of a baseline -> (n,) int64, the class that it maps.
    """

    truth: np.ndarray
    network: np.ndarray
    classical: np.ndarray
    places: np.ndarray
    rivals: Mapping[str, np.ndarray] = field(default_factory=dict)

    def mixed(self, blend: package.Blend) -> np.ndarray:
        """(n, K) probabilities of the map."""
        said = blend.network * softmax(self.network / blend.temperature) + (1 - blend.network) * self.classical
        return blend.sharpen(said)


def place_of(raster_index: int, group: int) -> int:
    """One number for a labelled place."""
    return group + raster_index * _RASTER


def forecasts(trainer: Trainer, chips: ValidationChips, classical: Classical, forest: Any = None) -> list[Forecast]:
    """What network, classical part and, where there is one, the baseline's forest say of the held-out pixels."""
    fill, texture = fill_values(trainer.model.spec.bands), classical.texture
    found = []
    for chip, (raster, row, col), logits in trainer.map_chips(_labelled(chips)):
        raw = torch.from_numpy(fill_invalid(chip.values[None], chip.valid[None], fill))
        rows, cols = np.nonzero(chip.class_ids != IGNORE)
        bands = texture.standardise(raw)[0].numpy()[:, rows, cols].T
        found.append(
            Forecast(
                chip.class_ids[rows, cols].astype(np.int64),
                logits[:, rows, cols].T,
                classical.probabilities(raw)[0][:, rows, cols].T,
                groups_of(chip, row, col)[rows, cols] + raster * _RASTER,
                {FOREST: forest.predict(bands).astype(np.int64)} if forest is not None else {},
            )
        )
    return found


def _labelled(chips: ValidationChips) -> ValidationChips:
    return [(chip, place) for chip, place in chips if (chip.class_ids != IGNORE).any()]


def with_rival(found: Sequence[Forecast], name: str, trainer: Trainer, chips: ValidationChips) -> list[Forecast]:
    """The forecasts of these chips together with what another network maps."""
    result = []
    for said, (chip, _, logits) in zip(found, trainer.map_chips(_labelled(chips)), strict=True):
        rows, cols = np.nonzero(chip.class_ids != IGNORE)
        mapped = logits[:, rows, cols].argmax(0).astype(np.int64)
        result.append(replace(said, rivals={**said.rivals, name: mapped}))
    return result


def fit_parts(found: Sequence[Forecast], prior: float, seed: int, judged: np.ndarray | None = None) -> package.Blend:
    """How to blend, from what was said of held-out pixels; as is usual where there are none.

    Args:
        prior: the network's share before any has spoken; 0: it takes no part.
        judged: what `judged_blends` gives for these, where it has been found already.
    """
    sample = _sampled(found, seed)
    if sample is None:
        return package.Blend(network=prior, temperature=USUAL_TEMPERATURE)
    network, classical, truth, places = sample
    judged = blend_evidence(*sample, MOST_PLACES) if judged is None else judged
    share, temperature = likeliest_blend(judged, prior) if prior else (0.0, USUAL_TEMPERATURE)
    blend = package.Blend(network=round(share, 4), temperature=temperature)
    mixed = Forecast(truth, network, classical, places).mixed(blend)
    return blend.model_copy(update={"sharpness": round(fit_sharpness(mixed, truth, places), 4)})


def judged_blends(found: Sequence[Forecast], seed: int, most_places: float = MOST_PLACES) -> np.ndarray:
    """How likely each blend is by what was said of held-out pixels, as `blend_evidence` gives it; zeros where there are
    none."""
    sample = _sampled(found, seed)
    return blend_evidence(*sample, most_places) if sample is not None else np.zeros(BLENDS)


def _sampled(found: Sequence[Forecast], seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | None:
    """Logits, probabilities, truth and places of some pixels of every chip; None where there are none."""
    rng = np.random.default_rng(seed)
    samples = []
    for chip in found:
        some = rng.permutation(len(chip.truth))[:_BLEND_PIXELS]
        samples.append((chip.network[some], chip.classical[some], chip.truth[some], chip.places[some]))
    if not any(len(sample[2]) for sample in samples):
        return None
    network, classical, truth, places = (np.concatenate(parts) for parts in zip(*samples, strict=True))
    return network, classical, truth, places


def measure(
    found: Sequence[Forecast],
    blend: package.Blend,
    names: Sequence[str],
    blocks: Mapping[int, int],
    block_m: float | None = None,
    folds: int = 1,
) -> dict[str, Any]:
    """The figures of the map on held-out pixels, those of its parts and of the baselines, and its calibration.

    Args:
        blocks: labelled place -> number of the block that it lies in.
        block_m, folds: as in `figures`.
    """
    mixed = [chip.mixed(blend) for chip in found]
    maps = {
        "": [said.argmax(1) for said in mixed],
        "network": [chip.network.argmax(1) for chip in found],
        "classical": [chip.classical.argmax(1) for chip in found],
    }
    # One that a stop has kept from some places is not judged on others.
    rivals = [name for name in sorted(found[0].rivals if found else ()) if all(name in chip.rivals for chip in found)]
    maps |= {name: [chip.rivals[name] for chip in found] for name in rivals}
    matrices = {part: _by_block(found, mapped, blocks, len(names)) for part, mapped in maps.items()}
    metrics = figures(matrices[""], names, block_m, folds)
    metrics["parts"] = {part: figures(matrices[part], names)["miou"]["value"] for part in ("network", "classical")}
    metrics["calibration"] = _calibration(found, blend, blocks)
    metrics["baselines"] = {}
    for name in rivals:
        own = figures(matrices[name], names)
        metrics["baselines"][name] = {key: own[key] for key in ("miou", "overall_accuracy", "f1_macro")} | {
            "difference": difference(matrices[""], matrices[name])
        }
    return metrics


def _by_block(
    found: Sequence[Forecast], mapped: Sequence[np.ndarray], blocks: Mapping[int, int], classes: int
) -> list[np.ndarray]:
    """Confusion matrices of the blocks, in the order of their numbers."""
    matrices: dict[int, np.ndarray] = {}
    for chip, classes_mapped in zip(found, mapped, strict=True):
        places, where = np.unique(chip.places, return_inverse=True)
        own = np.array([blocks[place] for place in places.tolist()], np.int64)[where]
        for block in np.unique(own).tolist():
            chosen = own == block
            matrix = confusion(chip.truth[chosen], classes_mapped[chosen], classes)
            matrices[block] = matrices.get(block, 0) + matrix
    return [matrices[block] for block in sorted(matrices)]


def _calibration(found: Sequence[Forecast], blend: package.Blend, blocks: Mapping[int, int]) -> dict[str, Any]:
    """Of the map's own probabilities, each as sure as the other blocks make it; places and classes weigh as in
    `fit_sharpness`.

    The sharpness of the map itself has seen all of these labels, so that its own error here would look too good.
    """
    if not found:
        return calibration(np.zeros(0), np.zeros(0, bool), np.zeros(0))
    truth, places = (np.concatenate([getattr(chip, name) for chip in found]) for name in ("truth", "places"))
    plain = blend.model_copy(update={"sharpness": 1.0})
    said = np.concatenate([chip.mixed(plain) for chip in found])
    known, where = np.unique(places, return_inverse=True)
    fold = np.unique([blocks[place] for place in known.tolist()], return_inverse=True)[1][where] % CALIBRATION_FOLDS
    for number in np.unique(fold).tolist():
        held = fold == number
        sharpness = fit_sharpness(said[~held], truth[~held], places[~held])
        said[held] = blend.model_copy(update={"sharpness": sharpness}).sharpen(said[held])
    return calibration(said.max(1), said.argmax(1) == truth, place_weights(truth, places, SIZE_POWER))


def said_of_places(found: Sequence[Forecast], blend: package.Blend) -> dict[tuple[int, int], np.ndarray]:
    """(place, class number that it is labelled as) -> (K,) mean probabilities that the map gives it without having
    learned from it."""
    sums: dict[tuple[int, int], np.ndarray] = {}
    counts: dict[tuple[int, int], int] = {}
    for chip in found:
        pairs, where = np.unique(np.stack([chip.places, chip.truth], 1), axis=0, return_inverse=True)
        said = chip.mixed(blend)
        for number, (place, truth) in enumerate(pairs.tolist()):
            chosen = where.ravel() == number
            sums[place, truth] = sums.get((place, truth), 0) + said[chosen].sum(0)
            counts[place, truth] = counts.get((place, truth), 0) + int(chosen.sum())
    return {key: total / counts[key] for key, total in sums.items()}


def as_tensors(found: Sequence[Forecast], prefix: str) -> dict[str, Tensor]:
    """Forecasts, one or more, by name, for a checkpoint; `from_tensors` gives them back."""
    whole = {
        "sizes": np.array([len(chip.truth) for chip in found], np.int64),
        **{
            name: np.concatenate([getattr(chip, name) for chip in found])
            for name in ("truth", "network", "classical", "places")
        },
        **{
            f"rival {name}": np.concatenate([chip.rivals[name] for chip in found if name in chip.rivals])
            for name in {name for chip in found for name in chip.rivals}
        },
    }
    return {prefix + name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in whole.items()}


def from_tensors(tensors: Mapping[str, Tensor], prefix: str) -> list[Forecast]:
    """What `as_tensors` was given; empty where there is none of that name."""
    arrays = {name.removeprefix(prefix): t.numpy() for name, t in tensors.items() if name.startswith(prefix)}
    if not arrays:
        return []
    ends = np.cumsum(arrays.pop("sizes"))[:-1]
    parts = {name: np.split(array, ends) for name, array in arrays.items()}
    rivals = {name.removeprefix("rival "): parts.pop(name) for name in list(parts) if name.startswith("rival ")}
    return [
        Forecast(
            parts["truth"][at],
            parts["network"][at],
            parts["classical"][at],
            parts["places"][at],
            {name: split[at] for name, split in rivals.items()},
        )
        for at in range(len(ends) + 1)
    ]


def network_prior(gsd_m: float, classes: Sequence[int]) -> float:
    """The network's share before any held-out label has spoken, from the pixel size and the places of each class."""
    counts = np.bincount(classes)
    enough = float(np.minimum(counts[counts > 0] / ENOUGH_PLACES, 1).mean())
    return NETWORK_PRIOR["fine" if gsd_m < FINE_GSD_M else "coarse"] * enough


def blend_sentence(blend: package.Blend, metrics: dict[str, Any]) -> str:
    """Which part carries the map."""
    parts = metrics["parts"]
    if not blend.network:
        told = f": mIoU on held-out labels {metrics['miou']['value']:.2f}" if parts["classical"] is not None else ""
        return f"The map is that of the forest and the linear model alone{told}."
    share = f"{blend.network:.0%} network, {1 - blend.network:.0%} forest and linear model"
    if parts["network"] is None:
        return f"The map is a blend: {share}{'' if metrics['labels'] else ', as is usual for so many labels'}."
    return (
        f"The map is a blend: {share}. mIoU on held-out labels: network {parts['network']:.2f}, forest and linear "
        f"model {parts['classical']:.2f}, blend {metrics['miou']['value']:.2f}."
    )
