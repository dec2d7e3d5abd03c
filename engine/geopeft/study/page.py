"""The page of a study: its table, its plots, and what the runs say of the published study's claims."""

from __future__ import annotations

from collections.abc import Sequence

from geopeft import __version__
from geopeft.job import StudyJob
from geopeft.report.origin import file_name, without_folders
from geopeft.report.page import NOT_KNOWN, Markup, document, facts, number, section, table, tag, thousands
from geopeft.study.claims import FAILED, HELD, Verdict
from geopeft.study.plots import Mark, lines, scatter
from geopeft.study.runs import DONE
from geopeft.study.table import Figure, Row, Summary

PAPER = "https://arxiv.org/abs/2504.17397"
NOTES = (
    "mIoU is over all classes with labels there, in percent: mean ± standard deviation of the runs, and each run. "
    "Memory is that of the process above what it held when the training began, of the CPU unless it says otherwise. "
    "An epoch is as many chips as places teach. Trained: all values that change, the decoder's too; in brackets those "
    "of the backbone alone. Only the network of each model is judged, not its blend with a forest."
)
HEAD = (
    "", "method", "labels", "in the region", "unseen region", "trained", "in all", "step", "epoch", "whole run",
    "memory", "rate",
)  # fmt: skip


def compose(job: StudyJob, summaries: Sequence[Summary], rows: Sequence[Row], verdicts: Sequence[Verdict]) -> str:
    """The page as HTML, which loads nothing.

    Args:
        rows: of the table, those of this study.
    """
    numbers = _numbers(summaries)
    title = "Study: " + ", ".join(dict.fromkeys(file_name(path) for path in job.rasters[:3]))
    head = tag("header", tag("h1", title), tag("p", _lead(job, summaries), class_="soft"))
    plots = tag("div", *_plots(summaries, numbers))
    return document(
        title,
        head,
        section("Methods", _table(summaries, numbers), tag("p", NOTES, class_="soft")),
        section("Accuracy against memory, labels and place", plots) if plots else Markup(""),
        section("What held of the published study's claims", *_claims(verdicts)),
        section("Runs that failed", *_failures(job, rows)),
        section("How it was done", _how(job, rows)),
        tag("footer", tag("p", f"Written by GeoPEFT {__version__}.")),
    )


def _numbers(summaries: Sequence[Summary]) -> dict[str, int]:
    """Title of a method -> its number."""
    return {title: at + 1 for at, title in enumerate(dict.fromkeys(found.method.title for found in summaries))}


def _lead(job: StudyJob, summaries: Sequence[Summary]) -> str:
    done = sum(len(found.figures["seconds"].values) for found in summaries)
    failed = sum(sum(found.failed.values()) for found in summaries)
    unseen = ", ".join(dict.fromkeys(file_name(path) for path in job.unseen_rasters[:3]))
    return f"{done} runs done, {failed} failed. Unseen region: {unseen}."


def _table(summaries: Sequence[Summary], numbers: dict[str, int]) -> Markup:
    rows = [tag("tr", *_cells(found, numbers[found.method.title])) for found in summaries]
    return table("Mean and standard deviation over the seeds", HEAD, rows, texts=(1,))


def _cells(found: Summary, at: int) -> list[Markup]:
    figures = found.figures
    gpu = figures["gpu_mb"].mean
    memory = f"{gpu:.0f} MiB GPU" if gpu is not None else _unit(figures["training_mb"].mean, "MiB", 0)
    backbone = found.mean("backbone_trainable")
    own = "" if backbone is None else f"({thousands(round(backbone))})"
    failed = ", ".join(f"{count} failed: {code}" for code, count in found.failed.items())
    method = [found.method.title, *([tag("small", failed)] if failed else [])]
    return [
        tag("td", str(at)),
        tag("td", *method, class_="text"),
        tag("td", f"{100 * found.fraction:.3g} %", _small(figures["places"].mean, "places")),
        _accuracy(figures["in_region"]),
        _accuracy(figures["unseen"]),
        tag("td", _count(found.mean("trainable")), *([tag("small", own)] if own else [])),
        tag("td", _count(found.mean("total"))),
        tag("td", _unit(found.mean("step_s"), "s", 3)),
        tag("td", _unit(found.mean("epoch_s"), "s", 2)),
        tag("td", _unit(found.mean("seconds"), "s", 1)),
        tag("td", memory),
        tag("td", ", ".join(f"× {rate:g}" for rate in found.rates) or NOT_KNOWN),
    ]


def _accuracy(figure: Figure) -> Markup:
    return tag("td", spread(figure), *[tag("small", f"{100 * value:.1f}") for value in figure.values])


def spread(figure: Figure) -> str:
    """Mean ± standard deviation in percent."""
    if figure.mean is None:
        return NOT_KNOWN
    return f"{100 * figure.mean:.1f}" + (f" ± {100 * figure.sd:.1f}" if figure.sd is not None else "")


