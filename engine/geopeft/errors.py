"""Everything that can go wrong for a user, each with a stable code.

GeopeftError
├── JobError        the job itself is wrong: a field, a name, a combination
├── RasterError     a raster cannot be used
├── BandError       the bands that are needed are not there
├── LabelError      the labels cannot teach
├── WeightsError    pretrained weights are missing or not what they should be
├── PackageError    a model package is broken or of another kind
├── OutputError     a result cannot be written
├── DeviceError     the device or its memory does not suffice
└── Canceled        the user stopped the job; not a failure
"""

from __future__ import annotations

import difflib
import errno
import re
from collections.abc import Iterable

# Without so much at hand no job gets far.
LEAST_BYTES = 32 << 20


class GeopeftError(Exception):
    """A failure that is told to the user as one sentence and a next step.

    Args:
        message: what happened, where, what was expected and what was found.
        hint: what the user can do next.
        code: stable upper-case name, for programs and translations.
    """

    code = "INTERNAL"

    def __init__(self, message: str, hint: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code or type(self).code


class JobError(GeopeftError):
    """The job is wrong: a field, a name, a combination."""

    code = "JOB_INVALID"


class RasterError(GeopeftError):
    """A raster cannot be used."""

    code = "RASTER_UNUSABLE"


class BandError(GeopeftError):
    """Bands that are needed are not there, or cannot be told apart."""

    code = "BANDS_UNKNOWN"


class LabelError(GeopeftError):
    """The labels cannot teach."""

    code = "LABELS_UNUSABLE"


class WeightsError(GeopeftError):
    """Pretrained weights are missing, or not what they should be."""

    code = "WEIGHTS_MISSING"


class PackageError(GeopeftError):
    """A model package is broken, or does not fit the raster."""

    code = "PACKAGE_BROKEN"


class OutputError(GeopeftError):
    """A result cannot be written."""

    code = "OUTPUT_FAILED"


class DeviceError(GeopeftError):
    """The device is not there, or its memory does not suffice."""

    code = "DEVICE_UNAVAILABLE"


class Canceled(Exception):
    """The user stopped the job."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> JobError:
    """An error for a name that is in no table: names the nearest one and the whole list."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    guess = f"Did you mean '{near[0]}'? " if near else ""
    return JobError(f"There is no {kind} called '{name}'.", f"{guess}Known: {', '.join(names)}.", "NAME_UNKNOWN")


_NO_MEMORY = re.compile(
    r"out of memory|(cannot|can't|could not|unable to|failed to) allocate|bad.?alloc|can't start new thread"
    # oneDNN and the loader of libraries say no more where there is no room for code and buffers.
    # protobuf, whose other reason, a message beyond 2 GB, is ruled out before.
    r"|failed to serialize proto"
    r"|could not create a (primitive|memory object)|failed to map segment|cannot map zero-fill"
    # Python itself, where an allocation failed inside its import or its compiler.
    r"|error return without exception set",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a library failed because there is no memory left; each says so in its own words."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, MemoryError) or (isinstance(found, OSError) and found.errno == errno.ENOMEM):
            return True
        if not isinstance(found, GeopeftError) and _NO_MEMORY.search(str(found)):
            return True
        found = found.__cause__
    return False


def has_memory() -> bool:
    """Whether there is memory for anything at all: where there is not, Python itself fails in strange words."""
    try:
        return len(bytearray(LEAST_BYTES)) > 0
    except MemoryError:
        return False


def out_of_memory(what: str) -> DeviceError:
    """An error for a job or raster that the memory does not suffice for."""
    hint = "Close other programs, choose a smaller backbone, or set the device to cpu."
    return DeviceError(f"There is not enough memory for this {what}.", hint, "OUT_OF_MEMORY")


def unknown_error(error: BaseException, what: str, log: str = "the log") -> GeopeftError:
    """An error for what a library has raised and no sentence tells of.

    Args:
        what: the job, raster or part of the work that it ended.
        log: where its traceback is.
    """
    if is_out_of_memory(error):
        return out_of_memory(what)
    return GeopeftError(
        f"The engine met an error that it does not know ({type(error).__name__}: {error}).",
        f"The details are in {log}; please report them.",
    )
