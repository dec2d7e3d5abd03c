"""Windows and their blending."""

import numpy as np
import pytest
from geopeft.mapping.windows import blend_weights, window_starts
from geopeft.runtime import fill_invalid
from hypothesis import given
from hypothesis import strategies as st


@given(st.integers(1, 700), st.integers(8, 200))
@pytest.mark.fault("R32")
def test_windows_cover_everything_and_every_pixel_has_weight(length: int, window: int) -> None:
    overlap = window // 4
    starts = window_starts(length, window, overlap)
    size = min(window, length)
    total = np.zeros(length)
    for start in starts:
        assert 0 <= start <= length - size
        total[start : start + size] += blend_weights(size, overlap, start == 0, start == starts[-1])
    assert total.min() > 0


def test_the_outer_quarter_of_an_overlap_belongs_to_the_neighbour() -> None:
    weights = blend_weights(96, 24, at_start=False, at_end=True)
    assert weights[:6].max() == 0
    assert weights[24:].min() == pytest.approx(1)
    assert (np.diff(weights[:24]) >= 0).all()


def test_pixels_without_data_get_the_typical_value() -> None:
    values = np.ones((2, 3, 3), np.float32)
    valid = np.ones((3, 3), bool)
    valid[1, 1] = False
    filled = fill_invalid(values, valid, np.array([5, 7], np.float32))
    assert filled[:, 1, 1].tolist() == [5, 7]
    assert filled.sum() == 2 * 8 + 12
