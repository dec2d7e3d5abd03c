from __future__ import annotations

import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyproj
import pytest
import shapely
from affine import Affine
from geopeft.data.label_classes import PALETTE
from geopeft.data.labels import IGNORE, Labels, choose_color, read_labels
from geopeft.data.raster import RasterInfo, describe
from geopeft.errors import LabelError
from geopeft.events import Reporter
from geopeft.job import ClassStyle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rasterio.windows import Window
from shapely import LineString, MultiPolygon, Point, Polygon, box

pytestmark = pytest.mark.usefixtures("folder_unchanged")

Make = Callable[..., Path | str]
MakeRaster = Callable[..., Path]
MakeLabels = Callable[..., Path]
SIDE = 60
LEFT, TOP, GSD = 300_000.0, 5_800_000.0, 10.0


@pytest.fixture
def info(make_raster: MakeRaster) -> RasterInfo:
    return describe(str(make_raster(np.ones((1, SIDE, SIDE), np.uint8))))


def rect(row0: float, col0: float, row1: float, col1: float) -> Polygon:
    """A rectangle given in pixels of the raster."""
    return box(LEFT + col0 * GSD, TOP - row1 * GSD, LEFT + col1 * GSD, TOP - row0 * GSD)


def at(row: float, col: float) -> tuple[float, float]:
    return LEFT + col * GSD, TOP - row * GSD


def labels_of(path: Path | str, *infos: RasterInfo, field: str = "", **options: Any) -> tuple[Labels, list[str]]:
    reporter = Reporter()
    return read_labels(str(path), field, infos, reporter=reporter, **options), reporter.messages


def burned(labels: Labels, index: int = 0, side: int = SIDE) -> np.ndarray:
    return labels.burn(index, Window(0, 0, side, side))[0]


def expected(*painted: tuple[tuple[int, int, int, int], int]) -> np.ndarray:
    out = np.full((SIDE, SIDE), IGNORE, np.uint8)
    for (row0, col0, row1, col1), value in painted:
        out[row0:row1, col0:col1] = value
    return out


def code_of(path: Path | str, *infos: RasterInfo, **options: Any) -> LabelError:
    with pytest.raises(LabelError) as caught:
        labels_of(path, *infos, **options)
    assert caught.value.hint and "Traceback" not in caught.value.message
    return caught.value


TWO = ([rect(5, 5, 15, 15), rect(30, 30, 45, 40)], ["water", "forest"])


def test_polygons_label_their_pixels_and_nothing_else(info: RasterInfo, make_labels: MakeLabels) -> None:
    labels, messages = labels_of(make_labels(*TWO), info)
    assert [(c.value, c.name) for c in labels.classes] == [("forest", "forest"), ("water", "water")]
    assert (burned(labels) == expected(((5, 5, 15, 15), 1), ((30, 30, 45, 40), 0))).all()
    assert labels.pixel_counts() == [150, 100]
    assert [(s.class_index, s.raster_index, s.bounds_px) for s in labels.shapes] == [
        (1, 0, (5, 5, 15, 15)), (0, 0, (30, 30, 45, 40)),
    ]  # fmt: skip
    assert labels.shapes[0].geometry.equals_exact(TWO[0][0].normalize(), 1e-6) or labels.shapes[0].geometry.equals(
        TWO[0][0]
    )
    assert labels.extent_px(0) == (5, 5, 45, 40) and labels.background == -1
    assert not messages


def test_shape_numbers_follow_the_pixels(info: RasterInfo, make_labels: MakeLabels) -> None:
    labels, _ = labels_of(make_labels(*TWO), info)
    classes, shapes = labels.burn(0, Window(0, 0, SIDE, SIDE))
    assert set(np.unique(shapes)) == {-1, 0, 1}
    for number, shape in enumerate(labels.shapes):
        assert (classes[shapes == number] == shape.class_index).all()
    assert ((shapes == -1) == (classes == IGNORE)).all()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_window_equals_the_same_part_of_the_whole(
    info: RasterInfo, make_labels: MakeLabels, data: st.DataObject
) -> None:
    numbers = data.draw(st.integers(0, 10_000))
    rng = np.random.default_rng(numbers)
    polygons = [Point(at(*rng.uniform(0, SIDE, 2))).buffer(rng.uniform(1, 90), quad_segs=3) for _ in range(12)]
    polygons += [rect(1, 1, 2, 2), rect(50, 50, 59, 59)]
    path = make_labels(polygons, [str(i % 3) for i in range(14)], name=f"{numbers}.gpkg")
    labels, _ = labels_of(path, info)
    row, col = data.draw(st.integers(-20, 50)), data.draw(st.integers(-20, 50))
    height, width = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
    classes, shapes = labels.burn(0, Window(col, row, width, height))
    all_classes, all_shapes = labels.burn(0, Window(0, 0, SIDE, SIDE))
    whole = (np.pad(all_classes, 100, constant_values=IGNORE), np.pad(all_shapes, 100, constant_values=-1))
    inside = (slice(row + 100, row + 100 + height), slice(col + 100, col + 100 + width))
    assert (classes == whole[0][inside]).all() and (shapes == whole[1][inside]).all()
    assert labels.pixel_counts() == [int((whole[0] == i).sum()) for i in range(3)]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000), shear=st.sampled_from([0.0, 2.0, -5.0]))
