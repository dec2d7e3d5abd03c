"""One write, or one flush to disk, of each job fails, each in turn: the output is whole or as it was, never wrong."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.tally import Count
from tests.trials import Bench, old_outputs

# At most so many of the writes of a job fail, evenly spread.
COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 60
SOURCE = Path(__file__).with_name("failing_writes.c")
CODES = frozenset(("DISK_FULL", "OUTPUT_FAILED"))


def failing(bench: Bench, number: int, error: int, count: Path | None = None) -> Callable[[], None]:
    def prepare() -> None:
        os.environ.update(WRITES_FAIL_AT=str(number), WRITES_ERRNO=str(error), WRITES_BELOW=str(bench.out))
        if count is not None:
            os.environ["WRITES_COUNT"] = str(count)

    return prepare


def sweep() -> Count:
    found = Count()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch))
        for name in ("save", "predict", "export", "fit"):
            bench.learn(name)
            told = Path(scratch) / "count"
            bench.run(bench.jobs[name], prepare=failing(bench, 0, 0, told))
            writes = int(told.read_text())
            step = max(1, -(-writes // (COUNT if name != "export" else COUNT // 4)))
            for number in range(1, writes + 1, step):
                old = old_outputs(bench, name, there=bool(number % 2))
                error = errno.EIO if number % 4 < 2 else errno.ENOSPC
                ended = bench.run(bench.jobs[name], prepare=failing(bench, number, error))
                found.add(f"{name} ({writes} writes): {ended.words}", bench.faults(name, ended, old, CODES))
            bench.clear()
    return found


def main() -> None:
    if "WRITES_LIBRARY" in os.environ:
        sweep().tell()
        return
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        print(json.dumps({"cases": 0, "wrong": 0, "outcomes": {"left out: no C compiler, or not on Linux": 1}}))
        return
    with tempfile.TemporaryDirectory() as scratch:
        library = f"{scratch}/failing_writes.so"
        subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, str(SOURCE), "-ldl"], check=True)
        environment = os.environ | {"LD_PRELOAD": library, "WRITES_LIBRARY": library}
        sys.exit(subprocess.run([sys.executable, __file__, str(COUNT)], env=environment).returncode)


if __name__ == "__main__":
    main()
