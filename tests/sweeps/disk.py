"""The disk gets full at random moments of each job: one sentence that says so, the old outputs, and nothing else."""

from __future__ import annotations

import contextlib
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.tally import Count, moments
from tests.trials import Bench, old_outputs

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 60
SIZE_MB = 64
FREE_KB = (0, 4, 16, 64, 256, 700)
CODES = frozenset(("DISK_FULL",))


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of a few megabytes at this folder; False where this user may mount none."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m", "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)


def filled_after(folder: Path, seconds: float, free_kb: int) -> Callable[[int], None]:
    """Fills the disk after so many seconds, but for so many kB."""

    def harm(_: int) -> None:
        time.sleep(seconds)
        ballast = folder / "x.ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            for block in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(b"x" * block)
            file.truncate(max(file.tell() - (free_kb << 10), 0))

    return harm


def limited_to(size: int) -> Callable[[], None]:
    """No file may grow beyond so many bytes, as a full disk would have it."""

    def prepare() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    return prepare


def main() -> None:
    found = Count()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch))
        with small_disk(bench.out) as mounted:
            for name in ("save", "predict", "export", "fit"):
                bench.learn(name)
                count = COUNT if name != "export" else COUNT // 3
                for number, moment in enumerate(moments(count, bench.seconds[name], seed=len(name))):
                    old = old_outputs(bench, name, there=bool(number % 2))
                    if mounted:
                        # The first is full from the start.
                        harm = filled_after(bench.out, moment if number else 0.0, FREE_KB[number % len(FREE_KB)])
                        ended = bench.run(bench.jobs[name], harm)
                    else:
                        size = round(2000 + 20_000 * moment / bench.seconds[name])
                        ended = bench.run(bench.jobs[name], prepare=limited_to(size))
                    kind = "" if mounted else " (limited files, no small disk)"
                    found.add(f"{name}: {ended.words}{kind}", bench.faults(name, ended, old, CODES))
                bench.clear()
    found.tell()


if __name__ == "__main__":
    main()
