"""What each test tells build.py in its report: the cases it covers (marker `fault`) and the error codes it met."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

_met: set[str] = set()


def pytest_configure(config: pytest.Config) -> None:
    """Notes the code of every error of engine and plugin that is made in this process; no test keeps features where
    the user's are."""
    features = tempfile.TemporaryDirectory(prefix="features")
    config.add_cleanup(features.cleanup)
    os.environ["GEOPEFT_FEATURES"] = features.name
    with contextlib.suppress(ImportError):  # QGIS's Python has no engine
        from geopeft.errors import GeopeftError

        _note_codes(GeopeftError)
    with contextlib.suppress(ImportError):
        from geopeft_qgis.engine_process import EngineError

        _note_codes(EngineError)


def _note_codes(kind: Any) -> None:
    plain = kind.__init__

    def noted(self: Any, *arguments: Any, **named: Any) -> None:
        plain(self, *arguments, **named)
        _met.add(self.code)

    kind.__init__ = noted


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("fault"):
        item.user_properties += [("fault", case) for case in mark.args]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    _met.clear()
    result = yield
    item.user_properties += [("code", code) for code in sorted(_met)]
    return result
