"""The setup panel in real QGIS, with a fake uv and a fake engine: no download, no torch."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from qgis.core import QgsApplication
from qgis.PyQt.QtCore import QCoreApplication, QEvent

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import fake_uv

ROOT = Path(__file__).resolve().parents[2]


def wait_until(condition, seconds=30):
    """Lets Qt work until something is so."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        QCoreApplication.processEvents()
        time.sleep(0.01)
    assert condition(), "this did not happen in time"


@pytest.fixture
def place(qgis_app, tmp_path, monkeypatch):
    """An engine of one package and a folder for its environment; the settings are as in a fresh profile."""
    from geopeft_qgis import engine_environment, engine_install, engine_state, settings

    for name in ("engine_python", "engine_folder", "kit_folder", "package_index", "device", "weights_folder"):
        settings.put(name, "")
    engine_state.forget()
    source = fake_uv.lay_source(tmp_path / "source")
    home = tmp_path / "Ein Ordner für den Rechner"
    fake_uv.lay_uv(home)
    monkeypatch.delenv("GEOPEFT_ENGINE_PYTHON", raising=False)
    monkeypatch.setenv("GEOPEFT_HOME", str(home))
    monkeypatch.setenv("GEOPEFT_FAKE_CALLS", str(tmp_path))
    monkeypatch.setenv("GEOPEFT_FAKE_PROBE", json.dumps({"engine": settings.version()}))
    for module in (engine_environment, engine_install):
        monkeypatch.setattr(module, "engine_source", lambda: source)
    monkeypatch.setattr(engine_install, "nvidia_card", lambda: "")
    monkeypatch.setattr(engine_install, "base_python", lambda kit: (sys.executable, "3.11"))
    monkeypatch.setattr(engine_install, "expected_gb", lambda variant: (2.7, 0.0))
    yield home
    for name in ("engine_python", "engine_folder", "kit_folder", "package_index", "device", "weights_folder"):
        settings.put(name, "")
    engine_state.forget()


@pytest.fixture
def panel(place):
    from geopeft_qgis.gui.setup import SetupPanel

    panel = SetupPanel(manages=True)
    panel.heard = []
    panel.said.connect(lambda level, text: panel.heard.append((level, text)))
    wait_until(lambda: panel.setup.machine is not None)
    yield panel
    panel.end()
    panel.deleteLater()
    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)


def shown(panel):
    """Texts of what an analyst can press."""
    buttons = (panel.main_button, panel.cancel_button, panel.repair_button, panel.remove_button)
    return [button.text() for button in buttons if button.isVisibleTo(panel)]


def errors(panel):
    return [text for level, text in panel.heard if level == "error"]


def set_up(panel):
    panel.start()
    wait_until(lambda: not panel.busy and not panel.setup._looks)


def test_a_fresh_machine_is_told_what_will_happen_and_where(panel, place):
    assert shown(panel) == ["Set up the engine"]
    assert panel.what.text() == "PyTorch and what it needs, for the CPU: no NVIDIA GPU"
    assert panel.size_label.text().startswith("2.7 GB to download, 0.0 GB on disk (")
    assert panel.place.toolTip() == str(place)
    assert "QGIS and its Python stay as they are" in panel.text.text()


def test_one_press_sets_the_engine_up(panel, place):
    from geopeft_qgis import settings

    ready, percents = [], []
    panel.ready.connect(lambda: ready.append(True))
    panel.setup.progressed.connect(lambda progress: percents.append(progress.done))
    panel.start()
    assert panel.busy and shown(panel) == ["Cancel"] and panel.progress.isVisibleTo(panel)
    wait_until(lambda: bool(ready) and not panel.setup._looks)
    assert settings.engine_python() is not None and place in settings.engine_python().parents
    assert panel.title.text() == "The engine is ready" and shown(panel) == ["Repair", "Remove …"]
    assert ("success", "The engine is ready.") in panel.heard and not errors(panel)
    assert percents == sorted(percents) and percents[-1] == 1.0
    assert panel.setup.told["protocol"] == 1


