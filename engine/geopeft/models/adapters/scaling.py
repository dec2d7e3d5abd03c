"""Adapters that scale rows and columns of matrices. Scales are stored as what they differ from one by, so that weight
decay pulls a layer to what was published, not to zero."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from geopeft.models.adapters.reparametrized import Reparametrized, Update, flat, through
from geopeft.models.adapters.targets import Layer
from geopeft.models.spec import ModelSpec

# The layer of a feed-forward part whose input is the hidden activation.
AFTER_HIDDEN = "fc2"


class Scaled(Update):
    """diag(1 + a) W diag(1 + b).

    Args:
        rows: a is trained.
        columns: b is trained.
        bias: the bias is scaled as the rows are.
    """

    def __init__(self, layer: Layer, *, rows: bool = False, columns: bool = False, bias: bool = False) -> None:
        super().__init__()
        weight = layer.weight
        self.rows = nn.Parameter(weight.new_zeros(weight.shape[0])) if rows else None
        self.columns = nn.Parameter(weight.new_zeros(weight.shape[1])) if columns else None
        self.scales_bias = bias

    def matrix(self, weight: Tensor) -> Tensor:
        if self.columns is not None:
            weight = weight * (1 + self.columns)
        return weight if self.rows is None else weight * (1 + self.rows)[:, None]

    def offset(self, bias: Tensor | None) -> Tensor | None:
        return bias * (1 + self.rows) if bias is not None and self.rows is not None and self.scales_bias else bias

    def forward(self, layer: Layer, x: Tensor) -> Tensor:
        """As the matrix says, but computed on the activations: no gradient as large as W is made."""
        shape = (-1,) if isinstance(layer, nn.Linear) else (-1, 1, 1)
        if self.columns is not None:
            x = x * (1 + self.columns).view(shape)
        y = through(layer, x, flat(layer))
        if self.rows is not None:
            y = y * (1 + self.rows).view(shape)
        bias = self.offset(layer.bias)
        return y if bias is None else y + bias.view(shape)


class Ia3(Reparametrized):
    """(IA)3 (arXiv 2205.05638): scales keys, values and the hidden activations of feed-forward parts.

    Scaling q by channel is scaling k, since only their product counts. Where a target is called fc2 the hidden
    activations are its inputs, and the other targets beside it are left alone; elsewhere outputs are scaled.
    """

    def updates(self, layers: Mapping[str, Layer], spec: ModelSpec) -> tuple[dict[str, Update], nn.Module | None]:
        hidden = {name.rpartition(".")[0] for name in layers if name.rpartition(".")[2] == AFTER_HIDDEN}
        found: dict[str, Update] = {}
        for name, layer in layers.items():
            parent, _, own = name.rpartition(".")
            if own == AFTER_HIDDEN:
                found[name] = Scaled(layer, columns=True)
            elif parent not in hidden:
                found[name] = Scaled(layer, rows=True, bias=True)
        return found, None


class Ssl(Reparametrized):
    """SSL (arXiv 2407.05417): the left singular subspace is scaled.

    The paper writes a layer as x W, so that its left side is ours to the right: W diag(1 + b) with the authors' code
    (Chongjie-Si/Subspace-Tuning, layers_SSL.py) as the reference. Biases stay.
    """

    def updates(self, layers: Mapping[str, Layer], spec: ModelSpec) -> tuple[dict[str, Update], nn.Module | None]:
        return {name: Scaled(layer, columns=True) for name, layer in layers.items()}, None


class Ssb(Reparametrized):
    """SSB (arXiv 2407.05417): both singular subspaces are scaled, diag(1 + a) W diag(1 + b), as in the authors' code
    (layers_SSB.py). Biases stay."""

    def updates(self, layers: Mapping[str, Layer], spec: ModelSpec) -> tuple[dict[str, Update], nn.Module | None]:
        return {name: Scaled(layer, rows=True, columns=True) for name, layer in layers.items()}, None
