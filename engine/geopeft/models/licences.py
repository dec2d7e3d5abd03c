"""Weights whose licence is not an open one: asked once, recorded on this machine."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

from geopeft.errors import JobError
from geopeft.models.registry import BackboneCard
from geopeft.models.weights import cache_folder
from geopeft.writing import check_target, write_bytes


def require_licence(card: BackboneCard, accepts: bool) -> None:
    """Nothing where the licence of a card's weights is open, or was accepted here, or is now, which is recorded.

    Raises:
        JobError: LICENCE_NOT_ACCEPTED.
    """
    if not card.restricted or is_accepted(card):
        return
    if not accepts:
        raise JobError(
            f"The weights of {card.network} are under the licence '{card.licence}', which limits what they, and models "
            "that build on them, may be used for.",
            f"Read it ({card.terms or card.paper}); if your use agrees with it, accept it once: accept_licence, in the "
            "toolbox too.",
            "LICENCE_NOT_ACCEPTED",
        )
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    record = _recorded() | {card.network: {"licence": card.licence, "accepted": today}}
    check_target(_file())
    write_bytes(_file(), json.dumps(record, indent=1).encode())


def is_accepted(card: BackboneCard) -> bool:
    """Whether the licence of the card's weights was accepted on this machine, and is still the same."""
    entry = _recorded().get(card.network)
    return isinstance(entry, dict) and entry.get("licence") == card.licence


def _file() -> Path:
    return cache_folder().parent / "licences.json"


def _recorded() -> dict[str, Any]:
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
