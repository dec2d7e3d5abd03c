"""What every backbone is: (B, C, H, W) of any size to feature maps, finest stride first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from geopeft.errors import JobError, WeightsError


@dataclass(frozen=True)
class Scene:
    """When and where chips were taken, for a backbone that takes it. NaN, like None, is unknown and adds nothing.

    Args:
        time: (B, T, 3) year, day of the year from 1, hour of the day in UTC.
        place: (B, 2) latitude and longitude of the chip's centre, in degrees.
    """

    time: Tensor | None = None
    place: Tensor | None = None


class Backbone(nn.Module):
    """A pretrained encoder.

    Attributes:
        out_channels, strides: of each feature map; a map has ceil(H / stride) rows.
        adapter_targets: last parts of the names of the linear layers and pointwise convolutions that LoRA updates.
        new_parts: first parts of the names of parameters that no published weights were made for; in pretraining they
            learn faster than the rest.
        never_trained: parameters that take no part with the bands in use; no adapter trains or stores them.
        in_channels: of x, all dates together; known once `segmentation.build_backbone` has built it.
        added: modules that an adapter put in and that are in training where the model is, such as a dropout.
        unsettled: norms that an adapter put in; their statistics are set from training chips, once, before it learns.
    """

    out_channels: Sequence[int]
    strides: Sequence[int]
    adapter_targets: Sequence[str] = ()
    new_parts: Sequence[str] = ()
    never_trained: frozenset[str] = frozenset()
    in_channels: int = 0
    added: Sequence[nn.Module] = ()
    unsettled: Sequence[nn.BatchNorm2d] = ()

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Takes published weights; WeightsError unless exactly the expected tensors are there."""
        raise NotImplementedError

    def set_wavelengths(self, wavelengths_um: Sequence[float]) -> None:
        """The bands of the next calls, for a backbone whose card says that it takes any optical band."""
        raise NotImplementedError

    def bake(self) -> None:
        """Called when neither weights nor bands change any more: what follows from them alone can be worked out."""

    def start_from(self, other: Backbone) -> None:
        """Takes over what fits of another backbone's weights, to be trained on; JobError where nothing does."""
        raise JobError(
            "This backbone cannot start from the weights of that one.",
            "Start from 'published' or 'nothing'.",
            "START_UNSUITABLE",
        )

    def forward(self, x: Tensor, gsd_m: float = 10.0, scene: Scene | None = None) -> list[Tensor]:
        """x (B, C, H, W) in the network's units; pixels are gsd_m wide. Of several dates C is date after date."""
        raise NotImplementedError

    def resting_blocks(self) -> int:
        """How many of the first blocks learn nothing, nor does what lies before them: what they give for a chip stays
        the same in a training. 0 too where the network cannot be divided."""
        return 0

    def begin(self, x: Tensor, gsd_m: float, scene: Scene | None, blocks: int) -> list[Tensor]:
        """What so many first blocks make of x: the next block's input, then the maps that are finished by then."""
        raise NotImplementedError

    def go_on(self, begun: Sequence[Tensor], blocks: int, height: int, width: int) -> list[Tensor]:
        """The maps of `forward`, from what `begin` gave for chips of height x width pixels."""
        raise NotImplementedError

    def __call__(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        maps: list[Tensor] = super().__call__(*args, **kwargs)
        return maps


def resting(backbone: Backbone, blocks: Iterable[nn.Module]) -> int:
    """How many of these first blocks learn nothing; 0 where something outside of them learns."""
    learning = {id(p) for p in backbone.parameters() if p.requires_grad}
    inside = [{id(p) for p in block.parameters()} & learning for block in blocks]
    if sum(map(len, inside)) < len(learning):
        return 0
    return next((at for at, own in enumerate(inside) if own), 0)


def load_exactly(module: nn.Module, state: Mapping[str, Tensor], title: str) -> None:
    """Loads a state dict whose keys and shapes are exactly the module's, else WeightsError says what differs."""
    own = module.state_dict()
    missing, extra = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
    wrong = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    if missing or extra or wrong:
        first = [*(f"{k} is missing" for k in missing), *(f"{k} is unknown" for k in extra), *wrong][0]
        raise WeightsError(
            f"The file does not hold the weights of {title}: {len(missing)} tensors are missing, {len(extra)} are "
            f"unknown and {len(wrong)} have another shape ({first}).",
            "Take the file that the backbone's authors published.",
            "WEIGHTS_KEYS",
        )
    module.load_state_dict(dict(state))