def test_cancel_leaves_a_way_to_go_on(panel, monkeypatch):
    from geopeft_qgis import engine_steps

    monkeypatch.setattr(engine_steps, "LOOK_S", 0.1)
    monkeypatch.setenv("GEOPEFT_FAKE_UV", "slow")
    monkeypatch.delenv("UV_CACHE_DIR", raising=False)
    panel.start()
    wait_until(lambda: " GB" in panel.stage.text())
    assert panel.stage.text().startswith("Fetching and unpacking the packages, 0.0")
    start = time.monotonic()
    panel.cancel_button.click()
    wait_until(lambda: not panel.busy)
    assert time.monotonic() - start < 3
    assert shown(panel)[0] == "Resume" and panel.text.text() == "Stopped. What was downloaded so far is kept."
    assert not errors(panel)
    monkeypatch.delenv("GEOPEFT_FAKE_UV")
    panel.main_button.click()
    wait_until(lambda: panel.title.text() == "The engine is ready")


def test_a_failure_is_one_sentence_with_a_next_step(panel, monkeypatch):
    monkeypatch.setenv("GEOPEFT_FAKE_UV", "offline")
    set_up(panel)
    assert "Check the network and the proxy settings, then try again." in panel.problem.text()
    assert errors(panel) == [panel.problem.text()]
    assert shown(panel)[0] == "Resume" and panel.copy_link.isVisibleTo(panel)


def test_no_slot_waits_for_the_installation(panel, monkeypatch):
    """A hanging download leaves the window free."""
    monkeypatch.setenv("GEOPEFT_FAKE_UV", "hang")
    start = time.perf_counter()
    panel.start()
    assert time.perf_counter() - start < 0.1
    for _ in range(30):
        start = time.perf_counter()
        QCoreApplication.processEvents()
        assert time.perf_counter() - start < 0.1
        time.sleep(0.02)
    panel.cancel_button.click()
    wait_until(lambda: not panel.busy)


def test_closing_during_an_installation_leaves_no_process(panel, monkeypatch, tmp_path):
    monkeypatch.setenv("GEOPEFT_FAKE_UV", "hang")
    panel.start()
    wait_until(lambda: any("sync" in call["argv"] for call in fake_uv.calls(tmp_path)))
    start = time.monotonic()
    panel.end()
    assert time.monotonic() - start < 5 and not panel.busy
    needle = str(tmp_path / "Ein Ordner").encode()
    running = [path for path in Path("/proc").glob("[0-9]*/cmdline") if needle in read(path) and b"sync" in read(path)]
    assert not running


def read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""


def test_an_engine_of_another_version_is_refused_and_updated(panel, tmp_path):
    from geopeft_qgis import settings

    set_up(panel)
    (tmp_path / "source" / "requirements.lock").write_text("two==2.0\n", encoding="utf-8")
    panel.refresh()
    assert settings.engine_python() is None
    assert panel.title.text() == "The engine needs an update" and shown(panel) == ["Update the engine"]
    with pytest.raises(settings.EngineMissing, match="another version"):
        settings.engine_command()
    changing = []
    panel.setup.about_to_change.connect(lambda: changing.append(True))
    set_up(panel)
    assert panel.title.text() == "The engine is ready" and changing == [True]


def test_repair_makes_the_environment_anew(panel, place):
    from geopeft_qgis import settings

    set_up(panel)
    marker = settings.engine_python().parents[1] / "marker"
    marker.touch()
    panel.repair_button.click()
    wait_until(lambda: not panel.busy and not panel.setup._looks)
    assert settings.engine_python() is not None and not marker.exists()


