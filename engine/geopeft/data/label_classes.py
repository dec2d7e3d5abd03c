"""The classes of labels: values of a class field or label raster, their numbers, names and colours."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from geopeft.errors import LabelError
from geopeft.job import ClassStyle

IGNORE = 255  # class number where nothing is known
MAX_CLASSES = 254
PALETTE = (
    "#4e79a7",
    "#f28e2b",
    "#59a14f",
    "#e15759",
    "#b07aa1",
    "#edc948",
    "#76b7b2",
    "#ff9da7",
    "#9c755f",
    "#86bcb6",
    "#d37295",
    "#a0cbe8",
    "#8cd17d",
    "#b6992d",
    "#499894",
    "#fabfd2",
)
BACKGROUND_COLOR = "#c8c8c8"
_NAMED_COLORS: tuple[tuple[str, str], ...] = (
    ("#9ad0e6", "flooded flood wetland wetlands marsh swamp"),
    ("#2f7fc1", "water river lake sea ocean reservoir pond wasser"),
    ("#e8f1f8", "snow ice glacier"),
    ("#b9c0c8", "cloud clouds"),
    ("#1f7a3d", "forest forests tree trees wood woods woodland wald"),
    ("#8fbf5a", "shrub shrubs shrubland scrub bush"),
    ("#b7d66b", "grass grassland meadow pasture rangeland herbaceous low_vegetation vegetation cleared"),
    ("#e9c46a", "crop crops cropland agriculture field fields farmland arable"),
    ("#c8553d", "built building buildings urban developed roof roofs village settlement built_up city house houses"),
    ("#7d7d7d", "road roads pavement asphalt street sealed"),
    ("#c9a27e", "bare soil sand barren rock dryout sediment beach desert dry fallen_dry"),
    (BACKGROUND_COLOR, "background other rest not_tree not_water not_building"),
)


@dataclass(frozen=True)
class LabelClass:
    """A class: its value in the class field or label raster (as text), its name, and its colour #rrggbb."""

    value: str
    name: str
    color: str


class ClassTable:
    """Turns values of the class field into class numbers."""

    def __init__(self, given: Sequence[ClassStyle]) -> None:
        self._given = tuple(given)
        self._rows = [LabelClass(style.value, style.name, style.color) for style in given]
        self.field_colors: dict[str, str] = {}

    @property
    def given_values(self) -> set[str]:
        return {style.value for style in self._given}

    def learn(self, named: Mapping[str, str]) -> None:
        """Takes the classes (value -> name) from the labels where none were given."""
        if not self._given:
            rows = [LabelClass(value, name, "") for value, name in named.items()]
            self._rows = sorted(rows, key=lambda row: (*_natural(row.name), row.value))

    def number(self, value: str, name: str = "") -> int:
        """Number of the class with this value, else with this name; -1 where there is none."""
        for key in ("value", "name"):
            for wanted in (value, name):
                hits = [i for i, row in enumerate(self._rows) if wanted and getattr(row, key) == wanted]
                if hits:
                    return hits[0]
        return -1

    def value(self, number: int) -> str:
        return self._rows[number].value

    def classes(self) -> tuple[LabelClass, ...]:
        colors: list[str] = []
        for row in self._rows:
            colors.append(self.field_colors.get(row.value) or row.color or "")
        for position, row in enumerate(self._rows):
            if not colors[position]:
                colors[position] = choose_color(row.name, colors)
        return tuple(replace(row, color=color.lower()) for row, color in zip(self._rows, colors, strict=True))

    def background_color(self) -> str:
        used = [row.color for row in self.classes()]
        return BACKGROUND_COLOR if BACKGROUND_COLOR not in used else choose_color("", used)


def choose_color(name: str, used: Sequence[str]) -> str:
    """A colour for a class: by what its name means, else the next of the palette that is not in use."""
    words = [name.lower().replace(" ", "_").replace("-", "_"), *re.findall(r"[^\W\d_]+", name.lower())]
    if {"not", "non", "no"} & set(words):
        words = ["background"]
    for word in words:
        for color, meanings in _NAMED_COLORS:
            if word in meanings.split() and color not in used:
                return color
    for color in PALETTE:
        if color not in used:
            return color
    hue = len(used) * 0.618034 % 1
    red, green, blue = colorsys.hls_to_rgb(hue, 0.45 + 0.15 * (len(used) % 3), 0.55)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def _natural(text: str) -> tuple[int, float, str]:
    """Sorts numbers by size and before words."""
    return (0, float(text), "") if re.fullmatch(r"-?\d+", text) else (1, 0.0, text)


def refuse_class_count(spec: str, count: int) -> None:
    if count > MAX_CLASSES:
        raise LabelError(
            f"{spec} has {count} classes; at most {MAX_CLASSES} are possible.",
            "Check that the class field holds classes, not numbers of features.",
            "LABELS_MANY_CLASSES",
        )
