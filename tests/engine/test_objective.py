"""The loss, and how forecasts are blended."""

import numpy as np
import pytest
import torch
from geopeft.objective import balanced_cross_entropy, fit_blend


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
