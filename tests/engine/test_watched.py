"""Work under watch: its result and its errors come through, and a cancel does not wait for it."""

import threading
import time
from pathlib import Path

import pytest
from geopeft.errors import Canceled
from geopeft.events import Reporter
from geopeft.watched import watched


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
