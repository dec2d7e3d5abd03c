"""What a report says of a map's accuracy, section by section, in the order in which an analyst asks."""

from __future__ import annotations

from collections.abc import Sequence

from geopeft.package import Manifest
from geopeft.report.charts import Dot, confusion_chart, curve_chart, dot_chart, reliability_chart
from geopeft.report.maps import RasterMaps
from geopeft.report.origin import file_name, without_folders
from geopeft.report.page import Markup, bullets, join, number, percent, section, signed, table, tag, thousands
from geopeft.report.scores import ClassScore, Interval, Rival, Scores

RIVALS = {"random-forest": "random forest", "unet": "UNet from scratch"}
PARTS = {"network": "network part", "classical": "classical part"}
# Beyond this an interval hardly says more than a guess, and a confidence should not be taken at its word.
WIDE, MISCALIBRATED = 0.25, 0.1
# A wider interval holds nearly all that a figure can be.
SAYS_NOTHING = 0.9
NO_FIGURES = (
    "No label was held out, so nothing is known of the accuracy of this map. Label more places in each class, apart "
    "from each other, and train again; or score the model on labels of its own with “evaluate”."
)


TOO_FEW = "These labels are too few, or lie in too few places, to tell how good the map is. Label more places."


def headline(scores: Scores, elsewhere: bool) -> Markup:
    """The figures that are asked for first, and in words how sure they are and what they do not cover.

    Args:
        elsewhere: the labels are others than the ones of the training.
    """
    if not scores.is_known:
        told = [TOO_FEW, _from_what(scores, elsewhere)] if scores.labels else [NO_FIGURES]
        said = (tag("p", text) for text in told)
        return section("How good is the map?", tag("div", *said, class_="note"), bullets(scores.left_out))
    named = (("mIoU", scores.miou, "overlap of map and labels, mean of the classes"),
             ("Overall accuracy", scores.overall_accuracy, "labelled pixels that are mapped right"),
             ("F1", scores.f1_macro, "precision and recall together, mean of the classes"))  # fmt: skip
    boxes = [tag("div", tag("span", name), tag("b", number(figure.value)), tag("span", _ends(figure)),
                 tag("span", what, class_="soft")) for name, figure, what in named]  # fmt: skip
    return section(
        "How good is the map?",
        tag("div", *boxes, class_="figures"),
        tag("p", _how_sure(scores)),
        tag("p", _from_what(scores, elsewhere)),
        tag("h3", "What these figures do not cover"),
        bullets([*_not_covered(elsewhere), *scores.left_out]),
    )


def _ends(figure: Interval) -> str:
    if figure.value is None:
        return "not known from these labels"
    return f"95 %: {number(figure.low)} to {number(figure.high)}" if figure.has_ends else "no interval: too few places"


def _how_sure(scores: Scores) -> str:
    figure = scores.miou
    if figure.value is None:
        return "The labels do not support an mIoU."
    if figure.low is None or figure.high is None:
        return (
            f"The mIoU on the held-out labels is {number(figure.value)}. They lie in too few separate places to "
            "tell how sure that is; take it as a hint, not as the accuracy of the map."
        )
    text = (
        f"At places like the labelled ones, the mIoU of this map lies between {number(figure.low)} and "
        f"{number(figure.high)}: an interval made this way holds the true value about 95 times in 100."
    )
    if figure.high - figure.low > WIDE:
        text += " That is a wide range. More labelled places, far from the present ones, would narrow it."
    return text


def _from_what(scores: Scores, elsewhere: bool) -> str:
    count = f"{thousands(scores.labels)} labelled pixels" if scores.labels is not None else "labelled pixels"
    side = f" of {_metres(scores.block_m)} side" if scores.block_m else ""
    blocks = (
        f" in {scores.blocks} separate block{'s' if scores.blocks != 1 else ''} of ground{side}"
        if scores.blocks
        else ""
    )
    text = f"Judged on {count}{blocks}."
    if elsewhere:
        text += " They are labels of their own; the figures hold as far as the training has not seen them."
    elif scores.split:
        text += f" Split: {without_folders(scores.split).rstrip('.')}."
    if scores.blocks:
        text += " Pixels of one block count as one piece of evidence, since neighbours resemble each other."
    return text


