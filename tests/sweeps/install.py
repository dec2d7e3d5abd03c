"""SIGKILL at random moments of the engine's installation: then there is no environment or a whole one, no process is
left, and the next start makes one and clears away what was left."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from geopeft_qgis import engine_environment, engine_files, engine_install, engine_uv
from tests import fake_uv
from tests.tally import Count, moments

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 200
# What is promised: so long after a kill, nothing of an installation is left.
LEFT_S = 5.0
FRESH, REPAIR, UPDATE = "first installation", "repair", "update"


class Place:
    """A machine to install on: a source with its lock, a home, and an uv that puts one file after the other there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home, self.source = folder, folder / "home", fake_uv.lay_source(folder / "source")
        python = str(fake_uv.lay_python(folder / "tools" / "python3"))
        engine_uv._pythons = lambda: [python]
        engine_install.expected_gb = lambda variant, system=None: (0.01, 0.0)
        engine_install.variant_here = lambda: "cpu"
        (folder / "tmp").mkdir()
        tempfile.tempdir = str(folder / "tmp")
        os.environ.update(GEOPEFT_FAKE_CALLS=str(folder), GEOPEFT_FAKE_UV="parts", GEOPEFT_HOME=str(self.home))
        self.install(False)

    def begin(self, kind: str) -> bool:
        """Makes the place as it is before an installation of this kind; whether it is a repair."""
        if kind == FRESH:
            shutil.rmtree(self.home)
        elif kind == UPDATE:
            fake_uv.lay_source(self.source, f"{time.monotonic_ns():064d}")
        return kind == REPAIR

    def install(self, repair: bool) -> Path:
        return engine_install.ensure(self.source, lambda text: None, repair=repair)

    def killed_after(self, seconds: float, repair: bool) -> bool:
        """Runs an installation in a fork and kills it; whether it was still at work."""
        pid = os.fork()
        if pid == 0:
            try:
                self.install(repair)
            finally:
                os._exit(0)
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        return os.WIFSIGNALED(os.waitpid(pid, 0)[1])

    def left(self) -> list[str]:
        """What still runs of an installation."""
        deadline = time.monotonic() + LEFT_S
        while (found := _running(self.folder)) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in found:
            os.kill(pid, signal.SIGKILL)
        return [f"process {pid} is left" for pid in found]

    def environment(self) -> tuple[str, list[str]]:
        """none or whole, and what is wrong with one that would be used."""
        python = engine_environment.engine_python(self.source)
        if python is None:
            return "none", []
        found = engine_environment.verify(python) + engine_files.differing(python.parents[1])
        return "whole", [f"an environment that is used is not whole: {sentence}" for sentence in found]

    def rests(self) -> list[str]:
        """What nobody uses."""
        there = [path for path in self.home.rglob("*") if "site-packages" not in path.parts and path.is_dir()]
        names = [path.name for path in there if ".new-" in path.name or ".old-" in path.name or "tmp" in path.name]
        names += [f"{count} environments"] if (count := len(engine_environment.environments(self.home))) != 1 else []
        return [f"left behind: {name}" for name in names]


def _running(folder: Path) -> list[int]:
    """Processes that were started with a path below a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def main() -> None:
    found = Count()
    with tempfile.TemporaryDirectory() as scratch:
        place = Place(Path(scratch).resolve())
        for shift, kind in enumerate((FRESH, REPAIR, UPDATE)):
            repair = place.begin(kind)
            started = time.monotonic()
            place.install(repair)
            for moment in moments(-(-COUNT // 3), time.monotonic() - started, seed=shift):
                was_at_work = place.killed_after(moment, place.begin(kind))
                wrong = place.left()
                there, faults = place.environment()
                found.add(f"{kind} {'killed' if was_at_work else 'done'}: {there}", wrong + faults)
                place.install(False)
                there, faults = place.environment()
                found.add(f"{kind} again: {there}", faults + place.rests())
    found.tell()


if __name__ == "__main__":
    main()