def test_a_pixel_belongs_to_a_shape_if_its_centre_is_inside(
    make_raster: MakeRaster, make_labels: MakeLabels, seed: int, shear: float
) -> None:
    rng = np.random.default_rng(seed)
    affine = Affine(GSD, shear, LEFT, shear, -GSD, TOP)
    info = describe(str(make_raster(np.ones((1, SIDE, SIDE), np.uint8), name="r.tif", transform=affine)))
    inside = shapely.transform(Polygon(rng.uniform(5, 55, (5, 2))).convex_hull, lambda p: [affine @ xy for xy in p])
    far = shapely.transform(box(57, 57, 59, 59), lambda p: [affine @ xy for xy in p])
    labels, _ = labels_of(make_labels([inside, far], ["a", "b"], name=f"{seed}.gpkg"), info)
    cols, rows = np.meshgrid(np.arange(SIDE) + 0.5, np.arange(SIDE) + 0.5)
    x, y = affine.a * cols + affine.b * rows + affine.c, affine.d * cols + affine.e * rows + affine.f
    assert (burned(labels) == 0).sum() > 0
    assert ((burned(labels) == 0) == shapely.contains_xy(inside, x, y)).mean() > 0.9999


def test_large_and_small_shapes_are_burned_by_the_same_rule(
    make_raster: MakeRaster, make_labels: MakeLabels, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = describe(str(make_raster(np.ones((1, SIDE, SIDE), np.uint8), name="r.tif")))
    path = make_labels([Point(at(30, 30)).buffer(173), rect(1, 1, 3, 3)], ["a", "b"])
    maps = []
    for few, cached in ((1 << 10, 1 << 18), (0, 1 << 18), (0, 0)):
        monkeypatch.setattr("geopeft.data.pixel_shapes.FEW_PX", few)
        monkeypatch.setattr("geopeft.data.pixel_shapes.CACHED_MASK_PX", cached)
        maps.append(burned(labels_of(path, info)[0]))
    assert (maps[0] == maps[1]).all() and (maps[0] == maps[2]).all()


def test_adjacent_shapes_share_no_pixel_even_on_pixel_centres(info: RasterInfo, make_labels: MakeLabels) -> None:
    strips = [rect(10, 10.5 + 2 * i, 20, 12.5 + 2 * i) for i in range(5)]
    labels, messages = labels_of(make_labels(strips, [str(i % 2) for i in range(5)]), info)
    assert sum(labels.pixel_counts()) == 100 and not messages


def test_a_shape_without_a_pixel_centre_gets_one_pixel(info: RasterInfo, make_labels: MakeLabels) -> None:
    tiny = [rect(10.6, 20.6, 10.9, 20.9), rect(0, 0, 5, 5)]
    labels, _ = labels_of(make_labels(tiny, ["a", "b"]), info)
    assert (burned(labels) == expected(((10, 20, 11, 21), 0), ((0, 0, 5, 5), 1))).all()


@pytest.mark.fault("L24")
def test_points_become_discs_and_lines_bands_of_the_width(info: RasterInfo, make_labels: MakeLabels) -> None:
    shapes = [Point(at(20.5, 20.5)), LineString([at(40.5, 10), at(40.5, 30)])]
    labels, _ = labels_of(make_labels(shapes, ["p", "l"]), info, line_width_px=3)
    got = burned(labels)
    assert (got[19:22, 19:22] == 1).sum() in (5, 9) and (got == 1).sum() in (5, 9)
    assert (got[39:42, 10:30] == 0).all() and 60 <= (got == 0).sum() <= 70


@pytest.mark.parametrize("width", [0.01, 1.0])
def test_lines_and_points_are_never_thinner_than_a_pixel(
    info: RasterInfo, make_labels: MakeLabels, width: float
) -> None:
    shapes = [Point(at(20.9, 20.9)), LineString([at(5, 5), at(50, 38)])]
    labels, _ = labels_of(make_labels(shapes, ["p", "l"]), info, line_width_px=width)
    got = burned(labels)
    assert (got == 1).sum() == 1 and got[20, 20] == 1
    assert (got == 0).any(axis=1)[5:50].all()


@pytest.mark.fault("L12", "T11")
def test_two_classes_on_one_pixel_are_ignored_and_counted_in_any_order(
    info: RasterInfo, make_labels: MakeLabels
) -> None:
    polygons = [rect(0, 0, 20, 20), rect(10, 10, 30, 30), rect(15, 15, 25, 25), rect(12, 0, 14, 30), rect(2, 2, 9, 9)]
    classes = ["a", "b", "c", "a", "a"]
    maps = []
    for seed in range(6):
        order = random.Random(seed).sample(range(5), 5)
        path = make_labels([polygons[i] for i in order], [classes[i] for i in order], name=f"{seed}.gpkg")
        labels, messages = labels_of(path, info)
        maps.append(burned(labels))
        assert any(f"{labels.clashing_pixels} pixels are claimed" in text for text in messages)
    assert all((maps[0] == other).all() for other in maps)
    assert maps[0][12, 5] == 0 and maps[0][17, 17] == IGNORE and maps[0][5, 5] == 0 and maps[0][28, 28] == 1


@pytest.mark.fault("L04", "L05", "L06")
def test_the_union_of_overlapping_parts_is_kept(info: RasterInfo, make_labels: MakeLabels) -> None:
    parts = MultiPolygon([rect(0, 0, 20, 20), rect(10, 0, 30, 20)])
    bow_tie = Polygon([at(40, 0), at(60, 40), at(60, 0), at(40, 40)])
    labels, messages = labels_of(make_labels([parts, bow_tie], ["a", "b"]), info)
    assert labels.pixel_counts()[0] == 600
    assert labels.pixel_counts()[1] == pytest.approx(400, abs=25)
    assert any("Repaired" in text and "2 features (fid 1, 2)" in text for text in messages)


@pytest.mark.fault("L07", "L11")
def test_geometries_that_cannot_teach_are_named_and_left_out(info: RasterInfo, make_labels: MakeLabels) -> None:
    wkts = [
        "POLYGON EMPTY", None, f"POLYGON(({LEFT} {TOP}, {LEFT} {TOP}, {LEFT} {TOP}, {LEFT} {TOP}))",
        f"POLYGON(({LEFT} {TOP}, {LEFT + 9} nan, {LEFT + 9} {TOP - 9}, {LEFT} {TOP}))",
        f"POLYGON(({LEFT} {TOP}, {LEFT + 9} inf, {LEFT + 9} {TOP - 9}, {LEFT} {TOP}))",
    ]  # fmt: skip
    bad = [shapely.from_wkt(wkt) if wkt else None for wkt in wkts]
    labels, messages = labels_of(make_labels([*bad, *TWO[0]], ["x"] * 5 + TWO[1]), info)
    assert [c.name for c in labels.classes] == ["forest", "water"]
    assert labels.pixel_counts() == [150, 100]
    text = " ".join(messages)
    assert "3 features (fid 3, 4, 5)" in text and "2 features (fid 1, 2)" in text


@pytest.mark.fault("L07")
def test_holes_z_and_collections_are_understood(info: RasterInfo, make_labels: MakeLabels) -> None:
    ring = rect(5, 5, 25, 25).difference(rect(10, 10, 20, 20))
    with_z = shapely.force_3d(ring, 7)
    mixed = shapely.GeometryCollection([rect(30, 30, 40, 40), Point(at(50.5, 50.5))])
    labels, _ = labels_of(make_labels([with_z, mixed], ["a", "b"]), info)
    assert labels.pixel_counts() == [300, 100 + 9] or labels.pixel_counts() == [300, 100 + 5]


@pytest.mark.fault("L09")
def test_curves_are_followed(info: RasterInfo, tmp_path: Path) -> None:
    x, y = at(30, 30)
    circle = f"CURVEPOLYGON(CIRCULARSTRING({x - 150} {y}, {x} {y + 150}, {x + 150} {y}, {x} {y - 150}, {x - 150} {y}))"
    square = rect(1, 1, 4, 4).wkt
    (tmp_path / "curves.csv").write_text(f'WKT,class\n"{circle}",a\n"{square}",b\n')
    (tmp_path / "curves.vrt").write_text(
        '<OGRVRTDataSource><OGRVRTLayer name="curves"><SrcDataSource relativeToVRT="1">curves.csv</SrcDataSource>'
        '<LayerSRS>EPSG:32633</LayerSRS><GeometryField encoding="WKT" field="WKT"/><Field name="class"/>'
        "</OGRVRTLayer></OGRVRTDataSource>"
    )
    labels, _ = labels_of(tmp_path / "curves.vrt", info)
    assert labels.pixel_counts()[0] == pytest.approx(np.pi * 15**2, rel=0.02)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3035", "EPSG:3857"])
@pytest.mark.fault("L13")
def test_another_crs_gives_the_same_labels(info: RasterInfo, make_labels: MakeLabels, crs: str) -> None:
    polygons = [Point(at(30, 20)).buffer(150), rect(3, 3, 57, 9)]
    same, _ = labels_of(make_labels(polygons, ["a", "b"]), info)
    transformer = pyproj.Transformer.from_crs("EPSG:32633", crs, always_xy=True)
    moved = [shapely.transform(shapely.segmentize(p, 5), transformer.transform, interleaved=False) for p in polygons]
    other, _ = labels_of(make_labels(moved, ["a", "b"], name="moved.gpkg", crs=crs), info)
    assert (burned(same) != burned(other)).mean() < 0.001


@pytest.mark.fault("L13")
def test_long_edges_bend_as_the_crs_asks(make_raster: MakeRaster, make_labels: MakeLabels) -> None:
    info = describe(str(make_raster(np.ones((1, 100, 100), np.uint8), "wide.tif",
                                    transform=Affine(5000, 0, 250_000, 0, -5000, 6_100_000))))  # fmt: skip
    band = box(5, 52.0, 25, 53.0)
    labels, _ = labels_of(make_labels([band, box(14, 54, 15, 54.2)], ["a", "b"], crs="EPSG:4326"), info)
    got = burned(labels, side=100)
    to_degrees = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True)
    cols, rows = np.meshgrid(np.arange(100) + 0.5, np.arange(100) + 0.5)
    _, lat = to_degrees.transform(250_000 + cols * 5000, 6_100_000 - rows * 5000)
    assert ((got == 0) == ((lat > 52) & (lat < 53))).mean() > 0.999