def _not_covered(elsewhere: bool) -> list[str]:
    first = (
        "Other rasters, seasons and sensors than the ones that were judged here."
        if elsewhere
        else "Other rasters, seasons and sensors than the ones that were trained on: score the model there with labels "
        "of their own."
    )
    return [
        first,
        "Ground that is unlike the labelled places. Labels that were drawn where classes are easy to see make every "
        "map look better than it is.",
        "Errors in the labels themselves: the map is compared with them, not with the ground.",
        "The area of a class. Counting pixels is biased; an area with an interval needs a random sample of places.",
    ]


def warnings(scores: Scores, said: Sequence[str]) -> Markup:
    """What must not be missed, said by the engine or seen in the figures."""
    found = [without_folders(text) for text in said]
    better = [rival for rival in scores.rivals if rival.difference.high is not None and rival.difference.high < 0]
    found += [
        f"The {RIVALS.get(rival.name, rival.name)} maps these labels better than this model: consider using it."
        for rival in better
    ]
    if scores.ece is not None and scores.ece > MISCALIBRATED:
        found.append(
            f"The confidence is off by {scores.ece * 100:.0f} percentage points on average: use it to rank places, not "
            "as a probability."
        )
    without = [known.name for known in scores.classes if known.iou.value is None]
    if without and scores.is_known:
        found.append(f"Nothing can be said of {_listed(without)}: see the table of the classes for the reason.")
    if not found:
        return Markup("")
    return tag("section", tag("h3", "Read this first"), bullets(found), class_="note")


def maps(pictures: Sequence[RasterMaps], manifest: Manifest, notes: Sequence[str]) -> Markup:
    """The scene, the map and how sure it is, with the legend."""
    if not pictures:
        return section("The map", *(tag("p", note, class_="soft") for note in notes)) if notes else Markup("")
    labelled = any(drawn.outlined for drawn in pictures)
    entries = [
        tag("li", tag("span", class_="swatch", style=f"background:{known.color}"), known.name)
        for known in manifest.classes
    ]
    entries.append(tag("li", "confidence 0 %", tag("span", class_="ramp"), "100 %"))
    return section(
        "The map",
        tag("ul", *entries, class_="legend"),
        *(part for drawn in pictures for part in _raster_maps(drawn, manifest, labelled)),
        *(tag("p", note, class_="soft") for note in notes),
    )


def _raster_maps(drawn: RasterMaps, manifest: Manifest, labelled: bool) -> list[Markup]:
    name, info = file_name(drawn.info.path), drawn.info
    height, width = int(drawn.window.height), int(drawn.window.width)
    shown = f"{_metres(width * info.gsd_m)} × {_metres(height * info.gsd_m)}"
    sure = f"; {percent(drawn.mean_confidence)} on average" if drawn.mean_confidence is not None else ""
    captions = (
        (drawn.scene, f"The raster in {drawn.colors}{', with the outlines of the labels' if drawn.outlined else ''}."),
        (drawn.classes, f"The map in its {len(manifest.classes)} classes."),
        (drawn.confidence, f"How sure the map is{sure}. Dark places deserve a look."),
    )
    size = {"width": width, "height": height}
    panels = [
        tag("figure", tag("img", src=uri, alt=f"{name}: {caption}", **size), tag("figcaption", caption))
        for uri, caption in captions
    ]
    parts = [tag("h3", name), tag("div", *panels, class_="maps")]
    if drawn.overview:
        text = (
            f"The pictures show {shown} ({width} × {height} pixels) of the raster's {thousands(info.width)} × "
            f"{thousands(info.height)} pixels, framed here: the part that holds most labels."
        )
        overview = tag("img", src=drawn.overview, alt=f"{name}: the whole raster with a frame around the mapped part")
        parts.append(tag("figure", overview, tag("figcaption", text), class_="locator"))
    else:
        parts.append(tag("p", f"The whole raster: {shown}, {width} × {height} pixels.", class_="soft"))
    if labelled and not drawn.outlined:
        parts.append(tag("p", "No label lies here: the figures say nothing of this raster."))
    return parts


