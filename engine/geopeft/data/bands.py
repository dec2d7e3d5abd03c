"""Which band of a raster is which: roles from names and wavelengths, and matching them to what a model wants.

A role is a STAC-like common name (`ROLES`), a polarisation (`RADAR_ROLES`), or "" where nothing says what the band is.
Rules, first hit wins:

1. The band's name is a word: "Blue", "Band 1 - Blue", "nir08", "SWIR 1". Names of things that are no spectral band
   (ndvi, dem, mask, ...) give the role "", those of radar backscatter that of their polarisation ("Sigma0_VV_db").
2. The name is a number code: "B02", "B8A", "SR_B4". What a number means depends on the sensor; see `find_sensor`.
   A wavelength that contradicts the code wins over it.
3. A wavelength: in the band's tags, in its name ("0.418 um"), or in a list in the dataset's tags. Of several bands that
   fall into one role (hyperspectral), the one nearest to the role's centre gets it.
4. The colour interpretation: red, green, blue, nir.

A name may end in a date, "B04 2024-06-12": a raster may hold the same bands of several dates. The rules see the name
without it, date by date.
"""

from __future__ import annotations

import datetime
import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from geopeft.errors import BandError

# role: (centre, lowest, highest wavelength in micrometres); centres are Sentinel-2's.
ROLES: dict[str, tuple[float, float, float]] = {
    "coastal": (0.443, 0.400, 0.455),
    "blue": (0.490, 0.455, 0.518),
    "green": (0.560, 0.518, 0.605),
    "red": (0.665, 0.615, 0.695),
    "rededge1": (0.705, 0.695, 0.725),
    "rededge2": (0.740, 0.725, 0.760),
    "rededge3": (0.783, 0.765, 0.800),
    "nir": (0.842, 0.800, 0.905),
    "nir08": (0.865, 0.855, 0.880),
    "nir09": (0.945, 0.930, 0.965),
    "cirrus": (1.375, 1.360, 1.395),
    "swir16": (1.610, 1.550, 1.755),
    "swir22": (2.190, 2.050, 2.360),
    "thermal": (11.0, 8.0, 14.0),
}

# Polarisations of radar backscatter: transmitted, received.
RADAR_ROLES = ("vv", "vh", "hh", "hv")

_SENSORS: dict[str, dict[str, str]] = {
    "sentinel-2": {
        "1": "coastal", "2": "blue", "3": "green", "4": "red", "5": "rededge1", "6": "rededge2", "7": "rededge3",
        "8": "nir", "8A": "nir08", "9": "nir09", "10": "cirrus", "11": "swir16", "12": "swir22",
    },
    "landsat-8": {
        "1": "coastal", "2": "blue", "3": "green", "4": "red", "5": "nir", "6": "swir16", "7": "swir22", "8": "",
        "9": "cirrus", "10": "thermal", "11": "thermal",
    },
    "landsat-5": {
        "1": "blue", "2": "green", "3": "red", "4": "nir", "5": "swir16", "6": "thermal", "7": "swir22", "8": "",
    },
    "modis": {"1": "red", "2": "nir", "3": "blue", "4": "green", "5": "", "6": "swir16", "7": "swir22"},
}  # fmt: skip

