#!/usr/bin/env python3
"""The project's one tool (standard library only): python3 build.py --help."""

import argparse
import ast
import contextlib
import json
import operator
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info < (3, 11):  # noqa: UP036, an older Python shall get a sentence
    sys.exit(f"build.py needs Python 3.11 or newer, and this is {sys.version.split()[0]}: run it with a newer one.")

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))
sys.dont_write_bytecode = True

from geopeft_qgis import engine_complaints, engine_kit, engine_steps, engine_uv  # noqa: E402, path first
from geopeft_qgis import engine_install as install  # noqa: E402
from tests import error_codes, faults, language_files, qgis_versions, store, visible_text  # noqa: E402

BUILD = ROOT / "build"
CONFIG = ROOT / "engine" / "pyproject.toml"
SCHEMA = ROOT / "resources" / "schema" / "job.json"
TABLES = SCHEMA.with_name("models.json")
LANGUAGES = ROOT / "resources" / "i18n"
QT6_LOCK = ROOT / "tests" / "qt6" / "requirements.lock"
# What the plugin's folder holds, in a zip and in a profile: the entries of geopeft_qgis/ and these beside them.
PLUGIN_PARTS = ("metadata.txt", "LICENSE", ".bandit", ".flake8", "resources", "engine")
NOT_SHIPPED = re.compile(
    r"(^|/)(__pycache__|tests|build|dist|results|[^/]*\.egg-info|\.(?!(bandit|flake8)$)[^/]*)(/|$)|\.(pyc|aux\.xml|gpkg-\w+)$"
)
MAX_FILE_BYTES = 8_000_000


def say(text: str) -> None:
    """For people; stdout belongs to what a command answers."""
    print(text, file=sys.stderr, flush=True)


class Failure(Exception):
    """A command could not do its work; the text says why and what to do."""


@contextlib.contextmanager
def stage(name: str, seconds: dict[str, float]) -> Iterator[None]:
    """Says what is being done, and how long it took."""
    say(f"== {name}")
    start = time.monotonic()
    try:
        yield
    finally:
        seconds[name] = time.monotonic() - start
        say(f"== {name}: {seconds[name]:.1f} s")


def engine_python() -> Path:
    return install.ensure(None, say, choices=install.Choices(may_use_apt=True))


