"""The training loop: steps, averaged weights, validation on held-out places, early stop, the best weights kept."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
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
WEIGHT_DECAY = 0.01
# Weights averaged over about the last 1 / (1 - 0.95) = 20 steps: with few labels single steps jump.
AVERAGING = 0.95

ValidationChips = Sequence[tuple[Chip, tuple[int, int, int]]]


class Trainer:
    """Trains what the adapter left trainable.

    Args:
        model: on its device.
        sampler: draws the training chips.
        validation: chips of the held-out places; empty where too few labels are there to hold any out.
        reporter: gets progress, and loss and mIoU as metrics.
    """

    def __init__(
        self, model: SegmentationModel, sampler: ChipSampler, validation: ValidationChips, reporter: Reporter
    ) -> None:
        self._model, self._sampler, self._validation, self._reporter = model, sampler, validation, reporter
        self._device = next(model.parameters()).device
        # Convolutions and the norms over channels both read the channels of a pixel side by side.
        model.to(memory_format=torch.channels_last)
        self._half = multiplies_bfloat16(self._device)
        self._fill = fill_values(model.spec.bands)
        self._average = {name: tensor.clone() for name, tensor in self._trained().items()}
        self._best: dict[str, torch.Tensor] | None = None
        self._best_loss = math.inf
        self.best_step = 0

    def train(self, steps: int, deadline: float = math.inf) -> int:
        """At most `steps` steps, not past `deadline` (time.monotonic()); leaves the best weights in the model.

        Returns:
            The number of steps done.
        """
        optimizer = torch.optim.AdamW(self._parameter_groups(), weight_decay=WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_then_cosine(step, steps))
        for step in range(1, steps + 1):
            loss = self._step(optimizer)
            schedule.step()
            self._update_average(min(AVERAGING, step / (step + 9)))
            self._reporter.progress("fit", step, steps, deadline - time.monotonic())
            late = time.monotonic() > deadline
            if step % EVALUATE_EVERY == 0 or step == steps or late:
                self._validate(step, loss)
            if late:
                self._reporter.message(f"Stopped after {step} steps: the time budget is used up.")
                break
            if self._validation and step - self.best_step >= PATIENCE * EVALUATE_EVERY:
                self._reporter.message(f"Stopped after {step} steps: nothing was gained since step {self.best_step}.")
                break
        self._put(self._best or self._average)
        self._model.eval()
        return step

    def figures(self, class_names: Sequence[str], seed: int) -> dict[str, Any]:
        """Accuracy on the held-out places with the present weights; every figure is None where there are none."""
        return figures(self._score()[1] if self._validation else [], class_names, seed)

    def _step(self, optimizer: torch.optim.Optimizer) -> float:
        self._model.train()
        values, valid, class_ids = self._sampler.batch(BATCH)
        raw = torch.from_numpy(fill_invalid(values, valid, self._fill)).to(self._device)
        truth = torch.from_numpy(class_ids.astype(np.int64)).to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            logits = self._model(raw)
        loss = balanced_cross_entropy(logits, truth, self._class_weights(class_ids))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for p in self._model.parameters() if p.requires_grad], 1.0)
        optimizer.step()
        return float(loss.detach())

    def _class_weights(self, class_ids: np.ndarray) -> torch.Tensor:
        """Root of the inverse frequency in these chips: full balance would let single pixels shout."""
        counts = np.bincount(class_ids[class_ids < 255], minlength=self._model.spec.num_classes)
        weights = 1 / np.sqrt(np.maximum(counts[: self._model.spec.num_classes], 1))
        return torch.from_numpy((weights / weights.mean()).astype(np.float32)).to(self._device)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        rate = ADAPTER_LEARNING_RATES.get(self._model.spec.adapter, DECODER_LEARNING_RATE)
        adapter = [p for p in self._model.backbone.parameters() if p.requires_grad]
        own = {id(p) for p in adapter}
        rest = [p for p in self._model.parameters() if p.requires_grad and id(p) not in own]
        groups: list[dict[str, Any]] = [{"params": rest, "lr": DECODER_LEARNING_RATE}]
        return [*groups, {"params": adapter, "lr": rate}] if adapter else groups

    def _validate(self, step: int, loss: float) -> None:
        values = {"loss": loss}
        if self._validation:
            with self._averaged():
                validation_loss, matrices = self._score()
            scores = figures([sum(matrices[1:], matrices[0])], [""] * self._model.spec.num_classes)
            values |= {"validation_loss": validation_loss, "miou": scores["miou"]["value"] or 0.0}
            if validation_loss < self._best_loss:
                self._best_loss, self.best_step = validation_loss, step
                self._best = {name: tensor.clone() for name, tensor in self._average.items()}
        else:
            self.best_step = step
        self._reporter.metric("fit", step, values)

    def _score(self) -> tuple[float, list[np.ndarray]]:
        """Mean of the classes' mean losses, and one confusion matrix for each validation chip."""
        self._model.eval()
        classes = self._model.spec.num_classes
        sums, counts, matrices = np.zeros(classes), np.zeros(classes), []
        for chip, _ in self._validation:
            self._reporter.check_canceled()
            raw = torch.from_numpy(fill_invalid(chip.values[None], chip.valid[None], self._fill)).to(self._device)
            with torch.inference_mode():
                log = self._model(raw).float().log_softmax(1)[0].cpu().numpy()
            rows, cols = np.nonzero(chip.class_ids < 255)
            truth = chip.class_ids[rows, cols]
            np.subtract.at(sums, truth, log[truth, rows, cols])
            np.add.at(counts, truth, 1)
            matrices.append(confusion(chip.class_ids, log.argmax(0), classes))
        present = counts > 0
        return float((sums[present] / counts[present]).mean()), matrices

    def _trained(self) -> dict[str, torch.Tensor]:
        """What changes in training: the trained parameters and, in full tuning, the statistics of the backbone."""
        trained = {name: p.detach() for name, p in self._model.named_parameters() if p.requires_grad}
        if self._model.adapter is not None and self._model.adapter.trains_statistics:
            buffers = self._model.backbone.named_buffers()
            trained |= {f"buffer {name}": tensor for name, tensor in buffers if tensor.is_floating_point()}
        return trained

    def _update_average(self, keep: float) -> None:
        for name, tensor in self._trained().items():
            self._average[name].lerp_(tensor, 1 - keep)

    def _put(self, state: dict[str, torch.Tensor]) -> None:
        for name, tensor in self._trained().items():
            tensor.copy_(state[name])

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """The model with its averaged weights."""
        own = {name: tensor.clone() for name, tensor in self._trained().items()}
        self._put(self._average)
        try:
            yield
        finally:
            self._put(own)


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has units for bfloat16, which train in about half the time; else it would be slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "cpu" and bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


def _warm_then_cosine(step: int, steps: int) -> float:
    """Factor of the learning rate: up over the first 5 %, then down along a cosine to a twentieth."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
