"""The jobs: what one run is asked to do. One frozen type each; the JSON Schema and the command line are made from them.

A field with `json_schema_extra={"positional": True}` is a positional argument on the command line.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from geopeft import PROTOCOL
from geopeft.errors import JobError

Device = Literal["auto", "cpu", "cuda", "mps"]
Radiometry = Literal["auto", "reflectance", "reflectance10000", "display8", "unknown"]
Baseline = Literal["random-forest", "unet"]
DecoderSize = Literal["light", "study"]
TargetName = Annotated[str, Field(min_length=1, max_length=200)]

POSITIONAL: dict[str, Any] = {"positional": True}
MAX_JOB_BYTES = 4 << 20


class ClassStyle(BaseModel):
    """A class as the user sees it: its value in the class field, its name and its colour."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: str = Field(description="the value in the class field, as text")
    name: str = Field(description="the name to show; often the value itself")
    color: str = Field(default="", pattern=r"^(#[0-9a-fA-F]{6})?$", description="#rrggbb; empty: chosen by the engine")


class Job(BaseModel):
    """What every job has."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, populate_by_name=True)

    job: str
    protocol: Annotated[int, Field(ge=1, description="version of the agreement between plugin and engine")] = PROTOCOL
    help: ClassVar[str] = ""

    @field_validator("protocol")
    @classmethod
    def _same_protocol(cls, value: int) -> int:
        if value != PROTOCOL:
            raise ValueError(f"this engine speaks protocol {PROTOCOL}, the job speaks {value}: update the engine")
        return value


RastersField: Any = Field(min_length=1, description="rasters that GDAL can read", json_schema_extra=POSITIONAL)
LabelsField: Any = Field(description="label layer as FILE or FILE:layer, or a label raster")
ClassField: Any = Field(default="", description="text or integer field with the class; empty: the only one there is")
DeviceField: Any = Field(default="auto", description="where to compute")
WeightsField: Any = Field(default="", description="folder with pretrained weights, searched first")
LicenceField: Any = Field(default=False, description="accept the licence of weights whose use it limits; asked once")
JsonField: Any = Field(default="", description="file for the figures, as JSON")
BackgroundField: Any = Field(
    default="", description="name of a class made of the unlabelled pixels inside the labels' extent or the area"
)
AreaField: Any = Field(default="", description="polygons (FILE or FILE:layer) that bound the background class")
BandsField: Any = Field(default=(), description="bands to use, by name or number, in this order")
LineWidthField: Any = Field(default=3.0, gt=0, le=64, description="width in pixels given to line and point labels")
RankField: Any = Field(default=16, ge=1, le=256, description="rank of low-rank adapters, such as LoRA")
SeedField: Any = Field(default=0, ge=0, le=2**31 - 1, description="seed of everything random")
SchedulerField: Any = Field(
    default="",
    description="share the work out with Dask: local, local:N, tcp://HOST:PORT, or a scheduler's file; empty: no Dask",
)
PageField: Any = Field(default="", description="HTML file for a report of the accuracy")
RadiometryField: Any = Field(default="auto", description="what the raster's values are; auto finds out and says so")


class FitJob(Job):
    """Fine-tune a backbone on labelled rasters and write a model package."""

    job: Literal["fit"] = "fit"
    rasters: tuple[str, ...] = RastersField
    labels: str = LabelsField
    class_field: str = ClassField
    out: str = Field(description="model package to write, NAME.geopeft")
    start: str = Field(default="", description="model package of an earlier training to start from, where it fits")
    resume: bool = Field(default=True, description="go on where this training was stopped, from NAME.geopeft.resume")
    validation_labels: str = Field(default="", description="labels kept apart for validation; else blocks are held out")
    folds: int = Field(
        default=0,
        ge=0,
        le=10,
        description="trainings that each hold other places out, to judge the map; 0: several where labels are few",
    )
    baselines: tuple[Baseline, ...] = Field(
        default=("random-forest",), description="what else is judged on the same places: random-forest, unet"
    )
    backbone: str = Field(default="auto", description="name of a backbone; auto chooses by bands and pixel size")
    adapter: str = Field(default="lora", description="how the backbone is tuned")
    decoder: str = Field(default="unet", description="how features become a map")
    decoder_size: DecoderSize = Field(
        default="light", description="few parameters, or as many as in the study of the method"
    )
    from_scratch: bool = Field(default=False, description="start the backbone from random values; needs adapter full")
    metadata: bool = Field(default=False, description="tell the backbone when and where chips were taken")
    bands: tuple[str, ...] = BandsField
    radiometry: Radiometry = RadiometryField
    background: str = BackgroundField
    area: str = AreaField
    classes: tuple[ClassStyle, ...] = Field(default=(), description="names, order and colours of the classes")
    line_width_px: float = LineWidthField
    rank: int = RankField
    alpha: float | None = Field(
        default=None, gt=0, le=10_000, description="strength of the updates of low-rank adapters; none: the rank"
    )
    targets: tuple[TargetName, ...] = Field(
        default=(), max_length=64, description="layers to adapt, by the last parts of their names; none: the usual ones"
    )
    last_blocks: int = Field(default=0, ge=0, le=1000, description="adapt only so many last blocks; 0: all")
    prompt_tokens: int = Field(default=100, ge=1, le=1000, description="tokens in front of each block, with vpt")
    steps: int = Field(default=0, ge=0, description="training steps; 0: chosen from the labels")
    rate: float = Field(default=1.0, gt=0, le=1000, description="factor of the usual learning rates")
    max_minutes: float = Field(default=0.0, ge=0, description="time budget in minutes; 0: none")
    cache: bool = Field(
        default=True, description="keep features of what does not learn on this disk, so that they are computed once"
    )
    low_memory: bool = Field(
        default=False, description="train a transformer in less memory and a third more time: no activations are kept"
    )
    seed: int = SeedField
    device: Device = DeviceField
    weights_dir: str = WeightsField
    accept_licence: bool = LicenceField
    json_file: str = JsonField
    report: str = PageField

    help: ClassVar[str] = "fine-tune a backbone on labels and write a model package"


class PretrainJob(Job):
    """Adapt a backbone to unlabelled rasters: hidden pixels are rebuilt, and a teacher's features followed."""

    job: Literal["pretrain"] = "pretrain"
    rasters: tuple[str, ...] = RastersField
    out: str = Field(description="backbone to write, NAME.safetensors")
    backbone: str = Field(default="geopeft_small", description="name of a backbone, or a file that pretrain wrote")
    start: str = Field(
        default="published",
        description="what to start from: published (its own weights), nothing (random values), or the name of a "
        "backbone whose weights it can take over",
    )
    adapter: Literal["full", "lora"] = Field(default="full", description="all of the backbone is trained, or LoRA only")
    teacher: tuple[str, ...] = Field(
        default=(), description="backbones to follow, beside the one that is started from where it is pretrained"
    )
    bands: tuple[str, ...] = Field(default=(), description="bands to use, by name or number, where a raster has them")
    radiometry: Radiometry = RadiometryField
    rank: int = RankField
    steps: int = Field(default=2000, ge=1, description="training steps at most")
    max_minutes: float = Field(default=0.0, ge=0, description="time budget in minutes over all runs; 0: none")
    seed: int = SeedField
    device: Device = DeviceField
    weights_dir: str = WeightsField
    accept_licence: bool = LicenceField
    json_file: str = JsonField

    help: ClassVar[str] = "adapt a backbone to unlabelled rasters"