def test_a_broken_environment_is_found_and_named(panel, place):
    from geopeft_qgis import settings

    set_up(panel)
    python = settings.engine_python()
    python.write_text("#!/bin/sh\necho 'Fatal Python error' >&2\nexit 1\n")
    panel.setup.check()
    wait_until(lambda: not panel.setup._looks)
    assert settings.engine_python() is None
    assert panel.title.text() == "The engine is damaged" and "Fatal Python error" in panel.problem.text()
    panel.main_button.click()
    wait_until(lambda: panel.title.text() == "The engine is ready")


@pytest.mark.fault("E16")
def test_a_damaged_file_ends_a_run_before_it_starts_and_one_press_repairs_it(panel, place, tmp_path):
    from qgis.core import QgsProcessingContext, QgsProcessingException, QgsProcessingFeedback

    from geopeft_qgis import engine_files, engine_state, settings
    from geopeft_qgis.algorithms.base import EngineAlgorithm

    set_up(panel)
    environment = settings.engine_python().parents[1]
    algorithm = EngineAlgorithm()
    algorithm._command, algorithm._folder = settings.engine_command(), tmp_path / "run"
    algorithm.choices = lambda parameters, context: {}
    (file,) = environment.rglob("one.py")
    file.write_bytes(b"1 + 2\n")
    before = len(fake_uv.calls(tmp_path))
    with pytest.raises(QgsProcessingException, match=r"was changed: .*one\.py\. Press Repair in the GeoPEFT panel\."):
        algorithm.processAlgorithm({}, QgsProcessingContext(), QgsProcessingFeedback())
    assert len(fake_uv.calls(tmp_path)) == before, "the engine was not started"
    assert engine_state.state().kind == engine_state.BROKEN
    panel.setup.changed.emit()
    assert panel.title.text() == "The engine is damaged" and str(file) in panel.problem.text()
    panel.main_button.click()
    wait_until(lambda: panel.title.text() == "The engine is ready")
    assert engine_files.differing(settings.engine_python().parents[1]) == []
    with pytest.raises(QgsProcessingException, match="exit code 0"):
        algorithm.processAlgorithm({}, QgsProcessingContext(), QgsProcessingFeedback())


def test_remove_asks_and_says_what_it_gave_back(panel, place):
    from geopeft_qgis import settings

    set_up(panel)
    asked = []
    panel.confirm = lambda question: bool(asked.append(question)) or len(asked) > 1
    panel.remove_button.click()
    wait_until(lambda: len(asked) == 1)
    assert settings.engine_python() is not None, "the first answer was no"
    panel.remove_button.click()
    wait_until(lambda: settings.engine_python() is None and not panel.busy)
    assert "GB are free again" in panel.heard[-1][1] and "0.0 GB back" in asked[0]
    assert panel.title.text() == "One step before the first map"


def test_an_own_python_is_looked_at_and_refused_in_one_sentence(panel, tmp_path, monkeypatch):
    from geopeft_qgis import settings

    own = fake_uv.lay_python(tmp_path / "my env" / "bin" / "python3")
    monkeypatch.setenv("GEOPEFT_FAKE_PROBE", json.dumps({"engine": settings.version(), "missing": ["torch>=2.14"]}))
    panel.setup.use_own(str(own))
    wait_until(lambda: not panel.setup._looks)
    assert panel.title.text() == "Your Python cannot be used"
    assert f"The Python at {own} lacks torch>=2.14." in panel.problem.text()
    assert [text for level, text in panel.heard if level == "warning"] == [panel.problem.text()]
    assert settings.engine_python() is None and shown(panel) == ["Use GeoPEFT's own engine"]
    panel.main_button.click()
    assert settings.get("engine_python") == "" and shown(panel) == ["Set up the engine"]


def test_a_folder_in_the_plugin_is_refused(panel, tmp_path):
    import geopeft_qgis
    from geopeft_qgis import engine_state

    inside = str(Path(geopeft_qgis.__file__).parent / "engine-here")
    assert "upgrade of the plugin" in engine_state.folder_problem(Path(inside))
    panel.take_folder(inside)
    assert "upgrade of the plugin" in panel.problem.text()
    assert engine_state.folder_problem(tmp_path / "new") == ""
    assert "cannot be written" in engine_state.folder_problem(Path("/proc/geopeft"))
    assert "whole path" in engine_state.folder_problem(Path("somewhere"))


