"""Opens model packages as the engine does, in a process of its own, and tells what came of each.

Reads lines `PATH` from stdin; answers each with a line of JSON `{"outcome", "seconds", "harm"}` on stdout. `harm` lists
what a model package must never cause: a program, a connection, a pickle, a file read or written elsewhere.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

HARMFUL = (
    "socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.startfile", "pty.",
    "pickle.find_class", "marshal.loads", "code.__new__", "ctypes.dlopen", "webbrowser.", "urllib.", "ftplib.",
    "smtplib.", "shutil.", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link", "os.chmod", "os.mkdir",
)  # fmt: skip
# Reading the engine's own modules is not what this is about.
MODULES = ("marshal.loads", "code.__new__", "ctypes.dlopen")
MEMORY_BYTES = 6 << 30
SLOW_S = 20.0


class Watch:
    """An audit hook that notes what a package must not cause, while it is `on`."""

    def __init__(self, readable: list[Path], writable: list[Path]) -> None:
        self.on = False
        self.harm: list[str] = []
        self.readable = [str(path.resolve()) for path in (*readable, *writable)]
        self.writable = [str(path.resolve()) for path in writable]
        sys.addaudithook(self.heard)

    def heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open" and isinstance(arguments[0], str | bytes):
            self.opened(os.fsdecode(arguments[0]), arguments[1], arguments[2])
        elif event.startswith(HARMFUL) and not (event in MODULES and self.importing()):
            self.harm.append(f"{event} {str(arguments)[:120]}")

    def opened(self, name: str, mode: Any, flags: int) -> None:
        path = os.path.realpath(name)
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or any(
            letter in str(mode or "") for letter in "wax+"
        )
        allowed = self.writable if writes else self.readable
        if not any(path == folder or path.startswith(folder + os.sep) for folder in allowed):
            self.harm.append(f"open {name} {mode}")

    def importing(self) -> bool:
        """Whether the import system is at work, on files of the engine's environment."""
        frame: Any = sys._getframe(2)
        while frame is not None:
            if frame.f_code.co_filename.startswith("<frozen importlib"):
                return True
            frame = frame.f_back
        return False


def engine_folders() -> list[Path]:
    """Where the engine, its packages and what they ask of the system are."""
    import geopeft

    engine = Path(geopeft.__file__).resolve().parents[2]
    system = [Path(name) for name in ("/proc", "/sys/fs/cgroup", "/sys/devices", "/dev/null", "/usr/lib", "/usr/share")]
    paths = [Path(name) for name in os.environ.get("PYTHONPATH", "").split(os.pathsep) if name]
    return [
        *paths,
        Path(sys.prefix),
        Path(sys.base_prefix) / "lib",
        engine / "engine" / "geopeft",
        engine / "resources",
        *system,
    ]


def limit_memory() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def use(path: Path) -> str:
    """What comes of a package that is looked at and put to work on a small chip: `refused CODE`, or the result."""
    import numpy as np
    from geopeft import package
    from geopeft.errors import GeopeftError
    from geopeft.events import Reporter
    from geopeft.runtime import Runtime

    try:
        package.read_manifest(path)
        runtime = Runtime.open(path, "cpu", "", Reporter())
        bands = len(runtime.manifest.spec.bands)
        values = np.random.default_rng(0).integers(1, 3000, (1, bands, 24, 20)).astype(np.float32)
        found = runtime.probabilities(values, np.ones((1, 24, 20), bool))
    except GeopeftError as error:
        whole = error.message and error.hint and "\n" not in error.message and "Traceback" not in str(error)
        return f"refused {error.code}" if whole else f"wrong: no sentence ({error.code})"
    except MemoryError:
        return "refused OUT_OF_MEMORY"
    except Exception as error:
        if "not enough memory" in str(error) or "alloc" in str(error):
            return "refused OUT_OF_MEMORY"
        return f"wrong: {type(error).__name__}: {str(error)[:200]}"
    fair = bool(np.isfinite(found).all() and found.min() >= -1e-6 and abs(found.sum(1) - 1).max() < 1e-3)
    return f"result {np.round(found, 4).tobytes().__hash__() & 0xFFFFFFFF:08x}" if fair else "wrong: no probabilities"


