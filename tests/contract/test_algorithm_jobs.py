"""The plugin writes plain dicts, the engine reads typed jobs: every algorithm's job must fit the engine's schema."""

import json
import os
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("qgis.core", reason="needs QGIS's Python (/usr/bin/python3 where QGIS is installed)")

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "plugin"))
from qgis_session import (  # noqa: E402, F401
    label_layer,
    project,
    provider,
    qgis_app,
    raster_file,
    raster_layer,
)

SCHEMA = json.loads((ROOT / "resources" / "schema" / "job.json").read_text(encoding="utf-8"))
TYPES = {
    "null": type(None),
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "array": list,
    "object": dict,
}
NOTES = {"title", "description", "default", "positional", "discriminator", "$defs"}


def faults(value, schema, where="job"):
    """What in a value does not fit its JSON Schema. Knows the words that our schema uses and refuses others."""
    for word, wanted in sorted(schema.items(), key=lambda item: item[0] != "type"):
        if word in NOTES:
            continue
        if word not in CHECKS:
            raise NotImplementedError(f"the schema uses '{word}', which this test cannot check yet")
        found = list(CHECKS[word](value, wanted, where, schema))
        yield from found
        if found and word == "type":
            return


def _type(value, wanted, where, schema):
    is_bool_as_number = isinstance(value, bool) and wanted in ("integer", "number")
    if not isinstance(value, TYPES[wanted]) or is_bool_as_number:
        yield f"{where}: {value!r} is no {wanted}"


def _properties(value, wanted, where, schema):
    for name, part in value.items():
        if name in wanted:
            yield from faults(part, wanted[name], f"{where}.{name}")


def _additional(value, wanted, where, schema):
    if wanted is False:
        yield from (f"{where}: unknown field {name}" for name in value if name not in schema["properties"])


def _items(value, wanted, where, schema):
    for index, part in enumerate(value):
        yield from faults(part, wanted, f"{where}[{index}]")


def _ref(value, wanted, where, schema):
    yield from faults(value, SCHEMA["$defs"][wanted.rsplit("/", 1)[1]], where)


def _any_of(value, wanted, where, schema):
    tried = [list(faults(value, one, where)) for one in wanted]
    yield from () if any(not found for found in tried) else tried[0]


def _one_of(value, wanted, where, schema):
    kind = schema["discriminator"]["mapping"].get(value.get(schema["discriminator"]["propertyName"]))
    yield from faults(value, {"$ref": kind}, where) if kind else [f"{where}: no such job"]


def _rule(is_right):
    def check(value, wanted, where, schema):
        if not is_right(value, wanted):
            yield f"{where}: {value!r} does not fit {wanted!r}"

    return check


CHECKS = {
    "type": _type,
    "properties": _properties,
    "additionalProperties": _additional,
    "items": _items,
    "$ref": _ref,
    "anyOf": _any_of,
    "oneOf": _one_of,
    "required": lambda v, names, where, _: (f"{where}: {n} is missing" for n in names if n not in v),
    "const": _rule(lambda v, wanted: v == wanted),
    "enum": _rule(lambda v, wanted: v in wanted),
    "pattern": _rule(lambda v, wanted: re.search(wanted, v)),
    "minItems": _rule(lambda v, wanted: len(v) >= wanted),
    "maxItems": _rule(lambda v, wanted: len(v) <= wanted),
    "minLength": _rule(lambda v, wanted: len(v) >= wanted),
    "maxLength": _rule(lambda v, wanted: len(v) <= wanted),
    "minimum": _rule(lambda v, wanted: v >= wanted),
    "maximum": _rule(lambda v, wanted: v <= wanted),
    "exclusiveMinimum": _rule(lambda v, wanted: v > wanted),
}


@pytest.fixture
def job(provider, project, tmp_path):  # noqa: F811
    """Gives the job of an algorithm for some parameters."""
    from qgis.core import QgsProcessingContext

    def make(name, parameters):
        context = QgsProcessingContext()
        context.setProject(project)
        algorithm = provider.algorithm(name).create()
        ok, message = algorithm.checkParameterValues(parameters, context)
        assert ok, message
        return json.loads(json.dumps(algorithm.job(parameters, context, tmp_path), allow_nan=False))

    return make


