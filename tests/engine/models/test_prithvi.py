"""Prithvi against reference outputs, its published key layouts, and what dates, time and place change."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from geopeft.errors import BandError, WeightsError
from geopeft.models.backbones import BACKBONES
from geopeft.models.backbones.backbone import Scene
from geopeft.models.backbones.prithvi import PrithviBackbone, build, position_table
from geopeft.models.registry import BackboneCard
from geopeft.models.segmentation import build_backbone
from reference import TOLERANCE, cases, config, expected, inputs, largest_difference, weights
from torch import Tensor, nn
from torch.nn import functional as F

FIXTURES = {
    "prithvi_eo_v1_100": (
        "prithvi_eo_v1_100",
        ("T1_128", "T1_224", "T1_256", "T1_bands_red_nir_64", "T1_bands_reordered_64", "T1_rect_96x160", "T2_112",
         "T3_224", "T3_96"),
    ),
    "prithvi_eo_v2": ("prithvi_eo_v2_300", ("T1_224", "T1_96", "T1_rect_64x192", "T4_64")),
    "prithvi_eo_v2_tl": (
        "prithvi_eo_v2_300_tl",
        ("T1_coords_224", "T1_locationonly_96", "T1_nocoords_224", "T1_timeonly_96", "T3_coords_96"),
    ),
    "prithvi_eo_v2_600_tl_patch14": (
        "prithvi_eo_v2_600_tl", ("T1_252", "T1_coords_224", "T1_nocoords_112", "T2_coords_70"),
    ),
}  # fmt: skip
BANDS = ("BLUE", "GREEN", "RED", "NIR_NARROW", "SWIR_1", "SWIR_2")
TL, PLAIN = "prithvi_eo_v2_tiny_tl", "prithvi_eo_v2_300"
UNKNOWN = float("nan")


def tiny(name: str = PLAIN, bands: tuple[str, ...] = BANDS, frames: int = 1, depth: int = 4) -> PrithviBackbone:
    """A small network of random weights in which time and place count."""
    torch.manual_seed(0)
    made = build(BACKBONES[name], bands, dim=32, depth=depth, heads=2, frames=frames).eval()
    for scale in (made.time_scale, made.place_scale):
        if scale is not None:
            scale.fill_(0.3)
    return made


def of_fixture(folder: Path, given: dict[str, Tensor]) -> tuple[PrithviBackbone, Tensor, Scene]:
    """The network with the fixture's weights, and its input and scene."""
    card, numbers, image = BACKBONES[FIXTURES[folder.name][0]], config(folder), given["image_dn"].float()
    assert [band.name for band in card.bands] == numbers["bands"]
    bands = [card.bands[int(i)] for i in given.get("band_index", torch.arange(6))]
    backbone = build(
        card,
        tuple(band.name for band in bands),
        dim=numbers["embed_dim"],
        depth=numbers["depth"],
        heads=numbers["num_heads"],
        patch_size_px=numbers["patch_size"][1],
        frames=image.shape[2],
    )
    backbone.load_weights(weights(folder))
    scale, offset = torch.tensor([card.normalization(band.name) for band in bands]).T[..., None, None, None]
    time = given.get("temporal_coords")
    scene = Scene(
        None if time is None else F.pad(time, (0, 1), value=UNKNOWN),
        given.get("location_coords"),
    )
    return backbone.eval(), (image * scale + offset).transpose(1, 2).flatten(1, 2), scene


