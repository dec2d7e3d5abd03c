"""A licence that limits the use of weights is asked for once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from geopeft.errors import JobError
from geopeft.models.backbones import BACKBONES
from geopeft.models.licences import is_accepted, require_licence
from geopeft.models.registry import BackboneCard


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GEOPEFT_HOME", str(tmp_path))
    return tmp_path


def under(licence: str) -> BackboneCard:
    return dataclasses.replace(BACKBONES["galileo_nano"], licence=licence)


@pytest.mark.parametrize("licence", ["MIT", "apache-2.0", "CC-BY-4.0", "", "unknown (see the authors' page)"])
def test_open_and_unknown_licences_are_not_asked_for(licence: str) -> None:
    require_licence(under(licence), accepts=False)


@pytest.mark.fault("M34", "D14")
def test_another_licence_is_asked_for_once_and_recorded(home: Path) -> None:
    card = under("CC-BY-NC-4.0")
    with pytest.raises(JobError) as error:
        require_licence(card, accepts=False)
    assert error.value.code == "LICENCE_NOT_ACCEPTED" and "CC-BY-NC-4.0" in error.value.message
    assert "https://huggingface.co/nasaharvest/galileo" in error.value.hint
    require_licence(card, accepts=True)
    require_licence(card, accepts=False)
    assert json.loads((home / "licences.json").read_text())["galileo_nano"]["licence"] == "CC-BY-NC-4.0"


def test_a_licence_that_changed_is_asked_for_again_and_a_broken_record_counts_for_nothing(home: Path) -> None:
    require_licence(under("CC-BY-NC-4.0"), accepts=True)
    assert is_accepted(under("CC-BY-NC-4.0")) and not is_accepted(under("CC-BY-NC-SA-4.0"))
    for text in ("[]", "{", '{"galileo_nano": 1}'):
        (home / "licences.json").write_text(text)
        assert not is_accepted(under("CC-BY-NC-4.0"))


def test_weights_of_ones_own_need_no_licence() -> None:
    assert not BACKBONES["scratch_unet"].restricted
    assert not dataclasses.replace(BACKBONES["scratch_unet"], licence="CC-BY-NC-4.0").restricted