@pytest.fixture
def model(tmp_path):
    """Something that stands where a model is."""
    path = tmp_path / "m.geopeft"
    path.write_bytes(b"PK")
    return str(path)


def test_fit_with_defaults(job, raster_layer, label_layer, tmp_path):  # noqa: F811
    made = job("fit", {"RASTERS": [raster_layer], "LABELS": label_layer, "MODEL": str(tmp_path / "o.geopeft")})
    assert list(faults(made, SCHEMA)) == []
    assert made["class_field"] == "class" and made["rasters"] == [raster_layer.source()]
    assert (made["backbone"], made["adapter"], made["decoder"], made["device"]) == ("auto", "lora", "unet", "auto")
    assert [c["name"] for c in made["classes"]] == ["Forest", "Water", "Built Up"]


def test_fit_with_everything(job, raster_layer, label_layer, tmp_path):  # noqa: F811
    parameters = {
        "RASTERS": [raster_layer, raster_layer.source()],
        "LABELS": label_layer,
        "CLASS_FIELD": "class",
        "VALIDATION_LABELS": label_layer,
        "AREA": label_layer,
        "BACKBONE": "galileo_nano",
        "ADAPTER": "frozen",
        "DECODER": "linear",
        "BACKGROUND": "other",
        "BANDS": "red, green,4",
        "LINE_WIDTH": "2.5",
        "MAX_MINUTES": "1.5",
        "SEED": "7",
        "STEPS": 30,
        "LOW_MEMORY": True,
        "RANK": 4,
        "ALPHA": "8",
        "TARGETS": "q, v",
        "LAST_BLOCKS": 2,
        "PROMPT_TOKENS": 10,
        "RATE": 0.5,
        "DEVICE": "cpu",
        "WEIGHTS_DIR": str(tmp_path),
        "MODEL": str(tmp_path / "o.geopeft"),
        "FIGURES": str(tmp_path / "f.json"),
        "REPORT": str(tmp_path / "r.html"),
    }
    made = job("fit", parameters)
    assert made["report"] == str(tmp_path / "r.html")
    assert list(faults(made, SCHEMA)) == []
    assert made["bands"] == ["red", "green", "4"] and len(made["rasters"]) == 2
    assert (made["max_minutes"], made["seed"], made["steps"], made["line_width_px"]) == (1.5, 7, 30, 2.5)
    assert (made["adapter"], made["decoder"], made["device"]) == ("frozen", "linear", "cpu")
    assert (made["rank"], made["alpha"], made["targets"], made["rate"]) == (4, 8, ["q", "v"], 0.5)
    assert (made["last_blocks"], made["prompt_tokens"], made["low_memory"]) == (2, 10, True)
    for field in ("labels", "validation_labels", "area"):
        path, layer = made[field].rsplit(":", 1)
        assert Path(path).is_file() and Path(path).stem == layer


def test_fit_from_a_label_raster(job, raster_layer, tmp_path):  # noqa: F811
    parameters = {"RASTERS": [raster_layer], "LABEL_RASTER": raster_layer, "MODEL": str(tmp_path / "o.geopeft")}
    made = job("fit", parameters)
    assert list(faults(made, SCHEMA)) == []
    assert made["labels"] == raster_layer.source()
    assert (made["alpha"], made["targets"], made["rank"], made["prompt_tokens"]) == (None, [], 16, 100)
    assert made["low_memory"] is False


