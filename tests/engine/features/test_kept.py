"""Features on the disk: what of a network is kept, and that the same comes of it whether it was there or not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from geopeft.data.batches import Batch
from geopeft.events import Reporter
from geopeft.features import kept
from geopeft.features.kept import KeptFeatures, kept_features
from geopeft.models import SegmentationModel, build
from geopeft.models.backbones import BACKBONES
from geopeft.models.backbones.backbone import Scene
from geopeft.models.spec import InputBand, ModelSpec

SMALL = {"dim": 96, "depth": 4, "heads": 4}
SIDE = 32
# What a step tells beside the values.
NONE = Batch(np.zeros(0), np.zeros(0), np.zeros(0))
TRANSFORMERS = ("prithvi_eo_v2_tiny_tl", "galileo_nano")


def model(
    backbone: str = "prithvi_eo_v2_tiny_tl", adapter: str = "lora", *, seed: int = 0, **fields: Any
) -> SegmentationModel:
    torch.manual_seed(seed)
    card = BACKBONES[backbone]
    named = [(band.name, band.wavelength_um) for band in card.bands] or [("r", 0.66), ("g", 0.56), ("b", 0.49)]
    bands = tuple(
        InputBand(name=name, backbone_band=name if card.bands else "", wavelength_um=length) for name, length in named
    )
    made = {"backbone": backbone, "adapter": adapter, "decoder": "unet", "num_classes": 2, "gsd_m": 10.0, "rank": 2}
    return build(ModelSpec(**made, bands=bands, chip_size_px=SIDE, **fields), pretrained=False)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TRANSFORMERS:
        monkeypatch.setitem(BACKBONES[name].options, "depth", SMALL["depth"])
        monkeypatch.setitem(BACKBONES[name].options, "dim", SMALL["dim"])
        monkeypatch.setitem(BACKBONES[name].options, "heads", SMALL["heads"])


def chips(of: SegmentationModel, count: int = 3, side: int = SIDE) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.rand(count, len(of.spec.bands), side, side)


def keep(of: SegmentationModel, folder: Path) -> KeptFeatures:
    found = kept_features(of, Reporter(), folder)
    assert found is not None
    return found


def resting(of: SegmentationModel) -> SegmentationModel:
    of.backbone.requires_grad_(False)
    return of


def files(folder: Path) -> int:
    return len(list(folder.glob("*.features")))


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Chips that a backbone has worked on."""
    seen: list[int] = []
    encode, begin = SegmentationModel.encode, SegmentationModel.begin

    def watched(of: Callable[..., Any]) -> Callable[..., Any]:
        def do(self: Any, raw: torch.Tensor, *rest: Any) -> Any:
            seen.extend([1] * len(raw))
            return of(self, raw, *rest)

        return do

    monkeypatch.setattr(SegmentationModel, "encode", watched(encode))
    monkeypatch.setattr(SegmentationModel, "begin", watched(begin))
    return seen


@pytest.mark.parametrize("backbone", [*TRANSFORMERS, "geopeft_small", "tf_efficientnet_lite0"])
def test_kept_features_are_those_of_the_backbone_but_for_the_last_bits(
    tmp_path: Path, backbone: str, computed: list[int]
) -> None:
    net = model(backbone, "frozen")
    raw = chips(net, side=41)
    expected = net.encode(raw)[0]
    for _ in range(2):
        found, standardised = keep(net, tmp_path).encode(NONE, raw, None)
        for own, given in zip(found, expected, strict=True):
            assert own.shape == given.shape and own.dtype == torch.float32
            assert float((own - given).norm()) <= 1e-3 * float(given.norm())
        assert torch.equal(standardised, net.encode(raw)[1])
    assert len(computed) == 3 * 4, "three chips: as it is three times, kept once"


