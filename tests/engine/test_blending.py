"""The blend of network and classical part: how sure it is, and how that is judged."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from geopeft import package
from geopeft.accuracy import calibration
from geopeft.blending import Forecast, fit_parts, measure
from geopeft.models import build
from geopeft.models.spec import InputBand, ModelSpec
from geopeft.objective import place_weights
from geopeft.onnx.export import _Network
from geopeft.runtime import Runtime

NAMES = ("a", "b")


def chips(right: list[bool], sure: float = 0.7) -> list[Forecast]:
    """A chip for each place; both parts say the same, and are right or wrong there."""
    found = []
    for place, is_right in enumerate(right):
        truth = np.full(30, place % 2)
        hit = sure if is_right else 1 - sure
        said = np.where(np.arange(2) == truth[:, None], hit, 1 - hit).astype(np.float32)
        found.append(Forecast(truth, np.log(said) * 1.5, said, np.full(30, place)))
    return found


def test_the_likeliest_class_stays_the_likeliest_however_sharp_the_map_is() -> None:
    mixed = np.random.default_rng(0).dirichlet(np.ones(5), (40, 3)).swapaxes(1, 2).astype(np.float32)
    for sharpness in (0.25, 1.0, 8.0):
        found = package.Blend(sharpness=sharpness).sharpen(mixed)
        assert np.array_equal(found.argmax(1), mixed.argmax(1)) and np.abs(found.sum(1) - 1).max() < 1e-5
    even = np.full((1, 254), 1 / 254, np.float32)
    assert package.Blend(sharpness=8.0).sharpen(even) == pytest.approx(even)


def test_a_blend_of_parts_that_agree_is_brought_to_how_often_it_is_right() -> None:
    blend = fit_parts(chips([True] * 30), 0.5, 0)
    assert blend.sharpness > 1.5
    said = chips([True])[0].mixed(blend).max(1)
    assert (said > 0.8).all(), "it said 70 % and was always right"
    assert fit_parts([], 0.5, 0).sharpness == 1


def test_the_calibration_that_is_told_is_that_of_blocks_which_did_not_choose_the_sharpness() -> None:
    """Of one block the map is right throughout, of the other never: either tells the wrong thing of the other."""
    found = chips([True] * 10 + [False] * 10)
    blocks = {place: place // 10 for place in range(20)}
    blend = fit_parts(found, 0.5, 0)
    told = measure(found, blend, NAMES, blocks)["calibration"]["ece"]
    mixed, truth = np.concatenate([chip.mixed(blend) for chip in found]), np.concatenate([c.truth for c in found])
    weights = place_weights(truth, np.concatenate([chip.places for chip in found]))
    flattering = calibration(mixed.max(1), mixed.argmax(1) == truth, weights)["ece"]
    assert flattering < 0.15 and told > flattering + 0.15
    # With one block nothing is known of its sharpness but what is usual.
    one = measure(found, blend, NAMES, dict.fromkeys(range(20), 0))["calibration"]
    plain = blend.model_copy(update={"sharpness": 1.0})
    assert one == measure(found, plain, NAMES, dict.fromkeys(range(20), 0))["calibration"]


def test_a_network_alone_is_sharpened_in_the_map_and_in_what_is_exported() -> None:
    bands = (InputBand(name="x", mean=100, std=50), InputBand(name="y", mean=100, std=50))
    spec = ModelSpec(backbone="scratch_unet", adapter="full", decoder="unet", bands=bands, num_classes=2, gsd_m=10,
                     chip_size_px=32)  # fmt: skip
    classes = tuple(
        package.ClassInfo(value=n, name=name, color="#000000", label=name) for n, name in enumerate(NAMES, 1)
    )
    manifest = package.Manifest(
        engine_version="0", created="2026", name="m", spec=spec, classes=classes, radiometry="unknown", dtype="uint8",
        base_weights=package.BaseWeights(backbone="scratch_unet", licence="x"), blend=package.Blend(sharpness=2.5),
    )  # fmt: skip
    runtime = Runtime(manifest, build(spec), torch.device("cpu"))
    values = np.random.default_rng(0).uniform(0, 200, (1, 2, 32, 32)).astype(np.float32)
    found = runtime.probabilities(values, np.ones((1, 32, 32), bool))
    plain = Runtime(manifest, runtime.model, torch.device("cpu"), part="network")
    expected = plain.probabilities(values, np.ones((1, 32, 32), bool)) ** 2.5
    assert np.abs(found - expected / expected.sum(1, keepdims=True)).max() < 1e-5
    with torch.inference_mode():
        exported = _Network(runtime)(torch.from_numpy(values))
    assert isinstance(exported, torch.Tensor) and np.abs(exported.numpy() - found).max() < 1e-5


def test_older_packages_are_as_sure_as_they_were_and_absurd_ones_are_refused(tmp_path: Path) -> None:
    assert package.Blend.model_validate_json(json.dumps({"network": 0.5, "temperature": 2.0})).sharpness == 1
    for sharpness in (0.0, -1.0, 100.0, float("nan")):
        with pytest.raises(ValueError, match="sharpness"):
            package.Blend(sharpness=sharpness)