def test_a_shape_of_the_whole_world_is_cut_to_the_raster(info: RasterInfo, make_labels: MakeLabels) -> None:
    to_degrees = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True)
    lon, lat = to_degrees.transform(*at(30, 30))
    here = Point(lon, lat).buffer(0.002)
    polygons = [box(-180, -90, 180, 90).difference(here.buffer(0.0002)), here]
    labels, _ = labels_of(make_labels(polygons, ["world", "here"], crs="EPSG:4326"), info)
    counts = dict(zip((c.name for c in labels.classes), labels.pixel_counts(), strict=True))
    assert counts["world"] > 2000 and counts["here"] > 300


@pytest.mark.fault("L19")
def test_values_are_never_burned_as_numbers(info: RasterInfo, make_labels: MakeLabels) -> None:
    values = [-1, 300, 70_000, 2**40]
    shapes = [rect(10 * i, 0, 10 * i + 5, 5) for i in range(4)]
    labels, _ = labels_of(make_labels(shapes, np.array(values, np.int64)), info)
    assert [c.value for c in labels.classes] == ["-1", "300", "70000", str(2**40)]
    assert labels.pixel_counts() == [25] * 4


@pytest.mark.fault("L18")
def test_numbers_sort_as_numbers_and_names_as_words(info: RasterInfo, make_labels: MakeLabels) -> None:
    shapes = [rect(10 * i, 0, 10 * i + 5, 5) for i in range(5)]
    labels, _ = labels_of(make_labels(shapes, ["10", "9", "b", "a", "-2"]), info)
    assert [c.name for c in labels.classes] == ["-2", "9", "10", "a", "b"]


