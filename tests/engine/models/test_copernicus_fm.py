"""Copernicus-FM: the authors' network, told bands, place, day and pixel size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import reference
import torch
from geopeft.errors import BandError, WeightsError
from geopeft.models.backbones import BACKBONES
from geopeft.models.backbones.backbone import Scene
from geopeft.models.backbones.copernicus_fm import USUAL_WIDTH_NM, CopernicusFm, cubic_matrix, width_nm
from geopeft.models.segmentation import build_backbone
from torch import Tensor
from torch.nn import functional as F

CASES = ("s2_4band_96_interp", "s2_4band_kernel4_28", "s2_4band_meta_56", "s2_4band_nometa_56", "variable_language_56")
FOUR_UM = (0.49, 0.56, 0.665, 0.842)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def network(
    folder: Path, state: dict[str, Tensor] | None = None, patch_px: int = 8, told_in_words: bool = False
) -> CopernicusFm:
    kwargs = reference.config(folder)["kwargs"]
    sizes = kwargs["embed_dim"], kwargs["depth"], kwargs["num_heads"]
    pixels = patch_px, kwargs["patch_size"], kwargs["img_size"]
    made = CopernicusFm("copernicus_fm", sizes, pixels, kwargs["hyper_dim"], told_in_words)
    made.load_weights(reference.weights(folder) if state is None else state)
    if not told_in_words:
        made.set_wavelengths(FOUR_UM)
    return made.eval()


@pytest.mark.parametrize("case", CASES)
def test_it_gives_what_the_reference_gives(
    shared: Path, case: str, record_property: Callable[[str, object], None]
) -> None:
    folder = shared / "fixtures" / "copernicus_fm"
    assert reference.cases(folder) == list(CASES)
    given, state = reference.inputs(folder, case), reference.weights(folder)
    words = given.get("language_embed")
    made = network(folder, patch_px=int(given["kernel_size"]), told_in_words=words is not None)
    if words is not None:
        made.set_words(words[None])
    else:
        made.waves = made.encode_bands(given["wavelengths_nm"].tolist(), given["bandwidths_nm"].tolist())
    with torch.no_grad():
        tokens = made.embed_with(given["image"], given["metadata"])
        ours = {"tokens_in": tokens}
        for i in range(len(made.blocks)):
            tokens = ours[f"block{i + 1}"] = made.run_block(i, tokens)
        ours["block4_unnormed"] = made.finish(tokens)
        norm = state["fc_norm.weight"], state["fc_norm.bias"]
        ours["pooled_fc_norm"] = F.layer_norm(tokens[:, 1:].mean(1), (made.dim,), *norm)
    difference = reference.largest_difference(ours, reference.expected(folder, case))
    record_property("difference", difference)
    assert difference < reference.TOLERANCE


def test_scene_and_pixel_size_become_the_facts_of_the_reference(shared: Path) -> None:
    """The fixture's 47.37 N, 8.54 E on day 19 523, the 15th of June 2023, patches of 8 px at 10 m."""
    folder = shared / "fixtures" / "copernicus_fm"
    made, given = network(folder), reference.inputs(folder, "s2_4band_meta_56")
    scene = Scene(torch.tensor([[[2023.0, 166.0, 10.5]]]), torch.tensor([[47.37, 8.54]]))
    with torch.no_grad():
        ours = {"tokens_in": made.embed(given["image"], 10.0, scene)}
    wanted = reference.expected(folder, "s2_4band_meta_56")["tokens_in"]
    assert reference.largest_difference(ours, {"tokens_in": wanted}) < reference.TOLERANCE


def test_what_a_sample_does_not_know_leaves_the_others_alone(shared: Path) -> None:
    made, x = network(shared / "fixtures" / "copernicus_fm"), torch.randn(1, 4, 16, 16).expand(2, -1, -1, -1)
    nan = float("nan")
    known, unknown = (2023.0, 166.0, 10.5), (nan, nan, nan)
    mixed = Scene(torch.tensor([[known], [unknown]]), torch.tensor([(47.37, nan), (47.37, 8.54)]))
    with torch.no_grad():
        both = made.embed(x, 10.0, mixed)
        first = made.embed(x[:1], 10.0, Scene(torch.tensor([[known]])))
        second = made.embed(x[:1], 10.0, Scene(None, torch.tensor([(47.37, 8.54)])))
        nothing = made.embed(x[:1], 10.0, None)
    assert torch.isfinite(both).all()
    torch.testing.assert_close(both, torch.cat([first, second]))
    assert (first - nothing).abs().max() > 1e-3 and (second - nothing).abs().max() > 1e-3


def test_the_embedding_that_is_not_in_use_may_be_missing(shared: Path) -> None:
    folder = shared / "fixtures" / "copernicus_fm"
    state = {
        k: v for k, v in reference.weights(folder).items() if not k.startswith(("patch_embed_variable", "fc_norm"))
    }
    wanted, own = network(folder).state_dict(), network(folder, state).state_dict()
    assert all(torch.equal(own[key], value) for key, value in wanted.items())
    with pytest.raises(WeightsError):
        network(folder, state, told_in_words=True)


def test_half_a_checkpoint_and_another_networks_are_refused(shared: Path) -> None:
    folder = shared / "fixtures" / "copernicus_fm"
    half = {key: value for key, value in reference.weights(folder).items() if key != "time_token"}
    for wrong in (half, reference.weights(shared / "fixtures" / "dofa_v1"), {}):
        with pytest.raises(WeightsError) as caught:
            network(folder, wrong)
        assert caught.value.code == "WEIGHTS_KEYS"


def test_bands_in_another_order_are_the_same_image_and_fewer_bands_another(shared: Path) -> None:
    made, x, order = network(shared / "fixtures" / "copernicus_fm"), torch.randn(1, 4, 40, 24), [2, 0, 3, 1]
    with torch.no_grad():
        wanted = made(x)
        made.set_wavelengths([FOUR_UM[i] for i in order])
        shuffled = made(x[:, order])
        made.set_wavelengths(FOUR_UM[:2])
        fewer = made(x[:, :2])
    for own, other, less in zip(shuffled, wanted, fewer, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)
        assert less.shape == other.shape and (less - other).abs().max() > 1e-4


def test_bandwidths_are_sentinel_2s_and_a_usual_one_elsewhere(shared: Path) -> None:
    assert [width_nm(um) for um in FOUR_UM] == [65, 35, 30, 115]
    assert (width_nm(0.865), width_nm(2.19), width_nm(1.05)) == (20, 180, USUAL_WIDTH_NM)
    made = network(shared / "fixtures" / "copernicus_fm")
    torch.testing.assert_close(made.waves, made.encode_bands((490, 560, 665, 842), (65, 35, 30, 115)))


@pytest.mark.parametrize(("size", "count"), [(14, 9), (14, 31), (7, 7), (16, 8), (16, 5)])
def test_cubic_resizing_is_that_of_pictures(size: int, count: int) -> None:
    x = torch.randn(1, 1, size, size)
    matrix = torch.from_numpy(cubic_matrix(size, count))
    wanted = F.interpolate(x, size=(count, count), mode="bicubic", antialias=True, align_corners=False)
    torch.testing.assert_close(matrix @ x @ matrix.T, wanted, atol=1e-5, rtol=1e-5)


def test_without_an_optical_band_it_is_refused() -> None:
    with pytest.raises(BandError) as caught:
        build_backbone(BACKBONES["copernicus_fm_base"], ("a",), [])
    assert caught.value.code == "BANDS_MISSING"