class DistilJob(Job):
    """Teach a small, fast model what a tuned one knows, on rasters without labels."""

    job: Literal["distil"] = "distil"
    model: str = Field(description="model package that teaches", json_schema_extra=POSITIONAL)
    rasters: tuple[str, ...] = RastersField
    out: str = Field(description="small model package to write, NAME.geopeft")
    labels: str = Field(default="", description="labels to score both models on, new to the teacher; none: no score")
    class_field: str = ClassField
    background: str = BackgroundField
    area: str = AreaField
    bands: tuple[str, ...] = BandsField
    line_width_px: float = LineWidthField
    max_megapixels: float = Field(
        default=16.0, gt=0, le=10_000, description="million pixels to learn from at most, drawn evenly over the rasters"
    )
    steps: int = Field(default=0, ge=0, description="training steps at most; 0: as many as usually help")
    max_minutes: float = Field(default=0.0, ge=0, description="time budget in minutes; 0: none")
    seed: int = SeedField
    device: Device = DeviceField
    weights_dir: str = WeightsField
    json_file: str = JsonField

    help: ClassVar[str] = "teach a small, fast model what a tuned one knows"


class PredictJob(Job):
    """Map rasters with a model package."""

    job: Literal["predict"] = "predict"
    model: str = Field(description="model package, or an ONNX file", json_schema_extra=POSITIONAL)
    rasters: tuple[str, ...] = RastersField
    out: str = Field(description="class raster to write (one raster), or folder (several)")
    confidence: bool = Field(default=False, description="also write a raster of the confidence in percent")
    entropy: bool = Field(
        default=False, description="also write a raster of the entropy in percent: 0 = certain, 100 = all classes alike"
    )
    outside: bool = Field(
        default=False,
        description="also write a raster of how unlike the labels a pixel is, in percent: above 100 it lies outside "
        "what the model has seen",
    )
    unknown_below: float = Field(
        default=0.0, ge=0, le=100, description="pixels of less confidence, in percent, are mapped as unknown; 0: none"
    )
    polygons: bool = Field(default=False, description="also write the map as polygons (GeoPackage)")
    aoi: str = Field(default="", description="polygons (FILE or FILE:layer): only windows that touch them are mapped")
    bands: tuple[str, ...] = BandsField
    device: Device = DeviceField
    weights_dir: str = WeightsField
    scheduler: str = SchedulerField
    json_file: str = JsonField

    help: ClassVar[str] = "map rasters with a model package"


