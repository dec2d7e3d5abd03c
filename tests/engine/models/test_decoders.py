"""What decoders promise: the same map in a window as in the whole, few parameters, prototypes that can be read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from geopeft.models.decoders import DECODERS
from geopeft.models.decoders.pyramid import Pyramid
from geopeft.models.decoders.rbf import THRESHOLD, RbfDecoder, thresholded
from geopeft.models.registry import load_builder
from geopeft.models.spec import InputBand, ModelSpec
from torch import Tensor, nn

PYRAMID = ((8, 12, 16, 24), (4, 8, 16, 32))
PLAIN = ((16,) * 4, (16,) * 4)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def made(decoder: str, maps: tuple[tuple[int, ...], tuple[int, ...]], size: str = "light") -> Any:
    channels, strides = maps
    return load_builder(DECODERS[decoder].builder)(channels, strides, 3, num_classes=4, size=size).eval()


def scene(maps: tuple[tuple[int, ...], tuple[int, ...]], rows: int, cols: int) -> tuple[list[Tensor], Tensor]:
    channels, strides = maps
    features = [torch.randn(1, d, -(-rows // s), -(-cols // s)) for d, s in zip(channels, strides, strict=True)]
    return features, torch.randn(1, 3, rows, cols)


@pytest.mark.parametrize("maps", [PYRAMID, PLAIN], ids=["pyramid", "plain"])
@pytest.mark.parametrize("decoder", DECODERS.names())
def test_a_window_gives_what_the_whole_raster_gives(
    decoder: str, maps: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    """Far from the edges of a window that begins at a cell of every map, whatever its size."""
    decode = made(decoder, maps)
    features, raw = scene(maps, 64, 640)
    left = 64
    with torch.no_grad():
        whole = decode(features, raw)
        for right in (640, 608):
            cut = [f[..., left // s : -(-right // s)] for f, s in zip(features, maps[1], strict=True)]
            window = decode(cut, raw[..., left:right])
            far = slice(left + 224, right - 224)
            inside = window[..., far.start - left : far.stop - left]
            torch.testing.assert_close(inside, whole[..., far], atol=1e-5, rtol=1e-5)
    assert whole.std() > 1e-3


@pytest.mark.parametrize("decoder", DECODERS.names())
def test_every_map_that_a_decoder_uses_and_its_surroundings_reach_the_pixels(decoder: str) -> None:
    """Only near cells do, and of UPerNet's coarsest map those within its means."""
    decode = made(decoder, PYRAMID)
    features, raw = scene(PYRAMID, 512, 64)
    reaches = []
    for i in range(4):
        changed = [f.clone() for f in features]
        changed[i][:, 0, 0, 0] += 10
        with torch.no_grad():
            moved = (decode(changed, raw) - decode(features, raw)).abs().amax(1)[0] > 1e-6
        reaches.append(int(moved.any(1).nonzero().max()) if moved.any() else -1)
    assert max(reaches) < 300
    if decoder == "upernet":
        assert min(reaches) >= 0 and reaches[3] >= 3 * 32
    if decoder in ("linear", "fcn"):
        assert [reach >= 0 for reach in reaches] == [False, False, True, False]


@pytest.mark.parametrize("decoder", DECODERS.names())
def test_the_table_says_how_many_parameters_a_decoder_trains(decoder: str) -> None:
    row = DECODERS[decoder]
    for size in ("light", "study"):
        built = load_builder(row.builder)((768,) * 4, (16,) * 4, 6, num_classes=5, size=size)
        assert sum(p.numel() for p in built.parameters()) == row.parameters[size]
    assert row.parameters["light"] < 1_000_000


def test_the_studys_sizes_are_those_of_the_paper() -> None:
    fcn, upernet, unet = (made(name, ((768,) * 4, (16,) * 4), "study") for name in ("fcn", "upernet", "unet"))
    assert [step[0][0].out_channels for step in fcn.steps] == [512] * 4
    assert {lateral[0].out_channels for lateral in upernet.laterals} == {256}
    assert [int(stride) for stride in unet.laterals] == [4, 8, 16, 32]
    assert [unet.laterals[stride].out_channels for stride in ("32", "16", "8", "4")] == [512, 256, 128, 64]


def test_a_package_without_a_decoder_size_is_a_light_one() -> None:
    spec = {"backbone": "scratch_unet", "adapter": "full", "decoder": "unet", "num_classes": 2, "gsd_m": 1.0,
            "chip_size_px": 64, "bands": [InputBand(name="a").model_dump()]}  # fmt: skip
    assert ModelSpec.model_validate(spec).decoder_size == "light"


