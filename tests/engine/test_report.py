"""The report: one file that loads nothing, tells every figure, and invents none."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from conftest import MakeLabels, MakeRaster  # type: ignore[import-not-found]
from geopeft import package
from geopeft.errors import GeopeftError
from geopeft.evaluate import run as evaluate
from geopeft.events import Reporter
from geopeft.fit import run as fit
from geopeft.job import EvaluateJob, FitJob, ReportJob
from geopeft.models import build
from geopeft.models.spec import InputBand, ModelSpec
from geopeft.report import compose, run, write_beside
from geopeft.report.maps import WINDOW_PX
from geopeft.report.origin import environment, file_name, job_record, without_folders
from geopeft.report.page import number, percent, tag, thousands
from geopeft.report.scores import Interval, Scores

EVIL = "<script>alert('x')</script>"
VOID = {"img", "meta", "br", "hr", "rect", "circle", "line", "path", "polyline"}


def interval(value: float, low: float | None, high: float | None) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high}


def class_figures(name: str, at: int) -> dict[str, Any]:
    iou = 0.41 + at / 100
    return {"name": name, "iou": iou, "iou_low": iou - 0.2, "iou_high": iou + 0.1, "f1": iou + 0.13,
            "f1_low": iou + 0.01, "f1_high": iou + 0.21, "precision": iou + 0.17, "recall": iou + 0.23,
            "support": 1000 + at, "blocks": 4 + at, "reason": ""}  # fmt: skip


def figures(names: list[str]) -> dict[str, Any]:
    """All that the engine may say of a map."""
    count = len(names)
    matrix = (np.full((count, count), 7) + np.eye(count, dtype=int) * 500).tolist()
    return {
        "miou": interval(0.612, 0.533, 0.694),
        "overall_accuracy": interval(0.771, 0.702, 0.833),
        "f1_macro": interval(0.748, 0.681, 0.812),
        "classes": [class_figures(name, at) for at, name in enumerate(names)],
        "confusion_matrix": matrix,
        "labels": 12345,
        "blocks": 17,
        "block_m": 640.0,
        "folds": 5,
        "split": "5 folds of blocks of the labels",
        "calibration": {"ece": 0.137, "bins": [{"confidence": 0.55, "accuracy": 0.42, "weight": 0.3},
                                               {"confidence": 0.93, "accuracy": 0.81, "weight": 0.7}]},
        "baselines": {
            "random-forest": {"miou": interval(0.659, 0.58, 0.71), "overall_accuracy": interval(0.79, 0.71, 0.84),
                              "f1_macro": interval(0.76, 0.7, 0.82), "difference": interval(-0.047, -0.08, -0.013)},
            "unet": {"miou": interval(0.501, 0.42, 0.58), "overall_accuracy": interval(0.68, 0.6, 0.75),
                     "f1_macro": interval(0.64, 0.55, 0.7), "difference": interval(0.111, 0.06, 0.17)},
        },
        "left_out": ["No area is estimated: the labels are no probability sample."],
        "history": [{"step": step, "loss": 2 / (1 + step), "miou": step / 100} for step in range(0, 60, 10)],
        "parts": {"network": 0.587, "classical": 0.566},
        "seconds": 83.2,
        "peak_memory_mb": 900.0,
    }  # fmt: skip


def manifest(names: list[str], metrics: Mapping[str, Any], **changes: Any) -> package.Manifest:
    bands = tuple(InputBand(name=name, common=name, wavelength_um=wave, scale=0.0001, offset=-0.1, mean=0.2, std=0.1)
                  for name, wave in (("red", 0.665), ("green", 0.56), ("blue", 0.49)))  # fmt: skip
    spec = ModelSpec(backbone="scratch_unet", adapter="full", decoder="unet", bands=bands, num_classes=len(names),
                     gsd_m=10, chip_size_px=32)  # fmt: skip
    classes = tuple(
        package.ClassInfo(value=at + 1, name=name, color=f"#{at * 5 + 16:02x}8040", label=name)
        for at, name in enumerate(names)
    )
    base = package.BaseWeights(backbone="a_backbone", licence="MIT", revision="0bbc53", sha256="ab" * 32,
                               paper="https://arxiv.org/abs/1")  # fmt: skip
    fields: dict[str, Any] = {
        "engine_version": "0.1.0", "created": "2026-01-01T00:00:00+00:00", "name": "m", "spec": spec,
        "classes": classes, "base_weights": base, "radiometry": "unknown", "dtype": "uint16", "metrics": dict(metrics),
        "seed": 11,
    }  # fmt: skip
    return package.Manifest(**fields | changes)


class Reader(HTMLParser):
    """Follows the elements; fails where one is not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)

    def handle_startendtag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.found.append((name, dict(attributes)))

    def handle_endtag(self, name: str) -> None:
        assert self.open and self.open.pop() == name, f"</{name}> closes nothing"

    def handle_data(self, text: str) -> None:
        if "style" not in self.open:
            self.texts.append(text)

    @property
    def text(self) -> str:
        return re.sub("[ \\n]+", " ", " ".join(self.texts))


