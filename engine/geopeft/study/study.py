"""The `study` job: backbones, adapters and decoders compared on one task, in its region and in another one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geopeft.cluster.cluster import count_gpus, open_cluster
from geopeft.cluster.tasks import take_away, whole_path
from geopeft.data.bands import resolve_bands, select_bands
from geopeft.data.labels import Labels, read_labels
from geopeft.data.raster import RasterInfo, describe
from geopeft.events import Reporter
from geopeft.holding import part_of
from geopeft.job import ClassStyle, EvaluateJob, FitJob, StudyJob
from geopeft.models.backbones import BACKBONES
from geopeft.prepare import whole_bands
from geopeft.report import page_path
from geopeft.study import claims, grid, page, places, table
from geopeft.study.grid import Cell, Method
from geopeft.study.remote import run_tasks_on
from geopeft.study.runs import BLEND, DONE, Ended, Task, run_tasks
from geopeft.writing import check_target, keep_inputs, write_bytes

STAGE = "study"
RunAll = Callable[[Iterator[Task]], Iterator[Ended]]


@dataclass(frozen=True)
class Ground:
    """What all runs of a study share.

    Args:
        infos, labels: of the region that teaches.
        shares: its places by what they are for.
        inputs: checksum of everything that is read.
        folder: for label layers and models.
    """

    infos: tuple[RasterInfo, ...]
    labels: Labels
    shares: places.Shares
    inputs: str
    folder: Path

    @property
    def styles(self) -> tuple[ClassStyle, ...]:
        """All classes, so that they have the same numbers whatever a share of the labels holds."""
        known = self.labels.classes
        return tuple(ClassStyle(value=one.value, name=one.name, color=one.color) for one in known)


def run(job: StudyJob, reporter: Reporter) -> dict[str, Any]:
    """Runs a study job. Runs that the table holds already are not run again, those that failed are.

    Returns:
        `table`, `report`, `runs` and `failed` (numbers), `methods` (means and deviations), `claims`.

    Raises:
        JobError: STUDY_EMPTY, STUDY_TABLE, NAME_UNKNOWN, OUTPUT_IS_INPUT.
        LabelError: STUDY_FEW_PLACES, or as `read_labels`.
    """
    out, html = _targets(job)
    job = _everywhere(job) if job.scheduler else job
    methods = grid.methods(job)
    rows = table.read(out)
    with _place(job, out, reporter) as (folder, run_all):
        ground = _survey(job, folder, reporter)
        work = _Work(job, ground, rows, out, reporter, run_all)
        rates = work.choose_rates(methods)
        cells = _in_turn([list(grid.run_cells(job, method, rates[method])) for method in methods])
        work.do(cells, methods)
        keys = [cell.key(job, ground.inputs) for cell in cells]
    own = [rows[key] for key in keys if key in rows]
    return _tell(job, methods, own, out, html, reporter)


@contextlib.contextmanager
def _place(job: StudyJob, out: Path, reporter: Reporter) -> Iterator[tuple[Path, RunAll]]:
    """A folder for label layers and models, and what runs tasks: processes of this machine, or a cluster."""
    if not job.scheduler:
        gpus = count_gpus(job.device) if job.processes > 1 else 0
        with tempfile.TemporaryDirectory(prefix="geopeft-") as name:
            yield Path(name), lambda tasks: run_tasks(tasks, job.processes, gpus, reporter.check_canceled)
        return
    with open_cluster(job.scheduler, job.device, reporter) as cluster:
        # Beside the table, where all machines see it.
        folder = Path(os.path.abspath(part_of(out, ".runs")))
        folder.mkdir()
        try:
            yield folder, lambda tasks: run_tasks_on(cluster, tasks, folder, reporter.check_canceled)
        finally:
            take_away(folder)


def _targets(job: StudyJob) -> tuple[Path, Path]:
    """Where table and page go; JobError or OutputError where they could not be written."""
    out = Path(job.out)
    out = out if out.suffix.lower() == ".csv" else out.with_name(out.name + ".csv")
    check_target(out)
    html = page_path(job.report or str(out.with_suffix(".html")))
    keep_inputs([out, html], [*job.rasters, *job.unseen_rasters, job.labels, job.unseen_labels], "The study")
    return out, html


def _everywhere(job: StudyJob) -> StudyJob:
    """The job with paths that do not depend on the folder that a process happens to be in."""
    lists = {name: tuple(map(whole_path, getattr(job, name))) for name in ("rasters", "unseen_rasters")}
    names = ("labels", "unseen_labels", "area", "unseen_area", "weights_dir")
    return job.model_copy(update={**lists, **{name: whole_path(getattr(job, name)) for name in names}})


def _survey(job: StudyJob, folder: Path, reporter: Reporter) -> Ground:
    """Reads both regions' labels, and shares out the places of the first."""
    infos = tuple(describe(path) for path in job.rasters)
    unseen = tuple(describe(path) for path in job.unseen_rasters)
    labels = _labels(job, job.labels, job.area, infos, 2, reporter)
    # Read once here, so that what is wrong with them is told before hours of training.
    others = _labels(job, job.unseen_labels, job.unseen_area, unseen, 1, reporter)
    chosen = select_bands(infos[0], job.bands) if job.bands else whole_bands(infos[0], reporter)
    bands = (chosen, *(resolve_bands(info, chosen, job.bands) for info in infos[1:]))
    unseen_bands = [resolve_bands(info, chosen, job.bands) for info in unseen]
    names = [known.name for known in labels.classes]
    found = places.find_places(infos, bands, labels)
    shares = places.share_out(found, names, job.seed, reporter)
    parts = [
        [info.fingerprint for info in (*infos, *unseen)],
        places.digest(found, names),
        # Of what they hold: the file may be a copy that is written anew each time.
        places.digest(places.find_places(unseen, unseen_bands, others), [known.name for known in others.classes]),
        [job.seed, job.background],
    ]
    inputs = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return Ground(infos, labels, shares, inputs, folder)


