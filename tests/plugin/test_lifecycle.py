"""The plugin comes, goes and ends in a real QGIS without leaving anything behind, whatever it was doing."""

import shutil

import pytest
from qgis_window import ROOT, engines, gone

SAMPLE = ROOT / "resources" / "sample"

# What a plugin can leave in QGIS, as name -> count.
INVENTORY = """
import threading
from collections import Counter
from qgis.PyQt.QtCore import QObject, QThread
from qgis.PyQt.QtWidgets import QMenu, QToolBar, QToolButton, QShortcut, QAction, QWidget
from qgis.gui import QgsMapTool, QgsMapCanvasItem

def inventory():
    settle()
    window = iface.mainWindow()
    found = Counter()
    for kind in (QWidget, QAction, QMenu, QToolBar, QShortcut, QgsMapTool, QThread):
        found[kind.__name__] = len(window.findChildren(kind))
    found["all widgets"] = len(QApplication.allWidgets())
    found["window's actions"] = len(window.actions())
    found["raster menu"] = len(iface.rasterMenu().actions())
    found["plugin menu"] = len(iface.pluginMenu().actions())
    found["help menu"] = len(iface.pluginHelpMenu().actions()) if iface.pluginHelpMenu() else 0
    found["toolbar"] = len(iface.pluginToolBar().actions())
    found["providers"] = len(QgsApplication.processingRegistry().providers())
    found["canvas items"] = sum(isinstance(item, QgsMapCanvasItem) for item in iface.mapCanvas().scene().items())
    found["threads"] = sum(not thread.daemon for thread in threading.enumerate())
    found["children"] = len(children())
    found["tasks"] = QgsApplication.taskManager().countActiveTasks()
    found["layers"] = len(QgsProject.instance().mapLayers())
    found["map tool"] = type(iface.mapCanvas().mapTool()).__name__
    return found

def children():
    own = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [pid for path in own for pid in path.read_text().split()]

def named():
    settle()
    objects = iface.mainWindow().findChildren(QObject)
    providers = [one.id() for one in QgsApplication.processingRegistry().providers()]
    return [name for name in (*(one.objectName() for one in objects), *providers) if "geopeft" in name.lower()]

def living():
    # Instances of the plugin's classes: a signal that is still connected keeps its receiver alive. Named tuples may be
    # constants of modules, which Python keeps.
    settle()
    return Counter(
        f"{type(one).__module__}.{type(one).__name__}"
        for one in gc.get_objects()
        if str(getattr(type(one), "__module__", "")).startswith(NAME) and not isinstance(one, tuple)
    )
"""

RELOADS = (
    INVENTORY
    + """
class Counting:
    # Stands before QGIS's interface and remembers what is registered; the window cannot be asked for that.
    def __init__(self, real):
        self.real, self.there = real, []
    def __getattr__(self, name):
        method = getattr(self.real, name)
        if name.startswith(("register", "add", "unregister", "remove")) and callable(method):
            def counted(*given):
                things = [one for one in given if isinstance(one, QObject) or "geopeft" in type(one).__module__]
                if name.startswith(("register", "add")):
                    self.there += things
                else:
                    self.there = [one for one in self.there if not any(one is other for other in things)]
                return method(*given)
            return counted
        return method

def open_all():
    # Shows what is made only when it is seen.
    settle()
    dock().show()
    dock().raise_()

def steps():
    yield from wait_for(lambda: NAME in qgis.utils.plugins)
    open_all()
    yield 0.5
    qgis.utils.unloadPlugin(NAME)
    before = inventory()
    counting = Counting(iface)
    qgis.utils.iface = counting
    for _ in range(20):
        assert qgis.utils.loadPlugin(NAME) and qgis.utils.startPlugin(NAME)
        open_all()
        yield 0.05
        there = len(counting.there)
        assert qgis.utils.unloadPlugin(NAME)
    after = inventory()
    say(named=named(), there=there, left=[repr(one) for one in counting.there], living=living())
    say(changed={name: [before[name], after[name]] for name in after if before[name] != after[name]})
    qgis.utils.iface = counting.real
    quit_qgis()
"""
)


