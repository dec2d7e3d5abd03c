"""What a model is made of, as plain data: enough to build it again from a package."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from geopeft.job import DecoderSize

# The side of a chip as the backbone may see it.
MOST_RESAMPLED_PX = 8192
# What still leaves room for arithmetic in single precision.
LARGEST = 1e20
# However well a few places fit, no map is made surer or less sure than this.
SHARPNESS_RANGE = (0.25, 8.0)
Constant = Annotated[float, Field(ge=-LARGEST, le=LARGEST)]


def _odd(window_px: int) -> int:
    if window_px % 2 == 0:
        raise ValueError("a window has a pixel in its middle")
    return window_px


TargetName = Annotated[str, Field(min_length=1, max_length=200)]
OddWindow = Annotated[int, Field(ge=1, le=63), AfterValidator(_odd)]


class InputBand(BaseModel):
    """One band of the model's input, and the constants that bring it from raster units to the network.

    canonical = raster value * scale + offset              (reflectance 0..1, display 0..1, or the value itself)
    standardised = (canonical - mean) / std                (what the raw-band skip sees)
    backbone input = canonical * backbone_scale + backbone_offset     (the units of the backbone's card, normalised)
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    date: str = Field(default="", description="YYYY-MM-DD where the raster holds several dates; empty: not said")
    common: str = Field(default="", description="role such as red, nir, swir16 (STAC common names); empty: none")
    wavelength_um: float | None = Field(default=None, gt=0, le=1e7)
    scale: float = 1.0
    offset: Constant = 0.0
    mean: Constant = 0.0
    std: float = Field(default=1.0, ge=1e-20, le=LARGEST)
    unit: Literal["", "decibel"] = Field(
        default="", description="decibel: radar backscatter, linear power is converted when it is read; empty: others"
    )
    backbone_band: str = Field(default="", description="the backbone's own band this one feeds; empty: only the skip")
    backbone_scale: Constant = 1.0
    backbone_offset: Constant = 0.0

    @field_validator("scale")
    @classmethod
    def _can_be_undone(cls, scale: float) -> float:
        if not 1e-20 <= abs(scale) <= LARGEST:
            raise ValueError("a scale must not be zero, nor beyond what single precision holds")
        return scale


class ModelSpec(BaseModel):
    """backbone -> adapter -> decoder -> head, by names of the tables and their settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    backbone: str
    adapter: str
    decoder: str
    decoder_size: DecoderSize = "light"
    bands: tuple[InputBand, ...] = Field(min_length=1, max_length=1024)
    num_classes: int = Field(ge=2, le=254)
    gsd_m: float = Field(gt=0, lt=1e7, description="pixel size of the chips")
    resample: float = Field(default=1.0, ge=0.01, description="the backbone sees chips resized by this factor")
    probe: bool = Field(default=False, description="logits start from a linear probe of the backbone's features")
    metadata: bool = Field(default=False, description="the backbone is told when and where a chip was taken")
    rank: int = Field(default=16, ge=1, le=256)
    alpha: float | None = Field(default=None, gt=0, le=10_000, description="strength of low-rank updates; None: rank")
    targets: tuple[TargetName, ...] = Field(
        default=(), max_length=64, description="last parts of the names of the layers to adapt; empty: the usual ones"
    )
    last_blocks: int = Field(default=0, ge=0, le=1000, description="only so many last blocks are adapted; 0: all")
    prompt_tokens: int = Field(default=100, ge=1, le=1000, description="prompts in front of each block")
    chip_size_px: int = Field(ge=8, le=4096, description="side of the chips the model was fitted on")

    @property
    def tuning(self) -> str:
        """The adapter and its settings, in words; two models with the same words are tuned alike."""
        if self.adapter == "vpt":
            return f"vpt with {self.prompt_tokens} prompts"
        if self.adapter == "vit-adapter":
            return self.adapter
        parts = [f"{self.adapter} of rank {self.rank}"]
        if self.alpha is not None and self.alpha != self.rank:
            parts.append(f"alpha {self.alpha:g}")
        if self.targets:
            parts.append(f"on {' '.join(self.targets)}")
        if self.last_blocks:
            parts.append(f"in the last {self.last_blocks} blocks")
        return ", ".join(parts)

    @model_validator(mode="after")
    def _fits_into_memory(self) -> ModelSpec:
        if self.chip_size_px * self.resample > MOST_RESAMPLED_PX:
            raise ValueError(f"chips are resampled to more than {MOST_RESAMPLED_PX} px")
        return self


class TextureSpec(BaseModel):
    """Which features a classical classifier sees; see `texture.Texture`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    windows_px: tuple[OddWindow, ...] = Field(max_length=8)
    ratios: tuple[tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]], ...] = Field(max_length=32)
    components: int = Field(ge=1, le=64)
