"""Calendar arithmetic on tensors, for networks that are told when an image was taken.

A time is (..., 3): year, day of the year from 1, hour in UTC, as in `Scene`. NaN gives NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor


def days_since_1970(time: Tensor) -> Tensor:
    """(..., 3) -> (...) whole days since 1970-01-01 in the Gregorian calendar, exact in single precision."""
    year, day = time[..., 0], time[..., 1]
    # 477 leap days lie before 1970.
    return (year - 1970) * 365 + _leap_days_before(year) - 477 + day - 1


def iso_week(time: Tensor) -> Tensor:
    """(..., 3) -> (...) week of the year by ISO 8601, from 1: a week belongs to the year that its Thursday is in."""
    year, day = time[..., 0], time[..., 1]
    # 1970-01-01 was a Thursday; Monday is 0.
    weekday = torch.remainder(days_since_1970(time) + 3, 7)
    thursday = day - weekday + 3
    before, own = (365 + _leap_days_before(y + 1) - _leap_days_before(y) for y in (year - 1, year))
    thursday = torch.where(thursday < 1, thursday + before, torch.where(thursday > own, thursday - own, thursday))
    return torch.floor((thursday - 1) / 7) + 1


def _leap_days_before(year: Tensor) -> Tensor:
    last = year - 1
    return torch.floor(last / 4) - torch.floor(last / 100) + torch.floor(last / 400)
