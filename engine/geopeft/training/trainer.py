"""The training loop: steps, averaged weights, validation on held-out places, early stop, the best weights kept.

A run that goes on from a checkpoint ends with the same weights as one that was never interrupted.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from geopeft.accuracy import confusion, mean_iou
from geopeft.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer
from geopeft.data.batches import Ahead, Batch, Sampler
from geopeft.data.chips import Chip
from geopeft.errors import Canceled, OutputError
from geopeft.events import Reporter
from geopeft.models import SegmentationModel
from geopeft.models.metadata import scene_of
from geopeft.runtime import fill_invalid, fill_values
from geopeft.training.learning import Computed, Features, Learner

BATCH = 8
EVALUATE_EVERY = 20
PATIENCE = 8
# The study's search found 7e-4 for LoRA and 4e-5 for full tuning (medians of five sets, up to 100 epochs); the short
# runs here take a few times as much, and a decoder that starts from nothing more still. At the 1e-4 to 6e-4 that it
# found for VPT, prompts hardly move in a short run; its 3e-4 to 1e-3 for ViT-Adapter suits.
ADAPTER_LEARNING_RATES = {
    "lora": 1.5e-3, "rslora": 5e-4, "dora": 1.5e-3, "pissa": 5e-4, "ia3": 5e-3, "bitfit": 2e-3, "mode": 3e-3,
    "mpo": 1.5e-3, "ssl": 5e-3, "ssb": 5e-3, "full": 2e-4, "vpt": 5e-3, "vit-adapter": 5e-4,
}  # fmt: skip
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
CHECKPOINT_S = 15.0
SETTLING_BATCHES = 8

ValidationChips = Sequence[tuple[Chip, tuple[int, int, int]]]


@dataclass(frozen=True)
class Pace:
    """How fast to go, as parts of what a training from nothing needs.

    Args:
        steps: of the number of steps.
        alone: part of the steps in which decoder and head learn alone.
        rate: of the learning rates.
    """

    steps: float = 1.0
    alone: float = ALONE_SHARE
    rate: float = 1.0


@dataclass
class Progress:
    """How far a training is; plain values, so that a checkpoint can hold it.

    Args:
        phase: fit, then finish.
        step: steps done in this phase.
        judged: the last step whose weights were validated, -1 for none.
        best_step: step of the best weights, and best_loss their validation loss, None where that decides nothing.
        trained: steps of the first phase, once it is over.
        loss: of the last step.
        seconds: of training, over all runs.
        curve: step and figures of each validation.
        random: state of the sampler's random numbers.
    """

    phase: str = "fit"
    step: int = 0
    judged: int = -1
    best_step: int = 0
    best_loss: float | None = None
    trained: int = 0
    loss: float = math.nan
    seconds: float = 0.0
    curve: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    random: dict[str, Any] = field(default_factory=dict)


class Trainer:
    """Trains what the adapter left trainable.

    Args:
        model: on its device.
        sampler: draws the training chips.
        validation: chips of the held-out places; empty where too few labels are there to hold any out.
        reporter: gets progress, and loss and mIoU as metrics; a stop ends the training with the best weights so far.
        trusts_validation: the best weights are those with the lowest validation loss; else the last, averaged ones.
        pace: None: that of a training from nothing.
        checkpoint: where the run is kept from time to time, and when it is canceled.
        features: where the steps have their feature maps from; None: the whole backbone, every time.
    """

    def __init__(
        self,
        model: SegmentationModel,
        sampler: Sampler,
        validation: ValidationChips,
        reporter: Reporter,
        trusts_validation: bool = True,
        *,
        pace: Pace | None = None,
        checkpoint: Checkpoint | None = None,
        features: Features | None = None,
    ) -> None:
        self.model, self._sampler, self._validation, self._reporter = model, sampler, validation, reporter
        self._trusts = trusts_validation
        self._pace, self._checkpoint = pace or Pace(alone=ALONE_SHARE), checkpoint
        self._device = next(model.parameters()).device
        # Convolutions and the norms over channels both read the channels of a pixel side by side.
        model.to(memory_format=torch.channels_last)
        self._features = features or Computed(model)
        self._learner = Learner(model, self._features)
        self._fill = fill_values(model.spec.bands)
        self._names = {name for name, p in model.named_parameters() if p.requires_grad}
        self._adapter = [p for p in model.backbone.parameters() if p.requires_grad]
        self._average = {name: tensor.clone() for name, tensor in self._trained().items()}
        self._best: dict[str, torch.Tensor] | None = None
        self._at = Progress()
        self._restored: dict[str, torch.Tensor] | None = None
        self._begun = time.monotonic()
        self._total: int | None = None
        self._ahead = 0

    @property
    def best_step(self) -> int:
        """The step of the weights that are kept."""
        return self._at.best_step

    @property
    def curve(self) -> list[tuple[int, dict[str, float]]]:
        """Step and figures of each validation."""
        return self._at.curve

    def resume(self) -> Progress | None:
        """Goes on from the checkpoint where there is one, and says how far it was; JobError where it is of another
        run or broken."""
        found = self._checkpoint.read() if self._checkpoint is not None else None
        if found is None:
            return None
        self._at, self._restored = Progress(**found[0]), found[1]
        self._begun -= self._at.seconds
        if any(name.startswith("best.") for name in self._restored):
            self._best = {n: torch.empty_like(v).copy_(self._restored[f"best.{n}"]) for n, v in self._average.items()}
        return self._at

    def train(
        self,
        steps: int,
        finishing: int = 0,
        deadline: float = math.inf,
        *,
        until: int | None = None,
        ahead: int = 0,
        keep: bool = False,
    ) -> int:
        """At most `steps` steps, not past `deadline` (time.monotonic()); leaves the best weights in the model.

        Args:
            steps: 0: the model stays as it is, and is not judged.
            finishing: steps that `finish` will take, for the progress.
            until: ends after this many of the steps, at the rates that a training of all of them has there.
            ahead: steps of other trainings that will follow, for the progress.
            keep: leaves a checkpoint of the end, for what the job does afterwards.

        Returns:
            The number of steps done.
        """
        at, self._total, self._ahead = self._at, steps + finishing, ahead
        last = steps if until is None else min(steps, until)
        for step, values in at.curve:
            self._reporter.metric("fit", step, values, self._total)
        if at.phase == "fit":
            waits = bool(self._adapter) and self.model.spec.adapter != "full"
            alone = round(self._pace.alone * steps) if waits else 0
            optimizer, before = self._begin(), at.step
            self._let_adapter_learn(at.step >= alone)
            with self._drawn() as batches, self._kept_on_cancel(optimizer):
                while last and not self._over(last, deadline, alone):
                    self._let_adapter_learn(at.step >= alone)
                    self._one_step(batches, optimizer, _warm_then_cosine(at.step, steps))
                    self._update_average(min(AVERAGING, at.step / (at.step + 9)))
                    self._reporter.progress("fit", at.step, self._total + ahead, deadline - time.monotonic())
                    self._save_if_due(optimizer)
            if keep and at.step > before:
                self._save(optimizer)
            at.trained = at.step
        self._let_adapter_learn(True)
        if self._best is None:
            self._best = {name: tensor.clone() for name, tensor in self._average.items()}
        put(self._best, self._trained())
        self.model.eval()
        return at.trained

    def finish(
        self, sampler: Sampler, steps: int, done: int, deadline: float = math.inf, *, keep: bool = False
    ) -> None:
        """The last steps, on all labels: what was held out has told all it can and may teach now.

        Args:
            sampler: draws from all labelled places.
            steps, done: how many to do, and how many were done before.
            keep: leaves a checkpoint of the end, for what the job does afterwards.
        """
        self._sampler, at = sampler, self._at
        if at.phase != "finish":
            at.phase, at.step = "finish", 0
            for name, tensor in self._trained().items():
                self._average[name].copy_(tensor)
        optimizer, before = self._begin(), at.step
        with self._drawn() as batches, self._kept_on_cancel(optimizer):
            while at.step < steps and not self._reporter.stop_requested():
                self._one_step(batches, optimizer, FINISH_RATE * (1 - at.step / steps))
                self._update_average(AVERAGING)
                total = done + steps + self._ahead
                self._reporter.progress("fit", done + at.step, total, deadline - time.monotonic())
                self._save_if_due(optimizer)
                if time.monotonic() > deadline:
                    break
        # Half the way back from a falling rate would be worse than not to have set out.
        stopped = self._best is not None and at.step < steps and self._reporter.stop_requested()
        if keep and not stopped and at.step > before:
            self._save(optimizer)
        put(self._best if stopped and self._best else self._average, self._trained())
        at.phase = "finished"
        self.model.eval()

    def _begin(self) -> torch.optim.Optimizer:
        """The optimizer of a phase, with the state of everything where a checkpoint was taken in it."""
        fused = self._device.type in ("cpu", "cuda")
        optimizer = torch.optim.AdamW(self._parameter_groups(), weight_decay=WEIGHT_DECAY, fused=fused)
        if self._restored is not None:
            found, self._restored = self._restored, None
            put({n: found[f"model.{n}"] for n in self._average}, self._trained())
            put({n: found[f"average.{n}"] for n in self._average}, self._average)
            for name, counter in self._counters().items():
                counter.copy_(found[f"counter.{name}"])
            restore_optimizer(optimizer, found)
            self._sampler.random_state = self._at.random
            torch.set_rng_state(found["random.cpu"])
            if "random.cuda" in found and self._device.type == "cuda":
                torch.cuda.set_rng_state(found["random.cuda"], self._device)
            self._reporter.can_stop = True
        return optimizer

    def _over(self, steps: int, deadline: float, alone: int) -> bool:
        """Validates where it is due after the last step, and says whether that was the last one."""
        at = self._at
        late = at.step > 0 and time.monotonic() > deadline
        if (at.step % EVALUATE_EVERY == 0 or at.step >= steps or late) and at.judged != at.step and not self._stopped():
            self._validate()
        if self._stopped():
            if self._best is None:
                at.best_step = at.step
            self._reporter.message(
                f"Stopped after {at.step} steps, as you asked: the best weights, of step {at.best_step}, are kept."
            )
        elif late:
            self._reporter.message(f"Stopped after {at.step} steps: the time budget is used up.")
        elif self._best is not None and at.step - max(at.best_step, alone) >= PATIENCE * EVALUATE_EVERY:
            self._reporter.message(f"Stopped after {at.step} steps: nothing was gained since step {at.best_step}.")
        else:
            return at.step >= steps
        return True

    def _stopped(self) -> bool:
        return self._at.step > 0 and self._reporter.stop_requested()

    def _drawn(self) -> Ahead[tuple[Batch, torch.Tensor]]:
        """The sampler's batches, each with its values as the model takes them."""

        def filled(batch: Batch) -> tuple[Batch, torch.Tensor]:
            return batch, torch.from_numpy(fill_invalid(batch.values, batch.valid, self._fill))

        return Ahead(self._sampler, BATCH, filled)

    def _one_step(
        self, batches: Ahead[tuple[Batch, torch.Tensor]], optimizer: torch.optim.Optimizer, factor: float
    ) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * factor
        self._at.loss = self._learner.step(*batches.take(), optimizer)
        self._at.step += 1
        self._at.random = batches.random_state
        self._reporter.can_stop = True

    @contextlib.contextmanager
    def _kept_on_cancel(self, optimizer: torch.optim.Optimizer) -> Iterator[None]:
        try:
            yield
        except Canceled:
            if self._at.step:
                self._save(optimizer)
            raise

    def _save_if_due(self, optimizer: torch.optim.Optimizer) -> None:
        if self._checkpoint is not None and self._checkpoint.due(CHECKPOINT_S):
            self._save(optimizer)

    def _save(self, optimizer: torch.optim.Optimizer) -> None:
        """Writes the checkpoint. A training does not fail because there is no room for one."""
        if self._checkpoint is None:
            return
        self._at.seconds = time.monotonic() - self._begun
        tensors = {f"model.{n}": v for n, v in self._trained().items()}
        tensors |= {f"average.{n}": v for n, v in self._average.items()}
        tensors |= {f"best.{n}": v for n, v in (self._best or {}).items()}
        tensors |= {f"counter.{n}": v for n, v in self._counters().items()}
        tensors |= optimizer_tensors(optimizer) | {"random.cpu": torch.get_rng_state()}
        if self._device.type == "cuda":
            tensors["random.cuda"] = torch.cuda.get_rng_state(self._device)
        try:
            self._checkpoint.save(asdict(self._at), tensors)
        except OutputError as error:
            self._checkpoint = None
            with contextlib.suppress(Canceled):
                self._reporter.warn(f"{error.message} The training goes on, but could not be resumed if it were ended.")

    def map_chips(self, chips: ValidationChips) -> Iterator[tuple[Chip, tuple[int, int, int], np.ndarray]]:
        """The chips with their places and the model's logits (K, h, w)."""
        self.model.eval()
        for chip, place in chips:
            self._reporter.check_canceled()
            yield chip, place, self._logits(chip)

    def _let_adapter_learn(self, learns: bool) -> None:
        for parameter in self._adapter:
            parameter.requires_grad_(learns)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        rate = ADAPTER_LEARNING_RATES.get(self.model.spec.adapter, DECODER_LEARNING_RATE)
        probe = list(self.model.probe.parameters()) if self.model.probe is not None else []
        rest = [*self.model.decoder.parameters(), *self.model.head.parameters()]
        groups = ((rest, DECODER_LEARNING_RATE), (self._adapter, rate), (probe, PROBE_LEARNING_RATE))
        return [{"params": parameters, "rate": own * self._pace.rate} for parameters, own in groups if parameters]

    def _validate(self) -> None:
        """Scores the averaged weights, keeps them where they are the best so far, and tells the figures."""
        at = self._at
        values = {"loss": at.loss} if math.isfinite(at.loss) else {}
        if self._validation:
            with standing_in(self._average, self._trained()):
                found = self._score()
            if found is None:
                return
            validation_loss, matrices = found
            values |= {"validation_loss": validation_loss, "miou": mean_iou(sum(matrices[1:], matrices[0])) or 0.0}
            if self._trusts and (at.best_loss is None or validation_loss < at.best_loss):
                at.best_loss, at.best_step = validation_loss, at.step
                self._best = {name: tensor.clone() for name, tensor in self._average.items()}
        if self._best is None:
            at.best_step = at.step
        at.judged = at.step
        if values:
            at.curve.append((at.step, values))
            self._reporter.metric("fit", at.step, values, self._total)

    def _score(self) -> tuple[float, list[np.ndarray]] | None:
        """Mean of the classes' mean losses, and one confusion matrix for each validation chip; None where a stop came
        in between."""
        classes = self.model.spec.num_classes
        sums, counts, matrices = np.zeros(classes), np.zeros(classes), []
        for chip, _, logits in self.map_chips(self._validation):
            if self._stopped():
                return None
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
        batch = Batch(chip.values[None], chip.valid[None], chip.class_ids[None], chip.taken)
        with torch.inference_mode():
            scene = scene_of(chip.taken, self.model.spec, self._device)
            logits = self.model.decode(*self._features.encode(batch, raw, scene))
            found: np.ndarray = logits.float()[0].cpu().numpy()
        return found

    def _trained(self) -> dict[str, torch.Tensor]:
        """What changes in training: the trained parameters and, in full tuning, the statistics of the backbone."""
        trained = {name: p.detach() for name, p in self.model.named_parameters() if name in self._names}
        if self.model.adapter is not None and self.model.adapter.trains_statistics:
            buffers = self.model.backbone.named_buffers()
            trained |= {f"buffer {name}": tensor for name, tensor in buffers if tensor.is_floating_point()}
        return trained

    def _counters(self) -> dict[str, torch.Tensor]:
        """What else changes: how many batches the backbone's statistics have seen."""
        if self.model.adapter is None or not self.model.adapter.trains_statistics:
            return {}
        return {n: tensor for n, tensor in self.model.backbone.named_buffers() if not tensor.is_floating_point()}

    def _update_average(self, keep: float) -> None:
        for name, tensor in self._trained().items():
            self._average[name].lerp_(tensor, 1 - keep)


def settle(model: SegmentationModel, sampler: Sampler) -> None:
    """Sets the batch statistics of norms that an adapter put in, to the mean over some batches of training chips."""
    norms = model.backbone.unsettled
    device, fill = model.scale.device, fill_values(model.spec.bands)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for _ in range(SETTLING_BATCHES if norms else 0):
        batch = sampler.draw(BATCH)
        raw = torch.from_numpy(fill_invalid(batch.values, batch.valid, fill)).to(device)
        with torch.no_grad():
            model.encode(raw, scene_of(batch.taken, model.spec, device))
    for norm in norms:
        norm.eval()


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


def _warm_then_cosine(step: int, steps: int) -> float:
    """Factor of the learning rate: up over the first 5 %, then down along a cosine to a twentieth."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
