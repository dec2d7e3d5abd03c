"""Chips, the places they are drawn from, and which of them are held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import rasterio
import shapely
from geopeft.data.bands import select_bands
from geopeft.data.chips import ChipReader, ChipSampler, Site, covering_chips, find_sites, turn
from geopeft.data.few_windows import Few
from geopeft.data.labels import IGNORE, read_labels
from geopeft.data.raster import describe
from geopeft.data.split import split_by_blocks
from geopeft.events import Reporter

Make = Callable[..., Path]
SIZE = 600
BOXES = [("a" if n % 2 else "b", (40 * n, 30, 40 * n + 12, 30 + 4 * (n + 1))) for n in range(14)]


@pytest.fixture
def reader(tmp_path: Path, make_raster: Make, make_labels: Make) -> Iterator[ChipReader]:
    """A raster whose value is its row * 1000 + its column, with boxes of two classes, over several cached blocks."""
    rows, cols = np.mgrid[0:SIZE, 0:SIZE]
    raster = make_raster((rows * 1000 + cols).astype(np.float32)[None])
    with rasterio.open(raster) as opened_raster:
        corners = [(opened_raster.xy(r1, c0, "ul"), opened_raster.xy(r0, c1, "ul")) for _, (r0, c0, r1, c1) in BOXES]
    labels = make_labels([shapely.box(*low, *high) for low, high in corners], [name for name, _ in BOXES])
    info = describe(str(raster))
    found = read_labels(str(labels), "class", [info], reporter=Reporter())
    with ChipReader([info], [select_bands(info, ())], found) as opened:
        yield opened


def test_a_chip_holds_the_pixels_of_its_place(reader: ChipReader) -> None:
    chip = reader.read(0, 250, 240, 40, 50)
    assert chip.valid.all()
    assert chip.values[0, 0, 0] == 250_240
    assert chip.values[0, -1, -1] == 289_289


def test_beyond_the_raster_nothing_is_valid(reader: ChipReader) -> None:
    chip = reader.read(0, -10, SIZE - 20, 40, 40)
    assert chip.valid.sum() == 30 * 20
    assert chip.values[0, 10, 0] == SIZE - 20
    assert (chip.class_ids[~chip.valid] == IGNORE).all()


def test_every_shape_is_a_site_with_its_pixels(reader: ChipReader) -> None:
    sites = find_sites(reader, max_points=20)
    assert [site.pixels for site in sorted(sites, key=lambda s: s.points[0, 0])] == [
        (r1 - r0) * (c1 - c0) for _, (r0, c0, r1, c1) in BOXES
    ]
    assert max(len(site.points) for site in sites) == 20
    for site in sites:
        for row, col in site.points:
            assert reader.read(0, row, col, 1, 1).class_ids[0, 0] == site.class_index


def test_both_classes_are_drawn_equally_often(reader: ChipReader) -> None:
    sites = find_sites(reader)
    few = [site for site in sites if site.class_index == 0][:1] + [site for site in sites if site.class_index == 1]
    sampler = ChipSampler(reader, few, [], 16, seed=1)
    seen = np.zeros(2)
    for _ in range(150):
        ids = sampler.draw(1).class_ids
        seen[np.unique(ids[ids != IGNORE])] += 1
    assert seen[0] == pytest.approx(75, abs=20)


@pytest.mark.fault("L34")
def test_pixels_of_held_out_places_never_teach(reader: ChipReader) -> None:
    sites = find_sites(reader)
    held = [site for site in sites if site.group % 3 == 0]
    sampler = ChipSampler(reader, sites, [(s.raster_index, s.group) for s in held], 64, seed=0)
    taught: set[float] = set()
    for _ in range(60):
        batch = sampler.draw(4)
        taught |= set(batch.values[:, 0][batch.class_ids != IGNORE].tolist())
    hidden = {float(row * 1000 + col) for site in held for row, col in site.points}
    assert taught
    assert not taught & hidden


def test_covering_chips_are_labelled_by_the_sites_alone(reader: ChipReader) -> None:
    sites = find_sites(reader)
    chosen = sites[::2]
    chips = covering_chips(reader, chosen, 32, 1000, seed=0)
    labelled = sum(int((chip.class_ids != IGNORE).sum()) for chip, _ in chips)
    assert labelled == sum(site.pixels for site in chosen)
    assert len(covering_chips(reader, chosen, 32, 3, seed=0)) == 3


def test_the_eight_turns_are_the_symmetries_of_the_square() -> None:
    square = np.arange(9).reshape(1, 3, 3)
    turned = {turn(square, n).tobytes() for n in range(8)}
    assert len(turned) == 8
    assert np.array_equal(turn(square, 0), square)
    assert all(turn(square, n)[0, 1, 1] == 4 for n in range(8))


def sites_on_a_grid(count: int, classes: int, pixels: int = 30) -> list[Site]:
    return [
        Site(0, n, n % classes, np.array([[200 * (n // 6), 200 * (n % 6)]], np.int32), pixels) for n in range(count)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_about_a_quarter_of_each_class_is_held_out_in_whole_blocks(seed: int) -> None:
    sites = sites_on_a_grid(36, 3)
    split = split_by_blocks(sites, 64, seed)
    assert len(split.training) + len(split.validation) == 36
    for class_index in range(3):
        held = sum(site.class_index == class_index for site in split.validation)
        assert 1 <= held <= 4
    assert not {s.group for s in split.training} & {s.group for s in split.validation}


def test_a_class_with_two_places_keeps_both() -> None:
    two = [Site(0, 90 + n, 1, np.array([[5000, 900 * n]]), pixels) for n, pixels in enumerate((4, 900))]
    sites = [*sites_on_a_grid(12, 1), *two]
    for seed in range(10):
        split = split_by_blocks(sites, 64, seed)
        assert split.validation
        assert sum(site.class_index == 1 for site in split.training) == 2


def test_places_side_by_side_are_not_parted() -> None:
    near = [Site(0, n, n % 2, np.array([[10 + n, 10]]), 9) for n in range(8)]
    split = split_by_blocks(near, 64, 0)
    assert not split.validation


def test_kept_chips_come_from_few_windows_and_the_rest_from_anywhere(reader: ChipReader) -> None:
    sites = find_sites(reader)
    sampler = ChipSampler(reader, sites, [], 16, seed=1, few=Few(10, 120))
    few = {mark for _ in range(30) for mark in sampler.draw(4).marks}
    assert len(few) <= 10 + len(sites)
    rest = {mark for _ in range(30) for mark in sampler.draw(4).marks}
    assert len(rest) > 100
    always = ChipSampler(reader, sites, [], 16, seed=1, few=Few(10))
    assert len({mark for _ in range(60) for mark in always.draw(4).marks}) <= 10 + len(sites)


def test_chips_of_few_windows_hold_what_their_mark_says(reader: ChipReader) -> None:
    batch = ChipSampler(reader, find_sites(reader), [], 16, seed=1, few=Few(10)).draw(8)
    for at, (raster, row, col, number) in enumerate(batch.marks):
        chip = reader.read(raster, row, col, 16, 16)
        assert np.array_equal(batch.values[at], turn(chip.values, number))
        assert np.array_equal(batch.class_ids[at], turn(chip.class_ids, number))
        assert (batch.class_ids[at] != IGNORE).any()


def test_drawing_goes_on_from_its_state_behind_the_kept_chips_too(reader: ChipReader) -> None:
    whole = ChipSampler(reader, find_sites(reader), [], 16, seed=1, few=Few(10, 8))
    first = [whole.draw(4).marks for _ in range(4)]
    again = ChipSampler(reader, find_sites(reader), [], 16, seed=1, few=Few(10, 8))
    assert again.draw(4).marks == first[0]
    state = again.random_state
    later = ChipSampler(reader, find_sites(reader), [], 16, seed=5, few=Few(10, 8))
    later.random_state = state
    assert [later.draw(4).marks for _ in range(3)] == first[1:]
