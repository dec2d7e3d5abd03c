"""The loss, and how forecasts are blended."""

import numpy as np
import pytest
import torch
from geopeft.objective import balanced_cross_entropy, fit_blend, fit_sharpness, place_weights


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


def map_of(places: int, exponent: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, truth and places of a map that would be right as often as it says if it were not for the exponent;
    all pixels of a place share their fate."""
    rng = np.random.default_rng(0)
    honest = rng.dirichlet(np.ones(3), places)
    truth = np.array([rng.choice(3, p=row) for row in honest])
    raised = honest**exponent
    said = raised / raised.sum(1, keepdims=True)
    return np.repeat(said, 20, 0), np.repeat(truth, 20), np.repeat(np.arange(places), 20)


def test_a_map_that_is_less_sure_than_it_is_right_is_made_surer_and_the_other_way_round() -> None:
    for exponent in (0.4, 1.0, 2.5):
        found = fit_sharpness(*map_of(1000, exponent), most_places=np.inf)
        assert found == pytest.approx(1 / exponent, rel=0.25)


def test_a_few_places_cannot_make_a_map_certain() -> None:
    def always_right(places: int, sure: float = 0.6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        truth = np.repeat(np.arange(places) % 2, 30)
        said = np.where(np.arange(2) == truth[:, None], sure, 1 - sure)
        return said, truth, np.repeat(np.arange(places), 30)

    few, some, many = (fit_sharpness(*always_right(places)) for places in (2, 20, 2000))
    assert 1 < few < 2.5 < some <= many <= 8
    assert many == fit_sharpness(*always_right(40)), "many places of one region count no more than they may"
    nothing = np.zeros(0, np.int64)
    assert fit_sharpness(np.zeros((0, 2)), nothing, nothing) == 1


@pytest.mark.parametrize(("power", "ratio"), [(0.0, 1.0), (0.5, 10.0), (1.0, 100.0)])
def test_a_place_counts_by_a_power_of_its_pixels(power: float, ratio: float) -> None:
    truth, places = np.zeros(102, np.int64), np.repeat([0, 1, 2], [100, 1, 1])
    weights = place_weights(truth, places, power)
    assert weights.sum() == pytest.approx(1)
    assert weights[:100].sum() / weights[100] == pytest.approx(ratio)


def test_small_mixed_places_do_not_make_a_map_modest_that_is_right_elsewhere() -> None:
    """Twelve places of one pixel, half of them wrong, beside two of 400 pixels that are all right."""
    truth = np.zeros(812, np.int64)
    places = np.concatenate([np.arange(12), np.repeat([12, 13], 400)])
    said = np.full((812, 2), [0.7, 0.3])
    said[:6] = said[:6, ::-1]
    assert fit_sharpness(said, truth, places) > 1
