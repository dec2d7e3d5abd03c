"""Figures, their intervals, and what labels cannot support."""

from typing import Any

import numpy as np
import pytest
import torch
from geopeft.accuracy import (
    Reliability,
    calibration,
    class_differences,
    confusion,
    difference,
    differences,
    figures,
    mean_iou,
)
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_jaccard_index


def labels_and_map(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, (40, 50)).astype(np.uint8)
    predicted = np.where(rng.random((40, 50)) < 0.7, truth, rng.integers(0, 3, (40, 50))).astype(np.uint8)
    truth[rng.random((40, 50)) < 0.3] = 255
    return truth, predicted


def test_figures_agree_with_torchmetrics() -> None:
    truth, predicted = labels_and_map()
    halves = [confusion(truth[rows], predicted[rows], 3) for rows in (slice(20), slice(20, 40))]
    result = figures(halves, ["a", "b", "c"])
    t, p = torch.from_numpy(truth.astype(int)), torch.from_numpy(predicted.astype(int))
    iou = multiclass_jaccard_index(p, t, 3, average=None, ignore_index=255)
    f1 = multiclass_f1_score(p.flatten(), t.flatten(), 3, average="macro", ignore_index=255)
    assert result["miou"]["value"] == pytest.approx(iou.mean().item(), abs=1e-4)
    assert mean_iou(np.sum(halves, 0)) == pytest.approx(iou.mean().item(), abs=1e-4)
    assert [c["iou"] for c in result["classes"]] == pytest.approx(iou.tolist(), abs=1e-4)
    assert result["f1_macro"]["value"] == pytest.approx(f1.item(), abs=1e-4)
    assert result["labels"] == int((truth != 255).sum())
    assert result["left_out"] == []


def test_rows_of_the_confusion_matrix_are_the_labels() -> None:
    matrix = confusion(np.array([0, 0, 1, 255]), np.array([1, 1, 1, 0]), 2)
    assert matrix.tolist() == [[0, 2], [0, 1]]


def test_labels_in_one_place_give_no_figure_but_a_reason() -> None:
    result = figures([np.array([[5, 1], [0, 4]])], ["a", "b"])
    assert {result[key]["value"] for key in ("miou", "overall_accuracy", "f1_macro")} == {None}
    assert result["left_out"] == ["No accuracy is given: the held-out labels lie in one place. Label more places."]
    nothing = figures([], ["a", "b"])
    assert nothing["miou"]["value"] is None and "no label is held out" in nothing["left_out"][0]


def test_no_accuracy_is_given_where_no_class_lies_in_two_places() -> None:
    result = figures([np.array([[9, 0], [0, 0]]), np.array([[0, 0], [3, 6]])], ["a", "b"])
    assert {result[key]["value"] for key in ("miou", "overall_accuracy", "f1_macro")} == {None}
    assert result["left_out"][0].startswith("No accuracy is given: no class lies in two")
    assert len(result["left_out"]) == 3 and result["labels"] == 18


def test_a_class_in_one_place_is_left_out_of_the_means_but_its_false_alarms_count() -> None:
    one, other = np.array([[8, 0, 2], [0, 9, 0], [0, 0, 0]]), np.array([[7, 1, 0], [0, 9, 0], [0, 0, 5]])
    result = figures([one, other, one], ["a", "b", "c"])
    a, b, c = result["classes"]
    assert c["iou"] is None and c["iou_low"] is None and c["blocks"] == 1 and c["support"] == 5
    assert "lies in one place" in c["reason"] and c["reason"] in result["left_out"]
    assert a["iou"] == pytest.approx(23 / 28, abs=1e-4), "what was mapped as c is missed of a"
    assert result["miou"]["value"] == pytest.approx((23 / 28 + 27 / 28) / 2, abs=1e-4)
    assert a["reason"] == b["reason"] == "" and a["iou_low"] < a["iou"] < a["iou_high"]


def test_the_interval_widens_when_errors_come_in_clumps() -> None:
    good, bad = np.array([[50, 0], [0, 50]]), np.array([[0, 50], [50, 0]])
    even = np.array([[40, 10], [10, 40]])
    clumped = figures([good] * 8 + [bad] * 2, ["a", "b"])["miou"]
    spread = figures([even] * 10, ["a", "b"])["miou"]
    assert clumped["value"] == pytest.approx(spread["value"], abs=1e-4)
    assert clumped["high"] - clumped["low"] > 1.5 * (spread["high"] - spread["low"]) > 0