_WORDS: dict[str, str] = {
    **{role: role for role in ROLES},
    "coastal aerosol": "coastal", "aerosol": "coastal", "ultra blue": "coastal", "coastal blue": "coastal",
    "red edge": "rededge1", "rededge": "rededge1", "vegetation red edge": "rededge1",
    **{f"{word}{space}{n}": f"rededge{n}" for n in (1, 2, 3) for word in ("red edge", "rededge", "re", "vre")
       for space in ("", " ")},
    **{f"vegetation red edge {n}": f"rededge{n}" for n in (1, 2, 3)},
    "red edge 4": "nir08", "rededge4": "nir08", "narrow nir": "nir08", "nir narrow": "nir08", "nir 08": "nir08",
    "nir 8a": "nir08", "nir8a": "nir08", "nir08": "nir08",
    "near infrared": "nir", "nearinfrared": "nir", "near infra red": "nir", "nir1": "nir", "nir 1": "nir",
    "infrared": "nir", "nir broad": "nir", "broad nir": "nir",
    "water vapour": "nir09", "water vapor": "nir09", "watervapor": "nir09", "nir 09": "nir09",
    "swir1": "swir16", "swir 1": "swir16", "swir 16": "swir16", "short wave infrared 1": "swir16",
    "shortwave infrared 1": "swir16",
    "swir2": "swir22", "swir 2": "swir22", "swir 22": "swir22", "short wave infrared 2": "swir22",
    "shortwave infrared 2": "swir22",
    "tir": "thermal", "lwir": "thermal", "thermal infrared": "thermal", "tirs": "thermal", "tirs1": "thermal",
    "tirs 1": "thermal", "tirs2": "thermal", "tirs 2": "thermal", "lwir11": "thermal", "lwir12": "thermal",
}  # fmt: skip

# Single letters count only where all of r, g and b are there.
_LETTERS = {"r": "red", "g": "green", "b": "blue", "n": "nir"}

# A name with one of these words is not a spectral band, whatever else it says.
_NOT_SPECTRAL = frozenset(
    "ndvi evi savi msavi ndwi mndwi ndbi nbr ndmi ndsi gndvi ndre lai fapar fcover dem dsm dtm chm elevation height "
    "altitude slope aspect hillshade roughness tpi tri vv vh hh hv gamma0 sigma0 coherence mask qa quality scl fmask "
    "class classes label labels lulc landcover cloud clouds cloudmask snow shadow angle azimuth zenith probability "
    "ratio index pca pc texture doy date time count density temperature population".split()
)
# What a radar band's name must not say, beside its polarisation, to hold backscatter.
_NOT_BACKSCATTER = frozenset(
    "coherence coh ratio index amplitude phase angle mask std stddev variance cv diff difference slope count texture "
    "entropy alpha real imag i q".split()
)
_NOISE = frozenset(
    "band channel layer dn sr toa boa ref refl reflectance radiance surface top bottom of atmosphere l1c l2a s2 s2a "
    "s2b "
    "sentinel sentinel2 landsat median mean min max p50 composite corrected visible the light um nm "
    "micrometers micrometer nanometers nanometer".split()
)
_CODE = re.compile(r"^b(?:and)?(0?)(\d{1,2})(a?)$")
_DATED = re.compile(r"^(.*?\S)[ _@-]+((?:19|20)\d\d-[01]\d-[0-3]\d)$")
_LENGTH = re.compile(r"(\d+(?:[.,]\d+)?)\s*(um|µm|μm|micro ?met(?:er|re)s?|nm|nano ?met(?:er|re)s?)\b", re.IGNORECASE)
_GENERIC = re.compile(r"^(band|layer|channel|gray|grey)?[ _-]*(index)?[ _-]*\d*$")


class NamedBand(Protocol):
    """What a card, a package or a raster says about one of its bands."""

    @property
    def name(self) -> str: ...
    @property
    def common(self) -> str: ...
    @property
    def wavelength_um(self) -> float | None: ...


@dataclass(frozen=True)
class Band:
    """One data band of a raster.

    Args:
        index: 1-based number in the file.
        name: its description, else "Band N".
        wavelength_um: centre wavelength; None where nobody says it.
        common: its role, one of `ROLES` or `RADAR_ROLES`, or "".
        date: YYYY-MM-DD where the name ends in it, else "".
    """

    index: int
    name: str
    wavelength_um: float | None = None
    common: str = ""
    date: str = ""

    @property
    def spectral(self) -> bool:
        """True where the band is known to measure reflected light."""
        if is_not_spectral(self.name) or self.common == "thermal":
            return False
        return bool(self.common) or (self.wavelength_um is not None and 0.3 <= self.wavelength_um < 3.0)


