"""The table of adapters: how much of a backbone is trained, and what of it has to be stored."""

from __future__ import annotations

from geopeft.models.registry import Row, Table

ADAPTERS: Table[Row] = Table(
    "adapter",
    (
        Row("frozen", "Nothing of the backbone is trained", "geopeft.models.adapters.frozen:Frozen"),
        Row("lora", "Low-rank updates of the linear layers (LoRA)", "geopeft.models.adapters.lora:Lora"),
        Row("vpt", "Learned tokens in front of every block (visual prompt tuning)", "geopeft.models.adapters.vpt:Vpt"),
        Row(
            "vit-adapter",
            "A small network beside the transformer, for finer maps (ViT-Adapter)",
            "geopeft.models.adapters.vit_adapter:VitAdapter",
        ),
        Row("full", "The whole backbone is trained", "geopeft.models.adapters.full:Full"),
    ),
)
