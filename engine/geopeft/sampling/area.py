"""The `area` job: areas and accuracy of a map's classes from a sample that an analyst has labelled."""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from geopeft.errors import LabelError
from geopeft.events import Reporter
from geopeft.job import AreaJob
from geopeft.sampling.answers import LISTED, Answers, listed, points_text, read_answers
from geopeft.sampling.design import Design, check_outputs, read_design
from geopeft.sampling.sample import is_unknown
from geopeft.sampling.stratified import Estimate, Estimates, estimate
from geopeft.writing import write_bytes

# From here on a word is rather a misspelt class than one that the map does not have.
_ALIKE = 0.75
COLUMNS = (
    "class", "value", "points", "mapped_ha", "area_ha", "se_ha", "low_ha", "high_ha", "difference_ha",
    "users_accuracy", "users_se", "users_low", "users_high",
    "producers_accuracy", "producers_se", "producers_low", "producers_high", "reason",
)  # fmt: skip


@dataclass(frozen=True)
class _Class:
    """A class of the ground: its name, and what it is in the map, if anything."""

    name: str
    value: int | None
    color: str
    mapped_m2: float


def run(job: AreaJob, reporter: Reporter) -> dict[str, Any]:
    """Runs an area job.

    Returns:
        `overall_accuracy`, `classes`, `error_matrix`, `strata`, `points`, `labelled`, `left_out` and `sentences`, as of
        `figures`; with `out` and `json` where these files were written; `seconds`.

    Raises:
        LabelError: SAMPLE_NO_DESIGN, SAMPLE_BROKEN, SAMPLE_UNLABELLED, SAMPLE_CLASSES, LABELS_FIELD or as of
            `read_design`.
        JobError: OUTPUT_IS_INPUT.
    """
    start = time.monotonic()
    check_outputs([job.out, job.json_file], [job.points])
    path = Path(job.points)
    design = read_design(path)
    answers = read_answers(path, job.class_field, design)
    for note in answers.notes:
        reporter.warn(note)
    result = figures(design, answers, job.other_classes)
    for sentence in result["left_out"]:
        reporter.warn(sentence)
    for sentence in result["sentences"]:
        reporter.message(sentence)
    result["left_out"] = answers.notes + result["left_out"]
    result["design"] = dict(design.facts)
    result["seconds"] = round(time.monotonic() - start, 2)
    if job.out:
        write_bytes(Path(job.out), _table(result["classes"]))
        result["out"] = job.out
    if job.json_file:
        write_bytes(Path(job.json_file), json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False).encode())
        result["json"] = job.json_file
    return result


# The classes


def _classes(design: Design, texts: Sequence[str], others: Sequence[str]) -> tuple[list[_Class], list[int], list[int]]:
    """The classes of the ground; of each stratum and each text which one it is, -1 for none.

    A name counts before a value; upper and lower case, and how many blanks there are, do not matter.
    """
    rows: list[_Class] = []
    named: dict[str, int] = {}
    values: dict[str, int] = {}
    mapped = []
    for one in design.strata:
        # Values of one name are one class.
        at = -1 if is_unknown(one) else named.setdefault(_key(one.name), len(rows))
        mapped.append(at)
        if at < 0:
            continue
        values[str(one.value)] = at
        if at == len(rows):
            rows.append(_Class(one.name, one.value, one.color, 0.0))
        rows[at] = replace(rows[at], mapped_m2=rows[at].mapped_m2 + one.area_m2)
    for name in others:
        if named.setdefault(_key(name), len(rows)) == len(rows):
            rows.append(_Class(name, None, "", 0.0))
    known = values | named
    strange = Counter(text for text in texts if text and _key(text) not in known)
    _refuse_misspelt(strange, named, rows)
    for text in strange:
        if known.setdefault(_key(text), len(rows)) == len(rows):
            rows.append(_Class(text, None, "", 0.0))
    return rows, mapped, [known[_key(text)] if text else -1 for text in texts]


def _refuse_misspelt(strange: Counter[str], named: Mapping[str, int], rows: Sequence[_Class]) -> None:
    misspelt = [
        f"'{text}' ({points_text(count)}; did you mean '{rows[named[near[0]]].name}'?)"
        for text, count in strange.items()
        if (near := difflib.get_close_matches(_key(text), list(named), 1, _ALIKE))
    ]
    if misspelt:
        raise LabelError(
            f"The sample has classes that the map does not have: {', '.join(misspelt[:LISTED])}.",
            "Correct them; one that really is another class has to be named among the other classes (--other-classes).",
            "SAMPLE_CLASSES",
        )


def _key(text: str) -> str:
    return " ".join(text.split()).casefold()


# The figures


