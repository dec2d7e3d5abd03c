"""One step of a training: from a batch of chips to changed weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from geopeft.data.batches import Batch
from geopeft.data.labels import IGNORE
from geopeft.models import SegmentationModel
from geopeft.models.backbones.backbone import Scene
from geopeft.models.backbones.transformer import Attention, Mlp
from geopeft.models.metadata import scene_of
from geopeft.objective import balanced_cross_entropy
from geopeft.training import together
from geopeft.training.together import Team

LONGEST_GRADIENT = 1.0


class Features(Protocol):
    """Where a step has its feature maps from."""

    def encode(self, batch: Batch, raw: Tensor, scene: Scene | None) -> tuple[list[Tensor], Tensor]:
        """What `SegmentationModel.encode` gives for a batch, with gradients for what is trained in the backbone.

        Args:
            batch: the chips; its marks say where they come from.
            raw: (B, C, s, s) on the model's device, invalid pixels filled.
            scene: when and where the chips were taken, for backbones that are told.
        """


class Computed:
    """Features that the whole backbone computes for every step."""

    def __init__(self, model: SegmentationModel) -> None:
        self._model = model

    def encode(self, batch: Batch, raw: Tensor, scene: Scene | None) -> tuple[list[Tensor], Tensor]:
        """See `Features`."""
        return self._model.encode(raw, scene)


class Learner:
    """Makes the steps of a model that is on its device; in a team, together with the processes that follow."""

    def __init__(self, model: SegmentationModel, features: Features) -> None:
        self._model, self._features = model, features
        self._device = model.scale.device
        self._half = multiplies_bfloat16(self._device)
        self._half_backbone = self._half and gains_from_half(model.backbone, self._device)
        self._halves: dict[torch.nn.Parameter, Tensor] = {}
        self._adapter = [p for p in model.backbone.parameters() if p.requires_grad]
        self._followed = False

    def single_precision(self) -> None:
        """Computes in float32 whatever the device could do."""
        self._half = self._half_backbone = False

    def step(self, batch: Batch, raw: Tensor, optimizer: torch.optim.Optimizer) -> float:
        """Changes what learns, at the optimizer's rates, and gives the loss from before.

        Args:
            raw: the batch's values (B, C, s, s), invalid pixels filled.
        """
        raw, team = raw.to(self._device), together.team()
        learning = self._learning()
        optimizer.zero_grad(set_to_none=True)
        if team is None:
            loss = self._backward(batch, raw, batch.class_ids)
        else:
            self._lead(team, batch, raw)
            share = slice(0, None, team.size)
            loss = self._backward(batch.part(0, team.size), raw[share], batch.class_ids)
            unasked = [p for p in learning if p.grad is None]
            team.add_up([loss, *(_gradient(p) for p in learning)])
            for parameter in unasked:
                parameter.grad = None
        torch.nn.utils.clip_grad_norm_(learning, LONGEST_GRADIENT)
        optimizer.step()
        return float(loss)

    def help(self, team: Team, batch: Batch) -> None:
        """A follower's part of a step: takes the leader's weights, and adds the gradients of its share of the batch.

        Args:
            batch: the whole one, invalid pixels filled.
        """
        learning = self._learning()
        team.share_all(learning)
        for parameter in learning:
            parameter.grad = None
        loss, mine = torch.zeros((), device=self._device), batch.part(team.rank, team.size)
        if len(mine.values):
            loss = self._backward(mine, torch.from_numpy(mine.values).to(self._device), batch.class_ids)
        team.add_up([loss, *(_gradient(p) for p in learning)])

    def _learning(self) -> list[torch.nn.Parameter]:
        return [p for p in self._model.parameters() if p.requires_grad]

    def _lead(self, team: Team, batch: Batch, raw: Tensor) -> None:
        """Sends the followers what the step needs, and before the first one the model."""
        if not self._followed:
            spec, base = self._model.spec.model_dump(mode="json"), self._model.base_weights
            team.tell({"what": "model", "spec": spec, "weights": base.file, "sha256": base.sha256})
            for tensor in self._model.trainable_state().values():
                team.share(tensor.to(self._device))
            self._followed = True
        told = [] if batch.taken is None else [batch.taken.time, batch.taken.place]
        learns = any(parameter.requires_grad for parameter in self._adapter)
        shapes = [list(part.shape) for part in told]
        team.tell({"what": "step", "shape": list(raw.shape), "taken": shapes, "adapter_learns": learns})
        parts = (raw, torch.from_numpy(batch.class_ids), *(torch.from_numpy(part) for part in told))
        for part in parts:
            team.share(part.contiguous().to(self._device))
        team.share_all(self._learning())

    def _backward(self, batch: Batch, raw: Tensor, all_class_ids: np.ndarray) -> Tensor:
        """The loss of a batch, or of a part of one with these labels in all; its gradients are in the parameters."""
        self._model.train()
        if together.team() is not None:
            for norm in batch_norms(self._model):
                norm.eval()
        truth = torch.from_numpy(batch.class_ids.astype(np.int64)).to(self._device)
        scene = scene_of(batch.taken, self._model.spec, self._device)
        weights = class_weights(all_class_ids, self._model.spec.num_classes)
        total = weights[torch.from_numpy(all_class_ids[all_class_ids != IGNORE].astype(np.int64))].sum()
        # What the gradients ask for is the weight as it then stands there.
        with self._halved():
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half_backbone):
                features, standardised = self._features.encode(batch, raw, scene)
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
                logits = self._model.decode(features, standardised)
            loss = balanced_cross_entropy(logits, truth, weights.to(self._device), total.to(self._device))
            loss.backward()
        return loss.detach()

    @contextlib.contextmanager
    def _halved(self) -> Iterator[None]:
        """Frozen weights of the transformer's layers stand there in bfloat16 where the backbone computes in it: what
        autocast would make of them in every step, and keep for the gradients, is made once."""
        if self._half_backbone and not self._halves:
            self._halves = {weight: weight.detach().bfloat16() for weight in frozen_weights(self._model.backbone)}
        own = {weight: weight.data for weight in self._halves}
        for weight, half in self._halves.items():
            weight.data = half
        try:
            yield
        finally:
            for weight, data in own.items():
                weight.data = data


def batch_norms(model: SegmentationModel) -> list[torch.nn.Module]:
    """The norms that take their statistics from the batch while the model is in training.

    Each process of a team would take them from its few chips, and no two from the same, so there they stay as they
    are, which is how ResNet was fine-tuned on few images a GPU (arXiv 1512.03385, appendix A).
    """
    norms = torch.nn.modules.batchnorm._BatchNorm
    statistics = model.adapter is not None and model.adapter.trains_statistics
    return [module for module in model.modules() if isinstance(module, norms)] if statistics else []


def _gradient(parameter: torch.nn.Parameter) -> Tensor:
    """Of a parameter; zeros where nothing has asked for it."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def frozen_weights(backbone: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The matrices of a transformer's blocks that no step changes."""
    layers = [m for part in backbone.modules() if isinstance(part, Attention | Mlp) for m in part.modules()]
    linear = dict.fromkeys(layer for layer in layers if isinstance(layer, torch.nn.Linear))
    return [layer.weight for layer in linear if not layer.weight.requires_grad]  # type: ignore[misc]


def class_weights(class_ids: np.ndarray, classes: int) -> Tensor:
    """(K,) root of the inverse frequency in these chips: full balance would let single pixels shout."""
    counts = np.bincount(class_ids[class_ids != IGNORE], minlength=classes)[:classes]
    weights = 1 / np.sqrt(np.maximum(counts, 1))
    return torch.from_numpy((weights / weights.mean()).astype(np.float32))


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has units for bfloat16, which train in about half the time; else it would be slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def gains_from_half(backbone: torch.nn.Module, device: torch.device) -> bool:
    """Whether bfloat16 makes a backbone's training faster: on a CPU, small and depthwise layers lose by it."""
    layers = [module for module in backbone.modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)]
    depthwise = any(isinstance(layer, torch.nn.Conv2d) and layer.groups > 1 for layer in layers)
    typical = max((layer.weight.shape[1] for layer in layers), default=0)
    return device.type != "cpu" or (not depthwise and typical >= 1024)
