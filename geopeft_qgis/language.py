"""Text in the user's language, for whatever has no `tr` of its own. Standard library only, not even qgis."""

from __future__ import annotations

from typing import Callable

Translate = Callable[[str], str]


def _english(text: str) -> str:
    return text


_translate: Translate = _english


def use(translate: Translate = _english) -> None:
    """Sets how text is translated; without an argument it stays as it is written, in English."""
    global _translate
    _translate = translate


def tr(text: str) -> str:
    """A literal in the user's language; what it is about is filled in afterwards, by `.format`."""
    return _translate(text)
