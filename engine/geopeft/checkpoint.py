"""Where a run that trains goes on after it was canceled or killed: one safetensors file, written whole.

It holds the progress as JSON and tensors by name, and the identity of the run: what decides its result. A checkpoint
of another run is never used.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from geopeft.errors import JobError
from geopeft.writing import whole_file, write_failed

SUFFIX = ".resume"
# Writing never takes more than about this part of the time.
MOST_TIME = 0.05
_OPTIMIZER_PARTS = ("step", "exp_avg", "exp_avg_sq")


class Checkpoint:
    """The file of one run.

    Args:
        path: where it is, beside the run's output.
        kind: which job writes it, such as "fit".
        identity: a checksum of all that decides the result.
    """

    def __init__(self, path: Path, kind: str, identity: str) -> None:
        self.path = path
        self._format = f"geopeft-{kind}-checkpoint 1"
        self._identity = identity
        self._saved_at = time.monotonic()
        self._cost_s = 0.0

    def due(self, every_s: float) -> bool:
        """Whether the last save is that long ago; longer where saving takes long."""
        return time.monotonic() - self._saved_at >= max(every_s, self._cost_s / MOST_TIME)

    def save(self, progress: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Writes the file whole; OutputError where that is not possible, and then the earlier one is still there."""
        begun = time.monotonic()
        plain = {name: value.detach().to("cpu", copy=True).contiguous() for name, value in tensors.items()}
        note = {"format": self._format, "identity": self._identity, "progress": json.dumps(progress)}
        with whole_file(self.path) as part:
            # The library has temporary names of its own, which nobody would know again after a kill.
            folder = Path(f"{part}.folder")
            try:
                folder.mkdir()
                save_file(plain, folder / part.name, note)
                os.replace(folder / part.name, part)
            except SafetensorError as error:
                raise write_failed("checkpoint", self.path, str(error)) from error
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        self._saved_at = time.monotonic()
        self._cost_s = self._saved_at - begun

    def read(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Progress and tensors; None where there is no file.

        Raises:
            JobError: CHECKPOINT_BROKEN, or CHECKPOINT_OTHER_JOB where it is not one of this run.
        """
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt") as stream:
                note = stream.metadata() or {}
                if note.get("format") == self._format and note.get("identity") == self._identity:
                    names: list[str] = stream.keys()
                    return json.loads(note["progress"]), {name: stream.get_tensor(name) for name in names}
        except (SafetensorError, OSError, ValueError) as error:
            raise JobError(
                f"The checkpoint {self.path} cannot be read.", "Delete it to start anew.", "CHECKPOINT_BROKEN"
            ) from error
        raise JobError(
            f"The checkpoint {self.path} belongs to another job: other rasters, another backbone or other settings.",
            "Run that job again to finish it, delete the file to start anew, or write to another file.",
            "CHECKPOINT_OTHER_JOB",
        )

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        """Puts further tensors into the file; nothing where there is none. Raises as `read` and `save` do."""
        found = self.read()
        if found is not None:
            self.save(found[0], found[1] | dict(tensors))

    def remove(self) -> None:
        """Deletes the file, if it is there: the run has its result."""
        self.path.unlink(missing_ok=True)


def checkpoint_path(out: Path) -> Path:
    """Where the checkpoint of a run lies that writes `out`."""
    return out.with_name(out.name + SUFFIX)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The moments of an Adam optimizer by name."""
    states = optimizer.state_dict()["state"]
    return {f"optimizer.{index}.{part}": value for index, state in states.items() for part, value in state.items()}


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Puts back what `optimizer_tensors` gave; parameters that had not been trained yet begin anew."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = optimizer.state_dict()
    state["state"] = {
        index: {part: _laid_out(tensors[f"optimizer.{index}.{part}"], parameter) for part in _OPTIMIZER_PARTS}
        for index, parameter in enumerate(parameters)
        if f"optimizer.{index}.step" in tensors
    }
    optimizer.load_state_dict(state)


def _laid_out(value: Tensor, parameter: Tensor) -> Tensor:
    """The value in memory as the parameter is, so that arithmetic on both rounds as it did before the stop."""
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
