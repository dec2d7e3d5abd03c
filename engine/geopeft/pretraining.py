"""The loop of pretraining: steps, averaged weights, validation on held-out places, early stop, checkpoints.

Everything random comes from the seed and the number of the step, so a run that goes on from a checkpoint ends as one
that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from geopeft.checkpoint import Checkpoint, optimizer_tensors, restore_optimizer
from geopeft.errors import Canceled
from geopeft.events import Reporter
from geopeft.pretext import Task
from geopeft.training.trainer import put, standing_in

SCENES_A_STEP = 3
# Full tuning at a higher rate loses more of what the start knows than a little imagery can give back: at 5e-5 and 3e-4
# a linear probe of buildings fell by 2 mIoU points, at 1e-5 it rose.
BACKBONE_RATES = {"full": 1e-5, "lora": 1e-3}
NEW_RATE = 1e-4
HEAD_RATE = 1e-3
# The heads learn alone first: through heads that know nothing yet, the backbone would learn noise.
ALONE_SHARE = 0.08
WEIGHT_DECAY = 0.02
# Weights averaged over about the last 500 steps.
AVERAGING = 0.998
EVALUATIONS = 30
PATIENCE = 10
MOST_VALIDATION_SCENES, CHIPS_TO_VALIDATE = 24, 3
CHECKPOINT_S = 120.0


class Pretrainer:
    """Trains the student of a task.

    Args:
        task: draws batches and tells their losses.
        seed: of everything random.
        checkpoint: where the run is kept; one of another run is refused.
    """

    def __init__(self, task: Task, reporter: Reporter, *, seed: int, checkpoint: Checkpoint) -> None:
        self._task, self._reporter = task, reporter
        self._seed, self._checkpoint = seed, checkpoint
        self._rates = (BACKBONE_RATES[task.student.adapter], NEW_RATE, HEAD_RATE)
        backbone = task.student.backbone
        named = [(name.split(".")[0], p) for name, p in backbone.named_parameters() if p.requires_grad]
        known = [p for part, p in named if part not in backbone.new_parts]
        new = [p for part, p in named if part in backbone.new_parts]
        groups = [{"params": known}, {"params": new}, {"params": list(task.heads.parameters())}]
        self._optimizer = torch.optim.AdamW(groups, HEAD_RATE, weight_decay=WEIGHT_DECAY)
        self._average = {name: value.clone() for name, value in self._trained().items()}
        self._best: dict[str, Tensor] = {}
        self._progress: dict[str, Any] = {"step": 0, "seconds": 0.0, "best_step": 0, "best": None}
        self._progress |= {"curve": [], "values": {}}
        self._validation = task.held_out(MOST_VALIDATION_SCENES, CHIPS_TO_VALIDATE, seed)

    @property
    def validates(self) -> bool:
        """Whether there was enough to hold some out."""
        return bool(self._validation)

    @property
    def progress(self) -> Mapping[str, Any]:
        """step, seconds, best_step, best (validation loss, None where nothing is held out), curve (one dict for each
        evaluation) and values (the last step's losses)."""
        return self._progress

    def resume(self) -> bool:
        """Goes on from the checkpoint where there is one; JobError where it is of another job or broken."""
        found = self._checkpoint.read()
        if found is None:
            return False
        self._progress, tensors = found
        with torch.no_grad():
            for name, value in self._trained().items():
                value.copy_(tensors[f"model.{name}"])
            for name, value in self._task.heads.state_dict().items():
                value.copy_(tensors[f"heads.{name}"])
        self._average = {n: tensors[f"average.{n}"].to(v.device) for n, v in self._trained().items()}
        if self._progress["best_step"]:
            self._best = {n: tensors[f"best.{n}"].to(v.device) for n, v in self._trained().items()}
        restore_optimizer(self._optimizer, tensors)
        return True

    def train(self, steps: int, budget_s: float = math.inf) -> None:
        """Up to `steps` steps in all, or until the time of all runs together exceeds `budget_s`; leaves the best
        averaged weights in the student. A cancel leaves a checkpoint."""
        clock = _Clock(float(self._progress["seconds"]), steps, budget_s)
        try:
            while not self._finished(clock):
                step = self._progress["step"] + 1
                values = self._step(step, max((step - 1) / steps, clock.seconds() / budget_s))
                self._progress |= {"step": step, "seconds": clock.seconds(), "values": values}
                self._reporter.progress("pretrain", step, steps, budget_s - clock.seconds())
                if self._checkpoint.due(CHECKPOINT_S):
                    self._save()
        except Canceled:
            if self._progress["step"]:
                self._save()
            raise
        put(self._best or self._average, self._trained())

    def _finished(self, clock: _Clock) -> bool:
        """Evaluates where it is due after the last step, and says whether that was the last one."""
        step, curve = self._progress["step"], self._progress["curve"]
        last = clock.last(step)
        if step and (last or clock.evaluation_due(step)) and not (curve and curve[-1]["step"] == step):
            begun = time.monotonic()
            self._evaluate(step, self._progress["values"])
            clock.evaluated(time.monotonic() - begun)
        return last or self._stalled()

    def _stalled(self) -> bool:
        curve = [point["step"] for point in self._progress["curve"]]
        return self.validates and len([s for s in curve if s > self._progress["best_step"]]) >= PATIENCE

    def _step(self, step: int, done: float) -> dict[str, float]:
        alone = done < ALONE_SHARE
        starts = (ALONE_SHARE, ALONE_SHARE, 0.0)
        for group, rate, begin in zip(self._optimizer.param_groups, self._rates, starts, strict=True):
            group["lr"] = rate * _schedule((done - begin) / (1 - begin))
        rng = np.random.default_rng((self._seed, 1, step))
        sums: dict[str, float] = {}
        self._optimizer.zero_grad(set_to_none=True)
        for batch in self._task.draw(rng, SCENES_A_STEP):
            self._reporter.check_canceled()
            losses = self._task.losses(batch, rng, jitter=True, alone=alone)
            torch.stack(list(losses.values())).sum().div(SCENES_A_STEP).backward()
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + float(loss.detach()) / SCENES_A_STEP
        trained = [p for group in self._optimizer.param_groups for p in group["params"]]
        # One step that is not finite would spoil the weights for good.
        if torch.nn.utils.clip_grad_norm_(trained, 1.0).isfinite():
            self._optimizer.step()
        keep = min(AVERAGING, step / (step + 9))
        for name, value in self._trained().items():
            self._average[name].lerp_(value, 1 - keep)
        return sums

    def _evaluate(self, step: int, values: dict[str, float]) -> None:
        point: dict[str, Any] = {"step": step, **{name: round(v, 5) for name, v in values.items()}}
        if self._validation:
            with standing_in(self._average, self._trained()):
                means = self._score()
            total = sum(means.values())
            point |= {f"validation_{name}": round(v, 5) for name, v in means.items()} | {"validation": round(total, 5)}
            if self._progress["best"] is None or total < self._progress["best"]:
                self._progress |= {"best": total, "best_step": step}
                self._best = {name: value.clone() for name, value in self._average.items()}
        self._progress["curve"].append(point)
        self._reporter.metric("pretrain", step, {k: v for k, v in point.items() if k != "step"})

    def _score(self) -> dict[str, float]:
        """Mean of each loss over the held-out places; bands and masks are the same each time."""
        found: dict[str, list[float]] = {}
        for number, batch in enumerate(self._validation):
            self._reporter.check_canceled()
            with torch.inference_mode():
                losses = self._task.losses(batch, np.random.default_rng((self._seed, 4, number)), jitter=False)
            for name, loss in losses.items():
                found.setdefault(name, []).append(float(loss))
        return {name: float(np.mean(losses)) for name, losses in found.items()}

    def _trained(self) -> dict[str, Tensor]:
        backbone = self._task.student.backbone
        return {name: p.detach() for name, p in backbone.named_parameters() if p.requires_grad}

    def _save(self) -> None:
        """Writes the checkpoint whole."""
        tensors = {f"model.{n}": v for n, v in self._trained().items()}
        tensors |= {f"average.{n}": v for n, v in self._average.items()}
        tensors |= {f"best.{n}": v for n, v in self._best.items()}
        tensors |= {f"heads.{n}": v for n, v in self._task.heads.state_dict().items()}
        self._checkpoint.save(self._progress, tensors | optimizer_tensors(self._optimizer))


class _Clock:
    """When to evaluate and to stop: by steps, or by time where there is a budget of it.

    Args:
        before_s: seconds of earlier runs.
    """

    def __init__(self, before_s: float, steps: int, budget_s: float) -> None:
        self._start = time.monotonic()
        self._before, self._steps, self._budget = before_s, steps, budget_s
        self._last_evaluation = before_s
        self._cost_s = 0.0

    def seconds(self) -> float:
        return self._before + time.monotonic() - self._start

    def last(self, step: int) -> bool:
        return step >= self._steps or self.seconds() > self._budget

    def evaluation_due(self, step: int) -> bool:
        if self._budget == math.inf:
            return step % max(1, self._steps // EVALUATIONS) == 0
        # Never so often that it takes more than a tenth of the time.
        return self.seconds() - self._last_evaluation > max(self._budget / EVALUATIONS, 10 * self._cost_s)

    def evaluated(self, cost_s: float) -> None:
        self._cost_s, self._last_evaluation = cost_s, self.seconds()


def _schedule(done: float) -> float:
    """Factor of the learning rate: up over the first 3 %, then down along a cosine to a fiftieth."""
    done = max(0.0, done)
    if done < 0.03:
        return 0.05 + 0.95 * done / 0.03
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - 0.03) / 0.97)))
