"""Where pretrained weights come from: the user's folder, the cache, an installed package, the hub; always verified.

Nothing here knows a network's layout; torch is imported only when a file is read.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from geopeft.errors import GeopeftError, WeightsError
from geopeft.events import Reporter
from geopeft.models.backbones.adapted import read_header
from geopeft.models.conversion import NOT_TENSORS, ConversionError, converted, load_pickled
from geopeft.models.registry import BackboneCard
from geopeft.writing import sha256_of

if TYPE_CHECKING:
    from torch import Tensor

# Beside the engine both in the repository and in the plugin.
RESOURCES = Path(__file__).resolve().parents[3] / "resources"
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
SMALL_BYTES = 64 << 20


@dataclass(frozen=True)
class Found:
    """A file with a card's weights, and in words how it was found."""

    path: Path
    how: str


def cache_folder() -> Path:
    """Where downloaded weights are kept: $GEOPEFT_HOME, else the platform's place for a user's data."""
    if os.environ.get("GEOPEFT_HOME"):
        return Path(os.environ["GEOPEFT_HOME"]) / "weights"
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "geopeft" / "weights"


def locate(card: BackboneCard, weights_dir: str = "") -> Found | None:
    """The first file at hand that holds the card's weights; without network. None: not at hand, or no such weights.

    A file with a known checksum counts only if it agrees. Without one, its folder or its name must name the backbone.
    """
    for candidate in _candidates(card, weights_dir):
        if not card.weights.sha256 or file_sha256(candidate.path) == card.weights.sha256:
            return candidate
    return None


def fetch(card: BackboneCard, weights_dir: str = "", reporter: Reporter | None = None) -> Found:
    """The card's weights: at hand, else from the hub where revision and checksum are known.

    Raises:
        WeightsError: WEIGHTS_MISSING when they are neither at hand nor to be had, WEIGHTS_CHECKSUM when a file is not
            the published one.
    """
    found = locate(card, weights_dir)
    if found is not None:
        return found
    source = card.weights
    wrong = next(_candidates(card, weights_dir), None)
    target = cache_folder() / card.name / source.file
    downloadable = bool(source.repo and source.revision and source.sha256 and not source.adapted)
    if wrong is not None and not (wrong.path == target and downloadable):
        raise WeightsError(
            f"{wrong.path} is not the published file of {card.name}: its sha256 is {file_sha256(wrong.path)}, "
            f"expected {source.sha256}.",
            "Delete it or replace it by the published file.",
            "WEIGHTS_CHECKSUM",
        )
    if source.adapted:
        raise _missing_adapted(card)
    if not downloadable:
        raise _missing(card, "no checksum is known for a download" if source.repo else "they are not downloadable")
    from geopeft.models.download import download

    if wrong is not None and reporter is not None:
        reporter.message(f"{target} has changed since it was downloaded; it is fetched again.")
    download(source, target, reporter or Reporter())
    return Found(target, f"the hub ({source.repo})")


def load_state(path: Path, card: BackboneCard) -> dict[str, Tensor]:
    """The tensors of a weights file, on the CPU. Reads safetensors, or pickles of nothing but tensors.

    A pickle is converted once; a small one whose checksum the card names is what its authors published, and is read in
    less time than a child process starts.

    Raises:
        WeightsError: WEIGHTS_CHECKSUM when the file is not the published one, WEIGHTS_BROKEN when it cannot be read.
    """
    expected = card.weights.sha256
    if expected and file_sha256(path) != expected:
        raise WeightsError(f"{path} is not the published file of {card.name}.", "Replace it.", "WEIGHTS_CHECKSUM")
    try:
        if path.suffix != ".safetensors" and not (expected and path.stat().st_size < SMALL_BYTES):
            path = converted(path, file_sha256(path), cache_folder() / "converted")
        if path.suffix != ".safetensors":
            return load_pickled(path)
        from safetensors.torch import load_file

        tensors: dict[str, Tensor] = load_file(path)
    except GeopeftError:
        raise
    except Exception as error:  # both libraries raise many kinds of errors for a broken file
        why = str(error) if isinstance(error, ConversionError) else f"{type(error).__name__}: {error}"
        raise _broken(path, why.splitlines()[0]) from error
    if not tensors:
        raise _broken(path, NOT_TENSORS)
    return tensors


def file_sha256(path: Path) -> str:
    """Checksum of a file, lower-case hex; computed once for a file that does not change."""
    try:
        status = path.stat()
        return _sha256(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise _broken(path, error.strerror or str(error)) from error


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, _size: int, _mtime_ns: int) -> str:
    return sha256_of(path)


def _candidates(card: BackboneCard, weights_dir: str) -> Iterator[Found]:
    """Files that may hold the weights, in the order in which they are preferred."""
    source = card.weights
    if not source.file:
        return
    if weights_dir:
        yield from _in_folder(card, Path(weights_dir).expanduser(), f"the weights folder {weights_dir}")
    yield from _in_folder(card, cache_folder(), "the local cache")
    if source.package:
        try:
            installed = Path(str(metadata.distribution(source.package).locate_file(source.resource)))
        except metadata.PackageNotFoundError:
            return
        if installed.is_file():
            yield Found(installed, f"the package {source.package}")
    elif source.resource and (RESOURCES / source.resource).is_file():
        yield Found(RESOURCES / source.resource, "the model in the box")


def _in_folder(card: BackboneCard, folder: Path, how: str) -> Iterator[Found]:
    if card.weights.adapted:
        yield from (Found(path, how) for path in _adapted_files(folder) if file_sha256(path) == card.weights.sha256)
        return
    file = card.weights.file
    names = [f"{card.name}/{file}", *(f"{card.name}{suffix}" for suffix in SUFFIXES)]
    # A name such as encoder.pt says nothing; it is taken where the checksum proves what it is.
    names += [file] if card.weights.sha256 or file.lower().startswith(card.name) else []
    for name in dict.fromkeys(names):
        if (folder / name).is_file():
            yield Found(folder / name, how)


def _adapted_files(folder: Path) -> Iterator[Path]:
    """Files of a folder that the `pretrain` job wrote, whatever they are called."""
    for path in sorted(folder.glob("*.safetensors")):
        with contextlib.suppress(WeightsError):
            read_header(path)
            yield path


def _missing_adapted(card: BackboneCard) -> WeightsError:
    which = f"{card.network} as it was adapted to other imagery (sha256 {card.weights.sha256[:12]}...)"
    return WeightsError(
        f"This needs the backbone {which}, and that file is not at hand.",
        "Put the file that the pretrain job wrote into your weights folder, under any name.",
        "WEIGHTS_MISSING",
    )


def _missing(card: BackboneCard, why: str) -> WeightsError:
    source = card.weights
    where = f" It is published at {source.repo}, {source.path}." if source.repo else ""
    return WeightsError(
        f"The pretrained weights of {card.name} are not at hand, and {why}.",
        f"Put the published file into your weights folder as {card.name}/{source.file}, or choose another "
        f"backbone.{where}",
        "WEIGHTS_MISSING",
    )


def _broken(path: Path, why: str) -> WeightsError:
    return WeightsError(f"The weights file {path} cannot be read ({why}).", "Replace it.", "WEIGHTS_BROKEN")
