"""Adapters that change weights: what each makes of a layer, and which layers it takes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from geopeft.errors import JobError, PackageError
from geopeft.models import build
from geopeft.models.adapters import ADAPTERS
from geopeft.models.adapters.adapter import Adapter
from geopeft.models.adapters.reparametrized import AdaptedLayer, plain_state
from geopeft.models.backbones import BACKBONES
from geopeft.models.backbones.backbone import Backbone
from geopeft.models.registry import load_builder
from geopeft.models.spec import ModelSpec
from torch import Tensor, nn
from torch.nn import functional as F

from tests.engine.models.test_lora import SPEC, make

CHANGING = ("lora", "rslora", "dora", "pissa", "ia3", "mode", "mpo", "ssl", "ssb")
Q = "encoder.blocks.0.attn.q"


def adapter_of(name: str) -> Adapter:
    adapter: Adapter = load_builder(ADAPTERS[name].builder)()
    return adapter


def adapted(name: str, backbone: str = "galileo_nano", **fields: Any) -> tuple[Backbone, Adapter, ModelSpec]:
    spec = SPEC.model_copy(update={"adapter": name, **fields})
    made, adapter = make(backbone), adapter_of(name)
    adapter.apply(made, spec)
    return made, adapter, spec


def shaken(backbone: Backbone) -> Backbone:
    with torch.no_grad():
        for parameter in backbone.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return backbone


def changed(backbone: Backbone, name: str) -> tuple[Tensor, Any]:
    """The published weight of a layer, and what stands in the layer's place."""
    layer = backbone.get_submodule(name)
    assert isinstance(layer, AdaptedLayer)
    return layer.base_layer.weight.detach(), layer


