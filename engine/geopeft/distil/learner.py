"""The loop in which a student learns its teacher's probabilities (Hinton et al. 2015, arXiv 1503.02531).

Everything random comes from the seed and the number of the step, so that a run that goes on from a checkpoint ends as
one that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
from torch import Tensor

from geopeft.accuracy import confusion, mean_iou
from geopeft.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer
from geopeft.data.chips import turn
from geopeft.data.labels import IGNORE
from geopeft.distil.sheets import CHIP_PX, CHOOSES, JUDGES, SQUARE_PX, TRAINS, Sheet
from geopeft.errors import Canceled
from geopeft.events import Reporter
from geopeft.models import SegmentationModel
from geopeft.training.learning import multiplies_bfloat16
from geopeft.training.trainer import put, standing_in

BATCH = 8
RATE = 4e-3
WEIGHT_DECAY = 0.02
# Weights averaged over about the last 50 steps.
AVERAGING = 0.98
# Brightness and contrast of a chip are changed by about so much, each band a little more by itself.
JITTER, BAND_JITTER = 0.1, 0.05
EVALUATIONS, PATIENCE = 20, 6
CONTEXT_PX = 64
CHECKPOINT_S = 30.0

Batch = tuple[Tensor, Tensor, Tensor]


@dataclass
class Progress:
    """How far a run is; plain values, so that a checkpoint can hold it.

    Args:
        step: steps done.
        best_step, best: of the lowest loss on the squares that choose; None: none yet.
        seconds: of all runs.
        sheets: how many were drawn.
        curve: one dictionary for each evaluation.
    """

    step: int = 0
    best_step: int = 0
    best: float | None = None
    seconds: float = 0.0
    sheets: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)


class Learner:
    """Teaches a student from sheets.

    Args:
        student: on its device.
        sheets: with squares held out.
        checkpoint: where the run is kept from time to time, and when it is canceled.
    """

    def __init__(
        self, student: SegmentationModel, sheets: Sequence[Sheet], reporter: Reporter, seed: int, checkpoint: Checkpoint
    ) -> None:
        self._student = student.to(memory_format=torch.channels_last)
        self._sheets, self._reporter, self._seed, self._checkpoint = sheets, reporter, seed, checkpoint
        self._device = student.scale.device
        self._half = self._device.type == "cuda" and multiplies_bfloat16(self._device)
        counts = np.array([(sheet.valid & (sheet.role == TRAINS)).sum() for sheet in sheets], np.float64)
        self._odds = counts / counts.sum()
        self._optimizer = torch.optim.AdamW(student.parameters(), RATE, weight_decay=WEIGHT_DECAY)
        self._average = {name: value.clone() for name, value in self._state().items()}
        self._best: dict[str, Tensor] = {}
        self.progress = Progress(sheets=len(sheets))

    def resume(self) -> bool:
        """Goes on from the checkpoint where there is one; JobError where it is of another job or broken."""
        found = self._checkpoint.read()
        if found is None:
            return False
        progress, tensors = found
        self.progress = Progress(**progress)
        on_device = {name: value.to(self._device) for name, value in tensors.items()}
        for prefix, target in (
            ("model.", self._state()),
            ("average.", self._average),
            ("counter.", self._state(floating=False)),
        ):
            put({name: on_device[prefix + name] for name in target}, target)
        if self.progress.best is not None:
            self._best = {name: on_device[f"best.{name}"] for name in self._average}
        restore_optimizer(self._optimizer, tensors)
        return True

    def learn(self, steps: int, budget_s: float = math.inf) -> None:
        """Up to `steps` steps in all; leaves the best averaged weights in the student, in evaluation mode."""
        at, before, begun = self.progress, self.progress.seconds, time.monotonic()
        every = max(1, steps // EVALUATIONS)
        try:
            while True:
                stopped = at.step > 0 and self._reporter.stop_requested()
                late = at.step > 0 and at.seconds > budget_s
                over = at.step >= steps or late or stopped
                if at.step and (over or at.step % every == 0) and not (at.curve and at.curve[-1]["step"] == at.step):
                    self._evaluate(steps)
                if over or sum(point["step"] > at.best_step for point in at.curve) >= PATIENCE:
                    break
                self._step(max(at.step / steps, at.seconds / budget_s))
                at.seconds = before + time.monotonic() - begun
                self._reporter.can_stop = True
                self._reporter.progress("distil", at.step, steps, budget_s - at.seconds)
                if self._checkpoint.due(CHECKPOINT_S):
                    self._save()
        except Canceled:
            if at.step:
                self._save()
            raise
        put(self._best or self._average, self._state())
        self._student.eval()

    def judge(self) -> np.ndarray:
        """(K, K) counts over the squares that neither taught nor chose: rows are the teacher's classes."""
        return self._compare(JUDGES)[1]

    def _step(self, done: float) -> None:
        at = self.progress
        for group in self._optimizer.param_groups:
            group["lr"] = RATE * _schedule(done)
        self._student.train()
        values, wanted, counted = self._batch(np.random.default_rng((self._seed, 1, at.step)))
        loss = soft_cross_entropy(self._logits(values), wanted, counted)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        # One step that is not finite would spoil the weights for good.
        if torch.nn.utils.clip_grad_norm_(self._student.parameters(), 1.0).isfinite():
            self._optimizer.step()
        at.step += 1
        keep = min(AVERAGING, at.step / (at.step + 9))
        for name, value in self._state().items():
            self._average[name].lerp_(value, 1 - keep)

    def _logits(self, values: Tensor) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            maps = self._student.backbone(values, gsd_m=self._student.spec.gsd_m)
            return self._student.decode(maps, values)

    def _batch(self, rng: np.random.Generator) -> Batch:
        """Chips, turned and with other light; the teacher has seen them as they are."""
        parts = []
        for number in rng.choice(len(self._sheets), BATCH, p=self._odds).tolist():
            sheet = self._sheets[number]
            row, col = (int(rng.integers(side - CHIP_PX + 1)) for side in sheet.valid.shape)
            cut = (slice(row, row + CHIP_PX), slice(col, col + CHIP_PX))
            valid = sheet.valid[cut]
            values = _relit(sheet.values[(slice(None), *cut)].astype(np.float32), rng) * valid
            way = int(rng.integers(8))
            counted = valid & (sheet.role[cut] == TRAINS)
            parts.append((turn(values, way), turn(sheet.probabilities[(slice(None), *cut)], way), turn(counted, way)))
        return self._on_device(parts)

    def _held_out(self, role: int) -> Iterator[Batch]:
        """Batches of chips around held-out squares of a role; their surroundings are context."""
        parts = []
        for sheet in self._sheets:
            for row in range(0, sheet.valid.shape[0], SQUARE_PX):
                for col in range(0, sheet.valid.shape[1], SQUARE_PX):
                    if sheet.role[row, col] == role:
                        parts.append(_around(sheet, row, col))
        for begin in range(0, len(parts), BATCH):
            yield self._on_device(parts[begin : begin + BATCH])

    def _on_device(self, parts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Batch:
        values, wanted, counted = (
            torch.from_numpy(np.stack(part)).to(self._device) for part in zip(*parts, strict=True)
        )
        shares = wanted.float()
        shares = shares / shares.sum(1, keepdim=True).clamp_min(1.0)
        return values.float().contiguous(memory_format=torch.channels_last), shares, counted

    def _compare(self, role: int) -> tuple[float, np.ndarray]:
        """Loss and (K, K) counts of the student's weights over the squares of a role."""
        classes = self._student.spec.num_classes
        total, pixels, matrix = 0.0, 0, np.zeros((classes, classes), np.int64)
        self._student.eval()
        for values, wanted, counted in self._held_out(role):
            self._reporter.check_canceled()
            with torch.inference_mode():
                logits = self._logits(values)
                count = int(counted.sum())
                total += float(soft_cross_entropy(logits, wanted, counted)) * count
            pixels += count
            truth = np.where(counted.cpu().numpy(), wanted.argmax(1).cpu().numpy(), IGNORE)
            matrix += confusion(truth, logits.argmax(1).cpu().numpy(), classes)
        return total / max(pixels, 1), matrix

    def _evaluate(self, steps: int) -> None:
        at = self.progress
        with standing_in(self._average, self._state()):
            loss, matrix = self._compare(CHOOSES)
        agreed = float(np.diag(matrix).sum() / max(matrix.sum(), 1))
        point = {"validation_loss": loss, "agreement": agreed, "miou": mean_iou(matrix) or 0.0}
        if at.best is None or loss < at.best:
            at.best, at.best_step = loss, at.step
            self._best = {name: value.clone() for name, value in self._average.items()}
        at.curve.append({"step": at.step, **{name: round(value, 5) for name, value in point.items()}})
        self._reporter.metric("distil", at.step, point, steps)

    def _state(self, floating: bool = True) -> dict[str, Tensor]:
        """All that changes: weights and the statistics of norms, or how many batches these have seen."""
        state = self._student.state_dict()
        return {name: t.detach() for name, t in state.items() if t.is_floating_point() is floating}

    def _save(self) -> None:
        tensors = {f"model.{n}": v for n, v in self._state().items()}
        tensors |= {f"counter.{n}": v for n, v in self._state(floating=False).items()}
        tensors |= {f"average.{n}": v for n, v in self._average.items()}
        tensors |= {f"best.{n}": v for n, v in self._best.items()}
        self._checkpoint.save(asdict(self.progress), tensors | optimizer_tensors(self._optimizer))


def soft_cross_entropy(logits: Tensor, wanted: Tensor, counted: Tensor) -> Tensor:
    """Mean cross-entropy with probabilities, over the pixels that count; 0 without any.

    Args:
        logits, wanted: (B, K, H, W); `wanted` sums to 1.
        counted: (B, H, W) bool.
    """
    each = -(wanted * logits.log_softmax(1)).sum(1)
    return (each * counted).sum() / counted.sum().clamp_min(1)


def _around(sheet: Sheet, row: int, col: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values, probabilities and counted pixels of a square with its surroundings, all of one size."""
    side = SQUARE_PX + 2 * CONTEXT_PX
    fill = [(CONTEXT_PX, CONTEXT_PX + SQUARE_PX)] * 2
    cut = (slice(row, row + side), slice(col, col + side))
    inside = np.zeros(sheet.valid.shape, bool)
    inside[row : row + SQUARE_PX, col : col + SQUARE_PX] = True
    values, probabilities = (
        np.pad(array, [(0, 0), *fill])[(slice(None), *cut)] for array in (sheet.values, sheet.probabilities)
    )
    return values, probabilities, np.pad(inside & sheet.valid, fill)[cut]


def _relit(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Standardised values (C, h, w) as if of another day: contrast and brightness differ a little."""
    bands = (len(values), 1, 1)
    gain = 1 + JITTER * rng.uniform(-1, 1) + BAND_JITTER * rng.uniform(-1, 1, bands)
    shift = JITTER * rng.uniform(-1, 1) + BAND_JITTER * rng.uniform(-1, 1, bands)
    relit: np.ndarray = (values * gain + shift).astype(np.float32)
    return relit


def _schedule(done: float) -> float:
    """Factor of the learning rate: up over the first 5 %, then down along a cosine to a fiftieth."""
    if done < 0.05:
        return 0.05 + 0.95 * done / 0.05
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - 0.05) / 0.95)))
