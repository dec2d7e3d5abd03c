"""A real QGIS window on a screen of its own, driven from inside: for what only the whole program can show."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FAKE_ENGINE = ROOT / "tests" / "fake_engine.py"
PREFIX = Path(os.environ.get("QGIS_PREFIX_PATH", "/usr"))
QGIS = PREFIX / "bin" / "qgis.bin"
QGIS_PROCESS = PREFIX / "bin" / "qgis_process.bin"
# What keeps a fresh profile quiet.
SETTINGS = r"""[PythonPlugins]
processing=true
[qgis]
checkVersion=false
showTips=false
askToSaveProjectChanges=false
[core]
NewsFeed\httpsfeedqgisorg\disabled=true
[fonts]
downloadMissingFonts=false
"""
# Runs the steps of a test inside QGIS, one after the other, without ever blocking it.
DRIVER = """
import json, os, sys, traceback
from qgis.PyQt.QtCore import QTimer

def say(**facts):
    print("SAID " + json.dumps(facts, default=str), flush=True)

def tick():
    try:
        wait_s = next(steps)
    except StopIteration:
        return
    except BaseException:
        say(failed=traceback.format_exc())
        os._exit(70)
    QTimer.singleShot(int(wait_s * 1000), tick)

names = {"say": say}
exec(compile(open(os.environ["GEOPEFT_TEST_STEPS"], encoding="utf-8").read(), "steps.py", "exec"), names)
steps = names["steps"]()
QTimer.singleShot(100, tick)
"""
# What the steps of most tests need.
HELPERS = """
import gc, os, sys, time
import qgis.utils
from pathlib import Path
from qgis.PyQt.QtCore import QCoreApplication, QEvent
from qgis.PyQt.QtWidgets import QAbstractButton, QApplication, QDockWidget
from qgis.core import QgsApplication, QgsProject, QgsRasterLayer, QgsVectorLayer
from qgis.utils import iface

NAME = "geopeft_qgis"

def settle():
    for _ in range(3):
        QCoreApplication.processEvents()
        QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    gc.collect()

def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "this did not happen in time"
        yield 0.05

def dock():
    return iface.mainWindow().findChild(QDockWidget, "GeopeftDock")

def button(text):
    found = [one for one in dock().findChildren(QAbstractButton) if one.text() == text]
    assert found, [one.text() for one in dock().findChildren(QAbstractButton)]
    return found[0]

def quit_qgis():
    QgsProject.instance().setDirty(False)
    iface.actionExit().trigger()