def _labels(
    job: StudyJob, spec: str, area: str, infos: Sequence[RasterInfo], minimum: int, reporter: Reporter
) -> Labels:
    return read_labels(
        spec,
        job.class_field,
        infos,
        background=job.background,
        area=area,
        line_width_px=job.line_width_px,
        minimum_classes=minimum,
        reporter=reporter,
    )


def _in_turn(groups: Sequence[Sequence[Cell]]) -> list[Cell]:
    """The first run of every method, then the second: a study that is stopped has compared them all."""
    longest = max(map(len, groups), default=0)
    return [group[at] for at in range(longest) for group in groups if at < len(group)]


class _Work:
    """The runs of a study; `rows` and the table on the disk grow as they end."""

    def __init__(
        self,
        job: StudyJob,
        ground: Ground,
        rows: dict[str, table.Row],
        out: Path,
        reporter: Reporter,
        run_all: RunAll,
    ) -> None:
        self._job, self._ground, self._rows, self._out, self._reporter = job, ground, rows, out, reporter
        self._run_all, self._written = run_all, list(rows)
        self._layers: dict[tuple[str, float, int], tuple[str, int]] = {}

    def choose_rates(self, methods: Sequence[Method]) -> dict[Method, float]:
        """The learning rate of every method: of the short runs' the most accurate on the places that choose."""
        if not self._ground.shares.choose:
            return dict.fromkeys(methods, 1.0)
        searches = {method: grid.search_cells(self._job, method) for method in methods}
        self.do([cell for cells in searches.values() for cell in cells], methods)
        fallback = self._job.rates[0] if len(self._job.rates) == 1 else 1.0
        chosen = {}
        for method, cells in searches.items():
            found = [(row["validation"], cell.rate) for cell in cells if (row := self._done(cell)) is not None]
            known = [(value, rate) for value, rate in found if value is not None]
            chosen[method] = max(known)[1] if known else fallback
            if known:
                told = ", ".join(f"× {rate:g}: {value:.3f}" for value, rate in known)
                self._reporter.message(f"{method.title}: learning rate × {chosen[method]:g} ({told}).")
        return chosen

    def do(self, cells: Sequence[Cell], methods: Sequence[Method]) -> None:
        """Runs what is not done yet."""
        due = [cell for cell in cells if self._done(cell) is None]
        if len(due) < len(cells):
            self._reporter.message(f"{len(cells) - len(due)} runs are in the table already.")
        refused = [cell for cell in due if self._refused(cell)]
        left = [cell for cell in due if cell not in refused]
        tasks = (self._task(cell) for cell in left)
        for number, one in enumerate(self._run_all(tasks)):
            self._keep(one.task.cell, one.fields)
            self._reporter.progress(STAGE, number + 1, len(left))
        self._sort(cells)

    def _sort(self, cells: Sequence[Cell]) -> None:
        """The rows of these runs in their order, whichever has ended first."""
        keys = [key for cell in cells if (key := cell.key(self._job, self._ground.inputs)) in self._rows]
        own = {key: self._rows.pop(key) for key in keys}
        before = list(self._rows)
        self._rows.update(own)
        if before + keys != self._written:
            self._write()

    def _done(self, cell: Cell) -> table.Row | None:
        row = self._rows.get(cell.key(self._job, self._ground.inputs))
        return row if row is not None and row["state"] == DONE else None

    def _refused(self, cell: Cell) -> bool:
        """Whether a pair that does not fit has got its row, without a training."""
        name, adapter = cell.method.backbone, cell.method.adapter
        if name in (grid.AUTO, grid.FOREST) or adapter in (fitting := BACKBONES[name].adapters):
            return False
        why = f"{name} cannot be tuned by '{adapter}'. Choose among: {', '.join(fitting)}."
        self._keep(cell, {"state": "ADAPTER_UNSUITABLE", "message": why})
        return True

    def _keep(self, cell: Cell, fields: dict[str, Any]) -> None:
        key = cell.key(self._job, self._ground.inputs)
        row = table.row_of(cell, key, fields, self._layer("teach", cell.fraction, cell.seed)[1])
        self._rows[key] = row
        self._write()
        what = f"{cell.method.title}, {100 * cell.fraction:g} % of the labels, seed {cell.seed}"
        if row["state"] != DONE:
            self._reporter.warn(f"{what}: failed, {row['state']}: {row['message']}")
        elif cell.kind == grid.RUN:
            scores = [f"{row[name]:.3f}" if row[name] is not None else "not known" for name in ("in_region", "unseen")]
            self._reporter.message(f"{what}: mIoU {scores[0]} in the region, {scores[1]} in the unseen one.")

    def _write(self) -> None:
        table.write(self._out, self._rows.values())
        self._written = list(self._rows)

    def _task(self, cell: Cell) -> Task:
        """The jobs of a run; label layers are written when they are first needed."""
        key = cell.key(self._job, self._ground.inputs)
        model = str(self._ground.folder / f"{key}.geopeft")
        searches = cell.kind == grid.SEARCH
        return Task(cell, key, self._fit(cell, model), {} if searches else self._scored(cell, model), searches)

    def _fit(self, cell: Cell, model: str) -> FitJob:
        job, method = self._job, cell.method
        choose = self._layer("choose", 1.0, 0)[0] if self._ground.shares.choose else ""
        fields: dict[str, Any] = {
            "rasters": job.rasters, "labels": self._layer("teach", cell.fraction, cell.seed)[0],
            "class_field": places.FIELD, "validation_labels": choose, "classes": self._ground.styles, "out": model,
            "folds": 1, "baselines": (), "backbone": method.backbone, "bands": job.bands,
            "radiometry": job.radiometry, "rank": job.rank, "steps": cell.steps, "rate": cell.rate, "seed": cell.seed,
            "device": job.device, "weights_dir": job.weights_dir, "resume": False, "metadata": method.metadata,
            # What a method takes is to be seen, and every run sees the same chips.
            "cache": False,
        }  # fmt: skip
        if method.backbone != grid.FOREST:
            fields |= {"adapter": method.adapter, "decoder": method.decoder}
        return FitJob(**fields)

    def _scored(self, cell: Cell, model: str) -> dict[str, EvaluateJob]:
        job = self._job
        shared: dict[str, Any] = {"model": model, "bands": job.bands, "device": job.device,
                                  "weights_dir": job.weights_dir}  # fmt: skip
        judge = self._layer("judge", 1.0, 0)[0]
        scored = {
            "in_region": EvaluateJob(**shared, rasters=job.rasters, labels=judge, class_field=places.FIELD),
            "unseen": EvaluateJob(
                **shared,
                rasters=job.unseen_rasters,
                labels=job.unseen_labels,
                class_field=job.class_field,
                background=job.background,
                area=job.unseen_area,
                line_width_px=job.line_width_px,
            ),
        }
        if job.blend and cell.method.backbone != grid.FOREST:
            scored |= {f"{name}{BLEND}": score for name, score in scored.items()}
        return scored

    def _layer(self, part: str, fraction: float, seed: int) -> tuple[str, int]:
        """FILE:layer of a part's places and how many there are; the shares of a part are nested by the seed."""
        seed = seed if fraction < 1 else 0
        if (part, fraction, seed) not in self._layers:
            chosen = places.nested(getattr(self._ground.shares, part), fraction, seed)
            path = self._ground.folder / f"{part}_{len(self._layers)}.gpkg"
            spec = places.write_places(path, chosen, self._ground.labels, self._ground.infos[0])
            self._layers[part, fraction, seed] = (spec, len(chosen))
        return self._layers[part, fraction, seed]


