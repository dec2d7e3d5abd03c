"""What an ONNX file says of itself: the keys that the Deepness plugin reads, and our own manifest beside them.

Every value is JSON. Deepness divides what it reads by 255, takes `standardization_mean` away and divides by
`standardization_std`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geopeft.data.label_classes import MAX_CLASSES, choose_color
from geopeft.models.spec import InputBand, ModelSpec
from geopeft.onnx.graph import broken
from geopeft.package import BaseWeights, ClassInfo, Manifest, manifest_text, parse_manifest

DISPLAY_MAX = 255.0
SEGMENTOR = "Segmentor"
OWN = "geopeft"
# Types that Deepness reads, and the widest pixel that its dialogue takes.
_DEEPNESS_TYPES = ("uint8", "uint16", "int16", "float32", "float64")
_DEEPNESS_MOST_CM = 999_999
_MOST_NAME = 200
_DEFAULT_OVERLAP_PERCENT = 15


@dataclass(frozen=True)
class Keys:
    """The keys of a file, checked.

    Args:
        names: of the classes, in the order of the output; empty: not named.
        mean, std: what 0..1 values are standardised with, one for each band; empty: not at all.
        resolution_cm: side of a pixel; 0: not known.
        tile_px: side of a chip where the graph does not fix it; 0: not known.
        overlap_percent: of neighbouring chips.
        overlap_px: the same in pixels, which only a model of ours says; 0: it does not.
        threshold: of a single probability, from 0 to 1; None: not named.
        heads: how many outputs have classes.
        manifest: what we wrote of a model of ours; None: the file comes from elsewhere.
    """

    names: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    resolution_cm: float = 0.0
    tile_px: int = 0
    overlap_percent: int = _DEFAULT_OVERLAP_PERCENT
    overlap_px: int = 0
    threshold: float | None = None
    heads: int = 1
    manifest: Manifest | None = None


def write_keys(manifest: Manifest, side_px: int, overlap_px: int) -> dict[str, str]:
    """The keys of an exported model, whose input is raster values as they are.

    Deepness' division by 255 is undone by a standard deviation of 1 / 255. Where Deepness cannot use the model, only
    our own keys are written (see `why_not_deepness`).
    """
    keys: dict[str, Any] = {
        "class_names": {str(i): known.name for i, known in enumerate(manifest.classes)},
        "bands": [band.name for band in manifest.spec.bands],
        "gsd_m": manifest.spec.gsd_m,
        "overlap_px": overlap_px,
    }
    if any(band.unit for band in manifest.spec.bands):
        keys["band_units"] = [band.unit for band in manifest.spec.bands]
    if not why_not_deepness(manifest):
        count = len(manifest.spec.bands)
        keys |= {
            "model_type": SEGMENTOR,
            "resolution": manifest.spec.gsd_m * 100,
            # The documentation of Deepness names the one, its code reads the other.
            "tile_size": side_px,
            "tiles_size": side_px,
            "tiles_overlap": round(100 * overlap_px / side_px),
            "standardization_mean": [0.0] * count,
            "standardization_std": [1 / DISPLAY_MAX] * count,
            # Both change the map: the likeliest class of every pixel is what the model was judged by.
            "seg_thresh": 0.0,
            "seg_small_segment": 0,
        }
    own = {OWN: manifest_text(manifest).decode(), "base_weights_licence": manifest.base_weights.licence}
    return {name: json.dumps(value, ensure_ascii=False) for name, value in keys.items()} | own


def why_not_deepness(manifest: Manifest) -> str:
    """Why Deepness could not use this model; empty: it can."""
    if manifest.dtype not in _DEEPNESS_TYPES:
        return f"it reads no {manifest.dtype} rasters, on which this model was trained"
    if manifest.spec.gsd_m * 100 > _DEEPNESS_MOST_CM:
        return f"it takes no pixels of {manifest.spec.gsd_m:g} m"
    return ""


def deepness_sentence(manifest: Manifest) -> str:
    """What whoever opens the file in Deepness has to know."""
    if why_not := why_not_deepness(manifest):
        return f"The Deepness plugin cannot use this file: {why_not}. Other programs, and `predict`, can."
    bands = ", ".join(band.name for band in manifest.spec.bands)
    radar = ", ".join(band.name for band in manifest.spec.bands if band.unit == "decibel")
    decibels = f" {radar} (radar) must be in decibels: linear power is not converted there." if radar else ""
    return (
        "In the Deepness plugin choose this file, press 'Load default parameters' and map these bands in this order: "
        f"{bands}. It feeds a raster's values as they are ({manifest.dtype}, {manifest.radiometry} as in the "
        f"training) and knows no nodata: what it maps there means nothing.{decibels}"
    )


def read_keys(path: Path, texts: Mapping[str, str], channels: int) -> Keys:
    """The keys of a file; PackageError where one cannot be what it should.

    Args:
        texts: the metadata of the file.
        channels: bands of its input.
    """
    manifest = parse_manifest(path, texts[OWN].encode("utf-8", "replace")) if OWN in texts else None
    kind = _json(path, texts, "model_type", SEGMENTOR)
    if str(kind).capitalize() != SEGMENTOR:
        raise broken(path, f"it is a {str(kind)[:40]}, and gives no class for every pixel")
    named = _json(path, texts, "class_names" if "class_names" in texts else "names", {})
    heads = named if isinstance(named, list) and named and isinstance(named[0], dict) else [named]
    mean, std = (_numbers(path, texts, f"standardization_{name}") for name in ("mean", "std"))
    if any(len(values) not in (0, channels) for values in (mean, std)) or any(value <= 0 for value in std):
        raise broken(path, f"its standardisation does not fit its {channels} bands")
    thresholds = _numbers(path, texts, "seg_thresh")
    overlap = _number(path, texts, "tiles_overlap", _DEFAULT_OVERLAP_PERCENT)
    tile = _number(path, texts, "tile_size" if "tile_size" in texts else "tiles_size", 0)
    return Keys(
        names=_names(path, heads[0]),
        mean=mean,
        std=std,
        resolution_cm=max(_number(path, texts, "resolution", 0), 0),
        tile_px=int(min(max(tile, 0), 1 << 14)),
        overlap_percent=int(min(max(overlap, 0), 90)),
        overlap_px=int(max(_number(path, texts, "overlap_px", 0), 0)),
        threshold=thresholds[0] if thresholds and 0 < thresholds[0] < 1 else None,
        heads=len(heads),
        manifest=manifest,
    )


def foreign_manifest(path: Path, keys: Keys, producer: str, channels: int, classes: int, side_px: int) -> Manifest:
    """A file from elsewhere, described as if it were a package: bands by their order, classes in our colours."""
    mean, std = keys.mean or (0.0,) * channels, keys.std or (1.0,) * channels
    names = _full_names(keys.names, classes)
    if not 2 <= classes <= MAX_CLASSES:
        raise broken(path, f"it has {classes} classes, and a map takes 2 to {MAX_CLASSES}")
    colors: list[str] = []
    for name in names:
        colors.append(choose_color(name, colors))
    try:
        bands = tuple(
            InputBand(name=f"band {i + 1}", scale=1 / DISPLAY_MAX, mean=mean[i], std=std[i]) for i in range(channels)
        )
        spec = ModelSpec(
            backbone="onnx", adapter="none", decoder="none", bands=bands, num_classes=classes,
            gsd_m=keys.resolution_cm / 100 or 1.0, chip_size_px=min(max(side_px, 8), 4096),
        )  # fmt: skip
    except ValueError as error:
        raise broken(path, "its standardisation, its bands or its resolution are beyond reason") from error
    return Manifest(
        engine_version="", created="", name=path.stem, spec=spec, radiometry="unknown", dtype="unknown",
        classes=tuple(
            ClassInfo(value=i + 1, name=name, color=color, label=name)
            for i, (name, color) in enumerate(zip(names, colors, strict=True))
        ),
        base_weights=BaseWeights(backbone=_plain(producer) or "ONNX file", licence="not told"),
    )  # fmt: skip


def _full_names(names: tuple[str, ...], classes: int) -> list[str]:
    """One name for each class, no two alike; a single probability is told from the background."""
    if len(names) == 1 and classes == 2:
        names = ("background", *names)
    found: list[str] = []
    for number in range(classes):
        name = wanted = (names[number] if len(names) == classes else "") or f"class {number}"
        again = 2
        while name.casefold() in {known.casefold() for known in found}:
            name, again = f"{wanted} ({again})", again + 1
        found.append(name)
    return found


def _names(path: Path, named: Any) -> tuple[str, ...]:
    """Names by their numbers, which go from 0 on without a gap, or as a list."""
    if isinstance(named, list):
        named = dict(enumerate(named))
    try:
        by_number = {int(number): _plain(str(name)) for number, name in named.items()}
    except (AttributeError, ValueError) as error:
        raise broken(path, "the names of its classes cannot be read") from error
    if sorted(by_number) != list(range(len(by_number))):
        raise broken(path, "the names of its classes are not numbered from 0 on")
    return tuple(by_number[number] for number in range(len(by_number)))


def _plain(text: str) -> str:
    return "".join(sign for sign in text if sign.isprintable()).strip()[:_MOST_NAME]


def _json(path: Path, texts: Mapping[str, str], name: str, default: Any) -> Any:
    if name not in texts:
        return default
    try:
        return json.loads(texts[name])
    except (ValueError, RecursionError) as error:
        raise broken(path, f"its key {name} is no JSON") from error


def _number(path: Path, texts: Mapping[str, str], name: str, default: float) -> float:
    return (*_numbers(path, texts, name), default)[0]


def _numbers(path: Path, texts: Mapping[str, str], name: str) -> tuple[float, ...]:
    """One number or several; none where the key is missing."""
    value = _json(path, texts, name, [])
    values = value if isinstance(value, list) else [value]
    try:
        numbers = tuple(float(number) for number in values)
    except (TypeError, ValueError, OverflowError) as error:
        raise broken(path, f"its key {name} holds no number") from error
    if not all(math.isfinite(number) for number in numbers):
        raise broken(path, f"its key {name} holds no number")
    return numbers


def name_problem(keys: Keys, classes: int) -> str:
    """A sentence where the names do not fit the output; empty: they do."""
    if len(keys.names) in (0, classes) or (len(keys.names) == 1 and classes == 2):
        return ""
    return f"it names {len(keys.names)} classes, and gives {classes}"