class DatedBand(NamedBand, Protocol):
    """A band that may be of one of several dates."""

    @property
    def date(self) -> str: ...


class HasBands(Protocol):
    """A raster, as far as bands go."""

    @property
    def path(self) -> str: ...
    @property
    def bands(self) -> tuple[Band, ...]: ...


WantedBand = TypeVar("WantedBand", bound=NamedBand)
WantedDated = TypeVar("WantedDated", bound=DatedBand)


@dataclass(frozen=True)
class BandFacts:
    """What a file says about one band: description, tags of all domains with lower-case keys, colour, data type."""

    index: int
    description: str = ""
    tags: Mapping[str, str] | None = None
    color: str = ""
    dtype: str = ""


def is_not_spectral(name: str) -> bool:
    """True for names of indices, heights, radar channels, masks and the like."""
    words = _tokens(name)
    return any(re.sub(r"\d+$", "", w) in _NOT_SPECTRAL or w in _NOT_SPECTRAL for w in words) or bool(radar_role(name))


def radar_role(name: str) -> str:
    """The polarisation of a band of radar backscatter, one of `RADAR_ROLES`; "" for every other band.

    "VV", "vh_db", "Sigma0_VV", "Gamma0_VH_dB 2024-06-12" say one; "VV/VH ratio" and "VV_coherence" do not.
    """
    words = _tokens(split_date(name.strip())[0])
    found = {word.removesuffix("db") for word in words} & set(RADAR_ROLES)
    return found.pop() if len(found) == 1 and not _NOT_BACKSCATTER & set(words) else ""


def name_bands(facts: Sequence[BandFacts], tags: Mapping[str, str], file_name: str = "") -> tuple[Band, ...]:
    """The bands with their roles, by the rules of this module.

    Args:
        facts: one for each data band, in file order.
        tags: the dataset's tags, keys in lower case; lists of wavelengths are taken from here.
        file_name: the products of space agencies name the sensor there.
    """
    listed = _listed_wavelengths(tags, len(facts))
    by_date: dict[str, list[int]] = {}
    for position, fact in enumerate(facts):
        by_date.setdefault(split_date(fact.description.strip())[1], []).append(position)
    if set(by_date) <= {""}:
        return _name_one_date(facts, listed, tags, file_name)
    named: dict[int, Band] = {}
    for date, positions in by_date.items():
        own = [facts[at] for at in positions]
        plain = [replace(fact, description=split_date(fact.description.strip())[0]) for fact in own]
        bands = _name_one_date(plain, [listed[at] for at in positions], tags, file_name)
        for fact, band in zip(own, bands, strict=True):
            named[fact.index] = replace(band, name=fact.description.strip(), date=date) if date else band
    return tuple(named[fact.index] for fact in facts)


def split_date(name: str) -> tuple[str, str]:
    """A band's name without the date that it ends in, and that date as YYYY-MM-DD; "" where there is none."""
    match = _DATED.match(name)
    if match is None:
        return name, ""
    try:
        return match[1], datetime.date.fromisoformat(match[2]).isoformat()
    except ValueError:
        return name, ""


def dates_of(bands: Iterable[DatedBand]) -> tuple[str, ...]:
    """The dates of bands, each once, the earliest first."""
    return tuple(sorted({band.date for band in bands if band.date}))


def _name_one_date(
    facts: Sequence[BandFacts], listed: Sequence[float | None], tags: Mapping[str, str], file_name: str
) -> tuple[Band, ...]:
    bands = []
    for position, fact in enumerate(facts):
        name = fact.description.strip() or _tagged_name(fact.tags or {}) or f"Band {fact.index}"
        length = _tagged_wavelength(fact.tags or {}) or _wavelength_in(name) or listed[position]
        bands.append(Band(fact.index, name, None if is_not_spectral(name) else length))
    letters = _LETTERS if {"r", "g", "b"} <= {band.name.lower() for band in bands} else {}
    bands = [replace(band, common=letters.get(band.name.lower()) or _word_role(band.name)) for band in bands]
    bands = _roles_from_codes(bands, facts, tags, file_name)
    bands = _roles_from_wavelengths(bands)
    return tuple(_role_from_color(band, fact) for band, fact in zip(bands, facts, strict=True))


