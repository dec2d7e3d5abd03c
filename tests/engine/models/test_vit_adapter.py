"""ViT-Adapter: what the reference gives, where its maps lie, and that it changes nothing of the transformer."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from affine import Affine
from geopeft import fit, package
from geopeft.data.batches import Batch
from geopeft.errors import JobError
from geopeft.events import Reporter
from geopeft.job import FitJob
from geopeft.models import SegmentationModel, build
from geopeft.models.adapters import interactions
from geopeft.models.adapters.deformable import DeformableAttention, cell_centres
from geopeft.models.adapters.interactions import InteractionNetwork
from geopeft.models.adapters.vit_adapter import VitAdapter
from geopeft.models.backbones import BACKBONES
from geopeft.models.backbones.backbone import Scene
from geopeft.models.backbones.prithvi import build as build_prithvi
from geopeft.models.backbones.timm_backbone import PlainTransformer, TimmBackbone
from geopeft.models.backbones.transformer import VitBackbone
from geopeft.models.segmentation import build_backbone
from geopeft.models.spec import InputBand, ModelSpec
from geopeft.training.trainer import SETTLING_BATCHES, settle
from reference import TOLERANCE, config, expected, inputs, largest_difference, weights
from torch import Tensor

BANDS = ("BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2")
ORIGIN = Affine(10, 0, 300_000, 0, -10, 5_800_000)
MAPS = ("f1_stride4", "f2_stride8", "f3_stride16", "f4_stride32")
# The reference's names, and ours.
RENAMED = (
    (r"^spm\.stem\.", "prior.stem."),
    (r"^spm\.conv2\.", "prior.steps.0."),
    (r"^spm\.conv3\.", "prior.steps.1."),
    (r"^spm\.conv4\.", "prior.steps.2."),
    *((rf"^spm\.fc{i + 1}\.", f"prior.lateral.{i}.") for i in range(4)),
    *((rf"^norm{i + 1}\.", f"norms.{i}.") for i in range(4)),
    (r"^level_embed$", "levels"),
    (r"\.injector\.gamma$", ".gamma"),
    (r"\.extractor\.", ".extractors.0."),
    (r"\.extra_extractors\.0\.", ".extractors.1."),
    (r"\.extra_extractors\.1\.", ".extractors.2."),
)


def spec_of(backbone: str, bands: Sequence[str] = ()) -> ModelSpec:
    names = bands or [band.name for band in BACKBONES[backbone].bands]
    fields: dict[str, Any] = {"decoder": "linear", "num_classes": 3, "gsd_m": 10, "chip_size_px": 32}
    made = tuple(InputBand(name=n, backbone_band=n) for n in names)
    return ModelSpec(backbone=backbone, adapter="vit-adapter", bands=made, **fields)


def model_of(backbone: str) -> SegmentationModel:
    torch.manual_seed(0)
    return build(spec_of(backbone), pretrained=False)


def shaken(model: SegmentationModel) -> SegmentationModel:
    """As if trained: what is injected is no longer nothing."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


