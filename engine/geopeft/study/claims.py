"""What the study of arXiv 2504.17397 found, asked of these runs: pairs of runs that differ in one thing only.

A claim held where the whole 95 % interval of the mean difference (Student's t over pairs; of time and memory, of the
ratio's logarithm) is on its side, did not hold where it is on the other, and else the runs cannot tell.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from scipy import special

from geopeft.study.grid import FOREST
from geopeft.study.runs import DONE
from geopeft.study.table import Row

HELD, FAILED, OPEN = "held", "did not hold", "cannot be told from these runs"
FEWEST_PAIRS = 2
SCRATCH = "scratch_unet"
# Of times that are said to be alike: what is nearer to 1 than this counts as no difference.
RATIO_TOLERANCE = 0.05
_SAME = ("backbone", "adapter", "decoder", "metadata", "fraction", "seed")
Chosen = Callable[[Row], bool]


@dataclass(frozen=True)
class Verdict:
    """What these runs say of a claim.

    Args:
        claim: a sentence.
        verdict: HELD, FAILED or OPEN.
        numbers: what that rests on.
        pairs: how many pairs of runs.
    """

    claim: str
    verdict: str
    numbers: str
    pairs: int


@dataclass(frozen=True)
class _Claim:
    """`one` is said to be above `other` in a figure (`ratio`: in their ratio below 1).

    Args:
        figures: columns; of two, the first less the second is compared.
        apart: the columns that may differ within a pair.
        alike: both are said to be alike, within the tolerance of ratios.
    """

    sentence: str
    one: Chosen
    other: Chosen
    figures: tuple[str, ...]
    apart: tuple[str, ...]
    ratio: bool = False
    alike: bool = False


def _tuned(adapter: str) -> Chosen:
    return lambda row: row["adapter"] == adapter and row["backbone"] not in (FOREST, SCRATCH)


def _named(column: str, value: str) -> Chosen:
    return lambda row: row[column] == value and row["backbone"] not in (FOREST, SCRATCH)


def _is(backbone: str) -> Chosen:
    return lambda row: row["backbone"] == backbone


_ADAPTER, _METHOD = ("adapter",), ("backbone", "adapter", "decoder", "metadata")
_LORA = _tuned("lora")
CLAIMS = (
    _Claim("LoRA is more accurate than full tuning in the region.", _LORA, _tuned("full"), ("in_region",), _ADAPTER),
    _Claim("LoRA is more accurate than full tuning in the unseen region.", _LORA, _tuned("full"), ("unseen",),
           _ADAPTER),
    _Claim("LoRA loses less than full tuning on the way to the unseen region.", _LORA, _tuned("full"),
           ("unseen", "in_region"), _ADAPTER),
    _Claim("LoRA is more accurate than the frozen backbone in the region.", _LORA, _tuned("frozen"), ("in_region",),
           _ADAPTER),
    _Claim("LoRA is more accurate than the frozen backbone in the unseen region.", _LORA, _tuned("frozen"),
           ("unseen",), _ADAPTER),
    _Claim("LoRA is more accurate than VPT in the unseen region.", _LORA, _tuned("vpt"), ("unseen",), _ADAPTER),
    _Claim("LoRA is more accurate than BitFit in the unseen region.", _LORA, _tuned("bitfit"), ("unseen",), _ADAPTER),
    _Claim("LoRA trains in less memory than full tuning.", _LORA, _tuned("full"), ("training_mb",), _ADAPTER,
           ratio=True),
    _Claim("LoRA trains in less memory of the GPU than full tuning.", _LORA, _tuned("full"), ("gpu_mb",), _ADAPTER,
           ratio=True),
    _Claim("A step of LoRA takes as long as one of full tuning.", _LORA, _tuned("full"), ("step_s",), _ADAPTER,
           ratio=True, alike=True),
    _Claim("A step of LoRA takes as much time of the processors as one of full tuning.", _LORA, _tuned("full"),
           ("step_cpu_s",), _ADAPTER, ratio=True, alike=True),
    _Claim("The UNet decoder is more accurate than the linear one.", _named("decoder", "unet"),
           _named("decoder", "linear"), ("in_region",), ("decoder",)),
    _Claim("The unseen region is mapped more accurately without metadata than with them.", _named("metadata", "off"),
           _named("metadata", "on"), ("unseen",), ("metadata",)),
    _Claim("LoRA on a foundation model is more accurate than a UNet from scratch in the unseen region.", _LORA,
           _is(SCRATCH), ("unseen",), _METHOD),
    _Claim("LoRA on a foundation model is more accurate than a random forest in the unseen region.", _LORA,
           _is(FOREST), ("unseen",), _METHOD),
)  # fmt: skip


def judge(rows: Sequence[Row]) -> list[Verdict]:
    """The claims that there are pairs of runs for, of whatever these runs hold."""
    done = [row for row in rows if row["kind"] == "run" and row["state"] == DONE]
    found = [_verdict(claim, _pairs(claim, done)) for claim in CLAIMS]
    return [verdict for verdict in found if verdict is not None]


def _pairs(claim: _Claim, rows: Sequence[Row]) -> list[tuple[float, float]]:
    """The figure of both runs of every pair."""
    same = [name for name in _SAME if name not in claim.apart]
    others = {tuple(row[name] for name in same): row for row in rows if claim.other(row)}
    found = []
    for row in filter(claim.one, rows):
        other = others.get(tuple(row[name] for name in same))
        values = [_figure(claim, one) for one in (row, other) if one is not None]
        if len(values) == 2 and None not in values:
            found.append((values[0] or 0.0, values[1] or 0.0))
    return found


def _figure(claim: _Claim, row: Row) -> float | None:
    values = [row[name] for name in claim.figures]
    if None in values:
        return None
    return float(values[0] - sum(values[1:]))


def _verdict(claim: _Claim, pairs: Sequence[tuple[float, float]]) -> Verdict | None:
    if not pairs:
        return None
    if claim.ratio:
        return _of_ratio(claim, pairs)
    differences = [one - other for one, other in pairs]
    mean = statistics.fmean(differences)
    if len(pairs) < FEWEST_PAIRS:
        return Verdict(claim.sentence, OPEN, f"difference {100 * mean:+.1f} points of mIoU in one pair", 1)
    low, mean, high = _interval(differences)
    verdict = HELD if low > 0 else FAILED if high < 0 else OPEN
    numbers = (
        f"difference {100 * mean:+.1f} points of mIoU ({100 * low:+.1f} to {100 * high:+.1f}), above 0 in "
        f"{sum(value > 0 for value in differences)} of {len(pairs)} pairs"
    )
    return Verdict(claim.sentence, verdict, numbers, len(pairs))


def _of_ratio(claim: _Claim, pairs: Sequence[tuple[float, float]]) -> Verdict | None:
    """Of the geometric mean and its interval, since a half and a double must cancel out."""
    known = [one / other for one, other in pairs if one > 0 and other > 0]
    if not known:
        return None
    low, ratio, high = (math.exp(end) for end in _interval([math.log(value) for value in known]))
    numbers = f"{100 * (ratio - 1):+.0f} % ({min(known):.2f} to {max(known):.2f} times as much)"
    if len(known) < FEWEST_PAIRS:
        return Verdict(claim.sentence, OPEN, numbers, len(known))
    if claim.alike:
        least, most = 1 - RATIO_TOLERANCE, 1 + RATIO_TOLERANCE
        verdict = HELD if least <= low and high <= most else FAILED if high < least or low > most else OPEN
    else:
        verdict = HELD if high < 1 else FAILED if low > 1 else OPEN
    return Verdict(claim.sentence, verdict, numbers, len(known))


def _interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower end, mean and upper end of the mean's 95 % interval; of one value only itself."""
    mean, half = statistics.fmean(values), 0.0
    if len(values) > 1:
        half = float(special.stdtrit(len(values) - 1, 0.975)) * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean, mean + half
