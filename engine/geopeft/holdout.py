"""Which labels a fit keeps apart, to tell how well it went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from geopeft import accuracy
from geopeft.blending import place_of
from geopeft.data.chips import Chip, ChipReader, Site, covering_chips, find_sites
from geopeft.data.folds import deal_blocks
from geopeft.data.split import VALIDATION_SHARE, Split, block_side_px, blocks_of, split_by_blocks
from geopeft.events import Reporter
from geopeft.job import ClassStyle, FitJob
from geopeft.prepare import Prepared, labels_of
from geopeft.starting import Start

MAX_VALIDATION_CHIPS = 64
# Beside the first one, in each of which about as much is held out as in that, and so as much teaches.
MORE_FOLDS = round(1 / VALIDATION_SHARE) - 1
# With more labelled places a training takes so long that three more are not worth what they would tell.
FEW_PLACES = 40
# Of fewer, Student's t makes an interval more than twice as wide as the blocks' spread alone would.
FEWEST_BLOCKS = 4


@dataclass(frozen=True)
class HeldOut:
    """Which places teach, and which tell how well it went.

    Args:
        taught: positions of the teaching places in the list of all.
        withheld: (raster index, group) of the places whose pixels must not teach.
        chips: the validation chips with their places.
        places: how many labelled places they hold.
        sentence: how the labels were split, for the report.
        blocks: labelled place -> number of the block of ground that it lies in, of all places that may be judged.
        block_m: side of the blocks, None where it is not known.
        start: the model that is started from.
    """

    taught: np.ndarray
    withheld: list[tuple[int, int]]
    chips: list[tuple[Chip, tuple[int, int, int]]]
    places: int
    sentence: str
    blocks: Mapping[int, int] = field(default_factory=dict)
    block_m: float | None = None
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
        with ChipReader(prepared.infos, prepared.bands, given, prepared.units, prepared.chronicle) as other:
            other_sites = find_sites(other, seed=job.seed)
            chips = covering_chips(other, other_sites, size, MAX_VALIDATION_CHIPS, job.seed)
        places, sentence = len(other_sites), "the validation labels given"
        held = HeldOut(np.arange(len(sites)), [], chips, places, sentence, *_blocks(prepared, other_sites), start=start)
    else:
        parts, start = _split(job, prepared, sites, start, reporter)
        reporter.message(parts.sentence)
        chips = covering_chips(reader, parts.validation, size, MAX_VALIDATION_CHIPS, job.seed)
        withheld = {(site.raster_index, site.group) for site in parts.validation}
        taught = [i for i, site in enumerate(sites) if (site.raster_index, site.group) not in withheld]
        sentence = "blocks of the labels held out; they also stopped the training and set the blend, then taught too"
        blocks, places = _blocks(prepared, sites), len(parts.validation)
        held = HeldOut(np.array(taught), sorted(withheld), chips, places, sentence, *blocks, start=start)
    if not held.chips and (job.folds == 1 or job.validation_labels):
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


def more_folds(
    job: FitJob,
    prepared: Prepared,
    reader: ChipReader,
    sites: Sequence[Site],
    first: HeldOut,
    reporter: Reporter,
) -> list[HeldOut]:
    """Further folds, in which other places are held out: as many as the job asks for, or where labels are few.

    None where labels are kept apart for validation, and where an earlier model is started from, which knows the places
    that would be held out.
    """
    if job.folds == 1 or job.validation_labels or first.start is not None:
        return []
    held = np.ones(len(sites), bool)
    held[first.taught] = False
    short, nothing = _too_little(sites, first, held)
    more = nothing or (short and len(sites) <= FEW_PLACES)
    folds = _deal(job, prepared, reader, sites, first, held) if job.folds or more else []
    if folds:
        reporter.message(
            f"Held-out places are few: after the training of the model, {len(folds)} more with other places held out "
            "tell how good the map is. They may be stopped; the model stays."
        )
    elif not first.chips:
        reporter.warn("There are too few labels to hold any out: no accuracy is given. Label more places.")
    return folds


def _deal(
    job: FitJob, prepared: Prepared, reader: ChipReader, sites: Sequence[Site], first: HeldOut, held: np.ndarray
) -> list[HeldOut]:
    count = job.folds - bool(first.chips) if job.folds else MORE_FOLDS
    blocks = [first.blocks[place_of(site.raster_index, site.group)] for site in sites]
    folds = [
        _fold(prepared, reader, sites, positions, count, job.seed)
        for positions in deal_blocks(sites, blocks, held.tolist(), count, job.seed)
    ]
    return [replace(fold, blocks=first.blocks, block_m=first.block_m) for fold in folds if fold.chips]


def _too_little(sites: Sequence[Site], first: HeldOut, held: np.ndarray) -> tuple[bool, bool]:
    """Whether a class lies in fewer held-out blocks than its figures need, and in more on the whole; and whether no
    class that lies in several gets any figure."""
    places = np.array([(site.class_index, first.blocks[place_of(site.raster_index, site.group)]) for site in sites])

    def spread(chosen: np.ndarray) -> np.ndarray:
        return np.bincount(np.unique(places[chosen], axis=0)[:, 0], minlength=places[:, 0].max() + 1)

    judged, there = spread(held), spread(np.ones(len(sites), bool))
    several = there > 1
    short = (judged < FEWEST_BLOCKS) & (judged < there) & several
    return bool(short.any()), bool(several.any() and (judged[several] < accuracy.FEWEST_BLOCKS).all())


def _fold(
    prepared: Prepared, reader: ChipReader, sites: Sequence[Site], positions: Sequence[int], count: int, seed: int
) -> HeldOut:
    withheld = {(sites[at].raster_index, sites[at].group) for at in positions}
    taught = [at for at, site in enumerate(sites) if (site.raster_index, site.group) not in withheld]
    most = max(MAX_VALIDATION_CHIPS // count, 8)
    chips = covering_chips(reader, [sites[at] for at in positions], prepared.spec.chip_size_px, most, seed)
    return HeldOut(np.array(taught), sorted(withheld), chips, len(positions), "")


def split_sentence(folds: Sequence[HeldOut], judged: int, done: int) -> str:
    """How the labels were split, for the report.

    Args:
        judged: folds with held-out places that were judged.
        done: folds that are done.
    """
    first = folds[0].sentence
    if len(folds) == 1:
        return first
    if not judged:
        return "no labels held out"
    planned = len(folds) - (not folds[0].chips)
    text = f"{judged} folds of blocks of the labels: every place is judged by a training that did not see its block"
    if done < len(folds):
        text = f"{judged} of {planned} folds of blocks of the labels; the others were not trained"
    return f"{text}; all labels teach the map itself"


def _blocks(prepared: Prepared, sites: Sequence[Site]) -> tuple[dict[int, int], float | None]:
    """Labelled place -> number of its block, and the side of the blocks in metres; of several rasters, the longest."""
    size = prepared.spec.chip_size_px
    keys = blocks_of(sites, size)
    numbers = {key: number for number, key in enumerate(sorted(set(keys)))}
    result: dict[int, int] = {}
    for site, key in zip(sites, keys, strict=True):
        result.setdefault(place_of(site.raster_index, site.group), numbers[key])
    sides = []
    for index in sorted({site.raster_index for site in sites}):
        own = [site for site in sites if site.raster_index == index]
        centres, classes = np.array([s.points.mean(0) for s in own]), np.array([s.class_index for s in own])
        sides.append(block_side_px(centres, classes, size) * prepared.infos[index].gsd_m)
    return result, round(max(sides), 1) if sides else None
