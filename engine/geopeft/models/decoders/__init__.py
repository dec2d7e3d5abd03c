"""The table of decoders: feature maps -> dense features at the raster's resolution."""

from __future__ import annotations

from geopeft.models.registry import Row, Table

DECODERS: Table[Row] = Table(
    "decoder",
    (
        Row("linear", "One transposed convolution from one map", "geopeft.models.decoders.linear:build"),
        Row("unet", "Top-down with a full-resolution skip from the raw bands", "geopeft.models.decoders.unet:build"),
    ),
)
