"""Classes and values that take whatever is done to them, for the parts of QGIS that do not matter to a window."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class AnyClass(type):
    """A class whose nested classes, enums and static functions are there when they are asked for."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = AnyClass(name, (Anything,), {}) if name[:1].isupper() else Anything()
        setattr(cls, name, made)
        return made

    def __or__(cls, other: Any) -> Any:
        return cls

    __ror__ = __and__ = __rand__ = __or__

    def __invert__(cls) -> Any:
        return cls

    def __int__(cls) -> int:
        return 0

    __index__ = __int__


class Anything(metaclass=AnyClass):
    """A value that can be called, combined, counted and printed; it is empty, and False."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made = Anything()
        # Kept, so that what is connected to a signal stays with it.
        object.__setattr__(self, name, made)
        return made

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return Anything()

    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __getitem__(self, key: Any) -> Any:
        raise IndexError(key)

    def __contains__(self, item: Any) -> bool:
        return False

    def __int__(self) -> int:
        return 0

    __index__ = __int__

    def __float__(self) -> float:
        return 0.0

    def __str__(self) -> str:
        return ""

    def __format__(self, how: str) -> str:
        return ""

    def __or__(self, other: Any) -> Any:
        return self

    __ror__ = __and__ = __rand__ = __add__ = __radd__ = __sub__ = __mul__ = __truediv__ = __or__

    def __invert__(self) -> Any:
        return self

    def __lt__(self, other: Any) -> bool:
        return False

    __gt__ = __le__ = __ge__ = __lt__


def make(name: str, module: str) -> type:
    """A class of QGIS that is needed by name only."""
    if name.startswith("__"):
        raise AttributeError(name)
    return AnyClass(name, (Anything,), {"__module__": module})
