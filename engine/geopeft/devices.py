"""What this machine can compute on, asked of the system and the drivers themselves: torch is not imported."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# The oldest compute capability that PyTorch's builds for a major version of CUDA serve.
OLDEST_CAPABILITY = {12: (5, 0), 13: (7, 5)}
NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
NVIDIA, DISPLAY = "0x10de", "0x03"  # PCI vendor, and the first byte of the class of graphics cards

# Why a graphics card is not used.
REASONS = {
    "NO_DRIVER": "no NVIDIA driver was found",
    "CARD_WITHOUT_DRIVER": "there is an NVIDIA card, but its driver is not installed",
    "DRIVER_SILENT": "the NVIDIA driver is installed but does not answer",
    "DRIVER_OLD": "the NVIDIA driver is too old for this PyTorch",
    "CARD_OLD": "this card is too old for this PyTorch",
    "HIDDEN": "CUDA_VISIBLE_DEVICES hides the card",
    "NO_TORCH": "PyTorch is not installed",
    "TORCH_WITHOUT_CUDA": "the installed PyTorch computes on the CPU only",
    "SET_UP_FOR_CPU": "the engine was set up without a graphics card",
    "INTEL_MAC": "PyTorch uses Apple's own processors only",
}


@dataclass(frozen=True)
class Card:
    """A graphics card as its driver describes it."""

    name: str
    memory_mb: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver: the newest CUDA that it speaks, its cards, and the code of its answer (0: fine)."""

    cuda: tuple[int, int]
    cards: tuple[Card, ...]
    code: int = 0


def describe() -> dict[str, Any]:
    """`devices` (device, name, memory_mb, usable, reason), the one that `auto` takes, and why it is not a GPU."""
    gpus = [_apple()] if sys.platform == "darwin" else _nvidia()
    used = next((gpu for gpu in gpus if gpu["usable"]), None)
    code = "" if used else str(gpus[0]["reason"])
    return {
        "devices": [*(gpu for gpu in gpus if gpu["name"]), _cpu()],
        "auto": used["device"] if used else "cpu",
        "gpu_reason": code,
        "gpu_reason_text": REASONS.get(code, ""),
    }


def _device(kind: str, name: str, memory_mb: int, reason: str) -> dict[str, Any]:
    return {"device": kind, "name": name, "memory_mb": memory_mb, "usable": not reason, "reason": reason}


def _nvidia() -> list[dict[str, Any]]:
    """A row for each card, usable ones first; one row without a name where there is none."""
    driver = read_driver()
    if driver is None:
        return [_device("cuda", "", 0, "CARD_WITHOUT_DRIVER" if _sees_card() else "NO_DRIVER")]
    if not driver.cards:
        hidden = "CUDA_VISIBLE_DEVICES" in os.environ and driver.code in (0, NO_DEVICE)
        return [_device("cuda", "", 0, "HIDDEN" if hidden else "DRIVER_SILENT")]
    rows = [_device("cuda", card.name, card.memory_mb, _why_not(card, driver)) for card in driver.cards]
    return sorted(rows, key=lambda row: not row["usable"])


def _why_not(card: Card, driver: Driver) -> str:
    there, cuda = torch_build()
    if not there:
        return "NO_TORCH"
    if cuda is None:
        return "TORCH_WITHOUT_CUDA"
    # A driver serves all minor versions of its major version.
    if driver.cuda[0] < cuda[0]:
        return "DRIVER_OLD"
    if card.capability < OLDEST_CAPABILITY.get(cuda[0], (0, 0)):
        return "CARD_OLD"
    return "SET_UP_FOR_CPU" if _stamp().get("variant") == "cpu" else ""


def torch_build() -> tuple[bool, tuple[int, int] | None]:
    """(is torch installed, the CUDA version that it was built for), read from its files."""
    found = importlib.util.find_spec("torch")
    if found is None or not found.origin:
        return False, None
    try:
        text = (Path(found.origin).parent / "version.py").read_text(encoding="utf-8")
    except OSError:
        return True, None
    cuda = re.search(r"^cuda\b.*?=\s*['\"](\d+)\.(\d+)", text, re.MULTILINE)
    return True, (int(cuda[1]), int(cuda[2])) if cuda else None


def read_driver() -> Driver | None:
    """What NVIDIA's driver answers; None where there is none."""
    try:
        library = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
        version, count = ctypes.c_int(0), ctypes.c_int(0)
        library.cuDriverGetVersion(ctypes.byref(version))
        code = int(library.cuInit(0)) or int(library.cuDeviceGetCount(ctypes.byref(count)))
        cards = tuple(_card(library, index) for index in range(count.value)) if code == 0 else ()
    except (OSError, AttributeError):
        return None
    return Driver((version.value // 1000, version.value % 1000 // 10), cards, code)


def _card(library: ctypes.CDLL, index: int) -> Card:
    device, memory = ctypes.c_int(0), ctypes.c_size_t(0)
    name = ctypes.create_string_buffer(256)
    library.cuDeviceGet(ctypes.byref(device), index)
    library.cuDeviceGetName(name, len(name), device)
    library.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    numbers = []
    for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
        number = ctypes.c_int(0)
        library.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
        numbers.append(number.value)
    return Card(name.value.decode("utf-8", "replace"), memory.value >> 20, (numbers[0], numbers[1]))


def _sees_card(root: Path = Path("/sys/bus/pci/devices")) -> bool:
    """Whether the system lists an NVIDIA graphics card, with or without a driver; known on Linux only."""
    for device in root.glob("*"):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor == NVIDIA and kind.startswith(DISPLAY):
            return True
    return False


def _apple() -> dict[str, Any]:
    if platform.machine() != "arm64":
        return _device("mps", "", 0, "INTEL_MAC")
    name, memory = _sysctl("machdep.cpu.brand_string") or "Apple", _sysctl("hw.memsize")
    reason = "" if torch_build()[0] else "NO_TORCH"
    return _device("mps", name, int(memory) >> 20 if memory.isdigit() else 0, reason)


def _sysctl(name: str) -> str:
    try:
        answer = subprocess.run(
            ["/usr/sbin/sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip()


def _cpu() -> dict[str, Any]:
    return {**_device("cpu", _cpu_name(), _memory_mb(), ""), "cores": cores()}


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        named = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        named = None
    return named[1] if named else platform.processor() or platform.machine()


def _memory_mb() -> int:
    """Memory of the machine, 0 where the system does not tell."""
    try:
        return (os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) >> 20
    except (AttributeError, ValueError, OSError):
        return 0


def _stamp() -> dict[str, Any]:
    """What the installer wrote about the environment that this Python is in; empty for any other."""
    try:
        content = json.loads((Path(sys.prefix) / "stamp.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
