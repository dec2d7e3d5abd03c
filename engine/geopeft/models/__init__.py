"""Models: `build(spec)` makes backbone -> adapter -> decoder -> head, each by its name in a table.

torch is imported when a model is built, not before: listing the tables is instant.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from geopeft.events import Reporter
from geopeft.models.spec import ModelSpec

if TYPE_CHECKING:
    from torch import Tensor

    from geopeft.models.segmentation import BaseWeights, SegmentationModel, describe_parameters

__all__ = ["BaseWeights", "ModelSpec", "SegmentationModel", "build", "describe_parameters"]


def build(
    spec: ModelSpec,
    state: Mapping[str, Tensor] | None = None,
    *,
    weights_dir: str = "",
    reporter: Reporter | None = None,
    merged: bool = False,
    pretrained: bool = True,
    weights_sha256: str = "",
) -> SegmentationModel:
    """A segmentation model, in evaluation mode and on the CPU.

    Args:
        spec: what it is made of.
        state: the tensors of a package (`SegmentationModel.trainable_state`); None: a new model.
        weights_dir: the user's folder with pretrained weights, searched first.
        reporter: is told which weights are used, and of a download.
        merged: for prediction: the adapter is put into the backbone's own weights and nothing can be trained.
        pretrained: False leaves the backbone at random values, for tests.
        weights_sha256: the pretrained file must have this checksum; the one that the package names.

    Raises:
        JobError: a name or a combination that does not exist, or an adapter that would train nothing.
        BandError: none of the bands is known to the backbone.
        WeightsError: the pretrained weights are not to be had, or are not the published ones.
        PackageError: `state` is not exactly this model's.
    """
    from geopeft.models.segmentation import build_model

    return build_model(
        spec,
        state,
        weights_dir=weights_dir,
        reporter=reporter,
        merged=merged,
        pretrained=pretrained,
        weights_sha256=weights_sha256,
    )


def __getattr__(name: str) -> Any:
    if name in __all__:
        from geopeft.models import segmentation

        return getattr(segmentation, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