def select_bands(info: HasBands, wanted: Sequence[str]) -> tuple[Band, ...]:
    """The bands the user asks for, by name or number, in that order; all data bands where nothing is asked for.

    A number is the band's number in the file. Names may differ in case and padding (b2 = B02); roles work too.

    Raises:
        BandError: BANDS_EMPTY, BANDS_UNKNOWN (no such band) or BANDS_TWICE.
    """
    if not wanted:
        return info.bands
    names = [name.strip() for name in wanted if name.strip()]
    if not names:
        raise BandError(
            "The list of bands is empty.", f"Name bands of {info.path}: {_list(info.bands)}; or leave the list out.",
            "BANDS_EMPTY",
        )  # fmt: skip
    chosen = tuple(_find(info, name) for name in names)
    for position, band in enumerate(chosen):
        if band in chosen[:position]:
            raise BandError(f"Band '{band.name}' is asked for twice.", "Name each band once.", "BANDS_TWICE")
    return chosen


def match_bands(available: Sequence[Band], wanted: Sequence[WantedBand]) -> dict[str, Band]:
    """For each wanted band the raster's band that fits best; wanted bands that nothing fits are absent.

    Equal names come first (unless the roles contradict them: B4 is red or near infrared), then equal roles, then the
    nearest wavelength within 3 % (at least 0.02 um). Each of the raster's bands is used once.
    """
    found: dict[str, Band] = {}
    free = list(available)

    def take(want: NamedBand, candidates: Iterable[Band]) -> None:
        length = _effective_wavelength(want)
        ranked = sorted(candidates, key=lambda band: _distance(_effective_wavelength(band), length))
        if ranked and want.name not in found:
            found[want.name] = ranked[0]
            free.remove(ranked[0])

    for want in wanted:
        take(want, [band for band in free if _same_name(band, want)])
    for want in wanted:
        if want.common:
            take(want, [band for band in free if band.common == want.common])
    pairs = sorted(
        ((_distance(_effective_wavelength(band), _effective_wavelength(want)), position, band.index)
         for position, want in enumerate(wanted) for band in free if not is_not_spectral(band.name)),
    )  # fmt: skip
    for distance, position, index in pairs:
        want = wanted[position]
        if distance <= max(0.02, 0.03 * (_effective_wavelength(want) or 0.0)):
            take(want, [band for band in free if band.index == index])
    return found


def resolve_bands(info: HasBands, needed: Sequence[DatedBand], override: Sequence[str] = ()) -> tuple[Band, ...]:
    """The raster's bands for `needed`, in that order.

    Args:
        info: the raster.
        needed: the bands of a model. Those of several dates are matched date by date, the earliest to the earliest.
        override: names or numbers of the raster's bands, one for each needed band, which end all guessing.

    Raises:
        BandError: names what is missing and what is there; BANDS_DATES where the raster has not as many dates.
    """
    if override:
        chosen = select_bands(info, override)
        if len(chosen) != len(needed):
            raise BandError(
                f"The model needs {len(needed)} bands ({_list(needed)}), but {len(chosen)} are named.",
                "Name as many bands of the raster as the model needs, in the model's order.",
                "BANDS_COUNT",
            )
        return chosen
    found = _match_dates(info, needed)
    missing = [band for band in needed if band.name not in found]
    if missing:
        raise BandError(
            f"{info.path} lacks {len(missing)} of the {len(needed)} bands that are needed: {_list(missing)}; "
            f"it has {_list(info.bands)}.",
            f"If the bands are there under other names, name them with --bands in this order: {_list(needed)}.",
        )
    return tuple(found[band.name] for band in needed)


