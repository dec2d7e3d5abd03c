"""Runs an installer's commands: with the user's network, watched, cancelled at once, and never waiting for ever.

Standard library only (not even qgis), Python 3.9 syntax.
"""

from __future__ import annotations

import configparser
import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Optional

from . import engine_process
from .engine_complaints import is_about_certificates
from .language import tr

HEARTBEAT_S = 20
LOOK_S = 1.0
# A command that shows no sign of life for so long is ended. A busy machine may take minutes to load torch.
QUIET_LIMIT_S = 1800.0
DOWNLOAD_QUIET_LIMIT_S = 300.0

# Beside what the engine may see: the user's mirrors, cache and proxy settings for uv, and nothing else of uv's.
ALLOWED_UV = """UV_DEFAULT_INDEX UV_INDEX UV_FIND_LINKS UV_CACHE_DIR UV_OFFLINE UV_SYSTEM_CERTS UV_NATIVE_TLS
UV_HTTP_TIMEOUT UV_PYTHON_INSTALL_DIR UV_PYTHON_INSTALL_MIRROR""".split()
# Read by pip; QGIS on Windows points such variables to files that do not exist, which stops every download.
ALLOWED_IF_THERE = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")

Say = Callable[[str], None]


class Progress(NamedTuple):
    """How far an installation is."""

    stage: str  # one of STAGES
    done: float  # share of the whole installation, 0 to 1
    eta_s: Optional[float] = None  # None while it cannot be told honestly
    done_bytes: int = 0
    total_bytes: int = 0


# The stages of an installation, and the share of the whole at which each begins.
STAGES = {"wait": 0.0, "clear": 0.0, "kit": 0.0, "uv": 0.02, "packages": 0.05, "compile": 0.82, "check": 0.95}
Tell = Callable[[Progress], None]


@dataclass(frozen=True)
class Network:
    """How an installer reaches the network, beside what the environment says.

    `variables` (proxies) replace those of the environment; `certificates` gives PEM text of the authorities to trust,
    asked only where the system's own do not do; `index` is the address of the package index, empty for pip's and
    uv's own.
    """

    variables: Mapping[str, str] = field(default_factory=dict)
    certificates: Callable[[], str] = str
    index: str = ""


class InstallError(Exception):
    """Why the engine could not be installed, in one sentence, and what to do next."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(f"{message} {hint}")
        self.message = message
        self.hint = hint


class InstallCanceled(InstallError):
    """The user stopped the installation; nothing half-made is in use."""

    def __init__(self) -> None:
        super().__init__(tr("The installation was canceled."), tr("Start it again when you like."))


class CommandFailed(Exception):
    """A command of the installer failed; the text is what it printed, without passwords."""


class Watch:
    """Looks at a command at work, so that its progress and its standing still can be told."""

    quiet_limit_s = QUIET_LIMIT_S

    def look(self, output: str) -> tuple[object, Optional[Progress]]:
        """A mark that differs from the last one while something moves, and the progress where it is known."""
        return len(output), None

    def close(self) -> None:
        """Called once the command has ended, however it did; after a last look."""


def child_environment(pip: bool = False, network: Optional[Network] = None) -> dict[str, str]:
    """The variables for a child process: what the engine may see but for the keys of stores, and uv's, for pip with the
    user's PIP_* settings."""
    seen = engine_process.child_environment(os.environ)
    child = {name: value for name, value in seen.items() if not name.upper().startswith(engine_process.STORES)}
    child.update({name: os.environ[name] for name in ALLOWED_UV if name in os.environ})
    if pip:
        child.update({name: value for name, value in os.environ.items() if name.startswith("PIP_")})
    for name in ALLOWED_IF_THERE:
        child.pop(name, None)
        if pip and Path(os.environ.get(name) or "?").exists():
            child[name] = os.environ[name]
    replaced = {name.upper() for name in network.variables} if network else set()
    child = {name: value for name, value in child.items() if name.upper() not in replaced}
    if network:
        child.update(network.variables)
        child.update(_index_variables(network, child))
    return {**child, "UV_NO_PROGRESS": "1"}