@pytest.mark.parametrize("wants_all", [False, True])
def test_predict(job, raster_layer, label_layer, model, tmp_path, wants_all):  # noqa: F811
    parameters = {"MODEL": model, "RASTER": raster_layer, "OUTPUT": str(tmp_path / "map.tif")}
    if wants_all:
        parameters.update(CONFIDENCE="TEMPORARY_OUTPUT", POLYGONS="TEMPORARY_OUTPUT", AOI=label_layer, DEVICE="cuda")
        parameters.update(ENTROPY="TEMPORARY_OUTPUT", OUTSIDE="TEMPORARY_OUTPUT", UNKNOWN_BELOW=62.5)
        parameters.update(SCHEDULER=" local:2 ")
    made = job("predict", parameters)
    assert list(faults(made, SCHEMA)) == []
    assert (made["entropy"], made["outside"], made["unknown_below"] == 62.5) == (wants_all,) * 3
    assert (made["confidence"], made["polygons"], "aoi" in made) == (wants_all, wants_all, wants_all)
    assert made["scheduler"] == ("local:2" if wants_all else "")


@pytest.mark.parametrize("wants_all", [False, True])
def test_predict_many(job, raster_layer, label_layer, model, tmp_path, wants_all):  # noqa: F811
    parameters = {"MODEL": model, "RASTERS": [raster_layer], "OUTPUT": str(tmp_path / "maps")}
    if wants_all:
        more = tmp_path / "more"
        more.mkdir()
        (more / "b.tif").touch()
        parameters.update(
            FILES=[raster_layer.source(), "https://host/c.tif"], FOLDER=str(more), CONFIDENCE=True, POLYGONS="true",
            AOI=label_layer, BANDS="red,4", DEVICE="cuda", ENTROPY=True, OUTSIDE=True, UNKNOWN_BELOW=62.5,
            SCHEDULER="tcp://10.0.0.5:8786",
        )  # fmt: skip
    made = job("predictmany", parameters)
    assert list(faults(made, SCHEMA)) == []
    assert made["scheduler"] == ("tcp://10.0.0.5:8786" if wants_all else "")
    assert (made["entropy"], made["outside"], made["unknown_below"] == 62.5) == (wants_all,) * 3
    assert (made["job"], made["out"]) == ("predict", str(tmp_path / "maps"))
    assert (made["confidence"], made["polygons"], "aoi" in made) == (wants_all, wants_all, wants_all)
    rasters = [raster_layer.source()]
    assert made["rasters"] == (
        [*rasters, "/vsicurl/https://host/c.tif", str(tmp_path / "more" / "b.tif")] if wants_all else rasters
    )


def test_evaluate(job, raster_layer, label_layer, model, tmp_path):  # noqa: F811
    parameters = {"MODEL": model, "RASTERS": [raster_layer], "LABELS": label_layer, "FIGURES": "TEMPORARY_OUTPUT"}
    made = job("evaluate", parameters)
    assert list(faults(made, SCHEMA)) == []
    assert made["json_file"].endswith(".json")


@pytest.mark.parametrize("wants_all", [False, True])
def test_compare(job, raster_layer, label_layer, model, tmp_path, wants_all):  # noqa: F811
    """A file or a layer's id may stand for a map; without labels only the map of disagreement is made."""
    parameters = {"FIRST": raster_layer.source(), "SECOND": raster_layer.id(), "OUTPUT": str(tmp_path / "d.tif")}
    if wants_all:
        parameters.update(
            SECOND=model, RASTERS=[raster_layer], LABELS=label_layer, CLASS_FIELD="class", BACKGROUND="other",
            AREA=label_layer, BANDS="red,4", LINE_WIDTH=2.5, DEVICE="cpu", FIGURES=str(tmp_path / "f.json"),
        )  # fmt: skip
    made = job("compare", parameters)
    assert list(faults(made, SCHEMA)) == []
    assert (made["one"], made["other"]) == (raster_layer.source(), model if wants_all else raster_layer.source())
    assert ("rasters" in made, "labels" in made, "area" in made, made.get("class_field")) == (
        (True, True, True, "class") if wants_all else (False, False, False, None)
    )
    assert made["out"] == str(tmp_path / "d.tif") and "classes" not in made


