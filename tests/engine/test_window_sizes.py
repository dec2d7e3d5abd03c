"""The windows that a raster is mapped in: they cover it, are no larger than needed, and fit the network."""

# ruff: noqa: F811, fixtures of another test file
from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from geopeft.errors import Canceled
from geopeft.events import Reporter
from geopeft.mapping.windows import Axis, Sizes, sizes_for, window_starts
from geopeft.runtime import Runtime
from test_predict import NAMES, model, run  # noqa: F401


@pytest.mark.parametrize("sizes", [Sizes(336, 32, 16), Sizes(48, 8, 4), Sizes(320, 32, 32), Sizes(96, 48, 96)])
def test_windows_cover_every_pixel_and_are_no_more_and_no_larger_than_needed(sizes: Sizes) -> None:
    for length in (1, sizes.window_px - 1, sizes.window_px, *range(sizes.window_px + 1, 2500, 17)):
        axis = Axis.of(length, sizes.window_px, sizes.overlap_px, sizes.grain_px)
        assert axis.starts[0] == 0 and axis.starts[-1] + axis.window_px == length
        assert len(axis) == len(window_starts(length, sizes.window_px, sizes.overlap_px))
        assert axis.window_px == length or axis.window_px % sizes.grain_px == 0
        shared = [a + axis.window_px - b for a, b in zip(axis.starts, axis.starts[1:], strict=False)]
        assert min(shared, default=sizes.overlap_px) >= sizes.overlap_px
        if sizes.grain_px <= axis.window_px - sizes.grain_px > sizes.overlap_px and len(axis) > 1:
            smaller = window_starts(length, axis.window_px - sizes.grain_px, sizes.overlap_px)
            assert len(smaller) > len(axis), "one grain less would not do"
        total = np.zeros(length)
        for number, start in enumerate(axis.starts):
            total[start : start + axis.window_px] += axis.weights(number)
        assert total.min() > 0


@pytest.mark.parametrize(
    ("chip", "patch", "transformer", "reach", "expected"),
    [
        (224, 16, True, 4, Sizes(336, 32, 16)),
        (32, 4, True, 4, Sizes(48, 8, 4)),
        (32, 4, True, 8, Sizes(48, 16, 4)),
        (256, 8, True, 4, Sizes(256, 32, 8)),
        (128, 32, False, 8, Sizes(320, 32, 32)),
        (256, 32, False, 8, Sizes(384, 32, 32)),
        (8, 16, True, 8, Sizes(12, 6, 12)),
    ],
)
def test_windows_suit_the_kind_of_network(
    chip: int, patch: int, transformer: bool, reach: int, expected: Sizes
) -> None:
    assert sizes_for(chip, patch, transformer, reach) == expected


class Stop(Reporter):
    """Cancels after some windows."""

    def progress(self, stage: str, current: int, *_: object, **__: object) -> None:
        if stage == "predict" and current > 3:
            raise Canceled


@pytest.fixture
def threads() -> Iterator[None]:
    """A processor of two cores, whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_windows_looked_at_beside_each_other_give_the_bytes_of_one_by_one(
    model: Path, make_raster: Callable[..., Path], tmp_path: Path, threads: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.random.default_rng(5).integers(1, 3000, (2, 260, 300)).astype(np.uint16)
    raster = make_raster(values, "wide.tif", names=NAMES, nodata=0)
    used, real = set(), Runtime.look

    def look(self: Runtime, *arguments: object) -> object:
        used.add(torch.get_num_threads())
        return real(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Runtime, "look", look)
    run(model, [raster], tmp_path / "two" / "map.tif", Reporter(), confidence=True)
    assert used == {1} and torch.get_num_threads() == 2
    torch.set_num_threads(1)
    run(model, [raster], tmp_path / "one" / "map.tif", Reporter(), confidence=True)
    for name in ("map.tif", "map_confidence.tif"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    torch.set_num_threads(2)
    with pytest.raises(Canceled):
        run(model, [raster], tmp_path / "cut" / "map.tif", Stop())
    assert torch.get_num_threads() == 2