def class_table(scores: Scores, manifest: Manifest) -> Markup:
    """Every class with its figures, or the reason why there is none."""
    if not scores.classes:
        return Markup("")
    colors = {known.name: known.color for known in manifest.classes}
    rows = [row for known in scores.classes for row in _class_rows(known, colors.get(known.name))]
    head = ("Class", "IoU", "F1", "Precision", "Recall", "Labelled pixels", "Blocks")
    text = "Held-out labels by class, with 95 % intervals where the labels support them"
    return section("Class by class", table(text, head, rows))


def _class_rows(known: ClassScore, color: str | None) -> list[Markup]:
    swatch = tag("span", class_="swatch", style=f"background:{color}") if color else Markup("")
    cells = [_cell(known.iou), _cell(known.f1)]
    cells += [tag("td", number(value)) for value in (known.precision, known.recall)]
    cells += [tag("td", thousands(count)) for count in (known.support, known.blocks)]
    name = tag("th", swatch, known.name, scope="row")
    missing = None in (known.iou.value, known.f1.value, known.precision, known.recall)
    reason = known.reason or ("No labelled pixel of this class was held out." if missing and not known.support else "")
    if not reason:
        return [tag("tr", name, *cells)]
    return [
        tag("tr", name, *cells, class_="has-reason"),
        tag("tr", tag("td", tag("span", without_folders(reason)), colspan=7), class_="reason"),
    ]


def _cell(figure: Interval) -> Markup:
    ends = Markup("")
    if figure.low is not None and figure.high is not None:
        says = figure.high - figure.low <= SAYS_NOTHING
        ends = tag("small", f"{number(figure.low)} to {number(figure.high)}" if says else "too few places to tell")
    return tag("td", number(figure.value), ends)


def confusion(scores: Scores) -> Markup:
    """What is taken for what."""
    names = [known.name for known in scores.classes]
    if not scores.confusion or len(names) != len(scores.confusion) or not any(map(any, scores.confusion)):
        return Markup("")
    text = (
        "Each row shows, in percent, where the labelled pixels of a class went. Blue on the diagonal is right; orange "
        "is a confusion."
    )
    chart = tag("div", confusion_chart(scores.confusion, names), class_="wide", tabindex=0, role="region",
                aria_label="Confusion matrix")  # fmt: skip
    return section("What is taken for what", tag("p", text), chart, _largest_confusions(scores, names))


def _largest_confusions(scores: Scores, names: Sequence[str]) -> Markup:
    pairs = [
        (value / sum(row), value, names[at], names[column])
        for at, row in enumerate(scores.confusion)
        for column, value in enumerate(row)
        if column != at and value and value / sum(row) >= 0.02
    ]
    worst = sorted(pairs, reverse=True)[:3]
    if not worst:
        return tag("p", "No class loses 2 % or more of its labelled pixels to another one.")
    texts = [f"{truth} mapped as {mapped}: {percent(share)} of its labelled pixels ({thousands(count)})."
             for share, count, truth, mapped in worst]  # fmt: skip
    return join([tag("h3", "The largest confusions"), bullets(texts)])


def confidence(scores: Scores) -> Markup:
    """Whether the map is right as often as it says."""
    if scores.ece is None and not scores.bins:
        return Markup("")
    told = [found.confidence * found.weight for found in scores.bins]
    right = [found.accuracy * found.weight for found in scores.bins]
    lean = sum(told) - sum(right)
    texts = []
    if scores.ece is not None:
        texts.append(
            f"On held-out places the confidence is off by {scores.ece * 100:.1f} percentage points on average "
            f"(expected calibration error, ECE {number(scores.ece, 3)})."
        )
    if scores.bins and abs(lean) >= 0.02:
        way = "surer than it should be" if lean > 0 else "less sure than it could be"
        texts.append(f"The map is {way} by {abs(lean) * 100:.0f} points on the whole.")
    texts.append("On the dashed line, 80 % sure means right in 80 of 100 cases. The larger a dot, the more pixels.")
    words = tag("div", *(tag("p", text) for text in texts))
    chart = tag("figure", reliability_chart(scores.bins)) if scores.bins else Markup("")
    return section("Can the confidence be believed?", tag("div", chart, words, class_="pair"))


