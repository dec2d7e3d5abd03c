"""Whether a map tells where not to trust it: its confidence on unseen labels, and what part of other rasters it calls
outside of what it has seen.

    build.py bench trust [--cases NAME,...] [--steps N] [--out FOLDER]

Each case is a short fit on one scene. Its confidence is scored on labels of a region that it never saw, with the
sharpness that the fit has chosen and with none. Then it maps its own scene, ground next to it, other regions and what
other sensors or seasons saw; nothing is told of what these are. Writes OUT/trust.md and OUT/trust.png after each case.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _curves  # type: ignore[import-not-found]
import _sets  # type: ignore[import-not-found]
from geopeft import package

SAMPLE = Path(__file__).resolve().parents[2] / "resources" / "sample"
LINES = {
    "right": ("as sure as it is right", (190, 195, 200)),
    "plain": ("without sharpness", (230, 159, 0)),
    "sharpened": ("with sharpness", (0, 114, 178)),
}
TITLE = """# Where not to trust a map

`python3 build.py bench trust`: short fits (30 steps), each on one scene.
"""


@dataclass(frozen=True)
class Case:
    """A scene to train on, and rasters to map.

    Args:
        raster, labels: of the training, in the shared data or in the sample; labels as FILE:layer.
        unseen: raster and labels that score the confidence, empty: none.
        others: (how it differs from the training scene, raster); the training scene itself is always mapped.
    """

    name: str
    raster: str
    labels: str
    unseen: tuple[str, str] = ("", "")
    others: tuple[tuple[str, str], ...] = ()


_LULC, _POOL = "terramind_s2_lulc", "s2_unlabelled_pool"
CASES = (
    Case("sample scene (Landsat 8)", "sample/itaipu_landsat8.tif", "sample/labels.gpkg:train",
         ("sample/itaipu_landsat8.tif", "sample/labels.gpkg:unseen"),
         (("another region and sensor", f"{_LULC}/train_433D_629L/s2l2a.tif"),
          ("another region and sensor", f"{_POOL}/AnnualCrop_1.tif"))),
    Case("Amazon, Landsat 5", "rstoolbox_lsat5_amazon/train_west/lsat5.tif",
         "rstoolbox_lsat5_amazon/train_west/labels.gpkg:polygons",
         ("rstoolbox_lsat5_amazon/unseen_mid/lsat5.tif", "rstoolbox_lsat5_amazon/unseen_mid/labels.gpkg:polygons"),
         (("ground next to it", "rstoolbox_lsat5_amazon/unseen_mid/lsat5.tif"),)),
    Case("North Carolina, Landsat 7", "nc_landsat7/train_west/lsat7_2000.tif",
         "nc_landsat7/train_west/labels.gpkg:polygons",
         ("nc_landsat7/unseen_mid/lsat7_2000.tif", "nc_landsat7/unseen_mid/labels.gpkg:polygons"),
         (("ground next to it", "nc_landsat7/unseen_mid/lsat7_2000.tif"),
          ("another region and sensor", "rstoolbox_lsat5_amazon/train_west/lsat5.tif"))),
    Case("floods in Spain, Sentinel-2", "sen1floods11_spain/train_west/s2_l1c.tif",
         "sen1floods11_spain/train_west/labels.gpkg:polygons",
         ("sen1floods11_spain/unseen_mid/s2_l1c.tif", "sen1floods11_spain/unseen_mid/labels.gpkg:polygons"),
         (("ground next to it", "sen1floods11_spain/unseen_mid/s2_l1c.tif"),
          ("another region and season", f"{_POOL}/Forest_1.tif"))),
    Case("land cover, Sentinel-2", f"{_LULC}/train_433D_629L/s2l2a.tif", f"{_LULC}/train_433D_629L/labels.gpkg:lulc",
         (f"{_LULC}/unseen_282D_485L/s2l2a.tif", f"{_LULC}/unseen_282D_485L/labels.gpkg:lulc"),
         (("another region and season", f"{_LULC}/train_38D_378R/s2l2a.tif"),
          ("another region and season", f"{_LULC}/unseen_282D_485L/s2l2a.tif"),
          ("another region and season", f"{_LULC}/unlabelled_609U_541L/s2l2a.tif"),
          ("another region and season", f"{_POOL}/patch_275979.tif"))),
    Case("Amazon, Sentinel-2", "rstoolbox_sen2_amazon/train_west/sen2.tif",
         "rstoolbox_sen2_amazon/train_west/labels.gpkg:polygons", others=(
          ("another region and season", f"{_LULC}/train_38D_378R/s2l2a.tif"),
          ("another region and season", f"{_LULC}/unseen_282D_485L/s2l2a.tif"),
          ("another region and season", f"{_LULC}/unlabelled_609U_541L/s2l2a.tif"),
          ("another region and season", f"{_POOL}/patch_275979.tif"))),
)  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures the cases one after the other and writes the tables."""
    parser = argparse.ArgumentParser(prog="build.py bench trust", description=__doc__)
    parser.add_argument("--cases", default="", help="parts of their names; empty: all")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("resources/results"))
    options = parser.parse_args(arguments)
    shared = _sets.shared_folder()
    if shared is None:
        return 2
    wanted = options.cases.split(",")
    options.out.mkdir(parents=True, exist_ok=True)
    confidence: list[dict[str, Any]] = []
    outside: list[dict[str, Any]] = []
    for case in CASES:
        if not any(part in case.name for part in wanted):
            continue
        with tempfile.TemporaryDirectory() as scratch:
            scored, mapped = measure(case, shared, options.steps, Path(scratch))
        confidence.append(scored)
        outside += mapped
        text = report(confidence, outside)
        (options.out / "trust.md").write_text(text, encoding="utf-8")
        plot(confidence, options.out / "trust.png")
        print({key: value for key, value in scored.items() if not key.endswith("_bins")}, *mapped, sep="\n", flush=True)
    return 0