def page_of(names: list[str], metrics: Mapping[str, Any], **changes: Any) -> Reader:
    return Reader(compose(manifest(names, metrics, **changes), "m.geopeft"))


def loads(page: Reader) -> list[str]:
    """Addresses that a browser would fetch by itself."""
    names = {"src", "srcset", "data", "poster", "background", "xlink:href", "action"}
    found = [value or "" for _, attributes in page.found for key, value in attributes.items() if key in names]
    found += [
        attributes.get("href") or "" for name, attributes in page.found if name in ("link", "base", "use", "image")
    ]
    return [value for value in found if not value.startswith("data:image/")]


NAMES = ["water", "trees", "built"]


def test_every_figure_is_told() -> None:
    text = page_of(NAMES, figures(NAMES)).text
    said = ["0.61", "0.53 to 0.69", "0.77", "0.70 to 0.83", "0.75", "0.68 to 0.81", "12\u202f345", "17", "640 m",
            "5 folds", "0.137", "13.7", "0.66", "−0.08 to −0.01", "0.50", "+0.06 to +0.17", "0.59", "0.57", "83 s",
            "no probability sample"]  # fmt: skip
    for known in figures(NAMES)["classes"]:
        said += [known["name"], thousands(known["support"]), f"{known['iou_low']:.2f} to {known['iou_high']:.2f}"]
        said += [f"{known[key]:.2f}" for key in ("iou", "f1", "precision", "recall")]
    assert [figure for figure in said if figure not in text] == []


