"""uv for the installer: gets the pinned one, finds a Python to build on, and runs both so that they can be cancelled.

Standard library only (not even qgis), Python 3.9 syntax.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from . import engine_process

PYTHON_RANGE = ((3, 11), (3, 14))  # the minor versions that the lock has wheels for
MANAGED_PYTHON = "3.12"  # what uv fetches where no fitting Python is installed
HEARTBEAT_S = 20

# Beside what the engine may see: the user's mirrors, cache and proxy settings for uv, and nothing else of uv's.
ALLOWED_UV = """UV_DEFAULT_INDEX UV_INDEX UV_FIND_LINKS UV_CACHE_DIR UV_OFFLINE UV_SYSTEM_CERTS UV_NATIVE_TLS
UV_HTTP_TIMEOUT UV_PYTHON_INSTALL_DIR UV_PYTHON_INSTALL_MIRROR""".split()
# Read by pip; QGIS on Windows points such variables to files that do not exist, which stops every download.
ALLOWED_IF_THERE = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")

# Prints what the installer must know of a Python; the base executable is the one outside any virtual environment.
DESCRIBE_PYTHON = """
import json, platform, sys, sysconfig
print(json.dumps({"version": sys.version_info[:2], "executable": getattr(sys, "_base_executable", sys.executable),
    "fits": platform.python_implementation() == "CPython" and sys.maxsize > 2**32
            and not sysconfig.get_config_var("Py_GIL_DISABLED")}))
"""

Say = Callable[[str], None]


class InstallError(Exception):
    """Why the engine could not be installed, in one sentence, and what to do next."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(f"{message} {hint}")
        self.message = message
        self.hint = hint


class InstallCanceled(InstallError):
    """The user stopped the installation; nothing half-made is in use."""

    def __init__(self) -> None:
        super().__init__("The installation was cancelled.", "Start it again when you like.")


def child_environment(pip: bool = False) -> dict[str, str]:
    """The variables for a child process: what the engine may see and uv's, for pip with the user's PIP_* settings."""
    child = engine_process.child_environment(os.environ)
    child.update({name: os.environ[name] for name in ALLOWED_UV if name in os.environ})
    if pip:
        child.update({name: value for name, value in os.environ.items() if name.startswith("PIP_")})
    for name in ALLOWED_IF_THERE:
        child.pop(name, None)
        if pip and Path(os.environ.get(name) or "?").exists():
            child[name] = os.environ[name]
    return {**child, "UV_NO_PROGRESS": "1"}


def process_options() -> dict[str, Any]:
    """A process group of its own, so that it can be ended with its children; no console window on Windows."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NO_WINDOW}
    return {"start_new_session": True}


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a process started with `process_options` and all its children, at once."""
    if process.poll() is None:
        if sys.platform == "win32":
            taskkill = shutil.which("taskkill") or "taskkill"
            subprocess.run([taskkill, "/T", "/F", "/PID", str(process.pid)], capture_output=True, check=False)
        else:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def answer(command: Sequence[str], timeout_s: float = 120) -> tuple[bool, str]:
    """Runs a short command: (succeeded, its stdout or its last line of complaint)."""
    options = process_options()
    try:
        ran = subprocess.run(
            command,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
            env=child_environment(),
            check=False,
            **options,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return False, str(error)
    if ran.returncode == 0:
        return True, ran.stdout.decode("utf-8", "replace")
    lines = (ran.stderr or ran.stdout).decode("utf-8", "replace").strip().splitlines()
    return False, lines[-1] if lines else f"exit code {ran.returncode}"


def sees_nvidia_gpu() -> bool:
    """Whether the NVIDIA driver lists a card."""
    tool = shutil.which("nvidia-smi")
    if tool is None or sys.platform == "darwin":
        return False
    return "GPU 0" in answer([tool, "-L"], 15)[1]


class Steps:
    """One installation under way: says each step with its seconds, runs commands, ends them when cancelled."""

    def __init__(self, say: Say, canceled: Callable[[], bool]) -> None:
        self.say = say
        self.canceled = canceled

    def check(self) -> None:
        """Raises InstallCanceled when the user asked for it."""
        if self.canceled():
            raise InstallCanceled()

    @contextlib.contextmanager
    def step(self, text: str) -> Iterator[None]:
        self.check()
        self.say(f"{text} ...")
        start = time.monotonic()
        yield
        self.say(f"{text}: {time.monotonic() - start:.1f} s")

    def run(self, command: Sequence[str], folder: Path, pip: bool = False) -> None:
        """Runs a command in `folder`; raises CommandFailed with its output, or InstallCanceled after ending it."""
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                list(command),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=child_environment(pip),
                **process_options(),
            )
            try:
                self._wait(process)
            finally:
                end_group(process)
            if process.returncode != 0:
                raise CommandFailed(_text(log))

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        start = said = time.monotonic()
        while process.poll() is None:
            self.check()
            time.sleep(0.05)
            if time.monotonic() - said > HEARTBEAT_S:
                said = time.monotonic()
                self.say(f"  still at it after {said - start:.0f} s")


