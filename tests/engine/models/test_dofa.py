"""DOFA v1: the authors' network on the bands of any sensor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import reference
import torch
from geopeft.errors import BandError, WeightsError
from geopeft.models.backbones import BACKBONES
from geopeft.models.backbones.dofa import DofaBackbone
from geopeft.models.backbones.dynamic_embed import KernelGenerator
from geopeft.models.segmentation import build_backbone
from torch import Tensor
from torch.nn import functional as F

CASES = ("rgb_112", "s1_112", "s2_12band_112", "s2_12band_64_interp", "s2_12band_rect_48x96_interp")
FOUR_UM = (0.49, 0.56, 0.665, 0.842)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


def network(folder: Path, state: dict[str, Tensor] | None = None) -> DofaBackbone:
    kwargs = reference.config(folder)["kwargs"]
    dim, patch_px = kwargs["embed_dim"], kwargs["patch_size"]
    made = DofaBackbone("dofa", patch_px, dim, kwargs["depth"], kwargs["num_heads"], kwargs["img_size"] // patch_px)
    made.load_weights(reference.weights(folder) if state is None else state)
    made.set_wavelengths(FOUR_UM)
    return made.eval()


@pytest.mark.parametrize("case", CASES)
def test_it_gives_what_the_reference_gives(
    shared: Path, case: str, record_property: Callable[[str, object], None]
) -> None:
    folder = shared / "fixtures" / "dofa_v1"
    assert reference.cases(folder) == list(CASES)
    made, given, state = network(folder), reference.inputs(folder, case), reference.weights(folder)
    made.set_wavelengths(given["wavelengths"].tolist())
    with torch.no_grad():
        ours = {"patch_embed": made.patches(given["image"])}
        tokens = made.embed(given["image"], 10.0, None)
        for i in range(len(made.blocks)):
            tokens = ours[f"block{i + 1}"] = made.run_block(i, tokens)
        mean = made.finish(tokens)[:, 1:].mean(1)
        # The classifier's normalisation, which is not in all published files and in no map.
        norm = state["fc_norm.weight"], state["fc_norm.bias"]
        ours["pooled_fc_norm"] = F.layer_norm(mean, (made.dim,), *norm, eps=1e-6)
    difference = reference.largest_difference(ours, reference.expected(folder, case))
    record_property("difference", difference)
    assert difference < reference.TOLERANCE


def test_the_classifiers_parts_may_be_missing(shared: Path) -> None:
    folder = shared / "fixtures" / "dofa_v1"
    state = {k: v for k, v in reference.weights(folder).items() if not k.startswith(("fc_norm", "head"))}
    wanted, own = network(folder).state_dict(), network(folder, state).state_dict()
    assert all(torch.equal(own[key], value) for key, value in wanted.items())


def test_half_a_checkpoint_and_another_networks_are_refused(shared: Path) -> None:
    folder = shared / "fixtures" / "dofa_v1"
    state = reference.weights(folder)
    half = {key: value for key, value in state.items() if not key.startswith("patch_embed.fclayer")}
    for wrong in (half, reference.weights(shared / "fixtures" / "copernicus_fm"), {}):
        with pytest.raises(WeightsError) as caught:
            network(folder, wrong)
        assert caught.value.code == "WEIGHTS_KEYS"


def test_bands_in_another_order_are_the_same_image_and_fewer_bands_another(shared: Path) -> None:
    made, x, order = network(shared / "fixtures" / "dofa_v1"), torch.randn(1, 4, 40, 24), [2, 0, 3, 1]
    with torch.no_grad():
        wanted = made(x)
        made.set_wavelengths([FOUR_UM[i] for i in order])
        shuffled = made(x[:, order])
        made.set_wavelengths(FOUR_UM[:2])
        fewer = made(x[:, :2])
    for own, other, less in zip(shuffled, wanted, fewer, strict=True):
        torch.testing.assert_close(own, other, atol=1e-5, rtol=1e-5)
        assert less.shape == other.shape and (less - other).abs().max() > 1e-4


def test_the_wavelengths_decide_over_the_kernels_and_training_reaches_what_makes_them(shared: Path) -> None:
    made, x = network(shared / "fixtures" / "dofa_v1"), torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        first = made.patches(x)
        made.set_wavelengths((0.49, 0.56, 0.665, 1.61))
        assert (made.patches(x) - first).abs().max() > 1e-5
    made(x)[-1].square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in made.generator.parameters())
    assert not made.pos_embed.requires_grad


def test_a_baked_kernel_is_the_same_without_what_makes_it(shared: Path) -> None:
    made, x = network(shared / "fixtures" / "dofa_v1"), torch.randn(1, 4, 32, 16)
    with torch.no_grad():
        wanted = made(x)
        made.bake()
        again = made(x)
    assert not any(name.startswith("generator") for name, _ in made.named_parameters())
    for own, other in zip(again, wanted, strict=True):
        torch.testing.assert_close(own, other, atol=1e-6, rtol=1e-6)


def test_half_precision_leaves_the_kernels_alone(shared: Path) -> None:
    """A wavelength of 0.665 um in bfloat16 is 0.664; in nanometres behind a sine it would be anything."""
    made, x = network(shared / "fixtures" / "dofa_v1"), torch.randn(1, 4, 16, 16)
    seen: list[torch.dtype] = []
    made.generator.register_forward_hook(lambda _module, _given, made: seen.append(made[0].dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        tokens = made.patches(x)
    assert tokens.dtype == torch.bfloat16 and seen == [torch.float32]


def test_a_generator_keeps_the_place_of_each_value() -> None:
    """Both orders in which published files hold a kernel's values."""
    for channels_last in (True, False):
        made = KernelGenerator(8, 3, 2, channels_last=channels_last, kernel_scale=1.0, bias_scale=1.0)
        with torch.no_grad():
            made.to_kernel.weight.zero_()
            made.to_kernel.bias.copy_(torch.arange(12.0))
            kernel, bias = made(torch.randn(5, 8))
        assert kernel.shape == (3, 5, 2, 2) and bias.shape == (3,)
        wanted = torch.tensor([1.0, 4, 7, 10]) if channels_last else torch.tensor([4.0, 5, 6, 7])
        torch.testing.assert_close(kernel[1, 4].flatten(), wanted)


def test_without_an_optical_band_it_is_refused() -> None:
    with pytest.raises(BandError) as caught:
        build_backbone(BACKBONES["dofa_v1_base"], ("a",), [])
    assert caught.value.code == "BANDS_MISSING"
