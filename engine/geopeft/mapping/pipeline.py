"""Steps that run beside each other: an iterator that is worked off ahead, one whose items are worked on abreast, and
one whose items are consumed behind.

The queues between them are short, so that memory stays bounded; an error on one side ends the other, and is raised in
the thread that called. Threads are begun as in `watched`, for its reason.
"""

from __future__ import annotations

import _thread
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, Full, Queue, SimpleQueue
from threading import Semaphore
from typing import Generic, TypeVar

from geopeft.watched import BEGIN_S, LOOK_S

DEPTH = 2
# A read from a server that does not answer is not waited for when a job is canceled.
LEAVE_S = 5.0
T = TypeVar("T")
R = TypeVar("R")


class _Dropped(Exception):
    """The other side has ended early."""


class _Aside:
    """A thread that has begun, runs and ends."""

    def __init__(self, work: Callable[[], None]) -> None:
        self._begun, self._ended = _thread.allocate_lock(), _thread.allocate_lock()
        self._latest = time.monotonic() + BEGIN_S
        self.error: BaseException | None = None
        self._begun.acquire()
        self._ended.acquire()

        def run() -> None:
            self._begun.release()
            try:
                work()
            except BaseException as error:
                self.error = error
            finally:
                self._ended.release()

        _thread.start_new_thread(run, ())

    @property
    def ended(self) -> bool:
        """Whether it has ended; MemoryError where it never began."""
        if self._begun.locked() and time.monotonic() > self._latest:
            raise MemoryError("can't start new thread")
        return not self._ended.locked()

    def wait(self, seconds: float = float("inf")) -> None:
        """Until it has ended, but not longer."""
        until = time.monotonic() + seconds
        while not self.ended and time.monotonic() < until:
            if self._ended.acquire(timeout=LOOK_S):
                self._ended.release()


class _Line(Generic[T]):
    """A short queue, the end of which is told, and that both sides may leave."""

    def __init__(self) -> None:
        self._queue: Queue[tuple[T] | None] = Queue(DEPTH)
        self.dropped = False

    def put(self, item: tuple[T] | None, is_needed: Callable[[], bool]) -> bool:
        """False where nobody takes it any more."""
        while is_needed():
            try:
                self._queue.put(item, timeout=LOOK_S)
                return True
            except Full:
                continue
        return False

    def items(self, is_ended: Callable[[], bool]) -> Generator[T, None, None]:
        """Until the end is told, or the other side is gone."""
        while not self.dropped:
            gone = is_ended()
            try:
                item = self._queue.get(block=not gone, timeout=LOOK_S)
            except Empty:
                if gone:
                    return
                continue
            if item is None:
                return
            yield item[0]
        raise _Dropped


@contextmanager
def ahead(items: Generator[T, None, None]) -> Iterator[Iterator[T]]:
    """The items, made in a thread of their own while those before are used; an error comes where they are taken."""
    line: _Line[T] = _Line()

    def make() -> None:
        try:
            for item in items:
                if not line.put((item,), lambda: not line.dropped):
                    return
            line.put(None, lambda: not line.dropped)
        finally:
            items.close()

    aside = _Aside(make)

    def taken() -> Iterator[T]:
        yield from line.items(lambda: aside.ended)
        aside.wait()
        if aside.error is not None:
            raise aside.error

    try:
        yield taken()
    finally:
        line.dropped = True
        aside.wait(LEAVE_S)


def abreast(work: Callable[[T], R], items: Iterator[T], threads: int) -> Generator[R, None, None]:
    """Work on every item, in so many threads beside each other; the results in the order of the items.

    Each thread is ahead of what is taken by two items at most; an error of any item is raised at once. Where it is one
    thread, it is the caller's.
    """
    if threads < 2:
        yield from map(work, items)
        return
    taking, room, numbered = _thread.allocate_lock(), Semaphore(DEPTH * threads), enumerate(items)
    done: SimpleQueue[tuple[int, R] | BaseException | None] = SimpleQueue()
    dropped: list[bool] = []

    def drain() -> None:
        try:
            while not dropped:
                if room.acquire(timeout=LOOK_S):
                    with taking:
                        number, item = next(numbered)
                    done.put((number, work(item)))
        except StopIteration:
            pass
        except BaseException as error:
            done.put(error)
        finally:
            done.put(None)

    asides = [_Aside(drain) for _ in range(threads)]
    try:
        for result in _in_order(done, asides):
            room.release()
            yield result
    finally:
        dropped.append(True)
        for aside in asides:
            aside.wait()


def _in_order(
    done: SimpleQueue[tuple[int, R] | BaseException | None], asides: Sequence[_Aside]
) -> Generator[R, None, None]:
    """The numbered results by their numbers, until every thread has told that it has ended."""
    early: dict[int, R] = {}
    wanted, running = 0, len(asides)
    while running:
        try:
            found = done.get(timeout=LOOK_S)
        except Empty:
            # One that never began tells nothing.
            if all(aside.ended for aside in asides) and done.empty():
                raise _Dropped from None
            continue
        if isinstance(found, BaseException):
            raise found
        if found is None:
            running -= 1
            continue
        early[found[0]] = found[1]
        while wanted in early:
            yield early.pop(wanted)
            wanted += 1


def behind(items: Generator[T, None, None], consume: Callable[[Iterator[T]], R]) -> R:
    """Makes the items in this thread and consumes them in another; what that returns.

    Where making an item fails, `consume` meets an exception at its next item, and has ended when this one is raised.
    """
    line: _Line[T] = _Line()
    found: list[R] = []
    aside = _Aside(lambda: found.append(consume(line.items(lambda: False))))
    try:
        for item in items:
            if not line.put((item,), lambda: not aside.ended):
                break
        line.put(None, lambda: not aside.ended)
    except BaseException:
        line.dropped = True
        aside.wait()
        raise
    finally:
        items.close()
    aside.wait()
    if aside.error is not None:
        raise aside.error
    return found[0]