@pytest.mark.fault("Q06")
@pytest.mark.fault("Q06")
def test_twenty_times_loaded_and_unloaded_leaves_nothing(window):
    one = window(RELOADS)
    assert one.wait() == 0, one.text[-3000:]
    assert one.fact("there") >= 3, "nothing was registered, so this would prove nothing"
    assert one.fact("left") == [] and one.fact("named") == []
    assert one.fact("living") == {}
    assert one.fact("changed") == {}
    assert "Traceback" not in one.text, one.text[-3000:]


@pytest.fixture
def sample(tmp_path):
    """The sample scene, in a folder where results may be written."""
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("itaipu_landsat8.tif", "labels.gpkg"):
        shutil.copy(SAMPLE / name, folder)
    return folder


START = """
def open_sample():
    yield from wait_for(lambda: NAME in qgis.utils.plugins)
    raster = QgsRasterLayer(f"{DATA}/itaipu_landsat8.tif", "scene")
    labels = QgsVectorLayer(f"{DATA}/labels.gpkg|layername=train", "labels")
    assert raster.isValid() and labels.isValid()
    QgsProject.instance().setFileName(f"{DATA}/project.qgz")
    QgsProject.instance().addMapLayers([raster, labels])
    dock().setUserVisible(True)
    iface.mapCanvas().setExtent(raster.extent())
    yield 0.3

def start_run():
    # Presses the button; goes on when the engine runs.
    yield from open_sample()
    yield from wait_for(lambda: button("Train and map").isEnabled())
    button("Train and map").click()
    yield from wait_for(lambda: QgsApplication.taskManager().countActiveTasks() > 0)
    yield from wait_for(engine_pids)
    say(engines=engine_pids())

def engine_pids():
    found = []
    for path in Path(os.environ["TMPDIR"]).rglob("pid"):
        found += [int(path.read_text() or 0)]
    return [pid for pid in found if Path(f"/proc/{pid}").exists()]

def idle():
    return QgsApplication.taskManager().countActiveTasks() == 0
"""


def run_and(window, sample, ending, mode="hang", **more):
    """Starts a run in a window, then does something to it; the window when it has ended."""
    steps = f"DATA = {str(sample)!r}\n{START}\ndef steps():\n    yield from start_run()\n{ending}"
    one = window(steps, GEOPEFT_FAKE_MODE=mode, **more)
    code = one.wait()
    assert code == 0, f"exit code {code}\n{one.text[-3000:]}"
    assert one.fact("engines"), "no engine was running, so this would prove nothing"
    assert "died on signal" not in one.text
    return one


def assert_no_engine(tmp_path):
    assert gone(lambda: engines(tmp_path) != []), f"still running: {engines(tmp_path)}"


# While a task runs, QGIS asks whether to cancel it; it stays open then, and is closed once more.
QUIT = """
    from qgis.PyQt.QtCore import QTimer
    from qgis.PyQt.QtWidgets import QMessageBox
    asked = []

    def answer():
        box = QApplication.activeModalWidget()
        if isinstance(box, QMessageBox):
            asked.append(box.text())
            box.button(QMessageBox.StandardButton.Yes).click()
        elif not asked:
            QTimer.singleShot(100, answer)

    QTimer.singleShot(100, answer)
    quit_qgis()
    start = time.monotonic()
    yield from wait_for(idle, 20)
    say(asked=asked, seconds=time.monotonic() - start, after=engine_pids())
    quit_qgis()
"""