class PreviewJob(Job):
    """Map a part of a raster at once with what a few labels teach; for labels that are still being drawn."""

    job: Literal["preview"] = "preview"
    raster: str = Field(description="raster that GDAL can read", json_schema_extra=POSITIONAL)
    labels: str = LabelsField
    class_field: str = ClassField
    out: str = Field(description="class raster to write")
    confidence: bool = Field(default=False, description="also write a raster of the confidence in percent")
    extent: tuple[float, ...] = Field(
        default=(), max_length=4, description="left, bottom, right, top in the raster's CRS; empty: the whole raster"
    )
    max_pixels: int = Field(
        default=1_000_000, ge=1000, le=100_000_000, description="a larger extent is mapped with wider pixels"
    )
    bands: tuple[str, ...] = BandsField
    radiometry: Radiometry = RadiometryField
    background: str = BackgroundField
    area: str = AreaField
    classes: tuple[ClassStyle, ...] = Field(default=(), description="names, order and colours of the classes")
    line_width_px: float = LineWidthField
    seed: int = SeedField

    help: ClassVar[str] = "map a part of a raster at once, while labels are being drawn"

    @field_validator("extent")
    @classmethod
    def _four_numbers(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if value and (len(value) != 4 or value[0] > value[2] or value[1] > value[3]):
            raise ValueError("an extent is left, bottom, right, top")
        return value


class AverageJob(Job):
    """Make one model of several that were trained in different places from the same start, without their imagery."""

    job: Literal["average"] = "average"
    models: tuple[str, ...] = Field(
        min_length=2, max_length=1000, description="model packages with one make", json_schema_extra=POSITIONAL
    )
    out: str = Field(description="model package to write, NAME.geopeft")
    weights: tuple[Annotated[float, Field(gt=0, le=1e9)], ...] = Field(
        default=(), description="what each model counts, in their order; none: as many as its labelled places"
    )
    json_file: str = JsonField

    help: ClassVar[str] = "make one model of several offices' models"


class EvaluateJob(Job):
    """Score a model package on labels that it has not seen."""

    job: Literal["evaluate"] = "evaluate"
    model: str = Field(description="model package", json_schema_extra=POSITIONAL)
    rasters: tuple[str, ...] = RastersField
    labels: str = LabelsField
    class_field: str = ClassField
    background: str = BackgroundField
    area: str = AreaField
    bands: tuple[str, ...] = BandsField
    line_width_px: float = LineWidthField
    device: Device = DeviceField
    weights_dir: str = WeightsField
    json_file: str = JsonField
    report: str = PageField

    part: Literal["", "network", "classical"] = Field(
        default="", description="score one part of the model alone; empty: the blend that predict uses"
    )

    help: ClassVar[str] = "score a model package on labels"


class AdviceJob(Job):
    """What the jobs that give advice on labels read, and where it goes."""

    rasters: tuple[str, ...] = RastersField
    labels: str = LabelsField
    class_field: str = ClassField
    bands: tuple[str, ...] = BandsField
    radiometry: Radiometry = RadiometryField
    background: str = BackgroundField
    area: str = AreaField
    classes: tuple[ClassStyle, ...] = Field(default=(), description="names, order and colours of the classes")
    line_width_px: float = LineWidthField
    seed: int = SeedField
    out: str
    json_file: str = JsonField


class SuspectsJob(AdviceJob):
    """List labelled shapes that a map made without them contradicts, the most suspicious first."""

    job: Literal["suspects"] = "suspects"
    out: str = Field(description="GeoPackage to write: the shapes that are contradicted")

    help: ClassVar[str] = "list labels that are likely wrong"


class SuggestJob(AdviceJob):
    """List the places whose labels would teach the map the most, the best first."""

    job: Literal["suggest"] = "suggest"
    area: str = Field(
        default="", description="polygons (FILE or FILE:layer) that bound the places, and the background class"
    )
    count: int = Field(default=10, ge=1, le=20, description="places at most")
    out: str = Field(description="GeoPackage to write: the places to label next")

    help: ClassVar[str] = "list the places to label next"


class SampleJob(Job):
    """Draw a stratified random sample of a map, to be labelled, from which areas can be estimated."""

    job: Literal["sample"] = "sample"
    map: str = Field(description="class raster: one band of whole numbers", json_schema_extra=POSITIONAL)
    out: str = Field(description="GeoPackage to write: the points to label, and how they were drawn")
    points: int = Field(default=0, ge=0, le=100_000, description="points in all; 0: chosen from the standard error")
    fewest: int = Field(default=20, ge=2, le=10_000, description="points of each mapped class at least")
    standard_error: float = Field(
        default=0.02, gt=0, le=0.2, description="standard error of the overall accuracy that is wanted"
    )
    aoi: str = Field(default="", description="polygons (FILE or FILE:layer): only pixels inside are drawn from")
    seed: int = SeedField
    json_file: str = JsonField

    help: ClassVar[str] = "draw a random sample of a map, to estimate areas from"


class AreaJob(Job):
    """Estimate areas and accuracy, with intervals, from a sample that `sample` drew and somebody has labelled."""

    job: Literal["area"] = "area"
    points: str = Field(description="GeoPackage that `sample` wrote, labelled", json_schema_extra=POSITIONAL)
    class_field: str = Field(default="class", description="field with what is there: a class's name or its value")
    other_classes: tuple[str, ...] = Field(default=(), description="names of classes that the map does not have")
    out: str = Field(default="", description="table to write, as CSV")
    json_file: str = JsonField

    help: ClassVar[str] = "estimate areas and accuracy from a labelled sample"


class CompareJob(Job):
    """Compare two maps, or two models, on the same labels, and show where they disagree."""

    job: Literal["compare"] = "compare"
    one: str = Field(description="model package or class raster", json_schema_extra=POSITIONAL)
    other: str = Field(description="model package or class raster to compare with", json_schema_extra=POSITIONAL)
    rasters: tuple[str, ...] = Field(
        default=(), description="rasters that a model maps; none for two class rasters", json_schema_extra=POSITIONAL
    )
    labels: str = Field(
        default="", description="labels to judge both on, as FILE or FILE:layer, or a label raster; empty: none"
    )
    class_field: str = ClassField
    background: str = BackgroundField
    area: str = AreaField
    bands: tuple[str, ...] = BandsField
    line_width_px: float = LineWidthField
    out: str = Field(default="", description="raster to write: where the two disagree, on the grid of the first")
    device: Device = DeviceField
    weights_dir: str = WeightsField
    json_file: str = JsonField

    help: ClassVar[str] = "compare two maps or models"


class StudyJob(Job):
    """Compare backbones, adapters and decoders on labels of one region and of another one that no run has seen."""

    job: Literal["study"] = "study"
    rasters: tuple[str, ...] = RastersField
    labels: str = LabelsField
    class_field: str = ClassField
    unseen_rasters: tuple[str, ...] = Field(min_length=1, description="rasters of a region that teaches nothing")
    unseen_labels: str = Field(description="labels of that region, as FILE or FILE:layer, or a label raster")
    unseen_area: str = Field(default="", description="polygons that bound the background class in that region")
    out: str = Field(description="table to write, NAME.csv; a study that was stopped goes on from it")
    backbones: tuple[str, ...] = Field(default=("auto",), description="names of backbones; auto chooses one")
    adapters: tuple[str, ...] = Field(default=("frozen", "lora", "full"), description="how backbones are tuned")
    decoders: tuple[str, ...] = Field(default=("unet",), description="how features become a map")
    metadata: tuple[Literal["off", "on"], ...] = Field(
        default=("off",), description="without or with time and place, for backbones that take them: off, on"
    )
    baselines: tuple[str, ...] = Field(
        default=("random-forest", "scratch_unet"),
        description="what else is trained: random-forest, or backbones that are trained whole",
    )
    fractions: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        default=(1.0,), description="shares of the labelled places that teach, at least one of each class"
    )
    seeds: int = Field(default=5, ge=1, le=100, description="runs of each kind, from the first seed on")
    rates: tuple[Annotated[float, Field(gt=0, le=1000)], ...] = Field(
        default=(0.3, 1.0, 3.0), description="factors of the learning rates to choose from; one or none: no search"
    )
    search_steps: int = Field(default=60, ge=1, description="training steps of a run that a rate is chosen by")
    steps: int = Field(default=0, ge=0, description="training steps; 0: chosen from the labels")
    blend: bool = Field(default=False, description="also score each network's blend with a forest, as predict maps it")
    processes: int = Field(default=1, ge=1, le=64, description="runs at the same time; several GPUs are shared out")
    scheduler: str = SchedulerField
    bands: tuple[str, ...] = BandsField
    radiometry: Radiometry = RadiometryField
    background: str = BackgroundField
    area: str = AreaField
    line_width_px: float = LineWidthField
    rank: int = RankField
    seed: int = SeedField
    device: Device = DeviceField
    weights_dir: str = WeightsField
    json_file: str = JsonField
    report: str = Field(default="", description="HTML file for the page; empty: beside the table")

    help: ClassVar[str] = "compare backbones, adapters and decoders on labels and an unseen region"


