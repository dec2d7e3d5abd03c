"""The training loop: steps, averaged weights, validation on held-out places, early stop, the best weights kept."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from geopeft.data.chips import Chip, ChipSampler
from geopeft.events import Reporter
from geopeft.models import SegmentationModel
from geopeft.objective import balanced_cross_entropy, confusion, figures
from geopeft.runtime import fill_invalid, fill_values

BATCH = 8
EVALUATE_EVERY = 20
PATIENCE = 8
# The study's search found 7e-4 for LoRA and 4e-5 for full tuning (medians of five sets, up to 100 epochs); the short
# runs here take a few times as much, and a decoder that starts from nothing more still.
ADAPTER_LEARNING_RATES = {"lora": 1.5e-3, "full": 2e-4}
DECODER_LEARNING_RATE = 2e-3
# The probe is fitted already when training begins.
PROBE_LEARNING_RATE = 1e-4
WEIGHT_DECAY = 0.01
# Weights averaged over about the last 1 / (1 - 0.95) = 20 steps: with few labels single steps jump.
AVERAGING = 0.95

# The decoder learns alone first: through one that knows nothing yet, an adapter would learn noise.
ALONE_SHARE = 0.3
# After validation the held-out labels teach too, for this part of the steps that proved best and at a falling rate.
FINISH_SHARE = 0.25
FINISH_RATE = 0.4

ValidationChips = Sequence[tuple[Chip, tuple[int, int, int]]]


class Trainer:
    """Trains what the adapter left trainable.

    Args:
        model: on its device.
        sampler: draws the training chips.
        validation: chips of the held-out places; empty where too few labels are there to hold any out.
        reporter: gets progress, and loss and mIoU as metrics.
        trusts_validation: the best weights are those with the lowest validation loss; else the last, averaged ones.
    """

    def __init__(
        self,
        model: SegmentationModel,
        sampler: ChipSampler,
        validation: ValidationChips,
        reporter: Reporter,
        trusts_validation: bool = True,
    ) -> None:
        self.model, self._sampler, self._validation, self._reporter = model, sampler, validation, reporter
        self._trusts = trusts_validation
        self._device = next(model.parameters()).device
        # Convolutions and the norms over channels both read the channels of a pixel side by side.
        model.to(memory_format=torch.channels_last)
        self._half = multiplies_bfloat16(self._device)
        self._half_backbone = self._half and gains_from_half(model.backbone, self._device)
        self._fill = fill_values(model.spec.bands)
        self._names = {name for name, p in model.named_parameters() if p.requires_grad}
        self._adapter = [p for p in model.backbone.parameters() if p.requires_grad]
        self._average = {name: tensor.clone() for name, tensor in self._trained().items()}
        self._best: dict[str, torch.Tensor] | None = None
        self._best_loss = math.inf
        self.best_step = 0

    def train(self, steps: int, finishing: int = 0, deadline: float = math.inf) -> int:
        """At most `steps` steps, not past `deadline` (time.monotonic()); leaves the best weights in the model.

        Args:
            finishing: steps that `finish` will take, for the progress.

        Returns:
            The number of steps done.
        """
        optimizer = self._optimizer()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_then_cosine(step, steps))
        alone = round(ALONE_SHARE * steps) if self.model.spec.adapter == "lora" else 0
        self._validate(0, math.nan)
        for step in range(1, steps + 1):
            self._let_adapter_learn(step > alone)
            loss = self._step(optimizer)
            schedule.step()
            self._update_average(min(AVERAGING, step / (step + 9)))
            self._reporter.progress("fit", step, steps + finishing, deadline - time.monotonic())
            late = time.monotonic() > deadline
            if step % EVALUATE_EVERY == 0 or step == steps or late:
                self._validate(step, loss)
            if late:
                self._reporter.message(f"Stopped after {step} steps: the time budget is used up.")
                break
            if self._best is not None and step - max(self.best_step, alone) >= PATIENCE * EVALUATE_EVERY:
                self._reporter.message(f"Stopped after {step} steps: nothing was gained since step {self.best_step}.")
                break
        self._let_adapter_learn(True)
        put(self._best or self._average, self._trained())
        self.model.eval()
        return step

    def finish(self, sampler: ChipSampler, steps: int, done: int, deadline: float = math.inf) -> None:
        """The last steps, on all labels: what was held out has told all it can and may teach now.

        Args:
            sampler: draws from all labelled places.
            steps, done: how many to do, and how many were done before.
        """
        self._sampler = sampler
        optimizer = self._optimizer()
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: FINISH_RATE * (1 - step / max(steps, 1)))
        for name, tensor in self._trained().items():
            self._average[name].copy_(tensor)
        for step in range(1, steps + 1):
            self._step(optimizer)
            schedule.step()
            self._update_average(AVERAGING)
            self._reporter.progress("fit", done + step, done + steps, deadline - time.monotonic())
            if time.monotonic() > deadline:
                break
        put(self._average, self._trained())
        self.model.eval()

    def held_out(self) -> Iterator[tuple[Chip, tuple[int, int, int], np.ndarray]]:
        """The validation chips with their places and the model's logits (K, h, w)."""
        self.model.eval()
        for chip, place in self._validation:
            self._reporter.check_canceled()
            yield chip, place, self._logits(chip)

    def _step(self, optimizer: torch.optim.Optimizer) -> float:
        self.model.train()
        values, valid, class_ids = self._sampler.batch(BATCH)
        raw = torch.from_numpy(fill_invalid(values, valid, self._fill)).to(self._device)
        truth = torch.from_numpy(class_ids.astype(np.int64)).to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half_backbone):
            features, standardised = self.model.encode(raw)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            logits = self.model.decode(features, standardised)
        loss = balanced_cross_entropy(logits, truth, self._class_weights(class_ids))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in self.model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        return float(loss.detach())

    def _class_weights(self, class_ids: np.ndarray) -> torch.Tensor:
        """Root of the inverse frequency in these chips: full balance would let single pixels shout."""
        counts = np.bincount(class_ids[class_ids < 255], minlength=self.model.spec.num_classes)
        weights = 1 / np.sqrt(np.maximum(counts[: self.model.spec.num_classes], 1))
        return torch.from_numpy((weights / weights.mean()).astype(np.float32)).to(self._device)

    def _optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self._parameter_groups(), weight_decay=WEIGHT_DECAY)

    def _let_adapter_learn(self, learns: bool) -> None:
        for parameter in self._adapter:
            parameter.requires_grad_(learns)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        rate = ADAPTER_LEARNING_RATES.get(self.model.spec.adapter, DECODER_LEARNING_RATE)
        probe = list(self.model.probe.parameters()) if self.model.probe is not None else []
        rest = [*self.model.decoder.parameters(), *self.model.head.parameters()]
        groups = ((rest, DECODER_LEARNING_RATE), (self._adapter, rate), (probe, PROBE_LEARNING_RATE))
        return [{"params": parameters, "lr": own_rate} for parameters, own_rate in groups if parameters]

    def _validate(self, step: int, loss: float) -> None:
        values = {"loss": loss} if math.isfinite(loss) else {}
        if self._validation:
            with standing_in(self._average, self._trained()):
                validation_loss, matrices = self._score()
            scores = figures([sum(matrices[1:], matrices[0])], [""] * self.model.spec.num_classes)
            values |= {"validation_loss": validation_loss, "miou": scores["miou"]["value"] or 0.0}
            if self._trusts and validation_loss < self._best_loss:
                self._best_loss, self.best_step = validation_loss, step
                self._best = {name: tensor.clone() for name, tensor in self._average.items()}
        if self._best is None:
            self.best_step = step
        if values:
            self._reporter.metric("fit", step, values)

    def _score(self) -> tuple[float, list[np.ndarray]]:
        """Mean of the classes' mean losses, and one confusion matrix for each validation chip."""
        classes = self.model.spec.num_classes
        sums, counts, matrices = np.zeros(classes), np.zeros(classes), []
        for chip, _, logits in self.held_out():
            log = logits - logits.max(0)
            log -= np.log(np.exp(log).sum(0))
            rows, cols = np.nonzero(chip.class_ids < 255)
            truth = chip.class_ids[rows, cols]
            np.subtract.at(sums, truth, log[truth, rows, cols])
            np.add.at(counts, truth, 1)
            matrices.append(confusion(chip.class_ids, log.argmax(0), classes))
        present = counts > 0
        return float((sums[present] / counts[present]).mean()), matrices

    def _logits(self, chip: Chip) -> np.ndarray:
        raw = torch.from_numpy(fill_invalid(chip.values[None], chip.valid[None], self._fill)).to(self._device)
        with torch.inference_mode():
            logits: np.ndarray = self.model(raw).float()[0].cpu().numpy()
        return logits

    def _trained(self) -> dict[str, torch.Tensor]:
        """What changes in training: the trained parameters and, in full tuning, the statistics of the backbone."""
        trained = {name: p.detach() for name, p in self.model.named_parameters() if name in self._names}
        if self.model.adapter is not None and self.model.adapter.trains_statistics:
            buffers = self.model.backbone.named_buffers()
            trained |= {f"buffer {name}": tensor for name, tensor in buffers if tensor.is_floating_point()}
        return trained

    def _update_average(self, keep: float) -> None:
        for name, tensor in self._trained().items():
            self._average[name].lerp_(tensor, 1 - keep)


def put(state: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> None:
    """Copies a state into the tensors of the same names."""
    for name, tensor in tensors.items():
        tensor.copy_(state[name])


@contextlib.contextmanager
def standing_in(state: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]) -> Iterator[None]:
    """The tensors hold a state, such as averaged weights, and then their own values again."""
    own = {name: tensor.clone() for name, tensor in tensors.items()}
    put(state, tensors)
    try:
        yield
    finally:
        put(own, tensors)


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


def _warm_then_cosine(step: int, steps: int) -> float:
    """Factor of the learning rate: up over the first 5 %, then down along a cosine to a twentieth."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
