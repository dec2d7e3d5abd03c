"""Any timm network that gives intermediate features: CNN pyramids and vision transformers, on any bands."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from geopeft.errors import JobError, WeightsError
from geopeft.models.backbones.backbone import Backbone, Scene, load_exactly
from geopeft.models.backbones.transformer import SideNetwork, token_grid
from geopeft.models.cards.timm import rgb_bands
from geopeft.models.registry import TRANSFORMER_ADAPTERS, WEIGHT_ADAPTERS, BackboneCard, WeightsSource
from geopeft.models.sizes import crop_map, pad_to_multiple

LORA_LINEARS = ("q", "v", "q_proj", "v_proj", "fc1", "fc2", "fc1_g", "fc1_x")
MAX_STRIDE = 32
FEWEST_BANDS = 3
# Families of timm whose blocks take nothing but tokens.
PLAIN_TRANSFORMERS = ("vision_transformer", "deit")


def card(name: str) -> BackboneCard | list[str] | None:
    """A row for a name that timm knows, None for another; for "" all the names that it knows."""
    import timm
    from timm.models import get_pretrained_cfg, is_model, is_model_in_modules

    if not name:
        return sorted({*timm.list_models(), *timm.list_pretrained()})
    config = get_pretrained_cfg(name) if is_model(name) else None
    if config is None or config.input_size[0] != 3:
        return None
    return BackboneCard(
        name=name,
        title=f"{name} of timm: red, green, blue at any pixel size",
        builder="geopeft.models.backbones.timm_backbone:build",
        licence=config.license or "",
        paper="https://github.com/huggingface/pytorch-image-models",
        bands=rgb_bands(config.mean, config.std),
        unit="display",
        normalize="zscore",
        patch_size_px=16 if config.fixed_input_size else 32,
        chip_size_px=min(256, max(128, config.input_size[-1])),
        gsd_m=None,
        parameters_m=0.0,
        weights=WeightsSource(file=f"{name}.safetensors", repo=config.hf_hub_id or "", path="model.safetensors"),
        adapters=TRANSFORMER_ADAPTERS if is_model_in_modules(name, PLAIN_TRANSFORMERS) else WEIGHT_ADAPTERS,
    )


def build(
    card: BackboneCard,
    band_names: tuple[str, ...],
    *,
    architecture: str = "",
    by_order: bool = False,
    published_periods: bool = False,
    **options: Any,
) -> TimmBackbone:
    """The network with random weights.

    A network for pictures or for radar needs all its bands; a multispectral one at least three. The first layer has
    no channel for a band that the raster lacks: that is as if the band were 0 everywhere once normalised, which for
    reflectances (B10 of Sentinel-2, which products of surface reflectance leave out) is no light at all. A card
    without bands takes any.

    Args:
        architecture: timm's name of the network; empty: the card's own name.
        by_order: its file names tensors in another way, in the same order.
        published_periods: periods of rotary positions are rounded to bfloat16, as in the authors' files (DINOv3).
        options: go to `timm.create_model`; `dim`, `depth` and `heads` are of a transformer.

    Raises:
        JobError: bands are missing, or the network gives no features, or takes images of one size only.
    """
    wanted = [band.name for band in card.bands] or list(band_names)
    if not set(band_names) <= set(wanted) or len(set(band_names)) < min(FEWEST_BANDS, len(wanted)):
        raise JobError(
            f"{card.name} needs the bands {', '.join(wanted)}, given: {', '.join(band_names)}.",
            "Name these bands, or choose another backbone.",
            "BANDS_MISSING",
        )
    sizes = {"dim": "embed_dim", "depth": "depth", "heads": "num_heads"}
    options = {sizes.get(name, name): value for name, value in options.items()}
    net = make_net(architecture or card.network, in_chans=len(band_names), **options)
    if published_periods:
        net.rope.periods.copy_(net.rope.periods.bfloat16())
    return TimmBackbone(card.network, band_names, net, by_order, wanted)


class TimmBackbone(Backbone):
    """(B, C, H, W) normalised -> feature maps.

    A pyramid gives the last map at each stride from 2 to 32 px, a plain transformer the maps after four evenly spaced
    blocks, all with its final normalisation.

    Args:
        band_names: of the input's channels.
        net: has as many channels as there are `band_names`, in the published order.
        by_order: its file names tensors in another way, in the same order.
        published_bands: of the published network's channels; empty: `band_names`.
    """

    def __init__(
        self, name: str, band_names: tuple[str, ...], net: Any, by_order: bool, published_bands: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.name = name
        self.by_order = by_order
        published_bands = published_bands or band_names
        self._published = {key: value.shape for key, value in net.state_dict().items()}
        kept = [band for band in published_bands if band in band_names]
        self._order = [band_names.index(band) for band in kept]
        self._channels = [published_bands.index(band) for band in kept]
        self._published_bands = len(published_bands)
        self._first = _first_layer(net)
        self.net = net
        maps = _probe(name, net, len(band_names))
        self.pyramid = len({stride for _, stride in maps}) > 1
        self.taps = _taps([stride for _, stride in maps])
        self.out_channels = [maps[i][0] for i in self.taps]
        self.strides = [maps[i][1] for i in self.taps]
        self.net.prune_intermediate_layers(self.taps, prune_norm=self.pyramid, prune_head=True)
        self._split = _split_qkv(self.net)
        self.side: SideNetwork | None = None
        self.adapter_targets = lora_targets(self)

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """The published state dict; the classifier is left out."""
        state = self._by_name(state) if self.by_order else dict(state)
        unknown = sorted(state.keys() - self._published.keys())
        if unknown:
            raise WeightsError(
                f"The file does not hold the weights of {self.name}: it has no place for {unknown[0]}.",
                "Take the file that was published under this name.",
                "WEIGHTS_KEYS",
            )
        first = state.get(self._first)
        if first is not None and first.ndim == 4 and first.shape[1] == self._published_bands:
            state[self._first] = first[:, self._channels]
        for name in self._split:
            for part in ("weight", "bias"):
                fused = state.pop(f"{name}.{part}", None)
                if fused is not None:
                    state.update(zip((f"{name}.{p}.{part}" for p in "qkv"), fused.chunk(3), strict=True))
        kept = self.net.state_dict().keys()
        load_exactly(self.net, {k: v for k, v in state.items() if k in kept or k not in self._published}, self.name)

    def forward(self, x: Tensor, gsd_m: float = 10.0, scene: Scene | None = None) -> list[Tensor]:
        height, width = x.shape[-2:]
        if self.side is not None:
            plain = PlainTransformer(self.net, self.taps)
            seen = self.side(plain, pad_to_multiple(x[:, self._order], plain.patch_px), gsd_m, scene)
            return [crop_map(m, height, width, s) for m, s in zip(seen, self.strides, strict=True)]
        x = pad_to_multiple(x[:, self._order], max(self.strides))
        maps = self.net.forward_intermediates(x, indices=self.taps, norm=not self.pyramid, intermediates_only=True)
        return [crop_map(m, height, width, s) for m, s in zip(maps, self.strides, strict=True)]

    def _by_name(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names by position; every shape and the last part of every name must agree."""
        pairs = list(zip(self._published.items(), state.items(), strict=False))
        agree = all(
            shape == tensor.shape and own.rpartition(".")[2] == name.rpartition(".")[2]
            for (own, shape), (name, tensor) in pairs
        )
        if len(state) != len(self._published) or not agree:
            raise WeightsError(
                f"The file does not hold the weights of {self.name}: its tensors have other shapes.",
                "Take the published file.",
                "WEIGHTS_KEYS",
            )
        return {own: tensor for (own, _), (_, tensor) in pairs}


