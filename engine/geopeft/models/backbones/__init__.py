"""The table of backbones. Any other name that timm knows becomes a row when it is asked for."""

from __future__ import annotations

from geopeft.models.cards import clay, copernicus, dofa, galileo, olmoearth, own, prithvi, resnet, terramind, timm
from geopeft.models.registry import BackboneCard, Table

BACKBONES: Table[BackboneCard] = Table(
    "backbone",
    (
        *galileo.ROWS,
        *prithvi.ROWS,
        *clay.ROWS,
        *copernicus.ROWS,
        *dofa.ROWS,
        *resnet.ROWS,
        *olmoearth.ROWS,
        *terramind.ROWS,
        *timm.ROWS,
        *own.ROWS,
    ),
    more="geopeft.models.backbones.adapted:more",
)
