"""Which labels a fit keeps apart, to tell how well it went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from geopeft.data.chips import Chip, ChipReader, Site, covering_chips, find_sites
from geopeft.data.split import Split, split_by_blocks
from geopeft.events import Reporter
from geopeft.job import ClassStyle, FitJob
from geopeft.prepare import Prepared, labels_of
from geopeft.starting import Start

MAX_VALIDATION_CHIPS = 64


@dataclass(frozen=True)
class HeldOut:
    """Which places teach, and which tell how well it went.

    Args:
        taught: positions of the teaching places in the list of all.
        withheld: (raster index, group) of the places whose pixels must not teach.
        chips: the validation chips with their places.
        places: how many labelled places they hold.
        sentence: how the labels were split, for the report.
        start: the model that is started from.
    """

    taught: np.ndarray
    withheld: list[tuple[int, int]]
    chips: list[tuple[Chip, tuple[int, int, int]]]
    places: int
    sentence: str
    start: Start | None = None


def hold_out(
    job: FitJob,
    prepared: Prepared,
    reader: ChipReader,
    sites: Sequence[Site],
    reporter: Reporter,
    start: Start | None = None,
) -> HeldOut:
    """Holds labels out, or takes those that were given for it; where an earlier model is started from, only places that
    it does not know."""
    size = prepared.spec.chip_size_px
    if job.validation_labels:
        styles = [ClassStyle(value=c.value, name=c.name, color=c.color) for c in prepared.labels.classes]
        given = labels_of(job, job.validation_labels, prepared.infos, styles, reporter, minimum_classes=1)
        with ChipReader(prepared.infos, prepared.bands, given, prepared.units) as other:
            other_sites = find_sites(other, seed=job.seed)
            chips = covering_chips(other, other_sites, size, MAX_VALIDATION_CHIPS, job.seed)
        sentence = "the validation labels given"
        held = HeldOut(np.arange(len(sites)), [], chips, len(other_sites), sentence, start)
    else:
        parts, start = _split(job, prepared, sites, start, reporter)
        reporter.message(parts.sentence)
        chips = covering_chips(reader, parts.validation, size, MAX_VALIDATION_CHIPS, job.seed)
        withheld = {(site.raster_index, site.group) for site in parts.validation}
        taught = [i for i, site in enumerate(sites) if (site.raster_index, site.group) not in withheld]
        sentence = "blocks of the labels held out; they also stopped the training and set the blend, then taught too"
        held = HeldOut(np.array(taught), sorted(withheld), chips, len(parts.validation), sentence, start)
    if not held.chips:
        reporter.warn("There are too few labels to hold any out: no accuracy is given. Label more places.")
        return replace(held, sentence="no labels held out")
    return held


def _split(
    job: FitJob, prepared: Prepared, sites: Sequence[Site], start: Start | None, reporter: Reporter
) -> tuple[Split, Start | None]:
    """The held-out places, and the start where it leaves enough places that it does not know."""
    size = prepared.spec.chip_size_px
    fresh = split_by_blocks(sites, size, job.seed)
    if start is None or start.memory is None:
        return fresh, start
    going_on = split_by_blocks(sites, size, job.seed, earlier=start.memory.roles(prepared.infos, sites))
    unjudged = {site.class_index for site in fresh.validation} - {site.class_index for site in going_on.validation}
    if not unjudged:
        reporter.message(start.sentence(prepared.labels.classes))
        return going_on, start
    names = ", ".join(prepared.labels.classes[index].name for index in sorted(unjudged))
    reporter.warn(
        f"{start.path.name} has learned from all places labelled {names}, so that the accuracy could not be told: the "
        "training starts afresh."
    )
    return fresh, None