@pytest.mark.parametrize("wants_all", [False, True])
def test_study(job, raster_layer, label_layer, tmp_path, wants_all):  # noqa: F811
    parameters = {
        "RASTERS": [raster_layer], "LABELS": label_layer, "UNSEEN_RASTERS": [raster_layer.source()],
        "UNSEEN_LABELS": label_layer, "TABLE": str(tmp_path / "s.csv"), "PAGE": str(tmp_path / "s.html"),
    }  # fmt: skip
    if wants_all:
        parameters.update(
            BACKBONES="galileo_nano, scratch_unet", ADAPTERS="lora", DECODERS="unet,linear", METADATA="off, on",
            BASELINES="random-forest", FRACTIONS="0.1, 1", RATES="", SEEDS=3, SEED=7, STEPS=30, PROCESSES=2,
            BACKGROUND="other", AREA=label_layer, UNSEEN_AREA=label_layer, BANDS="red,4", DEVICE="cpu",
            FIGURES=str(tmp_path / "f.json"), SCHEDULER=os.path.relpath(raster_layer.source()),
        )  # fmt: skip
    made = job("study", parameters)
    assert made["scheduler"] == (raster_layer.source() if wants_all else ""), "a file by its whole path"
    assert list(faults(made, SCHEMA)) == []
    assert "classes" not in made and made["unseen_rasters"] == [raster_layer.source()]
    grid = (made["backbones"], made["adapters"], made["decoders"], made["metadata"], made["baselines"])
    assert grid == (
        (["galileo_nano", "scratch_unet"], ["lora"], ["unet", "linear"], ["off", "on"], ["random-forest"])
        if wants_all
        else (["auto"], ["frozen", "lora", "full"], ["unet"], ["off"], ["random-forest", "scratch_unet"])
    )
    assert (made["fractions"], made["rates"]) == (([0.1, 1.0], []) if wants_all else ([1.0], [0.3, 1.0, 3.0]))
    assert (made["seeds"], made["seed"], made["processes"]) == ((3, 7, 2) if wants_all else (5, 0, 1))
    assert ("area" in made, "unseen_area" in made) == (wants_all, wants_all)


@pytest.mark.parametrize("wants_all", [False, True])
def test_report(job, raster_layer, label_layer, model, tmp_path, wants_all):  # noqa: F811
    parameters = {"MODEL": model, "REPORT": str(tmp_path / "r.html")}
    if wants_all:
        figures = tmp_path / "f.json"
        figures.write_text("{}")
        parameters.update(
            RASTERS=[raster_layer], LABELS=label_layer, OTHER_FIGURES=str(figures), BANDS="red,4", DEVICE="cpu"
        )
    made = job("report", parameters)
    assert list(faults(made, SCHEMA)) == []
    assert made["out"] == str(tmp_path / "r.html")
    assert made.get("rasters", []) == ([raster_layer.source()] if wants_all else [])
    assert (made["figures"] != "", "labels" in made, made.get("class_field")) == (
        (True, True, "class") if wants_all else (False, False, None)
    )


@pytest.mark.parametrize("wants_all", [False, True])
@pytest.mark.parametrize("name", ["suggest", "suspects"])
def test_advice_on_labels(job, raster_layer, label_layer, tmp_path, name, wants_all):  # noqa: F811
    parameters = {"RASTERS": [raster_layer], "LABELS": label_layer, "OUTPUT": str(tmp_path / "p.gpkg")}
    if wants_all:
        parameters.update(
            AREA=label_layer,
            BACKGROUND="other",
            BANDS="red,4",
            LINE_WIDTH=2.5,
            SEED=7,
            FIGURES=str(tmp_path / "f.json"),
        )
        parameters.update({"COUNT": 20} if name == "suggest" else {})
    made = job(name, parameters)
    assert list(faults(made, SCHEMA)) == []
    assert (made["job"], made["out"], made["class_field"]) == (name, str(tmp_path / "p.gpkg"), "class")
    assert ("area" in made, made["background"], made["bands"], made["seed"]) == (
        (True, "other", ["red", "4"], 7) if wants_all else (False, "", [], 0)
    )
    assert made.get("count") == (None if name == "suspects" else 20 if wants_all else 10)


