"""Galileo nano's features, patches of 4 px, ten bands: milliseconds for 1000 pixels on one core.

    build.py bench galileo [--runs N]

Beside our fast path, which has tokens for the bands that are there and no mask, runs the same network as it is written
down plainly: tokens for all channel groups, those that are missing masked away. Both with the published weights where
the shared data have them, on chips of 32 px (what our models look at) and of 64 px, in turns; seconds of the processor.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import _mirrored  # type: ignore[import-not-found]
import _sets  # type: ignore[import-not-found]
import torch
from geopeft.models.backbones import BACKBONES
from geopeft.models.backbones.galileo_encoder import (
    SPACE_TIME,
    GalileoEncoder,
    PatchEmbed,
    kernel_resize,
    spatial_encoding,
)
from geopeft.models.segmentation import build_backbone
from geopeft.models.weights import fetch, load_state
from torch import Tensor

RESULTS = Path(__file__).parents[2] / "resources" / "results"
SIDES_PX, BATCH, PATCH_PX, MONTH = (32, 64), 4, 4, 6
# Channels of the network's input array that the ten bands of Sentinel-2 fill, in their order.
CHANNELS = tuple(range(2, 12))
GIVEN = "310 ms of the authors' code, 33 ms of a plain rewriting, where the target of 20 ms was set"


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table and keeps it in resources/results/galileo.md."""
    parser = argparse.ArgumentParser(prog="build.py bench galileo", description=__doc__)
    parser.add_argument("--runs", type=int, default=9)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    backbone = build_backbone(BACKBONES["galileo_nano"], _mirrored.BANDS, []).eval()
    shared = _sets.shared_folder()
    if shared is not None:
        card = BACKBONES["galileo_nano"]
        backbone.load_weights(load_state(fetch(card, str(shared / "weights")).path, card))
    lines = [
        "# Galileo nano",
        "",
        f"Made by `python3 build.py bench galileo`: milliseconds of one core for the features of 1000 px, patches of "
        f"{PATCH_PX} px, ten bands, chips in batches of {BATCH}, medians of {options.runs} runs in turns. Given were "
        f"{GIVEN}.",
        "",
        "| chip | fast path | all groups, masked | ratio | largest difference |",
        "|---|---|---|---|---|",
    ]
    for side in SIDES_PX:
        x = torch.rand(BATCH, len(_mirrored.BANDS), side, side)
        with torch.inference_mode():
            difference = float((backbone(x)[-1] - plain(backbone, x)).abs().max())
            fast, slow = in_turns([partial(backbone, x), partial(plain, backbone, x)], options.runs)
        unit = 1e6 / (BATCH * side**2)
        lines.append(f"| {side} px | {fast * unit:.1f} | {slow * unit:.1f} | {slow / fast:.1f} | {difference:.1e} |")
    text = "\n".join(lines) + "\n"
    print(text)
    (RESULTS / "galileo.md").write_text(text, encoding="utf-8")
    return 0


def in_turns(sides: Sequence[Callable[[], Any]], runs: int) -> list[float]:
    """The median seconds of the processor of each side."""
    taken: list[list[float]] = [[] for _ in sides]
    for _ in range(runs + 1):
        for own, work in zip(taken, sides, strict=True):
            begun = time.process_time()
            work()
            own.append(time.process_time() - begun)
    return [statistics.median(own[1:]) for own in taken]


def plain(backbone: Any, x: Tensor) -> Tensor:
    """The last map, (B, D, h, w), with a token for every group and a mask, one block after the other."""
    encoder: GalileoEncoder = backbone.encoder
    rows, resize = x.shape[-1] // PATCH_PX, kernel_resize(PATCH_PX)
    filled = x.new_zeros(len(x), 13, *x.shape[-2:])
    filled[:, CHANNELS] = x
    embeds = [(cast(PatchEmbed, encoder.space_time_embed[group]), own) for group, own in SPACE_TIME.items()]
    tokens = torch.stack([e(filled[:, list(c)], PATCH_PX, resize).flatten(2).transpose(1, 2) for e, c in embeds], 2)
    part = encoder.dim // 4
    where = spatial_encoding(rows, rows, 10.0 * PATCH_PX, part).flatten(0, 1)[:, None]
    shape = (rows**2, len(SPACE_TIME), part)
    quarters = (encoder.s_t_channel_embed, encoder.pos_embed[0], encoder.month_embed.weight[MONTH], where)
    tokens = (tokens + torch.cat([quarter.expand(shape) for quarter in quarters], -1)).flatten(1, 2)
    there = torch.tensor([set(channels) <= set(CHANNELS) for channels in SPACE_TIME.values()])
    mask = there.repeat(rows**2)[None, None, None].expand(len(x), 1, tokens.shape[1], -1)
    for block in encoder.blocks:
        tokens = block(tokens, mask)
    maps = encoder.norm(tokens).unflatten(1, (rows, rows, len(SPACE_TIME)))[:, :, :, there].mean(3)
    return maps.permute(0, 3, 1, 2)


if __name__ == "__main__":
    sys.exit(main())
