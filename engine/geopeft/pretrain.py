"""The `pretrain` job: a backbone goes on learning from rasters without labels, and is written as one file."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from geopeft import __version__
from geopeft.checkpoint import Checkpoint, checkpoint_path
from geopeft.data.bands import Band, select_bands
from geopeft.data.normalize import assume_radiometry
from geopeft.data.raster import band_statistics, describe
from geopeft.data.unlabelled import Scene, SceneReader
from geopeft.errors import BandError, GeopeftError, JobError, RasterError
from geopeft.events import Reporter
from geopeft.job import PretrainJob
from geopeft.models.adapters import ADAPTERS
from geopeft.models.adapters.adapter import Adapter
from geopeft.models.adapters.reparametrized import plain_state
from geopeft.models.backbones import BACKBONES
from geopeft.models.backbones.adapted import FORMAT
from geopeft.models.backbones.backbone import Backbone
from geopeft.models.choose import input_bands, match_for, match_or_refuse, named_card, resample_factor
from geopeft.models.licences import require_licence
from geopeft.models.registry import BackboneCard, load_builder
from geopeft.models.segmentation import BaseWeights, build_backbone, load_pretrained
from geopeft.models.spec import InputBand, ModelSpec
from geopeft.models.wavelengths import optical_wavelength
from geopeft.pretext import Student, Task, Teacher, View
from geopeft.pretraining import Pretrainer
from geopeft.runtime import choose_device, peak_memory_mb
from geopeft.writing import check_target, write_bytes

# Less valid pixels than this teach nothing.
FEWEST_PX = 32 * 32
SMALLEST_TEACHER_STRIDE = 4


def run(job: PretrainJob, reporter: Reporter) -> dict[str, Any]:
    """Runs a pretrain job; the outputs name the file and give the curve."""
    out = _out_path(job.out)
    card = named_card(job.backbone)
    if card.classical_alone:
        raise JobError(
            f"{card.name} has no network that could learn.", "Choose another backbone.", "BACKBONE_UNSUITABLE"
        )
    if job.start != "nothing":
        require_licence(card, job.accept_licence)
    scenes = _scenes(job, card, reporter)
    torch.manual_seed(job.seed)
    backbone, base, started_from = _start(job, card, scenes, reporter)
    adapter: Adapter = load_builder(ADAPTERS[job.adapter].builder)()
    spec = _adapter_spec(job, card)
    adapter.apply(backbone, spec)
    device = choose_device(job.device)
    student = Student(
        backbone.eval().to(device), job.adapter, _student_views(card, scenes), card.any_optical, card.chip_size_px,
        card.gsd_m,
    )  # fmt: skip
    found = [_teacher(job, name, scenes, backbone, device, reporter) for name in _teachers(job, started_from)]
    teachers = [teacher for teacher in found if teacher is not None]
    task = Task(student, teachers, SceneReader([scene for scene, _ in scenes], job.seed), reporter, job.seed)
    identity = _identity(job, [scene for scene, _ in scenes])
    checkpoint = Checkpoint(checkpoint_path(out), "pretrain", identity)
    trainer = Pretrainer(task, reporter, seed=job.seed, checkpoint=checkpoint)
    if trainer.resume():
        reporter.message(f"Goes on from step {trainer.progress['step']} of the run that was stopped.")
    elif not trainer.validates:
        reporter.warn("The rasters are too small to hold anything out: nothing tells when to stop but the steps.")
    trainer.train(job.steps, job.max_minutes * 60 or math.inf)
    recipe = _recipe(job, base, started_from, [scene for scene, _ in scenes])
    figures = {k: v for k, v in trainer.progress.items() if k != "values"} | {"peak_memory_mb": peak_memory_mb()}
    _write(out, _plain_state(job, card, scenes, backbone, adapter, spec), card, base, recipe | {"training": figures})
    checkpoint.remove()
    outputs: dict[str, Any] = {"backbone": str(out), "figures": figures}
    if job.json_file:
        write_bytes(Path(job.json_file), json.dumps(recipe | {"training": figures}, indent=1).encode())
        outputs["json"] = job.json_file
    return outputs


SceneBands = tuple[Scene, tuple[InputBand, ...]]


def _scenes(job: PretrainJob, card: BackboneCard, reporter: Reporter) -> list[SceneBands]:
    """What can be learned from: each raster with its optical bands and their constants. The rest is left out with a
    warning; the first reason is the error where nothing remains."""
    found: list[SceneBands] = []
    refused: list[GeopeftError] = []
    for path in job.rasters:
        try:
            found.append(_scene(job, card, path))
        except (RasterError, BandError) as error:
            refused.append(error)
            if len(job.rasters) > 1:
                reporter.warn(f"Left out: {error.message}")
    if not found:
        raise refused[0]
    total = sum(scene.valid_px for scene, _ in found)
    reporter.message(f"Learns from {len(found)} rasters with {total / 1e6:.3g} million valid pixels.")
    return found


def _scene(job: PretrainJob, card: BackboneCard, path: str) -> SceneBands:
    info = describe(path)
    bands = tuple(b for b in _asked_for(info, job.bands) if optical_wavelength(b) is not None)
    if not bands:
        match_or_refuse(card, info.bands, False)
        raise BandError(f"{path} has no optical band of those asked for.", "Name others with --bands.")
    statistics = band_statistics(info, [band.index for band in bands])
    # A band of one value has nothing to rebuild.
    varied = [at for at in range(len(bands)) if statistics.std[at] > 1e-9 * max(1.0, abs(statistics.mean[at]))]
    if not varied:
        raise RasterError(f"{path} has the same value everywhere.", "Choose another raster.", "RASTER_EMPTY")
    if len(varied) < len(bands):
        bands = tuple(bands[at] for at in varied)
        statistics = band_statistics(info, [band.index for band in bands])
    valid_px = float(info.height * info.width * statistics.valid_fraction.max())
    if valid_px < FEWEST_PX:
        raise RasterError(
            f"{path} has about {valid_px:.0f} valid pixels, too few to learn from.",
            f"Choose a raster with at least {FEWEST_PX} valid pixels.",
            "RASTER_TOO_SMALL",
        )
    matched = match_or_refuse(card, bands, False)
    resample_factor(card, info.gsd_m)
    radiometry = assume_radiometry(info, bands, statistics, job.radiometry)
    constants, _ = input_bands(card, matched, bands, statistics, radiometry)
    return Scene(info, bands, statistics, valid_px), constants


def _asked_for(info: Any, names: Sequence[str]) -> tuple[Band, ...]:
    """The bands of these names that the raster has; all where none are asked for."""
    if not names:
        return tuple(info.bands)
    found: dict[int, Band] = {}
    missing: BandError | None = None
    for name in names:
        try:
            found |= {band.index: band for band in select_bands(info, [name])}
        except BandError as error:
            missing = error
    if not found and missing is not None:
        raise missing
    return tuple(found.values())


def _start(
    job: PretrainJob, card: BackboneCard, scenes: Sequence[SceneBands], reporter: Reporter
) -> tuple[Backbone, BaseWeights, str]:
    """The plain backbone with the weights to start from, which these are, and the row they are of ("": none)."""
    backbone = _plain(card, scenes)
    if job.start == "nothing" or (job.start == "published" and not card.pretrained):
        return backbone, BaseWeights("", "", "", card.licence, "random values"), ""
    if job.start in ("published", card.name):
        return backbone, load_pretrained(backbone, card, job.weights_dir, reporter), card.name
    other = BACKBONES[job.start]
    names = tuple(band.name for band in other.bands)
    source = build_backbone(other, names, [band.wavelength_um for band in other.bands])
    base = load_pretrained(source, other, job.weights_dir, reporter)
    backbone.start_from(source)
    return backbone, base, other.name


def _plain(card: BackboneCard, scenes: Sequence[SceneBands]) -> Backbone:
    """The network of a card for the bands that all scenes have."""
    first = scenes[0][0].bands
    wavelengths = [length for band in first if (length := optical_wavelength(band)) is not None]
    names = tuple(band.name for band in first)
    if card.bands and not card.any_optical:
        names = _common_names(card, scenes)
    return build_backbone(card, names, wavelengths)


def _common_names(card: BackboneCard, scenes: Sequence[SceneBands]) -> tuple[str, ...]:
    """The card's bands that every scene has; BandError where these are too few."""
    if not card.bands:
        return ()
    each = [{constants.backbone_band for constants in bands} for _, bands in scenes]
    names = tuple(band.name for band in card.bands if all(band.name in own for own in each))
    if len(names) < min(3, len(card.bands)):
        raise BandError(
            f"The rasters have {len(names)} bands in common that {card.title} knows; it needs "
            f"{min(3, len(card.bands))}.",
            "Give it rasters of one sensor, or choose the backbone geopeft_small, which takes any bands.",
        )
    return names


