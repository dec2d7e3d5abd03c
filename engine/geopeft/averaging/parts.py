"""The mean of what is not a network: the classical parts, what the labels have shown, and where they lay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper

from geopeft.applicability import MOST_POINTS, Applicability, mean_distance
from geopeft.classical import Classical
from geopeft.data.memory import Memory
from geopeft.evidence import Evidence, joint
from geopeft.forest import ABSENT
from geopeft.models.spec import SHARPNESS_RANGE
from geopeft.objective import likeliest_blend
from geopeft.package import Blend

# Trees of the average: each model gives its share of them, and its trees count as much as all that it has.
MOST_TREES = 256
_TREE, _TARGET_TREE = "nodes_treeids", "target_treeids"
_TARGETS = (_TARGET_TREE, "target_nodeids", "target_ids", "target_weights")


def mean_classical(parts: Sequence[Classical], orders: Sequence[np.ndarray], weights: Sequence[float]) -> bytes:
    """The graph whose trees are those of all, and whose linear model has the mean of their logits.

    The mean of the trees' probabilities is exact; a class of which a model has had no pixel is to its trees as likely
    as any other, everywhere, so that they do not vote against it. The linear models' probabilities have no mean within
    one linear model; the mean of the logits is that of their logarithms. All must have the same features.

    Args:
        orders: for each part, its own number of each class of the mean.
        weights: one for each part, with the sum 1.
    """
    protos = [onnx.load_model_from_string(part.model) for part in parts]
    constants = [[numpy_helper.to_array(tensor) for tensor in proto.graph.initializer] for proto in protos]
    forest = [w * float(own[2][0]) for w, own in zip(weights, constants, strict=True)]
    linear = [w * float(own[3][0]) for w, own in zip(weights, constants, strict=True)]
    whole = sum(forest) or 1.0
    nodes = [proto.graph.node[0] for proto in protos]
    mixed = _mean_linear([(own[0][:, o], own[1][o]) for own, o in zip(constants, orders, strict=True)], linear)
    shares = (np.array([value], np.float32) for value in (sum(forest), sum(linear)))
    result = protos[0]
    known = np.array([own[1][o] > ABSENT for own, o in zip(constants, orders, strict=True)])
    trees = _union(nodes, orders, [share / whole for share in forest], known.any(0) & ~known)
    names = [tensor.name for tensor in result.graph.initializer]
    del result.graph.initializer[:]
    for name, array in zip(names, (*mixed, *shares), strict=True):
        result.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(array, np.float32), name))
    result.graph.node[0].CopyFrom(trees)
    body: bytes = result.SerializeToString()
    return body


def _mean_linear(
    models: Sequence[tuple[np.ndarray, np.ndarray]], weights: Sequence[float]
) -> tuple[np.ndarray, np.ndarray]:
    """(F, K) weights and (K,) offsets of the mean logits. A class counts only where a model has learned it; logits are
    known up to a common term, so that each model's are first brought to mean 0 over the classes that all know."""
    known = np.array([offsets > ABSENT for _, offsets in models])
    common = known.all(0)
    rows = [np.concatenate([own, offsets[None]]).astype(np.float64) for own, offsets in models]
    if common.any():
        rows = [own - own[:, common].mean(1, keepdims=True) for own in rows]
    share = np.array(weights)[:, None] * known
    share = share if share.sum() else known.astype(np.float64)
    divisor = share.sum(0)
    mean = np.sum([own * part for own, part in zip(rows, share, strict=True)], 0) / np.where(divisor > 0, divisor, 1)
    mean[-1, divisor == 0] = ABSENT
    return mean[:-1], mean[-1]


