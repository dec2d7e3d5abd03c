"""The table of backbones. Any other name that timm knows becomes a row when it is asked for."""

from __future__ import annotations

from geopeft.models.cards import galileo, own, timm
from geopeft.models.registry import BackboneCard, Table

BACKBONES: Table[BackboneCard] = Table(
    "backbone",
    (*galileo.ROWS, *timm.ROWS, *own.ROWS),
    more="geopeft.models.backbones.adapted:more",
)
