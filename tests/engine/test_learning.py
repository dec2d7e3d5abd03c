"""One step of a training: the same gradients however a batch is shared out, and in half precision."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from geopeft.data.batches import Batch
from geopeft.models import SegmentationModel, build
from geopeft.models.backbones import BACKBONES, transformer
from geopeft.models.backbones.transformer import keep_little
from geopeft.models.spec import InputBand, ModelSpec
from geopeft.training.learning import Computed, Learner, frozen_weights
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

SIZE = 64


def model_of(backbone: str, adapter: str = "lora") -> SegmentationModel:
    torch.manual_seed(0)
    bands = tuple(InputBand(name=band.name, backbone_band=band.name) for band in BACKBONES[backbone].bands)
    fields = {"backbone": backbone, "adapter": adapter, "decoder": "unet", "num_classes": 3, "rank": 4}
    model = build(ModelSpec(**fields, bands=bands, gsd_m=10, chip_size_px=SIZE), pretrained=False)  # type: ignore[arg-type]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B" in name:
                parameter.normal_(std=0.02)
    return model


def batch_of(model: SegmentationModel, count: int = 3) -> Batch:
    """Chips of noise, of which every second pixel is labelled, in the last chip none."""
    rng = np.random.default_rng(1)
    values = rng.normal(0, 1, (count, len(model.spec.bands), SIZE, SIZE)).astype(np.float32)
    class_ids = rng.choice([0, 0, 0, 1, 2, 255], (count, SIZE, SIZE)).astype(np.uint8)
    class_ids[-1] = 255
    return Batch(values, np.ones((count, SIZE, SIZE), bool), class_ids, marks=tuple((0, i, 2 * i, i) for i in range(3)))


def gradients(learner: Learner, batch: Batch, whole: Batch) -> dict[str, Tensor]:
    model = learner._model
    model.zero_grad()
    learner._backward(batch, torch.from_numpy(batch.values), whole.class_ids)
    return {n: p.grad.clone() if p.grad is not None else 0 * p for n, p in model.named_parameters() if p.requires_grad}


def test_the_gradients_of_the_parts_of_a_batch_add_up_to_those_of_the_batch() -> None:
    model = model_of("prithvi_eo_v2_tiny_tl")
    learner, batch = Learner(model, Computed(model)), batch_of(model)
    learner.single_precision()
    whole = gradients(learner, batch, batch)
    parts = [gradients(learner, batch.part(number, 2), batch) for number in range(2)]
    assert batch.part(1, 2).marks == batch.marks[1:2]
    assert len(batch.part(0, 2).values) == 2
    for name, gradient in whole.items():
        assert float(gradient.norm()) > 0, name
        assert float((parts[0][name] + parts[1][name] - gradient).norm() / gradient.norm()) < 1e-4, name


def test_frozen_weights_in_half_precision_give_the_gradients_of_autocast_and_stay_what_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = model_of("prithvi_eo_v2_tiny_tl")
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    learner, batch = Learner(model, Computed(model)), batch_of(model)
    learner._half = learner._half_backbone = True
    assert len(frozen_weights(model.backbone)) == 6 * len(list(model.backbone.layers))  # type: ignore[arg-type]
    halved = gradients(learner, batch, batch)
    monkeypatch.setattr("geopeft.training.learning.frozen_weights", lambda backbone: [])
    learner._halves = {}
    plain = gradients(learner, batch, batch)
    assert all(torch.equal(plain[name], gradient) for name, gradient in halved.items())
    after = model.backbone.state_dict()
    assert all(after[name].dtype == value.dtype and torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize("adapter", ["lora", "vpt"])
def test_a_training_in_low_memory_has_the_same_gradients_and_keeps_less(
    adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of("prithvi_eo_v2_tiny_tl", adapter)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    learner, batch = Learner(model, Computed(model)), batch_of(model)
    learner.single_precision()
    usual = gradients(learner, batch, batch)
    keep_little(model.backbone, True)
    again = gradients(learner, batch, batch)
    assert all(torch.allclose(again[name], gradient, rtol=1e-5, atol=1e-9) for name, gradient in usual.items())
    low = kept_bytes(model, batch)
    keep_little(model.backbone, False)
    usual_bytes = kept_bytes(model, batch)
    monkeypatch.setattr(transformer, "computed_again", lambda value, make: contextlib.nullcontext())
    assert 2 * low < usual_bytes
    # What LoRA asks for, frozen layers do not.
    assert adapter != "lora" or usual_bytes < 0.8 * kept_bytes(model, batch)


def kept_bytes(model: SegmentationModel, batch: Batch) -> int:
    """What the way through the backbone leaves in memory for the gradients."""
    raw = torch.from_numpy(batch.values)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        features, _ = model.encode(raw)
    assert features[0].requires_grad
    return sum(event.self_cpu_memory_usage for event in seen.key_averages())