@pytest.mark.parametrize(
    ("stride", "strides"),
    [(16, [4, 8, 16, 32]), (14, [4, 7, 14, 28]), (8, [4, 8, 16, 32]), (4, [4, 8, 16, 32]), (1, [1, 2, 4, 8])],
)
def test_a_plain_transformers_maps_become_a_pyramid_in_its_place(stride: int, strides: list[int]) -> None:
    pyramid = Pyramid([8, 8], [stride, stride])
    assert pyramid.strides == strides
    grid = [torch.rand(1, 8, -(-100 // stride), -(-90 // stride))] * 2
    with torch.no_grad():
        maps = pyramid(grid, 100, 90)
    assert [tuple(m.shape[2:]) for m in maps] == [(-(-100 // s), -(-90 // s)) for s in strides]
    assert [m.shape[1] for m in maps] == pyramid.out_channels


def test_a_pixel_is_like_a_prototype_where_it_lies() -> None:
    """The logit of a pixel at a prototype is its weight for the class; far from all there are the offsets alone."""
    decode = RbfDecoder((4,), (1,), 2, 3, dimensions=2, count=1)
    with torch.no_grad():
        decode.maps[0].weight.zero_()  # type: ignore[operator]
        decode.raw.weight.copy_(torch.eye(2)[:, :, None, None])
        decode.centres.copy_(torch.tensor([[0.0, 0.0], [50.0, 0.0], [0.0, 50.0]]))
        decode.weights.copy_(torch.eye(3) * (1 + THRESHOLD))
        decode.offsets.copy_(torch.tensor([0.1, 0.2, 0.3]))
        raw = torch.tensor([[0.0, 50.0, 0.0, 2.0, -40.0], [0.0, 0.0, 50.0, 0.0, -40.0]])[None, :, None]
        logits = decode.eval()([torch.zeros(1, 4, 1, 5)], raw)[0, :, 0].T
    wanted = torch.tensor([0.1, 0.2, 0.3]).repeat(5, 1)
    wanted[:3] += torch.eye(3)
    wanted[3, 0] += np.exp(-(2.0**2) / (2 * 2))
    torch.testing.assert_close(logits, wanted)


def test_prototypes_without_a_say_are_pruned_and_the_map_stays() -> None:
    decode = made("rbf", PYRAMID)
    with torch.no_grad():
        decode.weights[5:] *= 0.4 * THRESHOLD
    kept = decode.prototypes()
    assert len(kept) == 5 and all(proto.weights.abs().sum() > 0 for proto in kept)
    features, raw = scene(PYRAMID, 40, 40)
    fewer = RbfDecoder(*PYRAMID, 3, 4, dimensions=16, count=8).eval()
    state = dict(decode.state_dict())
    state["centres"][5:] = 7.0
    fewer.load_state_dict(state)
    with torch.no_grad():
        assert (fewer(features, raw) - decode(features, raw)).abs().max() <= 1e-6


def test_the_penalty_takes_out_what_labels_do_not_hold() -> None:
    """Prototypes that no pixel is like have no gradient of the labels: in training their weights shrink to nothing."""
    decode = made("rbf", PYRAMID).train()
    with torch.no_grad():
        decode.centres[:4] += 1000
    features, raw = scene(PYRAMID, 16, 16)
    truth = torch.randint(0, 4, (1, 16, 16))
    before = float(nn.functional.cross_entropy(decode(features, raw), truth))
    optimiser = torch.optim.Adam(decode.parameters(), lr=0.02)
    for _ in range(90):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(decode(features, raw), truth)
        loss.backward()
        optimiser.step()
    norms = thresholded(decode.weights.detach()).norm(dim=1)
    assert float(norms[:4].max()) == 0 and float(norms[4:].max()) > 1
    assert float(loss.detach()) < before


class Alone(nn.Module):
    """A decoder whose maps are inputs of their own, as ONNX wants them."""

    def __init__(self, decode: nn.Module) -> None:
        super().__init__()
        self.decode = decode

    def forward(self, raw: Tensor, *features: Tensor) -> Any:
        return self.decode(list(features), raw)


@pytest.mark.parametrize(
    ("decoder", "maps"), [pytest.param("fcn", PYRAMID, marks=pytest.mark.slow), ("upernet", PLAIN), ("rbf", PYRAMID)]
)
def test_an_exported_decoder_is_the_decoder(
    tmp_path: Path, decoder: str, maps: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    features, raw = scene(maps, 45, 70)
    model = Alone(made(decoder, maps)).eval()
    program = torch.onnx.export(model, (raw, *features), dynamo=True, verbose=False)
    assert program is not None
    program.save(str(tmp_path / "decoder.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "decoder.onnx"), providers=["CPUExecutionProvider"])
    feeds = {node.name: x.numpy() for node, x in zip(session.get_inputs(), (raw, *features), strict=True)}
    with torch.no_grad():
        wanted = model(raw, *features).numpy()
    assert wanted.std() > 1e-2
    np.testing.assert_allclose(session.run(None, feeds)[0], wanted, atol=1e-4, rtol=1e-4)