def test_the_file_loads_nothing_and_runs_nothing() -> None:
    page = page_of(NAMES, figures(NAMES))
    assert loads(page) == []
    assert "script" not in {name for name, _ in page.found}
    style = compose(manifest(NAMES, figures(NAMES)), "m").split("<style>")[1].split("</style>")[0]
    assert "url(" not in style and "@import" not in style
    policy = next(a["content"] for n, a in page.found if n == "meta" and a.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'")


def test_text_from_data_is_escaped_wherever_it_stands() -> None:
    names = [f"{EVIL}{at}" for at in range(3)]
    metrics = figures(names) | {"split": EVIL, "left_out": [EVIL]}
    metrics["classes"][0] |= {"iou": None, "reason": EVIL}
    metrics["baselines"][EVIL] = metrics["baselines"]["unet"]
    metrics["parts"][EVIL] = 0.4
    base = package.BaseWeights(backbone=EVIL, licence=EVIL, revision=EVIL, sha256=EVIL, paper=EVIL)
    changes = {"name": EVIL, "assumptions": (EVIL,), "warnings": (EVIL + "!",), "base_weights": base, "created": EVIL,
               "job": {"rasters": [f"{EVIL}.tif"], "labels": EVIL}, "environment": {EVIL: EVIL},
               "dtype": EVIL}  # fmt: skip
    page = Reader(compose(manifest(names, metrics, **changes), f"{EVIL}.geopeft", notes=[EVIL]))
    assert "script" not in {name for name, _ in page.found}
    assert not [key for _, attributes in page.found for key in attributes if key.startswith("on")]
    assert page.text.count("<script>") > 20


def test_a_quote_in_a_name_does_not_leave_its_attribute() -> None:
    written = tag("img", alt='a" onload="x', src="data:,")
    assert written == '<img alt="a&quot; onload=&quot;x" src="data:,"/>'


def test_a_paper_that_is_no_address_of_the_web_is_no_link() -> None:
    base = package.BaseWeights(backbone="b", licence="MIT", paper="javascript:alert(1)")
    page = page_of(NAMES, figures(NAMES), base_weights=base)
    assert [attributes for name, attributes in page.found if name == "a"] == []


def test_what_is_not_known_is_a_reason_and_never_a_number() -> None:
    metrics = figures(NAMES)
    metrics["classes"][1] |= dict.fromkeys(("iou", "iou_low", "iou_high", "f1", "f1_low", "f1_high", "precision",
                                            "recall")) | {"reason": "It lies in one block only."}  # fmt: skip
    metrics["miou"] = interval(0.61, None, None)
    page = page_of(NAMES, metrics)
    assert "It lies in one block only." in page.text and "no interval: too few places" in page.text
    row = page.text.split("Class by class")[1].split("trees")[1].split("1\u202f001")[0]
    assert row.split() == ["–"] * 4
    assert "nan" not in page.text.lower() and "None" not in page.text


def test_figures_that_are_no_numbers_are_not_known() -> None:
    broken = {"miou": {"value": float("nan"), "low": "x", "high": True}, "overall_accuracy": 3, "classes": "no",
              "confusion_matrix": [[1, 2], [3]], "blocks": -1, "calibration": {"ece": float("inf"), "bins": [{}, 4]},
              "history": [{"step": None, "loss": 1}], "baselines": [1], "parts": None, "left_out": [1]}  # fmt: skip
    scores = Scores.read(broken)
    assert scores.miou == Interval() and not scores.is_known and scores.blocks is None
    assert (scores.confusion, scores.bins, scores.history, scores.rivals) == ((), (), (), ())
    assert "No label was held out" in page_of(NAMES, broken).text


def test_without_held_out_labels_it_says_so() -> None:
    text = page_of(NAMES, {}).text
    assert "No label was held out" in text and "NaN" not in text
    assert "95 %:" not in text and "What is taken for what" not in text and "Against simpler maps" not in text


def test_a_package_of_an_older_engine_gives_what_is_there() -> None:
    metrics = figures(NAMES)
    for key in ("calibration", "baselines", "left_out", "history", "block_m", "folds"):
        del metrics[key]
    for known in metrics["classes"]:
        for key in ("iou_low", "iou_high", "f1_low", "f1_high", "blocks", "reason"):
            del known[key]
    text = page_of(NAMES, metrics).text
    assert "0.61" in text and "0.53 to 0.69" in text and "did not keep the job" in text
    assert "Can the confidence be believed" not in text and "network part" in text


def test_a_baseline_that_wins_is_said_to_win() -> None:
    text = page_of(NAMES, figures(NAMES)).text
    first, rest = text.split("How good is the map?")
    assert "The random forest maps these labels better" in first
    assert "Random forest, mIoU 0.66: it is better than this map" in rest
    assert "UNet from scratch, mIoU 0.50: this map is better" in rest


def test_a_difference_across_zero_decides_nothing() -> None:
    metrics = figures(NAMES)
    metrics["baselines"]["unet"]["difference"] = interval(0.02, -0.03, 0.07)
    assert "do not tell the two apart (difference +0.02" in page_of(NAMES, metrics).text


def test_confidence_that_is_too_high_is_said_to_be() -> None:
    text = page_of(NAMES, figures(NAMES)).text
    assert "surer than it should be by 12 points" in text
    assert "off by 14 percentage points on average: use it to rank" in text


def test_an_interval_that_holds_everything_is_not_printed() -> None:
    metrics = figures(NAMES)
    metrics["classes"][0] |= {"iou_low": 0.01, "iou_high": 0.99}
    text = page_of(NAMES, metrics).text
    assert "too few places to tell" in text and "0.01 to 0.99" not in text
    assert "too few places to tell" not in page_of(NAMES, figures(NAMES)).text


@pytest.mark.parametrize("count", [2, 9, 20, 40])
def test_the_confusion_matrix_draws_every_cell(count: int) -> None:
    names = [f"class number {at} with a long name" for at in range(count)]
    page = page_of(names, figures(names))
    cells = [a for name, a in page.found if name == "rect" and a.get("class") == "cell"]
    assert len(cells) == count**2
    label = next(a["aria-label"] for n, a in page.found if n == "svg" and "Confusion" in (a["aria-label"] or ""))
    assert label is not None and label.count("mapped right") == count
    written = [a for name, a in page.found if name == "text" and a.get("class") == "on"]
    assert len(written) == (count if count <= 20 else 0)


def test_pictures_have_texts_and_headings_have_an_order() -> None:
    page = page_of(NAMES, figures(NAMES))
    assert all(a.get("role") == "img" and a.get("aria-label") for n, a in page.found if n == "svg")
    levels = [int(name[1]) for name, _ in page.found if re.fullmatch("h[1-6]", name)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels[1:], levels[2:], strict=False))
    assert ("html", {"lang": "en"}) in page.found


