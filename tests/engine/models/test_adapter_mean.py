"""The mean of what several trainings made of one adapter."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from geopeft.models import SegmentationModel, build
from geopeft.models.adapters import ADAPTERS
from geopeft.models.adapters.mean import mean_of
from geopeft.models.adapters.reparametrized import flat
from geopeft.models.backbones import BACKBONES
from geopeft.models.spec import InputBand, ModelSpec

torch.set_num_threads(1)
ROWS, COLS, RANK = 12, 20, 3
WEIGHTS = (0.7, 0.3)
BACKBONE = "prithvi_eo_v2_tiny_tl"
BANDS = tuple(InputBand(name=b.name, backbone_band=b.name, mean=0.5, std=0.3) for b in BACKBONES[BACKBONE].bands)


def factors(seed: int, rank: int = RANK) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "a.lora_A.weight": rng.normal(size=(rank, COLS)).astype(np.float32),
        "a.lora_B.weight": rng.normal(size=(ROWS, rank)).astype(np.float32),
    }


def product(state: dict[str, np.ndarray]) -> np.ndarray:
    return state["a.lora_B.weight"].astype(float) @ state["a.lora_A.weight"].astype(float)


def test_the_mean_of_products_is_cut_as_well_as_can_be_and_the_loss_is_told() -> None:
    states = [factors(0), factors(1)]
    exact = WEIGHTS[0] * product(states[0]) + WEIGHTS[1] * product(states[1])
    left, values, right = np.linalg.svd(exact)
    best = left[:, :RANK] * values[:RANK] @ right[:RANK]
    mean = mean_of(states, WEIGHTS)
    assert np.allclose(product(mean.arrays), best, atol=1e-5)
    assert mean.lost == pytest.approx((values[RANK:] ** 2).sum() / (values**2).sum(), abs=1e-6)
    assert mean.lost is not None and mean.lost > 0.01, "the case is one in which something is lost"


def test_the_mean_of_equal_models_is_that_model() -> None:
    mean = mean_of([factors(0), factors(0)], WEIGHTS)
    assert np.allclose(product(mean.arrays), product(factors(0)), atol=1e-5)
    assert mean.lost == pytest.approx(0, abs=1e-9)


def test_a_direction_without_an_update_can_still_learn() -> None:
    """With both factors zero, neither would ever get a gradient."""
    states = [factors(0), factors(1)]
    for state in states:
        state["a.lora_B.weight"][:] = 0
    mean = mean_of(states, WEIGHTS)
    assert not product(mean.arrays).any() and mean.lost == 0
    lengths = np.linalg.norm(mean.arrays["a.lora_A.weight"], axis=1)
    usual = np.sqrt(np.average([(s["a.lora_A.weight"] ** 2).sum() / RANK for s in states], weights=WEIGHTS))
    assert np.allclose(lengths, usual, rtol=1e-5)


def test_the_mean_is_the_same_from_the_same_models() -> None:
    first, second = (mean_of([factors(0), factors(1)], WEIGHTS).arrays for _ in range(2))
    assert all(first[name].tobytes() == second[name].tobytes() for name in first)


@pytest.mark.parametrize("same_beginning", [True, False])
def test_updates_that_left_from_principal_directions_are_averaged_from_there(same_beginning: bool) -> None:
    begun = [factors(7), factors(7 if same_beginning else 8)]
    states = []
    for number, first in enumerate(begun):
        state = {name: array + 0.05 * factors(number)[name] for name, array in first.items()}
        state |= {"a.first_A": first["a.lora_A.weight"], "a.first_B": first["a.lora_B.weight"]}
        states.append(state)
    exact = sum(w * (product(s) - product(b)) for w, s, b in zip(WEIGHTS, states, begun, strict=True))
    mean = mean_of(states, WEIGHTS)
    made = product(mean.arrays) - mean.arrays["a.first_B"] @ mean.arrays["a.first_A"]
    assert mean.lost is not None
    assert ((made - exact) ** 2).sum() / (exact**2).sum() == pytest.approx(mean.lost, rel=1e-3)
    assert mean.lost < 0.5


def test_batch_statistics_are_those_of_all_batches_together() -> None:
    rng = np.random.default_rng(0)
    batches = [rng.normal(3, 1, 4000), rng.normal(-1, 2, 4000)]
    states = [
        {"n.running_mean": np.array([b.mean()], np.float32), "n.running_var": np.array([b.var()], np.float32),
         "n.num_batches_tracked": np.array(9)}
        for b in batches
    ]  # fmt: skip
    mean = mean_of(states, (0.5, 0.5)).arrays
    whole = np.concatenate(batches)
    assert mean["n.running_mean"][0] == pytest.approx(whole.mean(), rel=1e-4)
    assert mean["n.running_var"][0] == pytest.approx(whole.var(), rel=1e-4)
    assert mean["n.num_batches_tracked"] == 9


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transformer of four narrow blocks."""
    card = BACKBONES[BACKBONE]
    options = dict(card.options) | {"depth": 4, "dim": 48, "heads": 4}
    monkeypatch.setitem(BACKBONES._rows, BACKBONE, dataclasses.replace(card, options=options))


def model_with(adapter: str, seed: int) -> SegmentationModel:
    """A network whose trained part has moved away from the same start."""
    torch.manual_seed(0)
    fields = {"backbone": BACKBONE, "adapter": adapter, "decoder": "linear", "bands": BANDS, "rank": 2}
    spec = ModelSpec.model_validate({**fields, "num_classes": 3, "gsd_m": 30, "chip_size_px": 64, "prompt_tokens": 4})
    model = build(spec, pretrained=False)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def arrays(model: SegmentationModel) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in model.trainable_state().items()}


@pytest.mark.parametrize("adapter", ADAPTERS.names())
def test_every_adapter_takes_its_mean_back(adapter: str) -> None:
    model = model_with(adapter, 1)
    mean = mean_of([arrays(model), arrays(model_with(adapter, 2))], WEIGHTS)
    model.load_trainable_state({name: torch.from_numpy(np.asarray(a)) for name, a in mean.arrays.items()})
    assert torch.isfinite(model.eval()(torch.rand(1, len(BANDS), 64, 64))).all()
    assert (mean.lost is not None) == (adapter in ("lora", "rslora", "dora", "pissa"))


@pytest.mark.parametrize("adapter", ["lora", "rslora", "ssl"])
def test_a_layer_of_the_average_is_the_mean_of_the_layers(adapter: str) -> None:
    """Up to what the cut to the rank has lost."""
    models = [model_with(adapter, 1), model_with(adapter, 2)]
    mean = mean_of([arrays(model) for model in models], WEIGHTS)
    name = next(n for n, m in models[0].backbone.named_modules() if hasattr(m, "base_layer"))
    plain = flat(models[0].backbone.get_submodule(name).base_layer).detach()  # type: ignore[arg-type]
    own = [m.backbone.get_submodule(name).weight.detach().flatten(1) - plain for m in models]  # type: ignore[union-attr,operator]
    models[0].load_trainable_state({key: torch.from_numpy(np.asarray(a)) for key, a in mean.arrays.items()})
    made = models[0].backbone.get_submodule(name).weight.detach().flatten(1) - plain  # type: ignore[union-attr,operator]
    exact = WEIGHTS[0] * own[0] + WEIGHTS[1] * own[1]
    left, values, right = torch.linalg.svd(exact, full_matrices=False)
    kept = 2 if adapter != "ssl" else len(values)
    best = left[:, :kept] * values[:kept] @ right[:kept]
    assert torch.linalg.norm(made - best) <= 1e-4 * torch.linalg.norm(exact) + 1e-6
