"""The table of backbones. Any other name that timm knows becomes a row when it is asked for."""

from __future__ import annotations

from geopeft.models.cards import galileo, own, prithvi, resnet, timm
from geopeft.models.registry import BackboneCard, Table

BACKBONES: Table[BackboneCard] = Table(
    "backbone",
    (*galileo.ROWS, *prithvi.ROWS, *resnet.ROWS, *timm.ROWS, *own.ROWS),
    more="geopeft.models.backbones.adapted:more",
)