@pytest.mark.fault("L17", "L19")
def test_fractions_and_nulls_are_left_out_and_counted(info: RasterInfo, make_labels: MakeLabels) -> None:
    shapes = [rect(10 * i, 0, 10 * i + 5, 5) for i in range(5)]
    labels, messages = labels_of(make_labels(shapes, np.array([1.0, 2.0, 1.5, np.nan, np.nan])), info, field="class")
    assert [c.value for c in labels.classes] == ["1", "2"]
    assert any("2 features" in text and "no class" in text for text in messages)
    assert any("1 features" in text and "fraction" in text for text in messages)
    labels, messages = labels_of(make_labels(shapes, ["a", "b ", " ", "", None], name="text.gpkg"), info)
    assert [c.value for c in labels.classes] == ["a", "b"]
    assert any("3 features" in text and "no class" in text for text in messages)


def test_classes_given_set_order_names_and_colours(info: RasterInfo, make_labels: MakeLabels) -> None:
    given = [ClassStyle(value="water", name="Wasser", color="#0000ff"), ClassStyle(value="forest", name="Wald"),
             ClassStyle(value="town", name="Stadt")]  # fmt: skip
    shapes, values = [*TWO[0], rect(50, 50, 55, 55)], [*TWO[1], "unknown"]
    labels, messages = labels_of(make_labels(shapes, values), info, classes=given)
    assert [(c.value, c.name) for c in labels.classes] == [("water", "Wasser"), ("forest", "Wald"), ("town", "Stadt")]
    assert labels.classes[0].color == "#0000ff" and labels.pixel_counts() == [100, 150, 0]
    assert any("'unknown' (1)" in text for text in messages)
    by_name, _ = labels_of(make_labels(TWO[0], ["Wasser", "Wald"], name="names.gpkg"), info, classes=given)
    assert by_name.pixel_counts() == [100, 150, 0]