@pytest.mark.parametrize("backbone", ["galileo_nano", "tf_efficientnet_lite0"])
@pytest.mark.parametrize("name", [*CHANGING, "bitfit"])
def test_a_new_adapter_changes_nothing(name: str, backbone: str) -> None:
    made = adapted(name, backbone)[0]
    x = torch.rand(1, len(BACKBONES[backbone].bands), 32, 32)
    with torch.no_grad():
        for a, b in zip(make(backbone)(x), made(x), strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", CHANGING)
def test_the_published_weights_stay_while_training(name: str) -> None:
    made = adapted(name)[0]
    shaken(made)
    wanted = make("galileo_nano").state_dict()
    found = plain_state(made)
    assert found.keys() == wanted.keys() and all(torch.equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize("name", CHANGING)
def test_a_layer_computes_what_its_new_weight_says(name: str) -> None:
    for backbone in ("galileo_nano", "tf_efficientnet_lite0"):
        made = shaken(adapted(name, backbone)[0])
        layers = [module for module in made.modules() if isinstance(module, AdaptedLayer)]
        for layer in (layers[0], layers[-1]):
            weight, bias = layer.weight.detach(), layer.bias
            if isinstance(layer.base_layer, nn.Linear):
                x = torch.randn(2, 3, weight.shape[1])
                wanted = F.linear(x, weight, bias)
            else:
                x = torch.randn(2, weight.shape[1], 5, 4)
                wanted = F.conv2d(x, weight, bias, layer.base_layer.stride)
            torch.testing.assert_close(layer(x), wanted, atol=1e-4, rtol=1e-4)


def test_alpha_over_the_rank_or_its_root_is_the_strength() -> None:
    for name, wanted in (("lora", 2.0), ("rslora", 4.0)):
        weight, layer = changed(shaken(adapted(name, alpha=8.0)[0]), Q)
        product = layer.update.lora_B["weight"] @ layer.update.lora_A["weight"]
        torch.testing.assert_close(layer.weight - weight, wanted * product, atol=1e-6, rtol=1e-4)


def test_dora_has_the_length_that_is_trained_in_the_direction_of_lora() -> None:
    weight, layer = changed(shaken(adapted("dora")[0]), Q)
    update = layer.update
    turned = weight + update.lora_B["weight"] @ update.lora_A["weight"]
    torch.testing.assert_close(layer.weight.norm(dim=1), update.magnitude.abs())
    along = F.cosine_similarity(layer.weight, turned, dim=1) * update.magnitude.sign()
    torch.testing.assert_close(along, torch.ones_like(along))


def test_pissa_trains_the_principal_part_of_the_weight() -> None:
    weight, layer = changed(adapted("pissa")[0], Q)
    u, s, v = torch.linalg.svd(weight)
    principal = (u[:, :4] * s[:4]) @ v[:4]
    product = layer.update.lora_B["weight"] @ layer.update.lora_A["weight"]
    assert product.norm() > 0.98 * principal.norm() and torch.linalg.matrix_rank(product) == 4
    with torch.no_grad():
        layer.update.lora_B["weight"].zero_()
    torch.testing.assert_close(layer.weight, weight - product, atol=1e-5, rtol=1e-4)


def test_a_pissa_package_opens_without_a_decomposition(monkeypatch: pytest.MonkeyPatch) -> None:
    made, adapter, spec = adapted("pissa")
    state, x = adapter.state(shaken(made)), torch.rand(1, 10, 16, 16)
    monkeypatch.setattr(torch, "svd_lowrank", None)
    merged = make("galileo_nano")
    adapter.merge(merged, state, spec)
    with torch.no_grad():
        for a, b in zip(merged(x), made(x), strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_ia3_scales_queries_values_and_hidden_activations() -> None:
    made = shaken(adapted("ia3")[0])
    names = {name.removeprefix("encoder.blocks.0.") for name, m in made.named_modules() if isinstance(m, AdaptedLayer)}
    assert {name for name in names if "encoder" not in name} == {"attn.q", "attn.v", "mlp.fc2"}
    weight, layer = changed(made, Q)
    rows = 1 + layer.update.rows
    torch.testing.assert_close(layer.weight, rows[:, None] * weight)
    torch.testing.assert_close(layer.bias, rows * layer.base_layer.bias)
    weight, layer = changed(made, "encoder.blocks.0.mlp.fc2")
    torch.testing.assert_close(layer.weight, weight * (1 + layer.update.columns))
    assert layer.bias is layer.base_layer.bias


def test_ssl_scales_inputs_and_ssb_outputs_too_and_neither_the_bias() -> None:
    for name, both in (("ssl", False), ("ssb", True)):
        weight, layer = changed(shaken(adapted(name)[0]), Q)
        wanted = weight * (1 + layer.update.columns)
        if both:
            wanted = wanted * (1 + layer.update.rows)[:, None]
        torch.testing.assert_close(layer.weight, wanted)
        assert layer.bias is layer.base_layer.bias


def test_mode_cuts_all_layers_into_slices_of_one_decomposition() -> None:
    made: Any = shaken(adapted("mode")[0])
    ((name, shared),) = made.shared_update.named_children()
    # q and v are one slice each, fc1 and fc2 four, in each of four blocks.
    assert name == "128x128" and len(shared.places) == 4 * (1 + 1 + 4 + 4)

    def piece(number: int) -> Tensor:
        return torch.einsum("r,ar,rb->ab", shared.weights * shared.places[number], shared.left, shared.right)

    wide, tall = "encoder.blocks.0.mlp.fc2", "encoder.blocks.0.mlp.fc1"
    for layer_name, first, side in ((tall, 2, 0), (wide, 6, 1)):
        weight, layer = changed(made, layer_name)
        wanted = torch.cat([piece(first + i) for i in range(4)], side)
        torch.testing.assert_close(layer.weight - weight, wanted, atol=1e-4, rtol=1e-3)


def test_mpo_layers_share_their_central_tensor() -> None:
    backbone, adapter, _ = adapted("mpo")
    made: Any = shaken(backbone)
    assert sum(key.endswith("centre") for key in adapter.state(made)) == 1
    weight, layer = changed(made, Q)
    first, last, centre = layer.update.first, layer.update.last, made.shared_update.centre
    # One element written out: row (a, b, c) and column (d, e, f) of the three factors.
    row, col = (3, 5, 0), (1, 7, 1)
    at = [(place[0] * centre.shape[side] + place[1]) * last.shape[side] + place[2] for side, place in
          ((1, row), (2, col))]  # fmt: skip
    wanted = first[row[0], col[0]] @ centre[:, row[1], col[1]] @ last[:, row[2], col[2]]
    torch.testing.assert_close((layer.weight - weight)[at[0], at[1]], wanted)


def test_bitfit_trains_biases_and_normalisations() -> None:
    made, adapter, _ = adapted("bitfit")
    trained = {name.removeprefix("encoder.blocks.0.") for name in adapter.state(made) if "blocks.0." in name}
    layers = ("attn.q", "attn.k", "attn.v", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert trained == {f"{layer}.bias" for layer in layers} | {
        f"norm{i}.{p}" for i in (1, 2) for p in ("weight", "bias")
    }


@pytest.mark.parametrize("name", [*CHANGING, "bitfit"])
def test_targets_and_last_blocks_say_what_is_trained(name: str) -> None:
    made, _, _ = adapted(name, targets=("k", "proj"), last_blocks=2)
    trained = {n for n, p in made.named_parameters() if p.requires_grad and not n.startswith("shared_update")}
    layers = {".".join(n.split(".")[:5]) for n in trained} if trained else {
        n for n, m in made.named_modules() if isinstance(m, AdaptedLayer)}  # fmt: skip
    assert layers == {f"encoder.blocks.{i}.attn.{part}" for i in (2, 3) for part in ("k", "proj")}


def test_the_last_blocks_of_a_cnn_are_its_last_residual_blocks() -> None:
    made = adapted("lora", "tf_efficientnet_lite0", last_blocks=1)[0]
    names = [n for n, m in made.named_modules() if isinstance(m, AdaptedLayer)]
    assert names and len({name.rpartition(".")[0] for name in names}) == 1


def test_an_unknown_target_is_refused_with_those_there_are() -> None:
    with pytest.raises(JobError) as error:
        adapted("lora", targets=("q", "fc3"))
    assert error.value.code == "NAME_UNKNOWN" and "fc3" in error.value.message
    assert all(name in error.value.hint for name in ("fc1", "proj", "k"))


def test_a_package_of_other_settings_is_refused() -> None:
    made, adapter, spec = adapted("lora", last_blocks=2)
    with pytest.raises(PackageError):
        adapter.merge(make("galileo_nano"), adapter.state(made), spec.model_copy(update={"last_blocks": 3}))


def test_old_packages_open_with_the_usual_settings() -> None:
    fields = SPEC.model_dump(exclude={"alpha", "targets", "last_blocks"})
    spec = ModelSpec.model_validate(fields)
    assert (spec.alpha, spec.targets, spec.last_blocks) == (None, (), 0) and spec.tuning == "lora of rank 4"
    other = spec.model_copy(update={"alpha": 2.0, "targets": ("q",), "last_blocks": 3})
    assert other.tuning == "lora of rank 4, alpha 2, on q, in the last 3 blocks"


def test_a_network_without_pretrained_weights_is_trained_whole_only() -> None:
    spec = SPEC.model_copy(update={"backbone": "scratch_unet", "adapter": "dora"})
    with pytest.raises(JobError) as error:
        build(spec, pretrained=False)
    assert error.value.code == "ADAPTER_UNSUITABLE" and "full" in error.value.hint


def test_a_copy_of_an_adapted_network_shares_nothing_with_it() -> None:
    made = adapted("mode")[0]
    twin = copy.deepcopy(made)
    shaken(twin)
    for a, b in zip(make("galileo_nano").state_dict().items(), plain_state(made).items(), strict=True):
        assert a[0] == b[0] and torch.equal(a[1], b[1])
    assert not torch.equal(changed(twin, Q)[1].weight, changed(made, Q)[1].weight)