def test_a_perfect_map_of_few_places_is_not_called_certain() -> None:
    perfect = np.array([[500, 0], [0, 500]])
    few, many = (figures([perfect] * count, ["a", "b"])["overall_accuracy"] for count in (3, 30))
    assert few["high"] == many["high"] == 1
    assert few["low"] < 0.75 and 0.97 < many["low"] < 1


def test_blocks_that_hold_most_of_the_labels_decide_alone() -> None:
    right, wrong = np.array([[45, 5], [5, 45]]), np.array([[30, 20], [20, 30]])
    even = figures([right, wrong] * 4, ["a", "b"])["overall_accuracy"]
    uneven = figures([20 * right, 20 * wrong, *[right, wrong] * 3], ["a", "b"])["overall_accuracy"]
    assert even["value"] == pytest.approx(uneven["value"], abs=1e-4)
    assert uneven["high"] - uneven["low"] > 1.5 * (even["high"] - even["low"])


def test_the_mean_figures_are_not_surer_than_overall_accuracy() -> None:
    # One of the classes lies in two blocks that agree, the other is right in one half of the blocks.
    good, bad = np.array([[40, 0], [0, 0]]), np.array([[10, 30], [0, 0]])
    rare = np.array([[0, 0], [20, 20]])
    result = figures([good + rare, bad + rare, good, bad, good, bad], ["a", "b"])
    miou, overall = (result[key] for key in ("miou", "overall_accuracy"))
    spread = [one["value"] * (1 - one["value"]) for one in (miou, overall)]
    widths = [one["high"] - one["low"] for one in (miou, overall)]
    assert widths[0] > 0.9 * widths[1] * (spread[0] / spread[1]) ** 0.5


def block(rng: np.random.Generator, right: tuple[float, float], alike: float) -> np.ndarray:
    """Matrix of one block of ground whose pixels are right or wrong together."""
    counts = np.round(60 * np.exp(0.6 * rng.standard_normal()) * rng.dirichlet((1.0, 1.0))).astype(int) + 1
    hits = [rng.binomial(n, rng.beta(p * alike, (1 - p) * alike)) for n, p in zip(counts, right, strict=True)]
    return np.array([[hits[0], counts[0] - hits[0]], [counts[1] - hits[1], hits[1]]])


@pytest.mark.parametrize("right, alike", [((0.85, 0.9), 6.0), ((0.99, 0.995), 40.0)])
@pytest.mark.parametrize("blocks", [4, 12])
def test_the_interval_holds_the_true_value_as_often_as_it_says(
    right: tuple[float, float], alike: float, blocks: int
) -> None:
    rng = np.random.default_rng(5)
    truth = mean_iou(np.sum([block(rng, right, alike) for _ in range(20000)], 0))
    assert truth is not None
    held = 0
    for _ in range(200):
        found = figures([block(rng, right, alike) for _ in range(blocks)], ["a", "b"])["miou"]
        held += found["low"] <= truth <= found["high"]
    assert 0.9 <= held / 200 <= 1, "95 % is what it says; a percentile bootstrap of 4 blocks holds it in 53 to 84 %"