@pytest.mark.parametrize("mode", ["polite", "hang", "orphan"])
@pytest.mark.fault("P11", "P12")
def test_quitting_qgis_during_a_run_ends_the_engine(window, sample, tmp_path, mode):
    one = run_and(window, sample, QUIT, mode)
    assert len(one.fact("asked")) == 1
    assert_no_engine(tmp_path)
    assert "Traceback" not in one.text, one.text[-3000:]


DISABLE = """
    start = time.monotonic()
    assert qgis.utils.unloadPlugin(NAME)
    say(seconds=time.monotonic() - start, after=engine_pids())
    yield 0.5
    quit_qgis()
"""


@pytest.mark.parametrize("mode", ["polite", "hang"])
@pytest.mark.fault("P13")
def test_disabling_the_plugin_during_a_run_ends_the_engine(window, sample, tmp_path, mode):
    one = run_and(window, sample, DISABLE, mode)
    assert one.fact("after") == []
    assert one.fact("seconds") < 10
    assert_no_engine(tmp_path)
    assert "Traceback" not in one.text, one.text[-3000:]


RELOAD = """
    qgis.utils.reloadPlugin(NAME)
    say(after=engine_pids())
    yield from wait_for(lambda: dock() is not None)
    yield from wait_for(lambda: button("Train and map").isEnabled())
    say(usable=True)
    # QGIS asks before it ends while anything is under way, such as a look at the engine.
    yield from wait_for(idle)
    quit_qgis()
"""


@pytest.mark.fault("P13")
def test_reloading_the_plugin_during_a_run_gives_a_fresh_one(window, sample, tmp_path):
    one = run_and(window, sample, RELOAD, "polite")
    assert one.fact("after") == [] and one.fact("usable")
    assert_no_engine(tmp_path)
    assert "Traceback" not in one.text, one.text[-3000:]


LEAVE_PROJECT = """
    say(before=len(QgsProject.instance().mapLayers()))
    iface.newProject(False)
    yield from wait_for(idle, 60)
    yield 1
    models = sorted(path.name for path in Path(DATA).glob("*.geopeft"))
    maps = sorted(path.name for path in Path(DATA).glob("*.tif") if "itaipu" not in path.name or "map" in path.name)
    say(models=models, maps=maps, layers=[layer.name() for layer in QgsProject.instance().mapLayers().values()])
    quit_qgis()
"""


@pytest.mark.fault("P13")
def test_leaving_the_project_during_a_run_loses_no_result(window, sample, tmp_path):
    """The run goes on: its files are where they were asked for. They are loaded, or not, but nothing breaks."""
    one = run_and(window, sample, LEAVE_PROJECT, "ok", GEOPEFT_FAKE_PAUSE_S="0.05")
    assert len(one.fact("models")) == 1 and one.fact("maps")
    assert_no_engine(tmp_path)
    assert "Traceback" not in one.text, one.text[-3000:]


REMOVE_LAYERS = """
    QgsProject.instance().removeAllMapLayers()
    yield from wait_for(idle, 60)
    yield 1
    models = sorted(path.name for path in Path(DATA).glob("*.geopeft"))
    say(models=models, layers=[layer.name() for layer in QgsProject.instance().mapLayers().values()])
    quit_qgis()
"""


def test_removing_the_layers_during_a_run_loses_no_result(window, sample, tmp_path):
    one = run_and(window, sample, REMOVE_LAYERS, "ok", GEOPEFT_FAKE_PAUSE_S="0.05")
    assert len(one.fact("models")) == 1
    assert "map" in " ".join(one.fact("layers"))
    assert_no_engine(tmp_path)
    assert "Traceback" not in one.text, one.text[-3000:]


