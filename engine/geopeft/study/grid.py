"""What a study runs: methods, and for each a run for every share of the labels and every seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from geopeft import __version__
from geopeft.errors import JobError
from geopeft.job import StudyJob
from geopeft.models.adapters import ADAPTERS
from geopeft.models.backbones import BACKBONES
from geopeft.models.decoders import DECODERS

FOREST = "random-forest"
AUTO = "auto"
SEARCH, RUN = "search", "run"


@dataclass(frozen=True)
class Method:
    """A way to make a map. Of the random forest adapter and decoder are empty.

    Args:
        backbone: its name, `auto`, or `random-forest`.
        metadata: whether time and place are given to the backbone.
        baseline: what the others are compared with.
    """

    backbone: str
    adapter: str = ""
    decoder: str = ""
    metadata: bool = False
    baseline: bool = False

    @property
    def title(self) -> str:
        """For tables and plots."""
        parts = [self.backbone, self.adapter, self.decoder, "metadata" if self.metadata else ""]
        return " · ".join(part for part in parts if part)


@dataclass(frozen=True)
class Cell:
    """One run.

    Args:
        kind: RUN, or SEARCH for a short one that a learning rate is chosen by.
        fraction: share of the labelled places that teach.
        rate: factor of the learning rates.
        steps: of the training; 0: chosen from the labels.
    """

    kind: str
    method: Method
    fraction: float
    seed: int
    rate: float
    steps: int

    def key(self, job: StudyJob, inputs: str) -> str:
        """What tells a run from all others: all that decides how it ends.

        Args:
            inputs: checksum of rasters and labels.
        """
        shared = [job.bands, job.radiometry, job.rank, job.line_width_px, job.blend]
        parts = [__version__, inputs, asdict(self), shared]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def methods(job: StudyJob) -> list[Method]:
    """All methods of a study, the baselines last; JobError NAME_UNKNOWN or STUDY_EMPTY."""
    for name in {*job.backbones, *job.baselines} - {AUTO, FOREST}:
        BACKBONES[name]
    if FOREST in job.backbones:
        message = "The random forest has no adapter and no decoder."
        raise JobError(message, f"Name {FOREST} among the baselines.")
    for name in job.adapters:
        ADAPTERS[name]
    for name in job.decoders:
        DECODERS[name]
    # Metadata first in the loop, so that a method stands beside the same one with it.
    found = [
        Method(backbone, adapter, decoder, metadata == "on")
        for backbone in job.backbones
        for decoder in job.decoders
        for adapter in job.adapters
        for metadata in job.metadata
    ]
    decoder = job.decoders[0] if job.decoders else "unet"
    found += [
        Method(FOREST, baseline=True) if name == FOREST else Method(name, "full", decoder, baseline=True)
        for name in job.baselines
    ]
    if not found:
        raise JobError("The study has nothing to compare.", "Name backbones or baselines.", "STUDY_EMPTY")
    return list(dict.fromkeys(found))


def search_cells(job: StudyJob, method: Method) -> list[Cell]:
    """The short runs that a method's learning rate is chosen by, with the first seed and all labels that may teach."""
    if method.backbone == FOREST or len(job.rates) < 2:
        return []
    steps = min(job.search_steps, job.steps) if job.steps else job.search_steps
    return [
        Cell(SEARCH, method, max(job.fractions, default=1.0), job.seed, rate, steps) for rate in sorted(set(job.rates))
    ]


def run_cells(job: StudyJob, method: Method, rate: float) -> Iterator[Cell]:
    """The runs of a method at its learning rate, the first seed of every share first."""
    rate = 1.0 if method.backbone == FOREST else rate
    steps = 0 if method.backbone == FOREST else job.steps
    for seed in range(job.seed, job.seed + job.seeds):
        for fraction in sorted(set(job.fractions), reverse=True) or [1.0]:
            yield Cell(RUN, method, fraction, seed, rate, steps)
