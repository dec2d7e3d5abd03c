"""Tables of backbones, adapters and decoders: rows name their builder as a string, so that listing is instant."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from geopeft.errors import unknown_name

# Those that need nothing of a backbone but its layers; those that a plain transformer takes beside them, and those that
# one of ours takes.
WEIGHT_ADAPTERS = (
    "frozen", "lora", "rslora", "dora", "pissa", "ia3", "bitfit", "mode", "mpo", "ssl", "ssb", "full",
)  # fmt: skip
TRANSFORMER_ADAPTERS = (*WEIGHT_ADAPTERS, "vpt", "vit-adapter")


# Sentinel-1's C band, 5.405 GHz, as a wavelength.
SAR_UM = 55_465.0

# Licences that anybody may use weights under for anything, with no more than a notice.
OPEN_LICENCES = {
    "apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "gpl-2.0-or-later",
}  # fmt: skip


@dataclass(frozen=True)
class CardBand:
    """A band as a backbone knows it. `mean` and `std` are in the card's unit, or in the band's own where it has one:
    "decibel" (radar backscatter)."""

    name: str
    common: str
    wavelength_um: float
    mean: float
    std: float
    unit: str = ""


@dataclass(frozen=True)
class WeightsSource:
    """Where weights come from. An empty field is not known or does not apply; all empty: no pretrained weights.

    Args:
        file: file name looked for in the user's folder and in the cache.
        sha256: of that file, lower-case hex.
        repo, revision, path: on the Hugging Face hub.
        package, resource: installed distribution that carries the weights, and its file; without a package a file in
            the `resources` folder that ships with the engine.
        own_names: the tensors are named as our network names them: a file that the `pretrain` job wrote.
        adapted: one of a user's; it is known by its checksum and may have any name.
    """

    file: str = ""
    sha256: str = ""
    repo: str = ""
    revision: str = ""
    path: str = ""
    package: str = ""
    resource: str = ""
    own_names: bool = False
    adapted: bool = False


@dataclass(frozen=True)
class BackboneCard:
    """One row of the table of backbones: what it is, what it expects, where its weights are.

    `unit` is what a pixel value means to it: "reflectance10000" (surface reflectance times 10 000) or "display"
    (brightness 0..1). `normalize` is "mean2std" ((x - (mean - 2 std)) / (4 std)), "zscore" ((x - mean) / std)
    or "reflectance" (x / 10 000).
    `gsd_m` is the range of pixel sizes it takes as they are; None: any. A card without bands is of a backbone that
    takes every input band, standardised; with `any_optical` those only whose wavelength is known to be optical, and its
    builder is told the wavelengths; where it has bands too, it knows the statistics of these, and bands of other
    wavelengths are standardised. `options` are the builder's keyword arguments. `metadata` is what else it can be
    told, of "time" and "place". `frames` is how many dates it takes at most; where that is more than one, its builder
    takes their number as `frames`. With `classical_alone` the map is that of the classical part: the network is there
    for the package's sake and learns nothing.
    """

    name: str
    title: str
    builder: str
    licence: str
    paper: str
    bands: tuple[CardBand, ...]
    unit: str
    normalize: str
    patch_size_px: int
    chip_size_px: int
    gsd_m: tuple[float, float] | None
    parameters_m: float
    weights: WeightsSource
    adapters: tuple[str, ...] = WEIGHT_ADAPTERS
    options: Mapping[str, Any] = field(default_factory=dict)
    any_optical: bool = False
    metadata: tuple[str, ...] = ()
    frames: int = 1
    classical_alone: bool = False

    @property
    def network(self) -> str:
        """The name of the network, without the checksum that an adapted one carries: NAME@SHA256."""
        return self.name.partition("@")[0]

    @property
    def is_transformer(self) -> bool:
        """True for networks of tokens that attend to each other; False for convolutions, and where it is not known."""
        return "vpt" in self.adapters or "dim" in self.options

    @property
    def restricted(self) -> bool:
        """True where the weights' licence limits their use, so that the user has to accept it. Unknown is not asked."""
        known = bool(self.licence) and not self.licence.lower().startswith("unknown")
        return self.pretrained and known and self.licence.lower() not in OPEN_LICENCES

    @property
    def terms(self) -> str:
        """Where the licence of the weights can be read; empty: not known."""
        return f"https://huggingface.co/{self.weights.repo}" if self.weights.repo else ""

    @property
    def pretrained(self) -> bool:
        """True where published weights exist."""
        return bool(self.weights.file)

    def normalization(self, band: str) -> tuple[float, float]:
        """Scale and offset that bring a value in the card's unit to the network: value * scale + offset."""
        if self.normalize == "reflectance":
            return 1e-4, 0.0
        row = next(row for row in self.bands if row.name == band)
        if self.normalize == "mean2std":
            return 1 / (4 * row.std), (2 * row.std - row.mean) / (4 * row.std)
        return 1 / row.std, -row.mean / row.std


@dataclass(frozen=True)
class Row:
    """One row of the tables of adapters and decoders."""

    name: str
    title: str
    builder: str


@dataclass(frozen=True)
class DecoderRow(Row):
    """A row of the table of decoders. Its builder takes `size`, "light" or "study".

    Args:
        parameters: how many values each size trains for the case that the table names.
        by_class: its outputs are the classes themselves, so it starts without a probe and takes no other classes.
    """

    parameters: Mapping[str, int] = field(default_factory=dict)
    by_class: bool = False


RowType = TypeVar("RowType", BackboneCard, Row, DecoderRow)


class Table(Generic[RowType]):
    """Rows by name; an unknown name answers with the nearest one and the whole list.

    Args:
        kind: what a row is, for messages.
        rows: the table.
        more: `module:function` that makes rows for names that are not in the table. Called with a name it gives a row
            or None, called with "" all the names that it knows. Imported only when a name is not in the table.
    """

    def __init__(self, kind: str, rows: tuple[RowType, ...], more: str = "") -> None:
        self._kind = kind
        self._rows: dict[str, RowType] = {row.name: row for row in rows}
        self._more = more

    def __getitem__(self, name: str) -> RowType:
        row = self._rows.get(name) or self._made(name)
        if row is None:
            made: list[str] = load_builder(self._more)("") if self._more else []
            near: list[str] = difflib.get_close_matches(name, made, n=3)
            raise unknown_name(self._kind, name, {*self._rows, *near})
        return row

    def __contains__(self, name: str) -> bool:
        return name in self._rows or self._made(name) is not None

    def __iter__(self) -> Iterator[RowType]:
        return iter(self._rows.values())

    def names(self) -> list[str]:
        return list(self._rows)

    def _made(self, name: str) -> RowType | None:
        row: RowType | None = load_builder(self._more)(name) if self._more and name else None
        return row


def load_builder(reference: str) -> Callable[..., Any]:
    """The function that a row's `module:function` names, imported now."""
    module, _, function = reference.partition(":")
    builder: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return builder