def _tell(
    job: StudyJob, methods: Sequence[Method], rows: Sequence[table.Row], out: Path, html: Path, reporter: Reporter
) -> dict[str, Any]:
    """Writes the page, and gives what the runs say."""
    summaries = table.summarise(rows, methods)
    verdicts = claims.judge(rows)
    write_bytes(html, page.compose(job, summaries, rows, verdicts).encode())
    failed = sum(row["state"] != DONE for row in rows)
    result: dict[str, Any] = {
        "runs": len(rows) - failed,
        "failed": failed,
        "methods": [_plain(found) for found in summaries],
        "claims": [
            {"claim": one.claim, "verdict": one.verdict, "numbers": one.numbers, "pairs": one.pairs} for one in verdicts
        ],
    }
    if job.json_file:
        write_bytes(Path(job.json_file), json.dumps(result, indent=1, ensure_ascii=False).encode())
        result["json"] = job.json_file
    reporter.message(f"{result['runs']} runs are done, {failed} have failed.")
    return {"table": str(out), "report": str(html), **result}


def _plain(found: table.Summary) -> dict[str, Any]:
    shown = (
        "in_region",
        "unseen",
        "trainable",
        "total",
        "step_s",
        "step_cpu_s",
        "epoch_s",
        "seconds",
        "training_mb",
        "gpu_mb",
    )
    figures = {name: {"mean": found.figures[name].mean, "sd": found.figures[name].sd} for name in shown}
    return {"method": found.method.title, "fraction": found.fraction, "failed": dict(found.failed), **figures}
