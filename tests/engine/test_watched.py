"""Work under watch: its result and its errors come through, and a cancel does not wait for it."""

import threading
import time
from pathlib import Path

import pytest
from geopeft.errors import Canceled
from geopeft.events import Reporter
from geopeft.watched import side_by_side, watched


def test_the_result_comes_through() -> None:
    assert watched(lambda: 7, Reporter()) == 7


@pytest.mark.parametrize("error", [KeyError, TimeoutError])
def test_an_error_comes_through(error: type[Exception]) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(error):
        watched(fail, Reporter())


def test_a_cancel_does_not_wait_for_the_end(tmp_path: Path) -> None:
    end = threading.Event()
    threading.Timer(0.2, (tmp_path / "cancel").touch).start()
    start = time.monotonic()
    with pytest.raises(Canceled):
        watched(lambda: end.wait(30), Reporter(None, tmp_path))
    assert time.monotonic() - start < 5
    end.set()


def test_a_thread_that_never_begins_is_missing_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geopeft.watched.BEGIN_S", 0.2)
    monkeypatch.setattr("geopeft.watched._thread.start_new_thread", lambda *_: 0)
    with pytest.raises(MemoryError, match="thread"):
        watched(lambda: 7, Reporter())


def test_items_are_worked_on_side_by_side_and_come_back_in_order() -> None:
    seen = set()

    def work(item: int) -> int:
        seen.add(threading.get_ident())
        time.sleep(0.02)
        return item * item

    assert side_by_side(work, range(12), 3) == [n * n for n in range(12)]
    assert len(seen) == 3
    assert side_by_side(work, [], 3) == []


def test_the_first_failure_of_many_is_told() -> None:
    def work(item: int) -> int:
        if item == 5:
            raise KeyError(item)
        return item

    with pytest.raises(KeyError, match="5"):
        side_by_side(work, range(50), 2)


def test_without_memory_for_threads_this_one_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("geopeft.watched._thread.start_new_thread", refuse)
    assert side_by_side(lambda item: item + 1, range(5), 4) == [1, 2, 3, 4, 5]