def _match_dates(info: HasBands, needed: Sequence[WantedDated]) -> dict[str, Band]:
    """As `match_bands`, date by date where there are several."""
    wanted, there = dates_of(needed), dates_of(info.bands)
    if max(len(wanted), len(there)) < 2:
        return match_bands(info.bands, needed)
    if len(wanted) != len(there):
        raise BandError(
            f"{info.path} holds bands of {len(there) or 'no'} date{'s' * (len(there) != 1)}"
            f"{f' ({_some(there)})' if there else ''}, and {len(wanted) or 1} {'are' if len(wanted) > 1 else 'is'} "
            "needed.",
            f"Stack rasters of as many dates, or name the bands with --bands in this order: {_list(needed)}.",
            "BANDS_DATES",
        )
    found: dict[str, Band] = {}
    for own, theirs in (("", ""), *zip(wanted, there, strict=True)):
        available = [band for band in info.bands if band.date == theirs]
        found |= match_bands(available, [band for band in needed if band.date == own])
    return found


def _tokens(name: str) -> list[str]:
    return re.findall(r"[a-z]+[0-9]*[a-z]?|\d+[a-z]?", name.lower())


def _word_role(name: str) -> str:
    """The role that a name says in words; "" for codes and everything else."""
    if is_not_spectral(name):
        return radar_role(name)
    plain = _LENGTH.sub(" ", name)
    for text in (plain, re.sub(r"\(.*?\)", " ", plain), " ".join(re.findall(r"\((.*?)\)", plain))):
        tokens = [token for token in _tokens(text) if token not in _NOISE]
        for words in (tokens, [t for t in tokens if not t.isdigit()], [t for t in tokens if not _CODE.match(t)],
                      [t for t in tokens if not t.isdigit() and not _CODE.match(t)]):  # fmt: skip
            role = _WORDS.get(" ".join(words))
            if role:
                return role
    return ""


def _code(name: str) -> tuple[str, bool] | None:
    """("8A", padded) for B8A or b08a; None where the name is no code of letter b and number."""
    if is_not_spectral(name):
        return None
    for token in _tokens(name):
        match = _CODE.match(token)
        if match and (token.startswith("b") and not token.startswith("band")):
            return match[2].lstrip("0") + match[3].upper(), bool(match[1]) or match[2].startswith("0")
    return None


def _roles_from_codes(
    bands: list[Band], facts: Sequence[BandFacts], tags: Mapping[str, str], file_name: str
) -> list[Band]:
    codes = {band.index: code for band in bands if not band.common and (code := _code(band.name))}
    if not codes:
        return bands
    names = [band.name for band in bands if not band.common]
    meaning = _SENSORS.get(find_sensor(names, tags, file_name, eight_bit=facts[0].dtype == "uint8"), {})
    out = []
    for band in bands:
        role = meaning.get(codes[band.index][0], "") if band.index in codes else ""
        if role and band.wavelength_um is not None:
            low, high = ROLES[role][1:]
            if not low - 0.06 <= band.wavelength_um <= high + 0.06:
                role = ""
        out.append(replace(band, common=role) if role else band)
    return out


