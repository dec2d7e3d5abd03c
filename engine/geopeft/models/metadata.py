"""Time and place for the backbones that take them: who does, what is said of it, and the way to the network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from geopeft.data.acquisition import Chronicle, Whereabouts, frames_of
from geopeft.data.bands import Band
from geopeft.data.raster import RasterInfo
from geopeft.errors import JobError
from geopeft.events import Reporter
from geopeft.models.backbones import BACKBONES
from geopeft.models.registry import BackboneCard
from geopeft.models.spec import ModelSpec

if TYPE_CHECKING:
    import torch

    from geopeft.models.backbones.backbone import Scene


def require_metadata(card: BackboneCard) -> None:
    """JobError where the backbone can be told neither time nor place; names those that can."""
    if card.metadata:
        return
    takers = ", ".join(row.name for row in BACKBONES if row.metadata)
    raise JobError(
        f"{card.title} takes no metadata: neither time nor place.",
        f"Leave metadata off, or choose one of: {takers}.",
        "METADATA_UNSUITABLE",
    )


def chronicle_of(
    spec: ModelSpec,
    infos: Sequence[RasterInfo],
    bands: Sequence[Sequence[Band]],
    reporter: Reporter | None = None,
) -> Chronicle | None:
    """When and where these rasters were taken; None where the model is not told.

    Args:
        bands: of each raster, in the model's order.
        reporter: is told what was found, and warned of rasters whose time nothing says: it is left out there.
    """
    if not spec.metadata:
        return None
    card, fed = BACKBONES[spec.backbone], [bool(band.backbone_band) for band in spec.bands]
    chronicle = Chronicle(infos, [frames_of(own, fed)[: card.frames] for own in bands])
    if reporter is not None and "time" in card.metadata:
        for sentence in chronicle.sentences():
            reporter.message(sentence)
        undated = chronicle.undated()
        if undated:
            more = " ..." if len(undated) > 8 else ""
            reporter.warn(
                f"Nothing says when {', '.join(undated[:8])}{more} was taken: the backbone works without the time "
                "there. A date at the end of the file's name will do: NAME_2024-06-12.tif."
            )
    return chronicle


def scene_of(found: Whereabouts | None, spec: ModelSpec, device: torch.device) -> Scene | None:
    """What the model's backbone takes of these facts, as tensors; None where that is nothing."""
    import torch

    from geopeft.models.backbones.backbone import Scene

    if found is None or not spec.metadata:
        return None
    takes = BACKBONES[spec.backbone].metadata
    time = torch.from_numpy(found.time).to(device) if "time" in takes else None
    place = torch.from_numpy(found.place).to(device) if "place" in takes else None
    return Scene(time, place)
