"""Work that cannot be interrupted, while somebody may lose interest in it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from geopeft.events import Reporter

LOOK_S = 0.1
T = TypeVar("T")


def watched(work: Callable[[], T], reporter: Reporter) -> T:
    """Does the work in a thread of its own, and raises Canceled at once when the user cancels.

    Args:
        work: is not stopped by a cancel, but its result is dropped: it must take a second or two at most, report
            nothing, and leave what others use alone.
    """
    executor = ThreadPoolExecutor(1)
    try:
        future = executor.submit(work)
        while True:
            try:
                return future.result(LOOK_S)
            except TimeoutError:
                if future.done():
                    raise
                reporter.check_canceled()
    finally:
        executor.shutdown(wait=False)