class CommandFailed(Exception):
    """A command of the installer failed; the text is what it printed."""


def _text(log: IO[bytes]) -> str:
    log.seek(0)
    return log.read().decode("utf-8", "replace").strip()


def get_uv(steps: Steps, folder: Path, pins: Path, wheels: Path | None, may_use_apt: bool) -> Path:
    """The pinned uv below `folder`, fetched through pip where it is not there yet; its wheel is checked by sha256.

    `pins` is a requirements file `uv==VERSION --hash=sha256:...` with one hash for each platform's wheel.
    """
    text = pins.read_text(encoding="utf-8")
    version = re.findall(r"^uv==([0-9.]+)", text, re.MULTILINE)[0]
    hashes = set(re.findall(r"sha256:([0-9a-f]{64})", text))
    program = folder / version / ("uv.exe" if os.name == "nt" else "uv")
    if program.is_file():
        return program
    with steps.step(f"Fetching the installer uv {version}"):
        program.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=program.parent) as scratch:
            wheel = _download(steps, Path(scratch), pins, wheels, may_use_apt)
            if hashlib.sha256(wheel.read_bytes()).hexdigest() not in hashes:
                raise InstallError(
                    f"The downloaded file {wheel.name} is not the one that GeoPEFT expects (its sha256 differs).",
                    "Try again on another network; if it stays so, report it.",
                )
            _take_program(wheel, program)
    return program


def _download(steps: Steps, scratch: Path, pins: Path, wheels: Path | None, may_use_apt: bool) -> Path:
    """The wheel for this platform: pip knows the platform's tags, the user's index, proxy and certificates."""
    python = _python_with_pip(steps, scratch, may_use_apt)
    command = [python, "-E", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command += ["--no-index", "--find-links", str(wheels)] if wheels else []
    try:
        steps.run([*command, "--dest", str(scratch), "-r", str(pins)], scratch, pip=True)
    except CommandFailed as failure:
        raise InstallError(
            f"The installer uv could not be fetched ({reason(str(failure))}).",
            "Check the network and the proxy settings, or give a folder with the wheels.",
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


def _python_with_pip(steps: Steps, scratch: Path, may_use_apt: bool) -> str:
    for python in _pythons():
        if answer([python, "-E", "-m", "pip", "--version"])[0]:
            return python
    command = "apt-get install -y --no-install-recommends python3-pip"
    apt, python3 = shutil.which("apt-get"), shutil.which("python3", path="/usr/bin")
    if not apt or not python3:
        raise InstallError("No Python with pip was found, which fetches the installer.", "Install Python 3.11.")
    prefix = root_prefix() if may_use_apt else None
    if prefix is None:
        raise InstallError("Python has no pip here, which fetches the installer.", f"Run: sudo {command}")
    steps.say(f"  Python has no pip here; running: {command}")
    try:
        steps.run([*prefix, apt, "update"], scratch)
        steps.run([*prefix, *command.replace("apt-get", apt, 1).split()], scratch)
    except CommandFailed as failure:
        text = reason(str(failure))
        raise InstallError(f"python3-pip could not be installed ({text}).", f"Run: sudo {command}") from failure
    return python3


def root_prefix() -> list[str] | None:
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


def base_python(wheels: Path | None) -> tuple[str, str]:
    """(what to give to `uv venv --python`, minor version): an installed Python that fits the lock, else uv's own."""
    for python in _pythons():
        # An environment on the Python inside QGIS' folder breaks at QGIS' next update.
        if in_qgis() and os.name != "posix" and Path(sys.base_prefix) in Path(python).parents:
            continue
        fine, text = answer([python, "-I", "-c", DESCRIBE_PYTHON], 30)
        with contextlib.suppress(ValueError, KeyError, TypeError):
            facts: dict[str, Any] = json.loads(text) if fine else {"fits": False}
            version = tuple(facts["version"]) if facts["fits"] else ()
            if PYTHON_RANGE[0] <= version <= PYTHON_RANGE[1]:
                return str(facts["executable"]), ".".join(map(str, version))
    if wheels:
        raise InstallError("No Python 3.11 to 3.14 was found on this machine.", "Install one, then try again.")
    return MANAGED_PYTHON, MANAGED_PYTHON


def reason(output: str) -> str:
    """The line of a tool's output that tells most: the first error, else the last line."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(?i)(error|fatal|e:|x |×|caused by)", line)]
    return (errors or lines or ["no output"])[-1 if not errors else 0].strip("×x ").rstrip(".")[:300]