@pytest.mark.parametrize("backbone", [*TRANSFORMERS, "geopeft_small"])
@pytest.mark.parametrize("resample", [1.0, 1.5])
def test_a_network_goes_on_behind_its_first_blocks_to_the_same_maps(backbone: str, resample: float) -> None:
    net = model(backbone, "lora", last_blocks=2, resample=resample)
    with torch.no_grad():
        for name, parameter in net.backbone.named_parameters():
            if ".lora_B." in name:
                parameter.normal_()
    blocks = net.backbone.resting_blocks()
    assert blocks == (2 if backbone in TRANSFORMERS else 5)
    raw = chips(net, 2, side=41)
    begun = net.begin(raw, None, blocks)
    assert not any(tensor.requires_grad for tensor in begun)
    for own, given in zip(net.go_on(begun, blocks, 41, 41), net.encode(raw)[0], strict=True):
        assert own.shape == given.shape and torch.allclose(own, given, atol=1e-6)


def test_gradients_reach_the_last_blocks_through_kept_first_ones(tmp_path: Path) -> None:
    net = model(last_blocks=1)
    features = keep(net, tmp_path)
    found, _ = features.encode(NONE, chips(net), None)
    found[-1].square().mean().backward()
    learned = {name for name, p in net.backbone.named_parameters() if p.grad is not None}
    assert learned == {name for name, p in net.backbone.named_parameters() if p.requires_grad}
    assert learned and features.resting_blocks == 3


@pytest.mark.parametrize(
    ("adapter", "fields", "blocks"),
    [
        ("frozen", {}, 0),
        ("lora", {}, 0),
        ("lora", {"last_blocks": 1}, 3),
        ("bitfit", {}, 0),
        ("bitfit", {"last_blocks": 2}, 2),
        # What these share, or put beside the blocks, learns from the first block on.
        ("mode", {"last_blocks": 1}, 0),
        ("vit-adapter", {}, 0),
    ],
)
def test_only_blocks_in_front_of_all_that_learns_rest(adapter: str, fields: dict[str, Any], blocks: int) -> None:
    assert model("prithvi_eo_v2_tiny_tl", adapter, **fields).backbone.resting_blocks() == blocks


@pytest.mark.parametrize("adapter", ["full", "vpt"])
def test_nothing_is_kept_of_a_backbone_that_changes_from_step_to_step(tmp_path: Path, adapter: str) -> None:
    """In full tuning its statistics do even while it waits; prompts pass a dropout."""
    assert kept_features(model(adapter=adapter), Reporter(), tmp_path) is None


def test_while_the_whole_backbone_learns_it_is_computed(tmp_path: Path, computed: list[int]) -> None:
    net = model()
    found = keep(net, tmp_path).maps(chips(net), None)
    assert found[0].requires_grad and files(tmp_path) == 0
    resting(net)
    keep(net, tmp_path).maps(chips(net), None)
    assert files(tmp_path) == 3


def test_chips_that_are_computed_or_known_give_the_same_in_every_batch(tmp_path: Path) -> None:
    """Sums over other numbers of chips are rounded otherwise, so each is computed by itself."""
    net = model("prithvi_eo_v2_tiny_tl", "frozen")
    raw = chips(net, 5)
    alone = [keep(net, tmp_path / "one").maps(raw[at : at + 1], None) for at in range(5)]
    features = keep(net, tmp_path / "other")
    features.maps(raw[2:4], None)
    for level, mixed in enumerate(features.maps(raw, None)):
        assert torch.equal(mixed, torch.cat([one[level] for one in alone]))


