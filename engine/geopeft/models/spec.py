"""What a model is made of, as plain data: enough to build it again from a package."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class InputBand(BaseModel):
    """One band of the model's input, and the constants that bring it from raster units to the network.

    canonical = raster value * scale + offset              (reflectance 0..1, display 0..1, or the value itself)
    standardised = (canonical - mean) / std                (what the raw-band skip sees)
    backbone input = canonical * backbone_scale + backbone_offset     (the units of the backbone's card, normalised)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    common: str = Field(default="", description="role such as red, nir, swir16 (STAC common names); empty: none")
    wavelength_um: float | None = None
    scale: float = 1.0
    offset: float = 0.0
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)
    backbone_band: str = Field(default="", description="the backbone's own band this one feeds; empty: only the skip")
    backbone_scale: float = 1.0
    backbone_offset: float = 0.0


class ModelSpec(BaseModel):
    """backbone -> adapter -> decoder -> head, by names of the tables and their settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    backbone: str
    adapter: str
    decoder: str
    bands: tuple[InputBand, ...] = Field(min_length=1)
    num_classes: int = Field(ge=2, le=254)
    gsd_m: float = Field(gt=0, description="pixel size of the chips")
    resample: float = Field(default=1.0, gt=0, description="the backbone sees chips resized by this factor")
    probe: bool = Field(default=False, description="logits start from a linear probe of the backbone's features")
    rank: int = Field(default=16, ge=1, le=256)
    chip_size_px: int = Field(ge=8, le=4096, description="side of the chips the model was fitted on")


class TextureSpec(BaseModel):
    """Which features a classical classifier sees; see `texture.Texture`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    windows_px: tuple[Annotated[int, Field(ge=1, le=63)], ...] = Field(max_length=8)
    ratios: tuple[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], ...] = Field(max_length=32)
    components: int = Field(ge=1, le=64)
