"""The report tells what helps, and nothing about the person."""

import getpass
from pathlib import Path

import pytest


@pytest.fixture
def here(qgis_app, monkeypatch, tmp_path):
    home = tmp_path / "home" / "maria"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(getpass, "getuser", lambda: "maria")
    return home


def test_home_name_and_passwords_are_taken_out(here):
    from geopeft_qgis import diagnostics

    text = diagnostics.redacted(f"{here}/data, {here}x, Maria's user maria, marianne, https://maria:pw@proxy.example/x")
    assert text == f"~/data, {here.parent}/mariax, Maria's user USER, marianne, https://***@proxy.example/x"


def test_short_names_do_not_cut_words(here, monkeypatch):
    from geopeft_qgis import diagnostics

    monkeypatch.setattr(getpass, "getuser", lambda: "pi")
    assert diagnostics.redacted("pip installs pi") == "pip installs pi"


def test_report_without_an_engine_tells_state_settings_and_last_error(here, monkeypatch):
    from geopeft_qgis import diagnostics, engine_state, settings

    monkeypatch.delenv("GEOPEFT_ENGINE_PYTHON", raising=False)
    monkeypatch.setenv("GEOPEFT_HOME", str(here / "engine home"))
    monkeypatch.setenv("PATH_TO_MY_SECRET", "x")
    monkeypatch.setenv("UV_PUBLISH_TOKEN", "token-123")
    settings.put("package_index", "https://maria:pw@packages.example/all")
    engine_state.forget()
    diagnostics.note_error(f"The raster {here}/scene.tif cannot be read.")
    try:
        text = diagnostics.report(diagnostics.in_main_thread())
    finally:
        settings.put("package_index", "")
        diagnostics.note_error("")
    lines = dict(line.split(": ", 1) for line in text.splitlines() if ": " in line)
    assert lines["GeoPEFT"] == settings.version() and lines["QGIS"].startswith("3.")
    assert lines["Engine"].startswith("missing. The engine is not set up yet.")
    assert lines["Last error"] == "The raster ~/scene.tif cannot be read."
    assert "***@packages.example" in lines["Settings"]
    for secret in ("maria", "pw@", "token-123", "PATH_TO_MY_SECRET", str(Path.home())):
        assert secret not in text


def test_the_end_of_the_newest_log_is_in_it(here, monkeypatch, tmp_path):
    from qgis.core import QgsProcessingUtils

    from geopeft_qgis import diagnostics

    monkeypatch.setattr(QgsProcessingUtils, "tempFolder", lambda: str(tmp_path))
    assert diagnostics._last_log() == ""
    (tmp_path / "geopeft-1").mkdir()
    (tmp_path / "geopeft-1" / "engine.log").write_text("x" * 9000 + "\nSegmentation fault")
    assert diagnostics._last_log().endswith("Segmentation fault") and len(diagnostics._last_log()) < 4100
