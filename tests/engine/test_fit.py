"""What fit decides from the labels."""

from geopeft.blending import network_prior
from geopeft.fit import _default_steps


def test_the_networks_share_grows_with_the_places_and_is_larger_in_fine_imagery() -> None:
    one, three, many = ([0] * n + [1] * n for n in (1, 3, 50))
    fine = [network_prior(0.5, classes) for classes in (one, three, many)]
    assert fine == sorted(fine) and fine[0] < 0.1 and fine[2] == 0.5
    assert network_prior(10, many) < fine[2] / 2
    # One class with many places does not make up for another with one.
    assert fine[0] < network_prior(0.5, [0] * 50 + [1]) < fine[2]


def test_steps_grow_with_the_places_up_to_a_limit() -> None:
    assert _default_steps(4) < _default_steps(40) < _default_steps(400) == _default_steps(4000)
