"""What the engine can build, as `build.py schema` has written it: no process has to be asked."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple, Optional

from . import settings

# Chosen by the engine, by bands and pixel size.
AUTO = "auto"


class Row(NamedTuple):
    """A row of one of the engine's tables; what does not apply is empty.

    Attributes:
        restricted: the licence limits what the weights may be used for, so the user has to accept it.
        terms: address where the licence can be read.
        adapters: names of those that fit a backbone.
    """

    name: str
    title: str
    licence: str = ""
    restricted: bool = False
    terms: str = ""
    adapters: tuple[str, ...] = ()


@functools.lru_cache(maxsize=1)
def tables() -> dict[str, tuple[Row, ...]]:
    """Rows of "backbones", "adapters" and "decoders"."""
    found: dict[str, list[dict[str, Any]]] = json.loads(
        Path(settings.resource("schema", "models.json")).read_text("utf-8")
    )
    return {
        kind: tuple(Row(**{**row, "adapters": tuple(row.get("adapters", ()))}) for row in rows)
        for kind, rows in found.items()
    }


def names(kind: str, first: str) -> list[str]:
    """The names of a table, the default before the others."""
    return [first, *(row.name for row in tables()[kind] if row.name != first)]


def backbone(name: str) -> Optional[Row]:
    """The row of a backbone; None for a name that is in no table."""
    return next((row for row in tables()["backbones"] if row.name == name), None)
