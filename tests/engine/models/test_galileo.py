"""Galileo gives the features of the reference implementation, with the official weights."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from geopeft.errors import BandError
from geopeft.models.backbones import BACKBONES
from geopeft.models.backbones.backbone import Scene
from geopeft.models.backbones.galileo import GalileoBackbone, build
from geopeft.models.backbones.galileo_encoder import GalileoEncoder, GalileoInput, GalileoTokens
from geopeft.models.cards.galileo import GALILEO_BANDS
from geopeft.models.weights import fetch, load_state

ALL_BANDS = tuple(band.name for band in GALILEO_BANDS)
TOLERANCE = 1e-4
CASES = (
    "s1_s2_ndvi_32px_p8",
    "s2_30px_p5_may",
    "s2_32px_p2_may",
    "s2_32px_p4_T3_mar_jul_oct",
    "s2_32px_p4_may",
    "s2_32px_p8_gsd20",
    "s2_32px_p8_jan",
    "s2_32px_p8_may",
    "s2_32px_p8_partial_mask",
    "s2_64px_p2_may",
    "s2_64px_p4_may",
    "s2_64px_p8_may",
    "s2_noswir_32px_p4",
    "s2_rgb_nir_only_32px_p8",
    "s2_srtm_era5_latlon_32px_p8",
)


@pytest.fixture(scope="module")
def arrays(shared: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    folder = shared / "fixtures" / "galileo_nano"
    with np.load(folder / "input.npz") as given, np.load(folder / "output.npz") as wanted:
        return dict(given), dict(wanted)


@pytest.fixture(scope="module")
def official(shared: Path) -> dict[str, torch.Tensor]:
    card = BACKBONES["galileo_nano"]
    return load_state(fetch(card, str(shared / "weights")).path, card)


@pytest.fixture(scope="module")
def encoder(official: dict[str, torch.Tensor]) -> GalileoEncoder:
    made = GalileoEncoder(128, 4, 8)
    made.load_state_dict(official)
    return made.eval()


def sample(values: torch.Tensor) -> np.ndarray:
    flat = values.numpy().ravel()
    return flat if flat.size <= 1024 else flat[np.linspace(0, flat.size - 1, 1024).astype(np.int64)]


def run_reference_case(encoder: GalileoEncoder, case: str, given: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """All outputs of a case, under the names of the fixture."""

    def array(name: str) -> torch.Tensor | None:
        return torch.from_numpy(given[f"{case}/{name}"]) if f"{case}/{name}" in given else None

    optional = [array(name) for name in ("sp_x", "sp_m", "t_x", "t_m", "st_x", "st_m")]
    s_t_x, s_t_m, months = array("s_t_x"), array("s_t_m"), array("months")
    assert s_t_x is not None and s_t_m is not None and months is not None
    with torch.no_grad():
        tokens = encoder(
            GalileoInput(s_t_x, s_t_m, months, *optional),
            int(given[f"{case}/patch_size"]),
            float(given[f"{case}/input_resolution_m"]),
        )
    maps = {f"map_block{k}_prenorm": mean_map(tokens.blocks[k - 1], tokens) for k in (1, 2, 3)}
    return {
        **maps,
        "s_t_tokens_normed": tokens.s_t,
        "s_t_tokens_prenorm": tokens.prenorm,
        "patch_embed_tokens": tokens.embedded,
        "sp_tokens_normed": tokens.sp,
        "t_tokens_normed": tokens.t,
        "st_tokens_normed": tokens.st,
        "map_mean_s_t": mean_map(tokens.s_t, tokens),
        "map_mean_s_t_prenorm": mean_map(tokens.prenorm, tokens),
        "global_mean": pooled(tokens, by_patch=False),
        "per_patch_all": pooled(tokens, by_patch=True),
    }


def mean_map(values: torch.Tensor, tokens: GalileoTokens) -> torch.Tensor:
    """Mean over time and the groups that are there: (B, h, w, D)."""
    there = tokens.seen["s_t"].flatten(0, 3).any(dim=0)
    return values[..., there, :].mean(dim=(3, 4))


def pooled(tokens: GalileoTokens, by_patch: bool) -> torch.Tensor:
    """Mean over the seen tokens of a sample, or of those that touch each patch."""
    batch, rows, cols = tokens.s_t.shape[:3]
    parts, seen = [], []
    for kind, values in (("s_t", tokens.s_t), ("sp", tokens.sp), ("t", tokens.t), ("st", tokens.st)):
        mask = tokens.seen[kind]
        if not by_patch:
            parts.append(values.flatten(1, -2))
            seen.append(mask.flatten(1))
        elif kind in ("s_t", "sp"):
            parts.append(values.flatten(1, 2).flatten(2, -2))
            seen.append(mask.flatten(1, 2).flatten(2))
        else:
            parts.append(values.flatten(1, -2)[:, None].expand(-1, rows * cols, -1, -1))
            seen.append(mask.flatten(1)[:, None].expand(-1, rows * cols, -1))
    every, used = torch.cat(parts, dim=-2), torch.cat(seen, dim=-1)[..., None]
    return (every * used).sum(dim=-2) / used.sum(dim=-2)


@pytest.mark.parametrize("case", CASES)
def test_every_output_of_the_reference_is_reproduced(case: str, encoder: GalileoEncoder, arrays) -> None:
    given, wanted = arrays
    ours = run_reference_case(encoder, case, given)
    names = [key.split("/")[1] for key in wanted if key.startswith(f"{case}/") and "#" not in key]
    assert names
    for name in names:
        assert list(ours[name].shape) == wanted[f"{case}/{name}#shape"].tolist(), name
        difference = np.abs(sample(ours[name]) - wanted[f"{case}/{name}"]).max()
        assert difference <= TOLERANCE, f"{name}: {difference}"


def test_the_cases_are_all_of_the_fixture(arrays) -> None:
    assert sorted({key.split("/")[0] for key in arrays[0]}) == sorted(CASES)


@pytest.mark.parametrize(
    "case", ["s2_32px_p8_may", "s2_32px_p4_may", "s2_64px_p2_may", "s2_30px_p5_may", "s2_32px_p8_gsd20",
             "s2_32px_p8_jan", "s2_noswir_32px_p4"],
)  # fmt: skip
def test_the_fast_path_gives_the_reference_maps(case: str, official, arrays) -> None:
    given, wanted = arrays
    seen = given[f"{case}/s_t_m"][0, 0, 0, 0] < 1
    bands = tuple(b for b in ALL_BANDS if seen[5] or b not in ("B11", "B12"))
    backbone = GalileoBackbone(
        bands,
        GalileoEncoder(128, 4, 8),
        int(given[f"{case}/patch_size"]),
        int(given[f"{case}/months"][0, 0]),
    )
    backbone.load_weights(official)
    x = torch.from_numpy(given[f"{case}/s_t_x"][:, :, :, 0, 2 : 2 + len(bands)]).permute(0, 3, 1, 2)
    with torch.no_grad():
        maps = backbone.eval()(x, gsd_m=float(given[f"{case}/input_resolution_m"]))
    names = ["map_block1_prenorm", "map_block2_prenorm", "map_block3_prenorm", "map_mean_s_t"]
    for name, ours in zip(names, maps, strict=True):
        if f"{case}/{name}" in wanted:
            difference = np.abs(sample(ours.permute(0, 2, 3, 1).contiguous()) - wanted[f"{case}/{name}"]).max()
            assert difference <= TOLERANCE, f"{name}: {difference}"


def tiny(bands: tuple[str, ...]) -> GalileoBackbone:
    torch.manual_seed(0)
    return build(BACKBONES["galileo_nano"], bands, dim=32, depth=4, heads=2).eval()


def test_the_order_of_the_bands_does_not_matter() -> None:
    backbone, swapped = tiny(ALL_BANDS), tiny(ALL_BANDS[::-1])
    x = torch.rand(1, 10, 16, 16)
    for a, b in zip(backbone(x), swapped(x.flip(1)), strict=True):
        torch.testing.assert_close(a, b)


def test_an_incomplete_group_is_left_out_beside_complete_ones() -> None:
    backbone = tiny(("B02", "B03", "B04", "B11"))
    assert backbone.groups == ("S2_RGB",)
    assert any("S2_SWIR" in name for name in backbone.never_trained)
    x = torch.rand(1, 4, 16, 16)
    changed = x.clone()
    changed[:, 3] += 1
    torch.testing.assert_close(backbone(x)[-1], backbone(changed)[-1])


def test_without_a_complete_group_missing_bands_are_at_their_mean() -> None:
    backbone = tiny(("B03", "B04"))
    assert backbone.groups == ("S2_RGB",)
    x = torch.rand(1, 2, 16, 16)
    with_mean = torch.cat([torch.full((1, 1, 16, 16), 0.5), x], dim=1)
    torch.testing.assert_close(backbone(x)[-1], tiny(("B02", "B03", "B04"))(with_mean)[-1])


def test_no_known_band_is_refused() -> None:
    with pytest.raises(BandError, match="none of the bands") as error:
        tiny(("thermal",))
    assert error.value.code == "BANDS_MISSING"


def test_pixel_size_changes_the_position_encoding() -> None:
    backbone, x = tiny(ALL_BANDS), torch.rand(1, 10, 16, 16)
    assert (backbone(x, gsd_m=10.0)[-1] - backbone(x, gsd_m=30.0)[-1]).abs().max() > 1e-4


def test_a_chip_that_is_no_multiple_of_the_patch_is_seen_whole() -> None:
    backbone, x = tiny(ALL_BANDS), torch.rand(1, 10, 13, 18)
    padded = torch.nn.functional.pad(x, (0, 2, 0, 3), mode="replicate")
    assert backbone(x)[-1].shape[-2:] == (4, 5)
    torch.testing.assert_close(backbone(x)[-1], backbone(padded)[-1])


def test_the_fast_path_takes_several_dates_with_their_months(official, arrays) -> None:
    given, wanted = arrays
    case = "s2_32px_p4_T3_mar_jul_oct"
    backbone = GalileoBackbone(ALL_BANDS, GalileoEncoder(128, 4, 8), 4, 0, frames=3)
    backbone.load_weights(official)
    x = torch.from_numpy(given[f"{case}/s_t_x"][..., 2:12]).permute(0, 3, 4, 1, 2).flatten(1, 2)
    months = given[f"{case}/months"][0]
    assert months.tolist() == [2, 6, 9]
    time = torch.tensor([[[2023, day, 12] for day in (75, 195, 290)]])
    with torch.no_grad():
        maps = backbone.eval()(x, float(given[f"{case}/input_resolution_m"]), Scene(time.expand(len(x), -1, -1)))
        without = backbone(x, float(given[f"{case}/input_resolution_m"]))
    names = ["map_block1_prenorm", "map_block2_prenorm", "map_block3_prenorm", "map_mean_s_t"]
    compared = 0
    for name, ours in zip(names, maps, strict=True):
        if f"{case}/{name}" in wanted:
            compared += 1
            difference = np.abs(sample(ours.permute(0, 2, 3, 1).contiguous()) - wanted[f"{case}/{name}"]).max()
            assert difference <= TOLERANCE, f"{name}: {difference}"
    assert compared
    assert (maps[-1] - without[-1]).abs().max() > 1e-3


def test_months_are_those_of_the_calendar_and_the_default_where_unknown() -> None:
    backbone = tiny(ALL_BANDS)
    days = [datetime(2023, 1, 1) + timedelta(n) for n in range(2 * 366)]
    time = torch.tensor([[[day.year, day.timetuple().tm_yday, 12]] for day in days], dtype=torch.float32)
    assert backbone._months(Scene(time))[:, 0].tolist() == [day.month - 1 for day in days]
    unknown = torch.full((2, 1, 3), torch.nan)
    assert backbone._months(Scene(unknown))[:, 0].tolist() == [6, 6]


def test_samples_of_one_batch_have_their_own_month() -> None:
    backbone, x = tiny(ALL_BANDS), torch.rand(1, 10, 16, 16).expand(3, -1, -1, -1)
    time = torch.tensor([[[2024, 15, 12]], [[2024, 196, 12]], [[torch.nan] * 3]])
    january, july, unknown = backbone(x, 10.0, Scene(time))[-1]
    plain = backbone(x[:1])[-1][0]
    assert (january - july).abs().max() > 1e-4
    torch.testing.assert_close(july, plain)
    torch.testing.assert_close(unknown, plain)