class ExportJob(Job):
    """Write a model package as ONNX."""

    job: Literal["export"] = "export"
    model: str = Field(description="model package", json_schema_extra=POSITIONAL)
    onnx: str = Field(description="ONNX file to write")
    int8: bool = Field(default=False, description="store and compute the network in eight bits; the loss is told")
    rasters: tuple[str, ...] = Field(
        default=(), description="rasters to calibrate eight bits on; none: only the weights are stored in eight bits"
    )
    weights_dir: str = WeightsField
    json_file: str = JsonField

    help: ClassVar[str] = "write a model package as ONNX, checked against the model"


class InspectJob(Job):
    """Tell what a model package holds, without loading it into a model."""

    job: Literal["inspect"] = "inspect"
    model: str = Field(description="model package, or an ONNX file", json_schema_extra=POSITIONAL)
    stac: str = Field(default="", description="JSON file to write: the model as a STAC item (MLM extension)")

    help: ClassVar[str] = "tell what a model package holds"


class ReportJob(Job):
    """Write what is known of a model's accuracy as one HTML file."""

    job: Literal["report"] = "report"
    model: str = Field(description="model package", json_schema_extra=POSITIONAL)
    rasters: tuple[str, ...] = Field(
        default=(),
        description="rasters to show with their maps; none: a report without maps",
        json_schema_extra=POSITIONAL,
    )
    out: str = Field(description="HTML file to write")
    labels: str = Field(default="", description="labels to outline in the maps, as FILE or FILE:layer")
    class_field: str = ClassField
    figures: str = Field(
        default="", description="figures of other labels that `evaluate` wrote as JSON, instead of the package's own"
    )
    bands: tuple[str, ...] = BandsField
    line_width_px: float = LineWidthField
    device: Device = DeviceField
    weights_dir: str = WeightsField

    help: ClassVar[str] = "write what is known of a model's accuracy as one HTML file"


