"""Estimates from a stratified random sample, against what papers have published and what is true of made maps."""

import sys
from pathlib import Path

import numpy as np
import pytest
from geopeft.sampling.stratified import allocate, estimate, points_needed

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

import area as bench  # type: ignore[import-not-found]

# Olofsson et al. 2014, table 8: deforestation, forest gain, stable forest, stable non-forest; pixels of 30 m.
PIXELS = np.array([200_000, 150_000, 3_200_000, 6_450_000])
COUNTS = np.array([[66, 0, 5, 4], [0, 55, 8, 12], [1, 0, 153, 11], [2, 1, 9, 313]])


def points(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stratum and class of each point of an error matrix."""
    strata, labels = np.divmod(np.repeat(np.arange(counts.size), counts.ravel()), counts.shape[1])
    return strata, labels


def of_counts(counts: np.ndarray, pixels: np.ndarray, mapped: list[int], area: float = 1.0):  # type: ignore[no-untyped-def]
    strata, labels = points(counts)
    return estimate(strata, labels, np.full(len(strata), area), pixels * area, pixels, mapped, counts.shape[1])


def test_the_published_example_comes_out_to_its_digits() -> None:
    found = of_counts(COUNTS, PIXELS, [0, 1, 2, 3], 0.09)
    areas = [(round(one.value), round(1.96 * one.se)) for one in found.areas if one]
    # Page 54, hectares and half the 95 % interval.
    assert areas == [(21_158, 6_158), (11_686, 3_756), (285_770, 15_510), (581_386, 16_282)]
    users = [(round(one.value, 2), round(1.96 * one.se, 2)) for one in found.users if one]
    assert users == [(0.88, 0.07), (0.73, 0.10), (0.93, 0.04), (0.96, 0.02)]
    producers = [one.value for one in found.producers if one]
    assert np.round(producers, 2).tolist() == [0.75, 0.85, 0.93, 0.96]
    assert found.producers[0] and round(1.96 * found.producers[0].se, 2) == 0.21
    assert found.overall and (round(found.overall.value, 2), round(1.96 * found.overall.se, 2)) == (0.95, 0.02)
    # Table 9.
    assert found.shares[0].round(4).tolist() == [0.0176, 0, 0.0013, 0.0011]
    assert found.shares[3].round(4).tolist() == [0.0040, 0.0020, 0.0179, 0.6212]


def test_strata_that_are_no_classes_give_the_areas_of_stehmans_example() -> None:
    """Stehman 2014, International Journal of Remote Sensing 35, pages 4932 and 4935."""
    reference = "AAAAACBABC" + "ABBBBBAABB" + "CCCCCDDBBA" + "DDDDDDDCCB"
    labels = np.array(["ABCD".index(one) for one in reference])
    pixels = np.array([40_000, 30_000, 20_000, 10_000])
    found = estimate(np.repeat(np.arange(4), 10), labels, np.ones(40), pixels / 1e5, pixels, [-1] * 4, 4)
    a, _, c, _ = found.areas
    assert a and c
    assert (round(a.value, 2), round(a.se, 3), round(c.value, 2), round(c.se, 3)) == (0.35, 0.082, 0.20, 0.064)


def test_a_stratum_whose_pixels_are_all_labelled_is_known_exactly() -> None:
    found = of_counts(np.array([[2, 1], [0, 5]]), np.array([3, 5]), [0, 1])
    for one, true in zip(found.areas, (2, 6), strict=True):
        assert one and (one.value, one.se, one.low, one.high) == pytest.approx((true, 0, true, true))
    assert found.users[0] and found.users[0].low == pytest.approx(2 / 3)


def test_a_class_without_an_error_in_the_sample_is_not_said_to_be_perfect() -> None:
    found = of_counts(np.array([[20, 0], [0, 80]]), np.array([20_000, 80_000]), [0, 1])
    users, producers, (area, _) = found.users[0], found.producers[0], found.areas
    assert users and producers and area and found.overall
    assert users.se == producers.se == 0 and users.value == producers.value == 1
    assert 0.80 < users.low < 0.90 and 0.7 < producers.low < 0.95
    assert area.low < 18_000 and 22_000 < area.high and 0.9 < found.overall.low < 0.99


def test_larger_pixels_weigh_more() -> None:
    strata, labels = np.zeros(4, np.int64), np.array([0, 0, 0, 1])
    found = estimate(strata, labels, np.array([1.0, 1, 1, 3]), np.array([1000.0]), np.array([700]), [0], 2)
    assert found.areas[1] and found.areas[1].value == pytest.approx(500)


def test_a_stratum_with_one_label_leaves_out_what_rests_on_it() -> None:
    found = of_counts(np.array([[1, 0], [3, 20]]), np.array([1000, 9000]), [0, 1])
    assert found.overall is None and found.areas == (None, None) and found.producers == (None, None)
    assert found.users[0] is None and found.users[1] and found.users[1].value == pytest.approx(20 / 23)


def test_the_number_of_points_is_that_of_cochran() -> None:
    # The example of Olofsson et al. 2014, section 5.1.
    assert points_needed(PIXELS, PIXELS, 0.01, np.array([0.7, 0.6, 0.9, 0.95])) == 641
    assert points_needed(PIXELS, PIXELS, 0.02, 0.8) == 400
    assert points_needed(PIXELS, PIXELS, 0.01, 0.8) == 1600
    # Of few pixels fewer are needed.
    assert points_needed(np.array([300.0]), np.array([300]), 0.02, 0.8) == 172


@pytest.mark.parametrize(
    ("total", "pixels", "fewest", "expected"),
    [
        (400, PIXELS, 20, [20, 20, 119, 241]),
        (640, PIXELS, 75, [75, 75, 162, 328]),
        (50, PIXELS, 20, [20, 20, 20, 20]),  # exceeded, as each class needs some
        (100, [5, 1000], 20, [5, 95]),
        (500, [30, 60], 20, [30, 60]),
        (100, [10, 50, 10_000_000], 20, [10, 20, 70]),
    ],
)
def test_points_are_shared_out_by_area_and_small_classes_get_the_least(
    total: int, pixels: list[int], fewest: int, expected: list[int]
) -> None:
    counts = np.asarray(pixels)
    assert allocate(total, counts.astype(float), counts, fewest).tolist() == expected


@pytest.mark.parametrize("number", range(len(bench.MAPS)))
def test_intervals_hold_the_truth_of_made_maps(number: int) -> None:
    """The short form of `build.py bench area`."""
    row = bench.of_map(bench.MAPS[number], 0, 150)
    for name, count in row.counts.items():
        # With 150 draws, chance alone moves the share of 95 % by 1.8 points.
        assert count.ours / count.given >= 0.89, name
    assert row.counts["area"].left_out == 0
