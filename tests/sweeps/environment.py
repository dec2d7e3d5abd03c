"""100 random files of a copy of the engine's environment deleted, emptied, zeroed or changed: the look before each run
must find and name each of them, and nothing in a whole environment."""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from geopeft_qgis import engine_environment, engine_files

COUNT = int(sys.argv[1]) if len(sys.argv) > 1 else 100
FAULTS = ("deleted", "emptied", "zeroed", "one byte changed")


def main() -> None:
    real = Path(sys.prefix)
    outcomes: Counter[str] = Counter()
    wrong = 0
    with tempfile.TemporaryDirectory(dir=real.parent.parent, prefix="sweep-") as scratch:
        copy = Path(scratch) / "engine" / real.name
        # Hard links, and each file that is spoilt is put in place of its link: the real one stays as it is.
        shutil.copytree(real, copy, symlinks=True, copy_function=os.link)
        stamp = json.loads((copy / engine_environment.STAMP).read_text(encoding="utf-8"))
        stamp |= {
            "records": engine_environment.records_hash(copy),
            engine_files.STAMPED: engine_files.write_record(copy),
        }
        replace(copy / engine_environment.STAMP, json.dumps(stamp).encode())
        files = sorted(path for path in copy.rglob("*") if path.is_file() and not path.is_symlink())
        files = [path for path in files if path.suffix != ".pyc" and path.stat().st_size > 0]
        rng = random.Random(0)
        started = time.process_time()
        alarms = engine_files.differing(copy)
        print(f"a look at {len(files)} files: {time.process_time() - started:.2f} s of the processor", file=sys.stderr)
        outcomes["whole, and found to be so"] += not alarms
        wrong += bool(alarms)
        for _ in range(COUNT):
            path, fault = rng.choice(files), rng.choice(FAULTS)
            found = faulty(copy, path, fault, rng)
            listed = "site-packages" in path.parts or path.name == "pyvenv.cfg"
            listed = listed and not path.as_posix().endswith(engine_environment.MAY_CHANGE)
            # Scripts that start a shell, and what only documents the environment, are no part of a run.
            wrong += listed and not found
            if listed and not found:
                print(f"not found: {path.relative_to(copy)} {fault}", file=sys.stderr)
            outcomes["found" if found else "missed" if listed else "not part of a run"] += 1
    print(json.dumps({"cases": COUNT, "wrong": int(wrong), "outcomes": dict(outcomes)}))


def faulty(copy: Path, path: Path, fault: str, rng: random.Random) -> bool:
    """Whether a look finds this file, and only it, to be damaged; afterwards the environment is whole again."""
    kept = path.with_name(f"{path.name}.kept")
    os.rename(path, kept)
    try:
        body = kept.read_bytes()
        at = rng.randrange(len(body))
        if fault != "deleted":
            changed = {"emptied": b"", "zeroed": bytes(len(body))}
            replace(path, changed.get(fault, body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]))
        return engine_files.differing(copy) == [path.relative_to(copy).as_posix()]
    finally:
        os.replace(kept, path)


def replace(path: Path, body: bytes) -> None:
    path.unlink(missing_ok=True)
    path.write_bytes(body)


if __name__ == "__main__":
    main()
