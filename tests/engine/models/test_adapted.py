"""Backbones that the pretrain job wrote: taken by their file, found again by their checksum."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from geopeft.errors import GeopeftError, JobError, WeightsError
from geopeft.events import Reporter
from geopeft.models import build
from geopeft.models.backbones import BACKBONES
from geopeft.models.backbones.adapted import FORMAT
from geopeft.models.choose import choose_backbone, named_card
from geopeft.models.segmentation import build_backbone
from geopeft.models.spec import InputBand, ModelSpec
from geopeft.models.weights import file_sha256
from safetensors import safe_open
from safetensors.torch import save_file

BANDS = (InputBand(name="red", wavelength_um=0.66), InputBand(name="nir", wavelength_um=0.85))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GEOPEFT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(5)
    network = build_backbone(BACKBONES["geopeft_small"], ("a",), (0.5,))
    note = {"format": FORMAT, "backbone": "geopeft_small", "licence": "Apache-2.0", "recipe": json.dumps({"seed": 5})}
    path = tmp_path / "mine.safetensors"
    save_file({k: v.half() if v.dim() > 1 else v for k, v in network.state_dict().items()}, path, note)
    return path


def spec(name: str) -> ModelSpec:
    return ModelSpec(
        backbone=name, adapter="lora", decoder="unet", bands=BANDS, num_classes=2, gsd_m=10, chip_size_px=64
    )


def test_a_file_is_taken_as_a_backbone_and_kept_in_the_cache(file: Path, home: Path) -> None:
    card, sentence = choose_backbone(str(file), (), 10, "", Reporter())
    assert card.any_optical and card.weights.sha256 == file_sha256(file) and "adapted" in sentence
    copies = list((home / "weights").iterdir())
    assert [file_sha256(copy) for copy in copies] == [card.weights.sha256]
    file.unlink()
    reporter = Reporter()
    model = build(spec(card.name), reporter=reporter)
    assert model.base_weights.sha256 == card.weights.sha256
    assert "geopeft_small with the weights of an adapted file" in reporter.messages[0]
    kernels = model.backbone.state_dict()["stem.kernels"]
    torch.manual_seed(5)
    wanted = build_backbone(BACKBONES["geopeft_small"], ("a",), (0.5,)).state_dict()["stem.kernels"]
    torch.testing.assert_close(kernels, wanted, atol=1e-3, rtol=1e-3)


def test_it_is_found_in_the_weights_folder_under_any_name(file: Path, home: Path, tmp_path: Path) -> None:
    name = named_card(str(file)).name
    shutil.rmtree(home)
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file({"x": torch.ones(1)}, folder / "a.safetensors")
    (folder / "b.safetensors").write_bytes(b"broken")
    with safe_open(file, "pt") as stream:
        note = stream.metadata()
    save_file({"x": torch.ones(1)}, folder / "c.safetensors", note)
    shutil.copy(file, folder / "renamed by a colleague.safetensors")
    assert build(spec(name), weights_dir=str(folder)).base_weights.how.startswith("the weights folder")


def test_where_it_is_missing_a_sentence_says_which(file: Path, home: Path, tmp_path: Path) -> None:
    name = named_card(str(file)).name
    shutil.rmtree(home)
    with pytest.raises(WeightsError, match=f"geopeft_small as it was adapted.*{name[-64:][:12]}") as caught:
        build(spec(name), weights_dir=str(tmp_path / "none"))
    assert caught.value.code == "WEIGHTS_MISSING" and "weights folder" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"\x08\0\0\0\0\0\0\0{}      ", b"\xff" * 64, b"PK\x03\x04 not at all"])
def test_a_file_that_is_no_adapted_backbone_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="no adapted backbone") as caught:
        named_card(str(path))
    assert "pretrain" in caught.value.hint


def test_a_file_that_is_not_there_and_a_name_that_nobody_knows(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="There is no file"):
        named_card(str(tmp_path / "none.safetensors"))
    with pytest.raises(JobError, match="There is no backbone"):
        named_card("nothing@" + "0" * 64)


def test_a_file_that_lacks_a_tensor_is_refused(file: Path, tmp_path: Path) -> None:
    note = {"format": FORMAT, "backbone": "resnet18", "licence": "", "recipe": "{}"}
    path = tmp_path / "part.safetensors"
    save_file({"net.conv1.weight": torch.ones(64, 3, 7, 7)}, path, note)
    card = named_card(str(path))
    bands = tuple(InputBand(name=role, common=role, backbone_band=role) for role in ("red", "green", "blue"))
    with pytest.raises(GeopeftError) as caught:
        build(spec(card.name).model_copy(update={"bands": bands}))
    assert caught.value.code == "WEIGHTS_KEYS"
