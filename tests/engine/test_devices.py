"""Devices and the reasons why a graphics card is not used, with drivers that are not there."""

from __future__ import annotations

import ctypes
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from geopeft import devices
from geopeft.devices import Card, Driver

MODERN = Card("NVIDIA RTX 4060", 8188, (8, 9))
DRIVER = """
#include <string.h>
#include <stddef.h>
int cuInit(unsigned flags) { return CODE; }
int cuDriverGetVersion(int *version) { *version = 13020; return 0; }
int cuDeviceGetCount(int *count) { *count = 2; return 0; }
int cuDeviceGet(int *device, int index) { *device = 7 + index; return 0; }
int cuDeviceGetName(char *name, int size, int device) { strcpy(name, device == 7 ? "Old card" : "New card"); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)8 << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device)
{ *value = attribute == 75 ? (device == 7 ? 6 : 9) : 1; return 0; }
"""


@pytest.fixture(autouse=True)
def without_stamp(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the environment in which the tests run was set up for is of no concern."""
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "no environment"))


def described(
    monkeypatch: pytest.MonkeyPatch,
    driver: Driver | None,
    torch: tuple[bool, tuple[int, int] | None] = (True, (13, 2)),
) -> dict[str, object]:
    monkeypatch.setattr(devices, "read_driver", lambda: driver)
    monkeypatch.setattr(devices, "torch_build", lambda: torch)
    return devices.describe()


@pytest.mark.skipif(sys.platform == "darwin", reason="NVIDIA cards")
@pytest.mark.parametrize(
    ("driver", "torch", "reason"),
    [
        (None, (True, (13, 2)), "NO_DRIVER"),
        (Driver((13, 0), (), 999), (True, (13, 2)), "DRIVER_SILENT"),
        (Driver((12, 8), (MODERN,)), (True, (13, 2)), "DRIVER_OLD"),
        (Driver((13, 2), (Card("GTX 1080", 8000, (6, 1)),)), (True, (13, 2)), "CARD_OLD"),
        (Driver((13, 0), (Card("GTX 1080", 8000, (6, 1)),)), (True, (12, 6)), ""),
        (Driver((13, 2), (MODERN,)), (True, None), "TORCH_WITHOUT_CUDA"),
        (Driver((13, 2), (MODERN,)), (False, None), "NO_TORCH"),
        (Driver((13, 0), (MODERN,)), (True, (13, 2)), ""),
    ],
)
@pytest.mark.fault("G02", "E19")
def test_reason_why_a_card_is_not_used(
    monkeypatch: pytest.MonkeyPatch, driver: Driver | None, torch: tuple[bool, tuple[int, int] | None], reason: str
) -> None:
    monkeypatch.setattr(devices, "_sees_card", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = described(monkeypatch, driver, torch)
    assert (found["gpu_reason"], found["auto"]) == (reason, "cpu" if reason else "cuda")
    assert bool(found["gpu_reason_text"]) == bool(reason)


@pytest.mark.skipif(sys.platform == "darwin", reason="NVIDIA cards")
def test_the_usable_one_of_two_cards_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    cards = (Card("GTX 1080", 8000, (6, 1)), MODERN)
    found = described(monkeypatch, Driver((13, 2), cards))
    rows = found["devices"]
    assert isinstance(rows, list)
    assert [(row["name"], row["usable"]) for row in rows[:2]] == [("NVIDIA RTX 4060", True), ("GTX 1080", False)]
    assert rows[2]["device"] == "cpu" and rows[2]["cores"] >= 1


@pytest.mark.skipif(sys.platform == "darwin", reason="NVIDIA cards")
@pytest.mark.fault("G01")
def test_hidden_cards_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert described(monkeypatch, Driver((13, 2), (), devices.NO_DEVICE))["gpu_reason"] == "HIDDEN"


@pytest.mark.skipif(sys.platform == "darwin", reason="NVIDIA cards")
def test_environment_for_the_cpu_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "stamp.json").write_text(json.dumps({"variant": "cpu"}), encoding="utf-8")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert described(monkeypatch, Driver((13, 2), (MODERN,)))["gpu_reason"] == "SET_UP_FOR_CPU"


def test_card_without_a_driver_is_seen(tmp_path: Path) -> None:
    assert not devices._sees_card(tmp_path)
    for name, vendor, kind in (("sound", "0x10de", "0x040300"), ("other", "0x8086", "0x030000")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vendor").write_text(vendor + "\n")
        (tmp_path / name / "class").write_text(kind + "\n")
    assert not devices._sees_card(tmp_path)
    (tmp_path / "other" / "vendor").write_text("0x10de\n")
    assert devices._sees_card(tmp_path)


def test_torchs_build_is_read_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError('torch was imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for text, cuda in (
        ("cuda: Optional[str] = '13.2'\n", (13, 2)),
        ("cuda = '12.6'\n", (12, 6)),
        ("cuda = None", None),
    ):
        (tmp_path / "torch" / "version.py").write_text(f"__version__ = '9'\n{text}\nhip = None\n")
        assert devices.torch_build() == (True, cuda)


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("cc"), reason="a driver is compiled here")
@pytest.mark.parametrize("code", [0, 999])
def test_driver_is_asked_through_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    source, library = tmp_path / "cuda.c", tmp_path / "libcuda.so.1"
    source.write_text(DRIVER.replace("CODE", str(code)))
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    real = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda name: real(str(library) if name == "libcuda.so.1" else name))
    found = devices.read_driver()
    assert found is not None and found.cuda == (13, 2) and found.code == code
    cards = (Card("Old card", 8192, (6, 1)), Card("New card", 8192, (9, 1)))
    assert found.cards == (cards if code == 0 else ())
