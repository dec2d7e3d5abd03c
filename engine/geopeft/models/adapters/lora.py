"""LoRA (arXiv 2106.09685): W + alpha / r * B A on the layers that the backbone names; injected by peft.

Stored names are `LAYER.lora_A.weight` and `LAYER.lora_B.weight`, whatever the library calls them. Putting them back for
prediction is plain arithmetic and needs no library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from geopeft.errors import JobError
from geopeft.models.adapters.adapter import State, require_fit
from geopeft.models.backbones.backbone import Backbone
from geopeft.models.spec import ModelSpec

ADAPTER_NAME = "default"


class Lora:
    """Rank-r updates with alpha = r and no dropout, as in the study."""

    trains_statistics = False
    stores_backbone = False

    def apply(self, backbone: Backbone, spec: ModelSpec) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        names = list(_targets(backbone))
        if not names:
            raise JobError(
                f"LoRA would train nothing of {spec.backbone}: it has no layer that LoRA can update.",
                "Choose the adapter 'full' or 'frozen', or another backbone.",
                "ADAPTER_TRAINS_NOTHING",
            )
        backbone.requires_grad_(False)
        # A regular expression that names each layer in full: a list would also match every longer name.
        exactly = "|".join(re.escape(name) for name in names)
        config = LoraConfig(r=spec.rank, lora_alpha=spec.rank, lora_dropout=0.0, bias="none", target_modules=exactly)
        inject_adapter_in_model(config, backbone, ADAPTER_NAME)
        for name, parameter in backbone.named_parameters():
            parameter.requires_grad_(".lora_" in name)

    def state(self, backbone: Backbone) -> State:
        return {_stored_name(k): v for k, v in backbone.state_dict().items() if ".lora_" in k}

    def load(self, backbone: Backbone, state: Mapping[str, Tensor]) -> None:
        own = self.state(backbone)
        require_fit(state, {key: tuple(value.shape) for key, value in own.items()}, "adapter")
        with torch.no_grad():
            for key, value in state.items():
                own[key].copy_(value)

    def merge(self, backbone: Backbone, state: Mapping[str, Tensor], spec: ModelSpec) -> None:
        layers = _targets(backbone)
        expected = {}
        for name, layer in layers.items():
            rows, cols, *kernel = layer.weight.shape
            expected[f"{name}.lora_A.weight"] = (spec.rank, cols, *kernel)
            expected[f"{name}.lora_B.weight"] = (rows, spec.rank, *kernel)
        require_fit(state, expected, "adapter")
        with torch.no_grad():
            for name, layer in layers.items():
                down, up = state[f"{name}.lora_A.weight"], state[f"{name}.lora_B.weight"]
                # alpha is r, so that alpha / r is 1.
                update = up.flatten(1).float() @ down.flatten(1).float()
                layer.weight += update.view_as(layer.weight).to(layer.weight)


def _targets(backbone: Backbone) -> dict[str, nn.Linear | nn.Conv2d]:
    """Layers by name whose full name is, or ends with, one of the backbone's targets."""
    return {
        name: module
        for name, module in backbone.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and _named(name, backbone.adapter_targets)
    }


def _named(name: str, targets: Sequence[str]) -> bool:
    return any(name == target or name.endswith("." + target) for target in targets)


def _stored_name(key: str) -> str:
    return key.replace(f".{ADAPTER_NAME}.", ".")
