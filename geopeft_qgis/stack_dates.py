"""When the scenes of a stack were taken, as their file names say; with it the engine tells dates apart."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .stack_bands import StackBand

_CLOCK = r"(?:T(?P<hour>[01]\d|2[0-3])(?P<minute>[0-5]\d)(?P<second>[0-5]\d)?)?"
_CALENDAR = re.compile(rf"(?<!\d)(?P<year>(?:19|20)\d\d)([-_.]?)(?P<month>\d\d)\2(?P<day>\d\d){_CLOCK}(?!\d)")
# HLS (2024164T101031) and MODIS (A2024164) count the days of the year.
_ORDINAL = re.compile(
    rf"(?:(?<![A-Za-z0-9])A|(?<!\d)(?=\d{{7}}T))(?P<year>(?:19|20)\d\d)(?P<ordinal>\d{{3}}){_CLOCK}(?!\d)"
)
_DATED = re.compile(r"[ _@-](?:19|20)\d\d-[01]\d-[0-3]\d$")


def time_in(path: str) -> str:
    """YYYY-MM-DD, with THH:MM:SS where it is there, of the first date in a file's name; "" where there is none."""
    name = re.split(r"[\\/]", path.split("?")[0])[-1]
    found = [match for pattern in (_CALENDAR, _ORDINAL) for match in pattern.finditer(name)]
    for match in sorted(found, key=lambda match: match.start()):
        parts = match.groupdict()
        try:
            if parts.get("ordinal"):
                day = datetime.datetime.strptime(parts["year"] + parts["ordinal"], "%Y%j").date()
            else:
                day = datetime.date(int(parts["year"]), int(parts["month"]), int(parts["day"]))
        except ValueError:
            continue
        clock = f"T{parts['hour']}:{parts['minute']}:{parts['second'] or '00'}" if parts["hour"] else ""
        return f"{day.isoformat()}{clock}"
    return ""


def shared_time(bands: Sequence[StackBand]) -> str:
    """The time of all of a stack's files that tell one; "" where they do not agree or none does."""
    times = {time_in(band.path) for band in bands} - {""}
    return times.pop() if len(times) == 1 else ""


def with_dates(bands: Sequence[StackBand]) -> list[StackBand]:
    """Bands of several dates with their dates behind their names: B04 2024-06-12. Those of one date stay."""
    dates = [time_in(band.path)[:10] for band in bands]
    if len(set(dates) - {""}) < 2:
        return list(bands)
    return [
        band._replace(name=f"{band.name} {date}") if date and not _DATED.search(band.name) else band
        for band, date in zip(bands, dates)
    ]
