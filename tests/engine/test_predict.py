"""Many rasters in one predict job: failures, names, progress, cancel, and maps that say where they come from."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from geopeft import __version__, package, predict
from geopeft.errors import Canceled, GeopeftError
from geopeft.events import Reporter
from geopeft.job import parse
from geopeft.maps import one_map, parts
from geopeft.models import build
from geopeft.models.spec import InputBand, ModelSpec

MakeRaster = Callable[..., Path]
NAMES = ("red", "nir")
VALUES = np.random.default_rng(0).integers(1, 3000, (2, 150, 170)).astype(np.uint16)


class Heard(Reporter):
    """Keeps the events."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__(folder=folder)
        self.events: list[dict[str, Any]] = []

    def emit(self, event: str, **fields: Any) -> None:
        self.events.append({"event": event, **fields})
        super().emit(event, **fields)

    def of(self, event: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] == event]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with random weights: what it maps is noise, but it maps."""
    path: Path = tmp_path_factory.mktemp("model") / "forest ü.geopeft"
    bands = tuple(InputBand(name=name, mean=1500, std=900) for name in NAMES)
    spec = ModelSpec(backbone="scratch_unet", adapter="full", decoder="unet", bands=bands, num_classes=2, gsd_m=10,
                     chip_size_px=40)  # fmt: skip
    classes = (
        package.ClassInfo(value=1, name="Wasser ü", color="#0000ff", label="1"),
        package.ClassInfo(value=2, name="land", color="#00ff00", label="2"),
    )
    manifest = package.Manifest(
        engine_version="0.1.0", created="2026-01-01T00:00:00+00:00", name="m", spec=spec, classes=classes,
        base_weights=package.BaseWeights(backbone="scratch_unet", licence="Apache-2.0", revision="r1"),
        radiometry="unknown", dtype="uint16",
        metrics={"miou": {"value": 0.744, "low": 0.66, "high": 0.8}, "split": "blocks of the labels held out"},
    )  # fmt: skip
    weights = {name: tensor.numpy() for name, tensor in build(spec).trainable_state().items()}
    package.write(path, manifest, weights)
    return path


def run(model: Path, rasters: list[Path], out: Path, reporter: Reporter | None = None, **fields: Any) -> dict[str, Any]:
    job = {"job": "predict", "model": str(model), "rasters": [str(r) for r in rasters], "out": str(out),
           "device": "cpu"} | fields  # fmt: skip
    return predict.run(parse(job), reporter or Reporter())  # type: ignore[arg-type]


@pytest.fixture
def three(make_raster: MakeRaster, tmp_path: Path) -> list[Path]:
    """Two good rasters, and one between them that is none."""
    first, last = (make_raster(VALUES, name, names=NAMES) for name in ("a.tif", "c.tif"))
    (tmp_path / "broken.tif").write_bytes(b"no raster")
    return [first, tmp_path / "broken.tif", last]


def test_a_raster_that_fails_is_listed_and_the_others_are_mapped(
    model: Path, three: list[Path], tmp_path: Path
) -> None:
    heard = Heard()
    outputs = run(model, three, tmp_path / "maps", heard, json_file=str(tmp_path / "figures.json"))
    assert [Path(entry["class_raster"]).name for entry in outputs["rasters"]] == ["a_map.tif", "c_map.tif"]
    (failure,) = outputs["failures"]
    assert (failure["raster"], failure["code"]) == (str(three[1]), "RASTER_OPEN")
    assert "broken.tif" in failure["message"] and failure["hint"]
    assert json.loads((tmp_path / "figures.json").read_text())["failures"] == [failure]
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == [
        "a_map.tif", "a_map.tif.aux.xml", "c_map.tif", "c_map.tif.aux.xml"
    ]  # fmt: skip
    last_word = [m["text"] for m in heard.of("message") if m["level"] == "warning"][-1]
    assert last_word == "2 of 3 rasters are mapped; left out: broken.tif."


@pytest.mark.fault("G04")
def test_an_unexpected_error_of_one_raster_does_not_stop_the_rest(
    model: Path, three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real = one_map.describe

    def describe(path: str) -> Any:
        if path == str(three[0]):
            raise MemoryError
        if path == str(three[1]):
            raise ZeroDivisionError("what")
        return real(path)

    monkeypatch.setattr(one_map, "describe", describe)
    outputs = run(model, three, tmp_path / "maps")
    assert [failure["code"] for failure in outputs["failures"]] == ["OUT_OF_MEMORY", "INTERNAL"]
    assert len(outputs["rasters"]) == 1
    assert "ZeroDivisionError" in capfd.readouterr().err


def test_when_no_raster_can_be_mapped_the_first_reason_is_the_jobs(model: Path, tmp_path: Path) -> None:
    for name in ("a.tif", "b.tif"):
        (tmp_path / name).write_bytes(b"no raster")
    with pytest.raises(GeopeftError, match=r"a\.tif") as caught:
        run(model, [tmp_path / "none.tif", tmp_path / "a.tif", tmp_path / "b.tif"][1:], tmp_path / "maps")
    assert caught.value.code == "RASTER_OPEN"


@pytest.mark.fault("T13")
def test_progress_counts_all_rasters_and_events_tell_of_each(model: Path, three: list[Path], tmp_path: Path) -> None:
    heard = Heard()
    outputs = run(model, three, tmp_path / "maps", heard)
    steps = [(e["current"], e["total"]) for e in heard.of("progress") if e["stage"] == "predict"]
    assert len({total for _, total in steps}) == 1
    assert steps == sorted(steps) and steps[-1][0] == steps[-1][1]
    start, *ends = [e for e in heard.of("metric") if e["stage"] == "raster"]
    assert start["values"] == {"rasters": 3}
    assert start["shares"] == sorted(start["shares"]) and start["shares"][-1] == 1
    first, broken, last = np.diff(start["shares"], prepend=0)
    assert first == pytest.approx(last, abs=1e-5) and broken < first / 2
    assert [(e["step"], e["raster"]) for e in ends] == [(i + 1, str(path)) for i, path in enumerate(three)]
    assert [e.get("outputs") for e in ends] == [outputs["rasters"][0], None, outputs["rasters"][1]]
    assert ends[1]["failure"] == outputs["failures"][0]


def test_one_map_with_a_name_of_its_own_has_no_events_of_rasters(
    model: Path, three: list[Path], tmp_path: Path
) -> None:
    """They would end in the curve of a training that is followed by a map."""
    heard = Heard()
    run(model, three[:1], tmp_path / "map.tif", heard)
    assert heard.of("metric") == []


@pytest.mark.fault("R43")
def test_no_two_maps_get_one_name(model: Path, make_raster: MakeRaster, tmp_path: Path) -> None:
    for folder in ("x", "y", "z"):
        (tmp_path / folder).mkdir()
    rasters = [
        make_raster(VALUES[:, :80, :80], name, names=NAMES) for name in ("x/same.tif", "y/same.tif", "z/SAME.tif")
    ]
    outputs = run(model, rasters, tmp_path / "maps")
    names = [Path(entry["class_raster"]).name for entry in outputs["rasters"]]
    assert names == ["same_map.tif", "same_map_2.tif", "SAME_map_3.tif"]
    again = run(model, rasters, tmp_path / "maps")
    assert [entry["class_raster"] for entry in again["rasters"]] == [e["class_raster"] for e in outputs["rasters"]]


@pytest.mark.fault("W06")
def test_the_map_of_one_raster_never_replaces_another_raster(
    model: Path, make_raster: MakeRaster, tmp_path: Path
) -> None:
    rasters = [make_raster(VALUES[:, :80, :80], name, names=NAMES) for name in ("a.tif", "a_map.tif")]
    before = rasters[1].read_bytes()
    outputs = run(model, rasters, tmp_path)
    assert rasters[1].read_bytes() == before
    assert [Path(e["class_raster"]).name for e in outputs["rasters"]] == ["a_map_2.tif", "a_map_map.tif"]


@pytest.mark.fault("W06")
def test_a_confidence_or_polygons_never_replace_an_input(model: Path, make_raster: MakeRaster, tmp_path: Path) -> None:
    rasters = [make_raster(VALUES[:, :80, :80], name, names=NAMES) for name in ("a.tif", "m_confidence.tif")]
    before = rasters[1].read_bytes()
    with pytest.raises(GeopeftError) as caught:
        run(model, rasters[1:], tmp_path / "m.tif", confidence=True)
    assert caught.value.code == "OUTPUT_IS_INPUT" and rasters[1].read_bytes() == before
    run(model, rasters[1:], tmp_path / "m.tif")


@pytest.mark.fault("W06")
def test_what_a_vrt_is_made_of_is_never_replaced(model: Path, make_raster: MakeRaster, tmp_path: Path) -> None:
    source = make_raster(VALUES[:, :80, :80], "scene_map.tif", names=NAMES)
    rows = "".join(
        f'<VRTRasterBand dataType="UInt16" band="{n}"><Description>{name}</Description><SimpleSource>'
        f'<SourceFilename relativeToVRT="1">scene_map.tif</SourceFilename><SourceBand>{n}</SourceBand></SimpleSource>'
        "</VRTRasterBand>"
        for n, name in enumerate(NAMES, 1)
    )
    with rasterio.open(source) as raster:
        system, transform = raster.crs.to_wkt(), ", ".join(map(str, raster.transform.to_gdal()))
    vrt = tmp_path / "scene.vrt"
    vrt.write_text(
        f'<VRTDataset rasterXSize="80" rasterYSize="80"><SRS>{system}</SRS><GeoTransform>{transform}</GeoTransform>'
        f"{rows}</VRTDataset>"
    )
    before = source.read_bytes()
    with pytest.raises(GeopeftError) as caught:
        run(model, [vrt], tmp_path)
    assert caught.value.code == "OUTPUT_IS_INPUT" and source.read_bytes() == before


@pytest.mark.parametrize(
    ("raster", "stem"),
    [
        ("/data/scene.tif", "scene"),
        ("/vsicurl/https://host/a/scene.tif?sig=SE.CRET&x=1", "scene"),
        ('NETCDF:"/data/cube.nc":B04', "cube"),
        ("/data/" + "ä" * 120 + ".tif", "ä" * 90),
        ("/data/...tif", "raster"),
    ],
)
def test_any_raster_gives_a_name_that_a_file_can_have(raster: str, stem: str) -> None:
    assert predict._stem(raster) == stem
    assert "CRET" not in parts.name_of(raster), "an address may hold a key, which must not get into a file's tags"


@pytest.mark.fault("P09", "T05")
def test_a_cancel_keeps_the_maps_that_are_finished(model: Path, make_raster: MakeRaster, tmp_path: Path) -> None:
    rasters = [make_raster(VALUES, name, names=NAMES) for name in ("a.tif", "b.tif")]

    class StopInSecond(Heard):
        def emit(self, event: str, **fields: Any) -> None:
            super().emit(event, **fields)
            if event == "message" and fields["text"].startswith("Raster 2 of 2"):
                (tmp_path / "cancel").touch()

    heard = StopInSecond(tmp_path)
    with pytest.raises(Canceled):
        run(model, rasters, tmp_path / "maps", heard, polygons=True)
    kept = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert kept == ["a_map.tif", "a_map.tif.aux.xml", "a_map_polygons.gpkg"]
    assert heard.of("metric")[-1]["outputs"]["class_raster"] == str(tmp_path / "maps" / "a_map.tif")


@pytest.mark.parametrize("confidence", [False, True])
def test_polygons_leave_no_confidence_that_nobody_asked_for(
    model: Path, three: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, confidence: bool
) -> None:
    def fail(*_: object) -> int:
        raise GeopeftError("no polygons")

    run(model, three[:1], tmp_path / "maps", confidence=True)
    before = (tmp_path / "maps" / "a_map_confidence.tif").read_bytes()
    monkeypatch.setattr(one_map, "vectorize", fail)
    with pytest.raises(GeopeftError, match="no polygons"):
        run(model, three[:1], tmp_path / "maps", confidence=confidence, polygons=True)
    names = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert names == ["a_map.tif", "a_map.tif.aux.xml", "a_map_confidence.tif"]
    if not confidence:
        assert (tmp_path / "maps" / "a_map_confidence.tif").read_bytes() == before


@pytest.mark.fault("W15")
def test_a_map_is_replaced_whole_with_what_lay_beside_it(model: Path, three: list[Path], tmp_path: Path) -> None:
    target = tmp_path / "maps" / "a_map.tif"
    run(model, three[:1], tmp_path / "maps", confidence=True)
    for name in ("a_map.tif.ovr", "a_map_confidence.tif.aux.xml"):
        (tmp_path / "maps" / name).write_text("of the old one")
    target.write_text("old")
    run(model, three[:1], tmp_path / "maps", confidence=True)
    with rasterio.open(target) as raster:
        assert raster.shape == VALUES.shape[1:]
    names = sorted(path.name for path in (tmp_path / "maps").iterdir())
    assert names == ["a_map.tif", "a_map.tif.aux.xml", "a_map_confidence.tif"]


def test_a_map_says_where_it_comes_from(model: Path, three: list[Path], tmp_path: Path) -> None:
    import hashlib

    run(model, three[:1], tmp_path / "maps", confidence=True)
    for name in ("a_map.tif", "a_map_confidence.tif"):
        with rasterio.open(tmp_path / "maps" / name) as raster:
            tags = raster.tags()
        assert tags["GEOPEFT_MODEL"] == "forest ü.geopeft"
        assert tags["GEOPEFT_MODEL_SHA256"] == hashlib.sha256(model.read_bytes()).hexdigest()
        assert (tags["GEOPEFT_BACKBONE"], tags["GEOPEFT_WEIGHTS_LICENCE"]) == ("scratch_unet", "Apache-2.0")
        assert tags["GEOPEFT_WEIGHTS_REVISION"] == "r1"
        accuracy = "mIoU 0.74 (95 %: 0.66 to 0.80), measured on blocks of the labels held out"
        assert tags["GEOPEFT_ACCURACY"] == accuracy and accuracy in tags["TIFFTAG_IMAGEDESCRIPTION"]
        assert tags["GEOPEFT_ENGINE"] == __version__
        # Beside the map, not in it: the same map is the same file.
        assert tags.get("GEOPEFT_DATE", "").startswith("20") == (name == "a_map.tif")
        assert tags["GEOPEFT_RASTER"] == "a.tif"


def test_a_raster_outside_the_area_is_told_as_that(
    model: Path, three: list[Path], make_labels: Callable[..., Path], tmp_path: Path
) -> None:
    import shapely

    area = make_labels([shapely.box(0, 0, 100, 100)], ["a"], "area.gpkg")
    with pytest.raises(GeopeftError, match=r"a\.tif lies outside the area") as caught:
        run(model, three[:1], tmp_path / "maps", aoi=str(area))
    assert caught.value.code == "AREA_OUTSIDE"
    assert list((tmp_path / "maps").iterdir()) == []


def test_an_output_folder_that_is_a_file_is_told(model: Path, three: list[Path], tmp_path: Path) -> None:
    (tmp_path / "maps").write_text("a file")
    with pytest.raises(GeopeftError) as caught:
        run(model, three, tmp_path / "maps")
    assert caught.value.code == "OUTPUT_FAILED" and caught.value.hint