def good_packages(folder: Path) -> list[bytes]:
    """Writes two packages: a fully tuned random network with a forest, and the model in the box with LoRA."""
    import numpy as np
    import torch
    from geopeft import package
    from geopeft.forest import Pixels, fit_classical
    from geopeft.models import build
    from geopeft.models.spec import InputBand, ModelSpec
    from geopeft.models.texture import Texture, describe_texture

    bands = (InputBand(name="red", common="red", mean=1500, std=900), InputBand(name="nir", common="nir", std=1200))
    texture = describe_texture(bands, 10)
    made = Texture(texture, bands, torch.eye(2))
    rng = np.random.default_rng(0)
    truth = rng.integers(2, size=200)
    seen = (rng.normal(size=(200, made.count)) + truth[:, None]).astype(np.float32)
    forest = fit_classical(Pixels(seen, seen[:, :1], truth, np.ones(200), np.arange(200) // 10), 2, 2, seed=0)
    found = []
    for name, backbone, adapter in (("full", "scratch_unet", "full"), ("lora", "geopeft_small", "lora")):
        torch.manual_seed(0)
        spec = ModelSpec(backbone=backbone, adapter=adapter, decoder="unet", bands=bands, num_classes=2, gsd_m=10,
                         rank=4, chip_size_px=64)  # fmt: skip
        model = build(spec)
        weights = {name: tensor.numpy() for name, tensor in model.trainable_state().items()}
        base = package.BaseWeights(backbone=backbone, licence="none", sha256=model.base_weights.sha256)
        manifest = package.Manifest(
            engine_version="0.1.0", created="2026-01-01T00:00:00+00:00", name="m", spec=spec, base_weights=base,
            classes=tuple(package.ClassInfo(value=i, name=n, color="#0000ff", label=n) for i, n in enumerate("ab", 1)),
            radiometry="unknown", dtype="uint16", metrics={"miou": {"value": 0.5}},
        )  # fmt: skip
        path, start = folder / f"{name}.geopeft", {"head.weight": np.ones((2, 2), np.float16)}
        if adapter == "full":
            weights["classical.projection"] = np.eye(2, dtype=np.float32)
            manifest = manifest.model_copy(update={"classical": texture, "blend": package.Blend(network=0.5)})
            package.write(path, manifest, weights, forest, start)
        else:
            package.write(path, manifest, weights)
        found.append(path.read_bytes())
    return found


class Judge:
    """A process that opens packages; a new one is started where one has died."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, name: str, body: bytes) -> dict[str, object]:
        path = self.folder / f"{name}.geopeft"
        path.write_bytes(body)
        process = self._running()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"{path}\n")
        process.stdin.flush()
        # The first package waits for torch.
        line = process.stdout.readline() if select.select([process.stdout], [], [], 120)[0] else ""
        path.unlink()
        if line:
            answer: dict[str, object] = json.loads(line)
            return answer
        process.kill()
        code = process.wait()
        self._process = None
        return {"outcome": f"wrong: the process ended ({code})", "seconds": 0.0, "harm": []}

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            command = [sys.executable, str(Path(__file__).resolve()), str(self.folder)]
            environment = {**os.environ, "GEOPEFT_HOME": str(self.folder / "home"), "GEOPEFT_OFFLINE": "1"}
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
            )
        return self._process

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def sweep(judge: Judge, bodies: list[bytes], seeds: range) -> tuple[Counter[str], list[str]]:
    """How often each outcome, and what went wrong, of packages made from seeds."""
    from tests import strange_packages

    own = [judge("own", body)["outcome"] for body in bodies]
    outcomes: Counter[str] = Counter()
    wrong = [f"a good package: {outcome}" for outcome in own if not str(outcome).startswith("result")]
    for seed in seeds:
        which = seed % len(bodies)
        kind, data = strange_packages.strange(bodies[which], seed)
        answer = judge("strange", data)
        outcome = str(answer["outcome"])
        if outcome.startswith("wrong") or answer["harm"] or float(str(answer["seconds"])) > SLOW_S:
            wrong.append(f"seed {seed} ({kind}): {answer}")
        same = "the same map" if outcome == own[which] else "another map"
        outcome = same if outcome.startswith("result") else outcome.partition(":")[0]
        outcomes[outcome] += 1
    return outcomes, wrong


def main() -> None:
    from geopeft.models.backbones import BACKBONES

    folder = Path(sys.argv[1])
    limit_memory()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    os.chdir(folder)
    for path in folder.glob("*.geopeft"):
        use(path)
    # What the engine loads only where a name is not in its tables.
    with contextlib.suppress(Exception):
        BACKBONES["no such backbone"]
    watch = Watch(engine_folders(), [folder])
    for line in sys.stdin:
        started = time.monotonic()
        watch.harm = []
        watch.on = True
        outcome = use(Path(line.strip()))
        watch.on = False
        answer = {"outcome": outcome, "seconds": round(time.monotonic() - started, 3), "harm": watch.harm[:5]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