def test_a_difference_is_told_apart_where_one_map_is_better_everywhere() -> None:
    rng = np.random.default_rng(0)
    hard = rng.integers(5, 30, 12)
    one = [np.array([[50 - h // 2, h // 2], [h // 2, 50 - h // 2]]) for h in hard]
    other = [np.array([[46 - h // 2, 4 + h // 2], [4 + h // 2, 46 - h // 2]]) for h in hard]
    better: dict[str, Any] = differences(one, other)["miou"]
    same: dict[str, Any] = difference(one, one)
    alone = figures(one, ["a", "b"])["miou"]
    assert 0 < better["low"] < better["value"] < better["high"]
    assert better["high"] - better["low"] < 0.9 * (alone["high"] - alone["low"]), (
        "what is hard for both does not blur it"
    )
    assert same["value"] == 0 and -0.05 < same["low"] < 0 < same["high"] < 0.05, "what 12 blocks cannot rule out"
    assert difference(one[:1], other[:1])["value"] is None


def paired_block(
    rng: np.random.Generator, shares: tuple[float, float, float], alike: float
) -> tuple[np.ndarray, np.ndarray]:
    """Matrices of two maps of one block, whose pixels are right in both, in the first, or in the second only."""
    counts = np.round(60 * np.exp(0.6 * rng.standard_normal()) * rng.dirichlet((1.0, 1.0))).astype(int) + 1
    both, first, second, _ = np.array(
        [rng.multinomial(n, rng.dirichlet(alike * np.array([*shares, 1 - sum(shares)]))) for n in counts]
    ).T
    return tuple(  # type: ignore[return-value]
        np.array([[hits[0], counts[0] - hits[0]], [counts[1] - hits[1], hits[1]]])
        for hits in (both + first, both + second)
    )


@pytest.mark.parametrize(
    "shares, alike",
    [((0.8, 0.06, 0.06), 8.0), ((0.75, 0.12, 0.04), 8.0), ((0.7, 0.2, 0.01), 40.0), ((0.9, 0.004, 0.001), 60.0)],
    ids=["as good", "better", "much better everywhere", "nearly the same map"],
)
@pytest.mark.parametrize("blocks", [4, 12])
def test_the_interval_of_a_difference_holds_the_true_one_as_often_as_it_says(
    shares: tuple[float, float, float], alike: float, blocks: int
) -> None:
    rng = np.random.default_rng(6)
    many = [np.sum(side, 0) for side in zip(*(paired_block(rng, shares, alike) for _ in range(6000)), strict=True)]
    truth = float(np.subtract(*(np.array(mean_iou(matrix), float) for matrix in many)))
    held, narrowest = 0, 1.0
    for _ in range(100):
        one, other = zip(*(paired_block(rng, shares, alike) for _ in range(blocks)), strict=True)
        found: dict[str, Any] = difference(one, other)
        held += found["low"] <= truth <= found["high"]
        narrowest = min(narrowest, found["high"] - found["low"])
    assert 0.9 <= held / 100 <= 1, "95 % is what it says"
    assert narrowest > 0, "maps that differ nowhere in these blocks may differ in others"


def test_a_difference_is_the_same_seen_from_the_other_side() -> None:
    rng = np.random.default_rng(1)
    one, other = zip(*(paired_block(rng, (0.75, 0.12, 0.04), 8.0) for _ in range(9)), strict=True)
    there: dict[str, Any] = difference(one, other)
    back: dict[str, Any] = difference(other, one)
    assert [there[key] for key in ("value", "low", "high")] == [-back[key] for key in ("value", "high", "low")]


def test_maps_that_differ_alike_in_all_blocks_are_not_called_certain() -> None:
    one, other = [np.array([[48, 2], [2, 48]])] * 8, [np.array([[44, 6], [6, 44]])] * 8
    found: dict[str, Any] = difference(one, other)
    assert found["low"] < found["value"] < found["high"] and found["high"] - found["low"] > 0.05


def test_a_class_in_one_block_has_no_difference() -> None:
    here, there = np.array([[8, 0, 2], [0, 9, 0], [0, 0, 0]]), np.array([[7, 1, 0], [0, 9, 0], [0, 0, 5]])
    a, b, c = class_differences([here, here, there], [here, there * 0 + np.diag([8, 9, 5]), there])
    assert c["value"] is None and a["value"] is not None and b["value"] is not None
    assert class_differences([], []) == []


def test_calibration_tells_how_often_the_map_is_right_where_it_is_so_sure() -> None:
    confidence, correct = np.repeat([0.95, 0.65], 100), np.r_[np.arange(100) < 80, np.arange(100) < 65]
    found = calibration(confidence, correct, np.ones(200))
    assert found["ece"] == pytest.approx(0.075, abs=1e-4)
    assert [(b["confidence"], b["accuracy"]) for b in found["bins"]] == [(0.65, 0.65), (0.95, 0.8)]
    assert calibration(np.zeros(0), np.zeros(0, bool), np.zeros(0)) == {"ece": None, "bins": []}


def test_calibration_of_a_whole_map_counts_every_class_the_same() -> None:
    truth = np.r_[np.zeros(900, int), np.ones(100, int)]
    said = np.tile([0.8, 0.2], (1000, 1))
    whole = Reliability(2)
    for part in np.array_split(np.arange(1000), 7):
        whole.add(truth[part], said[part])
    assert whole.figures()["bins"] == [{"confidence": 0.8, "accuracy": 0.5, "weight": 1.0}]
