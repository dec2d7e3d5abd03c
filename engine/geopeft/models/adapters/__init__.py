"""The table of adapters: how much of a backbone is trained, and what of it has to be stored."""

from __future__ import annotations

from geopeft.models.registry import Row, Table

ADAPTERS: Table[Row] = Table(
    "adapter",
    (
        Row("frozen", "Nothing of the backbone is trained", "geopeft.models.adapters.frozen:Frozen"),
        Row("lora", "Low-rank updates of the linear layers (LoRA)", "geopeft.models.adapters.lora:Lora"),
        Row("rslora", "LoRA whose updates do not shrink with the rank (rsLoRA)", "geopeft.models.adapters.lora:RsLora"),
        Row("dora", "Length and direction of weights apart, by LoRA (DoRA)", "geopeft.models.adapters.lora:Dora"),
        Row("pissa", "LoRA of the principal directions of weights (PiSSA)", "geopeft.models.adapters.lora:Pissa"),
        Row("ia3", "Keys, values and hidden activations are scaled (IA3)", "geopeft.models.adapters.scaling:Ia3"),
        Row("bitfit", "Biases and normalisations are trained (BitFit)", "geopeft.models.adapters.bitfit:BitFit"),
        Row("mode", "One decomposition of all layers' updates (PETAL)", "geopeft.models.adapters.tensors:Mode"),
        Row("mpo", "Updates that share their central tensor (MPO)", "geopeft.models.adapters.tensors:Mpo"),
        Row("ssl", "The inputs of layers are scaled (SSL)", "geopeft.models.adapters.scaling:Ssl"),
        Row("ssb", "Inputs and outputs of layers are scaled (SSB)", "geopeft.models.adapters.scaling:Ssb"),
        Row("vpt", "Learned tokens in front of every block (visual prompt tuning)", "geopeft.models.adapters.vpt:Vpt"),
        Row(
            "vit-adapter",
            "A small network beside the transformer, for finer maps (ViT-Adapter)",
            "geopeft.models.adapters.vit_adapter:VitAdapter",
        ),
        Row("full", "The whole backbone is trained", "geopeft.models.adapters.full:Full"),
    ),
)