@pytest.mark.parametrize("wants_all", [False, True])
def test_pretrain(job, raster_layer, tmp_path, wants_all):  # noqa: F811
    parameters = {"RASTERS": [raster_layer], "OUTPUT": str(tmp_path / "b.safetensors")}
    if wants_all:
        parameters.update(
            BACKBONE="galileo_nano", ADAPTER="lora", START="nothing", TEACHER="galileo_nano, resnet18", BANDS="red,4",
            STEPS=30, SEED=7, MAX_MINUTES=1.5, DEVICE="cpu", FIGURES=str(tmp_path / "f.json"),
        )  # fmt: skip
    made = job("pretrain", parameters)
    assert list(faults(made, SCHEMA)) == []
    assert (made["backbone"], made["adapter"], made["start"]) == (
        ("galileo_nano", "lora", "nothing") if wants_all else ("geopeft_small", "full", "published")
    )
    assert made["teacher"] == (["galileo_nano", "resnet18"] if wants_all else [])
    assert (made["steps"], made["max_minutes"]) == ((30, 1.5) if wants_all else (2000, 30.0))


@pytest.mark.parametrize("wants_all", [False, True])
def test_average(job, model, tmp_path, wants_all):
    other = tmp_path / "other.geopeft"
    other.write_bytes(b"PK")
    parameters = {"MODELS": [model, str(other)], "OUTPUT": str(tmp_path / "mean.geopeft")}
    if wants_all:
        parameters.update(WEIGHTS="2, 0.5", FIGURES=str(tmp_path / "f.json"))
    made = job("average", parameters)
    assert list(faults(made, SCHEMA)) == []
    assert (made["models"], made["out"]) == ([model, str(other)], str(tmp_path / "mean.geopeft"))
    assert made["weights"] == ([2.0, 0.5] if wants_all else [])
    assert made["json_file"] == (str(tmp_path / "f.json") if wants_all else "")


@pytest.mark.parametrize("wants_all", [False, True])
def test_distil(job, raster_layer, label_layer, model, tmp_path, wants_all):  # noqa: F811
    parameters = {"MODEL": model, "RASTERS": [raster_layer], "OUTPUT": str(tmp_path / "small.geopeft")}
    if wants_all:
        parameters.update(
            LABELS=label_layer, CLASS_FIELD="class", BACKGROUND="other", BANDS="red,4", LINE_WIDTH=2.5, SEED=7,
            MAX_MINUTES=1.5, MAX_MEGAPIXELS=0.5, DEVICE="cpu", FIGURES=str(tmp_path / "f.json"),
        )  # fmt: skip
    made = job("distil", parameters)
    assert list(faults(made, SCHEMA)) == []
    assert (made["model"], made["out"]) == (model, str(tmp_path / "small.geopeft"))
    assert (made["seed"], made["max_minutes"], made["max_megapixels"]) == ((7, 1.5, 0.5) if wants_all else (0, 0, 16))
    assert ("labels" in made, made["bands"]) == ((True, ["red", "4"]) if wants_all else (False, []))


@pytest.mark.parametrize("wants_all", [False, True])
def test_preview(raster_layer, label_layer, tmp_path, wants_all):  # noqa: F811
    from geopeft_qgis.gui.preview import OPTIONS, preview_job
    from geopeft_qgis.layers import write_labels

    labels = write_labels(label_layer, label_layer, "class", tmp_path / "labels.gpkg")
    options = {"background": "other", "area": labels.spec, "bands": ["red", "4"], "radiometry": "display8",
               "line_width_px": 2.5, "max_pixels": 50_000}  # fmt: skip
    assert set(options) == set(OPTIONS)
    extent = raster_layer.extent()
    made = preview_job(raster_layer.source(), labels, extent, tmp_path / "map.tif", options if wants_all else {})
    made = json.loads(json.dumps(made, allow_nan=False))
    assert list(faults(made, SCHEMA)) == []
    assert made["extent"] == [500000, 5399600, 500600, 5400000]
    assert [c["name"] for c in made["classes"]] == ["Forest", "Water", "Built Up"]


