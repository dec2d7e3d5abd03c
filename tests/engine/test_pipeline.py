"""Iterators that are worked off in another thread: order, bounds, errors on either side."""

from __future__ import annotations

import _thread
import time
from collections.abc import Generator, Iterator

import pytest
from geopeft.errors import Canceled, RasterError
from geopeft.mapping import pipeline
from geopeft.mapping.pipeline import DEPTH, abreast, ahead, behind


class Source:
    """Counts, and knows what became of it."""

    def __init__(self, fails_at: int = -1) -> None:
        self.made, self.is_closed, self.thread = 0, False, 0
        self._fails_at = fails_at

    def items(self, count: int) -> Generator[int, None, None]:
        self.thread = _thread.get_ident()
        try:
            for number in range(count):
                if number == self._fails_at:
                    raise RasterError("damaged", "copy it again", "RASTER_READ")
                self.made += 1
                yield number
        finally:
            self.is_closed = True


def test_items_come_in_order_from_another_thread_and_not_far_ahead() -> None:
    source = Source()
    with ahead(source.items(50)) as found:
        assert next(found) == 0
        time.sleep(0.2)
        assert source.made <= 1 + DEPTH + 1
        assert list(found) == list(range(1, 50))
    assert source.thread != _thread.get_ident() and source.is_closed


def test_an_error_comes_after_the_items_before_it() -> None:
    source, taken = Source(fails_at=3), []
    with pytest.raises(RasterError), ahead(source.items(9)) as found:
        for number in found:
            taken.append(number)
    assert taken == [0, 1, 2] and source.is_closed


def test_who_leaves_early_ends_the_other_thread() -> None:
    source = Source()
    with pytest.raises(Canceled), ahead(source.items(10**9)) as found:
        next(found)
        raise Canceled
    assert source.is_closed and source.made <= 3 + DEPTH


def test_items_are_consumed_in_another_thread_which_gives_the_result() -> None:
    source, threads = Source(), []

    def consume(items: Iterator[int]) -> int:
        threads.append(_thread.get_ident())
        return sum(items)

    assert behind(source.items(100), consume) == 4950
    assert threads != [_thread.get_ident()] and source.thread == _thread.get_ident()


def test_where_consuming_fails_no_more_is_made_and_its_error_is_raised() -> None:
    source = Source()

    def consume(items: Iterator[int]) -> None:
        next(items)
        raise OSError(28, "no space")

    with pytest.raises(OSError, match="no space"):
        behind(source.items(10**9), consume)
    assert source.is_closed and source.made <= 4 + DEPTH


def test_where_making_fails_the_consumer_has_ended_without_its_result() -> None:
    told: list[str] = []

    def consume(items: Iterator[int]) -> None:
        try:
            for _ in items:
                time.sleep(0.01)
            told.append("the end")
        finally:
            told.append("ended")

    with pytest.raises(RasterError):
        behind(Source(fails_at=2).items(9), consume)
    assert told == ["ended"]


def test_a_thread_that_never_begins_is_missing_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "BEGIN_S", 0.2)
    monkeypatch.setattr(pipeline._thread, "start_new_thread", lambda *_: 0)
    with pytest.raises(MemoryError):
        behind(Source().items(10**6), sum)


def test_several_threads_give_results_in_order_and_not_far_ahead() -> None:
    source, threads = Source(), set()

    def work(number: int) -> int:
        threads.add(_thread.get_ident())
        time.sleep(0.02 if number % 3 == 0 else 0.001)
        return -number

    found = abreast(work, source.items(60), 3)
    assert next(found) == 0
    time.sleep(0.2)
    assert source.made <= 1 + 3 * DEPTH
    assert list(found) == [-number for number in range(1, 60)]
    assert len(threads) == 3 and _thread.get_ident() not in threads and source.is_closed


def test_one_thread_is_the_callers() -> None:
    source, threads = Source(), set()
    assert list(abreast(lambda _: threads.add(_thread.get_ident()), source.items(5), 1)) == 5 * [None]
    assert threads == {_thread.get_ident()} and source.made == 5


@pytest.mark.parametrize("fails_at", [-1, 7])
def test_an_error_of_the_work_or_of_an_item_ends_all_threads(fails_at: int) -> None:
    running, source = [0], Source(fails_at)

    def work(number: int) -> int:
        running[0] += 1
        try:
            time.sleep(0.01)
            if number == 7:
                raise RasterError("damaged", "copy it again", "RASTER_READ")
            return number
        finally:
            running[0] -= 1

    with pytest.raises(RasterError):
        list(abreast(work, source.items(10**9), 2))
    assert running == [0] and source.made <= 8 + 2 * DEPTH


def test_who_leaves_early_waits_for_what_is_worked_on() -> None:
    done: list[int] = []

    def work(number: int) -> int:
        time.sleep(0.05)
        done.append(number)
        return number

    found = abreast(work, Source().items(10**9), 2)
    next(found)
    found.close()
    count = len(done)
    time.sleep(0.2)
    assert len(done) == count <= 1 + 2 * DEPTH