def test_colours_come_from_the_layer_then_from_the_meaning_then_from_the_palette(
    info: RasterInfo, make_labels: MakeLabels
) -> None:
    shapes = [rect(10 * i, 0, 10 * i + 5, 5) for i in range(5)]
    columns = {"colour": [None, "#ABCDEF", "red", None, None]}
    labels, _ = labels_of(make_labels(shapes, ["water", "x", "y", "forest", "woods"], columns=columns), info)
    colors = {c.name: c.color for c in labels.classes}
    assert colors["x"] == "#abcdef" and colors["y"] in PALETTE
    assert colors["water"] == "#2f7fc1" and colors["forest"] == "#1f7a3d"
    assert len(set(colors.values())) == 5


def test_any_number_of_classes_gets_different_colours() -> None:
    used: list[str] = []
    for number in range(254):
        used.append(choose_color(f"class {number}", used))
    assert len(set(used)) == 254 and all(len(color) == 7 for color in used)
    assert choose_color("not forest", []) != choose_color("forest", [])


# Where the layer and the class field are


def test_the_class_field_is_found_where_only_one_is_possible(info: RasterInfo, make_labels: MakeLabels) -> None:
    path = make_labels(*TWO, field="landuse", columns={"id": [1, 2], "color": [None, None]})
    assert labels_of(path, info)[0].pixel_counts() == [150, 100]
    path = make_labels(*TWO, name="c.gpkg", field="Class", columns={"other": ["x", "y"]})
    assert labels_of(path, info)[0].pixel_counts() == [150, 100]
    path = make_labels(*TWO, name="d.gpkg", field="use", columns={"cover": ["x", "y"]})
    error = code_of(path, info)
    assert error.code == "LABELS_FIELD" and "use" in error.hint and "cover" in error.hint
    assert labels_of(path, info, field="cover")[0].classes[0].name == "x"


@pytest.mark.fault("L31")
def test_a_field_that_is_not_there_is_refused_with_those_that_are(info: RasterInfo, make_labels: MakeLabels) -> None:
    error = code_of(make_labels(*TWO, columns={"height": [1.0, 2.0]}), info, field="klass")
    assert error.code == "LABELS_FIELD" and "klass" in error.message and "class" in error.hint


@pytest.mark.fault("S03")
@pytest.mark.parametrize("name", ["it's", 'the "class"', "a]b[c", "x; DROP TABLE labels --", "50 % a\\b", "größe ä"])
def test_quotes_in_names_mean_nothing(info: RasterInfo, make_labels: MakeLabels, name: str) -> None:
    path = make_labels(*TWO, layer=f"layer {name}", field=name, columns={"other": ["x", "y"]})
    make_labels(*TWO, layer="second", field="kind", append=True)
    labels = labels_of(f"{path}:layer {name}", info, field=name)[0]
    assert labels.pixel_counts() == [150, 100]
    assert labels_of(path, info, field=name)[0].pixel_counts() == [150, 100]


