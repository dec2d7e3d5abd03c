"""Texture features: known values, and the same in a window as in the whole raster."""

import numpy as np
import pytest
import torch
from geopeft.models.spec import InputBand
from geopeft.models.texture import CACHED_VALUES, Texture, box_mean, box_means, describe_texture, principal_components

RED_NIR = (
    InputBand(name="r", common="red", scale=1e-4, mean=0.1, std=0.05),
    InputBand(name="n", common="nir", scale=1e-4, mean=0.3, std=0.1),
)


def test_ratios_windows_and_bands_are_what_they_are_called() -> None:
    spec = describe_texture(RED_NIR, 10)
    assert (spec.windows_px, spec.ratios, spec.components) == ((3, 5, 9), ((1, 0),), 2)
    assert describe_texture(RED_NIR, 0.5).windows_px[-1] > 9
    raw = torch.full((1, 2, 20, 20), 1000.0)
    raw[:, 1] = 3000
    raw[0, 0, 10, 10] = 1900
    features = Texture(spec, RED_NIR, torch.eye(2))(raw)
    assert features.shape == (1, 2 + 1 + 2 * 3 * 2, 20, 20)
    assert features[0, :2, 10, 10].tolist() == pytest.approx([1.8, 0], abs=1e-5)
    assert float(features[0, 2, 0, 0]) == pytest.approx(0.2 / 0.401, abs=1e-4)
    mean, deviation = float(features[0, 3, 10, 10]), float(features[0, 5, 10, 10])
    assert mean == pytest.approx(1.8 / 9, abs=1e-5)
    assert deviation == pytest.approx(1.8 * np.sqrt(1 / 9 - 1 / 81), abs=1e-4)


def test_a_window_is_cut_at_the_edge_of_the_chip() -> None:
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert float(box_mean(x, 3)[0, 0, 0, 0]) == pytest.approx((0 + 1 + 4 + 5) / 4)
    assert float(box_mean(x, 3)[0, 0, 1, 1]) == pytest.approx(5)


@pytest.mark.parametrize("shape", [(2, 3, 40, 33), (1, 2, CACHED_VALUES // 300, 310), (1, 1, 5, 2), (1, 1, 1, 1)])
def test_all_windows_at_once_give_what_pooling_gives(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for windows in ((3, 5, 9), (3, 7, 17), (1,), ()):
        for found, window in zip(box_means(x, windows), windows, strict=True):
            assert torch.allclose(found, box_mean(x, window), atol=1e-6)


def test_beyond_its_reach_a_window_of_a_raster_gives_the_same() -> None:
    texture = Texture(describe_texture(RED_NIR, 1), RED_NIR, torch.eye(2))
    raw = torch.rand(1, 2, 60, 60) * 3000
    reach = texture.radius_px
    whole, part = texture(raw), texture(raw[..., 10:50, 10:50])
    inside = part[..., reach:-reach, reach:-reach]
    assert torch.allclose(inside, whole[..., 10 + reach : 50 - reach, 10 + reach : 50 - reach], atol=1e-4)


def test_principal_components_are_uncorrelated_with_deviation_one() -> None:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.normal(size=(500, 3)) @ rng.normal(size=(3, 20))).float()
    projection = principal_components(pixels, 3)
    found = (pixels - pixels.mean(0)) @ projection.T
    assert torch.allclose(found.T @ found / 499, torch.eye(3), atol=1e-3)
    assert torch.equal(principal_components(pixels, 20), torch.eye(20))
