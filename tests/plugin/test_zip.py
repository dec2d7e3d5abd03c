"""The zip as users get it: QGIS's own plugin manager installs it into a fresh profile and starts it."""

import importlib.util

from qgis_window import ROOT, Window, make_profile

STEPS = """
from pyplugin_installer import instance
from qgis.PyQt.QtWidgets import QMessageBox

def steps():
    asked = []
    for name in ("question", "warning", "information", "critical"):
        setattr(QMessageBox, name, staticmethod(lambda *text, **more: asked.append(text[1:3])))
    instance().installFromZipFile(ZIP)
    yield 0.5
    plugin = qgis.utils.plugins.get(NAME)
    metadata = {key: qgis.utils.pluginMetadata(NAME, key) for key in ("version", "hasProcessingProvider", "name")}
    say(asked=asked, started=plugin is not None, metadata=metadata, dock=dock() is not None)
    say(algorithms=[a.id() for p in QgsApplication.processingRegistry().providers() if p.id() == "geopeft"
                    for a in p.algorithms()])
    say(enabled=qgis.core.QgsSettings().value("PythonPlugins/" + NAME, False, type=bool))
    from geopeft_qgis import engine_install
    say(source=engine_install.engine_source())
    quit_qgis()
"""


def test_the_plugin_manager_installs_and_starts_the_zip(tmp_path, screen):
    spec = importlib.util.spec_from_file_location("build_tool", ROOT / "build.py")
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    archive = build.make_zip(tmp_path / "geopeft_qgis.zip")
    plugins = make_profile(tmp_path)
    window = Window(tmp_path, screen, f"ZIP = {str(archive)!r}\n{STEPS}")
    assert window.wait() == 0, window.text[-3000:]
    assert window.fact("asked") == []
    assert window.fact("started") and window.fact("dock") and window.fact("enabled")
    assert window.fact("metadata")["hasProcessingProvider"] == "yes"
    assert set(window.fact("algorithms")) >= {f"geopeft:{name}" for name in ("fit", "predict", "evaluate", "export")}
    assert window.fact("source") == str(plugins / "geopeft_qgis" / "engine")
    assert "Traceback" not in window.text
