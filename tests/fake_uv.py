"""Stands in for uv, pip and the engine's Python in tests of the installer.

`lay_source` makes an engine's folder with a lock of one package, `lay_uv` puts this file where the installer finds its
uv, `lay_python` makes a Python whose pip fetches this file as uv's wheel, from beside that folder. Each call is
recorded, with its environment, as a line of calls.jsonl in the folder that GEOPEFT_FAKE_CALLS names.
GEOPEFT_FAKE_UV is the mode of `uv pip sync`: ok | slow | hang | full | denied | offline | certificate | killed |
mismatch | proxy | parts (one file after the other, and for ever once nobody waits for it) | no-uv (pip fails).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
import time
import zipfile
from pathlib import Path

VERSION = "9.9.9"
PARTS = 20
WHEEL = f"uv-{VERSION}-py3-none-any.whl"
FAILURES = {
    "full": "error: failed to write to file torch.so: No space left on device (os error 28)",
    "denied": "error: failed to create directory: Permission denied (os error 13)",
    "offline": "error: Failed to fetch: a package\n  Caused by: dns error: failed to lookup address information",
    "mismatch": "error: Hash mismatch for `one==1.0`",
    "proxy": "error: Failed to fetch through http://maria:secret@proxy:3128: 407 Proxy Authentication Required",
}
UNKNOWN_ISSUER = "error: Failed to fetch\n  Caused by: invalid peer certificate: UnknownIssuer"
PROBE = {"engine": "0.0.0", "protocol": 1, "missing": [], "devices": [], "auto": "cpu", "cpus": 8, "gpu_reason": ""}


def lay_source(folder: Path, system_hash: str = "0" * 64) -> Path:
    """An engine's folder: a package, a lock, and the pin of uv's wheel with its hash."""
    (folder / "geopeft").mkdir(parents=True, exist_ok=True)
    (folder / "geopeft" / "__init__.py").touch()
    (folder / "requirements.lock").write_text(f"one==1.0 \\\n    --hash=sha256:{system_hash}\n", encoding="utf-8")
    wheel = lay_wheel(folder.parent / "wheels-of-uv")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    (folder / "uv.txt").write_text(f"uv=={VERSION} \\\n    --hash=sha256:{digest}\n", encoding="utf-8")
    return folder


def lay_wheel(folder: Path) -> Path:
    """A wheel that holds this file as uv; the same bytes each time."""
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / WHEEL
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(zipfile.ZipInfo(f"uv-{VERSION}.data/scripts/uv"), script())
    return wheel


def lay_uv(home: Path) -> Path:
    """This file as the uv that an installer in `home` has fetched."""
    return lay_script(home / "uv" / VERSION / "uv")


def lay_python(path: Path) -> Path:
    """A Python with pip."""
    return lay_script(path)


def script() -> str:
    """This file as a program."""
    return f"#!{sys.executable} -I\n" + Path(__file__).read_text(encoding="utf-8")


def lay_script(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script(), encoding="utf-8")
    path.chmod(0o700)
    return path


def calls(folder: Path) -> list[dict[str, object]]:
    """What was called so far, oldest first: `argv` and `env`."""
    path = folder / "calls.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def main(argv: list[str]) -> int:
    folder = os.environ.get("GEOPEFT_FAKE_CALLS")
    if folder:
        with open(os.path.join(folder, "calls.jsonl"), "a", encoding="utf-8") as file:
            file.write(json.dumps({"argv": argv, "env": dict(os.environ)}) + "\n")
    words = argv[1:]
    if Path(argv[0]).name.startswith("python"):
        return as_python(words)
    if words[:2] == ["cache", "dir"]:
        print(os.environ.get("UV_CACHE_DIR", "/nowhere"))
    elif words[0] == "venv":
        lay_script(Path(words[-1]) / "bin" / "python")
        (Path(words[-1]) / "lib" / "python3.11" / "site-packages").mkdir(parents=True)
        (Path(words[-1]) / "pyvenv.cfg").write_text("home = /usr/bin\n", encoding="utf-8")
    elif words[:2] == ["pip", "sync"]:
        return sync(Path(words[words.index("--python") + 1]).parents[1])
    return 0


def as_python(words: list[str]) -> int:
    if "download" in words:
        if os.environ.get("GEOPEFT_FAKE_UV") == "no-uv":
            sys.exit("ERROR: Could not find a version that satisfies the requirement uv==9.9.9")
        wheel = Path(os.environ["GEOPEFT_FAKE_CALLS"]) / "wheels-of-uv" / WHEEL
        shutil.copy(wheel, words[words.index("--dest") + 1])
    elif "probe" in words:
        print(json.dumps({**PROBE, **json.loads(os.environ.get("GEOPEFT_FAKE_PROBE", "{}"))}))
    elif "-c" in words and "platform" in words[words.index("-c") + 1]:
        print(json.dumps({"version": [3, 11], "executable": sys.argv[0], "fits": True}))
    return 0


def sync(environment: Path) -> int:
    mode = os.environ.get("GEOPEFT_FAKE_UV", "ok")
    if mode in FAILURES:
        sys.exit(FAILURES[mode])
    if mode == "certificate" and not os.environ.get("SSL_CERT_FILE"):
        sys.exit(UNKNOWN_ISSUER)
    print("Resolved 1 package in 1ms\nDownloading one (10.0MiB)", flush=True)
    if mode == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "slow":
        arriving = Path(os.environ["UV_CACHE_DIR"]) / ".tmpABC" / "one.so"
        arriving.parent.mkdir(parents=True, exist_ok=True)
        for step in range(600):
            arriving.write_bytes(b"\0" * min(step, 150) * 100_000)
            time.sleep(0.1)
    if mode == "hang":
        time.sleep(600)
    record = environment / "lib" / "python3.11" / "site-packages" / "one-1.0.dist-info" / "RECORD"
    record.parent.mkdir()
    names = [f"part{number}.py" for number in range(PARTS)] if mode == "parts" else []
    parent = os.getppid()
    for name in names:
        (record.parents[1] / name).write_bytes(b"1 + 2\n")
        time.sleep(0.02 if os.getppid() == parent else 600)
    (record.parents[1] / "one.py").write_bytes(b"1 + 1\n")
    record.write_text("".join(f"{name},,6\n" for name in ("one.py", *names)), encoding="utf-8")
    print(" Downloaded one\nPrepared 1 package in 1ms\nInstalled 1 package in 1ms\n + one==1.0", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
