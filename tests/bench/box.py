"""The model in the box: how it is made again, and what it has learned to see.

    python3 build.py bench box --train [--weights DIR]    the recipe of resources/backbones, with the shared data
    python3 build.py bench box --keep FILE                puts a file that the recipe made in its place, with its card
    python3 build.py bench box --picture [--file FILE]    resources/results/features.png

The picture shows scenes that no training has seen: the three strongest patterns (principal components) of a backbone's
feature maps as red, green and blue, each backbone and scene by itself. A transformer sees the scene in chips of its
own size, and what a place in the chip alone contributes is taken off. `--train` goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _sets  # type: ignore[import-not-found]
import numpy as np
import torch
from geopeft.data.normalize import assume_radiometry
from geopeft.data.raster import band_statistics, describe, open_raster
from geopeft.events import Reporter
from geopeft.models import SegmentationModel, build
from geopeft.models.backbones.adapted import read_header
from geopeft.models.choose import input_bands, match_for, named_card, resample_factor
from geopeft.models.spec import ModelSpec
from geopeft.quicklook import GAP_PX, INK, PAPER, STRIP_PX, TEXT_PX, stretched
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from rasterio.windows import Window
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[2]
BOX = ROOT / "resources" / "backbones"
SIDE_PX = 280
# (raster, upper left row and column, side in pixels)
SCENES = (
    ("terramind_s2_lulc/unseen_282D_485L/s2l2a.tif", 0, 0, 224),
    ("nc_landsat7/unseen_mid/lsat7_2000.tif", 60, 0, 96),
    ("kampala_oam_buildings/unseen_mid/ortho_rgb.tif", 200, 0, 512),
    ("urban_trees_naip/unseen_claremont/*_2020_*.tif", 0, 0, 256),
)
Picture = NDArray[np.uint8]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The model in the box.")
    parser.add_argument("--train", action="store_true", help="run the recipe")
    parser.add_argument("--weights", default="", help="folder with the weights of the teachers")
    parser.add_argument("--out", default="", help="where --train writes; by default in the folder build")
    parser.add_argument("--keep", default="", help="a file that the recipe made")
    parser.add_argument("--picture", action="store_true", help="draw the features")
    parser.add_argument("--file", default="", help="the backbone to draw instead of the one in the box")
    chosen = parser.parse_args(argv)
    shared = _sets.shared_folder()
    if shared is None:
        return 1
    weights = chosen.weights or str(shared / "weights")
    if chosen.train:
        return train(shared, weights, Path(chosen.out or ROOT / "build" / "geopeft_small.safetensors"))
    if chosen.keep:
        keep(Path(chosen.keep))
    if chosen.picture:
        draw(shared / "data", weights, chosen.file or "geopeft_small")
    return 0


def train(shared: Path, weights: str, out: Path) -> int:
    """Runs the recipe in the folder of the data, where its rasters are; returns the exit code."""
    recipe = json.loads((BOX / "recipe.json").read_text(encoding="utf-8"))
    options = [f"--{name.replace('_', '-')}={_text(value)}" for name, value in recipe.items() if name not in
               ("job", "rasters", "out")]  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "geopeft", "pretrain", *recipe["rasters"], *options]
    command += [f"--out={out.resolve()}", f"--weights-dir={Path(weights).resolve()}"]
    return subprocess.run(command, cwd=shared / "data", check=False).returncode


def _text(value: Any) -> str:
    return ",".join(value) if isinstance(value, list) else str(value)


def keep(file: Path) -> None:
    """Copies a file into the box and writes its card and curve; the table's row needs the checksum that is printed."""
    header = read_header(file)
    data = file.read_bytes()
    (BOX / f"{header.backbone}.safetensors").write_bytes(data)
    training = header.recipe["training"]
    card = {
        "backbone": header.backbone,
        "licence": header.licence,
        "bytes": len(data),
        "made_by": "python3 build.py bench box --train, which runs recipe.json",
        "start": {key: value for key, value in header.recipe["start"].items() if key != "sha256"},
        "seed": header.recipe["job"]["seed"],
        "steps": training["step"],
        "hours": round(training["seconds"] / 3600, 2),
        "best_step": training["best_step"],
        "valid_px": header.recipe["valid_px"],
        "rasters": header.recipe["rasters"],
        "curve": training["curve"],
    }
    (BOX / f"{header.backbone}.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    print(f"{len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}")


def draw(data: Path, weights: str, box: str) -> None:
    """Writes the picture: a row for each scene, the scene itself and what each backbone makes of it."""
    columns = (("The model in the box", box), ("ImageNet (EfficientNet-Lite0)", "tf_efficientnet_lite0"),
               ("Galileo nano", "galileo_nano"))  # fmt: skip
    rows = []
    for pattern, row, col, side in SCENES:
        path = sorted(data.glob(pattern))[0]
        pictures: list[tuple[str, Picture | None]] = [("Scene", scene(path, row, col, side))]
        pictures += [(title, features(path, row, col, side, name, weights)) for title, name in columns]
        rows.append((f"{path.parent.parent.name}, {path.parent.name}", pictures))
    target = ROOT / "resources" / "results" / "features.png"
    composed(rows).quantize(256).save(target, format="PNG", optimize=True)
    print(target.relative_to(ROOT))


def scene(path: Path, row: int, col: int, side: int) -> Picture:
    info = describe(str(path))
    whole = stretched(path, (info.height, info.width))
    return resized(whole[row : row + side, col : col + side])


def features(path: Path, row: int, col: int, side: int, name: str, weights: str) -> Picture | None:
    """The maps of a backbone as one picture, None where the backbone cannot see the scene."""
    model = seeing(path, name, weights)
    if model is None:
        return None
    info = describe(str(path))
    with open_raster(info, [band.index for band in info.bands]) as reader:
        values, valid = reader.read(Window(col, row, side, side))
    fill = np.array([(b.mean - b.offset) / b.scale for b in model.spec.bands], np.float32)
    raw = torch.from_numpy(np.where(valid, values, fill[:, None, None]).astype(np.float32))[None]
    with torch.inference_mode():
        maps = tiled_maps(model, raw)
    return resized(patterns(maps))


def seeing(path: Path, name: str, weights: str) -> SegmentationModel | None:
    """A model whose backbone sees this raster; its decoder takes no part."""
    card = named_card(name)
    info = describe(str(path))
    matched = match_for(card, info.bands)
    if not matched or (card.gsd_m and not card.gsd_m[0] / 4 <= info.gsd_m <= card.gsd_m[1] * 4):
        return None
    statistics = band_statistics(info, [band.index for band in info.bands])
    bands, _ = input_bands(card, matched, info.bands, statistics, assume_radiometry(info, info.bands, statistics))
    spec = ModelSpec(
        backbone=card.name,
        adapter="frozen",
        decoder="unet",
        bands=bands,
        num_classes=2,
        gsd_m=info.gsd_m,
        resample=resample_factor(card, info.gsd_m)[0],
        chip_size_px=card.chip_size_px,
    )
    return build(spec, weights_dir=weights, reporter=Reporter())


def tiled_maps(model: SegmentationModel, raw: torch.Tensor) -> torch.Tensor:
    """(D, h, w): the maps of 4 to 16 px stride, each channel of unit variance, on the grid of 4 px."""
    maps: list[torch.Tensor] = []
    hook = model.decoder.register_forward_pre_hook(lambda module, args: maps.extend(args[0]))
    transformer = len(set(model.strides)) == 1
    tiles = raw.shape[-1] // model.spec.chip_size_px if transformer else 1
    chip = raw.shape[-1] // tiles
    cut = raw[..., : tiles * chip, : tiles * chip].reshape(1, -1, tiles, chip, tiles, chip)
    model(cut.permute(0, 2, 4, 1, 3, 5).reshape(tiles**2, -1, chip, chip))
    hook.remove()
    size = (tiles * chip // 4, tiles * chip // 4)
    kept = [m for m, stride in zip(maps, model.strides, strict=True) if 4 <= stride <= 16]
    if transformer:
        last = maps[-1] - maps[-1].mean(0)
        rows = last.shape[-1]
        joined = last.reshape(tiles, tiles, -1, rows, rows).permute(2, 0, 3, 1, 4)
        kept = [joined.reshape(1, -1, tiles * rows, tiles * rows)]
    parts = []
    for own in kept:
        own = (own - own.mean((2, 3), keepdim=True)) / own.std((2, 3), keepdim=True).clamp_min(1e-6)
        part = F.interpolate(own / own.shape[1] ** 0.5, size=size, mode="bilinear", align_corners=False)
        parts.append(part[0])
    return torch.cat(parts)


def patterns(maps: torch.Tensor) -> Picture:
    """The first three principal components of (D, h, w) as red, green and blue, from the 2nd to the 98th percentile."""
    flat = maps.flatten(1).T
    flat = flat - flat.mean(0)
    _, _, directions = torch.linalg.svd(flat[:: max(1, len(flat) // 8000)], full_matrices=False)
    scores = flat @ directions[:3].T
    # A component's sign is arbitrary; the longer tail is made bright.
    scores = scores * torch.where((scores**3).mean(0) < 0, -1.0, 1.0)
    low, high = torch.quantile(scores, 0.02, dim=0), torch.quantile(scores, 0.98, dim=0)
    picture: Picture = (((scores - low) / (high - low)).clamp(0, 1) * 255).byte().view(*maps.shape[1:], 3).numpy()
    return picture


def resized(picture: Picture) -> Picture:
    return np.asarray(Image.fromarray(picture).resize((SIDE_PX, SIDE_PX), Image.Resampling.BILINEAR))


def composed(rows: Sequence[tuple[str, Sequence[tuple[str, Picture | None]]]]) -> Image.Image:
    """Rows of pictures below their titles."""
    columns, font = len(rows[0][1]), ImageFont.load_default(TEXT_PX)
    row_px = SIDE_PX + STRIP_PX
    canvas = Image.new("RGB", (columns * (SIDE_PX + GAP_PX) + GAP_PX, len(rows) * row_px + STRIP_PX), PAPER)
    pen = ImageDraw.Draw(canvas)
    for number, (title, pictures) in enumerate(rows):
        top = STRIP_PX + number * row_px
        pen.text((GAP_PX, top + 6), title, INK, font)
        for at, (name, picture) in enumerate(pictures):
            left = GAP_PX + at * (SIDE_PX + GAP_PX)
            if number == 0:
                pen.text((left, 6), name, INK, font)
            if picture is not None:
                canvas.paste(Image.fromarray(picture), (left, top + STRIP_PX))
            else:
                pen.text((left + 20, top + STRIP_PX + SIDE_PX // 2), "not for these bands or pixels", INK, font)
    return canvas


if __name__ == "__main__":
    raise SystemExit(main())
