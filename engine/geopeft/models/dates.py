"""Several dates in one raster, for the backbones that take them: each date's bands become one frame."""

from __future__ import annotations

from collections.abc import Sequence

from geopeft.data.bands import Band, dates_of, match_bands
from geopeft.errors import BandError
from geopeft.models.backbones import BACKBONES
from geopeft.models.registry import BackboneCard


def match_dates(card: BackboneCard, bands: Sequence[Band]) -> dict[str, Band]:
    """`BAND DATE` -> raster band, date after date; empty where the backbone takes fewer dates, or where these do not
    have the same bands. Bands without a date are in no frame."""
    frames = _frames(card, bands)
    alike = len({frozenset(found) for found in frames.values()}) == 1
    if card.frames < len(frames) or not alike:
        return {}
    if len(next(iter(frames.values()))) < min(3, len(card.bands)):
        return {}
    return {f"{name} {date}": band for date, found in frames.items() for name, band in found.items()}


def refuse_dates(card: BackboneCard, bands: Sequence[Band]) -> None:
    """BandError where a raster's dates do not suit the backbone. One without bands of its own takes all as they are."""
    dates = dates_of(bands)
    if len(dates) < 2 or not card.bands:
        return
    if card.frames < len(dates):
        takers = [row.name for row in BACKBONES if row.frames >= len(dates)]
        takes = f"at most {card.frames} dates" if card.frames > 1 else "one date"
        raise BandError(
            f"{card.title} takes {takes}; the raster's bands are of {len(dates)} ({', '.join(dates[:8])}).",
            "Name the bands of one date with --bands, or choose "
            f"{'one of: ' + ', '.join(takers) if takers else 'scratch_unet'}.",
            "BANDS_DATES",
        )
    frames = _frames(card, bands)
    for date in dates[1:]:
        apart = sorted(frames[dates[0]].keys() ^ frames[date].keys())
        if apart:
            has = dates[0] if apart[0] in frames[dates[0]] else date
            raise BandError(
                f"Every date needs the same bands: {apart[0]} is there on {has}, but not on "
                f"{date if has == dates[0] else dates[0]}.",
                "Stack the same bands of every date, or name with --bands those that every date has.",
                "BANDS_DATES",
            )


def of_one_date(bands: Sequence[Band]) -> list[Band]:
    """The bands of the earliest date and those without one, for what takes one date only."""
    first = dates_of(bands)[:1]
    return [band for band in bands if not band.date or band.date in first]


def _frames(card: BackboneCard, bands: Sequence[Band]) -> dict[str, dict[str, Band]]:
    """For each date, the earliest first, the card's bands that it has."""
    return {date: match_bands([b for b in bands if b.date == date], card.bands) for date in dates_of(bands)}