def _index_variables(network: Network, child: Mapping[str, str]) -> dict[str, str]:
    """The package index and its certificates for uv, which does not read pip's settings, and for pip."""
    index = network.index or child.get("UV_DEFAULT_INDEX") or _pip_setting("index_url")
    found = {"UV_DEFAULT_INDEX": index, "PIP_INDEX_URL": index} if index else {}
    certificates = _pip_setting("cert")
    if os.path.isfile(certificates) and "SSL_CERT_FILE" not in child:
        found["SSL_CERT_FILE"] = certificates
    return found


def _pip_setting(name: str) -> str:
    """A setting of pip's, from its variables or its files in pip's own order; empty where there is none."""
    value = os.environ.get(f"PIP_{name.upper()}", "")
    for path in [] if value else _pip_files():
        parser = configparser.RawConfigParser()
        with contextlib.suppress(OSError, configparser.Error, UnicodeDecodeError):
            parser.read(path, encoding="utf-8")
        for section in ("global", "download", "install"):
            for key in (name.replace("_", "-"), name):
                value = parser.get(section, key, fallback=value)
    return value.strip()


def _pip_files() -> list[Path]:
    """pip's settings files, the strongest last."""
    home = Path.home()
    if os.name == "nt":
        files = [Path(os.environ.get("PROGRAMDATA") or "C:/ProgramData") / "pip" / "pip.ini", home / "pip" / "pip.ini"]
        files.append(Path(os.environ.get("APPDATA") or home / "AppData" / "Roaming") / "pip" / "pip.ini")
    else:
        shared = [Path(folder) for folder in os.environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(os.pathsep) if folder]
        files = [folder / "pip" / "pip.conf" for folder in shared] + [Path("/etc/pip.conf"), home / ".pip" / "pip.conf"]
        mac = home / "Library" / "Application Support" / "pip" / "pip.conf"  # not shown
        own = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf"
        files.append(mac if sys.platform == "darwin" and mac.parent.is_dir() else own)
    chosen = os.environ.get("PIP_CONFIG_FILE")
    return [] if chosen == os.devnull else [*files, *([Path(chosen)] if chosen else [])]


def without_passwords(text: str) -> str:
    """Text whose addresses hold no user names and passwords."""
    return re.sub(r"(\w+://)[^/\s@]*@", r"\1***@", text)


def process_options() -> dict[str, Any]:
    """A process group of its own, so that it can be ended with its children; no console window on Windows."""
    if sys.platform == "win32":
        return {"creationflags": subprocess.CREATE_NO_WINDOW}
    return {"start_new_session": True}