def test_warnings_come_before_the_figures_and_not_twice() -> None:
    page = page_of(NAMES, figures(NAMES), warnings=("Beware of B.",), assumptions=("It was so.", "Beware of B."))
    assert page.text.count("Beware of B.") == 1
    assert page.text.index("Beware of B.") < page.text.index("How good is the map?") < page.text.index("It was so.")


def test_figures_of_other_labels_take_the_place_of_the_package_s_own() -> None:
    other = copy.deepcopy(figures(NAMES)) | {"miou": interval(0.444, 0.4, 0.5)}
    page = Reader(compose(manifest(NAMES, figures(NAMES)), "m.geopeft", figures=other))
    assert "0.44" in page.text and "They are labels of their own" in page.text
    assert "0.53 to 0.69" not in page.text


def test_small_and_large_shares_are_not_rounded_to_none_and_all() -> None:
    assert [percent(share) for share in (0.0, 0.001, 0.5, 0.999, 1.0, None)] == [
        "0 %", "<1 %", "50 %", ">99 %", "100 %", "–"]  # fmt: skip
    assert (number(None), number(-0.5), thousands(None)) == ("–", "−0.50", "–")


def test_the_job_is_kept_without_anybody_s_folders() -> None:
    job = FitJob(rasters=("/home/jane doe/a.tif", "https://host/x/b.tif?token=s3cret", r"C:\Users\jane\c.tif"),
                 labels="/home/jane doe/labels.gpkg:train", out="/home/jane doe/m.geopeft",
                 weights_dir="/home/jane doe/w", area="/home/jane doe/area.gpkg", json_file="/home/jane doe/f.json",
                 backbone="/home/jane doe/b.safetensors")  # fmt: skip
    record = job_record(job)
    assert record["rasters"] == ["a.tif", "b.tif", "c.tif"]
    assert (record["labels"], record["out"], record["backbone"]) == ("labels.gpkg:train", "m.geopeft", "b.safetensors")
    assert "jane" not in json.dumps(record) and "s3cret" not in json.dumps(record)
    assert record["seed"] == 0 and "validation_labels" not in record


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("the weights folder /srv/data/weights.", "the weights folder weights."),
        ("Reflectance = value / 10000 of red/nir/blue", "Reflectance = value / 10000 of red/nir/blue"),
        ("see https://arxiv.org/abs/1905.11946", "see https://arxiv.org/abs/1905.11946"),
        (r"C:\Users\jane\scene.tif has 3 bands", "scene.tif has 3 bands"),
        ("'/srv/jane/a.tif' is gone", "'a.tif' is gone"),
        ("couldn't open '/srv/jane doe/a b.tif'", "couldn't open 'a b.tif'"),
        (r'"D:\jane doe\a b.tif" is gone', '"a b.tif" is gone'),
        ("/home/jane doe/x y.tif is gone", "x y.tif is gone"),
    ],
)
def test_folders_are_cut_off_in_sentences(text: str, short: str) -> None:
    assert without_folders(text, {"rasters": ["/home/jane doe/x y.tif"]}) == short


def test_file_names_of_any_system() -> None:
    assert [file_name(path) for path in ("/a/b.tif", r"d:\a\b.tif", "/vsizip/x.zip/b.tif", "b.gpkg:l", "WMS:?k=1")] == [
        "b.tif", "b.tif", "b.tif", "b.gpkg:l", "WMS:"]  # fmt: skip