class Blank(VitBackbone):
    """A transformer whose tokens are zero and whose blocks do nothing: only the side network is seen."""

    def __init__(self, patch_px: int) -> None:
        super().__init__(patch_px, dim=16, depth=4, prefix=1)

    @property
    def blocks(self) -> Sequence[Callable[[Tensor], Tensor]]:
        return [lambda tokens: tokens] * 4

    def embed(self, x: Tensor, gsd_m: float, scene: Scene | None) -> Tensor:
        return x.new_zeros(len(x), 1 + x.shape[-2] * x.shape[-1] // self.patch_px**2, self.dim)


def reference_network(folder: Path) -> tuple[VitBackbone, InteractionNetwork]:
    """Prithvi with the reference's weights, and its side network."""
    numbers, adapter, state = config(folder)["encoder_kwargs"], config(folder)["adapter"], weights(folder)
    backbone = build_prithvi(
        BACKBONES["prithvi_eo_v1_100"], BANDS, dim=numbers["embed_dim"], depth=numbers["depth"],
        heads=numbers["num_heads"], image_px=numbers["img_size"],
    ).eval()  # fmt: skip
    own = {key: value for key, value in state.items() if key.startswith(("patch_embed.", "blocks."))}
    # The reference has neither: CLS and the final normalisation take no part.
    own |= {
        "cls_token": torch.full((1, 1, 64), torch.nan),
        "norm.weight": torch.zeros(64),
        "norm.bias": torch.zeros(64),
    }
    backbone.load_weights(own)
    side = InteractionNetwork(6, 64, 16, adapter["deform_num_heads"], adapter["conv_inplane"]).eval()
    renamed = {}
    for key, value in state.items():
        if key not in own and key != "pos_embed":
            for published, ours in RENAMED:
                key = re.sub(published, ours, key)
            renamed[key] = value
    side.load_state_dict(renamed)
    backbone.side, backbone.strides = side, side.strides
    return backbone, side


@pytest.mark.parametrize("case", ["T1_64", "T1_96_interp", "T1_rect_64x128"])
def test_it_gives_what_the_reference_gives(
    shared: Path, case: str, record_property: Callable[[str, object], None]
) -> None:
    folder = shared / "fixtures/peft_vit_adapter_prithvi"
    backbone, side = reference_network(folder)
    image = inputs(folder, case)["image"]
    with torch.no_grad():
        found = dict(zip(MAPS, backbone(image), strict=True))
        finest, *coarser = side.prior(image)
    found["spm_c1"] = finest
    for i, grid in enumerate(coarser):
        # The reference's tokens of the prior, before their level is added.
        found[f"spm_c{i + 2}_tokens"] = grid.flatten(2).transpose(1, 2)
    difference = largest_difference(found, expected(folder, case))
    record_property("difference", difference)
    assert difference < TOLERANCE


@pytest.mark.parametrize(
    ("patch_px", "strides"),
    [(4, [1, 2, 4, 8]), (8, [2, 4, 8, 16]), (14, [4, 7, 14, 28]), (16, [4, 8, 16, 32]), (32, [8, 16, 32, 64])],
)
def test_what_lies_in_the_image_lies_at_the_same_place_in_every_map(patch_px: int, strides: list[int]) -> None:
    torch.manual_seed(0)
    backbone, side = Blank(patch_px), InteractionNetwork(2, 16, patch_px, heads=4, channels=8).eval()
    backbone.side, backbone.strides = side, side.strides
    assert side.strides == strides
    size, spot = 20 * patch_px, 2 * patch_px
    row, col = 6 * patch_px, 12 * patch_px
    image = torch.zeros(1, 2, size, size + patch_px)
    marked = image.clone()
    marked[..., row : row + spot, col : col + spot] = 3
    with torch.no_grad():
        changes = [(a - b).abs().sum(1)[0] for a, b in zip(backbone(marked), backbone(image), strict=True)]
    for change, stride in zip(changes, strides, strict=True):
        assert change.shape == (-(-size // stride), -(-(size + patch_px) // stride))
        rows, cols = (np.arange(n) * stride + stride / 2 for n in change.shape)
        # Squared, as a convolution sees far, but little.
        share = (change**2 / (change**2).sum()).numpy()
        centre = (share.sum(1) @ rows, share.sum(0) @ cols)
        # A convolution of stride 2 looks half a pixel to the upper left of its cell's centre: half a cell in the end.
        assert np.abs(np.subtract(centre, (row + spot / 2, col + spot / 2))).max() < 0.75 * stride


def test_a_new_adapter_leaves_the_transformer_as_it_was() -> None:
    torch.manual_seed(0)
    backbone = build_backbone(BACKBONES["galileo_nano"], ("B02", "B03", "B04"), ()).eval()
    assert isinstance(backbone, VitBackbone)
    x = torch.rand(2, 3, 16, 24)
    with torch.no_grad():
        plain = backbone(x)
        VitAdapter().apply(backbone, spec_of("galileo_nano", ("B02", "B03", "B04")))
        side = backbone.side
        assert isinstance(side, InteractionNetwork)
        deep, _ = side._interact(backbone, backbone.embed(x, 10.0, None), side.prior(x)[1:], [(8, 12), (4, 6), (2, 3)])
    # The last map of the plain backbone has passed the final normalisation, which the adapter leaves out.
    for own, theirs in zip(deep[:3], plain[:3], strict=True):
        torch.testing.assert_close(own, theirs, atol=1e-5, rtol=0)
    assert not torch.allclose(deep[3], plain[3], atol=1e-2)


def test_a_new_adapter_leaves_a_transformer_of_timm_as_it_was() -> None:
    torch.manual_seed(0)
    card = replace(
        BACKBONES["ssl4eo_vits16_dino"],
        options={"architecture": "vit_small_patch16_224", "dim": 48, "depth": 4, "heads": 3},
    )
    backbone = build_backbone(card, tuple(band.name for band in card.bands), ()).eval()
    assert isinstance(backbone, TimmBackbone)
    x = torch.rand(2, len(card.bands), 64, 96)
    with torch.no_grad():
        theirs = backbone(x)
        VitAdapter().apply(backbone, spec_of(card.name, ("B02", "B03", "B04")))
        side, plain = backbone.side, PlainTransformer(backbone.net, backbone.taps)
        assert isinstance(side, InteractionNetwork)
        tokens = plain.embed(x, 10.0, None)
        deep = [tokens := block(tokens) for block in plain.blocks]
        maps = backbone(x)
    for tap, own in zip(plain.taps, theirs, strict=True):
        done = plain.to_map(backbone.net.norm(deep[tap])[:, plain.prefix :], 4, 6)
        torch.testing.assert_close(done, own, atol=1e-5, rtol=0)
    assert [m.shape[-2:] for m in maps] == [(16, 24), (8, 12), (4, 6), (2, 3)] and backbone.strides == [4, 8, 16, 32]


def test_a_chips_maps_do_not_depend_on_the_others_even_in_training() -> None:
    model, x = shaken(model_of("galileo_nano")).train(), torch.rand(3, 10, 20, 20)
    with torch.no_grad():
        together = model.encode(x)[0]
        alone = model.encode(x[:1])[0]
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours[:1], theirs, atol=1e-4, rtol=0)


class Sampler:
    """Batches of noise far from zero, the same from every seed."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(1)

    def draw(self, count: int) -> Batch:
        values = self._rng.normal(30, 9, (count, 10, 32, 32)).astype(np.float32)
        return Batch(values, np.ones((count, 32, 32), bool), np.zeros((count, 32, 32), np.uint8))


def test_settled_statistics_are_those_of_the_training_chips_and_stay() -> None:
    model = model_of("galileo_nano")
    raw = torch.from_numpy(Sampler().draw(8).values)
    before = [float(m.detach().std()) for m in model.encode(raw)[0]]
    settle(model, Sampler())  # type: ignore[arg-type]
    settled = [float(m.detach().std()) for m in model.encode(raw)[0]]
    assert min(before) > 3 and all(0.8 < deviation < 1.25 for deviation in settled)
    state = {key: value.clone() for key, value in model.trainable_state().items()}
    model.train().encode(2 * raw)
    assert all(torch.equal(value, state[key]) for key, value in model.trainable_state().items())


def test_a_fit_settles_the_statistics_before_it_learns(
    shared: Path, tmp_path: Path, make_raster: Callable[..., Path], make_labels: Callable[..., Path]
) -> None:
    bright = np.indices((4, 128, 128)).sum(0) // 32 % 2
    values = (500 + 1500 * bright + np.random.default_rng(0).normal(0, 50, (4, 128, 128))).astype(np.uint16)
    raster = make_raster(values, names=("B02", "B03", "B04", "B08"))
    places = [(row, col) for row in range(10, 128, 32) for col in range(10, 128, 32)]
    boxes = [shapely.box(*(ORIGIN * (col, row + 6)), *(ORIGIN * (col + 6, row))) for row, col in places]
    labels = make_labels(boxes, [("dark", "bright")[bright[0, row, col]] for row, col in places])
    fields: dict[str, Any] = {"backbone": "galileo_nano", "adapter": "vit-adapter", "decoder": "linear", "steps": 1}
    fit.run(
        FitJob(
            rasters=(str(raster),), labels=str(labels), out=str(tmp_path / "m.geopeft"), baselines=(), device="cpu",
            weights_dir=str(shared / "weights"), folds=1, **fields,
        ),
        Reporter(),
    )  # fmt: skip
    stored = package.read(tmp_path / "m.geopeft").weights
    seen = {name: value for name, value in stored.items() if name.endswith("num_batches_tracked")}
    assert len(seen) == 10 and all(int(value) == SETTLING_BATCHES for value in seen.values())


def test_settling_a_model_without_a_side_network_reads_nothing() -> None:
    plain = build(spec_of("galileo_nano").model_copy(update={"adapter": "lora"}), pretrained=False)
    settle(plain, None)  # type: ignore[arg-type]


def test_only_the_side_network_is_trained_and_stored() -> None:
    model = model_of("galileo_nano")
    side = model.backbone.get_submodule("side")
    trained = {name for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert trained == {f"side.{name}" for name, _ in side.named_parameters()}
    assert model.adapter is not None and model.adapter.state(model.backbone).keys() == side.state_dict().keys()
    model.encode(torch.rand(2, 10, 16, 16))[0][0].square().sum().backward()
    first: Any = side.get_submodule("interactions.0")
    assert first.gamma.grad.abs().max() > 0


def test_heads_are_those_of_the_study_and_divide_every_width() -> None:
    assert [interactions._heads(dim) for dim in (768, 1024, 1280, 192, 64)] == [12, 16, 16, 3, 1]
    assert all((dim // 2) % interactions._heads(dim) == 0 for dim in range(16, 1300, 2))


def test_deformable_attention_starts_by_looking_around_its_own_place() -> None:
    made = DeformableAttention(16, heads=4, levels=1, points=2)
    offsets = made.sampling_offsets(torch.zeros(1, 16)).view(4, 2, 2)
    wanted = torch.tensor([[1.0, 0], [0, 1], [-1, 0], [0, -1]])
    torch.testing.assert_close(offsets, torch.stack([wanted, 2 * wanted], 1), atol=1e-6, rtol=0)
    centres = cell_centres([(1, 2), (2, 1)], torch.device("cpu"))
    torch.testing.assert_close(centres, torch.tensor([[0.25, 0.5], [0.75, 0.5], [0.5, 0.25], [0.5, 0.75]]))


def test_it_computes_in_half_precision_too() -> None:
    model, x = shaken(model_of("galileo_nano")), torch.rand(1, 10, 16, 16)
    with torch.no_grad():
        full = model.encode(x)[0]
        with torch.autocast("cpu", torch.bfloat16):
            half = model.encode(x)[0]
    for ours, theirs in zip(half, full, strict=True):
        assert (ours.float() - theirs).abs().mean() < 0.05 * theirs.std()


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnet18"])
def test_a_network_that_is_no_plain_transformer_is_refused(name: str) -> None:
    with pytest.raises(JobError, match="cannot be used with the adapter 'vit-adapter'") as caught:
        model_of(name)
    assert caught.value.code == "ADAPTER_UNSUITABLE" and "lora" in caught.value.hint
    with pytest.raises(JobError, match="needs a plain transformer of 4 blocks") as caught:
        VitAdapter().apply(build_backbone(BACKBONES[name], ("red", "green", "blue"), ()), spec_of(name))
    assert caught.value.code == "ADAPTER_UNSUITABLE"


def test_several_dates_that_are_kept_apart_are_refused() -> None:
    card = BACKBONES["prithvi_eo_v2_tiny_tl"]
    made = build_backbone(card, BANDS, (), frames=2)
    with pytest.raises(JobError, match="takes one date of prithvi_eo_v2_tiny_tl") as caught:
        VitAdapter().apply(made, spec_of(card.name))
    assert caught.value.code == "ADAPTER_UNSUITABLE"


def test_several_dates_that_are_put_together_are_seen_all() -> None:
    torch.manual_seed(0)
    made = build_backbone(BACKBONES["galileo_nano"], ("B02", "B03", "B04"), (), frames=2).eval()
    VitAdapter().apply(made, spec_of("galileo_nano"))
    x = torch.rand(1, 6, 16, 16)
    with torch.no_grad():
        maps = made(x)
        assert [tuple(m.shape) for m in maps] == [(1, 128, n, n) for n in (16, 8, 4, 2)]
        for date in (slice(0, 3), slice(3, 6)):
            other = x.clone()
            other[:, date] = 0
            assert not torch.allclose(made(other)[0], maps[0], atol=1e-2)