PREVIEW = """
def steps():
    yield from open_sample()
    yield from wait_for(lambda: any(one.customProperty("geopeft/preview") for one in
                                    QgsProject.instance().mapLayers().values()))
    say(workers=len(children()))
    yield 0.5
"""
ENDINGS = {
    "disabled": """
    assert qgis.utils.unloadPlugin(NAME)
    say(after=len(children()))
    yield 0.5
    quit_qgis()
""",
    "quit": """
    quit_qgis()
""",
    "layers removed": """
    QgsProject.instance().removeAllMapLayers()
    yield 2
    quit_qgis()
""",
    "project left": """
    iface.newProject(False)
    yield 2
    quit_qgis()
""",
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_warm_engine_of_the_preview_ends_with_the_plugin(window, sample, tmp_path, ending):
    steps = f"DATA = {str(sample)!r}\n{INVENTORY}\n{START}\n{PREVIEW}{ENDINGS[ending]}"
    one = window(steps)
    assert one.wait() == 0, one.text[-3000:]
    assert one.fact("workers"), "no engine was warm, so this would prove nothing"
    assert ending != "disabled" or one.fact("after") == 0
    assert_no_engine(tmp_path)
    assert "Traceback" not in one.text, one.text[-3000:]


# How long the plugin's slots keep the window: a timer of 5 ms tells how late it is, a second thread looks at what the
# first one is doing meanwhile. Late counts where at least half of the looks found the plugin's code: the rest is
# QGIS's own work, such as drawing the map. Time in which the window's thread waited for a core, since others use the
# machine, does not count.
STALLS = """
import sys, threading, traceback
from collections import Counter
from qgis.PyQt.QtCore import QTimer, Qt

def waited_s():
    # How long this thread has waited for a core.
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9

class Watch:
    def __init__(self):
        self.stalls, self.start = [], time.monotonic()
        self.last, self.waited, self.looks = self.start, waited_s(), []
        self.thread = threading.get_ident()
        self.timer = QTimer()
        self.timer.setTimerType(Qt.TimerType.PreciseTimer)
        self.timer.timeout.connect(self.tick)
        self.timer.start(5)
        threading.Thread(target=self.look, daemon=True).start()
    def tick(self):
        now = time.monotonic()
        late_s = now - self.last - (waited_s() - self.waited)
        looks = Counter(self.looks)
        seen = looks.most_common(1)[0][0] if looks else ""
        if 2 * looks[""] > len(self.looks):
            seen = ""
        self.stalls.append((round(1000 * late_s, 1), round(now - self.start, 2), seen))
        self.last, self.waited, self.looks = time.monotonic(), waited_s(), []
    def look(self):
        while True:
            time.sleep(0.01)
            if time.monotonic() - self.last > 0.02:
                frames = traceback.extract_stack(sys._current_frames()[self.thread])
                own = [f for f in reversed(frames) if NAME in f.filename]
                self.looks.append(" < ".join(f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in own[:4]))
    def worst(self, count):
        return sorted((stall for stall in self.stalls if stall[2]), reverse=True)[:count]
"""
WATCHED = """
    watch = Watch()
    yield from wait_for(idle, 90)
    yield 0.5
    watch.timer.stop()
    say(worst=watch.worst(6), others=sorted(watch.stalls, reverse=True)[:3], ticks=len(watch.stalls))
    quit_qgis()
"""


@pytest.mark.fault("P07")
def test_no_slot_takes_a_tenth_of_a_second_while_events_stream_in(window, sample):
    """A slot that is too slow is so each time; a machine that is busy with other things is not."""
    more = {"GEOPEFT_FAKE_STEPS": "1500", "GEOPEFT_FAKE_PAUSE_S": "0.002"}
    steps = f"DATA = {str(sample)!r}\n{START}\n{STALLS}\ndef steps():\n    yield from start_run()\n{WATCHED}"
    for _ in range(3):
        one = window(steps, **more)
        assert one.wait(180) == 0, one.text[-3000:]
        assert one.fact("ticks") > 100
        late = [f"{ms} ms at {at} s: {seen}" for ms, at, seen in one.fact("worst")]
        print("\n".join(late), one.fact("others"))
        if not late or one.fact("worst")[0][0] < 100:
            return
    pytest.fail("\n".join(late))