@pytest.mark.parametrize(("folder", "case"), [(f, case) for f, (_, names) in FIXTURES.items() for case in names])
def test_every_output_of_the_reference_is_reproduced(
    shared: Path, folder: str, case: str, record_property: Callable[[str, object], None]
) -> None:
    path = shared / "fixtures" / folder
    backbone, x, scene = of_fixture(path, inputs(path, case))
    rows, cols = (side // backbone.patch_px for side in x.shape[-2:])
    table = torch.tensor(position_table(backbone.frames, rows, cols, backbone.native_grid, backbone.dim))
    with torch.no_grad():
        ours = {"patch_embed": backbone.patches(x), "pos_embed_used": F.pad(table, (0, 0, 1, 0))[None]}
        tokens = backbone.embed(x, 30.0, scene)
        for i in range(4):
            tokens = backbone.run_block(i, tokens)
            ours[f"block{i + 1}"] = tokens
        maps = backbone(x, 30.0, scene)
    ours |= {"final_normed": backbone.finish(tokens), "final_as_map": maps[-1]}
    difference = largest_difference(ours, expected(path, case))
    record_property("difference", difference)
    assert difference <= TOLERANCE
    # The other maps are the blocks' outputs without the class token.
    assert torch.equal(maps[0], backbone.to_map(ours["block1"][:, 1:], rows, cols))


def test_the_cases_are_all_of_the_fixtures(shared: Path) -> None:
    for folder, (_, names) in FIXTURES.items():
        assert cases(shared / "fixtures" / folder) == sorted(names)


def test_the_cards_have_the_statistics_of_the_fixtures(shared: Path) -> None:
    for folder, (name, _) in FIXTURES.items():
        numbers, card = config(shared / "fixtures" / folder), BACKBONES[name]
        assert [band.mean for band in card.bands] == numbers["mean"]
        assert [band.std for band in card.bands] == numbers["std"]


@pytest.mark.parametrize(("rows", "cols"), [(14, 14), (1, 3), (16, 9), (30, 14)])
def test_positions_of_another_grid_are_those_of_pretraining_resized(rows: int, cols: int) -> None:
    native = torch.from_numpy(position_table(2, 14, 14, 14, 32)).view(2, 14, 14, 32).permute(0, 3, 1, 2)
    wanted = F.interpolate(native, (rows, cols), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    ours = torch.from_numpy(position_table(2, rows, cols, 14, 32)).view(2, rows, cols, 32)
    torch.testing.assert_close(ours, wanted, atol=1e-5, rtol=0)


def time(*days: float) -> Tensor:
    return torch.tensor([[[2023.0, day, UNKNOWN]] for day in days])


def place(*latitudes: float) -> Tensor:
    return torch.tensor([[latitude, 8.5] for latitude in latitudes])


@pytest.mark.parametrize(
    ("known", "unknown"),
    [
        (Scene(time=time(10, 200)), Scene(time=time(10, UNKNOWN))),
        (Scene(place=place(47, -20)), Scene(place=place(47, UNKNOWN))),
        (Scene(time(10, 200), place(47, 47)), Scene(time(10, UNKNOWN), place(47, 47))),
    ],
)
def test_what_is_unknown_of_one_chip_is_left_out_of_that_chip_only(known: Scene, unknown: Scene) -> None:
    backbone, x = tiny(TL), torch.rand(2, 6, 32, 32)
    without = Scene(place=known.place) if known.time is not None else Scene()
    told, partly, untold = (backbone(x, 30.0, scene)[-1] for scene in (known, unknown, without))
    torch.testing.assert_close(partly[0], told[0])
    torch.testing.assert_close(partly[1], untold[1])
    assert all((told[i] - untold[i]).abs().max() > 1e-3 for i in (0, 1))


def test_a_date_without_a_day_leaves_the_time_of_its_chip_out() -> None:
    backbone, x = tiny(TL, frames=2), torch.rand(1, 12, 32, 32)
    half = Scene(time=torch.tensor([[[2023.0, 10.0, 0.0], [2023.0, UNKNOWN, 0.0]]]))
    torch.testing.assert_close(backbone(x, 30.0, half)[-1], backbone(x)[-1])


def test_a_network_without_metadata_ignores_the_scene() -> None:
    backbone, x = tiny(PLAIN), torch.rand(1, 6, 32, 32)
    torch.testing.assert_close(backbone(x, 30.0, Scene(time(10), place(47)))[-1], backbone(x)[-1])
    assert BACKBONES[PLAIN].metadata == () and BACKBONES[TL].metadata == ("time", "place")


def test_a_band_that_is_left_out_is_a_band_at_its_mean() -> None:
    some, every = tiny(bands=("NIR_NARROW", "RED")), tiny()
    x = torch.rand(2, 2, 32, 48)
    full = torch.zeros(2, 6, 32, 48)
    full[:, 3], full[:, 2] = x[:, 0], x[:, 1]
    for ours, wanted in zip(some(x), every(full), strict=True):
        torch.testing.assert_close(ours, wanted)


def test_weights_of_all_bands_fit_a_network_of_some() -> None:
    some = tiny(bands=("RED", "NIR_NARROW", "SWIR_1"))
    some.load_weights(published(tiny(), "encoder."))
    assert torch.equal(some.patch_embed.weight, tiny().patch_embed.weight)


@pytest.mark.parametrize("bands", [(), ("RED", "thermal")])
def test_unknown_bands_are_refused(bands: tuple[str, ...]) -> None:
    with pytest.raises(BandError, match="cannot use the bands") as caught:
        tiny(bands=bands)
    assert caught.value.code == "BANDS_MISSING"


def test_a_map_holds_date_after_date() -> None:
    """With attention silenced no date sees another, so that each has the features that it has by itself."""
    backbone, alone = tiny(frames=3), tiny()
    for block in [*backbone.layers, *alone.layers]:
        nn.init.zeros_(block.attn.proj.weight)
    x = torch.rand(1, 3, 6, 32, 48)
    maps = backbone(x.flatten(1, 2))
    assert [tuple(m.shape) for m in maps] == [(1, 3 * 32, 2, 3)] * 4 and backbone.out_channels == [96] * 4
    torch.testing.assert_close(maps[-1][:, :32], alone(x[:, 0])[-1])
    swapped = backbone(x[:, [0, 2, 1]].flatten(1, 2))
    torch.testing.assert_close(swapped[-1][:, :32], maps[-1][:, :32])
    assert (swapped[-1][:, 32:64] - maps[-1][:, 64:]).abs().max() > 1e-3, "the order of dates must count"


def test_what_is_added_to_patches_reaches_their_tokens_of_every_date() -> None:
    backbone = tiny(frames=3)
    update = torch.rand(1, 6, 32)
    by_date = backbone.spread(update, 18).view(1, 3, 6, 32)
    assert all(torch.equal(by_date[:, t], update) for t in range(3))


def test_a_chip_that_is_no_multiple_of_the_patch_is_seen_whole() -> None:
    backbone, x = tiny(), torch.rand(1, 6, 45, 70)
    padded = F.pad(x, (0, 10, 0, 3), mode="replicate")
    assert backbone(x)[-1].shape[-2:] == (3, 5)
    torch.testing.assert_close(backbone(x)[-1], backbone(padded)[-1])


def test_several_dates_are_exported_with_any_number_of_chips() -> None:
    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = tiny(TL, frames=2)

        def forward(self, x: Tensor) -> list[Tensor]:
            scene = Scene(torch.tensor([[[2023.0, 10.0, 0.0], [2023.0, 200.0, 0.0]]]), place(47))
            return self.backbone(x, 30.0, scene)

    model, x = Told().eval(), torch.rand(3, 12, 45, 70)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (x[:2],), dynamic_shapes={"x": {0: batch}}).module()
    for count in (1, 3):
        torch.testing.assert_close(exported(x[:count])[-1], model(x[:count])[-1])


def published(backbone: PrithviBackbone, prefix: str) -> dict[str, Tensor]:
    """A network's tensors as a published file names them, without its decoder."""
    named = {
        "patch_embed.": "patch_embed.proj.", "layers.": "blocks.", "time_scale": "temporal_embed_enc.scale",
        "place_scale": "location_embed_enc.scale",
    }  # fmt: skip
    state = dict(backbone.state_dict())
    for own, theirs in named.items():
        state = {key.replace(own, theirs) if key.startswith(own) else key: value for key, value in state.items()}
    for key in [key for key in state if ".attn.q." in key]:
        parts = [state.pop(key.replace(".q.", f".{part}.")) for part in "qkv"]
        state[key.replace(".q.", ".qkv.")] = torch.cat(parts)
    state["patch_embed.proj.weight"] = state["patch_embed.proj.weight"].unsqueeze(2)
    return {f"{prefix}{key}": value for key, value in state.items()}


DECODERS = {
    "": ("mask_token", "decoder_embed.weight", "decoder_pos_embed", "decoder_blocks.0.attn.qkv.weight",
         "decoder_norm.bias", "decoder_pred.bias"),
    "encoder.": ("decoder.mask_token", "decoder.decoder_embed.weight", "decoder.decoder_blocks.0.attn.qkv.weight",
                 "decoder.temporal_embed_dec.scale", "decoder.location_embed_dec.scale"),
}  # fmt: skip


@pytest.mark.parametrize("decoder", [True, False], ids=["whole", "encoder alone"])
@pytest.mark.parametrize("legacy", ["", "_timm_module."], ids=["", "legacy"])
@pytest.mark.parametrize(("name", "prefix"), [(PLAIN, ""), (PLAIN, "encoder."), (TL, "encoder.")])
def test_published_files_of_both_versions_are_taken(name: str, prefix: str, legacy: str, decoder: bool) -> None:
    trained = tiny(name)
    for parameter in trained.parameters():
        nn.init.normal_(parameter, std=0.1)
    state = published(trained, prefix + legacy) | {f"{prefix}{legacy}pos_embed": torch.rand(1, 785, 32)}
    if decoder:
        state |= {key: torch.rand(3) for key in DECODERS[prefix]}
    loaded, x = tiny(name), torch.rand(1, 6, 32, 32)
    loaded.load_weights(state)
    scene = Scene(time(100), place(47))
    assert torch.equal(loaded(x, 30.0, scene)[-1], trained(x, 30.0, scene)[-1])


def other(state: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
    """A file that must not be taken, made of one that would be."""
    if kind == "half of it":
        return {key: value for key, value in state.items() if "blocks.3" not in key}
    if kind == "an unknown tensor":
        return {**state, "encoder.register_tokens": torch.zeros(1, 4, 32)}
    if kind == "the decoder alone":
        return dict.fromkeys(DECODERS["encoder."], torch.rand(3))
    if kind == "another patch":
        return {**state, "encoder.patch_embed.proj.weight": torch.zeros(32, 6, 1, 14, 14)}
    if kind == "more dates in a patch":
        return {**state, "encoder.patch_embed.proj.weight": torch.zeros(32, 6, 2, 16, 16)}
    return published(tiny(depth=5) if kind == "a deeper one" else tiny(TL), "encoder.")


@pytest.mark.parametrize(
    "kind",
    ["half of it", "an unknown tensor", "the decoder alone", "another patch", "more dates in a patch", "a deeper one",
     "one with time and place"],
)  # fmt: skip
def test_a_file_of_something_else_is_refused(kind: str) -> None:
    with pytest.raises(WeightsError, match="does not hold the weights of prithvi_eo_v2_300") as caught:
        tiny().load_weights(other(published(tiny(), "encoder."), kind))
    assert caught.value.code == "WEIGHTS_KEYS"


def test_a_file_without_time_and_place_is_no_tl_file() -> None:
    with pytest.raises(WeightsError, match="place_scale is missing"):
        tiny(TL).load_weights(published(tiny(), "encoder."))


@pytest.mark.parametrize("card", [c for c in BACKBONES if c.name.startswith("prithvi")], ids=lambda card: card.name)
def test_the_real_sizes_have_the_parameters_that_the_card_says(card: BackboneCard) -> None:
    with torch.device("meta"):
        made = build_backbone(card, BANDS, [])
    millions = sum(p.numel() for p in made.parameters()) / 1e6
    assert millions == pytest.approx(card.parameters_m, rel=0.02)
