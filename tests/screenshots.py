"""The pictures of the README, made in real QGIS: `build.py screenshots`.

    screenshots.py ENGINE_PYTHON FOLDER [LANGUAGE]

Opens QGIS on a screen of its own with a fresh profile and the plugin, goes the way of a new user with the real engine
(fresh, sample, preview, training, finished, check, apply, options, an error), and keeps a picture of each state.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "plugin"))

import qgis_window

STEPS = """
from qgis.PyQt.QtWidgets import QTabWidget

def shot(name):
    picture = iface.mainWindow().screen().grabWindow(0, 0, 0, *SIZE)
    path = os.path.join(os.environ["GEOPEFT_SHOTS"], "panel_" + name + ".jpg")
    assert picture.save(path, "JPG", 85), path

SIZE = (1400, 860)

def steps():
    window = iface.mainWindow()
    window.showNormal()
    window.setGeometry(0, 0, *SIZE)
    for name in ("Browser",):
        found = window.findChild(QDockWidget, name)
        if found is not None:
            found.hide()
    panel = dock()
    panel.setUserVisible(True)
    window.resizeDocks([panel], [380], Qt.Orientation.Horizontal)
    yield 2
    train = panel.train
    yield 4
    shot("fresh")
    os.environ["GEOPEFT_ENGINE_PYTHON"] = os.environ["GEOPEFT_SHOTS_ENGINE"]
    panel.setup_panel.setup.check()
    yield from wait_for(lambda: panel.setup_panel.isHidden())
    train.sample_button.click()
    yield from wait_for(lambda: train.preview.layer is not None, 180)
    yield 2
    shot("preview")
    train.run_button.click()
    yield from wait_for(lambda: len((train.curve.lines("miou") or [NO_LINE])[0].points) > 4, 600)
    yield 1
    shot("training")
    yield from wait_for(lambda: not train.busy, 900)
    yield 3
    shot("finished")
    model = str(train._model)
    check = panel.check
    panel.tabs.setCurrentWidget(check)
    check.suggest_button.click()
    yield from wait_for(lambda: not check.is_busy, 120)
    check.places_list.itemClicked.emit(check.places_list.item(0))
    maps = QgsProject.instance().layerTreeRoot().findGroups()
    for group in maps:
        group.setItemVisibilityChecked(False)
    yield 3
    shot("check")
    for group in maps:
        group.setItemVisibilityChecked(True)
    panel.tabs.setCurrentWidget(panel.apply)
    yield 2
    panel.apply.open_model(model)
    yield 2
    shot("models")
    panel.apply.apply_model(model)
    yield 2
    shot("apply")
    panel.tabs.setCurrentWidget(train)
    labels = train.form.labels.layer()
    QTimer.singleShot(3000, lambda: shot("options"))
    QTimer.singleShot(4000, lambda: QApplication.activeModalWidget().reject())
    iface.showOptionsDialog(window, "GeoPEFT")
    labels.selectByExpression("false")
    train.form.labels.selected_box.setChecked(True)
    train.run_button.click()
    yield from wait_for(lambda: not train.busy, 60)
    yield 2
    shot("error")
    quit_qgis()

class NO_LINE:
    points = ()
"""


def main(engine_python: str, folder: str, language: str = "") -> int:
    """Makes the pictures; 0 when all are there."""
    target = Path(folder).resolve()
    target.mkdir(parents=True, exist_ok=True)
    if not shutil.which("Xvfb"):
        print("Xvfb is needed: apt-get install xvfb", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="geopeft-shots-", dir=Path.home()) as scratch:
        profile = Path(scratch)
        qgis_window.link_plugin(qgis_window.make_profile(profile))
        command = ["Xvfb", "-displayfd", "1", "-screen", "0", "1400x860x24", "-nolisten", "tcp"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
            screen = f":{server.stdout.readline().strip()}" if server.stdout else ""
            manager = shutil.which("openbox")
            desktop = (
                subprocess.Popen([manager], env={**os.environ, "DISPLAY": screen}, stderr=subprocess.DEVNULL)
                if manager
                else None
            )
            more = {"GEOPEFT_SHOTS": str(target), "GEOPEFT_ENGINE_PYTHON": "", "GEOPEFT_SHOTS_ENGINE": engine_python}
            if language:
                settings = profile / "profiles" / "default" / "QGIS" / "QGIS3.ini"
                chosen = f"[locale]\noverrideFlag=true\nuserLocale={language}\n"
                settings.write_text(settings.read_text(encoding="utf-8") + chosen, encoding="utf-8")
            window = qgis_window.Window(profile, screen, "from qgis.PyQt.QtCore import Qt, QTimer\n" + STEPS, **more)
            try:
                window.process.wait(1800)
            except subprocess.TimeoutExpired:
                window.end()
            finally:
                failed = [facts["failed"] for facts in window.said if "failed" in facts]
                for process in (desktop, server):
                    if process is not None:
                        process.terminate()
            for text in failed:
                print(text, file=sys.stderr)
    made = sorted(path.name for path in target.glob("panel_*.jpg"))
    print("\n".join(made))
    return 1 if failed or not made else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
