"""Adapters whose updates of all layers are one tensor in parts, so that layers share most of what is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from geopeft.models.adapters.lora import LowRank
from geopeft.models.adapters.reparametrized import Reparametrized, Update
from geopeft.models.adapters.targets import Layer
from geopeft.models.spec import ModelSpec

# Components for each unit of rank: 64 at the usual rank of 16, as published.
COMPONENTS = 4
# The most rows and columns that the central tensor of a matrix product operator covers.
CENTRE = 16


class Decomposition(nn.Module):
    """Slices (n, rows, cols) of equal shape as a sum over components: weight * left (rows) x right (cols) x place (n).

    Starts at zero, since `left` does.
    """

    def __init__(self, like: Tensor, rows: int, cols: int, slices: int, components: int) -> None:
        super().__init__()
        self.left = nn.Parameter(like.new_zeros(rows, components))
        self.right = nn.Parameter(like.new_empty(components, cols))
        self.places = nn.Parameter(like.new_empty(slices, components))
        self.weights = nn.Parameter(like.new_ones(components))
        nn.init.kaiming_uniform_(self.right, a=math.sqrt(5))
        nn.init.normal_(self.places)


class ModeUpdate(LowRank):
    """The slices of one layer, from `first` on; square ones are stacked where a layer is as many times as tall or wide.

    A sum over components is a product of two factors, so that it runs as LoRA does.
    """

    def __init__(self, shared: Decomposition, first: int, count: int, tall: bool, scale: float) -> None:
        super().__init__()
        # In a tuple, so that the layers do not each own what they share.
        self._shared = (shared,)
        self._slices = slice(first, first + count)
        self._tall = tall
        self.scale = scale

    def factors(self) -> tuple[Tensor, Tensor]:
        (shared,) = self._shared
        places = shared.weights * shared.places[self._slices]
        if self._tall:
            return (places[:, None] * shared.left).flatten(0, 1), shared.right
        return shared.left, (places[:, :, None] * shared.right).transpose(0, 1).flatten(1)


class Mode(Reparametrized):
    """Mode approximation: one CP decomposition of the updates of all layers.

    As understood from PETAL (arXiv 2312.12458) and from Aurora (arXiv 2305.08381), whose code (WillDreamer/Aurora)
    cuts the feed-forward layers into square slices beside q, k, v and proj, and shares the factors of rows and columns.
    The code has a full core of R^3 values where the papers have R weights; here are the papers' weights. What the
    papers add for language is left out. Layers with slices of another shape, as in convolutional networks, have a
    decomposition of their own.

    The rank counts 4 components each, 64 at the usual one, as in the code of both. That trains 0.05 % of a transformer
    of 300 M values, like the 0.04 % that Aurora's paper gives. PETAL's 0.5 % is not of a higher rank: most of it are
    two full cores of 64^3 values, beside a network of 188 M.
    """

    def updates(self, layers: Mapping[str, Layer], spec: ModelSpec) -> tuple[dict[str, Update], nn.Module | None]:
        counts: dict[tuple[int, int], int] = {}
        places: dict[str, tuple[tuple[int, int], int, int]] = {}
        for name, layer in layers.items():
            shape, count = _slices(*layer.weight.shape[:2])
            places[name] = (shape, counts.get(shape, 0), count)
            counts[shape] = counts.get(shape, 0) + count
        like = next(iter(layers.values())).weight.detach()
        shared = {shape: Decomposition(like, *shape, n, COMPONENTS * spec.rank) for shape, n in counts.items()}
        scale = (spec.alpha or spec.rank) / spec.rank
        found: dict[str, Update] = {}
        for name, (shape, first, count) in places.items():
            tall = layers[name].weight.shape[0] >= layers[name].weight.shape[1]
            found[name] = ModeUpdate(shared[shape], first, count, tall, scale)
        return found, nn.ModuleDict({f"{rows}x{cols}": part for (rows, cols), part in shared.items()})


class Centre(nn.Module):
    """The central tensor (D, rows, cols, D) that all layers share."""

    def __init__(self, like: Tensor, bond: int, rows: int, cols: int) -> None:
        super().__init__()
        self.centre = nn.Parameter(like.new_empty(bond, rows, cols, bond))
        nn.init.normal_(self.centre, std=bond**-0.5)


class MpoUpdate(Update):
    """W + scale * a matrix product operator of three tensors: the layer's own at both ends, the shared one between."""

    def __init__(self, layer: Layer, shared: Centre, scale: float) -> None:
        super().__init__()
        self._shared = (shared,)
        self.scale = scale
        bond, rows, cols, _ = shared.centre.shape
        (up, down), (left, right) = (_halves(n // m) for n, m in zip(layer.weight.shape, (rows, cols), strict=False))
        self.first = nn.Parameter(layer.weight.new_zeros(up, left, bond))
        self.last = nn.Parameter(layer.weight.new_zeros(bond, down, right))

    def start(self, layer: Layer) -> None:
        nn.init.normal_(self.first, std=layer.weight.shape[1] ** -0.5)

    def matrix(self, weight: Tensor) -> Tensor:
        (shared,) = self._shared
        begun = torch.einsum("adi,ibej->abdej", self.first, shared.centre)
        product = torch.einsum("abdej,jcf->abcdef", begun, self.last)
        return weight + self.scale * product.reshape(weight.shape)


class Mpo(Reparametrized):
    """Matrix product operators of bond dimension r whose central tensor is shared by all layers.

    As understood from arXiv 2106.02205 (a matrix as a central tensor and auxiliary ones, of which fine-tuning moves
    the latter) and arXiv 2303.16753 (the central tensor is shared by all layers, auxiliary ones are a layer's own). No
    reference was found that does so for an update beside frozen weights, which is what this is: both kinds of tensors
    are trained, and the published weights stay whole.
    """

    def updates(self, layers: Mapping[str, Layer], spec: ModelSpec) -> tuple[dict[str, Update], nn.Module | None]:
        shapes = [layer.weight.shape[:2] for layer in layers.values()]
        rows, cols = (_centre_side(math.gcd(*(shape[side] for shape in shapes))) for side in (0, 1))
        shared = Centre(next(iter(layers.values())).weight.detach(), spec.rank, rows, cols)
        scale = (spec.alpha or spec.rank) / spec.rank
        return {name: MpoUpdate(layer, shared, scale) for name, layer in layers.items()}, shared


def _slices(rows: int, cols: int) -> tuple[tuple[int, int], int]:
    """Shape and number of the square slices of a matrix; itself where it cannot be cut so."""
    side = min(rows, cols)
    return ((side, side), max(rows, cols) // side) if max(rows, cols) % side == 0 else ((rows, cols), 1)


def _centre_side(common: int) -> int:
    return max(n for n in range(1, min(common, CENTRE) + 1) if common % n == 0)


def _halves(number: int) -> tuple[int, int]:
    """Two factors of a number, as alike as they can be."""
    small = max(n for n in range(1, math.isqrt(number) + 1) if number % n == 0)
    return number // small, small