def _student_views(card: BackboneCard, scenes: Sequence[SceneBands]) -> tuple[View, ...]:
    if card.any_optical:
        return tuple(View((), (), ()) for _ in scenes)
    if card.bands:
        names = _common_names(card, scenes)
        return tuple(_view(bands, names) for _, bands in scenes)
    counts = sorted({len(scene.bands) for scene, _ in scenes})
    if len(counts) > 1:
        raise BandError(
            f"{card.title} takes the same bands of every raster; these have {counts[0]} to {counts[-1]}.",
            "Name bands that all rasters have with --bands, or choose the backbone geopeft_small.",
        )
    return tuple(View(tuple(range(counts[0])), (1.0,) * counts[0], (0.0,) * counts[0]) for _ in scenes)


def _view(bands: Sequence[InputBand], names: Sequence[str]) -> View:
    """From standardised values to a network's units: raster value = standardised * std + mean, and so on."""
    where = [next(at for at, band in enumerate(bands) if band.backbone_band == name) for name in names]
    scale = tuple(bands[at].std * bands[at].backbone_scale for at in where)
    offset = tuple(bands[at].mean * bands[at].backbone_scale + bands[at].backbone_offset for at in where)
    return View(tuple(where), scale, offset)


def _teachers(job: PretrainJob, started_from: str) -> list[str]:
    return list(dict.fromkeys([*([started_from] if started_from else []), *job.teacher]))


