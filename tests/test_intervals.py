"""The intervals bench in short: on scenes whose truth is known, blocks tell it and random pixels do not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent / "bench"))

import _intervals_report as report  # type: ignore[import-not-found]
import _scenes  # type: ignore[import-not-found]
import intervals  # type: ignore[import-not-found]
from geopeft.data.chips import groups_of
from geopeft.data.labels import IGNORE

SIDE_PX = 256


@pytest.fixture(scope="module")
def draws(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Twenty small scenes, every second one labelled in a few spots."""
    folder = tmp_path_factory.mktemp("scenes")
    with intervals.small_forests(6, 2):
        return [intervals.draw(_scenes.PLACEMENTS[seed % 2], seed, folder, SIDE_PX) for seed in range(20)]


@pytest.mark.parametrize("figure", report.FIGURES)
def test_the_interval_of_blocks_holds_the_true_accuracy_and_that_of_random_pixels_does_not(
    draws: list[Any], figure: str
) -> None:
    ours, pixels = (report.summarise(draws, way, figure) for way in report.WAYS)
    assert ours.given >= 16 and ours.holds >= 0.85 and abs(ours.bias) < 0.1
    assert pixels.holds <= 0.2 and pixels.bias > 0.08, "neighbours of what was learned are no test"
    assert ours.width < 0.75, "an interval that says nothing holds everything"


def test_pixels_of_the_same_blocks_taken_for_independent_would_not_hold_it(draws: list[Any]) -> None:
    given = [one for one in draws if one.ours]
    held = 0
    for one in given:
        low, high = intervals.binomial(one.ours["overall_accuracy"][0], int(np.sum(one.matrices)))
        held += low <= one.final["overall_accuracy"] <= high
    assert held / len(given) < 0.7


@pytest.mark.parametrize("placement", _scenes.PLACEMENTS)
def test_no_label_both_teaches_and_judges(placement: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    scene = _scenes.make_scene(rng, SIDE_PX)
    owner = _scenes.draw_labels(scene, placement, 24, rng)
    assert len(np.unique(owner)) == 25
    assert all(len(np.unique(scene.truth[owner == number])) == 1 for number in range(24)), "labelled with the truth"
    raster, labels = _scenes.write_scene(scene, owner, tmp_path)
    dealt = intervals.deal(raster, labels, 0, 32)
    assert len(dealt.sites) == 24
    judged: list[int] = []
    for fold in dealt.folds:
        taught = {int(owner[row, col]) for at in fold.taught for row, col in dealt.sites[at].points}
        held = {number for number, _ in _pixels(fold, owner)}
        assert held and not held & taught
        judged += sorted(held)
        home: dict[int, set[int]] = {}
        for number, place in _pixels(fold, owner):
            home.setdefault(number, set()).add(fold.blocks[place])
        assert all(len(blocks) == 1 for blocks in home.values()), "a label counts in one block"
    assert len(judged) == len(set(judged)), "each is judged once"


def _pixels(fold: Any, owner: np.ndarray) -> Iterator[tuple[int, int]]:
    """(label, place as the engine knows it) of the pixels that a fold judges."""
    for chip, (_, row, col) in fold.chips:
        rows, cols = np.nonzero(chip.class_ids != IGNORE)
        places = groups_of(chip, row, col)[rows, cols]
        yield from zip(owner[rows + row, cols + col].tolist(), places.tolist(), strict=True)


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def drawn(placement: str, seed: int, *rest: Any) -> Any:
        asked.append(seed)
        figure = {"miou": 0.8, "overall_accuracy": 0.9}
        matrices = [[[8, 2], [1, 9]]] * 6
        return intervals.Draw(placement, seed, 12, 2, 20.0, 16.0, 64, 4, 6, 64.0, 2, matrices,
                              dict.fromkeys(figure, (1.0, 0.98, 1.0)), figure, figure, figure)  # fmt: skip

    monkeypatch.setattr(intervals, "draw", drawn)
    arguments = ["--placements", "scattered", "--out", str(tmp_path)]
    assert intervals.main([*arguments, "--draws", "2"]) == 0
    assert intervals.main([*arguments, "--draws", "3"]) == 0
    assert asked == [0, 1, 2]
    text = (tmp_path / "intervals.md").read_text()
    line = next(line for line in text.splitlines() if "blocks of ground" in line and "overall" in line)
    assert "3 of 3" in line and "**100.0 %**" in line and "| 85.0 | -5.0 |" in line
    assert "**0.0 %**" in text and (tmp_path / "intervals.png").stat().st_size > 5000