CHANGES: dict[str, Callable[[SegmentationModel], object]] = {
    "weights": lambda net: next(net.backbone.parameters()).data.mul_(1.5),
    "adapter": lambda net: [p.data.normal_() for n, p in net.backbone.named_parameters() if ".lora_B." in n],
    "pixel size": lambda net: setattr(net, "spec", net.spec.model_copy(update={"gsd_m": 20.0})),
    "units": lambda net: setattr(
        net,
        "spec",
        net.spec.model_copy(update={"bands": tuple(b.model_copy(update={"scale": 2.0}) for b in net.spec.bands)}),
    ),
    "layout": lambda net: net.to(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_decides_a_chips_features_is_in_their_name(tmp_path: Path, change: str) -> None:
    net = resting(model())
    raw = chips(net, 1)
    keep(net, tmp_path).maps(raw, None)
    CHANGES[change](net)
    keep(net, tmp_path).maps(raw, None)
    assert files(tmp_path) == 2


def test_other_values_times_and_precisions_have_other_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = resting(model(metadata=True))
    features, raw = keep(net, tmp_path), chips(net, 1)
    for count, ask in enumerate(
        (
            lambda: features.maps(raw, None),
            lambda: features.maps(raw + 1e-6, None),
            lambda: features.maps(raw, Scene(torch.tensor([[[2024.0, 5.0, 10.0]]]), None)),
            lambda: features.maps(raw, Scene(torch.tensor([[[2024.0, 6.0, 10.0]]]), None)),
        ),
        1,
    ):
        ask()
        ask()
        assert files(tmp_path) == count
    with torch.autocast("cpu", torch.bfloat16):
        features.maps(raw, None)
    assert files(tmp_path) == 5
    monkeypatch.setattr(kept, "__version__", "another")
    features.maps(raw, None)
    assert files(tmp_path) == 6


def test_an_adapter_that_learns_gets_names_of_its_own_again(tmp_path: Path) -> None:
    """A name from before a change would bring back what the backbone no longer gives."""
    net = resting(model())
    features, raw = keep(net, tmp_path), chips(net, 1)
    before = features.maps(raw, None)
    with torch.no_grad():
        for name, parameter in net.backbone.named_parameters():
            if ".lora_B." in name:
                parameter.normal_()
    after = features.maps(raw, None)
    assert not torch.allclose(before[-1], after[-1])
    assert torch.allclose(after[-1], net.encode(raw)[0][-1], rtol=1e-2, atol=1e-3)


def test_lora_that_has_not_learned_shares_its_features_whatever_it_began_with(tmp_path: Path) -> None:
    """The first factors are random, but nothing comes of them yet."""
    one = model(seed=0)
    other = model(seed=0)
    with torch.no_grad():
        for name, parameter in other.backbone.named_parameters():
            if ".lora_A." in name:
                parameter.normal_()
    raw = chips(one)
    for net in (one, other):
        net.backbone.requires_grad_(False)
    base = kept.digest(one.backbone.state_dict())
    for net in (one, other):
        features = keep(net, tmp_path)
        # As where both stand on published weights.
        features._base = base
        features.maps(raw, None)
    assert files(tmp_path) == 3


def test_values_that_half_precision_does_not_hold_stay_as_they_are(tmp_path: Path, monkeypatch: Any) -> None:
    net = resting(model())
    raw = chips(net, 1)
    for factor, bits in ((1e6, torch.float32), (1.0, torch.float16), (1e-7, torch.float32)):
        maps = [torch.randn(1, 8, 3, 5) * factor]
        monkeypatch.setattr(SegmentationModel, "encode", lambda *_, maps=maps: (maps, None))
        features = keep(net, tmp_path / str(factor))
        found = [features.maps(raw, None)[0] for _ in range(2)]
        exact = maps[0].to(bits).float()
        assert all(torch.equal(one, exact) for one in found)


def test_a_damaged_file_is_made_anew(tmp_path: Path, computed: list[int]) -> None:
    net = resting(model())
    features, raw = keep(net, tmp_path), chips(net, 1)
    first = features.maps(raw, None)
    (path,) = tmp_path.glob("*.features")
    path.write_bytes(path.read_bytes()[:-200])
    again = features.maps(raw, None)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert len(computed) == 2 and files(tmp_path) == 1


def test_a_folder_that_cannot_be_written_changes_nothing_but_the_time(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    net, reporter = resting(model()), Reporter()
    raw = chips(net)
    features = kept_features(net, reporter, tmp_path / "file")
    assert features is not None and len(reporter.messages) == 1
    for one, other in zip(features.maps(raw, None), keep(net, tmp_path / "f").maps(raw, None), strict=True):
        assert torch.equal(one, other)


def test_chips_come_from_few_windows_as_long_as_features_are_kept(tmp_path: Path) -> None:
    assert keep(model(adapter="frozen"), tmp_path).few(800, 0.3) == kept.Few(200, None)
    assert keep(model(), tmp_path).few(800, 0.3) == kept.Few(60, 240)
    assert keep(model(last_blocks=1), tmp_path).few(800, 0.3) == kept.Few(200, None)