class PlainTransformer:
    """timm's plain transformer as a side network sees one (`transformer.Transformer`).

    Args:
        net: whose blocks take nothing but tokens.
        taps: indices of the blocks after which there is a map.
    """

    def __init__(self, net: Any, taps: list[int]) -> None:
        self._net = net
        self.taps = taps
        self.patch_px = int(net.patch_embed.patch_size[0])
        self.prefix = int(net.num_prefix_tokens)

    @property
    def blocks(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """(B, N, D) -> (B, N, D) each."""
        blocks: Sequence[Callable[[Tensor], Tensor]] = self._net.blocks
        return blocks

    def embed(self, x: Tensor, gsd_m: float, scene: Scene | None) -> Tensor:
        """x (B, C, H, W), whole patches -> (B, prefix + N, D); neither pixel size nor scene is asked for."""
        tokens: Tensor = self._net.norm_pre(self._net._pos_embed(self._net.patch_embed(x)))
        return tokens

    def to_map(self, tokens: Tensor, rows: int, cols: int) -> Tensor:
        """(B, N, D) -> (B, D, rows, cols)."""
        return token_grid(tokens, rows, cols)

    def spread(self, update: Tensor, tokens: int) -> Tensor:
        """A token for each patch already."""
        return update


class SplitQkv(nn.Module):
    """A fused qkv layer as three linears, so that each can be adapted by itself."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        dim = fused.out_features // 3
        bias = fused.bias is not None
        parts = [nn.Linear(fused.in_features, dim, bias) for _ in range(3)]
        with torch.no_grad():
            for i, part in enumerate(parts):
                part.weight.copy_(fused.weight[i * dim : (i + 1) * dim])
                if bias:
                    part.bias.copy_(fused.bias[i * dim : (i + 1) * dim])
        self.q, self.k, self.v = parts

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.q(x), self.k(x), self.v(x)], dim=-1)


def make_net(name: str, **options: Any) -> Any:
    """The network for images of any size, if it can be had so."""
    import timm

    for flexible in ({"dynamic_img_size": True}, {"strict_img_size": False}, {}):
        try:
            net: nn.Module = timm.create_model(name, pretrained=False, **{**flexible, **options})
        except TypeError:
            continue
        if hasattr(net, "forward_intermediates") and hasattr(net, "prune_intermediate_layers"):
            return net
        break
    raise JobError(f"{name} gives no intermediate features.", "Choose another backbone.", "BACKBONE_UNSUITABLE")


def plain_transformer(backbone: TimmBackbone) -> Any:
    """Its network, if that is a transformer whose blocks take nothing but tokens, else None."""
    from timm.models.vision_transformer import VisionTransformer

    return backbone.net if isinstance(backbone.net, VisionTransformer) and not backbone.pyramid else None


def _first_layer(net: Any) -> str:
    """Name of the weight that reads the bands; empty where timm names several."""
    first = net.pretrained_cfg.get("first_conv", "")
    return f"{first}.weight" if isinstance(first, str) else ""


def _probe(name: str, net: Any, channels: int) -> list[tuple[int, int]]:
    """Channels and stride of every map, found by running the network once on a small blank image."""
    patch = getattr(getattr(net, "patch_embed", None), "patch_size", 1)
    patch = patch[0] if isinstance(patch, Sequence) else patch
    side = patch * -(-64 // patch)
    was_training = net.training
    try:
        with torch.no_grad():
            maps = net.eval().forward_intermediates(torch.zeros(1, channels, side, side), intermediates_only=True)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise JobError(
            f"{name} takes images of one size only.", "Choose another backbone.", "BACKBONE_UNSUITABLE"
        ) from error
    net.train(was_training)
    return [(m.shape[1], round(side / m.shape[-1])) for m in maps]


def _taps(strides: list[int]) -> list[int]:
    if len(set(strides)) > 1:
        last = {stride: i for i, stride in enumerate(strides) if 2 <= stride <= MAX_STRIDE}
        return sorted(last.values())
    count = min(4, len(strides))
    return [(i + 1) * len(strides) // count - 1 for i in range(count)]


def _split_qkv(net: nn.Module) -> list[str]:
    """Splits every fused qkv layer that is called as a layer; names of those split."""
    found = [
        (name, parent, layer)
        for name, parent in net.named_modules()
        if isinstance(layer := getattr(parent, "qkv", None), nn.Linear)
        # Some networks use the layer's weight by hand with a bias of their own, past any module put in its place.
        and layer.out_features % 3 == 0
        and getattr(parent, "q_bias", None) is None
    ]
    for _, parent, layer in found:
        parent.qkv = SplitQkv(layer)
    return [f"{name}.qkv" for name, _, _ in found]


def lora_targets(backbone: nn.Module) -> tuple[str, ...]:
    """q, v and the feed-forward layers of transformers; pointwise convolutions except those of channel attention."""

    def wanted(name: str, module: nn.Module) -> bool:
        if isinstance(module, nn.Linear):
            return name.rpartition(".")[2] in LORA_LINEARS
        pointwise = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.groups == 1
        return pointwise and ".se." not in name

    return tuple(name for name, module in backbone.named_modules() if wanted(name, module))
