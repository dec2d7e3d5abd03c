"""How large the blocks of ground are that are held out as one."""

import numpy as np
from geopeft.data.split import block_side_px, correlation_range_px, squares_of
from scipy.ndimage import gaussian_filter


def places(smooth_px: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of 60 places, and their classes on a map whose patches are so large."""
    rng = np.random.default_rng(seed)
    field = gaussian_filter(rng.standard_normal((600, 600)), smooth_px, mode="wrap")
    centres = rng.integers(0, 600, (60, 2))
    return centres.astype(float), (field > np.median(field)).astype(int)[centres[:, 0], centres[:, 1]]


def typical(smooth_px: float) -> float:
    return float(np.median([correlation_range_px(*places(smooth_px, seed)) for seed in range(9)]))


def test_the_range_follows_the_size_of_the_patches() -> None:
    assert typical(0.5) == 0, "classes that change from pixel to pixel"
    assert 70 < typical(60) < 150 < typical(150)


def test_blocks_are_as_wide_as_labels_keep_together_and_never_narrower_than_a_chip() -> None:
    centres, classes = places(60, 3)
    side = block_side_px(centres, classes, 32)
    assert 75 < side == correlation_range_px(centres, classes)
    assert block_side_px(centres, classes, 200) == 200
    assert block_side_px(*places(0.5, 3), 32) < 75, "an eighth of the extent"


def test_a_class_that_keeps_to_one_corner_still_lies_in_several_blocks() -> None:
    rng = np.random.default_rng(0)
    corner, rest = rng.random((12, 2)) * 200, 400 + rng.random((12, 2)) * 800
    centres, classes = np.concatenate([corner, rest]), np.repeat([0, 1], 12)
    side = block_side_px(centres, classes, 32)
    assert side < 200 < correlation_range_px(centres, classes)
    assert len(np.unique(corner // side, axis=0)) >= 4


def test_places_close_together_are_one_block_wherever_the_grid_lies() -> None:
    rng = np.random.default_rng(0)
    middles = np.array([[130.0, 130.0], [128.0, 390.0], [400.0, 256.0]])
    spots = np.concatenate([middle + rng.uniform(-20, 20, (9, 2)) for middle in middles])
    plain = np.unique(spots // 64, axis=0)
    found = squares_of(spots, 64).reshape(3, 9, 2)
    assert len(plain) > 3 and all(len(np.unique(spot, axis=0)) == 1 for spot in found)
    assert len(np.unique(found.reshape(-1, 2), axis=0)) == 3


def test_places_all_over_the_ground_keep_the_squares_that_they_lie_in() -> None:
    dense = np.argwhere(np.ones((64, 64), bool)) * 8 + 4.0
    assert (squares_of(dense, 64) == dense // 64).all(), "a group wider than a square is no spot"
    apart = np.array([[0.0, 0.0], [10.0, 200.0], [300.0, 70.0]])
    assert squares_of(apart, 64).tolist() == [[0, 0], [0, 3], [4, 1]]
    assert squares_of(np.zeros((0, 2)), 64).shape == (0, 2)
