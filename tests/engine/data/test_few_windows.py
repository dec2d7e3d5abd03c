"""Few windows for many draws: where they lie, how many there are, and that they stay."""

from __future__ import annotations

import numpy as np
import pytest
from geopeft.data.few_windows import TURNS, few_windows

SIZE = 64
SHAPE = (1000, 800)


def squares(count: int, seed: int = 0, side: int = 8) -> list[np.ndarray]:
    """Places of side x side pixels."""
    rng = np.random.default_rng(seed)
    inside = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).reshape(-1, 2)
    return [inside + rng.integers(0, np.array(SHAPE) - side) for _ in range(count)]


def found(places: list[np.ndarray], count: int, shape: tuple[int, int] = SHAPE) -> list[np.ndarray]:
    odds = np.full(len(places), 1 / len(places))
    return few_windows(places, [0] * len(places), odds, [shape], SIZE, count)


def marks(windows: list[np.ndarray]) -> set[tuple[int, ...]]:
    return {tuple(row) for own in windows for row in own.tolist()}


def test_every_window_holds_its_place_and_lies_on_the_grid_inside_the_raster() -> None:
    places = squares(40)
    for points, windows in zip(places, found(places, 300), strict=True):
        for row, col, turn in windows:
            assert ((points >= (row, col)) & (points < (row + SIZE, col + SIZE))).all(1).any()
            assert 0 <= row <= SHAPE[0] - SIZE and 0 <= col <= SHAPE[1] - SIZE
            assert row % (SIZE // 4) == 0 or row == SHAPE[0] - SIZE
            assert col % (SIZE // 4) == 0 or col == SHAPE[1] - SIZE
            assert turn in range(TURNS)


@pytest.mark.parametrize(("places", "count"), [(3, 12), (40, 300), (400, 300), (400, 2000)])
def test_there_are_about_as_many_as_asked_for_and_one_for_each_place(places: int, count: int) -> None:
    windows = found(squares(places), count)
    assert min(map(len, windows)) >= 1
    assert len(marks(windows)) <= max(count + places, places)
    assert len(marks(windows)) >= 0.45 * count


def test_all_turns_and_ways_to_lie_in_a_window_come_about() -> None:
    windows = np.concatenate(found(squares(100), 1000))
    assert set(windows[:, 2].tolist()) == set(range(TURNS))
    assert len(np.unique(windows[:, 0] % SIZE)) >= 4


def test_places_side_by_side_share_windows() -> None:
    beside = [place + (400, 400) for place in [np.array([[r, c]]) for r in range(0, 12, 2) for c in range(0, 12, 2)]]
    assert len(marks(found(beside, 20))) <= 20


def test_a_place_that_is_added_leaves_most_windows_of_the_others() -> None:
    places = squares(30)
    before, after = found(places, 240), found([*squares(5, seed=9), *places], 280)[5:]
    kept = [len(marks([one]) & marks([other])) / len(one) for one, other in zip(before, after, strict=True)]
    assert np.mean(kept) > 0.9


def test_a_larger_share_gets_more_windows() -> None:
    places = squares(2)
    few, many = few_windows(places, [0, 0], np.array([0.1, 0.9]), [SHAPE], SIZE, 40)
    assert len(many) > 3 * len(few)


def test_the_middle_of_a_place_comes_before_its_edge() -> None:
    """A window that holds one pixel of a place seldom teaches it."""

    def held(count: int) -> float:
        places = squares(40, side=40)
        windows = [found([points], count)[0][:count] for points in places]
        return float(np.mean([
            ((points >= w[:2]) & (points < w[:2] + SIZE)).all(1).mean()
            for points, own in zip(places, windows, strict=True) for w in own
        ]))  # fmt: skip

    assert held(6) > 1.2 * held(10**4)


def test_a_raster_that_is_smaller_than_a_window_has_one() -> None:
    windows = found([np.array([[3, 500]])], 10**3, (40, 800))[0]
    assert set(windows[:, 0].tolist()) == {0}
