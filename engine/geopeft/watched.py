"""Work in threads and processes beside this one: what is lost interest in, shared, or left without a parent.

Threads are begun without the library's `Thread`, which waits for ever where a new thread's first allocation fails.
"""

from __future__ import annotations

import _thread
import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection
from typing import TypeVar

from geopeft.events import Reporter

LOOK_S = 0.1
# So long a new thread may take to begin, on the busiest machine.
BEGIN_S = 30.0
SLEEP_S = 0.001
T = TypeVar("T")
Item = TypeVar("Item")


def watched(work: Callable[[], T], reporter: Reporter) -> T:
    """Does the work in a thread of its own, and raises Canceled at once when the user cancels.

    Args:
        work: is not stopped by a cancel, but its result is dropped: it must take a second or two at most, report
            nothing, and leave what others use alone.

    Raises:
        MemoryError, RuntimeError: there is no memory for a thread.
    """
    found: list[T] = []
    failed: list[BaseException] = []
    begun, ended = _thread.allocate_lock(), _thread.allocate_lock()
    begun.acquire()
    ended.acquire()

    def run() -> None:
        begun.release()
        try:
            found.append(work())
        except BaseException as error:
            failed.append(error)
        finally:
            ended.release()

    _thread.start_new_thread(run, ())
    latest = time.monotonic() + BEGIN_S
    while not ended.acquire(timeout=LOOK_S):
        reporter.check_canceled()
        if begun.locked() and time.monotonic() > latest:
            raise MemoryError("can't start new thread")
    if failed:
        raise failed[0]
    return found[0]


def side_by_side(work: Callable[[Item], T], items: Sequence[Item], threads: int) -> list[T]:
    """Work on every item, in this thread and others beside it; the results in the order of the items.

    A thread that cannot begin leaves its share to the others.
    """
    found: dict[int, T] = {}
    failed: list[BaseException] = []
    waiting = list(enumerate(items))[::-1]
    lock = _thread.allocate_lock()

    def drain() -> None:
        while True:
            with lock:
                if not waiting or failed:
                    return
                place, item = waiting.pop()
            try:
                found[place] = work(item)
            except BaseException as error:
                failed.append(error)

    for _ in range(min(threads, len(waiting)) - 1):
        with contextlib.suppress(RuntimeError, MemoryError):
            _thread.start_new_thread(drain, ())
    drain()
    while not failed and len(found) < len(items):
        time.sleep(SLEEP_S)
    if failed:
        raise failed[0]
    return [found[place] for place in range(len(items))]


def end_with_parent() -> None:
    """In a process that multiprocessing has started: it ends at once when the process that started it is gone."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        connection.wait([sentinel])
        os._exit(1)

    _thread.start_new_thread(watch, ())
