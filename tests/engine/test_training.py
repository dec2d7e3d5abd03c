"""The training loop: who learns when, which weights are kept, and the last steps on all labels."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from geopeft.data.batches import Batch
from geopeft.data.chips import Chip
from geopeft.events import Reporter
from geopeft.models import SegmentationModel, build
from geopeft.models.spec import InputBand, ModelSpec
from geopeft.training import trainer
from geopeft.training.learning import gains_from_half
from geopeft.training.trainer import Trainer

SIZE = 32


class Sampler:
    """Chips whose left half is one class and dark, whose right half is the other and bright."""

    random_state: dict[str, Any] = {}

    def draw(self, count: int) -> Batch:
        ids = np.zeros((count, SIZE, SIZE), np.uint8)
        ids[:, :, SIZE // 2 :] = 1
        values = np.repeat(ids[:, None].astype(np.float32), 3, 1)
        return Batch(values, np.ones((count, SIZE, SIZE), bool), ids)


def validation() -> list[tuple[Chip, tuple[int, int, int]]]:
    batch = Sampler().draw(1)
    return [(Chip(batch.values[0], batch.valid[0], batch.class_ids[0], np.zeros((SIZE, SIZE), np.int32)), (0, 0, 0))]


def model(adapter: str = "lora") -> SegmentationModel:
    torch.manual_seed(0)
    bands = tuple(InputBand(name=n, common=n, backbone_band=n, mean=0.5, std=0.5) for n in ("red", "green", "blue"))
    fields = {"backbone": "tf_efficientnet_lite0", "decoder": "unet", "num_classes": 2, "gsd_m": 1.0}
    spec = ModelSpec(**fields, adapter=adapter, bands=bands, chip_size_px=SIZE, probe=True, rank=2)  # type: ignore[arg-type]
    return build(spec, pretrained=False)


def trainer_of(trained: SegmentationModel, **options: bool) -> Trainer:
    return Trainer(trained, Sampler(), validation(), Reporter(), **options)  # type: ignore[arg-type]


def adapter_of(trained: SegmentationModel) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for name, p in trained.backbone.named_parameters() if ".lora_B" in name])


@pytest.mark.parametrize("alone", [True, False])
def test_the_adapter_waits_until_the_decoder_has_learned(alone: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "ALONE_SHARE", 1.0 if alone else 0.0)
    trained = model()
    head = trained.head.weight.detach().clone()
    trainer_of(trained, trusts_validation=False).train(3)
    assert not torch.equal(trained.head.weight, head)
    assert bool((adapter_of(trained) == 0).all()) == alone
    assert all(p.requires_grad for name, p in trained.backbone.named_parameters() if ".lora_" in name)


def test_a_frozen_backbone_stays_as_it_is() -> None:
    trained = model("frozen")
    before = {name: p.clone() for name, p in trained.backbone.state_dict().items()}
    trainer_of(trained).train(2)
    assert all(torch.equal(before[name], p) for name, p in trained.backbone.state_dict().items())


def test_training_that_gains_nothing_leaves_the_probe_it_started_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "DECODER_LEARNING_RATE", 5.0)
    trained = model("frozen")
    with torch.no_grad():
        assert trained.probe is not None
        trained.probe.offsets.copy_(torch.tensor([0.5, 0.5]))
    start = trained.trainable_state()
    learning = trainer_of(trained)
    losses = iter([1.0, 2.0, 3.0, 4.0])
    monkeypatch.setattr(learning, "_score", lambda: (next(losses), [np.eye(2)]))
    learning.train(2)
    assert learning.best_step == 0
    assert all(torch.equal(start[name], tensor) for name, tensor in trained.trainable_state().items())


@pytest.mark.parametrize("trusted", [True, False])
def test_validation_that_cannot_be_trusted_chooses_no_step(trusted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    learning = trainer_of(model("frozen"), trusts_validation=trusted)
    losses = iter([1.0, 2.0])
    monkeypatch.setattr(learning, "_score", lambda: (next(losses), [np.eye(2)]))
    assert learning.train(3) == 3
    assert learning.best_step == (0 if trusted else 3)


@pytest.mark.fault("G06")
def test_the_last_steps_go_on_from_the_best_weights_and_stop_at_the_deadline() -> None:
    trained = model("frozen")
    learning = trainer_of(trained)
    learning.train(2)
    head = trained.head.weight.detach().clone()
    learning.finish(Sampler(), 0, 2)  # type: ignore[arg-type]
    assert torch.equal(trained.head.weight, head)
    learning.finish(Sampler(), 3, 2)  # type: ignore[arg-type]
    moved = float((trained.head.weight - head).abs().max())
    assert 0 < moved < 3 * trainer.DECODER_LEARNING_RATE * trainer.FINISH_RATE
    calls = []
    learning._learner.step = lambda *given: calls.append(1) or math.nan  # type: ignore[assignment, func-returns-value]
    learning.finish(Sampler(), 50, 2, deadline=0.0)  # type: ignore[arg-type]
    assert len(calls) == 1


def test_small_and_depthwise_backbones_are_trained_in_float32_on_a_cpu() -> None:
    cpu = torch.device("cpu")
    assert not gains_from_half(model().backbone, cpu)
    assert gains_from_half(torch.nn.Linear(1024, 8), cpu)
    assert not gains_from_half(torch.nn.Linear(128, 8), cpu)