class ModelsJob(Job):
    """List backbones, adapters and decoders, and which weights are at hand."""

    job: Literal["models"] = "models"
    weights_dir: str = WeightsField

    help: ClassVar[str] = "list backbones, adapters and decoders"


class ProbeJob(Job):
    """Tell versions and devices of this engine."""

    job: Literal["probe"] = "probe"

    help: ClassVar[str] = "tell versions and devices"


class SchemaJob(Job):
    """Give the JSON Schema of all jobs."""

    job: Literal["schema"] = "schema"

    help: ClassVar[str] = "give the JSON Schema of the jobs"


AnyJob = (
    FitJob
    | PretrainJob
    | DistilJob
    | PredictJob
    | PreviewJob
    | AverageJob
    | EvaluateJob
    | SuspectsJob
    | SuggestJob
    | SampleJob
    | AreaJob
    | CompareJob
    | StudyJob
    | ExportJob
    | InspectJob
    | ReportJob
    | ModelsJob
    | ProbeJob
    | SchemaJob
)
JOB_TYPES: dict[str, type[Job]] = {
    kind.model_fields["job"].default: kind
    for kind in (
        FitJob,
        PretrainJob,
        DistilJob,
        PredictJob,
        PreviewJob,
        AverageJob,
        EvaluateJob,
        SuspectsJob,
        SuggestJob,
        SampleJob,
        AreaJob,
        CompareJob,
        StudyJob,
        ExportJob,
        InspectJob,
        ReportJob,
        ModelsJob,
        ProbeJob,
        SchemaJob,
    )
}
_adapter: TypeAdapter[AnyJob] = TypeAdapter(Annotated[AnyJob, Field(discriminator="job")])


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a job file."""
    return _adapter.json_schema()


def parse(data: object) -> AnyJob:
    """A job from plain data; JobError says which field is wrong."""
    try:
        return _adapter.validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "job"
        message = f"The job is not valid: {where}: {first['msg']}."
        raise JobError(message, "Correct this field and run again.") from error


def load(path: Path) -> AnyJob:
    """A job from its file; JobError where it is not there, not JSON or not valid."""
    try:
        if path.stat().st_size > MAX_JOB_BYTES:
            raise JobError(f"The job file {path} is larger than {MAX_JOB_BYTES} bytes.", "Write a smaller job file.")
        data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    except OSError as error:
        raise JobError(f"The job file {path} cannot be read: {error.strerror}.", "Check its path.") from error
    except ValueError as error:
        raise JobError(f"The job file {path} is not JSON: {error}.", "Write it as UTF-8 JSON.") from error
    return parse(data)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number")


def finite_or_none(value: float) -> float | None:
    """JSON has no NaN: a figure that is not known is null."""
    return value if math.isfinite(value) else None