def _count(value: float | None) -> str:
    return thousands(None if value is None else round(value))


def _unit(value: float | None, unit: str, digits: int) -> str:
    return NOT_KNOWN if value is None else f"{number(value, digits)} {unit}"


def _small(value: float | None, unit: str) -> Markup:
    return tag("small", _unit(value, unit, 0))


def _plots(summaries: Sequence[Summary], numbers: dict[str, int]) -> list[Markup]:
    """Accuracy against memory and in the region against elsewhere, of all labels; and against labels, where several
    shares of them have taught."""
    most = max((found.fraction for found in summaries), default=1.0)
    whole = [found for found in summaries if found.fraction == most]
    memory = "gpu_mb" if any(found.mean("gpu_mb") is not None for found in whole) else "training_mb"
    kind = "memory of the GPU" if memory == "gpu_mb" else "memory above the start"
    plots = [
        ("Accuracy in the unseen region against memory", scatter(
            _marks(whole, numbers, memory, "unseen", 1.0), f"{kind}, MiB", "mIoU in the unseen region, %")),
        ("In the region against elsewhere; below the line the unseen region is harder", scatter(
            _marks(whole, numbers, "in_region", "unseen", 100.0), "mIoU in the region, %",
            "mIoU in the unseen region, %", diagonal=True)),
    ]  # fmt: skip
    if len({found.fraction for found in summaries}) > 1:
        groups = [
            _marks([found for found in summaries if found.method.title == title], numbers, "places", "unseen", 1.0)
            for title in numbers
        ]
        drawn = lines([group for group in groups if group], "places that teach", "mIoU in the unseen region, %")
        plots.append(("Accuracy in the unseen region against labels", drawn))
    return [tag("figure", tag("h3", title), drawn) for title, drawn in plots if drawn]


def _marks(summaries: Sequence[Summary], numbers: dict[str, int], x: str, y: str, x_scale: float) -> list[Mark]:
    marks = []
    for found in summaries:
        across, up = found.figures[x], found.figures[y]
        if across.mean is not None and up.mean is not None:
            title = found.method.title
            place = (x_scale * across.mean, 100 * up.mean, x_scale * (across.sd or 0.0), 100 * (up.sd or 0.0))
            marks.append(Mark(numbers[title], title, *place, baseline=found.method.baseline))
    return marks


def _claims(verdicts: Sequence[Verdict]) -> list[Markup]:
    if not verdicts:
        return []
    rows = [
        tag("tr", tag("td", found.claim, class_="text"), tag("td", found.verdict, class_="text"),
            tag("td", found.numbers, class_="text"), tag("td", str(found.pairs)))
        for found in verdicts
    ]  # fmt: skip
    held, failed = (sum(found.verdict == word for found in verdicts) for word in (HELD, FAILED))
    open_ = len(verdicts) - held - failed
    lead = f"{held} held, {failed} did not, and of {open_} these runs cannot tell."
    caption = "Pairs of runs that differ in this only; accuracy with its 95 % interval"
    source = tag("a", "arXiv 2504.17397", href=PAPER)
    return [
        tag("p", lead),
        table(caption, ("claim", "here", "numbers", "pairs"), rows, texts=(0, 1, 2)),
        tag("p", "The claims are those of ", source, ", or what follows from its tables.", class_="soft"),
    ]


def _failures(job: StudyJob, rows: Sequence[Row]) -> list[Markup]:
    failed = [row for row in rows if row["state"] != DONE]
    if not failed:
        return []
    plain = job.model_dump()
    lines_ = [
        tag("tr", tag("td", " ".join(filter(None, (row["backbone"], row["adapter"], row["decoder"])))),
            tag("td", f"{row['fraction']:g}"), tag("td", f"{row['seed']:.0f}"), tag("td", row["state"], class_="text"),
            tag("td", without_folders(row["message"], plain), class_="text"))
        for row in failed
    ]  # fmt: skip
    return [table("Each is tried again by the next start of this study", ("method", "labels", "seed", "code", "why"),
                  lines_, texts=(3, 4))]  # fmt: skip


def _how(job: StudyJob, rows: Sequence[Row]) -> Markup:
    devices = ", ".join(dict.fromkeys(row["device"] for row in rows if row["device"]))
    steps = str(job.steps) if job.steps else "chosen from the labels"
    rates = ", ".join(f"{rate:g}" for rate in job.rates)
    searched = len(job.rates) > 1
    return facts(
        (
            ("Labels", file_name(job.labels)),
            ("Unseen labels", file_name(job.unseen_labels)),
            ("Steps", steps),
            ("Seeds", f"{job.seed} to {job.seed + job.seeds - 1}"),
            ("Learning rates", f"best of × {rates} after {job.search_steps} steps, first seed" if searched else rates),
            ("Background", job.background),
            ("Runs at the same time", str(job.processes)),
            ("Computed on", devices),
        )
    )
