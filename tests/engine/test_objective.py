"""Loss and figures."""

import numpy as np
import pytest
import torch
from geopeft.objective import balanced_cross_entropy, confusion, figures, fit_blend
from torchmetrics.functional.classification import multiclass_f1_score, multiclass_jaccard_index


def labels_and_map(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, (40, 50)).astype(np.uint8)
    predicted = np.where(rng.random((40, 50)) < 0.7, truth, rng.integers(0, 3, (40, 50))).astype(np.uint8)
    truth[rng.random((40, 50)) < 0.3] = 255
    return truth, predicted


def test_figures_agree_with_torchmetrics() -> None:
    truth, predicted = labels_and_map()
    result = figures([confusion(truth, predicted, 3)], ["a", "b", "c"])
    t, p = torch.from_numpy(truth.astype(int)), torch.from_numpy(predicted.astype(int))
    iou = multiclass_jaccard_index(p, t, 3, average=None, ignore_index=255)
    f1 = multiclass_f1_score(p.flatten(), t.flatten(), 3, average="macro", ignore_index=255)
    assert result["miou"]["value"] == pytest.approx(iou.mean().item(), abs=1e-4)
    assert [c["iou"] for c in result["classes"]] == pytest.approx(iou.tolist(), abs=1e-4)
    assert result["f1_macro"]["value"] == pytest.approx(f1.item(), abs=1e-4)
    assert result["labels"] == int((truth != 255).sum())


def test_rows_of_the_confusion_matrix_are_the_labels() -> None:
    matrix = confusion(np.array([0, 0, 1, 255]), np.array([1, 1, 1, 0]), 2)
    assert matrix.tolist() == [[0, 2], [0, 1]]


def test_one_block_gives_no_interval_and_a_class_without_labels_gives_no_figure() -> None:
    result = figures([np.array([[5, 1, 1], [0, 4, 0], [0, 0, 0]])], ["a", "b", "c"])
    assert result["miou"]["low"] is None
    assert result["classes"][2]["iou"] is None
    assert result["miou"]["value"] == pytest.approx((5 / 7 + 4 / 5) / 2, abs=1e-4)


def test_the_interval_widens_when_errors_come_in_clumps() -> None:
    good, bad = np.array([[50, 0], [0, 50]]), np.array([[0, 50], [50, 0]])
    even = np.array([[40, 10], [10, 40]])
    clumped = figures([good] * 8 + [bad] * 2, ["a", "b"])["miou"]
    spread = figures([even] * 10, ["a", "b"])["miou"]
    assert clumped["value"] == pytest.approx(spread["value"], abs=1e-4)
    assert clumped["high"] - clumped["low"] > 0.2 > spread["high"] - spread["low"]


def test_unlabelled_pixels_do_not_teach() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    ids = torch.full((1, 4, 4), 255)
    ids[0, 0, 0] = 1
    balanced_cross_entropy(logits, ids, torch.ones(3)).backward()
    gradient = logits.grad
    assert gradient is not None
    assert gradient[0, :, 0, 0].abs().sum() > 0
    assert gradient.abs().sum() == pytest.approx(float(gradient[0, :, 0, 0].abs().sum()))


def test_a_batch_without_labels_gives_a_finite_loss() -> None:
    loss = balanced_cross_entropy(torch.randn(1, 3, 4, 4), torch.full((1, 4, 4), 255), torch.ones(3))
    assert float(loss) == 0.0


def forecasts(
    right_of_network: float, right_of_classical: float, places: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Logits, probabilities, truth and places of two forecasters that are right so often, by whole places."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(places) % 2, 50)
    place = np.repeat(np.arange(places), 50)

    def forecast(right: float) -> np.ndarray:
        hit = np.repeat(rng.permutation(places) < round(right * places), 50)
        sure = np.where(hit, 0.9, 0.1)
        return np.where((np.arange(2) == truth[:, None]), sure[:, None], 1 - sure[:, None])

    return np.log(forecast(right_of_network)), forecast(right_of_classical), truth, place


def test_the_better_part_gets_the_larger_share_once_there_are_places_enough() -> None:
    assert fit_blend(*forecasts(0.95, 0.6, 100), 0.5)[0] > 0.7
    assert fit_blend(*forecasts(0.6, 0.95, 100), 0.5)[0] < 0.3
    few = fit_blend(*forecasts(1.0, 0.5, 2), 0.3)[0]
    assert 0.3 < few < 0.5, "two places move the share a little only"
    capped, free = (fit_blend(*forecasts(0.6, 0.95, 400), 0.5, most)[0] for most in (10, np.inf))
    assert capped > free + 0.1, "many places of one region count no more than they may"


def test_an_overconfident_network_is_cooled() -> None:
    logits, classical, truth, place = forecasts(0.8, 0.5, 100)
    modest, loud = (fit_blend(logits * factor, classical, truth, place, 0.9)[1] for factor in (0.6, 3))
    assert loud >= 2 > modest
