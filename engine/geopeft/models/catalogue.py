"""The `models` job: what the tables hold, without importing torch."""

from __future__ import annotations

from typing import Any

from geopeft.events import Reporter
from geopeft.job import ModelsJob
from geopeft.models.adapters import ADAPTERS
from geopeft.models.backbones import BACKBONES
from geopeft.models.decoders import DECODERS
from geopeft.models.weights import locate


def run(job: ModelsJob, reporter: Reporter) -> dict[str, Any]:
    """The `models` job: every row, and for each backbone whether its weights are at hand."""
    backbones = [
        {
            "name": card.name,
            "title": card.title,
            "licence": card.licence,
            "restricted": card.restricted,
            "terms": card.terms,
            "paper": card.paper,
            "bands": [band.name for band in card.bands],
            "any_optical_band": card.any_optical,
            "gsd_m": list(card.gsd_m) if card.gsd_m else None,
            "parameters_m": card.parameters_m,
            "adapters": list(card.adapters),
            "weights_at_hand": not card.pretrained or locate(card, job.weights_dir) is not None,
        }
        for card in BACKBONES
    ]
    return {
        "backbones": backbones,
        "adapters": [{"name": row.name, "title": row.title} for row in ADAPTERS],
        "decoders": [{"name": row.name, "title": row.title, "parameters": dict(row.parameters)} for row in DECODERS],
    }