@functools.cache
def tied() -> tuple[str, ...]:
    """What stands before a command so that it ends with this process, however that ends: only Linux has such a tool."""
    tool = shutil.which("setpriv") if sys.platform == "linux" else None
    words = (tool, "--pdeathsig", "KILL", "--") if tool else ()
    # Small systems have a tool of this name that knows less.
    return words if words and answer([*words, "true"], 10)[0] else ()


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a process started with `process_options` and all its children, at once."""
    if process.poll() is None:
        if sys.platform == "win32":
            taskkill = shutil.which("taskkill") or "taskkill"
            subprocess.run(
                [taskkill, "/T", "/F", "/PID", str(process.pid)],
                capture_output=True,
                check=False,
                creationflags=subprocess.CREATE_NO_WINDOW,
            )
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
    return False, lines[-1] if lines else f"exit code {ran.returncode}"  # not shown


class Steps:
    """One installation under way: says each step with its seconds, runs commands, ends them when cancelled."""

    def __init__(
        self,
        say: Say,
        canceled: Callable[[], bool],
        tell: Tell = lambda progress: None,
        network: Optional[Network] = None,
    ) -> None:
        self.say = say
        self.canceled = canceled
        self.network = network or Network()
        self._tell = tell
        self._done = 0.0
        self._trusted: dict[str, str] = {}

    def check(self) -> None:
        """Raises InstallCanceled when the user asked for it."""
        if self.canceled():
            raise InstallCanceled()

    def tell(self, progress: Progress) -> None:
        """Passes progress on; what is done never becomes less."""
        self._done = max(self._done, progress.done)
        self._tell(progress._replace(done=self._done))

    @contextlib.contextmanager
    def step(self, text: str, stage: str = "") -> Iterator[None]:
        self.check()
        self.say(f"{text} ...")
        if stage:
            self.tell(Progress(stage, STAGES[stage]))
        start = time.monotonic()
        yield
        self.say(f"{text}: {time.monotonic() - start:.1f} s")

    def run(
        self,
        command: Sequence[str],
        folder: Path,
        pip: bool = False,
        watch: Optional[Watch] = None,
        more: Optional[Mapping[str, str]] = None,
    ) -> None:
        """Runs a command in `folder`, with `more` variables.

        Raises CommandFailed with its output, InstallCanceled after ending it, InstallError where it stands still.
        Where the certificate of a server is not known to the tool, it is tried once more with
        `network.certificates`; it is never left unchecked.
        """
        environment = {**child_environment(pip, self.network), **(more or {})}
        try:
            self._run(command, folder, {**environment, **self._trusted}, watch or Watch())
        except CommandFailed as failure:
            if self._trusted or not is_about_certificates(str(failure)):
                raise
            self.say(tr("The server's certificate is not known to the installer; trying with those of this system."))
            self._trusted = self._trust(folder)
            self._run(command, folder, {**environment, **self._trusted}, watch or Watch())

    def _trust(self, folder: Path) -> dict[str, str]:
        """The variables for other certificates than the tools' own."""
        certificates = self.network.certificates()
        if not certificates:
            return {"UV_SYSTEM_CERTS": "1"}
        path = folder / "certificates.pem"
        path.write_text(certificates, encoding="ascii")
        return {"SSL_CERT_FILE": str(path), "PIP_CERT": str(path)}

    def _run(self, command: Sequence[str], folder: Path, environment: Mapping[str, str], watch: Watch) -> None:
        # A name, since a second handle of the same open file would share the place that the child writes at.
        with tempfile.TemporaryDirectory(prefix="geopeft-") as scratch:
            log = Path(scratch) / "log"
            with log.open("wb") as file:
                process = subprocess.Popen(
                    [*tied(), *command],
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    env=dict(environment),
                    **process_options(),
                )
                try:
                    self._wait(process, log, watch)
                finally:
                    end_group(process)
                    watch.look(_text(log))
                    watch.close()
            text = _text(log)
            if process.returncode < 0:
                text += f"\nerror: ended from outside (signal {-process.returncode})"  # not shown
            if process.returncode != 0:
                raise CommandFailed(text)

    def _wait(self, process: subprocess.Popen[bytes], log: Path, watch: Watch) -> None:
        start = said = looked = moved = time.monotonic()
        last: object = None
        while process.poll() is None:
            self.check()
            time.sleep(0.05)
            now = time.monotonic()
            if now - said > HEARTBEAT_S:
                said = now
                self.say(tr("Still at it after {seconds} s").format(seconds=round(said - start)))
            if now - looked < LOOK_S:
                continue
            mark, progress = watch.look(_text(log))
            # After a machine's sleep the clock has jumped, and nothing could have moved.
            if mark != last or now - looked > 30:
                last, moved = mark, now
            looked = now
            if progress:
                self.tell(progress)
            if now - moved > watch.quiet_limit_s:
                minutes = max(1, round(watch.quiet_limit_s / 60))
                raise InstallError(
                    tr("Nothing has moved for {minutes} min, so the installation was stopped.").format(minutes=minutes),
                    tr("Check the network and the proxy settings, then try again."),
                )


def _text(log: Path) -> str:
    return without_passwords(log.read_bytes().decode("utf-8", "replace").strip())
