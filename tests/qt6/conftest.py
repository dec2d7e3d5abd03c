"""These tests run on PyQt6 with a stand-in for QGIS, in a process of their own: `build.py check` starts it."""

import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent / "fake")]

pytest.importorskip("PyQt6", reason="these tests need PyQt6; build.py check installs it")