def measure(case: Case, shared: Path, steps: int, scratch: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the fit of a case says of its confidence, and of what lies outside: a row, and a row for each raster."""

    def path(name: str) -> str:
        return str(SAMPLE.parent / name if name.startswith("sample/") else shared / "data" / name)

    model, figures = scratch / "m.geopeft", scratch / "figures.json"
    weights = ["--weights-dir", str(shared / "weights")]
    _sets.engine("fit", path(case.raster), "--labels", path(case.labels), "--class-field", "class", "--out", str(model),
                 "--steps", str(steps), "--json", str(figures), *weights)  # fmt: skip
    fitted = json.loads(figures.read_text())
    row = {"case": case.name, "sharpness": package.read_manifest(model).blend.sharpness, "blocks": fitted["blocks"],
           "ece": fitted["calibration"]["ece"]}  # fmt: skip
    raster, labels = case.unseen
    for key, tested in (("unseen", model), ("unseen_plain", plain(model))) if raster else ():
        _sets.engine("evaluate", str(tested), path(raster), "--labels", path(labels), "--class-field", "class",
                     "--json", str(figures), *weights)  # fmt: skip
        found = json.loads(figures.read_text())["calibration"]
        row |= {key: found["ece"], f"{key}_bins": found["bins"]}
    rows = []
    for kind, name in (("its own scene", case.raster), *case.others):
        entry = {"case": case.name, "kind": kind, "raster": "/".join(Path(name).parts[-2:])}
        try:
            _sets.engine("predict", str(model), path(name), "--out", str(scratch / "map.tif"), "--json", str(figures),
                         *weights)  # fmt: skip
        except _sets.EngineFailed as error:
            rows.append(entry | {"refused": str(error).strip().splitlines()[-1]})
        else:
            rows.append(entry | {"outside": json.loads(figures.read_text())["rasters"][0]["outside_share"]})
    return row, rows


def plain(model: Path) -> Path:
    """The same package, as sure as the two parts of its map make it."""
    opened = package.read(model)
    blend = opened.manifest.blend.model_copy(update={"sharpness": 1.0})
    path = model.with_name("plain.geopeft")
    package.write(path, opened.manifest.model_copy(update={"blend": blend}), opened.weights, opened.forest)
    return path


def report(confidence: Sequence[dict[str, Any]], outside: Sequence[dict[str, Any]]) -> str:
    """Both tables as Markdown."""
    lines = [TITLE, "## Confidence", "",
             "Expected calibration error: how far the confidence is from the accuracy, on average. `Held out` is what "
             "the fit itself reports; the other region taught nothing and chose nothing.", "",
             "| trained on | blocks | sharpness | held out | other region, without sharpness | with it |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for row in confidence:
        cells = [_number(row.get(key)) for key in ("ece", "unseen_plain", "unseen")]
        lines.append(f"| {row['case']} | {row['blocks']} | {row['sharpness']:.2f} | {' | '.join(cells)} |")
    lines += ["", "## Outside what the model has seen", "", "| trained on | mapped | raster | outside |",
              "|---|---|---|---|"]  # fmt: skip
    for row in outside:
        share = row.get("outside")
        said = "refused: other values or bands" if "refused" in row else "-" if share is None else f"{share:.1%}"
        lines.append(f"| {row['case']} | {row['kind']} | {row['raster']} | {said} |")
    return "\n".join([*lines, ""])


def plot(confidence: Sequence[dict[str, Any]], path: Path) -> None:
    """Reliability on the other regions: of what is mapped with a confidence, the share that is right."""
    panels = {}
    for row in confidence:
        lines = {
            name: [(100 * one["confidence"], 100 * one["accuracy"], 0.0) for one in row.get(f"{key}_bins", ())]
            for name, key in (("plain", "unseen_plain"), ("sharpened", "unseen"))
        }
        if all(lines.values()):
            panels[row["case"]] = {"right": [(0.0, 0.0, 0.0), (100.0, 100.0, 0.0)], **lines}
    if panels:
        _curves.draw(panels, LINES, "confidence in %", "right in %", path)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except _sets.EngineFailed as error:
        sys.exit(str(error))
