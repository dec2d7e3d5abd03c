"""The task of pretraining: hidden pixels and bands are rebuilt, and teachers are followed.

Masked reconstruction is that of SimMIM (arXiv 2111.09886), with a frozen teacher beside it as in GFM (arXiv
2302.04476). Half of the chips are masked, and all of them follow the teacher, which sees them whole: a backbone must
work on whole chips later, and what a teacher makes of a hidden place is worth guessing too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from geopeft.data.unlabelled import Chips, SceneReader
from geopeft.events import Reporter
from geopeft.models.backbones.backbone import Backbone
from geopeft.models.pretext_heads import Following, Reconstruction
from geopeft.models.wavelengths import optical_wavelength
from geopeft.training.learning import multiplies_bfloat16

CHIPS_A_SCENE = 4
HIDDEN_SHARE = 0.6
MASK_PX = 16
# Part of the batches in which the student sees red, green and blue alone, and in which any other choice of bands.
ONLY_RGB = 0.3
SOME_BANDS = 0.35
# Of a hyperspectral raster so many bands take part in a batch.
MOST_BANDS = 32
# Deviations of the gain (in logarithm) and of the offset that each band of a chip is changed by.
GAIN, OFFSET = 0.1, 0.1
# Chips are resampled by up to this factor, finer and coarser.
RESAMPLING = 2.0
# A teacher is blind to a band that is further than this part of its wavelength from all that it knows, and is not
# followed where this share of what the student sees is such.
FAR_OFF, BLIND_SHARE = 0.2, 0.25
# Batches, of two chips each, that tell the spread of a teacher's channels.
TEACHER_BATCHES = 24
# A teacher sees at most so many of its own chips a side: attention over a large chip costs more than it teaches.
TEACHER_CHIPS = 2


@dataclass(frozen=True)
class View:
    """What a network sees of a scene.

    Args:
        bands: positions among the scene's bands, n of them.
        scale, offset: (n,) constants that bring standardised values to the network's units, value * scale + offset.
    """

    bands: tuple[int, ...]
    scale: tuple[float, ...]
    offset: tuple[float, ...]

    def __call__(self, values: Tensor, positions: Sequence[int]) -> Tensor:
        """values (B, C, s, s) of the scene's bands `positions` -> the network's input."""
        where = {position: at for at, position in enumerate(positions)}
        column = values.new_tensor([self.scale, self.offset])[:, None, :, None, None]
        return values[:, [where[band] for band in self.bands]] * column[0] + column[1]


@dataclass
class Teacher:
    """A frozen backbone that is followed.

    Args:
        networks: for each scene the network, None where its bands do not fit; scenes of the same bands share one.
        views: for each scene.
        gsd_range_m: pixel sizes that it takes, None: any; chips are brought there.
        chip_px: side of its own chips.
        maps: positions of the maps that are followed.
        same: for each of these the student's map of the same architecture, -1: none.
        any_optical: it sees every band that takes part.
        heads: one for each map, made when the teacher is measured.
    """

    name: str
    networks: tuple[Backbone | None, ...]
    views: tuple[View | None, ...]
    gsd_range_m: tuple[float, float] | None
    chip_px: int
    maps: tuple[int, ...]
    same: tuple[int, ...]
    any_optical: bool
    heads: list[Following] = field(default_factory=list)


@dataclass(frozen=True)
class Student:
    """The backbone that is trained.

    Args:
        backbone: with its adapter, on its device, in evaluation mode: batch statistics stay as published.
        adapter: "full" or "lora".
        views: for each scene.
        any_optical: it sees any of the bands, which change from batch to batch.
        chip_px: side of its chips.
        gsd_range_m: pixel sizes that it takes, None: any.
    """

    backbone: Backbone
    adapter: str
    views: tuple[View, ...]
    any_optical: bool
    chip_px: int
    gsd_range_m: tuple[float, float] | None


@dataclass(frozen=True, eq=False)
class Batch:
    """Chips of one scene.

    Args:
        scene: its number.
        bands: positions of the chips' bands among the scene's.
        seen: those of them that the student sees; the others it has to rebuild.
    """

    scene: int
    bands: tuple[int, ...]
    seen: tuple[int, ...]
    chips: Chips


class Task:
    """Draws batches and tells their losses.

    Args:
        seed: of the heads' first values, and of what the teachers are measured on.
    """

    def __init__(
        self, student: Student, teachers: Sequence[Teacher], reader: SceneReader, reporter: Reporter, seed: int
    ) -> None:
        self.student, self._teachers, self._reader = student, tuple(teachers), reader
        self._reporter = reporter
        self.device = next(student.backbone.parameters()).device
        self._half = multiplies_bfloat16(self.device)
        # On a CPU the way back through a depthwise convolution takes twice as long in 16 bits as in 32.
        depthwise = any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in student.backbone.modules())
        self._half_student = self._half and not (depthwise and self.device.type == "cpu")
        self._wavelengths = [[optical_wavelength(band) or 1.0 for band in scene.bands] for scene in reader.scenes]
        roots = np.sqrt([scene.valid_px for scene in reader.scenes])
        self._odds = roots / roots.sum()
        torch.manual_seed(seed)
        self._reconstruction = Reconstruction(student.backbone.out_channels, student.backbone.strides).to(self.device)
        for number, teacher in enumerate(self._teachers):
            self._measure(teacher, (seed, 2, number))
        followers = {f"teacher{number}": nn.ModuleList(teacher.heads) for number, teacher in enumerate(self._teachers)}
        self.heads = nn.ModuleDict({"reconstruction": self._reconstruction, **followers}).to(self.device)

    def draw(self, rng: np.random.Generator, count: int) -> list[Batch]:
        """Batches of `count` scenes, drawn by the root of their valid area so that large ones do not drown the rest."""
        return [self._draw(scene, rng) for scene in rng.choice(len(self._odds), count, p=self._odds).tolist()]

    def held_out(self, most_scenes: int, most_chips: int, seed: int) -> list[Batch]:
        """Batches of held-out places, spread over the scenes; every third shows red, green and blue alone."""
        held = [n for n, squares in enumerate(self._reader.held_out) if squares.any()]
        found: list[Batch] = []
        for scene in held[:: max(1, -(-len(held) // most_scenes))]:
            bands, _ = self._pick_bands(scene, np.random.default_rng((seed, 3, scene)))
            chips = self._reader.held_out_chips(scene, self.student.chip_px, most_chips, bands)
            if chips is None:
                continue
            seen = bands if self.student.any_optical else self.student.views[scene].bands
            rgb = self._rgb(scene)
            if self.student.any_optical and len(found) % 3 == 0 and rgb:
                seen = rgb
            found.append(Batch(scene, bands, seen, chips))
        return found

    def losses(self, batch: Batch, rng: np.random.Generator, *, jitter: bool, alone: bool = False) -> dict[str, Tensor]:
        """The losses of a batch by name, each a scalar: `rebuild`, and one for each teacher that fits its scene.

        Args:
            jitter: the bands' gains and offsets are changed a little.
            alone: only the heads learn.
        """
        chips = batch.chips
        values, valid, counted = (
            torch.from_numpy(part).to(self.device) for part in (chips.values, chips.valid, chips.counted)
        )
        count, channels, side = values.shape[:3]
        mask = torch.from_numpy(masks(rng, count, side)).to(self.device)[:, None]
        shown = values
        if jitter:
            change = rng.normal(0, 1, (2, count, channels, 1, 1)).astype(np.float32)
            gain, offset = torch.from_numpy(change).to(self.device)
            shown = (values * torch.exp(gain * GAIN) + offset * OFFSET) * valid
        maps = self._see(batch, shown * ~mask, alone)
        unseen = [band not in batch.seen for band in batch.bands]
        hidden = mask | torch.tensor(unseen, device=self.device).view(1, -1, 1, 1)
        wavelengths = [self._wavelengths[batch.scene][band] for band in batch.bands]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
            rebuilt = self._reconstruction(maps, wavelengths)
        losses = {"rebuild": rebuild_loss(rebuilt.float(), values, valid, counted & hidden)}
        place = rng.random(2)
        for teacher in self._teachers:
            if self._may_follow(teacher, batch):
                losses[teacher.name] = self._follow(teacher, batch, values, counted, maps, place)
        return losses

    def _may_follow(self, teacher: Teacher, batch: Batch) -> bool:
        """Whether the teacher's bands are there and it is not blind to much of what is shown: a network that sees more
        than red, green and blue would learn from their teacher to look away from the rest."""
        view = teacher.views[batch.scene]
        if teacher.networks[batch.scene] is None or view is None:
            return False
        if teacher.any_optical or not self.student.any_optical:
            return True
        wavelengths = np.array(self._wavelengths[batch.scene])
        known, shown = wavelengths[list(view.bands)], wavelengths[list(batch.seen)]
        far = np.abs(shown[:, None] / known - 1).min(1) > FAR_OFF
        return float(far.mean()) < BLIND_SHARE

    def _draw(self, scene: int, rng: np.random.Generator) -> Batch:
        bands, seen = self._pick_bands(scene, rng)
        chips = self._reader.draw(scene, rng, CHIPS_A_SCENE, self.student.chip_px, self._gsd_range(scene), bands)
        return Batch(scene, bands, seen, chips)

    def _gsd_range(self, scene: int) -> tuple[float, float]:
        """Half to twice the raster's pixel size, as far as the backbone takes it."""
        own = self._reader.scenes[scene].info.gsd_m
        low, high = own / RESAMPLING, own * RESAMPLING
        if self.student.gsd_range_m is None:
            return low, high
        least, most = self.student.gsd_range_m
        return min(max(low, least), most), max(min(high, most), least)

    def _rgb(self, scene: int) -> tuple[int, ...]:
        """Positions of red, green and blue; none where one is missing."""
        roles = [band.common for band in self._reader.scenes[scene].bands]
        found = tuple(roles.index(role) for role in ("red", "green", "blue") if role in roles)
        return found if len(found) == 3 else ()

    def _pick_bands(self, scene: int, rng: np.random.Generator) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Positions of the bands that take part, and of those that the student sees."""
        every = list(range(len(self._reader.scenes[scene].bands)))
        if not self.student.any_optical:
            return tuple(every), self.student.views[scene].bands
        rgb = self._rgb(scene)
        if len(every) > MOST_BANDS:
            views = [view for teacher in self._teachers if (view := teacher.views[scene])]
            needed = sorted({at for view in views for at in view.bands} | {*rgb})
            free = [at for at in every if at not in needed]
            more = rng.choice(free, max(0, min(len(free), MOST_BANDS - len(needed))), replace=False).tolist()
            every = sorted([*needed, *more])
        draw = rng.random()
        if rgb and draw < ONLY_RGB:
            return tuple(every), rgb
        if draw < ONLY_RGB + SOME_BANDS:
            some = rng.choice(every, int(rng.integers(1, len(every) + 1)), replace=False)
            return tuple(every), tuple(sorted(some.tolist()))
        return tuple(every), tuple(every)

    def _see(self, batch: Batch, values: Tensor, alone: bool) -> list[Tensor]:
        """The student's maps."""
        if self.student.any_optical:
            x = values[:, [batch.bands.index(band) for band in batch.seen]]
            self.student.backbone.set_wavelengths([self._wavelengths[batch.scene][band] for band in batch.seen])
        else:
            x = self.student.views[batch.scene](values, batch.bands)
        learns = torch.is_grad_enabled() and not alone
        with (
            torch.set_grad_enabled(learns),
            torch.autocast(self.device.type, torch.bfloat16, enabled=self._half_student),
        ):
            return self.student.backbone(x, gsd_m=batch.chips.gsd_m)

    def _follow(
        self,
        teacher: Teacher,
        batch: Batch,
        values: Tensor,
        counted: Tensor,
        maps: Sequence[Tensor],
        place: np.ndarray,
    ) -> Tensor:
        """The mean loss over the teacher's maps, on a part of the chips that the teacher can bear."""
        side, gsd_m = values.shape[-1], batch.chips.gsd_m
        part, top, left = _part(teacher, side, gsd_m, place)
        cut = (..., slice(top, top + part), slice(left, left + part))
        wanted = self._teach(teacher, batch, values[cut])
        every = counted.all(1)[:, None].float()[cut]
        own = [_cut_map(m, side, part, top, left) for m in maps]
        losses = []
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
            for head, target in zip(teacher.heads, wanted, strict=True):
                cells = (F.adaptive_avg_pool2d(every, (target.shape[-2], target.shape[-1]))[:, 0] > 0.9).float()
                losses.append(head.loss(own, target, cells))
        return torch.stack(losses).mean()

    @torch.inference_mode()
    def _teach(self, teacher: Teacher, batch: Batch, values: Tensor) -> list[Tensor]:
        """The teacher's maps of whole chips, float32."""
        network, view = teacher.networks[batch.scene], teacher.views[batch.scene]
        if network is None or view is None:
            return []
        factor = _factor(teacher.gsd_range_m, batch.chips.gsd_m)
        unit = max(network.strides)
        side = max(1, round(values.shape[-1] * factor / unit)) * unit
        if teacher.any_optical:
            x = values
            network.set_wavelengths([self._wavelengths[batch.scene][band] for band in batch.bands])
        else:
            x = view(values, batch.bands)
        if side != x.shape[-1]:
            x = F.interpolate(x, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        tiles = max(1, side // teacher.chip_px) if side % teacher.chip_px == 0 else 1
        x = _tiled(x, tiles).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._half):
            maps = network(x, gsd_m=batch.chips.gsd_m * values.shape[-1] / side)
        return [_joined(maps[index].float(), tiles) for index in teacher.maps]

    def _measure(self, teacher: Teacher, seed: tuple[int, ...]) -> None:
        """Finds the spread of the teacher's channels on some batches, and makes the heads that follow them."""
        fitting = [n for n, network in enumerate(teacher.networks) if network is not None]
        odds = self._odds[fitting] / self._odds[fitting].sum()
        sums: list[Tensor] = []
        for number in range(TEACHER_BATCHES):
            self._reporter.check_canceled()
            rng = np.random.default_rng((*seed, number))
            scene = fitting[int(rng.choice(len(fitting), p=odds))]
            view = teacher.views[scene]
            bands = view.bands if view is not None and view.bands else self._pick_bands(scene, rng)[0]
            chips = self._reader.draw(scene, rng, 2, self.student.chip_px, self._gsd_range(scene), bands)
            values = torch.from_numpy(chips.values).to(self.device)
            part, top, left = _part(teacher, values.shape[-1], chips.gsd_m, rng.random(2))
            cut = values[..., top : top + part, left : left + part]
            maps = self._teach(teacher, Batch(scene, bands, bands, chips), cut)
            figures = [torch.stack([m.mean((0, 2, 3)), m.square().mean((0, 2, 3))]) for m in maps]
            sums = [a + b for a, b in zip(sums, figures, strict=True)] if sums else figures
        for (mean, square), same in zip((s / TEACHER_BATCHES for s in sums), teacher.same, strict=True):
            std = (square - mean.square()).clamp_min(0).sqrt()
            std = std.clamp_min(float(std.mean()) * 0.1 + 1e-6).clone()
            head = Following(self.student.backbone.out_channels, same, mean.clone(), std)
            teacher.heads.append(head.to(self.device))


def masks(rng: np.random.Generator, count: int, side: int) -> np.ndarray:
    """(B, s, s) bool: in every other chip squares with about 60 % of the pixels are hidden."""
    cells = -(-side // MASK_PX)
    hidden = np.zeros((count, cells, cells), bool)
    first = int(rng.integers(2)) if count > 1 else 1
    for chip in range(count):
        order = rng.permutation(cells * cells)
        if (chip + first) % 2:
            hidden[chip].flat[order[: round(HIDDEN_SHARE * cells * cells)]] = True
    return hidden.repeat(MASK_PX, 1).repeat(MASK_PX, 2)[:, :side, :side]


def rebuild_loss(rebuilt: Tensor, values: Tensor, valid: Tensor, wanted: Tensor) -> Tensor:
    """L1 between rebuilt cells and the mean of each cell's valid pixels, over cells that are wanted throughout.

    Args:
        rebuilt: (B, C, g, g).
        values, valid, wanted: (B, C, s, s); wanted is part of valid.
    """
    size = rebuilt.shape[-2], rebuilt.shape[-1]
    share = F.adaptive_avg_pool2d(valid.float(), size)
    target = F.adaptive_avg_pool2d(values, size) / share.clamp_min(0.1)
    counts = (F.adaptive_avg_pool2d(wanted.float(), size) > 0.99).float()
    return ((rebuilt - target).abs() * counts).sum() / counts.sum().clamp_min(1.0)


def _part(teacher: Teacher, side: int, gsd_m: float, place: np.ndarray) -> tuple[int, int, int]:
    """(side, top, left) of the part of a chip that a teacher sees; multiples of 32 px of the chip."""
    factor = _factor(teacher.gsd_range_m, gsd_m)
    most = max(32, int(TEACHER_CHIPS * teacher.chip_px / factor) // 32 * 32)
    if most >= side:
        return side, 0, 0
    top, left = (int(p * ((side - most) // 32 + 1)) * 32 for p in place)
    return most, top, left


def _factor(gsd_range_m: tuple[float, float] | None, gsd_m: float) -> float:
    """By how much chips are resized for a network that takes these pixel sizes."""
    if gsd_range_m is None:
        return 1.0
    low, high = gsd_range_m
    return gsd_m / low if gsd_m < low else gsd_m / high if gsd_m > high else 1.0


def _cut_map(feature_map: Tensor, side: int, part: int, top: int, left: int) -> Tensor:
    """The part of a map of a chip of `side` px."""
    if part == side:
        return feature_map
    cells = feature_map.shape[-1]
    down, across = (slice(at * cells // side, (at + part) * cells // side) for at in (top, left))
    return feature_map[..., down, across]


def _tiled(x: Tensor, tiles: int) -> Tensor:
    """(B, C, s, s) -> (B * tiles^2, C, s / tiles, s / tiles)."""
    if tiles == 1:
        return x
    side = x.shape[-1] // tiles
    batch, channels = x.shape[:2]
    cut = x.reshape(batch, channels, tiles, side, tiles, side)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, side, side)


def _joined(maps: Tensor, tiles: int) -> Tensor:
    """What `_tiled` cut, together again."""
    if tiles == 1:
        return maps
    channels, rows, cols = maps.shape[1:]
    cut = maps.reshape(-1, tiles, tiles, channels, rows, cols)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, tiles * rows, tiles * cols)
