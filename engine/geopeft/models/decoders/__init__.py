"""The table of decoders: feature maps -> dense features at the raster's resolution."""

from __future__ import annotations

from geopeft.models.registry import DecoderRow, Table

_BUILDERS = "geopeft.models.decoders"
# `parameters` are those of a decoder for four maps of 768 channels at a stride of 16 px (a base-sized transformer), 6
# bands and 5 classes.
DECODERS: Table[DecoderRow] = Table(
    "decoder",
    (
        DecoderRow(
            "linear",
            "One transposed convolution from one map",
            f"{_BUILDERS}.linear:build",
            parameters={"light": 984_581, "study": 984_581},
            by_class=True,
        ),
        DecoderRow(
            "unet",
            "Top-down with a full-resolution skip from the raw bands",
            f"{_BUILDERS}.unet:build",
            parameters={"light": 576_544, "study": 8_911_712},
        ),
        DecoderRow(
            "fcn",
            "One map, doubled by convolutions until it has the pixels' size",
            f"{_BUILDERS}.fcn:build",
            parameters={"light": 229_024, "study": 14_167_552},
        ),
        DecoderRow(
            "upernet",
            "A pyramid of maps with means of the surroundings, all put together",
            f"{_BUILDERS}.upernet:build",
            parameters={"light": 594_368, "study": 9_504_064},
        ),
        DecoderRow(
            "rbf",
            "Radial basis functions: each pixel by its likeness to prototypes of the classes",
            f"{_BUILDERS}.rbf:build",
            parameters={"light": 56_277, "study": 214_341},
            by_class=True,
        ),
        DecoderRow(
            "narrow",
            "The finest map and the raw bands in few channels, for small models",
            f"{_BUILDERS}.narrow:build",
            parameters={"light": 15_776, "study": 93_824},
        ),
    ),
)