@pytest.mark.parametrize("wants_all", [False, True])
def test_sample(job, raster_layer, label_layer, tmp_path, wants_all):  # noqa: F811
    parameters = {"MAP": raster_layer, "OUTPUT": str(tmp_path / "s.gpkg")}
    if wants_all:
        parameters.update(AOI=label_layer, POINTS=300, FEWEST="30", STANDARD_ERROR=0.05, SEED=7)
    made = job("sample", parameters)
    assert list(faults(made, SCHEMA)) == []
    assert (made["map"], made["out"], "aoi" in made) == (raster_layer.source(), str(tmp_path / "s.gpkg"), wants_all)
    numbers = (made["points"], made["fewest"], made["standard_error"], made["seed"])
    assert numbers == ((300, 30, 0.05, 7) if wants_all else (0, 20, 0.02, 0))


@pytest.mark.parametrize("wants_all", [False, True])
def test_area(job, provider, project, tmp_path, wants_all):  # noqa: F811
    points = tmp_path / "points.gpkg"
    save_points(points)
    parameters = {"POINTS": str(points), "TABLE": str(tmp_path / "a.csv")}
    if wants_all:
        parameters.update(CLASS_FIELD="seen", OTHER_CLASSES="bog, snow", FIGURES=str(tmp_path / "a.json"))
    made = job("area", parameters)
    assert list(faults(made, SCHEMA)) == []
    assert (made["points"], made["out"]) == (str(points), str(tmp_path / "a.csv"))
    assert made["class_field"] == ("seen" if wants_all else "class")
    assert made["other_classes"] == (["bog", "snow"] if wants_all else [])
    assert made["json_file"] == (str(tmp_path / "a.json") if wants_all else "")


def save_points(path):
    """A GeoPackage of points with two fields that may hold the class."""
    from qgis.core import QgsProject, QgsVectorFileWriter, QgsVectorLayer

    layer = QgsVectorLayer("Point?crs=EPSG:32632&field=class:string&field=seen:string", "sample", "memory")
    options = QgsVectorFileWriter.SaveVectorOptions()
    context = QgsProject.instance().transformContext()
    QgsVectorFileWriter.writeAsVectorFormatV3(layer, str(path), context, options)


def test_export(job, model, tmp_path, raster_file):  # noqa: F811
    made = job("export", {"MODEL": model, "ONNX": str(tmp_path / "m.onnx")})
    assert list(faults(made, SCHEMA)) == [] and not made["int8"]
    made = job(
        "export", {"MODEL": model, "ONNX": str(tmp_path / "m.onnx"), "INT8": True, "RASTERS": [str(raster_file)]}
    )
    assert list(faults(made, SCHEMA)) == [] and made["int8"] and made["rasters"] == [str(raster_file)]


def test_plugin_and_schema_speak_the_same_protocol():
    from geopeft_qgis.engine_process import PROTOCOL

    assert SCHEMA["$defs"]["FitJob"]["properties"]["protocol"]["default"] == PROTOCOL


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"rasters": []}, "job.rasters"),
        ({"seed": "7"}, "job.seed"),
        ({"seed": True}, "job.seed"),
        ({"line_width_px": 0}, "job.line_width_px"),
        ({"device": "gpu"}, "job.device"),
        ({"epochs": 3}, "unknown field epochs"),
        ({"classes": [{"value": "a", "name": "a", "color": "red"}]}, "job.classes[0].color"),
        ({"classes": [{"value": "a"}]}, "name is missing"),
        ({"job": "train"}, "no such job"),
    ],
)
def test_the_check_finds_what_it_is_for(change, expected):
    right = {"job": "fit", "rasters": ["a.tif"], "labels": "l", "out": "o"}
    assert list(faults(right, SCHEMA)) == []
    assert any(expected in fault for fault in faults({**right, **change}, SCHEMA))