def test_another_folder_is_used_from_then_on(panel, tmp_path):
    from geopeft_qgis import engine_state, settings

    other = tmp_path / "other disk"
    fake_uv.lay_uv(other)
    panel.take_folder(str(other))
    set_up(panel)
    assert engine_state.home() == other and other in settings.engine_python().parents


def test_a_folder_without_a_kit_is_told_and_not_used(panel, tmp_path):
    from geopeft_qgis import settings

    panel.take_kit(str(tmp_path))
    assert "no offline kit" in panel.problem.text() and settings.get("kit_folder") == "" and not panel.busy


def test_a_kit_is_installed_from_and_its_weights_are_used(panel, place, tmp_path):
    from geopeft_qgis import engine_install, engine_kit, settings

    kit = tmp_path / "Kit am Stick"
    fake_uv.lay_wheel(kit / "wheels")
    (kit / "weights" / "galileo").mkdir(parents=True)
    (kit / "weights" / "galileo" / "encoder.pt").write_bytes(b"weights")
    facts = {"system": engine_kit.this_system(), "machine": engine_kit.this_machine(), "variant": "cpu", "version": "1"}
    facts["lock"] = engine_install.lock_hash(tmp_path / "source")
    engine_kit.write_manifest(kit, facts, ["3.11"], str)
    panel.take_kit(str(kit))
    wait_until(lambda: panel.title.text() == "The engine is ready" and not panel.setup._looks)
    assert settings.weights_folder() == str(place / "weights")
    assert (place / "weights" / "galileo" / "encoder.pt").read_bytes() == b"weights"
    sync = [call for call in fake_uv.calls(tmp_path) if "sync" in call["argv"]]
    assert len(sync) == 1 and "--no-index" in sync[0]["argv"]


def test_two_windows_of_qgis_wait_for_each_other(panel, place):
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from geopeft_qgis import engine_disk as d, engine_steps as s;"
        "from pathlib import Path\n"
        f"with d.alone(s.Steps(print, bool), Path({str(place)!r})): print('held', flush=True); sys.stdin.read()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(["/usr/bin/python3", "-B", "-c", code], **pipes) as other:
        assert other.stdout.readline() == b"held\n"
        panel.start()
        wait_until(lambda: panel.stage.text() == "Another QGIS is setting the engine up; waiting for it")
        assert panel.busy and panel.progress.maximum() == 0
        other.communicate()
    wait_until(lambda: panel.title.text() == "The engine is ready" and not panel.setup._looks)


def test_diagnostics_are_copied_with_one_click(panel, place, monkeypatch):
    monkeypatch.setenv("HOME", str(place.parent))
    set_up(panel)
    panel.copy_link.linkActivated.emit("#")
    wait_until(lambda: QgsApplication.clipboard().text().startswith("GeoPEFT: "))
    text = QgsApplication.clipboard().text()
    assert "Engine: ready" in text and "Files: whole" in text and '"variant": "cpu"' in text
    assert str(place.parent) not in text and "~/Ein Ordner" in text
    assert "copied" in panel.copy_link.text()


def test_the_fake_is_no_real_engine(place):
    """The tests above must not touch an environment of this machine."""
    from geopeft_qgis import engine_state

    assert engine_state.home() == place and os.environ["GEOPEFT_HOME"] == str(place)


def test_time_left_is_no_more_exact_than_it_is_known(qgis_app):
    from geopeft_qgis.gui.setup_labels import time_left

    assert [time_left(seconds) for seconds in (5, 100, 3500)] == [
        "less than a minute left",
        "about 2 min left",
        "about 58 min left",
    ]
