"""uv for the installer: gets the pinned one, finds a Python to build on, and watches uv's downloads.

Standard library only (not even qgis), Python 3.9 syntax.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Optional

from .engine_complaints import reason
from .engine_steps import (
    DOWNLOAD_QUIET_LIMIT_S,
    STAGES,
    CommandFailed,
    InstallError,
    Progress,
    Steps,
    Watch,
    answer,
)
from .language import tr

PYTHON_RANGE = ((3, 11), (3, 14))  # the minor versions that the lock has wheels for
MANAGED_PYTHON = "3.12"  # what uv fetches where no fitting Python is installed

# Prints what the installer must know of a Python; the base executable is the one outside any virtual environment.
DESCRIBE_PYTHON = """
import json, platform, sys, sysconfig
print(json.dumps({"version": sys.version_info[:2], "executable": getattr(sys, "_base_executable", sys.executable),
    "fits": platform.python_implementation() == "CPython" and sys.maxsize > 2**32
            and not sysconfig.get_config_var("Py_GIL_DISABLED")}))
"""

# What a user keeps pip from installing elsewhere is no matter here, where every version is pinned.
NO_CONSTRAINTS = {"PIP_CONSTRAINT": os.devnull}
UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
# Measured over the engine's packages: a wheel's bytes by those that it unpacks to.
PACKED_SHARE = 0.53
RATE_WINDOW_S = 30.0
# What follows the download: compiling takes 25 s to two minutes, the first start of the libraries half a minute.
AFTER_DOWNLOAD_S, AFTER_COMPILE_S = 75.0, 20.0


def nvidia_card() -> str:
    """Name of the first card that the NVIDIA driver lists, or empty."""
    tool = shutil.which("nvidia-smi")
    if tool is None or sys.platform == "darwin":
        return ""
    found = re.search(r"GPU 0: (.+?)(?: \(UUID|$)", answer([tool, "-L"], 15)[1], re.MULTILINE)
    return found[1] if found else ""


class Growth(Watch):
    """Whether the files in a folder still grow."""

    quiet_limit_s = DOWNLOAD_QUIET_LIMIT_S

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def look(self, output: str) -> tuple[object, Optional[Progress]]:
        return (len(output), sum(size for _, size in _files([self.folder]))), None


class PackageWatch(Watch):
    """Progress of `uv pip sync`, from what it prints and from the files that grow in its cache.

    uv unpacks a wheel while it arrives, so the packed bytes that have come are estimated from the unpacked ones. It
    does not say beforehand what it will fetch: `expected` (bytes) is all of it, less what `ledger` remembers from
    installations that were stopped.
    """

    quiet_limit_s = DOWNLOAD_QUIET_LIMIT_S

    def __init__(self, cache: Path, site: Path, expected: float, ledger: Optional[Path] = None) -> None:
        self.cache = cache
        self.site = site
        self._ledger = ledger
        self._before = _read_ledger(ledger)
        self._expected = max(0.0, expected - sum(self._before.values()))
        self._finished: dict[str, float] = {}
        self._foreign = {path.name for path in [*self._arriving(()), *self._kept()]}
        self._sizes: dict[str, int] = {}
        self._rates: collections.deque[tuple[float, float]] = collections.deque()
        self._sources = 0

    def look(self, output: str) -> tuple[object, Optional[Progress]]:
        if re.search(r"^\s*Installed \d+ package", output, re.MULTILINE):
            return self._compiling(output)
        sizes = {name: float(size) * UNITS[unit] for name, size, unit in re.findall(LOADING, output, re.MULTILINE)}
        self._finished = {name: sizes.get(name, 0.0) for name in re.findall(LOADED, output, re.MULTILINE)}
        finished, total = sum(self._finished.values()), max(self._expected, sum(sizes.values()))
        unpacked = sum(size for _, size in _files(self._arriving(self._foreign)))
        if sizes:
            done = finished + min(PACKED_SHARE * unpacked, 0.98 * (sum(sizes.values()) - finished))
        else:
            # Nothing is downloaded: the wheels of a kit are unpacked one after the other, without a word.
            done = min(PACKED_SHARE * (unpacked + self._kept_bytes()), 0.98 * total)
        progress = self._progress("packages", "compile", done, total, AFTER_DOWNLOAD_S)
        return (len(output), unpacked, done), progress._replace(done_bytes=int(done), total_bytes=int(total))

    def close(self) -> None:
        """Remembers what has arrived whole, since uv's cache keeps it."""
        if self._ledger and self._finished:
            with contextlib.suppress(OSError):
                self._ledger.write_text(json.dumps({**self._before, **self._finished}), encoding="utf-8")

    def _compiling(self, output: str) -> tuple[object, Progress]:
        compiled = sources = 0
        for name, _ in _files([self.site]):
            compiled += name.endswith(".pyc")
            sources += name.endswith(".py")
        if not self._sources:
            self._rates.clear()
        self._sources = sources
        return (len(output), compiled), self._progress("compile", "check", compiled, sources, AFTER_COMPILE_S)

    def _progress(self, stage: str, following: str, done: float, total: float, after_s: float) -> Progress:
        """A part of a stage, with the time left from the rate of the last half minute."""
        now = time.monotonic()
        self._rates.append((now, done))
        while now - self._rates[0][0] > RATE_WINDOW_S:
            self._rates.popleft()
        since, before = self._rates[0]
        eta_s = None
        if now - since >= 4 and done > before:
            eta_s = (total - done) * (now - since) / (done - before) + after_s
        share = done / total if total else 0.0
        return Progress(stage, STAGES[stage] + share * (STAGES[following] - STAGES[stage]), eta_s)

    def _kept_bytes(self) -> int:
        """Size of what was unpacked whole; a folder there does not change any more."""
        for path in self._kept():
            if path.name not in self._foreign and path.name not in self._sizes:
                self._sizes[path.name] = sum(size for _, size in _files([path]))
        return sum(self._sizes.values())

    def _kept(self) -> list[Path]:
        return list(self.cache.glob("archive-v*/*"))

    def _arriving(self, foreign: Collection[str]) -> list[Path]:
        return [path for path in self.cache.glob(".tmp*") if path.name not in foreign]


