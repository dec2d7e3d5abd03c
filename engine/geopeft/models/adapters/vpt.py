"""Visual prompt tuning, deep (arXiv 2203.12119): every block sees learned tokens of its own, all else stays as it is.

Prompts stand behind the prefix tokens, carry no position, and are dropped after each block. They cannot be merged into
weights: a model opened for prediction keeps them as constants.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from geopeft.errors import JobError
from geopeft.models.adapters.adapter import State, require_fit
from geopeft.models.backbones.backbone import Backbone
from geopeft.models.backbones.timm_backbone import TimmBackbone, plain_transformer
from geopeft.models.backbones.transformer import VitBackbone, run_prompted
from geopeft.models.spec import ModelSpec

DROPOUT = 0.1
PROMPTS = "prompts"


class Vpt:
    """`spec.prompt_tokens` prompts for each block, drawn as in the paper, with the study's dropout of 0.1."""

    trains_statistics = False
    stores_backbone = False

    def apply(self, backbone: Backbone, spec: ModelSpec) -> None:
        backbone.requires_grad_(False)
        dropout = nn.Dropout(DROPOUT)
        if isinstance(backbone, VitBackbone):
            depth, dim = len(backbone.blocks), backbone.dim
            backbone.prompts = nn.Parameter(_drawn((depth, spec.prompt_tokens, dim), backbone.patch_px))
            backbone.prompt_dropout = dropout
        else:
            _wrap_blocks(backbone, spec, dropout)
        backbone.added = (dropout,)

    def state(self, backbone: Backbone) -> State:
        own = backbone.state_dict()
        return {name: value for name, value in own.items() if name.rpartition(".")[2] == PROMPTS}

    def load(self, backbone: Backbone, state: Mapping[str, Tensor]) -> None:
        own = self.state(backbone)
        require_fit(state, {name: tuple(value.shape) for name, value in own.items()}, "adapter")
        with torch.no_grad():
            for name, value in state.items():
                own[name].copy_(value)

    def merge(self, backbone: Backbone, state: Mapping[str, Tensor], spec: ModelSpec) -> None:
        self.apply(backbone, spec)
        self.load(backbone, state)


class PromptedBlock(nn.Module):
    """A block of a timm transformer with prompts (P, D) of its own; tokens (B, prefix + N, D) -> the same shape."""

    def __init__(self, block: nn.Module, prompts: Tensor, prefix: int, dropout: nn.Module) -> None:
        super().__init__()
        self.base_layer = block
        self.prompts = nn.Parameter(prompts)
        self.prefix = prefix
        self.dropout = dropout

    def forward(self, tokens: Tensor) -> Tensor:
        return run_prompted(self.base_layer, tokens, self.prompts, self.prefix, self.dropout)


def _wrap_blocks(backbone: Backbone, spec: ModelSpec, dropout: nn.Module) -> None:
    net = plain_transformer(backbone) if isinstance(backbone, TimmBackbone) else None
    if net is None:
        raise JobError(
            f"Visual prompts need a plain transformer, which {spec.backbone} is not.",
            "Choose the adapter 'lora', 'full' or 'frozen', or another backbone.",
            "ADAPTER_UNSUITABLE",
        )
    patch_px = net.patch_embed.patch_size[0]
    for i, block in enumerate(net.blocks):
        prompts = _drawn((spec.prompt_tokens, net.embed_dim), patch_px)
        net.blocks[i] = PromptedBlock(block, prompts, net.num_prefix_tokens, dropout)


def _drawn(shape: tuple[int, ...], patch_px: int) -> Tensor:
    """Uniform between -a and a, a = sqrt(6 / (3 p^2 + D)): as for the weights of an RGB patch embedding."""
    bound = math.sqrt(6 / (3 * patch_px**2 + shape[-1]))
    return torch.empty(shape).uniform_(-bound, bound)