def _teacher(
    job: PretrainJob,
    name: str,
    scenes: Sequence[SceneBands],
    student: Backbone,
    device: torch.device,
    reporter: Reporter,
) -> Teacher | None:
    """A frozen backbone with its view of each scene; JobError where it was asked for and fits no raster."""
    card = named_card(name)
    views = [_teacher_view(job, card, scene) for scene, _ in scenes]
    fitting = [found for found in views if found is not None]
    if not fitting:
        if name not in job.teacher:
            return None
        raise JobError(
            f"The teacher {name} fits none of the rasters: it needs {_needs(card)}.",
            "Choose a teacher for these bands and pixel sizes, or none.",
            "TEACHER_UNSUITABLE",
        )
    if len(fitting) < len(scenes):
        reporter.message(f"The teacher {name} fits {len(fitting)} of {len(scenes)} rasters; the others go without it.")
    made: dict[tuple[str, ...], Backbone] = {}
    for names in {names for names, _ in fitting}:
        wavelengths = [0.56] if card.any_optical else []
        network = build_backbone(card, names, wavelengths).eval().requires_grad_(False)
        if card.pretrained:
            load_pretrained(network, card, job.weights_dir, None if made else reporter)
        made[names] = network.to(device).to(memory_format=torch.channels_last)
    first = next(iter(made.values()))
    maps = _maps_to_follow(first)
    return Teacher(
        name=card.name,
        networks=tuple(made[found[0]] if found else None for found in views),
        views=tuple(found[1] if found else None for found in views),
        gsd_range_m=card.gsd_m,
        chip_px=card.chip_size_px,
        maps=maps,
        same=tuple(_same(student, first, index) for index in maps),
        any_optical=card.any_optical,
    )


