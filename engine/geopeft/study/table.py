"""The table of a study: one row a run, kept whole after each of them, so that a study that was stopped goes on."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geopeft.errors import JobError
from geopeft.study.grid import RUN, Cell, Method
from geopeft.study.runs import DONE
from geopeft.writing import write_bytes

TEXTS = ("key", "kind", "backbone", "adapter", "decoder", "metadata", "state", "device", "backbone_used", "message")
FIELDS = (
    "key", "kind", "backbone", "adapter", "decoder", "metadata", "fraction", "seed", "rate", "state", "in_region",
    "unseen", "in_region_blend", "unseen_blend", "validation", "places", "trainable", "total", "backbone_trainable",
    "steps_done", "best_step", "batch", "step_s", "step_cpu_s", "epoch_s", "training_s", "seconds", "memory_mb",
    "start_mb", "training_mb", "gpu_mb", "device", "backbone_used", "message",
)  # fmt: skip
Row = dict[str, Any]


def read(path: Path) -> dict[str, Row]:
    """The rows by key; none where there is no table yet. JobError STUDY_TABLE where it is another one."""
    if not path.exists():
        return {}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != FIELDS:
                raise ValueError("its columns are others")
            return {row["key"]: _parsed(row) for row in reader}
    except (OSError, ValueError, csv.Error) as error:
        raise JobError(
            f"{path} is no table of a study: {error}.", "Choose another name for the table.", "STUDY_TABLE"
        ) from error


def _parsed(row: Mapping[str, str]) -> Row:
    if None in row or None in row.values():
        raise ValueError("a row has other columns")
    return {name: text if name in TEXTS else (float(text) if text else None) for name, text in row.items()}


def write(path: Path, rows: Iterable[Row]) -> None:
    """Writes all rows; a kill leaves the table before or after."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _written(row.get(name)) for name in FIELDS})
    write_bytes(path, text.getvalue().encode())


def _written(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.10g}" if isinstance(value, float) else str(value)


def row_of(cell: Cell, key: str, fields: Mapping[str, Any], places: int) -> Row:
    """The row of a run.

    Args:
        fields: what the run has given.
        places: how many labelled places have taught.
    """
    method = cell.method
    row: Row = {
        "key": key, "kind": cell.kind, "backbone": method.backbone, "adapter": method.adapter,
        "decoder": method.decoder, "metadata": "on" if method.metadata else "off", "fraction": cell.fraction,
        "seed": cell.seed, "rate": cell.rate, "places": places, **fields,
    }  # fmt: skip
    if row.get("step_s") and row.get("batch"):
        # Chips are drawn without end: an epoch is as many of them as places teach.
        row["epoch_s"] = round(row["step_s"] * max(places / row["batch"], 1), 4)
    return {name: row.get(name, "" if name in TEXTS else None) for name in FIELDS}


@dataclass(frozen=True)
class Figure:
    """A figure of several runs, by seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def sd(self) -> float | None:
        """Of the sample; None of fewer than two runs."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Summary:
    """The runs of a method with one share of the labels.

    Args:
        figures: by the column's name.
        failed: code -> runs that ended with it.
        rates: factors of the learning rates.
    """

    method: Method
    fraction: float
    figures: Mapping[str, Figure]
    failed: Mapping[str, int]
    rates: tuple[float, ...]

    def mean(self, name: str) -> float | None:
        return self.figures[name].mean


def runs_of(rows: Iterable[Row], method: Method, fraction: float | None = None) -> list[Row]:
    """The rows of a method's runs, by share and seed; searches are none."""
    own = [
        row
        for row in rows
        if row["kind"] == RUN
        and (row["backbone"], row["adapter"], row["decoder"]) == (method.backbone, method.adapter, method.decoder)
        and (row["metadata"] == "on") == method.metadata
        and fraction in (None, row["fraction"])
    ]
    return sorted(own, key=lambda row: (row["fraction"], row["seed"]))


def summarise(rows: Sequence[Row], methods: Sequence[Method]) -> list[Summary]:
    """Mean and deviation of every method and share of the labels, in the order of the methods."""
    found = []
    for method in methods:
        for fraction in sorted({row["fraction"] for row in runs_of(rows, method)}, reverse=True):
            own = runs_of(rows, method, fraction)
            done = [row for row in own if row["state"] == DONE]
            figures = {
                name: Figure(tuple(row[name] for row in done if row[name] is not None))
                for name in FIELDS
                if name not in TEXTS
            }
            codes = [row["state"] for row in own if row["state"] != DONE]
            failed = {code: codes.count(code) for code in dict.fromkeys(codes)}
            found.append(Summary(method, fraction, figures, failed, tuple(sorted({row["rate"] for row in done}))))
    return found