def find_sensor(names: Sequence[str], tags: Mapping[str, str], file_name: str = "", *, eight_bit: bool = False) -> str:
    """Whose numbering the number codes among `names` follow; "" where that cannot be told, so that no role is guessed.

    A sensor, platform or product named in the tags or the file name decides. Otherwise the set of numbers does:
    8A or 12: Sentinel-2; sur_refl: MODIS; ST_B10 or 10 with 11: Landsat 8/9; ST_B6, B6_VCID or 5 and 7 without 6:
    Landsat 4-7; leading zeros: Sentinel-2; 8 without 1: Sentinel-2; exactly 1-7: Landsat 4-7 when 8-bit, else
    Landsat 8/9; within 2-7, at least 2, 3 and 4: Landsat 8/9 (for 2, 3, 4 Sentinel-2 means the same).
    """
    named = named_sensor(tags, file_name)
    if named:
        return named
    codes = [code for name in names if (code := _code(name))]
    numbers = {number for number, _ in codes}
    upper = " ".join(names).upper()
    if "SUR_REFL" in upper:
        return "modis"
    if numbers & {"8A", "12"}:
        return "sentinel-2"
    if "ST_B10" in upper or {"10", "11"} <= numbers:
        return "landsat-8"
    if "ST_B6" in upper or "VCID" in upper or ({"1", "5", "7"} <= numbers and "6" not in numbers):
        return "landsat-5"
    if any(padded for _, padded in codes) or "11" in numbers or ("8" in numbers and "1" not in numbers):
        return "sentinel-2"
    if numbers == {"1", "2", "3", "4", "5", "6", "7"}:
        return "landsat-5" if eight_bit else "landsat-8"
    if {"2", "3", "4"} <= numbers <= {"2", "3", "4", "5", "6", "7"}:
        return "landsat-8"
    return ""


def named_sensor(tags: Mapping[str, str], file_name: str = "") -> str:
    """The sensor that tags or the file name speak of: a key of the numbering tables, or ""."""
    keys = ("sensor", "sensor_id", "spacecraft", "spacecraft_id", "spacecraft_name", "satellite", "platform", "mission",
            "instrument", "product", "product_id", "product_uri", "landsat_product_id", "source", "title",
            "tiffimagedescription", "tifftag_imagedescription", "datatake_1_spacecraft_name")  # fmt: skip
    text = " ".join([*(tags.get(key, "") for key in keys), file_name]).lower()
    for sensor, pattern in (
        (
            "sentinel-2",
            r"sentinel[-_ ]?2|\bs2[abc]?(?![a-z0-9])|s2[abc]_|\bs2_|\bs2l[12]|(?<![a-z])msi(?![a-z])|hls\.s30",
        ),
        ("landsat-8", r"landsat[-_ ]?[89]|\bl[co]0[89]|(?<![a-z])l[89]_|(?<![a-z])oli(?![a-z])|hls\.l30"),
        ("landsat-5", r"landsat[-_ ]?[457]|\bl[te]0[457]|(?<![a-z])l[57]_|(?<![a-z])etm|thematic mapper"),
        ("modis", r"modis|\bmod09|\bmyd09|\bmcd43"),
    ):
        if re.search(pattern, text):
            return sensor
    return ""


def _roles_from_wavelengths(bands: list[Band]) -> list[Band]:
    """Each role that no name has claimed goes to the band nearest to its centre, among those within its range.

    Bands whose name is a number code of a known meaning keep it. `nir` comes before `nir08` in `ROLES`: a sensor with
    one near infrared band at 0.865 has a `nir`.
    """
    bands = list(bands)
    taken = {band.common for band in bands if band.common}
    for role, (centre, low, high) in ROLES.items():
        fitting = [
            (abs(band.wavelength_um - centre), position)
            for position, band in enumerate(bands)
            if not band.common and band.wavelength_um is not None and low <= band.wavelength_um < high
        ]
        if fitting and role not in taken:
            position = min(fitting)[1]
            bands[position] = replace(bands[position], common=role)
    return bands


def _role_from_color(band: Band, fact: BandFacts) -> Band:
    unnamed = band.wavelength_um is None and not band.common and bool(_GENERIC.match(band.name.lower()))
    if unnamed and fact.color in ("red", "green", "blue", "nir", "coastal"):
        return replace(band, common=fact.color)
    return band


def _tagged_name(tags: Mapping[str, str]) -> str:
    return next((tags[key].strip() for key in ("bandname", "band_name", "name", "long_name") if tags.get(key)), "")


