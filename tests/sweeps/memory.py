"""Each job with less and less memory: it says that memory is missing, or the system ends it; nothing is half there."""

from __future__ import annotations

import re
import resource
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.tally import Count
from tests.trials import Bench, old_outputs

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 40
JOBS = sys.argv[2:] or ["predict", "export", "fit"]
MOST_MB = 160
CODES = frozenset(("OUT_OF_MEMORY",))


def limited_to(more_mb: float) -> Callable[[], None]:
    """No more memory for data than there is already, and so many megabytes."""

    def prepare() -> None:
        now_kb = int(re.findall(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[0])
        limit = (now_kb << 10) + int(more_mb * (1 << 20))
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    return prepare


def main() -> None:
    found = Count()
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch))
        for name in JOBS:
            bench.learn(name)
            count = COUNT if name != "export" else COUNT // 3
            for number, more_mb in enumerate(np.geomspace(1, MOST_MB, count).tolist()):
                old = old_outputs(bench, name, there=bool(number % 2))
                ended = bench.run(bench.jobs[name], prepare=limited_to(more_mb))
                found.add(f"{name}: {ended.words}", bench.faults(name, ended, old, CODES))
            bench.clear()
    found.tell()


if __name__ == "__main__":
    main()