def _union(
    nodes: Sequence[onnx.NodeProto], orders: Sequence[np.ndarray], shares: Sequence[float], lacking: np.ndarray
) -> onnx.NodeProto:
    """One operator with the trees of all, each model's scaled to its share.

    Args:
        lacking: (models, K) bool, which classes of the mean a model has never seen.
    """
    tables: dict[str, list[np.ndarray]] = {}
    before = 0
    for node, order, share, missing in zip(nodes, orders, shares, lacking, strict=True):
        own = {a.name: np.array(helper.get_attribute_value(a)) for a in node.attribute if a.name != "n_targets"}
        count = int(own[_TREE].max()) + 1
        kept = min(count, max(1, MOST_TREES // len(nodes)))
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        own["target_ids"] = place[own["target_ids"]]
        own["target_weights"] = own["target_weights"] * (share * count / kept)
        own |= _with_unseen({name: own[name] for name in _TARGETS}, np.flatnonzero(missing), len(order))
        for name, array in own.items():
            there = own[_TARGET_TREE if name.startswith("target_") else _TREE] < kept
            tables.setdefault(name, []).append(array[there] + (before if name.endswith("_treeids") else 0)
                                               if name.endswith("_treeids") else array[there])  # fmt: skip
        before += kept
    first = nodes[0]
    joined = {name: np.concatenate(parts).tolist() for name, parts in tables.items()}
    return helper.make_node(
        first.op_type,
        list(first.input),
        list(first.output),
        domain=first.domain,
        n_targets=len(orders[0]),
        **joined,
    )


def _with_unseen(targets: Mapping[str, np.ndarray], classes: np.ndarray, num_classes: int) -> dict[str, np.ndarray]:
    """What leaves say, with the same part of each for every class that the trees have never seen."""
    if not len(classes):
        return dict(targets)
    tree, node, target, weight = (targets[name] for name in _TARGETS)
    leaves, leaf = np.unique(np.stack([tree, node], 1), axis=0, return_inverse=True)
    more = (
        np.repeat(leaves[:, 0], len(classes)),
        np.repeat(leaves[:, 1], len(classes)),
        np.tile(classes, len(leaves)),
        np.repeat(np.bincount(leaf.ravel(), weight) / num_classes, len(classes)),
    )
    own = (tree, node, target, weight * (1 - len(classes) / num_classes))
    return {name: np.concatenate(pair) for name, *pair in zip(_TARGETS, own, more, strict=True)}


def joint_blend(blends: Sequence[Blend], judged: Sequence[Evidence], weights: Sequence[float]) -> Blend:
    """Share and temperature that the held-out labels of all models find likeliest together; the mean's where it is not
    known what they have found. The sharpness changes with the temperature: how sure the network is in a map goes by the
    ratio of both, which each model's labels have confirmed."""
    mean = mean_blend(blends, weights)
    if not judged:
        return mean
    whole = joint(judged, weights)
    share, temperature = likeliest_blend(whole.whole, whole.prior)
    sharpness = float(np.clip(mean.sharpness * temperature / mean.temperature, *SHARPNESS_RANGE))
    found = {"network": round(share, 4), "temperature": temperature, "sharpness": round(sharpness, 4)}
    return mean.model_copy(update=found)


def mean_blend(blends: Sequence[Blend], weights: Sequence[float]) -> Blend:
    """Share by the mean; temperature and sharpness, which multiply, by the mean of their logarithms."""
    share = float(np.average([blend.network for blend in blends], weights=weights))
    temperature, sharpness = (
        float(np.exp(np.average(np.log([getattr(blend, name) for blend in blends]), weights=weights)))
        for name in ("temperature", "sharpness")
    )
    return Blend(network=round(share, 4), temperature=round(temperature, 4), sharpness=round(sharpness, 4))


def union_seen(parts: Sequence[Applicability], weights: Sequence[float]) -> Applicability | None:
    """The points of all, in the mean of their scales; None where these have no feature in common.

    Each model's threshold is brought to the new units by the mean distance of its own points in both, and grows as
    these are thinned out; of the thresholds the mean is taken. A feature that one model did not weigh cannot be had
    back from its points and is left out.
    """
    scales = np.array([part.scale for part in parts], np.float64)
    common = (scales > 0).all(0)
    if not common.any():
        return None
    scale = np.where(common, np.average(scales, axis=0, weights=weights), 0.0)
    points, thresholds = [], []
    each = max(1, MOST_POINTS // len(parts))
    for part, own in zip(parts, scales, strict=True):
        moved = part.points * np.where(common, scale / np.where(common, own, 1), 0)
        # Evenly, since classes and places take turns in them.
        few = moved[np.linspace(0, len(moved) - 1, min(each, len(moved))).round().astype(int)]
        units = mean_distance(moved) / max(mean_distance(part.points), 1e-12)
        thresholds.append(part.threshold * units * _spacing(few) / max(_spacing(moved), 1e-12))
        points.append(few)
    together = np.concatenate(points)[:MOST_POINTS]
    unit = mean_distance(together)
    threshold = float(np.average(thresholds, weights=weights))
    if unit <= 0 or threshold <= 0:
        return None
    return Applicability((scale / unit).astype(np.float32), (together / unit).astype(np.float32), threshold / unit)


def _spacing(points: np.ndarray) -> float:
    """The mean distance of points (n, F) to the nearest other one."""
    squares = ((points[:, None] - points[None]) ** 2).sum(-1)
    np.fill_diagonal(squares, np.inf)
    return float(np.sqrt(squares.min(1)).mean()) if len(points) > 1 else 0.0


def union_memory(parts: Sequence[Memory]) -> Memory:
    """Where any of them has learned, and where any has held labels out."""
    sides, taught, held = (
        np.unique(np.concatenate([getattr(part, name) for part in parts])) for name in ("sides", "taught", "held")
    )
    return Memory(sides, taught, held)
