"""OlmoEarth v1 gives what olmoearth-pretrain-minimal 0.1.5 gives for the same weights and inputs.

Weights and inputs follow from a rule, a random generator seeded by the CRC-32 of the published name; olmoearth_v1.json
holds outputs of that package's encoder (64 dimensions, 4 blocks, 4 heads): of the last block 16 evenly spaced values of
the mean over its tokens (1, D, rows, cols), of the others 4 of the mean over all (1, D).
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from geopeft.errors import BandError, WeightsError
from geopeft.models.backbones import BACKBONES
from geopeft.models.backbones.backbone import Scene
from geopeft.models.backbones.olmoearth import TOKENS, OlmoEarthBackbone, build, enlarge, month_of
from torch import Tensor
from torch.nn import functional as F

CARD = BACKBONES["olmoearth_v1_nano"]
WANTED = json.loads((Path(__file__).parent / "olmoearth_v1.json").read_text("utf-8"))
TOLERANCE = 1e-5
S1 = TOKENS["s1"][2]
S2 = tuple(band for name, (_, _, bands) in TOKENS.items() if name != "s1" for band in bands)
TEN = TOKENS["s2_10m"][2] + TOKENS["s2_20m"][2]
# Name: bands, side in pixels, patch in pixels, month from 0, pixel size in metres.
CASES = {
    "s2_p4": (S2, 24, 4, 6, 10),
    "s2_p8_january_20m": (S2, 32, 8, 0, 20),
    "s2_s1_p4": (S2 + S1, 16, 4, 3, 10),
    "s1_p4": (S1, 16, 4, 9, 10),
    "s2_ten_bands_p4": (TEN, 16, 4, 6, 10),
    "s2_p2": (S2, 16, 2, 11, 10),
}
DIM, DEPTH, HEADS = 64, 4, 4


def drawn(key: str, shape: tuple[int, ...], std: float, mean: float = 0.0) -> Tensor:
    values = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape) * std + mean
    return torch.from_numpy(values.astype(np.float32))


def published(dim: int = DIM, depth: int = DEPTH) -> dict[str, Tensor]:
    """An encoder's state dict under the published names."""
    shapes: dict[str, tuple[int, ...]] = {"norm.weight": (dim,), "norm.bias": (dim,)}
    for i in range(depth):
        sizes = {f"attn.{part}": (dim, dim) for part in ("q", "k", "v", "proj")}
        for layer, size in {**sizes, "mlp.fc1": (4 * dim, dim), "mlp.fc2": (dim, 4 * dim)}.items():
            shapes |= {f"blocks.{i}.{layer}.weight": size, f"blocks.{i}.{layer}.bias": size[:1]}
        for norm in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{norm}.weight": (dim,), f"blocks.{i}.{norm}.bias": (dim,)}
    groups = [(mod, at, len(bands)) for mod, at, bands in TOKENS.values()] + [("landsat", 0, 1), ("landsat", 1, 10)]
    for mod, at, count in groups:
        start = f"patch_embeddings.per_modality_embeddings.{mod}.{mod}__{at}.proj"
        shapes |= {f"{start}.weight": (dim, count, 8, 8), f"{start}.bias": (dim,)}
    for mod, count in (("sentinel2_l2a", 3), ("sentinel1", 1), ("landsat", 2)):
        shapes[f"composite_encodings.per_modality_channel_embeddings.{mod}"] = (count, dim // 4)
    shapes |= {
        "project_and_aggregate.projection.0.weight": (dim, dim),
        "project_and_aggregate.projection.0.bias": (dim,),
    }
    state = {key: by_rule(key, shape) for key, shape in shapes.items()}
    angle = torch.arange(12) / 12 * 2 * torch.pi
    halves = [values[:, None].expand(-1, dim // 8) for values in (angle.sin(), angle.cos())]
    return state | {"composite_encodings.month_embed.weight": torch.cat(halves, dim=1)}


def by_rule(key: str, shape: tuple[int, ...]) -> Tensor:
    if "norm" in key:
        return drawn(key, shape, 0.1, 1.0 if key.endswith("weight") else 0.0)
    if "channel" in key:
        return drawn(key, shape, 0.5)
    return drawn(key, shape, float(np.prod(shape[1:])) ** -0.5 if len(shape) > 1 else 0.05)


def network(bands: tuple[str, ...], patch_px: int = 4, month: int = 6) -> OlmoEarthBackbone:
    torch.manual_seed(0)
    made = build(CARD, bands, dim=DIM, depth=DEPTH, heads=HEADS, patch_size_px=patch_px, month=month)
    made.load_weights(published())
    return made.eval()


def given(case: str) -> Tensor:
    bands, side, *_ = CASES[case]
    optical, radar = sum(band in S2 for band in bands), sum(band in S1 for band in bands)
    parts = [drawn(f"{case}/s2", (1, 12, side, side), 0.25, 0.5)[:, :optical]] if optical else []
    return torch.cat([*parts, *([drawn(f"{case}/s1", (1, 2, side, side), 0.25, 0.5)] if radar else [])], dim=1)


@pytest.mark.parametrize("case", CASES)
def test_every_output_of_the_authors_code_is_reproduced(
    case: str, record_property: Callable[[str, object], None]
) -> None:
    bands, _, patch_px, month, gsd_m = CASES[case]
    with torch.no_grad():
        maps = network(bands, patch_px, month)(given(case), gsd_m=float(gsd_m))
    ours = {f"block{i}": m.mean(dim=(2, 3)) for i, m in enumerate(maps[:-1], 1)} | {"final": maps[-1]}
    assert WANTED[case].keys() == ours.keys()
    largest = 0.0
    for name, wanted in WANTED[case].items():
        flat = ours[name].numpy().ravel()
        sampled = flat[np.linspace(0, flat.size - 1, len(wanted)).astype(int)]
        largest = max(largest, float(np.abs(sampled - wanted).max()))
    record_property("difference", largest)
    assert largest <= TOLERANCE


def test_the_cases_are_all_of_the_file() -> None:
    assert WANTED.keys() == CASES.keys()


def test_a_published_file_with_decoder_and_target_encoder_loads_and_half_of_one_is_refused() -> None:
    encoder = {f"encoder.{key}": value for key, value in published().items()}
    rest = {
        "encoder.composite_encodings.pos_embed": torch.zeros(12, 16),
        "target_encoder.norm.weight": torch.zeros(DIM),
        "decoder.norm.weight": torch.zeros(DIM),
        "encoder.patch_embeddings.per_modality_embeddings.srtm.srtm__0.proj.bias": torch.zeros(DIM),
    }
    backbone = build(CARD, S2, dim=DIM, depth=DEPTH, heads=HEADS)
    backbone.load_weights(encoder | rest)
    torch.testing.assert_close(backbone.norm.weight, encoder["encoder.norm.weight"])
    for wrong in (
        {key: value for key, value in encoder.items() if "blocks.3" not in key},
        {key: value for key, value in encoder.items() if "sentinel2_l2a__1" not in key},
        encoder | {"encoder.blocks.0.attn.rope_mixed_freqs": torch.zeros(3, 4, 8)},
    ):
        with pytest.raises(WeightsError, match="OlmoEarth") as error:
            backbone.load_weights(wrong)
        assert error.value.code == "WEIGHTS_KEYS"


def test_the_order_of_the_bands_does_not_matter() -> None:
    backbone, swapped = network(S2 + S1), network((S2 + S1)[::-1])
    x = torch.rand(1, 14, 16, 24)
    for a, b in zip(backbone(x), swapped(x.flip(1)), strict=True):
        torch.testing.assert_close(a, b)


def test_tokens_without_all_their_bands_take_part_only_where_none_is_complete() -> None:
    assert network(TEN + ("B01",)).tokens == ("s2_10m", "s2_20m")
    assert network(("B02", "B03", "B04", "B8A", "B11", "B12")).tokens == ("s2_10m", "s2_20m")
    assert network(("VV",)).tokens == ("s1",)
    assert network(S1 + ("B04",)).tokens == ("s1",)
    assert any(name.startswith("patches.s2_60m") for name in network(TEN).never_trained)
    assert {"channels.sentinel2_l2a", "patches.s1.weight"} & network(S1).never_trained == {"channels.sentinel2_l2a"}


def test_a_missing_band_is_a_copy_of_the_nearest_in_its_own_normalisation() -> None:
    value = torch.rand(1, 3, 16, 16) * 3000
    rows = {row.name: row for row in CARD.bands}

    def normalised(band: str, raw: Tensor) -> Tensor:
        return (raw - (rows[band].mean - 2 * rows[band].std)) / (4 * rows[band].std)

    given = torch.cat([normalised(band, value[:, i : i + 1]) for i, band in enumerate(("B02", "B03", "B04"))], dim=1)
    filled = torch.cat([given, normalised("B08", value[:, 2:])], dim=1)
    torch.testing.assert_close(network(("B02", "B03", "B04"))(given)[-1], network(TOKENS["s2_10m"][2])(filled)[-1])


def test_no_known_band_is_refused() -> None:
    with pytest.raises(BandError, match="none of the bands") as error:
        build(CARD, ("thermal",), dim=DIM, depth=DEPTH, heads=HEADS)
    assert error.value.code == "BANDS_MISSING"


def test_the_month_of_a_scene_counts_and_an_unknown_one_is_the_default() -> None:
    unknown = float("nan")
    days = [(2023, 1), (2023, 31), (2023, 32), (2023, 60), (2024, 60), (2024, 61), (2023, 365), (unknown, unknown)]
    scene = Scene(time=torch.tensor([[[year, day, 10.0]] for year, day in days]))
    assert month_of(scene, 6).tolist() == [0, 0, 1, 2, 1, 2, 11, 6]
    x = given("s2_p4").expand(2, -1, -1, -1)
    april_and_none = Scene(time=torch.tensor([[[2023.0, 100.0, 10.0]], [[unknown] * 3]]))
    last = network(S2)(x, scene=april_and_none)[-1]
    torch.testing.assert_close(last[:1], network(S2, month=3)(x[:1])[-1])
    torch.testing.assert_close(last[1:], network(S2, month=6)(x[:1])[-1])


@pytest.mark.parametrize("factor", [2, 4])
def test_chips_are_enlarged_as_torch_does_it(factor: int) -> None:
    x = torch.rand(1, 2, 5, 12)
    wanted = F.interpolate(x, scale_factor=factor, mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(enlarge(x, factor), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", ["nano", "tiny", "base"])
def test_the_cards_say_how_many_parameters_there_are_and_that_the_licence_is_not_open(size: str) -> None:
    card = BACKBONES[f"olmoearth_v1_{size}"]
    with torch.device("meta"):
        backbone = build(card, S2 + S1, **card.options)
    assert sum(p.numel() for p in backbone.parameters()) / 1e6 == pytest.approx(card.parameters_m, abs=0.01)
    assert card.restricted and card.licence == "OlmoEarth Artifact License"