def _teacher_view(job: PretrainJob, card: BackboneCard, scene: Scene) -> tuple[tuple[str, ...], View] | None:
    """The card's bands that the scene has, and the way there; None where the teacher cannot see it."""
    matched = match_for(card, scene.bands)
    try:
        resample_factor(card, scene.info.gsd_m)
    except RasterError:
        return None
    if card.any_optical and matched:
        return ("any",), View((), (), ())
    if not matched:
        return None
    radiometry = assume_radiometry(scene.info, scene.bands, scene.statistics, job.radiometry)
    bands, _ = input_bands(card, matched, scene.bands, scene.statistics, radiometry)
    names = tuple(band.name for band in card.bands if band.name in matched)
    return names, _view(bands, names)


def _needs(card: BackboneCard) -> str:
    bands = ", ".join(band.common for band in card.bands) if card.bands else "bands whose wavelength is known"
    return f"{bands}{f' at {card.gsd_m[0]:g} to {card.gsd_m[1]:g} m' if card.gsd_m else ''}"


def _maps_to_follow(network: Backbone) -> tuple[int, ...]:
    """The last map of each stride, but those so fine that they hold little more than the pixels."""
    last = {stride: at for at, stride in enumerate(network.strides)}
    return tuple(at for stride, at in sorted(last.items()) if stride >= min(SMALLEST_TEACHER_STRIDE, max(last)))


def _same(student: Backbone, teacher: Backbone, index: int) -> int:
    """The student's map that means the same, where both networks are built alike."""
    alike = list(student.strides) == list(teacher.strides) and list(student.out_channels) == list(teacher.out_channels)
    return index if alike else -1


def _adapter_spec(job: PretrainJob, card: BackboneCard) -> ModelSpec:
    """What an adapter wants to know; decoder and classes take no part."""
    return ModelSpec(
        backbone=card.name,
        adapter=job.adapter,
        decoder="unet",
        bands=(InputBand(name="any"),),
        num_classes=2,
        gsd_m=10.0,
        rank=job.rank,
        chip_size_px=card.chip_size_px,
    )


def _plain_state(
    job: PretrainJob,
    card: BackboneCard,
    scenes: Sequence[SceneBands],
    backbone: Backbone,
    adapter: Adapter,
    spec: ModelSpec,
) -> dict[str, Tensor]:
    """The backbone's own tensors, with the adapter merged: 16 bits for kernels, 32 for everything small."""
    plain = _plain(card, scenes)
    if job.adapter == "full":
        plain.load_state_dict(backbone.state_dict())
    else:
        plain.load_state_dict(plain_state(backbone))
        adapter.merge(plain, {name: value.cpu() for name, value in adapter.state(backbone).items()}, spec)
    return {
        name: (value.half() if value.dim() > 1 and value.abs().max() < 60_000 else value).cpu().contiguous()
        for name, value in plain.state_dict().items()
    }


def _identity(job: PretrainJob, scenes: Sequence[Scene]) -> str:
    """Checksum of all that a checkpoint depends on."""
    fields = job.model_dump(exclude={"protocol", "out", "max_minutes", "device", "weights_dir", "json_file"})
    files = [scene.info.fingerprint for scene in scenes]
    return hashlib.sha256(json.dumps([fields, files], sort_keys=True).encode()).hexdigest()


def _recipe(job: PretrainJob, base: BaseWeights, started_from: str, scenes: Sequence[Scene]) -> dict[str, Any]:
    """How the file was made. Of the rasters only the names: folders are nobody's business."""
    fields = job.model_dump(exclude={"protocol", "rasters", "out", "json_file", "weights_dir"})
    start = {"backbone": started_from, "file": base.file, "sha256": base.sha256, "licence": base.licence}
    return {
        "engine": __version__,
        "job": fields,
        "start": start,
        "rasters": [Path(scene.info.path).name for scene in scenes],
        "valid_px": int(np.sum([scene.valid_px for scene in scenes])),
        "created": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _write(out: Path, state: dict[str, Tensor], card: BackboneCard, base: BaseWeights, recipe: dict[str, Any]) -> None:
    note = {
        "format": FORMAT,
        "backbone": card.network,
        "licence": base.licence or card.licence,
        "recipe": json.dumps(recipe),
    }
    data = save(state, note)
    check_target(out, len(data))
    write_bytes(out, data)


def _out_path(out: str) -> Path:
    path = Path(out)
    path = path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")
    check_target(path)
    return path
