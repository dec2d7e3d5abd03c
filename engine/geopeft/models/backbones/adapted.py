"""Rows that are made when they are asked for: NAME@SHA256 for a file that the `pretrain` job wrote, else timm's names.

The name of an adapted backbone holds the checksum of its file, so that a model package finds just that file again.
"""

from __future__ import annotations

import json
import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from geopeft.errors import WeightsError
from geopeft.models.registry import BackboneCard, WeightsSource

FORMAT = "geopeft-backbone 1"
_NAME = re.compile(r"(.+)@([0-9a-f]{64})")
_MOST_HEADER_BYTES = 64 << 20


@dataclass(frozen=True)
class AdaptedFile:
    """What the header of such a file says: the row it was made from, its licence and how it was made."""

    backbone: str
    licence: str
    recipe: dict[str, Any]


def more(name: str) -> BackboneCard | list[str] | None:
    """A row for a name that is in no table, None where nobody knows it; for "" all the names that timm knows."""
    match = _NAME.fullmatch(name)
    if match is None:
        from geopeft.models.backbones import timm_backbone

        return timm_backbone.card(name)
    from geopeft.models.backbones import BACKBONES

    base, sha256 = match.groups()
    if base not in BACKBONES:
        return None
    card = BACKBONES[base]
    source = WeightsSource(file=f"{name}.safetensors", sha256=sha256, own_names=True, adapted=True)
    return replace(card, name=name, title=f"{card.title}; adapted ({sha256[:8]})", weights=source)


def read_header(path: Path) -> AdaptedFile:
    """What a file that `pretrain` wrote says of itself, without reading its tensors; WeightsError where it is none."""
    try:
        with path.open("rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > _MOST_HEADER_BYTES:
                raise ValueError("its header is too long")
            note = json.loads(stream.read(size)).get("__metadata__", {})
        if note.get("format") != FORMAT:
            raise ValueError("it was not written by the pretrain job")
        return AdaptedFile(str(note["backbone"]), str(note.get("licence", "")), dict(json.loads(note["recipe"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise WeightsError(
            f"{path} is no adapted backbone ({error}).",
            "Name a file that `geopeft pretrain` wrote, or a backbone of `geopeft models`.",
            "WEIGHTS_BROKEN",
        ) from error