"""


def make_profile(folder):
    """A fresh profile in `folder`; returns the folder where plugins are installed."""
    plugins = folder / "profiles" / "default" / "python" / "plugins"
    plugins.mkdir(parents=True)
    (folder / "run").mkdir(mode=0o700)
    settings = folder / "profiles" / "default" / "QGIS" / "QGIS3.ini"
    settings.parent.mkdir()
    settings.write_text(SETTINGS, encoding="utf-8")
    return plugins


def link_plugin(plugins, switched_on=True):
    """Puts the plugin into a profile, as `build.py link` does."""
    plugin = plugins / "geopeft_qgis"
    plugin.mkdir()
    for path in [*(ROOT / "geopeft_qgis").iterdir(), ROOT / "metadata.txt", ROOT / "resources", ROOT / "engine"]:
        if path.name != "__pycache__":
            (plugin / path.name).symlink_to(path)
    if switched_on:
        settings = plugins.parents[1] / "QGIS" / "QGIS3.ini"
        text = settings.read_text(encoding="utf-8")
        settings.write_text(text.replace("processing=true", "processing=true\ngeopeft_qgis=true"), encoding="utf-8")


def environment(folder, **more):
    """Variables for a QGIS of its own home, with the fake engine behind the plugin."""
    python = folder / "python.sh"
    # The plugin gives `-I -u -c CODE SOURCE` before the job.
    python.write_text(f'#!/bin/sh\nshift 5\nexec /usr/bin/python3 -I -u "{FAKE_ENGINE}" "$GEOPEFT_FAKE_MODE" "$@"\n')
    python.chmod(0o755)
    kept = ("LD_LIBRARY_PATH", "QGIS_PREFIX_PATH")
    # A PATH with another Python first would make QGIS' own look there.
    plain = {
        "PATH": os.pathsep.join([str(PREFIX / "bin"), "/usr/bin", "/bin"]),
        "HOME": str(folder),
        "TMPDIR": str(folder / "run"),
        "XDG_RUNTIME_DIR": str(folder / "run"),
        "LANG": "C.UTF-8",
        "DBUS_SESSION_BUS_ADDRESS": "disabled:",
        "LIBGL_ALWAYS_SOFTWARE": "1",
        "QT_QPA_PLATFORM": "xcb",
        "QGIS_CUSTOM_CONFIG_PATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "GEOPEFT_ENGINE_PYTHON": str(python),
        "GEOPEFT_FAKE_MODE": "ok",
    }
    python_paths = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part.startswith(str(PREFIX))]
    if PREFIX != Path("/usr"):
        plain["PYTHONPATH"] = os.pathsep.join(python_paths)
    return {**plain, **{name: os.environ[name] for name in kept if name in os.environ}, **more}


@pytest.fixture(scope="session")
def screen():
    """The number of a virtual screen that no one else has."""
    if not shutil.which("Xvfb") or not QGIS.is_file():
        pytest.skip(f"needs Xvfb and {QGIS}")
    command = ["Xvfb", "-displayfd", "1", "-screen", "0", "1600x1000x24", "-nolisten", "tcp"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        yield f":{server.stdout.readline().strip()}"
    finally:
        server.terminate()
        server.wait(10)
        server.stdout.close()


class Window:
    """A QGIS that runs the steps of a test. `said` are the facts that they told, `text` is all that was printed."""

    def __init__(self, folder, screen, steps, **more):
        (folder / "driver.py").write_text(DRIVER, encoding="utf-8")
        (folder / "steps.py").write_text(HELPERS + steps, encoding="utf-8")
        variables = environment(folder, DISPLAY=screen, GEOPEFT_TEST_STEPS=str(folder / "steps.py"), **more)
        self._log = folder / "qgis.log"
        command = [QGIS, "--nologo", "--noversioncheck", "--profiles-path", folder, "--profile", "default"]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*map(str, command), "--code", str(folder / "driver.py")],
                env=variables,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self, seconds=120):
        """The exit code; a window that stays is ended, and fails the test with what it printed."""
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.end()
            pytest.fail(f"QGIS did not end in {seconds} s.\n{self.text[-3000:]}")
        failed = [facts["failed"] for facts in self.said if "failed" in facts]
        assert not failed, f"{failed[0]}\n{self.text[-3000:]}"
        return code

    def end(self):
        """Kills it, with all that it started."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    @property
    def text(self):
        return self._log.read_text(encoding="utf-8", errors="replace")

    @property
    def said(self):
        return [json.loads(line[5:]) for line in self.text.splitlines() if line.startswith("SAID ")]

    def fact(self, name):
        """The last thing that was said under a name."""
        return [facts[name] for facts in self.said if name in facts][-1]


@pytest.fixture
def window(tmp_path, screen):
    """Opens QGIS with the plugin linked in, and runs steps in it."""
    link_plugin(make_profile(tmp_path))
    opened = []

    def start(steps, **more):
        opened.append(Window(tmp_path, screen, steps, **more))
        return opened[-1]

    yield start
    for one in opened:
        one.end()


def engines(folder):
    """Process ids of the fake engines, workers too, of a QGIS whose home is `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                is_engine = b"fake_engine" in (entry / "cmdline").read_bytes()
                is_ours = f"HOME={folder}".encode() in (entry / "environ").read_bytes().split(b"\0")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if is_engine and is_ours and state != "Z":
                found.append(int(entry.name))
    return found


def gone(condition, seconds=15):
    """Whether something comes to an end in time."""
    end = time.monotonic() + seconds
    while condition() and time.monotonic() < end:
        time.sleep(0.1)
    return not condition()
