"""A training on several processes: the same result as one alone, one voice, and one sentence when a process is lost."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from affine import Affine
from geopeft import fit, forest, holdout
from geopeft.data.batches import Batch
from geopeft.errors import DeviceError, JobError
from geopeft.events import Reporter
from geopeft.job import FitJob, parse
from geopeft.models import build
from geopeft.models.adapters.full import Full
from geopeft.models.spec import InputBand, ModelSpec
from geopeft.training import learning, trainer
from geopeft.training.together import joined
from geopeft.training.trainer import Trainer

ORIGIN = Affine(10, 0, 300_000, 0, -10, 5_800_000)
ENGINE = Path(__file__).parents[2] / "engine"
SENTENCE = "One of the 2 processes that train this model has ended before its time."
FOLLOWER = """
import os, sys, torch
from geopeft import __main__
from geopeft.training import learning
torch.set_num_threads(1)
learning.multiplies_bfloat16 = lambda device: False
if "DIES" in os.environ:
    learning.Learner.help = lambda *given: os._exit(9)
code = __main__.main(sys.argv[1:])
sys.stdout.flush()
os._exit(code)
"""
LEADER_DIES = """
import os
from geopeft.models import build
from geopeft.models.spec import InputBand, ModelSpec
from geopeft.training.together import joined
from geopeft.training.trainer import Trainer
with joined("cpu"):
    os._exit(9)
"""


@pytest.fixture
def job(tmp_path: Path, make_raster: Callable[..., Path], make_labels: Callable[..., Path]) -> FitJob:
    bright = np.indices((4, 96, 96)).sum(0) // 24 % 2
    noise = np.random.default_rng(0).normal(0, 900, (4, 96, 96)).clip(-450)
    raster = make_raster((500 + 1500 * bright + noise).astype(np.uint16), names=("B02", "B03", "B04", "B08"))
    places = [(row, col) for row in range(8, 96, 24) for col in range(8, 96, 24)]
    boxes = [shapely.box(*(ORIGIN * (col, row + 6)), *(ORIGIN * (col + 6, row))) for row, col in places]
    labels = make_labels(boxes, [("dark", "bright")[bright[0, row, col]] for row, col in places])
    fields: dict[str, Any] = {"job": "fit", "rasters": (str(raster),), "labels": str(labels), "device": "cpu"}
    fields |= {"backbone": "geopeft_small", "decoder": "linear", "steps": 4, "folds": 1, "baselines": ()}
    found = parse({**fields, "adapter": "lora", "out": str(tmp_path / "alone")})
    assert isinstance(found, FitJob)
    return found


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """As little work as will do, in single precision: in bfloat16 the sums of other parts are rounded otherwise."""
    for module, name, value in (
        (holdout, "MAX_VALIDATION_CHIPS", 2), (forest, "TREES", 2), (forest, "FOLD_TREES", 1),
        (trainer, "BATCH", 3), (fit, "BATCH", 3), (learning, "multiplies_bfloat16", lambda device: False),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)


@contextlib.contextmanager
def process(rank: int, port: int, code: str, *arguments: str, **settings: str) -> Iterator[subprocess.Popen[str]]:
    """One of two processes, with the environment that torchrun gives it."""
    environment = {**os.environ, "PYTHONPATH": str(ENGINE), "OMP_NUM_THREADS": "1", **team(rank, port), **settings}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code, *arguments], env=environment, text=True, **pipes) as started:
        try:
            yield started
        finally:
            started.kill()


def team(rank: int, port: int) -> dict[str, str]:
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port}
    return {"MASTER_ADDR": "127.0.0.1", **{name: str(number) for name, number in numbers.items()}}


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def options(job: FitJob) -> list[str]:
    return ["fit", *job.rasters, "--labels", job.labels, "--class-field", "class", "--device", "cpu", "--out", job.out]


class Sampler:
    """Chips of noise, in which the brighter pixels are mostly of the second class."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    @property
    def random_state(self) -> dict[str, Any]:
        return dict(self._rng.bit_generator.state)

    @random_state.setter
    def random_state(self, state: dict[str, Any]) -> None:
        self._rng.bit_generator.state = state

    def draw(self, count: int) -> Batch:
        values = self._rng.normal(0, 1, (count, 4, 32, 32)).astype(np.float32)
        noise = self._rng.normal(0, 1, (count, 32, 32))
        return Batch(values, np.ones(noise.shape, bool), (values.mean(1) + noise > 0).astype(np.uint8))


