"""Figures, their intervals, and what labels cannot support."""

from typing import Any

import numpy as np
import pytest
import torch
from geopeft.accuracy import Reliability, calibration, confusion, difference, figures, mean_iou
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
    better: dict[str, Any] = difference(one, other)
    same = difference(one, one)
    alone = figures(one, ["a", "b"])["miou"]
    assert 0 < better["low"] < better["value"] < better["high"]
    assert better["high"] - better["low"] < (alone["high"] - alone["low"]) / 2, "what is hard for both does not blur it"
    assert same == {"value": 0, "low": 0, "high": 0}
    assert difference(one[:1], other[:1])["value"] is None


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