def test_versions_are_told_but_not_the_machine() -> None:
    found = environment("cpu", 3)
    assert {"geopeft", "python", "torch", "rasterio", "platform", "device", "threads"} <= set(found)
    import platform

    assert platform.node() not in json.dumps(found) or len(platform.node()) < 4


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A package of a small network that has learned nothing; enough to draw maps with."""
    described = manifest(
        NAMES, figures(NAMES), base_weights=package.BaseWeights(backbone="scratch_unet", licence="none")
    )
    torch.manual_seed(0)
    network = build(described.spec, None, pretrained=False)
    weights = {name: tensor.numpy() for name, tensor in network.trainable_state().items()}
    package.write(tmp_path / "m.geopeft", described, weights)
    return tmp_path / "m.geopeft"


def scene(height: int = 90, width: int = 120) -> np.ndarray:
    return np.random.default_rng(0).integers(1000, 3000, (3, height, width)).astype(np.uint16)


def square(left: int, top: int, side: int = 12) -> shapely.Geometry:
    """In pixels of the rasters of `make_raster`."""
    x, y = 300_000 + 10 * left, 5_800_000 - 10 * top
    return shapely.box(x, y - 10 * side, x + 10 * side, y)


def test_two_rasters_are_shown_with_maps_and_outlines(
    model: Path, make_raster: MakeRaster, make_labels: MakeLabels, tmp_path: Path, folder_unchanged: None
) -> None:
    rasters = [make_raster(scene(), name, names=("red", "green", "blue")) for name in ("a<b>.tif", "c.tif")]
    labels = make_labels([square(10, 10), square(60, 40)], ["water", "trees"])
    job = ReportJob(model=str(model), rasters=tuple(map(str, rasters)), labels=str(labels), class_field="class",
                    out=str(tmp_path / "r"), device="cpu")  # fmt: skip
    outputs = run(job, Reporter())
    text = Path(outputs["report"]).read_text(encoding="utf-8")
    page = Reader(text)
    images = [attributes for name, attributes in page.found if name == "img"]
    assert outputs["report"].endswith("r.html") and len(images) == 6 and loads(page) == []
    assert all(image["alt"] and image["alt"].split(": ")[0] in ("a<b>.tif", "c.tif") for image in images)
    assert page.text.count("with the outlines of the labels") == 2
    assert str(tmp_path) not in text and len(text) < 2_000_000


def test_of_a_large_raster_the_part_with_the_labels_is_shown(
    model: Path, make_raster: MakeRaster, make_labels: MakeLabels, tmp_path: Path
) -> None:
    raster = make_raster(scene(WINDOW_PX + 300, WINDOW_PX + 500), names=("red", "green", "blue"))
    labels = make_labels([square(1100, 900), square(1150, 960), square(5, 5)], ["water", "trees", "water"])
    job = ReportJob(model=str(model), rasters=(str(raster),), labels=str(labels), class_field="class",
                    out=str(tmp_path / "r.html"), device="cpu")  # fmt: skip
    run(job, Reporter())
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    page = Reader(text)
    assert len([name for name, _ in page.found if name == "img"]) == 4
    assert "framed here" in page.text and len(text) < 2_000_000


def test_a_raster_without_labels_is_not_vouched_for(
    model: Path, make_raster: MakeRaster, make_labels: MakeLabels, tmp_path: Path
) -> None:
    from affine import Affine

    away = Affine(10, 0, 400_000, 0, -10, 5_800_000)
    rasters = [make_raster(scene(), names=("red", "green", "blue")),
               make_raster(scene(), "far.tif", names=("red", "green", "blue"), transform=away)]  # fmt: skip
    labels = make_labels([square(10, 10), square(60, 40)], ["water", "trees"])
    job = ReportJob(model=str(model), rasters=tuple(map(str, rasters)), labels=str(labels), class_field="class",
                    out=str(tmp_path / "r.html"), device="cpu")  # fmt: skip
    run(job, Reporter())
    text = Reader((tmp_path / "r.html").read_text(encoding="utf-8")).text
    assert text.count("the figures say nothing of this raster") == 1
    assert text.index("far.tif") < text.index("the figures say nothing of this raster")


def test_labels_that_cannot_be_read_are_told_and_do_not_cost_the_report(
    model: Path, make_raster: MakeRaster, tmp_path: Path
) -> None:
    raster = make_raster(scene(), names=("red", "green", "blue"))
    job = ReportJob(model=str(model), rasters=(str(raster),), labels=str(tmp_path / "gone.gpkg"), class_field="class",
                    out=str(tmp_path / "r.html"), device="cpu")  # fmt: skip
    run(job, Reporter())
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "The labels are not drawn" in text and str(tmp_path) not in text


def test_a_raster_that_is_not_there_fails_and_leaves_no_file(model: Path, tmp_path: Path) -> None:
    job = ReportJob(model=str(model), rasters=(str(tmp_path / "gone.tif"),), out=str(tmp_path / "r.html"), device="cpu")
    with pytest.raises(GeopeftError):
        run(job, Reporter())
    assert not (tmp_path / "r.html").exists()


def test_a_training_writes_its_report_and_keeps_folders_to_itself(
    make_raster: MakeRaster, make_labels: MakeLabels, tmp_path: Path
) -> None:
    values = scene(128, 128)
    values[:, :, 64:] += 4000
    raster = make_raster(values, names=("red", "green", "blue"))
    boxes = [square(col, row) for row in range(6, 116, 28) for col in (8, 36, 76, 104)]
    labels = make_labels(boxes, ["left", "left", "right", "right"] * 4)
    job = FitJob(rasters=(str(raster),), labels=str(labels), class_field="class", out=str(tmp_path / "m.geopeft"),
                 backbone="scratch_unet", adapter="full", steps=2, folds=1, device="cpu",
                 report=str(tmp_path / "r.html"))  # fmt: skip
    outputs = fit(job, Reporter())
    text = Path(outputs["report"]).read_text(encoding="utf-8")
    described = package.read_manifest(tmp_path / "m.geopeft")
    assert "How to repeat it" in text and len([1 for name, _ in Reader(text).found if name == "img"]) == 3
    assert described.job["labels"] == "labels.gpkg" and described.environment["device"] == "cpu"
    assert str(tmp_path) not in text and str(tmp_path) not in described.model_dump_json()


def test_an_evaluation_writes_a_report_of_its_own_figures(
    model: Path, make_raster: MakeRaster, make_labels: MakeLabels, tmp_path: Path
) -> None:
    raster = make_raster(scene(), names=("red", "green", "blue"))
    labels = make_labels([square(10, 10), square(60, 40)], ["water", "trees"])
    job = EvaluateJob(model=str(model), rasters=(str(raster),), labels=str(labels), class_field="class", device="cpu",
                      report=str(tmp_path / "r.html"))  # fmt: skip
    outputs = evaluate(job, Reporter())
    text = Reader(Path(outputs["report"]).read_text(encoding="utf-8")).text
    assert "They are labels of their own" in text and "too few, or lie in too few places" in text
    assert "288 labelled pixels" in text and "12\u202f345" not in text
    with pytest.raises(GeopeftError, match="whole map"):
        evaluate(job.model_copy(update={"part": "network"}), Reporter())


def test_a_report_that_cannot_be_written_does_not_cost_the_figures(model: Path, tmp_path: Path) -> None:
    reporter = Reporter()
    job = EvaluateJob(
        model=str(model), rasters=(str(tmp_path / "gone.tif"),), labels="l", report=str(tmp_path / "r.html")
    )
    assert write_beside(job, model, reporter, figures(NAMES)) == {}
    assert "The report could not be written" in reporter.warnings[0]


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"a": 1}'])
def test_a_file_without_figures_is_refused(model: Path, tmp_path: Path, body: str) -> None:
    (tmp_path / "f.json").write_text(body)
    job = ReportJob(model=str(model), figures=str(tmp_path / "f.json"), out=str(tmp_path / "r.html"), device="cpu")
    with pytest.raises(GeopeftError, match="figures"):
        run(job, Reporter())


def test_a_baseline_that_was_asked_for_and_is_not_there_is_told() -> None:
    metrics = figures(NAMES)
    del metrics["baselines"]["unet"]
    job = {"baselines": ["random-forest", "unet", 4]}
    assert "UNet from scratch: not judged on all places" in page_of(NAMES, metrics, job=job).text
    assert "not judged on all places" not in page_of(NAMES, figures(NAMES), job=job).text