def _read_ledger(ledger: Optional[Path]) -> dict[str, float]:
    """Name and packed bytes of each package that is in the cache."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        content = json.loads(ledger.read_text(encoding="utf-8")) if ledger else {}
        return {str(name): float(size) for name, size in content.items()}
    return {}


LOADING = r"^\s*Downloading (\S+) \(([\d.]+)(KiB|MiB|GiB)\)"
LOADED = r"^\s*Downloaded (\S+)"


def _files(folders: Collection[Path]) -> Iterator[tuple[str, int]]:
    """Name and size of every file below some folders that others may be changing."""
    stack = [str(folder) for folder in folders]
    while stack:
        with contextlib.suppress(OSError), os.scandir(stack.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    stack.append(entry.path)
                else:
                    with contextlib.suppress(OSError):
                        yield entry.name, entry.stat(follow_symlinks=False).st_size


def get_uv(steps: Steps, folder: Path, pins: Path, wheels: Optional[Path], may_use_apt: bool) -> Path:
    """The pinned uv below `folder`, fetched through pip where it is not there yet; its wheel is checked by sha256.

    `pins` is a requirements file `uv==VERSION --hash=sha256:...` with one hash for each platform's wheel.
    """
    text = pins.read_text(encoding="utf-8")
    version = re.findall(r"^uv==([0-9.]+)", text, re.MULTILINE)[0]
    hashes = set(re.findall(r"sha256:([0-9a-f]{64})", text))
    program = folder / version / ("uv.exe" if os.name == "nt" else "uv")
    if program.is_file():
        return program
    with steps.step(tr("Fetching the installer {name}").format(name=f"uv {version}"), "uv"):
        # What a killed installation was fetching.
        shutil.rmtree(program.parent, ignore_errors=True)
        program.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=program.parent) as scratch:
            wheel = _download(steps, Path(scratch), pins, wheels, may_use_apt)
            if hashlib.sha256(wheel.read_bytes()).hexdigest() not in hashes:
                raise InstallError(
                    tr("The downloaded file {name} is not the one that GeoPEFT expects (its sha256 differs).").format(
                        name=wheel.name
                    ),
                    tr("Try again on another network; if it stays so, report it."),
                )
            _take_program(wheel, program)
    return program


def _download(steps: Steps, scratch: Path, pins: Path, wheels: Optional[Path], may_use_apt: bool) -> Path:
    """The wheel for this platform: pip knows the platform's tags, the user's index, proxy and certificates."""
    there = list(wheels.glob("uv-*.whl")) if wheels else []
    if len(there) == 1:
        return there[0]
    python = python_with_pip(steps, scratch, may_use_apt)
    command = [python, "-E", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command += ["--no-index", "--find-links", str(wheels)] if wheels else []
    # pip's own temporary files too, so that their growth is seen.
    more = {**NO_CONSTRAINTS, **{name: str(scratch) for name in ("TMPDIR", "TMP", "TEMP")}}
    try:
        command += ["--progress-bar", "off", "--dest", str(scratch), "-r", str(pins)]
        steps.run(command, scratch, pip=True, watch=Growth(scratch), more=more)
    except CommandFailed as failure:
        raise InstallError(
            tr("The installer uv could not be fetched ({reason}).").format(reason=reason(str(failure))),
            tr("Check the network and the proxy settings, or install from an offline kit."),
        ) from failure
    return next(scratch.glob("uv-*.whl"))


def _take_program(wheel: Path, program: Path) -> None:
    """Reads the one member out of the wheel; nothing is extracted by name."""
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(f".data/scripts/{program.name}"))
        content = archive.read(member)
    fresh = program.with_name(f"{program.name}.new-{os.getpid()}")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o700), "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(fresh, program)


def python_with_pip(steps: Steps, scratch: Path, may_use_apt: bool) -> str:
    """A Python that has pip; InstallError where there is none."""
    for python in _pythons():
        if answer([python, "-E", "-m", "pip", "--version"])[0]:
            return python
    command = "apt-get install -y --no-install-recommends python3-pip"  # not shown
    run_it = tr("Run: {command}").format(command=f"sudo {command}")
    apt, python3 = shutil.which("apt-get"), shutil.which("python3", path="/usr/bin")
    if not apt or not python3:
        text = tr("No Python with pip was found, which fetches the installer.")
        raise InstallError(text, tr("Install Python 3.11 or newer, then try again."))
    prefix = root_prefix() if may_use_apt else None
    if prefix is None:
        raise InstallError(tr("Python has no pip here, which fetches the installer."), run_it)
    steps.say(run_it)
    try:
        steps.run([*prefix, apt, "update"], scratch)
        steps.run([*prefix, *command.replace("apt-get", apt, 1).split()], scratch)
    except CommandFailed as failure:
        text = tr("python3-pip could not be installed ({reason}).").format(reason=reason(str(failure)))
        raise InstallError(text, run_it) from failure
    return python3


def root_prefix() -> Optional[list[str]]:
    """What to put before a command that needs root: nothing for root, sudo where it asks nothing, else None."""
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        return []
    sudo = shutil.which("sudo")
    return [sudo, "-n"] if sudo and answer([sudo, "-n", "true"])[0] else None


def in_qgis() -> bool:
    """Whether this process is QGIS: then `sys.executable` may be QGIS itself, and starting it opens a second one."""
    return "qgis" in sys.modules or not Path(sys.executable or "qgis").name.lower().startswith("py")


def _pythons() -> list[str]:
    """Pythons at hand, this process's own first; QGIS' own Python (good enough for pip) last."""
    found = [] if in_qgis() else [sys.executable]
    found += [shutil.which(name) or "" for name in ("python3.14", "python3.13", "python3.12", "python3.11", "python3")]
    found += [f"/usr/bin/{name}" for name in ("python3.11", "python3") if sys.platform == "linux"]
    found += [shutil.which(name) or "" for name in ("python", "py")]
    found += [str(Path(sys.base_prefix) / name) for name in ("python.exe", "bin/python3")]
    # Two stand-ins that only open a shop or an installer: the WindowsApps stub, and macOS' python3 without its tools.
    stand_ins = ("WindowsApps", "/usr/bin/python3" if sys.platform == "darwin" else "WindowsApps")
    fit = [path for path in found if path and Path(path).is_file() and not any(word in path for word in stand_ins)]
    return list(dict.fromkeys(fit))


def base_python(kit_pythons: Optional[Collection[str]]) -> tuple[str, str]:
    """(what to give to `uv venv --python`, minor version): an installed Python that fits the lock, else uv's own.

    With `kit_pythons` there is no network: the minor versions that a kit has wheels for, all where it is empty.
    """
    seen = []
    for python in _pythons():
        # An environment on the Python inside QGIS' folder breaks at QGIS' next update.
        if in_qgis() and os.name != "posix" and Path(sys.base_prefix) in Path(python).parents:
            continue
        fine, text = answer([python, "-I", "-c", DESCRIBE_PYTHON], 30)
        with contextlib.suppress(ValueError, KeyError, TypeError):
            facts: dict[str, Any] = json.loads(text) if fine else {"fits": False}
            version = tuple(facts["version"]) if facts["fits"] else ()
            minor = ".".join(map(str, version))
            if PYTHON_RANGE[0] <= version <= PYTHON_RANGE[1] and (not kit_pythons or minor in kit_pythons):
                return str(facts["executable"]), minor
            seen += [minor] if minor and minor not in seen else []
    if kit_pythons is None:
        return MANAGED_PYTHON, MANAGED_PYTHON
    wanted = " or ".join(sorted(kit_pythons)) or "3.11 to 3.14"
    raise InstallError(
        tr("Without a network the engine needs Python {wanted} (64 bit) on this machine; found: {found}.").format(
            wanted=wanted, found=", ".join(seen) or "-"
        ),
        tr("Install Python {wanted}, or ask for a kit that was made for another version.").format(wanted=wanted),
    )