def test_a_layer_is_named_or_chosen_by_the_field(info: RasterInfo, make_labels: MakeLabels) -> None:
    path = make_labels(*TWO, layer="first")
    make_labels(*TWO, layer="with: colon", field="kind", append=True)
    assert labels_of(path, info)[0].pixel_counts() == [150, 100]
    assert labels_of(path, info, field="kind")[0].pixel_counts() == [150, 100]
    assert labels_of(f"{path}:with: colon", info)[0].pixel_counts() == [150, 100]
    error = code_of(f"{path}:second", info)
    assert error.code == "LABELS_LAYER" and "first" in error.hint
    make_labels(*TWO, layer="third", append=True)
    error = code_of(path, info)
    assert error.code == "LABELS_LAYER" and "first" in error.message and "third" in error.message


def test_a_file_with_a_colon_in_its_name_wins(info: RasterInfo, make_labels: MakeLabels, tmp_path: Path) -> None:
    path = make_labels(*TWO)
    shutil.copy(path, tmp_path / "labels.gpkg:old.gpkg")
    assert labels_of(tmp_path / "labels.gpkg:old.gpkg", info)[0].pixel_counts() == [150, 100]
    assert code_of("C:\\gone.gpkg", info).code == "LABELS_MISSING"
    assert code_of("C:\\gone.gpkg:layer", info).code == "LABELS_MISSING"


@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".shp", ".fgb"])
def test_other_formats_give_the_same(info: RasterInfo, make_labels: MakeLabels, suffix: str) -> None:
    crs = "EPSG:4326" if suffix == ".geojson" else "EPSG:32633"
    moved = pyproj.Transformer.from_crs("EPSG:32633", crs, always_xy=True)
    polygons = [shapely.transform(p, moved.transform, interleaved=False) for p in TWO[0]]
    path = make_labels(polygons, TWO[1], name=f"labels{suffix}", crs=crs, geometry_type="Polygon")
    assert labels_of(path, info)[0].pixel_counts() == [150, 100]