class Still(Full):
    """Full tuning in which the batch statistics stay as they are."""

    trains_statistics = False


def trained(adapter: str = "lora", *, learns_statistics: bool = True) -> dict[str, np.ndarray]:
    """What a training of a few steps makes of the model in the box."""
    torch.manual_seed(0)
    bands = tuple(InputBand(name=str(um), wavelength_um=um) for um in (0.49, 0.56, 0.665, 0.842))
    fields: dict[str, Any] = {"backbone": "geopeft_small", "adapter": adapter, "decoder": "linear", "bands": bands}
    model = build(ModelSpec(**fields, num_classes=2, gsd_m=10, chip_size_px=32))
    if not learns_statistics:
        model.adapter = Still()
    Trainer(model, Sampler(), (), Reporter(), False).train(6)
    return {name: value.double().numpy() for name, value in model.trainable_state().items()}


def test_two_processes_give_the_weights_of_one_and_one_speaks(job: FitJob, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    one, full, port = trained(), trained("full", learns_statistics=False), free_port()
    with process(1, port, FOLLOWER, *options(job), "--events") as follower:
        for name, value in team(0, port).items():
            monkeypatch.setenv(name, value)
        with joined("cpu"):
            two, full_of_two = trained(), trained("full")
        assert follower.communicate(timeout=300)[0] == ""
        assert follower.returncode == 0
    assert max(float(np.abs(value).max()) for name, value in one.items() if ".lora_B" in name) > 1e-3, "it has learned"
    assert any("running_mean" in name for name in full), "a network whose batches have statistics"
    for name in full:
        assert np.linalg.norm(full_of_two[name] - full[name]) <= 2e-3 * np.linalg.norm(full[name]), name
    # The first steps of Adam are as long for a gradient that is nothing but rounding as for any other.
    for name in one:
        assert np.linalg.norm(two[name] - one[name]) <= 2e-3 * np.linalg.norm(one[name]), name
    every = [np.concatenate([state[name].ravel() for name in one]) for state in (one, two)]
    assert 0 < np.linalg.norm(every[1] - every[0]) < 1e-4 * np.linalg.norm(every[0])


def test_a_follower_that_dies_ends_the_training(job: FitJob, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    with process(1, port, FOLLOWER, *options(job), DIES="1") as follower:
        for name, value in team(0, port).items():
            monkeypatch.setenv(name, value)
        reporter = Reporter()
        with pytest.raises(JobError) as caught:
            fit.run(job.model_copy(update={"adapter": "full"}), reporter)
        assert follower.wait(timeout=300) == 9
    assert (caught.value.code, caught.value.message) == ("PROCESS_LOST", SENTENCE)
    assert "Trains on 2 processes, each with its part of every batch of 3 chips." in reporter.messages
    assert any("batch statistics stay as they are" in text for text in reporter.messages)
    assert not Path(job.out + ".geopeft").exists()


def test_a_follower_says_that_the_leader_has_died(job: FitJob) -> None:
    port = free_port()
    with process(0, port, LEADER_DIES), process(1, port, FOLLOWER, *options(job)) as follower:
        said = follower.communicate(timeout=300)[1]
        assert follower.returncode == 1
    assert said.count(SENTENCE) == 1


def test_jobs_that_cannot_be_shared_are_refused_on_several_processes() -> None:
    with process(
        0, free_port(), "import sys; from geopeft.__main__ import main; sys.exit(main(['models']))"
    ) as started:
        said = started.communicate(timeout=300)[1]
        assert started.returncode == 1
    assert "models was started on 2 processes, of which each would do all of it." in said


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in team(0, 1).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DeviceError, match="machine with 0 GPUs"), joined("cuda"):
        pass