def run(command: Sequence[object], **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Runs a command in the repository's root; its output goes to stderr unless it is captured."""
    options = {"cwd": ROOT, "env": clean_environment(), "stdin": subprocess.DEVNULL, "stdout": sys.stderr, **options}
    return subprocess.run([str(part) for part in command], check=False, **options)


def clean_environment(**more: object) -> dict[str, str]:
    """This process's variables without those that change what a Python finds."""
    dropped = ("PYTHON", "VIRTUAL_ENV", "CONDA", "QT_PLUGIN", "GDAL_", "PROJ_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return {**kept, **{name: str(value) for name, value in more.items()}}


def tools(python: Path) -> Path:
    return install.install_tools(python, ROOT / "tests" / "requirements.lock", say, may_use_apt=True)


# engine, lock, schema


def command_engine(arguments: argparse.Namespace) -> int:
    choices = install.Choices(wheels=arguments.wheels, may_use_apt=True)
    print(install.ensure(None, say, repair=arguments.repair, choices=choices))
    return 0


def command_lock(arguments: argparse.Namespace) -> int:
    """Newest releases, for all platforms; what is pinned already stays unless --upgrade is given."""
    uv = install.uv_program(say, may_use_apt=True)
    options = ["pip", "compile", "--universal", "--python-version", "3.11", "--generate-hashes", "--no-header"]
    options += ["--no-annotate", "--quiet"]
    options += ["--upgrade"] if arguments.upgrade else []
    engine_lock, tests_lock = ROOT / "engine" / "requirements.lock", ROOT / "tests" / "requirements.lock"
    jobs: dict[Path, list[object]] = {
        engine_lock: [CONFIG, "--extra", "gpu"],
        # The tests must see the engine's own versions where both need a package.
        tests_lock: [ROOT / "tests" / "requirements.in", "-c", engine_lock],
        QT6_LOCK: [QT6_LOCK.with_suffix(".in"), "-c", tests_lock],
    }
    for lock, sources in jobs.items():
        environment = {k: v for k, v in clean_environment().items() if not k.startswith("UV_")}
        if run([uv, *options, *sources, "-o", lock], env=environment).returncode:
            raise Failure("The lock could not be made: see the lines above.")
        if "://" in lock.read_text(encoding="utf-8"):
            raise Failure(f"{lock} holds an address.")
        say(f"{lock.relative_to(ROOT)}: written")
    return 0


def current_schema() -> str:
    """The schema that the engine's job types give now."""
    answer = run([engine_python(), "-I", "-m", "geopeft", "schema"], stdout=subprocess.PIPE)
    if answer.returncode:
        raise Failure("The engine could not give its schema: see the lines above.")
    return json.dumps(json.loads(answer.stdout), indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def current_tables() -> str:
    """What the plugin offers of the engine's tables: backbones, adapters and decoders."""
    answer = run([engine_python(), "-I", "-m", "geopeft", "models"], stdout=subprocess.PIPE)
    if answer.returncode:
        raise Failure("The engine could not list its models: see the lines above.")
    found = json.loads(answer.stdout)
    kept = ("name", "title", "licence", "restricted", "terms", "adapters")
    tables = {kind: [{k: row[k] for k in kept if k in row} for row in found[kind]] for kind in sorted(found)}
    return json.dumps(tables, indent=1, ensure_ascii=False) + "\n"


def made_from_code() -> dict[Path, str]:
    """The files that are made from the engine's code, and what they must hold."""
    return {SCHEMA: current_schema(), TABLES: current_tables(), error_codes.TABLE: error_codes.table()}


def command_schema(arguments: argparse.Namespace) -> int:
    SCHEMA.parent.mkdir(parents=True, exist_ok=True)
    for path, text in made_from_code().items():
        path.write_text(text, encoding="utf-8", newline="\n")
        say(f"{path.relative_to(ROOT)}: written")
    return 0


# strings


def command_strings(arguments: argparse.Namespace) -> int:
    """The language files get the texts that the code has now; new ones are null until someone translates them."""
    found = visible_text.read(ROOT / "geopeft_qgis")
    for line in [*found.faults, *language_files.write(LANGUAGES, found.texts)]:
        say(line)
    return 0


def everything_is_translated() -> bool:
    found = visible_text.read(ROOT / "geopeft_qgis")
    faults = [*found.faults, *language_files.file_faults(LANGUAGES, found.texts)]
    for fault in faults[:50]:
        say(fault)
    if len(faults) > 50:
        say(f"and {len(faults) - 50} more")
    return not faults


# link, zip


def plugin_parts() -> dict[str, Path]:
    """Name in the plugin's folder -> file or folder here; the one list behind link and zip."""
    own = [entry for entry in sorted((ROOT / "geopeft_qgis").iterdir()) if not NOT_SHIPPED.search(entry.name)]
    return {entry.name: entry for entry in [*own, *(ROOT / name for name in PLUGIN_PARTS)]}


def shipped_files() -> dict[str, Path]:
    """Path in the zip -> file here."""
    files: dict[str, Path] = {}
    for name, part in plugin_parts().items():
        for path in [part] if part.is_file() else sorted(part.rglob("*")):
            inside = f"{name}/{path.relative_to(part).as_posix()}" if part.is_dir() else name
            if path.is_file() and not NOT_SHIPPED.search(inside):
                files[f"geopeft_qgis/{inside}"] = path
    return dict(sorted(files.items()))


def default_profiles() -> list[Path]:
    """The default profiles of QGIS 3 and 4 that exist; QGIS 3's where none does."""
    if os.name == "nt":
        data = Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming")
    elif sys.platform == "darwin":
        data = Path.home() / "Library" / "Application Support"
    else:
        data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    profiles = [data / "QGIS" / version / "profiles" / "default" for version in ("QGIS3", "QGIS4")]
    return [profile for profile in profiles if profile.is_dir()] or profiles[:1]


def command_link(arguments: argparse.Namespace) -> int:
    for profile in [arguments.profile] if arguments.profile else default_profiles():
        folder = profile.resolve() / "python" / "plugins" / "geopeft_qgis"
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            if not old.is_symlink() and os.name != "nt" and old.name != "__pycache__":
                raise Failure(f"{old} is no link: GeoPEFT is installed there. Uninstall it in QGIS, then try again.")
            shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink()
        for name, part in plugin_parts().items():
            if os.name != "nt":
                (folder / name).symlink_to(part)
            elif part.is_dir():
                shutil.copytree(part, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy2(part, folder / name)
        print(folder)
    say("Switch GeoPEFT on in QGIS: Plugins > Manage and Install Plugins > Installed.")
    return 0


def command_zip(arguments: argparse.Namespace) -> int:
    print(make_zip(arguments.out))
    return 0


def make_zip(target: Path) -> Path:
    """The plugin as one file; the same tree gives the same bytes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_suffix(".new")
    files = shipped_files()
    with zipfile.ZipFile(fresh, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in files.items():
            entry = zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0))
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o100644 << 16
            archive.writestr(entry, path.read_bytes())
    with zipfile.ZipFile(fresh) as archive:
        if archive.testzip() or archive.namelist() != list(files):
            raise Failure(f"{fresh} does not read back as it was written: is the disk full?")
    size = fresh.stat().st_size
    if size > store.MAX_BYTES:
        raise Failure(f"The plugin would have {size / 1e6:.1f} MB, and the store takes {store.MAX_BYTES / 1e6:.0f} MB.")
    os.replace(fresh, target)
    say(f"{target}: {size / 1e6:.1f} MB, {len(files)} files")
    return target


# kit

# What the wheels for each system are tagged with; the oldest system that the locked packages run on.
KIT_TAGS = {
    "linux": ("x86_64", [f"manylinux_2_{n}_x86_64" for n in range(5, 29)] + ["manylinux2014_x86_64"]),
    "windows": ("x86_64", ["win_amd64"]),
    "macos": ("arm64", ["macosx_15_0_arm64"]),
}
# What the markers in a lock ask for.
KIT_MARKERS = {
    "linux": {"sys_platform": "linux", "platform_machine": "x86_64"},
    "windows": {"sys_platform": "win32", "platform_machine": "AMD64"},
    "macos": {"sys_platform": "darwin", "platform_machine": "arm64"},
}
KIT_README = """GeoPEFT {version}: the engine for a machine without a network
System: {system} ({machine}), for {variant}; Python {pythons} (64 bit) must be on that machine: none is in the kit.

1. Copy this whole folder to that machine, and install the GeoPEFT plugin {version} there.
2. In QGIS, open the GeoPEFT panel, choose "Install from an offline kit ..." and this folder.
   Without QGIS: python3 build.py engine --wheels THIS_FOLDER

Every file is compared with its sha256 in kit.json before anything is installed.
"""


def command_kit(arguments: argparse.Namespace) -> int:
    """A folder from which the engine can be set up without a network."""
    system, variant = arguments.platform, arguments.variant
    here = system == engine_kit.this_system()
    pythons = arguments.python.split(",") if arguments.python else [engine_uv.base_python(None)[1] if here else "3.12"]
    machine, tags = KIT_TAGS[system]
    out = (arguments.out or BUILD / f"kit-{system}-{variant}").resolve()
    if out.exists() and any(out.iterdir()) and not engine_kit.is_kit(out):
        raise Failure(f"{out} is not empty and no kit: choose another folder with --out.")
    fresh = out.with_name(f"{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    wheels = fresh / engine_kit.WHEELS
    wheels.mkdir(parents=True)
    for minor in pythons:
        download_wheels(kit_lock(system, variant, minor), wheels, tags, minor)
    download_wheels((ROOT / "engine" / "uv.txt").read_text(encoding="utf-8"), wheels, tags, pythons[0])
    if arguments.weights:
        shutil.copytree(arguments.weights, fresh / engine_kit.WEIGHTS)
    version = re.findall(r"^version=(.+)$", (ROOT / "metadata.txt").read_text(encoding="utf-8"), re.MULTILINE)[0]
    facts = {"system": system, "machine": machine, "variant": variant, "version": version}
    readme = KIT_README.format(**facts, pythons=" or ".join(pythons))
    (fresh / "README.txt").write_text(readme, encoding="utf-8", newline="\n")
    facts["lock"] = install.lock_hash(ROOT / "engine")
    engine_kit.write_manifest(fresh, facts, pythons, say)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(fresh, out)
    print(out)
    return 0


def kit_lock(system: str, variant: str, minor: str) -> str:
    """The lock's packages for another system and Python, without markers: pip would ask them of this machine."""
    facts = {**KIT_MARKERS[system], "python_full_version": f"{minor}.0"}
    kept = []
    for _, block in install.lock_blocks(install.lock_text(ROOT / "engine", variant)):
        requirement, backslash, hashes = block.partition(" \\\n")
        name, _, marker = requirement.partition(";")
        if not marker or marker_holds(ast.parse(marker.strip(), mode="eval").body, facts):
            kept.append(f"{name.strip()}{backslash}{hashes}")
    return "\n".join(kept) + "\n"


def marker_holds(node: ast.expr, facts: Mapping[str, str]) -> bool:
    """Whether a marker such as `sys_platform == 'linux' and python_full_version < '3.12'` is true for `facts`."""
    if isinstance(node, ast.BoolOp):
        every = all if isinstance(node.op, ast.And) else any
        return every(marker_holds(part, facts) for part in node.values)
    if not (isinstance(node, ast.Compare) and isinstance(node.left, ast.Name)):
        raise Failure(f"The lock has a marker that is not understood: {ast.unparse(node)}")
    sides: list[Any] = [facts[node.left.id], ast.literal_eval(node.comparators[0])]
    if node.left.id.endswith("version"):
        sides = [tuple(int(part) for part in side.split(".")[:2]) for side in sides]
    operators = {ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le}
    operators |= {ast.Gt: operator.gt, ast.GtE: operator.ge}
    return bool(operators[type(node.ops[0])](*sides))


def download_wheels(lock: str, wheels: Path, tags: Sequence[str], minor: str) -> None:
    """The wheels of a lock for a system and a Python, each checked by its hash."""
    steps = engine_steps.Steps(say, lambda: False)
    with tempfile.TemporaryDirectory() as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(lock, encoding="utf-8")
        command = [engine_uv.python_with_pip(steps, Path(scratch), True), "-E", "-m", "pip", "download", "--no-deps"]
        command += ["--only-binary", ":all:", "--require-hashes", "--progress-bar", "off", "--implementation", "cp"]
        command += ["--python-version", minor, "--dest", str(wheels), "-r", str(requirements)]
        abis = [f"cp{minor.replace('.', '')}", "abi3", "none"]
        command += [
            part for option, values in (("--platform", tags), ("--abi", abis)) for v in values for part in (option, v)
        ]
        try:
            with steps.step(f"Fetching the wheels for Python {minor}"):
                steps.run(
                    command, Path(scratch), pip=True, watch=engine_uv.Growth(wheels), more=engine_uv.NO_CONSTRAINTS
                )
        except engine_steps.CommandFailed as failure:
            raise Failure(f"The wheels could not be fetched: {engine_complaints.reason(str(failure))}") from failure


# check


def command_check(arguments: argparse.Namespace) -> int:
    return 1 if check({}) else 0


def check(seconds: dict[str, float]) -> list[str]:
    """Style, types, the schema, and what the plugin store's scanner would say; names what failed."""
    python = engine_python()
    folder = tools(python)
    environment = clean_environment(PYTHONPATH=folder, PYTHONDONTWRITEBYTECODE=1)

    def tool(*command: object, **options: object) -> bool:
        return run([python, "-m", *command], env=environment, **options).returncode == 0

    code = ["engine/geopeft", "geopeft_qgis", "tests", "build.py"]
    mypy = ("mypy", "--config-file", CONFIG, "--cache-dir", BUILD / "mypy")
    checks: dict[str, Callable[[], bool]] = {
        "lint": lambda: tool("ruff", "check", "--config", CONFIG, "--no-cache", *code),
        "format": lambda: tool("ruff", "format", "--check", "--config", CONFIG, "--no-cache", *code),
        "types of engine": lambda: tool(*mypy, "--strict", "engine/geopeft"),
        "types of plugin and tests": lambda: tool(*mypy, "geopeft_qgis", "tests", "build.py"),
        "schema": schema_is_current,
        "languages": everything_is_translated,
        "tree": tree_is_clean,
        "store gate": lambda: passes_store_gate(tool),
        "security of the tree": lambda: is_safe(tool),
        "known holes": lambda: has_no_known_holes(),
        "Qt 6": lambda: runs_on_qt_6(python),
    }
    failed = []
    for name, passes in checks.items():
        with stage(f"check: {name}", seconds):
            failed += [] if passes() else [name]
    say("check: all passed" if not failed else f"check: FAILED: {', '.join(failed)}")
    return failed


def schema_is_current() -> bool:
    """Whether the files that `build.py schema` writes are what the code gives now."""
    stale = [
        path
        for path, wanted in made_from_code().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != wanted
    ]
    for path in stale:
        say(f"{path.relative_to(ROOT)} is not what the code gives: run python3 build.py schema")
    return not stale


def tree_files() -> list[Path]:
    """Files that are, or would be, in the repository."""
    listed = run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], stdout=subprocess.PIPE)
    if listed.returncode:
        return list(shipped_files().values())
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def tree_is_clean() -> bool:
    """No path of one machine, no package index, no huge file; locks hold no address at all."""
    one_machine = re.compile(
        rb"(?<![\w.])/(work|root|home/\w+)/\w|\bpy(pi|thonhosted)\.org\b|(extra-)?index[-_]url\s*="
    )
    complaints = []
    for path in tree_files():
        content = path.read_bytes()
        name = path.relative_to(ROOT).as_posix()
        if len(content) > MAX_FILE_BYTES:
            complaints.append(f"{name}: {len(content) / 1e6:.1f} MB, at most {MAX_FILE_BYTES / 1e6:.0f}")
        if b"\0" in content[:8000]:
            continue
        found = one_machine.search(content) or (name.endswith(".lock") and re.search(rb"\w+://", content))
        if found:
            line = content.count(b"\n", 0, found.start()) + 1
            complaints.append(f"{name}:{line}: {found[0].decode('utf-8', 'replace')} must not be in the repository")
    for complaint in complaints:
        say(complaint)
    return not complaints


def passes_store_gate(tool: Callable[..., bool]) -> bool:
    """Any finding of bandit (less the rules named in .bandit) or detect-secrets blocks a version in the store.

    It also shows what flake8 says (with the .flake8 of the zip), and looks at the members and the manifest.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = make_zip(Path(scratch) / "plugin.zip")
        faults = store.faults(file)
        with zipfile.ZipFile(file) as archive:
            archive.extractall(scratch)
        plugin = Path(scratch) / "geopeft_qgis"
        safe = tool("bandit", "--quiet", "--recursive", "--ini", plugin / ".bandit", plugin)
        tidy = tool("flake8", ".", cwd=plugin)
        found = Path(scratch) / "secrets.json"
        with found.open("wb") as listing:
            scan = ("detect_secrets", "scan", "--all-files", "--exclude-files", r"metadata\.txt")
            scanned = tool(*scan, cwd=plugin, stdout=listing)
        secrets = json.loads(found.read_bytes())["results"] if scanned else {"detect-secrets": "did not run"}
    for fault in [*faults, *(f"possible secret in {name}: {findings}" for name, findings in secrets.items())]:
        say(fault)
    return safe and tidy and not secrets and not faults


def is_safe(tool: Callable[..., bool]) -> bool:
    """bandit and detect-secrets on the whole tree: what the store does not see runs as well.

    Tests start processes and assert; that is what they are for.
    """
    ini = ("--ini", ROOT / ".bandit")
    safe = tool("bandit", "--quiet", "--recursive", *ini, "engine/geopeft", "geopeft_qgis")
    # It reads the reports that it has just had written.
    safe = tool("bandit", "--quiet", "--skip", "B404,B603,B314,B405", "build.py") and safe
    for_tests = (
        "B314,B405,B101,B105,B106,B108,B301,B310,B311,B403,B404,B603,B605,B606,B607,B102,B103,B110,B112,B202,B324,B614"
    )
    safe = tool("bandit", "--quiet", "--recursive", "--skip", for_tests, "tests") and safe
    with tempfile.TemporaryFile() as listing:
        # Locks are nothing but checksums, language files nothing but words.
        left_out = r"\.lock$|^engine/uv\.txt$|^resources/i18n/|^resources/(sample|results|backbones)/|^build/|^\.git/"
        # The passwords that tests look for in what is shown.
        canaries = r"maria|mar ia|mar%20ia|s3c|secret|canary|token@"
        scanned = tool(
            "detect_secrets", "scan", "--exclude-files", left_out, "--exclude-lines", canaries, stdout=listing
        )
        listing.seek(0)
        secrets = json.loads(listing.read())["results"] if scanned else {"detect-secrets": "did not run"}
    for name, findings in secrets.items():
        say(f"possible secret in {name}: {findings}")
    return safe and not secrets


def has_no_known_holes() -> bool:
    """pip-audit on the locks, with the pinned uv; left out, saying so, where it or its source cannot be reached."""
    uv = install.uv_program(say, may_use_apt=True)
    clean = True
    for lock in (ROOT / "engine" / "requirements.lock", ROOT / "tests" / "requirements.lock"):
        command = [
            uv,
            "tool",
            "run",
            "pip-audit",
            "--requirement",
            lock,
            "--disable-pip",
            "--no-deps",
            "--format",
            "json",
        ]
        options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "timeout": 120}
        try:
            answer = run([*command, "--progress-spinner", "off"], **options)
            found = json.loads(answer.stdout)["dependencies"]
        except (subprocess.TimeoutExpired, ValueError, KeyError):
            say(f"{lock.relative_to(ROOT)}: not looked at, since pip-audit or its list of holes cannot be reached.")
            continue
        if all("skip_reason" in package for package in found):
            say(f"{lock.relative_to(ROOT)}: not looked at, since the index here knows of no holes at all.")
        for package in found:
            for hole in package.get("vulns", ()):
                clean = False
                say(f"{package['name']} {package['version']}: {hole['id']}, mended in {hole.get('fix_versions')}")
    return clean


def runs_on_qt_6(python: Path) -> bool:
    """The windows on real PyQt6, with a stand-in for QGIS; then pyright, which knows every name that Qt 6 has."""
    folder = install.install_tools(python, QT6_LOCK, say, may_use_apt=True)
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (folder, tools(python)))), "QT_QPA_PLATFORM": "offscreen"}
    needs = run([python, "-c", "import PyQt6.QtWidgets"], env=clean_environment(**paths))
    if needs.returncode:
        say("Qt 6 lacks libraries of the system here; on Debian: apt-get install libegl1 libgl1 libxkbcommon0")
        return False
    failed = pytest(Suite("qt6", python, ["tests/qt6"], paths), BUILD / "test-results")
    settings = {"PYRIGHT_PYTHON_GLOBAL_NODE": "0", "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    types = [python, "-m", "pyright", "--project", "tests/qt6", "--pythonpath", python]
    return not run(types, env=clean_environment(**paths, **settings)).returncode and not failed


# test


def command_test(arguments: argparse.Namespace) -> int:
    seconds: dict[str, float] = {}
    results = BUILD / "test-results"
    shutil.rmtree(results, ignore_errors=True)
    results.mkdir(parents=True)
    with stage("engine environment", seconds):
        python = engine_python()
    with stage("test tools", seconds):
        tools(python)
    with stage("QGIS", seconds):
        qgis = qgis_python()
    failed = [] if arguments.no_check else check(seconds)
    chosen = ["-m", "not slow"] if arguments.fast else []
    suites = engine_suites(python, chosen)
    if qgis:
        with stage(f"QGIS {qgis_versions.VERSION}", seconds):
            other = None if arguments.fast else other_qgis(qgis)
        suites += plugin_suites(qgis, python, chosen, other)
    failed += side_by_side(suites, results, seconds)
    if not qgis and os.environ.get("CI"):
        failed.append("plugin tests (QGIS is missing)")
    if qgis and not arguments.fast:
        unreached = sorted(set(error_codes.codes()) - faults.codes(results))
        for code in unreached:
            say(f"No test reaches the error {code}.")
        failed += ["every error is reached by a test"] if unreached else []
    for name, spent in seconds.items():
        say(f"{spent:8.1f} s  {name}")
    say(f"FAILED: {', '.join(failed)}" if failed else "All passed.")
    print("{} passed, {} failed, {} skipped".format(*sum_results(results)), flush=True)
    return 1 if failed else 0


@dataclass(frozen=True)
class Suite:
    """Tests of one process of pytest.

    Args:
        arguments: paths and options of pytest.
        more: environment variables beside this process's.
    """

    name: str
    python: Path
    arguments: Sequence[str]
    more: Mapping[str, object]


def engine_suites(python: Path, chosen: Sequence[str]) -> list[Suite]:
    """All tests of the engine's Python, those of jobs and those of parts: about the same time each."""
    jobs, tests = (sorted(map(str, ROOT.glob(f"tests/{name}test_*.py"))) for name in ("engine/", ""))
    parts = sorted({str(path.parent) for path in ROOT.glob("tests/engine/*/test_*.py")})
    return [
        Suite("engine", python, [*jobs, *chosen], {}),
        Suite("engine-parts", python, [*parts, "tests/contract", *tests, *chosen], {}),
    ]


def plugin_suites(
    qgis: Path, python: Path, chosen: Sequence[str], other: Mapping[str, object] | None = None
) -> list[Suite]:
    """The tests of QGIS's Python, and the quick ones again where another version is there."""
    paths = ["tests/plugin", "tests/contract/test_algorithm_jobs.py"]
    more = {"QT_QPA_PLATFORM": "offscreen", "GEOPEFT_ENGINE_PYTHON": python}
    suites = [Suite("plugin", qgis, [*paths, *chosen], more)]
    if other:
        suites.append(Suite(f"plugin-{qgis_versions.VERSION}", qgis, [*paths, "-m", "not slow"], {**more, **other}))
    return suites


def side_by_side(suites: Sequence[Suite], reports: Path, seconds: dict[str, float]) -> list[str]:
    """Runs two at a time, for most tests use one core or wait; the names of those that failed."""

    def ended(suite: Suite) -> list[str]:
        with stage(f"{suite.name} tests", seconds):
            return pytest(suite, reports)

    with ThreadPoolExecutor(2) as pool:
        return [name for failed in pool.map(ended, suites) for name in failed]


def pytest(suite: Suite, reports: Path) -> list[str]:
    """Runs it and tells its lines with its name; its name where it failed."""
    shared = ROOT.parent / "shared"
    environment = clean_environment(**{"PYTHONDONTWRITEBYTECODE": 1, **suite.more})
    paths = [str(tools(suite.python)), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    # QGIS' launchers and libraries are the system's, whatever other Python stands first on the user's path.
    system = [] if "PATH" in suite.more else ["/usr/bin", "/bin"]
    environment["PATH"] = os.pathsep.join([*system, environment["PATH"]])
    if shared.is_dir():
        environment.setdefault("GEOPEFT_SHARED", str(shared))
    report = reports / f"{suite.name}.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    options = ["-c", CONFIG, "--rootdir", ROOT, "-p", "no:cacheprovider", "-rs", f"--junit-xml={report}"]
    command = [str(part) for part in (suite.python, "-m", "pytest", *options, *suite.arguments)]
    with tempfile.TemporaryDirectory() as scratch:
        environment["XDG_RUNTIME_DIR"] = environment["QGIS_CUSTOM_CONFIG_PATH"] = scratch
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace",
        ) as process:  # fmt: skip
            for line in process.stdout or ():
                print(f"{suite.name}: {line}", end="", flush=True)
    return [f"{suite.name} tests"] if process.returncode else []


def sum_results(folder: Path) -> tuple[int, int, int]:
    """(passed, failed, skipped) over pytest's reports."""
    passed = failed = skipped = 0
    for report in folder.glob("*.xml"):
        for suite in ET.parse(report).getroot().iter("testsuite"):
            tests, bad, left_out = (int(suite.get(key, 0)) for key in ("tests", "failures", "skipped"))
            bad += int(suite.get("errors", 0))
            passed, failed, skipped = passed + tests - bad - left_out, failed + bad, skipped + left_out
    return passed, failed, skipped


def qgis_python() -> Path | None:
    """A Python that has QGIS; installed by apt where this may be done."""
    found = find_qgis_python()
    apt, prefix = shutil.which("apt-get"), install.root_prefix()
    if found is None and apt and prefix is not None:
        packages = ["qgis", "python3-qgis", "xvfb"]
        say(f"QGIS is not here; running: apt-get install {' '.join(packages)}")
        quiet = clean_environment(DEBIAN_FRONTEND="noninteractive")
        run([*prefix, apt, "update"], env=quiet)
        run([*prefix, apt, "install", "-y", "--no-install-recommends", *packages], env=quiet)
        found = find_qgis_python()
    if found is None:
        say("No Python with QGIS: the plugin's tests are left out. Install qgis and python3-qgis to run them.")
    return found


def other_qgis(system: Path) -> dict[str, object]:
    """The variables for a newer QGIS beside the system's; empty, with a word why, where it cannot be had."""
    try:
        if system != Path("/usr/bin/python3"):
            raise qgis_versions.NotHere("it stands beside the QGIS of Debian only")
        return dict(qgis_versions.variables(install.home() / "qgis", install.root_prefix(), say))
    except qgis_versions.NotHere as reason:
        say(f"The tests on QGIS {qgis_versions.VERSION} are left out: {reason}.")
        return {}


def find_qgis_python() -> Path | None:
    for name in (os.environ.get("QGIS_PYTHON"), "/usr/bin/python3", shutil.which("python3")):
        if name and Path(name).exists():
            probe = run([name, "-c", "import qgis.core"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            if probe.returncode == 0:
                return Path(name)
    return None


# demo, bench


def command_demo(arguments: argparse.Namespace) -> int:
    seconds: dict[str, float] = {}
    out = BUILD / "demo"
    out.mkdir(parents=True, exist_ok=True)
    scene, labels = ROOT / "resources/sample/itaipu_landsat8.tif", ROOT / "resources/sample/labels.gpkg"
    model, figures = out / "itaipu.geopeft", out / "figures.json"
    with stage("engine environment", seconds):
        python = engine_python()

    def job(name: str, *options: object) -> dict[str, Any]:
        with stage(name, seconds):
            return run_job(python, [name, *options])

    field = ("--class-field", "class")
    job("fit", scene, "--labels", f"{labels}:train", *field, "--adapter", "lora", "--max-minutes", 4, "--out", model)
    maps = job("predict", model, scene, "--out", out / "map.tif", "--confidence")
    job("evaluate", model, scene, "--labels", f"{labels}:unseen", *field, "--json", figures)
    job("export", model, "--onnx", out / "itaipu.onnx")
    with stage("picture", seconds):
        picture = [
            "--map",
            out / "map.tif",
            "--confidence",
            maps["rasters"][0]["confidence"],
            "--out",
            out / "demo.png",
        ]
        drawn = run([python, "-I", "-m", "geopeft.quicklook", scene, "--labels", f"{labels}:train", *field, *picture])
        if drawn.returncode:
            raise Failure("The picture could not be drawn: see the lines above.")
    show_figures(json.loads(figures.read_text(encoding="utf-8")), seconds)
    print(out / "demo.png")
    return 0


def run_job(python: Path, arguments: list[object]) -> dict[str, Any]:
    """Runs one job of the engine as a program would; its messages are shown, its outputs returned."""
    command = [str(part) for part in (python, "-I", "-m", "geopeft", *arguments, "--events")]
    last: dict[str, Any] = {}
    told = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=clean_environment(), cwd=ROOT, text=True) as process:
        for line in process.stdout or ():
            last = json.loads(line)
            if last["event"] == "message":
                say(f"   {last['text']}")
            elif last["event"] == "progress" and time.monotonic() - told > 10:
                told = time.monotonic()
                left = f", {last['eta_s']:.0f} s left" if last.get("eta_s") else ""
                say(f"   {last['stage']}: {last['current']} of {last['total']}{left}")
    if process.returncode or last.get("event") != "completed":
        raise Failure(f"{arguments[0]} failed: {last.get('message', 'no word from the engine')} {last.get('hint', '')}")
    return dict(last["outputs"])


def show_figures(figures: dict[str, Any], seconds: dict[str, float]) -> None:
    def number(value: float | None) -> str:
        return "      -" if value is None else f"{value:7.3f}"

    print("\nOn the unseen area        value   95 % between")
    for name in ("miou", "overall_accuracy", "f1_macro"):
        print(f"{name:24}", *(number(figures[name][key]) for key in ("value", "low", "high")))
    print("\nclass                       IoU      F1   labelled pixels")
    for row in figures["classes"]:
        print(f"{row['name']:24}", number(row["iou"]), number(row["f1"]), f"  {row['support']}")
    print("\nstage                   seconds")
    for name, spent in seconds.items():
        print(f"{name:22} {spent:8.1f}")


def command_screenshots(arguments: argparse.Namespace) -> int:
    """Pictures of the panel for the README, from real QGIS."""
    qgis = qgis_python()
    if qgis is None:
        raise Failure("QGIS is needed to take pictures of it.")
    environment = clean_environment(PYTHONPATH=tools(engine_python()), PYTHONDONTWRITEBYTECODE=1)
    out = arguments.out or ROOT / "resources" / "results"
    command = [qgis, ROOT / "tests" / "screenshots.py", engine_python(), out, arguments.language]
    return run([part for part in command if part], env=environment, stdout=sys.stdout).returncode


def command_bench(arguments: argparse.Namespace) -> int:
    scripts = {path.stem.replace("_", "-"): path for path in sorted((ROOT / "tests" / "bench").glob("[!_]*.py"))}
    if arguments.name not in scripts:
        raise Failure(f"There is no bench {arguments.name!r}; there are: {', '.join(scripts) or 'none yet'}.")
    python = engine_python()
    environment = clean_environment(PYTHONPATH=tools(python))
    shared = ROOT.parent / "shared"
    if shared.is_dir():
        environment.setdefault("GEOPEFT_SHARED", str(shared))
    return run([python, scripts[arguments.name], *arguments.options], env=environment, stdout=sys.stdout).returncode


# faults


def command_faults(arguments: argparse.Namespace) -> int:
    """Tests and sweeps of what can go wrong; the results go to resources/results/faults.md."""
    sweeps = {path.stem.replace("_", "-"): path for path in sorted((ROOT / "tests" / "sweeps").glob("[!_]*.py"))}
    chosen = arguments.names or ["table", "tests", *sweeps]
    unknown = [name for name in chosen if name not in ("table", "tests", *sweeps)]
    if unknown:
        raise Failure(f"There is no sweep {unknown[0]!r}; there are: table, tests, {', '.join(sweeps)}.")
    seconds: dict[str, float] = {}
    failed = []
    for name in chosen:
        with stage(f"faults: {name}", seconds):
            if name == "table":
                text = faults.written(faults.TABLE.read_text(encoding="utf-8"), faults.marked())
                faults.TABLE.write_text(text, encoding="utf-8", newline="\n")
            elif name == "tests":
                failed += test_faults()
            else:
                failed += sweep(name, sweeps[name])
    if chosen != ["table"]:
        result = ROOT / "resources" / "results" / "faults.md"
        result.write_text(faults.report(BUILD / "faults"), encoding="utf-8", newline="\n")
        print(result)
    say(f"FAILED: {', '.join(failed)}" if failed else "All passed.")
    return 1 if failed else 0


def test_faults() -> list[str]:
    """All tests that carry the marker `fault`, in the engine's Python and in QGIS's."""
    folder = BUILD / "faults" / "tests"
    shutil.rmtree(folder, ignore_errors=True)
    python, qgis, chosen = engine_python(), qgis_python(), ["-m", "fault"]
    suites = [*engine_suites(python, chosen), *(plugin_suites(qgis, python, chosen) if qgis else [])]
    return side_by_side(suites, folder, {})


def sweep(name: str, script: Path) -> list[str]:
    """Runs a sweep, whose one answer on stdout is `{"cases", "wrong", "outcomes": {words: count}}`."""
    python = engine_python()
    environment = clean_environment(PYTHONPATH=os.pathsep.join([str(tools(python)), str(ROOT)]), OMP_NUM_THREADS=1)
    started = time.monotonic()
    answer = run([python, script], env=environment, stdout=subprocess.PIPE)
    if answer.returncode or not answer.stdout.strip():
        return [name]
    found = json.loads(answer.stdout.splitlines()[-1]) | {"seconds": round(time.monotonic() - started)}
    (BUILD / "faults").mkdir(parents=True, exist_ok=True)
    (BUILD / "faults" / f"{name}.json").write_text(json.dumps(found, indent=1), encoding="utf-8")
    say(json.dumps(found))
    return [name] if found["wrong"] else []


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="build.py", description="The project's one tool.")
    commands = top.add_subparsers(dest="command", required=True)

    def add(name: str, work: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(work=work)
        return command

    add("demo", command_demo, "fine-tune, map and evaluate the sample scene, and draw a picture of it in build/demo")
    test = add("test", command_test, "set everything up and run all checks and tests")
    test.add_argument("--fast", action="store_true", help="leave out the tests marked as slow")
    test.add_argument("--no-check", action="store_true", help="tests only")
    add("check", command_check, "style, types, schema, and what the plugin store's scanner would say")
    shots = add("screenshots", command_screenshots, "take the README's pictures of the panel in real QGIS")
    shots.add_argument("--out", type=Path, help="another folder than resources/results")
    shots.add_argument("--language", default="", help="such as de or ja; else English")
    bench = add("bench", command_bench, "run tests/bench/NAME.py with the engine's Python")
    bench.add_argument("name")
    bench.add_argument("options", nargs=argparse.REMAINDER)
    wrong = add("faults", command_faults, "tests and sweeps of what can go wrong, and the table of their results")
    wrong.add_argument("names", nargs="*", metavar="NAME", help="table, tests, or a script of tests/sweeps; else all")
    engine = add("engine", command_engine, "create or repair the engine's environment; prints the path of its Python")
    engine.add_argument("--repair", action="store_true", help="make it anew, fetch damaged packages again")
    engine.add_argument("--wheels", type=Path, help="an offline kit, or a folder with all wheels, uv's too")
    link = add("link", command_link, "put the plugin into a QGIS profile, as links to this folder")
    link.add_argument("--profile", type=Path, help="the profile's folder; else the default profile")
    add(
        "schema",
        command_schema,
        "write resources/schema from the engine's job types and tables, and the table of its errors",
    )
    add("strings", command_strings, "bring the language files in resources/i18n up to date with the code")
    lock = add("lock", command_lock, "pin all packages with hashes, for Linux, Windows and macOS")
    lock.add_argument("--upgrade", action="store_true", help="take the newest releases")
    kit = add("kit", command_kit, "make a folder that sets the engine up on a machine without a network")
    kit.add_argument("--out", type=Path, help="the folder to make; else build/kit-PLATFORM-VARIANT")
    kit.add_argument("--platform", choices=KIT_TAGS, default=engine_kit.this_system(), help="else this one")
    kit.add_argument("--variant", choices=("cpu", "gpu"), default="cpu", help="gpu: for an NVIDIA card, Linux only")
    kit.add_argument("--python", help="minor versions such as 3.11,3.12 that may be on that machine")
    kit.add_argument("--weights", type=Path, help="folder with pretrained weights to put in")
    archive = add("zip", command_zip, "make the plugin's zip")
    archive.add_argument("--out", type=Path, default=ROOT / "dist" / "geopeft_qgis.zip")
    return top


def main() -> int:
    # SIGTERM ends as Ctrl+C does, so that installations under way end their children.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    arguments = parser().parse_args()
    try:
        work: Callable[[argparse.Namespace], int] = arguments.work
        return work(arguments)
    except (Failure, install.InstallError) as error:
        say(f"error: {error}")
        return 1
    except KeyboardInterrupt:
        say("Interrupted.")
        return 130


if __name__ == "__main__":
    sys.exit(main())