def bad_labels() -> list[pytest.ParameterSet]:
    def case(name: str, make: Make, code: str, *texts: str, **options: Any) -> pytest.ParameterSet:
        return pytest.param(make, code, texts, options, id=name)

    def text_file(content: bytes) -> Make:
        def make(tmp_path: Path, make_labels: MakeLabels) -> Path:
            (tmp_path / "x.gpkg").write_bytes(content)
            return tmp_path / "x.gpkg"

        return make

    def layer(*arguments: Any, **options: Any) -> Make:
        return lambda tmp_path, make_labels: make_labels(*arguments, **options)

    far = [shapely.affinity.translate(shape, 0, 100_000) for shape in TWO[0]]
    many = [rect(i // 20, i % 20, i // 20 + 1, i % 20 + 1) for i in range(300)]
    return [
        case("missing", lambda tmp_path, _: tmp_path / "gone.gpkg", "LABELS_MISSING"),
        case("not named", lambda *_: "", "LABELS_MISSING"),
        case("empty file", text_file(b""), "LABELS_OPEN", "0 bytes"),
        case("not a layer", text_file(b"hello"), "LABELS_OPEN"),
        case("no CRS", layer(*TWO, crs=None), "LABELS_NO_CRS"),
        case("no features", layer([], []), "LABELS_EMPTY", "no features"),
        case("no text", lambda tmp_path, _: tmp_path / "bad\udce9.gpkg", "PATH_ENCODING"),
        case("no usable field", layer(TWO[0], np.array([1.5, 2.5]), field="h"),
             "LABELS_FIELD", "has to be text or integer"),
        case("only null geometries", layer([None, None], ["a", "b"]), "LABELS_EMPTY"),
        case("only null classes", layer(TWO[0], [None, None]), "LABELS_EMPTY"),
        case("outside", layer(far, TWO[1]), "LABELS_OUTSIDE", "99.5 km", "UTM zone 33N"),
        case("wrong CRS", layer(*TWO, crs="EPSG:4326"), "LABELS_OUTSIDE", "WGS 84"),
        case("one class", layer(TWO[0], ["a", "a"]), "LABELS_ONE_CLASS", "'a'"),
        case("one class left", layer([TWO[0][0], far[0]], ["a", "b"]), "LABELS_ONE_CLASS"),
        case("all overlap", layer([TWO[0][0]] * 2, ["a", "b"]), "LABELS_EMPTY"),
        case("300 classes", layer(many, [str(i) for i in range(300)]), "LABELS_MANY_CLASSES", "300"),
        case("dates", layer(TWO[0], np.array(["2020-01-01", "2021-01-01"], "datetime64[D]"), field="d"),
             "LABELS_FIELD"),
        case("wrong field", layer(*TWO), "LABELS_FIELD", "'x'", field="x"),
        case("no area", layer(*TWO), "LABELS_MISSING", background="rest", area="gone.gpkg"),
    ]  # fmt: skip


@pytest.mark.parametrize(("make", "code", "texts", "options"), bad_labels())
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.fault("L01", "L02", "L14", "L15", "L21", "L31")
def test_labels_that_cannot_teach_are_refused(
    info: RasterInfo,
    tmp_path: Path,
    make_labels: MakeLabels,
    make: Make,
    code: str,
    texts: tuple[str, ...],
    options: dict[str, Any],
) -> None:
    error = code_of(make(tmp_path, make_labels), info, **options)
    assert error.code == code
    assert all(text in error.message for text in texts), error.message


@pytest.mark.fault("L03")
def test_features_outside_are_counted(info: RasterInfo, make_labels: MakeLabels) -> None:
    far = shapely.affinity.translate(TWO[0][0], 0, 100_000)
    labels, messages = labels_of(make_labels([*TWO[0], far, far], [*TWO[1], "water", "sea"]), info)
    assert labels.pixel_counts() == [150, 100] and len(labels.classes) == 2
    assert any("2 features" in text and "outside" in text for text in messages)


@pytest.mark.fault("L03")
def test_a_shape_partly_outside_is_clipped(info: RasterInfo, make_labels: MakeLabels) -> None:
    labels, _ = labels_of(make_labels([rect(-5, -5, 5, 5), rect(58, 58, 99, 99)], ["a", "b"]), info)
    assert labels.pixel_counts() == [25, 4]
    assert [shape.bounds_px for shape in labels.shapes] == [(0, 0, 5, 5), (58, 58, 60, 60)]


def test_every_raster_gets_the_features_that_touch_it(make_raster: MakeRaster, make_labels: MakeLabels) -> None:
    infos = [
        describe(str(make_raster(np.ones((1, 20, 20), np.uint8), f"{i}.tif",
                                 transform=Affine(GSD, 0, LEFT + i * 200, 0, -GSD, TOP))))
        for i in range(3)
    ]  # fmt: skip
    labels, messages = labels_of(make_labels([rect(5, 15, 10, 25), rect(12, 50, 18, 55)], ["a", "b"]), *infos)
    assert [(s.raster_index, s.bounds_px) for s in labels.shapes] == [
        (0, (5, 15, 10, 20)), (1, (5, 0, 10, 5)), (2, (12, 10, 18, 15)),
    ]  # fmt: skip
    numbers = [np.unique(labels.burn(i, Window(0, 0, 20, 20))[1]).tolist() for i in range(3)]
    assert numbers == [[-1, 0], [-1, 1], [-1, 2]]
    assert labels.pixel_counts() == [50, 30] and not messages


def test_rasters_of_different_crs_take_labels_of_one_layer(
    make_raster: MakeRaster, make_labels: MakeLabels, info: RasterInfo
) -> None:
    lon, lat = pyproj.Transformer.from_crs("EPSG:32633", "EPSG:4326", always_xy=True).transform(LEFT + 2000, TOP - 300)
    east = describe(str(make_raster(np.ones((1, 40, 40), np.uint8), "east.tif", crs="EPSG:4326",
                                    transform=Affine(1e-4, 0, lon, 0, -1e-4, lat))))  # fmt: skip
    away = Point(LEFT + 2150, TOP - 500).buffer(40)
    labels, _ = labels_of(make_labels([TWO[0][0], away], ["a", "b"]), info, east)
    assert {shape.raster_index for shape in labels.shapes} == {0, 1}
    ((x, y),) = labels.shapes[1].geometry.centroid.coords
    assert (lon < x < lon + 0.004) and (lat - 0.004 < y < lat)


# Background


def test_background_is_what_is_unlabelled_within_the_extent(info: RasterInfo, make_labels: MakeLabels) -> None:
    shapes = [rect(10, 10, 20, 20), rect(30, 30, 40, 40), rect(15, 15, 18, 25)]
    path = make_labels(shapes, ["house", "house", None])
    labels, _ = labels_of(path, info, background="rest")
    got = burned(labels)
    assert [c.name for c in labels.classes] == ["house", "rest"] and labels.background == 1
    assert (got[25:28, 12:38] == 1).all() and (got[:10] == IGNORE).all() and (got[40:] == IGNORE).all()
    assert (got[15:18, 20:25] == IGNORE).all(), "a feature without a class is no background"
    assert labels.pixel_counts() == [200, 900 - 200 - 15]
    assert labels.burn(0, Window(0, 0, SIDE, SIDE))[1][25, 25] == -1


def test_ambiguous_pixels_are_no_background(info: RasterInfo, make_labels: MakeLabels) -> None:
    shapes = [rect(10, 10, 20, 20), rect(15, 15, 30, 30)]
    labels, _ = labels_of(make_labels(shapes, ["a", "b"]), info, background="rest")
    assert (burned(labels)[15:20, 15:20] == IGNORE).all()
    assert labels.pixel_counts() == [75, 200, 400 - 75 - 200 - 25]


def test_background_can_be_bounded_by_an_area(info: RasterInfo, make_labels: MakeLabels) -> None:
    path = make_labels([rect(10, 10, 20, 20)], ["house"])
    area = make_labels([rect(0, 0, 30, 30), rect(40, 40, 50, 50)], ["x", "y"], name="area.gpkg")
    labels, _ = labels_of(path, info, background="rest", area=str(area))
    assert labels.pixel_counts() == [100, 900 - 100 + 100]
    assert labels.extent_px(0) == (0, 0, 50, 50)
    windows = labels.background_windows(0, 10)
    assert len(windows) == 9 - 1 + 1
    assert all((labels.burn(0, window)[0] == 1).any() for window in windows)


def test_background_of_a_known_name_is_that_class(info: RasterInfo, make_labels: MakeLabels) -> None:
    path = make_labels([rect(10, 10, 20, 20), rect(30, 30, 40, 40)], ["house", "rest"])
    labels, _ = labels_of(path, info, background="rest")
    assert [c.name for c in labels.classes] == ["house", "rest"] and labels.background == 1
    assert labels.pixel_counts() == [100, 800]
    given = [ClassStyle(value="house", name="house"), ClassStyle(value="rest", name="rest")]
    again, _ = labels_of(make_labels([rect(10, 10, 20, 20)], ["house"], name="b.gpkg"), info, classes=given,
                         background="rest", minimum_classes=1)  # fmt: skip
    assert [c.name for c in again.classes] == ["house", "rest"]


def test_an_area_without_background_is_said_to_do_nothing(info: RasterInfo, make_labels: MakeLabels) -> None:
    _, messages = labels_of(make_labels(*TWO), info, area="whatever.gpkg")
    assert any("no effect" in text for text in messages)


def test_one_class_is_enough_to_evaluate(info: RasterInfo, make_labels: MakeLabels) -> None:
    path = make_labels(TWO[0], ["a", "a"])
    given = [ClassStyle(value="a", name="a"), ClassStyle(value="b", name="b")]
    labels, _ = labels_of(path, info, classes=given, minimum_classes=1)
    assert labels.pixel_counts() == [250, 0]


def test_labels_travel_to_other_processes(info: RasterInfo, make_labels: MakeLabels) -> None:
    labels, _ = labels_of(make_labels(*TWO), info, background="rest")
    there = pickle.loads(pickle.dumps(labels))
    assert (burned(there) == burned(labels)).all() and there.pixel_counts() == labels.pixel_counts()


@pytest.mark.fault("L29")
def test_the_users_layer_is_not_touched(info: RasterInfo, make_labels: MakeLabels, tmp_path: Path) -> None:
    path = make_labels(*TWO)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    labels_of(path, info)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.fault("L26")
def test_many_vertices_take_no_time_per_window(make_raster: MakeRaster, make_labels: MakeLabels) -> None:
    info = describe(
        str(make_raster(np.ones((1, 2000, 2000), np.uint8), "big.tif", transform=Affine(1, 0, 0, 0, -1, 2000)))
    )
    circle = Point(1000, 1000).buffer(900, quad_segs=50_000)
    labels, _ = labels_of(make_labels([circle, box(0, 0, 50, 50)], ["a", "b"]), info)
    assert labels.pixel_counts()[0] == pytest.approx(np.pi * 900**2, rel=1e-3)


def test_the_layer_list_of_a_styled_file_has_no_surprises(info: RasterInfo, make_labels: MakeLabels) -> None:
    path = make_labels(*TWO)
    pyogrio.raw.write(path, None, [np.array(["labels"], object)], ["f_table_name"], layer="layer_styles",
                      geometry_type=None, crs=None, append=True)  # fmt: skip
    assert labels_of(path, info)[0].pixel_counts() == [150, 100]