def figures(design: Design, answers: Answers, others: Sequence[str]) -> dict[str, Any]:
    """The figures as JSON; what is not known is null, and `left_out` says why.

    Raises:
        LabelError: SAMPLE_UNLABELLED, SAMPLE_CLASSES.
    """
    rows, mapped, labels = _classes(design, answers.texts, others)
    label = np.array(labels)
    done = label >= 0
    if not done.any():
        raise LabelError(
            "No point of the sample is labelled yet.",
            "Write the class that you see at each point into its field class, in the order of the numbers, and save.",
            "SAMPLE_UNLABELLED",
        )
    found = estimate(
        design.stratum[done],
        label[done],
        design.area_m2[done],
        np.array([one.area_m2 for one in design.strata]),
        np.array([one.pixels for one in design.strata]),
        mapped,
        len(rows),
    )
    classes = [_class_row(row, at, found) for at, row in enumerate(rows)]
    return {
        "overall_accuracy": _json(found.overall),
        "classes": classes,
        "error_matrix": {
            "rows": [one.name for one in design.strata],
            "columns": [row.name for row in rows],
            "points": found.counts.tolist(),
            "area_shares": np.round(found.shares, 6).tolist() if found.judged.all() else None,
        },
        "strata": [
            {"name": one.name, "value": one.value, "pixels": one.pixels, "mapped_ha": _round(one.area_m2 / 1e4),
             "points": one.points, "labelled": int(count)}
            for one, count in zip(design.strata, found.counts.sum(1), strict=True)
        ],
        "points": len(label),
        "labelled": int(done.sum()),
        "left_out": _left_out(design, done, found),
        "sentences": _sentences(found, classes),
    }  # fmt: skip


def _class_row(row: _Class, at: int, found: Estimates) -> dict[str, Any]:
    area, users, producers = found.areas[at], found.users[at], found.producers[at]
    seen = int(found.counts[:, at].sum())
    mapped = _round(row.mapped_m2 / 1e4)
    hectares = None if area is None else Estimate(*(part / 1e4 for part in vars(area).values()))
    reason = ""
    if not seen:
        reason = f"No point is labelled {row.name}, so its area is not known; label more points."
    elif area is None:
        reason = "Some mapped classes have too few labelled points; see there."
    return {
        "name": row.name,
        "value": row.value,
        "color": row.color,
        "points": seen,
        "mapped_ha": mapped,
        "area_ha": _json(hectares),
        "difference_ha": None if hectares is None else _round(hectares.value - row.mapped_m2 / 1e4),
        "users_accuracy": _json(users),
        "producers_accuracy": _json(producers),
        "reason": reason,
    }


def _json(one: Estimate | None) -> dict[str, float | None]:
    if one is None:
        return dict.fromkeys(("value", "se", "low", "high"))
    return {name: _round(value) for name, value in vars(one).items()}


def _round(value: float) -> float:
    """Six significant digits: more than can be meant."""
    return float(f"{value:.6g}")


def _left_out(design: Design, done: np.ndarray, found: Estimates) -> list[str]:
    """What is missing, and what was skipped."""
    said = []
    numbers = np.arange(1, len(done) + 1)
    skipped: list[int] = []
    for at, one in enumerate(design.strata):
        own = design.stratum == at
        if not found.judged[at]:
            missing = numbers[own & ~done].tolist()
            count = int((own & done).sum())
            said.append(
                f"The mapped class of value {one.value} has {points_text(count)} labelled, too few: areas and overall "
                f"accuracy are not given. Label the points {listed(missing)}."
            )
        last = np.flatnonzero(own & done).max(initial=-1)
        skipped += numbers[: last + 1][(own & ~done)[: last + 1]].tolist()
    if skipped:
        said.append(
            f"Not labelled, though others with higher numbers are: {points_text(len(skipped))} (numbers "
            f"{listed(sorted(skipped))}). If they were left out because they are hard to tell, the figures are too "
            "good: label them, or say in the report how many there are."
        )
    return said


def _sentences(found: Estimates, classes: Sequence[dict[str, Any]]) -> list[str]:
    sentences = []
    if found.overall is not None:
        right = found.overall
        sentences.append(f"{right.value:.1%} of the area is mapped right (95 %: {right.low:.1%} to {right.high:.1%}).")
    for row in classes:
        area = row["area_ha"]
        if area["value"] is None:
            sentences.append(f"{row['name']}: no area is given. {row['reason']}")
            continue
        mapped = _hectares(row["mapped_ha"])
        if row["value"] is None:
            beside = "the map does not have this class"
        elif area["low"] <= row["mapped_ha"] <= area["high"]:
            beside = f"the map counts {mapped}, which agrees with it"
        else:
            more = "more" if row["difference_ha"] < 0 else "less"
            beside = f"the map counts {mapped}, {_hectares(abs(row['difference_ha']))} {more}"
        low, high = _hectares(area["low"])[:-3], _hectares(area["high"])
        sentences.append(f"{row['name']} covers {_hectares(area['value'])} (95 %: {low} to {high}); {beside}.")
    return sentences


def _hectares(value: float) -> str:
    """Four significant digits, or whole hectares, with thin groups of thousands."""
    decimals = max(0, 3 - math.floor(math.log10(abs(value)))) if abs(value) >= 1e-6 else 0
    return f"{value:,.{min(decimals, 4)}f} ha".replace(",", "\u202f")


def _table(classes: Sequence[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in classes:
        area, users, producers = (
            [row[name][part] for part in ("value", "se", "low", "high")]
            for name in ("area_ha", "users_accuracy", "producers_accuracy")
        )
        writer.writerow(
            [row["name"], row["value"], row["points"], row["mapped_ha"], *area, row["difference_ha"], *users,
             *producers, row["reason"]]
        )  # fmt: skip
    return text.getvalue().encode()
