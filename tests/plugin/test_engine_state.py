"""Which Python jobs run with, and when it is refused."""

import json
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import fake_uv


@pytest.fixture
def own(qgis_app, tmp_path, monkeypatch):
    """A Python of the user's own, that tells what GEOPEFT_FAKE_PROBE says."""
    from geopeft_qgis import engine_state, settings

    python = fake_uv.lay_python(tmp_path / "env" / "bin" / "python")
    (tmp_path / "env" / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
    monkeypatch.setenv("GEOPEFT_FAKE_CALLS", str(tmp_path))
    monkeypatch.delenv("GEOPEFT_ENGINE_PYTHON", raising=False)
    engine_state.forget()
    settings.put("engine_python", str(python))
    yield python
    settings.put("engine_python", "")
    engine_state.forget()


def tells(monkeypatch, **changes):
    from geopeft_qgis import settings

    monkeypatch.setenv("GEOPEFT_FAKE_PROBE", json.dumps({"engine": settings.version(), **changes}))


def test_an_own_python_is_started_once_and_then_remembered(own, tmp_path, monkeypatch):
    from geopeft_qgis import engine_state, settings

    tells(monkeypatch)
    assert settings.engine_python() == own
    for _ in range(3):
        assert settings.engine_command()[0] == str(own)
    assert len(fake_uv.calls(tmp_path)) == 1
    engine_state._verdicts.clear()  # as after a restart of QGIS
    settings.engine_command()
    assert len(fake_uv.calls(tmp_path)) == 1


def test_an_own_python_is_looked_at_again_when_its_packages_change(own, tmp_path, monkeypatch):
    from geopeft_qgis import settings

    tells(monkeypatch, missing=["timm>=1.0.29"])
    with pytest.raises(settings.EngineMissing, match=r"lacks timm>=1\.0\.29\. Install them there, or let GeoPEFT"):
        settings.engine_command()
    tells(monkeypatch)
    os.utime(tmp_path / "env" / "lib" / "python3.11" / "site-packages", (1, 1))
    assert settings.engine_command()[0] == str(own)


@pytest.mark.parametrize("changes", [{"engine": "0.0.1"}, {"protocol": 99}])
def test_an_engine_of_another_version_is_refused(own, monkeypatch, changes):
    from geopeft_qgis import engine_state, settings

    tells(monkeypatch, **changes)
    with pytest.raises(settings.EngineMissing, match=r"has version .* and this plugin needs .* Update it"):
        settings.engine_command()
    assert engine_state.state().kind == engine_state.OWN_REFUSED and settings.engine_python() is None


def test_a_python_that_cannot_start_the_engine_is_refused(own, monkeypatch):
    from geopeft_qgis import settings

    own.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'pydantic'\" >&2; exit 1\n")
    with pytest.raises(settings.EngineMissing, match="lacks pydantic"):
        settings.engine_command()
    own.write_text("#!/bin/sh\necho hello\n")
    os.utime(own, (2, 2))
    with pytest.raises(settings.EngineMissing, match=r"does not start \(hello\)"):
        settings.engine_command()


def test_an_own_python_that_is_gone_is_named(own):
    from geopeft_qgis import settings

    own.unlink()
    with pytest.raises(settings.EngineMissing, match="There is no Python at"):
        settings.engine_command()


def test_many_missing_packages_are_counted(qgis_app):
    from geopeft_qgis import engine_state

    assert engine_state._few(list("abcdef")) == "a, b, c, d and 2 more"
