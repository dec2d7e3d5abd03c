"""backbone -> adapter -> decoder -> head: a raster's chip in, logits out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geopeft.data.bands import dates_of
from geopeft.data.normalize import OUTLIER
from geopeft.errors import BandError, JobError, WeightsError
from geopeft.events import Reporter
from geopeft.models.adapters import ADAPTERS
from geopeft.models.adapters.adapter import Adapter, require_fit
from geopeft.models.backbones import BACKBONES
from geopeft.models.backbones.backbone import Backbone, Scene, load_exactly
from geopeft.models.decoders import DECODERS
from geopeft.models.metadata import require_metadata
from geopeft.models.probe import Probe
from geopeft.models.registry import BackboneCard, load_builder
from geopeft.models.sizes import resize, resize_to_grid, resized
from geopeft.models.spec import InputBand, ModelSpec
from geopeft.models.wavelengths import optical_wavelength
from geopeft.models.weights import fetch, file_sha256, load_state


@dataclass(frozen=True)
class BaseWeights:
    """Which published weights a model stands on. `sha256` is empty where there are none."""

    file: str
    sha256: str
    revision: str
    licence: str
    how: str


class SegmentationModel(nn.Module):
    """Raw chips (B, C, H, W) float32 in raster units, invalid pixels filled -> logits (B, K, H, W) float32.

    All constants that bring raster values to the network are buffers, so an export carries them.
    """

    def __init__(self, spec: ModelSpec, card: BackboneCard, backbone: Backbone, adapter: Adapter | None) -> None:
        super().__init__()
        self.spec = spec
        self.card = card
        self.adapter = adapter
        self.base_weights = BaseWeights("", "", "", card.licence, "random values")
        self.backbone = backbone
        self._set_constants(spec, card)
        strides = [max(1, round(stride / spec.resample)) for stride in backbone.strides]
        self.strides = strides
        self.decoder = load_builder(DECODERS[spec.decoder].builder)(
            list(backbone.out_channels), strides, len(spec.bands), num_classes=spec.num_classes, size=spec.decoder_size
        )
        self.head = nn.Conv2d(self.decoder.out_channels, spec.num_classes, 1)
        self.probe = Probe(backbone.out_channels, strides, spec.num_classes) if spec.probe else None
        _init_head(self.head, zero=spec.probe)

    def forward(self, raw: Tensor, scene: Scene | None = None) -> Tensor:
        return self.decode(*self.encode(raw, scene))

    def encode(self, raw: Tensor, scene: Scene | None = None) -> tuple[list[Tensor], Tensor]:
        """The backbone's feature maps, and the standardised bands (B, C, H, W) for the raw-band skip.

        Args:
            scene: when and where the chips were taken; the backbone is told where the spec's `metadata` says so.
        """
        inputs, standardised = self._inputs(raw)
        maps = self.backbone(inputs, gsd_m=self.spec.gsd_m / self.spec.resample, **self._told(scene))
        return self._on_grid(maps, *raw.shape[-2:]), standardised

    def standardise(self, raw: Tensor) -> Tensor:
        """The bands (B, C, H, W) as the raw-band skip sees them."""
        return self._standardised(raw * self.scale + self.offset)

    def begin(self, raw: Tensor, scene: Scene | None, blocks: int) -> list[Tensor]:
        """What the backbone's first blocks make of raw chips; see `Backbone.begin`."""
        inputs, _ = self._inputs(raw)
        told = scene if self.spec.metadata else None
        return self.backbone.begin(inputs, self.spec.gsd_m / self.spec.resample, told, blocks)

    def go_on(self, begun: Sequence[Tensor], blocks: int, height: int, width: int) -> list[Tensor]:
        """The feature maps of `encode`, from what `begin` gave for chips of height x width pixels."""
        sides = (resized(side, self.spec.resample) for side in (height, width))
        return self._on_grid(self.backbone.go_on(begun, blocks, *sides), height, width)

    def decode(self, features: list[Tensor], standardised: Tensor) -> Tensor:
        """Logits (B, K, H, W) float32 from what `encode` gives."""
        logits: Tensor = self.head(self.decoder(features, standardised))
        if self.probe is not None:
            logits = logits + self.probe(features, *standardised.shape[-2:])
        return logits.float()

    def train(self, mode: bool = True) -> SegmentationModel:
        """Batch statistics and stochastic depth of a backbone that is not fully tuned stay as in evaluation."""
        super().train(mode)
        if self.adapter is None or not self.adapter.trains_statistics:
            self.backbone.eval()
            for module in self.backbone.added:
                module.train(mode)
        return self

    def trainable_state(self) -> dict[str, Tensor]:
        """What a package stores: adapter.*, decoder.*, head.* and probe.*, detached, on the CPU."""
        if self.adapter is None:
            raise JobError("A model opened for prediction has no separate adapter.", "Build it with merged=False.")
        parts = {
            "adapter": self.adapter.state(self.backbone),
            "decoder": self.decoder.state_dict(),
            "head": self.head.state_dict(),
            "probe": self.probe.state_dict() if self.probe is not None else {},
        }
        return {
            f"{part}.{key}": value.detach().to("cpu", copy=True).contiguous()
            for part, tensors in parts.items()
            for key, value in tensors.items()
        }

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Puts back what `trainable_state` gave, such as the best weights; PackageError unless it fits exactly."""
        if self.adapter is None:
            raise JobError("A model opened for prediction takes no adapter.", "Build it with merged=False.")
        parts = split_state(state)
        self.adapter.load(self.backbone, parts["adapter"])
        self.load_decoder(parts)

    def load_decoder(self, parts: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Decoder and head of a state that `split_state` has divided."""
        for part, module in (("decoder", self.decoder), ("head", self.head), ("probe", self.probe)):
            expected = module.state_dict() if module is not None else {}
            require_fit(parts[part], {k: tuple(v.shape) for k, v in expected.items()}, part)
            if module is not None:
                module.load_state_dict(dict(parts[part]))

    def _standardised(self, canonical: Tensor) -> Tensor:
        return ((canonical - self.mean) / self.std).clamp(-OUTLIER, OUTLIER)

    def _inputs(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """What the backbone is given, in its units and at its resolution, and the standardised bands."""
        canonical = raw * self.scale + self.offset
        standardised = self._standardised(canonical)
        if self.card.bands:
            inputs = canonical[:, self.backbone_order] * self.backbone_scale + self.backbone_offset
        else:
            inputs = standardised[:, self.backbone_order] if self.card.any_optical else standardised
        return resize(inputs, self.spec.resample), standardised

    def _told(self, scene: Scene | None) -> dict[str, Any]:
        return {"scene": scene} if scene is not None and self.spec.metadata else {}

    def _on_grid(self, maps: list[Tensor], height: int, width: int) -> list[Tensor]:
        """The backbone's maps at strides in pixels of the raster."""
        resample = self.spec.resample
        if resample == 1:
            return maps
        # To whole pixels: the decoder sees maps of ceil(H / stride) rows.
        return [
            resize_to_grid(m, own / resample / stride, -(-height // stride), -(-width // stride))
            for m, own, stride in zip(maps, self.backbone.strides, self.strides, strict=True)
        ]

    def _set_constants(self, spec: ModelSpec, card: BackboneCard) -> None:
        def column(values: list[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float32).view(1, -1, 1, 1)

        bands = spec.bands
        fed = _fed_bands(spec, card)
        self.scale: Tensor
        self.offset: Tensor
        self.mean: Tensor
        self.std: Tensor
        self.backbone_scale: Tensor
        self.backbone_offset: Tensor
        self.backbone_order: Tensor
        self.register_buffer("scale", column([band.scale for band in bands]), persistent=False)
        self.register_buffer("offset", column([band.offset for band in bands]), persistent=False)
        self.register_buffer("mean", column([band.mean for band in bands]), persistent=False)
        self.register_buffer("std", column([band.std for band in bands]), persistent=False)
        self.register_buffer("backbone_scale", column([bands[i].backbone_scale for i in fed]), persistent=False)
        self.register_buffer("backbone_offset", column([bands[i].backbone_offset for i in fed]), persistent=False)
        self.register_buffer("backbone_order", torch.tensor(fed, dtype=torch.long), persistent=False)


def build_model(
    spec: ModelSpec,
    state: Mapping[str, Tensor] | None = None,
    *,
    weights_dir: str = "",
    reporter: Reporter | None = None,
    merged: bool = False,
    pretrained: bool = True,
    weights_sha256: str = "",
) -> SegmentationModel:
    """See `geopeft.models.build`."""
    card = BACKBONES[spec.backbone]
    adapter: Adapter = load_builder(ADAPTERS[spec.adapter].builder)()
    if spec.adapter not in card.adapters:
        raise JobError(
            f"The backbone {card.name} cannot be used with the adapter '{spec.adapter}'.",
            f"Choose one of: {', '.join(card.adapters)}.",
            "ADAPTER_UNSUITABLE",
        )
    if spec.metadata:
        require_metadata(card)
    fed = [spec.bands[i] for i in _fed_bands(spec, card)]
    frames = max(1, len(dates_of(fed))) if card.bands else 1
    one = fed[: len(fed) // frames]
    backbone = build_backbone(
        card,
        tuple(band.backbone_band if card.bands else band.name for band in one),
        [length for band in one if (length := _wavelength(band, card)) is not None],
        frames,
    )
    base = None
    # A fully tuned backbone is in the state whole.
    if pretrained and card.pretrained and not (state is not None and adapter.stores_backbone):
        base = load_pretrained(backbone, card, weights_dir, reporter, weights_sha256)
    parts = split_state(state) if state is not None else None
    if merged and parts is not None:
        adapter.merge(backbone, parts["adapter"], spec)
        backbone.requires_grad_(False)
        backbone.bake()
    else:
        adapter.apply(backbone, spec)
    model = SegmentationModel(spec, card, backbone, None if merged else adapter)
    if base is not None:
        model.base_weights = base
    if parts is not None:
        if not merged:
            adapter.load(backbone, parts["adapter"])
        model.load_decoder(parts)
    return model.eval()


def build_backbone(
    card: BackboneCard, band_names: tuple[str, ...], wavelengths_um: Sequence[float], frames: int = 1
) -> Backbone:
    """The card's network with random weights, for these bands of so many dates."""
    extra: dict[str, Any] = {"wavelengths_um": wavelengths_um} if card.any_optical else {}
    if frames > 1:
        extra["frames"] = frames
    backbone: Backbone = load_builder(card.builder)(card, band_names, **card.options, **extra)
    backbone.in_channels = len(band_names) * frames
    return backbone


def describe_parameters(model: SegmentationModel) -> dict[str, int]:
    """How many values there are and how many are trained, in all, in the backbone and in the decoder."""

    def count(module: nn.Module, trained_only: bool) -> int:
        return sum(p.numel() for p in module.parameters() if p.requires_grad or not trained_only)

    return {
        "total": count(model, False),
        "trainable": count(model, True),
        "backbone_total": count(model.backbone, False),
        "backbone_trainable": count(model.backbone, True),
        "decoder_trainable": count(model.decoder, True),
    }


def split_state(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A package's tensors by part. A name of no part stays under its own and fails there."""
    parts: dict[str, dict[str, Tensor]] = {"adapter": {}, "decoder": {}, "head": {}, "probe": {}}
    for key, value in state.items():
        part, _, name = key.partition(".")
        if part in parts:
            parts[part][name] = value
        else:
            parts["adapter"][key] = value
    return parts


def _wavelength(band: InputBand, card: BackboneCard) -> float | None:
    """The band's own, else that of the card's band which it feeds."""
    length = optical_wavelength(band)
    return length or next((own.wavelength_um for own in card.bands if own.name == band.backbone_band), None)


def _fed_bands(spec: ModelSpec, card: BackboneCard) -> list[int]:
    """Indices of the bands that feed the backbone, in the order of its card, date after date; behind the card's bands
    those that it takes by their wavelength."""
    if not card.bands:
        every = range(len(spec.bands))
        return [i for i in every if not card.any_optical or optical_wavelength(spec.bands[i]) is not None]
    given = [band for band in spec.bands if band.backbone_band]
    dates = dates_of(given) if len(dates_of(given)) > 1 else ("",)
    several = len(dates) > 1
    where = {
        (band.date if several else "", band.backbone_band): i for i, band in enumerate(spec.bands) if band.backbone_band
    }
    names = [band.name for band in card.bands]
    others = [band for band in given if card.any_optical and optical_wavelength(band) is not None]
    names += dict.fromkeys(band.backbone_band for band in others if band.backbone_band not in names)
    fed = [where[date, name] for date in dates for name in names if (date, name) in where]
    if len(fed) != len(given):
        known = ", ".join(band.name for band in card.bands)
        raise BandError(
            f"The model's bands name a band that {card.name} does not have, or name one twice.",
            f"Its bands are: {known or 'all'}.",
            "BANDS_UNKNOWN",
        )
    frames = {tuple(name for name in names if (date, name) in where) for date in dates}
    if len(dates) > card.frames or len(frames) > 1:
        raise BandError(
            f"The model's bands are of {len(dates)} dates, which {card.name} does not take like this.",
            f"It takes at most {card.frames}, with the same bands of each.",
            "BANDS_DATES",
        )
    return fed


def load_pretrained(
    backbone: Backbone, card: BackboneCard, weights_dir: str, reporter: Reporter | None, wanted_sha256: str = ""
) -> BaseWeights:
    """Puts the card's weights into its network and says which they are; WeightsError where they are not to be had."""
    found = fetch(card, weights_dir, reporter)
    sha256 = file_sha256(found.path)
    if wanted_sha256 and sha256 != wanted_sha256:
        raise WeightsError(
            f"The model was fitted on other weights of {card.name} than {found.path}: their sha256 is "
            f"{wanted_sha256}, of this file {sha256}.",
            "Put the weights that the model was fitted on into your weights folder.",
            "WEIGHTS_CHECKSUM",
        )
    state = load_state(found.path, card)
    if card.weights.own_names:
        load_exactly(backbone, state, card.name)
    else:
        backbone.load_weights(state)
    base = BaseWeights(found.path.name, sha256, card.weights.revision, card.licence, found.how)
    if reporter is not None:
        revision = f", revision {base.revision[:12]}" if base.revision else ""
        file = "of an adapted file" if card.weights.adapted else base.file
        reporter.message(
            f"Backbone {card.network} with the weights {file} (sha256 {sha256[:12]}{revision}, licence "
            f"{base.licence or 'unknown'}) from {base.how}."
        )
    return base


def _init_head(head: nn.Conv2d, zero: bool) -> None:
    """Small logits at the start, so that no class is favoured; none beside a probe, which says all at the start; the
    identity where the decoder already gives classes."""
    if head.bias is not None:
        nn.init.zeros_(head.bias)
    if zero:
        nn.init.zeros_(head.weight)
    elif head.in_channels == head.out_channels:
        nn.init.dirac_(head.weight)
    else:
        nn.init.normal_(head.weight, std=0.02)
