"""Pretrained weights: where they are looked for, and that only the published file is taken."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from geopeft.errors import WeightsError
from geopeft.models import weights
from geopeft.models.backbones import BACKBONES
from geopeft.models.registry import BackboneCard, WeightsSource
from safetensors.torch import save_file


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("GEOPEFT_HOME", str(tmp_path / "home"))
    yield tmp_path / "home"


def card_for(content: bytes | None, file: str = "encoder.pt", **source: Any) -> BackboneCard:
    sha256 = hashlib.sha256(content).hexdigest() if content is not None else ""
    return dataclasses.replace(
        BACKBONES["galileo_nano"], name="net", weights=WeightsSource(file=file, sha256=sha256, **source)
    )


def put(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_the_users_folder_comes_before_the_cache(tmp_path: Path, home: Path) -> None:
    card = card_for(b"published")
    cached = put(home / "weights" / "net" / "encoder.pt", b"published")
    found = weights.locate(card, str(tmp_path / "mine"))
    assert found is not None and found.path == cached
    own = put(tmp_path / "mine" / "net" / "encoder.pt", b"published")
    found = weights.locate(card, str(tmp_path / "mine"))
    assert found is not None and found.path == own and "weights folder" in found.how


def test_a_file_of_another_backbone_is_passed_over(tmp_path: Path) -> None:
    card = card_for(b"published")
    put(tmp_path / "net" / "encoder.pt", b"something else")
    right = put(tmp_path / "encoder.pt", b"published")
    found = weights.locate(card, str(tmp_path))
    assert found is not None and found.path == right


def test_without_a_checksum_a_file_must_carry_the_backbones_name(tmp_path: Path) -> None:
    card = card_for(None)
    put(tmp_path / "encoder.pt", b"of whom?")
    assert weights.locate(card, str(tmp_path)) is None
    named = put(tmp_path / "net" / "encoder.pt", b"mine")
    found = weights.locate(card, str(tmp_path))
    assert found is not None and found.path == named


def test_a_file_that_is_not_the_published_one_is_named(tmp_path: Path) -> None:
    wrong = put(tmp_path / "net" / "encoder.pt", b"flipped")
    with pytest.raises(WeightsError) as error:
        weights.fetch(card_for(b"published", repo="a/b", revision="1", path="x"), str(tmp_path))
    assert error.value.code == "WEIGHTS_CHECKSUM" and str(wrong) in error.value.message


@pytest.mark.parametrize("source", [{}, {"repo": "a/b", "path": "x"}, {"repo": "a/b", "path": "x", "revision": "1"}])
def test_nothing_is_downloaded_without_checksum_and_revision(source: dict[str, str]) -> None:
    with pytest.raises(WeightsError) as error:
        weights.fetch(card_for(None, **source))
    assert error.value.code == "WEIGHTS_MISSING" and "net/encoder.pt" in error.value.hint


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="cannot be read"):
        weights.file_sha256(tmp_path)


@pytest.mark.fault("D11")
def test_a_file_that_changes_is_hashed_again(tmp_path: Path) -> None:
    path = put(tmp_path / "f", b"one")
    first = weights.file_sha256(path)
    put(path, b"another")
    assert weights.file_sha256(path) != first


@pytest.mark.fault("D10")
def test_the_packaged_weights_are_found_and_are_the_published_ones() -> None:
    card = BACKBONES["tf_efficientnet_lite0"]
    found = weights.locate(card)
    assert found is not None and "package" in found.how
    assert len(weights.load_state(found.path, card)) == 296


@pytest.mark.fault("S06", "M09")
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (eval, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    path = tmp_path / "net.pt"
    torch.save({"a": Evil()}, path)
    with pytest.raises(WeightsError) as error:
        weights.load_state(path, card_for(None))
    assert error.value.code == "WEIGHTS_BROKEN" and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_truncated_file_is_refused(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"net{suffix}"
    tensors = {"a": torch.arange(1000.0)}
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    assert torch.equal(weights.load_state(path, card_for(None))["a"], tensors["a"])
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError) as error:
        weights.load_state(path, card_for(None))
    assert error.value.code == "WEIGHTS_BROKEN"


def test_the_published_file_is_checked_when_it_is_read(tmp_path: Path) -> None:
    path = put(tmp_path / "net.pt", b"other")
    with pytest.raises(WeightsError) as error:
        weights.load_state(path, card_for(b"published"))
    assert error.value.code == "WEIGHTS_CHECKSUM"


@pytest.mark.fault("D11")
def test_a_file_of_the_cache_that_changed_is_fetched_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    card = card_for(b"published", repo="org/net", revision="abc", path="encoder.pt")
    target = put(home / "weights" / "net" / "encoder.pt", b"publishet")
    fetched: list[Path] = []
    monkeypatch.setattr("geopeft.models.download.download", lambda source, path, reporter: fetched.append(path))
    weights.fetch(card)
    assert fetched == [target]
