"""What is hidden, what counts, and what teachers are asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import MakeRaster  # type: ignore[import-not-found]
from geopeft import pretext
from geopeft.data.raster import band_statistics, describe
from geopeft.data.unlabelled import Chips, Scene, SceneReader
from geopeft.events import Reporter
from geopeft.models.backbones import BACKBONES
from geopeft.models.pretext_heads import Following, Reconstruction, grid_size
from geopeft.models.segmentation import build_backbone
from geopeft.pretext import Batch, Student, Task, View, masks, rebuild_loss


def test_every_other_chip_is_masked_in_squares() -> None:
    mask = masks(np.random.default_rng(0), 4, 128)
    shares = mask.mean((1, 2))
    assert sorted(np.round(shares, 2)) == [0, 0, 0.59, 0.59] and (shares[0] > 0) != (shares[1] > 0)
    squares = mask.reshape(4, 8, 16, 8, 16)
    assert (squares == squares[:, :, :1, :, :1]).all()


def test_only_wanted_cells_count_and_nodata_does_not_pull_the_mean() -> None:
    values, valid = torch.zeros(1, 1, 16, 16), torch.ones(1, 1, 16, 16, dtype=torch.bool)
    values[..., :4, :4] = 2
    valid[..., 0, :] = False
    values = values * valid
    wanted = valid.clone()
    wanted[..., 8:, :] = False
    rebuilt = torch.nn.functional.adaptive_avg_pool2d(values, 4) / 0.75
    rebuilt[..., 0, :] += 100  # cells with nodata are not wanted throughout
    rebuilt[..., 2:, :] += 100  # nor are these wanted at all
    assert rebuild_loss(rebuilt, values, valid, wanted) == pytest.approx(0.0)
    rebuilt[..., 1, 0] += 2
    assert rebuild_loss(rebuilt, values, valid, wanted) == pytest.approx(2 / 4)


@pytest.fixture
def task(make_raster: MakeRaster) -> Task:
    names = ("blue", "green", "red", "nir")
    values = np.random.default_rng(0).integers(0, 255, (4, 256, 256)).astype(np.uint8)
    info = describe(str(make_raster(values, names=names)))
    scene = Scene(info, info.bands, band_statistics(info, [1, 2, 3, 4]), 65536.0)
    backbone = build_backbone(BACKBONES["geopeft_small"], names, (0.49, 0.56, 0.665, 0.842)).eval()
    student = Student(backbone, "full", (View((), (), ()),), True, 128, None)
    return Task(student, (), SceneReader([scene], 0), Reporter(), 0)


def test_what_is_rebuilt_was_not_shown(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """Masked pixels are 0 in the input; bands that are not shown count everywhere, the others where they are masked."""
    asked: list[torch.Tensor] = []
    shown: list[torch.Tensor] = []
    real = pretext.rebuild_loss

    def asks(*args: torch.Tensor) -> torch.Tensor:
        asked.append(args[3])
        return real(*args)

    monkeypatch.setattr(pretext, "rebuild_loss", asks)
    task.student.backbone.register_forward_pre_hook(lambda module, args: shown.append(args[0]))
    values = np.random.default_rng(1).normal(3, 0.1, (2, 4, 64, 64)).astype(np.float32)
    every = np.ones((2, 4, 64, 64), bool)
    batch = Batch(0, (0, 1, 2, 3), (3, 1), Chips(values, every, every, 10.0))
    with torch.no_grad():
        task.losses(batch, np.random.default_rng(0), jitter=False)
    hidden = shown[0] == 0
    assert 0.2 < hidden.float().mean() < 0.4
    assert torch.equal(hidden[:, 0], asked[0][:, 3]) and torch.equal(hidden[:, 1], asked[0][:, 1])
    assert torch.equal(shown[0][~hidden], torch.from_numpy(values)[:, [3, 1]][~hidden])
    assert asked[0][:, [0, 2]].all()


def test_bands_are_hidden_at_random_and_red_green_and_blue_come_alone(task: Task) -> None:
    seen = [task.draw(np.random.default_rng(n), 1)[0].seen for n in range(60)]
    assert 8 < seen.count((2, 1, 0)) < 30 and seen.count((0, 1, 2, 3)) > 8
    assert {len(bands) for bands in seen} == {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("strides", "expected"), [((2, 4, 8, 16, 32), (4, 4)), ((4,) * 4, (4, 4)), ((16,), (16, 4)), ((14,), (14, 7))]
)
def test_cells_are_a_few_pixels_whatever_the_strides(strides: tuple[int, ...], expected: tuple[int, int]) -> None:
    assert grid_size(strides) == expected
    head, side = Reconstruction([8] * len(strides), strides), 14 * 16
    maps = [torch.randn(2, 8, side // s, side // s) for s in strides]
    assert head(maps, (0.5, 0.6, 2.0)).shape == (2, 3, side // expected[1], side // expected[1])


def test_a_follower_starts_at_the_same_map_or_at_the_teachers_mean() -> None:
    maps = [torch.randn(2, 8, 16, 16), torch.randn(2, 4, 8, 8)]
    mean, std = torch.arange(4.0), torch.full((4,), 2.0)
    same = Following((8, 4), 1, mean, std)
    torch.testing.assert_close(same(maps, (8, 8)), maps[1])
    other = Following((8, 4), -1, mean, std)
    torch.testing.assert_close(other(maps, (4, 4)), mean.view(1, -1, 1, 1).expand(2, 4, 4, 4))
    counted = torch.zeros(2, 8, 8)
    counted[0, 0, 0] = 1
    wanted = maps[1].clone()
    wanted[1] += 50
    wanted[0, :, 0, 0] += 8
    # Four deviations: smooth L1 is 4 - 0.5.
    assert float(same.loss(maps, wanted, counted)) == pytest.approx(3.5)


def test_a_view_brings_standardised_values_to_the_networks_units() -> None:
    view = View((2, 0), (10.0, 2.0), (5.0, -1.0))
    values: Any = torch.tensor([[[[1.0]], [[2.0]], [[3.0]]]])
    out = view(values, (5, 2, 0))
    assert out.flatten().tolist() == [2 * 10 + 5, 3 * 2 - 1]


def test_tiles_come_together_again(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 64, 64)
    tiles = pretext._tiled(x, 2)
    assert torch.equal(tiles[1], x[0, :, :32, 32:]) and torch.equal(pretext._joined(tiles, 2), x)