def baselines(scores: Scores, asked: Sequence[str] = ()) -> Markup:
    """The map beside what an analyst would use otherwise, also when that wins.

    Args:
        asked: names of the baselines that the job asked for.
    """
    missing = [name for name in asked if name in RIVALS and name not in {rival.name for rival in scores.rivals}]
    parts = [(name, value) for name, value in scores.parts.items() if value is not None]
    if not scores.rivals and not parts:
        return Markup("")
    dots = [Dot("this map", scores.miou)]
    dots += [Dot(RIVALS.get(rival.name, rival.name), rival.miou, "second") for rival in scores.rivals]
    dots += [Dot(PARTS.get(name, name), Interval(value), "right", hollow=True) for name, value in parts]
    texts = []
    if parts:
        texts.append("The map blends its network part and its classical part; hollow dots show each of them alone.")
    charts = [tag("div", dot_chart(dots, "mIoU on the same held-out labels", 0, 1), class_="wide")]
    known = [rival for rival in scores.rivals if rival.difference.value is not None]
    if known:
        reach = max(abs(end) for rival in known for end in _known(rival.difference))
        reach = min(1.0, max(0.1, reach * 1.15))
        shown = [Dot(RIVALS.get(rival.name, rival.name), rival.difference, "wrong") for rival in known]
        title = "this map minus the other, in mIoU over the same blocks: right of 0 this map is better"
        charts.append(tag("div", dot_chart(shown, title, -reach, reach, zero=True), class_="wide"))
    return section(
        "Against simpler maps",
        bullets(
            [
                *map(_verdict, scores.rivals),
                *(
                    f"{_title(name)}: not judged on all places, the training was cut short "
                    "by its time limit or by a stop."
                    for name in missing
                ),
            ]
        ),
        *charts,
        *(tag("p", text, class_="soft") for text in texts),
        _rival_table(scores),
    )


def _verdict(rival: Rival) -> str:
    told, gap = f"{_title(rival.name)}, mIoU {number(rival.miou.value)}: ", rival.difference
    if gap.value is None or gap.low is None or gap.high is None:
        return f"{told}the labels are too few to say which is better."
    ends = f"{signed(gap.low)} to {signed(gap.high)}"
    if gap.low > 0:
        return f"{told}this map is better, by {gap.value:.2f} mIoU (difference {ends})."
    if gap.high < 0:
        return f"{told}it is better than this map, by {-gap.value:.2f} mIoU (difference {ends})."
    return f"{told}these labels do not tell the two apart (difference {signed(gap.value)}, {ends})."


def _title(name: str) -> str:
    title = RIVALS.get(name, name)
    return title[:1].upper() + title[1:]


def _rival_table(scores: Scores) -> Markup:
    if not scores.rivals:
        return Markup("")
    rows = [("This map", scores.miou, scores.overall_accuracy, scores.f1_macro, Interval())]
    rows += [(RIVALS.get(rival.name, rival.name), rival.miou, rival.overall_accuracy, rival.f1_macro, rival.difference)
             for rival in scores.rivals]  # fmt: skip
    written = [tag("tr", tag("th", name, scope="row"), *map(_cell, figures)) for name, *figures in rows]
    head = ("Map", "mIoU", "Overall accuracy", "F1", "Difference in mIoU")
    return table("All of them on the same held-out labels, with 95 % intervals", head, written)


def training(scores: Scores, manifest: Manifest) -> Markup:
    """The curve of the training."""
    best = manifest.hyperparameters.get("best_step")
    best = best if isinstance(best, int) and not isinstance(best, bool) else None
    chart = curve_chart(scores.history, best)
    if not chart:
        return Markup("")
    texts = [f"The weights of step {best} were kept (dashed line)."] if best else []
    if any(moment.miou is not None for moment in scores.history):
        texts.append("The held-out labels of this curve chose that step; it is no proof of the accuracy.")
    return section(
        "How the training went", tag("div", chart, class_="wide"), *(tag("p", text, class_="soft") for text in texts)
    )


def _known(figure: Interval) -> list[float]:
    return [value for value in (figure.value, figure.low, figure.high) if value is not None]


def _metres(metres: float) -> str:
    if metres >= 1000:
        return f"{metres / 1000:.{1 if metres < 20_000 else 0}f} km"
    return f"{metres:.0f} m" if metres >= 10 else f"{metres:.2g} m"


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