def _tagged_wavelength(tags: Mapping[str, str]) -> float | None:
    units = tags.get("wavelength_units") or tags.get("wavelength_unit") or tags.get("units", "")
    for key in ("central_wavelength_um", "wavelength_um", "wavelength_nm", "wavelength", "central_wavelength",
                "center_wavelength", "centre_wavelength", "wavelengths"):  # fmt: skip
        length = _micrometres(tags.get(key, ""), key if key.endswith(("_um", "_nm")) else units)
        if length is not None:
            return length
    return None


def _listed_wavelengths(tags: Mapping[str, str], count: int) -> list[float | None]:
    for key in ("wavelengths_um", "wavelength_um", "wavelengths_nm", "wavelength_nm", "wavelengths", "wavelength"):
        parts = re.findall(r"[^\s,;{}\[\]]+", tags.get(key, ""))
        if len(parts) == count:
            units = key if key.endswith(("_um", "_nm")) else tags.get("wavelength_units", "")
            return [_micrometres(part, units) for part in parts]
    return [None] * count


def _wavelength_in(name: str) -> float | None:
    match = _LENGTH.search(name)
    return _micrometres(match[1].replace(",", "."), match[2]) if match else None


def _micrometres(text: str, units: str) -> float | None:
    """A wavelength in micrometres; without units, more than 100 can only be nanometres."""
    match = re.match(r"\s*([0-9.]+(?:[eE][-+]?\d+)?)\s*([a-zA-Zµμ]*)", text)
    try:
        value = float(match[1]) if match else math.nan
    except ValueError:
        return None
    unit = (match[2] if match and match[2] else units).lower()
    if "nm" in unit or "nano" in unit or ("um" not in unit and "micro" not in unit and value > 100):
        value /= 1000
    return round(value, 6) if 0.1 < value < 1000 else None


def _effective_wavelength(band: NamedBand) -> float | None:
    if band.wavelength_um is not None:
        return band.wavelength_um
    return ROLES[band.common][0] if band.common in ROLES else None


def _distance(one: float | None, other: float | None) -> float:
    return math.inf if one is None or other is None else abs(one - other)


def _canonical(name: str) -> str:
    code = _code(name) if re.fullmatch(r"\s*b\d{1,2}a?\s*", name.lower()) else None
    return f"b{code[0].lower()}" if code else " ".join(_tokens(name))


def _same_name(band: Band, want: NamedBand) -> bool:
    own, wanted = split_date(band.name)[0], split_date(want.name)[0]
    if _canonical(own) != _canonical(wanted):
        return False
    if band.common and want.common:
        return band.common == want.common
    # A bare number without a role could be any sensor's: it is no proof where the model wants a certain role.
    return not want.common or (_code(own) is None and not _GENERIC.match(own.lower()))


def _find(info: HasBands, name: str) -> Band:
    tests = (
        lambda band: band.name == name,
        lambda band: band.name.lower() == name.lower(),
        lambda band: _canonical(band.name) == _canonical(name),
        lambda band: name.isdigit() and band.index == int(name),
        lambda band: band.common == name.lower() != "",
    )
    for test in tests:
        hits = [band for band in info.bands if test(band)]
        if hits:
            return hits[0]
    near = difflib.get_close_matches(name, [band.name for band in info.bands], n=1)
    guess = f"Did you mean '{near[0]}'? " if near else ""
    raise BandError(f"{info.path} has no band '{name}'.", f"{guess}It has {_list(info.bands)}.")


def _some(dates: Sequence[str], most: int = 8) -> str:
    return ", ".join(dates[:most]) + (f" and {len(dates) - most} more" if len(dates) > most else "")


def _list(bands: Sequence[NamedBand], most: int = 16) -> str:
    """Names for a sentence, with the role where the name does not say it."""
    named = [
        f"{band.name} ({band.common})" if band.common and band.common != band.name.lower() else band.name
        for band in bands[:most]
    ]
    return ", ".join(named) + (f" and {len(bands) - most} more" if len(bands) > most else "")
