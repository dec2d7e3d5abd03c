"""The classical part: what is fitted is what runs, from pixels that stand for their classes, and nothing else runs."""

import numpy as np
import onnx
import pytest
import torch
from geopeft.classical import Classical
from geopeft.data.chips import Chip, Site
from geopeft.errors import PackageError
from geopeft.forest import (
    MOST_PIXELS,
    PIXELS_PER_CLASS,
    Pixels,
    _folds,
    _sample,
    _squares,
    fit_classical,
    fit_probe,
    gather_pixels,
    linear_share,
)
from geopeft.models import build
from geopeft.models.spec import InputBand, ModelSpec
from geopeft.models.texture import Texture, describe_texture
from onnx import helper

BANDS = (InputBand(name="red", common="red"), InputBand(name="nir", common="nir"))


def texture() -> Texture:
    return Texture(describe_texture(BANDS, 10), BANDS, torch.eye(2))


def pixels(count: int = 400, classes: int = 3, features: int = 0) -> Pixels:
    rng = np.random.default_rng(0)
    truth = rng.integers(classes, size=count)
    seen = rng.normal(size=(count, features or texture().count)).astype(np.float32)
    seen[:, 0] += 2 * truth
    seen[:, 2] -= truth
    weights = rng.uniform(0.5, 2, count)
    weights /= np.bincount(truth, weights)[truth] / (count / classes)
    return Pixels(seen, seen[:, :3], truth, weights, np.arange(count) // 10)


def shapes() -> np.ndarray:
    return np.random.default_rng(1).normal(0, 2, (2, 2, 24, 20)).astype(np.float32)


def test_the_graph_gives_the_blend_of_trees_and_linear_model() -> None:
    from sklearn.ensemble import ExtraTreesClassifier
    from sklearn.linear_model import LogisticRegression

    data, raw = pixels(), shapes()
    found = Classical(texture(), fit_classical(data, 4, 2, seed=3), 4).probabilities(torch.from_numpy(raw))
    features = texture()(torch.from_numpy(raw)).movedim(1, -1).reshape(-1, texture().count).numpy()
    trees = ExtraTreesClassifier(32, max_leaf_nodes=32, min_samples_leaf=6, random_state=3)
    trees.fit(data.features, data.classes, sample_weight=data.weights)
    bands = data.features[:, :2].astype(np.float64)
    mean = np.average(bands, axis=0, weights=data.weights)
    spread = np.sqrt(np.average((bands - mean) ** 2, axis=0, weights=data.weights))
    spread = spread + 0.01 * spread.mean() + 1e-6
    linear = LogisticRegression(max_iter=300).fit((bands - mean) / spread, data.classes, sample_weight=data.weights)
    share, temperature = linear_share(data, 4, 2, seed=3)
    logits = linear.decision_function((features[:, :2] - mean) / spread) / temperature
    expected = share * torch.from_numpy(logits).softmax(1).numpy() + (1 - share) * trees.predict_proba(features)
    assert found.shape == (2, 4, 24, 20)
    assert np.abs(np.moveaxis(found, 1, -1).reshape(-1, 4)[:, :3] - expected).max() < 1e-5
    assert found[:, 3].max() < 1e-6, "a class without labelled pixels is never mapped"


def test_two_classes_are_told_apart_by_both_parts() -> None:
    data = pixels(classes=2)
    classical = Classical(texture(), fit_classical(data, 2, 2, seed=0), 2)
    found = classical.of_features(data.features)
    assert (found.argmax(1) == data.classes).mean() > 0.85
    weights, offsets = fit_probe(data, 2)
    assert ((data.deep @ weights.T + offsets).argmax(1) == data.classes).mean() > 0.8


def places(count: int, rule: str) -> Pixels:
    """So many places of 10 pixels for each of two classes, which a line or a chessboard in the bands tells apart."""
    rng = np.random.default_rng(0)
    truth = np.repeat(np.arange(2 * count) % 2, 10)
    seen = rng.uniform(-1, 1, (len(truth), texture().count)).astype(np.float32)
    other = np.where(rng.random(len(truth)) < 0.5, -1, 1)
    sign = 2 * truth - 1
    seen[:, 0] = (sign if rule == "line" else sign * other) * np.abs(seen[:, 0])
    seen[:, 1] = (sign if rule == "line" else other) * np.abs(seen[:, 1])
    return Pixels(seen, seen[:, :0], truth, np.ones(len(truth)), np.arange(len(truth)) // 10)


def test_the_better_part_weighs_more_once_many_places_have_shown_it() -> None:
    assert linear_share(places(100, "line"), 2, 2, 0)[0] > 0.7
    assert linear_share(places(100, "chessboard"), 2, 2, 0)[0] < 0.3
    assert 0.2 < linear_share(places(2, "chessboard"), 2, 2, 0)[0] < 0.8, "four places say little"
    assert linear_share(places(1, "chessboard"), 2, 2, 0)[0] == pytest.approx(0.5), "nothing could be held out"


def test_a_place_is_held_out_whole_and_the_only_one_of_a_class_never() -> None:
    data = places(5, "line")
    sites = np.where(data.classes == 1, 99, data.sites)
    found = _folds(Pixels(data.features, data.deep, data.classes, data.weights, sites), np.random.default_rng(0))
    assert set(found[data.classes == 1]) == {-1}
    parts = [set(found[sites == site]) for site in np.unique(sites[data.classes == 0])]
    assert all(len(part) == 1 for part in parts)
    assert set.union(*parts) == {0, 1, 2}


def test_a_single_class_gives_a_model_that_maps_it_everywhere() -> None:
    data = pixels()
    alone = data.where(data.classes == 1)
    found = Classical(texture(), fit_classical(alone, 3, 2, seed=0), 3).of_features(data.features)
    assert found[:, 1].min() > 0.999
    weights, offsets = fit_probe(alone, 3)
    assert not weights.any()
    assert offsets.argmax() == 1


@pytest.mark.fault("M38", "M39")
@pytest.mark.parametrize(
    ("what", "code"),
    [
        ("operator", "PACKAGE_UNSAFE"),
        ("features", "PACKAGE_KEYS"),
        ("classes", "PACKAGE_KEYS"),
        ("feature number", "PACKAGE_BROKEN"),
        ("not ONNX", "PACKAGE_BROKEN"),
        ("domain", "PACKAGE_UNSAFE"),
        ("function", "PACKAGE_UNSAFE"),
        ("attribute", "PACKAGE_UNSAFE"),
        ("endless walk", "PACKAGE_BROKEN"),
        ("class number", "PACKAGE_BROKEN"),
        ("no number", "PACKAGE_VALUES"),
    ],
)
def test_a_foreign_graph_is_refused(what: str, code: str) -> None:
    model = onnx.load_model_from_string(fit_classical(pixels(), 3, 2, seed=0))
    node = model.graph.node[0]
    attributes = {a.name: a for a in node.attribute}
    if what == "operator":
        # One that would do no harm and that the runtime would take.
        model.graph.node.append(helper.make_node("Identity", ["features"], ["x"]))
    if what == "features":
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 99
    if what == "feature number":
        attributes["nodes_featureids"].ints[0] = 10_000
    if what == "domain":
        model.graph.node[1].domain = "elsewhere"
    if what == "function":
        model.functions.append(helper.make_function("", "Gemm", ["a"], ["b"], [], []))
    if what == "attribute":
        node.attribute.append(helper.make_attribute("post_transform", "SOFTMAX"))
    if what == "endless walk":
        attributes["nodes_truenodeids"].ints[0] = 0
    if what == "class number":
        attributes["target_ids"].ints[0] = 10_000
    if what == "no number":
        model.graph.initializer[0].raw_data = np.full(3 * texture().count, np.nan, np.float32).tobytes()
    data = b"\x00\x01" if what == "not ONNX" else model.SerializeToString()
    with pytest.raises(PackageError) as caught:
        Classical(texture(), data, 5 if what == "classes" else 3)
    assert caught.value.code == code


def test_the_runtime_gets_the_numbers_of_a_graph_and_nothing_else() -> None:
    own = fit_classical(pixels(), 3, 2, seed=0)
    model = onnx.load_model_from_string(own)
    model.metadata_props.add(key="ep_context", value="elsewhere")
    model.graph.doc_string = "x"
    model.ir_version = 7
    assert Classical(texture(), model.SerializeToString(), 3).model == own


class Reader:
    """A raster whose red band is the row and whose near infrared is the column; the right half has no data."""

    class Info:
        class geobox:  # noqa: N801
            shape = (400, 500)

    infos = (Info,)

    def read(self, raster_index: int, row: int, col: int, height: int, width: int) -> Chip:
        rows, cols = np.mgrid[row : row + height, col : col + width].astype(np.float32)
        valid = cols < 250
        blank = np.full((height, width), 255, np.uint8)
        return Chip(np.where(valid, np.stack([rows, cols]), 0), valid, blank, blank.astype(np.int32))


def site(class_index: int, group: int, points: list[tuple[int, int]], pixels: int = 0) -> Site:
    return Site(0, group, class_index, np.array(points, np.int32), pixels or len(points))


def spec(**changes: object) -> ModelSpec:
    fields = {"backbone": "scratch_unet", "adapter": "full", "decoder": "unet", "bands": BANDS, "num_classes": 2}
    return ModelSpec.model_validate(fields | {"gsd_m": 10, "chip_size_px": 32} | changes)


def test_features_are_those_of_the_labelled_pixels_and_classes_weigh_the_same() -> None:
    points = [(3, 5), (130, 201), (399, 249)]
    sites = [site(0, 1, points), site(1, 2, [(200, 100)], pixels=1)]
    model = build(spec(probe=True), pretrained=False)
    found = gather_pixels(Reader(), sites, texture(), model, np.array([-7, -7], np.float32), 0)  # type: ignore[arg-type]
    where = {(int(r), int(c)) for r, c in found.features[:, :2]}
    # The bands are standardised with mean 0 and deviation 1 here, and cut at 10.
    assert where == {(min(r, 10), min(c, 10)) for r, c in (*points, (200, 100))}
    assert found.deep.shape == (4, sum(model.probe.channels)) if model.probe else False
    assert np.bincount(found.classes, found.weights).tolist() == pytest.approx([2, 2])
    assert found.of(np.array([1])).classes.tolist() == [1]


def test_a_probe_sees_each_pixel_with_the_features_of_its_place() -> None:
    sites = [site(0, 1, [(100, 40)]), site(1, 2, [(100, 60)])]
    model = build(spec(probe=True), pretrained=False)
    fill = np.array([0, 0], np.float32)
    found = gather_pixels(Reader(), sites, texture(), model, fill, 0)  # type: ignore[arg-type]
    chip = Reader().read(0, 88, 24, 48, 48)
    with torch.inference_mode():
        maps, _ = model.encode(torch.from_numpy(chip.values)[None])
        assert model.probe is not None
        expected = model.probe.features(maps, 48, 48)[0, :, 12, 16].numpy()
    assert np.allclose(found.deep[0], expected, atol=1e-5)


def test_of_many_squares_a_bounded_number_is_read_but_every_class_stays() -> None:
    sites = [site(0, i, [(0, 64 * i)]) for i in range(50)] + [site(1, 99, [(640, 0)])]
    chosen = {number: own.points for number, own in enumerate(sites)}
    kept = _squares(sites, chosen, 64, 10)
    assert len(kept) <= 11
    assert {sites[n].class_index for _, own in kept for n in own[:, 0]} == {0, 1}
    one_less = {number: points for number, points in chosen.items() if number != kept[0][1][0, 0]}
    others = [key for key, _ in kept[1:]]
    assert len(set(others) & {key for key, _ in _squares(sites, one_less, 64, 10)}) >= 8, "the same, but for one or two"


@pytest.mark.parametrize(("classes", "each"), [(3, PIXELS_PER_CLASS), (50, MOST_PIXELS // 50)])
def test_many_classes_share_a_bounded_number_of_pixels(classes: int, each: int) -> None:
    points = np.argwhere(np.ones((60, 60)))
    sites = [Site(0, index, index, points, len(points)) for index in range(classes)]
    chosen = _sample(sites, classes, np.random.default_rng(0))
    assert [len(own) for own in chosen.values()] == [each] * classes
