"""Means of what is not a network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from geopeft.applicability import MOST_POINTS, Applicability, find_applicability
from geopeft.averaging import parts
from geopeft.averaging.parts import joint_blend, mean_blend, mean_classical, union_memory, union_seen
from geopeft.classical import Classical, classical_graph
from geopeft.data.memory import Memory
from geopeft.evidence import Evidence, joint, named
from geopeft.forest import ABSENT
from geopeft.models.spec import InputBand, TextureSpec
from geopeft.models.texture import Texture
from geopeft.objective import blend_evidence, likeliest_blend
from geopeft.package import Blend
from sklearn.ensemble import ExtraTreesClassifier

torch.set_num_threads(1)
BANDS = tuple(InputBand(name=name) for name in "ab")
TEXTURE = TextureSpec(windows_px=(), ratios=((0, 1),), components=2)
WEIGHTS, SHARES = (0.75, 0.25), (0.2, 0.6)
# The first part numbers the classes as the mean does, the second another way.
ORDERS = (np.array([0, 1, 2]), np.array([2, 0, 1]))
F, K = 3, 3


def part(
    seed: int, share: float, weights: np.ndarray | None = None, offsets: np.ndarray | None = None, classes: int = K
) -> Classical:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(300, F)).astype(np.float32), rng.integers(0, classes, 300)
    trees = ExtraTreesClassifier(4, max_leaf_nodes=12, random_state=seed).fit(x, y)
    weights = rng.normal(size=(K, F)) if weights is None else weights
    offsets = rng.normal(size=K) if offsets is None else offsets
    graph = classical_graph([t.tree_ for t in trees.estimators_], trees.classes_, weights, offsets, share)
    return Classical(Texture(TEXTURE, BANDS, torch.eye(2)), graph, K)


def opened(graph: bytes) -> Classical:
    return Classical(Texture(TEXTURE, BANDS, torch.eye(2)), graph, K)


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(1, keepdims=True))
    result: np.ndarray = raised / raised.sum(1, keepdims=True)
    return result


X = np.random.default_rng(9).normal(size=(500, F)).astype(np.float32)


def test_the_trees_of_the_average_say_the_mean_of_what_they_say_apart() -> None:
    both = [part(0, 0.0), part(1, 0.0)]
    expected = WEIGHTS[0] * both[0].of_features(X) + WEIGHTS[1] * both[1].of_features(X)[:, ORDERS[1]]
    assert np.allclose(opened(mean_classical(both, ORDERS, WEIGHTS)).of_features(X), expected, atol=1e-6)


def test_trees_and_linear_models_keep_their_shares() -> None:
    rng = np.random.default_rng(5)
    linear = [(rng.normal(size=(K, F)), rng.normal(size=K)) for _ in range(2)]
    trees = [part(0, 0.0), part(1, 0.0)]
    both = [part(0, SHARES[0], *linear[0]), part(1, SHARES[1], *linear[1])]
    mean = opened(mean_classical(both, ORDERS, WEIGHTS)).of_features(X)
    forest = sum(
        w * (1 - s) * t.of_features(X)[:, o] for w, s, t, o in zip(WEIGHTS, SHARES, trees, ORDERS, strict=True)
    )
    part_of = np.array([w * s for w, s in zip(WEIGHTS, SHARES, strict=True)])
    logits = sum(
        p * (X @ coefficients.T + offsets)[:, o]
        for p, (coefficients, offsets), o in zip(part_of / part_of.sum(), linear, ORDERS, strict=True)
    )
    assert np.allclose(mean, forest + part_of.sum() * softmax(logits), atol=1e-5)
    assert np.allclose(mean.sum(1), 1, atol=1e-5)


def test_a_class_that_one_office_has_no_pixel_of_is_taken_from_the_other() -> None:
    rng = np.random.default_rng(3)
    whole, lacking = rng.normal(size=(K, F)), rng.normal(size=(K, F))
    lacking[2] = 0
    both = [part(0, 1.0, whole, np.zeros(K)), part(1, 1.0, lacking, np.array([0, 0, ABSENT]))]
    same = [np.arange(K)] * 2
    mean = opened(mean_classical(both, same, WEIGHTS)).of_features(X)
    alone = both[0].of_features(X)
    assert mean[:, 2].mean() > 0.5 * alone[:, 2].mean(), "it is not averaged away"
    known = [softmax(np.log(p.of_features(X)[:, :2] + 1e-30)) for p in both]
    expected = softmax(sum(w * np.log(k) for w, k in zip(WEIGHTS, known, strict=True)))
    assert np.allclose(softmax(np.log(mean[:, :2])), expected, atol=1e-4)


def test_trees_that_have_never_seen_a_class_do_not_vote_against_it() -> None:
    blind = part(1, 0.0, np.zeros((K, F)), np.array([0, 0, ABSENT]), classes=2)
    both = [part(0, 0.0), blind]
    whole, half = (p.of_features(X) for p in both)
    assert not half[:, 2].any(), "the case is one in which it matters"
    mean = opened(mean_classical(both, [np.arange(K)] * 2, (0.5, 0.5))).of_features(X)
    expected = 0.5 * whole + 0.5 * np.concatenate([half[:, :2] * 2 / 3, np.full((len(X), 1), 1 / 3)], 1)
    assert np.allclose(mean, expected, atol=1e-6)
    nobody = opened(mean_classical([blind, blind], [np.arange(K)] * 2, WEIGHTS)).of_features(X)
    assert not nobody[:, 2].any()


def test_an_average_of_many_keeps_a_bounded_number_of_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MOST_TREES", 4)
    both = [part(0, 0.0), part(1, 0.0)]
    mean = opened(mean_classical(both, ORDERS, WEIGHTS))
    assert len(mean.model) < 0.7 * sum(len(one.model) for one in both)
    assert np.allclose(mean.of_features(X).sum(1), 1, atol=1e-5)


def test_a_blend_is_averaged_by_what_its_numbers_do() -> None:
    blends = [Blend(network=0.8, temperature=1.0, sharpness=4.0), Blend(network=0.4, temperature=16.0, sharpness=1.0)]
    mean = mean_blend(blends, WEIGHTS)
    assert (mean.network, mean.temperature) == (0.7, 2.0)
    assert mean.sharpness == pytest.approx(4**0.75, abs=1e-4)


def judged(right: float, seed: int, places: int = 60, elsewhere: bool = False) -> Evidence:
    """Evidence of a network that is right so often at places where the classical part is right at half of them."""
    rng = np.random.default_rng(seed)
    truth = np.arange(places) % 2
    tables = []
    for often in (right, 0.5):
        hit = np.where(rng.permutation(places) < round(often * places), 0.9, 0.1)
        tables.append(np.where(np.arange(2) == truth[:, None], hit[:, None], 1 - hit[:, None]))
    table = blend_evidence(np.log(tables[0]), tables[1], truth, np.arange(places), np.inf if elsewhere else 6)
    return Evidence(0.5, np.zeros_like(table), named(table)) if elsewhere else Evidence(0.5, table)


def test_what_all_labels_find_is_said_with_more_weight_than_by_each() -> None:
    sites = [judged(0.8, seed) for seed in range(3)]
    blends = [Blend(network=likeliest_blend(one.here, 0.5)[0], temperature=3.0, sharpness=2.0) for one in sites]
    together = joint_blend(blends, sites, [1 / 3] * 3)
    assert together.network > max(blend.network for blend in blends) > 0.5
    assert together.temperature < 3
    assert together.sharpness / together.temperature == pytest.approx(2 / 3, abs=1e-3), "as sure as before"
    assert joint_blend(blends, [], [1 / 3] * 3) == mean_blend(blends, [1 / 3] * 3)


def test_a_model_that_counts_little_says_little_of_the_blend() -> None:
    sites, blends = [judged(0.95, 0), judged(0.2, 1)], [Blend(network=0.5)] * 2
    shares = [joint_blend(blends, sites, weights).network for weights in ((0.9, 0.1), (0.5, 0.5), (0.1, 0.9))]
    assert shares[0] > shares[1] > shares[2]


def test_what_a_region_has_said_counts_once_however_often_it_was_carried_on() -> None:
    seen = judged(0.8, 0, elsewhere=True)
    again = Evidence.from_arrays(seen.arrays())
    assert again is not None and again.elsewhere.keys() == seen.elsewhere.keys()
    both, other = joint([seen, again], (0.5, 0.5)), judged(0.7, 1, elsewhere=True)
    assert np.allclose(both.whole, seen.whole)
    assert np.allclose(joint([both, other], (0.5, 0.5)).whole, seen.whole + other.whole)


@pytest.mark.parametrize("name", ["evidence.prior", "evidence.here", "evidence.elsewhere.ab"])
def test_evidence_that_is_not_sound_is_none(name: str) -> None:
    arrays = judged(0.8, 0).arrays() | {"evidence.elsewhere.ab": judged(0.8, 1).here}
    assert Evidence.from_arrays(arrays) is not None
    assert Evidence.from_arrays(arrays | {name: np.full(3, 2.0, np.float32)}) is None
    assert Evidence.from_arrays({}) is None


def seen_around(middle: float, seed: int) -> Applicability:
    """Labels of two classes in three blocks around a place in feature space."""
    rng = np.random.default_rng(seed)
    features = rng.normal(middle, 1, (600, F)).astype(np.float32)
    classes, blocks = np.arange(600) % 2, np.arange(600) // 200
    found = find_applicability(features, np.array([1.0, 0.5, 0.2]) * (1 + seed), classes, np.arange(600), blocks, 0)
    assert found is not None
    return found


def test_what_either_office_has_seen_is_not_outside() -> None:
    far = 60.0
    sites = [seen_around(0, 0), seen_around(far, 1)]
    both = union_seen(sites, (0.5, 0.5))
    assert both is not None and 1 < len(both.points) <= MOST_POINTS
    rng = np.random.default_rng(4)
    near = [rng.normal(middle, 1, (300, F)).astype(np.float32) for middle in (0, far)]
    between = rng.normal(far / 2, 1, (300, F)).astype(np.float32)
    for pixels in near:
        assert (both.dissimilarity(pixels) > 1).mean() < 0.1
    assert (sites[0].dissimilarity(near[1]) > 1).all(), "the case is one in which it matters"
    assert (both.dissimilarity(between) > 1).all()


def test_a_feature_that_an_office_did_not_weigh_is_left_out() -> None:
    one, other = seen_around(0, 0), seen_around(0, 1)
    blind = Applicability(other.scale * np.array([0, 1, 1], np.float32), other.points * np.array([0, 1, 1]), 0.5)
    both = union_seen([one, blind], (0.5, 0.5))
    assert both is not None and both.scale[0] == 0 and (both.scale[1:] > 0).all()
    assert not both.points[:, 0].any()
    none = Applicability(np.zeros(F, np.float32), one.points, 0.5)
    assert union_seen([one, none], (0.5, 0.5)) is None


def test_the_average_remembers_the_ground_of_all() -> None:
    def memory(side: float, taught: list[int], held: list[int]) -> Memory:
        return Memory(np.array([side]), np.array(taught, np.int64), np.array(held, np.int64))

    both = union_memory([memory(160, [3, 5], [9]), memory(80, [5, 7], [1])])
    assert both.sides.tolist() == [80, 160]
    assert (both.taught.tolist(), both.held.tolist()) == ([3, 5, 7], [1, 9])
